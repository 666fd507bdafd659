//! agreement-svc's history as order-svc follows it: a cursor over the hash chain of its events, the events with
//! consequences here, and a restore of its database that lost what was followed.

use uuid::Uuid;

use super::Time;
use super::relationship::{Ending, Relationship, RelationshipEnd};
use super::withdrawal::{SubscriptionFacts, Withdrawal, WithdrawalOutcome};

/// How far agreement-svc's history is known: up to the event of a revision, 0 for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
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
pub struct HistoryPoint {
    /// Up to the last event before it; there are no gaps.
    pub cursor: Cursor,
    /// What was recorded until then is in the history up to here, but for what was just being stored.
    pub until: Time,
    /// What follows from that event; `None` for all that has no consequences here.
    pub consequence: Option<Consequence>,
}

/// An event with consequences. After a withdrawal or an end nothing may be stored for its customer any more on an answer
/// of the gate that is older (WD-3), and what rests on newer answers is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consequence {
    Withdrawn(Withdrawal),
    RelationshipEstablished(Relationship),
    RelationshipEnded(RelationshipEnd),
}

impl Consequence {
    pub fn customer_id(&self) -> Uuid {
        match self {
            Self::Withdrawn(withdrawal) => withdrawal.customer_id,
            Self::RelationshipEstablished(relationship) => relationship.customer_id,
            Self::RelationshipEnded(end) => end.relationship.customer_id,
        }
    }

    /// Whether nothing may be stored any more on an answer of the gate from before it (WD-3).
    pub fn voids_answers(&self) -> bool {
        match self {
            Self::Withdrawn(_) | Self::RelationshipEnded(_) => true,
            Self::RelationshipEstablished(_) => false,
        }
    }

    /// The payers whose subscriptions it may end.
    pub fn payers(&self) -> &[Uuid] {
        match self {
            Self::Withdrawn(withdrawal) => &withdrawal.uncovered,
            Self::RelationshipEstablished(_) => &[],
            Self::RelationshipEnded(end) => std::slice::from_ref(&end.relationship.payer_id),
        }
    }

    /// What it does, as the event of a revision, to one of the customer's subscriptions.
    pub fn effect_on(&self, revision: i64, subscription: &SubscriptionFacts) -> Option<Ending> {
        match self {
            Self::Withdrawn(withdrawal) => match withdrawal.effect_on(revision, subscription) {
                Some(WithdrawalOutcome::Cancelled) => Some(Ending::Cancelled),
                Some(WithdrawalOutcome::StillCovered | WithdrawalOutcome::NewerAnswer) | None => None,
            },
            Self::RelationshipEstablished(_) => None,
            Self::RelationshipEnded(end) => end.effect_on(revision, subscription),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gate::EvidenceKind;
    use super::super::subscription::State;
    use super::*;

    const CUSTOMER: Uuid = Uuid::from_u128(1);
    const PAYER: Uuid = Uuid::from_u128(2);
    const OTHER: Uuid = Uuid::from_u128(3);
    const REVISION: i64 = 10;

    #[test]
    fn an_event_concerns_its_customer_and_the_payers_that_it_leaves_without() {
        let withdrawn = Consequence::Withdrawn(Withdrawal {
            customer_id: CUSTOMER,
            kind: EvidenceKind::DirectSignature,
            acceptance_id: Uuid::from_u128(9),
            partner_id: None,
            uncovered: vec![PAYER, OTHER],
        });
        let relationship = Relationship { customer_id: CUSTOMER, payer_id: PAYER, reseller_id: None };
        let ended = RelationshipEnd { relationship, others_remain: false };
        let of = |payer_id, is_perpetual| SubscriptionFacts {
            payer_id,
            reseller_id: None,
            state: State::Active,
            auto_renew: true,
            is_perpetual,
            answer_revision: REVISION - 1,
            reseller_revision: 0,
        };
        let third = Uuid::from_u128(4);
        // The payers, and what happens to what they and a third one pay for, with and without a term.
        let (cancelled, not_renewed) = (Some(Ending::Cancelled), Some(Ending::NotRenewed));
        for (consequence, payers, effects) in [
            (withdrawn, &[PAYER, OTHER][..], [cancelled, cancelled, cancelled, None]),
            (Consequence::RelationshipEstablished(relationship), &[], [None; 4]),
            (Consequence::RelationshipEnded(ended), &[PAYER], [not_renewed, cancelled, None, None]),
        ] {
            assert_eq!(consequence.customer_id(), CUSTOMER);
            assert_eq!(consequence.payers(), payers);
            // After a beginning older answers still hold.
            assert_eq!(consequence.voids_answers(), !payers.is_empty(), "{consequence:?}");
            let found = [of(PAYER, false), of(PAYER, true), of(OTHER, false), of(third, false)]
                .map(|facts| consequence.effect_on(REVISION, &facts));
            assert_eq!(found, effects, "{consequence:?}");
        }
    }
}
