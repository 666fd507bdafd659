//! The rules of acceptance: facts in, decision out.
//!
//! Never in here: files, sockets, time, chance, logs, gRPC or SQL. A rule is given values and returns
//! a new value or a [`Refusal`]; the caller does the rest.

pub mod attestation;
pub mod chain;
pub mod eligibility;
pub mod event;
pub mod invitation;
pub mod notification;
pub mod party;
pub mod policy;
pub mod signature;
pub mod template;
pub mod withdrawal;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use invitation::InvitationState;
use notification::NotificationState;
use party::{Cloud, PartnerKind};

/// An instant in UTC, in whole microseconds.
pub type Time = DateTime<Utc>;

/// Gives each variant the name it has in the database, in the data files and on the wire.
macro_rules! names {
    ($type:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl $type {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name it is stored under.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// Reads a stored name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                const NAMES: &[&str] = &[$($name),+];
                let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::from_name(&name).ok_or_else(|| serde::de::Error::unknown_variant(&name, NAMES))
            }
        }
    };
}
pub(crate) use names;

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
}

/// Why a request is refused. Each has one meaning; `api::status` chooses its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not exist, or not for this caller (ROLE-6).
    NotFound { resource: &'static str, id: Uuid },
    /// Fields that only make sense in the present state do not.
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
    /// ATT-8: the same version and contact.
    AlreadyAttested { attestation_id: Uuid },
    /// ATT-8: an older version than the current one's.
    OlderThanCurrent { attestation_id: Uuid, offered: u32, current: u32 },
    /// CUS-1.
    DomainTaken,
    /// Registered with other particulars.
    PartnerExists { partner_id: Uuid },
    /// A provider and a reseller that do not belong together.
    ResellerNotLinked { provider_id: Uuid, reseller_id: Uuid },
    /// A partner of the wrong kind or cloud for what is asked.
    WrongPartnerKind { partner_id: Uuid, kind: PartnerKind, cloud: Cloud },
    /// TPL-3.
    NotLaterThanLastVersion { not_before: Time },
    /// Another template of the type is live.
    TypeHasTemplate { template_id: Uuid },
    /// GATE-0: resellers do not pay.
    PayerIsReseller { payer_id: Uuid },
    /// The state asked for is not there yet.
    RevisionBehind { head: i64 },
    /// DIR-1: another version is in force than the one that was shown.
    VersionChanged { template_id: Uuid, shown: u32, in_force: u32 },
    /// DIR-4, for the customer: a customer that bought before it ever signed cannot sign directly.
    ContactPartner,
    /// DIR-4, for the partner that would invite such a customer.
    MustBeAttested,
    /// INV-2.
    InvitationNotPending { invitation_id: Uuid, state: InvitationState },
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
