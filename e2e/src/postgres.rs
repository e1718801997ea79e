//! PostgreSQL servers on 127.0.0.1, with the roles of a shard and databases made on demand.
//!
//! A server never runs as root (it refuses to): root's servers run as `nobody`. Passwords are random, one
//! per role and run. Only the harness and the checker use the administrator.

mod copies;
mod database;
mod pooler;

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    str::FromStr as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use sqlx::{
    Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};
use tokio::sync::OnceCell;

use self::database::{Passwords, create_database};
pub use self::{
    copies::{BaseBackup, ColdCopy, Standby},
    database::{Database, Role},
    pooler::Pooler,
};
use crate::{
    authority::{Authority, Signed},
    awaiting::{What, await_condition, describe_log},
    free_port::free_port,
    parts,
    process::Process,
    run_folder::RunFolder,
};

const HOST: &str = "127.0.0.1";
const ADMIN: &str = "postgres";
/// `nobody`, on every Linux.
const UNPRIVILEGED: u32 = 65_534;
/// In the server's folder.
const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// What a shard's server must allow, and enough of it for several databases on one server.
const SETTINGS: [(&str, &str); 12] = [
    ("wal_level", "logical"),
    ("max_wal_senders", "48"),
    ("max_replication_slots", "48"),
    ("max_logical_replication_workers", "32"),
    ("max_worker_processes", "48"),
    ("max_connections", "100"),
    ("fsync", "on"),
    ("max_wal_size", "2GB"),
    ("unix_socket_directories", ""),
    ("listen_addresses", HOST),
    ("log_line_prefix", "%m [%p] %q%u@%d %a "),
    ("log_lock_waits", "on"),
];

/// The PostgreSQL versions that tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The oldest that the product supports.
    V16,
    /// What everything but the SQL tests runs on.
    V17,
    /// The newest.
    V18,
}

impl Version {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V16, Self::V17, Self::V18];
}

/// One server: a data folder, a port, and the postmaster while it runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Server {
    name: String,
    version: Version,
    port: u16,
    binaries: PathBuf,
    folder: PathBuf,
    /// The data folder it runs on: another one after a restore or a failover.
    data: Mutex<PathBuf>,
    settings: Vec<(String, String)>,
    passwords: Passwords,
    postmaster: Mutex<Option<Process>>,
    /// Making roles and databases is done one at a time: concurrent changes of one role row fail.
    making: tokio::sync::Mutex<()>,
}

impl Server {
    /// A new, empty server of this version.
    pub async fn start(version: Version) -> Result<Self> {
        Self::start_with(version, &[]).await
    }

    /// As [`Self::start`], with settings that add to or override the usual ones.
    pub async fn start_with(version: Version, settings: &[(&str, &str)]) -> Result<Self> {
        Self::start_as(version, settings, None).await
    }

    /// As [`Self::start`], with a certificate of this authority; nobody gets in unencrypted.
    pub async fn start_encrypted(version: Version, authority: &Authority) -> Result<Self> {
        Self::start_as(version, &[], Some(authority)).await
    }

    async fn start_as(
        version: Version,
        settings: &[(&str, &str)],
        authority: Option<&Authority>,
    ) -> Result<Self> {
        let binaries = parts::postgres(version).await?;
        let port = free_port()?;
        let name = format!("postgres-{port}");
        let folder = RunFolder::current()?.folder(&name, 0o755)?;
        let data = Mutex::new(folder.join("data"));
        let settings = SETTINGS.iter().chain(settings);
        let settings = settings.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut server = Self {
            name,
            version,
            port,
            binaries,
            folder,
            data,
            settings,
            passwords: Passwords::of_this_run(),
            postmaster: Mutex::new(None),
            making: tokio::sync::Mutex::new(()),
        };
        server.initialise().await?;
        if let Some(authority) = authority {
            server.encrypt(authority)?;
        }
        server.start_again().await?;
        Ok(server)
    }

    /// The server of this version that all tests of a process share. It ends with the process.
    pub async fn shared(version: Version) -> Result<&'static Self> {
        static SHARED: [OnceCell<Server>; 3] = [const { OnceCell::const_new() }; 3];
        let index = match version {
            Version::V16 => 0,
            Version::V17 => 1,
            Version::V18 => 2,
        };
        SHARED[index].get_or_try_init(|| Self::start(version)).await
    }

    /// A new database with a name of its own, where the roles have what roles.sql gives them.
    pub async fn scratch_database(&self) -> Result<Database> {
        self.create(&scratch_name(), None).await
    }

    /// As [`Self::scratch_database`], with all that is in `template`; nobody may be connected to that.
    pub async fn scratch_copy(&self, template: &Database) -> Result<Database> {
        self.create(&scratch_name(), Some(template)).await
    }

    /// As [`Self::scratch_database`], by this name.
    pub async fn database(&self, dbname: &str) -> Result<Database> {
        self.create(dbname, None).await
    }

    async fn create(&self, dbname: &str, template: Option<&Database>) -> Result<Database> {
        let _one_at_a_time = self.making.lock().await;
        create_database(HOST, self.port, dbname, template, &self.passwords).await
    }

    /// Drops a database, whoever is connected. Its subscriptions and slots must be gone.
    pub async fn drop_database(&self, database: &Database) -> Result<()> {
        let dbname = database.dbname();
        let mut connection = PgConnection::connect(&self.admin_url()).await?;
        let statement = sqlx::AssertSqlSafe(format!("drop database \"{dbname}\" with (force)"));
        let dropped = sqlx::raw_sql(statement).execute(&mut connection).await;
        dropped.with_context(|| format!("failed to drop database {dbname}"))?;
        connection.close().await?;
        Ok(())
    }

    /// Which PostgreSQL it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Always on this machine alone.
    pub fn host(&self) -> &'static str {
        HOST
    }

    /// The port it listens on, the same after each start.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the server's own log goes.
    pub fn log(&self) -> Result<PathBuf> {
        Ok(RunFolder::current()?.log(&self.name))
    }

    /// Ends it in an orderly way, connections notwithstanding ("fast": SIGINT).
    pub async fn stop(&self) -> Result<()> {
        let postmaster = self.take_postmaster()?;
        postmaster.signal_and_await_end(Signal::INT, STOP_DEADLINE).await?;
        Ok(())
    }

    /// kill -9 of the postmaster: a crash. Returns when its children have noticed and are gone.
    pub async fn kill9(&self) -> Result<()> {
        self.take_postmaster()?.kill9_and_await_family(STOP_DEADLINE).await
    }

    /// Freezes the postmaster: running sessions go on, nobody new gets in.
    pub fn pause(&self) -> Result<()> {
        self.with_postmaster(Process::pause)
    }

    /// Ends [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        self.with_postmaster(Process::resume)
    }

    /// What all its processes have used of processors so far.
    pub fn cpu(&self) -> Result<Duration> {
        self.with_postmaster(|postmaster| Ok(postmaster.id().family_cpu()))
    }

    /// Asks for encryption from the next start on.
    fn encrypt(&mut self, authority: &Authority) -> Result<()> {
        self.write_certificate(authority)?;
        let file = |name: &str| self.folder.join(name).display().to_string();
        let settings =
            [("ssl", "on".to_owned()), ("ssl_cert_file", file(CERTIFICATE)), ("ssl_key_file", file(KEY))];
        self.settings.extend(settings.map(|(key, value)| (key.to_owned(), value)));
        fs::write(
            self.data().join("pg_hba.conf"),
            "hostssl all all all scram-sha-256\nhostssl replication all all scram-sha-256\n",
        )?;
        Ok(())
    }

    fn write_certificate(&self, authority: &Authority) -> Result<()> {
        let Signed { certificate, key } = authority.sign_server(&self.name, &[HOST])?;
        for (name, text) in [(CERTIFICATE, certificate), (KEY, key)] {
            let (path, new) = (self.folder.join(name), self.folder.join(format!("{name}.new")));
            let mut file = fs::File::create(&new)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(text.as_bytes())?;
            own_unprivileged(&new)?;
            fs::rename(new, path)?;
        }
        Ok(())
    }

    /// Gives an encrypted server a certificate of another authority, while it runs; returns when it shows it.
    pub async fn renew_certificate(&self, authority: &Authority) -> Result<()> {
        self.write_certificate(authority)?;
        let mut connection = PgConnection::connect(&self.admin_url()).await?;
        sqlx::raw_sql("select pg_reload_conf()").execute(&mut connection).await?;
        connection.close().await?;
        let verifying = PgConnectOptions::from_str(&self.admin_url())?
            .ssl_mode(PgSslMode::VerifyFull)
            .ssl_root_cert_from_pem(authority.certificate().into_bytes());
        let shown = async || PgConnection::connect_with(&verifying).await.ok();
        let what = What::new(format!("{} to show its new certificate", self.name)).log(self.log()?);
        await_condition(what, START_DEADLINE, shown).await?.close().await?;
        Ok(())
    }

    /// Starts it on its old data, after [`Self::stop`] or [`Self::kill9`]; returns when it answers.
    pub async fn start_again(&self) -> Result<()> {
        let process = self.run(&self.name, &self.data(), self.port).await?;
        *self.postmaster.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Runs a postmaster on a data folder of this server; returns when it answers.
    async fn run(&self, name: &str, data: &Path, port: u16) -> Result<Process> {
        let mut command = Command::new(self.binaries.join("bin/postgres"));
        command.arg("-D").arg(data).arg("-p").arg(port.to_string());
        for (key, value) in &self.settings {
            command.arg("-c").arg(format!("{key}={value}"));
        }
        let process = self.spawn(name, &mut command)?;
        let what = What::new(format!("{name} to answer")).log(process.log());
        let answers = async || match process.expect_running() {
            Ok(()) => PgConnection::connect(&self.admin_url_at(port)).await.ok().map(Ok),
            Err(ended) => Some(Err(ended)),
        };
        await_condition(what, START_DEADLINE, answers).await??.close().await?;
        Ok(process)
    }

    /// As the user that owns the data folders.
    fn spawn(&self, name: &str, command: &mut Command) -> Result<Process> {
        run_unprivileged(command, &self.folder);
        Process::spawn(name, command)
    }

    /// Runs a command of the servers' user to its end.
    async fn complete(&self, what: &str, command: &mut Command) -> Result<()> {
        let process = self.spawn(&format!("{}-{what}", self.name), command)?;
        let awaited = What::new(format!("{what} of {}", self.name)).log(process.log());
        let status = await_condition(awaited, START_DEADLINE, async || process.ended().transpose()).await??;
        ensure!(status.success(), "{what} ended with {status}{}", describe_log(process.log()));
        Ok(())
    }

    async fn initialise(&self) -> Result<()> {
        let password_file = self.folder.join("password");
        let mut file = fs::File::create(&password_file)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(self.passwords.admin().as_bytes())?;
        own_unprivileged(&password_file)?;
        own_unprivileged(&self.folder)?;
        let mut initdb = Command::new(self.binaries.join("bin/initdb"));
        initdb.arg("-D").arg(self.data()).arg("--pwfile").arg(&password_file);
        initdb.args(["--username", ADMIN, "--auth", "scram-sha-256", "--encoding", "UTF8"]);
        // A crash while a test sets up its servers loses nothing worth a sync of every file.
        initdb.args(["--locale", "C", "--no-sync", "--no-instructions"]);
        self.complete("initdb", &mut initdb).await?;
        fs::remove_file(password_file)?;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn admin_url(&self) -> String {
        self.admin_url_at(self.port)
    }

    fn admin_url_at(&self, port: u16) -> String {
        format!("postgres://{ADMIN}:{}@{HOST}:{port}/postgres", self.passwords.admin())
    }

    fn take_postmaster(&self) -> Result<Process> {
        let mut postmaster = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner);
        postmaster.take().with_context(|| format!("{} does not run", self.name))
    }

    fn with_postmaster<T>(&self, act: impl FnOnce(&Process) -> Result<T>) -> Result<T> {
        let postmaster = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner);
        act(postmaster.as_ref().with_context(|| format!("{} does not run", self.name))?)
    }
}

fn scratch_name() -> String {
    format!("scratch_{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// PostgreSQL refuses to run as root; anybody else runs it as themselves. Its own client looks for certificates at home, which
/// is none of ours.
fn run_unprivileged(command: &mut Command, home: &Path) {
    command.env("HOME", home);
    if rustix::process::getuid().is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
}

fn own_unprivileged(path: &Path) -> Result<()> {
    if rustix::process::getuid().is_root() {
        chown(path, Some(UNPRIVILEGED), Some(UNPRIVILEGED))
            .with_context(|| format!("failed to give {} to the servers' user", path.display()))?;
    }
    Ok(())
}
