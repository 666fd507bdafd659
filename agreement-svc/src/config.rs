//! Commands and settings, by flag or environment.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use chassis::auth::Auth;
use chassis::database::Url;
use chassis::telemetry::LogFormat;
use clap::{Args, Parser, Subcommand};

use crate::rules::history::Head;

/// Owns attestations and direct-sign status, and answers the gate.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look; RUST_LOG filters them.
    #[arg(long, global = true, env = "AGREEMENT_LOG_FORMAT", value_enum, default_value = "pretty")]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the API until it is told to stop.
    Serve(Serve),
    /// Brings the schema up to date and loads the templates into an empty database.
    Migrate(Storage),
    /// Asks a running server whether it serves; exits with 1 if not.
    CheckHealth {
        /// Where it listens.
        #[arg(long, env = "AGREEMENT_ADDRESS", default_value = "http://127.0.0.1:50051")]
        address: String,
    },
    /// Finds out whether the history is whole and the acceptances are what it says; exits with 1 if not.
    Verify(Verify),
    /// Erases a person from records, stored answers and written mails.
    EraseContact(EraseContact),
}

#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// sqlite:PATH, or postgres://USER@HOST/NAME as libpq takes it.
    #[arg(long, env = "AGREEMENT_DATABASE", value_name = "URL")]
    pub database: Url,
    /// A head that this command printed earlier and that was kept elsewhere; may be given several times.
    #[arg(long, value_name = "REVISION:HASH")]
    pub head: Vec<Head>,
}

#[derive(Clone, Debug, Args)]
pub struct EraseContact {
    /// sqlite:PATH, or postgres://USER@HOST/NAME as libpq takes it.
    #[arg(long, env = "AGREEMENT_DATABASE", value_name = "URL")]
    pub database: Url,
    /// The person's e-mail address, whatever its case.
    #[arg(long, value_name = "ADDRESS")]
    pub email: Address,
    /// The folder that the service writes mails to, where it does.
    #[arg(long, env = "AGREEMENT_MAIL_FOLDER", value_name = "DIR")]
    pub mail_folder: Option<PathBuf>,
}

/// An e-mail address as somebody typed it. Its `Debug` does not show it.
#[derive(Clone)]
pub struct Address(pub String);

impl From<String> for Address {
    fn from(address: String) -> Self {
        Self(address)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(…)")
    }
}

/// Where everything is kept.
#[derive(Clone, Debug, Args)]
pub struct Storage {
    /// sqlite:PATH, or postgres://USER@HOST/NAME as libpq takes it.
    #[arg(long, env = "AGREEMENT_DATABASE", value_name = "URL")]
    pub database: Url,
    /// Makes the SQLite file if it does not exist, and brings the schema up to date.
    #[arg(long, env = "AGREEMENT_CREATE")]
    pub create: bool,
    /// Templates to load into an empty database, instead of those that ship with the service.
    #[arg(long, env = "AGREEMENT_TEMPLATES", value_name = "FILE.json")]
    pub templates: Option<PathBuf>,
    /// The vendor's table of countries and languages (columns iso2 and languages); it replaces the
    /// documents in the templates file.
    #[arg(long, env = "AGREEMENT_DOCUMENT_TABLE", value_name = "FILE.csv")]
    pub document_table: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct Serve {
    #[command(flatten)]
    pub storage: Storage,
    /// The address to listen on.
    #[arg(long, env = "AGREEMENT_LISTEN", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    /// How callers are identified. There is no default: `insecure` is for one's own machine.
    #[arg(long, env = "AGREEMENT_AUTH", value_enum)]
    pub auth: Auth,
    /// What is required when, instead of the vendor's timeline that ships with the service.
    #[arg(long, env = "AGREEMENT_POLICY", value_name = "FILE.json")]
    pub policy: Option<PathBuf>,
    /// A file whose bytes, at least 32, make the tokens of acceptance links. Without it there are no
    /// invitations. Every replica needs the same.
    #[arg(long, env = "AGREEMENT_INVITATION_KEY_FILE", value_name = "FILE")]
    pub invitation_key_file: Option<PathBuf>,
    /// The page of yours where customers accept invitations; invitation and token are added to it.
    #[arg(
        long,
        env = "AGREEMENT_ACCEPTANCE_PAGE",
        value_name = "URL",
        default_value = "https://localhost/accept"
    )]
    pub acceptance_page: String,
    /// Threads that serve calls. One is the fastest on a few cores; blocking database work has
    /// threads of its own.
    #[arg(long, env = "AGREEMENT_WORKER_THREADS", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub worker_threads: u16,
}
