//! The operation against a small model of two shards and their streams: random orders of deciding, dying,
//! delivering and writing. Whatever the order, no bucket ever has two owners and no acknowledged write is lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::{BucketCount, BucketRange, map::Segment};

const BUCKETS: u16 = 8;
/// Enough steps for every action several times over; an operation that needs more is stuck.
const STEPS_MAX: usize = 4000;
const WAL_LIMIT: u64 = 1_000;

type Rows = BTreeSet<u32>;

/// What a stream carries, in commit order.
#[derive(Debug, Clone)]
enum Message {
    Insert { bucket: u16, row: u32 },
    Delete { bucket: u16 },
    HandedOver { bucket: u16, epoch: Epoch, rows: Rows },
    Mark,
}

#[derive(Debug, Clone)]
struct Bucket {
    run: Run,
    rows: Rows,
}

#[derive(Debug, Default)]
struct Pipe {
    view: StreamView,
    ranges: Ranges,
    queue: VecDeque<Message>,
    /// Messages ever taken in and given out, and those of the last mark: what the probe's age stands for.
    fresh: bool,
    marks_in_flight: usize,
}

impl Pipe {
    fn lose_slot(&mut self) {
        (self.view.slot, self.view.retained, self.marks_in_flight) = (false, 0, 0);
        self.queue.clear();
    }
}

struct World {
    plan: Plan,
    shards: BTreeMap<ShardName, Vec<Bucket>>,
    journals: BTreeMap<ShardName, Course>,
    pipes: BTreeMap<Stream, Pipe>,
    acknowledged: BTreeMap<u32, u16>,
    next_row: u32,
    paused: bool,
    reverted: bool,
    /// A shard that cannot be reached: not by the operator, nor by its peer.
    dark: Option<ShardName>,
    corrupted: BTreeSet<u16>,
}

fn name(text: &str) -> ShardName {
    text.try_into().expect("a valid name")
}

fn one(bucket: u16) -> BucketRange {
    BucketRange::new(bucket, bucket).expect("not empty")
}

impl World {
    /// `a` owns everything; buckets 2 to 5 shall go to `b`.
    fn new() -> Self {
        let moving = BucketRange::new(2, 5).expect("not empty");
        let moves = vec![Move { from: name("a"), to: name("b"), ranges: [moving].into_iter().collect() }];
        let shard = |state| {
            let run = |b| Run { range: one(b), state, epoch: Epoch(1), peer: None, operation: None };
            (0..BUCKETS).map(|b| Bucket { run: run(b), rows: Rows::new() }).collect()
        };
        Self {
            plan: Plan { id: OperationId(7), kind: Kind::Rebalance { moves }, cost: None },
            shards: [(name("a"), shard(Ownership::Owned)), (name("b"), shard(Ownership::Absent))].into(),
            journals: BTreeMap::new(),
            pipes: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            next_row: 0,
            paused: false,
            reverted: false,
            dark: None,
            corrupted: BTreeSet::new(),
        }
    }

    fn bucket(&mut self, shard: &ShardName, bucket: u16) -> &mut Bucket {
        let buckets = self.shards.get_mut(shard).expect("a shard of the model");
        buckets.get_mut(usize::from(bucket)).expect("a bucket of the model")
    }

    fn pipe(&mut self, way: Way) -> Option<&mut Pipe> {
        let forward = Stream { source: name("a"), destination: name("b") };
        self.pipes.get_mut(&match way {
            Way::Forward => forward,
            Way::Back => forward.reversed(),
        })
    }

    fn observe(&self) -> Observed {
        let seen = |shard: &&ShardName| Some(*shard) != self.dark.as_ref();
        let shard = |shard: &ShardName| {
            let buckets = self.shards.get(shard).map(Vec::as_slice).unwrap_or_default();
            let view = Shard {
                journal: self.journals.get(shard).cloned(),
                ownership: buckets.iter().map(|bucket| bucket.run.clone()).collect(),
                with_rows: self.with_rows(buckets),
                ..Shard::default()
            };
            (shard.clone(), view)
        };
        let stream = |(stream, pipe): (&Stream, &Pipe)| {
            let age_ms = if pipe.fresh { 5 } else { 60_000 };
            let probe = Some(Probe { age_ms, in_flight: pipe.marks_in_flight > 0 });
            let (source, destination) = (seen(&&stream.source), seen(&&stream.destination));
            let view = StreamView {
                publication: source && pipe.view.publication,
                slot: source && pipe.view.slot,
                retained: if source { pipe.view.retained } else { 0 },
                subscription: destination && pipe.view.subscription,
                synchronised: destination && pipe.view.subscription,
                probe,
                ..StreamView::default()
            };
            (stream.clone(), view)
        };
        Observed {
            shards: self.shards.keys().filter(seen).map(shard).collect(),
            streams: self.pipes.iter().map(stream).collect(),
            paused: self.paused,
            reverted: self.reverted,
            limits: Limits { batch: 2, copies: 1, retained_wal: WAL_LIMIT },
        }
    }

    /// As the agent answers: whole ranges of the plan's buckets that are neither owned nor expected here, with any row.
    fn with_rows(&self, buckets: &[Bucket]) -> Ranges {
        let foreign = |b: &&Bucket| !matches!(b.run.state, Ownership::Owned | Ownership::Incoming);
        let planned = self.plan.moves().iter().flat_map(|m| m.ranges.buckets()).collect::<Vec<_>>();
        let foreign = buckets.iter().filter(foreign).filter(|b| planned.contains(&b.run.range.first));
        let merged: Ranges = foreign.map(|b| b.run.range).collect();
        let has_rows = |range: &&BucketRange| {
            range.buckets().any(|b| buckets.get(usize::from(b.get())).is_some_and(|b| !b.rows.is_empty()))
        };
        merged.as_slice().iter().filter(has_rows).copied().collect()
    }

    /// A client writes to whichever shard owns the bucket; nobody owning it means the client tries again later.
    fn write(&mut self, bucket: u16) {
        let owner = self.shards.iter().find(|(_, buckets)| {
            buckets.get(usize::from(bucket)).is_some_and(|b| b.run.state == Ownership::Owned)
        });
        let Some(owner) = owner.map(|(name, _)| name.clone()) else { return };
        let row = self.next_row;
        self.next_row += 1;
        self.bucket(&owner, bucket).rows.insert(row);
        self.acknowledged.insert(row, bucket);
        self.publish(&owner, bucket, &Message::Insert { bucket, row });
    }

    /// Into every slot of the shard whose row filter holds the bucket. Applied rows never come here: origin = none.
    fn publish(&mut self, shard: &ShardName, bucket: u16, message: &Message) {
        for (stream, pipe) in &mut self.pipes {
            if &stream.source == shard && pipe.view.slot && pipe.ranges.contains(BucketId::new(bucket)) {
                pipe.queue.push_back(message.clone());
            }
        }
    }

    fn deliver(&mut self, index: usize) {
        let (dark, whole) = (self.dark.clone(), |p: &Pipe| p.view.subscription && p.view.slot);
        let is_dark =
            |stream: &Stream| [&stream.source, &stream.destination].map(Some).contains(&dark.as_ref());
        let live = self.pipes.iter_mut().filter(|(s, p)| whole(p) && !p.queue.is_empty() && !is_dark(s));
        let mut live: Vec<_> = live.collect();
        if live.is_empty() {
            return;
        }
        let at = index % live.len();
        let (stream, pipe) = live.swap_remove(at);
        let (message, destination) = (pipe.queue.pop_front().expect("not empty"), stream.destination.clone());
        let source = stream.source.clone();
        pipe.fresh = true;
        match message {
            Message::Mark => pipe.marks_in_flight -= 1,
            Message::Insert { bucket, row } => {
                self.bucket(&destination, bucket).rows.insert(row);
            }
            Message::Delete { bucket } => self.bucket(&destination, bucket).rows.clear(),
            Message::HandedOver { bucket, epoch, rows } => {
                self.receive(&destination, &source, bucket, epoch, &rows)
            }
        }
    }

    fn receive(&mut self, shard: &ShardName, peer: &ShardName, bucket: u16, epoch: Epoch, rows: &Rows) {
        let id = self.plan.id;
        let here = self.bucket(shard, bucket);
        let expects = matches!(here.run.state, Ownership::Incoming | Ownership::Moved)
            && here.run.epoch.next() == epoch
            && here.run.operation == Some(id)
            && here.run.peer.as_ref() == Some(peer);
        if expects {
            here.run.state = if &here.rows == rows { Ownership::Owned } else { Ownership::Refused };
            here.run.epoch = epoch;
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Journal { shard, course } => {
                self.journals.insert(shard.clone(), course.clone());
            }
            Action::Own { shard, ranges, epoch } => self.set(shard, ranges, |run| {
                assert!(matches!(run.state, Ownership::Moved | Ownership::Absent));
                (run.state, run.epoch) = (Ownership::Owned, *epoch);
            }),
            Action::Revoke { shard, ranges, epoch } => self.set(shard, ranges, |run| {
                if matches!(run.state, Ownership::Incoming | Ownership::Refused) {
                    (run.state, run.epoch) = (Ownership::Absent, *epoch);
                }
            }),
            Action::Raise { shard, ranges, epoch, peer } => {
                self.assign(shard, ranges, *epoch, peer, Ownership::Owned)
            }
            Action::Expect { shard, ranges, epoch, peer } => {
                self.assign(shard, ranges, *epoch, peer, Ownership::Incoming);
            }
            Action::HandOver { stream, buckets } => self.hand_over(stream, buckets),
            Action::Clear { shard, ranges } => self.clear(shard, ranges),
            Action::DropStray { .. } | Action::Analyze { .. } => {
                unreachable!("the model has neither strays nor statistics")
            }
            Action::CreatePublication { stream, .. }
            | Action::CreateSlot { stream }
            | Action::CreateSubscription { stream, .. }
            | Action::DropSubscription { stream }
            | Action::DropSlot { stream }
            | Action::DropPublication { stream } => self.act_on_stream(action, stream),
            Action::Probe { streams } => streams.iter().for_each(|stream| {
                let pipe = self.pipes.entry(stream.clone()).or_default();
                pipe.queue.push_back(Message::Mark);
                pipe.marks_in_flight += 1;
            }),
        }
    }

    fn set(&mut self, shard: &ShardName, ranges: &Ranges, change: impl Fn(&mut Run)) {
        for bucket in ranges.buckets() {
            change(&mut self.bucket(shard, bucket.get()).run);
        }
    }

    fn assign(
        &mut self,
        shard: &ShardName,
        ranges: &Ranges,
        epoch: Epoch,
        peer: &ShardName,
        state: Ownership,
    ) {
        let id = self.plan.id;
        self.set(shard, ranges, |run| {
            assert_eq!(run.state == Ownership::Owned, state == Ownership::Owned, "an owner expects nothing");
            (run.state, run.epoch, run.peer, run.operation) = (state, epoch, Some(peer.clone()), Some(id));
        });
    }

    fn hand_over(&mut self, stream: &Stream, buckets: &[BucketId]) {
        for bucket in buckets {
            let bucket = bucket.get();
            let here = self.bucket(&stream.source, bucket);
            assert_eq!(here.run.state, Ownership::Owned, "only an owner hands over");
            here.run.state = Ownership::Moved;
            here.run.epoch = here.run.epoch.next();
            let (epoch, rows) = (here.run.epoch, here.rows.clone());
            self.publish(&stream.source, bucket, &Message::HandedOver { bucket, epoch, rows });
        }
    }

    fn clear(&mut self, shard: &ShardName, ranges: &Ranges) {
        for bucket in ranges.buckets().map(BucketId::get) {
            let here = self.bucket(shard, bucket);
            assert_ne!(here.run.state, Ownership::Owned, "an owner's rows are not leftovers");
            here.rows.clear();
            self.publish(shard, bucket, &Message::Delete { bucket });
        }
    }

    fn act_on_stream(&mut self, action: &Action, stream: &Stream) {
        if let Action::CreateSubscription { copy_data: true, .. } = action {
            let ranges = self.pipes.get(stream).map(|pipe| pipe.ranges.clone()).unwrap_or_default();
            for bucket in ranges.buckets().map(BucketId::get) {
                let rows = self.bucket(&stream.source, bucket).rows.clone();
                self.bucket(&stream.destination, bucket).rows.extend(rows);
            }
        }
        let pipe = self.pipes.entry(stream.clone()).or_default();
        match action {
            Action::CreatePublication { ranges, .. } => {
                pipe.view.publication = true;
                pipe.ranges = ranges.clone();
            }
            Action::CreateSlot { .. } => {
                assert!(pipe.view.publication, "the publication comes before the slot");
                pipe.view.slot = true;
            }
            Action::CreateSubscription { .. } => pipe.view.subscription = true,
            Action::DropSubscription { .. } => pipe.view.subscription = false,
            Action::DropSlot { .. } => {
                pipe.lose_slot();
            }
            Action::DropPublication { .. } => pipe.view.publication = false,
            Action::Journal { .. }
            | Action::Own { .. }
            | Action::Revoke { .. }
            | Action::Raise { .. }
            | Action::Expect { .. }
            | Action::DropStray { .. }
            | Action::Analyze { .. }
            | Action::Probe { .. }
            | Action::HandOver { .. }
            | Action::Clear { .. } => unreachable!("{action:?} is no action on a stream"),
        }
    }

    fn assert_one_owner(&self) {
        for bucket in 0..usize::from(BUCKETS) {
            let states = self.shards.values().filter_map(|shard| shard.get(bucket)).map(|b| b.run.state);
            assert!(
                states.filter(|state| *state == Ownership::Owned).count() <= 1,
                "bucket {bucket} has two owners"
            );
        }
    }

    /// At the end every acknowledged row lies with the owner of its bucket, and nowhere else.
    fn assert_nothing_lost(&self) {
        let stored: Vec<_> = self
            .shards
            .values()
            .flatten()
            .flat_map(|b| b.rows.iter().map(|row| (*row, b.run.range.first.get(), b.run.state)))
            .collect();
        assert!(stored.iter().all(|(_, _, state)| *state == Ownership::Owned), "leftover rows");
        let found: BTreeMap<u32, u16> = stored.iter().map(|(row, bucket, _)| (*row, *bucket)).collect();
        assert_eq!(
            (found.len(), &found),
            (stored.len(), &self.acknowledged),
            "rows lost, doubled or invented"
        );
        assert!(self.pipes.values().all(|pipe| pipe.view.is_gone()), "streams left");
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// The operator decides and acts: once, twice (it never heard the reply), or it dies before acting.
    Operate {
        times: usize,
    },
    Deliver(usize),
    Write(u16),
    /// Time passes: marks grow old.
    Wait,
    Pause(bool),
    /// A row at a shard that does not own its bucket is lost behind everybody's back.
    Corrupt(u16),
    /// A stream's slot is lost.
    LoseSlot(Way),
    /// A slot holds back too much.
    Flood(Way),
    /// The spec is what it was before.
    Revert(bool),
    /// The shard cannot be reached, until the other is lost or nobody is.
    Darken(Option<&'static str>),
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Forward,
    Back,
}

fn any_way() -> impl Strategy<Value = Way> {
    prop_oneof![Just(Way::Forward), Just(Way::Back)]
}

fn any_event(faults: bool) -> impl Strategy<Value = Event> {
    let weight = u32::from(faults);
    prop_oneof![
        20 => (0_usize..=2).prop_map(|times| Event::Operate { times }),
        20 => any::<usize>().prop_map(Event::Deliver),
        10 => (0..BUCKETS).prop_map(Event::Write),
        2 => Just(Event::Wait),
        1 => any::<bool>().prop_map(Event::Pause),
        2 => prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))].prop_map(Event::Darken),
        weight => (2_u16..=5).prop_map(Event::Corrupt),
        weight => any_way().prop_map(Event::LoseSlot),
        weight => any_way().prop_map(Event::Flood),
        weight => any::<bool>().prop_map(Event::Revert),
    ]
}

/// Lets the events happen, then the operator and the streams alone until the operation is over.
fn run(events: Vec<Event>) -> World {
    let mut world = World::new();
    (0..BUCKETS).for_each(|bucket| world.write(bucket));
    for event in events {
        happen(&mut world, event);
        world.assert_one_owner();
    }
    (world.paused, world.dark) = (false, None);
    for step in 0..STEPS_MAX {
        if next(&world.plan, &world.observe()) == Decision::Done {
            return world;
        }
        happen(&mut world, Event::Operate { times: 1 });
        happen(&mut world, Event::Deliver(step));
        happen(&mut world, Event::Write(3));
        world.assert_one_owner();
    }
    panic!("stuck: {:?} of {:#?}", next(&world.plan, &world.observe()), world.observe());
}

fn happen(world: &mut World, event: Event) {
    match event {
        Event::Operate { times } => {
            if let Decision::Act(action) = next(&world.plan, &world.observe()) {
                // A repeated handover or ownership is refused by its own preconditions, as in SQL.
                let once = matches!(action, Action::HandOver { .. } | Action::Own { .. });
                (0..if once { times.min(1) } else { times }).for_each(|_| world.act(&action));
            }
        }
        Event::Deliver(index) => world.deliver(index),
        Event::Write(bucket) => world.write(bucket),
        Event::Wait => world.pipes.values_mut().for_each(|pipe| pipe.fresh = false),
        Event::Pause(paused) => world.paused = paused,
        Event::Corrupt(bucket) => {
            // Never where the only good copy may lie, and once a bucket: what is spoilt at both ends is beyond help.
            let expected = world.bucket(&name("b"), bucket).run.state == Ownership::Incoming;
            let owned = world.bucket(&name("b"), bucket).run.state == Ownership::Owned;
            if (expected || owned) && world.corrupted.insert(bucket) {
                world.bucket(&name(if owned { "a" } else { "b" }), bucket).rows.pop_first();
            }
        }
        Event::LoseSlot(way) => world.pipe(way).into_iter().for_each(Pipe::lose_slot),
        Event::Flood(way) => world.pipe(way).into_iter().for_each(|pipe| {
            pipe.view.retained = if pipe.view.slot { WAL_LIMIT + 1 } else { 0 };
        }),
        Event::Revert(reverted) => world.reverted = reverted,
        Event::Darken(shard) => world.dark = shard.map(name),
    }
}

fn outcome(world: &World) -> Option<&Course> {
    world.journals.get(&name("a"))
}

#[test]
fn an_undisturbed_operation_completes() {
    let world = run(vec![]);
    world.assert_nothing_lost();
    assert_eq!(outcome(&world), Some(&Course::Completed));
    let owners =
        |shard| world.shards.get(&name(shard)).map(|b| b.iter().map(|b| b.run.state).collect::<Vec<_>>());
    let (a, b) = (owners("a").expect("there"), owners("b").expect("there"));
    assert!(a.iter().zip(&b).enumerate().all(|(bucket, (a, b))| {
        let moved = (2..=5).contains(&bucket);
        (*a == Ownership::Owned) != moved && (*b == Ownership::Owned) == moved
    }));
}

#[test]
fn a_corrupted_row_sends_everything_home() {
    let mut events = vec![Event::Operate { times: 1 }; 12];
    events.extend([Event::Corrupt(5)]);
    let world = run(events);
    world.assert_nothing_lost();
    assert!(matches!(outcome(&world), Some(Course::RolledBack { reason: Reason::DigestMismatch { .. } })));
}

/// A late write that bypasses every rule at the source must find no way to the new owner; the way back lives on.
#[test]
fn the_forward_stream_goes_before_anything_else_once_all_have_arrived() {
    let mut world = World::new();
    let forward = Stream { source: name("a"), destination: name("b") };
    let mut last = Vec::new();
    for step in 0..STEPS_MAX {
        if outcome(&world) == Some(&Course::CleaningUp) {
            break;
        }
        if let Decision::Act(action) = next(&world.plan, &world.observe()) {
            world.act(&action);
            last.push(action);
        }
        world.deliver(step);
    }
    let arrived = last.iter().rposition(|action| matches!(action, Action::HandOver { .. }));
    let after: Vec<Action> = last.split_off(arrived.expect("handovers") + 1);
    let stream = || forward.clone();
    let expected = [
        Action::DropSubscription { stream: stream() },
        Action::DropSlot { stream: stream() },
        Action::DropPublication { stream: stream() },
        Action::Journal { shard: name("a"), course: Course::CleaningUp },
    ];
    assert_eq!(after, expected);
    assert!(world.observe().stream(&forward.reversed()).is_whole());
}

#[test]
fn first_ownership_is_journalled_on_every_shard_first() {
    let segment = |first, last, owner| Segment {
        range: BucketRange::new(first, last).expect("not empty"),
        owner: name(owner),
    };
    let buckets = BucketCount::new(u32::from(BUCKETS)).expect("valid");
    let map = crate::Map::new(buckets, vec![segment(0, 7, "a")]).expect("a map");
    let mut world = World::new();
    world.plan.kind = Kind::FirstOwnership { map, shards: vec![name("a"), name("b")] };
    world.set(&name("a"), &[buckets.all()].into_iter().collect(), |run| run.state = Ownership::Absent);
    let mut actions = Vec::new();
    while let Decision::Act(action) = next(&world.plan, &world.observe()) {
        world.act(&action);
        actions.push(format!("{action:?}").split(' ').next().expect("a word").to_owned());
        assert!(actions.len() < 20, "{actions:?}");
    }
    assert_eq!(actions, ["Journal", "Journal", "Own", "Journal", "Journal"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_lost_whatever_dies(events in proptest::collection::vec(any_event(false), 0..300)) {
        let world = run(events);
        world.assert_nothing_lost();
        prop_assert_eq!(outcome(&world), Some(&Course::Completed));
    }

    #[test]
    fn faults_send_it_home_or_it_completes(events in proptest::collection::vec(any_event(true), 0..200)) {
        let world = run(events);
        world.assert_nothing_lost();
    }
}
