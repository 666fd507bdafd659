//! The headers of every page, and the protection against requests that another site makes a browser send (CSRF).

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::texts::Texts;
use super::{Pages, problem};

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// Bytes of a header that a log shows.
const LOGGED_MAX: usize = 100;

/// `strict-origin`, so that no request names the address of a page, which has a token in it, and that of a form still names the
/// origin.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (X_FRAME_OPTIONS, "DENY"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "strict-origin"),
    (CACHE_CONTROL, "no-store"),
];

/// Refuses a change that another site may have caused, and adds the headers to every answer.
pub(super) async fn guard(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let (texts, headers) = (Texts::accepted(request.headers()), request.headers());
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    let mut response = if is_read || is_own(headers, &pages.address.origin) {
        let response = next.run(request).await;
        match is_unreadable(&response) {
            true => problem::page(texts, response.status(), texts.changed, texts.form_text),
            false => response,
        }
    } else {
        let (site, origin) = (logged(headers, SEC_FETCH_SITE), logged(headers, ORIGIN.as_str()));
        let expected = &pages.address.origin;
        tracing::warn!(
            ?site,
            ?origin,
            expected,
            "a change was refused: Sec-Fetch-Site or Origin is of another site"
        );
        problem::page(texts, StatusCode::FORBIDDEN, texts.other_site, texts.other_site_text)
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Whether axum could not read the query or the form: such a refusal is no page.
fn is_unreadable(response: &Response) -> bool {
    let is_page = |content: &HeaderValue| content.as_bytes().starts_with(b"text/html");
    response.status().is_client_error()
        && response.status() != StatusCode::METHOD_NOT_ALLOWED
        && !response.headers().get(CONTENT_TYPE).is_some_and(is_page)
}

/// The beginning of a header.
fn logged(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.as_bytes();
    Some(String::from_utf8_lossy(&value[..value.len().min(LOGGED_MAX)]).into_owned())
}

/// Whether a form of these pages made the request: a browser says so in `Sec-Fetch-Site`, or an old one in `Origin`. A
/// request that says neither is refused.
fn is_own(headers: &HeaderMap, origin: &str) -> bool {
    let only = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let first = values.next();
        first.filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    if headers.contains_key(SEC_FETCH_SITE) {
        return only(SEC_FETCH_SITE) == Some(b"same-origin");
    }
    only(ORIGIN.as_str()) == Some(origin.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_comes_from_a_form_of_these_pages() {
        const OWN: &str = "https://portal.example";
        for (sites, origins, expected) in [
            (&["same-origin"][..], &[OWN][..], true),
            (&["same-origin"], &[], true),
            (&[], &[OWN], true),
            (&[], &[], false),
            (&[], &["null"], false),
            (&[], &["https://portal.example.evil"], false),
            (&[], &["http://portal.example"], false),
            (&[], &["https://portal.example:8443"], false),
            (&[], &[OWN, OWN], false),
            (&["same-site"], &[OWN], false),
            (&["cross-site"], &[OWN], false),
            (&["none"], &[OWN], false),
            (&[""], &[OWN], false),
            (&["Same-Origin"], &[OWN], false),
            (&["same-origin", "cross-site"], &[OWN], false),
        ] {
            let mut headers = HeaderMap::new();
            for site in sites {
                headers.append(SEC_FETCH_SITE, HeaderValue::from_static(site));
            }
            for origin in origins {
                headers.append(ORIGIN, HeaderValue::from_static(origin));
            }
            assert_eq!(is_own(&headers, OWN), expected, "{sites:?} {origins:?}");
        }
    }
}
