//! Attestations that an order or a change carries, when their outcome is unclear.

use super::*;

fn refused_with(code: Code, domain: &str, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, domain, HashMap::new());
    Status::with_error_details(code, format!("{reason}: because"), details)
}

/// So many seats, with an attestation.
fn seats(of: &Subscription, quantity: u32) -> ChangeSeatsRequest {
    ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: of.subscription_id.clone(),
        quantity,
        etag: of.etag.clone(),
        validate_only: false,
        attestation: Some(fixtures::inline_attestation(Clock::system().now())),
    }
}

/// An attestation that is not clearly made or refused is unknown, and order-svc stores no order and no change.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_rests_on_an_unknown_attestation() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    const US: &str = "agreement-svc";
    let prompted = || CreateOrderRequest {
        attestation: Some(fixtures::inline_attestation(Clock::system().now())),
        ..fixtures::new_order(&fixtures::request_id(), None, OFFICE, 5)
    };
    // What is clear passes, so that the others prove something.
    let clear: [(&str, AttestationTwist); 3] = [
        ("", Ok),
        ("", |_| Err(refused_with(Code::AlreadyExists, US, "ALREADY_ATTESTED"))),
        ("CLOUD_NOT_SUPPORTED", |_| Err(refused_with(Code::FailedPrecondition, US, "CLOUD_NOT_SUPPORTED"))),
    ];
    for (reason, attestation_twist) in clear {
        let cluster = cluster_asking(&Impostor { attestation_twist, ..Impostor::new(Ok) }, 1000).await;
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let placed = direct.orders().create_order(prompted()).await;
        assert_eq!(placed.as_ref().err().map(reason_of).unwrap_or_default(), reason);
        assert_eq!(orders_of(&direct).await, usize::from(placed.is_ok()), "{reason}");
    }

    let twists: [(&str, AttestationTwist); 18] = [
        ("unavailable", |_| Err(Status::unavailable("not today"))),
        ("its database away", |_| Err(refused_with(Code::Unavailable, US, "DATABASE_UNAVAILABLE"))),
        ("a defect", |_| Err(refused_with(Code::Internal, US, "INTERNAL"))),
        ("overloaded", |_| Err(refused_with(Code::ResourceExhausted, US, "OVERLOADED"))),
        ("no reason", |_| Err(Status::failed_precondition("no"))),
        ("another domain's reason", |_| {
            Err(refused_with(Code::FailedPrecondition, "some-svc", "CLOUD_NOT_SUPPORTED"))
        }),
        ("ours", |_| Err(refused_with(Code::FailedPrecondition, "order-svc", "CLOUD_NOT_SUPPORTED"))),
        ("an unknown reason", |_| Err(refused_with(Code::FailedPrecondition, US, "MERCURY_RETROGRADE"))),
        ("an unspecified reason", |_| Err(refused_with(Code::FailedPrecondition, US, "UNSPECIFIED"))),
        ("a reason of another call", |_| {
            Err(refused_with(Code::FailedPrecondition, US, "AGREEMENT_REQUIRED"))
        }),
        ("a reason with another code", |_| Err(refused_with(Code::Unknown, US, "CLOUD_NOT_SUPPORTED"))),
        ("attested already, and yet a defect", |_| Err(refused_with(Code::Internal, US, "ALREADY_ATTESTED"))),
        ("nothing", |_| Ok(CreateAttestationResponse::default())),
        ("no attestation", |a| Ok(CreateAttestationResponse { attestation: None, ..a })),
        ("no revision", |a| Ok(CreateAttestationResponse { revision: 0, ..a })),
        ("a revision that the gate has not reached", |a| Ok(CreateAttestationResponse { revision: 6, ..a })),
        ("another customer's", |mut answer| {
            answer.attestation.as_mut().unwrap().customer_id = Uuid::from_u128(9).to_string();
            Ok(answer)
        }),
        ("another partner's", |mut answer| {
            answer.attestation.as_mut().unwrap().partner_id = Uuid::from_u128(9).to_string();
            Ok(answer)
        }),
    ];
    for (about, attestation_twist) in twists {
        let cluster = cluster_asking(&Impostor { attestation_twist, ..Impostor::new(Ok) }, 1000).await;
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let refused = direct.orders().create_order(prompted()).await.unwrap_err();
        assert_unknown(&refused, about);
        assert_eq!(orders_of(&direct).await, 0, "{about}");
        let bought = actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap();
        let bought = bought.subscriptions.into_iter().next().unwrap();
        let refused = direct.subscriptions().change_seats(seats(&bought, 8)).await.unwrap_err();
        assert_unknown(&refused, about);
        let now = actions::get_subscription(&direct, &bought.subscription_id).await.unwrap();
        assert_eq!(now, bought, "{about}");
    }
}

/// The attestation of an order is made once, however often the order is sent and the gate is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_order_attests_once_however_often_it_is_sent() {
    tests::needs_own!("databases that it writes to");
    let impostor = Impostor::new(Ok);
    let cluster = cluster_asking(&impostor, 1000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let counts = || [&impostor.attestations, &impostor.questions].map(|count| count.load(Ordering::SeqCst));
    let order = CreateOrderRequest {
        attestation: Some(fixtures::inline_attestation(Clock::system().now())),
        ..fixtures::new_order(&fixtures::request_id(), None, OFFICE, 5)
    };
    for _ in 0..3 {
        direct.orders().create_order(order.clone()).await.unwrap();
        assert_eq!(counts(), [1, 1]);
    }
    cluster.orders_sql("UPDATE fence SET fence_revision = 1000000").unwrap();
    let order = CreateOrderRequest { request_id: fixtures::request_id(), ..order };
    let refused = direct.orders().create_order(order).await.unwrap_err();
    assert_eq!(reason_of(&refused), "WITHDRAWAL_LOST");
    assert_eq!(counts(), [2, 3]);
}

/// The attestation of a change, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_attests_once_however_often_it_is_sent() {
    tests::needs_own!("databases that it writes to");
    let impostor = Impostor::new(Ok);
    let cluster = cluster_asking(&impostor, 1000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let bought = actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap();
    let bought = bought.subscriptions.into_iter().next().unwrap();
    let counts = || [&impostor.attestations, &impostor.questions].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(counts(), [0, 1]);
    let request = seats(&bought, 8);
    let mut changed = bought;
    for _ in 0..3 {
        let answer = direct.subscriptions().change_seats(request.clone()).await.unwrap().into_inner();
        changed = answer.subscription.unwrap();
        assert_eq!(counts(), [1, 2]);
    }
    cluster.orders_sql("UPDATE fence SET fence_revision = 1000000").unwrap();
    let refused = direct.subscriptions().change_seats(seats(&changed, 9)).await.unwrap_err();
    assert_eq!(reason_of(&refused), "WITHDRAWAL_LOST");
    assert_eq!(counts(), [2, 4]);
}
