//! Follows agreement-svc's history and applies what has consequences here: each event exactly once and
//! in order (I3), whatever stops and starts meanwhile.
//!
//! How far it has come is a row. An event is applied in the transaction that moves this row on to the
//! event's revision from the one before; of several replicas that try, one succeeds.

use std::time::Duration;

use chassis::backoff;
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use tokio::sync::watch;

use crate::agreements::Agreements;
use crate::rules::Time;
use crate::rules::withdrawal::Moment;
use crate::store::follower::{follower_revision, moment_apply};

/// Waits after failures, before jitter: the first, and the longest. What was withdrawn is not cancelled
/// meanwhile.
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How far the history has been applied, as this process knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    /// The revision of the last event.
    pub revision: i64,
    /// Everything recorded until then has been applied; `None` when that is not known yet.
    pub until: Option<Time>,
}

/// Why following was interrupted.
#[derive(Debug)]
enum Interruption {
    Neighbour(String),
    Database(Error),
    /// The row that says how far the history has been applied says less than before: the database was
    /// restored under us. What was passed over must be looked at again.
    WentBack,
}

impl From<String> for Interruption {
    fn from(why: String) -> Self {
        Self::Neighbour(why)
    }
}

impl From<Error> for Interruption {
    fn from(error: Error) -> Self {
        Self::Database(error)
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
        let before = followed.borrow().revision;
        let interrupted = tokio::select! {
            // Between two events or in the middle of a transaction, which then counts or does not.
            _ = stop.wait_for(|stop| *stop) => return,
            interrupted = follow(&database, &clock, &agreements, &followed) => interrupted,
        };
        if followed.borrow().revision > before {
            failures = 0;
        }
        let pause = match interrupted {
            Ok(()) => backoff::wait(0, RETRY_BASE, RETRY_MAX),
            Err(interruption) => {
                let revision = followed.borrow().revision;
                match interruption {
                    Interruption::Neighbour(why) => {
                        tracing::warn!(
                            revision,
                            failures,
                            why,
                            "the history cannot be followed; trying again"
                        );
                    }
                    Interruption::WentBack => {
                        tracing::warn!(
                            revision,
                            "the database knows less of the history than before; starting over"
                        );
                    }
                    Interruption::Database(error) => {
                        tracing::warn!(revision, failures, %error, "the history cannot be applied; trying again");
                    }
                }
                failures += 1;
                backoff::wait(failures, RETRY_BASE, RETRY_MAX)
            }
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(pause) => {}
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
        applied = apply(database, clock, applied, moment).await?;
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
    let mut applied = applied;
    while applied < moment.revision {
        let (to, now) = (moment.clone(), clock.now());
        let is_ours = database
            .write(move |connection: &mut Connection| moment_apply(connection, applied, &to, now))
            .await?;
        let before = applied;
        applied = if is_ours { moment.revision } else { database.read(follower_revision).await? };
        if applied <= before {
            return Err(Interruption::WentBack);
        }
    }
    Ok(applied)
}
