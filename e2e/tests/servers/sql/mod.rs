//! PostgreSQL alone: the agent, the store, and the routers of services, on each version.

mod checker_faults;
mod crowd;
mod gate;
mod handover;
mod harness;
mod hash;
mod moves;
mod pooler;
mod preflight;
mod quarantine;
mod scatter;
mod standby;
mod stream;
mod term;
mod upgrade;
