//! Orders and subscriptions by offer, time and state, and what a customer's administrator sees of them.

use chassis::form::timestamp;
use chrono::TimeDelta;
use proto::order::{
    CancelSubscriptionRequest, CreateOrderRequest, GetSubscriptionRequest, GetWithdrawalReportRequest,
    ListOrdersRequest, ListSubscriptionChangesRequest, ListSubscriptionsRequest,
    ListWithdrawalReportsRequest, SubscriptionState,
};
use rstest_reuse::apply;
use tests::assert::{eventually, refused};
use tests::fixtures::{self, AZURE_PLAN, OFFICE, PROVIDER, RESELLER, new_order};
use tests::{As, Backend, actions};
use tonic::Code;

use crate::each_backend;

async fn orders(caller: &As, filter: ListOrdersRequest) -> Vec<String> {
    let mut ids = vec![];
    let mut request = ListOrdersRequest { page_size: 2, ..filter };
    loop {
        let page = caller.orders().list_orders(request.clone()).await.unwrap().into_inner();
        ids.extend(page.orders.into_iter().map(|order| order.order_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return ids;
        }
    }
}

async fn subscriptions(caller: &As, filter: ListSubscriptionsRequest) -> Vec<String> {
    let mut ids = vec![];
    let mut request = ListSubscriptionsRequest { page_size: 2, ..filter };
    loop {
        let page = caller.subscriptions().list_subscriptions(request.clone()).await.unwrap().into_inner();
        ids.extend(page.subscriptions.into_iter().map(|subscription| subscription.subscription_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return ids;
        }
    }
}

/// An order of one line, and its subscription.
async fn order(caller: &As, customer_id: &str, offer_id: &str) -> (String, String) {
    let request = new_order(customer_id, None, offer_id, 1);
    let placed = caller.orders().create_order(request).await.unwrap().into_inner();
    (placed.order.unwrap().order_id, placed.subscriptions[0].subscription_id.clone())
}

#[apply(each_backend)]
async fn orders_and_subscriptions_are_found_by_offer_time_and_state(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer_id = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer_id).await.unwrap();
    let mut placed = vec![];
    for offer_id in [OFFICE, AZURE_PLAN, OFFICE, OFFICE, AZURE_PLAN] {
        placed.push(order(&direct, &customer_id, offer_id).await);
    }
    let (ids, of): (Vec<_>, Vec<_>) = placed.into_iter().unzip();
    let of_customer =
        || ListOrdersRequest { customer_id: customer_id.clone(), ..ListOrdersRequest::default() };
    // Within a millisecond the order of ids is any.
    let up = orders(&direct, of_customer()).await;
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    assert_eq!(up, sorted(ids.clone()));
    let down = orders(&direct, ListOrdersRequest { newest_first: true, ..of_customer() }).await;
    assert_eq!(down, up.iter().rev().cloned().collect::<Vec<_>>());
    let of_offer = |offer_id: &str| ListOrdersRequest { offer_id: offer_id.into(), ..of_customer() };
    assert_eq!(orders(&direct, of_offer(AZURE_PLAN)).await, sorted(vec![ids[1].clone(), ids[4].clone()]));
    assert!(orders(&direct, of_offer("NOTHING")).await.is_empty());

    // The first moment is included, the last is not.
    let request = proto::order::GetOrderRequest { order_id: ids[2].clone() };
    let third = direct.orders().get_order(request).await.unwrap().into_inner().order.unwrap().placed_at;
    let from = orders(&direct, ListOrdersRequest { placed_from: third, ..of_customer() }).await;
    let before = orders(&direct, ListOrdersRequest { placed_before: third, ..of_customer() }).await;
    assert!(from.contains(&ids[2]) && !before.contains(&ids[2]), "{from:?} {before:?}");
    assert_eq!(sorted([from, before].concat()), up);
    let hour_ago = Some(timestamp(fixtures::now() - TimeDelta::hours(1)));
    assert!(orders(&direct, ListOrdersRequest { placed_before: hour_ago, ..of_customer() }).await.is_empty());
    let recent = ListOrdersRequest { placed_from: hour_ago, newest_first: true, ..of_customer() };
    assert_eq!(orders(&direct, recent).await, down);

    let cancel = CancelSubscriptionRequest {
        request_id: fixtures::request_id(),
        subscription_id: of[0].clone(),
        etag: "1".into(),
        validate_only: false,
    };
    direct.subscriptions().cancel_subscription(cancel).await.unwrap();
    let of_customer = || ListSubscriptionsRequest { customer_id: customer_id.clone(), ..Default::default() };
    let in_state =
        |state: SubscriptionState| ListSubscriptionsRequest { state: state.into(), ..of_customer() };
    assert_eq!(subscriptions(&direct, in_state(SubscriptionState::Cancelled)).await, [of[0].clone()]);
    assert_eq!(subscriptions(&direct, in_state(SubscriptionState::Active)).await, sorted(of[1..].to_vec()));
    let azure = ListSubscriptionsRequest { offer_id: AZURE_PLAN.into(), ..of_customer() };
    assert_eq!(subscriptions(&direct, azure).await, sorted(vec![of[1].clone(), of[4].clone()]));
    let down = subscriptions(&direct, ListSubscriptionsRequest { newest_first: true, ..of_customer() }).await;
    let mut reversed = sorted(of.clone());
    reversed.reverse();
    assert_eq!(down, reversed);
    let recent = ListSubscriptionsRequest { started_from: hour_ago, ..of_customer() };
    assert_eq!(subscriptions(&direct, recent).await.len(), 5);
    let long_ago = ListSubscriptionsRequest { started_before: hour_ago, ..of_customer() };
    assert!(subscriptions(&direct, long_ago).await.is_empty());
    // What has ended or never ends is not to be renewed.
    let ending = |days| ListSubscriptionsRequest {
        ends_before: Some(timestamp(fixtures::now() + TimeDelta::days(days))),
        ..of_customer()
    };
    let licences = subscriptions(&direct, ending(400)).await;
    assert!(licences.contains(&of[2]) && licences.contains(&of[3]) && !licences.contains(&of[0]));
    assert!(subscriptions(&direct, ending(20)).await.is_empty());

    let request = ListSubscriptionChangesRequest {
        subscription_id: of[0].clone(),
        newest_first: true,
        page_size: 1,
        ..Default::default()
    };
    let first = direct.subscriptions().list_subscription_changes(request.clone()).await.unwrap().into_inner();
    let next = ListSubscriptionChangesRequest { page_token: first.next_page_token, ..request };
    let next = direct.subscriptions().list_subscription_changes(next).await.unwrap().into_inner();
    let numbers =
        [first.changes, next.changes].concat().iter().map(|change| change.number).collect::<Vec<_>>();
    assert_eq!(numbers, [2, 1]);
    assert_eq!(next.next_page_token, "");
    drop(cluster);
}

#[apply(each_backend)]
async fn a_customer_sees_its_subscriptions_and_what_withdrawals_did(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let customer_id = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let other_id = actions::create_customer(&direct, "Northwind", "FR", None).await.unwrap();
    let attested = actions::attest_now(&provider, &customer_id).await.unwrap();
    actions::attest_now(&direct, &other_id).await.unwrap();
    let (_, own) = order(&provider, &customer_id, OFFICE).await;
    let (_, others) = order(&direct, &other_id, OFFICE).await;
    let admin = cluster.as_caller(fixtures::admin(customer_id.parse().unwrap()));
    let other = cluster.as_caller(fixtures::admin(other_id.parse().unwrap()));

    assert_eq!(subscriptions(&admin, ListSubscriptionsRequest::default()).await, std::slice::from_ref(&own));
    let named = |customer_id: &str| ListSubscriptionsRequest {
        customer_id: customer_id.into(),
        ..ListSubscriptionsRequest::default()
    };
    assert_eq!(subscriptions(&admin, named(&customer_id)).await, std::slice::from_ref(&own));
    assert!(subscriptions(&admin, named(&other_id)).await.is_empty());
    let get = |subscription_id: &str| GetSubscriptionRequest { subscription_id: subscription_id.into() };
    admin.subscriptions().get_subscription(get(&own)).await.unwrap();
    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    assert_eq!(refused(admin.subscriptions().get_subscription(get(&others)).await), not_found);

    let revision = actions::withdraw(&provider, &attested).await.unwrap();
    let request = GetWithdrawalReportRequest { revision, ..Default::default() };
    let report = eventually("the withdrawal is applied", async || {
        let read = admin.withdrawals().get_withdrawal_report(request.clone()).await.unwrap().into_inner();
        read.applied.then_some(read)
    })
    .await;
    let effects: Vec<_> = report.effects.iter().map(|effect| effect.subscription_id.clone()).collect();
    assert_eq!(effects, [own]);
    let report = report.report.unwrap();
    assert_eq!((report.cancelled, report.uncovered_partner_ids), (1, vec![PROVIDER.to_string()]));
    assert_eq!(refused(other.withdrawals().get_withdrawal_report(request).await), not_found);
    for (caller, of, count) in
        [(&admin, "", 1), (&admin, customer_id.as_str(), 1), (&admin, &other_id, 0), (&other, "", 0)]
    {
        for newest_first in [false, true] {
            let customer_id = of.to_owned();
            let list = ListWithdrawalReportsRequest { customer_id, newest_first, ..Default::default() };
            let listed = caller.withdrawals().list_withdrawal_reports(list).await.unwrap().into_inner();
            assert_eq!(listed.reports.len(), count, "{of} {newest_first}");
        }
    }
}

/// Each partner has references of its own: what the reseller calls an order is not for the payer, nor for the customer.
#[apply(each_backend)]
async fn only_the_tenant_that_placed_an_order_sees_its_reference(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let operator = cluster.as_caller(fixtures::operator());
    let customer_id = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    actions::attest_now(&provider, &customer_id).await.unwrap();
    // The reference of a test that runs beside this one on a stack is another.
    let reference = format!("PO {}", fixtures::request_id());
    let request = CreateOrderRequest {
        external_reference: reference.clone(),
        ..new_order(&customer_id, Some(PROVIDER), OFFICE, 1)
    };
    let placed = reseller.orders().create_order(request.clone()).await.unwrap().into_inner();
    let placed = placed.order.unwrap();
    assert_eq!(placed.external_reference, reference);
    let again = reseller.orders().create_order(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.order.unwrap(), placed);
    let changed = CreateOrderRequest { external_reference: "PO 8".into(), ..request };
    let refusal = refused(reseller.orders().create_order(changed).await);
    assert_eq!(refusal, (Code::InvalidArgument, "REQUEST_ID_REUSED".into()));

    for (about, caller, is_seen) in
        [("its own", &reseller, true), ("the payer's", &provider, false), ("operator", &operator, true)]
    {
        let request = proto::order::GetOrderRequest { order_id: placed.order_id.clone() };
        let seen = caller.orders().get_order(request).await.unwrap().into_inner().order.unwrap();
        assert_eq!(seen.external_reference == reference, is_seen, "{about}");
        assert_eq!(seen.external_reference.is_empty(), !is_seen, "{about}");
        let filter = ListOrdersRequest { external_reference: reference.clone(), ..Default::default() };
        assert_eq!(orders(caller, filter).await.len(), usize::from(is_seen), "{about}");
    }
    let filter = ListOrdersRequest { external_reference: reference, ..Default::default() };
    assert!(orders(&direct, filter).await.is_empty());
}
