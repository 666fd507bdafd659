//! Who may make which call: one table (ROLE-2, ROLE-4). It is keyed by the call's path and enforced
//! before the call is handled, so that no handler can forget it. Which orders and subscriptions a
//! caller may see is decided by the calls themselves (ROLE-6).

use chassis::auth::{AccessPolicy, CallerClass};

const EVERYONE: &[CallerClass] = &[CallerClass::Anyone];
const PARTNER_WRITE: &[CallerClass] = &[CallerClass::PartnerWrite];
const PARTNER_OR_OPERATOR: &[CallerClass] = &[CallerClass::PartnerRead, CallerClass::Operator];

/// The table.
pub const ACCESS_POLICY: AccessPolicy = &[
    ("/csp.order.v1.OfferService/ListOffers", EVERYONE),
    ("/csp.order.v1.OfferService/GetOffer", EVERYONE),
    ("/csp.order.v1.OrderService/CreateOrder", PARTNER_WRITE),
    ("/csp.order.v1.OrderService/GetOrder", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.OrderService/ListOrders", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/GetSubscription", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ListSubscriptions", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ListSubscriptionChanges", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ChangeSeats", PARTNER_WRITE),
    ("/csp.order.v1.SubscriptionService/RenewSubscription", PARTNER_WRITE),
    ("/csp.order.v1.SubscriptionService/SetAutoRenew", PARTNER_WRITE),
    ("/csp.order.v1.SubscriptionService/SuspendSubscription", PARTNER_WRITE),
    ("/csp.order.v1.SubscriptionService/ResumeSubscription", PARTNER_WRITE),
    ("/csp.order.v1.SubscriptionService/CancelSubscription", PARTNER_WRITE),
    ("/csp.order.v1.WithdrawalService/GetWithdrawalReport", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.WithdrawalService/ListWithdrawalReports", PARTNER_OR_OPERATOR),
];
