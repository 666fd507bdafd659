//! The consumer of agreement-svc's history (event stream). It applies each event with consequences for order-svc exactly once
//! and in order (I3), whatever stops and starts meanwhile.
//!
//! The cursor is a row. Events are applied in the transaction that moves this row on to the revision of the last of them; of
//! several replicas that try, one succeeds. A large event takes several transactions, of which the last moves the row.
//!
//! When agreement-svc was restored from an older copy, what was applied here may be no part of its history any
//! more. What holds then:
//!
//! - Nothing is applied that does not follow on what was applied: the row keeps the hash of the last event, and
//!   agreement-svc refuses a reader that knows another one, until the restore is announced.
//! - Once it is, the history is followed again from its beginning, since it is not known from which event on it
//!   differs. Applying an event again changes nothing: what it ended has ended, what rests on newer answers is
//!   left alone, no fence falls, and the report of the first time stays. If its revision was another
//!   withdrawal's in the lost part, the report of that one makes room for it.
//! - What was done for the lost part stays done. A customer whose withdrawal was lost stays closed: its fence has a
//!   revision that answers reach only when its acceptance has changed since the restore.
//! - The worker counts the subscriptions that rest on answers of the lost part, once no such answer can be used any more.
//! - First purchases are reported again, before the row goes back, so that this is not forgotten.

use std::convert::Infallible;
use std::time::Duration;

use chassis::backoff;
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::telemetry::trace::background_span;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Followed;
use super::renewals::Renewals;
use crate::agreements::AgreementClient;
use crate::agreements::events::{NotFollowed, StreamItem};
use crate::rules::gate::ANSWER_AGE_MAX;
use crate::rules::history::{Consequence, Cursor, HistoryPoint, Restore};
use crate::store::history::{
    Applied, EventStep, Orphans, Progress, Stopped, cursor_read, cursor_reset, event_step, history_apply,
    orphans, progress_read, relationships_fill,
};
use crate::store::relationship::{relationships_forget, relationships_restart};
use crate::store::report::reports_requeue;

/// Waits after failures, before jitter: the first, and the longest. What was withdrawn is not cancelled
/// meanwhile.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why following was interrupted.
#[derive(Debug)]
enum Interruption {
    Stream(NotFollowed),
    Database(Error),
    /// The stored cursor went back: the database was restored, or another replica reset the cursor after a restore of
    /// agreement-svc. Events that were skipped have to be read again.
    WentBack,
    /// Another replica, of a version that keeps no relationships, moved the cursor.
    RelationshipsBehind,
    /// agreement-svc's database was restored, and the history has to be followed from its beginning again.
    /// With what is left here of the lost part, if that could be counted.
    Lost(Restore, Option<Orphans>),
}

impl From<NotFollowed> for Interruption {
    fn from(why: NotFollowed) -> Self {
        Self::Stream(why)
    }
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl Interruption {
    /// Logs it for the operator: a failure that passes by itself as a warning, any other as an error.
    fn log(&self, revision: i64) {
        match self {
            Self::Stream(NotFollowed::Unavailable(why)) => {
                tracing::warn!(revision, why, "the history cannot be followed; trying again");
            }
            Self::Stream(NotFollowed::InvalidHistory(why)) => {
                tracing::error!(revision, why, "the history cannot be followed any further");
            }
            Self::Stream(NotFollowed::UnreadableEvent(unreadable)) => {
                tracing::error!(
                    revision,
                    unreadable,
                    "the history cannot be followed any further: its next event cannot be read"
                );
            }
            Self::Database(error @ Error::Unavailable(_)) => {
                tracing::warn!(revision, %error, "the history cannot be applied; trying again");
            }
            Self::Database(error) => {
                tracing::error!(revision, %error, "the history cannot be applied any further");
            }
            Self::WentBack => {
                tracing::error!(
                    revision,
                    "the cursor went back: order-svc's database was restored, or another replica began again after a \
                     restore of agreement-svc; applying the history from there again"
                );
            }
            Self::RelationshipsBehind => {
                tracing::warn!(
                    revision,
                    "another replica, of an older version, applied events and kept no relationships; reading them again"
                );
            }
            Self::Lost(Restore { last_revision, revision: restored }, orphans) => {
                tracing::error!(
                    revision,
                    last_revision,
                    restored,
                    subscriptions = orphans.as_ref().map(|orphans| orphans.subscriptions),
                    customers = orphans.as_ref().map(|orphans| orphans.customers),
                    "agreement-svc was restored from a backup and lost events; applying its history from the beginning. \
                     Check the subscriptions whose answer it lost and the customers whose withdrawal or relationship \
                     end it lost: `subscriptions` and `customers` count them"
                );
                for (subscription, customer) in
                    orphans.iter().flat_map(|orphans| &orphans.named_subscriptions)
                {
                    tracing::warn!(
                        subscription,
                        customer,
                        "agreement-svc lost the answer that this subscription was accepted on"
                    );
                }
                for customer in orphans.iter().flat_map(|orphans| &orphans.named_customers) {
                    tracing::warn!(
                        customer,
                        "a withdrawal or the end of a relationship was lost; repeat it at agreement-svc"
                    );
                }
            }
        }
    }

    /// Whether agreement-svc's history is known not to be the one that was followed, if that was `known` before.
    fn is_history_invalid(&self, known: Option<bool>) -> bool {
        match self {
            Self::Stream(NotFollowed::InvalidHistory(_)) => true,
            // The history is followed on, or anew.
            Self::WentBack | Self::RelationshipsBehind | Self::Lost(..) => false,
            // The gate's answers stay what they were; only what follows from the event waits.
            Self::Stream(NotFollowed::UnreadableEvent(_)) => false,
            Self::Stream(NotFollowed::Unavailable(_)) | Self::Database(_) => known.unwrap_or(false),
        }
    }

    /// Whether what was known before may not be so.
    fn invalidates(&self) -> bool {
        matches!(self, Self::WentBack | Self::Lost(..) | Self::Stream(NotFollowed::InvalidHistory(_)))
    }
}

/// Follows until `stop` is cancelled, and publishes how far it has come.
pub(crate) async fn run(renewals: Renewals, followed: watch::Sender<Followed>, stop: CancellationToken) {
    let mut failures = 0;
    loop {
        let before = *followed.borrow();
        let Err(interruption) = tokio::select! {
            // Between two events or in the middle of a transaction, which then counts or does not.
            () = stop.cancelled() => return,
            ended = follow(&renewals, &followed) => ended,
        };
        let now = *followed.borrow();
        if now != before {
            failures = 0;
        }
        interruption.log(now.revision);
        failures += 1;
        let is_invalid = Some(interruption.is_history_invalid(now.is_invalid));
        match interruption.invalidates() {
            true => followed.send_replace(Followed { is_invalid, ..Followed::default() }),
            false => followed.send_replace(Followed { is_invalid, ..now }),
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff::wait(failures, RETRY_BASE, RETRY_MAX)) => {}
        }
    }
}

/// Follows from where the database is until that is interrupted.
async fn follow(renewals: &Renewals, followed: &watch::Sender<Followed>) -> Result<Infallible, Interruption> {
    let Renewals { database, clock, agreements, .. } = renewals;
    fill_relationships(database, clock, agreements).await?;
    let cursor = database.read(cursor_read).await?;
    let mut applied = cursor.revision;
    let mut history = agreements.follow(cursor);
    loop {
        let points = match history.next().await? {
            StreamItem::Lost(restore) => {
                followed.send_modify(|followed| followed.is_invalid = Some(true));
                return Err(start_over(database, clock, applied, restore).await?);
            }
            StreamItem::Points(points) => points,
        };
        let until = points.last().map(|point| point.until);
        let has_consequences = points.iter().any(|point| point.consequence.is_some());
        let applying = apply(renewals, applied, points);
        applied = match has_consequences {
            false => applying.await?,
            true => background_span("apply events", applying).await?,
        };
        followed.send_modify(|followed| {
            followed.revision = applied;
            followed.until = followed.until.max(until);
            followed.is_invalid = Some(false);
        });
    }
}

/// Reads again, for the relationships alone, what a version without them has applied.
async fn fill_relationships(
    database: &Database,
    clock: &Clock,
    agreements: &AgreementClient,
) -> Result<(), Interruption> {
    let Progress { applied, relationships: mut known } = database.read(progress_read).await?;
    if known > applied && database.write(move |c: &mut Connection| relationships_restart(c, known)).await? {
        known = 0;
    }
    if known >= applied {
        return Ok(());
    }
    let mut history = agreements.follow(Cursor { revision: known, hash: None });
    while known < applied {
        let points = match history.next().await? {
            StreamItem::Points(points) => points,
            // Following it from the cursor, which is not before, starts over.
            StreamItem::Lost(_) => return Ok(()),
        };
        let up_to = points.last().map_or(known, |point| point.cursor.revision.min(applied));
        if up_to <= known {
            // The history ends before the cursor. Following it from the cursor shows why.
            return Ok(());
        }
        let now = clock.now();
        let fill =
            move |connection: &mut Connection| relationships_fill(connection, known, &points, up_to, now);
        if !database.write(fill).await? {
            return Err(Interruption::WentBack);
        }
        known = up_to;
    }
    Ok(())
}

/// Goes back to the beginning of the history, unless another replica has or does.
async fn start_over(
    database: &Database,
    clock: &Clock,
    applied: i64,
    lost: Restore,
) -> Result<Interruption, Error> {
    // agreement-svc answers out of the copy by now, so whatever it answered before is too old after this.
    tokio::time::sleep(ANSWER_AGE_MAX.to_std().unwrap_or_default()).await;
    let now = clock.now();
    while !database.write(move |connection: &mut Connection| reports_requeue(connection, now, now)).await? {}
    // They are for the log: that they cannot be counted in time keeps no relationship unknown.
    let orphans = database.list(move |connection: &mut Connection| orphans(connection, lost)).await;
    let orphans = orphans.inspect_err(|error: &Error| {
        tracing::error!(%error, "what rests on lost events was not counted; find it with the statements of docs/operations.md");
    });
    let reset = move |connection: &mut Connection| {
        let is_ours = cursor_reset(connection, applied)?;
        if is_ours {
            relationships_forget(connection, lost)?;
        }
        Ok::<_, Error>(is_ours)
    };
    let is_ours = database.write(reset).await?;
    Ok(if is_ours { Interruption::Lost(lost, orphans.ok()) } else { Interruption::WentBack })
}

/// Applies points of the history, unless another replica has or does: up to `applied` it has been. The answer is how far it
/// has been applied then, which is not before the last of them.
async fn apply(renewals: &Renewals, applied: i64, points: Vec<HistoryPoint>) -> Result<i64, Interruption> {
    let Renewals { database, clock, .. } = renewals;
    let (mut known, mut are_terms_done) = (applied, false);
    while let Some(next) = points.iter().position(|point| known < point.cursor.revision) {
        let (rest, now) = (points[next..].to_vec(), clock.now());
        let write =
            move |connection: &mut Connection| history_apply(connection, known, &rest, are_terms_done, now);
        let Some(Applied { revision, stopped }) = database.write(write).await? else {
            known = passed_by_another(database, known).await?;
            are_terms_done = false;
            continue;
        };
        (known, are_terms_done) = (revision, false);
        let stopped_at = points.iter().find(|point| known < point.cursor.revision);
        let (Some(stopped), Some(point)) = (stopped, stopped_at) else { continue };
        let Some(consequence) = &point.consequence else { continue };
        match stopped {
            // Terms that ended before come first, as they would have without a pause.
            Stopped::TermsDue => {
                renewals.end_terms_of(consequence.customer_id(), point.until).await?;
                are_terms_done = true;
            }
            Stopped::TooLarge => known = apply_in_steps(database, clock, known, point, consequence).await?,
        }
    }
    // In the quiet, too, the row is looked at, so that what happened to it is noticed at once.
    let is_quiet = points.last().is_some_and(|point| point.cursor.revision == applied);
    if is_quiet {
        let progress = database.read(progress_read).await?;
        if progress.applied < applied {
            return Err(Interruption::WentBack);
        }
        if progress.relationships != progress.applied {
            return Err(Interruption::RelationshipsBehind);
        }
    }
    Ok(known)
}

/// Applies an event that is too large for one transaction. The answer is how far the history has been applied then.
async fn apply_in_steps(
    database: &Database,
    clock: &Clock,
    applied: i64,
    point: &HistoryPoint,
    consequence: &Consequence,
) -> Result<i64, Interruption> {
    let mut step = EventStep::After(String::new());
    loop {
        let (now, point_of_step, consequence, this) =
            (clock.now(), point.clone(), consequence.clone(), step.clone());
        let write = move |connection: &mut Connection| {
            event_step(connection, applied, (&point_of_step, &consequence), &this, now)
        };
        match database.write(write).await? {
            None => return passed_by_another(database, applied).await,
            Some(None) => return Ok(point.cursor.revision),
            Some(Some(next)) => step = next,
        }
    }
}

/// How far another replica has applied the history.
async fn passed_by_another(database: &Database, known: i64) -> Result<i64, Interruption> {
    let Progress { applied, relationships } = database.read(progress_read).await?;
    if relationships != applied {
        return Err(Interruption::RelationshipsBehind);
    }
    if applied <= known { Err(Interruption::WentBack) } else { Ok(applied) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that is gated stops while the history is invalid, so nothing else may make it so.
    #[test]
    fn only_another_history_is_invalid() {
        let stream = |why| Interruption::Stream(why);
        let restore = Restore { last_revision: 1, revision: 9 };
        let orphans =
            Orphans { subscriptions: 0, named_subscriptions: vec![], customers: 0, named_customers: vec![] };
        for (interruption, when_valid, when_invalid) in [
            (stream(NotFollowed::InvalidHistory("forked".into())), true, true),
            (stream(NotFollowed::UnreadableEvent(7)), false, false),
            (stream(NotFollowed::Unavailable("away".into())), false, true),
            (Interruption::Database(Error::Unavailable("away".into())), false, true),
            (Interruption::WentBack, false, false),
            (Interruption::RelationshipsBehind, false, false),
            (Interruption::Lost(restore, Some(orphans)), false, false),
        ] {
            let known = [None, Some(false), Some(true)].map(|known| interruption.is_history_invalid(known));
            assert_eq!(known, [when_valid, when_valid, when_invalid], "{interruption:?}");
        }
    }
}
