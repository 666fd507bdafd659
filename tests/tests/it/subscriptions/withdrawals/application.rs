//! Each withdrawal is applied once; reports are listed in pages.

use super::*;

/// I3.
#[apply(each_backend)]
async fn withdrawals_are_applied_once_after_downtime(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for name in ["First", "Second", "Third"] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        let attestation = attest_now(&direct, &customer).await.unwrap();
        let bought = buy(&direct, &customer, None).await.unwrap();
        customers.push((customer, attestation, bought));
    }
    // While order-svc is away.
    cluster.stop_orders();
    let first = withdraw(&direct, &customers[0].1).await.unwrap();
    cluster.restart_orders().await.unwrap();
    assert_eq!(counts_and_outcomes(&applied(&direct, first).await).0, (1, 0));

    // After agreement-svc was away; the answer says that the next withdrawal is not applied yet.
    cluster.stop_agreements();
    let ahead = report_of(&direct, first + 1).await.unwrap();
    assert!(!ahead.applied && ahead.applied_up_to == first && ahead.report.is_none());
    cluster.restart_agreements().await.unwrap();
    let second = withdraw(&direct, &customers[1].1).await.unwrap();
    assert_eq!(counts_and_outcomes(&applied(&direct, second).await).0, (1, 0));

    // Both away, one after the other.
    cluster.stop_orders();
    let third = withdraw(&direct, &customers[2].1).await.unwrap();
    cluster.stop_agreements();
    cluster.restart_orders().await.unwrap();
    assert!(!report_of(&direct, third).await.unwrap().applied);
    cluster.restart_agreements().await.unwrap();
    assert_eq!(counts_and_outcomes(&applied(&direct, third).await).0, (1, 0));

    for ((_, _, bought), revision) in customers.iter().zip([first, second, third]) {
        assert_cancelled(&direct, bought, revision).await;
        assert_eq!(actions::changes_of(&direct, &bought.subscription_id).await.unwrap().len(), 2);
    }
}

#[apply(each_backend)]
async fn replicas_apply_each_withdrawal_once(#[case] backend: Backend) {
    tests::needs_own!("replicas that it starts");
    tests::needs!(backend);
    const CUSTOMERS: usize = 40;
    let mut cluster = cluster_on(backend).await;
    cluster.start_orders_replica().await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customers = (0..CUSTOMERS).map(async |n| {
        let customer = actions::create_customer(&direct, &format!("Customer {n}"), "FR", None).await.unwrap();
        let attestation = attest_now(&direct, &customer).await.unwrap();
        (attestation, buy(&direct, &customer, None).await.unwrap())
    });
    let customers = join_all(customers).await;
    let withdrawals = customers.iter().map(|(attestation, _)| withdraw(&direct, attestation));
    let revisions: Vec<_> = join_all(withdrawals).await.into_iter().map(Result::unwrap).collect();
    for ((_, bought), revision) in customers.iter().zip(&revisions) {
        assert_eq!(counts_and_outcomes(&applied(&direct, *revision).await).0, (1, 0));
        assert_cancelled(&direct, bought, *revision).await;
        assert_eq!(actions::changes_of(&direct, &bought.subscription_id).await.unwrap().len(), 2);
    }
}

#[apply(each_backend)]
async fn reports_and_their_effects_are_listed_page_by_page(#[case] backend: Backend) {
    tests::needs!(backend);
    const SUBSCRIPTIONS: usize = 7;
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let mut reports = vec![];
    for (name, times) in [("Contoso", 3), ("Fourth Coffee", 1)] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        for _ in 0..times {
            let attestation = attest_now(&direct, &customer).await.unwrap();
            let mut order = fixtures::new_order(&customer, None, OFFICE, 1);
            order.lines = vec![order.lines[0].clone(); SUBSCRIPTIONS];
            direct.orders().create_order(order).await.unwrap();
            let revision = withdraw(&direct, &attestation).await.unwrap();
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
    let mut seen = list(&cluster.as_caller(fixtures::operator()), "").await;
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

/// One call is enough to see what a withdrawal did, also one that is yet to come. Its deadline ends the waiting, not the call.
#[apply(each_backend)]
async fn a_report_is_waited_for(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("the next revision of the history");
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attested = attest_now(&direct, &customer).await.unwrap();
    let bought = buy(&direct, &customer, None).await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();
    let waiting_for = async |revision, at_most| {
        let request = GetWithdrawalReportRequest { revision, wait: true, ..Default::default() };
        let mut request = tonic::Request::new(request);
        request.set_timeout(at_most);
        direct.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner()
    };
    let never = waiting_for(i64::MAX, Duration::from_secs(2)).await;
    assert!(!never.applied && never.report.is_none() && never.applied_up_to > 0);

    let next = cluster.head().await.unwrap() + 1;
    let (report, withdrawn) = tokio::join!(waiting_for(next, LONG), withdraw(&direct, &attested));
    assert_eq!(withdrawn.unwrap(), next);
    let cancelled = [(bought.subscription_id, WithdrawalOutcome::Cancelled)];
    let outcomes: Vec<_> =
        report.effects.iter().map(|effect| (effect.subscription_id.clone(), effect.outcome())).collect();
    assert_eq!((report.applied, outcomes), (true, cancelled.to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn how_far_behind_the_history_order_svc_is_can_be_measured() {
    tests::needs_own!("a clock that it sets");
    let clock = Clock::manual(now());
    let setup = Setup { clock: clock.clone(), ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let revision = fixtures::new_customer("Contoso", "FR", None);
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

    // An order-svc that has received no event since it started is behind without limit.
    cluster.stop_agreements();
    cluster.restart_orders().await.unwrap();
    assert_eq!(metric(&cluster, behind).await, f64::INFINITY);
}
