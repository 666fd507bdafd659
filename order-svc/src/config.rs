//! Commands and settings, by flag or environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use chassis::auth;
use chassis::config::with_env;
use chassis::database::Url;
use chassis::release;
use chassis::telemetry::LogFormat;
use chassis::tls::{self, Address};
use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use crate::rules::offer::Catalogue;

const DEFAULT_OFFERS: &str = include_str!("../data/offers.json");

/// Accepts purchases and seat changes once the gate allows them.
#[derive(Debug, Parser)]
#[command(version = release::version())]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// The format of log lines; RUST_LOG filters them.
    #[arg(long, global = true, env = "ORDER_LOG_FORMAT", value_enum, default_value = "pretty")]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the API until a signal stops it.
    Serve(Box<Serve>),
    /// Brings the schema up to date.
    Migrate(Migrate),
    /// Passes over one event of agreement-svc's history that order-svc cannot apply, so that later ones are applied.
    SkipEvent(SkipEvent),
    /// Asks a running server whether it serves; exits with 1 if not.
    CheckHealth(CheckHealth),
}

#[derive(Clone, Debug, Args)]
pub struct Migrate {
    #[command(flatten)]
    pub storage: Storage,
    /// Announces that the database was restored from a backup: raises the revision of events by 2^32, so that no watcher takes a
    /// new event for a lost one. Run it once after each restore, before the service starts; running it again does no harm.
    #[arg(long)]
    pub after_restore: bool,
}

#[derive(Clone, Debug, Args)]
pub struct SkipEvent {
    /// sqlite:PATH, or postgres://USER@HOST/NAME as libpq takes it.
    #[arg(long, env = "ORDER_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Url,
    /// The event, which must be the next one: the log names the revision after which the history cannot be applied.
    #[arg(long, value_name = "REVISION")]
    pub revision: i64,
    /// The customer of the event, as agreement-svc's WatchEvents shows it. Nothing more is stored for it on an answer of
    /// the gate that is older than the event.
    #[arg(long, value_name = "UUID")]
    pub customer_id: Uuid,
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("ORDER", setting))]
pub struct CheckHealth {
    /// Where it listens.
    #[arg(long, default_value = "http://127.0.0.1:50052")]
    pub address: Address,
    #[command(flatten)]
    pub tls: tls::ClientSettings,
}

/// Where everything is kept.
#[derive(Clone, Debug, Args)]
pub struct Storage {
    /// sqlite:PATH, or postgres://USER@HOST/NAME as libpq takes it.
    #[arg(long, env = "ORDER_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Url,
    /// Creates the SQLite file if it does not exist, and migrates the schema.
    #[arg(long, env = "ORDER_CREATE")]
    pub create: bool,
}

#[derive(Clone, Debug, Args)]
#[command(mut_args = |setting| with_env("ORDER", setting))]
pub struct Serve {
    #[command(flatten)]
    pub storage: Storage,
    /// The address to listen on.
    #[arg(long, env = "ORDER_LISTEN", default_value = "127.0.0.1:50052")]
    pub listen: SocketAddr,
    /// Where agreement-svc listens; several addresses, separated by commas, are its replicas. A name is looked up every two
    /// seconds, and at once when a call fails: each IP address that it has is a replica with a connection of its own.
    #[arg(
        long,
        env = "ORDER_AGREEMENTS",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:50051"
    )]
    pub agreements: Vec<Address>,
    /// The CA certificates that verify agreement-svc's certificate, in PEM, instead of those that the system
    /// trusts. The file is reloaded when it changes.
    #[arg(long, env = "ORDER_AGREEMENTS_CA", value_name = "FILE.pem")]
    pub agreements_ca: Option<PathBuf>,
    /// This service's own certificate in PEM, where agreement-svc asks for one. The file is reloaded when it changes.
    #[arg(long, env = "ORDER_AGREEMENTS_CERT", value_name = "FILE.pem", requires = "agreements_key")]
    pub agreements_cert: Option<PathBuf>,
    /// The certificate's private key in PEM. The file is reloaded when it changes.
    #[arg(long, env = "ORDER_AGREEMENTS_KEY", value_name = "FILE.pem", requires = "agreements_cert")]
    pub agreements_key: Option<PathBuf>,
    /// A file with the token by which this service identifies itself to agreement-svc: tenant_kind SERVICE,
    /// issued for the same audience. Needed with --auth jwt. The file is reloaded when it changes.
    #[arg(long, env = "ORDER_SERVICE_TOKEN", value_name = "FILE")]
    pub service_token: Option<PathBuf>,
    /// How long the gate may take to answer, retries included, in milliseconds; and so may an attestation
    /// that an order carries. One try takes at most half of it. An answer older than five seconds is not
    /// used, so more would be of no use.
    #[arg(long, env = "ORDER_GATE_DEADLINE_MS", default_value = "1000", value_parser = clap::value_parser!(u64).range(10..=4000))]
    pub gate_deadline_ms: u64,
    /// How far the clocks of this service and of agreement-svc may differ, in milliseconds. An answer of the gate that
    /// was given at another time than now by more than this, and the five seconds that an answer may be old, is not used:
    /// it may be an old one that is sent again.
    #[arg(long, env = "ORDER_CLOCK_DIFFERENCE_MAX_MS", default_value = "60000", value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub clock_difference_max_ms: u32,
    #[command(flatten)]
    pub identity: auth::Settings,
    #[command(flatten)]
    pub tls: tls::ServerSettings,
    /// Address for Prometheus, path /metrics. Without it there are no metrics. They name no tenants or users.
    #[arg(long, env = "ORDER_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// The catalogue of offers, instead of the one that ships with the service.
    #[arg(long, env = "ORDER_OFFERS", value_name = "FILE.json")]
    pub offers: Option<PathBuf>,
    /// Calls that may be in progress at a time. Further calls wait up to 100 ms for a slot, in a bounded queue that is
    /// fair among tenants, and are then rejected. Fewer than 128 cannot fill a commit.
    #[arg(long, env = "ORDER_CALLS_MAX", default_value = "256", value_parser = clap::value_parser!(u16).range(1..))]
    pub calls_max: u16,
    /// A file with at least 32 random bytes: the key of the hashes by which the service recognises repeated requests. Without
    /// it, a reader of the database can check guesses of a request's content. Every replica needs the same; after a change,
    /// repetitions of earlier requests are refused.
    #[arg(long, env = "ORDER_REQUEST_KEY_FILE", value_name = "FILE")]
    pub request_key_file: Option<PathBuf>,
    /// Subscriptions that a payer may have with one customer and that have not ended; orders beyond that are refused. The
    /// default is more than a company orders and few enough to be cancelled within a second when the agreement is withdrawn.
    #[arg(long, env = "ORDER_SUBSCRIPTIONS_MAX", default_value = "10000", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub subscriptions_max: u32,
    /// Threads that serve calls, each its own connections; by default one for each core. Blocking database work has threads of
    /// its own.
    #[arg(long, env = "ORDER_WORKER_THREADS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub worker_threads: Option<u16>,
}

impl Serve {
    /// How order-svc speaks TLS to agreement-svc.
    #[must_use]
    pub fn agreements_tls(&self) -> tls::ClientSettings {
        tls::ClientSettings {
            ca: self.agreements_ca.clone(),
            cert: self.agreements_cert.clone(),
            key: self.agreements_key.clone(),
        }
    }
}

/// The catalogue in a file, or the default one.
///
/// # Errors
/// A file that cannot be read or holds an invalid offer; the message names the offer.
pub fn read_offers(path: Option<&Path>) -> anyhow::Result<Catalogue> {
    let name = path.map_or_else(|| "that ship with the service".into(), |path| path.display().to_string());
    let text = match path {
        None => DEFAULT_OFFERS.to_owned(),
        Some(path) => std::fs::read_to_string(path).with_context(|| name.clone())?,
    };
    serde_json::from_str(&text).with_context(|| format!("the offers {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_that_ships_is_read() {
        let catalogue = read_offers(None).unwrap();
        assert!(catalogue.find("031C9E47-4802-4248-838E-778FB1D2CC05").is_some());
    }

    #[test]
    fn an_invalid_catalogue_is_refused_with_the_reason() {
        let offer = |min: u32, max: u32, term: &str, country: &str| {
            format!(
                r#"{{"offer_id": "a", "name": "A", "kind": "LICENSE", "quantity_min": {min}, "quantity_max": {max},
                "term": "{term}", "billing_cycle": "MONTHLY", "auto_renews": true, "countries": ["{country}"],
                "agreement_types": []}}"#
            )
        };
        let good = offer(1, 2, "YEAR", "FR");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offers.json");
        for (offers, complaint) in [
            (String::new(), "there is no offer"),
            (format!("{good},{good}"), "is listed twice"),
            (offer(0, 2, "YEAR", "FR"), "quantity_min"),
            (offer(3, 2, "YEAR", "FR"), "quantity_min"),
            (offer(1, 2, "YEAR", "fr"), "country"),
            (offer(1, 2, "PERPETUAL", "FR"), "cannot renew"),
            (offer(1, 2, "FORTNIGHT", "FR"), "unknown variant"),
        ] {
            std::fs::write(&path, format!(r#"{{"offers": [{offers}]}}"#)).unwrap();
            let refused = format!("{:#}", read_offers(Some(&path)).unwrap_err());
            assert!(refused.contains(complaint), "{refused}");
        }
    }
}
