//! A source whose commits wait for a synchronous standby: its peer may own a bucket before the source itself sees it go.

use std::convert::Infallible;

use anyhow::Result;
use e2e::{
    awaiting::await_condition,
    postgres::{Server, Version},
};
use longshore_sharding::operation::OperationId;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::shards::{
    DEADLINE, Pair, Side, attempt, buckets, insert_order, ranges, run, sqlstate, user_in, value,
};

on_each_version!(nobody_reads_or_writes_the_old_rows_while_a_commit_waits_for_a_standby);

const OPERATION: OperationId = OperationId(1);
const BUCKET: u16 = 3;
const OTHER: u16 = 40;

/// From now on commits at this server wait for a standby that never comes.
async fn require_standby(side: &Side) -> Result<()> {
    let mut admin = side.database.connect_admin().await?;
    run(&mut admin, "alter system set synchronous_standby_names = 'nobody'").await?;
    run(&mut admin, "select pg_reload_conf()").await?;
    // Commits until one of them waits: the server takes its time to act on a setting.
    let mut canary = side.database.connect_admin().await?;
    run(&mut canary, "set application_name = 'canary'").await?;
    tokio::select! {
        Err(failed) = commit_for_ever(&mut canary) => Err(failed.into()),
        waits = await_commit_of(side, "canary") => waits,
    }
}

async fn commit_for_ever(session: &mut PgConnection) -> Result<Infallible, sqlx::Error> {
    loop {
        run(session, "select pg_logical_emit_message(true, 'canary', '')").await?;
    }
}

async fn require_no_standby(side: &Side) -> Result<()> {
    let mut admin = side.database.connect_admin().await?;
    run(&mut admin, "alter system reset synchronous_standby_names").await?;
    run(&mut admin, "select pg_reload_conf()").await?;
    Ok(())
}

async fn await_commit_of(side: &Side, application: &str) -> Result<()> {
    let mut admin = side.database.connect_admin().await?;
    let text = format!(
        "select exists (select from pg_stat_activity where application_name = '{application}' and wait_event = 'SyncRep')"
    );
    await_condition(format!("a commit of {application} to wait"), DEADLINE, async || {
        value(&mut admin, &text).await.ok().filter(|waits: &bool| *waits)
    })
    .await
    .map(drop)
}

fn plain_read(bucket: u16) -> String {
    format!("select version from orders where user_id = {}", user_in(bucket))
}

fn guarded_read(bucket: u16) -> String {
    format!(
        "with guard as materialized (select longshore.owned({bucket}, longshore.seen({bucket})) as ok)
         select o.version from guard left join orders o on o.user_id = {}",
        user_in(bucket)
    )
}

/// All that a writer may try at the former owner; each would wait for the gate.
fn writes() -> Vec<(String, String)> {
    let levels = ["read committed", "repeatable read", "serializable"];
    let statements = [
        format!("select longshore.enter({BUCKET})"),
        format!("update orders set version = 9 where user_id = {}", user_in(BUCKET)),
    ];
    let begin = |level| format!("begin isolation level {level}; set local statement_timeout = 300");
    levels.iter().flat_map(|level| statements.clone().map(|s| (begin(level), s))).collect()
}

/// While the commit waits: the new owner takes a write, and the old one answers nothing that this makes untrue.
async fn look_while_it_waits(pair: &Pair) -> Result<()> {
    pair.b.await_state(BUCKET, "owned").await?;
    await_commit_of(&pair.a, "longshore-operator").await?;
    // The write would come back by the reverse stream; the old row is to stay where it is for a while.
    let mut delay = pair.a.database.connect_admin().await?;
    run(&mut delay, "begin; lock table orders in share mode").await?;
    let write = format!(
        "begin; select longshore.enter({BUCKET}); update orders set version = 2 where user_id = {}; commit",
        user_in(BUCKET)
    );
    run(&mut pair.b.service().await?, &write).await?;

    assert_eq!(pair.a.ownership(BUCKET).await?, ("owned".to_owned(), 2), "to all who do not ask the gate");
    assert_eq!(pair.b.ownership(BUCKET).await?, ("owned".to_owned(), 3));
    let mut a = pair.a.service().await?;
    assert_eq!(value::<i32>(&mut a, &plain_read(BUCKET)).await?, 1, "else this test shows nothing");
    for begin in ["", "begin;"] {
        let read = sqlstate(&value::<Option<i32>>(&mut a, &guarded_read(BUCKET)).await);
        assert_eq!(read, "LS002", "{begin}");
        let read = sqlstate(&run(&mut a, &format!("{begin} {}", guarded_read(BUCKET))).await);
        assert_eq!(read, "LS002", "{begin}");
        run(&mut a, "rollback").await?;
    }
    assert_eq!(value::<i32>(&mut a, &guarded_read(OTHER)).await?, 1, "other buckets are as they were");
    run(&mut delay, "rollback").await?;
    for (begin, write) in writes() {
        assert_eq!(attempt(&mut a, &begin, &write).await?, "57014", "{begin}: {write}");
    }
    Ok(())
}

/// Waits for the gate until the handover is through; what it then answers.
async fn enter(session: &mut PgConnection) -> String {
    sqlstate(&run(session, &format!("select longshore.enter({BUCKET})")).await)
}

async fn nobody_reads_or_writes_the_old_rows_while_a_commit_waits_for_a_standby(
    version: Version,
) -> Result<()> {
    let (source, destination) = (Server::start(version).await?, Server::shared(version).await?);
    let pair = Pair::between(&source, destination).await?;
    let mut a = pair.a.service().await?;
    for bucket in [BUCKET, OTHER] {
        run(&mut a, &insert_order(user_in(bucket), Uuid::from_u128(1))).await?;
    }
    let moving = ranges(BUCKET, BUCKET);
    pair.announce(OPERATION, &moving).await?;
    pair.connect(OPERATION, &moving).await?;
    require_standby(&pair.a).await?;

    let batch = buckets(BUCKET, BUCKET);
    // The time that the operator gives a handover does not end its commit.
    let giving = async { Ok(pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &batch, 200).await?) };
    let looking = async {
        look_while_it_waits(&pair).await?;
        let mut writer = pair.a.service().await?;
        let (entered, released) = tokio::join!(enter(&mut writer), require_no_standby(&pair.a));
        released?;
        assert_eq!(entered, "LS001", "having waited for the gate");
        anyhow::Ok(())
    };
    tokio::try_join!(giving, looking)?;
    let read = sqlstate(&value::<Option<i32>>(&mut a, &guarded_read(BUCKET)).await);
    assert_eq!((read, enter(&mut a).await), ("LS001".to_owned(), "LS001".to_owned()));
    assert_eq!(pair.a.ownership(BUCKET).await?, ("moved".to_owned(), 3));
    let there: Option<i32> = value(&mut pair.b.service().await?, &guarded_read(BUCKET)).await?;
    assert_eq!(there, Some(2));
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await?;
    source.stop().await
}
