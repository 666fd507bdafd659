//! order-svc's event stream: every order and change of a subscription once, in the order of the commits.

mod restores;
mod story;
mod watchers;

use std::time::Duration;

use proto::order::event::Change;
use proto::order::watch_events_response::Item;
use proto::order::{
    Event, ListEventsRequest, SubscriptionChangeKind, WatchEventsRequest, WatchEventsResponse,
};
use tests::As;
use tests::assert::eventually;
use tonic::{Status, Streaming};

/// Longer than anything here takes, so that a watcher that waits for ever fails its test.
const LONG: Duration = Duration::from_secs(60);

async fn watch(caller: &As, after_revision: i64) -> Result<Streaming<WatchEventsResponse>, Status> {
    let request = WatchEventsRequest { after_revision };
    caller.order_events().watch_events(request).await.map(tonic::Response::into_inner)
}

/// The next event of a stream; checkpoints are skipped.
async fn next(stream: &mut Streaming<WatchEventsResponse>) -> Event {
    loop {
        match stream.message().await.unwrap().and_then(|response| response.item) {
            Some(Item::Event(event)) => return event,
            Some(Item::Checkpoint(_)) => {}
            None => panic!("the stream ended"),
        }
    }
}

/// The revisions of what is left in a stream, and the status it ends with.
async fn rest(stream: &mut Streaming<WatchEventsResponse>) -> (Vec<i64>, Status) {
    let mut revisions = vec![];
    loop {
        match stream.message().await {
            Ok(Some(WatchEventsResponse { item: Some(Item::Event(event)) })) => {
                revisions.push(event.revision);
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a status after {revisions:?}"),
            Err(status) => return (revisions, status),
        }
    }
}

/// All events of a customer that the caller sees.
async fn history(viewer: &As, customer: &str) -> Vec<Event> {
    history_from(viewer, customer, false).await
}

async fn history_from(viewer: &As, customer: &str, newest_first: bool) -> Vec<Event> {
    let mut events = vec![];
    let mut page_token = String::new();
    loop {
        let customer_id = customer.into();
        let request = ListEventsRequest { customer_id, page_size: 3, page_token, newest_first };
        let page = viewer.order_events().list_events(request).await.unwrap().into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return events;
        }
    }
}

/// The events of a customer, once there are as many.
async fn history_of(viewer: &As, customer: &str, count: usize) -> Vec<Event> {
    eventually("events of the customer", async || {
        let events = history(viewer, customer).await;
        (events.len() >= count).then_some(events)
    })
    .await
}

/// The kind of each event.
fn kinds(events: &[Event]) -> Vec<&'static str> {
    let kind = |event: &Event| match event.change.as_ref().unwrap() {
        Change::OrderPlaced(_) => "PLACED",
        Change::HistoryRestored(_) => "RESTORED",
        Change::SubscriptionChanged(changed) => {
            let kind = changed.change.as_ref().unwrap().kind();
            assert_ne!(kind, SubscriptionChangeKind::Unspecified);
            kind.as_str_name().trim_start_matches("SUBSCRIPTION_CHANGE_KIND_")
        }
    };
    events.iter().map(kind).collect()
}
