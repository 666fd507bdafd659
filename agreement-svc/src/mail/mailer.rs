//! Sends the notifications of attestations (ATT-9): the worker of the mail outbox, with retries and dead letters.
//!
//! Delivery is at least once: a claim is a lease, and a notification whose lease ends is sent again.

use std::time::Duration;

use chassis::backoff;
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::telemetry::trace::background_span;
use chrono::TimeDelta;
use futures_util::future::join_all;
use lettre::message::Mailbox;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::compose::compose;
use super::{HAND_OVER_MAX, Transport};
use crate::rules::notification::{DueNotification, Failure, RETRY_BASE, RETRY_MAX, after_failure};
use crate::store::notification::{notification_failed, notification_sent, notifications_claim};

/// Notifications claimed at a time: few enough that a claim outlasts sending them.
const CLAIM_MAX: usize = 32;

/// Connections to the mail server at a time: what relays commonly grant to one client.
const CONNECTIONS_MAX: usize = 8;

/// How long claimed notifications are left to the replica that claimed them.
const LEASE: TimeDelta = TimeDelta::seconds(60);

/// A server that answers nothing holds each connection for so many mails; the rest is for the database.
const _: () = assert!(
    (CLAIM_MAX / CONNECTIONS_MAX) as u64 * HAND_OVER_MAX.as_secs() + 15 < LEASE.num_seconds().unsigned_abs()
);

/// How often to look without having been woken: for what failed, and for what other replicas left.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What sending mails takes.
pub(crate) struct Mailer {
    pub database: Database,
    pub clock: Clock,
    pub transport: Transport,
    /// Whom mails come from.
    pub from: Mailbox,
}

/// Sends notifications until `stop` is set; then those being handed over may end. `commits` changes
/// when something has been stored.
pub(crate) async fn run(mailer: Mailer, mut commits: watch::Receiver<()>, stop: CancellationToken) {
    loop {
        if let Err(error) = mailer.deliver(&stop).await {
            tracing::warn!(%error, "notifications cannot be read; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = commits.changed() => {}
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

impl Mailer {
    async fn deliver(&self, stop: &CancellationToken) -> Result<(), Error> {
        while !stop.is_cancelled() {
            let now = self.clock.now();
            let claim = move |connection: &mut Connection| {
                notifications_claim(connection, now, LEASE, CLAIM_MAX as i64)
            };
            let due = self.database.write_apart(claim).await?;
            if due.is_empty() {
                return Ok(());
            }
            let connections = CONNECTIONS_MAX.min(due.len());
            let share = |n: usize| due.iter().skip(n).step_by(connections).collect();
            join_all((0..connections).map(|n| self.send_all(share(n), stop))).await;
        }
        Ok(())
    }

    /// Sends notifications one after the other over one connection. Those that are left when the service stops
    /// come back when the lease ends.
    async fn send_all(&self, due: Vec<&DueNotification>, stop: &CancellationToken) {
        let mut delivery = self.transport.delivery();
        for notification in due {
            if stop.is_cancelled() {
                break;
            }
            let send = async {
                let sent = match compose(&self.from, notification, self.clock.now()) {
                    Ok(mail) => delivery.hand_over(notification.attestation_id, &mail).await,
                    Err(failure) => Err(failure),
                };
                if let Err(error) = self.record_result(notification, sent).await {
                    let id = notification.attestation_id;
                    tracing::warn!(attestation = %id, %error, "the outcome of a mail cannot be stored");
                }
            };
            background_span("send a notification", send).await;
        }
        delivery.close().await;
    }

    async fn record_result(
        &self,
        notification: &DueNotification,
        sent: Result<(), Failure>,
    ) -> Result<(), Error> {
        let (id, attempts, now) = (notification.attestation_id, notification.attempts, self.clock.now());
        let Err(failure) = sent else {
            let store = move |connection: &mut Connection| notification_sent(connection, id, now);
            return self.database.write_apart(store).await;
        };
        let wait = backoff::wait(attempts.saturating_sub(1), RETRY_BASE, RETRY_MAX);
        let outcome = after_failure(failure, attempts, now, wait);
        tracing::warn!(attestation = %id, attempts, %failure, ?outcome, "a notification was not sent");
        let store = move |connection: &mut Connection| {
            notification_failed(connection, id, attempts, failure, outcome)
        };
        self.database.write_apart(store).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::notification::ATTEMPTS_MAX;

    /// However slow the mail server is, and however long the waits turn out to be.
    #[test]
    fn the_last_attempt_ends_within_half_an_hour() {
        let longest = |attempt: u32| (RETRY_BASE * 2_u32.pow(attempt)).min(RETRY_MAX);
        let waits: Duration = (0..ATTEMPTS_MAX - 1).map(longest).sum();
        let attempt = POLL_INTERVAL + HAND_OVER_MAX * (CLAIM_MAX / CONNECTIONS_MAX) as u32;
        let all = waits + attempt * ATTEMPTS_MAX;
        assert!(all <= Duration::from_secs(30 * 60), "{all:?}");
    }
}
