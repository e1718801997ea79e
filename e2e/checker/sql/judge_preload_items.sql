-- Changed, superfluous and missing lines of preloaded orders.
select 'content_equal' as rule, count(*) as violations, (array_agg(example))[1:5] as examples
from (
    select format('preloaded order %s, line %s: %s pieces of %s at %s', order_id, line, quantity, sku, price_cents) as example
    from (
        select *, pg_temp.preload_index(order_id) as i
        from order_items
        where pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
        offset 0
    ) as stored
    where line > pg_temp.preload_lines(i) or sku <> pg_temp.preload_sku(i, line)
       or quantity <> pg_temp.preload_quantity(i, line) or price_cents <> pg_temp.preload_price(i, line)
    union all
    select format('preloaded order %s has %s of %s lines', order_id, coalesce(lines, 0), pg_temp.preload_lines(i))
    from preload_found
    left join (
        select user_id, order_id, count(*) as lines from order_items
        where pg_temp.is_preloaded(order_id) group by user_id, order_id
    ) as stored using (user_id, order_id)
    where coalesce(lines, 0) < pg_temp.preload_lines(i)
) as wrong
having count(*) > 0
