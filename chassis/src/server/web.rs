//! Pages for browsers, in HTTP/1.1 on a listener of their own. Connections, requests and time are bounded: a client that is
//! slow is cut off. A connection has one request, so that no proxy sends a form on one that is just being closed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::DRAIN_MAX;
use super::call::CallService;
use super::refusal::{PeerLog, Refusal, RefusalLog};
use crate::tls;

/// Connections at a time, each for one request. One beyond them is closed at once.
pub(super) const CONNECTIONS_MAX: usize = 256;

/// The largest head of a request: room for a token, and for the cookies of a proxy's session.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// The largest body of a request: a form takes a tenth.
const BODY_BYTES_MAX: usize = 16 << 10;

/// How long a TLS handshake may take, and the head of a request, also to begin.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// How long a request may take, from its head to its response.
const REQUEST_MAX: Duration = Duration::from_secs(15);

/// The age at which a connection is closed: longer than handshake, head and request may take. It ends a client that does not
/// read.
const AGE_MAX: Duration = Duration::from_secs(60);

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Pages, and where they are served.
pub struct Web {
    /// Where browsers, or the proxy before them, connect.
    pub listener: TcpListener,
    /// How their connections are secured.
    pub tls: tls::Server,
    /// Makes the pages from what makes calls in this process.
    pub router: Box<dyn FnOnce(CallService) -> Router + Send>,
}

impl Web {
    /// Serves until `draining` is cancelled, and then until the open requests have ended.
    pub(super) async fn serve(self, calls: CallService, draining: CancellationToken) {
        let Self { listener, tls, router } = self;
        let router =
            router(calls).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).layer(middleware::from_fn(in_bounds));
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "serving pages");
        }
        let (open, connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
        let log = Arc::new(RefusalLog::default());
        loop {
            let accepted = tokio::select! {
                () = draining.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the pages cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = open.clone().try_acquire_owned() else {
                PeerLog::new(log.clone(), &stream).refused(&Refusal::NoRoom);
                continue;
            };
            let (tls, router, draining) = (tls.clone(), router.clone(), draining.clone());
            connections.spawn(async move {
                serve_connection(stream, &tls, router, &draining).await;
                drop(permit);
            });
        }
        connections.close();
        connections.wait().await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    tls: &tls::Server,
    router: Router,
    draining: &CancellationToken,
) {
    let stream = match tls.acceptor() {
        None => Either::Left(stream),
        Some(acceptor) => match timeout(HEAD_MAX, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Either::Right(stream),
            Ok(Err(error)) => return tracing::debug!(%error, "a handshake with the pages failed"),
            Err(_) => return tracing::debug!("a handshake with the pages took too long"),
        },
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the pages failed");
            }
        }
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            drop(timeout(DRAIN_MAX, connection).await);
        }
        () = sleep(AGE_MAX) => tracing::debug!("a client of the pages did not read its answer in time"),
    }
}

/// Ends a request whose head is too large, or whose body or answer takes too long.
async fn in_bounds(request: Request, next: Next) -> Response {
    // The parser takes what a read has brought beyond its limit.
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if fields.sum::<usize>() + target > HEAD_BYTES_MAX {
        return StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
    }
    let answered = timeout(REQUEST_MAX, next.run(request)).await;
    answered.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::routing::post;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::super::connection::tests::{ends, plaintext};
    use super::*;

    /// Sends the beginning of a request, and returns the answer and how long the connection was open.
    async fn begin(request: &str) -> (String, Duration) {
        let (mut client, server) = ends().await;
        let router =
            Router::new().route("/", post(async |body: Bytes| body)).layer(middleware::from_fn(in_bounds));
        let draining = CancellationToken::new();
        let served =
            tokio::spawn(async move { serve_connection(server, &plaintext(), router, &draining).await });
        client.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 1];
        // Whatever has been sent has arrived before time passes.
        drop(timeout(Duration::from_millis(50), client.peek(&mut first)).await);
        tokio::time::pause();
        let began = Instant::now();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        served.await.unwrap();
        (answer, began.elapsed())
    }

    #[tokio::test]
    async fn a_slow_client_is_cut_off() {
        for (request, status, open_max) in [
            ("", "", HEAD_MAX),
            ("POST / HTTP/1.1\r\nhost", "", HEAD_MAX),
            (
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nbody",
                "HTTP/1.1 408 ",
                REQUEST_MAX + HEAD_MAX,
            ),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody", "HTTP/1.1 200 ", Duration::ZERO),
        ] {
            let (answer, open) = begin(request).await;
            tokio::time::resume();
            assert!(answer.starts_with(status), "{request:?}: {answer}");
            assert!(
                answer.is_empty() || answer.contains("\r\nconnection: close\r\n"),
                "{request:?}: {answer}"
            );
            assert!(open <= open_max + Duration::from_secs(1), "{request:?}: {open:?}");
        }
    }
}
