//! Previews (WD-6): what a withdrawal, or the end of a relationship, would do now, by the rules that then do it.

use uuid::Uuid;

use super::history::Consequence;
use super::relationship::Ending;
use super::withdrawal::{Outcomes, SubscriptionFacts};

/// What would happen to a subscription that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviewOutcome {
    Cancelled,
    /// It would run to the end of its term.
    NotRenewed,
    /// Its payer has another acceptance to rest on.
    StillCovered,
    /// The end of the relationship would change nothing about it.
    Unaffected,
}

/// How many subscriptions of the customer's would have each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreviewCounts {
    pub cancelled: u32,
    pub not_renewed: u32,
    pub stayed: u32,
}

/// Subscriptions that the rules see alike, and how many they are.
pub type Group = (SubscriptionFacts, u32);

/// What would happen now comes after every answer of the gate.
const NEXT: i64 = i64::MAX;

impl Consequence {
    /// What it would do now to an open subscription of its customer and its payer.
    pub fn preview(&self, subscription: &SubscriptionFacts) -> PreviewOutcome {
        match (self.effect_on(NEXT, subscription), self) {
            (Some(Ending::Cancelled), _) => PreviewOutcome::Cancelled,
            (Some(Ending::NotRenewed), _) => PreviewOutcome::NotRenewed,
            (None, Self::Withdrawn(_)) => PreviewOutcome::StillCovered,
            (None, Self::RelationshipEstablished(_) | Self::RelationshipEnded(_)) => {
                PreviewOutcome::Unaffected
            }
        }
    }

    /// The payer whose subscriptions it is about; `None`: those of all payers.
    pub fn only_payer(&self) -> Option<Uuid> {
        match self {
            Self::Withdrawn(withdrawal) => withdrawal.partner_id,
            Self::RelationshipEstablished(of) => Some(of.payer_id),
            Self::RelationshipEnded(end) => Some(end.relationship.payer_id),
        }
    }

    /// Whether a partner may see a preview: it would see the report of the withdrawal (WD-4), or it could end the
    /// relationship. `open` are the subscriptions that it is about.
    pub fn is_for(&self, partner: Uuid, open: &[Group]) -> bool {
        let of_relationship = match self {
            Self::Withdrawn(withdrawal) => {
                let outcome = |(facts, count): &Group| {
                    let outcome = withdrawal.effect_on(NEXT, facts)?;
                    let SubscriptionFacts { payer_id, reseller_id, .. } = *facts;
                    Some(Outcomes { payer_id, reseller_id, outcome, count: *count })
                };
                let outcomes: Vec<Outcomes> = open.iter().filter_map(outcome).collect();
                return withdrawal.parts(&outcomes).contains_key(&partner);
            }
            Self::RelationshipEstablished(relationship) => relationship,
            Self::RelationshipEnded(end) => &end.relationship,
        };
        of_relationship.payer_id == partner || of_relationship.reseller_id == Some(partner)
    }

    /// Counts the subscriptions, of a partner only those that it pays for or is the reseller on record of.
    pub fn preview_counts(&self, partner: Option<Uuid>, open: &[Group]) -> PreviewCounts {
        let mut counts = PreviewCounts::default();
        for (facts, count) in open {
            if partner.is_some_and(|id| id != facts.payer_id && Some(id) != facts.reseller_id) {
                continue;
            }
            match self.preview(facts) {
                PreviewOutcome::Cancelled => counts.cancelled += count,
                PreviewOutcome::NotRenewed => counts.not_renewed += count,
                PreviewOutcome::StillCovered | PreviewOutcome::Unaffected => counts.stayed += count,
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::super::gate::EvidenceKind;
    use super::super::relationship::{Relationship, RelationshipEnd};
    use super::super::subscription::State;
    use super::super::withdrawal::Withdrawal;
    use super::*;

    const PAYER: Uuid = Uuid::from_u128(1);
    const RESELLER: Uuid = Uuid::from_u128(2);
    const OTHER: Uuid = Uuid::from_u128(3);

    fn facts(reseller_id: Option<Uuid>, auto_renew: bool, is_perpetual: bool) -> SubscriptionFacts {
        SubscriptionFacts {
            payer_id: PAYER,
            reseller_id,
            state: State::Active,
            auto_renew,
            is_perpetual,
            answer_revision: 7,
            reseller_revision: 7,
        }
    }

    fn withdrawn(partner_id: Option<Uuid>, uncovered: &[Uuid]) -> Consequence {
        Consequence::Withdrawn(Withdrawal {
            customer_id: OTHER,
            kind: EvidenceKind::Attestation,
            acceptance_id: OTHER,
            partner_id,
            uncovered: uncovered.to_vec(),
        })
    }

    fn ended(reseller_id: Option<Uuid>, others_remain: bool) -> Consequence {
        let relationship = Relationship { customer_id: OTHER, payer_id: PAYER, reseller_id };
        Consequence::RelationshipEnded(RelationshipEnd { relationship, others_remain })
    }

    /// WD-6. Each is what the rule does to it once it happens.
    #[test]
    fn a_preview_says_what_the_rule_would_do() {
        use PreviewOutcome::{Cancelled, NotRenewed, StillCovered, Unaffected};
        let (renewing, expiring) = (facts(None, true, false), facts(None, false, false));
        let (perpetual, through) = (facts(None, false, true), facts(Some(RESELLER), true, false));
        for (consequence, expected) in [
            (withdrawn(Some(PAYER), &[PAYER]), [Cancelled; 4]),
            (withdrawn(Some(PAYER), &[]), [StillCovered; 4]),
            (withdrawn(None, &[OTHER]), [StillCovered; 4]),
            (ended(None, false), [NotRenewed, Unaffected, Cancelled, NotRenewed]),
            (ended(None, true), [NotRenewed, Unaffected, Unaffected, Unaffected]),
            (ended(Some(RESELLER), true), [Unaffected, Unaffected, Unaffected, NotRenewed]),
        ] {
            let found = [renewing, expiring, perpetual, through].map(|facts| consequence.preview(&facts));
            assert_eq!(found, expected, "{consequence:?}");
        }
    }

    /// WD-4, ROLE-6.
    #[test]
    fn a_partner_sees_a_preview_of_its_own_part() {
        let open = [(facts(Some(RESELLER), true, false), 2), (facts(None, true, false), 3)];
        let third = Uuid::from_u128(4);
        for (consequence, seen_by) in [
            (withdrawn(Some(PAYER), &[PAYER]), [true, true, false, false]),
            (withdrawn(None, &[]), [true, true, false, false]),
            (withdrawn(None, &[OTHER]), [true, true, true, false]),
            (ended(None, false), [true, false, false, false]),
            (ended(Some(RESELLER), false), [true, true, false, false]),
        ] {
            let found = [PAYER, RESELLER, OTHER, third].map(|partner| consequence.is_for(partner, &open));
            assert_eq!(found, seen_by, "{consequence:?}");
        }
        // Also without any subscription.
        assert!(withdrawn(Some(PAYER), &[]).is_for(PAYER, &[]));
        assert!(!withdrawn(None, &[]).is_for(PAYER, &[]));

        let cancelled = |cancelled| PreviewCounts { cancelled, ..PreviewCounts::default() };
        let withdrawn = withdrawn(Some(PAYER), &[PAYER]);
        for (partner, expected) in [(None, 5), (Some(PAYER), 5), (Some(RESELLER), 2), (Some(OTHER), 0)] {
            assert_eq!(withdrawn.preview_counts(partner, &open), cancelled(expected), "{partner:?}");
        }
        let counts = ended(Some(RESELLER), true).preview_counts(None, &open);
        assert_eq!(counts, PreviewCounts { cancelled: 0, not_renewed: 2, stayed: 3 });
    }
}
