//! The rules of acceptance: facts in, decision out.
//!
//! Never in here: files, sockets, time, chance, logs, gRPC or SQL. A rule is given values and returns
//! a new value or a [`Refusal`]; the caller does the rest.

pub mod attestation;
pub mod chain;
pub mod eligibility;
pub mod event;
pub mod invitation;
pub mod language;
pub mod notification;
pub mod party;
pub mod policy;
pub mod proposal;
pub mod shown;
pub mod signature;
pub mod template;
pub mod withdrawal;

use chrono::{DateTime, Duration, Utc};
use uuid::Uuid;

use eligibility::Misnamed;
use invitation::InvitationState;
use notification::NotificationState;
use party::{Cloud, PartnerKind, Support};
use proposal::ProposalState;

/// An instant in UTC, in whole microseconds.
pub type Time = DateTime<Utc>;

/// A bad field, by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadField {
    pub field: String,
    pub problem: String,
}

impl Refusal {
    /// One bad field.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Fields(vec![BadField { field: field.into(), problem: problem.into() }])
    }

    /// With the path of what carries its fields in front of them.
    #[must_use]
    pub fn within(mut self, path: &str) -> Self {
        if let Self::Fields(fields) = &mut self {
            fields.iter_mut().for_each(|bad| bad.field.insert_str(0, path));
        }
        self
    }
}

/// Why a request is refused. Each has one meaning; `api::status` chooses its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not exist, or not for this caller (ROLE-6).
    NotFound { resource: &'static str, id: Uuid },
    /// Fields that the present state forbids.
    Fields(Vec<BadField>),
    /// The request id was used for other content.
    RequestIdReused { request_id: Uuid },
    /// The resource has changed since its etag was read.
    StaleEtag,
    /// ATT-1.
    ResellerCannotAttest { provider_id: Uuid },
    /// ATT-6.
    CloudNotSupported { cloud: Cloud },
    /// TPL-4.
    TemplateRetired { template_id: Uuid, use_template_id: Option<Uuid> },
    /// ATT-8: the same version, contact and date.
    AlreadyAttested { attestation_id: Uuid },
    /// ATT-8: an older version than the current one's.
    OlderThanCurrent { attestation_id: Uuid, offered: u32, current: u32 },
    /// ATT-8: the acceptances of the customer, by this partner or by itself, change too often.
    TooManyChanges { max: u32, retry_after: Duration },
    /// CUS-1.
    CustomerExists,
    /// CUS-1.
    DomainTaken,
    /// Registered with other particulars.
    PartnerExists { partner_id: Uuid },
    /// A partner that would become a customer, or else a customer that would be registered as a partner.
    TenantOfOtherKind { tenant_id: Uuid, is_partner: bool },
    /// A provider and a reseller that do not belong together.
    ResellerNotLinked { provider_id: Uuid, reseller_id: Uuid },
    /// A partner of the wrong kind or cloud for what is asked.
    WrongPartnerKind { partner_id: Uuid, kind: PartnerKind, cloud: Cloud },
    /// TPL-3.
    NotLaterThanLastVersion { not_before: Time },
    /// Another template of the type is live.
    TypeHasTemplate { template_id: Uuid },
    /// GATE-0, for a partner that sees the customer: the parties it names have no active relationship.
    NotTogether { customer_id: Uuid, misnamed: Misnamed },
    /// GATE-0: resellers do not pay.
    PayerIsReseller { payer_id: Uuid },
    /// The state asked for is not there yet.
    RevisionBehind { head: i64 },
    /// DIR-1: another version is in force than the one that was shown.
    VersionChanged { template_id: Uuid, shown: u32, in_force: u32 },
    /// DIR-4, for the customer: a customer that bought before it ever signed cannot sign directly. With the partner to
    /// contact, where it is known which, and the customer's language.
    ContactPartner { partner: Option<Box<(Uuid, Support)>>, language: String },
    /// DIR-4, for the partner that would invite such a customer.
    MustBeAttested,
    /// INV-2.
    InvitationNotPending { invitation_id: Uuid, state: InvitationState },
    /// PRO-1.
    ProposalNotPending { proposal_id: Uuid, state: ProposalState },
    /// PRO-1: too many of a reseller for a customer wait for a decision.
    TooManyProposals { max: usize },
    /// There is no key to make acceptance links with.
    InvitationsOff,
    /// WD-1: it was replaced and no longer counts.
    AcceptanceSuperseded { acceptance_id: Uuid, current_id: Option<Uuid> },
    /// ATT-9: there is nothing to retry.
    NotificationNotDead { state: NotificationState },
    /// A cursor ahead of the history.
    CursorAhead { head: i64 },
    /// A revision, or the event that the consumer knows it by, that is no part of the history.
    HistoryForked { revision: i64 },
}

#[cfg(test)]
mod acceptance_table;

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::str::FromStr;

    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use serde_json::json;
    use strum::VariantArray;

    use super::eligibility::AcceptanceKind;
    use super::invitation::{DeclineReason, InvitationKind, InvitationState};
    use super::notification::NotificationState;
    use super::party::{Cloud, PartnerKind};
    use super::proposal::{ProposalState, RejectionReason};
    use super::template::AgreementType;
    use super::withdrawal::WithdrawalReason;

    /// `names` are those of all values, in order.
    fn assert_names<T>(names: &[&str])
    where
        T: Copy + Debug + PartialEq + FromStr<Err: Debug> + Into<&'static str> + VariantArray,
    {
        let written: Vec<&str> = T::VARIANTS.iter().map(|value| (*value).into()).collect();
        assert_eq!(written, names);
        let read: Vec<T> = names.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(read, T::VARIANTS);
    }

    /// Those that events and data files have too.
    fn assert_names_and_json<T>(names: &[&str])
    where
        T: Copy + Debug + PartialEq + FromStr<Err: Debug> + Into<&'static str> + VariantArray,
        T: Serialize + DeserializeOwned,
    {
        assert_names::<T>(names);
        assert_eq!(json!(T::VARIANTS), json!(names));
        assert_eq!(serde_json::from_value::<Vec<T>>(json!(names)).unwrap(), T::VARIANTS);
    }

    /// Databases of every version have these names.
    #[test]
    fn stored_names_stay() {
        assert_names::<AcceptanceKind>(&["ATTESTATION", "SIGNATURE"]);
        assert_names::<InvitationState>(&["PENDING", "ACCEPTED", "REVOKED", "EXPIRED", "DECLINED"]);
        assert_names_and_json::<DeclineReason>(&["UNKNOWN_PARTNER", "TERMS", "WRONG_COMPANY", "OTHER"]);
        assert_names::<ProposalState>(&["PENDING", "APPROVED", "REJECTED", "EXPIRED", "WITHDRAWN"]);
        assert_names_and_json::<RejectionReason>(&[
            "EVIDENCE",
            "PERSON",
            "DATE_OR_TEMPLATE",
            "NOT_NEEDED",
            "OTHER",
        ]);
        assert_names::<NotificationState>(&["QUEUED", "SENT", "DEAD_LETTER"]);
        assert_names_and_json::<AgreementType>(&[
            "MICROSOFT_CLOUD_AGREEMENT",
            "MICROSOFT_CUSTOMER_AGREEMENT",
        ]);
        assert_names_and_json::<Cloud>(&["PUBLIC", "US_GOVERNMENT", "GERMANY", "CHINA_21VIANET"]);
        assert_names_and_json::<InvitationKind>(&["AGREEMENT", "RELATIONSHIP_AND_AGREEMENT"]);
        assert_names_and_json::<PartnerKind>(&["DIRECT_BILL", "INDIRECT_PROVIDER", "INDIRECT_RESELLER"]);
        assert_names_and_json::<WithdrawalReason>(&[
            "NO_LONGER_ACCEPTS",
            "RECORDED_IN_ERROR",
            "NOT_ENTITLED",
            "OTHER",
        ]);
    }
}
