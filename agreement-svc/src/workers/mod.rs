//! What runs without being asked.

pub(crate) mod poller;
