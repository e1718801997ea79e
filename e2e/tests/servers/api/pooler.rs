//! A whole shop behind poolers: rows move, a pooler gets another address meanwhile, and no request fails.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use e2e::{
    awaiting::await_condition,
    postgres::Pooler,
    shop::{Shop, ShopOptions, shard_names},
    trial::{Score, Trial, TrialOptions},
};

const TRIAL: TrialOptions = TrialOptions { rate: 20.0, preload: 500, buckets: 64, users: 500, seed: 1 };
const DEADLINE: Duration = Duration::from_secs(180);

/// Returns when services have come to a pooler, or have left it.
async fn await_clients(pooler: &Pooler, some: bool) -> Result<()> {
    let as_wanted = async || pooler.client_ports().await.ok().filter(|ports| ports.is_empty() != some);
    let what = if some { "services to come to a pooler" } else { "services to leave a pooler" };
    await_condition(what, DEADLINE, as_wanted).await.map(|_: BTreeSet<u16>| ())
}

#[tokio::test]
async fn a_pooler_gets_another_address_while_rows_move() -> Result<()> {
    let names = shard_names(2);
    let (shards, spare) = (names[..1].to_vec(), names[1..].to_vec());
    let options =
        ShopOptions { buckets: TRIAL.buckets, shards, spare, pooler: true, ..ShopOptions::default() };
    let mut shop = Shop::start(options).await?;
    let trial = Trial::start(&shop, 1, &TRIAL).await?;
    await_clients(shop.pooler("a")?, true).await?;

    shop.set().set_shards(&names).await?;
    let begun = async || shop.set().status().await.ok()?.operation();
    await_condition("the operation to have begun", DEADLINE, begun).await?;
    let former = shop.move_pooler("a").await?;
    await_clients(&former, false).await?;
    former.kill9().await?;
    shop.await_converged(DEADLINE).await?;
    for name in &names {
        await_clients(shop.pooler(name)?, true).await?;
    }
    // Once more, where nothing else goes on.
    let former = shop.move_pooler("b").await?;
    await_clients(&former, false).await?;
    former.kill9().await?;
    await_clients(shop.pooler("b")?, true).await?;

    shop.await_converged(DEADLINE).await?;
    let (summary, verdict) = trial.end().await?;
    let score = Score::new(&summary, verdict);
    println!("{score}");
    assert_eq!(score.faults(false), Vec::<String>::new());
    Ok(())
}
