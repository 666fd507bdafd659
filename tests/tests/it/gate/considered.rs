//! A refusal names the acceptances that there are, and why each does not count.

use proto::agreement::{
    CheckEligibilityRequest, CheckEligibilityResponse, ListBlockedCustomersRequest, WithdrawSignatureRequest,
    WithdrawalReason,
};
use proto::types::{BlockReason, ConsideredAcceptance};
use rstest_reuse::apply;
use tests::actions::{self, sign};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};
use tests::{As, Backend, metadata_of, reason_of};

use crate::each_backend;

/// Which acceptance, of which version, why it does not count, and the version that is required.
type Brief = (String, u32, BlockReason, u32);

fn brief(considered: &[ConsideredAcceptance]) -> Vec<Brief> {
    let brief = |one: &ConsideredAcceptance| {
        let acceptance = one.acceptance.clone().unwrap();
        assert_eq!(one.required_since.is_some(), one.reason() == BlockReason::VersionSuperseded);
        assert_eq!(one.withdrawn_at.is_some(), one.reason() == BlockReason::Withdrawn);
        (acceptance.acceptance_id, acceptance.template_version, one.reason(), one.required_version)
    };
    considered.iter().map(brief).collect()
}

/// GATE-6: as the gate, the list of blocked customers and the refusal of an order say it.
#[apply(each_backend)]
async fn a_refusal_names_the_acceptances_that_do_not_count(#[case] backend: Backend) {
    tests::needs_own!("templates of its own");
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let agreed_at = "2024-03-01T12:00:00Z".parse().unwrap();
    let attested = actions::attest(&direct, &customer, agreed_at).await.unwrap().attestation.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    actions::publish(&operator, fixtures::new_version(CUSTOMER_AGREEMENT)).await.unwrap();
    let outdated = (attested.attestation_id, attested.template_version, BlockReason::VersionSuperseded, 3);
    assert_eq!(considered_by([&direct, &operator], &customer).await, std::slice::from_ref(&outdated));
    let required = actions::order(&direct, &customer, None, 5).await.unwrap_err();
    let unknown = ListBlockedCustomersRequest {
        partner_id: fixtures::request_id(),
        ..ListBlockedCustomersRequest::default()
    };
    let refused = operator.gate().list_blocked_customers(unknown).await.unwrap_err();
    assert_eq!(reason_of(&refused), "RESOURCE_NOT_FOUND");
    let expected = "version 2, accepted on 2024-03-01, has not counted since";
    assert!(required.message().contains(expected), "{}", required.message());
    let said: serde_json::Value = serde_json::from_str(&metadata_of(&required)["considered"]).unwrap();
    let said = &said[0];
    assert_eq!(
        (&said["acceptance_id"], &said["reason"], &said["required_version"]),
        (&outdated.0.clone().into(), &"VERSION_SUPERSEDED".into(), &3.into())
    );

    // Of those that were withdrawn, the last.
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let mut last = String::new();
    for _ in 0..2 {
        last = sign(&admin, 3).await.unwrap().signature_id;
        let request = WithdrawSignatureRequest {
            request_id: fixtures::request_id(),
            signature_id: last.clone(),
            reason: WithdrawalReason::NoLongerAccepts.into(),
            validate_only: false,
        };
        admin.signatures().withdraw_signature(request).await.unwrap();
    }
    let withdrawn = (last, 3, BlockReason::Withdrawn, 0);
    assert_eq!(considered_by([&direct, &operator], &customer).await, [outdated, withdrawn]);

    // A reseller sees no attestation of its provider.
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let resold = actions::create_customer(&reseller, "Fourth Coffee", "FR", Some(PROVIDER)).await.unwrap();
    actions::attest(&provider, &resold, agreed_at).await.unwrap();
    let check = CheckEligibilityRequest {
        reseller_id: RESELLER.to_string(),
        ..fixtures::new_check(PROVIDER, &resold)
    };
    for (partner, count) in [(&provider, 1), (&reseller, 0)] {
        let answer = actions::check(partner, check.clone()).await.unwrap();
        assert_eq!(answer.reasons().collect::<Vec<_>>(), [BlockReason::VersionSuperseded]);
        assert_eq!(answer.considered.len(), count);
    }

    // Nothing is considered where there is nothing.
    let other = actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    assert_eq!(considered_by([&direct, &operator], &other).await, []);
}

/// What the gate considers, which is what the list of blocked customers says.
async fn considered_by([partner, operator]: [&As; 2], customer: &str) -> Vec<Brief> {
    let answer = actions::check(partner, fixtures::new_check(DIRECT, customer)).await.unwrap();
    let list = ListBlockedCustomersRequest { page_size: 500, ..ListBlockedCustomersRequest::default() };
    let listed = partner.gate().list_blocked_customers(list.clone()).await.unwrap().into_inner().customers;
    let listed = listed.iter().find(|blocked| blocked.customer_id == customer).unwrap();
    assert_eq!(listed.considered, answer.considered);
    // An operator reads what the partner reads.
    let seen = actions::check(operator, fixtures::new_check(DIRECT, customer)).await.unwrap();
    assert_eq!(
        CheckEligibilityResponse { evaluated_at: None, ..seen },
        CheckEligibilityResponse { evaluated_at: None, ..answer.clone() }
    );
    let list = ListBlockedCustomersRequest { partner_id: DIRECT.to_string(), ..list };
    let seen = operator.gate().list_blocked_customers(list).await.unwrap().into_inner().customers;
    assert!(seen.contains(listed));
    brief(&answer.considered)
}
