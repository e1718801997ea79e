//! What a server and its tables must be like before buckets can move. Each finding says how to mend it.

use longshore_crds::order_shard_set::TableSpec;
use longshore_sharding::KeyType;
use sqlx::{PgConnection, Row};

use super::{StoreError, failed};

/// Something that has to be mended by a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    #[error("PostgreSQL {found} is too old: 16 or later is needed")]
    VersionTooOld { found: String },
    #[error("wal_level is {found:?}; mend: ALTER SYSTEM SET wal_level = 'logical', then restart the server")]
    WalLevelNotLogical { found: String },
    #[error("role {role} lacks {privilege}; mend: run operator/sql/roles.sql as an administrator")]
    PrivilegeMissing { role: String, privilege: String },
    #[error("table {table} does not exist; mend: create it in a migration")]
    TableNotFound { table: String },
    #[error("table {table} has no column {key}")]
    KeyNotFound { table: String, key: String },
    #[error("column {key} of {table} is of type {found}: only bigint and uuid can be sharded by")]
    KeyTypeUnsupported { table: String, key: String, found: String },
    #[error(
        "column {key} of {table} is {found:?}, those before it are {expected:?}: all must be of one type"
    )]
    KeyTypesDiffer { table: String, key: String, found: KeyType, expected: KeyType },
    #[error(
        "the primary key of {table} lacks {key}, so updates and deletes could not be replicated by bucket; \
         mend: ALTER TABLE {table} DROP CONSTRAINT <its primary key>, ADD PRIMARY KEY ({key}, <its columns>)"
    )]
    PrimaryKeyLacksShardKey { table: String, key: String },
}

impl Finding {
    /// The CamelCase reason for conditions and events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::VersionTooOld { .. } => "VersionTooOld",
            Self::WalLevelNotLogical { .. } => "WalLevelNotLogical",
            Self::PrivilegeMissing { .. } => "PrivilegeMissing",
            Self::TableNotFound { .. } => "TableNotFound",
            Self::KeyNotFound { .. } => "KeyNotFound",
            Self::KeyTypeUnsupported { .. } => "KeyTypeUnsupported",
            Self::KeyTypesDiffer { .. } => "KeyTypesDiffer",
            Self::PrimaryKeyLacksShardKey { .. } => "PrimaryKeyLacksShardKey",
        }
    }
}

/// Checks the server, before anything is installed.
///
/// # Errors
/// When the server cannot be asked.
pub async fn server(connection: &mut PgConnection) -> Result<Option<Finding>, StoreError> {
    let row = sqlx::query(
        "select current_setting('server_version_num')::int as number, current_setting('server_version') as version,
                current_setting('wal_level') as wal_level, current_user as role,
                case when not (select rolreplication from pg_roles where rolname = current_user) then 'REPLICATION'
                     when not coalesce((select pg_has_role(oid, 'usage') from pg_roles where rolname = 'longshore_owner'), false) then 'membership in longshore_owner'
                     when not pg_has_role('pg_create_subscription', 'usage') then 'membership in pg_create_subscription'
                     when not has_database_privilege(current_database(), 'create') then 'CREATE on the database' end as lacking",
    )
    .fetch_one(connection)
    .await;
    let failed = failed("check the server");
    let row = match row {
        // 15 has no pg_create_subscription to ask about.
        Err(error) if error.as_database_error().and_then(|e| e.code()).as_deref() == Some("42704") => {
            return Ok(Some(Finding::VersionTooOld { found: "15 or older".into() }));
        }
        other => other.map_err(&failed)?,
    };
    let read = || -> Result<Option<Finding>, sqlx::Error> {
        let (number, wal_level): (i32, String) = (row.try_get("number")?, row.try_get("wal_level")?);
        let lacking: Option<String> = row.try_get("lacking")?;
        Ok(if number < 160_000 {
            Some(Finding::VersionTooOld { found: row.try_get("version")? })
        } else if wal_level != "logical" {
            Some(Finding::WalLevelNotLogical { found: wal_level })
        } else if let Some(privilege) = lacking {
            Some(Finding::PrivilegeMissing { role: row.try_get("role")?, privilege })
        } else {
            None
        })
    };
    read().map_err(failed)
}

/// Checks the tables, after the migrations.
///
/// # Errors
/// `Ok(Err(finding))` for the first fault of a table; `Err` when the server cannot be asked.
pub async fn tables(
    connection: &mut PgConnection,
    tables: &[TableSpec],
) -> Result<Result<KeyType, Finding>, StoreError> {
    let mut expected = None;
    for table in tables {
        match self::table(connection, table).await? {
            Err(finding) => return Ok(Err(finding)),
            Ok(found) => match expected {
                None => expected = Some(found),
                Some(expected) if expected == found => {}
                Some(expected) => {
                    let (table, key) = (table.name.clone(), table.key.clone());
                    return Ok(Err(Finding::KeyTypesDiffer { table, key, found, expected }));
                }
            },
        }
    }
    Ok(Ok(expected.unwrap_or(KeyType::Bigint)))
}

async fn table(
    connection: &mut PgConnection,
    spec: &TableSpec,
) -> Result<Result<KeyType, Finding>, StoreError> {
    let failed = failed("check a table");
    let row = sqlx::query(
        "select c.oid is not null as there, format_type(a.atttypid, null) as key_type,
                coalesce(a.attnum = any (i.indkey), false) as in_primary_key
         from (select to_regclass(longshore.qualified($1)) as oid) c
         left join pg_attribute a on a.attrelid = c.oid and a.attname = $2 and not a.attisdropped
         left join pg_index i on i.indrelid = c.oid and i.indisprimary",
    )
    .bind(&spec.name)
    .bind(&spec.key)
    .fetch_one(connection)
    .await
    .map_err(&failed)?;
    let read = || -> Result<(bool, Option<String>, bool), sqlx::Error> {
        Ok((row.try_get("there")?, row.try_get("key_type")?, row.try_get("in_primary_key")?))
    };
    let (table, key) = (spec.name.clone(), spec.key.clone());
    let (there, key_type, in_primary_key) = read().map_err(failed)?;
    Ok(match key_type.as_deref() {
        _ if !there => Err(Finding::TableNotFound { table }),
        None => Err(Finding::KeyNotFound { table, key }),
        Some("bigint" | "uuid") if !in_primary_key => Err(Finding::PrimaryKeyLacksShardKey { table, key }),
        Some("bigint") => Ok(KeyType::Bigint),
        Some("uuid") => Ok(KeyType::Uuid),
        Some(found) => Err(Finding::KeyTypeUnsupported { table, key, found: found.to_owned() }),
    })
}
