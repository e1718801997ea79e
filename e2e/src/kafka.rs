//! A Kafka cluster on 127.0.0.1: three brokers in KRaft mode that are controllers as well, in racks a, b and c.
//!
//! Each broker has four listeners. Products of ours use *client* (plain text) or *secure* (TLS, and SCRAM-SHA-512 by the one user
//! there is); brokers and the harness use *internal*, which no proxy is before; controllers talk on *controller*.

mod broker;
mod programs;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};
use tokio::{process::Command, sync::OnceCell};
use uuid::Uuid;

use self::{
    broker::{Broker, new_id, write_private},
    programs::Programs,
};
use crate::{authority::Authority, parts, proxy::Recorder, run_folder::RunFolder};

const HOST: &str = "127.0.0.1";
const BROKERS: usize = 3;
const METADATA_DEADLINE: Duration = Duration::from_secs(5);

/// A running cluster. Dropped, its brokers are killed.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    folder: PathBuf,
    authority: Authority,
    user: User,
    brokers: Vec<Broker>,
}

/// Who may use the secure listener.
#[derive(Clone)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Random, another one in each run.
    pub password: String,
}

impl User {
    fn new() -> Self {
        Self { name: "operator".to_owned(), password: Uuid::new_v4().simple().to_string() }
    }
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Cluster {
    /// A new, empty cluster; returns when each broker knows of all.
    pub async fn start() -> Result<Self> {
        Self::start_as(None).await
    }

    /// As [`Self::start`]; who uses the plain listener is recorded, and may be hit. The proxies run on this runtime.
    pub async fn start_recorded(recorder: &Arc<Recorder>) -> Result<Self> {
        Self::start_as(Some(recorder)).await
    }

    async fn start_as(recorder: Option<&Arc<Recorder>>) -> Result<Self> {
        let programs = Programs::provide().await?;
        let authority = Authority::new()?;
        let user = User::new();
        let folder = RunFolder::current()?.folder(&format!("kafka-{}", Uuid::new_v4().simple()), 0o700)?;
        let brokers = try_join_all((1..=BROKERS).map(|id| Broker::plan(id, &folder, recorder))).await?;
        let voters: Vec<String> = brokers.iter().map(Broker::as_voter).collect();
        for broker in &brokers {
            broker.configure(&voters.join(","), &authority)?;
        }
        let [first, others @ ..] = brokers.as_slice() else { anyhow::bail!("a cluster needs a broker") };
        first.format(&programs, &new_id(), &user).await?;
        for broker in others {
            broker.format_like(first)?;
        }
        let cluster = Self { programs, folder, authority, user, brokers };
        for broker in &cluster.brokers {
            broker.spawn(&cluster.programs)?;
        }
        try_join_all(cluster.brokers.iter().map(|broker| broker.await_ready(BROKERS))).await?;
        Ok(cluster)
    }

    /// The one that all tests of a process share: each takes topics of its own. It ends with the process.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    /// All brokers' plain listeners for clients, as HOST:PORT, separated by commas.
    pub fn bootstrap(&self) -> String {
        self.listing(Broker::client)
    }

    /// As [`Self::bootstrap`], of the listeners with TLS and SASL.
    pub fn secure_bootstrap(&self) -> String {
        self.listing(Broker::secure)
    }

    /// As [`Self::bootstrap`], of what no proxy is before: for the harness itself.
    pub fn direct_bootstrap(&self) -> String {
        self.listing(Broker::internal)
    }

    fn listing(&self, listener: impl Fn(&Broker) -> u16) -> String {
        let listed: Vec<String> =
            self.brokers.iter().map(|broker| format!("{HOST}:{}", listener(broker))).collect();
        listed.join(",")
    }

    /// Who signed the brokers' certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Who may use the secure listener.
    pub fn user(&self) -> &User {
        &self.user
    }

    /// The brokers' ids.
    pub fn ids(&self) -> BTreeSet<i32> {
        self.brokers.iter().map(Broker::id).collect()
    }

    /// kill -9 of a broker: a crash.
    pub async fn kill(&self, id: i32) -> Result<()> {
        self.broker(id)?.kill9().await
    }

    /// Starts it on its old data, after [`Self::kill`]; returns when it is one of the cluster again.
    pub async fn start_broker(&self, id: i32) -> Result<()> {
        let broker = self.broker(id)?;
        broker.spawn(&self.programs)?;
        broker.await_ready(1).await
    }

    /// Freezes a broker: connections stand, nobody is answered.
    pub fn pause(&self, id: i32) -> Result<()> {
        self.broker(id)?.pause()
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self, id: i32) -> Result<()> {
        self.broker(id)?.resume()
    }

    /// How many replicas of topics' partitions have a folder, deleted ones that are still there included; Kafka's own aside.
    pub fn replicas_on_disk(&self) -> Result<usize> {
        self.brokers.iter().map(Broker::replicas_on_disk).sum()
    }

    fn broker(&self, id: i32) -> Result<&Broker> {
        self.brokers
            .iter()
            .find(|broker| broker.id() == id)
            .with_context(|| format!("there is no broker {id}"))
    }

    /// The folder with Kafka's own programs.
    pub fn jars(&self) -> &Path {
        self.programs.jars()
    }

    /// Writes what Kafka's own clients need to know of the secure listener, its user's password included.
    pub fn write_client_properties(&self) -> Result<PathBuf> {
        let file = self.folder.join("client.properties");
        let User { name, password } = &self.user;
        let properties = format!(
            "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\n\
             sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required \
             username=\"{name}\" password=\"{password}\";\n\
             ssl.truststore.type=PEM\nssl.truststore.certificates={}\n",
            self.authority.certificate().replace('\n', "\\n")
        );
        write_private(&file, &properties)?;
        Ok(file)
    }

    /// What one of Kafka's own tools prints: a witness that shares nothing with our clients.
    ///
    /// It fails if the tool does.
    pub async fn tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::from(self.programs.command("64m", "warn", class));
        command.args(["--bootstrap-server", &self.direct_bootstrap()]).args(arguments);
        parts::output(&mut command).await
    }

    /// As `kafka-topics.sh` does.
    pub async fn topics_tool(&self, arguments: &[&str]) -> Result<String> {
        self.tool("org.apache.kafka.tools.TopicCommand", arguments).await
    }

    /// As `kafka-configs.sh` does.
    pub async fn configs_tool(&self, arguments: &[&str]) -> Result<String> {
        self.tool("kafka.admin.ConfigCommand", arguments).await
    }
}

/// The ids of the brokers that a broker knows to be there.
fn brokers_known_at(bootstrap: &str) -> Result<BTreeSet<i32>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("log_level", "0");
    let client: BaseConsumer = config.create()?;
    let metadata = client.fetch_metadata(Some("none-of-that-name"), METADATA_DEADLINE)?;
    Ok(metadata.brokers().iter().map(rdkafka::metadata::MetadataBroker::id).collect())
}
