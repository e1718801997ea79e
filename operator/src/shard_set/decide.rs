//! Pure: which operation a set needs, if any.

use longshore_sharding::{
    Map, MapError, Ranges, ShardName,
    operation::{Course, Kind, OperationId, Ownership, Plan},
    planner::{self, Weight},
};

use super::{observe::World, wanted::Wanted};

/// What a set is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Nothing: what is owned is what is asked.
    Converged,
    /// Go on with this operation, or begin it. `generation`: the spec that asked for it.
    Operate { plan: Plan, generation: i64 },
    /// A person has to decide.
    Blocked { reason: &'static str, message: String },
}

/// The operation that is open, else the one that the spec asks for.
pub(super) fn goal(wanted: &Wanted, world: &World) -> Goal {
    if let Some((shard, error)) = world.unreachable.iter().next() {
        // Without every shard nobody knows who owns what.
        return blocked("ShardUnreachable", format!("shard {shard}: {}", error.chain()));
    }
    if let Some(open) = open_operation(world) {
        return open;
    }
    let nobody_owns =
        world.views.values().flat_map(|view| view.runs()).all(|run| run.state == Ownership::Absent);
    if nobody_owns {
        return first_ownership(wanted, world);
    }
    match world.map(wanted) {
        Ok(map) => rebalance(wanted, world, &map),
        Err(error @ MapError::OwnedTwice { .. }) => blocked("OwnershipConflict", error.to_string()),
        Err(error @ (MapError::Unowned { .. } | MapError::OutOfBounds { .. })) => {
            blocked("OwnershipUnknown", error.to_string())
        }
    }
}

/// The newest operation, unless all of its shards say that it is over.
fn open_operation(world: &World) -> Option<Goal> {
    let newest = world.newest()?;
    let (plan, generation) = (newest.plan.clone(), newest.generation);
    let over = |shard: &&ShardName| {
        world.journalled(&plan).any(|(name, entry)| name == *shard && entry.course.is_over())
    };
    if plan.shards().iter().all(over) {
        return None;
    }
    Some(Goal::Operate { plan, generation })
}

fn next_id(world: &World) -> OperationId {
    OperationId(world.newest().map_or(0, |newest| newest.plan.id.0) + 1)
}

/// A new set's buckets go to its shards by weight, or all of them to the one shard that already has rows.
fn first_ownership(wanted: &Wanted, world: &World) -> Goal {
    let with_rows: Vec<_> = world.views.iter().filter(|(_, view)| !view.with_rows().is_empty()).collect();
    let weights = match with_rows.as_slice() {
        [] => wanted.weights(),
        [(only, _)] => vec![Weight { shard: (*only).clone(), weight: 1 }],
        [(one, _), (other, _), ..] => {
            let message = format!(
                "shards {one} and {other} both hold rows, and nobody owns a bucket yet; empty one of them"
            );
            return blocked("RowsOnSeveralShards", message);
        }
    };
    match planner::first_map(wanted.buckets, &weights) {
        Ok(map) => {
            let plan = Plan { id: next_id(world), kind: Kind::FirstOwnership { map } };
            Goal::Operate { plan, generation: wanted.generation }
        }
        Err(error) => blocked("NoPlan", error.to_string()),
    }
}

fn rebalance(wanted: &Wanted, world: &World, map: &Map) -> Goal {
    let target = match planner::next_map(map, &wanted.weights()) {
        Ok(target) => target,
        Err(error) => return blocked("NoPlan", error.to_string()),
    };
    let moves = planner::moves(map, &target);
    if moves.is_empty() {
        return Goal::Converged;
    }
    if let Some(newest) = world.newest()
        && let Course::RolledBack { reason } = &newest.course
        && newest.generation == wanted.generation
    {
        let message = format!(
            "operation {} went back: {reason}; mend it, then change the spec to try again",
            newest.plan.id
        );
        return blocked(reason.word(), message);
    }
    if wanted.paused {
        let moving: Ranges = moves.iter().flat_map(|m| m.ranges.as_slice()).copied().collect();
        return blocked("Paused", format!("{} buckets would move; spec.paused is set", moving.size()));
    }
    let plan = Plan { id: next_id(world), kind: Kind::Rebalance { moves } };
    Goal::Operate { plan, generation: wanted.generation }
}

fn blocked(reason: &'static str, message: String) -> Goal {
    Goal::Blocked { reason, message }
}
