//! The fence: answers that are older than an applied withdrawal (WD-3).

use tests::assert::refusal;

use super::*;

/// WD-3. order-svc stores nothing on an answer that is older than the customer's fence.
#[apply(each_backend)]
async fn no_order_rests_on_an_answer_older_than_the_fence(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for name in ["Fenced", "Free"] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
        customers.push(customer);
    }
    let [fenced, free] = [&customers[0], &customers[1]];
    let bought = actions::order(&direct, fenced, None, 5).await.unwrap().subscriptions.remove(0);
    let raise = |to: &str| {
        let sql = format!("UPDATE fence SET fence_revision = {to} WHERE customer_id = '{fenced}'");
        cluster.orders_sql(&sql).unwrap();
    };
    let seats = |quantity| ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: bought.subscription_id.clone(),
        quantity,
        etag: bought.etag.clone(),
        validate_only: false,
        attestation: None,
    };

    raise("1000000");
    let refused = actions::order(&direct, fenced, None, 5).await.unwrap_err();
    let lost = (Code::FailedPrecondition, "WITHDRAWAL_LOST".to_owned());
    assert_eq!(refusal(&refused), lost);
    let refused = direct.subscriptions().change_seats(seats(8)).await.unwrap_err();
    assert_eq!(refusal(&refused), lost);
    // What is only validated is refused for the same reason.
    let dry = CreateOrderRequest { validate_only: true, ..fixtures::new_order(fenced, None, OFFICE, 5) };
    assert_eq!(refusal(&actions::place(&direct, dry.clone()).await.unwrap_err()), lost);
    let dry_seats = |quantity| ChangeSeatsRequest { validate_only: true, ..seats(quantity) };
    let refused = direct.subscriptions().change_seats(dry_seats(8)).await.unwrap_err();
    assert_eq!(refusal(&refused), lost);
    actions::order(&direct, free, None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 2);

    // An answer given after the withdrawal, or at it, passes.
    let revision = bought_at(&direct, &bought.order_id).await;
    raise(&revision.to_string());
    actions::place(&direct, dry).await.unwrap();
    direct.subscriptions().change_seats(dry_seats(8)).await.unwrap();
    direct.subscriptions().change_seats(seats(8)).await.unwrap();
    actions::order(&direct, fenced, None, 5).await.unwrap();
}

/// The revision of the answer that an order rests on.
async fn bought_at(caller: &As, order_id: &str) -> i64 {
    let request = GetOrderRequest { order_id: order_id.into() };
    let order = caller.orders().get_order(request).await.unwrap().into_inner().order.unwrap();
    order.gate.unwrap().revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_grew_old_at_the_fence_is_asked_for_again() {
    tests::needs_own!("a clock that it sets");
    // Only PostgreSQL lets transactions of one customer wait for each other there.
    let backend = Backend::Postgres;
    tests::needs!(backend);
    let start = Clock::system().now();
    let clock = Clock::manual(start);
    let setup = Setup { backend, clock: clock.clone(), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, start).await.unwrap();
    actions::order(&direct, &customer, None, 5).await.unwrap();

    let Url::Postgres(url) = cluster.orders_database() else { panic!("not PostgreSQL") };
    let mut holder = PgConnection::establish(url).unwrap();
    holder.batch_execute("BEGIN; SELECT * FROM fence FOR UPDATE").unwrap();
    let caller = direct.clone();
    let waiting = tokio::spawn(async move { actions::order(&caller, &customer, None, 5).await });
    // The session that waits for this very transaction, since other tests lock their own fences.
    let blocked =
        "SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))";
    while diesel::sql_query(blocked).execute(&mut holder).unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    let later = start + chrono::Duration::seconds(6);
    clock.set(later);
    holder.batch_execute("COMMIT").unwrap();
    let order = waiting.await.unwrap().unwrap().order.unwrap();
    assert_eq!(order.gate.unwrap().evaluated_at, Some(timestamp(later)));
}
