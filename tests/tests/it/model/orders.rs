//! Random lives of orders and subscriptions, played over gRPC and, beside it, in a model of the rules that
//! knows nothing of the services' code. What the customers accept is played and modelled by
//! `acceptance_model`.
//!
//! After each step the answer, or the refusal with everything it carries, the subscriptions and what
//! happened to them must be the model's.

use std::collections::BTreeMap;

use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chrono::{Datelike, Duration, NaiveDate};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use proto::agreement::{GetCustomerRequest, ListAttestationsRequest};
use proto::order::{
    BillingCycle, CancelSubscriptionRequest, ChangeSeatsRequest, CreateOrderRequest, CreateOrderResponse,
    GetOfferRequest, GetOrderRequest, GetSubscriptionRequest, GetWithdrawalReportRequest, InlineAttestation,
    ListOffersRequest, ListOrdersRequest, ListSubscriptionChangesRequest, ListSubscriptionsRequest,
    ListWithdrawalReportsRequest, NewOrderLine, OfferKind, Order, OrderLine, RenewSubscriptionRequest,
    ResumeSubscriptionRequest, SetAutoRenewRequest, Subscription, SubscriptionChange,
    SubscriptionChangeKind as Kind, SubscriptionChangeReason as Why, SubscriptionState as State,
    SuspendSubscriptionRequest, Term, WithdrawalEffect, WithdrawalOutcome, WithdrawalReport,
};
use proto::types::{AcceptanceKind, AgreementType, Decision, Evidence, GateEvidence, GateRule};
use tests::clients::bad_fields_of;
use tests::world::{self, CUSTOMER_AGREEMENT};
use tests::{As, Backend, Cluster, Setup, metadata_of, reason_of};
use tonic::Status;
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::faults::relay::Relay;
use crate::history::event_properties as histories;
use crate::model::acceptance::{
    self as acceptance, COUNTRIES, CUSTOMERS, Happened, NOT_FOUND, PARTNERS, payer,
};

/// When each history begins: at the end of a month that is longer than the next, in a leap year.
const START: &str = "2024-01-30T22:00:00Z";

// What somebody does, in terms that make sense whatever happened before.

#[derive(Clone, Debug)]
enum Step {
    /// Something that only agreement-svc is asked for.
    Accept(acceptance::Step),
    Order {
        by: Buyer,
        customer: usize,
        lines: Vec<Line>,
        attestation: Option<Attestation>,
        validate_only: bool,
    },
    Change {
        which: Index,
        by: Actor,
        etag: Etag,
        wish: Wish,
        validate_only: bool,
    },
    /// An earlier request of either kind, under its request id.
    Again {
        which: Index,
        how: Again,
    },
    /// While the gate's answer to a request is on its way, something else is done and followed.
    Overtaken {
        by: Box<Step>,
        request: Box<Step>,
    },
    /// From now on order-svc is told of what happens only later, or at once again.
    HoldHistory(bool),
    /// Time goes on to the end of a subscription's term, or to just before or behind it, and something may
    /// be asked of the subscription before order-svc processes the end.
    AwaitTermEnd {
        which: Index,
        micros_after: i64,
        asked: Option<Wish>,
    },
}

/// Who orders, and whom it names (ORD-1).
#[derive(Clone, Copy, Debug)]
enum Buyer {
    ForItself(usize),
    ProviderNamesReseller,
    ResellerNamesProvider,
    /// Its relationships name no reseller.
    DirectNamesReseller,
    /// Nobody pays.
    NamesItselfReseller,
    /// Two would be on record.
    NamesBothOthers,
}

/// What an order attests on the way (ORD-4).
#[derive(Clone, Copy, Debug)]
struct Attestation {
    person: usize,
    agreed_minutes_ago: i64,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    /// Behind the last: one that does not exist.
    offer: usize,
    quantity: u32,
}

/// Who asks for a change.
#[derive(Clone, Copy, Debug)]
enum Actor {
    Payer,
    Reseller,
    OtherPayer,
}

#[derive(Clone, Copy, Debug)]
enum Etag {
    Current,
    Before,
    Next,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Wish {
    Seats(u32),
    Renew,
    AutoRenew(bool),
    Suspend,
    Resume,
    Cancel,
}

#[derive(Clone, Copy, Debug)]
enum Again {
    AsItWas,
    OtherContent,
    Stored,
    By(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let buyer = prop_oneof![
        4 => Just(Buyer::ForItself(0)),
        4 => Just(Buyer::ForItself(1)),
        3 => Just(Buyer::ProviderNamesReseller),
        3 => Just(Buyer::ResellerNamesProvider),
        1 => Just(Buyer::ForItself(2)),
        1 => Just(Buyer::DirectNamesReseller),
        1 => Just(Buyer::NamesItselfReseller),
        1 => Just(Buyer::NamesBothOthers),
    ];
    let offer = prop_oneof![24 => Just(0), 16 => Just(1), 4 => Just(2), 9 => 3..OFFERS.len(), 1 => Just(OFFERS.len())];
    let quantity = || {
        prop_oneof![
            30 => Just(1_u32), 20 => 2..6_u32, 3 => Just(300), 1 => Just(301), 1 => Just(0), 1 => Just(u32::MAX)
        ]
    };
    let line = (offer, quantity()).prop_map(|(offer, quantity)| Line { offer, quantity });
    let rarely = || prop::bool::weighted(0.1);
    let attestation = (0..3_usize, prop_oneof![3 => Just(0), 1 => 0..400_i64 * 24 * 60])
        .prop_map(|(person, agreed_minutes_ago)| Attestation { person, agreed_minutes_ago });
    let attestation = prop::option::weighted(0.3, attestation);
    let lines = prop::collection::vec(line, 1..4);
    let order = (buyer.clone(), 0..CUSTOMERS, lines, attestation, rarely()).prop_map(
        |(by, customer, lines, attestation, validate_only)| Step::Order {
            by,
            customer,
            lines,
            attestation,
            validate_only,
        },
    );
    let actor =
        prop_oneof![8 => Just(Actor::Payer), 3 => Just(Actor::Reseller), 1 => Just(Actor::OtherPayer)];
    let etag = prop_oneof![10 => Just(Etag::Current), 1 => Just(Etag::Before), 1 => Just(Etag::Next)];
    let wish = prop_oneof![
        6 => quantity().prop_map(Wish::Seats),
        4 => Just(Wish::Renew),
        3 => Just(Wish::AutoRenew(true)),
        3 => Just(Wish::AutoRenew(false)),
        2 => Just(Wish::Suspend),
        3 => Just(Wish::Resume),
        1 => Just(Wish::Cancel),
    ];
    let change = (any::<Index>(), actor, etag, wish.clone(), rarely()).prop_map(
        |(which, by, etag, wish, validate_only)| Step::Change { which, by, etag, wish, validate_only },
    );
    let how = prop_oneof![
        4 => Just(Again::AsItWas),
        2 => Just(Again::OtherContent),
        1 => Just(Again::Stored),
        1 => (0..PARTNERS.len()).prop_map(Again::By),
    ];
    let again = (any::<Index>(), how).prop_map(|(which, how)| Step::Again { which, how });
    let micros = prop_oneof![2 => Just(0_i64), 2 => Just(-1), 1 => Just(1)];
    let await_end = (any::<Index>(), micros, prop::option::of(wish))
        .prop_map(|(which, micros_after, asked)| Step::AwaitTermEnd { which, micros_after, asked });
    let good_order = (buyer, 0..CUSTOMERS, 1..9_u32).prop_map(|(by, customer, quantity)| Step::Order {
        by,
        customer,
        lines: vec![Line { offer: 0, quantity }],
        attestation: None,
        validate_only: false,
    });
    let is_quick = |step: &acceptance::Step| {
        use acceptance::Step::{EndRelationship, WithdrawAttestation, WithdrawSignature};
        matches!(step, EndRelationship { .. } | WithdrawAttestation { .. } | WithdrawSignature { .. })
    };
    let withdrawal = || acceptance::step().prop_filter("a withdrawal or an end", is_quick);
    let withdrawn = prop::collection::vec(withdrawal(), 1..4);
    let other = acceptance::step()
        .prop_filter("time stands still", |step| !matches!(step, acceptance::Step::Wait { .. }));
    let gated = prop_oneof![3 => (1..9_u32).prop_map(Wish::Seats), 2 => Just(Wish::Renew), 1 => Just(Wish::AutoRenew(true))];
    let free = prop_oneof![
        Just(Wish::Suspend),
        Just(Wish::Cancel),
        Just(Wish::AutoRenew(false)),
        (1..9_u32).prop_map(Wish::Seats)
    ];
    let of_payer = |which, wish| {
        Box::new(Step::Change { which, by: Actor::Payer, etag: Etag::Current, wish, validate_only: false })
    };
    let overtaken = prop_oneof![
        4 => (prop_oneof![2 => withdrawal(), 1 => other], prop_oneof![good_order, order.clone(), change.clone()])
            .prop_map(|(by, request)| (Box::new(Step::Accept(by)), Box::new(request))),
        3 => (any::<Index>(), free, gated)
            .prop_map(move |(which, by, wish)| (of_payer(which, by), of_payer(which, wish))),
    ];
    let overtaken = overtaken.prop_map(|(by, request)| Step::Overtaken { by, request });
    let step = prop_oneof![
        5 => overtaken,
        2 => prop::bool::ANY.prop_map(Step::HoldHistory),
        9 => acceptance::step().prop_map(Step::Accept),
        7 => order,
        14 => change,
        4 => again,
        2 => await_end,
    ];
    // A withdrawal that order-svc is told of only once the partner has attested anew and bought on that.
    let late = (withdrawn, 0..2_usize, 0..CUSTOMERS, any::<Index>(), 1..9_u32, any::<bool>()).prop_map(
        move |(withdrawn, partner, customer, which, seats, is_order)| {
            let agreed_minutes_ago = 0;
            let attest = acceptance::Step::Attest { partner, customer, person: 0, agreed_minutes_ago };
            let lines = vec![Line { offer: 0, quantity: seats }];
            let (by, attestation, validate_only) = (Buyer::ForItself(partner), None, false);
            let bought = match is_order {
                true => Step::Order { by, customer, lines, attestation, validate_only },
                false => *of_payer(which, Wish::Seats(seats)),
            };
            let withdrawn = withdrawn.into_iter().map(Step::Accept);
            let before = [Step::HoldHistory(false), Step::HoldHistory(true)].into_iter().chain(withdrawn);
            before.chain([Step::Accept(attest), bought, Step::HoldHistory(false)]).collect::<Vec<_>>()
        },
    );
    let some = prop_oneof![20 => step.prop_map(|step| vec![step]), 1 => late];
    prop::collection::vec(some, 25..50).prop_map(|some| some.concat())
}

// The model.

/// As shipped in order-svc/data, the licences first.
struct Offer {
    id: &'static str,
    kind: OfferKind,
    quantity_max: u32,
    /// How long a term is; without one it lasts for good.
    term: Term,
    billing: BillingCycle,
    auto_renews: bool,
    sold_in: Option<&'static str>,
    demands: Option<AgreementType>,
}

const OFFICE: Offer = Offer {
    id: "031C9E47-4802-4248-838E-778FB1D2CC05",
    kind: OfferKind::License,
    quantity_max: 300,
    term: Term::Year,
    billing: BillingCycle::Monthly,
    auto_renews: true,
    sold_in: None,
    demands: None,
};

const OFFERS: [Offer; 7] = [
    OFFICE,
    Offer {
        id: "DZH318Z0BXWC:0002:DZH318Z0BMRV",
        kind: OfferKind::Software,
        quantity_max: 10_000,
        term: Term::Month,
        ..OFFICE
    },
    Offer {
        id: "E60E0348-1710-484B-992A-32B294D4CDE1",
        quantity_max: 10_000_000,
        billing: BillingCycle::Annual,
        sold_in: Some("US"),
        ..OFFICE
    },
    Offer {
        id: "DZH318Z0BQ4B:0047:DZH318Z0DSM8",
        kind: OfferKind::ReservedInstance,
        quantity_max: 1000,
        billing: BillingCycle::OneTime,
        auto_renews: false,
        ..OFFICE
    },
    Offer {
        id: "DG7GMGF0DWTL:0001:DG7GMGF0DSFM",
        kind: OfferKind::Software,
        quantity_max: 1000,
        term: Term::Perpetual,
        billing: BillingCycle::OneTime,
        auto_renews: false,
        ..OFFICE
    },
    Offer {
        id: "DZH318Z0BPS6:0001",
        kind: OfferKind::AzurePlan,
        quantity_max: 1,
        term: Term::Perpetual,
        billing: BillingCycle::OneTime,
        auto_renews: false,
        demands: Some(AgreementType::MicrosoftCustomerAgreement),
        ..OFFICE
    },
    Offer {
        id: "MS-AZR-0145P",
        kind: OfferKind::AzurePlan,
        quantity_max: 1,
        term: Term::Perpetual,
        auto_renews: false,
        demands: Some(AgreementType::MicrosoftCloudAgreement),
        ..OFFICE
    },
];

const UNKNOWN_OFFER: &str = "NO-SUCH-OFFER";

fn offer(id: &str) -> Option<&'static Offer> {
    OFFERS.iter().find(|offer| offer.id == id)
}

/// SUB-3: when the n-th term ends.
fn term_end(started_at: Time, term: Term, number: u32) -> Option<Time> {
    let months = match term {
        Term::Month => 1,
        Term::Year => 12,
        Term::ThreeYears => 36,
        Term::Perpetual | Term::Unspecified => return None,
    };
    let months = started_at.year() * 12 + i32::try_from(started_at.month0() + months * number).unwrap();
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12).unsigned_abs() + 1);
    // The last day of the month, where it has no such day.
    let day = (1..=started_at.day()).rev().find_map(|day| NaiveDate::from_ymd_opt(year, month, day));
    day.map(|day| day.and_time(started_at.time()).and_utc())
}

/// A refusal with what it carries.
#[derive(Clone, Debug, PartialEq)]
struct Refusal {
    reason: String,
    metadata: BTreeMap<String, String>,
    /// The bad fields, or the preconditions that are not met.
    named: Vec<String>,
}

fn refused<const N: usize>(reason: &str, metadata: [(&str, String); N]) -> Refusal {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Refusal { reason: reason.into(), metadata, named: vec![] }
}

fn bad_fields(named: Vec<String>) -> Refusal {
    Refusal { named, ..refused("INVALID_FIELDS", []) }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let unmet =
            status.get_details_precondition_failure().into_iter().flat_map(|failure| failure.violations);
        let unmet = unmet.map(|unmet| format!("{} {}", unmet.r#type, unmet.description));
        let metadata = metadata_of(&status).into_iter().collect();
        let named = bad_fields_of(&status).into_iter().chain(unmet).collect();
        Self { reason: reason_of(&status), metadata, named }
    }
}

/// A request of order-svc that buys or changes.
#[derive(Clone, Debug)]
struct Call {
    by: usize,
    request_id: String,
    content: Content,
    validate_only: bool,
}

/// What a request id stands for.
#[derive(Clone, Debug, PartialEq)]
enum Content {
    /// Without request id and `validate_only`.
    Order(Box<CreateOrderRequest>),
    Change {
        subscription_id: String,
        etag: String,
        wish: Wish,
    },
}

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Placed(CreateOrderResponse),
    Changed(Option<Subscription>, Option<GateEvidence>),
}

/// A subscription, as it is and as it became that.
#[derive(Clone, Debug)]
struct Life {
    now: Subscription,
    changes: Vec<SubscriptionChange>,
    /// How many of them were compared.
    compared: usize,
}

/// What an accepted wish does.
enum Planned {
    Nothing,
    Free(Kind),
    Gated(Kind),
}

#[derive(Default)]
struct Model {
    orders: BTreeMap<String, Order>,
    lives: BTreeMap<String, Life>,
    /// Requests whose attestation was made: who, the request id, what was asked.
    attested: Vec<(usize, String, Content)>,
    /// With the answers that were stored.
    calls: Vec<(Call, Option<Answer>)>,
    /// Of each customer: the revision of the last withdrawal or end of a relationship that was applied.
    fences: [i64; CUSTOMERS],
    /// When each event of the world's history was recorded, and how many were applied.
    recorded: Vec<Time>,
    followed: usize,
    /// What withdrawals did, by revision.
    reports: BTreeMap<i64, (WithdrawalReport, Vec<WithdrawalEffect>)>,
}

impl Model {
    /// The gate for a payer and, where there is one, the reseller on record.
    fn gate(
        &self,
        world: &acceptance::Play,
        by: usize,
        (payer_id, reseller_id): (&str, &str),
        customer_id: &str,
        demands: &[AgreementType],
    ) -> Result<GateEvidence, Refusal> {
        let model = &world.model;
        let customer = world.customer_ids.iter().position(|id| id == customer_id).unwrap();
        let paying = PARTNERS.iter().position(|id| id.to_string() == payer_id).unwrap();
        let relationships = &model.customers[customer].relationships;
        let is_together = match reseller_id {
            "" => model.customers[customer].is_paid_for_by(paying),
            reseller => relationships.iter().any(|of| {
                (*of, payer(*of)) != (paying, paying)
                    && payer(*of) == paying
                    && PARTNERS[*of].to_string() == reseller
            }),
        };
        // GATE-0.
        if payer(paying) != paying && paying == by {
            return Err(refused("PAYER_IS_RESELLER", [("payer_id", payer_id.into())]));
        }
        if !is_together || payer(paying) != paying {
            return Err(refused(NOT_FOUND, [("partner_center_code", "20002".into())]));
        }
        let is_wrong_type = demands.contains(&AgreementType::MicrosoftCloudAgreement);
        let decided = match is_wrong_type {
            true => Err(["BLOCK_REASON_WRONG_AGREEMENT_TYPE"].into()),
            false => model.gate(customer, paying, model.now),
        };
        let blocked = match decided {
            Ok(on) => {
                let (rule, kind) = match on.partner {
                    None => (GateRule::DirectSignature, AcceptanceKind::DirectSignature),
                    Some(_) => (GateRule::Attestation, AcceptanceKind::Attestation),
                };
                let evidence = Evidence {
                    kind: kind.into(),
                    acceptance_id: on.id.clone(),
                    template_id: CUSTOMER_AGREEMENT.into(),
                    template_version: on.version,
                    agreement_type: AgreementType::MicrosoftCustomerAgreement.into(),
                };
                return Ok(GateEvidence {
                    decision: Decision::Allowed.into(),
                    rule: rule.into(),
                    evidence: Some(evidence),
                    revision: model.customers[customer].acceptance_revision,
                    evaluated_at: Some(timestamp(model.now)),
                });
            }
            Err(reasons) => reasons,
        };
        let reasons = blocked.iter().map(|reason| reason.trim_start_matches("BLOCK_REASON_"));
        let mut reasons: Vec<_> = reasons.collect();
        // As the gate lists them.
        reasons.sort_by_key(|reason| {
            ["WITHDRAWN", "VERSION_SUPERSEDED"].iter().position(|first| first == reason)
        });
        let mut refusal = refused(
            "AGREEMENT_REQUIRED",
            [
                ("customer_id", customer_id.to_owned()),
                ("reasons", reasons.join(",")),
                ("partner_center_code", "13605".into()),
            ],
        );
        refusal.named = reasons.iter().map(|reason| format!("AGREEMENT {reason}")).collect();
        let mut remedies = vec![];
        if !is_wrong_type {
            let template = ("template_id".to_owned(), CUSTOMER_AGREEMENT.to_owned());
            if by == paying {
                remedies.push("ATTEST");
                let required = "template_id,contact.first_name,contact.last_name,contact.email,agreed_at";
                refusal.metadata.extend([
                    template.clone(),
                    ("required_fields".into(), required.into()),
                    ("optional_fields".into(), "contact.phone".into()),
                ]);
            } else {
                remedies.push("ASK_PROVIDER");
                refusal.metadata.insert("provider_id".into(), payer_id.into());
            }
            if model.may_sign_directly(customer) {
                remedies.push("INVITE_CUSTOMER");
                refusal.metadata.extend([template]);
            }
        }
        refusal.metadata.insert("remedies".into(), remedies.join(","));
        Err(refusal)
    }

    /// ORD-1: who pays and who is on record, or the bad field.
    fn parties(by: usize, order: &CreateOrderRequest) -> Result<(String, String), String> {
        let caller = PARTNERS[by].to_string();
        let is_own = order.payer_id.is_empty() || order.payer_id == caller;
        match (is_own, order.reseller_id.as_str()) {
            (true, reseller) if reseller == caller => Err("payer_id".into()),
            (true, reseller) => Ok((caller, reseller.into())),
            (false, reseller) if reseller.is_empty() || reseller == caller => {
                Ok((order.payer_id.clone(), caller))
            }
            (false, _) => Err("reseller_id".into()),
        }
    }

    /// ORD-3: the bad fields of the lines, as far as they can be known.
    fn bad_lines(lines: &[NewOrderLine], country: Option<&str>) -> Vec<String> {
        let mut bad = vec![];
        for (n, line) in lines.iter().enumerate() {
            let known = offer(&line.offer_id);
            if known.is_none() {
                bad.push(format!("lines[{n}].offer_id"));
            }
            if !(1..=known.map_or(u32::MAX, |offer| offer.quantity_max)).contains(&line.quantity) {
                bad.push(format!("lines[{n}].quantity"));
            }
            let sold_in = known.and_then(|offer| offer.sold_in);
            if country.is_some_and(|country| sold_in.is_some_and(|sold_in| sold_in != country)) {
                bad.push(format!("lines[{n}].offer_id"));
            }
        }
        bad
    }

    /// What is wrong with a request whatever the world is like.
    fn form(call: &Call) -> Result<(), Refusal> {
        let bad: Vec<_> = match &call.content {
            Content::Order(order) => match Self::parties(call.by, order) {
                Ok(_) => vec![],
                Err(bad) => [bad].into_iter().chain(Self::bad_lines(&order.lines, None)).collect(),
            },
            Content::Change { wish: Wish::Seats(0), .. } => vec!["quantity".into()],
            Content::Change { .. } => vec![],
        };
        if bad.is_empty() { Ok(()) } else { Err(bad_fields(bad)) }
    }

    /// What an order comes to, without the ids it gets.
    fn place(
        &self,
        world: &acceptance::Play,
        by: usize,
        order: &CreateOrderRequest,
    ) -> Result<CreateOrderResponse, Refusal> {
        let (payer_id, reseller_id) = Self::parties(by, order).unwrap();
        let customer = world.customer_ids.iter().position(|id| *id == order.customer_id).unwrap();
        let demands: Vec<_> = order
            .lines
            .iter()
            .filter_map(|line| offer(&line.offer_id))
            .filter_map(|offer| offer.demands)
            .collect();
        let decided = self.gate(world, by, (&payer_id, &reseller_id), &order.customer_id, &demands);
        // Where nobody tells of the customer, its country is not known.
        let is_told =
            decided.as_ref().is_ok() || decided.as_ref().is_err_and(|no| no.reason == "AGREEMENT_REQUIRED");
        let bad = Self::bad_lines(&order.lines, is_told.then_some(COUNTRIES[customer]));
        if !bad.is_empty() {
            return Err(bad_fields(bad));
        }
        let gate = decided?;
        let now = world.model.now;
        let (mut lines, mut subscriptions) = (vec![], vec![]);
        for line in &order.lines {
            let offer = offer(&line.offer_id).unwrap();
            lines.push(OrderLine {
                offer_id: line.offer_id.clone(),
                quantity: line.quantity,
                friendly_name: line.friendly_name.clone(),
                ..OrderLine::default()
            });
            subscriptions.push(Subscription {
                payer_id: payer_id.clone(),
                reseller_id: reseller_id.clone(),
                customer_id: order.customer_id.clone(),
                offer_id: line.offer_id.clone(),
                quantity: line.quantity,
                friendly_name: line.friendly_name.clone(),
                state: State::Active.into(),
                auto_renew: offer.auto_renews,
                started_at: Some(timestamp(now)),
                term_number: 1,
                term_end: term_end(now, offer.term, 1).map(timestamp),
                etag: "1".into(),
                ..Subscription::default()
            });
        }
        let order = Order {
            payer_id,
            reseller_id,
            customer_id: order.customer_id.clone(),
            lines,
            placed_at: Some(timestamp(now)),
            placed_by_tenant: PARTNERS[by].to_string(),
            placed_by: user(by),
            gate: Some(gate),
            ..Order::default()
        };
        Ok(CreateOrderResponse { order: Some(order), subscriptions })
    }

    /// What a wish comes to (SUB-1 to SUB-4).
    fn plan(known: &Subscription, etag: &str, wish: Wish, now: Time) -> Result<Planned, Refusal> {
        let (state, offer) = (known.state(), offer(&known.offer_id).unwrap());
        if known.etag != etag {
            return Err(refused("ETAG_STALE", [("partner_center_code", "2055".into())]));
        }
        let is_final = is_final(state);
        let told = state.as_str_name().trim_start_matches("SUBSCRIPTION_STATE_").to_owned();
        let code = if is_final { "2011" } else { "2001" }.to_owned();
        let stands = [("state", told), ("partner_center_code", code)];
        if wish == Wish::Cancel && state == State::Cancelled {
            return Ok(Planned::Nothing);
        }
        if matches!(wish, Wish::Seats(_) | Wish::Renew) && state != State::Active {
            return Err(refused("SUBSCRIPTION_NOT_ACTIVE", stands));
        }
        if is_final {
            return Err(refused("SUBSCRIPTION_ENDED", stands));
        }
        if let Some(end) = end_of(known).filter(|end| *end <= now) {
            let end = end.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            return Err(refused("TERM_ENDED", [("term_end", end)]));
        }
        let not_renewable = || {
            let code = ("partner_center_code", "800093".to_owned());
            refused("NOT_RENEWABLE", [("offer_id", known.offer_id.clone()), code])
        };
        match wish {
            Wish::Seats(_) if offer.kind != OfferKind::License => {
                let kind = offer.kind.as_str_name().trim_start_matches("OFFER_KIND_");
                Err(refused("NOT_A_LICENCE", [("kind", kind.into())]))
            }
            Wish::Seats(seats) if seats == known.quantity => Ok(Planned::Nothing),
            Wish::Seats(seats) if seats > offer.quantity_max => Err(bad_fields(vec!["quantity".into()])),
            Wish::Seats(_) => Ok(Planned::Gated(Kind::SeatsChanged)),
            Wish::Renew if offer.term == Term::Perpetual => Err(not_renewable()),
            Wish::Renew => Ok(Planned::Gated(Kind::Renewed)),
            Wish::AutoRenew(on) if on == known.auto_renew => Ok(Planned::Nothing),
            Wish::AutoRenew(true) if !offer.auto_renews => Err(not_renewable()),
            Wish::AutoRenew(true) => Ok(Planned::Gated(Kind::AutoRenewOn)),
            Wish::AutoRenew(false) => Ok(Planned::Free(Kind::AutoRenewOff)),
            Wish::Suspend if state == State::Suspended => Ok(Planned::Nothing),
            Wish::Suspend => Ok(Planned::Free(Kind::Suspended)),
            Wish::Resume if state == State::Active => Ok(Planned::Nothing),
            Wish::Resume => Ok(Planned::Free(Kind::Resumed)),
            Wish::Cancel => Ok(Planned::Free(Kind::Cancelled)),
        }
    }

    /// What a wish comes to: the change, unless it is so already.
    fn change(
        &self,
        world: &acceptance::Play,
        by: usize,
        (id, etag, wish): (&str, &str, Wish),
    ) -> Result<(Subscription, Option<SubscriptionChange>), Refusal> {
        let life =
            self.lives.get(id).filter(|life| is_visible(by, &life.now.payer_id, &life.now.reseller_id));
        let unseen = || refused(NOT_FOUND, [("partner_center_code", "20003".into())]);
        let known = &life.ok_or_else(unseen)?.now;
        let (kind, gate) = match Self::plan(known, etag, wish, world.model.now)? {
            Planned::Nothing => return Ok((known.clone(), None)),
            Planned::Free(kind) => (kind, None),
            Planned::Gated(kind) => {
                let parties = (known.payer_id.as_str(), known.reseller_id.as_str());
                let demands: Vec<_> = offer(&known.offer_id).unwrap().demands.into_iter().collect();
                (kind, Some(self.gate(world, by, parties, &known.customer_id, &demands)?))
            }
        };
        let seats = if let Wish::Seats(seats) = wish { seats } else { known.quantity };
        let mut changed = SubscriptionChange {
            actor_tenant: PARTNERS[by].to_string(),
            actor: user(by),
            quantity_after: seats,
            gate,
            reason: Why::Requested.into(),
            ..SubscriptionChange::default()
        };
        let after = after(known, kind, &mut changed, world.model.now);
        Ok((after, Some(changed)))
    }
}

/// What a call comes to.
#[derive(Clone, Debug)]
struct Foreseen {
    answer: Answer,
    effect: Effect,
}

#[derive(Clone, Debug)]
enum Effect {
    Nothing,
    Placed,
    Changed(Box<SubscriptionChange>),
}

impl Foreseen {
    /// With the ids that order-svc made.
    fn with_ids(mut self, told: &Result<Answer, Refusal>) -> Self {
        if let (Effect::Placed, Answer::Placed(own), Ok(Answer::Placed(told))) =
            (&self.effect, &mut self.answer, told)
            && let (Some(order), Some(given)) = (&mut own.order, &told.order)
        {
            order.order_id.clone_from(&given.order_id);
            let new = own.subscriptions.iter_mut().zip(&mut order.lines);
            for ((new, line), told) in new.zip(&told.subscriptions) {
                new.order_id.clone_from(&order.order_id);
                new.subscription_id.clone_from(&told.subscription_id);
                line.subscription_id.clone_from(&told.subscription_id);
            }
            // An attestation that was only assumed has an id, too.
            let told = given.gate.clone().and_then(|gate| gate.evidence);
            let own = order.gate.as_mut().and_then(|gate| gate.evidence.as_mut());
            if let (Some(own), Some(told)) = (own.filter(|own| own.acceptance_id.is_empty()), told) {
                own.acceptance_id = told.acceptance_id;
            }
        }
        self
    }

    /// The gate's answer it rests on.
    fn gate(&self) -> Option<&GateEvidence> {
        match (&self.answer, &self.effect) {
            (_, Effect::Nothing) => None,
            (_, Effect::Changed(changed)) => changed.gate.as_ref(),
            (Answer::Placed(placed), _) => placed.order.as_ref()?.gate.as_ref(),
            (Answer::Changed(..), Effect::Placed) => None,
        }
    }
}

/// An attestation that an order makes.
struct Made {
    customer: usize,
    version: u32,
    person: usize,
}

impl Model {
    /// What an order attests before anything else, unless it is attested already (ORD-4).
    fn attest(&self, world: &acceptance::Play, call: &Call) -> Result<Option<Made>, Refusal> {
        let Content::Order(order) = &call.content else { return Ok(None) };
        let Some(attestation) = &order.attestation else { return Ok(None) };
        let is_settled_before = Self::form(call).is_err() || self.first(call).is_some();
        if is_settled_before || !Self::bad_lines(&order.lines, None).is_empty() {
            return Ok(None);
        }
        let is_repeated = |(by, request_id, content): &(usize, String, Content)| {
            let Content::Order(of) = content else { return false };
            (*by, request_id) == (call.by, &call.request_id)
                && (&of.attestation, &of.customer_id) == (&order.attestation, &order.customer_id)
        };
        if !call.validate_only && self.attested.iter().any(is_repeated) {
            return Ok(None);
        }
        let model = &world.model;
        let customer = world.customer_ids.iter().position(|id| *id == order.customer_id).unwrap();
        let version = model.in_force(time(attestation.agreed_at).min(model.now));
        let is_other = attestation.contact.as_ref().is_some_and(|one| *one == acceptance::person(1));
        let person = usize::from(is_other);
        let current = model.current(customer, Some(call.by)).map(|n| &model.acceptances[n]);
        match model.may_attest(customer, call.by, person, version) {
            Ok(()) => Ok(Some(Made { customer, version, person })),
            Err("ALREADY_ATTESTED") => Ok(None),
            Err("OLDER_THAN_CURRENT") => {
                let current = current.unwrap();
                let versions = [
                    ("attestation_id", current.id.clone()),
                    ("current_version", current.version.to_string()),
                    ("offered_version", version.to_string()),
                ];
                Err(refused("OLDER_THAN_CURRENT", versions))
            }
            Err("RESELLER_CANNOT_ATTEST") => {
                let provider = PARTNERS[payer(call.by)].to_string();
                Err(refused("RESELLER_CANNOT_ATTEST", [("provider_id", provider)]))
            }
            Err(reason) => Err(refused(reason, [("partner_center_code", "20002".into())])),
        }
    }

    /// What the rules say of a call.
    fn foresee(&self, world: &acceptance::Play, call: &Call) -> Result<Foreseen, Refusal> {
        Self::form(call)?;
        if let Some((content, answer)) = self.first(call) {
            return match *content == call.content {
                true => Ok(Foreseen { answer: answer.clone(), effect: Effect::Nothing }),
                false => Err(refused("REQUEST_ID_REUSED", [("request_id", call.request_id.clone())])),
            };
        }
        match &call.content {
            Content::Order(order) => {
                let placed = self.place(world, call.by, order)?;
                Ok(Foreseen { answer: Answer::Placed(placed), effect: Effect::Placed })
            }
            Content::Change { subscription_id, etag, wish } => {
                let (after, changed) = self.change(world, call.by, (subscription_id, etag, *wish))?;
                let gate = changed.as_ref().and_then(|changed| changed.gate.clone());
                let effect = changed.map_or(Effect::Nothing, |changed| Effect::Changed(Box::new(changed)));
                Ok(Foreseen { answer: Answer::Changed(Some(after), gate), effect })
            }
        }
    }

    /// What becomes of what was foreseen when something else was done and followed while the gate's
    /// answer was on its way (WD-3).
    fn overtaken(&self, world: &acceptance::Play, call: &Call, known: Foreseen) -> Result<Foreseen, Refusal> {
        let Some(gate) = known.gate() else { return Ok(known) };
        if gate.revision < self.fence(&world.customer_ids, call) {
            return self.foresee(world, call);
        }
        match &call.content {
            Content::Change { subscription_id, etag, .. }
                if self.lives[subscription_id].now.etag != *etag =>
            {
                Err(refused("ETAG_STALE", [("partner_center_code", "2055".into())]))
            }
            _ => Ok(known),
        }
    }

    /// The revision of the last withdrawal of the customer's that was applied.
    fn fence(&self, customer_ids: &[String], call: &Call) -> i64 {
        let customer_id = match &call.content {
            Content::Order(order) => &order.customer_id,
            Content::Change { subscription_id, .. } => &self.lives[subscription_id].now.customer_id,
        };
        customer_ids.iter().position(|id| id == customer_id).map_or(0, |customer| self.fences[customer])
    }

    /// What was first asked under a request id, and answered.
    fn first(&self, call: &Call) -> Option<(&Content, &Answer)> {
        let is_same = |of: &Call| {
            (of.by, &of.request_id) == (call.by, &call.request_id)
                && std::mem::discriminant(&of.content) == std::mem::discriminant(&call.content)
        };
        let answered = |(of, answer): &'_ (Call, Option<Answer>)| is_same(of) && answer.is_some();
        let (of, answer) = self.calls.iter().find(|one| answered(one)).filter(|_| !call.validate_only)?;
        Some((&of.content, answer.as_ref()?))
    }

    /// What was foreseen was stored.
    fn happened(&mut self, answer: &Answer, effect: Effect) {
        match (answer, effect) {
            (_, Effect::Nothing) => {}
            (Answer::Placed(placed), _) => self.placed(placed),
            (Answer::Changed(after, _), Effect::Changed(changed)) => {
                let after = after.clone().unwrap();
                let life = self.lives.get_mut(&after.subscription_id).unwrap();
                life.now = after;
                life.changes.push(*changed);
            }
            (Answer::Changed(..), Effect::Placed) => {}
        }
    }

    /// What an event leads to (WD-2, CUS-3).
    fn follow(
        &mut self,
        revision: i64,
        event: &Happened,
        customer_ids: &[String],
        world: &acceptance::Model,
    ) {
        let is_withdrawal = matches!(event.kind, "AttestationWithdrawn" | "SignatureWithdrawn");
        let Some(customer) = event.customer.filter(|_| is_withdrawal || event.kind == "RelationshipEnded")
        else {
            return;
        };
        self.fences[customer] = revision;
        let of_customer =
            |life: &&mut Life| life.now.customer_id == customer_ids[customer] && !is_final(life.now.state());
        let mut effects = vec![];
        for life in self.lives.values_mut().filter(of_customer) {
            let is_older = life.answer_revision() < revision;
            // An attestation covers only what its own partner pays for (ATT-7).
            let could_cover = event.partner.is_none_or(|of| life.now.payer_id == PARTNERS[of].to_string());
            if is_withdrawal && could_cover {
                let is_uncovered = event.others.contains(&life.now.payer_id);
                let outcome = match (is_uncovered, is_older) {
                    (false, _) => WithdrawalOutcome::StillCovered,
                    (true, false) => WithdrawalOutcome::NewerAnswer,
                    (true, true) => WithdrawalOutcome::Cancelled,
                };
                if outcome == WithdrawalOutcome::Cancelled {
                    life.change_by_itself(Kind::Cancelled, Why::AgreementWithdrawn, revision, world.now);
                }
                effects.push(WithdrawalEffect {
                    subscription_id: life.now.subscription_id.clone(),
                    payer_id: life.now.payer_id.clone(),
                    reseller_id: life.now.reseller_id.clone(),
                    outcome: outcome.into(),
                });
            } else if !is_withdrawal {
                let others_remain = event.others_remain;
                let reseller = event.others.first().map_or("", String::as_str);
                let is_concerned = Some(life.now.payer_id.clone())
                    == event.partner.map(|of| PARTNERS[of].to_string())
                    && (!others_remain || life.now.reseller_id == reseller);
                if is_concerned && life.now.auto_renew && is_older {
                    life.change_by_itself(Kind::AutoRenewOff, Why::RelationshipEnded, revision, world.now);
                }
            }
        }
        if is_withdrawal {
            let recorded_at = self.recorded[usize::try_from(revision - world.base).unwrap() - 1];
            let kind = match event.partner {
                Some(_) => AcceptanceKind::Attestation,
                None => AcceptanceKind::DirectSignature,
            };
            let report = WithdrawalReport {
                revision,
                customer_id: customer_ids[customer].clone(),
                kind: kind.into(),
                acceptance_id: event.acceptance.clone(),
                partner_id: event.partner.map(|of| PARTNERS[of].to_string()).unwrap_or_default(),
                uncovered_partner_ids: event.others.clone(),
                withdrawn_at: Some(timestamp(recorded_at)),
                applied_at: Some(timestamp(world.now)),
                ..WithdrawalReport::default()
            };
            self.reports.insert(revision, (counted(report, &effects), effects));
        }
    }

    /// SUB-3: renews or ends whatever's term has ended, each term once.
    fn settle(&mut self, now: Time) {
        for life in self.lives.values_mut() {
            while is_due(&life.now, now) {
                let kind = if life.now.auto_renew { Kind::Renewed } else { Kind::Expired };
                life.change_by_itself(kind, Why::TermEnded, 0, now);
            }
        }
    }

    /// An order was stored.
    fn placed(&mut self, placed: &CreateOrderResponse) {
        let order = placed.order.clone().unwrap();
        for new in &placed.subscriptions {
            let mut created = SubscriptionChange {
                number: 1,
                changed_at: order.placed_at,
                actor_tenant: order.placed_by_tenant.clone(),
                actor: order.placed_by.clone(),
                quantity_before: 0,
                quantity_after: new.quantity,
                gate: order.gate.clone(),
                event_revision: 0,
                term_number: 1,
                ..SubscriptionChange::default()
            };
            created.set_kind(Kind::Created);
            created.set_reason(Why::Requested);
            let life = Life { now: new.clone(), changes: vec![created], compared: 0 };
            self.lives.insert(new.subscription_id.clone(), life);
        }
        self.orders.insert(order.order_id.clone(), order);
    }
}

impl Life {
    /// The revision of the gate's last answer.
    fn answer_revision(&self) -> i64 {
        let mut answers = self.changes.iter().rev().filter_map(|change| change.gate.as_ref());
        answers.next().map_or(0, |gate| gate.revision)
    }

    /// A change that nobody asked for.
    fn change_by_itself(&mut self, kind: Kind, why: Why, event_revision: i64, now: Time) {
        let mut changed = SubscriptionChange {
            quantity_after: self.now.quantity,
            reason: why.into(),
            event_revision,
            ..SubscriptionChange::default()
        };
        self.now = after(&self.now, kind, &mut changed, now);
        self.changes.push(changed);
    }
}

/// A report with the numbers of effects.
fn counted(report: WithdrawalReport, effects: &[WithdrawalEffect]) -> WithdrawalReport {
    let is_cancelled = |effect: &&WithdrawalEffect| effect.outcome() == WithdrawalOutcome::Cancelled;
    let cancelled = u32::try_from(effects.iter().filter(is_cancelled).count()).unwrap();
    let stayed = u32::try_from(effects.len()).unwrap() - cancelled;
    WithdrawalReport { cancelled, stayed, ..report }
}

/// What a change makes of a subscription; completes what is kept of the change.
fn after(known: &Subscription, kind: Kind, changed: &mut SubscriptionChange, now: Time) -> Subscription {
    let number = known.etag.parse::<u32>().unwrap() + 1;
    let mut after =
        Subscription { quantity: changed.quantity_after, etag: number.to_string(), ..known.clone() };
    match kind {
        Kind::Renewed => {
            after.term_number += 1;
            let term = offer(&known.offer_id).unwrap().term;
            after.term_end = term_end(time(known.started_at), term, after.term_number).map(timestamp);
        }
        Kind::AutoRenewOn => after.auto_renew = true,
        Kind::AutoRenewOff => after.auto_renew = false,
        Kind::Suspended => after.set_state(State::Suspended),
        Kind::Resumed => after.set_state(State::Active),
        Kind::Cancelled => after.set_state(State::Cancelled),
        Kind::Expired => after.set_state(State::Expired),
        Kind::Unspecified | Kind::Created | Kind::SeatsChanged => {}
    }
    changed.number = number;
    changed.set_kind(kind);
    changed.changed_at = Some(timestamp(now));
    changed.quantity_before = known.quantity;
    changed.term_number = after.term_number;
    after
}

fn time(at: Option<prost_types::Timestamp>) -> Time {
    let at = at.unwrap();
    Time::from_timestamp(at.seconds, at.nanos.unsigned_abs()).unwrap()
}

fn end_of(subscription: &Subscription) -> Option<Time> {
    subscription.term_end.map(|end| time(Some(end)))
}

fn is_final(state: State) -> bool {
    matches!(state, State::Cancelled | State::Expired)
}

/// Whether its term has ended and is to be processed.
fn is_due(subscription: &Subscription, now: Time) -> bool {
    !is_final(subscription.state()) && end_of(subscription).is_some_and(|end| end <= now)
}

fn user(partner: usize) -> String {
    Uuid::new_v5(&PARTNERS[partner], b"user").to_string()
}

/// ROLE-6.
fn is_visible(by: usize, payer_id: &str, reseller_id: &str) -> bool {
    let by = PARTNERS[by].to_string();
    by == payer_id || by == reseller_id
}

// Both sides together.

/// The services and the model after the same steps.
struct Play {
    world: acceptance::Play,
    relay: Relay,
    is_history_held: bool,
    clock: Clock,
    model: Model,
}

impl Play {
    async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Accept(step) => {
                self.settle_first().await?;
                self.world.take(step).await?;
                self.follow().await
            }
            Step::Overtaken { by, request } => {
                self.settle_first().await?;
                match self.request(request) {
                    Some(call) => self.call_overtaken(call, by).await,
                    None => Ok(()),
                }
            }
            Step::HoldHistory(hold) => {
                self.hold_history(*hold);
                self.follow().await
            }
            Step::AwaitTermEnd { which, micros_after, asked } => {
                let Some(known) = self.pick(which) else { return Ok(()) };
                let Some(end) = end_of(known) else { return Ok(()) };
                let id = known.subscription_id.clone();
                let was_held = self.is_history_held;
                // Terms are processed once the history is known beyond their end.
                self.hold_history(was_held || asked.is_some());
                let model = &mut self.world.model;
                model.now = model.now.max(end + Duration::microseconds(*micros_after));
                self.clock.set(model.now);
                if let Some(wish) = *asked {
                    let call = Self::wish(&self.model.lives[&id].now, wish);
                    self.call(call).await?;
                }
                self.hold_history(was_held);
                self.follow().await
            }
            Step::Order { .. } | Step::Change { .. } | Step::Again { .. } => match self.request(step) {
                Some(call) => self.call(call).await,
                None => Ok(()),
            },
        }
    }

    /// The request that a step makes.
    fn request(&self, step: &Step) -> Option<Call> {
        match step {
            Step::Order { by, customer, lines, attestation, validate_only } => {
                let mut order = self.new_order(*by, *customer, lines);
                order.attestation = attestation.map(|of| InlineAttestation {
                    template_id: CUSTOMER_AGREEMENT.into(),
                    contact: Some(acceptance::person(of.person)),
                    agreed_at: Some(timestamp(
                        self.world.model.now - Duration::minutes(of.agreed_minutes_ago),
                    )),
                });
                let content = Content::Order(Box::new(order));
                let by = match *by {
                    Buyer::ForItself(by) => by,
                    Buyer::DirectNamesReseller => 0,
                    Buyer::ProviderNamesReseller | Buyer::NamesItselfReseller => 1,
                    Buyer::ResellerNamesProvider | Buyer::NamesBothOthers => 2,
                };
                Some(Call { by, request_id: world::request_id(), content, validate_only: *validate_only })
            }
            Step::Change { which, by, etag, wish, validate_only } => {
                let known = self.pick(which)?;
                let paying = PARTNERS.iter().position(|id| id.to_string() == known.payer_id)?;
                let number: i64 = known.etag.parse().unwrap();
                let number = match etag {
                    Etag::Current => number,
                    Etag::Before => number - 1,
                    Etag::Next => number + 1,
                };
                let by = match by {
                    Actor::Payer => paying,
                    Actor::Reseller => 2,
                    Actor::OtherPayer => 1 - paying,
                };
                let validate_only = *validate_only && matches!(wish, Wish::Seats(_) | Wish::Renew);
                let subscription_id = known.subscription_id.clone();
                let content = Content::Change { subscription_id, etag: number.to_string(), wish: *wish };
                Some(Call { by, request_id: world::request_id(), content, validate_only })
            }
            Step::Again { which, how } => {
                let calls = &self.model.calls;
                let mut call = (!calls.is_empty()).then(|| which.get(calls).0.clone())?;
                match how {
                    Again::AsItWas => {}
                    Again::OtherContent => match &mut call.content {
                        Content::Order(order) => order.lines[0].friendly_name = "another".into(),
                        Content::Change { etag, .. } => *etag = "1000".into(),
                    },
                    Again::Stored => call.validate_only = false,
                    Again::By(by) => call.by = *by,
                }
                Some(call)
            }
            Step::Accept(_) | Step::Overtaken { .. } | Step::HoldHistory(_) | Step::AwaitTermEnd { .. } => {
                None
            }
        }
    }

    fn hold_history(&mut self, hold: bool) {
        self.is_history_held = hold;
        self.relay.hold_history(hold);
    }

    /// Waits until order-svc has done by itself what it does on what happened; in the model it happens, too.
    async fn follow(&mut self) -> Result<(), TestCaseError> {
        let (world, model) = (&self.world.model, &mut self.model);
        model.recorded.resize(world.history.len(), world.now);
        if self.is_history_held {
            return Ok(());
        }
        let revision = world.base + i64::try_from(world.history.len()).unwrap();
        let operator = self.world.operator.clone();
        until("the history is followed", async || {
            let request = GetWithdrawalReportRequest { revision, ..Default::default() };
            let told = operator.withdrawals().get_withdrawal_report(request).await;
            match told {
                Ok(told) => told.get_ref().applied,
                Err(refused) => reason_of(&refused) == NOT_FOUND,
            }
        })
        .await?;
        for (n, happened) in world.history.iter().enumerate().skip(model.followed) {
            let revision = world.base + i64::try_from(n).unwrap() + 1;
            model.follow(revision, happened, &self.world.customer_ids, world);
        }
        model.followed = world.history.len();
        let now = world.now;
        until("ended terms are processed", async || {
            let known = subscriptions(&operator, "", 500).await;
            known.iter().all(|known| !is_due(known, now))
        })
        .await?;
        model.settle(now);
        Ok(())
    }

    /// Whether it was not yet decided what comes first: the end of a term, or what is about to happen. It
    /// is then the end of the term, which order-svc is told of now.
    async fn settle_first(&mut self) -> Result<(), TestCaseError> {
        if self.model.lives.values().any(|life| is_due(&life.now, self.world.model.now)) {
            self.hold_history(false);
            self.follow().await?;
        }
        Ok(())
    }

    /// What a subscription's payer asks of it.
    fn wish(known: &Subscription, wish: Wish) -> Call {
        let by = PARTNERS.iter().position(|id| id.to_string() == known.payer_id).unwrap();
        let (subscription_id, etag) = (known.subscription_id.clone(), known.etag.clone());
        let content = Content::Change { subscription_id, etag, wish };
        Call { by, request_id: world::request_id(), content, validate_only: false }
    }

    fn pick(&self, which: &Index) -> Option<&Subscription> {
        let all: Vec<_> = self.model.lives.values().collect();
        (!all.is_empty()).then(|| &which.get(&all).now)
    }

    fn new_order(&self, by: Buyer, customer: usize, lines: &[Line]) -> CreateOrderRequest {
        let [direct, provider, reseller] = PARTNERS.map(|id| id.to_string());
        let nobody = String::new;
        let (payer_id, reseller_id) = match by {
            Buyer::ForItself(_) => (nobody(), nobody()),
            Buyer::ProviderNamesReseller | Buyer::DirectNamesReseller => (nobody(), reseller),
            Buyer::ResellerNamesProvider => (provider, nobody()),
            Buyer::NamesItselfReseller => (nobody(), provider),
            Buyer::NamesBothOthers => (provider, direct),
        };
        let line = |line: &Line| NewOrderLine {
            offer_id: OFFERS.get(line.offer).map_or(UNKNOWN_OFFER, |offer| offer.id).into(),
            quantity: line.quantity,
            friendly_name: format!("{} of {}", line.quantity, line.offer),
        };
        CreateOrderRequest {
            customer_id: self.world.customer_ids[customer].clone(),
            payer_id,
            reseller_id,
            lines: lines.iter().map(line).collect(),
            ..CreateOrderRequest::default()
        }
    }

    /// Asks order-svc for something, and the model what it must say.
    async fn call(&mut self, call: Call) -> Result<(), TestCaseError> {
        let told = send(&self.world.partners[call.by], &call).await.map_err(Refusal::from);
        let foreseen = match self.model.attest(&self.world, &call) {
            Err(refusal) => Err(refusal),
            Ok(None) => self.model.foresee(&self.world, &call),
            Ok(Some(made)) if call.validate_only => {
                let model = &self.world.model;
                let acceptance_revision = model.customers[made.customer].acceptance_revision;
                let mut assumed = model.clone();
                assumed.accepted(String::new(), made.customer, Some(call.by), made.version, made.person);
                assumed.customers[made.customer].acceptance_revision = acceptance_revision;
                let model = std::mem::replace(&mut self.world.model, assumed);
                let foreseen = self.model.foresee(&self.world, &call);
                self.world.model = model;
                foreseen
            }
            Ok(Some(made)) => {
                let id = self.attested(&made, call.by).await?;
                self.world.model.accepted(id, made.customer, Some(call.by), made.version, made.person);
                self.model.attested.push((call.by, call.request_id.clone(), call.content.clone()));
                self.model.foresee(&self.world, &call)
            }
        };
        self.settle(call, told, foreseen).await
    }

    /// The id of the attestation that was just made.
    async fn attested(&self, made: &Made, by: usize) -> Result<String, TestCaseError> {
        let request = ListAttestationsRequest {
            customer_id: self.world.customer_ids[made.customer].clone(),
            ..ListAttestationsRequest::default()
        };
        let listed = self.world.operator.attestations().list_attestations(request).await.unwrap();
        let by = PARTNERS[by].to_string();
        let current = listed.into_inner().attestations.into_iter().find(|one| one.partner_id == by);
        let id = current.map(|current| current.attestation_id);
        id.ok_or_else(|| TestCaseError::fail("there is no attestation of the order"))
    }

    /// The same, but something is done and followed while the gate's answer is on its way.
    async fn call_overtaken(&mut self, mut call: Call, by: &Step) -> Result<(), TestCaseError> {
        if let Content::Order(order) = &mut call.content {
            order.attestation = None;
        }
        let foreseen = self.model.foresee(&self.world, &call);
        let relay = self.relay.clone();
        let (is_answered, let_go) = relay.hold_answer();
        let partner = self.world.partners[call.by].clone();
        let sent = async {
            let told = send(&partner, &call).await;
            // Where the gate was not asked, nothing waits for its answer.
            relay.hold_nothing();
            told
        };
        let (told, is_overtaken) = tokio::join!(sent, async {
            let is_asked = is_answered.await.is_ok();
            if is_asked {
                Box::pin(self.take(by)).await?;
                let_go.send(()).unwrap();
            }
            Ok::<_, TestCaseError>(is_asked)
        });
        let foreseen = match foreseen {
            Ok(known) if is_overtaken? && !call.validate_only => {
                self.model.overtaken(&self.world, &call, known)
            }
            foreseen => foreseen,
        };
        self.settle(call, told.map_err(Refusal::from), foreseen).await
    }

    /// Compares an answer with the one that was foreseen; what was stored happens in the model, too.
    async fn settle(
        &mut self,
        call: Call,
        told: Result<Answer, Refusal>,
        foreseen: Result<Foreseen, Refusal>,
    ) -> Result<(), TestCaseError> {
        let foreseen = foreseen.map(|foreseen| foreseen.with_ids(&told));
        let decided = foreseen.as_ref().map(|foreseen| &foreseen.answer).map_err(Clone::clone);
        prop_assert_eq!(told.as_ref().map_err(Clone::clone), decided, "{:?}", call);
        let stored = foreseen.ok().filter(|_| !call.validate_only);
        self.model.calls.push((call, stored.as_ref().map(|stored| stored.answer.clone())));
        if let Some(Foreseen { answer, effect }) = stored {
            self.model.happened(&answer, effect);
            self.wait_until_reported(&answer).await?;
        }
        self.follow().await
    }

    /// DIR-4: agreement-svc is told of the customer's first purchase.
    async fn wait_until_reported(&mut self, answer: &Answer) -> Result<(), TestCaseError> {
        let Answer::Placed(CreateOrderResponse { order: Some(order), .. }) = answer else { return Ok(()) };
        let customer = self.world.customer_ids.iter().position(|id| *id == order.customer_id).unwrap();
        if self.world.model.customers[customer].first_purchase_at.is_some() {
            return Ok(());
        }
        let operator = self.world.operator.clone();
        let request = GetCustomerRequest { customer_id: order.customer_id.clone() };
        until("the purchase is reported", async || {
            let known = operator.customers().get_customer(request.clone()).await.unwrap().into_inner();
            known.customer.unwrap_or_default().first_purchase_at.is_some()
        })
        .await?;
        let payer = PARTNERS.iter().position(|id| id.to_string() == order.payer_id).unwrap();
        self.world.model.purchased(payer, customer, time(order.placed_at));
        Ok(())
    }

    /// Compares all subscriptions, and what happened to those that changed.
    async fn compare(&mut self) -> Result<(), TestCaseError> {
        let told = subscriptions(&self.world.operator, "", 500).await;
        let known: Vec<_> = self.model.lives.values().map(|life| life.now.clone()).collect();
        prop_assert_eq!(told, known, "the subscriptions");
        for (id, life) in &mut self.model.lives {
            if life.compared < life.changes.len() {
                let told = changes(&self.world.operator, id, 500).await;
                prop_assert_eq!(&told, &life.changes, "what happened to subscription {}", id);
                life.compared = told.len();
            }
        }
        Ok(())
    }
}

/// Waits for something that a service does by itself.
async fn until(what: &str, is_so: impl AsyncFn() -> bool) -> Result<(), TestCaseError> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
    let pause = std::time::Duration::from_millis(10);
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(pause).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .map_err(|_| TestCaseError::fail(format!("{what}: not in time")))
}

/// Asks order-svc.
async fn send(by: &As, call: &Call) -> Result<Answer, Status> {
    let (request_id, validate_only) = (call.request_id.clone(), call.validate_only);
    let (subscription_id, etag, wish) = match &call.content {
        Content::Order(order) => {
            let request = CreateOrderRequest { request_id, validate_only, ..(**order).clone() };
            let placed = by.orders().create_order(request).await?.into_inner();
            return Ok(Answer::Placed(placed));
        }
        Content::Change { subscription_id, etag, wish } => (subscription_id.clone(), etag.clone(), *wish),
    };
    let mut service = by.subscriptions();
    let (subscription, gate) = match wish {
        Wish::Seats(quantity) => {
            let request = ChangeSeatsRequest { request_id, subscription_id, quantity, etag, validate_only };
            let changed = service.change_seats(request).await?.into_inner();
            (changed.subscription, changed.gate)
        }
        Wish::Renew => {
            let request = RenewSubscriptionRequest { request_id, subscription_id, etag, validate_only };
            let changed = service.renew_subscription(request).await?.into_inner();
            (changed.subscription, changed.gate)
        }
        Wish::AutoRenew(auto_renew) => {
            let request = SetAutoRenewRequest { request_id, subscription_id, auto_renew, etag };
            let changed = service.set_auto_renew(request).await?.into_inner();
            (changed.subscription, changed.gate)
        }
        Wish::Suspend => {
            let request = SuspendSubscriptionRequest { request_id, subscription_id, etag };
            (service.suspend_subscription(request).await?.into_inner().subscription, None)
        }
        Wish::Resume => {
            let request = ResumeSubscriptionRequest { request_id, subscription_id, etag };
            (service.resume_subscription(request).await?.into_inner().subscription, None)
        }
        Wish::Cancel => {
            let request = CancelSubscriptionRequest { request_id, subscription_id, etag };
            (service.cancel_subscription(request).await?.into_inner().subscription, None)
        }
    };
    Ok(Answer::Changed(subscription, gate))
}

/// All pages of the subscriptions that somebody sees.
async fn subscriptions(of: &As, customer_id: &str, page_size: i32) -> Vec<Subscription> {
    let (mut all, mut page_token) = (vec![], String::new());
    loop {
        let request = ListSubscriptionsRequest { customer_id: customer_id.into(), page_size, page_token };
        let page = of.subscriptions().list_subscriptions(request).await.unwrap().into_inner();
        all.extend(page.subscriptions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// All pages of the orders that somebody sees.
async fn orders(of: &As, customer_id: &str, page_size: i32) -> Vec<Order> {
    let (mut all, mut page_token) = (vec![], String::new());
    loop {
        let request = ListOrdersRequest { customer_id: customer_id.into(), page_size, page_token };
        let page = of.orders().list_orders(request).await.unwrap().into_inner();
        all.extend(page.orders);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// All pages of what happened to a subscription.
async fn changes(of: &As, subscription_id: &str, page_size: i32) -> Vec<SubscriptionChange> {
    let (mut all, mut page_token) = (vec![], String::new());
    loop {
        let subscription_id = subscription_id.to_owned();
        let request = ListSubscriptionChangesRequest { subscription_id, page_size, page_token };
        let page = of.subscriptions().list_subscription_changes(request).await.unwrap().into_inner();
        all.extend(page.changes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// The catalogue is the one that the model knows.
async fn compare_offers(of: &As) -> Result<(), TestCaseError> {
    let listed = of.offers().list_offers(ListOffersRequest::default()).await.unwrap().into_inner().offers;
    prop_assert_eq!(listed.len(), OFFERS.len());
    for known in &OFFERS {
        let request = GetOfferRequest { offer_id: known.id.into() };
        let told = of.offers().get_offer(request).await.unwrap().into_inner().offer.unwrap();
        prop_assert!(listed.contains(&told));
        let kinds = (told.kind(), told.term(), told.billing_cycle(), told.auto_renews);
        prop_assert_eq!(kinds, (known.kind, known.term, known.billing, known.auto_renews), "{}", known.id);
        prop_assert_eq!((told.quantity_min, told.quantity_max), (1, known.quantity_max), "{}", known.id);
        let demands: Vec<_> = told.agreement_types().collect();
        prop_assert_eq!(demands, known.demands.into_iter().collect::<Vec<_>>(), "{}", known.id);
        prop_assert_eq!(told.countries.first().map(String::as_str), known.sold_in, "{}", known.id);
    }
    Ok(())
}

impl Play {
    /// Compares everything that everybody can read, by pages of two.
    async fn compare_all(&self) -> Result<(), TestCaseError> {
        for by in 0..PARTNERS.len() {
            self.compare_sight(by, &self.world.partners[by]).await?;
            self.compare_reports(&self.world.partners[by], Some(by)).await?;
        }
        self.compare_reports(&self.world.operator, None).await?;
        let told = orders(&self.world.operator, "", 2).await;
        prop_assert_eq!(told, self.model.orders.values().cloned().collect::<Vec<_>>(), "the orders");
        self.world.compare_history().await
    }

    /// What somebody is told of withdrawals (WD-4): the operator of all, a partner of its own part.
    async fn compare_reports(&self, of: &As, by: Option<usize>) -> Result<(), TestCaseError> {
        let own = by.map(|by| PARTNERS[by].to_string());
        let mut known = vec![];
        for (report, effects) in self.model.reports.values() {
            let Some(own) = &own else {
                known.push((report.clone(), effects.clone()));
                continue;
            };
            let is_own = |effect: &&WithdrawalEffect| effect.payer_id == *own || effect.reseller_id == *own;
            let effects: Vec<_> = effects.iter().filter(is_own).cloned().collect();
            let mut report = counted(report.clone(), &effects);
            report.uncovered_partner_ids.retain(|of| of == own);
            if report.partner_id == *own || !report.uncovered_partner_ids.is_empty() || !effects.is_empty() {
                known.push((report, effects));
            }
        }
        let (mut listed, mut page_token) = (vec![], String::new());
        loop {
            let request =
                ListWithdrawalReportsRequest { customer_id: String::new(), page_size: 2, page_token };
            let page = of.withdrawals().list_withdrawal_reports(request).await.unwrap().into_inner();
            listed.extend(page.reports);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        prop_assert_eq!(
            &listed,
            &known.iter().map(|(report, _)| report.clone()).collect::<Vec<_>>(),
            "by {:?}",
            by
        );
        for (report, effects) in known {
            let request = GetWithdrawalReportRequest {
                revision: report.revision,
                page_size: 500,
                page_token: String::new(),
            };
            let told = of.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner();
            prop_assert_eq!(
                (told.applied, told.report, told.effects),
                (true, Some(report), effects),
                "by {:?}",
                by
            );
        }
        Ok(())
    }

    /// What one partner sees (ROLE-6).
    async fn compare_sight(&self, by: usize, partner: &As) -> Result<(), TestCaseError> {
        for customer_id in &self.world.customer_ids {
            let told = subscriptions(partner, customer_id, 2).await;
            let known = self.model.lives.values().map(|life| &life.now);
            let known = known.filter(|one| is_visible(by, &one.payer_id, &one.reseller_id));
            let known: Vec<_> = known.filter(|one| one.customer_id == *customer_id).cloned().collect();
            prop_assert_eq!(told, known, "the subscriptions that partner {} sees", by);
            let told = orders(partner, customer_id, 2).await;
            let known = self.model.orders.values();
            let known = known.filter(|one| is_visible(by, &one.payer_id, &one.reseller_id));
            let known: Vec<_> = known.filter(|one| one.customer_id == *customer_id).cloned().collect();
            prop_assert_eq!(told, known, "the orders that partner {} sees", by);
        }
        for (id, order) in &self.model.orders {
            let request = GetOrderRequest { order_id: id.clone() };
            let told = partner.orders().get_order(request).await.map(|told| told.into_inner().order);
            let unseen = refused(NOT_FOUND, [("partner_center_code", "20000".into())]);
            let is_visible = is_visible(by, &order.payer_id, &order.reseller_id);
            let known = if is_visible { Ok(Some(order.clone())) } else { Err(unseen) };
            prop_assert_eq!(told.map_err(Refusal::from), known);
        }
        for (id, life) in &self.model.lives {
            let request = GetSubscriptionRequest { subscription_id: id.clone() };
            let told = partner.subscriptions().get_subscription(request).await;
            let unseen = refused(NOT_FOUND, [("partner_center_code", "20003".into())]);
            let is_visible = is_visible(by, &life.now.payer_id, &life.now.reseller_id);
            let known = if is_visible { Ok(Some(life.now.clone())) } else { Err(unseen) };
            prop_assert_eq!(told.map(|told| told.into_inner().subscription).map_err(Refusal::from), known);
            if is_visible {
                prop_assert_eq!(&changes(partner, id, 2).await, &life.changes, "of subscription {}", id);
            }
        }
        Ok(())
    }
}

/// Relationships and acceptances of each kind to begin with, so that much can be bought.
const BEGINNING: [acceptance::Step; 6] = [
    acceptance::Step::Attest { partner: 0, customer: 0, person: 0, agreed_minutes_ago: 0 },
    acceptance::Step::AcceptInvitation { partner: 1, customer: 0, shown: acceptance::Shown::InForce },
    acceptance::Step::AcceptInvitation { partner: 2, customer: 0, shown: acceptance::Shown::InForce },
    acceptance::Step::AcceptInvitation { partner: 1, customer: 1, shown: acceptance::Shown::InForce },
    acceptance::Step::AcceptInvitation { partner: 2, customer: 1, shown: acceptance::Shown::InForce },
    acceptance::Step::Attest { partner: 1, customer: 1, person: 0, agreed_minutes_ago: 0 },
];

async fn play(backend: Backend, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let clock = Clock::manual(START.parse().unwrap());
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    // An answer that is overtaken takes its time.
    let setup =
        Setup { backend, clock: clock.clone(), agreements_at, gate_deadline_ms: 30_000, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    let world = acceptance::Play::begin(&cluster, clock.clone()).await;
    let mut play = Play { world, relay, is_history_held: false, clock, model: Model::default() };
    compare_offers(&play.world.partners[0]).await?;
    let beginning = BEGINNING.map(Step::Accept);
    for (n, step) in beginning.iter().chain(&steps).enumerate() {
        let at = |error| TestCaseError::fail(format!("step {n}, {step:?}: {error}"));
        play.take(step).await.map_err(at)?;
        play.compare().await.map_err(at)?;
    }
    play.hold_history(false);
    play.follow().await?;
    play.compare().await?;
    play.compare_all().await
}

/// Histories for each backend, PostgreSQL being the slower.
fn cases(backend: Backend) -> u32 {
    match backend {
        Backend::Sqlite => 15,
        Backend::Postgres => 6,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_subscriptions_and_their_histories_are_those_of_the_model_whatever_is_done() {
    tests::needs_own!("a clock that it sets");
    histories::check(steps, cases, play);
}
