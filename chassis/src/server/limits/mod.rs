//! Concurrency limits, fair among tenants: of calls, of streams, and of the bytes of requests.

pub(super) mod memory;
pub(crate) mod queue;
pub mod tenant;
