//! One step of a set: look at all shards, decide, act once.

use longshore_sharding::{
    ShardName,
    operation::{Decision, Pace, Plan, Reason},
};

use super::{
    Error, Outcome, SetState, credentials,
    decide::{self, Goal},
    execute,
    fault::{UNOWNED, UNREACHABLE},
    observe::{self, World},
    open::OpenSet,
    quarantine::{self, Lost, Verdict},
    refused,
    wanted::Wanted,
};
use crate::shard::StoreError;

/// I/O: looks, decides, acts once.
pub(super) async fn step(wanted: &Wanted, state: &mut SetState) -> Result<(World, Outcome), Error> {
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
    state.close().await;
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
        let deed = "every shard was compared with its peers: opening the set".into();
        return Ok(open_anew(world, state, deed).await);
    }
    if world.unreachable.is_empty() && world.is_reshaped() {
        return Ok(open_anew(world, state, "the tables were altered: registering them anew".into()).await);
    }
    if let Some(deed) = credentials::resubscribe(open, &world, &mut state.patience).await? {
        return Ok((world, Outcome::Acted(deed)));
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
    let observed = observe::observed(&plan, &world, wanted, wanted.limits());
    match longshore_sharding::operation::next(&plan, &observed) {
        Decision::Done => Ok((world, Outcome::Acted("done".into()))),
        Decision::Wait(Reason::ShardUnreachable { shard }) => {
            let why = world.unreachable.get(&shard).cloned().unwrap_or_default();
            let message = format!("shard {shard}: {why}");
            let reason = world.reason(&shard);
            Ok((world, Outcome::Blocked { reason, message }))
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
pub(super) fn failing(shard: &str, error: &StoreError) -> Outcome {
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
    Outcome::Blocked { reason: error.distrust().unwrap_or("ActionFailed"), message }
}
