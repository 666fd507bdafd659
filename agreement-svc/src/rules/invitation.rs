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
}

/// What was done with an invitation, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Accepted { at: Time },
    Revoked { at: Time },
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

/// Subject and text of the mail that a partner sends an invitation with. It contains no name, so that it
/// can be stored in a mailbox or an answer without becoming personal data.
pub fn mail_of(invitation: &Invitation, partner: &str, agreement: &str, url: &str) -> (String, String) {
    let until = invitation.expires_at.format("%Y-%m-%d %H:%M UTC");
    let (subject, ask) = match invitation.kind {
        InvitationKind::Agreement => (
            format!("{partner} asks you to accept the {agreement}"),
            format!(
                "{partner} asks your company to accept the {agreement}. Until it has, no orders can be placed for it."
            ),
        ),
        InvitationKind::RelationshipAndAgreement => (
            format!("{partner} invites your company"),
            format!(
                "{partner} would like to be your company's reseller. Accepting enters this relationship and accepts the {agreement}."
            ),
        ),
    };
    let text = format!(
        "{ask}\n\nA global administrator of your company can read and accept it here:\n\n{url}\n\n\
         The link is good until {until}. If you did not expect this, ask {partner} before you accept.\n"
    );
    (subject, text)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    fn invitation(kind: InvitationKind) -> Invitation {
        Invitation {
            id: Uuid::from_u128(1),
            kind,
            relationship: Relationship { payer_id: Uuid::from_u128(2), reseller_id: None },
            customer_id: None,
            template_id: Uuid::from_u128(3),
            recipient: None,
            contact_salt: String::new(),
            created_at: at(0),
            created_by: Uuid::from_u128(4),
            expires_at: at(0) + LIFETIME_DEFAULT,
            settled: None,
            revision: 1,
        }
    }

    /// INV-2.
    #[test]
    fn an_invitation_expires_in_the_future_and_within_ninety_days() {
        let now = at(1_000_000);
        let microsecond = Duration::microseconds(1);
        let (past, late) =
            (Err("must lie in the future".into()), Err("must be at most 90 days from now".into()));
        for (expires_at, expected) in [
            (now - microsecond, past.clone()),
            (now, past),
            (now + microsecond, Ok(())),
            (now + Duration::days(90), Ok(())),
            (now + Duration::days(90) + microsecond, late),
        ] {
            assert_eq!(check_lifetime(expires_at, now), expected, "{expires_at}");
        }
    }

    /// INV-2: at its time it is over.
    #[test]
    fn an_invitation_is_pending_until_it_expires() {
        let invitation = invitation(InvitationKind::Agreement);
        let microsecond = Duration::microseconds(1);
        assert_eq!(invitation.state(invitation.expires_at - microsecond), InvitationState::Pending);
        assert_eq!(invitation.state(invitation.expires_at), InvitationState::Expired);
    }

    #[test]
    fn the_mail_of_an_invitation_says_who_asks_for_what_and_until_when() {
        let written = |kind| {
            let url = "https://accept.example/#token";
            let (subject, text) = mail_of(&invitation(kind), "Northwind", "Customer Agreement", url);
            format!("{subject}\n\n{text}")
        };
        expect![[r#"
            Northwind asks you to accept the Customer Agreement

            Northwind asks your company to accept the Customer Agreement. Until it has, no orders can be placed for it.

            A global administrator of your company can read and accept it here:

            https://accept.example/#token

            The link is good until 1970-01-31 00:00 UTC. If you did not expect this, ask Northwind before you accept.
        "#]].assert_eq(&written(InvitationKind::Agreement));
        expect![[r#"
            Northwind invites your company

            Northwind would like to be your company's reseller. Accepting enters this relationship and accepts the Customer Agreement.

            A global administrator of your company can read and accept it here:

            https://accept.example/#token

            The link is good until 1970-01-31 00:00 UTC. If you did not expect this, ask Northwind before you accept.
        "#]].assert_eq(&written(InvitationKind::RelationshipAndAgreement));
    }
}
