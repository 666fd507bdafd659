//! What happens to every call: it is identified, admitted, limited, timed, guarded against panics,
//! logged, counted and told to its trace, in this order and in this place only. Health and reflection are
//! for anybody: they are bounded in number and size, and nothing else happens to them.

use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use tower::{Layer, Service};
use tracing::Instrument;

use super::connections::{Answers, Secured};
use super::places::{Full, Places};
use super::{MESSAGE_BYTES_MAX, Options};
use crate::auth;
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

/// An answer is handed to HTTP/2 in pieces of this size, which takes the next one when the caller has taken
/// about as much. All at once it would lie there where nobody counts it.
const PIECE_BYTES: usize = 64 << 10;

/// When a caller that was refused for load should come back.
const OVERLOAD_RETRY: Duration = Duration::from_millis(200);

/// How often it is logged how many were.
const REFUSED_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Calls of health and reflection at a time, from anybody. A few replicas of a client watch the health of
/// this one, and somebody looks around; what they ask is small.
const ANYBODYS_MAX: usize = 256;

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
    places: Places,
    anybodys: Arc<Semaphore>,
    /// Calls refused for load that have not been told of.
    refused: Arc<AtomicU64>,
    numbers: Calls,
}

impl CallLayer {
    pub(super) fn new(options: Options, numbers: Calls) -> Self {
        numbers.expect(options.access);
        let places = Places::new(options.calls_max);
        let anybodys = Arc::new(Semaphore::new(ANYBODYS_MAX));
        Self { options: Arc::new(options), places, anybodys, refused: Arc::default(), numbers }
    }

    /// Tells, for as long as it is waited for, how many calls were refused for load. A line for each would cost
    /// more than refusing it, just when there is nothing to spare.
    pub(super) async fn tell_refused(self) {
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
        let Ok(place) = self.layer.anybodys.clone().try_acquire_owned() else {
            let refused = overloaded(self.layer.options.domain, Full::Everybody).into_http();
            return Box::pin(async { Ok(refused) });
        };
        let answered = self.inner.call(request);
        let held = Some(place);
        let answered = answered.map(|answer| {
            answer.map(|response| response.map(|body| Body::new(Until { body, held, rest: Bytes::new() })))
        });
        Box::pin(answered)
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
        let call_id = call_id_of(request.headers());
        let path = known_path(options.access, request.uri().path());
        let span = Span::of_server(request.headers(), path, &call_id);
        let mut line = Line::new(path, call_id.clone(), span, self.layer.numbers.clone());
        let admitted = options.identities.identify(request.headers(), options.domain);
        let admitted = admitted.and_then(|(caller, bearer)| {
            line.caller = Some((caller.tenant_kind.to_string(), caller.tenant_id.to_string()));
            auth::admit(options.access, request.uri().path(), &caller, options.domain)?;
            let place = self.layer.places.take(&caller);
            let place = place.map_err(|full| {
                line.is_refused_for_load = true;
                self.layer.refused.fetch_add(1, Ordering::Relaxed);
                self.layer.numbers.refused_for_load.inc();
                overloaded(options.domain, full)
            })?;
            request.extensions_mut().insert(caller);
            if let Some(bearer) = bearer {
                request.extensions_mut().insert(bearer);
            }
            Ok(place)
        });
        let place = match admitted {
            Ok(place) => place,
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
        let answers = answers_of(request.extensions_mut());
        // Held by the body of the request until it has come in whole.
        let coming = Arc::new(());
        let request = request.map({
            let held = Some(Arc::clone(&coming));
            |body| Body::new(Until { body, held, rest: Bytes::new() })
        });
        let handled = line.span.around(async move { inner.call(request).await });
        let handled = AssertUnwindSafe(handled).catch_unwind();
        let guarded = async move {
            // Those that came in together are all let in or refused before the first of them is answered. Calls
            // that wait for nothing would else never be in progress at the same time, and never too many.
            tokio::task::yield_now().await;
            let has_come = move || Arc::strong_count(&coming) == 1;
            let response = match in_time(handled, has_come, patience).await {
                Ok(Ok(Ok(response))) => response,
                Ok(Err(_)) => internal(options.domain).status().into_http(),
                Err(Late::Message) => stood_still(options.domain).into_http(),
                Err(Late::Answer) => too_late(options.domain).into_http(),
            };
            let response = line.finish(response, options.domain);
            if response.extensions().get::<OpenEnded>().is_some() {
                return Ok(response);
            }
            // The place is the answer's until it is on its way.
            let held = Some((place, answers.begin()));
            Ok(response.map(|body| Body::new(Until { body, held, rest: Bytes::new() })))
        };
        Box::pin(guarded.instrument(lines))
    }
}

/// The answers of the call's connection that have not been taken yet.
fn answers_of(extensions: &mut http::Extensions) -> Answers {
    let secured = extensions.remove::<Secured>().map(|info| info.get_ref().clone());
    secured.or_else(|| extensions.remove()).unwrap_or_default()
}

/// The path of a call, if it is one of the service's. Others are the caller's words, and there is no end to
/// them: they are neither logged nor counted.
fn known_path(access: auth::Access, path: &str) -> &'static str {
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

/// A body in pieces, that lets go of something when it has come to its end or is dropped.
struct Until<T> {
    body: Body,
    held: Option<T>,
    /// Of the frame of which the last piece is.
    rest: Bytes,
}

impl<T: Unpin> http_body::Body for Until<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                ended => {
                    self.held = None;
                    return Poll::Ready(ended.and_then(Result::err).map(Err));
                }
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        if self.is_end_stream() {
            self.held = None;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let left = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        let hint = self.body.size_hint();
        let mut with_rest = SizeHint::new();
        with_rest.set_lower(hint.lower().saturating_add(left));
        if let Some(upper) = hint.upper() {
            with_rest.set_upper(upper.saturating_add(left));
        }
        with_rest
    }
}

/// What is kept of one call: a log line, a count and a span. Dropped unfinished, they say that the caller
/// went away.
struct Line {
    path: &'static str,
    call_id: String,
    caller: Option<(String, String)>,
    began: Instant,
    is_refused_for_load: bool,
    finished: bool,
    span: Span,
    numbers: Calls,
}

impl Line {
    fn new(path: &'static str, call_id: String, span: Span, numbers: Calls) -> Self {
        numbers.in_progress.inc();
        let (began, is_refused_for_load, finished) = (Instant::now(), false, false);
        Self { path, call_id, caller: None, began, is_refused_for_load, finished, span, numbers }
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
        if !self.is_refused_for_load {
            self.log(in_words);
        }
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

fn overloaded(domain: &'static str, full: Full) -> Status {
    let (reason, sentence) = match full {
        Full::Everybody => ("OVERLOADED", "too many calls are in progress; try again shortly"),
        Full::Tenant => (
            "TENANT_OVERLOADED",
            "your tenant has as many calls in progress as are left for others; make fewer at a time, and try \
             again shortly",
        ),
    };
    failure(domain, Code::ResourceExhausted, reason, sentence).retry_after(OVERLOAD_RETRY).status()
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
    use http_body_util::BodyExt;

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

    #[tokio::test]
    async fn a_body_comes_in_pieces_and_lets_go_at_its_end() {
        let message = Bytes::from(vec![7; 2 * PIECE_BYTES + 1]);
        let held = Arc::new(());
        let body = Body::new(http_body_util::Full::new(message.clone()));
        let mut body = pin!(Until { body, held: Some(Arc::clone(&held)), rest: Bytes::new() });
        let mut come = vec![];
        while let Some(frame) = body.frame().await {
            come.push(frame.unwrap().into_data().unwrap());
            assert_eq!(Arc::strong_count(&held), if come.len() < 3 { 2 } else { 1 });
        }
        assert_eq!(come.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE_BYTES, PIECE_BYTES, 1]);
        assert_eq!(come.concat(), message);
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
