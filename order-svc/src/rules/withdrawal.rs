//! What happened at agreement-svc and has consequences here: withdrawals of acceptances (WD-2), ends of
//! relationships (CUS-3), and a restore of its database that lost what was followed.

use uuid::Uuid;

use super::gate::EvidenceKind;
use super::{Time, names};

/// How far agreement-svc's history is known: up to the event of a revision, 0 for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub revision: i64,
    /// The hash of that event, which covers all before it; `None` where it is not known.
    pub hash: Option<String>,
}

/// agreement-svc's database was restored from a copy that ended with one event; the history goes on with the
/// other. Nothing between their revisions is known there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    pub last_revision: i64,
    pub revision: i64,
}

/// A point of agreement-svc's history: an event, or the quiet after one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Up to the last event before it; there are no gaps.
    pub place: Place,
    /// What was recorded until then is in the history up to here, but for what was just being stored.
    pub until: Time,
    /// What follows from that event; `None` for all that has no consequences here.
    pub news: Option<News>,
}

/// An event with consequences. Nothing may be stored for its customer any more on an answer of the
/// gate that is older (WD-3), and what rests on newer answers is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Withdrawn(Withdrawal),
    RelationshipEnded(Parting),
}

impl News {
    pub fn customer_id(&self) -> Uuid {
        match self {
            Self::Withdrawn(withdrawal) => withdrawal.customer_id,
            Self::RelationshipEnded(parting) => parting.customer_id,
        }
    }
}

/// An attestation or signature was withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    pub customer_id: Uuid,
    pub kind: EvidenceKind,
    pub acceptance_id: Uuid,
    /// The partner that withdrew its attestation, which covered only what that partner paid for (ATT-7);
    /// none where a customer withdrew its signature.
    pub partner_id: Option<Uuid>,
    /// The partners that it left without any acceptance: what they pay for is cancelled.
    pub uncovered: Vec<Uuid>,
}

/// A payer and a customer parted. What the payer pays for does not renew by itself any more, and so
/// runs out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parting {
    pub customer_id: Uuid,
    pub payer_id: Uuid,
    /// The reseller that was on the relationship.
    pub reseller_id: Option<Uuid>,
    /// They have another relationship; then only what has this reseller on record is concerned.
    pub others_remain: bool,
}

/// What became of a subscription that had not ended and that the withdrawn acceptance could cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Cancelled,
    /// Its payer has another acceptance to rest on, or had parted with the customer before.
    StillCovered,
    /// It rests on an answer given after the withdrawal.
    NewerAnswer,
}

names!(Outcome {
    Cancelled = "CANCELLED",
    StillCovered = "STILL_COVERED",
    NewerAnswer = "NEWER_ANSWER",
});

impl Withdrawal {
    /// Why a subscription was not cancelled.
    pub fn why_it_stays(&self, payer_id: Uuid) -> Outcome {
        if self.uncovered.contains(&payer_id) { Outcome::NewerAnswer } else { Outcome::StillCovered }
    }
}

/// What a withdrawal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub revision: i64,
    pub withdrawal: Withdrawal,
    pub withdrawn_at: Time,
    pub applied_at: Time,
    /// Subscriptions that it cancelled, of those that the reader may see.
    pub cancelled: u32,
    /// Subscriptions that had not ended and stayed, of those that the reader may see.
    pub stayed: u32,
}

/// What became of one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    pub subscription_id: Uuid,
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
    pub outcome: Outcome,
}
