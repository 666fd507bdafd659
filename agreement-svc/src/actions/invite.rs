//! Invitations (INV-1 to INV-3): the effect that CreateInvitation and CreateCustomer share.

use chassis::clock::{new_id, new_salt};
use uuid::Uuid;

use super::template::live_instead_of;
use super::visibility::require_template;
use crate::rules::event::Event;
use crate::rules::invitation::{Invitation, InvitationKind, LIFETIME_DEFAULT};
use crate::rules::language::SHIPPED;
use crate::rules::party::{Cloud, Contact, Customer, Relationship};
use crate::rules::signature::{check_signable, may_sign_directly};
use crate::rules::{Refusal, Time};
use crate::store::acceptance::first_signed_at;
use crate::store::change::{Change, ChangeError, commitment};
use crate::store::invitation::invitation_insert;

/// An invitation to be stored.
pub(crate) struct NewInvitation {
    pub kind: InvitationKind,
    pub relationship: Relationship,
    pub template_id: Uuid,
    pub recipient: Option<Contact>,
    /// `None` is the customer's language, or English.
    pub language: Option<String>,
    /// `None` is the usual time from now.
    pub expires_at: Option<Time>,
    /// The partner's user who invites (ROLE-7).
    pub by: Uuid,
}

/// Decides on and stores an invitation, of one customer or open to any.
pub(crate) fn invite(
    change: &mut Change<'_>,
    may_invite: bool,
    cloud: Cloud,
    customer: Option<&Customer>,
    new: NewInvitation,
) -> Result<Invitation, ChangeError> {
    if !may_invite {
        return Err(Refusal::InvitationsOff.into());
    }
    let now = change.now;
    let expires_at = new.expires_at.unwrap_or(now + LIFETIME_DEFAULT);
    let template = require_template(change.connection, new.template_id)?;
    let cloud = customer.map_or(cloud, |customer| customer.cloud);
    let live = live_instead_of(change.connection, &template, now)?;
    check_signable(cloud, &template, live, now)?;
    if let Some(customer) = customer {
        let first_signed_at = first_signed_at(change.connection, customer.id)?;
        if !may_sign_directly(customer.first_purchase_at, first_signed_at) {
            return Err(Refusal::MustBeAttested.into());
        }
    }
    let contact_salt = if new.recipient.is_some() { new_salt() } else { String::new() };
    let id = new_id(now);
    let customer_id = customer.map(|customer| customer.id);
    let revision = change.record(&Event::InvitationCreated {
        invitation_id: id,
        kind: new.kind,
        partner_id: new.relationship.payer_id,
        reseller_id: new.relationship.reseller_id,
        customer_id,
        template_id: new.template_id,
        recipient_commitment: new.recipient.as_ref().map(|recipient| commitment(&contact_salt, recipient)),
        expires_at,
        by: new.by,
    })?;
    let invitation = Invitation {
        id,
        kind: new.kind,
        relationship: new.relationship,
        customer_id,
        template_id: new.template_id,
        language: new.language.unwrap_or_else(|| customer.map_or(SHIPPED[0], Customer::language).to_owned()),
        recipient: new.recipient,
        contact_salt,
        created_at: now,
        created_by: new.by,
        expires_at,
        settled: None,
        revision,
    };
    invitation_insert(change.connection, &invitation)?;
    Ok(invitation)
}
