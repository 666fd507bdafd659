//! Terms: manual and automatic renewal, once each.

use super::*;

#[apply(each_backend)]
async fn nothing_changes_between_the_end_of_a_term_and_its_processing(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let bought = world.subscribe_to("MONTH", 2).await;
    let suspended = world.done(Command::Suspend, &bought[1]).await;
    let end = time("2026-02-28T12:00:00Z");
    world.clock.set(end - Duration::from_micros(1));
    let active = world.done(Command::Seats(8), &bought[0]).await;
    // Without agreement-svc it is unknown what came before the end.
    world.cluster.stop_agreements();
    world.clock.set(end);
    world.cluster.restart_orders().await.unwrap();
    let commands = [
        Command::Seats(9),
        Command::Seats(8),
        Command::Renew,
        Command::AutoRenew(true),
        Command::AutoRenew(false),
        Command::Suspend,
        Command::Resume,
        Command::Cancel,
    ];
    for command in commands {
        assert_eq!(world.refused(command, &active).await, forbidden("TERM_ENDED"), "{command:?}");
    }
    for command in &commands[3..] {
        assert_eq!(world.refused(*command, &suspended).await, forbidden("TERM_ENDED"), "{command:?}");
    }
    world.cluster.restart_agreements().await.unwrap();
    let renewed = world.once(&active, |s| s.term_number == 2).await;
    for command in [Command::Seats(9), Command::Cancel] {
        assert_eq!(world.refused(command, &active).await, stale(), "{command:?}");
    }
    assert_eq!(world.done(Command::Seats(9), &renewed).await.quantity, 9);
}

/// SUB-4. Each renewal by hand adds one term, which ends on the same day or the last day of the month.
#[apply(each_backend)]
async fn each_renewal_by_hand_adds_one_term(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    for (start, offer, ends) in [
        ("2026-01-31", "MONTH", &["2026-02-28", "2026-03-31", "2026-04-30"][..]),
        ("2024-01-31", "MONTH", &["2024-02-29", "2024-03-31", "2024-04-30"]),
        ("2024-02-29", "YEAR", &["2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2024-02-29", "THREE_YEARS", &["2027-02-28", "2030-02-28", "2033-02-28", "2036-02-29"]),
    ] {
        let at = |day: &str| time(&format!("{day}T12:00:00Z"));
        let world = World::new(backend, &format!("{start}T12:00:00Z")).await;
        let mut subscription = world.subscribe(offer).await;
        for (term, end) in (1..).zip(ends) {
            assert_eq!(subscription.term_end, Some(timestamp(at(end))), "{offer} from {start}");
            assert_eq!(subscription.term_number, term);
            subscription = world.done(Command::Renew, &subscription).await;
        }
        // Terms that were bought ahead end one day, too, and then the next is added by itself.
        let last = subscription.term_number;
        world.clock.set(at(ends[ends.len() - 1]));
        let end = subscription.term_end.unwrap();
        assert_eq!(world.now(&subscription).await, subscription);
        world.clock.set(Time::from_timestamp(end.seconds, 0).unwrap());
        world.once(&subscription, |s| s.term_number == last + 1).await;
        let mut expected = vec![Kind::Renewed; ends.len() + 2];
        expected[0] = Kind::Created;
        assert_eq!(world.kinds(&subscription).await, (1..).zip(expected).collect::<Vec<_>>());
    }
}

/// SUB-3.
#[apply(each_backend)]
async fn after_downtime_each_term_is_processed_once(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let monthly = world.subscribe("MONTH").await;
    let yearly = world.subscribe("YEAR").await;
    let off = world.subscribe("MONTH").await;
    let off = world.done(Command::AutoRenew(false), &off).await;
    world.cluster.stop_orders();
    world.clock.set(time("2027-03-31T12:00:00Z"));
    world.cluster.restart_orders().await.unwrap();

    let renewed = world.once(&monthly, |s| s.term_number > 1).await;
    let end = Some(timestamp(time("2027-04-30T12:00:00Z")));
    assert_eq!((renewed.term_number, renewed.term_end, renewed.etag.as_str()), (15, end, "15"));
    let changes = world.changes(&monthly).await;
    let kept: Vec<_> = changes.iter().map(|c| (c.number, c.term_number, c.reason())).collect();
    let expected = (1..=15).map(|n| (n, n, if n == 1 { Why::Requested } else { Why::TermEnded }));
    assert_eq!(kept, expected.collect::<Vec<_>>());
    assert!(
        changes.iter().all(|c| c.quantity_after == 5 && c.quantity_before == 5 * u32::from(c.number > 1))
    );
    let renewed = world.once(&yearly, |s| s.term_number > 1).await;
    assert_eq!(renewed.term_end, Some(timestamp(time("2028-01-31T12:00:00Z"))));
    world.once(&off, |s| s.state() == State::Expired).await;
    assert_eq!(world.kinds(&off).await, [(1, Kind::Created), (2, Kind::AutoRenewOff), (3, Kind::Expired)]);
}

/// Subscriptions that one order-svc renews at a time.
const RENEWED_AT_A_TIME: usize = 4;

/// Keeps all rows of a table as they are, on PostgreSQL.
struct Holder {
    connection: PgConnection,
    table: &'static str,
}

impl Holder {
    fn of(cluster: &Cluster, table: &'static str) -> Option<Self> {
        let Url::Postgres(url) = cluster.orders_database() else { return None };
        let mut connection = PgConnection::establish(url).unwrap();
        connection.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN SHARE MODE")).unwrap();
        Some(Self { connection, table })
    }

    /// Lets go once so many transactions wait.
    async fn let_go_after(mut self, waiting: usize) {
        let blocked =
            format!("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{}'::regclass", self.table);
        let waiters = async {
            while diesel::sql_query(&blocked).execute(&mut self.connection).unwrap() < waiting {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WAIT_MAX, waiters).await.unwrap();
        self.connection.batch_execute("COMMIT").unwrap();
    }
}

#[apply(each_backend)]
async fn replicas_never_renew_twice(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    const ORDERS: usize = 4;
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let mut bought = vec![];
    for _ in 0..ORDERS {
        bought.extend(world.subscribe_to("MONTH", 100).await);
    }
    world.cluster.start_orders_replica().await.unwrap();
    // Each looks at its own times. On PostgreSQL no replica gets further than to a first change until
    // both are there; on SQLite it is left to chance where they meet.
    let holder = Holder::of(&world.cluster, "subscription");
    world.clock.set(time("2026-04-30T12:00:00Z"));
    if let Some(holder) = holder {
        holder.let_go_after(2 * RENEWED_AT_A_TIME).await;
    }
    let all = ListSubscriptionsRequest { page_size: 500, ..ListSubscriptionsRequest::default() };
    let renewed = eventually("every subscription renews", async || {
        let listed = world.direct.subscriptions().list_subscriptions(all.clone()).await.unwrap();
        let listed = listed.into_inner().subscriptions;
        listed.iter().all(|s| s.term_number > 1).then_some(listed)
    });
    let renewed = renewed.await;
    assert_eq!(renewed.len(), bought.len());
    assert!(renewed.iter().all(|s| s.term_number == 4 && s.etag == "4"));
    for subscription in &renewed {
        let expected = [Kind::Created, Kind::Renewed, Kind::Renewed, Kind::Renewed];
        assert_eq!(world.kinds(subscription).await, (1..).zip(expected).collect::<Vec<_>>());
    }
}

async fn all_are_reported(cluster: &Cluster) {
    let look = async || {
        let metrics = cluster.orders_metrics().await.unwrap();
        metrics.contains("order_svc_purchase_reports_waiting 0\n").then_some(())
    };
    eventually("the first purchases are reported", look).await;
}

#[apply(each_backend)]
async fn replicas_never_report_a_first_purchase_twice(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    const CUSTOMERS: usize = 6;
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    for n in 0..CUSTOMERS {
        world.customer =
            actions::create_customer(&world.direct, &format!("Customer {n}"), "FR", None).await.unwrap();
        actions::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
        world.subscribe_to("MONTH", 1).await;
    }
    all_are_reported(&world.cluster).await;
    // They are due once more. On PostgreSQL one replica has them in hand, and the other passes them over, until both go on.
    let again = "UPDATE purchase_report SET reported_at = NULL, due_at = '2026-01-31 12:04:00'";
    world.cluster.orders_sql(again).unwrap();
    world.cluster.start_orders_replica().await.unwrap();
    let holder = Holder::of(&world.cluster, "purchase_report");
    world.clock.set(time("2026-02-01T12:00:00Z"));
    if let Some(holder) = holder {
        holder.let_go_after(1).await;
    }
    all_are_reported(&world.cluster).await;
    let calls = world.cluster.agreements_metrics().await.unwrap();
    let path = "/csp.agreement.v1.EligibilityService/ReportPurchase";
    let taken = format!("calls_total{{code=\"Ok\",path=\"{path}\"}} {}\n", 2 * CUSTOMERS);
    assert!(calls.contains(&taken), "{calls}");
}

#[apply(each_backend)]
async fn a_damaged_row_does_not_stop_other_renewals(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    // More than are looked up at a time.
    world.subscribe_to("MONTH", 70).await;
    world.cluster.orders_sql("UPDATE subscription SET state = 'GARBAGE'").unwrap();
    world.clock.set(time("2026-01-31T12:00:01Z"));
    let whole = world.subscribe_to("MONTH", 3).await;
    world.clock.set(time("2026-03-05T00:00:00Z"));
    for subscription in &whole {
        world.once(subscription, |s| s.term_number == 2).await;
    }
    // Nor those that come after a look that found nothing but damage.
    world.clock.set(time("2026-04-05T00:00:00Z"));
    for subscription in &whole {
        world.once(subscription, |s| s.term_number == 3).await;
    }
}
