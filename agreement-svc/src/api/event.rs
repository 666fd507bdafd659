//! `EventService`: one customer's history, and the stream of everything.

use std::pin::Pin;
use std::time::Duration;

use chassis::auth;
use chassis::clock::Clock;
use chassis::database::{Connection, Database};
use chassis::form::{Form, timestamp};
use chassis::server::call::{self, call_id, open_ended};
use futures_util::{Stream, StreamExt, stream};
use proto::agreement::event_service_server::EventService;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    Checkpoint, ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse,
};
use proto::identity::TenantKind;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Api, checked, convert, status, viewer};
use crate::actions::visibility::require_customer;
use crate::store::change::ChangeError;
use crate::store::event::{Recorded, events_following, events_of};

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

#[tonic::async_trait]
impl EventService for Api {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let customer_id = form.id("customer_id", &message.customer_id);
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListEvents", &message.customer_id);
        self.list(form, page, move |connection, page| {
            require_customer(connection, viewer(&caller), customer_id)?;
            let partner = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
            let mut rows = events_of(connection, customer_id, partner, page.after_number(), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |row| row.revision.to_string());
            let as_seen = |mut row: Recorded| {
                if let Some(partner) = partner {
                    row.event = row.event.as_seen_by(partner);
                    // It covers what was just left out, so a guess could be checked against it.
                    row.hash.clear();
                }
                convert::event(row)
            };
            let events = rows.into_iter().map(as_seen).collect();
            Ok(ListEventsResponse { events, next_page_token })
        })
        .await
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let caller = auth::caller(&request)?;
        let call_id = call_id(&request);
        let WatchEventsRequest { after_revision: after, after_hash } = request.into_inner();
        let mut form = Form::new();
        if after < 0 {
            form.violation("after_revision", "must not be negative");
        }
        if after == 0 && !after_hash.is_empty() {
            form.violation("after_hash", "must be empty where after_revision is 0");
        }
        checked(form)?;
        let permit = self.stream_permit(&self.watchers, "watchers", &caller)?;

        let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let (end, ended) = oneshot::channel::<Status>();
        let mut watch = Watch {
            database: self.database.clone(),
            clock: self.clock.clone(),
            head: self.head.subscribe(),
            stopping: self.stopping.clone(),
            sender,
            cursor: after,
            hash: Some(after_hash).filter(|hash| !hash.is_empty()),
        };
        // Before anything is answered, so that a wrong cursor is an error of the call.
        watch.read(1).await.map_err(status::of)?;
        tokio::spawn(async move {
            let _permit = permit;
            if let Some(status) = watch.run().await {
                // A watcher that has gone away does not hear it.
                let _ = end.send(status);
            }
            tracing::info!(call_id, after, cursor = watch.cursor, "a watcher's stream ended");
        });
        let last = stream::once(ended).filter_map(|ended| async { ended.ok().map(Err) });
        Ok(open_ended(Box::pin(ReceiverStream::new(events).map(Ok).chain(last))))
    }
}

/// One watcher's stream, from this side.
struct Watch {
    database: Database,
    clock: Clock,
    head: watch::Receiver<i64>,
    stopping: CancellationToken,
    sender: mpsc::Sender<WatchEventsResponse>,
    /// The last revision put into the stream.
    cursor: i64,
    /// The hash of that event, unless the watcher did not say and nothing was sent yet.
    hash: Option<String>,
}

impl Watch {
    /// Sends until there is a reason to end; `None` when the watcher went away or its time is over.
    async fn run(&mut self) -> Option<Status> {
        let over = Instant::now() + WATCH_DURATION_MAX;
        while Instant::now() < over {
            if self.stopping.is_cancelled() {
                return Some(status::stopping());
            }
            let looked_at = self.clock.now();
            let events = match self.read(EVENTS_PER_READ).await {
                Ok(events) => events,
                Err(error) => return Some(status::of(error)),
            };
            let is_idle = events.is_empty();
            for event in events {
                if Instant::now() >= over {
                    return None;
                }
                let (revision, hash) = (event.revision, event.hash.clone());
                if let Err(end) = self.send(Item::Event(convert::event(event))).await {
                    return end;
                }
                self.cursor = revision;
                self.hash = Some(hash);
            }
            if !is_idle {
                continue;
            }
            let cursor = self.cursor;
            let mut is_silent = false;
            tokio::select! {
                () = self.stopping.cancelled() => return Some(status::stopping()),
                () = self.sender.closed() => return None,
                _ = self.head.wait_for(|head| *head > cursor) => {}
                () = tokio::time::sleep(CHECKPOINT_INTERVAL) => is_silent = true,
            }
            let checkpoint = Checkpoint { revision: cursor, looked_at: Some(timestamp(looked_at)) };
            if is_silent && let Err(end) = self.send(Item::Checkpoint(checkpoint)).await {
                return end;
            }
        }
        None
    }

    /// Puts an item into the stream. The error is how the stream ends: with a status for a watcher that is
    /// too slow, without for one that went away.
    async fn send(&self, item: Item) -> Result<(), Option<Status>> {
        let sent = tokio::select! {
            sent = self.sender.send_timeout(WatchEventsResponse { item: Some(item) }, READER_TIMEOUT) => sent,
            () = self.stopping.cancelled() => return Err(Some(status::stopping())),
        };
        sent.map_err(|unsent| match unsent {
            SendTimeoutError::Timeout(_) => Some(status::stood_still(READER_TIMEOUT, Some(self.cursor))),
            SendTimeoutError::Closed(_) => None,
        })
    }

    /// What follows the cursor, unless it is no part of the history.
    async fn read(&self, limit: i64) -> Result<Vec<Recorded>, ChangeError> {
        let (cursor, hash) = (self.cursor, self.hash.clone());
        let read =
            move |connection: &mut Connection| events_following(connection, (cursor, hash.as_deref()), limit);
        self.database.list(read).await
    }
}

#[cfg(test)]
mod tests {
    use chassis::database::Writes;
    use chrono::DateTime;
    use tempfile::TempDir;
    use tonic::Code;
    use uuid::Uuid;

    use super::*;
    use crate::rules::Refusal;
    use crate::rules::event::Event;
    use crate::store::MIGRATIONS;
    use crate::store::change::change_internal;

    /// A watcher without a reader yet, and what drives it. Time stands still and is moved on by the
    /// runtime whenever every task waits.
    struct World {
        database: Database,
        events: mpsc::Receiver<WatchEventsResponse>,
        head: watch::Sender<i64>,
        stop: CancellationToken,
        _folder: TempDir,
    }

    async fn world(recorded: i64, cursor: i64) -> (Watch, World) {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("events.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Serial).unwrap();
        database.migrate(MIGRATIONS).unwrap();
        record(&database, recorded).await;
        let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let (head, watched) = watch::channel(recorded);
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let clock = Clock::manual(DateTime::UNIX_EPOCH);
        let database_of_watch = database.clone();
        let watch =
            Watch { database: database_of_watch, clock, head: watched, stopping, sender, cursor, hash: None };
        (watch, World { database, events, head, stop, _folder: folder })
    }

    async fn record(database: &Database, count: i64) {
        change_internal(database, &Clock::system(), move |change| {
            for _ in 0..count {
                let (provider_id, reseller_id) = (Uuid::from_u128(1), Uuid::from_u128(2));
                change.record(&Event::ResellerLinked { provider_id, reseller_id, by: Uuid::from_u128(3) })?;
            }
            Ok::<_, ChangeError>(())
        })
        .await
        .unwrap();
    }

    fn revision_of(item: Option<WatchEventsResponse>) -> i64 {
        match item.and_then(|response| response.item) {
            Some(Item::Event(event)) => event.revision,
            other => panic!("an event was expected, not {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_watcher_is_closed_with_its_cursor_and_bounded_memory() {
        let (mut watch, mut world) = world(1000, 0).await;
        let status = watch.run().await.unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().starts_with("STREAM_STOOD_STILL"), "{}", status.message());
        let held = i64::try_from(EVENTS_WAITING_MAX).unwrap();
        assert_eq!(watch.cursor, held);
        assert!(status.message().ends_with(&format!("after revision {held}")), "{}", status.message());
        drop(watch);
        for revision in 1..=held {
            assert_eq!(revision_of(world.events.recv().await), revision);
        }
        assert_eq!(world.events.recv().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_stream_sends_its_revision_and_then_new_events() {
        let (mut watch, mut world) = world(3, 2).await;
        let running = tokio::spawn(async move { watch.run().await });
        assert_eq!(revision_of(world.events.recv().await), 3);
        for _ in 0..2 {
            let checkpoint = world.events.recv().await.unwrap().item;
            let looked_at = Some(timestamp(DateTime::UNIX_EPOCH));
            assert_eq!(checkpoint, Some(Item::Checkpoint(Checkpoint { revision: 3, looked_at })));
        }
        record(&world.database, 2).await;
        world.head.send_replace(5);
        let mut next = world.events.recv().await;
        // It may have been on its way to say once more that nothing had happened.
        while matches!(next, Some(WatchEventsResponse { item: Some(Item::Checkpoint(_)) })) {
            next = world.events.recv().await;
        }
        assert_eq!(revision_of(next), 4);
        assert_eq!(revision_of(world.events.recv().await), 5);

        world.stop.cancel();
        let status = running.await.unwrap().unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().starts_with("STOPPING"), "{}", status.message());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_after_its_time_and_for_who_goes_away() {
        let (mut watch, mut world) = world(1, 0).await;
        let running = tokio::spawn(async move { watch.run().await.is_none() });
        let mut checkpoints = 0;
        while let Some(item) = world.events.recv().await {
            checkpoints += u32::from(matches!(item.item, Some(Item::Checkpoint(_))));
        }
        assert!(running.await.unwrap());
        assert_eq!(checkpoints, 1800, "one every second for 30 minutes");

        let (mut watch, world) = self::world(1, 1).await;
        drop(world.events);
        assert!(watch.run().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_ahead_of_the_history_is_refused_at_any_time() {
        let (watch, _world) = world(3, 4).await;
        let ahead = watch.read(1).await.unwrap_err();
        assert!(matches!(ahead, ChangeError::Refused(Refusal::CursorAhead { head: 3 })), "{ahead:?}");

        let (mut watch, _world) = world(3, 3).await;
        watch.cursor = 4;
        assert_eq!(watch.run().await.unwrap().code(), Code::OutOfRange);
    }
}
