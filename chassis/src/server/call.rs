//! What happens to every call: it is identified, admitted, limited, timed, guarded against panics,
//! logged, counted and told to its trace, in this order and in this place only. What is refused for load
//! is counted and nothing else: it has to cost far less than an answer. Health and reflection are
//! for anybody: they are bounded in number and size, and nothing else happens to them.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use super::body::Until;
use super::connections::{Answers, Secured};
use super::flow::{Flows, Passage};
use super::limits::tenant::{Overload, TenantLimiter};
use super::{MESSAGE_BYTES_MAX, Options};
use crate::auth::access::{self, AccessPolicy};
use crate::auth::{Bearer, Caller};
use crate::clock::{Clock, new_id};
use crate::metrics::{Calls, UNKNOWN_PATH};
use crate::status::{failure, internal};
use crate::telemetry::trace::{Span, code_of};

/// No call takes longer, whatever deadline it came with.
const CALL_DURATION_MAX: Duration = Duration::from_secs(30);

/// How long the message of a call may take to come in; while it does, the call holds its place. The largest
/// takes eight seconds over a megabit a second. Streams of requests are not meant, whose handlers are told of
/// each message as it comes.
const RECEIVE_MAX: Duration = Duration::from_secs(10);

/// When a caller that was refused for load should come back.
const OVERLOAD_RETRY: Duration = Duration::from_millis(200);

/// How often it is logged how many were.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Calls of health and reflection at a time, from anybody. A few replicas of a client watch the health of
/// this one, and somebody looks around; what they ask is small.
const ANYBODYS_MAX: usize = 256;

/// How whoever restarts services asks whether this one is well. It finds a place whatever others watch.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// The id under which everything about one call is logged, here and in the services it calls.
#[derive(Clone, Debug)]
pub struct CallId(pub String);

/// When the caller stops waiting.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(pub Instant);

/// Marks an answer as a stream that goes on.
#[derive(Clone, Copy, Debug)]
struct OpenEnded;

/// The answer of a call that is a stream which goes on: it does not hold the place of a call. Whoever makes it
/// sees to how many there are, and to how long each may stand still.
#[must_use]
pub fn open_ended<S>(stream: S) -> Response<S> {
    let mut response = Response::new(stream);
    response.extensions_mut().insert(OpenEnded);
    response
}

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
    options: Arc<Options>,
    places: TenantLimiter,
    flows: Flows,
    anybodys: Arc<Semaphore>,
    health_checks: Arc<Semaphore>,
    overloaded: Arc<Overloaded>,
    /// Calls refused for load that have not been told of.
    refused: Arc<AtomicU64>,
    numbers: Calls,
}

/// A call that is not refused for load.
enum Entered {
    /// Nobody knows who makes it.
    Unidentified(Status),
    /// Who makes it may not.
    Forbidden(Caller, Status),
    /// It may be worked on.
    In(Caller, Option<Bearer>, Passage),
}

impl CallLayer {
    pub(super) fn new(options: Options, numbers: Calls) -> Self {
        numbers.expect(options.access.iter().map(|(path, _)| *path));
        let internal_kind = options.identities.vocabulary().internal_kind;
        Self {
            places: TenantLimiter::new(options.calls_max, internal_kind),
            flows: Flows::new(internal_kind),
            anybodys: Arc::new(Semaphore::new(ANYBODYS_MAX)),
            health_checks: Arc::new(Semaphore::new(ANYBODYS_MAX)),
            overloaded: Arc::new(Overloaded::new(options.domain)),
            options: Arc::new(options),
            refused: Arc::default(),
            numbers,
        }
    }

    /// Identifies, admits and limits a call.
    fn enter(&self, request: &http::Request<Body>, path: &'static str) -> Result<Entered, Overload> {
        let Options { identities, access: policy, domain, .. } = &*self.options;
        let (caller, bearer) = match identities.identify(request.headers(), domain) {
            Ok(identified) => identified,
            Err(refused) => return Ok(Entered::Unidentified(refused)),
        };
        if let Err(refused) = access::admit(policy, request.uri().path(), &caller, domain) {
            return Ok(Entered::Forbidden(caller, refused));
        }
        let passage = self.flows.enter(path, &caller, self.places.try_acquire(&caller))?;
        Ok(Entered::In(caller, bearer, passage))
    }

    fn refuse_for_load(&self, path: &'static str, full: Overload) -> http::Response<Body> {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.numbers.refuse_for_load(path);
        self.overloaded.response(full)
    }

    /// Tells, for as long as it is waited for, how many calls were refused for load. A line for each would cost
    /// more than refusing it, just when there is nothing to spare.
    pub(super) async fn report_refusals(self) {
        loop {
            tokio::time::sleep(REFUSED_TOLD_EVERY).await;
            let refused = self.refused.swap(0, Ordering::Relaxed);
            if refused > 0 {
                tracing::warn!(refused, "calls were refused for load");
            }
        }
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

impl CallService {
    fn answer_anybody(
        &mut self,
        request: http::Request<Body>,
    ) -> <Self as Service<http::Request<Body>>>::Future {
        let is_health_check = request.uri().path() == HEALTH_CHECK;
        let places = if is_health_check { &self.layer.health_checks } else { &self.layer.anybodys };
        let Ok(place) = places.clone().try_acquire_owned() else {
            let refused = self.layer.refuse_for_load(UNKNOWN_PATH, Overload::Process);
            return Box::pin(async { Ok(refused) });
        };
        let answered = self.inner.call(request);
        if is_health_check {
            let domain = self.layer.options.domain;
            return Box::pin(async move {
                let _place = place;
                tokio::time::timeout(RECEIVE_MAX, answered)
                    .await
                    .unwrap_or_else(|_| Ok(stood_still(domain).into_http()))
            });
        }
        let answered = answered
            .map(|answer| answer.map(|response| response.map(|body| Body::new(Until::new(body, place)))));
        Box::pin(answered)
    }

    /// Has a call worked on.
    fn work(
        &self,
        mut request: http::Request<Body>,
        line: Line,
        mut passage: Passage,
    ) -> impl Future<Output = Result<http::Response<Body>, Infallible>> + Send + use<> {
        let patience = patience(request.headers());
        request.extensions_mut().insert(CallId(line.call_id.clone()));
        request.extensions_mut().insert(Deadline(Instant::now() + patience));

        let lines = tracing::info_span!("call", id = %line.call_id, path = line.path, trace_id = line.span.trace_id());
        let (mut inner, domain) = (self.inner.clone(), self.layer.options.domain);
        let answers = answers_of(request.extensions_mut());
        // Held by the body of the request until it has come in whole.
        let coming = Arc::new(());
        let request = request.map({
            let held = Arc::clone(&coming);
            |body| Body::new(Until::new(body, held))
        });
        let handled = line.span.around(async move { inner.call(request).await });
        let handled = AssertUnwindSafe(handled).catch_unwind();
        let guarded = async move {
            // Those that came in together are all let in or refused before the first of them is answered. Calls
            // that wait for nothing would else never be in progress at the same time, and never too many.
            tokio::task::yield_now().await;
            let has_come = move || Arc::strong_count(&coming) == 1;
            let response = match in_time(handled, has_come, patience).await {
                Ok(Ok(Ok(response))) => {
                    // A refusal may take far less than an answer.
                    if code_of(response.headers()) == Code::Ok {
                        passage.is_answered();
                    }
                    response
                }
                Ok(Err(_)) => internal(domain).status().into_http(),
                Err(Late::Message) => stood_still(domain).into_http(),
                Err(Late::Answer) => too_late(domain).into_http(),
            };
            let response = line.finish(response, domain);
            if response.extensions().get::<OpenEnded>().is_some() {
                return Ok(response);
            }
            // The call is in progress until its answer is on its way.
            let held = (passage, answers.begin());
            Ok(response.map(|body| Body::new(Until::new(body, held))))
        };
        guarded.instrument(lines)
    }
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
            return self.answer_anybody(request);
        }
        let options = self.layer.options.clone();
        let path = known_path(options.access, request.uri().path());
        let entered = match self.layer.enter(&request, path) {
            Ok(entered) => entered,
            Err(full) => {
                let response = self.layer.refuse_for_load(path, full);
                return Box::pin(async { Ok(response) });
            }
        };
        let call_id = call_id_of(request.headers());
        let span = Span::of_server(request.headers(), path, &call_id);
        let line = |caller| Line::new(path, call_id, caller, span, self.layer.numbers.clone());
        let (line, refused) = match entered {
            Entered::In(caller, bearer, passage) => {
                let line = line(Some(&caller));
                request.extensions_mut().insert(caller);
                if let Some(bearer) = bearer {
                    request.extensions_mut().insert(bearer);
                }
                return Box::pin(self.work(request, line, passage));
            }
            Entered::Forbidden(caller, refused) => (line(Some(&caller)), refused),
            Entered::Unidentified(refused) => (line(None), refused),
        };
        let response = line.finish(refused.into_http(), options.domain);
        Box::pin(async { Ok(response) })
    }
}

/// The answers of the call's connection that have not been taken yet.
fn answers_of(extensions: &mut http::Extensions) -> Answers {
    let secured = extensions.remove::<Secured>().map(|info| info.get_ref().clone());
    secured.or_else(|| extensions.remove()).unwrap_or_default()
}

/// The path of a call, if it is one of the service's. Others are the caller's words, and there is no end to
/// them: they are neither logged nor counted.
fn known_path(access: AccessPolicy, path: &str) -> &'static str {
    access.iter().find(|(call, _)| *call == path).map_or(UNKNOWN_PATH, |(call, _)| call)
}

/// What took too long.
#[derive(Debug, PartialEq, Eq)]
enum Late {
    Message,
    Answer,
}

/// Waits for the answer, for as long as its caller does, and no longer than its message may take to come in.
async fn in_time<A>(
    handled: impl Future<Output = A>,
    has_come: impl Fn() -> bool,
    patience: Duration,
) -> Result<A, Late> {
    let mut handled = pin!(handled);
    match tokio::time::timeout(patience.min(RECEIVE_MAX), &mut handled).await {
        Ok(answer) => return Ok(answer),
        Err(_) if patience <= RECEIVE_MAX => return Err(Late::Answer),
        Err(_) if !has_come() => return Err(Late::Message),
        Err(_) => {}
    }
    tokio::time::timeout(patience - RECEIVE_MAX, handled).await.map_err(|_| Late::Answer)
}

/// What is kept of one call: a log line, a count and a span. Dropped unfinished, they say that the caller
/// went away.
struct Line {
    path: &'static str,
    call_id: String,
    caller: Option<(&'static str, String)>,
    began: Instant,
    finished: bool,
    span: Span,
    numbers: Calls,
}

impl Line {
    fn new(path: &'static str, call_id: String, caller: Option<&Caller>, span: Span, numbers: Calls) -> Self {
        numbers.in_progress.inc();
        let caller = caller.map(|caller| (caller.tenant_kind, caller.tenant_id.to_string()));
        Self { path, call_id, caller, began: Instant::now(), finished: false, span, numbers }
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
        let (kind, tenant) = self.caller.as_ref().map_or(("", ""), |(kind, tenant)| (*kind, tenant));
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

/// What is said to those who are refused for load, made once: it is said most often when there is least time.
struct Overloaded {
    everybody: HeaderMap,
    tenant: HeaderMap,
}

impl Overloaded {
    fn new(domain: &'static str) -> Self {
        let headers = |reason, sentence| {
            let refused = failure(domain, Code::ResourceExhausted, reason, sentence);
            let response: http::Response<()> = refused.retry_after(OVERLOAD_RETRY).status().into_http();
            response.into_parts().0.headers
        };
        Self {
            everybody: headers("OVERLOADED", "too many calls are in progress; try again shortly"),
            tenant: headers(
                "TENANT_OVERLOADED",
                "your tenant has as many calls in progress as are left for others; make fewer at a time, and \
                 try again shortly",
            ),
        }
    }

    fn response(&self, full: Overload) -> http::Response<Body> {
        let mut response = http::Response::new(Body::empty());
        *response.headers_mut() = match full {
            Overload::Process => self.everybody.clone(),
            Overload::Tenant => self.tenant.clone(),
        };
        response
    }
}

fn stood_still(domain: &'static str) -> Status {
    let sentence =
        format!("the request did not come in whole within {} s; begin again", RECEIVE_MAX.as_secs());
    failure(domain, Code::ResourceExhausted, "STREAM_STOOD_STILL", sentence)
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

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_in_is_not_waited_for_as_long_as_an_answer() {
        const WORK: Duration = Duration::from_secs(20);
        let work = || tokio::time::sleep(WORK);
        for (has_come, patience, outcome, after) in [
            (true, CALL_DURATION_MAX, Ok(()), WORK),
            (true, WORK / 2, Err(Late::Answer), WORK / 2),
            (true, WORK * 3 / 4, Err(Late::Answer), WORK * 3 / 4),
            (false, CALL_DURATION_MAX, Err(Late::Message), RECEIVE_MAX),
            (false, RECEIVE_MAX / 2, Err(Late::Answer), RECEIVE_MAX / 2),
        ] {
            let began = tokio::time::Instant::now();
            assert_eq!(in_time(work(), || has_come, patience).await, outcome);
            // The clock of these timers goes by milliseconds.
            let late = began.elapsed().saturating_sub(after);
            assert!(began.elapsed() >= after && late < Duration::from_millis(5), "{has_come} {patience:?}");
        }
    }

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
