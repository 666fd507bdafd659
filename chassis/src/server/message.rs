//! The statuses of the gRPC library: each gets a code and a reason of the contract before it leaves the server.
//!
//! The library tells them apart by their texts alone. A text that is not known here counts as a defect of this server, so
//! that a new version of the library cannot hide one.

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{MESSAGE_BYTES_MAX, PUBLIC_MESSAGE_BYTES_MAX};
use crate::status::{failure, internal};
use crate::telemetry::trace::code_of;

/// How the library begins its messages about bytes that it cannot read as the request message.
const MALFORMED: [&str; 5] = [
    "Missing request message",
    "Unexpected EOF decoding stream",
    "Error decompressing",
    "failed to decode Protobuf message",
    "protocol error: received message with",
];

/// The status as it leaves the server: a status without `ErrorInfo` is the library's, and gets its code and reason here. In
/// a stream of messages it may come after the answer has begun, where only the handler can report it.
#[must_use]
pub fn with_reason(status: Status, domain: &'static str) -> Status {
    if status.code() == Code::Ok || status.get_details_error_info().is_some() {
        return status;
    }
    let is_about = |begin: &str| status.message().starts_with(begin);
    match status.code() {
        Code::OutOfRange if status.message().contains("decoded message length too large") => {
            too_large(domain)
        }
        Code::ResourceExhausted if is_about("Error decompressing") => too_large(domain),
        Code::Internal if MALFORMED.iter().any(|begin| is_about(begin)) => {
            malformed(domain, "the bytes are no message of this call; encode it with the published contract")
        }
        Code::InvalidArgument => malformed(domain, "the message asks for nothing; fill in one of its fields"),
        Code::Unimplemented if is_about("Content is compressed") => {
            let sentence = "the message is compressed in a way that is not supported; use gzip or none";
            let mut refused =
                failure(domain, Code::Unimplemented, "COMPRESSION_NOT_SUPPORTED", sentence).status();
            // It says what is accepted.
            *refused.metadata_mut() = status.metadata().clone();
            refused
        }
        Code::Unimplemented => unknown_call(domain),
        // The health of a service, or a symbol of the contract.
        Code::NotFound => {
            let sentence =
                "there is no service or symbol of this name; ask reflection for the list of services";
            failure(domain, Code::NotFound, "RESOURCE_NOT_FOUND", sentence).resource("symbol", "").status()
        }
        // The message broke off with its stream or its connection.
        Code::Cancelled | Code::Unknown => cancelled(domain),
        _ if is_about("h2 protocol error") => cancelled(domain),
        code => {
            tracing::error!(?code, text = status.message(), "a status without a reason: a defect");
            internal(domain).status()
        }
    }
}

/// Gives the status in the headers or trailers of a response its reason. `is_broken` tells that the request broke off before
/// its end, of which the library's status may say nothing.
pub(super) fn give_reason(headers: &mut HeaderMap, is_broken: bool, domain: &'static str) {
    if code_of(headers) == Code::Ok || headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return;
    }
    let Some(status) = Status::from_header_map(headers) else { return };
    let status = if is_broken { cancelled(domain) } else { with_reason(status, domain) };
    if status.add_header(headers).is_err() {
        tracing::error!(code = ?status.code(), "a status fits into no header");
    }
}

/// The client ended the call before its message had arrived.
pub(super) fn cancelled(domain: &'static str) -> Status {
    let sentence = "the client ended the call before its message had arrived; send it again";
    failure(domain, Code::Cancelled, "CALL_CANCELLED", sentence).status()
}

pub(super) fn malformed(domain: &'static str, sentence: &'static str) -> Status {
    failure(domain, Code::InvalidArgument, "MALFORMED_MESSAGE", sentence).status()
}

pub(super) fn unknown_call(domain: &'static str) -> Status {
    let sentence = format!("{domain} has no such call; compare its name with the published contract");
    failure(domain, Code::Unimplemented, "CALL_UNKNOWN", sentence).status()
}

fn too_large(domain: &'static str) -> Status {
    let sentence = format!(
        "a request message has at most {MESSAGE_BYTES_MAX} bytes, also decompressed, and one to health or reflection \
         {PUBLIC_MESSAGE_BYTES_MAX}; send less at a time"
    );
    failure(domain, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", sentence).status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_the_library_gets_a_reason_and_an_unknown_one_is_a_defect() {
        let own = failure("some-svc", Code::NotFound, "RESOURCE_NOT_FOUND", "it is not there").status();
        assert_eq!(with_reason(own, "other-svc").get_details_error_info().unwrap().domain, "some-svc");
        for (status, code, reason) in [
            (Status::internal("Missing request message."), Code::InvalidArgument, "MALFORMED_MESSAGE"),
            (Status::internal("h2 protocol error: reset"), Code::Cancelled, "CALL_CANCELLED"),
            (Status::unknown("connection closed"), Code::Cancelled, "CALL_CANCELLED"),
            (Status::unimplemented(""), Code::Unimplemented, "CALL_UNKNOWN"),
            (Status::internal("something new"), Code::Internal, "INTERNAL"),
            (Status::data_loss("something else"), Code::Internal, "INTERNAL"),
        ] {
            let given = with_reason(status, "some-svc");
            let info = given.get_details_error_info().unwrap();
            assert_eq!((given.code(), info.reason.as_str()), (code, reason));
        }
    }
}
