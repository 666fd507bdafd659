//! Between the wire and the rules. Reading reports every bad field; writing cannot fail.

use chassis::auth;
use chassis::form::{Form, timestamp};
use proto::{agreement as wire, types};
use uuid::Uuid;

use crate::rules::attestation::Attestation;
use crate::rules::eligibility::{Acceptance, AcceptanceKind, Decision, Operation, Reason, Remedy, Rule};
use crate::rules::invitation::{InvitationKind, InvitationState};
use crate::rules::notification::{Notification, NotificationState};
use crate::rules::party::{Cloud, Contact, Customer, Partner, PartnerKind, is_country, is_email};
use crate::rules::policy::Channel;
use crate::rules::signature::Signature;
use crate::rules::template::{
    AgreementType, DOCUMENTS_MAX, Document, Template, document_problems, is_language,
};
use crate::rules::withdrawal::{Withdrawal, WithdrawalReason};
use crate::rules::{Time, template};

/// Writes an enum of the rules as the one of the wire with the same variant names.
macro_rules! writes {
    ($name:ident, $rules:ident => $wire:path, [$($variant:ident),+ $(,)?]) => {
        pub(super) fn $name(value: $rules) -> i32 {
            use $wire as Wire;
            let value = match value { $($rules::$variant => Wire::$variant),+ };
            value.into()
        }
    };
}

/// Reads an enum of the wire as the one of the rules with the same variant names.
macro_rules! reads {
    ($name:ident, $wire:path => $rules:ident, [$($variant:ident),+ $(,)?]) => {
        pub(super) fn $name(form: &mut Form, field: &str, value: i32) -> Option<$rules> {
            use $wire as Wire;
            let known = match Wire::try_from(value) {
                $(Ok(Wire::$variant) => Some($rules::$variant),)+
                Ok(Wire::Unspecified) | Err(_) => None,
            };
            if known.is_none() {
                let names = [$(Wire::$variant.as_str_name()),+].join(", ");
                form.wrong(field, format!("must be one of {names}"));
            }
            known
        }
    };
}

writes!(partner_kind, PartnerKind => wire::PartnerKind, [DirectBill, IndirectProvider, IndirectReseller]);
reads!(read_partner_kind, wire::PartnerKind => PartnerKind, [DirectBill, IndirectProvider, IndirectReseller]);
writes!(cloud, Cloud => types::Cloud, [Public, UsGovernment, Germany, China21vianet]);
reads!(read_cloud, types::Cloud => Cloud, [Public, UsGovernment, Germany, China21vianet]);
writes!(agreement_type, AgreementType => types::AgreementType, [
    MicrosoftCloudAgreement, MicrosoftCustomerAgreement,
]);
reads!(read_agreement_type, types::AgreementType => AgreementType, [
    MicrosoftCloudAgreement, MicrosoftCustomerAgreement,
]);
reads!(read_operation, types::Operation => Operation, [NewPurchase, SeatChange, ManualRenewal, AutoRenewal]);
reads!(read_channel, types::Channel => Channel, [Dashboard, Api]);
writes!(withdrawal_reason, WithdrawalReason => wire::WithdrawalReason, [
    NoLongerAccepts, RecordedInError, NotEntitled, Other,
]);
reads!(read_withdrawal_reason, wire::WithdrawalReason => WithdrawalReason, [
    NoLongerAccepts, RecordedInError, NotEntitled, Other,
]);
writes!(notification_state, NotificationState => wire::NotificationState, [Queued, Sent, DeadLetter]);
writes!(invitation_kind, InvitationKind => wire::InvitationKind, [Agreement, RelationshipAndAgreement]);
reads!(read_invitation_kind, wire::InvitationKind => InvitationKind, [Agreement, RelationshipAndAgreement]);
writes!(invitation_state, InvitationState => wire::InvitationState, [Pending, Accepted, Revoked, Expired]);
reads!(read_invitation_state, wire::InvitationState => InvitationState, [Pending, Accepted, Revoked, Expired]);
writes!(decision, Decision => types::Decision, [Allowed, Exempt, Blocked]);
writes!(rule, Rule => types::GateRule, [
    AutoRenewal, OutsidePublicCloud, NotYetMandatory, DirectSignature, Attestation, NoSatisfyingAcceptance,
]);
writes!(reason, Reason => types::BlockReason, [
    NoAcceptance, Withdrawn, VersionSuperseded, WrongAgreementType,
]);

/// A caller's channel as the rules know it.
pub(super) fn channel_of(caller: &auth::Caller) -> Channel {
    match caller.channel {
        auth::Channel::Dashboard => Channel::Dashboard,
        auth::Channel::Api => Channel::Api,
    }
}

/// The types that a list names, with every entry that is none.
pub(super) fn read_agreement_types(form: &mut Form, field: &str, types: &[i32]) -> Vec<AgreementType> {
    const TYPES_MAX: usize = 10;
    if types.is_empty() || types.len() > TYPES_MAX {
        form.wrong(field, format!("must name 1 to {TYPES_MAX} types"));
        return vec![];
    }
    let entries = types.iter().enumerate();
    entries.filter_map(|(n, of)| read_agreement_type(form, &format!("{field}[{n}]"), *of)).collect()
}

pub(super) fn read_contact(form: &mut Form, field: &str, contact: Option<&types::Contact>) -> Contact {
    let absent = types::Contact::default();
    let contact = contact.unwrap_or(&absent);
    let email_field = format!("{field}.email");
    let email = form.text(&email_field, &contact.email, 1, 254);
    if (1..=254).contains(&email.chars().count()) && !is_email(&email) {
        form.wrong(email_field, "must have the form of an e-mail address");
    }
    Contact {
        first_name: form.text(&format!("{field}.first_name"), &contact.first_name, 1, 100),
        last_name: form.text(&format!("{field}.last_name"), &contact.last_name, 1, 100),
        email,
        phone: form.text(&format!("{field}.phone"), &contact.phone, 0, 50),
    }
}

pub(super) fn read_country(form: &mut Form, field: &str, country: &str) -> String {
    if !is_country(country) {
        let problem = if country.is_empty() {
            "is required"
        } else {
            "must be an ISO 3166-1 alpha-2 code in upper case"
        };
        form.wrong(field, problem);
    }
    country.to_owned()
}

pub(super) fn read_language(form: &mut Form, field: &str, language: &str) -> String {
    if !is_language(language) {
        form.wrong(field, "must be a language tag such as fr-FR");
    }
    language.to_owned()
}

pub(super) fn read_documents(form: &mut Form, documents: &[wire::TemplateDocument]) -> Vec<Document> {
    if documents.len() > DOCUMENTS_MAX {
        form.wrong("documents", format!("must have 1 to {DOCUMENTS_MAX} entries"));
        return vec![];
    }
    let read = |document: &wire::TemplateDocument| Document {
        country: document.country.clone(),
        language: document.language.clone(),
        link: document.link.trim().to_owned(),
        sha256: document.sha256.clone(),
    };
    let documents: Vec<Document> = documents.iter().map(read).collect();
    for bad in document_problems(&documents) {
        form.wrong(bad.field, bad.problem);
    }
    documents
}

pub(super) fn contact(contact: Contact) -> types::Contact {
    let Contact { first_name, last_name, email, phone } = contact;
    types::Contact { first_name, last_name, email, phone }
}

/// A partner with those of the links, as (provider, reseller), that are its own.
pub(super) fn partner(partner: Partner, links: &[(Uuid, Uuid)]) -> wire::Partner {
    let providers = links.iter().filter(|(_, reseller)| *reseller == partner.id);
    let resellers = links.iter().filter(|(provider, _)| *provider == partner.id);
    wire::Partner {
        partner_id: partner.id.to_string(),
        name: partner.name,
        kind: partner_kind(partner.kind),
        cloud: cloud(partner.cloud),
        provider_ids: providers.map(|(provider, _)| provider.to_string()).collect(),
        reseller_ids: resellers.map(|(_, reseller)| reseller.to_string()).collect(),
        registered_at: Some(timestamp(partner.registered_at)),
    }
}

/// A customer as a caller may see it: what it did with other partners is not for partners.
pub(super) fn customer(customer: Customer, viewer: &auth::Caller) -> wire::Customer {
    let is_partner = viewer.tenant_kind == auth::TenantKind::Partner;
    wire::Customer {
        customer_id: customer.id.to_string(),
        company_name: customer.company_name,
        domain: customer.domain,
        country: customer.country,
        cloud: cloud(customer.cloud),
        primary_contact: Some(contact(customer.primary_contact)),
        created_at: Some(timestamp(customer.created_at)),
        acceptance_revision: customer.acceptance_revision,
        first_purchase_at: customer.first_purchase_at.filter(|_| !is_partner).map(timestamp),
        etag: customer.revision.to_string(),
    }
}

pub(super) fn template(template: &Template, now: Time) -> wire::Template {
    let in_force = template.in_force_at(now).filter(|_| !template.is_retired(now));
    wire::Template {
        template_id: template.id.to_string(),
        name: template.name.clone(),
        agreement_type: agreement_type(template.agreement_type),
        versions: template.versions.iter().rev().map(version).collect(),
        version_in_force: in_force.map_or(0, |version| version.number),
        retired_at: template.retired_at.map(timestamp),
        etag: template.revision.to_string(),
    }
}

fn version(version: &template::Version) -> wire::TemplateVersion {
    wire::TemplateVersion {
        number: version.number,
        effective_from: Some(timestamp(version.effective_from)),
        reaccept_by: version.reaccept_by.map(timestamp),
        published_at: Some(timestamp(version.published_at)),
        document_count: version.document_count,
    }
}

/// An attestation with its announcement, as far as that was looked up.
pub(super) fn attestation(attestation: Attestation, announced: Option<&Notification>) -> wire::Attestation {
    let state = match (attestation.withdrawn, attestation.superseded_at) {
        (Some(_), _) => wire::AttestationState::Withdrawn,
        (None, Some(_)) => wire::AttestationState::Superseded,
        (None, None) => wire::AttestationState::Current,
    };
    wire::Attestation {
        attestation_id: attestation.id.to_string(),
        partner_id: attestation.partner_id.to_string(),
        customer_id: attestation.customer_id.to_string(),
        agreement_type: agreement_type(attestation.agreement_type),
        template_id: attestation.template_id.to_string(),
        template_version: attestation.template_version,
        contact: Some(contact(attestation.contact)),
        agreed_at: Some(timestamp(attestation.agreed_at)),
        recorded_at: Some(timestamp(attestation.recorded_at)),
        recorded_by: attestation.recorded_by.to_string(),
        state: state.into(),
        superseded_at: attestation.superseded_at.map(timestamp),
        withdrawn_at: attestation.withdrawn.map(|withdrawal| timestamp(withdrawal.at)),
        revision: attestation.revision,
        notification: announced.map(notification),
        withdrawal_reason: withdrawn_because(attestation.withdrawn),
    }
}

pub(super) fn notification(notification: &Notification) -> wire::Notification {
    let is_queued = notification.state == NotificationState::Queued;
    wire::Notification {
        state: notification_state(notification.state),
        attempts: notification.attempts,
        due_at: is_queued.then(|| timestamp(notification.due_at)),
        sent_at: notification.sent_at.map(timestamp),
        last_failure: notification.last_failure.clone(),
    }
}

fn withdrawn_because(withdrawn: Option<Withdrawal>) -> i32 {
    withdrawn.map_or(0, |withdrawal| withdrawal_reason(withdrawal.reason))
}

pub(super) fn signature(signature: &Signature) -> wire::Signature {
    wire::Signature {
        signature_id: signature.id.to_string(),
        customer_id: signature.customer_id.to_string(),
        agreement_type: agreement_type(signature.agreement_type),
        template_id: signature.template_id.to_string(),
        template_version: signature.template_version,
        signed_at: Some(timestamp(signature.signed_at)),
        signed_by: signature.signed_by.to_string(),
        superseded_at: signature.superseded_at.map(timestamp),
        withdrawn_at: signature.withdrawn.map(|withdrawal| timestamp(withdrawal.at)),
        withdrawal_reason: withdrawn_because(signature.withdrawn),
        revision: signature.revision,
    }
}

pub(super) fn remedy(remedy: Remedy) -> types::Remedy {
    let (kind, template_id, provider_id) = match remedy {
        Remedy::Attest { template_id } => (types::RemedyKind::Attest, template_id.to_string(), String::new()),
        Remedy::AskProvider { provider_id } => {
            (types::RemedyKind::AskProvider, String::new(), provider_id.to_string())
        }
        Remedy::InviteCustomer { template_id } => {
            (types::RemedyKind::InviteCustomer, template_id.to_string(), String::new())
        }
    };
    types::Remedy { kind: kind.into(), template_id, provider_id }
}

pub(super) fn evidence(acceptance: &Acceptance) -> types::Evidence {
    let kind = match acceptance.kind {
        AcceptanceKind::Attestation => types::AcceptanceKind::Attestation,
        AcceptanceKind::Signature => types::AcceptanceKind::DirectSignature,
    };
    types::Evidence {
        kind: kind.into(),
        acceptance_id: acceptance.id.to_string(),
        template_id: acceptance.template_id.to_string(),
        template_version: acceptance.template_version,
        agreement_type: agreement_type(acceptance.agreement_type),
    }
}
