//! TLS of a client: the CA certificates that it trusts, and its own certificate where the server wants one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{anyhow, bail, ensure};
use clap::Args;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, client};
use tonic::transport::{Channel, Endpoint};

use super::{Address, Configured, H2, ca_certificates, identity, provider};
use crate::expiry::Validity;
use crate::metrics::Metrics;
use crate::reload::Watched;

/// The settings of a client's connections to addresses with https.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientSettings {
    /// The CA certificates that verify servers' certificates, in PEM, instead of those that the system trusts.
    #[arg(long, value_name = "FILE.pem")]
    pub ca: Option<PathBuf>,
    /// The client's own certificate in PEM, for servers that want one.
    #[arg(long, value_name = "FILE.pem", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, value_name = "FILE.pem", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// The TLS of a client, for addresses with https.
#[derive(Clone, Debug)]
pub struct Client(Watched<Configured<ClientConfig>>);

/// A connection that is being opened.
type Connecting = BoxFuture<'static, io::Result<TokioIo<client::TlsStream<TcpStream>>>>;

impl Client {
    /// Reads the files, and reloads them on this runtime from then on. Without `--ca` the system's CA certificates
    /// are read, once, if one of the addresses needs them.
    ///
    /// # Errors
    /// Files that cannot be read or do not fit together, or that no address needs.
    pub fn open(settings: &ClientSettings, addresses: &[Address]) -> anyhow::Result<Self> {
        let is_needed = addresses.iter().any(|address| address.is_https);
        let has_files = settings.ca.is_some() || settings.cert.is_some();
        ensure!(is_needed || !has_files, "certificates are for addresses with https");
        let identity = match (&settings.cert, &settings.key) {
            (None, None) => vec![],
            (Some(certificate), Some(key)) => vec![certificate.clone(), key.clone()],
            _ => bail!("a client's certificate and its key are given together"),
        };
        let (has_ca, has_identity) = (settings.ca.is_some(), !identity.is_empty());
        let all = settings.ca.iter().cloned().chain(identity).collect();
        let system = if is_needed && !has_ca { system_ca_certificates() } else { RootCertStore::empty() };
        let parse = move |contents: &[Vec<u8>]| {
            let (ca, identity) = contents.split_at(usize::from(has_ca));
            let mut validity = vec![];
            let roots = match ca {
                [ca] => ca_certificates(ca, "server-ca", &mut validity)?,
                _ => system.clone(),
            };
            let config = client_config(roots, if has_identity { identity } else { &[] }, &mut validity)?;
            Ok(Configured { config: Arc::new(config), validity })
        };
        Watched::open(all, parse).map(Self)
    }

    /// Adds the certificates to the metrics of watched files.
    pub fn register_metrics(&self, metrics: &Metrics) {
        if self.0.has_files() {
            metrics.register_files("client-tls", &self.0, |configured| configured.validity.clone());
        }
    }

    /// The endpoint of a server; the caller adds its timeouts.
    #[must_use]
    pub fn endpoint(address: &Address) -> Endpoint {
        // tonic refuses https without its own TLS, which reads certificates once.
        let scheme = if address.is_https { "https" } else { "http" };
        Endpoint::from(address.uri("http")).origin(address.uri(scheme))
    }

    /// The endpoint of a server at one of the addresses that its name has. Calls and certificates name the server as before.
    #[must_use]
    pub fn endpoint_at(address: &Address, ip: IpAddr) -> Endpoint {
        let at = SocketAddr::new(ip, address.port());
        let connected: Uri = format!("http://{at}").parse().unwrap_or_default();
        let origin = address.uri(if address.is_https { "https" } else { "http" });
        Endpoint::from(connected).origin(origin)
    }

    /// A channel that connects when it is first used and again whenever the connection is lost, each time with the
    /// current files.
    #[must_use]
    pub fn connect_lazy(&self, address: &Address, endpoint: &Endpoint) -> Channel {
        if address.is_https {
            endpoint.connect_with_connector_lazy(self.connector(address))
        } else {
            endpoint.connect_lazy()
        }
    }

    /// A channel that is connected.
    ///
    /// # Errors
    /// The server cannot be reached or is not trusted.
    pub async fn connect(&self, address: &Address, endpoint: &Endpoint) -> anyhow::Result<Channel> {
        let connected = if address.is_https {
            endpoint.connect_with_connector(self.connector(address)).await
        } else {
            endpoint.connect().await
        };
        connected.map_err(|error| {
            // Some of the causes repeat the text of their own cause.
            let mut causes: Vec<_> = anyhow!(error).chain().map(ToString::to_string).collect();
            causes.dedup();
            anyhow!("{address} cannot be reached: {}", causes.join(": "))
        })
    }

    fn connector(
        &self,
        address: &Address,
    ) -> impl tower::Service<
        Uri,
        Response = TokioIo<client::TlsStream<TcpStream>>,
        Error = io::Error,
        Future = Connecting,
    > + Send
    + 'static {
        let (config, address) = (self.0.clone(), address.clone());
        // The endpoint may lead to one of the addresses of the name that the certificate has to have.
        tower::service_fn(move |at: Uri| {
            let (connector, address) = (TlsConnector::from(config.now().config.clone()), address.clone());
            async move {
                let name = ServerName::try_from(address.bare_host().to_owned()).map_err(io::Error::other)?;
                let host = at.host().unwrap_or_default().trim_matches(['[', ']']);
                let connection = TcpStream::connect((host, address.port())).await?;
                connection.set_nodelay(true)?;
                connector.connect(name, connection).await.map(TokioIo::new)
            }
            .boxed()
        })
    }
}

fn client_config(
    roots: RootCertStore,
    own: &[Vec<u8>],
    validity: &mut Vec<Validity>,
) -> anyhow::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let mut config = match own {
        [] => builder.with_no_client_auth(),
        own => {
            let (chain, key) = identity(own, "client-certificate", validity)?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(config)
}

fn system_ca_certificates() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // A machine may have none, until a certificate has to be trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
