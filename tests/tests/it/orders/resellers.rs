//! Orders through resellers: which provider a refusal names.

use proto::agreement::{LinkResellerRequest, PartnerKind};
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

/// Links the reseller to a second provider, too.
async fn with_second_provider(cluster: &Cluster) -> As {
    let operator = cluster.as_caller(fixtures::operator());
    let kind = PartnerKind::IndirectProvider;
    actions::register_partner(&operator, SECOND, "Second Distribution", kind, Cloud::Public).await.unwrap();
    let link = LinkResellerRequest {
        request_id: fixtures::request_id(),
        provider_id: SECOND.to_string(),
        reseller_id: RESELLER.to_string(),
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
