//! The URL of a database.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The URL of a database. Its `Display` and `Debug` never show a password.
#[derive(Clone)]
pub enum Url {
    /// `sqlite:PATH`: an embedded database in one file.
    Sqlite(PathBuf),
    /// `postgres://…` or `postgresql://…`, passed to libpq as it is.
    Postgres(String),
}

impl FromStr for Url {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        match url.split_once(':') {
            // SQLite reads `file:` as a URI, which may name a database in memory.
            Some(("sqlite", path))
                if !path.is_empty() && !path.starts_with(":memory:") && !path.starts_with("file:") =>
            {
                Ok(Self::Sqlite(path.into()))
            }
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Self::Postgres(url.to_owned()))
            }
            _ => Err("the database URL must be sqlite:PATH or postgres://USER@HOST/NAME".into()),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(_) => f.write_str("postgres:…"),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
