//! The history: what each may see of it, and the stream of everything without gap or repeat.

use std::time::Duration;

use chassis::auth::Caller;
use chassis::clock::Clock;
use futures_util::future::join_all;
use proto::agreement::event::Change;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    Event, GetCustomerRequest, ListEventsRequest, UpdateCustomerRequest, WatchEventsRequest,
    WatchEventsResponse, WithdrawSignatureRequest, WithdrawalReason,
};
use rstest_reuse::apply;
use tests::world::{self, DIRECT, PROVIDER, acceptance, invite, sign};
use tests::{As, Backend, Cluster, metadata_of, reason_of};

use crate::each_backend;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

/// Longer than anything here takes, so that a watcher that waits for ever fails its test.
const LONG: Duration = Duration::from_secs(60);

async fn world_on(backend: Backend) -> (Cluster, As) {
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    (cluster, direct)
}

async fn watch(caller: &As, after_revision: i64) -> Result<Streaming<WatchEventsResponse>, Status> {
    let request = WatchEventsRequest { after_revision, ..WatchEventsRequest::default() };
    caller.events().watch_events(request).await.map(tonic::Response::into_inner)
}

/// Asks again until a watcher is let in: only the server knows when another one's place is free.
async fn room(caller: &As, after_revision: i64) -> Streaming<WatchEventsResponse> {
    let asking = async {
        loop {
            match watch(caller, after_revision).await {
                Ok(stream) => return stream,
                Err(refused) => assert_eq!(reason_of(&refused), "OVERLOADED", "{refused:?}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LONG, asking).await.unwrap()
}

/// The next event of a stream; that nothing happened for a while is passed over.
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
        let request = ListEventsRequest { customer_id: customer.into(), page_size: 3, page_token };
        let page = viewer.events().list_events(request).await.unwrap().into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return events;
        }
    }
}

/// What happened, in one word each.
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
async fn a_partner_sees_its_own_history_with_a_customer_and_nothing_of_other_partners(
    #[case] backend: Backend,
) {
    tests::needs!(backend);
    let (cluster, direct) = world_on(backend).await;
    let provider = cluster.as_caller(world::sales(PROVIDER));
    let id = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let admin = world::admin(id.parse().unwrap());
    let customer = cluster.as_caller(admin.clone());
    let invited = invite(&provider, None, None).await.unwrap();
    customer.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap();
    world::attest(&direct, &id, Clock::system().now()).await.unwrap();
    let request = GetCustomerRequest { customer_id: id.clone() };
    let found = direct.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap();
    let update = UpdateCustomerRequest {
        request_id: world::request_id(),
        customer_id: id.clone(),
        etag: found.etag,
        company_name: "Contoso SA".into(),
        primary_contact: found.primary_contact,
    };
    direct.customers().update_customer(update).await.unwrap();
    let signature = sign(&customer, 2).await.unwrap().signature_id;
    let request = WithdrawSignatureRequest {
        request_id: world::request_id(),
        signature_id: signature,
        reason: WithdrawalReason::Other.into(),
    };
    customer.signatures().withdraw_signature(request).await.unwrap();

    let everything = history(&cluster, admin, &id).await;
    assert_eq!(
        kinds(&everything),
        ["created", "related", "related", "signed", "accepted", "attested", "updated", "signature withdrawn"]
    );
    assert_eq!(history(&cluster, world::operator(), &id).await, everything);
    let of_direct = history(&cluster, world::sales(DIRECT), &id).await;
    assert_eq!(
        kinds(&of_direct),
        ["created", "related", "signed", "attested", "updated", "signature withdrawn"]
    );
    let of_provider = history(&cluster, world::sales(PROVIDER), &id).await;
    assert_eq!(
        kinds(&of_provider),
        ["created", "related", "signed", "accepted", "updated", "signature withdrawn"]
    );
    // Whose user changed the customer is the other partner's business; who is uncovered, too.
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
        let told = format!("{event:?}").to_lowercase();
        assert!(!told.contains("tania") && !told.contains("carr") && !told.contains("@"), "{told}");
    }
}

#[apply(each_backend)]
async fn a_watcher_that_comes_back_at_its_cursor_misses_nothing_and_gets_nothing_twice(
    #[case] backend: Backend,
) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let (mut cluster, direct) = world_on(backend).await;
    cluster.start_replica().await.unwrap();
    // At each of two replicas two write at once, so that their transactions get into each other's way.
    const CUSTOMERS_EACH: i64 = 15;
    let first = direct.customers().create_customer(world::new_customer("First", "FR", None)).await;
    // Each further one is two events: the customer and the relationship.
    let expected = first.unwrap().into_inner().revision + 4 * 2 * CUSTOMERS_EACH;
    let far = cluster.at_replica(world::sales(DIRECT));
    let writing = [direct.clone(), direct, far.clone(), far.clone()].into_iter().zip(0..);
    let writing = writing.map(|(partner, writer)| {
        tokio::spawn(async move {
            for n in 0..CUSTOMERS_EACH {
                let name = format!("Customer {writer} {n}");
                world::create_customer(&partner, &name, "FR", None).await.unwrap();
            }
        })
    });
    let writing: Vec<_> = writing.collect();
    let here = cluster.as_caller(world::service());
    let there = cluster.at_replica(world::operator());
    let (mut cursor, mut seen, mut stay) = (0, vec![], 1);
    let watching = async {
        while cursor < expected {
            // Now here, now at the other replica, each time for a little longer.
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

    // Idle, and then something that the other replica writes.
    let mut stream = watch(&here, cursor).await.unwrap();
    world::create_customer(&far, "From the other side", "FR", None).await.unwrap();
    assert_eq!(timeout(LONG, next(&mut stream)).await.unwrap().revision, expected + 1);

    let ahead = watch(&here, expected + 3).await.unwrap_err();
    assert_eq!((ahead.code(), reason_of(&ahead)), (Code::OutOfRange, "CURSOR_AHEAD".into()));
    assert_eq!(metadata_of(&ahead)["head"], (expected + 2).to_string());

    // A stopping server tells its watchers to go elsewhere.
    cluster.stop_agreements();
    let (_, ended) = timeout(LONG, rest(&mut stream)).await.unwrap();
    assert_eq!((ended.code(), reason_of(&ended)), (Code::Unavailable, "STOPPING".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watcher_that_reads_nothing_is_closed_with_its_cursor_and_makes_room_for_another() {
    tests::needs_own!("limits and connections that it fills");
    // One more is order-svc.
    const WATCHERS_MAX: usize = 63;
    const AT_ONCE: usize = 25;
    const CUSTOMERS: usize = 750;
    let (cluster, direct) = world_on(Backend::Sqlite).await;
    // Far more than a client's windows and the events that wait at the server hold together.
    let names: Vec<_> = (0..CUSTOMERS).map(|n| format!("Customer {n}")).collect();
    for together in names.chunks(AT_ONCE) {
        let created =
            together.iter().map(async |name| world::create_customer(&direct, name, "FR", None).await);
        join_all(created).await.into_iter().for_each(|created| drop(created.unwrap()));
    }
    let last = world::new_customer("Last", "FR", None);
    let head = direct.customers().create_customer(last).await.unwrap().into_inner().revision;

    let watcher = cluster.as_caller(world::service());
    let mut others = vec![];
    for _ in 1..WATCHERS_MAX {
        others.push(watch(&watcher, head).await.unwrap());
    }
    let narrow = Endpoint::from_shared(format!("http://{}", cluster.agreements_address())).unwrap();
    let narrow = narrow.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let slow = As { agreements: narrow.connect_lazy(), ..watcher.clone() };
    let mut slow = watch(&slow, 0).await.unwrap();
    let refused = watch(&watcher, head).await.unwrap_err();
    assert_eq!((refused.code(), reason_of(&refused)), (Code::ResourceExhausted, "OVERLOADED".into()));

    // Nobody else goes, so whoever is let in has the place of the one that reads nothing.
    let mut let_in = room(&watcher, head).await;
    let (revisions, ended) = timeout(LONG, rest(&mut slow)).await.unwrap();
    let cursor = *revisions.last().unwrap();
    assert!(cursor < head, "all {head} events went into the windows, so nothing is proven");
    assert_eq!(revisions, (1..=cursor).collect::<Vec<_>>());
    assert_eq!((ended.code(), reason_of(&ended)), (Code::ResourceExhausted, "STREAM_STOOD_STILL".into()));
    assert_eq!(metadata_of(&ended)["revision"], cursor.to_string());

    // Those that stayed are served as before; one of them makes room for going on.
    world::create_customer(&direct, "After all", "FR", None).await.unwrap();
    for stream in others.iter_mut().chain([&mut let_in]) {
        assert_eq!(timeout(LONG, next(stream)).await.unwrap().revision, head + 1);
    }
    drop(others);
    let mut again = room(&watcher, cursor).await;
    for revision in cursor + 1..=head + 2 {
        assert_eq!(timeout(LONG, next(&mut again)).await.unwrap().revision, revision);
    }
}
