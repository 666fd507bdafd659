//! The command `migrate`: schema, templates, and the announcement of a restore.

use anyhow::anyhow;
use chassis::clock::Clock;
use chassis::database::{self, Database, Writes};

use crate::config::Storage;
use crate::store::change::{ChangeError, change_internal};
use crate::{data, store};

/// Brings the schema up to date and loads the templates into an empty database.
///
/// # Errors
/// A data file that is invalid, or a database that cannot be used.
pub async fn migrate(storage: &Storage, clock: &Clock) -> anyhow::Result<Database> {
    let templates = read_templates(storage)?;
    let database = Database::open(&storage.database, storage.create, Writes::Serial)?;
    database.migrate(store::MIGRATIONS)?;
    templates.load(&database, clock).await.map_err(|error| match error {
        ChangeError::Failed(error) => anyhow!(error),
        ChangeError::Refused(refusal) => anyhow!("the templates do not fit: {refusal:?}"),
    })?;
    Ok(database)
}

/// Announces in the history that the database was restored from an older copy, whose last event is the last one
/// now. The answer says which that was, and where the history goes on.
///
/// It may run beside a running service, and more than once: a reader of the history goes on behind each
/// announcement. But between a restore and its announcement numbers of lost events are used again, so it should
/// come before the first start.
///
/// # Errors
/// A database that cannot be changed.
pub async fn announce_restore(database: &Database, clock: &Clock) -> anyhow::Result<String> {
    let announced = change_internal(database, clock, |change| {
        let last = change.revision();
        Ok::<_, database::Error>((last, change.record_restored()?))
    });
    let (last, restored) = announced.await?;
    Ok(format!("the copy ended with event {last}; the history goes on with event {restored}"))
}

pub(crate) fn read_templates(storage: &Storage) -> anyhow::Result<data::Templates> {
    data::read_templates(storage.templates.as_deref(), storage.document_table.as_deref())
}
