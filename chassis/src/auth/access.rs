//! Access control: the access policy says which classes of callers may make which call.
//!
//! Each service has one [`AccessPolicy`], keyed by the call's path. The server enforces it before the call is handled.

use tonic::{Code, Status};

use super::Caller;
use crate::status::failure;

/// A class of callers. A caller belongs to it by the kind of its tenant and one of some roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallerClass {
    /// The kind of tenant, or any.
    pub tenant_kind: Option<&'static str>,
    /// The roles of which a caller needs one; if there are none, a caller needs no role.
    pub any_of_roles: &'static [&'static str],
    /// How a refusal describes the class.
    pub description: &'static str,
}

/// The callers that may make each call, by the call's path (`/package.Service/Call`). A call that is not in the
/// policy is refused to all callers.
pub type AccessPolicy = &'static [(&'static str, &'static [CallerClass])];

impl CallerClass {
    /// All callers with an identity.
    pub const ANYONE: Self =
        Self { tenant_kind: None, any_of_roles: &[], description: "anyone with an identity" };

    /// Whether a caller belongs to the class.
    #[must_use]
    pub fn contains(&self, caller: &Caller) -> bool {
        self.tenant_kind.is_none_or(|kind| kind == caller.tenant_kind)
            && (self.any_of_roles.is_empty()
                || self.any_of_roles.iter().any(|role| caller.roles.contains(role)))
    }
}

/// Refuses a caller that the policy does not let make the call at `path`.
pub(crate) fn admit(
    policy: AccessPolicy,
    path: &str,
    caller: &Caller,
    domain: &'static str,
) -> Result<(), Status> {
    let allowed = policy.iter().find(|(call, _)| *call == path).map_or(&[][..], |(_, classes)| classes);
    if allowed.iter().any(|class| class.contains(caller)) {
        return Ok(());
    }
    let allowed = allowed.iter().map(|class| class.description).collect::<Vec<_>>().join(" or ");
    let (sentence, allowed) = if allowed.is_empty() {
        (format!("no caller may call {path}"), "no caller".to_owned())
    } else {
        (format!("only {allowed} may call {path}"), allowed)
    };
    Err(failure(domain, Code::PermissionDenied, "ROLE_NOT_ALLOWED", sentence)
        .with("call", path)
        .with("allowed", allowed)
        .status())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::auth::Channel;

    const WRITER: CallerClass = CallerClass {
        tenant_kind: Some("TENANT"),
        any_of_roles: &["WRITER", "OWNER"],
        description: "a writer",
    };
    const TENANT: CallerClass =
        CallerClass { tenant_kind: Some("TENANT"), any_of_roles: &[], description: "a tenant" };

    fn caller(tenant_kind: &'static str, roles: &[&'static str]) -> Caller {
        let (tenant_id, user_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
        Caller {
            tenant_kind,
            tenant_id,
            user_id,
            roles: roles.to_vec(),
            channel: Channel::Dashboard,
            client: None,
        }
    }

    #[test]
    fn a_caller_needs_the_kind_and_one_of_the_roles() {
        for (tenant_kind, roles, is_writer, is_tenant) in [
            ("TENANT", &["READER", "OWNER"][..], true, true),
            ("TENANT", &["READER"], false, true),
            ("TENANT", &[], false, true),
            ("OTHER", &["WRITER"], false, false),
        ] {
            let caller = caller(tenant_kind, roles);
            assert_eq!((WRITER.contains(&caller), TENANT.contains(&caller)), (is_writer, is_tenant));
            assert!(CallerClass::ANYONE.contains(&caller));
        }
    }

    #[test]
    fn a_call_outside_the_policy_is_refused_to_all_callers() {
        let policy: AccessPolicy = &[("/a.B/C", &[CallerClass::ANYONE])];
        let admitted = |path| admit(policy, path, &caller("TENANT", &[]), "some-svc").map_err(|s| s.code());
        assert_eq!(admitted("/a.B/C"), Ok(()));
        assert_eq!(admitted("/a.B/D"), Err(Code::PermissionDenied));
    }
}
