//! Pure: shards that run on another server than when they were last compared with their peers. A promoted standby, a restored
//! backup or a copy may lack what was given away since; nothing else is done before all have been compared.

use std::collections::BTreeMap;

use longshore_sharding::{
    BucketId, BucketRange, Ranges, ShardName,
    operation::{Epoch, Ownership, Run},
};
use sha2::{Digest, Sha256};

use super::{fault::UNREACHABLE, observe::World, wanted::Wanted};
use crate::shard::{agent::hex, view::View};

/// What is to be done about shards that are not what they were.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: all run where they were compared.
    Clear,
    /// A shard that is away, or a person.
    Blocked { reason: &'static str, message: String },
    /// One effect that settles who owns what.
    Settle(Settlement),
    /// Nothing speaks against it. `quarantined`: its streams have to go first.
    Rearm { shard: ShardName, quarantined: bool },
}

/// Ownership as it should have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settlement {
    /// `shard` missed that `peer` got these buckets.
    Renounce { shard: ShardName, ranges: Ranges, epoch: Epoch, peer: ShardName },
    /// `shard` shall never get them by an earlier handover.
    Revoke { shard: ShardName, ranges: Ranges, epoch: Epoch },
    /// A person said that the rows at `shard` are those to go on with.
    Own { shard: ShardName, ranges: Ranges, epoch: Epoch },
}

impl Settlement {
    pub(super) fn shard(&self) -> &ShardName {
        match self {
            Self::Renounce { shard, .. } | Self::Revoke { shard, .. } | Self::Own { shard, .. } => shard,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::Renounce { shard, ranges, epoch, peer } => format!(
                "shards {shard} and {peer} both claim buckets {ranges}: {peer} got them later, in epoch {}, and {shard} gave them up; \
                 what was written to them at {shard} since is not at {peer}",
                epoch.0
            ),
            Self::Revoke { shard, ranges, .. } => {
                format!("{shard}: buckets {ranges} are not expected any more")
            }
            Self::Own { shard, ranges, .. } => {
                format!("{shard}: owning buckets {ranges} with the rows that lie there, as accepted")
            }
        }
    }
}

/// The next thing to do before anything else.
pub(super) fn verdict(wanted: &Wanted, world: &World) -> Verdict {
    let suspects: Vec<_> = world.views.iter().filter(|(_, view)| view.armed.is_suspect()).collect();
    let Some((suspect, view)) = suspects.first() else { return Verdict::Clear };
    if let Some((away, why)) = world.unreachable.iter().next() {
        let message =
            format!("shard {suspect} has to be compared with shard {away}, which cannot be reached: {why}");
        return Verdict::Blocked { reason: UNREACHABLE, message };
    }
    match conflict(world) {
        Some(Ok(renounce)) => return Verdict::Settle(renounce),
        Some(Err(message)) => return Verdict::Blocked { reason: "OwnershipConflict", message },
        None => {}
    }
    if let Some(lost) = Lost::claimed(world) {
        return lost.settle(wanted, world);
    }
    Verdict::Rearm { shard: (*suspect).clone(), quarantined: view.armed.is_quarantined() }
}

/// Who owns what, and since which epoch.
fn claims(world: &World) -> Vec<(&ShardName, Run)> {
    let runs =
        world.views.iter().flat_map(|(shard, view)| view.runs().into_iter().map(move |run| (shard, run)));
    runs.filter(|(_, run)| run.state == Ownership::Owned).collect()
}

/// Of two claims to a bucket the higher epoch is right. All buckets that one shard has to give up to another in the same epoch.
fn conflict(world: &World) -> Option<Result<Settlement, String>> {
    let claims = claims(world);
    let both = |(one, here): &(&ShardName, Run), (other, there): &(&ShardName, Run)| {
        if one == other { None } else { here.range.intersection(there.range) }
    };
    let pairs = || claims.iter().flat_map(|lower| claims.iter().map(move |higher| (lower, higher)));
    let mut disputed =
        pairs().filter(|(lower, higher)| lower.1.epoch <= higher.1.epoch && both(lower, higher).is_some());
    let ((loser, claimed), (winner, rightful)) = disputed.next()?;
    let epoch = rightful.epoch;
    if claimed.epoch == epoch {
        return Some(Err(format!(
            "shards {loser} and {winner} both own bucket {} in epoch {}, which nothing of Longshore does; on the one whose rows \
             do not count: UPDATE longshore.ownership SET state = 'absent' WHERE bucket BETWEEN {} AND {}",
            claimed.range.first, epoch.0, claimed.range.first, claimed.range.last
        )));
    }
    let alike = pairs().filter(|(lower, higher)| {
        (lower.0, higher.0, higher.1.epoch) == (*loser, *winner, epoch) && lower.1.epoch < epoch
    });
    let ranges = alike.filter_map(|(lower, higher)| both(lower, higher)).collect();
    Some(Ok(Settlement::Renounce { shard: (*loser).clone(), ranges, epoch, peer: (*winner).clone() }))
}

/// Buckets whose last owner does not know of it any more: nobody owns them, or only somebody who gave them away since.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost {
    ranges: Ranges,
    /// The highest epoch that any shard knows of any of them.
    highest: Epoch,
    /// The highest in which one of them was owned.
    owned: Epoch,
}

impl Lost {
    /// Those that somebody still claims.
    fn claimed(world: &World) -> Option<Self> {
        Self::among(world, |owned| owned.is_some())
    }

    /// All of them. While buckets are on their way, those as well.
    pub(super) fn all(world: &World) -> Option<Self> {
        Self::among(world, |_| true)
    }

    fn among(world: &World, counts: impl Fn(Option<Epoch>) -> bool) -> Option<Self> {
        #[derive(Default)]
        struct Known {
            owned: Option<Epoch>,
            given: Option<Epoch>,
            highest: Option<Epoch>,
        }
        let mut known: BTreeMap<BucketId, Known> = BTreeMap::new();
        for run in world.views.values().flat_map(View::runs) {
            for bucket in run.range.buckets() {
                let known = known.entry(bucket).or_default();
                known.highest = known.highest.max(Some(run.epoch));
                match run.state {
                    Ownership::Owned => known.owned = known.owned.max(Some(run.epoch)),
                    Ownership::Moved => known.given = known.given.max(Some(run.epoch)),
                    Ownership::Incoming | Ownership::Absent | Ownership::Refused => {}
                }
            }
        }
        known.retain(|_, known| (known.owned.is_none() || known.owned < known.given) && counts(known.owned));
        Some(Self {
            ranges: known.keys().map(|bucket| BucketRange { first: *bucket, last: *bucket }).collect(),
            highest: known.values().filter_map(|known| known.highest).max()?,
            owned: known.values().filter_map(|known| known.owned.max(known.given)).max().unwrap_or(Epoch(0)),
        })
    }

    /// Names this loss and no other: an owner's epoch only rises.
    fn token(&self) -> String {
        let text = format!("{} {}", self.ranges, self.owned.0);
        hex(&Sha256::digest(text.as_bytes())).chars().take(8).collect()
    }

    fn accepted<'a>(&self, wanted: &Wanted, world: &'a World) -> Option<&'a ShardName> {
        let (shard, token) = wanted.accepts.as_ref()?;
        world.views.keys().find(|name| name.as_str() == shard && *token == self.token())
    }

    /// What a person accepted, or what they have to know in order to.
    pub(super) fn settle(&self, wanted: &Wanted, world: &World) -> Verdict {
        let (ranges, epoch) = (self.ranges.clone(), self.highest.next());
        let Some(shard) = self.accepted(wanted, world) else {
            let message = format!(
                "the last owner of buckets {ranges}, in epoch {}, does not know of it any more: it was restored to an earlier moment. \
                 Restore it to a later one; or go on with the rows that lie at some shard, and lose the others: \
                 kubectl annotate --overwrite ordershardset {} longshore.dev/accept-rows-of=SHARD:{}",
                self.owned.0,
                wanted.name,
                self.token()
            );
            return Verdict::Blocked { reason: "OwnershipLost", message };
        };
        let expects = |view: &View| {
            let expected = |run: &Run| matches!(run.state, Ownership::Incoming | Ownership::Refused);
            view.runs().iter().any(|run| expected(run) && !ranges.intersection(run.range).is_empty())
        };
        let expecting =
            world.views.iter().find(|(_, view)| expects(view)).map(|(expecting, _)| expecting.clone());
        Verdict::Settle(match expecting {
            Some(shard) => Settlement::Revoke { shard, ranges, epoch },
            None => Settlement::Own { shard: shard.clone(), ranges, epoch },
        })
    }
}
