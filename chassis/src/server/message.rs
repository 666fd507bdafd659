//! The errors of messages that tonic cannot read.

use tonic::{Code, Status};

use super::MESSAGE_BYTES_MAX;
use crate::status::failure;

/// Gives the error about an unreadable message its code and reason. tonic says `OUT_OF_RANGE` for an oversized message
/// and `INTERNAL` for a malformed one, which only their texts tell from other errors. In a stream of messages the error
/// may come after the answer has begun, where only the handler can report it.
#[must_use]
pub fn unreadable_message(status: &Status, domain: &'static str) -> Option<Status> {
    match status.code() {
        Code::OutOfRange if status.message().contains("decoded message length too large") => {
            let sentence =
                format!("a request message has at most {MESSAGE_BYTES_MAX} bytes; send less at a time");
            Some(failure(domain, Code::ResourceExhausted, "MESSAGE_TOO_LARGE", sentence).status())
        }
        Code::Internal if status.message().starts_with("failed to decode Protobuf message") => {
            let sentence = "the bytes are no message of this call; encode it with the published contract";
            Some(failure(domain, Code::InvalidArgument, "MALFORMED_MESSAGE", sentence).status())
        }
        _ => None,
    }
}
