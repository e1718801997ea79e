//! The server and the role that we are there: version, wal_level, privileges, limits.

use sqlx::{PgConnection, Row, postgres::PgRow};

use super::{Finding, Reason};
use crate::shard::{StoreError, failed};

/// How many pairs of shards copy at the same moment.
const COPIES_AT_ONCE: i64 = 2;
/// Sessions that the operator needs on a shard: its pool, one that opens the shard, and one to spare.
const OPERATOR_SESSIONS: i64 = 6;
/// Locks of one handover: the gates of its buckets, and as many again for tables and indexes.
const LOCKS_OF_A_HANDOVER: i64 = 512;
/// Locks that any other session holds in the shared table at once: a gate and some relations.
const LOCKS_OF_A_SESSION: i64 = 8;

/// Checks the server, before anything is installed.
///
/// # Errors
/// When the server cannot be asked.
pub async fn server(connection: &mut PgConnection) -> Result<Vec<Finding>, StoreError> {
    let failed = failed("check the server");
    let row = sqlx::query(
        "select current_setting('server_version_num')::int as number, current_setting('server_version') as version,
                current_setting('wal_level') as wal_level",
    );
    let row = row.fetch_one(&mut *connection).await.map_err(&failed)?;
    let number: i32 = row.try_get("number").map_err(&failed)?;
    if number < 160_000 {
        let version: String = row.try_get("version").map_err(&failed)?;
        let message = format!("PostgreSQL {version} is too old: 16 or later is needed");
        // What follows asks about roles that an older one does not have.
        return Ok(vec![Finding::new(Reason::VersionTooOld, message, None)]);
    }
    let mut findings = Vec::new();
    let wal_level: String = row.try_get("wal_level").map_err(&failed)?;
    if wal_level != "logical" {
        let message = format!("wal_level is {wal_level:?}, and a change of it needs a restart of the server");
        let mend = "ALTER SYSTEM SET wal_level = 'logical'".to_owned();
        findings.push(Finding::new(Reason::WalLevelNotLogical, message, Some(mend)));
    }
    // Each of them is in roles.sql; the order is that of need.
    let rows = sqlx::query(
        "select format('role %s lacks %s: run operator/sql/roles.sql as an administrator', current_user, lacking) as message, mend
         from (values
           ('REPLICATION', (select rolreplication from pg_roles where rolname = current_user), format('ALTER ROLE %I REPLICATION', current_user)),
           ('membership in longshore_owner', (select pg_has_role(oid, 'usage') from pg_roles where rolname = 'longshore_owner'),
            case when exists (select from pg_roles where rolname = 'longshore_owner') then format('GRANT longshore_owner TO %I', current_user) end),
           ('membership in pg_create_subscription', pg_has_role('pg_create_subscription', 'usage'), format('GRANT pg_create_subscription TO %I', current_user)),
           ('CREATE on the database', has_database_privilege(current_database(), 'create'),
            format('GRANT CREATE ON DATABASE %I TO %I', current_database(), current_user))
         ) asked (lacking, has, mend) where has is not true",
    );
    let rows = rows.fetch_all(connection).await.map_err(&failed)?;
    let lacking = |row: &PgRow| -> Result<Finding, sqlx::Error> {
        let message: String = row.try_get("message")?;
        Ok(Finding::new(Reason::PrivilegeMissing, message, row.try_get("mend")?))
    };
    for row in &rows {
        findings.push(lacking(row).map_err(&failed)?);
    }
    Ok(findings)
}

/// What a server allows, and what others than this shard's streams use of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub slots: i64,
    /// Where PostgreSQL counts them apart from slots: from 18 on.
    pub origins: Option<i64>,
    pub wal_senders: i64,
    pub apply_workers: i64,
    pub sync_workers: i64,
    pub worker_processes: i64,
    pub connections: i64,
    pub connections_reserved: i64,
    pub prepared_transactions: i64,
    pub locks: i64,
    pub slots_of_others: i64,
    pub senders_of_others: i64,
    pub subscriptions_of_others: i64,
    pub workers_of_others: i64,
}

/// Checks the server's limits for a set of `shards` shards: the plan is not known yet, so each other shard may be a peer.
///
/// # Errors
/// When the server cannot be asked.
pub async fn limits(connection: &mut PgConnection, shards: usize) -> Result<Vec<Finding>, StoreError> {
    let failed = failed("read the server's limits");
    let rows = sqlx::query(
        "with setting (name, value) as (select name, setting::bigint from pg_settings where vartype = 'integer')
         select name, value from setting
         union all select 'slots of others', count(*) from pg_replication_slots
           where not (coalesce(database = current_database(), false) and (slot_name like 'ls\\_%' or slot_name ~ '^pg_[0-9]+_sync_'))
         union all select 'senders of others', count(*) from pg_stat_activity
           where backend_type = 'walsender' and datname is distinct from current_database()
         union all select 'subscriptions of others', count(*) from pg_subscription
           where subenabled and not (subname like 'ls\\_%' and subdbid = (select oid from pg_database where datname = current_database()))
         union all select 'workers of others', count(*) from pg_stat_activity
           where backend_type not like 'logical replication %' and backend_type not in ('parallel worker', 'client backend',
             'walsender', 'walreceiver', 'walwriter', 'walsummarizer', 'background writer', 'checkpointer', 'startup', 'archiver',
             'autovacuum launcher', 'autovacuum worker', 'io worker', 'slotsync worker', 'logger', 'standalone backend')",
    );
    let rows = rows.fetch_all(connection).await.map_err(&failed)?;
    let read = |row: &PgRow| -> Result<(String, i64), sqlx::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    let found: std::collections::BTreeMap<_, _> =
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)?;
    let of = |name: &str| found.get(name).copied();
    let known = |name: &str| of(name).unwrap_or(0);
    let limits = Limits {
        slots: known("max_replication_slots"),
        origins: of("max_active_replication_origins"),
        wal_senders: known("max_wal_senders"),
        apply_workers: known("max_logical_replication_workers"),
        sync_workers: known("max_sync_workers_per_subscription"),
        worker_processes: known("max_worker_processes"),
        connections: known("max_connections"),
        connections_reserved: known("superuser_reserved_connections") + known("reserved_connections"),
        prepared_transactions: known("max_prepared_transactions"),
        locks: known("max_locks_per_transaction"),
        slots_of_others: known("slots of others"),
        senders_of_others: known("senders of others"),
        subscriptions_of_others: known("subscriptions of others"),
        workers_of_others: known("workers of others"),
    };
    Ok(limits.findings(shards))
}

impl Limits {
    /// Pure. With `pairs` other shards, of which `copying = min(pairs, 2)` send or bring their tables at the same moment:
    ///
    /// | setting | needed |
    /// |---|---|
    /// | `max_replication_slots` | slots of others + pairs + copying |
    /// | … the same, for origins up to 17; `max_active_replication_origins` from 18 on | subscriptions of others + pairs + copying |
    /// | `max_wal_senders` | walsenders of others + pairs + copying |
    /// | `max_logical_replication_workers` | subscriptions of others + pairs + copying |
    /// | `max_worker_processes` | the same + the launcher + workers of others |
    /// | `max_sync_workers_per_subscription` | 1 |
    /// | `max_connections` | those reserved + 6 |
    /// | `max_locks_per_transaction` | (512 + 8 · connections) / (connections + prepared transactions) |
    ///
    /// A pair has a stream each way, so this shard has one slot, walsender, origin and apply worker for each; and for each
    /// pair that copies, one table synchronisation at least. More of those are quicker; the server queues what does not fit.
    #[must_use]
    pub fn findings(&self, shards: usize) -> Vec<Finding> {
        let pairs = i64::try_from(shards).unwrap_or(i64::MAX).saturating_sub(1).max(0);
        let streams = pairs + pairs.min(COPIES_AT_ONCE);
        let subscriptions = self.subscriptions_of_others + streams;
        let slots = self.slots_of_others + streams;
        let holders = (self.connections + self.prepared_transactions).max(1);
        let locks = (LOCKS_OF_A_HANDOVER + LOCKS_OF_A_SESSION * self.connections + holders - 1) / holders;
        let slots_needed = if self.origins.is_none() { slots.max(subscriptions) } else { slots };
        let mut wanted = vec![
            ("max_connections", self.connections, self.connections_reserved + OPERATOR_SESSIONS),
            ("max_locks_per_transaction", self.locks, locks),
        ];
        if pairs > 0 {
            wanted.extend([
                ("max_replication_slots", self.slots, slots_needed),
                ("max_wal_senders", self.wal_senders, self.senders_of_others + streams),
                ("max_logical_replication_workers", self.apply_workers, subscriptions),
                ("max_worker_processes", self.worker_processes, subscriptions + 1 + self.workers_of_others),
                ("max_sync_workers_per_subscription", self.sync_workers, 1),
            ]);
            wanted.extend(self.origins.map(|found| ("max_active_replication_origins", found, subscriptions)));
        }
        let too_low = wanted.into_iter().filter(|(_, found, needed)| found < needed);
        too_low.map(|(setting, found, needed)| too_low_finding(setting, found, needed, shards)).collect()
    }
}

fn too_low_finding(setting: &str, found: i64, needed: i64, shards: usize) -> Finding {
    let message = format!(
        "{setting} is {found}, and a set of {shards} shards needs {needed} here, what others use included; a change of it needs a restart"
    );
    let mend = format!("ALTER SYSTEM SET {setting} = {needed}");
    Finding::new(Reason::ServerLimitTooLow, message, Some(mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As initdb leaves a server.
    const USUAL: Limits = Limits {
        slots: 10,
        origins: Some(10),
        wal_senders: 10,
        apply_workers: 4,
        sync_workers: 2,
        worker_processes: 8,
        connections: 100,
        connections_reserved: 3,
        prepared_transactions: 0,
        locks: 64,
        slots_of_others: 0,
        senders_of_others: 0,
        subscriptions_of_others: 0,
        workers_of_others: 0,
    };

    fn too_low(limits: Limits, shards: usize) -> Vec<String> {
        limits.findings(shards).into_iter().filter_map(|finding| finding.mend).collect()
    }

    #[test]
    fn three_shards_need_no_more_than_the_usual_settings() {
        for shards in 1..=3 {
            assert_eq!(too_low(USUAL, shards), [""; 0], "{shards} shards");
        }
        let needed = ["ALTER SYSTEM SET max_logical_replication_workers = 5"];
        assert_eq!(too_low(USUAL, 4), needed);
    }

    #[test]
    fn what_others_use_is_not_free() {
        let busy = Limits { slots_of_others: 8, senders_of_others: 9, subscriptions_of_others: 2, ..USUAL };
        let needed = ["max_wal_senders = 11"].map(|needed| format!("ALTER SYSTEM SET {needed}"));
        assert_eq!(too_low(busy, 2), needed);
        assert_eq!(too_low(busy, 1), [""; 0], "a shard alone has no streams");
        let shared = Limits { origins: None, slots: 3, ..busy };
        assert_eq!(
            too_low(Limits { slots_of_others: 0, ..shared }, 2)[0],
            "ALTER SYSTEM SET max_replication_slots = 4"
        );
    }

    #[test]
    fn a_handover_needs_room_in_the_lock_table() {
        let small = Limits { connections: 20, locks: 10, ..USUAL };
        assert_eq!(too_low(small, 1), ["ALTER SYSTEM SET max_locks_per_transaction = 34"]);
        assert_eq!(too_low(Limits { connections: 8, ..USUAL }, 1)[0], "ALTER SYSTEM SET max_connections = 9");
    }
}
