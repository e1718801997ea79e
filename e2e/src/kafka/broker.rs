//! One broker: its ports, its folder, and the process while it runs.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::process::Command;
use uuid::Uuid;

use super::{HOST, User, brokers_known_at, programs::Programs};
use crate::{
    authority::{Authority, Signed},
    awaiting::{What, await_condition},
    free_port::free_port,
    parts,
    process::Process,
    proxy::{KafkaProxy, Recorder},
};

const START_DEADLINE: Duration = Duration::from_secs(120);
const RACKS: [&str; 3] = ["a", "b", "c"];
const SERVER: &str = "kafka.Kafka";
const STORAGE_TOOL: &str = "kafka.tools.StorageTool";
/// Three such and their clients fit on a small machine.
const HEAP: &str = "256m";

/// What a small cluster needs, and what makes it start and notice the dead sooner. Nothing is written while there is nothing to
/// write: twice a second is half of what an idle broker does.
const SETTINGS: &str = "\
process.roles=broker,controller
controller.listener.names=CONTROLLER
inter.broker.listener.name=INTERNAL
listener.security.protocol.map=INTERNAL:PLAINTEXT,CLIENT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.ssl.keystore.type=PEM
auto.create.topics.enable=false
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=3
log.cleaner.dedupe.buffer.size=4194304
log.cleaner.io.buffer.size=131072
log.index.size.max.bytes=1048576
log.segment.delete.delay.ms=1000
log.initial.task.delay.ms=1000
metadata.max.idle.interval.ms=0
";

#[derive(Debug)]
pub(super) struct Broker {
    id: i32,
    name: String,
    folder: PathBuf,
    internal: u16,
    controller: u16,
    client: u16,
    proxy: Option<KafkaProxy>,
    secure: u16,
    process: Mutex<Option<Process>>,
}

impl Broker {
    /// Gives it its ports and its place below this folder; with a recorder, its plain clients reach it through a proxy.
    pub(super) async fn plan(id: usize, parent: &Path, recorder: Option<&Arc<Recorder>>) -> Result<Self> {
        let internal = free_port()?;
        let client = free_port()?;
        let proxy = match recorder {
            Some(recorder) => Some(KafkaProxy::start(client, Arc::clone(recorder)).await?),
            None => None,
        };
        let folder = parent.join(id.to_string());
        fs::create_dir(&folder)?;
        Ok(Self {
            id: i32::try_from(id)?,
            name: format!("kafka-{id}-{internal}"),
            folder,
            internal,
            controller: free_port()?,
            client,
            proxy,
            secure: free_port()?,
            process: Mutex::default(),
        })
    }

    pub(super) fn id(&self) -> i32 {
        self.id
    }

    /// As clients are told.
    pub(super) fn client(&self) -> u16 {
        self.proxy.as_ref().map_or(self.client, KafkaProxy::port)
    }

    pub(super) fn secure(&self) -> u16 {
        self.secure
    }

    pub(super) fn internal(&self) -> u16 {
        self.internal
    }

    /// As `controller.quorum.voters` names it.
    pub(super) fn as_voter(&self) -> String {
        format!("{}@{HOST}:{}", self.id, self.controller)
    }

    pub(super) fn configure(&self, voters: &str, authority: &Authority) -> Result<()> {
        let Self { id, internal, controller, client, secure, .. } = self;
        let Signed { certificate, key } = authority.sign_server(&self.name, &[HOST])?;
        let store = self.folder.join("server.pem");
        write_private(&store, &format!("{key}{certificate}"))?;
        let rack = RACKS[(usize::try_from(*id)? - 1) % RACKS.len()];
        let listeners = |client: u16| {
            format!("INTERNAL://{HOST}:{internal},CLIENT://{HOST}:{client},SECURE://{HOST}:{secure}")
        };
        let (listened, advertised) = (listeners(*client), listeners(self.client()));
        let properties = format!(
            "{SETTINGS}node.id={id}\nbroker.rack={rack}\ncontroller.quorum.voters={voters}\n\
             listeners={listened},CONTROLLER://{HOST}:{controller}\nadvertised.listeners={advertised}\n\
             listener.name.secure.ssl.keystore.location={}\nlog.dirs={}\n",
            store.display(),
            self.data().display(),
        );
        fs::create_dir_all(self.data())?;
        Ok(fs::write(self.properties(), properties)?)
    }

    /// Makes it a member of a new cluster, by Kafka's own tool.
    pub(super) async fn format(&self, programs: &Programs, cluster: &str, user: &User) -> Result<()> {
        let mut tool = Command::from(programs.command("64m", "warn", STORAGE_TOOL));
        tool.args(["format", "--cluster-id", cluster, "--config"]).arg(self.properties());
        tool.args(["--add-scram", &format!("SCRAM-SHA-512=[name={},password={}]", user.name, user.password)]);
        let formatted = parts::output(&mut tool).await;
        // A command that failed is shown with its arguments, and one is a password.
        let hidden = formatted.map_err(|error| anyhow!(format!("{error:#}").replace(&user.password, "***")));
        hidden.with_context(|| format!("failed to format the storage of {}", self.name))?;
        Ok(())
    }

    /// What the tool writes is the same for all brokers but for their own ids; a copy takes no second.
    pub(super) fn format_like(&self, other: &Self) -> Result<()> {
        fs::copy(other.data().join("bootstrap.checkpoint"), self.data().join("bootstrap.checkpoint"))?;
        let others = fs::read_to_string(other.data().join("meta.properties"))?;
        let kept =
            others.lines().filter(|line| !line.starts_with("node.id") && !line.starts_with("directory.id"));
        let mut properties: Vec<String> = kept.map(str::to_owned).collect();
        properties.push(format!("node.id={}", self.id));
        properties.push(format!("directory.id={}\n", new_id()));
        Ok(fs::write(self.data().join("meta.properties"), properties.join("\n"))?)
    }

    /// Starts it; see [`Self::await_ready`].
    pub(super) fn spawn(&self, programs: &Programs) -> Result<()> {
        let mut command = programs.command(HEAP, "info", SERVER);
        command.arg(self.properties()).current_dir(&self.folder);
        *self.process() = Some(Process::spawn(&self.name, &mut command)?);
        Ok(())
    }

    /// Returns when it knows of itself as one of at least so many brokers that are there.
    pub(super) async fn await_ready(&self, brokers: usize) -> Result<()> {
        let bootstrap = format!("{HOST}:{}", self.internal);
        let mut what = What::new(format!("{} to know of {brokers} brokers", self.name));
        if let Some(process) = self.process().as_ref() {
            what = what.log(process.log());
        }
        let ready = async || {
            if let Err(ended) = self.with_process(Process::expect_running) {
                return Some(Err(ended));
            }
            tokio::net::TcpStream::connect((HOST, self.internal)).await.ok()?;
            let bootstrap = bootstrap.clone();
            let known = tokio::task::spawn_blocking(move || brokers_known_at(&bootstrap)).await.ok()?.ok()?;
            (known.contains(&self.id) && known.len() >= brokers).then_some(Ok(()))
        };
        await_condition(what, START_DEADLINE, ready).await?
    }

    /// See [`super::Cluster::replicas_on_disk`].
    pub(super) fn replicas_on_disk(&self) -> Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(self.data())? {
            let entry = entry?;
            let of_kafka_itself = entry.file_name().to_string_lossy().starts_with("__");
            count += usize::from(entry.file_type()?.is_dir() && !of_kafka_itself);
        }
        Ok(count)
    }

    /// Ends it, and waits until it has left.
    pub(super) async fn terminate(&self, deadline: Duration) -> Result<()> {
        self.taken()?.terminate(deadline).await?;
        Ok(())
    }

    pub(super) async fn kill9(&self) -> Result<()> {
        self.taken()?.kill9().await
    }

    fn taken(&self) -> Result<Process> {
        self.process().take().with_context(|| format!("{} does not run", self.name))
    }

    pub(super) fn pause(&self) -> Result<()> {
        self.with_process(Process::pause)
    }

    pub(super) fn resume(&self) -> Result<()> {
        self.with_process(Process::resume)
    }

    fn with_process<T>(&self, act: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        act(self.process().as_ref().with_context(|| format!("{} does not run", self.name))?)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn properties(&self) -> PathBuf {
        self.folder.join("server.properties")
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

/// As Kafka writes its ids, 16 bytes in base64: of its letters, those of hexadecimal digits are enough.
pub(super) fn new_id() -> String {
    format!("{}A", &Uuid::new_v4().simple().to_string()[..21])
}

/// Writes what only this user may read.
pub(super) fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, "")?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(fs::write(path, text)?)
}
