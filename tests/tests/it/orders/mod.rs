//! Orders: what is accepted, refused and stored.

mod fail_closed;
mod placing;
mod resellers;
mod stories;
