//! A shard that runs on another server than when it was last compared with its peers: it refuses everything, until the
//! operator has compared and re-armed it.

use anyhow::Result;
use e2e::postgres::{Server, Version};
use longshore_operator::shard::{
    Shard,
    agent::{self, AgentError},
};
use longshore_sharding::{
    Ranges,
    operation::{Epoch, OperationId},
};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::shards::{
    Pair, Side, attempt, buckets, connection, insert_order, membership, ranges, run, shard_name, sqlstate,
    store_sqlstate, user_in, value,
};

on_each_version![
    a_quarantined_shard_refuses_writes_reads_and_handovers,
    who_renounces_is_quarantined,
    a_promoted_standby_is_quarantined,
    a_restored_backup_is_quarantined,
    a_cold_copy_shows_by_its_restart,
    another_owner_has_to_adopt,
    a_released_shard_works_anywhere_and_is_free_to_take,
];

/// The five ways to a row: what each answers.
async fn ways(session: &mut PgConnection, bucket: u16) -> Result<[String; 5]> {
    let user = user_in(bucket);
    let write = format!("select longshore.enter({bucket})");
    let bypass = insert_order(user, Uuid::new_v4());
    let read = format!("select longshore.owned({bucket}, longshore.seen({bucket}))");
    let among = "select longshore.owned_among('{[0,63]}', longshore.seen_among('{[0,63]}'))";
    Ok([
        attempt(session, "begin", &write).await?,
        attempt(session, "begin isolation level repeatable read", &write).await?,
        attempt(session, "begin", &bypass).await?,
        attempt(session, "begin", &read).await?,
        attempt(session, "begin", among).await?,
    ])
}

const REFUSED: [&str; 5] = ["LS005"; 5];
const DONE: [&str; 5] = ["ok"; 5];

async fn a_quarantined_shard_refuses_writes_reads_and_handovers(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let (operation, moving) = (OperationId(1), ranges(0, 3));
    pair.announce(operation, &moving).await?;
    let mut service = pair.a.service().await?;
    assert_eq!(ways(&mut service, 5).await?, DONE);

    let mut admin = pair.a.database.connect_admin().await?;
    run(&mut admin, "update longshore.armed set server = '1/00000001'").await?;
    assert!(pair.a.shard.observe(None, &Ranges::default()).await?.armed.is_quarantined());
    // A session that has been told who the server is, and a new one.
    assert_eq!(ways(&mut service, 5).await?, REFUSED);
    assert_eq!(ways(&mut pair.a.service().await?, 5).await?, REFUSED);
    let peer = &pair.b.shard.name;
    let handed = pair.a.shard.hand_over(operation, peer, &buckets(0, 0), 1_000).await;
    assert_eq!(store_sqlstate(&handed), "LS005");
    assert_eq!(pair.a.ownership(0).await?, ("owned".to_owned(), 2));

    pair.a.shard.rearm().await?;
    let armed = pair.a.shard.observe(None, &Ranges::default()).await?.armed;
    assert!(!armed.is_suspect());
    assert_eq!(ways(&mut service, 5).await?, DONE);
    pair.a.shard.hand_over(operation, peer, &buckets(0, 0), 1_000).await?;
    Ok(())
}

async fn who_renounces_is_quarantined(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    // Since then it went to b and came back and went there again, in epoch 7; a does not know.
    pair.a.shard.renounce(&ranges(4, 6), Epoch(7), &pair.b.shard.name).await?;
    for bucket in 4..=6 {
        assert_eq!(pair.a.ownership(bucket).await?, ("moved".to_owned(), 7));
    }
    assert_eq!(pair.a.ownership(7).await?, ("owned".to_owned(), 1));
    assert!(pair.a.shard.observe(None, &Ranges::default()).await?.armed.is_quarantined());
    let mut service = pair.a.service().await?;
    assert_eq!(ways(&mut service, 9).await?, REFUSED);
    pair.a.shard.rearm().await?;
    assert_eq!(attempt(&mut service, "begin", "select longshore.enter(5)").await?, "LS001");
    assert_eq!(ways(&mut service, 9).await?, DONE);

    // Never downwards, and never for a leader whose term is over.
    pair.a.shard.renounce(&ranges(9, 9), Epoch(1), &pair.b.shard.name).await?;
    assert_eq!(pair.a.ownership(9).await?, ("owned".to_owned(), 1));
    let mut admin = pair.a.database.connect_admin().await?;
    for call in ["renounce(0, '{[9,9]}', 9, 'b')", "rearm(0)"] {
        let stale = run(&mut admin, &format!("select longshore.{call}")).await;
        assert_eq!(sqlstate(&stale), "LS004", "{call}");
    }
    Ok(())
}

/// One shard on a server of its own that is thrown away.
async fn alone(version: Version, settings: &[(&str, &str)]) -> Result<(Server, Side)> {
    let server = Server::start_with(version, settings).await?;
    let side = Side::new(&server, "a").await?;
    side.shard.own(&ranges(0, 63), Epoch(1)).await?;
    Ok((server, side))
}

/// New sessions under the same term, after the server was replaced.
fn again(side: &Side) -> Shard {
    let term = longshore_operator::shard::Term { number: 1, holder: "the tests".to_owned() };
    Shard::new(shard_name("a"), connection(&side.database), &term)
}

async fn a_promoted_standby_is_quarantined(version: Version) -> Result<()> {
    let (server, side) = alone(version, &[]).await?;
    let standby = server.standby(true).await?;
    let mut service = side.service().await?;
    run(&mut service, &insert_order(user_in(3), Uuid::new_v4())).await?;
    server.fail_over_to(standby).await?;
    assert_eq!(ways(&mut side.service().await?, 5).await?, REFUSED);
    let shard = again(&side);
    assert!(shard.observe(None, &Ranges::default()).await?.armed.is_quarantined());
    shard.rearm().await?;
    let mut service = side.service().await?;
    assert_eq!(ways(&mut service, 5).await?, DONE);
    assert_eq!(value::<i64>(&mut service, "select count(*) from orders").await?, 1);
    Ok(())
}

async fn a_restored_backup_is_quarantined(version: Version) -> Result<()> {
    let (server, side) = alone(version, &Server::archiving()).await?;
    let backup = server.base_backup().await?;
    let mut service = side.service().await?;
    run(&mut service, &insert_order(user_in(3), Uuid::new_v4())).await?;
    service.close().await?;
    server.restore(backup).await?;
    let mut service = side.service().await?;
    assert_eq!(value::<i64>(&mut service, "select count(*) from orders").await?, 0, "it is the backup");
    assert_eq!(ways(&mut service, 5).await?, REFUSED);
    let shard = again(&side);
    assert!(shard.observe(None, &Ranges::default()).await?.armed.is_quarantined());
    shard.rearm().await?;
    assert_eq!(ways(&mut service, 5).await?, DONE);
    Ok(())
}

async fn a_cold_copy_shows_by_its_restart(version: Version) -> Result<()> {
    let (server, side) = alone(version, &[]).await?;
    let shard = again(&side);
    assert!(!shard.observe(None, &Ranges::default()).await?.armed.is_suspect());
    let copy = server.copy_cold().await?;
    let shard = again(&side);
    shard.rearm().await?;
    assert!(shard.is_calm().await);
    server.replace_by(copy).await?;
    let shard = again(&side);
    let armed = shard.observe(None, &Ranges::default()).await?.armed;
    assert_eq!((armed.is_suspect(), armed.is_quarantined()), (true, false));
    assert!(!shard.is_calm().await);
    Ok(())
}

async fn another_owner_has_to_adopt(version: Version) -> Result<()> {
    let side = Side::new(Server::shared(version).await?, "a").await?;
    let mut session = Shard::connect(&connection(&side.database)).await?;
    let mut wanted = membership("a");
    wanted.owner = "another".to_owned();
    let refused = agent::install(&mut session, &wanted).await;
    assert!(matches!(refused, Err(AgentError::OtherOwner { .. })), "{refused:?}");
    wanted.adopts = Some("a third".to_owned());
    let refused = agent::install(&mut session, &wanted).await;
    assert!(matches!(refused, Err(AgentError::OtherOwner { .. })), "{refused:?}");
    let maker = membership("a");
    wanted.adopts = Some(maker.owner.clone());
    let adopted = agent::install(&mut session, &wanted).await?;
    assert_eq!((adopted.owner.as_str(), &adopted.set_uid), ("another", &maker.set_uid));
    // Whoever had it is refused from now on; who has it needs no leave any more.
    let refused = agent::install(&mut session, &maker).await;
    assert!(matches!(&refused, Err(AgentError::OtherOwner { found }) if found == "another"), "{refused:?}");
    wanted.adopts = None;
    agent::install(&mut session, &wanted).await?;
    Ok(())
}

async fn a_released_shard_works_anywhere_and_is_free_to_take(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    pair.a.shard.release().await?;
    let mut admin = pair.a.database.connect_admin().await?;
    assert_eq!(ways(&mut pair.a.service().await?, 5).await?, DONE);
    assert_eq!(value::<String>(&mut admin, "select server from longshore.armed").await?, "*");
    let mut session = Shard::connect(&connection(&pair.a.database)).await?;
    let mut wanted = membership("a");
    wanted.owner = "another".to_owned();
    assert_eq!(agent::install(&mut session, &wanted).await?.owner, "another");
    assert!(agent::is_suspect(&mut session).await?, "who takes it compares it first");
    let stale = run(&mut admin, "select longshore.release(0)").await;
    assert_eq!(sqlstate(&stale), "LS004");
    Ok(())
}
