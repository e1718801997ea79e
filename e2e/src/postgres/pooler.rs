//! A PgBouncer before one database of a server, in transaction mode: services alone may log in.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgConnectOptions};

use super::{Database, HOST, Role, own_unprivileged, run_unprivileged};
use crate::{
    awaiting::{What, await_condition},
    free_port::free_port,
    parts,
    process::Process,
    run_folder::RunFolder,
};

const START_DEADLINE: Duration = Duration::from_secs(30);

/// A pooler: its port stays the same, however often it is started. Dropped, it is killed.
#[derive(Debug)]
pub struct Pooler {
    name: String,
    port: u16,
    database: Database,
    part: PathBuf,
    folder: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Pooler {
    /// The most connections that it has to its database.
    pub const SERVER_CONNECTIONS: u32 = 10;

    /// One before this database; returns when services get in.
    pub async fn start(database: &Database) -> Result<Self> {
        let part = parts::pgbouncer().await?;
        let port = free_port()?;
        let name = format!("pgbouncer-{port}");
        let folder = RunFolder::current()?.folder(&name, 0o700)?;
        own_unprivileged(&folder)?;
        let pooler = Self { name, port, database: database.clone(), part, folder, process: Mutex::default() };
        pooler.configure()?;
        pooler.start_again().await?;
        Ok(pooler)
    }

    /// The port it listens on, on the server's host.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// kill -9: whoever is connected is cut off.
    pub async fn kill9(&self) -> Result<()> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner).take();
        process.with_context(|| format!("{} does not run", self.name))?.kill9().await
    }

    /// Starts it after [`Self::kill9`]; returns when services get in.
    pub async fn start_again(&self) -> Result<()> {
        let mut command = parts::pgbouncer_command(&self.part)?;
        command.arg(self.folder.join("pgbouncer.ini"));
        run_unprivileged(&mut command, &self.folder);
        let process = Process::spawn(&self.name, &mut command)?;
        let service = self.options();
        let answers = async || match process.expect_running() {
            Ok(()) => PgConnection::connect_with(&service).await.ok().map(Ok),
            Err(ended) => Some(Err(ended)),
        };
        let what = What::new(format!("{} to let services in", self.name)).log(process.log());
        await_condition(what, START_DEADLINE, answers).await??.close().await?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// From which ports it is connected to its server now: tells its connections from those that services make themselves.
    pub async fn server_ports(&self) -> Result<BTreeSet<u16>> {
        self.ports_of("show servers", "local_port").await
    }

    /// From which ports services are connected to it now.
    pub async fn client_ports(&self) -> Result<BTreeSet<u16>> {
        self.ports_of("show clients", "port").await
    }

    /// What its own console says of this database's connections.
    async fn ports_of(&self, command: &'static str, column: &str) -> Result<BTreeSet<u16>> {
        let mut console = PgConnection::connect_with(&self.options().database("pgbouncer")).await?;
        let rows = sqlx::raw_sql(command).fetch_all(&mut console).await?;
        console.close().await?;
        let mut ports = BTreeSet::new();
        for row in &rows {
            if row.try_get::<String, _>("database")? == self.database.dbname() {
                ports.insert(u16::try_from(row.try_get::<i32, _>(column)?)?);
            }
        }
        Ok(ports)
    }

    /// A service's way in.
    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(HOST)
            .port(self.port)
            .database(self.database.dbname())
            .username(Role::Service.name())
            .password(self.database.password(Role::Service))
            .extra_float_digits(None)
    }

    /// As an administrator would: what a router needs is no more than this, and docs/architecture.md says so.
    fn configure(&self) -> Result<()> {
        let Self { port, database, folder, .. } = self;
        let users = folder.join("users.txt");
        let ini = format!(
            "[databases]\n\
             {dbname} = host={HOST} port={server} dbname={dbname}\n\
             [pgbouncer]\n\
             listen_addr = {HOST}\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {users}\nstats_users = {service}\n\
             pool_mode = transaction\nmax_prepared_statements = 200\n\
             max_client_conn = 500\ndefault_pool_size = {connections}\nmax_db_connections = {connections}\n\
             server_login_retry = 1\nserver_connect_timeout = 3\nquery_wait_timeout = 5\n",
            dbname = database.dbname(),
            server = database.port(),
            users = users.display(),
            service = Role::Service.name(),
            connections = Self::SERVER_CONNECTIONS,
        );
        let service = format!("\"{}\" \"{}\"\n", Role::Service.name(), database.password(Role::Service));
        for (path, text) in [(folder.join("pgbouncer.ini"), ini), (users, service)] {
            fs::write(&path, "")?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            fs::write(&path, text)?;
            own_unprivileged(&path)?;
        }
        Ok(())
    }
}
