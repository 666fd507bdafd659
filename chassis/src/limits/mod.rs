//! Limits that are fair among tenants: of calls, of streams, of connections to the database, and of the bytes of requests.

pub(crate) mod queue;
pub mod tenant;
