//! Attestations, among the acceptances.

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{acceptance, template_version};

use crate::rules::Time;
use crate::rules::attestation::Attestation;
use crate::rules::eligibility::AcceptanceKind;
use crate::rules::party::Contact;
use crate::rules::template::AgreementType;

#[derive(Queryable, Selectable)]
#[diesel(table_name = acceptance)]
struct Row {
    id: String,
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
}

impl Row {
    fn read(self) -> Result<Attestation, Error> {
        let (table, id) = ("acceptance", &self.id);
        let version = u32::try_from(self.template_version);
        Ok(Attestation {
            partner_id: at(table, id).parse("partner_id", &self.partner_id)?,
            customer_id: at(table, id).parse("customer_id", &self.customer_id)?,
            agreement_type: at(table, id)
                .named("agreement_type", AgreementType::from_name(&self.agreement_type))?,
            template_id: at(table, id).parse("template_id", &self.template_id)?,
            template_version: version.map_err(|_| at(table, id).corrupt("template_version"))?,
            recorded_by: at(table, id).parse("recorded_by", &self.recorded_by)?,
            id: at(table, id).parse("id", id)?,
            contact: Contact {
                first_name: self.first_name,
                last_name: self.last_name,
                email: self.email,
                phone: self.phone,
            },
            contact_salt: self.contact_salt,
            agreed_at: utc(self.agreed_at),
            recorded_at: utc(self.recorded_at),
            superseded_at: self.superseded_at.map(utc),
            withdrawn_at: self.withdrawn_at.map(utc),
            revision: self.revision,
        })
    }
}

pub(crate) fn attestation_find(connection: &mut Connection, id: Uuid) -> Result<Option<Attestation>, Error> {
    let row: Option<Row> = query!(connection, c => {
        acceptance::table
            .find(id.to_string())
            .filter(acceptance::kind.eq(AcceptanceKind::Attestation.name()))
            .select(Row::as_select())
            .first(c)
            .optional()
    })?;
    row.map(Row::read).transpose()
}

/// The current attestation of a partner, customer and type, with the time its version took effect.
pub(crate) fn attestation_current(
    connection: &mut Connection,
    partner: Uuid,
    customer: Uuid,
    of: AgreementType,
) -> Result<Option<(Attestation, Time)>, Error> {
    let row: Option<(Row, NaiveDateTime)> = query!(connection, c => {
        acceptance::table
            .inner_join(template_version::table.on(template_version::template_id
                .eq(acceptance::template_id)
                .and(template_version::number.eq(acceptance::template_version))))
            .filter(acceptance::customer_id.eq(customer.to_string()))
            .filter(acceptance::partner_id.eq(partner.to_string()))
            .filter(acceptance::agreement_type.eq(of.name()))
            .filter(acceptance::superseded_at.is_null())
            .filter(acceptance::withdrawn_at.is_null())
            .select((Row::as_select(), template_version::effective_from))
            .first(c)
            .optional()
    })?;
    row.map(|(row, effective_from)| Ok((row.read()?, utc(effective_from)))).transpose()
}

/// A customer's attestations, oldest first; only one partner's where one is named.
pub(crate) fn attestation_list(
    connection: &mut Connection,
    customer: Uuid,
    partner: Option<Uuid>,
    include_history: bool,
    after: i64,
    limit: i64,
) -> Result<Vec<Attestation>, Error> {
    let partner = partner.map(|id| id.to_string());
    let rows: Vec<Row> = query!(connection, c => {
        let mut list = acceptance::table
            .filter(acceptance::customer_id.eq(customer.to_string()))
            .filter(acceptance::kind.eq(AcceptanceKind::Attestation.name()))
            .filter(acceptance::revision.gt(after))
            .order(acceptance::revision)
            .limit(limit)
            .select(Row::as_select())
            .into_boxed();
        if let Some(partner) = &partner {
            list = list.filter(acceptance::partner_id.eq(partner));
        }
        if !include_history {
            list = list.filter(acceptance::superseded_at.is_null()).filter(acceptance::withdrawn_at.is_null());
        }
        list.load(c)
    })?;
    rows.into_iter().map(Row::read).collect()
}

pub(crate) fn attestation_insert(connection: &mut Connection, new: &Attestation) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(acceptance::table)
            .values((
                acceptance::id.eq(new.id.to_string()),
                acceptance::kind.eq(AcceptanceKind::Attestation.name()),
                acceptance::partner_id.eq(new.partner_id.to_string()),
                acceptance::customer_id.eq(new.customer_id.to_string()),
                acceptance::agreement_type.eq(new.agreement_type.name()),
                acceptance::template_id.eq(new.template_id.to_string()),
                acceptance::template_version.eq(i32::try_from(new.template_version).unwrap_or(i32::MAX)),
                acceptance::first_name.eq(&new.contact.first_name),
                acceptance::last_name.eq(&new.contact.last_name),
                acceptance::email.eq(&new.contact.email),
                acceptance::phone.eq(&new.contact.phone),
                acceptance::contact_salt.eq(&new.contact_salt),
                acceptance::agreed_at.eq(new.agreed_at.naive_utc()),
                acceptance::recorded_at.eq(new.recorded_at.naive_utc()),
                acceptance::recorded_by.eq(new.recorded_by.to_string()),
                acceptance::revision.eq(new.revision),
            ))
            .execute(c)
    })?;
    Ok(())
}

pub(crate) fn attestation_supersede(connection: &mut Connection, id: Uuid, now: Time) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(acceptance::table.find(id.to_string()))
            .set(acceptance::superseded_at.eq(now.naive_utc()))
            .execute(c)
    })?;
    Ok(())
}
