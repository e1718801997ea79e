-- Keys of buckets that are not this shard's too: they may lead to another order, which no copy does.
select user_id, key, order_id, pg_temp.mine(user_id) as mine
from idempotency_keys where not pg_temp.is_preloaded(order_id)
