//! Test fixtures: the tenants of the small world that tests, demo and benchmarks share (an operator, a direct-bill
//! partner, a provider with its reseller, customers), and requests about them with the usual content.
//!
//! A request that differs in one field is written with struct update syntax over the one from here.

use chassis::auth::{Caller, Channel};
use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use proto::agreement::{
    AcceptInvitationRequest, CheckEligibilityRequest, CompanyProfile, CreateAttestationRequest,
    CreateCustomerRequest, CreateInvitationRequest, Invitation, InvitationKind, ProposeAttestationRequest,
    PublishTemplateVersionRequest, TemplateDocument, WithdrawAttestationRequest, WithdrawalReason,
};
use proto::identity::{Role, TenantKind};
use proto::order::{CreateOrderRequest, InlineAttestation, NewOrderLine};
use proto::types::{Contact, Operation};
use uuid::{Uuid, uuid};

use crate::clients::caller;

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

/// Another service, such as order-svc.
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

/// This moment by the system's clock.
#[must_use]
pub fn now() -> Time {
    Clock::system().now()
}

/// The time that an RFC 3339 text names.
///
/// # Panics
/// When the text names none.
#[must_use]
pub fn time(text: &str) -> Time {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A contact with another first name than the usual one.
#[must_use]
pub fn person(first_name: &str) -> Contact {
    Contact { first_name: first_name.into(), ..contact() }
}

/// A contact that shares no name with another one, so that a test of erasure can search for it everywhere.
#[must_use]
pub fn contact_to_erase() -> Contact {
    Contact {
        first_name: "Zebulon".into(),
        last_name: "Brambleton".into(),
        email: "zeb.quxley@contoso.example".into(),
        phone: "+00 5550 1777".into(),
    }
}

/// A new request id.
#[must_use]
pub fn request_id() -> String {
    chassis::clock::new_id(now()).to_string()
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
        customer_id: String::new(),
        validate_only: false,
        language: String::new(),
        external_reference: String::new(),
    }
}

/// An invitation to the Customer Agreement, for a customer, or for a company that is not a customer yet.
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

/// The acceptance of an invitation by a customer that read version 2.
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
            language: String::new(),
        }),
        validate_only: false,
        shown_text: None,
    }
}

/// The usual contact accepted the Customer Agreement at this moment.
#[must_use]
pub fn new_attestation(customer_id: &str) -> CreateAttestationRequest {
    CreateAttestationRequest {
        request_id: request_id(),
        customer_id: customer_id.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(contact()),
        agreed_at: Some(timestamp(now())),
        validate_only: false,
        details: None,
    }
}

/// A contact accepted the Customer Agreement at this moment.
#[must_use]
pub fn new_attestation_by(customer_id: &str, contact: Contact) -> CreateAttestationRequest {
    CreateAttestationRequest { contact: Some(contact), ..new_attestation(customer_id) }
}

/// What a reseller proposes to a provider: the usual contact accepted the Customer Agreement at this moment.
#[must_use]
pub fn new_proposal(provider: Uuid, customer_id: &str) -> ProposeAttestationRequest {
    ProposeAttestationRequest {
        request_id: request_id(),
        provider_id: provider.to_string(),
        customer_id: customer_id.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(contact()),
        agreed_at: Some(timestamp(now())),
        ..ProposeAttestationRequest::default()
    }
}

/// A withdrawal of an attestation by a customer that no longer accepts.
#[must_use]
pub fn new_withdrawal(attestation_id: &str) -> WithdrawAttestationRequest {
    WithdrawAttestationRequest {
        request_id: request_id(),
        attestation_id: attestation_id.into(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
        ..WithdrawAttestationRequest::default()
    }
}

/// Asks the gate whether a partner may sell a new purchase to a customer.
#[must_use]
pub fn new_check(payer: Uuid, customer_id: &str) -> CheckEligibilityRequest {
    CheckEligibilityRequest {
        payer_id: payer.to_string(),
        customer_id: customer_id.into(),
        operation: Operation::NewPurchase.into(),
        ..CheckEligibilityRequest::default()
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
        external_reference: String::new(),
    }
}

/// The attestation that an order carries: the usual contact accepted the Customer Agreement.
#[must_use]
pub fn inline_attestation(agreed_at: Time) -> InlineAttestation {
    InlineAttestation {
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(contact()),
        agreed_at: Some(timestamp(agreed_at)),
        details: None,
    }
}
