-- The preloaded orders that are here, by number. The inner query's OFFSET keeps the number a plain column.
create temporary table preload_found as
select i, user_id, order_id
from (
    select user_id, order_id, pg_temp.preload_index(order_id) as i
    from orders
    where pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
    offset 0
) as stored
where order_id = pg_temp.preload_id(i) and user_id = pg_temp.preload_user(i);
analyze preload_found;
