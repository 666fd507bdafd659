//! The middleware of all calls: each call is identified, admitted by the access policy and the concurrency limit, timed,
//! guarded against panics, logged, counted and traced, in this order.
//!
//! A call that is refused for load is only counted: its refusal must cost far less than its answer. Calls of health and
//! reflection need no identity; they are limited in number and size.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use super::Options;
use super::body::{CountedBody, GuardedBody};
use super::connection::PendingResponses;
use super::deadline::{Deadline, Late, RECEIVE_MAX, in_time, work_time};
use super::limits::memory::{self, RequestMemory};
use super::limits::queue::{CallQueue, Entry, Slot};
use super::limits::tenant::{Overload, Tenant, TenantLimiter};
use super::overload::Refusals;
use super::record::CallRecord;
use crate::auth::access::{self, AccessPolicy};
use crate::auth::{self, Caller};
use crate::database::share;
use crate::form::Form;
use crate::metrics::{Calls, UNKNOWN_PATH};
use crate::status::internal;

/// Unauthenticated calls at a time: of reflection, and those that watch health. A few replicas of a client watch the
/// health of this process, and an operator looks around; their messages are small.
const PUBLIC_CALLS_MAX: usize = 256;

/// The call by which an orchestrator checks whether the process is healthy. It has a limit of its own, fair among
/// connections, so that other unauthenticated calls cannot make the check fail.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// The id under which one call is logged, here and in the services that it calls.
#[derive(Clone, Debug)]
struct CallId(String);

/// Marks a response that is an open-ended stream.
#[derive(Clone, Copy, Debug)]
struct OpenEnded;

/// The response of an open-ended stream: it does not hold the slot of a call. The handler limits the number of such
/// streams, and how long each may make no progress.
#[must_use]
pub fn open_ended<S>(stream: S) -> Response<S> {
    let mut response = Response::new(stream);
    response.extensions_mut().insert(OpenEnded);
    response
}

/// Opens a request: its caller, its message, and a form to read the message with.
///
/// # Errors
/// Those of [`auth::caller`].
pub fn open<M>(request: Request<M>) -> Result<(Caller, M, Form), Status> {
    let caller = auth::caller(&request)?;
    Ok((caller, request.into_inner(), Form::new()))
}

/// The id that the server gave this call.
pub fn call_id<T>(request: &Request<T>) -> String {
    request.extensions().get::<CallId>().map(|id| id.0.clone()).unwrap_or_default()
}

/// The middleware. Clones share their limits.
#[derive(Clone)]
pub(super) struct CallLayer(Arc<Shared>);

struct Shared {
    options: Options,
    queue: CallQueue,
    memory: TenantLimiter,
    public_calls: Arc<Semaphore>,
    health_checks: TenantLimiter,
    refusals: Refusals,
    calls: Calls,
}

#[derive(Clone)]
pub(super) struct CallService {
    shared: Arc<Shared>,
    inner: Routes,
}

type ResponseFuture = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl CallLayer {
    pub(super) fn new(options: Options, calls: Calls) -> Self {
        calls.expect(options.access.iter().map(|(path, _)| *path));
        let internal_kind = options.identities.vocabulary().internal_kind;
        Self(Arc::new(Shared {
            queue: CallQueue::new(options.calls_max, internal_kind),
            memory: memory::budget(internal_kind),
            public_calls: Arc::new(Semaphore::new(PUBLIC_CALLS_MAX)),
            health_checks: TenantLimiter::new(PUBLIC_CALLS_MAX, internal_kind),
            refusals: Refusals::new(options.domain),
            options,
            calls,
        }))
    }

    /// Logs the number of calls that are refused for load, for as long as it is polled.
    pub(super) async fn log_refusals(self) {
        self.0.refusals.log().await;
    }
}

impl Layer<Routes> for CallLayer {
    type Service = CallService;

    fn layer(&self, inner: Routes) -> CallService {
        CallService { shared: self.0.clone(), inner }
    }
}

impl Service<http::Request<Body>> for CallService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> ResponseFuture {
        let began = Instant::now();
        if request.uri().path().starts_with("/grpc.") {
            return self.serve_unauthenticated(request);
        }
        let shared = self.shared.clone();
        let Options { identities, access: policy, domain, .. } = &shared.options;
        let path = known_path(policy, request.uri().path());
        let refuse = |caller: Option<&Caller>, status: Status| -> ResponseFuture {
            let calls = shared.calls.clone();
            let record = CallRecord::begin(path, request.headers(), caller, calls, began);
            Box::pin(ready(Ok(record.finish(status.into_http(), domain))))
        };
        let (caller, bearer) = match identities.identify(request.headers(), domain) {
            Ok(identified) => identified,
            Err(status) => return refuse(None, status),
        };
        if let Err(status) = access::admit(policy, request.uri().path(), &caller, domain) {
            return refuse(Some(&caller), status);
        }
        let entry = match shared.queue.enter(Tenant::of(&caller)) {
            Ok(entry) => entry,
            Err(overload) => return Box::pin(ready(Ok(shared.refuse_for_load(path, overload)))),
        };
        if let Some(bearer) = bearer {
            request.extensions_mut().insert(bearer);
        }
        let inner = self.inner.clone();
        match entry {
            Entry::Admitted(slot) => {
                Box::pin(async move { Ok(shared.handle(request, inner, path, caller, slot, began).await) })
            }
            // The state of a call that is being handled is large, so a call that may be refused does without it.
            Entry::Waiting(waiting) => Box::pin(async move {
                match waiting.slot().await {
                    Ok(slot) => Ok(Box::pin(shared.handle(request, inner, path, caller, slot, began)).await),
                    Err(overload) => Ok(shared.refuse_for_load(path, overload)),
                }
            }),
        }
    }
}

impl CallService {
    fn serve_unauthenticated(&mut self, mut request: http::Request<Body>) -> ResponseFuture {
        let refuse = |shared: &Shared| -> ResponseFuture {
            Box::pin(ready(Ok(shared.refuse_for_load(UNKNOWN_PATH, Overload::Process))))
        };
        if request.uri().path() == HEALTH_CHECK {
            let connection = Tenant::of_connection(pending_responses(&mut request).connection());
            let Ok(permit) = self.shared.health_checks.try_acquire_many(connection, 1) else {
                return refuse(&self.shared);
            };
            let (domain, answer) = (self.shared.options.domain, self.inner.call(request));
            return Box::pin(async move {
                let _permit = permit;
                let answer = tokio::time::timeout(RECEIVE_MAX, answer).await;
                answer.unwrap_or_else(|_| Ok(Late::Message.status(domain).into_http()))
            });
        }
        let Ok(permit) = self.shared.public_calls.clone().try_acquire_owned() else {
            return refuse(&self.shared);
        };
        let answer = self.inner.call(request);
        let guard =
            |response: http::Response<Body>| response.map(|body| Body::new(GuardedBody::new(body, permit)));
        Box::pin(answer.map(|answer| answer.map(guard)))
    }
}

impl Shared {
    /// Passes an admitted call to its handler.
    async fn handle(
        &self,
        mut request: http::Request<Body>,
        mut inner: Routes,
        path: &'static str,
        caller: Caller,
        slot: Slot,
        began: Instant,
    ) -> http::Response<Body> {
        let domain = self.options.domain;
        let record = CallRecord::begin(path, request.headers(), Some(&caller), self.calls.clone(), began);
        let deadline = began + work_time(request.headers());
        let memory = Arc::new(RequestMemory::new(self.memory.clone(), Tenant::of(&caller)));
        let responses = pending_responses(&mut request);
        let extensions = request.extensions_mut();
        extensions.insert(CallId(record.call_id.clone()));
        extensions.insert(Deadline(deadline));
        let is_internal = caller.tenant_kind == self.options.identities.vocabulary().internal_kind;
        let tenant = if is_internal { share::INTERNAL } else { Tenant::of(&caller) };
        extensions.insert(caller);
        let request = request.map(|body| Body::new(CountedBody::new(body, memory.clone(), domain)));

        let log_span =
            tracing::info_span!("call", id = %record.call_id, path, trace_id = record.span.trace_id());
        let answer = async move { share::on_behalf_of(tenant, inner.call(request)).await };
        let answer = record.span.around(answer);
        let answer = AssertUnwindSafe(answer).catch_unwind();
        let guarded = async move {
            // The calls that arrived together are all admitted, queued or refused before the first of them runs. Calls
            // that wait for nothing would otherwise never be in progress at the same time, and only sockets would queue.
            tokio::task::yield_now().await;
            let time_left = deadline.saturating_duration_since(Instant::now());
            let response = match in_time(answer, || memory.has_arrived(), time_left).await {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_)) => internal(domain).status().into_http(),
                Err(late) => late.status(domain).into_http(),
            };
            let response = record.finish(response, domain);
            if response.extensions().get::<OpenEnded>().is_some() {
                return response;
            }
            // The call is in progress until its answer has been sent.
            let guard = (slot, memory, responses.begin());
            response.map(|body| Body::new(GuardedBody::new(body, guard)))
        };
        guarded.instrument(log_span).await
    }

    fn refuse_for_load(&self, path: &'static str, overload: Overload) -> http::Response<Body> {
        self.calls.refuse_for_load(path);
        self.refusals.response(overload)
    }
}

/// The responses of the call's connection that the client has not taken yet.
fn pending_responses(request: &mut http::Request<Body>) -> PendingResponses {
    request.extensions_mut().remove().unwrap_or_default()
}

/// The path of a call, if it is one of the service's. Other paths are the caller's text, of which there is no end, so
/// they are neither logged nor counted.
fn known_path(policy: AccessPolicy, path: &str) -> &'static str {
    policy.iter().find(|(call, _)| *call == path).map_or(UNKNOWN_PATH, |(call, _)| call)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use axum::Router;
    use axum::routing::post;
    use bytes::Bytes;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::Notify;

    use super::*;
    use crate::auth::access::CallerClass;
    use crate::auth::{Auth, Identities, Settings, Vocabulary};
    use crate::clock::Clock;
    use crate::database::{Database, Writes};
    use crate::metrics::Metrics;
    use crate::tls;

    /// A service with one call, which reads its message and ends when it is let go, and with one slot.
    async fn service(go: Arc<Notify>) -> CallService {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        let metrics = Metrics::new("some_svc", "1", database).unwrap();
        let address = "127.0.0.1:0".parse().unwrap();
        let options = Options {
            domain: "some-svc",
            identities: Identities::open(&Settings::insecure(), Vocabulary::TEST, Clock::system()).unwrap(),
            tls: tls::Server::open(&tls::ServerSettings::default(), Auth::Insecure, address).unwrap(),
            access: &[("/a.B/C", &[CallerClass::ANYONE])],
            services: &[],
            descriptors: &[],
            calls_max: 1,
        };
        let handler = async move |request: http::Request<axum::body::Body>| {
            request.into_body().collect().await.map_err(|error| error.to_string())?;
            go.notified().await;
            Ok::<_, String>(http::Response::new(axum::body::Body::from("answer")))
        };
        let routes = Routes::from(Router::new().route("/a.B/C", post(handler)));
        CallLayer::new(options, metrics.calls().clone()).layer(routes)
    }

    /// A call, and whether its message is read.
    fn request() -> (http::Request<Body>, Arc<AtomicBool>) {
        let is_read = Arc::new(AtomicBool::new(false));
        let message = {
            let is_read = is_read.clone();
            futures_util::stream::once(async move {
                is_read.store(true, Ordering::Relaxed);
                Ok::<_, Status>(http_body::Frame::data(Bytes::from_static(b"message")))
            })
        };
        let mut request = http::Request::post("/a.B/C").body(Body::new(StreamBody::new(message))).unwrap();
        for (key, value) in [
            ("x-tenant-kind", "TENANT"),
            ("x-tenant-id", "00000000-0000-4000-8000-000000000001"),
            ("x-user-id", "00000000-0000-4000-8000-000000000002"),
        ] {
            request.headers_mut().insert(key, value.parse().unwrap());
        }
        (request, is_read)
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_its_slot_with_its_message_unread() {
        let go = Arc::new(Notify::new());
        let mut service = service(go.clone()).await;
        let call = |service: &mut CallService| {
            let (request, is_read) = request();
            (tokio::spawn(service.call(request)), is_read)
        };
        let code = |response: &http::Response<Body>| crate::telemetry::trace::code_of(response.headers());
        let (first, is_first_read) = call(&mut service);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(is_first_read.load(Ordering::Relaxed));

        let (refused, is_refused_read) = call(&mut service);
        let refused = refused.await.unwrap().unwrap();
        assert_eq!(code(&refused), tonic::Code::ResourceExhausted);
        assert!(!is_refused_read.load(Ordering::Relaxed));

        let (second, is_second_read) = call(&mut service);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!is_second_read.load(Ordering::Relaxed));
        go.notify_one();
        // A call holds its slot until its response has been sent.
        let first = first.await.unwrap().unwrap();
        assert!(!is_second_read.load(Ordering::Relaxed));
        first.into_body().collect().await.unwrap();
        go.notify_one();
        assert_eq!(code(&second.await.unwrap().unwrap()), tonic::Code::Ok);
        assert!(is_second_read.load(Ordering::Relaxed));
    }
}
