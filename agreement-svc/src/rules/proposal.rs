//! Proposals: a reseller hands what it knows of a customer's acceptance over to the provider, which decides (PRO-1).

use chrono::Duration;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::attestation::Details;
use super::party::Contact;
use super::{Refusal, Time};

/// How long a provider can decide.
pub const LIFETIME: Duration = Duration::days(30);

/// Proposals of a reseller to a provider for a customer that may wait for a decision at a time, with those that were withdrawn
/// within [`WITHDRAWN_COUNTS`].
pub const PROPOSALS_MAX: usize = 10;

/// How long a proposal counts after its withdrawal. Otherwise a program that proposes and withdraws in a loop would store
/// without end.
pub const WITHDRAWN_COUNTS: Duration = Duration::hours(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum ProposalState {
    Pending,
    Approved,
    Rejected,
    Expired,
    Withdrawn,
}

/// Why a provider rejects a proposal. A closed list: free text might name a person, and stands in the history for good.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RejectionReason {
    /// The evidence is missing or insufficient.
    Evidence,
    /// The person was not entitled to accept, or is the wrong one.
    Person,
    DateOrTemplate,
    /// The acceptance is attested already.
    NotNeeded,
    Other,
}

/// How it ended, once: as the provider decided, or because the reseller took it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    Approved { at: Time, attestation_id: Uuid },
    Rejected { at: Time, reason: RejectionReason },
    Withdrawn { at: Time },
}

impl Decided {
    fn state(self) -> ProposalState {
        match self {
            Self::Approved { .. } => ProposalState::Approved,
            Self::Rejected { .. } => ProposalState::Rejected,
            Self::Withdrawn { .. } => ProposalState::Withdrawn,
        }
    }
}

/// A proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub id: Uuid,
    pub reseller_id: Uuid,
    pub provider_id: Uuid,
    pub customer_id: Uuid,
    pub template_id: Uuid,
    /// Empty once the person was erased.
    pub contact: Contact,
    /// Makes the commitment to the contact in the history impossible to guess.
    pub contact_salt: String,
    pub agreed_at: Time,
    pub details: Details,
    pub proposed_at: Time,
    pub proposed_by: Uuid,
    pub expires_at: Time,
    pub decided: Option<Decided>,
    pub revision: i64,
}

impl Proposal {
    pub fn state(&self, now: Time) -> ProposalState {
        match self.decided {
            Some(decided) => decided.state(),
            None if self.expires_at <= now => ProposalState::Expired,
            None => ProposalState::Pending,
        }
    }

    /// The attestation that an approval made before; none where it is still to be made.
    pub fn approved_before(&self, now: Time) -> Result<Option<Uuid>, Refusal> {
        match (self.decided, self.state(now)) {
            (Some(Decided::Approved { attestation_id, .. }), _) => Ok(Some(attestation_id)),
            (_, ProposalState::Pending) if self.contact.is_empty() => Err(Refusal::field(
                "proposal_id",
                "names a proposal whose person was erased; the reseller has to propose another one",
            )),
            (_, ProposalState::Pending) => Ok(None),
            (_, state) => Err(self.not_pending(state)),
        }
    }

    /// Rejects or withdraws it; false when that was done before.
    pub fn end(&mut self, decided: Decided, now: Time) -> Result<bool, Refusal> {
        match self.state(now) {
            ProposalState::Pending => {
                self.decided = Some(decided);
                Ok(true)
            }
            state if state == decided.state() => Ok(false),
            state => Err(self.not_pending(state)),
        }
    }

    fn not_pending(&self, state: ProposalState) -> Refusal {
        Refusal::ProposalNotPending { proposal_id: self.id, state }
    }
}

/// Checks that one more proposal may wait for a decision, beside those that count.
pub fn check_one_more(counting: usize) -> Result<(), Refusal> {
    if counting < PROPOSALS_MAX { Ok(()) } else { Err(Refusal::TooManyProposals { max: PROPOSALS_MAX }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    fn proposal(decided: Option<Decided>, email: &str) -> Proposal {
        let id = Uuid::from_u128;
        Proposal {
            id: id(1),
            reseller_id: id(2),
            provider_id: id(3),
            customer_id: id(4),
            template_id: id(5),
            contact: Contact { email: email.into(), ..Contact::default() },
            contact_salt: String::new(),
            agreed_at: at(0),
            details: Details::default(),
            proposed_at: at(0),
            proposed_by: id(6),
            expires_at: at(100),
            decided,
            revision: 1,
        }
    }

    /// PRO-1, every state: what it is, and what approving, rejecting and withdrawing it does.
    #[test]
    fn a_proposal_is_decided_once_and_in_time() {
        use ProposalState::{Approved, Expired, Pending, Rejected, Withdrawn};
        let made = Uuid::from_u128(9);
        let approved = Some(Decided::Approved { at: at(10), attestation_id: made });
        let rejected = Some(Decided::Rejected { at: at(10), reason: RejectionReason::Person });
        let withdrawn = Some(Decided::Withdrawn { at: at(10) });
        for (decided, now, state, approves, rejects, withdraws) in [
            (None, 99, Pending, Some(None), Some(true), Some(true)),
            (None, 100, Expired, None, None, None),
            (approved, 99, Approved, Some(Some(made)), None, None),
            (approved, 100, Approved, Some(Some(made)), None, None),
            (rejected, 99, Rejected, None, Some(false), None),
            (rejected, 100, Rejected, None, Some(false), None),
            (withdrawn, 99, Withdrawn, None, None, Some(false)),
            (withdrawn, 100, Withdrawn, None, None, Some(false)),
        ] {
            let unchanged = proposal(decided, "t@contoso.example");
            let refused = || Refusal::ProposalNotPending { proposal_id: unchanged.id, state };
            assert_eq!(unchanged.state(at(now)), state);
            assert_eq!(unchanged.approved_before(at(now)), approves.ok_or_else(refused), "{state:?}");
            let rejection = Decided::Rejected { at: at(now), reason: RejectionReason::Other };
            for (end, ends) in [(rejection, rejects), (Decided::Withdrawn { at: at(now) }, withdraws)] {
                let mut proposal = unchanged.clone();
                assert_eq!(proposal.end(end, at(now)), ends.ok_or_else(refused), "{state:?} {end:?}");
                let now_decided = if ends == Some(true) { Some(end) } else { decided };
                assert_eq!(proposal.decided, now_decided, "{state:?} {end:?}");
            }
        }
        let erased = proposal(None, "").approved_before(at(99));
        assert!(matches!(erased, Err(Refusal::Fields(_))), "{erased:?}");
    }

    #[test]
    fn ten_proposals_may_wait() {
        assert_eq!(check_one_more(9), Ok(()));
        assert_eq!(check_one_more(10), Err(Refusal::TooManyProposals { max: 10 }));
    }
}
