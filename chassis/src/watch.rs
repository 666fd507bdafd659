//! Watchers: clients that follow a history over a stream. It sends every event once, in the order of revisions, and a checkpoint
//! every second while there is none. What an event is, and how it is read, is the service's.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use crate::auth::Caller;
use crate::clock::{Clock, Time};
use crate::database::{Connection, Database, Error};
use crate::limits::tenant::{Permit, TenantLimiter};
use crate::metrics::Metrics;
use crate::server::call::open_ended;
use crate::status::{stood_still, stopping, too_many_streams};

/// Watchers that may be open at a time: replicas of a few services, and an operator who observes.
const WATCHERS_MAX: usize = 64;

/// Events read at a time for one watcher: few enough to hold, enough to catch up fast.
const EVENTS_PER_READ: i64 = 256;

/// Events that wait for one watcher to take them.
const EVENTS_WAITING_MAX: usize = 64;

/// A watcher that takes nothing for this long is sent away, so that it holds no memory.
const READER_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a watcher hears that nothing happened.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// How long one stream lasts: identities expire, and watchers should find new replicas.
const WATCH_DURATION_MAX: Duration = Duration::from_secs(1800);

/// How long another replica's commit goes unnoticed at most. Shorter would keep an idle database busy.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait after a failure, so that an outage does not fill the log.
const OUTAGE_PAUSE: Duration = Duration::from_secs(2);

/// The stream of a watcher.
pub type WatchStream<I> = Pin<Box<dyn Stream<Item = Result<I, Status>> + Send>>;

/// A place in a history: an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Its revision; 0 before the first one.
    pub revision: i64,
    /// Its hash, which proves that it belongs to this history; `None` where it is not known, or there are none.
    pub hash: Option<String>,
}

/// The watchers of one process. Clones share their number, and the head of the history.
#[derive(Clone)]
pub struct Watchers {
    domain: &'static str,
    permits: TenantLimiter,
    metrics: Metrics,
    clock: Clock,
    /// The revision of the last event, while a watcher is open.
    head: watch::Sender<i64>,
    stopping: CancellationToken,
}

impl Watchers {
    /// Watchers of the service `domain`, whose streams end when `stopping` is cancelled. Tenants of the internal kind may open all
    /// streams that there are, others a fair share.
    #[must_use]
    pub fn new(
        domain: &'static str,
        internal_kind: &'static str,
        metrics: &Metrics,
        clock: &Clock,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            domain,
            permits: TenantLimiter::new(WATCHERS_MAX, internal_kind),
            metrics: metrics.clone(),
            clock: clock.clone(),
            head: watch::channel(0).0,
            stopping,
        }
    }

    /// Opens the stream of a caller that knows the history up to a position. `read` reads so many items that follow on a
    /// position, each with its own, and fails if the position is no part of the history; `checkpoint` makes the item which says
    /// that at that time there was nothing after a revision.
    ///
    /// # Errors
    /// Too many watchers; the error of the first `read`.
    pub async fn open<I, R, F>(
        &self,
        (caller, call_id): (&Caller, String),
        from: Position,
        read: R,
        checkpoint: fn(i64, Time) -> I,
    ) -> Result<Response<WatchStream<I>>, Status>
    where
        I: Send + 'static,
        R: Fn(Position, i64) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<(Position, I)>, Status>> + Send,
    {
        let permit: Permit = self.permits.try_acquire(caller.tenant()).map_err(|full| {
            self.metrics.stream_refused_for_load();
            too_many_streams(self.domain, "watchers", full)
        })?;
        // Before anything is answered, so that a wrong cursor is an error of the call.
        read(from.clone(), 1).await?;
        let (sender, items) = mpsc::channel(EVENTS_WAITING_MAX);
        let (end, ended) = oneshot::channel::<Status>();
        let after = from.revision;
        let mut watch = Watch {
            domain: self.domain,
            clock: self.clock.clone(),
            head: self.head.subscribe(),
            stopping: self.stopping.clone(),
            sender,
            cursor: from,
            read,
            checkpoint,
        };
        tokio::spawn(async move {
            let _permit = permit;
            if let Some(status) = watch.run().await {
                // A watcher that has gone away does not hear it.
                let _ = end.send(status);
            }
            tracing::info!(call_id, after, cursor = watch.cursor.revision, "a watcher's stream ended");
        });
        let last = stream::once(ended).filter_map(|ended| async { ended.ok().map(Err) });
        Ok(open_ended(Box::pin(ReceiverStream::new(items).map(Ok).chain(last))))
    }

    /// Polls the head of the history, once for all watchers and while there is one, until `stop` is cancelled. Commits of this
    /// process wake it, and it polls for those of other replicas. The watchers read the events themselves.
    pub async fn poll(
        self,
        database: Database,
        read_head: fn(&mut Connection) -> Result<i64, Error>,
        mut committed: watch::Receiver<()>,
        stop: CancellationToken,
    ) {
        loop {
            let mut pause = POLL_INTERVAL;
            if self.head.receiver_count() > 0 {
                match database.read(read_head).await {
                    Ok(now) => {
                        self.head.send_if_modified(|known| std::mem::replace(known, now) != now);
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
}

/// One watcher's stream, from this side.
struct Watch<I, R> {
    domain: &'static str,
    clock: Clock,
    head: watch::Receiver<i64>,
    stopping: CancellationToken,
    sender: mpsc::Sender<I>,
    /// The last event put into the stream.
    cursor: Position,
    read: R,
    checkpoint: fn(i64, Time) -> I,
}

impl<I, R, F> Watch<I, R>
where
    R: Fn(Position, i64) -> F,
    F: Future<Output = Result<Vec<(Position, I)>, Status>>,
{
    /// Sends until there is a reason to end; `None` when the watcher went away or its time is over.
    async fn run(&mut self) -> Option<Status> {
        let over = Instant::now() + WATCH_DURATION_MAX;
        while Instant::now() < over {
            if self.stopping.is_cancelled() {
                return Some(stopping(self.domain));
            }
            let looked_at = self.clock.now();
            let events = match (self.read)(self.cursor.clone(), EVENTS_PER_READ).await {
                Ok(events) => events,
                Err(status) => return Some(status),
            };
            let is_idle = events.is_empty();
            for (position, event) in events {
                if Instant::now() >= over {
                    return None;
                }
                if let Err(end) = self.send(event).await {
                    return end;
                }
                self.cursor = position;
            }
            if !is_idle {
                continue;
            }
            let cursor = self.cursor.revision;
            let mut is_silent = false;
            tokio::select! {
                () = self.stopping.cancelled() => return Some(stopping(self.domain)),
                () = self.sender.closed() => return None,
                _ = self.head.wait_for(|head| *head > cursor) => {}
                () = tokio::time::sleep(CHECKPOINT_INTERVAL) => is_silent = true,
            }
            if is_silent && let Err(end) = self.send((self.checkpoint)(cursor, looked_at)).await {
                return end;
            }
        }
        None
    }

    /// Puts an item into the stream. The error is how the stream ends: with a status for a watcher that is
    /// too slow, without for one that went away.
    async fn send(&self, item: I) -> Result<(), Option<Status>> {
        let sent = tokio::select! {
            sent = self.sender.send_timeout(item, READER_TIMEOUT) => sent,
            () = self.stopping.cancelled() => return Err(Some(stopping(self.domain))),
        };
        sent.map_err(|unsent| match unsent {
            SendTimeoutError::Timeout(_) => {
                Some(stood_still(self.domain, READER_TIMEOUT, Some(self.cursor.revision)))
            }
            SendTimeoutError::Closed(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use chrono::DateTime;
    use tonic::Code;

    use super::*;

    /// An item of the tests' history.
    #[derive(Debug, PartialEq, Eq)]
    enum Item {
        Event(i64),
        Checkpoint(i64, Time),
    }

    type Read = Box<dyn Fn(Position, i64) -> Ready<Result<Vec<(Position, Item)>, Status>> + Send + Sync>;

    /// A watcher without a reader yet, and what drives it. Time stands still and is moved on by the
    /// runtime whenever every task waits.
    struct World {
        /// How many events there are.
        recorded: Arc<AtomicI64>,
        items: mpsc::Receiver<Item>,
        head: watch::Sender<i64>,
        stop: CancellationToken,
    }

    fn world(recorded: i64, cursor: i64) -> (Watch<Item, Read>, World) {
        let (sender, items) = mpsc::channel(EVENTS_WAITING_MAX);
        let (head, watched) = watch::channel(recorded);
        let stop = CancellationToken::new();
        let recorded = Arc::new(AtomicI64::new(recorded));
        let history = recorded.clone();
        let read = move |cursor: Position, limit: i64| {
            let last = history.load(Ordering::SeqCst);
            if cursor.revision > last {
                return ready(Err(Status::out_of_range("ahead")));
            }
            let next = cursor.revision + 1..=last.min(cursor.revision + limit);
            ready(Ok(next
                .map(|revision| (Position { revision, hash: None }, Item::Event(revision)))
                .collect()))
        };
        let watch = Watch {
            domain: "some-svc",
            clock: Clock::manual(DateTime::UNIX_EPOCH),
            head: watched,
            stopping: stop.clone(),
            sender,
            cursor: Position { revision: cursor, hash: None },
            read: Box::new(read) as Read,
            checkpoint: Item::Checkpoint,
        };
        (watch, World { recorded, items, head, stop })
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_watcher_is_closed_with_its_cursor_and_bounded_memory() {
        let (mut watch, mut world) = world(1000, 0);
        let status = watch.run().await.unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().starts_with("STREAM_STOOD_STILL"), "{}", status.message());
        let held = i64::try_from(EVENTS_WAITING_MAX).unwrap();
        assert_eq!(watch.cursor.revision, held);
        assert!(status.message().ends_with(&format!("after revision {held}")), "{}", status.message());
        drop(watch);
        for revision in 1..=held {
            assert_eq!(world.items.recv().await, Some(Item::Event(revision)));
        }
        assert_eq!(world.items.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_sends_its_revision_and_then_new_events() {
        let (mut watch, mut world) = world(3, 2);
        let running = tokio::spawn(async move { watch.run().await });
        assert_eq!(world.items.recv().await, Some(Item::Event(3)));
        for _ in 0..2 {
            assert_eq!(world.items.recv().await, Some(Item::Checkpoint(3, DateTime::UNIX_EPOCH)));
        }
        world.recorded.store(5, Ordering::SeqCst);
        world.head.send_replace(5);
        let mut next = world.items.recv().await;
        // It may have been on its way to say once more that nothing had happened.
        while matches!(next, Some(Item::Checkpoint(..))) {
            next = world.items.recv().await;
        }
        assert_eq!(next, Some(Item::Event(4)));
        assert_eq!(world.items.recv().await, Some(Item::Event(5)));

        world.stop.cancel();
        let status = running.await.unwrap().unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().starts_with("STOPPING"), "{}", status.message());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_after_its_time_and_for_who_goes_away() {
        let (mut watch, mut world) = world(1, 0);
        let running = tokio::spawn(async move { watch.run().await.is_none() });
        let mut checkpoints = 0;
        while let Some(item) = world.items.recv().await {
            checkpoints += u32::from(matches!(item, Item::Checkpoint(..)));
        }
        assert!(running.await.unwrap());
        assert_eq!(checkpoints, 1800, "one every second for 30 minutes");

        let (mut watch, world) = self::world(1, 1);
        drop(world.items);
        assert!(watch.run().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_that_is_no_part_of_the_history_any_more_ends_the_stream() {
        let (mut watch, _world) = world(3, 4);
        assert_eq!(watch.run().await.unwrap().code(), Code::OutOfRange);
    }
}
