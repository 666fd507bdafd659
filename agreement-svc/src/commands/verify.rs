//! The command `verify`: the hash chain of the history, held against the records.

use super::open;
use crate::config::Verify;
use crate::rules::chain::Verified;
use crate::store;

/// Finds out whether the history is whole, goes through every head that was kept, and is what the
/// acceptances show. It reads one state of the database, beside a service that may go on.
///
/// # Errors
/// A database that cannot be read.
pub async fn verify(config: &Verify) -> anyhow::Result<Verified> {
    let database = open(&config.database)?;
    let kept = config.head.clone();
    Ok(database.snapshot(move |connection| store::chain::verify(connection, &kept)).await?)
}
