//! Gives committed orders and changes their events. All replicas do; the head of the history, which is locked, makes them take
//! turns.

use std::time::Duration;

use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::event::{events_record, is_unrecorded};

/// How long a committed order goes without its event at most. What comes meanwhile is recorded together, so that the recorder
/// adds few commits to those of the orders.
const INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait after a failure, so that an outage does not fill the log.
const OUTAGE_PAUSE: Duration = Duration::from_secs(2);

/// Records until `stop` is cancelled, and says with `recorded` when there are new events.
pub(crate) async fn run(
    database: Database,
    clock: Clock,
    recorded: watch::Sender<()>,
    stop: CancellationToken,
) {
    loop {
        let pause = match record(&database, &clock, &recorded).await {
            Ok(true) => Duration::ZERO,
            Ok(false) => INTERVAL,
            Err(error) => {
                tracing::warn!(%error, "orders and changes cannot be recorded as events; trying again");
                OUTAGE_PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Records what one transaction may. The answer is whether there may be more.
async fn record(database: &Database, clock: &Clock, recorded: &watch::Sender<()>) -> Result<bool, Error> {
    if !database.read(is_unrecorded).await? {
        return Ok(false);
    }
    let now = clock.now();
    let are_more = database.write_apart(move |connection: &mut Connection| events_record(connection, now));
    let are_more = are_more.await?;
    recorded.send_replace(());
    Ok(are_more)
}
