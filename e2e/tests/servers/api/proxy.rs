//! The recording proxies: an operator that dies at the commit point, before it and right after it, loses nothing.

use std::sync::Arc;

use anyhow::Result;
use e2e::{
    chain::{LEASE_SECONDS, operate},
    keeper::Keeper,
    postgres::{Server, Version},
    proxy::{Aim, Fault, Recorded, Recorder},
    shop::{Shop, ShopOptions, shard_names},
    trial::{Score, Trial, TrialOptions},
};

const BUCKETS: u32 = 64;
const TRIAL: TrialOptions = TrialOptions { rate: 20.0, preload: 500, buckets: BUCKETS, users: 500, seed: 1 };

/// One shard becomes two, on one server, with the operator hit at its first hand_over.
async fn hit_at_the_first_hand_over(server: &Arc<Server>, fault: Fault) -> Result<()> {
    let recorder = Arc::new(Recorder::default());
    let names = shard_names(2);
    let (before, spare) = names.split_at(1);
    let mut shop = Shop::start(ShopOptions {
        buckets: BUCKETS,
        shards: before.to_vec(),
        spare: spare.to_vec(),
        lease_seconds: Some(LEASE_SECONDS),
        recorder: Some(Arc::clone(&recorder)),
        servers: vec![Arc::clone(server), Arc::clone(server)],
        ..ShopOptions::default()
    })
    .await?;
    let trial = Trial::start(&shop, 1, &TRIAL).await?;
    recorder.aim(Aim::FirstHandOver(fault));
    let mut keeper = Keeper::new("one shard becomes two");
    operate(&mut shop, &recorder, &trial, &mut keeper, (before, &names), false).await?;
    let (summary, verdict) = trial.end().await?;
    assert_eq!(Score::new(&summary, verdict).faults(false), Vec::<String>::new());

    let actions = recorder.actions();
    let hit: Vec<&Recorded> = actions.iter().filter(|action| action.fault.is_some()).collect();
    let committed = (fault != Fault::Before).then_some(true);
    assert_eq!(hit.len(), 1, "{hit:?}");
    assert_eq!((hit[0].kind.as_str(), hit[0].fault, hit[0].committed), ("hand_over", Some(fault), committed));
    assert_eq!(keeper.kills, u64::from(fault != Fault::Cut));
    if fault != Fault::Cut {
        let last_of_the_dead = actions.iter().position(|action| action.fault.is_some()).unwrap_or_default();
        let next = actions.get(last_of_the_dead + 1).map(|action| action.kind.as_str());
        assert_eq!(next, Some("lease"), "nothing of a doomed operator passes; the next one begins so");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_when_the_operator_dies_at_the_commit_point() -> Result<()> {
    let server = Arc::new(Server::start(Version::V17).await?);
    for fault in [Fault::Before, Fault::Lost, Fault::Cut] {
        hit_at_the_first_hand_over(&server, fault).await?;
    }
    Ok(())
}
