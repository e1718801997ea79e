//! Everything that lets the product in is rotated while rows move: nothing fails, and nothing restarts.

use std::time::Duration;

use anyhow::Result;
use e2e::{
    faults::{self, FaultOptions},
    trial::TrialOptions,
};

const TRIAL: TrialOptions = TrialOptions { rate: 15.0, preload: 500, buckets: 64, users: 500, seed: 1 };

async fn passes(name: &str) -> Result<()> {
    let options = FaultOptions { trial: TRIAL, lasting: Duration::ZERO };
    for scenario in faults::chosen(&[name.to_owned()])? {
        let report = faults::run(&scenario, &options).await?;
        assert_eq!(report.faults(), Vec::<String>::new(), "{report}");
    }
    Ok(())
}

#[tokio::test]
async fn passwords_change_while_buckets_are_handed_over() -> Result<()> {
    passes("passwords-rotated-handing-over").await
}

#[tokio::test]
async fn the_authority_changes_while_rows_are_copied() -> Result<()> {
    passes("authority-rotated-copying").await
}
