//! What happens to orders and subscriptions, as their events tell it, and who sees which.

use proto::agreement::EndRelationshipRequest;
use proto::order::event::Change;
use proto::order::{
    CancelSubscriptionRequest, ChangeSeatsRequest, Event, RenewSubscriptionRequest,
    ResumeSubscriptionRequest, SetAutoRenewRequest, Subscription, SubscriptionChanged,
    SuspendSubscriptionRequest,
};
use rstest_reuse::apply;
use tests::Backend;
use tests::actions::{self, changes_of, get_subscription as read};
use tests::assert::refusal;
use tests::fixtures::{self, DIRECT, PROVIDER, RESELLER};
use tonic::Code;

use super::{history, history_from, history_of, kinds, watch};
use crate::each_backend;

/// Sends a change with the subscription's present etag, as a partner.
macro_rules! change {
    ($by:ident.$method:ident($of:expr, $request:ident { $($field:ident: $value:expr),* })) => {{
        let now = read(&$by, &$of.subscription_id).await.unwrap();
        let request = $request {
            request_id: fixtures::request_id(),
            subscription_id: now.subscription_id,
            etag: now.etag,
            $($field: $value,)*
            ..$request::default()
        };
        $by.subscriptions().$method(request).await.unwrap();
    }};
}

fn changed(event: &Event) -> &SubscriptionChanged {
    match event.change.as_ref().unwrap() {
        Change::SubscriptionChanged(changed) => changed,
        other => panic!("{other:?}"),
    }
}

#[apply(each_backend)]
async fn every_change_is_an_event_in_its_order(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attestation = actions::attest_now(&direct, &customer).await.unwrap();
    let order = fixtures::new_order(&customer, None, fixtures::OFFICE, 5);
    let mut lines = [order.lines.clone(), order.lines.clone()].concat();
    lines[0].friendly_name = "ENTERED name".into();
    let order =
        proto::order::CreateOrderRequest { lines, external_reference: "ENTERED reference".into(), ..order };
    let placed = actions::place(&direct, order).await.unwrap();
    let [first, second]: [Subscription; 2] = placed.subscriptions.try_into().unwrap();
    assert_eq!(first.friendly_name, "ENTERED name");

    change!(direct.change_seats(first, ChangeSeatsRequest { quantity: 7 }));
    change!(direct.renew_subscription(first, RenewSubscriptionRequest {}));
    change!(direct.set_auto_renew(first, SetAutoRenewRequest { auto_renew: false }));
    change!(direct.set_auto_renew(first, SetAutoRenewRequest { auto_renew: true }));
    change!(direct.suspend_subscription(first, SuspendSubscriptionRequest {}));
    change!(direct.resume_subscription(first, ResumeSubscriptionRequest {}));
    change!(direct.cancel_subscription(second, CancelSubscriptionRequest {}));
    let withdrawn = actions::withdraw(&direct, &attestation).await.unwrap();

    let events = history_of(&direct, &customer, 11).await;
    assert_eq!(
        kinds(&events),
        [
            "PLACED",
            "CREATED",
            "CREATED",
            "SEATS_CHANGED",
            "RENEWED",
            "AUTO_RENEW_OFF",
            "AUTO_RENEW_ON",
            "SUSPENDED",
            "RESUMED",
            "CANCELLED",
            "CANCELLED"
        ]
    );
    assert!(events.is_sorted_by(|a, b| a.revision < b.revision));
    let order = placed.order.unwrap();
    assert_eq!(order.external_reference, "ENTERED reference");
    for event in &events {
        let known = (event.customer_id.as_str(), event.payer_id.as_str(), event.order_id.as_str());
        assert_eq!(known, (customer.as_str(), DIRECT.to_string().as_str(), order.order_id.as_str()));
    }
    let Some(Change::OrderPlaced(placing)) = &events[0].change else { panic!("{:?}", events[0]) };
    assert_eq!((placing.placed_at, &placing.placed_by), (order.placed_at, &order.placed_by));
    let lines: Vec<_> = placing.lines.iter().map(|line| (&line.subscription_id, line.quantity)).collect();
    assert_eq!(lines, [(&first.subscription_id, 5), (&second.subscription_id, 5)]);
    // The changes are those that the subscription lists.
    let of_first = events[1..].iter().map(changed).filter(|of| of.subscription_id == first.subscription_id);
    let of_first: Vec<_> = of_first.map(|of| of.change.clone().unwrap()).collect();
    assert_eq!(of_first, changes_of(&direct, &first.subscription_id).await.unwrap());
    assert_eq!(of_first.last().unwrap().event_revision, withdrawn);
    // The term that was paid for ends with each event.
    let renewed = read(&direct, &first.subscription_id).await.unwrap();
    assert_eq!(
        (changed(&events[3]).term_end, changed(&events[4]).term_end),
        (first.term_end, renewed.term_end)
    );

    let operator = cluster.as_caller(fixtures::operator());
    let service = cluster.as_caller(fixtures::service());
    assert_eq!(history(&operator, &customer).await, events);
    let reversed: Vec<_> = events.iter().rev().cloned().collect();
    for viewer in [&direct, &operator] {
        assert_eq!(history_from(viewer, &customer, true).await, reversed);
    }
    assert_eq!(history(&service, &customer).await, events);
    for event in &events {
        let text = format!("{event:?}").to_lowercase();
        assert!(!text.contains("tania") && !text.contains("carr") && !text.contains('@'), "{text}");
        // What a user calls the subscription and the order is not recorded either.
        assert!(!text.contains("entered"), "{text}");
    }
}

/// ROLE-6: a partner sees the events of the orders and subscriptions that it sees, and a watcher is no partner.
#[apply(each_backend)]
async fn a_partner_sees_the_events_of_its_orders(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let [provider, reseller] = [PROVIDER, RESELLER].map(|of| cluster.as_caller(fixtures::sales(of)));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    actions::attest_now(&provider, &customer).await.unwrap();
    let bought = actions::subscribe(&reseller, &customer, Some(PROVIDER)).await.unwrap();
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.clone(),
        reseller_id: RESELLER.to_string(),
        ..EndRelationshipRequest::default()
    };
    provider.customers().end_relationship(end).await.unwrap();
    let events = history_of(&provider, &customer, 3).await;
    assert_eq!(kinds(&events), ["PLACED", "CREATED", "AUTO_RENEW_OFF"]);
    assert_eq!(history(&reseller, &customer).await, events);
    assert_eq!(history(&direct, &customer).await, []);

    // Without a reseller on record it sees the order that it placed, and no change.
    let request = proto::order::AssignResellerRequest {
        request_id: fixtures::request_id(),
        subscription_id: bought.subscription_id.clone(),
        etag: read(&provider, &bought.subscription_id).await.unwrap().etag,
        ..proto::order::AssignResellerRequest::default()
    };
    provider.subscriptions().assign_reseller(request).await.unwrap();
    assert_eq!(kinds(&history_of(&provider, &customer, 4).await).last(), Some(&"RESELLER_ASSIGNED"));
    assert_eq!(kinds(&history(&reseller, &customer).await), ["PLACED"]);

    let refused = watch(&provider, 0).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::PermissionDenied, "ROLE_NOT_ALLOWED".into()));
}

/// Services that bill and provision read what the events name.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_service_reads_orders_and_subscriptions() {
    let (cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    let bought = actions::subscribe(&direct, &customer, None).await.unwrap();
    let service = cluster.as_caller(fixtures::service());
    assert_eq!(read(&service, &bought.subscription_id).await.unwrap(), bought);
    assert_eq!(
        changes_of(&service, &bought.subscription_id).await.unwrap(),
        changes_of(&direct, &bought.subscription_id).await.unwrap()
    );
    assert_eq!(
        actions::orders_of(&service, &customer).await.unwrap(),
        actions::orders_of(&direct, &customer).await.unwrap()
    );
}
