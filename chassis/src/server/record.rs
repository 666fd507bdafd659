//! The record of one call: a log line, a count and a span.

use std::time::Instant;

use http::{HeaderMap, HeaderValue};
use tonic::Code;
use tonic::body::Body;

use super::message::give_reason;
use crate::auth::Caller;
use crate::clock::{Clock, new_id};
use crate::metrics::Calls;
use crate::telemetry::trace::{Span, code_of};

/// The record of a call. If it is dropped unfinished, it says that the caller cancelled the call.
pub(super) struct CallRecord {
    pub(super) path: &'static str,
    pub(super) call_id: String,
    pub(super) span: Span,
    /// Kind and id of the caller's tenant.
    tenant: Option<(&'static str, String)>,
    began: Instant,
    is_finished: bool,
    calls: Calls,
}

impl CallRecord {
    pub(super) fn begin(
        path: &'static str,
        headers: &HeaderMap,
        caller: Option<&Caller>,
        calls: Calls,
        began: Instant,
    ) -> Self {
        calls.in_progress.inc();
        let call_id = call_id_of(headers);
        let span = Span::of_server(headers, path, &call_id);
        let tenant = caller.map(|caller| (caller.tenant_kind, caller.tenant_id.to_string()));
        Self { path, call_id, span, tenant, began, is_finished: false, calls }
    }

    /// Ends the record with a response, whose status gets a reason if it is the gRPC library's. `is_broken` tells that
    /// the request broke off before its end.
    pub(super) fn finish(
        mut self,
        mut response: http::Response<Body>,
        is_broken: bool,
        domain: &'static str,
    ) -> http::Response<Body> {
        give_reason(response.headers_mut(), is_broken, domain);
        let code = code_of(response.headers());
        self.is_finished = true;
        self.end(code, &format!("{code:?}"));
        if let Ok(value) = HeaderValue::from_str(&self.call_id) {
            response.headers_mut().insert("x-call-id", value);
        }
        response
    }

    fn end(&mut self, code: Code, outcome: &str) {
        self.log(outcome);
        self.span.end(code);
        self.calls.end(self.path, code, self.began.elapsed());
        self.calls.in_progress.dec();
    }

    fn log(&self, code: &str) {
        let (kind, tenant) = self.tenant.as_ref().map_or(("", ""), |(kind, tenant)| (*kind, tenant));
        tracing::info!(
            // The span of the call would say call id, path and trace once more.
            parent: None,
            path = self.path,
            code,
            took_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            tenant_kind = kind,
            tenant,
            call_id = self.call_id,
            trace_id = self.span.trace_id(),
            "call"
        );
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if !self.is_finished {
            self.end(Code::Cancelled, "caller went away");
        }
    }
}

/// The caller's id for the call if it has the form of one, else a new one. Since it is logged, it must not be able to
/// hold an e-mail address.
fn call_id_of(headers: &HeaderMap) -> String {
    const LENGTH_MAX: usize = 64;
    let given = headers.get("x-call-id").and_then(|value| value.to_str().ok());
    given
        .filter(|id| {
            (1..=LENGTH_MAX).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        })
        .map_or_else(|| new_id(Clock::system().now()).to_string(), ToOwned::to_owned)
}
