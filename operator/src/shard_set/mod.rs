//! One OrderShardSet: from what is asked and what is there to the next action and the status.
//!
//! `reconcile` is the table of contents. One action per reconcile, so that every moment at which the operator can
//! die is one between two actions or inside one.

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
    operation::{Decision, Pace, Plan, Reason},
};
use tokio::sync::Mutex;

use self::{
    decide::Goal,
    fault::{OpenError, UNOWNED, UNREACHABLE},
    inputs::Inputs,
    observe::World,
    open::OpenSet,
    quarantine::{Lost, Verdict},
    wanted::Wanted,
};
use crate::shard::StoreError;

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
    /// How long a deleted set whose shards cannot be reached holds its finalizer.
    pub release_patience: Duration,
    sets: Mutex<HashMap<String, Arc<Mutex<SetState>>>>,
}

impl Context {
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, holder: String, release_patience: Duration) -> Self {
        Self { client, recorder, holder, release_patience, sets: Mutex::default() }
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
    /// The operation that the status announced.
    announced: Option<Plan>,
    /// As learnt from the batches of this process.
    pace: Option<Pace>,
    written: Option<(OrderShardSetStatus, Instant)>,
    /// When this generation of the spec was last found converged.
    converged: Option<(i64, Instant)>,
    /// Where each shard was seen last, and how far its WAL went.
    seen: BTreeMap<ShardName, (String, String)>,
}

impl SetState {
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
        Ok(()) => match step(&wanted, &mut state).await {
            // Said in the status before it is tried again: what fails for long needs a person.
            Err(Error::Shard { shard, source }) => (World::default(), failing(&shard, &source)),
            stepped => stepped?,
        },
        Err(OpenError::Faults(faults)) => (World::default(), Outcome::Faulty(faults)),
        Err(OpenError::Store { shard, source }) => return Err(refused(shard, source)),
    };

    state.converged = matches!(outcome, Outcome::Converged).then(|| (wanted.generation, Instant::now()));
    let status = status::compute(set, &wanted, &world, &outcome);
    status::write(ctx, set, &status, &mut state.written).await?;
    events::publish(ctx, set, &status).await;
    Ok(pause_after(&outcome, wanted.paused))
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
        && !open.has_returned().await
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
    let world = observe::look(open, state.hint.as_ref()).await;
    if let Some(stale) = world.stale_term() {
        return Err(stale);
    }
    if let Some(shard) = &world.restored {
        let deed = format!("shard {shard} was restored: opening the set again");
        return Ok(open_anew(world, state, deed).await);
    }
    let goal = decide::goal(wanted, &world);
    let verdict = quarantine::verdict(wanted, &world);
    if verdict != Verdict::Clear {
        return compare(verdict, goal, world, wanted, state).await;
    }
    let (world, outcome) = advance(goal, world, wanted, state).await?;
    let is_unowned = matches!(&outcome, Outcome::Blocked { reason, .. } if UNOWNED.contains(reason));
    match is_unowned.then(|| Lost::all(&world)).flatten() {
        Some(lost) => compare(lost.settle(wanted, &world), Goal::Converged, world, wanted, state).await,
        None => Ok((world, outcome)),
    }
}

/// What the set stands on has changed: the next reconcile opens it anew.
async fn open_anew(world: World, state: &mut SetState, why: String) -> (World, Outcome) {
    if let Some((open, ..)) = state.open.take() {
        open.close().await;
    }
    (world, Outcome::Acted(why))
}

/// Every shard is where it was when compared with its peers: on with what the set is to do.
async fn advance(
    goal: Goal,
    world: World,
    wanted: &Wanted,
    state: &mut SetState,
) -> Result<(World, Outcome), Error> {
    let Some((open, ..)) = &mut state.open else { return Ok((world, Outcome::Faulty(Vec::new()))) };
    state.seen.extend(world.places());
    if !open.is_prepared && world.unreachable.is_empty() {
        open.close().await;
        state.open = None;
        return Ok((
            world,
            Outcome::Acted("every shard was compared with its peers: opening the set".into()),
        ));
    }
    if world.unreachable.is_empty() && world.is_reshaped() {
        return Ok(open_anew(world, state, "the tables were altered: registering them anew".into()).await);
    }
    if !open.deferred.is_empty() && world.unreachable.is_empty() && goal.is_between_operations(&world) {
        // The set is opened anew, and what waited is applied before anything else begins.
        let deed = format!("migrating: {}", open.deferred.join(", "));
        return Ok(open_anew(world, state, deed).await);
    }
    if !matches!(goal, Goal::Operate { .. }) {
        state.hint = None;
    }
    match goal {
        Goal::Operate { plan, generation } => operate(plan, generation, world, wanted, state).await,
        Goal::Propose { plan } => propose(plan, world, wanted, state).await,
        Goal::Converged => {
            let tidied = tidy(open, wanted, &world).await?;
            Ok((world, tidied.map_or(Outcome::Converged, Outcome::Acted)))
        }
        Goal::Blocked { reason, message } => Ok((world, Outcome::Blocked { reason, message })),
    }
}

/// One step of comparing the shards with each other, some of which run on another server than before.
async fn compare(
    verdict: Verdict,
    goal: Goal,
    world: World,
    wanted: &Wanted,
    state: &mut SetState,
) -> Result<(World, Outcome), Error> {
    let Some((open, ..)) = &state.open else { return Ok((world, Outcome::Faulty(Vec::new()))) };
    let broken = |(shard, source)| refused(shard, source);
    match (verdict, goal) {
        // It waits for the shard that is away, or turns back: its streams do not outlive the quarantine.
        (Verdict::Blocked { reason: UNREACHABLE, .. }, Goal::Operate { plan, generation })
            if plan.shards().iter().any(|shard| world.unreachable.contains_key(*shard)) =>
        {
            operate(plan, generation, world, wanted, state).await
        }
        (Verdict::Rearm { shard, quarantined: true }, Goal::Operate { plan, generation })
            if plan.shards().contains(&&shard) =>
        {
            operate(plan, generation, world, wanted, state).await
        }
        (Verdict::Blocked { reason, message }, _) => Ok((world, Outcome::Blocked { reason, message })),
        (Verdict::Settle(settlement), _) => {
            open.settle(&settlement).await.map_err(broken)?;
            let message = settlement.describe();
            tracing::warn!(shard.id = %settlement.shard(), "{message}");
            Ok((world, Outcome::Blocked { reason: "OwnershipConflict", message }))
        }
        (Verdict::Rearm { shard, quarantined }, _) => rearm(&shard, quarantined, world, state).await,
        (Verdict::Clear, _) => Ok((world, Outcome::Acted("nothing is in doubt any more".into()))),
    }
}

/// Lets a shard work again, and says what is known of how it changed.
async fn rearm(
    shard: &ShardName,
    quarantined: bool,
    world: World,
    state: &SetState,
) -> Result<(World, Outcome), Error> {
    let Some((open, ..)) = &state.open else { return Ok((world, Outcome::Faulty(Vec::new()))) };
    open.rearm(shard).await.map_err(|(shard, source)| refused(shard, source))?;
    if !quarantined {
        return Ok((world, Outcome::Acted(format!("{shard} was started again, and agrees with its peers"))));
    }
    let now = world
        .views
        .get(shard)
        .map(|view| (view.armed.runs_on.clone(), view.armed.lsn.clone()))
        .unwrap_or_default();
    let before = state.seen.get(shard).map_or_else(String::new, |(server, lsn)| {
        format!(
            "; it was last seen on {server} at {lsn}. What was committed there and had not reached the server that it runs on now is lost"
        )
    });
    let message =
        format!("shard {shard} works again: it runs on server {} at WAL position {}{before}", now.0, now.1);
    tracing::warn!(shard.id = %shard, "{message}");
    Ok((world, Outcome::Blocked { reason: "ServerChanged", message }))
}

/// The next action of an operation.
async fn operate(
    plan: Plan,
    generation: i64,
    mut world: World,
    wanted: &Wanted,
    state: &mut SetState,
) -> Result<(World, Outcome), Error> {
    let Some((open, ..)) = &state.open else { return Ok((world, Outcome::Faulty(Vec::new()))) };
    if state.hint.as_ref() != Some(&plan) {
        // The shards were not asked about this operation yet.
        world = observe::look(open, Some(&plan)).await;
        state.hint = Some(plan.clone());
    }
    let pace = state.pace.get_or_insert(Pace::first(wanted.pause));
    let limits = wanted.limits(pace.batch());
    let observed = observe::observed(&plan, &world, wanted, limits);
    match longshore_sharding::operation::next(&plan, &observed) {
        Decision::Done => Ok((world, Outcome::Acted("done".into()))),
        Decision::Wait(Reason::ShardUnreachable { shard }) => {
            let why = world.unreachable.get(&shard).cloned().unwrap_or_default();
            let message = format!("shard {shard}: {why}");
            Ok((world, Outcome::Blocked { reason: UNREACHABLE, message }))
        }
        Decision::Wait(Reason::Quarantined { shard }) => rearm(&shard, true, world, state).await,
        Decision::Wait(reason) if reason.needs_a_person() => {
            let message = reason.to_string();
            Ok((world, Outcome::Blocked { reason: reason.word(), message }))
        }
        Decision::Wait(reason) => Ok((world, Outcome::Waiting(reason))),
        Decision::Act(action) => {
            let work = execute::Work { plan: &plan, generation, set: open, pause: wanted.pause };
            let deed = execute::execute(&action, &work, pace).await?;
            Ok((world, Outcome::Acted(deed)))
        }
    }
}

/// A new operation: first the status says what it will cost, then it begins; not while the set is paused.
async fn propose(
    plan: Plan,
    world: World,
    wanted: &Wanted,
    state: &mut SetState,
) -> Result<(World, Outcome), Error> {
    let Some((open, ..)) = &state.open else { return Ok((world, Outcome::Faulty(Vec::new()))) };
    let announced = state.announced.take().filter(|known| known.id == plan.id && known.kind == plan.kind);
    match announced {
        Some(plan) if !wanted.paused => operate(plan, wanted.generation, world, wanted, state).await,
        Some(plan) => {
            state.announced = Some(plan.clone());
            Ok((world, Outcome::Planned { plan }))
        }
        None => {
            let plan = Plan { cost: Some(execute::estimate(&plan, open).await?), ..plan };
            state.announced = Some(plan.clone());
            Ok((world, Outcome::Planned { plan }))
        }
    }
}

/// What is left to do for a converged set, one thing at a time: what dead operations left, shards that were drained.
async fn tidy(open: &mut OpenSet, wanted: &Wanted, world: &World) -> Result<Option<String>, Error> {
    if let Some(stray) = open.drop_stray(world).await.map_err(|(shard, source)| refused(shard, source))? {
        return Ok(Some(format!("dropped {}, left by an old operation", stray.name)));
    }
    let version = world.views.values().map(|view| view.shards_version).max().unwrap_or(0);
    let drained = open.forget_drained(wanted, version).await;
    let drained = drained.map_err(|(shard, source)| refused(shard, source))?;
    Ok(drained.map(|shard| format!("{shard} is drained and forgotten")))
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
