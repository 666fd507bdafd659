//! Renewals on outdated acceptances (SUB-10): seen beforehand in the list, and afterwards in the change.

use tests::fixtures::PROVIDER;

use crate::faults::relay::Relay;

use super::*;

/// The ids of the subscriptions with outdated acceptances, page by page.
async fn outdated(caller: &As, ends_before: Option<Time>) -> Vec<String> {
    let mut request = ListSubscriptionsRequest {
        acceptance_outdated: true,
        ends_before: ends_before.map(timestamp),
        page_size: 1,
        ..ListSubscriptionsRequest::default()
    };
    let mut ids = vec![];
    loop {
        let page = caller.subscriptions().list_subscriptions(request.clone()).await.unwrap().into_inner();
        assert!(page.subscriptions.len() <= 1);
        ids.extend(page.subscriptions.into_iter().map(|subscription| subscription.subscription_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            ids.sort();
            return ids;
        }
    }
}

fn ids(of: &[&Subscription]) -> Vec<String> {
    let mut ids: Vec<_> = of.iter().map(|subscription| subscription.subscription_id.clone()).collect();
    ids.sort();
    ids
}

/// SUB-10.
#[apply(each_backend)]
async fn a_renewal_says_whether_the_acceptance_was_outdated(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let monthly = world.subscribe("MONTH").await;
    let ending = world.subscribe("MONTH").await;
    let ending = world.done(Command::AutoRenew(false), &ending).await;
    let yearly = world.subscribe("YEAR").await;
    world.subscribe("PERPETUAL").await;
    let cancelled = world.subscribe("YEAR").await;
    world.done(Command::Cancel, &cancelled).await;
    assert_eq!(outdated(&world.direct, None).await, ids(&[]));

    world.publish(None).await;
    let soon = Some(time("2026-03-15T12:00:00Z"));
    let customer = world.cluster.as_caller(fixtures::admin(world.customer.parse().unwrap()));
    let operator = world.cluster.as_caller(fixtures::operator());
    for caller in [&world.direct, &operator, &customer] {
        assert_eq!(outdated(caller, None).await, ids(&[&monthly, &ending, &yearly]));
        assert_eq!(outdated(caller, soon).await, ids(&[&monthly, &ending]));
    }
    let other = world.cluster.as_caller(fixtures::sales(PROVIDER));
    assert_eq!(outdated(&other, None).await, ids(&[]));
    assert_eq!(world.refused(Command::Renew, &monthly).await, forbidden("AGREEMENT_REQUIRED"));

    // It renews all the same, and says so.
    world.clock.set(time("2026-02-28T12:00:00Z"));
    let renewed = world.once(&monthly, |s| s.term_number == 2).await;
    let expired = world.once(&ending, |s| s.state() == State::Expired).await;
    let last = async |of: &Subscription| world.changes(of).await.pop().unwrap();
    let change = last(&renewed).await;
    assert_eq!((change.kind(), change.acceptance_outdated), (Kind::Renewed, Some(true)));
    let change = last(&expired).await;
    assert_eq!((change.kind(), change.acceptance_outdated), (Kind::Expired, None));
    assert_eq!(outdated(&world.direct, None).await, ids(&[&monthly, &yearly]));

    actions::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
    assert_eq!(outdated(&world.direct, None).await, ids(&[]));
    let by_hand = world.done(Command::Renew, &renewed).await;
    world.clock.set(time("2026-04-30T12:00:00Z"));
    let renewed = world.once(&by_hand, |s| s.term_number == 4).await;
    let changes = world.changes(&renewed).await;
    let said: Vec<_> = changes.iter().map(|change| (change.number, change.acceptance_outdated)).collect();
    assert_eq!(said, [(1, None), (2, Some(true)), (3, None), (4, Some(false))]);

    // The list is no guess.
    world.cluster.stop_agreements();
    let request =
        ListSubscriptionsRequest { acceptance_outdated: true, ..ListSubscriptionsRequest::default() };
    let refused = world.direct.subscriptions().list_subscriptions(request).await.unwrap_err();
    assert_eq!(refusal(&refused), unavailable());
}

/// A row that cannot be read keeps no other one from its renewal, nor from what is said of it.
#[apply(each_backend)]
async fn a_damaged_row_keeps_no_other_from_renewing(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets, and a database that it writes to");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let damaged = world.subscribe("MONTH").await;
    let sound = world.subscribe("MONTH").await;
    let nonsense = if backend == Backend::Sqlite { "nonsense" } else { "infinity" };
    let id = &damaged.subscription_id;
    let sql = format!("UPDATE subscription SET started_at = '{nonsense}' WHERE id = '{id}'");
    world.cluster.orders_sql(&sql).unwrap();
    world.clock.set(time("2026-02-28T12:00:00Z"));
    let renewed = world.once(&sound, |s| s.term_number == 2).await;
    assert_eq!(world.changes(&renewed).await.pop().unwrap().acceptance_outdated, Some(false));
}

/// Each list asks for many subscriptions, so a tenant has a share of them, and leaves others theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_tenant_has_its_share_of_lists_of_outdated_acceptances() {
    tests::needs_own!("answers that it holds back");
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let mut cluster = Cluster::start(Setup { agreements_at, ..Setup::default() }).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let other = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    actions::order(&direct, &customer, None, 1).await.unwrap();
    let list = async |caller: As| {
        let request = ListSubscriptionsRequest { acceptance_outdated: true, ..Default::default() };
        caller.subscriptions().list_subscriptions(request).await
    };

    let mut held = vec![];
    for _ in 0..2 {
        let (is_answered, let_go) = relay.hold_answer();
        let waiting = tokio::spawn(list(direct.clone()));
        is_answered.await.unwrap();
        held.push((waiting, let_go));
    }
    let refused = list(direct.clone()).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::ResourceExhausted, "TENANT_OVERLOADED".into()));
    list(other).await.unwrap();
    for (waiting, let_go) in held {
        let_go.send(()).unwrap();
        waiting.await.unwrap().unwrap();
    }
    list(direct).await.unwrap();
}

/// The gate is asked about 500 subscriptions for a page, and no more.
#[apply(each_backend)]
async fn a_page_of_outdated_acceptances_may_be_empty_and_have_a_next_one(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    for _ in 0..5 {
        world.subscribe_to("YEAR", 100).await;
    }
    // Ids of one moment are in any order.
    world.clock.set(time("2026-01-31T12:00:01Z"));
    let last = world.subscribe("YEAR").await;
    let all = |page_token: String| ListSubscriptionsRequest {
        acceptance_outdated: true,
        page_token,
        ..ListSubscriptionsRequest::default()
    };
    let mut client = world.direct.subscriptions();
    let first = client.list_subscriptions(all(String::new())).await.unwrap().into_inner();
    assert!(first.subscriptions.is_empty() && !first.next_page_token.is_empty());
    let second = client.list_subscriptions(all(first.next_page_token.clone())).await.unwrap().into_inner();
    assert!(second.subscriptions.is_empty() && second.next_page_token.is_empty());
    // It goes on where it looked last, so it finds what has become outdated there.
    world.publish(None).await;
    let second = client.list_subscriptions(all(first.next_page_token)).await.unwrap().into_inner();
    assert_eq!(second.subscriptions, [last]);
    assert!(second.next_page_token.is_empty());
}
