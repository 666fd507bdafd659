//! Customers and their relationships with partners (CUS-1 to CUS-4): the effects that CreateCustomer, ImportCustomers and
//! the acceptance of an invitation share, and the end of a relationship.

use chassis::clock::{new_id, new_salt};
use chassis::database::Error;
use uuid::Uuid;

use crate::rules::event::Event;
use crate::rules::party::{Cloud, Contact, Customer, Named, Partner, Profile, Relationship, relationship_of};
use crate::rules::{Refusal, Time};
use crate::store::change::{Change, ChangeError, commitment};
use crate::store::contact::{contact_set, contacts, notice_insert};
use crate::store::customer::reference::{reference_set, references_of};
use crate::store::customer::{
    Viewer, active_partners, customer_find, customer_insert, customer_set_acceptance_revision,
    customer_set_first_purchase, customer_update, customers_find, domain_is_taken, relationship_active,
    relationship_end, relationship_insert,
};
use crate::store::partner::{link_exists, partner_find};

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

/// Whose user makes a change (ROLE-7).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Author {
    /// Absent where it is the customer itself.
    pub partner_id: Option<Uuid>,
    pub user_id: Uuid,
}

/// Stores a new customer and its first relationship. The contact is the author's. Without the id of its tenant the customer
/// gets a new one.
pub(crate) fn create(
    change: &mut Change<'_>,
    tenant_id: Option<Uuid>,
    profile: Profile,
    cloud: Cloud,
    relationship: Relationship,
    author: Author,
) -> Result<Customer, ChangeError> {
    let Author { partner_id, user_id: by } = author;
    if let Some(tenant_id) = tenant_id {
        if !customers_find(change.connection, &[tenant_id])?.is_empty() {
            return Err(Refusal::CustomerExists.into());
        }
        if partner_find(change.connection, tenant_id)?.is_some() {
            return Err(Refusal::TenantOfOtherKind { tenant_id, is_partner: true }.into());
        }
    }
    if domain_is_taken(change.connection, &profile.domain)? {
        return Err(Refusal::DomainTaken.into());
    }
    let id = tenant_id.unwrap_or_else(|| new_id(change.now));
    let Profile { company_name, domain, country, language, primary_contact } = profile;
    let contact_salt = new_salt();
    let revision = change.record(&Event::CustomerCreated {
        customer_id: id,
        company_name: company_name.clone(),
        domain: domain.clone(),
        country: country.clone(),
        cloud,
        contact_commitment: commitment(&contact_salt, &primary_contact),
        language: Some(language.clone()).filter(|language| !language.is_empty()),
        by,
    })?;
    let mut customer = Customer {
        id,
        company_name,
        domain,
        country,
        given_language: language,
        cloud,
        primary_contact,
        contact_salt,
        created_at: change.now,
        first_purchase_at: None,
        acceptance_revision: revision,
        revision,
    };
    customer_insert(change.connection, &customer)?;
    let Customer { primary_contact, contact_salt, .. } = &customer;
    contact_set(change.connection, id, partner_id, primary_contact, contact_salt, change.now)?;
    establish_relationship(change, &mut customer, relationship, by)?;
    Ok(customer)
}

/// A customer to import.
pub(crate) struct ImportedCustomer {
    pub tenant_id: Uuid,
    pub profile: Profile,
    pub provider_id: Option<Uuid>,
    pub reseller_id: Option<Uuid>,
    pub first_purchase_at: Option<Time>,
    /// The partner's external reference for it (CUS-6); empty where it has none.
    pub external_reference: String,
    /// The partner's user who imports it (ROLE-7).
    pub by: Uuid,
}

/// Creates a customer with what is known of it (CUS-4); false if it is there already, with the same data and in the same
/// relationship. Its first purchase counts in both cases, and so does the partner's external reference where it had none.
pub(crate) fn import(
    change: &mut Change<'_>,
    creator: &Partner,
    imported: ImportedCustomer,
) -> Result<bool, ChangeError> {
    let ImportedCustomer { tenant_id, profile, provider_id, reseller_id, first_purchase_at, .. } = imported;
    let (reference, by) = (imported.external_reference, imported.by);
    let relationship = named_relationship(change, creator, provider_id, reseller_id)?;
    let visible = customer_find(change.connection, Viewer::Partner(creator.id), tenant_id)?;
    let is_same = match &visible {
        Some(known) => {
            let number = reference.as_str();
            is_as_imported(change, known, (&profile, number), relationship, creator.id)?
        }
        None => false,
    };
    let customer = match visible.filter(|_| is_same) {
        Some(known) => known,
        None => {
            let author = Author { partner_id: Some(creator.id), user_id: by };
            create(change, Some(tenant_id), profile, creator.cloud, relationship, author)?
        }
    };
    if !reference.is_empty() {
        reference_set(change.connection, creator.id, customer.id, &reference)?;
    }
    if let Some(purchased_at) = first_purchase_at {
        note_purchase(change, &customer, relationship.payer_id, purchased_at, Some(by))?;
    }
    Ok(!is_same)
}

fn is_as_imported(
    change: &mut Change<'_>,
    known: &Customer,
    (profile, reference): (&Profile, &str),
    relationship: Relationship,
    partner_id: Uuid,
) -> Result<bool, Error> {
    let Profile { company_name, domain, country, language, primary_contact } = profile;
    let is_same = (language.is_empty() || *language == known.given_language)
        && (company_name, domain, country) == (&known.company_name, &known.domain, &known.country)
        && relationship_active(change.connection, relationship, known.id)?.is_some();
    let references = references_of(change.connection, partner_id, &[known.id])?;
    let number = references.get(&known.id).filter(|_| !reference.is_empty());
    let is_same = is_same && number.is_none_or(|number| number == reference);
    let contacts = contacts(change.connection, known.id)?;
    Ok(is_same && contacts.of(partner_id).is_some_and(|known| known.is_same(primary_contact)))
}

/// Records a purchase that is earlier than those which are known (DIR-4), and returns the time of the first one. `by` imported
/// it, where order-svc did not report it.
pub(crate) fn note_purchase(
    change: &mut Change<'_>,
    customer: &Customer,
    payer_id: Uuid,
    purchased_at: Time,
    by: Option<Uuid>,
) -> Result<Time, Error> {
    if let Some(first) = customer.first_purchase_at.filter(|first| *first <= purchased_at) {
        return Ok(first);
    }
    change.record(&Event::FirstPurchaseReported { customer_id: customer.id, payer_id, purchased_at, by })?;
    customer_set_first_purchase(change.connection, customer.id, purchased_at)?;
    Ok(purchased_at)
}

/// Stores a relationship that does not exist yet.
pub(crate) fn establish_relationship(
    change: &mut Change<'_>,
    customer: &mut Customer,
    relationship: Relationship,
    by: Uuid,
) -> Result<(), ChangeError> {
    // What an older version kept for all partners is for those that it knew.
    let known = contacts(change.connection, customer.id)?;
    let partners = [Some(relationship.payer_id), relationship.reseller_id].into_iter().flatten();
    for partner in partners.filter(|partner| !known.knows(*partner)) {
        contact_set(change.connection, customer.id, Some(partner), &Contact::default(), "", change.now)?;
    }
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

/// What is to be changed of a customer; what is absent stays.
pub(crate) struct CustomerChanges {
    pub company_name: Option<String>,
    pub domain: Option<String>,
    pub country: Option<String>,
    pub language: Option<String>,
    /// The author's contact: the partner's, or the customer's own.
    pub contact: Option<Contact>,
    /// The partner's external reference (CUS-6). No one else sees it, so it leaves no event and keeps the etag.
    pub external_reference: Option<String>,
}

/// Changes a customer, if its etag is still this one, and tells the addresses that a new contact replaces (ATT-9).
pub(crate) fn update(
    change: &mut Change<'_>,
    customer: &mut Customer,
    etag: &str,
    new: CustomerChanges,
    author: Author,
) -> Result<(), ChangeError> {
    if customer.revision.to_string() != etag {
        return Err(Refusal::StaleEtag.into());
    }
    let CustomerChanges { company_name, domain, country, language, contact, external_reference } = new;
    let company_name = company_name.filter(|name| *name != customer.company_name);
    let domain = domain.filter(|domain| *domain != customer.domain);
    let country = country.filter(|country| *country != customer.country);
    let language = language.filter(|language| *language != customer.given_language);
    if let Some(domain) = &domain
        && domain_is_taken(change.connection, domain)?
    {
        return Err(Refusal::DomainTaken.into());
    }
    let before = customer.revision;
    if [&company_name, &domain, &country, &language].into_iter().any(Option::is_some) {
        customer.company_name = company_name.unwrap_or_else(|| customer.company_name.clone());
        customer.revision = change.record(&Event::CustomerUpdated {
            customer_id: customer.id,
            company_name: customer.company_name.clone(),
            domain: domain.clone(),
            country: country.clone(),
            language: language.clone(),
            contact_commitment: String::new(),
            partner_id: None,
            by: author.user_id,
        })?;
        customer.domain = domain.unwrap_or_else(|| customer.domain.clone());
        customer.country = country.unwrap_or_else(|| customer.country.clone());
        customer.given_language = language.unwrap_or_else(|| customer.given_language.clone());
    }
    if let Some(contact) = contact {
        set_contact(change, customer, &contact, author)?;
    }
    if let (Some(partner_id), Some(reference)) = (author.partner_id, external_reference) {
        reference_set(change.connection, partner_id, customer.id, &reference)?;
    }
    if customer.revision != before {
        customer_update(change.connection, customer)?;
    }
    Ok(())
}

fn set_contact(
    change: &mut Change<'_>,
    customer: &mut Customer,
    new: &Contact,
    author: Author,
) -> Result<(), ChangeError> {
    let Author { partner_id, user_id: by } = author;
    let known = contacts(change.connection, customer.id)?;
    let current = match partner_id {
        Some(partner_id) => known.of(partner_id),
        None => known.own.as_ref(),
    };
    if current == Some(new) {
        return Ok(());
    }
    let salt = new_salt();
    customer.revision = change.record(&Event::CustomerUpdated {
        customer_id: customer.id,
        company_name: customer.company_name.clone(),
        domain: None,
        country: None,
        language: None,
        contact_commitment: commitment(&salt, new),
        partner_id,
        by,
    })?;
    contact_set(change.connection, customer.id, partner_id, new, &salt, change.now)?;
    if known.may_replace_shared(partner_id) {
        customer.primary_contact = new.clone();
        customer.contact_salt = salt;
    }
    for address in known.replaced_by(new, partner_id) {
        let sender = partner_id.unwrap_or(customer.id);
        notice_insert(change.connection, sender, customer.id, &address, change.now)?;
    }
    Ok(())
}

/// Ends the active relationship that has the given number; true if the payer has another one with the customer.
pub(crate) fn end_relationship(
    change: &mut Change<'_>,
    customer_id: Uuid,
    relationship: Relationship,
    number: i64,
    by: Uuid,
) -> Result<bool, ChangeError> {
    relationship_end(change.connection, number, change.now)?;
    let others_remain = active_partners(change.connection, customer_id)?.contains(&relationship.payer_id);
    let revision = change.record(&Event::RelationshipEnded {
        partner_id: relationship.payer_id,
        customer_id,
        reseller_id: relationship.reseller_id,
        others_remain,
        by,
    })?;
    customer_set_acceptance_revision(change.connection, customer_id, revision)?;
    Ok(others_remain)
}
