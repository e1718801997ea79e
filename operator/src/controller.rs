//! Watches the custom resources and calls their reconcilers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        Controller,
        controller::Action,
        events::{Recorder, Reporter},
        finalizer::{self, finalizer},
        watcher,
    },
};
use longshore_crds::OrderShardSet;
use tokio::sync::Notify;

use crate::{
    shard_set::{self, Context, Error},
    telemetry::Health,
    watched,
};

const FINALIZER: &str = "longshore.dev/streams";
/// A failed reconcile is tried again after this; the shards' own waits are shorter.
const RETRY: Duration = Duration::from_secs(1);

struct Running {
    context: Context,
    /// Rung when another process leads: nothing more may be done here.
    superseded: Notify,
}

/// What a controller runs with.
pub struct Settings {
    /// The namespace to watch; all of them if none.
    pub namespace: Option<String>,
    /// This process among all operators there ever were.
    pub holder: String,
    /// How long a deleted set whose shards cannot be reached holds its finalizer.
    pub release_patience: Duration,
    /// Who is told of a watch that stands still.
    pub health: Health,
}

/// Runs until `stop` or until another process is found to lead. The action at hand is finished first.
pub async fn run(client: Client, settings: Settings, stop: impl Future<Output = ()> + Send + Sync + 'static) {
    let Settings { namespace, holder, release_patience, health } = settings;
    let api: Api<OrderShardSet> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), &namespace),
        None => Api::all(client.clone()),
    };
    let reporter = Reporter { controller: "longshore-operator".into(), instance: Some(holder.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let running = Arc::new(Running {
        context: Context::new(client, recorder, holder, release_patience),
        superseded: Notify::new(),
    });
    let watched = Arc::clone(&running);
    let stopped = async move {
        tokio::select! {
            () = stop => {}
            () = watched.superseded.notified() => tracing::warn!("another process leads, ending"),
        }
    };
    let controller = Controller::new(api.clone(), watcher::Config::default());
    let comparing = watched::compare(api, controller.store(), health);
    let reconciling = controller
        .graceful_shutdown_on(stopped)
        .run(reconcile, error_policy, running)
        .for_each(async |result| match result {
            Ok((object, _)) => tracing::trace!(name = object.name, "reconciled"),
            Err(error) => tracing::warn!(error = %chain(&error), "reconcile failed"),
        });
    tokio::select! {
        () = reconciling => {}
        () = comparing => {}
    }
}

/// Why a reconcile failed, in the controller's own terms.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("failed to reconcile")]
    Reconcile(#[source] Box<finalizer::Error<Error>>),
}

async fn reconcile(set: Arc<OrderShardSet>, running: Arc<Running>) -> Result<Action, Failed> {
    let (ctx, started) = (&running.context, Instant::now());
    let api: Api<OrderShardSet> = Api::namespaced(ctx.client.clone(), &set.namespace().unwrap_or_default());
    let result = finalizer(&api, FINALIZER, set, async |event| match event {
        finalizer::Event::Apply(set) => shard_set::reconcile(&set, ctx).await.map(Action::requeue),
        finalizer::Event::Cleanup(set) => loop {
            // The finalizer goes when this returns, so it returns when nothing of ours is left.
            match shard_set::release(&set, ctx).await? {
                Some(pause) => tokio::time::sleep(pause).await,
                None => break Ok(Action::await_change()),
            }
        },
    })
    .await;
    if let Err(finalizer::Error::ApplyFailed(error) | finalizer::Error::CleanupFailed(error)) = &result
        && error.is_stale_term()
    {
        running.superseded.notify_one();
    }
    let label = if result.is_ok() { "ok" } else { "failed" };
    metrics::histogram!("longshore_reconcile_seconds", "result" => label).record(started.elapsed());
    result.map_err(|error| Failed::Reconcile(Box::new(error)))
}

fn error_policy(_: Arc<OrderShardSet>, error: &Failed, _: Arc<Running>) -> Action {
    let Failed::Reconcile(inner) = error;
    if matches!(inner.as_ref(), finalizer::Error::ApplyFailed(Error::Wanted(_))) {
        return Action::await_change();
    }
    Action::requeue(RETRY)
}

/// An error and all its causes in one line; what one of them has said already is not repeated.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}
