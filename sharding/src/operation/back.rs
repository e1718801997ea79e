//! The ways out of an operation: back home, and cleaning up after all have arrived.

use super::{
    Action, Observed, Ownership, Plan, Reason, Stream,
    next::{
        Step, alike, both_streams, clear, first_of, forward_of, hand_over, highest, over, over_budget,
        ranges, tear_down,
    },
    observed::Part,
};
use crate::{BucketId, planner::Move};

/// Everything goes home, as far as it can; what cannot stays where it is owned.
pub(super) fn back(plan: &Plan, moves: &[Move], observed: &Observed) -> Step {
    first_of([
        // A stream that fills a disk goes, whatever it still carries.
        &|| over_budget(plan, observed).and_then(|s| tear_down(&[s], observed)).unwrap_or(Step::Done),
        &|| over(moves, |m| bring_home(plan, m, observed)),
        &|| over(moves, |m| tear_down(&both_streams(m), observed).unwrap_or(Step::Done)),
        &|| leftovers(plan, observed),
    ])
}

pub(super) fn clean_up(plan: &Plan, moves: &[Move], observed: &Observed) -> Step {
    first_of([
        &|| over(moves, |m| unowned(m, observed)),
        &|| over(moves, |m| tear_down(&both_streams(m), observed).unwrap_or(Step::Done)),
        &|| leftovers(plan, observed),
    ])
}

/// What arrived, and is not known of any more where it did, since that shard lost it with its server. The rows at the source
/// may be the last ones: a person has to say.
fn unowned(moving: &Move, observed: &Observed) -> Step {
    let owned = |part: &Part<'_>| [part.source.state, part.destination.state].contains(&Ownership::Owned);
    let lost = observed.parts(moving).into_iter().find(|part| !owned(part));
    lost.map_or(Step::Done, |part| {
        Step::Wait(Reason::Unexpected { bucket: part.range.first, stream: forward_of(moving) })
    })
}

/// Rows of the plan's buckets on shards that do not own them.
fn leftovers(plan: &Plan, observed: &Observed) -> Step {
    let left = plan.shards().into_iter().map(|shard| clear(shard, observed));
    left.into_iter().find(|step| !matches!(step, Step::Done)).unwrap_or(Step::Done)
}

/// Returns every bucket of a move to its source: what arrived by handover, the rest by revoking.
fn bring_home(plan: &Plan, moving: &Move, observed: &Observed) -> Step {
    use Ownership::{Absent, Incoming, Moved, Owned, Refused};
    let stream = forward_of(moving);
    let parts = observed.parts(moving);
    let (there, returning) = (observed.stream(&stream), observed.stream(&stream.reversed()));
    let select = |wanted: &dyn Fn(Ownership, Ownership) -> bool| {
        let chosen = parts.iter().filter(|part| wanted(part.source.state, part.destination.state));
        let chosen: Vec<_> = chosen.copied().collect();
        (!chosen.is_empty()).then_some(chosen)
    };
    if let Some(parts) = select(&|source, destination| {
        destination == Refused
            || (source == Owned && destination == Incoming)
            || (source == Moved && destination == Incoming && !there.is_whole())
    }) {
        let epoch = highest(&parts).next();
        return Step::Act(Action::Revoke { shard: moving.to.clone(), ranges: ranges(&parts), epoch });
    }
    if let Some(parts) = select(&|source, destination| source == Moved && destination == Absent) {
        let epoch = highest(&parts);
        return Step::Act(Action::Own { shard: moving.from.clone(), ranges: ranges(&parts), epoch });
    }
    // Refused on its way home: the one who gave it up has the rows that count.
    if let Some(parts) = select(&|source, destination| source == Refused && destination == Moved) {
        let epoch = highest(&parts).next();
        return Step::Act(Action::Revoke { shard: moving.from.clone(), ranges: ranges(&parts), epoch });
    }
    if let Some(parts) = select(&|source, destination| source == Absent && destination == Moved) {
        let epoch = highest(&parts);
        return Step::Act(Action::Own { shard: moving.to.clone(), ranges: ranges(&parts), epoch });
    }
    if let Some(parts) = select(&|source, destination| source == Moved && destination == Moved)
        && !returning.is_whole()
    {
        return reclaim(moving, &parts, observed);
    }
    if let Some(parts) =
        select(&|source, destination| source == Moved && matches!(destination, Incoming | Moved))
    {
        return Step::Wait(Reason::Arriving { stream, buckets: ranges(&parts).size() });
    }
    match select(&|source, destination| source == Moved && destination == Owned) {
        Some(parts)
            if returning.is_whole() && parts.iter().all(|part| part.source.operation == Some(plan.id)) =>
        {
            return_by_handover(moving, &parts, observed)
        }
        // Without a stream nothing can follow it home.
        Some(_) | None => Step::Done,
    }
}

fn return_by_handover(moving: &Move, parts: &[Part<'_>], observed: &Observed) -> Step {
    let back = forward_of(moving).reversed();
    let buckets: Vec<BucketId> = ranges(parts).buckets().collect();
    first_of([&|| alike(moving, observed), &|| {
        hand_over(back.clone(), std::slice::from_ref(&back), buckets.clone(), observed)
    }])
}

/// Given up on the way home by a stream that is gone: once nothing can apply it any more, the giver owns it again.
fn reclaim(moving: &Move, parts: &[Part<'_>], observed: &Observed) -> Step {
    let back: Stream = forward_of(moving).reversed();
    tear_down(&[back], observed).unwrap_or_else(|| {
        let epoch = highest(parts).next();
        Step::Act(Action::Own { shard: moving.to.clone(), ranges: ranges(parts), epoch })
    })
}
