select order_id, sku, quantity::bigint as quantity, price_cents
from order_items where not pg_temp.is_preloaded(order_id) and pg_temp.mine(user_id)
order by user_id, order_id, line
