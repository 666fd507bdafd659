//! agreement-svc's history, as far as it has consequences here.

use std::time::Duration;

use chassis::clock::new_id;
use chrono::DateTime;
use futures_util::FutureExt;
use proto::agreement as wire;
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::watch_events_response::Item;
use uuid::Uuid;

use super::Agreements;
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
}

impl Agreements {
    /// Follows the history after a revision.
    ///
    /// # Errors
    /// Why it cannot be followed, for the log.
    pub(crate) async fn follow(&self, after_revision: i64) -> Result<History, String> {
        let call_id = new_id(self.clock.now()).to_string();
        let request = self.own_request(wire::WatchEventsRequest { after_revision }, &call_id);
        let mut client = EventServiceClient::new(self.channel.clone());
        let stream = tokio::time::timeout(SILENCE_MAX, client.watch_events(request));
        let stream = stream.await.map_err(|_| silent())?.map_err(|status| status.to_string())?.into_inner();
        Ok(History { stream, seen: after_revision })
    }
}

impl History {
    /// The next event with consequences, or the last that has come of those without; `None` when the
    /// stream has ended as streams do, to be followed anew.
    ///
    /// # Errors
    /// The neighbour's, silence, and whatever makes no sense: an event out of its order, or one with
    /// consequences that cannot be read. Passing over such would leave subscriptions that must end.
    pub(crate) async fn next(&mut self) -> Result<Option<Moment>, String> {
        let Some(mut last) = self.read().await? else { return Ok(None) };
        for _ in 0..PASSED_OVER_MAX {
            if last.news.is_some() {
                break;
            }
            match self.read().now_or_never() {
                Some(Ok(Some(next))) => last = next,
                // What failed will fail again, once what has come is settled.
                Some(Ok(None) | Err(_)) | None => break,
            }
        }
        Ok(Some(last))
    }

    async fn read(&mut self) -> Result<Option<Moment>, String> {
        let response = tokio::time::timeout(SILENCE_MAX, self.stream.message()).await;
        let response = response.map_err(|_| silent())?.map_err(|status| status.to_string())?;
        let Some(response) = response else { return Ok(None) };
        let moment = match response.item {
            Some(Item::Event(event)) if event.revision == self.seen + 1 => read_event(event),
            Some(Item::Checkpoint(checkpoint)) if checkpoint.revision == self.seen => {
                let until = checkpoint.looked_at.and_then(time);
                until.map(|until| Moment { revision: self.seen, until, news: None })
            }
            _ => None,
        };
        let moment = moment.ok_or_else(|| nonsense(self.seen))?;
        self.seen = moment.revision;
        Ok(Some(moment))
    }
}

fn silent() -> String {
    format!("nothing came for {SILENCE_MAX:?}")
}

fn nonsense(revision: i64) -> String {
    format!("it makes no sense after revision {revision}")
}

fn time(time: prost_types::Timestamp) -> Option<Time> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
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
