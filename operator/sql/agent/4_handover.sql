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
  perform longshore.assert_armed();
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

-- Sends a mark through the control publication, to where handovers arrive.
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
