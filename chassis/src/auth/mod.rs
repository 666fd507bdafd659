//! Authentication: the identity behind each call, from metadata (on loopback only) or from a signed token.
//!
//! The server identifies the caller of each call once and hands it to the handler as [`Caller`]; request messages
//! never carry an identity. The access policy ([`access`]) says which callers may make a call. The services decide
//! which resources a caller may see.

pub mod access;
mod bearer;
mod caller;
pub mod jwt;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use chrono::TimeDelta;
use clap::{Args, ValueEnum};
use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

pub use self::bearer::Bearer;
pub use self::caller::{Caller, Channel, Vocabulary, caller};
use self::jwt::{KeySet, Tokens};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::reload::Watched;
use crate::status::failure;

/// How callers are identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Trusts the identity in the call's metadata; for development, on loopback only.
    Insecure,
    /// Verifies a signed token (JWT).
    Jwt,
}

/// The settings of authentication. Each service adds the names of its environment variables.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// How callers are identified. There is no default; `insecure` is for development.
    #[arg(long, value_enum)]
    pub auth: Auth,
    /// The keys that sign tokens, as a JWK set: those with a kid for EdDSA (Ed25519), ES256 and RS256. The file is
    /// reloaded when it changes; an empty set rejects all tokens.
    #[arg(long, value_name = "FILE.json")]
    pub jwks: Option<PathBuf>,
    /// The issuer that tokens must name (iss).
    #[arg(long, value_name = "NAME")]
    pub jwt_issuer: Option<String>,
    /// The audience that tokens must name (aud); the same for both services, since one forwards tokens to the other.
    #[arg(long, value_name = "NAME")]
    pub jwt_audience: Option<String>,
    /// The largest difference between the clocks of issuer and service.
    #[arg(long, value_name = "SECONDS", requires = "jwks", default_value = "30", value_parser = clap::value_parser!(u16).range(0..=300))]
    pub jwt_leeway_seconds: u16,
}

impl Settings {
    /// The settings for development.
    #[must_use]
    pub fn insecure() -> Self {
        Self {
            auth: Auth::Insecure,
            jwks: None,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_leeway_seconds: 30,
        }
    }
}

impl Auth {
    /// Rejects an address at which this mode must not be reachable.
    ///
    /// # Errors
    /// The reason, for the operator.
    pub fn check_address(self, address: SocketAddr) -> anyhow::Result<()> {
        match self {
            Self::Insecure if !address.ip().is_loopback() => bail!(
                "--auth insecure trusts the identity that a caller claims and listens on loopback only, not on {address}"
            ),
            Self::Insecure | Self::Jwt => Ok(()),
        }
    }
}

/// Identifies callers.
#[derive(Clone)]
pub struct Identities {
    mode: Mode,
    vocabulary: Vocabulary,
}

#[derive(Clone)]
enum Mode {
    Insecure,
    Jwt(Arc<Tokens>),
}

impl Identities {
    /// Reads the keys, and reloads them on this runtime from then on.
    ///
    /// # Errors
    /// Settings that are missing or contradict each other, by flag; keys that cannot be read.
    pub fn open(settings: &Settings, vocabulary: Vocabulary, clock: Clock) -> anyhow::Result<Self> {
        let Settings { auth, jwks, jwt_issuer, jwt_audience, jwt_leeway_seconds } = settings;
        let given = [
            ("--jwks", jwks.is_some()),
            ("--jwt-issuer", jwt_issuer.is_some()),
            ("--jwt-audience", jwt_audience.is_some()),
        ];
        if let (Auth::Insecure, Some((flag, _))) = (auth, given.iter().find(|(_, is_given)| *is_given)) {
            bail!("--auth insecure reads no token; leave {flag} out, or use --auth jwt");
        }
        if *auth == Auth::Insecure {
            return Ok(Self { mode: Mode::Insecure, vocabulary });
        }
        let missing = |flag| anyhow!("--auth jwt needs {flag}");
        let name = |name: &Option<String>, flag| {
            name.clone().filter(|name| !name.is_empty()).ok_or_else(|| missing(flag))
        };
        let file = jwks.clone().ok_or_else(|| missing("--jwks"))?;
        let issuer = name(jwt_issuer, "--jwt-issuer")?;
        let audience = name(jwt_audience, "--jwt-audience")?;
        let keys = Watched::open(vec![file], |contents| KeySet::read(&contents[0])).context("--jwks")?;
        let leeway = TimeDelta::seconds((*jwt_leeway_seconds).into());
        let tokens = Tokens::new(keys, issuer, audience, leeway, vocabulary, clock);
        Ok(Self { mode: Mode::Jwt(Arc::new(tokens)), vocabulary })
    }

    /// Adds the file of keys to the metrics of watched files. Keys have no end of validity.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        if let Mode::Jwt(tokens) = &self.mode {
            metrics.register_files("token-keys", tokens.keys(), |_| vec![]);
        }
    }

    pub(crate) fn auth(&self) -> Auth {
        match self.mode {
            Mode::Insecure => Auth::Insecure,
            Mode::Jwt(_) => Auth::Jwt,
        }
    }

    pub(crate) fn vocabulary(&self) -> Vocabulary {
        self.vocabulary
    }

    /// The caller, and its token, for handlers that forward it.
    pub(crate) fn identify(
        &self,
        headers: &HeaderMap,
        domain: &'static str,
    ) -> Result<(Caller, Option<Bearer>), Status> {
        match &self.mode {
            Mode::Insecure => match Caller::from_metadata(headers, self.vocabulary) {
                Ok(caller) => Ok((caller, None)),
                Err(claim) => {
                    let sentence = format!(
                        "the identity has no valid {claim}; send x-tenant-id, x-tenant-kind and x-user-id"
                    );
                    Err(unauthenticated(domain, claim, sentence))
                }
            },
            Mode::Jwt(tokens) => {
                let bearer =
                    Bearer::of(headers).map_err(|why| unauthenticated(domain, "authorization", why))?;
                match tokens.caller(bearer.token()) {
                    Ok(caller) => Ok((caller, Some(bearer))),
                    Err(refused) => Err(unauthenticated(domain, refused.claim, refused.sentence)),
                }
            }
        }
    }
}

fn unauthenticated(domain: &'static str, claim: &'static str, sentence: impl Into<String>) -> Status {
    failure(domain, Code::Unauthenticated, "IDENTITY_REQUIRED", sentence).with("claim", claim).status()
}

/// What a client presents to a service to be identified there.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// An identity in metadata, for services that trust it ([`Auth::Insecure`]).
    Metadata(Caller),
    /// A token.
    Token(Bearer),
}

impl Credentials {
    /// Adds them to the metadata of a call.
    pub fn present(&self, metadata: &mut MetadataMap) {
        match self {
            Self::Metadata(caller) => caller.present(metadata),
            Self::Token(bearer) => bearer.present(metadata),
        }
    }
}

/// The credentials that the caller of this request presented, for a call to another service in its name.
///
/// # Errors
/// As [`caller()`].
pub fn credentials<T>(request: &Request<T>) -> Result<Credentials, Status> {
    match request.extensions().get::<Bearer>() {
        Some(bearer) => Ok(Credentials::Token(bearer.clone())),
        None => caller(request).map(Credentials::Metadata),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_identities_are_for_loopback_only() {
        for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert!(Auth::Insecure.check_address(loopback.parse().unwrap()).is_ok(), "{loopback}");
        }
        for reachable in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1"] {
            assert!(Auth::Insecure.check_address(reachable.parse().unwrap()).is_err(), "{reachable}");
        }
    }

    #[test]
    fn credentials_are_presented_and_never_shown() {
        let credentials = Credentials::Token(Bearer::read(b" a.secret.token\n").unwrap());
        let mut metadata = MetadataMap::new();
        credentials.present(&mut metadata);
        let headers = metadata.into_headers();
        assert_eq!(Bearer::of(&headers).unwrap().token(), "a.secret.token");
        let shown = format!("{credentials:?} {headers:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[tokio::test]
    async fn contradicting_settings_are_refused_by_flag() {
        let some = |name: &str| Some(name.to_owned());
        let whole = Settings {
            auth: Auth::Jwt,
            jwks: Some("/nowhere/jwks.json".into()),
            jwt_issuer: some("issuer"),
            jwt_audience: some("audience"),
            jwt_leeway_seconds: 30,
        };
        let open = |settings: &Settings| Identities::open(settings, Vocabulary::TEST, Clock::system());
        for (settings, flag) in [
            (Settings { jwks: None, ..whole.clone() }, "--jwks"),
            (Settings { jwt_issuer: None, ..whole.clone() }, "--jwt-issuer"),
            (Settings { jwt_issuer: some(""), ..whole.clone() }, "--jwt-issuer"),
            (Settings { jwt_audience: None, ..whole.clone() }, "--jwt-audience"),
            (whole.clone(), "/nowhere/jwks.json"),
            (Settings { jwks: whole.jwks.clone(), ..Settings::insecure() }, "--jwks"),
            (Settings { jwt_issuer: some("a"), ..Settings::insecure() }, "--jwt-issuer"),
            (Settings { jwt_audience: some("a"), ..Settings::insecure() }, "--jwt-audience"),
        ] {
            let why = format!("{:#}", open(&settings).err().unwrap());
            assert!(why.contains(flag), "{why}");
        }
        assert!(open(&Settings::insecure()).is_ok());
    }
}
