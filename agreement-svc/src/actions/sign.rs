//! Direct signature by the customer (DIR-1 to DIR-4): the effect that SignAgreement and AcceptInvitation share.

use chassis::clock::new_id;
use chassis::database::Connection;
use uuid::Uuid;

use super::customer::{Author, create, establish_relationship};
use super::rate::require_room_for_change;
use super::template::{live_instead_of, record_shown};
use super::visibility::{require_partner, require_template};
use crate::rules::event::Event;
use crate::rules::invitation::{Invitation, InvitationKind};
use crate::rules::party::{Customer, Profile};
use crate::rules::shown::ShownText;
use crate::rules::signature::{self, Facts, Signature, Signing, check_signable, check_signer};
use crate::rules::template::Template;
use crate::rules::{Refusal, Time};
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
    /// What the company was shown (DIR-1).
    pub shown: Shown,
    /// The company's user who accepts (ROLE-7).
    pub by: Uuid,
}

/// What a client showed to the user who signs.
pub(crate) struct Shown {
    pub version: u32,
    /// Absent: the text for the customer's own country and language.
    pub text: Option<ShownText>,
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
    let InvitationAcceptance { tenant_id, company, shown, by } = new;
    let is_new = invitation.accept(tenant_id, change.now)?;
    let template = require_template(change.connection, invitation.template_id)?;
    if !is_new {
        let current = signatures_current(change.connection, tenant_id)?;
        return Ok(current.into_iter().find(|current| current.agreement_type == template.agreement_type));
    }
    let mut customer = enrol(change, invitation, &template, tenant_id, company, by)?;
    let signature = match sign(change, &mut customer, &template, shown, by) {
        Ok(signature) => Some(signature),
        // The relationship stands, so that the partner can attest (INV-3).
        Err(ChangeError::Refused(Refusal::ContactPartner { .. }))
            if invitation.kind == InvitationKind::RelationshipAndAgreement =>
        {
            None
        }
        Err(ChangeError::Refused(refusal)) => {
            return Err(with_inviter(change.connection, invitation, refusal)?.into());
        }
        Err(failed) => return Err(failed),
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
    let live = live_instead_of(change.connection, template, change.now)?;
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
    let inviter = invitation.relationship.inviter();
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
    shown: Shown,
    by: Uuid,
) -> Result<Signature, ChangeError> {
    let now = change.now;
    let current = signatures_current(change.connection, customer.id)?;
    let current = current.into_iter().find(|current| current.agreement_type == template.agreement_type);
    let facts = Facts {
        customer,
        template,
        live_template_id: live_instead_of(change.connection, template, change.now)?,
        current: current.as_ref(),
        first_signed_at: first_signed_at(change.connection, customer.id)?,
    };
    let supersedes = match (signature::sign(&facts, shown.version, now)?, current) {
        (Signing::Already, Some(current)) => return Ok(current),
        (Signing::Already, None) => None,
        (Signing::New { supersedes }, _) => supersedes,
    };
    let text = shown.text.unwrap_or_else(|| ShownText {
        country: customer.country.clone(),
        language: customer.language().to_owned(),
        sha256: String::new(),
    });
    let text = record_shown(change, (template.id, shown.version), &text)?;
    require_room_for_change(change, None, customer.id)?;
    let id = new_id(now);
    let revision = change.record(&Event::Signed {
        signature_id: id,
        customer_id: customer.id,
        agreement_type: template.agreement_type,
        template_id: template.id,
        template_version: shown.version,
        shown_text: Some(text.clone()),
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
        template_version: shown.version,
        signed_at: now,
        signed_by: by,
        superseded_at: None,
        withdrawn: None,
        revision,
        shown_text: Some(text),
    };
    signature_insert(change.connection, &signature)?;
    customer_set_acceptance_revision(change.connection, customer.id, revision)?;
    customer.acceptance_revision = revision;
    Ok(signature)
}

/// A refusal that sends the customer to its partner, with the partner that invited it.
fn with_inviter(
    connection: &mut Connection,
    invitation: &Invitation,
    refusal: Refusal,
) -> Result<Refusal, ChangeError> {
    let Refusal::ContactPartner { language, .. } = refusal else { return Ok(refusal) };
    let inviter = require_partner(connection, invitation.relationship.inviter())?;
    Ok(Refusal::ContactPartner { partner: Some(Box::new((inviter.id, inviter.support))), language })
}

/// Why a customer cannot sign now, whatever it would sign.
pub(crate) fn refusal_to_sign(
    connection: &mut Connection,
    customer: &Customer,
) -> Result<Option<Refusal>, ChangeError> {
    Ok(check_signer(customer, first_signed_at(connection, customer.id)?).err())
}

/// Why a tenant cannot sign what it is invited to sign, so that a page can say so before it asks. A tenant that is no customer
/// yet has bought nothing.
pub(crate) fn refusal_to_sign_invited(
    connection: &mut Connection,
    invitation: &Invitation,
    tenant_id: Uuid,
    now: Time,
) -> Result<Option<Refusal>, ChangeError> {
    let template = require_template(connection, invitation.template_id)?;
    let customer = customer_find(connection, Viewer::Everything, tenant_id)?;
    if let Some(customer) = &customer
        && let Some(refusal) = refusal_to_sign(connection, customer)?
    {
        return Ok(Some(with_inviter(connection, invitation, refusal)?));
    }
    let cloud = match customer {
        Some(customer) => customer.cloud,
        None => require_partner(connection, invitation.relationship.payer_id)?.cloud,
    };
    let live = live_instead_of(connection, &template, now)?;
    Ok(check_signable(cloud, &template, live, now).err())
}
