//! Replays: a repeated request gets the bytes of its first answer.

use super::*;

/// agreement-svc answers a request as it did first, whatever happened since.
#[apply(each_backend)]
async fn agreement_svc_repeats_its_first_answer(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    let operator = cluster.as_caller(fixtures::operator());

    let (template, _turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    let template = template.template_id;
    let accepting = |request| CreateAttestationRequest { template_id: template.clone(), ..request };
    let customers = new_customer_accepting(&template, "Contoso Lyon");
    let created = partner.customers().create_customer(customers.clone()).await.unwrap().into_inner();
    let customer = created.customer.clone().unwrap();
    let attestations = accepting(new_attestation_by(&customer.customer_id, person("Ada")));
    let attested =
        partner.attestations().create_attestation(attestations.clone()).await.unwrap().into_inner();
    let versions = fixtures::new_version(&template);
    let published =
        operator.templates().publish_template_version(versions.clone()).await.unwrap().into_inner();

    // The world goes on: another version, another attestation, other particulars.
    operator.templates().publish_template_version(fixtures::new_version(&template)).await.unwrap();
    let superseding = accepting(new_attestation_by(&customer.customer_id, person("Grace")));
    partner.attestations().create_attestation(superseding).await.unwrap();
    let update = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.customer_id.clone(),
        etag: customer.etag,
        company_name: "Contoso Paris".into(),
        primary_contact: Some(person("Grace")),
        ..UpdateCustomerRequest::default()
    };
    partner.customers().update_customer(update.clone()).await.unwrap();

    let before = everything(&cluster).await;
    let again = partner.customers().create_customer(customers).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), created.encode_to_vec());
    let again = partner.attestations().create_attestation(attestations).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), attested.encode_to_vec());
    assert_eq!(again.attestation.unwrap().state(), AttestationState::Current);
    let again = operator.templates().publish_template_version(versions).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), published.encode_to_vec());
    // Its etag is stale by its own doing.
    partner.customers().update_customer(update).await.unwrap();
    assert_eq!(everything(&cluster).await, before);

    let states: Vec<_> =
        history(&partner, &customer.customer_id).await.iter().map(Attestation::state).collect();
    let superseded = AttestationState::Superseded;
    assert_eq!(states, [superseded, superseded, AttestationState::Current]);
}

/// I4. order-svc answers a request as it did first, whatever happened since.
#[apply(each_backend)]
async fn order_svc_repeats_its_first_answer(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = start(backend).await;
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    let operator = cluster.as_caller(fixtures::operator());
    let customer = covered_customer(&partner, "Contoso Lyon").await;

    let orders = fixtures::new_order(&customer, None, OFFICE, 5);
    let placed = partner.orders().create_order(orders.clone()).await.unwrap().into_inner();
    let seats = new_seats(&placed.subscriptions[0], 6);
    let changed = partner.subscriptions().change_seats(seats.clone()).await.unwrap().into_inner();
    // The count it has already is a success without effect, and remembered as such.
    let unchanged = new_seats(changed.subscription.as_ref().unwrap(), 6);
    let kept = partner.subscriptions().change_seats(unchanged.clone()).await.unwrap().into_inner();
    assert_eq!((&kept.subscription, &kept.gate), (&changed.subscription, &None));
    let later = new_seats(changed.subscription.as_ref().unwrap(), 9);
    partner.subscriptions().change_seats(later).await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();

    let before = everything(&cluster).await;
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;
    assert_eq!(everything(&cluster).await, before);

    // With this version the gate says no to whatever is new.
    operator.templates().publish_template_version(fixtures::new_version(CUSTOMER_AGREEMENT)).await.unwrap();
    let answer = actions::order(&partner, &customer, None, 5).await;
    assert_eq!(refused(answer), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()));
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;

    // And now it says nothing at all.
    cluster.stop_agreements();
    let answer = actions::order(&partner, &customer, None, 5).await;
    assert_eq!(refused(answer), (Code::Unavailable, "GATE_UNAVAILABLE".into()));
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;

    cluster.restart_orders().await.unwrap();
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    check_replays(&partner, (&orders, &placed), &[(&seats, &changed), (&unchanged, &kept)]).await;
    assert_eq!(orders_of(&partner, &customer).await.unwrap().len(), 1);
    let subscription_id = &placed.subscriptions[0].subscription_id;
    assert_eq!(change_numbers(&partner, subscription_id).await, [1, 2, 3]);
}

async fn check_replays(
    partner: &As,
    order: (&CreateOrderRequest, &proto::order::CreateOrderResponse),
    seats: &[(&ChangeSeatsRequest, &proto::order::ChangeSeatsResponse)],
) {
    let again = partner.orders().create_order(order.0.clone()).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), order.1.encode_to_vec());
    for (request, first) in seats {
        let again = partner.subscriptions().change_seats((*request).clone()).await.unwrap().into_inner();
        assert_eq!(again.encode_to_vec(), first.encode_to_vec());
    }
}

/// A refused order passes under the same request id once its reason is gone.
#[apply(each_backend)]
async fn a_refused_order_can_pass_under_its_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&partner, "Contoso Lyon", "FR", None).await.unwrap();
    let before = everything(&cluster).await;
    let request = fixtures::new_order(&customer, None, OFFICE, 5);
    let answer = partner.orders().create_order(request.clone()).await;
    assert_eq!(refused(answer), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()));

    // A refused attestation leaves its id free as well.
    let mut attestation = new_attestation_by(&customer, fixtures::contact());
    attestation.template_id = Uuid::from_u128(7).to_string();
    let answer = partner.attestations().create_attestation(attestation.clone()).await;
    assert_eq!(refused(answer), (Code::NotFound, "RESOURCE_NOT_FOUND".into()));
    assert_eq!(everything(&cluster).await, before, "a refusal stores nothing");
    attestation.template_id = CUSTOMER_AGREEMENT.into();
    partner.attestations().create_attestation(attestation).await.unwrap();
    check_placed_once(&partner, request).await;
}

/// An order without a decision passes under the same request id once the gate can decide.
#[apply(each_backend)]
async fn an_undecided_order_can_pass_under_its_request_id(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut cluster = start(backend).await;
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = covered_customer(&partner, "Contoso Lyon").await;
    let request = fixtures::new_order(&customer, None, OFFICE, 5);
    cluster.stop_agreements();
    let answer = partner.orders().create_order(request.clone()).await;
    assert_eq!(refused(answer), (Code::Unavailable, "GATE_UNAVAILABLE".into()));
    let stored = rows(&mut behind(cluster.orders_database()), &ORDER_TABLES);
    assert!(stored.iter().all(|(_, count)| *count == 0), "a refusal stores nothing: {stored:?}");
    cluster.restart_agreements().await.unwrap();
    check_placed_once(&partner, request).await;
}

/// That an order is placed, and its customer's only one however often it is sent.
async fn check_placed_once(partner: &As, request: CreateOrderRequest) {
    let customer = request.customer_id.clone();
    let placed = partner.orders().create_order(request.clone()).await.unwrap().into_inner();
    let again = partner.orders().create_order(request).await.unwrap().into_inner();
    assert_eq!(again.encode_to_vec(), placed.encode_to_vec());
    assert_eq!(orders_of(partner, &customer).await.unwrap().len(), 1);
}

#[apply(each_backend)]
async fn a_request_id_belongs_to_one_tenant_and_one_call(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let request_id = fixtures::request_id();

    let mut customers = vec![];
    for (partner, name) in [(&direct, "Contoso Lyon"), (&provider, "Fabrikam Nantes")] {
        let request = CreateCustomerRequest {
            request_id: request_id.clone(),
            ..fixtures::new_customer(name, "FR", None)
        };
        let created = partner.customers().create_customer(request).await.unwrap().into_inner();
        let customer_id = created.customer.unwrap().customer_id;
        let request = CreateAttestationRequest {
            request_id: request_id.clone(),
            ..new_attestation_by(&customer_id, fixtures::contact())
        };
        partner.attestations().create_attestation(request).await.unwrap();
        let request = CreateOrderRequest {
            request_id: request_id.clone(),
            ..fixtures::new_order(&customer_id, None, OFFICE, 5)
        };
        let placed = partner.orders().create_order(request.clone()).await.unwrap().into_inner();
        let seats =
            ChangeSeatsRequest { request_id: request_id.clone(), ..new_seats(&placed.subscriptions[0], 6) };
        partner.subscriptions().change_seats(seats).await.unwrap();

        // It is the tenant's, not the user's.
        let tenant = if name == "Contoso Lyon" { DIRECT } else { PROVIDER };
        let colleague = chassis::auth::Caller {
            user_id: Uuid::from_u128(0xc0),
            ..caller(TenantKind::Partner, tenant, &[Role::AdminAgent])
        };
        let colleague = cluster.as_caller(colleague);
        let again = colleague.orders().create_order(request).await.unwrap().into_inner();
        assert_eq!(again.encode_to_vec(), placed.encode_to_vec());
        customers.push(customer_id);
    }
    assert_ne!(customers[0], customers[1]);
    for (partner, customer) in [(&direct, &customers[0]), (&provider, &customers[1])] {
        assert_eq!(history(partner, customer).await.len(), 1);
        assert_eq!(orders_of(partner, customer).await.unwrap().len(), 1);
    }
}
