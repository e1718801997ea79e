//! The tables whose rows move, as one shard has them. Each check is a query that answers a row per fault: what is wrong, and
//! the statement that mends it.

use longshore_crds::order_shard_set::TableSpec;
use longshore_sharding::KeyType;
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection, Row, postgres::PgRow};

use super::{Finding, Reason};
use crate::shard::{StoreError, failed};

/// What the tables of a shard are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// The type of the first table's key, if it is one that rows can be spread by.
    pub key_type: Option<KeyType>,
    pub findings: Vec<Finding>,
}

/// Checks the tables, after the migrations.
///
/// # Errors
/// When the server cannot be asked.
pub async fn tables(connection: &mut PgConnection, tables: &[TableSpec]) -> Result<Tables, StoreError> {
    let findings = run(connection, tables, &CHECKS).await?;
    let failed = failed("read the key's type");
    let text = format!("{MOVED} select key_type from moved order by position limit 1");
    let row = sqlx::query(AssertSqlSafe(text)).bind(json!(tables)).fetch_optional(connection).await;
    let key_type: Option<String> =
        row.and_then(|row| row.map_or(Ok(None), |row| row.try_get(0))).map_err(failed)?;
    let key_type = match key_type.as_deref() {
        Some("bigint") => Some(KeyType::Bigint),
        Some("uuid") => Some(KeyType::Uuid),
        Some(_) | None => None,
    };
    Ok(Tables { key_type, findings })
}

/// Checks that rows of a bucket can be found, after the indexes were built.
///
/// # Errors
/// When the server cannot be asked.
pub async fn bucket_indexes(
    connection: &mut PgConnection,
    tables: &[TableSpec],
) -> Result<Vec<Finding>, StoreError> {
    run(connection, tables, &[(Reason::BucketIndexUnusable, BUCKET_INDEX)]).await
}

async fn run(
    connection: &mut PgConnection,
    tables: &[TableSpec],
    checks: &[(Reason, &str)],
) -> Result<Vec<Finding>, StoreError> {
    let failed = failed("check the tables");
    let mut findings = Vec::new();
    for (reason, check) in checks {
        let text = format!("{MOVED} {check} order by 1");
        let query = sqlx::query(AssertSqlSafe(text)).bind(json!(tables));
        let finding = |row: &PgRow| -> Result<Finding, sqlx::Error> {
            let message: String = row.try_get(0)?;
            Ok(Finding::new(*reason, message, row.try_get(1)?))
        };
        for row in query.fetch_all(&mut *connection).await.map_err(&failed)? {
            findings.push(finding(&row).map_err(&failed)?);
        }
    }
    Ok(findings)
}

/// The tables of the spec, in its order, found though we may not use their schema; `shown` and `key_name` are quoted for
/// statements. With what identifies their rows to a stream, and all foreign keys from and to them.
const MOVED: &str = "with moved as (
  select given.position, given.name, given.key, quote_ident(given.key) as key_name, c.oid, c.relkind, c.relpersistence, c.relispartition,
         c.relowner, c.relnamespace, c.relreplident, c.relrowsecurity, c.relforcerowsecurity, a.attnum as key_number,
         format_type(a.atttypid, null) as key_type,
         case when strpos(given.name, '.') > 0 then longshore.qualified(given.name) else quote_ident(given.name) end as shown
  from (select position, t ->> 'name' as name, t ->> 'key' as key
        from jsonb_array_elements($1) with ordinality listed (t, position)) given
  left join pg_namespace n on n.nspname = case when strpos(given.name, '.') > 0 then split_part(given.name, '.', 1) else 'public' end
  left join pg_class c on c.relnamespace = n.oid and c.relname = substring(given.name from '[^.]*$')
  left join pg_attribute a on a.attrelid = c.oid and a.attname = given.key and not a.attisdropped),
identity as (
  select m.oid, i.indexrelid, i.indkey, i.indimmediate
  from moved m join pg_index i on i.indrelid = m.oid and case m.relreplident when 'i' then i.indisreplident else i.indisprimary end),
foreign_key as (
  select c.oid, c.conname, c.conrelid, c.confrelid, c.confdeltype, child.shown as child, parent.shown as parent,
         child.position as child_position, parent.position as parent_position, child.key_name as child_key, parent.key_name as parent_key,
         exists (select from generate_subscripts(c.conkey, 1) n where c.conkey[n] = child.key_number and c.confkey[n] = parent.key_number) as with_keys,
         format('ALTER TABLE %s DROP CONSTRAINT %I', coalesce(child.shown, c.conrelid::regclass::text), c.conname) as drop
  from pg_constraint c left join moved child on child.oid = c.conrelid left join moved parent on parent.oid = c.confrelid
  where c.contype = 'f' and (child.oid is not null or parent.oid is not null))";

/// In the order in which they are best mended: a primary key cannot go before the foreign keys to it.
const CHECKS: [(Reason, &str); 20] = [
    (
        Reason::TableNotFound,
        "select format('table %s does not exist: create it in a migration', name), null from moved where oid is null",
    ),
    (
        Reason::TableKindUnsupported,
        "select format('%s is %s: only an ordinary table of its own can be published by bucket', name,
                  case when relkind = 'p' then 'a partitioned table' when relkind in ('v', 'm') then 'a view' when relkind = 'f' then 'a foreign table'
                       when relpersistence = 'u' then 'unlogged' when relpersistence = 't' then 'temporary' when relispartition then 'a partition'
                       when parent is not null then 'inherited from another table' when child is not null then 'inherited by another table'
                       else 'no table' end),
                case when relkind = 'r' and relpersistence = 'u' then format('ALTER TABLE %s SET LOGGED', shown)
                     when relkind = 'r' and relispartition then format('ALTER TABLE %s DETACH PARTITION %s', parent, shown)
                     when relkind = 'r' and parent is not null then format('ALTER TABLE %s NO INHERIT %s', shown, parent)
                     when relkind = 'r' and child is not null then format('ALTER TABLE %s NO INHERIT %s', child, shown) end
         from moved, lateral (select (select min(inhparent)::regclass::text from pg_inherits where inhrelid = moved.oid) as parent,
                                     (select min(inhrelid)::regclass::text from pg_inherits where inhparent = moved.oid) as child) family
         where relkind <> 'r' or relpersistence <> 'p' or relispartition or parent is not null or child is not null",
    ),
    (
        Reason::TableOwnedByOther,
        "select format('%s belongs to %s', name, pg_get_userbyid(relowner)), format('ALTER TABLE %s OWNER TO longshore_owner', shown)
         from moved where not pg_has_role('longshore_owner', relowner, 'usage')",
    ),
    // A schema of the owner's own is opened when its tables are registered.
    (
        Reason::PrivilegeMissing,
        "select distinct format('role %s lacks %s on schema %s', role, privilege, nspname), format('GRANT %s ON SCHEMA %I TO %I', privilege, nspname, role)
         from moved join pg_namespace n on n.oid = moved.relnamespace,
              (values ('longshore_owner', 'CREATE'), ('longshore_owner', 'USAGE'), ('longshore_replication', 'USAGE')) asked (role, privilege)
         where not has_schema_privilege(role, n.oid, privilege) and not pg_has_role('longshore_owner', nspowner, 'usage')",
    ),
    (
        Reason::KeyNotFound,
        "select format('table %s has no column %s', name, key), null from moved where oid is not null and key_number is null",
    ),
    (
        Reason::KeyTypeUnsupported,
        "select format('column %s of %s is of type %s: only bigint and uuid can be sharded by', key, name, key_type), null
         from moved where key_type not in ('bigint', 'uuid')",
    ),
    (
        Reason::KeyTypesDiffer,
        "select format('column %s of %s is %s, that of %s is %s: all must be of one type', m.key, m.name, m.key_type, f.name, f.key_type), null
         from moved m, (select name, key_type from moved where key_type in ('bigint', 'uuid') order by position limit 1) f
         where m.key_type in ('bigint', 'uuid') and m.key_type <> f.key_type",
    ),
    (
        Reason::ForeignKeyLeavesTables,
        "select format('foreign key %s of %s refers to %s, and only one of them moves', conname, conrelid::regclass, confrelid::regclass), drop
         from foreign_key where child is null or parent is null",
    ),
    (
        Reason::ForeignKeyLacksShardKey,
        "select format('foreign key %s of %s to %s may lead to another shard: drop it, and add it anew with %s on both sides', conname, child, parent, child_key), drop
         from foreign_key where child is not null and parent is not null and not with_keys",
    ),
    (
        Reason::ForeignKeyOrder,
        "select case when conrelid = confrelid then format('foreign key %s of %s to itself keeps rows from being deleted in batches', conname, child)
                     else format('%s refers to %s (%s), which comes after it in spec.tables: put parents before children', child, parent, conname) end,
                case when conrelid = confrelid then format('%s, ADD CONSTRAINT %I FOREIGN KEY (%s) REFERENCES %s (%s) ON DELETE CASCADE', drop, conname,
                  (select string_agg(quote_ident(attname), ', ' order by n) from unnest((select conkey from pg_constraint c where c.oid = foreign_key.oid))
                     with ordinality k (number, n) join pg_attribute on attrelid = conrelid and attnum = number), parent,
                  (select string_agg(quote_ident(attname), ', ' order by n) from unnest((select confkey from pg_constraint c where c.oid = foreign_key.oid))
                     with ordinality k (number, n) join pg_attribute on attrelid = confrelid and attnum = number)) end
         from foreign_key where child_position <= parent_position and confdeltype <> 'c'",
    ),
    (
        Reason::PrimaryKeyLacksShardKey,
        "select case when i.indexrelid is null then format('%s has no primary key: add one with %s', name, key)
                     else format('the primary key of %s lacks %s', name, key) end,
                case when i.indexrelid is not null then format('ALTER TABLE %s DROP CONSTRAINT %I, ADD PRIMARY KEY (%s, %s)', shown, c.conname, key_name,
                  (select string_agg(quote_ident(attname), ', ' order by n) from unnest(i.indkey) with ordinality k (number, n)
                   join pg_attribute on attrelid = moved.oid and attnum = number where n <= i.indnkeyatts)) end
         from moved left join pg_index i on i.indrelid = moved.oid and i.indisprimary left join pg_constraint c on c.conindid = i.indexrelid and c.contype = 'p'
         where key_type in ('bigint', 'uuid') and relkind = 'r' and
               case when i.indexrelid is null then not exists (select from identity d where d.oid = moved.oid and key_number = any (d.indkey))
                    else key_number <> all ((i.indkey::smallint[])[0:i.indnkeyatts - 1]) end",
    ),
    (
        Reason::UniqueKeyLacksShardKey,
        "select format('%s of %s lacks %s: over shards nobody keeps it unique', ic.relname, name, key),
                case when c.contype = 'x' then format('ALTER TABLE %s DROP CONSTRAINT %I', shown, c.conname)
                     when c.oid is not null then format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I UNIQUE%s (%s, %s)', shown, c.conname, c.conname, nulls, key_name, columns)
                     else format('DROP INDEX %I.%I; CREATE UNIQUE INDEX %I ON %s (%s, %s)%s%s', n.nspname, ic.relname, ic.relname, shown, key_name, columns, nulls,
                                 ' WHERE ' || pg_get_expr(i.indpred, i.indrelid)) end
         from moved join pg_index i on i.indrelid = moved.oid and (i.indisunique or i.indisexclusion) and not i.indisprimary
         join pg_class ic on ic.oid = i.indexrelid join pg_namespace n on n.oid = ic.relnamespace
         left join pg_constraint c on c.conindid = i.indexrelid and c.contype in ('u', 'x'),
         lateral (select case when i.indnullsnotdistinct then ' NULLS NOT DISTINCT' else '' end as nulls,
                         (select string_agg(pg_get_indexdef(i.indexrelid, n, false), ', ' order by n) from generate_series(1, i.indnkeyatts) n) as columns) written
         where key_number is not null and not exists (
           select from generate_series(1, i.indnkeyatts) n where i.indkey[n - 1] = key_number
             and (c.contype is distinct from 'x' or (select oprname from pg_operator where oid = c.conexclop[n]) = '='))",
    ),
    (
        Reason::ReplicaIdentityUnusable,
        "select format('the replica identity of %s %s: the server refuses updates and deletes of published rows', name,
                  case when relreplident = 'n' then 'is NOTHING' when relreplident = 'i' then format('is an index without %s', key) else 'is a deferrable primary key' end),
                case when relreplident in ('n', 'i') then format('ALTER TABLE %s REPLICA IDENTITY DEFAULT', shown)
                     else format('ALTER TABLE %s DROP CONSTRAINT %I, ADD PRIMARY KEY (%s)', shown, c.conname,
                       (select string_agg(quote_ident(attname), ', ' order by n) from unnest(c.conkey) with ordinality k (number, n)
                        join pg_attribute on attrelid = moved.oid and attnum = number)) end
         from moved left join pg_constraint c on c.conrelid = moved.oid and c.contype = 'p'
         where key_number is not null and relkind = 'r' and case relreplident when 'n' then true when 'd' then c.condeferrable
                 when 'i' then not exists (select from identity d where d.oid = moved.oid and key_number = any (d.indkey)) end",
    ),
    // A FULL identity takes all columns; before 18 those generated did no harm in it.
    (
        Reason::GeneratedColumnInIdentity,
        "select format('%s is generated and in the replica identity of %s, and generated columns are not replicated', a.attname, name),
                case when relreplident = 'f' and exists (select from pg_index i where i.indrelid = moved.oid and i.indisprimary)
                     then format('ALTER TABLE %s REPLICA IDENTITY DEFAULT', shown)
                     when a.attgenerated = 's' then format('ALTER TABLE %s ALTER COLUMN %I DROP EXPRESSION', shown, a.attname) end
         from moved join pg_attribute a on a.attrelid = moved.oid and a.attgenerated <> '' and not a.attisdropped
         where relreplident = 'f' and current_setting('server_version_num')::int >= 180000 or exists (select from identity d where d.oid = moved.oid and a.attnum = any (d.indkey))",
    ),
    (
        Reason::ColumnTypeUnsupported,
        "select format('column %s of %s is of type %s, %s', a.attname, name, format_type(a.atttypid, a.atttypmod),
                  case when bool_or(is_reference) then 'whose numbers mean something else on another server' else 'which has no binary form' end),
                format('ALTER TABLE %s ALTER COLUMN %I TYPE text USING %I::text', shown, a.attname, a.attname)
         from moved join pg_attribute a on a.attrelid = moved.oid and a.attnum > 0 and not a.attisdropped, lateral (
           with recursive part (oid) as (
             select a.atttypid union
             select inner_type from part join pg_type t on t.oid = part.oid, lateral (
               select t.typelem union all select t.typbasetype
               union all select f.atttypid from pg_attribute f where f.attrelid = t.typrelid and f.attnum > 0 and not f.attisdropped
               union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)) inside (inner_type)
             where inner_type <> 0)
           select t.oid::regtype::text like 'reg%' and t.typnamespace = 'pg_catalog'::regnamespace as is_reference, t.typsend = 0 or t.typreceive = 0 as is_text
           from part join pg_type t on t.oid = part.oid) parts
         where is_reference or is_text group by name, shown, a.attname, a.atttypid, a.atttypmod",
    ),
    // Those NOT ENFORCED (18) bind nobody, and foreign keys are not checked where a stream is applied.
    (
        Reason::ConstraintNotValidated,
        "select format('%s of %s was never validated: older rows may break it, and would not be taken at another shard', conname, name),
                format('ALTER TABLE %s VALIDATE CONSTRAINT %I', shown, conname)
         from moved join pg_constraint c on c.conrelid = moved.oid and c.contype in ('c', 'n') and not c.convalidated
         where coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true)",
    ),
    // The table's owner passes row security unless it is forced; the role that copies would see no rows at all.
    (
        Reason::RowSecurityUnsupported,
        "select format('row level security of %s %s', name, case when relforcerowsecurity then 'is forced: changes would not be applied' else 'hides rows from longshore_replication, who copies them' end),
                case when relforcerowsecurity then format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', shown) else 'ALTER ROLE longshore_replication BYPASSRLS' end
         from moved where relrowsecurity and (relforcerowsecurity or not (select rolbypassrls from pg_roles where rolname = 'longshore_replication'))",
    ),
    (
        Reason::RuleUnsupported,
        "select format('rule %s rewrites deletes from %s, the ones of clean-up too', rulename, name), format('DROP RULE %I ON %s', rulename, shown)
         from moved join pg_rewrite r on r.ev_class = moved.oid and r.ev_type = '4' and r.ev_enabled <> 'D' where relkind = 'r'",
    ),
    (
        Reason::TriggerFiresInApply,
        "select format('trigger %s of %s fires for rows that move, as if they were written anew', tgname, name), format('ALTER TABLE %s ENABLE TRIGGER %I', shown, tgname)
         from moved join pg_trigger on tgrelid = moved.oid and not tgisinternal and tgenabled in ('A', 'R') and tgname not like 'longshore\\_%'",
    ),
    (
        Reason::TriggerFiresInCleanUp,
        "select format('trigger %s of %s fires for rows that are deleted after they have moved, as if somebody had deleted them', tgname, name),
                format('DROP TRIGGER %I ON %s; %s', tgname, shown,
                  case when written like '% WHEN (%' then replace(written, ' WHEN (', ' WHEN (NOT longshore.is_clearing() AND ')
                       else replace(written, ' EXECUTE FUNCTION ', ' WHEN (NOT longshore.is_clearing()) EXECUTE FUNCTION ') end)
         from moved join pg_trigger g on tgrelid = moved.oid and not tgisinternal and tgenabled in ('O', 'A') and tgname not like 'longshore\\_%'
         join pg_proc p on p.oid = g.tgfoid, lateral (select pg_get_triggerdef(g.oid) as written) definition
         where tgtype & 8 > 0 and written not like '%longshore.is_clearing%' and p.prosrc not like '%longshore.is_clearing%'",
    ),
];

const BUCKET_INDEX: &str =
    "select format('no valid index of %s is on %s', name, expression), 'DROP INDEX ' || (
       select string_agg(c.oid::regclass::text, ', ') from pg_index i join pg_class c on c.oid = i.indexrelid
       where i.indrelid = moved.oid and c.relname like 'longshore\\_%\\_b')
     from moved, lateral (select longshore.bucket_expression('', key) as expression) wanted
     where not exists (
       select from pg_index i where i.indrelid = moved.oid and i.indisvalid and i.indnkeyatts = 1 and i.indpred is null
         and replace(translate(pg_get_expr(i.indexprs, i.indrelid), '()', ''), '::bigint', '') = translate(expression, '()', ''))";
