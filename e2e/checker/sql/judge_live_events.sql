select order_id, version, type
from order_events where not pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
order by user_id, order_id, version
