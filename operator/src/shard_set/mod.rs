//! One OrderShardSet: from what is asked and what is there to the next action and the status.
//!
//! `reconcile` is the table of contents. One action per reconcile, so that every moment at which the operator can
//! die is one between two actions or inside one.

mod credentials;
mod decide;
mod events;
mod execute;
mod fault;
mod history;
mod inputs;
mod names;
mod observe;
mod open;
mod quarantine;
mod release;
mod schema;
mod status;
mod step;
mod wanted;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Client, runtime::events::Recorder};
use longshore_crds::{OrderShardSet, order_shard_set::OrderShardSetStatus};
use longshore_sharding::{
    ShardName,
    operation::{Pace, Plan, Reason},
};
use tokio::sync::Mutex;

use self::{fault::OpenError, inputs::Inputs, observe::World, open::OpenSet, wanted::Wanted};
use crate::{shard::StoreError, status::Written, telemetry};

pub use fault::Fault;
pub use release::release;
pub use wanted::WantedError;

/// How often Secrets and the ConfigMap are read again.
const INPUTS_MAX_AGE: Duration = Duration::from_secs(5);
/// How often the shards of a converged set are observed.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// How often they are asked for a sign of life: a shard that failed over takes no writes until it has been compared.
const CALM_INTERVAL: Duration = Duration::from_secs(1);

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
        /// The shard's refusal; none if what it says was enough.
        #[source]
        source: Option<StoreError>,
    },
    #[error("the plan names shard {shard}, which the set does not have")]
    UnknownShard { shard: String },
}

/// A shard's refusal, told apart by whether another process leads.
fn refused(shard: String, source: StoreError) -> Error {
    if source.is_stale_term() {
        Error::StaleTerm { shard, source: Some(source) }
    } else {
        Error::Shard { shard, source }
    }
}

/// What every reconcile needs: handles only.
pub struct Context {
    pub client: Client,
    pub recorder: Recorder,
    /// This process among all operators there ever were.
    pub holder: String,
    /// How long a deleted set whose shards cannot be reached holds its finalizer.
    pub release_patience: Duration,
    sets: Mutex<HashMap<String, Arc<Mutex<SetState>>>>,
}

impl Context {
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, holder: String, release_patience: Duration) -> Self {
        Self { client, recorder, holder, release_patience, sets: Mutex::default() }
    }

    /// What is remembered of a set: to save work, and not to lead again once another process does.
    async fn state(&self, uid: &str) -> Arc<Mutex<SetState>> {
        Arc::clone(self.sets.lock().await.entry(uid.to_owned()).or_default())
    }

    async fn forget(&self, uid: &str) {
        self.sets.lock().await.remove(uid);
    }
}

#[derive(Default)]
struct SetState {
    /// The highest term of any shard when this process first saw the set. Whoever claimed a later one, if not this process,
    /// leads in its place.
    found_term: Option<i64>,
    open: Option<(OpenSet, Inputs, Instant)>,
    /// The operation under way when last looked: what to ask the shards about first.
    hint: Option<Plan>,
    /// The operation that the status announced.
    announced: Option<Plan>,
    /// As learnt from the batches of this process.
    pace: Option<Pace>,
    written: Written<OrderShardSetStatus>,
    /// A shard and its Secret seem to differ: it is read again at once.
    doubtful: bool,
    patience: credentials::Patience,
    /// When this generation of the spec was last found converged.
    converged: Option<(i64, Instant)>,
    /// Where each shard was seen last, and how far its WAL went.
    seen: BTreeMap<ShardName, (String, String)>,
}

impl SetState {
    /// I/O: ends what is open: the next reconcile opens it anew, under a new term.
    async fn close(&mut self) {
        if let Some((open, ..)) = self.open.take() {
            open.close().await;
        }
    }

    /// I/O: whether the set was converged a moment ago and no server has been changed or has gone away since.
    async fn is_calm(&self, generation: i64) -> bool {
        let Some((open, ..)) = &self.open else { return false };
        let recent = |(of, at): (i64, Instant)| of == generation && at.elapsed() < LOOK_INTERVAL;
        self.converged.is_some_and(recent) && open.is_calm().await
    }
}

/// Where a reconcile ended.
#[derive(Debug)]
enum Outcome {
    /// Something has to be mended by a person.
    Faulty(Vec<Fault>),
    /// What is owned is what is asked.
    Converged,
    /// This will be done next, unless the set is paused.
    Planned {
        plan: Plan,
    },
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
        Ok(()) if state.is_calm(wanted.generation).await => return Ok(CALM_INTERVAL),
        Ok(()) => match step::step(&wanted, &mut state).await {
            // Said in the status before it is tried again: what fails for long needs a person.
            Err(Error::Shard { shard, source }) => {
                if source.is_unanswered() {
                    state.close().await;
                }
                (World::default(), step::failing(&shard, &source))
            }
            stepped => stepped?,
        },
        Err(OpenError::Faults(faults)) => (World::default(), Outcome::Faulty(faults)),
        Err(OpenError::Store { shard, source }) => return Err(refused(shard, source)),
        Err(OpenError::Superseded { shard }) => return Err(Error::StaleTerm { shard, source: None }),
    };

    state.converged = matches!(outcome, Outcome::Converged).then(|| (wanted.generation, Instant::now()));
    state.doubtful = credentials::are_doubtful(&world, &outcome);
    let status = status::compute(set, &wanted, &world, &outcome);
    telemetry::show_set(set, &status);
    let written = state.written.write(&ctx.client, set, &status, status::outline).await;
    written
        .map_err(|source| Error::Kubernetes { operation: "write the status", source: Box::new(source) })?;
    events::publish(ctx, set, &status).await;
    Ok(pause_after(&outcome, wanted.paused))
}

/// I/O: opens the set, or opens it again when what it stands on has changed.
async fn ensure_open(wanted: &Wanted, ctx: &Context, state: &mut SetState) -> Result<(), OpenError> {
    let fresh = |(open, _, checked): &(OpenSet, Inputs, Instant)| {
        open.generation == wanted.generation && checked.elapsed() < INPUTS_MAX_AGE
    };
    if !state.doubtful && state.open.as_ref().is_some_and(fresh) {
        return Ok(());
    }
    let inputs = Inputs::read(&ctx.client, wanted).await?;
    if let Some((open, known, checked)) = &mut state.open
        && open.generation == wanted.generation
        && credentials::take(&ctx.client, wanted, open, (known, &inputs)).await
        && !open.has_returned().await
    {
        *known = inputs;
        *checked = Instant::now();
        return Ok(());
    }
    state.close().await;
    let open = open::open(&ctx.client, wanted, &inputs, (&ctx.holder, &mut state.found_term)).await?;
    state.converged = None;
    state.open = Some((open, inputs, Instant::now()));
    Ok(())
}

fn pause_after(outcome: &Outcome, paused: bool) -> Duration {
    let millis = match outcome {
        Outcome::Planned { .. } if paused => 5_000,
        Outcome::Acted(_) | Outcome::Planned { .. } => 0,
        Outcome::Waiting(Reason::Arriving { .. } | Reason::Lagging { .. }) => 10,
        Outcome::Waiting(Reason::Copying { .. } | Reason::RoutersBehind { .. }) => 200,
        Outcome::Waiting(_) | Outcome::Blocked { .. } => 1_000,
        Outcome::Faulty(_) => 3_000,
        Outcome::Converged => return CALM_INTERVAL,
    };
    Duration::from_millis(millis)
}
