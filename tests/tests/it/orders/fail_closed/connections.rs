//! Connections that die, retries and the retry budget.

use super::*;

/// Both services with a proxy between them, and a partner with a customer that accepted.
async fn behind_a_proxy() -> (TcpProxy, Cluster, As, String) {
    let proxy = TcpProxy::start().await;
    let setup = Setup { agreements_at: Some(proxy.url.clone()), gate_deadline_ms: 1000, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    proxy.lead_to(cluster.agreements_address());
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    (proxy, cluster, direct, customer)
}

/// order-svc gives up a connection that died without a word and opens a new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn order_svc_replaces_a_silently_dead_connection() {
    tests::needs_own!("services that it stops");
    let (proxy, _cluster, direct, customer) = behind_a_proxy().await;
    actions::order(&direct, &customer, None, 5).await.unwrap();

    proxy.cut();
    let order = fixtures::new_order(&customer, None, OFFICE, 5);
    assert_unknown(&direct.orders().create_order(order.clone()).await.unwrap_err(), "cut off");
    assert_eq!(orders_of(&direct).await, 1);
    // No message tells it; it notices within the seven seconds that its keep-alive takes.
    let asking = async {
        while let Err(refused) = direct.orders().create_order(order.clone()).await {
            assert_unknown(&refused, "cut off");
        }
    };
    tokio::time::timeout(Duration::from_secs(15), asking).await.unwrap();
    assert_eq!(orders_of(&direct).await, 2);
}

/// A connection that is reset during a question costs a second question and no order.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reset_connection_costs_a_second_question_and_no_order() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    const ORDERS: usize = 8;
    let (proxy, _cluster, direct, customer) = behind_a_proxy().await;
    for _ in 0..ORDERS {
        proxy.reset_next();
        actions::order(&direct, &customer, None, 5).await.unwrap();
    }
    assert_eq!(orders_of(&direct).await, ORDERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_what_may_pass_by_itself_is_asked_again() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let twists: [(&str, usize, Twist); 6] = [
        ("unavailable", 3, |_| Err(Status::unavailable("not today"))),
        ("cancelled, in the words of our own time-out", 1, |_| Err(Status::cancelled("Timeout expired"))),
        ("its own time-out", 1, |_| Err(Status::deadline_exceeded("too slow"))),
        ("overloaded", 1, |_| Err(Status::resource_exhausted("too many"))),
        ("internal", 1, |_| Err(Status::internal("oops"))),
        ("nonsense", 1, |_| Ok(CheckEligibilityResponse::default())),
    ];
    for (about, questions, twist) in twists {
        let impostor = Impostor::new(twist);
        let cluster = cluster_asking(&impostor, 4000).await;
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let refused = actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap_err();
        assert_unknown(&refused, about);
        assert_eq!(impostor.questions.load(Ordering::SeqCst), questions, "{about}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn retries_do_not_triple_the_load_of_agreement_svc() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    const CALLS: usize = 200;
    let impostor = Impostor::new(|_| Err(Status::unavailable("not today")));
    let cluster = cluster_asking(&impostor, 1000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    for _ in 0..CALLS {
        let refused = actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap_err();
        assert_unknown(&refused, "in trouble");
    }
    let questions = impostor.questions.load(Ordering::SeqCst);
    assert!((CALLS..2 * CALLS).contains(&questions), "{questions} questions for {CALLS} calls");
}
