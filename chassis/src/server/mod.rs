//! A gRPC server, from the address that it binds to its graceful shutdown; health and reflection stand beside the calls
//! of the service.

mod accept;
mod body;
pub mod call;
mod connection;
pub mod deadline;
mod health;
mod memory;
pub mod message;
mod overload;
mod preface;
mod record;
mod refusal;
mod request;
mod threads;
pub mod web;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::try_join_all;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::codec::CompressionEncoding;
use tonic::service::RoutesBuilder;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::health_server::HealthServer;
use tower::Layer;

use self::call::CallLayer;
use self::health::HealthService;
use self::threads::Threads;
use self::web::Web;
use crate::auth::access::AccessPolicy;
use crate::auth::{Auth, Identities};
use crate::metrics::Metrics;
use crate::tls;

/// The largest request message: a hundred full order lines fit forty times.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The largest request of health and reflection, which need no identity: the name of a service or a type.
const PUBLIC_MESSAGE_BYTES_MAX: usize = 4 << 10;

/// Calls that one connection may have open. Further calls wait in the client.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;

/// Bytes of one call's messages that may wait to be read. A larger message takes a few round trips. A larger window would
/// hold more for a client that sends faster than its messages are handled, and h2 takes many small messages in it for an
/// attack.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// The largest metadata of a request, by HTTP/2's count; an identity takes a tenth.
const METADATA_BYTES_MAX: usize = 16 << 10;

/// Request headers that HTTP/2 itself refuses, without a gRPC status. It is more than [`METADATA_BYTES_MAX`], so that a client
/// that sends a little too much learns why.
const HEADER_BYTES_MAX: u32 = 4 * METADATA_BYTES_MAX as u32;

/// The interval of pings on idle connections, by which a dead peer is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// The age at which a connection is renewed, so that clients spread over new replicas.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(1800);

/// How long the calls of such a connection may go on before it is closed: as long as the longest streams.
const CONNECTION_GRACE: Duration = Duration::from_secs(1800);

/// How long calls in progress may go on during a graceful shutdown.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The services beside those of the contract.
const INFRASTRUCTURE: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Makes the server of one gRPC service: messages may be compressed, and their size is limited, also decompressed.
#[macro_export]
macro_rules! served {
    ($server:ident, $api:expr) => {
        $server::new($api)
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
            .max_decoding_message_size($crate::server::MESSAGE_BYTES_MAX)
    };
}

/// The listeners of a service.
#[derive(Debug)]
pub struct Listeners {
    /// For calls.
    pub calls: TcpListener,
    /// For metrics.
    pub metrics: Option<TcpListener>,
    /// For pages.
    pub web: Option<TcpListener>,
}

/// What a server has to know of its service.
#[derive(Clone)]
pub struct Options {
    /// `ErrorInfo.domain` of its errors.
    pub domain: &'static str,
    /// How its callers are identified.
    pub identities: Identities,
    /// How its connections are secured.
    pub tls: tls::Server,
    /// The callers that may make each call.
    pub access: AccessPolicy,
    /// The full names of its gRPC services, for health.
    pub services: &'static [&'static str],
    /// The encoded contract, for reflection.
    pub descriptors: &'static [u8],
    /// The limit of calls in progress.
    pub calls_max: usize,
    /// The threads that serve.
    pub threads: u16,
}

/// Serves, with the pages if there are any, until `shutdown` resolves, then reports NOT_SERVING, lets calls in progress end for at most [`DRAIN_MAX`], and
/// returns.
///
/// # Errors
/// An address that the mode of authentication forbids; a thread that cannot be started; a transport that fails.
pub async fn serve(
    listener: TcpListener,
    mut routes: RoutesBuilder,
    options: Options,
    web: Option<Web>,
    metrics: &Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    options.identities.auth().check_address(address)?;

    let (serving, is_serving) = watch::channel(true);
    let health = HealthService { services: options.services, domain: options.domain, is_serving };
    let health = HealthServer::new(health)
        .accept_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(PUBLIC_MESSAGE_BYTES_MAX);
    let reflection = || {
        let files = [
            options.descriptors,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
            // The types of error details, which no message of the contract names.
            tonic_types::pb::FILE_DESCRIPTOR_SET,
        ];
        let builder = tonic_reflection::server::Builder::configure();
        let builder = files
            .into_iter()
            .fold(builder, tonic_reflection::server::Builder::register_encoded_file_descriptor_set);
        options.services.iter().chain(&INFRASTRUCTURE).fold(builder, |all, name| all.with_service_name(*name))
    };
    // Both versions, since clients that know one do not know the other.
    let v1 = reflection().build_v1()?.accept_compressed(CompressionEncoding::Gzip);
    let v1alpha = reflection().build_v1alpha()?.accept_compressed(CompressionEncoding::Gzip);
    routes
        .add_service(health)
        .add_service(v1.max_decoding_message_size(PUBLIC_MESSAGE_BYTES_MAX))
        .add_service(v1alpha.max_decoding_message_size(PUBLIC_MESSAGE_BYTES_MAX));

    let draining = CancellationToken::new();
    let drain = draining.clone();
    let stop = async move {
        shutdown.await;
        tracing::info!("shutting down: calls in progress may end");
        serving.send_replace(false);
        drain.cancel();
        std::future::pending::<()>().await;
    };
    options.identities.register_metrics(metrics);
    options.tls.register_metrics(metrics);
    let threads = Threads::start(options.threads)?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let connections_max = accept::connections_max(web.as_ref().map_or(0, |_| web::CONNECTIONS_MAX));
    let connections = accept::accept(incoming, connections_max, options.tls.clone(), threads.handles());
    let calls = CallLayer::new(options, metrics.calls().clone());
    let routes = routes.routes();
    let pages = web.map(|web| {
        let pages = web.serve(calls.layer(routes.clone()), draining.clone());
        AbortOnDropHandle::new(tokio::spawn(pages))
    });
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        // The connection itself ends after its grace: tonic's own limit of the grace would cut it without a word before.
        .max_connection_age(CONNECTION_AGE_MAX)
        .layer(calls.clone())
        .add_routes(routes);
    let served = threads.handles().iter().zip(connections).map(|(thread, connections)| {
        let drained = draining.clone().cancelled_owned();
        let served = server.clone().serve_with_incoming_shutdown(connections, drained);
        let served = AbortOnDropHandle::new(thread.spawn(served));
        async { anyhow::Ok(served.await??) }
    });
    let served = async move {
        try_join_all(served).await?;
        if let Some(pages) = pages {
            pages.await?;
        }
        anyhow::Ok(())
    };

    tracing::info!(%address, "serving");
    tokio::select! {
        served = served => served?,
        () = stop => {}
        () = calls.log_refusals() => {}
        () = async { draining.cancelled().await; tokio::time::sleep(DRAIN_MAX).await } => {
            tracing::warn!("stopped with calls still in progress");
        }
    }
    Ok(())
}

impl Listeners {
    /// Binds the addresses, before anything else is opened or made.
    ///
    /// # Errors
    /// As [`bind`].
    pub async fn bind(calls: SocketAddr, metrics: Option<SocketAddr>, auth: Auth) -> anyhow::Result<Self> {
        let calls = bind(calls, auth).await?;
        let metrics = match metrics {
            None => None,
            Some(at) => Some(bind(at, auth).await?),
        };
        Ok(Self { calls, metrics, web: None })
    }
}

/// Binds an address, before anything else is opened or made.
///
/// # Errors
/// The address is taken, not this machine's, or one that the mode of authentication forbids.
pub async fn bind(address: SocketAddr, auth: Auth) -> anyhow::Result<TcpListener> {
    auth.check_address(address)?;
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
