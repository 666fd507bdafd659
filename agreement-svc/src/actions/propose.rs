//! Proposals (PRO-1): a reseller proposes, and may withdraw; the provider decides.

use chassis::clock::{new_id, new_salt};
use chassis::database::row::at;
use uuid::Uuid;

use super::attest::{NewAttestation, attest_as_partner};
use super::template::{live_instead_of, record_shown};
use super::visibility::{require_customer, require_own_proposal, require_template};
use crate::rules::Refusal;
use crate::rules::attestation::{self, Attestation, Claim, Facts, ProposedBy};
use crate::rules::event::Event;
use crate::rules::party::Relationship;
use crate::rules::proposal::{Decided, LIFETIME, Proposal, RejectionReason, check_one_more};
use crate::store::acceptance::attestation_find;
use crate::store::change::{Change, ChangeError, attestation_commitment};
use crate::store::customer::{Viewer, relationship_active};
use crate::store::event::event_find;
use crate::store::proposal::{proposal_decide, proposal_insert, proposals_counting};

/// A proposal to be stored.
pub(crate) struct NewProposal {
    pub provider_id: Uuid,
    pub customer_id: Uuid,
    pub template_id: Uuid,
    pub claim: Claim,
    /// The reseller's user who proposes (ROLE-7).
    pub by: Uuid,
}

/// Decides on and stores a proposal of a reseller. It is checked as an attestation is, but not against those of the provider,
/// which are not for the reseller to know.
pub(crate) fn propose(
    change: &mut Change<'_>,
    reseller_id: Uuid,
    new: NewProposal,
) -> Result<Proposal, ChangeError> {
    let NewProposal { provider_id, customer_id, template_id, mut claim, by } = new;
    let now = change.now;
    let customer = require_customer(change.connection, Viewer::Partner(reseller_id), customer_id)?;
    let within = Relationship { payer_id: provider_id, reseller_id: Some(reseller_id) };
    let unrelated = Refusal::NotFound { resource: "relationship", id: customer_id };
    relationship_active(change.connection, within, customer_id)?.ok_or(unrelated)?;
    let template = require_template(change.connection, template_id)?;
    let live_template_id = live_instead_of(change.connection, &template, now)?;
    let facts = Facts { customer: &customer, template: &template, live_template_id, current: None };
    let accepted = attestation::attest(&facts, &claim, now)?;
    if let Some(shown) = claim.details.shown_text.take() {
        let recorded = record_shown(change, (template_id, accepted.template_version), &shown);
        claim.details.shown_text = Some(recorded.map_err(|error| error.within("details."))?);
    }
    check_one_more(proposals_counting(change.connection, [reseller_id, provider_id, customer_id], now)?)?;

    let mut proposal = Proposal {
        id: new_id(now),
        reseller_id,
        provider_id,
        customer_id,
        template_id,
        contact: claim.contact,
        contact_salt: new_salt(),
        agreed_at: claim.agreed_at,
        details: claim.details,
        proposed_at: now,
        proposed_by: by,
        expires_at: now + LIFETIME,
        decided: None,
        // Of its event, which has no number yet.
        revision: 0,
    };
    proposal.revision = change.record(&event_of(&proposal))?;
    proposal_insert(change.connection, &proposal)?;
    Ok(proposal)
}

/// What the history says of a proposal that is not decided.
fn event_of(proposal: &Proposal) -> Event {
    let Proposal { contact_salt, contact, details, .. } = proposal;
    Event::AttestationProposed {
        proposal_id: proposal.id,
        partner_id: proposal.provider_id,
        reseller_id: proposal.reseller_id,
        customer_id: proposal.customer_id,
        template_id: proposal.template_id,
        contact_commitment: attestation_commitment(contact_salt, contact, details),
        agreed_at: proposal.agreed_at,
        evidence_sha256: Some(details.evidence_sha256.clone()).filter(|digest| !digest.is_empty()),
        shown_text: details.shown_text.clone(),
        expires_at: proposal.expires_at,
        by: proposal.proposed_by,
    }
}

/// Attests what was proposed, as the provider, unless it did before.
pub(crate) fn approve(
    change: &mut Change<'_>,
    provider_id: Uuid,
    id: Uuid,
    (by, client): (Uuid, Option<String>),
) -> Result<(Proposal, Attestation), ChangeError> {
    let mut proposal = require_addressed_proposal(change, provider_id, id)?;
    let now = change.now;
    if let Some(attestation_id) = proposal.approved_before(now)? {
        let unseen = Refusal::NotFound { resource: "attestation", id: attestation_id };
        let attestation = attestation_find(change.connection, attestation_id)?.ok_or(unseen)?;
        return Ok((proposal, attestation));
    }
    // The row may have been altered since the reseller proposed.
    let proposed = event_find(change.connection, proposal.revision)?;
    if proposed.is_none_or(|proposed| proposed.event != event_of(&proposal)) {
        return Err(at("proposal", &id.to_string()).corrupt("revision").into());
    }
    let Proposal { reseller_id, customer_id, template_id, agreed_at, proposed_by: user_id, .. } = proposal;
    let template = require_template(change.connection, template_id)?;
    // Of a date within the tolerance, another version may have been in force.
    let [proposed, approved] = [proposal.proposed_at, now]
        .map(|at| template.accepted_at(agreed_at, at).map(|version| version.number));
    let (contact, details) =
        (proposal.contact.clone(), proposal.details.replaced(false, proposed != approved));
    let new = NewAttestation {
        template_id,
        claim: Claim { contact, agreed_at, details },
        by,
        client,
        proposed_by: Some(ProposedBy { proposal_id: id, partner_id: reseller_id, user_id }),
    };
    let attestation = attest_as_partner(change, provider_id, customer_id, new)?;
    let attestation_id = attestation.id;
    change.record(&Event::ProposalApproved {
        proposal_id: id,
        partner_id: provider_id,
        reseller_id,
        customer_id,
        attestation_id,
        by,
    })?;
    let decided = Decided::Approved { at: now, attestation_id };
    proposal_decide(change.connection, id, decided)?;
    proposal.decided = Some(decided);
    Ok((proposal, attestation))
}

/// Rejects a proposal, as the provider, unless it did before.
pub(crate) fn reject(
    change: &mut Change<'_>,
    provider_id: Uuid,
    id: Uuid,
    reason: RejectionReason,
    by: Uuid,
) -> Result<Proposal, ChangeError> {
    let mut proposal = require_addressed_proposal(change, provider_id, id)?;
    let decided = Decided::Rejected { at: change.now, reason };
    if proposal.end(decided, change.now)? {
        change.record(&Event::ProposalRejected {
            proposal_id: id,
            partner_id: provider_id,
            reseller_id: proposal.reseller_id,
            customer_id: proposal.customer_id,
            reason,
            by,
        })?;
        proposal_decide(change.connection, id, decided)?;
    }
    Ok(proposal)
}

/// Takes a proposal back, as the reseller, unless it did before.
pub(crate) fn withdraw(
    change: &mut Change<'_>,
    reseller_id: Uuid,
    id: Uuid,
    by: Uuid,
) -> Result<Proposal, ChangeError> {
    let mut proposal = require_own_proposal(change.connection, reseller_id, id)?;
    if proposal.reseller_id != reseller_id {
        let problem = "names a proposal that another partner made; as its provider, reject it";
        return Err(Refusal::field("proposal_id", problem).into());
    }
    let decided = Decided::Withdrawn { at: change.now };
    if proposal.end(decided, change.now)? {
        change.record(&Event::ProposalWithdrawn {
            proposal_id: id,
            partner_id: proposal.provider_id,
            reseller_id,
            customer_id: proposal.customer_id,
            by,
        })?;
        proposal_decide(change.connection, id, decided)?;
    }
    Ok(proposal)
}

/// A proposal that the partner, as provider, decides on. The reseller sees it, but does not decide.
fn require_addressed_proposal(
    change: &mut Change<'_>,
    partner_id: Uuid,
    id: Uuid,
) -> Result<Proposal, ChangeError> {
    let proposal = require_own_proposal(change.connection, partner_id, id)?;
    let provider_id = proposal.provider_id;
    if provider_id == partner_id {
        Ok(proposal)
    } else {
        Err(Refusal::ResellerCannotAttest { provider_id }.into())
    }
}
