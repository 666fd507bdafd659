//! Copies of what a service has stored, made and put back behind its back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chassis::database::Url;
use chassis::query;
use diesel::sql_types::Text;
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use tempfile::TempDir;

use super::databases::{behind, connect};

/// A copy of a database as it was at one moment, whatever its service was doing: made by SQLite's `VACUUM INTO`, or by
/// `pg_dump`. Dropping it removes it.
pub struct Backup {
    database: Url,
    copy: Copy,
}

enum Copy {
    /// A SQLite file in a folder of its own.
    File(TempDir),
    /// A schema as `pg_dump` writes it, in a folder of its own.
    Schema(TempDir, String),
}

#[derive(QueryableByName)]
struct Schema {
    #[diesel(sql_type = Text)]
    name: String,
}

impl Backup {
    /// Makes a copy.
    ///
    /// # Errors
    /// The database's.
    pub fn of(database: &Url) -> Result<Self, String> {
        let copy = match database {
            Url::Sqlite(_) => {
                let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
                behind(database, &format!("VACUUM INTO '{}'", copy_in(&folder).display()))?;
                Copy::File(folder)
            }
            Url::Postgres(url) => {
                let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
                let schema: Schema = query!(&mut connect(database)?, c => {
                    sql_query("SELECT current_schema()::TEXT AS name").get_result(c)
                })
                .map_err(|error| error.to_string())?;
                let mut dump = Command::new("pg_dump");
                dump.args(["--format=custom", "--schema", &schema.name, "--file"]).arg(copy_in(&folder));
                run(dump.args(["--dbname", url]))?;
                Copy::Schema(folder, schema.name)
            }
        };
        Ok(Self { database: database.clone(), copy })
    }

    /// Makes the database what it was. No process may have it open.
    ///
    /// # Errors
    /// The database's.
    pub fn restore(&self) -> Result<(), String> {
        match (&self.copy, &self.database) {
            (Copy::File(folder), Url::Sqlite(path)) => {
                wait_until_closed(path);
                for log in ["-wal", "-shm"] {
                    let log = format!("{}{log}", path.display());
                    if fs::exists(&log).map_err(|error| error.to_string())? {
                        fs::remove_file(&log).map_err(|error| error.to_string())?;
                    }
                }
                fs::copy(copy_in(folder), path).map(drop).map_err(|error| error.to_string())
            }
            (Copy::Schema(folder, schema), Url::Postgres(url)) => {
                behind(&self.database, &format!("DROP SCHEMA {schema} CASCADE"))?;
                run(Command::new("pg_restore")
                    .args(["--exit-on-error", "--dbname", url])
                    .arg(copy_in(folder)))
            }
            (Copy::File(_), Url::Postgres(_)) | (Copy::Schema(..), Url::Sqlite(_)) => {
                Err("a copy of another kind of database".into())
            }
        }
    }
}

fn copy_in(folder: &TempDir) -> PathBuf {
    folder.path().join("copy")
}

/// Waits for the last connection of a service that has stopped, which takes its log with it. One that was killed
/// leaves it behind.
fn wait_until_closed(path: &Path) {
    const LOOKS_MAX: usize = 200;
    const PAUSE: Duration = Duration::from_millis(10);
    let log = format!("{}-wal", path.display());
    for _ in 0..LOOKS_MAX {
        if !Path::new(&log).exists() {
            return;
        }
        std::thread::park_timeout(PAUSE);
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let done = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&done.stderr)))
}
