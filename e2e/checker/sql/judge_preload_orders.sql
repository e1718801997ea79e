select rule, count(*) as violations, (array_agg(example))[1:5] as examples
from (
    select case
               when order_id <> pg_temp.preload_id(i) or user_id <> pg_temp.preload_user(i) then 'nothing_unasked'
               when status <> 'created' or version <> 1 or created_at <> pg_temp.preload_created(i) then 'content_equal'
           end as rule,
           format('preloaded order %s: user %s, %s, version %s, made %s', order_id, user_id, status, version, created_at) as example
    from (
        select *, pg_temp.preload_index(order_id) as i
        from orders
        where pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
        offset 0
    ) as stored
) as checked
where rule is not null
group by rule
