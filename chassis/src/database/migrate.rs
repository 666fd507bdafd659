//! Migrations of the schema.

use diesel::backend::Backend;
use diesel::connection::SimpleConnection;
use diesel::migration::{Migration, MigrationSource};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness};

use super::connection::Purpose;
use super::pool::LOCK_WAIT_MS;
use super::{Connection, Database, Error};
use crate::query;

impl Database {
    /// Brings the schema up to date. Several processes may do so at the same time.
    ///
    /// Each migration has a transaction of its own, and the lock that keeps other processes out belongs to it. It may run
    /// for long, but does not wait for long for a table that is in use: calls would wait behind it.
    ///
    /// # Errors
    /// A migration that fails, with the database's message; the database of another service.
    #[expect(clippy::needless_pass_by_value, reason = "it is a constant")]
    pub fn migrate(&self, migrations: EmbeddedMigrations) -> Result<(), Error> {
        const ONE_AT_A_TIME: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
            SELECT pg_advisory_xact_lock(7215001)";
        let mut connection = self.0.connect()?;
        loop {
            // On SQLite the write lock does what the advisory lock does on PostgreSQL.
            connection.begin(Purpose::Write, self.0.manager.is_pooled)?;
            if let Connection::Postgres(c) = &mut connection {
                c.batch_execute(ONE_AT_A_TIME)?;
                c.batch_execute(&format!("SET LOCAL lock_timeout = {LOCK_WAIT_MS}"))?;
            }
            let has_run = query!(&mut connection, c => next(c, &migrations, true))?;
            connection.commit()?;
            if !has_run {
                return Ok(());
            }
        }
    }

    /// Refuses a schema that lacks a migration this build needs.
    ///
    /// # Errors
    /// The schema is too old, or another service's, and the remedy; a database that cannot be reached.
    #[expect(clippy::needless_pass_by_value, reason = "it is a constant")]
    pub fn check_schema(&self, migrations: EmbeddedMigrations) -> Result<(), Error> {
        let mut connection = self.0.connect()?;
        if query!(&mut connection, c => next(c, &migrations, false))? {
            return Err(Error::Query("the schema is not up to date; run the `migrate` command first".into()));
        }
        Ok(())
    }
}

/// Whether the schema lacks a migration; `run` runs the first that it lacks.
fn next<DB: Backend>(
    connection: &mut impl MigrationHarness<DB>,
    migrations: &EmbeddedMigrations,
    run: bool,
) -> Result<bool, Error> {
    let applied = connection.applied_migrations().map_err(|error| Error::Unavailable(error.to_string()))?;
    let own: Vec<Box<dyn Migration<DB>>> =
        migrations.migrations().map_err(|error| Error::Query(error.to_string()))?;
    let is_applied = |migration: &dyn Migration<DB>| applied.contains(&migration.name().version());
    if !applied.is_empty() && !own.iter().any(|migration| is_applied(&**migration)) {
        let why = "it holds the tables of another service; each service needs a database of its own";
        return Err(Error::Unusable(why.into()));
    }
    let lacking = own.iter().filter(|migration| !is_applied(&***migration));
    let Some(first) = lacking.min_by_key(|migration| migration.name().version().as_owned()) else {
        return Ok(false);
    };
    if run {
        connection.run_migration(&**first).map_err(|error| {
            let seconds = LOCK_WAIT_MS / 1000;
            Error::Query(format!(
                "migration {} failed: {error}; if it waited {seconds} s for a table in use, run it again",
                first.name()
            ))
        })?;
    }
    Ok(true)
}
