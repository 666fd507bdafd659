//! The policy: which acceptance is required from when on, the vendor's timeline as data.

use serde::Deserialize;
use thiserror::Error;

use super::Time;
use super::template::AgreementType;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Dashboard,
    Api,
}

/// What one period asks of one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Requirement {
    /// Nothing is asked, and nothing is missing.
    None,
    /// Acceptance is possible; without it there is a warning.
    Optional,
    /// Without acceptance the gate is closed.
    Mandatory,
}

/// One stretch of the timeline, until the next begins.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Period {
    pub from: Time,
    pub dashboard: Requirement,
    pub api: Requirement,
    /// The types that satisfy, at least one.
    pub agreement_types: Vec<AgreementType>,
}

/// The timeline. Before its first period nothing is required.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PolicyFile")]
pub struct Policy(Vec<Period>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    periods: Vec<Period>,
}

/// Why a policy file is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    #[error("the policy has no periods, so it would require nothing")]
    NoPeriods,
    #[error("the period from {from} is not later than the one before")]
    NotAscending { from: Time },
    #[error("the period from {from} names no agreement type")]
    NoTypes { from: Time },
}

impl TryFrom<PolicyFile> for Policy {
    type Error = PolicyError;

    fn try_from(file: PolicyFile) -> Result<Self, PolicyError> {
        let periods = file.periods;
        if periods.is_empty() {
            return Err(PolicyError::NoPeriods);
        }
        if let Some(pair) = periods.windows(2).find(|pair| pair[0].from >= pair[1].from) {
            return Err(PolicyError::NotAscending { from: pair[1].from });
        }
        if let Some(period) = periods.iter().find(|period| period.agreement_types.is_empty()) {
            return Err(PolicyError::NoTypes { from: period.from });
        }
        Ok(Self(periods))
    }
}

impl Policy {
    /// What is required of a channel at a time, and which types satisfy.
    pub fn at(&self, at: Time, channel: Channel) -> (Requirement, &[AgreementType]) {
        match self.0.iter().rev().find(|period| period.from <= at) {
            None => (Requirement::None, &[]),
            Some(period) => {
                let requirement = match channel {
                    Channel::Dashboard => period.dashboard,
                    Channel::Api => period.api,
                };
                (requirement, &period.agreement_types)
            }
        }
    }

    /// The periods, in order.
    pub fn periods(&self) -> &[Period] {
        &self.0
    }

    /// When the next period begins.
    pub fn next_change_after(&self, at: Time) -> Option<Time> {
        self.0.iter().map(|period| period.from).find(|from| *from > at)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    fn period(from: i64, agreement_types: &[AgreementType]) -> Period {
        Period {
            from: at(from),
            dashboard: Requirement::Mandatory,
            api: Requirement::Optional,
            agreement_types: agreement_types.to_vec(),
        }
    }

    pub(crate) fn policy(periods: Vec<Period>) -> Result<Policy, PolicyError> {
        Policy::try_from(PolicyFile { periods })
    }

    #[test]
    fn a_policy_requires_something_in_order() {
        use AgreementType::MicrosoftCloudAgreement as Cloud;
        for (periods, expected) in [
            (vec![], Some(PolicyError::NoPeriods)),
            (vec![period(1, &[Cloud])], None),
            (vec![period(1, &[Cloud]), period(2, &[Cloud])], None),
            (vec![period(1, &[Cloud]), period(1, &[Cloud])], Some(PolicyError::NotAscending { from: at(1) })),
            (vec![period(2, &[Cloud]), period(1, &[Cloud])], Some(PolicyError::NotAscending { from: at(1) })),
            (vec![period(1, &[Cloud]), period(2, &[])], Some(PolicyError::NoTypes { from: at(2) })),
        ] {
            let about = format!("{periods:?}");
            assert_eq!(policy(periods).err(), expected, "{about}");
        }
    }

    /// GATE-2: a period holds from its first moment until the next one.
    #[test]
    fn the_period_at_a_time_says_what_each_channel_requires() {
        use AgreementType::{MicrosoftCloudAgreement as Cloud, MicrosoftCustomerAgreement as Customer};
        let policy = policy(vec![period(10, &[Cloud]), period(20, &[Customer])]).unwrap();
        for (now, types, next) in [
            (9, &[][..], Some(10)),
            (10, &[Cloud], Some(20)),
            (19, &[Cloud], Some(20)),
            (20, &[Customer], None),
            (99, &[Customer], None),
        ] {
            let (dashboard, api) = match types.is_empty() {
                true => (Requirement::None, Requirement::None),
                false => (Requirement::Mandatory, Requirement::Optional),
            };
            assert_eq!(policy.at(at(now), Channel::Dashboard), (dashboard, types), "{now}");
            assert_eq!(policy.at(at(now), Channel::Api), (api, types), "{now}");
            assert_eq!(policy.next_change_after(at(now)), next.map(at), "{now}");
        }
    }
}
