//! Attestation (ATT-1 to ATT-10): the effect that CreateAttestation, each row of ImportAttestations and CreateCustomer
//! share.

use chassis::clock::{new_id, new_salt};
use uuid::Uuid;

use super::rate::require_room_for_change;
use super::template::live_instead_of;
use super::visibility::{require_customer, require_partner, require_relationship, require_template};
use crate::rules::attestation::{self, Attestation, Claim, Facts, check_attester};
use crate::rules::event::Event;
use crate::rules::party::{Customer, Partner};
use crate::store::acceptance::{acceptance_supersede, attestation_current, attestation_insert};
use crate::store::change::{Change, ChangeError, commitment};
use crate::store::customer::{Viewer, customer_set_acceptance_revision};
use crate::store::notification::notification_insert;

/// An attestation to be stored.
pub(crate) struct NewAttestation {
    pub template_id: Uuid,
    pub claim: Claim,
    /// The partner's user who attests (ROLE-7).
    pub by: Uuid,
}

/// Decides whether the partner may attest for the customer (ROLE-6, ATT-1), and attests.
pub(crate) fn attest_as_partner(
    change: &mut Change<'_>,
    partner_id: Uuid,
    customer_id: Uuid,
    new: NewAttestation,
) -> Result<Attestation, ChangeError> {
    let relationship = require_relationship(change.connection, partner_id, customer_id)?;
    let mut customer = require_customer(change.connection, Viewer::Everything, customer_id)?;
    let attester = require_partner(change.connection, partner_id)?;
    check_attester(&attester, relationship)?;
    attest(change, &attester, &mut customer, new)
}

/// Decides on and stores an attestation of a partner that may attest for the customer, and queues the mail about it.
pub(crate) fn attest(
    change: &mut Change<'_>,
    attester: &Partner,
    customer: &mut Customer,
    new: NewAttestation,
) -> Result<Attestation, ChangeError> {
    let NewAttestation { template_id, claim, by } = new;
    let now = change.now;
    let template = require_template(change.connection, template_id)?;
    let current = attestation_current(change.connection, attester.id, customer.id, template.agreement_type)?;
    let facts = Facts {
        customer,
        template: &template,
        live_template_id: live_instead_of(change, &template)?,
        current: current.as_ref().map(|(attestation, effective_from)| (attestation, *effective_from)),
    };
    let accepted = attestation::attest(&facts, &claim, now)?;
    require_room_for_change(change, Some(attester.id), customer.id)?;

    let contact_salt = new_salt();
    let id = new_id(now);
    let revision = change.record(&Event::Attested {
        attestation_id: id,
        partner_id: attester.id,
        customer_id: customer.id,
        agreement_type: accepted.agreement_type,
        template_id,
        template_version: accepted.template_version,
        contact_commitment: commitment(&contact_salt, &claim.contact),
        agreed_at: claim.agreed_at,
        supersedes: accepted.supersedes,
        by,
    })?;
    if let Some(superseded) = accepted.supersedes {
        acceptance_supersede(change.connection, superseded, now)?;
    }
    let attestation = Attestation {
        id,
        partner_id: attester.id,
        customer_id: customer.id,
        agreement_type: accepted.agreement_type,
        template_id,
        template_version: accepted.template_version,
        contact: claim.contact,
        contact_salt,
        agreed_at: claim.agreed_at,
        recorded_at: now,
        recorded_by: by,
        superseded_at: None,
        withdrawn: None,
        revision,
    };
    attestation_insert(change.connection, &attestation)?;
    notification_insert(change.connection, &attestation, now)?;
    customer_set_acceptance_revision(change.connection, customer.id, revision)?;
    customer.acceptance_revision = revision;
    Ok(attestation)
}
