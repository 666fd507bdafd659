//! The small world that the story, the tests and the benchmark live in: an operator, a direct-bill
//! partner, a provider with its reseller, and customers.

use std::time::Duration;

use chassis::auth::{Caller, Channel};
use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use proto::agreement::{
    AcceptInvitationRequest, CompanyProfile, CreateAttestationRequest, CreateAttestationResponse,
    CreateCustomerRequest, CreateInvitationRequest, GetCustomerRequest, Invitation, InvitationKind,
    LinkResellerRequest, ListTemplatesRequest, PartnerKind, PublishTemplateVersionRequest,
    RegisterPartnerRequest, RetireTemplateRequest, SignAgreementRequest, Signature, Template,
    TemplateDocument,
};
use proto::identity::{Role, TenantKind};
use proto::order::{CreateOrderRequest, CreateOrderResponse, InlineAttestation, NewOrderLine};
use proto::types::{AgreementType, Cloud, Contact};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use tonic::Status;
use uuid::{Uuid, uuid};

use crate::clients::{As, caller};
use crate::cluster::Cluster;

/// The vendor's Cloud Agreement, retired in 2020.
pub const CLOUD_AGREEMENT: &str = "998b88de-aa99-4388-a42c-1b3517d49490";
/// The vendor's Customer Agreement.
pub const CUSTOMER_AGREEMENT: &str = "117a77b0-9360-443b-8795-c6dedc750cf9";
/// Office 365 Business Premium: licences, 1 to 300, everywhere.
pub const OFFICE: &str = "031C9E47-4802-4248-838E-778FB1D2CC05";
/// Azure Rights Management Premium: licences, sold in the United States only.
pub const RIGHTS_MANAGEMENT: &str = "E60E0348-1710-484B-992A-32B294D4CDE1";
/// The Azure plan, which demands the Customer Agreement.
pub const AZURE_PLAN: &str = "DZH318Z0BPS6:0001";

pub const OPERATOR: Uuid = uuid!("00000000-0000-4000-8000-0000000000a0");
pub const DIRECT: Uuid = uuid!("00000000-0000-4000-8000-0000000000d1");
pub const PROVIDER: Uuid = uuid!("00000000-0000-4000-8000-0000000000e1");
pub const RESELLER: Uuid = uuid!("00000000-0000-4000-8000-0000000000f1");

/// A company that is no customer until it accepts an invitation.
pub const TAILSPIN: Uuid = uuid!("00000000-0000-4000-8000-0000000000c1");

#[must_use]
pub fn operator() -> Caller {
    caller(TenantKind::Operator, OPERATOR, &[])
}

/// A sales agent of a partner.
#[must_use]
pub fn sales(partner: Uuid) -> Caller {
    caller(TenantKind::Partner, partner, &[Role::SalesAgent])
}

/// A global administrator of a customer.
#[must_use]
pub fn admin(customer: Uuid) -> Caller {
    caller(TenantKind::Customer, customer, &[Role::GlobalAdmin])
}

/// order-svc, or another service of the house.
#[must_use]
pub fn service() -> Caller {
    Caller { channel: Channel::Api, ..caller(TenantKind::Service, Uuid::from_u128(0x5e), &[]) }
}

#[must_use]
pub fn contact() -> Contact {
    Contact {
        first_name: "Tania".into(),
        last_name: "Carr".into(),
        email: "tania.carr@contoso.example".into(),
        phone: "1234567890".into(),
    }
}

/// A new request id.
#[must_use]
pub fn request_id() -> String {
    chassis::clock::new_id(Clock::system().now()).to_string()
}

/// Registers the partners and links the reseller to its provider.
///
/// # Errors
/// The refusal.
pub async fn register_partners(cluster: &Cluster) -> Result<(), Status> {
    register_partners_as(&cluster.as_caller(operator())).await
}

/// The same, for an operator of whatever serves.
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
    };
    operator.partners().register_partner(request).await.map(drop)
}

/// The next version of a template, in force at once.
#[must_use]
pub fn new_version(template_id: &str) -> PublishTemplateVersionRequest {
    PublishTemplateVersionRequest {
        request_id: request_id(),
        template_id: template_id.into(),
        documents: vec![TemplateDocument {
            country: "US".into(),
            language: "en-US".into(),
            link: "https://aka.ms/customeragreement".into(),
            sha256: String::new(),
        }],
        ..PublishTemplateVersionRequest::default()
    }
}

/// A test's turn with Cloud Agreements, of which at most one is live: on a stack tests have them one after
/// the other.
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
        let retire = RetireTemplateRequest { request_id: request_id(), template_id, etag };
        operator.templates().retire_template(retire).await?;
    }
    Ok(Some(turn))
}

/// Publishes a Cloud Agreement of the test's own, with one version. Since 2020 none opens the gate, so that
/// nobody else on a stack notices what becomes of it.
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

/// A customer without acceptance.
#[must_use]
pub fn new_customer(name: &str, country: &str, provider: Option<Uuid>) -> CreateCustomerRequest {
    CreateCustomerRequest {
        request_id: request_id(),
        company_name: name.into(),
        domain: format!("{}.example", name.to_lowercase().replace(' ', "-")),
        country: country.into(),
        primary_contact: Some(contact()),
        provider_id: provider.map(|id| id.to_string()).unwrap_or_default(),
        reseller_id: String::new(),
        attestation: None,
        invitation: None,
    }
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
    let request = CreateAttestationRequest {
        request_id: request_id(),
        customer_id: customer_id.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(contact()),
        agreed_at: Some(timestamp(agreed_at)),
        validate_only: false,
    };
    Ok(partner.attestations().create_attestation(request).await?.into_inner())
}

/// Waits until agreement-svc knows of a customer's first purchase, of which order-svc tells it afterwards.
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
    };
    let signed = admin.signatures().sign_agreement(request).await?.into_inner();
    Ok(signed.signature.unwrap_or_default())
}

/// An invitation to the Customer Agreement, of a customer or of anybody.
#[must_use]
pub fn new_invitation(customer_id: Option<&str>, provider: Option<Uuid>) -> CreateInvitationRequest {
    let kind = match customer_id {
        Some(_) => InvitationKind::Agreement,
        None => InvitationKind::RelationshipAndAgreement,
    };
    CreateInvitationRequest {
        request_id: request_id(),
        kind: kind.into(),
        customer_id: customer_id.unwrap_or_default().into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        provider_id: provider.map(|id| id.to_string()).unwrap_or_default(),
        ..CreateInvitationRequest::default()
    }
}

/// Invites a customer, or anybody.
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

/// What a customer answers an invitation with, having been shown version 2.
#[must_use]
pub fn acceptance(invitation: &Invitation, company: Option<&str>) -> AcceptInvitationRequest {
    let token = invitation.acceptance_url.rsplit_once("token=").map(|(_, token)| token);
    AcceptInvitationRequest {
        request_id: request_id(),
        invitation_id: invitation.invitation_id.clone(),
        token: token.unwrap_or_default().into(),
        template_version: 2,
        company: company.map(|name| CompanyProfile {
            company_name: name.into(),
            domain: format!("{}.example", name.to_lowercase().replace(' ', "-")),
            country: "FR".into(),
            primary_contact: Some(contact()),
        }),
    }
}

/// An order of one line.
#[must_use]
pub fn new_order(
    customer_id: &str,
    payer: Option<Uuid>,
    offer_id: &str,
    quantity: u32,
) -> CreateOrderRequest {
    CreateOrderRequest {
        request_id: request_id(),
        customer_id: customer_id.into(),
        payer_id: payer.map(|id| id.to_string()).unwrap_or_default(),
        reseller_id: String::new(),
        lines: vec![NewOrderLine { offer_id: offer_id.into(), quantity, friendly_name: String::new() }],
        validate_only: false,
        attestation: None,
    }
}

/// That the usual contact accepted the Customer Agreement, as an order carries it.
#[must_use]
pub fn inline_attestation(agreed_at: Time) -> InlineAttestation {
    InlineAttestation {
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(contact()),
        agreed_at: Some(timestamp(agreed_at)),
    }
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
    Ok(partner.orders().create_order(new_order(customer_id, payer, OFFICE, quantity)).await?.into_inner())
}
