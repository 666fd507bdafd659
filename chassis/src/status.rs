//! Rich gRPC errors: a status whose details carry a reason that programs can match on.
//!
//! The message also names the reason and the remedy, since common command-line clients show
//! nothing else. Nothing personal goes into either.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::database;
use crate::form::Violation;
use crate::limits::tenant::Overload;

/// Error details travel in HTTP/2 headers, and common stacks refuse header lists above 8 KiB; in
/// base64 this many bytes of field violations still fit beside everything else.
const VIOLATION_BYTES_MAX: usize = 4608;

/// Long enough for a failover or a burst to pass, short enough for a person who waits.
pub const RETRY: Duration = Duration::from_millis(500);

/// When a client whose stream was refused or ended should retry.
pub const STREAM_RETRY: Duration = Duration::from_secs(1);

/// How many fields the message itself names before it only counts the rest.
const VIOLATIONS_IN_MESSAGE: usize = 5;

/// An error under construction.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    domain: &'static str,
    reason: &'static str,
    sentence: String,
    metadata: HashMap<String, String>,
    details: ErrorDetails,
}

/// An error of the service `domain`. The message becomes `REASON: sentence`.
pub fn failure(
    domain: &'static str,
    code: Code,
    reason: &'static str,
    sentence: impl Into<String>,
) -> Failure {
    Failure {
        code,
        domain,
        reason,
        sentence: sentence.into(),
        metadata: HashMap::new(),
        details: ErrorDetails::new(),
    }
}

/// `INVALID_ARGUMENT` naming every bad field by path.
#[must_use]
pub fn invalid_fields(domain: &'static str, violations: &[Violation]) -> Failure {
    let mut sentence = violations
        .iter()
        .take(VIOLATIONS_IN_MESSAGE)
        .map(|violation| format!("{} {}", violation.field, violation.problem))
        .collect::<Vec<_>>()
        .join("; ");
    if violations.len() > VIOLATIONS_IN_MESSAGE {
        sentence.push_str(&format!("; and {} more", violations.len() - VIOLATIONS_IN_MESSAGE));
    }
    let mut failure = failure(domain, Code::InvalidArgument, "INVALID_FIELDS", sentence);
    let mut bytes = 0;
    for (shown, violation) in violations.iter().enumerate() {
        bytes += violation.field.len() + violation.problem.len() + 6;
        if bytes > VIOLATION_BYTES_MAX {
            let rest = format!("and {} more bad fields", violations.len() - shown);
            failure.details.add_bad_request_violation("", rest);
            break;
        }
        failure.details.add_bad_request_violation(&violation.field, &violation.problem);
    }
    failure
}

/// `UNAVAILABLE` or `INTERNAL`, with a fixed sentence; what the database said goes to the log.
#[must_use]
pub fn database_failure(domain: &'static str, error: &database::Error) -> Failure {
    match error {
        database::Error::Unavailable(cause) => {
            tracing::warn!(cause, "the database is unavailable");
            let sentence = "the database cannot be used right now; retry under the same request id";
            failure(domain, Code::Unavailable, "DATABASE_UNAVAILABLE", sentence).retry_after(RETRY)
        }
        database::Error::Unusable(_)
        | database::Error::Query(_)
        | database::Error::Corrupt { .. }
        | database::Error::Panicked => {
            tracing::error!(%error, "a defect or a damaged row");
            internal(domain)
        }
    }
}

/// `INTERNAL`, with a fixed sentence; the cause belongs in the log.
#[must_use]
pub fn internal(domain: &'static str) -> Failure {
    let sentence = "the service failed; retry once under the same request id, then report the call id (x-call-id) to its operator, whose \
                    log has the cause";
    failure(domain, Code::Internal, "INTERNAL", sentence)
}

/// Too many streams of one kind are open.
#[must_use]
pub fn too_many_streams(domain: &'static str, kind: &str, full: Overload) -> Status {
    let (reason, full) = match full {
        Overload::Process => ("OVERLOADED", format!("too many {kind} are open")),
        Overload::Tenant => ("TENANT_OVERLOADED", format!("your tenant has its share of {kind} open")),
    };
    let sentence = format!("{full}; try again when one has ended");
    failure(domain, Code::ResourceExhausted, reason, sentence).retry_after(STREAM_RETRY).status()
}

/// The server stops and ends its streams.
#[must_use]
pub fn stopping(domain: &'static str) -> Status {
    let sentence = "the server stops; start the stream again, here or at another replica";
    failure(domain, Code::Unavailable, "STOPPING", sentence).retry_after(STREAM_RETRY).status()
}

/// For that long nothing came of a stream, or nothing of it was taken. A watcher goes on after the last
/// revision that was put into it.
#[must_use]
pub fn stood_still(domain: &'static str, limit: Duration, revision: Option<i64>) -> Status {
    let after = revision.map(|revision| format!(" after revision {revision}")).unwrap_or_default();
    let sentence =
        format!("no message was sent or read on the stream for {} s; start it again{after}", limit.as_secs());
    let failure = failure(domain, Code::ResourceExhausted, "STREAM_STOOD_STILL", sentence);
    let failure = failure.retry_after(STREAM_RETRY);
    match revision {
        Some(revision) => failure.with("revision", revision).status(),
        None => failure.status(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "callers hand over literals, ids and counts alike")]
impl Failure {
    /// Adds machine-readable metadata.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }

    /// Tells when to try again.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.details.set_retry_info(Some(delay));
        self
    }

    /// Names the resource that is not there.
    #[must_use]
    pub fn resource(mut self, kind: &str, name: impl ToString) -> Self {
        self.details.set_resource_info(kind, name.to_string(), "", "not found");
        self
    }

    /// Adds the message in the language of the person who reads it.
    #[must_use]
    pub fn localized(mut self, locale: &str, message: &str) -> Self {
        self.details.set_localized_message(locale, message);
        self
    }

    /// Names a condition that must be met first.
    #[must_use]
    pub fn precondition(mut self, kind: &str, subject: impl ToString, description: impl ToString) -> Self {
        self.details.add_precondition_failure_violation(kind, subject.to_string(), description.to_string());
        self
    }

    /// The finished status.
    #[must_use]
    pub fn status(mut self) -> Status {
        self.details.set_error_info(self.reason, self.domain, self.metadata);
        let message = format!("{}: {}", self.reason, self.sentence);
        Status::with_error_details(self.code, message, self.details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_database_says_is_for_the_log_only() {
        let corrupt = database::Error::Corrupt { table: "secret", key: "secret".into(), column: "secret" };
        for (error, code) in [
            (database::Error::Unavailable("secret host".into()), Code::Unavailable),
            (database::Error::Query("secret SQL".into()), Code::Internal),
            (corrupt, Code::Internal),
            (database::Error::Panicked, Code::Internal),
        ] {
            let status = database_failure("some-svc", &error).status();
            assert_eq!(status.code(), code);
            assert!(!status.message().contains("secret"));
            assert_eq!(status.get_details_retry_info().is_some(), code == Code::Unavailable);
        }
    }

    #[test]
    fn a_hundred_bad_lines_fit_into_the_headers() {
        let violations: Vec<_> = (0..100)
            .map(|line| Violation {
                field: format!("lines[{line}].quantity"),
                problem: "must be 1 to 10000000".into(),
            })
            .collect();
        let status = invalid_fields("some-svc", &violations).status();
        assert!(status.details().len() < 5000, "{} bytes", status.details().len());
        let shown = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(shown.len(), 100);
        assert!(status.message().ends_with("and 95 more"));
    }
}
