//! Attestations: what a partner may state about a customer's acceptance.

use chrono::Duration;
use uuid::Uuid;

use super::party::{Cloud, Contact, Customer, Partner, PartnerKind, Relationship};
use super::template::{AgreementType, Template};
use super::{Refusal, Time};

/// How far a partner's clock may be ahead of ours (ATT-3); partners complain of less.
pub const CLOCK_TOLERANCE: Duration = Duration::minutes(5);

/// A partner's statement that a person at the customer accepted, on a date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attestation {
    pub id: Uuid,
    pub partner_id: Uuid,
    pub customer_id: Uuid,
    pub agreement_type: AgreementType,
    pub template_id: Uuid,
    pub template_version: u32,
    pub contact: Contact,
    /// Makes the commitment to the contact in the history impossible to guess.
    pub contact_salt: String,
    pub agreed_at: Time,
    pub recorded_at: Time,
    pub recorded_by: Uuid,
    pub superseded_at: Option<Time>,
    pub withdrawn_at: Option<Time>,
    pub revision: i64,
}

/// What the partner states.
#[derive(Clone, Debug)]
pub struct Claim {
    pub contact: Contact,
    pub agreed_at: Time,
}

/// What is known when it does.
#[derive(Debug)]
pub struct Facts<'a> {
    pub customer: &'a Customer,
    pub template: &'a Template,
    /// The live template to name when this one is retired.
    pub live_template_id: Option<Uuid>,
    /// The attester's current attestation of the template's type, and when the version it is of
    /// took effect.
    pub current: Option<(&'a Attestation, Time)>,
}

/// What will be stored: everything about the new record except its number and who stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    pub agreement_type: AgreementType,
    pub template_version: u32,
    /// The record that is no longer current.
    pub supersedes: Option<Uuid>,
}

/// Checks the date agreed against the server's clock (ATT-3), or says what is wrong with it.
pub fn check_agreed_at(agreed_at: Time, now: Time) -> Result<(), String> {
    if agreed_at > now + CLOCK_TOLERANCE {
        let now = now.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
        return Err(format!("must not be in the future; the server's time is {now}"));
    }
    Ok(())
}

/// Whether the partner attests at all (ATT-1), given its active relationship with the customer.
pub fn check_attester(attester: &Partner, relationship: Relationship) -> Result<(), Refusal> {
    match attester.kind {
        PartnerKind::DirectBill | PartnerKind::IndirectProvider => Ok(()),
        PartnerKind::IndirectReseller => {
            Err(Refusal::ResellerCannotAttest { provider_id: relationship.payer_id })
        }
    }
}

/// Decides what a claim becomes (ATT-4 to ATT-8).
pub fn attest(facts: &Facts<'_>, claim: &Claim, now: Time) -> Result<Accepted, Refusal> {
    if facts.customer.cloud != Cloud::Public {
        return Err(Refusal::CloudNotSupported { cloud: facts.customer.cloud });
    }
    let template = facts.template;
    if template.is_retired(now) {
        let use_template_id = facts.live_template_id;
        return Err(Refusal::TemplateRetired { template_id: template.id, use_template_id });
    }
    // A date within the tolerance must not reach a version that is not in force yet.
    let version = template.in_force_at(claim.agreed_at.min(now));
    let version = version.ok_or(Refusal::NotFound { resource: "template", id: template.id })?;
    if let Some((current, effective_from)) = facts.current {
        let is_same_version =
            (current.template_id, current.template_version) == (template.id, version.number);
        if is_same_version && current.contact.is_same(&claim.contact) {
            return Err(Refusal::AlreadyAttested { attestation_id: current.id });
        }
        if !is_same_version && version.effective_from < effective_from {
            return Err(Refusal::OlderThanCurrent {
                attestation_id: current.id,
                offered: version.number,
                current: current.template_version,
            });
        }
    }
    Ok(Accepted {
        agreement_type: template.agreement_type,
        template_version: version.number,
        supersedes: facts.current.map(|(current, _)| current.id),
    })
}
