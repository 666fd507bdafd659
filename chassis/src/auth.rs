//! Who calls, and whether that kind of caller may make the call at all.
//!
//! The identity is established here once for every call and handed to the handler as [`Caller`];
//! requests never carry it. Which resources a caller may see is the services' business.

use std::fmt;
use std::net::SocketAddr;

use clap::ValueEnum;
use http::HeaderMap;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::status::failure;

/// How identities are established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Trusts the metadata `x-tenant-id`, `x-tenant-kind`, `x-user-id`, `x-roles` and `x-channel`.
    /// For one's own machine: the server refuses to listen on anything but loopback.
    Insecure,
}

/// What kind of tenant the caller belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
pub enum Who {
    /// A partner user with `ADMIN_AGENT` or `SALES_AGENT`.
    PartnerActs,
    /// A partner user with any of the roles.
    PartnerReads,
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
pub type Access = &'static [(&'static str, &'static [Who])];

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
            Self::Insecure => Ok(()),
        }
    }

    pub(crate) fn caller(self, headers: &HeaderMap, domain: &'static str) -> Result<Caller, Status> {
        match self {
            Self::Insecure => Caller::from_metadata(headers).map_err(|claim| {
                failure(
                    domain,
                    Code::Unauthenticated,
                    "IDENTITY_REQUIRED",
                    format!(
                        "the identity has no valid {claim}; send x-tenant-id, x-tenant-kind and x-user-id"
                    ),
                )
                .with("claim", claim)
                .status()
            }),
        }
    }
}

impl Caller {
    /// Whether the caller belongs to a class.
    #[must_use]
    pub fn is(&self, who: Who) -> bool {
        let has = |role| self.roles.contains(&role);
        match who {
            Who::PartnerActs => {
                self.tenant_kind == TenantKind::Partner && (has(Role::AdminAgent) || has(Role::SalesAgent))
            }
            Who::PartnerReads => self.tenant_kind == TenantKind::Partner && !self.roles.is_empty(),
            Who::CustomerAdmin => self.tenant_kind == TenantKind::Customer && has(Role::GlobalAdmin),
            Who::Operator => self.tenant_kind == TenantKind::Operator,
            Who::Service => self.tenant_kind == TenantKind::Service,
            Who::Anyone => true,
        }
    }

    /// Writes the identity as [`Auth::Insecure`] reads it.
    pub fn present(&self, metadata: &mut MetadataMap) {
        let roles = self.roles.iter().map(|role| role_name(*role)).collect::<Vec<_>>().join(",");
        let channel = match self.channel {
            Channel::Dashboard => "DASHBOARD",
            Channel::Api => "API",
        };
        for (key, value) in [
            ("x-tenant-id", self.tenant_id.to_string()),
            ("x-tenant-kind", self.tenant_kind.to_string()),
            ("x-user-id", self.user_id.to_string()),
            ("x-roles", roles),
            ("x-channel", channel.to_owned()),
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

fn role_of(name: &str) -> Option<Role> {
    [Role::AdminAgent, Role::SalesAgent, Role::HelpdeskAgent, Role::GlobalAdmin]
        .into_iter()
        .find(|role| role_name(*role) == name)
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::AdminAgent => "ADMIN_AGENT",
        Role::SalesAgent => "SALES_AGENT",
        Role::HelpdeskAgent => "HELPDESK_AGENT",
        Role::GlobalAdmin => "GLOBAL_ADMIN",
    }
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
pub(crate) fn admit(access: Access, path: &str, caller: &Caller, domain: &'static str) -> Result<(), Status> {
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

impl Who {
    fn description(self) -> &'static str {
        match self {
            Self::PartnerActs => "a partner user with ADMIN_AGENT or SALES_AGENT",
            Self::PartnerReads => {
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
        let refused = admit(&[("/a.B/C", &[Who::Anyone])], "/a.B/D", &caller, "some-svc").unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(
            admit(&[("/a.B/C", &[Who::Anyone])], "/a.B/C", &caller, "some-svc").map_err(|_| ()),
            Ok(())
        );
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
