//! Authentication: the identity behind each call, from metadata (on loopback only) or from a signed token.
//!
//! The server identifies the caller of each call once and hands it to the handler as [`Caller`]; request messages
//! never carry an identity. The access policy ([`access`]) says which callers may make a call. The services decide
//! which resources a caller may see.

pub mod access;
mod bearer;
mod caller;
pub mod jwt;
mod providers;
mod registration;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use chrono::TimeDelta;
use clap::{Args, ValueEnum};
use futures_util::future::{BoxFuture, join_all};
use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

pub use self::bearer::Bearer;
pub use self::caller::{Caller, Channel, Vocabulary, caller};
use self::jwt::{Expected, Issuer, KeySet, Keys, Known, Mapping, Tokens, TrustedIssuer, Unidentified};
use self::registration::Registrations;
pub use self::registration::{IsRegistered, RegistrationUnknown};
use crate::clock::Clock;
use crate::limits::tenant::Tenant;
use crate::metrics::Metrics;
use crate::reload::Watched;
use crate::status::{RETRY, failure};

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
    #[arg(long, value_name = "FILE.json", group = "token_issuers")]
    pub jwks: Option<PathBuf>,
    /// The issuer that tokens must name (iss).
    #[arg(long, value_name = "NAME")]
    pub jwt_issuer: Option<String>,
    /// The audience that tokens must name (aud); the same for both services, since one forwards tokens to the other.
    #[arg(long, value_name = "NAME")]
    pub jwt_audience: Option<String>,
    /// The issuers whose tokens are accepted, with the URLs of their keys and the meaning of their claims; in place of
    /// `--jwks`, `--jwt-issuer` and `--jwt-audience`.
    #[arg(long, value_name = "FILE.json", group = "token_issuers")]
    pub identity_providers: Option<PathBuf>,
    /// The largest difference between the clocks of issuer and service.
    #[arg(long, value_name = "SECONDS", requires = "token_issuers", default_value = "30", value_parser = clap::value_parser!(u16).range(0..=300))]
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
            identity_providers: None,
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

/// A caller, and its token, for handlers that forward it.
pub(crate) type Identity = (Caller, Option<Bearer>);

/// What is known of the identity behind a call.
pub(crate) enum Identified {
    /// All, or the refusal.
    AtOnce(Result<Identity, Status>),
    /// Keys have to be fetched or the registration has to be looked up. The tenant is known in the second case.
    Later(Option<Tenant>, BoxFuture<'static, Result<Identity, Status>>),
}

/// What the settings trust to identify callers: issuers of tokens, or with `--auth insecure` the callers themselves.
pub struct TrustedIssuers {
    source: Source,
    vocabulary: Vocabulary,
}

enum Source {
    /// Metadata that callers claim.
    Metadata,
    /// Tokens of these issuers.
    Tokens { issuers: Vec<TrustedIssuer>, leeway: TimeDelta },
}

impl TrustedIssuers {
    /// Reads the settings and files, and reloads and fetches keys on this runtime from then on.
    ///
    /// # Errors
    /// Settings that are missing or contradict each other, by flag; files that cannot be read.
    pub fn read(settings: &Settings, vocabulary: Vocabulary) -> anyhow::Result<Self> {
        let Settings { auth, jwks, jwt_issuer, jwt_audience, identity_providers, jwt_leeway_seconds } =
            settings;
        let given: Vec<_> = [
            ("--identity-providers", identity_providers.is_some()),
            ("--jwks", jwks.is_some()),
            ("--jwt-issuer", jwt_issuer.is_some()),
            ("--jwt-audience", jwt_audience.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, is_given)| is_given.then_some(flag))
        .collect();
        let issuers = match (auth, identity_providers, &*given) {
            (Auth::Insecure, _, []) => return Ok(Self { source: Source::Metadata, vocabulary }),
            (Auth::Insecure, _, [flag, ..]) => {
                bail!("--auth insecure reads no token; leave {flag} out, or use --auth jwt")
            }
            (Auth::Jwt, Some(file), [_]) => {
                providers::open(file, vocabulary).context("--identity-providers")?
            }
            (Auth::Jwt, Some(_), [_, flag, ..]) => {
                bail!("--identity-providers says where tokens come from; leave {flag} out")
            }
            (Auth::Jwt, ..) => vec![issuer_of_flags(settings, vocabulary)?],
        };
        let leeway = TimeDelta::seconds((*jwt_leeway_seconds).into());
        Ok(Self { source: Source::Tokens { issuers, leeway }, vocabulary })
    }
}

impl Identities {
    /// Identifies callers from now on. Keys at a URL are waited for, some seconds at most: without them their issuer's
    /// tokens are refused until they can be fetched.
    pub async fn open(trusted: TrustedIssuers, clock: Clock, is_registered: IsRegistered) -> Self {
        let TrustedIssuers { source, vocabulary } = trusted;
        let (issuers, leeway) = match source {
            Source::Metadata => return Self { mode: Mode::Insecure, vocabulary },
            Source::Tokens { issuers, leeway } => (issuers, leeway),
        };
        join_all(issuers.iter().map(|issuer| issuer.keys.first())).await;
        let registrations = Registrations::new(is_registered, vocabulary);
        Self { mode: Mode::Jwt(Arc::new(Tokens::new(issuers, leeway, clock, registrations))), vocabulary }
    }

    /// Adds the keys to the metrics of watched files and of identity providers. Keys have no end of validity.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        let Mode::Jwt(tokens) = &self.mode else { return };
        for TrustedIssuer { keys, expected, .. } in tokens.issuers() {
            match keys {
                Keys::File(file) => metrics.register_files("token-keys", file, |_| vec![]),
                Keys::Published(published) => {
                    let published = published.clone();
                    let has_failed = move || published.has_failed();
                    metrics.register_identity_provider(expected.issuer.0.clone(), has_failed);
                }
            }
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

    pub(crate) fn identify(&self, headers: &HeaderMap, domain: &'static str) -> Identified {
        let tokens = match &self.mode {
            Mode::Insecure => {
                let caller = Caller::from_metadata(headers, self.vocabulary).map_err(|claim| {
                    let sentence = format!(
                        "the identity has no valid {claim}; send x-tenant-id, x-tenant-kind and x-user-id"
                    );
                    unauthenticated(domain, claim, sentence)
                });
                return Identified::AtOnce(caller.map(|caller| (caller, None)));
            }
            Mode::Jwt(tokens) => tokens,
        };
        let bearer = match Bearer::of(headers) {
            Ok(bearer) => bearer,
            Err(why) => return Identified::AtOnce(Err(unauthenticated(domain, "authorization", why))),
        };
        let identity = move |caller: Result<Caller, Unidentified>, bearer| match caller {
            Ok(caller) => Ok((caller, Some(bearer))),
            Err(why) => Err(unidentified(domain, why)),
        };
        let tenant = match tokens.caller_at_once(bearer.token()) {
            Known::All(caller) => return Identified::AtOnce(identity(caller, bearer)),
            Known::NeedsKeys => None,
            Known::NeedsRegistration(id) => Some(Tenant::new(self.vocabulary.unregistered_kind, id)),
        };
        let tokens = tokens.clone();
        let identifying = async move { identity(tokens.caller(bearer.token()).await, bearer) };
        Identified::Later(tenant, Box::pin(identifying))
    }
}

/// The issuer that `--jwks`, `--jwt-issuer` and `--jwt-audience` describe.
fn issuer_of_flags(settings: &Settings, vocabulary: Vocabulary) -> anyhow::Result<TrustedIssuer> {
    let missing = |flag| anyhow!("--auth jwt needs {flag}, or --identity-providers");
    let name = |name: &Option<String>, flag| {
        name.clone().filter(|name| !name.is_empty()).ok_or_else(|| missing(flag))
    };
    let file = settings.jwks.clone().ok_or_else(|| missing("--jwks"))?;
    let expected = Expected {
        issuer: Issuer(name(&settings.jwt_issuer, "--jwt-issuer")?),
        audiences: vec![name(&settings.jwt_audience, "--jwt-audience")?],
        mapping: Mapping::default(),
        identities: vec![],
        vocabulary,
    };
    let keys = Watched::open(vec![file], |contents| KeySet::read(&contents[0])).context("--jwks")?;
    Ok(TrustedIssuer::new(Keys::File(keys), expected))
}

fn unidentified(domain: &'static str, why: Unidentified) -> Status {
    let unavailable = |sentence: &'static str| {
        failure(domain, Code::Unavailable, "IDENTITY_UNAVAILABLE", sentence).retry_after(RETRY).status()
    };
    match why {
        Unidentified::Refused(refused) => unauthenticated(domain, refused.claim, refused.sentence),
        Unidentified::KeysUnavailable => unavailable(
            "the keys of the token's issuer cannot be fetched, so the token cannot be verified; repeat the call later",
        ),
        Unidentified::RegistrationUnknown => unavailable(
            "whether the token's tenant is registered cannot be found out right now; repeat the call later",
        ),
    }
}

fn unauthenticated(
    domain: &'static str,
    claim: impl Into<Cow<'static, str>>,
    sentence: impl Into<String>,
) -> Status {
    failure(domain, Code::Unauthenticated, "IDENTITY_REQUIRED", sentence).with("claim", claim.into()).status()
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

/// Opens identities of a service with which no tenant is registered.
#[cfg(test)]
pub(crate) async fn open_in_test(settings: &Settings) -> anyhow::Result<Identities> {
    let is_registered: IsRegistered = Arc::new(|_| Box::pin(std::future::ready(Ok(false))));
    Ok(Identities::open(TrustedIssuers::read(settings, Vocabulary::TEST)?, Clock::system(), is_registered)
        .await)
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
            identity_providers: None,
            jwt_leeway_seconds: 30,
        };
        let providers = Some(PathBuf::from("/nowhere/providers.json"));
        let no_others = Settings { jwks: None, jwt_issuer: None, jwt_audience: None, ..whole.clone() };
        for (settings, flag) in [
            (Settings { jwks: None, ..whole.clone() }, "--jwks"),
            (Settings { jwt_issuer: None, ..whole.clone() }, "--jwt-issuer"),
            (Settings { jwt_issuer: some(""), ..whole.clone() }, "--jwt-issuer"),
            (Settings { jwt_audience: None, ..whole.clone() }, "--jwt-audience"),
            (whole.clone(), "/nowhere/jwks.json"),
            (Settings { jwks: whole.jwks.clone(), ..Settings::insecure() }, "--jwks"),
            (Settings { jwt_issuer: some("a"), ..Settings::insecure() }, "--jwt-issuer"),
            (Settings { jwt_audience: some("a"), ..Settings::insecure() }, "--jwt-audience"),
            (
                Settings { identity_providers: providers.clone(), ..Settings::insecure() },
                "--identity-providers",
            ),
            (Settings { identity_providers: providers.clone(), ..whole.clone() }, "leave --jwks out"),
            (
                Settings { identity_providers: providers.clone(), jwks: None, ..whole.clone() },
                "leave --jwt-issuer out",
            ),
            (Settings { identity_providers: providers, ..no_others }, "/nowhere/providers.json"),
        ] {
            let why = format!("{:#}", open_in_test(&settings).await.err().unwrap());
            assert!(why.contains(flag), "{why}");
        }
        assert!(open_in_test(&Settings::insecure()).await.is_ok());
    }
}
