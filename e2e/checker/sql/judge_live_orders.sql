select user_id, order_id, status, version, total_cents
from orders where not pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
