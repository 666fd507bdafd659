//! The claims of a token: what they must say, and the caller that they describe.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::ValueEnum;
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::Refused;
use crate::auth::caller::client_named;
use crate::auth::{Caller, Channel, Vocabulary};

/// What the claims of a token must say.
pub(super) struct Expected {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) vocabulary: Vocabulary,
}

/// What the claims of a verified token say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) caller: Caller,
    /// In seconds since 1970.
    pub(super) expires: i64,
    /// In seconds since 1970.
    pub(super) not_before: Option<i64>,
}

/// The claims that are read, of any type.
#[derive(Deserialize)]
pub(super) struct Claims {
    iss: Option<Value>,
    aud: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    sub: Option<Value>,
    tenant_id: Option<Value>,
    tenant_kind: Option<Value>,
    roles: Option<Value>,
    channel: Option<Value>,
    client_id: Option<Value>,
    azp: Option<Value>,
    appid: Option<Value>,
}

impl Claims {
    pub(super) fn read(&self, expected: &Expected) -> Result<Verified, Refused> {
        let Expected { issuer, audience, vocabulary } = expected;
        if text(&self.iss) != Some(issuer) {
            return Err(Refused::new("iss", "the token is of another issuer than this service trusts"));
        }
        let is_for_this_audience = match &self.aud {
            Some(Value::Array(all)) => all.iter().any(|one| one == audience),
            one => text(one) == Some(audience),
        };
        if !is_for_this_audience {
            return Err(Refused::new("aud", "the token is for another audience than this service"));
        }
        let expires = self.exp.as_ref().and_then(seconds);
        let expires =
            expires.ok_or(Refused::new("exp", "the token does not say until when it is valid (exp)"))?;
        let not_before = match &self.nbf {
            None => None,
            Some(given) => Some(seconds(given).ok_or(Refused::new("nbf", "the token's nbf is no time"))?),
        };
        let id = |given: &Option<Value>| {
            let given = text(given)?;
            let id = Uuid::try_parse(given).ok().filter(|id| !id.is_nil())?;
            (id.to_string() == given).then_some(id)
        };
        let tenant_kind = text(&self.tenant_kind).and_then(|name| vocabulary.known_tenant_kind(name));
        let channel = match &self.channel {
            None => Some(Channel::Dashboard),
            given => text(given).and_then(|name| Channel::from_str(name, false).ok()),
        };
        let roles = match &self.roles {
            None => Some(vec![]),
            Some(Value::Array(names)) => {
                Some(vocabulary.known_roles(&names.iter().filter_map(Value::as_str)))
            }
            Some(_) => None,
        };
        // RFC 9068; OpenID Connect; version 1 of the vendor's tokens.
        let client = [&self.client_id, &self.azp, &self.appid].into_iter();
        let client = client.filter_map(|claim| text(claim).and_then(client_named)).next();
        let missing = |claim| Refused::new(claim, missing_claim(*vocabulary));
        Ok(Verified {
            caller: Caller {
                tenant_kind: tenant_kind.ok_or_else(|| missing("tenant_kind"))?,
                tenant_id: id(&self.tenant_id).ok_or_else(|| missing("tenant_id"))?,
                user_id: id(&self.sub).ok_or_else(|| missing("sub"))?,
                roles: roles.ok_or_else(|| missing("roles"))?,
                channel: channel.ok_or_else(|| missing("channel"))?,
                client,
            },
            expires,
            not_before,
        })
    }
}

fn missing_claim(vocabulary: Vocabulary) -> String {
    let kinds = vocabulary
        .tenant_kinds
        .split_last()
        .map_or_else(String::new, |(last, others)| format!("{} or {last}", others.join(", ")));
    format!(
        "the token lacks a valid claim: sub and tenant_id are lower-case UUIDs, tenant_kind is {kinds}, roles is a list, \
         and channel, where given, DASHBOARD or API"
    )
}

/// Since when, if it says so, and until when a token says that it is valid. Nothing is verified.
pub(in crate::auth) fn life(token: &str) -> Option<(Option<i64>, i64)> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let time = |claim| claims.get(claim).and_then(seconds);
    Some((time("iat").or_else(|| time("nbf")), time("exp")?))
}

fn text(claim: &Option<Value>) -> Option<&str> {
    claim.as_ref()?.as_str()
}

/// A time in seconds since 1970. Issuers may give fractions, which are cut off.
fn seconds(claim: &Value) -> Option<i64> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it saturates, and a time beyond the limits never comes"
    )]
    claim.as_i64().or_else(|| claim.as_f64().map(|seconds| seconds as i64))
}
