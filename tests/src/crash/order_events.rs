//! order-svc's history, as a watcher of its stream reads it: each order and each change of a subscription once (SUB-9).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use proto::order::event::Change;
use proto::order::watch_events_response::Item;
use proto::order::{Event, WatchEventsRequest, WatchEventsResponse};
use tonic::{Code, Streaming};

use super::RESUME_MAX;
use super::checks::Orders;
use crate::clients::As;

/// How long what was committed may go without its event: far longer than the recorder takes.
const RECORDED_MAX: Duration = Duration::from_secs(30);

/// What an event records, as far as the rows of the database say the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Recorded {
    Order { id: String, customer_id: String, payer_id: String },
    Change { subscription_id: String, number: i32, kind: String, quantity: i64 },
}

/// All that the stream has had so far.
#[derive(Default)]
pub(super) struct OrderEvents {
    head: i64,
    /// With the revision.
    recorded: BTreeMap<Recorded, i64>,
    orders: BTreeSet<String>,
    /// The number of the last change of each subscription.
    last: HashMap<String, i32>,
}

impl OrderEvents {
    /// Reads on until the stream has had all that is stored.
    pub(super) async fn read_on(&mut self, watcher: &As, stored: &Orders) -> Result<(), String> {
        let mut missing = recorded_of(stored);
        missing.retain(|row| !self.recorded.contains_key(row));
        if missing.is_empty() {
            return Ok(());
        }
        let mut events = watch(watcher, self.head).await?;
        let began = Instant::now();
        while let Some(first) = missing.first() {
            let next = events.message().await.map_err(|error| error.to_string())?;
            match next.and_then(|next| next.item) {
                Some(Item::Event(event)) => {
                    missing.remove(&self.apply(&event)?);
                }
                // What was committed just before may still get its event.
                Some(Item::Checkpoint(_)) if began.elapsed() < RECORDED_MAX => {}
                _ => {
                    let (head, count) = (self.head, missing.len());
                    return Err(format!(
                        "SUB-9: order-svc's history ends at {head} without {count} of what is stored: {first:?}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes the next event, which has to follow on those before.
    fn apply(&mut self, event: &Event) -> Result<Recorded, String> {
        let wrong = |what: &str| Err(format!("SUB-9: {what}: {event:?}"));
        if event.revision != self.head + 1 {
            return wrong(&format!("{} is followed by another revision than the next", self.head));
        }
        let recorded = match &event.change {
            Some(Change::OrderPlaced(_)) => {
                if !self.orders.insert(event.order_id.clone()) {
                    return wrong("the order was recorded before");
                }
                Recorded::Order {
                    id: event.order_id.clone(),
                    customer_id: event.customer_id.clone(),
                    payer_id: event.payer_id.clone(),
                }
            }
            Some(Change::SubscriptionChanged(of)) => {
                let change = of.change.clone().unwrap_or_default();
                let number = i32::try_from(change.number).unwrap_or_default();
                if !self.orders.contains(&event.order_id) {
                    return wrong("its order was not recorded before");
                }
                let last = self.last.insert(of.subscription_id.clone(), number).unwrap_or_default();
                if number != last + 1 {
                    return wrong(&format!("the change before it was {last}"));
                }
                Recorded::Change {
                    subscription_id: of.subscription_id.clone(),
                    number,
                    kind: change.kind().as_str_name().trim_start_matches("SUBSCRIPTION_CHANGE_KIND_").into(),
                    quantity: change.quantity_after.into(),
                }
            }
            Some(Change::HistoryRestored(_)) | None => return wrong("nothing was restored"),
        };
        self.head = event.revision;
        self.recorded.insert(recorded.clone(), event.revision);
        Ok(recorded)
    }

    /// That nothing was recorded that is not stored, as the rows were read after the events.
    pub(super) fn check_stored(&self, stored: &Orders) -> Result<(), String> {
        let stored = recorded_of(stored);
        match self.recorded.iter().find(|&(recorded, _)| !stored.contains(recorded)) {
            None => Ok(()),
            Some(unknown) => Err(format!("SUB-9: an event of what is not stored: {unknown:?}")),
        }
    }

    /// That all that another watcher heard has the same revisions here.
    pub(super) fn check_continues(&self, before: &Self) -> Result<(), String> {
        match before
            .recorded
            .iter()
            .find(|&(recorded, revision)| self.recorded.get(recorded) != Some(revision))
        {
            None => Ok(()),
            Some((recorded, revision)) => {
                let now = self.recorded.get(recorded);
                Err(format!(
                    "SUB-9: {recorded:?} was recorded as {revision}, and from the beginning as {now:?}"
                ))
            }
        }
    }
}

/// What events have to record of the rows.
fn recorded_of(stored: &Orders) -> BTreeSet<Recorded> {
    let orders = stored.placed().map(|order| Recorded::Order {
        id: order.id.clone(),
        customer_id: order.customer_id.clone(),
        payer_id: order.payer_id.clone(),
    });
    let changes = stored.changes.iter().map(|change| Recorded::Change {
        subscription_id: change.subscription_id.clone(),
        number: change.number,
        kind: change.kind.clone(),
        quantity: change.quantity_after,
    });
    orders.chain(changes).collect()
}

async fn watch(watcher: &As, after_revision: i64) -> Result<Streaming<WatchEventsResponse>, String> {
    let began = Instant::now();
    loop {
        match watcher.order_events().watch_events(WatchEventsRequest { after_revision }).await {
            // Connections that died with the primary are found dead one by one.
            Err(status) if status.code() == Code::Unavailable && began.elapsed() < RESUME_MAX => {}
            watched => {
                let watched = watched.map_err(|error| error.to_string())?;
                return Ok(watched.into_inner());
            }
        }
    }
}
