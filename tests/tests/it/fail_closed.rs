//! Unknown is no (I8): whatever keeps order-svc from a clear yes, nothing is stored, and the caller
//! can tell "no" from "unknown".

use std::net::SocketAddr;
use std::sync::Arc;

use chassis::clock::Clock;
use chassis::database::Url;
use chassis::form::timestamp;
use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection, RunQueryDsl};
use proto::agreement::eligibility_service_server::{EligibilityService, EligibilityServiceServer};
use proto::agreement::{
    BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, CheckEligibilityRequest,
    CheckEligibilityResponse, ListBlockedCustomersRequest, ListBlockedCustomersResponse,
    ReportPurchaseRequest, ReportPurchaseResponse,
};
use proto::order::{ChangeSeatsRequest, GetOrderRequest, ListOffersRequest, ListOrdersRequest};
use proto::types::{AcceptanceKind, AgreementType, Cloud, Decision, Evidence, GateRule};
use tests::world::{self, AZURE_PLAN, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, Setup, reason_of};
use tokio::sync::Notify;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

/// What the impostor makes of a truthful answer.
type Twist = fn(CheckEligibilityResponse) -> Result<CheckEligibilityResponse, Status>;

/// Something at agreement-svc's address that answers as it pleases, or never.
struct Impostor {
    twist: Option<Twist>,
    asked: Arc<Notify>,
}

#[tonic::async_trait]
impl EligibilityService for Impostor {
    async fn check_eligibility(
        &self,
        request: Request<CheckEligibilityRequest>,
    ) -> Result<Response<CheckEligibilityResponse>, Status> {
        self.asked.notify_one();
        match self.twist {
            Some(twist) => twist(yes_to(&request.into_inner())).map(Response::new),
            None => std::future::pending().await,
        }
    }

    async fn batch_check_eligibility(
        &self,
        _request: Request<BatchCheckEligibilityRequest>,
    ) -> Result<Response<BatchCheckEligibilityResponse>, Status> {
        Err(Status::unavailable("not today"))
    }

    async fn list_blocked_customers(
        &self,
        _request: Request<ListBlockedCustomersRequest>,
    ) -> Result<Response<ListBlockedCustomersResponse>, Status> {
        Err(Status::unavailable("not today"))
    }

    async fn report_purchase(
        &self,
        _request: Request<ReportPurchaseRequest>,
    ) -> Result<Response<ReportPurchaseResponse>, Status> {
        Err(Status::unavailable("not today"))
    }
}

/// A yes as agreement-svc would say it.
fn yes_to(asked: &CheckEligibilityRequest) -> CheckEligibilityResponse {
    CheckEligibilityResponse {
        decision: Decision::Allowed.into(),
        rule: GateRule::Attestation.into(),
        evidence: Some(Evidence {
            kind: AcceptanceKind::Attestation.into(),
            acceptance_id: Uuid::from_u128(1).to_string(),
            template_id: world::CUSTOMER_AGREEMENT.into(),
            template_version: 2,
            agreement_type: AgreementType::MicrosoftCustomerAgreement.into(),
        }),
        payer_id: asked.payer_id.clone(),
        customer_id: asked.customer_id.clone(),
        customer_country: "FR".into(),
        customer_cloud: Cloud::Public.into(),
        revision: 5,
        evaluated_at: Some(timestamp(Clock::system().now())),
        ..CheckEligibilityResponse::default()
    }
}

async fn impostor(twist: Option<Twist>) -> SocketAddr {
    impostor_that_tells(twist, Arc::default()).await
}

/// An impostor that tells when it is asked.
async fn impostor_that_tells(twist: Option<Twist>, asked: Arc<Notify>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder()
        .add_service(EligibilityServiceServer::new(Impostor { twist, asked }))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    address
}

async fn cluster_asking(address: SocketAddr, gate_deadline_ms: u64) -> Cluster {
    let setup =
        Setup { agreements_at: Some(format!("http://{address}")), gate_deadline_ms, ..Setup::default() };
    Cluster::start(setup).await.unwrap()
}

async fn orders_of(caller: &As) -> usize {
    let listed = caller.orders().list_orders(ListOrdersRequest::default()).await.unwrap();
    listed.into_inner().orders.len()
}

fn assert_unknown(refused: &Status, about: &str) {
    assert_eq!(
        (refused.code(), reason_of(refused).as_str()),
        (Code::Unavailable, "GATE_UNAVAILABLE"),
        "{about}: {refused}"
    );
    assert!(refused.get_details_retry_info().is_some(), "{about}: no RetryInfo");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_truthful_impostor_is_believed_so_that_the_others_prove_something() {
    let cluster = cluster_asking(impostor(Some(Ok)).await, 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    world::order(&direct, &world::request_id(), None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_makes_no_sense_is_unknown() {
    let twists: [(&str, Twist); 24] = [
        ("unspecified decision", |a| Ok(CheckEligibilityResponse { decision: 0, ..a })),
        ("unknown decision", |a| Ok(CheckEligibilityResponse { decision: 99, ..a })),
        ("negative decision", |a| Ok(CheckEligibilityResponse { decision: -1, ..a })),
        ("unspecified rule", |a| Ok(CheckEligibilityResponse { rule: 0, ..a })),
        ("unknown rule", |a| Ok(CheckEligibilityResponse { rule: 99, ..a })),
        ("allowed by the rule that blocks", |a| {
            Ok(CheckEligibilityResponse { rule: GateRule::NoSatisfyingAcceptance.into(), ..a })
        }),
        ("allowed without evidence", |a| Ok(CheckEligibilityResponse { evidence: None, ..a })),
        ("allowed by a signature that is an attestation", |a| {
            Ok(CheckEligibilityResponse { rule: GateRule::DirectSignature.into(), ..a })
        }),
        ("exempt as an automatic renewal", |a| {
            let (decision, rule) = (Decision::Exempt.into(), GateRule::AutoRenewal.into());
            Ok(CheckEligibilityResponse { decision, rule, evidence: None, ..a })
        }),
        ("exempt in the public cloud", |a| {
            let (decision, rule) = (Decision::Exempt.into(), GateRule::OutsidePublicCloud.into());
            Ok(CheckEligibilityResponse { decision, rule, evidence: None, ..a })
        }),
        ("exempt in no cloud", |a| {
            let (decision, rule) = (Decision::Exempt.into(), GateRule::OutsidePublicCloud.into());
            Ok(CheckEligibilityResponse { decision, rule, evidence: None, customer_cloud: 0, ..a })
        }),
        ("about another customer", |a| {
            Ok(CheckEligibilityResponse { customer_id: Uuid::from_u128(9).to_string(), ..a })
        }),
        ("about another payer", |a| {
            Ok(CheckEligibilityResponse { payer_id: Uuid::from_u128(9).to_string(), ..a })
        }),
        ("about nobody", |_| Ok(CheckEligibilityResponse::default())),
        ("no time", |a| Ok(CheckEligibilityResponse { evaluated_at: None, ..a })),
        ("no country", |a| Ok(CheckEligibilityResponse { customer_country: String::new(), ..a })),
        ("a negative revision", |a| Ok(CheckEligibilityResponse { revision: -1, ..a })),
        ("unauthenticated", |_| Err(Status::unauthenticated("who are you?"))),
        ("not permitted", |_| Err(Status::permission_denied("you may not"))),
        ("internal", |_| Err(Status::internal("oops"))),
        ("invalid for another reason", |_| Err(Status::invalid_argument("nonsense"))),
        ("unimplemented", |_| Err(Status::unimplemented("never heard of it"))),
        ("not found, by something that is not agreement-svc", |_| Err(Status::not_found("no such page"))),
        ("holding until a moment that has passed", |a| {
            Ok(CheckEligibilityResponse { valid_until: Some(timestamp(Clock::system().now())), ..a })
        }),
    ];
    for (about, twist) in twists {
        let cluster = cluster_asking(impostor(Some(twist)).await, 1000).await;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let refused = world::order(&direct, &world::request_id(), None, 5).await.unwrap_err();
        assert_unknown(&refused, about);
        assert_eq!(orders_of(&direct).await, 0, "{about}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn evidence_of_a_type_that_the_offer_does_not_demand_is_unknown() {
    let cloud: Twist = |mut answer| {
        if let Some(evidence) = &mut answer.evidence {
            evidence.agreement_type = AgreementType::MicrosoftCloudAgreement.into();
        }
        Ok(answer)
    };
    let cluster = cluster_asking(impostor(Some(cloud)).await, 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let customer = world::request_id();
    direct.orders().create_order(world::new_order(&customer, None, OFFICE, 1)).await.unwrap();
    let order = world::new_order(&customer, None, AZURE_PLAN, 1);
    assert_unknown(&direct.orders().create_order(order).await.unwrap_err(), "the Azure plan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_never_comes_is_unknown_within_the_deadline() {
    let cluster = cluster_asking(impostor(None).await, 50).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let refused = world::order(&direct, &world::request_id(), None, 5).await.unwrap_err();
    assert_unknown(&refused, "never");
    // What is wrong with the order whatever the gate says is said instead.
    let order = world::new_order(&world::request_id(), None, OFFICE, 301);
    let refused = direct.orders().create_order(order).await.unwrap_err();
    assert_eq!(tests::clients::bad_fields_of(&refused), ["lines[0].quantity"]);
    assert_eq!(orders_of(&direct).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_caller_that_waits_less_than_the_gate_takes_hears_that_it_is_unknown() {
    let cluster = cluster_asking(impostor(None).await, 30_000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut request = Request::new(world::new_order(&world::request_id(), None, OFFICE, 5));
    request.set_timeout(std::time::Duration::from_millis(500));
    let refused = direct.orders().create_order(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_agreement_svc_nothing_is_sold_but_everything_can_be_read() {
    for backend in Backend::all() {
        let mut cluster = Cluster::on(backend).await;
        world::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(world::sales(DIRECT));
        let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        world::attest(&direct, &customer, Clock::system().now()).await.unwrap();
        let bought = world::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
        let change = |quantity| ChangeSeatsRequest {
            request_id: world::request_id(),
            subscription_id: bought.subscription_id.clone(),
            quantity,
            etag: bought.etag.clone(),
            validate_only: false,
        };

        cluster.stop_agreements();
        assert_unknown(&world::order(&direct, &customer, None, 5).await.unwrap_err(), "order");
        let refused = direct.subscriptions().change_seats(change(8)).await.unwrap_err();
        assert_unknown(&refused, "seats");
        // The same count never needed the gate.
        direct.subscriptions().change_seats(change(5)).await.unwrap();
        direct.offers().list_offers(ListOffersRequest::default()).await.unwrap();
        assert_eq!(orders_of(&direct).await, 1);
        chassis::server::check_health(&format!("http://{}", cluster.orders_address())).await.unwrap();

        cluster.restart_agreements().await.unwrap();
        direct.subscriptions().change_seats(change(8)).await.unwrap();
        world::order(&direct, &customer, None, 5).await.unwrap();
        assert_eq!(orders_of(&direct).await, 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_in_progress_is_answered_before_the_service_stops() {
    let asked = Arc::new(Notify::new());
    let mut cluster = cluster_asking(impostor_that_tells(None, asked.clone()).await, 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let caller = direct.clone();
    let waiting = tokio::spawn(async move { world::order(&caller, &world::request_id(), None, 5).await });
    asked.notified().await;
    cluster.restart_orders().await.unwrap();
    // It heard the service's own words, not a broken connection's.
    assert_unknown(&waiting.await.unwrap().unwrap_err(), "while stopping");
    assert_eq!(orders_of(&direct).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_is_stored_on_an_answer_older_than_the_customers_fence() {
    for backend in Backend::all() {
        let cluster = Cluster::on(backend).await;
        world::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(world::sales(DIRECT));
        let mut customers = vec![];
        for name in ["Fenced", "Free"] {
            let customer = world::create_customer(&direct, name, "FR", None).await.unwrap();
            world::attest(&direct, &customer, Clock::system().now()).await.unwrap();
            customers.push(customer);
        }
        let [fenced, free] = [&customers[0], &customers[1]];
        let bought = world::order(&direct, fenced, None, 5).await.unwrap().subscriptions.remove(0);
        let raise = |to: &str| {
            let sql = format!("UPDATE fence SET fence_revision = {to} WHERE customer_id = '{fenced}'");
            cluster.orders_sql(&sql).unwrap();
        };
        let seats = |quantity| ChangeSeatsRequest {
            request_id: world::request_id(),
            subscription_id: bought.subscription_id.clone(),
            quantity,
            etag: bought.etag.clone(),
            validate_only: false,
        };

        raise("1000000");
        let refused = world::order(&direct, fenced, None, 5).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::Aborted, "ANSWER_OUTDATED"));
        let refused = direct.subscriptions().change_seats(seats(8)).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::Aborted, "ANSWER_OUTDATED"));
        world::order(&direct, free, None, 5).await.unwrap();
        assert_eq!(orders_of(&direct).await, 2);

        // An answer given after the withdrawal, or at it, passes.
        let revision = bought_at(&direct, &bought.order_id).await;
        raise(&revision.to_string());
        direct.subscriptions().change_seats(seats(8)).await.unwrap();
        world::order(&direct, fenced, None, 5).await.unwrap();
    }
}

/// The revision of the answer that an order rests on.
async fn bought_at(caller: &As, order_id: &str) -> i64 {
    let request = GetOrderRequest { order_id: order_id.into() };
    let order = caller.orders().get_order(request).await.unwrap().into_inner().order.unwrap();
    order.gate.unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_grew_old_at_the_fence_is_asked_for_again() {
    // Only PostgreSQL lets transactions of one customer wait for each other there.
    for backend in Backend::all().into_iter().filter(|backend| *backend == Backend::Postgres) {
        let start = Clock::system().now();
        let clock = Clock::manual(start);
        let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
        let cluster = Cluster::start(setup).await.unwrap();
        world::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(world::sales(DIRECT));
        let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        world::attest(&direct, &customer, start).await.unwrap();
        world::order(&direct, &customer, None, 5).await.unwrap();

        let Url::Postgres(url) = cluster.orders_database() else { panic!("not PostgreSQL") };
        let mut holder = PgConnection::establish(url).unwrap();
        holder.batch_execute("BEGIN; SELECT * FROM fence FOR UPDATE").unwrap();
        let caller = direct.clone();
        let waiting = tokio::spawn(async move { world::order(&caller, &customer, None, 5).await });
        let mut watcher = PgConnection::establish(url).unwrap();
        loop {
            let blocked = diesel::sql_query(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%fence%'",
            );
            if blocked.execute(&mut watcher).unwrap() > 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        let later = start + chrono::Duration::seconds(6);
        clock.set(later);
        holder.batch_execute("COMMIT").unwrap();
        let order = waiting.await.unwrap().unwrap().order.unwrap();
        assert_eq!(order.gate.unwrap().evaluated_at, Some(timestamp(later)));
    }
}
