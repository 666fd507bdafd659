//! CUS-1, CUS-4: customers with the ids of their tenants, created one by one and imported.

use futures_util::stream;
use proto::agreement::event::Change;
use proto::agreement::{
    CreateCustomerRequest, GetCustomerRequest, GetDirectSignStatusRequest, ImportCustomersRequest,
    ImportCustomersResponse, ImportOutcome, ListCustomerPartnersRequest, ListEventsRequest,
};
use proto::types::ErrorReason;
use rstest_reuse::apply;
use tests::fixtures::{self, DIRECT, PROVIDER, RESELLER};
use tests::imports::with_room;
use tests::{As, Backend, actions, reason_of};
use tonic::Code;
use uuid::Uuid;

use crate::each_backend;

/// A row whose customer has the id of a tenant, and a domain of its own.
fn row(n: u128) -> ImportCustomersRequest {
    let new = fixtures::new_customer(&format!("Imported {n}"), "FR", None);
    ImportCustomersRequest {
        request_id: Uuid::new_v5(&Uuid::NAMESPACE_OID, &n.to_be_bytes()).to_string(),
        customer_id: tenant(n).to_string(),
        company_name: new.company_name,
        domain: new.domain,
        country: new.country,
        primary_contact: new.primary_contact,
        ..ImportCustomersRequest::default()
    }
}

/// The id of a tenant of the world of the tests.
fn tenant(n: u128) -> Uuid {
    Uuid::from_u128(0x4000_8000_0000_0e00_0000 + n)
}

fn time(text: &str) -> Option<prost_types::Timestamp> {
    Some(text.parse().unwrap())
}

async fn import(partner: &As, rows: &[ImportCustomersRequest]) -> Vec<ImportCustomersResponse> {
    let begin = async || partner.customers().import_customers(stream::iter(rows.to_vec())).await;
    let answers = with_room(begin).await;
    let (mut answers, mut read) = (answers.unwrap().into_inner(), vec![]);
    while let Some(answer) = answers.message().await.unwrap() {
        read.push(answer);
    }
    let numbers: Vec<u64> = read.iter().map(|answer| answer.row).collect();
    assert_eq!(numbers, (1..=rows.len() as u64).collect::<Vec<_>>());
    read
}

fn outcome(answer: &ImportCustomersResponse) -> (ImportOutcome, ErrorReason) {
    let reason = answer.refusal.as_ref().map_or(ErrorReason::Unspecified, proto::types::Refusal::reason);
    (answer.outcome(), reason)
}

/// The first purchases in the history of a customer: when each was made, and whether a partner imported it.
async fn first_purchases(viewer: &As, customer: Uuid) -> Vec<(Option<prost_types::Timestamp>, bool)> {
    let request = ListEventsRequest {
        customer_id: customer.to_string(),
        page_size: 500,
        ..ListEventsRequest::default()
    };
    let events = viewer.events().list_events(request).await.unwrap().into_inner().events;
    let purchases = events.into_iter().filter_map(|event| match event.change {
        Some(Change::FirstPurchaseReported(purchase)) => Some((purchase.purchased_at, purchase.imported)),
        _ => None,
    });
    purchases.collect()
}

/// The customer's own users see the customer that its partner created under the id of its tenant.
#[apply(each_backend)]
async fn a_customer_has_the_id_of_its_tenant(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let new = |id: Uuid, name| CreateCustomerRequest {
        customer_id: id.to_string(),
        ..fixtures::new_customer(name, "FR", None)
    };
    let created = direct.customers().create_customer(new(tenant(1), "Contoso")).await.unwrap();
    let created = created.into_inner().customer.unwrap();
    assert_eq!(created.customer_id, tenant(1).to_string());
    let admin = cluster.as_caller(fixtures::admin(tenant(1)));
    let list = ListCustomerPartnersRequest::default();
    let partners = admin.customers().list_customer_partners(list).await.unwrap().into_inner().relationships;
    assert_eq!(partners.len(), 1);
    assert_eq!(partners[0].partner_id, DIRECT.to_string());

    // Who holds the id is not named, and the id of a partner's tenant is none of a customer's.
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let head = cluster.head().await.unwrap();
    for (id, code, reason) in [
        (tenant(1), Code::AlreadyExists, "CUSTOMER_EXISTS"),
        (DIRECT, Code::FailedPrecondition, "TENANT_OF_OTHER_KIND"),
    ] {
        let refused = provider.customers().create_customer(new(id, "Other")).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), (code, reason));
        assert!(
            !refused.message().contains("Contoso")
                && tests::metadata_of(&refused).is_empty() == (id != DIRECT)
        );
    }
    assert_eq!(cluster.events_after(head).await.unwrap(), []);
}

/// CUS-4, DIR-4.
#[apply(each_backend)]
async fn customers_are_imported_once_with_their_first_purchases(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let mut rows: Vec<_> = (0..300).map(row).collect();
    rows[7].first_purchase_at = time("2021-05-04T12:00:00Z");
    let outcomes = |answers: Vec<ImportCustomersResponse>| answers.iter().map(outcome).collect::<Vec<_>>();
    let all = |outcome| vec![(outcome, ErrorReason::Unspecified); 300];
    // A part of them, as after a stream that was cut; then all of them, twice.
    assert_eq!(outcomes(import(&direct, &rows[..150]).await), all(ImportOutcome::Stored)[..150]);
    let answers = outcomes(import(&direct, &rows).await);
    assert_eq!(answers[..150], all(ImportOutcome::Replayed)[..150]);
    assert_eq!(answers[150..], all(ImportOutcome::Stored)[150..]);
    let head = cluster.head().await.unwrap();
    assert_eq!(outcomes(import(&direct, &rows).await), all(ImportOutcome::Replayed));
    // The same rows under other request ids.
    let anew = |row: &ImportCustomersRequest| ImportCustomersRequest {
        request_id: fixtures::request_id(),
        ..row.clone()
    };
    let again: Vec<_> = rows.iter().map(anew).collect();
    assert_eq!(outcomes(import(&direct, &again).await), all(ImportOutcome::Duplicate));
    assert_eq!(cluster.events_after(head).await.unwrap(), []);

    // Who bought before it ever signed cannot sign.
    let may_sign = async |n| {
        let admin = cluster.as_caller(fixtures::admin(tenant(n)));
        let request = GetDirectSignStatusRequest { customer_id: tenant(n).to_string() };
        let status = admin.signatures().get_direct_sign_status(request).await;
        assert!(status.is_ok(), "{status:?}");
        actions::sign(&admin, 2).await
    };
    let refused = may_sign(7).await.unwrap_err();
    assert_eq!(reason_of(&refused), "CONTACT_PARTNER");
    may_sign(8).await.unwrap();

    // A purchase that becomes known later counts if it is the earliest, whatever the answer says.
    let with = |n: usize, text| ImportCustomersRequest { first_purchase_at: time(text), ..anew(&rows[n]) };
    let later =
        [with(7, "2022-01-01T00:00:00Z"), with(9, "2020-02-03T00:00:00Z"), with(9, "2020-02-04T00:00:00Z")];
    let answers = import(&direct, &later).await;
    assert_eq!(outcomes(answers), all(ImportOutcome::Duplicate)[..3]);
    let first_purchase = async |n| {
        let operator = cluster.as_caller(fixtures::operator());
        let request = GetCustomerRequest { customer_id: tenant(n).to_string() };
        let read = operator.customers().get_customer(request).await.unwrap();
        read.into_inner().customer.unwrap().first_purchase_at
    };
    assert_eq!(first_purchase(7).await, time("2021-05-04T12:00:00Z"));
    assert_eq!(first_purchase(8).await, None);
    assert_eq!(first_purchase(9).await, time("2020-02-03T00:00:00Z"));
    // The history tells what a partner imported from what was bought here.
    actions::attest_now(&direct, &tenant(10).to_string()).await.unwrap();
    let ordered = actions::order(&direct, &tenant(10).to_string(), None, 1).await.unwrap().order.unwrap();
    actions::until_bought(&cluster, &tenant(10).to_string()).await.unwrap();
    for (n, purchases) in [
        (7, vec![(time("2021-05-04T12:00:00Z"), true)]),
        (8, vec![]),
        (9, vec![(time("2020-02-03T00:00:00Z"), true)]),
        (10, vec![(ordered.placed_at, false)]),
    ] {
        let operator = cluster.as_caller(fixtures::operator());
        assert_eq!(first_purchases(&operator, tenant(n)).await, purchases, "of {n}");
    }
    // Partners do not see it, because another partner may have made the purchase.
    let request = GetCustomerRequest { customer_id: tenant(7).to_string() };
    let seen = direct.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap();
    assert_eq!(seen.first_purchase_at, None);
}

/// A refused row leaves nothing, and the rows around it are imported.
#[apply(each_backend)]
async fn a_row_of_a_customer_is_refused_by_itself(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    actions::create_customer(&direct, "Taken", "FR", None).await.unwrap();
    let other = row(2);
    let rows = [
        row(1),
        // The id of the row before, and other data.
        ImportCustomersRequest { customer_id: tenant(1).to_string(), ..other.clone() },
        ImportCustomersRequest { domain: "taken.example".into(), ..row(3) },
        ImportCustomersRequest { domain: row(1).domain, ..row(4) },
        ImportCustomersRequest { customer_id: PROVIDER.to_string(), ..row(5) },
        ImportCustomersRequest { reseller_id: RESELLER.to_string(), ..row(6) },
        ImportCustomersRequest { request_id: fixtures::request_id(), ..other },
    ];
    let expected = [
        (ImportOutcome::Stored, ErrorReason::Unspecified),
        (ImportOutcome::Refused, ErrorReason::CustomerExists),
        (ImportOutcome::Refused, ErrorReason::DomainTaken),
        (ImportOutcome::Refused, ErrorReason::DomainTaken),
        (ImportOutcome::Refused, ErrorReason::TenantOfOtherKind),
        (ImportOutcome::Refused, ErrorReason::InvalidFields),
        (ImportOutcome::Stored, ErrorReason::Unspecified),
    ];
    let answers = import(&direct, &rows).await;
    assert_eq!(answers.iter().map(outcome).collect::<Vec<_>>(), expected);

    // Another partner gets the same refusal for a customer of the first one, even with the same data.
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let foreign = ImportCustomersRequest { request_id: fixtures::request_id(), ..row(1) };
    let answers = import(&provider, &[foreign]).await;
    assert_eq!(outcome(&answers[0]), (ImportOutcome::Refused, ErrorReason::CustomerExists));
    assert_eq!(answers[0].customer_id, "");

    // A reseller imports through its provider, which then attests.
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let resold = ImportCustomersRequest { provider_id: PROVIDER.to_string(), ..row(8) };
    let answers = import(&reseller, &[row(9), resold]).await;
    assert_eq!(outcome(&answers[0]), (ImportOutcome::Refused, ErrorReason::InvalidFields));
    assert_eq!(outcome(&answers[1]), (ImportOutcome::Stored, ErrorReason::Unspecified));
    actions::attest_now(&provider, &answers[1].customer_id).await.unwrap();
    actions::order(&reseller, &answers[1].customer_id, Some(PROVIDER), 2).await.unwrap();
}
