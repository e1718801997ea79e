//! The harness's own promise: a PostgreSQL server that starts, crashes, comes back and lets the roles in.

use anyhow::Result;
use e2e::{
    bench::copy::{self, CopyOptions},
    postgres::{Role, Server, Version},
};
use sqlx::{Connection as _, Row as _};

async fn version_answers(version: Version, expected: i32) -> Result<()> {
    let database = Server::shared(version).await?.scratch_database().await?;
    let mut connection = database.connect(Role::Operator).await?;
    let row = sqlx::query(
        "select current_setting('server_version_num')::int / 10000, current_setting('wal_level')",
    )
    .fetch_one(&mut connection)
    .await?;
    assert_eq!(row.try_get::<i32, _>(0)?, expected);
    assert_eq!(row.try_get::<String, _>(1)?, "logical");
    Ok(())
}

#[tokio::test]
async fn postgres_16_answers() -> Result<()> {
    version_answers(Version::V16, 16).await
}

#[tokio::test]
async fn postgres_17_answers() -> Result<()> {
    version_answers(Version::V17, 17).await
}

#[tokio::test]
async fn postgres_18_answers() -> Result<()> {
    version_answers(Version::V18, 18).await
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_crash() -> Result<()> {
    let server = Server::start(Version::V17).await?;
    let database = server.scratch_database().await?;
    let mut connection = database.connect_admin().await?;
    sqlx::raw_sql("create table kept (id int); insert into kept values (42)")
        .execute(&mut connection)
        .await?;
    server.kill9().await?;
    assert!(connection.ping().await.is_err(), "the connection died with the server");
    server.start_again().await?;
    let mut connection = database.connect_admin().await?;
    let row = sqlx::query("select id from kept").fetch_one(&mut connection).await?;
    assert_eq!(row.try_get::<i32, _>(0)?, 42);
    server.stop().await?;
    assert!(database.connect_admin().await.is_err());
    Ok(())
}

#[tokio::test]
async fn settings_can_be_overridden_and_a_wrong_password_is_refused() -> Result<()> {
    let server = Server::start_with(Version::V17, &[("wal_level", "replica")]).await?;
    let database = server.database("orders").await?;
    let mut connection = database.connect(Role::Service).await?;
    let row = sqlx::query("show wal_level").fetch_one(&mut connection).await?;
    assert_eq!(row.try_get::<String, _>(0)?, "replica");
    let wrong = database.url(Role::Service).replace(database.password(Role::Service), "wrong");
    assert!(sqlx::PgConnection::connect(&wrong).await.is_err());
    Ok(())
}

/// Not for its figures: that both ways still bring every row.
#[tokio::test]
async fn the_copy_benchmark_runs() -> Result<()> {
    let settings = vec![("max_wal_size".to_owned(), "1GB".to_owned())];
    let report = copy::run(&CopyOptions { orders: 400, rounds: 2, pipes: 2, settings }).await?;
    assert!(report.rows > 400 && report.bytes > 40 * report.rows, "{report:?}");
    assert_eq!((report.subscription.each.len(), report.pipe.each.len()), (2, 2));
    assert!((report.ratio - report.pipe.seconds / report.subscription.seconds).abs() < 1e-9);
    Ok(())
}
