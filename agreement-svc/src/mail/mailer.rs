//! Sends the mails of the outbox (ATT-9): a worker with a few connections to the mail server, retries and dead letters.
//!
//! A connection that is free takes the next mail at once, so that a slow one delays no other. Delivery is at least once: a
//! claim is a lease, and a mail whose lease ends is sent again.

use std::sync::Arc;
use std::time::Duration;

use chassis::backoff;
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::telemetry::trace::background_span;
use chrono::TimeDelta;
use lettre::message::Mailbox;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::compose::compose;
use super::templates::MailTemplates;
use super::{Delivery, HAND_OVER_MAX, Transport};
use crate::rules::notification::{DueMail, MailFailure, RETRY_BASE, RETRY_MAX, after_failure};
use crate::store::outbox::{Claimed, MailClaim, Turns, mail_failed, mail_sent, mails_claim};

/// Connections to the mail server: as many as relays commonly grant to one client.
const CONNECTIONS_MAX: usize = 8;

/// How long claimed mails are left to the replica that claimed them. Each is sent at once; the rest is for the database.
const LEASE: TimeDelta = TimeDelta::seconds(60);
const _: () = assert!(HAND_OVER_MAX.as_secs() + 15 < LEASE.num_seconds().unsigned_abs());

/// How often to look without having been woken: for what failed, and for what other replicas left.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What sending mails takes.
pub(crate) struct Mailer {
    pub database: Database,
    pub clock: Clock,
    pub transport: Transport,
    pub texts: Arc<MailTemplates>,
    /// Whom mails come from.
    pub from: Mailbox,
    /// Mails of one partner and day.
    pub per_day: u32,
    /// The least time between two mails of a partner to a customer.
    pub interval: Duration,
}

/// Sends mails until `stop` is set; then those being handed over may end. `commits` changes when something has been
/// stored.
pub(crate) async fn run(mailer: Mailer, mut commits: watch::Receiver<()>, stop: CancellationToken) {
    let mailer = Arc::new(mailer);
    let mut busy = JoinSet::new();
    let mut idle: Vec<Delivery> = vec![];
    let mut turns = Turns::default();
    // There may be more than was claimed.
    let mut may_be_due = true;
    while !stop.is_cancelled() {
        if may_be_due && busy.len() < CONNECTIONS_MAX {
            let free = CONNECTIONS_MAX - busy.len();
            let claimed = mailer.claim(free, &mut turns).await;
            let Claimed { mails, are_more_due } = claimed.unwrap_or_else(|error| {
                tracing::warn!(%error, "mails cannot be claimed; trying again");
                Claimed { mails: vec![], are_more_due: false }
            });
            may_be_due = are_more_due;
            for mail in mails {
                let (mailer, delivery) = (mailer.clone(), idle.pop().unwrap_or_default());
                busy.spawn(background_span("send a mail", mailer.send(mail, delivery)));
            }
            if may_be_due && busy.len() < CONNECTIONS_MAX {
                continue;
            }
        }
        if busy.is_empty() {
            for delivery in idle.drain(..) {
                tokio::spawn(delivery.close());
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            // A panic has lost its connection, and its mail comes back when the lease ends.
            Some(delivery) = busy.join_next() => idle.extend(delivery),
            Ok(()) = commits.changed() => may_be_due = true,
            () = tokio::time::sleep(POLL_INTERVAL) => may_be_due = true,
        }
    }
    while let Some(delivery) = busy.join_next().await {
        idle.extend(delivery);
    }
    for delivery in idle {
        delivery.close().await;
    }
}

impl Mailer {
    async fn claim(&self, limit: usize, turns: &mut Turns) -> Result<Claimed, Error> {
        let (per_day, interval) = (self.per_day, self.interval);
        let claim = MailClaim { now: self.clock.now(), lease: LEASE, limit, per_day, interval };
        let mut taken = std::mem::take(turns);
        let write = move |connection: &mut Connection| {
            let claimed = mails_claim(connection, &claim, &mut taken)?;
            Ok::<_, Error>((claimed, taken))
        };
        let (claimed, taken) = self.database.write_apart(write).await?;
        *turns = taken;
        Ok(claimed)
    }

    /// Sends a mail over a connection, which it gives back.
    async fn send(self: Arc<Self>, mail: DueMail, mut delivery: Delivery) -> Delivery {
        let sent = match compose(&self.from, &self.texts, &mail, self.clock.now()) {
            Ok(composed) => delivery.hand_over(&self.transport, mail.id, &composed).await,
            Err(failure) => Err(failure),
        };
        let id = mail.id;
        if let Err(error) = self.record_result(mail, sent).await {
            tracing::warn!(mail = %id, %error, "the outcome of a mail cannot be stored");
        }
        delivery
    }

    async fn record_result(&self, mail: DueMail, sent: Result<(), MailFailure>) -> Result<(), Error> {
        let now = self.clock.now();
        let Err(failure) = sent else {
            let store = move |connection: &mut Connection| mail_sent(connection, &mail, now);
            return self.database.write_apart(store).await;
        };
        let attempts = mail.attempts();
        let wait = backoff::wait(attempts.saturating_sub(1), RETRY_BASE, RETRY_MAX);
        let outcome = move |attempts| after_failure(failure, attempts, now, wait);
        tracing::warn!(mail = %mail.id, attempts, %failure, outcome = ?outcome(attempts), "a mail was not sent");
        let store = move |connection: &mut Connection| mail_failed(connection, &mail, failure, outcome);
        self.database.write_apart(store).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::notification::{ATTEMPTS_MAX, INTERVAL_MAX};

    /// However slow the mail server is, and however long the waits turn out to be.
    #[test]
    fn the_last_attempt_ends_within_half_an_hour() {
        let longest = |attempt: u32| (RETRY_BASE * 2_u32.pow(attempt)).min(RETRY_MAX);
        let waits: Duration = (0..ATTEMPTS_MAX - 1).map(longest).sum();
        let all = INTERVAL_MAX + waits + (POLL_INTERVAL + HAND_OVER_MAX) * ATTEMPTS_MAX;
        assert!(all <= Duration::from_secs(30 * 60), "{all:?}");
    }
}
