//! Every status that leaves a server has a reason of the contract, also those that the gRPC library makes before or
//! beside a handler.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use chassis::auth::Caller;
use chassis::query;
use chassis::server::MESSAGE_BYTES_MAX;
use diesel::connection::SimpleConnection;
use h2::Reason;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use prost::Message;
use proto::agreement::ImportAttestationsRequest;
use proto::types::ErrorReason;
use tests::assert::eventually;
use tests::databases::connect;
use tests::fixtures::{self, DIRECT};
use tests::{Backend, Cluster, reason_of};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_types::StatusExt;

use crate::contract::access::{FOR_EVERYONE, Raw, wire};

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

const CHECK: &str = "/grpc.health.v1.Health/Check";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const IMPORT: &str = "/csp.agreement.v1.AttestationService/ImportAttestations";

/// A request as it travels, well formed until it is changed.
struct Sent {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    /// The bytes of the body, with the five that announce each message.
    body: Vec<u8>,
}

fn sent(path: &str) -> Sent {
    let headers = vec![("content-type", "application/grpc".into()), ("te", "trailers".into())];
    Sent { method: Method::POST, path: path.into(), headers, body: framed(0, &[]) }
}

/// A message with its flag and its length.
fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[flag][..], &length.to_be_bytes(), message].concat()
}

impl Sent {
    fn by(mut self, caller: &Caller) -> Self {
        let mut identity = MetadataMap::new();
        caller.present(&mut identity);
        for name in ["x-tenant-id", "x-tenant-kind", "x-user-id", "x-roles", "x-channel"] {
            self.headers.push((name, identity.get(name).unwrap().to_str().unwrap().into()));
        }
        self
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value.into()));
        self
    }

    fn body(self, body: Vec<u8>) -> Self {
        Self { body, ..self }
    }

    fn request(&self, cluster: &Cluster) -> Request<()> {
        let address = address(cluster, &self.path);
        let request =
            Request::builder().method(self.method.clone()).uri(format!("http://{address}{}", self.path));
        let request =
            self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        request.body(()).unwrap()
    }

    /// The answer: its HTTP status, and the status of the call from its headers or its trailers.
    async fn answer(&self, cluster: &Cluster, client: &SendRequest<Bytes>) -> (StatusCode, HeaderMap) {
        let mut client = client.clone().ready().await.unwrap();
        let (answer, mut send) = client.send_request(self.request(cluster), self.body.is_empty()).unwrap();
        // The server may have answered before it has read everything.
        drop(send.send_data(self.body.clone().into(), true));
        let (head, mut body) = timeout(LONG, answer).await.unwrap().unwrap().into_parts();
        let mut headers = head.headers;
        while let Some(Ok(data)) = body.data().await {
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        headers.extend(body.trailers().await.unwrap_or_default().unwrap_or_default());
        (head.status, headers)
    }
}

fn address(cluster: &Cluster, path: &str) -> SocketAddr {
    if path.starts_with("/csp.agreement.") { cluster.agreements_address() } else { cluster.orders_address() }
}

/// A connection, and what ends it when it is aborted.
async fn http2(at: SocketAddr) -> (SendRequest<Bytes>, AbortHandle) {
    let stream = TcpStream::connect(at).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    (client, tokio::spawn(connection).abort_handle())
}

/// What is wrong with an answer, if anything.
fn judged(headers: &HeaderMap, code: Code, reason: &str) -> Result<Status, String> {
    let status = Status::from_header_map(headers).ok_or("has no status")?;
    let info = status.get_details_error_info().ok_or(format!("has no ErrorInfo: {status}"))?;
    ErrorReason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
        .ok_or(format!("{} is no reason of the contract", info.reason))?;
    if !["agreement-svc", "order-svc"].contains(&info.domain.as_str()) {
        return Err(format!("has the domain {}", info.domain));
    }
    if !status.message().starts_with(&format!("{reason}: ")) {
        return Err(format!("says {}", status.message()));
    }
    if (status.code(), info.reason.as_str()) == (code, reason) { Ok(status) } else { Err(status.to_string()) }
}

/// Requests that are refused whatever the call, and how.
fn refused_anywhere(path: &str) -> Vec<(&'static str, Sent, Code, &'static str)> {
    let known = || sent(path).by(&fixtures::sales(DIRECT));
    let service = path.rsplit_once('/').unwrap().0;
    let malformed = |about, sent| (about, sent, Code::InvalidArgument, "MALFORMED_MESSAGE");
    vec![
        ("an unknown service", sent("/csp.none.v1.NoService/Do"), Code::Unimplemented, "CALL_UNKNOWN"),
        ("an unknown method", sent(&format!("{service}/Do")), Code::Unimplemented, "CALL_UNKNOWN"),
        (
            "an unknown method of a caller with an identity",
            sent(&format!("{service}/Do")).by(&fixtures::operator()),
            Code::Unimplemented,
            "CALL_UNKNOWN",
        ),
        ("no identity", sent(path), Code::Unauthenticated, "IDENTITY_REQUIRED"),
        (
            "half an identity",
            sent(path).with("x-tenant-kind", "PARTNER"),
            Code::Unauthenticated,
            "IDENTITY_REQUIRED",
        ),
        malformed("JSON", known().with("content-type", "application/json")),
        malformed("gRPC for browsers", known().with("content-type", "application/grpc-web+proto")),
        malformed("no content-type", known().with("content-type", "")),
        malformed("GET", Sent { method: Method::GET, ..known() }),
        malformed("an empty body", known().body(vec![])),
        malformed("a cut announcement", known().body(vec![0, 0, 0])),
        malformed("a cut message", known().body(framed(0, b"\x0a\x09something")[..9].to_vec())),
        malformed("no message of the call", known().body(framed(0, &[0xff; 64]))),
        malformed("an unknown flag", known().body(framed(7, &[]))),
        malformed("compressed without a word", known().body(framed(1, b"packed"))),
        malformed("badly compressed", known().with("grpc-encoding", "gzip").body(framed(1, b"not packed"))),
        (
            "compressed in an unknown way",
            known().with("grpc-encoding", "br").body(framed(1, b"packed")),
            Code::Unimplemented,
            "COMPRESSION_NOT_SUPPORTED",
        ),
        (
            "a large message",
            known().body([&[0][..], &u32::MAX.to_be_bytes()].concat()),
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
        ),
        (
            "large metadata",
            known().with("x-more", &"m".repeat(20 << 10)),
            Code::ResourceExhausted,
            "METADATA_TOO_LARGE",
        ),
        ("no time", known().with("grpc-timeout", "1n"), Code::Unavailable, "DEADLINE_PASSED"),
        ("hardly any time", known().with("grpc-timeout", "900u"), Code::Unavailable, "DEADLINE_PASSED"),
    ]
}

/// Requests of single calls that are refused.
fn refused_somewhere() -> Vec<(&'static str, Sent, Code, &'static str)> {
    let unknown = HealthCheckRequest { service: "csp.none.v1.NoService".into() }.encode_to_vec();
    let large = HealthCheckRequest { service: "n".repeat(5 << 10) }.encode_to_vec();
    let symbol = MessageRequest::FileContainingSymbol("csp.none.v1.NoService".into());
    let symbol =
        ServerReflectionRequest { host: String::new(), message_request: Some(symbol) }.encode_to_vec();
    let row = framed(0, &ImportAttestationsRequest::default().encode_to_vec());
    let import = |more: &[u8]| sent(IMPORT).by(&fixtures::sales(DIRECT)).body([&row, more].concat());
    vec![
        (
            "another role",
            sent("/csp.order.v1.OrderService/ListOrders").by(&fixtures::admin(fixtures::TAILSPIN)),
            Code::PermissionDenied,
            "ROLE_NOT_ALLOWED",
        ),
        ("health of none", sent(CHECK).body(framed(0, &unknown)), Code::NotFound, "RESOURCE_NOT_FOUND"),
        ("a large name", sent(CHECK).body(framed(0, &large)), Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        ("health without a message", sent(CHECK).body(vec![]), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        (
            "an unknown symbol",
            sent(REFLECTION).body(framed(0, &symbol)),
            Code::NotFound,
            "RESOURCE_NOT_FOUND",
        ),
        ("no question", sent(REFLECTION), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        ("a cut row", import(&[0, 0, 0, 0, 9, 1]), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        ("a bad row", import(&framed(0, &[0xff; 9])), Code::InvalidArgument, "MALFORMED_MESSAGE"),
        (
            "a large row",
            import(&[&[0][..], &u32::MAX.to_be_bytes()].concat()),
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_status_has_a_reason_of_the_contract() {
    tests::needs_own!("connections that it breaks");
    let cluster = Cluster::on(Backend::Sqlite).await;
    let anywhere = FOR_EVERYONE.iter().flat_map(|path| refused_anywhere(path));
    let mut wrong = vec![];
    for (about, sent, code, reason) in anywhere.chain(refused_somewhere()) {
        let (client, _) = http2(address(&cluster, &sent.path)).await;
        let (http, headers) = sent.answer(&cluster, &client).await;
        let is_http = match about {
            "JSON" | "gRPC for browsers" | "no content-type" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "GET" => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::OK,
        };
        if http != is_http {
            wrong.push(format!("{about} at {}: {http}", sent.path));
        }
        if reason == "COMPRESSION_NOT_SUPPORTED" && headers["grpc-accept-encoding"] != "gzip,identity" {
            wrong.push(format!("{about}: {headers:?}"));
        }
        if let Err(why) = judged(&headers, code, reason) {
            wrong.push(format!("{about} at {}: {why}", sent.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // None of it is a defect.
    for metrics in [cluster.agreements_metrics().await.unwrap(), cluster.orders_metrics().await.unwrap()] {
        let internal: Vec<_> = metrics.lines().filter(|line| line.contains(r#"code="Internal""#)).collect();
        assert!(!internal.is_empty() && internal.iter().all(|line| line.ends_with(" 0")), "{internal:#?}");
    }
}

/// The deadline of a call in the middle of a statement, beside the timers of the gRPC library.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_reaches_its_deadline_has_a_reason() {
    tests::needs_own!("tables that it locks");
    tests::needs!(Backend::Postgres);
    let cluster = Cluster::on(Backend::Postgres).await;
    for (database, table, path) in [
        (cluster.agreements_database(), "customer", "/csp.agreement.v1.CustomerService/ListCustomers"),
        (cluster.orders_database(), "subscription", "/csp.order.v1.SubscriptionService/ListSubscriptions"),
    ] {
        let mut holder = connect(database).unwrap();
        let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        query!(&mut holder, c => c.batch_execute(&lock).unwrap());
        let (client, _) = http2(address(&cluster, path)).await;
        for time in ["20m", "300m"] {
            let asked = sent(path).by(&fixtures::sales(DIRECT)).with("grpc-timeout", time);
            let (_, headers) = asked.answer(&cluster, &client).await;
            judged(&headers, Code::Unavailable, "DEADLINE_PASSED").unwrap();
        }
    }
}

/// A stream that the gRPC library serves ends with a reason, too, when the server stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_watch_of_the_health_ends_with_a_reason() {
    tests::needs_own!("services that it stops");
    let mut cluster = Cluster::on(Backend::Sqlite).await;
    let (client, _) = http2(cluster.orders_address()).await;
    let watch = sent("/grpc.health.v1.Health/Watch");
    let mut client = client.ready().await.unwrap();
    let (answer, mut send) = client.send_request(watch.request(&cluster), false).unwrap();
    send.send_data(watch.body.clone().into(), true).unwrap();
    let mut body = timeout(LONG, answer).await.unwrap().unwrap().into_body();
    assert!(body.data().await.unwrap().unwrap().len() > 5, "it is serving");
    cluster.stop_orders();
    while let Some(Ok(_)) = timeout(LONG, body.data()).await.unwrap() {}
    let trailers = timeout(LONG, body.trailers()).await.unwrap().unwrap().unwrap();
    judged(&trailers, Code::Unavailable, "STOPPING").unwrap();
}

/// A client that goes away, in whatever way, is counted as a cancelled call or an incomplete message.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_client_that_goes_away_is_no_defect() {
    tests::needs_own!("connections that it breaks");
    let cluster = Cluster::on(Backend::Sqlite).await;
    let path = FOR_EVERYONE[1];
    let begun = sent(path).by(&fixtures::sales(DIRECT));
    let counted = async |code: &str| {
        let metrics = cluster.orders_metrics().await.unwrap();
        let name = format!(r#"order_svc_calls_total{{code="{code}",path="{path}"}} "#);
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
        value.map_or(0.0, |value| value.parse::<f64>().unwrap())
    };
    let is_begun = async || {
        eventually("begun", async || {
            let metrics = cluster.orders_metrics().await.unwrap();
            metrics.contains("order_svc_calls_in_progress 1\n").then_some(())
        })
        .await;
    };
    let resets = [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR, Reason::PROTOCOL_ERROR];
    let ends = resets.map(Some).into_iter().chain([None]);
    let mut ended = 0.0;
    for end in ends {
        let (client, connection) = http2(cluster.orders_address()).await;
        let mut ready = client.clone().ready().await.unwrap();
        let (_answer, mut send) = ready.send_request(begun.request(&cluster), false).unwrap();
        send.send_data(Bytes::from_static(&[0, 0, 0]), false).unwrap();
        is_begun().await;
        match end {
            Some(reason) => send.send_reset(reason),
            // The connection breaks.
            None => connection.abort(),
        }
        ended += 1.0;
        let is_counted = async || {
            let all = counted("Cancelled").await + counted("InvalidArgument").await;
            (all == ended).then_some(())
        };
        eventually(&format!("{end:?}"), is_counted).await;
    }
    assert!(counted("Cancelled").await >= 4.0);
    assert_eq!(counted("Internal").await, 0.0);
}

/// Messages may be compressed with gzip, within the same limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn compressed_messages_are_read_within_the_limit_of_decompressed_ones() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    for path in FOR_EVERYONE.into_iter().chain([CHECK]) {
        for (size, reason) in
            [(100, ""), (MESSAGE_BYTES_MAX + 1, "MESSAGE_TOO_LARGE"), (64 << 20, "MESSAGE_TOO_LARGE")]
        {
            let wire = direct.identified(wire(&direct, path));
            let mut client = Grpc::new(wire).send_compressed(CompressionEncoding::Gzip);
            client.ready().await.unwrap();
            // An unknown field of zeros, which packs well.
            let mut message = vec![0xba, 0x3e];
            prost::encode_length_delimiter(size, &mut message).unwrap();
            message.resize(message.len() + size, 0);
            let request = tonic::Request::new(message);
            let answer = client.unary(request, path.parse().unwrap(), Raw).await;
            let said = answer.as_ref().map_or_else(reason_of, |_| String::new());
            match reason {
                // The message is read, and lacks what the call needs.
                "" => assert!(answer.is_ok() || said == "INVALID_FIELDS", "{path}: {answer:?}"),
                reason => assert_eq!(said, reason, "{path}, {size} bytes: {answer:?}"),
            }
        }
    }
}
