//! OrderShardSets.

use std::time::Duration;

use kube::runtime::controller::Action;
use longshore_crds::OrderShardSet;

use super::{Kind, Shared, Verdict};
use crate::shard_set::{self, Context, Error};

pub(super) struct ShardSets {
    context: Context,
}

impl ShardSets {
    pub(super) fn new(shared: &Shared) -> Self {
        let Shared { client, recorder, settings } = shared;
        let (client, recorder, holder) = (client.clone(), recorder.clone(), settings.holder.clone());
        Self { context: Context::new(client, recorder, holder, settings.release_patience) }
    }
}

impl Kind for ShardSets {
    type Object = OrderShardSet;
    type Error = Error;

    const FINALIZER: &'static str = "longshore.dev/streams";

    async fn apply(&self, set: &OrderShardSet) -> Result<Action, Error> {
        shard_set::reconcile(set, &self.context).await.map(Action::requeue)
    }

    async fn clean_up(&self, set: &OrderShardSet) -> Result<Option<Duration>, Error> {
        shard_set::release(set, &self.context).await
    }

    fn verdict(&self, error: &Error) -> Verdict {
        match error {
            Error::Wanted(_) => Verdict::Await,
            Error::StaleTerm { .. } => Verdict::End,
            Error::Kubernetes { .. } | Error::Shard { .. } | Error::UnknownShard { .. } => Verdict::Retry,
        }
    }
}
