//! What every service of the shop stands on: settings, telemetry, problem details, the HTTP server and the
//! shard router. It knows nothing of any one service, and nothing of Kubernetes.

pub mod extract;
pub mod problem;
pub mod server;
pub mod settings;
pub mod shards;
pub mod telemetry;

pub use problem::Problem;
pub use server::run;

/// Of every service. A burst of requests takes memory for a moment; glibc's allocator would keep it for good. Its settings are
/// in .cargo/config.toml.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
