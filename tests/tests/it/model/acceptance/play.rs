//! The player: takes each step over gRPC and in the model, and compares the answers.

use std::collections::BTreeSet;

use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use proto::agreement::publish_template_version_request::Reacceptance;
use proto::agreement::{
    CreateAttestationRequest, EndRelationshipRequest, PublishTemplateVersionRequest, Replacement,
    ReportPurchaseRequest, WithdrawAttestationRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::order::RelationshipName;
use proto::order::preview_withdrawal_request::Subject;
use proto::types::Contact;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, PROVIDER, RESELLER};
use tests::{As, Cluster, actions, reason_of};
use tonic::Status;
use uuid::Uuid;

use super::compare::head;
use super::expect::{Acceptance, Customer, Happened, Model, NOT_FOUND, Reason, Version};
use super::steps::{Reaccept, Shown, Step};
use super::{COUNTRIES, CUSTOMERS, PARTNERS, payer};

/// The services and the model after the same steps.
pub(crate) struct Play {
    pub clock: Clock,
    pub operator: As,
    pub service: As,
    pub partners: Vec<As>,
    pub admins: Vec<As>,
    pub customer_ids: Vec<String>,
    pub model: Model,
}

pub(super) fn reason<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T, String> {
    answer.map(tonic::Response::into_inner).map_err(|status| reason_of(&status))
}

pub(super) fn expected<T>(decided: Result<T, Reason>) -> Result<T, String> {
    decided.map_err(str::to_owned)
}

/// Person 2 is person 0 with the e-mail address in capitals.
pub(crate) fn person(number: usize) -> Contact {
    let contact = fixtures::contact();
    match number {
        1 => Contact { first_name: "Tomas".into(), ..contact },
        2 => Contact { email: contact.email.to_uppercase(), ..contact },
        _ => contact,
    }
}

impl Play {
    pub(crate) async fn begin(cluster: &Cluster, clock: Clock) -> Self {
        actions::register_partners(cluster).await.unwrap();
        let operator = cluster.as_caller(fixtures::operator());
        let partners: Vec<_> = PARTNERS.iter().map(|id| cluster.as_caller(fixtures::sales(*id))).collect();
        let mut customer_ids = vec![];
        for country in COUNTRIES {
            let name = format!("Customer in {country}");
            customer_ids.push(actions::create_customer(&partners[0], &name, country, None).await.unwrap());
        }
        let admin = |id: &String| cluster.as_caller(fixtures::admin(id.parse().unwrap()));
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
        let service = cluster.as_caller(fixtures::service());
        Self { clock, operator, service, partners, admins, customer_ids, model }
    }

    /// Takes a step on both sides, and returns the customers that it can have changed.
    pub(crate) async fn take(&mut self, step: &Step) -> Result<Vec<usize>, TestCaseError> {
        match *step {
            Step::Attest { partner, customer, person, agreed_minutes_ago } => {
                self.attest(partner, customer, person, agreed_minutes_ago).await?;
                Ok(vec![customer])
            }
            Step::WithdrawAttestation { which, is_own, corrects } => {
                self.withdraw_attestation(which, is_own, corrects).await
            }
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

    /// What a step withdraws or ends, if it may.
    pub(crate) fn subject_of(&self, step: &Step) -> Option<Subject> {
        let acceptance = |which: usize| Subject::AcceptanceId(self.model.acceptances[which].id.clone());
        match *step {
            Step::WithdrawAttestation { which, corrects: false, .. } => {
                self.pick(which, |acceptance| acceptance.partner.is_some()).map(acceptance)
            }
            Step::WithdrawSignature { which, .. } => {
                self.pick(which, |acceptance| acceptance.partner.is_none()).map(acceptance)
            }
            Step::EndRelationship { partner, customer } => {
                let (payer, partner) = (PARTNERS[payer(partner)], PARTNERS[partner]);
                Some(Subject::Relationship(RelationshipName {
                    customer_id: self.customer_ids[customer].clone(),
                    partner_id: payer.to_string(),
                    reseller_id: if payer == partner { String::new() } else { partner.to_string() },
                }))
            }
            _ => None,
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
            contact: Some(person(number)),
            agreed_at: Some(timestamp(agreed_at)),
            ..fixtures::new_attestation(&self.customer_ids[customer])
        };
        let answer = reason(self.partners[partner].attestations().create_attestation(request).await);
        let version = self.model.in_force(agreed_at.min(self.model.now));
        let (model, claim) = (&mut self.model, (number % 2, agreed_at));
        let decided = model.may_attest(customer, partner, claim, version);
        let id = answer.as_ref().map(|answer| answer.attestation.clone().unwrap_or_default().attestation_id);
        if decided.is_ok() {
            model.accepted(id.unwrap_or_default(), customer, Some(partner), version, claim);
        }
        let answered =
            answer.map(|answer| (answer.attestation.unwrap_or_default().template_version, answer.revision));
        prop_assert_eq!(answered, expected(decided.map(|()| (version, model.head()))));
        Ok(())
    }

    async fn withdraw_attestation(
        &mut self,
        which: Index,
        is_own: bool,
        corrects: bool,
    ) -> Result<Vec<usize>, TestCaseError> {
        let Some(which) = self.pick(which, |acceptance| acceptance.partner.is_some()) else {
            return Ok(vec![]);
        };
        let Acceptance { ref id, customer, partner, claim: (person, _), .. } = self.model.acceptances[which];
        let owner = partner.unwrap_or_default();
        let by = if is_own { owner } else { 1 - owner };
        let agreed_at = self.model.now - Duration::days(1);
        let agreed = Some(timestamp(agreed_at));
        let replacement = corrects.then(|| Replacement { agreed_at: agreed, ..Replacement::default() });
        let reason_given = WithdrawalReason::RecordedInError.into();
        let request =
            WithdrawAttestationRequest { reason: reason_given, replacement, ..fixtures::new_withdrawal(id) };
        let answer = reason(self.partners[by].attestations().withdraw_attestation(request).await);
        let made = answer.as_ref().ok().and_then(|answer| answer.replacement.clone());
        let answered = answer.map(|answer| (answer.uncovered, answer.revision));
        let model = &mut self.model;
        let decided = match by == owner && model.customers[customer].is_seen_by(owner) {
            true => model.may_withdraw(which),
            false => Err(NOT_FOUND),
        };
        let decided = match decided {
            Ok(false) if corrects => Err("INVALID_FIELDS"),
            decided => decided,
        };
        if decided == Ok(true) {
            model.withdrawn(which, corrects);
        }
        if decided == Ok(true) && corrects {
            let version = model.in_force(agreed_at);
            let id = made.map(|made| made.attestation_id).unwrap_or_default();
            model.accepted(id, customer, partner, version, (person, agreed_at));
        }
        let is_uncovered = model.without_acceptance(customer).contains(&owner);
        prop_assert_eq!(answered, expected(decided.map(|_| (is_uncovered, model.head()))));
        Ok(vec![customer])
    }

    async fn sign(&mut self, customer: usize, shown: Shown) -> Result<(), TestCaseError> {
        let shown = self.model.shown(shown);
        let answer = actions::sign(&self.admins[customer], shown).await;
        let decided = self.model.may_sign(customer, shown);
        if decided == Ok(true) {
            let id = answer.as_ref().map(|signature| signature.signature_id.clone());
            let claim = (0, self.model.now);
            self.model.accepted(id.unwrap_or_default(), customer, None, shown, claim);
        }
        let answered = answer.map(|signature| signature.signature_id).map_err(|status| reason_of(&status));
        let signature = self.model.current(customer, None).map(|n| self.model.acceptances[n].id.clone());
        prop_assert_eq!(answered, expected(decided.map(|_| signature.unwrap_or_default())));
        Ok(())
    }

    async fn withdraw_signature(&mut self, which: Index, is_own: bool) -> Result<Vec<usize>, TestCaseError> {
        let Some(which) = self.pick(which, |acceptance| acceptance.partner.is_none()) else {
            return Ok(vec![]);
        };
        let Acceptance { ref id, customer, .. } = self.model.acceptances[which];
        let request = WithdrawSignatureRequest {
            request_id: fixtures::request_id(),
            signature_id: id.clone(),
            reason: WithdrawalReason::NotEntitled.into(),
            validate_only: false,
        };
        let by = if is_own { customer } else { (customer + 1) % CUSTOMERS };
        let answer = reason(self.admins[by].signatures().withdraw_signature(request).await);
        let answered = answer.map(|answer| (answer.uncovered_partner_ids, answer.revision));
        let model = &mut self.model;
        let decided = if is_own { model.may_withdraw(which) } else { Err(NOT_FOUND) };
        if decided == Ok(true) {
            model.withdrawn(which, false);
        }
        let uncovered = model.without_acceptance(customer);
        let uncovered: Vec<_> = uncovered.iter().map(|partner| PARTNERS[*partner].to_string()).collect();
        prop_assert_eq!(answered, expected(decided.map(|_| (uncovered, model.head()))));
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
        let request = PublishTemplateVersionRequest {
            effective_from: effective_from.map(timestamp),
            reacceptance,
            ..fixtures::new_version(CUSTOMER_AGREEMENT)
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
            request_id: fixtures::request_id(),
            customer_id: self.customer_ids[customer].clone(),
            provider_id: provider_of(partner).map(|id| id.to_string()).unwrap_or_default(),
            reseller_id: String::new(),
            validate_only: false,
        };
        let answer = reason(self.partners[partner].customers().end_relationship(request).await);
        let model = &mut self.model;
        let is_active = model.customers[customer].relationships.remove(&partner);
        if is_active {
            model.customers[customer].former.insert(partner);
            let others_remain = model.customers[customer].is_paid_for_by(payer(partner));
            let ended = of_relationship("RelationshipEnded", partner, customer);
            model.happened(Happened { others_remain, ..ended });
        }
        let decided = if is_active { Ok(model.head()) } else { Err(NOT_FOUND) };
        prop_assert_eq!(answer.map(|answer| answer.revision), expected(decided));
        Ok(())
    }

    /// The partner invites without naming a customer, and the customer accepts at once (INV-3).
    async fn accept_invitation(
        &mut self,
        partner: usize,
        customer: usize,
        shown: Shown,
    ) -> Result<(), TestCaseError> {
        let provider = provider_of(partner);
        let invitation = actions::invite(&self.partners[partner], None, provider).await.unwrap();
        let shown = self.model.shown(shown);
        let mut request = fixtures::acceptance(&invitation, None);
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
                    let claim = (0, model.now);
                    model.accepted(id, customer, None, shown, claim);
                }
                let accepted = of_relationship("InvitationAccepted", partner, customer);
                model.happened(Happened { others: vec![], ..accepted });
                let signature = model.current(customer, None).filter(|_| signing.is_ok());
                let signature = signature.map(|n| model.acceptances[n].id.clone());
                Ok((signature, signing.is_err(), model.head()))
            }
        };
        let answered = answer.map(|answer| {
            let signature = answer.signature.map(|signature| signature.signature_id);
            (signature, answer.contact_partner, answer.revision)
        });
        prop_assert_eq!(answered, expected(decided));
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
            request_id: fixtures::request_id(),
            customer_id: self.customer_ids[customer].clone(),
            payer_id: PARTNERS[partner].to_string(),
            purchased_at: Some(timestamp(purchased_at)),
            validate_only: false,
        };
        let answer = reason(self.service.gate().report_purchase(request).await);
        let model = &mut self.model;
        model.purchased(partner, customer, purchased_at);
        let first = model.customers[customer].first_purchase_at.map(timestamp);
        prop_assert_eq!(answer.map(|answer| answer.first_purchase_at), Ok(first));
        Ok(())
    }

    /// One of all acceptances of a kind, current or not.
    fn pick(&self, which: Index, is_it: impl Fn(&Acceptance) -> bool) -> Option<usize> {
        let all = self.model.acceptances.iter().enumerate().filter(|(_, a)| is_it(a));
        let all: Vec<_> = all.map(|(n, _)| n).collect();
        (!all.is_empty()).then(|| *which.get(&all))
    }
}

/// The provider through which the reseller enters a relationship.
fn provider_of(partner: usize) -> Option<Uuid> {
    (payer(partner) != partner).then_some(PROVIDER)
}

/// What happened to the relationship that a partner entered: its payer's event, which names the reseller.
fn of_relationship(kind: &'static str, partner: usize, customer: usize) -> Happened {
    let reseller = provider_of(partner).map(|_| RESELLER.to_string());
    let (customer, payer) = (Some(customer), Some(payer(partner)));
    Happened { kind, customer, partner: payer, others: reseller.into_iter().collect(), ..Happened::default() }
}
