//! The commands besides `serve`, each in its file.

pub mod erase;
pub mod import;
pub mod migrate;
pub mod token;
pub mod verify;

use std::error::Error;

use chassis::database::{Database, Url, Writes};

use crate::store;

/// An error that keeps a command from doing its work, for the operator who started it.
pub type Failure = Box<dyn Error + Send + Sync>;

pub(crate) fn open(url: &Url) -> Result<Database, Failure> {
    let database = Database::open(url, false, Writes::Serial)?;
    database.check_schema(store::MIGRATIONS)?;
    Ok(database)
}
