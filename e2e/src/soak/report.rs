//! What came of a soak, for people and as JSON.

use std::{collections::BTreeMap, fmt};

use checker::BypassSummary;
use serde::Serialize;

use super::{
    memory::Memory,
    plan::{Act, Step},
};
use crate::trial::Score;

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub(super) command: String,
    pub(super) seed: u64,
    pub(super) minutes_asked: f64,
    /// How long it ran.
    pub(super) minutes: f64,
    /// Stopped before its time.
    pub(super) interrupted: bool,
    pub(super) steps_done: usize,
    /// What was done while rows moved, by kind.
    pub(super) kills: BTreeMap<&'static str, u64>,
    /// How often an operator ended without being killed, frozen ones aside.
    pub(super) ended_by_itself: u64,
    pub(super) hand_overs: u64,
    #[serde(flatten)]
    pub(super) score: Score,
    /// What writers without a router met.
    pub(super) bypass: BypassSummary,
    pub(super) memory: Memory,
    pub(super) steps: Vec<StepReport>,
    /// What the soak itself found wrong.
    pub(super) wrong: Vec<String>,
}

/// One step of the plan, as it went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StepReport {
    number: u64,
    plan: String,
    pub(super) seconds: f64,
    acts: Vec<Acted>,
    pub(super) failed_requests: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Acted {
    kind: &'static str,
    came_of_it: CameOfIt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum CameOfIt {
    Done,
    /// The set was converged before its moment.
    Missed,
    /// It would have ended an operator whose memory is measured.
    LeftOut,
}

impl StepReport {
    pub(super) fn new(step: &Step) -> Self {
        let plan = step.to_string();
        Self { number: step.number, plan, seconds: 0.0, acts: Vec::new(), failed_requests: 0 }
    }

    pub(super) fn done(&mut self, act: &Act) {
        self.add(act, CameOfIt::Done);
    }

    pub(super) fn missed(&mut self, act: &Act) {
        self.add(act, CameOfIt::Missed);
    }

    pub(super) fn left_out(&mut self, act: &Act) {
        self.add(act, CameOfIt::LeftOut);
    }

    fn add(&mut self, act: &Act, came_of_it: CameOfIt) {
        self.acts.push(Acted { kind: act.kind(), came_of_it });
    }

    pub(super) fn kinds_done(&self) -> impl Iterator<Item = &'static str> {
        self.acts.iter().filter(|acted| acted.came_of_it == CameOfIt::Done).map(|acted| acted.kind)
    }

    fn killed_a_server(&self) -> bool {
        self.kinds_done().any(|kind| kind == "server")
    }
}

impl Report {
    /// What must not have happened, in words; empty if all is well. Requests may fail where a server was down in this step, or
    /// in the one before: a request is retried for half a minute.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.score.faults(true);
        let mut server_was_down = false;
        for step in &self.steps {
            let down_now = step.killed_a_server();
            if step.failed_requests > 0 && !down_now && !server_was_down {
                let failed = step.failed_requests;
                faults.push(format!("step {}: {failed} requests failed with all servers up", step.number));
            }
            server_was_down = down_now;
        }
        faults.extend(self.memory.faults());
        faults.extend(self.wrong.iter().cloned());
        if self.hand_overs == 0 {
            faults.push("no bucket was handed over".to_owned());
        }
        if self.bypass.placed == 0 || self.bypass.refused.is_empty() {
            faults.push("writers without a router were never accepted, or never refused".to_owned());
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let early = if self.interrupted { ", stopped before its time" } else { "" };
        writeln!(
            f,
            "soak        {:.1} of {:.1} minutes{early}; seed {}; {} steps, {} hand_overs",
            self.minutes, self.minutes_asked, self.seed, self.steps_done, self.hand_overs
        )?;
        let named =
            |counts: Vec<String>| if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        let kills = self.kills.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let kinds = self.steps.iter().flat_map(|step| &step.acts);
        let count = |wanted| kinds.clone().filter(|acted| acted.came_of_it == wanted).count();
        writeln!(
            f,
            "kills       {}; {} missed their moment, {} left out to let the operator live; it ended by itself {} times",
            named(kills),
            count(CameOfIt::Missed),
            count(CameOfIt::LeftOut),
            self.ended_by_itself
        )?;
        write!(f, "{}", self.score)?;
        let refused = self.bypass.refused.iter().map(|(code, count)| format!("{code} {count}")).collect();
        writeln!(
            f,
            "bypassing   attempted {}, placed {}, cancelled {}, unsure {}, refused: {}",
            self.bypass.attempted,
            self.bypass.placed,
            self.bypass.cancelled,
            self.bypass.unsure,
            named(refused)
        )?;
        write!(f, "{}", self.memory)?;
        self.score.write_invariants(f)
    }
}
