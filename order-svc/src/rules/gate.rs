//! The gate's answer, as a fact: the query, the decision, and whether it may still be used.

use chrono::Duration;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

use super::{Refusal, Time};

/// An answer older than this is asked for again (I1).
pub const ANSWER_AGE_MAX: Duration = Duration::seconds(5);

/// What the gate is asked about. Automatic renewal is not among it: no call leads to one (I5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    NewPurchase,
    SeatChange,
    /// Also switching automatic renewal on, or it would be a way round.
    ManualRenewal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Decision {
    Allowed,
    Exempt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Rule {
    OutsidePublicCloud,
    NotYetMandatory,
    DirectSignature,
    Attestation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EvidenceKind {
    Attestation,
    DirectSignature,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AgreementType {
    MicrosoftCloudAgreement,
    MicrosoftCustomerAgreement,
}

/// The acceptance an answer rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub kind: EvidenceKind,
    pub acceptance_id: Uuid,
    pub template_id: Uuid,
    pub template_version: u32,
    pub agreement_type: AgreementType,
}

/// A yes: what is kept with whatever rests on it (ORD-6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    pub decision: Decision,
    pub rule: Rule,
    pub evidence: Option<Evidence>,
    /// The customer's acceptance revision the answer was given at.
    pub revision: i64,
    pub evaluated_at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    NoAcceptance,
    Withdrawn,
    VersionSuperseded,
    WrongAgreementType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    Attest { template_id: Uuid },
    AskProvider { provider_id: Uuid },
    InviteCustomer { template_id: Uuid },
}

/// An acceptance that the gate does not count, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Considered {
    #[serde(flatten)]
    pub acceptance: Evidence,
    pub agreed_at: Time,
    #[serde(flatten)]
    pub problem: Problem,
}

/// Why the gate does not count an acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Problem {
    Withdrawn { withdrawn_at: Time },
    VersionSuperseded { required_template_id: Uuid, required_version: u32, required_since: Time },
    WrongAgreementType,
}

/// Why no acceptance would help now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// No type that the policy accepts is one that all the offers take. The lines of an order are named, by what they take.
    Offers(Vec<LineDemand>),
    /// No version of the agreement is in force.
    NoVersion,
}

/// Lines whose offers take these types only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineDemand {
    pub types: Vec<AgreementType>,
    /// From 0, in order.
    pub lines: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Approved(Approval),
    /// Without remedies a hindrance says why, if it is known.
    Blocked {
        reasons: Vec<Reason>,
        remedies: Vec<Remedy>,
        considered: Vec<Considered>,
        hindrance: Option<Hindrance>,
    },
}

/// The gate's answer about one customer. It has no copies: what is stored on it takes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub customer_id: Uuid,
    /// ISO 3166-1 alpha-2.
    pub customer_country: String,
    /// The reseller of the only relationship of payer and customer, where the query named none.
    pub only_reseller_id: Option<Uuid>,
    /// The revision of agreement-svc's history that it holds at.
    pub revision: i64,
    pub verdict: Verdict,
    /// By our clock, before the query was sent: the answer is at most this old.
    pub asked_at: Time,
    /// How long after its evaluation it could change by itself, by agreement-svc's clock.
    pub valid_for: Option<Duration>,
}

impl Answer {
    /// The yes, or the refusal that carries reasons and remedies.
    pub fn approval(&self) -> Result<&Approval, Refusal> {
        match &self.verdict {
            Verdict::Approved(approval) => Ok(approval),
            Verdict::Blocked { reasons, remedies, considered, hindrance } => {
                Err(Refusal::AgreementRequired {
                    customer_id: self.customer_id,
                    reasons: reasons.clone(),
                    remedies: remedies.clone(),
                    considered: considered.clone(),
                    hindrance: hindrance.clone(),
                })
            }
        }
    }

    /// Whether something may still be stored on it (I1). It was evaluated after it was asked for, so its age by our
    /// clock is at least its age by agreement-svc's, and the two clocks are never compared.
    pub fn is_fresh(&self, now: Time) -> bool {
        let age = now - self.asked_at;
        age >= Duration::zero()
            && age < ANSWER_AGE_MAX
            && self.valid_for.is_none_or(|valid_for| age < valid_for)
    }
}

/// The answer of a dry run: what the gate would answer, maybe on the assumption of an attestation that is not stored
/// (ORD-5). It only lends its answer, so that nothing can be stored on it.
#[derive(Debug)]
pub struct DryRun {
    answer: Answer,
    is_assumed: bool,
}

impl DryRun {
    /// `is_assumed`: the gate assumed an attestation.
    pub fn new(answer: Answer, is_assumed: bool) -> Self {
        Self { answer, is_assumed }
    }

    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The revision that the answer would hold at: an attestation that is only assumed would be newer than all that
    /// was applied here.
    pub fn revision(&self) -> i64 {
        if self.is_assumed { i64::MAX } else { self.answer.revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_fresh_for_five_seconds_until_it_can_change() {
        let at = |micros: i64| Time::from_timestamp_micros(micros).unwrap();
        let answer = |valid_for: Option<i64>| Answer {
            customer_id: Uuid::nil(),
            customer_country: "FR".into(),
            only_reseller_id: None,
            revision: 7,
            verdict: Verdict::Blocked {
                reasons: vec![],
                remedies: vec![],
                considered: vec![],
                hindrance: None,
            },
            asked_at: at(1_000_000),
            valid_for: valid_for.map(Duration::microseconds),
        };
        for (valid_for, now, fresh) in [
            (None, 1_000_000, true),
            (None, 5_999_999, true),
            (None, 6_000_000, false),
            // A clock that went back proves nothing.
            (None, 999_999, false),
            (Some(1_000_000), 1_999_999, true),
            (Some(1_000_000), 2_000_000, false),
            (Some(0), 1_000_000, false),
        ] {
            assert_eq!(answer(valid_for).is_fresh(at(now)), fresh, "{valid_for:?} at {now}");
        }
    }
}
