//! The list of blocked customers.

use super::*;

/// A partner sees which of its customers are blocked, why, and what it can do.
#[apply(each_backend)]
async fn a_partner_sees_its_blocked_customers_with_remedies(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    actions::register_partner(&operator, GERMAN, "Nord", PartnerKind::DirectBill, Cloud::Germany)
        .await
        .unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let (cloud_agreement, _turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    let customers = one_of_each(&cluster, &cloud_agreement.template_id).await;

    let listed = blocked(&direct, None).await;
    assert_eq!(
        shown(&listed),
        [
            "Bought: NO_ACCEPTANCE; ATTEST",
            "Cloud: WRONG_AGREEMENT_TYPE; ATTEST,INVITE_CUSTOMER",
            "None: NO_ACCEPTANCE; ATTEST,INVITE_CUSTOMER",
            "Old: VERSION_SUPERSEDED; ATTEST,INVITE_CUSTOMER",
            "Withdrawn: WITHDRAWN; ATTEST,INVITE_CUSTOMER",
        ]
    );
    assert!(listed.iter().all(|row| row.payer_id == DIRECT.to_string()));
    let remedies = listed.iter().flat_map(|row| &row.remedies);
    assert!(remedies.into_iter().all(|remedy| remedy.template_id == CUSTOMER_AGREEMENT));
    let active = active(&customers);
    check_against_the_gate(&direct, (DIRECT, None), &active, None).await;
    // A user who only reads gets no remedies of its own.
    let helpdesk = cluster.as_caller(caller(TenantKind::Partner, DIRECT, &[Role::HelpdeskAgent]));
    assert!(blocked(&helpdesk, None).await.iter().all(|row| row.remedies.is_empty()));
    // The other provider's customers are none of its business, and acceptance does not exist elsewhere.
    let nord = cluster.as_caller(fixtures::sales(GERMAN));
    actions::create_customer(&nord, "Nordwind", "DE", None).await.unwrap();
    assert_eq!(blocked(&nord, None).await, []);
    assert_eq!(blocked(&cluster.as_caller(fixtures::sales(PROVIDER)), None).await, []);

    // Back in time the policy and the versions move, and the acceptances stay.
    for (as_of, by, expected) in [
        ("2017-01-01T00:00:00Z", fixtures::sales(DIRECT), &[][..]),
        ("2019-01-01T00:00:00Z", over_api(fixtures::sales(DIRECT)), &[]),
        // Only the Cloud Agreement satisfied.
        ("2019-01-01T00:00:00Z", fixtures::sales(DIRECT), &["Bought", "Current", "None", "Old", "Withdrawn"]),
        ("2019-12-01T00:00:00Z", over_api(fixtures::sales(DIRECT)), &["Bought", "None", "Withdrawn"]),
        // The second version of the Customer Agreement was due in April 2023.
        ("2023-03-31T23:59:59.999999Z", fixtures::sales(DIRECT), &["Bought", "Cloud", "None", "Withdrawn"]),
        ("2023-04-01T00:00:00Z", fixtures::sales(DIRECT), &["Bought", "Cloud", "None", "Old", "Withdrawn"]),
    ] {
        let partner = cluster.as_caller(by);
        let as_of = Some(time(as_of));
        assert_eq!(names(&blocked(&partner, as_of).await), expected, "{as_of:?}");
        check_against_the_gate(&partner, (DIRECT, None), &active, as_of).await;
    }
}

/// The list shows the effect of a scheduled version from the day on which it is due.
#[apply(each_backend)]
async fn a_scheduled_version_blocks_from_the_day_it_is_due(#[case] backend: Backend) {
    tests::needs_own!("templates of its own");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let (cloud_agreement, _turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    let customers = one_of_each(&cluster, &cloud_agreement.template_id).await;
    let operator = cluster.as_caller(fixtures::operator());
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let now = Clock::system().now();
    let (effective, by) = (now + Duration::days(30), now + Duration::days(60));
    publish(&operator, version(Some(effective), due(by))).await.unwrap();
    let still = &["Bought", "Cloud", "None", "Old", "Withdrawn"][..];
    let then = ["Bought", "Cloud", "Current", "None", "Old", "Withdrawn"];
    for (as_of, expected) in [
        (None, still),
        (Some(effective), still),
        (Some(by - Duration::microseconds(1)), still),
        (Some(by), &then),
    ] {
        assert_eq!(names(&blocked(&direct, as_of).await), expected, "{as_of:?}");
        check_against_the_gate(&direct, (DIRECT, None), &active(&customers), as_of).await;
    }
}

/// A reseller sees its own customers by payer, and the remedies send it to the payers.
#[apply(each_backend)]
async fn a_reseller_sees_its_blocked_customers_by_payer(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    actions::register_partner(&operator, SECOND, "Second", PartnerKind::IndirectProvider, Cloud::Public)
        .await
        .unwrap();
    let link = LinkResellerRequest {
        request_id: fixtures::request_id(),
        provider_id: SECOND.to_string(),
        reseller_id: RESELLER.to_string(),
        validate_only: false,
    };
    operator.partners().link_reseller(link).await.unwrap();
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let shared = actions::create_customer(&reseller, "Shared", "FR", Some(PROVIDER)).await.unwrap();
    let other = actions::create_customer(&reseller, "Other", "FR", Some(PROVIDER)).await.unwrap();
    actions::create_customer(&provider, "Own", "FR", None).await.unwrap();
    // The same pair of payer and customer through another relationship, and another payer. Both come
    // with a signature, which is withdrawn.
    let admin = cluster.as_caller(fixtures::admin(shared.parse().unwrap()));
    for invited in [
        actions::invite(&provider, None, None).await.unwrap(),
        actions::invite(&reseller, None, Some(SECOND)).await.unwrap(),
    ] {
        admin.signatures().accept_invitation(fixtures::acceptance(&invited, None)).await.unwrap();
    }
    let request = WithdrawSignatureRequest {
        request_id: fixtures::request_id(),
        signature_id: actions::sign(&admin, 2).await.unwrap().signature_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
        validate_only: false,
    };
    admin.signatures().withdraw_signature(request).await.unwrap();

    assert_eq!(
        shown(&blocked(&provider, None).await),
        [
            "Other: NO_ACCEPTANCE; ATTEST,INVITE_CUSTOMER",
            "Own: NO_ACCEPTANCE; ATTEST,INVITE_CUSTOMER",
            "Shared: WITHDRAWN; ATTEST,INVITE_CUSTOMER",
        ]
    );
    let listed = blocked(&reseller, None).await;
    let expected = ["Other: NO_ACCEPTANCE", "Shared: WITHDRAWN", "Shared: WITHDRAWN"];
    assert_eq!(shown(&listed), expected.map(|row| format!("{row}; ASK_PROVIDER,INVITE_CUSTOMER")));
    for row in &listed {
        let ask = row.remedies.iter().find(|remedy| remedy.kind() == RemedyKind::AskProvider);
        assert_eq!(ask.unwrap().provider_id, row.payer_id);
    }
    // One provider's attestation does not cover the other's orders.
    actions::attest(&provider, &shared, Clock::system().now()).await.unwrap();
    let payers: Vec<_> = blocked(&reseller, None)
        .await
        .into_iter()
        .filter(|row| row.customer_id == shared)
        .map(|row| row.payer_id)
        .collect();
    assert_eq!(payers, [SECOND.to_string()]);
    check_against_the_gate(&reseller, (PROVIDER, Some(RESELLER)), &[&other], None).await;
    end_relationship(&reseller, &other, Some(PROVIDER)).await;
    assert_eq!(names(&blocked(&reseller, None).await), ["Shared"]);
    assert_eq!(names(&blocked(&provider, None).await), ["Own"]);
}

#[apply(each_backend)]
async fn the_pages_of_a_list_are_all_about_the_time_the_first_was(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let start = time("2026-11-21T00:00:00Z");
    let (cluster, clock) = world_at(backend, "2026-11-21T00:00:00Z").await;
    let operator = cluster.as_caller(fixtures::operator());
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    for n in 0..6 {
        let customer = actions::create_customer(&direct, &format!("Customer {n}"), "FR", None).await.unwrap();
        if n % 2 == 1 {
            actions::attest(&direct, &customer, start).await.unwrap();
        }
    }
    let by = start + Duration::hours(1);
    publish(&operator, version(Some(by), due(by))).await.unwrap();

    let first = page(&direct, None, 1, "").await.unwrap();
    clock.set(by);
    let second = page(&direct, None, 1, &first.next_page_token).await.unwrap();
    let third = page(&direct, None, 5, &second.next_page_token).await.unwrap();
    for page in [&first, &second, &third] {
        assert_eq!(page.evaluated_at, Some(timestamp(start)));
        assert_eq!(page.customers.len(), 1);
    }
    assert_eq!(third.next_page_token, "");
    assert_eq!(blocked(&direct, None).await.len(), 6);

    // A token serves its own list only, and only as it was given.
    let then = page(&direct, Some(by), 1, "").await.unwrap();
    assert_eq!(then.evaluated_at, Some(timestamp(by)));
    let api = cluster.as_caller(over_api(fixtures::sales(DIRECT)));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let cut = &first.next_page_token[..first.next_page_token.len() - 8];
    for (by, as_of, token) in [
        (&direct, None, then.next_page_token.as_str()),
        (&direct, Some(start), then.next_page_token.as_str()),
        (&direct, Some(by), first.next_page_token.as_str()),
        (&api, None, first.next_page_token.as_str()),
        (&provider, None, first.next_page_token.as_str()),
        (&direct, None, cut),
    ] {
        let refused = page(by, as_of, 1, token).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(bad_fields_of(&refused), ["page_token"]);
    }
}
