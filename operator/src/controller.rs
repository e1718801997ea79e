//! Watches the custom resources and calls their reconcilers.
//!
//! `Kind` is what a custom resource's controller is made of; `run` starts one for each.

mod fleets;
mod shard_sets;
mod topic_sets;

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt;
use kube::{
    Api, Client, Resource, ResourceExt,
    core::NamespaceResourceScope,
    runtime::{
        Controller,
        controller::Action,
        events::{Recorder, Reporter},
        finalizer::{self, finalizer},
        watcher,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use self::{fleets::Fleets, shard_sets::ShardSets, topic_sets::TopicSets};
use crate::{
    status::chain,
    telemetry::{self, Health},
    watched,
};

/// A failed reconcile is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// What controllers run with.
#[derive(Clone)]
pub struct Settings {
    /// The namespace to watch; all of them if none.
    pub namespace: Option<String>,
    /// This process among all operators there ever were.
    pub holder: String,
    /// How long a deleted set whose shards cannot be reached holds its finalizer.
    pub release_patience: Duration,
    /// How often it is seen whether watches bring what there is: far longer than any event is on its way.
    pub watch_look_interval: Duration,
    /// Who is told of a watch that stands still.
    pub health: Health,
}

/// What every kind's controller gets: handles only.
struct Shared {
    client: Client,
    recorder: Recorder,
    settings: Settings,
}

/// A custom resource and how it is reconciled.
trait Kind: Send + Sync + 'static {
    type Object: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static;
    type Error: std::error::Error + Send + Sync + 'static;

    /// Goes from a deleted object when `clean_up` is done.
    const FINALIZER: &'static str;

    /// What else makes an object worth a look: what it owns or names.
    fn triggers(&self, controller: Controller<Self::Object>) -> Controller<Self::Object> {
        controller
    }

    /// Takes one step towards what the object asks.
    fn apply(&self, object: &Self::Object) -> impl Future<Output = Result<Action, Self::Error>> + Send;

    /// Takes a step of leaving nothing behind; when to take the next one, or none when it was the last.
    fn clean_up(
        &self,
        object: &Self::Object,
    ) -> impl Future<Output = Result<Option<Duration>, Self::Error>> + Send;

    /// What an error asks of this process.
    fn verdict(&self, error: &Self::Error) -> Verdict;
}

/// What is done about a failed reconcile.
enum Verdict {
    Retry,
    /// Only a change of the object can help.
    Await,
    /// Another process leads: this one must end.
    End,
}

/// Runs until `stop` or until another process is found to lead. The actions at hand are finished first.
pub async fn run(client: Client, settings: Settings, stop: impl Future<Output = ()> + Send + 'static) {
    let reporter =
        Reporter { controller: "longshore-operator".into(), instance: Some(settings.holder.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let shared = Shared { client, recorder, settings };
    let (end, mut ended) = watch::channel(false);
    let stopped = async {
        tokio::select! {
            () = stop => { end.send_replace(true); }
            _ = ended.wait_for(|ended| *ended) => {}
        }
    };
    let shard_sets = reconcile_all(ShardSets::new(&shared), &shared, end.clone());
    let fleets = reconcile_all(Fleets::new(&shared), &shared, end.clone());
    let topic_sets = reconcile_all(TopicSets::new(&shared), &shared, end.clone());
    tokio::join!(stopped, shard_sets, fleets, topic_sets);
}

struct Running<K> {
    kind: K,
    client: Client,
    /// Set when another process leads: nothing more may be done here.
    end: watch::Sender<bool>,
}

/// Reconciles all objects of a kind until it is told to end.
async fn reconcile_all<K: Kind>(kind: K, shared: &Shared, end: watch::Sender<bool>) {
    let Shared { client, settings, .. } = shared;
    let api: Api<K::Object> = match &settings.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let controller = kind.triggers(Controller::new(api.clone(), watcher::Config::default()));
    let comparing =
        watched::compare(api, controller.store(), (settings.watch_look_interval, &settings.health));
    let mut ended = end.subscribe();
    let reconciling = controller
        .graceful_shutdown_on(async move { drop(ended.wait_for(|ended| *ended).await) })
        .run(reconcile, error_policy, Arc::new(Running { kind, client: client.clone(), end }))
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
enum Failed<E: std::error::Error + 'static> {
    #[error("failed to reconcile")]
    Reconcile(#[source] Box<finalizer::Error<E>>),
}

async fn reconcile<K: Kind>(
    object: Arc<K::Object>,
    running: Arc<Running<K>>,
) -> Result<Action, Failed<K::Error>> {
    let (kind, started) = (&running.kind, Instant::now());
    let api: Api<K::Object> =
        Api::namespaced(running.client.clone(), &object.namespace().unwrap_or_default());
    let result = finalizer(&api, K::FINALIZER, object, async |event| match event {
        finalizer::Event::Apply(object) => kind.apply(&object).await,
        finalizer::Event::Cleanup(object) => loop {
            // The finalizer goes when this returns, so it returns when nothing of ours is left.
            match kind.clean_up(&object).await? {
                Some(pause) => tokio::time::sleep(pause).await,
                None => break Ok(Action::await_change()),
            }
        },
    })
    .await;
    if let Err(error) = &result
        && matches!(verdict(kind, error), Verdict::End)
    {
        tracing::warn!("another process leads, ending");
        running.end.send_replace(true);
    }
    telemetry::record_reconcile(&K::Object::kind(&()), result.is_ok(), started.elapsed());
    result.map_err(|error| Failed::Reconcile(Box::new(error)))
}

#[expect(clippy::needless_pass_by_value, reason = "kube calls it so")]
fn error_policy<K: Kind>(_: Arc<K::Object>, failed: &Failed<K::Error>, running: Arc<Running<K>>) -> Action {
    let Failed::Reconcile(error) = failed;
    match verdict(&running.kind, error) {
        Verdict::Await => Action::await_change(),
        Verdict::Retry | Verdict::End => Action::requeue(RETRY),
    }
}

fn verdict<K: Kind>(kind: &K, error: &finalizer::Error<K::Error>) -> Verdict {
    match error {
        finalizer::Error::ApplyFailed(error) | finalizer::Error::CleanupFailed(error) => kind.verdict(error),
        finalizer::Error::AddFinalizer(_)
        | finalizer::Error::RemoveFinalizer(_)
        | finalizer::Error::UnnamedObject
        | finalizer::Error::InvalidFinalizer => Verdict::Retry,
    }
}
