//! Reads the rows of both services' databases directly, without changing anything.

use std::collections::BTreeMap;

use chassis::clock::Time;
use chassis::database::{Connection, Url};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::connection::SimpleConnection;
use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text, Timestamp};
use diesel::{QueryableByName, RunQueryDsl, sql_query};

use crate::databases::connect;

/// Runs a query; its rows are read by column name.
macro_rules! load {
    ($connection:expr, $sql:expr) => {
        query!($connection, c => sql_query($sql).load(c)).map_err(|error| format!("{error}: {}", $sql))
    };
}

/// A connection on which everything is read as it is now, whatever happens meanwhile.
pub(super) fn snapshot(database: &Url) -> Result<Connection, String> {
    let mut connection = connect(database)?;
    match &mut connection {
        Connection::Sqlite(c) => c.batch_execute("BEGIN"),
        Connection::Postgres(c) => c.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"),
    }
    .map_err(|error| error.to_string())?;
    Ok(connection)
}

/// Whatever the gate allowed, and the answer it rests on.
#[derive(Debug, QueryableByName)]
pub(super) struct Gated {
    /// ORDER, or the kind of change.
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Text)]
    pub customer_id: String,
    #[diesel(sql_type = Text)]
    pub payer_id: String,
    #[diesel(sql_type = Timestamp)]
    made_at: NaiveDateTime,
    #[diesel(sql_type = Text)]
    pub gate_decision: String,
    #[diesel(sql_type = Text)]
    pub gate_evidence: String,
    #[diesel(sql_type = BigInt)]
    pub gate_revision: i64,
    #[diesel(sql_type = Timestamp)]
    gate_evaluated_at: NaiveDateTime,
}

impl Gated {
    pub(super) fn made_at(&self) -> Time {
        self.made_at.and_utc()
    }

    pub(super) fn evaluated_at(&self) -> Time {
        self.gate_evaluated_at.and_utc()
    }
}

/// Every order, and every change that must not happen without the gate.
pub(super) fn gated(orders: &mut Connection) -> Result<Vec<Gated>, String> {
    load!(
        orders,
        "SELECT 'ORDER' AS kind, id, customer_id, payer_id, placed_at AS made_at, gate_decision, gate_evidence,
            gate_revision, gate_evaluated_at
        FROM orders
        UNION ALL
        SELECT c.kind, c.subscription_id, s.customer_id, s.payer_id, c.changed_at, c.gate_decision, c.gate_evidence,
            c.gate_revision, c.gate_evaluated_at
        FROM subscription_change c JOIN subscription s ON s.id = c.subscription_id
        WHERE c.kind IN ('CREATED', 'SEATS_CHANGED', 'AUTO_RENEW_ON') OR (c.kind = 'RENEWED' AND c.reason = 'REQUESTED')"
    )
}

/// One change of a subscription.
#[derive(Debug, QueryableByName)]
pub(super) struct Change {
    #[diesel(sql_type = Text)]
    pub subscription_id: String,
    #[diesel(sql_type = Integer)]
    pub number: i32,
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = BigInt)]
    pub quantity_after: i64,
    #[diesel(sql_type = Text)]
    pub reason: String,
    #[diesel(sql_type = BigInt)]
    pub event_revision: i64,
    /// Of the answer it rests on; 0 where the gate was not asked.
    #[diesel(sql_type = BigInt)]
    pub gate_revision: i64,
}

/// All changes, in the order in which they happened to each subscription.
pub(super) fn changes(orders: &mut Connection) -> Result<Vec<Change>, String> {
    load!(
        orders,
        "SELECT subscription_id, number, kind, quantity_after, reason, event_revision, gate_revision
        FROM subscription_change ORDER BY subscription_id, number"
    )
}

#[derive(Debug, QueryableByName)]
pub(super) struct Subscription {
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Text)]
    pub customer_id: String,
    #[diesel(sql_type = Text)]
    pub payer_id: String,
    #[diesel(sql_type = Text)]
    pub reseller_id: String,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Text)]
    pub term: String,
    #[diesel(sql_type = Bool)]
    pub auto_renew: bool,
    #[diesel(sql_type = BigInt)]
    pub quantity: i64,
    #[diesel(sql_type = BigInt)]
    pub answer_revision: i64,
    #[diesel(sql_type = BigInt)]
    pub version: i64,
}

impl Subscription {
    pub(super) fn is_final(&self) -> bool {
        ["CANCELLED", "EXPIRED"].contains(&self.state.as_str())
    }
}

pub(super) fn subscriptions(orders: &mut Connection) -> Result<Vec<Subscription>, String> {
    load!(
        orders,
        "SELECT id, customer_id, payer_id, reseller_id, state, term, auto_renew, quantity, answer_revision, version
        FROM subscription"
    )
}

/// A request that was answered.
#[derive(Debug, QueryableByName)]
pub(super) struct Answered {
    #[diesel(sql_type = Text)]
    pub call: String,
    #[diesel(sql_type = Text)]
    pub request_id: String,
    #[diesel(sql_type = Binary)]
    pub answer: Vec<u8>,
    #[diesel(sql_type = Timestamp)]
    answered_at: NaiveDateTime,
}

impl Answered {
    pub(super) fn answered_at(&self) -> Time {
        self.answered_at.and_utc()
    }
}

/// The answers that a service keeps, by request id.
pub(super) fn answered(service: &mut Connection) -> Result<Vec<Answered>, String> {
    load!(service, "SELECT call, request_id, answer, answered_at FROM request")
}

/// A customer, and what agreement-svc knows of its first purchase.
#[derive(Debug, QueryableByName)]
pub(super) struct Customer {
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Nullable<Timestamp>)]
    pub first_purchase_at: Option<NaiveDateTime>,
}

pub(super) fn customers(agreements: &mut Connection) -> Result<Vec<Customer>, String> {
    load!(agreements, "SELECT id, first_purchase_at FROM customer")
}

/// A first purchase, and whether agreement-svc has its report.
#[derive(Debug, QueryableByName)]
pub(super) struct Purchase {
    #[diesel(sql_type = Text)]
    pub customer_id: String,
    #[diesel(sql_type = Text)]
    pub order_id: String,
    #[diesel(sql_type = Timestamp)]
    pub purchased_at: NaiveDateTime,
    #[diesel(sql_type = Bool)]
    pub is_reported: bool,
}

pub(super) fn purchases(orders: &mut Connection) -> Result<Vec<Purchase>, String> {
    load!(
        orders,
        "SELECT customer_id, order_id, purchased_at, reported_at IS NOT NULL AS is_reported FROM purchase_report"
    )
}

/// An acceptance, and how far its notification is.
#[derive(Debug, QueryableByName)]
pub(super) struct Acceptance {
    #[diesel(sql_type = Text)]
    pub id: String,
    #[diesel(sql_type = Text)]
    pub kind: String,
    #[diesel(sql_type = Text)]
    pub customer_id: String,
    #[diesel(sql_type = Text)]
    pub partner_id: String,
    #[diesel(sql_type = Text)]
    pub recorded_by: String,
    #[diesel(sql_type = Text)]
    pub email: String,
    #[diesel(sql_type = BigInt)]
    pub revision: i64,
    #[diesel(sql_type = Bool)]
    pub is_withdrawn: bool,
    /// There is none for signatures.
    #[diesel(sql_type = Nullable<Text>)]
    pub notification: Option<String>,
}

pub(super) fn acceptances(agreements: &mut Connection) -> Result<Vec<Acceptance>, String> {
    load!(
        agreements,
        "SELECT a.id, a.kind, a.customer_id, a.partner_id, a.recorded_by, a.email, a.revision,
            a.withdrawn_at IS NOT NULL AS is_withdrawn, n.state AS notification
        FROM acceptance a LEFT JOIN notification n ON n.attestation_id = a.id"
    )
}

#[derive(QueryableByName)]
struct Head {
    #[diesel(sql_type = BigInt)]
    value: i64,
    #[diesel(sql_type = Text)]
    head: String,
}

/// Number and hash of agreement-svc's last event.
pub(super) fn head(agreements: &mut Connection) -> Result<(i64, String), String> {
    let rows: Vec<Head> = load!(agreements, "SELECT value, head FROM revision")?;
    rows.into_iter().next().map(|row| (row.value, row.head)).ok_or("no revision".into())
}

#[derive(QueryableByName)]
struct Cursor {
    #[diesel(sql_type = BigInt)]
    revision: i64,
}

/// How far order-svc has applied agreement-svc's history.
pub(super) fn cursor(orders: &mut Connection) -> Result<i64, String> {
    let rows: Vec<Cursor> = load!(orders, "SELECT revision FROM follower")?;
    rows.into_iter().next().map(|row| row.revision).ok_or("no cursor".into())
}

/// What order-svc reports of a withdrawal.
#[derive(Debug, QueryableByName)]
pub(super) struct Report {
    #[diesel(sql_type = BigInt)]
    pub revision: i64,
    #[diesel(sql_type = Text)]
    pub customer_id: String,
    #[diesel(sql_type = Text)]
    pub acceptance_id: String,
    #[diesel(sql_type = Integer)]
    pub cancelled: i32,
}

pub(super) fn reports(orders: &mut Connection) -> Result<Vec<Report>, String> {
    load!(
        orders,
        "SELECT revision, customer_id, acceptance_id, cancelled FROM withdrawal WHERE is_complete ORDER BY revision"
    )
}

#[derive(QueryableByName)]
struct Uncovered {
    #[diesel(sql_type = BigInt)]
    revision: i64,
    #[diesel(sql_type = Text)]
    partner_id: String,
}

/// The partners that reports call uncovered, by revision.
pub(super) fn uncovered(orders: &mut Connection) -> Result<BTreeMap<i64, Vec<String>>, String> {
    let rows: Vec<Uncovered> =
        load!(orders, "SELECT revision, partner_id FROM withdrawal_partner WHERE is_uncovered")?;
    let mut uncovered: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for row in rows {
        uncovered.entry(row.revision).or_default().push(row.partner_id);
    }
    Ok(uncovered)
}

#[derive(QueryableByName)]
struct Tried {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// How many of an outbox have been tried more than once.
pub(super) fn tried_again(service: &mut Connection, outbox: &str) -> Result<i64, String> {
    let rows: Vec<Tried> =
        load!(service, format!("SELECT count(*) AS count FROM {outbox} WHERE attempts > 1"))?;
    Ok(rows.iter().map(|row| row.count).sum())
}
