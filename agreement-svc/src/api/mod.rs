//! The wire: a file a gRPC service. A call parses, gathers facts, decides, stores and answers.
//!
//! Identity, role, limits and logging are settled before a call arrives here (chassis::server with
//! the table in [`access`]). Rules live in `rules`, rows in `store`; codes are chosen in [`status`].

pub(crate) mod access;
mod attestation;
mod convert;
mod customer;
mod eligibility;
mod partner;
mod status;
mod template;

use std::sync::Arc;

use chassis::auth::{Caller, TenantKind};
use chassis::clock::Clock;
use chassis::database::Database;
use chassis::form::Form;
use prost::Message;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::rules::Time;
use crate::rules::policy::Policy;
use crate::store::change::{Change, ChangeError, RequestKey, change};
use crate::store::customer::Viewer;

/// The calls of every service, and what they share.
#[derive(Clone)]
pub(crate) struct Api {
    pub database: Database,
    pub clock: Clock,
    pub policy: Arc<Policy>,
}

impl Api {
    /// Runs a change under its request id and answers what it stored.
    async fn change<A: Message + Default>(
        &self,
        key: RequestKey,
        now: Time,
        validate_only: bool,
        decide: impl FnOnce(&mut Change<'_>) -> Result<A, ChangeError> + Send + 'static,
    ) -> Result<Response<A>, Status> {
        let encode = move |change: &mut Change<'_>| Ok(decide(change)?.encode_to_vec());
        let answer = change(&self.database, key, now, validate_only, encode).await.map_err(status::of)?;
        A::decode(answer.as_slice()).map(Response::new).map_err(|error| status::undecodable(&error))
    }
}

/// The key of a request: `content` is the message with its id taken out.
fn request_key(caller: &Caller, call: &'static str, request_id: Uuid, content: &impl Message) -> RequestKey {
    RequestKey::new(caller.tenant_id, call, request_id, &content.encode_to_vec())
}

/// Ends the reading of a request.
fn checked(form: Form) -> Result<(), Status> {
    form.finish().map_err(|violations| status::invalid(&violations))
}

/// What a caller may see of customers (ROLE-6).
fn viewer(caller: &Caller) -> Viewer {
    match caller.tenant_kind {
        TenantKind::Partner => Viewer::Partner(caller.tenant_id),
        TenantKind::Customer => Viewer::Customer(caller.tenant_id),
        TenantKind::Operator | TenantKind::Service => Viewer::Everything,
    }
}

/// What a page token is bound to.
fn list_of(caller: &Caller, call: &str, filter: &str) -> String {
    format!("{}/{}/{call}/{filter}", caller.tenant_kind, caller.tenant_id)
}
