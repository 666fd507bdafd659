//! What tests, demo and benchmarks of both services share: the harness that starts them, fixtures, actions and
//! assertions, and the models of history and imports.
//!
//! `fixtures` has values and requests, `actions` the calls that most tests make, `assert` what they expect of refusals
//! and wait for. A test on each database is written with the template `each_backend` of `tests/it/main.rs`.

pub mod actions;
pub mod assert;
pub mod crash;
pub mod fixtures;
mod harness;
mod history;
pub mod imports;

pub use harness::clients::{self, As, metadata_of, reason_of};
pub use harness::cluster::{self, Cluster};
pub use harness::databases::{self, Backend};
pub use harness::setup::Setup;
pub use harness::{backup, identity_provider, pki, postgres_servers, processes, service, stack};
