//! One OrderShardSet: from what is asked and what is there to the next action and the status.
//!
//! `reconcile` is the table of contents. One action per reconcile, so that every moment at which the operator can
//! die is one between two actions or inside one.

mod decide;
mod events;
mod execute;
mod fault;
mod inputs;
mod names;
mod observe;
mod open;
mod release;
mod status;
mod wanted;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Client, runtime::events::Recorder};
use longshore_crds::{OrderShardSet, order_shard_set::OrderShardSetStatus};
use longshore_sharding::operation::{Decision, Pace, Plan, Reason};
use tokio::sync::Mutex;

use self::{decide::Goal, fault::OpenError, inputs::Inputs, observe::World, open::OpenSet, wanted::Wanted};
use crate::shard::StoreError;

pub use fault::Fault;
pub use release::release;
pub use wanted::WantedError;

/// How often Secrets and the ConfigMap are read again.
const INPUTS_MAX_AGE: Duration = Duration::from_secs(5);

/// Why a reconcile failed; the next one comes with backoff.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the spec is not valid")]
    Wanted(#[from] WantedError),
    #[error("failed to {operation} of the OrderShardSet")]
    Kubernetes {
        operation: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("shard {shard} refused an action")]
    Shard {
        shard: String,
        #[source]
        source: StoreError,
    },
    #[error("another operator process leads shard {shard}")]
    StaleTerm {
        shard: String,
        #[source]
        source: StoreError,
    },
    #[error("the plan names shard {shard}, which the set does not have")]
    UnknownShard { shard: String },
}

/// A shard's refusal, told apart by whether another process leads.
fn refused(shard: String, source: StoreError) -> Error {
    if source.is_stale_term() { Error::StaleTerm { shard, source } } else { Error::Shard { shard, source } }
}

impl Error {
    /// Another process leads: this one must end.
    #[must_use]
    pub fn is_stale_term(&self) -> bool {
        matches!(self, Self::StaleTerm { .. })
    }
}

/// What every reconcile needs: handles only.
pub struct Context {
    pub client: Client,
    pub recorder: Recorder,
    /// This process among all operators there ever were.
    pub holder: String,
    sets: Mutex<HashMap<String, Arc<Mutex<SetState>>>>,
}

impl Context {
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, holder: String) -> Self {
        Self { client, recorder, holder, sets: Mutex::default() }
    }

    /// What is remembered of a set; only to save work, never to decide.
    async fn state(&self, uid: &str) -> Arc<Mutex<SetState>> {
        Arc::clone(self.sets.lock().await.entry(uid.to_owned()).or_default())
    }

    async fn forget(&self, uid: &str) {
        self.sets.lock().await.remove(uid);
    }
}

#[derive(Default)]
struct SetState {
    open: Option<(OpenSet, Inputs, Instant)>,
    /// The operation under way when last looked: what to ask the shards about first.
    hint: Option<Plan>,
    pace: Pace,
    written: Option<(OrderShardSetStatus, Instant)>,
}

/// Where a reconcile ended.
#[derive(Debug)]
enum Outcome {
    /// Something has to be mended by a person.
    Faulty(Vec<Fault>),
    /// What is owned is what is asked.
    Converged,
    /// Acted, and will again.
    Acted(String),
    Waiting(Reason),
    Blocked {
        reason: &'static str,
        message: String,
    },
}

/// Does the next thing for one set. Returns when to come back.
///
/// # Errors
/// When a shard or the API server fails; nothing is lost, the next reconcile looks again.
pub async fn reconcile(set: &OrderShardSet, ctx: &Context) -> Result<Duration, Error> {
    let wanted = Wanted::of(set)?;
    let state = ctx.state(&wanted.uid).await;
    let mut state = state.lock().await;

    let (world, outcome) = match ensure_open(&wanted, ctx, &mut state).await {
        Ok(()) => match step(&wanted, &mut state).await {
            // Said in the status before it is tried again: what fails for long needs a person.
            Err(Error::Shard { shard, source }) => (World::default(), failing(&shard, &source)),
            stepped => stepped?,
        },
        Err(OpenError::Faults(faults)) => (World::default(), Outcome::Faulty(faults)),
        Err(OpenError::Store { shard, source }) => return Err(refused(shard, source)),
    };

    let status = status::compute(set, &wanted, &world, &outcome);
    status::write(ctx, set, &status, &mut state.written).await?;
    events::publish(ctx, set, &status).await;
    Ok(pause_after(&outcome))
}

/// I/O: opens the set, or opens it again when what it stands on has changed.
async fn ensure_open(wanted: &Wanted, ctx: &Context, state: &mut SetState) -> Result<(), OpenError> {
    let fresh = |(open, _, checked): &(OpenSet, Inputs, Instant)| {
        open.generation == wanted.generation && checked.elapsed() < INPUTS_MAX_AGE
    };
    if state.open.as_ref().is_some_and(fresh) {
        return Ok(());
    }
    let inputs = Inputs::read(&ctx.client, wanted).await?;
    if let Some((open, known, checked)) = &mut state.open
        && open.generation == wanted.generation
        && *known == inputs
    {
        *checked = Instant::now();
        return Ok(());
    }
    if let Some((open, ..)) = state.open.take() {
        open.close().await;
    }
    let open = open::open(&ctx.client, wanted, &inputs, &ctx.holder).await?;
    state.open = Some((open, inputs, Instant::now()));
    Ok(())
}

/// I/O: looks, decides, acts once.
async fn step(wanted: &Wanted, state: &mut SetState) -> Result<(World, Outcome), Error> {
    let Some((open, ..)) = &mut state.open else {
        return Ok((World::default(), Outcome::Faulty(Vec::new())));
    };
    let mut world = observe::look(open, state.hint.as_ref()).await;
    let (plan, generation) = match decide::goal(wanted, &world) {
        Goal::Operate { plan, generation } => (plan, generation),
        Goal::Converged => {
            state.hint = None;
            let version = world.views.values().map(|view| view.shards_version).max().unwrap_or(0);
            let forgotten = open.forget_drained(wanted, version).await;
            let forgotten = forgotten.map_err(|(shard, source)| refused(shard, source))?;
            let drained = forgotten.map(|shard| Outcome::Acted(format!("{shard} is drained and forgotten")));
            return Ok((world, drained.unwrap_or(Outcome::Converged)));
        }
        Goal::Blocked { reason, message } => {
            state.hint = None;
            let blocked = Outcome::Blocked { reason, message };
            return world.stale_term().map_or_else(|| Ok((world, blocked)), Err);
        }
    };
    if state.hint.as_ref() != Some(&plan) {
        // The shards were not asked about this operation yet.
        world = observe::look(open, Some(&plan)).await;
        state.hint = Some(plan.clone());
    }
    let observed = observe::observed(&plan, &world, &open.names, wanted.paused, state.pace.batch());
    match longshore_sharding::operation::next(&plan, &observed) {
        Decision::Done => Ok((world, Outcome::Acted("done".into()))),
        Decision::Wait(reason) => Ok((world, Outcome::Waiting(reason))),
        Decision::Act(action) => {
            let deed = execute::execute(&action, &plan, generation, open, &mut state.pace).await?;
            Ok((world, Outcome::Acted(deed)))
        }
    }
}

/// A shard's refusal in words, and what may be done about it.
fn failing(shard: &str, error: &StoreError) -> Outcome {
    let message = format!("shard {shard}: {}", error.chain());
    tracing::warn!(shard.id = shard, error = error.chain(), "an action failed, it will be tried again");
    if error.waits_for_transactions() {
        let cure = "a transaction open for long holds it up: SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start; \
                    end it, or wait for it";
        return Outcome::Blocked {
            reason: "LongTransactionBlocksSlot",
            message: format!("{message}; {cure}"),
        };
    }
    Outcome::Blocked { reason: "ActionFailed", message }
}

fn pause_after(outcome: &Outcome) -> Duration {
    let millis = match outcome {
        Outcome::Acted(_) => 0,
        Outcome::Waiting(Reason::Arriving { .. } | Reason::Lagging { .. }) => 10,
        Outcome::Waiting(Reason::Copying { .. } | Reason::RoutersBehind { .. }) => 200,
        Outcome::Waiting(_) | Outcome::Blocked { .. } => 1_000,
        Outcome::Faulty(_) => 3_000,
        Outcome::Converged => 30_000,
    };
    Duration::from_millis(millis)
}
