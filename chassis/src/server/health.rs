//! The health service: the whole process serves or does not, and so do its gRPC services.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::status::{RETRY, failure};

/// Characters of an unknown name that its refusal repeats: it travels in headers.
const NAME_SHOWN: usize = 100;

pub(super) struct HealthService {
    /// The full names of the services; the empty name is the whole process.
    pub(super) services: &'static [&'static str],
    pub(super) domain: &'static str,
    /// Whether the process serves. It stops once.
    pub(super) is_serving: watch::Receiver<bool>,
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn of(is_serving: bool) -> HealthCheckResponse {
    answer(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

impl HealthService {
    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if self.knows(&request.get_ref().service) {
            return Ok(Response::new(of(*self.is_serving.borrow())));
        }
        let sentence = "this process has no service of that name; leave the name empty for the whole process";
        let refused = failure(self.domain, Code::NotFound, "RESOURCE_NOT_FOUND", sentence);
        let name: String = request.get_ref().service.chars().take(NAME_SHOWN).collect();
        Err(refused.resource("service", name).status())
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Tells the status and each change of it. The stream ends when the process stops, which otherwise would wait for
    /// watchers. The status of an unknown service is that it is unknown, and it does not change.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = self.knows(&request.get_ref().service);
        let stopping =
            failure(self.domain, Code::Unavailable, "STOPPING", "the server stops; try another replica");
        let stopping = stopping.retry_after(RETRY).status();
        let statuses = WatchStream::new(self.is_serving.clone()).flat_map(move |is_serving| {
            let status = if known { of(is_serving) } else { answer(ServingStatus::ServiceUnknown) };
            let end = (!is_serving).then(|| Err(stopping.clone()));
            stream::iter([Ok(status)].into_iter().chain(end))
        });
        Ok(Response::new(Box::pin(statuses)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn watchers_hear_of_changes_and_of_unknown_services_and_end_with_the_process() {
        let (serving, is_serving) = watch::channel(true);
        let health = HealthService { services: &["a.B"], domain: "some-svc", is_serving };
        let watch =
            |service: &str| health.watch(Request::new(HealthCheckRequest { service: service.into() }));
        let mut streams = vec![];
        for (service, first) in [
            ("", ServingStatus::Serving),
            ("a.B", ServingStatus::Serving),
            ("a.C", ServingStatus::ServiceUnknown),
        ] {
            let mut stream = watch(service).await.unwrap().into_inner();
            assert_eq!(stream.next().await.unwrap().unwrap().status(), first, "{service}");
            streams.push(stream);
        }
        serving.send_replace(false);
        for (mut stream, last) in streams.into_iter().zip([
            ServingStatus::NotServing,
            ServingStatus::NotServing,
            ServingStatus::ServiceUnknown,
        ]) {
            assert_eq!(stream.next().await.unwrap().unwrap().status(), last);
            assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
        }
    }
}
