//! The end of a relationship (CUS-3).

use super::*;

async fn end(caller: &As, customer: &str, reseller: Option<Uuid>) -> i64 {
    let request = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        reseller_id: reseller.map(|id| id.to_string()).unwrap_or_default(),
        ..EndRelationshipRequest::default()
    };
    caller.customers().end_relationship(request).await.unwrap().into_inner().revision
}

/// Subscriptions of an ended relationship do not renew and are not cancelled.
#[apply(each_backend)]
async fn an_ended_relationship_stops_renewals_and_cancels_nothing(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let (direct, provider, _, customer) = customer_of_two(&cluster).await;
    let [left, kept] =
        [buy(&direct, &customer, None).await.unwrap(), buy(&provider, &customer, None).await.unwrap()];
    assert!(left.auto_renew && kept.auto_renew);
    let revision = end(&direct, &customer, None).await;
    followed(&direct, revision).await;

    let operator = cluster.as_caller(fixtures::operator());
    let now = read(&operator, &left.subscription_id).await.unwrap();
    assert_eq!((now.state(), now.auto_renew), (SubscriptionState::Active, false));
    let change = actions::changes_of(&operator, &left.subscription_id).await.unwrap().pop().unwrap();
    assert_eq!(change.kind(), SubscriptionChangeKind::AutoRenewOff);
    assert_eq!(change.reason(), SubscriptionChangeReason::RelationshipEnded);
    assert_eq!((change.event_revision, change.actor.as_str(), change.gate), (revision, "", None));
    assert_eq!(read(&operator, &kept.subscription_id).await.unwrap(), kept);
    // It is no withdrawal, and there is no report of it.
    let none = report_of(&operator, revision).await.unwrap_err();
    assert_eq!((none.code(), reason_of(&none).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));
}

/// A purchase after the end of a relationship stays, however late order-svc applies that end.
#[apply(each_backend)]
async fn a_late_end_of_a_relationship_spares_later_purchases(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    use WithdrawalOutcome::Cancelled;
    let mut cluster = cluster_on(backend).await;
    let (direct, provider, admin, customer) = customer_of_two(&cluster).await;
    let [left, kept] =
        [buy(&direct, &customer, None).await.unwrap(), buy(&provider, &customer, None).await.unwrap()];
    let revision = end(&direct, &customer, None).await;
    followed(&direct, revision).await;
    let operator = cluster.as_caller(fixtures::operator());

    // Together again: what is bought then is not concerned by the earlier end.
    let invitation = actions::invite(&direct, None, None).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invitation, None)).await.unwrap();
    let anew = buy(&direct, &customer, None).await.unwrap();
    cluster.stop_orders();
    let back = format!("UPDATE follower SET revision = {}; DELETE FROM fence", revision - 1);
    cluster.orders_sql(&back).unwrap();
    cluster.restart_orders().await.unwrap();
    followed(&operator, revision).await;
    assert_eq!(read(&operator, &anew.subscription_id).await.unwrap(), anew);
    // After the second end a withdrawal still concerns what runs out: it rests on nothing any more.
    end(&direct, &customer, None).await;
    let last = withdraw_signature(&admin, &customer).await.unwrap();
    let report = applied(&operator, last).await;
    let all = [(&left, Cancelled), (&kept, Cancelled), (&anew, Cancelled)];
    assert_eq!(counts_and_outcomes(&report), ((3, 0), outcomes(&all)));
}

/// What has no term does not outlive the relationship, and nothing outlives the last acceptance.
#[apply(each_backend)]
async fn what_has_no_term_ends_with_the_relationship(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let (direct, provider, admin, customer) = customer_of_two(&cluster).await;
    let plan = |payer: &As| {
        let (payer, customer) = (payer.clone(), customer.clone());
        async move {
            let order = fixtures::new_order(&customer, None, AZURE_PLAN, 1);
            actions::place(&payer, order).await.unwrap().subscriptions.remove(0)
        }
    };
    let [left, kept] = [plan(&direct).await, plan(&provider).await];
    let yearly = buy(&direct, &customer, None).await.unwrap();
    let revision = end(&direct, &customer, None).await;
    followed(&direct, revision).await;

    let operator = cluster.as_caller(fixtures::operator());
    let now = read(&operator, &left.subscription_id).await.unwrap();
    assert_eq!((now.state(), now.term_end), (SubscriptionState::Cancelled, None));
    let change = actions::changes_of(&operator, &left.subscription_id).await.unwrap().pop().unwrap();
    assert_eq!(
        (change.kind(), change.reason()),
        (SubscriptionChangeKind::Cancelled, SubscriptionChangeReason::RelationshipEnded,)
    );
    assert_eq!(change.event_revision, revision);
    assert_eq!(read(&operator, &kept.subscription_id).await.unwrap(), kept);
    // The former partner's licence runs out, unless the customer takes back what it rests on.
    let now = read(&operator, &yearly.subscription_id).await.unwrap();
    assert_eq!((now.state(), now.auto_renew), (SubscriptionState::Active, false));
    let last = withdraw_signature(&admin, &customer).await.unwrap();
    let report = applied(&operator, last).await.report.unwrap();
    let both: BTreeSet<String> = [DIRECT, PROVIDER].map(|partner| partner.to_string()).into();
    assert_eq!(report.uncovered_partner_ids.into_iter().collect::<BTreeSet<_>>(), both);
    assert_cancelled(&operator, &yearly, last).await;
    assert_cancelled(&operator, &kept, last).await;
}

/// A provider that parts with one reseller goes on with the rest.
#[apply(each_backend)]
async fn a_provider_parts_with_one_of_its_resellers(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = cluster_on(backend).await;
    let [provider, reseller] =
        [PROVIDER, RESELLER].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let customer = actions::create_customer(&reseller, "Contoso", "FR", Some(PROVIDER)).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let invitation = actions::invite(&provider, None, None).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&invitation, None)).await.unwrap();
    let through = buy(&reseller, &customer, Some(PROVIDER)).await.unwrap();
    let own = buy(&provider, &customer, None).await.unwrap();
    let revision = end(&provider, &customer, Some(RESELLER)).await;
    followed(&provider, revision).await;
    assert!(!read(&provider, &through.subscription_id).await.unwrap().auto_renew);
    assert_eq!(read(&provider, &own.subscription_id).await.unwrap(), own);
}
