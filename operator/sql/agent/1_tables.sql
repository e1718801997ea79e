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

-- Where services send their transactions, if not to the server itself: LISTEN needs the server.
alter table longshore.shard add column if not exists pooler_host text;
alter table longshore.shard add column if not exists pooler_port integer;

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

-- Who may operate the set, if not the OrderShardSet that made it: one that has adopted it since, or 'nobody' once it was deleted.
alter table longshore.meta add column if not exists owner text not null default '';

-- The server on which this shard was last compared with its peers, one row. What runs elsewhere, as a promoted standby, a
-- restored backup or a copy does, may lack what was given away: it is quarantined until it has been compared.
create table if not exists longshore.armed (
  one        boolean primary key default true check (one),
  -- As longshore.this_server() says; '' is no server, '*' any.
  server     text not null,
  -- Of the postmaster: a copied data folder keeps the rest.
  started_at timestamptz not null
);

-- What this shard owns, as ranges.
create or replace view longshore.owned_range as
  select min(bucket) as first, max(bucket) as last
  from (select bucket, bucket - row_number() over (order by bucket) as island
        from longshore.ownership where state = 'owned') runs
  group by island;

grant select on longshore.meta, longshore.armed, longshore.shard, longshore.ownership, longshore.owned_range to longshore_service;
grant select on longshore.handover to longshore_replication;
