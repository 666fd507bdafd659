//! Concurrency limits, fair among tenants: of calls, of streams, and of the bytes of requests.

pub(super) mod memory;
pub(super) mod queue;
pub mod tenant;
