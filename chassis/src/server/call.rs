//! What happens to every call: it is identified, admitted, limited, timed, guarded against panics,
//! logged, counted and told to its trace, in this order and in this place only.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use super::{MESSAGE_BYTES_MAX, Options};
use crate::auth;
use crate::clock::{Clock, new_id};
use crate::metrics::{Calls, UNKNOWN_PATH};
use crate::status::{failure, internal};
use crate::telemetry::trace::{Span, code_of};

/// Calls in progress beyond this are refused at once: they would only wait for the database.
const CALLS_IN_FLIGHT_MAX: usize = 1024;

/// No call takes longer, whatever deadline it came with.
const CALL_DURATION_MAX: Duration = Duration::from_secs(30);

/// When a caller that was refused for load should come back.
const OVERLOAD_RETRY: Duration = Duration::from_millis(200);

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

#[derive(Clone)]
pub(super) struct CallLayer {
    options: Options,
    in_flight: Arc<Semaphore>,
    numbers: Calls,
}

impl CallLayer {
    pub(super) fn new(options: Options, numbers: Calls) -> Self {
        numbers.expect(options.access);
        Self { options, in_flight: Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX)), numbers }
    }
}

impl Layer<Routes> for CallLayer {
    type Service = CallService;

    fn layer(&self, inner: Routes) -> CallService {
        CallService { layer: self.clone(), inner }
    }
}

#[derive(Clone)]
pub(super) struct CallService {
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
        if request.uri().path().starts_with("/grpc.") {
            return Box::pin(self.inner.call(request));
        }
        let options = self.layer.options;
        let call_id = call_id_of(request.headers());
        let path = known_path(options.access, request.uri().path());
        let span = Span::of_server(request.headers(), path, &call_id);
        let mut line = Line::new(path, call_id.clone(), span, self.layer.numbers.clone());
        let admitted = options.auth.caller(request.headers(), options.domain).and_then(|caller| {
            line.caller = Some((caller.tenant_kind.to_string(), caller.tenant_id.to_string()));
            auth::admit(options.access, request.uri().path(), &caller, options.domain)?;
            let permit = self.layer.in_flight.clone().try_acquire_owned();
            let permit = permit.map_err(|_| {
                self.layer.numbers.refused_for_load.inc();
                overloaded(options.domain)
            })?;
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

        let lines = tracing::info_span!("call", id = %call_id, path, trace_id = line.span.trace_id());
        let mut inner = self.inner.clone();
        let handled = line.span.around(async move { inner.call(request).await });
        let handled = AssertUnwindSafe(handled).catch_unwind();
        let guarded = async move {
            let _permit = permit;
            let response = match tokio::time::timeout(patience, handled).await {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_)) => internal(options.domain).status().into_http(),
                Err(_) => too_late(options.domain).into_http(),
            };
            Ok(line.finish(response, options.domain))
        };
        Box::pin(guarded.instrument(lines))
    }
}

/// The path of a call, if it is one of the service's. Others are the caller's words, and there is no end to
/// them: they are neither logged nor counted.
fn known_path(access: auth::Access, path: &str) -> &'static str {
    access.iter().find(|(call, _)| *call == path).map_or(UNKNOWN_PATH, |(call, _)| call)
}

/// What is kept of one call: a log line, a count and a span. Dropped unfinished, they say that the caller
/// went away.
struct Line {
    path: &'static str,
    call_id: String,
    caller: Option<(String, String)>,
    began: Instant,
    finished: bool,
    span: Span,
    numbers: Calls,
}

impl Line {
    fn new(path: &'static str, call_id: String, span: Span, numbers: Calls) -> Self {
        numbers.in_progress.inc();
        Self { path, call_id, caller: None, began: Instant::now(), finished: false, span, numbers }
    }

    fn finish(mut self, response: http::Response<Body>, domain: &'static str) -> http::Response<Body> {
        let mut response = unreadable(&response, domain).map_or(response, Status::into_http);
        let code = code_of(response.headers());
        self.finished = true;
        self.end(code, &format!("{code:?}"));
        if let Ok(value) = HeaderValue::from_str(&self.call_id) {
            response.headers_mut().insert("x-call-id", value);
        }
        response
    }

    fn end(&mut self, code: Code, in_words: &str) {
        self.log(in_words);
        self.span.end(code);
        self.numbers.end(self.path, code, self.began.elapsed());
        self.numbers.in_progress.dec();
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
            trace_id = self.span.trace_id(),
            "call"
        );
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Code::Cancelled, "caller went away");
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

/// The caller's own id for the call if it is a plausible one, else a new one. It is logged, so that nothing
/// passes for one in which there is an e-mail address.
fn call_id_of(headers: &HeaderMap) -> String {
    const LENGTH_MAX: usize = 64;
    let given = headers.get("x-call-id").and_then(|value| value.to_str().ok());
    given
        .filter(|id| {
            (1..=LENGTH_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        })
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
