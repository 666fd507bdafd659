//! What the gate decides on, in one statement, so that it is one snapshot.

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::dsl::{exists, not};
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{acceptance, customer, relationship, revision, template, template_version};

use crate::rules::Time;
use crate::rules::eligibility::{Acceptance, AcceptanceKind, Facts, Reacceptance, Standing};
use crate::rules::party::Cloud;
use crate::rules::template::AgreementType;

/// Payer, customer and reseller belong together, and this is what is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub country: String,
    pub first_purchase_at: Option<Time>,
    pub acceptance_revision: i64,
    /// The revision of the whole database.
    pub head: i64,
    pub facts: Facts,
}

diesel::alias!(template_version as later: Later);

#[derive(Queryable)]
struct CustomerRow {
    country: String,
    cloud: String,
    first_purchase_at: Option<NaiveDateTime>,
    acceptance_revision: i64,
    head: Option<i64>,
}

#[derive(Queryable)]
struct AcceptanceRow {
    id: String,
    kind: String,
    agreement_type: String,
    template_id: String,
    template_version: i32,
    agreed_at: NaiveDateTime,
    superseded_at: Option<NaiveDateTime>,
    withdrawn_at: Option<NaiveDateTime>,
}

type Row = (
    CustomerRow,
    Option<AcceptanceRow>,
    Option<NaiveDateTime>,
    Option<(String, NaiveDateTime, Option<NaiveDateTime>)>,
);

/// The facts about a payer's customer; `None` when payer, customer and reseller do not belong
/// together (GATE-0).
pub(crate) fn gate_snapshot(
    connection: &mut Connection,
    payer: Uuid,
    customer_id: Uuid,
    reseller: Option<Uuid>,
) -> Result<Option<Snapshot>, Error> {
    let (payer, key) = (payer.to_string(), customer_id.to_string());
    let reseller = reseller.map(|id| id.to_string());
    let rows: Vec<Row> = query!(connection, c => {
        let mut together = relationship::table
            .filter(relationship::customer_id.eq(&key))
            .filter(relationship::partner_id.eq(&payer))
            .filter(relationship::ended_at.is_null())
            .into_boxed();
        if let Some(reseller) = &reseller {
            together = together.filter(relationship::reseller_id.eq(reseller));
        }
        customer::table
            .left_join(acceptance::table.on(acceptance::customer_id
                .eq(customer::id)
                .and(acceptance::partner_id.eq(payer.clone()).or(acceptance::partner_id.eq("")))
                .and(acceptance::superseded_at.is_null().or(acceptance::partner_id.eq("")))))
            .left_join(template_version::table.on(template_version::template_id
                .nullable()
                .eq(acceptance::template_id.nullable())
                .and(template_version::number.nullable().eq(acceptance::template_version.nullable()))))
            .left_join(later.on(later
                .field(template_version::agreement_type)
                .nullable()
                .eq(acceptance::agreement_type.nullable())
                .and(later
                    .field(template_version::effective_from)
                    .nullable()
                    .gt(template_version::effective_from.nullable()))
                // A version that was to take effect after its template was retired never does.
                .and(not(exists(
                    template::table
                        .filter(template::id.eq(later.field(template_version::template_id)))
                        .filter(template::retired_at.le(later.field(template_version::effective_from).nullable())),
                )))))
            .filter(customer::id.eq(&key))
            .filter(exists(together))
            .select((
                (
                    customer::country,
                    customer::cloud,
                    customer::first_purchase_at,
                    customer::acceptance_revision,
                    revision::table.select(revision::value).single_value(),
                ),
                (
                    acceptance::id,
                    acceptance::kind,
                    acceptance::agreement_type,
                    acceptance::template_id,
                    acceptance::template_version,
                    acceptance::agreed_at,
                    acceptance::superseded_at,
                    acceptance::withdrawn_at,
                )
                    .nullable(),
                template_version::effective_from.nullable(),
                (
                    later.field(template_version::agreement_type),
                    later.field(template_version::effective_from),
                    later.field(template_version::reaccept_by),
                )
                    .nullable(),
            ))
            .load(c)
    })?;
    read(&key, rows)
}

fn read(key: &str, rows: Vec<Row>) -> Result<Option<Snapshot>, Error> {
    let mut snapshot: Option<Snapshot> = None;
    for (customer, accepted, effective_from, later_version) in rows {
        let snapshot = match &mut snapshot {
            Some(snapshot) => snapshot,
            none => none.insert(Snapshot {
                country: customer.country,
                first_purchase_at: customer.first_purchase_at.map(utc),
                acceptance_revision: customer.acceptance_revision,
                head: customer.head.ok_or_else(|| at("revision", "1").corrupt("value"))?,
                facts: Facts {
                    cloud: at("customer", key).named("cloud", Cloud::from_name(&customer.cloud))?,
                    acceptances: vec![],
                    reacceptances: vec![],
                },
            }),
        };
        let facts = &mut snapshot.facts;
        if let Some(row) = accepted {
            let acceptance = read_acceptance(&row, effective_from)?;
            if !facts.acceptances.contains(&acceptance) {
                facts.acceptances.push(acceptance);
            }
        }
        if let Some((of, effective_from, Some(reaccept_by))) = later_version {
            let agreement_type =
                at("template_version", &of).named("agreement_type", AgreementType::from_name(&of))?;
            let (effective_from, reaccept_by) = (utc(effective_from), utc(reaccept_by));
            let reacceptance = Reacceptance { agreement_type, effective_from, reaccept_by };
            if !facts.reacceptances.contains(&reacceptance) {
                facts.reacceptances.push(reacceptance);
            }
        }
    }
    Ok(snapshot)
}

fn read_acceptance(row: &AcceptanceRow, effective_from: Option<NaiveDateTime>) -> Result<Acceptance, Error> {
    let (table, id) = ("acceptance", &row.id);
    let standing = match (row.withdrawn_at, row.superseded_at) {
        (Some(_), _) => Standing::Withdrawn,
        (None, Some(_)) => Standing::Superseded,
        (None, None) => Standing::Current,
    };
    Ok(Acceptance {
        id: at(table, id).parse("id", id)?,
        kind: at(table, id).named("kind", AcceptanceKind::from_name(&row.kind))?,
        agreement_type: at(table, id)
            .named("agreement_type", AgreementType::from_name(&row.agreement_type))?,
        template_id: at(table, id).parse("template_id", &row.template_id)?,
        template_version: u32::try_from(row.template_version)
            .map_err(|_| at(table, id).corrupt("template_version"))?,
        effective_from: utc(effective_from.ok_or_else(|| at(table, id).corrupt("template_version"))?),
        agreed_at: utc(row.agreed_at),
        standing,
    })
}
