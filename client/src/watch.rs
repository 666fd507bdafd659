//! Watchers: the history of a service (`WatchEvents`) from a cursor on, over as many streams as it takes.

use std::future::Future;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use prost_types::Timestamp;
use proto::{agreement, order};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::retry::backoff::{Backoff, ExponentialBackoff};

use crate::backoff::backoff;
use crate::call::{Client, NO_REPLICA, Tried, judge};
use crate::replicas::Replicas;

/// Something comes each second; a stream that is silent for this long has lost its other end.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Backoff before a stream is opened again: the first wait, and the longest.
const REOPEN_FIRST: Duration = Duration::from_millis(100);
const REOPEN_LONGEST: Duration = Duration::from_secs(5);

/// How far a history is known: up to the event of a revision, 0 for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The revision of that event.
    pub revision: i64,
    /// Its hash, which covers all before it; `None` where it is not known. Events of order-svc have none.
    pub hash: Option<String>,
}

/// What comes next in a history.
#[derive(Clone, Debug, PartialEq)]
pub enum Item<E> {
    /// The next event.
    Event(E),
    /// There was no later event at that time.
    Checkpoint(Timestamp),
    /// The database was restored from an older copy, and something of what was seen is not in the history any more. Take back
    /// what was done about it; the watcher goes on after the restore.
    Lost(Restore),
}

/// A restore: between its two revisions the history has no event, and lost those that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Of the last event of the copy.
    pub last_revision: i64,
    /// Of the event that announces the restore.
    pub revision: i64,
}

/// Why nothing comes. [`Watch::next`] opens the stream again when it is called again, whatever the reason.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// The service is away, slow, full or stopping; that passes.
    #[error("{0}")]
    Unavailable(Status),
    /// The cursor is no part of the history: CURSOR_AHEAD or HISTORY_FORKED. An operator has to act.
    #[error("{0}")]
    OtherHistory(Status),
    /// An item cannot follow this revision. An operator has to act.
    #[error("it sent an item that cannot follow revision {0}")]
    OutOfOrder(i64),
    /// Any other refusal, such as of the identity.
    #[error("{0}")]
    Refused(Status),
}

impl From<Status> for WatchError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::OutOfRange | Code::FailedPrecondition => Self::OtherHistory(status),
            Code::Unavailable
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Unknown
            | Code::Internal => Self::Unavailable(status),
            _ => Self::Refused(status),
        }
    }
}

/// The messages of a service's stream of events. The history of each of the two services has its own.
pub trait WatchItem: Send + Sized + 'static {
    /// Requests the stream.
    type Request: Send + 'static;
    /// An event of the history.
    type Event: Send;

    /// The request for what follows a cursor.
    fn request(after: &Cursor) -> Self::Request;

    /// What the message holds; `None` if it is incomplete.
    fn read(self) -> Option<Received<Self::Event>>;
}

/// A message of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Received<E> {
    /// An event.
    Event {
        /// Its place.
        at: Cursor,
        /// If it announces a restore: the place of the last event of the copy.
        copy_end: Option<Cursor>,
        /// The event.
        event: E,
    },
    /// That there was no event after a revision.
    Checkpoint {
        /// The revision.
        revision: i64,
        /// At that time.
        looked_at: Timestamp,
    },
}

impl WatchItem for agreement::WatchEventsResponse {
    type Request = agreement::WatchEventsRequest;
    type Event = agreement::Event;

    fn request(after: &Cursor) -> Self::Request {
        let after_hash = after.hash.clone().unwrap_or_default();
        agreement::WatchEventsRequest { after_revision: after.revision, after_hash }
    }

    fn read(self) -> Option<Received<Self::Event>> {
        use agreement::event::Change;
        use agreement::watch_events_response::Item;
        match self.item? {
            Item::Event(event) => {
                let copy_end = match &event.change {
                    Some(Change::HistoryRestored(restored)) => {
                        Some(Cursor { revision: restored.last_revision, hash: some(&restored.last_hash) })
                    }
                    _ => None,
                };
                let at = Cursor { revision: event.revision, hash: some(&event.hash) };
                Some(Received::Event { at, copy_end, event })
            }
            Item::Checkpoint(checkpoint) => {
                Some(Received::Checkpoint { revision: checkpoint.revision, looked_at: checkpoint.looked_at? })
            }
        }
    }
}

impl WatchItem for order::WatchEventsResponse {
    type Request = order::WatchEventsRequest;
    type Event = order::Event;

    fn request(after: &Cursor) -> Self::Request {
        order::WatchEventsRequest { after_revision: after.revision }
    }

    fn read(self) -> Option<Received<Self::Event>> {
        use order::event::Change;
        use order::watch_events_response::Item;
        match self.item? {
            Item::Event(event) => {
                let copy_end = match &event.change {
                    Some(Change::HistoryRestored(restored)) => {
                        Some(Cursor { revision: restored.last_revision, hash: None })
                    }
                    _ => None,
                };
                let at = Cursor { revision: event.revision, hash: None };
                Some(Received::Event { at, copy_end, event })
            }
            Item::Checkpoint(checkpoint) => {
                Some(Received::Checkpoint { revision: checkpoint.revision, looked_at: checkpoint.looked_at? })
            }
        }
    }
}

fn some(hash: &str) -> Option<String> {
    Some(hash.to_owned()).filter(|hash| !hash.is_empty())
}

/// A history after a cursor, as it goes on.
pub struct Watch<R: WatchItem> {
    replicas: Replicas,
    open: Open<R>,
    seen: Cursor,
    stream: Option<Stream<R>>,
    backoff: ExponentialBackoff,
    /// Not before then is the stream opened again.
    reopen_at: Option<Instant>,
}

/// Makes the call that opens a stream.
type Open<R> = Box<
    dyn Fn(
            Channel,
            Request<<R as WatchItem>::Request>,
        ) -> BoxFuture<'static, Result<Response<Streaming<R>>, Status>>
        + Send
        + Sync,
>;

struct Stream<R> {
    messages: Streaming<R>,
    /// Cancelled when the replica is no longer one: the next stream comes from another.
    dropped: CancellationToken,
    has_received: bool,
}

impl Client {
    /// Follows the history of the service after a cursor: `open` makes the call, with the identity that it has then, for each
    /// stream that it takes. Where the cursor has a hash, agreement-svc checks that it belongs to its history.
    pub fn watch<R, F>(
        &self,
        after: Cursor,
        open: impl Fn(Channel, Request<R::Request>) -> F + Send + Sync + 'static,
    ) -> Watch<R>
    where
        R: WatchItem,
        F: Future<Output = Result<Response<Streaming<R>>, Status>> + Send + 'static,
    {
        Watch {
            replicas: self.replicas.clone(),
            open: Box::new(move |channel, request| open(channel, request).boxed()),
            seen: after,
            stream: None,
            backoff: backoff(REOPEN_FIRST, REOPEN_LONGEST),
            reopen_at: None,
        }
    }
}

impl<R: WatchItem> Watch<R> {
    /// Up to where the history came: the cursor to store with the effect of the last item.
    #[must_use]
    pub fn seen(&self) -> &Cursor {
        &self.seen
    }

    /// The next item, each once and in order. A stream that ends as streams do is opened again, and so is one that failed when
    /// this is called again, each time after a growing pause while nothing comes. Its future can be dropped at any time.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn next(&mut self) -> Result<Item<R::Event>, WatchError> {
        loop {
            let Some(stream) = &mut self.stream else {
                if let Some(at) = self.reopen_at {
                    sleep_until(at).await;
                }
                match self.open().await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(why) => {
                        self.close();
                        return Err(why);
                    }
                }
                continue;
            };
            let received = tokio::select! {
                () = stream.dropped.cancelled() => Ok(None),
                received = timeout(SILENCE_MAX, stream.messages.message()) => received.unwrap_or_else(|_| Err(silent())),
            };
            let is_first = !std::mem::replace(&mut stream.has_received, true);
            let item = match received {
                Ok(Some(message)) => {
                    let item = message.read().and_then(|received| item_after(&self.seen, received));
                    item.ok_or(WatchError::OutOfOrder(self.seen.revision))
                }
                Ok(None) => {
                    self.close();
                    continue;
                }
                Err(status) => Err(status.into()),
            };
            match item {
                Ok((item, at)) => {
                    self.seen = at;
                    if is_first {
                        self.backoff = backoff(REOPEN_FIRST, REOPEN_LONGEST);
                    }
                    return Ok(item);
                }
                Err(why) => {
                    self.close();
                    return Err(why);
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Stream<R>, WatchError> {
        let replica = self.replicas.next(SILENCE_MAX).await;
        let Some(replica) = replica else { return Err(Status::unavailable(NO_REPLICA).into()) };
        let request = Request::new(R::request(&self.seen));
        let opened = timeout(SILENCE_MAX, (self.open)(replica.channel(), request)).await;
        match &opened {
            Err(_) => replica.failed(),
            // It has no room for another watcher, or is away.
            Ok(Err(status))
                if judge(status, false, true) == Tried::Failed
                    || status.code() == Code::ResourceExhausted =>
            {
                replica.failed();
            }
            Ok(_) => replica.answered(),
        }
        let messages = opened.unwrap_or_else(|_| Err(silent()))?.into_inner();
        Ok(Stream { messages, dropped: replica.dropped(), has_received: false })
    }

    fn close(&mut self) {
        self.stream = None;
        self.reopen_at = Some(self.backoff.next_backoff().deadline());
    }
}

fn silent() -> Status {
    Status::deadline_exceeded(format!("nothing came for {SILENCE_MAX:?}"))
}

/// The item after a cursor, and the cursor after it; `None` if it cannot follow there.
fn item_after<E>(seen: &Cursor, received: Received<E>) -> Option<(Item<E>, Cursor)> {
    match received {
        Received::Checkpoint { revision, looked_at } => {
            (revision == seen.revision).then(|| (Item::Checkpoint(looked_at), seen.clone()))
        }
        Received::Event { at, copy_end: None, event } => {
            (at.revision.checked_sub(1) == Some(seen.revision)).then_some((Item::Event(event), at))
        }
        Received::Event { at, copy_end: Some(end), event } => {
            if at.revision <= seen.revision.max(end.revision) {
                return None;
            }
            // To a watcher that has seen exactly what the copy held it is nothing but the next event.
            let is_next = end.revision == seen.revision && (seen.hash.is_none() || seen.hash == end.hash);
            let restore = Restore { last_revision: end.revision, revision: at.revision };
            Some((if is_next { Item::Event(event) } else { Item::Lost(restore) }, at))
        }
    }
}

#[cfg(test)]
mod tests {
    use agreement::event::Change;
    use agreement::watch_events_response::Item as Sent;
    use agreement::{Checkpoint, Event, HistoryRestored, WatchEventsResponse};

    use super::*;

    const AT: Timestamp = Timestamp { seconds: 5, nanos: 0 };

    fn cursor(revision: i64, hash: Option<&str>) -> Cursor {
        Cursor { revision, hash: hash.map(str::to_owned) }
    }

    /// What a message of agreement-svc is to a watcher at a cursor.
    fn after(seen: &Cursor, item: Option<Sent>) -> Option<(Item<Event>, Cursor)> {
        item_after(seen, WatchEventsResponse { item }.read()?)
    }

    #[test]
    fn only_what_follows_the_cursor_is_taken() {
        let event = Event { revision: 7, hash: "seven".into(), ..Event::default() };
        let next = Some((Item::Event(event.clone()), cursor(7, Some("seven"))));
        for (seen, expected) in [(6, next), (5, None), (7, None), (8, None)] {
            assert_eq!(
                after(&cursor(seen, None), Some(Sent::Event(event.clone()))),
                expected,
                "after {seen}"
            );
        }
        let seen = cursor(7, Some("seven"));
        let checkpoint =
            |revision, looked_at| after(&seen, Some(Sent::Checkpoint(Checkpoint { revision, looked_at })));
        assert_eq!(checkpoint(7, Some(AT)), Some((Item::Checkpoint(AT), seen.clone())));
        assert_eq!(checkpoint(8, Some(AT)), None, "it knows of an event that did not come");
        assert_eq!(checkpoint(6, Some(AT)), None);
        assert_eq!(checkpoint(7, None), None, "it does not say when it looked");
        assert_eq!(after(&seen, None), None);
    }

    const LIFTED: i64 = 7 + (1 << 32);

    #[test]
    fn a_restore_continues_only_the_cursor_of_its_copy() {
        let restored = |revision| {
            let change =
                Change::HistoryRestored(HistoryRestored { last_revision: 7, last_hash: "seven".into() });
            Event { revision, hash: "restored".into(), change: Some(change), ..Event::default() }
        };
        let place = || cursor(LIFTED, Some("restored"));
        let next = || Some((Item::Event(restored(LIFTED)), place()));
        let lost = || Some((Item::Lost(Restore { last_revision: 7, revision: LIFTED }), place()));
        for (about, seen, expected) in [
            ("all of the copy", cursor(7, Some("seven")), next()),
            ("as many events, and it is not known which", cursor(7, None), next()),
            ("as many events, of which one is another", cursor(7, Some("another")), lost()),
            ("more than the copy held", cursor(9, Some("nine")), lost()),
            ("less, and the rest did not come", cursor(6, Some("six")), lost()),
            ("what comes later", cursor(LIFTED, Some("restored")), None),
        ] {
            assert_eq!(after(&seen, Some(Sent::Event(restored(LIFTED)))), expected, "{about}");
        }
        let early = after(&cursor(3, None), Some(Sent::Event(restored(7))));
        assert_eq!(early, None, "it comes before the end of the copy");
    }

    /// Its events have no hashes.
    #[test]
    fn a_restore_of_order_svc_is_known_by_its_revision() {
        let restored = || {
            let change = order::event::Change::HistoryRestored(order::HistoryRestored { last_revision: 7 });
            order::Event { revision: LIFTED, change: Some(change), ..order::Event::default() }
        };
        let after = |seen| {
            let item = Some(order::watch_events_response::Item::Event(restored()));
            item_after(&cursor(seen, None), order::WatchEventsResponse { item }.read()?)
        };
        let lost = Item::Lost(Restore { last_revision: 7, revision: LIFTED });
        assert_eq!(after(7), Some((Item::Event(restored()), cursor(LIFTED, None))));
        assert_eq!(after(9), Some((lost, cursor(LIFTED, None))));
        assert_eq!(after(LIFTED), None);
    }

    #[test]
    fn what_passes_by_itself_differs_from_what_needs_a_person() {
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal, Code::DeadlineExceeded] {
            let why = WatchError::from(Status::new(code, ""));
            assert!(matches!(why, WatchError::Unavailable(_)), "{why:?}");
        }
        for code in [Code::OutOfRange, Code::FailedPrecondition] {
            let why = WatchError::from(Status::new(code, ""));
            assert!(matches!(why, WatchError::OtherHistory(_)), "{why:?}");
        }
        for code in [Code::Unauthenticated, Code::PermissionDenied, Code::InvalidArgument] {
            let why = WatchError::from(Status::new(code, ""));
            assert!(matches!(why, WatchError::Refused(_)), "{why:?}");
        }
    }
}
