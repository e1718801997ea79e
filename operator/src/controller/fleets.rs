//! ServiceFleets.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::stream::BoxStream;
use kube::runtime::{
    Controller,
    controller::{Action, Config},
};
use longshore_crds::ServiceFleet;

use super::{Kind, Shared, Verdict};
use crate::fleet::{self, Context, Error, Watches};

/// What is told within this time is looked at once.
const DEBOUNCE: Duration = Duration::from_millis(100);

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
        let controller = controller.with_config(Config::default().debounce(DEBOUNCE));
        match self.told.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(told) => controller.reconcile_all_on(told),
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
