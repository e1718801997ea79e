//! One session of the operator: follows its statements, asks the recorder about those that act, and knows from the
//! server's replies when their effect is committed.

use std::{collections::HashMap, io};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

use super::{
    postgres::{Line, until_open},
    recorder::{Fault, Life, Recorder, Ticket},
    statement,
    wire::{self, Frame, Frames, Prepared},
};

/// Forwards both directions until either ends.
pub(super) async fn run(
    shard: &str,
    recorder: &Recorder,
    mut life: Life,
    mut client: TcpStream,
    mut server: TcpStream,
    line: &mut watch::Receiver<Line>,
) -> io::Result<()> {
    let mut session = Session {
        shard,
        recorder,
        statements: HashMap::new(),
        pending: 0,
        in_transaction: false,
        action: None,
    };
    let (mut asked, mut answered) = (Frames::default(), Frames::default());
    loop {
        let goes_on = tokio::select! {
            biased;
            () = life.ended() => return await_death(&mut client).await,
            more = asked.fill(&mut client) => more?,
            more = answered.fill(&mut server) => more?,
        };
        until_open(line).await;
        if life.is_over() {
            return await_death(&mut client).await;
        }
        while let Some(frame) = asked.next()? {
            if session.asked(&frame) == Passage::Doomed {
                return await_death(&mut client).await;
            }
            server.write_all(frame.bytes()).await?;
        }
        while let Some(frame) = answered.next()? {
            match session.answered(frame) {
                (Passage::Open, frames) => write(&mut client, &frames).await?,
                (Passage::Doomed, frames) => {
                    write(&mut client, &frames).await?;
                    recorder.doom();
                    return await_death(&mut client).await;
                }
                (Passage::Cut, _) => return Ok(()),
            }
        }
        if !goes_on {
            return Ok(());
        }
    }
}

async fn write(client: &mut TcpStream, frames: &[Frame]) -> io::Result<()> {
    for frame in frames {
        client.write_all(frame.bytes()).await?;
    }
    Ok(())
}

/// Keeps a doomed operator's connection, so that it notices nothing, until it is dead.
pub(super) async fn await_death(client: &mut TcpStream) -> io::Result<()> {
    let mut unheard = [0; 1024];
    while client.read(&mut unheard).await? > 0 {}
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Open,
    /// The operator is to die now.
    Doomed,
    /// The connection is to end now.
    Cut,
}

struct Session<'a> {
    shard: &'a str,
    recorder: &'a Recorder,
    statements: HashMap<String, Prepared>,
    /// How many ReadyForQuery the server still owes.
    pending: usize,
    in_transaction: bool,
    action: Option<Action>,
}

/// A statement that acts, or the transaction around it.
struct Action {
    ticket: Ticket,
    state: State,
    failed: bool,
    /// What the client is not told, or not yet.
    held: Vec<Frame>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its transaction was not yet asked to commit.
    Open,
    /// It is settled when the server has become ready so many times.
    Settling(usize),
}

impl Session<'_> {
    fn asked(&mut self, frame: &Frame) -> Passage {
        let passage = match frame.tag() {
            b'P' => {
                self.statements.extend(wire::parse(frame.body()));
                Passage::Open
            }
            b'B' => match wire::bound(frame.body()).and_then(|name| self.statements.get(&name)) {
                Some(prepared) => {
                    let parameters = wire::bound_parameters(frame.body(), prepared).unwrap_or_default();
                    let sql = prepared.sql.clone();
                    self.statement(&sql, &parameters)
                }
                None => Passage::Open,
            },
            b'Q' => {
                let (sql, _) = wire::text(frame.body()).unwrap_or_default();
                self.statement(&sql, &[])
            }
            _ => Passage::Open,
        };
        if matches!(frame.tag(), b'Q' | b'S') {
            self.pending += 1;
        }
        passage
    }

    fn statement(&mut self, sql: &str, parameters: &[String]) -> Passage {
        let settled = State::Settling(self.pending + 1);
        if let Some(action) = &mut self.action {
            let word = sql.trim().to_ascii_lowercase();
            if action.state == State::Open && (word.starts_with("commit") || word.starts_with("rollback")) {
                action.failed |= word.starts_with("rollback");
                action.state = settled;
            }
            return Passage::Open;
        }
        let Some(step) = statement::step(sql, parameters) else { return Passage::Open };
        let ticket = self.recorder.ask(self.shard, &step);
        if ticket.fault == Some(Fault::Before) {
            self.recorder.doom();
            return Passage::Doomed;
        }
        let state = if self.in_transaction { State::Open } else { settled };
        self.action = Some(Action { ticket, state, failed: false, held: Vec::new() });
        Passage::Open
    }

    /// What the client is told now, and what becomes of the session then.
    fn answered(&mut self, frame: Frame) -> (Passage, Vec<Frame>) {
        let ready = (frame.tag() == b'Z').then(|| frame.body().first().copied());
        if let Some(state) = ready {
            self.pending = self.pending.saturating_sub(1);
            self.in_transaction = state != Some(b'I');
        }
        let Some(action) = &mut self.action else { return (Passage::Open, vec![frame]) };
        action.failed |= frame.tag() == b'E' || frame.tag() == b'C' && frame.body().starts_with(b"ROLLBACK");
        let State::Settling(left) = action.state else { return (Passage::Open, vec![frame]) };
        action.held.push(frame);
        let left = left - usize::from(ready.is_some());
        action.state = State::Settling(left);
        if left > 0 {
            let silent = matches!(action.ticket.fault, Some(Fault::Lost | Fault::Cut));
            return (Passage::Open, if silent { Vec::new() } else { std::mem::take(&mut action.held) });
        }
        let Some(action) = self.action.take() else { return (Passage::Open, Vec::new()) };
        if action.failed {
            self.recorder.refused(&action.ticket);
            return (Passage::Open, action.held);
        }
        self.recorder.committed(&action.ticket);
        match action.ticket.fault {
            None | Some(Fault::Before) => (Passage::Open, action.held),
            Some(Fault::After) => (Passage::Doomed, action.held),
            Some(Fault::Lost) => (Passage::Doomed, Vec::new()),
            Some(Fault::Cut) => (Passage::Cut, Vec::new()),
        }
    }
}
