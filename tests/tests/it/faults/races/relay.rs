//! A relay between order-svc and agreement-svc that delays answers and events.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::eligibility_service_server::{EligibilityService, EligibilityServiceServer};
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::event_service_server::{EventService, EventServiceServer};
use proto::agreement::{
    BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, CheckEligibilityRequest,
    CheckEligibilityResponse, CheckWithdrawalRequest, CheckWithdrawalResponse, GetPolicyRequest,
    GetPolicyResponse, ListBlockedCustomersRequest, ListBlockedCustomersResponse, ListEventsRequest,
    ListEventsResponse, ReportPurchaseRequest, ReportPurchaseResponse, WatchEventsRequest,
    WatchEventsResponse,
};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// The longest delay of an answer or an event: some times as long as either service needs to process it.
const LATE_MAX: Duration = Duration::from_millis(30);

/// Stands between order-svc and agreement-svc and delays messages.
#[derive(Clone)]
pub(super) struct Relay {
    pub address: SocketAddr,
    pub to: Arc<OnceLock<Channel>>,
    /// The ids of the calls that checked the gate.
    pub asked: Arc<Mutex<BTreeSet<String>>>,
    /// Repeated checks for the same call.
    pub asked_again: Arc<AtomicUsize>,
}

impl Relay {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Self { address, to: Arc::default(), asked: Arc::default(), asked_again: Arc::default() };
        let server = Server::builder()
            .add_service(EligibilityServiceServer::new(relay.clone()))
            .add_service(EventServiceServer::new(relay.clone()))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        tokio::spawn(server);
        relay
    }

    pub(super) fn pass_to(&self, address: SocketAddr) {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        self.to.set(endpoint.connect_lazy()).unwrap();
    }

    fn to(&self) -> Result<Channel, Status> {
        self.to.get().cloned().ok_or_else(|| Status::unavailable("the relay has no target yet"))
    }
}

/// Delays one message of two.
async fn delay() {
    if rand::random() {
        tokio::time::sleep(LATE_MAX.mul_f64(rand::random())).await;
    }
}

#[tonic::async_trait]
impl EligibilityService for Relay {
    async fn check_eligibility(
        &self,
        request: Request<CheckEligibilityRequest>,
    ) -> Result<Response<CheckEligibilityResponse>, Status> {
        let call_id = request.metadata().get("x-call-id").unwrap().to_str().unwrap().to_owned();
        if !self.asked.lock().unwrap().insert(call_id) {
            self.asked_again.fetch_add(1, Ordering::Relaxed);
        }
        let answer = EligibilityServiceClient::new(self.to()?).check_eligibility(request).await;
        delay().await;
        answer
    }

    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        EligibilityServiceClient::new(self.to()?).get_policy(request).await
    }

    async fn report_purchase(
        &self,
        request: Request<ReportPurchaseRequest>,
    ) -> Result<Response<ReportPurchaseResponse>, Status> {
        EligibilityServiceClient::new(self.to()?).report_purchase(request).await
    }

    async fn batch_check_eligibility(
        &self,
        _request: Request<BatchCheckEligibilityRequest>,
    ) -> Result<Response<BatchCheckEligibilityResponse>, Status> {
        Err(Status::unimplemented("order-svc does not ask for it"))
    }

    async fn list_blocked_customers(
        &self,
        _request: Request<ListBlockedCustomersRequest>,
    ) -> Result<Response<ListBlockedCustomersResponse>, Status> {
        Err(Status::unimplemented("order-svc does not ask for it"))
    }

    async fn check_withdrawal(
        &self,
        request: Request<CheckWithdrawalRequest>,
    ) -> Result<Response<CheckWithdrawalResponse>, Status> {
        EligibilityServiceClient::new(self.to()?).check_withdrawal(request).await
    }
}

#[tonic::async_trait]
impl EventService for Relay {
    type WatchEventsStream = BoxStream<'static, Result<WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        const UNDER_WAY_MAX: usize = 100;
        let events = EventServiceClient::new(self.to()?).watch_events(request).await?.into_inner();
        let late = events.map(|event| async {
            delay().await;
            event
        });
        Ok(Response::new(late.buffered(UNDER_WAY_MAX).boxed()))
    }

    async fn list_events(
        &self,
        _request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        Err(Status::unimplemented("order-svc does not ask for it"))
    }
}
