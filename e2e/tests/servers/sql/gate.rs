//! The gate: who may write and read a bucket's rows on a shard, whether it knows a router or not.

use anyhow::Result;
use e2e::{
    awaiting::await_condition,
    postgres::{Role, Version},
};
use longshore_sharding::operation::{Epoch, OperationId};
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::shards::{
    self, DEADLINE, Pair, attempt, buckets, detail, insert_order, ranges, run, sqlstate, store_sqlstate,
    user_in, users_in, value,
};

on_each_version!(
    writers_that_know_no_router_are_held_to_the_rules,
    an_error_says_where_the_bucket_went,
    truncate_and_a_change_of_bucket_are_refused,
    entering_one_bucket_opens_no_other,
    a_users_own_trigger_gets_no_row_past_the_guard,
    a_savepoint_rolled_back_forgets_the_entry,
    what_a_pooled_session_remembers_is_not_believed,
    a_writer_that_waited_meets_what_came_of_it,
    an_older_snapshot_cannot_enter,
    reads_are_answered_by_the_owner_alone,
    reads_wait_while_a_handover_holds_the_gate,
    a_read_older_than_the_arrival_fails,
    a_read_older_than_the_departure_fails,
    a_service_has_the_rights_it_uses_and_no_others,
    a_service_cannot_play_the_stream,
    nobody_is_a_superuser,
);

const OPERATION: OperationId = OperationId(1);
/// Owned by a, and meant for b.
const OWNED: u16 = 1;
/// Given up by a, not arrived at b.
const MOVED: u16 = 2;
/// Refused by b.
const REFUSED: u16 = 3;
/// Never meant for b.
const ABSENT: u16 = 20;
const ORDER: Uuid = Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001);

/// A pair with buckets in every state, and an order with one item in each, whoever owns it.
async fn pair_in_every_state(version: Version) -> Result<Pair> {
    let pair = Pair::new(version).await?;
    pair.announce(OPERATION, &ranges(0, 9)).await?;
    for side in [&pair.a, &pair.b] {
        let mut rows = side.unguarded().await?;
        for user in [OWNED, MOVED, REFUSED, ABSENT].map(user_in) {
            run(&mut rows, &insert_order(user, ORDER)).await?;
            run(&mut rows, &insert_item(user, 1)).await?;
        }
    }
    let (a, b) = (&pair.a.shard, &pair.b);
    a.hand_over(OPERATION, &b.shard.name, &buckets(MOVED, REFUSED), 5_000).await?;
    b.receive(&format!("1, 'a', 'b', {REFUSED}, 3, 99, 99, now(), now()")).await?;
    assert_eq!(pair.a.ownership(OWNED).await?, ("owned".to_owned(), 2));
    assert_eq!(pair.a.ownership(MOVED).await?, ("moved".to_owned(), 3));
    assert_eq!(b.ownership(MOVED).await?, ("incoming".to_owned(), 2));
    assert_eq!(b.ownership(REFUSED).await?, ("refused".to_owned(), 3));
    assert_eq!(b.ownership(ABSENT).await?, ("absent".to_owned(), 0));
    Ok(pair)
}

fn insert_item(user: i64, line: i32) -> String {
    format!("insert into order_items values ({user}, '{ORDER}', {line}, 'A-1', 1, 0)")
}

/// Each touches exactly one row, and that row is of the user.
fn writes(user: i64) -> Vec<String> {
    let own = format!("user_id = {user}");
    let same = format!("t.user_id = s.user_id and t.order_id = '{ORDER}'");
    let merge = format!("merge into orders t using (select {user}::bigint as user_id) s on");
    let key = format!("insert into idempotency_keys select {user}, 'k', '\\x00', '{ORDER}', now()");
    vec![
        insert_order(user, Uuid::from_u128(2)),
        insert_item(user, 2),
        key.clone(),
        format!("insert into order_events values ({user}, '{ORDER}', 1, 'created', '{{}}', now())"),
        format!("update orders set version = version + 1 where {own}"),
        format!("update order_items set quantity = 2 where {own}"),
        format!("delete from order_items where {own}"),
        format!("{} on conflict (user_id, order_id) do update set version = 2", insert_order(user, ORDER)),
        format!("{} on conflict do nothing", insert_order(user, Uuid::from_u128(2))),
        format!("{merge} {same} when matched then update set version = 2"),
        format!(
            "merge into order_items t using (select {user}::bigint as user_id) s on {same} when matched then delete"
        ),
        format!(
            "{merge} false when not matched then insert values (s.user_id, '{}', 'created', 0, now(), 1)",
            Uuid::from_u128(2)
        ),
        format!("with gone as (delete from order_items where {own} returning 1) {key} from gone"),
    ]
}

async fn copy_in(session: &mut PgConnection, user: i64) -> Result<u64, sqlx::Error> {
    let mut copy = session.copy_in_raw("copy orders from stdin").await?;
    let line = format!("{user}\t{}\tcreated\t0\t2026-01-01T00:00:00Z\t1\n", Uuid::from_u128(2));
    copy.send(line.as_bytes()).await?;
    copy.finish().await
}

async fn writers_that_know_no_router_are_held_to_the_rules(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let (mut a, mut b) = (pair.a.service().await?, pair.b.service().await?);
    let cases = [
        (&mut a, vec![(OWNED, "ok"), (MOVED, "LS001")]),
        (&mut b, vec![(ABSENT, "LS007"), (MOVED, "LS002"), (REFUSED, "LS003")]),
    ];
    for (session, buckets) in cases {
        for (bucket, expected) in buckets {
            let user = user_in(bucket);
            for write in writes(user) {
                let first = format!("begin; select longshore.enter({bucket})");
                run(session, "begin").await?;
                let done = run(session, &write).await;
                assert_eq!(sqlstate(&done), expected, "bucket {bucket}: {write}");
                assert_eq!(done.unwrap_or(1), 1, "bucket {bucket}: {write}");
                run(session, "rollback").await?;
                let entered = attempt(session, "begin", &first).await?;
                assert_eq!(entered, expected, "bucket {bucket}: enter");
            }
            run(session, "begin").await?;
            assert_eq!(sqlstate(&copy_in(session, user).await), expected, "bucket {bucket}: COPY");
            run(session, "rollback").await?;
        }
    }
    // Without a transaction block too, and for good.
    assert_eq!(run(&mut a, &insert_item(user_in(OWNED), 2)).await?, 1);
    let refused = run(&mut a, &insert_item(user_in(MOVED), 2)).await;
    assert_eq!(sqlstate(&refused), "LS001");
    let there: i64 = value(&mut a, "select count(*) from order_items where line = 2").await?;
    assert_eq!(there, 1);
    Ok(())
}

async fn an_error_says_where_the_bucket_went(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let (mut a, mut b) = (pair.a.service().await?, pair.b.service().await?);
    let database = &pair.b.database;
    let moved = json!({"bucket": MOVED, "epoch": 3, "peer": "b", "host": database.host(),
                       "port": database.port(), "dbname": database.dbname()});
    for statement in [
        format!("select longshore.enter({MOVED})"),
        insert_item(user_in(MOVED), 2),
        format!("select longshore.owned({MOVED}, longshore.seen({MOVED}))"),
    ] {
        assert_eq!(detail(run(&mut a, &statement).await)?, moved, "{statement}");
    }
    let absent = detail(run(&mut b, &format!("select longshore.enter({ABSENT})")).await)?;
    assert_eq!(absent["bucket"], json!(ABSENT));
    assert_eq!(absent["peer"], json!(null));
    let unknown = run(&mut a, "select longshore.enter(64)").await;
    assert_eq!(sqlstate(&unknown), "LS007", "there are only 64 buckets");
    Ok(())
}

async fn truncate_and_a_change_of_bucket_are_refused(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let (mut a, user) = (pair.a.service().await?, user_in(OWNED));
    assert_eq!(sqlstate(&run(&mut a, "truncate order_events").await), "42501", "a service may not at all");
    let mut owner = pair.a.database.connect(Role::Operator).await?;
    for table in ["order_events", "order_items", "orders, order_items", "idempotency_keys"] {
        assert_eq!(sqlstate(&run(&mut owner, &format!("truncate {table}")).await), "LS006", "{table}");
    }
    run(&mut a, &insert_order(user, Uuid::from_u128(7))).await?;
    let other_bucket = user_in(OWNED + 3);
    let change =
        format!("update orders set user_id = {other_bucket} where order_id = '{}'", Uuid::from_u128(7));
    assert_eq!(sqlstate(&run(&mut a, &change).await), "LS006");
    for entered in [OWNED, OWNED + 3] {
        let begin = format!("begin; select longshore.enter({entered})");
        assert_eq!(attempt(&mut a, &begin, &change).await?, "LS006", "having entered {entered}");
    }
    let neighbour = users_in(OWNED, 2)[1];
    let change = format!("update orders set user_id = {neighbour} where order_id = '{}'", Uuid::from_u128(7));
    assert_eq!(run(&mut a, &change).await?, 1, "another user of the same bucket");
    Ok(())
}

async fn entering_one_bucket_opens_no_other(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let mut a = pair.a.service().await?;
    let begin = format!("begin; select longshore.enter({OWNED})");
    assert_eq!(attempt(&mut a, &begin, &insert_item(user_in(MOVED), 2)).await?, "LS001");
    let both = format!("{}; {}", insert_item(user_in(OWNED), 2), insert_item(user_in(MOVED), 2));
    assert_eq!(attempt(&mut a, &begin, &both).await?, "LS001");
    // Two owned buckets in one transaction are fine, in any order.
    run(&mut a, &format!("begin; select longshore.enter({OWNED}); select longshore.enter(4)")).await?;
    run(&mut a, &insert_item(user_in(OWNED), 2)).await?;
    run(&mut a, &insert_order(user_in(4), ORDER)).await?;
    run(&mut a, "commit").await?;
    Ok(())
}

/// Triggers of the set's owner run before the guard, by whatever name, and may change the key.
async fn a_users_own_trigger_gets_no_row_past_the_guard(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let (mut a, mut owner) = (pair.a.service().await?, pair.a.database.connect_admin().await?);
    let (owned, moved, order) = (user_in(OWNED), user_in(MOVED), Uuid::from_u128(6));
    run(&mut a, &insert_order(owned, order)).await?;
    let triggers = "create function divert() returns trigger language plpgsql as $$ begin
             new.user_id := coalesce(nullif(current_setting('test.divert_to', true), '')::bigint, new.user_id);
             return new;
         end $$;
         create trigger a_first before insert or update on orders for each row execute function divert();
         create trigger zz_last before insert or update on orders for each row execute function divert()";
    run(&mut owner, triggers).await?;
    let begin = format!("begin; select longshore.enter({OWNED}); set local test.divert_to = ");
    let insert = |user| insert_order(user, Uuid::from_u128(7));
    let update = format!("update orders set version = 2 where order_id = '{order}'");
    assert_eq!(attempt(&mut a, &format!("{begin}''"), &insert(owned)).await?, "ok");
    assert_eq!(attempt(&mut a, &format!("{begin}'{moved}'"), &insert(owned)).await?, "LS001");
    assert_eq!(attempt(&mut a, &format!("{begin}'{moved}'"), &update).await?, "LS006");
    // And nobody is refused for a key that the row did not have in the end.
    assert_eq!(attempt(&mut a, &format!("{begin}'{owned}'"), &insert(moved)).await?, "ok");
    let without = format!("begin; set local test.divert_to = '{moved}'");
    assert_eq!(attempt(&mut a, &without, &insert(owned)).await?, "LS001", "without having entered");
    Ok(())
}

async fn a_savepoint_rolled_back_forgets_the_entry(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let mut a = pair.a.service().await?;
    let write = insert_item(user_in(OWNED), 2);
    for entry in [format!("select longshore.enter({OWNED})"), write.clone()] {
        run(&mut a, &format!("begin; savepoint s; {entry}; rollback to s")).await?;
        run(&mut a, &write).await?;
        run(&mut a, "rollback").await?;
    }
    // The gate went with the savepoint, so the bucket can go; and then nothing is left of the entry.
    run(&mut a, &format!("begin; savepoint s; select longshore.enter({OWNED}); rollback to s")).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(OWNED, OWNED), 2_000).await?;
    assert_eq!(sqlstate(&run(&mut a, &write).await), "LS001");
    run(&mut a, "rollback").await?;
    // A savepoint that is kept keeps gate and entry.
    run(&mut a, "begin; savepoint s; select longshore.enter(4); release s").await?;
    let given = pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(4, 4), 100).await;
    assert_eq!(store_sqlstate(&given), "57014");
    run(&mut a, &insert_order(user_in(4), ORDER)).await?;
    run(&mut a, "commit").await?;
    Ok(())
}

async fn what_a_pooled_session_remembers_is_not_believed(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let (mut a, user) = (pair.a.service().await?, user_in(OWNED));
    // What an earlier transaction entered is over.
    run(&mut a, &format!("begin; select longshore.enter({OWNED})")).await?;
    run(&mut a, &insert_item(user, 2)).await?;
    let entered: String = value(&mut a, "select current_setting('longshore.entered')").await?;
    run(&mut a, "commit").await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(OWNED, OWNED), 5_000).await?;
    assert_eq!(sqlstate(&run(&mut a, &insert_item(user, 3)).await), "LS001");
    // And where a pooler or a client carries the setting over, it names another transaction.
    for kept in [entered, format!("{OWNED}"), format!("{OWNED}:"), String::new()] {
        run(&mut a, &format!("set longshore.entered = '{kept}'")).await?;
        assert_eq!(sqlstate(&run(&mut a, &insert_item(user, 3)).await), "LS001", "{kept:?}");
        let remove = format!("delete from order_items where user_id = {user}");
        assert_eq!(sqlstate(&run(&mut a, &remove).await), "LS001", "{kept:?}");
    }
    run(&mut a, "set longshore.clearing = '1'").await?;
    let remove = format!("delete from order_items where user_id = {user}");
    assert_eq!(sqlstate(&run(&mut a, &remove).await), "LS001", "only the operator clears");
    Ok(())
}

/// The state is read in a later statement than the gate was taken in: else it would be that of before the handover.
async fn a_writer_that_waited_meets_what_came_of_it(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let mut admin = pair.a.database.connect_admin().await?;
    for (bucket, attempt) in
        [(OWNED, format!("select longshore.enter({OWNED})")), (4, insert_order(user_in(4), ORDER))]
    {
        let (mut giving, mut writer) = (pair.a.shard.session().await?, pair.a.service().await?);
        run(&mut giving, &format!("begin; select longshore.hand_over(1, 1, 'b', array[{bucket}])")).await?;
        let waiting = format!(
            "select exists(select from pg_locks where locktype = 'advisory' and classid = 19539 and objid = {bucket}
             and not granted and database = (select oid from pg_database where datname = current_database()))"
        );
        let commit = async {
            await_condition("the writer to wait for the gate", DEADLINE, async || {
                value(&mut admin, &waiting).await.ok().filter(|waits: &bool| *waits)
            })
            .await?;
            anyhow::Ok(run(&mut giving, "commit").await?)
        };
        let (answer, committed) = tokio::join!(run(&mut writer, &attempt), commit);
        committed?;
        assert_eq!(sqlstate(&answer), "LS001", "{attempt}");
    }
    Ok(())
}

async fn an_older_snapshot_cannot_enter(version: Version) -> Result<()> {
    for level in ["repeatable read", "serializable"] {
        let pair = pair_in_every_state(version).await?;
        let (user, bucket) = (user_in(OWNED), OWNED);
        let begin = format!("begin isolation level {level}");
        let tries = [format!("select longshore.enter({bucket})"), insert_item(user, 2)];
        let mut old = Vec::new();
        for (side, attempt) in
            [&pair.a, &pair.b].into_iter().flat_map(|side| tries.clone().map(|t| (side, t)))
        {
            let mut session = side.service().await?;
            run(&mut session, &format!("{begin}; select count(*) from orders")).await?;
            old.push((session, attempt));
        }
        let name = &pair.b.shard.name;
        pair.a.shard.hand_over(OPERATION, name, &buckets(bucket, bucket), 5_000).await?;
        pair.deliver(bucket).await?;
        assert_eq!(pair.b.ownership(bucket).await?, ("owned".to_owned(), 3));
        for (mut session, attempt) in old {
            assert_eq!(sqlstate(&run(&mut session, &attempt).await), "40001", "{level}: {attempt}");
        }
        // A snapshot of now is as good as READ COMMITTED.
        let (mut a, mut b) = (pair.a.service().await?, pair.b.service().await?);
        for attempt in &tries {
            assert_eq!(shards::attempt(&mut a, &begin, attempt).await?, "LS001", "{level}: {attempt}");
            assert_eq!(shards::attempt(&mut b, &begin, attempt).await?, "ok", "{level}: {attempt}");
        }
        // A transaction in between keeps the bucket where it is.
        let mut writer = pair.a.service().await?;
        run(&mut writer, &format!("{begin}; select longshore.enter(4)")).await?;
        let given = pair.a.shard.hand_over(OPERATION, name, &buckets(4, 4), 100).await;
        assert_eq!(store_sqlstate(&given), "57014", "{level}");
    }
    Ok(())
}

/// A read as a router makes it, `from` being whatever shall happen between its snapshot and its check.
fn guarded_read(bucket: u16, from: &str) -> String {
    format!(
        "with guard as materialized (select longshore.owned({bucket}, longshore.seen({bucket})) as ok {from})
         select o.version from guard left join orders o on o.user_id = {}",
        user_in(bucket)
    )
}

async fn read(session: &mut PgConnection, sql: &str) -> Result<String> {
    let answer = value::<Option<i32>>(session, sql).await;
    Ok(match answer {
        Ok(version) => format!("{version:?}"),
        Err(_) => sqlstate(&answer),
    })
}

async fn reads_are_answered_by_the_owner_alone(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let mut gone = pair.a.unguarded().await?;
    run(&mut gone, &format!("delete from orders where user_id = {}", user_in(MOVED))).await?;
    let (mut a, mut b) = (pair.a.service().await?, pair.b.service().await?);
    assert_eq!(read(&mut a, &guarded_read(OWNED, "")).await?, "Some(1)");
    assert_eq!(read(&mut a, &guarded_read(4, "")).await?, "None", "owned, and without rows");
    assert_eq!(read(&mut a, &guarded_read(MOVED, "")).await?, "LS001", "moved, and without rows");
    assert_eq!(read(&mut a, &guarded_read(REFUSED, "")).await?, "LS001");
    assert_eq!(read(&mut b, &guarded_read(MOVED, "")).await?, "LS002", "it is coming");
    assert_eq!(read(&mut b, &guarded_read(REFUSED, "")).await?, "LS003");
    assert_eq!(read(&mut b, &guarded_read(ABSENT, "")).await?, "LS007");
    for level in ["repeatable read", "serializable"] {
        let begin = format!("begin isolation level {level}");
        assert_eq!(attempt(&mut a, &begin, &guarded_read(OWNED, "")).await?, "LS006", "{level}");
    }
    // In a write transaction, after enter; and no read keeps its gate beyond its transaction.
    let begin = format!("begin; select longshore.enter({OWNED})");
    assert_eq!(attempt(&mut a, &begin, &guarded_read(OWNED, "")).await?, "ok");
    assert_eq!(attempt(&mut a, "begin", &guarded_read(OWNED, "")).await?, "ok");
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(OWNED, OWNED), 2_000).await?;
    assert_eq!(read(&mut a, &guarded_read(OWNED, "")).await?, "LS001");
    Ok(())
}

async fn reads_wait_while_a_handover_holds_the_gate(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let mut a = pair.a.service().await?;
    let mut giving = pair.a.shard.session().await?;
    let give = format!("begin; select longshore.hand_over(1, 1, 'b', array[{OWNED}])");
    run(&mut giving, &give).await?;
    assert_eq!(read(&mut a, &guarded_read(OWNED, "")).await?, "LS002");
    assert_eq!(read(&mut a, &guarded_read(4, "")).await?, "None", "other buckets are as they were");
    run(&mut giving, "rollback").await?;
    assert_eq!(read(&mut a, &guarded_read(OWNED, "")).await?, "Some(1)", "it stayed");
    run(&mut giving, &give).await?;
    run(&mut giving, "commit").await?;
    assert_eq!(read(&mut a, &guarded_read(OWNED, "")).await?, "LS001");
    Ok(())
}

/// Lets a read take its snapshot, then does `meanwhile`, then lets the read go on; what it answered.
async fn read_held_during(
    side: &shards::Side,
    bucket: u16,
    meanwhile: impl AsyncFnOnce() -> Result<()>,
) -> Result<String> {
    let (mut reader, mut holder) = (side.service().await?, side.service().await?);
    let sql = guarded_read(bucket, "from (select pg_advisory_lock_shared(4711) offset 0) held");
    run(&mut holder, "select pg_advisory_lock(4711)").await?;
    let release = async {
        let waiting =
            "select exists(select from pg_locks where locktype = 'advisory' and objid = 4711 and not granted
                       and database = (select oid from pg_database where datname = current_database()))";
        await_condition("the read to have its snapshot", DEADLINE, async || {
            value(&mut holder, waiting).await.ok().filter(|waits: &bool| *waits)
        })
        .await?;
        let done = meanwhile().await;
        run(&mut holder, "select pg_advisory_unlock(4711)").await?;
        done
    };
    let (answer, released) = tokio::join!(read(&mut reader, &sql), release);
    released?;
    answer
}

async fn a_read_older_than_the_arrival_fails(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let user = user_in(OWNED);
    run(&mut pair.a.service().await?, &format!("update orders set version = 2 where user_id = {user}"))
        .await?;
    let answer = read_held_during(&pair.b, OWNED, async || {
        let mut stream = pair.b.unguarded().await?;
        run(&mut stream, &format!("update orders set version = 2 where user_id = {user}")).await?;
        pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(OWNED, OWNED), 5_000).await?;
        pair.deliver(OWNED).await?;
        assert_eq!(pair.b.ownership(OWNED).await?, ("owned".to_owned(), 3));
        Ok(())
    });
    assert_eq!(answer.await?, "LS002", "version 1 stood in its snapshot, and is not true any more");
    let mut b = pair.b.service().await?;
    assert_eq!(read(&mut b, &guarded_read(OWNED, "")).await?, "Some(2)", "another try reads what is true");
    Ok(())
}

async fn a_read_older_than_the_departure_fails(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let answer = read_held_during(&pair.a, OWNED, async || {
        Ok(pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(OWNED, OWNED), 5_000).await?)
    });
    assert_eq!(answer.await?, "LS001");
    // Gone and back again: what happened in between is not in the snapshot. Only the epoch tells.
    let answer = read_held_during(&pair.a, 4, async || {
        pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(4, 4), 5_000).await?;
        pair.b.shard.revoke(&ranges(4, 4), Epoch(4)).await?;
        Ok(pair.a.shard.own(&ranges(4, 4), Epoch(4)).await?)
    });
    assert_eq!(answer.await?, "LS002");
    assert_eq!(read(&mut pair.a.service().await?, &guarded_read(4, "")).await?, "None");
    Ok(())
}

async fn a_service_has_the_rights_it_uses_and_no_others(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let mut a = pair.a.service().await?;
    for allowed in [
        "select shard, set_uid, buckets, shards_version from longshore.meta",
        "select name, host, port, dbname from longshore.shard",
        "select bucket, state, epoch, peer, operation from longshore.ownership",
        "select first, last from longshore.owned_range",
        "select * from orders",
        "listen longshore",
    ] {
        assert_eq!(attempt(&mut a, "begin", allowed).await?, "ok", "{allowed}");
    }
    for denied in [
        "update longshore.ownership set state = 'owned'",
        "insert into longshore.ownership values (99)",
        "delete from longshore.ownership",
        "select from longshore.ownership for update",
        "update longshore.meta set term = 0",
        "insert into longshore.shard values ('c', 'h', 1, 'd', 's')",
        "insert into longshore.handover values (1, 'a', 'b', 1, 1, 0, 0, now(), now())",
        "select * from longshore.handover",
        "select * from longshore.operation",
        "create table longshore.mine (id int)",
        "create table public.mine (id int)",
        "create function longshore.mine() returns int language sql as 'select 1'",
        "alter table orders disable trigger all",
        "drop trigger longshore_insert on orders",
        "alter table orders add column mine int",
        "set role longshore_owner",
        "set role longshore_operator",
        "set session authorization longshore_owner",
        "set session_replication_role = replica",
        "create publication mine for table orders",
        "select pg_create_logical_replication_slot('mine', 'pgoutput')",
        "select longshore.claim(99, 'me')",
        "select longshore.own(1, '{[20,21)}', 9)",
        "select longshore.expect(1, 1, '{[20,21)}', 9, 'b')",
        "select longshore.revoke(1, '{[3,4)}', 9)",
        "select longshore.raise_epoch(1, 1, '{[1,2)}', 9, 'b')",
        "select longshore.hand_over(1, 1, 'b', array[1])",
        "select longshore.probe(1, 1, 'b')",
        "select longshore.set_shards(1, 9, '[]')",
        "select longshore.journal(1, 9, '{}', '{}', 1)",
        "select longshore.clear(1, '{[2,3)}', 10)",
    ] {
        assert_eq!(attempt(&mut a, "begin", denied).await?, "42501", "{denied}");
    }
    Ok(())
}

/// The function that takes buckets over runs as its owner: only the stream may reach it.
async fn a_service_cannot_play_the_stream(version: Version) -> Result<()> {
    let pair = pair_in_every_state(version).await?;
    let mut b = pair.b.service().await?;
    let forged = format!(
        "create temp table forged (operation bigint, giver text, peer text, bucket int, epoch bigint, rows bigint, digest numeric);
         create trigger forged after insert on forged for each row execute function longshore.receive();
         insert into forged select 1, 'a', 'b', bucket, 3, rows, digest from longshore.digest(array[{OWNED}])"
    );
    let tried = sqlstate(&run(&mut b, &forged).await);
    let found = pair.b.ownership(OWNED).await?;
    assert_eq!((tried.as_str(), found), ("42501", ("incoming".to_owned(), 2)), "a owns the bucket");
    Ok(())
}

async fn nobody_is_a_superuser(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let mut session = pair.a.service().await?;
    let found: Vec<String> = value(
        &mut session,
        "select array_agg(format('%s%s%s', rolname, case when rolcanlogin then ' login' end,
                                 case when rolreplication then ' replication' end) order by rolname)
         from pg_roles where rolname like 'longshore\\_%'
         and not rolsuper and not rolcreaterole and not rolcreatedb and not rolbypassrls",
    )
    .await?;
    let expected = [
        "longshore_operator login replication",
        "longshore_owner",
        "longshore_replication login replication",
        "longshore_service login",
    ];
    assert_eq!(found, expected);
    // Nothing of the agent belongs to anybody but the owner, or runs as anybody it should not.
    let text = "select coalesce(array_agg(distinct r.rolname::text), '{}') from pg_class c join pg_roles r on r.oid = c.relowner
                where c.relnamespace in ('longshore'::regnamespace, 'public'::regnamespace)";
    assert_eq!(value::<Vec<String>>(&mut session, text).await?, ["longshore_owner"]);
    let text = "select array_agg(p.proname::text order by p.proname) from pg_proc p
                where p.pronamespace = 'longshore'::regnamespace and p.prosecdef";
    assert_eq!(value::<Vec<String>>(&mut session, text).await?, ["locked_state", "receive"]);
    let text = "select coalesce(array_agg(m.rolname::text order by 1), '{}') from pg_auth_members a
                join pg_roles r on r.oid = a.roleid join pg_roles m on m.oid = a.member
                where r.rolname in ('longshore_owner', 'pg_create_subscription', 'pg_monitor')
                and m.rolname <> 'longshore_operator'";
    let others: Vec<String> = value(&mut session, text).await?;
    assert!(others.is_empty(), "{others:?}");
    Ok(())
}
