//! What the API server tells of all fleets' objects and pods, and of the ConfigMaps and Secrets that pods read.
//!
//! Nothing is asked for while nothing changes, and of what is told only that is kept which decisions are made of.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    core::{ApiResource, NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Lookup, ObjectRef, Store, store::WriterDropped},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;

use super::{
    manifest::{ChildKind, FLEET_LABEL},
    observed::{Child, Config, Key, PodSight},
    partial::Deployment,
};

type Told = BoxStream<'static, ()>;

/// What has been told so far.
pub struct Watches {
    children: BTreeMap<ChildKind, Store<Seen<Arc<Child>>>>,
    pods: Store<Seen<PodSight>>,
    /// Their uids and versions.
    config_maps: Store<Seen<String>>,
    secrets: Store<Seen<String>>,
    named: Named,
}

/// What is kept of an object.
#[derive(Clone, Debug)]
struct Seen<V> {
    namespace: String,
    name: String,
    fleet: Option<String>,
    value: V,
}

/// So that it can be kept as whole objects are.
impl<V> Lookup for Seen<V> {
    type DynamicType = ();

    fn kind((): &()) -> Cow<'_, str> {
        "Seen".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn name(&self) -> Option<Cow<'_, str>> {
        Some(self.name.as_str().into())
    }

    fn namespace(&self) -> Option<Cow<'_, str>> {
        Some(self.namespace.as_str().into())
    }

    fn resource_version(&self) -> Option<Cow<'_, str>> {
        None
    }

    fn uid(&self) -> Option<Cow<'_, str>> {
        None
    }
}

impl<V> Seen<V> {
    fn is_of(&self, namespace: &str, fleet: &str) -> bool {
        self.namespace == namespace && self.fleet.as_deref() == Some(fleet)
    }
}

/// Every ConfigMap and Secret that a fleet was ever seen to name, with its namespace: others are of no interest.
#[derive(Clone, Default)]
struct Named(Arc<Mutex<BTreeSet<(String, Config)>>>);

impl Named {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<(String, Config)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches in one namespace, or in all.
struct Scope<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    told: Vec<Told>,
}

impl Watches {
    /// What they know, and a stream that says whenever that has changed: it must be polled.
    pub fn new(client: &Client, namespace: Option<&str>) -> (Self, Told) {
        let mut scope = Scope { client, namespace, told: Vec::new() };
        let named = Named::default();
        let watches = Self {
            children: ChildKind::ALL.map(|kind| (kind, scope.children(kind))).into(),
            pods: scope.pods(),
            config_maps: scope.configs(&named, &ApiResource::erase::<ConfigMap>(&()), Config::ConfigMap),
            secrets: scope.configs(&named, &ApiResource::erase::<Secret>(&()), Config::Secret),
            named,
        };
        (watches, stream::select_all(scope.told).boxed())
    }

    /// Returns when everything that there is has been told once: what is missing then is not there.
    pub(super) async fn ready(&self) -> Result<(), WriterDropped> {
        for store in self.children.values() {
            store.wait_until_ready().await?;
        }
        self.pods.wait_until_ready().await?;
        self.config_maps.wait_until_ready().await?;
        self.secrets.wait_until_ready().await
    }

    /// The objects of one fleet.
    pub(super) fn children(&self, namespace: &str, fleet: &str) -> BTreeMap<Key, Arc<Child>> {
        let mut found = BTreeMap::new();
        for (kind, store) in &self.children {
            let those = store.state_filter(|seen| seen.is_of(namespace, fleet));
            found.extend(those.iter().map(|seen| ((*kind, seen.name.clone()), Arc::clone(&seen.value))));
        }
        found
    }

    /// The pods of one fleet.
    pub(super) fn pods(&self, namespace: &str, fleet: &str) -> Vec<PodSight> {
        let those = self.pods.state_filter(|seen| seen.is_of(namespace, fleet));
        those.iter().map(|seen| seen.value.clone()).collect()
    }

    /// The version of a ConfigMap or Secret; from now on its changes are told.
    pub(super) fn version(&self, namespace: &str, config: &Config) -> Option<String> {
        self.named.lock().insert((namespace.to_owned(), config.clone()));
        let (store, name) = match config {
            Config::ConfigMap(name) => (&self.config_maps, name),
            Config::Secret(name) => (&self.secrets, name),
        };
        Some(store.get(&ObjectRef::new(name).within(namespace))?.value.clone())
    }
}

impl Scope<'_> {
    fn typed<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Metadata of any kind has one type here: a type for each kind would be a watcher to compile for each.
    fn metadata(&self, resource: &ApiResource) -> Api<PartialObjectMeta> {
        match self.namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        }
    }

    /// The fleets' objects of a kind.
    fn children(&mut self, kind: ChildKind) -> Store<Seen<Arc<Child>>> {
        if kind == ChildKind::Deployment {
            let child = |deployment: &Deployment| Arc::new(Child::of_deployment(deployment));
            return self.keep(kind.to_string(), self.typed(), of_fleets(), child, |_| true);
        }
        let child = |object: &PartialObjectMeta| Arc::new(Child::of(&object.metadata));
        self.keep(kind.to_string(), self.metadata(&kind.resource()), of_fleets(), child, |_| true)
    }

    /// The fleets' pods.
    fn pods(&mut self) -> Store<Seen<PodSight>> {
        self.keep("Pod".to_owned(), self.typed(), of_fleets(), PodSight::of, |_| true)
    }

    /// The versions of all ConfigMaps or Secrets; only of those that a fleet names it is told.
    fn configs(
        &mut self,
        named: &Named,
        resource: &ApiResource,
        config: fn(String) -> Config,
    ) -> Store<Seen<String>> {
        let named = named.clone();
        let matters = move |seen: &Seen<String>| {
            named.lock().contains(&(seen.namespace.clone(), config(seen.name.clone())))
        };
        let version = |object: &PartialObjectMeta| version(&object.metadata);
        let kind = resource.kind.clone();
        self.keep(kind, self.metadata(resource), watcher::Config::default(), version, matters)
    }

    fn keep<K, V>(
        &mut self,
        kind: String,
        api: Api<K>,
        config: watcher::Config,
        value: fn(&K) -> V,
        matters: impl Fn(&Seen<V>) -> bool + Send + 'static,
    ) -> Store<Seen<V>>
    where
        K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        let (store, writer) = reflector::store();
        let events = watcher::watcher(api, config).default_backoff();
        let events = events.map(move |event| event.map(|event| seen(&event, value)));
        let told = reflector::reflector(writer, events).filter_map(move |event| {
            let matters = match event {
                Ok(Event::Apply(seen) | Event::Delete(seen)) => matters(&seen),
                Ok(Event::InitDone) => true,
                Ok(Event::Init | Event::InitApply(_)) => false,
                Err(error) => {
                    // It goes on by itself; an API server that is away says so in more than one place.
                    tracing::warn!(%error, kind, "failed to watch");
                    false
                }
            };
            std::future::ready(matters.then_some(()))
        });
        self.told.push(told.boxed());
        store
    }
}

fn of_fleets() -> watcher::Config {
    watcher::Config::default().labels(FLEET_LABEL)
}

fn seen<K: Resource, V>(event: &Event<K>, value: fn(&K) -> V) -> Event<Seen<V>> {
    let seen = |object: &K| {
        let metadata = object.meta();
        Seen {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            fleet: metadata.labels.as_ref().and_then(|labels| labels.get(FLEET_LABEL)).cloned(),
            value: value(object),
        }
    };
    match event {
        Event::Apply(object) => Event::Apply(seen(object)),
        Event::Delete(object) => Event::Delete(seen(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(seen(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// One of the same name may have come after it.
fn version(metadata: &ObjectMeta) -> String {
    let [uid, version] = [&metadata.uid, &metadata.resource_version];
    format!("{}/{}", uid.as_deref().unwrap_or_default(), version.as_deref().unwrap_or_default())
}
