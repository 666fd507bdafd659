//! The commands besides `serve`, each in its file.

mod client;
pub mod erase;
pub mod export;
pub mod import;
pub mod migrate;
pub mod token;
pub mod verify;

use chassis::database::{Database, Url, Writes};

use crate::store;

pub(crate) fn open(url: &Url) -> anyhow::Result<Database> {
    let database = Database::open(url, false, Writes::Serial)?;
    database.check_schema(store::MIGRATIONS)?;
    Ok(database)
}
