//! The gRPC services, each in a file of its own. A call reads its request, collects what the rules
//! need to know, lets them decide, stores the outcome and answers.
//!
//! Identity, role, limits and logging are settled before a call arrives here (chassis::server with
//! the table in [`access`]). Rules live in `rules`, rows in `store`; codes are chosen in [`status`].

pub(crate) mod access;
mod attestation;
mod convert;
mod customer;
mod direct_sign;
mod eligibility;
mod event;
mod import;
mod invitation;
pub(crate) mod link;
mod partner;
mod status;
mod template;

use std::sync::Arc;

use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::database::{Connection, Database};
use chassis::form::Form;
use chassis::idempotency::IdempotencyKey;
use chassis::metrics::Metrics;
use chassis::server::limits::tenant::{Permit, TenantLimiter};
use link::Links;
use prost::Message;
use proto::identity::TenantKind;
use tokio::sync::watch;
use tonic::{Response, Status};
use uuid::Uuid;

use crate::metrics::Decisions;
use crate::rules::party::{Customer, Partner};
use crate::rules::policy::Policy;
use crate::rules::template::{AgreementType, Template};
use crate::rules::{Refusal, Time};
use crate::store::change::{Change, ChangeError, change};
use crate::store::customer::{Viewer, customer_find};
use crate::store::gate::TemplateCache;
use crate::store::partner::partner_find;
use crate::store::template::{template_find, template_live};

/// The calls of every service, and what they share.
#[derive(Clone)]
pub(crate) struct Api {
    pub database: Database,
    pub clock: Clock,
    pub policy: Arc<Policy>,
    pub templates: TemplateCache,
    /// Makes acceptance links; without it there are no invitations.
    pub links: Option<Arc<Links>>,
    pub metrics: Metrics,
    pub decisions: Decisions,
    /// Notified after each commit of this process, so that no watcher waits for the next poll.
    pub committed: watch::Sender<()>,
    /// The revision of the last event, while a watcher is open.
    pub head: watch::Sender<i64>,
    /// True once the server stops: open streams end.
    pub stopping: watch::Receiver<bool>,
    /// One for each import that may be open.
    pub imports: TenantLimiter,
    /// One for each watcher that may be open.
    pub watchers: TenantLimiter,
}

/// A change's answer, and whether it had been given before.
struct Changed<A> {
    answer: A,
    is_replay: bool,
}

impl Api {
    /// A place for a stream that goes on. Who gets none is counted like a call that is refused for load.
    fn stream_place(&self, places: &TenantLimiter, kind: &str, caller: &Caller) -> Result<Permit, Status> {
        places.try_acquire(caller).map_err(|full| {
            self.metrics.stream_refused_for_load();
            status::too_many_streams(kind, full)
        })
    }

    /// Runs a change under its request id and answers what it stored.
    async fn change<A: Message + Default>(
        &self,
        key: IdempotencyKey,
        now: Time,
        validate_only: bool,
        decide: impl FnOnce(&mut Change<'_>) -> Result<A, ChangeError> + Send + 'static,
    ) -> Result<Response<A>, Status> {
        let changed = self.changed(key, now, validate_only, decide).await?;
        Ok(Response::new(changed.answer))
    }

    async fn changed<A: Message + Default>(
        &self,
        key: IdempotencyKey,
        now: Time,
        validate_only: bool,
        decide: impl FnOnce(&mut Change<'_>) -> Result<A, ChangeError> + Send + 'static,
    ) -> Result<Changed<A>, Status> {
        let encode = move |change: &mut Change<'_>| Ok(decide(change)?.encode_to_vec());
        let answered = change(&self.database, key, now, validate_only, encode).await.map_err(status::of)?;
        self.committed.send_replace(());
        let answer = A::decode(answered.answer.as_slice()).map_err(|error| status::undecodable(&error))?;
        Ok(Changed { answer, is_replay: answered.is_replay })
    }
}

/// Ends the reading of a request.
fn checked(form: Form) -> Result<(), Status> {
    form.finish().map_err(|violations| status::invalid(&violations))
}

/// What a caller may see of customers (ROLE-6).
fn viewer(caller: &Caller) -> Viewer {
    match caller.tenant_kind.parse() {
        Ok(TenantKind::Partner) => Viewer::Partner(caller.tenant_id),
        Ok(TenantKind::Customer) => Viewer::Customer(caller.tenant_id),
        Ok(TenantKind::Operator | TenantKind::Service) => Viewer::Everything,
        // The server refuses other kinds. If one came through, it sees nothing: no partner has the nil id.
        Err(_) => Viewer::Partner(Uuid::nil()),
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

/// A template that is known, retired or not.
fn existing_template(connection: &mut Connection, id: Uuid) -> Result<Template, ChangeError> {
    Ok(template_find(connection, id)?.ok_or(Refusal::NotFound { resource: "template", id })?)
}

/// What to use instead of a template that is retired: the live one of the newest type that has one.
fn newest_live(change: &mut Change<'_>, instead_of: &Template) -> Result<Option<Uuid>, ChangeError> {
    if instead_of.retired_at.is_none() {
        return Ok(None);
    }
    for of in AgreementType::ALL.iter().rev() {
        if let Some(id) = template_live(change.connection, *of, change.now)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}
