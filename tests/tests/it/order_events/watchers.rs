//! Watchers of order-svc's events: no gap and no repeat, whatever is written where, and a bounded wait for slow readers.

use std::collections::{BTreeMap, BTreeSet};

use chassis::query;
use diesel::connection::SimpleConnection;
use futures_util::future::join_all;
use proto::order::event::Change;
use proto::order::{ChangeSeatsRequest, Event, Subscription};
use rstest_reuse::apply;
use tests::assert::{eventually, refusal};
use tests::databases::connect;
use tests::fixtures::{self, DIRECT};
use tests::{As, Backend, actions, metadata_of, reason_of};
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Endpoint;

use super::{LONG, next, rest, watch};
use crate::each_backend;

/// Orders for a customer of its own one after the other, and changes the seats of each, as one client that waits for its answers.
async fn write(partner: As, customer: String, orders: u32) -> Vec<String> {
    let mut bought = vec![];
    for n in 0..orders {
        let subscription = actions::subscribe(&partner, &customer, None).await.unwrap();
        let seats = ChangeSeatsRequest {
            request_id: fixtures::request_id(),
            subscription_id: subscription.subscription_id.clone(),
            etag: subscription.etag,
            quantity: 6 + n,
            ..ChangeSeatsRequest::default()
        };
        partner.subscriptions().change_seats(seats).await.unwrap();
        bought.push(subscription.subscription_id);
    }
    bought
}

/// The subscription of an event with one, and the number of its change.
fn changed(event: &Event) -> Option<(String, u32)> {
    match event.change.as_ref().unwrap() {
        Change::SubscriptionChanged(of) => Some((of.subscription_id.clone(), of.change.as_ref()?.number)),
        Change::OrderPlaced(_) | Change::HistoryRestored(_) => None,
    }
}

/// SUB-9: a watcher that resumes at its cursor, at either replica, misses no event and gets none twice. What one client did after the
/// other comes in that order.
#[apply(each_backend)]
async fn a_watcher_of_orders_gets_every_event_once(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let (mut cluster, direct) = actions::start_with_partners(backend).await;
    cluster.start_orders_replica().await.unwrap();
    // Two clients of each of two replicas write at the same time, so that their transactions overlap.
    const WRITERS: usize = 4;
    const ORDERS_EACH: u32 = 8;
    // The order, the creation of its subscription, and the change of the seats.
    const EXPECTED: i64 = WRITERS as i64 * ORDERS_EACH as i64 * 3;
    let far = cluster.at_orders_replica(fixtures::sales(DIRECT));
    let mut writing = vec![];
    for (n, partner) in [direct.clone(), direct.clone(), far.clone(), far.clone()].into_iter().enumerate() {
        let name = format!("Customer {n}");
        let customer = actions::create_customer(&direct, &name, "FR", None).await.unwrap();
        actions::attest_now(&direct, &customer).await.unwrap();
        writing.push(tokio::spawn(write(partner, customer, ORDERS_EACH)));
    }
    let here = cluster.as_caller(fixtures::service());
    let there = cluster.at_orders_replica(fixtures::operator());
    let (mut cursor, mut seen, mut stay) = (0, vec![], 1);
    let watching = async {
        while cursor < EXPECTED {
            // By turns at each replica, each time for a little longer.
            let mut stream = watch(if stay % 2 == 0 { &here } else { &there }, cursor).await.unwrap();
            for _ in 0..stay.min(EXPECTED - cursor) {
                let event = next(&mut stream).await;
                cursor = event.revision;
                seen.push(event);
            }
            stay += 1;
        }
    };
    let watched = timeout(LONG, watching).await;
    let revisions: Vec<_> = seen.iter().map(|event| event.revision).collect();
    assert!(watched.is_ok(), "{backend:?}: of {EXPECTED} events came only {revisions:?}");
    assert_eq!(revisions, (1..=EXPECTED).collect::<Vec<_>>());

    let mut placed = BTreeSet::new();
    let mut last: BTreeMap<String, u32> = BTreeMap::new();
    let mut created: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in &seen {
        let Some((subscription, number)) = changed(event) else {
            assert!(placed.insert(event.order_id.clone()), "twice: {event:?}");
            continue;
        };
        assert!(placed.contains(&event.order_id), "before its order: {event:?}");
        assert_eq!(last.insert(subscription.clone(), number).unwrap_or(0) + 1, number, "{event:?}");
        if number == 1 {
            created.entry(event.customer_id.clone()).or_default().push(subscription);
        }
    }
    for written in join_all(writing).await {
        let bought = written.unwrap();
        assert!(created.values().any(|created| *created == bought), "{bought:?} is not in {created:?}");
    }

    // An idle stream gets what the other replica writes.
    let mut stream = watch(&here, cursor).await.unwrap();
    let customer = actions::create_customer(&direct, "From the other side", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    actions::subscribe(&far, &customer, None).await.unwrap();
    assert_eq!(timeout(LONG, next(&mut stream)).await.unwrap().revision, EXPECTED + 1);
    assert_eq!(timeout(LONG, next(&mut stream)).await.unwrap().revision, EXPECTED + 2);

    let ahead = watch(&here, EXPECTED + 3).await.unwrap_err();
    assert_eq!(refusal(&ahead), (Code::OutOfRange, "CURSOR_AHEAD".into()));
    assert_eq!(metadata_of(&ahead)["head"], (EXPECTED + 2).to_string());

    // A server that stops ends its streams with a reason to reconnect elsewhere.
    cluster.stop_orders();
    let (_, ended) = timeout(LONG, rest(&mut stream)).await.unwrap();
    assert_eq!(refusal(&ended), (Code::Unavailable, "STOPPING".into()));
}

/// SUB-9: transactions overlap on PostgreSQL. One that made its entry first and commits last has the later event.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_commits_late_is_not_missed() {
    tests::needs_own!("a transaction that it holds open");
    tests::needs!(Backend::Postgres);
    let (cluster, direct) = actions::start_with_partners(Backend::Postgres).await;
    let mut bought = vec![];
    for name in ["Slow", "Fast"] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        actions::attest_now(&direct, &customer).await.unwrap();
        bought.push(actions::subscribe(&direct, &customer, None).await.unwrap());
    }
    let mut stream = watch(&cluster.as_caller(fixtures::service()), 0).await.unwrap();
    for revision in 1..=4 {
        assert_eq!(timeout(LONG, next(&mut stream)).await.unwrap().revision, revision);
    }

    let mut held = connect(cluster.orders_database()).unwrap();
    let slow = &bought[0].subscription_id;
    let suspend = format!(
        "BEGIN;
        INSERT INTO subscription_change (subscription_id, number, kind, changed_at, actor_tenant, actor, quantity_before,
            quantity_after, gate_decision, gate_rule, gate_evidence, gate_revision, gate_evaluated_at, in_history)
        SELECT subscription_id, 2, 'SUSPENDED', changed_at, actor_tenant, actor, quantity_after, quantity_after, '', '', '',
            0, gate_evaluated_at, TRUE FROM subscription_change WHERE subscription_id = '{slow}';
        INSERT INTO event_pending (order_id, subscription_id, change_number) VALUES ('', '{slow}', 2)"
    );
    query!(&mut held, c => c.batch_execute(&suspend)).unwrap();
    let Subscription { subscription_id, etag, .. } = bought[1].clone();
    let seats = ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: subscription_id.clone(),
        etag,
        quantity: 6,
        ..ChangeSeatsRequest::default()
    };
    direct.subscriptions().change_seats(seats).await.unwrap();
    let event = timeout(LONG, next(&mut stream)).await.unwrap();
    assert_eq!((event.revision, changed(&event)), (5, Some((subscription_id, 2))));
    query!(&mut held, c => c.batch_execute("COMMIT")).unwrap();
    let event = timeout(LONG, next(&mut stream)).await.unwrap();
    assert_eq!((event.revision, changed(&event)), (6, Some((slow.clone(), 2))));
}

/// Replicas of a version without the history write during an upgrade, and what was there before has events, too.
#[apply(each_backend)]
async fn what_older_versions_stored_has_events(#[case] backend: Backend) {
    tests::needs_own!("a database that it changes");
    tests::needs!(backend);
    let (mut cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    let bought = write(direct.clone(), customer.clone(), 3).await;
    let watcher = cluster.as_caller(fixtures::service());
    let before = super::history_of(&watcher, &customer, 9).await;
    cluster.stop_orders();
    // As such a version leaves them.
    for sql in [
        "DELETE FROM event",
        "DELETE FROM event_pending",
        "UPDATE event_head SET revision = 0",
        "UPDATE orders SET in_history = FALSE",
        "UPDATE subscription_change SET in_history = FALSE",
    ] {
        cluster.orders_sql(sql).unwrap();
    }
    cluster.restart_orders().await.unwrap();
    let mut stream = watch(&watcher, 0).await.unwrap();
    let mut after = vec![];
    for _ in &before {
        after.push(timeout(LONG, next(&mut stream)).await.unwrap());
    }
    // The time of the recording is another one.
    let content = |events: &[Event]| {
        let content = |event: &Event| (event.revision, event.order_id.clone(), event.change.clone());
        events.iter().map(content).collect::<Vec<_>>()
    };
    assert_eq!(content(&after), content(&before));

    // The next change follows.
    let seats = ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: bought[0].clone(),
        etag: "2".into(),
        quantity: 50,
        ..ChangeSeatsRequest::default()
    };
    direct.subscriptions().change_seats(seats).await.unwrap();
    let event = timeout(LONG, next(&mut stream)).await.unwrap();
    assert_eq!((event.revision, changed(&event)), (10, Some((bought[0].clone(), 3))));
}

/// A watcher that reads nothing is closed with its cursor and makes room for another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stalled_watcher_of_orders_is_closed_and_can_resume() {
    tests::needs_own!("limits and connections that it fills");
    const WATCHERS_MAX: usize = 64;
    const AT_ONCE: usize = 10;
    const LINES: usize = 100;
    let (cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    // Far more than a client's windows and the server's queue hold together.
    let order = || {
        let order = fixtures::new_order(&customer, None, fixtures::OFFICE, 5);
        let lines = vec![order.lines[0].clone(); LINES];
        actions::place(&direct, proto::order::CreateOrderRequest { lines, ..order })
    };
    join_all((0..AT_ONCE).map(|_| order())).await.into_iter().for_each(|placed| drop(placed.unwrap()));
    let head = i64::try_from(AT_ONCE * (LINES + 1)).unwrap();

    let watcher = cluster.as_caller(fixtures::service());
    let room = async |after: i64| {
        eventually("a place for a watcher", async || match watch(&watcher, after).await {
            Ok(stream) => Some(stream),
            Err(refused) => {
                assert!(
                    ["OVERLOADED", "CURSOR_AHEAD"].contains(&reason_of(&refused).as_str()),
                    "{refused:?}"
                );
                None
            }
        })
        .await
    };
    let mut others = vec![];
    for _ in 1..WATCHERS_MAX {
        others.push(room(head).await);
    }
    let narrow = Endpoint::from_shared(format!("http://{}", cluster.orders_address())).unwrap();
    let narrow = narrow.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let slow = As { orders: narrow.connect_lazy(), ..watcher.clone() };
    let mut slow = watch(&slow, 0).await.unwrap();
    let refused = watch(&watcher, head).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::ResourceExhausted, "OVERLOADED".into()));

    // No other watcher leaves, so the new one has the place of the one that reads nothing.
    let mut let_in = room(head).await;
    let (revisions, ended) = timeout(LONG, rest(&mut slow)).await.unwrap();
    let cursor = *revisions.last().unwrap();
    assert!(cursor < head, "all {head} events went into the windows, so nothing is proven");
    assert_eq!(revisions, (1..=cursor).collect::<Vec<_>>());
    assert_eq!(refusal(&ended), (Code::ResourceExhausted, "STREAM_STOOD_STILL".into()));
    assert_eq!(metadata_of(&ended)["revision"], cursor.to_string());

    // The others are served as before; once they leave, the slow one resumes.
    actions::subscribe(&direct, &customer, None).await.unwrap();
    for stream in others.iter_mut().chain([&mut let_in]) {
        assert_eq!(timeout(LONG, next(stream)).await.unwrap().revision, head + 1);
    }
    drop(others);
    let mut again = room(cursor).await;
    for revision in cursor + 1..=head + 2 {
        assert_eq!(timeout(LONG, next(&mut again)).await.unwrap().revision, revision);
    }
}
