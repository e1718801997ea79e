//! A shop that nobody uses, on servers that do nothing of their own: what happens in it the operator does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use checker::{Preload, Store};
use serde_json::json;

use crate::{
    postgres::{Server, Version},
    progress::Progress,
    proxy::Recorder,
    shop::{Shop, ShopOptions, shard_names},
};

/// Shards at the start, and after [`add_shard`].
pub(super) const FROM: usize = 3;
pub(super) const TO: usize = 4;
/// For all rows to move, however many.
pub(super) const DEADLINE: Duration = Duration::from_secs(1_800);
const SETTINGS: [(&str, &str); 1] = [("autovacuum", "off")];

/// The set is converged, and holds the orders.
pub(super) async fn start(buckets: u32, orders: u64, recorder: Option<Arc<Recorder>>) -> Result<Shop> {
    let progress = Progress::of_words(format!("starting a shop with {FROM} shards"));
    let names = shard_names(TO);
    let mut servers = Vec::new();
    for _ in &names {
        servers.push(Arc::new(Server::start_with(Version::V17, &SETTINGS).await?));
    }
    let (shards, spare) = names.split_at(FROM);
    let shop = Shop::start(ShopOptions {
        buckets,
        shards: shards.to_vec(),
        spare: spare.to_vec(),
        rebalance: json!({}),
        recorder,
        servers,
        ..ShopOptions::default()
    })
    .await?;
    let stores = shop.databases().into_iter().take(FROM);
    let stores: Vec<Store> = stores.map(|(name, database)| Store::new(name, database.admin_url())).collect();
    Preload { orders, buckets, ..Preload::default() }.fill(&stores).await?;
    progress.done();
    Ok(shop)
}

/// How long it took from the edit until the set was converged.
pub(super) async fn add_shard(shop: &Shop) -> Result<Duration> {
    let (started, progress) = (Instant::now(), Progress::of_words(format!("{FROM} → {TO} shards")));
    shop.set().set_shards(&shard_names(TO)).await?;
    let moved = shop.await_converged(DEADLINE).await;
    progress.done();
    moved.map(|()| started.elapsed())
}
