//! From the rules to the wire. Writing cannot fail.

use chassis::database::row::id_or_empty;
use chassis::form::{Form, timestamp};
use proto::order as wire;
use proto::types;
use uuid::Uuid;

use crate::rules::event::{Changed, Event, Happened, LIFT};
use crate::rules::gate::{AgreementType, Approval, Decision, EvidenceKind, Rule};
use crate::rules::offer::{BillingCycle, Offer, OfferKind, Term};
use crate::rules::order::{Order, PlacedLine};
use crate::rules::preview::PreviewOutcome;
use crate::rules::subscription::{Cause, Change, ChangeKind, State, Subscription};
use crate::rules::withdrawal::{Effect, Report, SubscriptionFacts, WithdrawalOutcome};
use crate::store::Viewer;

pub(super) fn offer(offer: &Offer) -> wire::Offer {
    let kind = match offer.kind {
        OfferKind::License => wire::OfferKind::License,
        OfferKind::AzurePlan => wire::OfferKind::AzurePlan,
        OfferKind::ReservedInstance => wire::OfferKind::ReservedInstance,
        OfferKind::Software => wire::OfferKind::Software,
    };
    let term = match offer.term {
        Term::Month => wire::Term::Month,
        Term::Year => wire::Term::Year,
        Term::ThreeYears => wire::Term::ThreeYears,
        Term::Perpetual => wire::Term::Perpetual,
    };
    let billing_cycle = match offer.billing_cycle {
        BillingCycle::Monthly => wire::BillingCycle::Monthly,
        BillingCycle::Annual => wire::BillingCycle::Annual,
        BillingCycle::OneTime => wire::BillingCycle::OneTime,
    };
    wire::Offer {
        offer_id: offer.offer_id.clone(),
        name: offer.name.clone(),
        kind: kind.into(),
        quantity_min: offer.quantity_min,
        quantity_max: offer.quantity_max,
        term: term.into(),
        billing_cycle: billing_cycle.into(),
        auto_renews: offer.auto_renews,
        countries: offer.countries.clone(),
        agreement_types: offer.agreement_types.iter().map(|of| agreement_type(*of)).collect(),
    }
}

/// An order as the viewer may see it.
pub(super) fn order(order: &Order, viewer: Viewer) -> wire::Order {
    let reference = order.external_reference.as_ref();
    let reference = reference.filter(|_| viewer.sees_reference_of(order.placed_by_tenant));
    let line = |placed: &PlacedLine| wire::OrderLine {
        offer_id: placed.line.offer_id.clone(),
        quantity: placed.line.quantity,
        friendly_name: placed.line.friendly_name.clone(),
        subscription_id: placed.subscription_id.to_string(),
    };
    wire::Order {
        order_id: order.id.to_string(),
        payer_id: order.parties.payer_id.to_string(),
        reseller_id: id_or_empty(order.parties.reseller_id),
        customer_id: order.parties.customer_id.to_string(),
        lines: order.lines.iter().map(line).collect(),
        placed_at: Some(timestamp(order.placed_at)),
        placed_by_tenant: order.placed_by_tenant.to_string(),
        placed_by: order.placed_by.to_string(),
        gate: Some(approval(&order.approval)),
        external_reference: reference.cloned().unwrap_or_default(),
    }
}

pub(super) fn subscription(subscription: &Subscription) -> wire::Subscription {
    let state = match subscription.state {
        State::Active => wire::SubscriptionState::Active,
        State::Suspended => wire::SubscriptionState::Suspended,
        State::Cancelled => wire::SubscriptionState::Cancelled,
        State::Expired => wire::SubscriptionState::Expired,
    };
    wire::Subscription {
        subscription_id: subscription.id.to_string(),
        order_id: subscription.order_id.to_string(),
        payer_id: subscription.payer_id.to_string(),
        reseller_id: id_or_empty(subscription.reseller_id),
        customer_id: subscription.customer_id.to_string(),
        offer_id: subscription.offer_id.clone(),
        quantity: subscription.quantity,
        friendly_name: subscription.friendly_name.clone(),
        state: state.into(),
        auto_renew: subscription.auto_renew,
        started_at: Some(timestamp(subscription.started_at)),
        term_number: subscription.term_number,
        term_end: subscription.term_end.map(timestamp),
        etag: subscription.version.to_string(),
    }
}

/// Reads a state to filter by.
pub(super) fn read_state(form: &mut Form, field: &str, value: i32) -> Option<State> {
    use wire::SubscriptionState as Wire;
    let state = match Wire::try_from(value) {
        Ok(Wire::Active) => Some(State::Active),
        Ok(Wire::Suspended) => Some(State::Suspended),
        Ok(Wire::Cancelled) => Some(State::Cancelled),
        Ok(Wire::Expired) => Some(State::Expired),
        Ok(Wire::Unspecified) | Err(_) => None,
    };
    if state.is_none() {
        let names = [Wire::Active, Wire::Suspended, Wire::Cancelled, Wire::Expired];
        let names = names.map(|name| name.as_str_name()).join(", ");
        form.violation(field, format!("must be one of {names}"));
    }
    state
}

pub(super) fn change(change: &Change) -> wire::SubscriptionChange {
    use wire::SubscriptionChangeReason as Reason;
    let kind = match change.kind {
        ChangeKind::Created => wire::SubscriptionChangeKind::Created,
        ChangeKind::SeatsChanged => wire::SubscriptionChangeKind::SeatsChanged,
        ChangeKind::Renewed => wire::SubscriptionChangeKind::Renewed,
        ChangeKind::AutoRenewOn => wire::SubscriptionChangeKind::AutoRenewOn,
        ChangeKind::AutoRenewOff => wire::SubscriptionChangeKind::AutoRenewOff,
        ChangeKind::Suspended => wire::SubscriptionChangeKind::Suspended,
        ChangeKind::Resumed => wire::SubscriptionChangeKind::Resumed,
        ChangeKind::Cancelled => wire::SubscriptionChangeKind::Cancelled,
        ChangeKind::Expired => wire::SubscriptionChangeKind::Expired,
        ChangeKind::ResellerAssigned => wire::SubscriptionChangeKind::ResellerAssigned,
    };
    let (reason, actor, event_revision, acceptance_outdated) = match change.cause {
        Cause::Requested { tenant_id, user_id } => (Reason::Requested, Some((tenant_id, user_id)), 0, None),
        Cause::TermEnded { acceptance_outdated } => (Reason::TermEnded, None, 0, acceptance_outdated),
        Cause::AgreementWithdrawn { revision } => (Reason::AgreementWithdrawn, None, revision, None),
        Cause::RelationshipEnded { revision } => (Reason::RelationshipEnded, None, revision, None),
    };
    let (actor_tenant, actor) = actor.map(|(t, u)| (t.to_string(), u.to_string())).unwrap_or_default();
    wire::SubscriptionChange {
        number: u32::try_from(change.number).unwrap_or(u32::MAX),
        kind: kind.into(),
        changed_at: Some(timestamp(change.changed_at)),
        actor_tenant,
        actor,
        quantity_before: change.quantity_before,
        quantity_after: change.quantity_after,
        gate: change.approval.as_ref().map(approval),
        reason: reason.into(),
        event_revision,
        term_number: change.term_number,
        reseller_id: id_or_empty(change.reseller_id),
        acceptance_outdated,
    }
}

pub(super) fn event(event: &Event) -> wire::Event {
    use wire::event::Change as Kind;
    let mut wire = wire::Event {
        revision: event.revision,
        recorded_at: Some(timestamp(event.recorded_at)),
        ..wire::Event::default()
    };
    let kind = match &event.happened {
        Happened::OrderPlaced(order) => {
            wire.customer_id = order.parties.customer_id.to_string();
            wire.payer_id = order.parties.payer_id.to_string();
            wire.order_id = order.id.to_string();
            Kind::OrderPlaced(order_placed(order))
        }
        Happened::SubscriptionChanged(changed) => {
            wire.customer_id = changed.customer_id.to_string();
            wire.payer_id = changed.payer_id.to_string();
            wire.order_id = changed.order_id.to_string();
            Kind::SubscriptionChanged(subscription_changed(changed))
        }
        Happened::HistoryRestored => {
            Kind::HistoryRestored(wire::HistoryRestored { last_revision: event.revision - LIFT })
        }
    };
    wire.change = Some(kind);
    wire
}

fn order_placed(order: &Order) -> wire::OrderPlaced {
    let line = |placed: &PlacedLine| wire::OrderedLine {
        offer_id: placed.line.offer_id.clone(),
        quantity: placed.line.quantity,
        subscription_id: placed.subscription_id.to_string(),
    };
    wire::OrderPlaced {
        reseller_id: id_or_empty(order.parties.reseller_id),
        placed_at: Some(timestamp(order.placed_at)),
        placed_by_tenant: order.placed_by_tenant.to_string(),
        placed_by: order.placed_by.to_string(),
        lines: order.lines.iter().map(line).collect(),
        gate: Some(approval(&order.approval)),
    }
}

fn subscription_changed(changed: &Changed) -> wire::SubscriptionChanged {
    wire::SubscriptionChanged {
        subscription_id: changed.subscription_id.to_string(),
        offer_id: changed.offer_id.clone(),
        change: Some(change(&changed.change)),
        term_end: changed.term_end.map(timestamp),
    }
}

pub(super) fn report(report: &Report) -> wire::WithdrawalReport {
    let withdrawal = &report.withdrawal;
    wire::WithdrawalReport {
        revision: report.revision,
        customer_id: withdrawal.customer_id.to_string(),
        kind: acceptance_kind(withdrawal.kind),
        acceptance_id: withdrawal.acceptance_id.to_string(),
        partner_id: id_or_empty(withdrawal.partner_id),
        uncovered_partner_ids: withdrawal.uncovered.iter().map(ToString::to_string).collect(),
        withdrawn_at: Some(timestamp(report.withdrawn_at)),
        applied_at: Some(timestamp(report.applied_at)),
        cancelled: report.counts.cancelled,
        stayed: report.counts.stayed,
        newer_answer: report.counts.newer_answer,
    }
}

pub(super) fn effect(effect: &Effect) -> wire::WithdrawalEffect {
    let outcome = match effect.outcome {
        WithdrawalOutcome::Cancelled => wire::WithdrawalOutcome::Cancelled,
        WithdrawalOutcome::StillCovered => wire::WithdrawalOutcome::StillCovered,
        WithdrawalOutcome::NewerAnswer => wire::WithdrawalOutcome::NewerAnswer,
    };
    wire::WithdrawalEffect {
        subscription_id: effect.subscription_id.to_string(),
        payer_id: effect.payer_id.to_string(),
        reseller_id: id_or_empty(effect.reseller_id),
        outcome: outcome.into(),
    }
}

pub(super) fn preview(id: Uuid, facts: &SubscriptionFacts, outcome: PreviewOutcome) -> wire::PreviewEffect {
    let outcome = match outcome {
        PreviewOutcome::Cancelled => wire::PreviewOutcome::Cancelled,
        PreviewOutcome::NotRenewed => wire::PreviewOutcome::NotRenewed,
        PreviewOutcome::StillCovered => wire::PreviewOutcome::StillCovered,
        PreviewOutcome::Unaffected => wire::PreviewOutcome::Unaffected,
    };
    wire::PreviewEffect {
        subscription_id: id.to_string(),
        payer_id: facts.payer_id.to_string(),
        reseller_id: id_or_empty(facts.reseller_id),
        outcome: outcome.into(),
    }
}

pub(super) fn approval(approval: &Approval) -> types::GateEvidence {
    let decision = match approval.decision {
        Decision::Allowed => types::Decision::Allowed,
        Decision::Exempt => types::Decision::Exempt,
    };
    let rule = match approval.rule {
        Rule::OutsidePublicCloud => types::GateRule::OutsidePublicCloud,
        Rule::NotYetMandatory => types::GateRule::NotYetMandatory,
        Rule::DirectSignature => types::GateRule::DirectSignature,
        Rule::Attestation => types::GateRule::Attestation,
    };
    let evidence = approval.evidence.as_ref().map(|evidence| types::Evidence {
        kind: acceptance_kind(evidence.kind),
        acceptance_id: evidence.acceptance_id.to_string(),
        template_id: evidence.template_id.to_string(),
        template_version: evidence.template_version,
        agreement_type: agreement_type(evidence.agreement_type),
    });
    types::GateEvidence {
        decision: decision.into(),
        rule: rule.into(),
        evidence,
        revision: approval.revision,
        evaluated_at: Some(timestamp(approval.evaluated_at)),
    }
}

fn acceptance_kind(kind: EvidenceKind) -> i32 {
    let kind = match kind {
        EvidenceKind::Attestation => types::AcceptanceKind::Attestation,
        EvidenceKind::DirectSignature => types::AcceptanceKind::DirectSignature,
    };
    kind.into()
}

fn agreement_type(of: AgreementType) -> i32 {
    let of = match of {
        AgreementType::MicrosoftCloudAgreement => types::AgreementType::MicrosoftCloudAgreement,
        AgreementType::MicrosoftCustomerAgreement => types::AgreementType::MicrosoftCustomerAgreement,
    };
    of.into()
}
