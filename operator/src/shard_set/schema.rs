//! The schema of a set's shards, as a part of opening it: migrated, checked, guarded, and alike everywhere.

use std::collections::{BTreeMap, BTreeSet};

use longshore_sharding::{KeyType, ShardName};

use super::{
    fault::{Fault, OpenError, finding_fault, migration_fault, store_fault},
    wanted::Wanted,
};
use crate::shard::{
    Shard, StoreError,
    migrations::{self, MigrationError},
    preflight::{self, Finding, Reason},
};

/// What the findings are about, and what they are.
type Findings = Vec<(ShardName, Finding)>;

/// I/O: brings all shards to the same schema. Says which migrations wait until the operation that is open is over.
///
/// If we die in the middle, the next leader goes on with the first migration that is not recorded.
pub(super) async fn prepare(
    shards: &BTreeMap<ShardName, Shard>,
    wanted: &Wanted,
    migrations: &BTreeMap<String, String>,
) -> Result<Vec<String>, OpenError> {
    let frozen = applied_while_an_operation_is_open(shards).await?;
    let may_run = |name: &String| frozen.as_ref().is_none_or(|applied| applied.contains(name));
    let (now, deferred): (BTreeMap<_, _>, BTreeMap<_, _>) =
        migrations.clone().into_iter().partition(|(name, _)| may_run(name));
    for shard in shards.values() {
        migrate(shard, shards, wanted, &now).await?;
    }

    let key_type = check(shards, wanted, frozen.is_some()).await?;
    let mut findings = Vec::new();
    let mut facts = BTreeMap::new();
    for (name, shard) in shards {
        let broken = |error: StoreError| vec![store_fault(name, &error)];
        shard.index_buckets(&wanted.tables, key_type, wanted.buckets.mask()).await.map_err(broken)?;
        shard.register(&wanted.tables, key_type).await.map_err(broken)?;
        let mut session = shard.session().await.map_err(broken)?;
        let indexes = preflight::bucket_indexes(&mut session, &wanted.tables).await.map_err(broken)?;
        findings.extend(indexes.into_iter().map(|finding| (name.clone(), finding)));
        facts.insert(name.clone(), preflight::facts(&mut session).await.map_err(broken)?);
    }
    findings.extend(preflight::compare(&facts));
    refuse(findings, frozen.is_some())?;

    let deferred: Vec<String> = deferred.into_keys().collect();
    if !deferred.is_empty() {
        tracing::info!(migrations = deferred.join(", "), "new migrations wait for the end of the operation");
    }
    Ok(deferred)
}

/// The migrations that any shard has, if an operation is open: no others may run until it is over, and a shard that is new
/// gets just these, so that source and destination stay alike.
async fn applied_while_an_operation_is_open(
    shards: &BTreeMap<ShardName, Shard>,
) -> Result<Option<BTreeSet<String>>, OpenError> {
    let (mut applied, mut newest) = (BTreeSet::new(), Vec::new());
    for (name, shard) in shards {
        let broken = |error: StoreError| vec![store_fault(name, &error)];
        let mut session = shard.session().await.map_err(broken)?;
        applied.extend(migrations::applied(&mut session).await.map_err(broken)?.into_keys());
        newest.extend(migrations::newest_operation(&mut session).await.map_err(broken)?);
    }
    let last = newest.iter().map(|(id, _)| *id).max();
    let is_open = newest.iter().any(|(id, is_over)| Some(*id) == last && !is_over);
    Ok(is_open.then_some(applied))
}

async fn migrate(
    shard: &Shard,
    shards: &BTreeMap<ShardName, Shard>,
    wanted: &Wanted,
    migrations: &BTreeMap<String, String>,
) -> Result<(), OpenError> {
    let broken = |error: StoreError| vec![store_fault(&shard.name, &error)];
    let mut session = shard.session().await.map_err(broken)?;
    let Err(error) = migrations::migrate(&mut session, migrations).await else { return Ok(()) };
    let mut faults = Vec::new();
    if let MigrationError::Failed { .. } = error {
        // What other shards have by hand of an administrator may be all that is missing.
        for other in shards.values().filter(|other| other.name != shard.name) {
            let mut having = other.session().await.map_err(broken)?;
            let missing = preflight::extensions_missing(&mut having, &mut session, &wanted.tables).await;
            faults.extend(missing.map_err(broken)?.iter().map(|finding| finding_fault(&shard.name, finding)));
        }
        faults.dedup();
    }
    faults.push(migration_fault(&shard.name, &error));
    Err(faults.into())
}

/// All that is wrong with servers and tables, of all shards at once.
async fn check(
    shards: &BTreeMap<ShardName, Shard>,
    wanted: &Wanted,
    is_operating: bool,
) -> Result<KeyType, OpenError> {
    let (mut findings, mut key_type) = (Vec::new(), None);
    for (name, shard) in shards {
        let broken = |error: StoreError| vec![store_fault(name, &error)];
        let mut session = shard.session().await.map_err(broken)?;
        let limits = preflight::limits(&mut session, shards.len()).await.map_err(broken)?;
        let tables = preflight::tables(&mut session, &wanted.tables).await.map_err(broken)?;
        let found = limits.into_iter().chain(tables.findings);
        findings.extend(found.map(|finding| (name.clone(), finding)));
        key_type = key_type.or(tables.key_type);
    }
    refuse(findings, is_operating)?;
    Ok(key_type.unwrap_or(KeyType::Bigint))
}

/// Refuses the set, unless the findings are only to be told. While an operation is open a set is refused only where its
/// tables cannot even be registered: whoever mends the rest should find the operation going on, or back.
fn refuse(findings: Findings, is_operating: bool) -> Result<(), OpenError> {
    let refuses =
        |finding: &Finding| finding.refuses && (!is_operating || keeps_from_registering(finding.reason));
    let (refused, told): (Findings, Findings) =
        findings.into_iter().partition(|(_, finding)| refuses(finding));
    for (shard, finding) in told {
        tracing::warn!(shard.id = %shard, reason = finding.reason.word(), "{finding}");
    }
    let faults: Vec<Fault> = refused.iter().map(|(shard, finding)| finding_fault(shard, finding)).collect();
    if faults.is_empty() { Ok(()) } else { Err(faults.into()) }
}

fn keeps_from_registering(reason: Reason) -> bool {
    use Reason::{KeyNotFound, KeyTypeUnsupported, KeyTypesDiffer, TableNotFound, TableOwnedByOther};
    [TableNotFound, TableOwnedByOther, KeyNotFound, KeyTypeUnsupported, KeyTypesDiffer].contains(&reason)
}
