insert into orders (user_id, order_id, status, total_cents, created_at, version)
select user_id, order_id, 'created', pg_temp.preload_total(i), pg_temp.preload_created(i), 1
from preload_plan where batch = $1
