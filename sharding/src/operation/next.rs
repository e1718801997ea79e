//! The decision: from a plan and what was observed to the one next action.

use super::{
    Action, Course, Decision, Epoch, Kind, Observed, Ownership, Phase, Plan, Progress, Reason, Stream,
    observed::Part,
};
use crate::{BucketId, Map, Ranges, ShardName, planner::Move};

/// Older marks say nothing about the stream as it is now.
const PROBE_MAX_AGE_MS: u64 = 500;

/// What to do next. Deterministic; safe to call after any crash, and to repeat.
#[must_use]
pub fn next(plan: &Plan, observed: &Observed) -> Decision {
    if let Some(shard) = plan.shards().into_iter().find(|shard| !observed.shards.contains_key(*shard)) {
        return Decision::Wait(Reason::ShardUnreachable { shard: shard.clone() });
    }
    let course = course(plan, observed);
    if let Some(shard) = first_without(plan, observed, &course) {
        return Decision::Act(Action::Journal { shard: shard.clone(), course });
    }
    let step = match (&plan.kind, &course) {
        (_, Course::Completed | Course::RolledBack { .. }) => return Decision::Done,
        (Kind::FirstOwnership { map, .. }, _) => first_ownership(map, observed),
        (Kind::Rebalance { moves }, Course::Forward) => forward(plan, moves, observed),
        (Kind::Rebalance { moves }, Course::Back { .. }) => back(plan, moves, observed),
        (Kind::Rebalance { moves }, Course::CleaningUp) => clean_up(moves, observed),
    };
    match step {
        Step::Act(action) => Decision::Act(action),
        Step::Wait(reason) => Decision::Wait(reason),
        Step::Turn(reason) => set_course(plan, Course::Back { reason }),
        Step::Done => set_course(plan, after(plan, course)),
    }
}

/// How far the operation has come, for people.
#[must_use]
pub fn progress(plan: &Plan, observed: &Observed) -> Progress {
    let course = course(plan, observed);
    let (arrived, prepared) = match &plan.kind {
        Kind::FirstOwnership { .. } => (0, false),
        Kind::Rebalance { moves } => (
            moves.iter().map(|m| buckets_where(observed, m, is_arrived)).sum(),
            moves.iter().all(|m| observed.stream(&forward_of(m)).is_whole()),
        ),
    };
    let synchronised = || observed.streams.values().any(|stream| stream.synchronised);
    let phase = match course {
        Course::Completed => Phase::Completed,
        Course::RolledBack { .. } => Phase::RolledBack,
        Course::Back { .. } => Phase::RollingBack,
        Course::CleaningUp => Phase::CleaningUp,
        Course::Forward if arrived > 0 || (prepared && synchronised()) => Phase::HandingOver,
        Course::Forward if prepared => Phase::Copying,
        Course::Forward => Phase::Preparing,
    };
    let buckets_moved = if course == Course::Completed { plan.buckets() } else { arrived };
    Progress { phase, buckets_moved, buckets_total: plan.buckets() }
}

/// What one part of the operation has to say.
enum Step {
    Act(Action),
    Wait(Reason),
    /// The operation must go back.
    Turn(Reason),
    /// Nothing left to do here on this course.
    Done,
}

/// The course that counts: the latest of those journalled.
fn course(plan: &Plan, observed: &Observed) -> Course {
    let journalled =
        plan.shards().into_iter().filter_map(|shard| observed.shards.get(shard)?.journal.clone());
    journalled.max_by_key(Course::rank).unwrap_or(Course::Forward)
}

fn first_without<'a>(plan: &'a Plan, observed: &Observed, course: &Course) -> Option<&'a ShardName> {
    plan.shards().into_iter().find(|shard| observed.shard(shard).journal.as_ref() != Some(course))
}

fn set_course(plan: &Plan, course: Course) -> Decision {
    match plan.shards().first() {
        Some(shard) => Decision::Act(Action::Journal { shard: (*shard).clone(), course }),
        None => Decision::Done,
    }
}

fn after(plan: &Plan, course: Course) -> Course {
    match (&plan.kind, course) {
        (Kind::Rebalance { .. }, Course::Forward) => Course::CleaningUp,
        (_, Course::Back { reason } | Course::RolledBack { reason }) => Course::RolledBack { reason },
        (_, Course::Forward | Course::CleaningUp | Course::Completed) => Course::Completed,
    }
}

fn first_ownership(map: &Map, observed: &Observed) -> Step {
    for shard in map.sizes().into_keys() {
        let wanted = map.owned_by(&shard);
        let view = observed.shard(&shard);
        let owned = view.ownership.iter().filter(|run| run.state == Ownership::Owned);
        let owned: Ranges = owned.map(|run| run.range).collect();
        let has_all = wanted.as_slice().iter().all(|range| owned.intersection(*range).size() == range.size());
        if !has_all {
            return Step::Act(Action::Own { shard, ranges: wanted, epoch: Epoch(1) });
        }
    }
    Step::Done
}

/// Runs `step` over the moves: the first that can act or must turn decides, else the first that waits.
fn over(moves: &[Move], step: impl Fn(&Move) -> Step) -> Step {
    let mut waiting = Step::Done;
    for moving in moves {
        match step(moving) {
            Step::Wait(reason) if matches!(waiting, Step::Done) => waiting = Step::Wait(reason),
            Step::Wait(_) | Step::Done => {}
            decided @ (Step::Act(_) | Step::Turn(_)) => return decided,
        }
    }
    waiting
}

/// The first of `steps` that is not done.
fn first_of<const N: usize>(steps: [&dyn Fn() -> Step; N]) -> Step {
    steps.into_iter().map(|step| step()).find(|step| !matches!(step, Step::Done)).unwrap_or(Step::Done)
}

fn forward(plan: &Plan, moves: &[Move], observed: &Observed) -> Step {
    first_of([
        &|| over(moves, |m| refusals(m, observed)),
        &|| if observed.paused { Step::Wait(Reason::Paused) } else { Step::Done },
        // Every move is prepared before the first stream exists: clearing a destination refuses while a stream
        // could carry its deletes.
        &|| over(moves, |m| prepare(plan, m, observed)),
        &|| over(moves, |m| connect(m, observed)),
        &|| over(moves, |m| transfer(m, observed)),
    ])
}

fn refusals(moving: &Move, observed: &Observed) -> Step {
    for Part { range, source, destination } in observed.parts(moving) {
        if destination.state == Ownership::Refused {
            return Step::Turn(Reason::DigestMismatch { shard: moving.to.clone(), bucket: range.first });
        }
        if source.state == Ownership::Owned && destination.state == Ownership::Owned {
            return Step::Wait(Reason::OwnershipConflict {
                bucket: range.first,
                one: moving.from.clone(),
                other: moving.to.clone(),
            });
        }
    }
    Step::Done
}

/// Brings both ends to the start line: no leftovers at the destination, epochs that nothing old can match.
fn prepare(plan: &Plan, moving: &Move, observed: &Observed) -> Step {
    let ready = |part: &Part<'_>| is_prepared(plan, moving, part) || is_on_the_way(part);
    let parts = observed.parts(moving);
    if parts.iter().all(ready) {
        return Step::Done;
    }
    if let Some(part) = parts.iter().find(|part| part.source.state != Ownership::Owned) {
        return Step::Wait(Reason::Unexpected { bucket: part.range.first, stream: forward_of(moving) });
    }
    for shard in [&moving.from, &moving.to] {
        if let Some(stray) = observed.shard(shard).strays.into_iter().min_by_key(|stray| stray.kind) {
            return Step::Act(Action::DropStray { shard: shard.clone(), stray });
        }
    }
    if let Some(step) = tear_down(&[forward_of(moving), forward_of(moving).reversed()], observed) {
        return step;
    }
    if let Some(leftovers) = rows_of(moving, &observed.shard(&moving.to).with_rows) {
        return Step::Act(Action::Clear { shard: moving.to.clone(), ranges: leftovers });
    }
    raise_and_expect(plan, moving, &parts)
}

fn raise_and_expect(plan: &Plan, moving: &Move, parts: &[Part<'_>]) -> Step {
    let highest = highest(parts);
    let raised = |part: &Part<'_>| {
        part.source.operation == Some(plan.id)
            && part.source.peer.as_ref() == Some(&moving.to)
            && part.source.epoch == highest
            && (part.destination.epoch < highest || part.destination.state == Ownership::Incoming)
    };
    let (ranges, peer) = (moving.ranges.clone(), moving.to.clone());
    if parts.iter().all(raised) {
        let (shard, peer) = (peer, moving.from.clone());
        return Step::Act(Action::Expect { shard, ranges, epoch: highest, peer });
    }
    Step::Act(Action::Raise { shard: moving.from.clone(), ranges, epoch: highest.next(), peer })
}

/// Makes both streams. The reverse one exists before the first handover; the forward one copies the rows.
fn connect(moving: &Move, observed: &Observed) -> Step {
    let stream = forward_of(moving);
    let back = stream.reversed();
    let begun = buckets_where(observed, moving, |part| part.source.state != Ownership::Owned) > 0;
    let all_arrived = buckets_where(observed, moving, is_arrived) == moving.ranges.size();
    if begun {
        let lost = |stream: &Stream| !observed.stream(stream).is_whole();
        return match () {
            () if lost(&back) => Step::Wait(Reason::StreamLost { stream: back }),
            () if lost(&stream) && !all_arrived => Step::Turn(Reason::StreamLost { stream }),
            () => Step::Done,
        };
    }
    let (there, returning) = (observed.stream(&stream), observed.stream(&back));
    for (view, stream) in [(&there, &stream), (&returning, &back)] {
        // A new slot under an old subscription would skip what was written in between.
        if view.subscription && !view.is_whole() {
            return Step::Turn(Reason::StreamLost { stream: stream.clone() });
        }
    }
    let ranges = moving.ranges.clone();
    let action = match () {
        () if !there.publication => Action::CreatePublication { stream, ranges },
        () if !returning.publication => Action::CreatePublication { stream: back, ranges },
        () if !there.slot => Action::CreateSlot { stream },
        () if !returning.slot => Action::CreateSlot { stream: back },
        () if !there.subscription => Action::CreateSubscription { stream, copy_data: true },
        () if !returning.subscription => Action::CreateSubscription { stream: back, copy_data: false },
        () => return Step::Done,
    };
    Step::Act(action)
}

/// Hands over batch after batch, then drops the forward stream.
fn transfer(moving: &Move, observed: &Observed) -> Step {
    let stream = forward_of(moving);
    let waiting = buckets(observed, moving, |part| part.source.state == Ownership::Owned);
    let arriving = buckets_where(observed, moving, is_on_the_way);
    let arrived = buckets_where(observed, moving, is_arrived);
    if arrived == moving.ranges.size() {
        // A late write that bypassed every rule must not reach the new owner's rows.
        return tear_down(&[stream], observed).unwrap_or(Step::Done);
    }
    if !observed.stream(&stream).synchronised {
        return Step::Wait(Reason::Copying { stream });
    }
    if arriving > arrived {
        return Step::Wait(Reason::Arriving { stream, buckets: arriving - arrived });
    }
    let routers = observed.shards.values().map(|shard| shard.routers_behind).sum();
    if routers > 0 {
        return Step::Wait(Reason::RoutersBehind { routers });
    }
    let ways = [stream.clone(), stream.reversed()];
    hand_over(stream, &ways, waiting, observed)
}

/// One batch, once a mark has just travelled each of the `ways`.
fn hand_over(stream: Stream, ways: &[Stream], waiting: Vec<BucketId>, observed: &Observed) -> Step {
    for direction in ways {
        match observed.stream(direction).probe {
            Some(probe) if probe.age_ms <= PROBE_MAX_AGE_MS => {}
            Some(probe) if probe.in_flight => {
                return Step::Wait(Reason::Lagging { stream: direction.clone(), age_ms: probe.age_ms });
            }
            Some(_) | None => return Step::Act(Action::Probe { stream: direction.clone() }),
        }
    }
    let buckets = waiting.into_iter().take(observed.batch.max(1)).collect();
    Step::Act(Action::HandOver { stream, buckets })
}

fn back(plan: &Plan, moves: &[Move], observed: &Observed) -> Step {
    first_of([
        &|| over(moves, |m| bring_home(plan, m, observed)),
        &|| over(moves, |m| tear_down(&both_streams(m), observed).unwrap_or(Step::Done)),
        &|| over(moves, |m| clear(&m.to, m, observed)),
    ])
}

/// Returns every bucket of a move to its source: what arrived by handover, the rest by revoking.
fn bring_home(plan: &Plan, moving: &Move, observed: &Observed) -> Step {
    let stream = forward_of(moving);
    let parts = observed.parts(moving);
    let forward_lives = observed.stream(&stream).is_whole();
    let select = |wanted: &dyn Fn(Ownership, Ownership) -> bool| {
        let chosen = parts.iter().filter(|part| wanted(part.source.state, part.destination.state));
        let chosen: Vec<_> = chosen.copied().collect();
        (!chosen.is_empty()).then_some(chosen)
    };
    use Ownership::{Absent, Incoming, Moved, Owned, Refused};
    if let Some(parts) = select(&|source, destination| {
        destination == Refused
            || (source == Owned && destination == Incoming)
            || (source == Moved && destination == Incoming && !forward_lives)
    }) {
        let epoch = highest(&parts).next();
        return Step::Act(Action::Revoke { shard: moving.to.clone(), ranges: ranges(&parts), epoch });
    }
    if let Some(parts) = select(&|source, destination| source == Moved && destination == Absent) {
        let epoch = highest(&parts);
        return Step::Act(Action::Own { shard: moving.from.clone(), ranges: ranges(&parts), epoch });
    }
    if let Some(parts) = select(&|source, _| source == Refused) {
        let bucket = parts.first().map_or(BucketId::new(0), |part| part.range.first);
        return Step::Wait(Reason::DigestMismatch { shard: moving.from.clone(), bucket });
    }
    if let Some(parts) =
        select(&|source, destination| source == Moved && matches!(destination, Incoming | Moved))
    {
        return Step::Wait(Reason::Arriving { stream, buckets: ranges(&parts).size() });
    }
    if let Some(parts) = select(&|source, destination| source == Moved && destination == Owned) {
        let back = stream.reversed();
        if parts.iter().any(|part| part.source.operation != Some(plan.id))
            || !observed.stream(&back).is_whole()
        {
            return Step::Wait(Reason::StreamLost { stream: back });
        }
        return hand_over(back.clone(), &[back], ranges(&parts).buckets().collect(), observed);
    }
    Step::Done
}

fn clean_up(moves: &[Move], observed: &Observed) -> Step {
    first_of([&|| over(moves, |m| tear_down(&both_streams(m), observed).unwrap_or(Step::Done)), &|| {
        over(moves, |m| clear(&m.from, m, observed))
    }])
}

fn clear(shard: &ShardName, moving: &Move, observed: &Observed) -> Step {
    match rows_of(moving, &observed.shard(shard).with_rows) {
        Some(ranges) => Step::Act(Action::Clear { shard: shard.clone(), ranges }),
        None => Step::Done,
    }
}

/// The next object to drop; the subscription first, since it holds the slot.
fn tear_down(streams: &[Stream], observed: &Observed) -> Option<Step> {
    let left = streams.iter().find(|stream| !observed.stream(stream).is_gone())?;
    let (view, stream) = (observed.stream(left), left.clone());
    Some(Step::Act(match () {
        () if view.subscription => Action::DropSubscription { stream },
        () if view.slot => Action::DropSlot { stream },
        () => Action::DropPublication { stream },
    }))
}

fn forward_of(moving: &Move) -> Stream {
    Stream { source: moving.from.clone(), destination: moving.to.clone() }
}

fn both_streams(moving: &Move) -> [Stream; 2] {
    [forward_of(moving), forward_of(moving).reversed()]
}

fn rows_of(moving: &Move, with_rows: &Ranges) -> Option<Ranges> {
    let left: Ranges = moving
        .ranges
        .as_slice()
        .iter()
        .flat_map(|range| with_rows.intersection(*range).as_slice().to_vec())
        .collect();
    (!left.is_empty()).then_some(left)
}

fn is_prepared(plan: &Plan, moving: &Move, part: &Part<'_>) -> bool {
    let ours = |run: &super::Run, peer| run.operation == Some(plan.id) && run.peer.as_ref() == Some(peer);
    part.source.state == Ownership::Owned
        && part.destination.state == Ownership::Incoming
        && part.source.epoch == part.destination.epoch
        && ours(part.source, &moving.to)
        && ours(part.destination, &moving.from)
}

/// Given up by the source, whether it has arrived or not.
fn is_on_the_way(part: &Part<'_>) -> bool {
    part.source.state == Ownership::Moved
        && matches!(part.destination.state, Ownership::Incoming | Ownership::Owned)
}

fn is_arrived(part: &Part<'_>) -> bool {
    part.source.state == Ownership::Moved && part.destination.state == Ownership::Owned
}

fn buckets(observed: &Observed, moving: &Move, wanted: impl Fn(&Part<'_>) -> bool) -> Vec<BucketId> {
    let parts = observed.parts(moving);
    parts.into_iter().filter(wanted).flat_map(|part| part.range.buckets()).collect()
}

fn buckets_where(observed: &Observed, moving: &Move, wanted: impl Fn(&Part<'_>) -> bool) -> u32 {
    observed.parts(moving).into_iter().filter(wanted).map(|part| part.range.size()).sum()
}

fn ranges(parts: &[Part<'_>]) -> Ranges {
    parts.iter().map(|part| part.range).collect()
}

fn highest(parts: &[Part<'_>]) -> Epoch {
    parts.iter().map(|part| part.source.epoch.max(part.destination.epoch)).max().unwrap_or(Epoch(0))
}
