//! One service of a cluster: its thread, how it is started and stopped, and channels to it.

use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agreement_svc::config as agreement_config;
use chassis::clock::Clock;
use chassis::database::Url;
use chassis::server::Listeners;
use chassis::tls;
use order_svc::config as order_config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint};

use super::processes::START_MAX;

/// A service on a thread of its own.
pub(crate) struct Service {
    pub(super) address: SocketAddr,
    /// How it is reached over TLS, where it speaks that.
    pub(super) tls: Option<tls::ClientSettings>,
    pub(super) database: Url,
    running: Option<Running>,
}

/// What stops a service, and its thread.
type Running = (oneshot::Sender<()>, JoinHandle<Result<(), String>>);

impl Service {
    pub(super) fn new(
        port: u16,
        database: Url,
        tls: Option<tls::ClientSettings>,
    ) -> Result<(Self, TcpListener), String> {
        let listener = listen(port)?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        Ok((Self { address, tls, database, running: None }, listener))
    }

    fn run<F>(
        &mut self,
        listener: TcpListener,
        serve: impl FnOnce(tokio::net::TcpListener, StopSignal) -> F + Send + 'static,
    ) where
        F: Future<Output = anyhow::Result<()>>,
    {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = chassis::lifecycle::runtime().map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let listener =
                    tokio::net::TcpListener::from_std(listener).map_err(|error| error.to_string())?;
                serve(listener, Box::pin(async move { drop(stopped.await) }))
                    .await
                    .map_err(|error| format!("{error:#}"))
            })
        });
        self.running = Some((stop, thread));
    }

    pub(super) async fn serve_agreements(
        &mut self,
        config: agreement_config::Serve,
        clock: Clock,
        listener: TcpListener,
        metrics: Option<TcpListener>,
        web: Option<TcpListener>,
    ) -> Result<(), String> {
        self.run(listener, async move |calls, stop| {
            let metrics = metrics.map(tokio::net::TcpListener::from_std).transpose()?;
            let web = web.map(tokio::net::TcpListener::from_std).transpose()?;
            agreement_svc::serve(config, clock, Listeners { calls, metrics, web }, stop).await
        });
        self.wait_until_serving().await
    }

    pub(super) async fn serve_orders(
        &mut self,
        config: order_config::Serve,
        clock: Clock,
        listener: TcpListener,
        metrics: Option<TcpListener>,
    ) -> Result<(), String> {
        self.run(listener, async move |calls, stop| {
            let metrics = metrics.map(tokio::net::TcpListener::from_std).transpose()?;
            order_svc::serve(config, clock, Listeners { calls, metrics, web: None }, stop).await
        });
        self.wait_until_serving().await
    }

    async fn wait_until_serving(&mut self) -> Result<(), String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://{}", self.address).parse()?;
        let tls = self.tls.clone().unwrap_or_default();
        let began = Instant::now();
        // Its port is open before it has migrated its database, and a busy machine takes longer over that than one
        // check waits.
        while let Err(why) = chassis::health::check_health(&address, &tls).await {
            let has_ended = self.running.as_ref().is_none_or(|(_, thread)| thread.is_finished());
            if has_ended || began.elapsed() > START_MAX {
                return Err(self.stop().err().unwrap_or_else(|| format!("{why:#}")));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(super) fn stop(&mut self) -> Result<(), String> {
        let Some((stop, thread)) = self.running.take() else { return Ok(()) };
        drop(stop);
        thread.join().unwrap_or_else(|_| Err("the service panicked".into()))
    }
}

pub(crate) async fn fetch(address: SocketAddr) -> std::io::Result<String> {
    let mut connection = tokio::net::TcpStream::connect(address).await?;
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    connection.read_to_string(&mut text).await?;
    Ok(text)
}

type StopSignal = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) fn lazy(address: SocketAddr) -> Channel {
    endpoint(address).connect_lazy()
}

pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint,
        Err(error) => panic!("{address} is no address: {error}"),
    }
}

/// A channel to the service at an address; `more` sets further options of its endpoint.
///
/// # Panics
/// When it is no address, or the client's files cannot be read.
#[must_use]
pub fn channel_to(
    address: &str,
    settings: &tls::ClientSettings,
    more: impl FnOnce(Endpoint) -> Endpoint,
) -> Channel {
    let open = || -> anyhow::Result<Channel> {
        let address = address.parse().map_err(anyhow::Error::msg)?;
        let client = tls::Client::open(settings, std::slice::from_ref(&address))?;
        Ok(client.connect_lazy(&address, &more(tls::Client::endpoint(&address))))
    };
    match open() {
        Ok(channel) => channel,
        Err(why) => panic!("{why}"),
    }
}

pub(super) fn listen(port: u16) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|error| format!("port {port}: {error}"))?;
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    Ok(listener)
}
