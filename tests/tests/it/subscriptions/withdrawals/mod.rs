//! Withdrawals, carried through: what rests on an acceptance ends with it (WD-2), what does not stays,
//! and both can be read (WD-4). What two who part leave behind does not renew (CUS-3).

mod application;
mod cancellation;
mod corrections;
mod large;
mod previews;
mod relationship_ends;

use std::collections::BTreeSet;
use std::time::Duration;

use chassis::clock::Clock;
use chrono::TimeDelta;
use futures_util::future::join_all;
use proto::agreement::{EndRelationshipRequest, GetDirectSignStatusRequest};
use proto::order::{
    AssignResellerRequest, GetWithdrawalReportRequest, GetWithdrawalReportResponse,
    ListWithdrawalReportsRequest, NewOrderLine, Subscription, SubscriptionChangeKind,
    SubscriptionChangeReason, SubscriptionState, SuspendSubscriptionRequest, WithdrawalOutcome,
    WithdrawalReport,
};
use proto::types::AcceptanceKind;
use rstest_reuse::apply;
use tests::actions::{
    self, attest_now, get_subscription as read, subscribe as buy, withdraw, withdraw_signature,
};
use tests::fixtures::{self, AZURE_PLAN, DIRECT, OFFICE, PROVIDER, RESELLER, now};
use tests::{As, Backend, Cluster, Setup, metadata_of, reason_of};

use crate::each_backend;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::faults::relay::Relay;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

async fn cluster_on(backend: Backend) -> Cluster {
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    cluster
}

async fn report_of(caller: &As, revision: i64) -> Result<GetWithdrawalReportResponse, Status> {
    let request = GetWithdrawalReportRequest { revision, ..GetWithdrawalReportRequest::default() };
    Ok(caller.withdrawals().get_withdrawal_report(request).await?.into_inner())
}

/// The report of a withdrawal, once it has been applied.
async fn applied(caller: &As, revision: i64) -> GetWithdrawalReportResponse {
    let request = GetWithdrawalReportRequest { revision, wait: true, ..Default::default() };
    let asking = async {
        loop {
            let report =
                caller.withdrawals().get_withdrawal_report(request.clone()).await.unwrap().into_inner();
            if report.applied {
                return report;
            }
            assert!(report.report.is_none() && report.effects.is_empty());
            assert!(report.applied_up_to < revision);
        }
    };
    tokio::time::timeout(LONG, asking).await.unwrap()
}

/// Waits until order-svc has applied everything up to a revision, whatever is there.
async fn followed(caller: &As, revision: i64) {
    let asking = async {
        loop {
            match report_of(caller, revision).await {
                Ok(report) if !report.applied => assert!(report.applied_up_to < revision),
                Ok(_) => return,
                Err(none) => return assert_eq!(reason_of(&none), "RESOURCE_NOT_FOUND"),
            }
        }
    };
    tokio::time::timeout(LONG, asking).await.unwrap();
}

/// How many were cancelled and stayed, and the outcomes by subscription.
fn counts_and_outcomes(
    report: &GetWithdrawalReportResponse,
) -> ((u32, u32), Vec<(String, WithdrawalOutcome)>) {
    let counts = report.report.as_ref().map(|report| (report.cancelled, report.stayed)).unwrap();
    (counts, report.effects.iter().map(|e| (e.subscription_id.clone(), e.outcome())).collect())
}

fn outcomes(of: &[(&Subscription, WithdrawalOutcome)]) -> Vec<(String, WithdrawalOutcome)> {
    let mut outcomes: Vec<_> = of.iter().map(|(s, outcome)| (s.subscription_id.clone(), *outcome)).collect();
    outcomes.sort();
    outcomes
}

/// A subscription that was cancelled by a withdrawal, with the history that says so.
async fn assert_cancelled(caller: &As, bought: &Subscription, revision: i64) {
    let ended = read(caller, &bought.subscription_id).await.unwrap();
    assert_eq!(ended.state(), SubscriptionState::Cancelled);
    let change = actions::changes_of(caller, &bought.subscription_id).await.unwrap().pop().unwrap();
    assert_eq!(change.kind(), SubscriptionChangeKind::Cancelled);
    assert_eq!(change.reason(), SubscriptionChangeReason::AgreementWithdrawn);
    assert_eq!((change.event_revision, change.actor.as_str(), change.gate), (revision, "", None));
    assert_eq!(change.number.to_string(), ended.etag);
    assert_eq!((change.quantity_before, change.quantity_after), (ended.quantity, ended.quantity));
}

/// A customer of two payers that has signed: the direct-bill partner's, which the provider invited.
async fn customer_of_two(cluster: &Cluster) -> (As, As, As, String) {
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let invitation = actions::invite(&provider, None, None).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invitation, None)).await.unwrap();
    (direct, provider, admin, customer)
}

/// A metric of order-svc.
async fn metric(cluster: &Cluster, name: &str) -> f64 {
    let text = cluster.orders_metrics().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}
