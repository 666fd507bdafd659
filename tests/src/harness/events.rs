//! What agreement-svc has recorded, as its history tells it.

use std::collections::BTreeSet;

use proto::agreement::event::Change;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{Event, WatchEventsRequest};
use tonic::Status;

use super::clients::metadata_of;
use super::cluster::Cluster;
use super::stack::is_of_the_world;
use crate::fixtures;

impl Cluster {
    /// The revision of the last event.
    ///
    /// # Errors
    /// What else it says to a watcher that is ahead of it.
    pub async fn head(&self) -> Result<i64, Status> {
        let beyond = WatchEventsRequest { after_revision: i64::MAX, ..WatchEventsRequest::default() };
        match self.as_caller(fixtures::operator()).events().watch_events(beyond).await {
            Ok(_) => Err(Status::internal("a watcher from the end of time is let in")),
            Err(refused) => {
                let head = metadata_of(&refused).get("head").and_then(|head| head.parse().ok());
                head.ok_or(refused)
            }
        }
    }

    /// What was recorded after a revision: everything, or, on a stack, whose history others add to, what
    /// concerns this cluster's partners and their customers.
    ///
    /// # Errors
    /// The refusal.
    pub async fn events_after(&self, revision: i64) -> Result<Vec<Event>, Status> {
        if !self.is_shared() {
            return self.all_events(revision).await;
        }
        let mut events = self.all_events(self.began()).await?;
        let customers: BTreeSet<_> = events.iter().filter_map(own_customer).collect();
        events.retain(|event| {
            let is_own = is_of_the_world(&event.partner_id) || customers.contains(&event.customer_id);
            is_own && event.revision > revision
        });
        Ok(events)
    }

    /// What was recorded after a revision, up to what is the last one now.
    async fn all_events(&self, after_revision: i64) -> Result<Vec<Event>, Status> {
        let (head, mut events) = (self.head().await?, vec![]);
        if head == after_revision {
            return Ok(events);
        }
        let request = WatchEventsRequest { after_revision, ..WatchEventsRequest::default() };
        let watching = self.as_caller(fixtures::operator()).events().watch_events(request).await?;
        let mut watching = watching.into_inner();
        while let Some(response) = watching.message().await? {
            let Some(Item::Event(event)) = response.item else { continue };
            let is_last = event.revision >= head;
            events.push(event);
            if is_last {
                break;
            }
        }
        Ok(events)
    }
}

/// The customer with whom a partner of the world's enters a relationship.
fn own_customer(event: &Event) -> Option<String> {
    let is_own = matches!(event.change, Some(Change::RelationshipEstablished(_)))
        && is_of_the_world(&event.partner_id);
    is_own.then(|| event.customer_id.clone())
}
