//! Withdrawals of acceptances (WD-2) and ends of relationships (CUS-3): what each does to the customer's
//! subscriptions, and which partners see it in the report (WD-4).

use std::collections::BTreeMap;

use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

use super::Time;
use super::gate::EvidenceKind;
use super::subscription::State;

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

/// The relationship of a payer and a customer ended. What the payer pays for does not renew by itself any more, and so
/// runs out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationshipEnd {
    pub customer_id: Uuid,
    pub payer_id: Uuid,
    /// The reseller that was on the relationship.
    pub reseller_id: Option<Uuid>,
    /// They have another relationship; then only what has this reseller on record is concerned.
    pub others_remain: bool,
}

/// The outcome for a subscription that had not ended and that the withdrawn acceptance could cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum WithdrawalOutcome {
    Cancelled,
    /// Its payer has another acceptance to rest on, or its relationship had ended before.
    StillCovered,
    /// It rests on an answer given after the withdrawal.
    NewerAnswer,
}

/// What the rules below look at of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionFacts {
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
    pub state: State,
    pub auto_renew: bool,
    /// The revision of the gate's answer that its last gated change rests on.
    pub answer_revision: i64,
}

impl Withdrawal {
    /// WD-2: what the withdrawal of a revision does to one of the customer's subscriptions. `None`: it has ended, or
    /// the withdrawn acceptance could not cover it.
    pub fn effect_on(&self, revision: i64, subscription: &SubscriptionFacts) -> Option<WithdrawalOutcome> {
        let is_uncovered = self.uncovered.contains(&subscription.payer_id);
        let is_covered_by_it = self.partner_id.is_none_or(|partner| partner == subscription.payer_id);
        if subscription.state.is_final() {
            None
        } else if is_uncovered && subscription.answer_revision < revision {
            Some(WithdrawalOutcome::Cancelled)
        } else if !is_covered_by_it {
            None
        } else if is_uncovered {
            Some(WithdrawalOutcome::NewerAnswer)
        } else {
            Some(WithdrawalOutcome::StillCovered)
        }
    }

    /// What each partner may see of the withdrawal: the one that withdrew, those left without acceptance, and the
    /// payers and resellers of the subscriptions.
    pub fn parts(&self, effects: &[Effect]) -> BTreeMap<Uuid, Part> {
        let mut parts: BTreeMap<Uuid, Part> = BTreeMap::new();
        if let Some(partner) = self.partner_id {
            parts.entry(partner).or_default();
        }
        for partner in &self.uncovered {
            parts.entry(*partner).or_default().is_uncovered = true;
        }
        for effect in effects {
            for partner in [Some(effect.payer_id), effect.reseller_id].into_iter().flatten() {
                let part = parts.entry(partner).or_default();
                match effect.outcome {
                    WithdrawalOutcome::Cancelled => part.cancelled += 1,
                    WithdrawalOutcome::StillCovered | WithdrawalOutcome::NewerAnswer => part.stayed += 1,
                }
            }
        }
        parts
    }
}

impl RelationshipEnd {
    /// CUS-3: whether the end of a relationship, of a revision, switches off the automatic renewal of one of the
    /// customer's subscriptions.
    pub fn stops_renewal(&self, revision: i64, subscription: &SubscriptionFacts) -> bool {
        subscription.payer_id == self.payer_id
            && (!self.others_remain || subscription.reseller_id == self.reseller_id)
            && !subscription.state.is_final()
            && subscription.auto_renew
            && subscription.answer_revision < revision
    }
}

/// A partner's part of a withdrawal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub is_uncovered: bool,
    pub cancelled: u32,
    pub stayed: u32,
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

/// The outcome for one subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effect {
    pub subscription_id: Uuid,
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
    pub outcome: WithdrawalOutcome,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYER: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);
    const RESELLER: Uuid = Uuid::from_u128(3);
    const REVISION: i64 = 10;
    const STATES: [State; 4] = [State::Active, State::Suspended, State::Cancelled, State::Expired];

    fn facts(state: State, answer_revision: i64) -> SubscriptionFacts {
        SubscriptionFacts {
            payer_id: PAYER,
            reseller_id: Some(RESELLER),
            state,
            auto_renew: true,
            answer_revision,
        }
    }

    fn withdrawal(partner_id: Option<Uuid>, uncovered: &[Uuid]) -> Withdrawal {
        Withdrawal {
            customer_id: Uuid::from_u128(9),
            kind: EvidenceKind::Attestation,
            acceptance_id: Uuid::from_u128(8),
            partner_id,
            uncovered: uncovered.to_vec(),
        }
    }

    /// WD-2, every case: who withdrew, whom that left uncovered, whether the answer is older, in each state.
    #[test]
    fn a_withdrawal_cancels_what_rests_on_it() {
        use WithdrawalOutcome::{Cancelled, NewerAnswer, StillCovered};
        #[rustfmt::skip]
        let cases = [
            // withdrawn by, left uncovered -> with an older answer, with one as new as the withdrawal or newer
            (None,        vec![],             Some(StillCovered), Some(StillCovered)),
            (None,        vec![PAYER],        Some(Cancelled),    Some(NewerAnswer)),
            (None,        vec![OTHER],        Some(StillCovered), Some(StillCovered)),
            (None,        vec![OTHER, PAYER], Some(Cancelled),    Some(NewerAnswer)),
            (Some(PAYER), vec![],             Some(StillCovered), Some(StillCovered)),
            (Some(PAYER), vec![PAYER],        Some(Cancelled),    Some(NewerAnswer)),
            (Some(PAYER), vec![OTHER],        Some(StillCovered), Some(StillCovered)),
            (Some(OTHER), vec![],             None,               None),
            (Some(OTHER), vec![OTHER],        None,               None),
            // The history names a payer that the attestation could not cover: cancelling is the safe reading.
            (Some(OTHER), vec![PAYER],        Some(Cancelled),    None),
        ];
        for (partner, uncovered, older, newer) in cases {
            let withdrawal = withdrawal(partner, &uncovered);
            for state in STATES {
                for (answer_revision, expected) in
                    [(0, older), (REVISION - 1, older), (REVISION, newer), (REVISION + 1, newer)]
                {
                    let expected = expected.filter(|_| matches!(state, State::Active | State::Suspended));
                    let effect = withdrawal.effect_on(REVISION, &facts(state, answer_revision));
                    assert_eq!(effect, expected, "{partner:?} {uncovered:?} {state:?} {answer_revision}");
                }
            }
        }
    }

    /// CUS-3, every case.
    #[test]
    fn the_end_of_a_relationship_stops_renewal() {
        // payer, reseller of the relationship, other relationships remain -> whether the subscription is concerned
        for (payer_id, reseller_id, others_remain, is_concerned) in [
            (PAYER, None, false, true),
            (PAYER, Some(RESELLER), false, true),
            (PAYER, Some(OTHER), false, true),
            (PAYER, None, true, false),
            (PAYER, Some(RESELLER), true, true),
            (PAYER, Some(OTHER), true, false),
            (OTHER, None, false, false),
            (OTHER, Some(RESELLER), true, false),
        ] {
            let end =
                RelationshipEnd { customer_id: Uuid::from_u128(9), payer_id, reseller_id, others_remain };
            for state in STATES {
                for auto_renew in [true, false] {
                    for answer_revision in [0, REVISION - 1, REVISION, REVISION + 1] {
                        let of = SubscriptionFacts { auto_renew, ..facts(state, answer_revision) };
                        let is_open = matches!(state, State::Active | State::Suspended);
                        let expected = is_concerned && is_open && auto_renew && answer_revision < REVISION;
                        assert_eq!(end.stops_renewal(REVISION, &of), expected, "{end:?} {of:?}");
                    }
                }
            }
        }
    }

    /// WD-4, ROLE-6: a partner sees its own part of a report.
    #[test]
    fn a_report_has_a_part_for_each_partner_concerned() {
        let effect = |payer_id, reseller_id, outcome| Effect {
            subscription_id: Uuid::from_u128(7),
            payer_id,
            reseller_id,
            outcome,
        };
        let parts = withdrawal(Some(PAYER), &[PAYER]).parts(&[
            effect(PAYER, Some(RESELLER), WithdrawalOutcome::Cancelled),
            effect(PAYER, None, WithdrawalOutcome::NewerAnswer),
        ]);
        let part = |is_uncovered, cancelled, stayed| Part { is_uncovered, cancelled, stayed };
        assert_eq!(parts, BTreeMap::from([(PAYER, part(true, 1, 1)), (RESELLER, part(false, 1, 0))]));
        let alone = withdrawal(Some(PAYER), &[OTHER]).parts(&[]);
        assert_eq!(alone, BTreeMap::from([(PAYER, part(false, 0, 0)), (OTHER, part(true, 0, 0))]));
    }
}
