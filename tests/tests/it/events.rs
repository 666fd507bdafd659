//! The history: what each may see of it, and the stream of everything without gap or repeat.

use chassis::auth::Caller;
use chassis::clock::Clock;
use proto::agreement::event::Change;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    Event, GetCustomerRequest, ListEventsRequest, UpdateCustomerRequest, WatchEventsRequest,
    WatchEventsResponse, WithdrawSignatureRequest, WithdrawalReason,
};
use tests::world::{self, DIRECT, PROVIDER, acceptance, invite, sign};
use tests::{As, Backend, Cluster, metadata_of, reason_of};
use tonic::{Code, Status, Streaming};

async fn world_on(backend: Backend) -> (Cluster, As) {
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    (cluster, direct)
}

async fn watch(caller: &As, after_revision: i64) -> Result<Streaming<WatchEventsResponse>, Status> {
    let request = WatchEventsRequest { after_revision };
    caller.events().watch_events(request).await.map(tonic::Response::into_inner)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_partner_sees_its_own_history_with_a_customer_and_nothing_of_other_partners() {
    for backend in Backend::all() {
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
            [
                "created",
                "related",
                "related",
                "signed",
                "accepted",
                "attested",
                "updated",
                "signature withdrawn"
            ]
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watcher_that_comes_back_at_its_cursor_misses_nothing_and_gets_nothing_twice() {
    for backend in Backend::all() {
        let (mut cluster, direct) = world_on(backend).await;
        cluster.start_replica().await.unwrap();
        const CUSTOMERS: i64 = 40;
        let first = direct.customers().create_customer(world::new_customer("First", "FR", None)).await;
        // Each further one is two events: the customer and the relationship.
        let expected = first.unwrap().into_inner().revision + 2 * CUSTOMERS;
        let writing = tokio::spawn(async move {
            for n in 0..CUSTOMERS {
                world::create_customer(&direct, &format!("Customer {n}"), "FR", None).await.unwrap();
            }
        });
        let here = cluster.as_caller(world::service());
        let there = cluster.at_replica(world::operator());
        let (mut cursor, mut seen, mut stay) = (0, vec![], 1);
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
        writing.await.unwrap();
        assert_eq!(seen, (1..=expected).collect::<Vec<_>>());

        // Idle, and then something that the other replica writes.
        let mut stream = watch(&here, cursor).await.unwrap();
        let far = cluster.at_replica(world::sales(DIRECT));
        world::create_customer(&far, "From the other side", "FR", None).await.unwrap();
        assert_eq!(next(&mut stream).await.revision, expected + 1);

        let ahead = watch(&here, expected + 3).await.unwrap_err();
        assert_eq!((ahead.code(), reason_of(&ahead)), (Code::OutOfRange, "CURSOR_AHEAD".into()));
        assert_eq!(metadata_of(&ahead)["head"], (expected + 2).to_string());

        // A stopping server tells its watchers to go elsewhere.
        cluster.stop_agreements();
        let ended = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        let ended = ended.unwrap_err();
        assert_eq!((ended.code(), reason_of(&ended)), (Code::Unavailable, "STOPPING".into()));
    }
}
