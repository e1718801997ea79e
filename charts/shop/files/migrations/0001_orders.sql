-- Orders, sharded by user_id. The bucket index, the guard triggers and the grants are the operator's.
-- Every primary key begins with user_id: logical replication filters rows by it, also on update and delete.

create table orders (
    user_id     bigint      not null,
    -- A UUID of version 7 that carries the user's bucket, so that a request with an order's id alone can be routed.
    order_id    uuid        not null,
    status      text        not null check (status in ('created', 'cancelled')),
    total_cents bigint      not null check (total_cents >= 0),
    created_at  timestamptz not null,
    version     int         not null check (version >= 1),
    primary key (user_id, order_id)
);

create index orders_order_id on orders (order_id);

create table order_items (
    user_id     bigint not null,
    order_id    uuid   not null,
    line        int    not null check (line >= 1),
    sku         text   not null,
    quantity    int    not null check (quantity >= 1),
    price_cents bigint not null check (price_cents >= 0),
    primary key (user_id, order_id, line),
    foreign key (user_id, order_id) references orders
);

-- One row for each change of an order: its version after the change. Rows are only ever added.
create table order_events (
    user_id    bigint      not null,
    order_id   uuid        not null,
    version    int         not null check (version >= 1),
    type       text        not null check (type in ('created', 'cancelled')),
    payload    jsonb       not null,
    created_at timestamptz not null,
    primary key (user_id, order_id, version)
);

-- Which order a key made, and of which request. Lives with its user's orders, so it moves with them.
create table idempotency_keys (
    user_id    bigint      not null,
    key        text        not null,
    body_hash  bytea       not null,
    order_id   uuid        not null,
    created_at timestamptz not null,
    primary key (user_id, key)
);
