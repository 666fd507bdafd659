//! Withdrawals, carried through: what rests on an acceptance ends with it (WD-2), what does not stays,
//! and both can be read (WD-4). What two who part leave behind does not renew (CUS-3).

use std::time::Duration;

use chassis::clock::{Clock, Time};
use chrono::TimeDelta;
use futures_util::future::join_all;
use proto::agreement::{
    EndRelationshipRequest, GetDirectSignStatusRequest, WithdrawAttestationRequest, WithdrawSignatureRequest,
    WithdrawalReason,
};
use proto::order::{
    GetSubscriptionRequest, GetWithdrawalReportRequest, GetWithdrawalReportResponse,
    ListSubscriptionChangesRequest, ListWithdrawalReportsRequest, NewOrderLine, Subscription,
    SubscriptionChange, SubscriptionChangeKind, SubscriptionChangeReason, SubscriptionState,
    SuspendSubscriptionRequest, WithdrawalOutcome, WithdrawalReport,
};
use proto::types::AcceptanceKind;
use rstest_reuse::apply;
use tests::world::{self, DIRECT, OFFICE, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, Setup, metadata_of, reason_of};

use crate::each_backend;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::faults::relay::Relay;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

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

/// The report of a withdrawal, once it has been applied.
async fn applied(caller: &As, revision: i64) -> GetWithdrawalReportResponse {
    let asking = async {
        loop {
            let report = report_of(caller, revision).await.unwrap();
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

async fn withdraw(caller: &As, attestation_id: &str) -> i64 {
    let request = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id: attestation_id.into(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    caller.attestations().withdraw_attestation(request).await.unwrap().into_inner().revision
}

async fn attest(caller: &As, customer: &str) -> String {
    world::attest(caller, customer, now()).await.unwrap().attestation.unwrap().attestation_id
}

async fn buy(caller: &As, customer: &str, payer: Option<Uuid>) -> Subscription {
    world::order(caller, customer, payer, 5).await.unwrap().subscriptions.remove(0)
}

async fn read(caller: &As, bought: &Subscription) -> Subscription {
    let request = GetSubscriptionRequest { subscription_id: bought.subscription_id.clone() };
    caller.subscriptions().get_subscription(request).await.unwrap().into_inner().subscription.unwrap()
}

async fn changes_of(caller: &As, bought: &Subscription) -> Vec<SubscriptionChange> {
    let subscription_id = bought.subscription_id.clone();
    let request =
        ListSubscriptionChangesRequest { subscription_id, ..ListSubscriptionChangesRequest::default() };
    caller.subscriptions().list_subscription_changes(request).await.unwrap().into_inner().changes
}

/// How many were cancelled and stayed, and the outcomes by subscription.
fn told(report: &GetWithdrawalReportResponse) -> ((u32, u32), Vec<(String, WithdrawalOutcome)>) {
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
    let ended = read(caller, bought).await;
    assert_eq!(ended.state(), SubscriptionState::Cancelled);
    let change = changes_of(caller, bought).await.pop().unwrap();
    assert_eq!(change.kind(), SubscriptionChangeKind::Cancelled);
    assert_eq!(change.reason(), SubscriptionChangeReason::AgreementWithdrawn);
    assert_eq!((change.event_revision, change.actor.as_str(), change.gate), (revision, "", None));
    assert_eq!(change.number.to_string(), ended.etag);
    assert_eq!((change.quantity_before, change.quantity_after), (ended.quantity, ended.quantity));
}

/// ROLE-7.
#[apply(each_backend)]
async fn what_rests_on_a_withdrawn_attestation_is_cancelled_for_payer_and_reseller(#[case] backend: Backend) {
    tests::needs!(backend);
    use WithdrawalOutcome::Cancelled;
    let cluster = cluster_on(backend).await;
    let [direct, provider, reseller] =
        [DIRECT, PROVIDER, RESELLER].map(|partner| cluster.as_caller(world::sales(partner)));
    let operator = cluster.as_caller(world::operator());
    let customer = world::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let attestation = attest(&provider, &customer).await;
    let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 2, friendly_name: String::new() };
    let mut order = world::new_order(&customer, Some(PROVIDER), OFFICE, 7);
    order.lines.push(line);
    let two = reseller.orders().create_order(order).await.unwrap().into_inner().subscriptions;
    let paused = buy(&provider, &customer, None).await;
    let suspend = SuspendSubscriptionRequest {
        request_id: world::request_id(),
        subscription_id: paused.subscription_id.clone(),
        etag: paused.etag.clone(),
    };
    provider.subscriptions().suspend_subscription(suspend).await.unwrap();
    // Another payer of the customer's was never covered by it, and learns nothing of it.
    let admin = cluster.as_caller(world::admin(customer.parse().unwrap()));
    let invitation = world::invite(&direct, None, None).await.unwrap();
    admin.signatures().accept_invitation(world::acceptance(&invitation, None)).await.unwrap();
    attest(&direct, &customer).await;
    let foreign = buy(&direct, &customer, None).await;
    // Another customer of the same provider rests on its own.
    let other = world::create_customer(&reseller, "Fourth Coffee", "FR", Some(PROVIDER)).await.unwrap();
    attest(&provider, &other).await;
    let unconcerned = buy(&provider, &other, None).await;

    let revision = withdraw(&provider, &attestation).await;
    let all = applied(&operator, revision).await;
    let report = all.report.clone().unwrap();
    assert_eq!((report.revision, &report.customer_id), (revision, &customer));
    assert_eq!((report.kind(), &report.acceptance_id), (AcceptanceKind::Attestation, &attestation));
    assert_eq!(report.partner_id, PROVIDER.to_string());
    assert_eq!(report.uncovered_partner_ids, [PROVIDER.to_string()]);
    let three = outcomes(&[(&two[0], Cancelled), (&two[1], Cancelled), (&paused, Cancelled)]);
    assert_eq!(told(&all), ((3, 0), three.clone()));
    assert_eq!(told(&report_of(&provider, revision).await.unwrap()), ((3, 0), three));
    // The reseller sees what it is on record for, and not who else was concerned.
    let seen = report_of(&reseller, revision).await.unwrap();
    assert_eq!(told(&seen), ((2, 0), outcomes(&[(&two[0], Cancelled), (&two[1], Cancelled)])));
    assert_eq!(seen.report.unwrap().uncovered_partner_ids, <[String; 0]>::default());
    let unseen = report_of(&direct, revision).await.unwrap_err();
    assert_eq!((unseen.code(), reason_of(&unseen).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));

    for bought in two.iter().chain([&paused]) {
        assert_cancelled(&operator, bought, revision).await;
    }
    assert_eq!(read(&operator, &unconcerned).await, unconcerned);
    assert_eq!(read(&operator, &foreign).await, foreign);

    // Nothing more is sold, and a later acceptance does not bring anything back.
    let refused = world::order(&provider, &customer, None, 5).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused).as_str()),
        (Code::FailedPrecondition, "AGREEMENT_REQUIRED")
    );
    assert_eq!(metadata_of(&refused)["reasons"], "WITHDRAWN");
    attest(&provider, &customer).await;
    buy(&reseller, &customer, Some(PROVIDER)).await;
    assert_cancelled(&operator, &paused, revision).await;
}

/// A customer of two payers that has signed: the direct-bill partner's, which the provider invited.
async fn customer_of_two(cluster: &Cluster) -> (As, As, As, String) {
    let direct = cluster.as_caller(world::sales(DIRECT));
    let provider = cluster.as_caller(world::sales(PROVIDER));
    let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = cluster.as_caller(world::admin(customer.parse().unwrap()));
    let invitation = world::invite(&provider, None, None).await.unwrap();
    admin.signatures().accept_invitation(world::acceptance(&invitation, None)).await.unwrap();
    (direct, provider, admin, customer)
}

pub(crate) async fn withdraw_signature(admin: &As, customer: &str) -> i64 {
    let status = GetDirectSignStatusRequest { customer_id: customer.into() };
    let status = admin.signatures().get_direct_sign_status(status).await.unwrap().into_inner();
    let request = WithdrawSignatureRequest {
        request_id: world::request_id(),
        signature_id: status.signature.unwrap().signature_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    admin.signatures().withdraw_signature(request).await.unwrap().into_inner().revision
}

#[apply(each_backend)]
async fn a_withdrawn_signature_leaves_those_who_attested_alone(#[case] backend: Backend) {
    tests::needs!(backend);
    use WithdrawalOutcome::{Cancelled, StillCovered};
    let cluster = cluster_on(backend).await;
    let (direct, provider, admin, customer) = customer_of_two(&cluster).await;
    attest(&direct, &customer).await;
    let [covered, uncovered] = [buy(&direct, &customer, None).await, buy(&provider, &customer, None).await];
    let revision = withdraw_signature(&admin, &customer).await;

    let operator = cluster.as_caller(world::operator());
    let all = applied(&operator, revision).await;
    let both = outcomes(&[(&covered, StillCovered), (&uncovered, Cancelled)]);
    assert_eq!(told(&all), ((1, 1), both));
    let report = all.report.unwrap();
    assert_eq!((report.kind(), report.partner_id.as_str()), (AcceptanceKind::DirectSignature, ""));
    assert_eq!(report.uncovered_partner_ids, [PROVIDER.to_string()]);
    let seen = report_of(&direct, revision).await.unwrap();
    assert_eq!(told(&seen), ((0, 1), outcomes(&[(&covered, StillCovered)])));
    assert_eq!(seen.report.unwrap().uncovered_partner_ids, <[String; 0]>::default());
    let seen = report_of(&provider, revision).await.unwrap();
    assert_eq!(told(&seen), ((1, 0), outcomes(&[(&uncovered, Cancelled)])));
    assert_eq!(seen.report.unwrap().uncovered_partner_ids, [PROVIDER.to_string()]);

    assert_eq!(read(&operator, &covered).await, covered);
    assert_cancelled(&operator, &uncovered, revision).await;
    world::order(&direct, &customer, None, 1).await.unwrap();
    world::order(&provider, &customer, None, 1).await.unwrap_err();
}

/// What takes order-svc back to before a withdrawal, the only one since, except what was cancelled.
fn forget_from(revision: i64) -> String {
    format!(
        "UPDATE follower SET revision = {}; DELETE FROM withdrawal_effect; \
         DELETE FROM withdrawal_partner; DELETE FROM withdrawal; DELETE FROM fence",
        revision - 1
    )
}

#[apply(each_backend)]
async fn what_rests_on_a_newer_answer_stays_however_late_a_withdrawal_is_applied(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    use WithdrawalOutcome::NewerAnswer;
    let mut cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attestation = attest(&direct, &customer).await;
    let before = buy(&direct, &customer, None).await;
    let revision = withdraw(&direct, &attestation).await;
    applied(&direct, revision).await;
    attest(&direct, &customer).await;
    let after = buy(&direct, &customer, None).await;

    // As if the withdrawal had not been applied yet: it is applied once more, to what there is now.
    cluster.stop_orders();
    cluster.orders_sql(&format!("BEGIN; {}; COMMIT", forget_from(revision))).unwrap();
    cluster.restart_orders().await.unwrap();
    let again = applied(&direct, revision).await;
    assert_eq!(told(&again), ((0, 1), outcomes(&[(&after, NewerAnswer)])));
    assert_eq!(read(&direct, &after).await, after);
    assert_cancelled(&direct, &before, revision).await;
    world::order(&direct, &customer, None, 1).await.unwrap();
}

#[apply(each_backend)]
async fn a_database_that_is_restored_under_order_svc_is_told_again_what_it_forgot(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    for (name, is_quiet) in [("Contoso", false), ("Fourth Coffee", true)] {
        let customer = world::create_customer(&direct, name, "FR", None).await.unwrap();
        let attestation = attest(&direct, &customer).await;
        let bought = buy(&direct, &customer, None).await;
        let revision = withdraw(&direct, &attestation).await;
        applied(&direct, revision).await;

        let restore = format!(
            "BEGIN; {}; DELETE FROM subscription_change WHERE event_revision = {revision}; \
             UPDATE subscription SET state = 'ACTIVE', due_at = term_end, version = version - 1 \
             WHERE id = '{}'; COMMIT",
            forget_from(revision),
            bought.subscription_id
        );
        cluster.orders_sql(&restore).unwrap();
        // The next event must not pass over what came before it, and none has to come.
        if !is_quiet {
            world::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
        }
        let again = applied(&direct, revision).await;
        assert_eq!(told(&again), ((1, 0), outcomes(&[(&bought, WithdrawalOutcome::Cancelled)])));
        assert_cancelled(&direct, &bought, revision).await;
    }
}

#[apply(each_backend)]
async fn a_database_that_is_ahead_of_the_history_is_told_nothing_and_order_svc_goes_on(
    #[case] backend: Backend,
) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let setup = Setup { backend, agreements_at, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let covered = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let uncovered = world::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    attest(&direct, &covered).await;
    let attestation = attest(&direct, &uncovered).await;
    let bought = buy(&direct, &uncovered, None).await;

    // As after a restore of agreement-svc's database.
    cluster.stop_orders();
    cluster.orders_sql("UPDATE follower SET revision = revision + 1000000").unwrap();
    cluster.restart_orders().await.unwrap();
    let revision = withdraw(&direct, &attestation).await;
    // A client that has asked twice since was refused once.
    let mut histories = relay.histories();
    let twice = *histories.borrow() + 2;
    let asking = histories.wait_for(|histories| *histories >= twice);
    tokio::time::timeout(LONG, asking).await.unwrap().unwrap();
    assert_eq!(metric(&cluster, "order_svc_history_behind_seconds").await, f64::INFINITY);
    assert_eq!(read(&direct, &bought).await, bought);
    buy(&direct, &covered, None).await;
    let refused = world::order(&direct, &uncovered, None, 5).await.unwrap_err();
    assert_eq!(reason_of(&refused), "AGREEMENT_REQUIRED");

    // Once the row is right it is found so without a restart.
    cluster.orders_sql("UPDATE follower SET revision = revision - 1000000").unwrap();
    assert_eq!(told(&applied(&direct, revision).await).0, (1, 0));
    assert_cancelled(&direct, &bought, revision).await;
    let catching_up =
        async { while !metric(&cluster, "order_svc_history_behind_seconds").await.is_finite() {} };
    tokio::time::timeout(LONG, catching_up).await.unwrap();
}

async fn end(caller: &As, customer: &str, reseller: Option<Uuid>) -> i64 {
    let request = EndRelationshipRequest {
        request_id: world::request_id(),
        customer_id: customer.into(),
        reseller_id: reseller.map(|id| id.to_string()).unwrap_or_default(),
        ..EndRelationshipRequest::default()
    };
    caller.customers().end_relationship(request).await.unwrap().into_inner().revision
}

#[apply(each_backend)]
async fn what_those_who_part_leave_behind_does_not_renew_and_is_not_cancelled(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let (direct, provider, _, customer) = customer_of_two(&cluster).await;
    let [left, kept] = [buy(&direct, &customer, None).await, buy(&provider, &customer, None).await];
    assert!(left.auto_renew && kept.auto_renew);
    let revision = end(&direct, &customer, None).await;
    followed(&direct, revision).await;

    let operator = cluster.as_caller(world::operator());
    let now = read(&operator, &left).await;
    assert_eq!((now.state(), now.auto_renew), (SubscriptionState::Active, false));
    let change = changes_of(&operator, &left).await.pop().unwrap();
    assert_eq!(change.kind(), SubscriptionChangeKind::AutoRenewOff);
    assert_eq!(change.reason(), SubscriptionChangeReason::RelationshipEnded);
    assert_eq!((change.event_revision, change.actor.as_str(), change.gate), (revision, "", None));
    assert_eq!(read(&operator, &kept).await, kept);
    // It is no withdrawal, and there is no report of it.
    let none = report_of(&operator, revision).await.unwrap_err();
    assert_eq!((none.code(), reason_of(&none).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));
}

#[apply(each_backend)]
async fn what_is_bought_after_a_parting_stays_however_late_it_is_applied(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    use WithdrawalOutcome::{Cancelled, StillCovered};
    let mut cluster = cluster_on(backend).await;
    let (direct, provider, admin, customer) = customer_of_two(&cluster).await;
    let [left, kept] = [buy(&direct, &customer, None).await, buy(&provider, &customer, None).await];
    let revision = end(&direct, &customer, None).await;
    followed(&direct, revision).await;
    let operator = cluster.as_caller(world::operator());

    // Together again: what is bought then is not concerned by the parting.
    let invitation = world::invite(&direct, None, None).await.unwrap();
    admin.signatures().accept_invitation(world::acceptance(&invitation, None)).await.unwrap();
    let anew = buy(&direct, &customer, None).await;
    cluster.stop_orders();
    let back = format!("UPDATE follower SET revision = {}; DELETE FROM fence", revision - 1);
    cluster.orders_sql(&back).unwrap();
    cluster.restart_orders().await.unwrap();
    followed(&operator, revision).await;
    assert_eq!(read(&operator, &anew).await, anew);
    // Parted again, what runs out is left alone by a withdrawal: its payer is no partner any more.
    end(&direct, &customer, None).await;
    let last = withdraw_signature(&admin, &customer).await;
    let report = applied(&operator, last).await;
    let all = [(&left, StillCovered), (&kept, Cancelled), (&anew, StillCovered)];
    assert_eq!(told(&report), ((1, 2), outcomes(&all)));
}

#[apply(each_backend)]
async fn a_provider_that_parts_with_one_reseller_goes_on_with_the_rest(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let [provider, reseller] = [PROVIDER, RESELLER].map(|partner| cluster.as_caller(world::sales(partner)));
    let customer = world::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let admin = cluster.as_caller(world::admin(customer.parse().unwrap()));
    let invitation = world::invite(&provider, None, None).await.unwrap();
    admin.signatures().accept_invitation(world::acceptance(&invitation, None)).await.unwrap();
    let through = buy(&reseller, &customer, Some(PROVIDER)).await;
    let own = buy(&provider, &customer, None).await;
    let revision = end(&provider, &customer, Some(RESELLER)).await;
    followed(&provider, revision).await;
    assert!(!read(&provider, &through).await.auto_renew);
    assert_eq!(read(&provider, &own).await, own);
}

/// I3.
#[apply(each_backend)]
async fn withdrawals_are_applied_once_after_downtime(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut customers = vec![];
    for name in ["First", "Second", "Third"] {
        let customer = world::create_customer(&direct, name, "FR", None).await.unwrap();
        let attestation = attest(&direct, &customer).await;
        let bought = buy(&direct, &customer, None).await;
        customers.push((customer, attestation, bought));
    }
    // While order-svc is away.
    cluster.stop_orders();
    let first = withdraw(&direct, &customers[0].1).await;
    cluster.restart_orders().await.unwrap();
    assert_eq!(told(&applied(&direct, first).await).0, (1, 0));

    // After agreement-svc was away; what is not there yet is told to be so.
    cluster.stop_agreements();
    let ahead = report_of(&direct, first + 1).await.unwrap();
    assert!(!ahead.applied && ahead.applied_up_to == first && ahead.report.is_none());
    cluster.restart_agreements().await.unwrap();
    let second = withdraw(&direct, &customers[1].1).await;
    assert_eq!(told(&applied(&direct, second).await).0, (1, 0));

    // Both away, one after the other.
    cluster.stop_orders();
    let third = withdraw(&direct, &customers[2].1).await;
    cluster.stop_agreements();
    cluster.restart_orders().await.unwrap();
    assert!(!report_of(&direct, third).await.unwrap().applied);
    cluster.restart_agreements().await.unwrap();
    assert_eq!(told(&applied(&direct, third).await).0, (1, 0));

    for ((_, _, bought), revision) in customers.iter().zip([first, second, third]) {
        assert_cancelled(&direct, bought, revision).await;
        assert_eq!(changes_of(&direct, bought).await.len(), 2);
    }
}

#[apply(each_backend)]
async fn replicas_apply_each_withdrawal_once(#[case] backend: Backend) {
    tests::needs_own!("replicas that it starts");
    tests::needs!(backend);
    const CUSTOMERS: usize = 40;
    let mut cluster = cluster_on(backend).await;
    cluster.start_orders_replica().await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let customers = (0..CUSTOMERS).map(async |n| {
        let customer = world::create_customer(&direct, &format!("Customer {n}"), "FR", None).await.unwrap();
        let attestation = attest(&direct, &customer).await;
        (attestation, buy(&direct, &customer, None).await)
    });
    let customers = join_all(customers).await;
    let revisions = join_all(customers.iter().map(|(attestation, _)| withdraw(&direct, attestation))).await;
    for ((_, bought), revision) in customers.iter().zip(&revisions) {
        assert_eq!(told(&applied(&direct, *revision).await).0, (1, 0));
        assert_cancelled(&direct, bought, *revision).await;
        assert_eq!(changes_of(&direct, bought).await.len(), 2);
    }
}

#[apply(each_backend)]
async fn reports_and_their_effects_are_listed_page_by_page(#[case] backend: Backend) {
    tests::needs!(backend);
    const SUBSCRIPTIONS: usize = 7;
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let provider = cluster.as_caller(world::sales(PROVIDER));
    let mut reports = vec![];
    for (name, times) in [("Contoso", 3), ("Fourth Coffee", 1)] {
        let customer = world::create_customer(&direct, name, "FR", None).await.unwrap();
        for _ in 0..times {
            let attestation = attest(&direct, &customer).await;
            let mut order = world::new_order(&customer, None, OFFICE, 1);
            order.lines = vec![order.lines[0].clone(); SUBSCRIPTIONS];
            direct.orders().create_order(order).await.unwrap();
            let revision = withdraw(&direct, &attestation).await;
            let report = applied(&direct, revision).await;
            assert_eq!(report.effects.len(), SUBSCRIPTIONS);
            reports.push((customer.clone(), report));
        }
    }

    let list = async |caller: &As, customer_id: &str| {
        let mut request = ListWithdrawalReportsRequest {
            customer_id: customer_id.into(),
            page_size: 2,
            ..Default::default()
        };
        let mut found: Vec<WithdrawalReport> = vec![];
        loop {
            let page = caller.withdrawals().list_withdrawal_reports(request.clone()).await.unwrap();
            let page = page.into_inner();
            found.extend(page.reports);
            if page.next_page_token.is_empty() {
                return found;
            }
            request.page_token = page.next_page_token;
        }
    };
    let all: Vec<_> = reports.iter().map(|(_, report)| report.report.clone().unwrap()).collect();
    assert_eq!(list(&direct, "").await, all);
    // On a stack the operator sees the reports of others, too.
    let mut seen = list(&cluster.as_caller(world::operator()), "").await;
    seen.retain(|report| reports.iter().any(|(customer, _)| *customer == report.customer_id));
    assert_eq!(seen, all);
    assert_eq!(list(&direct, &reports[3].0).await, all[3..]);
    assert_eq!(list(&provider, "").await, []);

    let (_, report) = &reports[1];
    let mut request =
        GetWithdrawalReportRequest { revision: all[1].revision, page_size: 3, ..Default::default() };
    let mut effects = vec![];
    loop {
        let page = direct.withdrawals().get_withdrawal_report(request.clone()).await.unwrap().into_inner();
        assert_eq!(page.report, report.report);
        effects.extend(page.effects);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(effects, report.effects);
    // A token is good for its own report only.
    request.revision = all[0].revision;
    request.page_token = direct
        .withdrawals()
        .get_withdrawal_report(GetWithdrawalReportRequest {
            revision: all[2].revision,
            page_size: 1,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner()
        .next_page_token;
    let refused = direct.withdrawals().get_withdrawal_report(request).await.unwrap_err();
    assert_eq!(tests::clients::bad_fields_of(&refused), ["page_token"]);
}

/// A metric of order-svc.
async fn metric(cluster: &Cluster, name: &str) -> f64 {
    let text = cluster.orders_metrics().await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn how_far_behind_the_history_order_svc_is_can_be_measured() {
    tests::needs_own!("a clock that it sets");
    let clock = Clock::manual(now());
    let setup = Setup { clock: clock.clone(), ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let revision = world::new_customer("Contoso", "FR", None);
    let revision = direct.customers().create_customer(revision).await.unwrap().into_inner().revision;
    followed(&direct, revision).await;
    let (behind, applied) = ("order_svc_history_behind_seconds", "order_svc_history_revision");
    let catching_up = async {
        while (metric(&cluster, behind).await, metric(&cluster, applied).await) != (0.0, revision as f64) {}
    };
    tokio::time::timeout(LONG, catching_up).await.unwrap();

    cluster.stop_agreements();
    clock.set(clock.now() + TimeDelta::hours(2));
    assert_eq!(metric(&cluster, behind).await, 7200.0);
    cluster.restart_agreements().await.unwrap();
    let catching_up = async { while metric(&cluster, behind).await > 0.0 {} };
    tokio::time::timeout(LONG, catching_up).await.unwrap();

    // Who has not been told anything yet is behind without limit.
    cluster.stop_agreements();
    cluster.restart_orders().await.unwrap();
    assert_eq!(metric(&cluster, behind).await, f64::INFINITY);
}
