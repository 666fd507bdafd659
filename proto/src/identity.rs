//! The names that an identity carries, in tokens and in metadata: kinds of tenants, and roles of users.

use strum::{Display, EnumString, IntoStaticStr, VariantNames};

/// The kind of tenant that a caller belongs to (`tenant_kind`, `x-tenant-kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", const_into_str)]
pub enum TenantKind {
    /// A partner: it buys for customers, directly or as a reseller.
    Partner,
    /// A customer of partners.
    Customer,
    /// The operator of both services.
    Operator,
    /// An internal service, which acts for all tenants.
    Service,
}

/// What a user may do for its tenant (`roles`, `x-roles`). Any other role that an identity names grants nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", const_into_str)]
pub enum Role {
    /// Reads and writes for a partner.
    AdminAgent,
    /// Reads and writes for a partner.
    SalesAgent,
    /// Reads for a partner.
    HelpdeskAgent,
    /// Reads for a partner, reads and writes for a customer.
    GlobalAdmin,
}

/// Compares the kind that an identity carries by name.
impl PartialEq<TenantKind> for &str {
    fn eq(&self, kind: &TenantKind) -> bool {
        *self == kind.into_str()
    }
}
