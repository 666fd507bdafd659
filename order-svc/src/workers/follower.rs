//! Follows agreement-svc's history and applies what has consequences here: each event exactly once and
//! in order (I3), whatever stops and starts meanwhile.
//!
//! How far it has come is a row. An event is applied in the transaction that moves this row on to the
//! event's revision from the one before; of several replicas that try, one succeeds.

use std::time::Duration;

use chassis::backoff;
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::telemetry::trace::unasked;
use tokio::sync::watch;

use super::Followed;
use super::renewals::settle_customer;
use crate::agreements::Agreements;
use crate::agreements::history::NotFollowed;
use crate::rules::withdrawal::Moment;
use crate::store::follower::{follower_revision, moment_apply};

/// Waits after failures, before jitter: the first, and the longest. What was withdrawn is not cancelled
/// meanwhile.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Why following was interrupted.
#[derive(Debug)]
enum Interruption {
    Neighbour(NotFollowed),
    Database(Error),
    /// The row that says how far the history has been applied says less than before: the database was
    /// restored under us. What was passed over must be looked at again.
    WentBack,
}

impl From<NotFollowed> for Interruption {
    fn from(why: NotFollowed) -> Self {
        Self::Neighbour(why)
    }
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Database(error)
    }
}

impl Interruption {
    /// Tells it to those who run the service: what passes by itself as a warning, the rest as an error.
    fn log(&self, revision: i64) {
        match self {
            Self::Neighbour(NotFollowed::Away(why)) => {
                tracing::warn!(revision, why, "the history cannot be followed; trying again");
            }
            Self::Neighbour(NotFollowed::Nonsense(why)) => {
                tracing::error!(revision, why, "the history cannot be followed any further");
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
                    "the database knows less of the history than before; starting over"
                );
            }
        }
    }

    /// Whether what was known before may not be so.
    fn unsettles(&self) -> bool {
        matches!(self, Self::WentBack | Self::Neighbour(NotFollowed::Nonsense(_)))
    }
}

/// Follows until `stop` says so, and tells how far it has come.
pub(crate) async fn run(
    database: Database,
    clock: Clock,
    agreements: Agreements,
    followed: watch::Sender<Followed>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failures = 0;
    loop {
        let before = *followed.borrow();
        let ended = tokio::select! {
            // Between two events or in the middle of a transaction, which then counts or does not.
            _ = stop.wait_for(|stop| *stop) => return,
            ended = follow(&database, &clock, &agreements, &followed) => ended,
        };
        let now = *followed.borrow();
        if now != before {
            failures = 0;
        }
        if let Err(interruption) = ended {
            interruption.log(now.revision);
            failures += 1;
            if interruption.unsettles() {
                followed.send_replace(Followed::default());
            }
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(backoff::wait(failures, RETRY_BASE, RETRY_MAX)) => {}
        }
    }
}

/// Follows from where the database is until the stream ends.
async fn follow(
    database: &Database,
    clock: &Clock,
    agreements: &Agreements,
    followed: &watch::Sender<Followed>,
) -> Result<(), Interruption> {
    let mut applied = database.read(follower_revision).await?;
    let mut history = agreements.follow(applied).await?;
    while let Some(moment) = history.next().await? {
        let until = moment.until;
        applied = match moment.news {
            None => apply(database, clock, applied, moment).await?,
            Some(_) => unasked("apply an event", apply(database, clock, applied, moment)).await?,
        };
        followed.send_modify(|followed| {
            followed.revision = applied;
            followed.until = followed.until.max(Some(until));
        });
    }
    Ok(())
}

/// Applies the history up to a moment, unless another replica has or does: up to `applied` it has been,
/// and between there and the moment nothing has consequences. The answer is how far it has been
/// applied then, which is not before the moment.
async fn apply(
    database: &Database,
    clock: &Clock,
    applied: i64,
    moment: Moment,
) -> Result<i64, Interruption> {
    // Terms that ended before come first, as they would have, had nobody been away.
    if let Some(news) = &moment.news {
        settle_customer(database, clock, news.customer_id(), moment.until).await?;
    }
    let mut known = applied;
    while known < moment.revision {
        let (to, now) = (moment.clone(), clock.now());
        let is_ours = database
            .write(move |connection: &mut Connection| moment_apply(connection, known, &to, now))
            .await?;
        if is_ours {
            return Ok(moment.revision);
        }
        let before = known;
        known = database.read(follower_revision).await?;
        if known <= before {
            return Err(Interruption::WentBack);
        }
    }
    // In the quiet, too, the row is looked at, so that a restored database is noticed at once.
    if applied == moment.revision && database.read(follower_revision).await? < applied {
        return Err(Interruption::WentBack);
    }
    Ok(known)
}
