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
    use chrono::{Datelike, TimeZone};
    use proptest::prelude::*;

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

    fn subscription(state: State) -> Subscription {
        Subscription {
            id: Uuid::from_u128(1),
            order_id: Uuid::from_u128(2),
            payer_id: Uuid::from_u128(3),
            reseller_id: None,
            customer_id: Uuid::from_u128(4),
            offer_id: "offer".into(),
            quantity: 5,
            friendly_name: String::new(),
            state,
            auto_renew: true,
            started_at: Time::from_timestamp(0, 0).unwrap(),
            term: Term::Year,
            term_number: 1,
            term_end: Time::from_timestamp(1000, 0),
            answer_revision: 1,
            version: 7,
        }
    }

    fn offer(kind: OfferKind) -> Offer {
        Offer {
            offer_id: "offer".into(),
            name: "Offer".into(),
            kind,
            quantity_min: 2,
            quantity_max: 300,
            term: Term::Year,
            billing_cycle: super::super::offer::BillingCycle::Monthly,
            auto_renews: true,
            countries: vec![],
            agreement_types: vec![],
        }
    }

    #[test]
    fn every_state_etag_time_and_count_gets_its_answer() {
        let licence = offer(OfferKind::License);
        let bounds = || {
            let problem = "must be 2 to 300".into();
            Err(Refusal::Fields(vec![BadField { field: "quantity".into(), problem }]))
        };
        let term_end = Time::from_timestamp(1000, 0).unwrap();
        // state, etag, now, quantity -> answer, in the order in which refusals come first
        for (state, etag, now, quantity, expected) in [
            (State::Active, "7", 0, 8, Ok(SeatChange::Gated)),
            (State::Active, "7", 0, 3, Ok(SeatChange::Gated)),
            (State::Active, "7", 0, 5, Ok(SeatChange::None)),
            (State::Active, "7", 0, 1, bounds()),
            (State::Active, "7", 0, 301, bounds()),
            (State::Active, "7", 0, u32::MAX, bounds()),
            (State::Active, "7", 999, 8, Ok(SeatChange::Gated)),
            (State::Active, "7", 1000, 8, Err(Refusal::TermEnded { term_end })),
            (State::Active, "7", 1000, 5, Err(Refusal::TermEnded { term_end })),
            (State::Active, "6", 1000, 8, Err(Refusal::StaleEtag)),
            (State::Suspended, "7", 0, 8, Err(Refusal::NotActive { state: State::Suspended })),
            (State::Cancelled, "7", 0, 5, Err(Refusal::NotActive { state: State::Cancelled })),
            (State::Expired, "7", 2000, 8, Err(Refusal::NotActive { state: State::Expired })),
            (State::Expired, "", 0, 8, Err(Refusal::StaleEtag)),
        ] {
            let now = Time::from_timestamp(now, 0).unwrap();
            let answer = subscription(state).check_seats(Some(&licence), etag, quantity, now);
            assert_eq!(answer, expected, "{state:?} {etag} {now} {quantity}");
        }
    }

    #[test]
    fn only_licences_that_are_still_offered_have_seats() {
        let check = |offer: Option<&Offer>| {
            subscription(State::Active).check_seats(offer, "7", 8, Time::from_timestamp(0, 0).unwrap())
        };
        assert_eq!(check(None), Err(Refusal::OfferWithdrawn { offer_id: "offer".into() }));
        for kind in [OfferKind::AzurePlan, OfferKind::ReservedInstance, OfferKind::Software] {
            assert_eq!(check(Some(&offer(kind))), Err(Refusal::NotALicence { kind }));
        }
    }

    proptest! {
        /// Each term ends after the one before, on the day of the month it began or on the last one.
        #[test]
        fn terms_follow_each_other_without_drifting(seconds in 0_i64..4_000_000_000, number in 1_u32..200) {
            let start = Time::from_timestamp(seconds, 0).unwrap();
            for term in [Term::Month, Term::Year, Term::ThreeYears] {
                let ends = [number, number + 1].map(|number| term_end(start, term, number).unwrap());
                prop_assert!(start < ends[0] && ends[0] < ends[1]);
                for end in ends {
                    let is_last_of_month = (end + chrono::Duration::days(1)).day() == 1;
                    prop_assert!(end.day() == start.day() || (end.day() < start.day() && is_last_of_month));
                    prop_assert_eq!(end.time(), start.time());
                }
            }
        }
    }
}
