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
    if (select term from longshore.meta) < p_term then
      raise exception 'term % was claimed here, and this shard does not know of it: it was restored', p_term using errcode = 'LS005';
    end if;
    raise exception 'term % of % is over', p_term, p_holder using errcode = 'LS004';
  end if;
end $$;

-- Gives the set to another OrderShardSet, which then claims it.
create or replace function longshore.adopt(p_from text, p_owner text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update longshore.meta set owner = p_owner where coalesce(nullif(owner, ''), set_uid) = p_from;
  if not found then
    raise exception 'the shard does not belong to OrderShardSet %', p_from using errcode = 'LS006';
  end if;
end $$;

-- The OrderShardSet was deleted: the shard works on, on whatever server, until another one takes it.
create or replace function longshore.release(p_term bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  update longshore.armed set server = '*';
  update longshore.meta set owner = 'nobody';
end $$;

-- Gives up buckets that a peer owns under a higher epoch: this shard missed that it gave them away. Whatever else it says may be
-- as old: it is quarantined.
create or replace function longshore.renounce(p_term bigint, p_ranges int4multirange, p_epoch bigint, p_peer text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  update longshore.armed set server = '';
  update longshore.ownership o set state = 'moved', epoch = p_epoch, peer = p_peer, operation = null, since = clock_timestamp()
    where o.bucket <@ p_ranges and o.state = 'owned' and o.epoch < p_epoch;
  perform pg_notify('longshore', 'shards ' || m.shards_version) from longshore.meta m;
end $$;

-- Lets a shard work that was compared with its peers.
create or replace function longshore.rearm(p_term bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  update longshore.armed set server = longshore.this_server(), started_at = pg_postmaster_start_time();
end $$;

-- Where the set's shards are. Routers hear of a change at once.
create or replace function longshore.set_shards(p_term bigint, p_version bigint, p_shards jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  delete from longshore.shard;
  insert into longshore.shard (name, host, port, dbname, connection_secret, pooler_host, pooler_port)
    select * from jsonb_to_recordset(p_shards) as s(name text, host text, port integer, dbname text, "connectionSecret" text,
                                                    "poolerHost" text, "poolerPort" integer);
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

-- Takes buckets that nobody owns: those of a new set, or given up here and revoked at the other end; or claims them anew, above
-- what any other shard may say of them. Routers hear of a few
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
    where o.bucket <@ p_ranges and o.state in ('absent', 'moved', 'owned') and o.epoch < p_epoch returning o.bucket)
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

-- Executes a statement that holds a password: an error as it is would bring the whole statement into the server's log.
create or replace function longshore.execute_secret(p_statement text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute p_statement;
exception when query_canceled or others then
  raise exception using errcode = sqlstate, message = sqlerrm;
end $$;

-- Subscribes to both publications of a peer. The slot exists already; every option is pinned. Commits are synchronous: a
-- table's worker drops its own slot at the peer once it has noted that the table is copied; a note that a crash forgets
-- would leave it asking for that slot for ever. The comment says of which state of the peer's Secret the connection string
-- was made: the string itself nobody may read.
create or replace function longshore.subscribe(p_term bigint, p_name text, p_connection text, p_copy_data boolean, p_secret text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  perform longshore.execute_secret(format('create subscription %I connection %L publication %I, %I with (connect = true, create_slot = false, slot_name = %L, '
                 'enabled = true, copy_data = %s, binary = true, streaming = off, two_phase = false, disable_on_error = false, '
                 'synchronous_commit = on, origin = none, run_as_owner = false, password_required = true)',
                 p_name, p_connection, p_name, p_name || '_c', p_name, case when p_copy_data then 'true' else 'false' end));
  execute format('comment on subscription %I is %L', p_name, p_secret);
end $$;

-- Lets a subscription, if it is still there, connect with what another state of the peer's Secret says: its worker does so at
-- once. A walsender that runs would go on with the old password, but not the next one.
create or replace function longshore.resubscribe(p_term bigint, p_name text, p_connection text, p_secret text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform longshore.assert_term(p_term);
  if exists (select from pg_subscription
             where subname = p_name and subdbid = (select oid from pg_database where datname = current_database())) then
    perform longshore.execute_secret(format('alter subscription %I connection %L', p_name, p_connection));
    execute format('comment on subscription %I is %L', p_name, p_secret);
  end if;
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
  -- Buckets that are alike, in one pass without a window: 65,536 rows take longest of all here.
  with alike as materialized (
    select state, epoch, peer, operation, range_agg(int4range(bucket, bucket + 1)) as ranges
    from longshore.ownership group by state, epoch, peer, operation)
  select jsonb_build_object(
    'shardsVersion', m.shards_version,
    'armed', jsonb_build_object('server', a.server, 'runsOn', longshore.this_server(), 'restarted', a.started_at <> pg_postmaster_start_time(),
                                'lsn', pg_current_wal_insert_lsn()),
    'ownership', (
      select coalesce(jsonb_agg(jsonb_build_array(lower(run), upper(run) - 1, state, epoch, peer, operation) order by run), '[]')
      from alike, unnest(ranges) run),
    'operations', (
      select coalesce(jsonb_agg(jsonb_build_object('plan', plan, 'course', course, 'generation', generation,
               'startedAt', started_at, 'changedAt', changed_at, 'result', result) order by id), '[]') from longshore.operation),
    -- Of what is neither owned nor expected here: whole ranges in which a row lies.
    'withRows', (
      select coalesce(jsonb_agg(jsonb_build_array(lower(r), upper(r) - 1)), '[]')
      from (select p_ranges - coalesce(range_agg(ranges), '{}') as ranges from alike where state in ('owned', 'incoming')) elsewhere,
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
    -- Slots of tables being copied: those here, and those that tables here still need at a peer though nothing copies them. The
    -- server counts no error when a worker asks for a slot that is gone.
    'tableSlots', (select coalesce(jsonb_agg(slot_name), '[]') from pg_replication_slots
                   where slot_name ~ '^pg_[0-9]+_sync_' and database = current_database()),
    'awaitedSlots', (
      select coalesce(jsonb_agg(jsonb_build_array(s.subname, format('pg_%s_sync_%s_%s', s.oid, r.srrelid, split_part(longshore.this_server(), '/', 1)))), '[]')
      from pg_subscription s join pg_subscription_rel r on r.srsubid = s.oid and r.srsubstate = 'f'
      where s.subname like 'ls\_%' and s.subdbid = (select oid from pg_database where datname = current_database())
        and not exists (select from pg_stat_subscription w where w.subid = s.oid and w.relid = r.srrelid)),
    -- Of which state of the peer's Secret its connection string was made.
    'subscribedWith', (
      select coalesce(jsonb_object_agg(s.subname, obj_description(s.oid, 'pg_subscription')), '{}')
      from pg_subscription s where s.subname like 'ls\_%' and s.subdbid = (select oid from pg_database where datname = current_database())),
    'probes', (
      select coalesce(jsonb_agg(jsonb_build_array(giver, peer, epoch, (extract(epoch from clock_timestamp() - asked_at) * 1000)::bigint)), '[]')
      from (select giver, peer, epoch, asked_at, row_number() over (partition by giver, peer order by epoch desc) as age
            from longshore.handover h where h.operation = p_operation and h.bucket = -1) sent where age <= 4),
    'routersBehind', (
      select count(*) from pg_stat_activity a where a.datname = current_database() and a.application_name like 'longshore-router v=%'
        and substring(a.application_name from 'v=(\d+)')::bigint < m.shards_version)
  ) from longshore.meta m, longshore.armed a
$$;
