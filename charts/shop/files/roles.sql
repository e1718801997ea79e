-- The roles of one shard. Run once by an administrator in the shard's database; running it again changes nothing.
-- None is a superuser, and each may do only what it uses. Give each LOGIN role a password afterwards.
--   longshore_owner        owns the agent and the tables; nobody logs in as it
--   longshore_operator     what the operator logs in as: acts as the owner, makes publications, slots and subscriptions
--   longshore_replication  what a subscription of a peer shard logs in as: reads the stream and the tables it copies
--   longshore_service      what services log in as: reads and writes rows under the guard
do $$
declare
  wanted constant text[] := array['longshore_owner', 'longshore_operator', 'longshore_replication', 'longshore_service'];
  name text;
begin
  foreach name in array wanted loop
    if not exists (select from pg_catalog.pg_roles where rolname = name) then
      execute format('create role %I nologin', name);
    end if;
  end loop;
end $$;

alter role longshore_operator login replication;
alter role longshore_replication login replication;
alter role longshore_service login;

grant longshore_owner to longshore_operator;
-- pg_monitor: pg_stat_replication hides the lag of other roles' walsenders without it.
grant pg_create_subscription, pg_monitor to longshore_operator;

do $$
begin
  execute format('grant connect, create on database %I to longshore_owner, longshore_operator', current_database());
  execute format('grant connect on database %I to longshore_replication, longshore_service', current_database());
end $$;
grant usage, create on schema public to longshore_owner;
grant usage on schema public to longshore_replication, longshore_service;
