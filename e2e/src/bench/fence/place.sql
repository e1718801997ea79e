with claimed as (
    insert into idempotency_keys (user_id, key, body_hash, order_id, created_at)
    values ($1, $2, $3, $4, now())
    on conflict (user_id, key) do nothing
    returning user_id, order_id, created_at
), placed as (
    insert into orders (user_id, order_id, status, total_cents, created_at, version)
    select user_id, order_id, 'created', $5, created_at, 1 from claimed
), listed as (
    insert into order_items (user_id, order_id, line, sku, quantity, price_cents)
    select c.user_id, c.order_id, i.line, i.sku, i.quantity, i.price_cents
    from claimed c,
         unnest($6::text[], $7::int[], $8::bigint[]) with ordinality as i (sku, quantity, price_cents, line)
), told as (
    insert into order_events (user_id, order_id, version, type, payload, created_at)
    select user_id, order_id, 1, 'created', $9, created_at from claimed
)
select to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at from claimed
