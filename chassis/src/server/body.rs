//! The bodies of requests and answers: something is held for as long as one goes by.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

/// An answer is handed to HTTP/2 in pieces of this size, which takes the next one when the caller has taken
/// about as much. All at once it would lie there where nobody counts it.
const PIECE_BYTES: usize = 64 << 10;

/// A body in pieces, that lets go of something when it has come to its end or is dropped.
pub(super) struct Until<T> {
    body: Body,
    held: Option<T>,
    /// Of the frame of which the last piece is.
    rest: Bytes,
}

impl<T> Until<T> {
    pub(super) fn new(body: Body, held: T) -> Self {
        Self { body, held: Some(held), rest: Bytes::new() }
    }
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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_comes_in_pieces_and_lets_go_at_its_end() {
        let message = Bytes::from(vec![7; 2 * PIECE_BYTES + 1]);
        let held = Arc::new(());
        let body = Body::new(http_body_util::Full::new(message.clone()));
        let mut body = pin!(Until::new(body, Arc::clone(&held)));
        let mut come = vec![];
        while let Some(frame) = body.frame().await {
            come.push(frame.unwrap().into_data().unwrap());
            assert_eq!(Arc::strong_count(&held), if come.len() < 3 { 2 } else { 1 });
        }
        assert_eq!(come.iter().map(Bytes::len).collect::<Vec<_>>(), [PIECE_BYTES, PIECE_BYTES, 1]);
        assert_eq!(come.concat(), message);
    }
}
