//! The shard router: which shard a bucket's statements go to, and what to do when the answer is "not here".
//!
//! The shards are the truth and check every statement themselves; what is remembered here is a hint. A stale
//! map costs a retry, never correctness. `map`, `directory`, `decision` and the classification in `errors` are
//! pure; `store` holds the SQL; the rest does the I/O.

mod connections;
mod core;
mod credentials;
mod decision;
mod directory;
mod endpoint;
mod errors;
mod health;
mod listener;
mod map;
mod retry;
mod router;
mod scatter;
mod store;
mod survey;

pub use credentials::CredentialsError;
pub(crate) use endpoint::Addresses;
pub use endpoint::{Endpoint, EndpointError};
pub use errors::{RetryReason, RouteError};
pub use health::{HealthReport, ShardHealth, Status};
pub use router::{Placement, ShardRouter};
pub use scatter::{Part, Share};
