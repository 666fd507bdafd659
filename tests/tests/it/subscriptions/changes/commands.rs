//! Every command in every state.

use super::*;

/// What a command comes to.
#[derive(Clone, Copy, Debug)]
enum Comes {
    /// It changes something without asking the gate.
    Free(Kind),
    /// It changes something on the gate's yes.
    Gated(Kind),
    /// It is so already.
    Nothing,
    Refused(&'static str),
}

#[apply(each_backend)]
async fn every_command_has_its_answer_in_every_state(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    use Comes::{Free, Gated, Nothing, Refused};
    const NOT_ACTIVE: Comes = Refused("SUBSCRIPTION_NOT_ACTIVE");
    const ENDED: Comes = Refused("SUBSCRIPTION_ENDED");
    // What it comes to when ACTIVE, SUSPENDED, CANCELLED, EXPIRED.
    let table = [
        (Command::Seats(8), [Gated(Kind::SeatsChanged), NOT_ACTIVE, NOT_ACTIVE, NOT_ACTIVE]),
        (Command::Seats(5), [Nothing, NOT_ACTIVE, NOT_ACTIVE, NOT_ACTIVE]),
        (Command::Renew, [Gated(Kind::Renewed), NOT_ACTIVE, NOT_ACTIVE, NOT_ACTIVE]),
        (Command::AutoRenew(true), [Nothing, Nothing, ENDED, ENDED]),
        (Command::AutoRenew(false), [Free(Kind::AutoRenewOff), Free(Kind::AutoRenewOff), ENDED, ENDED]),
        (Command::Suspend, [Free(Kind::Suspended), Nothing, ENDED, ENDED]),
        (Command::Resume, [Nothing, Free(Kind::Resumed), ENDED, ENDED]),
        (Command::Cancel, [Free(Kind::Cancelled), Free(Kind::Cancelled), Nothing, ENDED]),
    ];
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let mut expired = world.subscribe_to("MONTH", table.len()).await;
    for subscription in &mut expired {
        *subscription = world.done(Command::AutoRenew(false), subscription).await;
    }
    world.clock.set(time("2026-02-28T12:00:00Z"));
    for subscription in &mut expired {
        *subscription = world.once(subscription, |s| s.state() == State::Expired).await;
    }
    let active = world.subscribe_to("MONTH", table.len()).await;
    let mut suspended = world.subscribe_to("MONTH", table.len()).await;
    let mut cancelled = world.subscribe_to("MONTH", table.len()).await;
    for subscription in &mut suspended {
        *subscription = world.done(Command::Suspend, subscription).await;
    }
    for subscription in &mut cancelled {
        *subscription = world.done(Command::Cancel, subscription).await;
    }
    for (n, (command, expected)) in table.into_iter().enumerate() {
        let states = [&active[n], &suspended[n], &cancelled[n], &expired[n]];
        for (before, comes) in states.into_iter().zip(expected) {
            let about = format!("{backend:?}: {command:?} when {:?}", before.state());
            let outdated = Asked { etag: "0".into(), ..Asked::of(command, before) };
            assert_eq!(refusal(&outdated.send(&world.direct).await.unwrap_err()), stale(), "{about}");
            let answer = world.ask(command, before).await;
            match comes {
                Free(kind) | Gated(kind) => {
                    let Answer { subscription, gate, .. } = answer.unwrap();
                    let last = world.changes(before).await.pop().unwrap();
                    assert_eq!((last.kind(), last.reason()), (kind, Why::Requested), "{about}");
                    assert_eq!(gate.is_some(), matches!(comes, Gated(_)), "{about}");
                    assert_eq!(last.gate, gate, "{about}");
                    assert_eq!(world.now(before).await, subscription, "{about}");
                    assert_ne!(subscription.etag, before.etag, "{about}");
                }
                Nothing => {
                    let Answer { subscription, gate, .. } = answer.unwrap();
                    assert_eq!((&subscription, gate), (before, None), "{about}");
                    assert_eq!(world.now(before).await, *before, "{about}");
                }
                Refused(reason) => {
                    let refused = answer.unwrap_err();
                    assert_eq!(refusal(&refused), forbidden(reason), "{about}");
                    let state = before.state().as_str_name().rsplit('_').next().unwrap();
                    assert_eq!(metadata_of(&refused)["state"], state, "{about}");
                    assert_eq!(world.now(before).await, *before, "{about}");
                }
            }
        }
    }
}

#[apply(each_backend)]
async fn what_the_offer_does_not_allow_is_refused(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let licences = world.subscribe("YEAR").await;
    for seats in [1, 301] {
        let refused = world.ask(Command::Seats(seats), &licences).await.unwrap_err();
        assert_eq!(bad_fields_of(&refused), ["quantity"]);
        assert!(refused.message().contains("2 to 300"), "{}", refused.message());
    }
    let by_hand = world.subscribe("BY_HAND").await;
    assert!(!by_hand.auto_renew);
    assert_eq!(world.refused(Command::Seats(8), &by_hand).await, forbidden("NOT_A_LICENCE"));
    assert_eq!(world.refused(Command::AutoRenew(true), &by_hand).await, forbidden("NOT_RENEWABLE"));
    let renewed = world.done(Command::Renew, &by_hand).await;
    assert_eq!(renewed.term_end, Some(timestamp(time("2028-01-31T12:00:00Z"))));

    let perpetual = world.subscribe("PERPETUAL").await;
    for command in [Command::Renew, Command::AutoRenew(true)] {
        assert_eq!(world.refused(command, &perpetual).await, forbidden("NOT_RENEWABLE"), "{command:?}");
    }
    // However much time passes.
    world.clock.set(time("2126-01-31T12:00:00Z"));
    world.once(&licences, |s| s.term_number == 101).await;
    assert_eq!(world.now(&perpetual).await, perpetual);
}

#[apply(each_backend)]
async fn only_what_is_gated_needs_agreement_svc(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let on = world.subscribe("YEAR").await;
    let off = world.subscribe("YEAR").await;
    let off = world.done(Command::AutoRenew(false), &off).await;
    world.cluster.stop_agreements();

    for command in [Command::Seats(8), Command::Renew] {
        assert_eq!(world.refused(command, &on).await, unavailable(), "{command:?}");
    }
    assert_eq!(world.refused(Command::AutoRenew(true), &off).await, unavailable());
    let same = [
        (Command::Seats(5), &on),
        (Command::AutoRenew(true), &on),
        (Command::AutoRenew(false), &off),
        (Command::Resume, &on),
    ];
    for (command, subscription) in same {
        let answer = world.ask(command, subscription).await.unwrap();
        assert_eq!((&answer.subscription, answer.gate), (subscription, None), "{command:?}");
    }
    let mut subscription = on;
    for command in
        [Command::AutoRenew(false), Command::Suspend, Command::Suspend, Command::Resume, Command::Cancel]
    {
        subscription = world.done(command, &subscription).await;
    }
    assert_eq!(world.done(Command::Cancel, &subscription).await, subscription);
    let expected = [Kind::Created, Kind::AutoRenewOff, Kind::Suspended, Kind::Resumed, Kind::Cancelled];
    assert_eq!(world.kinds(&subscription).await, (1..).zip(expected).collect::<Vec<_>>());
}
