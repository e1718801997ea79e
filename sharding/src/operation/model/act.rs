//! What each step does to the world, as the agent's SQL does it: what its preconditions refuse changes nothing.

use super::*;

impl Model {
    pub(super) fn take(&self, world: &mut World, step: Step) -> Result<(), Violation> {
        match step {
            Step::Look(side) => self.look(world, side),
            Step::Act { whole } => {
                if let Operator::Decided(action) = std::mem::replace(&mut world.operator, Operator::Idle) {
                    self.act(world, &self.action(action), whole);
                }
            }
            Step::Claim(side) => {
                world.claimed[side] = true;
                if self.holds(Rule::TermsEndFormerLeaders) {
                    world.ghosts.retain(|ghost| place(&self.action(*ghost)) != side);
                }
            }
            Step::Ghost(index) => {
                let action = world.ghosts.remove(index);
                self.act(world, &self.action(action), false);
            }
            Step::Deliver(from) => self.deliver(world, from),
            Step::Copy(from) => {
                world.pipes[from].synchronised = true;
                for bucket in MOVING {
                    world.at_mut(other(from), bucket).rows |= world.at(from, bucket).rows;
                }
            }
            Step::Settle(side) => {
                for here in world.shards[side].iter_mut().filter(|here| here.giving) {
                    (here.state, here.epoch, here.giving) = (Ownership::Moved, here.epoch + 1, false);
                }
            }
            Step::Enter(side, bucket) => self.enter(world, side, bucket),
            // What the gate's own statement saw is believed: as it must not be.
            Step::Write(index) => match world.writers[index].phase {
                Phase::Entering { owned_before: true } => world.writers[index].phase = Phase::Wrote,
                Phase::Entering { owned_before: false } | Phase::Wrote => {
                    world.writers.remove(index);
                }
            },
            Step::Commit(index) => Self::commit(world, index),
            Step::Read(side, bucket) => {
                let here = *world.at(side, bucket);
                let must = world.acknowledged[usize::from(bucket)];
                world.reader = Some(Reader { side, bucket, epoch: here.epoch, saw: here.rows, must });
                world.left.reads -= 1;
            }
            Step::Answer => return self.answer(world),
            Step::Crash | Step::Cut => {
                if let Operator::Decided(action) = std::mem::replace(&mut world.operator, Operator::Idle) {
                    world.ghosts.push(action);
                    world.ghosts.sort_unstable();
                }
                if step == Step::Crash {
                    (world.claimed, world.left.crashes) = ([false; 2], world.left.crashes - 1);
                } else {
                    world.left.cuts -= 1;
                }
            }
            Step::LoseSlot(side) => {
                world.pipes[side].lose_slot();
                world.left.lost_slots -= 1;
            }
            Step::FillSlot(side) => {
                world.pipes[side].full = true;
                world.left.full_slots -= 1;
            }
            Step::Corrupt(side, bucket) => {
                let here = world.at_mut(side, bucket);
                here.rows &= here.rows.saturating_sub(1);
                world.left.corruptions -= 1;
            }
            Step::Revert => {
                (world.reverted, world.claimed) = (true, [false; 2]);
                world.left.reverts -= 1;
            }
        }
        Ok(())
    }

    fn action(&self, index: u8) -> Action {
        self.actions.borrow()[usize::from(index)].clone()
    }

    /// What was seen first may be old when the other shard is looked at.
    fn look(&self, world: &mut World, side: Side) {
        let view = self.view(world, side);
        world.operator = match world.operator {
            Operator::Looked(first, seen) => {
                match self.decide(if first == A { [seen, view] } else { [view, seen] }) {
                    Choice::Act(action) => Operator::Decided(action),
                    Choice::Wait | Choice::Done => Operator::Idle,
                }
            }
            Operator::Idle | Operator::Decided(_) => Operator::Looked(side, view),
        };
    }

    /// The gate, then the state; the gate is held to the commit.
    fn enter(&self, world: &mut World, side: Side, bucket: u8) {
        let here = world.at(side, bucket);
        let phase = if self.holds(Rule::StateIsReadAfterTheGate) {
            if !here.takes_writes() {
                return;
            }
            Phase::Wrote
        } else {
            Phase::Entering { owned_before: here.state == Ownership::Owned }
        };
        let row = 2 << (self.bounds.writes - world.left.writes);
        world.writers.push(Writer { side, bucket, row, phase });
        world.left.writes -= 1;
    }

    fn commit(world: &mut World, index: usize) {
        let Writer { side, bucket, row, .. } = world.writers.remove(index);
        world.at_mut(side, bucket).rows |= row;
        world.acknowledged[usize::from(bucket)] |= row;
        world.publish(side, bucket, Message::Insert { bucket, rows: row });
    }

    /// The gate is tried, then the state is read in a new snapshot.
    fn answer(&self, world: &mut World) -> Result<(), Violation> {
        let Some(reader) = world.reader.take() else { return Ok(()) };
        let here = world.at(reader.side, reader.bucket);
        let gate = !here.giving || !self.holds(Rule::ReadsTryTheGate);
        let same = here.epoch == reader.epoch || !self.holds(Rule::ReadsCompareEpochs);
        if gate && same && here.state == Ownership::Owned && reader.must & !reader.saw != 0 {
            return Err("a read missed what was acknowledged before it began");
        }
        Ok(())
    }

    fn deliver(&self, world: &mut World, from: Side) {
        let to = other(from);
        let synchronised = world.pipes[from].synchronised;
        match world.pipes[from].queue.remove(0) {
            // What is committed before a table's copy comes with the copy.
            Message::Insert { .. } | Message::Delete { .. } if !synchronised => {}
            Message::Insert { bucket, rows } => world.at_mut(to, bucket).rows |= rows,
            Message::Delete { bucket } => world.at_mut(to, bucket).rows = 0,
            Message::Mark => world.pipes[from].fresh = true,
            Message::HandedOver { bucket, epoch, rows } => {
                let here = world.at_mut(to, bucket);
                if here.epoch + 1 == epoch
                    && here.meant
                    && matches!(here.state, Ownership::Incoming | Ownership::Moved)
                {
                    let same = here.rows == rows || !self.holds(Rule::DigestIsCompared);
                    here.state = if same { Ownership::Owned } else { Ownership::Refused };
                    here.epoch = epoch;
                }
            }
        }
    }

    /// Whether an action need not wait for a lock: a handover for the gates, the rest for rows of a handover that commits.
    pub(super) fn is_possible(&self, world: &World, action: &Action) -> bool {
        let unlocked = |side, ranges: &Ranges| in_model(ranges).all(|bucket| !world.at(side, bucket).giving);
        match action {
            Action::Own { ranges, .. }
            | Action::Revoke { ranges, .. }
            | Action::Raise { ranges, .. }
            | Action::Expect { ranges, .. }
            | Action::Clear { ranges, .. } => unlocked(place(action), ranges),
            Action::HandOver { stream, buckets } => {
                let side = side(&stream.source);
                let gated = |bucket: &BucketId| {
                    let holds = |w: &Writer| {
                        (w.side, u16::from(w.bucket)) == (side, bucket.get()) && w.phase == Phase::Wrote
                    };
                    world.writers.iter().any(holds)
                };
                buckets.iter().all(|bucket| !world.at(side, small(*bucket)).giving)
                    && (!buckets.iter().any(gated) || !self.holds(Rule::HandoverWaitsForGates))
            }
            Action::Journal { .. }
            | Action::CreatePublication { .. }
            | Action::CreateSlot { .. }
            | Action::CreateSubscription { .. }
            | Action::DropSubscription { .. }
            | Action::DropSlot { .. }
            | Action::DropPublication { .. }
            | Action::DropStray { .. }
            | Action::Probe { .. }
            | Action::Analyze { .. } => true,
        }
    }

    fn act(&self, world: &mut World, action: &Action, whole: bool) {
        use Ownership::{Absent, Incoming, Moved, Owned, Refused};
        let here = place(action);
        let set = |world: &mut World, ranges: &Ranges, change: &dyn Fn(&mut Bucket)| {
            in_model(ranges).for_each(|bucket| change(world.at_mut(here, bucket)));
        };
        let number = |epoch: &Epoch| u8::try_from(epoch.0).expect("few epochs");
        match action {
            Action::Journal { course, .. } => world.journals[here] = Some(self.intern_course(course)),
            Action::Own { ranges, epoch, .. } => set(world, ranges, &|b| {
                if matches!(b.state, Absent | Moved) && b.epoch < number(epoch) {
                    (b.state, b.epoch, b.meant) = (Owned, number(epoch), false);
                }
            }),
            Action::Revoke { ranges, epoch, .. } => set(world, ranges, &|b| {
                if matches!(b.state, Incoming | Refused) && b.epoch < number(epoch) {
                    b.state = Absent;
                    b.epoch = if self.holds(Rule::RevokingRaisesTheEpoch) { number(epoch) } else { b.epoch };
                }
            }),
            Action::Raise { ranges, epoch, .. } => set(world, ranges, &|b| {
                if b.state == Owned && b.epoch < number(epoch) {
                    let raised = self.holds(Rule::RaisingRaisesTheEpoch);
                    (b.epoch, b.meant) = (if raised { number(epoch) } else { b.epoch }, true);
                }
            }),
            Action::Expect { ranges, epoch, .. } => set(world, ranges, &|b| {
                if b.state != Owned && b.epoch <= number(epoch) {
                    (b.state, b.epoch, b.meant) = (Incoming, number(epoch), true);
                }
            }),
            Action::HandOver { buckets, .. } => hand_over(world, here, buckets),
            Action::Clear { ranges, .. } => self.clear(world, here, ranges),
            Action::DropStray { .. } | Action::Analyze { .. } => {
                unreachable!("the model has neither strays nor statistics")
            }
            Action::CreatePublication { .. } => world.pipes[here].publication = true,
            Action::CreateSlot { .. } => world.pipes[here].slot = true,
            Action::CreateSubscription { copy_data, .. } => {
                let pipe = &mut world.pipes[other(here)];
                if !pipe.subscription {
                    (pipe.subscription, pipe.synchronised, pipe.fresh) = (true, !copy_data, false);
                }
            }
            Action::DropSubscription { .. } => {
                let pipe = &mut world.pipes[other(here)];
                (pipe.subscription, pipe.synchronised, pipe.fresh) = (false, false, false);
                if whole {
                    pipe.lose_slot();
                }
            }
            // A slot in use is not dropped.
            Action::DropSlot { .. } if world.pipes[here].subscription => {}
            Action::DropSlot { .. } => world.pipes[here].lose_slot(),
            Action::DropPublication { .. } => world.pipes[here].publication = false,
            // Marks say nothing of ownership: that one of them may be sent alone is left out.
            Action::Probe { streams } => {
                streams.iter().for_each(|way| world.publish(side(&way.source), MOVING.start, Message::Mark));
            }
        }
    }

    fn clear(&self, world: &mut World, side: Side, ranges: &Ranges) {
        let kept = |bucket| matches!(world.at(side, bucket).state, Ownership::Owned | Ownership::Incoming);
        if world.pipes[side].slot && self.holds(Rule::ClearingRefusesUnderASlot) || in_model(ranges).any(kept)
        {
            return;
        }
        for bucket in in_model(ranges) {
            world.at_mut(side, bucket).rows = 0;
            world.publish(side, bucket, Message::Delete { bucket });
        }
    }
}

/// All or none; its commit record is in the stream before its own shard's snapshots show it.
fn hand_over(world: &mut World, side: Side, buckets: &[BucketId]) {
    let due = |bucket: &BucketId| {
        let here = world.at(side, small(*bucket));
        here.state == Ownership::Owned && here.meant
    };
    if !buckets.iter().all(due) {
        return;
    }
    for bucket in buckets.iter().map(|bucket| small(*bucket)) {
        let here = world.at_mut(side, bucket);
        here.giving = true;
        let (epoch, rows) = (here.epoch + 1, here.rows);
        world.publish(side, bucket, Message::HandedOver { bucket, epoch, rows });
    }
    // Time has passed.
    world.pipes.iter_mut().for_each(|pipe| pipe.fresh = false);
}

/// The shard on which an action happens.
fn place(action: &Action) -> Side {
    match action {
        Action::Journal { shard, .. }
        | Action::Own { shard, .. }
        | Action::Revoke { shard, .. }
        | Action::Raise { shard, .. }
        | Action::Expect { shard, .. }
        | Action::DropStray { shard, .. }
        | Action::Analyze { shard }
        | Action::Clear { shard, .. } => side(shard),
        Action::CreatePublication { stream, .. }
        | Action::CreateSlot { stream }
        | Action::DropSlot { stream }
        | Action::DropPublication { stream }
        | Action::HandOver { stream, .. } => side(&stream.source),
        Action::Probe { streams } => streams.first().map_or(A, |way| side(&way.source)),
        Action::CreateSubscription { stream, .. } | Action::DropSubscription { stream } => {
            side(&stream.destination)
        }
    }
}

fn side(shard: &ShardName) -> Side {
    if *shard == name(A) { A } else { B }
}

fn small(bucket: BucketId) -> u8 {
    u8::try_from(bucket.get()).expect("few buckets")
}

fn in_model(ranges: &Ranges) -> impl Iterator<Item = u8> {
    ranges.buckets().map(small)
}
