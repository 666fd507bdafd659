//! A service in operation: its background workers beside its server, from the start to the graceful shutdown.

use std::future::Future;

use anyhow::bail;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;

use crate::metrics::Metrics;
use crate::server::web::Web;
use crate::server::{self, Options};

/// The workers of a service, and the two steps of its graceful shutdown: first the server stops and open streams end;
/// then, when the server has returned, the workers.
#[derive(Default)]
pub struct Service {
    /// A `JoinSet` and not a `TaskTracker`: a worker that ends by itself ends the service, and dropping the set ends the
    /// others.
    workers: JoinSet<()>,
    stop_workers: CancellationToken,
    stopping: CancellationToken,
    web: Option<Web>,
}

impl Service {
    /// A service without workers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the graceful shutdown begins, or the service ends in another way: handlers of open streams end them.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Starts a worker, which goes on until its token is cancelled.
    pub fn spawn<W: Future<Output = ()> + Send + 'static>(
        &mut self,
        worker: impl FnOnce(CancellationToken) -> W,
    ) {
        self.workers.spawn(worker(self.stop_workers.clone()));
    }

    /// Has the server serve pages beside its calls.
    pub fn serve_web(&mut self, web: Web) {
        self.web = Some(web);
    }

    /// Serves until `shutdown` resolves, the server has returned, and every worker has ended.
    ///
    /// # Errors
    /// Those of [`server::serve`]; a worker that ended by itself or panicked.
    pub async fn run(
        mut self,
        listener: TcpListener,
        routes: RoutesBuilder,
        options: Options,
        metrics: &Metrics,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> anyhow::Result<()> {
        // Streams have tasks of their own, which must end also when this future is dropped.
        let _end_streams = self.stopping.clone().drop_guard();
        let stopping = self.stopping.clone();
        let shutdown = async move {
            shutdown.await;
            stopping.cancel();
        };
        let served = tokio::select! {
            served = server::serve(listener, routes, options, self.web.take(), metrics, shutdown) => served,
            ended = self.workers.join_next(), if !self.workers.is_empty() => {
                bail!("a worker ended by itself: {ended:?}");
            }
        };
        // Also when the server failed by itself.
        self.stopping.cancel();
        self.stop_workers.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended?;
        }
        served
    }
}
