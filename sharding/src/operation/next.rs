//! The decision: from a plan and what was observed to the one next action.

use super::{
    Action, Course, Decision, Epoch, Kind, Observed, Ownership, Phase, Plan, Progress, Reason, Stream, back,
    observed::Part,
};
use crate::{BucketId, Map, Ranges, ShardName, planner::Move};

/// Older marks say nothing about the stream as it is now.
const PROBE_MAX_AGE_MS: u64 = 1_000;

/// What to do next. Deterministic; safe to call after any crash, and to repeat.
#[must_use]
pub fn next(plan: &Plan, observed: &Observed) -> Decision {
    if let Some(shard) = plan.shards().into_iter().find(|shard| !observed.shards.contains_key(*shard)) {
        // A disk that fills up does not wait until the shard is back.
        return match over_budget(plan, observed) {
            Some(stream) if observed.stream(&stream).slot => Decision::Act(Action::DropSlot { stream }),
            Some(_) | None => Decision::Wait(Reason::ShardUnreachable { shard: shard.clone() }),
        };
    }
    let course = course(plan, observed);
    if let Some(shard) = first_without(plan, observed, &course) {
        return Decision::Act(Action::Journal { shard: shard.clone(), course });
    }
    let quarantined = || plan.shards().into_iter().find(|shard| observed.shard(shard).quarantined);
    let step = match (&plan.kind, &course) {
        (_, Course::Completed | Course::RolledBack { .. }) => return Decision::Done,
        (_, course) if let Some(shard) = quarantined() => quarantine(plan, shard, course, observed),
        (Kind::FirstOwnership { map, .. }, _) => first_ownership(map, observed),
        (Kind::Rebalance { moves }, Course::Forward) => forward(plan, moves, observed),
        (Kind::Rebalance { moves }, Course::Back { .. }) => back::back(plan, moves, observed),
        (Kind::Rebalance { moves }, Course::CleaningUp) => back::clean_up(plan, moves, observed),
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
    let moves = plan.moves();
    let arrived = moves.iter().map(|m| buckets_where(observed, m, is_arrived)).sum();
    let forward = || moves.iter().map(|m| observed.stream(&forward_of(m)));
    let copying = forward().any(|stream| stream.is_whole());
    let copied = forward().all(|stream| stream.synchronised) && !moves.is_empty();
    let phase = match course {
        Course::Completed => Phase::Completed,
        Course::RolledBack { .. } => Phase::RolledBack,
        Course::Back { .. } => Phase::RollingBack,
        Course::CleaningUp => Phase::CleaningUp,
        Course::Forward if arrived > 0 || copied => Phase::HandingOver,
        Course::Forward if copying => Phase::Copying,
        Course::Forward => Phase::Preparing,
    };
    let buckets_moved = if course == Course::Completed { plan.buckets() } else { arrived };
    Progress { phase, buckets_moved, buckets_total: plan.buckets() }
}

/// What one part of the operation has to say.
pub(super) enum Step {
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

/// A shard may lack what it sent or was sent: the operation goes back, and no stream from or to the shard lives on. Then it can
/// be armed again.
fn quarantine(plan: &Plan, shard: &ShardName, course: &Course, observed: &Observed) -> Step {
    if !plan.moves().is_empty() && *course == Course::Forward {
        return Step::Turn(Reason::ServerChanged { shard: shard.clone() });
    }
    let concerned = plan.moves().iter().filter(|m| m.from == *shard || m.to == *shard);
    let streams: Vec<Stream> = concerned.flat_map(both_streams).collect();
    let waits = Step::Wait(Reason::Quarantined { shard: shard.clone() });
    tear_down(&streams, observed).unwrap_or(waits)
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
pub(super) fn over(moves: &[Move], step: impl Fn(&Move) -> Step) -> Step {
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
pub(super) fn first_of<const N: usize>(steps: [&dyn Fn() -> Step; N]) -> Step {
    steps.into_iter().map(|step| step()).find(|step| !matches!(step, Step::Done)).unwrap_or(Step::Done)
}

fn forward(plan: &Plan, moves: &[Move], observed: &Observed) -> Step {
    first_of([
        &|| over(moves, |m| refusals(m, observed)),
        &|| withheld(plan, observed),
        &|| over(moves, |m| alike(m, observed)),
        // Every move is prepared before the first stream exists: clearing a destination refuses while a stream
        // could carry its deletes.
        &|| over(moves, |m| prepare(plan, m, observed)),
        &|| over(moves, |m| connect(m, moves, observed)),
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

/// What the spec or a disk says against going on.
fn withheld(plan: &Plan, observed: &Observed) -> Step {
    if let Some(stream) = over_budget(plan, observed) {
        let mebibytes = observed.stream(&stream).retained / (1024 * 1024);
        return Step::Turn(Reason::WalBudgetExceeded { stream, mebibytes });
    }
    match () {
        () if observed.paused => Step::Wait(Reason::Paused),
        () if observed.reverted => Step::Turn(Reason::SpecReverted),
        () => Step::Done,
    }
}

/// The first stream whose slot holds back more WAL than it may.
pub(super) fn over_budget(plan: &Plan, observed: &Observed) -> Option<Stream> {
    let mut streams = plan.moves().iter().flat_map(both_streams);
    streams.find(|stream| observed.stream(stream).retained > observed.limits.retained_wal)
}

/// Rows can be copied and compared only between tables that are alike.
pub(super) fn alike(moving: &Move, observed: &Observed) -> Step {
    if observed.shard(&moving.from).schema == observed.shard(&moving.to).schema {
        return Step::Done;
    }
    Step::Wait(Reason::SchemaDiffers { one: moving.from.clone(), other: moving.to.clone() })
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
    first_of([&|| clear(&moving.to, observed), &|| raise_and_expect(plan, moving, &parts)])
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

/// Makes both streams. The reverse one exists before the first handover; the forward one copies the rows. Not all pairs
/// copy at once: each copy takes disk and network from the writers.
fn connect(moving: &Move, moves: &[Move], observed: &Observed) -> Step {
    let stream = forward_of(moving);
    let back = stream.reversed();
    let begun = buckets_where(observed, moving, |part| part.source.state != Ownership::Owned) > 0;
    let all_arrived = buckets_where(observed, moving, is_arrived) == moving.ranges.size();
    if begun {
        let lost = |stream: &Stream| !observed.stream(stream).is_whole();
        return match () {
            () if lost(&back) => Step::Turn(Reason::StreamLost { stream: back }),
            () if lost(&stream) && !all_arrived => Step::Turn(Reason::StreamLost { stream }),
            () => Step::Done,
        };
    }
    let (there, returning) = (observed.stream(&stream), observed.stream(&back));
    if there.cut_off {
        return Step::Turn(Reason::CopyCutOff { stream });
    }
    for (view, stream) in [(&there, &stream), (&returning, &back)] {
        // A new slot under an old subscription would skip what was written in between.
        if view.subscription && !view.is_whole() {
            return Step::Turn(Reason::StreamLost { stream: stream.clone() });
        }
    }
    let is_copying = |m: &&Move| {
        let view = observed.stream(&forward_of(m));
        view.slot && !view.synchronised
    };
    let busy = moves.iter().filter(is_copying).count() >= observed.limits.copies.max(1);
    let ranges = moving.ranges.clone();
    let action = match () {
        // From the slot on the source holds back WAL: it is made when the copy may begin.
        () if !there.slot && busy => return Step::Wait(Reason::Copying { stream }),
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
    if observed.shard(&moving.to).unanalyzed {
        return Step::Act(Action::Analyze { shard: moving.to.clone() });
    }
    let routers = observed.shards.values().map(|shard| shard.routers_behind).sum();
    if routers > 0 {
        return Step::Wait(Reason::RoutersBehind { routers });
    }
    let ways = [stream.clone(), stream.reversed()];
    hand_over(stream, &ways, waiting, observed)
}

/// One batch, once a mark has just travelled each of the `ways`.
pub(super) fn hand_over(
    stream: Stream,
    ways: &[Stream],
    waiting: Vec<BucketId>,
    observed: &Observed,
) -> Step {
    let probe = |way: &Stream| observed.stream(way).probe;
    let is_fresh = |way: &Stream| probe(way).is_some_and(|probe| probe.age_ms <= PROBE_MAX_AGE_MS);
    let stale = || ways.iter().filter(|way| !is_fresh(way));
    if let Some((way, probe)) =
        stale().find_map(|way| Some((way, probe(way).filter(|probe| probe.in_flight)?)))
    {
        return Step::Wait(Reason::Lagging { stream: way.clone(), age_ms: probe.age_ms });
    }
    if stale().next().is_some() {
        return Step::Act(Action::Probe { streams: ways.to_vec() });
    }
    let buckets = waiting.into_iter().take(observed.limits.batch.max(1)).collect();
    Step::Act(Action::HandOver { stream, buckets })
}

/// The next object to drop; the subscription first, since it holds the slot.
pub(super) fn tear_down(streams: &[Stream], observed: &Observed) -> Option<Step> {
    let left = streams.iter().find(|stream| !observed.stream(stream).is_gone())?;
    let (view, stream) = (observed.stream(left), left.clone());
    Some(Step::Act(match () {
        () if view.subscription => Action::DropSubscription { stream },
        () if view.slot => Action::DropSlot { stream },
        () => Action::DropPublication { stream },
    }))
}

pub(super) fn forward_of(moving: &Move) -> Stream {
    Stream { source: moving.from.clone(), destination: moving.to.clone() }
}

pub(super) fn both_streams(moving: &Move) -> [Stream; 2] {
    [forward_of(moving), forward_of(moving).reversed()]
}

/// Deletes what lies on a shard that does not own it: of all moves at once, since neighbouring ranges of two of them are
/// one range to the shard.
pub(super) fn clear(shard: &ShardName, observed: &Observed) -> Step {
    let ranges = observed.shard(shard).with_rows;
    if ranges.is_empty() { Step::Done } else { Step::Act(Action::Clear { shard: shard.clone(), ranges }) }
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

pub(super) fn ranges(parts: &[Part<'_>]) -> Ranges {
    parts.iter().map(|part| part.range).collect()
}

pub(super) fn highest(parts: &[Part<'_>]) -> Epoch {
    parts.iter().map(|part| part.source.epoch.max(part.destination.epoch)).max().unwrap_or(Epoch(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BucketRange,
        operation::{Limits, OperationId, Run, Shard, StreamView},
    };

    fn name(text: &str) -> ShardName {
        text.try_into().expect("a valid name")
    }

    /// a gives two buckets each to b, c and d, and all of it is prepared.
    fn prepared() -> (Plan, Observed) {
        let id = OperationId(1);
        let span = |index: u16| BucketRange::new(index * 2, index * 2 + 1).expect("not empty");
        let run = |range, state, peer: &str| Run {
            range,
            state,
            epoch: Epoch(2),
            peer: Some(name(peer)),
            operation: Some(id),
        };
        let mut shards = std::collections::BTreeMap::new();
        let mut given = Vec::new();
        let mut moves = Vec::new();
        for (index, to) in (0_u16..).zip(["b", "c", "d"]) {
            moves.push(Move { from: name("a"), to: name(to), ranges: [span(index)].into_iter().collect() });
            given.push(run(span(index), Ownership::Owned, to));
            let ownership = vec![run(span(index), Ownership::Incoming, "a")];
            shards.insert(name(to), Shard { journal: Some(Course::Forward), ownership, ..Shard::default() });
        }
        shards.insert(
            name("a"),
            Shard { journal: Some(Course::Forward), ownership: given, ..Shard::default() },
        );
        let plan = Plan { id, kind: Kind::Rebalance { moves }, cost: None };
        let limits = Limits { copies: 2, ..Limits::default() };
        (plan, Observed { shards, limits, ..Observed::default() })
    }

    #[test]
    fn no_more_pairs_copy_at_once_than_allowed() {
        let (plan, mut observed) = prepared();
        let mut copying: Vec<String> = Vec::new();
        for _ in 0..40 {
            let Decision::Act(action) = next(&plan, &observed) else { break };
            if let Action::CreateSlot { stream } = &action
                && stream.source == name("a")
            {
                copying.push(stream.destination.to_string());
            }
            if let Action::CreatePublication { stream, .. } = &action {
                observed.streams.entry(stream.clone()).or_default().publication = true;
            } else if let Action::CreateSlot { stream } = &action {
                observed.streams.entry(stream.clone()).or_default().slot = true;
            } else if let Action::CreateSubscription { stream, .. } = &action {
                observed.streams.entry(stream.clone()).or_default().subscription = true;
            } else {
                panic!("{action:?} while copies are under way");
            }
        }
        assert_eq!(copying, ["b", "c"]);
        let wait = next(&plan, &observed);
        assert!(matches!(&wait, Decision::Wait(Reason::Copying { .. })), "{wait:?}");

        let first = Stream { source: name("a"), destination: name("b") };
        observed.streams.entry(first).and_modify(|view| view.synchronised = true);
        let act = next(&plan, &observed);
        let third = Stream { source: name("a"), destination: name("d") };
        assert!(matches!(&act, Decision::Act(Action::CreatePublication { stream, .. }) if *stream == third));
    }

    #[test]
    fn a_copy_that_was_cut_off_is_not_waited_for() {
        let (plan, mut observed) = prepared();
        let stream = Stream { source: name("a"), destination: name("b") };
        let view = StreamView {
            publication: true,
            slot: true,
            subscription: true,
            cut_off: true,
            ..StreamView::default()
        };
        observed.streams.insert(stream.clone(), view);
        let turned = Course::Back { reason: Reason::CopyCutOff { stream } };
        assert!(
            matches!(next(&plan, &observed), Decision::Act(Action::Journal { course, .. }) if course == turned)
        );
        assert!(matches!(turned, Course::Back { reason } if reason.is_passing()));
    }

    #[test]
    fn a_full_disk_does_not_wait_for_a_shard_that_is_away() {
        let (plan, mut observed) = prepared();
        observed.shards.remove(&name("b"));
        let stream = Stream { source: name("a"), destination: name("b") };
        let view = StreamView { publication: true, slot: true, retained: 11, ..StreamView::default() };
        observed.streams.insert(stream.clone(), view);
        observed.limits.retained_wal = 11;
        let away = Decision::Wait(Reason::ShardUnreachable { shard: name("b") });
        assert_eq!(next(&plan, &observed), away);
        observed.limits.retained_wal = 10;
        assert_eq!(next(&plan, &observed), Decision::Act(Action::DropSlot { stream }));
    }

    #[test]
    fn no_stream_of_a_shard_outlives_its_quarantine() {
        let (plan, mut observed) = prepared();
        let quarantined = |observed: &mut Observed, yes| {
            observed.shards.get_mut(&name("b")).expect("a shard of the plan").quarantined = yes;
        };
        quarantined(&mut observed, true);
        let reason = Reason::ServerChanged { shard: name("b") };
        let back = Course::Back { reason };
        assert!(
            matches!(next(&plan, &observed), Decision::Act(Action::Journal { course, .. }) if course == back)
        );
        observed.shards.values_mut().for_each(|shard| shard.journal = Some(back.clone()));
        let stream = Stream { source: name("b"), destination: name("a") };
        observed.streams.insert(stream.clone(), StreamView { slot: true, ..StreamView::default() });
        assert_eq!(next(&plan, &observed), Decision::Act(Action::DropSlot { stream: stream.clone() }));
        observed.streams.remove(&stream);
        assert_eq!(next(&plan, &observed), Decision::Wait(Reason::Quarantined { shard: name("b") }));
        quarantined(&mut observed, false);
        assert!(
            matches!(next(&plan, &observed), Decision::Act(Action::Revoke { shard, .. }) if shard == name("b"))
        );
    }
}
