//! Orders, rule by rule, and the prompt: an order that carries the attestation it needs (ORD-1 to ORD-6).

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

use std::collections::BTreeSet;

use chassis::clock::Clock;
use chassis::form::timestamp;
use futures_util::future::join_all;
use prost::Message;
use proto::agreement::{
    AttestationState, CreateAttestationRequest, WithdrawAttestationRequest, WithdrawalReason,
};
use proto::identity::{Role, TenantKind};
use proto::order::{
    CreateOrderRequest, CreateOrderResponse, GetOfferRequest, GetOrderRequest, InlineAttestation,
    ListOrdersRequest, ListSubscriptionsRequest, NewOrderLine, Subscription,
};
use proto::types::{AttestationDetails, Contact, Decision, GateRule, ShownText};
use rstest_reuse::apply;
use tests::actions::{self, place};
use tests::clients::{bad_fields_of, caller};
use tests::fixtures::{
    self, AZURE_PLAN, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, RESELLER,
    RIGHTS_MANAGEMENT,
};
use tests::{As, Backend, Cluster, metadata_of, reason_of};

use crate::each_backend;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

/// An order of one line with an attestation of today.
fn prompted(customer_id: &str) -> CreateOrderRequest {
    CreateOrderRequest {
        attestation: Some(fixtures::inline_attestation(Clock::system().now())),
        ..fixtures::new_order(customer_id, None, OFFICE, 5)
    }
}

fn line(offer_id: &str, quantity: u32) -> NewOrderLine {
    NewOrderLine { offer_id: offer_id.into(), quantity, friendly_name: String::new() }
}

/// How many orders and subscriptions the partner sees.
async fn bought(partner: &As) -> (usize, usize) {
    let orders = partner.orders().list_orders(ListOrdersRequest::default()).await.unwrap().into_inner();
    let all = ListSubscriptionsRequest { page_size: 500, ..ListSubscriptionsRequest::default() };
    let subscriptions = partner.subscriptions().list_subscriptions(all).await.unwrap().into_inner();
    (orders.orders.len(), subscriptions.subscriptions.len())
}

/// A customer that bought before, so that order-svc's report of a purchase changes nothing.
async fn buyer(cluster: &Cluster, name: &str) -> String {
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer_id = actions::create_customer(&direct, name, "FR", None).await.unwrap();
    let purchased_at = fixtures::time("2024-01-01T00:00:00Z");
    actions::report_purchase(cluster, &customer_id, DIRECT, purchased_at).await.unwrap();
    customer_id
}

/// The code, the reason and the service of a refusal.
fn refusal_with_domain(status: &Status) -> (Code, String, String) {
    let domain = status.get_details_error_info().map(|info| info.domain);
    (status.code(), reason_of(status), domain.unwrap_or_default())
}

fn refused_by(domain: &str, code: Code, reason: &str) -> (Code, String, String) {
    (code, reason.to_owned(), domain.to_owned())
}

/// The payer and the reseller on record follow from the caller and the partners that it names.
#[apply(each_backend)]
async fn payer_and_reseller_follow_from_caller_and_request(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let own = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let resold = actions::create_customer(&reseller, "Fabrikam", "FR", Some(PROVIDER)).await.unwrap();
    let sold = actions::create_customer(&provider, "Tailspin", "FR", None).await.unwrap();
    for (partner, customer) in [(&direct, &own), (&provider, &resold), (&provider, &sold)] {
        actions::attest(partner, customer, Clock::system().now()).await.unwrap();
    }
    let stranger = Uuid::from_u128(0x999);
    let missing = |code, reason| Err((code, String::from(reason), String::new()));
    // To a caller that sees the customer the refusal says which of the two names the wrong partner.
    let wrong = |field| Err((Code::NotFound, String::from("RESOURCE_NOT_FOUND"), String::from(field)));
    let on_record = |payer: Uuid, reseller: Option<Uuid>| {
        Ok((payer.to_string(), reseller.map(|id| id.to_string()).unwrap_or_default()))
    };
    // caller, customer, payer named, reseller named -> payer and reseller on record
    for (n, (partner, customer, payer, named, expected)) in [
        (&direct, &own, None, None, on_record(DIRECT, None)),
        (&direct, &own, Some(DIRECT), None, on_record(DIRECT, None)),
        (&provider, &sold, None, None, on_record(PROVIDER, None)),
        (&reseller, &resold, Some(PROVIDER), None, on_record(PROVIDER, Some(RESELLER))),
        (&reseller, &resold, Some(PROVIDER), Some(RESELLER), on_record(PROVIDER, Some(RESELLER))),
        (&provider, &resold, None, Some(RESELLER), on_record(PROVIDER, Some(RESELLER))),
        // A reseller that is not on the relationship, that pays, or that names another one's provider.
        (&provider, &sold, None, Some(RESELLER), wrong("reseller_id")),
        (&provider, &resold, None, Some(stranger), wrong("reseller_id")),
        (&reseller, &sold, Some(PROVIDER), None, missing(Code::NotFound, "RESOURCE_NOT_FOUND")),
        (&reseller, &resold, Some(stranger), None, wrong("payer_id")),
        (&reseller, &resold, None, None, missing(Code::InvalidArgument, "PAYER_IS_RESELLER")),
        (&direct, &resold, None, None, missing(Code::NotFound, "RESOURCE_NOT_FOUND")),
        (&direct, &own, Some(PROVIDER), None, wrong("payer_id")),
    ]
    .into_iter()
    .enumerate()
    {
        let order = CreateOrderRequest {
            reseller_id: named.map(|id| id.to_string()).unwrap_or_default(),
            ..fixtures::new_order(customer, payer, OFFICE, 1)
        };
        let placed = place(partner, order).await.map(|placed| placed.order.unwrap());
        let found = placed.map(|order| (order.payer_id, order.reseller_id));
        let refusal = |status: Status| {
            let field = metadata_of(&status).remove("field").unwrap_or_default();
            (status.code(), reason_of(&status), field)
        };
        assert_eq!(found.map_err(refusal), expected, "row {n}");
    }
    // Payer and reseller both see what was ordered through both; the others see their own.
    assert_eq!(bought(&direct).await.0, 2);
    assert_eq!(bought(&provider).await.0, 4);
    assert_eq!(bought(&reseller).await.0, 3);
}

/// ORD-2. Every line of an order becomes a subscription as its offer says.
#[apply(each_backend)]
async fn each_order_line_becomes_a_subscription_of_its_offer(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let mut order = fixtures::new_order(&customer, None, OFFICE, 5);
    order.lines = (1..=98).map(|n| line(OFFICE, n)).collect();
    order.lines.push(NewOrderLine { friendly_name: "plan".into(), ..line(AZURE_PLAN, 1) });
    order.lines.push(line(RIGHTS_MANAGEMENT, 7));
    let placed = place(&direct, order.clone()).await.unwrap();
    let read = GetOrderRequest { order_id: placed.order.clone().unwrap().order_id };
    let read = direct.orders().get_order(read).await.unwrap().into_inner().order.unwrap();
    assert_eq!(Some(&read), placed.order.as_ref());

    let ids: BTreeSet<_> = placed.subscriptions.iter().map(|s| s.subscription_id.as_str()).collect();
    assert_eq!((ids.len(), bought(&direct).await), (100, (1, 100)));
    for ((asked, stored), became) in order.lines.iter().zip(&read.lines).zip(&placed.subscriptions) {
        let of_subscription = |s: &Subscription| (s.offer_id.clone(), s.quantity, s.friendly_name.clone());
        let of_line = (asked.offer_id.clone(), asked.quantity, asked.friendly_name.clone());
        assert_eq!(of_subscription(became), of_line);
        assert_eq!(stored.subscription_id, became.subscription_id);
        let offer = GetOfferRequest { offer_id: asked.offer_id.clone() };
        let offer = direct.offers().get_offer(offer).await.unwrap().into_inner().offer.unwrap();
        assert_eq!(became.auto_renew, offer.auto_renews);
        assert_eq!((&became.order_id, &became.customer_id), (&read.order_id, &customer));
    }
}

/// ORD-4.
#[apply(each_backend)]
async fn an_order_may_carry_the_attestation_that_it_needs(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let order = prompted(&customer);
    let placed = place(&direct, order.clone()).await.unwrap().order.unwrap();

    let stored = actions::attestations_of(&direct, &customer).await.unwrap();
    let [attestation] = stored.as_slice() else { panic!("{stored:?}") };
    let asked = order.attestation.unwrap();
    assert_eq!(attestation.contact, asked.contact);
    assert_eq!(attestation.agreed_at, asked.agreed_at);
    // The caller that ordered attested: neither the order nor order-svc can say otherwise.
    let user = fixtures::sales(DIRECT).user_id.to_string();
    assert_eq!((&attestation.recorded_by, &attestation.partner_id), (&user, &DIRECT.to_string()));
    assert_eq!(placed.placed_by, user);

    let gate = placed.gate.unwrap();
    let evidence = gate.evidence.clone().unwrap();
    assert_eq!((gate.decision(), gate.rule()), (Decision::Allowed, GateRule::Attestation));
    assert_eq!(evidence.acceptance_id, attestation.attestation_id);
    assert_eq!((evidence.template_version, gate.revision), (2, attestation.revision));

    // It is the customer's from now on, for orders that carry none.
    actions::order(&direct, &customer, None, 1).await.unwrap();
}

/// A client that knows only the refusal can ask for what is missing.
#[apply(each_backend)]
async fn a_refusal_has_all_that_a_client_needs_to_attest(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let order = fixtures::new_order(&customer, None, OFFICE, 5);
    let refused = place(&direct, order.clone()).await.unwrap_err();
    let metadata = metadata_of(&refused);
    assert!(metadata["remedies"].split(',').any(|remedy| remedy == "ATTEST"), "{metadata:?}");

    let fill = |fields: &[&str]| {
        let (mut attestation, mut contact) = (InlineAttestation::default(), Contact::default());
        let (mut details, mut shown) = (AttestationDetails::default(), ShownText::default());
        for field in fields {
            match *field {
                "template_id" => attestation.template_id = metadata["template_id"].clone(),
                "agreed_at" => attestation.agreed_at = Some(timestamp(Clock::system().now())),
                "contact.first_name" => contact.first_name = "Tania".into(),
                "contact.last_name" => contact.last_name = "Carr".into(),
                "contact.email" => contact.email = "tania@contoso.example".into(),
                "contact.phone" => contact.phone = "1234567890".into(),
                "details.title" => details.title = "Managing director".into(),
                "details.evidence_reference" => details.evidence_reference = "Folder 7".into(),
                "details.evidence_sha256" => details.evidence_sha256 = "0".repeat(64),
                "details.on_behalf_of" => details.on_behalf_of = "E-4711".into(),
                "details.external_reference" => details.external_reference = "PO 1".into(),
                "details.shown_text.country" => shown.country = "FR".into(),
                "details.shown_text.language" => shown.language = "fr-FR".into(),
                "details.shown_text.sha256" => shown.sha256 = "0".repeat(64),
                other => panic!("an attestation has no {other}"),
            }
        }
        details.shown_text = Some(shown).filter(|text| *text != ShownText::default());
        InlineAttestation { contact: Some(contact), details: Some(details), ..attestation }
    };
    let required: Vec<_> = metadata["required_fields"].split(',').collect();
    let optional: Vec<_> = metadata["optional_fields"].split(',').collect();
    // Each of the required fields is: without it, it is the one that is named.
    for missing in &required {
        let others: Vec<_> = required.iter().copied().filter(|field| field != missing).collect();
        let request = CreateOrderRequest { attestation: Some(fill(&others)), ..order.clone() };
        let refused = place(&direct, request).await.unwrap_err();
        assert_eq!(bad_fields_of(&refused), [format!("attestation.{missing}")]);
    }
    let request = CreateOrderRequest { attestation: Some(fill(&required)), ..order };
    place(&direct, request).await.unwrap();

    // And so with the optional ones, and in the other call that attests.
    let other = actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
    let InlineAttestation { template_id, contact, agreed_at, details } = fill(&[required, optional].concat());
    let request = CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: other.clone(),
        template_id,
        contact,
        agreed_at,
        validate_only: false,
        details,
    };
    direct.attestations().create_attestation(request).await.unwrap();
    actions::order(&direct, &other, None, 1).await.unwrap();
}

/// order-svc refuses an order whose attestation is refused in the words of agreement-svc, and stores no order.
#[apply(each_backend)]
async fn a_refused_attestation_refuses_its_order_word_for_word(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let now = Clock::system().now();
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let resold = actions::create_customer(&reseller, "Fabrikam", "FR", Some(PROVIDER)).await.unwrap();
    let before = cluster.head().await.unwrap();
    let carrying = |customer: &str, attestation| CreateOrderRequest {
        attestation: Some(attestation),
        ..fixtures::new_order(customer, None, OFFICE, 5)
    };
    let through_provider = CreateOrderRequest {
        payer_id: PROVIDER.to_string(),
        ..carrying(&resold, fixtures::inline_attestation(now))
    };
    let retired =
        InlineAttestation { template_id: CLOUD_AGREEMENT.into(), ..fixtures::inline_attestation(now) };
    let unknown = InlineAttestation { template_id: fixtures::request_id(), ..retired.clone() };
    let today = fixtures::inline_attestation(now);
    let other = Uuid::from_u128(0x77).to_string();
    for (partner, order, code, reason, (key, value)) in [
        (
            &reseller,
            through_provider,
            Code::PermissionDenied,
            "RESELLER_CANNOT_ATTEST",
            ("provider_id", PROVIDER.to_string()),
        ),
        (
            &direct,
            carrying(&customer, retired),
            Code::FailedPrecondition,
            "TEMPLATE_RETIRED",
            ("use_template_id", CUSTOMER_AGREEMENT.to_owned()),
        ),
        (&direct, carrying(&customer, unknown), Code::NotFound, "RESOURCE_NOT_FOUND", ("", String::new())),
        (
            &direct,
            carrying(&other, today),
            Code::NotFound,
            "RESOURCE_NOT_FOUND",
            ("partner_center_code", "20002".to_owned()),
        ),
    ] {
        for validate_only in [false, true] {
            let order = CreateOrderRequest { validate_only, ..order.clone() };
            let refused = place(partner, order.clone()).await.unwrap_err();
            assert_eq!(refusal_with_domain(&refused), refused_by("agreement-svc", code, reason), "{refused}");
            assert_eq!(metadata_of(&refused).get(key).cloned().unwrap_or_default(), value, "{reason}");

            // It is what the other call says.
            let InlineAttestation { template_id, contact, agreed_at, .. } = order.attestation.unwrap();
            let (request_id, customer_id) = (fixtures::request_id(), order.customer_id);
            let request = CreateAttestationRequest {
                request_id,
                customer_id,
                template_id,
                contact,
                agreed_at,
                validate_only,
                details: None,
            };
            let said = partner.attestations().create_attestation(request).await.unwrap_err();
            assert_eq!(refused.message(), said.message());
            assert_eq!(metadata_of(&refused), metadata_of(&said));
            let resource = |status: &Status| format!("{:?}", status.get_details_resource_info());
            assert_eq!(resource(&refused), resource(&said));
        }
    }

    let bad = InlineAttestation {
        contact: Some(Contact { email: "tania@contoso".into(), ..fixtures::contact() }),
        ..fixtures::inline_attestation(now + chrono::Duration::hours(1))
    };
    let refused = place(&direct, carrying(&customer, bad)).await.unwrap_err();
    let expected = refused_by("agreement-svc", Code::InvalidArgument, "INVALID_FIELDS");
    assert_eq!(refusal_with_domain(&refused), expected);
    assert_eq!(bad_fields_of(&refused), ["attestation.contact.email", "attestation.agreed_at"]);
    assert_eq!(metadata_of(&refused)["partner_center_code"], "600002");
    let message = refused.message();
    assert!(message.starts_with("INVALID_FIELDS: attestation.contact.email must"), "{message}");
    assert!(message.contains("; attestation.agreed_at must not be in the future"), "{message}");

    assert_eq!(bought(&direct).await, (0, 0));
    assert_eq!(bought(&reseller).await, (0, 0));
    assert_eq!(cluster.events_after(before).await.unwrap(), []);
}

#[apply(each_backend)]
async fn what_was_attested_already_is_as_good_as_new(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let agreed_at = Clock::system().now();
    let known = actions::attest(&direct, &customer, agreed_at).await.unwrap();
    for validate_only in [true, false] {
        let attestation = Some(fixtures::inline_attestation(agreed_at));
        let order = CreateOrderRequest { validate_only, attestation, ..prompted(&customer) };
        let placed = place(&direct, order).await.unwrap().order.unwrap();
        let evidence = placed.gate.unwrap().evidence.unwrap();
        assert_eq!(evidence.acceptance_id, known.attestation.clone().unwrap().attestation_id);
    }
    assert_eq!(actions::attestations_of(&direct, &customer).await.unwrap().len(), 1);
    assert_eq!(bought(&direct).await, (1, 1));
}

/// An order that is refused keeps its attestation, and passes once it is right.
#[apply(each_backend)]
async fn a_refused_order_keeps_its_attestation(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = buyer(&cluster, "Contoso").await;
    let wrong = CreateOrderRequest { lines: vec![line(RIGHTS_MANAGEMENT, 1)], ..prompted(&customer) };
    let refused = place(&direct, wrong.clone()).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["lines[0].offer_id"]);
    assert_eq!(actions::attestations_of(&direct, &customer).await.unwrap().len(), 1);
    assert_eq!(bought(&direct).await, (0, 0));

    // Corrected under the same request id it is ordered, and the attestation is the one there is; with
    // another one it is that one.
    let right = CreateOrderRequest { lines: vec![line(OFFICE, 1)], ..wrong };
    let corrected = InlineAttestation {
        contact: Some(Contact { first_name: "Tomas".into(), ..fixtures::contact() }),
        ..right.attestation.clone().unwrap()
    };
    let again = CreateOrderRequest { lines: vec![line(OFFICE, 301)], ..right.clone() };
    assert_eq!(bad_fields_of(&place(&direct, again).await.unwrap_err()), ["lines[0].quantity"]);
    let other = CreateOrderRequest { attestation: Some(corrected.clone()), ..right };
    let placed = place(&direct, other).await.unwrap().order.unwrap();
    let stored = actions::attestations_of(&direct, &customer).await.unwrap();
    assert_eq!(stored.len(), 2);
    assert_eq!(stored[1].contact, corrected.contact);
    assert_eq!(placed.gate.unwrap().evidence.unwrap().acceptance_id, stored[1].attestation_id);

    // Lines that are bad for every customer are named, and nothing is attested for them.
    let other = buyer(&cluster, "Fabrikam").await;
    let before = cluster.head().await.unwrap();
    let bad =
        CreateOrderRequest { lines: vec![line(OFFICE, 301), line(RIGHTS_MANAGEMENT, 1)], ..prompted(&other) };
    let refused = place(&direct, bad).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["lines[0].quantity", "lines[1].offer_id"]);
    assert_eq!(actions::attestations_of(&direct, &other).await.unwrap(), []);
    assert_eq!(cluster.events_after(before).await.unwrap(), []);
}

/// A repeated order gets its first answer and attests nothing anew.
#[apply(each_backend)]
async fn a_repeated_order_gets_its_first_answer(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = buyer(&cluster, "Contoso").await;
    let order = prompted(&customer);
    let first = place(&direct, order.clone()).await.unwrap();
    let [attestation] = actions::attestations_of(&direct, &customer).await.unwrap().try_into().unwrap();
    let withdrawal = WithdrawAttestationRequest {
        request_id: fixtures::request_id(),
        attestation_id: attestation.attestation_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
        ..WithdrawAttestationRequest::default()
    };
    direct.attestations().withdraw_attestation(withdrawal).await.unwrap();
    let before = cluster.head().await.unwrap();
    assert_eq!(place(&direct, order.clone()).await.unwrap().encode_to_vec(), first.encode_to_vec());
    assert_eq!(cluster.events_after(before).await.unwrap(), []);
    let [attestation] = actions::attestations_of(&direct, &customer).await.unwrap().try_into().unwrap();
    assert_eq!(attestation.state(), AttestationState::Withdrawn);

    // Another attestation is other content; a new order attests anew.
    let other = CreateOrderRequest { attestation: None, ..order.clone() };
    assert_eq!(reason_of(&place(&direct, other).await.unwrap_err()), "REQUEST_ID_REUSED");
    let anew = CreateOrderRequest { request_id: fixtures::request_id(), ..order };
    place(&direct, anew).await.unwrap();
    assert_eq!(actions::attestations_of(&direct, &customer).await.unwrap().len(), 2);
}

/// A refused order that is sent again does not renew an attestation that was withdrawn meanwhile.
#[apply(each_backend)]
async fn a_repeated_order_does_not_renew_a_withdrawn_attestation(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = buyer(&cluster, "Contoso").await;
    let order = CreateOrderRequest { lines: vec![line(RIGHTS_MANAGEMENT, 1)], ..prompted(&customer) };
    let refused = place(&direct, order.clone()).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["lines[0].offer_id"]);
    let [attestation] = actions::attestations_of(&direct, &customer).await.unwrap().try_into().unwrap();
    let withdrawal = WithdrawAttestationRequest {
        request_id: fixtures::request_id(),
        attestation_id: attestation.attestation_id.clone(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
        ..WithdrawAttestationRequest::default()
    };
    direct.attestations().withdraw_attestation(withdrawal).await.unwrap();

    // It was refused, so no answer is kept for it; the attestation's own request id tells that it was made.
    let before = cluster.head().await.unwrap();
    let refused = place(&direct, order).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["lines[0].offer_id"]);
    let [withdrawn] = actions::attestations_of(&direct, &customer).await.unwrap().try_into().unwrap();
    assert_eq!(withdrawn.attestation_id, attestation.attestation_id);
    assert_eq!(withdrawn.state(), AttestationState::Withdrawn);
    assert_eq!(bought(&direct).await, (0, 0));
    assert_eq!(cluster.events_after(before).await.unwrap(), []);
}

/// What does not depend on when and under which ids it was answered.
fn essence(answer: Result<CreateOrderResponse, Status>) -> Result<CreateOrderResponse, (Code, String)> {
    let mut response = answer.map_err(|status| (status.code(), status.message().to_owned()))?;
    let order = response.order.as_mut().unwrap();
    (order.order_id, order.placed_at) = (String::new(), None);
    order.lines.iter_mut().for_each(|line| line.subscription_id.clear());
    let gate = order.gate.as_mut().unwrap();
    (gate.revision, gate.evaluated_at) = (0, None);
    gate.evidence.as_mut().unwrap().acceptance_id.clear();
    for subscription in &mut response.subscriptions {
        (subscription.subscription_id, subscription.order_id) = (String::new(), String::new());
        (subscription.started_at, subscription.term_end) = (None, None);
    }
    Ok(response)
}

/// ORD-5. An order that is only validated has the answer of a real one, and stores nothing in either service.
#[apply(each_backend)]
async fn a_validated_order_is_answered_and_not_stored(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let bare = buyer(&cluster, "Contoso").await;
    let attested = buyer(&cluster, "Fabrikam").await;
    actions::attest(&direct, &attested, Clock::system().now()).await.unwrap();
    let other_person = InlineAttestation {
        contact: Some(Contact { first_name: "Tomas".into(), ..fixtures::contact() }),
        ..fixtures::inline_attestation(Clock::system().now())
    };
    let long_ago = fixtures::inline_attestation("2020-01-01T00:00:00Z".parse().unwrap());
    for (about, order) in [
        ("nothing accepted", fixtures::new_order(&bare, None, OFFICE, 5)),
        (
            "a version that no longer counts",
            CreateOrderRequest { attestation: Some(long_ago), ..fixtures::new_order(&bare, None, OFFICE, 5) },
        ),
        ("the prompt", prompted(&bare)),
        ("attested before", fixtures::new_order(&attested, None, AZURE_PLAN, 1)),
        ("attested already", prompted(&attested)),
        (
            "attested by another person",
            CreateOrderRequest {
                attestation: Some(other_person),
                ..fixtures::new_order(&attested, None, OFFICE, 5)
            },
        ),
        (
            "not sold there",
            CreateOrderRequest {
                lines: vec![line(RIGHTS_MANAGEMENT, 1), line(OFFICE, 301)],
                ..prompted(&attested)
            },
        ),
    ] {
        let (before, had) = (cluster.head().await.unwrap(), bought(&direct).await);
        let customer = order.customer_id.clone();
        let known = actions::attestations_of(&direct, &customer).await.unwrap();
        let dry_run = CreateOrderRequest { validate_only: true, ..order.clone() };
        let would_be = place(&direct, dry_run).await;
        assert_eq!(cluster.events_after(before).await.unwrap(), [], "{about}");
        assert_eq!(bought(&direct).await, had, "{about}");
        assert_eq!(actions::attestations_of(&direct, &customer).await.unwrap().len(), known.len(), "{about}");
        // The request id was left alone, and what it said is what happens.
        assert_eq!(essence(would_be), essence(place(&direct, order).await), "{about}");
    }
    assert_eq!(bought(&direct).await.0, 4);
}

/// Many callers that send one request id with an attestation get one order.
#[apply(each_backend)]
async fn one_request_id_with_an_attestation_makes_one_order(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let agents: Vec<_> = (0..4).map(|_| cluster.as_caller(fixtures::sales(DIRECT))).collect();
    let order = prompted(&customer);
    let calls = (0..32).map(|n| place(&agents[n % agents.len()], order.clone()));
    let answers = join_all(calls).await;
    let bytes: BTreeSet<_> = answers.into_iter().map(|answer| answer.unwrap().encode_to_vec()).collect();
    assert_eq!(bytes.len(), 1);
    assert_eq!(bought(&direct).await, (1, 1));
    assert_eq!(actions::attestations_of(&direct, &customer).await.unwrap().len(), 1);
}

/// Identity providers name a role once for each group that grants it.
#[apply(each_backend)]
async fn a_caller_whose_identity_names_a_role_twice_may_order(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let twice = [Role::SalesAgent, Role::SalesAgent];
    let direct = cluster.as_caller(caller(TenantKind::Partner, DIRECT, &twice));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    place(&direct, prompted(&customer)).await.unwrap();
}
