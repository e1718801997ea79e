-- Slots and subscriptions are the whole server's; each database answers for its own.
select 'no_leftovers' as rule, count(*) as violations, (array_agg(example))[1:5] as examples
from (
    select format('slot %s', slot_name) as example from pg_replication_slots
    where slot_name like 'ls\_%' and database = current_database()
    union all
    select format('publication %s', pubname) from pg_publication where pubname like 'ls\_%'
    union all
    select format('subscription %s', subname) from pg_subscription
    join pg_database on pg_database.oid = subdbid
    where subname like 'ls\_%' and datname = current_database()
) as leftover
having count(*) > 0
