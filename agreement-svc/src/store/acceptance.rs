//! Acceptances: what partners attested and customers signed, in one table.
//!
//! A row is never deleted. When it was superseded and when it was withdrawn is set once, and a person
//! can be erased from it; nothing else ever changes.

mod list;

use std::collections::BTreeMap;

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error, Kept, asking};
use chassis::{find_rows, insert_rows, query};
use chrono::NaiveDateTime;
use diesel::dsl::{count, min};
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{Array, Text, Timestamp};
use serde::Serialize;
use uuid::Uuid;

use super::change::attestation_commitment;
use super::schema::{acceptance, customer, template_version};
use super::shown::{shown_columns, shown_text};

use crate::rules::Time;
use crate::rules::attestation::{Attestation, Details, ProposedBy};
use crate::rules::chain::{Columns, Stored, StoredContact};
use crate::rules::eligibility::AcceptanceKind;
use crate::rules::party::Contact;
use crate::rules::signature::Signature;
use crate::rules::withdrawal::{Covers, Withdrawal};

pub(crate) use list::{AcceptanceFilter, attestation_list, signature_list};

/// What stands as the partner of a signature.
pub(super) const NO_PARTNER: &str = "";

#[derive(QueryableByName)]
struct EffectiveFrom {
    #[diesel(sql_type = Timestamp)]
    effective_from: NaiveDateTime,
}

#[derive(Insertable, Queryable, QueryableByName, Selectable, Serialize)]
#[diesel(table_name = acceptance, treat_none_as_default_value = false)]
pub(super) struct Row {
    id: String,
    kind: String,
    partner_id: String,
    customer_id: String,
    agreement_type: String,
    template_id: String,
    template_version: i32,
    first_name: String,
    last_name: String,
    email: String,
    phone: String,
    contact_salt: String,
    agreed_at: NaiveDateTime,
    recorded_at: NaiveDateTime,
    recorded_by: String,
    superseded_at: Option<NaiveDateTime>,
    withdrawn_at: Option<NaiveDateTime>,
    revision: i64,
    withdrawal_reason: String,
    withdrawn_by: String,
    title: String,
    evidence_reference: String,
    evidence_sha256: String,
    on_behalf_of: String,
    recorded_client: String,
    external_reference: Option<String>,
    proposal_id: String,
    proposed_by_partner: String,
    proposed_by_user: String,
    shown_country: String,
    shown_language: String,
    shown_sha256: String,
}

impl Row {
    fn attestation(self) -> Result<Attestation, Error> {
        let row = at("acceptance", &self.id);
        self.check_kind(AcceptanceKind::Attestation)?;
        Ok(Attestation {
            id: row.parse("id", &self.id)?,
            partner_id: row.parse("partner_id", &self.partner_id)?,
            customer_id: row.parse("customer_id", &self.customer_id)?,
            agreement_type: row.named("agreement_type", self.agreement_type.parse().ok())?,
            template_id: row.parse("template_id", &self.template_id)?,
            template_version: row.count("template_version", self.template_version)?,
            recorded_by: row.parse("recorded_by", &self.recorded_by)?,
            withdrawn: self.withdrawal()?,
            proposed_by: self.proposed_by()?,
            contact: Contact {
                first_name: self.first_name,
                last_name: self.last_name,
                email: self.email,
                phone: self.phone,
            },
            contact_salt: self.contact_salt,
            agreed_at: utc(self.agreed_at),
            recorded_at: utc(self.recorded_at),
            recorded_client: self.recorded_client,
            details: Details {
                title: self.title,
                evidence_reference: self.evidence_reference,
                evidence_sha256: self.evidence_sha256,
                on_behalf_of: self.on_behalf_of,
                external_reference: self.external_reference.unwrap_or_default(),
                shown_text: shown_text([self.shown_country, self.shown_language, self.shown_sha256]),
            },
            superseded_at: self.superseded_at.map(utc),
            revision: self.revision,
        })
    }

    fn signature(self) -> Result<Signature, Error> {
        let row = at("acceptance", &self.id);
        self.check_kind(AcceptanceKind::Signature)?;
        Ok(Signature {
            id: row.parse("id", &self.id)?,
            customer_id: row.parse("customer_id", &self.customer_id)?,
            agreement_type: row.named("agreement_type", self.agreement_type.parse().ok())?,
            template_id: row.parse("template_id", &self.template_id)?,
            template_version: row.count("template_version", self.template_version)?,
            signed_by: row.parse("recorded_by", &self.recorded_by)?,
            withdrawn: self.withdrawal()?,
            signed_at: utc(self.agreed_at),
            superseded_at: self.superseded_at.map(utc),
            revision: self.revision,
            shown_text: shown_text([self.shown_country, self.shown_language, self.shown_sha256]),
        })
    }

    /// The value of the row, which `verify` compares with the history.
    pub(super) fn stored(self) -> Stored {
        let contact = Contact {
            first_name: self.first_name,
            last_name: self.last_name,
            email: self.email,
            phone: self.phone,
        };
        let details = Details {
            title: self.title,
            evidence_reference: self.evidence_reference,
            on_behalf_of: self.on_behalf_of,
            ..Details::default()
        };
        let is_empty = contact == Contact::default() && details == Details::default();
        let contact = match is_empty && self.contact_salt.is_empty() {
            true => StoredContact::Empty,
            false => {
                let commitment = attestation_commitment(&self.contact_salt, &contact, &details);
                StoredContact::Of { commitment }
            }
        };
        let columns = Columns {
            kind: self.kind,
            partner_id: self.partner_id,
            customer_id: self.customer_id,
            agreement_type: self.agreement_type,
            template_id: self.template_id,
            template_version: self.template_version.into(),
            agreed_at: utc(self.agreed_at),
            recorded_at: utc(self.recorded_at),
            recorded_by: self.recorded_by,
            recorded_client: self.recorded_client,
            evidence_sha256: self.evidence_sha256,
            proposal_id: self.proposal_id,
            proposed_by_partner: self.proposed_by_partner,
            proposed_by_user: self.proposed_by_user,
            shown_country: self.shown_country,
            shown_language: self.shown_language,
            shown_sha256: self.shown_sha256,
            superseded_at: self.superseded_at.map(utc),
            withdrawn_at: self.withdrawn_at.map(utc),
            withdrawal_reason: self.withdrawal_reason,
            withdrawn_by: self.withdrawn_by,
            revision: self.revision,
        };
        Stored { id: self.id, columns, contact }
    }

    fn proposed_by(&self) -> Result<Option<ProposedBy>, Error> {
        let row = at("acceptance", &self.id);
        let Some(proposal_id) = row.optional_id("proposal_id", &self.proposal_id)? else { return Ok(None) };
        Ok(Some(ProposedBy {
            proposal_id,
            partner_id: row.parse("proposed_by_partner", &self.proposed_by_partner)?,
            user_id: row.parse("proposed_by_user", &self.proposed_by_user)?,
        }))
    }

    fn check_kind(&self, expected: AcceptanceKind) -> Result<(), Error> {
        match self.kind.parse::<AcceptanceKind>() {
            Ok(kind) if kind == expected => Ok(()),
            _ => Err(at("acceptance", &self.id).corrupt("kind")),
        }
    }

    fn withdrawal(&self) -> Result<Option<Withdrawal>, Error> {
        let row = at("acceptance", &self.id);
        let Some(withdrawn_at) = self.withdrawn_at else { return Ok(None) };
        Ok(Some(Withdrawal {
            at: utc(withdrawn_at),
            reason: row.named("withdrawal_reason", self.withdrawal_reason.parse().ok())?,
            by: row.parse("withdrawn_by", &self.withdrawn_by)?,
        }))
    }
}

pub(crate) fn attestation_find(connection: &mut Connection, id: Uuid) -> Result<Option<Attestation>, Error> {
    let row: Option<Row> = query!(connection, c => {
        acceptance::table
            .find(id.to_string())
            .filter(acceptance::partner_id.ne(NO_PARTNER))
            .select(Row::as_select())
            .first(c)
            .optional()
    })?;
    row.map(Row::attestation).transpose()
}

/// The current attestations of a partner and some customers, one of each type at most, with the times at which their
/// versions took effect.
pub(crate) fn attestations_current(
    connection: &mut Connection,
    partner: Uuid,
    customers: &[Uuid],
) -> Result<Vec<(Attestation, Time)>, Error> {
    let customers: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    asking(connection);
    if let Connection::Postgres(c) = connection
        && customers.len() > 1
    {
        // One lookup for each customer: the planner cannot turn it into a scan of all acceptances, whatever it believes of
        // the size of the table.
        let rows = sql_query(
            "SELECT current.*, template_version.effective_from FROM unnest($1) AS asked (customer_id)
            CROSS JOIN LATERAL (SELECT * FROM acceptance
                WHERE acceptance.customer_id = asked.customer_id AND acceptance.partner_id = $2
                AND acceptance.superseded_at IS NULL AND acceptance.withdrawn_at IS NULL OFFSET 0) AS current
            JOIN template_version ON template_version.template_id = current.template_id
                AND template_version.number = current.template_version",
        )
        .bind::<Array<Text>, _>(&customers)
        .bind::<Text, _>(partner.to_string());
        let rows: Vec<(Row, EffectiveFrom)> = Kept(rows).load(c)?;
        let read = |(row, of): (Row, EffectiveFrom)| Ok((row.attestation()?, utc(of.effective_from)));
        return rows.into_iter().map(read).collect();
    }
    let rows: Vec<(Row, NaiveDateTime)> = find_rows!(connection, acceptance::customer_id, &customers, is_of => {
        acceptance::table
            .inner_join(template_version::table.on(template_version::template_id
                .eq(acceptance::template_id)
                .and(template_version::number.eq(acceptance::template_version))))
            .filter(is_of)
            .filter(acceptance::partner_id.eq(partner.to_string()))
            .filter(acceptance::superseded_at.is_null())
            .filter(acceptance::withdrawn_at.is_null())
            .select((Row::as_select(), template_version::effective_from))
    })?;
    rows.into_iter().map(|(row, effective_from)| Ok((row.attestation()?, utc(effective_from)))).collect()
}

/// Stores attestations that none has withdrawn.
pub(crate) fn attestations_insert(connection: &mut Connection, new: &[Attestation]) -> Result<(), Error> {
    let row = |new: &Attestation| {
        let [shown_country, shown_language, shown_sha256] = shown_columns(new.details.shown_text.as_ref());
        Row {
            id: new.id.to_string(),
            kind: AcceptanceKind::Attestation.into_str().to_owned(),
            partner_id: new.partner_id.to_string(),
            customer_id: new.customer_id.to_string(),
            agreement_type: new.agreement_type.into_str().to_owned(),
            template_id: new.template_id.to_string(),
            template_version: i32::try_from(new.template_version).unwrap_or(i32::MAX),
            first_name: new.contact.first_name.clone(),
            last_name: new.contact.last_name.clone(),
            email: new.contact.email.clone(),
            phone: new.contact.phone.clone(),
            contact_salt: new.contact_salt.clone(),
            agreed_at: new.agreed_at.naive_utc(),
            recorded_at: new.recorded_at.naive_utc(),
            recorded_by: new.recorded_by.to_string(),
            superseded_at: new.superseded_at.map(|at| at.naive_utc()),
            withdrawn_at: None,
            revision: new.revision,
            withdrawal_reason: String::new(),
            withdrawn_by: String::new(),
            title: new.details.title.clone(),
            evidence_reference: new.details.evidence_reference.clone(),
            evidence_sha256: new.details.evidence_sha256.clone(),
            on_behalf_of: new.details.on_behalf_of.clone(),
            recorded_client: new.recorded_client.clone(),
            external_reference: Some(new.details.external_reference.clone()).filter(|text| !text.is_empty()),
            proposal_id: id_or_empty(new.proposed_by.map(|by| by.proposal_id)),
            proposed_by_partner: id_or_empty(new.proposed_by.map(|by| by.partner_id)),
            proposed_by_user: id_or_empty(new.proposed_by.map(|by| by.user_id)),
            shown_country,
            shown_language,
            shown_sha256,
        }
    };
    let rows: Vec<_> = new.iter().map(row).collect();
    Ok(insert_rows!(connection, acceptance, &rows)?)
}

pub(crate) fn signature_find(connection: &mut Connection, id: Uuid) -> Result<Option<Signature>, Error> {
    let row: Option<Row> = query!(connection, c => {
        acceptance::table
            .find(id.to_string())
            .filter(acceptance::partner_id.eq(NO_PARTNER))
            .select(Row::as_select())
            .first(c)
            .optional()
    })?;
    row.map(Row::signature).transpose()
}

/// A customer's current signatures, one of each type at most.
pub(crate) fn signatures_current(
    connection: &mut Connection,
    customer: Uuid,
) -> Result<Vec<Signature>, Error> {
    let mut rows: Vec<Row> = query!(connection, c => {
        acceptance::table
            .filter(acceptance::customer_id.eq(customer.to_string()))
            .filter(acceptance::partner_id.eq(NO_PARTNER))
            .filter(acceptance::superseded_at.is_null())
            .filter(acceptance::withdrawn_at.is_null())
            .select(Row::as_select())
            .load(c)
    })?;
    // SQLite would take the index with this order, and read all that were withdrawn.
    rows.sort_unstable_by_key(|row| row.revision);
    rows.into_iter().map(Row::signature).collect()
}

/// When a customer first signed anything, whatever became of it.
pub(crate) fn first_signed_at(connection: &mut Connection, customer: Uuid) -> Result<Option<Time>, Error> {
    let first: Option<NaiveDateTime> = query!(connection, c => {
        acceptance::table
            .filter(acceptance::customer_id.eq(customer.to_string()))
            .filter(acceptance::partner_id.eq(NO_PARTNER))
            .select(min(acceptance::agreed_at))
            .first(c)
    })?;
    Ok(first.map(utc))
}

pub(crate) fn signature_insert(connection: &mut Connection, new: &Signature) -> Result<(), Error> {
    let [shown_country, shown_language, shown_sha256] = shown_columns(new.shown_text.as_ref());
    query!(connection, c => {
        diesel::insert_into(acceptance::table)
            .values((
                acceptance::id.eq(new.id.to_string()),
                acceptance::kind.eq(AcceptanceKind::Signature.into_str()),
                acceptance::partner_id.eq(NO_PARTNER),
                acceptance::customer_id.eq(new.customer_id.to_string()),
                acceptance::agreement_type.eq(new.agreement_type.into_str()),
                acceptance::template_id.eq(new.template_id.to_string()),
                acceptance::template_version.eq(i32::try_from(new.template_version).unwrap_or(i32::MAX)),
                // A signature names a user, not a person.
                (
                    acceptance::first_name.eq(""),
                    acceptance::last_name.eq(""),
                    acceptance::email.eq(""),
                    acceptance::phone.eq(""),
                    acceptance::contact_salt.eq(""),
                ),
                acceptance::agreed_at.eq(new.signed_at.naive_utc()),
                acceptance::recorded_at.eq(new.signed_at.naive_utc()),
                acceptance::recorded_by.eq(new.signed_by.to_string()),
                acceptance::revision.eq(new.revision),
                acceptance::shown_country.eq(shown_country),
                acceptance::shown_language.eq(shown_language),
                acceptance::shown_sha256.eq(shown_sha256),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// When acceptances of a customer, by a partner or, without one, by itself, were made or withdrawn last: the newest of each,
/// `limit` at most, after a time.
pub(crate) fn changes_since(
    connection: &mut Connection,
    partner: Option<Uuid>,
    customer: Uuid,
    since: Time,
    limit: u32,
) -> Result<Vec<Time>, Error> {
    let partner = partner.map_or_else(|| NO_PARTNER.to_owned(), |id| id.to_string());
    let customer = customer.to_string();
    let (since, limit) = (since.naive_utc(), i64::from(limit));
    let made: Vec<NaiveDateTime> = query!(&mut *connection, c => {
        acceptance::table
            .filter(acceptance::customer_id.eq(&customer))
            .filter(acceptance::partner_id.eq(&partner))
            .filter(acceptance::recorded_at.gt(since))
            .order(acceptance::recorded_at.desc())
            .limit(limit)
            .select(acceptance::recorded_at)
            .load(c)
    })?;
    let withdrawn: Vec<NaiveDateTime> = query!(connection, c => {
        acceptance::table
            .filter(acceptance::customer_id.eq(&customer))
            .filter(acceptance::partner_id.eq(&partner))
            .filter(acceptance::withdrawn_at.gt(since))
            .order(acceptance::withdrawn_at.desc())
            .limit(limit)
            .select(acceptance::withdrawn_at.assume_not_null())
            .load(c)
    })?;
    Ok(made.into_iter().chain(withdrawn).map(utc).collect())
}

/// How often a partner's acceptances of some customers, by customer, were made or withdrawn after a time.
pub(crate) fn changes_counted(
    connection: &mut Connection,
    partner: Uuid,
    customers: &[Uuid],
    since: Time,
) -> Result<BTreeMap<Uuid, usize>, Error> {
    let (partner, since) = (partner.to_string(), since.naive_utc());
    let customers: Vec<String> = customers.iter().map(Uuid::to_string).collect();
    // With a subquery for each customer: the planner of PostgreSQL cannot turn them into a scan of all acceptances, whatever
    // it believes of the size of the table.
    let rows: Vec<(String, Option<i64>, Option<i64>)> = find_rows!(connection, customer::id, &customers, is_it => {
        let of_pair = || {
            acceptance::table
                .filter(acceptance::customer_id.eq(customer::id))
                .filter(acceptance::partner_id.eq(&partner))
        };
        let made = of_pair().filter(acceptance::recorded_at.gt(since)).count().single_value();
        let withdrawn = of_pair().filter(acceptance::withdrawn_at.gt(since)).count().single_value();
        customer::table.filter(is_it).select((customer::id, made, withdrawn))
    })?;
    let count = |(customer, made, withdrawn): (String, Option<i64>, Option<i64>)| {
        let count = made.unwrap_or_default() + withdrawn.unwrap_or_default();
        let customer = at("customer", &customer).parse("id", &customer)?;
        Ok((customer, usize::try_from(count).unwrap_or(usize::MAX)))
    };
    rows.into_iter().map(count).collect()
}

/// Marks an acceptance as replaced by another.
pub(crate) fn acceptance_supersede(connection: &mut Connection, id: Uuid, now: Time) -> Result<(), Error> {
    let _: Vec<String> = query!(connection, c => {
        let update = diesel::update(acceptance::table.find(id.to_string()))
            .set(acceptance::superseded_at.eq(now.naive_utc()))
            .returning(acceptance::id);
        Kept(update).load(c)
    })?;
    Ok(())
}

/// Marks acceptances as replaced by others.
pub(crate) fn acceptances_supersede(
    connection: &mut Connection,
    ids: &[Uuid],
    now: Time,
) -> Result<(), Error> {
    asking(connection);
    match connection {
        Connection::Postgres(c) if ids.len() > 1 => {
            let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
            let update = diesel::update(acceptance::table.filter(acceptance::id.eq_any(&ids)))
                .set(acceptance::superseded_at.eq(now.naive_utc()))
                .returning(acceptance::id);
            let _: Vec<String> = Kept(update).load(c)?;
            Ok(())
        }
        single => ids.iter().try_for_each(|id| acceptance_supersede(single, *id, now)),
    }
}

/// Marks an acceptance as taken back.
pub(crate) fn acceptance_withdraw(
    connection: &mut Connection,
    id: Uuid,
    withdrawal: Withdrawal,
) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(acceptance::table.find(id.to_string()))
            .set((
                acceptance::withdrawn_at.eq(withdrawal.at.naive_utc()),
                acceptance::withdrawal_reason.eq(withdrawal.reason.into_str()),
                acceptance::withdrawn_by.eq(withdrawal.by.to_string()),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// Whom a customer's current acceptances but one cover. `related` are the partners that have or had a relationship with it: by them
/// SQLite finds the current ones without reading those that were withdrawn.
pub(crate) fn acceptances_cover(
    connection: &mut Connection,
    customer: Uuid,
    related: &[Uuid],
    without: Uuid,
) -> Result<Vec<Covers>, Error> {
    let mut partners: Vec<String> = related.iter().map(Uuid::to_string).collect();
    partners.push(NO_PARTNER.to_owned());
    let rows: Vec<(String, String)> = query!(connection, c => {
        acceptance::table
            .filter(acceptance::customer_id.eq(customer.to_string()))
            .filter(acceptance::partner_id.eq_any(&partners))
            .filter(acceptance::superseded_at.is_null())
            .filter(acceptance::withdrawn_at.is_null())
            .filter(acceptance::id.ne(without.to_string()))
            .select((acceptance::id, acceptance::partner_id))
            .load(c)
    })?;
    let covers = |(id, partner): &(String, String)| {
        let partner = at("acceptance", id).optional_id("partner_id", partner)?;
        Ok(partner.map_or(Covers::Everyone, Covers::Partner))
    };
    rows.iter().map(covers).collect()
}

/// How much rests on a template (TPL-4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retirement {
    /// Customers with a current acceptance of it.
    pub customers: u64,
    /// Partners with a current attestation of it.
    pub partners: u64,
}

pub(crate) fn resting_on_template(connection: &mut Connection, template: Uuid) -> Result<Retirement, Error> {
    let key = template.to_string();
    let current = acceptance::table
        .filter(acceptance::template_id.eq(&key))
        .filter(acceptance::superseded_at.is_null())
        .filter(acceptance::withdrawn_at.is_null());
    let attested = current.filter(acceptance::partner_id.ne(NO_PARTNER));
    let (customers, partners): (i64, i64) = query!(connection, c => {
        (
            current.select(count(acceptance::customer_id).aggregate_distinct()).first(c)?,
            attested.select(count(acceptance::partner_id).aggregate_distinct()).first(c)?,
        )
    });
    let count =
        |column, counted: i64| u64::try_from(counted).map_err(|_| at("acceptance", &key).corrupt(column));
    Ok(Retirement { customers: count("customer_id", customers)?, partners: count("partner_id", partners)? })
}
