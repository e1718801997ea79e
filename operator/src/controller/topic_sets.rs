//! KafkaTopicSets.

use std::time::Duration;

use kube::runtime::{Controller, controller::Action};
use longshore_crds::KafkaTopicSet;

use super::{Kind, Shared, Verdict};
use crate::topic_set::{self, Context, Error};

pub(super) struct TopicSets {
    context: Context,
}

impl TopicSets {
    pub(super) fn new(shared: &Shared) -> Self {
        let Shared { client, recorder, settings } = shared;
        Self { context: Context::new(client.clone(), recorder.clone(), settings.release_patience) }
    }
}

impl Kind for TopicSets {
    type Object = KafkaTopicSet;
    type Error = Error;

    const FINALIZER: &'static str = "longshore.dev/topics";

    fn triggers(&self, controller: Controller<KafkaTopicSet>) -> Controller<KafkaTopicSet> {
        self.context.set_store(controller.store());
        controller
    }

    async fn apply(&self, set: &KafkaTopicSet) -> Result<Action, Error> {
        topic_set::reconcile(set, &self.context).await.map(Action::requeue)
    }

    async fn clean_up(&self, set: &KafkaTopicSet) -> Result<Option<Duration>, Error> {
        topic_set::release(set, &self.context).await
    }

    fn verdict(&self, error: &Error) -> Verdict {
        match error {
            Error::Wanted(_) => Verdict::Await,
            Error::Kubernetes { .. } => Verdict::Retry,
        }
    }
}
