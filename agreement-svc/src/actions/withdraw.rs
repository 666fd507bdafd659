//! Withdrawal of an acceptance (WD-1): the effect that WithdrawAttestation and WithdrawSignature share. Both report which of
//! the partners that it covered have no acceptance now, also when the withdrawal had been made before.

use chassis::database::{Connection, Error};
use uuid::Uuid;

use super::attest::{NewAttestation, attest_as_partner};
use super::visibility::{require_own_attestation, require_template};
use crate::rules::attestation::{Attestation, Claim, Details};
use crate::rules::event::Event;
use crate::rules::party::{Contact, Relationship};
use crate::rules::signature::Signature;
use crate::rules::withdrawal::{Covers, Withdrawal, WithdrawalReason, check_withdrawal, uncovered};
use crate::rules::{Refusal, Time};
use crate::store::acceptance::{
    acceptance_withdraw, acceptances_cover, attestation_find, attestations_current, signature_find,
    signatures_current,
};
use crate::store::change::{Change, ChangeError};
use crate::store::customer::{customer_set_acceptance_revision, related_partners, relationships_with};

/// What is true in place of an attestation that was recorded in error; what is absent was right.
pub(crate) struct Replacement {
    pub template_id: Option<Uuid>,
    pub contact: Option<Contact>,
    pub agreed_at: Time,
    pub details: Option<Details>,
}

/// What a withdrawal of an attestation left.
pub(crate) struct WithdrawnAttestation {
    pub attestation: Attestation,
    pub replacement: Option<Attestation>,
    pub uncovered: Uncovered,
}

/// The partners, present and former, that have no acceptance now, and their relationships with the customer.
pub(crate) struct Uncovered {
    pub partners: Vec<Uuid>,
    pub relationships: Vec<Relationship>,
}

/// Withdraws an attestation of the partner's own, and attests what is true in its place (WD-5).
pub(crate) fn withdraw_attestation(
    change: &mut Change<'_>,
    partner_id: Uuid,
    id: Uuid,
    reason: WithdrawalReason,
    replacement: Option<Replacement>,
    (by, client): (Uuid, Option<String>),
) -> Result<WithdrawnAttestation, ChangeError> {
    let mut attestation = require_own_attestation(change.connection, partner_id, id)?;
    let Attestation { customer_id, agreement_type, .. } = attestation;
    let mut current = attestations_current(change.connection, partner_id, &[customer_id])?.into_iter();
    let current = current.find(|(current, _)| current.agreement_type == agreement_type);
    let current = current.map(|(current, _)| current.id);
    let mut new = None;
    if check_withdrawal(id, attestation.superseded_at, attestation.withdrawn, current)? {
        new = Some(Withdrawal { at: change.now, reason, by });
        attestation.withdrawn = new;
    } else if replacement.is_some() {
        let problem =
            "must be absent: the attestation is withdrawn already; make a new one with CreateAttestation";
        return Err(Refusal::field("replacement", problem).into());
    }
    let covers = Some(Covers::Partner(partner_id)).filter(|_| replacement.is_none());
    let uncovered = withdraw(change, id, customer_id, covers, new, |uncovered_partner_ids| {
        let attestation_id = id;
        Event::AttestationWithdrawn {
            attestation_id,
            partner_id,
            customer_id,
            reason,
            uncovered_partner_ids,
            by,
        }
    })?;
    let replacement = match replacement {
        Some(Replacement { template_id, contact, agreed_at, details }) => {
            let template_id = template_id.unwrap_or(attestation.template_id);
            let details = match details {
                Some(details) => details,
                None => {
                    let template = require_template(change.connection, template_id)?;
                    let version = template.accepted_at(agreed_at, change.now).map(|version| version.number);
                    let is_of_another_version = (template_id, version)
                        != (attestation.template_id, Some(attestation.template_version));
                    attestation.details.replaced(contact.is_some(), is_of_another_version)
                }
            };
            let contact = contact.unwrap_or_else(|| attestation.contact.clone());
            if contact.is_empty() {
                let problem = "is required: the data of the person in the withdrawn attestation was erased";
                return Err(Refusal::field("replacement.contact", problem).into());
            }
            let new = NewAttestation {
                template_id,
                claim: Claim { contact, agreed_at, details },
                by,
                client,
                proposed_by: None,
            };
            let made = attest_as_partner(change, partner_id, customer_id, new);
            Some(made.map_err(|error| error.within("replacement."))?)
        }
        None => None,
    };
    Ok(WithdrawnAttestation { attestation, replacement, uncovered })
}

/// Withdraws a signature of the customer's own.
pub(crate) fn withdraw_signature(
    change: &mut Change<'_>,
    customer_id: Uuid,
    id: Uuid,
    reason: WithdrawalReason,
    by: Uuid,
) -> Result<(Signature, Uncovered), ChangeError> {
    let known = signature_find(change.connection, id)?;
    let own = known.filter(|signature| signature.customer_id == customer_id);
    let mut signature = own.ok_or(Refusal::NotFound { resource: "signature", id })?;
    let current = signatures_current(change.connection, customer_id)?;
    let current = current.iter().find(|current| current.agreement_type == signature.agreement_type);
    let current = current.map(|current| current.id);
    let mut new = None;
    if check_withdrawal(id, signature.superseded_at, signature.withdrawn, current)? {
        new = Some(Withdrawal { at: change.now, reason, by });
        signature.withdrawn = new;
    }
    let uncovered =
        withdraw(change, id, customer_id, Some(Covers::Everyone), new, |uncovered_partner_ids| {
            Event::SignatureWithdrawn { signature_id: id, customer_id, reason, uncovered_partner_ids, by }
        })?;
    Ok((signature, uncovered))
}

/// What a withdrawal would do.
pub(crate) struct WithdrawalCheck {
    pub customer_id: Uuid,
    /// The partner that attested; absent for a signature.
    pub partner_id: Option<Uuid>,
    /// Neither superseded nor withdrawn.
    pub is_current: bool,
    pub uncovered: Vec<Uuid>,
}

/// Whom the withdrawal of an acceptance would leave without any.
pub(crate) fn check(connection: &mut Connection, id: Uuid) -> Result<WithdrawalCheck, ChangeError> {
    let (customer_id, partner_id, superseded_at, withdrawn) = match attestation_find(connection, id)? {
        Some(of) => (of.customer_id, Some(of.partner_id), of.superseded_at, of.withdrawn),
        None => {
            let unseen = Refusal::NotFound { resource: "acceptance", id };
            let of = signature_find(connection, id)?.ok_or(unseen)?;
            (of.customer_id, None, of.superseded_at, of.withdrawn)
        }
    };
    let is_current = check_withdrawal(id, superseded_at, withdrawn, None) == Ok(true);
    let covers = partner_id.map_or(Covers::Everyone, Covers::Partner);
    let uncovered = if is_current { uncovered_without(connection, customer_id, id, covers)? } else { vec![] };
    Ok(WithdrawalCheck { customer_id, partner_id, is_current, uncovered })
}

/// The partners, present and former, that an acceptance covers and that have no other one.
fn uncovered_without(
    connection: &mut Connection,
    customer_id: Uuid,
    id: Uuid,
    covers: Covers,
) -> Result<Vec<Uuid>, Error> {
    let related = related_partners(connection, customer_id)?;
    let remaining = acceptances_cover(connection, customer_id, &related, id)?;
    Ok(uncovered(covers, &remaining, &related))
}

/// Stores a withdrawal, if it is new, and finds the partners, present and former, that it covered and that have no
/// acceptance now. `covers` is absent where another acceptance takes its place.
fn withdraw(
    change: &mut Change<'_>,
    id: Uuid,
    customer_id: Uuid,
    covers: Option<Covers>,
    new: Option<Withdrawal>,
    event: impl FnOnce(Vec<Uuid>) -> Event,
) -> Result<Uncovered, ChangeError> {
    if let Some(withdrawal) = new {
        acceptance_withdraw(change.connection, id, withdrawal)?;
    }
    let partners = match covers {
        Some(covers) => uncovered_without(change.connection, customer_id, id, covers)?,
        None => vec![],
    };
    if new.is_some() {
        let revision = change.record(&event(partners.clone()))?;
        customer_set_acceptance_revision(change.connection, customer_id, revision)?;
    }
    let relationships = relationships_with(change.connection, customer_id, &partners)?;
    Ok(Uncovered { partners, relationships })
}
