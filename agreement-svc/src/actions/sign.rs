//! Direct signature by the customer (DIR-1 to DIR-4): the effect that SignAgreement and AcceptInvitation share.

use chassis::clock::new_id;
use uuid::Uuid;

use super::customer::{Author, create, establish_relationship};
use super::rate::require_room_for_change;
use super::template::live_instead_of;
use super::visibility::{require_partner, require_template};
use crate::rules::Refusal;
use crate::rules::event::Event;
use crate::rules::invitation::{Invitation, InvitationKind};
use crate::rules::party::{Customer, Profile, Relationship};
use crate::rules::signature::{self, Facts, Signature, Signing, check_signable};
use crate::rules::template::Template;
use crate::store::acceptance::{acceptance_supersede, first_signed_at, signature_insert, signatures_current};
use crate::store::change::{Change, ChangeError};
use crate::store::contact::{contact_set, contacts};
use crate::store::customer::{Viewer, customer_find, customer_set_acceptance_revision, relationship_active};
use crate::store::invitation::invitation_settle;
use crate::store::partner::{link_exists, partner_find};

/// A customer's acceptance of an invitation.
pub(crate) struct InvitationAcceptance {
    /// The accepting company's own tenant.
    pub tenant_id: Uuid,
    /// What the company says of itself, for a tenant that is no customer yet.
    pub company: Option<Profile>,
    /// The version that the company was shown (DIR-1).
    pub shown_version: u32,
    /// The company's user who accepts (ROLE-7).
    pub by: Uuid,
}

/// Accepts an invitation (INV-2): the customer enters the relationship that it offers, and signs. Gives the
/// signature back, or none where the customer's partner has to attest instead (INV-3). An invitation that the same
/// customer had accepted before changes nothing, and gives the customer's current signature of that type, if any. The
/// caller has checked the token of the link.
pub(crate) fn accept_invitation(
    change: &mut Change<'_>,
    invitation: &mut Invitation,
    new: InvitationAcceptance,
) -> Result<Option<Signature>, ChangeError> {
    let InvitationAcceptance { tenant_id, company, shown_version, by } = new;
    let is_new = invitation.accept(tenant_id, change.now)?;
    let template = require_template(change.connection, invitation.template_id)?;
    if !is_new {
        let current = signatures_current(change.connection, tenant_id)?;
        return Ok(current.into_iter().find(|current| current.agreement_type == template.agreement_type));
    }
    let mut customer = enrol(change, invitation, &template, tenant_id, company, by)?;
    let signature = match sign(change, &mut customer, &template, shown_version, by) {
        Ok(signature) => Some(signature),
        // The relationship stands, so that the partner can attest (INV-3).
        Err(ChangeError::Refused(Refusal::ContactPartner))
            if invitation.kind == InvitationKind::RelationshipAndAgreement =>
        {
            None
        }
        Err(other) => return Err(other),
    };
    change.record(&Event::InvitationAccepted {
        invitation_id: invitation.id,
        partner_id: invitation.relationship.payer_id,
        customer_id: tenant_id,
        by,
    })?;
    invitation_settle(change.connection, invitation)?;
    Ok(signature)
}

/// The customer that accepts an invitation, in the relationship that the invitation offers.
fn enrol(
    change: &mut Change<'_>,
    invitation: &Invitation,
    template: &Template,
    tenant_id: Uuid,
    company: Option<Profile>,
    by: Uuid,
) -> Result<Customer, ChangeError> {
    let known = customer_find(change.connection, Viewer::Everything, tenant_id)?;
    if invitation.kind == InvitationKind::Agreement {
        return Ok(known.ok_or(Refusal::NotFound { resource: "customer", id: tenant_id })?);
    }
    if partner_find(change.connection, tenant_id)?.is_some() {
        return Err(Refusal::TenantOfOtherKind { tenant_id, is_partner: true }.into());
    }
    let relationship = invitation.relationship;
    let payer = require_partner(change.connection, relationship.payer_id)?;
    if let Some(reseller_id) = relationship.reseller_id
        && !link_exists(change.connection, payer.id, reseller_id)?
    {
        return Err(Refusal::ResellerNotLinked { provider_id: payer.id, reseller_id }.into());
    }
    let cloud = known.as_ref().map_or(payer.cloud, |customer| customer.cloud);
    let live = live_instead_of(change, template)?;
    check_signable(cloud, template, live, change.now)?;
    let Some(mut customer) = known else {
        let missing = || Refusal::field("company", "is required: your tenant is not a customer yet");
        let company = company.ok_or_else(missing)?;
        let author = Author { partner_id: None, user_id: by };
        let customer = create(change, Some(tenant_id), company, cloud, relationship, author)?;
        name_contact(change, invitation, tenant_id)?;
        return Ok(customer);
    };
    if relationship_active(change.connection, relationship, tenant_id)?.is_none() {
        establish_relationship(change, &mut customer, relationship, by)?;
        name_contact(change, invitation, tenant_id)?;
    }
    Ok(customer)
}

/// The partner whom the relationship gives its first contact takes the recipient of its invitation (ATT-9).
fn name_contact(
    change: &mut Change<'_>,
    invitation: &Invitation,
    customer_id: Uuid,
) -> Result<(), ChangeError> {
    let Relationship { payer_id, reseller_id } = invitation.relationship;
    let inviter = reseller_id.unwrap_or(payer_id);
    let has_none = contacts(change.connection, customer_id)?.of(inviter).is_none();
    if let Some(recipient) =
        invitation.recipient.as_ref().filter(|recipient| has_none && !recipient.is_empty())
    {
        let salt = &invitation.contact_salt;
        contact_set(change.connection, customer_id, Some(inviter), recipient, salt, change.now)?;
    }
    Ok(())
}

/// Decides on and stores a customer's signature; the current one where it is of that version.
pub(crate) fn sign(
    change: &mut Change<'_>,
    customer: &mut Customer,
    template: &Template,
    shown_version: u32,
    by: Uuid,
) -> Result<Signature, ChangeError> {
    let now = change.now;
    let current = signatures_current(change.connection, customer.id)?;
    let current = current.into_iter().find(|current| current.agreement_type == template.agreement_type);
    let facts = Facts {
        customer,
        template,
        live_template_id: live_instead_of(change, template)?,
        current: current.as_ref(),
        first_signed_at: first_signed_at(change.connection, customer.id)?,
    };
    let supersedes = match (signature::sign(&facts, shown_version, now)?, current) {
        (Signing::Already, Some(current)) => return Ok(current),
        (Signing::Already, None) => None,
        (Signing::New { supersedes }, _) => supersedes,
    };
    require_room_for_change(change, None, customer.id)?;
    let id = new_id(now);
    let revision = change.record(&Event::Signed {
        signature_id: id,
        customer_id: customer.id,
        agreement_type: template.agreement_type,
        template_id: template.id,
        template_version: shown_version,
        supersedes,
        by,
    })?;
    if let Some(superseded) = supersedes {
        acceptance_supersede(change.connection, superseded, now)?;
    }
    let signature = Signature {
        id,
        customer_id: customer.id,
        agreement_type: template.agreement_type,
        template_id: template.id,
        template_version: shown_version,
        signed_at: now,
        signed_by: by,
        superseded_at: None,
        withdrawn: None,
        revision,
    };
    signature_insert(change.connection, &signature)?;
    customer_set_acceptance_revision(change.connection, customer.id, revision)?;
    customer.acceptance_revision = revision;
    Ok(signature)
}
