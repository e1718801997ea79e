//! What a fleet of many services takes: until all that follows from it stands, at the API server, in memory; and what is written
//! when nothing is left to do. On an API server without controllers: no pod is ever made, so all that happens is the operator's.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use longshore_crds::service_fleet::{ServiceFleetStatus, ServiceState};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    apiserver::ApiServer,
    awaiting::await_condition,
    fleet::{FleetGround, service},
    progress::Progress,
    proxy::Recorded,
};

const MEMORY_MIB_MAX: f64 = 64.0;
/// What comes last may still be said.
const SETTLED: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(600);
const NAME: &str = "bench";

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct FleetOptions {
    pub services: usize,
    /// How long the operator is watched when nothing is left to do.
    pub rest: Duration,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct FleetReport {
    pub services: usize,
    /// From the fleet's creation until its status says that all objects stand.
    pub seconds: f64,
    /// Requests to the API server in that time, of any kind.
    pub requests: u64,
    pub requests_per_service: f64,
    /// Those that change something, Lease renewals aside.
    pub writes_per_service: f64,
    /// Of one service's image, until the Deployment is changed and the status says so.
    pub change_seconds: f64,
    /// The operator's largest resident memory (VmHWM) until then.
    pub peak_mib: f64,
    pub rest_seconds: f64,
    /// While nothing was left to do, Lease renewals aside, by what they were.
    pub rest_writes: BTreeMap<String, u64>,
    pub rest_lease_renewals: u64,
    /// Processor time that the operator took meanwhile.
    pub rest_cpu_seconds: f64,
    /// How to measure again.
    pub command: String,
}

/// Measures.
pub async fn run(options: &FleetOptions) -> Result<FleetReport> {
    let server = ApiServer::start().await?;
    let mut ground = FleetGround::without_operator(&server, "bench").await?;
    ground.start_operator()?;
    ground.until("an operator that leads", async || ground.leader().await.map(drop)).await?;
    let progress = Progress::of_words(format!("a fleet of {} services", options.services));
    ground.recorder.forget();
    let (requests, started) = (ground.proxy.requests(), Instant::now());
    ground.apply(NAME, &spec(options.services, "any:1")).await?;
    await_standing(&ground, options.services, "any:1").await?;
    let seconds = started.elapsed().as_secs_f64();
    let requests = ground.proxy.requests() - requests;
    let writes = ground.recorder.actions().iter().filter(|action| !is_lease(action)).count();

    let changed = Instant::now();
    ground.apply(NAME, &spec(options.services, "any:2")).await?;
    await_standing(&ground, options.services, "any:2").await?;
    let change_seconds = changed.elapsed().as_secs_f64();
    progress.done();

    await_time(&ground, SETTLED, "what comes last is said").await?;
    ground.recorder.forget();
    let operator = ground.operator()?.id();
    let cpu = operator.family_cpu();
    await_time(&ground, options.rest, "nothing is left to do").await?;
    let rest_cpu_seconds = (operator.family_cpu() - cpu).as_secs_f64();
    let actions = ground.recorder.actions();
    let mut rest_writes: BTreeMap<String, u64> = BTreeMap::new();
    for action in actions.iter().filter(|action| !is_lease(action)) {
        *rest_writes.entry(action.signature.clone()).or_default() += 1;
    }
    let peak = operator.memory_kib("VmHWM").context("failed to read the operator's memory")?;
    let count = options.services as f64;
    Ok(FleetReport {
        services: options.services,
        seconds,
        requests,
        requests_per_service: requests as f64 / count,
        writes_per_service: writes as f64 / count,
        change_seconds,
        peak_mib: peak as f64 / 1024.0,
        rest_seconds: options.rest.as_secs_f64(),
        rest_writes,
        rest_lease_renewals: actions.iter().filter(|action| is_lease(action)).count() as u64,
        rest_cpu_seconds,
        command: format!(
            "cargo xtask bench fleet --services {} --minutes {}",
            options.services,
            options.rest.as_secs() / 60
        ),
    })
}

fn is_lease(action: &Recorded) -> bool {
    action.kind == "lease"
}

/// Each service with all six objects; the first one has this image.
fn spec(services: usize, image: &str) -> Value {
    let one = |at: usize| {
        let mut service = service(&format!("service-{at:03}"), if at == 0 { image } else { "any:1" }, 1);
        let map = service.as_object_mut().expect("a service is an object");
        map.remove("replicas");
        map.insert("autoscaling".to_owned(), json!({"minReplicas": 2, "maxReplicas": 4}));
        service
    };
    json!({"services": (0..services).map(one).collect::<Vec<_>>()})
}

/// No pod comes up here: all is done when every Deployment is seen and nothing is being applied.
async fn await_standing(ground: &FleetGround, services: usize, image: &str) -> Result<()> {
    let stands = |status: &ServiceFleetStatus| {
        let done = |service: &&longshore_crds::service_fleet::ServiceStatus| {
            service.state == ServiceState::RollingOut && service.reason == "RollingOut"
        };
        let first = status.services.first().and_then(|service| service.image.as_deref());
        status.services.iter().filter(done).count() == services && first == Some(image)
    };
    let mut last = String::new();
    let standing = async || {
        if let Err(ended) = ground.operator().and_then(|operator| operator.expect_running()) {
            return Some(Err(ended));
        }
        let status = ground.status(NAME).await.ok()??;
        last = serde_json::to_string(&status.conditions).unwrap_or_default();
        stands(&status).then_some(Ok(()))
    };
    let awaited = await_condition("all objects of the fleet to stand", DEADLINE, standing).await;
    awaited.flatten().with_context(|| format!("last conditions: {last}"))
}

async fn await_time(ground: &FleetGround, time: Duration, title: &str) -> Result<()> {
    let progress = Progress::of_time(title, time);
    let started = Instant::now();
    await_condition(title, time * 2 + SETTLED, async || {
        progress.tick();
        (started.elapsed() >= time).then_some(())
    })
    .await?;
    ground.operator()?.expect_running()
}

impl FleetReport {
    /// What is more than it may be, in words.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.peak_mib > MEMORY_MIB_MAX {
            faults.push(format!("the operator took {:.1} MiB", self.peak_mib));
        }
        if !self.rest_writes.is_empty() {
            faults.push(format!("writes while there was nothing to do: {:?}", self.rest_writes));
        }
        faults
    }
}

impl fmt::Display for FleetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} services stand after {:.1} s: {} requests, {:.1} a service, {:.1} of them writes",
            self.services, self.seconds, self.requests, self.requests_per_service, self.writes_per_service
        )?;
        writeln!(f, "one image changed after {:.2} s", self.change_seconds)?;
        writeln!(f, "peak memory  {:.1} MiB (at most {MEMORY_MIB_MAX})", self.peak_mib)?;
        write!(
            f,
            "at rest, {:.0} s: {} Lease renewals, {} other writes, {:.2} s of processor time",
            self.rest_seconds,
            self.rest_lease_renewals,
            self.rest_writes.values().sum::<u64>(),
            self.rest_cpu_seconds
        )
    }
}
