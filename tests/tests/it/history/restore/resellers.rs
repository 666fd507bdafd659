//! Relationships that a restore of agreement-svc loses, and those that it keeps.

use proto::agreement::{EndRelationshipRequest, LinkResellerRequest, PartnerKind};
use proto::order::{AssignResellerRequest, Subscription, SuspendSubscriptionRequest};
use proto::types::Cloud;
use rstest_reuse::apply;
use tests::backup::Backup;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, PROVIDER, RESELLER, acceptance};
use tests::{As, Backend, Cluster, actions, reason_of};
use tonic::Status;
use uuid::Uuid;

use super::World;
use crate::each_backend;

const SECOND: Uuid = Uuid::from_u128(0xf2);
const THIRD: Uuid = Uuid::from_u128(0xf3);

/// A reseller of the provider enters a relationship with the customer.
async fn join(cluster: &Cluster, reseller: Uuid, customer: &str) {
    let invited = actions::invite(&cluster.as_caller(fixtures::sales(reseller)), None, Some(PROVIDER)).await;
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    admin.signatures().accept_invitation(acceptance(&invited.unwrap(), None)).await.unwrap();
}

async fn end_relationship(provider: &As, customer: &str) {
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.to_owned(),
        reseller_id: RESELLER.to_string(),
        ..EndRelationshipRequest::default()
    };
    provider.customers().end_relationship(end).await.unwrap();
}

async fn suspend(by: &As, of: &Subscription) -> Result<Subscription, Status> {
    let now = actions::get_subscription(by, &of.subscription_id).await?;
    let request = SuspendSubscriptionRequest {
        request_id: fixtures::request_id(),
        subscription_id: now.subscription_id,
        etag: now.etag,
        validate_only: false,
    };
    Ok(by.subscriptions().suspend_subscription(request).await?.into_inner().subscription.unwrap())
}

async fn assign(by: &As, of: &Subscription, reseller: Uuid) -> Result<Subscription, Status> {
    let now = actions::get_subscription(by, &of.subscription_id).await?;
    let request = AssignResellerRequest {
        request_id: fixtures::request_id(),
        subscription_id: now.subscription_id,
        etag: now.etag,
        reseller_id: reseller.to_string(),
        validate_only: false,
    };
    Ok(by.subscriptions().assign_reseller(request).await?.into_inner().subscription.unwrap())
}

/// What happened last to a relationship counts, when the history is followed again; and what was lost is not active, also
/// where the restored agreement-svc recorded something else under its revision.
#[apply(each_backend)]
async fn relationships_are_those_of_the_restored_history(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = World::on(backend).await;
    let operator = world.cluster.as_caller(fixtures::operator());
    for (reseller, name) in [(SECOND, "Second Reselling"), (THIRD, "Third Reselling")] {
        let kind = PartnerKind::IndirectReseller;
        actions::register_partner(&operator, reseller, name, kind, Cloud::Public).await.unwrap();
        let link = LinkResellerRequest {
            request_id: fixtures::request_id(),
            provider_id: PROVIDER.to_string(),
            reseller_id: reseller.to_string(),
            validate_only: false,
        };
        operator.partners().link_reseller(link).await.unwrap();
    }
    let [provider, first] =
        [PROVIDER, RESELLER].map(|partner| world.cluster.as_caller(fixtures::sales(partner)));
    let customer = actions::create_customer(&first, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    actions::attest_now(&provider, &customer).await.unwrap();
    // With two resellers none is put on record by itself.
    join(&world.cluster, SECOND, &customer).await;
    let bought = actions::subscribe(&provider, &customer, None).await.unwrap();
    assert_eq!(bought.reseller_id, "");
    actions::until_bought(&world.cluster, &customer).await.unwrap();
    // The first reseller goes and comes back, and then it is put on record.
    end_relationship(&provider, &customer).await;
    join(&world.cluster, RESELLER, &customer).await;
    world.followed().await;
    assert!(assign(&provider, &bought, RESELLER).await.unwrap().auto_renew);

    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    join(&world.cluster, THIRD, &customer).await;
    let lost = world.followed().await;
    world.restore(&copy).await;
    world.cluster.restart_agreements().await.unwrap();
    while world.head().revision < lost.revision {
        world.one_event("Grown").await;
    }
    world.cluster.announce_restore().await.unwrap();
    let restored = world.head();
    world.passed(&restored).await;

    let now = actions::get_subscription(&provider, &bought.subscription_id).await.unwrap();
    assert!(now.auto_renew, "the relationship of its reseller is active");
    let refused = assign(&provider, &bought, THIRD).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["reseller_id"]);
    assign(&provider, &bought, SECOND).await.unwrap();
    assign(&provider, &bought, RESELLER).await.unwrap();
}

/// A reseller whose relationship ended acts no more where the restored agreement-svc has lost the end, and the refusal says what
/// helps. An end that the copy has is confirmed by following the history again.
#[apply(each_backend)]
async fn a_lost_end_of_a_relationship_is_named(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = World::on(backend).await;
    let [provider, reseller] =
        [PROVIDER, RESELLER].map(|partner| world.cluster.as_caller(fixtures::sales(partner)));
    let mut bought = vec![];
    for name in ["Contoso", "Fabrikam"] {
        let customer = actions::create_customer(&reseller, name, "FR", Some(PROVIDER)).await.unwrap();
        actions::attest_now(&provider, &customer).await.unwrap();
        let subscription = actions::subscribe(&reseller, &customer, Some(PROVIDER)).await.unwrap();
        assert_eq!(subscription.reseller_id, RESELLER.to_string());
        actions::until_bought(&world.cluster, &customer).await.unwrap();
        bought.push((customer, subscription));
    }
    let [(kept, of_kept), (lost, of_lost)] = bought.try_into().unwrap();
    end_relationship(&provider, &kept).await;
    world.followed().await;

    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    end_relationship(&provider, &lost).await;
    world.followed().await;
    world.restore(&copy).await;
    world.cluster.restart_agreements().await.unwrap();
    world.cluster.announce_restore().await.unwrap();
    let restored = world.head();
    world.passed(&restored).await;

    let refused = async |of| reason_of(&suspend(&reseller, of).await.unwrap_err());
    assert_eq!(refused(&of_kept).await, "RELATIONSHIP_ENDED");
    assert_eq!(refused(&of_lost).await, "WITHDRAWAL_LOST");
    end_relationship(&provider, &lost).await;
    world.followed().await;
    assert_eq!(refused(&of_lost).await, "RELATIONSHIP_ENDED");
    // The payer was never kept from ending what it pays for.
    suspend(&provider, &of_lost).await.unwrap();
}
