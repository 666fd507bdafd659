//! The contacts of customers: the customer's own and one of each partner. Those of relationships that an older version
//! stored are on the customer.

use std::collections::BTreeMap;

use chassis::clock::new_id;
use chassis::database::row::{at, id_or_empty};
use chassis::database::{Connection, Error};
use chassis::query;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{contact, contact_notice, customer, relationship};

use crate::rules::Time;
use crate::rules::notification::NotificationState;
use crate::rules::party::{Contact, Contacts, Relationship};

type Texts = (String, String, String, String);

fn read((first_name, last_name, email, phone): Texts) -> Contact {
    Contact { first_name, last_name, email, phone }
}

/// The contacts of some customers, by customer.
pub(crate) fn contacts_of(
    connection: &mut Connection,
    customers: &[Uuid],
) -> Result<BTreeMap<Uuid, Contacts>, Error> {
    let ids: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    let mut all: BTreeMap<Uuid, Contacts> = BTreeMap::new();
    let shared: Vec<(String, Texts)> = query!(connection, c => {
        let texts = (customer::first_name, customer::last_name, customer::email, customer::phone);
        customer::table.filter(customer::id.eq_any(&ids)).select((customer::id, texts)).load(c)
    })?;
    for (id, texts) in shared {
        let of = all.entry(at("customer", &id).parse("id", &id)?).or_default();
        of.shared = Some(read(texts));
    }
    let set: Vec<(String, String, Texts)> = query!(connection, c => {
        let texts = (contact::first_name, contact::last_name, contact::email, contact::phone);
        contact::table
            .filter(contact::customer_id.eq_any(&ids))
            .select((contact::customer_id, contact::partner_id, texts))
            .load(c)
    })?;
    for (customer_id, partner_id, texts) in set {
        let row = at("contact", &customer_id);
        let of = all.entry(row.parse("customer_id", &customer_id)?).or_default();
        match row.optional_id("partner_id", &partner_id)? {
            Some(partner_id) => drop(of.of_partners.insert(partner_id, read(texts))),
            None => of.own = Some(read(texts)),
        }
    }
    // However often a pair parted and found together again, each of its relationships counts twice at most.
    let relationships: Vec<(String, String, String, bool)> = query!(connection, c => {
        relationship::table
            .filter(relationship::customer_id.eq_any(&ids))
            .order((relationship::customer_id, relationship::partner_id, relationship::reseller_id))
            .select((
                relationship::customer_id,
                relationship::partner_id,
                relationship::reseller_id,
                relationship::ended_at.is_null(),
            ))
            .distinct()
            .load(c)
    })?;
    for (customer_id, payer_id, reseller_id, is_active) in relationships {
        let row = at("relationship", &customer_id);
        let of = all.entry(row.parse("customer_id", &customer_id)?).or_default();
        let relationship = Relationship {
            payer_id: row.parse("partner_id", &payer_id)?,
            reseller_id: row.optional_id("reseller_id", &reseller_id)?,
        };
        if is_active { of.active.push(relationship) } else { of.ended.push(relationship) }
    }
    Ok(all)
}

/// The contacts of one customer.
pub(crate) fn contacts(connection: &mut Connection, customer: Uuid) -> Result<Contacts, Error> {
    Ok(contacts_of(connection, &[customer])?.remove(&customer).unwrap_or_default())
}

/// Stores the contact of a partner, or without one the customer's own, in the place of the one before.
pub(crate) fn contact_set(
    connection: &mut Connection,
    customer: Uuid,
    partner: Option<Uuid>,
    new: &Contact,
    salt: &str,
    now: Time,
) -> Result<(), Error> {
    let texts = (
        contact::first_name.eq(&new.first_name),
        contact::last_name.eq(&new.last_name),
        contact::email.eq(&new.email),
        contact::phone.eq(&new.phone),
        contact::contact_salt.eq(salt),
    );
    query!(connection, c => {
        diesel::insert_into(contact::table)
            .values((
                contact::id.eq(new_id(now).to_string()),
                contact::customer_id.eq(customer.to_string()),
                contact::partner_id.eq(id_or_empty(partner)),
                texts,
            ))
            .on_conflict((contact::customer_id, contact::partner_id))
            .do_update()
            .set(texts)
            .execute(c)
    })?;
    Ok(())
}

/// Queues the mail that tells an address of the change of a contact. `sender` is the partner or the customer that
/// changed it.
pub(crate) fn notice_insert(
    connection: &mut Connection,
    sender: Uuid,
    customer: Uuid,
    address: &str,
    now: Time,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(contact_notice::table)
            .values((
                contact_notice::id.eq(new_id(now).to_string()),
                contact_notice::sender_id.eq(sender.to_string()),
                contact_notice::customer_id.eq(customer.to_string()),
                contact_notice::email.eq(address),
                contact_notice::state.eq(NotificationState::Queued.into_str()),
                contact_notice::attempts.eq(0),
                contact_notice::due_at.eq(now.naive_utc()),
                contact_notice::last_failure.eq(""),
            ))
            .execute(c)
    })?;
    Ok(())
}
