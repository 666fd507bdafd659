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

    /// When the next period begins.
    pub fn next_change_after(&self, at: Time) -> Option<Time> {
        self.0.iter().map(|period| period.from).find(|from| *from > at)
    }
}

#[cfg(test)]
mod tests {
    use AgreementType::{MicrosoftCloudAgreement, MicrosoftCustomerAgreement};
    use serde_json::json;

    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    fn period(from: i64, dashboard: &str, api: &str, types: &[&str]) -> serde_json::Value {
        json!({ "from": at(from), "dashboard": dashboard, "api": api, "agreement_types": types })
    }

    fn read(periods: &[serde_json::Value]) -> Result<Policy, String> {
        serde_json::from_value(json!({ "periods": periods })).map_err(|e| e.to_string())
    }

    #[test]
    fn a_period_holds_until_the_next_begins() {
        use Requirement::{Mandatory, None as Nothing, Optional};
        let policy = read(&[
            period(100, "OPTIONAL", "NONE", &["MICROSOFT_CLOUD_AGREEMENT"]),
            period(200, "MANDATORY", "OPTIONAL", &["MICROSOFT_CUSTOMER_AGREEMENT"]),
        ])
        .unwrap();
        let (cloud, customer) = (&[MicrosoftCloudAgreement][..], &[MicrosoftCustomerAgreement][..]);
        // at -> what the dashboard and the API require, which types satisfy, when that changes next
        for (time, dashboard, api, types, next) in [
            (99, Nothing, Nothing, &[][..], Some(100)),
            (100, Optional, Nothing, cloud, Some(200)),
            (199, Optional, Nothing, cloud, Some(200)),
            (200, Mandatory, Optional, customer, None),
            (999, Mandatory, Optional, customer, None),
        ] {
            assert_eq!(policy.at(at(time), Channel::Dashboard), (dashboard, types), "at {time}");
            assert_eq!(policy.at(at(time), Channel::Api), (api, types), "at {time}");
            assert_eq!(policy.next_change_after(at(time)), next.map(at), "at {time}");
        }
    }

    #[test]
    fn periods_ascend_and_each_names_a_type() {
        let from = |from| period(from, "OPTIONAL", "NONE", &["MICROSOFT_CLOUD_AGREEMENT"]);
        assert!(read(&[from(100), from(101), from(102)]).is_ok());
        let not_ascending = "the period from 1970-01-01 00:01:40 UTC is not later than the one before";
        for (periods, problem) in [
            (vec![], "the policy has no periods, so it would require nothing"),
            (vec![from(100), from(100)], not_ascending),
            (vec![from(99), from(101), from(100)], not_ascending),
            (
                vec![from(99), period(100, "OPTIONAL", "NONE", &[])],
                "the period from 1970-01-01 00:01:40 UTC names no agreement type",
            ),
        ] {
            assert_eq!(read(&periods), Err(problem.into()));
        }
    }
}
