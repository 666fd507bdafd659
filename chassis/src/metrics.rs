//! Metrics of a service, served to Prometheus at `/metrics`.
//!
//! This module has the metrics of any service: calls, database, process, watched files. Each service adds its own. Labels
//! have few values, all of them known beforehand; none identifies a tenant or a person.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TEXT_FORMAT, TextEncoder,
};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::database::{Connection, Database, Error};
use crate::expiry::Validity;
use crate::release;
use crate::reload::Watched;

/// How long a scrape waits for the database. Scrapers commonly time out after ten seconds.
const READ_MAX: Duration = Duration::from_secs(1);

/// Seconds: a read of an embedded database takes less than the first, no call more than the last.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// The label of calls whose path is none of the service's.
pub(crate) const UNKNOWN_PATH: &str = "unknown";

/// The metrics of one service. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    prefix: &'static str,
    calls: Calls,
    database: Database,
    /// One read of the database at a time, however many scrapes.
    reading: Arc<Mutex<()>>,
    files: RwLock<Vec<Box<dyn Fn() -> Files + Send + Sync>>>,
    identity_providers: RwLock<Vec<IdentityProvider>>,
}

/// The state of watched files.
struct Files {
    name: &'static str,
    are_valid: bool,
    /// The validity of the certificates or tokens in them.
    credentials: Vec<Validity>,
}

/// An identity provider whose keys are fetched.
struct IdentityProvider {
    issuer: String,
    has_failed: Box<dyn Fn() -> bool + Send + Sync>,
}

/// A value that is read for one scrape. An unknown value has no sample and is missing from the scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Its name without the service's prefix, with its unit.
    pub name: &'static str,
    /// Its description.
    pub help: &'static str,
    /// The value.
    pub value: f64,
}

/// The metrics of calls.
#[derive(Clone)]
pub(crate) struct Calls {
    ended: IntCounterVec,
    took: HistogramVec,
    pub(crate) in_progress: IntGauge,
    refused_for_load: IntCounter,
}

impl Metrics {
    /// The metrics of a service; their names begin with the prefix.
    ///
    /// # Errors
    /// An invalid name.
    pub fn new(prefix: &'static str, database: Database) -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some(prefix.to_owned()), None)?;
        let calls = Calls {
            ended: IntCounterVec::new(
                Opts::new("calls_total", "Calls that ended, by path and code; cancelled calls are Cancelled."),
                &["path", "code"],
            )?,
            took: HistogramVec::new(
                HistogramOpts::new(
                    "call_duration_seconds",
                    "How long calls took until their answer, or the first of a stream of them, was ready; without those refused for load.",
                )
                .buckets(DURATION_BUCKETS.to_vec()),
                &["path"],
            )?,
            in_progress: IntGauge::new("calls_in_progress", "Calls in progress.")?,
            refused_for_load: IntCounter::new(
                "calls_refused_for_load_total",
                "Calls and streams that were refused because too many were in progress.",
            )?,
        };
        let opts = Opts::new("build_info", "1, labelled with what is running.")
            .const_label("version", release::VERSION)
            .const_label("commit", release::COMMIT);
        let build = IntGauge::with_opts(opts)?;
        build.set(1);
        let (reading, files, identity_providers) = (Arc::default(), RwLock::default(), RwLock::default());
        let metrics =
            Self(Arc::new(Inner { registry, prefix, calls, database, reading, files, identity_providers }));
        let Inner { calls, database, .. } = &*metrics.0;
        metrics.register(build)?;
        metrics.register(calls.ended.clone())?;
        metrics.register(calls.took.clone())?;
        metrics.register(calls.in_progress.clone())?;
        metrics.register(calls.refused_for_load.clone())?;
        metrics.register(database.wait_histogram().clone())?;
        Ok(metrics)
    }

    /// Adds metrics that the service counts itself.
    ///
    /// # Errors
    /// There are metrics of the same name.
    pub fn register(&self, numbers: impl Collector + 'static) -> Result<(), prometheus::Error> {
        self.0.registry.register(Box::new(numbers))
    }

    /// Adds watched files, under a name of their use: whether they are valid, and the validity of their certificates or tokens.
    pub fn register_files<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        files: &Watched<T>,
        credentials: impl Fn(&T) -> Vec<Validity> + Send + Sync + 'static,
    ) {
        let files = files.clone();
        let state =
            move || Files { name, are_valid: files.is_valid(), credentials: credentials(&files.now()) };
        self.0.files.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(state));
    }

    /// Adds an identity provider, by its issuer: whether its keys could not be fetched the last time.
    pub(crate) fn register_identity_provider(
        &self,
        issuer: String,
        has_failed: impl Fn() -> bool + Send + Sync + 'static,
    ) {
        let mut all = self.0.identity_providers.write().unwrap_or_else(PoisonError::into_inner);
        all.push(IdentityProvider { issuer, has_failed: Box::new(has_failed) });
    }

    /// Counts an open-ended stream that was refused because too many are open. Their handlers limit them; calls are limited
    /// and counted by the server.
    pub fn stream_refused_for_load(&self) {
        self.0.calls.refused_for_load.inc();
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    /// The samples that `read` finds in the database, and those of the database itself. The read takes a second at most,
    /// and there is one at a time; otherwise its samples are missing.
    pub async fn stored<F>(&self, read: F) -> Vec<Sample>
    where
        F: FnOnce(&mut Connection) -> Result<Vec<Sample>, Error> + Send + 'static,
    {
        let Inner { database, reading, .. } = &*self.0;
        let answer = async {
            let alone = reading.clone().lock_owned().await;
            let read = move |connection: &mut Connection| {
                // A read that timed out still excludes others.
                let _alone = alone;
                read(connection)
            };
            database.list(read).await
        };
        let answer = match tokio::time::timeout(READ_MAX, answer).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the database cannot be read for metrics");
                None
            }
            Err(_) => None,
        };
        let answers = Sample {
            name: "database_answers",
            help: "1 if the database answered this scrape in time; if 0, the metrics read from it are missing.",
            value: f64::from(u8::from(answer.is_some())),
        };
        let connections = Sample {
            name: "database_connections_in_use",
            help: "Connections of the pool that are in use; it has eight.",
            value: database.connections_in_use().into(),
        };
        let queue = database.writes_waiting().map(|waiting| Sample {
            name: "database_writes_waiting",
            help: "Writes that wait for the one thread that writes.",
            value: waiting as f64,
        });
        [connections, answers].into_iter().chain(queue).chain(answer.unwrap_or_default()).collect()
    }

    /// Serves `/metrics` until `stop`; `collect` reads the samples of a scrape. Beside it are the answers for an orchestrator's
    /// probes, which read no file and no database: `/livez` is 200 as long as the process answers, and `/readyz` until the
    /// graceful shutdown begins (`stopping`), then 503. Open connections are dropped at shutdown, and the service goes on if
    /// this fails.
    pub async fn serve<L, F>(
        self,
        listener: TcpListener,
        collect: L,
        stopping: CancellationToken,
        stop: CancellationToken,
    ) where
        L: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Vec<Sample>> + Send,
    {
        if let Ok(metrics_address) = listener.local_addr() {
            tracing::info!(%metrics_address, "serving metrics");
        }
        let fetch = async move || {
            let known = collect().await;
            // Every Prometheus reads this format, and its tools read no other.
            ([(CONTENT_TYPE, TEXT_FORMAT)], self.text(&known))
        };
        let is_ready = async move || match stopping.is_cancelled() {
            false => StatusCode::OK,
            true => StatusCode::SERVICE_UNAVAILABLE,
        };
        let routes = Router::new()
            .route("/metrics", get(fetch))
            .route("/livez", get(async || StatusCode::OK))
            .route("/readyz", get(is_ready));
        let serving = axum::serve(listener, routes);
        tokio::select! {
            () = stop.cancelled() => return,
            served = serving => tracing::error!(?served, "metrics are no longer served"),
        }
        stop.cancelled().await;
    }

    /// The metrics of watched files and identity providers.
    fn files(&self) -> Result<[GaugeVec; 4], prometheus::Error> {
        let by = |label, name: &str, help: &str| {
            GaugeVec::new(Opts::new(format!("{}_{name}", self.0.prefix), help), &[label])
        };
        let unusable = by(
            "files",
            "files_unusable",
            "1 if the current contents of the files are invalid, so that the previous ones stay in force, else 0.",
        )?;
        let begins = by(
            "credential",
            "credential_begins_timestamp_seconds",
            "Since when a certificate or token is valid, in seconds since 1970.",
        )?;
        let ends = by(
            "credential",
            "credential_ends_timestamp_seconds",
            "Until when a certificate or token is valid, in seconds since 1970; of several certificates, the one that ends first.",
        )?;
        for files in self.0.files.read().unwrap_or_else(PoisonError::into_inner).iter() {
            let files = files();
            // Several issuers may each have a file of keys.
            let gauge = unusable.with_label_values(&[files.name]);
            gauge.set(gauge.get().max(f64::from(u8::from(!files.are_valid))));
            for credential in files.credentials {
                if let Some(since) = credential.not_before {
                    begins.with_label_values(&[credential.name]).set(since as f64);
                }
                ends.with_label_values(&[credential.name]).set(credential.not_after as f64);
            }
        }
        let failing = by(
            "issuer",
            "identity_provider_failing",
            "1 if the issuer's keys could not be fetched the last time, so that earlier ones stay in force for a day at most, else 0.",
        )?;
        for provider in self.0.identity_providers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            failing.with_label_values(&[&provider.issuer]).set(f64::from(u8::from((provider.has_failed)())));
        }
        Ok([unusable, begins, ends, failing])
    }

    fn text(&self, known: &[Sample]) -> String {
        let Inner { registry, prefix, .. } = &*self.0;
        let mut families = registry.gather();
        // The names are valid, or a test would fail.
        let files = self.files().into_iter().flatten().flat_map(|numbers| numbers.collect());
        families.extend(files.filter(|family| !family.get_metric().is_empty()));
        for Sample { name, help, value } in known {
            // The name is valid, or a test would fail.
            if let Ok(gauge) = Gauge::new(format!("{prefix}_{name}"), *help) {
                gauge.set(*value);
                families.extend(gauge.collect());
            }
        }
        #[cfg(target_os = "linux")]
        families.extend(prometheus::process_collector::ProcessCollector::for_self().collect());
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
            tracing::error!(%error, "the metrics cannot be encoded");
        }
        text
    }
}

impl Calls {
    /// Adds the codes that alerts watch to each call, as 0, so that the first one is seen as a rise.
    pub(crate) fn expect(&self, paths: impl Iterator<Item = &'static str>) {
        for path in paths {
            for code in [Code::Ok, Code::Internal] {
                self.ended.with_label_values(&[path, &format!("{code:?}")]);
            }
        }
    }

    /// Counts a call that is refused for load, of which there is no other record.
    pub(crate) fn refuse_for_load(&self, path: &str) {
        self.ended.with_label_values(&[path, "ResourceExhausted"]).inc();
        self.refused_for_load.inc();
    }

    pub(crate) fn end(&self, path: &str, code: Code, took: Duration) {
        self.ended.with_label_values(&[path, &format!("{code:?}")]).inc();
        self.took.with_label_values(&[path]).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::database::Writes;

    fn value(known: &[Sample], name: &str) -> Option<f64> {
        known.iter().find(|known| known.name == name).map(|known| known.value)
    }

    #[tokio::test]
    async fn a_silent_database_delays_one_scrape_and_not_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        let metrics = Metrics::new("some_svc", database).unwrap();
        let answer = |_: &mut Connection| Ok(vec![Sample { name: "things", help: "Things.", value: 7.0 }]);
        let known = metrics.stored(answer).await;
        assert_eq!((value(&known, "things"), value(&known, "database_answers")), (Some(7.0), Some(1.0)));

        let (go_on, silence) = mpsc::channel::<()>();
        let known = metrics
            .stored(move |connection| {
                let _ = silence.recv();
                answer(connection)
            })
            .await;
        assert_eq!((value(&known, "things"), value(&known, "database_answers")), (None, Some(0.0)));
        assert_eq!(value(&known, "database_connections_in_use"), Some(1.0));
        // As long as that read goes on, there is no other.
        let known = metrics.stored(answer).await;
        assert_eq!((value(&known, "things"), value(&known, "database_answers")), (None, Some(0.0)));
        assert_eq!(value(&known, "database_connections_in_use"), Some(1.0));
        drop(go_on);
        while value(&metrics.stored(answer).await, "things").is_none() {}
    }

    #[tokio::test]
    async fn a_process_that_stops_is_alive_and_not_ready() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        let metrics = Metrics::new("some_svc", database).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stopping, stop) = (CancellationToken::new(), CancellationToken::new());
        let serving = metrics.serve(listener, async || vec![], stopping.clone(), stop.clone());
        let status = async |path: &str| {
            let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
            connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            answer.split(' ').nth(1).unwrap().to_owned()
        };
        let asking = async {
            assert_eq!([status("/livez").await, status("/readyz").await], ["200", "200"]);
            stopping.cancel();
            assert_eq!([status("/livez").await, status("/readyz").await], ["200", "503"]);
            stop.cancel();
        };
        tokio::join!(serving, asking);
    }

    #[tokio::test]
    async fn metrics_are_encoded_with_the_watched_codes_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        let metrics = Metrics::new("some_svc", database).unwrap();
        metrics.calls().expect(["/a.B/C"].into_iter());
        metrics.calls().end("/a.B/C", Code::Ok, Duration::from_millis(3));
        let endless = Sample { name: "behind_seconds", help: "How far behind.", value: f64::INFINITY };
        let text = metrics.text(&[endless]);
        for line in [
            "# TYPE some_svc_calls_total counter",
            r#"some_svc_calls_total{code="Internal",path="/a.B/C"} 0"#,
            r#"some_svc_calls_total{code="Ok",path="/a.B/C"} 1"#,
            r#"some_svc_call_duration_seconds_bucket{path="/a.B/C",le="0.0025"} 0"#,
            r#"some_svc_call_duration_seconds_bucket{path="/a.B/C",le="0.005"} 1"#,
            "# HELP some_svc_behind_seconds How far behind.",
            "some_svc_behind_seconds inf",
            "some_svc_database_connection_wait_seconds_count 0",
            r#"some_svc_build_info{commit="unknown",version="0.1.0"} 1"#,
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is not in {text}");
        }
    }
}
