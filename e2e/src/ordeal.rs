//! A shop on trial to which things happen at moments of its operations: servers are killed, the leader is frozen.

use std::{
    fmt, fs,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;

use crate::{
    awaiting::{self, await_condition},
    keeper::Keeper,
    proxy::{ApiProxy, Recorded, Recorder},
    shop::{Shop, order_shard_set::SetStatus},
    trial::Trial,
};

/// How long a killed server stays down.
const DOWN: Duration = Duration::from_secs(2);
const LEAD_DEADLINE: Duration = Duration::from_secs(60);
const END_DEADLINE: Duration = Duration::from_secs(60);

/// A moment of an operation, as the proxies see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The first subscription was made: rows are being copied.
    Copying,
    /// A table is just copied: its stream's own slot is gone from the source.
    TableCopied,
    /// A hand_over is under way, and it is not the first.
    HandingOver,
    /// The first hand_over was committed this instant.
    HandedOver,
    /// The operator asked for so many actions, whatever they are.
    Actions(usize),
}

impl Moment {
    /// Whether it has come. [`Self::TableCopied`] comes some time after the proxies have seen all that they see of it.
    fn has_come(self, actions: &[Recorded]) -> bool {
        let is = |action: &Recorded, kind: &str| action.kind == kind;
        let committed = |action: &Recorded, kind: &str| is(action, kind) && action.committed == Some(true);
        match self {
            Self::Copying | Self::TableCopied => {
                let copying = |action: &Recorded| action.signature.ends_with("true");
                actions.iter().any(|action| committed(action, "subscribe") && copying(action))
            }
            Self::HandingOver => {
                actions.iter().any(|action| committed(action, "hand_over"))
                    && actions.last().is_some_and(|last| is(last, "hand_over") && last.committed.is_none())
            }
            Self::HandedOver => actions.iter().any(|action| committed(action, "hand_over")),
            Self::Actions(count) => actions.iter().filter(|action| !is(action, "lease")).count() >= count,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copying => f.write_str("rows are copied"),
            Self::TableCopied => f.write_str("a table was copied"),
            Self::HandingOver => f.write_str("a hand_over is under way"),
            Self::HandedOver => f.write_str("a hand_over was committed"),
            Self::Actions(count) => write!(f, "{count} actions were asked for"),
        }
    }
}

/// An ordeal under way.
pub struct Ordeal {
    /// What it happens to.
    pub shop: Shop,
    /// Its load and its judge.
    pub trial: Trial,
    /// Sees the moments come.
    pub recorder: Arc<Recorder>,
    /// Keeps the operator running.
    pub keeper: Keeper,
    /// How often a leader was frozen, and another took over.
    frozen: u32,
}

impl Ordeal {
    /// Begins; `what` is the work whose progress is shown.
    pub fn new(shop: Shop, trial: Trial, recorder: Arc<Recorder>, what: &str) -> Self {
        Self { shop, trial, recorder, keeper: Keeper::new(what), frozen: 0 }
    }

    /// Returns when the moment has come.
    pub async fn moment(&self, moment: Moment) {
        self.recorder.until(|actions| moment.has_come(actions)).await;
    }

    /// Whether the moment came before the set was converged.
    pub async fn moment_or_converged(&mut self, moment: Moment) -> Result<bool> {
        let Self { shop, trial, recorder, keeper, .. } = self;
        let came = tokio::select! {
            biased;
            () = recorder.until(|actions| moment.has_come(actions)) => true,
            converged = keeper.until(shop, recorder, trial.load(), SetStatus::is_converged) => {
                converged?;
                false
            }
        };
        self.say(&if came { format!("{moment}: now") } else { format!("converged before {moment}") });
        Ok(came)
    }

    /// Keeps the operator running until the status is so.
    pub async fn until(&mut self, done: impl FnMut(&SetStatus) -> bool) -> Result<SetStatus> {
        self.keeper.until(&mut self.shop, &self.recorder, self.trial.load(), done).await
    }

    /// Lets everything go on for a while.
    pub async fn hold(&mut self, time: Duration) -> Result<()> {
        let started = tokio::time::Instant::now();
        self.until(|_| started.elapsed() >= time).await.map(drop)
    }

    /// Tells the time and what happens.
    pub fn say(&self, what: &str) {
        eprintln!("{:>6.1} s  {what}", self.keeper.elapsed().as_secs_f32());
    }

    /// kill -9 of the operator; another one starts at once.
    pub async fn kill_operator(&mut self) -> Result<()> {
        self.say("kill -9 of the operator");
        self.keeper.kill(&mut self.shop, &self.recorder).await
    }

    /// kill -9 of these shards' servers; they come back after a while.
    pub async fn kill_servers(&mut self, victims: &[String]) -> Result<()> {
        try_join_all(victims.iter().map(async |name| self.shop.server(name)?.kill9().await)).await?;
        self.say(&format!("kill -9 of the servers of {}", victims.join(", ")));
        self.hold(DOWN).await?;
        try_join_all(victims.iter().map(async |name| self.shop.server(name)?.start_again().await)).await?;
        Ok(())
    }

    /// SIGSTOP of the leader past its Lease, until another has claimed all of these shards; then SIGCONT. Says what was not
    /// as it should be.
    pub async fn freeze_leader(&mut self, shards: &[String]) -> Result<Vec<String>> {
        // One that was just started does not lead yet.
        let leads = tokio::time::timeout(LEAD_DEADLINE, self.recorder.until_led());
        leads.await.context("nobody leads")?;
        self.frozen += 1;
        let name = format!("{}-after-{}", self.shop.namespace(), self.frozen);
        let first = self.shop.replace_operator(None).context("an operator runs")?;
        let logged = fs::metadata(first.log())?.len();
        first.pause()?;
        let frozen_at = self.recorder.count();
        self.say("the leader is frozen");
        let client = self.shop.client().clone();
        let proxy = ApiProxy::start(&name, client, Arc::clone(&self.recorder)).await?;
        let second = self.shop.spawn_operator(&format!("operator-{name}"), proxy.kubeconfig())?;
        self.shop.replace_operator(Some(second));
        // Only the shards can tell the first one that it leads no more: its Lease must not get ahead of them.
        let first_proxy = self.shop.replace_api_proxy(proxy).context("a recorded shop has an API proxy")?;
        first_proxy.hold_leases();
        let claimed = self.recorder.until(|actions| {
            let since = actions.get(frozen_at..).unwrap_or_default();
            let claims =
                || since.iter().filter(|action| action.kind == "claim" && action.committed == Some(true));
            let of = |shard: &str| claims().any(|claim| claim.signature.split(' ').next() == Some(shard));
            shards.iter().all(|shard| of(shard))
        });
        tokio::time::timeout(LEAD_DEADLINE, claimed).await.context("no second operator took over")?;
        self.say("a second operator leads; the first wakes up");
        first.resume()?;
        let what = awaiting::What::new("the first operator to end by itself").log(first.log());
        let ended = await_condition(what, END_DEADLINE, async || first.ended().transpose()).await??;
        let mut wrong = Vec::new();
        if ended.success() {
            wrong.push("the first operator ended as if it had been asked to".to_owned());
        }
        let refused = text_from(first.log(), logged)?.contains("another operator process leads shard");
        eprintln!("the first operator ended with {ended}; refused by a shard: {refused}");
        if !refused {
            wrong.push(format!("no shard refused the first operator{}", awaiting::describe_log(first.log())));
        }
        Ok(wrong)
    }
}

fn text_from(log: &Path, start: u64) -> Result<String> {
    let mut file = fs::File::open(log)?;
    file.seek(SeekFrom::Start(start))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}
