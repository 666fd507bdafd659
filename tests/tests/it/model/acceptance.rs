//! Random histories of acceptance, played over gRPC and, beside it, in a model of the rules that is
//! small enough to be read in one go and knows nothing of the services' code.
//!
//! After each step answers, records and gate must be the model's; in the end the history holds the
//! model's events and no others.

use std::collections::BTreeSet;

use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chrono::Duration;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use proto::agreement::event::Change;
use proto::agreement::publish_template_version_request::Reacceptance;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    AttestationState, CheckEligibilityRequest, CreateAttestationRequest, EndRelationshipRequest, Event,
    GetDirectSignStatusRequest, ListAttestationsRequest, ListEventsRequest, PartnerRole,
    PublishTemplateVersionRequest, ReportPurchaseRequest, TemplateDocument, WatchEventsRequest,
    WithdrawAttestationRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::types::{BlockReason, Channel, Contact, Decision, Operation, RemedyKind};
use tests::world::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, Setup, metadata_of, reason_of};
use tonic::Status;
use uuid::Uuid;

use crate::history::event_properties as histories;

/// The first two pay; the reseller works through the provider.
pub(crate) const PARTNERS: [Uuid; 3] = [DIRECT, PROVIDER, RESELLER];
/// Where the customers are: few, so that much happens to each.
pub(crate) const COUNTRIES: [&str; 2] = ["FR", "US"];
pub(crate) const CUSTOMERS: usize = COUNTRIES.len();

/// Who pays in the relationship that a partner enters.
pub(crate) fn payer(partner: usize) -> usize {
    partner.min(1)
}

/// When each history begins: both versions that ship are in force, and acceptance is mandatory.
const START: &str = "2024-01-01T00:00:00Z";

// What somebody does, in terms that make sense whatever happened before.

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Attest { partner: usize, customer: usize, person: usize, agreed_minutes_ago: i64 },
    WithdrawAttestation { which: Index, is_own: bool },
    Sign { customer: usize, shown: Shown },
    WithdrawSignature { which: Index, is_own: bool },
    Publish { effective_in: Option<i64>, reaccept: Reaccept },
    EndRelationship { partner: usize, customer: usize },
    AcceptInvitation { partner: usize, customer: usize, shown: Shown },
    ReportPurchase { partner: usize, customer: usize, minutes_ago: i64 },
    Wait { micros: i64 },
}

/// The version that a customer was shown.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shown {
    InForce,
    Before,
    After,
}

/// When a new version makes acceptances of earlier ones insufficient, in minutes after it takes effect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reaccept {
    WhenEffective,
    After(i64),
    Never,
}

const DAY: i64 = 24 * 60;
const MINUTE_MICROS: i64 = 60_000_000;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 30..60)
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let partner = || prop_oneof![3 => Just(0), 3 => Just(1), 1 => Just(2)];
    let payer = || 0..2_usize;
    let customer = || 0..CUSTOMERS;
    let mostly = || prop_oneof![9 => Just(true), 1 => Just(false)];
    let shown = || prop_oneof![8 => Just(Shown::InForce), 1 => Just(Shown::Before), 1 => Just(Shown::After)];
    // Three minutes ahead is within what a partner's clock may be.
    let agreed = prop_oneof![4 => Just(0), 2 => Just(-3), 4 => 0..40 * DAY, 2 => 0..1500 * DAY];
    let person = prop_oneof![3 => Just(0), 1 => Just(1), 1 => Just(2)];
    let attest = (partner(), customer(), person, agreed).prop_map(
        |(partner, customer, person, agreed_minutes_ago)| Step::Attest {
            partner,
            customer,
            person,
            agreed_minutes_ago,
        },
    );
    let which = || (any::<Index>(), mostly());
    let reaccept = prop_oneof![
        2 => Just(Reaccept::WhenEffective),
        2 => (1..60 * DAY).prop_map(Reaccept::After),
        1 => Just(Reaccept::Never),
    ];
    let begins =
        prop_oneof![3 => Just(None), 1 => (1..4_i64).prop_map(Some), 3 => (1..30 * DAY).prop_map(Some)];
    let publish =
        (begins, reaccept).prop_map(|(effective_in, reaccept)| Step::Publish { effective_in, reaccept });
    let accept = (partner(), customer(), shown())
        .prop_map(|(partner, customer, shown)| Step::AcceptInvitation { partner, customer, shown });
    let bought = prop_oneof![3 => Just(0), 1 => 0..60 * DAY];
    let purchase = (payer(), customer(), bought)
        .prop_map(|(partner, customer, minutes_ago)| Step::ReportPurchase { partner, customer, minutes_ago });
    let wait = prop_oneof![Just(1), 1..30 * DAY * MINUTE_MICROS];
    prop_oneof![
        8 => attest,
        4 => which().prop_map(|(which, is_own)| Step::WithdrawAttestation { which, is_own }),
        6 => (customer(), shown()).prop_map(|(customer, shown)| Step::Sign { customer, shown }),
        3 => which().prop_map(|(which, is_own)| Step::WithdrawSignature { which, is_own }),
        3 => publish,
        2 => (partner(), customer()).prop_map(|(partner, customer)| Step::EndRelationship { partner, customer }),
        4 => accept,
        1 => purchase,
        4 => wait.prop_map(|micros| Step::Wait { micros }),
    ]
}

// The model.

/// A refusal's reason.
pub(crate) type Reason = &'static str;

pub(crate) const NOT_FOUND: Reason = "RESOURCE_NOT_FOUND";

#[derive(Clone)]
struct Version {
    effective_from: Time,
    reaccept_by: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Current,
    Superseded,
    Withdrawn,
}

/// An attestation, or a signature where no partner made it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Acceptance {
    pub id: String,
    customer: usize,
    pub partner: Option<usize>,
    pub version: u32,
    person: usize,
    at: Time,
    standing: Standing,
}

/// An event: its kind, customer and partner, the acceptance that came or went, and the ids that say what
/// it did to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Happened {
    pub kind: &'static str,
    pub customer: Option<usize>,
    pub partner: Option<usize>,
    pub acceptance: String,
    pub others: Vec<String>,
    /// Of a relationship that ended: whether its payer has another with the customer.
    pub others_remain: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Customer {
    /// The relationships, by the partner that entered each.
    pub relationships: BTreeSet<usize>,
    pub first_purchase_at: Option<Time>,
    pub acceptance_revision: i64,
}

impl Customer {
    /// Whether a partner pays for it.
    pub(crate) fn is_paid_for_by(&self, partner: usize) -> bool {
        self.relationships.iter().any(|of| payer(*of) == partner)
    }

    /// Whether a partner sees it.
    fn is_seen_by(&self, partner: usize) -> bool {
        self.relationships.contains(&partner) || self.is_paid_for_by(partner)
    }
}

#[derive(Clone)]
pub(crate) struct Model {
    pub now: Time,
    versions: Vec<Version>,
    pub customers: Vec<Customer>,
    /// In the order in which they were made.
    pub acceptances: Vec<Acceptance>,
    /// The revision that the history began with.
    pub base: i64,
    pub history: Vec<Happened>,
}

impl Model {
    fn head(&self) -> i64 {
        self.base + i64::try_from(self.history.len()).unwrap()
    }

    fn happened(&mut self, happened: Happened) {
        let changes_acceptance = !matches!(
            happened.kind,
            "TemplateVersionPublished" | "InvitationCreated" | "InvitationAccepted" | "FirstPurchaseReported"
        );
        let customer = happened.customer;
        self.history.push(happened);
        if let Some(customer) = customer.filter(|_| changes_acceptance) {
            self.customers[customer].acceptance_revision = self.head();
        }
    }

    /// ATT-4: the first version has no lower bound.
    pub(crate) fn in_force(&self, at: Time) -> u32 {
        let begun = self.versions.iter().filter(|version| version.effective_from <= at).count();
        u32::try_from(begun.max(1)).unwrap()
    }

    /// TPL-3.
    fn still_counts(&self, version: u32, at: Time) -> bool {
        let later = &self.versions[version as usize..];
        !later.iter().any(|later| later.reaccept_by.is_some_and(|by| by <= at))
    }

    fn shown(&self, shown: Shown) -> u32 {
        let in_force = self.in_force(self.now);
        match shown {
            Shown::InForce => in_force,
            Shown::Before => in_force - 1,
            Shown::After => in_force + 1,
        }
    }

    pub(crate) fn current(&self, customer: usize, partner: Option<usize>) -> Option<usize> {
        let is_it =
            |a: &Acceptance| (a.customer, a.partner, a.standing) == (customer, partner, Standing::Current);
        self.acceptances.iter().position(is_it)
    }

    /// ATT-8, given which version the date agreed selects.
    pub(crate) fn may_attest(
        &self,
        customer: usize,
        partner: usize,
        person: usize,
        version: u32,
    ) -> Result<(), Reason> {
        if !self.customers[customer].is_seen_by(partner) {
            return Err(NOT_FOUND);
        }
        if payer(partner) != partner {
            return Err("RESELLER_CANNOT_ATTEST");
        }
        let current = self.current(customer, Some(partner)).map(|n| &self.acceptances[n]);
        match current {
            Some(current) if (current.version, current.person) == (version, person) => {
                Err("ALREADY_ATTESTED")
            }
            Some(current) if current.version > version => Err("OLDER_THAN_CURRENT"),
            _ => Ok(()),
        }
    }

    /// DIR-4.
    pub(crate) fn may_sign_directly(&self, customer: usize) -> bool {
        let mut signatures =
            self.acceptances.iter().filter(|a| a.customer == customer && a.partner.is_none());
        match self.customers[customer].first_purchase_at {
            None => true,
            Some(bought) => signatures.any(|signature| signature.at < bought),
        }
    }

    /// DIR-1, DIR-4: whether a new signature comes of it.
    fn may_sign(&self, customer: usize, shown: u32) -> Result<bool, Reason> {
        let current = self.current(customer, None);
        if shown != self.in_force(self.now) {
            Err("VERSION_CHANGED")
        } else if current.is_some_and(|n| self.acceptances[n].version == shown) {
            Ok(false)
        } else if self.may_sign_directly(customer) {
            Ok(true)
        } else {
            Err("CONTACT_PARTNER")
        }
    }

    /// Puts a new acceptance into the place of the current one.
    pub(crate) fn accepted(
        &mut self,
        id: String,
        customer: usize,
        partner: Option<usize>,
        version: u32,
        person: usize,
    ) {
        let mut superseded = vec![];
        if let Some(n) = self.current(customer, partner) {
            self.acceptances[n].standing = Standing::Superseded;
            superseded.push(self.acceptances[n].id.clone());
        }
        let (at, standing) = (self.now, Standing::Current);
        let acceptance = id.clone();
        self.acceptances.push(Acceptance { id, customer, partner, version, person, at, standing });
        let kind = if partner.is_some() { "Attested" } else { "Signed" };
        self.happened(Happened {
            kind,
            customer: Some(customer),
            partner,
            acceptance,
            others: superseded,
            others_remain: false,
        });
    }

    /// WD-1: whether anything changes.
    fn may_withdraw(&self, which: usize) -> Result<bool, Reason> {
        match self.acceptances[which].standing {
            Standing::Current => Ok(true),
            Standing::Superseded => Err("ACCEPTANCE_SUPERSEDED"),
            Standing::Withdrawn => Ok(false),
        }
    }

    /// WD-1: withdraws; the event tells who is left without acceptance by that.
    fn withdrawn(&mut self, which: usize) {
        self.acceptances[which].standing = Standing::Withdrawn;
        let Acceptance { ref id, customer, partner, .. } = self.acceptances[which];
        let acceptance = id.clone();
        let uncovered = self.without_acceptance(customer);
        let uncovered: Vec<_> =
            uncovered.into_iter().filter(|p| partner.is_none_or(|own| own == *p)).collect();
        let uncovered: Vec<_> = uncovered.iter().map(|p| PARTNERS[*p].to_string()).collect();
        let kind = if partner.is_some() { "AttestationWithdrawn" } else { "SignatureWithdrawn" };
        self.happened(Happened {
            kind,
            customer: Some(customer),
            partner,
            acceptance,
            others: uncovered,
            others_remain: false,
        });
    }

    /// DIR-4: the earliest purchase that was reported counts.
    pub(crate) fn purchased(&mut self, partner: usize, customer: usize, at: Time) {
        let known = self.customers[customer].first_purchase_at;
        if known.is_none_or(|known| at < known) {
            self.customers[customer].first_purchase_at = Some(at);
            let kind = "FirstPurchaseReported";
            let (customer, partner) = (Some(customer), Some(partner));
            self.happened(Happened { kind, customer, partner, ..Happened::default() });
        }
    }

    /// The customer's partners for which neither their own attestation nor a signature is current.
    fn without_acceptance(&self, customer: usize) -> Vec<usize> {
        let is_bare =
            |p: &usize| self.current(customer, Some(*p)).is_none() && self.current(customer, None).is_none();
        let payers: BTreeSet<_> =
            self.customers[customer].relationships.iter().map(|of| payer(*of)).collect();
        payers.into_iter().filter(is_bare).collect()
    }

    /// GATE-4 to GATE-6: what the answer rests on, or the reasons why there is nothing.
    pub(crate) fn gate(
        &self,
        customer: usize,
        partner: usize,
        at: Time,
    ) -> Result<&Acceptance, BTreeSet<&'static str>> {
        let kinds = [None, Some(partner)];
        let mut current = kinds.iter().filter_map(|of| self.current(customer, *of)).peekable();
        let has_current = current.peek().is_some();
        if let Some(n) = current.find(|n| self.still_counts(self.acceptances[*n].version, at)) {
            return Ok(&self.acceptances[n]);
        }
        let is_withdrawn_and_not_replaced = |of: &Option<usize>| {
            let is_withdrawn =
                |a: &Acceptance| (a.customer, a.partner, a.standing) == (customer, *of, Standing::Withdrawn);
            self.current(customer, *of).is_none() && self.acceptances.iter().any(is_withdrawn)
        };
        let mut reasons = BTreeSet::new();
        if kinds.iter().any(is_withdrawn_and_not_replaced) {
            reasons.insert(BlockReason::Withdrawn.as_str_name());
        }
        if has_current {
            reasons.insert(BlockReason::VersionSuperseded.as_str_name());
        }
        if reasons.is_empty() {
            reasons.insert(BlockReason::NoAcceptance.as_str_name());
        }
        Err(reasons)
    }

    /// The next instant at which time alone changes the answer.
    fn gate_changes_at(&self, customer: usize, partner: usize) -> Option<Time> {
        let now = self.gate(customer, partner, self.now);
        let mut times: Vec<_> = self.versions.iter().filter_map(|version| version.reaccept_by).collect();
        times.sort_unstable();
        times.into_iter().find(|at| *at > self.now && self.gate(customer, partner, *at) != now)
    }
}

// Both sides together.

/// The services and the model after the same steps.
pub(crate) struct Play {
    clock: Clock,
    pub operator: As,
    service: As,
    pub partners: Vec<As>,
    admins: Vec<As>,
    pub customer_ids: Vec<String>,
    pub model: Model,
}

fn reason<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T, String> {
    answer.map(tonic::Response::into_inner).map_err(|status| reason_of(&status))
}

fn expected<T>(decided: Result<T, Reason>) -> Result<T, String> {
    decided.map_err(str::to_owned)
}

/// Person 2 is person 0 with the e-mail address in capitals.
pub(crate) fn person(number: usize) -> Contact {
    let contact = world::contact();
    match number {
        1 => Contact { first_name: "Tomas".into(), ..contact },
        2 => Contact { email: contact.email.to_uppercase(), ..contact },
        _ => contact,
    }
}

impl Play {
    pub(crate) async fn begin(cluster: &Cluster, clock: Clock) -> Self {
        world::register_partners(cluster).await.unwrap();
        let operator = cluster.as_caller(world::operator());
        let partners: Vec<_> = PARTNERS.iter().map(|id| cluster.as_caller(world::sales(*id))).collect();
        let mut customer_ids = vec![];
        for country in COUNTRIES {
            let name = format!("Customer in {country}");
            customer_ids.push(world::create_customer(&partners[0], &name, country, None).await.unwrap());
        }
        let admin = |id: &String| cluster.as_caller(world::admin(id.parse().unwrap()));
        let admins = customer_ids.iter().map(admin).collect();
        let version = |from: &str, by: Option<&str>| Version {
            effective_from: from.parse().unwrap(),
            reaccept_by: by.map(|by| by.parse().unwrap()),
        };
        let base = head(&operator).await;
        // Each was created and entered its relationship, in this order, and nothing came after.
        let customers = (1..).take(CUSTOMERS).map(|n| Customer {
            relationships: BTreeSet::from([0]),
            acceptance_revision: base - 2 * (2 - n),
            ..Customer::default()
        });
        let model = Model {
            now: clock.now(),
            // As shipped in agreement-svc/data.
            versions: vec![
                version("2019-10-01T00:00:00Z", None),
                version("2023-04-01T00:00:00Z", Some("2023-04-01T00:00:00Z")),
            ],
            customers: customers.collect(),
            acceptances: vec![],
            base,
            history: vec![],
        };
        let service = cluster.as_caller(world::service());
        Self { clock, operator, service, partners, admins, customer_ids, model }
    }

    /// Takes a step on both sides, and tells which customers it can have changed.
    pub(crate) async fn take(&mut self, step: &Step) -> Result<Vec<usize>, TestCaseError> {
        match *step {
            Step::Attest { partner, customer, person, agreed_minutes_ago } => {
                self.attest(partner, customer, person, agreed_minutes_ago).await?;
                Ok(vec![customer])
            }
            Step::WithdrawAttestation { which, is_own } => self.withdraw_attestation(which, is_own).await,
            Step::Sign { customer, shown } => {
                self.sign(customer, shown).await?;
                Ok(vec![customer])
            }
            Step::WithdrawSignature { which, is_own } => self.withdraw_signature(which, is_own).await,
            Step::Publish { effective_in, reaccept } => {
                self.publish(effective_in, reaccept).await?;
                Ok((0..CUSTOMERS).collect())
            }
            Step::EndRelationship { partner, customer } => {
                self.end_relationship(partner, customer).await?;
                Ok(vec![customer])
            }
            Step::AcceptInvitation { partner, customer, shown } => {
                self.accept_invitation(partner, customer, shown).await?;
                Ok(vec![customer])
            }
            Step::ReportPurchase { partner, customer, minutes_ago } => {
                self.report_purchase(partner, customer, minutes_ago).await?;
                Ok(vec![customer])
            }
            Step::Wait { micros } => {
                self.model.now += Duration::microseconds(micros);
                self.clock.set(self.model.now);
                Ok((0..CUSTOMERS).collect())
            }
        }
    }

    async fn attest(
        &mut self,
        partner: usize,
        customer: usize,
        number: usize,
        minutes_ago: i64,
    ) -> Result<(), TestCaseError> {
        let agreed_at = self.model.now - Duration::minutes(minutes_ago);
        let request = CreateAttestationRequest {
            request_id: world::request_id(),
            customer_id: self.customer_ids[customer].clone(),
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(person(number)),
            agreed_at: Some(timestamp(agreed_at)),
            validate_only: false,
        };
        let answer = reason(self.partners[partner].attestations().create_attestation(request).await);
        let version = self.model.in_force(agreed_at.min(self.model.now));
        let (model, number) = (&mut self.model, number % 2);
        let decided = model.may_attest(customer, partner, number, version);
        let id = answer.as_ref().map(|answer| answer.attestation.clone().unwrap_or_default().attestation_id);
        if decided.is_ok() {
            model.accepted(id.unwrap_or_default(), customer, Some(partner), version, number);
        }
        let told =
            answer.map(|answer| (answer.attestation.unwrap_or_default().template_version, answer.revision));
        prop_assert_eq!(told, expected(decided.map(|()| (version, model.head()))));
        Ok(())
    }

    async fn withdraw_attestation(
        &mut self,
        which: Index,
        is_own: bool,
    ) -> Result<Vec<usize>, TestCaseError> {
        let Some(which) = self.pick(which, |acceptance| acceptance.partner.is_some()) else {
            return Ok(vec![]);
        };
        let Acceptance { ref id, customer, partner, .. } = self.model.acceptances[which];
        let owner = partner.unwrap_or_default();
        let by = if is_own { owner } else { 1 - owner };
        let request = WithdrawAttestationRequest {
            request_id: world::request_id(),
            attestation_id: id.clone(),
            reason: WithdrawalReason::NoLongerAccepts.into(),
        };
        let answer = reason(self.partners[by].attestations().withdraw_attestation(request).await);
        let told = answer.map(|answer| (answer.uncovered, answer.revision));
        let model = &mut self.model;
        let decided = match by == owner && model.customers[customer].is_seen_by(owner) {
            true => model.may_withdraw(which),
            false => Err(NOT_FOUND),
        };
        if decided == Ok(true) {
            model.withdrawn(which);
        }
        let is_uncovered = model.without_acceptance(customer).contains(&owner);
        prop_assert_eq!(told, expected(decided.map(|_| (is_uncovered, model.head()))));
        Ok(vec![customer])
    }

    async fn sign(&mut self, customer: usize, shown: Shown) -> Result<(), TestCaseError> {
        let shown = self.model.shown(shown);
        let answer = world::sign(&self.admins[customer], shown).await;
        let decided = self.model.may_sign(customer, shown);
        if decided == Ok(true) {
            let id = answer.as_ref().map(|signature| signature.signature_id.clone());
            self.model.accepted(id.unwrap_or_default(), customer, None, shown, 0);
        }
        let told = answer.map(|signature| signature.signature_id).map_err(|status| reason_of(&status));
        let signature = self.model.current(customer, None).map(|n| self.model.acceptances[n].id.clone());
        prop_assert_eq!(told, expected(decided.map(|_| signature.unwrap_or_default())));
        Ok(())
    }

    async fn withdraw_signature(&mut self, which: Index, is_own: bool) -> Result<Vec<usize>, TestCaseError> {
        let Some(which) = self.pick(which, |acceptance| acceptance.partner.is_none()) else {
            return Ok(vec![]);
        };
        let Acceptance { ref id, customer, .. } = self.model.acceptances[which];
        let request = WithdrawSignatureRequest {
            request_id: world::request_id(),
            signature_id: id.clone(),
            reason: WithdrawalReason::NotEntitled.into(),
        };
        let by = if is_own { customer } else { (customer + 1) % CUSTOMERS };
        let answer = reason(self.admins[by].signatures().withdraw_signature(request).await);
        let told = answer.map(|answer| (answer.uncovered_partner_ids, answer.revision));
        let model = &mut self.model;
        let decided = if is_own { model.may_withdraw(which) } else { Err(NOT_FOUND) };
        if decided == Ok(true) {
            model.withdrawn(which);
        }
        let uncovered = model.without_acceptance(customer);
        let uncovered: Vec<_> = uncovered.iter().map(|partner| PARTNERS[*partner].to_string()).collect();
        prop_assert_eq!(told, expected(decided.map(|_| (uncovered, model.head()))));
        Ok(vec![customer])
    }

    async fn publish(&mut self, effective_in: Option<i64>, reaccept: Reaccept) -> Result<(), TestCaseError> {
        let now = self.model.now;
        let effective_from = effective_in.map(|minutes| now + Duration::minutes(minutes));
        let effective = effective_from.unwrap_or(now);
        let (reacceptance, reaccept_by) = match reaccept {
            Reaccept::WhenEffective => (None, Some(effective)),
            Reaccept::After(minutes) => {
                let by = effective + Duration::minutes(minutes);
                (Some(Reacceptance::ReacceptBy(timestamp(by))), Some(by))
            }
            Reaccept::Never => (Some(Reacceptance::NeverReaccept(true)), None),
        };
        let document = TemplateDocument {
            country: "US".into(),
            language: "en-US".into(),
            link: "https://aka.ms/customeragreement".into(),
            sha256: String::new(),
        };
        let request = PublishTemplateVersionRequest {
            request_id: world::request_id(),
            template_id: CUSTOMER_AGREEMENT.into(),
            effective_from: effective_from.map(timestamp),
            reacceptance,
            documents: vec![document],
            ..PublishTemplateVersionRequest::default()
        };
        let answer = reason(self.operator.templates().publish_template_version(request).await);
        let model = &mut self.model;
        let is_later = model.versions.iter().all(|version| version.effective_from < effective);
        if is_later {
            model.versions.push(Version { effective_from: effective, reaccept_by });
            model.happened(Happened { kind: "TemplateVersionPublished", ..Happened::default() });
        }
        let decided = if is_later { Ok(model.head()) } else { Err("NOT_LATER_THAN_LAST_VERSION") };
        prop_assert_eq!(answer.map(|answer| answer.revision), expected(decided));
        Ok(())
    }

    async fn end_relationship(&mut self, partner: usize, customer: usize) -> Result<(), TestCaseError> {
        let request = EndRelationshipRequest {
            request_id: world::request_id(),
            customer_id: self.customer_ids[customer].clone(),
            provider_id: provider_of(partner).map(|id| id.to_string()).unwrap_or_default(),
            reseller_id: String::new(),
        };
        let answer = reason(self.partners[partner].customers().end_relationship(request).await);
        let model = &mut self.model;
        let is_active = model.customers[customer].relationships.remove(&partner);
        if is_active {
            let others_remain = model.customers[customer].is_paid_for_by(payer(partner));
            let ended = of_relationship("RelationshipEnded", partner, customer);
            model.happened(Happened { others_remain, ..ended });
        }
        let decided = if is_active { Ok(model.head()) } else { Err(NOT_FOUND) };
        prop_assert_eq!(answer.map(|answer| answer.revision), expected(decided));
        Ok(())
    }

    /// The partner invites anybody, and the customer accepts at once (INV-3).
    async fn accept_invitation(
        &mut self,
        partner: usize,
        customer: usize,
        shown: Shown,
    ) -> Result<(), TestCaseError> {
        let provider = provider_of(partner);
        let invitation = world::invite(&self.partners[partner], None, provider).await.unwrap();
        let shown = self.model.shown(shown);
        let mut request = world::acceptance(&invitation, None);
        request.template_version = shown;
        let answer = reason(self.admins[customer].signatures().accept_invitation(request).await);
        let model = &mut self.model;
        let kind = "InvitationCreated";
        model.happened(Happened { kind, partner: Some(payer(partner)), ..Happened::default() });
        let signing = model.may_sign(customer, shown);
        let decided = match signing {
            Err("VERSION_CHANGED") => Err("VERSION_CHANGED"),
            signing => {
                if model.customers[customer].relationships.insert(partner) {
                    model.happened(of_relationship("RelationshipEstablished", partner, customer));
                }
                if signing == Ok(true) {
                    let signed = answer.as_ref().ok().and_then(|answer| answer.signature.clone());
                    let id = signed.unwrap_or_default().signature_id;
                    model.accepted(id, customer, None, shown, 0);
                }
                let accepted = of_relationship("InvitationAccepted", partner, customer);
                model.happened(Happened { others: vec![], ..accepted });
                let signature = model.current(customer, None).filter(|_| signing.is_ok());
                let signature = signature.map(|n| model.acceptances[n].id.clone());
                Ok((signature, signing.is_err(), model.head()))
            }
        };
        let told = answer.map(|answer| {
            let signature = answer.signature.map(|signature| signature.signature_id);
            (signature, answer.contact_partner, answer.revision)
        });
        prop_assert_eq!(told, expected(decided));
        Ok(())
    }

    async fn report_purchase(
        &mut self,
        partner: usize,
        customer: usize,
        minutes_ago: i64,
    ) -> Result<(), TestCaseError> {
        let purchased_at = self.model.now - Duration::minutes(minutes_ago);
        let request = ReportPurchaseRequest {
            request_id: world::request_id(),
            customer_id: self.customer_ids[customer].clone(),
            payer_id: PARTNERS[partner].to_string(),
            purchased_at: Some(timestamp(purchased_at)),
        };
        let answer = reason(self.service.gate().report_purchase(request).await);
        let model = &mut self.model;
        model.purchased(partner, customer, purchased_at);
        let first = model.customers[customer].first_purchase_at.map(timestamp);
        prop_assert_eq!(answer.map(|answer| answer.first_purchase_at), Ok(first));
        Ok(())
    }

    /// One of the acceptances there ever were of a kind.
    fn pick(&self, which: Index, is_it: impl Fn(&Acceptance) -> bool) -> Option<usize> {
        let all = self.model.acceptances.iter().enumerate().filter(|(_, a)| is_it(a));
        let all: Vec<_> = all.map(|(n, _)| n).collect();
        (!all.is_empty()).then(|| *which.get(&all))
    }

    /// Compares what can be read about a customer.
    async fn compare(&self, customer: usize) -> Result<(), TestCaseError> {
        let pairs = [(0, Channel::Dashboard), (0, Channel::Api), (1, Channel::Dashboard), (1, Channel::Api)];
        let gates = pairs.map(|(partner, channel)| self.compare_gate(customer, partner, channel));
        let (gates, records, status) = tokio::join!(
            join_all(gates),
            self.compare_attestations(customer, true),
            self.compare_status(customer)
        );
        gates.into_iter().chain([records, status]).collect()
    }

    async fn compare_gate(
        &self,
        customer: usize,
        partner: usize,
        channel: Channel,
    ) -> Result<(), TestCaseError> {
        let request = CheckEligibilityRequest {
            payer_id: PARTNERS[partner].to_string(),
            customer_id: self.customer_ids[customer].clone(),
            operation: Operation::NewPurchase.into(),
            channel: channel.into(),
            acting_roles: vec![PartnerRole::SalesAgent.into()],
            ..CheckEligibilityRequest::default()
        };
        let answer = reason(self.service.gate().check_eligibility(request).await);
        let model = &self.model;
        if !model.customers[customer].is_paid_for_by(partner) {
            prop_assert_eq!(answer.map(|answer| answer.decision()), expected(Err(NOT_FOUND)));
            return Ok(());
        }
        let Ok(answer) = answer else { return Err(TestCaseError::fail(format!("the gate: {answer:?}"))) };
        let decided = model.gate(customer, partner, model.now).map(|evidence| evidence.id.as_str());
        let reasons: BTreeSet<_> = answer.reasons().map(|reason| reason.as_str_name()).collect();
        let evidence = answer.evidence.clone().map(|evidence| evidence.acceptance_id);
        let told = match answer.decision() {
            Decision::Allowed => Ok(evidence.as_deref().unwrap_or_default()),
            _ => Err(reasons.clone()),
        };
        prop_assert_eq!(told, decided.clone(), "the gate for partner {} and customer {}", partner, customer);
        let decision = if decided.is_ok() { Decision::Allowed } else { Decision::Blocked };
        prop_assert_eq!(answer.decision(), decision);
        prop_assert_eq!((reasons.len(), reasons.is_empty()), (answer.reasons.len(), decided.is_ok()));
        prop_assert_eq!(
            answer.revision,
            model.customers[customer].acceptance_revision,
            "the acceptance revision"
        );
        let can_invite = answer.remedies.iter().any(|remedy| remedy.kind() == RemedyKind::InviteCustomer);
        prop_assert_eq!(can_invite, decided.is_err() && model.may_sign_directly(customer), "the remedies");
        if let Some(changes_at) = model.gate_changes_at(customer, partner).map(timestamp) {
            let valid_until = answer.valid_until.map(|until| (until.seconds, until.nanos));
            prop_assert!(
                valid_until.is_some_and(|until| until <= (changes_at.seconds, changes_at.nanos)),
                "valid until {valid_until:?}, but the answer changes at {changes_at:?}"
            );
        }
        Ok(())
    }

    /// The attestations that there ever were, or are current, and where they stand.
    async fn compare_attestations(
        &self,
        customer: usize,
        include_history: bool,
    ) -> Result<(), TestCaseError> {
        let request = ListAttestationsRequest {
            customer_id: self.customer_ids[customer].clone(),
            include_history,
            page_size: 500,
            page_token: String::new(),
        };
        let listed = self.operator.attestations().list_attestations(request).await.unwrap().into_inner();
        let told = listed.attestations.into_iter();
        let told = told.map(|row| (row.state(), row.partner_id, row.template_version, row.attestation_id));
        let own = self.model.acceptances.iter().filter(|acceptance| acceptance.customer == customer);
        let known = own.filter_map(|acceptance| {
            let state = match acceptance.standing {
                Standing::Current => AttestationState::Current,
                Standing::Superseded => AttestationState::Superseded,
                Standing::Withdrawn => AttestationState::Withdrawn,
            };
            let partner = PARTNERS[acceptance.partner?].to_string();
            Some((state, partner, acceptance.version, acceptance.id.clone()))
        });
        let known = known.filter(|(state, ..)| include_history || *state == AttestationState::Current);
        let known: Vec<_> = known.collect();
        let current = known.iter().filter(|(state, ..)| *state == AttestationState::Current);
        let partners: Vec<_> = current.map(|(_, partner, ..)| partner).collect();
        let each_once: BTreeSet<_> = partners.iter().collect();
        prop_assert_eq!(
            partners.len(),
            each_once.len(),
            "the model has two current attestations of a partner"
        );
        prop_assert_eq!(told.collect::<Vec<_>>(), known, "the attestations of customer {}", customer);
        Ok(())
    }

    async fn compare_status(&self, customer: usize) -> Result<(), TestCaseError> {
        let request = GetDirectSignStatusRequest { customer_id: self.customer_ids[customer].clone() };
        let admin = &self.admins[customer];
        let told = admin.signatures().get_direct_sign_status(request).await.unwrap().into_inner();
        let model = &self.model;
        let current = model.current(customer, None).map(|n| &model.acceptances[n]);
        let signature = told.signature.map(|signature| (signature.signature_id, signature.template_version));
        prop_assert_eq!(signature, current.map(|signature| (signature.id.clone(), signature.version)));
        let satisfies = current.is_some_and(|signature| model.still_counts(signature.version, model.now));
        prop_assert_eq!((told.is_signed, told.satisfies), (current.is_some(), satisfies));
        Ok(())
    }

    /// The history from its beginning: no gaps, the model's events, and nothing behind the last.
    pub(crate) async fn compare_history(&self) -> Result<(), TestCaseError> {
        let head = self.model.head();
        prop_assert_eq!(self::head(&self.operator).await, head, "the revision of the last event");
        let request = WatchEventsRequest { after_revision: 0, ..WatchEventsRequest::default() };
        let mut stream = self.operator.events().watch_events(request).await.unwrap().into_inner();
        let mut events = vec![];
        while i64::try_from(events.len()).unwrap() < head {
            match stream.message().await.unwrap().and_then(|message| message.item) {
                Some(Item::Event(event)) => events.push(event),
                other => return Err(TestCaseError::fail(format!("{other:?} after {} events", events.len()))),
            }
        }
        let revisions: Vec<_> = events.iter().map(|event| event.revision).collect();
        prop_assert_eq!(revisions, (1..=head).collect::<Vec<_>>());
        let told: Vec<_> = events[usize::try_from(self.model.base).unwrap()..].iter().collect();
        for (event, known) in told.iter().zip(&self.model.history) {
            prop_assert_eq!(&self.happened(event)?, known, "revision {}", event.revision);
        }
        for (id, admin) in self.customer_ids.iter().zip(&self.admins) {
            let request =
                ListEventsRequest { customer_id: id.clone(), page_size: 500, page_token: String::new() };
            let listed = admin.events().list_events(request).await.unwrap().into_inner().events;
            let own: Vec<_> = events.iter().filter(|event| event.customer_id == *id).cloned().collect();
            prop_assert_eq!(listed, own, "the history of one customer");
        }
        for customer in 0..CUSTOMERS {
            self.compare_attestations(customer, false).await?;
        }
        Ok(())
    }

    fn happened(&self, event: &Event) -> Result<Happened, TestCaseError> {
        let one = |id: &String| Some(id.clone()).filter(|id| !id.is_empty()).into_iter().collect();
        let (kind, acceptance, others) = match event.change.as_ref() {
            Some(Change::TemplateVersionPublished(_)) => ("TemplateVersionPublished", "", vec![]),
            Some(Change::RelationshipEstablished(established)) => {
                ("RelationshipEstablished", "", one(&established.reseller_id))
            }
            Some(Change::RelationshipEnded(ended)) => ("RelationshipEnded", "", one(&ended.reseller_id)),
            Some(Change::Attested(attested)) => {
                ("Attested", attested.attestation_id.as_str(), one(&attested.supersedes_id))
            }
            Some(Change::Signed(signed)) => {
                ("Signed", signed.signature_id.as_str(), one(&signed.supersedes_id))
            }
            Some(Change::AttestationWithdrawn(withdrawn)) => (
                "AttestationWithdrawn",
                withdrawn.attestation_id.as_str(),
                withdrawn.uncovered_partner_ids.clone(),
            ),
            Some(Change::SignatureWithdrawn(withdrawn)) => (
                "SignatureWithdrawn",
                withdrawn.signature_id.as_str(),
                withdrawn.uncovered_partner_ids.clone(),
            ),
            Some(Change::InvitationCreated(_)) => ("InvitationCreated", "", vec![]),
            Some(Change::InvitationAccepted(_)) => ("InvitationAccepted", "", vec![]),
            Some(Change::FirstPurchaseReported(_)) => ("FirstPurchaseReported", "", vec![]),
            other => return Err(TestCaseError::fail(format!("no step does this: {other:?}"))),
        };
        let customer = self.customer_ids.iter().position(|id| *id == event.customer_id);
        let partner = PARTNERS.iter().position(|id| id.to_string() == event.partner_id);
        let others_remain =
            matches!(&event.change, Some(Change::RelationshipEnded(ended)) if ended.others_remain);
        Ok(Happened { kind, customer, partner, acceptance: acceptance.to_owned(), others, others_remain })
    }
}

/// Through whom the reseller enters a relationship.
fn provider_of(partner: usize) -> Option<Uuid> {
    (payer(partner) != partner).then_some(PROVIDER)
}

/// What happened to the relationship that a partner entered: its payer's event, which names the reseller.
fn of_relationship(kind: &'static str, partner: usize, customer: usize) -> Happened {
    let reseller = provider_of(partner).map(|_| RESELLER.to_string());
    let (customer, payer) = (Some(customer), Some(payer(partner)));
    Happened { kind, customer, partner: payer, others: reseller.into_iter().collect(), ..Happened::default() }
}

/// The revision of the last event, which a cursor beyond it is told.
async fn head(operator: &As) -> i64 {
    let beyond = WatchEventsRequest { after_revision: i64::MAX, ..WatchEventsRequest::default() };
    let refused = operator.events().watch_events(beyond).await.unwrap_err();
    assert_eq!(reason_of(&refused), "CURSOR_AHEAD", "{refused}");
    metadata_of(&refused)["head"].parse().unwrap()
}

async fn play(backend: Backend, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let clock = Clock::manual(START.parse().unwrap());
    let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    let mut play = Play::begin(&cluster, clock).await;
    for (n, step) in steps.iter().enumerate() {
        let at = |error| TestCaseError::fail(format!("step {n}, {step:?}: {error}"));
        for customer in play.take(step).await.map_err(at)? {
            play.compare(customer).await.map_err(at)?;
        }
    }
    play.compare_history().await
}

/// Histories for each backend: as many as about ten seconds allow, PostgreSQL being the slower.
fn cases(backend: Backend) -> u32 {
    match backend {
        Backend::Sqlite => 20,
        Backend::Postgres => 8,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_records_gate_and_history_are_those_of_the_model_whatever_is_done() {
    tests::needs_own!("a clock that it sets");
    histories::check(steps, cases, play);
}
