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
  -- A transaction that entered the row's bucket pays for this call only. The server reads, simplifies and looks up all of a
  -- WHEN clause anew in every statement: the shorter, the cheaper.
  v_entered constant text := 'longshore.has_entered(%s.%I) is true';
  v_schema name;
begin
  execute format('create or replace trigger longshore_insert after insert on %s for each row when (not (%s)) execute function longshore.guard(%L)',
                 v_table, format(v_entered, 'new', p_key), p_key);
  execute format('create or replace trigger longshore_update after update on %s for each row when (not (%s) or %s <> %s) execute function longshore.guard(%L)',
                 v_table, format(v_entered, 'new', p_key), v_old, v_new, p_key);
  execute format('create or replace trigger longshore_delete after delete on %s for each row when (not (%s)) execute function longshore.guard(%L)',
                 v_table, format(v_entered, 'old', p_key), p_key);
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
  -- Whether this transaction entered the bucket of a row with that key. PL/pgSQL, for the server would take an SQL function
  -- apart in every statement; with qualified operators, for it runs under its callers' search_path.
  execute format($f$
    create or replace function longshore.has_entered(p_key %s) returns boolean language plpgsql stable as $d$
    begin
      return pg_catalog.current_setting('longshore.entered', true) operator(pg_catalog.=)
        ((pg_catalog.%s(p_key, 0) operator(pg_catalog.&) %s)::pg_catalog.text operator(pg_catalog.||) ':'
         operator(pg_catalog.||) pg_catalog.pg_current_xact_id()::pg_catalog.text);
    end $d$ $f$,
    p_key_type, case p_key_type when 'bigint' then 'hashint8extended' else 'uuid_hash_extended' end, v_buckets - 1);
  perform longshore.guard_table(name, key) from longshore.sharded_table order by position;

  -- Row count and sum of 64-bit hashes of each row's text, with everything pinned that text output depends on. Hashes of
  -- records are linear and miss swapped values; text also compares enums, whose numbers differ between servers. Without
  -- sequential scans here and below: a table just copied has no statistics yet, and the planner would read all of it; and without
  -- parallel workers, which take longer to start than a batch takes to read. PL/pgSQL with one plan for all buckets: to plan this
  -- takes longer than to read a small bucket, and receive() does so for each.
  execute format($f$
    create or replace function longshore.digest(p_buckets integer[]) returns table (bucket integer, rows bigint, digest numeric)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO, YMD' set intervalstyle = 'postgres'
    set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C' set enable_seqscan = off set jit = off set max_parallel_workers_per_gather = 0
    set plan_cache_mode = force_generic_plan as $d$
    begin
      return query select wanted, coalesce(sum(n), 0)::bigint, coalesce(sum(h), 0)
        from (select distinct b from unnest(p_buckets) b) given (wanted) left join (%s) counted (bucket, n, h) on counted.bucket = wanted
        group by wanted;
    end $d$ $f$,
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

-- Until the tables are registered nobody knows where rows lie; register() puts the real one in its place, which outlives an
-- upgrade of the agent.
do $do$
begin
  if to_regprocedure('longshore.with_rows(int4multirange)') is null then
    create function longshore.with_rows(p_ranges int4multirange) returns int4multirange
    language plpgsql stable set search_path = pg_catalog, pg_temp as $$
    begin
      if p_ranges <> '{}' then
        raise exception 'the tables of this shard are not registered' using errcode = 'LS006';
      end if;
      return p_ranges;
    end $$;
  end if;
end $do$;

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
