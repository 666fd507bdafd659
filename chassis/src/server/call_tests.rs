//! Tests of the middleware, with a service of one call.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::Notify;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::auth::access::CallerClass;
use crate::auth::{Auth, Settings};
use crate::database::{Database, Writes};
use crate::metrics::Metrics;
use crate::tls;

/// A service with one call, which reads its message and ends when it is let go, and with one slot.
async fn service(go: Arc<Notify>) -> CallService {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
    let database = Database::open(&url, true, Writes::Concurrent).unwrap();
    let metrics = Metrics::new("some_svc", database).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let options = Options {
        domain: "some-svc",
        identities: auth::open_in_test(&Settings::insecure()).await.unwrap(),
        tls: tls::Server::open(&tls::ServerSettings::default(), Auth::Insecure, address).unwrap(),
        access: &[("/a.B/C", &[CallerClass::ANYONE])],
        services: &[],
        descriptors: &[],
        calls_max: 1,
        threads: 1,
    };
    let handler = async move |request: http::Request<axum::body::Body>| {
        let message = request.into_body().collect().await.map_err(|error| error.to_string())?;
        assert_ne!(message.to_bytes(), PANICS, "a defect");
        go.notified().await;
        Ok::<_, String>(http::Response::new(axum::body::Body::from("answer")))
    };
    // It answers at once, and reads its request meanwhile.
    let unidentified = async |request: http::Request<axum::body::Body>| {
        let read = async {
            let message = request.into_body().collect().await;
            Ok::<_, Infallible>(message.err().map(|error| error.to_string()).unwrap_or_default())
        };
        http::Response::new(axum::body::Body::from_stream(futures_util::stream::once(read)))
    };
    let router = Router::new().route("/a.B/C", post(handler));
    let routes =
        UNIDENTIFIED_STREAMS.iter().fold(router, |all, (call, _)| all.route(call, post(unidentified)));
    let routes = Routes::from(routes);
    CallLayer::new(options, metrics.calls().clone()).layer(routes)
}

/// The message at which the handler panics.
const PANICS: &str = "panic";

/// A call, and whether its message is read.
fn request(message: &'static str) -> (http::Request<Body>, Arc<AtomicBool>) {
    let is_read = Arc::new(AtomicBool::new(false));
    let message = {
        let is_read = is_read.clone();
        futures_util::stream::once(async move {
            is_read.store(true, Ordering::Relaxed);
            Ok::<_, Status>(http_body::Frame::data(Bytes::from_static(message.as_bytes())))
        })
    };
    let request = http::Request::post("/a.B/C").header(CONTENT_TYPE, "application/grpc");
    let mut request = request.body(Body::new(StreamBody::new(message))).unwrap();
    for (key, value) in [
        ("x-tenant-kind", "TENANT"),
        ("x-tenant-id", "00000000-0000-4000-8000-000000000001"),
        ("x-user-id", "00000000-0000-4000-8000-000000000002"),
    ] {
        request.headers_mut().insert(key, value.parse().unwrap());
    }
    (request, is_read)
}

#[tokio::test]
async fn a_panic_is_answered_and_ends_nothing_else() {
    let go = Arc::new(Notify::new());
    let mut service = service(go.clone()).await;
    go.notify_one();
    for (message, reason) in [(PANICS, "INTERNAL"), ("message", "")] {
        let answer = service.call(request(message).0).await.unwrap();
        let status = Status::from_header_map(answer.headers());
        let info = status.and_then(|status| status.get_details_error_info());
        assert_eq!(info.map(|info| info.reason).unwrap_or_default(), reason, "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_open_for_too_long_is_refused_with_its_own_limit() {
    let mut service = service(Arc::default()).await;
    let sentences = [
        "the request did not arrive completely within 10 s; send it again",
        "the stream was open for longer than 60 s; open it again",
        "the stream was open for longer than 60 s; open it again",
    ];
    for ((call, late), sentence) in UNIDENTIFIED_STREAMS.iter().zip(sentences) {
        let open = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Status>>();
        let request = http::Request::post(*call).header(CONTENT_TYPE, "application/grpc");
        let request = request.body(Body::new(StreamBody::new(open))).unwrap();
        let began = tokio::time::Instant::now();
        let answer = service.call(request).await.unwrap();
        let refused = answer.into_body().collect().await.unwrap().to_bytes();
        let refused = String::from_utf8_lossy(&refused);
        assert!(refused.contains(sentence), "{call}: {refused}");
        assert!(began.elapsed() >= late.within(), "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn reflection_says_why_it_ends_a_stream() {
    let mut service = service(Arc::default()).await;
    let reflection = tonic_reflection::server::Builder::configure();
    service.inner = Routes::new(reflection.build_v1().unwrap());
    let open = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Status>>();
    let (call, _) = UNIDENTIFIED_STREAMS[1];
    let request = http::Request::post(call).header(CONTENT_TYPE, "application/grpc");
    let request = request.body(Body::new(StreamBody::new(open))).unwrap();
    let answer = service.call(request).await.unwrap().into_body().collect().await.unwrap();
    let status = Status::from_header_map(answer.trailers().unwrap()).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "STREAM_STOOD_STILL");
    assert!(status.message().contains("open for longer than 60 s"), "{}", status.message());
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_its_slot_with_its_message_unread() {
    let go = Arc::new(Notify::new());
    let mut service = service(go.clone()).await;
    let call = |service: &mut CallService| {
        let (request, is_read) = request("message");
        (tokio::spawn(service.call(request)), is_read)
    };
    let code = |response: &http::Response<Body>| crate::telemetry::trace::code_of(response.headers());
    let (first, is_first_read) = call(&mut service);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(is_first_read.load(Ordering::Relaxed));

    let (refused, is_refused_read) = call(&mut service);
    let refused = refused.await.unwrap().unwrap();
    assert_eq!(code(&refused), Code::ResourceExhausted);
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
    assert_eq!(code(&second.await.unwrap().unwrap()), Code::Ok);
    assert!(is_second_read.load(Ordering::Relaxed));
}
