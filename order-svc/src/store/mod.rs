//! The memory: rows, queries and the fenced transaction through which everything gated is stored.
//!
//! A file a noun. Functions take a connection, so that a caller composes them inside its own
//! transaction. No business rule lives here, and no gRPC status.

pub(crate) mod gated;
pub(crate) mod order;
pub(crate) mod report;
mod schema;
pub(crate) mod subscription;

use std::str::FromStr;

use chassis::database::Error;
use chrono::NaiveDateTime;
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use uuid::Uuid;

use crate::rules::Time;
use crate::rules::gate::{Decision, Permit, Rule};

/// The schema, for both databases.
pub(crate) const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Whose orders and subscriptions are asked for (ROLE-6).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Viewer {
    /// A partner: as payer or as the reseller on record.
    Partner(Uuid),
    /// All of them.
    Everything,
}

impl Viewer {
    /// Whether a row's payer or reseller makes it the viewer's.
    fn sees(self, payer: &str, reseller: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Partner(id) => {
                let id = id.to_string();
                id == payer || id == reseller
            }
        }
    }
}

/// A page of rows: only one customer's where one is named, after a key.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub viewer: Viewer,
    pub customer_id: Option<Uuid>,
    pub after: Option<String>,
    pub limit: i64,
}

/// The columns that keep the gate's answer: decision, rule, evidence, revision, time.
type PermitRow = (String, String, String, i64, NaiveDateTime);

fn permit_row(permit: &Permit) -> Result<PermitRow, Error> {
    let evidence = match &permit.evidence {
        None => String::new(),
        Some(evidence) => serde_json::to_string(evidence).map_err(|error| Error::Query(error.to_string()))?,
    };
    Ok((
        permit.decision.name().to_owned(),
        permit.rule.name().to_owned(),
        evidence,
        permit.revision,
        permit.evaluated_at.naive_utc(),
    ))
}

fn read_permit(table: &'static str, key: &str, row: PermitRow) -> Result<Permit, Error> {
    let (decision, rule, evidence, revision, evaluated_at) = row;
    let evidence = match evidence.as_str() {
        "" => None,
        text => Some(serde_json::from_str(text).map_err(|_| corrupt(table, key, "gate_evidence"))?),
    };
    Ok(Permit {
        decision: named(table, key, "gate_decision", Decision::from_name(&decision))?,
        rule: named(table, key, "gate_rule", Rule::from_name(&rule))?,
        evidence,
        revision,
        evaluated_at: utc(evaluated_at),
    })
}

/// A stored value that must parse, or the row is corrupt.
fn parse<T: FromStr>(table: &'static str, key: &str, column: &'static str, value: &str) -> Result<T, Error> {
    value.parse().map_err(|_| corrupt(table, key, column))
}

/// A stored name that must be one of an enum's.
fn named<T>(table: &'static str, key: &str, column: &'static str, value: Option<T>) -> Result<T, Error> {
    value.ok_or_else(|| corrupt(table, key, column))
}

/// A stored count that must not be negative or too large.
fn count<N>(table: &'static str, key: &str, column: &'static str, value: N) -> Result<u32, Error>
where
    u32: TryFrom<N>,
{
    u32::try_from(value).map_err(|_| corrupt(table, key, column))
}

/// An id that is stored as '' where there is none.
fn optional_id(
    table: &'static str,
    key: &str,
    column: &'static str,
    value: &str,
) -> Result<Option<Uuid>, Error> {
    (!value.is_empty()).then(|| parse(table, key, column, value)).transpose()
}

fn corrupt(table: &'static str, key: &str, column: &'static str) -> Error {
    Error::Corrupt { table, key: key.to_owned(), column }
}

fn utc(time: NaiveDateTime) -> Time {
    time.and_utc()
}

fn id_or_empty(id: Option<Uuid>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}
