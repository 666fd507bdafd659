//! Calls that only validate, and changes that exclude each other.

use prost_types::field_descriptor_proto::Type;

use super::*;
use crate::contract::access::contract;

/// The calls that only read begin with one of these words.
const READING: [&str; 6] = ["Get", "List", "Watch", "Check", "BatchCheck", "Preview"];

/// I9. A call that changes something has a request id and `validate_only`; a call that only reads has neither. The rows of
/// an import have an id, and no dry run.
#[test]
fn each_call_that_changes_something_has_a_dry_run() {
    let contract = contract();
    let own = contract.file.iter().filter(|file| file.package().starts_with("csp."));
    let (mut wrong, mut changing) = (vec![], 0);
    for file in own {
        for method in file.service.iter().flat_map(|service| &service.method) {
            let name = method.name();
            let message = file
                .message_type
                .iter()
                .find(|message| method.input_type() == format!(".{}.{}", file.package(), message.name()));
            let message = message.unwrap_or_else(|| panic!("{name}: its request is in another file"));
            let has = |field: &str, of: Type| {
                message.field.iter().any(|known| known.name() == field && known.r#type() == of)
            };
            let is_changing = !READING.iter().any(|word| name.starts_with(word));
            changing += usize::from(is_changing);
            let has_dry_run = is_changing && !method.client_streaming();
            let found = (has("request_id", Type::String), has("validate_only", Type::Bool));
            if found != (is_changing, has_dry_run) {
                wrong.push(format!("{name}: request_id {}, validate_only {}", found.0, found.1));
            }
        }
    }
    assert!(changing > 20, "{changing}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[apply(each_backend)]
async fn validate_only_stores_nothing_and_leaves_the_request_id_alone(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let partner = cluster.as_caller(fixtures::sales(DIRECT));
    let operator = cluster.as_caller(fixtures::operator());
    let customer = covered_customer(&partner, "Contoso Lyon").await;
    let subscription = subscribe(&partner, &customer, None).await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();

    // Under each id something was done already, so a call that looked at it would be refused or
    // answered with what was done.
    let (template, _turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    let template = template.template_id;
    let used_version = fixtures::new_version(&template);
    let used_order = fixtures::new_order(&customer, None, OFFICE, 1);
    let used_seats = new_seats(&subscription, 6);
    let published =
        operator.templates().publish_template_version(used_version.clone()).await.unwrap().into_inner();
    let version = published.template.unwrap().version_in_force;
    let used_attestation = new_attestation_by(&customer, person("Ada"));
    partner.attestations().create_attestation(used_attestation.clone()).await.unwrap();
    partner.orders().create_order(used_order.clone()).await.unwrap();
    let changed = partner.subscriptions().change_seats(used_seats.clone()).await.unwrap().into_inner();
    let subscription = changed.subscription.unwrap();

    let before = everything(&cluster).await;
    for request_id in [&used_attestation.request_id, &fixtures::request_id()] {
        let request = CreateAttestationRequest {
            request_id: request_id.clone(),
            validate_only: true,
            ..new_attestation_by(&customer, person("Grace"))
        };
        let tried = partner.attestations().create_attestation(request.clone()).await.unwrap().into_inner();
        assert_eq!(tried.attestation.unwrap().contact, request.contact);
    }
    for request_id in [&used_version.request_id, &fixtures::request_id()] {
        let request = PublishTemplateVersionRequest {
            request_id: request_id.clone(),
            validate_only: true,
            ..fixtures::new_version(&template)
        };
        let tried = operator.templates().publish_template_version(request).await.unwrap().into_inner();
        assert_eq!(tried.template.unwrap().version_in_force, version + 1);
    }
    for request_id in [&used_order.request_id, &fixtures::request_id()] {
        let request = CreateOrderRequest {
            request_id: request_id.clone(),
            validate_only: true,
            ..fixtures::new_order(&customer, None, OFFICE, 77)
        };
        let tried = partner.orders().create_order(request).await.unwrap().into_inner();
        assert_eq!(tried.subscriptions[0].quantity, 77);
    }
    for request_id in [&used_seats.request_id, &fixtures::request_id()] {
        for quantity in [77, subscription.quantity] {
            let request = ChangeSeatsRequest {
                request_id: request_id.clone(),
                validate_only: true,
                ..new_seats(&subscription, quantity)
            };
            let tried = partner.subscriptions().change_seats(request).await.unwrap().into_inner();
            assert_eq!(tried.subscription.unwrap().quantity, quantity);
        }
    }
    assert_eq!(everything(&cluster).await, before);
    let template = GetTemplateRequest { template_id: template };
    let template = operator.templates().get_template(template).await.unwrap().into_inner().template;
    assert_eq!(template.unwrap().version_in_force, version);
    assert_eq!(stored(&partner, &subscription).await, subscription);

    // What was tried can be done under the id it was tried under.
    let mut order = fixtures::new_order(&customer, None, OFFICE, 3);
    order.validate_only = true;
    let tried = partner.orders().create_order(order.clone()).await.unwrap().into_inner();
    order.validate_only = false;
    let done = partner.orders().create_order(order).await.unwrap().into_inner();
    assert_ne!(tried.order.unwrap().order_id, done.order.unwrap().order_id);
    assert_eq!(orders_of(&partner, &customer).await.unwrap().len(), 3);
}

async fn stored(partner: &As, of: &Subscription) -> Subscription {
    let request = GetSubscriptionRequest { subscription_id: of.subscription_id.clone() };
    partner.subscriptions().get_subscription(request).await.unwrap().into_inner().subscription.unwrap()
}

#[apply(each_backend)]
async fn of_many_changes_that_exclude_each_other_exactly_one_succeeds(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = start(backend).await;
    let agents = sales_agents(&cluster, DIRECT);

    // One domain.
    let answers = at_once(&agents, |partner| async move {
        let request = fixtures::new_customer("Contoso Lyon", "FR", None);
        partner.customers().create_customer(request).await
    });
    let created = only_winner(answers.await, (Code::AlreadyExists, "DOMAIN_TAKEN"));
    let customer = created.customer.unwrap();

    // One current attestation.
    let agreed_at = Some(timestamp(fixtures::now()));
    let answers = at_once(&agents, |partner| {
        let request = CreateAttestationRequest {
            agreed_at,
            ..new_attestation_by(&customer.customer_id, fixtures::contact())
        };
        async move { partner.attestations().create_attestation(request).await }
    });
    let attested = only_winner(answers.await, (Code::AlreadyExists, "ALREADY_ATTESTED"));
    assert_eq!(history(&agents[0], &customer.customer_id).await, [attested.attestation.unwrap()]);

    // One etag.
    let answers = at_once(&agents, |partner| {
        let request = UpdateCustomerRequest {
            request_id: fixtures::request_id(),
            customer_id: customer.customer_id.clone(),
            etag: customer.etag.clone(),
            company_name: "Contoso Paris".into(),
            primary_contact: Some(fixtures::contact()),
            ..UpdateCustomerRequest::default()
        };
        async move { partner.customers().update_customer(request).await }
    });
    only_winner(answers.await, (Code::Aborted, "ETAG_STALE"));
}

fn only_winner<A: std::fmt::Debug>(answers: Vec<Result<A, Status>>, others: (Code, &str)) -> A {
    let mut won = vec![];
    for answer in answers {
        match answer {
            Ok(answer) => won.push(answer),
            Err(status) => assert_eq!((status.code(), reason_of(&status).as_str()), others),
        }
    }
    assert_eq!(won.len(), 1, "{won:?}");
    won.remove(0)
}
