//! What explains a refusal beyond the current acceptances: pairs in, what the history of each comes down to out. One statement
//! reads it for all pairs.
//!
//! Invariant: the number of rows that it reads for a pair does not grow with the pair's history. Of each kind and type it
//! reads the acceptance that was withdrawn last, and of all signatures when the first was made.

use std::collections::BTreeMap;

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error, asking};
use chrono::NaiveDateTime;
use diesel::backend::Backend;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Integer, Nullable, Text, Timestamp};
use strum::VariantArray;

use super::{AcceptanceRow, Asked, AskedAlone, Pair, Parties};
use crate::rules::Time;
use crate::rules::eligibility::{Acceptance, AcceptanceKind};
use crate::rules::template::AgreementType;

/// What a history of any length comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PastAcceptances {
    /// Of each kind and type, in their order, the acceptance that was withdrawn last, and when.
    pub withdrawn: Vec<(Acceptance, Time)>,
    /// When the customer first signed anything, whatever became of it.
    pub first_signed_at: Option<Time>,
}

/// The statement that reads histories. Each row is the acceptance of a kind and type that was withdrawn last, or the pair
/// alone where there is none.
struct ReadHistory<A>(A);

/// When the customer first signed, the acceptance, when it was withdrawn, and when its version took effect.
type Row = (i32, Option<NaiveDateTime>, Option<AcceptanceRow>, Option<NaiveDateTime>, Option<NaiveDateTime>);

impl<A> Query for ReadHistory<A> {
    type SqlType = (
        Integer,
        Nullable<Timestamp>,
        Nullable<(Text, Text, Text, Text, Integer, Timestamp)>,
        Nullable<Timestamp>,
        Nullable<Timestamp>,
    );
}

impl<A, C> RunQueryDsl<C> for ReadHistory<A> {}

impl<A: 'static> QueryId for ReadHistory<A> {
    type QueryId = Self;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl<A: QueryFragment<DB>, DB: Backend> QueryFragment<DB> for ReadHistory<A> {
    /// Each of the four look-ups takes the last entry of a part of the index `acceptance_last_withdrawn`.
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, DB>) -> QueryResult<()> {
        self.0.walk_ast(out.reborrow())?;
        out.push_sql(
            "SELECT asked.number,
            (SELECT min(agreed_at) FROM acceptance WHERE customer_id = asked.customer_id AND partner_id = ''),
            last.id, last.kind, last.agreement_type, last.template_id, last.template_version, last.agreed_at,
            last.withdrawn_at, template_version.effective_from
            FROM asked LEFT JOIN acceptance AS last ON last.id IN (",
        );
        let kinds = ["asked.payer_id", "''"];
        let possible = kinds.iter().flat_map(|kind| AgreementType::VARIANTS.iter().map(move |of| (kind, of)));
        for (n, (partner, of)) in possible.enumerate() {
            out.push_sql(if n == 0 { "" } else { ", " });
            out.push_sql(
                "(SELECT id FROM acceptance WHERE customer_id = asked.customer_id AND partner_id = ",
            );
            out.push_sql(partner);
            out.push_sql(" AND agreement_type = '");
            out.push_sql((*of).into_str());
            out.push_sql("' AND withdrawn_at IS NOT NULL ORDER BY withdrawn_at DESC LIMIT 1)");
        }
        out.push_sql(
            ") LEFT JOIN template_version ON template_version.template_id = last.template_id
                AND template_version.number = last.template_version",
        );
        Ok(())
    }
}

/// What the history of each of the pairs says beyond its current acceptances, in their order. A damaged row is an error of the
/// pair that it belongs to. Without a snapshot it may be of a later state than the facts: that shows in the reasons of a refusal
/// and in the remedies, never in the decision.
pub(crate) fn gate_history(
    connection: &mut Connection,
    pairs: &[Pair],
) -> Result<Vec<Result<PastAcceptances, Error>>, Error> {
    if pairs.is_empty() {
        return Ok(vec![]);
    }
    let parties: Vec<_> = pairs.iter().map(|pair| Parties { pair: *pair, reseller_id: None }).collect();
    let asked = Asked::new(&parties);
    asking(connection);
    let rows: Vec<Row> = match connection {
        Connection::Sqlite(c) if parties.len() == 1 => ReadHistory(AskedAlone(asked)).load(c)?,
        Connection::Sqlite(c) => ReadHistory(asked).load(c)?,
        Connection::Postgres(c) => ReadHistory(asked).load(c)?,
    };
    let mut by_number: BTreeMap<i32, Vec<Row>> = BTreeMap::new();
    for row in rows {
        by_number.entry(row.0).or_default().push(row);
    }
    Ok((0..).take(pairs.len()).map(|number| past(by_number.remove(&number).unwrap_or_default())).collect())
}

/// What the rows of one pair say, which differ in the acceptance only.
fn past(rows: Vec<Row>) -> Result<PastAcceptances, Error> {
    let first_signed_at = rows.first().and_then(|row| row.1).map(utc);
    let mut withdrawn = vec![];
    for (_, _, acceptance, withdrawn_at, effective_from) in rows {
        let Some((acceptance, withdrawn_at)) = acceptance.zip(withdrawn_at) else { continue };
        let unknown = || at("acceptance", &acceptance.id).corrupt("template_version");
        let read = acceptance.acceptance(utc(effective_from.ok_or_else(unknown)?))?;
        withdrawn.push((read, utc(withdrawn_at)));
    }
    withdrawn.sort_by_key(|(last, _)| (last.kind == AcceptanceKind::Signature, last.agreement_type));
    Ok(PastAcceptances { withdrawn, first_signed_at })
}
