//! What preflight finds on a server, in its tables and between shards; and that its statements mend it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use e2e::postgres::{Database, Server, Version};
use longshore_crds::order_shard_set::TableSpec;
use longshore_operator::shard::{
    Shard, agent,
    preflight::{self, Finding, Reason, Tables},
};
use longshore_sharding::{KeyType, operation::OperationId};
use sqlx::PgConnection;

use crate::shards::{
    self, Pair, Side, buckets, connection, connection_as, membership, ranges, run, shard_name, user_in, value,
};

on_each_version!(
    a_server_without_logical_wal_is_named,
    each_missing_privilege_is_named_and_granted,
    a_server_with_too_little_room_is_named,
    keys_are_checked,
    faults_of_tables_are_found_and_mended,
    row_security_is_named_and_mended,
    what_works_is_not_refused,
    what_is_not_refused_moves,
    a_schema_of_the_sets_own_is_opened,
    a_bucket_index_must_be_the_right_one,
    the_fingerprint_sees_what_decides_and_nothing_else,
    the_first_difference_of_two_shards_is_mended,
    shared_sequences_are_found,
    a_missing_extension_is_named,
);

async fn fresh(version: Version) -> Result<(Database, PgConnection)> {
    let database = Server::shared(version).await?.scratch_database().await?;
    let mut session = Shard::connect(&connection(&database)).await?;
    agent::install(&mut session, &membership("a")).await?;
    Ok((database, session))
}

fn specs(names: &[&str]) -> Vec<TableSpec> {
    let spec = |name: &&str| TableSpec { name: (*name).to_owned(), key: "user_id".to_owned() };
    names.iter().map(spec).collect()
}

/// As a migration would.
async fn migrate(session: &mut PgConnection, sql: &str) -> Result<()> {
    run(session, "set role longshore_owner").await?;
    run(session, sql).await.with_context(|| sql.to_owned())?;
    run(session, "reset role").await?;
    Ok(())
}

async fn findings(session: &mut PgConnection, names: &[&str]) -> Result<Vec<Finding>> {
    Ok(preflight::tables(session, &specs(names)).await?.findings)
}

fn words(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.reason.word()).collect()
}

/// Runs what each finding says, as an administrator.
async fn mend(database: &Database, findings: &[Finding]) -> Result<()> {
    let mut admin = database.connect_admin().await?;
    for finding in findings {
        let statement = finding.mend.as_deref().with_context(|| format!("no statement in: {finding}"))?;
        run(&mut admin, statement).await.with_context(|| finding.to_string())?;
    }
    Ok(())
}

async fn a_server_without_logical_wal_is_named(version: Version) -> Result<()> {
    let server = Server::start_with(version, &[("wal_level", "replica")]).await?;
    let database = server.scratch_database().await?;
    let mut session = Shard::connect(&connection(&database)).await?;
    let found = preflight::server(&mut session).await?;
    assert_eq!(words(&found), ["WalLevelNotLogical"]);
    assert!(found[0].message.contains("\"replica\""), "{}", found[0]);
    mend(&database, &found).await?;
    let text = "select setting from pg_file_settings where name = 'wal_level'";
    let set: String = value(&mut database.connect_admin().await?, text).await?;
    assert_eq!(set, "logical", "for the next start");
    server.stop().await
}

async fn each_missing_privilege_is_named_and_granted(version: Version) -> Result<()> {
    let database = Server::shared(version).await?.scratch_database().await?;
    let mut admin = database.connect_admin().await?;
    let role = format!("lacking_{}", database.dbname());
    run(&mut admin, &format!("create role {role} login password 'secret'")).await?;
    let found = async || -> Result<Vec<Finding>> {
        let mut session = Shard::connect(&connection_as(&database, &role, "secret")).await?;
        Ok(preflight::server(&mut session).await?)
    };
    let lacking = found().await?;
    let privileges = [
        "REPLICATION",
        "membership in longshore_owner",
        "membership in pg_create_subscription",
        "CREATE on the database",
    ];
    assert_eq!(lacking.len(), privileges.len());
    for (finding, privilege) in lacking.iter().zip(privileges) {
        assert_eq!(finding.reason, Reason::PrivilegeMissing);
        assert!(finding.message.starts_with(&format!("role {role} lacks {privilege}")), "{finding}");
    }
    // Each statement gives what it says, and no more.
    for (at, finding) in lacking.iter().enumerate().take(3) {
        mend(&database, std::slice::from_ref(finding)).await?;
        // The owner's membership brings CREATE on the database along.
        let left = if at == 0 { &lacking[1..] } else { &lacking[at + 1..3] };
        assert_eq!(found().await?, left);
    }
    let text = format!("revoke create on database {} from longshore_owner", database.dbname());
    run(&mut admin, &text).await?;
    assert_eq!(found().await?, lacking[3..]);
    mend(&database, &lacking[3..]).await?;
    assert_eq!(found().await?, []);
    run(&mut admin, &format!("drop owned by {role}; drop role {role}")).await?;
    Ok(())
}

async fn a_server_with_too_little_room_is_named(version: Version) -> Result<()> {
    let mut tight = vec![
        ("max_locks_per_transaction", "10"),
        ("max_logical_replication_workers", "1"),
        ("max_replication_slots", "1"),
        ("max_sync_workers_per_subscription", "0"),
        ("max_wal_senders", "1"),
        ("max_worker_processes", "1"),
    ];
    if version == Version::V18 {
        tight.push(("max_active_replication_origins", "1"));
    }
    let few = [("max_connections", "20")];
    let server = Server::start_with(version, &[&tight[..], &few].concat()).await?;
    let database = server.scratch_database().await?;
    let mut session = Shard::connect(&connection(&database)).await?;
    let alone = preflight::limits(&mut session, 1).await?;
    assert_eq!(alone.len(), 1, "without peers nothing is sent: {alone:?}");
    assert!(alone[0].message.starts_with("max_locks_per_transaction is 10"), "{}", alone[0]);

    // What the findings ask for is enough, and not too much.
    let found = preflight::limits(&mut session, 3).await?;
    let asked = |finding: &Finding| -> Option<(String, String)> {
        let (name, value) = finding.mend.as_deref()?.strip_prefix("ALTER SYSTEM SET ")?.split_once(" = ")?;
        Some((name.to_owned(), value.to_owned()))
    };
    let needed: BTreeMap<String, String> = found.iter().filter_map(asked).collect();
    // Two pairs that both copy; the launcher; 512 locks and 8 for each of 20 connections.
    let mut expected = BTreeMap::from(
        [
            ("max_locks_per_transaction", "34"),
            ("max_logical_replication_workers", "4"),
            ("max_replication_slots", "4"),
            ("max_sync_workers_per_subscription", "1"),
            ("max_wal_senders", "4"),
            ("max_worker_processes", "5"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    if version == Version::V18 {
        expected.insert("max_active_replication_origins".to_owned(), "4".to_owned());
    }
    assert_eq!(needed, expected);
    mend(&database, &found).await?;
    server.stop().await?;
    let enough: Vec<_> =
        needed.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(few).collect();
    let server = Server::start_with(version, &enough).await?;
    let mut session = Shard::connect(&connection(&server.scratch_database().await?)).await?;
    assert_eq!(preflight::limits(&mut session, 3).await?, []);
    run(&mut session, "select pg_create_physical_replication_slot('of_a_standby')").await?;
    let found = preflight::limits(&mut session, 3).await?;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].message.starts_with("max_replication_slots"), "{}", found[0]);
    server.stop().await
}

async fn keys_are_checked(version: Version) -> Result<()> {
    let (_database, mut session) = fresh(version).await?;
    migrate(
        &mut session,
        "create table good (user_id bigint, id int, primary key (user_id, id));
         create table also_good (user_id bigint primary key);
         create table key_last (id int, user_id bigint, primary key (id, user_id));
         create table by_uuid (user_id uuid primary key);
         create table by_text (user_id text primary key);
         create table by_int (user_id int primary key);
         create table \"order\" (user_id bigint, id int primary key);
         create table without_any (user_id bigint not null);
         create schema other; create table other.good (user_id bigint primary key);
         create table dropped (user_id bigint, id int primary key); alter table dropped drop user_id",
    )
    .await?;
    use KeyType::{Bigint, Uuid};
    let cases: [(&[&str], Option<KeyType>, &[&str]); 13] = [
        (&["good", "also_good"], Some(Bigint), &[]),
        (&["good", "public.good", "other.good"], Some(Bigint), &[]),
        // Replication only needs the key to be in it.
        (&["key_last"], Some(Bigint), &[]),
        (&["by_uuid"], Some(Uuid), &[]),
        (&["good", "missing"], Some(Bigint), &["TableNotFound"]),
        (&["other.also_good"], None, &["TableNotFound"]),
        (&["good", "order"], Some(Bigint), &["PrimaryKeyLacksShardKey"]),
        (&["without_any"], Some(Bigint), &["PrimaryKeyLacksShardKey"]),
        (&["by_text"], None, &["KeyTypeUnsupported"]),
        (&["by_int"], None, &["KeyTypeUnsupported"]),
        (&["dropped"], None, &["KeyNotFound"]),
        (&["good", "by_uuid"], Some(Bigint), &["KeyTypesDiffer"]),
        // All at once.
        (
            &["good", "by_uuid", "order", "missing", "by_text"],
            Some(Bigint),
            &["TableNotFound", "KeyTypeUnsupported", "KeyTypesDiffer", "PrimaryKeyLacksShardKey"],
        ),
    ];
    for (names, key_type, expected) in cases {
        let Tables { key_type: found_type, findings } =
            preflight::tables(&mut session, &specs(names)).await?;
        assert_eq!((found_type, words(&findings)), (key_type, expected.to_vec()), "{names:?}: {findings:?}");
    }
    Ok(())
}

/// A fault: the tables of the set, what makes it, and the reasons that are found for it.
struct Fault(&'static [&'static str], &'static str, &'static [&'static str]);

/// Each is found with nothing else beside it, is mended by its own statements, and then nothing is found any more.
const MENDED: [Fault; 25] = [
    Fault(&["u"], "create unlogged table u (user_id bigint primary key)", &["TableKindUnsupported"]),
    Fault(
        &["child"],
        "create table base (user_id bigint); create table child (primary key (user_id)) inherits (base)",
        &["TableKindUnsupported"],
    ),
    Fault(
        &["base2"],
        "create table base2 (user_id bigint primary key); create table child2 (primary key (user_id)) inherits (base2)",
        &["TableKindUnsupported"],
    ),
    Fault(
        &["part"],
        "create table whole (user_id bigint primary key) partition by hash (user_id);
         create table part partition of whole for values with (modulus 1, remainder 0)",
        &["TableKindUnsupported"],
    ),
    Fault(
        &["visits"],
        "create table shops (id int primary key);
         create table visits (user_id bigint primary key, shop int references shops)",
        &["ForeignKeyLeavesTables"],
    ),
    Fault(
        &["people"],
        "create table people (user_id bigint primary key); create table notes (id int primary key, who bigint references people)",
        &["ForeignKeyLeavesTables"],
    ),
    // A monolith's: mended in the order in which they are told.
    Fault(
        &["carts", "lines"],
        "create table carts (user_id bigint, id int primary key);
         create table lines (user_id bigint, id int, cart int constraint to_cart references carts, primary key (user_id, id))",
        &["ForeignKeyLacksShardKey", "PrimaryKeyLacksShardKey"],
    ),
    Fault(
        &["posts"],
        "create table posts (user_id bigint, id int, answers int, primary key (user_id, id),
                             foreign key (user_id, answers) references posts)",
        &["ForeignKeyOrder"],
    ),
    Fault(&["pk"], "create table pk (user_id bigint, id int, \"Of\" int, primary key (id, \"Of\"))", &["PrimaryKeyLacksShardKey"]),
    Fault(
        &["uc"],
        "create table uc (user_id bigint primary key, a int, b int, constraint \"a and b\" unique nulls not distinct (a, b))",
        &["UniqueKeyLacksShardKey"],
    ),
    Fault(
        &["ui"],
        "create table ui (user_id bigint primary key, a text, b text); create unique index on ui (lower(a), b) where b <> 'x'",
        &["UniqueKeyLacksShardKey"],
    ),
    Fault(
        &["ux"],
        "create table ux (user_id bigint primary key, r int4range, exclude using gist (r with &&))",
        &["UniqueKeyLacksShardKey"],
    ),
    Fault(&["nothing"], "create table nothing (user_id bigint primary key); alter table nothing replica identity nothing", &["ReplicaIdentityUnusable"]),
    Fault(
        &["ri"],
        "create table ri (user_id bigint, id int not null, primary key (user_id, id), constraint ri_u unique (id)); alter table ri replica identity using index ri_u",
        &["UniqueKeyLacksShardKey", "ReplicaIdentityUnusable"],
    ),
    Fault(&["later"], "create table later (user_id bigint, id int, primary key (user_id, id) deferrable)", &["ReplicaIdentityUnusable"]),
    Fault(
        &["g"],
        "create table g (user_id bigint, a int, b int generated always as (a + 1) stored not null, primary key (user_id, b))",
        &["GeneratedColumnInIdentity"],
    ),
    Fault(&["acl"], "create table acl (user_id bigint primary key, rights aclitem[])", &["ColumnTypeUnsupported"]),
    Fault(
        &["reg"],
        "create type with_reg as (x int, r regclass); create table reg (user_id bigint primary key, inner_reg with_reg)",
        &["ColumnTypeUnsupported"],
    ),
    Fault(&["nv"], "create table nv (user_id bigint primary key, a int); alter table nv add constraint a_check check (a > 0) not valid", &["ConstraintNotValidated"]),
    Fault(&["ru"], "create table ru (user_id bigint primary key); create rule kept as on delete to ru do instead nothing", &["RuleUnsupported"]),
    Fault(
        &["always"],
        "create table always (user_id bigint primary key);
         create trigger at_all_times after insert on always for each row execute function public.noop(); alter table always enable always trigger at_all_times",
        &["TriggerFiresInApply"],
    ),
    Fault(
        &["rep"],
        "create table rep (user_id bigint primary key);
         create trigger on_replica before insert on rep for each row execute function public.noop(); alter table rep enable replica trigger on_replica;
         create trigger off after delete on rep for each row execute function public.noop(); alter table rep disable trigger off",
        &["TriggerFiresInApply"],
    ),
    Fault(
        &["gone"],
        "create table gone (user_id bigint primary key);
         create trigger told after insert or delete on gone for each row execute function public.noop()",
        &["TriggerFiresInCleanUp"],
    ),
    Fault(
        &["gone2"],
        "create table gone2 (user_id bigint primary key, a int);
         create constraint trigger told after delete on gone2 deferrable for each row when (old.a > 1) execute function public.noop();
         create trigger batch after delete on gone2 referencing old table as gone for each statement execute function public.noop()",
        &["TriggerFiresInCleanUp", "TriggerFiresInCleanUp"],
    ),
    // The last: several at once.
    Fault(
        &["bad", "worse"],
        "create unlogged table bad (user_id bigint primary key, email text unique);
         create table worse (user_id bigint primary key); alter table worse replica identity nothing",
        &["TableKindUnsupported", "UniqueKeyLacksShardKey", "ReplicaIdentityUnusable"],
    ),
];

async fn faults_of_tables_are_found_and_mended(version: Version) -> Result<()> {
    let (database, mut session) = fresh(version).await?;
    migrate(
        &mut session,
        "create function noop() returns trigger language plpgsql as 'begin return new; end'",
    )
    .await?;
    for Fault(tables, sql, expected) in MENDED {
        migrate(&mut session, sql).await?;
        let found = findings(&mut session, tables).await?;
        assert_eq!(words(&found), expected.to_vec(), "{tables:?}: {found:?}");
        mend(&database, &found).await?;
        assert_eq!(findings(&mut session, tables).await?, [], "mended: {found:?}");
    }

    let sql = "create table gf (user_id bigint primary key, a int, b int generated always as (a + 1) stored);
               alter table gf replica identity full";
    migrate(&mut session, sql).await?;
    let found = findings(&mut session, &["gf"]).await?;
    let since_18 = if version == Version::V18 { &["GeneratedColumnInIdentity"][..] } else { &[] };
    assert_eq!(words(&found), since_18);
    mend(&database, &found).await?;
    assert_eq!(findings(&mut session, &["gf"]).await?, []);

    // Those that no statement mends.
    migrate(
        &mut session,
        "create view seen as select 1::bigint as user_id; create table hashed (user_id bigint primary key) partition by hash (user_id);
         create table early (user_id bigint primary key); create table late (user_id bigint primary key references early)",
    )
    .await?;
    for (tables, expected) in [
        (&["seen"][..], &["TableKindUnsupported"][..]),
        (&["hashed"], &["TableKindUnsupported"]),
        (&["late", "early"], &["ForeignKeyOrder"]),
        (&["early", "late"], &[]),
    ] {
        let found = findings(&mut session, tables).await?;
        assert_eq!(words(&found), expected.to_vec(), "{tables:?}: {found:?}");
    }

    // A table that an administrator made.
    let mut admin = database.connect_admin().await?;
    run(&mut admin, "create schema by_hand; create table by_hand.made (user_id bigint primary key)").await?;
    let found = findings(&mut session, &["by_hand.made"]).await?;
    assert_eq!(
        words(&found),
        ["TableOwnedByOther", "PrivilegeMissing", "PrivilegeMissing", "PrivilegeMissing"]
    );
    mend(&database, &found).await?;
    assert_eq!(findings(&mut session, &["by_hand.made"]).await?, []);
    Ok(())
}

async fn row_security_is_named_and_mended(version: Version) -> Result<()> {
    // A server of its own: the role belongs to all of its databases.
    let server = Server::start(version).await?;
    let database = server.scratch_database().await?;
    let mut session = Shard::connect(&connection(&database)).await?;
    agent::install(&mut session, &membership("a")).await?;
    let sql = "create table hidden (user_id bigint primary key);
               alter table hidden enable row level security, force row level security";
    migrate(&mut session, sql).await?;
    for what in ["is forced", "hides rows from longshore_replication"] {
        let found = findings(&mut session, &["hidden"]).await?;
        assert_eq!(words(&found), ["RowSecurityUnsupported"]);
        assert!(found[0].message.contains(what), "{}", found[0]);
        mend(&database, &found).await?;
    }
    assert_eq!(findings(&mut session, &["hidden"]).await?, []);
    server.stop().await
}

/// Odd, and it moves.
const WORKS: &str = "
  create table gone (id uuid); grant insert on gone to longshore_service;
  create function noop() returns trigger language plpgsql as 'begin return new; end';
  create function tell() returns trigger language plpgsql as 'begin insert into public.gone values (old.id); return old; end';
  create type mood as enum ('fine', 'not'); create domain small as int check (value < 9); create type pair as (a small, m mood[]);
  create table works (
    user_id bigint, id uuid not null, email text, m mood default 'not', ms mood[] default '{fine,not}', p pair default row(3, '{not}'),
    r tstzrange default '[2026-01-01,)', j json default '{\"b\": 1, \"a\": 2}', x xml default '<x/>', money money default 1.5,
    doubled int generated always as (2 * 2) stored, root uuid, n bigint generated always as identity,
    primary key (id, user_id), unique (email, user_id),
    foreign key (root, user_id) references works (id, user_id) on delete cascade);
  create unique index on works (user_id, lower(email)) where m = 'fine';
  alter table works add exclude using btree (user_id with =, id with =);
  create trigger a before insert on works for each row execute function noop();
  create trigger b after update on works for each row execute function noop();
  create trigger c after delete on works for each row when (not longshore.is_clearing()) execute function tell();
  create rule also as on insert to works do also notify works;
  create table by_index (user_id bigint not null, id uuid not null, a int, unique (id, user_id));
  alter table by_index replica identity using index by_index_id_user_id_key;
  create table in_full (user_id bigint, id uuid, j json, primary key (user_id, id)); alter table in_full replica identity full;
  create table kept (user_id bigint, id uuid, a int, primary key (user_id, id));
  alter table kept add foreign key (id, user_id) references works not valid";
const WORKS_TABLES: [&str; 4] = ["works", "by_index", "in_full", "kept"];

async fn what_works_is_not_refused(version: Version) -> Result<()> {
    let (_database, mut session) = fresh(version).await?;
    migrate(&mut session, WORKS).await?;
    assert_eq!(findings(&mut session, &WORKS_TABLES).await?, []);
    if version == Version::V18 {
        migrate(
            &mut session,
            "create table newest (user_id bigint primary key, a int, twice int generated always as (a * 2) virtual,
                                  constraint unchecked check (a > 0) not enforced)",
        )
        .await?;
        assert_eq!(findings(&mut session, &["newest"]).await?, []);
        migrate(&mut session, "alter table newest add constraint filled not null a not valid").await?;
        let found = findings(&mut session, &["newest"]).await?;
        assert_eq!(words(&found), ["ConstraintNotValidated"]);
    }
    Ok(())
}

async fn what_is_not_refused_moves(version: Version) -> Result<()> {
    const OPERATION: OperationId = OperationId(1);
    let (pair, tables) = (Pair::new(version).await?, specs(&WORKS_TABLES));
    for side in [&pair.a, &pair.b] {
        migrate(&mut *side.shard.session().await?, WORKS).await?;
        side.shard.index_buckets(&tables, KeyType::Bigint, shards::BUCKETS - 1).await?;
        side.shard.register(&tables, KeyType::Bigint).await?;
    }
    let mut service = pair.a.service().await?;
    let user = user_in(3);
    for number in 1..9 {
        let id = uuid::Uuid::from_u128(number);
        let rows = format!(
            "insert into works (user_id, id, email) values ({user}, '{id}', '{number}');
             insert into by_index values ({user}, '{id}', 1); insert into in_full values ({user}, '{id}', '{{}}');
             insert into kept values ({user}, '{id}', 1)"
        );
        run(&mut service, &rows).await?;
    }
    run(&mut service, &format!("update works set root = '{}' where email > '1'", uuid::Uuid::from_u128(1)))
        .await?;
    pair.announce(OPERATION, &ranges(0, 7)).await?;
    pair.connect(OPERATION, &ranges(0, 7)).await?;
    run(
        &mut service,
        "update works set m = 'fine', money = 7; update by_index set a = 2; update in_full set j = '[1]'; update kept set a = 3;
         delete from kept where id::text like '%8'; delete from works where email = '8'; delete from in_full where id::text like '%8'",
    )
    .await?;
    pair.a.shard.hand_over(OPERATION, &pair.b.shard.name, &buckets(0, 7), 5_000).await?;
    for bucket in 0..8 {
        pair.b.await_state(bucket, "owned").await?;
    }

    // And what was left behind is deleted, of which nobody is told.
    pair.drop_forward(OPERATION).await?;
    pair.drop_reverse(OPERATION).await?;
    pair.a.shard.clear(&ranges(0, 7)).await?;
    while !pair.a.shard.observe(None, &ranges(0, 7)).await?.with_rows().is_empty() {
        pair.a.shard.clear(&ranges(0, 7)).await?;
    }
    let mut admin = pair.a.database.connect_admin().await?;
    assert_eq!(value::<i64>(&mut admin, "select count(*) from gone").await?, 1, "the service deleted one");
    let mut at_b = pair.b.database.connect_admin().await?;
    let text = "select format('%s of %s, %s deleted', count(*) filter (where money = 7::money and doubled = 4), count(*),
                              (select count(*) from gone)) from works";
    assert_eq!(value::<String>(&mut at_b, text).await?, "7 of 7, 0 deleted");
    Ok(())
}

async fn a_schema_of_the_sets_own_is_opened(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let mut session = pair.a.shard.session().await?;
    migrate(&mut session, "create schema depot; create table depot.parcels (user_id bigint primary key)")
        .await?;
    let tables = specs(&["depot.parcels"]);
    assert_eq!(preflight::tables(&mut session, &tables).await?.findings, []);
    pair.a.shard.index_buckets(&tables, KeyType::Bigint, 63).await?;
    pair.a.shard.register(&tables, KeyType::Bigint).await?;
    let text = "select has_schema_privilege('longshore_replication', 'depot', 'usage')
                   and has_schema_privilege('longshore_service', 'depot', 'usage')";
    assert!(value::<bool>(&mut session, text).await?);
    Ok(())
}

async fn a_bucket_index_must_be_the_right_one(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    let Side { shard, database } = &pair.a;
    let mut session = shard.session().await?;
    assert_eq!(preflight::bucket_indexes(&mut session, &shards::tables()).await?, []);
    // Of the right name, and of another key.
    migrate(&mut session, "drop index longshore_orders_b; create index longshore_orders_b on orders (hashint8extended(total_cents, 0))").await?;
    shard.index_buckets(&shards::tables(), KeyType::Bigint, 63).await?;
    let found = preflight::bucket_indexes(&mut session, &shards::tables()).await?;
    assert_eq!(words(&found), ["BucketIndexUnusable"]);
    mend(database, &found).await?;
    shard.index_buckets(&shards::tables(), KeyType::Bigint, 63).await?;
    assert_eq!(preflight::bucket_indexes(&mut session, &shards::tables()).await?, []);
    Ok(())
}

async fn fingerprint(session: &mut PgConnection) -> Result<String> {
    Ok(value(session, "select longshore.schema_fingerprint()").await?)
}

async fn the_fingerprint_sees_what_decides_and_nothing_else(version: Version) -> Result<()> {
    let (_database, mut unregistered) = fresh(version).await?;
    assert_eq!(fingerprint(&mut unregistered).await?, "");
    let pair = Pair::new(version).await?;
    let mut session = pair.a.shard.session().await?;
    let before = fingerprint(&mut session).await?;
    // Alike on every version, in whatever way a session shows dates.
    let text = "alter table orders add constraint recent check (created_at > '2020-01-01 00:00+00')";
    migrate(&mut session, text).await?;
    let dated = fingerprint(&mut session).await?;
    assert_eq!(dated, "76b469bcf44ee5aac6b9257bf711e717");
    run(&mut session, "set timezone = 'Asia/Tokyo'; set datestyle = german").await?;
    assert_eq!(fingerprint(&mut session).await?, dated);
    migrate(&mut session, "alter table orders drop constraint recent").await?;
    assert_eq!(fingerprint(&mut session).await?, before);

    // Each is seen, and seen to be gone.
    migrate(
        &mut session,
        "create function noop() returns trigger language plpgsql as 'begin return new; end'",
    )
    .await?;
    for (change, back) in [
        ("add note text", "drop note"),
        ("alter status type varchar(20)", "alter status type text"),
        ("alter status type text collate \"POSIX\"", "alter status type text"),
        ("alter status drop not null", "alter status set not null"),
        ("add check (total_cents < 1000)", "drop constraint orders_total_cents_check1"),
        ("add constraint one unique (user_id, total_cents)", "drop constraint one"),
        ("add constraint child foreign key (user_id, order_id) references orders", "drop constraint child"),
        ("add twice bigint generated always as (total_cents * 2) stored", "drop twice"),
        ("replica identity full", "replica identity default"),
    ] {
        migrate(&mut session, &format!("alter table orders {change}")).await?;
        assert_ne!(fingerprint(&mut session).await?, before, "{change}");
        migrate(&mut session, &format!("alter table orders {back}")).await?;
        assert_eq!(fingerprint(&mut session).await?, before, "{back}");
    }
    for (change, back) in [
        (
            "create trigger t before insert on orders for each row execute function noop()",
            "drop trigger t on orders",
        ),
        ("create unique index once on orders (user_id, lower(status))", "drop index once"),
        (
            "create table elsewhere (user_id bigint, id uuid, foreign key (user_id, id) references orders)",
            "drop table elsewhere",
        ),
    ] {
        migrate(&mut session, change).await?;
        assert_ne!(fingerprint(&mut session).await?, before, "{change}");
        migrate(&mut session, back).await?;
        assert_eq!(fingerprint(&mut session).await?, before, "{back}");
    }
    // What decides nothing: order of columns, names, defaults, other indexes, the agent's own.
    migrate(
        &mut session,
        "alter table orders add again bigint; update orders set again = total_cents; alter table orders drop total_cents;
         alter table orders rename again to total_cents;
         alter table orders alter total_cents set not null, add constraint other_name check (total_cents >= 0), alter status set default 'created';
         create index more on orders (created_at); alter index orders_pkey rename to other_pkey; alter table orders set (fillfactor = 50)",
    )
    .await?;
    assert_eq!(fingerprint(&mut session).await?, before);
    Ok(())
}

async fn facts(pair: &Pair) -> Result<BTreeMap<longshore_sharding::ShardName, preflight::Facts>> {
    let mut facts = BTreeMap::new();
    for side in [&pair.a, &pair.b] {
        let mut session = side.shard.session().await?;
        facts.insert(side.shard.name.clone(), preflight::facts(&mut session).await?);
    }
    Ok(facts)
}

async fn the_first_difference_of_two_shards_is_mended(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    assert_eq!(preflight::compare(&facts(&pair).await?), []);
    let mut at_a = pair.a.shard.session().await?;
    migrate(&mut at_a, "create function noop() returns trigger language plpgsql as 'begin return new; end'")
        .await?;
    migrate(
        &mut *pair.b.shard.session().await?,
        "create function noop() returns trigger language plpgsql as 'begin return new; end'",
    )
    .await?;
    migrate(
        &mut at_a,
        "alter table orders add note varchar(9) not null default '', add check (total_cents < 1000), add unique (user_id, total_cents);
         create unique index on orders (user_id, lower(status)) where version > 1;
         create trigger t before insert on orders for each row execute function noop();
         alter table order_events add foreign key (user_id, order_id) references orders",
    )
    .await?;
    let mut mended = 0;
    while let Some((shard, finding)) = preflight::compare(&facts(&pair).await?).into_iter().next() {
        assert_eq!((shard, finding.reason), (pair.b.shard.name.clone(), Reason::SchemaDiffers), "{finding}");
        assert!(finding.message.starts_with("shard a has what is not here: order"), "{finding}");
        mend(&pair.b.database, &[finding]).await?;
        mended += 1;
        assert!(mended < 10);
    }
    assert_eq!(mended, 6);
    migrate(&mut at_a, "alter table orders alter note type text").await?;
    let found = preflight::compare(&facts(&pair).await?);
    let told: Vec<String> = found.iter().map(|(shard, finding)| format!("{shard}: {finding}")).collect();
    assert_eq!(
        told,
        [
            "b: orders: column note character varying(9) NOT NULL here, and orders: column note text NOT NULL at shard a"
        ]
    );
    migrate(&mut *pair.b.shard.session().await?, "alter table orders alter note type text").await?;
    migrate(&mut *pair.b.shard.session().await?, "alter table orders add only_here int").await?;
    let found = preflight::compare(&facts(&pair).await?);
    assert_eq!(found[0].0, shard_name("a"), "{found:?}");
    Ok(())
}

async fn shared_sequences_are_found(version: Version) -> Result<()> {
    let pair = Pair::new(version).await?;
    for side in [&pair.a, &pair.b] {
        let sql = "alter table orders add by_default bigserial, add identity bigint generated by default as identity, add told bigserial;
                   alter table orders add unique (user_id, by_default), add unique (user_id, identity)";
        migrate(&mut *side.shard.session().await?, sql).await?;
    }
    let found = preflight::compare(&facts(&pair).await?);
    let told = |(shard, finding): &(longshore_sharding::ShardName, Finding)| {
        let column = finding.message.split(' ').next().unwrap_or_default().to_owned();
        (shard.to_string(), column, finding.refuses)
    };
    let all: Vec<_> = found.iter().map(told).collect();
    let expected = [("orders.by_default", true), ("orders.identity", true), ("orders.told", false)];
    assert_eq!(all, expected.map(|(column, refuses)| ("b".to_owned(), column.to_owned(), refuses)));
    // Either way of mending: sequences that step over each other, or none.
    for (side, start) in [(&pair.a, 1), (&pair.b, 2)] {
        let sql = format!("alter sequence orders_by_default_seq increment by 64 start with {start} restart");
        migrate(&mut *side.shard.session().await?, &sql).await?;
    }
    let left = preflight::compare(&facts(&pair).await?);
    assert_eq!(left.iter().map(told).collect::<Vec<_>>(), all[1..]);
    let findings: Vec<Finding> = left.into_iter().map(|(_, finding)| finding).collect();
    mend(&pair.b.database, &findings).await?;
    assert_eq!(preflight::compare(&facts(&pair).await?), []);
    Ok(())
}

async fn a_missing_extension_is_named(version: Version) -> Result<()> {
    let (having, mut session) = fresh(version).await?;
    let (lacking, mut other) = fresh(version).await?;
    let mut admin = having.connect_admin().await?;
    run(&mut admin, "create extension citext; create extension hstore; create extension pg_trgm").await?;
    let sql = "create table people (user_id bigint primary key, email citext, tags hstore[]); create index on people (lower(email))";
    migrate(&mut session, sql).await?;
    let found = preflight::extensions_missing(&mut session, &mut other, &specs(&["people"])).await?;
    assert_eq!(words(&found), ["ExtensionMissing", "ExtensionMissing"], "{found:?}");
    mend(&lacking, &found).await?;
    assert_eq!(preflight::extensions_missing(&mut session, &mut other, &specs(&["people"])).await?, []);
    migrate(&mut other, sql).await
}
