//! Customers and their relationships with partners (CUS-1 to CUS-3): the effects that CreateCustomer and
//! the acceptance of an invitation share, and the end of a relationship.

use chassis::clock::new_salt;
use uuid::Uuid;

use crate::rules::Refusal;
use crate::rules::event::Event;
use crate::rules::party::{Cloud, Customer, Named, Partner, Profile, Relationship, relationship_of};
use crate::store::change::{Change, ChangeError, commitment};
use crate::store::customer::{
    active_partners, customer_insert, customer_set_acceptance_revision, domain_is_taken, relationship_end,
    relationship_insert,
};
use crate::store::partner::link_exists;

/// The relationship that the partner enters with the other partner it names, if the two are linked.
pub(crate) fn named_relationship(
    change: &mut Change<'_>,
    partner: &Partner,
    provider_id: Option<Uuid>,
    reseller_id: Option<Uuid>,
) -> Result<Relationship, ChangeError> {
    let named = match (provider_id, reseller_id) {
        (Some(provider), _) => {
            Named::Provider(provider, link_exists(change.connection, provider, partner.id)?)
        }
        (None, Some(reseller)) => {
            Named::Reseller(reseller, link_exists(change.connection, partner.id, reseller)?)
        }
        (None, None) => Named::Neither,
    };
    Ok(relationship_of(partner, named)?)
}

/// Stores a new customer and its first relationship.
pub(crate) fn create(
    change: &mut Change<'_>,
    id: Uuid,
    profile: Profile,
    cloud: Cloud,
    relationship: Relationship,
    by: Uuid,
) -> Result<Customer, ChangeError> {
    if domain_is_taken(change.connection, &profile.domain)? {
        return Err(Refusal::DomainTaken.into());
    }
    let Profile { company_name, domain, country, primary_contact } = profile;
    let contact_salt = new_salt();
    let revision = change.record(&Event::CustomerCreated {
        customer_id: id,
        company_name: company_name.clone(),
        domain: domain.clone(),
        country: country.clone(),
        cloud,
        contact_commitment: commitment(&contact_salt, &primary_contact),
        by,
    })?;
    let mut customer = Customer {
        id,
        company_name,
        domain,
        country,
        cloud,
        primary_contact,
        contact_salt,
        created_at: change.now,
        first_purchase_at: None,
        acceptance_revision: revision,
        revision,
    };
    customer_insert(change.connection, &customer)?;
    establish_relationship(change, &mut customer, relationship, by)?;
    Ok(customer)
}

/// Stores a relationship that does not exist yet.
pub(crate) fn establish_relationship(
    change: &mut Change<'_>,
    customer: &mut Customer,
    relationship: Relationship,
    by: Uuid,
) -> Result<(), ChangeError> {
    let revision = change.record(&Event::RelationshipEstablished {
        partner_id: relationship.payer_id,
        customer_id: customer.id,
        reseller_id: relationship.reseller_id,
        by,
    })?;
    relationship_insert(change.connection, relationship, customer.id, change.now, revision)?;
    customer_set_acceptance_revision(change.connection, customer.id, revision)?;
    customer.acceptance_revision = revision;
    Ok(())
}

/// Ends the active relationship that has the given number.
pub(crate) fn end_relationship(
    change: &mut Change<'_>,
    customer_id: Uuid,
    relationship: Relationship,
    number: i64,
    by: Uuid,
) -> Result<(), ChangeError> {
    relationship_end(change.connection, number, change.now)?;
    let remaining = active_partners(change.connection, customer_id)?;
    let revision = change.record(&Event::RelationshipEnded {
        partner_id: relationship.payer_id,
        customer_id,
        reseller_id: relationship.reseller_id,
        others_remain: remaining.contains(&relationship.payer_id),
        by,
    })?;
    Ok(customer_set_acceptance_revision(change.connection, customer_id, revision)?)
}
