//! Invalid, missing and late answers of the gate are unknown (I8).

use super::*;

/// order-svc believes an impostor that answers correctly, so the refusals of the other impostors' answers prove
/// something.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn order_svc_believes_a_truthful_impostor() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let cluster = cluster_asking(&Impostor::new(Ok), 1000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_invalid_answer_is_unknown() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let twists: [(&str, Twist); 30] = [
        ("unspecified decision", |a| Ok(CheckEligibilityResponse { decision: 0, ..a })),
        ("unknown decision", |a| Ok(CheckEligibilityResponse { decision: 99, ..a })),
        ("negative decision", |a| Ok(CheckEligibilityResponse { decision: -1, ..a })),
        ("unspecified rule", |a| Ok(CheckEligibilityResponse { rule: 0, ..a })),
        ("unknown rule", |a| Ok(CheckEligibilityResponse { rule: 99, ..a })),
        ("allowed by the rule that blocks", |a| {
            Ok(CheckEligibilityResponse { rule: GateRule::NoSatisfyingAcceptance.into(), ..a })
        }),
        ("allowed without evidence", |a| Ok(CheckEligibilityResponse { evidence: None, ..a })),
        ("allowed by a signature that is an attestation", |a| {
            Ok(CheckEligibilityResponse { rule: GateRule::DirectSignature.into(), ..a })
        }),
        ("exempt as an automatic renewal", |a| {
            let (decision, rule) = (Decision::Exempt.into(), GateRule::AutoRenewal.into());
            Ok(CheckEligibilityResponse { decision, rule, evidence: None, ..a })
        }),
        ("exempt in the public cloud", |a| {
            let (decision, rule) = (Decision::Exempt.into(), GateRule::OutsidePublicCloud.into());
            Ok(CheckEligibilityResponse { decision, rule, evidence: None, ..a })
        }),
        ("exempt with a reason to block", |a| {
            let (decision, rule) = (Decision::Exempt.into(), GateRule::OutsidePublicCloud.into());
            let (cloud, reasons) = (Cloud::Germany.into(), vec![BlockReason::NoAcceptance.into()]);
            Ok(CheckEligibilityResponse {
                decision,
                rule,
                evidence: None,
                customer_cloud: cloud,
                reasons,
                ..a
            })
        }),
        ("exempt in no cloud", |a| {
            let (decision, rule) = (Decision::Exempt.into(), GateRule::OutsidePublicCloud.into());
            Ok(CheckEligibilityResponse { decision, rule, evidence: None, customer_cloud: 0, ..a })
        }),
        ("about another customer", |a| {
            Ok(CheckEligibilityResponse { customer_id: Uuid::from_u128(9).to_string(), ..a })
        }),
        ("about another payer", |a| {
            Ok(CheckEligibilityResponse { payer_id: Uuid::from_u128(9).to_string(), ..a })
        }),
        ("about no customer", |_| Ok(CheckEligibilityResponse::default())),
        ("no time", |a| Ok(CheckEligibilityResponse { evaluated_at: None, ..a })),
        ("no country", |a| Ok(CheckEligibilityResponse { customer_country: String::new(), ..a })),
        ("a negative revision", |a| Ok(CheckEligibilityResponse { revision: -1, ..a })),
        ("unauthenticated", |_| Err(Status::unauthenticated("who are you?"))),
        ("not permitted", |_| Err(Status::permission_denied("you may not"))),
        ("internal", |_| Err(Status::internal("oops"))),
        ("invalid for another reason", |_| Err(Status::invalid_argument("nonsense"))),
        ("unimplemented", |_| Err(Status::unimplemented("never heard of it"))),
        ("not found, by something that is not agreement-svc", |_| Err(Status::not_found("no such page"))),
        ("allowed outside the public cloud", |a| {
            Ok(CheckEligibilityResponse { customer_cloud: Cloud::Germany.into(), ..a })
        }),
        ("allowed in no cloud", |a| Ok(CheckEligibilityResponse { customer_cloud: 0, ..a })),
        ("allowed in an unknown cloud", |a| Ok(CheckEligibilityResponse { customer_cloud: 99, ..a })),
        ("allowed for reasons to block", |a| {
            Ok(CheckEligibilityResponse { reasons: vec![BlockReason::Withdrawn.into()], ..a })
        }),
        ("given two minutes ago", |a| {
            let then = Clock::system().now() - chrono::Duration::minutes(2);
            Ok(CheckEligibilityResponse { evaluated_at: Some(timestamp(then)), ..a })
        }),
        ("holding until a moment that has passed", |a| {
            Ok(CheckEligibilityResponse { valid_until: Some(timestamp(Clock::system().now())), ..a })
        }),
    ];
    for (about, twist) in twists {
        let cluster = cluster_asking(&Impostor::new(twist), 1000).await;
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let refused = actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap_err();
        assert_unknown(&refused, about);
        assert_eq!(orders_of(&direct).await, 0, "{about}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn evidence_of_a_type_that_the_offer_does_not_demand_is_unknown() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let cloud: Twist = |mut answer| {
        if let Some(evidence) = &mut answer.evidence {
            evidence.agreement_type = AgreementType::MicrosoftCloudAgreement.into();
        }
        Ok(answer)
    };
    let cluster = cluster_asking(&Impostor::new(cloud), 1000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = fixtures::request_id();
    direct.orders().create_order(fixtures::new_order(&customer, None, OFFICE, 1)).await.unwrap();
    let order = fixtures::new_order(&customer, None, AZURE_PLAN, 1);
    assert_unknown(&direct.orders().create_order(order).await.unwrap_err(), "the Azure plan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_that_never_comes_is_unknown_within_the_deadline() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let cluster = cluster_asking(&Impostor::silent(), 50).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let refused = actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap_err();
    assert_unknown(&refused, "never");
    // What is wrong with the order whatever the gate says is said instead.
    let order = fixtures::new_order(&fixtures::request_id(), None, OFFICE, 301);
    let refused = direct.orders().create_order(order).await.unwrap_err();
    assert_eq!(tests::clients::bad_fields_of(&refused), ["lines[0].quantity"]);
    assert_eq!(orders_of(&direct).await, 0);
}

/// A caller that waits less than the gate takes learns that the decision is unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_caller_with_a_short_deadline_learns_of_no_decision() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let cluster = cluster_asking(&Impostor::silent(), 30_000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    // The service answers shortly before the client's own timer ends the call. On a busy machine the timer can be first.
    for _ in 0..10 {
        let mut request = Request::new(fixtures::new_order(&fixtures::request_id(), None, OFFICE, 5));
        request.set_timeout(Duration::from_millis(500));
        let refused = direct.orders().create_order(request).await.unwrap_err();
        if refused.code() == Code::Unavailable {
            return;
        }
        assert_eq!(refused.message(), "Timeout expired");
    }
    panic!("the client's timer was always first");
}

/// order-svc asks again for an answer that was lost, while there is time.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn order_svc_asks_again_for_a_lost_answer() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let impostor = Impostor { silent: 1, ..Impostor::new(Ok) };
    let cluster = cluster_asking(&impostor, 4000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap();
    assert_eq!(impostor.questions.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_yes_that_comes_too_late_is_unknown_and_without_effect() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let impostor = Impostor::new(Ok);
    let (proxy, cluster) = cluster_far_from(&impostor, 1000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    // By then order-svc knows that the history is followed.
    actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap();
    proxy.hold_answers(true);
    let order = fixtures::new_order(&fixtures::request_id(), None, OFFICE, 5);
    let mut orders = direct.orders();
    // Before keep-alive gives the connection up, by which the late yes is to come.
    let asking = tokio::time::timeout(Duration::from_secs(5), orders.create_order(order.clone()));
    assert_unknown(&asking.await.unwrap().unwrap_err(), "late");
    assert!(impostor.questions.load(Ordering::SeqCst) > 1);
    assert_eq!(orders_of(&direct).await, 1);

    // What is answered to the next order comes by the same connection, after the late yes.
    proxy.hold_answers(false);
    actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap();
    assert_eq!(orders_of(&direct).await, 2);
    orders.create_order(order).await.unwrap();
    assert_eq!(orders_of(&direct).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_late_yes_and_the_one_that_came_instead_make_one_order() {
    tests::needs_own!("a proxy to agreement-svc that it cuts");
    let impostor = Impostor::new(Ok);
    let (proxy, cluster) = cluster_far_from(&impostor, 4000).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    actions::order(&direct, &fixtures::request_id(), None, 5).await.unwrap();
    tokio::time::timeout(LONG, impostor.asked.notified()).await.unwrap();
    proxy.hold_answers(true);
    let caller = direct.clone();
    let waiting =
        tokio::spawn(async move { actions::order(&caller, &fixtures::request_id(), None, 5).await });
    // It is asked again once the first answer is too late.
    for _ in 0..2 {
        tokio::time::timeout(LONG, impostor.asked.notified()).await.unwrap();
    }
    proxy.hold_answers(false);
    waiting.await.unwrap().unwrap();
    assert_eq!(impostor.questions.load(Ordering::SeqCst), 3);
    assert_eq!(orders_of(&direct).await, 2);
}
