//! The connections to agreement-svc: to each IP address in `--agreements`, and to each address that its names have.

use std::time::Duration;

use agreement_gate_client::{Lookup, Name, Replicas, keep_alive};
use anyhow::{Context, bail, ensure};
use chassis::auth::Auth;
use chassis::metrics::Metrics;
use chassis::tls::{self, Address};
use prometheus::PullingGauge;

use crate::config::Serve;

/// The replicas, and the TLS of the connections to them.
#[derive(Clone)]
pub(crate) struct Connections {
    pub replicas: Replicas,
    tls: tls::Client,
}

impl Connections {
    /// Connects to each IP address when it is first used and again whenever the connection is lost. Names get their replicas
    /// from lookups, which the caller runs.
    ///
    /// # Errors
    /// Certificates that are missing or do not fit; tokens that would travel unencrypted.
    pub(crate) fn open(config: &Serve, deadline: Duration) -> anyhow::Result<(Self, Vec<Lookup>)> {
        let settings = config.agreements_tls();
        let is_readable_on_the_way = |address: &&Address| !address.is_private();
        if let Some(address) = config.agreements.iter().find(is_readable_on_the_way)
            && config.identity.auth == Auth::Jwt
            && !config.tls.plaintext
        {
            bail!(
                "tokens would travel to --agreements {address} unencrypted: use https, or, where something else \
                 encrypts, --plaintext"
            );
        }
        let tls = tls::Client::open(&settings, &config.agreements)
            .context("--agreements-ca, --agreements-cert, --agreements-key")?;
        ensure!(!config.agreements.is_empty(), "--agreements names no address");
        let (ips, names): (Vec<_>, Vec<_>) =
            config.agreements.iter().partition(|address| address.ip().is_some());
        let channels = ips
            .into_iter()
            .map(|address| tls.connect_lazy(address, &keep_alive(tls::Client::endpoint(address), deadline)));
        let names = names.into_iter().map(|address| {
            let (tls, at) = (tls.clone(), address.clone());
            Name::new(address.bare_host(), address.port(), move |ip| {
                let (tls, at) = (tls.clone(), at.clone());
                let endpoint = keep_alive(tls::Client::endpoint_at(&at, ip), deadline);
                async move { tls.connect(&at, &endpoint).await }
            })
        });
        let (replicas, lookups) = Replicas::open(channels, names);
        Ok((Self { replicas, tls }, lookups))
    }

    /// Registers the metrics of the replicas and of the certificates.
    ///
    /// # Errors
    /// They are registered already.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) -> Result<(), prometheus::Error> {
        self.tls.register_metrics(metrics);
        let replicas = self.replicas.clone();
        metrics.register(PullingGauge::new(
            "agreements_replicas",
            "Replicas of agreement-svc that calls may go to: IP addresses in --agreements, and those of its names.",
            Box::new(move || replicas.count() as f64),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Cli, Command};

    fn connections(settings: &[&str]) -> anyhow::Result<Connections> {
        let fixed = ["order-svc", "serve", "--database", "sqlite:x"];
        let cli = Cli::try_parse_from(fixed.iter().chain(settings))?;
        let Command::Serve(config) = cli.command else { panic!("the command is serve") };
        Connections::open(&config, Duration::from_millis(100)).map(|(connections, _)| connections)
    }

    #[tokio::test]
    async fn invalid_addresses_and_unencrypted_tokens_are_refused() {
        let jwt = |address| ["--auth", "jwt", "--jwks", "x", "--agreements", address];
        for (settings, complaint) in [
            (&["--auth", "insecure", "--agreements", "localhost:50051"][..], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "ftp://localhost:50051"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "http://localhost"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "http://localhost:1/path"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "http://localhost:1,"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements-ca", "ca.pem"], "https"),
            (&["--auth", "insecure", "--agreements-cert", "cert.pem"], "--agreements-key"),
            (&jwt("http://agreements:50051"), "--plaintext"),
            (&jwt("http://10.0.0.1:50051"), "--plaintext"),
        ] {
            let why = format!("{:#}", connections(settings).err().unwrap());
            assert!(why.contains(complaint), "{settings:?}: {why}");
        }
        for address in ["http://localhost:1", "http://[::1]:1", "http://127.0.0.1:1/", "https://agreements:1"]
        {
            assert!(connections(&jwt(address)).is_ok(), "{address}");
        }
        let meshed = [&jwt("http://agreements:1")[..], &["--plaintext"]].concat();
        assert!(connections(&meshed).is_ok());
    }

    #[tokio::test]
    async fn an_address_is_a_replica_and_a_name_leads_to_some() {
        let addresses = "http://127.0.0.1:1,http://agreements.invalid:2,https://127.0.0.1:3";
        let open = connections(&["--auth", "insecure", "--agreements", addresses]).unwrap();
        assert_eq!(open.replicas.count(), 2);
    }
}
