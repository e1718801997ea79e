//! Every action of the operator in order, and what is to happen to each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tokio::sync::watch;

/// What becomes of an action and of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// It never reaches the server; the operator dies.
    Before,
    /// It is done and answered; then the operator dies.
    After,
    /// It is done; the operator dies before it hears so.
    Lost,
    /// It is done; the connection ends without an answer, and the operator lives.
    Cut,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Before, Self::After, Self::Lost, Self::Cut];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Lost => "lost",
            Self::Cut => "cut",
        })
    }
}

/// Which actions a fault hits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    /// None: everything is recorded, and passes.
    #[default]
    Nothing,
    /// Each signature, the first time that it is met.
    EachOnce(Fault),
    /// The first action with this signature, and no other.
    Only {
        /// As in [`Recorded::signature`].
        signature: String,
        /// What happens to it.
        fault: Fault,
    },
    /// The first hand_over, and no other.
    FirstHandOver(Fault),
}

/// How often an action that is repeated counts as another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeats {
    /// Never.
    Never,
    /// After each hand_over.
    EachHandOver,
    /// Whenever the number of hand_overs has doubled: for what every start of an operator does.
    EachDoubling,
}

/// What the operator is about to do, as a proxy reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// For example `hand_over` or `status`.
    pub(super) kind: String,
    /// What tells this step from others of its kind.
    pub(super) detail: String,
    pub(super) repeats: Repeats,
}

impl Step {
    const HAND_OVER: &str = "hand_over";
    /// Who may lead: others than the leader ask for it as well.
    const LEASE: &str = "lease";

    /// The name that it has in every run.
    fn signature(&self, server: &str, hand_overs: u64, sparse: bool) -> String {
        let thinned = sparse && self.kind != Self::HAND_OVER && self.repeats == Repeats::EachHandOver;
        let repeats = if thinned { Repeats::EachDoubling } else { self.repeats };
        let detail = if self.detail.is_empty() { String::new() } else { format!(" {}", self.detail) };
        let count = match repeats {
            Repeats::Never => String::new(),
            Repeats::EachHandOver => format!(" @{hand_overs}"),
            Repeats::EachDoubling => {
                format!(" @2^{}", hand_overs.checked_ilog2().map_or(0, |log| log + 1))
            }
        };
        format!("{server} {}{detail}{count}", self.kind)
    }
}

/// An action that passed, or was hit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recorded {
    /// The server, what was done there, and how far the operation was: the same in every run.
    pub signature: String,
    /// For example `hand_over`.
    pub kind: String,
    /// What happened to it.
    pub fault: Option<Fault>,
    /// Whether it took effect; `None` while that is not known.
    pub committed: Option<bool>,
}

/// A proxy's hold on an action under way.
#[derive(Debug)]
pub(super) struct Ticket {
    index: usize,
    pub(super) fault: Option<Fault>,
}

/// The actions of one run. Shared by its proxies.
#[derive(Debug)]
pub struct Recorder {
    inner: Mutex<Inner>,
    /// How often an operator was doomed. A connection that began under an earlier number is one of a dead operator.
    dooms: watch::Sender<u64>,
    doomed: watch::Sender<bool>,
    hand_overs: watch::Sender<u64>,
    /// Rises with everything that happens to an action.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    aim: Aim,
    sparse: bool,
    actions: Vec<Recorded>,
    /// How many actions came before these.
    forgotten: usize,
    /// Signatures that were hit, or are about to be.
    hit: BTreeSet<String>,
    /// Signatures of what was ever committed.
    done: BTreeSet<String>,
    /// Whether this operator asked for more than its Lease.
    leads: bool,
}

impl Inner {
    fn action(&mut self, ticket: &Ticket) -> Option<&mut Recorded> {
        self.actions.get_mut(ticket.index.checked_sub(self.forgotten)?)
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            dooms: watch::Sender::new(0),
            doomed: watch::Sender::new(false),
            hand_overs: watch::Sender::new(0),
            changes: watch::Sender::new(0),
        }
    }
}

impl Recorder {
    /// From now on, these actions are hit.
    pub fn aim(&self, aim: Aim) {
        self.lock().aim = aim;
    }

    /// What is repeated, hand_overs aside, counts as another action only when the number of hand_overs has doubled.
    pub fn count_sparsely(&self) {
        self.lock().sparse = true;
    }

    /// Begins anew: forgets the actions so far. Those still under way are not of interest.
    pub fn forget(&self) {
        let mut inner = self.lock();
        inner.forgotten += inner.actions.len();
        inner.actions.clear();
    }

    /// All actions so far, in the order in which they were asked for.
    pub fn actions(&self) -> Vec<Recorded> {
        self.lock().actions.clone()
    }

    /// How many actions were asked for so far.
    pub fn count(&self) -> usize {
        self.lock().actions.len()
    }

    /// How many different actions were hit or took effect: what rises while the operator gets on.
    pub fn distinct(&self) -> usize {
        let inner = self.lock();
        inner.hit.union(&inner.done).count()
    }

    /// How many actions were hit, by their kind.
    pub fn hits(&self) -> BTreeMap<String, u64> {
        let mut hits = BTreeMap::new();
        for action in self.lock().actions.iter().filter(|action| action.fault.is_some()) {
            *hits.entry(action.kind.clone()).or_default() += 1;
        }
        hits
    }

    /// The signatures of what was hit, in order.
    pub fn hit_signatures(&self) -> Vec<String> {
        let inner = self.lock();
        inner
            .actions
            .iter()
            .filter(|action| action.fault.is_some())
            .map(|action| action.signature.clone())
            .collect()
    }

    /// The number of hand_overs that were committed, as it rises.
    pub fn hand_overs(&self) -> watch::Receiver<u64> {
        self.hand_overs.subscribe()
    }

    /// Returns when all actions so far are as asked.
    pub async fn until(&self, mut asked: impl FnMut(&[Recorded]) -> bool) {
        let mut changes = self.changes.subscribe();
        // The sender is ours: it cannot be gone.
        drop(changes.wait_for(|_| asked(&self.lock().actions)).await);
    }

    /// Returns when the operator must be killed.
    pub async fn until_doomed(&self) {
        let mut doomed = self.doomed.subscribe();
        // The sender is ours: it cannot be gone.
        drop(doomed.wait_for(|doomed| *doomed).await);
    }

    /// Returns when the operator that was started last acts as the leader.
    pub async fn until_led(&self) {
        let mut changes = self.changes.subscribe();
        // The sender is ours: it cannot be gone.
        drop(changes.wait_for(|_| self.lock().leads).await);
    }

    /// Whether the operator must be killed.
    pub fn is_doomed(&self) -> bool {
        *self.doomed.borrow()
    }

    /// The operator is dead: connections that begin now are another's.
    pub fn buried(&self) {
        self.lock().leads = false;
        self.doomed.send_replace(false);
    }

    /// An action is about to be forwarded: what is to become of it?
    pub(super) fn ask(&self, server: &str, step: &Step) -> Ticket {
        let hand_overs = *self.hand_overs.borrow();
        let mut inner = self.lock();
        inner.leads |= step.kind != Step::LEASE;
        let signature = step.signature(server, hand_overs, inner.sparse);
        let fault = match &inner.aim {
            Aim::Nothing => None,
            Aim::EachOnce(fault) => Some(*fault),
            Aim::Only { signature: wanted, fault } => (*wanted == signature).then_some(*fault),
            Aim::FirstHandOver(fault) => (step.kind == Step::HAND_OVER && hand_overs == 0).then_some(*fault),
        };
        let fault = fault.filter(|_| !*self.doomed.borrow() && inner.hit.insert(signature.clone()));
        let kind = step.kind.clone();
        inner.actions.push(Recorded { signature, kind, fault, committed: None });
        let index = inner.forgotten + inner.actions.len() - 1;
        drop(inner);
        self.changes.send_modify(|changes| *changes += 1);
        Ticket { index, fault }
    }

    /// The effect is there to stay.
    pub(super) fn committed(&self, ticket: &Ticket) {
        let mut inner = self.lock();
        let Some(action) = inner.action(ticket) else { return };
        action.committed = Some(true);
        let (signature, is_hand_over) = (action.signature.clone(), action.kind == Step::HAND_OVER);
        inner.done.insert(signature);
        drop(inner);
        if is_hand_over {
            self.hand_overs.send_modify(|count| *count += 1);
        }
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The server refused it: it was not hit after all, and its next try may be.
    pub(super) fn refused(&self, ticket: &Ticket) {
        let mut inner = self.lock();
        let Some(action) = inner.action(ticket) else { return };
        action.committed = Some(false);
        if action.fault.take().is_some() {
            let signature = action.signature.clone();
            inner.hit.remove(&signature);
        }
        drop(inner);
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The operator is to die: nothing of it passes from now on.
    pub(super) fn doom(&self) {
        self.doomed.send_replace(true);
        self.dooms.send_modify(|dooms| *dooms += 1);
    }

    /// For a connection: tells when the operator that it belongs to was doomed.
    pub(super) fn life(&self) -> Life {
        let dooms = self.dooms.subscribe();
        let born = if self.is_doomed() { None } else { Some(*dooms.borrow()) };
        Life { dooms, born }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which operator a connection belongs to.
#[derive(Clone, Debug)]
pub(super) struct Life {
    dooms: watch::Receiver<u64>,
    /// None: it began while its operator was doomed already.
    born: Option<u64>,
}

impl Life {
    /// Whether the operator may still be heard.
    pub(super) fn is_over(&self) -> bool {
        self.born != Some(*self.dooms.borrow())
    }

    /// Returns when it may not.
    pub(super) async fn ended(&mut self) {
        let born = self.born;
        if self.dooms.wait_for(|dooms| born != Some(*dooms)).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn step(kind: &str, repeats: Repeats) -> Step {
        Step { kind: kind.to_owned(), detail: "1 b".to_owned(), repeats }
    }

    fn hand_over(recorder: &Recorder) {
        recorder.committed(&recorder.ask("a", &step("hand_over", Repeats::EachHandOver)));
    }

    #[test]
    fn each_signature_is_hit_once_and_counts_anew_as_the_operation_goes_on() {
        let recorder = Recorder::default();
        recorder.aim(Aim::EachOnce(Fault::Lost));
        let ask = |kind, repeats| recorder.ask("a", &step(kind, repeats)).fault;
        assert_eq!(ask("probe", Repeats::EachHandOver), Some(Fault::Lost));
        assert_eq!(ask("probe", Repeats::EachHandOver), None);
        assert_eq!(ask("claim", Repeats::EachDoubling), Some(Fault::Lost));
        assert_eq!(ask("expect", Repeats::Never), Some(Fault::Lost));
        let hits = |kind, repeats| {
            hand_over(&recorder);
            ask(kind, repeats).is_some()
        };
        assert!(hits("probe", Repeats::EachHandOver));
        assert!(hits("claim", Repeats::EachDoubling), "2 are twice 1");
        assert!(!hits("claim", Repeats::EachDoubling), "3 are not twice 2");
        assert!(!hits("expect", Repeats::Never));
    }

    #[test]
    fn counted_sparsely_only_hand_overs_are_each_another() {
        let recorder = Recorder::default();
        recorder.count_sparsely();
        recorder.aim(Aim::EachOnce(Fault::After));
        let hits = |kind| recorder.ask("a", &step(kind, Repeats::EachHandOver)).fault.is_some();
        (0..2).for_each(|_| hand_over(&recorder));
        assert!(hits("probe") && hits("hand_over"));
        hand_over(&recorder);
        assert!(!hits("probe") && hits("hand_over"), "3 are not twice 2");
    }

    #[test]
    fn what_the_server_refused_is_tried_again() {
        let recorder = Recorder::default();
        recorder.aim(Aim::EachOnce(Fault::After));
        let refused = recorder.ask("a", &step("hand_over", Repeats::EachHandOver));
        recorder.refused(&refused);
        assert_eq!(recorder.hits(), BTreeMap::new());
        assert_eq!(recorder.ask("a", &step("hand_over", Repeats::EachHandOver)).fault, Some(Fault::After));
    }

    #[tokio::test]
    async fn who_asks_for_a_lease_does_not_lead_yet() {
        let recorder = Recorder::default();
        let leads = || recorder.until_led().now_or_never().is_some();
        recorder.ask("api", &step("lease", Repeats::Never));
        assert!(!leads());
        recorder.ask("a", &step("claim", Repeats::Never));
        assert!(leads());
        recorder.buried();
        assert!(!leads(), "that was another one");
    }

    #[test]
    fn a_connection_dies_with_its_operator_and_the_next_operator_lives() {
        let recorder = Recorder::default();
        let before = recorder.life();
        recorder.doom();
        let meanwhile = recorder.life();
        assert!(before.is_over() && meanwhile.is_over() && recorder.is_doomed());
        recorder.buried();
        assert!(before.is_over() && meanwhile.is_over());
        assert!(!recorder.life().is_over());
    }
}
