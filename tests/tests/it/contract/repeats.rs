//! Many callers at once, the same request twice, and damaged rows: what is stored stays
//! one history, and every caller gets a true answer.
//!
//! The clients run on a worker thread, so that they hang up while a test waits for a service to
//! drain; otherwise each stop would take as long as a drain may.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

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
use prost::Message;
use proto::agreement::event::Change;
use proto::agreement::{
    Attestation, AttestationState, CheckEligibilityRequest, CreateAttestationRequest, CreateCustomerRequest,
    GetAttestationRequest, GetCustomerRequest, GetTemplateRequest, InlineAttestation,
    ListAttestationsRequest, ListCustomersRequest, PartnerKind, PublishTemplateVersionRequest,
    ReportPurchaseRequest, UpdateCustomerRequest,
};
use proto::identity::{Role, TenantKind};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, GetOrderRequest, GetSubscriptionRequest, ListOrdersRequest,
    ListSubscriptionChangesRequest, ListSubscriptionsRequest, Subscription,
};
use proto::types::{Cloud, Contact, Decision, Operation};
use rstest_reuse::apply;
use sha2::{Digest, Sha256};
use tests::clients::caller;
use tests::databases::connect;
use tests::world::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER};
use tests::{As, Backend, Cluster, metadata_of, reason_of};

use crate::each_backend;
use tonic::{Code, Response, Status};
use uuid::Uuid;

const CALLERS: usize = 64;

/// Few enough that several callers share a connection, and more than one.
const CONNECTIONS: usize = 4;

const AGREEMENTS: &str = "agreement-svc";

const ORDERS: &str = "order-svc";

const AGREEMENT_TABLES: [&str; 11] = [
    "revision",
    "event",
    "request",
    "partner",
    "reseller_link",
    "customer",
    "relationship",
    "template",
    "template_version",
    "template_document",
    "acceptance",
];

const ORDER_TABLES: [&str; 7] =
    ["request", "fence", "orders", "order_line", "subscription", "subscription_change", "purchase_report"];

async fn start(backend: Backend) -> Cluster {
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    cluster
}

/// The same user on several connections.
fn sales_agents(cluster: &Cluster, partner: Uuid) -> Vec<As> {
    (0..CONNECTIONS).map(|_| cluster.as_caller(world::sales(partner))).collect()
}

/// Makes the same call many times at once.
async fn at_once<A, F>(agents: &[As], call: impl Fn(As) -> F) -> Vec<Result<A, Status>>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let calls = (0..CALLERS).map(|n| call(agents[n % agents.len()].clone()));
    join_all(calls).await.into_iter().map(|answer| answer.map(Response::into_inner)).collect()
}

/// The one answer that all of them are.
fn the_one<A: Message + Clone>(answers: &[Result<A, Status>]) -> A {
    let answers: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap()).collect();
    let bytes: BTreeSet<_> = answers.iter().map(|answer| answer.encode_to_vec()).collect();
    assert_eq!(bytes.len(), 1, "one request id has one answer");
    answers[0].clone()
}

fn refusal<A: std::fmt::Debug>(answer: Result<A, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), reason_of(&status))
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

/// Rows of every table of both services. The databases of a stack are out of reach: there it is what both
/// services tell of the cluster's customers, by the table that it is in.
async fn everything(cluster: &Cluster) -> Everything {
    if cluster.is_shared() {
        return everything_told(cluster).await;
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

async fn everything_told(cluster: &Cluster) -> Everything {
    let operator = cluster.as_caller(world::operator());
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
    let told = [
        ((AGREEMENTS, "event"), events.len()),
        ((AGREEMENTS, "customer"), customers),
        ((AGREEMENTS, "relationship"), relationships),
        ((AGREEMENTS, "acceptance"), acceptances),
        ((ORDERS, "orders"), orders),
        ((ORDERS, "order_line"), lines),
        ((ORDERS, "subscription"), subscriptions),
        ((ORDERS, "subscription_change"), changes),
    ];
    told.map(|(table, count)| (table, i64::try_from(count).unwrap())).into()
}

fn person(first_name: &str) -> Contact {
    Contact { first_name: first_name.into(), ..world::contact() }
}

fn new_attestation(customer_id: &str, contact: Contact) -> CreateAttestationRequest {
    CreateAttestationRequest {
        request_id: world::request_id(),
        customer_id: customer_id.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(contact),
        agreed_at: Some(timestamp(Clock::system().now())),
        validate_only: false,
    }
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
        }),
        ..world::new_customer(name, "FR", None)
    }
}

fn new_seats(of: &Subscription, quantity: u32) -> ChangeSeatsRequest {
    ChangeSeatsRequest {
        request_id: world::request_id(),
        subscription_id: of.subscription_id.clone(),
        quantity,
        etag: of.etag.clone(),
        validate_only: false,
    }
}

/// A customer that accepted.
async fn covered_customer(partner: &As, name: &str) -> String {
    let created = partner.customers().create_customer(new_customer_with_attestation(name)).await.unwrap();
    created.into_inner().customer.unwrap().customer_id
}

/// A subscription of 5 seats.
async fn subscribe(partner: &As, customer_id: &str) -> Subscription {
    world::order(partner, customer_id, None, 5).await.unwrap().subscriptions.remove(0)
}

async fn change_numbers(partner: &As, subscription_id: &str) -> Vec<u32> {
    let request =
        ListSubscriptionChangesRequest { subscription_id: subscription_id.into(), ..Default::default() };
    let listed = partner.subscriptions().list_subscription_changes(request).await.unwrap().into_inner();
    listed.changes.iter().map(|change| change.number).collect()
}

/// What was attested, without how far its announcement is: that changes by itself, and answers about
/// storing an attestation do not have it.
async fn history(partner: &As, customer_id: &str) -> Vec<Attestation> {
    let request = ListAttestationsRequest {
        customer_id: customer_id.into(),
        include_history: true,
        ..Default::default()
    };
    let listed = partner.attestations().list_attestations(request).await.unwrap().into_inner();
    let unannounced = |attestation| Attestation { notification: None, ..attestation };
    listed.attestations.into_iter().map(unannounced).collect()
}

async fn orders_of(partner: &As, customer_id: &str) -> usize {
    let request = ListOrdersRequest { customer_id: customer_id.into(), ..Default::default() };
    partner.orders().list_orders(request).await.unwrap().into_inner().orders.len()
}

#[apply(each_backend)]
async fn one_customer_is_created_by_many_callers_with_one_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let before = everything(&cluster).await;
    let request = new_customer_with_attestation("Contoso Lyon");
    let answers = at_once(&agents, |partner| {
        let request = request.clone();
        async move { partner.customers().create_customer(request).await }
    });
    let created = the_one(&answers.await);

    let listed = agents[0].customers().list_customers(ListCustomersRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().customers, [created.customer.clone().unwrap()]);
    assert_eq!(history(&agents[0], &created.customer.unwrap().customer_id).await.len(), 1);
    // Created, relationship established, attested.
    let grown = [("event", 3), ("request", 1), ("customer", 1), ("relationship", 1), ("acceptance", 1)];
    check_grown(&cluster, &before, &grown, &[]).await;
}

#[apply(each_backend)]
async fn one_attestation_is_stored_for_many_callers_with_one_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = world::create_customer(&agents[0], "Contoso Lyon", "FR", None).await.unwrap();
    let before = everything(&cluster).await;
    let request = new_attestation(&customer, world::contact());
    let answers = at_once(&agents, |partner| {
        let request = request.clone();
        async move { partner.attestations().create_attestation(request).await }
    });
    let created = the_one(&answers.await);
    assert_eq!(history(&agents[0], &customer).await, [created.attestation.unwrap()]);
    check_grown(&cluster, &before, &[("event", 1), ("request", 1), ("acceptance", 1)], &[]).await;
}

#[apply(each_backend)]
async fn one_order_is_placed_by_many_callers_with_one_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = covered_customer(&agents[0], "Contoso Lyon").await;
    // So that the report of the first purchase is not counted below.
    subscribe(&agents[0], &customer).await;
    world::until_bought(&cluster, &customer).await.unwrap();
    let before = everything(&cluster).await;
    let request = world::new_order(&customer, None, OFFICE, 5);
    let answers = at_once(&agents, |partner| {
        let request = request.clone();
        async move { partner.orders().create_order(request).await }
    });
    let placed = the_one(&answers.await);

    let order_id = placed.order.as_ref().unwrap().order_id.clone();
    let stored = agents[0].orders().get_order(GetOrderRequest { order_id }).await.unwrap().into_inner();
    assert_eq!(stored.order, placed.order);
    assert_eq!(orders_of(&agents[0], &customer).await, 2);
    let grown =
        [("request", 1), ("orders", 1), ("order_line", 1), ("subscription", 1), ("subscription_change", 1)];
    check_grown(&cluster, &before, &[], &grown).await;
}

#[apply(each_backend)]
async fn seats_change_once_for_many_callers_with_one_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    // A race between looking for the request and looking at the subscription needs several tries.
    const ROUNDS: u32 = 24;
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = covered_customer(&agents[0], "Contoso Lyon").await;
    let mut subscription = subscribe(&agents[0], &customer).await;
    world::until_bought(&cluster, &customer).await.unwrap();
    for round in 1..=ROUNDS {
        let before = everything(&cluster).await;
        let request = new_seats(&subscription, 5 + round);
        let answers = at_once(&agents, |partner| {
            let request = request.clone();
            async move { partner.subscriptions().change_seats(request).await }
        });
        subscription = the_one(&answers.await).subscription.unwrap();
        assert_eq!(subscription.quantity, 5 + round);
        check_grown(&cluster, &before, &[], &[("request", 1), ("subscription_change", 1)]).await;
    }
    let numbers = change_numbers(&agents[0], &subscription.subscription_id).await;
    assert_eq!(numbers, (1..=1 + ROUNDS).collect::<Vec<_>>());
}

/// The named tables have grown by as many rows, and no other table has changed.
async fn check_grown(
    cluster: &Cluster,
    before: &Everything,
    agreements: &[(&'static str, i64)],
    orders: &[(&'static str, i64)],
) {
    let in_agreements = agreements.iter().map(|(table, grown)| ((AGREEMENTS, *table), *grown));
    let in_orders = orders.iter().map(|(table, grown)| ((ORDERS, *table), *grown));
    let grown: HashMap<_, _> = in_agreements.chain(in_orders).collect();
    let expected = before.iter().map(|(table, count)| (*table, count + grown.get(table).unwrap_or(&0)));
    assert_eq!(everything(cluster).await, expected.collect());
}

#[apply(each_backend)]
async fn a_request_id_does_not_serve_for_other_content(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(world::sales(DIRECT));
    let customer = covered_customer(&partner, "Contoso Lyon").await;
    let mut subscription = subscribe(&partner, &customer).await;
    world::until_bought(&cluster, &customer).await.unwrap();

    let customers = world::new_customer("Fabrikam Nantes", "FR", None);
    let attestations = new_attestation(&customer, person("Ada"));
    let orders = world::new_order(&customer, None, OFFICE, 7);
    let seats = new_seats(&subscription, 6);
    partner.customers().create_customer(customers.clone()).await.unwrap();
    partner.attestations().create_attestation(attestations.clone()).await.unwrap();
    partner.orders().create_order(orders.clone()).await.unwrap();
    let changed = partner.subscriptions().change_seats(seats.clone()).await.unwrap().into_inner();
    subscription = changed.subscription.unwrap();

    let before = everything(&cluster).await;
    let request_id = customers.request_id.clone();
    let other = CreateCustomerRequest { country: "DE".into(), ..customers };
    let status = partner.customers().create_customer(other).await.unwrap_err();
    assert_eq!(metadata_of(&status).get("request_id"), Some(&request_id));
    assert_eq!(refusal(Err::<(), _>(status)), reused());

    let other = CreateAttestationRequest { contact: Some(person("Grace")), ..attestations };
    assert_eq!(refusal(partner.attestations().create_attestation(other).await), reused());

    let mut other = orders;
    other.lines[0].quantity += 1;
    let request_id = other.request_id.clone();
    let status = partner.orders().create_order(other).await.unwrap_err();
    assert_eq!(metadata_of(&status).get("request_id"), Some(&request_id));
    assert_eq!(refusal(Err::<(), _>(status)), reused());

    // With the new etag it would be a change like any other.
    let other = ChangeSeatsRequest { quantity: 9, etag: subscription.etag, ..seats };
    assert_eq!(refusal(partner.subscriptions().change_seats(other).await), reused());
    assert_eq!(everything(&cluster).await, before);
}

#[apply(each_backend)]
async fn many_contents_under_one_request_id_at_once_have_one_effect(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = covered_customer(&agents[0], "Contoso Lyon").await;
    let request = world::new_order(&customer, None, OFFICE, 1);
    let calls = (1..=16).map(|quantity| {
        let mut request = request.clone();
        request.lines[0].quantity = quantity;
        let partner = agents[quantity as usize % agents.len()].clone();
        async move { partner.orders().create_order(request).await }
    });
    let (placed, refused): (Vec<_>, Vec<_>) = join_all(calls).await.into_iter().partition(Result::is_ok);
    assert_eq!(placed.len(), 1);
    for status in refused {
        assert_eq!(refusal(status), reused());
    }
    assert_eq!(orders_of(&agents[0], &customer).await, 1);
}

#[apply(each_backend)]
async fn agreement_svc_answers_a_request_as_it_did_first_whatever_happened_since(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(world::sales(DIRECT));
    let operator = cluster.as_caller(world::operator());

    let (template, _turn) = world::publish_cloud_agreement(&cluster).await.unwrap();
    let template = template.template_id;
    let accepting = |request| CreateAttestationRequest { template_id: template.clone(), ..request };
    let customers = new_customer_accepting(&template, "Contoso Lyon");
    let created = partner.customers().create_customer(customers.clone()).await.unwrap().into_inner();
    let customer = created.customer.clone().unwrap();
    let attestations = accepting(new_attestation(&customer.customer_id, person("Ada")));
    let attested =
        partner.attestations().create_attestation(attestations.clone()).await.unwrap().into_inner();
    let versions = world::new_version(&template);
    let published =
        operator.templates().publish_template_version(versions.clone()).await.unwrap().into_inner();

    // The world goes on: another version, another attestation, other particulars.
    operator.templates().publish_template_version(world::new_version(&template)).await.unwrap();
    let superseding = accepting(new_attestation(&customer.customer_id, person("Grace")));
    partner.attestations().create_attestation(superseding).await.unwrap();
    let update = UpdateCustomerRequest {
        request_id: world::request_id(),
        customer_id: customer.customer_id.clone(),
        etag: customer.etag,
        company_name: "Contoso Paris".into(),
        primary_contact: Some(person("Grace")),
    };
    partner.customers().update_customer(update.clone()).await.unwrap();

    let before = everything(&cluster).await;
    let again = partner.customers().create_customer(customers).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), created.encode_to_vec());
    let again = partner.attestations().create_attestation(attestations).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), attested.encode_to_vec());
    assert_eq!(again.attestation.unwrap().state(), AttestationState::Current);
    let again = operator.templates().publish_template_version(versions).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), published.encode_to_vec());
    // Its etag is stale by its own doing.
    partner.customers().update_customer(update).await.unwrap();
    assert_eq!(everything(&cluster).await, before);

    let states: Vec<_> =
        history(&partner, &customer.customer_id).await.iter().map(Attestation::state).collect();
    let superseded = AttestationState::Superseded;
    assert_eq!(states, [superseded, superseded, AttestationState::Current]);
}

/// I4.
#[apply(each_backend)]
async fn order_svc_answers_a_request_as_it_did_first_whatever_happened_since(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = start(backend).await;
    let partner = cluster.as_caller(world::sales(DIRECT));
    let operator = cluster.as_caller(world::operator());
    let customer = covered_customer(&partner, "Contoso Lyon").await;

    let orders = world::new_order(&customer, None, OFFICE, 5);
    let placed = partner.orders().create_order(orders.clone()).await.unwrap().into_inner();
    let seats = new_seats(&placed.subscriptions[0], 6);
    let changed = partner.subscriptions().change_seats(seats.clone()).await.unwrap().into_inner();
    // The count it has already is a success without effect, and remembered as such.
    let unchanged = new_seats(changed.subscription.as_ref().unwrap(), 6);
    let kept = partner.subscriptions().change_seats(unchanged.clone()).await.unwrap().into_inner();
    assert_eq!((&kept.subscription, &kept.gate), (&changed.subscription, &None));
    let later = new_seats(changed.subscription.as_ref().unwrap(), 9);
    partner.subscriptions().change_seats(later).await.unwrap();
    world::until_bought(&cluster, &customer).await.unwrap();

    let before = everything(&cluster).await;
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;
    assert_eq!(everything(&cluster).await, before);

    // With this version the gate says no to whatever is new.
    operator.templates().publish_template_version(world::new_version(CUSTOMER_AGREEMENT)).await.unwrap();
    let refused = world::order(&partner, &customer, None, 5).await;
    assert_eq!(refusal(refused), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()));
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;

    // And now it says nothing at all.
    cluster.stop_agreements();
    let refused = world::order(&partner, &customer, None, 5).await;
    assert_eq!(refusal(refused), (Code::Unavailable, "GATE_UNAVAILABLE".into()));
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;

    cluster.restart_orders().await.unwrap();
    let partner = cluster.as_caller(world::sales(DIRECT));
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;
    assert_eq!(orders_of(&partner, &customer).await, 1);
    let subscription_id = &placed.subscriptions[0].subscription_id;
    assert_eq!(change_numbers(&partner, subscription_id).await, [1, 2, 3]);
}

async fn check_replays(
    partner: &As,
    order: (&CreateOrderRequest, &proto::order::CreateOrderResponse),
    seats: &[(&ChangeSeatsRequest, &proto::order::ChangeSeatsResponse)],
) {
    let again = partner.orders().create_order(order.0.clone()).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), order.1.encode_to_vec());
    for (request, first) in seats {
        let again = partner.subscriptions().change_seats((*request).clone()).await.unwrap().into_inner();
        assert_eq!(again.encode_to_vec(), first.encode_to_vec());
    }
}

#[apply(each_backend)]
async fn a_refused_order_passes_under_the_same_request_id_once_its_reason_is_gone(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(world::sales(DIRECT));
    let customer = world::create_customer(&partner, "Contoso Lyon", "FR", None).await.unwrap();
    let before = everything(&cluster).await;
    let request = world::new_order(&customer, None, OFFICE, 5);
    let refused = partner.orders().create_order(request.clone()).await;
    assert_eq!(refusal(refused), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()));

    // A refused attestation leaves its id free as well.
    let mut attestation = new_attestation(&customer, world::contact());
    attestation.template_id = Uuid::from_u128(7).to_string();
    let refused = partner.attestations().create_attestation(attestation.clone()).await;
    assert_eq!(refusal(refused), (Code::NotFound, "RESOURCE_NOT_FOUND".into()));
    assert_eq!(everything(&cluster).await, before, "a refusal stores nothing");
    attestation.template_id = CUSTOMER_AGREEMENT.into();
    partner.attestations().create_attestation(attestation).await.unwrap();
    check_placed_once(&partner, request).await;
}

#[apply(each_backend)]
async fn an_order_that_could_not_be_decided_passes_under_the_same_request_id_once_it_can(
    #[case] backend: Backend,
) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = start(backend).await;
    let partner = cluster.as_caller(world::sales(DIRECT));
    let customer = covered_customer(&partner, "Contoso Lyon").await;
    let request = world::new_order(&customer, None, OFFICE, 5);
    cluster.stop_agreements();
    let refused = partner.orders().create_order(request.clone()).await;
    assert_eq!(refusal(refused), (Code::Unavailable, "GATE_UNAVAILABLE".into()));
    let stored = rows(&mut behind(cluster.orders_database()), &ORDER_TABLES);
    assert!(stored.iter().all(|(_, count)| *count == 0), "a refusal stores nothing: {stored:?}");
    cluster.restart_agreements().await.unwrap();
    check_placed_once(&partner, request).await;
}

/// That an order is placed, and its customer's only one however often it is sent.
async fn check_placed_once(partner: &As, request: CreateOrderRequest) {
    let customer = request.customer_id.clone();
    let placed = partner.orders().create_order(request.clone()).await.unwrap().into_inner();
    let again = partner.orders().create_order(request).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), placed.encode_to_vec());
    assert_eq!(orders_of(partner, &customer).await, 1);
}

#[apply(each_backend)]
async fn a_request_id_belongs_to_one_tenant_and_one_call(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let provider = cluster.as_caller(world::sales(PROVIDER));
    let request_id = world::request_id();

    let mut customers = vec![];
    for (partner, name) in [(&direct, "Contoso Lyon"), (&provider, "Fabrikam Nantes")] {
        let request =
            CreateCustomerRequest { request_id: request_id.clone(), ..world::new_customer(name, "FR", None) };
        let created = partner.customers().create_customer(request).await.unwrap().into_inner();
        let customer_id = created.customer.unwrap().customer_id;
        let request = CreateAttestationRequest {
            request_id: request_id.clone(),
            ..new_attestation(&customer_id, world::contact())
        };
        partner.attestations().create_attestation(request).await.unwrap();
        let request = CreateOrderRequest {
            request_id: request_id.clone(),
            ..world::new_order(&customer_id, None, OFFICE, 5)
        };
        let placed = partner.orders().create_order(request.clone()).await.unwrap().into_inner();
        let seats =
            ChangeSeatsRequest { request_id: request_id.clone(), ..new_seats(&placed.subscriptions[0], 6) };
        partner.subscriptions().change_seats(seats).await.unwrap();

        // It is the tenant's, not the user's.
        let tenant = if name == "Contoso Lyon" { DIRECT } else { PROVIDER };
        let colleague = chassis::auth::Caller {
            user_id: Uuid::from_u128(0xc0),
            ..caller(TenantKind::Partner, tenant, &[Role::AdminAgent])
        };
        let colleague = cluster.as_caller(colleague);
        let again = colleague.orders().create_order(request).await.unwrap().into_inner();
        assert_eq!(again.encode_to_vec(), placed.encode_to_vec());
        customers.push(customer_id);
    }
    assert_ne!(customers[0], customers[1]);
    for (partner, customer) in [(&direct, &customers[0]), (&provider, &customers[1])] {
        assert_eq!(history(partner, customer).await.len(), 1);
        assert_eq!(orders_of(partner, customer).await, 1);
    }
}

#[apply(each_backend)]
async fn validate_only_stores_nothing_and_leaves_the_request_id_alone(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(world::sales(DIRECT));
    let operator = cluster.as_caller(world::operator());
    let customer = covered_customer(&partner, "Contoso Lyon").await;
    let subscription = subscribe(&partner, &customer).await;
    world::until_bought(&cluster, &customer).await.unwrap();

    // Under each id something was done already, so a call that looked at it would be refused or
    // answered with what was done.
    let (template, _turn) = world::publish_cloud_agreement(&cluster).await.unwrap();
    let template = template.template_id;
    let used_version = world::new_version(&template);
    let used_order = world::new_order(&customer, None, OFFICE, 1);
    let used_seats = new_seats(&subscription, 6);
    let published =
        operator.templates().publish_template_version(used_version.clone()).await.unwrap().into_inner();
    let version = published.template.unwrap().version_in_force;
    let used_attestation = new_attestation(&customer, person("Ada"));
    partner.attestations().create_attestation(used_attestation.clone()).await.unwrap();
    partner.orders().create_order(used_order.clone()).await.unwrap();
    let changed = partner.subscriptions().change_seats(used_seats.clone()).await.unwrap().into_inner();
    let subscription = changed.subscription.unwrap();

    let before = everything(&cluster).await;
    for request_id in [&used_attestation.request_id, &world::request_id()] {
        let request = CreateAttestationRequest {
            request_id: request_id.clone(),
            validate_only: true,
            ..new_attestation(&customer, person("Grace"))
        };
        let tried = partner.attestations().create_attestation(request.clone()).await.unwrap().into_inner();
        assert_eq!(tried.attestation.unwrap().contact, request.contact);
    }
    for request_id in [&used_version.request_id, &world::request_id()] {
        let request = PublishTemplateVersionRequest {
            request_id: request_id.clone(),
            validate_only: true,
            ..world::new_version(&template)
        };
        let tried = operator.templates().publish_template_version(request).await.unwrap().into_inner();
        assert_eq!(tried.template.unwrap().version_in_force, version + 1);
    }
    for request_id in [&used_order.request_id, &world::request_id()] {
        let request = CreateOrderRequest {
            request_id: request_id.clone(),
            validate_only: true,
            ..world::new_order(&customer, None, OFFICE, 77)
        };
        let tried = partner.orders().create_order(request).await.unwrap().into_inner();
        assert_eq!(tried.subscriptions[0].quantity, 77);
    }
    for request_id in [&used_seats.request_id, &world::request_id()] {
        for quantity in [77, subscription.quantity] {
            let request = ChangeSeatsRequest {
                request_id: request_id.clone(),
                validate_only: true,
                ..new_seats(&subscription, quantity)
            };
            let tried = partner.subscriptions().change_seats(request).await.unwrap().into_inner();
            assert_eq!(tried.subscription.unwrap().quantity, quantity);
        }
    }
    assert_eq!(everything(&cluster).await, before);
    let template = GetTemplateRequest { template_id: template };
    let template = operator.templates().get_template(template).await.unwrap().into_inner().template;
    assert_eq!(template.unwrap().version_in_force, version);
    assert_eq!(stored(&partner, &subscription).await, subscription);

    // What was tried can be done under the id it was tried under.
    let mut order = world::new_order(&customer, None, OFFICE, 3);
    order.validate_only = true;
    let tried = partner.orders().create_order(order.clone()).await.unwrap().into_inner();
    order.validate_only = false;
    let done = partner.orders().create_order(order).await.unwrap().into_inner();
    assert_ne!(tried.order.unwrap().order_id, done.order.unwrap().order_id);
    assert_eq!(orders_of(&partner, &customer).await, 3);
}

async fn stored(partner: &As, of: &Subscription) -> Subscription {
    let request = GetSubscriptionRequest { subscription_id: of.subscription_id.clone() };
    partner.subscriptions().get_subscription(request).await.unwrap().into_inner().subscription.unwrap()
}

#[apply(each_backend)]
async fn of_many_changes_that_exclude_each_other_exactly_one_succeeds(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);

    // One domain.
    let answers = at_once(&agents, |partner| async move {
        let request = world::new_customer("Contoso Lyon", "FR", None);
        partner.customers().create_customer(request).await
    });
    let created = only_winner(answers.await, (Code::AlreadyExists, "DOMAIN_TAKEN"));
    let customer = created.customer.unwrap();

    // One current attestation.
    let answers = at_once(&agents, |partner| {
        let request = new_attestation(&customer.customer_id, world::contact());
        async move { partner.attestations().create_attestation(request).await }
    });
    let attested = only_winner(answers.await, (Code::AlreadyExists, "ALREADY_ATTESTED"));
    assert_eq!(history(&agents[0], &customer.customer_id).await, [attested.attestation.unwrap()]);

    // One etag.
    let answers = at_once(&agents, |partner| {
        let request = UpdateCustomerRequest {
            request_id: world::request_id(),
            customer_id: customer.customer_id.clone(),
            etag: customer.etag.clone(),
            company_name: "Contoso Paris".into(),
            primary_contact: Some(world::contact()),
        };
        async move { partner.customers().update_customer(request).await }
    });
    only_winner(answers.await, (Code::Aborted, "ETAG_STALE"));
}

fn only_winner<A: std::fmt::Debug>(answers: Vec<Result<A, Status>>, others: (Code, &str)) -> A {
    let mut won = vec![];
    for answer in answers {
        match answer {
            Ok(answer) => won.push(answer),
            Err(status) => assert_eq!((status.code(), reason_of(&status).as_str()), others),
        }
    }
    assert_eq!(won.len(), 1, "{won:?}");
    won.remove(0)
}

#[apply(each_backend)]
async fn pages_show_every_row_once_in_key_order_while_others_are_added(#[case] backend: Backend) {
    tests::needs!(backend);
    const ROWS: usize = 120;
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customers = (0..ROWS).map(|n| {
        let partner = agents[n % agents.len()].clone();
        async move { covered_customer(&partner, &format!("Contoso {n}")).await }
    });
    let customers = join_all(customers).await;
    let orders = customers.iter().enumerate().map(|(n, customer)| {
        let partner = agents[n % agents.len()].clone();
        async move { world::order(&partner, customer, None, 1).await.unwrap().order.unwrap().order_id }
    });
    let orders: Vec<String> = join_all(orders).await;

    // No caller adds anything: each list is complete, and nothing else is in it.
    let known = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(known(&customer_pages(&agents[0]).await), known(&customers));
    assert_eq!(known(&order_pages(&agents[0]).await), known(&orders));

    let adding = async {
        for n in 0..20 {
            let customer = covered_customer(&agents[1], &format!("Fabrikam {n}")).await;
            world::order(&agents[1], &customer, None, 1).await.unwrap();
        }
    };
    let (listed_customers, listed_orders, ()) =
        tokio::join!(customer_pages(&agents[0]), order_pages(&agents[2]), adding);
    assert!(known(&listed_customers).is_superset(&known(&customers)));
    assert!(known(&listed_orders).is_superset(&known(&orders)));
    assert_eq!(customer_pages(&agents[0]).await.len(), ROWS + 20);
    assert_eq!(order_pages(&agents[0]).await.len(), ROWS + 20);
}

const PAGE: i32 = 7;

/// The ids of all customers, page by page.
async fn customer_pages(partner: &As) -> Vec<String> {
    let (mut ids, mut page_token) = (vec![], String::new());
    loop {
        let request = ListCustomersRequest { page_size: PAGE, page_token };
        let page = partner.customers().list_customers(request).await.unwrap().into_inner();
        add_page(
            &mut ids,
            page.customers.into_iter().map(|c| c.customer_id).collect(),
            &page.next_page_token,
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

/// The ids of all orders, page by page.
async fn order_pages(partner: &As) -> Vec<String> {
    let (mut ids, mut page_token) = (vec![], String::new());
    loop {
        let request = ListOrdersRequest { page_size: PAGE, page_token, ..Default::default() };
        let page = partner.orders().list_orders(request).await.unwrap().into_inner();
        add_page(&mut ids, page.orders.into_iter().map(|o| o.order_id).collect(), &page.next_page_token);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
    }
}

fn add_page(ids: &mut Vec<String>, page: Vec<String>, next_page_token: &str) {
    assert!(page.len() <= PAGE as usize);
    assert!(page.len() == PAGE as usize || next_page_token.is_empty(), "a short page is the last one");
    ids.extend(page);
    assert!(ids.is_sorted_by(|a, b| a < b), "in key order, without repeats");
}

/// A refusal that says nothing of the row behind it.
fn check_internal<A: std::fmt::Debug>(answer: Result<A, Status>) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), reason_of(&status).as_str()), (Code::Internal, "INTERNAL"));
    assert_eq!(status.message(), "INTERNAL: the service failed; its log has the cause under x-call-id");
    assert!(metadata_of(&status).is_empty());
    let details = String::from_utf8_lossy(status.details()).into_owned();
    assert!(!details.contains("NONSENSE"), "{details}");
}

fn question(customer_id: &str) -> CheckEligibilityRequest {
    CheckEligibilityRequest {
        payer_id: DIRECT.to_string(),
        customer_id: customer_id.into(),
        operation: Operation::NewPurchase.into(),
        ..CheckEligibilityRequest::default()
    }
}

#[apply(each_backend)]
async fn a_damaged_row_of_order_svc_is_an_internal_error_and_harms_no_other(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(world::sales(DIRECT));
    let damaged = covered_customer(&partner, "Contoso Lyon").await;
    let sound = covered_customer(&partner, "Fabrikam Nantes").await;
    let order = world::new_order(&damaged, None, OFFICE, 5);
    let placed = partner.orders().create_order(order.clone()).await.unwrap().into_inner();
    let subscription = placed.subscriptions[0].clone();
    let other = subscribe(&partner, &sound).await;
    let subscription_id = subscription.subscription_id.clone();
    let get = GetSubscriptionRequest { subscription_id: subscription_id.clone() };
    let list = |customer_id: &str| ListSubscriptionsRequest {
        customer_id: customer_id.into(),
        ..Default::default()
    };
    let changes =
        ListSubscriptionChangesRequest { subscription_id: subscription_id.clone(), ..Default::default() };

    let sql = "UPDATE subscription_change SET kind = 'NONSENSE' WHERE subscription_id = ";
    cluster.orders_sql(&format!("{sql}'{subscription_id}'")).unwrap();
    check_internal(partner.subscriptions().list_subscription_changes(changes).await);
    partner.subscriptions().get_subscription(get.clone()).await.unwrap();

    let sql = "UPDATE subscription SET state = 'NONSENSE' WHERE id = ";
    cluster.orders_sql(&format!("{sql}'{subscription_id}'")).unwrap();
    check_internal(partner.subscriptions().get_subscription(get).await);
    check_internal(partner.subscriptions().list_subscriptions(list(&damaged)).await);
    check_internal(partner.subscriptions().list_subscriptions(list("")).await);
    check_internal(partner.subscriptions().change_seats(new_seats(&subscription, 9)).await);

    let order_id = placed.order.unwrap().order_id;
    cluster
        .orders_sql(&format!("UPDATE orders SET gate_evidence = 'NONSENSE' WHERE id = '{order_id}'"))
        .unwrap();
    check_internal(partner.orders().get_order(GetOrderRequest { order_id }).await);
    check_internal(partner.orders().list_orders(ListOrdersRequest::default()).await);

    // An answer that cannot be read again is no reason for a second effect.
    let garbage = if backend == Backend::Sqlite { "X'ff'" } else { r"'\xff'" };
    let sql = format!("UPDATE request SET answer = {garbage} WHERE request_id = '{}'", order.request_id);
    cluster.orders_sql(&sql).unwrap();
    check_internal(partner.orders().create_order(order).await);
    assert_eq!(rows(&mut behind(cluster.orders_database()), &["orders"]), [("orders", 2)]);

    let listed = partner.subscriptions().list_subscriptions(list(&sound)).await.unwrap().into_inner();
    assert_eq!(listed.subscriptions, std::slice::from_ref(&other));
    partner.subscriptions().change_seats(new_seats(&other, 9)).await.unwrap();
    world::order(&partner, &sound, None, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_damaged_row_of_agreement_svc_is_an_internal_error_and_lets_nothing_through_the_gate() {
    tests::needs_own!("databases that it writes to");
    // What is damaged, and whether reading customer or attestation comes upon it.
    for (column, customers_fail, attestations_fail) in [
        ("acceptance SET kind", false, false),
        ("acceptance SET agreement_type", false, true),
        ("customer SET cloud", true, true),
    ] {
        for backend in Backend::all() {
            let cluster = start(backend).await;
            let partner = cluster.as_caller(world::sales(DIRECT));
            let request = new_customer_with_attestation("Contoso Lyon");
            let created = partner.customers().create_customer(request).await.unwrap().into_inner();
            let damaged = created.customer.unwrap().customer_id;
            let attestation_id = created.attestation.unwrap().attestation_id;
            let sound = covered_customer(&partner, "Fabrikam Nantes").await;
            let subscription = subscribe(&partner, &damaged).await;
            world::until_bought(&cluster, &damaged).await.unwrap();

            let key = if column.starts_with("customer") { "id" } else { "customer_id" };
            cluster
                .agreements_sql(&format!("UPDATE {column} = 'NONSENSE' WHERE {key} = '{damaged}'"))
                .unwrap();
            check_internal(partner.gate().check_eligibility(question(&damaged)).await);
            let get = GetCustomerRequest { customer_id: damaged.clone() };
            let list = ListCustomersRequest::default();
            if customers_fail {
                check_internal(partner.customers().get_customer(get).await);
                check_internal(partner.customers().list_customers(list).await);
            } else {
                partner.customers().get_customer(get).await.unwrap();
                partner.customers().list_customers(list).await.unwrap();
            }
            if attestations_fail {
                let get = GetAttestationRequest { attestation_id };
                check_internal(partner.attestations().get_attestation(get).await);
                let list = ListAttestationsRequest {
                    customer_id: damaged.clone(),
                    include_history: true,
                    ..Default::default()
                };
                check_internal(partner.attestations().list_attestations(list).await);
            }

            // order-svc hears an error where it asked for a yes, and unknown is no.
            let before = everything(&cluster).await;
            let unknown = (Code::Unavailable, "GATE_UNAVAILABLE".to_owned());
            assert_eq!(refusal(world::order(&partner, &damaged, None, 1).await), unknown, "{column}");
            let seats = partner.subscriptions().change_seats(new_seats(&subscription, 9)).await;
            assert_eq!(refusal(seats), unknown, "{column}");
            assert_eq!(everything(&cluster).await, before);

            let answer = partner.gate().check_eligibility(question(&sound)).await.unwrap().into_inner();
            assert_eq!(answer.decision(), Decision::Allowed);
            world::order(&partner, &sound, None, 1).await.unwrap();
        }
    }
}

#[derive(QueryableByName)]
struct EventRow {
    #[diesel(sql_type = BigInt)]
    revision: i64,
    #[diesel(sql_type = Timestamp)]
    recorded_at: NaiveDateTime,
    #[diesel(sql_type = Text)]
    body: String,
    #[diesel(sql_type = Text)]
    hash: String,
}

#[derive(QueryableByName)]
struct RevisionRow {
    #[diesel(sql_type = BigInt)]
    value: i64,
    #[diesel(sql_type = Text)]
    head: String,
}

#[apply(each_backend)]
async fn changes_by_many_partners_at_once_form_one_history_without_gaps_or_names(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    const PARTNERS: usize = 4;
    const CUSTOMERS: usize = 5;
    let cluster = start(backend).await;
    let operator = cluster.as_caller(world::operator());
    let service = cluster.as_caller(world::service());
    let mut partners = vec![];
    for n in 0..PARTNERS {
        let id = Uuid::from_u128(0xd100 + n as u128);
        let kind = PartnerKind::DirectBill;
        world::register_partner(&operator, id, &format!("Partner {n}"), kind, Cloud::Public).await.unwrap();
        partners.push((id, cluster.as_caller(world::sales(id))));
    }
    let (partners, service) = (&partners, &service);
    let histories = (0..PARTNERS * CUSTOMERS).map(|n| async move {
        let (partner_id, partner) = &partners[n % PARTNERS];
        let request = CreateCustomerRequest {
            primary_contact: Some(nameable("Primary", n)),
            ..new_customer_with_attestation(&format!("Customer {n}"))
        };
        let created = partner.customers().create_customer(request).await.unwrap().into_inner();
        let customer = created.customer.unwrap();
        let update = UpdateCustomerRequest {
            request_id: world::request_id(),
            customer_id: customer.customer_id.clone(),
            etag: customer.etag,
            company_name: format!("Renamed {n}"),
            primary_contact: Some(nameable("Updated", n)),
        };
        let first = new_attestation(&customer.customer_id, nameable("First", n));
        // A refusal burns no number, and what was only tried leaves none.
        let tried = CreateAttestationRequest { validate_only: true, ..first.clone() };
        let unknown = CreateAttestationRequest {
            template_id: Uuid::from_u128(7).to_string(),
            ..new_attestation(&customer.customer_id, nameable("Refused", n))
        };
        let bought = ReportPurchaseRequest {
            request_id: world::request_id(),
            customer_id: customer.customer_id.clone(),
            payer_id: partner_id.to_string(),
            purchased_at: Some(timestamp(Clock::system().now())),
        };
        let (mut a, mut b, mut c) = (partner.attestations(), partner.attestations(), partner.attestations());
        let (mut customers, mut gate) = (partner.customers(), service.gate());
        let (tried, attested, refused, updated, reported) = tokio::join!(
            a.create_attestation(tried),
            b.create_attestation(first),
            c.create_attestation(unknown),
            customers.update_customer(update),
            gate.report_purchase(bought),
        );
        tried.ok();
        attested.unwrap();
        assert_eq!(refused.unwrap_err().code(), Code::NotFound);
        updated.unwrap();
        reported.unwrap();
        let second = new_attestation(&customer.customer_id, nameable("Second", n));
        partner.attestations().create_attestation(second).await.unwrap();
    });
    let publishing = async {
        for _ in 0..3 {
            operator
                .templates()
                .publish_template_version(world::new_version(CUSTOMER_AGREEMENT))
                .await
                .unwrap();
        }
    };
    tokio::join!(join_all(histories), publishing);
    check_history(&mut behind(cluster.agreements_database()), PARTNERS * CUSTOMERS);
}

/// A person whose particulars cannot occur anywhere by chance.
fn nameable(first_name: &str, n: usize) -> Contact {
    Contact {
        first_name: format!("Xq{first_name}{n}x"),
        last_name: format!("Zyzzyva{n}x"),
        email: format!("someone.{n}@mailbox.example"),
        phone: format!("+33 (0) 1-{n:04}"),
    }
}

fn check_history(connection: &mut Connection, customers: usize) {
    let events = "SELECT revision, recorded_at, body, hash FROM event ORDER BY revision";
    let events: Vec<EventRow> = query!(&mut *connection, c => sql_query(events).load(c)).unwrap();
    let last = "SELECT value, head FROM revision";
    let last: RevisionRow = query!(connection, c => sql_query(last).get_result(c)).unwrap();

    let mut previous = String::new();
    for (number, event) in (1..).zip(&events) {
        assert_eq!(event.revision, number, "from 1, without gaps");
        let micros = event.recorded_at.and_utc().timestamp_micros();
        let chained = format!("{previous}\n{}\n{micros}\n{}", event.revision, event.body);
        previous = Sha256::digest(chained).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(event.hash, previous, "event {number} does not follow from the one before it");
        for personal in ["Xq", "Zyzzyva", "mailbox", "someone", "@", "+33"] {
            assert!(!event.body.contains(personal), "{personal} is in {}", event.body);
        }
    }
    assert_eq!((last.value, &last.head), (events.len() as i64, &previous));

    // For each customer: created, related, updated, first purchase, three times attested.
    let of_customers = events.iter().filter(|event| event.body.contains(r#""customer_id""#)).count();
    assert_eq!(of_customers, 7 * customers);
}
