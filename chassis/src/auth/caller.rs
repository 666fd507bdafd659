//! The identity behind a call.

use clap::ValueEnum;
use http::HeaderMap;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Status};
use uuid::Uuid;

use crate::limits::tenant::Tenant;

/// The names that identities may carry, as the contract spells them. The contract is the services'; this crate knows
/// no kind of tenant and no role.
#[derive(Clone, Copy, Debug)]
pub struct Vocabulary {
    /// The kinds of tenants. An identity of any other kind is refused.
    pub tenant_kinds: &'static [&'static str],
    /// The roles of users. Any other role grants nothing.
    pub roles: &'static [&'static str],
    /// The kind of internal services, which act for all tenants.
    pub internal_kind: &'static str,
    /// The kind of tenants that are registered, where an issuer's tokens name none.
    pub registered_kind: &'static str,
    /// The kind of all other tenants there. It may do less.
    pub unregistered_kind: &'static str,
}

/// How the caller reached the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, strum::Display, strum::VariantNames)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Channel {
    /// A person at a dashboard; also if the identity names no channel.
    Dashboard,
    /// A program.
    Api,
}

/// The identity behind a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The kind of its tenant, one of [`Vocabulary::tenant_kinds`].
    pub tenant_kind: &'static str,
    /// Its tenant.
    pub tenant_id: Uuid,
    /// The user of that tenant.
    pub user_id: Uuid,
    /// The roles of the user, each of [`Vocabulary::roles`] at most once.
    pub roles: Vec<&'static str>,
    /// How it reached the service.
    pub channel: Channel,
    /// The program that made the call, as its issuer registered it.
    pub client: Option<String>,
}

impl Caller {
    /// The tenant whose share of the limits it uses.
    #[must_use]
    pub fn tenant(&self) -> Tenant {
        Tenant::new(self.tenant_kind, self.tenant_id)
    }
}

impl Vocabulary {
    pub(super) fn known_tenant_kind(&self, name: &str) -> Option<&'static str> {
        self.tenant_kinds.iter().find(|kind| **kind == name).copied()
    }

    /// The known ones among some names, each once.
    pub(super) fn known_roles<'n>(
        &self,
        names: &(impl Iterator<Item = &'n str> + Clone),
    ) -> Vec<&'static str> {
        self.roles.iter().filter(|role| names.clone().any(|name| name == **role)).copied().collect()
    }
}

impl Caller {
    /// Writes the identity into metadata, as `--auth insecure` reads it.
    pub fn present(&self, metadata: &mut MetadataMap) {
        for (key, value) in [
            ("x-tenant-id", self.tenant_id.to_string()),
            ("x-tenant-kind", self.tenant_kind.to_owned()),
            ("x-user-id", self.user_id.to_string()),
            ("x-roles", self.roles.join(",")),
            ("x-channel", self.channel.to_string()),
        ] {
            if let Ok(value) = MetadataValue::try_from(value) {
                metadata.insert(key, value);
            }
        }
        if let Some(Ok(value)) = self.client.as_deref().map(MetadataValue::try_from) {
            metadata.insert("x-client-id", value);
        }
    }

    /// Reads the identity, or names the claim that is missing or malformed.
    pub(super) fn from_metadata(headers: &HeaderMap, vocabulary: Vocabulary) -> Result<Self, &'static str> {
        // A value that is no text is malformed, not absent.
        let text = |key: &str| headers.get(key).map_or("", |value| value.to_str().unwrap_or("?"));
        let id = |key: &'static str| {
            let id = Uuid::try_parse(text(key)).ok().filter(|id| !id.is_nil());
            id.filter(|id| id.to_string() == text(key)).ok_or(key)
        };
        let tenant_kind = vocabulary.known_tenant_kind(text("x-tenant-kind")).ok_or("x-tenant-kind")?;
        let channel = match text("x-channel") {
            "" => Channel::Dashboard,
            name => Channel::from_str(name, false).map_err(|_| "x-channel")?,
        };
        let roles = vocabulary.known_roles(&text("x-roles").split(',').map(str::trim));
        let client = client_named(text("x-client-id"));
        let (tenant_id, user_id) = (id("x-tenant-id")?, id("x-user-id")?);
        Ok(Self { tenant_kind, tenant_id, user_id, roles, channel, client })
    }
}

/// A program by the name that an identity gives it, as RFC 6749 allows them (appendix A.1), of at most 200 characters. Nothing
/// depends on it but what is recorded, so any other name counts as none.
pub(super) fn client_named(name: &str) -> Option<String> {
    let is_name = (1..=200).contains(&name.len()) && name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    is_name.then(|| name.to_owned())
}

/// The identity that the server established for this call.
///
/// # Errors
/// `UNAUTHENTICATED` if the request did not come through the server: fail closed.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let missing = || Status::unauthenticated("IDENTITY_REQUIRED: the call did not come through the server");
    request.extensions().get::<Caller>().cloned().ok_or_else(missing)
}

#[cfg(test)]
impl Vocabulary {
    pub(crate) const TEST: Self = Self {
        tenant_kinds: &["TENANT", "OTHER", "INTERNAL"],
        roles: &["READER", "WRITER"],
        internal_kind: "INTERNAL",
        registered_kind: "TENANT",
        unregistered_kind: "OTHER",
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Caller {
        Caller {
            tenant_kind: "TENANT",
            tenant_id: Uuid::from_u128(7),
            user_id: Uuid::from_u128(8),
            roles: vec!["READER", "WRITER"],
            channel: Channel::Api,
            client: Some("shop".into()),
        }
    }

    fn headers() -> HeaderMap {
        let mut metadata = MetadataMap::new();
        caller().present(&mut metadata);
        metadata.into_headers()
    }

    #[test]
    fn an_identity_is_read_as_it_was_presented() {
        assert_eq!(Caller::from_metadata(&headers(), Vocabulary::TEST), Ok(caller()));
    }

    #[test]
    fn names_outside_the_vocabulary_are_no_kind_and_no_role() {
        let mut headers = headers();
        headers.insert("x-roles", " WRITER,OWNER,writer,WRITER".parse().unwrap());
        let read = Caller::from_metadata(&headers, Vocabulary::TEST);
        assert_eq!(read.map(|caller| caller.roles), Ok(vec!["WRITER"]));
        for (claim, value) in
            [("x-tenant-kind", "tenant"), ("x-tenant-kind", "STRANGER"), ("x-channel", "api")]
        {
            let mut headers = headers.clone();
            headers.insert(claim, value.parse().unwrap());
            assert_eq!(Caller::from_metadata(&headers, Vocabulary::TEST), Err(claim), "{value}");
        }
    }

    #[test]
    fn a_client_has_a_name_in_bounds_or_none() {
        for (name, is_name) in [
            ("shop", true),
            (" ~", true),
            ("", false),
            ("caf\u{e9}", false),
            ("a\tb", false),
            (&"x".repeat(200), true),
            (&"x".repeat(201), false),
        ] {
            assert_eq!(client_named(name).is_some(), is_name, "{name}");
        }
    }
}
