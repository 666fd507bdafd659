//! The rules of acceptance: facts in, decision out.
//!
//! Never in here: files, sockets, time, chance, logs, gRPC or SQL. A rule is given values and returns
//! a new value or a [`Refusal`]; whoever calls it does the rest.

pub mod attestation;
pub mod eligibility;
pub mod event;
pub mod party;
pub mod policy;
pub mod template;

use chrono::{DateTime, Utc};
use uuid::Uuid;

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
}
