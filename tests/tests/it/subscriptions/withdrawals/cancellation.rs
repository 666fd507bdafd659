//! What a withdrawal cancels, and what stays (WD-2).

use super::*;

/// ROLE-7. Subscriptions that rest on a withdrawn attestation are cancelled, for the payer and the reseller.
#[apply(each_backend)]
async fn a_withdrawn_attestation_cancels_what_rests_on_it(#[case] backend: Backend) {
    tests::needs!(backend);
    use WithdrawalOutcome::Cancelled;
    let cluster = cluster_on(backend).await;
    let [direct, provider, reseller] =
        [DIRECT, PROVIDER, RESELLER].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let operator = cluster.as_caller(fixtures::operator());
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let attestation = attest_now(&provider, &customer).await.unwrap();
    let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 2, friendly_name: String::new() };
    let mut order = fixtures::new_order(&customer, Some(PROVIDER), OFFICE, 7);
    order.lines.push(line);
    let two = reseller.orders().create_order(order).await.unwrap().into_inner().subscriptions;
    let paused = buy(&provider, &customer, None).await.unwrap();
    let assign = AssignResellerRequest {
        request_id: fixtures::request_id(),
        subscription_id: paused.subscription_id.clone(),
        reseller_id: String::new(),
        etag: paused.etag.clone(),
        validate_only: false,
    };
    let paused = provider.subscriptions().assign_reseller(assign).await.unwrap().into_inner();
    let paused = paused.subscription.unwrap();
    let suspend = SuspendSubscriptionRequest {
        request_id: fixtures::request_id(),
        subscription_id: paused.subscription_id.clone(),
        etag: paused.etag.clone(),
        validate_only: false,
    };
    provider.subscriptions().suspend_subscription(suspend).await.unwrap();
    // Another payer of the customer's was never covered by it, and learns nothing of it.
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let invitation = actions::invite(&direct, None, None).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invitation, None)).await.unwrap();
    attest_now(&direct, &customer).await.unwrap();
    let foreign = buy(&direct, &customer, None).await.unwrap();
    // Another customer of the same provider rests on its own.
    let other = actions::create_customer(&reseller, "Fourth Coffee", "FR", Some(PROVIDER)).await.unwrap();
    attest_now(&provider, &other).await.unwrap();
    let unconcerned = buy(&provider, &other, None).await.unwrap();

    let revision = withdraw(&provider, &attestation).await.unwrap();
    let all = applied(&operator, revision).await;
    let report = all.report.clone().unwrap();
    assert_eq!((report.revision, &report.customer_id), (revision, &customer));
    assert_eq!((report.kind(), &report.acceptance_id), (AcceptanceKind::Attestation, &attestation));
    assert_eq!(report.partner_id, PROVIDER.to_string());
    assert_eq!(report.uncovered_partner_ids, [PROVIDER.to_string()]);
    let three = outcomes(&[(&two[0], Cancelled), (&two[1], Cancelled), (&paused, Cancelled)]);
    assert_eq!(counts_and_outcomes(&all), ((3, 0), three.clone()));
    assert_eq!(counts_and_outcomes(&report_of(&provider, revision).await.unwrap()), ((3, 0), three));
    // The reseller sees what it is on record for, and not who else was concerned.
    let seen = report_of(&reseller, revision).await.unwrap();
    assert_eq!(counts_and_outcomes(&seen), ((2, 0), outcomes(&[(&two[0], Cancelled), (&two[1], Cancelled)])));
    assert_eq!(seen.report.unwrap().uncovered_partner_ids, <[String; 0]>::default());
    let unseen = report_of(&direct, revision).await.unwrap_err();
    assert_eq!((unseen.code(), reason_of(&unseen).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));

    for bought in two.iter().chain([&paused]) {
        assert_cancelled(&operator, bought, revision).await;
    }
    assert_eq!(read(&operator, &unconcerned.subscription_id).await.unwrap(), unconcerned);
    assert_eq!(read(&operator, &foreign.subscription_id).await.unwrap(), foreign);

    // Nothing more is sold, and a later acceptance does not bring anything back.
    let refused = actions::order(&provider, &customer, None, 5).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason_of(&refused).as_str()),
        (Code::FailedPrecondition, "AGREEMENT_REQUIRED")
    );
    assert_eq!(metadata_of(&refused)["reasons"], "WITHDRAWN");
    attest_now(&provider, &customer).await.unwrap();
    buy(&reseller, &customer, Some(PROVIDER)).await.unwrap();
    assert_cancelled(&operator, &paused, revision).await;
}

#[apply(each_backend)]
async fn a_withdrawn_signature_leaves_those_who_attested_alone(#[case] backend: Backend) {
    tests::needs!(backend);
    use WithdrawalOutcome::Cancelled;
    let cluster = cluster_on(backend).await;
    let (direct, provider, admin, customer) = customer_of_two(&cluster).await;
    attest_now(&direct, &customer).await.unwrap();
    let [covered, uncovered] =
        [buy(&direct, &customer, None).await.unwrap(), buy(&provider, &customer, None).await.unwrap()];
    let revision = withdraw_signature(&admin, &customer).await.unwrap();

    let operator = cluster.as_caller(fixtures::operator());
    let all = applied(&operator, revision).await;
    // What stays is counted.
    assert_eq!(counts_and_outcomes(&all), ((1, 1), outcomes(&[(&uncovered, Cancelled)])));
    let report = all.report.unwrap();
    assert_eq!((report.kind(), report.partner_id.as_str()), (AcceptanceKind::DirectSignature, ""));
    assert_eq!(report.uncovered_partner_ids, [PROVIDER.to_string()]);
    let seen = report_of(&direct, revision).await.unwrap();
    assert_eq!(counts_and_outcomes(&seen), ((0, 1), vec![]));
    assert_eq!(seen.report.unwrap().uncovered_partner_ids, <[String; 0]>::default());
    let seen = report_of(&provider, revision).await.unwrap();
    assert_eq!(counts_and_outcomes(&seen), ((1, 0), outcomes(&[(&uncovered, Cancelled)])));
    assert_eq!(seen.report.unwrap().uncovered_partner_ids, [PROVIDER.to_string()]);

    assert_eq!(read(&operator, &covered.subscription_id).await.unwrap(), covered);
    assert_cancelled(&operator, &uncovered, revision).await;
    actions::order(&direct, &customer, None, 1).await.unwrap();
    actions::order(&provider, &customer, None, 1).await.unwrap_err();
}

/// What takes order-svc back to before a withdrawal, the only one since, except what was cancelled.
fn forget_from(revision: i64) -> String {
    format!(
        "UPDATE follower SET revision = {}; DELETE FROM withdrawal_effect; \
         DELETE FROM withdrawal_partner; DELETE FROM withdrawal; DELETE FROM fence",
        revision - 1
    )
}

/// A subscription that rests on a newer answer stays, however late a withdrawal is applied.
#[apply(each_backend)]
async fn a_late_withdrawal_spares_what_rests_on_a_newer_answer(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attestation = attest_now(&direct, &customer).await.unwrap();
    let before = buy(&direct, &customer, None).await.unwrap();
    let revision = withdraw(&direct, &attestation).await.unwrap();
    applied(&direct, revision).await;
    attest_now(&direct, &customer).await.unwrap();
    let after = buy(&direct, &customer, None).await.unwrap();

    // As if the withdrawal had not been applied yet: it is applied once more, to what there is now.
    cluster.stop_orders();
    cluster.orders_sql(&format!("BEGIN; {}; COMMIT", forget_from(revision))).unwrap();
    cluster.restart_orders().await.unwrap();
    let again = applied(&direct, revision).await;
    assert_eq!((counts_and_outcomes(&again), again.report.unwrap().newer_answer), (((0, 1), vec![]), 1));
    assert_eq!(read(&direct, &after.subscription_id).await.unwrap(), after);
    assert_cancelled(&direct, &before, revision).await;
    actions::order(&direct, &customer, None, 1).await.unwrap();
}

/// An order-svc whose database is restored receives again the events that the database lost.
#[apply(each_backend)]
async fn a_restored_order_svc_applies_lost_withdrawals_again(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    for (name, is_quiet) in [("Contoso", false), ("Fourth Coffee", true)] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        let attestation = attest_now(&direct, &customer).await.unwrap();
        let bought = buy(&direct, &customer, None).await.unwrap();
        let revision = withdraw(&direct, &attestation).await.unwrap();
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
            actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
        }
        let again = applied(&direct, revision).await;
        assert_eq!(
            counts_and_outcomes(&again),
            ((1, 0), outcomes(&[(&bought, WithdrawalOutcome::Cancelled)]))
        );
        assert_cancelled(&direct, &bought, revision).await;
    }
}

/// WD-3a. An order-svc whose database is ahead of the history receives no event and sells nothing, and goes on by itself
/// once the history is the one that it knows.
#[apply(each_backend)]
async fn order_svc_ahead_of_the_history_sells_nothing(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let setup = Setup { backend, agreements_at, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let covered = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let uncovered = actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    attest_now(&direct, &covered).await.unwrap();
    let attestation = attest_now(&direct, &uncovered).await.unwrap();
    let bought = buy(&direct, &uncovered, None).await.unwrap();

    // As after a restore of agreement-svc's database.
    cluster.stop_orders();
    cluster.orders_sql("UPDATE follower SET revision = revision + 1000000").unwrap();
    cluster.restart_orders().await.unwrap();
    let revision = withdraw(&direct, &attestation).await.unwrap();
    // A client that has asked twice since was refused once.
    let mut histories = relay.histories();
    let twice = *histories.borrow() + 2;
    let asking = histories.wait_for(|histories| *histories >= twice);
    tokio::time::timeout(LONG, asking).await.unwrap().unwrap();
    assert_eq!(metric(&cluster, "order_svc_history_behind_seconds").await, f64::INFINITY);
    assert_eq!(read(&direct, &bought.subscription_id).await.unwrap(), bought);
    for customer in [&covered, &uncovered] {
        let refused = actions::order(&direct, customer, None, 5).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::Unavailable, "GATE_UNAVAILABLE"));
    }

    // Once the row is right it is found so without a restart.
    cluster.orders_sql("UPDATE follower SET revision = revision - 1000000").unwrap();
    assert_eq!(counts_and_outcomes(&applied(&direct, revision).await).0, (1, 0));
    assert_cancelled(&direct, &bought, revision).await;
    let catching_up =
        async { while !metric(&cluster, "order_svc_history_behind_seconds").await.is_finite() {} };
    tokio::time::timeout(LONG, catching_up).await.unwrap();
    buy(&direct, &covered, None).await.unwrap();
}
