//! One database of a server, and who may log in to it.

use std::{fs, sync::OnceLock};

use anyhow::{Context as _, Result};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use uuid::Uuid;

use crate::settings;

/// Who logs in to a shard; roles.sql says what each may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The operator.
    Operator,
    /// A subscription of a peer shard.
    Replication,
    /// A service.
    Service,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Operator, Self::Replication, Self::Service];

    /// Its name in the server.
    pub fn name(self) -> &'static str {
        match self {
            Self::Operator => "longshore_operator",
            Self::Replication => "longshore_replication",
            Self::Service => "longshore_service",
        }
    }
}

/// A database, and the passwords to get in.
#[derive(Clone, Debug)]
pub struct Database {
    host: &'static str,
    port: u16,
    dbname: String,
    passwords: Passwords,
}

impl Database {
    /// The URL of the administrator: for set-up, corruption and the checker, never for what is tested.
    pub fn admin_url(&self) -> String {
        self.login(super::ADMIN, self.passwords.admin())
    }

    /// The URL of one of the product's roles.
    pub fn url(&self, role: Role) -> String {
        self.login(role.name(), self.password(role))
    }

    /// A new connection as the administrator.
    pub async fn connect_admin(&self) -> Result<PgConnection> {
        connect(&self.admin_url(), &self.dbname).await
    }

    /// A new connection as one of the product's roles.
    pub async fn connect(&self, role: Role) -> Result<PgConnection> {
        connect(&self.url(role), &self.dbname).await
    }

    /// The server's address.
    pub fn host(&self) -> &'static str {
        self.host
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The database's name.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// Gives a role a new password, on the whole server. Other values of this database do not know it.
    pub async fn set_password(&mut self, role: Role, password: &str) -> Result<()> {
        let mut connection = self.connect_admin().await?;
        alter_password(&mut connection, role, password).await?;
        connection.close().await?;
        self.passwords.set(role, password.to_owned());
        Ok(())
    }

    /// The password of a role.
    pub fn password(&self, role: Role) -> &str {
        self.passwords.of(role)
    }

    fn login(&self, user: &str, password: &str) -> String {
        format!("postgres://{user}:{password}@{}:{}/{}", self.host, self.port, self.dbname)
    }
}

/// The passwords of one run, random, the same on all its servers: a service has one login for all shards.
/// Debug output hides them.
#[derive(Clone)]
pub(super) struct Passwords {
    admin: String,
    operator: String,
    replication: String,
    service: String,
}

impl Passwords {
    pub(super) fn of_this_run() -> Self {
        static OF_THIS_RUN: OnceLock<Passwords> = OnceLock::new();
        let password = || Uuid::new_v4().simple().to_string();
        let random =
            || Self { admin: password(), operator: password(), replication: password(), service: password() };
        OF_THIS_RUN.get_or_init(random).clone()
    }

    pub(super) fn admin(&self) -> &str {
        &self.admin
    }

    fn set(&mut self, role: Role, password: String) {
        match role {
            Role::Operator => self.operator = password,
            Role::Replication => self.replication = password,
            Role::Service => self.service = password,
        }
    }

    pub(super) fn of(&self, role: Role) -> &str {
        match role {
            Role::Operator => &self.operator,
            Role::Replication => &self.replication,
            Role::Service => &self.service,
        }
    }
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords(..)")
    }
}

/// Makes a database, as a copy if there is a template, and gives the roles their rights there and their passwords, as an
/// administrator would.
pub(super) async fn create_database(
    host: &'static str,
    port: u16,
    dbname: &str,
    template: Option<&Database>,
    passwords: &Passwords,
) -> Result<Database> {
    let maintenance = Database { host, port, dbname: "postgres".to_owned(), passwords: passwords.clone() };
    let mut connection = maintenance.connect_admin().await?;
    let template_name = template.map_or("template1", Database::dbname);
    connection
        .execute(AssertSqlSafe(format!("create database \"{dbname}\" template \"{template_name}\"")))
        .await
        .with_context(|| format!("failed to create database {dbname} after {template_name}"))?;
    connection.close().await?;

    let database = Database { dbname: dbname.to_owned(), ..maintenance };
    let roles = settings::repository().join("operator/sql/roles.sql");
    let roles = fs::read_to_string(&roles).with_context(|| format!("failed to read {}", roles.display()))?;
    let mut connection = database.connect_admin().await?;
    sqlx::raw_sql(AssertSqlSafe(roles)).execute(&mut connection).await.context("failed to run roles.sql")?;
    if template.is_none() {
        // They are the server's: whoever made the template gave them their passwords.
        for role in Role::ALL {
            alter_password(&mut connection, role, database.password(role)).await?;
        }
    }
    connection.close().await?;
    Ok(database)
}

async fn alter_password(connection: &mut PgConnection, role: Role, password: &str) -> Result<()> {
    let statement = AssertSqlSafe(format!("alter role {} password '{password}'", role.name()));
    let altered = connection.execute(statement).await;
    altered.with_context(|| format!("failed to set the password of {}", role.name())).map(drop)
}

async fn connect(url: &str, dbname: &str) -> Result<PgConnection> {
    PgConnection::connect(url).await.with_context(|| format!("failed to connect to database {dbname}"))
}
