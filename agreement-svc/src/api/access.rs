//! The access policy: who may make which call (ROLE-1, ROLE-3, ROLE-4, ROLE-5).
//!
//! The server enforces it before a call is handled, so that no handler can forget it. The handlers decide which
//! customers and partners a caller may see (ROLE-6).

use chassis::auth::Vocabulary;
use chassis::auth::access::{AccessPolicy, CallerClass};
use proto::identity::{Role, TenantKind};
use strum::VariantNames;

/// The names that identities may carry.
pub const VOCABULARY: Vocabulary = Vocabulary {
    tenant_kinds: TenantKind::VARIANTS,
    roles: Role::VARIANTS,
    internal_kind: TenantKind::Service.into_str(),
    registered_kind: TenantKind::Partner.into_str(),
    unregistered_kind: TenantKind::Customer.into_str(),
};

/// A partner user that may write (ROLE-1).
pub(super) const PARTNER_WRITE: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Partner.into_str()),
    any_of_roles: &[Role::AdminAgent.into_str(), Role::SalesAgent.into_str()],
    description: "a partner user with ADMIN_AGENT or SALES_AGENT",
};
const PARTNER_READ: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Partner.into_str()),
    any_of_roles: Role::VARIANTS,
    description: "a partner user with ADMIN_AGENT, SALES_AGENT, HELPDESK_AGENT or GLOBAL_ADMIN",
};
/// A customer user that answers for its company.
pub(crate) const CUSTOMER_ADMIN: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Customer.into_str()),
    any_of_roles: &[Role::GlobalAdmin.into_str()],
    description: "a customer user with GLOBAL_ADMIN",
};
const OPERATOR: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Operator.into_str()),
    any_of_roles: &[],
    description: "an operator",
};
const SERVICE: CallerClass = CallerClass {
    tenant_kind: Some(TenantKind::Service.into_str()),
    any_of_roles: &[],
    description: "a service",
};

const ANYONE: &[CallerClass] = &[CallerClass::ANYONE];
const OPERATORS: &[CallerClass] = &[OPERATOR];
const PARTNER_WRITERS: &[CallerClass] = &[PARTNER_WRITE];
const PARTNER_OR_OPERATOR: &[CallerClass] = &[PARTNER_READ, OPERATOR];
/// What each of them may change is for the handler.
const CORRECTORS: &[CallerClass] = &[PARTNER_WRITE, CUSTOMER_ADMIN, OPERATOR];
const CUSTOMERS: &[CallerClass] = &[CUSTOMER_ADMIN];
const READERS: &[CallerClass] = &[PARTNER_READ, OPERATOR, CUSTOMER_ADMIN];

/// The callers that may make each call, by path.
pub const ACCESS_POLICY: AccessPolicy = &[
    ("/csp.agreement.v1.TemplateService/ListTemplates", ANYONE),
    ("/csp.agreement.v1.TemplateService/GetTemplate", ANYONE),
    ("/csp.agreement.v1.TemplateService/GetTemplateDocument", ANYONE),
    ("/csp.agreement.v1.TemplateService/ListTemplateDocuments", ANYONE),
    ("/csp.agreement.v1.TemplateService/PublishTemplateVersion", OPERATORS),
    ("/csp.agreement.v1.TemplateService/RetireTemplate", OPERATORS),
    ("/csp.agreement.v1.PartnerService/RegisterPartner", OPERATORS),
    ("/csp.agreement.v1.PartnerService/UpdatePartner", OPERATORS),
    ("/csp.agreement.v1.PartnerService/LinkReseller", OPERATORS),
    ("/csp.agreement.v1.PartnerService/UnlinkReseller", OPERATORS),
    ("/csp.agreement.v1.PartnerService/ListPartners", OPERATORS),
    ("/csp.agreement.v1.PartnerService/GetPartner", &[SERVICE, PARTNER_READ, OPERATOR]),
    ("/csp.agreement.v1.CustomerService/CreateCustomer", PARTNER_WRITERS),
    ("/csp.agreement.v1.CustomerService/ImportCustomers", PARTNER_WRITERS),
    ("/csp.agreement.v1.CustomerService/UpdateCustomer", CORRECTORS),
    ("/csp.agreement.v1.CustomerService/GetCustomer", READERS),
    ("/csp.agreement.v1.CustomerService/ListCustomers", READERS),
    ("/csp.agreement.v1.CustomerService/EndRelationship", PARTNER_WRITERS),
    ("/csp.agreement.v1.CustomerService/GetRelationship", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.CustomerService/ListRelationships", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.CustomerService/ListCustomerPartners", CUSTOMERS),
    ("/csp.agreement.v1.AttestationService/CreateAttestation", PARTNER_WRITERS),
    ("/csp.agreement.v1.AttestationService/GetAttestation", READERS),
    ("/csp.agreement.v1.AttestationService/ListAttestations", READERS),
    ("/csp.agreement.v1.AttestationService/WithdrawAttestation", PARTNER_WRITERS),
    ("/csp.agreement.v1.AttestationService/ImportAttestations", PARTNER_WRITERS),
    ("/csp.agreement.v1.AttestationService/RetryNotification", &[PARTNER_WRITE, OPERATOR]),
    ("/csp.agreement.v1.AttestationService/ListNotifications", OPERATORS),
    ("/csp.agreement.v1.ProposalService/ProposeAttestation", PARTNER_WRITERS),
    ("/csp.agreement.v1.ProposalService/GetProposal", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.ProposalService/ListProposals", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.ProposalService/ApproveProposal", PARTNER_WRITERS),
    ("/csp.agreement.v1.ProposalService/RejectProposal", PARTNER_WRITERS),
    ("/csp.agreement.v1.ProposalService/WithdrawProposal", PARTNER_WRITERS),
    ("/csp.agreement.v1.DirectSignService/CreateInvitation", PARTNER_WRITERS),
    ("/csp.agreement.v1.DirectSignService/RevokeInvitation", PARTNER_WRITERS),
    ("/csp.agreement.v1.DirectSignService/GetInvitation", READERS),
    ("/csp.agreement.v1.DirectSignService/ListInvitations", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.DirectSignService/AcceptInvitation", CUSTOMERS),
    ("/csp.agreement.v1.DirectSignService/DeclineInvitation", CUSTOMERS),
    ("/csp.agreement.v1.DirectSignService/SignAgreement", CUSTOMERS),
    ("/csp.agreement.v1.DirectSignService/WithdrawSignature", CUSTOMERS),
    ("/csp.agreement.v1.DirectSignService/GetSignature", READERS),
    ("/csp.agreement.v1.DirectSignService/ListSignatures", READERS),
    ("/csp.agreement.v1.DirectSignService/GetDirectSignStatus", READERS),
    ("/csp.agreement.v1.EligibilityService/CheckEligibility", &[SERVICE, PARTNER_READ, OPERATOR]),
    ("/csp.agreement.v1.EligibilityService/BatchCheckEligibility", &[SERVICE, PARTNER_READ, OPERATOR]),
    ("/csp.agreement.v1.EligibilityService/ListBlockedCustomers", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.EligibilityService/GetPolicy", ANYONE),
    ("/csp.agreement.v1.EligibilityService/ReportPurchase", &[SERVICE]),
    ("/csp.agreement.v1.EligibilityService/CheckWithdrawal", &[SERVICE]),
    ("/csp.agreement.v1.EventService/ListEvents", READERS),
    ("/csp.agreement.v1.EventService/WatchEvents", &[SERVICE, OPERATOR]),
];
