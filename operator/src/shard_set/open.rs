//! Opens a set: from connections to shards that can be operated, under a term of our own.
//!
//! Every step may be repeated. If we die in the middle, the next leader goes through all of it again.

use std::collections::BTreeMap;

use futures::future::join_all;
use kube::Client;
use longshore_sharding::{BucketCount, Ranges, ShardName, operation::Stray};
use sqlx::PgConnection;

use super::{
    fault::{Fault, OpenError, UNREACHABLE, agent_fault, finding_fault, store_fault},
    inputs::{self, Inputs},
    names::Names,
    observe::World,
    quarantine::Settlement,
    schema,
    wanted::Wanted,
};
use crate::shard::{
    Connection, Identity, Shard, StoreError, Term,
    agent::{self, Membership, Meta},
    preflight,
};

/// A set whose shards are ours to operate.
#[derive(Debug)]
pub(super) struct OpenSet {
    pub(super) shards: BTreeMap<ShardName, Shard>,
    pub(super) names: Names,
    pub(super) generation: i64,
    /// Migrations that wait for the end of the operation that is open.
    pub(super) deferred: Vec<String>,
    /// Whether the shards were prepared. Not before each was compared with its peers, on the server where it runs.
    pub(super) is_prepared: bool,
    buckets: BucketCount,
    /// Shards that could not be reached when the set was opened: it is opened anew when one of them can be.
    missing: BTreeMap<ShardName, Missing>,
}

#[derive(Debug)]
struct Missing {
    connection: Connection,
    why: String,
}

impl OpenSet {
    /// Shards that could not be reached, and why not.
    pub(super) fn missing(&self) -> impl Iterator<Item = (&ShardName, &str)> {
        self.missing.iter().map(|(name, missing)| (name, missing.why.as_str()))
    }

    /// I/O: whether a shard that was missing is back.
    pub(super) async fn has_returned(&self) -> bool {
        let tries = self.missing.values().map(|missing| Shard::connect(&missing.connection));
        join_all(tries).await.iter().any(Result::is_ok)
    }

    /// I/O: whether every shard answers, from where it was when compared with its peers.
    pub(super) async fn is_calm(&self) -> bool {
        self.missing.is_empty()
            && join_all(self.shards.values().map(Shard::is_calm)).await.iter().all(|calm| *calm)
    }

    /// I/O: one effect that settles who owns what.
    pub(super) async fn settle(&self, settlement: &Settlement) -> Result<(), (String, StoreError)> {
        let Some(shard) = self.shards.get(settlement.shard()) else { return Ok(()) };
        let settled = match settlement {
            Settlement::Renounce { ranges, epoch, peer, .. } => shard.renounce(ranges, *epoch, peer).await,
            Settlement::Revoke { ranges, epoch, .. } => shard.revoke(ranges, *epoch).await,
            Settlement::Own { ranges, epoch, .. } => shard.own(ranges, *epoch).await,
        };
        settled.map_err(|source| (shard.name.to_string(), source))
    }

    /// I/O: lets a shard work that was compared with its peers.
    pub(super) async fn rearm(&self, name: &ShardName) -> Result<(), (String, StoreError)> {
        let Some(shard) = self.shards.get(name) else { return Ok(()) };
        shard.rearm().await.map_err(|source| (name.to_string(), source))
    }

    /// Reaches a shard by another way in from now on.
    pub(super) fn set_connection(&mut self, name: &ShardName, connection: &Connection) {
        if let Some(shard) = self.shards.get_mut(name) {
            shard.set_connection(connection.clone());
        }
        if let Some(missing) = self.missing.get_mut(name) {
            missing.connection = connection.clone();
        }
    }

    /// Every bucket of the set.
    pub(super) fn all_buckets(&self) -> Ranges {
        [self.buckets.all()].into_iter().collect()
    }

    /// I/O: forgets a shard that the spec names no longer and that owns nothing any more. If we die in the middle, the
    /// next leader meets it again as one that is leaving, and forgets it again. Says whom.
    pub(super) async fn forget_drained(
        &mut self,
        wanted: &Wanted,
        version: i64,
    ) -> Result<Option<ShardName>, (String, StoreError)> {
        let leaving = |name: &&ShardName| wanted.shards.iter().all(|shard| shard.name != **name);
        let Some(drained) = self.shards.keys().find(leaving).cloned() else { return Ok(None) };
        if let Some(shard) = self.shards.remove(&drained) {
            shard.close().await;
        }
        let list: Vec<Shard> = self.shards.values().cloned().collect();
        for shard in &list {
            shard.set_shards(version + 1, &list).await.map_err(|source| (shard.name.to_string(), source))?;
        }
        Ok(Some(drained))
    }

    /// I/O: drops one object that no open operation names, if there is any.
    pub(super) async fn drop_stray(&self, world: &World) -> Result<Option<Stray>, (String, StoreError)> {
        let strays = world.strays();
        let found = strays.into_iter().find_map(|(name, stray)| Some((self.shards.get(&name)?, stray)));
        let Some((shard, stray)) = found else { return Ok(None) };
        let dropped = shard.drop_stream_object(stray.kind, &stray.name).await;
        dropped.map_err(|source| (shard.name.to_string(), source))?;
        tracing::info!(shard.id = %shard.name, name = stray.name, "dropped what an old operation left");
        Ok(Some(stray))
    }

    /// Ends all sessions.
    pub(super) async fn close(&self) {
        for shard in self.shards.values() {
            shard.close().await;
        }
    }
}

/// A shard being enrolled: reached, but under no term yet.
struct Candidate {
    name: ShardName,
    connection: Connection,
    session: PgConnection,
    identity: Identity,
    /// What the agent in it says, if there is one.
    found: Option<Meta>,
}

/// A candidate with the agent in it.
struct Member {
    candidate: Candidate,
    meta: Meta,
    /// It has to be compared with its peers first.
    is_suspect: bool,
}

/// I/O: everything from connecting to telling the shards of each other. `found_term` is the highest term that the shards had when
/// this process, the `holder`, first opened the set.
pub(super) async fn open(
    client: &Client,
    wanted: &Wanted,
    inputs: &Inputs,
    (holder, found_term): (&str, &mut Option<i64>),
) -> Result<OpenSet, OpenError> {
    let mut members = Vec::new();
    let (candidates, mut missing) = reach(&inputs.connections).await?;
    refuse_to_return(&candidates, holder, *found_term)?;
    enrol(&mut members, candidates, wanted).await?;
    let (candidates, gone) = reach(&leaving(client, wanted, &mut members).await?).await?;
    refuse_to_return(&candidates, holder, *found_term)?;
    enrol(&mut members, candidates, wanted).await?;
    missing.extend(gone);

    let is_prepared = missing.is_empty() && !members.iter().any(|member| member.is_suspect);
    let set_uid = set_uid(members.iter().map(|member| &member.meta), wanted);
    let metas: Vec<Meta> = members.iter().map(|member| member.meta.clone()).collect();
    let highest = metas.iter().map(|meta| meta.term).max().unwrap_or(0);
    found_term.get_or_insert(highest);
    let shards = claim(members, highest + 1, holder).await?;
    let mut deferred = Vec::new();
    if is_prepared {
        deferred = schema::prepare(&shards, wanted, &inputs.migrations).await?;
        introduce(&shards, &metas).await?;
    }
    let (names, generation, buckets) = (Names::of_set(&set_uid), wanted.generation, wanted.buckets);
    Ok(OpenSet { shards, names, generation, deferred, is_prepared, buckets, missing })
}

/// Connects to all and checks each server. Shards that cannot be reached are returned as missing if others of the set
/// can: an operation that is open may need care even then.
async fn reach(
    connections: &BTreeMap<ShardName, Connection>,
) -> Result<(Vec<Candidate>, BTreeMap<ShardName, Missing>), OpenError> {
    let (mut candidates, mut missing, mut faults) = (Vec::<Candidate>::new(), BTreeMap::new(), Vec::new());
    for (name, connection) in connections {
        match reach_one(name, connection).await {
            Ok(candidate) => candidates.push(candidate),
            Err(found) => match found.as_slice() {
                [fault] if fault.reason == UNREACHABLE => {
                    let (connection, why) = (connection.clone(), fault.message.clone());
                    missing.insert(name.clone(), Missing { connection, why });
                }
                _ => faults.extend(found),
            },
        }
    }
    let is_member = !missing.is_empty() && candidates.iter().all(|candidate| candidate.found.is_some());
    if !is_member || candidates.is_empty() {
        // Nothing of the set can be under way.
        let fault = |(name, missing): (&ShardName, &Missing)| Fault {
            shard: Some(name.clone()),
            reason: UNREACHABLE,
            message: missing.why.clone(),
        };
        faults.extend(missing.iter().map(fault));
    }
    if faults.is_empty() { Ok((candidates, missing)) } else { Err(OpenError::Faults(faults)) }
}

async fn reach_one(name: &ShardName, connection: &Connection) -> Result<Candidate, Vec<Fault>> {
    let broken = |error: StoreError| vec![store_fault(name, &error)];
    let mut session = Shard::connect(connection).await.map_err(broken)?;
    let findings = preflight::server(&mut session).await.map_err(broken)?;
    if !findings.is_empty() {
        return Err(findings.iter().map(|finding| finding_fault(name, finding)).collect());
    }
    let identity = Shard::identity(&mut session).await.map_err(broken)?;
    let found = agent::meta(&mut session).await.map_err(broken)?;
    Ok(Candidate { name: name.clone(), connection: connection.clone(), session, identity, found })
}

/// Installs the agent, once it is known that no two shards are one database.
async fn enrol(
    members: &mut Vec<Member>,
    candidates: Vec<Candidate>,
    wanted: &Wanted,
) -> Result<(), OpenError> {
    distinct(members.iter().map(|member| &member.candidate).chain(&candidates))?;
    let known = members.iter().map(|member| &member.meta);
    let set_uid =
        set_uid(known.chain(candidates.iter().filter_map(|candidate| candidate.found.as_ref())), wanted);
    for mut candidate in candidates {
        let membership = Membership {
            shard: candidate.name.clone(),
            set_uid: set_uid.clone(),
            owner: wanted.uid.clone(),
            adopts: wanted.adopts.clone(),
            buckets: wanted.buckets,
        };
        let meta = agent::install(&mut candidate.session, &membership).await;
        let meta = meta.map_err(|error| vec![agent_fault(&candidate.name, &error)])?;
        let is_suspect = agent::is_suspect(&mut candidate.session).await;
        let is_suspect = is_suspect.map_err(|error| vec![store_fault(&candidate.name, &error)])?;
        members.push(Member { candidate, meta, is_suspect });
    }
    Ok(())
}

/// What names the set for good, whoever operates it: on shards that have it, else the uid of the one that makes it.
fn set_uid<'a>(mut metas: impl Iterator<Item = &'a Meta>, wanted: &Wanted) -> String {
    metas.next().map_or_else(|| wanted.uid.clone(), |meta| meta.set_uid.clone())
}

/// Two shards that are one database would hand buckets to themselves.
fn distinct<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Result<(), OpenError> {
    let mut seen: BTreeMap<&Identity, &ShardName> = BTreeMap::new();
    for Candidate { name, identity, .. } in candidates {
        if let Some(other) = seen.insert(identity, name) {
            let message = format!(
                "shards {other} and {name} are one and the same database; mend: give {name} a Secret of its own"
            );
            return Err(vec![Fault { shard: Some(name.clone()), reason: "SharedDatabase", message }].into());
        }
    }
    Ok(())
}

/// Shards that the spec names no longer, as the others remember them: they are drained before they are forgotten.
async fn leaving(
    client: &Client,
    wanted: &Wanted,
    members: &mut [Member],
) -> Result<BTreeMap<ShardName, Connection>, OpenError> {
    let mut leaving = BTreeMap::new();
    for Member { candidate, .. } in members {
        let known = Shard::known_shards(&mut candidate.session).await;
        let known = known.map_err(|error| vec![store_fault(&candidate.name, &error)])?;
        for (name, (_, secret_name)) in known {
            let Ok(name) = ShardName::try_from(name) else { continue };
            if wanted.shards.iter().any(|shard| shard.name == name) || leaving.contains_key(&name) {
                continue;
            }
            let connection = inputs::connection(client, &wanted.namespace, &name, &secret_name).await;
            leaving.insert(name, connection.map_err(|fault| vec![fault])?);
        }
    }
    Ok(leaving)
}

/// Fails if another process has claimed a shard since this one began to lead: whoever was paused for longer than its Lease must
/// not take the lead back.
fn refuse_to_return(
    candidates: &[Candidate],
    holder: &str,
    found_term: Option<i64>,
) -> Result<(), OpenError> {
    let Some(found_term) = found_term else { return Ok(()) };
    let mut metas = candidates.iter().filter_map(|candidate| candidate.found.as_ref());
    let other = metas.find(|meta| meta.term > found_term && meta.holder != holder);
    other.map_or(Ok(()), |meta| Err(OpenError::Superseded { shard: meta.shard.clone() }))
}

/// Takes the highest term plus one on every shard; what the last leader still ran there ends.
async fn claim(
    members: Vec<Member>,
    number: i64,
    holder: &str,
) -> Result<BTreeMap<ShardName, Shard>, OpenError> {
    let term = Term { number, holder: holder.to_owned() };
    let mut shards = BTreeMap::new();
    for Member { mut candidate, .. } in members {
        let claimed = Shard::claim(&mut candidate.session, &term).await;
        claimed.map_err(|source| OpenError::Store { shard: candidate.name.to_string(), source })?;
        shards.insert(candidate.name.clone(), Shard::new(candidate.name, candidate.connection, &term));
    }
    tracing::info!(term = number, "leading the set's shards, by their Secrets of now");
    Ok(shards)
}

/// Tells every shard where all of them are, if one knows it differently.
async fn introduce(shards: &BTreeMap<ShardName, Shard>, metas: &[Meta]) -> Result<(), OpenError> {
    let version = metas.iter().map(|meta| meta.shards_version).max().unwrap_or(0);
    let agree = metas.iter().all(|meta| meta.shards_version == version && version > 0);
    let wanted: BTreeMap<_, _> = shards
        .iter()
        .map(|(name, shard)| {
            (name.to_string(), (shard.connection.endpoint.clone(), shard.connection.secret_name.clone()))
        })
        .collect();
    let mut all_know = agree;
    for shard in shards.values() {
        let broken = |error: StoreError| OpenError::Faults(vec![store_fault(&shard.name, &error)]);
        let mut session = shard.session().await.map_err(broken)?;
        all_know &= Shard::known_shards(&mut session).await.map_err(broken)? == wanted;
    }
    if all_know {
        return Ok(());
    }
    let list: Vec<Shard> = shards.values().cloned().collect();
    for shard in shards.values() {
        let told = shard.set_shards(version + 1, &list).await;
        told.map_err(|source| OpenError::Store { shard: shard.name.to_string(), source })?;
    }
    Ok(())
}
