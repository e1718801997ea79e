//! Pure: which operation a set needs, if any.

use longshore_sharding::{
    Map, MapError, ShardName,
    operation::{Course, Kind, OperationId, Ownership, Plan},
    planner::{self, Weight},
};

use super::{observe::World, wanted::Wanted};

/// What a set is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Nothing: what is owned is what is asked.
    Converged,
    /// Go on with this operation. `generation`: the spec that asked for it.
    Operate { plan: Plan, generation: i64 },
    /// Nothing has begun: say what it will cost, then begin.
    Propose { plan: Plan },
    /// A person has to decide.
    Blocked { reason: &'static str, message: String },
}

impl Goal {
    /// Pure: no operation is open; this one, if any, has not begun.
    pub(super) fn is_between_operations(&self, world: &World) -> bool {
        match self {
            Self::Operate { plan, .. } => world.journalled(plan).next().is_none(),
            Self::Propose { .. } | Self::Converged | Self::Blocked { .. } => true,
        }
    }
}

/// The operation that is open, else the one that the spec asks for.
pub(super) fn goal(wanted: &Wanted, world: &World) -> Goal {
    if let Some(open) = open_operation(world) {
        return open;
    }
    if let Some((shard, why)) = world.unreachable.iter().next() {
        // Without every shard nobody knows who owns what.
        return blocked(world.reason(shard), format!("shard {shard}: {why}"));
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

/// The newest operation, unless all of its shards say that it is over. A shard that is no longer there was drained and
/// forgotten, which happens only after that.
fn open_operation(world: &World) -> Option<Goal> {
    let newest = world.newest()?;
    let (plan, generation) = (newest.plan.clone(), newest.generation);
    let over = |shard: &&ShardName| {
        world.journalled(&plan).any(|(name, entry)| name == *shard && entry.course.is_over())
    };
    if plan.shards().iter().filter(|shard| world.views.contains_key(**shard)).all(over) {
        return None;
    }
    Some(Goal::Operate { plan, generation })
}

fn next_id(world: &World) -> OperationId {
    OperationId(world.newest().map_or(0, |newest| newest.plan.id.0) + 1)
}

/// A new set's buckets go to its shards by weight, or all of them to the one shard that already has rows.
fn first_ownership(wanted: &Wanted, world: &World) -> Goal {
    let is_here = |owner: &&String| world.views.keys().any(|name| name.as_str() == **owner);
    if let Some(owner) = wanted.owners_seen.iter().find(|owner| !is_here(owner)) {
        let message = format!(
            "shard {owner} owned buckets, and neither the spec nor any shard names it now; put it back, with weight 0 to drain it"
        );
        return blocked("OwnerForgotten", message);
    }
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
            let shards = world.views.keys().cloned().collect();
            let plan = Plan { id: next_id(world), kind: Kind::FirstOwnership { map, shards }, cost: None };
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
        && !reason.is_passing()
    {
        let message = format!(
            "operation {} went back: {reason}; mend it, then change the spec to try again",
            newest.plan.id
        );
        return blocked(reason.word(), message);
    }
    Goal::Propose { plan: Plan { id: next_id(world), kind: Kind::Rebalance { moves }, cost: None } }
}

fn blocked(reason: &'static str, message: String) -> Goal {
    Goal::Blocked { reason, message }
}

/// What the tests of the decisions share.
#[cfg(test)]
pub(super) mod fixture {
    use longshore_sharding::{BucketCount, operation::PauseBudget};
    use serde_json::{Value, json};

    use super::Wanted;
    use crate::{shard::view::View, shard_set::wanted::WantedShard};

    /// A set of eight buckets.
    pub(crate) fn wanted(shards: &[(&str, u32)]) -> Wanted {
        let shard = |(name, weight): &(&str, u32)| WantedShard {
            name: (*name).try_into().expect("a valid name"),
            secret_name: format!("shard-{name}"),
            weight: *weight,
        };
        Wanted {
            namespace: "shop".into(),
            name: "orders".into(),
            uid: "uid".into(),
            generation: 3,
            buckets: BucketCount::new(8).expect("a power of two"),
            tables: Vec::new(),
            config_map_name: "order-schema".into(),
            shards: shards.iter().map(shard).collect(),
            paused: false,
            pause: PauseBudget { most_ms: 100 },
            copies: 2,
            retained_wal: u64::MAX,
            adopts: None,
            accepts: None,
            owners_seen: Vec::new(),
        }
    }

    /// A shard at rest, as `longshore.observe` answers, but for these fields.
    pub(crate) fn view(fields: &Value) -> View {
        let mut view = json!({"shardsVersion": 1, "armed": {"server": "7/1", "runsOn": "7/1", "restarted": false, "lsn": "0/0"},
               "ownership": [], "operations": [], "withRows": [], "publications": [], "slots": {}, "subscriptions": {},
               "probes": [], "routersBehind": 0, "unanalyzed": false, "schema": "", "registeredSchema": ""});
        for (name, field) in fields.as_object().expect("an object") {
            view[name] = field.clone();
        }
        serde_json::from_value(view).expect("as longshore.observe answers")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        fixture::{self, wanted},
        *,
    };

    /// A shard that owns `owned` of eight buckets (as first and last), with a journal.
    fn view(owned: Option<(u16, u16)>, with_rows: bool, operations: &Value) -> Value {
        let mut ownership = Vec::new();
        let (first, last) = owned.unwrap_or((8, 7));
        let mut run =
            |first: u16, last: u16, state: &str| ownership.push(json!([first, last, state, 1, null, null]));
        if first > 0 {
            run(0, first - 1, "absent");
        }
        if owned.is_some() {
            run(first, last, "owned");
            if last < 7 {
                run(last + 1, 7, "absent");
            }
        }
        let with_rows = if with_rows { json!([[0, 7]]) } else { json!([]) };
        json!({"ownership": ownership, "operations": operations, "withRows": with_rows})
    }

    fn world(views: &[(&str, Value)]) -> World {
        let view =
            |(name, view): &(&str, Value)| ((*name).try_into().expect("a valid name"), fixture::view(view));
        World { views: views.iter().map(view).collect(), ..World::default() }
    }

    fn rolled_back(generation: i64) -> Value {
        json!([{"plan": {"id": 1, "kind": {"rebalance": {"moves": []}}}, "generation": generation,
                "course": {"course": "rolledBack", "reason": {"reason": "Paused"}},
                "startedAt": "2026-01-01T00:00:00Z", "changedAt": "2026-01-01T00:00:00Z"}])
    }

    fn check(wanted: &Wanted, world: &World, expected: &str) {
        let shown = match goal(wanted, world) {
            Goal::Converged => "converged".to_owned(),
            Goal::Blocked { reason, .. } => format!("blocked {reason}"),
            Goal::Operate { plan: Plan { id, kind: Kind::FirstOwnership { map, .. }, .. }, .. } => {
                format!(
                    "{id}: {:?}",
                    map.sizes().into_iter().map(|(s, n)| format!("{s}={n}")).collect::<Vec<_>>()
                )
            }
            Goal::Operate { plan: Plan { id, kind: Kind::Rebalance { moves }, .. }, .. }
            | Goal::Propose { plan: Plan { id, kind: Kind::Rebalance { moves }, .. } } => {
                let shown = moves.iter().map(|m| format!("{}→{} {}", m.from, m.to, m.ranges));
                format!("{id}: {:?}", shown.collect::<Vec<_>>())
            }
            Goal::Propose { plan } => panic!("a first ownership is not proposed: {plan:?}"),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_owned_and_what_is_asked_make_the_goal() {
        let none = json!([]);
        let (empty, full) = (view(None, false, &none), view(None, true, &none));
        let all = view(Some((0, 7)), true, &none);
        let one = world(&[("a", all.clone())]);
        let two = world(&[("a", all.clone()), ("b", empty.clone())]);
        let ab = wanted(&[("a", 1), ("b", 1)]);

        check(&ab, &world(&[("a", empty.clone()), ("b", empty.clone())]), "1: [\"a=4\", \"b=4\"]");
        check(&ab, &world(&[("a", full.clone()), ("b", empty.clone())]), "1: [\"a=8\"]");
        check(&ab, &world(&[("a", full.clone()), ("b", full)]), "blocked RowsOnSeveralShards");
        check(&wanted(&[("a", 1)]), &one, "converged");
        check(&ab, &two, "1: [\"a→b 0-3\"]");
        check(&wanted(&[("b", 1)]), &two, "1: [\"a→b 0-7\"]");
        check(&wanted(&[("a", 0)]), &one, "blocked NoPlan");
        check(&ab, &world(&[("a", all.clone()), ("b", all)]), "blocked OwnershipConflict");
        check(
            &ab,
            &world(&[("a", view(Some((0, 2)), true, &none)), ("b", empty)]),
            "blocked OwnershipUnknown",
        );
    }

    #[test]
    fn what_went_back_is_not_tried_again_until_the_spec_changes() {
        let none = json!([]);
        let ab = wanted(&[("a", 1), ("b", 1)]);
        let after = |generation| {
            let a = view(Some((0, 7)), true, &rolled_back(generation));
            world(&[("a", a), ("b", view(None, false, &none))])
        };
        check(&ab, &after(ab.generation), "blocked Paused");
        check(&ab, &after(ab.generation - 1), "2: [\"a→b 0-3\"]");
    }

    #[test]
    fn an_operation_is_over_though_a_shard_of_it_was_forgotten() {
        let journal = |course: &str| {
            let moves = json!([{"from": "b", "to": "a", "ranges": [{"first": 4, "last": 7}]}]);
            json!([{"plan": {"id": 1, "kind": {"rebalance": {"moves": moves}}}, "generation": 3, "course": {"course": course},
                    "startedAt": "2026-01-01T00:00:00Z", "changedAt": "2026-01-01T00:00:00Z"}])
        };
        let a = wanted(&[("a", 1)]);
        check(&a, &world(&[("a", view(Some((0, 7)), true, &journal("completed")))]), "converged");
        check(&a, &world(&[("a", view(Some((0, 7)), true, &journal("cleaningUp")))]), "1: [\"b→a 4-7\"]");
    }

    #[test]
    fn nothing_begins_while_an_owner_is_missing() {
        let none = json!([]);
        let empty = view(None, false, &none);
        let mut swapped = wanted(&[("b", 1)]);
        swapped.owners_seen = vec!["a".into()];
        check(&swapped, &world(&[("b", empty)]), "blocked OwnerForgotten");
    }
}
