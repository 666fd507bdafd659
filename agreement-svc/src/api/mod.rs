//! The gRPC services, each in a file of its own. A call reads its request, collects what the rules
//! need to know, lets them decide, stores the outcome and answers.
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
use chassis::database::{Connection, Database};
use chassis::form::Form;
use chassis::request::RequestKey;
use prost::Message;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::rules::party::{Customer, Partner};
use crate::rules::policy::Policy;
use crate::rules::{Refusal, Time};
use crate::store::change::{Change, ChangeError, change};
use crate::store::customer::{Viewer, customer_find};
use crate::store::partner::partner_find;

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

/// A customer that the viewer may see, or the answer that says nothing (ROLE-6).
fn visible(connection: &mut Connection, viewer: Viewer, id: Uuid) -> Result<Customer, ChangeError> {
    Ok(customer_find(connection, viewer, id)?.ok_or(Refusal::NotFound { resource: "customer", id })?)
}

/// A registered partner, for callers that may know all of them or name their own.
fn existing(change: &mut Change<'_>, id: Uuid) -> Result<Partner, ChangeError> {
    let known = partner_find(change.connection, id)?;
    Ok(known.ok_or(Refusal::NotFound { resource: "partner", id })?)
}
