//! Keeps a shop's operator running, as a Deployment would, and kills it whenever the recorder says so.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use checker::Load;

use crate::{
    awaiting::describe_log,
    progress::Progress,
    proxy::Recorder,
    shop::{Shop, order_shard_set::SetStatus},
};

/// How often the set's status is read.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// An operator that does nothing new for so long is stuck.
const STALL: Duration = Duration::from_secs(180);

/// What was done to the operator so far.
#[derive(Debug)]
pub struct Keeper {
    /// By kill -9, at an action.
    pub kills: u64,
    /// It ended by itself, as when it lost the lead.
    pub ended_by_itself: u64,
    started: Instant,
    progress: Progress,
    seen: (Mark, Instant),
    phase: String,
}

/// What changes while an operation gets on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Mark {
    distinct: usize,
    hand_overs: u64,
    said: String,
}

impl Keeper {
    /// Begins to count; `what` is the work whose progress is shown.
    pub fn new(what: &str) -> Self {
        let now = Instant::now();
        Self {
            kills: 0,
            ended_by_itself: 0,
            started: now,
            progress: Progress::of_words(what),
            seen: (Mark::default(), now),
            phase: String::new(),
        }
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Keeps the operator running until `done` says so of the set's status; fails if nothing gets on.
    pub async fn until(
        &mut self,
        shop: &mut Shop,
        recorder: &Recorder,
        load: &Load,
        mut done: impl FnMut(&SetStatus) -> bool,
    ) -> Result<SetStatus> {
        loop {
            tokio::select! {
                () = recorder.until_doomed() => self.kill(shop, recorder).await?,
                () = tokio::time::sleep(LOOK_PAUSE) => {}
            }
            self.revive(shop, recorder)?;
            if load.has_ended() {
                bail!("the load ended by itself");
            }
            let status = shop.set().status().await?;
            if !recorder.is_doomed() && done(&status) {
                return Ok(status);
            }
            self.look(shop, recorder, load, &status)?;
        }
    }

    /// kill -9 of the operator; another one starts at once.
    pub async fn kill(&mut self, shop: &mut Shop, recorder: &Recorder) -> Result<()> {
        if shop.operator().is_some() {
            shop.kill_operator().await?;
        }
        self.kills += 1;
        tracing::info!(action = recorder.hit_signatures().last(), "killed");
        recorder.buried();
        shop.start_operator()
    }

    fn revive(&mut self, shop: &mut Shop, recorder: &Recorder) -> Result<()> {
        let Some(operator) = shop.operator() else { return shop.start_operator() };
        if operator.ended()?.is_some() {
            self.ended_by_itself += 1;
            recorder.buried();
            shop.start_operator()?;
        }
        Ok(())
    }

    fn look(&mut self, shop: &Shop, recorder: &Recorder, load: &Load, status: &SetStatus) -> Result<()> {
        let operation = status.operation();
        let (phase, buckets) = operation.as_ref().map_or_else(
            || ("no operation".to_owned(), String::new()),
            |operation| {
                (operation.phase.clone(), format!(" {}/{} buckets", operation.moved, operation.total))
            },
        );
        let mark = Mark {
            distinct: recorder.distinct(),
            hand_overs: *recorder.hand_overs().borrow(),
            said: format!("{phase}{buckets}"),
        };
        if mark != self.seen.0 {
            self.seen = (mark, Instant::now());
        } else if self.seen.1.elapsed() > STALL {
            let log = shop.operator().map_or_else(String::new, |operator| describe_log(operator.log()));
            bail!("nothing new for {} s; {}{log}", STALL.as_secs(), status.describe());
        }
        let words = format!(
            "{phase}{buckets}; {} kills, {} actions, {} hand_overs, {} requests failed, {} s",
            self.kills,
            recorder.count(),
            recorder.hand_overs().borrow().to_owned(),
            load.snapshot().all.failed,
            self.elapsed().as_secs()
        );
        if phase == self.phase {
            self.progress.say(&words);
        } else {
            eprintln!("{:>6.1} s  {words}", self.elapsed().as_secs_f32());
            self.phase = phase;
        }
        Ok(())
    }
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills in {:.0} s; the operator ended by itself {} times",
            self.kills,
            self.elapsed().as_secs_f32(),
            self.ended_by_itself
        )
    }
}
