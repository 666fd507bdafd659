//! The store: rows, queries and the fenced transaction in which calls store what they buy and change.
//!
//! Each noun has its file. Functions take a connection, so that a caller composes them inside its own
//! transaction. No business rule lives here, and no gRPC status.

pub(crate) mod commit;
pub(crate) mod event;
pub(crate) mod fence;
pub(crate) mod history;
pub(crate) mod open;
pub(crate) mod order;
#[cfg(test)]
mod plans;
pub(crate) mod preview;
pub(crate) mod relationship;
pub(crate) mod report;
pub mod schema;
pub(crate) mod subscription;
pub(crate) mod update;
pub(crate) mod withdrawal;

use chassis::clock::lowest_id;
use chassis::database::Error;
use chassis::database::row::{at, utc};
use chrono::{NaiveDateTime, TimeDelta};
use diesel_migrations::{EmbeddedMigrations, embed_migrations};
use uuid::Uuid;

use crate::rules::Time;
use crate::rules::gate::Approval;

/// The schema, for both databases.
pub(crate) const MIGRATIONS: EmbeddedMigrations = embed_migrations!();

/// Whose orders and subscriptions are asked for (ROLE-6).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Viewer {
    /// A partner: as payer or as the reseller on record.
    Partner(Uuid),
    /// The customer itself.
    Customer(Uuid),
    /// All of them.
    Everything,
}

impl Viewer {
    /// Whether it is shown what the tenant that placed an order calls it.
    pub(crate) fn sees_reference_of(self, placed_by_tenant: Uuid) -> bool {
        match self {
            Self::Everything => true,
            Self::Partner(id) => id == placed_by_tenant,
            Self::Customer(_) => false,
        }
    }

    /// Whether a row's payer, reseller or customer makes it the viewer's.
    fn sees(self, payer: &str, reseller: &str, customer: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Customer(id) => id.to_string() == customer,
            Self::Partner(id) => {
                let id = id.to_string();
                id == payer || id == reseller
            }
        }
    }
}

/// A page of rows: only one customer's where one is named, after a key, up or down.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub viewer: Viewer,
    pub customer_id: Option<Uuid>,
    /// Of an order's line, or of the subscription.
    pub offer_id: Option<String>,
    /// Of orders that were placed then or later, and before. Orders and their subscriptions have ids of that time.
    pub from: Option<Time>,
    pub before: Option<Time>,
    pub newest_first: bool,
    pub after: Option<String>,
    pub limit: i64,
}

/// As whom a viewer's rows are found. Each way has an index in key order, which `OR` would lose.
#[derive(Clone, Copy, Debug)]
enum Side {
    Anyone,
    Payer(Uuid),
    Reseller(Uuid),
    Customer(Uuid),
}

impl Slice {
    /// Between which keys the rows are; both are excluded.
    fn keys(&self) -> (String, String) {
        // It sorts after all ids in every collation.
        const END: &str = "g";
        // No row has the lowest id of a time: the rest of it is zero.
        let mut low = self.from.map_or_else(String::new, lowest_id);
        let mut high = self
            .before
            .map_or_else(|| END.to_owned(), |before| lowest_id(before + TimeDelta::milliseconds(1)));
        match (&self.after, self.newest_first) {
            (None, _) => {}
            (Some(after), true) => high = high.min(after.clone()),
            (Some(after), false) => low = low.max(after.clone()),
        }
        (low, high)
    }

    /// Loads the slice from each side it has and merges the rows by key.
    fn load<R>(
        &self,
        mut load: impl FnMut(Side) -> Result<Vec<R>, Error>,
        key: impl Fn(&R) -> &str,
    ) -> Result<Vec<R>, Error> {
        let partner = match self.viewer {
            Viewer::Everything => return load(Side::Anyone),
            Viewer::Customer(own) => return load(Side::Customer(own)),
            Viewer::Partner(partner) => partner,
        };
        let mut rows = load(Side::Payer(partner))?;
        rows.extend(load(Side::Reseller(partner))?);
        rows.sort_by(|a, b| key(a).cmp(key(b)));
        if self.newest_first {
            rows.reverse();
        }
        rows.truncate(usize::try_from(self.limit).unwrap_or(usize::MAX));
        Ok(rows)
    }
}

/// The columns that keep the gate's answer: decision, rule, evidence, revision, time.
type ApprovalRow = (String, String, String, i64, NaiveDateTime);

fn approval_row(approval: &Approval) -> Result<ApprovalRow, Error> {
    let evidence = match &approval.evidence {
        None => String::new(),
        Some(evidence) => serde_json::to_string(evidence).map_err(|error| Error::Query(error.to_string()))?,
    };
    Ok((
        approval.decision.into_str().to_owned(),
        approval.rule.into_str().to_owned(),
        evidence,
        approval.revision,
        approval.evaluated_at.naive_utc(),
    ))
}

/// The same columns where the gate was not asked.
fn no_approval_row(at: Time) -> ApprovalRow {
    (String::new(), String::new(), String::new(), 0, at.naive_utc())
}

fn read_approval(table: &'static str, key: &str, row: ApprovalRow) -> Result<Approval, Error> {
    let (decision, rule, evidence, revision, evaluated_at) = row;
    let evidence = match evidence.as_str() {
        "" => None,
        text => Some(serde_json::from_str(text).map_err(|_| at(table, key).corrupt("gate_evidence"))?),
    };
    Ok(Approval {
        decision: at(table, key).named("gate_decision", decision.parse().ok())?,
        rule: at(table, key).named("gate_rule", rule.parse().ok())?,
        evidence,
        revision,
        evaluated_at: utc(evaluated_at),
    })
}
