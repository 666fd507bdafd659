//! What runs without being asked.

pub(crate) mod mailer;
pub(crate) mod poller;
pub(crate) mod transport;
