//! The router as services use it.

use std::{sync::Arc, time::Duration};

use longshore_sharding::{BucketCount, BucketId, Key, Ranges};
use sqlx::PgConnection;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout_at},
};

use super::{
    CredentialsError, HealthReport, RetryReason, RouteError,
    connections::Pool,
    core::Core,
    credentials, health, listener,
    retry::Tries,
    scatter::{Gather, Part, Share},
    store, survey,
};
use crate::settings::ShardSettings;

/// Sends statements to the shard that owns their bucket. Cheap to clone; ends with its last clone.
#[derive(Clone)]
pub struct ShardRouter {
    core: Arc<Core>,
    deadline: Duration,
    /// As many scatters at once as leave half of each pool to other requests.
    scatters: Arc<Semaphore>,
    _tasks: Arc<JoinSet<()>>,
}

/// The bucket of a request among how many: what its statements need as parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The bucket
    pub bucket: BucketId,
    /// How many there are
    pub buckets: BucketCount,
}

impl Placement {
    /// The bucket as SQL's `int`: the first parameter of [`guarded!`](crate::guarded) statements.
    #[must_use]
    pub fn bucket_int(self) -> i32 {
        self.bucket.as_i32()
    }

    /// What to mask a key's hash with, as SQL's `bigint`.
    #[must_use]
    pub fn mask_bigint(self) -> i64 {
        i64::from(self.buckets.get()) - 1
    }
}

/// Makes a read statement that raises unless the bucket `$1` is owned here, even where no row matches. The text
/// follows a `with` list that defines `guard (ok)`: begin with `select ... from guard left join ...`, or with `,` and
/// further CTEs. Outer columns are null where no row matches.
#[macro_export]
macro_rules! guarded {
    ($($sql:expr),+ $(,)?) => {
        concat!(
            "with guard as materialized (select longshore.owned($1, longshore.seen($1)) as ok) ",
            $($sql),+
        )
    };
}

impl ShardRouter {
    /// Begins to learn the shards from the seeds, in the background: requests wait until their owner is known.
    /// `service` is the name that the connections carry.
    ///
    /// # Errors
    /// When the credentials cannot be read.
    pub fn start(service: &'static str, settings: &ShardSettings) -> Result<Self, CredentialsError> {
        let core = Arc::new(Core::new(service, settings)?);
        let mut tasks = JoinSet::new();
        tasks.spawn(listener::keep(Arc::clone(&core), settings.shard_seeds.clone()));
        tasks.spawn(credentials::keep(Arc::clone(&core)));
        tasks.spawn(survey::keep(Arc::clone(&core)));
        let scatters = Semaphore::new(usize::try_from(settings.pool_size / 2).unwrap_or(1).max(1));
        Ok(Self {
            core,
            deadline: settings.deadline(),
            scatters: Arc::new(scatters),
            _tasks: Arc::new(tasks),
        })
    }

    /// Where `key` belongs. Waits until a shard has told how many buckets there are.
    ///
    /// # Errors
    /// When none has before the deadline.
    pub async fn place(&self, key: Key) -> Result<Placement, RouteError> {
        let buckets = self.buckets().await?;
        Ok(Placement { bucket: buckets.bucket_of(key), buckets })
    }

    /// The placement of a bucket that is known otherwise, as from an order's id; nothing if there is no such bucket.
    ///
    /// # Errors
    /// When no shard has told before the deadline how many buckets there are.
    pub async fn place_bucket(&self, bucket: BucketId) -> Result<Option<Placement>, RouteError> {
        let buckets = self.buckets().await?;
        Ok((bucket <= buckets.last()).then_some(Placement { bucket, buckets }))
    }

    /// Runs `work` in a transaction on the shard that owns `key`'s bucket; see [`write_bucket`](Self::write_bucket).
    ///
    /// # Errors
    /// When the deadline passes, or a statement fails in a way that no retry can mend.
    pub async fn write<T, F>(&self, key: Key, work: F) -> Result<T, RouteError>
    where
        F: AsyncFn(&mut PgConnection, Placement) -> Result<T, sqlx::Error>,
    {
        self.write_bucket(self.place(key).await?, work).await
    }

    /// Runs `work` in a READ COMMITTED transaction that has entered the bucket on the shard that owns it, and
    /// commits. It is tried again, from the start, until the deadline: also after a commit whose outcome is
    /// unknown, so `work` must find out what an earlier try of it has done.
    ///
    /// Write `work` as `async move |tx, placement| ...` and let it own what it captures: with borrowed captures the
    /// compiler cannot prove that the future may move between threads, which axum's handlers must.
    ///
    /// # Errors
    /// When the deadline passes, or a statement fails in a way that no retry can mend.
    pub async fn write_bucket<T, F>(&self, placement: Placement, work: F) -> Result<T, RouteError>
    where
        F: AsyncFn(&mut PgConnection, Placement) -> Result<T, sqlx::Error>,
    {
        let mut tries = Tries::new(&self.core, placement.bucket, Instant::now() + self.deadline);
        loop {
            let pool = tries.target().await?;
            let time_left = tries.time_left();
            match tries.bound(write_once(&pool, placement, time_left, &work)).await {
                Ok(value) => return Ok(value),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    /// Runs a read on the shard that owns `key`'s bucket; see [`read_bucket`](Self::read_bucket).
    ///
    /// # Errors
    /// When the deadline passes, or a statement fails in a way that no retry can mend.
    pub async fn read<T, F>(&self, key: Key, work: F) -> Result<T, RouteError>
    where
        F: AsyncFn(&mut PgConnection, Placement) -> Result<T, sqlx::Error>,
    {
        self.read_bucket(self.place(key).await?, work).await
    }

    /// Runs `work` on a connection to the shard that owns the bucket, outside a transaction: for single statements,
    /// each made by [`guarded!`](crate::guarded) with the bucket as its first parameter.
    ///
    /// # Errors
    /// When the deadline passes, or a statement fails in a way that no retry can mend.
    pub async fn read_bucket<T, F>(&self, placement: Placement, work: F) -> Result<T, RouteError>
    where
        F: AsyncFn(&mut PgConnection, Placement) -> Result<T, sqlx::Error>,
    {
        let mut tries = Tries::new(&self.core, placement.bucket, Instant::now() + self.deadline);
        loop {
            let pool = tries.target().await?;
            match tries.bound(read_once(&pool, placement, &work)).await {
                Ok(value) => return Ok(value),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    /// Reads every bucket of the set, each from exactly one owner: runs `work` on all owners, several at a time, and
    /// tells each which buckets it is to answer for. `work` runs one statement made by
    /// [`guarded_among!`](crate::guarded_among) and returns the buckets that it vouches for with what it made of their
    /// rows; it runs in a read-only READ COMMITTED transaction that ends at the deadline. What an owner does not vouch
    /// for, since it is moving or has moved, is asked for again until the deadline. `work` bounds how many rows it reads.
    ///
    /// What is promised: the parts hold each bucket exactly once, as it was at some moment within the call, when the
    /// shard that answered owned it. So whatever was acknowledged before the call began is there, once. Different
    /// buckets may be of different moments, those of one part of the same.
    ///
    /// Mind what [`write_bucket`](Self::write_bucket) says of captures.
    ///
    /// # Errors
    /// When some bucket was not answered for before the deadline, or a statement fails in a way that no retry can mend.
    pub async fn scatter<T, F>(&self, work: F) -> Result<Vec<Part<T>>, RouteError>
    where
        F: AsyncFn(&mut PgConnection, Share) -> Result<(Ranges, T), sqlx::Error>,
    {
        let deadline = Instant::now() + self.deadline;
        let mut gather = Gather::new(&self.core, self.buckets().await?, deadline);
        // The semaphore is never closed: only the time can be over.
        let Ok(Ok(_turn)) = timeout_at(deadline, self.scatters.acquire()).await else {
            return Err(gather.expired(RetryReason::Connection));
        };
        gather.run(&work).await
    }

    /// Asks every shard known for a sign of life.
    pub async fn health(&self) -> HealthReport {
        health::check(&self.core).await
    }

    async fn buckets(&self) -> Result<BucketCount, RouteError> {
        if let Some(buckets) = self.core.buckets() {
            return Ok(buckets);
        }
        let mut news = self.core.map_news();
        let deadline = Instant::now() + self.deadline;
        let _ = timeout_at(deadline, news.wait_for(|()| self.core.buckets().is_some())).await;
        let (bucket, reason) = (BucketId::new(0), RetryReason::Unknown);
        self.core.buckets().ok_or(RouteError::Deadline { bucket, reason, source: None })
    }
}

async fn write_once<T, F>(
    pool: &Pool,
    placement: Placement,
    time_left: Duration,
    work: &F,
) -> Result<T, sqlx::Error>
where
    F: AsyncFn(&mut PgConnection, Placement) -> Result<T, sqlx::Error>,
{
    let mut lease = pool.take().await?;
    let result =
        store::write(&mut lease, placement.bucket, time_left, async |tx| work(tx, placement).await).await;
    lease.settle(result)
}

async fn read_once<T, F>(pool: &Pool, placement: Placement, work: &F) -> Result<T, sqlx::Error>
where
    F: AsyncFn(&mut PgConnection, Placement) -> Result<T, sqlx::Error>,
{
    let mut lease = pool.take().await?;
    let result = work(&mut lease, placement).await;
    lease.settle(result)
}
