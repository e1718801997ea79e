//! Who owns which bucket, how many buckets an edit moved, and how few it could have moved.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use checker::Store;
use sqlx::{Connection as _, PgConnection, Row as _};

/// Rows and bytes of all tables in the moved buckets, where they are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    pub(super) rows: i64,
    pub(super) bytes: i64,
}

/// The owner of each bucket, as the shards say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ownership {
    owners: BTreeMap<i32, String>,
}

/// The buckets that have another owner than before, by their new owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    by_owner: BTreeMap<String, Vec<i32>>,
}

impl Ownership {
    pub(super) async fn read(stores: &[Store]) -> Result<Self> {
        let mut owners = BTreeMap::new();
        for Store { name: shard, url } in stores {
            let mut connection = connect(shard, url).await?;
            // A shard that is not (or no longer) in the set has no agent, and owns nothing.
            let row = sqlx::query("select to_regclass('longshore.ownership') is not null")
                .fetch_one(&mut connection)
                .await?;
            if row.try_get(0)? {
                let rows = sqlx::query("select bucket from longshore.ownership where state = 'owned'")
                    .fetch_all(&mut connection)
                    .await
                    .with_context(|| format!("failed to read the ownership of shard {shard}"))?;
                for row in rows {
                    owners.insert(row.try_get(0)?, shard.clone());
                }
            }
            connection.close().await?;
        }
        Ok(Self { owners })
    }

    pub(super) fn moved_since(&self, before: &Self) -> Moved {
        let mut by_owner: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for (bucket, owner) in &self.owners {
            if before.owners.get(bucket) != Some(owner) {
                by_owner.entry(owner.clone()).or_default().push(*bucket);
            }
        }
        Moved { by_owner }
    }

    /// The fewest buckets that must move so that each of these shards, all of one weight, has its share.
    pub(super) fn floor(&self, shards: &[String]) -> usize {
        let mut counts: Vec<usize> =
            shards.iter().map(|shard| self.owners.values().filter(|owner| *owner == shard).count()).collect();
        counts.sort_unstable_by(|one, other| other.cmp(one));
        let share = self.owners.len() / shards.len().max(1);
        let remainder = self.owners.len() % shards.len().max(1);
        // The shards that have most keep the buckets that are left over.
        let kept = counts
            .iter()
            .enumerate()
            .map(|(rank, count)| (*count).min(share + usize::from(rank < remainder)));
        self.owners.len() - kept.sum::<usize>()
    }
}

impl Moved {
    pub(super) fn count(&self) -> usize {
        self.by_owner.values().map(Vec::len).sum()
    }

    /// Counts what the move carried. Exact up to the few rows written in a bucket since it arrived.
    pub(super) async fn measure(&self, stores: &[Store], buckets: u32) -> Result<Copied> {
        let mut copied = Copied::default();
        for (owner, moved) in &self.by_owner {
            let store = stores.iter().find(|store| store.name == *owner).context("an owner is a shard")?;
            let mut connection = connect(owner, &store.url).await?;
            let row = sqlx::query(include_str!("moved_rows.sql"))
                .bind(moved)
                .bind(i64::from(buckets) - 1)
                .fetch_one(&mut connection)
                .await
                .with_context(|| format!("failed to count the rows that moved to shard {owner}"))?;
            copied.rows += row.try_get::<i64, _>("rows")?;
            copied.bytes += row.try_get::<i64, _>("bytes")?;
            connection.close().await?;
        }
        Ok(copied)
    }
}

/// To a shard, as its administrator.
pub(super) async fn connect(shard: &str, url: &str) -> Result<PgConnection> {
    PgConnection::connect(url).await.with_context(|| format!("failed to connect to shard {shard}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shop::shard_names;

    fn ownership(counts: &[(&str, usize)]) -> Ownership {
        let owners =
            counts.iter().flat_map(|(shard, count)| std::iter::repeat_n((*shard).to_owned(), *count));
        Ownership { owners: (0..).zip(owners).collect() }
    }

    #[test]
    fn the_floor_is_what_new_shards_need_and_old_ones_must_give() {
        let cases = [
            (ownership(&[("a", 4096)]), 2, 2048),
            (ownership(&[("a", 2048), ("b", 2048)]), 1, 2048),
            (ownership(&[("a", 1366), ("b", 1365), ("c", 1365)]), 5, 1638),
            (ownership(&[("a", 10)]), 3, 6),
            (ownership(&[("a", 3), ("b", 3)]), 2, 0),
        ];
        for (before, to, floor) in cases {
            assert_eq!(before.floor(&shard_names(to)), floor, "{} shards", to);
        }
    }

    #[test]
    fn moved_is_what_changed_its_owner() {
        let before = ownership(&[("a", 4)]);
        let after = ownership(&[("a", 3), ("b", 1)]);
        assert_eq!(after.moved_since(&before).by_owner, BTreeMap::from([("b".to_owned(), vec![3])]));
        assert_eq!(before.moved_since(&before).count(), 0);
    }
}
