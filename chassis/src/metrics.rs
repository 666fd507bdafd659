//! The numbers of a service, for Prometheus to fetch at `/metrics`.
//!
//! Here is what any service has: its calls, its database, its process. Each counts what is its own business
//! beside that. Labels take few values, all of them known beforehand; none names anybody.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TEXT_FORMAT, TextEncoder,
};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tonic::Code;

use crate::database::{Connection, Database, Error};
use crate::expiry::Validity;
use crate::reload::Watched;

/// How long a scrape waits for the database. Scrapers commonly give up after ten seconds.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Seconds: a question to an embedded database takes less than the first, no call more than the last.
const DURATION_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// What a call is counted under whose path is none of the service's.
pub(crate) const UNKNOWN_PATH: &str = "unknown";

/// The numbers of one service. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    prefix: &'static str,
    calls: Calls,
    database: Database,
    /// One look into the database at a time, however many fetch.
    looking: Arc<Mutex<()>>,
    files: RwLock<Vec<Box<dyn Fn() -> Files + Send + Sync>>>,
}

/// Files that are read again when they change.
struct Files {
    name: &'static str,
    make_sense: bool,
    /// What they say that ends.
    credentials: Vec<Validity>,
}

/// A number that is known now. What is not known has none: then it is missing from the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Without the service's prefix, with its unit.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
    /// How much.
    pub value: f64,
}

/// The numbers of calls.
#[derive(Clone)]
pub(crate) struct Calls {
    ended: IntCounterVec,
    took: HistogramVec,
    pub(crate) in_progress: IntGauge,
    refused_for_load: IntCounter,
}

impl Metrics {
    /// Begins to count. Names begin with the prefix.
    ///
    /// # Errors
    /// A name that is none.
    pub fn new(
        prefix: &'static str,
        version: &'static str,
        database: Database,
    ) -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some(prefix.to_owned()), None)?;
        let calls = Calls {
            ended: IntCounterVec::new(
                Opts::new("calls_total", "Calls that ended, by path and code; those given up are CANCELLED."),
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
            in_progress: IntGauge::new("calls_in_progress", "Calls that are being worked on.")?,
            refused_for_load: IntCounter::new(
                "calls_refused_for_load_total",
                "Calls and streams that were turned away because too many were in progress.",
            )?,
        };
        let opts =
            Opts::new("build_info", "1, labelled with what is running.").const_label("version", version);
        let build = IntGauge::with_opts(opts)?;
        build.set(1);
        let (looking, files) = (Arc::default(), RwLock::default());
        let metrics = Self(Arc::new(Inner { registry, prefix, calls, database, looking, files }));
        let Inner { calls, database, .. } = &*metrics.0;
        metrics.register(build)?;
        metrics.register(calls.ended.clone())?;
        metrics.register(calls.took.clone())?;
        metrics.register(calls.in_progress.clone())?;
        metrics.register(calls.refused_for_load.clone())?;
        metrics.register(database.waits().clone())?;
        Ok(metrics)
    }

    /// Tells of numbers that somebody else counts.
    ///
    /// # Errors
    /// There are some of the same name.
    pub fn register(&self, numbers: impl Collector + 'static) -> Result<(), prometheus::Error> {
        self.0.registry.register(Box::new(numbers))
    }

    /// Tells from now on whether files make sense, by a name that is not theirs, and when what they say ends.
    pub fn register_files<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        files: &Watched<T>,
        credentials: impl Fn(&T) -> Vec<Validity> + Send + Sync + 'static,
    ) {
        let files = files.clone();
        let look =
            move || Files { name, make_sense: files.is_valid(), credentials: credentials(&files.now()) };
        self.0.files.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(look));
    }

    /// Counts a stream that was turned away because too many are open. Whoever makes streams that go on sees
    /// to how many there are; calls are counted where they are let in.
    pub fn stream_refused_for_load(&self) {
        self.0.calls.refused_for_load.inc();
    }

    pub(crate) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    /// What is read from the database, and how the database itself is. It is asked for a second at most and
    /// by one at a time: what it has not said by then is missing.
    pub async fn stored<F>(&self, read: F) -> Vec<Sample>
    where
        F: FnOnce(&mut Connection) -> Result<Vec<Sample>, Error> + Send + 'static,
    {
        let Inner { database, looking, .. } = &*self.0;
        let look = async {
            let alone = looking.clone().lock_owned().await;
            let read = move |connection: &mut Connection| {
                // Also one that nobody waits for any more keeps others from looking.
                let _alone = alone;
                read(connection)
            };
            database.list(read).await
        };
        let answer = match tokio::time::timeout(LOOK_MAX, look).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the database cannot be asked for numbers");
                None
            }
            Err(_) => None,
        };
        let answers = Sample {
            name: "database_answers",
            help: "1 if the database answered this scrape in time, else 0, and what it would have said is missing.",
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

    /// Answers whoever fetches until `stop` resolves; `look` finds out what nobody counts. Nobody is waited
    /// for at the end, and the service goes on without.
    pub async fn serve<L, F>(self, listener: TcpListener, look: L, mut stop: watch::Receiver<bool>)
    where
        L: Fn() -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Vec<Sample>> + Send,
    {
        if let Ok(metrics_address) = listener.local_addr() {
            tracing::info!(%metrics_address, "serving metrics");
        }
        let fetch = async move || {
            let known = look().await;
            // Prometheus takes this format from everybody, and its tools take no other.
            ([(CONTENT_TYPE, TEXT_FORMAT)], self.text(&known))
        };
        let serving = axum::serve(listener, Router::new().route("/metrics", get(fetch)));
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            served = serving => tracing::error!(?served, "metrics are served no more"),
        }
        drop(stop.wait_for(|stop| *stop).await);
    }

    /// What is known of files now.
    fn files(&self) -> Result<[GaugeVec; 3], prometheus::Error> {
        let by = |label, name: &str, help: &str| {
            GaugeVec::new(Opts::new(format!("{}_{name}", self.0.prefix), help), &[label])
        };
        let unusable = by(
            "files",
            "files_unusable",
            "1 if files have changed so that they make no sense, and what they said before goes on, else 0.",
        )?;
        let begins = by(
            "credential",
            "credential_begins_timestamp_seconds",
            "Since when what identifies the service or its callers does, in seconds since 1970.",
        )?;
        let ends = by(
            "credential",
            "credential_ends_timestamp_seconds",
            "Until when what identifies the service or its callers does, in seconds since 1970; of several certificates, the first that ends.",
        )?;
        for look in self.0.files.read().unwrap_or_else(PoisonError::into_inner).iter() {
            let files = look();
            unusable.with_label_values(&[files.name]).set(f64::from(u8::from(!files.make_sense)));
            for credential in files.credentials {
                if let Some(since) = credential.begins {
                    begins.with_label_values(&[credential.name]).set(since as f64);
                }
                ends.with_label_values(&[credential.name]).set(credential.ends as f64);
            }
        }
        Ok([unusable, begins, ends])
    }

    fn text(&self, known: &[Sample]) -> String {
        let Inner { registry, prefix, .. } = &*self.0;
        let mut families = registry.gather();
        // Their names are right, or a test would have said so.
        let files = self.files().into_iter().flatten().flat_map(|numbers| numbers.collect());
        families.extend(files.filter(|family| !family.get_metric().is_empty()));
        for Sample { name, help, value } in known {
            // Its name is right, or a test would have said so.
            if let Ok(gauge) = Gauge::new(format!("{prefix}_{name}"), *help) {
                gauge.set(*value);
                families.extend(gauge.collect());
            }
        }
        #[cfg(target_os = "linux")]
        families.extend(prometheus::process_collector::ProcessCollector::for_self().collect());
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
            tracing::error!(%error, "the numbers cannot be written down");
        }
        text
    }
}

impl Calls {
    /// Shows the codes of every call that are looked for as 0, so that the first is seen as a rise.
    pub(crate) fn expect(&self, paths: impl Iterator<Item = &'static str>) {
        for path in paths {
            for code in [Code::Ok, Code::Internal] {
                self.ended.with_label_values(&[path, &format!("{code:?}")]);
            }
        }
    }

    /// Counts a call that nothing else is done about.
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

    use super::*;
    use crate::database::Writes;

    fn value(known: &[Sample], name: &str) -> Option<f64> {
        known.iter().find(|known| known.name == name).map(|known| known.value)
    }

    #[tokio::test]
    async fn a_database_that_keeps_silent_is_waited_for_by_one_and_not_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        let metrics = Metrics::new("some_svc", "1", database).unwrap();
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
        assert_eq!(value(&known, "database_connections_in_use"), Some(1.0), "what is known is told");
        // As long as it keeps the one waiting, nobody else asks it.
        let known = metrics.stored(answer).await;
        assert_eq!((value(&known, "things"), value(&known, "database_answers")), (None, Some(0.0)));
        assert_eq!(value(&known, "database_connections_in_use"), Some(1.0));
        drop(go_on);
        while value(&metrics.stored(answer).await, "things").is_none() {}
    }

    #[tokio::test]
    async fn calls_are_told_in_the_format_of_prometheus_with_what_is_looked_for_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        let metrics = Metrics::new("some_svc", "1", database).unwrap();
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
            r#"some_svc_build_info{version="1"} 1"#,
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is not in {text}");
        }
    }
}
