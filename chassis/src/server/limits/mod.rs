//! Limits on what is in progress at a time.

pub mod tenant;
