//! The acceptance page: a customer's administrator answers an invitation in a browser, sees the partners of its company and
//! its acceptances, signs, and withdraws a signature.
//!
//! - [`visit`]: who asks, and in which language
//! - [`invitation`], [`partners`], [`signature`]: the pages
//! - [`answered`]: what an answer has done
//! - [`view`]: what several pages show
//! - [`problem`]: a refusal as a page
//! - [`security`]: headers, and which changes are accepted
//! - [`sign_in`]: the sign-in for development
//! - [`texts`]: every text, in each language
//!
//! A page makes the calls of the contract in this process, through the middleware of every call, under the identity that the
//! browser's request carries. So identity, access, limits, request ids, metrics and history are those of the calls.

mod answered;
mod company;
mod invitation;
mod partners;
mod problem;
mod security;
mod sign_in;
mod signature;
mod texts;
mod view;
mod visit;

use std::sync::Arc;

use anyhow::{Context, ensure};
use askama::Template;
use axum::Router;
use axum::extract::State;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chassis::auth::Auth;
use chassis::clock::{Clock, new_id};
use chassis::server::call::CallService;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, StatusCode, Uri};

use self::texts::Texts;
use self::view::rendered;

/// The pages beside that of an invitation.
const PARTNERS: &str = "partners";
const SIGN: &str = "sign";
const WITHDRAW: &str = "withdraw";
const STYLE: &str = "style.css";
const SIGN_IN: &str = "development-sign-in";

/// Where the pages are, as a browser sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The origin, as browsers name it.
    origin: String,
    /// The folder of all pages, which ends in a slash.
    folder: String,
    /// The page of an invitation in that folder; empty if it is the folder itself.
    invitation: String,
}

impl Address {
    /// Reads the URL of acceptance links.
    ///
    /// # Errors
    /// A path at which the service cannot serve pages.
    pub(crate) fn read(url: &str) -> anyhow::Result<Self> {
        let url: Uri = url.parse().context("it is no URL")?;
        let (scheme, authority) = (url.scheme_str().unwrap_or_default(), url.authority());
        let authority = authority.map(|authority| authority.as_str().to_lowercase()).unwrap_or_default();
        // A browser leaves the usual port out.
        let port = if scheme == "https" { ":443" } else { ":80" };
        let origin = format!("{scheme}://{}", authority.strip_suffix(port).unwrap_or(&authority));
        let (folder, invitation) = url.path().rsplit_once('/').unwrap_or_default();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
        ensure!(url.path().chars().all(is_plain), "its path has other signs than letters, digits and -._~/");
        ensure!(
            ![PARTNERS, SIGN, WITHDRAW, STYLE, SIGN_IN].contains(&invitation),
            "its path ends in {invitation}, which is another page"
        );
        Ok(Self { origin, folder: format!("{folder}/"), invitation: invitation.to_owned() })
    }

    fn path(&self, page: &str) -> String {
        format!("{}{page}", self.folder)
    }
}

/// What all pages share.
#[derive(Clone)]
struct Pages {
    calls: CallService,
    address: Arc<Address>,
    auth: Auth,
    clock: Clock,
}

impl Pages {
    /// A request id for a form: submitted twice, the form gets the first answer again.
    fn request_id(&self) -> String {
        new_id(self.clock.now()).to_string()
    }
}

/// The pages.
pub(crate) fn router(calls: CallService, address: Address, auth: Auth, clock: Clock) -> Router {
    let at = |page: &str| address.path(page);
    let mut router = Router::new()
        .route(&at(&address.invitation), get(invitation::show).post(invitation::answer))
        .route(&at(PARTNERS), get(partners::show))
        .route(&at(SIGN), get(signature::show).post(signature::sign))
        .route(&at(WITHDRAW), get(signature::preview).post(signature::withdraw))
        .route(&at(STYLE), get(style));
    if !address.invitation.is_empty() {
        router = router.route(&address.folder, get(partners::show));
    }
    if auth == Auth::Insecure {
        router = router.route(&at(SIGN_IN), get(sign_in::sign_in));
    }
    let pages = Pages { calls, address: Arc::new(address), auth, clock };
    router
        .fallback(not_found)
        .layer(middleware::from_fn_with_state(pages.clone(), security::guard))
        .with_state(pages)
}

async fn style() -> Response {
    let headers = [(CONTENT_TYPE, "text/css; charset=utf-8"), (CACHE_CONTROL, "max-age=3600")];
    (headers, include_str!("../../templates/style.css")).into_response()
}

/// The page where there is none, also in a folder below.
#[derive(Template)]
#[template(path = "not_found.html")]
struct NotFound<'a> {
    texts: &'static Texts,
    folder: &'a str,
}

async fn not_found(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let page = NotFound { texts: Texts::accepted(&headers), folder: &pages.address.folder };
    rendered(StatusCode::NOT_FOUND, &page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_where_acceptance_links_lead() {
        for (url, origin, folder, invitation) in [
            ("https://portal.example/accept", "https://portal.example", "/", "accept"),
            ("https://Portal.Example:443/a/b/accept?x=y", "https://portal.example", "/a/b/", "accept"),
            ("https://portal.example:8443/a/", "https://portal.example:8443", "/a/", ""),
            ("https://portal.example", "https://portal.example", "/", ""),
            ("http://localhost:80/accept", "http://localhost", "/", "accept"),
        ] {
            let expected =
                Address { origin: origin.into(), folder: folder.into(), invitation: invitation.into() };
            assert_eq!(Address::read(url).unwrap(), expected, "{url}");
        }
        for url in [
            "https://portal.example/partners",
            "https://portal.example/a/style.css",
            "https://portal.example/{a}",
            "https://portal.example/a%20b",
        ] {
            assert!(Address::read(url).is_err(), "{url}");
        }
    }
}
