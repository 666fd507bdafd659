//! Withdrawals of acceptances (WD-2): what each does to the customer's subscriptions, and which partners see it in the
//! report (WD-4).

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

/// The outcome for a subscription that had not ended and that the withdrawn acceptance could cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum WithdrawalOutcome {
    Cancelled,
    /// Its payer has another acceptance to rest on.
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
    /// It has no term.
    pub is_perpetual: bool,
    /// The revision of the gate's answer that its last gated change rests on.
    pub answer_revision: i64,
    /// The revision up to which relationships were known when its reseller was assigned.
    pub reseller_revision: i64,
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
    pub fn parts(&self, outcomes: &[Outcomes]) -> BTreeMap<Uuid, Part> {
        let mut parts: BTreeMap<Uuid, Part> = BTreeMap::new();
        if let Some(partner) = self.partner_id {
            parts.entry(partner).or_default();
        }
        for partner in &self.uncovered {
            parts.entry(*partner).or_default().is_uncovered = true;
        }
        for counted in outcomes {
            for partner in [Some(counted.payer_id), counted.reseller_id].into_iter().flatten() {
                parts.entry(partner).or_default().counts.add(counted);
            }
        }
        parts
    }

    /// Why an open subscription of a payer stays, once everything that it cancels is cancelled; `None`: it could not cover
    /// it.
    pub fn why_stayed(&self, payer: Uuid) -> Option<WithdrawalOutcome> {
        let is_covered_by_it = self.partner_id.is_none_or(|partner| partner == payer);
        is_covered_by_it.then_some(match self.uncovered.contains(&payer) {
            true => WithdrawalOutcome::NewerAnswer,
            false => WithdrawalOutcome::StillCovered,
        })
    }
}

/// How many subscriptions of a payer, with a reseller on record, have an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcomes {
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
    pub outcome: WithdrawalOutcome,
    pub count: u32,
}

/// The subscriptions that a withdrawal could cover and that had not ended before, by what it did to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub cancelled: u32,
    pub stayed: u32,
    /// Of those that stayed: they rest on an answer given after the withdrawal.
    pub newer_answer: u32,
}

impl Counts {
    pub fn add(&mut self, counted: &Outcomes) {
        match counted.outcome {
            WithdrawalOutcome::Cancelled => self.cancelled += counted.count,
            WithdrawalOutcome::StillCovered => self.stayed += counted.count,
            WithdrawalOutcome::NewerAnswer => {
                self.stayed += counted.count;
                self.newer_answer += counted.count;
            }
        }
    }
}

/// A partner's part of a withdrawal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub is_uncovered: bool,
    pub counts: Counts,
}

/// What a withdrawal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub revision: i64,
    pub withdrawal: Withdrawal,
    pub withdrawn_at: Time,
    pub applied_at: Time,
    /// Of the subscriptions that the reader may see.
    pub counts: Counts,
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
            is_perpetual: false,
            answer_revision,
            reseller_revision: 0,
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

    /// WD-4, ROLE-6: a partner sees its own part of a report.
    #[test]
    fn a_report_has_a_part_for_each_partner_concerned() {
        let counted = |reseller_id, outcome, count| Outcomes { payer_id: PAYER, reseller_id, outcome, count };
        let parts = withdrawal(Some(PAYER), &[PAYER]).parts(&[
            counted(Some(RESELLER), WithdrawalOutcome::Cancelled, 3),
            counted(None, WithdrawalOutcome::NewerAnswer, 2),
            counted(Some(RESELLER), WithdrawalOutcome::StillCovered, 4),
        ]);
        let part = |is_uncovered, cancelled, stayed, newer_answer| Part {
            is_uncovered,
            counts: Counts { cancelled, stayed, newer_answer },
        };
        assert_eq!(parts, BTreeMap::from([(PAYER, part(true, 3, 6, 2)), (RESELLER, part(false, 3, 4, 0))]));
        let alone = withdrawal(Some(PAYER), &[OTHER]).parts(&[]);
        assert_eq!(alone, BTreeMap::from([(PAYER, part(false, 0, 0, 0)), (OTHER, part(true, 0, 0, 0))]));
    }

    /// What is still open after a withdrawal was applied stayed for the reason that the rule gives.
    #[test]
    fn what_is_open_afterwards_stayed_for_the_reason_of_the_rule() {
        for partner in [None, Some(PAYER), Some(OTHER)] {
            for uncovered in [vec![], vec![PAYER], vec![OTHER]] {
                let withdrawal = withdrawal(partner, &uncovered);
                let by_rule = withdrawal.effect_on(REVISION, &facts(State::Active, REVISION));
                assert_eq!(withdrawal.why_stayed(PAYER), by_rule, "{partner:?} {uncovered:?}");
            }
        }
    }
}
