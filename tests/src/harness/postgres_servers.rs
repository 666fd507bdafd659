//! Servers of PostgreSQL of a test's own, which it may stop and configure: one with or without PgBouncer before it, or a
//! primary with a synchronous standby.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use chassis::database::{Connection, Url};
use chassis::query;
use diesel::connection::SimpleConnection;
use tempfile::TempDir;

use super::databases::{behind, connect};

/// One server, thrown away when dropped. The services come to it as `clerk`, who is not its superuser.
pub struct PostgresServer {
    folder: TempDir,
    url: String,
}

impl PostgresServer {
    /// Starts it.
    ///
    /// # Errors
    /// What the script says.
    pub fn start() -> Result<Self, String> {
        let folder = open_folder()?;
        let url = ask(folder.path(), &["start"])?.trim().to_owned();
        let server = Self { folder, url };
        server.run("CREATE ROLE clerk LOGIN")?;
        Ok(server)
    }

    /// New databases for both services.
    ///
    /// # Errors
    /// The database's.
    pub fn databases(&self) -> Result<[Url; 2], String> {
        for name in ["agreements", "orders"] {
            self.run(&format!("CREATE DATABASE {name} OWNER clerk"))?;
        }
        Self::of_both(&self.url)
    }

    fn of_both(url: &str) -> Result<[Url; 2], String> {
        let url =
            |name| url.replace("postgres@", "clerk@").replace("/postgres?", &format!("/{name}?")).parse();
        Ok([url("agreements")?, url("orders")?])
    }

    /// Runs SQL as the superuser.
    ///
    /// # Errors
    /// The database's.
    pub fn run(&self, sql: &str) -> Result<(), String> {
        query!(&mut self.connect()?, c => c.batch_execute(sql)).map_err(|error| error.to_string())
    }

    /// Connects as the superuser.
    ///
    /// # Errors
    /// The database's.
    pub fn connect(&self) -> Result<Connection, String> {
        connect(&self.url.parse()?)
    }

    /// Connects as the superuser to a database.
    ///
    /// # Errors
    /// The database's.
    pub fn connect_to(&self, name: &str) -> Result<Connection, String> {
        connect(&self.url.replace("/postgres?", &format!("/{name}?")).parse()?)
    }

    /// Ends it as an administrator would.
    ///
    /// # Errors
    /// What the script says.
    pub fn halt(&self) -> Result<(), String> {
        ask(self.folder.path(), &["halt"]).map(drop)
    }

    /// Starts it again.
    ///
    /// # Errors
    /// What the script says.
    pub fn resume(&self) -> Result<(), String> {
        ask(self.folder.path(), &["run"]).map(drop)
    }

    /// Has it accept no connection, as if it could not be reached. Those that there are go on.
    ///
    /// # Errors
    /// What the script says.
    pub fn freeze(&self) -> Result<(), String> {
        ask(self.folder.path(), &["freeze"]).map(drop)
    }

    /// Has it accept connections again.
    ///
    /// # Errors
    /// What the script says.
    pub fn thaw(&self) -> Result<(), String> {
        ask(self.folder.path(), &["thaw"]).map(drop)
    }

    /// Starts PgBouncer before it, in transaction mode and with further settings; the databases of both services, by way of
    /// it.
    ///
    /// # Errors
    /// What the script says.
    pub fn bounce(&self, settings: &str) -> Result<[Url; 2], String> {
        Self::of_both(ask(self.folder.path(), &["bouncer", settings])?.trim())
    }

    /// Ends PgBouncer.
    ///
    /// # Errors
    /// What the script says.
    pub fn unbounce(&self) -> Result<(), String> {
        ask(self.folder.path(), &["unbounce"]).map(drop)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // What has gone already need not be ended.
        let _ = ask(self.folder.path(), &["stop"]);
    }
}

/// Both servers, thrown away when dropped.
pub(crate) struct FailoverPair {
    folder: TempDir,
    url: String,
}

impl FailoverPair {
    /// Starts both.
    ///
    /// # Errors
    /// What the script says.
    pub(crate) fn start() -> Result<Self, String> {
        let folder = open_folder()?;
        let url = ask(folder.path(), &["pair"])?.trim().to_owned();
        Ok(Self { folder, url })
    }

    /// A new database, by a URL that leads to whichever of the servers takes writes.
    ///
    /// # Errors
    /// The database's.
    pub(crate) fn database(&self, name: &str) -> Result<Url, String> {
        behind(&self.url.parse()?, &format!("CREATE DATABASE {name}"))?;
        self.url.replace("/postgres?", &format!("/{name}?")).parse()
    }

    /// Ends the primary as a crash would, connections and all.
    ///
    /// # Errors
    /// What the script says.
    pub(crate) fn kill_primary(&self) -> Result<(), String> {
        ask(self.folder.path(), &["kill"]).map(drop)
    }

    /// Makes a primary of the standby.
    ///
    /// # Errors
    /// What the script says.
    pub(crate) fn promote(&self) -> Result<(), String> {
        ask(self.folder.path(), &["promote"]).map(drop)
    }
}

/// A folder that the servers can read, which run as another user where this runs as root.
fn open_folder() -> Result<TempDir, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), readable).map_err(|error| error.to_string())?;
    Ok(folder)
}

fn ask(folder: &Path, what: &[&str]) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/postgres");
    let log = std::fs::File::create(folder.join("script.log")).map_err(|e| e.to_string())?;
    // A server that it starts keeps what it inherits, so only the answer may be waited for.
    let done = Command::new(script).arg(folder).args(what).stderr(log).output();
    let done = done.map_err(|error| error.to_string())?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = std::fs::read_to_string(folder.join("script.log")).unwrap_or_default();
    Err(format!("{what:?} failed: {said}"))
}

impl Drop for FailoverPair {
    fn drop(&mut self) {
        // What has gone already need not be ended.
        let _ = ask(self.folder.path(), &["stop"]);
    }
}
