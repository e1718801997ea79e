//! An API server with its controllers, the operator, and ServiceFleets.

mod faults;
mod services;
