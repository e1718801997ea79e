//! The status: computed purely from what was observed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use longshore_crds::{
    OrderShardSet,
    order_shard_set::{OperationStatus, OrderShardSetStatus, ShardStatus},
};
use longshore_sharding::operation::Phase;

use super::{Outcome, history, observe::World, wanted::Wanted};
use crate::{shard::view::View, status};

/// Pure but for the clock, which only stamps conditions that change.
pub(super) fn compute(
    set: &OrderShardSet,
    wanted: &Wanted,
    world: &World,
    outcome: &Outcome,
) -> OrderShardSetStatus {
    let previous = set.status.clone().unwrap_or_default();
    let unseen = world.views.is_empty();
    let (operation, history) = if unseen {
        (previous.operation.clone(), previous.history.clone())
    } else {
        history::operations(wanted, world, outcome)
    };
    let shards = shards(wanted, world, outcome, &previous);
    OrderShardSetStatus {
        observed_generation: set.metadata.generation,
        conditions: conditions(set, wanted, &previous, (world, outcome), operation.as_ref()),
        shard_count: i32::try_from(shards.len()).unwrap_or(i32::MAX),
        shards,
        operation,
        history,
    }
}

fn shards(
    wanted: &Wanted,
    world: &World,
    outcome: &Outcome,
    previous: &OrderShardSetStatus,
) -> Vec<ShardStatus> {
    let mut names: Vec<_> =
        wanted.shards.iter().map(|shard| (shard.name.to_string(), shard.secret_name.clone())).collect();
    let known =
        previous.shards.iter().map(|shard| (shard.name.clone(), shard.connection_secret_name.clone()));
    let is_there =
        |name: &str| world.views.is_empty() || world.views.keys().any(|there| there.as_str() == name);
    for (name, secret_name) in known {
        if is_there(&name) && names.iter().all(|(there, _)| *there != name) {
            names.push((name, secret_name));
        }
    }
    names.into_iter().map(|(name, secret_name)| shard(name, secret_name, world, outcome)).collect()
}

fn shard(name: String, connection_secret_name: String, world: &World, outcome: &Outcome) -> ShardStatus {
    let found = |key: &longshore_sharding::ShardName| key.as_str() == name;
    let view = world.views.iter().find(|(key, _)| found(key)).map(|(_, view)| view);
    let buckets = view.map(View::owned);
    let unreachable = world.unreachable.iter().find(|(key, _)| found(key));
    let fault = match outcome {
        Outcome::Faulty(faults) => faults.iter().find(|fault| fault.shard.as_ref().is_none_or(&found)),
        Outcome::Converged
        | Outcome::Acted(_)
        | Outcome::Waiting(_)
        | Outcome::Planned { .. }
        | Outcome::Blocked { .. } => None,
    };
    let (state, message) = match (fault, unreachable) {
        (Some(fault), _) => (fault.reason, Some(fault.message.clone())),
        (None, Some((shard, why))) => (world.reason(shard), Some(why.clone())),
        (None, None) if buckets.is_none() => ("Unknown", None),
        (None, None) => ("Ready", None),
    };
    let buckets = buckets.map(|owned| i32::try_from(owned).unwrap_or(i32::MAX));
    let schema_version = view.and_then(|view| view.migration.clone());
    ShardStatus { name, connection_secret_name, state: state.to_owned(), message, schema_version, buckets }
}

fn conditions(
    set: &OrderShardSet,
    wanted: &Wanted,
    previous: &OrderShardSetStatus,
    (world, outcome): (&World, &Outcome),
    operation: Option<&OperationStatus>,
) -> Vec<Condition> {
    let (ready, reason, message) = match outcome {
        Outcome::Converged => {
            (true, "Converged", "every bucket is with the shard that the spec asks for".to_owned())
        }
        Outcome::Faulty(faults) => {
            let first = faults.first();
            let all: Vec<_> = faults.iter().map(ToString::to_string).collect();
            (false, first.map_or("Unknown", |fault| fault.reason), all.join("; "))
        }
        Outcome::Blocked { reason, message } => (false, *reason, message.clone()),
        Outcome::Acted(deed) => (false, "Rebalancing", deed.clone()),
        Outcome::Waiting(reason) => (false, "Rebalancing", reason.to_string()),
        Outcome::Planned { plan, .. } if wanted.paused => {
            (false, "Paused", format!("{} buckets would move; spec.paused is set", plan.buckets()))
        }
        Outcome::Planned { plan, .. } => {
            (false, "Rebalancing", format!("{} buckets will move", plan.buckets()))
        }
    };
    let degraded = matches!(outcome, Outcome::Faulty(_) | Outcome::Blocked { .. });
    let phase = operation
        .filter(|operation| operation.phase != Phase::Planning)
        .map(|operation| format!("{:?}", operation.phase));
    let phase_message =
        operation.map_or(String::new(), |operation| format!("{} buckets", operation.progress));
    let (schema_current, schema_reason, schema_message) = schema_current(world);
    let said = [
        ("Ready", ready, reason, message.as_str()),
        ("Rebalancing", phase.is_some(), phase.as_deref().unwrap_or("Idle"), &phase_message),
        (
            "Degraded",
            degraded,
            if degraded { reason } else { "AsExpected" },
            if degraded { &message } else { "" },
        ),
        ("SchemaCurrent", schema_current, schema_reason, &schema_message),
    ];
    said.map(|said| status::condition(&previous.conditions, set.metadata.generation, said)).into()
}

/// Migrations do not run while rows move: source and destination must stay alike.
fn schema_current(world: &World) -> (bool, &'static str, String) {
    let frozen = || format!("wait for the end of the operation: {}", world.deferred.join(", "));
    match world.deferred.as_slice() {
        _ if world.views.is_empty() => (false, "Unknown", String::new()),
        [] => (true, "Applied", String::new()),
        [_, ..] => (false, "SchemaFrozen", frozen()),
    }
}

/// What people are told at once: everything but the numbers and words that change with each batch.
pub(super) fn outline(status: &OrderShardSetStatus) -> impl PartialEq + use<> {
    let operation = status.operation.as_ref().map(|operation| (operation.id, operation.phase));
    let last = status.history.first().map(|operation| (operation.id, operation.phase));
    let shards: Vec<_> =
        status.shards.iter().map(|shard| (shard.name.clone(), shard.state.clone())).collect();
    (status.observed_generation, status::outline(&status.conditions), operation, last, shards)
}
