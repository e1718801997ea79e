select 'no_leftovers' as rule, count(*) as violations,
       array[format('%s rows of %s in buckets not owned here, as of user %s', count(*), name, min(user_id))] as examples
from (
    select 'orders' as name, user_id from orders where not pg_temp.mine(user_id)
    union all
    select 'order_items', user_id from order_items where not pg_temp.mine(user_id)
    union all
    select 'order_events', user_id from order_events where not pg_temp.mine(user_id)
    union all
    select 'idempotency_keys', user_id from idempotency_keys where not pg_temp.mine(user_id)
) as leftover
group by name
