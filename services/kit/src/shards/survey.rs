//! Asks every shard for the buckets that requests could not find: one round at a time for all who wait. A round of each request's
//! own would take, while a shard is out of reach, the connections that the others' requests need.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use longshore_sharding::{BucketId, BucketRange, Ranges};
use tokio::{sync::Notify, time::sleep};

use super::core::Core;

/// The least time between two rounds: how often waiting requests try again.
const PAUSE: Duration = Duration::from_millis(20);

/// The buckets to ask for next.
#[derive(Default)]
pub(crate) struct Sought {
    buckets: Mutex<BTreeSet<BucketId>>,
    added: Notify,
}

impl Sought {
    pub(crate) fn add(&self, buckets: impl IntoIterator<Item = BucketId>) {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).extend(buckets);
        self.added.notify_one();
    }

    /// Waits for a bucket and takes all that there are.
    async fn next(&self) -> Ranges {
        loop {
            let sought = mem::take(&mut *self.buckets.lock().unwrap_or_else(PoisonError::into_inner));
            if !sought.is_empty() {
                let single = |bucket| BucketRange { first: bucket, last: bucket };
                return sought.into_iter().map(single).collect();
            }
            self.added.notified().await;
        }
    }
}

/// I/O: asks for what is sought, for as long as the router lives.
pub(crate) async fn keep(core: Arc<Core>) {
    loop {
        let buckets = core.sought.next().await;
        core.survey(&buckets).await;
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn all_who_wait_share_the_next_round() {
        let sought = Sought::default();
        assert_eq!(sought.next().now_or_never(), None, "nothing is sought");
        for _ in 0..300 {
            sought.add([7, 3, 4].map(BucketId::new));
        }
        sought.add([BucketId::new(9)]);
        let round: Ranges =
            [(3, 4), (7, 7), (9, 9)].into_iter().filter_map(|(a, b)| BucketRange::new(a, b)).collect();
        assert_eq!(sought.next().now_or_never(), Some(round));
        assert_eq!(sought.next().now_or_never(), None, "all were taken");
        sought.add([BucketId::new(7)]);
        assert!(sought.next().now_or_never().is_some(), "sought again, it is asked for again");
    }
}
