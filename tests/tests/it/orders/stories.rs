//! Stories: what a reseller's day looks like, on both databases.

use std::collections::HashMap;

use chassis::clock::Clock;
use chassis::form::timestamp;
use proto::agreement::{
    CreateAttestationRequest, CreateCustomerRequest, GetAttestationRequest, GetTemplateRequest,
    InlineAttestation, ListAttestationsRequest, ListTemplatesRequest, PartnerKind,
    PublishTemplateVersionRequest, RetireTemplateRequest, UpdateCustomerRequest,
};
use proto::identity::{Role, TenantKind};
use proto::order::{
    ChangeSeatsRequest, GetOrderRequest, ListSubscriptionChangesRequest, NewOrderLine, SubscriptionChangeKind,
};
use proto::types::{AcceptanceKind, AgreementType, Cloud, Contact, GateRule};
use rstest_reuse::apply;
use tests::assert::refusal;
use tests::clients::{bad_fields_of, caller};
use tests::fixtures::{
    self, AZURE_PLAN, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, RESELLER,
    RIGHTS_MANAGEMENT,
};
use tests::{As, Backend, Cluster, Setup, actions, metadata_of};

use crate::each_backend;
use tonic::{Code, Status};
use tonic_types::StatusExt;

fn refused_as(code: Code, reason: &str) -> (Code, String) {
    (code, reason.to_owned())
}

async fn change_seats(
    partner: &As,
    subscription: &str,
    etag: &str,
    quantity: u32,
) -> Result<proto::order::ChangeSeatsResponse, Status> {
    let request = ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: subscription.into(),
        quantity,
        etag: etag.into(),
        validate_only: false,
        attestation: None,
    };
    Ok(partner.subscriptions().change_seats(request).await?.into_inner())
}

/// CUS-2. The refusal of an order has what a user interface needs, and the order passes after the attestation.
#[apply(each_backend)]
async fn a_refused_order_names_its_remedy_and_passes_afterwards(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let order = fixtures::new_order(&customer, None, OFFICE, 5);
    let refused = direct.orders().create_order(order.clone()).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::FailedPrecondition, "AGREEMENT_REQUIRED"));
    assert_eq!(
        metadata_of(&refused),
        HashMap::from(
            [
                ("customer_id", customer.as_str()),
                ("reasons", "NO_ACCEPTANCE"),
                ("remedies", "ATTEST,INVITE_CUSTOMER"),
                ("template_id", CUSTOMER_AGREEMENT),
                (
                    "required_fields",
                    "template_id,contact.first_name,contact.last_name,contact.email,agreed_at"
                ),
                (
                    "optional_fields",
                    "contact.phone,details.title,details.evidence_reference,details.evidence_sha256,\
                     details.on_behalf_of,details.external_reference,\
                     details.shown_text.country,details.shown_text.language,details.shown_text.sha256"
                ),
                ("partner_center_code", "13605"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
        )
    );
    let violations = refused.get_details_precondition_failure().unwrap().violations;
    assert_eq!(
        (violations[0].r#type.as_str(), violations[0].description.as_str()),
        ("AGREEMENT", "NO_ACCEPTANCE")
    );
    assert!(refused.message().contains("attest its acceptance of template"), "{}", refused.message());

    let attested = actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    // The same request under the same id: refusals are not remembered.
    let placed = direct.orders().create_order(order).await.unwrap().into_inner().order.unwrap();
    let gate = placed.gate.unwrap();
    let evidence = gate.evidence.clone().unwrap();
    assert_eq!(gate.rule(), GateRule::Attestation);
    assert_eq!(evidence.kind(), AcceptanceKind::Attestation);
    assert_eq!(evidence.acceptance_id, attested.attestation.unwrap().attestation_id);
    assert_eq!((evidence.template_version, gate.revision), (2, attested.revision));
}

/// ORD-6.
#[apply(each_backend)]
async fn the_answer_an_order_rests_on_is_kept_with_it(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let mut new = fixtures::new_order(&customer, None, OFFICE, 5);
    new.lines.push(NewOrderLine { offer_id: AZURE_PLAN.into(), quantity: 1, friendly_name: " plan ".into() });
    let placed = direct.orders().create_order(new).await.unwrap().into_inner();
    let order = placed.order.clone().unwrap();
    let request = GetOrderRequest { order_id: order.order_id.clone() };
    let read = direct.orders().get_order(request.clone()).await.unwrap().into_inner();
    assert_eq!(read.order, placed.order);
    assert_eq!(order.lines.len(), 2);
    assert_eq!(order.lines[1].friendly_name, "plan");
    let ids: Vec<_> = placed.subscriptions.iter().map(|s| s.subscription_id.as_str()).collect();
    assert_eq!(ids, order.lines.iter().map(|line| line.subscription_id.as_str()).collect::<Vec<_>>());
    // What lasts for good has no end, and what is licensed has.
    assert!(placed.subscriptions[0].term_end.is_some() && placed.subscriptions[0].auto_renew);
    assert!(placed.subscriptions[1].term_end.is_none() && !placed.subscriptions[1].auto_renew);

    for (stranger, code) in [(PROVIDER, Code::NotFound), (RESELLER, Code::NotFound)] {
        let stranger = cluster_as(&_cluster, stranger);
        assert_eq!(stranger.orders().get_order(request.clone()).await.unwrap_err().code(), code);
    }
    let operator = _cluster.as_caller(fixtures::operator());
    assert_eq!(operator.orders().get_order(request).await.unwrap().into_inner().order, placed.order);
}

fn cluster_as(cluster: &Cluster, partner: uuid::Uuid) -> As {
    cluster.as_caller(fixtures::sales(partner))
}

/// ORD-3.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_bad_line_is_named_with_its_bounds() {
    let (_cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let line = |offer: &str, quantity| NewOrderLine {
        offer_id: offer.into(),
        quantity,
        friendly_name: String::new(),
    };
    let mut order = fixtures::new_order(&customer, None, OFFICE, 5);
    order.lines = vec![
        line(OFFICE, 301),
        line(OFFICE, 300),
        line("NOT-AN-OFFER", 1),
        line(RIGHTS_MANAGEMENT, 0),
        line(OFFICE, u32::MAX),
    ];
    let refused = direct.orders().create_order(order).await.unwrap_err();
    assert_eq!(
        bad_fields_of(&refused),
        [
            "lines[0].quantity",
            "lines[2].offer_id",
            "lines[3].quantity",
            "lines[3].offer_id",
            "lines[4].quantity"
        ]
    );
    assert!(refused.message().contains("1 to 300"), "{}", refused.message());
    assert!(refused.message().contains("not sold in FR"), "{}", refused.message());
}

/// Seats change within the bounds of the offer under the current etag, and every change is kept.
#[apply(each_backend)]
async fn seats_change_within_bounds_under_the_etag(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attested = actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let bought = actions::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
    let id = bought.subscription_id.as_str();

    let up = change_seats(&direct, id, &bought.etag, 8).await.unwrap();
    assert_eq!(up.gate.unwrap().revision, attested.revision);
    let up = up.subscription.unwrap();
    let stale = change_seats(&direct, id, &bought.etag, 9).await.unwrap_err();
    assert_eq!(refusal(&stale), refused_as(Code::Aborted, "ETAG_STALE"));
    let same = change_seats(&direct, id, &up.etag, 8).await.unwrap();
    assert_eq!((same.subscription.as_ref(), same.gate), (Some(&up), None));
    let beyond = change_seats(&direct, id, &up.etag, 301).await.unwrap_err();
    assert_eq!(bad_fields_of(&beyond), ["quantity"]);
    let down = change_seats(&direct, id, &up.etag, 2).await.unwrap().subscription.unwrap();
    assert_eq!(down.quantity, 2);

    let request = ListSubscriptionChangesRequest { subscription_id: id.into(), ..Default::default() };
    let changes =
        direct.subscriptions().list_subscription_changes(request).await.unwrap().into_inner().changes;
    let kept: Vec<_> =
        changes.iter().map(|c| (c.number, c.kind(), c.quantity_before, c.quantity_after)).collect();
    use SubscriptionChangeKind::{Created, SeatsChanged};
    assert_eq!(kept, [(1, Created, 0, 5), (2, SeatsChanged, 5, 8), (3, SeatsChanged, 8, 2)]);
    let by = fixtures::sales(DIRECT);
    assert!(changes.iter().all(|c| c.actor == by.user_id.to_string() && c.gate.is_some()));

    let plan = direct.orders().create_order(fixtures::new_order(&customer, None, AZURE_PLAN, 1)).await;
    let plan = plan.unwrap().into_inner().subscriptions.remove(0);
    let refused = change_seats(&direct, &plan.subscription_id, &plan.etag, 2).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::FailedPrecondition, "NOT_A_LICENCE"));
}

/// ATT-7.
#[apply(each_backend)]
async fn a_reseller_orders_through_its_provider_and_cannot_attest(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&reseller, "Fourth Coffee", "DE", Some(PROVIDER)).await.unwrap();

    let refused = actions::attest(&reseller, &customer, Clock::system().now()).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::PermissionDenied, "RESELLER_CANNOT_ATTEST"));
    assert_eq!(metadata_of(&refused)["provider_id"], PROVIDER.to_string());
    let refused = actions::order(&reseller, &customer, Some(PROVIDER), 3).await.unwrap_err();
    assert_eq!(metadata_of(&refused)["remedies"], "ASK_PROVIDER,INVITE_CUSTOMER");
    let refused = actions::order(&reseller, &customer, None, 3).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::InvalidArgument, "PAYER_IS_RESELLER"));

    actions::attest(&provider, &customer, Clock::system().now()).await.unwrap();
    let order = actions::order(&reseller, &customer, Some(PROVIDER), 3).await.unwrap().order.unwrap();
    assert_eq!((order.payer_id, order.reseller_id), (PROVIDER.to_string(), RESELLER.to_string()));
    // Payer and reseller on record both see it; no other partner does.
    let request = GetOrderRequest { order_id: order.order_id };
    assert!(reseller.orders().get_order(request.clone()).await.is_ok());
    assert!(provider.orders().get_order(request.clone()).await.is_ok());
    assert_eq!(direct.orders().get_order(request).await.unwrap_err().code(), Code::NotFound);
    let refused = actions::order(&direct, &customer, None, 3).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::NotFound, "RESOURCE_NOT_FOUND"));
}

/// CUS-1. A customer is created with its attestation in one call, or not at all.
#[apply(each_backend)]
async fn customer_and_attestation_are_created_together(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let now = Clock::system().now();
    let inline = |template: &str| InlineAttestation {
        template_id: template.into(),
        contact: None,
        agreed_at: Some(timestamp(now)),
        details: None,
    };
    let new = |name: &str, template| CreateCustomerRequest {
        attestation: Some(inline(template)),
        ..fixtures::new_customer(name, "FR", None)
    };
    let created = direct.customers().create_customer(new("Contoso", CUSTOMER_AGREEMENT)).await;
    let created = created.unwrap().into_inner();
    let attestation = created.attestation.unwrap();
    assert_eq!(attestation.contact, Some(fixtures::contact()));
    let customer = created.customer.unwrap();
    assert_eq!(customer.acceptance_revision, attestation.revision);
    actions::order(&direct, &customer.customer_id, None, 5).await.unwrap();

    // The attestation is refused, so the customer is not there either and its domain is free.
    let refused = direct.customers().create_customer(new("Tailspin", CLOUD_AGREEMENT)).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::FailedPrecondition, "TEMPLATE_RETIRED"));
    assert_eq!(metadata_of(&refused)["use_template_id"], CUSTOMER_AGREEMENT);
    actions::create_customer(&direct, "Tailspin", "FR", None).await.unwrap();

    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let taken = CreateCustomerRequest {
        domain: "CONTOSO.example".into(),
        ..fixtures::new_customer("Other", "FR", None)
    };
    let refused = provider.customers().create_customer(taken).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::AlreadyExists, "DOMAIN_TAKEN"));
    assert!(!refused.message().contains(&customer.customer_id));
    assert!(metadata_of(&refused).is_empty());
}

/// ATT-5.
#[apply(each_backend)]
async fn attestations_supersede_each_other_and_the_history_stays(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let now = Clock::system().now();
    let attest = |email: &str, agreed_at| CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.clone(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(Contact { email: email.into(), ..fixtures::contact() }),
        agreed_at: Some(timestamp(agreed_at)),
        validate_only: false,
        details: None,
    };
    let old = "2020-06-01T00:00:00Z".parse().unwrap();
    let first = direct.attestations().create_attestation(attest("a@contoso.example", old)).await.unwrap();
    let first = first.into_inner().attestation.unwrap();
    assert_eq!(first.template_version, 1);
    let second = direct.attestations().create_attestation(attest("a@contoso.example", now)).await.unwrap();
    let second = second.into_inner().attestation.unwrap();
    assert_eq!(
        (second.template_version, second.agreement_type()),
        (2, AgreementType::MicrosoftCustomerAgreement)
    );

    let again =
        direct.attestations().create_attestation(attest(" A@Contoso.example ", now)).await.unwrap_err();
    assert_eq!(refusal(&again), refused_as(Code::AlreadyExists, "ALREADY_ATTESTED"));
    assert_eq!(metadata_of(&again)["partner_center_code"], "600061");
    assert_eq!(metadata_of(&again)["attestation_id"], second.attestation_id);
    let older = direct.attestations().create_attestation(attest("b@contoso.example", old)).await.unwrap_err();
    assert_eq!(refusal(&older), refused_as(Code::FailedPrecondition, "OLDER_THAN_CURRENT"));
    direct.attestations().create_attestation(attest("b@contoso.example", now)).await.unwrap();

    let list = async |include_history| {
        let request = ListAttestationsRequest {
            customer_id: customer.clone(),
            include_history,
            ..ListAttestationsRequest::default()
        };
        let listed = direct.attestations().list_attestations(request).await.unwrap().into_inner();
        listed.attestations.iter().map(|a| a.state().as_str_name().to_owned()).collect::<Vec<_>>()
    };
    let (current, superseded) = ("ATTESTATION_STATE_CURRENT", "ATTESTATION_STATE_SUPERSEDED");
    assert_eq!(list(false).await, [current]);
    assert_eq!(list(true).await, [superseded, superseded, current]);

    // Other partners do not see it, the customer's administrator does.
    let request = GetAttestationRequest { attestation_id: first.attestation_id };
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let refused = provider.attestations().get_attestation(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let id = customer.parse().unwrap();
    let admin = cluster.as_caller(caller(TenantKind::Customer, id, &[Role::GlobalAdmin]));
    assert!(admin.attestations().get_attestation(request).await.is_ok());
}

/// A new version stops seat changes until the partner attests again.
#[apply(each_backend)]
async fn a_new_version_stops_seat_changes_until_attested(#[case] backend: Backend) {
    tests::needs_own!("templates of its own");
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let bought = actions::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
    let publish = fixtures::new_version(CUSTOMER_AGREEMENT);
    let published = operator.templates().publish_template_version(publish.clone()).await.unwrap();
    assert_eq!(published.into_inner().template.unwrap().version_in_force, 3);

    let id = bought.subscription_id.as_str();
    let refused = change_seats(&direct, id, &bought.etag, 8).await.unwrap_err();
    assert_eq!(metadata_of(&refused)["reasons"], "VERSION_SUPERSEDED");
    // The customer has bought, so it can no longer sign directly: only the partner helps.
    actions::until_bought(&cluster, &customer).await.unwrap();
    let refused = change_seats(&direct, id, &bought.etag, 8).await.unwrap_err();
    assert_eq!(metadata_of(&refused)["remedies"], "ATTEST");
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    change_seats(&direct, id, &bought.etag, 8).await.unwrap();

    let early = PublishTemplateVersionRequest {
        request_id: fixtures::request_id(),
        effective_from: Some(timestamp("2024-01-01T00:00:00Z".parse().unwrap())),
        ..publish
    };
    let refused = operator.templates().publish_template_version(early).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::FailedPrecondition, "NOT_LATER_THAN_LAST_VERSION"));
}

/// order-svc reports the first purchase even if agreement-svc was away at the time of the order.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_first_purchase_is_reported_after_an_outage() {
    tests::needs_own!("services that it stops");
    let (mut cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    // The report is written with the order, so it survives both services; until the trigger goes
    // no reseller can take it up.
    cluster
        .orders_sql(
            "CREATE TRIGGER hold BEFORE UPDATE ON purchase_report BEGIN SELECT RAISE(ABORT, 'held'); END",
        )
        .unwrap();
    actions::order(&direct, &customer, None, 5).await.unwrap();
    cluster.stop_agreements();
    cluster.restart_orders().await.unwrap();
    cluster.orders_sql("DROP TRIGGER hold").unwrap();
    cluster.restart_agreements().await.unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();
}

/// A report that was written while order-svc's clock was ahead does not wait until the time comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_first_purchase_of_a_clock_that_was_ahead_is_reported_at_once() {
    tests::needs_own!("rows that it writes to");
    let (cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    cluster
        .orders_sql(
            "CREATE TRIGGER ahead AFTER INSERT ON purchase_report
             BEGIN UPDATE purchase_report SET due_at = '2100-01-01 00:00:00'; END",
        )
        .unwrap();
    actions::order(&direct, &customer, None, 5).await.unwrap();
    cluster.orders_sql("DROP TRIGGER ahead").unwrap();
    actions::until_bought(&cluster, &customer).await.unwrap();
}

/// TPL-1.
#[apply(each_backend)]
async fn templates_are_listed_by_type(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let list = async |types: &[AgreementType]| {
        let agreement_types = types.iter().map(|t| (*t).into()).collect();
        let listed = direct.templates().list_templates(ListTemplatesRequest { agreement_types }).await?;
        Ok::<_, Status>(listed.into_inner().templates)
    };
    let refused = list(&[]).await.unwrap_err();
    assert_eq!(bad_fields_of(&refused), ["agreement_types"]);
    use AgreementType::{MicrosoftCloudAgreement, MicrosoftCustomerAgreement};
    let mut both = list(&[MicrosoftCustomerAgreement, MicrosoftCloudAgreement]).await.unwrap();
    assert!(both.is_sorted_by_key(|template| template.agreement_type));
    let of_cloud = list(&[MicrosoftCloudAgreement]).await.unwrap();
    assert!(of_cloud.iter().all(|t| t.agreement_type() == MicrosoftCloudAgreement));
    // On a stack other tests publish templates of their own.
    both.retain(|t| [CLOUD_AGREEMENT, CUSTOMER_AGREEMENT].contains(&t.template_id.as_str()));
    let shown: Vec<_> = both.iter().map(|t| (t.template_id.as_str(), t.version_in_force)).collect();
    assert_eq!(shown, [(CLOUD_AGREEMENT, 0), (CUSTOMER_AGREEMENT, 2)]);
    let newest: Vec<_> = both[1].versions.iter().map(|v| v.number).collect();
    assert_eq!(newest, [2, 1]);
}

#[apply(each_backend)]
async fn a_template_is_retired_under_its_etag_and_for_good(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let operator = cluster.as_caller(fixtures::operator());
    let (template, _turn) = actions::publish_cloud_agreement(&cluster).await.unwrap();
    assert_eq!((template.version_in_force, template.retired_at), (1, None));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attest = CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: customer,
        template_id: template.template_id.clone(),
        contact: Some(fixtures::contact()),
        agreed_at: Some(timestamp(Clock::system().now())),
        validate_only: true,
        details: None,
    };
    direct.attestations().create_attestation(attest.clone()).await.unwrap();
    let retire = |etag: &str| RetireTemplateRequest {
        request_id: fixtures::request_id(),
        template_id: template.template_id.clone(),
        etag: etag.into(),
        validate_only: false,
    };
    let stale = operator.templates().retire_template(retire("0")).await.unwrap_err();
    assert_eq!(refusal(&stale), refused_as(Code::Aborted, "ETAG_STALE"));
    let retired = operator.templates().retire_template(retire(&template.etag)).await.unwrap();
    assert!(retired.into_inner().template.unwrap().retired_at.is_some());
    let request = GetTemplateRequest { template_id: template.template_id.clone() };
    let read = direct.templates().get_template(request).await.unwrap().into_inner().template.unwrap();
    assert_eq!(read.version_in_force, 0);
    let refused = direct.attestations().create_attestation(attest).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::FailedPrecondition, "TEMPLATE_RETIRED"));
    assert_eq!(metadata_of(&refused)["use_template_id"], CUSTOMER_AGREEMENT);
    let next = fixtures::new_version(&template.template_id);
    let refused = operator.templates().publish_template_version(next).await.unwrap_err();
    assert_eq!(refusal(&refused), refused_as(Code::FailedPrecondition, "TEMPLATE_RETIRED"));
}

/// ROLE-6. A customer changes under its current etag only, and is invisible to partners without a relationship.
#[apply(each_backend)]
async fn a_customer_changes_under_its_etag_unseen_by_strangers(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let created = direct.customers().create_customer(fixtures::new_customer("Contoso", "FR", None)).await;
    let created = created.unwrap().into_inner().customer.unwrap();
    let update = |etag: &str| UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: created.customer_id.clone(),
        etag: etag.into(),
        company_name: "Contoso Paris".into(),
        primary_contact: Some(fixtures::contact()),
        ..UpdateCustomerRequest::default()
    };
    let changed = direct.customers().update_customer(update(&created.etag)).await.unwrap();
    let changed = changed.into_inner().customer.unwrap();
    assert_eq!(changed.company_name, "Contoso Paris");
    assert_eq!(changed.acceptance_revision, created.acceptance_revision);
    let stale = direct.customers().update_customer(update(&created.etag)).await.unwrap_err();
    assert_eq!(refusal(&stale), refused_as(Code::Aborted, "ETAG_STALE"));
    let stranger = cluster.as_caller(fixtures::sales(PROVIDER));
    let refused = stranger.customers().update_customer(update(&changed.etag)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reseller_learns_nothing_of_an_unlinked_partner() {
    let (cluster, _) = actions::start_with_partners(Backend::Sqlite).await;
    let operator = cluster.as_caller(fixtures::operator());
    let other = uuid::uuid!("00000000-0000-4000-8000-0000000000e2");
    actions::register_partner(&operator, other, "Other", PartnerKind::IndirectProvider, Cloud::Public)
        .await
        .unwrap();
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let mut messages = vec![];
    // A provider that it is not linked to, a partner that is none, and no partner at all.
    for provider in [other, DIRECT, uuid::Uuid::from_u128(0xdead)] {
        let refused =
            actions::create_customer(&reseller, "Fourth Coffee", "DE", Some(provider)).await.unwrap_err();
        assert_eq!(refusal(&refused), refused_as(Code::FailedPrecondition, "RESELLER_NOT_LINKED"));
        messages.push(refused.message().replace(&provider.to_string(), "ID"));
    }
    assert!(messages.windows(2).all(|pair| pair[0] == pair[1]), "{messages:?}");
}

/// A version that was scheduled before its template was retired never takes effect.
#[apply(each_backend)]
async fn a_retired_template_puts_no_scheduled_version_in_force(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let start = Clock::system().now();
    let clock = Clock::manual(start);
    let cluster = Cluster::start(Setup { backend, clock: clock.clone(), ..Setup::default() }).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(fixtures::operator());
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let successor = uuid::Uuid::from_u128(0x7e).to_string();
    let publish = |template_id: &str, effective_from| PublishTemplateVersionRequest {
        effective_from,
        ..fixtures::new_version(template_id)
    };
    let next_year = Some(timestamp(start + chrono::Duration::days(365)));
    let scheduled =
        operator.templates().publish_template_version(publish(CUSTOMER_AGREEMENT, next_year)).await;
    let etag = scheduled.unwrap().into_inner().template.unwrap().etag;
    let retire = RetireTemplateRequest {
        request_id: fixtures::request_id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        etag,
        validate_only: false,
    };
    operator.templates().retire_template(retire).await.unwrap();
    let new = PublishTemplateVersionRequest {
        agreement_type: AgreementType::MicrosoftCustomerAgreement.into(),
        name: "Customer Agreement, second edition".into(),
        ..publish(&successor, None)
    };
    operator.templates().publish_template_version(new).await.unwrap();

    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let attest = CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.clone(),
        template_id: successor,
        contact: Some(fixtures::contact()),
        agreed_at: Some(timestamp(start)),
        validate_only: false,
        details: None,
    };
    direct.attestations().create_attestation(attest).await.unwrap();
    clock.set(start + chrono::Duration::days(400));
    actions::order(&direct, &customer, None, 5).await.unwrap();
}
