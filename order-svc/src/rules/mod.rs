//! The rules of ordering: facts in, decision out.
//!
//! Never in here: files, sockets, time, chance, logs, gRPC or SQL. A rule is given values and returns
//! a new value or a [`Refusal`]; the caller does the rest.

pub mod event;
pub mod gate;
pub mod history;
pub mod offer;
pub mod order;
pub mod preview;
pub mod relationship;
pub mod subscription;
pub mod withdrawal;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use gate::{Considered, Hindrance, Reason, Remedy};
use offer::OfferKind;
use order::{Misnamed, Parties};
use subscription::State;

/// An instant in UTC, in whole microseconds.
pub type Time = DateTime<Utc>;

/// A bad field, by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadField {
    pub field: String,
    pub problem: String,
}

/// Why a request is refused. Each has one meaning; `api::status` chooses its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not exist, or not for this caller (ROLE-6).
    NotFound { resource: &'static str, id: String },
    /// Fields are invalid for this catalogue or this customer (ORD-3).
    Fields(Vec<BadField>),
    /// The request id was used for other content.
    RequestIdReused { request_id: Uuid },
    /// The subscription has changed since its etag was read.
    StaleEtag,
    /// GATE-0, for a caller that sees the customer: the parties it names have no active relationship.
    NotTogether { parties: Parties, misnamed: Misnamed },
    /// GATE-0: resellers do not pay.
    PayerIsReseller { payer_id: Uuid },
    /// GATE-6.
    AgreementRequired {
        customer_id: Uuid,
        reasons: Vec<Reason>,
        remedies: Vec<Remedy>,
        considered: Vec<Considered>,
        hindrance: Option<Hindrance>,
    },
    /// The gate did not answer, or its answer cannot be used (I8).
    GateUnavailable,
    /// Withdrawals or ends of relationships kept overtaking the gate's answers; the last has this revision (WD-3).
    AnswerOutdated { customer_id: Uuid, fence: i64 },
    /// agreement-svc was restored from an older copy and lost a withdrawal, or an end of a relationship, that was applied
    /// here (WD-3a). The acceptance is named where the answer rests on it.
    WithdrawalLost { customer_id: Uuid, acceptance_id: Option<Uuid> },
    /// agreement-svc was restored from an older copy, and that was not announced: its history is not the one that was
    /// followed here (WD-3a).
    HistoryInvalid,
    /// ROLE-6: the caller's relationship with the customer has ended.
    RelationshipEnded { customer_id: Uuid, payer_id: Uuid },
    /// SUB-6: only the payer chooses the reseller on record.
    PayerOnly { payer_id: Uuid },
    /// Which relationships are active is not known: agreement-svc's history was not applied far enough, and it gave no
    /// answer that settles it.
    HistoryBehind,
    /// SUB-7: payer and customer would have more open subscriptions than this.
    TooManySubscriptions { customer_id: Uuid, max: u32 },
    /// SUB-2, SUB-4.
    NotActive { state: State },
    /// SUB-1: the state is final.
    Ended { state: State },
    /// SUB-2.
    NotALicence { kind: OfferKind },
    /// SUB-4: it lasts for good, or its offer does not renew by itself, or the calendar ends.
    NotRenewable { offer_id: String },
    /// SUB-3.
    TermEnded { term_end: Time },
    /// A watcher's cursor is ahead of the history.
    CursorAhead { head: i64 },
    /// The subscription's offer is no longer in the catalogue.
    OfferWithdrawn { offer_id: String },
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::str::FromStr;

    use super::{gate, offer, subscription, withdrawal};

    fn assert_names<T: FromStr<Err: Debug> + Into<&'static str>>(names: &[&str]) {
        for name in names {
            assert_eq!(T::from_str(name).unwrap().into(), *name);
        }
    }

    /// Databases of every version have these names.
    #[test]
    fn stored_names_stay() {
        assert_names::<gate::Decision>(&["ALLOWED", "EXEMPT"]);
        assert_names::<gate::Rule>(&[
            "OUTSIDE_PUBLIC_CLOUD",
            "NOT_YET_MANDATORY",
            "DIRECT_SIGNATURE",
            "ATTESTATION",
        ]);
        assert_names::<gate::EvidenceKind>(&["ATTESTATION", "DIRECT_SIGNATURE"]);
        assert_names::<gate::Reason>(&[
            "NO_ACCEPTANCE",
            "WITHDRAWN",
            "VERSION_SUPERSEDED",
            "WRONG_AGREEMENT_TYPE",
        ]);
        assert_names::<offer::OfferKind>(&["LICENSE", "AZURE_PLAN", "RESERVED_INSTANCE", "SOFTWARE"]);
        assert_names::<offer::Term>(&["MONTH", "YEAR", "THREE_YEARS", "PERPETUAL"]);
        assert_names::<withdrawal::WithdrawalOutcome>(&["CANCELLED", "STILL_COVERED", "NEWER_ANSWER"]);
        assert_names::<subscription::State>(&["ACTIVE", "SUSPENDED", "CANCELLED", "EXPIRED"]);
        assert_names::<subscription::ChangeKind>(&[
            "CREATED",
            "SEATS_CHANGED",
            "RENEWED",
            "AUTO_RENEW_ON",
            "AUTO_RENEW_OFF",
            "SUSPENDED",
            "RESUMED",
            "CANCELLED",
            "EXPIRED",
            "RESELLER_ASSIGNED",
        ]);
    }
}
