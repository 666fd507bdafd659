//! Page tokens: each serves only the caller and the filter that it was made for.

use chassis::auth::Caller;
use chassis::form::timestamp;
use proto::agreement::{
    InvitationState, ListAttestationsRequest, ListCustomerPartnersRequest, ListCustomersRequest,
    ListEventsRequest, ListInvitationsRequest, ListPartnersRequest, PartnerKind,
};
use proto::order::{
    ListOffersRequest, ListOrdersRequest, ListSubscriptionChangesRequest, ListSubscriptionsRequest,
};
use tests::assert::eventually;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, OFFICE, PROVIDER, RESELLER};
use tests::reason_of;

use uuid::Uuid;

use super::existing::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_token_serves_only_its_caller_and_filter() {
    let existing = Existing::new().await;
    let customer = existing.customer.customer_id.clone();
    let other_operator = Caller { tenant_id: Uuid::from_u128(0xa1), ..fixtures::operator() };
    let direct = existing.cluster.as_caller(existing.direct.clone());
    let provider = existing.cluster.as_caller(fixtures::sales(PROVIDER));
    let operator = existing.cluster.as_caller(existing.operator.clone());
    let other = existing.cluster.as_caller(other_operator);
    let mut answers = vec![];

    let partners = |page_token: &str| ListPartnersRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListPartnersRequest::default()
    };
    let token = operator.partners().list_partners(partners("")).await.unwrap().into_inner().next_page_token;
    answers.push(("partners, same", operator.partners().list_partners(partners(&token)).await.map(drop)));
    let providers = ListPartnersRequest { kind: PartnerKind::IndirectProvider.into(), ..partners(&token) };
    answers.push(("partners, kind", operator.partners().list_partners(providers).await.map(drop)));
    answers.push(("partners, other", other.partners().list_partners(partners(&token)).await.map(drop)));

    let customers = |page_token: &str| ListCustomersRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListCustomersRequest::default()
    };
    answers.push(("partners' for customers", {
        operator.customers().list_customers(customers(&token)).await.map(drop)
    }));
    let token = direct.customers().list_customers(customers("")).await.unwrap().into_inner().next_page_token;
    answers.push(("customers, same", direct.customers().list_customers(customers(&token)).await.map(drop)));
    let same = customers(&token);
    for (about, other) in [
        ("customers, domain", ListCustomersRequest { domain: "contoso.example".into(), ..same.clone() }),
        ("customers, name", ListCustomersRequest { company_name_prefix: "c".into(), ..same.clone() }),
        ("customers, reseller", ListCustomersRequest { reseller_id: RESELLER.to_string(), ..same.clone() }),
        ("customers, number", ListCustomersRequest { external_reference: "7".into(), ..same.clone() }),
    ] {
        answers.push((about, direct.customers().list_customers(other).await.map(drop)));
    }
    for (about, caller) in [("customers, provider", &provider), ("customers, operator", &operator)] {
        answers.push((about, caller.customers().list_customers(customers(&token)).await.map(drop)));
    }

    let attestations = |page_token: &str| ListAttestationsRequest {
        customer_id: customer.clone(),
        include_history: true,
        page_size: 1,
        page_token: page_token.into(),
        ..ListAttestationsRequest::default()
    };
    let mut calls = direct.attestations();
    let token = calls.list_attestations(attestations("")).await.unwrap().into_inner().next_page_token;
    let same = attestations(&token);
    let current = ListAttestationsRequest { include_history: false, ..same.clone() };
    let elsewhere = ListAttestationsRequest { customer_id: existing.other_customer.clone(), ..same.clone() };
    let time = Some(timestamp(fixtures::now()));
    for (about, other) in [
        ("attestations, all", ListAttestationsRequest { customer_id: String::new(), ..same.clone() }),
        ("attestations, newest first", ListAttestationsRequest { newest_first: true, ..same.clone() }),
        ("attestations, state", ListAttestationsRequest { state: 1, ..same.clone() }),
        ("attestations, agreed", ListAttestationsRequest { agreed_before: time, ..same.clone() }),
        ("attestations, recorded", ListAttestationsRequest { recorded_before: time, ..same.clone() }),
        ("attestations, template", {
            ListAttestationsRequest { template_id: CUSTOMER_AGREEMENT.into(), ..same.clone() }
        }),
    ] {
        answers.push((about, calls.list_attestations(other).await.map(drop)));
    }
    answers.push(("attestations, same", calls.list_attestations(same.clone()).await.map(drop)));
    answers.push(("attestations, current", calls.list_attestations(current).await.map(drop)));
    answers.push(("attestations, customer", calls.list_attestations(elsewhere).await.map(drop)));
    answers.push(("attestations, operator", {
        operator.attestations().list_attestations(same).await.map(drop)
    }));

    let admin = existing.cluster.as_caller(existing.admin.clone());
    let other_admin = existing.cluster.as_caller(fixtures::admin(existing.other_customer.parse().unwrap()));
    let partners = |page_token: &str| ListCustomerPartnersRequest {
        include_ended: true,
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = admin.customers();
    let token = calls.list_customer_partners(partners("")).await.unwrap().into_inner().next_page_token;
    let active = ListCustomerPartnersRequest { include_ended: false, ..partners(&token) };
    answers.push(("its partners, same", calls.list_customer_partners(partners(&token)).await.map(drop)));
    answers.push(("its partners, active", calls.list_customer_partners(active).await.map(drop)));
    answers.push(("its partners, customer", {
        other_admin.customers().list_customer_partners(partners(&token)).await.map(drop)
    }));

    let invitations = |page_token: &str| ListInvitationsRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListInvitationsRequest::default()
    };
    let mut calls = direct.signatures();
    let token = calls.list_invitations(invitations("")).await.unwrap().into_inner().next_page_token;
    let pending = ListInvitationsRequest { state: InvitationState::Pending.into(), ..invitations(&token) };
    let named = ListInvitationsRequest { customer_id: customer.clone(), ..invitations(&token) };
    let down = ListInvitationsRequest { newest_first: true, ..invitations(&token) };
    answers.push(("invitations, newest first", calls.list_invitations(down).await.map(drop)));
    answers.push(("invitations, same", calls.list_invitations(invitations(&token)).await.map(drop)));
    answers.push(("invitations, pending", calls.list_invitations(pending).await.map(drop)));
    answers.push(("invitations, customer", calls.list_invitations(named).await.map(drop)));
    for (about, caller) in [("invitations, provider", &provider), ("invitations, operator", &operator)] {
        answers.push((about, caller.signatures().list_invitations(invitations(&token)).await.map(drop)));
    }

    let events = |customer_id: &str, page_token: &str| ListEventsRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        newest_first: false,
    };
    let mut calls = direct.events();
    let token = calls.list_events(events(&customer, "")).await.unwrap().into_inner().next_page_token;
    let elsewhere = events(&existing.other_customer, &token);
    answers.push(("events, same", calls.list_events(events(&customer, &token)).await.map(drop)));
    answers.push(("events, customer", calls.list_events(elsewhere).await.map(drop)));
    let down = ListEventsRequest { newest_first: true, ..events(&customer, &token) };
    answers.push(("events, newest first", calls.list_events(down).await.map(drop)));
    for (about, caller) in [("events, provider", &provider), ("events, operator", &operator)] {
        answers.push((about, caller.events().list_events(events(&customer, &token)).await.map(drop)));
    }

    let events = |customer_id: &str, page_token: &str| proto::order::ListEventsRequest {
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
    answers.push(("order events, same", calls.list_events(events(&customer, &token)).await.map(drop)));
    answers.push(("order events, customer", calls.list_events(elsewhere).await.map(drop)));
    let down = proto::order::ListEventsRequest { newest_first: true, ..events(&customer, &token) };
    answers.push(("order events, newest first", calls.list_events(down).await.map(drop)));
    answers.push(("order events, operator", {
        operator.order_events().list_events(events(&customer, &token)).await.map(drop)
    }));

    let offers = |country: &str, page_token: &str| ListOffersRequest {
        country: country.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let token = direct.offers().list_offers(offers("FR", "")).await.unwrap().into_inner().next_page_token;
    answers.push(("offers, same", direct.offers().list_offers(offers("FR", &token)).await.map(drop)));
    answers.push(("offers, country", direct.offers().list_offers(offers("DE", &token)).await.map(drop)));
    answers.push(("offers, everywhere", direct.offers().list_offers(offers("", &token)).await.map(drop)));
    answers.push(("offers, provider", provider.offers().list_offers(offers("FR", &token)).await.map(drop)));

    let orders = |customer_id: &str, page_token: &str| ListOrdersRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        ..ListOrdersRequest::default()
    };
    let mut calls = direct.orders();
    let token = calls.list_orders(orders(&customer, "")).await.unwrap().into_inner().next_page_token;
    answers.push(("orders, same", calls.list_orders(orders(&customer, &token)).await.map(drop)));
    let same = orders(&customer, &token);
    for (about, other) in [
        ("orders, newest first", ListOrdersRequest { newest_first: true, ..same.clone() }),
        ("orders, offer", ListOrdersRequest { offer_id: OFFICE.into(), ..same.clone() }),
        ("orders, reference", ListOrdersRequest { external_reference: "7".into(), ..same.clone() }),
        ("orders, from", ListOrdersRequest { placed_from: time, ..same.clone() }),
        ("orders, before", ListOrdersRequest { placed_before: time, ..same.clone() }),
    ] {
        answers.push((about, calls.list_orders(other).await.map(drop)));
    }
    answers.push(("orders, all", calls.list_orders(orders("", &token)).await.map(drop)));
    answers.push(("orders, customer", {
        calls.list_orders(orders(&existing.other_customer, &token)).await.map(drop)
    }));
    answers
        .push(("orders, operator", operator.orders().list_orders(orders(&customer, &token)).await.map(drop)));

    let subscriptions = |customer_id: &str, page_token: &str| ListSubscriptionsRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
        ..ListSubscriptionsRequest::default()
    };
    let mut calls = direct.subscriptions();
    answers.push(("orders' for subscriptions", {
        calls.list_subscriptions(subscriptions(&customer, &token)).await.map(drop)
    }));
    let first = calls.list_subscriptions(subscriptions(&customer, "")).await.unwrap().into_inner();
    let token = first.next_page_token;
    answers.push(("subscriptions, same", {
        calls.list_subscriptions(subscriptions(&customer, &token)).await.map(drop)
    }));
    let same = subscriptions(&customer, &token);
    for (about, other) in [
        ("subscriptions, newest first", ListSubscriptionsRequest { newest_first: true, ..same.clone() }),
        ("subscriptions, state", ListSubscriptionsRequest { state: 1, ..same.clone() }),
        ("subscriptions, offer", ListSubscriptionsRequest { offer_id: OFFICE.into(), ..same.clone() }),
        ("subscriptions, from", ListSubscriptionsRequest { started_from: time, ..same.clone() }),
        ("subscriptions, before", ListSubscriptionsRequest { started_before: time, ..same.clone() }),
        ("subscriptions, ending", ListSubscriptionsRequest { ends_before: time, ..same.clone() }),
    ] {
        answers.push((about, calls.list_subscriptions(other).await.map(drop)));
    }
    answers.push(("subscriptions, all", calls.list_subscriptions(subscriptions("", &token)).await.map(drop)));
    answers.push(("subscriptions, operator", {
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
    answers.push(("changes, same", {
        calls.list_subscription_changes(changes(changed, &token)).await.map(drop)
    }));
    let down = ListSubscriptionChangesRequest { newest_first: true, ..changes(changed, &token) };
    answers.push(("changes, newest first", calls.list_subscription_changes(down).await.map(drop)));
    answers.push(("changes, subscription", {
        calls.list_subscription_changes(changes(other, &token)).await.map(drop)
    }));
    answers.push(("changes, operator", {
        operator.subscriptions().list_subscription_changes(changes(changed, &token)).await.map(drop)
    }));

    for (about, answer) in answers {
        if about.ends_with(", same") {
            assert!(answer.is_ok(), "{about}: {answer:?}");
        } else {
            let refused = answer.expect_err(about);
            assert_eq!(reason_of(&refused), "INVALID_FIELDS", "{about}: {refused}");
            assert_eq!(bad_fields_of(&refused), ["page_token"], "{about}");
        }
    }
}

/// A token that was altered is refused, and never taken for another position; a restart keeps the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_altered_page_token_is_refused() {
    tests::needs_own!("a service that it restarts");
    let mut existing = Existing::new().await;
    let asked = |page_token: &str| ListSubscriptionsRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListSubscriptionsRequest::default()
    };
    let mut calls = existing.cluster.as_caller(existing.direct.clone()).subscriptions();
    let first = calls.list_subscriptions(asked("")).await.unwrap().into_inner();
    let token = first.next_page_token;
    let second = calls.list_subscriptions(asked(&token)).await.unwrap().into_inner().subscriptions;
    for at in 0..token.len() {
        for letter in ["A", "Q", "g", "w", "7"] {
            let mut altered = token.clone();
            altered.replace_range(at..=at, letter);
            if altered != token {
                let refused = calls.list_subscriptions(asked(&altered)).await.unwrap_err();
                assert_eq!(bad_fields_of(&refused), ["page_token"], "{altered}: {refused}");
            }
        }
    }
    existing.cluster.stop_orders();
    existing.cluster.restart_orders().await.unwrap();
    let mut calls = existing.cluster.as_caller(existing.direct.clone()).subscriptions();
    let again = calls.list_subscriptions(asked(&token)).await.unwrap().into_inner().subscriptions;
    assert_eq!(again, second);
}
