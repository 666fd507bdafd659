//! Background workers of the service, besides the mailer in `mail`.

pub(crate) mod names;
