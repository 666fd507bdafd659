//! Idempotency keys: one request id has one effect (I4).

use super::*;

#[apply(each_backend)]
async fn one_customer_is_created_by_many_callers_with_one_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let before = everything(&cluster).await;
    let request = new_customer_with_attestation("Contoso Lyon");
    let answers = at_once(&agents, |partner| {
        let request = request.clone();
        async move { partner.customers().create_customer(request).await }
    });
    let created = the_one(&answers.await);

    let listed = agents[0].customers().list_customers(ListCustomersRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().customers, [created.customer.clone().unwrap()]);
    assert_eq!(history(&agents[0], &created.customer.unwrap().customer_id).await.len(), 1);
    // Created, relationship established, attested.
    let mut grown =
        vec![("event", 3), ("request", 1), ("customer", 1), ("relationship", 1), ("acceptance", 1)];
    grown.extend([("contact", 1), ("notification", 1)]);
    check_grown(&cluster, &before, &grown, &[]).await;
}

/// One attestation is stored for many callers with one request id.
#[apply(each_backend)]
async fn many_callers_with_one_request_id_attest_once(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = actions::create_customer(&agents[0], "Contoso Lyon", "FR", None).await.unwrap();
    let before = everything(&cluster).await;
    let request = new_attestation_by(&customer, fixtures::contact());
    let answers = at_once(&agents, |partner| {
        let request = request.clone();
        async move { partner.attestations().create_attestation(request).await }
    });
    let created = the_one(&answers.await);
    assert_eq!(history(&agents[0], &customer).await, [created.attestation.unwrap()]);
    let grown = [("event", 1), ("request", 1), ("acceptance", 1), ("notification", 1)];
    check_grown(&cluster, &before, &grown, &[]).await;
}

#[apply(each_backend)]
async fn one_order_is_placed_by_many_callers_with_one_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = covered_customer(&agents[0], "Contoso Lyon").await;
    // So that the report of the first purchase is not counted below.
    subscribe(&agents[0], &customer, None).await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();
    let before = everything(&cluster).await;
    let request = fixtures::new_order(&customer, None, OFFICE, 5);
    let answers = at_once(&agents, |partner| {
        let request = request.clone();
        async move { partner.orders().create_order(request).await }
    });
    let placed = the_one(&answers.await);

    let order_id = placed.order.as_ref().unwrap().order_id.clone();
    let stored = agents[0].orders().get_order(GetOrderRequest { order_id }).await.unwrap().into_inner();
    assert_eq!(stored.order, placed.order);
    assert_eq!(orders_of(&agents[0], &customer).await.unwrap().len(), 2);
    let grown =
        [("request", 1), ("orders", 1), ("order_line", 1), ("subscription", 1), ("subscription_change", 1)];
    check_grown(&cluster, &before, &[], &grown).await;
}

#[apply(each_backend)]
async fn seats_change_once_for_many_callers_with_one_request_id(#[case] backend: Backend) {
    tests::needs!(backend);
    // A race between looking for the request and looking at the subscription needs several tries.
    const ROUNDS: u32 = 24;
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = covered_customer(&agents[0], "Contoso Lyon").await;
    let mut subscription = subscribe(&agents[0], &customer, None).await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();
    for round in 1..=ROUNDS {
        let before = everything(&cluster).await;
        let request = new_seats(&subscription, 5 + round);
        let answers = at_once(&agents, |partner| {
            let request = request.clone();
            async move { partner.subscriptions().change_seats(request).await }
        });
        subscription = the_one(&answers.await).subscription.unwrap();
        assert_eq!(subscription.quantity, 5 + round);
        check_grown(&cluster, &before, &[], &[("request", 1), ("subscription_change", 1)]).await;
    }
    let numbers = change_numbers(&agents[0], &subscription.subscription_id).await;
    assert_eq!(numbers, (1..=1 + ROUNDS).collect::<Vec<_>>());
}

/// The named tables have grown by as many rows, and no other table has changed.
async fn check_grown(
    cluster: &Cluster,
    before: &Everything,
    agreements: &[(&'static str, i64)],
    orders: &[(&'static str, i64)],
) {
    let in_agreements = agreements.iter().map(|(table, grown)| ((AGREEMENTS, *table), *grown));
    let in_orders = orders.iter().map(|(table, grown)| ((ORDERS, *table), *grown));
    let grown: HashMap<_, _> = in_agreements.chain(in_orders).collect();
    let expected = before.iter().map(|(table, count)| (*table, count + grown.get(table).unwrap_or(&0)));
    assert_eq!(everything(cluster).await, expected.collect());
}

#[apply(each_backend)]
async fn a_request_id_does_not_serve_for_other_content(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = covered_customer(&partner, "Contoso Lyon").await;
    let mut subscription = subscribe(&partner, &customer, None).await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();

    let customers = fixtures::new_customer("Fabrikam Nantes", "FR", None);
    let attestations = new_attestation_by(&customer, person("Ada"));
    let orders = fixtures::new_order(&customer, None, OFFICE, 7);
    let seats = new_seats(&subscription, 6);
    partner.customers().create_customer(customers.clone()).await.unwrap();
    partner.attestations().create_attestation(attestations.clone()).await.unwrap();
    partner.orders().create_order(orders.clone()).await.unwrap();
    let changed = partner.subscriptions().change_seats(seats.clone()).await.unwrap().into_inner();
    subscription = changed.subscription.unwrap();

    let before = everything(&cluster).await;
    let request_id = customers.request_id.clone();
    let other = CreateCustomerRequest { country: "DE".into(), ..customers };
    let status = partner.customers().create_customer(other).await.unwrap_err();
    assert_eq!(metadata_of(&status).get("request_id"), Some(&request_id));
    assert_eq!(refusal(&status), reused());

    let other = CreateAttestationRequest { contact: Some(person("Grace")), ..attestations };
    assert_eq!(refused(partner.attestations().create_attestation(other).await), reused());

    let mut other = orders;
    other.lines[0].quantity += 1;
    let request_id = other.request_id.clone();
    let status = partner.orders().create_order(other).await.unwrap_err();
    assert_eq!(metadata_of(&status).get("request_id"), Some(&request_id));
    assert_eq!(refusal(&status), reused());

    // With the new etag it would be a change like any other.
    let other = ChangeSeatsRequest { quantity: 9, etag: subscription.etag, ..seats };
    assert_eq!(refused(partner.subscriptions().change_seats(other).await), reused());
    assert_eq!(everything(&cluster).await, before);
}

#[apply(each_backend)]
async fn many_contents_under_one_request_id_at_once_have_one_effect(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);
    let customer = covered_customer(&agents[0], "Contoso Lyon").await;
    let request = fixtures::new_order(&customer, None, OFFICE, 1);
    let calls = (1..=16).map(|quantity| {
        let mut request = request.clone();
        request.lines[0].quantity = quantity;
        let partner = agents[quantity as usize % agents.len()].clone();
        async move { partner.orders().create_order(request).await }
    });
    let (placed, rejected): (Vec<_>, Vec<_>) = join_all(calls).await.into_iter().partition(Result::is_ok);
    assert_eq!(placed.len(), 1);
    for answer in rejected {
        assert_eq!(refused(answer), reused());
    }
    assert_eq!(orders_of(&agents[0], &customer).await.unwrap().len(), 1);
}
