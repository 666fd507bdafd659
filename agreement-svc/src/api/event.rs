//! `EventService`: one customer's history, and the stream of everything.

use std::mem::take;

use chassis::auth;
use chassis::clock::Time;
use chassis::database::Connection;
use chassis::form::{Form, timestamp};
use chassis::paging::filter_of;
use chassis::server::call::{self, call_id};
use chassis::watch::{Position, WatchStream};
use proto::agreement::event_service_server::EventService;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    Checkpoint, ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse,
};
use proto::identity::TenantKind;
use tonic::{Request, Response, Status};

use super::{Api, checked, convert, status, viewer};
use crate::actions::visibility::require_customer;
use crate::store::change::ChangeError;
use crate::store::event::{Recorded, events_following, events_of};

#[tonic::async_trait]
impl EventService for Api {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let customer_id = form.id("customer_id", &message.customer_id);
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListEvents", &filter_of(&message));
        let newest_first = message.newest_first;
        self.list(form, page, move |connection, page| {
            require_customer(connection, viewer(&caller), customer_id)?;
            let partner = (caller.tenant_kind == TenantKind::Partner).then_some(caller.tenant_id);
            let from = if newest_first { page.before_number() } else { page.after_number() };
            let mut rows = events_of(connection, customer_id, partner, (newest_first, from), page.fetch())?;
            let next_page_token = page.cut(&mut rows, |row| row.revision.to_string());
            // What a reseller proposes to its provider is theirs.
            if caller.tenant_kind == TenantKind::Customer {
                rows.retain(|row| !row.event.is_of_proposal());
            }
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

    type WatchEventsStream = WatchStream<WatchEventsResponse>;

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
        let from = Position { revision: after, hash: Some(after_hash).filter(|hash| !hash.is_empty()) };
        let database = self.database.clone();
        let read = move |after: Position, limit: i64| {
            let database = database.clone();
            let read = move |connection: &mut Connection| {
                events_following(connection, (after.revision, after.hash.as_deref()), limit)
            };
            async move {
                let events: Result<Vec<Recorded>, ChangeError> = database.list(read).await;
                Ok(events.map_err(status::of)?.into_iter().map(item).collect())
            }
        };
        self.watchers.open((&caller, call_id), from, read, checkpoint).await
    }
}

fn item(event: Recorded) -> (Position, WatchEventsResponse) {
    let position = Position { revision: event.revision, hash: Some(event.hash.clone()) };
    (position, WatchEventsResponse { item: Some(Item::Event(convert::event(event))) })
}

fn checkpoint(revision: i64, looked_at: Time) -> WatchEventsResponse {
    let checkpoint = Checkpoint { revision, looked_at: Some(timestamp(looked_at)) };
    WatchEventsResponse { item: Some(Item::Checkpoint(checkpoint)) }
}
