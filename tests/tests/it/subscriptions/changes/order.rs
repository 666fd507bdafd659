//! Terms and events are processed in the order in which they happened.

use super::*;

#[apply(each_backend)]
async fn terms_and_history_are_processed_in_order_after_downtime(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let before = Meanwhile {
        happened_at: "2026-02-28T11:00:00Z",
        relationship_ended: &[(Kind::AutoRenewOff, Why::RelationshipEnded), (Kind::Expired, Why::TermEnded)],
        withdrawn: &[(Kind::Cancelled, Why::AgreementWithdrawn)],
        switched_off: &[(Kind::Cancelled, Why::AgreementWithdrawn)],
    };
    let after = Meanwhile {
        happened_at: "2026-02-28T13:00:00Z",
        relationship_ended: &[
            (Kind::Renewed, Why::TermEnded),
            (Kind::AutoRenewOff, Why::RelationshipEnded),
            (Kind::Expired, Why::TermEnded),
        ],
        withdrawn: &[(Kind::Renewed, Why::TermEnded), (Kind::Cancelled, Why::AgreementWithdrawn)],
        switched_off: &[(Kind::AutoRenewOff, Why::Requested), (Kind::Expired, Why::TermEnded)],
    };
    before.check(backend).await;
    after.check(backend).await;
}

/// What happens around the end of a term while order-svc is down, and what it comes to.
struct Meanwhile {
    happened_at: &'static str,
    /// Of a subscription that renews by itself, whose payer and customer part.
    relationship_ended: &'static [(Kind, Why)],
    /// Of one that renews by itself, whose acceptance is withdrawn.
    withdrawn: &'static [(Kind, Why)],
    /// Of one that does not, whose acceptance is withdrawn.
    switched_off: &'static [(Kind, Why)],
}

impl Meanwhile {
    async fn check(&self, backend: Backend) {
        let mut world = World::without_acceptance(backend, "2026-01-31T12:00:00Z").await;
        let attested = actions::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
        let mut bought = world.subscribe_to("MONTH", 2).await;
        let (off, withdrawn) = (bought.remove(1), bought.remove(0));
        world.done(Command::AutoRenew(false), &off).await;
        let left = actions::create_customer(&world.direct, "Fabrikam", "FR", None).await.unwrap();
        actions::attest(&world.direct, &left, world.clock.now()).await.unwrap();
        let order = CreateOrderRequest { customer_id: left.clone(), ..world.new_order("MONTH", 1) };
        let relationship_ended = world.direct.orders().create_order(order).await.unwrap().into_inner();
        let relationship_ended = &relationship_ended.subscriptions[0];

        world.cluster.stop_orders();
        world.clock.set(time(self.happened_at));
        let request = WithdrawAttestationRequest {
            request_id: fixtures::request_id(),
            attestation_id: attested.attestation.unwrap().attestation_id,
            reason: WithdrawalReason::NoLongerAccepts.into(),
            ..WithdrawAttestationRequest::default()
        };
        world.direct.attestations().withdraw_attestation(request).await.unwrap();
        let request = EndRelationshipRequest {
            request_id: fixtures::request_id(),
            customer_id: left,
            ..EndRelationshipRequest::default()
        };
        world.direct.customers().end_relationship(request).await.unwrap();
        world.clock.set(time("2026-04-30T12:00:00Z"));
        world.cluster.restart_orders().await.unwrap();

        let is_final = |s: &Subscription| matches!(s.state(), State::Cancelled | State::Expired);
        for (of, expected) in [
            (relationship_ended, self.relationship_ended),
            (&withdrawn, self.withdrawn),
            (&off, self.switched_off),
        ] {
            world.once(of, is_final).await;
            let changes = world.changes(of).await;
            let since: Vec<_> = changes.iter().map(|change| (change.kind(), change.reason())).collect();
            assert!(since.ends_with(expected), "{}: {since:?} ends otherwise", self.happened_at);
            let others = since.len() - expected.len();
            assert!(others <= 2 && since[0] == (Kind::Created, Why::Requested), "{since:?}");
        }
    }
}

/// A term waits while order-svc cannot follow the history before its end.
#[apply(each_backend)]
async fn a_term_waits_for_the_history_before_its_end(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let bought = world.subscribe_to("MONTH", 4).await;
    // A term that is moved behind the service's back into the time that was followed is processed at
    // the next look.
    let next_look = async |world: &World, moved: &Subscription| {
        let end = "'2026-01-31 11:59:59'";
        let id = &moved.subscription_id;
        let sql = format!("UPDATE subscription SET term_end = {end}, due_at = {end} WHERE id = '{id}'");
        world.cluster.orders_sql(&sql).unwrap();
        world.once(moved, |s| s.term_number == 2).await;
    };
    next_look(&world, &bought[1]).await;
    world.cluster.start_replica().await.unwrap();
    world.cluster.stop_agreements();
    world.clock.set(time("2026-02-28T11:00:00Z"));
    let request = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: world.customer.clone(),
        ..EndRelationshipRequest::default()
    };
    let at_replica = world.cluster.at_replica(fixtures::sales(DIRECT));
    at_replica.customers().end_relationship(request).await.unwrap();
    world.clock.set(time("2026-03-05T00:00:00Z"));
    // The second look begins when the first is over.
    next_look(&world, &bought[2]).await;
    next_look(&world, &bought[3]).await;
    assert_eq!(world.now(&bought[0]).await, bought[0]);
    assert_eq!(world.refused(Command::Cancel, &bought[0]).await, forbidden("TERM_ENDED"));

    world.cluster.restart_agreements().await.unwrap();
    world.once(&bought[0], |s| s.state() == State::Expired).await;
    assert_eq!(
        world.kinds(&bought[0]).await,
        [(1, Kind::Created), (2, Kind::AutoRenewOff), (3, Kind::Expired)]
    );
}
