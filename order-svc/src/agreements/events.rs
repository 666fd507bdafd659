//! The event stream of agreement-svc, read as points of its history from a cursor on.

use std::time::Duration;

use chassis::clock::new_id;
use chrono::DateTime;
use futures_util::FutureExt;
use proto::agreement as wire;
use proto::agreement::event::Change;
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::watch_events_response::Item;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use uuid::Uuid;

use super::{AgreementClient, NO_REPLICA, Tried, judge, log_if_unauthenticated, request_as};
use crate::rules::Time;
use crate::rules::gate::EvidenceKind;
use crate::rules::history::{Consequence, Cursor, HistoryPoint, Restore};
use crate::rules::relationship::{Relationship, RelationshipEnd};
use crate::rules::withdrawal::Withdrawal;

/// Something comes each second; a stream that is silent for this long has lost its other end.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Events that are read together where they have come already, so that catching up with many of them does not take a
/// transaction each.
const READ_MAX: usize = 256;

/// Of them with consequences: few enough that the customers concerned do not wait for long.
const CONSEQUENCES_MAX: usize = 64;

/// The history after a revision, as it goes on.
pub(crate) struct History {
    stream: tonic::Streaming<wire::WatchEventsResponse>,
    /// Cancelled when the replica is no longer one: the stream ends then, and the next one comes from another.
    dropped: CancellationToken,
    /// Up to where it came.
    seen: Cursor,
    /// The item that ended the last run of points without consequences; it is returned next.
    kept: Option<Result<Option<StreamItem>, NotFollowed>>,
}

/// Why the history cannot be followed. For the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotFollowed {
    /// agreement-svc is away, slow or stopping; that passes.
    Unavailable(String),
    /// Its history cannot continue the one that was applied here: it ends before the cursor, has another hash there, or
    /// its events are out of order. An operator has to act.
    InvalidHistory(String),
    /// It continues that one, with an event of this revision that cannot be read. An operator has to act.
    UnreadableEvent(i64),
}

/// What comes next in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StreamItem {
    /// Events with consequences, and the last of each run without; at least one.
    Points(Vec<HistoryPoint>),
    /// Its database was restored from an older copy, and something of what was followed is not in its history:
    /// it has to be followed anew from the beginning.
    Lost(Restore),
}

impl AgreementClient {
    /// Follows the history after a cursor. Where the hash is known, agreement-svc checks that the cursor belongs to its
    /// history.
    ///
    /// # Errors
    /// [`NotFollowed`].
    pub(crate) async fn follow(&self, seen: Cursor) -> Result<History, NotFollowed> {
        let call_id = new_id(self.clock.now()).to_string();
        let after_hash = seen.hash.clone().unwrap_or_default();
        let message = wire::WatchEventsRequest { after_revision: seen.revision, after_hash };
        let request = request_as(&self.own.credentials(), message, &call_id);
        let replica = self.replicas.next(SILENCE_MAX).await;
        let replica = replica.ok_or_else(|| NotFollowed::Unavailable(NO_REPLICA.to_owned()))?;
        let mut client = EventServiceClient::new(replica.channel());
        let stream = tokio::time::timeout(SILENCE_MAX, client.watch_events(request)).await;
        match &stream {
            Err(_) => replica.failed(),
            // It has no cursor for another watcher, or is away.
            Ok(Err(status))
                if judge(status, false, true) == Tried::Failed
                    || status.code() == Code::ResourceExhausted =>
            {
                replica.failed();
            }
            Ok(_) => replica.answered(),
        }
        let stream = stream.map_err(|_| silent())?.inspect_err(log_if_unauthenticated);
        let stream = stream.map_err(|status| not_followed(&status))?.into_inner();
        Ok(History { stream, dropped: replica.dropped(), seen, kept: None })
    }
}

impl History {
    /// The next events, as far as they have come; `None` when the stream has ended as streams do; the caller opens it again.
    ///
    /// # Errors
    /// [`NotFollowed`]. An event with consequences that cannot be read ends it: skipping it would leave subscriptions that
    /// must end.
    pub(crate) async fn next(&mut self) -> Result<Option<StreamItem>, NotFollowed> {
        let first = match self.kept.take() {
            Some(kept) => kept?,
            None => self.read().await?,
        };
        let Some(StreamItem::Points(mut points)) = first else { return Ok(first) };
        for _ in 0..READ_MAX {
            if points.iter().filter(|point| point.consequence.is_some()).count() >= CONSEQUENCES_MAX {
                break;
            }
            match self.read().now_or_never() {
                None => break,
                Some(Ok(Some(StreamItem::Points(next)))) => {
                    // What has no consequences is passed over with what follows it.
                    points.pop_if(|last| last.consequence.is_none());
                    points.extend(next);
                }
                Some(ended) => {
                    self.kept = Some(ended);
                    break;
                }
            }
        }
        Ok(Some(StreamItem::Points(points)))
    }

    async fn read(&mut self) -> Result<Option<StreamItem>, NotFollowed> {
        let response = tokio::select! {
            () = self.dropped.cancelled() => return Ok(None),
            response = tokio::time::timeout(SILENCE_MAX, self.stream.message()) => response,
        };
        let response = response.map_err(|_| silent())?.map_err(|status| not_followed(&status))?;
        let Some(response) = response else { return Ok(None) };
        let item = read_next(&self.seen, response)?;
        if let StreamItem::Points(points) = &item
            && let Some(point) = points.last()
        {
            self.seen = point.cursor.clone();
        }
        Ok(Some(item))
    }
}

fn silent() -> NotFollowed {
    NotFollowed::Unavailable(format!("nothing came for {SILENCE_MAX:?}"))
}

fn not_followed(status: &Status) -> NotFollowed {
    match status.code() {
        Code::OutOfRange | Code::FailedPrecondition => NotFollowed::InvalidHistory(status.to_string()),
        _ => NotFollowed::Unavailable(status.to_string()),
    }
}

fn time(time: prost_types::Timestamp) -> Option<Time> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// The item after a cursor, or why the history does not go on from there.
fn read_next(seen: &Cursor, response: wire::WatchEventsResponse) -> Result<StreamItem, NotFollowed> {
    let next = seen.revision + 1;
    let is_next = matches!(&response.item, Some(Item::Event(event)) if event.revision == next);
    read_item(seen, response).ok_or_else(|| match is_next {
        true => NotFollowed::UnreadableEvent(next),
        false => NotFollowed::InvalidHistory(format!(
            "it sent an item that cannot follow revision {}",
            seen.revision
        )),
    })
}

/// The item after a cursor; `None` when it cannot follow there.
fn read_item(seen: &Cursor, response: wire::WatchEventsResponse) -> Option<StreamItem> {
    match response.item? {
        Item::Event(mut event) => match event.change.take() {
            Some(Change::HistoryRestored(restored)) => read_restored(seen, &restored, event),
            change => {
                event.change = change;
                let point = read_event(event).filter(|point| point.cursor.revision == seen.revision + 1);
                point.map(|point| StreamItem::Points(vec![point]))
            }
        },
        Item::Checkpoint(checkpoint) => {
            let until = checkpoint.looked_at.and_then(time)?;
            let point = HistoryPoint { cursor: seen.clone(), until, consequence: None };
            (checkpoint.revision == seen.revision).then_some(StreamItem::Points(vec![point]))
        }
    }
}

/// A restore; to a reader that has seen exactly what the copy held it is nothing but the next event.
fn read_restored(seen: &Cursor, restored: &wire::HistoryRestored, event: wire::Event) -> Option<StreamItem> {
    let restore = Restore { last_revision: restored.last_revision, revision: event.revision };
    if restore.revision <= seen.revision.max(restore.last_revision) {
        return None;
    }
    let is_next = restore.last_revision == seen.revision
        && seen.hash.as_ref().is_none_or(|hash| *hash == restored.last_hash);
    if is_next {
        read_event(event).map(|point| StreamItem::Points(vec![point]))
    } else {
        Some(StreamItem::Lost(restore))
    }
}

fn read_event(event: wire::Event) -> Option<HistoryPoint> {
    let customer_id = event.customer_id.parse();
    let partner_id: Option<Uuid> = event.partner_id.parse().ok();
    let consequence = match event.change {
        Some(Change::AttestationWithdrawn(withdrawn)) => Some(Consequence::Withdrawn(Withdrawal {
            customer_id: customer_id.ok()?,
            kind: EvidenceKind::Attestation,
            acceptance_id: withdrawn.attestation_id.parse().ok()?,
            partner_id: Some(partner_id?),
            uncovered: read_ids(&withdrawn.uncovered_partner_ids)?,
        })),
        Some(Change::SignatureWithdrawn(withdrawn)) => Some(Consequence::Withdrawn(Withdrawal {
            customer_id: customer_id.ok()?,
            kind: EvidenceKind::DirectSignature,
            acceptance_id: withdrawn.signature_id.parse().ok()?,
            partner_id: None,
            uncovered: read_ids(&withdrawn.uncovered_partner_ids)?,
        })),
        Some(Change::RelationshipEstablished(established)) => {
            let reseller_id = read_optional_id(&established.reseller_id)?;
            let relationship =
                Relationship { customer_id: customer_id.ok()?, payer_id: partner_id?, reseller_id };
            Some(Consequence::RelationshipEstablished(relationship))
        }
        Some(Change::RelationshipEnded(ended)) => {
            let reseller_id = read_optional_id(&ended.reseller_id)?;
            let relationship =
                Relationship { customer_id: customer_id.ok()?, payer_id: partner_id?, reseller_id };
            let others_remain = ended.others_remain;
            Some(Consequence::RelationshipEnded(RelationshipEnd { relationship, others_remain }))
        }
        // An event of a kind that this build does not know was written by a newer agreement-svc, which must not
        // withdraw by such a kind.
        Some(_) | None => None,
    };
    let cursor = Cursor { revision: event.revision, hash: Some(event.hash).filter(|hash| !hash.is_empty()) };
    Some(HistoryPoint { cursor, until: event.recorded_at.and_then(time)?, consequence })
}

/// An id that may be empty; `None` if it is something else.
fn read_optional_id(id: &str) -> Option<Option<Uuid>> {
    if id.is_empty() { Some(None) } else { id.parse().ok().map(Some) }
}

fn read_ids(ids: &[String]) -> Option<Vec<Uuid>> {
    ids.iter().map(|id| id.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use proto::agreement::{
        AttestationWithdrawn, Attested, Checkpoint, HistoryRestored, RelationshipEnded,
        RelationshipEstablished, SignatureWithdrawn, WatchEventsResponse,
    };

    use super::*;

    const CUSTOMER: Uuid = Uuid::from_u128(1);
    const PARTNER: Uuid = Uuid::from_u128(2);
    const OTHER: Uuid = Uuid::from_u128(3);
    const AT: prost_types::Timestamp = prost_types::Timestamp { seconds: 5, nanos: 0 };

    fn event(revision: i64, change: Option<Change>) -> wire::Event {
        wire::Event {
            revision,
            recorded_at: Some(AT),
            customer_id: CUSTOMER.to_string(),
            partner_id: PARTNER.to_string(),
            change,
            ..wire::Event::default()
        }
    }

    fn cursor(revision: i64, hash: Option<&str>) -> Cursor {
        Cursor { revision, hash: hash.map(str::to_owned) }
    }

    fn item_after(seen: &Cursor, item: Item) -> Option<StreamItem> {
        read_item(seen, WatchEventsResponse { item: Some(item) })
    }

    fn after(seen: i64, event: wire::Event) -> Option<HistoryPoint> {
        match item_after(&cursor(seen, None), Item::Event(event))? {
            StreamItem::Points(mut points) => points.pop(),
            StreamItem::Lost(restore) => panic!("{restore:?}"),
        }
    }

    fn withdrawn(uncovered: &[&str]) -> Option<Change> {
        Some(Change::AttestationWithdrawn(AttestationWithdrawn {
            attestation_id: OTHER.to_string(),
            reason: 1,
            uncovered_partner_ids: uncovered.iter().map(ToString::to_string).collect(),
        }))
    }

    fn ended(reseller_id: &str) -> Option<Change> {
        let reseller_id = reseller_id.to_owned();
        Some(Change::RelationshipEnded(RelationshipEnded { reseller_id, others_remain: true }))
    }

    #[test]
    fn what_has_consequences_is_read() {
        let consequence = |change| after(6, event(7, change)).unwrap().consequence;
        let uncovered = PARTNER.to_string();
        assert_eq!(
            consequence(withdrawn(&[&uncovered])),
            Some(Consequence::Withdrawn(Withdrawal {
                customer_id: CUSTOMER,
                kind: EvidenceKind::Attestation,
                acceptance_id: OTHER,
                partner_id: Some(PARTNER),
                uncovered: vec![PARTNER],
            }))
        );
        let signature = SignatureWithdrawn { signature_id: OTHER.to_string(), ..Default::default() };
        let signature = Some(Change::SignatureWithdrawn(signature));
        let by_customer = wire::Event { partner_id: String::new(), ..event(7, signature) };
        assert_eq!(
            after(6, by_customer).unwrap().consequence,
            Some(Consequence::Withdrawn(Withdrawal {
                customer_id: CUSTOMER,
                kind: EvidenceKind::DirectSignature,
                acceptance_id: OTHER,
                partner_id: None,
                uncovered: vec![],
            }))
        );
        let relationship_end = |reseller_id| {
            let relationship = Relationship { customer_id: CUSTOMER, payer_id: PARTNER, reseller_id };
            Some(Consequence::RelationshipEnded(RelationshipEnd { relationship, others_remain: true }))
        };
        assert_eq!(consequence(ended("")), relationship_end(None));
        assert_eq!(consequence(ended(&OTHER.to_string())), relationship_end(Some(OTHER)));
        for (reseller, reseller_id) in [(String::new(), None), (OTHER.to_string(), Some(OTHER))] {
            let established = RelationshipEstablished { reseller_id: reseller };
            let relationship = Relationship { customer_id: CUSTOMER, payer_id: PARTNER, reseller_id };
            assert_eq!(
                consequence(Some(Change::RelationshipEstablished(established))),
                Some(Consequence::RelationshipEstablished(relationship))
            );
        }
        // All others are skipped, also those of a newer agreement-svc.
        assert_eq!(consequence(Some(Change::Attested(Attested::default()))), None);
        assert_eq!(consequence(None), None);
    }

    #[test]
    fn an_invalid_event_is_not_skipped() {
        let right = || event(7, withdrawn(&[&PARTNER.to_string()]));
        let until = time(AT).unwrap();
        assert_eq!(after(6, right()).map(|point| (point.cursor.revision, point.until)), Some((7, until)));
        // Only what does not continue the history makes it another one.
        for (about, seen, event, is_next) in [
            ("a gap", 5, right(), false),
            ("an event again", 7, right(), false),
            ("no time", 6, wire::Event { recorded_at: None, ..right() }, true),
            ("no customer", 6, wire::Event { customer_id: String::new(), ..right() }, true),
            ("no partner", 6, wire::Event { partner_id: String::new(), ..right() }, true),
            ("an uncovered partner that is none", 6, event(7, withdrawn(&["no id"])), true),
            ("a reseller that is none", 6, event(7, ended("no id")), true),
        ] {
            assert_eq!(after(seen, event.clone()), None, "{about}");
            let response = WatchEventsResponse { item: Some(Item::Event(event)) };
            match read_next(&cursor(seen, None), response) {
                Err(NotFollowed::UnreadableEvent(7)) => assert!(is_next, "{about}"),
                Err(NotFollowed::InvalidHistory(_)) => assert!(!is_next, "{about}"),
                other => panic!("{about}: {other:?}"),
            }
        }
        let seen = cursor(7, Some("seven"));
        let checkpoint =
            |revision, looked_at| item_after(&seen, Item::Checkpoint(Checkpoint { revision, looked_at }));
        let quiet = StreamItem::Points(vec![HistoryPoint { cursor: seen.clone(), until, consequence: None }]);
        assert_eq!(checkpoint(7, Some(AT)), Some(quiet));
        assert_eq!(checkpoint(8, Some(AT)), None, "it knows of an event that did not come");
        assert_eq!(checkpoint(6, Some(AT)), None);
        assert_eq!(checkpoint(7, None), None, "it does not say when it looked");
        assert_eq!(read_item(&seen, WatchEventsResponse { item: None }), None);
    }

    #[test]
    fn a_restore_continues_only_the_cursor_of_its_copy() {
        const LIFTED: i64 = 7 + (1 << 32);
        let restored = |revision| {
            let change =
                Change::HistoryRestored(HistoryRestored { last_revision: 7, last_hash: "seven".into() });
            let hash = "restored".to_owned();
            Item::Event(wire::Event { hash, ..event(revision, Some(change)) })
        };
        let next = || {
            let (cursor, until) = (cursor(LIFTED, Some("restored")), time(AT).unwrap());
            Some(StreamItem::Points(vec![HistoryPoint { cursor, until, consequence: None }]))
        };
        let lost = || Some(StreamItem::Lost(Restore { last_revision: 7, revision: LIFTED }));
        for (about, seen, expected) in [
            ("all of the copy", cursor(7, Some("seven")), next()),
            ("as many events, and it is not known which", cursor(7, None), next()),
            ("as many events, of which one is another", cursor(7, Some("another")), lost()),
            ("more than the copy held", cursor(9, Some("nine")), lost()),
            ("less, and the rest did not come", cursor(6, Some("six")), lost()),
            ("what comes later", cursor(LIFTED, Some("restored")), None),
        ] {
            assert_eq!(item_after(&seen, restored(LIFTED)), expected, "{about}");
        }
        assert_eq!(item_after(&cursor(3, None), restored(7)), None, "it comes before the end of the copy");
    }
}
