//! The status: computed purely from what was observed.

use std::collections::BTreeSet;

use longshore_crds::{
    KafkaTopicSet,
    kafka_topic_set::{KafkaTopicSetStatus, TopicCounts, TopicPlan, TopicProblem},
};

use super::{Look, Outcome, guard, wanted::Wanted};
use crate::status;

const PROBLEMS_MAX: usize = 50;
const STEPS_MAX: usize = 100;
const MESSAGE_MAX: usize = 1_024;

/// Pure but for the clock, which only stamps conditions that change.
pub(super) fn compute(set: &KafkaTopicSet, wanted: &Wanted, outcome: &Outcome) -> KafkaTopicSetStatus {
    let previous = set.status.clone().unwrap_or_default();
    let conditions = conditions(wanted, outcome).into_iter().map(|(type_, holds, reason, message)| {
        let said = (type_, holds, reason, message.as_str());
        status::condition(&previous.conditions, set.metadata.generation, said)
    });
    let conditions = conditions.collect();
    match outcome {
        Outcome::Unreachable { .. } => KafkaTopicSetStatus {
            observed_generation: set.metadata.generation,
            conditions,
            topics: wanted.owned.iter().cloned().collect(),
            ..previous
        },
        Outcome::Looked(look) => KafkaTopicSetStatus {
            observed_generation: set.metadata.generation,
            conditions,
            cluster_id: Some(look.cluster_id.clone()),
            counts: counts(wanted, look),
            problems: problems(look),
            plan: (wanted.plans || wanted.paused).then(|| plan(look)),
            topics: look.decision.owned.iter().cloned().collect(),
        },
    }
}

fn counts(wanted: &Wanted, look: &Look) -> TopicCounts {
    let decision = &look.decision;
    TopicCounts {
        desired: count(wanted.topics.len()),
        ready: count(decision.ready.iter().filter(|topic| !decision.problems.contains_key(*topic)).count()),
        drifted: count(decision.drifted.len()),
        failed: count(decision.problems.len()),
        reassigning: count(decision.reassigning.len()),
    }
}

fn problems(look: &Look) -> Vec<TopicProblem> {
    let problems = look.decision.problems.iter().take(PROBLEMS_MAX);
    let problems = problems.map(|(topic, problem)| TopicProblem {
        topic: topic.clone(),
        reason: problem.reason.to_owned(),
        message: problem.message.chars().take(MESSAGE_MAX).collect(),
    });
    problems.collect()
}

fn plan(look: &Look) -> TopicPlan {
    let changes = &look.decision.changes;
    let shortened = |step: String| step.chars().take(MESSAGE_MAX).collect();
    TopicPlan {
        hash: changes.hash(),
        creates: count(changes.creates.len()),
        grows: count(changes.grows.len()),
        alters: count(changes.configs.len()),
        reassigns: count(changes.moves.len()),
        deletes: count(changes.deletes.len()),
        steps: changes.in_words().into_iter().take(STEPS_MAX).map(shortened).collect(),
    }
}

fn count(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// A condition's type, whether it holds, reason and message.
type Said = (&'static str, bool, &'static str, String);

fn conditions(wanted: &Wanted, outcome: &Outcome) -> Vec<Said> {
    let look = match outcome {
        Outcome::Unreachable { reason, message } => {
            return vec![
                ("Ready", false, reason, message.clone()),
                ("ClusterReachable", false, reason, message.clone()),
            ];
        }
        Outcome::Looked(look) => look,
    };
    let decision = &look.decision;
    let rests = wanted.plans || wanted.paused;
    let moving = decision.reassigning.len();
    let blocked: Vec<&String> = decision
        .problems
        .iter()
        .filter_map(|(topic, problem)| (problem.reason == guard::IN_USE).then_some(topic))
        .collect();
    let progress = if moving > 0 {
        ("Reassigning", format!("replicas of {moving} topics move"))
    } else {
        ("Applying", format!("{} topics change", changing(look)))
    };
    let progressing = moving > 0 || (!decision.changes.is_empty() && !rests);
    let (ready, reason, message) = ready(wanted, look, &progress, progressing);
    let named =
        |topics: &BTreeSet<String>| topics.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
    vec![
        ("Ready", ready, reason, message),
        ("ClusterReachable", true, "Answered", String::new()),
        (
            "Progressing",
            progressing,
            if progressing { progress.0 } else { "Idle" },
            if progressing { progress.1 } else { String::new() },
        ),
        (
            "Drifted",
            !decision.drifted.is_empty(),
            if decision.drifted.is_empty() { "AsDeclared" } else { "Differs" },
            named(&decision.drifted),
        ),
        (
            "DeletionBlocked",
            !blocked.is_empty(),
            if blocked.is_empty() { "NothingBlocked" } else { guard::IN_USE },
            blocked.iter().take(10).map(|topic| topic.as_str()).collect::<Vec<_>>().join(", "),
        ),
    ]
}

fn ready(
    wanted: &Wanted,
    look: &Look,
    progress: &(&'static str, String),
    progressing: bool,
) -> (bool, &'static str, String) {
    let decision = &look.decision;
    let reasons: BTreeSet<&'static str> = decision.problems.values().map(|problem| problem.reason).collect();
    if let Some(first) = reasons.first() {
        let reason = if reasons.len() == 1 { first } else { "TopicProblems" };
        let said = decision.problems.iter().take(5).map(|(topic, it)| format!("{topic}: {}", it.message));
        let said: Vec<_> = said.collect();
        let more = decision.problems.len().saturating_sub(said.len());
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        return (false, reason, format!("{}{more}", said.join("; ")));
    }
    let waits = !decision.changes.is_empty();
    match (wanted.plans, wanted.paused) {
        (true, _) if waits => (false, "Planned", format!("{} topics would change", changing(look))),
        (_, true) if waits => (false, "Paused", format!("{} topics would change", changing(look))),
        _ if progressing => (false, progress.0, progress.1.clone()),
        _ => (true, "Converged", format!("{} topics are as declared", decision.ready.len())),
    }
}

fn changing(look: &Look) -> usize {
    let changes = look.decision.changes.in_words();
    changes
        .iter()
        .filter_map(|step| step.split_once(':'))
        .map(|(topic, _)| topic)
        .collect::<BTreeSet<_>>()
        .len()
}
