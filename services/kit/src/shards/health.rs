//! Whether each shard answers, within a bound.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use longshore_sharding::ShardName;
use serde::Serialize;
use tokio::time::timeout;

use super::{core::Core, store};

/// What one shard may take to answer. A kubelet waits a second for the whole unless told otherwise.
const CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// How a service or a part of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All of it answers
    Ok,
    /// Some of it answers
    Degraded,
    /// None of it answers
    Down,
}

/// How one shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShardHealth {
    /// `Ok` or `Down`
    pub status: Status,
}

/// How the shards are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthReport {
    /// All of them taken together
    pub status: Status,
    /// Each by its name
    pub shards: BTreeMap<ShardName, ShardHealth>,
}

impl HealthReport {
    fn of(answers: impl IntoIterator<Item = (ShardName, bool)>) -> Self {
        let health = |answers| ShardHealth { status: if answers { Status::Ok } else { Status::Down } };
        let shards: BTreeMap<_, _> = answers.into_iter().map(|(shard, ok)| (shard, health(ok))).collect();
        let up = shards.values().filter(|shard| shard.status == Status::Ok).count();
        let status = match up {
            0 => Status::Down,
            all if all == shards.len() => Status::Ok,
            _ => Status::Degraded,
        };
        Self { status, shards }
    }
}

/// I/O: asks every shard at once.
pub(crate) async fn check(core: &Core) -> HealthReport {
    let answers = core.connections.pools().into_iter().map(|(shard, pool)| async move {
        let ask = pool.lend(async |connection| store::ping(connection).await);
        let answer = timeout(CHECK_TIMEOUT, ask).await;
        (shard, matches!(answer, Ok(Ok(()))))
    });
    HealthReport::of(join_all(answers).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shard_of_two_is_degraded() {
        let cases = [
            (vec![], Status::Down),
            (vec![("a", true)], Status::Ok),
            (vec![("a", true), ("b", false)], Status::Degraded),
            (vec![("a", false), ("b", false)], Status::Down),
        ];
        for (answers, status) in cases {
            let named = |(shard, ok): (&str, bool)| (ShardName::try_from(shard.to_owned()).unwrap(), ok);
            assert_eq!(
                HealthReport::of(answers.clone().into_iter().map(named)).status,
                status,
                "{answers:?}"
            );
        }
    }

    #[test]
    fn reads_as_agreed() {
        let report = HealthReport::of([(ShardName::try_from("a".to_owned()).unwrap(), true)]);
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(json, serde_json::json!({"status": "ok", "shards": {"a": {"status": "ok"}}}));
    }
}
