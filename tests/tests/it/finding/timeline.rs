//! What a language picker, a calendar and a list of relationships show.

use std::collections::BTreeSet;

use chassis::form::timestamp;
use chrono::TimeDelta;
use proto::agreement::{
    CreateCustomerRequest, EndRelationshipRequest, GetPolicyRequest, GetPolicyResponse,
    GetRelationshipRequest, ListRelationshipsRequest, ListTemplateDocumentsRequest, PolicyRequirement,
    PublishTemplateVersionRequest, Reacceptance as Reaccepted, RetireTemplateRequest, TemplateDocument,
    publish_template_version_request::Reacceptance,
};
use proto::types::AgreementType;
use rstest_reuse::apply;
use tests::assert::refused;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER, new_customer, new_version};
use tests::{As, Backend, actions};
use tonic::{Code, Status};

use crate::each_backend;

fn document(country: &str, language: &str) -> TemplateDocument {
    TemplateDocument {
        country: country.into(),
        language: language.into(),
        link: format!("https://contoso.example/{country}/{language}"),
        sha256: String::new(),
    }
}

#[apply(each_backend)]
async fn the_documents_of_a_version_are_listed(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let (template, turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    let pairs = [("BE", "fr-BE"), ("BE", "nl-BE"), ("FR", "en-US"), ("FR", "fr-FR"), ("US", "en-US")];
    let version = PublishTemplateVersionRequest {
        documents: pairs.iter().rev().map(|(country, language)| document(country, language)).collect(),
        ..new_version(&template.template_id)
    };
    let operator = cluster.as_caller(fixtures::operator());
    operator.templates().publish_template_version(version).await.unwrap();
    for (version, country, expected) in [
        (0, "", &pairs[..]),
        (2, "", &pairs[..]),
        (1, "", &pairs[4..]),
        (2, "BE", &pairs[..2]),
        (2, "DE", &[]),
    ] {
        let mut listed = vec![];
        let mut request = ListTemplateDocumentsRequest {
            template_id: template.template_id.clone(),
            version,
            country: country.into(),
            page_size: 2,
            page_token: String::new(),
        };
        loop {
            let page =
                direct.templates().list_template_documents(request.clone()).await.unwrap().into_inner();
            assert_eq!(page.version, if version == 0 { 2 } else { version });
            listed.extend(page.documents);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        let found: Vec<_> =
            listed.iter().map(|found| (found.country.as_str(), found.language.as_str())).collect();
        assert_eq!(found, expected, "{version} {country}");
        if version == 2 {
            assert!(listed.iter().all(|found| found.link.contains(&found.language)), "{listed:?}");
        }
    }
    let unknown = ListTemplateDocumentsRequest {
        template_id: template.template_id.clone(),
        version: 9,
        ..Default::default()
    };
    let refusal = refused(direct.templates().list_template_documents(unknown).await);
    assert_eq!(refusal, (Code::NotFound, "RESOURCE_NOT_FOUND".into()));
    drop(turn);
}

#[apply(each_backend)]
async fn the_policy_says_what_is_needed_from_when_on(#[case] backend: Backend) {
    tests::needs!(backend);
    tests::needs_own!("a version that it publishes");
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    let by = timestamp(fixtures::now() + TimeDelta::days(30));
    let version = PublishTemplateVersionRequest {
        reacceptance: Some(Reacceptance::ReacceptBy(by)),
        ..new_version(CUSTOMER_AGREEMENT)
    };
    operator.templates().publish_template_version(version).await.unwrap();
    // The one after it is planned for later.
    let version = PublishTemplateVersionRequest {
        effective_from: Some(timestamp(fixtures::now() + TimeDelta::days(10))),
        reacceptance: Some(Reacceptance::ReacceptBy(by)),
        ..new_version(CUSTOMER_AGREEMENT)
    };
    let planned = operator.templates().publish_template_version(version).await.unwrap().into_inner();
    let policy = direct.gate().get_policy(GetPolicyRequest {}).await.unwrap().into_inner();
    let last = policy.periods.last().unwrap();
    assert_eq!(policy.periods.len(), 5);
    assert_eq!((last.dashboard(), last.api()), (PolicyRequirement::Mandatory, PolicyRequirement::Mandatory));
    assert_eq!(last.agreement_types, [i32::from(AgreementType::MicrosoftCustomerAgreement)]);
    assert!(
        policy.periods.windows(2).all(|pair| pair[0].from.unwrap().seconds < pair[1].from.unwrap().seconds)
    );
    let latest = |policy: GetPolicyResponse| {
        let of_template = |of: &&Reaccepted| of.template_id == CUSTOMER_AGREEMENT;
        policy.reacceptances.iter().rfind(of_template).map(|of| (of.version, of.reaccept_by))
    };
    assert_eq!(latest(policy), Some((4, Some(by))));

    // A template that is retired before has no such version.
    let template = planned.template.unwrap();
    let retire = RetireTemplateRequest {
        request_id: fixtures::request_id(),
        template_id: template.template_id,
        etag: template.etag,
        validate_only: false,
    };
    operator.templates().retire_template(retire).await.unwrap();
    let policy = direct.gate().get_policy(GetPolicyRequest {}).await.unwrap().into_inner();
    assert_eq!(latest(policy), Some((3, Some(by))));
}

async fn listed(caller: &As, filter: ListRelationshipsRequest) -> Result<Vec<(String, String)>, Status> {
    let mut found = vec![];
    let mut request = ListRelationshipsRequest { page_size: 1, ..filter };
    loop {
        let page = caller.customers().list_relationships(request.clone()).await?.into_inner();
        found.extend(page.relationships.into_iter().map(|of| (of.customer_id, of.reseller_id)));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(found);
        }
    }
}

#[apply(each_backend)]
async fn relationships_are_shown_to_their_partners(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let operator = cluster.as_caller(fixtures::operator());
    let create = async |caller: &As, name: &str, resold: bool| {
        let reseller_id = if resold { RESELLER.to_string() } else { String::new() };
        let request = CreateCustomerRequest { reseller_id, ..new_customer(name, "FR", None) };
        let created = caller.customers().create_customer(request).await.unwrap().into_inner();
        created.customer.unwrap().customer_id
    };
    let resold = create(&provider, "Contoso", true).await;
    let own = create(&provider, "Northwind", false).await;
    let others = create(&direct, "Litware", false).await;
    let (none, through) = (String::new(), RESELLER.to_string());
    let (resold_one, own_one) = ((resold.clone(), through.clone()), (own.clone(), none.clone()));

    let all = ListRelationshipsRequest::default;
    assert_eq!(listed(&provider, all()).await.unwrap(), [resold_one.clone(), own_one.clone()]);
    assert_eq!(listed(&reseller, all()).await.unwrap(), std::slice::from_ref(&resold_one));
    let of_reseller = ListRelationshipsRequest { reseller_id: through.clone(), ..all() };
    assert_eq!(listed(&provider, of_reseller).await.unwrap(), std::slice::from_ref(&resold_one));
    let of_customer =
        |customer_id: &str| ListRelationshipsRequest { customer_id: customer_id.into(), ..all() };
    assert_eq!(listed(&provider, of_customer(&own)).await.unwrap(), std::slice::from_ref(&own_one));
    let not_found = (Code::NotFound, "RESOURCE_NOT_FOUND".to_owned());
    assert_eq!(refused(listed(&provider, of_customer(&others)).await), not_found);
    assert_eq!(listed(&operator, of_customer(&others)).await.unwrap(), [(others.clone(), none.clone())]);
    let of_partner = |partner| ListRelationshipsRequest { partner_id: format!("{partner}"), ..all() };
    let seen: BTreeSet<_> = listed(&operator, of_partner(PROVIDER)).await.unwrap().into_iter().collect();
    assert!(seen.contains(&resold_one) && seen.contains(&own_one), "{seen:?}");

    let get = |customer_id: &str, partner_id: &str, reseller_id: &str| GetRelationshipRequest {
        customer_id: customer_id.into(),
        partner_id: partner_id.into(),
        reseller_id: reseller_id.into(),
    };
    let (payer, stranger) = (PROVIDER.to_string(), DIRECT.to_string());
    for (about, caller, request, is_seen) in [
        ("the payer's", &provider, get(&own, "", ""), true),
        ("the payer's with its reseller", &provider, get(&resold, "", &through), true),
        ("the payer's without the reseller", &provider, get(&resold, "", ""), false),
        ("the reseller's", &reseller, get(&resold, &payer, ""), true),
        ("the reseller's of another customer", &reseller, get(&own, &payer, ""), false),
        ("another partner's", &direct, get(&own, &payer, ""), false),
        ("for the operator", &operator, get(&own, &payer, ""), true),
        ("of a stranger", &operator, get(&own, &stranger, ""), false),
    ] {
        let answer = caller.customers().get_relationship(request).await;
        assert_eq!(answer.is_ok(), is_seen, "{about}: {answer:?}");
        if let Err(refusal) = answer {
            assert_eq!(tests::assert::refusal(&refusal), not_found, "{about}");
        }
    }

    // An ended one is for the operator alone.
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: own.clone(),
        ..Default::default()
    };
    provider.customers().end_relationship(end).await.unwrap();
    assert_eq!(listed(&provider, all()).await.unwrap(), [resold_one]);
    assert_eq!(refused(provider.customers().get_relationship(get(&own, "", "")).await), not_found);
    assert!(listed(&operator, of_customer(&own)).await.unwrap().is_empty());
    let ended = ListRelationshipsRequest { include_ended: true, ..of_customer(&own) };
    assert_eq!(listed(&operator, ended).await.unwrap(), [own_one]);
}
