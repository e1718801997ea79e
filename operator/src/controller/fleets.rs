//! ServiceFleets.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use kube::runtime::{Controller, controller::Action};
use longshore_crds::ServiceFleet;
use tokio::time::{Instant, timeout_at};

use super::{Kind, Shared, Verdict};
use crate::fleet::{self, Context, Error, Watches};

/// What is told within this time is looked at once; of news without an end, this often.
const GATHERING: Duration = Duration::from_millis(100);

pub(super) struct Fleets {
    context: Context,
    /// Says that something has changed; taken by the controller.
    told: Mutex<Option<BoxStream<'static, ()>>>,
}

impl Fleets {
    pub(super) fn new(shared: &Shared) -> Self {
        let Shared { client, recorder, settings } = shared;
        let (watches, told) = Watches::new(client, settings.namespace.as_deref());
        let context = Context::new(client.clone(), recorder.clone(), watches);
        Self { context, told: Mutex::new(Some(told)) }
    }
}

impl Kind for Fleets {
    type Object = ServiceFleet;
    type Error = Error;

    const FINALIZER: &'static str = "longshore.dev/fleet";

    fn triggers(&self, controller: Controller<ServiceFleet>) -> Controller<ServiceFleet> {
        match self.told.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(told) => controller.reconcile_all_on(gathered(told)),
            None => controller,
        }
    }

    async fn apply(&self, object: &ServiceFleet) -> Result<Action, Error> {
        let pause = fleet::reconcile(object, &self.context).await?;
        Ok(pause.map_or_else(Action::await_change, Action::requeue))
    }

    async fn clean_up(&self, object: &ServiceFleet) -> Result<Option<Duration>, Error> {
        fleet::release(object, &self.context).await
    }

    fn verdict(&self, error: &Error) -> Verdict {
        match error {
            Error::Kubernetes { .. } | Error::Object { .. } | Error::Config { .. } => Verdict::Retry,
            // Nothing more is told here: the next process sees.
            Error::WatchesEnded => Verdict::End,
        }
    }
}

/// Says once what is told within a time that the first begins.
fn gathered(told: BoxStream<'static, ()>) -> impl Stream<Item = ()> {
    stream::unfold(told, async |mut told| {
        told.next().await?;
        let end = Instant::now() + GATHERING;
        while Instant::now() < end && timeout_at(end, told.next()).await == Ok(Some(())) {}
        Some(((), told))
    })
}

#[cfg(test)]
mod tests {
    use tokio::{task::yield_now, time::timeout};

    use super::*;

    #[tokio::test]
    async fn news_without_an_end_are_looked_at() {
        let endless = stream::unfold((), async |()| {
            yield_now().await;
            Some(((), ()))
        });
        let looks = gathered(endless.boxed()).take(2).collect::<Vec<()>>();
        assert!(timeout(Duration::from_secs(30), looks).await.is_ok());
    }
}
