//! What the API server tells of all fleets' objects and pods, and of the ConfigMaps and Secrets that pods read.
//!
//! Nothing is asked for while nothing changes. Of most kinds only metadata is kept: who wrote which field stands there.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{ConfigMap, Pod, PodSpec, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store, store::WriterDropped},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;

use super::{
    manifest::{ChildKind, FLEET_LABEL},
    observed::{Child, Config, Key, is_of},
};

type Metadata<K> = Store<PartialObjectMeta<K>>;
type Told = BoxStream<'static, ()>;

/// What has been told so far.
pub struct Watches {
    service_accounts: Metadata<ServiceAccount>,
    network_policies: Metadata<NetworkPolicy>,
    services: Metadata<Service>,
    disruption_budgets: Metadata<PodDisruptionBudget>,
    deployments: Store<Deployment>,
    autoscalers: Metadata<HorizontalPodAutoscaler>,
    pods: Store<Pod>,
    config_maps: Metadata<ConfigMap>,
    secrets: Metadata<Secret>,
    named: Named,
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
            service_accounts: scope.metadata(),
            network_policies: scope.metadata(),
            services: scope.metadata(),
            disruption_budgets: scope.metadata(),
            deployments: scope.whole(trim_deployment),
            autoscalers: scope.metadata(),
            pods: scope.whole(trim_pod),
            config_maps: scope.configs(&named, Config::ConfigMap),
            secrets: scope.configs(&named, Config::Secret),
            named,
        };
        (watches, stream::select_all(scope.told).boxed())
    }

    /// Returns when everything that there is has been told once: what is missing then is not there.
    pub(super) async fn ready(&self) -> Result<(), WriterDropped> {
        self.service_accounts.wait_until_ready().await?;
        self.network_policies.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.disruption_budgets.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.autoscalers.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.config_maps.wait_until_ready().await?;
        self.secrets.wait_until_ready().await
    }

    /// The objects of one fleet.
    pub(super) fn children(&self, namespace: &str, fleet: &str) -> Vec<(Key, Child)> {
        let mut found = Vec::new();
        let all = [
            of_fleet(&self.service_accounts, ChildKind::ServiceAccount, namespace, fleet),
            of_fleet(&self.network_policies, ChildKind::NetworkPolicy, namespace, fleet),
            of_fleet(&self.services, ChildKind::Service, namespace, fleet),
            of_fleet(&self.disruption_budgets, ChildKind::PodDisruptionBudget, namespace, fleet),
            of_fleet(&self.autoscalers, ChildKind::HorizontalPodAutoscaler, namespace, fleet),
        ];
        found.extend(all.into_iter().flatten());
        for deployment in self.deployments.state() {
            if is_in(&deployment.metadata, namespace, fleet) {
                let child = Child::of_deployment(&deployment);
                found.push(((ChildKind::Deployment, deployment.name_any()), child));
            }
        }
        found
    }

    /// The pods of one fleet.
    pub(super) fn pods(&self, namespace: &str, fleet: &str) -> Vec<Arc<Pod>> {
        self.pods.state_filter(|pod| is_in(&pod.metadata, namespace, fleet))
    }

    /// The version of a ConfigMap or Secret; from now on its changes are told.
    pub(super) fn version(&self, namespace: &str, config: &Config) -> Option<String> {
        self.named.lock().insert((namespace.to_owned(), config.clone()));
        match config {
            Config::ConfigMap(name) => version(&self.config_maps, namespace, name),
            Config::Secret(name) => version(&self.secrets, namespace, name),
        }
    }
}

impl Scope<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Metadata of the fleets' objects of a kind.
    fn metadata<K>(&mut self) -> Metadata<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + Sync + 'static,
    {
        self.whole::<PartialObjectMeta<K>>(|_| {})
    }

    /// The fleets' objects of a kind, without what nobody asks for.
    fn whole<K>(&mut self, trim: fn(&mut K)) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + Sync + 'static,
        K: DeserializeOwned,
    {
        let config = watcher::Config::default().labels(FLEET_LABEL);
        let events = watcher::watcher(self.api::<K>(), config);
        self.keep(events, trim, |_| true)
    }

    /// The versions of all ConfigMaps or Secrets; only of those that a fleet names it is told.
    fn configs<K>(&mut self, named: &Named, config: fn(String) -> Config) -> Metadata<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Send + Sync + 'static,
    {
        let named = named.clone();
        let events = watcher::watcher(self.api::<PartialObjectMeta<K>>(), watcher::Config::default());
        let matters = move |object: &PartialObjectMeta<K>| {
            let key = (object.namespace().unwrap_or_default(), config(object.name_any()));
            named.lock().contains(&key)
        };
        self.keep(events, |object| object.metadata = identity(&object.metadata), matters)
    }

    fn keep<K>(
        &mut self,
        events: impl futures::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
        trim: fn(&mut K),
        matters: impl Fn(&K) -> bool + Send + 'static,
    ) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
        K::DynamicType: Eq + Hash + Clone,
    {
        let (store, writer) = reflector::store();
        let events = events.default_backoff().map(move |event| event.map(|event| event.modify(trim)));
        let told = reflector::reflector(writer, events).filter_map(move |event| {
            let matters = match event {
                Ok(Event::Apply(object) | Event::Delete(object)) => matters(&object),
                Ok(Event::InitDone) => true,
                Ok(Event::Init | Event::InitApply(_)) => false,
                Err(error) => {
                    // It goes on by itself; an API server that is away says so in more than one place.
                    tracing::warn!(%error, kind = %K::kind(&()), "failed to watch");
                    false
                }
            };
            std::future::ready(matters.then_some(()))
        });
        self.told.push(told.boxed());
        store
    }
}

fn is_in(metadata: &ObjectMeta, namespace: &str, fleet: &str) -> bool {
    metadata.namespace.as_deref() == Some(namespace) && is_of(metadata, fleet)
}

fn of_fleet<K>(store: &Metadata<K>, kind: ChildKind, namespace: &str, fleet: &str) -> Vec<(Key, Child)>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let those = store.state_filter(|object| is_in(&object.metadata, namespace, fleet));
    those.iter().map(|object| ((kind, object.name_any()), Child::of(&object.metadata))).collect()
}

fn version<K>(store: &Metadata<K>, namespace: &str, name: &str) -> Option<String>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let found = store.get(&reflector::ObjectRef::new(name).within(namespace))?;
    // One of the same name may have come after it.
    Some(format!("{}/{}", found.uid().unwrap_or_default(), found.resource_version().unwrap_or_default()))
}

/// What tells an object and its version from others.
fn identity(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        ..ObjectMeta::default()
    }
}

fn trim_pod(pod: &mut Pod) {
    pod.metadata.managed_fields = None;
    pod.metadata.annotations = None;
    pod.spec = None;
}

fn trim_deployment(deployment: &mut Deployment) {
    let Some(spec) = &mut deployment.spec else { return };
    let image = |pod: &PodSpec| pod.containers.first().and_then(|container| container.image.clone());
    let image = spec.template.spec.as_ref().and_then(image);
    spec.template.metadata = None;
    if let Some(container) = spec.template.spec.take().and_then(|pod| pod.containers.into_iter().next()) {
        let container =
            k8s_openapi::api::core::v1::Container { name: container.name, image, ..Default::default() };
        spec.template.spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
    }
}
