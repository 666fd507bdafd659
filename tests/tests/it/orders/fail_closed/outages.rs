//! Outages of agreement-svc and of the database, and graceful shutdown.

use super::*;

/// Orders outlive a restart of agreement-svc under their request ids.
#[apply(each_backend)]
async fn orders_outlive_a_restart_of_agreement_svc(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    const CALLERS: usize = 8;
    const ORDERS: usize = 4;
    let mut cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for n in 0..CALLERS {
        let customer = actions::create_customer(&direct, &format!("Contoso {n}"), "FR", None).await.unwrap();
        customers.push(customer);
    }
    // How many orders were placed, and how many calls were refused.
    let (seen, mut watched) = watch::channel((0, 0));
    let (is_away, away) = watch::channel(false);
    let callers = customers.iter().cloned().map(|customer| {
        let (caller, seen, mut away) = (direct.clone(), seen.clone(), away.clone());
        tokio::spawn(async move {
            // The orders of a caller all say the same.
            let agreed_at = Clock::system().now();
            for n in 0..ORDERS {
                // The last one finds no server, the others whatever comes.
                if n + 1 == ORDERS {
                    away.wait_for(|away| *away).await.unwrap();
                }
                let order = CreateOrderRequest {
                    attestation: Some(fixtures::inline_attestation(agreed_at)),
                    ..fixtures::new_order(&customer, None, OFFICE, 5)
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

/// Without agreement-svc, order-svc sells nothing, and clients can read everything.
#[apply(each_backend)]
async fn without_agreement_svc_order_svc_only_reads(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for name in ["Contoso", "Fabrikam"] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        let attested = actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
        let bought = actions::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
        customers.push((customer, attested.attestation.unwrap().attestation_id, bought));
    }
    let [(customer, _, bought), (_, attestation_id, _)] = customers.try_into().unwrap();
    let withdraw = WithdrawAttestationRequest {
        request_id: fixtures::request_id(),
        attestation_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
        ..WithdrawAttestationRequest::default()
    };
    let withdrawn = direct.attestations().withdraw_attestation(withdraw).await.unwrap().into_inner();
    let report = GetWithdrawalReportRequest { revision: withdrawn.revision, ..Default::default() };
    let applying = async {
        let mut client = direct.withdrawals();
        while !client.get_withdrawal_report(report.clone()).await.unwrap().into_inner().applied {}
    };
    tokio::time::timeout(LONG, applying).await.unwrap();
    let change = |quantity| ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: bought.subscription_id.clone(),
        quantity,
        etag: bought.etag.clone(),
        validate_only: false,
        attestation: None,
    };

    cluster.stop_agreements();
    assert_unknown(&actions::order(&direct, &customer, None, 5).await.unwrap_err(), "order");
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
    actions::order(&direct, &customer, None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_in_progress_is_answered_before_the_service_stops() {
    tests::needs_own!("services that it stops");
    let impostor = Impostor::silent();
    let mut cluster = cluster_asking(&impostor, 1000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let caller = direct.clone();
    let waiting =
        tokio::spawn(async move { actions::order(&caller, &fixtures::request_id(), None, 5).await });
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
    tests::needs!(Backend::Postgres);
    let cluster = Cluster::on(Backend::Postgres).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    actions::order(&direct, &customer, None, 5).await.unwrap();
    cluster.agreements_sql(CLOSE_ALL).unwrap();
    cluster.orders_sql(CLOSE_ALL).unwrap();
    // A caller that meets a dead connection receives UNAVAILABLE and can repeat its call. There are no more dead
    // connections than the pools had.
    let mut failures = vec![];
    while let Err(status) = actions::order(&direct, &customer, None, 5).await {
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        failures.push(status.to_string());
        assert!(failures.len() < 50, "{failures:?}");
    }
}
