//! The harness: real servers on this machine for tests, the demo and `cargo xtask`.
//!
//! Bottom up: [`settings`] (what the environment says), [`run_folder`] (where a run keeps its files, and
//! what ends it), [`process`] (one child process), [`awaiting`] (the one way to wait), [`progress`],
//! [`parts`] (what is fetched or built once), [`authority`] (who signs certificates), then the servers: [`postgres`], [`apiserver`], [`kafka`],
//! and the whole [`shop`], with [`proxy`] between the operator and all that it acts on. A [`trial`] puts a shop under load and
//! lets the checker judge it; the [`demo`] shows one operation, the [`chain`] hits its operator at each action in
//! turn, the [`sweep`] at one action a run, [`faults`] are about all else that dies, the [`soak`] mixes all of it for hours;
//! [`bench`] measures; [`mutants`] try the tests themselves.
//!
//! Invariant: nothing a harness started outlives it, however the harness ended.

pub mod apiserver;
pub mod authority;
pub mod awaiting;
pub mod bench;
pub mod chain;
pub mod charts;
pub mod demo;
pub mod faults;
pub mod fleet;
pub mod free_port;
pub mod images;
pub mod kafka;
pub mod keeper;
pub mod mutants;
pub mod node;
pub mod operator;
pub mod ordeal;
pub mod parts;
pub mod pauses;
pub mod pods;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod proxy;
pub mod run_folder;
pub mod settings;
pub mod shop;
pub mod soak;
pub mod sweep;
pub mod trial;
