//! A withdrawal that ends many subscriptions, in transactions of a bounded size; and the bound on how many there can be.

use chassis::query;
use diesel::sql_types::{BigInt, Nullable};
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use order_svc::config::SkipEvent;
use proto::order::{CancelSubscriptionRequest, CreateOrderRequest};
use tests::assert::{eventually, refused};
use tests::databases::{connect, copy_subscription};

use super::*;

/// More than three transactions change.
const SUBSCRIPTIONS: i64 = 3_210;

/// Subscriptions that one transaction may change.
const ROWS_MAX: i64 = 1000;

#[derive(QueryableByName)]
struct Most {
    #[diesel(sql_type = Nullable<BigInt>)]
    most: Option<i64>,
}

/// The most subscriptions that an event changed at the same time, which is that of one transaction.
fn largest(cluster: &Cluster, revision: i64) -> i64 {
    let sql = format!(
        "SELECT MAX(count) AS most FROM (SELECT COUNT(*) AS count FROM subscription_change \
         WHERE event_revision = {revision} GROUP BY changed_at) AS changed"
    );
    let most: Most = query!(&mut connect(cluster.orders_database()).unwrap(), c => {
        sql_query(sql).get_result(c).unwrap()
    });
    most.most.unwrap_or(0)
}

/// Copies a subscription, as that many orders would have made it.
fn copy(cluster: &Cluster, bought: &Subscription, count: i64, variant: char) {
    copy_subscription(cluster.orders_database(), &bought.subscription_id, count, variant).unwrap();
}

#[apply(each_backend)]
async fn a_large_withdrawal_is_applied_in_bounded_transactions(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for name in ["Large", "Small", "Parting"] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        let attestation = attest_now(&direct, &customer).await.unwrap();
        let bought = buy(&direct, &customer, None).await.unwrap();
        customers.push((customer, attestation, bought));
    }
    let [(_, large, bought), (_, small, other), (parting, _, left)] = &customers[..] else { unreachable!() };
    copy(&cluster, bought, SUBSCRIPTIONS - 1, 'a');
    let of_large = withdraw(&direct, large).await.unwrap();
    let of_small = withdraw(&direct, small).await.unwrap();

    let counts = (u32::try_from(SUBSCRIPTIONS).unwrap(), 0);
    let report = applied(&direct, of_large).await;
    assert_eq!((counts_and_outcomes(&report).0, report.effects.len()), (counts, 50));
    assert_cancelled(&direct, bought, of_large).await;
    assert_eq!(largest(&cluster, of_large), ROWS_MAX);
    assert_eq!(counts_and_outcomes(&applied(&direct, of_small).await).0, (1, 0));
    assert_cancelled(&direct, other, of_small).await;

    // The end of a relationship, too.
    copy(&cluster, left, SUBSCRIPTIONS - 1, 'b');
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: parting.clone(),
        ..EndRelationshipRequest::default()
    };
    let ended = direct.customers().end_relationship(end).await.unwrap().into_inner().revision;
    followed(&direct, ended).await;
    assert_eq!(largest(&cluster, ended), ROWS_MAX);
}

/// One event that cannot be applied is passed over, and what it did until then stays and can be read.
#[apply(each_backend)]
async fn an_operator_passes_over_an_event(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for name in ["Damaged", "Other"] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        let attestation = attest_now(&direct, &customer).await.unwrap();
        let bought = buy(&direct, &customer, None).await.unwrap();
        actions::until_bought(&cluster, &customer).await.unwrap();
        customers.push((customer, attestation, bought));
    }
    let [(customer, damaged, bought), (_, attestation, other)] = &customers[..] else { unreachable!() };
    copy(&cluster, bought, ROWS_MAX + 10, 'a');
    let last = format!("id LIKE '%{}'", 100_000_000_000 + ROWS_MAX + 10);
    cluster
        .orders_sql(&format!("UPDATE subscription SET payer_id = payer_id, term = '' WHERE {last}"))
        .unwrap();
    let revision = withdraw(&direct, damaged).await.unwrap();
    let of_other = withdraw(&direct, attestation).await.unwrap();
    eventually("the first step is taken", async || (largest(&cluster, revision) == ROWS_MAX).then_some(()))
        .await;
    let report = |revision| GetWithdrawalReportRequest { revision, ..Default::default() };
    let begun = direct.withdrawals().get_withdrawal_report(report(revision)).await.unwrap().into_inner();
    assert!(!begun.applied);

    let skip = |revision| {
        let customer_id = customer.parse().unwrap();
        let skip = SkipEvent { database: cluster.orders_database().clone(), revision, customer_id };
        async move { order_svc::skip_event(&skip).await }
    };
    let refused = skip(of_other).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("the history was applied up to event {}", revision - 1)), "{refused}");
    skip(revision).await.unwrap();
    // Later events are applied, the report is complete, and nothing is stored on an older answer.
    assert_eq!(counts_and_outcomes(&applied(&direct, of_other).await).0, (1, 0));
    assert_cancelled(&direct, other, of_other).await;
    let cancelled = u32::try_from(ROWS_MAX).unwrap();
    assert_eq!(counts_and_outcomes(&applied(&direct, revision).await).0, (cancelled, 0));
    assert_eq!(read(&direct, &bought.subscription_id).await.unwrap().state(), SubscriptionState::Active);
}

/// SUB-7.
#[apply(each_backend)]
async fn a_payer_has_a_bounded_number_of_subscriptions_with_a_customer(#[case] backend: Backend) {
    tests::needs_own!("settings of its own");
    tests::needs!(backend);
    let cluster = Cluster::start(Setup { backend, subscriptions_max: 3, ..Setup::default() }).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let (direct, provider, _, customer) = customer_of_two(&cluster).await;
    let order = |lines: usize, validate_only: bool| {
        let mut order = fixtures::new_order(&customer, None, OFFICE, 1);
        order.lines = vec![order.lines[0].clone(); lines];
        CreateOrderRequest { validate_only, ..order }
    };
    let limit = (Code::FailedPrecondition, "SUBSCRIPTION_LIMIT".to_owned());
    assert_eq!(refused(actions::place(&direct, order(4, false)).await), limit);
    let first = actions::place(&direct, order(2, false)).await.unwrap().subscriptions.remove(0);
    for validate_only in [true, false] {
        let refused = actions::place(&direct, order(2, validate_only)).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused)), limit);
        assert_eq!(metadata_of(&refused)["limit"], "3");
    }
    actions::place(&direct, order(1, true)).await.unwrap();
    actions::place(&direct, order(1, false)).await.unwrap();
    assert_eq!(refused(actions::place(&direct, order(1, false)).await), limit);
    // Another payer has its own, and what has ended counts no more.
    actions::place(&provider, order(3, false)).await.unwrap();
    let cancel = CancelSubscriptionRequest {
        request_id: fixtures::request_id(),
        subscription_id: first.subscription_id,
        etag: first.etag,
        validate_only: false,
    };
    direct.subscriptions().cancel_subscription(cancel).await.unwrap();
    actions::place(&direct, order(1, false)).await.unwrap();
}
