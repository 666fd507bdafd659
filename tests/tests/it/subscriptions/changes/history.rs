//! The kept history of a subscription, and calls that only validate.

use super::*;

/// SUB-5.
#[apply(each_backend)]
async fn everything_that_happened_is_kept_with_who_and_why(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let mut subscription = world.subscribe("MONTH").await;
    let commands = [
        Command::Seats(8),
        Command::Renew,
        Command::AutoRenew(false),
        Command::AutoRenew(true),
        Command::Suspend,
        Command::Resume,
        Command::Seats(3),
    ];
    let mut gates = vec![None];
    for (minute, command) in (1..).zip(commands) {
        world.clock.set(time("2026-01-31T12:00:00Z") + Duration::from_secs(60 * minute));
        let answer = world.ask(command, &subscription).await.unwrap();
        (subscription, _) = (answer.subscription, gates.push(answer.gate));
    }
    world.clock.set(time("2026-03-31T12:00:00Z"));
    let renewed = world.once(&subscription, |s| s.term_number == 3).await;
    world.clock.set(time("2026-04-01T12:00:00Z"));
    world.done(Command::Cancel, &renewed).await;
    gates.extend([None, None]);

    let changes = world.changes(&subscription).await;
    gates[0].clone_from(&changes[0].gate);
    let by = fixtures::sales(DIRECT);
    let (tenant, user) = (by.tenant_id.to_string(), by.user_id.to_string());
    let kept: Vec<_> = changes
        .iter()
        .map(|c| (c.number, c.kind(), c.quantity_before, c.quantity_after, c.term_number))
        .collect();
    assert_eq!(
        kept,
        [
            (1, Kind::Created, 0, 5, 1),
            (2, Kind::SeatsChanged, 5, 8, 1),
            (3, Kind::Renewed, 8, 8, 2),
            (4, Kind::AutoRenewOff, 8, 8, 2),
            (5, Kind::AutoRenewOn, 8, 8, 2),
            (6, Kind::Suspended, 8, 8, 2),
            (7, Kind::Resumed, 8, 8, 2),
            (8, Kind::SeatsChanged, 8, 3, 2),
            (9, Kind::Renewed, 3, 3, 3),
            (10, Kind::Cancelled, 3, 3, 3),
        ]
    );
    for (change, gate) in changes.iter().zip(&gates) {
        let is_own = change.number == 9;
        let by = if is_own { ("", "") } else { (tenant.as_str(), user.as_str()) };
        assert_eq!((change.actor_tenant.as_str(), change.actor.as_str()), by, "{change:?}");
        assert_eq!(change.reason(), if is_own { Why::TermEnded } else { Why::Requested });
        assert_eq!(change.gate, *gate, "{change:?}");
        let is_gated = matches!(change.number, 1 | 2 | 3 | 5 | 8);
        assert_eq!(gate.as_ref().map(GateEvidence::rule), is_gated.then_some(GateRule::Attestation));
        let minutes = i64::from(change.number) - 1;
        if change.number < 9 {
            let at = time("2026-01-31T12:00:00Z") + chrono::Duration::minutes(minutes);
            assert_eq!(change.changed_at, Some(timestamp(at)));
            assert!(gate.as_ref().is_none_or(|gate| gate.evaluated_at == Some(timestamp(at))));
        }
    }
}

#[apply(each_backend)]
async fn the_channel_of_the_caller_decides_when_it_became_mandatory(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    // Mandatory at the dashboard, optional through the API.
    let world = World::without_acceptance(backend, "2018-12-01T12:00:00Z").await;
    let api = Caller { channel: Channel::Api, ..fixtures::sales(DIRECT) };
    let api = world.cluster.as_caller(api);
    let order = world.new_order("YEAR", 2);
    let mut bought = api.orders().create_order(order).await.unwrap().into_inner().subscriptions;
    bought[1] = world.done(Command::AutoRenew(false), &bought[1]).await;
    let commands = [(Command::Seats(8), 0), (Command::Renew, 0), (Command::AutoRenew(true), 1)];
    for (command, of) in commands {
        let refused = world.refused(command, &bought[of]).await;
        assert_eq!(refused, forbidden("AGREEMENT_REQUIRED"), "{command:?}");
        let answer = Asked::of(command, &bought[of]).send(&api).await.unwrap();
        assert_eq!(answer.gate.unwrap().rule(), GateRule::NotYetMandatory, "{command:?}");
        bought[of] = answer.subscription;
    }
    bought[1] = world.done(Command::AutoRenew(false), &bought[1]).await;
    world.clock.set(time("2019-03-22T00:00:00Z"));
    for (command, of) in [(Command::Seats(9), 0), (Command::Renew, 0), (Command::AutoRenew(true), 1)] {
        let refused = Asked::of(command, &bought[of]).send(&api).await.unwrap_err();
        assert_eq!(refusal(&refused), forbidden("AGREEMENT_REQUIRED"), "{command:?}");
    }
}

#[apply(each_backend)]
async fn what_is_only_validated_stores_nothing(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let subscription = world.subscribe("YEAR").await;
    for command in [Command::Seats(8), Command::Renew] {
        let asked = Asked::of(command, &subscription);
        let dry_run = Asked { validate_only: true, ..asked.clone() };
        let dry_run = dry_run.send(&world.direct).await.unwrap();
        assert_eq!(world.now(&subscription).await, subscription, "{command:?}");
        assert_eq!(world.kinds(&subscription).await, [(1, Kind::Created)], "{command:?}");

        // The id is still free, and it comes to what was said.
        let other = world.subscribe("YEAR").await;
        let real = Asked { subscription_id: other.subscription_id.clone(), ..asked };
        let mut real = real.send(&world.direct).await.unwrap();
        real.subscription.subscription_id.clone_from(&subscription.subscription_id);
        real.subscription.order_id.clone_from(&subscription.order_id);
        assert_eq!((real.subscription, real.gate), (dry_run.subscription, dry_run.gate), "{command:?}");
    }
    for (command, expected) in [(Command::Seats(5), Ok(None)), (Command::Seats(301), Err("quantity"))] {
        let dry_run = Asked { validate_only: true, ..Asked::of(command, &subscription) };
        let answer = dry_run.send(&world.direct).await;
        assert_eq!(answer.as_ref().map(|answer| answer.gate.clone()).ok(), expected.clone().ok());
        assert_eq!(answer.err().map(|refused| bad_fields_of(&refused).join(",")).as_deref(), expected.err());
    }
}
