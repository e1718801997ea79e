//! A fleet of services of our own on a real node: what it promises, shown one after the other while requests keep coming.

mod load;
mod steps;

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use kube::Client;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use self::load::{Counts, Load};
use super::{Ground, NAMESPACE, OPERATOR_NAMESPACE, create_namespace, reach::Reach, releases::Releases};
use crate::{
    fleet::Fleets,
    images::{self, Image},
    progress::Progress,
    shop::binaries::Binaries,
};

const FLEET: &str = "echo";
const PORT: u16 = 3003;

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub struct ShowOptions {
    /// Requests a second.
    pub rate: f64,
    /// Whether autoscaling is shown as well: it takes metrics-server, which is built first.
    pub autoscaling: bool,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    steps: Vec<Step>,
    /// From the first step on, through all that rolls, breaks and changes hands, until services are taken out.
    load: Counts,
}

/// One promise.
#[derive(Clone, Debug, Serialize)]
struct Step {
    name: &'static str,
    seconds: f64,
    /// What was seen, or what went wrong.
    told: String,
    kept: bool,
}

/// What the steps act on.
struct Show {
    fleets: Fleets,
    reach: Reach,
    releases: Releases,
    operator: Image,
    echo: Image,
}

/// Shows all of it, from nothing; a promise that is not kept does not end it.
pub async fn run(options: &ShowOptions) -> Result<Report> {
    let mut show = Show::start(options.autoscaling).await?;
    let mut steps = Vec::new();
    keep(&mut steps, "create, in order", show.create()).await;
    let url = format!("http://{}/", show.address("web").await?);
    let load = Load::start(&url, options.rate)?;
    keep(&mut steps, "scale", show.scale()).await;
    keep(&mut steps, "follow configuration", show.follow_configuration(&url)).await;
    keep(&mut steps, "roll", show.roll()).await;
    keep(&mut steps, "image that cannot be pulled", show.bad_image()).await;
    keep(&mut steps, "crash loop", show.crash_loop()).await;
    keep(&mut steps, "fits on no node", show.unschedulable()).await;
    keep(&mut steps, "change in order", show.change_in_order()).await;
    keep(&mut steps, "drift repaired", show.drift()).await;
    keep(&mut steps, "operator upgraded", show.upgrade_operator()).await;
    if options.autoscaling {
        keep(&mut steps, "autoscale", show.autoscale()).await;
    }
    keep(&mut steps, "orphan, and take over", show.orphan()).await;
    let load = load.end().await?;
    keep(&mut steps, "take out, in order", show.take_out()).await;
    Ok(Report { steps, load })
}

async fn keep(steps: &mut Vec<Step>, name: &'static str, shown: impl Future<Output = Result<String>>) {
    let (progress, started) = (Progress::of_words(name), Instant::now());
    let shown = shown.await;
    let kept = shown.is_ok();
    let told = shown.unwrap_or_else(|error| format!("{error:#}"));
    progress.done();
    steps.push(Step { name, seconds: started.elapsed().as_secs_f64(), told, kept });
}

impl Show {
    async fn start(autoscaling: bool) -> Result<Self> {
        let binaries = Binaries::build().await?;
        let operator = images::of_binary("operator", "operator/Dockerfile", binaries.operator()).await?;
        let echo = images::of_binary("echo", "e2e/echo/Dockerfile", binaries.echo()).await?;
        let ground = Ground::prepare(&[&operator, &echo]).await?;
        if let Ground::Node(node) = &ground
            && autoscaling
        {
            node.add_metrics().await?;
        }
        let client = ground.cluster()?.client().await?;
        for namespace in [NAMESPACE, OPERATOR_NAMESPACE] {
            create_namespace(&client, namespace).await?;
        }
        let releases = Releases::new(ground.cluster()?.kubeconfig()).await?;
        releases.install_operator(&operator, "info").await?;
        let reach = Reach::new(&ground);
        Ok(Self { fleets: Fleets::new(client, NAMESPACE), reach, releases, operator, echo })
    }

    fn client(&self) -> &Client {
        &self.fleets.client
    }

    /// HOST:PORT of a service, once it leads somewhere: nodes learn of the first pods of a new Service a moment after all others.
    async fn address(&mut self, service: &str) -> Result<String> {
        let address = self.reach.address(&self.fleets.client.clone(), service, PORT).await?;
        let open = async || TcpStream::connect(&address).await.ok().map(drop);
        self.fleets.until(&format!("{service} to be reachable"), open).await?;
        Ok(address)
    }

    /// A service, with fields that are its own.
    fn service(&self, name: &str, more: &Value) -> Value {
        let mut service = json!({
            "name": name,
            "image": self.echo.reference(),
            "replicas": 1,
            "resources": {"requests": {"cpu": "20m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
            "ports": {"http": PORT},
            "env": [{"name": "LISTEN", "value": format!("0.0.0.0:{PORT}")}],
            "probes": {"readiness": {"path": "/health", "periodSeconds": 1}},
            "disruption": {"drainSeconds": 5, "terminationGraceSeconds": 40},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            match (service.get_mut(field), value) {
                (Some(Value::Array(list)), Value::Array(more)) => list.extend(more.iter().cloned()),
                _ => service[field] = value.clone(),
            }
        }
        service
    }

    /// What all steps begin and end with: `web` needs `store`, and that needs `base`.
    fn usual(&self, web: &Value) -> Vec<Value> {
        let mut own = json!({
            "replicas": 3, "dependsOn": ["store"],
            "config": [{"configMapName": "web"}],
            // Requests are in flight whenever a pod ends.
            "env": [{"name": "DELAY_MS", "value": "50"}],
        });
        for (field, value) in web.as_object().into_iter().flatten() {
            own[field] = value.clone();
        }
        vec![
            self.service("web", &own),
            self.service("store", &json!({"dependsOn": ["base"]})),
            self.service("base", &json!({})),
        ]
    }

    async fn apply(&self, services: &[Value]) -> Result<()> {
        self.fleets.apply(FLEET, &json!({"services": services})).await.context("failed to apply the fleet")
    }

    /// As at the beginning, and ready.
    async fn settle(&self) -> Result<()> {
        self.apply(&self.usual(&json!({}))).await?;
        self.fleets.await_ready(FLEET).await?;
        Ok(())
    }
}

impl Report {
    /// Promises that were not kept, in words.
    pub fn faults(&self) -> Vec<String> {
        let broken = self.steps.iter().filter(|step| !step.kept);
        let mut faults: Vec<String> = broken.map(|step| format!("{}: {}", step.name, step.told)).collect();
        if self.load.failed > 0 {
            faults.push(format!("{} requests failed: {:?}", self.load.failed, self.load.errors));
        }
        if self.load.attempted == 0 {
            faults.push("nobody asked for anything".to_owned());
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { name, seconds, told, kept } in &self.steps {
            writeln!(f, "{} {name:28} {seconds:6.1} s  {told}", if *kept { "kept  " } else { "BROKEN" })?;
        }
        let Counts { attempted, failed, slowest_ms, .. } = &self.load;
        write!(f, "{attempted} requests meanwhile, {failed} failed, the slowest took {slowest_ms} ms")
    }
}

/// Longer than it may take until trouble is told.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
