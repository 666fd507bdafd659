//! The lists of order-svc, each asked for its second page in many ways.

use chassis::form::timestamp;
use proto::order::{
    GetWithdrawalReportRequest, ListEventsRequest, ListOffersRequest, ListOrdersRequest,
    ListSubscriptionChangesRequest, ListSubscriptionsRequest, ListWithdrawalReportsRequest,
};
use tests::actions;
use tests::assert::eventually;
use tests::fixtures::{self, OFFICE};

use super::{Answers, Callers, Existing};

/// The events of a customer's orders.
pub(super) async fn events(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, operator, .. } = by;
    let customer = existing.customer.customer_id.clone();
    let mut answers = vec![];
    let events = |customer_id: &str, page_token: &str| ListEventsRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        newest_first: false,
    };
    let mut calls = direct.order_events();
    let token = eventually("events of the orders", async || {
        let mut calls = direct.order_events();
        let page = calls.list_events(events(&customer, "")).await.unwrap().into_inner();
        Some(page.next_page_token).filter(|token| !token.is_empty())
    })
    .await;
    let elsewhere = events(&existing.other_customer, &token);
    answers.push((
        "csp.order.v1.EventService/ListEvents, same",
        calls.list_events(events(&customer, &token)).await.map(drop),
    ));
    answers.push((
        "csp.order.v1.EventService/ListEvents, customer",
        calls.list_events(elsewhere).await.map(drop),
    ));
    let down = ListEventsRequest { newest_first: true, ..events(&customer, &token) };
    answers.push((
        "csp.order.v1.EventService/ListEvents, newest first",
        calls.list_events(down).await.map(drop),
    ));
    answers.push(("csp.order.v1.EventService/ListEvents, operator", {
        operator.order_events().list_events(events(&customer, &token)).await.map(drop)
    }));
    answers
}

/// The offers, and the orders of a customer.
pub(super) async fn offers_and_orders(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, provider, operator, .. } = by;
    let customer = existing.customer.customer_id.clone();
    let time = Some(timestamp(fixtures::now()));
    let mut answers = vec![];
    let offers = |country: &str, page_token: &str| ListOffersRequest {
        country: country.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let token = direct.offers().list_offers(offers("FR", "")).await.unwrap().into_inner().next_page_token;
    answers.push(("ListOffers, same", direct.offers().list_offers(offers("FR", &token)).await.map(drop)));
    answers.push(("ListOffers, country", direct.offers().list_offers(offers("DE", &token)).await.map(drop)));
    answers.push(("ListOffers, everywhere", direct.offers().list_offers(offers("", &token)).await.map(drop)));
    answers
        .push(("ListOffers, provider", provider.offers().list_offers(offers("FR", &token)).await.map(drop)));

    let orders = |customer_id: &str, page_token: &str| ListOrdersRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        ..ListOrdersRequest::default()
    };
    let mut calls = direct.orders();
    let token = calls.list_orders(orders(&customer, "")).await.unwrap().into_inner().next_page_token;
    answers.push(("ListOrders, same", calls.list_orders(orders(&customer, &token)).await.map(drop)));
    let same = orders(&customer, &token);
    for (about, other) in [
        ("ListOrders, newest first", ListOrdersRequest { newest_first: true, ..same.clone() }),
        ("ListOrders, offer", ListOrdersRequest { offer_id: OFFICE.into(), ..same.clone() }),
        ("ListOrders, reference", ListOrdersRequest { external_reference: "7".into(), ..same.clone() }),
        ("ListOrders, from", ListOrdersRequest { placed_from: time, ..same.clone() }),
        ("ListOrders, before", ListOrdersRequest { placed_before: time, ..same.clone() }),
    ] {
        answers.push((about, calls.list_orders(other).await.map(drop)));
    }
    answers.push(("ListOrders, all", calls.list_orders(orders("", &token)).await.map(drop)));
    answers.push(("ListOrders, customer", {
        calls.list_orders(orders(&existing.other_customer, &token)).await.map(drop)
    }));
    answers.push((
        "ListOrders, operator",
        operator.orders().list_orders(orders(&customer, &token)).await.map(drop),
    ));
    let elsewhere = ListSubscriptionsRequest {
        customer_id: customer.clone(),
        page_size: 1,
        page_token: token,
        ..ListSubscriptionsRequest::default()
    };
    answers.push(("ListSubscriptions, orders'", {
        direct.subscriptions().list_subscriptions(elsewhere).await.map(drop)
    }));
    answers
}

/// The subscriptions of a customer, and the changes of one.
pub(super) async fn subscriptions(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, operator, .. } = by;
    let customer = existing.customer.customer_id.clone();
    let time = Some(timestamp(fixtures::now()));
    let mut answers = vec![];
    let subscriptions = |customer_id: &str, page_token: &str| ListSubscriptionsRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        ..ListSubscriptionsRequest::default()
    };
    let mut calls = direct.subscriptions();
    let first = calls.list_subscriptions(subscriptions(&customer, "")).await.unwrap().into_inner();
    let token = first.next_page_token;
    answers.push(("ListSubscriptions, same", {
        calls.list_subscriptions(subscriptions(&customer, &token)).await.map(drop)
    }));
    let same = subscriptions(&customer, &token);
    for (about, other) in [
        ("ListSubscriptions, newest first", ListSubscriptionsRequest { newest_first: true, ..same.clone() }),
        ("ListSubscriptions, state", ListSubscriptionsRequest { state: 1, ..same.clone() }),
        ("ListSubscriptions, offer", ListSubscriptionsRequest { offer_id: OFFICE.into(), ..same.clone() }),
        ("ListSubscriptions, from", ListSubscriptionsRequest { started_from: time, ..same.clone() }),
        ("ListSubscriptions, before", ListSubscriptionsRequest { started_before: time, ..same.clone() }),
        ("ListSubscriptions, ending", ListSubscriptionsRequest { ends_before: time, ..same.clone() }),
        (
            "ListSubscriptions, outdated",
            ListSubscriptionsRequest { acceptance_outdated: true, ..same.clone() },
        ),
    ] {
        answers.push((about, calls.list_subscriptions(other).await.map(drop)));
    }
    answers.push((
        "ListSubscriptions, all",
        calls.list_subscriptions(subscriptions("", &token)).await.map(drop),
    ));
    answers.push(("ListSubscriptions, operator", {
        operator.subscriptions().list_subscriptions(subscriptions(&customer, &token)).await.map(drop)
    }));

    let changes = |subscription_id: &str, page_token: &str| ListSubscriptionChangesRequest {
        subscription_id: subscription_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        newest_first: false,
    };
    let (changed, other) = (&existing.subscription.subscription_id, &first.subscriptions[0].subscription_id);
    let first = calls.list_subscription_changes(changes(changed, "")).await.unwrap().into_inner();
    let token = first.next_page_token;
    answers.push(("ListSubscriptionChanges, same", {
        calls.list_subscription_changes(changes(changed, &token)).await.map(drop)
    }));
    let down = ListSubscriptionChangesRequest { newest_first: true, ..changes(changed, &token) };
    answers.push((
        "ListSubscriptionChanges, newest first",
        calls.list_subscription_changes(down).await.map(drop),
    ));
    answers.push(("ListSubscriptionChanges, subscription", {
        calls.list_subscription_changes(changes(other, &token)).await.map(drop)
    }));
    answers.push(("ListSubscriptionChanges, operator", {
        operator.subscriptions().list_subscription_changes(changes(changed, &token)).await.map(drop)
    }));
    answers
}

/// The reports of withdrawals, and the subscriptions that one of them cancelled.
pub(super) async fn withdrawal_reports(existing: &Existing, by: &Callers) -> Answers {
    let Callers { direct, provider, operator, .. } = by;
    let mut answers = vec![];
    // The first withdrawal cancels two subscriptions, the second none.
    let customer = actions::create_customer(direct, "Adatum", "FR", None).await.unwrap();
    let mut revisions = vec![];
    for bought in [2, 0] {
        let attested = actions::attest_now(direct, &customer).await.unwrap();
        for _ in 0..bought {
            actions::subscribe(direct, &customer, None).await.unwrap();
        }
        revisions.push(actions::withdraw(direct, &attested).await.unwrap());
    }
    let report = |revision: i64, page_token: &str| GetWithdrawalReportRequest {
        revision,
        page_size: 1,
        page_token: page_token.into(),
        wait: true,
    };
    let mut calls = direct.withdrawals();
    let token = eventually("the report of the first withdrawal", async || {
        let mut calls = direct.withdrawals();
        let page = calls.get_withdrawal_report(report(revisions[0], "")).await.unwrap().into_inner();
        Some(page.next_page_token).filter(|token| !token.is_empty())
    })
    .await;
    let same = report(revisions[0], &token);
    let elsewhere = report(revisions[1], &token);
    answers.push(("GetWithdrawalReport, same", calls.get_withdrawal_report(same.clone()).await.map(drop)));
    answers.push(("GetWithdrawalReport, revision", calls.get_withdrawal_report(elsewhere).await.map(drop)));
    for (about, caller) in
        [("GetWithdrawalReport, provider", provider), ("GetWithdrawalReport, operator", operator)]
    {
        answers.push((about, caller.withdrawals().get_withdrawal_report(same.clone()).await.map(drop)));
    }

    let reports = |page_token: &str| ListWithdrawalReportsRequest {
        customer_id: customer.clone(),
        page_size: 1,
        page_token: page_token.into(),
        newest_first: false,
    };
    let token = eventually("reports of both withdrawals", async || {
        let mut calls = direct.withdrawals();
        let page = calls.list_withdrawal_reports(reports("")).await.unwrap().into_inner();
        Some(page.next_page_token).filter(|token| !token.is_empty())
    })
    .await;
    let same = reports(&token);
    for (about, asked) in [
        ("ListWithdrawalReports, same", same.clone()),
        ("ListWithdrawalReports, newest first", {
            ListWithdrawalReportsRequest { newest_first: true, ..same.clone() }
        }),
        ("ListWithdrawalReports, all", {
            ListWithdrawalReportsRequest { customer_id: String::new(), ..same.clone() }
        }),
        ("ListWithdrawalReports, customer", {
            ListWithdrawalReportsRequest { customer_id: existing.other_customer.clone(), ..same.clone() }
        }),
    ] {
        answers.push((about, calls.list_withdrawal_reports(asked).await.map(drop)));
    }
    for (about, caller) in
        [("ListWithdrawalReports, provider", provider), ("ListWithdrawalReports, operator", operator)]
    {
        answers.push((about, caller.withdrawals().list_withdrawal_reports(same.clone()).await.map(drop)));
    }
    answers
}
