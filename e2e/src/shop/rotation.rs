//! What an administrator rotates while a shop is open: passwords, and the authority that signs the servers' certificates.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use sqlx::{AssertSqlSafe, Row as _};
use uuid::Uuid;

use super::{
    Shop,
    shard::{RolePasswords, Shard},
};
use crate::{
    authority::Authority,
    awaiting::{What, await_condition},
    postgres::Role,
    process::Process,
    run_folder::{RunFolder, make_folder},
};

/// Much longer than anybody takes to read a file or a Secret again.
const NOTICE_DEADLINE: Duration = Duration::from_secs(60);
/// What the operator and services say when they have. The operator may have opened the shards anew just then.
const OPERATOR_NOTICED: &[&str] = &["Secret has changed", "leading the set's shards"];
const SERVICE_NOTICED: &[&str] = &["the credentials for the shards have changed"];

/// Who learns of something new first: between the two, new connections fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// The servers; the Secrets and files follow at once.
    Servers,
    /// The Secrets and files; the servers follow once the operator and the service have noticed, and every session has been
    /// ended.
    Clients,
}

/// Whom the shop's clients trust, and who signs for its servers.
#[derive(Debug)]
pub struct Trust {
    /// A file for the servers of peers; in their user's reach.
    bundle_path: PathBuf,
    bundle: String,
    authority: Authority,
}

impl Trust {
    pub(super) fn new() -> Result<Self> {
        let authority = Authority::new()?;
        let folder = RunFolder::current()?.folder(&format!("trust-{}", Uuid::new_v4().simple()), 0o755)?;
        let (bundle, bundle_path) = (authority.certificate(), folder.join("ca.crt"));
        fs::write(&bundle_path, &bundle)?;
        Ok(Self { bundle_path, bundle, authority })
    }

    pub(super) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What connection Secrets say of it.
    pub(super) fn secret_data(&self) -> Vec<(String, String)> {
        vec![
            ("ca.crt".to_owned(), self.bundle.clone()),
            ("replicationSslRootCert".to_owned(), self.bundle_path.display().to_string()),
        ]
    }

    fn set_bundle(&mut self, bundle: String) -> Result<()> {
        let new = self.bundle_path.with_extension("new");
        fs::write(&new, &bundle)?;
        fs::rename(new, &self.bundle_path)?;
        self.bundle = bundle;
        Ok(())
    }
}

impl Shop {
    /// Gives the operator's, the subscriptions' and the services' role new passwords on all servers, each of which must be the
    /// shop's own.
    pub async fn rotate_passwords(&mut self, first: First) -> Result<()> {
        let passwords: RolePasswords =
            Role::ALL.map(|role| (role.name(), Uuid::new_v4().simple().to_string())).into();
        match first {
            First::Servers => {
                self.alter_passwords(&passwords).await?;
                self.tell_clients(&passwords).await
            }
            First::Clients => {
                self.tell_clients(&passwords).await?;
                self.end_sessions(&self.moment().await?).await?;
                self.await_status_saying("AuthenticationFailed").await?;
                self.alter_passwords(&passwords).await
            }
        }
    }

    /// A new authority. In the right order: first everybody trusts both, then the servers get new certificates, then the old one
    /// is forgotten. In the wrong one: first the servers get theirs, and every session is ended.
    pub async fn rotate_authority(&mut self, first: First) -> Result<()> {
        let new = Authority::new()?;
        match first {
            First::Clients => {
                let both = format!("{}{}", self.trust()?.bundle, new.certificate());
                self.trust()?.set_bundle(both)?;
                self.tell_clients_again().await?;
                self.renew_certificates(&new).await?;
            }
            First::Servers => {
                self.renew_certificates(&new).await?;
                self.end_sessions(&self.moment().await?).await?;
                self.await_status_saying("TlsFailed").await?;
            }
        }
        self.trust()?.set_bundle(new.certificate())?;
        self.trust()?.authority = new;
        self.tell_clients_again().await
    }

    async fn renew_certificates(&self, authority: &Authority) -> Result<()> {
        let renewed = self.shards.values().map(|shard| shard.server().renew_certificate(authority));
        try_join_all(renewed).await.map(drop)
    }

    fn trust(&mut self) -> Result<&mut Trust> {
        self.trust.as_mut().context("the shop does not encrypt")
    }

    /// Ends every session of the product that began before `moment`, those of streams too, on every shard; returns when none is
    /// to be seen. One that is logging in at this moment is seen later.
    pub async fn end_sessions(&self, moment: &str) -> Result<()> {
        let ended = self.shards.values().map(async |shard| {
            let mut connection = shard.database().connect_admin().await?;
            let statement = format!(
                "select count(pg_terminate_backend(pid)) from ({SESSIONS}) sessions where backend_start < '{moment}'"
            );
            let gone = async || {
                let row =
                    sqlx::query(AssertSqlSafe(statement.clone())).fetch_one(&mut connection).await.ok()?;
                (row.try_get::<i64, _>(0).ok()? == 0).then_some(())
            };
            await_condition(format!("every session at {} to end", shard.name()), NOTICE_DEADLINE, gone).await
        });
        try_join_all(ended).await.map(drop)
    }

    /// How many streams there are, once each has connected since `moment`, an SQL timestamp of the servers' clock.
    pub async fn await_streams_since(&self, moment: &str) -> Result<i64> {
        let counts = self.shards.values().map(async |shard| {
            let mut connection = shard.database().connect_admin().await?;
            let statement = format!(
                "select count(*), count(*) filter (where a.backend_start > '{moment}')
                 from pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid
                 where s.database = current_database() and s.slot_name like 'ls\\_%'"
            );
            let all_new = async || {
                let row =
                    sqlx::query(AssertSqlSafe(statement.clone())).fetch_one(&mut connection).await.ok()?;
                let (all, new): (i64, i64) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
                (all == new).then_some(all)
            };
            let what = What::new(format!("the streams from {} to be connected anew", shard.name()))
                .log(shard.server().log()?);
            await_condition(what, NOTICE_DEADLINE, all_new).await
        });
        Ok(try_join_all(counts).await?.into_iter().sum())
    }

    /// The servers' clock; all of them are on this machine.
    pub async fn moment(&self) -> Result<String> {
        let shard = self.shards.values().next().context("a shop has a shard")?;
        let mut connection = shard.database().connect_admin().await?;
        let row = sqlx::query("select clock_timestamp()::text").fetch_one(&mut connection).await?;
        Ok(row.try_get(0)?)
    }

    /// How many sessions of the product are not encrypted.
    pub async fn sessions_in_the_clear(&self) -> Result<i64> {
        let counts = self.shards.values().map(async |shard| {
            let mut connection = shard.database().connect_admin().await?;
            let statement = format!("select count(*) from ({SESSIONS}) sessions where not ssl");
            let row = sqlx::query(AssertSqlSafe(statement)).fetch_one(&mut connection).await?;
            anyhow::Ok(row.try_get::<i64, _>(0)?)
        });
        Ok(try_join_all(counts).await?.into_iter().sum())
    }

    async fn alter_passwords(&mut self, passwords: &RolePasswords) -> Result<()> {
        let altered = self.shards.values_mut().map(async |shard| {
            for role in Role::ALL {
                let password = passwords.get(role.name()).context("there is one for each role")?;
                shard.database_mut().set_password(role, password).await?;
            }
            anyhow::Ok(())
        });
        try_join_all(altered).await.map(drop)
    }

    async fn tell_clients_again(&self) -> Result<()> {
        let passwords = self.shards.values().next().map(Shard::passwords).unwrap_or_default();
        self.tell_clients(&passwords).await
    }

    /// Secrets and mounted files; returns when the operator and the service, which must run, have noticed.
    async fn tell_clients(&self, passwords: &RolePasswords) -> Result<()> {
        let noticed_before = self.noticed();
        for shard in self.shards.values() {
            shard.apply_secret(&self.client, &self.namespace, passwords, self.trust.as_ref()).await?;
        }
        self.mount_service_credentials(passwords.get(Role::Service.name()).context("services log in")?)?;
        let noticed = async || {
            let (operator, service) = self.noticed();
            (operator > noticed_before.0 && service > noticed_before.1).then_some(())
        };
        let mut what = What::new("the operator and the service to notice what was rotated");
        for process in [&self.operator, &self.service].into_iter().flatten() {
            what = what.log(process.log());
        }
        await_condition(what, NOTICE_DEADLINE, noticed).await
    }

    /// How often the operator and the service said that they noticed.
    fn noticed(&self) -> (usize, usize) {
        let said = |process: &Option<Process>, words: &[&str]| {
            let log = process.as_ref().and_then(|process| fs::read_to_string(process.log()).ok());
            log.map_or(0, |log| words.iter().map(|words| log.matches(words).count()).sum())
        };
        (said(&self.operator, OPERATOR_NOTICED), said(&self.service, SERVICE_NOTICED))
    }

    /// Returns when the status says this word, as it does while the operator and a shard do not trust each other.
    async fn await_status_saying(&self, word: &str) -> Result<()> {
        let mut last = "no status was seen".to_owned();
        let said = async || {
            last = self.set.status().await.ok()?.describe();
            last.contains(word).then_some(())
        };
        let awaited = await_condition(format!("the status to say {word}"), NOTICE_DEADLINE, said).await;
        awaited.with_context(|| format!("last status: {last}"))
    }

    /// The files of the service's credentials, all changed at once, as a kubelet does it.
    pub(super) fn mount_service_credentials(&self, password: &str) -> Result<PathBuf> {
        let folder = RunFolder::current()?.folder(&format!("credentials-{}", self.namespace), 0o700)?;
        let files = [
            ("username", Some(Role::Service.name().to_owned())),
            ("password", Some(password.to_owned())),
            ("ca.crt", self.trust.as_ref().map(|trust| trust.bundle.clone())),
        ];
        mount(&folder, files.into_iter().filter_map(|(name, text)| Some((name, text?))))?;
        Ok(folder)
    }
}

/// The product's sessions in a shard's database.
const SESSIONS: &str =
    "select a.pid, a.backend_start, s.ssl from pg_stat_activity a join pg_stat_ssl s using (pid)
    where a.datname = current_database() and a.backend_type in ('client backend', 'walsender')
      and a.usename in ('longshore_operator', 'longshore_replication', 'longshore_service')";

/// Links in `folder` lead through `..data` to a folder of their own, which is swapped.
fn mount<'a>(folder: &Path, files: impl Iterator<Item = (&'a str, String)>) -> Result<()> {
    let version = format!("..{}", Uuid::new_v4().simple());
    make_folder(&folder.join(&version), 0o700)?;
    for (name, text) in files {
        fs::write(folder.join(&version).join(name), text)?;
        if !folder.join(name).is_symlink() {
            symlink(format!("..data/{name}"), folder.join(name))?;
        }
    }
    let old = fs::read_link(folder.join("..data")).ok();
    symlink(&version, folder.join("..data_new"))?;
    fs::rename(folder.join("..data_new"), folder.join("..data"))?;
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old))?;
    }
    Ok(())
}
