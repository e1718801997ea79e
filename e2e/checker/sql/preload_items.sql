insert into order_items (user_id, order_id, line, sku, quantity, price_cents)
select user_id, order_id, line, pg_temp.preload_sku(i, line), pg_temp.preload_quantity(i, line),
       pg_temp.preload_price(i, line)
from preload_plan, generate_series(1, pg_temp.preload_lines(i)) as line where batch = $1
