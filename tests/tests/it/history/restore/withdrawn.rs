//! Acceptances that a restore of agreement-svc brings back although order-svc has applied their withdrawal.

use proto::agreement::{EndRelationshipRequest, PartnerKind};
use proto::order::CreateOrderRequest;
use proto::types::Cloud;
use rstest::rstest;
use tests::assert::refusal;
use tests::backup::Backup;
use tests::fixtures::{self, DIRECT, OFFICE, acceptance};
use tests::{As, Backend, Cluster, actions, metadata_of};
use tonic::Code;
use uuid::Uuid;

use super::World;

const OTHER: Uuid = Uuid::from_u128(0xd2);
const THIRD: Uuid = Uuid::from_u128(0xd3);

/// What raises the customer's acceptance revision beyond the fence after the restore.
#[derive(Clone, Copy, Debug)]
enum Raised {
    OtherAttests,
    OtherParts,
    ThirdJoins,
}

/// A direct-bill partner that enters a relationship with the customer. The customer has bought before, so it signs
/// nothing with that.
async fn join(cluster: &Cluster, partner: Uuid, customer: &str) -> As {
    let operator = cluster.as_caller(fixtures::operator());
    let name = format!("Partner {partner}");
    actions::register_partner(&operator, partner, &name, PartnerKind::DirectBill, Cloud::Public)
        .await
        .unwrap();
    let joining = cluster.as_caller(fixtures::sales(partner));
    let invited = actions::invite(&joining, None, None).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let accepted = admin.signatures().accept_invitation(acceptance(&invited, None)).await.unwrap();
    assert!(accepted.into_inner().contact_partner, "a signature would cover every partner");
    joining
}

/// WD-3a. An attestation that a restore revived counts for no order, whatever else raises the customer's acceptance
/// revision.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_revived_attestation_counts_for_no_order(
    #[values(Backend::Sqlite, Backend::Postgres)] backend: Backend,
    #[values(Raised::OtherAttests, Raised::OtherParts, Raised::ThirdJoins)] raised: Raised,
) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = World::on(backend).await;
    let direct = world.direct.clone();
    let (customer, attestation, _) = world.buyer().await;
    actions::until_bought(&world.cluster, &customer).await.unwrap();
    let other = join(&world.cluster, OTHER, &customer).await;
    world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    actions::withdraw(&direct, &attestation).await.unwrap();
    world.followed().await;

    world.restore(&copy).await;
    world.cluster.announce_restore().await.unwrap();
    world.cluster.restart_agreements().await.unwrap();
    world.followed().await;
    match raised {
        Raised::OtherAttests => drop(actions::attest_now(&other, &customer).await.unwrap()),
        Raised::OtherParts => {
            let end = EndRelationshipRequest {
                request_id: fixtures::request_id(),
                customer_id: customer.clone(),
                ..EndRelationshipRequest::default()
            };
            other.customers().end_relationship(end).await.unwrap();
        }
        Raised::ThirdJoins => drop(join(&world.cluster, THIRD, &customer).await),
    }
    world.followed().await;
    // agreement-svc counts it.
    let answer = actions::check(&direct, fixtures::new_check(DIRECT, &customer)).await.unwrap();
    assert_eq!(answer.evidence.unwrap().acceptance_id, attestation);

    let refused = actions::order(&direct, &customer, None, 1).await.unwrap_err();
    assert_eq!(refusal(&refused), (Code::FailedPrecondition, "WITHDRAWAL_LOST".into()));
    assert_eq!(metadata_of(&refused)["acceptance_id"], attestation);
    let dry = CreateOrderRequest { validate_only: true, ..fixtures::new_order(&customer, None, OFFICE, 1) };
    let refused = actions::place(&direct, dry).await.unwrap_err();
    assert_eq!(metadata_of(&refused)["acceptance_id"], attestation);
    if let Raised::OtherAttests = raised {
        actions::order(&other, &customer, None, 1).await.unwrap();
    }
    // The remedy that the refusal names.
    actions::withdraw(&direct, &attestation).await.unwrap();
    world.followed().await;
    actions::attest_now(&direct, &customer).await.unwrap();
    actions::order(&direct, &customer, None, 1).await.unwrap();
}
