//! Orders through resellers: which provider a refusal names, and which reseller is on record.

use proto::agreement::{EndRelationshipRequest, LinkResellerRequest, PartnerKind};
use proto::order::CreateOrderRequest;
use proto::types::Cloud;
use rstest_reuse::apply;
use tests::actions::{self, place};
use tests::assert::{eventually, refusal};
use tests::fixtures::{self, OFFICE, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, metadata_of};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::each_backend;

const SECOND: Uuid = Uuid::from_u128(0xe2);
const OTHER: Uuid = Uuid::from_u128(0xf2);

/// Links the reseller to a second provider, too.
async fn with_second_provider(cluster: &Cluster) -> As {
    let operator = cluster.as_caller(fixtures::operator());
    let kind = PartnerKind::IndirectProvider;
    actions::register_partner(&operator, SECOND, "Second Distribution", kind, Cloud::Public).await.unwrap();
    let link = LinkResellerRequest {
        request_id: fixtures::request_id(),
        provider_id: SECOND.to_string(),
        reseller_id: RESELLER.to_string(),
        validate_only: false,
    };
    operator.partners().link_reseller(link).await.unwrap();
    cluster.as_caller(fixtures::sales(SECOND))
}

/// ATT-1. A reseller that serves a customer through two providers is sent to the one that it orders through, whichever
/// that is.
#[apply(each_backend)]
async fn a_reseller_of_two_providers_is_sent_to_the_one_that_pays(#[case] backend: Backend) {
    tests::needs_own!("a provider that it registers");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    with_second_provider(&cluster).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let invited = actions::invite(&reseller, None, Some(SECOND)).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    for payer in [PROVIDER, SECOND] {
        let order = CreateOrderRequest {
            attestation: Some(fixtures::inline_attestation(fixtures::now())),
            ..fixtures::new_order(&customer, Some(payer), OFFICE, 1)
        };
        // order-svc follows the history on its own.
        eventually("the refusal names the payer of the order", async || {
            let refused: Status = place(&reseller, order.clone()).await.unwrap_err();
            assert_eq!(refusal(&refused), (Code::PermissionDenied, "RESELLER_CANNOT_ATTEST".into()));
            let named = metadata_of(&refused)["provider_id"].clone();
            assert!(refused.message().contains(&format!("ask provider {named} to attest")), "{refused}");
            (named == payer.to_string()).then_some(())
        })
        .await;
    }
}

/// ORD-1. A provider that serves a customer through one reseller only has it on record without naming it, so that it
/// sees the order; in every other case none is on record that was not named.
#[apply(each_backend)]
async fn the_only_reseller_is_on_record(#[case] backend: Backend) {
    tests::needs_own!("a reseller that it registers");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    let kind = PartnerKind::IndirectReseller;
    actions::register_partner(&operator, OTHER, "Other Reselling", kind, Cloud::Public).await.unwrap();
    let link = LinkResellerRequest {
        request_id: fixtures::request_id(),
        provider_id: PROVIDER.to_string(),
        reseller_id: OTHER.to_string(),
        validate_only: false,
    };
    operator.partners().link_reseller(link).await.unwrap();
    let [provider, reseller, other] =
        [PROVIDER, RESELLER, OTHER].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let on_record = async |customer: &str, named: Option<Uuid>| {
        let mut on_record = vec![];
        for validate_only in [true, false] {
            let order = CreateOrderRequest {
                reseller_id: named.map(|id| id.to_string()).unwrap_or_default(),
                validate_only,
                ..fixtures::new_order(customer, None, OFFICE, 1)
            };
            let placed = place(&provider, order).await.unwrap();
            let order = placed.order.unwrap();
            assert_eq!(placed.subscriptions[0].reseller_id, order.reseller_id);
            on_record.push(order.reseller_id);
        }
        assert_eq!(on_record[0], on_record[1]);
        on_record.pop().filter(|id| !id.is_empty()).map(|id| id.parse::<Uuid>().unwrap())
    };

    let own = actions::create_customer(&provider, "Own", "FR", None).await.unwrap();
    let resold = actions::create_customer(&reseller, "Resold", "FR", Some(PROVIDER)).await.unwrap();
    for customer in [&own, &resold] {
        actions::attest_now(&provider, customer).await.unwrap();
    }
    assert_eq!(on_record(&own, None).await, None);
    assert_eq!(on_record(&resold, None).await, Some(RESELLER));
    assert_eq!(on_record(&resold, Some(RESELLER)).await, Some(RESELLER));
    assert_eq!(actions::orders_of(&reseller, &resold).await.unwrap().len(), 2);

    // With a second one the provider has to say which.
    let admin = cluster.as_caller(fixtures::admin(resold.parse().unwrap()));
    let invited = actions::invite(&other, None, Some(PROVIDER)).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    assert_eq!(on_record(&resold, None).await, None);
    assert_eq!(on_record(&resold, Some(OTHER)).await, Some(OTHER));
    // Who has parted is none of them.
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: resold.clone(),
        reseller_id: RESELLER.to_string(),
        ..EndRelationshipRequest::default()
    };
    provider.customers().end_relationship(end).await.unwrap();
    assert_eq!(on_record(&resold, None).await, Some(OTHER));
    // The provider's own relationship needs no reseller.
    let invited = actions::invite(&provider, None, None).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    assert_eq!(on_record(&resold, None).await, None);
}
