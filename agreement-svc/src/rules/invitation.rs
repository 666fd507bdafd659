//! Invitations: a partner asks a customer to sign, and optionally to enter the relationship.

use chrono::Duration;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};
use uuid::Uuid;

use super::party::{Contact, Relationship};
use super::{Refusal, Time};

/// How long an invitation can be accepted when the partner does not say (INV-2).
pub const LIFETIME_DEFAULT: Duration = Duration::days(30);

/// The longest: a link that is forgotten in a mailbox must not open a relationship for years.
pub const LIFETIME_MAX: Duration = Duration::days(90);

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum InvitationKind {
    /// An existing customer is to sign.
    Agreement,
    /// The company that accepts enters the relationship and signs.
    RelationshipAndAgreement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, VariantArray)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum InvitationState {
    Pending,
    Accepted,
    Revoked,
    Expired,
    Declined,
}

/// Why a customer declines an invitation. A closed list: free text might name a person, and stands in the history for
/// good.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray,
)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DeclineReason {
    /// The company does not work with this partner.
    UnknownPartner,
    /// The company does not accept the agreement.
    Terms,
    /// The invitation came to the wrong company.
    WrongCompany,
    Other,
}

/// What was done with an invitation, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Accepted { at: Time },
    Revoked { at: Time },
    Declined { at: Time, reason: DeclineReason },
}

/// An invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    pub id: Uuid,
    pub kind: InvitationKind,
    /// The relationship it is made within, or offers.
    pub relationship: Relationship,
    /// The invited customer; `None` for an open invitation until it is accepted.
    pub customer_id: Option<Uuid>,
    pub template_id: Uuid,
    /// Of its texts.
    pub language: String,
    /// Whom the partner means to send it to.
    pub recipient: Option<Contact>,
    /// Makes the commitment to the recipient in the history impossible to guess.
    pub contact_salt: String,
    pub created_at: Time,
    pub created_by: Uuid,
    pub expires_at: Time,
    pub settled: Option<Settled>,
    pub revision: i64,
}

impl Invitation {
    pub fn state(&self, now: Time) -> InvitationState {
        match self.settled {
            Some(Settled::Accepted { .. }) => InvitationState::Accepted,
            Some(Settled::Revoked { .. }) => InvitationState::Revoked,
            Some(Settled::Declined { .. }) => InvitationState::Declined,
            None if self.expires_at <= now => InvitationState::Expired,
            None => InvitationState::Pending,
        }
    }

    /// Takes it back; false when it was before.
    pub fn revoke(&mut self, now: Time) -> Result<bool, Refusal> {
        match self.state(now) {
            InvitationState::Pending => {
                self.settled = Some(Settled::Revoked { at: now });
                Ok(true)
            }
            InvitationState::Revoked => Ok(false),
            state => Err(self.not_pending(state)),
        }
    }

    /// Accepts it for a customer; false when the same customer did before (INV-2).
    pub fn accept(&mut self, customer_id: Uuid, now: Time) -> Result<bool, Refusal> {
        match self.state(now) {
            InvitationState::Pending if self.is_for(customer_id) => {
                self.customer_id = Some(customer_id);
                self.settled = Some(Settled::Accepted { at: now });
                Ok(true)
            }
            InvitationState::Accepted if self.is_for(customer_id) => Ok(false),
            InvitationState::Pending => Err(Refusal::NotFound { resource: "invitation", id: self.id }),
            state => Err(self.not_pending(state)),
        }
    }

    /// Declines it for a tenant that has its link; false when it was declined before (INV-5). An open invitation stays
    /// without a customer, since the tenant may be none.
    pub fn decline(&mut self, tenant_id: Uuid, reason: DeclineReason, now: Time) -> Result<bool, Refusal> {
        match self.state(now) {
            InvitationState::Pending if self.is_for(tenant_id) => {
                self.settled = Some(Settled::Declined { at: now, reason });
                Ok(true)
            }
            InvitationState::Declined if self.is_for(tenant_id) => Ok(false),
            InvitationState::Pending => Err(Refusal::NotFound { resource: "invitation", id: self.id }),
            state => Err(self.not_pending(state)),
        }
    }

    /// Whether it is for this customer, or open to any.
    pub fn is_for(&self, customer_id: Uuid) -> bool {
        self.customer_id.is_none_or(|own| own == customer_id)
    }

    fn not_pending(&self, state: InvitationState) -> Refusal {
        Refusal::InvitationNotPending { invitation_id: self.id, state }
    }
}

/// Checks until when an invitation may be accepted, or says what is wrong.
pub fn check_lifetime(expires_at: Time, now: Time) -> Result<(), String> {
    if expires_at <= now {
        return Err("must lie in the future".into());
    }
    if expires_at > now + LIFETIME_MAX {
        return Err(format!("must be at most {} days from now", LIFETIME_MAX.num_days()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUSTOMER: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    /// It can be accepted until second 100.
    fn invitation(customer_id: Option<Uuid>, settled: Option<Settled>) -> Invitation {
        Invitation {
            id: Uuid::from_u128(9),
            kind: InvitationKind::Agreement,
            relationship: Relationship { payer_id: Uuid::from_u128(3), reseller_id: None },
            customer_id,
            template_id: Uuid::from_u128(4),
            language: String::new(),
            recipient: None,
            contact_salt: String::new(),
            created_at: at(0),
            created_by: Uuid::from_u128(5),
            expires_at: at(100),
            settled,
            revision: 1,
        }
    }

    /// INV-2 and INV-3, every state: what it is, and what accepting, declining and revoking it does.
    #[test]
    fn an_invitation_is_settled_once_and_in_time() {
        use InvitationState::{Accepted, Declined, Expired, Pending, Revoked};
        let (accepted, revoked) = (Settled::Accepted { at: at(10) }, Settled::Revoked { at: at(10) });
        let declined = Settled::Declined { at: at(10), reason: DeclineReason::Terms };
        for (settled, now, state) in [
            (None, 99, Pending),
            (None, 100, Expired),
            (Some(accepted), 99, Accepted),
            (Some(accepted), 100, Accepted),
            (Some(revoked), 99, Revoked),
            (Some(revoked), 100, Revoked),
            (Some(declined), 99, Declined),
            (Some(declined), 100, Declined),
        ] {
            let about = format!("{settled:?} at {now}");
            let of = || invitation(Some(CUSTOMER), settled);
            assert_eq!(of().state(at(now)), state, "{about}");
            let not_pending = || Refusal::InvitationNotPending { invitation_id: Uuid::from_u128(9), state };

            let mut to_revoke = of();
            let (expected, after) = match state {
                Pending => (Ok(true), Some(Settled::Revoked { at: at(now) })),
                Revoked => (Ok(false), settled),
                Accepted | Declined | Expired => (Err(not_pending()), settled),
            };
            assert_eq!((to_revoke.revoke(at(now)), to_revoke.settled), (expected, after), "{about}");

            let mut to_accept = of();
            let (expected, after) = match state {
                Pending => (Ok(true), Some(Settled::Accepted { at: at(now) })),
                Accepted => (Ok(false), settled),
                Declined | Revoked | Expired => (Err(not_pending()), settled),
            };
            let done = to_accept.accept(CUSTOMER, at(now));
            assert_eq!((done, to_accept.settled), (expected, after), "{about}");

            let mut to_decline = of();
            let reason = DeclineReason::Other;
            let (expected, after) = match state {
                Pending => (Ok(true), Some(Settled::Declined { at: at(now), reason })),
                Declined => (Ok(false), settled),
                Accepted | Revoked | Expired => (Err(not_pending()), settled),
            };
            let done = to_decline.decline(CUSTOMER, reason, at(now));
            assert_eq!((done, to_decline.settled), (expected, after), "{about}");
        }
    }

    #[test]
    fn an_invitation_is_for_one_customer_or_for_the_first_that_accepts() {
        let mut open = invitation(None, None);
        assert!(open.is_for(CUSTOMER) && open.is_for(OTHER));
        assert_eq!(open.accept(CUSTOMER, at(1)), Ok(true));
        assert_eq!(open.customer_id, Some(CUSTOMER));
        assert_eq!(open.accept(CUSTOMER, at(2)), Ok(false));
        let taken = open.accept(OTHER, at(2));
        assert!(matches!(taken, Err(Refusal::InvitationNotPending { .. })), "{taken:?}");

        let mut named = invitation(Some(CUSTOMER), None);
        assert!(!named.is_for(OTHER));
        // It does not learn that there is one.
        let unseen = Refusal::NotFound { resource: "invitation", id: Uuid::from_u128(9) };
        assert_eq!((named.accept(OTHER, at(1)), named.settled), (Err(unseen), None));
    }

    #[test]
    fn a_link_is_good_for_a_while_and_not_for_years() {
        let longest = at(0) + LIFETIME_MAX;
        let tick = Duration::microseconds(1);
        for (expires_at, is_right) in [
            (at(0) - tick, false),
            (at(0), false),
            (at(0) + tick, true),
            (longest, true),
            (longest + tick, false),
        ] {
            assert_eq!(check_lifetime(expires_at, at(0)).is_ok(), is_right, "{expires_at}");
        }
        assert_eq!(LIFETIME_MAX.num_days(), 90);
    }
}
