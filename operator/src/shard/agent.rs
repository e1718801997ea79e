//! The shard agent: the SQL in `operator/sql/agent`, applied and kept current.

use longshore_sharding::{BucketCount, ShardName};
use sha2::{Digest, Sha256};
use sqlx::{Connection as _, PgConnection, Row};

use super::{StoreError, failed};

/// Run once by an administrator; a test and the harness run it too.
pub const ROLES: &str = include_str!("../../sql/roles.sql");

const AGENT: [&str; 5] = [
    include_str!("../../sql/agent/1_tables.sql"),
    include_str!("../../sql/agent/2_gate.sql"),
    include_str!("../../sql/agent/3_register.sql"),
    include_str!("../../sql/agent/4_handover.sql"),
    include_str!("../../sql/agent/5_operation.sql"),
];

/// Who operates a set whose OrderShardSet was deleted.
const NOBODY: &str = "nobody";

/// Who a shard is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub shard: ShardName,
    /// Names the set for good: `metadata.uid` of the OrderShardSet that made it.
    pub set_uid: String,
    /// `metadata.uid` of the OrderShardSet that operates it now.
    pub owner: String,
    /// The OrderShardSet that it may be taken from.
    pub adopts: Option<String>,
    pub buckets: BucketCount,
}

impl Membership {
    /// In a set that its maker still operates.
    #[must_use]
    pub fn new(shard: ShardName, maker_uid: &str, buckets: BucketCount) -> Self {
        Self { shard, set_uid: maker_uid.to_owned(), owner: maker_uid.to_owned(), adopts: None, buckets }
    }
}

/// What a shard's `longshore.meta` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    pub shard: String,
    pub set_uid: String,
    /// The OrderShardSet that operates the set.
    pub owner: String,
    pub buckets: i32,
    pub shards_version: i64,
    pub term: i64,
    /// Who claimed the term.
    pub holder: String,
    agent: String,
}

/// Why a database cannot be this shard.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(
        "the database belongs to OrderShardSet {found}; if that one is gone for good, in its cluster too, \
         adopt it: kubectl annotate ordershardset NAME longshore.dev/adopt={found}"
    )]
    OtherOwner { found: String },
    #[error("the database belongs to the set {found}, and others of its shards to {expected}")]
    OtherSet { found: String, expected: String },
    #[error("the agent in the database has no row of its own: longshore.meta is empty")]
    Headless,
    #[error("the database is shard {found:?} of the set already")]
    OtherShard { found: String },
    #[error("the database was set up with {found} buckets")]
    OtherBuckets { found: i32 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads the shard's own row; `None` where there is no agent yet.
///
/// # Errors
/// When the shard cannot be asked.
pub async fn meta(connection: &mut PgConnection) -> Result<Option<Meta>, StoreError> {
    let failed = failed("read longshore.meta");
    let exists: bool = sqlx::query("select to_regclass('longshore.meta') is not null as there")
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get("there"))
        .map_err(&failed)?;
    if !exists {
        return Ok(None);
    }
    // Through JSON, since an older agent has no owner.
    let row = sqlx::query(
        "select shard, set_uid, coalesce(nullif(to_jsonb(m) ->> 'owner', ''), set_uid) as owner, buckets, shards_version, term, holder, agent
         from longshore.meta m",
    )
    .fetch_optional(connection)
    .await
    .map_err(&failed)?;
    let read = |row: sqlx::postgres::PgRow| {
        Ok(Meta {
            shard: row.try_get("shard")?,
            set_uid: row.try_get("set_uid")?,
            owner: row.try_get("owner")?,
            buckets: row.try_get("buckets")?,
            shards_version: row.try_get("shards_version")?,
            term: row.try_get("term")?,
            holder: row.try_get("holder")?,
            agent: row.try_get("agent")?,
        })
    };
    row.map(read).transpose().map_err(failed)
}

/// Makes sure that the agent is there, current, and for this shard of this set. Repeating it changes nothing; if we
/// die in the middle, nothing has happened: it is one transaction.
///
/// # Errors
/// When the database is something else already, or refuses.
pub async fn install(connection: &mut PgConnection, membership: &Membership) -> Result<Meta, AgentError> {
    let wanted = checksum();
    let found = meta(connection).await?;
    if let Some(found) = &found {
        check(found, membership)?;
    }
    if found.is_none_or(|found| found.agent != wanted) {
        apply(connection, membership, &wanted).await.map_err(failed("install the shard agent"))?;
    }
    let installed = meta(connection).await?.ok_or(AgentError::Headless)?;
    check(&installed, membership)?;
    if installed.owner == membership.owner {
        return Ok(installed);
    }
    let adopt = sqlx::query("select longshore.adopt($1, $2)").bind(&installed.owner).bind(&membership.owner);
    adopt.execute(connection).await.map_err(failed("adopt the shard"))?;
    tracing::info!(shard.id = installed.shard, from = installed.owner, "adopted");
    Ok(Meta { owner: membership.owner.clone(), ..installed })
}

/// Whether the server is another one than that on which the shard was last compared with its peers, or was started since.
///
/// # Errors
/// When the shard cannot be asked.
pub async fn is_suspect(connection: &mut PgConnection) -> Result<bool, StoreError> {
    sqlx::query(
        "select (a.server, a.started_at) <> (longshore.this_server(), pg_postmaster_start_time()) as suspect from longshore.armed a",
    )
    .fetch_one(connection)
    .await
    .and_then(|row| row.try_get("suspect"))
    .map_err(failed("read longshore.armed"))
}

fn check(found: &Meta, membership: &Membership) -> Result<(), AgentError> {
    let may_adopt = || found.owner == NOBODY || Some(&found.owner) == membership.adopts.as_ref();
    if found.owner != membership.owner && !may_adopt() {
        return Err(AgentError::OtherOwner { found: found.owner.clone() });
    }
    if found.set_uid != membership.set_uid {
        let (found, expected) = (found.set_uid.clone(), membership.set_uid.clone());
        return Err(AgentError::OtherSet { found, expected });
    }
    if found.shard != membership.shard.as_str() {
        return Err(AgentError::OtherShard { found: found.shard.clone() });
    }
    if u32::try_from(found.buckets) != Ok(membership.buckets.get()) {
        return Err(AgentError::OtherBuckets { found: found.buckets });
    }
    Ok(())
}

async fn apply(
    connection: &mut PgConnection,
    membership: &Membership,
    checksum: &str,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    // Two operators that start at once take turns; functions may name what register() makes later.
    sqlx::raw_sql(
        "set local role longshore_owner; set local check_function_bodies = off; \
         set local lock_timeout = '5s'; select pg_advisory_xact_lock(19541, 0)",
    )
    .execute(&mut *tx)
    .await?;
    for part in AGENT {
        sqlx::raw_sql(part).execute(&mut *tx).await?;
    }
    let buckets = i32::try_from(membership.buckets.get()).unwrap_or(i32::MAX);
    sqlx::query("insert into longshore.meta (shard, set_uid, owner, buckets) values ($1, $2, $3, $4) on conflict (one) do nothing")
        .bind(membership.shard.as_str())
        .bind(&membership.set_uid)
        .bind(&membership.owner)
        .bind(buckets)
        .execute(&mut *tx)
        .await?;
    sqlx::query(
        "insert into longshore.ownership (bucket) select generate_series(0, (select buckets from longshore.meta) - 1) on conflict do nothing",
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "insert into longshore.armed (server, started_at) select longshore.this_server(), pg_postmaster_start_time() on conflict do nothing",
    )
    .execute(&mut *tx)
    .await?;
    // The generated functions belong to the agent's text: they are made anew before anything uses them.
    sqlx::query("update longshore.meta set agent = $1, registered = ''")
        .bind(checksum)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}

fn checksum() -> String {
    let mut hasher = Sha256::new();
    AGENT.iter().for_each(|part| hasher.update(part.as_bytes()));
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
