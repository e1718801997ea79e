-- The shard agent, part 2: the gate. Who may write and read a bucket's rows here.
--
-- A bucket's gate is an advisory transaction lock (19539, bucket): writers hold it shared, a handover exclusively.
-- Advisory locks queue fairly and leave no multixacts, unlike row locks. The state is always read in a later
-- statement than the lock was taken in, so that it is not older than the lock.

-- Which server this is, and which history of it: system identifier and timeline. The timeline is that of the WAL being written
-- (pg_control lags behind a promotion). The identifier is read from a file, and cannot change while the server runs: a session
-- keeps it.
create or replace function longshore.this_server() returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_system text := current_setting('longshore.system', true);
begin
  if coalesce(v_system, '') = '' then
    select system_identifier into v_system from pg_control_system();
    perform set_config('longshore.system', v_system, false);
  end if;
  return v_system || '/' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8);
end $$;

-- Fails while the server is not the one on which the shard was last compared with its peers.
create or replace function longshore.assert_armed() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_armed text;
begin
  select a.server into v_armed from longshore.armed a;
  -- Nobody operates the set: nothing moves, and nobody could re-arm the shard.
  if v_armed = '*' then
    return;
  end if;
  if v_armed is distinct from longshore.this_server() then
    raise exception 'this shard is quarantined: it runs on server %, and was last compared with its peers on %',
                    longshore.this_server(), coalesce(nullif(v_armed, ''), 'none') using errcode = 'LS005',
      hint = 'The operator compares and re-arms it; what keeps it from that is in the conditions of the OrderShardSet.';
  end if;
end $$;

-- Raises the error that says why a bucket cannot be used here; routers act on its SQLSTATE and DETAIL. That names the peer's
-- server and no pooler: whoever has not heard of the peer needs one address that works at once, also for LISTEN, and reads in
-- the list of shards, a moment later, where the pooler is.
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
  v_state text;
  v_epoch bigint;
  v_peer text;
  v_armed text;
begin
  perform pg_catalog.pg_advisory_xact_lock_shared(19539, p_bucket);
  if pg_catalog.current_setting('transaction_isolation') = 'read committed' then
    select o.state, o.epoch, o.peer, a.server into v_state, v_epoch, v_peer, v_armed
      from longshore.armed a left join longshore.ownership o on o.bucket = p_bucket;
  else
    select o.state, o.epoch, o.peer, a.server into v_state, v_epoch, v_peer, v_armed
      from longshore.armed a left join longshore.locked_state(p_bucket) o on true;
  end if;
  -- As longshore.this_server() says, without the cost of a call.
  if v_armed is distinct from pg_catalog.current_setting('longshore.system', true) || '/'
       || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8) then
    perform longshore.assert_armed();
  end if;
  if v_state is distinct from 'owned' then
    perform longshore.refuse(p_bucket, v_state, v_epoch, v_peer);
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
  perform longshore.assert_armed();
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
  perform longshore.assert_armed();
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
