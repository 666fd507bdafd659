//! The event history: its stream, its hash chain, backups and restores.

mod events;
mod restore;
mod verify;
