//! What a stream may bring, carry on or hold back: old handovers, errors, deletes, locks and crashes.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result};
use e2e::{
    awaiting::await_condition,
    postgres::{Server, Version},
};
use longshore_operator::shard::{Shard, Term, view::View};
use longshore_sharding::{
    KeyType, Ranges,
    operation::{Epoch, OperationId},
};
use sqlx::PgConnection;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use uuid::Uuid;

use crate::shards::{
    DEADLINE, Pair, Side, buckets, insert_order, ranges, replication_as, run, sqlstate, store_sqlstate,
    tables, user_in, value,
};

on_each_version!(
    old_handovers_in_an_initial_copy_make_nobody_an_owner,
    a_handover_overtaken_by_a_reclaim_makes_nobody_an_owner,
    a_bucket_that_cannot_be_checked_stops_no_other,
    enums_whose_numbers_differ_have_one_digest,
    leftovers_are_not_cleared_through_a_reverse_stream,
    a_write_past_every_rule_needs_a_forward_stream,
    a_blocked_apply_shows_in_the_age_of_a_mark_alone,
    a_handover_outlives_a_crash_of_both_ends,
    a_subscription_follows_by_another_way_in,
    a_copy_that_was_cut_off_is_seen,
);

const OPERATION: OperationId = OperationId(1);

fn order(number: u128) -> Uuid {
    Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0000 | number)
}

fn state(state: &str, epoch: i64) -> (String, i64) {
    (state.to_owned(), epoch)
}

/// A pair whose buckets 0 to 3 have an order each, at a.
async fn pair_with_orders(version: Version) -> Result<Pair> {
    with_orders(Pair::new(version).await?).await
}

async fn with_orders(pair: Pair) -> Result<Pair> {
    let mut a = pair.a.service().await?;
    for bucket in 0..4 {
        run(&mut a, &insert_order(user_in(bucket), order(1))).await?;
    }
    Ok(pair)
}

/// Holds every write of a table up, the stream's too, until the session ends its transaction; reads go on.
async fn block_writes(side: &Side, table: &str) -> Result<PgConnection> {
    let mut blocker = side.database.connect_admin().await?;
    run(&mut blocker, &format!("begin; lock table {table} in share mode")).await?;
    Ok(blocker)
}

async fn received(side: &Side) -> Result<i64> {
    let mut admin = side.database.connect_admin().await?;
    Ok(value(&mut admin, "select count(*) from longshore.handover where bucket >= 0").await?)
}

async fn await_received(side: &Side, count: i64) -> Result<()> {
    await_condition(format!("{count} handovers at {}", side.shard.name), DEADLINE, async || {
        (received(side).await.ok()? == count).then_some(())
    })
    .await
}

/// The version of the bucket's order there, whoever owns it.
async fn version_at(side: &Side, bucket: u16) -> Result<Option<i32>> {
    let mut admin = side.database.connect_admin().await?;
    let text = format!("select max(version) from orders where user_id = {}", user_in(bucket));
    Ok(value(&mut admin, &text).await?)
}

async fn await_version(side: &Side, bucket: u16, version: Option<i32>) -> Result<()> {
    let what = format!("the order of bucket {bucket} at {} in version {version:?}", side.shard.name);
    await_condition(what, DEADLINE, async || (version_at(side, bucket).await.ok()? == version).then_some(()))
        .await
}

fn set_version(bucket: u16, version: i32) -> String {
    format!("update orders set version = {version} where user_id = {}", user_in(bucket))
}

/// What a sent for buckets 0 and 1 is taken back before b has any of it.
async fn reclaim(pair: &Pair) -> Result<()> {
    pair.b.shard.revoke(&ranges(0, 1), Epoch(4)).await?;
    pair.a.shard.own(&ranges(0, 1), Epoch(4)).await?;
    for bucket in 0..2 {
        assert_eq!(pair.a.ownership(bucket).await?, state("owned", 4));
        assert_eq!(pair.b.ownership(bucket).await?, state("absent", 4));
    }
    Ok(())
}

/// Means the buckets for b once more.
async fn announce_again(pair: &Pair, operation: OperationId, moving: &Ranges) -> Result<()> {
    pair.a.shard.raise(operation, moving, Epoch(5), &pair.b.shard.name).await?;
    pair.b.shard.expect(operation, moving, Epoch(5), &pair.a.shard.name).await?;
    Ok(())
}

async fn old_handovers_in_an_initial_copy_make_nobody_an_owner(version: Version) -> Result<()> {
    // A second try in the same operation copies the old rows again; in the next one not even that.
    for (operation, copied) in [(OPERATION, 2), (OperationId(2), 0)] {
        let pair = pair_with_orders(version).await?;
        let moving = ranges(0, 3);
        pair.announce(OPERATION, &moving).await?;
        pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 1), 5_000).await?;
        reclaim(&pair).await?;
        announce_again(&pair, operation, &moving).await?;
        pair.connect(operation, &moving).await?;
        assert_eq!(received(&pair.b).await?, copied, "old rows come with the copy of {operation}");
        for bucket in 0..2 {
            assert_eq!(pair.a.ownership(bucket).await?, state("owned", 5), "{operation}");
            assert_eq!(pair.b.ownership(bucket).await?, state("incoming", 5), "{operation}");
        }
        pair.a.shard.hand_over(operation, &pair.b.shard.name, &buckets(0, 3), 5_000).await?;
        for bucket in 0..4 {
            pair.b.await_state(bucket, "owned").await?;
            assert_eq!(pair.b.ownership(bucket).await?, state("owned", 6));
            assert_eq!(pair.a.ownership(bucket).await?, state("moved", 6));
        }
        pair.drop_forward(operation).await?;
        pair.drop_reverse(operation).await?;
    }
    Ok(())
}

async fn a_handover_overtaken_by_a_reclaim_makes_nobody_an_owner(version: Version) -> Result<()> {
    let pair = pair_with_orders(version).await?;
    let moving = ranges(0, 3);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;
    let mut blocker = block_writes(&pair.b, "longshore.handover").await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 1), 5_000).await?;
    // The handovers are on their way. Bucket 0 goes home for good; 1 is tried again on the same subscription.
    reclaim(&pair).await?;
    announce_again(&pair, OPERATION, &ranges(1, 1)).await?;
    let mut a = pair.a.service().await?;
    for bucket in 0..2 {
        run(&mut a, &set_version(bucket, 2)).await?;
    }
    assert_eq!(received(&pair.b).await?, 0);
    run(&mut blocker, "rollback").await?;
    await_received(&pair.b, 2).await?;
    assert_eq!(pair.b.ownership(0).await?, state("absent", 4));
    assert_eq!(pair.b.ownership(1).await?, state("incoming", 5));
    for bucket in 0..2 {
        assert_eq!(run(&mut a, &set_version(bucket, 3)).await?, 1, "a owns it still");
    }
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(1, 1), 5_000).await?;
    pair.b.await_state(1, "owned").await?;
    assert_eq!(pair.b.ownership(1).await?, state("owned", 6));
    assert_eq!(version_at(&pair.b, 1).await?, Some(3), "with all that happened in between");
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await?;
    Ok(())
}

async fn a_bucket_that_cannot_be_checked_stops_no_other(version: Version) -> Result<()> {
    let pair = pair_with_orders(version).await?;
    let moving = ranges(0, 7);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;
    // Each of the first buckets fails in a way of its own; 4 answers nothing at all.
    let faults = "alter function longshore.digest(integer[]) rename to true_digest;
         create function longshore.digest(p_buckets integer[]) returns table (bucket integer, rows bigint, digest numeric)
         language plpgsql as $$ begin
             case p_buckets[1]
                 when 0 then raise exception 'out of order';
                 when 1 then perform 1 / 0;
                 when 2 then raise exception 'not now' using errcode = 'serialization_failure';
                 when 3 then perform 'no number'::integer;
                 when 4 then return;
                 else return query select * from longshore.true_digest(p_buckets);
             end case;
         end $$";
    run(&mut pair.b.database.connect_admin().await?, faults).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 5), 5_000).await?;
    for bucket in 0..5 {
        pair.b.await_state(bucket, "refused").await?;
    }
    assert_eq!(pair.b.ownership(5).await?, state("owned", 3), "it came in the same transaction");
    // The stream goes on: rows, marks and other buckets.
    run(&mut pair.a.service().await?, &insert_order(user_in(6), order(2))).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(6, 6), 5_000).await?;
    pair.b.await_state(6, "owned").await?;
    assert_eq!(version_at(&pair.b, 6).await?, Some(1));
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await?;
    Ok(())
}

async fn enums_whose_numbers_differ_have_one_digest(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    for side in [&pair.a, &pair.b] {
        let mut admin = side.database.connect_admin().await?;
        let text = "create type mood as enum ('calm', 'angry');
                    alter table orders add mood mood not null default 'calm'";
        run(&mut admin, text).await?;
        side.shard.register(&tables(), KeyType::Bigint).await?;
    }
    let mut a = pair.a.service().await?;
    for (number, mood) in [(1, "calm"), (2, "angry")] {
        run(&mut a, &insert_order(user_in(3), order(number))).await?;
        run(&mut a, &format!("update orders set mood = '{mood}' where order_id = '{}'", order(number)))
            .await?;
    }
    pair.announce(OPERATION, &ranges(3, 3)).await?;
    pair.connect(OPERATION, &ranges(3, 3)).await?;
    let records = "select sum(hash_record_extended(row(mood), 0))::text from orders";
    let here: String = value(&mut pair.a.service().await?, records).await?;
    let there: String = value(&mut pair.b.service().await?, records).await?;
    assert_ne!(here, there, "else this test shows nothing");
    assert_eq!(pair.a.digests(3, 3).await?, pair.b.digests(3, 3).await?);
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(3, 3), 5_000).await?;
    pair.b.await_state(3, "owned").await?;
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await?;
    run(&mut pair.b.service().await?, "update orders set mood = 'angry'").await?;
    assert_ne!(pair.a.digests(3, 3).await?, pair.b.digests(3, 3).await?, "a mood counts");
    Ok(())
}

async fn leftovers_are_not_cleared_through_a_reverse_stream(version: Version) -> Result<()> {
    let pair = pair_with_orders(version).await?;
    let (a, b, moving) = (&pair.a.shard, &pair.b.shard, ranges(0, 3));
    let mut leftovers = pair.b.unguarded().await?;
    for bucket in 0..2 {
        run(&mut leftovers, &insert_order(user_in(bucket), order(1))).await?;
    }
    let reverse = pair.reverse(OPERATION);
    b.publish(&reverse, OPERATION, &a.name, &moving).await?;
    b.create_slot(&reverse).await?;
    assert_eq!(store_sqlstate(&b.clear(&moving).await), "LS006", "a slot, though nobody follows it yet");
    a.subscribe(&reverse, &b.connection, false).await?;
    assert_eq!(store_sqlstate(&b.clear(&moving).await), "LS006");
    // What it refuses to do would reach the owner: so it does when somebody else does it.
    run(&mut leftovers, &format!("delete from orders where user_id = {}", user_in(1))).await?;
    await_version(&pair.a, 1, None).await?;
    assert_eq!(version_at(&pair.a, 0).await?, Some(1));
    pair.drop_reverse(OPERATION).await?;
    b.clear(&moving).await?;
    assert_eq!((version_at(&pair.b, 0).await?, version_at(&pair.a, 0).await?), (None, Some(1)));
    Ok(())
}

/// The rules bind whoever keeps them; `session_replication_role = replica` passes all. What it writes at the former
/// owner must have no way to the new one.
async fn a_write_past_every_rule_needs_a_forward_stream(version: Version) -> Result<()> {
    let pair = pair_with_orders(version).await?;
    pair.announce(OPERATION, &ranges(0, 0)).await?;
    pair.connect(OPERATION, &ranges(0, 0)).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 0), 5_000).await?;
    pair.b.await_state(0, "owned").await?;
    let (mut late, mut b) = (pair.a.unguarded().await?, pair.b.service().await?);
    run(&mut b, &set_version(0, 2)).await?;
    run(&mut late, &set_version(0, 99)).await?;
    await_version(&pair.b, 0, Some(99)).await.context("else dropping the stream is for nothing")?;

    pair.drop_forward(OPERATION).await?;
    run(&mut b, &set_version(0, 3)).await?;
    await_version(&pair.a, 0, Some(3)).await.context("the reverse stream lives on")?;
    run(&mut late, &set_version(0, 100)).await?;
    run(&mut b, &insert_order(user_in(0), order(2))).await?;
    await_condition("the reverse stream to have gone round", DEADLINE, async || {
        let text = format!("select count(*) from orders where user_id = {}", user_in(0));
        value(&mut late, &text).await.ok().filter(|rows: &i64| *rows == 2)
    })
    .await?;
    assert_eq!(version_at(&pair.b, 0).await?, Some(3));
    assert_eq!(run(&mut b, &set_version(0, 4)).await?, 2);
    pair.drop_reverse(OPERATION).await?;
    Ok(())
}

/// Number and age in milliseconds of the newest mark from a that this view has.
fn newest_mark(view: &View) -> Option<(i64, i64)> {
    let marks = view.probes.iter().filter(|(giver, ..)| giver.as_str() == "a");
    marks.map(|(_, _, number, age_ms)| (*number, *age_ms)).max()
}

async fn mark_at(side: &Side) -> Option<(i64, i64)> {
    newest_mark(&side.shard.observe(Some(OPERATION), &Ranges::default()).await.ok()?)
}

async fn a_blocked_apply_shows_in_the_age_of_a_mark_alone(version: Version) -> Result<()> {
    /// What counts as hardly any lag: a page or two, be the apply blocked or not.
    const LAG_BYTES_MAX: i64 = 64 * 1024;
    const BLOCKED: Duration = Duration::from_secs(2);
    // A server of its own: nobody else's writes are in its WAL.
    let (source, destination) = (Server::start(version).await?, Server::shared(version).await?);
    let pair = with_orders(Pair::between(&source, destination).await?).await?;
    pair.announce(OPERATION, &ranges(0, 3)).await?;
    pair.connect(OPERATION, &ranges(0, 3)).await?;
    let (a, b) = (&pair.a, &pair.b);
    a.shard.probe(OPERATION, &b.shard.name).await?;
    await_condition("a mark at b", DEADLINE, async || mark_at(b).await.filter(|(number, _)| *number == 1))
        .await?;

    let mut blocker = block_writes(b, "orders").await?;
    run(&mut a.service().await?, &set_version(0, 2)).await?;
    a.shard.probe(OPERATION, &b.shard.name).await?;
    let blocked_ms = i64::try_from(BLOCKED.as_millis())?;
    let sent = await_condition("the mark to be old", DEADLINE, async || {
        mark_at(a).await.filter(|(_, age_ms)| *age_ms >= blocked_ms)
    })
    .await?;
    assert_eq!(sent.0, 2);
    let (arrived, age_ms) = mark_at(b).await.context("the first mark")?;
    assert!(arrived == 1 && age_ms > blocked_ms, "mark {arrived}, {age_ms} ms old");
    let mut admin = a.database.connect_admin().await?;
    let text = format!(
        "select pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint
         from pg_replication_slots where slot_name = '{}'",
        pair.forward(OPERATION)
    );
    let lag_bytes: i64 = value(&mut admin, &text).await?;
    println!("PostgreSQL {version:?}: {lag_bytes} bytes of lag after {} ms without apply", sent.1);
    assert!(lag_bytes < LAG_BYTES_MAX, "{lag_bytes}");

    run(&mut blocker, "rollback").await?;
    await_condition("the mark at b", DEADLINE, async || mark_at(b).await.filter(|(number, _)| *number == 2))
        .await?;
    assert_eq!(version_at(b, 0).await?, Some(2), "and all that was before it");
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await?;
    source.stop().await
}

async fn a_handover_outlives_a_crash_of_both_ends(version: Version) -> Result<()> {
    let server = Server::start(version).await?;
    let pair = with_orders(Pair::on(&server).await?).await?;
    pair.announce(OPERATION, &ranges(0, 3)).await?;
    pair.connect(OPERATION, &ranges(0, 3)).await?;
    // Committed at a, and not applied at b when all goes down.
    let _blocker = block_writes(&pair.b, "longshore.handover").await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 3), 5_000).await?;
    assert_eq!(pair.b.ownership(0).await?, state("incoming", 2));
    server.kill9().await?;
    server.start_again().await?;
    for bucket in 0..4 {
        pair.b.await_state(bucket, "owned").await?;
        assert_eq!(pair.a.ownership(bucket).await?, state("moved", 3));
        let refused = run(&mut pair.a.service().await?, &set_version(bucket, 2)).await;
        assert_eq!(sqlstate(&refused), "LS001");
        assert_eq!(run(&mut pair.b.service().await?, &set_version(bucket, 2)).await?, 1);
    }
    server.stop().await
}

/// A subscription takes another password (here, another role's) while it runs, and its comment tells which it has.
async fn a_subscription_follows_by_another_way_in(version: Version) -> Result<()> {
    let pair = pair_with_orders(version).await?;
    pair.announce(OPERATION, &ranges(0, 3)).await?;
    pair.connect(OPERATION, &ranges(0, 3)).await?;
    let (a, b) = (&pair.a, &pair.b);
    let name = pair.forward(OPERATION);
    let made_with = async || -> Result<Option<String>> {
        let view = b.shard.observe(None, &Ranges::default()).await?;
        view.subscribed_with.get(&name).cloned().context("b subscribes")
    };
    assert_eq!(made_with().await?.as_deref(), Some("first"));

    let role = format!("replication_{}", Uuid::new_v4().simple());
    let mut admin = a.database.connect_admin().await?;
    run(
        &mut admin,
        &format!("create role {role} login replication password 'new' in role longshore_replication"),
    )
    .await?;
    let other = replication_as(&a.database, &role, "new", "second");
    Shard::try_replication(&other).await?;
    let refused = Shard::try_replication(&replication_as(&a.database, &role, "old", "second")).await;
    assert_eq!(refused.map_err(|error| error.distrust()), Err(Some("AuthenticationFailed")));

    let later = Term { number: 2, holder: "another".to_owned() };
    let mut session = Shard::connect(&b.shard.connection).await?;
    let stale = Shard::new(b.shard.name.clone(), b.shard.connection.clone(), &later);
    assert!(stale.resubscribe(&name, &other).await.is_err(), "a term that was not claimed");
    assert_eq!(made_with().await?.as_deref(), Some("first"));
    for _ in 0..2 {
        b.shard.resubscribe(&name, &other).await?;
        assert_eq!(made_with().await?.as_deref(), Some("second"));
    }
    let follows = async || {
        let text = format!(
            "select coalesce(max(usename), '') from pg_stat_replication r join pg_replication_slots s on s.active_pid = r.pid
             where s.slot_name = '{name}'"
        );
        let user: String = value(&mut admin, &text).await.ok()?;
        (user == role).then_some(())
    };
    await_condition("the stream to come as the other role", DEADLINE, follows).await?;
    run(&mut a.service().await?, &set_version(0, 2)).await?;
    await_version(b, 0, Some(2)).await?;
    // A server's log does not tell what failed to be a way in.
    let unusable = replication_as(&a.database, &role, "whispered", "third");
    let refused = b.shard.subscribe("ls_unusable", &unusable, false).await;
    assert!(refused.is_err_and(|error| error.chain().contains("password authentication failed")));
    assert!(!pair.log()?.contains("whispered"));
    // What is gone is nobody's to alter, and no error.
    pair.drop_forward(OPERATION).await?;
    b.shard.resubscribe(&name, &other).await?;

    Shard::claim(&mut session, &later).await?;
    let reverse = pair.reverse(OPERATION);
    assert_eq!(store_sqlstate(&b.shard.resubscribe(&reverse, &other).await), "LS004");
    Ok(())
}

/// Where a pod died, nobody refuses a connection: packets vanish. So they do where a queue of connections is full.
/// On one version alone, since it waits for half a minute: the bound is the kernel's, not the server's.
#[tokio::test]
async fn a_subscription_gives_up_an_address_that_answers_nothing() -> Result<()> {
    let pair = pair_with_orders(Version::V17).await?;
    pair.announce(OPERATION, &ranges(0, 3)).await?;
    pair.connect(OPERATION, &ranges(0, 3)).await?;
    let (a, b) = (&pair.a, &pair.b);
    let name = pair.forward(OPERATION);

    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let silent = socket.listen(1)?;
    let address = silent.local_addr()?;
    let mut queued = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
        queued.push(connected?);
    }

    let mut admin = b.database.connect_admin().await?;
    let worker = format!(
        "select coalesce(max(pid), 0) from pg_stat_subscription where subname = '{name}' and relid is null"
    );
    let mut workers = BTreeSet::from([value::<i32>(&mut admin, &worker).await?]);
    let mut gone = a.shard.connection.clone();
    gone.endpoint.port = address.port();
    b.shard.resubscribe(&name, &gone).await?;
    // The one that leaves the source, one that finds nobody, and the next.
    await_condition("two workers to give up", DEADLINE, async || {
        workers.insert(value(&mut admin, &worker).await.ok()?);
        (workers.iter().filter(|pid| **pid != 0).count() >= 3).then_some(())
    })
    .await?;

    b.shard.resubscribe(&name, &a.shard.connection).await?;
    run(&mut a.service().await?, &set_version(0, 2)).await?;
    await_version(b, 0, Some(2)).await
}

/// As a crash leaves it between a table's worker dropping its slot at the source and committing that the table is done.
async fn a_copy_that_was_cut_off_is_seen(version: Version) -> Result<()> {
    let pair = pair_with_orders(version).await?;
    let moving = ranges(0, 3);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;
    let forward = pair.forward(OPERATION);
    let mut admin = pair.b.database.connect_admin().await?;
    let seen = async || anyhow::Ok(pair.b.shard.observe(None, &Ranges::default()).await?.awaited_slots);
    assert_eq!(seen().await?, []);
    let cut_off = format!(
        "set allow_system_table_mods = on;
         update pg_subscription_rel set srsubstate = 'f' where srrelid = 'orders'::regclass
           and srsubid = (select oid from pg_subscription where subname = '{forward}')"
    );
    run(&mut admin, &cut_off).await?;
    let awaited = async || seen().await.ok()?.pop();
    let (subscription, slot) =
        await_condition("a table to ask for its slot in vain", DEADLINE, awaited).await?;
    assert_eq!(subscription, forward);
    assert!(slot.starts_with("pg_") && slot.contains("_sync_"), "{slot}");
    let table_slots = pair.a.shard.observe(None, &Ranges::default()).await?.table_slots;
    assert!(!table_slots.contains(&slot), "{table_slots:?}");
    pair.drop_forward(OPERATION).await?;
    assert_eq!(seen().await?, []);
    pair.drop_reverse(OPERATION).await
}
