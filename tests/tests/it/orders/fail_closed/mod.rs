//! Unknown is no (I8): whatever keeps order-svc from a clear yes, nothing is stored, and the caller
//! can tell "no" from "unknown".

mod answers;
mod attestations;
mod connections;
mod fence;
mod outages;

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
    CheckEligibilityResponse, CheckWithdrawalRequest, CheckWithdrawalResponse, CreateAttestationRequest,
    CreateAttestationResponse, GetAttestationRequest, GetAttestationResponse, GetPolicyRequest,
    GetPolicyResponse, ImportAttestationsRequest, ImportAttestationsResponse, ListAttestationsRequest,
    ListAttestationsResponse, ListBlockedCustomersRequest, ListBlockedCustomersResponse,
    ListNotificationsRequest, ListNotificationsResponse, ReportPurchaseRequest, ReportPurchaseResponse,
    RetryNotificationRequest, RetryNotificationResponse, WithdrawAttestationRequest,
    WithdrawAttestationResponse, WithdrawalReason,
};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, GetOfferRequest, GetOrderRequest, GetSubscriptionRequest,
    GetWithdrawalReportRequest, ListOffersRequest, ListOrdersRequest, ListSubscriptionChangesRequest,
    ListSubscriptionsRequest, ListWithdrawalReportsRequest, Subscription,
};
use proto::types::{AcceptanceKind, AgreementType, BlockReason, Cloud, Decision, Evidence, GateRule};
use rstest_reuse::apply;
use tests::fixtures::{self, AZURE_PLAN, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, Setup, actions, reason_of};

use crate::each_backend;
use tokio::sync::{Notify, watch};
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use uuid::Uuid;

use crate::faults::tcp_proxy::TcpProxy;

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

    async fn get_policy(
        &self,
        _request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        Err(Status::unavailable("not today"))
    }

    async fn report_purchase(
        &self,
        _request: Request<ReportPurchaseRequest>,
    ) -> Result<Response<ReportPurchaseResponse>, Status> {
        Err(Status::unavailable("not today"))
    }

    async fn check_withdrawal(
        &self,
        _request: Request<CheckWithdrawalRequest>,
    ) -> Result<Response<CheckWithdrawalResponse>, Status> {
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

    async fn list_notifications(
        &self,
        _request: Request<ListNotificationsRequest>,
    ) -> Result<Response<ListNotificationsResponse>, Status> {
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
            template_id: fixtures::CUSTOMER_AGREEMENT.into(),
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

/// The same, at the other end of a proxy.
async fn cluster_far_from(impostor: &Impostor, gate_deadline_ms: u64) -> (TcpProxy, Cluster) {
    let proxy = TcpProxy::start().await;
    proxy.lead_to(impostor.listen().await);
    let setup = Setup { agreements_at: Some(proxy.url.clone()), gate_deadline_ms, ..Setup::default() };
    (proxy, Cluster::start(setup).await.unwrap())
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
