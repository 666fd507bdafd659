//! The access policy: who may make which call (ROLE-2, ROLE-3, ROLE-4).
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
    registered_kind: TenantKind::Partner.into_str(),
    unregistered_kind: TenantKind::Customer.into_str(),
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

const SERVICE: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Service.into_str()),
    any_of_roles: &[],
    description: "a service",
};
const CUSTOMER_ADMIN: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Customer.into_str()),
    any_of_roles: &[Role::GlobalAdmin.into_str()],
    description: "a customer user with GLOBAL_ADMIN",
};

const ANYONE: &[CallerClass] = &[CallerClass::ANYONE];
const PARTNER_WRITERS: &[CallerClass] = &[PARTNER_WRITE];
const SERVICE_OR_OPERATOR: &[CallerClass] = &[SERVICE, OPERATOR];
const PARTNER_OPERATOR_OR_CUSTOMER: &[CallerClass] = &[PARTNER_READ, OPERATOR, CUSTOMER_ADMIN];
const PARTNER_OPERATOR_OR_SERVICE: &[CallerClass] = &[PARTNER_READ, OPERATOR, SERVICE];
const READERS: &[CallerClass] = &[PARTNER_READ, OPERATOR, CUSTOMER_ADMIN, SERVICE];

/// The callers that may make each call, by path.
pub const ACCESS_POLICY: AccessPolicy = &[
    ("/csp.order.v1.OfferService/ListOffers", ANYONE),
    ("/csp.order.v1.OfferService/GetOffer", ANYONE),
    ("/csp.order.v1.OrderService/CreateOrder", PARTNER_WRITERS),
    ("/csp.order.v1.OrderService/GetOrder", PARTNER_OPERATOR_OR_SERVICE),
    ("/csp.order.v1.OrderService/ListOrders", PARTNER_OPERATOR_OR_SERVICE),
    ("/csp.order.v1.SubscriptionService/GetSubscription", READERS),
    ("/csp.order.v1.SubscriptionService/ListSubscriptions", READERS),
    ("/csp.order.v1.SubscriptionService/ListSubscriptionChanges", PARTNER_OPERATOR_OR_SERVICE),
    ("/csp.order.v1.SubscriptionService/ChangeSeats", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/RenewSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/SetAutoRenew", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/SuspendSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/ResumeSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/CancelSubscription", PARTNER_WRITERS),
    ("/csp.order.v1.SubscriptionService/AssignReseller", PARTNER_WRITERS),
    ("/csp.order.v1.WithdrawalService/GetWithdrawalReport", READERS),
    ("/csp.order.v1.WithdrawalService/ListWithdrawalReports", READERS),
    ("/csp.order.v1.WithdrawalService/PreviewWithdrawal", PARTNER_OPERATOR_OR_CUSTOMER),
    ("/csp.order.v1.EventService/ListEvents", PARTNER_OPERATOR_OR_SERVICE),
    ("/csp.order.v1.EventService/WatchEvents", SERVICE_OR_OPERATOR),
];
