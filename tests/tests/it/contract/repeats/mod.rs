//! Many callers at once, the same request twice, and damaged rows: what is stored stays
//! one history, and every caller gets a true answer.
//!
//! The clients run on a worker thread, so that they hang up while a test waits for a service to
//! drain; otherwise each stop would take as long as a drain may.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

mod corrupt_rows;
mod idempotency;
mod late;
mod one_history;
mod paging;
mod replays;
mod validate_only;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;

use chassis::clock::Clock;
use chassis::database::{Connection, Url};
use chassis::form::timestamp;
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text, Timestamp};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use prost::Message;
use proto::agreement::event::Change;
use proto::agreement::{
    Attestation, AttestationState, CreateAttestationRequest, CreateCustomerRequest, GetAttestationRequest,
    GetCustomerRequest, GetTemplateRequest, InlineAttestation, ListAttestationsRequest, ListCustomersRequest,
    PartnerKind, PublishTemplateVersionRequest, ReportPurchaseRequest, UpdateCustomerRequest,
};
use proto::identity::{Role, TenantKind};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, GetOrderRequest, GetSubscriptionRequest, ListOrdersRequest,
    ListSubscriptionChangesRequest, ListSubscriptionsRequest, Subscription,
};
use proto::types::{Cloud, Contact, Decision};
use rstest_reuse::apply;
use sha2::{Digest, Sha256};
use tests::actions::{self, orders_of, subscribe};
use tests::assert::{refusal, refused};
use tests::clients::caller;
use tests::databases::connect;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, new_attestation_by, person};
use tests::{As, Backend, Cluster, metadata_of, reason_of};

use crate::each_backend;
use tonic::{Code, Response, Status};
use uuid::Uuid;

/// Enough to race. Few enough that the tests that run at the same time against one stack stay within its limit of
/// calls in progress.
const CALLERS: usize = 32;

/// Few enough that several callers share a connection, and more than one.
const CONNECTIONS: usize = 4;

const AGREEMENTS: &str = "agreement-svc";

const ORDERS: &str = "order-svc";

const AGREEMENT_TABLES: [&str; 17] = [
    "revision",
    "event",
    "request",
    "partner",
    "reseller_link",
    "customer",
    "customer_reference",
    "relationship",
    "template",
    "template_version",
    "template_document",
    "acceptance",
    "invitation",
    "proposal",
    "contact",
    "notification",
    "contact_notice",
];

const ORDER_TABLES: [&str; 7] =
    ["request", "fence", "orders", "order_line", "subscription", "subscription_change", "purchase_report"];

async fn start(backend: Backend) -> Cluster {
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    cluster
}

/// The same user on several connections.
fn sales_agents(cluster: &Cluster, partner: Uuid) -> Vec<As> {
    (0..CONNECTIONS).map(|_| cluster.as_caller(fixtures::sales(partner))).collect()
}

/// Makes the same call many times at once.
async fn at_once<A, F>(agents: &[As], call: impl Fn(As) -> F) -> Vec<Result<A, Status>>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let calls = (0..CALLERS).map(|n| call(agents[n % agents.len()].clone()));
    let answers = join_all(calls).await;
    let answered = answers.iter().flatten();
    let first = answered.clone().filter(|answer| !answer.metadata().contains_key("x-replayed")).count();
    assert_eq!(first, answered.count().min(1), "only the first answer is no repetition");
    answers.into_iter().map(|answer| answer.map(Response::into_inner)).collect()
}

/// The one answer that all of them are.
fn the_one<A: Message + Clone>(answers: &[Result<A, Status>]) -> A {
    let answers: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap()).collect();
    let bytes: BTreeSet<_> = answers.iter().map(|answer| answer.encode_to_vec()).collect();
    assert_eq!(bytes.len(), 1, "one request id has one answer");
    answers[0].clone()
}

fn reused() -> (Code, String) {
    (Code::InvalidArgument, "REQUEST_ID_REUSED".into())
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

/// A connection behind the service's back.
fn behind(database: &Url) -> Connection {
    connect(database).unwrap()
}

/// Rows of each table.
fn rows<'t>(connection: &mut Connection, tables: &[&'t str]) -> Vec<(&'t str, i64)> {
    let count = |table: &&'t str| {
        let sql = format!("SELECT COUNT(*) AS count FROM {table}");
        let counted: Count = query!(&mut *connection, c => sql_query(sql).get_result(c)).unwrap();
        (*table, counted.count)
    };
    tables.iter().map(count).collect()
}

/// How much there is of everything, by service and table.
type Everything = BTreeMap<(&'static str, &'static str), i64>;

/// Rows of every table of both services. The databases of a stack are out of reach: there both services list
/// what they have of the cluster's customers, and it is counted by table.
async fn everything(cluster: &Cluster) -> Everything {
    if cluster.is_shared() {
        return everything_listed(cluster).await;
    }
    let services = [
        (AGREEMENTS, cluster.agreements_database(), &AGREEMENT_TABLES[..]),
        (ORDERS, cluster.orders_database(), &ORDER_TABLES),
    ];
    let counted = services.into_iter().flat_map(|(service, database, tables)| {
        rows(&mut behind(database), tables).into_iter().map(move |(table, count)| ((service, table), count))
    });
    counted.collect()
}

async fn everything_listed(cluster: &Cluster) -> Everything {
    let operator = cluster.as_caller(fixtures::operator());
    let events = cluster.events_after(0).await.unwrap();
    let (mut customers, mut relationships, mut acceptances) = (0, 0, 0);
    let (mut orders, mut lines, mut subscriptions, mut changes) = (0, 0, 0, 0);
    for event in &events {
        let customer_id = &event.customer_id;
        relationships += usize::from(matches!(event.change, Some(Change::RelationshipEstablished(_))));
        if !matches!(event.change, Some(Change::CustomerCreated(_))) {
            continue;
        }
        customers += 1;
        acceptances += history(&operator, customer_id).await.len();
        let request = ListOrdersRequest { customer_id: customer_id.clone(), ..Default::default() };
        let placed = operator.orders().list_orders(request).await.unwrap().into_inner().orders;
        orders += placed.len();
        lines += placed.iter().map(|order| order.lines.len()).sum::<usize>();
        let request = ListSubscriptionsRequest { customer_id: customer_id.clone(), ..Default::default() };
        let bought = operator.subscriptions().list_subscriptions(request).await.unwrap().into_inner();
        for Subscription { subscription_id, .. } in bought.subscriptions {
            subscriptions += 1;
            changes += change_numbers(&operator, &subscription_id).await.len();
        }
    }
    let listed = [
        ((AGREEMENTS, "event"), events.len()),
        ((AGREEMENTS, "customer"), customers),
        ((AGREEMENTS, "relationship"), relationships),
        ((AGREEMENTS, "acceptance"), acceptances),
        ((ORDERS, "orders"), orders),
        ((ORDERS, "order_line"), lines),
        ((ORDERS, "subscription"), subscriptions),
        ((ORDERS, "subscription_change"), changes),
    ];
    listed.map(|(table, count)| (table, i64::try_from(count).unwrap())).into()
}

fn new_customer_with_attestation(name: &str) -> CreateCustomerRequest {
    new_customer_accepting(CUSTOMER_AGREEMENT, name)
}

fn new_customer_accepting(template_id: &str, name: &str) -> CreateCustomerRequest {
    CreateCustomerRequest {
        attestation: Some(InlineAttestation {
            template_id: template_id.into(),
            contact: None,
            agreed_at: Some(timestamp(Clock::system().now())),
            details: None,
        }),
        ..fixtures::new_customer(name, "FR", None)
    }
}

fn new_seats(of: &Subscription, quantity: u32) -> ChangeSeatsRequest {
    ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: of.subscription_id.clone(),
        quantity,
        etag: of.etag.clone(),
        validate_only: false,
        attestation: None,
    }
}

/// A customer that accepted.
async fn covered_customer(partner: &As, name: &str) -> String {
    let created = partner.customers().create_customer(new_customer_with_attestation(name)).await.unwrap();
    created.into_inner().customer.unwrap().customer_id
}

async fn change_numbers(partner: &As, subscription_id: &str) -> Vec<u32> {
    actions::changes_of(partner, subscription_id).await.unwrap().iter().map(|change| change.number).collect()
}

/// What was attested, without how far its notification is: that changes by itself, and answers about
/// storing an attestation do not have it.
async fn history(partner: &As, customer_id: &str) -> Vec<Attestation> {
    let unannounced = |attestation| Attestation { notification: None, ..attestation };
    actions::attestations_of(partner, customer_id).await.unwrap().into_iter().map(unannounced).collect()
}
