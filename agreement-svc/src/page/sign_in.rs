//! The sign-in for development (`--auth insecure`, on loopback only): a browser cannot add an identity to its requests, so a
//! cookie carries one. With tokens it does not exist.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use chassis::auth::{Caller, Channel};
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use proto::identity::{Role, TenantKind};
use serde::Deserialize;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use super::texts::Texts;
use super::view::rendered;
use super::{PARTNERS, Pages};

const NAME: &str = "development-identity";

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct SignIn {
    tenant_id: String,
    user_id: String,
    next: String,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct Page<'a> {
    texts: &'static Texts,
    given: &'a SignIn,
    are_ids_wrong: bool,
}

/// The identity in the cookie, as metadata: a global administrator of a customer.
pub(super) fn credentials(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = MetadataMap::new();
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut cookies = cookies.flat_map(|value| value.split(';')).filter_map(|one| one.trim().split_once('='));
    let identity = cookies.find(|(name, _)| *name == NAME).and_then(|(_, value)| value.split_once('.'));
    if let Some((tenant, user)) = identity
        && let (Ok(tenant_id), Ok(user_id)) = (tenant.parse(), user.parse())
    {
        let (tenant_kind, roles) = (TenantKind::Customer.into_str(), vec![Role::GlobalAdmin.into_str()]);
        let channel = Channel::Dashboard;
        Caller { tenant_kind, tenant_id, user_id, roles, channel, client: None }.present(&mut metadata);
    }
    metadata.into_headers()
}

/// Asks who the user is.
pub(super) fn form(texts: &'static Texts, parts: &Parts) -> Response {
    let next = parts.uri.path_and_query().map(http::uri::PathAndQuery::as_str).unwrap_or_default();
    let given = SignIn { next: next.into(), ..SignIn::default() };
    rendered(StatusCode::UNAUTHORIZED, &Page { texts, given: &given, are_ids_wrong: false })
}

/// Sets the cookie and goes on to the page that was asked for.
pub(super) async fn sign_in(
    State(pages): State<Pages>,
    headers: HeaderMap,
    Query(given): Query<SignIn>,
) -> Response {
    let texts = Texts::accepted(&headers);
    let ids = (given.tenant_id.trim().parse::<Uuid>(), given.user_id.trim().parse::<Uuid>());
    let (Ok(tenant_id), Ok(user_id)) = ids else {
        return rendered(StatusCode::BAD_REQUEST, &Page { texts, given: &given, are_ids_wrong: true });
    };
    let next = given.next;
    // Only a page of this service: `//` and `/\` would lead elsewhere.
    let is_own = next.starts_with(&pages.address.folder)
        && !next[1..].starts_with(['/', '\\'])
        && next.bytes().all(|byte| byte.is_ascii_graphic());
    let next = if is_own { next } else { pages.address.path(PARTNERS) };
    let cookie = format!("{NAME}={tenant_id}.{user_id}; Path=/; HttpOnly; SameSite=Strict");
    (StatusCode::SEE_OTHER, [(SET_COOKIE, cookie), (LOCATION, next)]).into_response()
}
