//! What is refused before any identity is asked for: requests that are no gRPC, or that have too much metadata.

use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use tonic::body::Body;
use tonic::{Code, Status};

use super::METADATA_BYTES_MAX;
use crate::status::failure;

/// Why a request is no gRPC, and the status that HTTP has for it.
pub(super) fn not_grpc(request: &http::Request<Body>) -> Option<(StatusCode, &'static str)> {
    if request.method() != Method::POST {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "a gRPC call is a POST"));
    }
    let given = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = given.split(';').next().unwrap_or_default().trim_end();
    let is_grpc =
        ["application/grpc", "application/grpc+proto"].iter().any(|grpc| kind.eq_ignore_ascii_case(grpc));
    (!is_grpc)
        .then_some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "the content-type of a call is application/grpc"))
}

/// Whether the metadata of a request is larger than it may be, as HTTP/2 counts its bytes.
pub(super) fn has_too_much_metadata(request: &http::Request<Body>) -> bool {
    const PER_ENTRY: usize = 32;
    let entries = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + PER_ENTRY);
    entries.sum::<usize>() + request.uri().path().len() > METADATA_BYTES_MAX
}

pub(super) fn metadata_too_large(domain: &'static str) -> Status {
    let sentence = format!(
        "the metadata of a call has at most {METADATA_BYTES_MAX} bytes, with 32 for each entry; send less"
    );
    failure(domain, Code::ResourceExhausted, "METADATA_TOO_LARGE", sentence).status()
}
