//! A server's data folder, copied: backups to restore, cold copies to put back, standbys to promote.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::PoisonError,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use sqlx::{Connection as _, PgConnection, Row as _};

use super::{Role, STOP_DEADLINE, Server, own_unprivileged};
use crate::{awaiting::await_condition, free_port::free_port, process::Process};

/// Until a standby has replayed, or a recovery has ended.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(60);
/// What a copy of a running server leaves out: its WAL comes from elsewhere, and slots and pids are its own.
const NOT_COPIED: [&str; 4] = ["pg_wal", "pg_replslot", "postmaster.pid", "postmaster.opts"];

/// A copy of a running server, made between `pg_backup_start` and `pg_backup_stop`.
#[derive(Debug)]
pub struct BaseBackup(PathBuf);

/// A copy of a stopped server's whole data folder.
#[derive(Debug)]
pub struct ColdCopy(PathBuf);

/// A streaming standby. Dropped, it is killed.
#[derive(Debug)]
pub struct Standby {
    data: PathBuf,
    port: u16,
    process: Process,
}

impl Standby {
    /// Lets it hear nothing more of its server: what is committed there from now on it lacks.
    pub async fn deafen(&self, server: &Server) -> Result<()> {
        let mut admin = PgConnection::connect(&server.admin_url_at(self.port)).await?;
        for statement in ["alter system set primary_conninfo = ''", "select pg_reload_conf()"] {
            sqlx::raw_sql(statement).execute(&mut admin).await?;
        }
        let deaf = "select not exists (select from pg_stat_wal_receiver)";
        await_true(&mut admin, "the standby to hear nothing", deaf).await
    }
}

impl Server {
    /// Copies the server while it runs. It has to archive its WAL: see [`Self::archiving`].
    pub async fn base_backup(&self) -> Result<BaseBackup> {
        let data = self.new_data_folder("backup")?;
        self.copy_running(&data).await?;
        Ok(BaseBackup(data))
    }

    /// The settings with which a server keeps its WAL in a folder of its own.
    pub fn archiving() -> [(&'static str, &'static str); 2] {
        [
            ("archive_mode", "on"),
            // Relative to the data folder, which lies beside the archive.
            ("archive_command", "mkdir -p ../archive && cp %p ../archive/%f"),
        ]
    }

    /// Puts a backup in the server's place, by archive recovery to the end of the backup: a new timeline.
    pub async fn restore(&self, backup: BaseBackup) -> Result<()> {
        self.stop().await?;
        let recovery = "restore_command = 'cp ../archive/%f %p'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n";
        self.configure(&backup.0, recovery, "recovery.signal").await?;
        self.switch_to(backup.0);
        self.start_again().await?;
        self.await_writable().await
    }

    /// Stops the server, copies all of its data folder, and starts it again.
    pub async fn copy_cold(&self) -> Result<ColdCopy> {
        self.stop().await?;
        let data = self.folder.join(format!("copy-{}", self.port));
        self.complete("copy", Command::new("cp").arg("-a").arg(self.data()).arg(&data)).await?;
        self.start_again().await?;
        Ok(ColdCopy(data))
    }

    /// Puts a cold copy in the server's place: system identifier and timeline stay what they were.
    pub async fn replace_by(&self, copy: ColdCopy) -> Result<()> {
        self.stop().await?;
        self.switch_to(copy.0);
        self.start_again().await
    }

    /// A standby of this server that streams from it; `synchronous`: the server's commits wait for it from now on.
    pub async fn standby(&self, synchronous: bool) -> Result<Standby> {
        let data = self.new_data_folder("standby")?;
        self.copy_running(&data).await?;
        let role = Role::Replication;
        let conninfo = format!(
            "host={} port={} user={} password={} application_name=standby",
            self.host(),
            self.port,
            role.name(),
            self.passwords.of(role)
        );
        self.configure(&data, &format!("primary_conninfo = '{conninfo}'\n"), "standby.signal").await?;
        let port = free_port()?;
        let process = self.run(&format!("{}-standby", self.name), &data, port).await?;
        let mut admin = PgConnection::connect(&self.admin_url()).await?;
        let streams = async || {
            let row = sqlx::query(
                "select exists (select from pg_stat_replication where application_name = 'standby' and state = 'streaming')",
            );
            row.fetch_one(&mut admin).await.and_then(|row| row.try_get::<bool, _>(0)).ok()?.then_some(())
        };
        await_condition("the standby to stream", RECOVERY_DEADLINE, streams).await?;
        if synchronous {
            for statement in
                ["alter system set synchronous_standby_names = 'standby'", "select pg_reload_conf()"]
            {
                sqlx::raw_sql(statement).execute(&mut admin).await?;
            }
            let waits = "select exists (select from pg_stat_replication where sync_state = 'sync')";
            await_true(&mut admin, "the standby to be synchronous", waits).await?;
        }
        Ok(Standby { data, port, process })
    }

    /// Kills the server and promotes the standby in its place, at its address, as a Service would lead there.
    pub async fn fail_over_to(&self, standby: Standby) -> Result<()> {
        self.kill9().await?;
        standby.process.signal_and_await_end(Signal::INT, STOP_DEADLINE).await?;
        // Nobody stands by any more.
        self.configure(&standby.data, "synchronous_standby_names = ''\n", "standby.signal").await?;
        self.switch_to(standby.data);
        self.start_again().await?;
        let mut admin = PgConnection::connect(&self.admin_url()).await?;
        sqlx::raw_sql("select pg_promote()").execute(&mut admin).await.context("failed to promote")?;
        admin.close().await?;
        self.await_writable().await
    }

    async fn await_writable(&self) -> Result<()> {
        let mut admin = PgConnection::connect(&self.admin_url()).await?;
        await_true(&mut admin, "the recovery to end", "select not pg_is_in_recovery()").await
    }

    fn switch_to(&self, data: PathBuf) {
        *self.data.lock().unwrap_or_else(PoisonError::into_inner) = data;
    }

    fn new_data_folder(&self, what: &str) -> Result<PathBuf> {
        let data =
            (1..).map(|number| self.folder.join(format!("{what}-{number}"))).find(|data| !data.exists());
        let data = data.context("there is always another number")?;
        make_own(&data)?;
        Ok(data)
    }

    async fn copy_running(&self, data: &Path) -> Result<()> {
        let mut admin = PgConnection::connect(&self.admin_url()).await?;
        sqlx::query("select pg_backup_start('e2e', fast => true)").execute(&mut admin).await?;
        let mut copy = Command::new("cp");
        copy.arg("-a");
        for entry in fs::read_dir(self.data())? {
            let entry = entry?;
            if !NOT_COPIED.iter().any(|name| entry.file_name() == *name) {
                copy.arg(entry.path());
            }
        }
        self.complete("copy", copy.arg(data)).await?;
        for folder in ["pg_wal", "pg_wal/archive_status", "pg_wal/summaries", "pg_replslot"] {
            make_own(&data.join(folder))?;
        }
        let row = sqlx::query("select labelfile from pg_backup_stop()").fetch_one(&mut admin).await?;
        write_own(&data.join("backup_label"), &row.try_get::<String, _>(0)?)?;
        admin.close().await?;
        Ok(())
    }

    /// Adds to a stopped server's configuration, and says how it is to start.
    async fn configure(&self, data: &Path, settings: &str, signal: &str) -> Result<()> {
        let file = data.join("postgresql.auto.conf");
        let before = fs::read_to_string(&file).unwrap_or_default();
        write_own(&file, &format!("{before}{settings}"))?;
        write_own(&data.join(signal), "")
    }
}

async fn await_true(connection: &mut PgConnection, what: &str, query: &'static str) -> Result<()> {
    let asked = async || {
        let row = sqlx::query(query).fetch_one(&mut *connection).await;
        row.and_then(|row| row.try_get::<bool, _>(0)).ok()?.then_some(())
    };
    await_condition(what, RECOVERY_DEADLINE, asked).await
}

fn make_own(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("failed to make {}", folder.display()))?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    own_unprivileged(folder)
}

fn write_own(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))?;
    fs::set_permissions(file, Permissions::from_mode(0o600))?;
    own_unprivileged(file)
}
