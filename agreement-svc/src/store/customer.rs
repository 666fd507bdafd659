//! Customers, changed under optimistic locking (etag), and their relationships with partners.

pub(crate) mod list;
pub(crate) mod reference;

use std::collections::BTreeMap;

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error, Kept, Unkept, asking};
use chassis::{find_rows, query};
use chrono::NaiveDateTime;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Text};
use uuid::Uuid;

use super::schema::{customer, partner, relationship};

use crate::rules::Time;
use crate::rules::party::{Contact, Customer, Partnership, Relationship, Support, name_key};

#[derive(Queryable, Selectable)]
#[diesel(table_name = customer)]
struct Row {
    id: String,
    company_name: String,
    domain: String,
    country: String,
    cloud: String,
    first_name: String,
    last_name: String,
    email: String,
    phone: String,
    contact_salt: String,
    created_at: NaiveDateTime,
    first_purchase_at: Option<NaiveDateTime>,
    acceptance_revision: i64,
    revision: i64,
    language: String,
}

impl Row {
    fn read(self) -> Result<Customer, Error> {
        Ok(Customer {
            id: at("customer", &self.id).parse("id", &self.id)?,
            cloud: at("customer", &self.id).named("cloud", self.cloud.parse().ok())?,
            company_name: self.company_name,
            domain: self.domain,
            country: self.country,
            given_language: self.language,
            primary_contact: Contact {
                first_name: self.first_name,
                last_name: self.last_name,
                email: self.email,
                phone: self.phone,
            },
            contact_salt: self.contact_salt,
            created_at: utc(self.created_at),
            first_purchase_at: self.first_purchase_at.map(utc),
            acceptance_revision: self.acceptance_revision,
            revision: self.revision,
        })
    }
}

/// Whose customers are asked for (ROLE-6).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Viewer {
    /// A partner: through an active relationship, as payer or as the reseller it names.
    Partner(Uuid),
    /// The customer itself.
    Customer(Uuid),
    /// All of them.
    Everything,
}

/// A customer that the viewer may see.
pub(crate) fn customer_find(
    connection: &mut Connection,
    viewer: Viewer,
    id: Uuid,
) -> Result<Option<Customer>, Error> {
    let visible = match viewer {
        Viewer::Everything => true,
        Viewer::Customer(own) => own == id,
        Viewer::Partner(partner) => relationship_find(connection, partner, id)?.is_some(),
    };
    if !visible {
        return Ok(None);
    }
    Ok(customers_find(connection, &[id])?.pop())
}

/// Those of the customers that exist.
pub(crate) fn customers_find(connection: &mut Connection, ids: &[Uuid]) -> Result<Vec<Customer>, Error> {
    let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    let rows: Vec<Row> = find_rows!(connection, customer::id, &ids, is_it => {
        customer::table.filter(is_it).select(Row::as_select())
    })?;
    rows.into_iter().map(Row::read).collect()
}

/// Gives customers the key of their name that have none of their current revision: those of older versions. The answer is
/// how many there were, of `limit` at most.
pub(crate) fn name_keys_fill(connection: &mut Connection, limit: i64) -> Result<usize, Error> {
    let rows: Vec<(String, String, i64)> = query!(&mut *connection, c => {
        customer::table
            .filter(customer::name_revision.ne(customer::revision))
            .order(customer::id)
            .limit(limit)
            .select((customer::id, customer::company_name, customer::revision))
            .load(c)
    })?;
    for (id, name, revision) in &rows {
        let key = name_key(name, at("customer", id).parse("id", id)?);
        query!(&mut *connection, c => {
            diesel::update(customer::table.find(id).filter(customer::revision.eq(revision)))
                .set((customer::name_key.eq(key.as_bytes()), customer::name_revision.eq(revision)))
                .execute(c)
        })?;
    }
    Ok(rows.len())
}

/// The company names of some customers.
pub(crate) fn customer_names(
    connection: &mut Connection,
    ids: &[Uuid],
) -> Result<BTreeMap<Uuid, String>, Error> {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let rows: Vec<(String, String)> = query!(connection, c => {
        customer::table.filter(customer::id.eq_any(&ids)).select((customer::id, customer::company_name)).load(c)
    })?;
    rows.into_iter().map(|(id, name)| Ok((at("customer", &id).parse("id", &id)?, name))).collect()
}

pub(crate) fn domain_is_taken(connection: &mut Connection, domain: &str) -> Result<bool, Error> {
    let found: Option<String> = query!(connection, c => {
        customer::table.filter(customer::domain.eq(domain)).select(customer::id).first(c).optional()
    })?;
    Ok(found.is_some())
}

pub(crate) fn customer_insert(connection: &mut Connection, new: &Customer) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(customer::table)
            .values((
                customer::id.eq(new.id.to_string()),
                customer::company_name.eq(&new.company_name),
                customer::domain.eq(&new.domain),
                customer::country.eq(&new.country),
                customer::language.eq(&new.given_language),
                customer::cloud.eq(new.cloud.into_str()),
                customer::first_name.eq(&new.primary_contact.first_name),
                customer::last_name.eq(&new.primary_contact.last_name),
                customer::email.eq(&new.primary_contact.email),
                customer::phone.eq(&new.primary_contact.phone),
                customer::contact_salt.eq(&new.contact_salt),
                customer::created_at.eq(new.created_at.naive_utc()),
                customer::first_purchase_at.eq(new.first_purchase_at.map(|at| at.naive_utc())),
                customer::acceptance_revision.eq(new.acceptance_revision),
                customer::revision.eq(new.revision),
                customer::name_key.eq(name_key(&new.company_name, new.id).into_bytes()),
                customer::name_revision.eq(new.revision),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// Stores the company name, the domain, the country, the language, the contact and the revision.
pub(crate) fn customer_update(connection: &mut Connection, changed: &Customer) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(customer::table.find(changed.id.to_string()))
            .set((
                customer::company_name.eq(&changed.company_name),
                customer::domain.eq(&changed.domain),
                customer::country.eq(&changed.country),
                customer::language.eq(&changed.given_language),
                customer::first_name.eq(&changed.primary_contact.first_name),
                customer::last_name.eq(&changed.primary_contact.last_name),
                customer::email.eq(&changed.primary_contact.email),
                customer::phone.eq(&changed.primary_contact.phone),
                customer::contact_salt.eq(&changed.contact_salt),
                customer::revision.eq(changed.revision),
                customer::name_key.eq(name_key(&changed.company_name, changed.id).into_bytes()),
                customer::name_revision.eq(changed.revision),
            ))
            .execute(c)
    })?;
    Ok(())
}

pub(crate) fn customer_set_acceptance_revision(
    connection: &mut Connection,
    id: Uuid,
    revision: i64,
) -> Result<(), Error> {
    let _: Vec<String> = query!(connection, c => {
        let update = diesel::update(customer::table.find(id.to_string()))
            .set(customer::acceptance_revision.eq(revision))
            .returning(customer::id);
        Kept(update).load(c)
    })?;
    Ok(())
}

/// Sets the acceptance revisions of some customers.
pub(crate) fn customers_set_acceptance_revision(
    connection: &mut Connection,
    revisions: &BTreeMap<Uuid, i64>,
) -> Result<(), Error> {
    asking(connection);
    match connection {
        Connection::Postgres(c) if revisions.len() > 1 => {
            let (ids, revisions): (Vec<String>, Vec<i64>) =
                revisions.iter().map(|(id, revision)| (id.to_string(), *revision)).unzip();
            sql_query(
                "UPDATE customer SET acceptance_revision = new.revision
                FROM unnest($1, $2) AS new (id, revision) WHERE customer.id = new.id",
            )
            .bind::<Array<Text>, _>(ids)
            .bind::<Array<BigInt>, _>(revisions)
            .execute(c)?;
            Ok(())
        }
        single => revisions
            .iter()
            .try_for_each(|(id, revision)| customer_set_acceptance_revision(single, *id, *revision)),
    }
}

pub(crate) fn customer_set_first_purchase(
    connection: &mut Connection,
    id: Uuid,
    at: Time,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(customer::table.find(id.to_string()))
            .set(customer::first_purchase_at.eq(at.naive_utc()))
            .execute(c)
    })?;
    Ok(())
}

/// An active relationship that gives a partner sight of a customer: its own before one that names
/// it as reseller.
pub(crate) fn relationship_find(
    connection: &mut Connection,
    partner: Uuid,
    customer: Uuid,
) -> Result<Option<Relationship>, Error> {
    Ok(relationships_find(connection, partner, &[customer])?.remove(&customer))
}

/// As [`relationship_find`], for some customers, by customer.
pub(crate) fn relationships_find(
    connection: &mut Connection,
    partner: Uuid,
    customers: &[Uuid],
) -> Result<BTreeMap<Uuid, Relationship>, Error> {
    let key = partner.to_string();
    let customers: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    let rows: Vec<(String, String, String)> = find_rows!(connection, relationship::customer_id, &customers, is_of => {
        relationship::table
            .filter(is_of)
            .filter(relationship::ended_at.is_null())
            .filter(relationship::partner_id.eq(&key).or(relationship::reseller_id.eq(&key)))
            .order((relationship::customer_id, relationship::partner_id, relationship::reseller_id))
            .select((relationship::customer_id, relationship::partner_id, relationship::reseller_id))
    })?;
    let mut found: BTreeMap<Uuid, Relationship> = BTreeMap::new();
    for (customer, payer, reseller) in rows {
        let row = at("relationship", &customer);
        let relationship = Relationship {
            payer_id: row.parse("partner_id", &payer)?,
            reseller_id: row.optional_id("reseller_id", &reseller)?,
        };
        let first = found.entry(row.parse("customer_id", &customer)?).or_insert(relationship);
        if relationship.payer_id == partner && first.payer_id != partner {
            *first = relationship;
        }
    }
    Ok(found)
}

/// The number of an active relationship, exactly as named.
pub(crate) fn relationship_active(
    connection: &mut Connection,
    of: Relationship,
    customer: Uuid,
) -> Result<Option<i64>, Error> {
    Ok(query!(connection, c => {
        relationship::table
            .filter(relationship::customer_id.eq(customer.to_string()))
            .filter(relationship::partner_id.eq(of.payer_id.to_string()))
            .filter(relationship::reseller_id.eq(id_or_empty(of.reseller_id)))
            .filter(relationship::ended_at.is_null())
            .select(relationship::revision)
            .first(c)
            .optional()
    })?)
}

/// Ends the relationship with a number.
pub(crate) fn relationship_end(connection: &mut Connection, number: i64, now: Time) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(relationship::table.find(number))
            .set(relationship::ended_at.eq(now.naive_utc()))
            .execute(c)
    })?;
    Ok(())
}

diesel::alias!(partner as through: Through);

/// Whose relationships. Each way has an index in the order of numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    Customer(Uuid),
    Payer(Uuid),
    Reseller(Uuid),
}

/// What a list of relationships is narrowed to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RelationshipFilter {
    pub customer: Option<Uuid>,
    pub reseller: Option<Uuid>,
    pub include_ended: bool,
}

/// A customer's relationships with the names of the partners, oldest first.
pub(crate) fn partnership_list(
    connection: &mut Connection,
    customer: Uuid,
    include_ended: bool,
    after: i64,
    limit: i64,
) -> Result<Vec<Partnership>, Error> {
    let filter = RelationshipFilter { include_ended, ..RelationshipFilter::default() };
    partnerships_of(connection, Whose::Customer(customer), filter, after, limit)
}

/// As [`partnership_list`], of a partner as payer or as reseller.
pub(crate) fn partnerships_of_partner(
    connection: &mut Connection,
    partner: Uuid,
    filter: RelationshipFilter,
    after: i64,
    limit: i64,
) -> Result<Vec<Partnership>, Error> {
    let mut rows = partnerships_of(connection, Whose::Payer(partner), filter, after, limit)?;
    rows.extend(partnerships_of(connection, Whose::Reseller(partner), filter, after, limit)?);
    rows.sort_unstable_by_key(|row| row.revision);
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(rows)
}

/// Relationships with the names of the partners, oldest first.
pub(crate) fn partnerships_of(
    connection: &mut Connection,
    whose: Whose,
    filter: RelationshipFilter,
    after: i64,
    limit: i64,
) -> Result<Vec<Partnership>, Error> {
    let rows: Vec<PartnershipRow> = query!(connection, c => {
        let mut list = relationship::table
            .inner_join(partner::table.on(partner::id.eq(relationship::partner_id)))
            .left_join(through.on(through.field(partner::id).eq(relationship::reseller_id)))
            .filter(relationship::revision.gt(after))
            .order(relationship::revision)
            .limit(limit)
            .select((
                relationship::customer_id,
                (relationship::partner_id, partner::name, partner::kind),
                (partner::support_email, partner::support_phone, partner::support_url),
                (relationship::reseller_id, through.field(partner::name).nullable()),
                (
                    through.field(partner::support_email),
                    through.field(partner::support_phone),
                    through.field(partner::support_url),
                )
                    .nullable(),
                (relationship::established_at, relationship::ended_at, relationship::revision),
            ))
            .into_boxed();
        list = match whose {
            Whose::Customer(id) => list.filter(relationship::customer_id.eq(id.to_string())),
            Whose::Payer(id) => list.filter(relationship::partner_id.eq(id.to_string())),
            Whose::Reseller(id) => list.filter(relationship::reseller_id.eq(id.to_string())),
        };
        if let Some(customer) = filter.customer {
            list = list.filter(relationship::customer_id.eq(customer.to_string()));
        }
        if let Some(reseller) = filter.reseller {
            list = list.filter(relationship::reseller_id.eq(reseller.to_string()));
        }
        if !filter.include_ended {
            list = list.filter(relationship::ended_at.is_null());
        }
        Unkept(list).load(c)
    })?;
    rows.into_iter().map(read_partnership).collect()
}

/// E-mail address, phone and page.
type SupportColumns = (String, String, String);

type PartnershipRow = (
    String,
    (String, String, String),
    SupportColumns,
    (String, Option<String>),
    Option<SupportColumns>,
    (NaiveDateTime, Option<NaiveDateTime>, i64),
);

fn read_partnership(row: PartnershipRow) -> Result<Partnership, Error> {
    let (key, (payer, payer_name, kind), payer_support, (reseller, reseller_name), reseller_support, times) =
        row;
    let (established_at, ended_at, revision) = times;
    let support = |(email, phone, url): SupportColumns| Support { email, phone, url };
    let row = at("relationship", &key);
    Ok(Partnership {
        customer_id: row.parse("customer_id", &key)?,
        relationship: Relationship {
            payer_id: row.parse("partner_id", &payer)?,
            reseller_id: row.optional_id("reseller_id", &reseller)?,
        },
        payer_kind: at("partner", &payer).named("kind", kind.parse().ok())?,
        payer_name,
        payer_support: support(payer_support),
        reseller_name,
        reseller_support: reseller_support.map(support).unwrap_or_default(),
        established_at: utc(established_at),
        ended_at: ended_at.map(utc),
        revision,
    })
}

/// The partners that have an active relationship with a customer, each once.
pub(crate) fn active_partners(connection: &mut Connection, customer: Uuid) -> Result<Vec<Uuid>, Error> {
    let key = customer.to_string();
    let rows: Vec<String> = query!(connection, c => {
        relationship::table
            .filter(relationship::customer_id.eq(&key))
            .filter(relationship::ended_at.is_null())
            .select(relationship::partner_id)
            .distinct()
            .order(relationship::partner_id)
            .load(c)
    })?;
    rows.iter().map(|partner| at("relationship", &key).parse("partner_id", partner)).collect()
}

/// The partners that have or had a relationship with a customer, each once.
pub(crate) fn related_partners(connection: &mut Connection, customer: Uuid) -> Result<Vec<Uuid>, Error> {
    let key = customer.to_string();
    let rows: Vec<String> = query!(connection, c => {
        relationship::table
            .filter(relationship::customer_id.eq(&key))
            .select(relationship::partner_id)
            .distinct()
            .order(relationship::partner_id)
            .load(c)
    })?;
    rows.iter().map(|partner| at("relationship", &key).parse("partner_id", partner)).collect()
}

/// How many relationships of one customer an answer names.
const RELATIONSHIPS_MAX: i64 = 1000;

/// The relationships, active or ended, that partners have or had with a customer as payers, each once.
pub(crate) fn relationships_with(
    connection: &mut Connection,
    customer: Uuid,
    payers: &[Uuid],
) -> Result<Vec<Relationship>, Error> {
    if payers.is_empty() {
        return Ok(vec![]);
    }
    let key = customer.to_string();
    let payers = payers.iter().map(Uuid::to_string);
    let rows: Vec<(String, String)> = query!(connection, c => {
        relationship::table
            .filter(relationship::customer_id.eq(&key))
            .filter(relationship::partner_id.eq_any(payers))
            .select((relationship::partner_id, relationship::reseller_id))
            .distinct()
            .order((relationship::partner_id, relationship::reseller_id))
            .limit(RELATIONSHIPS_MAX)
            .load(c)
    })?;
    let read = |(payer, reseller): &(String, String)| {
        let row = at("relationship", &key);
        Ok(Relationship {
            payer_id: row.parse("partner_id", payer)?,
            reseller_id: row.optional_id("reseller_id", reseller)?,
        })
    };
    rows.iter().map(read).collect()
}

pub(crate) fn relationship_insert(
    connection: &mut Connection,
    new: Relationship,
    customer: Uuid,
    now: Time,
    revision: i64,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(relationship::table)
            .values((
                relationship::partner_id.eq(new.payer_id.to_string()),
                relationship::customer_id.eq(customer.to_string()),
                relationship::reseller_id.eq(id_or_empty(new.reseller_id)),
                relationship::established_at.eq(now.naive_utc()),
                relationship::revision.eq(revision),
            ))
            .execute(c)
    })?;
    Ok(())
}
