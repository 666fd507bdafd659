//! What can be measured of the running service, for Prometheus to fetch at `/metrics`.

use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use chassis::clock::Clock;
use chrono::TimeDelta;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::workers::Followed;

/// The format's name, with the version that the encoder writes.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers whoever fetches until `stop` resolves. Nobody is waited for then, and without metrics the
/// service goes on.
pub(crate) async fn serve(
    listener: TcpListener,
    clock: Clock,
    followed: watch::Receiver<Followed>,
    mut stop: watch::Receiver<bool>,
) {
    if let Ok(metrics_address) = listener.local_addr() {
        tracing::info!(%metrics_address, "serving metrics");
    }
    let fetch = async move || {
        let text = describe(*followed.borrow(), &clock);
        ([(CONTENT_TYPE, OPEN_METRICS)], text)
    };
    let serving = axum::serve(listener, Router::new().route("/metrics", get(fetch)));
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => return,
        served = serving => tracing::error!(?served, "metrics are served no more"),
    }
    drop(stop.wait_for(|stop| *stop).await);
}

fn describe(followed: Followed, clock: &Clock) -> String {
    let behind = Gauge::<f64, AtomicU64>::default();
    // Not to know is to be behind without limit, which every alarm notices.
    let age = followed.until.map(|until| (clock.now() - until).max(TimeDelta::zero()).as_seconds_f64());
    behind.set(age.unwrap_or(f64::INFINITY));
    let revision = Gauge::<i64>::default();
    revision.set(followed.revision);

    let mut registry = Registry::with_prefix("order_svc");
    registry.register_with_unit(
        "history_behind",
        "How far behind agreement-svc's history this process is: withdrawals older than this have been applied",
        Unit::Seconds,
        behind,
    );
    registry.register(
        "history_revision",
        "The last revision of agreement-svc's history that this process knows to have been applied",
        revision,
    );
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use expect_test::expect;

    use super::*;

    #[test]
    fn how_far_the_history_was_followed_is_told() {
        let clock = Clock::manual(DateTime::from_timestamp_millis(10_500).unwrap());
        let told = describe(Followed { revision: 42, until: DateTime::from_timestamp(3, 0) }, &clock);
        expect![[r#"
            # HELP order_svc_history_behind_seconds How far behind agreement-svc's history this process is: withdrawals older than this have been applied.
            # TYPE order_svc_history_behind_seconds gauge
            # UNIT order_svc_history_behind_seconds seconds
            order_svc_history_behind_seconds 7.5
            # HELP order_svc_history_revision The last revision of agreement-svc's history that this process knows to have been applied.
            # TYPE order_svc_history_revision gauge
            order_svc_history_revision 42
            # EOF
        "#]].assert_eq(&told);
        // A neighbour's clock may be ahead.
        let ahead = describe(Followed { revision: 42, until: DateTime::from_timestamp(11, 0) }, &clock);
        assert!(ahead.contains("order_svc_history_behind_seconds 0.0\n"), "{ahead}");
        let unknown = describe(Followed::default(), &clock);
        assert!(unknown.contains("order_svc_history_behind_seconds inf\n"), "{unknown}");
    }
}
