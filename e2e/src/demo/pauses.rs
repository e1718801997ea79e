//! How long each bucket took no writes while it moved: from when the giving shard was asked until the
//! receiving shard owned it. Both shards share this machine's clock.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use checker::Store;
use sqlx::{Connection as _, PgConnection, Row as _};

use super::buckets::connect;

/// One bucket's arrival, told apart from earlier and later ones by the epoch.
type Arrival = (String, i32, i64);

/// The write pause of each bucket that was handed over, in milliseconds. To be read before
/// another operation starts, which clears what this rests on.
pub(super) async fn read(stores: &[Store]) -> Result<Vec<f64>> {
    let mut asked: HashMap<Arrival, f64> = HashMap::new();
    let mut arrived: HashMap<Arrival, f64> = HashMap::new();
    for Store { name: shard, url } in stores {
        let mut connection = connect(shard, url).await?;
        let read = async {
            for row in rows(&mut connection, "longshore.handover", ASKED).await? {
                asked.insert(
                    (row.try_get("peer")?, row.try_get("bucket")?, row.try_get("epoch")?),
                    row.try_get("at_ms")?,
                );
            }
            for row in rows(&mut connection, "longshore.ownership", OWNED).await? {
                arrived.insert(
                    (shard.clone(), row.try_get("bucket")?, row.try_get("epoch")?),
                    row.try_get("at_ms")?,
                );
            }
            anyhow::Ok(())
        };
        read.await.with_context(|| format!("failed to read the pauses from shard {shard}"))?;
        connection.close().await?;
    }
    Ok(asked.iter().filter_map(|(arrival, asked)| Some(arrived.get(arrival)? - asked)).collect())
}

/// Probes travel the same way and bear the bucket -1.
const ASKED: &str = "select peer, bucket, epoch, (extract(epoch from asked_at) * 1000)::float8 as at_ms
                     from longshore.handover where bucket >= 0";
const OWNED: &str = "select bucket, epoch, (extract(epoch from since) * 1000)::float8 as at_ms
                     from longshore.ownership where state = 'owned'";

/// What a query answers; nothing where its table is not there.
async fn rows(
    connection: &mut PgConnection,
    table: &str,
    query: &'static str,
) -> Result<Vec<sqlx::postgres::PgRow>> {
    let there =
        sqlx::query("select to_regclass($1) is not null").bind(table).fetch_one(&mut *connection).await?;
    if !there.try_get::<bool, _>(0)? {
        return Ok(Vec::new());
    }
    Ok(sqlx::query(query).fetch_all(connection).await?)
}
