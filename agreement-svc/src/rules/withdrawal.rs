//! Withdrawals: taking an acceptance back, and whom that leaves without any.

use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::{Refusal, Time};

/// Why an acceptance is taken back. A closed list: free text might name a person, and stands in the
/// history for good.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WithdrawalReason {
    NoLongerAccepts,
    RecordedInError,
    NotEntitled,
    Other,
}

/// An acceptance that was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withdrawal {
    pub at: Time,
    pub reason: WithdrawalReason,
    pub by: Uuid,
}

/// Whom an acceptance counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covers {
    /// An attestation: the partner that made it (ATT-7).
    Partner(Uuid),
    /// A signature: every partner (DIR-2).
    Everyone,
}

impl Covers {
    fn covers(self, partner: Uuid) -> bool {
        match self {
            Self::Everyone => true,
            Self::Partner(own) => own == partner,
        }
    }
}

/// Whether a withdrawal changes anything (WD-1): twice is once, and what was replaced cannot be
/// withdrawn. `current` is the record that replaced it, as far as that is known.
pub fn check_withdrawal(
    acceptance_id: Uuid,
    superseded_at: Option<Time>,
    withdrawn: Option<Withdrawal>,
    current: Option<Uuid>,
) -> Result<bool, Refusal> {
    match (withdrawn, superseded_at) {
        (Some(_), _) => Ok(false),
        (None, Some(_)) => Err(Refusal::AcceptanceSuperseded { acceptance_id, current_id: current }),
        (None, None) => Ok(true),
    }
}

/// The partners with a relationship, active or ended, that lose their last acceptance of any type and version with
/// `withdrawn` (WD-1): what they still pay for rests on nothing then. Another partner's lack of acceptance is none of an attestation's doing
/// (ATT-7).
pub fn uncovered(withdrawn: Covers, remaining: &[Covers], partners: &[Uuid]) -> Vec<Uuid> {
    let is_left_bare = |partner: &&Uuid| {
        withdrawn.covers(**partner) && !remaining.iter().any(|other| other.covers(**partner))
    };
    partners.iter().filter(is_left_bare).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// WD-1.
    #[test]
    fn an_acceptance_is_withdrawn_once_and_while_it_is_current() {
        let [id, current] = [1, 2].map(Uuid::from_u128);
        let at = Time::UNIX_EPOCH;
        let withdrawn = Some(Withdrawal { at, reason: WithdrawalReason::Other, by: id });
        let superseded = Err(Refusal::AcceptanceSuperseded { acceptance_id: id, current_id: Some(current) });
        for (withdrawn, superseded_at, expected) in [
            (None, None, Ok(true)),
            (withdrawn, None, Ok(false)),
            (withdrawn, Some(at), Ok(false)),
            (None, Some(at), superseded),
        ] {
            let found = check_withdrawal(id, superseded_at, withdrawn, Some(current));
            assert_eq!(found, expected, "{withdrawn:?} {superseded_at:?}");
        }
    }

    #[test]
    fn a_withdrawal_uncovers_partners_without_another_acceptance() {
        let (a, b, c) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let of = Covers::Partner;
        // withdrawn, remaining, active -> uncovered
        for (withdrawn, remaining, active, expected) in [
            (of(a), vec![], vec![a, b], vec![a]),
            (of(a), vec![of(a)], vec![a, b], vec![]),
            (of(a), vec![of(b)], vec![a, b], vec![a]),
            (of(a), vec![Covers::Everyone], vec![a, b], vec![]),
            (of(a), vec![], vec![b], vec![]),
            (Covers::Everyone, vec![], vec![a, b, c], vec![a, b, c]),
            (Covers::Everyone, vec![of(b)], vec![a, b, c], vec![a, c]),
            (Covers::Everyone, vec![Covers::Everyone], vec![a, b], vec![]),
            (Covers::Everyone, vec![], vec![], vec![]),
        ] {
            let bare = uncovered(withdrawn, &remaining, &active);
            assert_eq!(bare, expected, "{withdrawn:?} {remaining:?} {active:?}");
        }
    }
}
