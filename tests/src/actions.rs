//! Actions: the calls that most tests make, one function each. They return the refusal, so that a test can expect it
//! as well as success.

use std::time::Duration;

use chassis::clock::Time;
use chassis::form::timestamp;
use proto::agreement::{
    Attestation, CheckEligibilityRequest, CheckEligibilityResponse, CreateAttestationRequest,
    CreateAttestationResponse, GetCustomerRequest, GetDirectSignStatusRequest, GetPartnerRequest, Invitation,
    LinkResellerRequest, ListAttestationsRequest, ListTemplatesRequest, Partner, PartnerKind,
    PublishTemplateVersionRequest, PublishTemplateVersionResponse, RegisterPartnerRequest,
    ReportPurchaseRequest, RetireTemplateRequest, SignAgreementRequest, Signature, SupportContact, Template,
    UpdatePartnerRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::order::{
    CreateOrderRequest, CreateOrderResponse, GetSubscriptionRequest, ListOrdersRequest,
    ListSubscriptionChangesRequest, Order, Subscription, SubscriptionChange,
};
use proto::types::{AgreementType, Cloud};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use tonic::Status;
use uuid::Uuid;

use crate::clients::As;
use crate::cluster::Cluster;
use crate::databases::Backend;
use crate::fixtures::{
    CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, RESELLER, new_attestation, new_customer, new_invitation,
    new_order, new_version, new_withdrawal, now, operator, request_id, sales, service,
};

/// Starts a cluster on a database, registers the partners, and returns the cluster with a sales agent of the
/// direct-bill partner.
///
/// # Panics
/// When a service does not start or refuses the partners.
pub async fn start_with_partners(backend: Backend) -> (Cluster, As) {
    let cluster = Cluster::on(backend).await;
    if let Err(refused) = register_partners(&cluster).await {
        panic!("the partners are refused: {refused}");
    }
    let direct = cluster.as_caller(sales(DIRECT));
    (cluster, direct)
}

/// Registers the partners and links the reseller to its provider.
///
/// # Errors
/// The refusal.
pub async fn register_partners(cluster: &Cluster) -> Result<(), Status> {
    register_partners_as(&cluster.as_caller(operator())).await
}

/// Registers the partners through a client of an operator, and links the reseller to its provider.
///
/// # Errors
/// The refusal.
pub async fn register_partners_as(operator: &As) -> Result<(), Status> {
    for (partner, name, kind) in [
        (DIRECT, "Northwind Direct", PartnerKind::DirectBill),
        (PROVIDER, "Fabrikam Distribution", PartnerKind::IndirectProvider),
        (RESELLER, "Adventure Works Reselling", PartnerKind::IndirectReseller),
    ] {
        register_partner(operator, partner, name, kind, Cloud::Public).await?;
    }
    let link = LinkResellerRequest {
        request_id: request_id(),
        provider_id: PROVIDER.to_string(),
        reseller_id: RESELLER.to_string(),
        validate_only: false,
    };
    operator.partners().link_reseller(link).await?;
    Ok(())
}

/// Registers one partner.
///
/// # Errors
/// The refusal.
pub async fn register_partner(
    operator: &As,
    partner: Uuid,
    name: &str,
    kind: PartnerKind,
    cloud: Cloud,
) -> Result<(), Status> {
    let request = RegisterPartnerRequest {
        request_id: request_id(),
        partner_id: partner.to_string(),
        name: name.into(),
        kind: kind.into(),
        cloud: cloud.into(),
        validate_only: false,
        support: None,
    };
    operator.partners().register_partner(request).await.map(drop)
}

/// Sets the e-mail address at which a partner's customers ask.
///
/// # Errors
/// The refusal.
pub async fn set_support(cluster: &Cluster, partner: Uuid, email: &str) -> Result<Partner, Status> {
    let operator = cluster.as_caller(operator());
    let known = GetPartnerRequest { partner_id: partner.to_string() };
    let known = operator.partners().get_partner(known).await?.into_inner().partner.unwrap_or_default();
    let request = UpdatePartnerRequest {
        request_id: request_id(),
        partner_id: known.partner_id,
        etag: known.etag,
        name: known.name,
        validate_only: false,
        support: Some(SupportContact { email: email.into(), ..SupportContact::default() }),
    };
    Ok(operator.partners().update_partner(request).await?.into_inner().partner.unwrap_or_default())
}

/// A test's turn with Cloud Agreements. At most one of them is live, so on a shared stack the tests that need one run
/// one after another.
pub type Turn = Option<MutexGuard<'static, ()>>;

static TURN: Mutex<()> = Mutex::const_new(());

/// Waits for the turn. On a stack the Cloud Agreement of the test before is then retired.
///
/// # Errors
/// The refusal.
pub async fn cloud_agreements_turn(cluster: &Cluster) -> Result<Turn, Status> {
    if !cluster.is_shared() {
        return Ok(None);
    }
    let turn = TURN.lock().await;
    let operator = cluster.as_caller(operator());
    let request =
        ListTemplatesRequest { agreement_types: vec![AgreementType::MicrosoftCloudAgreement.into()] };
    let listed = operator.templates().list_templates(request).await?.into_inner().templates;
    for live in listed.into_iter().filter(|template| template.retired_at.is_none()) {
        let Template { template_id, etag, .. } = live;
        let retire =
            RetireTemplateRequest { request_id: request_id(), template_id, etag, validate_only: false };
        operator.templates().retire_template(retire).await?;
    }
    Ok(Some(turn))
}

/// Publishes a Cloud Agreement of the test's own, with one version. No Cloud Agreement has opened the gate since 2020,
/// so other tests on a shared stack do not depend on it.
///
/// # Errors
/// The refusal.
pub async fn publish_cloud_agreement(cluster: &Cluster) -> Result<(Template, Turn), Status> {
    let turn = cloud_agreements_turn(cluster).await?;
    let request = PublishTemplateVersionRequest {
        agreement_type: AgreementType::MicrosoftCloudAgreement.into(),
        name: "Cloud Agreement of a test".into(),
        ..new_version(&request_id())
    };
    let operator = cluster.as_caller(operator());
    let published = operator.templates().publish_template_version(request).await?.into_inner();
    Ok((published.template.unwrap_or_default(), turn))
}

/// Creates a customer without acceptance and returns its id.
///
/// # Errors
/// The refusal.
pub async fn create_customer(
    partner: &As,
    name: &str,
    country: &str,
    provider: Option<Uuid>,
) -> Result<String, Status> {
    let created = partner.customers().create_customer(new_customer(name, country, provider)).await?;
    Ok(created.into_inner().customer.unwrap_or_default().customer_id)
}

/// Attests that the usual contact accepted the Customer Agreement.
///
/// # Errors
/// The refusal.
pub async fn attest(
    partner: &As,
    customer_id: &str,
    agreed_at: Time,
) -> Result<CreateAttestationResponse, Status> {
    attest_to(partner, customer_id, CUSTOMER_AGREEMENT, agreed_at).await
}

/// Attests that the usual contact accepted an agreement of any type.
///
/// # Errors
/// The refusal.
pub async fn attest_to(
    partner: &As,
    customer_id: &str,
    template_id: &str,
    agreed_at: Time,
) -> Result<CreateAttestationResponse, Status> {
    let request = CreateAttestationRequest {
        template_id: template_id.into(),
        agreed_at: Some(timestamp(agreed_at)),
        ..new_attestation(customer_id)
    };
    Ok(partner.attestations().create_attestation(request).await?.into_inner())
}

/// Attests that the usual contact accepts the Customer Agreement at this moment, and returns the attestation's id.
///
/// # Errors
/// The refusal.
pub async fn attest_now(partner: &As, customer_id: &str) -> Result<String, Status> {
    let attested = attest(partner, customer_id, now()).await?;
    Ok(attested.attestation.unwrap_or_default().attestation_id)
}

/// Lists the attestations of a customer, the superseded and withdrawn ones, too.
///
/// # Errors
/// The refusal.
pub async fn attestations_of(partner: &As, customer_id: &str) -> Result<Vec<Attestation>, Status> {
    let request = ListAttestationsRequest {
        customer_id: customer_id.into(),
        include_history: true,
        ..ListAttestationsRequest::default()
    };
    Ok(partner.attestations().list_attestations(request).await?.into_inner().attestations)
}

/// Withdraws an attestation and returns the revision of the withdrawal.
///
/// # Errors
/// The refusal.
pub async fn withdraw(partner: &As, attestation_id: &str) -> Result<i64, Status> {
    let request = new_withdrawal(attestation_id);
    Ok(partner.attestations().withdraw_attestation(request).await?.into_inner().revision)
}

/// Withdraws the current signature of a customer and returns the revision of the withdrawal.
///
/// # Errors
/// The refusal.
pub async fn withdraw_signature(admin: &As, customer_id: &str) -> Result<i64, Status> {
    let request = GetDirectSignStatusRequest { customer_id: customer_id.into() };
    let status = admin.signatures().get_direct_sign_status(request).await?.into_inner();
    let request = WithdrawSignatureRequest {
        request_id: request_id(),
        signature_id: status.signature.unwrap_or_default().signature_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
        validate_only: false,
    };
    Ok(admin.signatures().withdraw_signature(request).await?.into_inner().revision)
}

/// Publishes a version of a template.
///
/// # Errors
/// The refusal.
pub async fn publish(
    operator: &As,
    version: PublishTemplateVersionRequest,
) -> Result<PublishTemplateVersionResponse, Status> {
    Ok(operator.templates().publish_template_version(version).await?.into_inner())
}

/// Reports that a customer bought from a payer, as order-svc does.
///
/// # Errors
/// The refusal.
pub async fn report_purchase(
    cluster: &Cluster,
    customer_id: &str,
    payer: Uuid,
    purchased_at: Time,
) -> Result<(), Status> {
    let request = ReportPurchaseRequest {
        request_id: request_id(),
        customer_id: customer_id.into(),
        payer_id: payer.to_string(),
        purchased_at: Some(timestamp(purchased_at)),
        validate_only: false,
    };
    cluster.as_caller(service()).gate().report_purchase(request).await.map(drop)
}

/// Asks the gate.
///
/// # Errors
/// The refusal of the call; a closed gate is an answer.
pub async fn check(
    caller: &As,
    request: CheckEligibilityRequest,
) -> Result<CheckEligibilityResponse, Status> {
    Ok(caller.gate().check_eligibility(request).await?.into_inner())
}

/// Waits until agreement-svc knows of a customer's first purchase, which order-svc reports after the order.
///
/// # Errors
/// The refusal, or that it took too long.
pub async fn until_bought(cluster: &Cluster, customer_id: &str) -> Result<(), Status> {
    const LONG: Duration = Duration::from_secs(60);
    let operator = cluster.as_caller(operator());
    let request = GetCustomerRequest { customer_id: customer_id.into() };
    let bought = async {
        loop {
            let known = operator.customers().get_customer(request.clone()).await?.into_inner();
            if known.customer.is_some_and(|customer| customer.first_purchase_at.is_some()) {
                return Ok(());
            }
        }
    };
    let late = || Status::deadline_exceeded("the first purchase was not reported");
    timeout(LONG, bought).await.map_err(|_| late())?
}

/// Signs a version of the Customer Agreement.
///
/// # Errors
/// The refusal.
pub async fn sign(admin: &As, version: u32) -> Result<Signature, Status> {
    let request = SignAgreementRequest {
        request_id: request_id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        template_version: version,
        validate_only: false,
        shown_text: None,
    };
    let signed = admin.signatures().sign_agreement(request).await?.into_inner();
    Ok(signed.signature.unwrap_or_default())
}

/// Invites a customer, or a company that is not a customer yet.
///
/// # Errors
/// The refusal.
pub async fn invite(
    partner: &As,
    customer_id: Option<&str>,
    provider: Option<Uuid>,
) -> Result<Invitation, Status> {
    let request = new_invitation(customer_id, provider);
    let invited = partner.signatures().create_invitation(request).await?.into_inner();
    Ok(invited.invitation.unwrap_or_default())
}

/// Places an order.
///
/// # Errors
/// The refusal.
pub async fn place(partner: &As, order: CreateOrderRequest) -> Result<CreateOrderResponse, Status> {
    Ok(partner.orders().create_order(order).await?.into_inner())
}

/// Orders licences of Office 365.
///
/// # Errors
/// The refusal.
pub async fn order(
    partner: &As,
    customer_id: &str,
    payer: Option<Uuid>,
    quantity: u32,
) -> Result<CreateOrderResponse, Status> {
    place(partner, new_order(customer_id, payer, OFFICE, quantity)).await
}

/// Orders five licences of Office 365 and returns the subscription.
///
/// # Errors
/// The refusal.
pub async fn subscribe(partner: &As, customer_id: &str, payer: Option<Uuid>) -> Result<Subscription, Status> {
    let placed = order(partner, customer_id, payer, 5).await?;
    placed.subscriptions.into_iter().next().ok_or_else(|| Status::internal("the order has no subscription"))
}

/// Lists the orders of a customer.
///
/// # Errors
/// The refusal.
pub async fn orders_of(partner: &As, customer_id: &str) -> Result<Vec<Order>, Status> {
    let request = ListOrdersRequest { customer_id: customer_id.into(), ..ListOrdersRequest::default() };
    Ok(partner.orders().list_orders(request).await?.into_inner().orders)
}

/// Reads a subscription.
///
/// # Errors
/// The refusal.
pub async fn get_subscription(partner: &As, subscription_id: &str) -> Result<Subscription, Status> {
    let request = GetSubscriptionRequest { subscription_id: subscription_id.into() };
    let read = partner.subscriptions().get_subscription(request).await?.into_inner();
    Ok(read.subscription.unwrap_or_default())
}

/// Lists what changed a subscription, oldest first.
///
/// # Errors
/// The refusal.
pub async fn changes_of(partner: &As, subscription_id: &str) -> Result<Vec<SubscriptionChange>, Status> {
    let request = ListSubscriptionChangesRequest {
        subscription_id: subscription_id.into(),
        ..ListSubscriptionChangesRequest::default()
    };
    Ok(partner.subscriptions().list_subscription_changes(request).await?.into_inner().changes)
}
