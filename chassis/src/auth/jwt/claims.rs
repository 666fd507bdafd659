//! The claims of a token: where an issuer says what, what its claims must say, and the caller that they describe.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;
use strum::VariantNames;
use uuid::Uuid;

use super::Refused;
use crate::auth::caller::client_named;
use crate::auth::{Caller, Channel, Vocabulary};

/// What stands in an issuer's name for the tenant, where each tenant's tokens have an issuer of their own.
const TENANT_PLACEHOLDER: &str = "{tenantid}";

/// The characters of a tenant's id: hexadecimal digits and hyphens.
const ID_LENGTH: usize = 36;

/// What the claims of a token must say.
pub(in crate::auth) struct Expected {
    pub(in crate::auth) issuer: Issuer,
    /// The token must name one of them.
    pub(in crate::auth) audiences: Vec<String>,
    pub(in crate::auth) mapping: Mapping,
    /// Callers whose kind of tenant is decided before any claim is asked.
    pub(in crate::auth) identities: Vec<KnownIdentity>,
    pub(in crate::auth) vocabulary: Vocabulary,
}

/// The name of an issuer. `{tenantid}` in it stands for the tenant of the token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(in crate::auth) struct Issuer(pub(in crate::auth) String);

/// Which claims of an issuer's tokens identify the caller. A claim is named by its name or, where it begins with `/`, by a
/// JSON pointer (RFC 6901) into the claims.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(in crate::auth) struct Mapping {
    tenant_id: String,
    user_id: String,
    tenant_kind: TenantKindSource,
    /// All of them together.
    roles: Vec<NamedClaim>,
    channel: NamedClaim,
}

/// What decides the kind of a caller's tenant.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::auth) enum TenantKindSource {
    /// A claim.
    Claim(NamedClaim),
    /// All tenants of the issuer are of this kind.
    Always(String),
    /// Whether the tenant is registered with the service.
    Registration,
}

/// A claim that holds names, and what they mean here. Without `values` the names mean themselves; otherwise other names
/// than those mean nothing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::auth) struct NamedClaim {
    name: String,
    #[serde(default)]
    values: BTreeMap<String, String>,
}

/// A user of a tenant, or its users with a role, whose kind of tenant is stated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::auth) struct KnownIdentity {
    tenant_id: Uuid,
    user_id: Option<Uuid>,
    /// A value of a claim for roles, before it is mapped.
    role: Option<String>,
    tenant_kind: String,
}

/// What the claims of a verified token say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verified {
    /// Its kind of tenant is that of unregistered tenants where the registration decides.
    pub(super) caller: Caller,
    pub(super) registration_decides: bool,
    /// In seconds since 1970.
    pub(super) expires: i64,
    /// In seconds since 1970.
    pub(super) not_before: Option<i64>,
}

/// All claims of a token.
pub(super) struct Claims(Value);

impl Issuer {
    /// Whether the tokens of each tenant have an issuer of their own.
    pub(super) fn is_template(&self) -> bool {
        self.0.contains(TENANT_PLACEHOLDER)
    }

    /// Whether a token may be of both, and neither has precedence: a template has less than a name.
    pub(in crate::auth) fn conflicts_with(&self, other: &Self) -> bool {
        if !(self.is_template() && other.is_template()) {
            return self == other;
        }
        const ANY_OF_ID: char = '\0';
        let names = [self, other]
            .map(|issuer| issuer.0.replace(TENANT_PLACEHOLDER, &ANY_OF_ID.to_string().repeat(ID_LENGTH)));
        let is_of_id = |c: char| c == ANY_OF_ID || c == '-' || c.is_ascii_hexdigit();
        let fits = |(a, b)| a == b || (a == ANY_OF_ID && is_of_id(b)) || (b == ANY_OF_ID && is_of_id(a));
        let [one, another] = &names;
        one.chars().count() == another.chars().count() && one.chars().zip(another.chars()).all(fits)
    }

    /// Whether tokens of this name and tenant are the issuer's.
    fn is(&self, name: &str, tenant: Option<&str>) -> bool {
        if !self.is_template() {
            return self.0 == name;
        }
        // Only an id can stand there: any other text could make another issuer's name of it.
        tenant
            .filter(|id| read_id(id).is_some())
            .is_some_and(|id| self.0.replace(TENANT_PLACEHOLDER, id) == name)
    }
}

impl NamedClaim {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), values: BTreeMap::new() }
    }

    fn meaning<'n>(&'n self, name: &'n str) -> Option<&'n str> {
        if self.values.is_empty() { Some(name) } else { self.values.get(name).map(String::as_str) }
    }

    /// The values that the claim may have, where the names here are `known`.
    fn spelled(&self, known: &[&str]) -> String {
        let mapped: Vec<_> = self.values.keys().map(String::as_str).collect();
        if mapped.is_empty() { known.join(", ") } else { mapped.join(", ") }
    }

    fn check(&self, field: &str, known: &[&str]) -> anyhow::Result<()> {
        ensure!(!self.name.is_empty(), "{field}.name is empty; name a claim");
        for value in self.values.values() {
            check_known(&format!("{field}.values"), value, known)?;
        }
        Ok(())
    }
}

impl Default for Mapping {
    fn default() -> Self {
        Self {
            tenant_id: "tenant_id".into(),
            user_id: "sub".into(),
            tenant_kind: TenantKindSource::Claim(NamedClaim::named("tenant_kind")),
            roles: vec![NamedClaim::named("roles")],
            channel: NamedClaim::named("channel"),
        }
    }
}

impl Expected {
    /// Rejects what could match no token, or would give names that the service does not know.
    pub(in crate::auth) fn check(&self) -> anyhow::Result<()> {
        let Self { issuer, audiences, mapping, identities, vocabulary } = self;
        ensure!(!issuer.0.is_empty(), "issuer is empty; give the value of the claim iss");
        let has_other_braces = issuer.0.replace(TENANT_PLACEHOLDER, "").contains(['{', '}']);
        ensure!(!has_other_braces, "issuer has braces, and only {TENANT_PLACEHOLDER} has a meaning there");
        ensure!(
            !audiences.is_empty() && audiences.iter().all(|name| !name.is_empty()),
            "audiences must be a list of names, of which tokens name one (aud)"
        );
        for (field, claim) in [("claims.tenant_id", &mapping.tenant_id), ("claims.user_id", &mapping.user_id)]
        {
            ensure!(!claim.is_empty(), "{field} is empty; name a claim");
        }
        ensure!(!mapping.roles.is_empty(), "claims.roles is empty; name a claim");
        for (n, claim) in mapping.roles.iter().enumerate() {
            claim.check(&format!("claims.roles[{n}]"), vocabulary.roles)?;
        }
        mapping.channel.check("claims.channel", Channel::VARIANTS)?;
        match &mapping.tenant_kind {
            TenantKindSource::Claim(claim) => {
                claim.check("claims.tenant_kind.claim", vocabulary.tenant_kinds)?;
            }
            TenantKindSource::Always(kind) => {
                check_known("claims.tenant_kind.always", kind, vocabulary.tenant_kinds)?;
            }
            TenantKindSource::Registration => {}
        }
        for (n, identity) in identities.iter().enumerate() {
            let kind = &identity.tenant_kind;
            check_known(&format!("identities[{n}].tenant_kind"), kind, vocabulary.tenant_kinds)?;
            // Some kinds need no role: an entry for a whole tenant would give their rights to all its users and programs.
            ensure!(
                identity.user_id.is_some() || identity.role.is_some(),
                "identities[{n}] makes every user and program of its tenant {kind}; name a user_id or a role"
            );
        }
        Ok(())
    }
}

fn check_known(field: &str, name: &str, known: &[&str]) -> anyhow::Result<()> {
    known.contains(&name).then_some(()).with_context(|| {
        format!("{field} has {name}, which this service does not know; it knows {}", known.join(", "))
    })
}

impl Claims {
    /// Reads the payload of a token.
    pub(super) fn decode(payload: &str) -> Option<Self> {
        let claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        matches!(claims, Value::Object(_)).then_some(Self(claims))
    }

    /// Whether a token with these claims says that it is of an issuer.
    pub(super) fn are_of(&self, expected: &Expected) -> bool {
        let tenant = text(self.find(&expected.mapping.tenant_id));
        text(self.find("iss")).is_some_and(|name| expected.issuer.is(name, tenant))
    }

    /// Reads the claims of a verified token. A key may be published for some of the issuer's names only.
    pub(super) fn read(&self, key_issuer: Option<&Issuer>, expected: &Expected) -> Result<Verified, Refused> {
        let Expected { audiences, mapping, vocabulary, .. } = expected;
        if !self.are_of(expected) {
            return Err(Refused::new("iss", "the token is of another issuer than this service trusts"));
        }
        let tenant = text(self.find(&mapping.tenant_id));
        if !key_issuer.is_none_or(|of| text(self.find("iss")).is_some_and(|name| of.is(name, tenant))) {
            return Err(Refused::new(
                "iss",
                "the token's key is published for another issuer than the token's",
            ));
        }
        let is_ours = |name: &str| audiences.iter().any(|ours| ours == name);
        let is_for_this_audience = match self.find("aud") {
            Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).any(is_ours),
            one => text(one).is_some_and(is_ours),
        };
        if !is_for_this_audience {
            return Err(Refused::new("aud", "the token is for another audience than this service"));
        }
        let expires = self.find("exp").and_then(seconds);
        let expires =
            expires.ok_or(Refused::new("exp", "the token does not say until when it is valid (exp)"))?;
        let not_before = match self.find("nbf") {
            None => None,
            Some(given) => Some(seconds(given).ok_or(Refused::new("nbf", "the token's nbf is no time"))?),
        };
        let tenant_id = self.id(&mapping.tenant_id)?;
        let user_id = self.id(&mapping.user_id)?;
        let roles = self.roles(&mapping.roles, *vocabulary)?;
        let channel = self.channel(&mapping.channel)?;
        let kind = self.tenant_kind(tenant_id, user_id, expected)?;
        // RFC 9068; OpenID Connect; version 1 of the vendor's tokens.
        let clients = ["client_id", "azp", "appid"].into_iter();
        let client = clients.filter_map(|claim| text(self.find(claim)).and_then(client_named)).next();
        let tenant_kind = kind.unwrap_or(vocabulary.unregistered_kind);
        Ok(Verified {
            caller: Caller { tenant_kind, tenant_id, user_id, roles, channel, client },
            registration_decides: kind.is_none(),
            expires,
            not_before,
        })
    }

    /// A claim that has a value.
    fn find(&self, claim: &str) -> Option<&Value> {
        let value = if claim.starts_with('/') { self.0.pointer(claim) } else { self.0.get(claim) };
        value.filter(|value| !value.is_null())
    }

    fn id(&self, claim: &str) -> Result<Uuid, Refused> {
        let id = text(self.find(claim)).and_then(read_id);
        id.ok_or_else(|| {
            Refused::new(claim.to_owned(), format!("the token's {claim} must be a lower-case UUID"))
        })
    }

    /// The kind of the tenant, or nothing if the registration decides.
    fn tenant_kind(
        &self,
        tenant_id: Uuid,
        user_id: Uuid,
        expected: &Expected,
    ) -> Result<Option<&'static str>, Refused> {
        let Expected { mapping, identities, vocabulary, .. } = expected;
        let roles: Vec<_> = mapping.roles.iter().map(|claim| self.names(claim)).collect::<Result<_, _>>()?;
        let known = identities.iter().find(|known| {
            known.tenant_id == tenant_id
                && known.user_id.is_none_or(|user| user == user_id)
                && known.role.as_ref().is_none_or(|role| roles.iter().flatten().any(|name| name == role))
        });
        let refused = |claim: &str, kinds: String| {
            Refused::new(claim.to_owned(), format!("the token's {claim} must name a kind of tenant: {kinds}"))
        };
        let stated = match (known, &mapping.tenant_kind) {
            (Some(known), _) => &known.tenant_kind,
            (None, TenantKindSource::Always(kind)) => kind,
            (None, TenantKindSource::Registration) => return Ok(None),
            (None, TenantKindSource::Claim(claim)) => {
                let given = text(self.find(&claim.name)).and_then(|name| claim.meaning(name));
                let kind = given.and_then(|name| vocabulary.known_tenant_kind(name));
                return kind
                    .map(Some)
                    .ok_or_else(|| refused(&claim.name, claim.spelled(vocabulary.tenant_kinds)));
            }
        };
        let kind = vocabulary.known_tenant_kind(stated).map(Some);
        kind.ok_or_else(|| refused("tenant_kind", vocabulary.tenant_kinds.join(", ")))
    }

    /// The roles. Unknown ones grant nothing.
    fn roles(&self, claims: &[NamedClaim], vocabulary: Vocabulary) -> Result<Vec<&'static str>, Refused> {
        let mut roles = vec![];
        for claim in claims {
            roles.extend(self.names(claim)?.into_iter().filter_map(|name| claim.meaning(name)));
        }
        Ok(vocabulary.known_roles(&roles.into_iter()))
    }

    /// The names in a claim: the strings of a list, or the words of a string.
    fn names(&self, claim: &NamedClaim) -> Result<Vec<&str>, Refused> {
        match self.find(&claim.name) {
            None => Ok(vec![]),
            Some(Value::Array(names)) => Ok(names.iter().filter_map(Value::as_str).collect()),
            Some(Value::String(words)) => Ok(words.split([' ', ',']).collect()),
            Some(_) => {
                let sentence = format!("the token's {} must be a list of strings, or a string", claim.name);
                Err(Refused::new(claim.name.clone(), sentence))
            }
        }
    }

    /// The channel, which is the dashboard, the stricter one, where the token names none.
    fn channel(&self, claim: &NamedClaim) -> Result<Channel, Refused> {
        let Some(given) = self.find(&claim.name) else { return Ok(Channel::Dashboard) };
        let name = given.as_str().and_then(|name| claim.meaning(name));
        let channel = name.and_then(|name| Channel::from_str(name, false).ok());
        let refused = || {
            let sentence = format!(
                "the token's {} must name a channel: {}",
                claim.name,
                claim.spelled(Channel::VARIANTS)
            );
            Refused::new(claim.name.clone(), sentence)
        };
        channel.ok_or_else(refused)
    }
}

/// Since when, if it says so, and until when a token says that it is valid. Nothing is verified.
pub(in crate::auth) fn life(token: &str) -> Option<(Option<i64>, i64)> {
    let claims = unverified(token)?;
    let time = |claim| claims.find(claim).and_then(seconds);
    Some((time("iat").or_else(|| time("nbf")), time("exp")?))
}

/// The claims of a token whose signature was not verified.
pub(super) fn unverified(token: &str) -> Option<Claims> {
    Claims::decode(token.split('.').nth(1)?)
}

/// An id in its only accepted spelling.
fn read_id(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok().filter(|id| !id.is_nil())?;
    (id.to_string() == text).then_some(id)
}

fn text(claim: Option<&Value>) -> Option<&str> {
    claim?.as_str()
}

/// A time in seconds since 1970. Issuers may give fractions, which are cut off.
fn seconds(claim: &Value) -> Option<i64> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it saturates, and a time beyond the limits never comes"
    )]
    claim.as_i64().or_else(|| claim.as_f64().map(|seconds| seconds as i64))
}
