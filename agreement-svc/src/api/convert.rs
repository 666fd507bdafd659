//! Conversions between messages and the types of the rules. Reading reports every bad field; writing cannot fail.

mod attestation;
mod contact;
mod customer;

use std::collections::BTreeMap;

use chassis::auth;
use chassis::database::row::id_or_empty;
use chassis::form::text::unseen;
use chassis::form::{Form, timestamp};
use proto::identity::TenantKind;
use proto::{agreement as wire, types};
use uuid::Uuid;

pub(super) use self::contact::{contact, read_contact, read_support, support};
pub(super) use self::customer::{read_named, read_reference};
use crate::rules::attestation::AcceptanceState;
use crate::rules::eligibility::{Decision, Operation, Reason, Rule, reacceptance};
use crate::rules::event::Event;
use crate::rules::invitation::{DeclineReason, Invitation, InvitationKind, InvitationState, Settled};
use crate::rules::notification::NotificationState;
use crate::rules::party::{
    Cloud, Contacts, Customer, Partner, PartnerKind, Partnership, Profile, Relationship, domain_problem,
    is_country,
};
use crate::rules::policy::{Channel, Period, Requirement};
use crate::rules::proposal::{ProposalState, RejectionReason};
use crate::rules::signature::Signature;
use crate::rules::template::{
    AgreementType, DOCUMENTS_MAX, Document, Template, document_problems, language_tag,
};
use crate::rules::withdrawal::{Withdrawal, WithdrawalReason};
use crate::rules::{Time, template};
use crate::store::event::Recorded;

use attestation::shown_text;
pub(super) use attestation::{
    attestation, attestation_for, notification, proposal, read_details, read_shown_text,
};

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
                form.violation(field, format!("must be one of {names}"));
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
writes!(attestation_state, AcceptanceState => wire::AttestationState, [Current, Superseded, Withdrawn]);
reads!(read_attestation_state, wire::AttestationState => AcceptanceState, [Current, Superseded, Withdrawn]);
reads!(read_notification_state, wire::NotificationState => NotificationState, [Queued, Sent, DeadLetter]);
writes!(notification_state, NotificationState => wire::NotificationState, [Queued, Sent, DeadLetter]);
writes!(invitation_kind, InvitationKind => wire::InvitationKind, [Agreement, RelationshipAndAgreement]);
reads!(read_invitation_kind, wire::InvitationKind => InvitationKind, [Agreement, RelationshipAndAgreement]);
writes!(invitation_state, InvitationState => wire::InvitationState, [
    Pending, Accepted, Revoked, Expired, Declined,
]);
reads!(read_invitation_state, wire::InvitationState => InvitationState, [
    Pending, Accepted, Revoked, Expired, Declined,
]);
writes!(decline_reason, DeclineReason => wire::DeclineReason, [UnknownPartner, Terms, WrongCompany, Other]);
reads!(read_decline_reason, wire::DeclineReason => DeclineReason, [UnknownPartner, Terms, WrongCompany, Other]);
writes!(proposal_state, ProposalState => wire::ProposalState, [
    Pending, Approved, Rejected, Expired, Withdrawn,
]);
reads!(read_proposal_state, wire::ProposalState => ProposalState, [
    Pending, Approved, Rejected, Expired, Withdrawn,
]);
writes!(rejection_reason, RejectionReason => wire::RejectionReason, [
    Evidence, Person, DateOrTemplate, NotNeeded, Other,
]);
reads!(read_rejection_reason, wire::RejectionReason => RejectionReason, [
    Evidence, Person, DateOrTemplate, NotNeeded, Other,
]);
writes!(requirement, Requirement => wire::PolicyRequirement, [None, Optional, Mandatory]);
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
        form.violation(field, format!("must name 1 to {TYPES_MAX} types"));
        return vec![];
    }
    let entries = types.iter().enumerate();
    entries.filter_map(|(n, of)| read_agreement_type(form, &format!("{field}[{n}]"), *of)).collect()
}

/// A customer's particulars; the paths of bad fields begin with `prefix`.
pub(super) fn read_profile(
    form: &mut Form,
    prefix: &str,
    (company_name, domain, country, language): (&str, &str, &str, &str),
    contact: Option<&types::Contact>,
) -> Profile {
    let company_name = form.text(&format!("{prefix}company_name"), company_name, 1, 200);
    let domain = read_domain(form, &format!("{prefix}domain"), domain);
    let country = read_country(form, &format!("{prefix}country"), country);
    let primary_contact = read_contact(form, &format!("{prefix}primary_contact"), contact);
    let language = read_text_language(form, &format!("{prefix}language"), language).unwrap_or_default();
    Profile { company_name, domain, country, language, primary_contact }
}

/// A customer's domain, in lower case.
pub(super) fn read_domain(form: &mut Form, field: &str, domain: &str) -> String {
    let problem = domain_problem(domain.trim());
    let domain = form.text(field, domain, 1, 253).to_ascii_lowercase();
    if let Some(problem) = problem.filter(|_| !form.has_violation(field)) {
        form.violation(field, problem);
    }
    domain
}

pub(super) fn read_country(form: &mut Form, field: &str, country: &str) -> String {
    if !is_country(country) {
        let problem = if country.is_empty() {
            "is required"
        } else {
            "must be an ISO 3166-1 alpha-2 code in upper case"
        };
        form.violation(field, problem);
    }
    country.to_owned()
}

/// The language of texts, if one is given, as it is usually written.
pub(super) fn read_text_language(form: &mut Form, field: &str, language: &str) -> Option<String> {
    let given = Some(language).filter(|language| !language.is_empty())?;
    let tag = language_tag(given);
    if tag.is_none() {
        form.violation(field, "must be a language tag such as fr-FR");
    }
    tag
}

pub(super) fn read_language(form: &mut Form, field: &str, language: &str) -> String {
    if language_tag(language).is_none() {
        form.violation(field, "must be a language tag such as fr-FR");
    }
    language.to_owned()
}

pub(super) fn read_documents(form: &mut Form, documents: &[wire::TemplateDocument]) -> Vec<Document> {
    if documents.len() > DOCUMENTS_MAX {
        form.violation("documents", format!("must have 1 to {DOCUMENTS_MAX} entries"));
        return vec![];
    }
    let read = |document: &wire::TemplateDocument| Document {
        country: document.country.clone(),
        language: language_tag(&document.language).unwrap_or_else(|| document.language.clone()),
        link: document.link.trim().to_owned(),
        sha256: document.sha256.clone(),
    };
    let documents: Vec<Document> = documents.iter().map(read).collect();
    for (_, bad) in document_problems(&documents) {
        form.violation(bad.field, bad.problem);
    }
    for (n, document) in documents.iter().enumerate() {
        let field = format!("documents[{n}].link");
        if let Some(problem) = unseen(&document.link).filter(|_| !form.has_violation(&field)) {
            form.violation(field, problem);
        }
    }
    documents
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
        etag: partner.revision.to_string(),
        support: support(partner.support),
    }
}

/// A customer as a caller may see it, with a partner's external reference for it: what it did with other partners, and their contacts, are
/// not for partners.
pub(super) fn customer(
    customer: Customer,
    contacts: &Contacts,
    external_reference: String,
    viewer: &auth::Caller,
) -> wire::Customer {
    let is_partner = viewer.tenant_kind == TenantKind::Partner;
    let own = contacts.own.as_ref().filter(|own| !own.is_empty());
    let primary_contact = if is_partner { contacts.of(viewer.tenant_id) } else { own };
    let of_partners = if is_partner { BTreeMap::new() } else { contacts.of_active_partners() };
    let of_partners = of_partners.into_iter().map(|(partner_id, of)| wire::PartnerContact {
        partner_id: partner_id.to_string(),
        contact: Some(contact(of.clone())),
    });
    let language = customer.language().to_owned();
    wire::Customer {
        language,
        customer_id: customer.id.to_string(),
        company_name: customer.company_name,
        domain: customer.domain,
        country: customer.country,
        cloud: cloud(customer.cloud),
        primary_contact: primary_contact.cloned().map(contact),
        created_at: Some(timestamp(customer.created_at)),
        acceptance_revision: customer.acceptance_revision,
        first_purchase_at: customer.first_purchase_at.filter(|_| !is_partner).map(timestamp),
        etag: customer.revision.to_string(),
        partner_contacts: of_partners.collect(),
        external_reference,
    }
}

pub(super) fn uncovered_partners(relationships: &[Relationship]) -> Vec<wire::UncoveredPartner> {
    let uncovered = |relationship: &Relationship| wire::UncoveredPartner {
        partner_id: relationship.payer_id.to_string(),
        reseller_id: id_or_empty(relationship.reseller_id),
    };
    relationships.iter().map(uncovered).collect()
}

pub(super) fn partnership(partnership: Partnership) -> wire::Relationship {
    wire::Relationship {
        customer_id: partnership.customer_id.to_string(),
        partner_id: partnership.relationship.payer_id.to_string(),
        partner_name: partnership.payer_name,
        partner_kind: partner_kind(partnership.payer_kind),
        reseller_id: id_or_empty(partnership.relationship.reseller_id),
        reseller_name: partnership.reseller_name.unwrap_or_default(),
        established_at: Some(timestamp(partnership.established_at)),
        ended_at: partnership.ended_at.map(timestamp),
        partner_support: support(partnership.payer_support),
        reseller_support: support(partnership.reseller_support),
    }
}

/// An invitation in its state at a time, without its link.
pub(super) fn invitation(invitation: Invitation, now: Time) -> wire::Invitation {
    let (accepted_at, revoked_at, declined) = match invitation.settled {
        None => (None, None, None),
        Some(Settled::Accepted { at }) => (Some(timestamp(at)), None, None),
        Some(Settled::Revoked { at }) => (None, Some(timestamp(at)), None),
        Some(Settled::Declined { at, reason }) => (None, None, Some((timestamp(at), decline_reason(reason)))),
    };
    wire::Invitation {
        invitation_id: invitation.id.to_string(),
        kind: invitation_kind(invitation.kind),
        state: invitation_state(invitation.state(now)),
        partner_id: invitation.relationship.payer_id.to_string(),
        reseller_id: id_or_empty(invitation.relationship.reseller_id),
        customer_id: id_or_empty(invitation.customer_id),
        template_id: invitation.template_id.to_string(),
        recipient: invitation.recipient.map(contact),
        created_at: Some(timestamp(invitation.created_at)),
        created_by: invitation.created_by.to_string(),
        expires_at: Some(timestamp(invitation.expires_at)),
        accepted_at,
        revoked_at,
        acceptance_url: String::new(),
        mail_subject: String::new(),
        mail_text: String::new(),
        language: invitation.language,
        declined_at: declined.map(|(at, _)| at),
        decline_reason: declined.map(|(_, reason)| reason).unwrap_or_default(),
    }
}

pub(super) fn period(period: &Period) -> wire::PolicyPeriod {
    let types = period.agreement_types.iter().map(|of| agreement_type(*of));
    wire::PolicyPeriod {
        from: Some(timestamp(period.from)),
        dashboard: requirement(period.dashboard),
        api: requirement(period.api),
        agreement_types: types.collect(),
    }
}

/// The versions of a template that end the validity of earlier ones.
pub(super) fn reacceptances(template: &Template) -> impl Iterator<Item = wire::Reacceptance> {
    template.versions.iter().filter_map(|version| reacceptance(template, version)).map(|of| {
        wire::Reacceptance {
            agreement_type: agreement_type(of.agreement_type),
            template_id: of.template_id.to_string(),
            version: of.template_version,
            effective_from: Some(timestamp(of.effective_from)),
            reaccept_by: Some(timestamp(of.reaccept_by)),
        }
    })
}

pub(super) fn document(document: Document) -> wire::TemplateDocument {
    let Document { country, language, link, sha256 } = document;
    wire::TemplateDocument { country, language, link, sha256 }
}

pub(super) fn event(recorded: Recorded) -> wire::Event {
    let Recorded { revision, recorded_at, hash, event } = recorded;
    wire::Event {
        revision,
        recorded_at: Some(timestamp(recorded_at)),
        customer_id: id_or_empty(event.customer_id()),
        partner_id: id_or_empty(event.partner_id()),
        by: id_or_empty(event.by()),
        hash,
        change: Some(change(event)),
    }
}

fn change(event: Event) -> wire::event::Change {
    use wire::event::Change;
    let ids = |ids: Vec<Uuid>| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    match event {
        Event::PartnerRegistered { name, kind, cloud: of, .. } => {
            let (kind, cloud) = (partner_kind(kind), cloud(of));
            Change::PartnerRegistered(wire::PartnerRegistered { name, kind, cloud })
        }
        Event::PartnerUpdated { name, support_changed, .. } => {
            Change::PartnerUpdated(wire::PartnerUpdated { name, support_changed })
        }
        Event::ResellerLinked { reseller_id, .. } => {
            Change::ResellerLinked(wire::ResellerLinked { reseller_id: reseller_id.to_string() })
        }
        Event::ResellerUnlinked { reseller_id, .. } => {
            Change::ResellerUnlinked(wire::ResellerUnlinked { reseller_id: reseller_id.to_string() })
        }
        Event::CustomerCreated { company_name, domain, country, cloud: of, language, .. } => {
            let (cloud, language) = (cloud(of), language.unwrap_or_default());
            Change::CustomerCreated(wire::CustomerCreated { company_name, domain, country, cloud, language })
        }
        Event::CustomerUpdated { company_name, domain, country, language, contact_commitment, .. } => {
            Change::CustomerUpdated(wire::CustomerUpdated {
                company_name,
                domain: domain.unwrap_or_default(),
                country: country.unwrap_or_default(),
                contact_changed: !contact_commitment.is_empty(),
                language,
            })
        }
        Event::RelationshipEstablished { reseller_id, .. } => {
            let reseller_id = id_or_empty(reseller_id);
            Change::RelationshipEstablished(wire::RelationshipEstablished { reseller_id })
        }
        Event::RelationshipEnded { reseller_id, others_remain, .. } => {
            let reseller_id = id_or_empty(reseller_id);
            Change::RelationshipEnded(wire::RelationshipEnded { reseller_id, others_remain })
        }
        Event::TemplateVersionPublished {
            template_id,
            agreement_type: of,
            number,
            effective_from,
            reaccept_by,
            ..
        } => Change::TemplateVersionPublished(wire::TemplateVersionPublished {
            template_id: template_id.to_string(),
            agreement_type: agreement_type(of),
            number,
            effective_from: Some(timestamp(effective_from)),
            reaccept_by: reaccept_by.map(timestamp),
        }),
        Event::TemplateRetired { template_id, retired_at, .. } => {
            let (template_id, retired_at) = (template_id.to_string(), Some(timestamp(retired_at)));
            Change::TemplateRetired(wire::TemplateRetired { template_id, retired_at })
        }
        Event::Attested {
            attestation_id,
            agreement_type: of,
            template_id,
            template_version,
            agreed_at,
            supersedes,
            ..
        } => Change::Attested(wire::Attested {
            attestation_id: attestation_id.to_string(),
            agreement_type: agreement_type(of),
            template_id: template_id.to_string(),
            template_version,
            agreed_at: Some(timestamp(agreed_at)),
            supersedes_id: id_or_empty(supersedes),
        }),
        Event::AttestationWithdrawn { attestation_id, reason, uncovered_partner_ids, .. } => {
            Change::AttestationWithdrawn(wire::AttestationWithdrawn {
                attestation_id: attestation_id.to_string(),
                reason: withdrawal_reason(reason),
                uncovered_partner_ids: ids(uncovered_partner_ids),
            })
        }
        Event::Signed {
            signature_id, agreement_type: of, template_id, template_version, supersedes, ..
        } => Change::Signed(wire::Signed {
            signature_id: signature_id.to_string(),
            agreement_type: agreement_type(of),
            template_id: template_id.to_string(),
            template_version,
            supersedes_id: id_or_empty(supersedes),
        }),
        Event::SignatureWithdrawn { signature_id, reason, uncovered_partner_ids, .. } => {
            Change::SignatureWithdrawn(wire::SignatureWithdrawn {
                signature_id: signature_id.to_string(),
                reason: withdrawal_reason(reason),
                uncovered_partner_ids: ids(uncovered_partner_ids),
            })
        }
        Event::InvitationCreated { invitation_id, kind, reseller_id, template_id, expires_at, .. } => {
            Change::InvitationCreated(wire::InvitationCreated {
                invitation_id: invitation_id.to_string(),
                kind: invitation_kind(kind),
                reseller_id: id_or_empty(reseller_id),
                template_id: template_id.to_string(),
                expires_at: Some(timestamp(expires_at)),
            })
        }
        Event::InvitationRevoked { invitation_id, .. } => {
            Change::InvitationRevoked(wire::InvitationRevoked { invitation_id: invitation_id.to_string() })
        }
        Event::InvitationDeclined { invitation_id, reason, .. } => {
            Change::InvitationDeclined(wire::InvitationDeclined {
                invitation_id: invitation_id.to_string(),
                reason: decline_reason(reason),
            })
        }
        Event::InvitationAccepted { invitation_id, .. } => {
            Change::InvitationAccepted(wire::InvitationAccepted { invitation_id: invitation_id.to_string() })
        }
        Event::AttestationProposed {
            proposal_id, reseller_id, template_id, agreed_at, expires_at, ..
        } => Change::AttestationProposed(wire::AttestationProposed {
            proposal_id: proposal_id.to_string(),
            reseller_id: reseller_id.to_string(),
            template_id: template_id.to_string(),
            agreed_at: Some(timestamp(agreed_at)),
            expires_at: Some(timestamp(expires_at)),
        }),
        Event::ProposalApproved { proposal_id, reseller_id, attestation_id, .. } => {
            Change::ProposalApproved(wire::ProposalApproved {
                proposal_id: proposal_id.to_string(),
                reseller_id: reseller_id.to_string(),
                attestation_id: attestation_id.to_string(),
            })
        }
        Event::ProposalRejected { proposal_id, reseller_id, reason, .. } => {
            Change::ProposalRejected(wire::ProposalRejected {
                proposal_id: proposal_id.to_string(),
                reseller_id: reseller_id.to_string(),
                reason: rejection_reason(reason),
            })
        }
        Event::ProposalWithdrawn { proposal_id, reseller_id, .. } => {
            let (proposal_id, reseller_id) = (proposal_id.to_string(), reseller_id.to_string());
            Change::ProposalWithdrawn(wire::ProposalWithdrawn { proposal_id, reseller_id })
        }
        Event::FirstPurchaseReported { purchased_at, by, .. } => {
            let (purchased_at, imported) = (Some(timestamp(purchased_at)), by.is_some());
            Change::FirstPurchaseReported(wire::FirstPurchaseReported { purchased_at, imported })
        }
        Event::HistoryRestored { last_revision, last_hash } => {
            Change::HistoryRestored(wire::HistoryRestored { last_revision, last_hash })
        }
        Event::ContactErased {
            attestation_ids, invitation_ids, proposal_ids, was_primary_contact, ..
        } => Change::ContactErased(wire::ContactErased {
            attestation_ids: ids(attestation_ids),
            invitation_ids: ids(invitation_ids),
            proposal_ids: ids(proposal_ids),
            was_primary_contact,
        }),
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
        shown_text: signature.shown_text.clone().map(shown_text),
    }
}
