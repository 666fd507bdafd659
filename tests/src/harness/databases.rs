//! Databases of the tests: a SQLite file or a PostgreSQL schema of its own for each service, removed when dropped.

use std::fmt;
use std::path::{Path, PathBuf};

use chassis::database::{Connection, Url};
use chassis::query;
use diesel::connection::SimpleConnection;
use diesel::{Connection as _, PgConnection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

use super::stack::Stack;

/// Where the services keep their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A temporary file for each service.
    Sqlite,
    /// A fresh schema for each service, in the database that `TEST_POSTGRES_URL` names.
    Postgres,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "SQLite",
            Self::Postgres => "PostgreSQL",
        })
    }
}

impl Backend {
    /// The databases that this run has: SQLite, and PostgreSQL where `TEST_POSTGRES_URL` names one.
    #[must_use]
    pub fn all() -> Vec<Self> {
        [Self::Sqlite, Self::Postgres].into_iter().filter(|backend| backend.is_available()).collect()
    }

    /// Whether this run has the database. A running stack has PostgreSQL only.
    ///
    /// # Panics
    /// In CI, when `TEST_POSTGRES_URL` is not set: there a missing database is a failure, not a reason to skip.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a skipped database must be seen")]
    pub fn is_available(self) -> bool {
        match self {
            Self::Sqlite => Stack::named().is_none(),
            Self::Postgres if Stack::named().is_some() || postgres_url().is_some() => true,
            Self::Postgres => {
                assert!(std::env::var_os("CI").is_none(), "TEST_POSTGRES_URL must be set in CI");
                eprintln!("SKIPPED on PostgreSQL: TEST_POSTGRES_URL is not set");
                false
            }
        }
    }
}

fn postgres_url() -> Option<String> {
    std::env::var("TEST_POSTGRES_URL").ok().filter(|url| !url.is_empty())
}

/// Where the services' state is. Dropping it removes it.
pub(crate) struct State {
    folder: TempDir,
    schemas: Vec<String>,
}

impl State {
    pub(crate) fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        Ok(Self { folder, schemas: vec![] })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder behind for the developer who investigates the failure.
    pub(crate) fn leave_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// The URL of an empty database.
    pub(crate) fn database(&mut self, backend: Backend, name: &str) -> Result<Url, String> {
        match backend {
            Backend::Sqlite => sqlite(&self.folder.path().join(format!("{name}.sqlite"))),
            Backend::Postgres => {
                let base = postgres_url().ok_or("TEST_POSTGRES_URL is not set")?;
                let schema = format!("test_{}_{name}", Uuid::from_u128(rand_u128()).simple());
                behind(&base.parse()?, &format!("CREATE SCHEMA {schema}"))?;
                let separator = if base.contains('?') { '&' } else { '?' };
                let url =
                    format!("{base}{separator}options=-csearch_path%3D{schema}&application_name={schema}");
                self.schemas.push(schema);
                url.parse()
            }
        }
    }
}

impl Drop for State {
    #[expect(clippy::print_stderr, reason = "nothing else can be done about it while dropping")]
    fn drop(&mut self) {
        let Some(Ok(base)) = postgres_url().map(|url| url.parse()) else { return };
        for schema in self.schemas.drain(..) {
            if let Err(error) = behind(&base, &format!("DROP SCHEMA {schema} CASCADE")) {
                eprintln!("schema {schema} is left behind: {error}");
            }
        }
    }
}

/// The URL of a SQLite file.
///
/// # Errors
/// A path that cannot stand in a URL.
pub fn sqlite(path: &Path) -> Result<Url, String> {
    format!("sqlite:{}", path.display()).parse()
}

/// Connects to a database without any service.
///
/// # Errors
/// The database's.
pub fn connect(database: &Url) -> Result<Connection, String> {
    let connected = match database {
        Url::Sqlite(path) => SqliteConnection::establish(&path.to_string_lossy()).map(Connection::Sqlite),
        Url::Postgres(url) => PgConnection::establish(url).map(Connection::Postgres),
    };
    let mut connection = connected.map_err(|error| error.to_string())?;
    if let Connection::Sqlite(c) = &mut connection {
        c.batch_execute("PRAGMA busy_timeout = 5000").map_err(|error| error.to_string())?;
    }
    Ok(connection)
}

/// Runs SQL on a database without any service.
///
/// # Errors
/// The database's.
pub fn behind(database: &Url, sql: &str) -> Result<(), String> {
    query!(&mut connect(database)?, c => c.batch_execute(sql)).map_err(|error| error.to_string())
}

/// Copies a subscription of order-svc, as that many orders would have made it: as calls they would take minutes. The
/// variant, a hexadecimal digit, tells the ids of several copies apart.
///
/// # Errors
/// The database's.
pub fn copy_subscription(database: &Url, id: &str, count: i64, variant: char) -> Result<(), String> {
    let columns = "order_id, payer_id, reseller_id, customer_id, offer_id, quantity, friendly_name, state, auto_renew, \
                   started_at, term, term_number, term_end, answer_revision, version, due_at";
    let sql = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
         INSERT INTO subscription (id, {columns}) \
         SELECT '00000000-0000-4000-{variant}000-' || (100000000000 + i), {columns} FROM subscription, n WHERE id = '{id}'"
    );
    behind(database, &sql)
}

fn rand_u128() -> u128 {
    u128::from_str_radix(&chassis::clock::new_salt(), 16).unwrap_or_default()
}
