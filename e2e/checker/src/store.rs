//! A shard as the checker sees it: a name and an administrator's URL. Owns the reading of
//! `longshore.ownership`; knows nothing of orders.

use sqlx::{ConnectOptions, PgConnection, Row, postgres::PgConnectOptions};
use std::{fmt, str::FromStr};

/// A shard's name and a URL of someone who may read everything there.
#[derive(Clone)]
pub struct Store {
    /// The shard's name, as in messages.
    pub name: String,
    /// `postgres://user:password@host:port/database`, or what [`PgConnectOptions`] takes.
    pub url: String,
}

/// The URL holds a password, so it is never printed.
impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Store").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Store {
    /// A shard called `name`, reached at `url`.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self { name: name.into(), url: url.into() }
    }

    /// Opens one direct connection. I/O.
    pub(crate) async fn connect(&self) -> Result<PgConnection, StoreError> {
        let options = PgConnectOptions::from_str(&self.url)
            .map_err(|source| self.failed("read the URL", source))?
            .application_name("longshore-checker")
            .disable_statement_logging();
        options.connect().await.map_err(|source| self.failed("connect", source))
    }

    /// An error that says what could not be done on this shard.
    pub(crate) fn failed(&self, doing: &'static str, source: sqlx::Error) -> StoreError {
        StoreError { shard: self.name.clone(), doing, source }
    }

    /// Everything this shard says about buckets, as runs. Empty where the agent is not (or no longer)
    /// installed, or the shard is quarantined: such a shard owns nothing. I/O.
    pub(crate) async fn ownership(&self, connection: &mut PgConnection) -> Result<Vec<Run>, StoreError> {
        if !self.has_table(connection, "longshore.ownership").await?
            || self.is_quarantined(connection).await?
        {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(include_str!("../sql/ownership.sql"))
            .fetch_all(connection)
            .await
            .map_err(|source| self.failed("read the ownership", source))?;
        rows.iter()
            .map(Run::from_row)
            .collect::<Result<_, _>>()
            .map_err(|source| self.failed("decode the ownership", source))
    }

    /// Whether it refuses everybody, since its server is not the one that its agent remembers. I/O.
    async fn is_quarantined(&self, connection: &mut PgConnection) -> Result<bool, StoreError> {
        if !self.has_table(connection, "longshore.armed").await? {
            return Ok(false);
        }
        let text = "select server <> (select system_identifier from pg_control_system()) || '/' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
                    from longshore.armed";
        let quarantined = sqlx::query_scalar(text).fetch_one(connection).await;
        quarantined.map_err(|source| self.failed("look for a quarantine", source))
    }

    /// Whether a table of that (qualified) name exists. I/O.
    pub(crate) async fn has_table(
        &self,
        connection: &mut PgConnection,
        table: &str,
    ) -> Result<bool, StoreError> {
        sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(table)
            .fetch_one(connection)
            .await
            .map_err(|source| self.failed("look for a table", source))
    }
}

/// A shard could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing} at shard {shard}")]
pub struct StoreError {
    shard: String,
    doing: &'static str,
    #[source]
    source: sqlx::Error,
}

/// Consecutive buckets with one state and one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u32,
    /// Inclusive.
    pub(crate) last: u32,
    pub(crate) owned: bool,
    /// `moved` here: the rows were this shard's before.
    pub(crate) moved: bool,
    pub(crate) epoch: i64,
}

impl Run {
    fn from_row(row: &sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        let bucket = |column| row.try_get::<i32, _>(column).map(i32::unsigned_abs);
        let state: String = row.try_get("state")?;
        Ok(Self {
            first: bucket("first")?,
            last: bucket("last")?,
            owned: state == "owned",
            moved: state == "moved",
            epoch: row.try_get("epoch")?,
        })
    }
}
