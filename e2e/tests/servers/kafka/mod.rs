//! An API server, the operator, and the topics of real brokers.

mod cluster;
mod moves;
mod topics;
