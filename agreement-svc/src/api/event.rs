//! `EventService`.

use std::pin::Pin;

use futures_util::Stream;
use proto::agreement::event_service_server::EventService;
use proto::agreement::{ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse};
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl EventService for Api {
    async fn list_events(
        &self,
        _request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        Err(Status::unimplemented("not built yet"))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        _request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        Err(Status::unimplemented("not built yet"))
    }
}
