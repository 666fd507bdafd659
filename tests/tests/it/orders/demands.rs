//! Orders that no acceptance satisfies: the refusal says why, and what helps.

use chassis::clock::Clock;
use proto::agreement::RetireTemplateRequest;
use proto::order::{CreateOrderRequest, NewOrderLine};
use rstest_reuse::apply;
use tests::actions::{self, place};
use tests::assert::refusal;
use tests::fixtures::{self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, OFFICE, time};
use tests::{Backend, Cluster, Setup, metadata_of};
use tonic::Code;

use crate::each_backend;

const OFFERS: &str = r#"{"offers": [
    {"offer_id": "ANY", "name": "Takes what the policy does", "kind": "LICENSE", "quantity_min": 1, "quantity_max": 9,
     "term": "YEAR", "billing_cycle": "ANNUAL", "auto_renews": true, "countries": [], "agreement_types": []},
    {"offer_id": "CLOUD", "name": "Takes the older agreement", "kind": "LICENSE", "quantity_min": 1, "quantity_max": 9,
     "term": "YEAR", "billing_cycle": "ANNUAL", "auto_renews": true, "countries": [],
     "agreement_types": ["MICROSOFT_CLOUD_AGREEMENT"]},
    {"offer_id": "CUSTOMER", "name": "Takes the newer agreement", "kind": "LICENSE", "quantity_min": 1, "quantity_max": 9,
     "term": "YEAR", "billing_cycle": "ANNUAL", "auto_renews": true, "countries": [],
     "agreement_types": ["MICROSOFT_CUSTOMER_AGREEMENT"]}
]}"#;

/// An order of one of each offer.
fn order_of(customer: &str, offers: &[&str]) -> CreateOrderRequest {
    let line =
        |offer: &&str| NewOrderLine { offer_id: (*offer).into(), quantity: 1, friendly_name: String::new() };
    CreateOrderRequest {
        lines: offers.iter().map(line).collect(),
        ..fixtures::new_order(customer, None, OFFICE, 1)
    }
}

/// GATE-6. While both agreements count, offers that each take one of them are ordered separately; later the older one
/// counts for no order.
#[apply(each_backend)]
async fn offers_that_exclude_each_other_are_named_and_ordered_separately(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets, and offers of its own");
    tests::needs!(backend);
    let folder = tempfile::tempdir().unwrap();
    let offers = folder.path().join("offers.json");
    std::fs::write(&offers, OFFERS).unwrap();
    let clock = Clock::manual(time("2019-11-01T00:00:00Z"));
    let setup = Setup { backend, clock: clock.clone(), offers: Some(offers), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    for template in [CLOUD_AGREEMENT, CUSTOMER_AGREEMENT] {
        actions::attest_to(&direct, &customer, template, clock.now()).await.unwrap();
    }
    let refused = async |offers: &[&str]| {
        let refused = place(&direct, order_of(&customer, offers)).await.unwrap_err();
        assert_eq!(refusal(&refused), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()), "{offers:?}");
        let said = metadata_of(&refused);
        assert_eq!((said["reasons"].as_str(), said["remedies"].as_str()), ("WRONG_AGREEMENT_TYPE", ""));
        (said["lines"].clone(), refused.message().to_owned())
    };
    let (lines, message) = refused(&["CUSTOMER", "ANY", "CLOUD", "CUSTOMER"]).await;
    assert_eq!(lines, "lines[0],lines[2],lines[3]");
    assert!(message.ends_with("; order these lines separately"), "{message}");
    for separate in [&["CUSTOMER", "ANY", "CUSTOMER"][..], &["CLOUD"]] {
        place(&direct, order_of(&customer, separate)).await.unwrap();
    }

    clock.set(time("2020-03-01T00:00:00Z"));
    let (lines, message) = refused(&["ANY", "CLOUD"]).await;
    assert_eq!(lines, "lines[1]");
    assert!(message.ends_with("; order other offers"), "{message}");
}

/// GATE-6. Without a version to accept, no role and no offer helps.
#[apply(each_backend)]
async fn where_no_version_is_in_force_the_operator_is_asked(#[case] backend: Backend) {
    tests::needs_own!("the Customer Agreement that it retires");
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let request = proto::agreement::GetTemplateRequest { template_id: CUSTOMER_AGREEMENT.into() };
    let etag = operator.templates().get_template(request).await.unwrap().into_inner().template.unwrap().etag;
    let retire = RetireTemplateRequest {
        request_id: fixtures::request_id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        etag,
        validate_only: false,
    };
    operator.templates().retire_template(retire).await.unwrap();
    let refused = actions::order(&direct, &customer, None, 1).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()));
    assert_eq!(metadata_of(&refused)["remedies"], "");
    assert!(refused.message().ends_with("; ask the operator to publish one"), "{refused}");
}
