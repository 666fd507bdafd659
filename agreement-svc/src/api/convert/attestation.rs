//! Attestations, what partners keep with them, and proposals.

use chassis::auth;
use chassis::database::row::id_or_empty;
use chassis::form::{Form, timestamp};
use proto::identity::TenantKind;
use proto::{agreement as wire, types};

use super::{
    agreement_type, attestation_state, contact, notification_state, proposal_state, read_country,
    read_language, rejection_reason, withdrawn_because,
};
use crate::rules::Time;
use crate::rules::attestation::{Attestation, Details};
use crate::rules::notification::{Notification, NotificationState};
use crate::rules::proposal::{Decided, Proposal};
use crate::rules::shown::ShownText;
use crate::rules::template::is_digest;

pub(in crate::api) fn read_details(
    form: &mut Form,
    field: &str,
    details: Option<&types::AttestationDetails>,
) -> Details {
    let absent = types::AttestationDetails::default();
    let details = details.unwrap_or(&absent);
    let sha256_field = format!("{field}.evidence_sha256");
    if !details.evidence_sha256.is_empty() && !is_digest(&details.evidence_sha256) {
        form.violation(sha256_field, "must be empty or 64 lower-case hexadecimal digits");
    }
    let mut text = |name: &str, value: &str, max| form.text(&format!("{field}.{name}"), value, 0, max);
    Details {
        title: text("title", &details.title, 100),
        evidence_reference: text("evidence_reference", &details.evidence_reference, 200),
        evidence_sha256: details.evidence_sha256.clone(),
        on_behalf_of: text("on_behalf_of", &details.on_behalf_of, 50),
        external_reference: text("external_reference", &details.external_reference, 80),
        shown_text: read_shown_text(form, &format!("{field}.shown_text"), details.shown_text.as_ref()),
    }
}

/// The text that a client showed, if it says which.
pub(in crate::api) fn read_shown_text(
    form: &mut Form,
    field: &str,
    text: Option<&types::ShownText>,
) -> Option<ShownText> {
    let types::ShownText { country, language, sha256 } = text?;
    if !sha256.is_empty() && !is_digest(sha256) {
        form.violation(format!("{field}.sha256"), "must be empty or 64 lower-case hexadecimal digits");
    }
    Some(ShownText {
        country: read_country(form, &format!("{field}.country"), country),
        language: read_language(form, &format!("{field}.language"), language),
        sha256: sha256.clone(),
    })
}

pub(in crate::api) fn shown_text(text: ShownText) -> types::ShownText {
    let ShownText { country, language, sha256 } = text;
    types::ShownText { country, language, sha256 }
}

/// An attestation with its notification, as far as that was looked up.
pub(in crate::api) fn attestation(
    attestation: Attestation,
    notified: Option<&Notification>,
) -> wire::Attestation {
    let state = attestation_state(attestation.state());
    wire::Attestation {
        attestation_id: attestation.id.to_string(),
        partner_id: attestation.partner_id.to_string(),
        customer_id: attestation.customer_id.to_string(),
        agreement_type: agreement_type(attestation.agreement_type),
        template_id: attestation.template_id.to_string(),
        template_version: attestation.template_version,
        contact: Some(contact(attestation.contact)),
        agreed_at: Some(timestamp(attestation.agreed_at)),
        recorded_at: Some(timestamp(attestation.recorded_at)),
        recorded_by: attestation.recorded_by.to_string(),
        state,
        superseded_at: attestation.superseded_at.map(timestamp),
        withdrawn_at: attestation.withdrawn.map(|withdrawal| timestamp(withdrawal.at)),
        revision: attestation.revision,
        notification: notified.map(notification),
        withdrawal_reason: withdrawn_because(attestation.withdrawn),
        details: details(attestation.details),
        recorded_client: attestation.recorded_client,
        proposed_by: attestation.proposed_by.map(|by| wire::ProposedBy {
            partner_id: by.partner_id.to_string(),
            user_id: by.user_id.to_string(),
            proposal_id: by.proposal_id.to_string(),
        }),
    }
}

/// Absent where none were given.
fn details(details: Details) -> Option<types::AttestationDetails> {
    let is_given = details != Details::default();
    let Details {
        title,
        evidence_reference,
        on_behalf_of,
        evidence_sha256,
        external_reference,
        shown_text: text,
    } = details;
    let details = types::AttestationDetails {
        title,
        evidence_reference,
        evidence_sha256,
        on_behalf_of,
        external_reference,
        shown_text: text.map(shown_text),
    };
    is_given.then_some(details)
}

/// An attestation as a caller may see it: what the partner keeps for itself is not for the customer.
pub(in crate::api) fn attestation_for(
    viewer: &auth::Caller,
    mut shown: wire::Attestation,
) -> wire::Attestation {
    if viewer.tenant_kind == TenantKind::Customer {
        shown.recorded_client.clear();
        if let Some(details) = &mut shown.details {
            details.on_behalf_of.clear();
            details.external_reference.clear();
        }
    }
    shown
}

pub(in crate::api) fn notification(notification: &Notification) -> wire::Notification {
    let is_queued = notification.state == NotificationState::Queued;
    wire::Notification {
        state: notification_state(notification.state),
        attempts: notification.attempts,
        due_at: is_queued.then(|| timestamp(notification.due_at)),
        sent_at: notification.sent_at.map(timestamp),
        last_failure: notification.last_failure.clone(),
    }
}

/// A proposal in its state at a time.
pub(in crate::api) fn proposal(proposal: Proposal, now: Time) -> wire::Proposal {
    let (decided_at, attestation_id, reason) = match proposal.decided {
        None => (None, None, None),
        Some(Decided::Approved { at, attestation_id }) => (Some(at), Some(attestation_id), None),
        Some(Decided::Rejected { at, reason }) => (Some(at), None, Some(reason)),
        Some(Decided::Withdrawn { at }) => (Some(at), None, None),
    };
    wire::Proposal {
        proposal_id: proposal.id.to_string(),
        state: proposal_state(proposal.state(now)),
        reseller_id: proposal.reseller_id.to_string(),
        provider_id: proposal.provider_id.to_string(),
        customer_id: proposal.customer_id.to_string(),
        template_id: proposal.template_id.to_string(),
        contact: Some(contact(proposal.contact)),
        agreed_at: Some(timestamp(proposal.agreed_at)),
        details: details(proposal.details),
        proposed_at: Some(timestamp(proposal.proposed_at)),
        proposed_by: proposal.proposed_by.to_string(),
        expires_at: Some(timestamp(proposal.expires_at)),
        decided_at: decided_at.map(timestamp),
        attestation_id: id_or_empty(attestation_id),
        rejection_reason: reason.map_or(0, rejection_reason),
    }
}
