//! One gRPC server: every call is identified, admitted, limited, timed, guarded against panics and
//! logged in one place; health and reflection stand beside the service's own calls.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::auth::{self, Access, Auth};
use crate::clock::{Clock, new_id};
use crate::status::{failure, internal};

/// The largest request message: a hundred full order lines fit forty times.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Calls one connection may have open, so that one client cannot hold every slot.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;

/// Bytes of one call's requests that may wait to be read: a stream of them fills this and no more. A
/// message that is larger takes a few round trips. More would be held for a client that sends faster than
/// its requests are handled, and small messages in it would be counted as an attack.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// Request headers beyond this are refused by HTTP/2 itself; an identity takes a tenth.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Calls in progress beyond this are refused at once: they would only wait for the database.
const CALLS_IN_FLIGHT_MAX: usize = 1024;

/// No call takes longer, whatever deadline it came with.
const CALL_DURATION_MAX: Duration = Duration::from_secs(30);

/// Idle connections are probed this often, so that a dead peer is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// A connection is renewed after this long, so that clients spread over new replicas.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(1800);

/// How long calls in progress may go on after the first signal to stop.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);

/// When a caller that was refused for load should come back.
const OVERLOAD_RETRY: Duration = Duration::from_millis(200);

/// What a server needs to know of its service.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `ErrorInfo.domain` of its errors.
    pub domain: &'static str,
    /// How callers are identified.
    pub auth: Auth,
    /// Who may make which call.
    pub access: Access,
    /// The full names of its gRPC services, for health.
    pub services: &'static [&'static str],
    /// The encoded contract, for reflection.
    pub descriptors: &'static [u8],
}

/// The id under which everything about one call is logged, here and in the services it calls.
#[derive(Clone, Debug)]
pub struct CallId(pub String);

/// When the caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// The call id that the server gave this call.
pub fn call_id<T>(request: &Request<T>) -> String {
    request.extensions().get::<CallId>().map(|id| id.0.clone()).unwrap_or_default()
}

/// How long the caller of this request still waits.
pub fn time_left<T>(request: &Request<T>) -> Duration {
    let deadline = request.extensions().get::<Deadline>();
    deadline.map_or(CALL_DURATION_MAX, |deadline| deadline.0.saturating_duration_since(Instant::now()))
}

/// Serves until `shutdown` resolves, then reports NOT_SERVING, lets calls in progress end for at
/// most [`DRAIN_MAX`], and returns.
///
/// # Errors
/// An address that the way of establishing identities forbids; a transport that fails.
pub async fn serve(
    listener: TcpListener,
    routes: RoutesBuilder,
    options: Options,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let address = listener.local_addr()?;
    options.auth.check_address(address)?;

    let (health, health_service) = tonic_health::server::health_reporter();
    for service in options.services.iter().chain(&[""]) {
        health.set_service_status(*service, tonic_health::ServingStatus::Serving).await;
    }
    let mut reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(options.descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET);
    for service in
        options.services.iter().chain(&["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"])
    {
        reflection = reflection.with_service_name(*service);
    }
    let reflection = reflection.build_v1()?;
    let mut routes = routes;
    routes.add_service(health_service).add_service(reflection);

    let (draining, drain) = tokio::sync::oneshot::channel::<()>();
    let stop = async move {
        shutdown.await;
        tracing::info!("stopping: calls in progress may end");
        for service in options.services.iter().chain(&[""]) {
            health.set_service_status(*service, tonic_health::ServingStatus::NotServing).await;
        }
        drop(draining);
    };
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .max_connection_age(CONNECTION_AGE_MAX)
        .layer(CallLayer { options, in_flight: Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX)) })
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop);

    tracing::info!(%address, "serving");
    tokio::select! {
        served = server => served?,
        () = async { let _ = drain.await; tokio::time::sleep(DRAIN_MAX).await } => {
            tracing::warn!("stopped with calls still in progress");
        }
    }
    Ok(())
}

/// A runtime with that many threads for calls. With one, calls run on the thread that accepts them,
/// which spares every hand-over between threads.
///
/// # Errors
/// The operating system's.
pub fn runtime(worker_threads: u16) -> std::io::Result<tokio::runtime::Runtime> {
    let mut runtime = match worker_threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(worker_threads.into()).enable_all().build()
}

/// Resolves at the first interrupt or termination signal; the second ends the process at once.
pub async fn signal() {
    first_signal().await;
    tokio::spawn(async {
        first_signal().await;
        std::process::exit(130);
    });
}

async fn first_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "termination signals are not noticed");
                let _ = tokio::signal::ctrl_c().await;
            }
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

/// Asks the server at `address` (as in `http://127.0.0.1:50051`) whether it serves.
///
/// # Errors
/// Why it does not, in words.
pub async fn check_health(address: &str) -> Result<(), String> {
    let channel = tonic::transport::Endpoint::from_shared(address.to_owned())
        .map_err(|error| format!("{address} is not an address: {error}"))?
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(2))
        .connect()
        .await
        .map_err(|error| format!("{address} cannot be reached: {error}"))?;
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let answer = tonic_health::pb::health_client::HealthClient::new(channel).check(request).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(tonic_health::pb::health_check_response::ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(format!("{address} says {}", other.as_str_name())),
        Err(status) => Err(format!("{address} answered {status}")),
    }
}

/// Binds an address, before anything else is opened or made.
///
/// # Errors
/// The address is taken, not this machine's, or one that the way of establishing identities must
/// not be reachable at.
pub async fn bind(address: SocketAddr, auth: Auth) -> Result<TcpListener, String> {
    auth.check_address(address)?;
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}"))
}

#[derive(Clone)]
struct CallLayer {
    options: Options,
    in_flight: Arc<Semaphore>,
}

impl Layer<Routes> for CallLayer {
    type Service = CallService;

    fn layer(&self, inner: Routes) -> CallService {
        CallService { layer: self.clone(), inner }
    }
}

#[derive(Clone)]
struct CallService {
    layer: CallLayer,
    inner: Routes,
}

impl Service<http::Request<Body>> for CallService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<http::Request<Body>>::poll_ready(&mut self.inner, context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        if path.starts_with("/grpc.") {
            return Box::pin(self.inner.call(request));
        }
        let options = self.layer.options;
        let call_id = call_id_of(request.headers());
        let mut line = Line::new(path, call_id.clone());
        let admitted = options.auth.caller(request.headers(), options.domain).and_then(|caller| {
            line.caller = Some((caller.tenant_kind.to_string(), caller.tenant_id.to_string()));
            auth::admit(options.access, &line.path, &caller, options.domain)?;
            let permit = self.layer.in_flight.clone().try_acquire_owned();
            let permit = permit.map_err(|_| overloaded(options.domain))?;
            request.extensions_mut().insert(caller);
            Ok(permit)
        });
        let permit = match admitted {
            Ok(permit) => permit,
            Err(refused) => {
                let response = line.finish(refused.into_http(), options.domain);
                return Box::pin(async { Ok(response) });
            }
        };
        let patience = patience(request.headers());
        request.extensions_mut().insert(CallId(call_id.clone()));
        request.extensions_mut().insert(Deadline(Instant::now() + patience));

        let span = tracing::info_span!("call", id = %call_id, path = %line.path);
        let mut inner = self.inner.clone();
        let handled = AssertUnwindSafe(async move { inner.call(request).await }).catch_unwind();
        let guarded = async move {
            let _permit = permit;
            let response = match tokio::time::timeout(patience, handled).await {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_)) => internal(options.domain).status().into_http(),
                Err(_) => too_late(options.domain).into_http(),
            };
            Ok(line.finish(response, options.domain))
        };
        Box::pin(guarded.instrument(span))
    }
}

/// The log line of one call. Dropped unfinished, it says that the caller went away.
struct Line {
    path: String,
    call_id: String,
    caller: Option<(String, String)>,
    began: Instant,
    finished: bool,
}

impl Line {
    fn new(path: String, call_id: String) -> Self {
        Self { path, call_id, caller: None, began: Instant::now(), finished: false }
    }

    fn finish(mut self, response: http::Response<Body>, domain: &'static str) -> http::Response<Body> {
        let mut response = unreadable(&response, domain).map_or(response, Status::into_http);
        let code = response
            .headers()
            .get(Status::GRPC_STATUS)
            .map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
        self.finished = true;
        self.log(&format!("{code:?}"));
        if let Ok(value) = HeaderValue::from_str(&self.call_id) {
            response.headers_mut().insert("x-call-id", value);
        }
        response
    }

    fn log(&self, code: &str) {
        let (kind, tenant) = self.caller.as_ref().map_or(("", ""), |(kind, tenant)| (kind, tenant));
        tracing::info!(
            path = self.path,
            code,
            took_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            tenant_kind = kind,
            tenant,
            call_id = self.call_id,
            "call"
        );
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.finished {
            self.log("caller went away");
        }
    }
}

fn unreadable(response: &http::Response<Body>, domain: &'static str) -> Option<Status> {
    unreadable_message(response.extensions().get::<Status>()?, domain)
}

/// tonic answers an oversized message with OUT_OF_RANGE, and one that is none with INTERNAL, in words
/// only; here they get their code and reason. In a stream of requests this may happen after the answer
/// has begun, where only the handler can say it.
#[must_use]
pub fn unreadable_message(status: &Status, domain: &'static str) -> Option<Status> {
    match status.code() {
        Code::OutOfRange if status.message().contains("decoded message length too large") => {
            let sentence =
                format!("a request message has at most {MESSAGE_BYTES_MAX} bytes; send less at a time");
            Some(failure(domain, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", sentence).status())
        }
        Code::Internal if status.message().starts_with("failed to decode Protobuf message") => {
            let sentence = "the bytes are no message of this call; encode it with the published contract";
            Some(failure(domain, Code::InvalidArgument, "MALFORMED_MESSAGE", sentence).status())
        }
        _ => None,
    }
}

fn overloaded(domain: &'static str) -> Status {
    failure(
        domain,
        Code::ResourceExhausted,
        "OVERLOADED",
        "too many calls are in progress; try again shortly",
    )
    .retry_after(OVERLOAD_RETRY)
    .status()
}

fn too_late(domain: &'static str) -> Status {
    let sentence = "the deadline passed before the answer was ready; retry under the same request id";
    failure(domain, Code::Unavailable, "DEADLINE_PASSED", sentence).retry_after(OVERLOAD_RETRY).status()
}

/// The caller's own id for the call if it is a plausible one, else a new one.
fn call_id_of(headers: &HeaderMap) -> String {
    const LENGTH_MAX: usize = 64;
    let given = headers.get("x-call-id").and_then(|value| value.to_str().ok());
    given
        .filter(|id| (1..=LENGTH_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| new_id(Clock::system().now()).to_string(), ToOwned::to_owned)
}

/// How long to work for the caller: a little less than it waits, so that it hears from us first.
fn patience(headers: &HeaderMap) -> Duration {
    let given = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout_of);
    given.map_or(CALL_DURATION_MAX, |given| {
        (given - (given / 20).min(Duration::from_millis(20))).min(CALL_DURATION_MAX)
    })
}

/// Reads a `grpc-timeout` value: at most 8 digits and a unit.
fn timeout_of(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_in_every_unit() {
        assert_eq!(timeout_of("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(timeout_of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout_of("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for garbage in ["", "5", "m", "-1m", "999999999S", "1x", "é"] {
            assert_eq!(timeout_of(garbage), None, "{garbage}");
        }
    }
}
