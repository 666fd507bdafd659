//! Gated commands: what the gate must allow.

use super::*;

#[apply(each_backend)]
async fn what_is_gated_needs_an_acceptance_that_was_not_withdrawn(#[case] backend: Backend) {
    tests::needs!(backend);
    let world = World::today(backend).await;
    let (template, _turn) = actions::publish_cloud_agreement(&world.cluster).await.unwrap();
    let cloud = CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: world.customer.clone(),
        template_id: template.template_id,
        contact: Some(fixtures::contact()),
        agreed_at: Some(timestamp(world.clock.now())),
        validate_only: false,
        details: None,
    };
    world.direct.attestations().create_attestation(cloud).await.unwrap();
    let on = world.subscribe_to(OFFICE, 3).await;
    let off = world.subscribe(OFFICE).await;
    let off = world.done(Command::AutoRenew(false), &off).await;

    // The Cloud Agreement that is left no longer satisfies, but it is an acceptance: nothing
    // is cancelled.
    let known = actions::attestations_of(&world.direct, &world.customer).await.unwrap();
    let known = known.iter().find(|known| known.template_id == CUSTOMER_AGREEMENT).unwrap();
    let request = WithdrawAttestationRequest {
        request_id: fixtures::request_id(),
        attestation_id: known.attestation_id.clone(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
        ..WithdrawAttestationRequest::default()
    };
    world.direct.attestations().withdraw_attestation(request).await.unwrap();
    check_blocked(&world, [&on[0], &on[1], &on[2]], &off, "WITHDRAWN").await;
}

/// A new version blocks gated changes from the day on which it must be accepted, and automatic renewals go on.
#[apply(each_backend)]
async fn a_due_version_blocks_gated_changes_and_not_renewals(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let on = world.subscribe_to("MONTH", 6).await;
    let off = world.done(Command::AutoRenew(false), &on[3]).await;
    let suspended = world.done(Command::Suspend, &on[4]).await;
    let deadline = time("2026-02-15T00:00:00Z");
    world.publish(Some(Reacceptance::ReacceptBy(timestamp(deadline)))).await;
    // Until then the grace period lasts.
    world.clock.set(deadline - Duration::from_micros(1));
    let more = world.done(Command::Seats(8), &on[5]).await;
    world.clock.set(deadline);
    check_blocked(&world, [&on[0], &on[1], &on[2]], &off, "VERSION_SUPERSEDED").await;

    world.clock.set(time("2026-03-05T00:00:00Z"));
    let renewed = world.once(&more, |s| s.term_number == 2).await;
    let end = Some(timestamp(time("2026-03-31T12:00:00Z")));
    assert_eq!((renewed.state(), renewed.quantity, renewed.term_end), (State::Active, 8, end));
    let renewed = world.once(&suspended, |s| s.term_number == 2).await;
    assert_eq!((renewed.state(), renewed.term_end), (State::Suspended, end));
    let ended = world.once(&off, |s| s.state() == State::Expired).await;
    assert_eq!((ended.term_number, ended.term_end), (1, on[3].term_end));
    for subscription in [&more, &suspended, &off] {
        let last = world.changes(subscription).await.pop().unwrap();
        let by = (last.actor_tenant.as_str(), last.actor.as_str(), last.event_revision);
        assert_eq!((last.reason(), by, last.gate), (Why::TermEnded, ("", "", 0), None));
        assert_eq!(last.changed_at, Some(timestamp(world.clock.now())));
    }
    world.done(Command::Resume, &world.now(&suspended).await).await;
}
