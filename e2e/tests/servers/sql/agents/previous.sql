-- The shard agent as it was before shards were quarantined after a failover: what a cluster that is upgraded may still have.
-- The shard agent, part 1: what a shard knows. Everything in schema longshore belongs to longshore_owner.
-- The whole agent is applied in one transaction, again whenever its text changes; each statement may be repeated.

create schema if not exists longshore;
grant usage on schema longshore to longshore_operator, longshore_replication, longshore_service;

-- This shard's own identity, one row.
create table if not exists longshore.meta (
  one             boolean primary key default true check (one),
  shard           text    not null,
  -- The OrderShardSet that the shard belongs to; another one is refused.
  set_uid         text    not null,
  buckets         integer not null check (buckets between 1 and 65536),
  -- The type of the key column; known once the tables are.
  key_type        text    check (key_type in ('bigint', 'uuid')),
  -- Rises with every change of longshore.shard, alike on all shards.
  shards_version  bigint  not null default 0,
  -- Which operator process may act: the highest term, and who holds it.
  term            bigint  not null default 0,
  holder          text    not null default '',
  -- Checksums of the agent's text and of what the tables looked like when they were registered.
  agent           text    not null default '',
  registered      text    not null default ''
);

-- Where the shards of the set are. No credentials: those come from Secrets.
create table if not exists longshore.shard (
  name              text primary key,
  host              text not null,
  port              integer not null,
  dbname            text not null,
  -- The name of the Secret with the operator's credentials, so that a shard taken out of the spec can still be drained.
  connection_secret text not null
);

-- The truth about who owns what. Every bucket of the set has a row on every shard.
create table if not exists longshore.ownership (
  bucket    integer primary key,
  state     text   not null default 'absent' check (state in ('owned', 'moved', 'incoming', 'absent', 'refused')),
  -- Counts the bucket's owners; only rises.
  epoch     bigint not null default 0,
  -- owned or moved: whom the bucket goes to. incoming: whom it comes from.
  peer      text,
  operation bigint,
  since     timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- What travels in the stream: a bucket given up, with what its rows must add up to. bucket = -1 is a probe.
create table if not exists longshore.handover (
  operation bigint  not null,
  -- The shard that sends the row, and the one that it is for. Two givers may send one shard marks of the same number.
  giver     text    not null,
  peer      text    not null,
  bucket    integer not null,
  epoch     bigint  not null,
  rows      bigint  not null,
  digest    numeric not null,
  -- When the writers began to wait, and when the digest was known; by the giver's clock.
  asked_at  timestamptz not null,
  handed_at timestamptz not null,
  primary key (operation, giver, peer, bucket, epoch)
);

-- The journal: what the set's operations wanted and where they are heading.
create table if not exists longshore.operation (
  id         bigint primary key,
  plan       jsonb  not null,
  course     jsonb  not null,
  -- metadata.generation of the OrderShardSet that asked for it.
  generation bigint not null,
  started_at timestamptz not null default now(),
  changed_at timestamptz not null default now()
);

-- What the tables looked like when they were registered: another shape needs new functions.
alter table longshore.meta add column if not exists shape text not null default '';

-- What came of it here, once it is over.
alter table longshore.operation add column if not exists result jsonb;

-- The tables whose rows move, parents before children.
create table if not exists longshore.sharded_table (
  position integer primary key,
  name     text not null unique,
  key      text not null
);

-- The migrations of the set's schema that were applied here.
create table if not exists longshore.migration (
  name       text primary key,
  checksum   text not null,
  applied_at timestamptz not null default now()
);

-- What this shard owns, as ranges.
create or replace view longshore.owned_range as
  select min(bucket) as first, max(bucket) as last
  from (select bucket, bucket - row_number() over (order by bucket) as island
        from longshore.ownership where state = 'owned') runs
  group by island;

grant select on longshore.meta, longshore.shard, longshore.ownership, longshore.owned_range to longshore_service;
grant select on longshore.handover to longshore_replication;
-- The shard agent, part 2: the gate. Who may write and read a bucket's rows here.
--
-- A bucket's gate is an advisory transaction lock (19539, bucket): writers hold it shared, a handover exclusively.
-- Advisory locks queue fairly and leave no multixacts, unlike row locks. The state is always read in a later
-- statement than the lock was taken in, so that it is not older than the lock.

-- Raises the error that says why a bucket cannot be used here; routers act on its SQLSTATE and DETAIL.
create or replace function longshore.refuse(p_bucket integer, p_state text, p_epoch bigint, p_peer text) returns void
language plpgsql stable as $$
declare
  v_detail text;
begin
  select pg_catalog.jsonb_build_object('bucket', p_bucket, 'epoch', p_epoch, 'peer', p_peer,
                                       'host', s.host, 'port', s.port, 'dbname', s.dbname)::text
    into v_detail
    from (select 1) always left join longshore.shard s on s.name = p_peer;
  raise exception 'bucket % is % here', p_bucket, coalesce(p_state, 'unknown') using
    errcode = case p_state when 'moved' then 'LS001' when 'owned' then 'LS002' when 'incoming' then 'LS002'
                           when 'refused' then 'LS003' else 'LS007' end,
    detail = v_detail;
end $$;

-- For transactions above READ COMMITTED, whose snapshot may be older than the lock: the row lock makes an old one fail
-- with 40001. Services have no right to lock the row themselves.
create or replace function longshore.locked_state(p_bucket integer) returns longshore.ownership
language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  select o from longshore.ownership o where o.bucket = p_bucket for share
$$;

-- First in every write transaction. Holds the bucket's gate to the end of the transaction; fails unless it is owned here.
create or replace function longshore.enter(p_bucket integer) returns void
language plpgsql as $$
declare
  v_here longshore.ownership;
begin
  perform pg_catalog.pg_advisory_xact_lock_shared(19539, p_bucket);
  if pg_catalog.current_setting('transaction_isolation') = 'read committed' then
    select * into v_here from longshore.ownership o where o.bucket = p_bucket;
  else
    select * into v_here from longshore.locked_state(p_bucket);
  end if;
  if v_here.state is distinct from 'owned' then
    perform longshore.refuse(p_bucket, v_here.state, v_here.epoch, v_here.peer);
  end if;
  -- With the transaction's id, since a pooled session may keep the setting of an earlier one.
  perform pg_catalog.set_config('longshore.entered', p_bucket || ':' || pg_catalog.pg_current_xact_id(), true);
end $$;

-- Row triggers call this for rows of a bucket that their transaction did not enter: a writer that knows no router is
-- held to the same rule. AFTER, since a user's BEFORE trigger may still change the key.
create or replace function longshore.guard() returns trigger
language plpgsql as $$
declare
  v_old integer := case when tg_op <> 'INSERT' then longshore.bucket_of(to_jsonb(old) ->> tg_argv[0]) end;
  v_new integer := case when tg_op <> 'DELETE' then longshore.bucket_of(to_jsonb(new) ->> tg_argv[0]) end;
begin
  if tg_op = 'UPDATE' and v_old <> v_new then
    raise exception 'a row of % may not change its bucket (% to %)', tg_table_name, v_old, v_new
      using errcode = 'LS006', hint = 'Delete the row and insert it anew under the other key.';
  end if;
  if tg_op = 'DELETE' and longshore.is_clearing() then
    return null;
  end if;
  perform longshore.enter(coalesce(v_new, v_old));
  return null;
end $$;

-- Whether this transaction is longshore.clear, the only one that may delete rows whose bucket is elsewhere.
create or replace function longshore.is_clearing() returns boolean
language sql volatile as $$
  select pg_catalog.current_setting('longshore.clearing', true) = pg_catalog.pg_current_xact_id()::text
     and pg_catalog.pg_has_role(current_user, 'longshore_owner', 'member')
$$;

create or replace function longshore.refuse_truncate() returns trigger
language plpgsql as $$
begin
  raise exception 'TRUNCATE of % is not allowed: it would empty buckets whatever their owner', tg_table_name
    using errcode = 'LS006', hint = 'DELETE the rows.';
end $$;

-- The epoch under which a bucket is owned in the calling statement's own snapshot, else null. STABLE is what makes it so.
create or replace function longshore.seen(p_bucket integer) returns bigint
language sql stable as $$
  select o.epoch from longshore.ownership o where o.bucket = p_bucket and o.state = 'owned'
$$;

-- For reads, as longshore.owned(bucket, longshore.seen(bucket)) in a CTE of the reading statement: its snapshot must show
-- the bucket as owned (else the rows may be older than the arrival), and so must one taken now under the gate, in the same
-- epoch (else the rows may be newer elsewhere). While a handover holds the gate nobody knows: LS002.
create or replace function longshore.owned(p_bucket integer, p_seen bigint) returns boolean
language plpgsql volatile as $$
declare
  v_here longshore.ownership;
begin
  if pg_catalog.current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'guarded reads need READ COMMITTED: an older snapshot may show rows from before a handover'
      using errcode = 'LS006';
  end if;
  if not pg_catalog.pg_try_advisory_xact_lock_shared(19539, p_bucket) then
    raise exception 'bucket % is being handed over', p_bucket using errcode = 'LS002';
  end if;
  select * into v_here from longshore.ownership o where o.bucket = p_bucket;
  if v_here.state is distinct from 'owned' or v_here.epoch is distinct from p_seen then
    perform longshore.refuse(p_bucket, v_here.state, v_here.epoch, v_here.peer);
  end if;
  return true;
end $$;

-- For reads of many buckets: what the calling statement's own snapshot says of those asked for, as the sum of their epochs by
-- 256 neighbours. Whoever gains or loses a bucket raises its epoch, and none ever falls: equal sums mean equal owners.
create or replace function longshore.seen_among(p_asked int4multirange) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(jsonb_object_agg(neighbours, epochs), '{}') from (
    select o.bucket >> 8, sum(o.epoch) from longshore.ownership o where o.bucket <@ p_asked group by 1) seen (neighbours, epochs)
$$;

-- The set-wise form of longshore.owned: of the buckets asked for, those that the calling statement may answer for, called as
-- longshore.owned_among(asked, longshore.seen_among(asked)) in a CTE of that statement. It vouches for a bucket if
--   1. the statement's snapshot was taken (longshore.seen_among is evaluated in it),
--   2. then nobody held the bucket's gate exclusively,
--   3. then a new snapshot shows the bucket owned, in the epoch of the first one.
-- That suffices, for whoever gives a bucket up holds its gate from before its commit record is written until after every
-- snapshot shows the commit. If such a commit was under way in 1 (waiting for a synchronous standby, say, with the bucket
-- owned and written elsewhere already), then in 2 either it still held the gate, or it had ended and 3 shows a higher epoch.
-- If it took the gate after 2, the bucket was still owned here in 2, and what the statement reads was all there was in 1. So
-- no gate need be taken: 65,536 of them would not fit into the lock table, and to take them would hold up handovers.
-- Neighbours of a bucket that changed between 1 and 3 are not vouched for either, and asked for again.
create or replace function longshore.owned_among(p_asked int4multirange, p_seen jsonb) returns int4multirange
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_held int4multirange;
  v_doubtful int4multirange;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'guarded reads need READ COMMITTED: an older snapshot may show rows from before a handover'
      using errcode = 'LS006';
  end if;
  -- pg_locks shows all advisory locks of one moment. objsubid 2: two keys of four bytes.
  select range_agg(int4range(l.objid::integer, l.objid::integer, '[]')) into v_held
    from pg_locks l
    where l.locktype = 'advisory' and l.classid = 19539 and l.objsubid = 2 and l.granted and l.mode = 'ExclusiveLock'
      and l.database = (select d.oid from pg_database d where d.datname = current_database());
  select range_agg(case when now.epochs is distinct from (p_seen -> now.neighbours::text)::numeric
                        then int4multirange(int4range(now.first, now.last, '[]')) else now.elsewhere end) into v_doubtful
    from (select o.bucket >> 8, sum(o.epoch), min(o.bucket), max(o.bucket),
                 range_agg(int4range(o.bucket, o.bucket, '[]')) filter (where o.state <> 'owned')
          from longshore.ownership o where o.bucket <@ p_asked group by 1) now (neighbours, epochs, first, last, elsewhere);
  return p_asked - coalesce(v_held, '{}') - coalesce(v_doubtful, '{}');
end $$;

revoke execute on function longshore.locked_state(integer) from public;
grant execute on function longshore.locked_state(integer), longshore.enter(integer), longshore.seen(integer), longshore.owned(integer, bigint),
  longshore.seen_among(int4multirange), longshore.owned_among(int4multirange, jsonb)
  to longshore_service;
-- The shard agent, part 3: what depends on the set's tables, its bucket count and its key type. Generated once a set of
-- tables is known, so that the constants stand in the text and indexes match.

-- The bucket of a row, as an expression over column p_key of p_alias. The same text stands in indexes and row filters.
create or replace function longshore.bucket_expression(p_alias text, p_key text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format('(%s(%s%I, 0) & %s)',
                case m.key_type when 'bigint' then 'hashint8extended' else 'uuid_hash_extended' end,
                case when p_alias = '' then '' else p_alias || '.' end, p_key, m.buckets - 1)
  from longshore.meta m
$$;

-- Schema and name of a table as the set names it; public unless it says otherwise.
create or replace function longshore.qualified(p_name text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when strpos(p_name, '.') > 0
              then format('%I.%I', split_part(p_name, '.', 1), split_part(p_name, '.', 2))
              else format('public.%I', p_name) end
$$;

-- Columns of a table by name, as they enter a digest: the order in which they were added must not matter.
create or replace function longshore.digest_columns(p_table regclass) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select string_agg(format('t.%I', attname), ', ' order by attname collate "C")
  from pg_attribute where attrelid = p_table and attnum > 0 and not attisdropped
$$;

-- One text over all registered tables, from a format() pattern per table:
-- %1$s qualified name, %2$s bucket expression of alias t, %3$s digest columns, %4$s position.
create or replace function longshore.for_each_table(p_pattern text, p_separator text, p_reversed boolean) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select string_agg(
    format(p_pattern, longshore.qualified(name), longshore.bucket_expression('t', key),
           longshore.digest_columns(longshore.qualified(name)::regclass), position),
    p_separator order by case when p_reversed then -position else position end)
  from longshore.sharded_table
$$;

create or replace function longshore.guard_table(p_name text, p_key text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_table constant text := longshore.qualified(p_name);
  v_old constant text := longshore.bucket_expression('old', p_key);
  v_new constant text := longshore.bucket_expression('new', p_key);
  -- A transaction that entered the row's bucket pays for this comparison only.
  v_entered constant text := 'current_setting(''longshore.entered'', true) is not distinct from (%s || '':'' || pg_current_xact_id())';
  v_schema name;
begin
  execute format('create or replace trigger longshore_insert after insert on %s for each row when (not (%s)) execute function longshore.guard(%L)',
                 v_table, format(v_entered, v_new), p_key);
  execute format('create or replace trigger longshore_update after update on %s for each row when (not (%s) or %s <> %s) execute function longshore.guard(%L)',
                 v_table, format(v_entered, v_new), v_old, v_new, p_key);
  execute format('create or replace trigger longshore_delete after delete on %s for each row when (not (%s)) execute function longshore.guard(%L)',
                 v_table, format(v_entered, v_old), p_key);
  execute format('create or replace trigger longshore_truncate before truncate on %s for each statement execute function longshore.refuse_truncate()', v_table);
  execute format('grant select, insert, update, delete on %s to longshore_service', v_table);
  execute format('grant select on %s to longshore_replication', v_table);
  -- A schema of the set's own, made by a migration, is opened as roles.sql opens public.
  for v_schema in select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.oid = v_table::regclass and pg_has_role('longshore_owner', n.nspowner, 'usage') loop
    execute format('grant usage on schema %I to longshore_replication, longshore_service', v_schema);
  end loop;
end $$;

-- Makes the set's tables known: guards them and builds the functions that read all of them.
-- p_tables: [{"name": ..., "key": ...}], parents before children.
create or replace function longshore.register(p_tables jsonb, p_key_type text, p_checksum text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_buckets constant integer := (select buckets from longshore.meta);
begin
  update longshore.meta set key_type = p_key_type;
  delete from longshore.sharded_table;
  insert into longshore.sharded_table (position, name, key)
    select ordinality, t ->> 'name', t ->> 'key' from jsonb_array_elements(p_tables) with ordinality as given(t, ordinality);

  execute format('create or replace function longshore.bucket_of(p_key text) returns integer language sql immutable set search_path = pg_catalog, pg_temp as $f$ select (%s(p_key::%s, 0) & %s)::integer $f$',
                 case p_key_type when 'bigint' then 'hashint8extended' else 'uuid_hash_extended' end, p_key_type, v_buckets - 1);
  perform longshore.guard_table(name, key) from longshore.sharded_table order by position;

  -- Row count and sum of 64-bit hashes of each row's text, with everything pinned that text output depends on. Hashes of
  -- records are linear and miss swapped values; text also compares enums, whose numbers differ between servers. Without
  -- sequential scans here and below: a table just copied has no statistics yet, and the planner would read all of it; and without
  -- parallel workers, which take longer to start than a batch takes to read.
  execute format($f$
    create or replace function longshore.digest(p_buckets integer[]) returns table (bucket integer, rows bigint, digest numeric)
    language sql stable
    set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres'
    set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C' set enable_seqscan = off set jit = off set max_parallel_workers_per_gather = 0 as $d$
      select wanted, coalesce(sum(n), 0)::bigint, coalesce(sum(h), 0)
      from (select distinct b from unnest(p_buckets) b) given (wanted) left join (%s) counted (bucket, n, h) on counted.bucket = wanted
      group by wanted
    $d$ $f$,
    longshore.for_each_table(
      'select %2$s, count(*), sum(hashtextextended(row(%3$s)::text collate "C", %4$s)::numeric) from %1$s t where %2$s = any (p_buckets::bigint[]) group by 1',
      ' union all ', false));

  -- Of the given ranges those in which a row lies.
  execute format($f$
    create or replace function longshore.with_rows(p_ranges int4multirange) returns int4multirange
    language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
    set max_parallel_workers_per_gather = 0 as $d$
      select coalesce(range_agg(wanted), '{}') from unnest(p_ranges) wanted where %s
    $d$ $f$,
    longshore.for_each_table('exists (select from %1$s t where %2$s between lower(wanted) and upper(wanted) - 1)', ' or ', false));

  -- Up to p_limit rows of the ranges, of the first table that has any; children before parents.
  execute format($f$
    create or replace function longshore.delete_rows(p_ranges int4multirange, p_limit bigint) returns bigint
    language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $d$
    declare
      v_range int4range;
      v_deleted bigint;
    begin
      foreach v_range in array array(select unnest(p_ranges)) loop
        %s
      end loop;
      return 0;
    end $d$ $f$,
    longshore.for_each_table(
      'delete from %1$s where ctid = any (array(select t.ctid from %1$s t where %2$s between lower(v_range) and upper(v_range) - 1 limit p_limit));
        get diagnostics v_deleted = row_count;
        if v_deleted > 0 then return v_deleted; end if;', ' ', true));

  update longshore.meta set registered = p_checksum;
end $$;

-- Until the tables are registered nobody knows where rows lie; register() puts the real one in its place.
create or replace function longshore.with_rows(p_ranges int4multirange) returns int4multirange
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'the tables of this shard are not registered' using errcode = 'LS006';
end $$;

-- What the registered tables look like: a line for each column, unique index, constraint and trigger of theirs, sorted. Only what
-- decides which rows fit in them: no names of indexes and constraints, no order of columns, no defaults, no storage, no oids, nothing
-- of the agent's own; and the same text from PostgreSQL 16 on, where alike (NOT NULL is in pg_constraint only from 18 on).
create or replace function longshore.schema_shape() returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp set jit = off set max_parallel_workers_per_gather = 0
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set timezone = 'UTC' set datestyle = 'ISO, YMD'
set intervalstyle = 'postgres' set extra_float_digits = 1 set quote_all_identifiers = off as $$
begin
  -- PL/pgSQL keeps the plan, which takes longer to make than to run; without the settings it would read whole catalogues.
  return query with registered as (
    select t.name, to_regclass(longshore.qualified(t.name)) as oid from longshore.sharded_table t)
  select line collate "C" from (
    select format('%s: no such table', r.name) as line from registered r where r.oid is null
    union all
    select format('%s: column %I %s%s%s%s', r.name, a.attname, format_type(a.atttypid, a.atttypmod),
                  (select format(' COLLATE %I', c.collname) from pg_type t join pg_collation c on c.oid = a.attcollation
                   where t.oid = a.atttypid and t.typcollation <> a.attcollation),
                  case when a.attnotnull then ' NOT NULL' end,
                  (select format(' GENERATED ALWAYS AS (%s) %s', pg_get_expr(d.adbin, d.adrelid), a.attgenerated) from pg_attrdef d
                   where a.attgenerated <> '' and d.adrelid = a.attrelid and d.adnum = a.attnum))
      from registered r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    union all
    -- Types of the database's own, by what their values may be. Those of an extension are known by name.
    select format('%s: type %s %s', r.name, format_type(t.oid, null), case t.typtype
                    when 'e' then (select format('ENUM %s', array_agg(e.enumlabel order by e.enumsortorder)) from pg_enum e where e.enumtypid = t.oid)
                    when 'd' then concat_ws(' ', 'AS', format_type(t.typbasetype, t.typtypmod), case when t.typnotnull then 'NOT NULL' end,
                      (select string_agg(pg_get_constraintdef(c.oid), ' ' order by pg_get_constraintdef(c.oid) collate "C")
                       from pg_constraint c where c.contypid = t.oid and c.contype = 'c'))
                    when 'c' then (select format('(%s)', string_agg(format('%I %s', f.attname, format_type(f.atttypid, f.atttypmod)), ', ' order by f.attnum))
                      from pg_attribute f where f.attrelid = t.typrelid and f.attnum > 0 and not f.attisdropped) end)
      from (select distinct r.name, case when c.typelem <> 0 then c.typelem else c.oid end as type
            from registered r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
            join pg_type c on c.oid = a.atttypid where a.atttypid >= 16384) r
      join pg_type t on t.oid = r.type and t.typtype in ('e', 'd', 'c')
    union all
    select format('%s: %s (%s)%s%s%s', r.name, case when i.indisprimary then 'PRIMARY KEY' else 'UNIQUE' end,
                  (select string_agg(pg_get_indexdef(i.indexrelid, n, false), ', ' order by n) from generate_series(1, i.indnkeyatts) n),
                  case when i.indnullsnotdistinct then ' NULLS NOT DISTINCT' end,
                  ' WHERE ' || pg_get_expr(i.indpred, i.indrelid), case when not i.indimmediate then ' DEFERRABLE' end)
      from registered r join pg_index i on i.indrelid = r.oid and i.indisunique
    union all
    select format('%s: %s', r.name, pg_get_constraintdef(c.oid))
      from registered r join pg_constraint c on c.conrelid = r.oid and c.contype in ('c', 'x', 'f')
    union all
    -- Foreign keys to the table, found by the triggers that keep them: those, unlike the keys, have an index.
    select distinct format('%s: referenced by %s %s', r.name, c.conrelid::regclass, pg_get_constraintdef(c.oid))
      from registered r join pg_trigger g on g.tgrelid = r.oid and g.tgisinternal
      join pg_constraint c on c.oid = g.tgconstraint and c.contype = 'f' and c.confrelid = r.oid
    union all
    select format('%s: %s%s', r.name, pg_get_triggerdef(g.oid), case g.tgenabled when 'O' then '' else format(' ENABLED %s', g.tgenabled) end)
      from registered r join pg_trigger g on g.tgrelid = r.oid and not g.tgisinternal and g.tgname not like 'longshore\_%'
    union all
    select format('%s: REPLICA IDENTITY %s', r.name, c.relreplident) from registered r join pg_class c on c.oid = r.oid
  ) lines order by 1;
end $$;

-- The same in one word, to see whether two shards' tables are alike; '' while none is registered.
create or replace function longshore.schema_fingerprint() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(md5(string_agg(line, E'\n')), '') from longshore.schema_shape() line
$$;
-- The shard agent, part 4: giving up and taking over. The commit of hand_over is the one commit point of a move.

-- Fails unless the caller's term is the one that counts.
create or replace function longshore.assert_term(p_term bigint) returns void
language plpgsql stable as $$
begin
  if p_term is distinct from (select term from longshore.meta) then
    raise exception 'term % is over', p_term using errcode = 'LS004';
  end if;
end $$;

-- Gives the buckets to p_peer, all or none. The caller's statement_timeout bounds the wait for writers.
-- READ COMMITTED only: the digest, a later statement than the gates, must see every row committed before they were given.
create or replace function longshore.hand_over(p_term bigint, p_operation bigint, p_peer text, p_buckets integer[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_asked_at constant timestamptz := clock_timestamp();
  v_bucket integer;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'hand_over needs READ COMMITTED' using errcode = 'LS006';
  end if;
  perform longshore.assert_term(p_term);
  -- In order, so that two of them cannot deadlock.
  for v_bucket in select b from unnest(p_buckets) b order by b loop
    perform pg_advisory_xact_lock(19539, v_bucket);
  end loop;
  -- Transactions above READ COMMITTED hold the row.
  perform from longshore.ownership o where o.bucket = any (p_buckets) order by o.bucket for update;
  if exists (select from unnest(p_buckets) b left join longshore.ownership o on o.bucket = b
             where o.state is distinct from 'owned' or o.operation is distinct from p_operation or o.peer is distinct from p_peer) then
    raise exception 'not every bucket of the batch is owned here and meant for %', p_peer using errcode = 'LS006';
  end if;

  insert into longshore.handover (operation, giver, peer, bucket, epoch, rows, digest, asked_at, handed_at)
    select p_operation, m.shard, p_peer, d.bucket, o.epoch + 1, d.rows, d.digest, v_asked_at, clock_timestamp()
    from longshore.meta m, longshore.digest(p_buckets) d join longshore.ownership o on o.bucket = d.bucket;
  update longshore.ownership o set state = 'moved', epoch = o.epoch + 1, since = clock_timestamp()
    where o.bucket = any (p_buckets);
  perform pg_notify('longshore', format('moved %s %s %s', o.bucket, o.epoch, p_peer))
    from longshore.ownership o where o.bucket = any (p_buckets);
end $$;

-- Runs inside the transaction that applies a handover row. Acts only on the row it expects: an old or repeated one changes
-- nothing. An error must not stop the stream, in which every other bucket of the pair travels: it refuses the bucket.
create or replace function longshore.receive() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_same boolean := false;
begin
  perform from longshore.ownership o
    where o.bucket = new.bucket and o.state in ('incoming', 'moved') and o.epoch = new.epoch - 1
      and o.operation = new.operation and o.peer = new.giver
    for update;
  if not found then
    return null;
  end if;
  begin
    select d.rows = new.rows and d.digest = new.digest into strict v_same from longshore.digest(array[new.bucket]) d;
  exception when others then
    raise warning 'digest of bucket % failed: %', new.bucket, sqlerrm;
  end;
  update longshore.ownership o
    set state = case when v_same then 'owned' else 'refused' end, epoch = new.epoch, since = clock_timestamp()
    where o.bucket = new.bucket;
  perform pg_notify('longshore', format('%s %s %s', case when v_same then 'owned' else 'refused' end, new.bucket, new.epoch));
  return null;
end $$;

-- It runs as the owner: whoever could put it on a table of his own could make any bucket owned.
revoke execute on function longshore.receive() from public;

create or replace trigger longshore_receive after insert on longshore.handover
  for each row when (new.bucket >= 0) execute function longshore.receive();
-- Only for rows that a stream brings, never for those written here.
alter table longshore.handover enable replica trigger longshore_receive;

-- Sends a mark through the control publication and the receive path.
create or replace function longshore.probe(p_term bigint, p_operation bigint, p_peer text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  insert into longshore.handover (operation, giver, peer, bucket, epoch, rows, digest, asked_at, handed_at)
    select p_operation, m.shard, p_peer, -1, coalesce(max(h.epoch), 0) + 1, 0, 0, clock_timestamp(), clock_timestamp()
    from longshore.meta m
    left join longshore.handover h
      on h.operation = p_operation and h.giver = m.shard and h.peer = p_peer and h.bucket = -1
    group by m.shard;
end $$;
-- The shard agent, part 5: what the operator does besides handing over. Every function is one effect, may be repeated,
-- and fails with LS004 for a term that is over.

-- Lets a new leader in and the old one out, with its sessions: none of its transactions can commit later.
create or replace function longshore.claim(p_term bigint, p_holder text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_deadline constant timestamptz := clock_timestamp() + interval '5 s';
begin
  if p_term <= (select term from longshore.meta) then
    raise exception 'term % is over', p_term using errcode = 'LS004';
  end if;
  -- A session of the old holder may attach between the look and the lock: look again until the lock is ours.
  loop
    perform pg_terminate_backend(l.pid) from pg_locks l
      where l.locktype = 'advisory' and l.classid = 19540 and l.objid = 0 and l.pid <> pg_backend_pid()
        and l.database = (select oid from pg_database where datname = current_database());
    exit when pg_try_advisory_xact_lock(19540, 0);
    if clock_timestamp() > v_deadline then
      raise exception 'sessions of term % do not end', (select term from longshore.meta) using errcode = '55P03';
    end if;
    perform pg_sleep(0.02);
  end loop;
  update longshore.meta set term = p_term, holder = p_holder where term < p_term;
  if not found then
    raise exception 'term % is over', p_term using errcode = 'LS004';
  end if;
end $$;

-- First on each of the leader's connections: holds the session to its term until the session ends.
create or replace function longshore.attach(p_term bigint, p_holder text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform pg_advisory_lock_shared(19540, 0);
  if not exists (select from longshore.meta where term = p_term and holder = p_holder) then
    perform pg_advisory_unlock_shared(19540, 0);
    raise exception 'term % of % is over', p_term, p_holder using errcode = 'LS004';
  end if;
end $$;

-- Where the set's shards are. Routers hear of a change at once.
create or replace function longshore.set_shards(p_term bigint, p_version bigint, p_shards jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  delete from longshore.shard;
  insert into longshore.shard (name, host, port, dbname, connection_secret)
    select * from jsonb_to_recordset(p_shards) as s(name text, host text, port integer, dbname text, "connectionSecret" text);
  update longshore.meta set shards_version = p_version;
  perform pg_notify('longshore', 'shards ' || p_version);
end $$;

-- What an operation brought to this shard: of the buckets that it was given and still owns. The pause of a bucket runs from
-- the giver's clock to this one's.
create or replace function longshore.result(p_operation bigint) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('buckets', count(*), 'rows', sum(rows), 'firstAskedAt', min(asked_at), 'lastArrivedAt', max(since),
                            'pauseMillis', jsonb_build_object('p50', percentile_cont(0.5) within group (order by pause),
                                                              'p99', percentile_cont(0.99) within group (order by pause), 'max', max(pause)))
  from (select h.rows, h.asked_at, o.since, greatest(extract(epoch from o.since - h.asked_at) * 1000, 0)::float8 as pause
        from longshore.meta m join longshore.handover h on h.peer = m.shard and h.operation = p_operation and h.bucket >= 0
        join longshore.ownership o on o.bucket = h.bucket and o.epoch = h.epoch and o.state = 'owned') arrived
  having count(*) > 0
$$;

-- What lies in these buckets, by the server's statistics, as if rows were spread evenly over what is owned here.
create or replace function longshore.estimate(p_ranges int4multirange) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object('rows', coalesce(sum(greatest(c.reltuples, 0) * share), 0)::bigint,
                            'bytes', coalesce(sum(pg_total_relation_size(c.oid) * share), 0)::bigint)
  from (select (count(*) filter (where bucket <@ p_ranges))::float8 / greatest(count(*), 1) as share
        from longshore.ownership where state = 'owned') moving,
       longshore.sharded_table t join pg_class c on c.oid = longshore.qualified(t.name)::regclass
$$;

-- Gathers statistics of the set's tables.
create or replace function longshore.analyze_tables(p_term bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  execute 'analyze ' || longshore.for_each_table('%1$s', ', ', false);
end $$;

-- Writes the plan and its course; keeps ten operations, and the handovers of the newest.
create or replace function longshore.journal(p_term bigint, p_id bigint, p_plan jsonb, p_course jsonb, p_generation bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  insert into longshore.operation as o (id, plan, course, generation) values (p_id, p_plan, p_course, p_generation)
    on conflict (id) do update set course = excluded.course, changed_at = now(),
      result = case when excluded.course ->> 'course' in ('completed', 'rolledBack') then longshore.result(p_id) end
    where o.course is distinct from excluded.course;
  delete from longshore.operation where id <= p_id - 10;
  delete from longshore.handover where operation < p_id;
end $$;

-- Takes buckets that nobody owns: those of a new set, or given up here and revoked at the other end. Routers hear of a few
-- buckets one by one; of many, that the map is to be read again.
create or replace function longshore.own(p_term bigint, p_ranges int4multirange, p_epoch bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_taken integer[];
begin
  perform longshore.assert_term(p_term);
  with taken as (
    -- Meant for nobody: what was announced before must not be handed over without being announced again.
    update longshore.ownership o set state = 'owned', epoch = p_epoch, peer = null, operation = null, since = clock_timestamp()
    where o.bucket <@ p_ranges and o.state in ('absent', 'moved') and o.epoch < p_epoch returning o.bucket)
  select coalesce(array_agg(t.bucket), '{}') into v_taken from taken t;
  if cardinality(v_taken) <= 256 then
    perform pg_notify('longshore', format('owned %s %s', b, p_epoch)) from unnest(v_taken) b;
  else
    perform pg_notify('longshore', 'shards ' || m.shards_version) from longshore.meta m;
  end if;
end $$;

-- Forgets buckets that are expected or refused here: no handover that is still on its way can act any more.
create or replace function longshore.revoke(p_term bigint, p_ranges int4multirange, p_epoch bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  update longshore.ownership o set state = 'absent', epoch = p_epoch, since = clock_timestamp()
    where o.bucket <@ p_ranges and o.state in ('incoming', 'refused') and o.epoch < p_epoch;
end $$;

-- Marks owned buckets as meant for p_peer, in an epoch above any that was ever sent.
create or replace function longshore.raise_epoch(p_term bigint, p_operation bigint, p_ranges int4multirange, p_epoch bigint, p_peer text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  update longshore.ownership o set epoch = p_epoch, peer = p_peer, operation = p_operation, since = clock_timestamp()
    where o.bucket <@ p_ranges and o.state = 'owned' and o.epoch < p_epoch;
end $$;

-- Expects buckets from p_peer. Never touches one that is owned here.
create or replace function longshore.expect(p_term bigint, p_operation bigint, p_ranges int4multirange, p_epoch bigint, p_peer text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  update longshore.ownership o set state = 'incoming', epoch = p_epoch, peer = p_peer, operation = p_operation, since = clock_timestamp()
    where o.bucket <@ p_ranges and o.state <> 'owned' and o.epoch <= p_epoch;
end $$;

-- Publishes the rows of the ranges and, in a second publication, the handovers of this operation to p_peer. Deletes and
-- updates travel too; TRUNCATE would ignore the row filter.
create or replace function longshore.publish(p_term bigint, p_name text, p_operation bigint, p_peer text, p_ranges int4multirange) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_tables text;
begin
  perform longshore.assert_term(p_term);
  select string_agg(format('%s where (%s)', longshore.qualified(t.name), f.filter), ', table ' order by t.position) into v_tables
    from longshore.sharded_table t,
    lateral (select string_agg(format('(%s between %s and %s)', longshore.bucket_expression('', t.key), lower(r), upper(r) - 1), ' or ') as filter
             from unnest(p_ranges) r) f;
  execute format('drop publication if exists %I, %I', p_name, p_name || '_c');
  execute format('create publication %I for table %s with (publish = ''insert, update, delete'')', p_name, v_tables);
  execute format('create publication %I for table longshore.handover where (operation = %s and peer = %L) with (publish = ''insert'')',
                 p_name || '_c', p_operation, p_peer);
end $$;

-- Subscribes to both publications of a peer. The slot exists already; every option is pinned. Commits are synchronous: a
-- table's worker drops its own slot at the peer once it has noted that the table is copied; a note that a crash forgets
-- would leave it asking for that slot for ever.
create or replace function longshore.subscribe(p_term bigint, p_name text, p_connection text, p_copy_data boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  execute format('create subscription %I connection %L publication %I, %I with (connect = true, create_slot = false, slot_name = %L, '
                 'enabled = true, copy_data = %s, binary = true, streaming = off, two_phase = false, disable_on_error = false, '
                 'synchronous_commit = on, origin = none, run_as_owner = false, password_required = true)',
                 p_name, p_connection, p_name, p_name || '_c', p_name, case when p_copy_data then 'true' else 'false' end);
end $$;

-- Deletes up to p_limit rows of buckets that are not owned here; returns how many. A delete is replicated like any change:
-- while a stream leaves this shard, it could kill live rows at the other end.
create or replace function longshore.clear(p_term bigint, p_ranges int4multirange, p_limit bigint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  if exists (select from pg_replication_slots where slot_name like 'ls\_%' and database = current_database()) then
    raise exception 'rows are not deleted while a replication slot could carry the deletes' using errcode = 'LS006';
  end if;
  perform from longshore.ownership o where o.bucket <@ p_ranges order by o.bucket for update;
  if exists (select from longshore.ownership o where o.bucket <@ p_ranges and o.state in ('owned', 'incoming')) then
    raise exception 'rows of a bucket that is owned or expected here are not leftovers' using errcode = 'LS006';
  end if;
  perform set_config('longshore.clearing', pg_current_xact_id()::text, true);
  return longshore.delete_rows(p_ranges, p_limit);
end $$;

-- All that the operator wants to know of this shard, in one statement and one snapshot.
-- p_operation and p_ranges: the open operation and its buckets on this shard, or null.
create or replace function longshore.observe(p_operation bigint, p_ranges int4multirange) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp set jit = off set max_parallel_workers_per_gather = 0 as $$
  select jsonb_build_object(
    'shardsVersion', m.shards_version,
    'ownership', (
      select coalesce(jsonb_agg(jsonb_build_array(first, last, state, epoch, peer, operation) order by first), '[]') from (
        select min(bucket) as first, max(bucket) as last, state, epoch, peer, operation from (
          select bucket, state, epoch, peer, operation,
                 bucket - row_number() over (partition by state, epoch, peer, operation order by bucket) as island
          from longshore.ownership) rows
        group by state, epoch, peer, operation, island) runs),
    'operations', (
      select coalesce(jsonb_agg(jsonb_build_object('plan', plan, 'course', course, 'generation', generation,
               'startedAt', started_at, 'changedAt', changed_at, 'result', result) order by id), '[]') from longshore.operation),
    -- Of what is neither owned nor expected here: whole ranges in which a row lies.
    'withRows', (
      select coalesce(jsonb_agg(jsonb_build_array(lower(r), upper(r) - 1)), '[]')
      from (select p_ranges - coalesce(range_agg(int4range(bucket, bucket + 1)), '{}') as ranges
            from longshore.ownership where state in ('owned', 'incoming')) elsewhere,
           unnest(longshore.with_rows(elsewhere.ranges)) r),
    'unanalyzed', exists (select from longshore.sharded_table t join pg_class c on c.oid = longshore.qualified(t.name)::regclass where c.reltuples < 0),
    'schema', longshore.schema_fingerprint(),
    'registeredSchema', m.shape,
    'migration', (select max(name) from longshore.migration),
    'publications', (select coalesce(jsonb_agg(pubname), '[]') from pg_publication where pubname like 'ls\_%'),
    -- Whether the server gave it up, and how much WAL it holds back.
    'slots', (select coalesce(jsonb_object_agg(slot_name, jsonb_build_array(coalesce(wal_status = 'lost', false),
                       coalesce(greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0), 0)::bigint)), '{}')
              from pg_replication_slots where slot_name like 'ls\_%' and database = current_database()),
    'subscriptions', (
      select coalesce(jsonb_object_agg(s.subname, exists (select from pg_subscription_rel r where r.srsubid = s.oid)
               and not exists (select from pg_subscription_rel r where r.srsubid = s.oid and r.srsubstate <> 'r')), '{}')
      from pg_subscription s where s.subname like 'ls\_%' and s.subdbid = (select oid from pg_database where datname = current_database())),
    'probes', (
      select coalesce(jsonb_agg(jsonb_build_array(giver, peer, epoch, (extract(epoch from clock_timestamp() - asked_at) * 1000)::bigint)), '[]')
      from (select giver, peer, epoch, asked_at, row_number() over (partition by giver, peer order by epoch desc) as age
            from longshore.handover h where h.operation = p_operation and h.bucket = -1) sent where age <= 4),
    'routersBehind', (
      select count(*) from pg_stat_activity a where a.datname = current_database() and a.application_name like 'longshore-router v=%'
        and substring(a.application_name from 'v=(\d+)')::bigint < m.shards_version)
  ) from longshore.meta m
$$;
