//! Withdrawals, carried through: what rests on an acceptance ends with it (WD-2), what does not stays,
//! and both can be read (WD-4).

use chassis::clock::{Clock, Time};
use proto::agreement::{WithdrawAttestationRequest, WithdrawalReason};
use proto::order::{
    GetSubscriptionRequest, GetWithdrawalReportRequest, GetWithdrawalReportResponse,
    ListSubscriptionChangesRequest, Subscription, SubscriptionChange, SubscriptionChangeKind,
    SubscriptionChangeReason, SubscriptionState,
};
use tests::world::{self, DIRECT};
use tests::{As, Backend, Cluster};
use tonic::Status;

/// A cluster with its partners.
async fn cluster_on(backend: Backend) -> Cluster {
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    cluster
}

fn now() -> Time {
    Clock::system().now()
}

async fn report_of(caller: &As, revision: i64) -> Result<GetWithdrawalReportResponse, Status> {
    let request = GetWithdrawalReportRequest { revision, ..GetWithdrawalReportRequest::default() };
    Ok(caller.withdrawals().get_withdrawal_report(request).await?.into_inner())
}

/// Waits until a withdrawal has been applied.
async fn applied(caller: &As, revision: i64) -> GetWithdrawalReportResponse {
    let waiting = async {
        loop {
            let report = report_of(caller, revision).await.unwrap();
            if report.applied {
                return report;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), waiting).await.unwrap()
}

async fn withdraw(caller: &As, attestation_id: &str) -> i64 {
    let request = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id: attestation_id.into(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    caller.attestations().withdraw_attestation(request).await.unwrap().into_inner().revision
}

async fn subscription(caller: &As, id: &str) -> Subscription {
    let request = GetSubscriptionRequest { subscription_id: id.into() };
    caller.subscriptions().get_subscription(request).await.unwrap().into_inner().subscription.unwrap()
}

async fn last_change(caller: &As, id: &str) -> SubscriptionChange {
    let request = ListSubscriptionChangesRequest {
        subscription_id: id.into(),
        ..ListSubscriptionChangesRequest::default()
    };
    caller
        .subscriptions()
        .list_subscription_changes(request)
        .await
        .unwrap()
        .into_inner()
        .changes
        .pop()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_rests_on_a_withdrawn_attestation_is_cancelled_and_nothing_else() {
    for backend in Backend::all() {
        let cluster = cluster_on(backend).await;
        let direct = cluster.as_caller(world::sales(DIRECT));
        let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        let attested = world::attest(&direct, &customer, now()).await.unwrap().attestation.unwrap();
        let bought = world::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
        let revision = withdraw(&direct, &attested.attestation_id).await;
        let report = applied(&direct, revision).await;
        let told = report.report.unwrap();
        assert_eq!((told.cancelled, told.stayed), (1, 0));
        let ended = subscription(&direct, &bought.subscription_id).await;
        assert_eq!(ended.state(), SubscriptionState::Cancelled);
        let change = last_change(&direct, &bought.subscription_id).await;
        assert_eq!(change.kind(), SubscriptionChangeKind::Cancelled);
        assert_eq!(change.reason(), SubscriptionChangeReason::AgreementWithdrawn);
        assert_eq!(change.event_revision, revision);
    }
}
