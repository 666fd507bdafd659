//! What runs without being asked.

pub(crate) mod renewals;
pub(crate) mod reporter;
