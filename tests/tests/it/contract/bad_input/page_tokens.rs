//! Page tokens: each serves only the caller and the filter that it was made for.

mod agreement;
mod order;

use std::collections::BTreeSet;

use chassis::auth::Caller;
use proto::agreement::{ListNotificationsRequest, NotificationState};
use proto::order::ListSubscriptionsRequest;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, DIRECT, PROVIDER};
use tests::{As, Cluster, Setup, actions, reason_of};

use tonic::Status;
use uuid::Uuid;

use crate::contract::access::contract;

use super::existing::*;

/// The calls with a page token that have a test of their own, and why.
const TRIED_ELSEWHERE: [(&str, &str); 3] = [
    ("ListBlockedCustomers", "its tokens hold the time of the first page, too: gate/blocked/lists.rs"),
    (
        "PreviewWithdrawal",
        "it asks about a withdrawal with three parties: subscriptions/withdrawals/previews.rs",
    ),
    ("ListNotifications", "mails wait only where none can be sent: the test after this one"),
];

/// The call with how the request differs from that of the first page, or `same`, and what it was answered.
type Answers = Vec<(&'static str, Result<(), Status>)>;

struct Callers {
    direct: As,
    provider: As,
    operator: As,
    /// Another operator.
    other: As,
}

/// The calls whose request has a page token, but for those that are tried elsewhere.
fn calls_to_try() -> BTreeSet<&'static str> {
    let contract = contract();
    let mut paged = BTreeSet::new();
    for file in contract.file.iter().filter(|file| file.package().starts_with("csp.")) {
        let has_page_token = |request: &str| {
            let named =
                file.message_type.iter().find(|m| request == format!(".{}.{}", file.package(), m.name()));
            named.is_some_and(|message| message.field.iter().any(|field| field.name() == "page_token"))
        };
        for service in &file.service {
            for method in service.method.iter().filter(|method| has_page_token(method.input_type())) {
                paged.insert(path(&format!("{}.{}/{}", file.package(), service.name(), method.name())));
            }
        }
    }
    for (call, why) in TRIED_ELSEWHERE {
        assert!(paged.remove(path(call)), "{call} has no page token: {why}");
    }
    paged
}

/// That each token served where nothing else was asked, and nowhere else. Returns the calls that were tried in both ways.
fn assert_bound(answers: Answers) -> BTreeSet<&'static str> {
    let (mut served, mut refused_by) = (BTreeSet::new(), BTreeSet::new());
    for (about, answer) in answers {
        let (call, how) = about.split_once(", ").unwrap();
        if how == "same" {
            assert!(answer.is_ok(), "{about}: {answer:?}");
            served.insert(path(call));
        } else {
            let Err(refused) = answer else { panic!("{about}: served") };
            assert_eq!(reason_of(&refused), "INVALID_FIELDS", "{about}: {refused}");
            assert_eq!(bad_fields_of(&refused), ["page_token"], "{about}");
            refused_by.insert(path(call));
        }
    }
    served.intersection(&refused_by).copied().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_token_serves_only_its_caller_and_filter() {
    let existing = Existing::new().await;
    let other_operator = Caller { tenant_id: Uuid::from_u128(0xa1), ..fixtures::operator() };
    let by = Callers {
        direct: existing.cluster.as_caller(existing.direct.clone()),
        provider: existing.cluster.as_caller(fixtures::sales(PROVIDER)),
        operator: existing.cluster.as_caller(existing.operator.clone()),
        other: existing.cluster.as_caller(other_operator),
    };
    let mut answers = agreement::partners_and_customers(&existing, &by).await;
    answers.extend(agreement::documents(&by).await);
    answers.extend(agreement::relationships(&existing, &by).await);
    answers.extend(agreement::attestations(&existing, &by).await);
    answers.extend(agreement::invitations(&existing, &by).await);
    answers.extend(agreement::events(&existing, &by).await);
    answers.extend(order::events(&existing, &by).await);
    answers.extend(order::offers_and_orders(&existing, &by).await);
    answers.extend(order::subscriptions(&existing, &by).await);
    // These add to what exists.
    answers.extend(agreement::signatures(&existing, &by).await);
    answers.extend(agreement::proposals(&existing, &by).await);
    answers.extend(order::withdrawal_reports(&existing, &by).await);
    assert_eq!(assert_bound(answers), calls_to_try());
}

/// The mails of all partners, which only operators list.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_token_of_mails_serves_only_its_operator_and_state() {
    tests::needs_own!("a mail server that is not there");
    // No server listens there, so that the mails stay queued.
    let setup = Setup { smtp: Some("smtp://127.0.0.1:1?tls=none".into()), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    for name in ["Contoso", "Fabrikam"] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        actions::attest_now(&direct, &customer).await.unwrap();
    }
    let mails = |page_token: &str| ListNotificationsRequest {
        state: NotificationState::Queued.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = cluster.as_caller(fixtures::operator()).attestations();
    let token = calls.list_notifications(mails("")).await.unwrap().into_inner().next_page_token;
    let dead = ListNotificationsRequest { state: NotificationState::DeadLetter.into(), ..mails(&token) };
    let other_operator = Caller { tenant_id: Uuid::from_u128(0xa1), ..fixtures::operator() };
    let mut others = cluster.as_caller(other_operator).attestations();
    let answers = vec![
        ("ListNotifications, same", calls.list_notifications(mails(&token)).await.map(drop)),
        ("ListNotifications, state", calls.list_notifications(dead).await.map(drop)),
        ("ListNotifications, other operator", others.list_notifications(mails(&token)).await.map(drop)),
    ];
    assert_eq!(assert_bound(answers), BTreeSet::from([path("ListNotifications")]));
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
