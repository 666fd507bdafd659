//! Rows of order-svc's calls.

use chassis::clock::Clock;
use chrono::Duration;
use proto::order::preview_withdrawal_request::Subject;
use proto::order::{
    AssignResellerRequest, CancelSubscriptionRequest, ChangeSeatsRequest, CreateOrderRequest,
    GetOfferRequest, GetOrderRequest, GetSubscriptionRequest, GetWithdrawalReportRequest, InlineAttestation,
    ListEventsRequest, ListOffersRequest, ListOrdersRequest, ListSubscriptionChangesRequest,
    ListSubscriptionsRequest, ListWithdrawalReportsRequest, NewOrderLine, PreviewWithdrawalRequest,
    RelationshipName, RenewSubscriptionRequest, ResumeSubscriptionRequest, SetAutoRenewRequest,
    SuspendSubscriptionRequest, WatchEventsRequest,
};
use proto::types::{AttestationDetails, Contact, ShownText};
use tests::fixtures::{self, DIRECT, OFFICE, PROVIDER, RESELLER, RIGHTS_MANAGEMENT};

use super::existing::{Existing, Table, seats};
use super::values::{
    COUNTRIES, ENUMS, PAGE_SIZES, PAGE_TOKENS, TIMES, contact, details, given_id, given_text, id, pick,
    pick_given, text,
};

/// The fields of an attestation that a call carries.
const ATTESTATION: [&str; 14] = [
    "attestation.template_id",
    "attestation.contact.first_name",
    "attestation.contact.last_name",
    "attestation.contact.email",
    "attestation.contact.phone",
    "attestation.agreed_at",
    "attestation.details.title",
    "attestation.details.evidence_reference",
    "attestation.details.evidence_sha256",
    "attestation.details.on_behalf_of",
    "attestation.details.external_reference",
    "attestation.details.shown_text.country",
    "attestation.details.shown_text.language",
    "attestation.details.shown_text.sha256",
];

/// One with all of them wrong. Whether it is an e-mail address, and not in the future, is looked at once all else is
/// right.
fn attestation(n: usize) -> Option<InlineAttestation> {
    Some(InlineAttestation {
        template_id: id(n),
        contact: contact(n).map(|contact| Contact { email: text(n, 254), ..contact }),
        agreed_at: pick(&[&[None], &TIMES.map(Some)[..]].concat(), n),
        details: details(n).map(|of| AttestationDetails {
            evidence_sha256: given_text(n, 64),
            shown_text: Some(ShownText {
                country: text(n, 2),
                language: text(n + 1, 35),
                sha256: given_text(n, 64),
            }),
            ..of
        }),
    })
}

impl Existing {
    pub(super) fn order_events(&self, table: &mut Table) {
        const LIST: &str = "csp.order.v1.EventService/ListEvents";
        const WATCH: &str = "csp.order.v1.EventService/WatchEvents";
        let fields = ["customer_id", "page_size", "page_token"];
        table.all_bad(LIST, &self.direct, &fields, |n| ListEventsRequest {
            customer_id: id(n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            newest_first: n % 2 == 0,
        });
        table.all_bad(WATCH, &self.operator, &["after_revision"], |n| WatchEventsRequest {
            after_revision: pick(&[-1, i64::MIN], n),
        });
    }

    pub(super) fn offers(&self, table: &mut Table) {
        let direct = &self.direct;
        let fields = ["country", "page_size", "page_token"];
        table.all_bad("ListOffers", direct, &fields, |n| ListOffersRequest {
            country: pick_given(&COUNTRIES, n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        });
        table.all_bad("GetOffer", direct, &["offer_id"], |n| GetOfferRequest { offer_id: text(n, 100) });
    }

    pub(super) fn orders(&self, table: &mut Table) {
        let Self { direct, operator, .. } = self;
        let fields = [
            "request_id",
            "customer_id",
            "payer_id",
            "reseller_id",
            "lines[0].offer_id",
            "lines[0].quantity",
            "lines[0].friendly_name",
            "lines[2].offer_id",
            "external_reference",
        ];
        let fields = [&fields[..], &ATTESTATION[..]].concat();
        let line = |offer: &str, quantity| NewOrderLine {
            offer_id: offer.into(),
            quantity,
            friendly_name: String::new(),
        };
        table.all_bad("CreateOrder", direct, &fields, |n| CreateOrderRequest {
            request_id: id(n),
            customer_id: id(n + 1),
            payer_id: given_id(n),
            reseller_id: given_id(n + 1),
            lines: vec![
                // No offer has a minimum below 1, so that nothing needs to be known to refuse this.
                NewOrderLine { friendly_name: given_text(n, 200), ..line(&text(n, 100), 0) },
                line(OFFICE, 1),
                line(&text(n + 1, 100), 1),
            ],
            validate_only: n % 2 == 0,
            attestation: attestation(n),
            external_reference: given_text(n, 80),
        });
        let order = |lines| CreateOrderRequest {
            lines,
            ..fixtures::new_order(&self.customer.customer_id, None, OFFICE, 1)
        };
        let (direct_id, other) = (DIRECT.to_string(), PROVIDER.to_string());
        let now = Clock::system().now();
        let attested = |attestation| CreateOrderRequest {
            customer_id: self.other_customer.clone(),
            attestation: Some(attestation),
            ..order(vec![line(OFFICE, 1)])
        };
        let all = [
            "attestation.template_id",
            "attestation.contact.first_name",
            "attestation.contact.last_name",
            "attestation.contact.email",
            "attestation.agreed_at",
        ];
        for (about, bad, request) in [
            ("an empty attestation", &all[..], attested(InlineAttestation::default())),
            (
                "a stranger's e-mail address, and a date to come",
                &["attestation.contact.email", "attestation.agreed_at"],
                attested(InlineAttestation {
                    contact: Some(Contact { email: "tania@contoso".into(), ..fixtures::contact() }),
                    ..fixtures::inline_attestation(now + Duration::hours(1))
                }),
            ),
            (
                "a telephone number in words",
                &["attestation.contact.phone"],
                attested(InlineAttestation {
                    contact: Some(Contact { phone: "none".into(), ..fixtures::contact() }),
                    ..fixtures::inline_attestation(now)
                }),
            ),
            (
                "a date that was never set",
                &["attestation.agreed_at"],
                attested(InlineAttestation {
                    agreed_at: Some(prost_types::Timestamp::default()),
                    ..fixtures::inline_attestation(now)
                }),
            ),
            (
                "an attestation beside a bad line",
                &["lines[0].quantity"],
                CreateOrderRequest {
                    lines: vec![line(OFFICE, 301)],
                    ..attested(fixtures::inline_attestation(now))
                },
            ),
            ("no line", &["lines"], order(vec![])),
            ("101 lines", &["lines"], order(vec![line(OFFICE, 1); 101])),
            (
                "lines out of bounds, unknown and not sold there",
                &[
                    "lines[0].quantity",
                    "lines[1].quantity",
                    "lines[2].quantity",
                    "lines[3].offer_id",
                    "lines[4].offer_id",
                    "lines[5].offer_id",
                    "lines[6].quantity",
                    "lines[6].offer_id",
                ],
                order(vec![
                    line(OFFICE, 0),
                    line(OFFICE, u32::MAX),
                    line(OFFICE, 301),
                    line("no such offer", 1),
                    line("' OR '1'='1", 1),
                    line(RIGHTS_MANAGEMENT, 1),
                    line(RIGHTS_MANAGEMENT, u32::MAX),
                ]),
            ),
            (
                "two other partners",
                &["reseller_id"],
                CreateOrderRequest {
                    payer_id: other.clone(),
                    reseller_id: RESELLER.to_string(),
                    ..order(vec![line(OFFICE, 1)])
                },
            ),
            (
                "its own reseller",
                &["reseller_id"],
                CreateOrderRequest { reseller_id: direct_id, ..order(vec![line(OFFICE, 1)]) },
            ),
        ] {
            table.bad("CreateOrder", about, direct, bad, &request);
            let dry_run = CreateOrderRequest { validate_only: true, ..request };
            table.bad("CreateOrder", &format!("{about}, validate_only"), direct, bad, &dry_run);
        }

        table.all_bad("GetOrder", direct, &["order_id"], |n| GetOrderRequest { order_id: id(n) });
        let fields = [
            "customer_id",
            "page_size",
            "page_token",
            "offer_id",
            "placed_from",
            "placed_before",
            "external_reference",
        ];
        table.all_bad("ListOrders", operator, &fields, |n| ListOrdersRequest {
            customer_id: given_id(n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            offer_id: given_text(n, 100),
            external_reference: given_text(n + 1, 80),
            placed_from: Some(pick(&TIMES, n)),
            placed_before: Some(pick(&TIMES, n + 1)),
            newest_first: n % 2 == 0,
        });
    }

    pub(super) fn subscriptions(&self, table: &mut Table) {
        let direct = &self.direct;
        table.all_bad("GetSubscription", direct, &["subscription_id"], |n| GetSubscriptionRequest {
            subscription_id: id(n),
        });
        let fields = [
            "customer_id",
            "page_size",
            "page_token",
            "state",
            "offer_id",
            "started_from",
            "started_before",
            "ends_before",
        ];
        table.all_bad("ListSubscriptions", direct, &fields, |n| ListSubscriptionsRequest {
            customer_id: given_id(n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            state: pick(&ENUMS[1..], n),
            offer_id: given_text(n, 100),
            started_from: Some(pick(&TIMES, n)),
            started_before: Some(pick(&TIMES, n + 1)),
            ends_before: Some(pick(&TIMES, n + 2)),
            newest_first: n % 2 == 0,
            acceptance_outdated: n % 2 == 1,
        });
        let fields = ["subscription_id", "page_size", "page_token"];
        table.all_bad("ListSubscriptionChanges", direct, &fields, |n| ListSubscriptionChangesRequest {
            subscription_id: id(n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            newest_first: n % 2 == 0,
        });
        let fields = [&["request_id", "subscription_id", "quantity", "etag"][..], &ATTESTATION[..]].concat();
        table.all_bad("ChangeSeats", direct, &fields, |n| ChangeSeatsRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            quantity: 0,
            etag: text(n, 50),
            validate_only: n % 2 == 0,
            attestation: attestation(n),
        });
        for quantity in [0, 301, u32::MAX] {
            let request = seats(&self.subscription, quantity);
            table.bad("ChangeSeats", &format!("{quantity} seats"), direct, &["quantity"], &request);
        }
        let fields = ["request_id", "subscription_id", "etag"];
        let attesting = [&fields[..], &ATTESTATION[..]].concat();
        table.all_bad("RenewSubscription", direct, &attesting, |n| RenewSubscriptionRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            etag: text(n, 50),
            validate_only: n % 2 == 0,
            attestation: attestation(n),
        });
        table.all_bad("SetAutoRenew", direct, &attesting, |n| SetAutoRenewRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            auto_renew: true,
            etag: text(n, 50),
            attestation: attestation(n),
            validate_only: false,
        });
        // Nothing is attested for what needs no acceptance, so it does not matter how.
        let alone = [&fields[..], &["attestation"]].concat();
        table.all_bad("SetAutoRenew", direct, &alone, |n| SetAutoRenewRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            auto_renew: false,
            etag: text(n, 50),
            attestation: attestation(n),
            validate_only: false,
        });
        let off = SetAutoRenewRequest {
            request_id: fixtures::request_id(),
            subscription_id: self.subscription.subscription_id.clone(),
            auto_renew: false,
            etag: self.subscription.etag.clone(),
            attestation: Some(fixtures::inline_attestation(Clock::system().now())),
            validate_only: false,
        };
        table.bad("SetAutoRenew", "off, with an attestation", direct, &["attestation"], &off);
        table.all_bad("SetAutoRenew", direct, &fields, |n| SetAutoRenewRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            auto_renew: n % 2 == 0,
            etag: text(n, 50),
            attestation: None,
            validate_only: false,
        });
        table.all_bad("SuspendSubscription", direct, &fields, |n| SuspendSubscriptionRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            etag: text(n, 50),
            validate_only: false,
        });
        table.all_bad("ResumeSubscription", direct, &fields, |n| ResumeSubscriptionRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            etag: text(n, 50),
            validate_only: false,
        });
        table.all_bad("CancelSubscription", direct, &fields, |n| CancelSubscriptionRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            etag: text(n, 50),
            validate_only: false,
        });
        let fields = ["request_id", "subscription_id", "etag", "reseller_id"];
        table.all_bad("AssignReseller", direct, &fields, |n| AssignResellerRequest {
            request_id: id(n),
            subscription_id: id(n + 1),
            etag: text(n, 50),
            reseller_id: given_id(n),
            validate_only: false,
        });
    }

    pub(super) fn withdrawals(&self, table: &mut Table) {
        let direct = &self.direct;
        let paged = |n: usize, subject: Option<Subject>| PreviewWithdrawalRequest {
            subject,
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
        };
        let fields = ["acceptance_id", "page_size", "page_token"];
        table.all_bad("PreviewWithdrawal", direct, &fields, |n| paged(n, Some(Subject::AcceptanceId(id(n)))));
        table.all_bad("PreviewWithdrawal", direct, &fields, |n| paged(n, None));
        let parties = ["relationship.customer_id", "relationship.partner_id", "relationship.reseller_id"];
        let fields = [&parties[..], &["page_size", "page_token"]].concat();
        table.all_bad("PreviewWithdrawal", direct, &fields, |n| {
            let relationship =
                RelationshipName { customer_id: id(n), partner_id: id(n + 1), reseller_id: given_id(n) };
            paged(n, Some(Subject::Relationship(relationship)))
        });
        let fields = ["revision", "page_size", "page_token"];
        table.all_bad("GetWithdrawalReport", direct, &fields, |n| GetWithdrawalReportRequest {
            revision: pick(&[0, -1, i64::MIN], n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            wait: true,
        });
        let fields = ["customer_id", "page_size", "page_token"];
        table.all_bad("ListWithdrawalReports", direct, &fields, |n| ListWithdrawalReportsRequest {
            customer_id: given_id(n),
            page_size: pick(&PAGE_SIZES, n),
            page_token: pick(&PAGE_TOKENS, n).into(),
            newest_first: n % 2 == 0,
        });
    }
}
