//! What runs without being asked.

pub(crate) mod mailer;
pub(crate) mod transport;
