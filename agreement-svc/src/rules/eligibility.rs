//! The gate: whether an operation may go ahead for a customer, and if not, what would help.
//!
//! The rules GATE-1 to GATE-6 are evaluated in order; the first that applies answers. GATE-0 (payer,
//! customer and reseller belong together) is settled before, by the facts being there.

use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::Time;
use super::party::{Cloud, Relationship};
use super::policy::{Channel, Policy, Requirement};
use super::signature::Signature;
use super::template::{AgreementType, Template, Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    NewPurchase,
    SeatChange,
    ManualRenewal,
    AutoRenewal,
}

/// What the gate is asked.
#[derive(Clone, Debug)]
pub struct Question {
    pub operation: Operation,
    pub channel: Channel,
    /// One entry for each offer that demands more than the policy: any one of its types.
    pub demands: Vec<Vec<AgreementType>>,
    /// The time the answer is about.
    pub at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum AcceptanceKind {
    Attestation,
    Signature,
}

/// A current attestation by the payer or a current signature by the customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acceptance {
    pub id: Uuid,
    pub kind: AcceptanceKind,
    pub agreement_type: AgreementType,
    pub template_id: Uuid,
    pub template_version: u32,
    /// When that version took effect.
    pub effective_from: Time,
    /// When the customer accepted.
    pub agreed_at: Time,
}

/// A published version that one day makes acceptances of earlier ones insufficient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reacceptance {
    pub agreement_type: AgreementType,
    pub template_id: Uuid,
    pub template_version: u32,
    pub effective_from: Time,
    pub reaccept_by: Time,
}

/// From when a version makes acceptances of earlier ones insufficient; `None` if it never does. A
/// version that was to take effect after its template was retired never takes effect.
pub fn reacceptance(template: &Template, version: &Version) -> Option<Reacceptance> {
    let effective_from = version.effective_from;
    let reaccept_by = version.reaccept_by?;
    template.takes_effect(version).then_some(Reacceptance {
        agreement_type: template.agreement_type,
        template_id: template.id,
        template_version: version.number,
        effective_from,
        reaccept_by,
    })
}

/// Everything the decision rests on. Attestations of partners other than the payer are not among
/// it (ATT-7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub cloud: Cloud,
    /// The current ones: at most one of each kind and type.
    pub acceptances: Vec<Acceptance>,
    /// Of each kind and type, the acceptance that was withdrawn last, and when. They only explain a refusal.
    pub withdrawn: Vec<(Acceptance, Time)>,
    /// Published versions that one day make any of the acceptances insufficient.
    pub reacceptances: Vec<Reacceptance>,
}

impl Facts {
    /// What the facts would be had the payer attested: the attestation takes the place of the current one
    /// of its type. `later` are the versions of the type's templates that demand acceptance anew.
    pub fn with_attestation(mut self, attested: Acceptance, later: Vec<Reacceptance>) -> Self {
        let is_replaced = |known: &Acceptance| {
            known.kind == AcceptanceKind::Attestation && known.agreement_type == attested.agreement_type
        };
        self.acceptances.retain(|known| !is_replaced(known));
        self.acceptances.push(attested);
        self.reacceptances.extend(later);
        let acceptances = &self.acceptances;
        self.reacceptances.retain(|later| acceptances.iter().any(|known| later.outdates(known)));
        self
    }
}

impl Reacceptance {
    /// Whether an acceptance is of an earlier version of the type.
    pub fn outdates(&self, acceptance: &Acceptance) -> bool {
        self.agreement_type == acceptance.agreement_type && self.effective_from > acceptance.effective_from
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    Exempt,
    Blocked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    AutoRenewal,
    OutsidePublicCloud,
    NotYetMandatory,
    DirectSignature,
    Attestation,
    NoSatisfyingAcceptance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    NoAcceptance,
    Withdrawn,
    VersionSuperseded,
    WrongAgreementType,
}

/// The gate's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub decision: Decision,
    pub rule: Rule,
    /// Why it is blocked, or, not yet mandatory, why it would be.
    pub reasons: Vec<Reason>,
    pub evidence: Option<Acceptance>,
    /// The types that would satisfy.
    pub satisfying: Vec<AgreementType>,
    /// The next instant at which the answer could change by itself.
    pub valid_until: Option<Time>,
}

/// An acceptance that the gate does not count, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Considered {
    pub acceptance: Acceptance,
    pub problem: Problem,
}

/// Why the gate does not count an acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Withdrawn at this time.
    Withdrawn(Time),
    /// The newest version that the gate requires in its stead.
    VersionSuperseded(Reacceptance),
    WrongAgreementType,
}

/// Why each acceptance does not count, for an answer with reasons: the current ones, then those that were withdrawn.
pub fn considered(answer: &Answer, facts: &Facts, at: Time) -> Vec<Considered> {
    let current = facts.acceptances.iter().filter_map(|acceptance| {
        if !answer.satisfying.contains(&acceptance.agreement_type) {
            return Some(Considered { acceptance: *acceptance, problem: Problem::WrongAgreementType });
        }
        let newest = superseding(acceptance, facts, at).max_by_key(|later| later.effective_from)?;
        Some(Considered { acceptance: *acceptance, problem: Problem::VersionSuperseded(*newest) })
    });
    let withdrawn = not_replaced(&answer.satisfying, facts).map(|(acceptance, withdrawn_at)| Considered {
        acceptance: *acceptance,
        problem: Problem::Withdrawn(*withdrawn_at),
    });
    current.chain(withdrawn).collect()
}

/// Decides.
pub fn decide(policy: &Policy, question: &Question, facts: &Facts) -> Answer {
    let exempt = |rule| Answer {
        decision: Decision::Exempt,
        rule,
        reasons: vec![],
        evidence: None,
        satisfying: vec![],
        valid_until: None,
    };
    if question.operation == Operation::AutoRenewal {
        return exempt(Rule::AutoRenewal);
    }
    if facts.cloud != Cloud::Public {
        return exempt(Rule::OutsidePublicCloud);
    }

    let (requirement, types) = policy.at(question.at, question.channel);
    let is_demanded = |t: &AgreementType| question.demands.iter().all(|demand| demand.contains(t));
    let satisfying: Vec<_> = types.iter().copied().filter(is_demanded).collect();
    let evidence = [AcceptanceKind::Signature, AcceptanceKind::Attestation].iter().find_map(|kind| {
        let satisfies = |acceptance: &&Acceptance| {
            acceptance.kind == *kind && stands(acceptance, &satisfying, facts, question.at)
        };
        facts.acceptances.iter().filter(satisfies).max_by_key(|acceptance| acceptance.agreement_type)
    });
    let reasons = match (evidence, requirement) {
        (Some(_), _) | (None, Requirement::None) => vec![],
        (None, _) => reasons(&satisfying, facts),
    };
    let (decision, rule) = match (requirement, evidence.map(|evidence| evidence.kind)) {
        (Requirement::None | Requirement::Optional, _) => (Decision::Allowed, Rule::NotYetMandatory),
        (Requirement::Mandatory, Some(AcceptanceKind::Signature)) => {
            (Decision::Allowed, Rule::DirectSignature)
        }
        (Requirement::Mandatory, Some(AcceptanceKind::Attestation)) => (Decision::Allowed, Rule::Attestation),
        (Requirement::Mandatory, None) => (Decision::Blocked, Rule::NoSatisfyingAcceptance),
    };
    Answer {
        decision,
        rule,
        reasons,
        evidence: evidence.copied(),
        satisfying,
        valid_until: next_change(policy, facts, question.at),
    }
}

/// The versions of one type's templates that make acceptances of one that took effect earlier
/// insufficient, some day.
pub fn reacceptances(templates: &[Template], after: Time) -> Vec<Reacceptance> {
    let versions = templates.iter().flat_map(|template| template.versions.iter().map(move |v| (template, v)));
    let later = versions.filter(|(_, version)| version.effective_from > after);
    later.filter_map(|(template, version)| reacceptance(template, version)).collect()
}

/// Whether a signature counts for a new purchase at a time (DIR-3), given when its version took effect and
/// the later versions of its type.
pub fn satisfies(
    policy: &Policy,
    channel: Channel,
    signature: &Signature,
    effective_from: Time,
    later: Vec<Reacceptance>,
    at: Time,
) -> bool {
    let acceptance = Acceptance {
        id: signature.id,
        kind: AcceptanceKind::Signature,
        agreement_type: signature.agreement_type,
        template_id: signature.template_id,
        template_version: signature.template_version,
        effective_from,
        agreed_at: signature.signed_at,
    };
    let (acceptances, withdrawn) = (vec![acceptance], vec![]);
    let facts = Facts { cloud: Cloud::Public, acceptances, withdrawn, reacceptances: later };
    stands(&acceptance, policy.at(at, channel).1, &facts, at)
}

/// Whether a version that is not published yet would close the gate: once it is due, a new purchase at
/// the dashboard, the stricter channel, could go ahead without it and could not with it.
pub fn would_close(policy: &Policy, facts: &Facts, planned: Reacceptance) -> bool {
    let question = Question {
        operation: Operation::NewPurchase,
        channel: Channel::Dashboard,
        demands: vec![],
        at: planned.reaccept_by,
    };
    if decide(policy, &question, facts).decision != Decision::Allowed {
        return false;
    }
    let mut with = facts.clone();
    with.reacceptances.push(planned);
    decide(policy, &question, &with).decision == Decision::Blocked
}

/// Whether an acceptance is of a satisfying type and of a version that still counts.
fn stands(acceptance: &Acceptance, satisfying: &[AgreementType], facts: &Facts, at: Time) -> bool {
    satisfying.contains(&acceptance.agreement_type) && superseding(acceptance, facts, at).next().is_none()
}

/// The versions that the gate requires at a time in place of that of an acceptance.
fn superseding<'f>(
    acceptance: &'f Acceptance,
    facts: &'f Facts,
    at: Time,
) -> impl Iterator<Item = &'f Reacceptance> {
    facts.reacceptances.iter().filter(move |later| later.outdates(acceptance) && later.reaccept_by <= at)
}

/// The withdrawn acceptances of a satisfying type, of whose kind and type none is current.
fn not_replaced<'f>(
    satisfying: &'f [AgreementType],
    facts: &'f Facts,
) -> impl Iterator<Item = &'f (Acceptance, Time)> + 'f {
    let is_current = |of: &Acceptance| {
        let same =
            |current: &Acceptance| (current.kind, current.agreement_type) == (of.kind, of.agreement_type);
        facts.acceptances.iter().any(same)
    };
    facts
        .withdrawn
        .iter()
        .filter(move |(last, _)| satisfying.contains(&last.agreement_type) && !is_current(last))
}

/// All reasons that hold, given that nothing stands.
fn reasons(satisfying: &[AgreementType], facts: &Facts) -> Vec<Reason> {
    let is_right = |of: AgreementType| satisfying.contains(&of);
    let mut reasons = vec![];
    if not_replaced(satisfying, facts).next().is_some() {
        reasons.push(Reason::Withdrawn);
    }
    if facts.acceptances.iter().any(|current| is_right(current.agreement_type)) {
        reasons.push(Reason::VersionSuperseded);
    }
    if satisfying.is_empty() || facts.acceptances.iter().any(|current| !is_right(current.agreement_type)) {
        reasons.push(Reason::WrongAgreementType);
    }
    if reasons.is_empty() {
        reasons.push(Reason::NoAcceptance);
    }
    reasons
}

fn next_change(policy: &Policy, facts: &Facts, at: Time) -> Option<Time> {
    let reacceptances = facts.reacceptances.iter().map(|later| later.reaccept_by);
    reacceptances.filter(|by| *by > at).chain(policy.next_change_after(at)).min()
}

/// Which of the parties is named wrongly where they have no active relationship (GATE-0), and whom the acting partner
/// names instead: only itself, or the payer of a relationship of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misnamed {
    Payer {
        payer_id: Uuid,
        use_payer_id: Uuid,
    },
    /// A payer that acts names no reseller, or another one.
    Reseller {
        use_reseller_id: Option<Uuid>,
    },
}

/// Finds what is named wrongly. `own` is an active relationship of the acting partner with the customer;
/// `is_with_payer`: it has one together with the payer that is named.
pub fn misnamed(payer_id: Uuid, acting: Uuid, own: Relationship, is_with_payer: bool) -> Misnamed {
    match is_with_payer {
        true => Misnamed::Reseller { use_reseller_id: (acting != payer_id).then_some(acting) },
        false => Misnamed::Payer { payer_id, use_payer_id: own.payer_id },
    }
}

/// Whose remedies are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Acting {
    pub partner_id: Uuid,
    /// Its user may attest and invite (ROLE-1).
    pub may_act: bool,
    /// There are acceptance links to invite with.
    pub may_invite: bool,
}

/// What can be done about a missing acceptance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    Attest { template_id: Uuid },
    AskProvider { provider_id: Uuid },
    InviteCustomer { template_id: Uuid },
}

/// The remedies open to the acting partner. `live` is the live template of a satisfying type.
pub fn remedies(
    answer: &Answer,
    payer_id: Uuid,
    acting: Acting,
    live: Option<Uuid>,
    may_sign_directly: bool,
) -> Vec<Remedy> {
    let Some(template_id) = live.filter(|_| !answer.reasons.is_empty()) else { return vec![] };
    let mut remedies = vec![];
    if acting.partner_id != payer_id {
        remedies.push(Remedy::AskProvider { provider_id: payer_id });
    } else if acting.may_act {
        remedies.push(Remedy::Attest { template_id });
    }
    if acting.may_act && acting.may_invite && may_sign_directly {
        remedies.push(Remedy::InviteCustomer { template_id });
    }
    remedies
}

#[cfg(test)]
mod gate_table;

#[cfg(test)]
mod tests;
