//! The preloaded orders: each shard compares its rows with the recomputed ones by itself; only the numbers of
//! the orders it holds come out, to be counted over all shards.

use super::{
    JudgeError, Shard,
    findings::{Findings, Rule},
};
use crate::preload::Preload;
use futures::TryStreamExt;
use sqlx::{Executor, Row};

/// Compares all preloaded orders on all shards. I/O.
pub(super) async fn check(
    shards: &mut [Shard],
    preload: &Preload,
    findings: &mut Findings,
) -> Result<(), JudgeError> {
    if preload.orders == 0 {
        return Ok(());
    }
    let mut copies = vec![0_u8; usize::try_from(preload.orders).unwrap_or(usize::MAX)];
    for shard in shards.iter_mut().filter(|shard| shard.has_tables) {
        let found = sqlx::raw_sql(include_str!("../../sql/judge_preload_found.sql"));
        let made = shard.connection.execute(found).await;
        made.map_err(|source| shard.failed("preloaded orders", source))?;
        count(shard, &mut copies).await.map_err(|source| shard.failed("preloaded orders", source))?;
        for (sql, about) in [
            (include_str!("../../sql/judge_preload_orders.sql"), "preloaded orders"),
            (include_str!("../../sql/judge_preload_items.sql"), "preloaded items"),
            (include_str!("../../sql/judge_preload_events.sql"), "preloaded events"),
            (include_str!("../../sql/judge_preload_keys.sql"), "preloaded keys"),
        ] {
            shard.ask(sql, about, findings).await?;
        }
    }
    tally(&copies, findings);
    Ok(())
}

/// Counts one more copy of each order this shard holds. I/O.
async fn count(shard: &mut Shard, copies: &mut [u8]) -> Result<(), sqlx::Error> {
    let mut blocks =
        sqlx::query(include_str!("../../sql/judge_preload_numbers.sql")).fetch(&mut shard.connection);
    while let Some(row) = blocks.try_next().await? {
        let block = row.try_get::<i64, _>("block")?.unsigned_abs();
        for member in row.try_get::<Vec<i32>, _>("members")? {
            let number = (block << 13) | u64::from(member.unsigned_abs());
            let copy = usize::try_from(number).ok().and_then(|number| copies.get_mut(number));
            if let Some(copy) = copy {
                *copy = copy.saturating_add(1);
            }
        }
    }
    Ok(())
}

fn tally(copies: &[u8], findings: &mut Findings) {
    for (number, count) in copies.iter().enumerate() {
        match count {
            0 => {
                findings.orders.lost += 1;
                findings.add(Rule::AcknowledgedStored, format!("preloaded order number {number} is lost"));
            }
            1 => findings.checked.preloaded += 1,
            2.. => {
                findings.checked.preloaded += 1;
                findings.orders.duplicated += 1;
                findings.add(
                    Rule::OneRowPerKey,
                    format!("preloaded order number {number} is stored {count} times"),
                );
            }
        }
    }
}
