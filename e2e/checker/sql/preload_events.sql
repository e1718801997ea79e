insert into order_events (user_id, order_id, version, type, payload, created_at)
select user_id, order_id, 1, 'created', pg_temp.preload_payload(i), pg_temp.preload_created(i)
from preload_plan where batch = $1
