//! What runs without being asked.

pub(crate) mod follower;
pub(crate) mod renewals;
pub(crate) mod reporter;
