//! One ServiceFleet: from what is asked and what is there to what is applied, and to the status.
//!
//! `reconcile` is the table of contents. Nothing is remembered that could not be seen again: what is kept between two reconciles
//! saves requests.

mod act;
mod claims;
mod configs;
pub mod decide;
mod drain;
mod events;
pub mod manifest;
pub mod observed;
mod order;
mod owned;
mod partial;
mod pods;
mod release;
mod status;
pub mod wanted;
mod watches;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{Client, ResourceExt as _, runtime::events::Recorder};
use longshore_crds::{ServiceFleet, service_fleet::ServiceFleetStatus};
use tokio::sync::Mutex;

use self::{
    act::Done,
    configs::Configs,
    decide::{Action, Decision, decide},
    manifest::ChildKind,
    observed::{Child, Content, Key, Refusal, World},
    wanted::Wanted,
};
use crate::{
    status::{WATCH_PATIENCE, Written},
    telemetry,
};

pub use release::release;
pub use watches::Watches;

/// What the API server refused, or cannot be read, or what somebody else has the name of, is tried again after this.
const RETRY_REFUSED: Duration = Duration::from_secs(5);
/// What was overtaken is looked at again.
const RETRY_OVERTAKEN: Duration = Duration::from_millis(50);

/// Why a reconcile failed; the next one comes soon.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to {operation} of the ServiceFleet")]
    Kubernetes {
        operation: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("failed to {operation} {kind} {name}")]
    Object {
        operation: &'static str,
        kind: ChildKind,
        name: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("failed to read {config}")]
    Config {
        config: observed::Config,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the watches have ended")]
    WatchesEnded,
}

impl Error {
    fn kubernetes(operation: &'static str, source: kube::Error) -> Self {
        Self::Kubernetes { operation, source: Box::new(source) }
    }
}

/// What every reconcile needs: handles only.
pub struct Context {
    pub client: Client,
    pub recorder: Recorder,
    watches: Watches,
    fleets: Mutex<HashMap<String, Arc<Mutex<FleetState>>>>,
}

impl Context {
    #[must_use]
    pub fn new(client: Client, recorder: Recorder, watches: Watches) -> Self {
        Self { client, recorder, watches, fleets: Mutex::default() }
    }

    /// What is remembered of a fleet, to save requests.
    async fn state(&self, uid: &str) -> Arc<Mutex<FleetState>> {
        Arc::clone(self.fleets.lock().await.entry(uid.to_owned()).or_default())
    }

    async fn forget(&self, uid: &str) {
        self.fleets.lock().await.remove(uid);
    }
}

#[derive(Default)]
struct FleetState {
    /// What was applied, until the watch brings it.
    applied: BTreeMap<Key, (Arc<Child>, Instant)>,
    refused: BTreeMap<Key, (Refusal, Instant)>,
    configs: Configs,
    written: Written<ServiceFleetStatus>,
}

/// Does what can be done now for one fleet. Returns when to come back, if nothing happens before.
///
/// # Errors
/// When the API server fails; nothing is lost, the next reconcile looks again.
pub async fn reconcile(object: &ServiceFleet, ctx: &Context) -> Result<Option<Duration>, Error> {
    ctx.watches.ready().await.map_err(|_| Error::WatchesEnded)?;
    let wanted = Wanted::of(object);
    let namespace = object.namespace().unwrap_or_default();
    let state = ctx.state(&wanted.fleet.uid).await;
    let mut state = state.lock().await;

    let mut world = observe(ctx, &namespace, &wanted, &mut state).await?;
    let Decision { mut actions, mut services } = decide(&wanted, &world);
    if actions.iter().any(Action::makes_new) {
        claims::look(&ctx.client, &namespace, &wanted.fleet, (&actions, &mut world)).await?;
        drop(actions);
        Decision { actions, services } = decide(&wanted, &world);
    }
    let done = act::act(&ctx.client, &namespace, actions).await?;
    let overtaken = done.iter().any(|done| matches!(done, Done::Overtaken));
    if !done.is_empty() {
        remember(&mut state, &mut world, done);
        services = decide(&wanted, &world).services;
    }

    let previous = state.written.last().or(object.status.as_ref()).cloned();
    let status = status::compute(object, &wanted, previous.as_ref(), services);
    telemetry::show_fleet(&namespace, &wanted.fleet.name, &status);
    let written = state.written.write(&ctx.client, object, &status, status::outline).await;
    let held_back = written.map_err(|source| Error::kubernetes("write the status", source))?;
    events::publish(ctx, object, previous.as_ref(), &status).await;

    let unreadable = world.configs.values().any(|content| matches!(content, Content::Unreadable(_)));
    let refused = unreadable || !world.refusals.is_empty() || !world.claims.is_empty();
    let overtaken = overtaken.then_some(RETRY_OVERTAKEN);
    let unseen = (!state.applied.is_empty()).then_some(WATCH_PATIENCE);
    Ok([overtaken, held_back, unseen, refused.then_some(RETRY_REFUSED)].into_iter().flatten().min())
}

/// I/O only where a ConfigMap or a Secret has changed: all else was told by the watches.
async fn observe(
    ctx: &Context,
    namespace: &str,
    wanted: &Wanted,
    state: &mut FleetState,
) -> Result<World, Error> {
    let fleet = &wanted.fleet.name;
    let mut children = ctx.watches.children(namespace, fleet);
    state.applied.retain(|key, (child, at)| {
        let late = children.get(key).is_none_or(|seen| seen.is_older_than(child));
        late && at.elapsed() < WATCH_PATIENCE
    });
    children.extend(state.applied.iter().map(|(key, (child, _))| (key.clone(), Arc::clone(child))));
    state.refused.retain(|_, (_, at)| at.elapsed() < RETRY_REFUSED);
    Ok(World {
        children,
        pods: observed::by_service(ctx.watches.pods(namespace, fleet)),
        configs: state.configs.read(&ctx.client, &ctx.watches, namespace, &wanted.configs()).await?,
        claims: BTreeMap::new(),
        refusals: state.refused.iter().map(|(key, (refusal, _))| (key.clone(), refusal.clone())).collect(),
    })
}

/// What was done is part of the world at once.
fn remember(state: &mut FleetState, world: &mut World, done: Vec<Done>) {
    let now = Instant::now();
    for done in done {
        match done {
            Done::Applied(key, child) => {
                world.children.insert(key.clone(), Arc::clone(&child));
                state.applied.insert(key, (child, now));
            }
            Done::Refused(key, refusal) => {
                world.refusals.insert(key.clone(), refusal.clone());
                state.refused.insert(key, (refusal, now));
            }
            Done::Deleted | Done::Overtaken => {}
        }
    }
}
