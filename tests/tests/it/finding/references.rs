//! CUS-6: partners' external references for customers, each for itself.

use futures_util::stream;
use proto::agreement::{
    CreateCustomerRequest, Customer, EndRelationshipRequest, GetCustomerRequest, ImportCustomersRequest,
    ImportOutcome, ListCustomersRequest, ListEventsRequest, UpdateCustomerRequest,
};
use proto::types::ErrorReason;
use rstest_reuse::apply;
use tests::fixtures::{self, PROVIDER, RESELLER, new_customer};
use tests::imports::with_room;
use tests::{As, Backend, actions};
use uuid::Uuid;

use crate::each_backend;

async fn read(caller: &As, customer_id: &str) -> Customer {
    let request = GetCustomerRequest { customer_id: customer_id.into() };
    caller.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap()
}

/// The customers for which a caller has a reference, page by page.
async fn numbered(caller: &As, reference: &str) -> Vec<String> {
    let mut request =
        ListCustomersRequest { external_reference: reference.into(), page_size: 2, ..Default::default() };
    let mut found = vec![];
    loop {
        let page = caller.customers().list_customers(request.clone()).await.unwrap().into_inner();
        assert!(page.customers.iter().all(|customer| customer.external_reference == reference));
        found.extend(page.customers.into_iter().map(|customer| customer.customer_id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return found;
        }
    }
}

async fn set(caller: &As, customer: &Customer, reference: Option<&str>) -> Customer {
    let request = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.customer_id.clone(),
        etag: customer.etag.clone(),
        company_name: customer.company_name.clone(),
        primary_contact: customer.primary_contact.clone(),
        external_reference: reference.map(str::to_owned),
        ..UpdateCustomerRequest::default()
    };
    caller.customers().update_customer(request).await.unwrap().into_inner().customer.unwrap()
}

#[apply(each_backend)]
async fn each_partner_has_external_references_of_its_own_for_customers(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, _) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let mut ids = vec![];
    for n in 1..=3 {
        let request = CreateCustomerRequest {
            reseller_id: RESELLER.to_string(),
            external_reference: if n < 3 { "C 1" } else { "C 10" }.into(),
            ..new_customer(&format!("Numbered {n}"), "FR", None)
        };
        let created = provider.customers().create_customer(request).await.unwrap().into_inner();
        ids.push(created.customer.unwrap().customer_id);
    }
    let (first, pair) = (ids[0].as_str(), &ids[..2]);
    assert_eq!(numbered(&provider, "C 1").await, pair);
    assert_eq!(numbered(&reseller, "C 1").await, [""; 0]);
    let admin = cluster.as_caller(fixtures::admin(first.parse().unwrap()));
    let events = async || {
        let list = ListEventsRequest { customer_id: first.into(), page_size: 500, ..Default::default() };
        admin.events().list_events(list).await.unwrap().into_inner().events.len()
    };
    let happened = events().await;

    // The reseller's number stands beside the provider's, and no one else sees either; the customer's own data stay.
    let before = read(&reseller, first).await;
    let after = set(&reseller, &before, Some("R 9")).await;
    assert_eq!(after, Customer { external_reference: "R 9".into(), ..before });
    assert_eq!(events().await, happened);
    let operator = cluster.as_caller(fixtures::operator());
    for (caller, seen) in [(&provider, "C 1"), (&reseller, "R 9"), (&operator, ""), (&admin, "")] {
        assert_eq!(read(caller, first).await.external_reference, seen);
    }
    assert_eq!(numbered(&reseller, "R 9").await, [first]);
    assert_eq!(numbered(&provider, "R 9").await, [""; 0]);
    assert_eq!(numbered(&provider, "C 1").await, pair);

    // A change that names none leaves it, an empty one removes it.
    assert_eq!(set(&provider, &read(&provider, first).await, None).await.external_reference, "C 1");
    assert_eq!(set(&provider, &read(&provider, first).await, Some("")).await.external_reference, "");
    assert_eq!(numbered(&provider, "C 1").await, pair[1..]);
    assert_eq!(numbered(&reseller, "R 9").await, [first]);

    // Who has parted finds nothing by it.
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: first.into(),
        provider_id: PROVIDER.to_string(),
        ..EndRelationshipRequest::default()
    };
    reseller.customers().end_relationship(end).await.unwrap();
    assert_eq!(numbered(&reseller, "R 9").await, [""; 0]);
}

/// CUS-4: a row brings a reference where there is none yet, and never takes another one's place.
#[apply(each_backend)]
async fn an_import_brings_numbers_and_replaces_none(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let import = async |tenant: u128, reference: &str| {
        let new = new_customer(&format!("Imported {tenant}"), "FR", None);
        let row = ImportCustomersRequest {
            request_id: fixtures::request_id(),
            customer_id: Uuid::from_u128(0x4000_8000_0000_0e01_0000 + tenant).to_string(),
            company_name: new.company_name,
            domain: new.domain,
            country: new.country,
            primary_contact: new.primary_contact,
            external_reference: reference.into(),
            ..ImportCustomersRequest::default()
        };
        let customer_id = row.customer_id.clone();
        let begin = async || direct.customers().import_customers(stream::iter([row.clone()])).await;
        let answer = with_room(begin).await.unwrap().into_inner().message().await.unwrap().unwrap();
        let reason = answer.refusal.as_ref().map_or(ErrorReason::Unspecified, proto::types::Refusal::reason);
        (answer.outcome(), reason, read(&direct, &customer_id).await.external_reference)
    };
    let (fine, exists) = (ErrorReason::Unspecified, ErrorReason::CustomerExists);
    for (tenant, reference, expected) in [
        (1, "D 1", (ImportOutcome::Stored, fine, "D 1")),
        (1, "D 1", (ImportOutcome::Duplicate, fine, "D 1")),
        (1, "", (ImportOutcome::Duplicate, fine, "D 1")),
        (1, "D 2", (ImportOutcome::Refused, exists, "D 1")),
        (2, "", (ImportOutcome::Stored, fine, "")),
        (2, "D 2", (ImportOutcome::Duplicate, fine, "D 2")),
    ] {
        let (outcome, reason, kept) = import(tenant, reference).await;
        assert_eq!((outcome, reason, kept.as_str()), expected, "{tenant} {reference}");
    }
    assert_eq!(numbered(&direct, "D 2").await.len(), 1);
}
