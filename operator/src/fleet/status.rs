//! What is said of a fleet: computed purely from what was decided.

use longshore_crds::{
    ServiceFleet,
    service_fleet::{FleetSummary, ServiceFleetStatus, ServiceState, ServiceStatus},
};

use super::{
    observed::{Pods, Rollout},
    wanted::Wanted,
};
use crate::status;

const MESSAGE_CHARS_MAX: usize = 1_024;
/// Services whose troubles stand in a condition; all of them stand in `services`.
const NAMED_MAX: usize = 5;

/// What is said of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) state: ServiceState,
    reason: &'static str,
    message: String,
}

impl Said {
    pub(super) fn failing(reason: &'static str, message: String) -> Self {
        Self { state: ServiceState::Failing, reason, message }
    }

    pub(super) fn waiting(reason: &'static str, message: String) -> Self {
        Self { state: ServiceState::Waiting, reason, message }
    }

    pub(super) fn rolling_out(reason: &'static str, message: String) -> Self {
        Self { state: ServiceState::RollingOut, reason, message }
    }

    pub(super) fn draining(reason: &'static str, message: String) -> Self {
        Self { state: ServiceState::Draining, reason, message }
    }

    pub(super) fn paused() -> Self {
        Self::waiting("Paused", "it would be changed; spec.paused is set".to_owned())
    }

    /// What keeps pods from coming up, if anything.
    pub(super) fn of_pods(now: &Rollout, pods: Option<&Pods>) -> Option<Self> {
        let serving = match now.ready {
            0 => "no pod serves".to_owned(),
            ready => format!("{ready} others serve"),
        };
        let problem = pods.and_then(|pods| pods.problem.as_ref()).map(|(count, problem)| {
            Self::failing(problem.reason, format!("{count} of its pods: {}; {serving}", problem.message))
        });
        let refused = || {
            let why = now.refusal.as_ref()?;
            Some(Self::failing("PodsNotCreated", format!("no pod can be made: {why}; {serving}")))
        };
        let stuck = || {
            let message = format!("its new pods do not become ready; {serving}");
            now.is_stuck.then(|| Self::failing("RolloutStuck", message))
        };
        problem.or_else(refused).or_else(stuck)
    }

    pub(super) fn of_rollout(now: &Rollout, declared: i32) -> Self {
        let Rollout { replicas, updated, ready, .. } = now;
        if now.is_over(declared) {
            return Self { state: ServiceState::Ready, reason: "Available", message: String::new() };
        }
        if now.is_observed && now.updated == now.total && now.updated == now.replicas {
            return Self::rolling_out("PodsNotReady", format!("{ready} of {replicas} pods are ready"));
        }
        Self::rolling_out("RollingOut", format!("{updated} of {replicas} pods are new, {ready} are ready"))
    }

    pub(super) fn status(self, name: &str, now: Option<&Rollout>) -> ServiceStatus {
        let number = |of: fn(&Rollout) -> i32| now.map_or(0, of);
        ServiceStatus {
            name: name.to_owned(),
            state: self.state,
            reason: self.reason.to_owned(),
            message: self.message.chars().take(MESSAGE_CHARS_MAX).collect(),
            image: now.and_then(|now| now.image.clone()),
            replicas: number(|now| now.replicas),
            ready_replicas: number(|now| now.ready),
            updated_replicas: number(|now| now.updated),
        }
    }
}

/// Pure but for the clock, which only stamps conditions that change.
pub(super) fn compute(
    fleet: &ServiceFleet,
    wanted: &Wanted,
    previous: Option<&ServiceFleetStatus>,
    mut services: Vec<ServiceStatus>,
) -> ServiceFleetStatus {
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let of = |states: &[ServiceState]| -> Vec<&ServiceStatus> {
        services.iter().filter(|service| states.contains(&service.state)).collect()
    };
    let (ready, failing) = (of(&[ServiceState::Ready]), of(&[ServiceState::Failing]));
    let active = of(&[ServiceState::RollingOut, ServiceState::Waiting, ServiceState::Draining]);
    let (total, all_ready) = (services.len(), ready.len() == services.len());
    let reason = match (failing.first().or(active.first()), all_ready) {
        (Some(first), _) => first.reason.as_str(),
        (None, _) => "Available",
    };
    let message = if all_ready { String::new() } else { told(&[failing.as_slice(), &active].concat()) };
    let troubles = told(&failing);
    let before = previous.map_or(&[][..], |previous| &previous.conditions);
    let condition = |type_, holds, reason, message| {
        status::condition(before, fleet.metadata.generation, (type_, holds, reason, message))
    };
    let stands = if wanted.paused { "Paused" } else { "Idle" };
    let conditions = vec![
        condition("Ready", all_ready, reason, &message),
        condition(
            "Progressing",
            !active.is_empty() && !wanted.paused,
            active.first().filter(|_| !wanted.paused).map_or(stands, |first| first.reason.as_str()),
            &told(&active),
        ),
        condition(
            "Degraded",
            !failing.is_empty(),
            failing.first().map_or("AsExpected", |first| first.reason.as_str()),
            &troubles,
        ),
    ];
    let summary = FleetSummary {
        services: format!("{}/{total}", ready.len()),
        ready: i32::try_from(ready.len()).unwrap_or(i32::MAX),
        total: i32::try_from(total).unwrap_or(i32::MAX),
        active: match active.as_slice() {
            [] => String::new(),
            [only] => format!("{} {}", only.name, only.reason),
            [first, others @ ..] => format!("{} {} (+{})", first.name, first.reason, others.len()),
        },
    };
    ServiceFleetStatus { observed_generation: fleet.metadata.generation, conditions, summary, services }
}

fn told(services: &[&ServiceStatus]) -> String {
    let one = |service: &&ServiceStatus| match service.message.as_str() {
        "" => format!("{}: {}", service.name, service.reason),
        message => format!("{}: {message}", service.name),
    };
    let mut text: Vec<String> = services.iter().take(NAMED_MAX).map(one).collect();
    if let Some(more) = services.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        text.push(format!("and {more} more services"));
    }
    text.join("; ")
}

/// What people are told at once: everything but numbers and what counts them.
pub(super) fn outline(status: &ServiceFleetStatus) -> impl PartialEq + use<> {
    let of = |service: &ServiceStatus| (service.name.clone(), service.state, service.reason.clone());
    let services: Vec<_> = status.services.iter().map(of).collect();
    (status.observed_generation, status::outline(&status.conditions), services)
}
