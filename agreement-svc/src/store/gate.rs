//! The reader of the gate's facts: parties in, the facts of each out. One statement reads those of all parties, which costs
//! less than a statement for each. What only explains a refusal is read by another statement, `history`, so that a yes does not
//! pay for it.
//!
//! Invariant: the number of rows that it reads for a pair does not grow with the pair's history. Only current
//! acceptances are read as rows, which a unique index bounds.

mod history;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{BatchedReads, Connection, Database, Error, Unkept, asking};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text, Timestamp};
use diesel::sqlite::Sqlite;
use strum::VariantArray;
use uuid::Uuid;

pub(crate) use self::history::gate_history;
use super::schema::relationship;
use super::template::template_list;

use crate::rules::Time;
use crate::rules::eligibility::{Acceptance, Facts, Reacceptance, reacceptances};
use crate::rules::template::{AgreementType, Template};

/// Who buys for whom, and through which reseller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parties {
    pub pair: Pair,
    /// The relationship must name this reseller; without one, any active relationship of the pair will do.
    pub reseller_id: Option<Uuid>,
}

/// A customer and who pays for it. The order is that of lists: by customer, then payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub customer_id: Uuid,
    pub payer_id: Uuid,
}

/// What is known of parties that have an active relationship.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub country: String,
    /// The reseller of the only active relationship of the pair, if it has one.
    pub only_reseller_id: Option<Uuid>,
    pub first_purchase_at: Option<Time>,
    pub acceptance_revision: i64,
    /// The revision of the whole database.
    pub head: i64,
    pub facts: Facts,
}

/// The templates in memory, which the gate would otherwise join to each acceptance: a few rows that change
/// once in years. Each read of facts brings the revision of the newest template with it, and templates of another
/// revision are read anew. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct TemplateCache(Arc<RwLock<Arc<Templates>>>);

/// All templates as of a revision.
#[derive(Debug, Default)]
struct Templates {
    /// The revision of the template that changed last; 0 while there is none.
    revision: i64,
    /// When each version took effect, by template and number.
    effective_from: BTreeMap<(String, i32), Time>,
    /// The versions that demand acceptance anew.
    reacceptances: Vec<Reacceptance>,
}

/// Parties of one statement. Twice as many are hardly cheaper for each, and wait longer for each other.
const PARTIES_MAX: usize = 64;

/// Reads the facts of single checks; those of checks that come at the same time together.
pub(crate) type GateReads = BatchedReads<Parties, Option<Snapshot>>;

pub(crate) fn gate_reads(database: Database, cache: TemplateCache) -> GateReads {
    BatchedReads::new(database, PARTIES_MAX, move |connection, parties| {
        gate_facts(connection, &cache, parties)
    })
}

/// One current acceptance of the customer that is the payer's or its own, or the customer alone where there is none.
type Row = (i32, PairRow, CustomerRow, Revisions, Option<AcceptanceRow>);

/// The least and the greatest reseller of the pair's active relationships (`''` for none); equal where it has one relationship.
#[derive(Queryable)]
struct PairRow {
    /// `None` where the pair has no such relationship.
    first_reseller_id: Option<String>,
    last_reseller_id: Option<String>,
}

#[derive(Queryable)]
struct CustomerRow {
    country: String,
    cloud: String,
    first_purchase_at: Option<NaiveDateTime>,
    acceptance_revision: i64,
}

#[derive(Queryable)]
struct Revisions {
    head: Option<i64>,
    templates: Option<i64>,
}

#[derive(Queryable)]
struct AcceptanceRow {
    id: String,
    kind: String,
    agreement_type: String,
    template_id: String,
    template_version: i32,
    agreed_at: NaiveDateTime,
}

/// Parties as a table, with which a statement about them begins. Its text does not depend on them, so a connection prepares
/// it once. Diesel has no query for it.
///
/// The reseller of a relationship lies between two: those are the asked one, or the least and the greatest possible.
#[derive(Debug)]
struct Asked {
    numbers: Vec<i32>,
    /// Customers, payers, and the greatest and the least reseller.
    ids: [Vec<String>; 4],
}

impl Asked {
    fn new(parties: &[Parties]) -> Self {
        let ids = |id: fn(&Parties) -> String| parties.iter().map(id).collect();
        Self {
            numbers: (0..).take(parties.len()).collect(),
            ids: [
                ids(|parties| parties.pair.customer_id.to_string()),
                ids(|parties| parties.pair.payer_id.to_string()),
                ids(|parties| parties.reseller_id.unwrap_or(Uuid::max()).to_string()),
                ids(|parties| id_or_empty(parties.reseller_id)),
            ],
        }
    }
}

impl QueryFragment<Pg> for Asked {
    /// The planner does not see how long arrays are that come out of subqueries.
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            "WITH asked (number, customer_id, payer_id, greatest, least) AS (SELECT * FROM unnest((SELECT ",
        );
        out.push_bind_param::<Array<Integer>, _>(&self.numbers)?;
        out.push_sql("::integer[]");
        for ids in &self.ids {
            out.push_sql("), (SELECT ");
            out.push_bind_param::<Array<Text>, _>(ids)?;
            out.push_sql("::text[]");
        }
        out.push_sql("))) ");
        Ok(())
    }
}

impl QueryFragment<Sqlite> for Asked {
    /// One text of JSON has them all. The ids of each are one text in it, which is read faster than a list, and are found by
    /// the length of an id; only the last may be empty.
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(
            "WITH asked (number, customer_id, payer_id, greatest, least) AS MATERIALIZED (SELECT key, \
             substr(value, 1, 36), substr(value, 37, 36), substr(value, 73, 36), substr(value, 109) FROM json_each(",
        );
        out.push_bind_param::<Text, _>(self)?;
        out.push_sql(")) ");
        Ok(())
    }
}

impl ToSql<Text, Sqlite> for Asked {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        let all =
            |n: usize| self.ids.iter().filter_map(|ids| ids.get(n)).map(String::as_str).collect::<String>();
        let texts: Vec<_> = (0..self.numbers.len()).map(all).collect();
        out.set_value(serde_json::to_string(&texts)?);
        Ok(IsNull::No)
    }
}

/// The parties of a single question, as parameters of their own on SQLite, where to parse JSON would take longer than to read the
/// facts.
struct AskedAlone(Asked);

impl QueryFragment<Sqlite> for AskedAlone {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql("WITH asked (number, customer_id, payer_id, greatest, least) AS (SELECT 0");
        for id in self.0.ids.iter().flat_map(|ids| ids.iter().take(1)) {
            out.push_sql(", ");
            out.push_bind_param::<Text, _>(id)?;
        }
        out.push_sql(") ");
        Ok(())
    }
}

/// The statement that reads facts. Each row is a current acceptance of the customer that is the payer's or its own, or the
/// customer alone where there is none.
struct ReadFacts<A>(A);

impl<A> Query for ReadFacts<A> {
    type SqlType = (
        Integer,
        (Nullable<Text>, Nullable<Text>),
        (Text, Text, Nullable<Timestamp>, BigInt),
        (Nullable<BigInt>, Nullable<BigInt>),
        Nullable<(Text, Text, Text, Text, Integer, Timestamp)>,
    );
}

impl<A, C> RunQueryDsl<C> for ReadFacts<A> {}

impl<A: 'static> QueryId for ReadFacts<A> {
    type QueryId = Self;
    const HAS_STATIC_QUERY_ID: bool = true;
}

impl QueryFragment<Pg> for ReadFacts<Asked> {
    /// PostgreSQL keeps one plan for all parties: to plan the statement takes longer than to run it for one of them. As the planner
    /// does not see how many parties there are, such a plan never looks worse to it than one for these parties. And it looks
    /// up each of them by an index, whatever it believes of the size of the tables: a subquery with `OFFSET`
    /// or `LIMIT` is not joined with others, and only the index of current acceptances has them in the order of their types, of
    /// which there are fewer than the limit.
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.0.walk_ast(out.reborrow())?;
        out.push_sql(
            "SELECT asked.number, named.least, named.greatest, buyer.*,
            (SELECT value FROM revision), (SELECT max(revision) FROM template), current.* FROM asked
            CROSS JOIN LATERAL (SELECT country, cloud, first_purchase_at, acceptance_revision
                FROM customer WHERE id = asked.customer_id OFFSET 0) AS buyer
            CROSS JOIN LATERAL (SELECT min(reseller_id) AS least, max(reseller_id) AS greatest FROM relationship
                WHERE customer_id = asked.customer_id AND partner_id = asked.payer_id AND ended_at IS NULL
                AND reseller_id BETWEEN asked.least AND asked.greatest) AS named
            LEFT JOIN LATERAL (
                (SELECT id, kind, agreement_type, template_id, template_version, agreed_at FROM acceptance
                    WHERE customer_id = asked.customer_id AND partner_id = asked.payer_id
                    AND superseded_at IS NULL AND withdrawn_at IS NULL ORDER BY acceptance.agreement_type LIMIT 10)
                UNION ALL
                (SELECT id, kind, agreement_type, template_id, template_version, agreed_at FROM acceptance
                    WHERE customer_id = asked.customer_id AND partner_id = ''
                    AND superseded_at IS NULL AND withdrawn_at IS NULL ORDER BY acceptance.agreement_type LIMIT 10)
            ) AS current ON true",
        );
        Ok(())
    }
}

impl<A: QueryFragment<Sqlite>> QueryFragment<Sqlite> for ReadFacts<A> {
    /// With `OR` in place of `IN` SQLite would not find the current acceptances by their index, and without `CROSS` it could
    /// look through all customers for the asked ones.
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        self.0.walk_ast(out.reborrow())?;
        out.push_sql(
            "SELECT asked.number,
            (SELECT min(reseller_id) FROM relationship
                WHERE customer_id = asked.customer_id AND partner_id = asked.payer_id AND ended_at IS NULL
                AND reseller_id BETWEEN asked.least AND asked.greatest),
            (SELECT max(reseller_id) FROM relationship
                WHERE customer_id = asked.customer_id AND partner_id = asked.payer_id AND ended_at IS NULL
                AND reseller_id BETWEEN asked.least AND asked.greatest),
            customer.country, customer.cloud, customer.first_purchase_at, customer.acceptance_revision,
            (SELECT value FROM revision), (SELECT max(revision) FROM template),
            current.id, current.kind, current.agreement_type, current.template_id, current.template_version,
            current.agreed_at
            FROM asked CROSS JOIN customer ON customer.id = asked.customer_id
            LEFT JOIN acceptance AS current ON current.customer_id = asked.customer_id
                AND current.partner_id IN (asked.payer_id, '')
                AND current.superseded_at IS NULL AND current.withdrawn_at IS NULL",
        );
        Ok(())
    }
}

/// The rows of parties of which the customer is known.
fn gate_rows(connection: &mut Connection, parties: &[Parties]) -> Result<Vec<Row>, Error> {
    let asked = Asked::new(parties);
    asking(connection);
    Ok(match connection {
        Connection::Sqlite(c) if parties.len() == 1 => ReadFacts(AskedAlone(asked)).load(c)?,
        Connection::Sqlite(c) => ReadFacts(asked).load(c)?,
        Connection::Postgres(c) => ReadFacts(asked).load(c)?,
    })
}

/// The facts of each of the parties, in their order: `None` where they have no active relationship (GATE-0).
/// A damaged row is an error of the parties that it belongs to.
pub(crate) fn gate_facts(
    connection: &mut Connection,
    cache: &TemplateCache,
    parties: &[Parties],
) -> Result<Vec<Result<Option<Snapshot>, Error>>, Error> {
    let rows = gate_rows(connection, parties)?;
    let templates = match rows.first() {
        None => None,
        Some((_, _, _, revisions, _)) => Some(cache.at(connection, revisions.templates.unwrap_or_default())?),
    };
    let mut by_number: BTreeMap<i32, Vec<&Row>> = BTreeMap::new();
    // Only an active relationship makes a customer one of the payer's.
    for row in rows.iter().filter(|row| row.1.first_reseller_id.is_some()) {
        by_number.entry(row.0).or_default().push(row);
    }
    let facts = (0..).zip(parties).map(|(number, parties)| {
        let rows = by_number.get(&number).zip(templates.as_ref());
        rows.map(|(rows, templates)| snapshot(templates, parties.pair, rows)).transpose()
    });
    Ok(facts.collect())
}

/// What the rows of one pair say, which differ in the current acceptance only.
fn snapshot(templates: &Templates, of: Pair, rows: &[&Row]) -> Result<Snapshot, Error> {
    let key = &of.customer_id.to_string();
    let [(_, pair, customer, revisions, _), ..] = rows else {
        return Err(at("customer", key).corrupt("id"));
    };
    let accepted = rows.iter().filter_map(|row| row.4.as_ref());
    let acceptances = accepted.map(|row| templates.acceptance(row)).collect::<Result<Vec<_>, _>>()?;
    let only = pair.first_reseller_id.as_ref().filter(|first| Some(*first) == pair.last_reseller_id.as_ref());
    let only = only.map(|id| at("relationship", key).optional_id("reseller_id", id)).transpose()?;
    Ok(Snapshot {
        country: customer.country.clone(),
        only_reseller_id: only.flatten(),
        first_purchase_at: customer.first_purchase_at.map(utc),
        acceptance_revision: customer.acceptance_revision,
        head: revisions.head.ok_or_else(|| at("revision", "1").corrupt("value"))?,
        facts: Facts {
            cloud: at("customer", key).named("cloud", customer.cloud.parse().ok())?,
            reacceptances: templates.reacceptances_of(&acceptances),
            acceptances,
            withdrawn: vec![],
        },
    })
}

impl AcceptanceRow {
    /// `effective_from`: when its version took effect.
    fn acceptance(&self, effective_from: Time) -> Result<Acceptance, Error> {
        let (table, id) = ("acceptance", &self.id);
        Ok(Acceptance {
            id: at(table, id).parse("id", id)?,
            kind: at(table, id).named("kind", self.kind.parse().ok())?,
            agreement_type: at(table, id).named("agreement_type", self.agreement_type.parse().ok())?,
            template_id: at(table, id).parse("template_id", &self.template_id)?,
            template_version: at(table, id).count("template_version", self.template_version)?,
            effective_from,
            agreed_at: utc(self.agreed_at),
        })
    }
}

impl TemplateCache {
    /// The templates as of a revision, or newer ones: a version that was published after the facts were read
    /// concerns none of them.
    fn at(&self, connection: &mut Connection, revision: i64) -> Result<Arc<Templates>, Error> {
        let cached = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        if cached.revision == revision {
            return Ok(cached);
        }
        let read = Arc::new(Templates::new(&template_list(connection, AgreementType::VARIANTS)?));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&read);
        Ok(read)
    }
}

impl Templates {
    fn new(templates: &[Template]) -> Self {
        let versions = templates.iter().flat_map(|template| {
            let key = |number| (template.id.to_string(), i32::try_from(number).unwrap_or(i32::MAX));
            template.versions.iter().map(move |version| (key(version.number), version.effective_from))
        });
        Self {
            revision: templates.iter().map(|template| template.revision).max().unwrap_or_default(),
            effective_from: versions.collect(),
            reacceptances: reacceptances(templates, Time::MIN_UTC),
        }
    }

    fn acceptance(&self, row: &AcceptanceRow) -> Result<Acceptance, Error> {
        let version = (row.template_id.clone(), row.template_version);
        let effective_from = self.effective_from.get(&version).copied();
        let unknown = || at("acceptance", &row.id).corrupt("template_version");
        row.acceptance(effective_from.ok_or_else(unknown)?)
    }

    /// Those that concern any of the acceptances.
    fn reacceptances_of(&self, acceptances: &[Acceptance]) -> Vec<Reacceptance> {
        let concerns = |next: &&Reacceptance| acceptances.iter().any(|known| next.outdates(known));
        self.reacceptances.iter().filter(concerns).copied().collect()
    }
}

/// The pairs of an active relationship in key order, those behind `after`, at most `limit`. With a
/// partner only those that it sees: where it pays, or is the reseller. A pair comes once, however many
/// resellers are on it.
pub(crate) fn active_pairs(
    connection: &mut Connection,
    partner: Option<Uuid>,
    after: Option<Pair>,
    limit: usize,
) -> Result<Vec<Pair>, Error> {
    let Some(partner) = partner else { return pairs_of(connection, None, None, after, limit) };
    // Two questions, each of which an index answers in order; for a partner of either kind one of them
    // finds nothing.
    let mut pairs = pairs_of(connection, Some(partner), None, after, limit)?;
    pairs.extend(pairs_of(connection, None, Some(partner), after, limit)?);
    pairs.sort_unstable();
    pairs.dedup();
    pairs.truncate(limit);
    Ok(pairs)
}

fn pairs_of(
    connection: &mut Connection,
    payer: Option<Uuid>,
    reseller: Option<Uuid>,
    after: Option<Pair>,
    limit: usize,
) -> Result<Vec<Pair>, Error> {
    let (payer, reseller) = (payer.map(|id| id.to_string()), reseller.map(|id| id.to_string()));
    let after = after.map(|pair| (pair.customer_id.to_string(), pair.payer_id.to_string()));
    let (after_customer, after_payer) = after.unwrap_or_default();
    let rows: Vec<(String, String)> = query!(connection, c => {
        let mut pairs = relationship::table
            .filter(relationship::ended_at.is_null())
            .filter(relationship::customer_id.ge(&after_customer))
            .filter(relationship::customer_id.gt(&after_customer).or(relationship::partner_id.gt(&after_payer)))
            .select((relationship::customer_id, relationship::partner_id))
            .distinct()
            .order((relationship::customer_id, relationship::partner_id))
            .limit(i64::try_from(limit).unwrap_or(i64::MAX))
            .into_boxed();
        if let Some(payer) = &payer {
            pairs = pairs.filter(relationship::partner_id.eq(payer));
        }
        if let Some(reseller) = &reseller {
            pairs = pairs.filter(relationship::reseller_id.eq(reseller));
        }
        Unkept(pairs).load(c)
    })?;
    let read = |(customer, payer): &(String, String)| {
        let row = at("relationship", customer);
        Ok(Pair {
            customer_id: row.parse("customer_id", customer)?,
            payer_id: row.parse("partner_id", payer)?,
        })
    };
    rows.iter().map(read).collect()
}

#[cfg(test)]
pub(crate) mod tests;
