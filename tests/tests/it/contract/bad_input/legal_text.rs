//! Odd but legal input: text comes back as it was given, and values at their bounds are accepted.

use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chrono::Duration;
use prost_types::Timestamp;
use proto::agreement::{
    AgreementDemand, CheckEligibilityRequest, CreateAttestationRequest, CreateCustomerRequest,
    GetCustomerRequest, GetPartnerRequest, GetTemplateRequest, InlineAttestation, ListAttestationsRequest,
    ListCustomersRequest, PartnerKind, PublishTemplateVersionRequest, ReportPurchaseRequest,
    RetireTemplateRequest, UpdateCustomerRequest,
};
use proto::order::{
    CreateOrderRequest, GetOfferRequest, GetOrderRequest, GetSubscriptionRequest, NewOrderLine,
};
use proto::types::{AgreementType, Channel, Cloud, Contact, Operation};
use rstest_reuse::apply;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, Setup, actions, reason_of};

use crate::each_backend;
use tonic::Code;
use uuid::Uuid;

use super::existing::*;

/// A later date is refused, and the refusal says the time of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_date_may_be_five_minutes_ahead() {
    tests::needs_own!("a clock that it sets");
    let now: Time = "2026-03-04T05:06:07.000089Z".parse().unwrap();
    let setup = Setup { clock: Clock::manual(now), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let service = cluster.as_caller(fixtures::service());
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let created_with = |agreed_at| CreateCustomerRequest {
        attestation: Some(InlineAttestation {
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: None,
            agreed_at: Some(agreed_at),
            details: None,
        }),
        ..fixtures::new_customer("Fabrikam", "FR", None)
    };
    let purchase = |purchased_at| ReportPurchaseRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.clone(),
        payer_id: DIRECT.to_string(),
        purchased_at: Some(purchased_at),
        validate_only: false,
    };
    let last = now + Duration::minutes(5);
    let too_late = timestamp(last + Duration::microseconds(1));
    for (field, answer) in [
        ("agreed_at", {
            direct.attestations().create_attestation(attestation(&customer, Some(too_late))).await.map(drop)
        }),
        ("attestation.agreed_at", {
            direct.customers().create_customer(created_with(too_late)).await.map(drop)
        }),
        ("purchased_at", service.gate().report_purchase(purchase(too_late)).await.map(drop)),
    ] {
        let refused = answer.expect_err(field);
        assert_eq!(
            (refused.code(), bad_fields_of(&refused)),
            (Code::InvalidArgument, vec![field.to_owned()])
        );
        assert!(refused.message().contains("2026-03-04T05:06:07.000089Z"), "{field}: {}", refused.message());
    }

    let last = timestamp(last);
    let attested = direct.attestations().create_attestation(attestation(&customer, Some(last))).await;
    assert_eq!(attested.unwrap().into_inner().attestation.unwrap().agreed_at, Some(last));
    let created = direct.customers().create_customer(created_with(last)).await;
    assert_eq!(created.unwrap().into_inner().attestation.unwrap().agreed_at, Some(last));
    let reported = service.gate().report_purchase(purchase(last)).await;
    assert_eq!(reported.unwrap().into_inner().first_purchase_at, Some(last));
}

/// Odd but legal. Fields that take less get the beginning.
fn hostile_texts() -> Vec<String> {
    let texts = [
        "O'Neil \"the\" `Great` \\ /",
        "Robert'); DROP TABLE customer;--",
        "' OR '1'='1' /* %s %n {0} ${jndi:ldap://x} */",
        "<script>alert(1)</script> &amp; &#0;",
        "=cmd|'/c calc'!A1",
        "👩‍👩‍👧‍👦 🏴‍☠️ 🇫🇷",
        "עברית عربي",
        // Persian and Sinhala names that are misspelt without their joiners.
        "\u{639}\u{644}\u{6cc}\u{200c}\u{631}\u{636}\u{627} \u{dc1}\u{dca}\u{200d}\u{dbb}\u{dd3}",
        "x\u{10fffd}\u{e000}",
        "two  spaces",
        "NULL",
        "\\u0000 \\0 %00 \\x00",
    ];
    let mut texts: Vec<_> = texts.map(String::from).to_vec();
    texts.push("😀".repeat(200));
    texts
}

/// As much of a text as a field takes.
fn cut(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

/// With blanks around it, which are taken off.
fn padded(text: &str) -> String {
    format!(" \t\u{3000}{text}\n ")
}

/// A template has its type for good, and at most one of a type is live: names take turns.
async fn publish_and_retire(operator: &As, name: &str) -> String {
    let mut templates = operator.templates();
    let request = PublishTemplateVersionRequest {
        agreement_type: AgreementType::MicrosoftCloudAgreement.into(),
        name: padded(name),
        ..publication(&fixtures::request_id(), vec![document("US", "en-US")])
    };
    let published = templates.publish_template_version(request).await.unwrap().into_inner().template.unwrap();
    let request = RetireTemplateRequest {
        request_id: fixtures::request_id(),
        template_id: published.template_id.clone(),
        etag: published.etag,
        validate_only: false,
    };
    templates.retire_template(request).await.unwrap();
    let request = GetTemplateRequest { template_id: published.template_id };
    templates.get_template(request).await.unwrap().into_inner().template.unwrap().name
}

#[apply(each_backend)]
async fn odd_text_comes_back_as_given_but_for_blanks_around_it(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    for (n, text) in hostile_texts().iter().enumerate() {
        let (person, phone) = (cut(text, 100), format!("+{n} (0)1/23-45.67 x8"));
        let given = |email: &str| Contact {
            first_name: padded(&person),
            last_name: padded(&person),
            email: padded(email),
            phone: padded(&phone),
        };
        let kept = |email: &str| Contact {
            first_name: person.clone(),
            last_name: person.clone(),
            email: email.into(),
            phone: phone.clone(),
        };
        let (email, other_email) = ("o'neil+tag@contoso.example", "{%s}@xn--bcher-kva.example");
        let new = CreateCustomerRequest {
            company_name: padded(text),
            domain: padded(&format!("HOSTILE-{n}.example")),
            primary_contact: Some(given(email)),
            ..fixtures::new_customer("", "FR", None)
        };
        let created = direct.customers().create_customer(new.clone()).await.unwrap().into_inner();
        let replayed = direct.customers().create_customer(new).await.unwrap().into_inner();
        assert_eq!(replayed, created);
        let customer = created.customer.unwrap();
        let get = GetCustomerRequest { customer_id: customer.customer_id.clone() };
        let read = direct.customers().get_customer(get.clone()).await.unwrap().into_inner().customer.unwrap();
        assert_eq!(read, customer);
        assert_eq!((&read.company_name, &read.domain), (text, &format!("hostile-{n}.example")));
        assert_eq!(read.primary_contact, Some(kept(email)));

        let update = UpdateCustomerRequest {
            request_id: fixtures::request_id(),
            customer_id: customer.customer_id.clone(),
            etag: customer.etag,
            company_name: padded(text),
            primary_contact: Some(given(other_email)),
            ..UpdateCustomerRequest::default()
        };
        direct.customers().update_customer(update).await.unwrap();
        let read = direct.customers().get_customer(get).await.unwrap().into_inner().customer.unwrap();
        assert_eq!((&read.company_name, read.primary_contact), (text, Some(kept(other_email))));

        // From 2010 on, to the microsecond.
        let agreed_at = Some(Timestamp { seconds: 1_262_304_000, nanos: 1000 });
        let attest = CreateAttestationRequest {
            contact: Some(given(other_email)),
            ..attestation(&customer.customer_id, agreed_at)
        };
        direct.attestations().create_attestation(attest).await.unwrap();
        let list =
            ListAttestationsRequest { customer_id: customer.customer_id.clone(), ..Default::default() };
        let listed = direct.attestations().list_attestations(list).await.unwrap().into_inner();
        assert_eq!(listed.attestations[0].contact, Some(kept(other_email)));
        assert_eq!(listed.attestations[0].agreed_at, agreed_at);

        // The version of that date no longer satisfies.
        actions::attest(&direct, &customer.customer_id, Clock::system().now()).await.unwrap();
        let mut order = fixtures::new_order(&customer.customer_id, None, OFFICE, 300);
        order.lines[0].friendly_name = padded(text);
        let placed = direct.orders().create_order(order).await.unwrap().into_inner();
        let get = GetOrderRequest { order_id: placed.order.clone().unwrap().order_id };
        let read = direct.orders().get_order(get).await.unwrap().into_inner().order;
        assert_eq!(read, placed.order);
        assert_eq!(&read.unwrap().lines[0].friendly_name, text);
        let subscription_id = placed.subscriptions[0].subscription_id.clone();
        let get = GetSubscriptionRequest { subscription_id };
        let read = direct.subscriptions().get_subscription(get).await.unwrap().into_inner();
        assert_eq!(&read.subscription.unwrap().friendly_name, text);

        let partner = Uuid::from_u128(DIRECT.as_u128() + 0x1000 + n as u128);
        let (kind, cloud) = (PartnerKind::DirectBill, Cloud::Public);
        actions::register_partner(&operator, partner, &padded(text), kind, cloud).await.unwrap();
        let get = GetPartnerRequest { partner_id: partner.to_string() };
        let read = operator.partners().get_partner(get).await.unwrap().into_inner();
        assert_eq!(&read.partner.unwrap().name, text);

        let _turn = actions::cloud_agreements_turn(&cluster).await.unwrap();
        assert_eq!(&publish_and_retire(&operator, text).await, text);

        // An offer's id is text too; a refusal may repeat it, if its letters survive a header.
        let offer_id = cut(text, 100);
        let refused = direct.offers().get_offer(GetOfferRequest { offer_id: padded(&offer_id) }).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        assert!(refused.message().contains(&offer_id), "{refused}");
    }
}

/// What looks the same is the same: the text is kept composed, and the same person is a duplicate (ATT-8).
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn text_is_kept_composed_and_compared_so() {
    let (_cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let agreed_at = Some(timestamp(Clock::system().now()));
    let attest = async |first_name: &str, last_name: &str, phone: &str| {
        let (first_name, last_name, phone) = (first_name.into(), last_name.into(), phone.into());
        let contact = Some(Contact { first_name, last_name, phone, ..fixtures::contact() });
        let request = CreateAttestationRequest { contact, ..attestation(&customer, agreed_at) };
        direct.attestations().create_attestation(request).await
    };
    let attested =
        attest("Zoe\u{308}", "van\u{a0}Ngo\u{323}\u{302}c", "+33\u{202f}1").await.unwrap().into_inner();
    let kept = attested.attestation.unwrap().contact.unwrap();
    let expected = ("Zo\u{eb}", "van Ng\u{1ed9}c", "+33 1");
    assert_eq!((kept.first_name.as_str(), kept.last_name.as_str(), kept.phone.as_str()), expected);
    for (first_name, last_name, phone) in
        [("Zo\u{eb}", "van Ng\u{1ed9}c", "+33 1"), ("Zoe\u{308}", "van\u{2003}Ngo\u{302}\u{323}c ", "+33 1")]
    {
        let refused = attest(first_name, last_name, phone).await.unwrap_err();
        assert_eq!(reason_of(&refused), "ALREADY_ATTESTED", "{refused}");
    }
    let refused = attest("Zo\u{eb}\u{200b}", "\u{feff}", "1").await.unwrap_err();
    for words in [
        "contact.first_name must not contain U+200B (character 4)",
        "contact.last_name must not contain U+FEFF",
    ] {
        assert!(refused.message().contains(words), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn values_at_their_bounds_are_accepted() {
    let existing = Existing::new().await;
    let direct = existing.cluster.as_caller(existing.direct.clone());
    let service = existing.cluster.as_caller(existing.service.clone());
    let customer = existing.customer.customer_id.clone();

    let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 300, friendly_name: "😀".repeat(200) };
    let order =
        CreateOrderRequest { lines: vec![line; 100], ..fixtures::new_order(&customer, None, OFFICE, 1) };
    let placed = direct.orders().create_order(order).await.unwrap().into_inner();
    assert_eq!(placed.subscriptions.len(), 100);

    let host = format!("{}.example", ["x".repeat(61), "y".repeat(61), "z".repeat(56)].join("."));
    let local = "l".repeat(64);
    let email = format!("{local}@{}", cut(&host, 254 - 65));
    assert_eq!(email.len(), 253);
    let new = CreateCustomerRequest {
        company_name: "x".repeat(200),
        domain: host,
        primary_contact: Some(Contact {
            first_name: "x".repeat(100),
            last_name: "x".repeat(100),
            email,
            phone: "1".repeat(50),
        }),
        ..fixtures::new_customer("", "XK", None)
    };
    direct.customers().create_customer(new).await.unwrap();

    let known = AgreementType::MicrosoftCustomerAgreement.into();
    let question = CheckEligibilityRequest {
        payer_id: DIRECT.to_string(),
        customer_id: customer,
        operation: Operation::NewPurchase.into(),
        channel: Channel::Api.into(),
        demands: vec![AgreementDemand { agreement_types: vec![known] }; 100],
        ..CheckEligibilityRequest::default()
    };
    service.gate().check_eligibility(question).await.unwrap();

    // More than there is on one page is as much as there may be.
    let all = ListCustomersRequest { page_size: i32::MAX, ..Default::default() };
    let listed = direct.customers().list_customers(all).await.unwrap().into_inner();
    assert_eq!((listed.customers.len(), listed.next_page_token.as_str()), (3, ""));
}
