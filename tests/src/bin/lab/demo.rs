//! `cargo demo`: a scenario over gRPC, on one screen by both services on embedded SQLite.
//! `cargo demo --serve` runs the same scenario, keeps both services up and prints grpcurl lines to paste.

use std::error::Error;

use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chassis::telemetry::{self, LogFormat};
use chrono::Duration;
use clap::Args;
use futures_util::stream;
use proto::agreement::{
    AcceptInvitationRequest, ApproveProposalRequest, Attestation, GetCustomerRequest, ImportCustomersRequest,
    ImportCustomersResponse, ImportOutcome, ListBlockedCustomersRequest, Replacement,
    WithdrawAttestationRequest, WithdrawalReason,
};
use proto::order::event::Change as OrderChange;
use proto::order::preview_withdrawal_request::Subject;
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, CreateOrderResponse, Event as OrderEvent,
    GetWithdrawalReportRequest, InlineAttestation, ListEventsRequest as ListOrderEvents,
    PreviewWithdrawalRequest, WithdrawalReport,
};
use proto::types::{AcceptanceKind, Evidence};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};
use tests::{As, Cluster, Setup, actions, metadata_of};
use tonic::Status;
use uuid::Uuid;

/// How often to look for what order-svc does in its own time.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(20);

/// The tenant of the customer that is imported.
const IMPORTED: Uuid = Uuid::from_u128(0x4000_8000_0000_0000_0ada);

#[derive(Args)]
pub(crate) struct Options {
    /// Keep both services up on fixed ports and print grpcurl lines, until interrupted.
    #[arg(long)]
    serve: bool,
    /// agreement-svc's port with --serve.
    #[arg(long, default_value_t = 50051)]
    agreement_port: u16,
    /// order-svc's port with --serve.
    #[arg(long, default_value_t = 50052)]
    order_port: u16,
    /// The port of the acceptance page with --serve.
    #[arg(long, default_value_t = 50080)]
    page_port: u16,
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    if std::env::var_os("RUST_LOG").is_some() {
        telemetry::start(LogFormat::Pretty);
    }
    let setup = match options.serve {
        true => Setup {
            agreement_port: options.agreement_port,
            order_port: options.order_port,
            page_port: Some(options.page_port),
            ..Setup::default()
        },
        false => Setup::default(),
    };
    let cluster = Cluster::start(setup).await?;
    println!(
        "agreement-svc serves on {}, order-svc on {}, both on embedded SQLite.\n",
        cluster.agreements_address(),
        cluster.orders_address()
    );
    let customers = play(&cluster).await?;
    if options.serve {
        end_of_second().await;
        print_lines(&cluster, &customers, &invite(&cluster).await?);
        chassis::lifecycle::signal().await;
    }
    Ok(())
}

/// The customers of the scenario.
struct Customers {
    direct: String,
    resold: String,
}

async fn play(cluster: &Cluster) -> Result<Customers, Box<dyn Error>> {
    let clock = Clock::system();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));

    step("The operator registers a direct-bill partner, a provider and its reseller.");
    actions::register_partners(cluster).await?;
    actions::set_support(cluster, DIRECT, "support@northwind.example").await?;

    step("The direct-bill partner creates a customer in France, without acceptance, and orders 5 seats:");
    let customer = actions::create_customer(&direct, "Contoso Lyon", "FR", None).await?;
    refused(actions::order(&direct, &customer, None, 5).await)?;

    step("The partner attests that Tania Carr accepted the Customer Agreement, and orders again:");
    let attested = actions::attest(&direct, &customer, clock.now()).await?.attestation.unwrap_or_default();
    accepted(&format!(
        "attestation {} of template version {}",
        attested.attestation_id, attested.template_version
    ));
    let order = actions::order(&direct, &customer, None, 5).await?;
    accepted(&describe(&order));

    let bought = order.subscriptions.first().cloned().unwrap_or_default();

    step(
        "It imports a customer that it had before, with its first purchase. It attests, and corrects the date:",
    );
    let imported = import(&direct).await?;
    accepted(&format!("customer {}, with the id of its tenant", imported.customer_id));
    let now = clock.now();
    let wrong = actions::attest(&direct, &imported.customer_id, now - Duration::days(3)).await?;
    let wrong = wrong.attestation.unwrap_or_default().attestation_id;
    let right = correct_date(&direct, &wrong, now - Duration::days(30)).await?;
    accepted(&format!("attestation {right} in place of {wrong}"));

    step("The reseller creates a customer in Germany through its provider, and tries to attest:");
    let resold = actions::create_customer(&reseller, "Fourth Coffee Berlin", "DE", Some(PROVIDER)).await?;
    refused(actions::attest(&reseller, &resold, clock.now()).await)?;

    step(
        "So it proposes the attestation, and the provider approves. The order, which the provider pays, passes:",
    );
    let attested = propose_and_approve(&reseller, &provider, &resold).await?;
    accepted(&format!("attestation {} by the provider, proposed by the reseller", attested.attestation_id));
    let through_reseller = actions::order(&reseller, &resold, Some(PROVIDER), 3).await?;
    accepted(&describe(&through_reseller));

    step("The operator publishes a new version, effective and due at once. 5 seats cannot become 10:");
    publish_version(&cluster.as_caller(fixtures::operator())).await?;
    refused(change_seats(&direct, &bought.subscription_id, &bought.etag, 10).await)?;

    step("The partner attests the new version, and changes the seats again:");
    let attested = actions::attest(&direct, &customer, clock.now()).await?.attestation.unwrap_or_default();
    accepted(&format!(
        "attestation {} of template version {}",
        attested.attestation_id, attested.template_version
    ));
    let seats = change_seats(&direct, &bought.subscription_id, &bought.etag, 10).await?;
    accepted(&format!("{} seats, etag {} -> {}", seats.quantity, bought.etag, seats.etag));

    step("The partner invites a company that is no customer yet. Its administrator accepts and signs:");
    let invitation = actions::invite(&direct, None, None).await?;
    println!("         {}", invitation.mail_subject);
    println!("         {}", invitation.acceptance_url);
    let tenant = fixtures::TAILSPIN;
    let admin = cluster.as_caller(fixtures::admin(tenant));
    let acceptance = AcceptInvitationRequest {
        template_version: 3,
        ..fixtures::acceptance(&invitation, Some("Tailspin Toys Nantes"))
    };
    let signed = admin.signatures().accept_invitation(acceptance).await?.into_inner();
    let signed = signed.signature.unwrap_or_default();
    accepted(&format!("signature {} of template version {}", signed.signature_id, signed.template_version));
    let invited = tenant.to_string();
    accepted(&describe(&actions::order(&direct, &invited, None, 4).await?));

    step("The first customer tries to sign, too. It bought before it ever signed, so it cannot:");
    wait_until_reported(cluster, &customer).await?;
    refused(actions::sign(&cluster.as_caller(fixtures::admin(customer.parse()?)), 3).await)?;

    step(
        "It no longer accepts. The partner asks what a withdrawal of its attestation would do, and withdraws it:",
    );
    let subject = Some(Subject::AcceptanceId(attested.attestation_id.clone()));
    let question = PreviewWithdrawalRequest { subject, ..PreviewWithdrawalRequest::default() };
    let preview = direct.withdrawals().preview_withdrawal(question).await?.into_inner();
    println!("         would cancel {}, and leave {} alone", preview.cancelled, preview.stayed);
    let withdrawal = WithdrawAttestationRequest {
        request_id: fixtures::request_id(),
        attestation_id: attested.attestation_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
        ..WithdrawAttestationRequest::default()
    };
    let withdrawn = direct.attestations().withdraw_attestation(withdrawal).await?.into_inner();
    let report = report_of(&direct, withdrawn.revision).await?;
    accepted(&format!("{} subscription cancelled by revision {}", report.cancelled, report.revision));
    refused(actions::order(&direct, &customer, None, 5).await)?;

    step("Which customers would be refused right now? The direct-bill partner asks, and the reseller:");
    for (who, partner) in [("direct", &direct), ("reseller", &reseller)] {
        let blocked =
            partner.gate().list_blocked_customers(ListBlockedCustomersRequest::default()).await?.into_inner();
        for row in blocked.customers {
            let reasons: Vec<_> = row.reasons().map(|reason| short(reason.as_str_name())).collect();
            let remedies = row.remedies.iter().map(|remedy| short(remedy.kind().as_str_name()));
            let remedies: Vec<_> = remedies.collect();
            let (reasons, remedies) = (reasons.join(", "), remedies.join(" or "));
            println!("    {who}: {} ({reasons}): {remedies}", row.company_name);
        }
    }

    step("The customer accepts again. The partner attests and orders in one call:");
    let order = CreateOrderRequest {
        attestation: Some(InlineAttestation {
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(fixtures::contact()),
            agreed_at: Some(timestamp(clock.now())),
            details: None,
        }),
        ..fixtures::new_order(&customer, None, fixtures::OFFICE, 5)
    };
    accepted(&describe(&direct.orders().create_order(order).await?.into_inner()));

    step("Billing reads what happened to the first customer's orders and subscriptions:");
    let billing = cluster.as_caller(fixtures::service());
    for event in order_events(&billing, &customer, 6).await? {
        println!("         {}", describe_event(&event));
    }
    Ok(Customers { direct: customer, resold })
}

/// Imports a customer that bought before.
async fn import(partner: &As) -> Result<ImportCustomersResponse, Status> {
    let new = fixtures::new_customer("Adatum Lille", "FR", None);
    let row = ImportCustomersRequest {
        request_id: fixtures::request_id(),
        customer_id: IMPORTED.to_string(),
        company_name: new.company_name,
        domain: new.domain,
        country: new.country,
        primary_contact: new.primary_contact,
        first_purchase_at: Some(timestamp(Clock::system().now() - Duration::days(900))),
        external_reference: "C-1001".into(),
        ..ImportCustomersRequest::default()
    };
    let mut answers = partner.customers().import_customers(stream::iter([row])).await?.into_inner();
    let answer = answers.message().await?.unwrap_or_default();
    match answer.outcome() {
        ImportOutcome::Stored => Ok(answer),
        outcome => Err(Status::internal(format!("the row is {}", outcome.as_str_name()))),
    }
}

/// Puts an attestation with another date in the place of one that was recorded in error, and returns its id.
async fn correct_date(partner: &As, attestation_id: &str, agreed_at: Time) -> Result<String, Status> {
    let correction = WithdrawAttestationRequest {
        request_id: fixtures::request_id(),
        attestation_id: attestation_id.into(),
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(Replacement { agreed_at: Some(timestamp(agreed_at)), ..Replacement::default() }),
        ..WithdrawAttestationRequest::default()
    };
    let corrected = partner.attestations().withdraw_attestation(correction).await?.into_inner();
    Ok(corrected.replacement.unwrap_or_default().attestation_id)
}

/// A reseller's proposal becomes its provider's attestation.
async fn propose_and_approve(reseller: &As, provider: &As, customer: &str) -> Result<Attestation, Status> {
    let proposal = fixtures::new_proposal(PROVIDER, customer);
    let proposed = reseller.proposals().propose_attestation(proposal).await?.into_inner().proposal;
    let approval = ApproveProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposed.unwrap_or_default().proposal_id,
        validate_only: false,
    };
    let approved = provider.proposals().approve_proposal(approval).await?.into_inner();
    Ok(approved.attestation.unwrap_or_default())
}

/// The end of an enum's name, which is what it says.
fn short(name: &str) -> &str {
    ["BLOCK_REASON_", "REMEDY_KIND_"].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Ends with the present second. A reader's commands write times in whole seconds, as `date` prints them: those of the same
/// second would lie before the new version of the agreement came into force.
async fn end_of_second() {
    let clock = Clock::system();
    let second = clock.now().timestamp();
    while clock.now().timestamp() == second {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits until order-svc has reported to agreement-svc that a customer bought, which it does in its own time.
async fn wait_until_reported(cluster: &Cluster, customer: &str) -> Result<(), Status> {
    let operator = cluster.as_caller(fixtures::operator());
    loop {
        let request = GetCustomerRequest { customer_id: customer.to_owned() };
        let found = operator.customers().get_customer(request).await?.into_inner().customer;
        if found.unwrap_or_default().first_purchase_at.is_some() {
            return Ok(());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// So many events of a customer's orders. order-svc records them moments after its answers.
async fn order_events(billing: &As, customer: &str, count: usize) -> Result<Vec<OrderEvent>, Status> {
    loop {
        let request = ListOrderEvents { customer_id: customer.into(), ..ListOrderEvents::default() };
        let events = billing.order_events().list_events(request).await?.into_inner().events;
        if events.len() >= count {
            return Ok(events);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// What a withdrawal did. The call waits until order-svc has applied it, which takes moments.
async fn report_of(partner: &As, revision: i64) -> Result<WithdrawalReport, Status> {
    let request =
        GetWithdrawalReportRequest { revision, wait: true, ..GetWithdrawalReportRequest::default() };
    let found = partner.withdrawals().get_withdrawal_report(request).await?.into_inner();
    found.report.ok_or_else(|| Status::internal("order-svc does not apply the withdrawal"))
}

async fn change_seats(
    partner: &As,
    subscription_id: &str,
    etag: &str,
    quantity: u32,
) -> Result<proto::order::Subscription, Status> {
    let request = ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: subscription_id.into(),
        quantity,
        etag: etag.into(),
        validate_only: false,
        attestation: None,
    };
    let changed = partner.subscriptions().change_seats(request).await?.into_inner();
    Ok(changed.subscription.unwrap_or_default())
}

async fn publish_version(operator: &As) -> Result<(), Status> {
    let published = actions::publish(operator, fixtures::new_version(CUSTOMER_AGREEMENT)).await?;
    let number = published.template.unwrap_or_default().version_in_force;
    accepted(&format!("version {number} is in force"));
    Ok(())
}

fn describe(response: &CreateOrderResponse) -> String {
    let order = response.order.clone().unwrap_or_default();
    let seats: u32 = order.lines.iter().map(|line| line.quantity).sum();
    let gate = order.gate.unwrap_or_default();
    let evidence = gate.evidence.as_ref().map(describe_evidence).unwrap_or_default();
    format!("order {} of {seats} seats rests on {evidence}, at revision {}", order.order_id, gate.revision)
}

fn describe_evidence(evidence: &Evidence) -> String {
    let kind = match evidence.kind() {
        AcceptanceKind::DirectSignature => "direct signature",
        AcceptanceKind::Attestation | AcceptanceKind::Unspecified => "attestation",
    };
    format!("{kind} {} of version {}", evidence.acceptance_id, evidence.template_version)
}

fn describe_event(event: &OrderEvent) -> String {
    let happened = match &event.change {
        Some(OrderChange::OrderPlaced(_)) => "order placed".to_owned(),
        Some(OrderChange::SubscriptionChanged(of)) => {
            let change = of.change.clone().unwrap_or_default();
            let kind = change.kind().as_str_name().trim_start_matches("SUBSCRIPTION_CHANGE_KIND_");
            format!("subscription {kind}, seats {} -> {}", change.quantity_before, change.quantity_after)
        }
        Some(OrderChange::HistoryRestored(_)) | None => "history restored".to_owned(),
    };
    format!("{}: {happened}", event.revision)
}

fn print_lines(cluster: &Cluster, customers: &Customers, invited: &Invited) {
    let (agreements, orders) = (cluster.agreements_address(), cluster.orders_address());
    let identity = |kind: &str, tenant: Uuid| {
        let user = Uuid::new_v5(&tenant, b"user");
        format!(
            "-H 'x-tenant-kind: {kind}' -H 'x-tenant-id: {tenant}' -H 'x-user-id: {user}' -H 'x-roles: SALES_AGENT'"
        )
    };
    let (direct, reseller) = (identity("PARTNER", DIRECT), identity("PARTNER", RESELLER));
    let operator = identity("OPERATOR", fixtures::OPERATOR);
    let (own, resold) = (&customers.direct, &customers.resold);
    let signed = fixtures::TAILSPIN;
    let line = |about: &str, call: String| println!("# {about}\ngrpcurl -plaintext {call}\n");
    let id = fixtures::request_id;

    println!("\nBoth services stay up until you press Ctrl-C. Lines to paste:\n");
    line("what is served", format!("{orders} list"));
    line(
        "the gate, explained",
        format!(
            "{direct} -d '{{\"payer_id\":\"{DIRECT}\",\"customer_id\":\"{own}\",\"operation\":\"OPERATION_NEW_PURCHASE\"}}' {agreements} csp.agreement.v1.EligibilityService/CheckEligibility"
        ),
    );
    line(
        "an order that passes",
        format!(
            "{direct} -d '{{\"request_id\":\"{}\",\"customer_id\":\"{signed}\",\"lines\":[{{\"offer_id\":\"{}\",\"quantity\":2}}]}}' {orders} csp.order.v1.OrderService/CreateOrder",
            id(),
            fixtures::OFFICE
        ),
    );
    line(
        "the new version has to be attested first: this one is refused with FAILED_PRECONDITION",
        format!(
            "{reseller} -d '{{\"request_id\":\"{}\",\"customer_id\":\"{resold}\",\"payer_id\":\"{PROVIDER}\",\"lines\":[{{\"offer_id\":\"{}\",\"quantity\":2}}]}}' {orders} csp.order.v1.OrderService/CreateOrder",
            id(),
            fixtures::OFFICE
        ),
    );
    line(
        "who would be refused, and what can be done",
        format!("{reseller} -d '{{}}' {agreements} csp.agreement.v1.EligibilityService/ListBlockedCustomers"),
    );
    line(
        "a customer's history, as its partner sees it",
        format!(
            "{direct} -d '{{\"customer_id\":\"{own}\"}}' {agreements} csp.agreement.v1.EventService/ListEvents"
        ),
    );
    line(
        "what the direct-bill partner has",
        format!("{direct} -d '{{}}' {orders} csp.order.v1.SubscriptionService/ListSubscriptions"),
    );
    line(
        "what withdrawals did",
        format!("{direct} -d '{{}}' {orders} csp.order.v1.WithdrawalService/ListWithdrawalReports"),
    );
    line(
        "an order for an invited customer: refused with FAILED_PRECONDITION until it has accepted",
        format!(
            "{direct} -d '{{\"request_id\":\"{}\",\"customer_id\":\"{}\",\"lines\":[{{\"offer_id\":\"{}\",\"quantity\":2}}]}}' {orders} csp.order.v1.OrderService/CreateOrder",
            id(),
            invited.tenant,
            fixtures::OFFICE
        ),
    );
    println!(
        "# the invitation, for the customer's administrator in a browser on this machine\n{}\n",
        invited.link
    );
    line(
        "who is registered",
        format!("{operator} -d '{{}}' {agreements} csp.agreement.v1.PartnerService/ListPartners"),
    );
}

/// A customer that was invited and has bought nothing.
struct Invited {
    tenant: String,
    /// Signs its administrator in and opens the invitation.
    link: String,
}

async fn invite(cluster: &Cluster) -> Result<Invited, Status> {
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let tenant = actions::create_customer(&direct, "Contoso Nantes", "FR", None).await?;
    let invitation = actions::invite(&direct, Some(&tenant), None).await?;
    let (page, question) = invitation.acceptance_url.split_once("accept?").unwrap_or_default();
    let next = format!("%2Faccept%3F{}", question.replace('=', "%3D").replace('&', "%26"));
    let user = Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"user");
    let link = format!("{page}development-sign-in?tenant_id={tenant}&user_id={user}&next={next}");
    Ok(Invited { tenant, link })
}

fn step(text: &str) {
    println!("\n* {text}");
}

fn accepted(text: &str) {
    println!("    yes: {text}");
}

/// Prints a refusal; a scenario in which it does not happen is broken.
fn refused<T>(result: Result<T, Status>) -> Result<(), String> {
    let Err(status) = result else { return Err("the scenario expected a refusal here".into()) };
    println!("    no:  {:?}: {}", status.code(), status.message());
    let metadata = metadata_of(&status);
    for key in ["reasons", "remedies", "provider_id", "partner_center_code"] {
        if let Some(value) = metadata.get(key) {
            println!("         {key} = {value}");
        }
    }
    Ok(())
}
