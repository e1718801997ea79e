//! The set's own schema: ordered SQL migrations, each applied once, in a transaction of its own, as the owner.

use std::collections::BTreeMap;

use longshore_sharding::operation::{Course, OperationId};
use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row, postgres::PgRow};

use super::{StoreError, agent::hex, failed};

/// Why a shard's schema is not what the ConfigMap says.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error("migration {name:?} was changed after it had been applied; add a new one instead")]
    Changed { name: String },
    #[error("migration {name:?} failed")]
    Failed {
        name: String,
        #[source]
        source: sqlx::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Applies what is missing, in the order of names. A migration that fails leaves nothing behind; the next try goes on with it.
///
/// # Errors
/// Names the migration that was changed or failed.
pub async fn migrate(
    connection: &mut PgConnection,
    migrations: &BTreeMap<String, String>,
) -> Result<(), MigrationError> {
    let applied = applied(connection).await?;
    for (name, sql) in migrations {
        let checksum = hex(&Sha256::digest(sql.as_bytes()));
        match applied.get(name) {
            Some(found) if *found == checksum => {}
            Some(_) => return Err(MigrationError::Changed { name: name.clone() }),
            None => apply(connection, name, sql, &checksum)
                .await
                .map_err(|source| MigrationError::Failed { name: name.clone(), source })?,
        }
    }
    Ok(())
}

/// The migrations that were applied here, with their checksums.
///
/// # Errors
/// When the shard cannot be asked.
pub async fn applied(connection: &mut PgConnection) -> Result<BTreeMap<String, String>, StoreError> {
    let failed = failed("read the applied migrations");
    let rows = sqlx::query("select name, checksum from longshore.migration")
        .fetch_all(connection)
        .await
        .map_err(&failed)?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, _>>().map_err(failed)
}

/// The newest operation in the shard's journal, and whether it is over there. Nothing is migrated while one is open: source and
/// destination must stay alike.
///
/// # Errors
/// When the shard cannot be asked, or answers what cannot be read.
pub async fn newest_operation(
    connection: &mut PgConnection,
) -> Result<Option<(OperationId, bool)>, StoreError> {
    let failed = failed("read the journal");
    let row = sqlx::query("select id, course from longshore.operation order by id desc limit 1")
        .fetch_optional(connection)
        .await
        .map_err(&failed)?;
    let read = |row: PgRow| -> Result<_, sqlx::Error> {
        let course: serde_json::Value = row.try_get("course")?;
        let course: Course =
            serde_json::from_value(course).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok((OperationId(row.try_get("id")?), course.is_over()))
    };
    row.map(read).transpose().map_err(failed)
}

async fn apply(
    connection: &mut PgConnection,
    name: &str,
    sql: &str,
    checksum: &str,
) -> Result<(), sqlx::Error> {
    let mut tx = connection.begin().await?;
    sqlx::raw_sql("set local role longshore_owner; set local lock_timeout = '5s'").execute(&mut *tx).await?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await?;
    sqlx::query("insert into longshore.migration (name, checksum) values ($1, $2)")
        .bind(name)
        .bind(checksum)
        .execute(&mut *tx)
        .await?;
    tx.commit().await
}
