//! How fast topics are made, looked at and changed: by the operator for two KafkaTopicSets, by one batched request (the limit) and by
//! a plain loop, all on the same brokers.
//!
//! Each ends where the same is seen, since brokers do what they have promised some time after their answer: topics are made when every
//! replica has its folder, and altered when a broker tells so of them.

mod client;
mod sets;

use std::{fmt, time::Duration};

use anyhow::Result;
use serde::Serialize;

use self::{client::Plain, sets::Sets};
use super::Timing;
use crate::{apiserver::ApiServer, kafka::Cluster, progress::Progress, shop::binaries::Binaries};

/// What is hoped for: not more than so many times the limit, and so many seconds.
const CREATE_RATIO_GOAL: f64 = 1.3;
const RESYNC_SECONDS_GOAL: f64 = 5.0;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct TopicsOptions {
    /// Half of them in each set; one partition each, with three replicas.
    pub topics: usize,
    /// How often each way is measured; the median counts.
    pub rounds: usize,
}

/// The result.
#[derive(Clone, Debug, Serialize)]
pub struct TopicsReport {
    /// From two sets applied to every replica on disk, and their status saying that all is as declared.
    pub create: Figure,
    /// From an edit that changes no topic to both statuses speaking of it.
    pub resync: Figure,
    /// From another retention for all topics to both statuses speaking of it.
    pub alter: Figure,
    /// The operator's resident memory at the end, and the largest it ever was.
    pub rss_mib: f64,
    pub peak_rss_mib: f64,
    /// How to measure again.
    pub command: String,
}

/// One kind of work, done in three ways.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub topics: usize,
    /// The operator's median.
    pub seconds: f64,
    pub ratio_to_batch_limit: f64,
    pub ratio_to_sequential: f64,
    pub operator: Timing,
    /// One request for all topics.
    pub batch_limit: Timing,
    /// One request for each topic, one after the other.
    pub sequential: Timing,
}

/// What one way took in each round.
#[derive(Debug, Default)]
struct Taken {
    create: Vec<Duration>,
    resync: Vec<Duration>,
    alter: Vec<Duration>,
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Batch,
    Sequential,
    Operator,
}

/// Measures.
pub async fn run(options: &TopicsOptions) -> Result<TopicsReport> {
    let binaries = Binaries::build().await?;
    let (cluster, server) = tokio::try_join!(Cluster::start(), ApiServer::start())?;
    let sets = Sets::new(&server, &binaries, cluster.bootstrap()).await?;
    let operator = sets.start_operator(&server, &binaries)?;
    let plain = Plain::new(&cluster)?;
    let [mut batch, mut sequential, mut operated] = [(); 3].map(|()| Taken::default());
    for round in 0..options.rounds {
        let mut ways = [Way::Batch, Way::Sequential, Way::Operator];
        // Whoever comes first in a round meets quieter brokers: each does in its turn.
        ways.rotate_left(round % 3);
        for way in ways {
            let progress = Progress::of_words(format!("round {} of {}: {way:?}", round + 1, options.rounds));
            let prefix = format!("bench-{round}-{way:?}").to_lowercase();
            let names: Vec<String> = (0..options.topics).map(|number| format!("{prefix}-{number}")).collect();
            match way {
                Way::Batch => batch.add(plain.run(&names, names.len()).await?),
                Way::Sequential => sequential.add(plain.run(&names, 1).await?),
                Way::Operator => operated.add(sets.run(&operator, &names, &plain).await?),
            }
            plain.delete(&names).await?;
            progress.done();
        }
    }
    let memory = |field| operator.id().memory_kib(field).map_or(f64::NAN, |kib| kib as f64 / 1024.0);
    let figure = |of: fn(&Taken) -> &[Duration]| {
        Figure::new(options.topics, [&operated, &batch, &sequential].map(|taken| Timing::new(of(taken))))
    };
    Ok(TopicsReport {
        create: figure(|taken| &taken.create),
        resync: figure(|taken| &taken.resync),
        alter: figure(|taken| &taken.alter),
        rss_mib: memory("VmRSS"),
        peak_rss_mib: memory("VmHWM"),
        command: format!("cargo xtask bench topics --topics {} --rounds {}", options.topics, options.rounds),
    })
}

impl Taken {
    /// One round.
    fn add(&mut self, [create, resync, alter]: [Duration; 3]) {
        self.create.push(create);
        self.resync.push(resync);
        self.alter.push(alter);
    }
}

impl Figure {
    fn new(topics: usize, [operator, batch_limit, sequential]: [Timing; 3]) -> Self {
        Self {
            topics,
            seconds: operator.seconds,
            ratio_to_batch_limit: operator.seconds / batch_limit.seconds,
            ratio_to_sequential: operator.seconds / sequential.seconds,
            operator,
            batch_limit,
            sequential,
        }
    }
}

impl fmt::Display for TopicsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { create, resync, alter, .. } = self;
        writeln!(
            f,
            "{} topics in two sets, medians of {} rounds",
            create.topics,
            create.operator.each.len()
        )?;
        writeln!(f, "         operator   one request   one by one   of the limit   of the loop")?;
        for (name, figure) in [("create", create), ("resync", resync), ("alter", alter)] {
            writeln!(
                f,
                "{name:7} {:7.2} s     {:7.2} s    {:7.2} s   {:10.2} ×   {:9.2} ×",
                figure.seconds,
                figure.batch_limit.seconds,
                figure.sequential.seconds,
                figure.ratio_to_batch_limit,
                figure.ratio_to_sequential
            )?;
        }
        writeln!(f, "the operator takes {:.1} MiB, {:.1} at its most", self.rss_mib, self.peak_rss_mib)?;
        let met = |is_met: bool| if is_met { "met" } else { "MISSED" };
        writeln!(
            f,
            "goals: create at most {CREATE_RATIO_GOAL} × the limit: {}; resync within {RESYNC_SECONDS_GOAL} s: {}",
            met(create.ratio_to_batch_limit <= CREATE_RATIO_GOAL),
            met(resync.seconds <= RESYNC_SECONDS_GOAL)
        )
    }
}
