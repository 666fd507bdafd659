//! What is refused at the start, with its reason, because it would only fail later.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use super::pool::parameter;
use super::{Connection, Error, Url, error};

/// The oldest PostgreSQL that is supported, as it says its version.
const POSTGRES_OLDEST: u32 = 130_000;

/// Whatever can be seen before connecting. Creates the file of SQLite if it is to be created, for its owner only.
pub(super) fn check_url(url: &Url, create: bool) -> Result<(), Error> {
    match url {
        Url::Sqlite(path) => check_file(path, create),
        Url::Postgres(url) => check_tls(url),
    }
}

fn check_file(path: &Path, create: bool) -> Result<(), Error> {
    let shown = path.display();
    if create {
        create_private(path).map_err(|error| {
            Error::Unusable(format!("{shown} cannot be created, or its folder not be written: {error}"))
        })?;
    } else if !path.exists() {
        return Err(Error::Unavailable(format!(
            "{shown} does not exist; `serve --create` and `migrate --create` create an empty database there"
        )));
    }
    let writable = OpenOptions::new().write(true).open(path);
    writable.map_err(|error| Error::Unusable(format!("{shown} cannot be written: {error}")))?;
    // SQLite writes two more files beside it.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let probe = folder.join(format!(".{}.writable", crate::clock::new_salt()));
    let written = OpenOptions::new().write(true).create_new(true).open(&probe);
    written.map_err(|error| {
        Error::Unusable(format!("the folder {} of the database cannot be written: {error}", folder.display()))
    })?;
    // What cannot be removed does no harm.
    let _ = std::fs::remove_file(probe);
    Ok(())
}

/// Creates an empty file that only its owner may read and write, whatever the umask, unless there is a file already.
/// SQLite gives the files beside it the same mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        #[cfg(unix)]
        Ok(file) => file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

fn check_tls(url: &str) -> Result<(), Error> {
    let variable = std::env::var("PGSSLMODE").ok();
    let mode = parameter(url, "sslmode").or(variable.as_deref()).unwrap_or_default();
    if cfg!(feature = "bundled-libpq") && ["require", "verify-ca", "verify-full"].contains(&mode) {
        return Err(Error::Unusable(format!(
            "sslmode={mode} asks for TLS, which this build's own libpq cannot speak; build with \
             --no-default-features, which takes the system's libpq, or reach the server through a socket or a proxy \
             that encrypts, with sslmode=disable"
        )));
    }
    Ok(())
}

/// Whatever only a connection shows.
pub(super) fn check_server(connection: &mut Connection) -> Result<(), Error> {
    if let Connection::Sqlite(_) = connection {
        return Ok(());
    }
    let encoding = connection.setting("server_encoding")?;
    if encoding != "UTF8" {
        return Err(Error::Unusable(format!(
            "its encoding is {encoding} and must be UTF8; create it with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )));
    }
    let version = connection.setting("server_version_num")?;
    check_version(&version)
}

/// How long the server parses a statement at most, for [`error::work_for`]. Its administrator and the URL may let it wait for
/// a lock for a shorter time than a service does.
pub(super) fn reading_max(connection: &mut Connection) -> Result<Duration, Error> {
    if let Connection::Sqlite(_) = connection {
        return Ok(error::READING_MAX);
    }
    let milliseconds = connection.lock_wait_ms()?;
    let wait = milliseconds.parse().ok().filter(|wait| *wait > 0).map(Duration::from_millis);
    Ok(wait.unwrap_or(error::READING_MAX).min(error::READING_MAX))
}

fn check_version(version: &str) -> Result<(), Error> {
    let number: u32 = version.parse().unwrap_or(0);
    if number < POSTGRES_OLDEST {
        let (major, oldest) = (number / 10_000, POSTGRES_OLDEST / 10_000);
        return Err(Error::Unusable(format!(
            "PostgreSQL {major} is too old; {oldest} is the oldest supported version"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_refused() {
        for (version, is_good) in [("130000", true), ("150018", true), ("120022", false), ("90603", false)] {
            assert_eq!(check_version(version).is_ok(), is_good, "{version}");
        }
        let refused = check_version("120022").unwrap_err().to_string();
        assert!(refused.contains("PostgreSQL 12 is too old"), "{refused}");
    }
}
