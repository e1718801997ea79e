//! A proxy before a broker's plain listener, which speaks Kafka's protocol as far as it must: which requests change something, and
//! which answer belongs to which request. The broker's advertised listener must be this proxy's, for brokers tell clients where to go.

use std::{collections::VecDeque, fmt::Write as _, io, net::Ipv4Addr, sync::Arc};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    recorder::{Fault, Recorder, Repeats, Step, Ticket},
    session::await_death,
};

/// All brokers of a cluster go by one name: which of them takes a request is chance.
const SERVER: &str = "kafka";
const LENGTH_MAX: usize = 64 << 20;

/// A running proxy. Dropped, it ends with its connections.
#[derive(Debug)]
pub struct KafkaProxy {
    port: u16,
    _accepting: JoinSet<()>,
}

impl KafkaProxy {
    /// Listens on a port of its own for what is meant for the broker at `target`, which need not run yet.
    pub async fn start(target: u16, recorder: Arc<Recorder>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .context("failed to start the proxy of a broker")?;
        let port = listener.local_addr()?.port();
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, target, recorder));
        Ok(Self { port, _accepting: accepting })
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn accept(listener: TcpListener, target: u16, recorder: Arc<Recorder>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let recorder = Arc::clone(&recorder);
                // A connection that breaks is for its two ends to notice.
                connections.spawn(async move { drop(serve(client, target, &recorder).await) });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Forwards both directions until either ends. A broker answers a connection's requests in their order.
async fn serve(mut client: TcpStream, target: u16, recorder: &Recorder) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut life = recorder.life();
    if life.is_over() {
        return await_death(&mut client).await;
    }
    let mut broker = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
    broker.set_nodelay(true)?;
    let (mut asked, mut answered) = (Frames::default(), Frames::default());
    let mut pending: VecDeque<Option<Ticket>> = VecDeque::new();
    loop {
        let goes_on = tokio::select! {
            biased;
            () = life.ended() => return await_death(&mut client).await,
            more = asked.fill(&mut client) => more?,
            more = answered.fill(&mut broker) => more?,
        };
        if life.is_over() {
            return await_death(&mut client).await;
        }
        while let Some(frame) = asked.next()? {
            let ticket = step(&frame).map(|step| recorder.ask(SERVER, &step));
            if ticket.as_ref().is_some_and(|ticket| ticket.fault == Some(Fault::Before)) {
                recorder.doom();
                return await_death(&mut client).await;
            }
            pending.push_back(ticket);
            broker.write_all(&frame).await?;
        }
        while let Some(frame) = answered.next()? {
            // That single topics are refused is the answer's content, and their error stands alone: the request took effect.
            let ticket = pending.pop_front().flatten();
            ticket.iter().for_each(|ticket| recorder.committed(ticket));
            let fault = ticket.and_then(|ticket| ticket.fault);
            match fault {
                None | Some(Fault::Before) => client.write_all(&frame).await?,
                Some(Fault::Cut) => return Ok(()),
                Some(Fault::After | Fault::Lost) => {
                    if fault == Some(Fault::After) {
                        client.write_all(&frame).await?;
                    }
                    recorder.doom();
                    return await_death(&mut client).await;
                }
            }
        }
        if !goes_on {
            return Ok(());
        }
    }
}

/// What a request changes, if anything. Its content is told by a hash: the same request again is the same action.
fn step(frame: &[u8]) -> Option<Step> {
    let kind = match frame.get(4..6)? {
        [0, 19] => "create_topics",
        [0, 20] => "delete_topics",
        [0, 33] => "alter_configs",
        [0, 37] => "create_partitions",
        [0, 44] => "incremental_alter_configs",
        [0, 45] => "alter_partition_reassignments",
        _ => return None,
    };
    // Length, kind, version and the number of the request stand before the client's name, and the content behind that.
    let client = frame.get(12..14)?;
    let client = usize::try_from(i16::from_be_bytes([client[0], client[1]])).unwrap_or(0);
    let hash = Sha256::digest(frame.get(14 + client..)?);
    let detail = hash.iter().take(4).fold(String::new(), |mut detail, byte| {
        let _ = write!(detail, "{byte:02x}"); // into a String: it cannot fail
        detail
    });
    Some(Step { kind: kind.to_owned(), detail, repeats: Repeats::Never })
}

/// What has been read of one direction.
#[derive(Debug, Default)]
struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Reads some more; false at the end. Nothing is lost if the wait is given up.
    async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<bool> {
        Ok(from.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next message with its length, if it is there in full.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some((length, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > LENGTH_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((rest.len() >= length).then(|| self.buffer.drain(..4 + length).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::Aim;

    /// Kind, version 7, number, a client called `c`, and content.
    fn request(kind: u8, number: u8, content: &[u8]) -> Vec<u8> {
        let mut request = vec![0, 0, 0, 11, 0, kind, 0, 7, 0, 0, 0, number, 0, 1, b'c'];
        request.extend(content);
        request[3] += u8::try_from(content.len()).unwrap();
        request
    }

    #[test]
    fn the_same_request_again_is_the_same_action() {
        let of = |request: &[u8]| step(request).map(|step| (step.kind, step.detail));
        assert_eq!(of(&request(19, 1, b"topics")), of(&request(19, 2, b"topics")));
        assert_ne!(of(&request(19, 1, b"topics")), of(&request(19, 1, b"others")));
        assert_ne!(of(&request(19, 1, b"topics")), of(&request(20, 1, b"topics")));
        assert_eq!(of(&request(3, 1, b"topics")), None, "metadata is read");
    }

    async fn pair(proxy: &KafkaProxy, broker: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        (client, broker.accept().await.unwrap().0)
    }

    async fn expect(stream: &mut TcpStream, expected: &[u8]) {
        let mut found = vec![0; expected.len()];
        stream.read_exact(&mut found).await.unwrap();
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn an_answer_is_lost_with_its_operator_and_the_next_one_is_heard() {
        let broker = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let recorder = Arc::new(Recorder::default());
        let target = broker.local_addr().unwrap().port();
        let proxy = KafkaProxy::start(target, Arc::clone(&recorder)).await.unwrap();
        recorder.aim(Aim::EachOnce(Fault::Lost));

        let (mut client, mut server) = pair(&proxy, &broker).await;
        let (reading, acting) = (request(3, 1, b""), request(19, 2, b"topics"));
        client.write_all(&[reading.clone(), acting.clone()].concat()).await.unwrap();
        expect(&mut server, &[reading, acting.clone()].concat()).await;
        // Two answers in one piece: the first is heard, for it is of reading.
        server.write_all(b"\0\0\0\x01a\0\0\0\x01b").await.unwrap();
        expect(&mut client, b"\0\0\0\x01a").await;
        recorder.until_doomed().await;
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"", "the second is not");
        assert_eq!(recorder.actions()[0].committed, Some(true));

        recorder.buried();
        let (mut client, mut server) = pair(&proxy, &broker).await;
        client.write_all(&acting).await.unwrap();
        expect(&mut server, &acting).await;
        server.write_all(b"\0\0\0\x01b").await.unwrap();
        expect(&mut client, b"\0\0\0\x01b").await;
        assert_eq!(recorder.hits().values().sum::<u64>(), 1);
    }
}
