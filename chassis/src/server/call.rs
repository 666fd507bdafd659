//! The middleware of all calls: each call is identified, admitted by the access policy and the concurrency limit, timed,
//! guarded against panics, logged, counted and traced, in this order.
//!
//! A call that is refused for load is only counted: its refusal must cost far less than its answer. Calls of health and
//! reflection need no identity; they are limited in number, size and time. Whatever is no call of this server is refused
//! before any identity is asked for.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use super::Options;
use super::body::{CountedBody, DueBody, GuardedBody};
use super::connection::Peer;
use super::deadline::{Deadline, Late, TIME_LEFT_MIN, in_time, work_time};
use super::memory::{self, RequestMemory};
use super::message::{give_reason, malformed, unknown_call};
use super::overload::Refusals;
use super::record::CallRecord;
use super::request::{has_too_much_metadata, metadata_too_large, not_grpc};
use crate::auth::access::{self, AccessPolicy};
use crate::auth::{self, Caller, Identified, Identity};
use crate::database::share;
use crate::form::Form;
use crate::limits::queue::{CallQueue, Entry, Slot};
use crate::limits::tenant::{Overload, Tenant, TenantLimiter};
use crate::metrics::{Calls, UNKNOWN_PATH};
use crate::status::internal;

/// Open streams of calls without an identity, which watch health or ask reflection, fair among connections. A few replicas
/// of a client watch the health of this process, and an operator looks around.
const UNIDENTIFIED_STREAMS_MAX: usize = 256;

/// Calls that wait for keys or for the registration of their tenant, fair among connections and tenants.
const UNIDENTIFIED_CALLS_MAX: usize = 256;

/// How long a client may go on asking reflection, in one stream. Tools ask for all that they need at once.
const REFLECTION_MAX: Duration = Duration::from_secs(60);

/// The call by which an orchestrator checks whether the process is healthy. Only its own connection limits it, so that no
/// other can make the check fail.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// The other calls that need no identity, and what of their request has to end in time.
const UNIDENTIFIED_STREAMS: [(&str, Late); 3] = [
    ("/grpc.health.v1.Health/Watch", Late::Message),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Late::Stream(REFLECTION_MAX)),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Late::Stream(REFLECTION_MAX)),
];

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

/// The first answer to a request, given again. The metadata `x-replayed: true` tells the client that this call had no effect.
#[must_use]
pub fn replayed<A>(answer: A) -> Response<A> {
    let mut response = Response::new(answer);
    response.metadata_mut().insert("x-replayed", MetadataValue::from_static("true"));
    response
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
    unidentified_streams: TenantLimiter,
    unidentified_calls: TenantLimiter,
    refusals: Refusals,
    calls: Calls,
}

/// Makes a call through the middleware: for the connections of the server, and for pages of this process, whose calls
/// are identified, admitted, limited and counted as those of any client.
#[derive(Clone)]
pub struct CallService {
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
            unidentified_streams: TenantLimiter::new(UNIDENTIFIED_STREAMS_MAX, internal_kind),
            unidentified_calls: TenantLimiter::new(UNIDENTIFIED_CALLS_MAX, internal_kind),
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

    fn call(&mut self, request: http::Request<Body>) -> ResponseFuture {
        let began = Instant::now();
        let shared = self.shared.clone();
        let Options { identities, access: policy, domain, .. } = &shared.options;
        let path = known_path(policy, request.uri().path());
        let refuse = |caller: Option<&Caller>, status: Status| -> ResponseFuture {
            Box::pin(ready(Ok(shared.refuse(path, request.headers(), caller, began, status))))
        };
        if let Some((code, why)) = not_grpc(&request) {
            let answer = refuse(None, malformed(domain, why));
            return Box::pin(answer.map(move |answer| {
                answer.map(|mut response| {
                    *response.status_mut() = code;
                    response
                })
            }));
        }
        if has_too_much_metadata(&request) {
            return refuse(None, metadata_too_large(domain));
        }
        let time_left = work_time(request.headers());
        if time_left < TIME_LEFT_MIN {
            return refuse(None, Late::Response.status(domain));
        }
        if request.uri().path() == HEALTH_CHECK {
            return self.serve_unidentified(request, began, None);
        }
        if let Some((_, late)) = UNIDENTIFIED_STREAMS.iter().find(|(call, _)| *call == request.uri().path()) {
            return self.serve_unidentified(request, began, Some(*late));
        }
        if path == UNKNOWN_PATH {
            return refuse(None, unknown_call(domain));
        }
        match identities.identify(request.headers(), domain) {
            Identified::AtOnce(Ok(identity)) => {
                shared.admit(request, self.inner.clone(), path, identity, began)
            }
            Identified::AtOnce(Err(status)) => refuse(None, status),
            Identified::Later(tenant, identifying) => {
                self.identify_later(request, path, tenant, identifying, began)
            }
        }
    }
}

impl CallService {
    /// The caller behind some headers, as each call with them is identified.
    ///
    /// # Errors
    /// `IDENTITY_REQUIRED`, `IDENTITY_UNAVAILABLE`.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<Caller, Status> {
        let Options { identities, domain, .. } = &self.shared.options;
        let identified = match identities.identify(headers, domain) {
            Identified::AtOnce(identified) => identified,
            Identified::Later(_, identifying) => identifying.await,
        };
        identified.map(|(caller, _)| caller)
    }

    /// Waits for the identity behind a call. Until then the call counts among those of its tenant, or of its connection while
    /// not even the tenant is known.
    fn identify_later(
        &self,
        request: http::Request<Body>,
        path: &'static str,
        tenant: Option<Tenant>,
        identifying: BoxFuture<'static, Result<Identity, Status>>,
        began: Instant,
    ) -> ResponseFuture {
        let (shared, inner) = (self.shared.clone(), self.inner.clone());
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_else(Peer::new);
        let holder = tenant.unwrap_or_else(|| Tenant::of_connection(peer.connection()));
        let place = match shared.unidentified_calls.try_acquire(holder) {
            Ok(place) => place,
            Err(overload) => return Box::pin(ready(Ok(shared.refuse_for_load(path, overload)))),
        };
        Box::pin(async move {
            let time_left = work_time(request.headers()).saturating_sub(began.elapsed());
            let identified = timeout(time_left, identifying).await;
            drop(place);
            match identified {
                Ok(Ok(identity)) => shared.admit(request, inner, path, identity, began).await,
                Ok(Err(status)) => Ok(shared.refuse(path, request.headers(), None, began, status)),
                Err(_) => {
                    let late = Late::Response.status(shared.options.domain);
                    Ok(shared.refuse(path, request.headers(), None, began, late))
                }
            }
        })
    }
    /// Serves a call that needs no identity: a check of health, or a stream, and what of its request may be late.
    fn serve_unidentified(
        &mut self,
        mut request: http::Request<Body>,
        began: Instant,
        stream: Option<Late>,
    ) -> ResponseFuture {
        let shared = self.shared.clone();
        let peer = take_peer(&mut request);
        let Some(of_connection) = peer.begin_unidentified() else {
            shared.calls.refuse_for_load(UNKNOWN_PATH);
            return Box::pin(ready(Ok(shared.refusals.response_to_connection())));
        };
        let of_process = match stream {
            None => None,
            Some(_) => {
                let connection = Tenant::of_connection(peer.connection());
                match shared.unidentified_streams.try_acquire_many(connection, 1) {
                    Ok(permit) => Some(permit),
                    Err(_) => {
                        let refused = shared.refuse_for_load(UNKNOWN_PATH, Overload::Process);
                        return Box::pin(ready(Ok(refused)));
                    }
                }
            }
        };
        let (domain, deadline) = (shared.options.domain, began + work_time(request.headers()));
        let refusal: Arc<OnceLock<Status>> = Arc::default();
        let request = request.map(|body| {
            let refusal = refusal.clone();
            let late = stream.unwrap_or(Late::Message);
            let refuse = move || {
                peer.stood_still();
                refusal.get_or_init(|| late.status(domain)).clone()
            };
            Body::new(DueBody::new(body, late.within(), refuse))
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let time_left = deadline.saturating_duration_since(Instant::now());
            let mut response = match timeout(time_left, answer).await {
                Ok(Ok(response)) => response,
                Err(_) => Late::Response.status(domain).into_http(),
            };
            give_reason(response.headers_mut(), false, domain);
            let guard = (of_connection, of_process);
            Ok(response.map(|body| Body::new(GuardedBody::new(body, guard, domain).refused_with(refusal))))
        })
    }
}

impl Shared {
    /// Lets an identified call in, or refuses it.
    fn admit(
        self: Arc<Self>,
        mut request: http::Request<Body>,
        inner: Routes,
        path: &'static str,
        (caller, bearer): Identity,
        began: Instant,
    ) -> ResponseFuture {
        let shared = self;
        if let Some(peer) = request.extensions().get::<Peer>() {
            peer.set_identified();
        }
        if let Err(status) = access::admit(shared.options.access, path, &caller, shared.options.domain) {
            return Box::pin(ready(Ok(shared.refuse(path, request.headers(), Some(&caller), began, status))));
        }
        let entry = match shared.queue.enter(caller.tenant()) {
            Ok(entry) => entry,
            Err(overload) => return Box::pin(ready(Ok(shared.refuse_for_load(path, overload)))),
        };
        if let Some(bearer) = bearer {
            request.extensions_mut().insert(bearer);
        }
        match entry {
            Entry::Admitted(slot) => {
                Box::pin(async move { Ok(shared.handle(request, inner, path, caller, slot, began).await) })
            }
            // The state of a call that is being handled is large, so a call that may be refused does without it.
            Entry::Waiting(waiting) => Box::pin(async move {
                let time_left = work_time(request.headers()).saturating_sub(began.elapsed());
                match timeout(time_left, waiting.slot()).await {
                    Ok(Ok(slot)) => {
                        Ok(Box::pin(shared.handle(request, inner, path, caller, slot, began)).await)
                    }
                    Ok(Err(overload)) => Ok(shared.refuse_for_load(path, overload)),
                    Err(_) => {
                        let late = Late::Response.status(shared.options.domain);
                        Ok(shared.refuse(path, request.headers(), Some(&caller), began, late))
                    }
                }
            }),
        }
    }

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
        let memory = Arc::new(RequestMemory::new(self.memory.clone(), caller.tenant()));
        let peer = take_peer(&mut request);
        let is_compressed =
            request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity");
        let extensions = request.extensions_mut();
        extensions.insert(CallId(record.call_id.clone()));
        extensions.insert(Deadline(deadline));
        let is_internal = caller.tenant_kind == self.options.identities.vocabulary().internal_kind;
        let tenant = if is_internal { share::INTERNAL } else { caller.tenant() };
        extensions.insert(caller);
        let request =
            request.map(|body| Body::new(CountedBody::new(body, is_compressed, memory.clone(), domain)));

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
            let response = record.finish(response, memory.is_broken(), domain);
            // The call is in progress until its answer has been sent.
            let is_open_ended = response.extensions().get::<OpenEnded>().is_some();
            let guard = (!is_open_ended).then(|| (slot, memory, peer.begin()));
            response.map(|body| Body::new(GuardedBody::new(body, guard, domain)))
        };
        guarded.instrument(log_span).await
    }

    fn refuse(
        &self,
        path: &'static str,
        headers: &HeaderMap,
        caller: Option<&Caller>,
        began: Instant,
        status: Status,
    ) -> http::Response<Body> {
        let record = CallRecord::begin(path, headers, caller, self.calls.clone(), began);
        record.finish(status.into_http(), false, self.options.domain)
    }

    fn refuse_for_load(&self, path: &'static str, overload: Overload) -> http::Response<Body> {
        self.calls.refuse_for_load(path);
        self.refusals.response(overload)
    }
}

/// The client at the other end of the call's connection.
fn take_peer(request: &mut http::Request<Body>) -> Peer {
    request.extensions_mut().remove().unwrap_or_else(Peer::new)
}

/// The path of a call, if it is one of the service's. Other paths are the caller's text, of which there is no end, so
/// they are neither logged nor counted.
fn known_path(policy: AccessPolicy, path: &str) -> &'static str {
    policy.iter().find(|(call, _)| *call == path).map_or(UNKNOWN_PATH, |(call, _)| call)
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
