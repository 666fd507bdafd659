//! The store: rows, queries and the one locked transaction in which parties, templates and acceptances change.
//!
//! Each noun has its file. Functions take a connection, so that a caller composes them inside its own read
//! or change. No business rule lives here, and no gRPC status.

pub(crate) mod acceptance;
pub(crate) mod chain;
pub(crate) mod change;
pub(crate) mod contact;
pub(crate) mod customer;
pub(crate) mod erase;
pub(crate) mod event;
pub(crate) mod gate;
pub(crate) mod invitation;
pub(crate) mod notification;
pub(crate) mod outbox;
pub(crate) mod partner;
#[cfg(test)]
mod plans;
pub(crate) mod proposal;
mod schema;
mod shown;
pub(crate) mod template;

use diesel_migrations::{EmbeddedMigrations, embed_migrations};

/// The schema, for both databases.
pub(crate) const MIGRATIONS: EmbeddedMigrations = embed_migrations!();
