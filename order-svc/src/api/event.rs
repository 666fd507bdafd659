//! `EventService`: one customer's events, and the stream of everything.

use std::mem::take;

use chassis::auth;
use chassis::clock::Time;
use chassis::database::{Connection, Error};
use chassis::form::{Form, timestamp};
use chassis::paging::filter_of;
use chassis::server::call::{self, call_id};
use chassis::watch::{Position, WatchStream};
use proto::order::event_service_server::EventService;
use proto::order::watch_events_response::Item;
use proto::order::{
    Checkpoint, ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse,
};
use tonic::{Request, Response, Status};

use super::{Api, checked, convert, status, viewer};
use crate::rules::Refusal;
use crate::rules::event::Event;
use crate::store::event::{Following, events_following, events_of};

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
        checked(form)?;
        let newest_first = message.newest_first;
        let from = if newest_first { page.before_number() } else { page.after_number() };
        let (viewer, limit) = (viewer(&caller), page.fetch());
        let read = move |connection: &mut Connection| {
            events_of(connection, customer_id, viewer, (newest_first, from), limit)
        };
        let (rows, next_page_token) = self.list(page, read, |event| event.revision.to_string()).await?;
        let events = rows.iter().map(convert::event).collect();
        Ok(Response::new(ListEventsResponse { events, next_page_token }))
    }

    type WatchEventsStream = WatchStream<WatchEventsResponse>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let caller = auth::caller(&request)?;
        let call_id = call_id(&request);
        let WatchEventsRequest { after_revision: revision } = request.into_inner();
        let mut form = Form::new();
        if revision < 0 {
            form.violation("after_revision", "must not be negative");
        }
        checked(form)?;
        let database = self.database.clone();
        let read = move |after: Position, limit: i64| {
            let database = database.clone();
            let read = move |connection: &mut Connection| events_following(connection, after.revision, limit);
            async move {
                let following = database.list(read).await.map_err(|error: Error| status::failed(&error))?;
                match following {
                    Following::Events(events) => Ok(events.iter().map(item).collect()),
                    Following::CursorAhead { head } => Err(status::refused(&Refusal::CursorAhead { head })),
                }
            }
        };
        let from = Position { revision, hash: None };
        self.watchers.open((&caller, call_id), from, read, checkpoint).await
    }
}

fn item(event: &Event) -> (Position, WatchEventsResponse) {
    let position = Position { revision: event.revision, hash: None };
    (position, WatchEventsResponse { item: Some(Item::Event(convert::event(event))) })
}

fn checkpoint(revision: i64, looked_at: Time) -> WatchEventsResponse {
    let checkpoint = Checkpoint { revision, looked_at: Some(timestamp(looked_at)) };
    WatchEventsResponse { item: Some(Item::Checkpoint(checkpoint)) }
}
