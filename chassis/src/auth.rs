//! Who calls, and whether that kind of caller may make the call at all.
//!
//! The identity is established here once for every call and handed to the handler as [`Caller`];
//! requests never carry it. Which resources a caller may see is the services' business.

pub mod token;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::TimeDelta;
use clap::{Args, ValueEnum};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::clock::Clock;
use crate::expiry::Validity;
use crate::metrics::Metrics;
use crate::reload::Watched;
use crate::status::failure;
use token::{KeySet, Tokens};

/// How identities are established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Believes the metadata of the caller; for one's own machine, on loopback only.
    Insecure,
    /// Verifies the token that the caller brings.
    Jwt,
}

/// The settings of identities. The services add the names of their environment variables.
#[derive(Clone, Debug, Args)]
pub struct Settings {
    /// How callers are identified. There is no default: `insecure` is for one's own machine.
    #[arg(long, value_enum)]
    pub auth: Auth,
    /// The keys whose tokens are believed, as a JWK set: the ones with a kid for EdDSA (Ed25519), ES256 and
    /// RS256. Read again when it changes; of an empty set nobody is believed.
    #[arg(long, value_name = "FILE.json")]
    pub jwks: Option<PathBuf>,
    /// Who has to have issued a token (iss).
    #[arg(long, value_name = "NAME")]
    pub jwt_issuer: Option<String>,
    /// For whom a token has to be (aud); the same for both services, since one forwards tokens to the other.
    #[arg(long, value_name = "NAME")]
    pub jwt_audience: Option<String>,
    /// By how much the clocks of issuer and service may differ.
    #[arg(long, value_name = "SECONDS", requires = "jwks", default_value = "30", value_parser = clap::value_parser!(u16).range(0..=300))]
    pub jwt_leeway_seconds: u16,
}

impl Settings {
    /// The settings for one's own machine.
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

/// Identifies callers, as the settings say.
#[derive(Clone)]
pub struct Identities(Mode);

#[derive(Clone)]
enum Mode {
    Insecure,
    Jwt(Arc<Tokens>),
}

impl Identities {
    /// Reads the keys, on a runtime that looks at them from then on.
    ///
    /// # Errors
    /// Settings that contradict each other or are missing, by flag; keys that cannot be read.
    pub fn open(settings: &Settings, clock: Clock) -> Result<Self, String> {
        let Settings { auth, jwks, jwt_issuer, jwt_audience, jwt_leeway_seconds } = settings;
        let given = [
            ("--jwks", jwks.is_some()),
            ("--jwt-issuer", jwt_issuer.is_some()),
            ("--jwt-audience", jwt_audience.is_some()),
        ];
        if let (Auth::Insecure, Some((flag, _))) = (auth, given.iter().find(|(_, is_given)| *is_given)) {
            return Err(format!("--auth insecure looks at no token; leave {flag} out, or use --auth jwt"));
        }
        if *auth == Auth::Insecure {
            return Ok(Self(Mode::Insecure));
        }
        let missing = |flag| format!("--auth jwt needs {flag}");
        let name = |name: &Option<String>, flag| {
            name.clone().filter(|name| !name.is_empty()).ok_or_else(|| missing(flag))
        };
        let file = jwks.clone().ok_or_else(|| missing("--jwks"))?;
        let issuer = name(jwt_issuer, "--jwt-issuer")?;
        let audience = name(jwt_audience, "--jwt-audience")?;
        let keys = Watched::open(vec![file], |contents| KeySet::read(&contents[0]));
        let keys = keys.map_err(|why| format!("--jwks {why}"))?;
        let leeway = TimeDelta::seconds((*jwt_leeway_seconds).into());
        Ok(Self(Mode::Jwt(Arc::new(Tokens::new(keys, issuer, audience, leeway, clock)))))
    }

    /// Has the keys told of, where there are any. They have no end.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        if let Mode::Jwt(tokens) = &self.0 {
            metrics.register_files("token-keys", tokens.keys(), |_| vec![]);
        }
    }

    pub(crate) fn auth(&self) -> Auth {
        match self.0 {
            Mode::Insecure => Auth::Insecure,
            Mode::Jwt(_) => Auth::Jwt,
        }
    }

    /// Who calls, and the token that says so, for whoever has to forward it.
    pub(crate) fn identify(
        &self,
        headers: &HeaderMap,
        domain: &'static str,
    ) -> Result<(Caller, Option<Bearer>), Status> {
        match &self.0 {
            Mode::Insecure => Ok((
                Caller::from_metadata(headers).map_err(|claim| {
                    let sentence = format!(
                        "the identity has no valid {claim}; send x-tenant-id, x-tenant-kind and x-user-id"
                    );
                    unidentified(domain, claim, sentence)
                })?,
                None,
            )),
            Mode::Jwt(tokens) => {
                let bearer = Bearer::of(headers).map_err(|why| unidentified(domain, "authorization", why))?;
                let caller = tokens.caller(bearer.token());
                let caller =
                    caller.map_err(|refused| unidentified(domain, refused.claim, refused.sentence))?;
                Ok((caller, Some(bearer)))
            }
        }
    }
}

fn unidentified(domain: &'static str, claim: &'static str, sentence: impl Into<String>) -> Status {
    failure(domain, Code::Unauthenticated, "IDENTITY_REQUIRED", sentence).with("claim", claim).status()
}

/// A token as a caller presents it. It is shown nowhere.
#[derive(Clone)]
pub struct Bearer(HeaderValue);

impl Bearer {
    /// Reads the contents of a file that holds a token.
    ///
    /// # Errors
    /// What is none; it is not repeated.
    pub fn read(contents: &[u8]) -> Result<Self, String> {
        let token = std::str::from_utf8(contents).unwrap_or_default().trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("holds no token on a line of its own".into());
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| "holds no token")?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// For how long the token says that it is valid, if it does. Nothing of it is verified: this is for
    /// whoever presents it.
    #[must_use]
    pub fn validity(&self, name: &'static str) -> Option<Validity> {
        let (begins, ends) = token::life(self.token())?;
        Some(Validity { name, begins, ends })
    }

    fn of(headers: &HeaderMap) -> Result<Self, &'static str> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let value = given.next().ok_or("send a token, as authorization: Bearer TOKEN")?;
        if given.next().is_some() {
            return Err("there is more than one authorization; send one");
        }
        let bearer = Self(value.clone());
        if bearer.token().is_empty() {
            Err("the authorization has not the form Bearer TOKEN")
        } else {
            Ok(bearer)
        }
    }

    /// The token, or nothing where there is none.
    fn token(&self) -> &str {
        let parts = self.0.to_str().ok().and_then(|value| value.split_once(' '));
        let token = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        token.map(|(_, token)| token.trim_start_matches(' ')).unwrap_or_default()
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer")
    }
}

/// What a call to a service presents, so that it is identified there.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// An identity by its word, where that is believed.
    Metadata(Caller),
    /// A token.
    Token(Bearer),
}

impl Credentials {
    /// Adds them to the metadata of a call.
    pub fn present(&self, metadata: &mut MetadataMap) {
        match self {
            Self::Metadata(caller) => caller.present(metadata),
            Self::Token(Bearer(value)) => {
                let mut headers = std::mem::take(metadata).into_headers();
                let mut value = value.clone();
                value.set_sensitive(true);
                headers.insert(AUTHORIZATION, value);
                *metadata = MetadataMap::from_headers(headers);
            }
        }
    }
}

/// What the caller of this request presented, to call another service as the caller.
///
/// # Errors
/// As [`caller`].
pub fn credentials<T>(request: &Request<T>) -> Result<Credentials, Status> {
    match request.extensions().get::<Bearer>() {
        Some(bearer) => Ok(Credentials::Token(bearer.clone())),
        None => caller(request).map(Credentials::Metadata),
    }
}

/// What kind of tenant the caller belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TenantKind {
    /// A reseller of any kind.
    Partner,
    /// An end customer.
    Customer,
    /// Whoever runs these services.
    Operator,
    /// Another service of the house.
    Service,
}

/// What a user may do within its tenant. Other roles that an identity may name grant nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Role {
    /// Acts for a partner.
    AdminAgent,
    /// Acts for a partner.
    SalesAgent,
    /// Reads for a partner.
    HelpdeskAgent,
    /// Reads for a partner; acts for a customer.
    GlobalAdmin,
}

/// How the caller came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Channel {
    /// A person at a dashboard; also when the identity does not say.
    Dashboard,
    /// A program.
    Api,
}

/// The identity behind a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What kind of tenant.
    pub tenant_kind: TenantKind,
    /// Which tenant.
    pub tenant_id: Uuid,
    /// Which user of it.
    pub user_id: Uuid,
    /// What the user may do.
    pub roles: Vec<Role>,
    /// How it came in.
    pub channel: Channel,
}

/// A class of callers, as the tables of who may do what name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerClass {
    /// A partner user with `ADMIN_AGENT` or `SALES_AGENT`.
    PartnerWrite,
    /// A partner user with any of the roles.
    PartnerRead,
    /// A customer user with `GLOBAL_ADMIN`.
    CustomerAdmin,
    /// An operator.
    Operator,
    /// A service.
    Service,
    /// Anyone with an identity.
    Anyone,
}

/// Who may make which call, by the call's path (`/package.Service/Call`). A call that is not in
/// the table may be made by nobody.
pub type AccessPolicy = &'static [(&'static str, &'static [CallerClass])];

impl Auth {
    /// Refuses an address that this way of establishing identities must not be reachable at.
    ///
    /// # Errors
    /// The reason, for the person who starts the server.
    pub fn check_address(self, address: SocketAddr) -> Result<(), String> {
        match self {
            Self::Insecure if !address.ip().is_loopback() => Err(format!(
                "--auth insecure trusts every caller's word and listens on loopback only, not on {address}"
            )),
            Self::Insecure | Self::Jwt => Ok(()),
        }
    }
}

impl Caller {
    /// Whether the caller belongs to a class.
    #[must_use]
    pub fn is(&self, who: CallerClass) -> bool {
        let has = |role| self.roles.contains(&role);
        match who {
            CallerClass::PartnerWrite => {
                self.tenant_kind == TenantKind::Partner && (has(Role::AdminAgent) || has(Role::SalesAgent))
            }
            CallerClass::PartnerRead => self.tenant_kind == TenantKind::Partner && !self.roles.is_empty(),
            CallerClass::CustomerAdmin => self.tenant_kind == TenantKind::Customer && has(Role::GlobalAdmin),
            CallerClass::Operator => self.tenant_kind == TenantKind::Operator,
            CallerClass::Service => self.tenant_kind == TenantKind::Service,
            CallerClass::Anyone => true,
        }
    }

    /// Writes the identity as [`Auth::Insecure`] reads it.
    pub fn present(&self, metadata: &mut MetadataMap) {
        let roles = self.roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        for (key, value) in [
            ("x-tenant-id", self.tenant_id.to_string()),
            ("x-tenant-kind", self.tenant_kind.to_string()),
            ("x-user-id", self.user_id.to_string()),
            ("x-roles", roles),
            ("x-channel", self.channel.to_string()),
        ] {
            if let Ok(value) = MetadataValue::try_from(value) {
                metadata.insert(key, value);
            }
        }
    }

    /// Reads the identity, or names the claim that is missing or malformed.
    fn from_metadata(headers: &HeaderMap) -> Result<Self, &'static str> {
        // What is there and cannot be read is not the same as what is absent.
        let text = |key: &str| headers.get(key).map_or("", |value| value.to_str().unwrap_or("?"));
        let id = |key: &'static str| {
            let id = Uuid::try_parse(text(key)).ok().filter(|id| !id.is_nil());
            id.filter(|id| id.to_string() == text(key)).ok_or(key)
        };
        let tenant_kind = match text("x-tenant-kind") {
            "PARTNER" => TenantKind::Partner,
            "CUSTOMER" => TenantKind::Customer,
            "OPERATOR" => TenantKind::Operator,
            "SERVICE" => TenantKind::Service,
            _ => return Err("x-tenant-kind"),
        };
        let channel = match text("x-channel") {
            "" | "DASHBOARD" => Channel::Dashboard,
            "API" => Channel::Api,
            _ => return Err("x-channel"),
        };
        let roles = text("x-roles").split(',').filter_map(|name| role_of(name.trim())).collect();
        Ok(Self { tenant_kind, tenant_id: id("x-tenant-id")?, user_id: id("x-user-id")?, roles, channel })
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dashboard => "DASHBOARD",
            Self::Api => "API",
        })
    }
}

impl fmt::Display for TenantKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Partner => "PARTNER",
            Self::Customer => "CUSTOMER",
            Self::Operator => "OPERATOR",
            Self::Service => "SERVICE",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminAgent => "ADMIN_AGENT",
            Self::SalesAgent => "SALES_AGENT",
            Self::HelpdeskAgent => "HELPDESK_AGENT",
            Self::GlobalAdmin => "GLOBAL_ADMIN",
        })
    }
}

fn role_of(name: &str) -> Option<Role> {
    Role::from_str(name, false).ok()
}

/// The identity that the server established for this call.
///
/// # Errors
/// `UNAUTHENTICATED` when the request did not come through the server: fail closed.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let missing = || Status::unauthenticated("IDENTITY_REQUIRED: the call did not come through the server");
    request.extensions().get::<Caller>().cloned().ok_or_else(missing)
}

/// Refuses callers that the table does not let make the call at `path`.
pub(crate) fn admit(access: AccessPolicy, path: &str, caller: &Caller, domain: &'static str) -> Result<(), Status> {
    let allowed = access.iter().find(|(call, _)| *call == path).map_or(&[][..], |(_, who)| who);
    if allowed.iter().any(|who| caller.is(*who)) {
        return Ok(());
    }
    let allowed = allowed.iter().map(|who| who.description()).collect::<Vec<_>>().join(" or ");
    let allowed = if allowed.is_empty() { "nobody".to_owned() } else { allowed };
    Err(failure(
        domain,
        Code::PermissionDenied,
        "ROLE_NOT_ALLOWED",
        format!("only {allowed} may call {path}"),
    )
    .with("call", path)
    .with("allowed", allowed)
    .status())
}

impl CallerClass {
    fn description(self) -> &'static str {
        match self {
            Self::PartnerWrite => "a partner user with ADMIN_AGENT or SALES_AGENT",
            Self::PartnerRead => {
                "a partner user with ADMIN_AGENT, SALES_AGENT, HELPDESK_AGENT or GLOBAL_ADMIN"
            }
            Self::CustomerAdmin => "a customer user with GLOBAL_ADMIN",
            Self::Operator => "an operator",
            Self::Service => "a service",
            Self::Anyone => "anyone with an identity",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insecure_identities_are_for_loopback_only() {
        for loopback in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
            assert_eq!(Auth::Insecure.check_address(loopback.parse().unwrap()), Ok(()));
        }
        for reachable in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1"] {
            assert!(Auth::Insecure.check_address(reachable.parse().unwrap()).is_err(), "{reachable}");
        }
    }

    #[test]
    fn a_call_outside_the_table_is_for_nobody() {
        let caller = Caller {
            tenant_kind: TenantKind::Operator,
            tenant_id: Uuid::from_u128(1),
            user_id: Uuid::from_u128(2),
            roles: vec![],
            channel: Channel::Dashboard,
        };
        let refused = admit(&[("/a.B/C", &[CallerClass::Anyone])], "/a.B/D", &caller, "some-svc").unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(
            admit(&[("/a.B/C", &[CallerClass::Anyone])], "/a.B/C", &caller, "some-svc").map_err(|_| ()),
            Ok(())
        );
    }

    #[test]
    fn one_bearer_token_is_taken_whatever_the_case_of_its_scheme_and_nothing_else() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            Bearer::of(&headers).map(|bearer| bearer.token().to_owned())
        };
        for scheme in ["Bearer", "bearer", "BEARER", "bEARER", "Bearer  "] {
            assert_eq!(token(&[&format!("{scheme} a.b.c")]), Ok("a.b.c".into()), "{scheme}");
        }
        for none in [
            &[][..],
            &["a.b.c"],
            &["Basic a.b.c"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer a.b.c", "Bearer a.b.c"],
        ] {
            assert!(token(none).is_err(), "{none:?}");
        }
    }

    #[test]
    fn a_token_is_read_from_a_file_presented_and_never_shown() {
        let bearer = Bearer::read(b" a.secret.token\n").unwrap();
        let mut metadata = MetadataMap::new();
        let credentials = Credentials::Token(bearer);
        credentials.present(&mut metadata);
        let headers = metadata.into_headers();
        assert_eq!(Bearer::of(&headers).unwrap().token(), "a.secret.token");
        let shown = format!("{credentials:?} {headers:?}");
        assert!(!shown.contains("secret"), "{shown}");
        for bad in [&b""[..], b" \n", b"two words", b"two\nlines", b"\xff"] {
            assert!(!Bearer::read(bad).unwrap_err().contains("words"));
        }
    }

    #[tokio::test]
    async fn settings_that_contradict_each_other_are_refused_by_flag() {
        let some = |name: &str| Some(name.to_owned());
        let whole = Settings {
            auth: Auth::Jwt,
            jwks: Some("/nowhere/jwks.json".into()),
            jwt_issuer: some("issuer"),
            jwt_audience: some("audience"),
            jwt_leeway_seconds: 30,
        };
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
            let why = Identities::open(&settings, Clock::system()).err().unwrap();
            assert!(why.contains(flag), "{why}");
        }
        assert!(Identities::open(&Settings::insecure(), Clock::system()).is_ok());
    }

    #[test]
    fn an_identity_is_read_as_it_was_presented() {
        let caller = Caller {
            tenant_kind: TenantKind::Partner,
            tenant_id: Uuid::from_u128(7),
            user_id: Uuid::from_u128(8),
            roles: vec![Role::SalesAgent, Role::GlobalAdmin],
            channel: Channel::Api,
        };
        let mut metadata = MetadataMap::new();
        caller.present(&mut metadata);
        assert_eq!(Caller::from_metadata(&metadata.into_headers()), Ok(caller));
    }
}
