//! Idempotency keys and optimistic locking of subscription calls.

use super::*;

/// A repeated change gets its first answer, whatever happened since.
#[apply(each_backend)]
async fn a_repeated_change_gets_its_first_answer(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let commands = [
        (Command::Seats(8), Command::Seats(9)),
        (Command::Renew, Command::Renew),
        (Command::AutoRenew(false), Command::AutoRenew(true)),
        (Command::Suspend, Command::Suspend),
        (Command::Resume, Command::Resume),
        (Command::Cancel, Command::Cancel),
    ];
    let bought = world.subscribe_to("MONTH", commands.len()).await;
    let mut sent = vec![];
    for ((command, other), subscription) in commands.into_iter().zip(&bought) {
        let asked = Asked::of(command, subscription);
        let first = asked.clone().send(&world.direct).await.unwrap();
        sent.push((asked, other, first));
    }
    for (_, _, first) in &sent {
        if first.subscription.state() != State::Cancelled {
            world.done(Command::Cancel, &first.subscription).await;
        }
    }
    world.cluster.stop_agreements();
    world.clock.set(time("2026-02-28T12:00:00Z"));
    world.cluster.restart_orders().await.unwrap();
    for (asked, other, first) in sent {
        let before = world.kinds(&first.subscription).await;
        let again = asked.clone().send(&world.direct).await.unwrap();
        assert_eq!(again, first, "{:?}", asked.command);
        let etag = world.now(&first.subscription).await.etag;
        let other = Asked { command: other, etag: format!("{etag}0"), ..asked };
        let refused = other.send(&world.direct).await.unwrap_err();
        assert_eq!(refusal(&refused), (Code::InvalidArgument, "REQUEST_ID_REUSED".into()));
        assert_eq!(world.kinds(&first.subscription).await, before);
    }
}

/// The same user on several connections.
fn agents(world: &World) -> Vec<As> {
    (0..4).map(|_| world.cluster.as_caller(fixtures::sales(DIRECT))).collect()
}

/// The answers to many callers at once.
async fn at_once(agents: &[As], asked: impl Fn() -> Asked) -> Vec<Result<Answer, Status>> {
    join_all((0..CALLERS).map(|n| asked().send(&agents[n % agents.len()]))).await
}

/// A command of each kind that changes an active subscription.
const CHANGING: [Command; 5] =
    [Command::Seats(8), Command::Renew, Command::AutoRenew(false), Command::Suspend, Command::Cancel];

#[apply(each_backend)]
async fn many_callers_with_one_request_id_have_one_effect(#[case] backend: Backend) {
    tests::needs!(backend);
    let world = World::today(backend).await;
    let agents = agents(&world);
    for command in CHANGING {
        let subscription = world.subscribe(OFFICE).await;
        let asked = Asked::of(command, &subscription);
        let answers = at_once(&agents, || asked.clone()).await;
        let first = answers[0].as_ref().unwrap();
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap() == first), "{command:?}");
        assert_eq!(world.changes(&subscription).await.len(), 2, "{command:?}");
    }
}

#[apply(each_backend)]
async fn of_many_callers_with_one_etag_exactly_one_wins(#[case] backend: Backend) {
    tests::needs!(backend);
    let world = World::today(backend).await;
    let agents = agents(&world);
    for command in CHANGING {
        let subscription = world.subscribe(OFFICE).await;
        let answers = at_once(&agents, || Asked::of(command, &subscription)).await;
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1, "{command:?}");
        for lost in lost {
            assert_eq!(refusal(&lost.unwrap_err()), stale(), "{command:?}");
        }
        let won = won.into_iter().next().unwrap().unwrap().subscription;
        assert_eq!(world.now(&subscription).await, won, "{command:?}");
        assert_eq!(world.changes(&subscription).await.len(), 2, "{command:?}");
    }
}

/// A service repeats a first answer for thirty days; after that its request id is free.
#[apply(each_backend)]
async fn first_answers_are_kept_for_thirty_days(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let start = time("2026-01-31T12:00:00Z");
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let place = async |world: &World, order: &CreateOrderRequest| {
        world.direct.orders().create_order(order.clone()).await.map(Response::into_inner)
    };
    let create = async |world: &World, name: &str, request_id: &str| {
        let new = fixtures::new_customer(name, "FR", None);
        let new = proto::agreement::CreateCustomerRequest { request_id: request_id.into(), ..new };
        world.direct.customers().create_customer(new).await.map(Response::into_inner)
    };
    let (old_order, order) = (world.new_order("YEAR", 1), world.new_order("YEAR", 1));
    let (old_id, id) = (fixtures::request_id(), fixtures::request_id());
    let first_order = place(&world, &old_order).await.unwrap();
    create(&world, "Old", &old_id).await.unwrap();
    world.clock.set(start + Duration::from_secs(1));
    let order_placed = place(&world, &order).await.unwrap();
    let created = create(&world, "New", &id).await.unwrap();

    // To the microsecond.
    world.clock.set(start + Duration::from_secs(30 * 86_400 + 1));
    world.cluster.stop_agreements();
    world.cluster.restart_agreements().await.unwrap();
    world.cluster.restart_orders().await.unwrap();
    let second_order = eventually("order-svc forgets the first answer", async || {
        let placed = place(&world, &old_order).await.unwrap();
        (placed != first_order).then_some(placed)
    });
    let second_order = second_order.await.order.unwrap();
    assert_ne!(second_order.order_id, first_order.order.unwrap().order_id);
    eventually("agreement-svc forgets the first answer", async || {
        create(&world, "Other", &old_id).await.ok()
    })
    .await;
    assert_eq!(place(&world, &order).await.unwrap(), order_placed);
    assert_eq!(create(&world, "New", &id).await.unwrap(), created);
    let reused = create(&world, "Another", &id).await.unwrap_err();
    assert_eq!(refusal(&reused), (Code::InvalidArgument, "REQUEST_ID_REUSED".into()));

    world.clock.set(start + Duration::from_secs(31 * 86_400));
    world.cluster.stop_agreements();
    world.cluster.restart_agreements().await.unwrap();
    eventually("agreement-svc forgets the first answer", async || create(&world, "Another", &id).await.ok())
        .await;
}
