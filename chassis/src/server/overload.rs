//! Refusals for load: the prepared answers, and the log line that counts them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use tonic::body::Body;
use tonic::{Code, Status};

use super::connection::UNIDENTIFIED_CALLS_MAX;
use crate::limits::tenant::Overload;
use crate::status::failure;

/// When a client should retry a call that was refused for load.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(200);

/// How often the number of refusals is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Answers to calls that are refused for load. They are encoded once, because most of them are sent when the process has
/// least time.
pub(super) struct Refusals {
    process: HeaderMap,
    tenant: HeaderMap,
    connection: HeaderMap,
    /// Refusals that have not been logged yet.
    unlogged: AtomicU64,
}

impl Overload {
    pub(super) fn status(self, domain: &'static str) -> Status {
        let (reason, sentence) = match self {
            Self::Process => ("OVERLOADED", "too many calls are in progress; try again shortly"),
            Self::Tenant => (
                "TENANT_OVERLOADED",
                "your tenant has as many calls in progress as are left for others; make fewer at a time, and \
                 try again shortly",
            ),
        };
        failure(domain, Code::ResourceExhausted, reason, sentence).retry_after(RETRY_DELAY).status()
    }
}

impl Refusals {
    pub(super) fn new(domain: &'static str) -> Self {
        let headers = |status: Status| {
            let response: http::Response<()> = status.into_http();
            response.into_parts().0.headers
        };
        let sentence = format!(
            "a connection has at most {UNIDENTIFIED_CALLS_MAX} calls of health and reflection in progress; make fewer at \
             a time, and try again shortly"
        );
        let connection =
            failure(domain, Code::ResourceExhausted, "OVERLOADED", sentence).retry_after(RETRY_DELAY);
        Self {
            process: headers(Overload::Process.status(domain)),
            tenant: headers(Overload::Tenant.status(domain)),
            connection: headers(connection.status()),
            unlogged: AtomicU64::new(0),
        }
    }

    pub(super) fn response(&self, overload: Overload) -> http::Response<Body> {
        self.answer(match overload {
            Overload::Process => &self.process,
            Overload::Tenant => &self.tenant,
        })
    }

    /// The refusal of a call without an identity on a connection that has as many as it may.
    pub(super) fn response_to_connection(&self) -> http::Response<Body> {
        self.answer(&self.connection)
    }

    fn answer(&self, headers: &HeaderMap) -> http::Response<Body> {
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        let mut response = http::Response::new(Body::empty());
        response.headers_mut().clone_from(headers);
        response
    }

    /// Logs the number of refusals, for as long as it is polled. A line for each would cost more than the refusal.
    pub(super) async fn log(&self) {
        loop {
            tokio::time::sleep(LOG_INTERVAL).await;
            let refused = self.unlogged.swap(0, Ordering::Relaxed);
            if refused > 0 {
                tracing::warn!(refused, "calls were refused for load");
            }
        }
    }
}
