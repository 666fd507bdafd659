//! Refusals as pages: each says what happened and what to do.

use askama::Template;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::RETRY_AFTER;
use proto::types::ErrorReason;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::texts::Texts;
use super::view::rendered;

/// Seconds after which a browser may ask again.
const RETRY_SECONDS: &str = "5";

/// A page that says one thing.
#[derive(Template)]
#[template(path = "message.html")]
struct Page<'a> {
    texts: &'static Texts,
    title: &'a str,
    text: &'a str,
    /// What the link to this same page is called; empty without one.
    reload: &'a str,
}

/// A page with a title and a sentence.
pub(super) fn page(texts: &'static Texts, code: StatusCode, title: &str, text: &str) -> Response {
    rendered(code, &Page { texts, title, text, reload: "" })
}

/// The reason of a refusal.
fn reason_of(status: &Status) -> ErrorReason {
    let details = status.get_error_details();
    let named = details.error_info().map(|info| format!("ERROR_REASON_{}", info.reason));
    named.and_then(|name| ErrorReason::from_str_name(&name)).unwrap_or_default()
}

pub(super) fn has_reason(status: &Status, reason: ErrorReason) -> bool {
    reason_of(status) == reason
}

/// The fields that a refusal names.
pub(super) fn bad_fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let bad = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    bad.into_iter().map(|violation| violation.field).collect()
}

/// The page for a refusal.
pub(super) fn refused(texts: &'static Texts, status: &Status) -> Response {
    let reason = reason_of(status);
    let (code, title, text) = match reason {
        ErrorReason::IdentityRequired => {
            (StatusCode::UNAUTHORIZED, texts.not_signed_in, texts.not_signed_in_text)
        }
        ErrorReason::RoleNotAllowed => (StatusCode::FORBIDDEN, texts.not_allowed, texts.not_allowed_text),
        ErrorReason::ResourceNotFound => (StatusCode::NOT_FOUND, texts.no_page, texts.no_page_text),
        ErrorReason::AcceptanceChangeLimit => {
            (StatusCode::TOO_MANY_REQUESTS, texts.too_often, texts.too_often_text)
        }
        ErrorReason::VersionChanged => (StatusCode::CONFLICT, texts.changed, texts.changed_text),
        ErrorReason::ContactPartner => (StatusCode::CONFLICT, texts.cannot_sign, texts.contact_partner),
        ErrorReason::TemplateRetired => (StatusCode::CONFLICT, texts.cannot_sign, texts.retired_text),
        ErrorReason::CloudNotSupported => (StatusCode::CONFLICT, texts.cannot_sign, texts.cloud_text),
        ErrorReason::TenantOfOtherKind => (StatusCode::CONFLICT, texts.not_accepted, texts.is_partner_text),
        ErrorReason::ResellerNotLinked => (StatusCode::CONFLICT, texts.not_accepted, texts.not_linked_text),
        ErrorReason::AcceptanceSuperseded => (StatusCode::CONFLICT, texts.superseded, texts.superseded_text),
        ErrorReason::InvalidFields | ErrorReason::RequestIdReused | ErrorReason::MetadataTooLarge => {
            (StatusCode::BAD_REQUEST, texts.changed, texts.form_text)
        }
        // A repetition may succeed.
        _ if matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::Aborted) => {
            (StatusCode::SERVICE_UNAVAILABLE, texts.busy, texts.busy_text)
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, texts.failed, texts.failed_text),
    };
    // The proxy signs the user in when the page is asked for again.
    let reload = if code == StatusCode::UNAUTHORIZED { texts.sign_in_again } else { "" };
    let page = rendered(code, &Page { texts, title, text, reload });
    match code {
        StatusCode::SERVICE_UNAVAILABLE => ([(RETRY_AFTER, RETRY_SECONDS)], page).into_response(),
        _ => page,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chassis::status::failure;

    #[test]
    fn every_refusal_is_a_page_with_a_status_of_http() {
        let texts = Texts::of("en");
        for (code, reason, expected) in [
            (Code::Unauthenticated, "IDENTITY_REQUIRED", 401),
            (Code::PermissionDenied, "ROLE_NOT_ALLOWED", 403),
            (Code::NotFound, "RESOURCE_NOT_FOUND", 404),
            (Code::FailedPrecondition, "CONTACT_PARTNER", 409),
            (Code::FailedPrecondition, "TEMPLATE_RETIRED", 409),
            (Code::InvalidArgument, "INVALID_FIELDS", 400),
            (Code::ResourceExhausted, "ACCEPTANCE_CHANGE_LIMIT", 429),
            (Code::ResourceExhausted, "OVERLOADED", 503),
            (Code::ResourceExhausted, "TENANT_OVERLOADED", 503),
            (Code::Unavailable, "DATABASE_UNAVAILABLE", 503),
            (Code::Unavailable, "DEADLINE_PASSED", 503),
            (Code::Aborted, "ETAG_STALE", 503),
            (Code::FailedPrecondition, "INVITATIONS_OFF", 500),
            (Code::Internal, "INTERNAL", 500),
            (Code::Internal, "A_NEW_REASON", 500),
        ] {
            let status = failure("agreement-svc", code, reason, "a sentence").status();
            let page = refused(texts, &status);
            assert_eq!(page.status(), expected, "{reason}");
            assert_eq!(page.headers().contains_key(RETRY_AFTER), expected == 503, "{reason}");
        }
    }
}
