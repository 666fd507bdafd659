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
mod explain;
pub(crate) mod import;
mod invitation;
pub(crate) mod link;
mod partner;
mod proposal;
mod statement;
mod status;
mod template;

use std::sync::Arc;

use chassis::auth::{self, Caller};
use chassis::clock::Clock;
use chassis::database::{Connection, Database};
use chassis::form::Form;
use chassis::idempotency::{IdempotencyKey, RequestHasher};
use chassis::limits::tenant::TenantLimiter;
use chassis::metrics::Metrics;
use chassis::paging::{Page, Pages};
use chassis::server::call;
use chassis::watch::Watchers;
use link::Links;
use prost::Message;
use proto::identity::TenantKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::mail::templates::MailTemplates;
use crate::metrics::Decisions;
use crate::rules::policy::Policy;
use crate::rules::{BadField, Refusal, Time};
use crate::store::change::{Answered, Change, ChangeError, change};
use crate::store::customer::Viewer;
use crate::store::gate::{GateReads, TemplateCache};

/// The calls of every service, and what they share.
#[derive(Clone)]
pub(crate) struct Api {
    pub database: Database,
    pub clock: Clock,
    pub policy: Arc<Policy>,
    pub pages: Pages,
    pub templates: TemplateCache,
    /// The facts of single checks.
    pub gate: GateReads,
    /// Makes acceptance links; without it there are no invitations.
    pub links: Option<Arc<Links>>,
    /// The texts of invitations.
    pub texts: Arc<MailTemplates>,
    pub metrics: Metrics,
    pub decisions: Decisions,
    /// Notified after each commit of this process, so that no watcher waits for the next poll.
    pub committed: watch::Sender<()>,
    /// Cancelled when the service ends: open imports end.
    pub stopping: CancellationToken,
    pub hasher: RequestHasher,
    /// Changes of acceptances an hour that are allowed for a customer and a partner (ATT-8).
    pub acceptance_changes_max: u32,
    /// One for each import that may be open.
    pub imports: TenantLimiter,
    pub watchers: Watchers,
}

/// A changing call while it is read: the prelude of every call that has a request id.
struct Mutation<M> {
    /// The call's name, which is part of the idempotency key.
    name: &'static str,
    caller: Caller,
    /// The request without its id and `validate_only`: what the request id stands for.
    message: M,
    form: Form,
    /// Its times that are compared with the clock.
    timed: Vec<Timed>,
    request_id: Uuid,
    /// The client derived the id from the content.
    is_id_derived: bool,
    /// True for a call that is only tried: its effect and its answer are not stored.
    validate_only: bool,
}

/// A field with a time, and the rule that compares it with the clock: the time, then now.
type Timed = (String, Time, fn(Time, Time) -> Result<(), String>);

/// The fields whose times are wrong now.
fn wrong_times(timed: &[Timed], now: Time) -> Vec<BadField> {
    let wrong = timed.iter().filter_map(|(field, time, check)| {
        check(*time, now).err().map(|problem| BadField { field: field.clone(), problem })
    });
    wrong.collect()
}

/// Refuses times that are wrong now.
fn check_times(timed: &[Timed], now: Time) -> Result<(), Refusal> {
    let wrong = wrong_times(timed, now);
    if wrong.is_empty() { Ok(()) } else { Err(Refusal::Fields(wrong)) }
}

/// A changing call that was read and has no bad field, without what it asks for.
struct Asked {
    key: IdempotencyKey,
    caller: Caller,
    timed: Vec<Timed>,
}

impl<M> Mutation<M> {
    fn new(name: &'static str, caller: Caller, message: M, request_id: &str, validate_only: bool) -> Self {
        let mut form = Form::new();
        let request_id = form.id("request_id", request_id);
        Self { name, caller, message, form, timed: vec![], request_id, is_id_derived: false, validate_only }
    }
}

impl Api {
    /// Begins a changing call; `prelude` finds the request id and `validate_only` (I9).
    fn mutation<M>(
        &self,
        name: &'static str,
        request: Request<M>,
        prelude: impl FnOnce(&mut M) -> (&mut String, &mut bool),
    ) -> Result<Mutation<M>, Status> {
        let caller = auth::caller(&request)?;
        let mut message = request.into_inner();
        let (request_id, validate_only) = prelude(&mut message);
        let (request_id, validate_only) = (std::mem::take(request_id), std::mem::take(validate_only));
        Ok(Mutation::new(name, caller, message, &request_id, validate_only))
    }

    /// Runs a changing call that was read, once for its request id, and answers what it stored.
    async fn change<M: Message, A: Message + Default + 'static>(
        &self,
        call: Mutation<M>,
        decide: impl FnOnce(&mut Change<'_>, &Caller) -> Result<A, ChangeError> + Send + 'static,
    ) -> Result<Response<A>, Status> {
        let validate_only = call.validate_only;
        let Asked { key, caller, timed } = self.asked(call)?;
        let decide = move |change: &mut Change<'_>| {
            check_times(&timed, change.now)?;
            decide(change, &caller)
        };
        let limits = (self.clock.clone(), self.acceptance_changes_max);
        let answered = change(&self.database, key, limits, validate_only, decide, A::encode_to_vec).await;
        let answered = answered.map_err(status::of)?;
        self.committed.send_replace(());
        match answered {
            Answered::New(answer) => Ok(Response::new(answer)),
            Answered::Before(bytes) => Ok(call::replayed(decoded(&bytes)?)),
        }
    }

    /// Ends the reading of a changing call.
    fn asked<M: Message>(&self, call: Mutation<M>) -> Result<Asked, Status> {
        let Mutation { name, caller, message, mut form, timed, request_id, is_id_derived, .. } = call;
        if !form.is_valid() {
            // All bad fields are named at once. A request that has no others may be a repetition, which is answered as
            // it was when its times were right.
            for wrong in wrong_times(&timed, self.clock.now()) {
                form.violation(wrong.field, wrong.problem);
            }
        }
        checked(form)?;
        let mut key = self.hasher.key(&caller, name, request_id, &message);
        if is_id_derived {
            key = self.hasher.with_derived_id(key);
        }
        Ok(Asked { key, caller, timed })
    }

    /// Answers a call that reads a few rows.
    async fn read<A: Send + 'static>(
        &self,
        form: Form,
        read: impl FnOnce(&mut Connection) -> Result<A, ChangeError> + Send + 'static,
    ) -> Result<Response<A>, Status> {
        checked(form)?;
        self.database.read(read).await.map(Response::new).map_err(status::of)
    }

    /// Answers a call that reads one page of a list.
    async fn list<A: Send + 'static>(
        &self,
        form: Form,
        page: Page,
        read: impl FnOnce(&mut Connection, &Page) -> Result<A, ChangeError> + Send + 'static,
    ) -> Result<Response<A>, Status> {
        checked(form)?;
        let read = move |connection: &mut Connection| read(connection, &page);
        self.database.list(read).await.map(Response::new).map_err(status::of)
    }
}

/// An answer that was stored.
fn decoded<A: Message + Default>(bytes: &[u8]) -> Result<A, Status> {
    A::decode(bytes).map_err(|error| status::undecodable(&error))
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
