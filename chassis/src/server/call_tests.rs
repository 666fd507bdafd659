//! Tests of the middleware, with a service of one call.

use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use chrono::TimeDelta;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tonic::Code;
use tonic_types::StatusExt;
use uuid::Uuid;

use super::*;
use crate::auth::access::CallerClass;
use crate::auth::jwt::signing::{self, SigningKey};
use crate::auth::{Auth, Channel, Identities, IsRegistered, Settings, TrustedIssuers, Vocabulary};
use crate::clock::Clock;
use crate::database::{Database, Writes};
use crate::metrics::Metrics;
use crate::tls;

/// A service with one call, which reads its message and ends when it is let go, and with one slot.
async fn service(go: Arc<Notify>) -> CallService {
    service_with(auth::open_in_test(&Settings::insecure()).await.unwrap(), go)
}

fn service_with(identities: Identities, go: Arc<Notify>) -> CallService {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
    let database = Database::open(&url, true, Writes::Concurrent).unwrap();
    let metrics = Metrics::new("some_svc", database).unwrap();
    let address = "127.0.0.1:0".parse().unwrap();
    let options = Options {
        domain: "some-svc",
        identities,
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

/// The tenant that is said at once to be registered. About all others no answer comes.
const REGISTERED: Uuid = Uuid::from_u128(99);

/// Identities of an issuer whose tokens do not say what kind of tenant they are for, and its key.
async fn identities_of_issuer(keys_at: Option<&str>) -> (Identities, SigningKey) {
    let (key, _) = SigningKey::generate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    std::fs::write(&jwks, SigningKey::public_set(&[&key])).unwrap();
    let keys = keys_at.map_or(json!({"jwks_file": jwks}), |url| json!({"jwks_url": url}));
    let claims = json!({"tenant_kind": "registration"});
    let provider = json!({"issuer": "issuer", "audiences": ["ours"], "keys": keys, "claims": claims});
    let providers = folder.path().join("providers.json");
    std::fs::write(&providers, json!({"providers": [provider]}).to_string()).unwrap();
    let settings = Settings { auth: Auth::Jwt, identity_providers: Some(providers), ..Settings::insecure() };
    let trusted = TrustedIssuers::read(&settings, Vocabulary::TEST).unwrap();
    let is_registered: IsRegistered = Arc::new(|id| match id {
        REGISTERED => Box::pin(ready(Ok(true))),
        _ => Box::pin(std::future::pending()),
    });
    (Identities::open(trusted, Clock::system(), is_registered).await, key)
}

/// A call of a tenant, with a token.
fn call_of(tenant_id: Uuid, key: &SigningKey) -> http::Request<Body> {
    let caller = Caller {
        tenant_kind: "TENANT",
        tenant_id,
        user_id: Uuid::from_u128(7),
        roles: vec![],
        channel: Channel::Api,
        client: None,
    };
    let claims = signing::claims(&caller, "issuer", "ours", Clock::system().now(), TimeDelta::hours(1));
    let mut request = request("message").0;
    let bearer = format!("Bearer {}", key.sign(&claims).unwrap());
    request.headers_mut().insert("authorization", bearer.parse().unwrap());
    request
}

/// Makes calls until one is refused at once. Returns those that wait, and the reason of the refusal.
fn call_until_refused(
    service: &mut CallService,
    request: impl Fn() -> http::Request<Body>,
) -> (Vec<ResponseFuture>, String) {
    let mut waiting = vec![];
    while waiting.len() <= UNIDENTIFIED_CALLS_MAX {
        let mut call = service.call(request());
        match call.as_mut().now_or_never() {
            None => waiting.push(call),
            Some(refused) => {
                let status = Status::from_header_map(refused.unwrap().headers()).unwrap();
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                assert!(status.get_details_retry_info().is_some(), "{status}");
                return (waiting, status.get_details_error_info().unwrap().reason);
            }
        }
    }
    panic!("{} calls wait", waiting.len());
}

#[tokio::test]
async fn calls_that_wait_for_the_registration_of_their_tenant_are_limited() {
    let go = Arc::new(Notify::new());
    let (identities, key) = identities_of_issuer(None).await;
    let mut service = service_with(identities, go.clone());
    let mut all = vec![];
    // Each tenant may have as many as are still free.
    for (n, count, reason) in [
        (1, 128, "TENANT_OVERLOADED"),
        (2, 64, "TENANT_OVERLOADED"),
        (3, 32, "TENANT_OVERLOADED"),
        (4, 16, "TENANT_OVERLOADED"),
        (5, 8, "TENANT_OVERLOADED"),
        (6, 4, "TENANT_OVERLOADED"),
        (7, 2, "TENANT_OVERLOADED"),
        (8, 1, "TENANT_OVERLOADED"),
        (9, 1, "OVERLOADED"),
        (10, 0, "OVERLOADED"),
    ] {
        if n == 9 {
            // A tenant whose registration is known at once finds room beside those that wait, and gives it back.
            go.notify_one();
            let answer = service.call(call_of(REGISTERED, &key)).await.unwrap();
            assert!(Status::from_header_map(answer.headers()).is_none(), "{answer:?}");
        }
        let (waiting, why) = call_until_refused(&mut service, || call_of(Uuid::from_u128(n), &key));
        assert_eq!((waiting.len(), &*why), (count, reason), "tenant {n}");
        all.push(waiting);
    }
    // A registration that is remembered needs no room.
    go.notify_one();
    let answer = service.call(call_of(REGISTERED, &key)).await.unwrap();
    assert!(Status::from_header_map(answer.headers()).is_none(), "{answer:?}");
    // Calls that end make room.
    all.swap_remove(0);
    let (waiting, _) = call_until_refused(&mut service, || call_of(Uuid::from_u128(11), &key));
    assert_eq!(waiting.len(), 64);
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_keys_are_limited() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", silent.local_addr().unwrap());
    let (identities, key) = identities_of_issuer(Some(&url)).await;
    let mut service = service_with(identities, Arc::default());
    // The first fetch has ended without keys. More than five seconds later a call may wait for another one.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let mut all = vec![];
    for count in [128, 64] {
        let connection = Peer::new();
        let call = || {
            let mut request = call_of(REGISTERED, &key);
            request.extensions_mut().insert(connection.clone());
            request
        };
        let (waiting, why) = call_until_refused(&mut service, call);
        assert_eq!((waiting.len(), &*why), (count, "TENANT_OVERLOADED"));
        all.push(waiting);
    }
}
