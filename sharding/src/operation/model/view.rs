//! What the operator sees of a shard, and what `next` makes of it; and what must hold in every state.

use super::*;

/// One shard in one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct View {
    journal: Option<u8>,
    buckets: [(Ownership, u8, bool); BUCKETS],
    has_rows: [bool; BUCKETS],
    /// Of the stream that leaves the shard.
    publication: bool,
    slot: bool,
    full: bool,
    /// Of the stream that comes here.
    subscription: bool,
    synchronised: bool,
    fresh: bool,
    mark_in_flight: bool,
    reverted: bool,
}

fn one(bucket: usize) -> BucketRange {
    let bucket = u16::try_from(bucket).expect("few buckets");
    BucketRange::new(bucket, bucket).expect("not empty")
}

fn intern<T: PartialEq + Clone>(known: &RefCell<Vec<T>>, value: &T) -> u8 {
    let mut known = known.borrow_mut();
    let found = known.iter().position(|one| one == value).unwrap_or_else(|| {
        known.push(value.clone());
        known.len() - 1
    });
    u8::try_from(found).expect("few of them")
}

impl Model {
    pub(super) fn course(&self, journal: Option<u8>) -> Option<Course> {
        journal.map(|course| self.courses.borrow()[usize::from(course)].clone())
    }

    pub(super) fn intern_course(&self, course: &Course) -> u8 {
        intern(&self.courses, course)
    }

    pub(super) fn decide(&self, views: [View; 2]) -> Choice {
        if let Some(choice) = self.choices.borrow().get(&views) {
            return *choice;
        }
        let choice = match next(&self.plan, &self.observed(&views)) {
            Decision::Act(action) => Choice::Act(intern(&self.actions, &action)),
            Decision::Wait(_) => Choice::Wait,
            Decision::Done => Choice::Done,
        };
        self.choices.borrow_mut().insert(views, choice);
        choice
    }

    pub(super) fn view(&self, world: &World, side: Side) -> View {
        let (out, into) = (&world.pipes[side], &world.pipes[other(side)]);
        View {
            journal: world.journals[side],
            buckets: world.shards[side].map(|b| (b.state, b.epoch, b.meant)),
            has_rows: world.shards[side].map(|b| b.rows != 0),
            publication: out.publication,
            slot: out.slot,
            full: out.full,
            subscription: into.subscription,
            synchronised: into.subscription && into.synchronised,
            fresh: into.fresh,
            mark_in_flight: into.queue.contains(&Message::Mark),
            reverted: world.reverted,
        }
    }

    fn observed(&self, views: &[View; 2]) -> Observed {
        let ending = matches!(self.course(views[A].journal), Some(Course::CleaningUp | Course::Back { .. }));
        let blind = ending && !self.holds(Rule::ClearingAwaitsTheStreams);
        let stream = |from: Side| {
            let (source, destination) = (&views[from], &views[other(from)]);
            let age_ms = if destination.fresh { 5 } else { 60_000 };
            let view = StreamView {
                publication: source.publication && !blind,
                slot: source.slot && !blind,
                subscription: destination.subscription && !blind,
                synchronised: destination.synchronised
                    || (destination.subscription && !self.holds(Rule::HandoverAwaitsTheCopy)),
                retained: if source.full { 2 } else { 0 },
                probe: Some(Probe { age_ms, in_flight: destination.mark_in_flight }),
                ..StreamView::default()
            };
            (Stream { source: name(from), destination: name(other(from)) }, view)
        };
        Observed {
            shards: [A, B].map(|side| (name(side), self.shard(views, side))).into(),
            streams: [A, B].map(stream).into(),
            reverted: views.iter().any(|view| view.reverted),
            limits: Limits { retained_wal: 1, ..Limits::default() },
            ..Observed::default()
        }
    }

    fn shard(&self, views: &[View; 2], side: Side) -> Shard {
        let view = &views[side];
        let run = |(bucket, &(state, epoch, meant)): (usize, &(Ownership, u8, bool))| Run {
            range: one(bucket),
            state,
            epoch: Epoch(epoch.into()),
            peer: meant.then(|| name(other(side))),
            operation: meant.then_some(OPERATION),
        };
        // As the agent answers: whole ranges of the plan's buckets that are neither owned nor expected here, with any row.
        let foreign = MOVING
            .map(usize::from)
            .filter(|bucket| !matches!(view.buckets[*bucket].0, Ownership::Owned | Ownership::Incoming));
        let foreign: Ranges = foreign.map(one).collect();
        let has_rows = |range: &&BucketRange| range.buckets().any(|b| view.has_rows[usize::from(b.get())]);
        Shard {
            journal: self.course(view.journal),
            ownership: view.buckets.iter().enumerate().map(run).collect(),
            with_rows: foreign.as_slice().iter().filter(has_rows).copied().collect(),
            ..Shard::default()
        }
    }

    /// Whether the operation is over, and nothing of it is under way any more.
    pub(super) fn is_end(&self, world: &World) -> bool {
        world.operator == Operator::Idle
            && world.claimed == [true; 2]
            && world.ghosts.is_empty()
            && world.writers.is_empty()
            && ![A, B].into_iter().any(|side| world.is_giving(side))
            && self.decide([A, B].map(|side| self.view(world, side))) == Choice::Done
    }

    /// What must hold in every state, and between any two.
    pub(super) fn check(&self, before: &World, world: &World) -> Result<(), Violation> {
        for bucket in 0..u8::try_from(BUCKETS).expect("few buckets") {
            let [a, b] = [A, B].map(|side| world.at(side, bucket));
            if a.takes_writes() && b.takes_writes() {
                return Err("two owners");
            }
            if world.acknowledged[usize::from(bucket)] & !self.safe_rows(world, bucket) != 0 {
                return Err("an acknowledged row is not where its bucket is or comes from");
            }
            if [A, B].into_iter().any(|side| world.at(side, bucket).epoch < before.at(side, bucket).epoch) {
                return Err("an epoch fell");
            }
        }
        let turned = |journal| matches!(self.course(journal), Some(Course::Back { .. }));
        if world.is_unharmed(&self.bounds) && world.journals.into_iter().any(turned) {
            return Err("turned back without a reason");
        }
        if self.is_end(world) { self.check_end(world) } else { Ok(()) }
    }

    /// The rows of the owner; while a bucket is on its way, those that its giver has and that come before it or are there.
    fn safe_rows(&self, world: &World, bucket: u8) -> Rows {
        let sides = [A, B].map(|side| world.at(side, bucket));
        if let Some(owner) = sides.into_iter().find(|here| here.takes_writes()) {
            return owner.rows;
        }
        let gave = |side: &Side| sides[*side].giving || sides[*side].state == Ownership::Moved;
        let Some(giver) = [A, B]
            .into_iter()
            .filter(gave)
            .max_by_key(|side| sides[*side].epoch + u8::from(sides[*side].giving))
        else {
            return 0;
        };
        let queue = &world.pipes[giver].queue;
        let is_handover = |m: &Message| matches!(m, Message::HandedOver { bucket: b, .. } if *b == bucket);
        match queue.iter().position(is_handover) {
            Some(at) if world.is_unharmed(&self.bounds) => {
                let inserted = queue[..at].iter().map(|message| match message {
                    Message::Insert { bucket: b, rows } if *b == bucket => *rows,
                    Message::Insert { .. }
                    | Message::Delete { .. }
                    | Message::HandedOver { .. }
                    | Message::Mark => 0,
                });
                sides[giver].rows & inserted.fold(sides[other(giver)].rows, |all, rows| all | rows)
            }
            Some(_) | None => sides[giver].rows,
        }
    }

    fn check_end(&self, world: &World) -> Result<(), Violation> {
        let gone = |pipe: &Pipe| !pipe.publication && !pipe.slot && !pipe.subscription;
        // What acts after its connection was lost and all is over leaves strays, which the next operation drops.
        let maybe_late = world.left.cuts < self.bounds.cuts;
        if !maybe_late && !world.pipes.iter().all(gone) {
            return Err("streams left at the end");
        }
        for (bucket, acknowledged) in world.acknowledged.iter().enumerate() {
            let [a, b] = [A, B].map(|side| world.shards[side][bucket]);
            let (owner, nobody) = if a.takes_writes() { (a, b) } else { (b, a) };
            if !owner.takes_writes() {
                return Err("no owner at the end");
            }
            if owner.rows != *acknowledged || nobody.rows != 0 {
                return Err("rows lost, left over or invented at the end");
            }
        }
        Ok(())
    }
}

impl World {
    /// Whether nothing happened that the operation may turn back for.
    fn is_unharmed(&self, bounds: &Bounds) -> bool {
        let harm = |b: &Bounds| [b.lost_slots, b.full_slots, b.corruptions, b.reverts];
        harm(&self.left) == harm(bounds)
    }
}
