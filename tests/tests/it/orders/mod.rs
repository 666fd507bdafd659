//! Orders: what is accepted, refused and stored.

mod demands;
mod fail_closed;
mod placing;
mod resellers;
mod stories;
