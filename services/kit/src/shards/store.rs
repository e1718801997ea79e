//! The statements that the router itself sends to a shard. It reads the agent's tables and never writes.

use std::{collections::BTreeMap, time::Duration};

use longshore_sharding::{BucketCount, BucketId, BucketRange, Ranges, ShardName, ShardingError};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres, Row, postgres::PgRow};

use super::{Addresses, Endpoint, directory::Report};

/// The channel on which a shard tells of arrivals, departures and endpoints.
pub(crate) const CHANNEL: &str = "longshore";

/// Buckets that a shard owns, all of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedRun {
    pub(crate) range: BucketRange,
    pub(crate) epoch: i64,
}

/// One snapshot: the version and the list it counts belong together. Through JSON, since an older agent knows of no poolers.
const REPORT: &str = "
    select m.shard, m.set_uid, m.buckets, m.shards_version, s.name, s.host, s.port, s.dbname,
           to_jsonb(s) ->> 'pooler_host' as pooler_host, (to_jsonb(s) ->> 'pooler_port')::integer as pooler_port
    from longshore.meta m left join longshore.shard s on true";

/// What the shard says of itself and of its set.
pub(crate) async fn report<'c>(
    connection: impl Executor<'c, Database = Postgres>,
) -> Result<Report, sqlx::Error> {
    let rows = sqlx::query(REPORT).fetch_all(connection).await?;
    let mut shards = BTreeMap::new();
    for row in &rows {
        if let Some(name) = row.try_get::<Option<String>, _>("name")? {
            shards.insert(shard_name(name)?, addresses(row)?);
        }
    }
    let meta = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let buckets = u32::try_from(meta.try_get::<i32, _>("buckets")?).map_err(decode)?;
    Ok(Report {
        shard: shard_name(meta.try_get("shard")?)?,
        set_uid: meta.try_get("set_uid")?,
        buckets: BucketCount::new(buckets).map_err(decode)?,
        version: meta.try_get("shards_version")?,
        shards,
    })
}

/// As `longshore.owned_range`, but with the epochs: of two shards that claim a bucket, the higher one is right.
const OWNED_RUNS: &str = "
    select min(bucket) as first, max(bucket) as last, epoch
    from (select bucket, epoch, bucket - row_number() over (partition by epoch order by bucket) as run
          from longshore.ownership where state = 'owned' and bucket <@ $1::text::int4multirange) numbered
    group by epoch, run";

/// Which of these buckets the shard owns.
pub(crate) async fn owned_runs<'c>(
    connection: impl Executor<'c, Database = Postgres>,
    among: &Ranges,
) -> Result<Vec<OwnedRun>, sqlx::Error> {
    let rows = sqlx::query(OWNED_RUNS).bind(multirange(among)).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let range = BucketRange { first: bucket(row, "first")?, last: bucket(row, "last")? };
            Ok(OwnedRun { range, epoch: row.try_get("epoch")? })
        })
        .collect()
}

/// Tells the operator, by the connection's name, for which version of the list every shard is connected.
pub(crate) async fn show_version<'c>(
    connection: impl Executor<'c, Database = Postgres>,
    version: i64,
) -> Result<(), sqlx::Error> {
    const SQL: &str = "select set_config('application_name', $1, false)";
    sqlx::query(SQL).bind(listener_name(version)).execute(connection).await.map(drop)
}

/// The name under which a router's notification connection is known.
pub(crate) fn listener_name(version: i64) -> String {
    format!("longshore-router v={version}")
}

/// Answers when the shard's agent is there.
pub(crate) async fn ping<'c>(connection: impl Executor<'c, Database = Postgres>) -> Result<(), sqlx::Error> {
    sqlx::query("select 1 from longshore.meta").fetch_one(connection).await.map(drop)
}

/// Runs `work` in a transaction that has entered `bucket`: two round trips and those of `work`. Afterwards no
/// transaction is open, unless the connection itself is lost.
pub(crate) async fn write<T>(
    connection: &mut PgConnection,
    bucket: BucketId,
    time_left: Duration,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    // The gate may be held for a while: the server gives up when we do, and lets go of the connection.
    let timeout_ms = time_left.as_millis().max(1);
    let begin_and_enter = format!(
        "begin isolation level read committed; set local statement_timeout = {timeout_ms}; \
         select longshore.enter({bucket})"
    );
    transact(connection, begin_and_enter, work).await
}

/// Runs `work` in a transaction whose statements may take this long each, and write nothing. Afterwards none is open,
/// unless the connection itself is lost.
pub(crate) async fn read<T>(
    connection: &mut PgConnection,
    time_left: Duration,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let timeout_ms = time_left.as_millis().max(1);
    let begin =
        format!("begin isolation level read committed read only; set local statement_timeout = {timeout_ms}");
    transact(connection, begin, work).await
}

async fn transact<T>(
    connection: &mut PgConnection,
    begin: String,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
) -> Result<T, sqlx::Error> {
    let refusal = match connection.begin_with(AssertSqlSafe(begin)).await {
        Ok(mut tx) => {
            return match work(&mut tx).await {
                Ok(value) => tx.commit().await.map(|()| value),
                Err(error) => tx.rollback().await.and(Err(error)),
            };
        }
        Err(refusal) => refusal,
    };
    // sqlx counts a transaction only when all of its first statements succeed. Where `enter` refuses, the server
    // still has one open, aborted: without this the pool would hand it to the next request.
    sqlx::raw_sql("rollback").execute(connection).await?;
    Err(refusal)
}

/// As SQL's `int4multirange` is written.
pub(crate) fn multirange(ranges: &Ranges) -> String {
    let parts: Vec<_> =
        ranges.as_slice().iter().map(|range| format!("[{},{}]", range.first, range.last)).collect();
    format!("{{{}}}", parts.join(","))
}

/// What SQL writes as an `int4multirange`, its ranges always closed at the lower end and open at the upper one.
pub(crate) fn ranges(multirange: &str) -> Result<Ranges, sqlx::Error> {
    let failed = || decode(NotRanges(multirange.to_owned()));
    let inner = multirange.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(failed)?;
    let range = |part: &str| {
        let (lower, upper) = part.trim_start_matches('[').trim_end_matches(')').split_once(',')?;
        BucketRange::new(lower.parse().ok()?, u16::try_from(upper.parse::<u32>().ok()?.checked_sub(1)?).ok()?)
    };
    let parts = inner.split("),").filter(|part| !part.is_empty());
    parts.map(|part| range(part).ok_or_else(failed)).collect()
}

/// A shard answered with something else than ranges of buckets.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a list of bucket ranges")]
struct NotRanges(String);

fn addresses(row: &PgRow) -> Result<Addresses, sqlx::Error> {
    let at = |host: String, port: i32| {
        let port = u16::try_from(port).map_err(decode)?;
        Ok::<_, sqlx::Error>(Endpoint { host, port, dbname: row.try_get("dbname")? })
    };
    let pooler: (Option<String>, Option<i32>) = (row.try_get("pooler_host")?, row.try_get("pooler_port")?);
    let pooler = pooler.0.zip(pooler.1).map(|(host, port)| at(host, port)).transpose()?;
    Ok(Addresses { direct: at(row.try_get("host")?, row.try_get("port")?)?, pooler })
}

fn bucket(row: &PgRow, column: &str) -> Result<BucketId, sqlx::Error> {
    u16::try_from(row.try_get::<i32, _>(column)?).map(BucketId::new).map_err(decode)
}

fn shard_name(name: String) -> Result<ShardName, sqlx::Error> {
    ShardName::try_from(name).map_err(|error: ShardingError| decode(error))
}

fn decode(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_and_read_as_postgres_does() {
        let of = |pairs: &[(u16, u16)]| -> Ranges {
            pairs.iter().filter_map(|(first, last)| BucketRange::new(*first, *last)).collect()
        };
        let cases = [
            (of(&[]), "{}", "{}"),
            (of(&[(0, 0)]), "{[0,0]}", "{[0,1)}"),
            (of(&[(3, 7), (9, 65_535)]), "{[3,7],[9,65535]}", "{[3,8),[9,65536)}"),
        ];
        for (value, written, read) in cases {
            assert_eq!(multirange(&value), written);
            assert_eq!(ranges(read).unwrap(), value);
        }
        for bad in ["", "{", "0-3", "{[0,0)}", "{[5,3)}", "{[0,65537)}", "{[-1,3)}", "{[a,b)}", "{[0,1),,}"] {
            assert!(ranges(bad).is_err(), "{bad}");
        }
    }
}
