-- Idempotency rows of preloaded orders: one each, as it was written.
select rule, count(*) as violations, (array_agg(example))[1:5] as examples
from (
    select case
               when key <> pg_temp.preload_key(i) then 'one_row_per_key'
               when order_id <> pg_temp.preload_id(i) or user_id <> pg_temp.preload_user(i) then 'one_row_per_key'
               when body_hash <> pg_temp.preload_body_hash(i) or created_at <> pg_temp.preload_created(i) then 'content_equal'
           end as rule,
           format('key %s of user %s leads to %s', key, user_id, order_id) as example
    from (
        select *, pg_temp.preload_index(order_id) as i
        from idempotency_keys
        where pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
        offset 0
    ) as stored
    union all
    select 'one_row_per_key', format('preloaded order %s has no key', preload_found.order_id)
    from preload_found
    left join idempotency_keys as row
        on row.user_id = preload_found.user_id and row.order_id = preload_found.order_id
    where row.order_id is null
) as checked
where rule is not null
group by rule
