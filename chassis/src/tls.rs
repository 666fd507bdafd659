//! TLS on both ends of a connection: certificates that are read again while serving, handshakes beside
//! each other and within bounds. Who calls is not decided here: a certificate lets a connection in, and
//! each call on it is identified by itself.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::auth::Auth;
use crate::expiry::Validity;
use crate::metrics::Metrics;
use crate::reload::Watched;

/// Connections that have shaken hands and wait to be served, which takes no time.
const READY_MAX: usize = 64;

/// What HTTP/2 is called in a handshake.
const H2: &[u8] = b"h2";

/// The settings of a server's connections. The services add the names of their environment variables.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerSettings {
    /// The server's certificate in PEM, followed by those between it and the authority. With it the server
    /// speaks TLS, 1.2 or 1.3, and nothing else. Read again when it changes.
    #[arg(long, value_name = "FILE.pem", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key in PEM. Read again when it changes.
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// The authorities whose certificates clients need, in PEM: mutual TLS. Read again when it changes.
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
    /// Lets tokens travel unencrypted beyond this machine: where something else encrypts, as a mesh does.
    #[arg(long, conflicts_with = "tls_cert")]
    pub plaintext: bool,
}

/// The settings of a client's connections to addresses with https.
#[derive(Clone, Debug, Default, Args)]
pub struct ClientSettings {
    /// The authorities whose certificates servers need, in PEM, instead of those that the system trusts.
    #[arg(long, value_name = "FILE.pem")]
    pub ca: Option<PathBuf>,
    /// The client's own certificate in PEM, where the server asks for one.
    #[arg(long, value_name = "FILE.pem", requires = "key")]
    pub cert: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, value_name = "FILE.pem", requires = "cert")]
    pub key: Option<PathBuf>,
}

/// A connection of a client, while it comes about.
type Connecting = BoxFuture<'static, io::Result<TokioIo<client::TlsStream<TcpStream>>>>;

/// How a server takes connections.
#[derive(Clone, Debug)]
pub struct Server(pub(crate) Option<Watched<Configured<ServerConfig>>>);

/// How a client speaks TLS, where an address asks for it.
#[derive(Clone, Debug)]
pub struct Client(Watched<Configured<ClientConfig>>);

/// What files of certificates come to.
pub(crate) struct Configured<C> {
    config: Arc<C>,
    credentials: Vec<Validity>,
}

/// Where a server is reached: `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    is_https: bool,
    host: String,
    port: u16,
}

impl Server {
    /// Reads the certificate, on a runtime that looks at it from then on.
    ///
    /// # Errors
    /// Files that do not fit together; tokens that would travel unencrypted without anybody having said
    /// that they may.
    pub fn open(settings: &ServerSettings, auth: Auth, address: SocketAddr) -> Result<Self, String> {
        let (certificate, key) = match (&settings.tls_cert, &settings.tls_key) {
            (None, None) => {
                if settings.tls_client_ca.is_some() {
                    return Err("--tls-client-ca needs --tls-cert and --tls-key".into());
                }
                if auth == Auth::Jwt && !address.ip().is_loopback() && !settings.plaintext {
                    return Err(format!(
                        "tokens would travel to {address} unencrypted: give --tls-cert and --tls-key, or, where \
                         something else encrypts, --plaintext"
                    ));
                }
                return Ok(Self(None));
            }
            (Some(_), None) => return Err("--tls-cert needs --tls-key".into()),
            (None, Some(_)) => return Err("--tls-key needs --tls-cert".into()),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
        };
        if settings.plaintext {
            return Err("--plaintext contradicts --tls-cert; leave one of them out".into());
        }
        let mut files = vec![certificate, key];
        files.extend(settings.tls_client_ca.clone());
        let config = Watched::open(files, server_config);
        config
            .map(|config| Self(Some(config)))
            .map_err(|why| format!("--tls-cert, --tls-key, --tls-client-ca: {why}"))
    }

    /// Has its certificates told of, where there are any.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        if let Some(files) = &self.0 {
            metrics.register_files("server-tls", files, |configured| configured.credentials.clone());
        }
    }
}

/// Connections that have shaken hands. A slow one holds up no other, and the connection itself fails when it
/// takes too long to begin.
pub(crate) fn accept<C>(
    incoming: impl Stream<Item = io::Result<C>> + Send + 'static,
    config: Watched<Configured<ServerConfig>>,
) -> ReceiverStream<io::Result<server::TlsStream<C>>>
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ready, connections) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let mut incoming = pin!(incoming);
        loop {
            let connection = tokio::select! {
                () = ready.closed() => return,
                connection = incoming.next() => connection,
            };
            let Some(Ok(connection)) = connection else { return };
            let (acceptor, ready) = (TlsAcceptor::from(config.now().config.clone()), ready.clone());
            tokio::spawn(async move {
                match acceptor.accept(connection).await {
                    Ok(connection) => drop(ready.send(Ok(connection)).await),
                    Err(error) => tracing::debug!(%error, "a connection did not come about"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

impl Client {
    /// Reads the files, on a runtime that looks at them from then on. Without an authority of one's own the
    /// system's are read, once, if one of the addresses needs any.
    ///
    /// # Errors
    /// Files that cannot be read or do not fit together, or that none of the addresses has a use for.
    pub fn open(settings: &ClientSettings, addresses: &[Address]) -> Result<Self, String> {
        let is_of_use = addresses.iter().any(|address| address.is_https);
        if !is_of_use && (settings.ca.is_some() || settings.cert.is_some()) {
            return Err("certificates are for addresses with https".into());
        }
        let identity = match (&settings.cert, &settings.key) {
            (None, None) => vec![],
            (Some(certificate), Some(key)) => vec![certificate.clone(), key.clone()],
            _ => return Err("a client's certificate and its key are given together".into()),
        };
        let (has_ca, has_identity) = (settings.ca.is_some(), !identity.is_empty());
        let all = settings.ca.iter().cloned().chain(identity).collect();
        let system = if is_of_use && !has_ca { system_authorities() } else { RootCertStore::empty() };
        let parse = move |contents: &[Vec<u8>]| {
            let (ca, identity) = contents.split_at(usize::from(has_ca));
            let mut credentials = vec![];
            let roots = match ca {
                [ca] => authorities(ca, "server-authority", &mut credentials)?,
                _ => system.clone(),
            };
            let config = client_config(roots, if has_identity { identity } else { &[] }, &mut credentials)?;
            Ok(Configured { config: Arc::new(config), credentials })
        };
        Watched::open(all, parse).map(Self)
    }

    /// Has its certificates told of, where there are any.
    pub fn register_metrics(&self, metrics: &Metrics) {
        if self.0.has_files() {
            metrics.register_files("client-tls", &self.0, |configured| configured.credentials.clone());
        }
    }

    /// How a server is called there, before limits of time are added.
    #[must_use]
    pub fn endpoint(address: &Address) -> Endpoint {
        // tonic refuses https without its own TLS, which reads certificates once.
        let there =
            |scheme| format!("{scheme}://{}:{}", address.host, address.port).parse().unwrap_or_default();
        let scheme = if address.is_https { "https" } else { "http" };
        Endpoint::from(there("http")).origin(there(scheme))
    }

    /// A channel that connects when it is first used and again whenever the connection is lost, each time
    /// with what the files say then.
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
    /// Why the server cannot be reached or is not believed.
    pub async fn connect(&self, address: &Address, endpoint: &Endpoint) -> Result<Channel, String> {
        let connected = if address.is_https {
            endpoint.connect_with_connector(self.connector(address)).await
        } else {
            endpoint.connect().await
        };
        connected.map_err(|error| {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let mut causes: Vec<_> = causes.map(ToString::to_string).collect();
            causes.dedup();
            format!("{address} cannot be reached: {}", causes.join(": "))
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
        tower::service_fn(move |_: Uri| {
            let (connector, address) = (TlsConnector::from(config.now().config.clone()), address.clone());
            async move {
                let host = address.host.trim_matches(['[', ']']);
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                let connection = TcpStream::connect((host, address.port)).await?;
                connection.set_nodelay(true)?;
                connector.connect(name, connection).await.map(TokioIo::new)
            }
            .boxed()
        })
    }
}

impl Address {
    /// Whether what is sent there can be read by nobody on the way: it is encrypted, or stays on this machine.
    #[must_use]
    pub fn is_private(&self) -> bool {
        let host = self.host.trim_matches(['[', ']']);
        self.is_https || host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} must have the form http://HOST:PORT or https://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { return Err(wrong()) };
        let address = Self { is_https, host: host.to_owned(), port };
        if address.to_string() == text.trim_end_matches('/') { Ok(address) } else { Err(wrong()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What certificate, key and, where there are any, authorities of clients come to.
fn server_config(contents: &[Vec<u8>]) -> Result<Configured<ServerConfig>, String> {
    let mut credentials = vec![];
    let (chain, key) = identity(contents, "server-certificate", &mut credentials)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let builder = match contents.get(2) {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let roots = Arc::new(authorities(ca, "client-authority", &mut credentials)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![H2.to_vec()];
    if contents.len() > 2 {
        // A session that is resumed does not show its certificate again, which may have expired since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Configured { config: Arc::new(config), credentials })
}

fn client_config(
    roots: RootCertStore,
    own: &[Vec<u8>],
    credentials: &mut Vec<Validity>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?.with_root_certificates(roots);
    let mut config = match own {
        [] => builder.with_no_client_auth(),
        own => {
            let (chain, key) = identity(own, "client-certificate", credentials)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())?
        }
    };
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(config)
}

fn identity(
    contents: &[Vec<u8>],
    name: &'static str,
    credentials: &mut Vec<Validity>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let [chain, key, ..] = contents else { return Err("a certificate needs its key".into()) };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "there is no private key in PEM")?;
    let chain = certificates(chain)?;
    credentials.extend(Validity::of_certificates(name, &chain));
    Ok((chain, key))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| format!("a certificate is no PEM: {error}"))?;
    if all.is_empty() { Err("there is no certificate in PEM".into()) } else { Ok(all) }
}

fn authorities(
    pem: &[u8],
    name: &'static str,
    credentials: &mut Vec<Validity>,
) -> Result<RootCertStore, String> {
    let all = certificates(pem)?;
    credentials.extend(Validity::of_certificates(name, &all));
    let mut roots = RootCertStore::empty();
    for certificate in all {
        roots.add(certificate).map_err(|error| format!("a certificate of an authority: {error}"))?;
    }
    Ok(roots)
}

fn system_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // A machine without any is fine until something has to be believed.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}
