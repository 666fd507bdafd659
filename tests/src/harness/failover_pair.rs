//! A PostgreSQL primary with a synchronous standby, for a run that kills the one and promotes the other.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use chassis::database::Url;
use tempfile::TempDir;

use super::databases::behind;

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
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        // The servers run as another user where this runs as root.
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), readable).map_err(|error| error.to_string())?;
        let mut pair = Self { folder, url: String::new() };
        pair.url = pair.ask("pair")?.trim().to_owned();
        Ok(pair)
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
        self.ask("kill").map(drop)
    }

    /// Makes a primary of the standby.
    ///
    /// # Errors
    /// What the script says.
    pub(crate) fn promote(&self) -> Result<(), String> {
        self.ask("promote").map(drop)
    }

    fn ask(&self, what: &str) -> Result<String, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/postgres");
        let log = std::fs::File::create(self.folder.path().join("script.log")).map_err(|e| e.to_string())?;
        // A server that it starts keeps what it inherits, so only the answer may be waited for.
        let done = Command::new(script).arg(self.folder.path()).arg(what).stderr(log).output();
        let done = done.map_err(|error| error.to_string())?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = std::fs::read_to_string(self.folder.path().join("script.log")).unwrap_or_default();
        Err(format!("{what} failed: {said}"))
    }
}

impl Drop for FailoverPair {
    fn drop(&mut self) {
        // What has gone already need not be ended.
        let _ = self.ask("stop");
    }
}
