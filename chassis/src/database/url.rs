//! The URL of a database.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{TypedValueParser, ValueParserFactory};
use clap::error::ErrorKind;

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

/// Reads the setting. Its refusal does not show the URL, which may hold a password.
#[derive(Clone)]
pub struct UrlParser;

impl ValueParserFactory for Url {
    type Parser = UrlParser;

    fn value_parser() -> UrlParser {
        UrlParser
    }
}

impl TypedValueParser for UrlParser {
    type Value = Url;

    fn parse_ref(
        &self,
        command: &clap::Command,
        setting: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Url, clap::Error> {
        let url = value.to_str().ok_or_else(|| "the database URL must be UTF-8".to_owned());
        url.and_then(str::parse).map_err(|problem| {
            let setting = setting.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value for '{setting}': {problem}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
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
