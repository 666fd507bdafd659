//! Refusals for load: the prepared answers, and the log line that counts them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderMap;
use tonic::body::Body;
use tonic::{Code, Status};

use super::limits::tenant::Overload;
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
        let headers = |overload: Overload| {
            let response: http::Response<()> = overload.status(domain).into_http();
            response.into_parts().0.headers
        };
        Self {
            process: headers(Overload::Process),
            tenant: headers(Overload::Tenant),
            unlogged: AtomicU64::new(0),
        }
    }

    pub(super) fn response(&self, overload: Overload) -> http::Response<Body> {
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        let mut response = http::Response::new(Body::empty());
        *response.headers_mut() = match overload {
            Overload::Process => self.process.clone(),
            Overload::Tenant => self.tenant.clone(),
        };
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
