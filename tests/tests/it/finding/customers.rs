//! Customers and partners by what people know of them; a filter shows nothing that the list without it does not.

use proto::agreement::{
    CreateCustomerRequest, EndRelationshipRequest, ListCustomersRequest, ListPartnersRequest, PartnerKind,
    UpdateCustomerRequest,
};
use rstest_reuse::apply;
use tests::fixtures::{self, DIRECT, PROVIDER, RESELLER, new_customer};
use tests::{As, Backend, actions};

use crate::each_backend;

/// The company names that a list shows, page by page.
async fn names(caller: &As, filter: ListCustomersRequest) -> Vec<String> {
    let mut names = vec![];
    let mut request = ListCustomersRequest { page_size: 2, ..filter };
    loop {
        let page = caller.customers().list_customers(request.clone()).await.unwrap().into_inner();
        names.extend(page.customers.into_iter().map(|customer| customer.company_name));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return names;
        }
    }
}

fn named(prefix: &str) -> ListCustomersRequest {
    ListCustomersRequest { company_name_prefix: prefix.into(), ..Default::default() }
}

fn at(domain: &str) -> ListCustomersRequest {
    ListCustomersRequest { domain: domain.into(), ..Default::default() }
}

fn through(reseller: &str) -> ListCustomersRequest {
    ListCustomersRequest { reseller_id: reseller.into(), ..Default::default() }
}

async fn create(caller: &As, name: &str, n: u32, resold: bool) -> String {
    let request = CreateCustomerRequest {
        domain: format!("company-{n}.example"),
        reseller_id: if resold { RESELLER.to_string() } else { String::new() },
        ..new_customer(name, "FR", None)
    };
    let created = caller.customers().create_customer(request).await.unwrap().into_inner();
    created.customer.unwrap().customer_id
}

/// ROLE-8.
#[apply(each_backend)]
async fn customers_are_found_by_domain_name_and_reseller(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let companies = ["Écoles du Lac", "contoso B", "CONTOSO A", "Contoso A", "Con", "Northwind", "écoles 2"];
    for (n, name) in (1..).zip(companies) {
        create(&direct, name, n, false).await;
    }
    create(&provider, "Contoso Resold", 20, true).await;
    let own = create(&provider, "Contoso Own", 21, false).await;

    // In the order of names in any case; equal names in the order of ids, over the pages' ends.
    let found = names(&direct, named("cOnToSo")).await;
    assert_eq!(found, ["CONTOSO A", "Contoso A", "contoso B"]);
    assert_eq!(names(&direct, named("con")).await.len(), 4);
    assert_eq!(names(&direct, named("ÉCO")).await, ["écoles 2", "Écoles du Lac"]);
    assert!(names(&direct, named("Contoso Z")).await.is_empty());
    assert_eq!(names(&direct, ListCustomersRequest::default()).await.len(), companies.len());

    assert_eq!(names(&direct, at("COMPANY-6.example")).await, ["Northwind"]);
    assert!(names(&direct, at("company-66.example")).await.is_empty());
    let both = ListCustomersRequest { domain: "company-6.example".into(), ..named("Con") };
    assert!(names(&direct, both).await.is_empty());

    // What another partner has is not there.
    assert!(names(&direct, at("company-20.example")).await.is_empty());
    assert!(names(&direct, through(&RESELLER.to_string())).await.is_empty());
    assert_eq!(names(&provider, named("contoso")).await, ["Contoso Own", "Contoso Resold"]);
    assert_eq!(names(&provider, through(&RESELLER.to_string())).await, ["Contoso Resold"]);
    assert_eq!(names(&reseller, named("contoso")).await, ["Contoso Resold"]);
    let operator = cluster.as_caller(fixtures::operator());
    assert_eq!(names(&operator, through(&RESELLER.to_string())).await, ["Contoso Resold"]);
    assert_eq!(names(&operator, at("company-6.example")).await, ["Northwind"]);
    let admin = cluster.as_caller(fixtures::admin(own.parse().unwrap()));
    assert_eq!(names(&admin, named("contoso")).await, ["Contoso Own"]);
    assert!(names(&admin, at("company-6.example")).await.is_empty());

    // A new name is found at once, the old one no more; who has parted finds nothing.
    let seen = provider.customers().list_customers(at("company-21.example")).await.unwrap().into_inner();
    let update = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: own.clone(),
        etag: seen.customers[0].etag.clone(),
        company_name: "Litware".into(),
        primary_contact: Some(fixtures::contact()),
        ..Default::default()
    };
    provider.customers().update_customer(update).await.unwrap();
    assert_eq!(names(&provider, named("contoso")).await, ["Contoso Resold"]);
    assert_eq!(names(&provider, named("lit")).await, ["Litware"]);
    let end =
        EndRelationshipRequest { request_id: fixtures::request_id(), customer_id: own, ..Default::default() };
    provider.customers().end_relationship(end).await.unwrap();
    assert!(names(&provider, named("lit")).await.is_empty());
    assert!(names(&provider, at("company-21.example")).await.is_empty());
}

/// Rows of older versions have no key of their name, or an old one; the service gives them one.
#[apply(each_backend)]
async fn customers_of_older_versions_are_found_by_name(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("a database to write to");
    let (mut cluster, direct) = actions::start_with_partners(backend).await;
    for (n, name) in [(1, "Contoso"), (2, "Northwind")] {
        create(&direct, name, n, false).await;
    }
    cluster.stop_agreements();
    let old = "UPDATE customer SET name_key = NULL, name_revision = -1 WHERE company_name = 'Contoso';
         UPDATE customer SET company_name = 'Contoso Two', revision = revision + 1 WHERE company_name = 'Northwind'";
    cluster.agreements_sql(old).unwrap();
    cluster.restart_agreements().await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    tests::assert::eventually("both have their key", async || {
        (names(&direct, named("contoso")).await == ["Contoso", "Contoso Two"]).then_some(())
    })
    .await;
    assert!(names(&direct, named("northwind")).await.is_empty());
}

#[apply(each_backend)]
async fn partners_are_found_by_kind(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, _) = actions::start_with_partners(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    for (kind, own) in [
        (PartnerKind::DirectBill, DIRECT),
        (PartnerKind::IndirectProvider, PROVIDER),
        (PartnerKind::IndirectReseller, RESELLER),
    ] {
        let mut request = ListPartnersRequest { kind: kind.into(), ..Default::default() };
        let mut found = vec![];
        loop {
            let page = operator.partners().list_partners(request.clone()).await.unwrap().into_inner();
            assert!(page.partners.iter().all(|partner| partner.kind() == kind), "{kind:?}");
            found.extend(page.partners.into_iter().map(|partner| partner.partner_id));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert!(found.contains(&own.to_string()), "{kind:?}: {found:?}");
    }
}
