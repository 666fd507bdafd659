//! Processes terms that have ended (SUB-3): renews what renews by itself, ungated (GATE-1), and expires
//! the rest.
//!
//! A relationship that ended, or an acceptance that was withdrawn, before the term's end comes first
//! (CUS-3, WD-2). So a term is processed only once agreement-svc's history is known here beyond its
//! end. Nothing is lost by waiting: until then the subscription cannot be changed.
//!
//! With a renewal it is kept whether the customer's acceptance was outdated (SUB-10). The gate is asked for a page at a time; where
//! it does not answer, terms are processed without.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chassis::auth::{Caller, Channel};
use chassis::backoff;
use chassis::clock::{Clock, Time, new_id};
use chassis::database::{Connection, Database, Error};
use chassis::telemetry::trace::background_span;
use futures_util::{StreamExt, TryStreamExt, stream};
use proto::identity::TenantKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Followed;
use crate::agreements::AgreementClient;
use crate::rules::offer::Catalogue;
use crate::rules::subscription::{Cause, ChangeKind, Step, Subscription};
use crate::store::subscription::{Due, due_list, due_of, renewing_of, subscription_due};
use crate::store::update::{Update, subscriptions_change};

/// How often to look for ended terms. With the history, which is known a second or two late, a renewal is
/// about three seconds late at most while all is well.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Waits besides, before jitter, while everything fails: the first, and the longest. A single damaged
/// row must not make the others late by much.
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Subscriptions looked up at a time. After so many it is found out anew whether the database answers.
const PAGE_SIZE: usize = 64;

/// Transactions at a time: half of the connections that PostgreSQL is given, so that calls go on. SQLite
/// commits them together.
const AT_A_TIME: usize = 4;

/// The outcome of an ended term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Settled,
    /// There was nothing left to do.
    NotDue,
    /// Another replica, or a change, was first.
    LostRace,
    /// The row is damaged.
    Failed,
}

/// Processes ended terms. Clones share all of it.
#[derive(Clone)]
pub(crate) struct Renewals {
    pub database: Database,
    pub clock: Clock,
    pub agreements: AgreementClient,
    pub catalogue: Arc<Catalogue>,
}

/// Processes ended terms until `stop` is cancelled, as far as agreement-svc's history has been `followed`.
pub(crate) async fn run(renewals: Renewals, followed: watch::Receiver<Followed>, stop: CancellationToken) {
    let mut failures = 0;
    loop {
        // Taken before anything is read: what was applied until then is in what is read.
        let known_until = followed.borrow().until;
        let is_futile = match known_until {
            None => false,
            Some(known_until) => renewals.end_all_terms(known_until.min(renewals.clock.now()), &stop).await,
        };
        failures = if is_futile { failures + 1 } else { 0 };
        let pause = match failures {
            0 => POLL_INTERVAL,
            failures => POLL_INTERVAL + backoff::wait(failures - 1, RETRY_BASE, RETRY_MAX),
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Renewals {
    /// Processes every term that has ended until then, whatever happens to some of them; true when there was
    /// nothing but failures.
    async fn end_all_terms(&self, until: Time, stop: &CancellationToken) -> bool {
        let (mut failed, mut ended) = (0, 0);
        let mut after: Option<Due> = None;
        let mut does_gate_answer = true;
        loop {
            let list =
                move |connection: &mut Connection| due_list(connection, until, after.as_ref(), PAGE_SIZE);
            let page: Vec<Due> = match self.database.read(list).await {
                Ok(page) => page,
                Err(error @ Error::Unavailable(_)) => {
                    tracing::warn!(%error, "ended terms cannot be read; trying again");
                    return true;
                }
                Err(error) => {
                    tracing::error!(%error, "ended terms cannot be read");
                    return true;
                }
            };
            after = page.last().cloned();
            let ids: Vec<String> = page.into_iter().map(|(_, id)| id).collect();
            let outdated = match does_gate_answer {
                true => self.outdated(&ids).await,
                false => None,
            };
            does_gate_answer = outdated.is_some();
            let outdated = outdated.unwrap_or_default();
            let outcomes = stream::iter(ids)
                .take_while(|_| std::future::ready(!stop.is_cancelled()))
                .map(|id| self.end_terms_once(outdated.get(&id).copied(), id, until))
                .buffer_unordered(AT_A_TIME);
            let outcomes: Result<Vec<Outcome>, Error> = outcomes.try_collect().await;
            let Ok(outcomes) = outcomes else { return true };
            failed += outcomes.iter().filter(|outcome| **outcome == Outcome::Failed).count();
            ended += outcomes.iter().filter(|outcome| **outcome == Outcome::Settled).count();
            if after.is_none() || stop.is_cancelled() {
                return failed > 0 && ended == 0;
            }
        }
    }

    /// Processes the terms of one customer that have ended until then.
    ///
    /// # Errors
    /// The database is unavailable. Damaged rows are skipped.
    pub(super) async fn end_terms_of(&self, customer: Uuid, until: Time) -> Result<(), Error> {
        let list = move |connection: &mut Connection| due_of(connection, customer, until);
        let ids: Vec<String> = self.database.list(list).await?;
        // The gate is not asked: the history would wait for it, and it knows already of what comes after these terms.
        let end = async |id: String| {
            while self.end_terms_once(None, id.clone(), until).await? == Outcome::LostRace {}
            Ok(())
        };
        // There may be as many as a payer may have, and the history waits for them. Other terms are processed at the same time.
        stream::iter(ids).map(end).buffer_unordered(AT_A_TIME / 2).try_collect().await
    }

    /// Of those of these subscriptions that renew by themselves, whether the acceptance is outdated, where the gate says it; none
    /// where it gives no answer at all.
    async fn outdated(&self, ids: &[String]) -> Option<BTreeMap<String, bool>> {
        let ids = ids.to_vec();
        let read = move |connection: &mut Connection| renewing_of(connection, &ids);
        let renewing: Result<Vec<Subscription>, Error> = self.database.read(read).await;
        // A user of the payer's, on the stricter channel.
        let caller = |subscription: &Subscription| Caller {
            tenant_kind: TenantKind::Partner.into(),
            tenant_id: subscription.payer_id,
            user_id: Uuid::nil(),
            roles: vec![],
            channel: Channel::Dashboard,
            client: None,
        };
        let call_id = new_id(self.clock.now()).to_string();
        let answered = match &renewing {
            Ok(renewing) => {
                let (agreements, catalogue) = (&self.agreements, &self.catalogue);
                let asked =
                    agreements.are_acceptances_outdated(renewing, catalogue, caller, &call_id, Duration::MAX);
                asked.await
            }
            Err(error) => Err(error.to_string()),
        };
        let log = |why: &str| {
            tracing::warn!(why, "terms renew without knowing whether the acceptance is outdated");
        };
        let outdated = answered.inspect_err(|why| log(why)).ok()?;
        let mut known = BTreeMap::new();
        for (subscription, is_outdated) in renewing.ok()?.iter().zip(outdated) {
            let is_outdated = is_outdated.inspect_err(|why| log(why)).ok().flatten();
            known.extend(is_outdated.map(|is_outdated| (subscription.id.to_string(), is_outdated)));
        }
        Some(known)
    }

    /// Processes the ended terms of one subscription; a damaged row is logged.
    ///
    /// # Errors
    /// The database is unavailable.
    async fn end_terms_once(
        &self,
        outdated: Option<bool>,
        id: String,
        until: Time,
    ) -> Result<Outcome, Error> {
        match self.try_end_terms(outdated, id.clone(), until).await {
            Err(error @ Error::Unavailable(_)) => {
                tracing::warn!(subscription = %id, %error, "an ended term is not processed yet; trying again");
                Err(error)
            }
            Err(error) => {
                tracing::error!(subscription = %id, %error, "an ended term cannot be processed");
                Ok(Outcome::Failed)
            }
            ended => ended,
        }
    }

    /// Processes the ended terms of one subscription.
    async fn try_end_terms(&self, outdated: Option<bool>, id: String, until: Time) -> Result<Outcome, Error> {
        let read = move |connection: &mut Connection| subscription_due(connection, &id, until);
        match self.database.read(read).await? {
            Some(known) => {
                let ending = end_terms(&self.database, &self.clock, known, outdated, until);
                background_span("process ended terms", ending).await
            }
            None => Ok(Outcome::NotDue),
        }
    }
}

/// Processes the ended terms of a subscription in one transaction, if it is still as it is known.
async fn end_terms(
    database: &Database,
    clock: &Clock,
    known: Subscription,
    outdated: Option<bool>,
    until: Time,
) -> Result<Outcome, Error> {
    let steps = known.end_terms(until);
    let Some(Step { after, .. }) = steps.last().cloned() else { return Ok(Outcome::NotDue) };
    let now = clock.now();
    let change = |step: &Step| {
        let acceptance_outdated = outdated.filter(|_| step.kind == ChangeKind::Renewed);
        step.change(known.quantity, Cause::TermEnded { acceptance_outdated }, None, now)
    };
    let changes: Vec<_> = steps.iter().map(change).collect();
    let update = Update { after, version: known.version, changes };
    let write = move |connection: &mut Connection| {
        let is_as_read = subscriptions_change(connection, &[&update])?;
        Ok(if is_as_read == [true] { Outcome::Settled } else { Outcome::LostRace })
    };
    database.write(write).await
}

#[cfg(test)]
mod tests {
    use chassis::database::Writes;
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::rules::gate::{Approval, Decision, Rule};
    use crate::rules::offer::Term;
    use crate::rules::order::{Order, Parties};
    use crate::rules::subscription::{Change, State};
    use crate::store::MIGRATIONS;
    use crate::store::order::orders_insert;
    use crate::store::subscription::change_list;

    /// An order as it is stored, with one subscription by the month, whose first term has this end.
    fn bought(started_at: Time, term_end: Time) -> (Order, Subscription) {
        let parties =
            Parties { payer_id: Uuid::from_u128(1), reseller_id: None, customer_id: Uuid::from_u128(2) };
        let order = Order {
            id: Uuid::from_u128(3),
            parties,
            lines: vec![],
            placed_at: started_at,
            placed_by_tenant: parties.payer_id,
            placed_by: parties.payer_id,
            approval: Approval {
                decision: Decision::Allowed,
                rule: Rule::NotYetMandatory,
                evidence: None,
                revision: 1,
                evaluated_at: started_at,
            },
            external_reference: None,
        };
        let subscription = Subscription {
            id: Uuid::from_u128(4),
            order_id: order.id,
            payer_id: parties.payer_id,
            reseller_id: None,
            customer_id: parties.customer_id,
            offer_id: "MONTH".into(),
            quantity: 5,
            friendly_name: String::new(),
            state: State::Active,
            auto_renew: true,
            started_at,
            term: Term::Month,
            term_number: 1,
            term_end: Some(term_end),
            answer_revision: 1,
            version: 1,
        };
        (order, subscription)
    }

    #[tokio::test]
    async fn an_ended_term_that_another_replica_processed_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("orders.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        let time = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().to_utc();
        let (order, subscription) = bought(time("2026-01-31T12:00:00Z"), time("2026-02-28T12:00:00Z"));
        let id = subscription.id;
        let insert =
            move |connection: &mut Connection| orders_insert(connection, &[(&order, &[subscription])]);
        database.write(insert).await.unwrap();

        let until = time("2026-04-30T12:00:00Z");
        let clock = Clock::manual(until);
        let look = move |connection: &mut Connection| subscription_due(connection, &id.to_string(), until);
        let known: Subscription = database.read(look).await.unwrap().unwrap();
        let known_too = database.read(look).await.unwrap().unwrap();
        assert_eq!(end_terms(&database, &clock, known, Some(true), until).await.unwrap(), Outcome::Settled);
        assert_eq!(end_terms(&database, &clock, known_too, None, until).await.unwrap(), Outcome::LostRace);

        // The first change is its creation.
        let list = move |connection: &mut Connection| change_list(connection, id, false, 1, 100);
        let changes: Vec<Change> = database.read(list).await.unwrap();
        let kept: Vec<_> = changes.iter().map(|c| (c.number, c.kind, c.term_number, c.cause)).collect();
        let (renewed, ended) = (ChangeKind::Renewed, Cause::TermEnded { acceptance_outdated: Some(true) });
        assert_eq!(kept, [(2, renewed, 2, ended), (3, renewed, 3, ended), (4, renewed, 4, ended)]);
    }
}
