//! Unknown is no (I8): whatever keeps order-svc from a clear yes, nothing is stored, and the caller
//! can tell "no" from "unknown".

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chassis::clock::Clock;
use chassis::database::Url;
use chassis::form::timestamp;
use chassis::tls::ClientSettings;
use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection, RunQueryDsl};
use proto::agreement::attestation_service_server::{AttestationService, AttestationServiceServer};
use proto::agreement::eligibility_service_server::{EligibilityService, EligibilityServiceServer};
use proto::agreement::{
    Attestation, BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, CheckEligibilityRequest,
    CheckEligibilityResponse, CreateAttestationRequest, CreateAttestationResponse, GetAttestationRequest,
    GetAttestationResponse, ImportAttestationsRequest, ImportAttestationsResponse, ListAttestationsRequest,
    ListAttestationsResponse, ListBlockedCustomersRequest, ListBlockedCustomersResponse,
    ReportPurchaseRequest, ReportPurchaseResponse, RetryNotificationRequest, RetryNotificationResponse,
    WithdrawAttestationRequest, WithdrawAttestationResponse, WithdrawalReason,
};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, GetOfferRequest, GetOrderRequest, GetSubscriptionRequest,
    GetWithdrawalReportRequest, ListOffersRequest, ListOrdersRequest, ListSubscriptionChangesRequest,
    ListSubscriptionsRequest, ListWithdrawalReportsRequest, Subscription,
};
use proto::types::{AcceptanceKind, AgreementType, Cloud, Decision, Evidence, GateRule};
use rstest_reuse::apply;
use tests::world::{self, AZURE_PLAN, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, Setup, reason_of};

use crate::each_backend;
use tokio::sync::{Notify, watch};
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use uuid::Uuid;

use crate::faults::tcp_proxy::Line;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// What the impostor makes of a truthful answer.
type Twist = fn(CheckEligibilityResponse) -> Result<CheckEligibilityResponse, Status>;

/// What it makes of a truthful attestation.
type AttestationTwist = fn(CreateAttestationResponse) -> Result<CreateAttestationResponse, Status>;

/// Something at agreement-svc's address that answers as it pleases, or never.
#[derive(Clone)]
struct Impostor {
    twist: Twist,
    attestation_twist: AttestationTwist,
    /// So many questions are not answered before the first that is.
    silent: usize,
    /// Questions so far.
    questions: Arc<AtomicUsize>,
    /// Attestations so far.
    attestations: Arc<AtomicUsize>,
    asked: Arc<Notify>,
}

impl Impostor {
    fn new(twist: Twist) -> Self {
        let (questions, attestations, asked) = Default::default();
        Self { twist, attestation_twist: Ok, silent: 0, questions, attestations, asked }
    }

    /// One that never answers.
    fn silent() -> Self {
        Self { silent: usize::MAX, ..Self::new(Ok) }
    }

    /// Serves until the test ends.
    async fn listen(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(EligibilityServiceServer::new(self.clone()))
            .add_service(AttestationServiceServer::new(self.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        tokio::spawn(server);
        address
    }
}

#[tonic::async_trait]
impl EligibilityService for Impostor {
    async fn check_eligibility(
        &self,
        request: Request<CheckEligibilityRequest>,
    ) -> Result<Response<CheckEligibilityResponse>, Status> {
        self.asked.notify_one();
        if self.questions.fetch_add(1, Ordering::SeqCst) < self.silent {
            return std::future::pending().await;
        }
        (self.twist)(yes_to(&request.into_inner())).map(Response::new)
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

#[tonic::async_trait]
impl AttestationService for Impostor {
    async fn create_attestation(
        &self,
        request: Request<CreateAttestationRequest>,
    ) -> Result<Response<CreateAttestationResponse>, Status> {
        self.attestations.fetch_add(1, Ordering::SeqCst);
        (self.attestation_twist)(attested_for(request)).map(Response::new)
    }

    async fn get_attestation(
        &self,
        _request: Request<GetAttestationRequest>,
    ) -> Result<Response<GetAttestationResponse>, Status> {
        Err(Status::unavailable("not today"))
    }

    async fn list_attestations(
        &self,
        _request: Request<ListAttestationsRequest>,
    ) -> Result<Response<ListAttestationsResponse>, Status> {
        Err(Status::unavailable("not today"))
    }

    async fn withdraw_attestation(
        &self,
        _request: Request<WithdrawAttestationRequest>,
    ) -> Result<Response<WithdrawAttestationResponse>, Status> {
        Err(Status::unavailable("not today"))
    }

    type ImportAttestationsStream = tokio_stream::Empty<Result<ImportAttestationsResponse, Status>>;

    async fn import_attestations(
        &self,
        _request: Request<Streaming<ImportAttestationsRequest>>,
    ) -> Result<Response<Self::ImportAttestationsStream>, Status> {
        Err(Status::unavailable("not today"))
    }

    async fn retry_notification(
        &self,
        _request: Request<RetryNotificationRequest>,
    ) -> Result<Response<RetryNotificationResponse>, Status> {
        Err(Status::unavailable("not today"))
    }
}

/// An attestation as agreement-svc would answer that it is stored.
fn attested_for(request: Request<CreateAttestationRequest>) -> CreateAttestationResponse {
    let partner_id = request.metadata().get("x-tenant-id").unwrap().to_str().unwrap().to_owned();
    let message = request.into_inner();
    let attestation = Attestation {
        attestation_id: Uuid::from_u128(1).to_string(),
        partner_id,
        customer_id: message.customer_id,
        template_id: message.template_id,
        template_version: 2,
        ..Attestation::default()
    };
    CreateAttestationResponse { attestation: Some(attestation), revision: 5 }
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

async fn cluster_asking(impostor: &Impostor, gate_deadline_ms: u64) -> Cluster {
    let address = impostor.listen().await;
    let setup =
        Setup { agreements_at: Some(format!("http://{address}")), gate_deadline_ms, ..Setup::default() };
    Cluster::start(setup).await.unwrap()
}

/// The same, at the other end of a line.
async fn cluster_far_from(impostor: &Impostor, gate_deadline_ms: u64) -> (Line, Cluster) {
    let line = Line::start().await;
    line.lead_to(impostor.listen().await);
    let setup = Setup { agreements_at: Some(line.url.clone()), gate_deadline_ms, ..Setup::default() };
    (line, Cluster::start(setup).await.unwrap())
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
    tests::needs_own!("a line to agreement-svc that it cuts");
    let cluster = cluster_asking(&Impostor::new(Ok), 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    world::order(&direct, &world::request_id(), None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_invalid_answer_is_unknown() {
    tests::needs_own!("a line to agreement-svc that it cuts");
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
        ("about no customer", |_| Ok(CheckEligibilityResponse::default())),
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
        let cluster = cluster_asking(&Impostor::new(twist), 1000).await;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let refused = world::order(&direct, &world::request_id(), None, 5).await.unwrap_err();
        assert_unknown(&refused, about);
        assert_eq!(orders_of(&direct).await, 0, "{about}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn evidence_of_a_type_that_the_offer_does_not_demand_is_unknown() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    let cloud: Twist = |mut answer| {
        if let Some(evidence) = &mut answer.evidence {
            evidence.agreement_type = AgreementType::MicrosoftCloudAgreement.into();
        }
        Ok(answer)
    };
    let cluster = cluster_asking(&Impostor::new(cloud), 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let customer = world::request_id();
    direct.orders().create_order(world::new_order(&customer, None, OFFICE, 1)).await.unwrap();
    let order = world::new_order(&customer, None, AZURE_PLAN, 1);
    assert_unknown(&direct.orders().create_order(order).await.unwrap_err(), "the Azure plan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_never_comes_is_unknown_within_the_deadline() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    let cluster = cluster_asking(&Impostor::silent(), 50).await;
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
    tests::needs_own!("a line to agreement-svc that it cuts");
    let cluster = cluster_asking(&Impostor::silent(), 30_000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut request = Request::new(world::new_order(&world::request_id(), None, OFFICE, 5));
    request.set_timeout(Duration::from_millis(500));
    let refused = direct.orders().create_order(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_was_lost_is_asked_for_again_while_there_is_time() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    let impostor = Impostor { silent: 1, ..Impostor::new(Ok) };
    let cluster = cluster_asking(&impostor, 4000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    world::order(&direct, &world::request_id(), None, 5).await.unwrap();
    assert_eq!(impostor.questions.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_yes_that_comes_too_late_is_unknown_and_without_effect() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    let impostor = Impostor::new(Ok);
    let (line, cluster) = cluster_far_from(&impostor, 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    line.hold_answers(true);
    let order = world::new_order(&world::request_id(), None, OFFICE, 5);
    let mut orders = direct.orders();
    // Before keep-alive gives the connection up, by which the late yes is to come.
    let asking = tokio::time::timeout(Duration::from_secs(5), orders.create_order(order.clone()));
    assert_unknown(&asking.await.unwrap().unwrap_err(), "late");
    assert!(impostor.questions.load(Ordering::SeqCst) > 0);
    assert_eq!(orders_of(&direct).await, 0);

    // What is answered to the next order comes by the same connection, after the late yes.
    line.hold_answers(false);
    world::order(&direct, &world::request_id(), None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 1);
    orders.create_order(order).await.unwrap();
    assert_eq!(orders_of(&direct).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_late_yes_and_the_one_that_came_instead_make_one_order() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    let impostor = Impostor::new(Ok);
    let (line, cluster) = cluster_far_from(&impostor, 4000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    line.hold_answers(true);
    let caller = direct.clone();
    let waiting = tokio::spawn(async move { world::order(&caller, &world::request_id(), None, 5).await });
    // It is asked again once the first answer is too late.
    for _ in 0..2 {
        tokio::time::timeout(LONG, impostor.asked.notified()).await.unwrap();
    }
    line.hold_answers(false);
    waiting.await.unwrap().unwrap();
    assert_eq!(impostor.questions.load(Ordering::SeqCst), 2);
    assert_eq!(orders_of(&direct).await, 1);
}

/// Both services with a line between them, and a partner with a customer that accepted.
async fn behind_a_line() -> (Line, Cluster, As, String) {
    let line = Line::start().await;
    let setup = Setup { agreements_at: Some(line.url.clone()), gate_deadline_ms: 1000, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    line.lead_to(cluster.agreements_address());
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    world::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    (line, cluster, direct, customer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_that_died_without_a_word_is_given_up_for_a_new_one() {
    tests::needs_own!("services that it stops");
    let (line, _cluster, direct, customer) = behind_a_line().await;
    world::order(&direct, &customer, None, 5).await.unwrap();

    line.cut();
    let order = world::new_order(&customer, None, OFFICE, 5);
    assert_unknown(&direct.orders().create_order(order.clone()).await.unwrap_err(), "cut off");
    assert_eq!(orders_of(&direct).await, 1);
    // No message tells it; it notices within the seven seconds that its keep-alive takes.
    let asking = async {
        while let Err(refused) = direct.orders().create_order(order.clone()).await {
            assert_unknown(&refused, "cut off");
        }
    };
    tokio::time::timeout(Duration::from_secs(15), asking).await.unwrap();
    assert_eq!(orders_of(&direct).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_that_is_reset_under_a_question_costs_a_second_one_and_no_order() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    const ORDERS: usize = 8;
    let (line, _cluster, direct, customer) = behind_a_line().await;
    for _ in 0..ORDERS {
        line.reset_next();
        world::order(&direct, &customer, None, 5).await.unwrap();
    }
    assert_eq!(orders_of(&direct).await, ORDERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_what_may_pass_by_itself_is_asked_again() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    let twists: [(&str, usize, Twist); 6] = [
        ("unavailable", 3, |_| Err(Status::unavailable("not today"))),
        ("cancelled, in the words of our own time-out", 1, |_| Err(Status::cancelled("Timeout expired"))),
        ("its own time-out", 1, |_| Err(Status::deadline_exceeded("too slow"))),
        ("overloaded", 1, |_| Err(Status::resource_exhausted("too many"))),
        ("internal", 1, |_| Err(Status::internal("oops"))),
        ("nonsense", 1, |_| Ok(CheckEligibilityResponse::default())),
    ];
    for (about, questions, twist) in twists {
        let impostor = Impostor::new(twist);
        let cluster = cluster_asking(&impostor, 4000).await;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let refused = world::order(&direct, &world::request_id(), None, 5).await.unwrap_err();
        assert_unknown(&refused, about);
        assert_eq!(impostor.questions.load(Ordering::SeqCst), questions, "{about}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_neighbour_in_trouble_is_not_asked_three_times_as_much() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    const CALLS: usize = 200;
    let impostor = Impostor::new(|_| Err(Status::unavailable("not today")));
    let cluster = cluster_asking(&impostor, 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    for _ in 0..CALLS {
        let refused = world::order(&direct, &world::request_id(), None, 5).await.unwrap_err();
        assert_unknown(&refused, "in trouble");
    }
    let questions = impostor.questions.load(Ordering::SeqCst);
    assert!((CALLS..2 * CALLS).contains(&questions), "{questions} questions for {CALLS} calls");
}

fn refused_with(code: Code, domain: &str, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
    Status::with_error_details(code, format!("{reason}: because"), details)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_attestation_that_is_not_clearly_made_or_refused_is_unknown_and_nothing_is_ordered() {
    tests::needs_own!("a line to agreement-svc that it cuts");
    const US: &str = "agreement-svc";
    let prompted = || CreateOrderRequest {
        attestation: Some(world::inline_attestation(Clock::system().now())),
        ..world::new_order(&world::request_id(), None, OFFICE, 5)
    };
    // What is clear passes, so that the others prove something.
    let clear: [(&str, AttestationTwist); 3] = [
        ("", Ok),
        ("", |_| Err(refused_with(Code::AlreadyExists, US, "ALREADY_ATTESTED"))),
        ("CLOUD_NOT_SUPPORTED", |_| Err(refused_with(Code::FailedPrecondition, US, "CLOUD_NOT_SUPPORTED"))),
    ];
    for (reason, attestation_twist) in clear {
        let cluster = cluster_asking(&Impostor { attestation_twist, ..Impostor::new(Ok) }, 1000).await;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let placed = direct.orders().create_order(prompted()).await;
        assert_eq!(placed.as_ref().err().map(reason_of).unwrap_or_default(), reason);
        assert_eq!(orders_of(&direct).await, usize::from(placed.is_ok()), "{reason}");
    }

    let twists: [(&str, AttestationTwist); 18] = [
        ("unavailable", |_| Err(Status::unavailable("not today"))),
        ("its database away", |_| Err(refused_with(Code::Unavailable, US, "DATABASE_UNAVAILABLE"))),
        ("a defect", |_| Err(refused_with(Code::Internal, US, "INTERNAL"))),
        ("overloaded", |_| Err(refused_with(Code::ResourceExhausted, US, "OVERLOADED"))),
        ("no reason", |_| Err(Status::failed_precondition("no"))),
        ("another domain's reason", |_| {
            Err(refused_with(Code::FailedPrecondition, "some-svc", "CLOUD_NOT_SUPPORTED"))
        }),
        ("ours", |_| Err(refused_with(Code::FailedPrecondition, "order-svc", "CLOUD_NOT_SUPPORTED"))),
        ("an unknown reason", |_| Err(refused_with(Code::FailedPrecondition, US, "MERCURY_RETROGRADE"))),
        ("an unspecified reason", |_| Err(refused_with(Code::FailedPrecondition, US, "UNSPECIFIED"))),
        ("a reason of another call", |_| {
            Err(refused_with(Code::FailedPrecondition, US, "AGREEMENT_REQUIRED"))
        }),
        ("a reason with another code", |_| Err(refused_with(Code::Unknown, US, "CLOUD_NOT_SUPPORTED"))),
        ("attested already, and yet a defect", |_| Err(refused_with(Code::Internal, US, "ALREADY_ATTESTED"))),
        ("nothing", |_| Ok(CreateAttestationResponse::default())),
        ("no attestation", |a| Ok(CreateAttestationResponse { attestation: None, ..a })),
        ("no revision", |a| Ok(CreateAttestationResponse { revision: 0, ..a })),
        ("a revision that the gate has not reached", |a| Ok(CreateAttestationResponse { revision: 6, ..a })),
        ("another customer's", |mut answer| {
            answer.attestation.as_mut().unwrap().customer_id = Uuid::from_u128(9).to_string();
            Ok(answer)
        }),
        ("another partner's", |mut answer| {
            answer.attestation.as_mut().unwrap().partner_id = Uuid::from_u128(9).to_string();
            Ok(answer)
        }),
    ];
    for (about, attestation_twist) in twists {
        let cluster = cluster_asking(&Impostor { attestation_twist, ..Impostor::new(Ok) }, 1000).await;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let refused = direct.orders().create_order(prompted()).await.unwrap_err();
        assert_unknown(&refused, about);
        assert_eq!(orders_of(&direct).await, 0, "{about}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_an_order_carries_is_attested_once_however_often_it_is_sent_and_the_gate_is_asked() {
    tests::needs_own!("databases that it writes to");
    let impostor = Impostor::new(Ok);
    let cluster = cluster_asking(&impostor, 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let counts = || [&impostor.attestations, &impostor.questions].map(|count| count.load(Ordering::SeqCst));
    let order = CreateOrderRequest {
        attestation: Some(world::inline_attestation(Clock::system().now())),
        ..world::new_order(&world::request_id(), None, OFFICE, 5)
    };
    for _ in 0..3 {
        direct.orders().create_order(order.clone()).await.unwrap();
        assert_eq!(counts(), [1, 1]);
    }
    cluster.orders_sql("UPDATE fence SET fence_revision = 1000000").unwrap();
    let order = CreateOrderRequest { request_id: world::request_id(), ..order };
    let refused = direct.orders().create_order(order).await.unwrap_err();
    assert_eq!(reason_of(&refused), "ANSWER_OUTDATED");
    assert_eq!(counts(), [2, 4]);
}

#[apply(each_backend)]
async fn orders_outlive_a_restart_of_agreement_svc_under_their_request_ids(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    const CALLERS: usize = 8;
    const ORDERS: usize = 4;
    let mut cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut customers = vec![];
    for n in 0..CALLERS {
        let customer = world::create_customer(&direct, &format!("Contoso {n}"), "FR", None).await.unwrap();
        customers.push(customer);
    }
    // How many orders were placed, and how many calls were refused.
    let (seen, mut watched) = watch::channel((0, 0));
    let (is_away, away) = watch::channel(false);
    let callers = customers.iter().cloned().map(|customer| {
        let (caller, seen, mut away) = (direct.clone(), seen.clone(), away.clone());
        tokio::spawn(async move {
            for n in 0..ORDERS {
                // The last one finds no server, the others whatever comes.
                if n + 1 == ORDERS {
                    away.wait_for(|away| *away).await.unwrap();
                }
                let order = CreateOrderRequest {
                    attestation: Some(world::inline_attestation(Clock::system().now())),
                    ..world::new_order(&customer, None, OFFICE, 5)
                };
                let placing = async {
                    while let Err(refused) = caller.orders().create_order(order.clone()).await {
                        assert_unknown(&refused, "while agreement-svc restarts");
                        seen.send_modify(|(_, refused)| *refused += 1);
                    }
                };
                tokio::time::timeout(LONG, placing).await.unwrap();
                seen.send_modify(|(placed, _)| *placed += 1);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    // The test hears it when all callers have given up.
    drop(seen);
    watched.wait_for(|(placed, _)| *placed > 0).await.unwrap();
    cluster.stop_agreements();
    is_away.send_replace(true);
    watched.wait_for(|(_, refused)| *refused >= CALLERS).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    for caller in callers {
        caller.await.unwrap();
    }
    assert_eq!(orders_of(&direct).await, CALLERS * ORDERS);
    for customer_id in customers {
        let request = ListAttestationsRequest {
            customer_id,
            include_history: true,
            ..ListAttestationsRequest::default()
        };
        let stored = direct.attestations().list_attestations(request).await.unwrap().into_inner();
        assert_eq!(stored.attestations.len(), 1);
    }
}

/// Everything that order-svc can be asked for, where this was bought and this was withdrawn.
async fn assert_readable(caller: &As, bought: &Subscription, withdrawal: i64) {
    let (order_id, subscription_id) = (bought.order_id.clone(), bought.subscription_id.clone());
    let offers = caller.offers().list_offers(ListOffersRequest::default()).await.unwrap().into_inner();
    assert!(offers.offers.iter().any(|offer| offer.offer_id == bought.offer_id));
    let offer = GetOfferRequest { offer_id: bought.offer_id.clone() };
    let offer = caller.offers().get_offer(offer).await.unwrap().into_inner().offer.unwrap();
    assert!(offers.offers.contains(&offer));

    let orders = caller.orders().list_orders(ListOrdersRequest::default()).await.unwrap().into_inner();
    let order = caller.orders().get_order(GetOrderRequest { order_id }).await.unwrap().into_inner();
    assert!(orders.orders.contains(&order.order.unwrap()));

    let mut subscriptions = caller.subscriptions();
    let all = subscriptions.list_subscriptions(ListSubscriptionsRequest::default()).await.unwrap();
    assert!(all.into_inner().subscriptions.contains(bought));
    let one = GetSubscriptionRequest { subscription_id: subscription_id.clone() };
    let one = subscriptions.get_subscription(one).await.unwrap().into_inner().subscription;
    assert_eq!(one.as_ref(), Some(bought));
    let changes = ListSubscriptionChangesRequest { subscription_id, ..Default::default() };
    let changes = subscriptions.list_subscription_changes(changes).await.unwrap().into_inner().changes;
    assert_eq!(changes.len(), 1);

    let mut withdrawals = caller.withdrawals();
    let report = GetWithdrawalReportRequest { revision: withdrawal, ..Default::default() };
    let report = withdrawals.get_withdrawal_report(report).await.unwrap().into_inner();
    assert_eq!((report.applied, report.effects.len()), (true, 1));
    let reports = ListWithdrawalReportsRequest::default();
    let reports = withdrawals.list_withdrawal_reports(reports).await.unwrap().into_inner().reports;
    assert_eq!(reports, [report.report.unwrap()]);
}

#[apply(each_backend)]
async fn without_agreement_svc_nothing_is_sold_but_everything_can_be_read(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut customers = vec![];
    for name in ["Contoso", "Fabrikam"] {
        let customer = world::create_customer(&direct, name, "FR", None).await.unwrap();
        let attested = world::attest(&direct, &customer, Clock::system().now()).await.unwrap();
        let bought = world::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
        customers.push((customer, attested.attestation.unwrap().attestation_id, bought));
    }
    let [(customer, _, bought), (_, attestation_id, _)] = customers.try_into().unwrap();
    let withdraw = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    let withdrawn = direct.attestations().withdraw_attestation(withdraw).await.unwrap().into_inner();
    let report = GetWithdrawalReportRequest { revision: withdrawn.revision, ..Default::default() };
    let applying = async {
        let mut client = direct.withdrawals();
        while !client.get_withdrawal_report(report.clone()).await.unwrap().into_inner().applied {}
    };
    tokio::time::timeout(LONG, applying).await.unwrap();
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
    assert_readable(&direct, &bought, withdrawn.revision).await;
    assert_eq!(orders_of(&direct).await, 2);
    // Also when it starts alone.
    cluster.restart_orders().await.unwrap();
    assert_readable(&direct, &bought, withdrawn.revision).await;
    let address = format!("http://{}", cluster.orders_address()).parse().unwrap();
    chassis::health::check_health(&address, &ClientSettings::default()).await.unwrap();

    cluster.restart_agreements().await.unwrap();
    direct.subscriptions().change_seats(change(8)).await.unwrap();
    world::order(&direct, &customer, None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_in_progress_is_answered_before_the_service_stops() {
    tests::needs_own!("services that it stops");
    let impostor = Impostor::silent();
    let mut cluster = cluster_asking(&impostor, 1000).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let caller = direct.clone();
    let waiting = tokio::spawn(async move { world::order(&caller, &world::request_id(), None, 5).await });
    impostor.asked.notified().await;
    cluster.restart_orders().await.unwrap();
    // It heard the service's own words, not a broken connection's.
    assert_unknown(&waiting.await.unwrap().unwrap_err(), "while stopping");
    assert_eq!(orders_of(&direct).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_that_the_database_closed_are_replaced() {
    tests::needs_own!("databases that it writes to");
    const CLOSE_ALL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
        WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()";
    for backend in Backend::all().into_iter().filter(|backend| *backend == Backend::Postgres) {
        let cluster = Cluster::on(backend).await;
        world::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(world::sales(DIRECT));
        let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        world::attest(&direct, &customer, Clock::system().now()).await.unwrap();
        world::order(&direct, &customer, None, 5).await.unwrap();
        cluster.agreements_sql(CLOSE_ALL).unwrap();
        cluster.orders_sql(CLOSE_ALL).unwrap();
        // Who meets a dead one is told to come back. There are no more of them than the pools had.
        let mut failures = vec![];
        while let Err(status) = world::order(&direct, &customer, None, 5).await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            failures.push(status.to_string());
            assert!(failures.len() < 50, "{failures:?}");
        }
    }
}

/// WD-3.
#[apply(each_backend)]
async fn nothing_is_stored_on_an_answer_older_than_the_customers_fence(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
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

/// The revision of the answer that an order rests on.
async fn bought_at(caller: &As, order_id: &str) -> i64 {
    let request = GetOrderRequest { order_id: order_id.into() };
    let order = caller.orders().get_order(request).await.unwrap().into_inner().order.unwrap();
    order.gate.unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_grew_old_at_the_fence_is_asked_for_again() {
    tests::needs_own!("a clock that it sets");
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
        // The session that waits for this very transaction, since other tests lock their own fences.
        let blocked =
            "SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))";
        while diesel::sql_query(blocked).execute(&mut holder).unwrap() == 0 {
            tokio::task::yield_now().await;
        }
        let later = start + chrono::Duration::seconds(6);
        clock.set(later);
        holder.batch_execute("COMMIT").unwrap();
        let order = waiting.await.unwrap().unwrap().order.unwrap();
        assert_eq!(order.gate.unwrap().evaluated_at, Some(timestamp(later)));
    }
}
