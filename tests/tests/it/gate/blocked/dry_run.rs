//! The dry run of a new version.

use super::*;

/// A dry run names the customers that publishing would stop, and stores nothing.
#[apply(each_backend)]
async fn a_dry_run_lists_the_customers_that_a_version_blocks(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let start = time("2026-11-21T00:00:00Z");
    let (cluster, _) = world_at(backend, "2026-11-21T00:00:00Z").await;
    let operator = cluster.as_caller(fixtures::operator());
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    // Of the direct-bill partner one never accepted, one only the version of 2019, one ended.
    for (name, agreed_at) in [
        ("A", Some(start)),
        ("Never", None),
        ("Old", Some(time("2020-06-01T00:00:00Z"))),
        ("Ended", Some(start)),
    ] {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        if let Some(agreed_at) = agreed_at {
            actions::attest(&direct, &customer, agreed_at).await.unwrap();
        }
        if name == "Ended" {
            end_relationship(&direct, &customer, None).await;
        }
    }
    for (creator, name, through) in [(&provider, "B", None), (&reseller, "C", Some(PROVIDER))] {
        let customer = actions::create_customer(creator, name, "FR", through).await.unwrap();
        actions::attest(&provider, &customer, start).await.unwrap();
    }
    // One signed by itself, which counts for both partners; through the reseller it is the same pair.
    let signed = actions::create_customer(&direct, "Signed", "FR", None).await.unwrap();
    share(&cluster, &signed, PROVIDER, None, 1001);
    share(&cluster, &signed, PROVIDER, Some(RESELLER), 1002);
    let columns = "id, kind, partner_id, customer_id, agreement_type, template_id, template_version, \
                   first_name, last_name, email, phone, contact_salt, agreed_at, recorded_at, \
                   recorded_by, revision";
    let at = "'2026-11-21 00:00:00.000000'";
    cluster
        .agreements_sql(&format!(
            "INSERT INTO acceptance ({columns}) VALUES ('{signed}', 'SIGNATURE', '', '{signed}',
             'MICROSOFT_CUSTOMER_AGREEMENT', '{CUSTOMER_AGREEMENT}', 2, '', '', '', '', '', {at}, {at},
             '{signed}', 1003)"
        ))
        .unwrap();

    let by = start + Duration::days(10);
    let planned = version(Some(start + Duration::days(1)), due(by));
    let impact = dry_run(&operator, &planned).await;
    let partners: Vec<_> = impact.partners.iter().map(|p| (p.partner_id.as_str(), p.customers)).collect();
    // The most affected first.
    assert_eq!(partners, [(PROVIDER.to_string().as_str(), 3), (DIRECT.to_string().as_str(), 2)]);
    assert_eq!((impact.relationships, impact.customers), (5, 4));

    let never = PublishTemplateVersionRequest {
        reacceptance: Some(Reacceptance::NeverReaccept(true)),
        ..planned.clone()
    };
    assert_eq!(dry_run(&operator, &never).await, PublicationImpact::default());
    let other_type = PublishTemplateVersionRequest {
        template_id: Uuid::from_u128(0x7e).to_string(),
        agreement_type: AgreementType::MicrosoftCloudAgreement.into(),
        name: "Cloud Agreement, second edition".into(),
        ..planned.clone()
    };
    assert_eq!(dry_run(&operator, &other_type).await, PublicationImpact::default());
    // At once is due at once.
    assert_eq!(dry_run(&operator, &version(None, None)).await, impact);
    let early = PublishTemplateVersionRequest {
        validate_only: true,
        ..version(Some(start - Duration::days(1)), None)
    };
    let refused = publish(&operator, early).await.unwrap_err();
    assert_eq!(reason_of(&refused), "NOT_LATER_THAN_LAST_VERSION");
    // Nothing of it was stored.
    let stored = GetTemplateRequest { template_id: CUSTOMER_AGREEMENT.into() };
    let stored = operator.templates().get_template(stored).await.unwrap().into_inner();
    assert_eq!(stored.template.unwrap().versions.len(), 2);
    assert_eq!(names(&blocked(&direct, Some(by)).await), ["Never", "Old"]);

    // Really published, the very same are blocked, and no others.
    let before = [blocked(&direct, Some(by)).await, blocked(&provider, Some(by)).await];
    let published = publish(&operator, planned).await.unwrap();
    assert_eq!(published.impact, None);
    let mut customers = BTreeSet::new();
    for ((partner, id), before) in [(&direct, DIRECT), (&provider, PROVIDER)].into_iter().zip(before) {
        let after = blocked(partner, Some(by)).await;
        let was_blocked = |row: &&BlockedCustomer| before.iter().any(|b| b.customer_id == row.customer_id);
        let new: Vec<_> = after.iter().filter(|row| !was_blocked(row)).collect();
        let announced = impact.partners.iter().find(|p| p.partner_id == id.to_string()).unwrap();
        assert_eq!(new.len(), usize::try_from(announced.customers).unwrap());
        assert_eq!(after.len(), before.len() + new.len());
        customers.extend(new.into_iter().map(|row| row.customer_id.clone()));
    }
    assert_eq!(customers.len(), usize::try_from(impact.customers).unwrap());
    // Whom this version stops, the next one does not stop again.
    let next = version(Some(start + Duration::days(2)), due(by + Duration::days(1)));
    assert_eq!(dry_run(&operator, &next).await, PublicationImpact::default());
    let sooner = version(Some(start + Duration::days(2)), due(by - Duration::days(1)));
    assert_eq!(dry_run(&operator, &sooner).await, impact);
}
