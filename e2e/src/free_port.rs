//! Free ports on 127.0.0.1.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use rand::RngExt as _;

/// Below the range from which outgoing connections take their ports: a server that is killed and started
/// again must find its port still free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const TRIES: usize = 1_000;

/// A port nobody listens on, and not given out before by this process.
pub fn free_port() -> Result<u16> {
    static GIVEN_OUT: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given_out = GIVEN_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let given_out = given_out.get_or_insert_default();
    (0..TRIES)
        .map(|_| rand::rng().random_range(PORTS))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok() && given_out.insert(*port))
        .context("found no free port on 127.0.0.1")
}
