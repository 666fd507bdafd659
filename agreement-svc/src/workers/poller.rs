//! Polls the head of the history, once for all watchers.
//!
//! Commits of this process wake it, and it polls for those of other replicas. It only signals that there are new events; the
//! watchers read them.

use std::time::Duration;

use chassis::database::Database;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::event::revision_head;

/// How long another replica's commit goes unnoticed at most. Shorter would keep an idle database busy.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait after a failure, so that an outage does not fill the log.
const OUTAGE_PAUSE: Duration = Duration::from_secs(2);

/// Keeps `head` at the revision of the last event while a watcher is open, until `stop` is cancelled.
pub(crate) async fn run(
    database: Database,
    head: watch::Sender<i64>,
    mut committed: watch::Receiver<()>,
    stop: CancellationToken,
) {
    loop {
        let mut pause = POLL_INTERVAL;
        if head.receiver_count() > 0 {
            match database.read(revision_head).await {
                Ok(now) => {
                    head.send_if_modified(|known| std::mem::replace(known, now) != now);
                }
                Err(error) => {
                    tracing::warn!(%error, "the history cannot be read; trying again");
                    pause = OUTAGE_PAUSE;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = committed.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}
