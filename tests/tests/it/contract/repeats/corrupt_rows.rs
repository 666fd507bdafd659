//! Corrupt rows are internal errors, and let nothing through the gate.

use super::*;

/// A refusal that says nothing of the row behind it.
fn check_internal<A: std::fmt::Debug>(answer: Result<A, Status>) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), reason_of(&status).as_str()), (Code::Internal, "INTERNAL"));
    assert_eq!(
        status.message(),
        "INTERNAL: the service failed; retry once under the same request id, then report the call id (x-call-id) to its operator, \
         whose log has the cause"
    );
    assert!(metadata_of(&status).is_empty());
    let details = String::from_utf8_lossy(status.details()).into_owned();
    assert!(!details.contains("NONSENSE"), "{details}");
}

/// A damaged row of order-svc is an internal error, and harms no other.
#[apply(each_backend)]
async fn a_damaged_row_of_order_svc_harms_no_other_row(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    let damaged = covered_customer(&partner, "Contoso Lyon").await;
    let sound = covered_customer(&partner, "Fabrikam Nantes").await;
    let order = fixtures::new_order(&damaged, None, OFFICE, 5);
    let placed = partner.orders().create_order(order.clone()).await.unwrap().into_inner();
    let subscription = placed.subscriptions[0].clone();
    let other = subscribe(&partner, &sound, None).await.unwrap();
    let subscription_id = subscription.subscription_id.clone();
    let get = GetSubscriptionRequest { subscription_id: subscription_id.clone() };
    let list = |customer_id: &str| ListSubscriptionsRequest {
        customer_id: customer_id.into(),
        ..Default::default()
    };
    let changes =
        ListSubscriptionChangesRequest { subscription_id: subscription_id.clone(), ..Default::default() };

    let sql = "UPDATE subscription_change SET kind = 'NONSENSE' WHERE subscription_id = ";
    cluster.orders_sql(&format!("{sql}'{subscription_id}'")).unwrap();
    check_internal(partner.subscriptions().list_subscription_changes(changes).await);
    partner.subscriptions().get_subscription(get.clone()).await.unwrap();

    let sql = "UPDATE subscription SET state = 'NONSENSE' WHERE id = ";
    cluster.orders_sql(&format!("{sql}'{subscription_id}'")).unwrap();
    check_internal(partner.subscriptions().get_subscription(get).await);
    check_internal(partner.subscriptions().list_subscriptions(list(&damaged)).await);
    check_internal(partner.subscriptions().list_subscriptions(list("")).await);
    check_internal(partner.subscriptions().change_seats(new_seats(&subscription, 9)).await);

    let order_id = placed.order.unwrap().order_id;
    cluster
        .orders_sql(&format!("UPDATE orders SET gate_evidence = 'NONSENSE' WHERE id = '{order_id}'"))
        .unwrap();
    check_internal(partner.orders().get_order(GetOrderRequest { order_id }).await);
    check_internal(partner.orders().list_orders(ListOrdersRequest::default()).await);

    // An answer that cannot be read again is no reason for a second effect.
    let garbage = if backend == Backend::Sqlite { "X'ff'" } else { r"'\xff'" };
    let sql = format!("UPDATE request SET answer = {garbage} WHERE request_id = '{}'", order.request_id);
    cluster.orders_sql(&sql).unwrap();
    check_internal(partner.orders().create_order(order).await);
    assert_eq!(rows(&mut behind(cluster.orders_database()), &["orders"]), [("orders", 2)]);

    let listed = partner.subscriptions().list_subscriptions(list(&sound)).await.unwrap().into_inner();
    assert_eq!(listed.subscriptions, std::slice::from_ref(&other));
    partner.subscriptions().change_seats(new_seats(&other, 9)).await.unwrap();
    actions::order(&partner, &sound, None, 1).await.unwrap();
}

/// A damaged row of agreement-svc is an internal error, and lets nothing through the gate.
#[apply(each_backend)]
async fn a_damaged_row_of_agreement_svc_does_not_open_the_gate(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    // What is damaged, and whether reading customer or attestation comes upon it.
    for (column, customers_fail, attestations_fail) in [
        ("acceptance SET kind", false, false),
        ("acceptance SET agreement_type", false, true),
        ("customer SET cloud", true, true),
    ] {
        let cluster = start(backend).await;
        let partner = cluster.as_caller(fixtures::sales(DIRECT));
        let request = new_customer_with_attestation("Contoso Lyon");
        let created = partner.customers().create_customer(request).await.unwrap().into_inner();
        let damaged = created.customer.unwrap().customer_id;
        let attestation_id = created.attestation.unwrap().attestation_id;
        let sound = covered_customer(&partner, "Fabrikam Nantes").await;
        let subscription = subscribe(&partner, &damaged, None).await.unwrap();
        actions::until_bought(&cluster, &damaged).await.unwrap();

        let key = if column.starts_with("customer") { "id" } else { "customer_id" };
        cluster.agreements_sql(&format!("UPDATE {column} = 'NONSENSE' WHERE {key} = '{damaged}'")).unwrap();
        check_internal(partner.gate().check_eligibility(fixtures::new_check(DIRECT, &damaged)).await);
        let get = GetCustomerRequest { customer_id: damaged.clone() };
        let list = ListCustomersRequest::default();
        if customers_fail {
            check_internal(partner.customers().get_customer(get).await);
            check_internal(partner.customers().list_customers(list).await);
        } else {
            partner.customers().get_customer(get).await.unwrap();
            partner.customers().list_customers(list).await.unwrap();
        }
        if attestations_fail {
            let get = GetAttestationRequest { attestation_id };
            check_internal(partner.attestations().get_attestation(get).await);
            let list = ListAttestationsRequest {
                customer_id: damaged.clone(),
                include_history: true,
                ..Default::default()
            };
            check_internal(partner.attestations().list_attestations(list).await);
        }

        // order-svc hears an error where it asked for a yes, and unknown is no.
        let before = everything(&cluster).await;
        let unknown = (Code::Unavailable, "GATE_UNAVAILABLE".to_owned());
        assert_eq!(refused(actions::order(&partner, &damaged, None, 1).await), unknown, "{column}");
        let seats = partner.subscriptions().change_seats(new_seats(&subscription, 9)).await;
        assert_eq!(refused(seats), unknown, "{column}");
        assert_eq!(everything(&cluster).await, before);

        let answer =
            partner.gate().check_eligibility(fixtures::new_check(DIRECT, &sound)).await.unwrap().into_inner();
        assert_eq!(answer.decision(), Decision::Allowed);
        actions::order(&partner, &sound, None, 1).await.unwrap();
    }
}
