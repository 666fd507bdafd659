//! An identity provider that publishes its keys over HTTP or HTTPS, as OpenID Connect Discovery describes, and signs
//! tokens with them.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use axum::serve::Listener;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_RSA_SHA256};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::pki::Ca;

/// The paths of an identity provider, under its address.
const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/keys";

/// A private RSA key of an identity provider, which signs with RS256 as most providers do.
pub struct ProviderKey {
    signs: EncodingKey,
    public: Jwk,
}

/// An identity provider. Dropping it ends it.
pub struct IdentityProvider {
    issuer: String,
    base: String,
    answers: Arc<Mutex<Answers>>,
    serving: JoinHandle<()>,
}

/// Accepts connections over TLS.
struct TlsListener {
    tcp: TcpListener,
    tls: TlsAcceptor,
}

struct Answers {
    document: String,
    keys: (StatusCode, String),
}

impl ProviderKey {
    /// A new key.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn generate(id: &str) -> Result<Self, String> {
        let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).map_err(|error| error.to_string())?;
        let failed = |error: jsonwebtoken::errors::Error| error.to_string();
        let signs = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).map_err(failed)?;
        let mut public = Jwk::from_encoding_key(&signs, Algorithm::RS256).map_err(failed)?;
        public.common.key_id = Some(id.to_owned());
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { signs, public })
    }

    /// A token with these claims.
    ///
    /// # Panics
    /// When it cannot be signed: then no test means anything.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&self.public.common.key_id);
        match jsonwebtoken::encode(&header, claims, &self.signs) {
            Ok(token) => token,
            Err(why) => panic!("no token can be signed: {why}"),
        }
    }
}

impl IdentityProvider {
    /// Starts one for an issuer, which publishes these keys over HTTP.
    ///
    /// # Errors
    /// Why it cannot listen.
    pub async fn start(issuer: &str, keys: &[&ProviderKey]) -> Result<Self, String> {
        let (tcp, address) = listen().await?;
        Ok(Self::serve(tcp, format!("http://{address}"), issuer, keys))
    }

    /// Starts one that publishes over HTTPS at `localhost`, with the CA's certificate for a host.
    ///
    /// # Errors
    /// Why it cannot listen, or why there is no certificate.
    pub async fn start_https(
        issuer: &str,
        keys: &[&ProviderKey],
        ca: &Ca,
        host: &str,
    ) -> Result<Self, String> {
        let tls = ca.acceptor(host)?;
        let (tcp, address) = listen().await?;
        let base = format!("https://localhost:{}", address.port());
        Ok(Self::serve(TlsListener { tcp, tls }, base, issuer, keys))
    }

    fn serve<L>(listener: L, base: String, issuer: &str, keys: &[&ProviderKey]) -> Self
    where
        L: Listener<Addr: std::fmt::Debug>,
    {
        let document = json!({"issuer": issuer, "jwks_uri": format!("{base}{KEYS}")}).to_string();
        let answers = Arc::new(Mutex::new(Answers { document, keys: set(keys) }));
        let (described, published) = (answers.clone(), answers.clone());
        let router = Router::new()
            .route(DISCOVERY, get(async move || lock(&described).document.clone()))
            .route(KEYS, get(async move || lock(&published).keys.clone()));
        let serving = tokio::spawn(async move {
            if let Err(why) = axum::serve(listener, router).await {
                panic!("the identity provider ended: {why}");
            }
        });
        Self { issuer: issuer.to_owned(), base, answers, serving }
    }

    /// Its entry in the file of identity providers: found by discovery, its keys fetched every five seconds.
    #[must_use]
    pub fn setting(&self, audience: &str, claims: &Value, identities: &Value) -> Value {
        json!({
            "issuer": self.issuer,
            "audiences": [audience],
            "keys": {"discovery_url": format!("{}{DISCOVERY}", self.base)},
            "refresh_seconds": 5,
            "claims": claims,
            "identities": identities,
        })
    }

    /// Publishes other keys.
    pub fn publish(&self, keys: &[&ProviderKey]) {
        lock(&self.answers).keys = set(keys);
    }

    /// Answers with an error from now on, in place of the keys.
    pub fn fail(&self) {
        lock(&self.answers).keys = (StatusCode::SERVICE_UNAVAILABLE, "maintenance".into());
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.tcp).await;
            // A client that does not trust the certificate ends the handshake.
            if let Ok(stream) = self.tls.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

impl Drop for IdentityProvider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Any free port of this machine.
async fn listen() -> Result<(TcpListener, SocketAddr), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    Ok((listener, address))
}

fn set(keys: &[&ProviderKey]) -> (StatusCode, String) {
    let keys: Vec<_> = keys.iter().map(|key| &key.public).collect();
    (StatusCode::OK, json!({ "keys": keys }).to_string())
}

fn lock(answers: &Mutex<Answers>) -> std::sync::MutexGuard<'_, Answers> {
    answers.lock().unwrap_or_else(PoisonError::into_inner)
}
