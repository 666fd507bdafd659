//! The keys and certificates of a secured cluster: a CA, an issuer of tokens, and the files
//! that both fill. Everything can be replaced while the services run.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use chassis::auth::jwt::signing::{SigningKey, claims};
use chassis::auth::{self, Auth, Bearer, Caller, Credentials};
use chassis::clock::Clock;
use chassis::tls;
use chrono::TimeDelta;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::fixtures;

/// Who issues the tokens of a secured cluster, and for whom.
const ISSUER: &str = "https://issuer.example";
pub const AUDIENCE: &str = "csp";

/// Longer than any test takes, its clock's leaps included.
const TOKEN_VALID: TimeDelta = TimeDelta::days(3650);

/// A year in which no test runs any more.
const FAR: i32 = 4096;

/// The secrets of a secured cluster. Dropping it removes them.
pub struct Pki {
    folder: TempDir,
    issuer: Issuer,
}

/// Who issues tokens.
pub struct Issuer {
    signs: SigningKey,
    name: String,
    audience: String,
    clock: Clock,
    valid_for: TimeDelta,
}

/// A certificate authority (CA).
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Pki {
    /// Makes all of them.
    ///
    /// # Errors
    /// Why they cannot be made.
    pub fn new(clock: Clock) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (signs, _) = SigningKey::generate().map_err(|error| error.to_string())?;
        let issuer = Issuer::new(signs, ISSUER.into(), AUDIENCE.into(), clock, TOKEN_VALID);
        let pki = Self { folder, issuer };
        pki.put("jwks.json", &SigningKey::public_set(&[pki.issuer.signs()]))?;
        pki.put("service.token", &pki.issuer.token(&fixtures::service()))?;
        let ca = Ca::new()?;
        pki.put("ca.pem", &ca.pem())?;
        pki.issue(&ca, "server")?;
        pki.issue(&ca, "client")?;
        Ok(pki)
    }

    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file, at once and as a whole.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn put(&self, name: &str, contents: &str) -> Result<(), String> {
        let fresh = self.file(&format!("{name}.fresh"));
        let put = fs::write(&fresh, contents).and_then(|()| fs::rename(&fresh, self.file(name)));
        put.map_err(|error| format!("{name}: {error}"))
    }

    /// Makes a certificate for this machine, NAME.pem, and its key, NAME.key.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn issue(&self, ca: &Ca, name: &str) -> Result<(), String> {
        self.issue_until(ca, name, FAR)
    }

    /// The same, for one that ends when a year begins.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn issue_until(&self, ca: &Ca, name: &str, year: i32) -> Result<(), String> {
        let (certificate, key) = ca.certificate(&["127.0.0.1", "localhost"], year)?;
        self.put(&format!("{name}.key"), &key.serialize_pem())?;
        self.put(&format!("{name}.pem"), &certificate.pem())
    }

    /// Who issues the tokens.
    #[must_use]
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// How both services identify callers.
    #[must_use]
    pub fn identity(&self) -> auth::Settings {
        auth::Settings {
            auth: Auth::Jwt,
            jwks: Some(self.file("jwks.json")),
            jwt_issuer: Some(ISSUER.into()),
            jwt_audience: Some(AUDIENCE.into()),
            identity_providers: None,
            jwt_leeway_seconds: 0,
        }
    }

    /// How both services identify callers of this issuer and of others.
    ///
    /// # Errors
    /// Why the file cannot be written.
    pub fn with_providers(&self, others: &[Value]) -> Result<auth::Settings, String> {
        let keys = json!({"jwks_file": self.file("jwks.json")});
        let own = json!({"issuer": ISSUER, "audiences": [AUDIENCE], "keys": keys});
        let all: Vec<_> = others.iter().chain([&own]).collect();
        self.put("providers.json", &json!({ "providers": all }).to_string())?;
        Ok(auth::Settings {
            auth: Auth::Jwt,
            identity_providers: Some(self.file("providers.json")),
            ..auth::Settings::insecure()
        })
    }

    /// How both services take connections.
    #[must_use]
    pub fn server_tls(&self) -> tls::ServerSettings {
        tls::ServerSettings {
            tls_cert: Some(self.file("server.pem")),
            tls_key: Some(self.file("server.key")),
            tls_client_ca: Some(self.file("ca.pem")),
            plaintext: false,
        }
    }

    /// How a client connects that has the certificate of that name, or none.
    #[must_use]
    pub fn client_tls(&self, name: Option<&str>) -> tls::ClientSettings {
        tls::ClientSettings {
            ca: Some(self.file("ca.pem")),
            cert: name.map(|name| self.file(&format!("{name}.pem"))),
            key: name.map(|name| self.file(&format!("{name}.key"))),
        }
    }
}

impl Issuer {
    /// One of that name, whose tokens are for an audience and end so long after the clock.
    #[must_use]
    pub fn new(
        signs: SigningKey,
        name: String,
        audience: String,
        clock: Clock,
        valid_for: TimeDelta,
    ) -> Self {
        Self { signs, name, audience, clock, valid_for }
    }

    /// The claims of a caller's token.
    #[must_use]
    pub fn claims(&self, caller: &Caller) -> Value {
        claims(caller, &self.name, &self.audience, self.clock.now(), self.valid_for)
    }

    /// A token for a caller.
    ///
    /// # Panics
    /// When it cannot be signed: then no test means anything.
    #[must_use]
    pub fn token(&self, caller: &Caller) -> String {
        match self.signs.sign(&self.claims(caller)) {
            Ok(token) => token,
            Err(why) => panic!("no token can be signed: {why}"),
        }
    }

    /// The key that signs tokens.
    #[must_use]
    pub fn signs(&self) -> &SigningKey {
        &self.signs
    }
}

impl Ca {
    /// A new one, not trusted yet.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn new() -> Result<Self, String> {
        Self::until(FAR)
    }

    /// The same, which ends when a year begins.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn until(year: i32) -> Result<Self, String> {
        let failed = |error: rcgen::Error| error.to_string();
        let mut params = CertificateParams::new([]).map_err(failed)?;
        params.not_after = date_time_ymd(year, 1, 1);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(failed)?;
        CertifiedIssuer::self_signed(params, key).map(Self).map_err(failed)
    }

    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for hosts, which ends when a year begins, and its key.
    fn certificate(&self, hosts: &[&str], year: i32) -> Result<(Certificate, KeyPair), String> {
        let failed = |error: rcgen::Error| error.to_string();
        let key = KeyPair::generate().map_err(failed)?;
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).map_err(failed)?;
        params.not_after = date_time_ymd(year, 1, 1);
        let certificate = params.signed_by(&key, &self.0).map_err(failed)?;
        Ok((certificate, key))
    }

    /// The TLS of a server with a certificate for a host.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub(super) fn acceptor(&self, host: &str) -> Result<TlsAcceptor, String> {
        let (certificate, key) = self.certificate(&[host], FAR)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key)
            });
        config.map(|config| Arc::new(config).into()).map_err(|error| error.to_string())
    }
}

/// Credentials that present a token unchanged.
///
/// # Panics
/// What cannot stand in metadata.
#[must_use]
pub fn bearer(token: &str) -> Credentials {
    match Bearer::read(token.as_bytes()) {
        Ok(bearer) => Credentials::Token(bearer),
        Err(why) => panic!("{why}"),
    }
}
