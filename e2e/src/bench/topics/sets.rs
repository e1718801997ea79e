//! Two KafkaTopicSets and the operator that serves them.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
    runtime::wait,
};
use longshore_crds::KafkaTopicSet;
use serde_json::{Value, json};

use super::{Binaries, client::Plain};
use crate::{apiserver::ApiServer, awaiting::describe_log, process::Process};

pub(super) const REPLICAS: i32 = 3;
/// At first, and after the change.
pub(super) const RETENTIONS: [&str; 2] = ["86400000", "172800000"];
const NAMES: [&str; 2] = ["one", "other"];
const DEADLINE: Duration = Duration::from_secs(300);

pub(super) struct Sets {
    api: Api<KafkaTopicSet>,
    namespace: String,
    bootstrap: String,
}

impl Sets {
    pub(super) async fn new(server: &ApiServer, binaries: &Binaries, bootstrap: String) -> Result<Self> {
        server.apply_yaml(&binaries.crds().await?, "default").await?;
        let namespace = server.namespace("topics").await?;
        let client: Client = server.client().await?;
        Ok(Self { api: Api::namespaced(client, &namespace), namespace, bootstrap })
    }

    pub(super) fn start_operator(&self, server: &ApiServer, binaries: &Binaries) -> Result<Process> {
        let mut command = Command::new(binaries.operator());
        command.args(["run", "--namespace", &self.namespace, "--lease-namespace", &self.namespace]);
        command.args(["--listen", "127.0.0.1:0", "--log-format", "text", "--log", "warn"]);
        Process::spawn("operator", command.env("KUBECONFIG", server.kubeconfig()))
    }

    /// What it takes until these topics are there, were looked at again, and were altered. The sets go, their topics stay.
    pub(super) async fn run(
        &self,
        operator: &Process,
        names: &[String],
        plain: &Plain<'_>,
    ) -> Result<[Duration; 3]> {
        let [first, second] = RETENTIONS.map(|retention| retention.parse::<i64>().unwrap_or_default());
        let measured = async {
            let started = Instant::now();
            self.apply(names, first, 20).await?;
            self.await_converged().await?;
            plain.await_placed(names.len()).await?;
            let create = started.elapsed();
            // As many moves as there are none: the sets are read anew, and nothing is to be done.
            let resync = self.time(names, first, 21).await?;
            let started = Instant::now();
            self.time(names, second, 21).await?;
            plain.await_altered(names).await?;
            Ok([create, resync, started.elapsed()])
        };
        let measured: Result<_> = measured.await;
        let measured =
            measured.with_context(|| format!("the operator did not get on{}", describe_log(operator.log())));
        operator.expect_running()?;
        for name in NAMES {
            self.api.delete(name, &DeleteParams::default()).await?;
        }
        measured
    }

    async fn time(&self, names: &[String], retention: i64, moves: u32) -> Result<Duration> {
        let started = Instant::now();
        self.apply(names, retention, moves).await?;
        self.await_converged().await?;
        Ok(started.elapsed())
    }

    /// Half of the topics in each set.
    async fn apply(&self, names: &[String], retention: i64, moves: u32) -> Result<()> {
        let halves = names.split_at(names.len() / 2);
        try_join_all([halves.0, halves.1].iter().zip(NAMES).map(async |(topics, name)| {
            let topics: Vec<Value> = topics.iter().map(|topic| json!({"name": topic})).collect();
            let set = json!({
                "apiVersion": "longshore.dev/v1alpha1", "kind": "KafkaTopicSet", "metadata": {"name": name},
                "spec": {
                    "clusterRef": {"bootstrapServers": self.bootstrap},
                    "defaults": {"partitions": 1, "replicas": REPLICAS, "retentionMs": retention},
                    "reassignment": {"maxConcurrentPartitions": moves},
                    "topics": topics,
                },
            });
            let params = PatchParams::apply("longshore-e2e").force();
            self.api
                .patch(name, &params, &Patch::Apply(&set))
                .await
                .context("failed to apply a KafkaTopicSet")
        }))
        .await?;
        Ok(())
    }

    async fn await_converged(&self) -> Result<()> {
        let both = NAMES.map(|name| {
            wait::await_condition(self.api.clone(), name, |set: Option<&KafkaTopicSet>| {
                set.is_some_and(is_converged)
            })
        });
        let waited = tokio::time::timeout(DEADLINE, try_join_all(both)).await;
        waited.context("the sets were not converged in time")??;
        Ok(())
    }
}

fn is_converged(set: &KafkaTopicSet) -> bool {
    let Some(status) = &set.status else { return false };
    let ready =
        status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready
        && status.observed_generation == set.metadata.generation
        && status.counts.ready == status.counts.desired
}
