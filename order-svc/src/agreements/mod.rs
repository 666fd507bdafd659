//! What order-svc asks agreement-svc, and follows of it. An answer becomes a fact, or it becomes "unknown", which is a
//! refusal (I8).

pub(crate) mod attest;
pub(crate) mod connections;
pub(crate) mod events;
pub(crate) mod gate;
pub(crate) mod identity;
mod partner;
pub(crate) mod renewal;
pub(crate) mod withdrawal;

use std::time::Duration;

use agreement_gate_client::{CallOptions, Client, Domain, Refusal};
use chassis::auth::Credentials;
use chassis::clock::Clock;
use chassis::form::timestamp;
use chassis::metrics::Metrics;
use chassis::telemetry::trace::Traced;
use chrono::TimeDelta;
use proto::agreement::ReportPurchaseRequest;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::types::ErrorReason;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::rules::order::PurchaseReport;
use connections::Connections;
use identity::ServiceIdentity;

/// `ErrorInfo.domain` of agreement-svc's refusals.
pub(crate) const DOMAIN: &str = Domain::AgreementSvc.name();

/// No caller waits for the report of a purchase, so it may take longer than the gate.
const REPORT_DEADLINE: Duration = Duration::from_secs(5);

/// agreement-svc, as order-svc asks it. Clones share its connections and its retries.
#[derive(Clone)]
pub(crate) struct AgreementClient {
    own: ServiceIdentity,
    connections: Connections,
    client: Client,
    deadline: Duration,
    clock: Clock,
    /// How far agreement-svc's clock and ours may be apart.
    clock_difference_max: TimeDelta,
}

impl AgreementClient {
    pub(crate) fn new(
        connections: Connections,
        own: ServiceIdentity,
        deadline: Duration,
        clock: Clock,
        clock_difference_max: TimeDelta,
    ) -> Self {
        let client = Client::new(connections.replicas.clone());
        Self { own, connections, client, deadline, clock, clock_difference_max }
    }

    /// How long a caller with so much time left waits for an answer.
    pub(crate) fn time_for(&self, time_left: Duration) -> Duration {
        self.deadline.min(time_left)
    }

    /// Registers the metrics of the replicas, and of this process's token and certificates.
    ///
    /// # Errors
    /// They are registered already.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) -> Result<(), prometheus::Error> {
        self.own.register_metrics(metrics);
        self.connections.register_metrics(metrics)
    }

    /// The options of a call as this service.
    fn own_options(&self, call_id: &str, deadline: Duration, time_left: Duration) -> CallOptions {
        options(&self.own.credentials(), call_id, deadline, time_left)
    }

    /// Reports a customer's first purchase. Reporting again under the same order is safe.
    ///
    /// # Errors
    /// What kept it from being taken.
    pub(crate) async fn report_purchase(&self, report: &PurchaseReport) -> Result<(), Status> {
        let message = ReportPurchaseRequest {
            request_id: report.order_id.to_string(),
            customer_id: report.customer_id.to_string(),
            payer_id: report.payer_id.to_string(),
            purchased_at: Some(timestamp(report.purchased_at)),
            validate_only: false,
        };
        let options = self.own_options(&message.request_id, REPORT_DEADLINE, REPORT_DEADLINE);
        let call = |channel, request| {
            let mut gate = EligibilityServiceClient::new(Traced(channel));
            async move { gate.report_purchase(request).await }
        };
        self.client.call(options, message, call).await.inspect_err(log_if_unauthenticated).map(drop)
    }
}

/// The options of a call: as whom, under the id under which both services log, how long it may take with all its tries, and how
/// long it is still waited for.
fn options(identity: &Credentials, call_id: &str, deadline: Duration, time_left: Duration) -> CallOptions {
    CallOptions { time_left, ..CallOptions::new(metadata(identity, call_id), deadline) }
}

/// An identity and a call id, as they are sent.
fn metadata(identity: &Credentials, call_id: &str) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    identity.present(&mut metadata);
    if let Ok(call_id) = MetadataValue::try_from(call_id) {
        metadata.insert("x-call-id", call_id);
    }
    metadata
}

/// Logs that agreement-svc refuses the identity of this service; no answer to a caller shows it.
fn log_if_unauthenticated(status: &Status) {
    if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) {
        let why = status.message();
        tracing::error!(
            why,
            "agreement-svc refuses this service's identity; put a valid token into --service-token"
        );
    }
}

/// The refusal, if it is agreement-svc that refused.
fn refusal_of(status: &Status) -> Option<Refusal> {
    Refusal::of(status).filter(|refusal| refusal.domain == Domain::AgreementSvc)
}

/// Its reason.
fn reason_of(status: &Status) -> Option<ErrorReason> {
    refusal_of(status).map(|refusal| refusal.reason)
}
