//! One gRPC server, from the address it binds to the last call it lets end; health and reflection
//! stand beside the service's own calls. What happens to each call is in [`call`], to each connection in
//! `connections`.

mod body;
pub mod call;
mod connections;
mod flow;
pub mod limits;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use call::CallLayer;
use futures_util::future::Either;
use tokio::net::TcpListener;
use tonic::service::RoutesBuilder;
use tonic::transport::server::TcpIncoming;

use crate::auth::access::AccessPolicy;
use crate::auth::{Auth, Identities};
use crate::metrics::Metrics;
use crate::tls::{self, Address, ClientSettings};

/// The largest request message: a hundred full order lines fit forty times.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The largest request of health and reflection, which anybody may make: the name of a service or a type.
const ANYBODYS_BYTES_MAX: usize = 4 << 10;

/// Calls one connection may have open. What a client sends beyond it waits with the client.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;

/// Bytes of one call's requests that may wait to be read: a stream of them fills this and no more. A
/// message that is larger takes a few round trips. More would be held for a client that sends faster than
/// its requests are handled, and small messages in it would be counted as an attack.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// Request headers beyond this are refused by HTTP/2 itself; an identity takes a tenth.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// Idle connections are probed this often, so that a dead peer is noticed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// A connection is renewed after this long, so that clients spread over new replicas.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(1800);

/// How long what is on a connection then may go on before it is closed: as long as the longest streams.
const CONNECTION_GRACE: Duration = Duration::from_secs(1800);

/// How long calls in progress may go on after the first signal to stop.
pub const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Where a service is reached.
#[derive(Debug)]
pub struct Listeners {
    /// By its callers.
    pub calls: TcpListener,
    /// By whoever fetches metrics.
    pub metrics: Option<TcpListener>,
}

/// What a server needs to know of its service.
#[derive(Clone)]
pub struct Options {
    /// `ErrorInfo.domain` of its errors.
    pub domain: &'static str,
    /// Who calls.
    pub identities: Identities,
    /// How connections are taken.
    pub tls: tls::Server,
    /// Who may make which call.
    pub access: AccessPolicy,
    /// The full names of its gRPC services, for health.
    pub services: &'static [&'static str],
    /// The encoded contract, for reflection.
    pub descriptors: &'static [u8],
    /// Calls that may be in progress at a time.
    pub calls_max: usize,
}

/// Serves until `shutdown` resolves, then reports NOT_SERVING, lets calls in progress end for at
/// most [`DRAIN_MAX`], and returns.
///
/// # Errors
/// An address that the way of establishing identities forbids; a transport that fails.
pub async fn serve(
    listener: TcpListener,
    routes: RoutesBuilder,
    options: Options,
    metrics: &Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let address = listener.local_addr()?;
    options.identities.auth().check_address(address)?;

    let (health, health_service) = tonic_health::server::health_reporter();
    for service in options.services.iter().chain(&[""]) {
        health.set_service_status(*service, tonic_health::ServingStatus::Serving).await;
    }
    let mut reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(options.descriptors)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET);
    for service in
        options.services.iter().chain(&["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"])
    {
        reflection = reflection.with_service_name(*service);
    }
    let reflection = reflection.build_v1()?;
    let mut routes = routes;
    routes
        .add_service(health_service.max_decoding_message_size(ANYBODYS_BYTES_MAX))
        .add_service(reflection.max_decoding_message_size(ANYBODYS_BYTES_MAX));

    let (draining, drain) = tokio::sync::oneshot::channel::<()>();
    let stop = async move {
        shutdown.await;
        tracing::info!("stopping: calls in progress may end");
        for service in options.services.iter().chain(&[""]) {
            health.set_service_status(*service, tonic_health::ServingStatus::NotServing).await;
        }
        drop(draining);
    };
    options.identities.register_metrics(metrics);
    options.tls.register_metrics(metrics);
    let tls = options.tls.clone();
    let calls = CallLayer::new(options, metrics.calls().clone());
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let incoming = connections::admitted(incoming, connections::connections_max());
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .max_connection_age(CONNECTION_AGE_MAX)
        .max_connection_age_grace(CONNECTION_GRACE)
        .layer(calls.clone())
        .add_routes(routes.routes());
    let server = match tls.0 {
        None => {
            let incoming = connections::greeted(incoming, |connection| connection);
            Either::Left(server.serve_with_incoming_shutdown(incoming, stop))
        }
        Some(config) => {
            let incoming = connections::greeted(tls::accept(incoming, config), |stream| stream.get_ref().0);
            Either::Right(server.serve_with_incoming_shutdown(incoming, stop))
        }
    };

    tracing::info!(%address, "serving");
    tokio::select! {
        served = server => served?,
        () = calls.report_refusals() => {}
        () = async { let _ = drain.await; tokio::time::sleep(DRAIN_MAX).await } => {
            tracing::warn!("stopped with calls still in progress");
        }
    }
    Ok(())
}

/// A runtime with that many threads for calls. With one, calls run on the thread that accepts them,
/// which spares every hand-over between threads.
///
/// # Errors
/// The operating system's.
pub fn runtime(worker_threads: u16) -> std::io::Result<tokio::runtime::Runtime> {
    let mut runtime = match worker_threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(worker_threads.into()).enable_all().build()
}

/// Resolves at the first interrupt or termination signal; the second ends the process at once.
pub async fn signal() {
    first_signal().await;
    tokio::spawn(async {
        first_signal().await;
        std::process::exit(130);
    });
}

async fn first_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "termination signals are not noticed");
                let _ = tokio::signal::ctrl_c().await;
            }
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

/// Asks the server at an address whether it serves.
///
/// # Errors
/// Why it does not, in words.
pub async fn check_health(address: &Address, tls: &ClientSettings) -> Result<(), String> {
    let endpoint = tls::Client::endpoint(address)
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(2));
    let client = tls::Client::open(tls, std::slice::from_ref(address))?;
    let channel = client.connect(address, &endpoint).await?;
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let answer = tonic_health::pb::health_client::HealthClient::new(channel).check(request).await;
    match answer.map(|answer| answer.into_inner().status()) {
        Ok(tonic_health::pb::health_check_response::ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(format!("{address} says {}", other.as_str_name())),
        Err(status) => Err(format!("{address} answered {status}")),
    }
}

/// Lets a setting be given by environment variable, too: `PREFIX_` and its flag in upper case. For settings
/// that both services share and each names its own way.
#[must_use]
pub fn with_env(prefix: &str, setting: clap::Arg) -> clap::Arg {
    match (setting.get_long(), setting.get_env()) {
        (Some(flag), None) => {
            let variable = format!("{prefix}_{}", flag.to_uppercase().replace('-', "_"));
            setting.env(variable)
        }
        _ => setting,
    }
}

impl Listeners {
    /// Binds the addresses, before anything else is opened or made.
    ///
    /// # Errors
    /// As [`bind`].
    pub async fn bind(calls: SocketAddr, metrics: Option<SocketAddr>, auth: Auth) -> Result<Self, String> {
        let calls = bind(calls, auth).await?;
        let metrics = match metrics {
            None => None,
            Some(at) => Some(bind(at, auth).await?),
        };
        Ok(Self { calls, metrics })
    }
}

/// Binds an address, before anything else is opened or made.
///
/// # Errors
/// The address is taken, not this machine's, or one that the way of establishing identities must
/// not be reachable at.
pub async fn bind(address: SocketAddr, auth: Auth) -> Result<TcpListener, String> {
    auth.check_address(address)?;
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}"))
}
