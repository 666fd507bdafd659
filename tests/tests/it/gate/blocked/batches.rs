//! Batches of checks.

use super::*;

async fn batch(caller: &As, items: Vec<CheckEligibilityRequest>) -> Result<Vec<ItemResult>, Status> {
    let request = BatchCheckEligibilityRequest { items };
    let answer: BatchCheckEligibilityResponse =
        caller.gate().batch_check_eligibility(request).await?.into_inner();
    Ok(answer.results.into_iter().map(|result| result.result.unwrap()).collect())
}

/// Each item of a batch has its answer in its place, the same as a call of its own would have.
#[apply(each_backend)]
async fn each_item_of_a_batch_is_answered_like_its_own_call(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let (cluster, _) = world_at(backend, "2026-11-21T00:00:00Z").await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let service = cluster.as_caller(fixtures::service());
    let good = actions::create_customer(&direct, "Good", "FR", None).await.unwrap();
    actions::attest(&direct, &good, time("2026-11-21T00:00:00Z")).await.unwrap();
    let bad = actions::create_customer(&direct, "Bad", "FR", None).await.unwrap();
    let resold = actions::create_customer(&reseller, "Resold", "FR", Some(PROVIDER)).await.unwrap();

    let questions = vec![
        new_check(DIRECT, &bad),
        new_check(DIRECT, "no id"),
        new_check(DIRECT, &good),
        new_check(DIRECT, &Uuid::from_u128(7).to_string()),
        new_check(DIRECT, &resold),
        new_check(RESELLER, &resold),
        CheckEligibilityRequest { at_least_revision: 1 << 40, ..new_check(DIRECT, &good) },
        CheckEligibilityRequest { operation: 0, channel: 99, ..new_check(DIRECT, "") },
        CheckEligibilityRequest { reseller_id: RESELLER.to_string(), ..new_check(PROVIDER, &resold) },
        CheckEligibilityRequest {
            as_of: Some(timestamp(time("2018-09-01T00:00:00Z"))),
            ..new_check(DIRECT, &bad)
        },
        new_check(DIRECT, &good),
    ];
    let (mut answers, mut reasons) = (0, BTreeSet::new());
    for (caller, is_service) in [(&direct, false), (&reseller, false), (&service, true)] {
        let mut questions = questions.clone();
        if is_service {
            questions.iter_mut().filter(|q| q.channel == 0).for_each(|q| q.channel = 1);
        }
        let results = batch(caller, questions.clone()).await.unwrap();
        assert_eq!(results.len(), questions.len());
        for (question, result) in questions.into_iter().zip(results) {
            match (caller.gate().check_eligibility(question).await, result) {
                (Ok(alone), ItemResult::Answer(item)) => {
                    assert_eq!(item, alone.into_inner());
                    answers += 1;
                }
                (Err(alone), ItemResult::Refusal(item)) => {
                    assert_eq!(item.code, i32::from(alone.code()));
                    assert_eq!(item.message, alone.message());
                    assert_eq!(item.metadata, metadata_of(&alone));
                    let fields: Vec<_> = item.fields.iter().map(|f| f.field.clone()).collect();
                    assert_eq!(fields, bad_fields_of(&alone));
                    let reason = item.reason().as_str_name().trim_start_matches("ERROR_REASON_");
                    assert_eq!(reason, reason_of(&alone));
                    reasons.insert(reason.to_owned());
                }
                (alone, item) => panic!("alone {alone:?}, in a batch {item:?}"),
            }
        }
    }
    // So that none of the kinds was forgotten.
    assert_eq!(answers, 4 + 1 + 4);
    let all = ["INVALID_FIELDS", "PAYER_IS_RESELLER", "RESOURCE_NOT_FOUND", "REVISION_BEHIND"];
    assert_eq!(reasons, all.map(String::from).into());

    for count in [0, 101] {
        let refused = batch(&direct, vec![new_check(DIRECT, &good); count]).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
        assert_eq!(bad_fields_of(&refused), ["items"]);
    }
    assert_eq!(batch(&direct, vec![new_check(DIRECT, &good); 100]).await.unwrap().len(), 100);

    // A damaged row is the refusal of those whose it is.
    let damage = format!("UPDATE customer SET cloud = 'MARS' WHERE id = '{good}'");
    cluster.agreements_sql(&damage).unwrap();
    let results = batch(&direct, vec![new_check(DIRECT, &good), new_check(DIRECT, &bad)]).await.unwrap();
    match results.as_slice() {
        [ItemResult::Refusal(damaged), ItemResult::Answer(_)] => {
            assert_eq!(damaged.code, i32::from(Code::Internal));
        }
        other => panic!("{other:?}"),
    }
}

#[apply(each_backend)]
async fn a_batch_is_answered_from_one_state_at_one_time(#[case] backend: Backend) {
    tests::needs!(backend);
    const PAIRS: usize = 50;
    /// Pairs that accept during one batch.
    const TOGETHER: usize = 10;
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for n in 0..2 * PAIRS {
        customers
            .push(actions::create_customer(&direct, &format!("Customer {n}"), "FR", None).await.unwrap());
    }
    // Of each pair the first accepts before the second, and is asked about before it.
    let (firsts, seconds) = customers.split_at(PAIRS);
    let items: Vec<_> =
        firsts.iter().chain(seconds.iter().rev()).map(|customer| new_check(DIRECT, customer)).collect();
    let batches = Cell::new(0);
    let write = async {
        for (n, (first, second)) in firsts.iter().zip(seconds).enumerate() {
            actions::attest(&direct, first, Clock::system().now()).await.unwrap();
            actions::attest(&direct, second, Clock::system().now()).await.unwrap();
            let seen = batches.get();
            while n % TOGETHER == TOGETHER - 1 && batches.get() == seen {
                tokio::task::yield_now().await;
            }
        }
    };
    let mixed = Cell::new(0);
    let read = async {
        loop {
            let results = batch(&direct, items.clone()).await.unwrap();
            let answers: Vec<_> = results
                .into_iter()
                .map(|result| match result {
                    ItemResult::Answer(answer) => answer,
                    ItemResult::Refusal(refusal) => panic!("{refusal:?}"),
                })
                .collect();
            assert!(answers.iter().all(|answer| answer.evaluated_at == answers[0].evaluated_at));
            let allowed: Vec<_> = answers.iter().map(|a| a.decision() == Decision::Allowed).collect();
            for n in 0..PAIRS {
                let (first, second) = (allowed[n], allowed[2 * PAIRS - 1 - n]);
                assert!(first || !second, "{backend:?}: pair {n} was read before and after a change");
            }
            batches.set(batches.get() + 1);
            if allowed.iter().all(|is_allowed| *is_allowed) {
                return;
            }
            mixed.set(mixed.get() + usize::from(allowed.contains(&true)));
        }
    };
    tokio::join!(read, write);
    assert!(mixed.get() >= 3, "{backend:?}: only {} batches saw changes in progress", mixed.get());
}
