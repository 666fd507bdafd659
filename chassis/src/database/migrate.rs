//! Migrations of the schema.

use diesel::connection::SimpleConnection;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness};

use super::{Connection, Database, Error};
use crate::query;

impl Database {
    /// Brings the schema up to date. Several processes may do so at the same time.
    ///
    /// # Errors
    /// A migration that fails, with the database's message.
    pub fn migrate(&self, migrations: EmbeddedMigrations) -> Result<(), Error> {
        const ONE_AT_A_TIME: &str = "SELECT pg_advisory_lock(7215001)";
        let mut connection = self.0.connect()?;
        if let Connection::Postgres(c) = &mut connection {
            c.batch_execute("SET lock_timeout = 0; SET statement_timeout = 0")?;
            c.batch_execute(ONE_AT_A_TIME)?;
        }
        // On SQLite the write lock does what the advisory lock does on PostgreSQL.
        if let Connection::Sqlite(_) = connection {
            connection.begin()?;
        }
        query!(&mut connection, c => c.run_pending_migrations(migrations).map(|_| ()))
            .map_err(|error| Error::Query(format!("migration failed: {error}")))?;
        if let Connection::Sqlite(_) = connection {
            connection.commit()?;
        }
        Ok(())
    }

    /// Refuses a schema that lacks a migration this build needs.
    ///
    /// # Errors
    /// The schema is too old, and the remedy; a database that cannot be reached.
    pub fn check_schema(&self, migrations: EmbeddedMigrations) -> Result<(), Error> {
        let mut connection = self.0.connect()?;
        let pending = query!(&mut connection, c => c.has_pending_migration(migrations))
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        if pending {
            return Err(Error::Query("the schema is not up to date; run the `migrate` command first".into()));
        }
        Ok(())
    }
}
