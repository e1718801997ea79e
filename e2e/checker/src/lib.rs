//! An independent client and judge. It asks an order service for things, writes down durably what it is
//! about to ask *before* it asks, and at the end reads the shards directly and looks for lies.
//!
//! It shares no code with the system under test: no router, no bucket arithmetic, no order-id code. Where it
//! needs a bucket it asks PostgreSQL's own hash in SQL. A time-out is "indeterminate", never "failed, so not
//! stored". A run in which nothing was acknowledged is invalid, not green.
//!
//! ```no_run
//! # use checker::*; use std::{path::PathBuf, time::Duration};
//! # async fn run(url_a: String, url_b: String) -> Result<(), Box<dyn std::error::Error>> {
//! let stores = vec![Store::new("a", url_a), Store::new("b", url_b)]; // administrators' URLs of every shard
//! let preload = Preload { orders: 100_000, users: 10_000, buckets: 4096, ..Preload::default() };
//! preload.fill(&stores[..1]).await?; // each order goes where its bucket is owned
//!
//! let path = PathBuf::from("history.jsonl");
//! let history = History::create(&path)?;
//! let sampler = OwnershipSampler::start(stores.clone(), Duration::from_millis(250));
//! let load = Load::start(
//!     LoadOptions {
//!         targets: vec!["http://127.0.0.1:3003".to_owned()],
//!         orders_per_second: 200.0,
//!         users: preload.users,
//!         preloaded: preload.sample(&stores[0], 5_000).await?,
//!         ..LoadOptions::default()
//!     },
//!     history.clone(),
//! )?;
//! load.set_phase(Phase::During);
//! println!("{:?}", load.snapshot());
//! let summary = load.stop().await?; // no new arrivals; waits for what is in flight
//! let ownership = sampler.stop().await;
//! history.close().await?;
//!
//! let case = Case { history: path, stores, buckets: 4096, preload: Some(preload), ownership: Some(ownership), complete: true };
//! let verdict = judge(&case).await?;
//! assert!(verdict.is_green(), "{verdict:?} {summary:?}");
//! # Ok(()) }
//! ```
//!
//! | module | owns | must not |
//! |---|---|---|
//! | [`history`] | the log of intents and outcomes, one clock | interpret it |
//! | [`bypass`] | writers that know no router | read an error's text |
//! | [`load`] | open-loop arrivals, the client with its retries, latency | look into the stores |
//! | [`preload`] | deterministic orders written in bulk | keep a log: the seed is the log |
//! | [`ownership`] | who was ever seen owning a bucket | decide what a violation means for orders |
//! | [`mod@judge`] | the verdict | write to a store |

pub mod bypass;
pub mod history;
pub mod judge;
pub mod load;
pub mod ownership;
pub mod preload;
mod store;

pub use bypass::{Bypass, BypassOptions, BypassSummary};
pub use history::{History, HistoryError};
pub use judge::{Case, Invariant, JudgeError, OrderFaults, Verdict, inspect, judge};
pub use load::{Counts, Kind, Latency, Load, LoadError, LoadOptions, Mix, Phase, Snapshot, Summary};
pub use ownership::{OwnershipReport, OwnershipSampler};
pub use preload::{Preload, PreloadError, PreloadReport, PreloadedOrder};
pub use store::{Store, StoreError};
