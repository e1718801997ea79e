//! An open-loop load on one address: a request each so often, whatever becomes of those before.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval},
};

const DEADLINE: Duration = Duration::from_secs(10);
/// What is kept of failures, for a person.
const ERRORS_MAX: usize = 5;

/// Under way until it is ended.
pub(super) struct Load {
    stop: watch::Sender<bool>,
    running: JoinSet<Counts>,
}

/// What became of it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Counts {
    pub(super) attempted: u64,
    pub(super) failed: u64,
    pub(super) slowest_ms: u64,
    pub(super) errors: Vec<String>,
}

impl Load {
    /// `rate` requests a second: half of them on connections that are kept, half on new ones.
    pub(super) fn start(url: &str, rate: f64) -> Result<Self> {
        let builder = || reqwest::Client::builder().timeout(DEADLINE);
        let clients = [builder().build()?, builder().pool_max_idle_per_host(0).build()?];
        let (stop, mut stopped) = watch::channel(false);
        let url = url.to_owned();
        let mut running = JoinSet::new();
        running.spawn(async move {
            let (mut counts, mut requests) = (Counts::default(), JoinSet::new());
            let mut ticks = interval(Duration::from_secs_f64(1.0 / rate));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for client in clients.iter().cycle() {
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = stopped.changed() => break,
                }
                counts.attempted += 1;
                requests.spawn(ask(client.clone(), url.clone()));
                while let Some(done) = requests.try_join_next() {
                    counts.add(done);
                }
            }
            while let Some(done) = requests.join_next().await {
                counts.add(done);
            }
            counts
        });
        Ok(Self { stop, running })
    }

    /// No more requests; what became of all.
    pub(super) async fn end(mut self) -> Result<Counts> {
        self.stop.send_replace(true);
        let counts = self.running.join_next().await.transpose()?;
        Ok(counts.unwrap_or_default())
    }
}

async fn ask(client: reqwest::Client, url: String) -> (Duration, Result<(), String>) {
    let started = Instant::now();
    let answer = async { client.get(&url).send().await?.error_for_status()?.bytes().await };
    let result = answer.await.map(drop).map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        text
    });
    (started.elapsed(), result)
}

impl Counts {
    fn add(&mut self, done: Result<(Duration, Result<(), String>), JoinError>) {
        let (took, result) = done.unwrap_or_else(|error| (Duration::ZERO, Err(error.to_string())));
        self.slowest_ms = self.slowest_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        if let Err(error) = result {
            self.failed += 1;
            if self.errors.len() < ERRORS_MAX {
                self.errors.push(error);
            }
        }
    }
}
