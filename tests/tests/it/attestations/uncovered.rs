//! Whom a withdrawal, or the end of a relationship, leaves without acceptance: said beforehand to a dry run, and in the answer.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

use proto::agreement::{
    EndRelationshipRequest, RetireTemplateRequest, RetirementImpact, UncoveredPartner,
    WithdrawAttestationRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::types::Decision;
use rstest_reuse::apply;
use tests::fixtures::{self, DIRECT, PROVIDER, RESELLER};
use tests::{As, Backend, actions};
use uuid::Uuid;

use crate::each_backend;

/// Payer and reseller of each.
type Pairs = Vec<(String, String)>;

fn pairs(uncovered: Vec<UncoveredPartner>) -> Pairs {
    uncovered.into_iter().map(|of| (of.partner_id, of.reseller_id)).collect()
}

fn of(expected: &[(Uuid, Option<Uuid>)]) -> Pairs {
    let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    expected.iter().map(|(payer, reseller)| (payer.to_string(), text(*reseller))).collect()
}

async fn withdrawn(by: &As, id: &str, validate_only: bool) -> (bool, Pairs) {
    let request = WithdrawAttestationRequest { validate_only, ..fixtures::new_withdrawal(id) };
    let answer = by.attestations().withdraw_attestation(request).await.unwrap().into_inner();
    (answer.uncovered, pairs(answer.uncovered_partners))
}

/// What the answer names if a partner would end a relationship.
async fn would_end(by: &As, customer: &str, provider: Option<Uuid>, reseller: Option<Uuid>) -> Pairs {
    let request = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        provider_id: provider.map(|id| id.to_string()).unwrap_or_default(),
        reseller_id: reseller.map(|id| id.to_string()).unwrap_or_default(),
        validate_only: true,
    };
    pairs(by.customers().end_relationship(request).await.unwrap().into_inner().uncovered_partners)
}

/// WD-1, CUS-3, ROLE-6.
#[apply(each_backend)]
async fn an_answer_names_who_is_left_without_acceptance(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let customer = actions::create_customer(&direct, "Contoso Lyon", "FR", None).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let accept = async |by: &As, provider| {
        let invited = actions::invite(by, None, provider).await.unwrap();
        let accepted = fixtures::acceptance(&invited, None);
        admin.signatures().accept_invitation(accepted).await.unwrap().into_inner().signature
    };
    let alone = (DIRECT, None);
    let (by_itself, through) = ((PROVIDER, None), (PROVIDER, Some(RESELLER)));

    let signature = accept(&reseller, Some(PROVIDER)).await.unwrap();
    for validate_only in [true, false] {
        let request = WithdrawSignatureRequest {
            request_id: fixtures::request_id(),
            signature_id: signature.signature_id.clone(),
            reason: WithdrawalReason::NoLongerAccepts.into(),
            validate_only,
        };
        let before = actions::check(&direct, fixtures::new_check(DIRECT, &customer)).await.unwrap();
        assert_eq!(before.decision(), Decision::Allowed, "a dry run withdraws nothing");
        let answer = admin.signatures().withdraw_signature(request).await.unwrap().into_inner();
        assert_eq!(pairs(answer.uncovered_partners), of(&[alone, through]));
    }

    let of_direct = actions::attest_now(&direct, &customer).await.unwrap();
    let of_provider = actions::attest_now(&provider, &customer).await.unwrap();
    assert_eq!(withdrawn(&direct, &of_direct, true).await, (true, of(&[alone])));
    assert_eq!(withdrawn(&provider, &of_provider, true).await, (true, of(&[through])));

    assert_eq!(would_end(&direct, &customer, None, None).await, of(&[alone]));
    assert_eq!(would_end(&reseller, &customer, Some(PROVIDER), None).await, of(&[through]));
    assert_eq!(would_end(&provider, &customer, None, Some(RESELLER)).await, of(&[by_itself, through]));
    // Beside the reseller the provider serves the customer itself, which the reseller does not learn.
    let _ = accept(&provider, None).await;
    assert_eq!(would_end(&provider, &customer, None, Some(RESELLER)).await, of(&[through]));
    assert_eq!(would_end(&provider, &customer, None, None).await, of(&[]));
    assert_eq!(would_end(&reseller, &customer, Some(PROVIDER), None).await, of(&[through]));
}

/// TPL-4. A template that is retired leaves no one without acceptance; the answer counts what rests on it.
#[apply(each_backend)]
async fn a_retirement_counts_what_rests_on_the_template(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let (template, _turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    let [withdrawn, ..] = attest_for_each(&direct, "Contoso", &template.template_id).await;
    attest_for_each(&provider, "Fabrikam", &template.template_id).await;
    actions::withdraw(&direct, &withdrawn).await.unwrap();
    let request = |validate_only| RetireTemplateRequest {
        request_id: fixtures::request_id(),
        template_id: template.template_id.clone(),
        etag: template.etag.clone(),
        validate_only,
    };
    for validate_only in [true, false] {
        let answer = operator.templates().retire_template(request(validate_only)).await.unwrap();
        let impact = answer.into_inner().impact.unwrap();
        assert_eq!(impact, RetirementImpact { customers: 5, partners: 2 });
    }
}

/// Three customers of a partner that accepted a template: their attestations.
async fn attest_for_each(partner: &As, name: &str, template: &str) -> [String; 3] {
    let mut attested = [const { String::new() }; 3];
    for (n, id) in attested.iter_mut().enumerate() {
        let name = format!("{name} {n}");
        let customer = actions::create_customer(partner, &name, "FR", None).await.unwrap();
        let made = actions::attest_to(partner, &customer, template, fixtures::now()).await.unwrap();
        *id = made.attestation.unwrap().attestation_id;
    }
    attested
}
