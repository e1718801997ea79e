//! Who may act on a shard, and what makes a database one: terms, the agent's installation, migrations.

use std::collections::BTreeMap;

use anyhow::Result;
use e2e::{
    awaiting::await_condition,
    postgres::{Database, Role, Server, Version},
};
use longshore_operator::shard::{
    Shard, StoreError, Term,
    agent::{self, AgentError, Membership},
    migrations::{self, MigrationError},
};
use longshore_sharding::{
    BucketCount, KeyType,
    operation::{Course, Epoch, Kind, OperationId, Plan, StrayKind},
};
use sqlx::{PgConnection, Row as _, postgres::PgListener};

use crate::shards::{
    self, DEADLINE, Pair, SET_UID, buckets, connection, membership, ranges, run, shard_name, sqlstate,
    store_sqlstate, tables, value,
};

on_each_version!(
    a_claim_ends_the_former_leaders_sessions,
    the_former_leader_learns_that_its_term_is_over,
    an_equal_or_lower_term_is_refused,
    nothing_of_a_former_leader_has_an_effect,
    the_agent_is_installed_once_and_for_one_shard,
    an_upgrade_of_the_agent_keeps_what_the_shard_knows,
    migrations_run_in_order_and_once,
    a_failing_migration_is_tried_again,
    a_changed_migration_is_refused,
    shards_are_told_of_each_other,
);

const OPERATION: OperationId = OperationId(1);

fn term(number: i64, holder: &str) -> Term {
    Term { number, holder: holder.to_owned() }
}

async fn claim(database: &Database, term: &Term) -> Result<Result<(), StoreError>> {
    let mut session = Shard::connect(&connection(database)).await?;
    Ok(Shard::claim(&mut session, term).await)
}

async fn a_claim_ends_the_former_leaders_sessions(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let database = &pair.a.database;
    let (mut idle, mut writing) = (pair.a.shard.session().await?, pair.a.shard.session().await?);
    run(&mut idle, "select 1").await?;
    run(&mut writing, "begin; insert into longshore.operation values (99, '{}', '{}', 1)").await?;
    // Another shard's sessions, and others at this one, are not concerned.
    let mut elsewhere = pair.b.shard.session().await?;
    let mut service = pair.a.service().await?;

    claim(database, &term(2, "the successor")).await??;
    for mut session in [idle, writing] {
        assert!(run(&mut session, "commit").await.is_err(), "a session of the former leader lives");
    }
    run(&mut elsewhere, "select 1").await?;
    run(&mut service, "select 1").await?;
    let mut admin = database.connect_admin().await?;
    let kept: i64 = value(&mut admin, "select count(*) from longshore.operation").await?;
    assert_eq!(kept, 0, "what it had not committed never will be");
    let holder: String = value(&mut admin, "select concat(term, ' ', holder) from longshore.meta").await?;
    assert_eq!(holder, "2 the successor");
    let successor = Shard::new(shard_name("a"), connection(database), &term(2, "the successor"));
    successor.own(&ranges(0, 0), Epoch(1)).await?;
    Ok(())
}

async fn the_former_leader_learns_that_its_term_is_over(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    claim(&pair.a.database, &term(2, "the successor")).await??;
    // The same term by another name is as much over.
    let impostor = Shard::new(shard_name("a"), connection(&pair.a.database), &term(2, "somebody else"));
    let one = ranges(0, 0);
    for former in [&pair.a.shard, &impostor] {
        // Its old sessions are closed; what it opens anew meets the new term.
        let observed = async || former.observe(None, &one).await.map(drop);
        let (own, observed) = tokio::join!(former.own(&one, Epoch(9)), observed());
        for answer in [own, observed] {
            let error = answer.expect_err("its term is over");
            assert!(error.is_stale_term(), "{}", error.chain());
        }
    }
    Ok(())
}

async fn an_equal_or_lower_term_is_refused(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let database = &pair.a.database;
    claim(database, &term(5, "five")).await??;
    for (number, holder) in [(5, "five"), (5, "another"), (4, "four"), (1, "one"), (0, "zero"), (-1, "less")]
    {
        let refused = claim(database, &term(number, holder)).await?;
        assert_eq!(store_sqlstate(&refused), "LS004", "term {number} of {holder}");
    }
    let mut admin = database.connect_admin().await?;
    let holder: String = value(&mut admin, "select concat(term, ' ', holder) from longshore.meta").await?;
    assert_eq!(holder, "5 five");
    // A session that belongs to the term is not ended by claims that fail.
    let five = Shard::new(shard_name("a"), connection(database), &term(5, "five"));
    let mut session = five.session().await?;
    assert!(claim(database, &term(5, "another")).await?.is_err());
    run(&mut session, "select 1").await?;
    Ok(())
}

fn plan() -> Plan {
    Plan { id: OPERATION, kind: Kind::Rebalance { moves: Vec::new() }, cost: None }
}

async fn nothing_of_a_former_leader_has_an_effect(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let (a, b) = (&pair.a.shard, &pair.b.shard);
    let moving = ranges(0, 3);
    pair.announce(OPERATION, &moving).await?;
    a.publish("ls_kept", OPERATION, &b.name, &moving).await?;
    claim(&pair.a.database, &term(2, "the successor")).await??;
    let before = pair.a.memory().await?;

    // All at once, since a pool takes its time to give up.
    let known = [a.clone(), b.clone()];
    let (plan, batch, tables, absent) = (plan(), buckets(0, 1), tables(), ranges(40, 41));
    let answers = tokio::join!(
        a.journal(&plan, &Course::Forward, 1),
        a.own(&moving, Epoch(9)),
        a.revoke(&moving, Epoch(9)),
        a.raise(OPERATION, &moving, Epoch(9), &b.name),
        a.expect(OPERATION, &absent, Epoch(9), &b.name),
        a.publish("ls_new", OPERATION, &b.name, &moving),
        a.create_slot("ls_new"),
        a.subscribe("ls_new", &b.connection, false),
        a.resubscribe("ls_kept", &b.connection),
        a.drop_stream_object(StrayKind::Publication, "ls_kept"),
        a.drop_stream_object(StrayKind::Slot, "ls_kept"),
        a.drop_stream_object(StrayKind::Subscription, "ls_kept"),
        a.probe(OPERATION, &b.name),
        a.hand_over(OPERATION, &b.name, &batch, 1_000),
        a.clear(&absent),
        a.set_shards(9, &known),
        a.register(&tables, KeyType::Bigint),
        a.index_buckets(&tables, KeyType::Bigint, 1),
    );
    let (journal, own, revoke, raise, expect, publish, slot, subscribe, resubscribe, ..) = &answers;
    let (.., publication, dropped_slot, subscription, probe, given, clear, told, registered, indexed) =
        &answers;
    let answers = [journal, own, revoke, raise, expect, publish, slot, subscribe].into_iter().chain([
        resubscribe,
        publication,
        dropped_slot,
        subscription,
        probe,
        given,
        clear,
        told,
        registered,
        indexed,
    ]);
    for (at, answer) in answers.enumerate() {
        assert!(answer.is_err(), "method {at} of a former leader succeeded");
    }
    assert_eq!(pair.a.memory().await?, before);

    // And should a session of it live on after all, each function refuses by itself.
    let mut session = pair.a.database.connect(Role::Operator).await?;
    for statement in [
        "journal(1, 9, '{}', '{}', 1)",
        "own(1, '{[0,64)}', 9)",
        "revoke(1, '{[0,64)}', 9)",
        "raise_epoch(1, 1, '{[0,64)}', 9, 'b')",
        "expect(1, 1, '{[0,64)}', 9, 'b')",
        "publish(1, 'ls_new', 1, 'b', '{[0,64)}')",
        "subscribe(1, 'ls_new', 'dbname=nowhere', false, '')",
        "resubscribe(1, 'ls_kept', 'dbname=nowhere', '')",
        "probe(1, 1, 'b')",
        "hand_over(1, 1, 'b', array[0])",
        "clear(1, '{[40,41)}', 1)",
        "set_shards(1, 9, '[]')",
        "attach(1, 'the tests')",
        "attach(2, 'the tests')",
        "claim(2, 'the tests')",
    ] {
        let answer = run(&mut session, &format!("select longshore.{statement}")).await;
        assert_eq!(sqlstate(&answer), "LS004", "{statement}");
    }
    assert_eq!(pair.a.memory().await?, before);
    Ok(())
}

async fn fresh(version: Version) -> Result<(Database, PgConnection)> {
    let database = Server::shared(version).await?.scratch_database().await?;
    let session = Shard::connect(&connection(&database)).await?;
    Ok((database, session))
}

/// The agent's functions, tables and triggers, each with the transaction that wrote it.
async fn catalogue(database: &Database) -> Result<Vec<String>> {
    let text = "select array_agg(o order by o) from (
        select concat_ws(' ', proname, xmin) from pg_proc where pronamespace = 'longshore'::regnamespace
        union all select concat_ws(' ', relname, xmin) from pg_class where relnamespace = 'longshore'::regnamespace
        union all select concat_ws(' ', tgname, xmin) from pg_trigger where not tgisinternal
        union all select concat_ws(' ', shard, xmin) from longshore.meta
        union all select concat_ws(' ', bucket, xmin) from longshore.ownership) all_of_it(o)";
    Ok(value(&mut database.connect_admin().await?, text).await?)
}

async fn the_agent_is_installed_once_and_for_one_shard(version: Version) -> Result<()> {
    let (database, mut session) = fresh(version).await?;
    assert_eq!(agent::meta(&mut session).await?, None);
    // Two operators that start at once: both succeed.
    let mut other_session = Shard::connect(&connection(&database)).await?;
    let (here, there) = (membership("a"), membership("a"));
    let both = tokio::join!(agent::install(&mut session, &here), agent::install(&mut other_session, &there));
    let installed = both.0?;
    assert_eq!(installed, both.1?);
    let facts = (installed.shard.as_str(), installed.set_uid.as_str(), installed.buckets);
    assert_eq!(facts, ("a", SET_UID, 64));
    assert_eq!((installed.term, installed.shards_version), (0, 0));

    let before = catalogue(&database).await?;
    assert_eq!(agent::install(&mut session, &here).await?, installed);
    assert_eq!(agent::meta(&mut session).await?, Some(installed));
    assert_eq!(catalogue(&database).await?, before, "a second installation writes nothing");

    let of = |change: fn(&mut Membership)| {
        let mut wanted = membership("a");
        change(&mut wanted);
        wanted
    };
    let other_set = of(|m| m.set_uid = "another".to_owned());
    let refused = agent::install(&mut session, &other_set).await;
    assert!(matches!(&refused, Err(AgentError::OtherSet { found, .. }) if found == SET_UID), "{refused:?}");
    let other_owner = of(|m| m.owner = "another".to_owned());
    let refused = agent::install(&mut session, &other_owner).await;
    assert!(matches!(&refused, Err(AgentError::OtherOwner { found }) if found == SET_UID), "{refused:?}");
    let refused = agent::install(&mut session, &of(|m| m.shard = shard_name("b"))).await;
    assert!(matches!(&refused, Err(AgentError::OtherShard { found }) if found == "a"), "{refused:?}");
    let other_count = of(|m| m.buckets = BucketCount::MAX);
    let refused = agent::install(&mut session, &other_count).await;
    assert!(matches!(&refused, Err(AgentError::OtherBuckets { found: 64 })), "{refused:?}");
    assert_eq!(catalogue(&database).await?, before, "a refused installation writes nothing");
    Ok(())
}

async fn an_upgrade_of_the_agent_keeps_what_the_shard_knows(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    pair.announce(OPERATION, &ranges(0, 3)).await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 0), 5_000).await?;
    pair.a.shard.journal(&plan(), &Course::Forward, 1).await?;
    let before = pair.a.memory().await?;
    let mut admin = pair.a.database.connect_admin().await?;
    // As an older operator left it.
    run(&mut admin, "update longshore.meta set agent = 'older', registered = ''").await?;
    run(&mut admin, "drop function longshore.probe").await?;
    let mut session = pair.a.shard.session().await?;
    agent::install(&mut session, &membership("a")).await?;
    drop(session);
    pair.a.shard.register(&tables(), KeyType::Bigint).await?;
    assert_eq!(pair.a.memory().await?, before);
    pair.a.shard.probe(OPERATION, &pair.b.shard.name).await?;
    // The guard stands at every moment in between, for writers that are at work.
    let refused =
        run(&mut pair.a.service().await?, &shards::insert_order(shards::user_in(0), uuid::Uuid::nil())).await;
    assert_eq!(sqlstate(&refused), "LS001");
    assert!(pair.a.shard.observe(None, &ranges(0, 63)).await?.with_rows().is_empty());
    Ok(())
}

fn migration_files(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, sql)| ((*name).to_owned(), (*sql).to_owned())).collect()
}

async fn applied(session: &mut PgConnection) -> Result<String, sqlx::Error> {
    value(session, "select coalesce(string_agg(name, ' ' order by applied_at), '') from longshore.migration")
        .await
}

async fn migrations_run_in_order_and_once(version: Version) -> Result<()> {
    let (_database, mut session) = fresh(version).await?;
    agent::install(&mut session, &membership("a")).await?;
    let mut files = migration_files(&[
        ("0010_c.sql", "insert into log (word) values ('c')"),
        ("0001_a.sql", "create table log (at serial, word text); insert into log (word) values ('a')"),
        ("0002_b.sql", "insert into log (word) values ('b'); select 1"),
    ]);
    for _ in 0..2 {
        migrations::migrate(&mut session, &files).await?;
        let words: String = value(&mut session, "select string_agg(word, '' order by at) from log").await?;
        assert_eq!(words, "abc");
    }
    files.insert("0011_d.sql".to_owned(), "insert into log (word) values ('d')".to_owned());
    migrations::migrate(&mut session, &files).await?;
    let words: String = value(&mut session, "select string_agg(word, '' order by at) from log").await?;
    assert_eq!(words, "abcd");
    assert_eq!(applied(&mut session).await?, "0001_a.sql 0002_b.sql 0010_c.sql 0011_d.sql");
    let owner: String =
        value(&mut session, "select tableowner::text from pg_tables where tablename = 'log'").await?;
    assert_eq!(owner, "longshore_owner");
    let role: String = value(&mut session, "select current_user::text").await?;
    assert_eq!(role, "longshore_operator", "the session is what it was");
    Ok(())
}

async fn a_failing_migration_is_tried_again(version: Version) -> Result<()> {
    let (_database, mut session) = fresh(version).await?;
    agent::install(&mut session, &membership("a")).await?;
    let mut files = migration_files(&[
        ("1.sql", "create table one (id int)"),
        ("2.sql", "create table two (id int); insert into two values (1 / 0)"),
        ("3.sql", "create table three (id int)"),
    ]);
    let failed = migrations::migrate(&mut session, &files).await.expect_err("a division by zero");
    assert!(
        matches!(&failed, MigrationError::Failed { name, source } if name == "2.sql" && source.to_string().contains("division")),
        "{failed:?}"
    );
    assert_eq!(applied(&mut session).await?, "1.sql");
    let there = "select concat(to_regclass('one'), ' ', to_regclass('two'), ' ', to_regclass('three'))";
    assert_eq!(
        value::<String>(&mut session, there).await?,
        "one  ",
        "nothing is left of the one that failed"
    );
    // It was never applied, so it may be mended in place.
    files.insert("2.sql".to_owned(), "create table two (id int)".to_owned());
    migrations::migrate(&mut session, &files).await?;
    assert_eq!(applied(&mut session).await?, "1.sql 2.sql 3.sql");
    assert_eq!(value::<String>(&mut session, there).await?, "one two three");
    Ok(())
}

async fn a_changed_migration_is_refused(version: Version) -> Result<()> {
    let (_database, mut session) = fresh(version).await?;
    agent::install(&mut session, &membership("a")).await?;
    let mut files = migration_files(&[("1.sql", "create table one (id int)")]);
    migrations::migrate(&mut session, &files).await?;
    files.insert("1.sql".to_owned(), "create table one (id bigint)".to_owned());
    files.insert("2.sql".to_owned(), "create table two (id int)".to_owned());
    let refused = migrations::migrate(&mut session, &files).await.expect_err("it was changed");
    assert!(matches!(&refused, MigrationError::Changed { name } if name == "1.sql"), "{refused:?}");
    assert_eq!(applied(&mut session).await?, "1.sql", "nothing after it ran");
    Ok(())
}

async fn shards_are_told_of_each_other(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let mut service = PgListener::connect(&pair.a.database.url(Role::Service)).await?;
    service.listen("longshore").await?;
    let mut session = pair.a.shard.session().await?;
    let known = Shard::known_shards(&mut session).await?;
    let expected: BTreeMap<_, _> = [("a", &pair.a), ("b", &pair.b)]
        .map(|(name, side)| (name.to_owned(), (side.shard.connection.endpoint.clone(), "shard".to_owned())))
        .into();
    assert_eq!(known, expected);

    // A change replaces what was known, raises the version, and is heard at once.
    pair.a.shard.set_shards(7, std::slice::from_ref(&pair.a.shard)).await?;
    let known = Shard::known_shards(&mut session).await?;
    assert_eq!(known.keys().collect::<Vec<_>>(), ["a"]);
    let heard = await_condition("the notification", DEADLINE, async || service.recv().await.ok()).await?;
    assert_eq!(heard.payload(), "shards 7");
    let mut reader = pair.a.service().await?;
    let row = sqlx::query("select m.shards_version, s.dbname from longshore.meta m, longshore.shard s")
        .fetch_one(&mut reader)
        .await?;
    assert_eq!(row.try_get::<i64, _>(0)?, 7);
    assert_eq!(row.try_get::<String, _>(1)?, pair.a.database.dbname());
    // Nothing of a Secret but its name.
    let text: String = value(&mut reader, "select string_agg(s::text, '') from longshore.shard s").await?;
    for role in Role::ALL {
        assert!(!text.contains(pair.a.database.password(role)));
    }
    Ok(())
}
