//! The headers of every page, and the protection against requests that another site makes a browser send (CSRF).

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::texts::Texts;
use super::{Pages, problem};

const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// `same-origin`, so that no other site learns the token in an address, and a browser still names the origin of a form.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (X_FRAME_OPTIONS, "DENY"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "same-origin"),
    (CACHE_CONTROL, "no-store"),
];

/// Refuses a change that another site may have caused, and adds the headers to every answer.
pub(super) async fn guard(State(pages): State<Pages>, request: Request, next: Next) -> Response {
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    let mut response = if is_read || is_own(request.headers(), &pages.address.origin) {
        next.run(request).await
    } else {
        let texts = Texts::accepted(request.headers());
        problem::page(texts, StatusCode::FORBIDDEN, texts.other_site, texts.other_site_text)
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
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
