//! Operations in the status: what is planned, what is under way, what was. Pure.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use longshore_crds::order_shard_set::{ForecastStatus, MoveStatus, OperationStatus, ResultStatus};
use longshore_sharding::operation::{Cost, Course, Limits, OperationId, Phase, Plan, Progress, progress};

use super::{Outcome, observe, observe::World, wanted::Wanted};
use crate::shard::view::{Arrivals, Journalled};

/// How many operations the status remembers, as many as the journal.
const REMEMBERED: usize = 10;
/// What a set's first forecast assumes: little, so that people are rather pleased.
const FIRST_SPEED: Speed = Speed { bytes_per_second: 8e6, buckets_per_second: 50.0 };

/// How fast the set's last operation was.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Speed {
    bytes_per_second: f64,
    buckets_per_second: f64,
}

/// The operation that is planned or under way, and those that ended, newest first.
pub(super) fn operations(
    wanted: &Wanted,
    world: &World,
    outcome: &Outcome,
) -> (Option<OperationStatus>, Vec<OperationStatus>) {
    let mut entries: BTreeMap<OperationId, &Journalled> = BTreeMap::new();
    for entry in world.views.values().flat_map(|view| &view.operations) {
        entries.insert(entry.plan.id, entry);
    }
    let mut journalled: Vec<_> =
        entries.values().rev().map(|entry| operation(entry, wanted, world, outcome)).collect();
    let current = journalled.first().is_some_and(|newest| newest.ended_at.is_none());
    let current = if current { Some(journalled.remove(0)) } else { None };
    journalled.truncate(REMEMBERED);
    let planned = match outcome {
        Outcome::Planned { plan, .. } => Some(planned(plan, wanted, world)),
        Outcome::Faulty(_)
        | Outcome::Converged
        | Outcome::Acted(_)
        | Outcome::Waiting(_)
        | Outcome::Blocked { .. } => None,
    };
    (current.or(planned), journalled)
}

fn planned(plan: &Plan, wanted: &Wanted, world: &World) -> OperationStatus {
    let seen = Progress { phase: Phase::Planning, buckets_moved: 0, buckets_total: plan.buckets() };
    let message = if wanted.paused { "spec.paused is set" } else { "about to begin" };
    described(plan, seen, message.to_owned(), wanted, world)
}

fn operation(entry: &Journalled, wanted: &Wanted, world: &World, outcome: &Outcome) -> OperationStatus {
    let over = world.journalled(&entry.plan).all(|(_, entry)| entry.course.is_over());
    let message = match (&entry.course, outcome) {
        (Course::RolledBack { reason }, _) => reason.to_string(),
        (Course::Completed, _) => "all buckets are with their new owners".to_owned(),
        (_, Outcome::Acted(deed)) => deed.clone(),
        (Course::Back { reason }, _) => format!("going back: {reason}"),
        (_, Outcome::Waiting(reason)) => reason.to_string(),
        (_, Outcome::Blocked { message, .. }) => message.clone(),
        (_, Outcome::Converged | Outcome::Faulty(_) | Outcome::Planned { .. }) => String::new(),
    };
    OperationStatus {
        result: if over { result(entry, world) } else { None },
        started_at: Some(entry.started_at.clone()),
        ended_at: over.then(|| entry.changed_at.clone()),
        ..described(&entry.plan, how_far(entry, wanted, world), message, wanted, world)
    }
}

fn how_far(entry: &Journalled, wanted: &Wanted, world: &World) -> Progress {
    let total = entry.plan.buckets();
    let ended = |phase, buckets_moved| Progress { phase, buckets_moved, buckets_total: total };
    match &entry.course {
        Course::Completed => ended(Phase::Completed, total),
        Course::RolledBack { .. } => ended(Phase::RolledBack, 0),
        Course::Forward | Course::Back { .. } | Course::CleaningUp => {
            progress(&entry.plan, &observe::observed(&entry.plan, world, wanted, Limits::default()))
        }
    }
}

fn described(
    plan: &Plan,
    seen: Progress,
    message: String,
    wanted: &Wanted,
    world: &World,
) -> OperationStatus {
    let Progress { phase, buckets_moved, buckets_total } = seen;
    let moves = plan.moves().iter().map(|m| MoveStatus {
        from: m.from.to_string(),
        to: m.to.to_string(),
        buckets: i32::try_from(m.ranges.size()).unwrap_or(i32::MAX),
    });
    OperationStatus {
        id: plan.id.0,
        phase,
        progress: format!("{buckets_moved}/{buckets_total}"),
        buckets_moved: i32::try_from(buckets_moved).unwrap_or(i32::MAX),
        buckets_total: i32::try_from(buckets_total).unwrap_or(i32::MAX),
        message,
        moves: moves.collect(),
        forecast: plan.cost.map(|cost| forecast(cost, plan, wanted, speed_before(plan.id, world))),
        result: None,
        started_at: None,
        ended_at: None,
    }
}

fn forecast(cost: Cost, plan: &Plan, wanted: &Wanted, speed: Speed) -> ForecastStatus {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "an estimate in seconds"
    )]
    let seconds = |amount: i64, per_second: f64| (amount as f64 / per_second).ceil() as i64;
    ForecastStatus {
        rows: cost.rows,
        bytes: cost.bytes,
        copy_seconds: seconds(cost.bytes, speed.bytes_per_second),
        hand_over_seconds: seconds(plan.buckets().into(), speed.buckets_per_second),
        pause_millis: i64::try_from(wanted.pause.most_ms).unwrap_or(i64::MAX),
    }
}

/// From the newest operation before this one of which everything is known.
fn speed_before(id: OperationId, world: &World) -> Speed {
    let earlier = world.views.values().flat_map(|view| &view.operations).filter(|entry| entry.plan.id < id);
    let known = earlier.filter_map(|entry| Some((entry, entry.plan.cost?, result(entry, world)?)));
    let newest = known.max_by_key(|(entry, ..)| entry.plan.id);
    newest.map_or(FIRST_SPEED, |(entry, cost, result)| {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let per = |amount: i64, seconds: i64| (amount.max(1) as f64) / (seconds.max(1) as f64);
        Speed {
            bytes_per_second: per(cost.bytes, result.copy_seconds),
            buckets_per_second: per(entry.plan.buckets().into(), result.hand_over_seconds),
        }
    })
}

/// Of all shards that took something over, the sum of rows and the worst of pauses.
fn result(entry: &Journalled, world: &World) -> Option<ResultStatus> {
    let arrivals: Vec<&Arrivals> =
        world.journalled(&entry.plan).filter_map(|(_, entry)| entry.result.as_ref()).collect();
    let first = arrivals.iter().map(|a| a.first_asked_at.0).min()?;
    let last = arrivals.iter().map(|a| a.last_arrived_at.0).max()?;
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds")]
    let worst = |of: fn(&Arrivals) -> f64| arrivals.iter().map(|a| of(a).ceil() as i64).max().unwrap_or(0);
    Some(ResultStatus {
        rows: arrivals.iter().map(|a| a.rows).sum(),
        copy_seconds: seconds_between(entry.started_at.0, first),
        hand_over_seconds: seconds_between(first, last),
        pause_millis_p50: worst(|a| a.pause_millis.p50),
        pause_millis_p99: worst(|a| a.pause_millis.p99),
        pause_millis_max: worst(|a| a.pause_millis.max),
    })
}

fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.duration_since(from).as_secs().max(0)
}
