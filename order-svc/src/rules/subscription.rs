//! Subscriptions: their states and terms, and what may happen to them.

use chrono::Months;
use uuid::Uuid;

use super::gate::Permit;
use super::offer::{Offer, OfferKind, Term};
use super::{BadField, Refusal, Time, names};

/// Where a subscription stands (SUB-1); the last two are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Active,
    Suspended,
    Cancelled,
    Expired,
}

names!(State {
    Active = "ACTIVE",
    Suspended = "SUSPENDED",
    Cancelled = "CANCELLED",
    Expired = "EXPIRED",
});

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub id: Uuid,
    pub order_id: Uuid,
    pub payer_id: Uuid,
    pub reseller_id: Option<Uuid>,
    pub customer_id: Uuid,
    pub offer_id: String,
    pub quantity: u32,
    pub friendly_name: String,
    pub state: State,
    pub auto_renew: bool,
    pub started_at: Time,
    pub term: Term,
    /// The current term, from 1.
    pub term_number: u32,
    /// When the current term ends; `None` for what lasts for good.
    pub term_end: Option<Time>,
    /// The revision of the gate's answer to the last gated change.
    pub answer_revision: i64,
    /// Rises by one with every change: its etag, and the number of its last change.
    pub version: i64,
}

/// What happened to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Created,
    SeatsChanged,
}

names!(ChangeKind { Created = "CREATED", SeatsChanged = "SEATS_CHANGED" });

/// One change, as it is kept (SUB-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub number: i64,
    pub kind: ChangeKind,
    pub changed_at: Time,
    pub actor_tenant: Uuid,
    pub actor: Uuid,
    pub quantity_before: u32,
    pub quantity_after: u32,
    pub permit: Permit,
}

/// When the n-th term ends: the start plus n terms, clamped to the end of the month (SUB-3).
pub fn term_end(started_at: Time, term: Term, number: u32) -> Option<Time> {
    let months = match term {
        Term::Month => 1,
        Term::Year => 12,
        Term::ThreeYears => 36,
        Term::Perpetual => return None,
    };
    started_at.checked_add_months(Months::new(number.saturating_mul(months)))
}

/// What a request for another number of seats comes to, before the gate is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeatChange {
    /// It has that many already: a success without effect.
    None,
    /// The gate must be asked.
    Gated,
}

impl Subscription {
    /// Whether the seats may be changed to `quantity` (SUB-2), given the etag that the caller read.
    pub fn check_seats(
        &self,
        offer: Option<&Offer>,
        etag: &str,
        quantity: u32,
        now: Time,
    ) -> Result<SeatChange, Refusal> {
        if self.version.to_string() != etag {
            return Err(Refusal::StaleEtag);
        }
        if self.state != State::Active {
            return Err(Refusal::NotActive { state: self.state });
        }
        if let Some(term_end) = self.term_end.filter(|term_end| *term_end <= now) {
            return Err(Refusal::TermEnded { term_end });
        }
        let offer = offer.ok_or_else(|| Refusal::OfferWithdrawn { offer_id: self.offer_id.clone() })?;
        if offer.kind != OfferKind::License {
            return Err(Refusal::NotALicence { kind: offer.kind });
        }
        if self.quantity == quantity {
            return Ok(SeatChange::None);
        }
        match offer.quantity_problem(quantity) {
            Some(problem) => Err(Refusal::Fields(vec![BadField { field: "quantity".into(), problem }])),
            None => Ok(SeatChange::Gated),
        }
    }

    /// The subscription with another number of seats, on the gate's yes.
    pub fn with_seats(&self, quantity: u32, permit: &Permit) -> Self {
        Self { quantity, answer_revision: permit.revision, version: self.version + 1, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    #[test]
    fn terms_end_on_the_day_they_began_or_at_the_end_of_a_shorter_month() {
        let day = |y, m, d| chrono::Utc.with_ymd_and_hms(y, m, d, 12, 0, 0).unwrap();
        let start = day(2023, 1, 31);
        assert_eq!(term_end(start, Term::Month, 1), Some(day(2023, 2, 28)));
        assert_eq!(term_end(start, Term::Month, 2), Some(day(2023, 3, 31)));
        assert_eq!(term_end(start, Term::Month, 13), Some(day(2024, 2, 29)));
        assert_eq!(term_end(day(2024, 2, 29), Term::Year, 1), Some(day(2025, 2, 28)));
        assert_eq!(term_end(day(2024, 2, 29), Term::Year, 4), Some(day(2028, 2, 29)));
        assert_eq!(term_end(start, Term::ThreeYears, 1), Some(day(2026, 1, 31)));
        assert_eq!(term_end(start, Term::Perpetual, 1), None);
    }
}
