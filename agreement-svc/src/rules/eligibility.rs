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
    /// The kinds and types of which an acceptance was withdrawn, however long ago. They only explain a refusal.
    pub withdrawn: Vec<(AcceptanceKind, AgreementType)>,
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
    satisfying.contains(&acceptance.agreement_type)
        && !facts.reacceptances.iter().any(|later| later.outdates(acceptance) && later.reaccept_by <= at)
}

/// All reasons that hold, given that nothing stands.
fn reasons(satisfying: &[AgreementType], facts: &Facts) -> Vec<Reason> {
    let is_right = |of: AgreementType| satisfying.contains(&of);
    let is_current = |kind, of| {
        facts.acceptances.iter().any(|current| (current.kind, current.agreement_type) == (kind, of))
    };
    let mut reasons = vec![];
    if facts.withdrawn.iter().any(|&(kind, of)| is_right(of) && !is_current(kind, of)) {
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
mod tests {
    use super::*;

    const PAYER: Uuid = Uuid::from_u128(1);
    const RESELLER: Uuid = Uuid::from_u128(2);
    const TEMPLATE: Uuid = Uuid::from_u128(3);

    fn blocked() -> Answer {
        Answer {
            decision: Decision::Blocked,
            rule: Rule::NoSatisfyingAcceptance,
            reasons: vec![Reason::NoAcceptance],
            evidence: None,
            satisfying: vec![AgreementType::MicrosoftCustomerAgreement],
            valid_until: None,
        }
    }

    #[test]
    fn the_remedies_are_those_open_to_the_acting_partner() {
        let attest = Remedy::Attest { template_id: TEMPLATE };
        let ask = Remedy::AskProvider { provider_id: PAYER };
        let invite = Remedy::InviteCustomer { template_id: TEMPLATE };
        // acting partner, may act, may sign directly -> remedies
        for (partner_id, may_act, may_sign, expected) in [
            (PAYER, true, true, vec![attest, invite]),
            (PAYER, true, false, vec![attest]),
            (PAYER, false, true, vec![]),
            (RESELLER, true, true, vec![ask, invite]),
            (RESELLER, true, false, vec![ask]),
            (RESELLER, false, true, vec![ask]),
        ] {
            let acting = Acting { partner_id, may_act, may_invite: true };
            let open = remedies(&blocked(), PAYER, acting, Some(TEMPLATE), may_sign);
            assert_eq!(open, expected, "{partner_id} {may_act} {may_sign}");

            // A server that makes no acceptance links offers no invitation.
            let acting = Acting { may_invite: false, ..acting };
            let open = remedies(&blocked(), PAYER, acting, Some(TEMPLATE), may_sign);
            let but_invite: Vec<_> = expected.into_iter().filter(|remedy| *remedy != invite).collect();
            assert_eq!(open, but_invite, "{partner_id} {may_act} {may_sign}");
        }
    }

    /// GATE-0, every case of a partner that sees the customer.
    #[test]
    fn the_field_that_names_the_wrong_partner_is_found() {
        const OTHER: Uuid = Uuid::from_u128(4);
        let alone = Relationship { payer_id: PAYER, reseller_id: None };
        let resold = Relationship { payer_id: PAYER, reseller_id: Some(RESELLER) };
        let payer = |payer_id| Misnamed::Payer { payer_id, use_payer_id: PAYER };
        let reseller = |use_reseller_id| Misnamed::Reseller { use_reseller_id };
        // payer named, acting partner, relationship of its own, one with that payer -> what is named wrongly
        for (named, acting, own, is_with_payer, expected) in [
            (PAYER, PAYER, alone, true, reseller(None)),
            (PAYER, PAYER, resold, true, reseller(None)),
            (PAYER, RESELLER, resold, true, reseller(Some(RESELLER))),
            (OTHER, RESELLER, resold, true, reseller(Some(RESELLER))),
            (OTHER, RESELLER, resold, false, payer(OTHER)),
            (OTHER, PAYER, alone, false, payer(OTHER)),
        ] {
            assert_eq!(
                misnamed(named, acting, own, is_with_payer),
                expected,
                "{named} {acting} {is_with_payer}"
            );
        }
    }

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn a_version_replaces_earlier_ones_from_its_reaccept_by_on() {
        // retired at, reaccept by -> whether it does; the version takes effect at 100
        for (retired_at, reaccept_by, does) in [
            (None, Some(100), true),
            (None, Some(150), true),
            (None, None, false),
            (Some(99), Some(150), false),
            (Some(100), Some(150), false),
            (Some(101), Some(150), true),
        ] {
            let version = Version {
                number: 2,
                effective_from: at(100),
                reaccept_by: reaccept_by.map(at),
                published_at: at(0),
                document_count: 1,
            };
            let template = Template {
                id: TEMPLATE,
                name: "Agreement".into(),
                agreement_type: AgreementType::MicrosoftCustomerAgreement,
                retired_at: retired_at.map(at),
                revision: 1,
                versions: vec![version],
            };
            let found = reacceptance(&template, &template.versions[0]).map(|r| r.reaccept_by);
            assert_eq!(found, reaccept_by.map(at).filter(|_| does), "{retired_at:?} {reaccept_by:?}");
        }
    }

    #[test]
    fn a_planned_version_blocks_only_customers_it_newly_blocks() {
        use AgreementType::{MicrosoftCloudAgreement, MicrosoftCustomerAgreement};
        let policy: Policy = serde_json::from_str(
            r#"{"periods": [
                {"from": "1970-01-01T00:00:00Z", "dashboard": "MANDATORY", "api": "OPTIONAL",
                 "agreement_types": ["MICROSOFT_CUSTOMER_AGREEMENT"]},
                {"from": "1970-01-01T00:10:00Z", "dashboard": "OPTIONAL", "api": "OPTIONAL",
                 "agreement_types": ["MICROSOFT_CUSTOMER_AGREEMENT"]}
            ]}"#,
        )
        .unwrap();
        let accepted = |agreement_type, effective_from| Acceptance {
            id: Uuid::from_u128(9),
            kind: AcceptanceKind::Attestation,
            agreement_type,
            template_id: TEMPLATE,
            template_version: 1,
            effective_from: at(effective_from),
            agreed_at: at(0),
        };
        let planned = |agreement_type, reaccept_by| Reacceptance {
            agreement_type,
            effective_from: at(200),
            reaccept_by: at(reaccept_by),
        };
        let customer = MicrosoftCustomerAgreement;
        let earlier = accepted(customer, 100);
        let due = planned(customer, 300);
        let published =
            |reaccept_by| Reacceptance { effective_from: at(150), ..planned(customer, reaccept_by) };
        // cloud, acceptances, versions published, version planned -> whether it closes the gate
        for (n, (cloud, acceptances, reacceptances, planned, closes)) in [
            (Cloud::Public, vec![earlier], vec![], due, true),
            // Of the planned version's own date, or a later one, there is nothing to accept again.
            (Cloud::Public, vec![accepted(customer, 200)], vec![], due, false),
            (Cloud::Public, vec![earlier, accepted(customer, 201)], vec![], due, false),
            // A customer that is blocked already is not blocked by it.
            (Cloud::Public, vec![], vec![], due, false),
            (Cloud::Public, vec![accepted(MicrosoftCloudAgreement, 100)], vec![], due, false),
            (Cloud::Public, vec![earlier], vec![published(300)], due, false),
            // A published version that is due later leaves it to the planned one.
            (Cloud::Public, vec![earlier], vec![published(301)], due, true),
            (Cloud::Public, vec![earlier], vec![], planned(MicrosoftCloudAgreement, 300), false),
            (Cloud::Germany, vec![earlier], vec![], due, false),
            // Once nothing is mandatory any more, nothing is missing.
            (Cloud::Public, vec![earlier], vec![], planned(customer, 600), false),
        ]
        .into_iter()
        .enumerate()
        {
            let withdrawn = vec![(AcceptanceKind::Signature, customer)];
            let facts = Facts { cloud, acceptances, withdrawn, reacceptances };
            assert_eq!(would_close(&policy, &facts, planned), closes, "row {n}");
        }
    }

    #[test]
    fn without_a_reason_or_a_template_there_is_no_remedy() {
        let acting = Acting { partner_id: PAYER, may_act: true, may_invite: true };
        assert_eq!(remedies(&blocked(), PAYER, acting, None, true), []);
        let allowed = Answer { reasons: vec![], ..blocked() };
        assert_eq!(remedies(&allowed, PAYER, acting, Some(TEMPLATE), true), []);
    }
}
