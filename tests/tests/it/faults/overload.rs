//! Overload: calls above a limit are rejected with a reason, no tenant takes every slot, a slow client holds up
//! no other, and when it is over everything goes on.

use std::time::Duration;

use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::database::Url;
use chassis::tls::ClientSettings;
use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection, SqliteConnection};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use proto::agreement::{CheckEligibilityRequest, ListCustomersRequest, WatchEventsRequest};
use proto::order::{CreateOrderRequest, CreateOrderResponse, GetOfferRequest, ListOrdersRequest};
use proto::types::Operation;
use rstest_reuse::apply;
use tests::fixtures::{self, DIRECT, OFFICE, PROVIDER};
use tests::processes::{Process, build_binaries};
use tests::{As, Backend, Cluster, Setup, actions, reason_of};

use crate::each_backend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::faults::tcp_proxy::TcpProxy;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Calls that a service lets in here.
const CALLS_MAX: u16 = 8;

/// Calls of one tenant at once: more than it has slots.
const MANY: usize = 20;

type Ordered = JoinHandle<Result<CreateOrderResponse, Status>>;

fn few_calls(backend: Backend) -> Setup {
    Setup { backend, calls_max: CALLS_MAX, ..Setup::default() }
}

#[track_caller]
fn assert_overloaded(refused: &Status, reason: &str) {
    assert_eq!(
        (refused.code(), reason_of(refused).as_str()),
        (Code::ResourceExhausted, reason),
        "{refused:?}"
    );
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
}

/// Has a partner order many times at once, and tells what was refused and what is under way.
async fn order_often(partner: &As, customer: &str, under_way: usize) -> (Vec<Status>, Vec<Ordered>) {
    let mut orders: FuturesUnordered<Ordered> = (0..MANY)
        .map(|_| {
            let (partner, customer) = (partner.clone(), customer.to_owned());
            tokio::spawn(async move { actions::order(&partner, &customer, None, 5).await })
        })
        .collect();
    let mut refused = vec![];
    while orders.len() > under_way {
        let ended = timeout(LONG, orders.next()).await.unwrap().unwrap().unwrap();
        refused.push(ended.unwrap_err());
    }
    (refused, orders.into_iter().collect())
}

/// Calls beyond the concurrency limit are refused at once, and a modest tenant is served beside greedy ones.
#[apply(each_backend)]
async fn excess_is_refused_and_a_modest_tenant_is_served(#[case] backend: Backend) {
    tests::needs_own!("limits and connections that it fills");
    tests::needs!(backend);
    let proxy = TcpProxy::start().await;
    let setup = Setup { agreements_at: Some(proxy.url.clone()), ..few_calls(backend) };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    proxy.lead_to(cluster.agreements_address());
    actions::register_partners(&cluster).await.unwrap();
    let (direct, provider) =
        (cluster.as_caller(fixtures::sales(DIRECT)), cluster.as_caller(fixtures::sales(PROVIDER)));
    let stranger = |n| cluster.as_caller(fixtures::sales(Uuid::from_u128(n)));
    let mut customers = vec![];
    for partner in [&direct, &provider] {
        let name = format!("Customer {}", customers.len());
        let customer = actions::create_customer(partner, &name, "FR", None).await.unwrap();
        actions::attest(partner, &customer, Clock::system().now()).await.unwrap();
        actions::order(partner, &customer, None, 5).await.unwrap();
        customers.push(customer);
    }

    // From now on orders wait for the gate, until they are let go.
    proxy.hold_answers(true);
    let (refused, mut under_way) = order_often(&direct, &customers[0], 4).await;
    assert_eq!(refused.len(), MANY - 4);
    refused.iter().for_each(|refused| assert_overloaded(refused, "TENANT_OVERLOADED"));
    let (refused, others) = order_often(&provider, &customers[1], 2).await;
    refused.iter().for_each(|refused| assert_overloaded(refused, "TENANT_OVERLOADED"));
    under_way.extend(others);
    // Who asks for little finds room, though the two would have taken everything.
    let seen =
        cluster.as_caller(fixtures::operator()).orders().list_orders(ListOrdersRequest::default()).await;
    assert_eq!(seen.unwrap().into_inner().orders.len(), 2);
    // A malformed message is rejected in the same way: it is not read.
    let refused = direct.orders().create_order(CreateOrderRequest::default()).await.unwrap_err();
    assert_overloaded(&refused, "TENANT_OVERLOADED");

    // When the last slot is taken, every call but health is rejected.
    let (_, third) = order_often(&stranger(1), &customers[0], 1).await;
    let (_, fourth) = order_often(&stranger(2), &customers[0], 1).await;
    let refused = actions::order(&stranger(3), &customers[0], None, 5).await.unwrap_err();
    assert_overloaded(&refused, "OVERLOADED");
    let orders = format!("http://{}", cluster.orders_address()).parse().unwrap();
    chassis::health::check_health(&orders, &ClientSettings::default()).await.unwrap();

    proxy.hold_answers(false);
    for ordered in timeout(LONG, join_all(under_way)).await.unwrap() {
        ordered.unwrap().unwrap();
    }
    for ordered in timeout(LONG, join_all(third.into_iter().chain(fourth))).await.unwrap() {
        assert_eq!(reason_of(&ordered.unwrap().unwrap_err()), "RESOURCE_NOT_FOUND");
    }
    let (_, under_way) = order_often(&direct, &customers[0], MANY).await;
    let after = join_all(under_way).await.into_iter().filter(|ordered| matches!(ordered, Ok(Ok(_))));
    assert!(after.count() >= 4, "{backend:?}");
}

/// Keeps writers of agreement-svc's database waiting, until it is dropped.
enum Lock {
    Sqlite(#[expect(dead_code, reason = "its end is what matters")] SqliteConnection),
    Postgres(#[expect(dead_code, reason = "its end is what matters")] PgConnection),
}

impl Lock {
    fn on(database: &Url) -> Self {
        match database {
            Url::Sqlite(path) => {
                let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
                connection.batch_execute("PRAGMA busy_timeout = 5000; BEGIN IMMEDIATE").unwrap();
                Self::Sqlite(connection)
            }
            Url::Postgres(url) => {
                let mut connection = PgConnection::establish(url).unwrap();
                connection.batch_execute("BEGIN; SELECT * FROM revision FOR UPDATE").unwrap();
                Self::Postgres(connection)
            }
        }
    }
}

#[apply(each_backend)]
async fn the_gate_answers_while_one_partner_uses_its_share(#[case] backend: Backend) {
    tests::needs_own!("limits and connections that it fills");
    tests::needs!(backend);
    let cluster = Cluster::start(few_calls(backend)).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
    let mut names = vec![];
    for n in 0..MANY {
        names.push(fixtures::new_customer(&format!("Customer {n}"), "FR", None));
    }

    let lock = Lock::on(cluster.agreements_database());
    let mut creating: FuturesUnordered<_> = names
        .into_iter()
        .map(|new| {
            let mut customers = direct.customers();
            tokio::spawn(async move { customers.create_customer(new).await })
        })
        .collect();
    while creating.len() > 4 {
        let ended = timeout(LONG, creating.next()).await.unwrap().unwrap().unwrap();
        assert_overloaded(&ended.unwrap_err(), "TENANT_OVERLOADED");
    }
    // Ordering needs agreement-svc, and order-svc asks for all tenants: also for the greedy one.
    let orders = (0..MANY).map(async |_| actions::order(&direct, &customer, None, 5).await);
    for ordered in join_all(orders).await {
        match ordered {
            Ok(_) => {}
            Err(refused) => assert_overloaded(&refused, "TENANT_OVERLOADED"),
        }
    }
    actions::order(&direct, &customer, None, 5).await.unwrap();
    // An attestation that an order carries is the partner's own call. Whether it was for load or for
    // anything else that it was not made, all that can be done is to come again with the same order.
    let order = CreateOrderRequest {
        attestation: Some(fixtures::inline_attestation(Clock::system().now())),
        ..fixtures::new_order(&customer, None, OFFICE, 5)
    };
    let refused = direct.orders().create_order(order.clone()).await.unwrap_err();
    assert_eq!((refused.code(), reason_of(&refused)), (Code::Unavailable, "GATE_UNAVAILABLE".into()));
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());

    drop(lock);
    while let Some(created) = timeout(LONG, creating.next()).await.unwrap() {
        created.unwrap().unwrap();
    }
    direct.orders().create_order(order).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_operator_has_at_most_half_of_the_watchers() {
    tests::needs_own!("limits and connections that it fills");
    // One of 64 is order-svc.
    const OPERATORS_MAX: usize = 32;
    let cluster = Cluster::start(few_calls(Backend::Sqlite)).await.unwrap();
    let watch = async |caller: Caller| {
        let request = WatchEventsRequest::default();
        cluster.as_caller(caller).events().watch_events(request).await
    };
    // The cluster's own watcher is there first.
    let following = async {
        while cluster.orders_metrics().await.unwrap().contains("order_svc_history_behind_seconds inf") {}
    };
    timeout(LONG, following).await.unwrap();
    let mut watchers = vec![];
    for _ in 0..OPERATORS_MAX {
        watchers.push(watch(fixtures::operator()).await.unwrap());
    }
    let refused = watch(fixtures::operator()).await.unwrap_err();
    assert_overloaded(&refused, "TENANT_OVERLOADED");
    let counted = cluster.agreements_metrics().await.unwrap();
    assert!(counted.contains("agreement_svc_calls_refused_for_load_total 1\n"), "{counted}");
    watchers.push(watch(fixtures::service()).await.unwrap());
    // Streams that go on are no calls in progress: of those there may be fewer.
    assert!(watchers.len() > usize::from(CALLS_MAX));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_watchers_do_not_block_health_checks() {
    tests::needs_own!("limits and connections that it fills");
    const STREAMS_MAX: usize = 256;
    const PER_CONNECTION: usize = 16;
    let cluster = Cluster::start(few_calls(Backend::Sqlite)).await.unwrap();
    let mut watchers = vec![];
    for connections in 0.. {
        assert!(connections * PER_CONNECTION <= STREAMS_MAX, "{} watchers", watchers.len());
        let mut health = HealthClient::new(cluster.as_unidentified().orders);
        let mut refused = None;
        for _ in 0..PER_CONNECTION {
            match health.watch(HealthCheckRequest::default()).await {
                Ok(watcher) => watchers.push(watcher),
                Err(full) => refused = Some(full),
            }
        }
        if let Some(full) = refused {
            assert_overloaded(&full, "OVERLOADED");
            break;
        }
        // Its connection is full; the process is not.
        assert_overloaded(&health.check(HealthCheckRequest::default()).await.unwrap_err(), "OVERLOADED");
    }
    let mut other = HealthClient::new(cluster.as_unidentified().orders);
    other.check(HealthCheckRequest::default()).await.unwrap();
    drop(watchers);
    let room = async { while other.watch(HealthCheckRequest::default()).await.is_err() {} };
    timeout(LONG, room).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn half_sent_calls_without_an_identity_do_not_block_health_checks() {
    tests::needs_own!("limits and connections that it fills");
    const CONNECTIONS: usize = 20;
    const CALLS: usize = 256;
    const PER_CONNECTION: usize = 16;
    let cluster = Cluster::start(few_calls(Backend::Sqlite)).await.unwrap();
    let orders = format!("http://{}", cluster.orders_address());
    let mut connections = vec![];
    let mut half_sent = vec![];
    for _ in 0..CONNECTIONS {
        let stream = TcpStream::connect(cluster.orders_address()).await.unwrap();
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        connections.push(tokio::spawn(connection));
        for _ in 0..CALLS {
            client = client.ready().await.unwrap();
            let request = Request::post(format!("{orders}/grpc.health.v1.Health/Check"));
            let request = request.header("content-type", "application/grpc").header("te", "trailers");
            half_sent.push(client.send_request(request.body(()).unwrap(), false).unwrap());
        }
        chassis::health::check_health(&orders.parse().unwrap(), &ClientSettings::default()).await.unwrap();
    }
    // What is beyond the limit of the connection is refused at once, and the rest when it stood still for too long.
    let mut stood_still = 0;
    for (answer, _half) in half_sent {
        let answer = timeout(LONG, answer).await.unwrap().unwrap();
        let refused = status_of(answer.headers()).unwrap();
        match reason_of(&refused).as_str() {
            "STREAM_STOOD_STILL" => stood_still += 1,
            _ => assert_overloaded(&refused, "OVERLOADED"),
        }
    }
    assert_eq!(stood_still, CONNECTIONS * PER_CONNECTION);
    // Then such connections are closed, though their clients answer pings.
    for connection in connections {
        drop(timeout(LONG, connection).await.unwrap().unwrap());
    }
    chassis::health::check_health(&orders.parse().unwrap(), &ClientSettings::default()).await.unwrap();
}

/// An HTTP/2 connection that sends what the test sends, and no more.
async fn http2(cluster: &Cluster, window: u32) -> SendRequest<bytes::Bytes> {
    let stream = TcpStream::connect(cluster.orders_address()).await.unwrap();
    let (client, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A call of GetOffer by a partner, and its message as it travels.
fn get_offer(cluster: &Cluster, partner: Uuid) -> (Request<()>, bytes::Bytes) {
    let mut identity = MetadataMap::new();
    fixtures::sales(partner).present(&mut identity);
    let uri = format!("http://{}/csp.order.v1.OfferService/GetOffer", cluster.orders_address());
    let mut request = Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
    request.headers_mut().unwrap().extend(identity.into_headers());
    let message = GetOfferRequest { offer_id: OFFICE.into() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap();
    (request.body(()).unwrap(), [&[0][..], &length.to_be_bytes(), &message].concat().into())
}

fn status_of(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slow_message_is_aborted_and_blocks_no_other() {
    tests::needs_own!("limits and connections that it fills");
    let cluster = Cluster::start(few_calls(Backend::Sqlite)).await.unwrap();
    let mut client = http2(&cluster, 65_535).await;
    // One says nothing after its headers, one sends a byte every now and then, both for ever.
    let (request, _) = get_offer(&cluster, DIRECT);
    let (silent, _silent) = client.send_request(request, false).unwrap();
    let (request, message) = get_offer(&cluster, DIRECT);
    let (dribbling, mut dribble) = client.send_request(request, false).unwrap();
    tokio::spawn(async move {
        for byte in message.iter().cycle() {
            if dribble.send_data(bytes::Bytes::copy_from_slice(&[*byte]), false).is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    // A connection that never finishes its first proxy.
    let mut unfinished = TcpStream::connect(cluster.orders_address()).await.unwrap();
    unfinished.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();

    // Others are served meanwhile, on the same connection, too.
    let (request, message) = get_offer(&cluster, DIRECT);
    let (answer, mut send) = client.send_request(request, false).unwrap();
    send.send_data(message, true).unwrap();
    let answer = timeout(LONG, answer).await.unwrap().unwrap();
    assert!(status_of(answer.headers()).is_none(), "{answer:?}");
    let offer = GetOfferRequest { offer_id: OFFICE.into() };
    cluster.as_caller(fixtures::sales(PROVIDER)).offers().get_offer(offer).await.unwrap();

    for slow in [silent, dribbling] {
        let refused = timeout(LONG, slow).await.unwrap().unwrap();
        assert_overloaded(&status_of(refused.headers()).unwrap(), "STREAM_STOOD_STILL");
    }
    let mut said = vec![];
    // How it ends, with or without a word, is up to the system.
    drop(timeout(LONG, unfinished.read_to_end(&mut said)).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unread_answers_count_against_their_tenant_only() {
    tests::needs_own!("limits and connections that it fills");
    let cluster = Cluster::start(few_calls(Backend::Sqlite)).await.unwrap();
    let mut client = http2(&cluster, 0).await;
    let mut answers = vec![];
    for _ in 0..MANY {
        let (request, message) = get_offer(&cluster, DIRECT);
        let (answer, mut send) = client.send_request(request, false).unwrap();
        send.send_data(message, true).unwrap();
        answers.push(answer);
    }
    let mut untaken = vec![];
    for answer in answers {
        let answer = timeout(LONG, answer).await.unwrap().unwrap();
        match status_of(answer.headers()) {
            None => untaken.push(answer),
            Some(refused) => assert_overloaded(&refused, "TENANT_OVERLOADED"),
        }
    }
    assert_eq!(untaken.len(), 4);
    let offer = || GetOfferRequest { offer_id: OFFICE.into() };
    cluster.as_caller(fixtures::sales(PROVIDER)).offers().get_offer(offer()).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    assert_overloaded(&direct.offers().get_offer(offer()).await.unwrap_err(), "TENANT_OVERLOADED");

    // When the connection ends, so do they; only the server knows when it has noticed.
    drop((untaken, client));
    let served = async {
        while let Err(refused) = direct.offers().get_offer(offer()).await {
            assert_overloaded(&refused, "TENANT_OVERLOADED");
        }
    };
    timeout(LONG, served).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn too_large_headers_are_refused_and_the_connection_stays() {
    tests::needs_own!("limits and connections that it fills");
    let cluster = Cluster::on(Backend::Sqlite).await;
    let mut client = http2(&cluster, 65_535).await;
    for (bytes, is_served) in [(8 << 10, true), (32 << 10, false), (128 << 10, false), (8 << 10, true)] {
        let (mut request, message) = get_offer(&cluster, DIRECT);
        request.headers_mut().insert("x-more", "a".repeat(bytes).parse().unwrap());
        let (answer, mut send) = client.send_request(request, false).unwrap();
        // The client may have gone.
        drop(send.send_data(message, true));
        let answer = timeout(LONG, answer).await.unwrap();
        let served =
            answer.is_ok_and(|answer| answer.status() == 200 && status_of(answer.headers()).is_none());
        assert_eq!(served, is_served, "{bytes} bytes");
    }
}

/// Whether a call failed because its connection was closed: unknown is what it is in the middle of the call.
fn is_closed(failed: &Status) -> bool {
    matches!(failed.code(), Code::Unavailable | Code::Unknown)
}

/// What an HTTP/2 client says first: its preface and that it has no wishes.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn excess_connections_are_closed_and_open_ones_stay() {
    tests::needs_own!("limits and connections that it fills");
    const DESCRIPTORS: usize = 160;
    const CONNECTIONS: usize = 200;
    build_binaries().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("agreements.sqlite").display()).parse().unwrap();
    let mut server = Process::agreements(database, &folder.path().join("mails"), folder.path()).unwrap();
    server.limit_descriptors(DESCRIPTORS);
    server.start().await.unwrap();
    let operator = server.as_caller(fixtures::operator());
    actions::register_partners_as(&operator).await.unwrap();

    // The last to come of those without an identified caller find room, and others go for them.
    let mut silent = vec![];
    for _ in 0..CONNECTIONS {
        let mut connection = TcpStream::connect(server.socket_address()).await.unwrap();
        connection.write_all(HELLO).await.unwrap();
        timeout(LONG, connection.read_u8()).await.unwrap().unwrap();
        silent.push(connection);
    }
    let direct = As { identity: tests::clients::Identity::of(fixtures::sales(DIRECT)), ..operator.clone() };
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();

    // Those with one stay, and what is beyond the limit is closed.
    let list = async |caller: &As| caller.customers().list_customers(ListCustomersRequest::default()).await;
    let mut open = vec![];
    for _ in 0..CONNECTIONS {
        let caller = server.as_caller(fixtures::sales(DIRECT));
        match timeout(LONG, list(&caller)).await.unwrap() {
            Ok(_) => open.push(caller),
            Err(refused) => assert!(is_closed(&refused), "{refused:?}"),
        }
    }
    // Those of the harness are among them.
    assert!(open.len() > 64 && open.len() < DESCRIPTORS - 64, "{} are open", open.len());
    for caller in open.iter().chain([&direct]) {
        list(caller).await.unwrap();
    }

    drop((open, silent));
    let anew = server.as_caller(fixtures::sales(DIRECT));
    let question = CheckEligibilityRequest {
        payer_id: DIRECT.to_string(),
        customer_id: customer,
        operation: Operation::NewPurchase.into(),
        ..CheckEligibilityRequest::default()
    };
    let asking = async {
        // Only the server knows when it has noticed that there is room.
        while let Err(refused) = anew.gate().check_eligibility(question.clone()).await {
            assert!(is_closed(&refused), "{refused:?}");
        }
    };
    timeout(LONG, asking).await.unwrap();
}
