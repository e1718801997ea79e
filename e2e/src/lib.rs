//! The harness: real servers on this machine for tests, the demo and `cargo xtask`.
//!
//! Bottom up: [`settings`] (what the environment says), [`run_folder`] (where a run keeps its files, and
//! what ends it), [`process`] (one child process), [`awaiting`] (the one way to wait), [`progress`],
//! [`parts`] (what is fetched or built once), then the servers: [`postgres`], [`apiserver`], and the
//! whole [`shop`]. The [`demo`] drives a shop and lets the checker judge it.
//!
//! Invariant: nothing a harness started outlives it, however the harness ended.

pub mod apiserver;
pub mod awaiting;
pub mod demo;
pub mod free_port;
pub mod parts;
pub mod postgres;
pub mod process;
pub mod progress;
pub mod run_folder;
pub mod settings;
pub mod shop;
