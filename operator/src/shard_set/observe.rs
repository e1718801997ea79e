//! Looks at all shards and brings what they say into the shape in which decisions are made.

use std::collections::BTreeMap;

use futures::future::join_all;
use longshore_sharding::{
    Map, Ranges, Segment, ShardName,
    operation::{
        Kind, Observed, Ownership, Plan, Probe, Shard as ShardSeen, Stray, StrayKind, Stream, StreamView,
    },
};

use super::{
    Error,
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
    pub(super) unreachable: BTreeMap<ShardName, StoreError>,
}

impl World {
    /// Another leader's term was found on a shard.
    pub(super) fn stale_term(&self) -> Option<Error> {
        let (shard, _) = self.unreachable.iter().find(|(_, error)| error.is_stale_term())?;
        let source = sqlx::Error::Protocol("the term is over".into());
        let source = StoreError { operation: "keep the term", source };
        Some(Error::StaleTerm { shard: shard.to_string(), source })
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
        let segments = self.views.iter().flat_map(|(owner, view)| {
            let owned = view.runs().into_iter().filter(|run| run.state == Ownership::Owned);
            owned.map(|run| Segment { range: run.range, owner: owner.clone() })
        });
        Map::new(wanted.buckets, segments.collect())
    }
}

/// I/O: asks every shard at once. `open`: the operation to ask about.
pub(super) async fn look(set: &OpenSet, open: Option<&Plan>) -> World {
    let answers = set.shards.iter().map(async |(name, shard)| {
        let ranges = open.map_or_else(|| set.all_buckets(), |plan| buckets_of(plan, name));
        (name.clone(), shard.observe(open.map(|plan| plan.id), &ranges).await)
    });
    let mut world = World::default();
    for (name, answer) in join_all(answers).await {
        match answer {
            Ok(view) => drop(world.views.insert(name, view)),
            Err(error) => {
                tracing::warn!(shard.id = %name, error = error.chain(), "shard cannot be observed");
                world.unreachable.insert(name, error);
            }
        }
    }
    world
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
pub(super) fn observed(plan: &Plan, world: &World, names: &Names, paused: bool, batch: usize) -> Observed {
    let shard = |(name, view): (&ShardName, &View)| {
        let journal = view.operations.iter().find(|entry| entry.plan.id == plan.id);
        let seen = ShardSeen {
            journal: journal.map(|entry| entry.course.clone()),
            ownership: view.runs(),
            with_rows: view.with_rows(),
            routers_behind: view.routers_behind,
            strays: strays(view, names, plan),
        };
        (name.clone(), seen)
    };
    let streams = streams(plan).into_iter().filter_map(|stream| {
        let (source, destination) = (world.views.get(&stream.source)?, world.views.get(&stream.destination)?);
        let view = stream_view(&names.stream(plan.id, &stream), &stream, source, destination);
        Some((stream, view))
    });
    Observed { shards: world.views.iter().map(shard).collect(), streams: streams.collect(), paused, batch }
}

fn streams(plan: &Plan) -> Vec<Stream> {
    match &plan.kind {
        Kind::FirstOwnership { .. } => Vec::new(),
        Kind::Rebalance { moves } => moves
            .iter()
            .flat_map(|m| {
                let forward = Stream { source: m.from.clone(), destination: m.to.clone() };
                [forward.reversed(), forward]
            })
            .collect(),
    }
}

fn stream_view(name: &str, stream: &Stream, source: &View, destination: &View) -> StreamView {
    let has = |names: &[String]| names.iter().any(|found| found == name);
    StreamView {
        publication: has(&source.publications),
        slot: has(&source.slots),
        subscription: destination.subscriptions.contains_key(name),
        synchronised: destination.subscriptions.get(name).copied().unwrap_or(false),
        probe: probe(stream, source, destination),
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

fn strays(view: &View, names: &Names, plan: &Plan) -> Vec<Stray> {
    let found = |kind, names_found: Vec<&String>| {
        let ours =
            names_found.into_iter().filter(|name| names.is_ours(name) && !names.belongs_to(name, plan));
        ours.map(move |name| Stray { kind, name: name.clone() }).collect::<Vec<_>>()
    };
    let publications = view.publications.iter().filter(|name| !is_control(name)).collect();
    [
        found(StrayKind::Subscription, view.subscriptions.keys().collect()),
        found(StrayKind::Slot, view.slots.iter().collect()),
        found(StrayKind::Publication, publications),
    ]
    .concat()
}
