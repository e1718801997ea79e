//! The edit of `spec.shards`, watched until the set is converged again, with something harmed on the way.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use checker::Load;

use super::{Harm, Stage};
use crate::{
    awaiting::{What, await_condition},
    progress::Progress,
    shop::order_shard_set::{OperationProgress, SetStatus},
};

const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// How the move went.
#[derive(Debug)]
pub(super) struct Reshard {
    /// From the edit until the set was converged.
    pub(super) took: Duration,
    /// How often something was harmed.
    pub(super) harms: u32,
    /// Each phase in the order of its first appearance, with when that was.
    phases: Vec<(String, Duration)>,
    /// Requests answered before the edit.
    answered_before: u64,
}

/// The moments of harm, in this order.
const MOMENTS: [&str; 2] = ["Copying", "HandingOver"];

impl Reshard {
    pub(super) async fn run(
        stage: &mut impl Stage,
        load: &Load,
        shards: &[String],
        harm: Option<Harm>,
    ) -> Result<Self> {
        let progress = Progress::of_words(format!("moving to shards {}", shards.join(", ")));
        let started = Instant::now();
        stage.set().set_shards(shards).await?;
        let answered_before = load.snapshot().all.acknowledged;
        let mut watched = Self { took: Duration::ZERO, harms: 0, phases: Vec::new(), answered_before };
        let what = stage.operator_log().map(|log| What::new("the rows to have moved").log(&log));
        let done = async || {
            let step = watched.watch(stage, load, started, harm, &progress).await;
            step.transpose()
        };
        await_condition(what.unwrap_or("the rows to have moved".into()), DEADLINE, done).await??;
        watched.took = started.elapsed();
        progress.done();
        if harm.is_some() && watched.harms < 2 {
            bail!("only {} of 2 moments of harm came: the phases passed too fast", watched.harms);
        }
        Ok(watched)
    }

    /// The time from the start of the preparations until the first handover. The preparations count, since a
    /// status may show the copying only when it is nearly over: the pace of the copy is rather understated.
    pub(super) fn copying(&self) -> Duration {
        let first = |phases: &[&str]| {
            let seen = self.phases.iter().find(|(name, _)| phases.contains(&name.as_str()));
            seen.map(|(_, since)| *since)
        };
        match (first(&["Preparing", "Copying", "CatchingUp"]), first(&["HandingOver"])) {
            (Some(from), Some(to)) => to.saturating_sub(from),
            (None, _) | (_, None) => Duration::ZERO,
        }
    }

    /// One look; an answer once it is over.
    async fn watch(
        &mut self,
        stage: &mut impl Stage,
        load: &Load,
        started: Instant,
        harm: Option<Harm>,
        progress: &Progress,
    ) -> Result<Option<()>> {
        if load.has_ended() {
            bail!("the load ended by itself while rows moved");
        }
        stage.expect_operator()?;
        let status = stage.set().status().await?;
        let Some(operation) = status.operation() else {
            return self.without_operation(&status);
        };
        self.see(&operation, started.elapsed());
        if let Some(harm) = harm.filter(|_| self.is_moment(&operation)) {
            stage.harm(harm).await?;
            self.harms += 1;
            eprintln!("{harm:?} in phase {}", operation.phase);
        }
        progress.say(&self.line(&operation, load, started.elapsed()));
        Ok(None)
    }

    fn without_operation(&self, status: &SetStatus) -> Result<Option<()>> {
        if status.last_phase() == Some("RolledBack") && !self.phases.is_empty() {
            bail!("the operation was rolled back: {}", status.describe());
        }
        Ok(status.is_converged().then_some(()))
    }

    fn see(&mut self, operation: &OperationProgress, now: Duration) {
        if !self.phases.iter().any(|(phase, _)| *phase == operation.phase) {
            self.phases.push((operation.phase.clone(), now));
            eprintln!("{:>6.1} s  {}: {}", now.as_secs_f32(), operation.phase, operation.message);
        }
    }

    fn is_moment(&self, operation: &OperationProgress) -> bool {
        let next = usize::try_from(self.harms).ok().and_then(|harms| MOMENTS.get(harms));
        let under_way = operation.phase != "HandingOver" || operation.moved > 0;
        next.is_some_and(|phase| *phase == operation.phase) && under_way
    }

    fn line(&self, operation: &OperationProgress, load: &Load, elapsed: Duration) -> String {
        let snapshot = load.snapshot();
        let eta =
            self.eta(operation, elapsed).map_or_else(String::new, |eta| format!(", ETA {} s", eta.as_secs()));
        let answered = snapshot.all.acknowledged.saturating_sub(self.answered_before);
        let rate = answered as f64 / elapsed.as_secs_f64().max(0.001);
        format!(
            "{} {}/{} buckets; {rate:.0} requests/s, {} failed, p99 {:.0} ms{eta}",
            operation.phase, operation.moved, operation.total, snapshot.all.failed, snapshot.recent.p99_ms
        )
    }

    /// From the pace of the handovers; nobody knows before the first.
    fn eta(&self, operation: &OperationProgress, elapsed: Duration) -> Option<Duration> {
        let (_, since) = self.phases.iter().find(|(phase, _)| phase == "HandingOver")?;
        let left = operation.total.checked_sub(operation.moved)?;
        let pace = elapsed.saturating_sub(*since).as_secs_f64() / operation.moved.max(1) as f64;
        (operation.moved > 0).then(|| Duration::from_secs_f64(pace * left as f64))
    }
}
