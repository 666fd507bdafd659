//! Finds a person in the records and erases it from them. Rows stay; the fields of the contact and the
//! salt of its commitment become empty, so that the history no longer identifies the person.
//!
//! A search reads everything, in a snapshot; a change looks again only at the rows that it is given.

use chassis::database::row::at;
use chassis::database::{Connection, Error};
use chassis::query;
use diesel::prelude::*;
use uuid::Uuid;

use super::change::Change;
use super::partner::{partner_find, partner_update};
use super::schema::{
    acceptance, contact, contact_notice, customer, invitation, notification, partner, proposal,
};

use crate::rules::event::Event;
use crate::rules::party::{Support, folded};

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

/// A row with a person's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    Attestation(Uuid),
    Invitation(Uuid),
    Proposal(Uuid),
    /// A contact of the customer's own or of a partner.
    Contact(Uuid),
    /// A mail about a change of contacts that is still to be sent.
    Notice(Uuid),
    /// A partner, whose support contact it is.
    Support(Uuid),
    /// The customer itself, where one contact is kept for versions that know no other.
    Customer(Uuid),
}

/// Where a person stands: rows with their customers; invitations that are not accepted have none.
pub(crate) type Found = Vec<(Option<Uuid>, Row)>;

/// The attestations among some rows.
pub(crate) fn attestation_ids(found: &[(Option<Uuid>, Row)]) -> Vec<Uuid> {
    let id = |(_, row): &(Option<Uuid>, Row)| match row {
        Row::Attestation(id) => Some(*id),
        Row::Invitation(_)
        | Row::Proposal(_)
        | Row::Contact(_)
        | Row::Notice(_)
        | Row::Support(_)
        | Row::Customer(_) => None,
    };
    found.iter().filter_map(id).collect()
}

/// The customers whose contacts are among some rows.
pub(crate) fn customer_ids(found: &[(Option<Uuid>, Row)]) -> Vec<Uuid> {
    let is_contact = |row: &Row| matches!(row, Row::Contact(_) | Row::Customer(_));
    found.iter().filter(|(_, row)| is_contact(row)).filter_map(|(customer_id, _)| *customer_id).collect()
}

/// Adds the person's rows of a table to what was found: reads id, customer and e-mail of all rows that have one, page by page.
/// With `among` only those rows are read.
macro_rules! find_in {
    ($found:ident, $connection:expr, $person:expr, $among:expr, $table:ident, $customer_id:expr, $row:path) => {{
        let only: Option<Vec<String>> = $among.map(|rows| {
            let id = |(_, row): &(Option<Uuid>, Row)| match row {
                $row(id) => Some(id.to_string()),
                _ => None,
            };
            rows.iter().filter_map(id).collect()
        });
        let mut after = String::new();
        while only.as_ref().is_none_or(|ids| !ids.is_empty()) {
            let page: Vec<(String, String, String)> = query!(&mut *$connection, c => {
                let mut page = $table::table
                    .filter($table::id.gt(&after))
                    .filter($table::email.ne(""))
                    .order($table::id)
                    .limit(PAGE)
                    .select(($table::id, $customer_id, $table::email))
                    .into_boxed();
                if let Some(ids) = &only {
                    page = page.filter($table::id.eq_any(ids));
                }
                page.load(c)
            })?;
            let Some((last, ..)) = page.last() else { break };
            after.clone_from(last);
            for (id, customer_id, _) in page.iter().filter(|(_, _, email)| $person.has(email)) {
                let row = at(stringify!($table), id);
                let customer_id = row.optional_id("customer_id", customer_id)?;
                $found.push((customer_id, $row(row.parse("id", id)?)));
            }
        }
    }};
}

/// Finds a person in all records, or with `among` in those rows. No index leads there, since only one of the databases could
/// fold the case of every letter: all addresses are read.
pub(crate) fn person_find(
    connection: &mut Connection,
    person: &Person,
    among: Option<&[(Option<Uuid>, Row)]>,
) -> Result<Found, Error> {
    let mut found = vec![];
    find_in!(found, connection, person, among, acceptance, acceptance::customer_id, Row::Attestation);
    find_in!(found, connection, person, among, invitation, invitation::customer_id, Row::Invitation);
    find_in!(found, connection, person, among, proposal, proposal::customer_id, Row::Proposal);
    find_in!(found, connection, person, among, customer, customer::id, Row::Customer);
    find_in!(found, connection, person, among, contact, contact::customer_id, Row::Contact);
    find_in!(found, connection, person, among, contact_notice, contact_notice::customer_id, Row::Notice);
    found.extend(supports_of(connection, person, among)?.into_iter().map(|id| (None, Row::Support(id))));
    found.sort_unstable();
    Ok(found)
}

/// The partners whose support contact the person is. There are few partners.
fn supports_of(
    connection: &mut Connection,
    person: &Person,
    among: Option<&[(Option<Uuid>, Row)]>,
) -> Result<Vec<Uuid>, Error> {
    let rows: Vec<(String, String)> = query!(connection, c => {
        partner::table
            .filter(partner::support_email.ne(""))
            .select((partner::id, partner::support_email))
            .load(c)
    })?;
    let ids = rows.iter().filter(|(_, email)| person.has(email));
    let ids: Vec<Uuid> = ids.map(|(id, _)| at("partner", id).parse("id", id)).collect::<Result<_, _>>()?;
    let is_among = |id: &Uuid| among.is_none_or(|rows| rows.contains(&(None, Row::Support(*id))));
    Ok(ids.into_iter().filter(is_among).collect())
}

/// Empties the support contact of a partner.
fn support_erase(change: &mut Change<'_>, id: Uuid) -> Result<(), Error> {
    let Some(mut erased) = partner_find(change.connection, id)? else { return Ok(()) };
    erased.support = Support::default();
    // The service itself did it: there is no user.
    let (name, by) = (erased.name.clone(), Uuid::nil());
    erased.revision =
        change.record(&Event::PartnerUpdated { partner_id: id, name, support_changed: true, by })?;
    partner_update(change.connection, &erased)
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

/// Empties the contact of rows, and some more columns with it.
macro_rules! erase_rows {
    ($connection:expr, $table:ident, $ids:expr $(, $with:ident)*) => {{
        let ids: Vec<String> = $ids.iter().map(Uuid::to_string).collect();
        query!($connection, c => {
            diesel::update($table::table.filter($table::id.eq_any(&ids)))
                .set((
                    $table::first_name.eq(""),
                    $table::last_name.eq(""),
                    $table::email.eq(""),
                    $table::phone.eq(""),
                    $table::contact_salt.eq(""),
                    $($table::$with.eq(""),)*
                ))
                .execute(c)
        })?;
    }};
}

/// Erases a person from rows that it was found in, where it still stands: an event for each customer and for each partner. The answer is what was
/// erased. A change takes as long as there are rows.
pub(crate) fn person_erase(
    change: &mut Change<'_>,
    person: &Person,
    among: &[(Option<Uuid>, Row)],
) -> Result<Found, Error> {
    let erased = person_find(change.connection, person, Some(among))?;
    let (supports, of_customers): (Found, Found) =
        erased.iter().partition(|(_, row)| matches!(row, Row::Support(_)));
    for (_, row) in supports {
        if let Row::Support(id) = row {
            support_erase(change, id)?;
        }
    }
    for of_customer in of_customers.chunk_by(|(one, _), (other, _)| one == other) {
        let (mut invitations, mut proposals) = (vec![], vec![]);
        let (mut contacts, mut notices, mut customers) = (vec![], vec![], vec![]);
        let attestations = attestation_ids(of_customer);
        for (_, row) in of_customer {
            match *row {
                Row::Attestation(_) | Row::Support(_) => {}
                Row::Invitation(id) => invitations.push(id),
                Row::Proposal(id) => proposals.push(id),
                Row::Contact(id) => contacts.push(id),
                Row::Notice(id) => notices.push(id),
                Row::Customer(id) => customers.push(id),
            }
        }
        let customer_id = of_customer.first().and_then(|(customer_id, _)| *customer_id);
        let was_contact = !contacts.is_empty() || !customers.is_empty();
        let revision = change.record(&Event::ContactErased {
            customer_id,
            attestation_ids: attestations.clone(),
            invitation_ids: invitations.clone(),
            proposal_ids: proposals.clone(),
            was_primary_contact: was_contact,
        })?;
        erase_rows!(change.connection, acceptance, attestations, title, evidence_reference, on_behalf_of);
        erase_rows!(change.connection, invitation, invitations);
        erase_rows!(change.connection, proposal, proposals, title, evidence_reference, on_behalf_of);
        erase_rows!(change.connection, contact, contacts);
        erase_rows!(change.connection, customer, customers);
        let notices: Vec<String> = notices.iter().map(Uuid::to_string).collect();
        query!(change.connection, c => {
            diesel::update(contact_notice::table.filter(contact_notice::id.eq_any(&notices)))
                .set(contact_notice::email.eq(""))
                .execute(c)
        })?;
        if let Some(id) = customer_id.filter(|_| was_contact) {
            query!(change.connection, c => {
                diesel::update(customer::table.find(id.to_string()))
                    .set(customer::revision.eq(revision))
                    .execute(c)
            })?;
        }
    }
    Ok(erased)
}
