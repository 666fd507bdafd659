//! Who may make which call: one table (ROLE-1, ROLE-3, ROLE-4, ROLE-5). It is keyed by the call's
//! path and enforced before the call is handled, so that no handler can forget it. Which customers
//! and partners a caller may see is decided by the calls themselves (ROLE-6).

use chassis::auth::{AccessPolicy, CallerClass};

const EVERYONE: &[CallerClass] = &[CallerClass::Anyone];
const OPERATOR: &[CallerClass] = &[CallerClass::Operator];
const PARTNER_WRITE: &[CallerClass] = &[CallerClass::PartnerWrite];
const PARTNER_OR_OPERATOR: &[CallerClass] = &[CallerClass::PartnerRead, CallerClass::Operator];
const CUSTOMER: &[CallerClass] = &[CallerClass::CustomerAdmin];
const READERS: &[CallerClass] = &[CallerClass::PartnerRead, CallerClass::Operator, CallerClass::CustomerAdmin];

/// The table.
pub const ACCESS_POLICY: AccessPolicy = &[
    ("/csp.agreement.v1.TemplateService/ListTemplates", EVERYONE),
    ("/csp.agreement.v1.TemplateService/GetTemplate", EVERYONE),
    ("/csp.agreement.v1.TemplateService/GetTemplateDocument", EVERYONE),
    ("/csp.agreement.v1.TemplateService/PublishTemplateVersion", OPERATOR),
    ("/csp.agreement.v1.TemplateService/RetireTemplate", OPERATOR),
    ("/csp.agreement.v1.PartnerService/RegisterPartner", OPERATOR),
    ("/csp.agreement.v1.PartnerService/LinkReseller", OPERATOR),
    ("/csp.agreement.v1.PartnerService/UnlinkReseller", OPERATOR),
    ("/csp.agreement.v1.PartnerService/ListPartners", OPERATOR),
    ("/csp.agreement.v1.PartnerService/GetPartner", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.CustomerService/CreateCustomer", PARTNER_WRITE),
    ("/csp.agreement.v1.CustomerService/UpdateCustomer", PARTNER_WRITE),
    ("/csp.agreement.v1.CustomerService/GetCustomer", READERS),
    ("/csp.agreement.v1.CustomerService/ListCustomers", READERS),
    ("/csp.agreement.v1.CustomerService/EndRelationship", PARTNER_WRITE),
    ("/csp.agreement.v1.CustomerService/ListCustomerPartners", CUSTOMER),
    ("/csp.agreement.v1.AttestationService/CreateAttestation", PARTNER_WRITE),
    ("/csp.agreement.v1.AttestationService/GetAttestation", READERS),
    ("/csp.agreement.v1.AttestationService/ListAttestations", READERS),
    ("/csp.agreement.v1.AttestationService/WithdrawAttestation", PARTNER_WRITE),
    ("/csp.agreement.v1.AttestationService/ImportAttestations", PARTNER_WRITE),
    ("/csp.agreement.v1.AttestationService/RetryNotification", PARTNER_WRITE),
    ("/csp.agreement.v1.DirectSignService/CreateInvitation", PARTNER_WRITE),
    ("/csp.agreement.v1.DirectSignService/RevokeInvitation", PARTNER_WRITE),
    ("/csp.agreement.v1.DirectSignService/GetInvitation", READERS),
    ("/csp.agreement.v1.DirectSignService/ListInvitations", PARTNER_OR_OPERATOR),
    ("/csp.agreement.v1.DirectSignService/AcceptInvitation", CUSTOMER),
    ("/csp.agreement.v1.DirectSignService/SignAgreement", CUSTOMER),
    ("/csp.agreement.v1.DirectSignService/WithdrawSignature", CUSTOMER),
    ("/csp.agreement.v1.DirectSignService/GetDirectSignStatus", READERS),
    ("/csp.agreement.v1.EligibilityService/CheckEligibility", &[CallerClass::Service, CallerClass::PartnerRead]),
    ("/csp.agreement.v1.EligibilityService/BatchCheckEligibility", &[CallerClass::Service, CallerClass::PartnerRead]),
    ("/csp.agreement.v1.EligibilityService/ListBlockedCustomers", &[CallerClass::PartnerRead]),
    ("/csp.agreement.v1.EligibilityService/ReportPurchase", &[CallerClass::Service]),
    ("/csp.agreement.v1.EventService/ListEvents", READERS),
    ("/csp.agreement.v1.EventService/WatchEvents", &[CallerClass::Service, CallerClass::Operator]),
];
