//! The event stream: each caller sees its own events, without gap or repeat.

use std::time::Duration;

use chassis::auth::Caller;
use futures_util::future::join_all;
use proto::agreement::event::Change;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    Event, GetCustomerRequest, ListEventsRequest, UpdateCustomerRequest, WatchEventsRequest,
    WatchEventsResponse, WithdrawSignatureRequest, WithdrawalReason,
};
use rstest_reuse::apply;
use tests::assert::{eventually, refusal};
use tests::fixtures::{self, DIRECT, PROVIDER};
use tests::{As, Backend, Cluster, actions, metadata_of, reason_of};

use crate::each_backend;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

/// Longer than anything here takes, so that a watcher that waits for ever fails its test.
const LONG: Duration = Duration::from_secs(60);

async fn watch(caller: &As, after_revision: i64) -> Result<Streaming<WatchEventsResponse>, Status> {
    let request = WatchEventsRequest { after_revision, ..WatchEventsRequest::default() };
    caller.events().watch_events(request).await.map(tonic::Response::into_inner)
}

/// Tries until a watcher is let in, since only the server knows when the place of another one is free.
async fn room(caller: &As, after_revision: i64) -> Streaming<WatchEventsResponse> {
    eventually("a place for a watcher", async || match watch(caller, after_revision).await {
        Ok(stream) => Some(stream),
        Err(refused) => {
            assert_eq!(reason_of(&refused), "OVERLOADED", "{refused:?}");
            None
        }
    })
    .await
}

/// The next event of a stream; checkpoints are skipped.
async fn next(stream: &mut Streaming<WatchEventsResponse>) -> Event {
    loop {
        match stream.message().await.unwrap().and_then(|response| response.item) {
            Some(Item::Event(event)) => return event,
            Some(Item::Checkpoint(_)) => {}
            None => panic!("the stream ended"),
        }
    }
}

/// The revisions of what is left in a stream, and the status it ends with.
async fn rest(stream: &mut Streaming<WatchEventsResponse>) -> (Vec<i64>, Status) {
    let mut revisions = vec![];
    loop {
        match stream.message().await {
            Ok(Some(WatchEventsResponse { item: Some(Item::Event(event)) })) => {
                revisions.push(event.revision);
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a status after {revisions:?}"),
            Err(status) => return (revisions, status),
        }
    }
}

async fn history(cluster: &Cluster, viewer: Caller, customer: &str) -> Vec<Event> {
    let viewer = cluster.as_caller(viewer);
    let mut events = vec![];
    let mut page_token = String::new();
    loop {
        let request = ListEventsRequest {
            customer_id: customer.into(),
            page_size: 3,
            page_token,
            ..ListEventsRequest::default()
        };
        let page = viewer.events().list_events(request).await.unwrap().into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return events;
        }
    }
}

/// The kind of each event.
fn kinds(events: &[Event]) -> Vec<&'static str> {
    let kind = |event: &Event| match event.change.as_ref().unwrap() {
        Change::CustomerCreated(_) => "created",
        Change::CustomerUpdated(_) => "updated",
        Change::RelationshipEstablished(_) => "related",
        Change::Attested(_) => "attested",
        Change::Signed(_) => "signed",
        Change::SignatureWithdrawn(_) => "signature withdrawn",
        Change::InvitationCreated(_) => "invited",
        Change::InvitationAccepted(_) => "accepted",
        other => panic!("not in this story: {other:?}"),
    };
    events.iter().map(kind).collect()
}

#[apply(each_backend)]
async fn a_partner_sees_only_its_own_history_with_a_customer(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let id = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = fixtures::admin(id.parse().unwrap());
    let customer = cluster.as_caller(admin.clone());
    let invited = actions::invite(&provider, None, None).await.unwrap();
    customer.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    actions::attest_now(&direct, &id).await.unwrap();
    let request = GetCustomerRequest { customer_id: id.clone() };
    let found = direct.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap();
    let update = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: id.clone(),
        etag: found.etag,
        company_name: "Contoso SA".into(),
        primary_contact: found.primary_contact,
        ..UpdateCustomerRequest::default()
    };
    direct.customers().update_customer(update).await.unwrap();
    let signature = actions::sign(&customer, 2).await.unwrap().signature_id;
    let request = WithdrawSignatureRequest {
        request_id: fixtures::request_id(),
        signature_id: signature,
        reason: WithdrawalReason::Other.into(),
        validate_only: false,
    };
    customer.signatures().withdraw_signature(request).await.unwrap();

    let everything = history(&cluster, admin, &id).await;
    assert_eq!(
        kinds(&everything),
        ["created", "related", "related", "signed", "accepted", "attested", "updated", "signature withdrawn"]
    );
    assert_eq!(history(&cluster, fixtures::operator(), &id).await, everything);
    let of_direct = history(&cluster, fixtures::sales(DIRECT), &id).await;
    assert_eq!(
        kinds(&of_direct),
        ["created", "related", "signed", "attested", "updated", "signature withdrawn"]
    );
    let of_provider = history(&cluster, fixtures::sales(PROVIDER), &id).await;
    assert_eq!(
        kinds(&of_provider),
        ["created", "related", "signed", "accepted", "updated", "signature withdrawn"]
    );
    // The other partner's user who changed the customer is not visible, nor are uncovered other partners.
    let updated = of_provider.iter().find(|event| kinds(std::slice::from_ref(event)) == ["updated"]);
    assert_eq!(updated.unwrap().by, "");
    let uncovered = |events: &[Event]| match events.last().unwrap().change.clone().unwrap() {
        Change::SignatureWithdrawn(withdrawn) => withdrawn.uncovered_partner_ids,
        other => panic!("{other:?}"),
    };
    assert_eq!(uncovered(&everything), [PROVIDER.to_string()]);
    assert_eq!(uncovered(&of_provider), [PROVIDER.to_string()]);
    assert!(uncovered(&of_direct).is_empty());
    for event in &everything {
        let text = format!("{event:?}").to_lowercase();
        assert!(!text.contains("tania") && !text.contains("carr") && !text.contains("@"), "{text}");
    }
}

/// A watcher that resumes at its cursor, at either replica, misses no event and gets none twice.
#[apply(each_backend)]
async fn a_watcher_that_resumes_gets_every_event_once(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let (mut cluster, direct) = actions::start_with_partners(backend).await;
    cluster.start_replica().await.unwrap();
    // Two clients of each of two replicas write at the same time, so that their transactions contend.
    const CUSTOMERS_EACH: i64 = 15;
    let first = direct.customers().create_customer(fixtures::new_customer("First", "FR", None)).await;
    // Each further one is two events: the customer and the relationship.
    let expected = first.unwrap().into_inner().revision + 4 * 2 * CUSTOMERS_EACH;
    let far = cluster.at_replica(fixtures::sales(DIRECT));
    let writing = [direct.clone(), direct, far.clone(), far.clone()].into_iter().zip(0..);
    let writing = writing.map(|(partner, writer)| {
        tokio::spawn(async move {
            for n in 0..CUSTOMERS_EACH {
                let name = format!("Customer {writer} {n}");
                actions::create_customer(&partner, &name, "FR", None).await.unwrap();
            }
        })
    });
    let writing: Vec<_> = writing.collect();
    let here = cluster.as_caller(fixtures::service());
    let there = cluster.at_replica(fixtures::operator());
    let (mut cursor, mut seen, mut stay) = (0, vec![], 1);
    let watching = async {
        while cursor < expected {
            // By turns at each replica, each time for a little longer.
            let mut stream = watch(if stay % 2 == 0 { &here } else { &there }, cursor).await.unwrap();
            for _ in 0..stay.min(expected - cursor) {
                let event = next(&mut stream).await;
                cursor = event.revision;
                seen.push(event.revision);
            }
            stay += 1;
        }
    };
    let watched = timeout(LONG, watching).await;
    assert!(watched.is_ok(), "{backend:?}: of {expected} events came only {seen:?}");
    for written in join_all(writing).await {
        written.unwrap();
    }
    assert_eq!(seen, (1..=expected).collect::<Vec<_>>());

    // An idle stream gets what the other replica writes.
    let mut stream = watch(&here, cursor).await.unwrap();
    actions::create_customer(&far, "From the other side", "FR", None).await.unwrap();
    assert_eq!(timeout(LONG, next(&mut stream)).await.unwrap().revision, expected + 1);

    let ahead = watch(&here, expected + 3).await.unwrap_err();
    assert_eq!(refusal(&ahead), (Code::OutOfRange, "CURSOR_AHEAD".into()));
    assert_eq!(metadata_of(&ahead)["head"], (expected + 2).to_string());

    // A server that stops ends its streams with a reason to reconnect elsewhere.
    cluster.stop_agreements();
    let (_, ended) = timeout(LONG, rest(&mut stream)).await.unwrap();
    assert_eq!(refusal(&ended), (Code::Unavailable, "STOPPING".into()));
}

/// A watcher that reads nothing is closed with its cursor and makes room for another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stalled_watcher_is_closed_and_can_resume() {
    tests::needs_own!("limits and connections that it fills");
    // One more is order-svc.
    const WATCHERS_MAX: usize = 63;
    const AT_ONCE: usize = 25;
    const CUSTOMERS: usize = 750;
    let (cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    // Far more than a client's windows and the server's queue hold together.
    let names: Vec<_> = (0..CUSTOMERS).map(|n| format!("Customer {n}")).collect();
    for together in names.chunks(AT_ONCE) {
        let created =
            together.iter().map(async |name| actions::create_customer(&direct, name, "FR", None).await);
        join_all(created).await.into_iter().for_each(|created| drop(created.unwrap()));
    }
    let last = fixtures::new_customer("Last", "FR", None);
    let head = direct.customers().create_customer(last).await.unwrap().into_inner().revision;

    let watcher = cluster.as_caller(fixtures::service());
    let mut others = vec![];
    for _ in 1..WATCHERS_MAX {
        others.push(watch(&watcher, head).await.unwrap());
    }
    let narrow = Endpoint::from_shared(format!("http://{}", cluster.agreements_address())).unwrap();
    let narrow = narrow.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let slow = As { agreements: narrow.connect_lazy(), ..watcher.clone() };
    let mut slow = watch(&slow, 0).await.unwrap();
    let refused = watch(&watcher, head).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::ResourceExhausted, "OVERLOADED".into()));

    // No other watcher leaves, so the new one has the place of the one that reads nothing.
    let mut let_in = room(&watcher, head).await;
    let (revisions, ended) = timeout(LONG, rest(&mut slow)).await.unwrap();
    let cursor = *revisions.last().unwrap();
    assert!(cursor < head, "all {head} events went into the windows, so nothing is proven");
    assert_eq!(revisions, (1..=cursor).collect::<Vec<_>>());
    assert_eq!(refusal(&ended), (Code::ResourceExhausted, "STREAM_STOOD_STILL".into()));
    assert_eq!(metadata_of(&ended)["revision"], cursor.to_string());

    // The others are served as before; once they leave, the slow one resumes.
    actions::create_customer(&direct, "After all", "FR", None).await.unwrap();
    for stream in others.iter_mut().chain([&mut let_in]) {
        assert_eq!(timeout(LONG, next(stream)).await.unwrap().revision, head + 1);
    }
    drop(others);
    let mut again = room(&watcher, cursor).await;
    for revision in cursor + 1..=head + 2 {
        assert_eq!(timeout(LONG, next(&mut again)).await.unwrap().revision, revision);
    }
}
