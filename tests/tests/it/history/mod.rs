//! The event history: its stream, its hash chain, backups and restores.

pub(crate) mod event_properties;
mod events;
mod restore;
mod verify;
