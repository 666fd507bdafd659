//! The event history: its stream, its hash chain, backups and restores.

mod erase;
mod events;
mod restore;
mod verify;
