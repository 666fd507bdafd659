//! Finds a person in the records and erases it from them. Rows stay; the fields of the contact and the
//! salt of its commitment become empty, so that the history no longer identifies the person.

use std::collections::BTreeMap;

use chassis::database::row::at;
use chassis::database::{Connection, Error};
use chassis::query;
use diesel::prelude::*;
use uuid::Uuid;

use super::change::Change;
use super::schema::{acceptance, contact, contact_notice, customer, invitation, notification};

use crate::rules::event::Event;

/// Rows of one page of a search.
const PAGE: i64 = 1000;

/// Ids of one update: SQLite allows 32,766 bound values.
const IDS_PER_UPDATE: usize = 1000;

/// A person as it is asked for: by e-mail address, whatever its case. It cannot be printed.
#[derive(Clone)]
pub(crate) struct Person(String);

impl Person {
    pub(crate) fn new(email: &str) -> Self {
        Self(folded(email.trim()))
    }

    pub(crate) fn has(&self, email: &str) -> bool {
        folded(email) == self.0
    }

    /// Whether the address may stand somewhere in a text, be it as a part of another one.
    pub(crate) fn may_be_in(&self, text: &str) -> bool {
        folded(text).contains(&self.0)
    }
}

/// In lower case letter by letter, so that a part of a text is folded as it is by itself.
fn folded(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// Where a person stands.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub attestation_ids: Vec<Uuid>,
    pub invitation_ids: Vec<Uuid>,
    /// Contacts of the customer's own and of its partners.
    pub contact_ids: Vec<Uuid>,
    /// Mails about a change of contacts that are still to be sent to it.
    pub notice_ids: Vec<Uuid>,
    /// On the customer itself, where one contact is kept for versions that know no other.
    pub is_on_customer: bool,
}

impl Found {
    /// Whether the person is a contact of the customer.
    pub(crate) fn is_contact(&self) -> bool {
        self.is_on_customer || !self.contact_ids.is_empty()
    }
}

/// By customer; under `None` the invitations that are not accepted.
pub(crate) type FoundByCustomer = BTreeMap<Option<Uuid>, Found>;

/// Reads id, customer and e-mail of all rows that have one, page by page, and keeps the person's.
macro_rules! rows_of {
    ($connection:expr, $person:expr, $table:ident, $customer_id:expr) => {{
        let mut found: Vec<(String, String)> = vec![];
        let mut after = String::new();
        loop {
            let page: Vec<(String, String, String)> = query!($connection, c => {
                $table::table
                    .filter($table::id.gt(&after))
                    .filter($table::email.ne(""))
                    .order($table::id)
                    .limit(PAGE)
                    .select(($table::id, $customer_id, $table::email))
                    .load(c)
            })?;
            let Some((last, ..)) = page.last() else { break };
            after.clone_from(last);
            let is_of = |(_, _, email): &(String, String, String)| $person.has(email);
            found.extend(page.into_iter().filter(is_of).map(|(id, customer_id, _)| (id, customer_id)));
        }
        found
    }};
}

/// Finds a person in all records. No index leads there, since only one of the databases could fold the
/// case of every letter: all addresses are read.
pub(crate) fn person_find(connection: &mut Connection, person: &Person) -> Result<FoundByCustomer, Error> {
    let mut found = FoundByCustomer::new();
    for (id, customer_id) in rows_of!(connection, person, acceptance, acceptance::customer_id) {
        let row = at("acceptance", &id);
        let customer_id = row.parse("customer_id", &customer_id)?;
        found.entry(Some(customer_id)).or_default().attestation_ids.push(row.parse("id", &id)?);
    }
    for (id, customer_id) in rows_of!(connection, person, invitation, invitation::customer_id) {
        let row = at("invitation", &id);
        let customer_id = row.optional_id("customer_id", &customer_id)?;
        found.entry(customer_id).or_default().invitation_ids.push(row.parse("id", &id)?);
    }
    for (id, _) in rows_of!(connection, person, customer, customer::id) {
        let id = at("customer", &id).parse("id", &id)?;
        found.entry(Some(id)).or_default().is_on_customer = true;
    }
    for (id, customer_id) in rows_of!(connection, person, contact, contact::customer_id) {
        let row = at("contact", &id);
        let customer_id = row.parse("customer_id", &customer_id)?;
        found.entry(Some(customer_id)).or_default().contact_ids.push(row.parse("id", &id)?);
    }
    for (id, customer_id) in rows_of!(connection, person, contact_notice, contact_notice::customer_id) {
        let row = at("contact_notice", &id);
        let customer_id = row.parse("customer_id", &customer_id)?;
        found.entry(Some(customer_id)).or_default().notice_ids.push(row.parse("id", &id)?);
    }
    Ok(found)
}

/// The mails that name the persons of some attestations: by the attestation itself, and by the one whose mail announced
/// it together with others.
pub(crate) fn mails_naming(connection: &mut Connection, attestations: &[Uuid]) -> Result<Vec<Uuid>, Error> {
    let mut mails = attestations.to_vec();
    for ids in attestations.chunks(IDS_PER_UPDATE) {
        let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        let rows: Vec<String> = query!(connection, c => {
            notification::table
                .filter(notification::attestation_id.eq_any(&ids))
                .filter(notification::mail_id.ne(""))
                .select(notification::mail_id)
                .distinct()
                .load(c)
        })?;
        for mail_id in rows {
            mails.push(at("notification", &mail_id).parse("mail_id", &mail_id)?);
        }
    }
    mails.sort_unstable();
    mails.dedup();
    Ok(mails)
}

/// Empties the contact of rows.
macro_rules! erase_rows {
    ($connection:expr, $table:ident, $ids:expr) => {
        for ids in $ids.chunks(IDS_PER_UPDATE) {
            let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
            query!($connection, c => {
                diesel::update($table::table.filter($table::id.eq_any(&ids)))
                    .set((
                        $table::first_name.eq(""),
                        $table::last_name.eq(""),
                        $table::email.eq(""),
                        $table::phone.eq(""),
                        $table::contact_salt.eq(""),
                    ))
                    .execute(c)
            })?;
        }
    };
}

/// Erases a person from where it was found: an event for each customer.
pub(crate) fn person_erase(change: &mut Change<'_>, found: &FoundByCustomer) -> Result<(), Error> {
    for (customer_id, found) in found {
        let revision = change.record(&Event::ContactErased {
            customer_id: *customer_id,
            attestation_ids: found.attestation_ids.clone(),
            invitation_ids: found.invitation_ids.clone(),
            was_primary_contact: found.is_contact(),
        })?;
        erase_rows!(change.connection, acceptance, found.attestation_ids);
        erase_rows!(change.connection, invitation, found.invitation_ids);
        erase_rows!(change.connection, contact, found.contact_ids);
        for ids in found.notice_ids.chunks(IDS_PER_UPDATE) {
            let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
            query!(change.connection, c => {
                diesel::update(contact_notice::table.filter(contact_notice::id.eq_any(&ids)))
                    .set(contact_notice::email.eq(""))
                    .execute(c)
            })?;
        }
        if let Some(id) = customer_id.filter(|_| found.is_on_customer) {
            erase_rows!(change.connection, customer, [id]);
        }
        if let Some(id) = customer_id.filter(|_| found.is_contact()) {
            query!(change.connection, c => {
                diesel::update(customer::table.find(id.to_string()))
                    .set(customer::revision.eq(revision))
                    .execute(c)
            })?;
        }
    }
    Ok(())
}
