//! The client for programs in Rust, against the real services.

use std::time::Duration;

use agreement_gate_client::proto::agreement::attestation_service_client::AttestationServiceClient;
use agreement_gate_client::proto::agreement::event_service_client::EventServiceClient;
use agreement_gate_client::proto::order::event_service_client::EventServiceClient as OrderEventServiceClient;
use agreement_gate_client::proto::order::order_service_client::OrderServiceClient;
use agreement_gate_client::{
    AgreementRequired, CallOptions, Client, Cursor, Domain, Item, Refusal, Remedy, Replicas, Watch,
    WatchError, WatchItem,
};
use chassis::auth::Caller;
use proto::agreement::{self, CreateAttestationRequest};
use proto::order::{self, CreateOrderRequest};
use proto::types::{AcceptanceKind, BlockReason, ErrorReason};
use rstest_reuse::apply;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, actions};
use tokio::time::timeout;
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::each_backend;

/// Longer than anything here takes, so that what waits for ever fails its test.
const LONG: Duration = Duration::from_secs(60);

/// Clients of agreement-svc and order-svc.
fn clients(caller: &As) -> [Client; 2] {
    [&caller.agreements, &caller.orders].map(|channel| Client::new(Replicas::of([channel.clone()])))
}

/// The options of a call by a caller.
fn by(caller: &Caller) -> CallOptions {
    let mut metadata = MetadataMap::new();
    caller.present(&mut metadata);
    CallOptions::new(metadata, LONG)
}

/// Follows agreement-svc's history after a cursor, as a service.
fn watch_agreements(cluster: &Cluster, after: Cursor) -> Watch<agreement::WatchEventsResponse> {
    let service = cluster.as_caller(fixtures::service());
    let [agreements, _] = clients(&service);
    agreements.watch(after, move |channel, request| {
        let mut events = EventServiceClient::with_interceptor(channel, service.identity.clone());
        async move { events.watch_events(request).await }
    })
}

/// Follows a history up to a revision: the events, and how often nothing came for a while.
async fn follow<R: WatchItem>(watch: &mut Watch<R>, revision: i64) -> (Vec<R::Event>, usize) {
    let (mut events, mut interruptions) = (vec![], 0);
    let following = async {
        while watch.seen().revision < revision {
            match watch.next().await {
                Ok(Item::Event(event)) => events.push(event),
                Ok(Item::Checkpoint(_)) => {}
                Ok(Item::Lost(restore)) => panic!("{restore:?}"),
                Err(WatchError::Unavailable(_)) => interruptions += 1,
                Err(why) => panic!("{why}"),
            }
        }
    };
    timeout(LONG, following).await.unwrap();
    (events, interruptions)
}

#[apply(each_backend)]
async fn a_refused_order_is_accepted_under_its_request_id_after_the_remedy(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("a client without the alias of the stack");
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let ([agreements, orders], caller) = (clients(&direct), fixtures::sales(DIRECT));
    let create =
        |channel, request| async move { OrderServiceClient::new(channel).create_order(request).await };
    let wanted = fixtures::new_order(&customer, None, OFFICE, 5);

    let mut invalid = CreateOrderRequest { request_id: fixtures::request_id(), ..wanted.clone() };
    invalid.lines[0].quantity = 0;
    let refused = orders.call(by(&caller), invalid, create).await.unwrap_err();
    let refusal = Refusal::of(&refused).unwrap();
    assert_eq!((refusal.domain, refusal.reason), (Domain::OrderSvc, ErrorReason::InvalidFields));
    let fields: Vec<_> = refusal.violations.iter().map(|bad| bad.field.as_str()).collect();
    assert_eq!(fields, ["lines[0].quantity"]);

    let refused = orders.call(by(&caller), wanted.clone(), create).await.unwrap_err();
    let required = AgreementRequired::of(&refused).unwrap();
    assert_eq!((required.customer_id, required.reasons), (customer.clone(), vec![BlockReason::NoAcceptance]));
    let [Remedy::Attest { template_id, required_fields, .. }, ..] = &required.remedies[..] else {
        panic!("{:?}", required.remedies)
    };
    assert_eq!(template_id, CUSTOMER_AGREEMENT);
    let names = ["template_id", "contact.first_name", "contact.last_name", "contact.email", "agreed_at"];
    assert_eq!(*required_fields, names);

    let attestation =
        CreateAttestationRequest { template_id: template_id.clone(), ..fixtures::new_attestation(&customer) };
    let attest = |channel, request| async move {
        AttestationServiceClient::new(channel).create_attestation(request).await
    };
    let attested = agreements.call(by(&caller), attestation, attest).await.unwrap().attestation.unwrap();
    let placed = orders.call(by(&caller), wanted.clone(), create).await.unwrap().order.unwrap();
    let evidence = placed.gate.unwrap().evidence.unwrap();
    assert_eq!(evidence.acceptance_id, attested.attestation_id);
    let again = orders.call(by(&caller), wanted, create).await.unwrap().order.unwrap();
    assert_eq!(again.order_id, placed.order_id);

    // What a withdrawal leaves is named with the next refusal.
    actions::withdraw(&direct, &attested.attestation_id).await.unwrap();
    let more = fixtures::new_order(&customer, None, OFFICE, 5);
    let refused = orders.call(by(&caller), more, create).await.unwrap_err();
    let required = AgreementRequired::of(&refused).unwrap();
    assert_eq!(required.reasons, [BlockReason::Withdrawn]);
    let [considered] = &required.considered[..] else { panic!("{:?}", required.considered) };
    let acceptance = considered.acceptance.as_ref().unwrap();
    assert_eq!(acceptance.kind(), AcceptanceKind::Attestation);
    assert_eq!(acceptance.acceptance_id, attested.attestation_id);
    assert_eq!(considered.reason(), BlockReason::Withdrawn);
    assert!(considered.agreed_at.is_some() && considered.withdrawn_at.is_some());

    let service = cluster.as_caller(fixtures::service());
    let mut watch = orders.watch(Cursor::default(), move |channel, request| {
        let mut events = OrderEventServiceClient::with_interceptor(channel, service.identity.clone());
        async move { events.watch_events(request).await }
    });
    let (events, _) = follow(&mut watch, 2).await;
    let [first, second] = &events[..] else { panic!("{events:?}") };
    assert!(matches!(first.change, Some(order::event::Change::OrderPlaced(_))), "{first:?}");
    assert_eq!([&first.order_id, &second.order_id], [&placed.order_id, &placed.order_id]);
}

#[apply(each_backend)]
async fn a_watcher_survives_a_restart_of_agreement_svc(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("an agreement-svc to restart");
    let (mut cluster, direct) = actions::start_with_partners(backend).await;
    actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let head = cluster.head().await.unwrap();
    let mut watch = watch_agreements(&cluster, Cursor::default());
    let (before, _) = follow(&mut watch, head).await;

    cluster.stop_agreements();
    let interrupted = async {
        loop {
            match watch.next().await {
                // It may have been on its way before the stop.
                Ok(Item::Checkpoint(_)) => {}
                other => return other,
            }
        }
    };
    let interrupted = timeout(LONG, interrupted).await.unwrap();
    assert!(matches!(interrupted, Err(WatchError::Unavailable(_))), "{interrupted:?}");
    cluster.restart_agreements().await.unwrap();
    actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    let last = cluster.head().await.unwrap();
    let (after, _) = follow(&mut watch, last).await;
    let revisions: Vec<_> = before.iter().chain(&after).map(|event| event.revision).collect();
    assert_eq!(revisions, (1..=last).collect::<Vec<_>>(), "each once, in order");

    // A cursor that is no part of the history is the operator's matter, by its reason.
    let hash = Some(after[0].hash.clone());
    for (cursor, expected) in [
        (Cursor { revision: last + 1, hash: None }, ErrorReason::CursorAhead),
        (Cursor { revision: last, hash: Some("0".repeat(64)) }, ErrorReason::HistoryForked),
        (Cursor { revision: before.len().try_into().unwrap(), hash }, ErrorReason::HistoryForked),
    ] {
        let why = watch_agreements(&cluster, cursor).next().await.unwrap_err();
        let WatchError::OtherHistory(status) = &why else { panic!("{why:?}") };
        assert_eq!(Refusal::of(status).unwrap().reason, expected);
    }

    // An identity that is not let in is not waited for.
    let [agreements, _] = clients(&direct);
    let identity = direct.identity.clone();
    let mut refused: Watch<agreement::WatchEventsResponse> =
        agreements.watch(Cursor::default(), move |channel, request| {
            let mut events = EventServiceClient::with_interceptor(channel, identity.clone());
            async move { events.watch_events(request).await }
        });
    let why = refused.next().await.unwrap_err();
    assert!(
        matches!(&why, WatchError::Refused(status) if status.code() == Code::PermissionDenied),
        "{why:?}"
    );
}
