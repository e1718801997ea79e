//! A TCP proxy in front of one PostgreSQL server: records the operator's sessions, forwards all others blindly.

use std::{io, net::Ipv4Addr, sync::Arc};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::{
    recorder::Recorder,
    session,
    wire::{Startup, read_startup},
};

/// How the operator's sessions call themselves.
const OPERATOR: &str = "longshore-operator";

/// What the network between the server and all others is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// As it should be.
    Open,
    /// Nothing arrives, nobody is told; what was sent arrives later.
    Stalled,
    /// Every connection is ended, and none is made.
    Down,
}

/// A running proxy. Dropped, it ends with its connections.
#[derive(Debug)]
pub struct PostgresProxy {
    port: u16,
    line: watch::Sender<Line>,
    _accepting: JoinSet<()>,
}

/// What every connection of a proxy needs.
#[derive(Clone)]
struct Route {
    shard: Arc<str>,
    target: u16,
    recorder: Arc<Recorder>,
    line: watch::Receiver<Line>,
}

impl PostgresProxy {
    /// Listens on a port of its own for what is meant for the server at `target`.
    pub async fn start(shard: &str, target: u16, recorder: Arc<Recorder>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.with_context(|| format!("failed to start the proxy of shard {shard}"))?;
        let port = listener.local_addr()?.port();
        let line = watch::Sender::new(Line::Open);
        let route = Route { shard: shard.into(), target, recorder, line: line.subscribe() };
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, route));
        Ok(Self { port, line, _accepting: accepting })
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes the network.
    pub fn set_line(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn accept(listener: TcpListener, route: Route) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let mut route = route.clone();
                connections.spawn(async move {
                    let mut ended = route.line.clone();
                    tokio::select! {
                        // A connection that breaks is for its two ends to notice.
                        _ = serve(client, &mut route) => {}
                        () = until_down(&mut ended) => {}
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(mut client: TcpStream, route: &mut Route) -> io::Result<()> {
    client.set_nodelay(true)?;
    let life = route.recorder.life();
    let (bytes, startup) = loop {
        let (bytes, startup) = read_startup(&mut client).await?;
        match startup {
            Startup::Encrypt => client.write_all(b"N").await?,
            Startup::Other | Startup::Session(_) => break (bytes, startup),
        }
    };
    until_open(&mut route.line).await;
    let is_operator = match &startup {
        Startup::Session(parameters) => {
            parameters.iter().any(|(key, value)| key == "application_name" && value == OPERATOR)
        }
        Startup::Encrypt | Startup::Other => false,
    };
    if is_operator && life.is_over() {
        return session::await_death(&mut client).await;
    }
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, route.target)).await?;
    server.set_nodelay(true)?;
    server.write_all(&bytes).await?;
    if is_operator {
        return session::run(&route.shard, &route.recorder, life, client, server, &mut route.line).await;
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let there = forward(from_client, to_server, route.line.clone());
    let back = forward(from_server, to_client, route.line.clone());
    tokio::try_join!(there, back).map(drop)
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut line: watch::Receiver<Line>,
) -> io::Result<()> {
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut chunk).await?;
        until_open(&mut line).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..read]).await?;
    }
}

/// A proxy that is gone leaves the line as it was.
pub(super) async fn until_open(line: &mut watch::Receiver<Line>) {
    drop(line.wait_for(|line| *line == Line::Open).await);
}

async fn until_down(line: &mut watch::Receiver<Line>) {
    if line.wait_for(|line| *line == Line::Down).await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{Aim, Fault};

    const STARTUP: &[u8] = b"\0\0\0\x2d\0\x03\0\0application_name\0longshore-operator\0\0";
    const ACTION: &[u8] = b"Q\0\0\0\x17drop publication x\0";
    const READING: &[u8] = b"Q\0\0\0\x0dselect 1\0";

    async fn session(proxy: &PostgresProxy, server: &TcpListener) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
        client.write_all(STARTUP).await.unwrap();
        let (mut server, _) = server.accept().await.unwrap();
        let mut started = [0; STARTUP.len()];
        server.read_exact(&mut started).await.unwrap();
        assert_eq!(started, STARTUP);
        (client, server)
    }

    /// What arrives at the server until the session ends.
    async fn rest(client: TcpStream, mut server: TcpStream) -> Vec<u8> {
        drop(client);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        rest
    }

    #[tokio::test]
    async fn nothing_of_a_doomed_operator_passes() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let recorder = Arc::new(Recorder::default());
        let target = server.local_addr().unwrap().port();
        let proxy = PostgresProxy::start("a", target, Arc::clone(&recorder)).await.unwrap();
        let (mut acting, acting_server) = session(&proxy, &server).await;
        let (mut other, other_server) = session(&proxy, &server).await;

        recorder.aim(Aim::EachOnce(Fault::Before));
        acting.write_all(ACTION).await.unwrap();
        recorder.until_doomed().await;
        other.write_all(READING).await.unwrap();
        assert_eq!(rest(acting, acting_server).await, b"");
        assert_eq!(rest(other, other_server).await, b"");

        // The next operator's first try of the same action passes.
        recorder.buried();
        let (mut next, next_server) = session(&proxy, &server).await;
        next.write_all(ACTION).await.unwrap();
        assert_eq!(rest(next, next_server).await, ACTION);
    }
}
