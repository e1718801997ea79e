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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::shard_set::decide::fixture;

    /// Ownership rows of eight buckets, as first, last, state, epoch; on which server, and whether that was started anew.
    type Side<'a> = (&'a str, &'a [(u16, u16, &'a str, i64)], &'a str, bool);

    fn world(sides: &[Side<'_>]) -> World {
        let view = |(name, rows, server, restarted): &Side<'_>| {
            let ownership: Vec<Value> = rows
                .iter()
                .map(|(first, last, state, epoch)| json!([first, last, state, epoch, null, null]))
                .collect();
            let armed = json!({"server": "7/1", "runsOn": server, "restarted": restarted, "lsn": "0/0"});
            let view = fixture::view(&json!({"ownership": ownership, "armed": armed}));
            ((*name).try_into().expect("a valid name"), view)
        };
        World { views: sides.iter().map(view).collect(), ..World::default() }
    }

    fn check(world: &World, accepts: Option<&str>, expected: &str) {
        let mut wanted = fixture::wanted(&[("a", 1), ("b", 1)]);
        wanted.accepts = accepts.map(|shard| {
            let lost = Lost::all(world).expect("something is lost");
            (shard.to_owned(), lost.token())
        });
        let shown = match verdict(&wanted, world) {
            Verdict::Clear => "clear".to_owned(),
            Verdict::Blocked { reason, .. } => format!("blocked {reason}"),
            Verdict::Settle(Settlement::Renounce { shard, ranges, epoch, peer }) => {
                format!("{shard} renounces {ranges} to {peer} at {}", epoch.0)
            }
            Verdict::Settle(Settlement::Revoke { shard, ranges, epoch }) => {
                format!("{shard} revokes {ranges} at {}", epoch.0)
            }
            Verdict::Settle(Settlement::Own { shard, ranges, epoch }) => {
                format!("{shard} owns {ranges} at {}", epoch.0)
            }
            Verdict::Rearm { shard, quarantined } => {
                format!("{shard} re-armed{}", if quarantined { ", streams first" } else { "" })
            }
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_higher_epoch_wins_before_anything_else() {
        let old = [(0, 7, "owned", 5)];
        let b = [(0, 1, "absent", 0), (2, 5, "owned", 6), (6, 7, "absent", 0)];
        check(&world(&[("a", &old, "7/1", false), ("b", &b, "7/1", false)]), None, "clear");
        check(
            &world(&[("a", &old, "7/2", true), ("b", &b, "7/1", false)]),
            None,
            "a renounces 2-5 to b at 6",
        );
        // A cold copy has the same system identifier and timeline.
        check(
            &world(&[("a", &old, "7/1", true), ("b", &b, "7/1", false)]),
            None,
            "a renounces 2-5 to b at 6",
        );
        let given = [(0, 1, "owned", 5), (2, 5, "moved", 6), (6, 7, "owned", 5)];
        check(
            &world(&[("a", &given, "7/2", true), ("b", &b, "7/1", false)]),
            None,
            "a re-armed, streams first",
        );
        check(&world(&[("a", &given, "7/1", true), ("b", &b, "7/1", false)]), None, "a re-armed");
        check(
            &world(&[("a", &old, "7/2", true), ("b", &old, "7/1", false)]),
            None,
            "blocked OwnershipConflict",
        );
    }

    #[test]
    fn a_claim_older_than_what_was_given_back_is_not_believed() {
        // b gave 2-5 back to a in epoch 7; a was restored to when it had never given them away.
        let (a, b) = ([(0, 7, "owned", 5)], [(0, 1, "absent", 0), (2, 5, "moved", 7), (6, 7, "absent", 0)]);
        let world = world(&[("a", &a, "7/2", true), ("b", &b, "7/1", false)]);
        check(&world, None, "blocked OwnershipLost");
        check(&world, Some("a"), "a owns 2-5 at 8");
        check(&world, Some("b"), "b owns 2-5 at 8");
        check(&world, Some("nobody"), "blocked OwnershipLost");
    }

    #[test]
    fn what_nobody_owns_goes_where_a_person_says_and_nothing_on_its_way_can_take_it() {
        let wanted = fixture::wanted(&[("a", 1), ("b", 1)]);
        let (a, b) = ([(0, 3, "owned", 5), (4, 7, "moved", 6)], [(0, 3, "absent", 0), (4, 7, "incoming", 5)]);
        let lost = world(&[("a", &a, "7/1", false), ("b", &b, "7/1", false)]);
        let found = Lost::all(&lost).expect("4-7 are lost");
        let Verdict::Blocked { message, .. } = found.settle(&wanted, &lost) else {
            panic!("a person has to say")
        };
        assert!(message.contains(&format!("accept-rows-of=SHARD:{}", found.token())), "{message}");
        let accepting = Wanted { accepts: Some(("a".into(), found.token())), ..wanted };
        let ranges: Ranges = BucketRange::new(4, 7).into_iter().collect();
        let name = |name: &str| ShardName::try_from(name).expect("a valid name");
        let revoke = Settlement::Revoke { shard: name("b"), ranges: ranges.clone(), epoch: Epoch(7) };
        assert_eq!(found.settle(&accepting, &lost), Verdict::Settle(revoke));
        let revoked = [(0, 3, "absent", 0), (4, 7, "absent", 7)];
        let after = world(&[("a", &a, "7/1", false), ("b", &revoked, "7/1", false)]);
        let own = Settlement::Own { shard: name("a"), ranges, epoch: Epoch(8) };
        assert_eq!(Lost::all(&after).expect("still").settle(&accepting, &after), Verdict::Settle(own));
    }

    #[test]
    fn nothing_is_compared_while_a_shard_is_away() {
        let mut world = world(&[("a", &[(0, 7, "owned", 5)], "7/2", true)]);
        world.unreachable.insert("b".try_into().expect("a valid name"), "down".to_owned());
        check(&world, None, "blocked ShardUnreachable");
    }
}
