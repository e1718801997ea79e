//! Recording proxies between the operator and what it acts on: a shard's server, a Kafka broker, the API server.
//!
//! All traffic passes untouched, but what the operator *does* (anything but reading) is told to the one
//! [`Recorder`] of a run, which may answer with a [`Fault`]: the operator is to die before, after or while this
//! very action is answered. The proxies know when an effect is committed; whoever drives the run kills.
//!
//! Invariant: between a fault and the operator's death nothing more of it passes.

mod apiserver;
mod kafka;
mod postgres;
mod recorder;
mod session;
mod statement;
mod wire;

pub use apiserver::ApiProxy;
pub use kafka::KafkaProxy;
pub use postgres::{Line, PostgresProxy};
pub use recorder::{Aim, Fault, Recorded, Recorder};
