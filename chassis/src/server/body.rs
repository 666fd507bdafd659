//! The bodies of requests and responses: what they count as they pass, and what they hold until their end.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};

use super::memory::RequestMemory;
use super::message::give_reason;
use crate::telemetry::trace::code_of;

/// A response is handed to HTTP/2 in pieces of this size, and HTTP/2 takes the next piece when the client has taken about
/// as much. Otherwise a whole response would be buffered where no limit counts it: tonic does not let hyper's
/// `max_send_buf_size` be set.
const PIECE_BYTES: usize = 64 << 10;

/// A byte of a compressed message decompresses to at most that many (RFC 1951: 258 bytes take two bits).
const DECOMPRESSED_PER_BYTE: usize = 1032;

/// The body of a response, in pieces. It holds a guard until it has been sent or is dropped. If it ends with a status of
/// the gRPC library, the status gets a reason.
pub(super) struct GuardedBody<T> {
    body: Body,
    guard: Option<T>,
    domain: &'static str,
    /// Why the request was refused, if it was.
    refusal: Option<Arc<OnceLock<Status>>>,
    /// The part of the current frame that has not been sent.
    rest: Bytes,
}

/// The body of a request, which counts the bytes that arrive, and those of a compressed message as what they may decompress to.
pub(super) struct CountedBody {
    body: Body,
    arrived: usize,
    bytes_per_byte: usize,
    memory: Arc<RequestMemory>,
    domain: &'static str,
}

/// The body of a request without an identity, which must have arrived in time.
pub(super) struct DueBody {
    body: Body,
    due: Pin<Box<Sleep>>,
    /// Called if it is late, once.
    late: Option<Box<dyn FnOnce() -> Status + Send>>,
}

impl<T> GuardedBody<T> {
    pub(super) fn new(body: Body, guard: T, domain: &'static str) -> Self {
        Self { body, guard: Some(guard), domain, refusal: None, rest: Bytes::new() }
    }

    /// Ends with the refusal of the request, if there is one by then: reflection ends its answer as if all were well.
    pub(super) fn refused_with(self, refusal: Arc<OnceLock<Status>>) -> Self {
        Self { refusal: Some(refusal), ..self }
    }

    /// Gives the status at the end its reason.
    fn finish(&self, trailers: &mut HeaderMap) {
        if code_of(trailers) == Code::Ok
            && let Some(refusal) = self.refusal.as_ref().and_then(|refusal| refusal.get())
            && refusal.add_header(trailers).is_err()
        {
            tracing::error!(code = ?refusal.code(), "a status fits into no header");
        }
        give_reason(trailers, false, self.domain);
    }
}

impl CountedBody {
    pub(super) fn new(
        body: Body,
        is_compressed: bool,
        memory: Arc<RequestMemory>,
        domain: &'static str,
    ) -> Self {
        let bytes_per_byte = if is_compressed { DECOMPRESSED_PER_BYTE } else { 1 };
        Self { body, arrived: 0, bytes_per_byte, memory, domain }
    }
}

impl DueBody {
    pub(super) fn new(body: Body, within: Duration, late: impl FnOnce() -> Status + Send + 'static) -> Self {
        Self { body, due: Box::pin(tokio::time::sleep(within)), late: Some(Box::new(late)) }
    }
}

impl<T: Unpin> http_body::Body for GuardedBody<T> {
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
                Some(Ok(Err(mut other))) => {
                    if let Some(trailers) = other.trailers_mut() {
                        self.finish(trailers);
                    }
                    return Poll::Ready(Some(Ok(other)));
                }
                ended => {
                    self.guard = None;
                    return Poll::Ready(ended.and_then(Result::err).map(Err));
                }
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        if self.is_end_stream() {
            self.guard = None;
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

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                self.arrived = self.arrived.saturating_add(frame.data_ref().map_or(0, Bytes::len));
                let held = self.arrived.saturating_mul(self.bytes_per_byte);
                if let Err(overload) = self.memory.reserve(held) {
                    return Poll::Ready(Some(Err(overload.status(self.domain))));
                }
                if self.body.is_end_stream() {
                    self.memory.set_arrived();
                }
            }
            Some(Err(_)) => self.memory.set_broken(),
            None => self.memory.set_arrived(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for CountedBody {
    fn drop(&mut self) {
        // The handler has read all that it wants.
        self.memory.set_arrived();
    }
}

impl http_body::Body for DueBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let frame @ Poll::Ready(_) = Pin::new(&mut self.body).poll_frame(context) {
            return frame;
        }
        if self.late.is_some() {
            ready!(self.due.as_mut().poll(context));
        }
        match self.late.take() {
            Some(late) => Poll::Ready(Some(Err(late()))),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use http_body_util::BodyExt;

    use super::super::MESSAGE_BYTES_MAX;
    use super::super::memory;
    use super::*;
    use crate::limits::tenant::Tenant;

    #[tokio::test]
    async fn a_response_comes_in_pieces_and_drops_its_guard_at_its_end() {
        let message = Bytes::from(vec![7; 2 * PIECE_BYTES + 1]);
        let guard = Arc::new(());
        let body = Body::new(http_body_util::Full::new(message.clone()));
        let mut body = pin!(GuardedBody::new(body, Arc::clone(&guard), "some-svc"));
        let mut pieces = vec![];
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
            assert_eq!(Arc::strong_count(&guard), if pieces.len() < 3 { 2 } else { 1 });
        }
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE_BYTES, PIECE_BYTES, 1]);
        assert_eq!(pieces.concat(), message);
    }

    #[tokio::test]
    async fn a_request_fails_when_its_bytes_find_no_room() {
        let budget = memory::budget("INTERNAL");
        let tenant = Tenant::test("TENANT", 1);
        let request = |bytes: usize, is_compressed| {
            let memory = Arc::new(RequestMemory::new(budget.clone(), tenant));
            let body = Body::new(http_body_util::Full::new(Bytes::from(vec![7; bytes])));
            (memory.clone(), CountedBody::new(body, is_compressed, memory, "some-svc"))
        };
        // A compressed message counts as what it may decompress to.
        let mut numbers = vec![];
        for (bytes, is_compressed) in [(MESSAGE_BYTES_MAX, false), (2 << 10, true)] {
            let mut held = vec![];
            let refused = loop {
                let (memory, body) = request(bytes, is_compressed);
                match body.collect().await {
                    Ok(_) => held.push(memory),
                    Err(status) => break status,
                }
            };
            assert!(held.len() > 16 && held.iter().all(|memory| memory.has_arrived()));
            assert_eq!(refused.code(), Code::ResourceExhausted);
            numbers.push(held.len());
            held.clear();
            assert!(request(bytes, is_compressed).1.collect().await.is_ok());
        }
        assert_eq!(numbers[0], numbers[1]);
    }
}
