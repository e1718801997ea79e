//! The operation against a model of two shards, small enough that every state it can reach is looked at.
//!
//! Shard `a` owns three buckets, and two of them go to `b`. Everything that PostgreSQL does in one transaction is one step
//! here, except where what happens in between matters: a writer holds its gate over three steps; a handover is in the WAL
//! before its shard's own snapshots show it; the operator looks at one shard, then at the other, then acts, and the world
//! may have changed each time. [`search`] tries every order of the steps.

mod act;
mod search;
mod tests;
mod view;

use std::{cell::RefCell, collections::HashMap};

use super::*;
use crate::BucketRange;
use view::View;

const BUCKETS: usize = 3;
/// The buckets that the plan moves from `a` to `b`.
const MOVING: std::ops::Range<u8> = 1..3;
const OPERATION: OperationId = OperationId(7);

/// A shard's number: 0 is `a`, 1 is `b`. The stream with the number of a shard leaves it.
type Side = usize;

const A: Side = 0;
const B: Side = 1;

/// Rows of one bucket, a bit each.
type Rows = u8;

/// What a stream carries, in commit order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Message {
    Insert { bucket: u8, rows: Rows },
    Delete { bucket: u8 },
    HandedOver { bucket: u8, epoch: u8, rows: Rows },
    Mark,
}

/// A bucket at one shard, as a snapshot shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Bucket {
    state: Ownership,
    epoch: u8,
    /// Its peer is the other shard and its operation is ours.
    meant: bool,
    rows: Rows,
    /// A handover is in the WAL and on its way, while its transaction still holds the gate and no snapshot shows it.
    giving: bool,
}

impl Bucket {
    /// Whether a writer that comes now is let in.
    fn takes_writes(&self) -> bool {
        self.state == Ownership::Owned && !self.giving
    }
}

/// A stream and its three objects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Pipe {
    publication: bool,
    slot: bool,
    subscription: bool,
    synchronised: bool,
    /// The slot holds back more than it may.
    full: bool,
    /// A mark arrived, and no handover was made since.
    fresh: bool,
    queue: Vec<Message>,
}

impl Pipe {
    fn lose_slot(&mut self) {
        (self.slot, self.full) = (false, false);
        self.queue.clear();
    }
}

/// A transaction that writes one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Writer {
    side: Side,
    bucket: u8,
    row: Rows,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Only where a rule is broken: it waits for the gate, and will believe what it saw when it began to.
    Entering { owned_before: bool },
    /// It holds the gate, and its row waits for the commit.
    Wrote,
}

/// A statement that reads a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reader {
    side: Side,
    bucket: u8,
    /// The epoch and the rows in its snapshot.
    epoch: u8,
    saw: Rows,
    /// What was acknowledged before it began.
    must: Rows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operator {
    Idle,
    Looked(Side, View),
    /// This action is on its way to its shard.
    Decided(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    shards: [[Bucket; BUCKETS]; 2],
    journals: [Option<u8>; 2],
    pipes: [Pipe; 2],
    acknowledged: [Rows; BUCKETS],
    writers: Vec<Writer>,
    reader: Option<Reader>,
    operator: Operator,
    /// The shards that know the newest operator's term.
    claimed: [bool; 2],
    /// What was on its way when an operator died or lost its connection: it may still act.
    ghosts: Vec<u8>,
    reverted: bool,
    left: Bounds,
}

/// How often what makes the world grow may still happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Bounds {
    writes: u8,
    /// Writers at the same time.
    writers: u8,
    reads: u8,
    /// An operator dies with an action under way, and another one takes over.
    crashes: u8,
    /// The operator loses its connection to a shard while an action is under way, and goes on under the same term.
    cuts: u8,
    lost_slots: u8,
    full_slots: u8,
    corruptions: u8,
    reverts: u8,
}

/// What may happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Look(Side),
    /// The action happens; `whole`: a dropped subscription takes its slot along.
    Act {
        whole: bool,
    },
    Claim(Side),
    Ghost(usize),
    Deliver(Side),
    Copy(Side),
    /// The handovers of a shard become visible there.
    Settle(Side),
    Enter(Side, u8),
    Write(usize),
    Commit(usize),
    Read(Side, u8),
    Answer,
    Crash,
    Cut,
    LoseSlot(Side),
    FillSlot(Side),
    Corrupt(Side, u8),
    Revert,
}

impl Step {
    /// Whether it happens by itself sooner or later: the operation must come to its end by such steps alone.
    fn is_certain(self) -> bool {
        match self {
            Self::Look(_)
            | Self::Act { .. }
            | Self::Claim(_)
            | Self::Ghost(_)
            | Self::Deliver(_)
            | Self::Copy(_)
            | Self::Settle(_)
            | Self::Write(_)
            | Self::Commit(_)
            | Self::Answer => true,
            Self::Enter(..)
            | Self::Read(..)
            | Self::Crash
            | Self::Cut
            | Self::LoseSlot(_)
            | Self::FillSlot(_)
            | Self::Corrupt(..)
            | Self::Revert => false,
        }
    }
}

/// A rule of the agent or of the operator, to be broken: the model must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    HandoverWaitsForGates,
    StateIsReadAfterTheGate,
    ReadsTryTheGate,
    ReadsCompareEpochs,
    DigestIsCompared,
    RaisingRaisesTheEpoch,
    RevokingRaisesTheEpoch,
    HandoverAwaitsTheCopy,
    ClearingAwaitsTheStreams,
    ClearingRefusesUnderASlot,
    TermsEndFormerLeaders,
}

/// What was violated.
type Violation = &'static str;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Act(u8),
    Wait,
    Done,
}

/// What does not change, and what `next` has answered so far: it is asked once for each pair of views.
struct Model {
    plan: Plan,
    bounds: Bounds,
    broken: &'static [Rule],
    actions: RefCell<Vec<Action>>,
    courses: RefCell<Vec<Course>>,
    choices: RefCell<HashMap<[View; 2], Choice>>,
}

fn name(side: Side) -> ShardName {
    ["a", "b"][side].try_into().expect("a valid name")
}

fn other(side: Side) -> Side {
    1 - side
}

impl Model {
    fn new(bounds: Bounds, broken: &'static [Rule]) -> Self {
        let moving = BucketRange::new(u16::from(MOVING.start), u16::from(MOVING.end) - 1).expect("not empty");
        let moves = vec![Move { from: name(A), to: name(B), ranges: [moving].into_iter().collect() }];
        let plan = Plan { id: OPERATION, kind: Kind::Rebalance { moves }, cost: None };
        Self {
            plan,
            bounds,
            broken,
            actions: RefCell::default(),
            courses: RefCell::default(),
            choices: RefCell::default(),
        }
    }

    fn holds(&self, rule: Rule) -> bool {
        !self.broken.contains(&rule)
    }

    fn start(&self) -> World {
        let shard = |state, rows| [Bucket { state, epoch: 1, meant: false, rows, giving: false }; BUCKETS];
        World {
            shards: [shard(Ownership::Owned, 1), shard(Ownership::Absent, 0)],
            journals: [None; 2],
            pipes: Default::default(),
            acknowledged: [1; BUCKETS],
            writers: Vec::new(),
            reader: None,
            operator: Operator::Idle,
            claimed: [true; 2],
            ghosts: Vec::new(),
            reverted: false,
            left: self.bounds,
        }
    }

    /// Every step that is possible, and where it leads.
    fn successors(&self, world: &World) -> Vec<(Step, Result<World, Violation>)> {
        let mut found = Vec::new();
        for step in self.steps(world) {
            let mut after = world.clone();
            let done = self.take(&mut after, step).and_then(|()| self.check(world, &after));
            // What changes nothing leads nowhere.
            if done.is_err() || after != *world {
                found.push((step, done.map(|()| after)));
            }
        }
        found
    }

    fn steps(&self, world: &World) -> Vec<Step> {
        let mut steps = Vec::new();
        match world.operator {
            // It has the reply of a handover, or lost its connection.
            Operator::Idle if world.claimed == [true; 2] => {
                let replied = ![A, B].into_iter().any(|side| world.is_giving(side));
                if replied || world.left.cuts < self.bounds.cuts {
                    steps.extend([Step::Look(A), Step::Look(B)]);
                }
            }
            Operator::Idle => {
                // A claim ends the sessions of the former leader; one that is committing has done so before.
                let unclaimed =
                    [A, B].into_iter().filter(|side| !world.claimed[*side] && !world.is_giving(*side));
                steps.extend(unclaimed.map(Step::Claim));
            }
            Operator::Looked(side, _) => steps.push(Step::Look(other(side))),
            Operator::Decided(action) => {
                let action = &self.actions.borrow()[usize::from(action)];
                if self.is_possible(world, action) {
                    steps.push(Step::Act { whole: false });
                    if matches!(action, Action::DropSubscription { .. }) {
                        steps.push(Step::Act { whole: true });
                    }
                }
                steps.extend((world.left.crashes > 0).then_some(Step::Crash));
                steps.extend((world.left.cuts > 0).then_some(Step::Cut));
            }
        }
        let ghosts = (0..world.ghosts.len()).filter(|ghost| {
            self.is_possible(world, &self.actions.borrow()[usize::from(world.ghosts[*ghost])])
        });
        steps.extend(ghosts.map(Step::Ghost));
        for side in [A, B] {
            let pipe = &world.pipes[side];
            if pipe.subscription && pipe.slot {
                steps.extend((!pipe.synchronised).then_some(Step::Copy(side)));
                steps.extend((!pipe.queue.is_empty()).then_some(Step::Deliver(side)));
            }
            steps.extend(world.is_giving(side).then_some(Step::Settle(side)));
        }
        self.clients(world, &mut steps);
        faults(world, &mut steps);
        steps
    }

    /// Routers know nothing for sure: any write and any read may be tried at any shard.
    fn clients(&self, world: &World, steps: &mut Vec<Step>) {
        for (index, writer) in world.writers.iter().enumerate() {
            steps.push(match writer.phase {
                Phase::Entering { .. } if world.at(writer.side, writer.bucket).giving => continue,
                Phase::Entering { .. } => Step::Write(index),
                Phase::Wrote => Step::Commit(index),
            });
        }
        let places = || [A, B].into_iter().flat_map(|side| MOVING.map(move |bucket| (side, bucket)));
        if world.left.writes > 0 && world.writers.len() < usize::from(world.left.writers) {
            steps.extend(places().map(|(side, bucket)| Step::Enter(side, bucket)));
        }
        match &world.reader {
            Some(_) => steps.push(Step::Answer),
            None if world.left.reads > 0 => {
                let owned = |(side, bucket): &(Side, u8)| world.at(*side, *bucket).state == Ownership::Owned;
                steps.extend(places().filter(owned).map(|(side, bucket)| Step::Read(side, bucket)));
            }
            None => {}
        }
    }
}

fn faults(world: &World, steps: &mut Vec<Step>) {
    let with_slot = || [A, B].into_iter().filter(|side| world.pipes[*side].slot);
    if world.left.lost_slots > 0 {
        steps.extend(with_slot().map(Step::LoseSlot));
    }
    if world.left.full_slots > 0 {
        steps.extend(with_slot().map(Step::FillSlot));
    }
    if world.left.corruptions > 0 {
        for bucket in MOVING {
            // Never where the only good copy may lie: what is spoilt at both ends is beyond help.
            if world.at(B, bucket).state == Ownership::Incoming {
                steps.push(Step::Corrupt(B, bucket));
            } else if world.at(B, bucket).takes_writes() {
                steps.push(Step::Corrupt(A, bucket));
            }
        }
    }
    // An edit is read when the operator begins to look; it opens the set anew, under a new term.
    if world.left.reverts > 0 && world.operator == Operator::Idle {
        steps.push(Step::Revert);
    }
}

impl World {
    fn at(&self, side: Side, bucket: u8) -> &Bucket {
        &self.shards[side][usize::from(bucket)]
    }

    fn at_mut(&mut self, side: Side, bucket: u8) -> &mut Bucket {
        &mut self.shards[side][usize::from(bucket)]
    }

    fn is_giving(&self, side: Side) -> bool {
        self.shards[side].iter().any(|bucket| bucket.giving)
    }

    /// Into the slot of the shard, if its row filter holds the bucket. Applied rows never come here: origin = none.
    fn publish(&mut self, side: Side, bucket: u8, message: Message) {
        let pipe = &mut self.pipes[side];
        if pipe.slot && MOVING.contains(&bucket) {
            pipe.queue.push(message);
        }
    }
}
