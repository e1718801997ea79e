//! Looks at all shards and brings what they say into the shape in which decisions are made.

use std::collections::BTreeMap;

use futures::future::join_all;
use longshore_sharding::{
    Map, Ranges, Segment, ShardName,
    operation::{
        Kind, Limits, Observed, Ownership, Plan, Probe, Shard as ShardSeen, Stray, StrayKind, Stream,
        StreamView,
    },
    planner,
};

use super::{
    Error,
    fault::UNREACHABLE,
    names::{Names, is_control},
    open::OpenSet,
    wanted::Wanted,
};
use crate::shard::{
    StoreError,
    view::{Journalled, View},
};

/// A mark that has not arrived yet is at least this old for all that is known.
const NEVER_MS: u64 = 3_600_000;

/// All shards, each as it was when asked.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) views: BTreeMap<ShardName, View>,
    /// Shards that did not answer, and why not.
    pub(super) unreachable: BTreeMap<ShardName, String>,
    /// Those of them that refused our credentials, or we theirs, by reason.
    pub(super) distrusted: BTreeMap<ShardName, &'static str>,
    /// A shard on which another leader's term was found.
    pub(super) superseded_at: Option<ShardName>,
    /// A shard that does not remember who leads.
    pub(super) restored: Option<ShardName>,
    /// Migrations that wait until the operation is over.
    pub(super) deferred: Vec<String>,
    /// How the set's streams are called.
    pub(super) names: Names,
}

impl World {
    /// Another process leads.
    pub(super) fn stale_term(&self) -> Option<Error> {
        let source = sqlx::Error::Protocol("the term is over".into());
        let source = StoreError { operation: "keep the term", source };
        Some(Error::StaleTerm { shard: self.superseded_at.as_ref()?.to_string(), source: Some(source) })
    }

    /// Where each shard runs, and how far its WAL goes.
    pub(super) fn places(&self) -> BTreeMap<ShardName, (String, String)> {
        let place = |view: &View| (view.armed.runs_on.clone(), view.armed.lsn.clone());
        self.views.iter().map(|(name, view)| (name.clone(), place(view))).collect()
    }

    /// Why a shard cannot be reached, in one word.
    pub(super) fn reason(&self, unreachable: &ShardName) -> &'static str {
        self.distrusted.get(unreachable).copied().unwrap_or(UNREACHABLE)
    }

    /// The tables were altered, alike everywhere: what was made for their old shape has to be made anew.
    pub(super) fn is_reshaped(&self) -> bool {
        let alike =
            self.views.values().all(|view| self.views.values().all(|other| other.schema == view.schema));
        alike && self.views.values().any(|view| view.schema != view.registered_schema)
    }

    /// A plan's entries in the journals.
    pub(super) fn journalled<'a>(
        &'a self,
        plan: &'a Plan,
    ) -> impl Iterator<Item = (&'a ShardName, &'a Journalled)> {
        self.views.iter().filter_map(|(name, view)| {
            let entry = view.operations.iter().find(|entry| entry.plan.id == plan.id)?;
            Some((name, entry))
        })
    }

    /// The newest operation of all journals.
    pub(super) fn newest(&self) -> Option<&Journalled> {
        self.views.values().filter_map(|view| view.operations.last()).max_by_key(|entry| entry.plan.id)
    }

    /// Who owns what, as far as the shards agree on a map.
    pub(super) fn map(&self, wanted: &Wanted) -> Result<Map, longshore_sharding::MapError> {
        Map::new(wanted.buckets, self.owned().collect())
    }

    /// What is owned, by whom.
    fn owned(&self) -> impl Iterator<Item = Segment> {
        self.views.iter().flat_map(|(owner, view)| {
            let owned = view.runs().into_iter().filter(|run| run.state == Ownership::Owned);
            owned.map(|run| Segment { range: run.range, owner: owner.clone() })
        })
    }

    /// Objects of streams that no open operation names, in the order in which they can be dropped.
    pub(super) fn strays(&self) -> Vec<(ShardName, Stray)> {
        let of = |(name, view): (&ShardName, &View)| {
            strays(view, &self.names, None).into_iter().map(|stray| (name.clone(), stray)).collect::<Vec<_>>()
        };
        let mut strays: Vec<_> = self.views.iter().flat_map(of).collect();
        strays.sort_by_key(|(_, stray)| stray.kind);
        strays
    }
}

/// I/O: asks every shard at once. `open`: the operation to ask about.
pub(super) async fn look(set: &OpenSet, open: Option<&Plan>) -> World {
    let answers = set.shards.iter().map(async |(name, shard)| {
        let ranges = match open {
            Some(plan) => buckets_of(plan, name),
            // A shard whose tables may not be registered cannot say where rows lie.
            None if !set.is_prepared => Ranges::default(),
            None => set.all_buckets(),
        };
        (name.clone(), shard.observe(open.map(|plan| plan.id), &ranges).await)
    });
    let mut world = World { deferred: set.deferred.clone(), names: set.names.clone(), ..World::default() };
    world.unreachable.extend(set.missing().map(|(name, why)| (name.clone(), why.to_owned())));
    for (name, answer) in join_all(answers).await {
        match answer {
            Ok(view) => drop(world.views.insert(name, view)),
            Err(error) => {
                tracing::warn!(shard.id = %name, error = error.chain(), "shard cannot be observed");
                if error.is_stale_term() {
                    world.superseded_at = Some(name.clone());
                }
                if error.is_restored() {
                    world.restored = Some(name.clone());
                }
                world.distrusted.extend(error.distrust().map(|reason| (name.clone(), reason)));
                world.unreachable.insert(name, error.chain());
            }
        }
    }
    ask_again_for_slots(set, &mut world).await;
    world
}

/// I/O: a table's worker drops its slot at the source a moment before it notes that the table is done. What a shard still needs
/// after every source was asked, and nobody there works on, it asks for in vain.
async fn ask_again_for_slots(set: &OpenSet, world: &mut World) {
    let awaiting = world.views.iter_mut().filter(|(_, view)| !view.awaited_slots.is_empty());
    for (name, view) in awaiting {
        let Some(shard) = set.shards.get(name) else { continue };
        let again = shard.observe(None, &Ranges::default()).await;
        let again = again.map_or_else(|_| Vec::new(), |view| view.awaited_slots);
        view.awaited_slots.retain(|slot| again.contains(slot));
    }
}

/// The buckets of a plan that leave or reach a shard: where rows are looked for. All of them for a new set, whose
/// rows may lie anywhere.
fn buckets_of(plan: &Plan, shard: &ShardName) -> Ranges {
    match &plan.kind {
        Kind::FirstOwnership { map, .. } => [map.buckets().all()].into_iter().collect(),
        Kind::Rebalance { moves } => {
            let mine = moves.iter().filter(|m| &m.from == shard || &m.to == shard);
            mine.flat_map(|m| m.ranges.as_slice()).copied().collect()
        }
    }
}

/// Pure: what a decision about `plan` needs.
pub(super) fn observed(plan: &Plan, world: &World, wanted: &Wanted, limits: Limits) -> Observed {
    let shard = |(name, view): (&ShardName, &View)| {
        let journal = view.operations.iter().find(|entry| entry.plan.id == plan.id);
        let seen = ShardSeen {
            journal: journal.map(|entry| entry.course.clone()),
            ownership: view.runs(),
            with_rows: view.with_rows(),
            routers_behind: view.routers_behind,
            unanalyzed: view.unanalyzed,
            quarantined: view.armed.is_quarantined(),
            schema: view.schema.clone(),
            strays: strays(view, &world.names, Some(plan)),
        };
        (name.clone(), seen)
    };
    let streams = streams(plan).into_iter().map(|stream| {
        let view = |name| world.views.get(name);
        let name = world.names.stream(plan.id, &stream);
        let seen = stream_view(&name, &stream, view(&stream.source), view(&stream.destination));
        (stream, seen)
    });
    Observed {
        shards: world.views.iter().map(shard).collect(),
        streams: streams.collect(),
        paused: wanted.paused,
        reverted: is_reverted(plan, world, wanted),
        limits,
    }
}

/// Whether the spec was changed since the operation began, to what the set was before it.
fn is_reverted(plan: &Plan, world: &World, wanted: &Wanted) -> bool {
    let asked = world.journalled(plan).next().map_or(wanted.generation, |(_, entry)| entry.generation);
    if asked == wanted.generation {
        return false;
    }
    let moving: Ranges = plan.moves().iter().flat_map(|m| m.ranges.as_slice()).copied().collect();
    let at_home = plan.moves().iter().flat_map(|m| {
        m.ranges.as_slice().iter().map(|range| Segment { range: *range, owner: m.from.clone() })
    });
    let elsewhere = world.owned().filter(|segment| moving.intersection(segment.range).is_empty());
    let before = Map::new(wanted.buckets, at_home.chain(elsewhere).collect());
    before.is_ok_and(|before| {
        planner::next_map(&before, &wanted.weights())
            .is_ok_and(|target| planner::moves(&before, &target).is_empty())
    })
}

/// A plan's streams, forward and back.
pub(super) fn streams(plan: &Plan) -> Vec<Stream> {
    let forward = plan.moves().iter().map(|m| Stream { source: m.from.clone(), destination: m.to.clone() });
    forward.flat_map(|stream| [stream.reversed(), stream]).collect()
}

/// An end that cannot be seen shows nothing of the stream.
fn stream_view(name: &str, stream: &Stream, source: Option<&View>, destination: Option<&View>) -> StreamView {
    let slot = source.and_then(|source| source.slots.get(name));
    let synchronised = destination.and_then(|destination| destination.subscriptions.get(name));
    StreamView {
        publication: source.is_some_and(|source| source.publications.iter().any(|found| found == name)),
        slot: slot.is_some(),
        slot_lost: slot.is_some_and(|(lost, _)| *lost),
        cut_off: source.zip(destination).is_some_and(|(source, destination)| {
            let mut awaited =
                destination.awaited_slots.iter().filter(|(subscription, _)| subscription == name);
            awaited.any(|(_, slot)| !source.table_slots.contains(slot))
        }),
        retained: slot.map_or(0, |(_, retained)| *retained),
        subscription: synchronised.is_some(),
        synchronised: synchronised.copied().unwrap_or(false),
        probe: source.zip(destination).and_then(|(source, destination)| probe(stream, source, destination)),
    }
}

/// A mark is in the handover table of both ends once it has arrived; its age is counted by the sender's clock.
fn probe(stream: &Stream, source: &View, destination: &View) -> Option<Probe> {
    let known_to = |view: &View| -> Vec<(i64, i64)> {
        let ours =
            |giver: &ShardName, peer: &ShardName| giver == &stream.source && peer == &stream.destination;
        let marks = view.probes.iter().filter(|(giver, peer, ..)| ours(giver, peer));
        marks.map(|(_, _, number, age_ms)| (*number, *age_ms)).collect()
    };
    let sent = known_to(source);
    let newest_sent = sent.iter().map(|(number, _)| *number).max()?;
    let newest_arrived = known_to(destination).into_iter().map(|(number, _)| number).max();
    let age = newest_arrived.and_then(|arrived| sent.iter().find(|(number, _)| *number == arrived));
    let age_ms = age.and_then(|(_, age_ms)| u64::try_from(*age_ms).ok()).unwrap_or(NEVER_MS);
    Some(Probe { age_ms, in_flight: newest_arrived != Some(newest_sent) })
}

fn strays(view: &View, names: &Names, plan: Option<&Plan>) -> Vec<Stray> {
    let found = |kind, names_found: Vec<&String>| {
        let ours = names_found
            .into_iter()
            .filter(|name| names.is_ours(name) && !plan.is_some_and(|plan| names.belongs_to(name, plan)));
        ours.map(move |name| Stray { kind, name: name.clone() }).collect::<Vec<_>>()
    };
    let publications = view.publications.iter().filter(|name| !is_control(name)).collect();
    [
        found(StrayKind::Subscription, view.subscriptions.keys().collect()),
        found(StrayKind::Slot, view.slots.keys().collect()),
        found(StrayKind::Publication, publications),
    ]
    .concat()
}
