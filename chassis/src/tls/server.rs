//! TLS of a server: its certificate, and mutual TLS where clients need certificates of their own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use super::{Configured, H2, HTTP1, ca_certificates, identity, provider};
use crate::auth::Auth;
use crate::metrics::Metrics;
use crate::reload::Watched;

/// The settings of a server's connections. Each service adds the names of its environment variables.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerSettings {
    /// The server's certificate in PEM, followed by its intermediate certificates. With it the server
    /// speaks only TLS, 1.2 or 1.3. The file is reloaded when it changes.
    #[arg(long, value_name = "FILE.pem", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM. The file is reloaded when it changes.
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The CA certificates that verify clients' certificates, in PEM: mutual TLS. The file is reloaded when it
    /// changes.
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Allows tokens to travel unencrypted beyond this machine, where something else encrypts, as a mesh does.
    #[arg(long, conflicts_with = "tls_cert")]
    pub plaintext: bool,
}

/// The TLS of a server, or none.
#[derive(Clone, Debug)]
pub struct Server(Option<Watched<Configured<ServerConfig>>>);

impl Server {
    /// Reads the certificate, and reloads it on this runtime from then on.
    ///
    /// # Errors
    /// Files that do not fit together; tokens that would travel unencrypted without `--plaintext`.
    pub fn open(settings: &ServerSettings, auth: Auth, address: SocketAddr) -> anyhow::Result<Self> {
        Self::open_for(H2, settings, auth, address)
    }

    /// As [`Server::open`], for connections of HTTP/1.1 by a proxy for browsers. It needs no client certificate, since widely
    /// used proxies cannot present one: each request carries the token of its user.
    ///
    /// # Errors
    /// As [`Server::open`].
    pub fn open_for_proxy(
        settings: &ServerSettings,
        auth: Auth,
        address: SocketAddr,
    ) -> anyhow::Result<Self> {
        let settings = ServerSettings { tls_client_ca: None, ..settings.clone() };
        Self::open_for(HTTP1, &settings, auth, address)
    }

    fn open_for(
        protocol: &'static [u8],
        settings: &ServerSettings,
        auth: Auth,
        address: SocketAddr,
    ) -> anyhow::Result<Self> {
        let (certificate, key) = match (&settings.tls_cert, &settings.tls_key) {
            (None, None) => {
                ensure!(settings.tls_client_ca.is_none(), "--tls-client-ca needs --tls-cert and --tls-key");
                ensure!(
                    auth != Auth::Jwt || address.ip().is_loopback() || settings.plaintext,
                    "tokens would travel to {address} unencrypted: give --tls-cert and --tls-key, or, where something \
                     else encrypts, --plaintext"
                );
                return Ok(Self(None));
            }
            (Some(_), None) => bail!("--tls-cert needs --tls-key"),
            (None, Some(_)) => bail!("--tls-key needs --tls-cert"),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        };
        ensure!(!settings.plaintext, "--plaintext contradicts --tls-cert; leave one of them out");
        let mut files = vec![certificate, key];
        files.extend(settings.tls_client_ca.clone());
        let read = move |contents: &[Vec<u8>]| server_config(contents, protocol);
        let config = Watched::open(files, read).context("--tls-cert, --tls-key, --tls-client-ca")?;
        Ok(Self(Some(config)))
    }

    /// Adds the certificates to the metrics of watched files.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        if let Some(files) = &self.0 {
            metrics.register_files("server-tls", files, |configured| configured.validity.clone());
        }
    }

    /// What shakes hands on a new connection with the current certificate, if the server speaks TLS.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        self.0.as_ref().map(|files| TlsAcceptor::from(files.now().config.clone()))
    }
}

/// The configuration for a certificate, its key and, if there is a third file, the CA certificates
/// that verify clients.
fn server_config(contents: &[Vec<u8>], protocol: &[u8]) -> anyhow::Result<Configured<ServerConfig>> {
    let mut validity = vec![];
    let (chain, key) = identity(contents, "server-certificate", &mut validity)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match contents.get(2) {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(ca_certificates(ca, "client-ca", &mut validity)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    if contents.len() > 2 {
        // A resumed session does not show its certificate again, which may have expired since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Configured { config: Arc::new(config), validity })
}
