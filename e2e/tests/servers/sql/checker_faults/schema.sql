-- The order tables, and as much of a shard agent as the checker reads: an ownership table.
create schema longshore;
create table longshore.ownership (
    bucket integer primary key,
    state text not null,
    epoch bigint not null,
    peer text,
    operation bigint
);
create table orders (
    user_id bigint not null,
    order_id uuid not null,
    status text not null check (status in ('created', 'cancelled')),
    total_cents bigint not null,
    created_at timestamptz not null,
    version integer not null,
    primary key (user_id, order_id)
);
create index on orders (order_id);
create table order_items (
    user_id bigint not null,
    order_id uuid not null,
    line integer not null,
    sku text not null,
    quantity integer not null,
    price_cents bigint not null,
    primary key (user_id, order_id, line),
    foreign key (user_id, order_id) references orders
);
create table order_events (
    user_id bigint not null,
    order_id uuid not null,
    version integer not null,
    type text not null check (type in ('created', 'cancelled')),
    payload jsonb not null,
    created_at timestamptz not null,
    primary key (user_id, order_id, version)
);
create table idempotency_keys (
    user_id bigint not null,
    key text not null,
    body_hash bytea not null,
    order_id uuid not null,
    created_at timestamptz not null,
    primary key (user_id, key)
);
