//! What a secured cluster is started with: a certificate authority, an issuer of tokens, and the files
//! that both fill. Everything can be replaced while the services run.

use std::fs;
use std::path::PathBuf;

use chassis::auth::token::{SigningKey, claims};
use chassis::auth::{self, Auth, Bearer, Caller, Credentials};
use chassis::clock::Clock;
use chassis::tls;
use chrono::TimeDelta;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::world;

/// Who issues the tokens of a secured cluster, and for whom.
pub const ISSUER: &str = "https://issuer.example";
pub const AUDIENCE: &str = "csp";

/// The secrets of a secured cluster. Dropping it removes them.
pub struct Vault {
    folder: TempDir,
    clock: Clock,
    signs: SigningKey,
}

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Vault {
    /// Makes all of them.
    ///
    /// # Errors
    /// Why they cannot be made.
    pub fn new(clock: Clock) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (signs, _) = SigningKey::generate()?;
        let vault = Self { folder, clock, signs };
        vault.put("jwks.json", &SigningKey::public_set(&[&vault.signs]))?;
        vault.put("service.token", &vault.token(&world::service()))?;
        let authority = Authority::new()?;
        vault.put("ca.pem", &authority.pem())?;
        vault.issue(&authority, "server")?;
        vault.issue(&authority, "client")?;
        Ok(vault)
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
    pub fn issue(&self, authority: &Authority, name: &str) -> Result<(), String> {
        let failed = |error: rcgen::Error| error.to_string();
        let key = KeyPair::generate().map_err(failed)?;
        let params = CertificateParams::new(["127.0.0.1".into(), "localhost".into()]).map_err(failed)?;
        let certificate = params.signed_by(&key, &authority.0).map_err(failed)?;
        self.put(&format!("{name}.key"), &key.serialize_pem())?;
        self.put(&format!("{name}.pem"), &certificate.pem())
    }

    /// A token of the issuer's for somebody, for longer than any test takes.
    ///
    /// # Panics
    /// When it cannot be signed: then no test means anything.
    #[must_use]
    pub fn token(&self, caller: &Caller) -> String {
        let claims = claims(caller, ISSUER, AUDIENCE, self.clock.now(), TimeDelta::days(3650));
        match self.signs.sign(&claims) {
            Ok(token) => token,
            Err(why) => panic!("no token can be signed: {why}"),
        }
    }

    /// The key that signs tokens.
    #[must_use]
    pub fn signs(&self) -> &SigningKey {
        &self.signs
    }

    /// How both services identify callers.
    #[must_use]
    pub fn identity(&self) -> auth::Settings {
        auth::Settings {
            auth: Auth::Jwt,
            jwks: Some(self.file("jwks.json")),
            jwt_issuer: Some(ISSUER.into()),
            jwt_audience: Some(AUDIENCE.into()),
            jwt_leeway_seconds: 0,
        }
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

impl Authority {
    /// A new one, trusted by nobody yet.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn new() -> Result<Self, String> {
        let failed = |error: rcgen::Error| error.to_string();
        let mut params = CertificateParams::new([]).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().map_err(failed)?;
        CertifiedIssuer::self_signed(params, key).map(Self).map_err(failed)
    }

    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }
}

/// Credentials that present a token as it stands.
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
