-- Events of preloaded orders: one each, as it was written. Those of an order that is not here are not counted
-- again: the order is missed already.
select rule, count(*) as violations, (array_agg(example))[1:5] as examples
from (
    select case
               when version <> 1 or type <> 'created' then 'events_exactly_once'
               when payload <> pg_temp.preload_payload(i) or created_at <> pg_temp.preload_created(i) then 'content_equal'
           end as rule,
           format('preloaded order %s: event %s %s', order_id, version, type) as example
    from (
        select *, pg_temp.preload_index(order_id) as i
        from order_events
        where pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
        offset 0
    ) as stored
    union all
    select 'events_exactly_once', format('preloaded order %s has no event', order_id)
    from preload_found
    where not exists (
        select from order_events as event
        where (event.user_id, event.order_id) = (preload_found.user_id, preload_found.order_id)
    )
) as checked
where rule is not null
group by rule
