//! Access to what a request names: the resource, or the refusal `RESOURCE_NOT_FOUND`, which is the same for what
//! does not exist and for what the viewer may not see (ROLE-6).

use chassis::database::Connection;
use uuid::Uuid;

use crate::rules::Refusal;
use crate::rules::attestation::Attestation;
use crate::rules::invitation::Invitation;
use crate::rules::party::{Customer, Partner, Relationship};
use crate::rules::proposal::Proposal;
use crate::rules::signature::Signature;
use crate::rules::template::Template;
use crate::store::acceptance::{attestation_find, signature_find};
use crate::store::change::ChangeError;
use crate::store::customer::{Viewer, customer_find, relationship_active, relationship_find};
use crate::store::invitation::invitation_find;
use crate::store::partner::partner_find;
use crate::store::proposal::proposal_find;
use crate::store::template::template_find;

/// A customer that the viewer may see.
pub(crate) fn require_customer(
    connection: &mut Connection,
    viewer: Viewer,
    id: Uuid,
) -> Result<Customer, ChangeError> {
    Ok(customer_find(connection, viewer, id)?.ok_or(Refusal::NotFound { resource: "customer", id })?)
}

/// A registered partner, for callers that may know all of them or name their own.
pub(crate) fn require_partner(connection: &mut Connection, id: Uuid) -> Result<Partner, ChangeError> {
    Ok(partner_find(connection, id)?.ok_or(Refusal::NotFound { resource: "partner", id })?)
}

/// A published template, retired or not.
pub(crate) fn require_template(connection: &mut Connection, id: Uuid) -> Result<Template, ChangeError> {
    Ok(template_find(connection, id)?.ok_or(Refusal::NotFound { resource: "template", id })?)
}

/// An active relationship of a partner, as payer or as reseller, with a customer.
pub(crate) fn require_relationship(
    connection: &mut Connection,
    partner_id: Uuid,
    customer_id: Uuid,
) -> Result<Relationship, ChangeError> {
    let relationship = relationship_find(connection, partner_id, customer_id)?;
    Ok(relationship.ok_or(Refusal::NotFound { resource: "customer", id: customer_id })?)
}

/// An attestation of the partner's own, on a customer that it may see.
pub(crate) fn require_own_attestation(
    connection: &mut Connection,
    partner_id: Uuid,
    id: Uuid,
) -> Result<Attestation, ChangeError> {
    let unseen = || Refusal::NotFound { resource: "attestation", id };
    let known = attestation_find(connection, id)?;
    let own = known.filter(|attestation| attestation.partner_id == partner_id).ok_or_else(unseen)?;
    relationship_find(connection, partner_id, own.customer_id)?.ok_or_else(unseen)?;
    Ok(own)
}

/// A signature of a customer that the viewer may see. Partners see what counts: the current ones.
pub(crate) fn require_signature(
    connection: &mut Connection,
    viewer: Viewer,
    id: Uuid,
) -> Result<Signature, ChangeError> {
    let unseen = || Refusal::NotFound { resource: "signature", id };
    let signature = signature_find(connection, id)?.ok_or_else(unseen)?;
    let is_current = signature.superseded_at.is_none() && signature.withdrawn.is_none();
    let may_see = is_current || !matches!(viewer, Viewer::Partner(_));
    if may_see && customer_find(connection, viewer, signature.customer_id)?.is_some() {
        Ok(signature)
    } else {
        Err(unseen().into())
    }
}

/// An invitation of the partner's own, as payer or as reseller.
pub(crate) fn require_own_invitation(
    connection: &mut Connection,
    partner_id: Uuid,
    id: Uuid,
) -> Result<Invitation, ChangeError> {
    let unseen = || Refusal::NotFound { resource: "invitation", id };
    let invitation = invitation_find(connection, id)?.ok_or_else(unseen)?;
    let Relationship { payer_id, reseller_id } = invitation.relationship;
    let mut is_own = payer_id == partner_id || reseller_id == Some(partner_id);
    if let Some(customer_id) = invitation.customer_id {
        is_own = is_own && relationship_find(connection, partner_id, customer_id)?.is_some();
    }
    if is_own { Ok(invitation) } else { Err(unseen().into()) }
}

/// A proposal of the partner's own, as reseller or as provider, while the relationship is active that it was made within.
pub(crate) fn require_own_proposal(
    connection: &mut Connection,
    partner_id: Uuid,
    id: Uuid,
) -> Result<Proposal, ChangeError> {
    let unseen = || Refusal::NotFound { resource: "proposal", id };
    let known = proposal_find(connection, id)?;
    let is_own = |of: &Proposal| of.reseller_id == partner_id || of.provider_id == partner_id;
    let own = known.filter(is_own).ok_or_else(unseen)?;
    let within = Relationship { payer_id: own.provider_id, reseller_id: Some(own.reseller_id) };
    relationship_active(connection, within, own.customer_id)?.ok_or_else(unseen)?;
    Ok(own)
}
