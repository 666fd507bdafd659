//! The memory: rows, queries and the one locked transaction through which everything changes.
//!
//! A file a noun. Functions take a connection, so that a caller composes them inside its own read
//! or change. No business rule lives here, and no gRPC status.

pub(crate) mod attestation;
pub(crate) mod change;
pub(crate) mod customer;
pub(crate) mod gate;
pub(crate) mod partner;
mod schema;
pub(crate) mod template;

use std::str::FromStr;

use chassis::database::Error;
use chrono::NaiveDateTime;
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use uuid::Uuid;

use crate::rules::Time;

/// The schema, for both databases.
pub(crate) const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// A stored value that must parse, or the row is corrupt.
fn parse<T: FromStr>(table: &'static str, key: &str, column: &'static str, value: &str) -> Result<T, Error> {
    value.parse().map_err(|_| corrupt(table, key, column))
}

/// A stored name that must be one of an enum's.
fn named<T>(table: &'static str, key: &str, column: &'static str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| corrupt(table, key, column))
}

fn corrupt(table: &'static str, key: &str, column: &'static str) -> Error {
    Error::Corrupt { table, key: key.to_owned(), column }
}

fn utc(time: NaiveDateTime) -> Time {
    time.and_utc()
}

/// An optional id, stored as '' where there is none so that unique indexes see it.
fn id_or_empty(id: Option<Uuid>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}
