//! Direct signatures: a customer's own acceptance.

use uuid::Uuid;

use super::party::{Cloud, Customer};
use super::template::{AgreementType, Template};
use super::withdrawal::Withdrawal;
use super::{Refusal, Time};

/// What a customer's administrator accepted, and when. It counts for every partner (DIR-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub id: Uuid,
    pub customer_id: Uuid,
    pub agreement_type: AgreementType,
    pub template_id: Uuid,
    pub template_version: u32,
    pub signed_at: Time,
    /// The customer's user (ROLE-7).
    pub signed_by: Uuid,
    pub superseded_at: Option<Time>,
    pub withdrawn: Option<Withdrawal>,
    pub revision: i64,
}

/// What is known when a customer signs.
#[derive(Debug)]
pub struct Facts<'a> {
    pub customer: &'a Customer,
    pub template: &'a Template,
    /// The live template to name when this one is retired.
    pub live_template_id: Option<Uuid>,
    /// The customer's current signature of the template's type.
    pub current: Option<&'a Signature>,
    /// When the customer first signed anything, whatever became of it.
    pub first_signed_at: Option<Time>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// The current signature is of this very version: nothing changes.
    Already,
    /// A new record, in the place of the one named.
    New { supersedes: Option<Uuid> },
}

/// Decides on a signature of the version that was shown (DIR-1, DIR-4, DIR-5).
pub fn sign(facts: &Facts<'_>, shown: u32, now: Time) -> Result<Signing, Refusal> {
    check_signable(facts.customer.cloud, facts.template, facts.live_template_id, now)?;
    let template_id = facts.template.id;
    let in_force = facts.template.in_force_at(now).map(|version| version.number);
    let in_force = in_force.ok_or(Refusal::NotFound { resource: "template", id: template_id })?;
    if shown != in_force {
        return Err(Refusal::VersionChanged { template_id, shown, in_force });
    }
    if let Some(current) = facts.current
        && (current.template_id, current.template_version) == (template_id, shown)
    {
        return Ok(Signing::Already);
    }
    if !may_sign_directly(facts.customer.first_purchase_at, facts.first_signed_at) {
        return Err(Refusal::ContactPartner);
    }
    Ok(Signing::New { supersedes: facts.current.map(|current| current.id) })
}

/// Whether a template can be signed at all in a cloud (DIR-5, TPL-4).
pub fn check_signable(
    cloud: Cloud,
    template: &Template,
    live_template_id: Option<Uuid>,
    now: Time,
) -> Result<(), Refusal> {
    if cloud != Cloud::Public {
        return Err(Refusal::CloudNotSupported { cloud });
    }
    if template.is_retired(now) {
        return Err(Refusal::TemplateRetired { template_id: template.id, use_template_id: live_template_id });
    }
    Ok(())
}

/// Whether a customer may sign directly (DIR-4): it never bought, or signed before it first did.
pub fn may_sign_directly(first_purchase_at: Option<Time>, first_signed_at: Option<Time>) -> bool {
    first_purchase_at.is_none_or(|purchase| first_signed_at.is_some_and(|signed| signed < purchase))
}
