//! Withdrawal of an acceptance (WD-1): the effect that WithdrawAttestation and WithdrawSignature share. Both report which of
//! the partners that it covered have no acceptance now, also when the withdrawal had been made before.

use uuid::Uuid;

use super::visibility::require_own_attestation;
use crate::rules::Refusal;
use crate::rules::attestation::Attestation;
use crate::rules::event::Event;
use crate::rules::signature::Signature;
use crate::rules::withdrawal::{Covers, Withdrawal, WithdrawalReason, check_withdrawal, uncovered};
use crate::store::acceptance::{
    acceptance_withdraw, acceptances_cover, attestations_current, signature_find, signatures_current,
};
use crate::store::change::{Change, ChangeError};
use crate::store::customer::{customer_set_acceptance_revision, related_partners};

/// Withdraws an attestation of the partner's own; names the partner if it has no acceptance now.
pub(crate) fn withdraw_attestation(
    change: &mut Change<'_>,
    partner_id: Uuid,
    id: Uuid,
    reason: WithdrawalReason,
    by: Uuid,
) -> Result<(Attestation, Vec<Uuid>), ChangeError> {
    let mut attestation = require_own_attestation(change.connection, partner_id, id)?;
    let Attestation { customer_id, agreement_type, .. } = attestation;
    let mut current = attestations_current(change.connection, partner_id, &[customer_id])?.into_iter();
    let current = current.find(|(current, _)| current.agreement_type == agreement_type);
    let current = current.map(|(current, _)| current.id);
    let mut new = None;
    if check_withdrawal(id, attestation.superseded_at, attestation.withdrawn, current)? {
        new = Some(Withdrawal { at: change.now, reason, by });
        attestation.withdrawn = new;
    }
    let covers = Covers::Partner(partner_id);
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
    Ok((attestation, uncovered))
}

/// Withdraws a signature of the customer's own; names the partners, present and former, that have no acceptance now.
pub(crate) fn withdraw_signature(
    change: &mut Change<'_>,
    customer_id: Uuid,
    id: Uuid,
    reason: WithdrawalReason,
    by: Uuid,
) -> Result<(Signature, Vec<Uuid>), ChangeError> {
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
    let uncovered = withdraw(change, id, customer_id, Covers::Everyone, new, |uncovered_partner_ids| {
        Event::SignatureWithdrawn { signature_id: id, customer_id, reason, uncovered_partner_ids, by }
    })?;
    Ok((signature, uncovered))
}

/// Stores a withdrawal, if it is new, and finds the partners, present and former, that it covered and that have no
/// acceptance now.
fn withdraw(
    change: &mut Change<'_>,
    id: Uuid,
    customer_id: Uuid,
    covers: Covers,
    new: Option<Withdrawal>,
    event: impl FnOnce(Vec<Uuid>) -> Event,
) -> Result<Vec<Uuid>, ChangeError> {
    if let Some(withdrawal) = new {
        acceptance_withdraw(change.connection, id, withdrawal)?;
    }
    let related = related_partners(change.connection, customer_id)?;
    let remaining = acceptances_cover(change.connection, customer_id, &related)?;
    let uncovered = uncovered(covers, &remaining, &related);
    if new.is_some() {
        let revision = change.record(&event(uncovered.clone()))?;
        customer_set_acceptance_revision(change.connection, customer_id, revision)?;
    }
    Ok(uncovered)
}
