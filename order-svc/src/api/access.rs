//! Who may make which call: one table (ROLE-2, ROLE-4). It is keyed by the call's path and enforced
//! before the call is handled, so that no handler can forget it. Which orders and subscriptions a
//! caller may see is decided by the calls themselves (ROLE-6).

use chassis::auth::{Access, Who};

const EVERYONE: &[Who] = &[Who::Anyone];
const PARTNER_ACTS: &[Who] = &[Who::PartnerActs];
const PARTNER_OR_OPERATOR: &[Who] = &[Who::PartnerReads, Who::Operator];

/// The table.
pub const WHO_MAY: Access = &[
    ("/csp.order.v1.OfferService/ListOffers", EVERYONE),
    ("/csp.order.v1.OfferService/GetOffer", EVERYONE),
    ("/csp.order.v1.OrderService/CreateOrder", PARTNER_ACTS),
    ("/csp.order.v1.OrderService/GetOrder", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.OrderService/ListOrders", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/GetSubscription", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ListSubscriptions", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ListSubscriptionChanges", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.SubscriptionService/ChangeSeats", PARTNER_ACTS),
    ("/csp.order.v1.SubscriptionService/RenewSubscription", PARTNER_ACTS),
    ("/csp.order.v1.SubscriptionService/SetAutoRenew", PARTNER_ACTS),
    ("/csp.order.v1.SubscriptionService/SuspendSubscription", PARTNER_ACTS),
    ("/csp.order.v1.SubscriptionService/ResumeSubscription", PARTNER_ACTS),
    ("/csp.order.v1.SubscriptionService/CancelSubscription", PARTNER_ACTS),
    ("/csp.order.v1.WithdrawalService/GetWithdrawalReport", PARTNER_OR_OPERATOR),
    ("/csp.order.v1.WithdrawalService/ListWithdrawalReports", PARTNER_OR_OPERATOR),
];
