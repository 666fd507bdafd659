//! The access policy: who may make which call (ROLE-2, ROLE-4).
//!
//! The server enforces it before a call is handled, so that no handler can forget it. The handlers decide which orders
//! and subscriptions a caller may see (ROLE-6).

use chassis::auth::Vocabulary;
use chassis::auth::access::{AccessPolicy, CallerClass};
use proto::identity::{Role, TenantKind};
use strum::VariantNames;

/// The names that identities may carry.
pub const VOCABULARY: Vocabulary = Vocabulary {
    tenant_kinds: TenantKind::VARIANTS,
    roles: Role::VARIANTS,
    internal_kind: TenantKind::Service.into_str(),
};

const PARTNER_WRITE: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Partner.into_str()),
    any_of_roles: &[Role::AdminAgent.into_str(), Role::SalesAgent.into_str()],
    description: "a partner user with ADMIN_AGENT or SALES_AGENT",
};
const PARTNER_READ: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Partner.into_str()),
    any_of_roles: Role::VARIANTS,
    description: "a partner user with ADMIN_AGENT, SALES_AGENT, HELPDESK_AGENT or GLOBAL_ADMIN",
};
const OPERATOR: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Operator.into_str()),
    any_of_roles: &[],
    description: "an operator",
};

const ANYONE: &[CallerClass] = &[CallerClass::ANYONE];
const PARTNER_WRITERS: &[CallerClass] = &[PARTNER_WRITE];
const PARTNER_OR_OPERATOR: &[CallerClass] = &[PARTNER_READ, OPERATOR];

/// The callers that may make each call, by path.
pub const ACCESS_POLICY: AccessPolicy = &[
    ("/csp.order.v1.OfferService/ListOffers", ANYONE),
    ("/csp.order.v1.OfferService/GetOffer", ANYONE),
    ("/csp.order.v1.OrderService/CreateOrder", PARTNER_WRITERS),
    ("/csp.order.v1.OrderService/GetOrder", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.OrderService/ListOrders", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/GetSubscription", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ListSubscriptions", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ListSubscriptionChanges", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ChangeSeats", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/RenewSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/SetAutoRenew", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/SuspendSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/ResumeSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/CancelSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/AssignReseller", PARTNER_WRITERS),
    ("/csp.order.v1.WithdrawalService/GetWithdrawalReport", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.WithdrawalService/ListWithdrawalReports", PARTNER_OR_OPERATOR),
];
