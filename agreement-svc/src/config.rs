//! Commands and settings, by flag or environment.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use chassis::auth::{self, Channel};
use chassis::clock::Time;
use chassis::config::with_env;
use chassis::database::Url;
use chassis::release;
use chassis::telemetry::LogFormat;
use chassis::tls;
use chrono::{DateTime, NaiveDate, NaiveDateTime, SubsecRound, TimeDelta, Utc};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use lettre::message::Mailbox;
use proto::identity::{Role, TenantKind};
use strum::VariantNames;
use uuid::Uuid;

use crate::rules::chain::Head;

/// Where mails are written when nothing else is said.
pub const MAIL_FOLDER: &str = "mails";

/// The acceptance page of a service whose users are all on its own machine.
pub const ACCEPTANCE_PAGE: &str = "https://localhost/accept";

/// Owns attestations and direct-sign status, and answers the gate.
#[derive(Debug, Parser)]
#[command(version = release::version())]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// The format of log lines; RUST_LOG filters them.
    #[arg(long, global = true, env = "AGREEMENT_LOG_FORMAT", value_enum, default_value = "pretty")]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the API until a signal stops it.
    Serve(Box<Serve>),
    /// Brings the schema up to date and loads the templates into an empty database.
    Migrate(Migrate),
    /// Asks a running server whether it serves; exits with 1 if not.
    CheckHealth(CheckHealth),
    /// Imports customers or attestations from files, row by row. The same rows sent again change nothing. Exits with 0
    /// when every row is settled, with 1 when some were refused, with 2 when it could not be carried through.
    #[command(subcommand)]
    Import(Import),
    /// Prints records of running servers: a customer's dossier, or a partner's attestations.
    #[command(subcommand)]
    Export(Export),
    /// Makes a key for tokens of one's own: FOLDER/signing-key.pem signs them, and FOLDER/jwks.json is for
    /// --jwks of both services. Overwrites nothing.
    Key {
        /// The folder for signing-key.pem and jwks.json; it is created if it does not exist.
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
    /// Prints a token, signed with such a key: for development, and for the services themselves where
    /// no identity provider issues them.
    Token(Token),
    /// Finds out whether the history is whole and the acceptances are what it says; exits with 1 if not.
    Verify(Verify),
    /// Erases a person from records, stored answers and written mails.
    EraseContact(EraseContact),
}

#[derive(Clone, Debug, Args)]
pub struct Migrate {
    #[command(flatten)]
    pub storage: Storage,
    /// Announces that the database was restored from a backup: raises the revision by 2^32, so that no client takes a new
    /// event for a lost one. Run it once after each restore, before the service starts; running it again does no harm.
    #[arg(long)]
    pub after_restore: bool,
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("AGREEMENT", setting))]
pub struct CheckHealth {
    /// Where it listens.
    #[arg(long, default_value = "http://127.0.0.1:50051")]
    pub address: tls::Address,
    #[command(flatten)]
    pub tls: tls::ClientSettings,
}

#[derive(Clone, Debug, Args)]
pub struct Token {
    /// The private key, as the command `key` makes it.
    #[arg(long, value_name = "FILE.pem")]
    pub signing_key: PathBuf,
    /// The service's --jwt-issuer.
    #[arg(long, value_name = "NAME")]
    pub issuer: String,
    /// The service's --jwt-audience.
    #[arg(long, value_name = "NAME")]
    pub audience: String,
    /// The claim tenant_kind.
    #[arg(long, value_parser = PossibleValuesParser::new(TenantKind::VARIANTS).try_map(|name| name.parse::<TenantKind>()))]
    pub tenant_kind: TenantKind,
    /// The claim tenant_id.
    #[arg(long, value_name = "UUID")]
    pub tenant_id: Uuid,
    /// The claim sub: the user.
    #[arg(long, value_name = "UUID")]
    pub user_id: Uuid,
    /// The claim roles.
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(Role::VARIANTS).try_map(|name| name.parse::<Role>()))]
    pub roles: Vec<Role>,
    /// The claim channel.
    #[arg(long, value_enum, default_value = "DASHBOARD")]
    pub channel: Channel,
    /// For how long, from now on: 90s, 15m, 1h or 30d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = read_duration)]
    pub valid_for: TimeDelta,
}

fn read_sender(text: &str) -> Result<Mailbox, String> {
    text.parse().map_err(|_| "must be an address such as agreements@partner.example".into())
}

/// Reads the page that acceptance links lead to. Its token must not travel in the clear.
fn read_page(text: &str) -> Result<String, String> {
    let page = text.parse::<http::Uri>().ok();
    let is_safe = page.is_some_and(|page| match (page.scheme_str(), page.host()) {
        (Some("https"), Some(host)) => !host.is_empty(),
        (Some("http"), Some(host)) => host == "localhost",
        _ => false,
    });
    is_safe.then(|| text.to_owned()).ok_or_else(|| {
        "must be a URL such as https://portal.example/accept; http:// is for localhost only".into()
    })
}

/// Reads a whole number of seconds, minutes, hours or days, up to ten years.
fn read_duration(text: &str) -> Result<TimeDelta, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let duration = number.parse().ok().and_then(|number: i64| number.checked_mul(seconds));
    let duration = duration.filter(|seconds| (1..=3650 * 86_400).contains(seconds)).map(TimeDelta::seconds);
    duration.ok_or_else(|| "must be a time such as 90s, 15m, 1h or 30d, up to 3650d".into())
}

/// What a file has rows of.
#[derive(Clone, Debug, Subcommand)]
pub enum Import {
    /// Imports the vendor's tenants, with the partner's contact for each and its first purchase.
    Customers(ImportCustomers),
    /// Attests for customers that are there, from the vendor's CSV file or from its answers in JSON.
    Attestations(ImportAttestations),
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("AGREEMENT", setting))]
pub struct ImportCustomers {
    /// Columns: CustomerTenantId or CustomerId, CompanyName, Domain, Country, FirstName, LastName, Email, and optionally
    /// PhoneNumber, ProviderId, ResellerId, FirstPurchaseDate, Language and ExternalReference, separated by commas, semicolons
    /// or tabs, in UTF-8 or UTF-16.
    #[arg(value_name = "FILE.csv")]
    pub file: PathBuf,
    #[command(flatten)]
    pub client: ImportClient,
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("AGREEMENT", setting))]
pub struct ImportAttestations {
    /// A CSV file with the columns CustomerTenantId or CustomerId, FirstName, LastName, Email, and optionally PhoneNumber,
    /// TemplateId, DateAgreed, PartnerAttestationCompleted (rows where it is false are skipped), JobTitle,
    /// EvidenceReference, EvidenceSha256, OnBehalfOf, ExternalReference, ShownCountry, ShownLanguage and ShownSha256,
    /// separated by commas, semicolons or tabs, in UTF-8 or UTF-16. Or FILE.json, the vendor's answer to
    /// GET /v1/customers/{id}/agreements. Or a folder of such answers, each named CUSTOMER_ID.json.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The customer of FILE.json; by default, the file's name.
    #[arg(long, value_name = "UUID")]
    pub customer_id: Option<Uuid>,
    /// The template of rows that name none: by default the vendor's Customer Agreement.
    #[arg(long, value_name = "UUID", default_value = "117a77b0-9360-443b-8795-c6dedc750cf9")]
    pub template_id: Uuid,
    /// The time of agreement for rows without a date: 2026-11-21T09:30:00Z,
    /// 2026-11-21 09:30:00 or 2026-11-21, in UTC.
    #[arg(long, value_name = "TIME", value_parser = read_date)]
    pub agreed_at: Option<Time>,
    #[command(flatten)]
    pub client: ImportClient,
}

/// Where an import goes, and where its results go.
#[derive(Clone, Debug, Args)]
pub struct ImportClient {
    /// Where the server listens.
    #[arg(long, env = "AGREEMENT_ADDRESS", default_value = "http://127.0.0.1:50051")]
    pub address: tls::Address,
    #[command(flatten)]
    pub tls: tls::ClientSettings,
    /// A file with the token of the partner's user who imports.
    #[arg(long, env = "AGREEMENT_TOKEN", value_name = "FILE", conflicts_with_all = ["partner_id", "user_id"])]
    pub token: Option<PathBuf>,
    /// The partner that imports, where the server runs with --auth insecure.
    #[arg(long, env = "AGREEMENT_PARTNER_ID", value_name = "UUID", required_unless_present = "token")]
    pub partner_id: Option<Uuid>,
    /// The partner's user who imports, where the server runs with --auth insecure.
    #[arg(long, env = "AGREEMENT_USER_ID", value_name = "UUID", required_unless_present = "token")]
    pub user_id: Option<Uuid>,
    /// Where to write the outcome of each row; by default beside the file, as FILE.results.csv.
    #[arg(long, value_name = "RESULTS.csv")]
    pub results: Option<PathBuf>,
}

/// What is exported.
#[derive(Clone, Debug, Subcommand)]
pub enum Export {
    /// Prints all that both services have recorded about a customer, as JSON: for an auditor, or for the customer itself.
    Dossier(ExportDossier),
    /// Prints a partner's current attestations as CSV, in the columns that `import attestations` reads.
    Attestations(ExportAttestations),
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("AGREEMENT", setting))]
pub struct ExportDossier {
    /// The customer.
    #[arg(long, value_name = "UUID")]
    pub customer_id: Uuid,
    /// Where order-svc listens.
    #[arg(long, default_value = "http://127.0.0.1:50052")]
    pub orders_address: tls::Address,
    #[command(flatten)]
    pub client: ExportClient,
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("AGREEMENT", setting))]
pub struct ExportAttestations {
    /// The partner, if an operator exports; a partner exports its own attestations.
    #[arg(long, value_name = "UUID")]
    pub partner_id: Option<Uuid>,
    #[command(flatten)]
    pub client: ExportClient,
}

/// Where an export reads, and as whom. It has what its caller may read.
#[derive(Clone, Debug, Args)]
pub struct ExportClient {
    /// Where agreement-svc listens.
    #[arg(long, env = "AGREEMENT_ADDRESS", default_value = "http://127.0.0.1:50051")]
    pub address: tls::Address,
    #[command(flatten)]
    pub tls: tls::ClientSettings,
    /// A file with the token of an operator; for attestations also that of a partner's user.
    #[arg(long, env = "AGREEMENT_TOKEN", value_name = "FILE", conflicts_with_all = ["operator_id", "user_id"])]
    pub token: Option<PathBuf>,
    /// The operator's tenant, where the servers run with --auth insecure.
    #[arg(long, env = "AGREEMENT_OPERATOR_ID", value_name = "UUID", required_unless_present = "token")]
    pub operator_id: Option<Uuid>,
    /// The operator's user, where the servers run with --auth insecure.
    #[arg(long, env = "AGREEMENT_USER_ID", value_name = "UUID", required_unless_present = "token")]
    pub user_id: Option<Uuid>,
}

/// Reads a time in one of the forms of ISO 8601; without a zone it is in UTC. What is finer than a microsecond is cut
/// off: .NET writes seven digits.
///
/// # Errors
/// How it has to be written.
pub fn read_date(text: &str) -> Result<Time, String> {
    const ZONED: [&str; 2] = ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z"];
    const UTC: [&str; 2] = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M"];
    let plain = text.replacen(['T', 't'], " ", 1);
    let zoned = || ZONED.iter().find_map(|form| DateTime::parse_from_str(&plain, form).ok());
    let utc = || UTC.iter().find_map(|form| NaiveDateTime::parse_from_str(&plain, form).ok());
    let day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let time = zoned().map(|time| time.with_timezone(&Utc));
    let time = time.or_else(|| utc().or_else(|| day().map(NaiveDateTime::from)).map(|time| time.and_utc()));
    // A leap second has more than the second's nanoseconds, and no place in the contract.
    let time = time.filter(|time| time.timestamp_subsec_nanos() < 1_000_000_000);
    time.map(|time| time.trunc_subsecs(6)).ok_or_else(|| {
        "must be a time such as 2026-11-21T09:30:00Z, 2026-11-21 09:30:00 or 2026-11-21, in UTC".into()
    })
}

#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// sqlite:PATH, or postgres://USER@HOST/NAME as libpq takes it.
    #[arg(long, env = "AGREEMENT_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Url,
    /// A head that this command printed earlier and that was kept elsewhere; may be given several times.
    #[arg(long, value_name = "REVISION:HASH")]
    pub head: Vec<Head>,
}

#[derive(Clone, Debug, Args)]
pub struct EraseContact {
    /// sqlite:PATH, or postgres://USER@HOST/NAME as libpq takes it.
    #[arg(long, env = "AGREEMENT_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Url,
    /// The person's e-mail address, whatever its case.
    #[arg(long, value_name = "ADDRESS")]
    pub email: Address,
    /// The folder that the service writes mails to, where it does; by default `mails`, if there is one.
    #[arg(long, env = "AGREEMENT_MAIL_FOLDER", value_name = "DIR")]
    pub mail_folder: Option<PathBuf>,
}

/// An e-mail address as the operator typed it. Its `Debug` does not show it.
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
    #[arg(long, env = "AGREEMENT_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Url,
    /// Creates the SQLite file if it does not exist, and migrates the schema.
    #[arg(long, env = "AGREEMENT_CREATE")]
    pub create: bool,
    /// Templates to load into an empty database, instead of those that ship with the service.
    #[arg(long, env = "AGREEMENT_TEMPLATES", value_name = "FILE.json")]
    pub templates: Option<PathBuf>,
    /// The vendor's table of countries and languages (columns iso2 and languages); it replaces the
    /// documents in the templates file that have no link of their own.
    #[arg(long, env = "AGREEMENT_DOCUMENT_TABLE", value_name = "FILE.csv")]
    pub document_table: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("AGREEMENT", setting))]
pub struct Serve {
    #[command(flatten)]
    pub storage: Storage,
    /// The address to listen on.
    #[arg(long, env = "AGREEMENT_LISTEN", default_value = "127.0.0.1:50051")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub identity: auth::Settings,
    #[command(flatten)]
    pub tls: tls::ServerSettings,
    /// The policy: which agreement is required from when. It replaces the vendor's timeline that ships with the service.
    #[arg(long, env = "AGREEMENT_POLICY", value_name = "FILE.json")]
    pub policy: Option<PathBuf>,
    /// A file whose bytes, at least 32, make the tokens of acceptance links. Without it there are no
    /// invitations. Every replica needs the same.
    #[arg(long, env = "AGREEMENT_INVITATION_KEY_FILE", value_name = "FILE")]
    pub invitation_key_file: Option<PathBuf>,
    /// A file with at least 32 random bytes: the key of the hashes by which the service recognises repeated requests. Without
    /// it, a reader of the database can check guesses of a request's content. Every replica needs the same; after a change,
    /// repetitions of earlier requests are refused.
    #[arg(long, env = "AGREEMENT_REQUEST_KEY_FILE", value_name = "FILE")]
    pub request_key_file: Option<PathBuf>,
    /// The page where customers accept invitations, as their browsers reach it; the service adds the invitation and its token to the URL.
    #[arg(
        long,
        env = "AGREEMENT_ACCEPTANCE_PAGE",
        value_name = "URL",
        default_value = ACCEPTANCE_PAGE,
        value_parser = read_page
    )]
    pub acceptance_page: String,
    /// The address that serves the acceptance page, in HTTP/1.1 to a proxy that signs users in, at the path of
    /// --acceptance-page. Without it none is served: you build the page yourself.
    #[arg(long, env = "AGREEMENT_ACCEPTANCE_LISTEN", requires = "invitation_key_file")]
    pub acceptance_listen: Option<SocketAddr>,
    #[command(flatten)]
    pub mail: Mail,
    /// How often the acceptances of a customer and one partner, or its signatures, may be made and withdrawn within an hour.
    /// Each change is an event that order-svc applies for everyone, and no person accepts so often.
    #[arg(long, env = "AGREEMENT_ACCEPTANCE_CHANGES_MAX", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub acceptance_changes_max: u32,
    /// Calls that may be in progress at a time. Further calls wait up to 100 ms for a slot, in a bounded queue that is
    /// fair among tenants, and are then rejected. Fewer than 128 cannot fill a commit.
    #[arg(long, env = "AGREEMENT_CALLS_MAX", default_value = "256", value_parser = clap::value_parser!(u16).range(1..))]
    pub calls_max: u16,
    /// The address that serves metrics to Prometheus, at /metrics. Without it none are served. They contain no personal data.
    #[arg(long, env = "AGREEMENT_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Threads that serve calls, each its own connections; by default one for each core. Blocking database work has threads of
    /// its own.
    #[arg(long, env = "AGREEMENT_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub worker_threads: Option<u16>,
}

/// How customers are informed of attestations.
#[derive(Clone, Debug, Args)]
pub struct Mail {
    /// The mail server: smtps://HOST:PORT speaks TLS from the start, smtp://HOST:PORT must offer STARTTLS,
    /// and only smtp://HOST:PORT?tls=none sends in the clear. Without it no mail is delivered: mails are
    /// written to --mail-folder.
    #[arg(long, env = "AGREEMENT_SMTP", value_name = "URL", hide_env_values = true)]
    pub smtp: Option<String>,
    /// The user that logs in to the mail server; only over TLS.
    #[arg(
        long,
        env = "AGREEMENT_SMTP_USER",
        value_name = "NAME",
        requires = "smtp",
        requires = "smtp_password_file"
    )]
    pub smtp_user: Option<String>,
    /// A file that holds the password.
    #[arg(long, env = "AGREEMENT_SMTP_PASSWORD_FILE", value_name = "FILE", requires = "smtp_user")]
    pub smtp_password_file: Option<PathBuf>,
    /// The sender of mails. The domain after the @ is also part of their message ids, so every replica needs the same.
    #[arg(long, env = "AGREEMENT_MAIL_FROM", value_name = "ADDRESS", default_value = "agreements@localhost", value_parser = read_sender)]
    pub mail_from: Mailbox,
    /// The folder that mails are written to without --smtp, each as ATTESTATION_ID.eml.
    #[arg(long, env = "AGREEMENT_MAIL_FOLDER", value_name = "DIR", default_value = MAIL_FOLDER)]
    pub mail_folder: PathBuf,
    /// The folder with the templates of mails and invitations, TEXT.LANGUAGE.txt, instead of those that ship. It has each text
    /// in English, French and German, and may have them in other languages.
    #[arg(long, env = "AGREEMENT_MAIL_TEMPLATES", value_name = "DIR")]
    pub mail_templates: Option<PathBuf>,
    /// Seconds between two mails of a partner to one customer; what the partner attests in between is one mail. A customer
    /// reads one mail sooner than five, and a mail delayed by at most this long still arrives in time. 0 sends
    /// a mail for each attestation.
    #[arg(long, env = "AGREEMENT_MAIL_INTERVAL_SECONDS", value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u16).range(0..=300))]
    pub mail_interval_seconds: u16,
    /// Mails that one partner may cause in a day (UTC), to whichever addresses; further ones wait until the next day, and
    /// say so on the attestation. It bounds what a stolen identity can send in your name; raise it where a partner
    /// imports more customers in a day.
    #[arg(long, env = "AGREEMENT_MAILS_PER_DAY", value_name = "NUMBER", default_value = "5000", value_parser = clap::value_parser!(u32).range(1..))]
    pub mails_per_day: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acceptance_page_is_a_url_of_https() {
        for page in
            ["https://portal.example", "https://portal.example:8443/a?b=c", "http://localhost:8080/?a=b"]
        {
            assert_eq!(read_page(page).as_deref(), Ok(page));
        }
        for page in [
            "",
            "not a url",
            "portal.example/accept",
            "https://",
            "https:///accept",
            "https://portal example",
            "/accept",
            "http://portal.example",
            "http://localhost.portal.example",
            "ftp://portal.example",
            "javascript:alert(1)",
        ] {
            assert!(read_page(page).is_err(), "{page}");
        }
    }

    #[test]
    fn a_date_is_read_in_the_forms_of_iso_8601() {
        for (text, expected) in [
            ("2024-05-01", "2024-05-01T00:00:00Z"),
            ("2024-05-01 10:20", "2024-05-01T10:20:00Z"),
            ("2024-05-01T10:20", "2024-05-01T10:20:00Z"),
            ("2024-05-01 10:20:30", "2024-05-01T10:20:30Z"),
            ("2024-05-01T10:20:30", "2024-05-01T10:20:30Z"),
            ("2024-05-01T10:20:30.5", "2024-05-01T10:20:30.500Z"),
            ("2024-05-01t10:20:30z", "2024-05-01T10:20:30Z"),
            ("2024-05-01 10:20:30Z", "2024-05-01T10:20:30Z"),
            ("2024-05-01T10:20Z", "2024-05-01T10:20:00Z"),
            ("2024-05-01T10:20:30+02:00", "2024-05-01T08:20:30Z"),
            ("2024-05-01 10:20:30 +0200", "2024-05-01T08:20:30Z"),
            ("2024-05-01T10:20:30.1234567Z", "2024-05-01T10:20:30.123456Z"),
            ("2024-05-01T10:20:30.999999999", "2024-05-01T10:20:30.999999Z"),
        ] {
            assert_eq!(read_date(text), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "01.05.2024",
            "05/01/2024",
            "1/5/2024 10:20:30 AM",
            "2024-05",
            "45413",
            "2024-02-30",
            "2024-13-01",
            "2024-05-01T25:00:00Z",
            "2016-12-31T23:59:60Z",
            "2024-05-01T",
            "2024-05-01T10:20:30 CET",
            "yesterday",
        ] {
            assert!(read_date(text).is_err(), "{text}");
        }
    }
}
