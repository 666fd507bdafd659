//! agreement-svc's history, as far as it has consequences here.

use std::time::Duration;

use chassis::clock::new_id;
use chrono::DateTime;
use futures_util::FutureExt;
use proto::agreement as wire;
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::watch_events_response::Item;
use tonic::{Code, Status};
use uuid::Uuid;

use super::{Agreements, request_as, say_if_unidentified};
use crate::rules::Time;
use crate::rules::gate::EvidenceKind;
use crate::rules::withdrawal::{Moment, News, Parting, Withdrawal};

/// Something comes each second; a stream that is silent for this long has lost its other end.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Events without consequences that are passed over at once, so that catching up with many of them is
/// not a transaction each.
const PASSED_OVER_MAX: usize = 256;

/// The history after a revision, as it goes on.
pub(crate) struct History {
    stream: tonic::Streaming<wire::WatchEventsResponse>,
    /// The last revision that came.
    seen: i64,
    /// What came after moments that were passed over, to be told next.
    kept: Option<Result<Option<Moment>, NotFollowed>>,
}

/// Why the history cannot be followed. For the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotFollowed {
    /// The neighbour is away, slow or stopping; that passes.
    Away(String),
    /// It says what cannot be: that its history ends before what was applied here, or something out of
    /// its order. Somebody has to look.
    Nonsense(String),
}

impl Agreements {
    /// Follows the history after a revision.
    ///
    /// # Errors
    /// [`NotFollowed`].
    pub(crate) async fn follow(&self, after_revision: i64) -> Result<History, NotFollowed> {
        let call_id = new_id(self.clock.now()).to_string();
        let request =
            request_as(&self.own.credentials(), wire::WatchEventsRequest { after_revision }, &call_id);
        let replica = self.replicas.next();
        let mut client = EventServiceClient::new(replica.channel());
        let stream = tokio::time::timeout(SILENCE_MAX, client.watch_events(request)).await;
        match &stream {
            Ok(Ok(_)) => replica.answered(),
            Err(_) | Ok(Err(_)) => replica.failed(),
        }
        let stream = stream.map_err(|_| silent())?.inspect_err(say_if_unidentified);
        let stream = stream.map_err(|status| not_followed(&status))?.into_inner();
        Ok(History { stream, seen: after_revision, kept: None })
    }
}

impl History {
    /// The next event with consequences, or the last that has come of those without; `None` when the
    /// stream has ended as streams do, to be followed anew.
    ///
    /// # Errors
    /// [`NotFollowed`]. An event with consequences that cannot be read is nonsense: passing over it would
    /// leave subscriptions that must end.
    pub(crate) async fn next(&mut self) -> Result<Option<Moment>, NotFollowed> {
        let first = match self.kept.take() {
            Some(kept) => kept?,
            None => self.read().await?,
        };
        let Some(mut last) = first else { return Ok(None) };
        for _ in 0..PASSED_OVER_MAX {
            if last.news.is_some() {
                break;
            }
            match self.read().now_or_never() {
                None => break,
                Some(Ok(Some(next))) => last = next,
                Some(ended) => {
                    self.kept = Some(ended);
                    break;
                }
            }
        }
        Ok(Some(last))
    }

    async fn read(&mut self) -> Result<Option<Moment>, NotFollowed> {
        let response = tokio::time::timeout(SILENCE_MAX, self.stream.message()).await;
        let response = response.map_err(|_| silent())?.map_err(|status| not_followed(&status))?;
        let Some(response) = response else { return Ok(None) };
        let nonsense = || NotFollowed::Nonsense(format!("it makes no sense after revision {}", self.seen));
        let moment = read_moment(self.seen, response).ok_or_else(nonsense)?;
        self.seen = moment.revision;
        Ok(Some(moment))
    }
}

fn silent() -> NotFollowed {
    NotFollowed::Away(format!("nothing came for {SILENCE_MAX:?}"))
}

fn not_followed(status: &Status) -> NotFollowed {
    match status.code() {
        Code::OutOfRange => NotFollowed::Nonsense(status.to_string()),
        _ => NotFollowed::Away(status.to_string()),
    }
}

fn time(time: prost_types::Timestamp) -> Option<Time> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// What came after a revision; `None` when it makes no sense there.
fn read_moment(seen: i64, response: wire::WatchEventsResponse) -> Option<Moment> {
    match response.item? {
        Item::Event(event) => read_event(event).filter(|event| event.revision == seen + 1),
        Item::Checkpoint(checkpoint) => {
            let until = checkpoint.looked_at.and_then(time)?;
            (checkpoint.revision == seen).then_some(Moment { revision: seen, until, news: None })
        }
    }
}

fn read_event(event: wire::Event) -> Option<Moment> {
    use wire::event::Change;
    let customer_id = event.customer_id.parse();
    let partner_id: Option<Uuid> = event.partner_id.parse().ok();
    let news = match event.change {
        Some(Change::AttestationWithdrawn(withdrawn)) => Some(News::Withdrawn(Withdrawal {
            customer_id: customer_id.ok()?,
            kind: EvidenceKind::Attestation,
            acceptance_id: withdrawn.attestation_id.parse().ok()?,
            partner_id: Some(partner_id?),
            uncovered: read_ids(&withdrawn.uncovered_partner_ids)?,
        })),
        Some(Change::SignatureWithdrawn(withdrawn)) => Some(News::Withdrawn(Withdrawal {
            customer_id: customer_id.ok()?,
            kind: EvidenceKind::DirectSignature,
            acceptance_id: withdrawn.signature_id.parse().ok()?,
            partner_id: None,
            uncovered: read_ids(&withdrawn.uncovered_partner_ids)?,
        })),
        Some(Change::RelationshipEnded(ended)) => Some(News::RelationshipEnded(Parting {
            customer_id: customer_id.ok()?,
            payer_id: partner_id?,
            reseller_id: match ended.reseller_id.as_str() {
                "" => None,
                id => Some(id.parse().ok()?),
            },
            others_remain: ended.others_remain,
        })),
        // Kinds that this build does not know are of newer neighbours, which must not make use of them
        // to withdraw.
        Some(_) | None => None,
    };
    Some(Moment { revision: event.revision, until: event.recorded_at.and_then(time)?, news })
}

fn read_ids(ids: &[String]) -> Option<Vec<Uuid>> {
    ids.iter().map(|id| id.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use proto::agreement::event::Change;
    use proto::agreement::{
        AttestationWithdrawn, Attested, Checkpoint, RelationshipEnded, SignatureWithdrawn,
        WatchEventsResponse,
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

    fn after(seen: i64, event: wire::Event) -> Option<Moment> {
        read_moment(seen, WatchEventsResponse { item: Some(Item::Event(event)) })
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
        let news = |change| after(6, event(7, change)).unwrap().news;
        let uncovered = PARTNER.to_string();
        assert_eq!(
            news(withdrawn(&[&uncovered])),
            Some(News::Withdrawn(Withdrawal {
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
            after(6, by_customer).unwrap().news,
            Some(News::Withdrawn(Withdrawal {
                customer_id: CUSTOMER,
                kind: EvidenceKind::DirectSignature,
                acceptance_id: OTHER,
                partner_id: None,
                uncovered: vec![],
            }))
        );
        let parted = |reseller_id| {
            let (customer_id, payer_id) = (CUSTOMER, PARTNER);
            Some(News::RelationshipEnded(Parting { customer_id, payer_id, reseller_id, others_remain: true }))
        };
        assert_eq!(news(ended("")), parted(None));
        assert_eq!(news(ended(&OTHER.to_string())), parted(Some(OTHER)));
        // All others are passed over, those of newer neighbours included.
        assert_eq!(news(Some(Change::Attested(Attested::default()))), None);
        assert_eq!(news(None), None);
    }

    #[test]
    fn what_makes_no_sense_is_not_passed_over() {
        let right = || event(7, withdrawn(&[&PARTNER.to_string()]));
        let until = time(AT).unwrap();
        assert_eq!(after(6, right()).map(|moment| (moment.revision, moment.until)), Some((7, until)));
        for (about, seen, event) in [
            ("a gap", 5, right()),
            ("an event again", 7, right()),
            ("no time", 6, wire::Event { recorded_at: None, ..right() }),
            ("no customer", 6, wire::Event { customer_id: String::new(), ..right() }),
            ("no partner", 6, wire::Event { partner_id: String::new(), ..right() }),
            ("an uncovered partner that is none", 6, event(7, withdrawn(&["nobody"]))),
            ("a reseller that is none", 6, event(7, ended("nobody"))),
        ] {
            assert_eq!(after(seen, event), None, "{about}");
        }
        let checkpoint = |revision, looked_at| {
            let item = Some(Item::Checkpoint(Checkpoint { revision, looked_at }));
            read_moment(7, WatchEventsResponse { item })
        };
        assert_eq!(checkpoint(7, Some(AT)), Some(Moment { revision: 7, until, news: None }));
        assert_eq!(checkpoint(8, Some(AT)), None, "it knows of an event that did not come");
        assert_eq!(checkpoint(6, Some(AT)), None);
        assert_eq!(checkpoint(7, None), None, "it does not say when it looked");
        assert_eq!(read_moment(7, WatchEventsResponse { item: None }), None);
    }
}
