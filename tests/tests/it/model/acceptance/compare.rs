//! The comparison of what callers can read with the model: gate, records, status and history.

use std::collections::BTreeSet;

use chassis::form::timestamp;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use proto::agreement::event::Change;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    AttestationState, CheckEligibilityRequest, Event, GetDirectSignStatusRequest, ListAttestationsRequest,
    ListEventsRequest, PartnerRole, WatchEventsRequest,
};
use proto::types::{Channel, ConsideredAcceptance, Decision, RemedyKind};
use tests::{As, fixtures, metadata_of, reason_of};

use super::expect::{Happened, NOT_FOUND, Standing};
use super::play::{Play, expected, reason};
use super::{CUSTOMERS, PARTNERS};

impl Play {
    /// Compares what can be read about a customer.
    pub(super) async fn compare(&self, customer: usize) -> Result<(), TestCaseError> {
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
            channel: channel.into(),
            acting_roles: vec![PartnerRole::SalesAgent.into()],
            ..fixtures::new_check(PARTNERS[partner], &self.customer_ids[customer])
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
        let answered = match answer.decision() {
            Decision::Allowed => Ok(evidence.as_deref().unwrap_or_default()),
            _ => Err(reasons.clone()),
        };
        prop_assert_eq!(
            answered,
            decided.clone(),
            "the gate for partner {} and customer {}",
            partner,
            customer
        );
        let decision = if decided.is_ok() { Decision::Allowed } else { Decision::Blocked };
        prop_assert_eq!(answer.decision(), decision);
        prop_assert_eq!((reasons.len(), reasons.is_empty()), (answer.reasons.len(), decided.is_ok()));
        let considered = if decided.is_err() { model.considered(customer, partner) } else { vec![] };
        let is_considered = |one: &ConsideredAcceptance| {
            let id = one.acceptance.as_ref().map(|acceptance| acceptance.acceptance_id.as_str());
            considered
                .iter()
                .any(|(ids, reason)| *reason == one.reason() && id.is_some_and(|id| ids.contains(&id)))
        };
        prop_assert!(
            answer.considered.len() == considered.len() && answer.considered.iter().all(is_considered),
            "{:?} is considered instead of {considered:?}",
            answer.considered
        );
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

    /// All attestations, or the current ones, with their states.
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
            ..ListAttestationsRequest::default()
        };
        let listed = self.operator.attestations().list_attestations(request).await.unwrap().into_inner();
        let answered = listed.attestations.into_iter();
        let answered =
            answered.map(|row| (row.state(), row.partner_id, row.template_version, row.attestation_id));
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
        prop_assert_eq!(answered.collect::<Vec<_>>(), known, "the attestations of customer {}", customer);
        Ok(())
    }

    async fn compare_status(&self, customer: usize) -> Result<(), TestCaseError> {
        let request = GetDirectSignStatusRequest { customer_id: self.customer_ids[customer].clone() };
        let admin = &self.admins[customer];
        let answered = admin.signatures().get_direct_sign_status(request).await.unwrap().into_inner();
        let model = &self.model;
        let current = model.current(customer, None).map(|n| &model.acceptances[n]);
        let signature =
            answered.signature.map(|signature| (signature.signature_id, signature.template_version));
        prop_assert_eq!(signature, current.map(|signature| (signature.id.clone(), signature.version)));
        let satisfies = current.is_some_and(|signature| model.still_counts(signature.version, model.now));
        prop_assert_eq!((answered.is_signed, answered.satisfies), (current.is_some(), satisfies));
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
        let answered: Vec<_> = events[usize::try_from(self.model.base).unwrap()..].iter().collect();
        for (event, known) in answered.iter().zip(&self.model.history) {
            prop_assert_eq!(&self.happened(event)?, known, "revision {}", event.revision);
        }
        for (id, admin) in self.customer_ids.iter().zip(&self.admins) {
            let request = ListEventsRequest { customer_id: id.clone(), page_size: 500, ..Default::default() };
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

/// The revision of the last event, which the refusal of a cursor beyond it carries.
pub(super) async fn head(operator: &As) -> i64 {
    let beyond = WatchEventsRequest { after_revision: i64::MAX, ..WatchEventsRequest::default() };
    let refused = operator.events().watch_events(beyond).await.unwrap_err();
    assert_eq!(reason_of(&refused), "CURSOR_AHEAD", "{refused}");
    metadata_of(&refused)["head"].parse().unwrap()
}
