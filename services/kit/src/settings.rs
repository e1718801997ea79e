//! Groups of settings that a service flattens into its own clap struct; each flag is also an environment
//! variable. Nothing else in the kit reads the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, value_parser};

use crate::shards::Endpoint;

/// Where the HTTP server listens.
#[derive(Debug, Clone, Args)]
pub struct ServerSettings {
    /// Address to serve HTTP on
    #[arg(long, env = "LISTEN", default_value = "127.0.0.1:3003", value_name = "ADDRESS")]
    pub listen: SocketAddr,
}

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
pub struct TelemetrySettings {
    /// Shape of the log lines
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,

    /// Which events are logged, as tracing directives
    #[arg(long = "log", env = "RUST_LOG", default_value = "info", value_name = "DIRECTIVES")]
    pub log_filter: String,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, for collectors
    Json,
    /// Lines for people
    Text,
}

/// How the shards are found and used.
#[derive(Debug, Clone, Args)]
pub struct ShardSettings {
    /// Shards to ask for the others, as HOST:PORT/DBNAME; one that answers is enough
    #[arg(long, env = "SHARD_SEEDS", value_delimiter = ',', required = true, value_name = "SEED,...")]
    pub shard_seeds: Vec<Endpoint>,

    /// Directory with the files `username`, `password` and maybe `ca.crt`: read again all the time, as they may be rotated
    #[arg(long, env = "CREDENTIALS_DIR", value_name = "DIR")]
    pub credentials_dir: PathBuf,

    /// Whether connections to shards are encrypted and what a server has to prove; verify-full if there is a `ca.crt`, else
    /// prefer
    #[arg(long, env = "SHARD_SSLMODE", value_enum, value_name = "MODE")]
    pub shard_sslmode: Option<SslMode>,

    /// Most connections to one shard, the one for notifications not counted
    #[arg(long, env = "POOL_SIZE", default_value_t = 8, value_parser = value_parser!(u32).range(1..=1000))]
    pub pool_size: u32,

    /// How long a request may wait for a bucket's owner, in milliseconds
    #[arg(long, env = "SHARD_DEADLINE_MS", default_value_t = 10_000, value_parser = value_parser!(u64).range(1..=600_000))]
    pub shard_deadline_ms: u64,
}

/// Encryption and what a server has to prove, in libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SslMode {
    /// In the clear
    Disable,
    /// Encrypted if the server can
    Prefer,
    /// Encrypted, whoever the server is
    Require,
    /// A certificate of a known authority
    VerifyCa,
    /// A certificate of a known authority, for the host that was asked for
    VerifyFull,
}

impl ShardSettings {
    /// How long a request may wait for a bucket's owner.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.shard_deadline_ms)
    }
}
