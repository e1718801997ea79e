//! A read over every bucket of the set, each answered by exactly one owner. Owns the rounds: whom to ask for what, and
//! what is still missing; the shards say themselves what they may answer for.

use std::{collections::BTreeMap, time::Duration};

use futures::stream::{self, StreamExt};
use longshore_sharding::{BucketCount, BucketId, BucketRange, Ranges, ShardName};
use sqlx::{PgConnection, Row, postgres::PgRow};
use tokio::time::{Instant, timeout_at};

use super::{
    RetryReason, RouteError,
    connections::Pool,
    core::Core,
    errors::Fault,
    map::Claim,
    retry::{Failure, GRACE, pause_after},
    store,
};

/// How many shards are asked at a time.
const SHARDS_AT_ONCE: usize = 8;

/// How long to wait in vain before every shard is asked what it owns of what is missing, in case news was missed. Longer
/// than most handovers; reads of this kind are rare, so that it may be shorter than for single buckets.
const SURVEY_INTERVAL: Duration = Duration::from_millis(100);

/// What one shard is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    asked: Ranges,
    buckets: BucketCount,
}

impl Share {
    /// The buckets: `$1` of [`guarded_among!`](crate::guarded_among) statements.
    #[must_use]
    pub fn asked(&self) -> String {
        store::multirange(&self.asked)
    }

    /// What to mask a key's hash with, as SQL's `bigint`.
    #[must_use]
    pub fn mask_bigint(&self) -> i64 {
        i64::from(self.buckets.get()) - 1
    }

    /// The buckets that a [`guarded_among!`](crate::guarded_among) statement vouches for: the one value of its column
    /// `vouched` that is not null.
    ///
    /// # Errors
    /// When the rows do not say.
    pub fn vouched(rows: &[PgRow]) -> Result<Ranges, sqlx::Error> {
        for row in rows {
            if let Some(vouched) = row.try_get::<Option<String>, _>("vouched")? {
                return store::ranges(&vouched);
            }
        }
        Err(sqlx::Error::RowNotFound)
    }
}

/// What one shard answered, and for which buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part<T> {
    /// The shard
    pub shard: ShardName,
    /// The buckets that it owned when it answered
    pub buckets: Ranges,
    /// What was made of their rows
    pub value: T,
}

/// Makes a read statement for [`ShardRouter::scatter`](crate::shards::ShardRouter::scatter), `$1` being
/// [`Share::asked`](crate::shards::Share::asked). The text follows a `with` list that defines `guard (vouched)`, one row:
/// the buckets that this very statement may answer for. It must read rows of those alone, before it limits or counts them,
/// and return `vouched` once, as text:
///
/// ```sql
/// , page as (
///     select * from orders where (hashint8extended(user_id, 0) & $2)::int <@ (select vouched from guard)
///     order by order_id desc limit $3
/// ) select guard.vouched::text, page.* from guard full join page on false
/// ```
#[macro_export]
macro_rules! guarded_among {
    ($($sql:expr),+ $(,)?) => {
        concat!(
            "with guard as materialized (
                select longshore.owned_among($1::text::int4multirange, longshore.seen_among($1::text::int4multirange))
                       as vouched) ",
            $($sql),+
        )
    };
}

/// One scatter: what was answered so far, and what was not.
pub(crate) struct Gather<'c, T> {
    core: &'c Core,
    buckets: BucketCount,
    deadline: Instant,
    next_survey: Instant,
    missing: Ranges,
    /// What was believed of the missing buckets when they were last asked for.
    believed: Vec<(BucketId, Option<Claim>)>,
    reason: RetryReason,
    source: Option<sqlx::Error>,
    parts: Vec<Part<T>>,
}

impl<'c, T> Gather<'c, T> {
    pub(crate) fn new(core: &'c Core, buckets: BucketCount, deadline: Instant) -> Self {
        Self {
            core,
            buckets,
            deadline,
            next_survey: Instant::now() + SURVEY_INTERVAL,
            missing: [buckets.all()].into_iter().collect(),
            believed: Vec::new(),
            reason: RetryReason::Unknown,
            source: None,
            parts: Vec::new(),
        }
    }

    /// I/O: asks for what is missing until nothing is.
    pub(crate) async fn run<F>(mut self, work: &F) -> Result<Vec<Part<T>>, RouteError>
    where
        F: AsyncFn(&mut PgConnection, Share) -> Result<(Ranges, T), sqlx::Error>,
    {
        loop {
            let deadline = self.deadline;
            let asking = self.shares().into_iter().map(|(shard, (pool, share))| async move {
                let answer = timeout_at(deadline + GRACE, ask(&pool, share.clone(), deadline, work)).await;
                (
                    shard,
                    share,
                    answer.map_err(|_| Failure::Overdue).and_then(|it| it.map_err(Failure::Answered)),
                )
            });
            let answers: Vec<_> = stream::iter(asking).buffer_unordered(SHARDS_AT_ONCE).collect().await;
            for (shard, share, answer) in answers {
                match answer {
                    Ok((vouched, value)) => self.take(shard, &share, &vouched, value),
                    Err(failure) => self.fail(&share, failure)?,
                }
            }
            if self.missing.is_empty() {
                return Ok(self.parts);
            }
            self.pause().await?;
        }
    }

    /// Who is asked for what: each missing bucket whose owner is known of that owner alone.
    fn shares(&mut self) -> BTreeMap<ShardName, (Pool, Share)> {
        self.believed = self.core.claims(&self.missing);
        let mut wanted: BTreeMap<&ShardName, Vec<BucketRange>> = BTreeMap::new();
        for (bucket, claim) in &self.believed {
            if let Some(claim) = claim {
                wanted.entry(&claim.shard).or_default().push(BucketRange { first: *bucket, last: *bucket });
            }
        }
        let share = |(shard, asked): (&ShardName, Vec<BucketRange>)| {
            let pool = self.core.connections.pool(shard)?;
            let asked = asked.into_iter().collect();
            Some((shard.clone(), (pool, Share { asked, buckets: self.buckets })))
        };
        wanted.into_iter().filter_map(share).collect()
    }

    /// Takes a shard's answer for what it was asked for and vouches for, which is not missing any more.
    fn take(&mut self, shard: ShardName, share: &Share, vouched: &Ranges, value: T) {
        let buckets: Ranges = vouched
            .as_slice()
            .iter()
            .flat_map(|range| share.asked.intersection(*range).as_slice().to_vec())
            .collect();
        if buckets.size() < share.asked.size() {
            self.retry(RetryReason::HandingOver, None);
        }
        if !buckets.is_empty() {
            self.missing = without(&self.missing, &buckets);
            self.parts.push(Part { shard, buckets, value });
        }
    }

    /// Takes a shard's failure; fails where no other try can help.
    fn fail(&mut self, share: &Share, failure: Failure) -> Result<(), RouteError> {
        let Failure::Answered(error) = failure else {
            self.retry(RetryReason::Timeout, None);
            return Ok(());
        };
        match Fault::of(&error) {
            Fault::Moved(_) => self.retry(RetryReason::Moved, Some(error)),
            Fault::Passing(reason) => {
                if reason == RetryReason::Credentials {
                    self.core.reload_credentials();
                }
                self.retry(reason, Some(error));
            }
            Fault::Lasting => {
                return Err(RouteError::Statement { bucket: first(&share.asked), source: error });
            }
        }
        Ok(())
    }

    fn retry(&mut self, reason: RetryReason, source: Option<sqlx::Error>) {
        metrics::counter!("longshore_router_retries_total", "reason" => reason.as_str()).increment(1);
        (self.reason, self.source) = (reason, source);
    }

    /// The time is over.
    pub(crate) fn expired(&mut self, reason: RetryReason) -> RouteError {
        RouteError::Deadline { bucket: first(&self.missing), reason, source: self.source.take() }
    }

    /// Waits for news of a missing bucket or a few milliseconds, whichever comes first; fails at the deadline.
    async fn pause(&mut self) -> Result<(), RouteError> {
        if Instant::now() >= self.deadline {
            return Err(self.expired(self.reason));
        }
        self.believed.retain(|(bucket, _)| self.missing.contains(*bucket));
        let unknown = self.believed.iter().any(|(_, claim)| claim.is_none());
        if unknown || Instant::now() >= self.next_survey {
            self.core.sought.add(self.missing.buckets());
            self.next_survey = Instant::now() + SURVEY_INTERVAL;
        }
        let until = self.deadline.min(Instant::now() + pause_after(self.reason));
        let mut news = self.core.map_news();
        let _ = timeout_at(until, news.wait_for(|()| self.core.claims(&self.missing) != self.believed)).await;
        Ok(())
    }
}

async fn ask<T, F>(pool: &Pool, share: Share, deadline: Instant, work: &F) -> Result<(Ranges, T), sqlx::Error>
where
    F: AsyncFn(&mut PgConnection, Share) -> Result<(Ranges, T), sqlx::Error>,
{
    let mut lease = pool.take().await?;
    let time_left: Duration = deadline.saturating_duration_since(Instant::now());
    let result = store::read(&mut lease, time_left, async |connection| work(connection, share).await).await;
    lease.settle(result)
}

fn first(ranges: &Ranges) -> BucketId {
    ranges.as_slice().first().map_or(BucketId::new(0), |range| range.first)
}

/// The buckets of `whole` that are not in `part`.
fn without(whole: &Ranges, part: &Ranges) -> Ranges {
    let single = |bucket| BucketRange { first: bucket, last: bucket };
    whole.buckets().filter(|bucket| !part.contains(*bucket)).map(single).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u16, u16)]) -> Ranges {
        pairs.iter().filter_map(|(first, last)| BucketRange::new(*first, *last)).collect()
    }

    #[test]
    fn what_is_taken_away_is_gone() {
        let cases = [
            (vec![(0, 9)], vec![], vec![(0, 9)]),
            (vec![(0, 9)], vec![(0, 9)], vec![]),
            (vec![(0, 9)], vec![(3, 4), (9, 20)], vec![(0, 2), (5, 8)]),
            (vec![(0, 0), (65_535, 65_535)], vec![(0, 0)], vec![(65_535, 65_535)]),
        ];
        for (whole, part, rest) in cases {
            assert_eq!(without(&ranges(&whole), &ranges(&part)), ranges(&rest), "{whole:?} without {part:?}");
        }
    }
}
