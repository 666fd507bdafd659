//! The events of agreement-svc, read as points of its history from a cursor on.

use agreement_gate_client::{self as client, Item, Watch, WatchError};
use chassis::clock::new_id;
use chassis::telemetry::trace::Traced;
use chrono::DateTime;
use futures_util::FutureExt;
use proto::agreement as wire;
use proto::agreement::event::Change;
use proto::agreement::event_service_client::EventServiceClient;
use uuid::Uuid;

use super::{AgreementClient, log_if_unauthenticated, metadata};
use crate::rules::Time;
use crate::rules::gate::EvidenceKind;
use crate::rules::history::{Consequence, Cursor, HistoryPoint, Restore};
use crate::rules::relationship::{Relationship, RelationshipEnd};
use crate::rules::withdrawal::Withdrawal;

/// Events that are read together where they have come already, so that catching up with many of them does not take a
/// transaction each.
const READ_MAX: usize = 256;

/// Of them with consequences: few enough that the customers concerned do not wait for long.
const CONSEQUENCES_MAX: usize = 64;

/// The history after a revision, as it goes on.
pub(crate) struct History {
    watch: Watch<wire::WatchEventsResponse>,
    /// The item that ended the last run of points; it is returned next.
    kept: Option<Result<StreamItem, NotFollowed>>,
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
    pub(crate) fn follow(&self, Cursor { revision, hash }: Cursor) -> History {
        let (own, clock) = (self.own.clone(), self.clock.clone());
        let watch = self.client.watch(client::Cursor { revision, hash }, move |channel, mut request| {
            let call_id = new_id(clock.now()).to_string();
            *request.metadata_mut() = metadata(&own.credentials(), &call_id);
            let mut events = EventServiceClient::new(Traced(channel));
            async move { events.watch_events(request).await }
        });
        History { watch, kept: None }
    }
}

impl History {
    /// The next events, as far as they have come.
    ///
    /// # Errors
    /// [`NotFollowed`]. An event with consequences that cannot be read ends it: skipping it would leave subscriptions that
    /// must end.
    pub(crate) async fn next(&mut self) -> Result<StreamItem, NotFollowed> {
        let first = match self.kept.take() {
            Some(kept) => kept?,
            None => self.read().await?,
        };
        let StreamItem::Points(mut points) = first else { return Ok(first) };
        for _ in 0..READ_MAX {
            if points.iter().filter(|point| point.consequence.is_some()).count() >= CONSEQUENCES_MAX {
                break;
            }
            match self.read().now_or_never() {
                None => break,
                Some(Ok(StreamItem::Points(next))) => {
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
        Ok(StreamItem::Points(points))
    }

    async fn read(&mut self) -> Result<StreamItem, NotFollowed> {
        let item = self.watch.next().await.map_err(|why| not_followed(&why))?;
        read_item(self.watch.seen(), item)
    }
}

fn not_followed(why: &WatchError) -> NotFollowed {
    match why {
        WatchError::OtherHistory(_) | WatchError::OutOfOrder(_) => {
            NotFollowed::InvalidHistory(why.to_string())
        }
        WatchError::Unavailable(status) | WatchError::Refused(status) => {
            log_if_unauthenticated(status);
            NotFollowed::Unavailable(why.to_string())
        }
    }
}

/// What an item means here, and the cursor after it.
fn read_item(seen: &client::Cursor, item: Item<wire::Event>) -> Result<StreamItem, NotFollowed> {
    match item {
        Item::Event(event) => match read_event(event) {
            Some(point) => Ok(StreamItem::Points(vec![point])),
            None => Err(NotFollowed::UnreadableEvent(seen.revision)),
        },
        Item::Checkpoint(looked_at) => {
            let invalid = || NotFollowed::InvalidHistory(format!("it sent a checkpoint of {looked_at:?}"));
            let until = time(looked_at).ok_or_else(invalid)?;
            let cursor = Cursor { revision: seen.revision, hash: seen.hash.clone() };
            Ok(StreamItem::Points(vec![HistoryPoint { cursor, until, consequence: None }]))
        }
        Item::Lost(client::Restore { last_revision, revision }) => {
            Ok(StreamItem::Lost(Restore { last_revision, revision }))
        }
    }
}

fn time(time: prost_types::Timestamp) -> Option<Time> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
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
        AttestationWithdrawn, Attested, RelationshipEnded, RelationshipEstablished, SignatureWithdrawn,
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

    /// A point, as the last item before a cursor means it.
    fn point(seen: &client::Cursor, item: Item<wire::Event>) -> Result<HistoryPoint, NotFollowed> {
        match read_item(seen, item)? {
            StreamItem::Points(points) => Ok(points.into_iter().next().unwrap()),
            StreamItem::Lost(restore) => panic!("{restore:?}"),
        }
    }

    fn seven() -> client::Cursor {
        client::Cursor { revision: 7, hash: Some("seven".into()) }
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
        let consequence = |change| read_event(event(7, change)).unwrap().consequence;
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
            read_event(by_customer).unwrap().consequence,
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
        let read = point(&seven(), Item::Event(right())).unwrap();
        assert_eq!((read.cursor.revision, read.until), (7, until));
        for (about, event) in [
            ("no time", wire::Event { recorded_at: None, ..right() }),
            ("no customer", wire::Event { customer_id: String::new(), ..right() }),
            ("no partner", wire::Event { partner_id: String::new(), ..right() }),
            ("an uncovered partner that is none", event(7, withdrawn(&["no id"]))),
            ("a reseller that is none", event(7, ended("no id"))),
        ] {
            let read = point(&seven(), Item::Event(event));
            assert_eq!(read, Err(NotFollowed::UnreadableEvent(7)), "{about}");
        }
    }

    #[test]
    fn a_checkpoint_is_a_point_and_a_restore_is_none() {
        let cursor = Cursor { revision: 7, hash: Some("seven".into()) };
        let quiet = HistoryPoint { cursor, until: time(AT).unwrap(), consequence: None };
        assert_eq!(point(&seven(), Item::Checkpoint(AT)), Ok(quiet));
        let no_time = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        let read = point(&seven(), Item::Checkpoint(no_time));
        assert!(matches!(read, Err(NotFollowed::InvalidHistory(_))), "{read:?}");
        let lost = client::Restore { last_revision: 3, revision: 7 };
        let lost = read_item(&seven(), Item::Lost(lost));
        assert_eq!(lost, Ok(StreamItem::Lost(Restore { last_revision: 3, revision: 7 })));
    }

    /// Everything that is gated stops while the history is another one, so only that may be taken for it.
    #[test]
    fn only_a_history_that_does_not_continue_the_cursor_is_another_one() {
        let status = tonic::Status::unknown("why");
        for (why, is_invalid) in [
            (WatchError::OtherHistory(status.clone()), true),
            (WatchError::OutOfOrder(7), true),
            (WatchError::Unavailable(status.clone()), false),
            (WatchError::Refused(status), false),
        ] {
            let read = not_followed(&why);
            assert_eq!(matches!(read, NotFollowed::InvalidHistory(_)), is_invalid, "{read:?}");
        }
    }
}
