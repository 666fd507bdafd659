//! Subscriptions: their states and terms, and what may happen to them.

use chrono::{Datelike, Months};
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

use super::gate::{Approval, Operation};
use super::offer::{Offer, OfferKind, Term};
use super::{BadField, Refusal, Time};

/// Where a subscription stands (SUB-1); the last two are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    Active,
    Suspended,
    Cancelled,
    Expired,
}

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

impl State {
    /// Whether nothing can follow.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Cancelled | Self::Expired)
    }
}

/// What happened to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(const_into_str, serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum ChangeKind {
    Created,
    SeatsChanged,
    Renewed,
    AutoRenewOn,
    AutoRenewOff,
    Suspended,
    Resumed,
    Cancelled,
    Expired,
    ResellerAssigned,
}

/// Why a subscription changed, and who did it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A user asked for it.
    Requested { tenant_id: Uuid, user_id: Uuid },
    /// SUB-3. Of a renewal it is kept whether the acceptance was outdated, where that is known (SUB-10).
    TermEnded { acceptance_outdated: Option<bool> },
    /// WD-2: the event that withdrew the acceptance.
    AgreementWithdrawn { revision: i64 },
    /// CUS-3: the event that ended the relationship.
    RelationshipEnded { revision: i64 },
}

/// One change, as it is kept (SUB-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub number: i64,
    pub kind: ChangeKind,
    pub changed_at: Time,
    pub cause: Cause,
    pub quantity_before: u32,
    pub quantity_after: u32,
    /// The current term afterwards.
    pub term_number: u32,
    /// The gate's yes, where it was asked.
    pub approval: Option<Approval>,
    /// The reseller on record afterwards, where the change assigned one.
    pub reseller_id: Option<Uuid>,
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

/// What a user may ask of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Seats(u32),
    Renew,
    AutoRenew(bool),
    Suspend,
    Resume,
    Cancel,
    /// SUB-6; none: there is no reseller on record any more.
    AssignReseller(Option<Uuid>),
}

/// One step of a subscription's life: what it is afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: ChangeKind,
    pub after: Subscription,
}

/// The plan of a command, before the gate is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// It is so already: a success without effect.
    Nothing,
    /// It can be done.
    Free(Step),
    /// It can be done on the gate's yes.
    Gated(Step, Operation),
}

impl Subscription {
    /// When its term has to be processed: never once it has ended.
    pub fn due_at(&self) -> Option<Time> {
        self.term_end.filter(|_| !self.state.is_final())
    }

    /// Plans a command (SUB-1 to SUB-4), given the etag that the caller read.
    pub fn plan(
        &self,
        command: Command,
        etag: &str,
        offer: Option<&Offer>,
        now: Time,
    ) -> Result<Planned, Refusal> {
        if self.version.to_string() != etag {
            return Err(Refusal::StaleEtag);
        }
        match (command, self.state) {
            (Command::Cancel, State::Cancelled) => return Ok(Planned::Nothing),
            (Command::Seats(_) | Command::Renew, state) if state != State::Active => {
                return Err(Refusal::NotActive { state });
            }
            (_, state) if state.is_final() => return Err(Refusal::Ended { state }),
            _ => {}
        }
        if let Some(term_end) = self.term_end.filter(|term_end| *term_end <= now) {
            return Err(Refusal::TermEnded { term_end });
        }
        let offer = offer.ok_or_else(|| Refusal::OfferWithdrawn { offer_id: self.offer_id.clone() });
        match command {
            Command::Seats(quantity) => self.plan_seats(quantity, offer?),
            Command::Renew => {
                let renewed = self.renewed().ok_or_else(|| self.not_renewable())?;
                offer?;
                Ok(Planned::Gated(renewed, Operation::ManualRenewal))
            }
            Command::AutoRenew(on) if self.auto_renew == on => Ok(Planned::Nothing),
            Command::AutoRenew(true) => {
                if self.term == Term::Perpetual || !offer?.auto_renews {
                    return Err(self.not_renewable());
                }
                let step = self.step(ChangeKind::AutoRenewOn, |s| s.auto_renew = true);
                Ok(Planned::Gated(step, Operation::ManualRenewal))
            }
            Command::AutoRenew(false) => {
                Ok(Planned::Free(self.step(ChangeKind::AutoRenewOff, |s| s.auto_renew = false)))
            }
            Command::Suspend if self.state == State::Suspended => Ok(Planned::Nothing),
            Command::Suspend => {
                Ok(Planned::Free(self.step(ChangeKind::Suspended, |s| s.state = State::Suspended)))
            }
            Command::Resume if self.state == State::Active => Ok(Planned::Nothing),
            Command::Resume => Ok(Planned::Free(self.step(ChangeKind::Resumed, |s| s.state = State::Active))),
            Command::AssignReseller(reseller) if self.reseller_id == reseller => Ok(Planned::Nothing),
            Command::AssignReseller(reseller) => {
                Ok(Planned::Free(self.step(ChangeKind::ResellerAssigned, |s| s.reseller_id = reseller)))
            }
            Command::Cancel => {
                Ok(Planned::Free(self.step(ChangeKind::Cancelled, |s| s.state = State::Cancelled)))
            }
        }
    }

    fn plan_seats(&self, quantity: u32, offer: &Offer) -> Result<Planned, Refusal> {
        if offer.kind != OfferKind::License {
            return Err(Refusal::NotALicence { kind: offer.kind });
        }
        if self.quantity == quantity {
            return Ok(Planned::Nothing);
        }
        if let Some(problem) = offer.quantity_problem(quantity) {
            return Err(Refusal::Fields(vec![BadField { field: "quantity".into(), problem }]));
        }
        let step = self.step(ChangeKind::SeatsChanged, |s| s.quantity = quantity);
        Ok(Planned::Gated(step, Operation::SeatChange))
    }

    /// Everything that its ended terms come to at `now`, in order (SUB-3): as many renewals as terms
    /// have ended where it renews by itself, else its end. The gate is not asked (GATE-1).
    pub fn end_terms(&self, now: Time) -> Vec<Step> {
        let mut steps: Vec<Step> = vec![];
        loop {
            let current = steps.last().map_or(self, |step| &step.after);
            if current.due_at().is_none_or(|due_at| now < due_at) {
                return steps;
            }
            let renewed = current.renewed().filter(|_| current.auto_renew);
            let expired = || current.step(ChangeKind::Expired, |s| s.state = State::Expired);
            steps.push(renewed.unwrap_or_else(expired));
        }
    }

    /// One term more, at the end of those it has; none for what lasts for good, nor beyond the
    /// calendar that times can be written in.
    fn renewed(&self) -> Option<Step> {
        const YEAR_MAX: i32 = 9999;
        let term_number = self.term_number.checked_add(1)?;
        let term_end = term_end(self.started_at, self.term, term_number)?;
        (term_end.year() <= YEAR_MAX).then(|| {
            self.step(ChangeKind::Renewed, |s| {
                s.term_number = term_number;
                s.term_end = Some(term_end);
            })
        })
    }

    fn not_renewable(&self) -> Refusal {
        Refusal::NotRenewable { offer_id: self.offer_id.clone() }
    }

    fn step(&self, kind: ChangeKind, change: impl FnOnce(&mut Self)) -> Step {
        let mut after = Self { version: self.version + 1, ..self.clone() };
        change(&mut after);
        Step { kind, after }
    }
}

impl Step {
    /// The step, resting on the gate's yes.
    #[must_use]
    pub fn with_approval(mut self, approval: &Approval) -> Self {
        self.after.answer_revision = approval.revision;
        self
    }

    /// What is kept of it.
    pub fn change(&self, quantity_before: u32, cause: Cause, approval: Option<Approval>, at: Time) -> Change {
        Change {
            number: self.after.version,
            kind: self.kind,
            changed_at: at,
            cause,
            quantity_before,
            quantity_after: self.after.quantity,
            term_number: self.after.term_number,
            approval,
            reseller_id: self.after.reseller_id.filter(|_| self.kind == ChangeKind::ResellerAssigned),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use chrono::{Datelike, TimeZone};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn terms_end_on_their_day_or_at_the_end_of_a_shorter_month() {
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

    pub(crate) fn subscription(state: State) -> Subscription {
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

    fn at(seconds: i64) -> Time {
        Time::from_timestamp(seconds, 0).unwrap()
    }

    /// The result of a command, in short: the kind of change and what the gate is asked about.
    fn outcome(
        planned: Result<Planned, Refusal>,
    ) -> Result<Option<(ChangeKind, Option<Operation>)>, Refusal> {
        planned.map(|planned| match planned {
            Planned::Nothing => None,
            Planned::Free(step) => Some((step.kind, None)),
            Planned::Gated(step, operation) => Some((step.kind, Some(operation))),
        })
    }

    /// SUB-2.
    #[test]
    fn every_number_of_seats_gets_its_answer() {
        let licence = offer(OfferKind::License);
        let bounds = || {
            let problem = "must be 2 to 300".into();
            Err(Refusal::Fields(vec![BadField { field: "quantity".into(), problem }]))
        };
        let changed = || Ok(Some((ChangeKind::SeatsChanged, Some(Operation::SeatChange))));
        for (quantity, expected) in [
            (8, changed()),
            (3, changed()),
            (5, Ok(None)),
            (1, bounds()),
            (0, bounds()),
            (301, bounds()),
            (u32::MAX, bounds()),
        ] {
            let planned =
                subscription(State::Active).plan(Command::Seats(quantity), "7", Some(&licence), at(0));
            assert_eq!(outcome(planned), expected, "{quantity}");
        }
    }

    #[test]
    fn only_licences_that_are_still_offered_have_seats() {
        let check =
            |offer: Option<&Offer>| subscription(State::Active).plan(Command::Seats(8), "7", offer, at(0));
        assert_eq!(check(None), Err(Refusal::OfferWithdrawn { offer_id: "offer".into() }));
        for kind in [OfferKind::AzurePlan, OfferKind::ReservedInstance, OfferKind::Software] {
            assert_eq!(check(Some(&offer(kind))), Err(Refusal::NotALicence { kind }));
        }
    }

    /// The commands by the states, and the plan of each.
    #[test]
    fn each_state_answers_each_command() {
        use ChangeKind::{
            AutoRenewOff, AutoRenewOn, Cancelled, Renewed, ResellerAssigned, Resumed, SeatsChanged, Suspended,
        };
        use Operation::{ManualRenewal, SeatChange};
        let not_active = |state| Err(Refusal::NotActive { state });
        let ended = |state| Err(Refusal::Ended { state });
        let free = |kind| Ok(Some((kind, None)));
        let gated = |kind, operation| Ok(Some((kind, Some(operation))));
        let all_ended = || [ended(State::Cancelled), ended(State::Expired)];
        let all_inactive = || [State::Suspended, State::Cancelled, State::Expired].map(not_active);
        // What it comes to when ACTIVE, SUSPENDED, CANCELLED, EXPIRED.
        let row = |active, suspended, [cancelled, expired]: [_; 2]| [active, suspended, cancelled, expired];
        let active_only = |active| {
            let [suspended, cancelled, expired] = all_inactive();
            [active, suspended, cancelled, expired]
        };
        for (command, expected) in [
            (Command::Seats(8), active_only(gated(SeatsChanged, SeatChange))),
            (Command::Seats(5), active_only(Ok(None))),
            (Command::Renew, active_only(gated(Renewed, ManualRenewal))),
            (Command::AutoRenew(true), row(Ok(None), Ok(None), all_ended())),
            (Command::AutoRenew(false), row(free(AutoRenewOff), free(AutoRenewOff), all_ended())),
            (Command::Suspend, row(free(Suspended), Ok(None), all_ended())),
            (Command::Resume, row(Ok(None), free(Resumed), all_ended())),
            (Command::Cancel, row(free(Cancelled), free(Cancelled), [Ok(None), ended(State::Expired)])),
            (Command::AssignReseller(None), row(Ok(None), Ok(None), all_ended())),
            (
                Command::AssignReseller(Some(Uuid::from_u128(5))),
                row(free(ResellerAssigned), free(ResellerAssigned), all_ended()),
            ),
        ] {
            let states = [State::Active, State::Suspended, State::Cancelled, State::Expired];
            for (state, expected) in states.into_iter().zip(expected) {
                let licence = offer(OfferKind::License);
                let plan = |etag: &str, now| subscription(state).plan(command, etag, Some(&licence), at(now));
                assert_eq!(outcome(plan("7", 999)), expected, "{command:?} when {state:?}");
                // A stale etag comes first, and what cannot change needs no term.
                assert_eq!(plan("6", 1000), Err(Refusal::StaleEtag));
                if !state.is_final() && expected != Err(Refusal::NotActive { state }) {
                    assert_eq!(
                        plan("7", 1000),
                        Err(Refusal::TermEnded { term_end: at(1000) }),
                        "{command:?}"
                    );
                }
            }
        }
        // Without automatic renewal, switching it on is gated, and off is done already.
        for state in [State::Active, State::Suspended] {
            let licence = offer(OfferKind::License);
            let without = Subscription { auto_renew: false, ..subscription(state) };
            let plan = |on| outcome(without.plan(Command::AutoRenew(on), "7", Some(&licence), at(0)));
            assert_eq!(plan(true), gated(AutoRenewOn, ManualRenewal));
            assert_eq!(plan(false), Ok(None));
        }
    }

    #[test]
    fn what_cannot_renew_is_not_renewed() {
        let licence = offer(OfferKind::License);
        let refused = Err(Refusal::NotRenewable { offer_id: "offer".into() });
        let perpetual = Subscription {
            term: Term::Perpetual,
            term_end: None,
            auto_renew: false,
            ..subscription(State::Active)
        };
        assert_eq!(perpetual.plan(Command::Renew, "7", Some(&licence), at(0)), refused);
        assert_eq!(perpetual.plan(Command::AutoRenew(true), "7", Some(&licence), at(0)), refused);
        assert_eq!(perpetual.due_at(), None);

        let by_hand = Offer { auto_renews: false, ..offer(OfferKind::ReservedInstance) };
        let without = Subscription { auto_renew: false, ..subscription(State::Active) };
        assert_eq!(without.plan(Command::AutoRenew(true), "7", Some(&by_hand), at(0)), refused);
        assert!(without.plan(Command::Renew, "7", Some(&by_hand), at(0)).is_ok());

        let gone = Err(Refusal::OfferWithdrawn { offer_id: "offer".into() });
        assert_eq!(without.plan(Command::Renew, "7", None, at(0)), gone);
        assert_eq!(without.plan(Command::AutoRenew(true), "7", None, at(0)), gone);
        for command in [Command::Suspend, Command::Cancel] {
            assert!(without.plan(command, "7", None, at(0)).is_ok(), "{command:?} needs no offer");
        }

        let last_year = chrono::Utc.with_ymd_and_hms(9998, 6, 1, 0, 0, 0).unwrap();
        let at_the_end = |term_number| Subscription {
            started_at: last_year,
            term_number,
            term_end: term_end(last_year, Term::Year, term_number),
            ..subscription(State::Active)
        };
        assert_eq!(at_the_end(1).plan(Command::Renew, "7", Some(&licence), last_year), refused);
        let end = at_the_end(1).term_end.unwrap();
        assert_eq!(at_the_end(1).end_terms(end).last().map(|step| step.kind), Some(ChangeKind::Expired));
    }

    #[test]
    fn ended_terms_are_renewed_one_by_one_or_end_it() {
        let day = |y, m, d| chrono::Utc.with_ymd_and_hms(y, m, d, 12, 0, 0).unwrap();
        let start = day(2024, 1, 31);
        let monthly = Subscription {
            started_at: start,
            term: Term::Month,
            term_end: term_end(start, Term::Month, 1),
            ..subscription(State::Active)
        };
        let ended = |of: &Subscription, now| -> Vec<_> {
            let steps = of.end_terms(now).into_iter();
            steps.map(|step| (step.kind, step.after.term_end.unwrap(), step.after.version)).collect()
        };
        use ChangeKind::{Expired, Renewed};
        assert_eq!(ended(&monthly, day(2024, 2, 29) - chrono::Duration::microseconds(1)), []);
        assert_eq!(ended(&monthly, day(2024, 2, 29)), [(Renewed, day(2024, 3, 31), 8)]);
        // Four months of downtime: each term once.
        let caught_up = [
            (Renewed, day(2024, 3, 31), 8),
            (Renewed, day(2024, 4, 30), 9),
            (Renewed, day(2024, 5, 31), 10),
            (Renewed, day(2024, 6, 30), 11),
        ];
        assert_eq!(ended(&monthly, day(2024, 6, 1)), caught_up);
        // Suspended ones renew, too, and stay suspended.
        let suspended = Subscription { state: State::Suspended, ..monthly.clone() };
        assert_eq!(ended(&suspended, day(2024, 6, 1)), caught_up);
        assert!(suspended.end_terms(day(2024, 6, 1)).iter().all(|step| step.after.state == State::Suspended));

        for state in [State::Active, State::Suspended] {
            let without = Subscription { auto_renew: false, state, ..monthly.clone() };
            assert_eq!(ended(&without, day(2024, 6, 1)), [(Expired, day(2024, 2, 29), 8)]);
        }
        for state in [State::Cancelled, State::Expired] {
            assert_eq!(Subscription { state, ..monthly.clone() }.end_terms(day(2030, 1, 1)), []);
        }
    }

    #[test]
    fn a_gated_step_rests_on_its_answer_and_a_free_one_on_the_last() {
        let licence = offer(OfferKind::License);
        let known = subscription(State::Active);
        let approval = Approval {
            decision: super::super::gate::Decision::Exempt,
            rule: super::super::gate::Rule::OutsidePublicCloud,
            evidence: None,
            revision: 42,
            evaluated_at: at(0),
        };
        let Ok(Planned::Gated(step, _)) = known.plan(Command::Seats(8), "7", Some(&licence), at(0)) else {
            panic!("seats are gated")
        };
        assert_eq!(step.with_approval(&approval).after.answer_revision, 42);
        let Ok(Planned::Free(step)) = known.plan(Command::Suspend, "7", None, at(0)) else {
            panic!("suspending is free")
        };
        assert_eq!(step.after.answer_revision, known.answer_revision);
        let ended = known.end_terms(at(1000));
        assert!(!ended.is_empty() && ended.iter().all(|s| s.after.answer_revision == known.answer_revision));
    }

    /// SUB-5, SUB-6.
    #[test]
    fn only_an_assignment_keeps_the_reseller_with_it() {
        let known = Subscription { reseller_id: Some(Uuid::from_u128(5)), ..subscription(State::Active) };
        for (kind, kept) in [(ChangeKind::ResellerAssigned, known.reseller_id), (ChangeKind::Resumed, None)] {
            let ended = Cause::TermEnded { acceptance_outdated: None };
            let change = known.step(kind, |_| ()).change(5, ended, None, at(0));
            assert_eq!((change.kind, change.reseller_id), (kind, kept));
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

        /// Processing once after a long pause has the same result as processing each day.
        #[test]
        fn catching_up_at_once_is_catching_up_step_by_step(
            seconds in 0_i64..2_000_000_000, days in 0_i64..1200, auto_renew: bool, stride in 1_i64..90,
        ) {
            let start = at(seconds);
            let bought = Subscription {
                started_at: start,
                term: Term::Month,
                term_end: term_end(start, Term::Month, 1),
                auto_renew,
                ..subscription(State::Active)
            };
            let end = start + chrono::Duration::days(days);
            let mut stepwise = vec![];
            let mut now = start;
            while now < end {
                now = (now + chrono::Duration::days(stride)).min(end);
                let current = stepwise.last().map_or(&bought, |step: &Step| &step.after).clone();
                stepwise.extend(current.end_terms(now));
            }
            prop_assert_eq!(bought.end_terms(end), stepwise);
        }
    }
}
