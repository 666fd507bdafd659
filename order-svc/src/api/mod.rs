//! The wire: a file a gRPC service. A call parses, gathers facts, decides, stores and answers.
//!
//! Identity, role, limits and logging are settled before a call arrives here (chassis::server with
//! the table in [`access`]). Rules live in `rules`, rows in `store`, the neighbour in `agreements`;
//! codes are chosen in [`status`].

pub(crate) mod access;
mod convert;
mod offer;
mod order;
mod status;
mod subscription;

use std::sync::Arc;
use std::time::Duration;

use chassis::auth::{Caller, TenantKind};
use chassis::clock::Clock;
use chassis::database::{Connection, Database, Error};
use chassis::form::Form;
use chassis::request::{RequestKey, Seen, request_seen};
use prost::Message;
use tokio::sync::watch;
use tonic::{Response, Status};

use crate::agreements::{Agreements, Ask, NoAnswer};
use crate::rules::Refusal;
use crate::rules::gate::Answer;
use crate::rules::offer::Catalogue;
use crate::store::Viewer;

/// How often the gate is asked again because a withdrawal overtook its answer.
const ROUNDS_MAX: u32 = 3;

/// The calls of every service, and what they share.
#[derive(Clone)]
pub(crate) struct Api {
    pub database: Database,
    pub clock: Clock,
    pub catalogue: Arc<Catalogue>,
    pub agreements: Agreements,
    /// Changed after every stored order, to wake the reporter.
    pub orders: watch::Sender<()>,
}

impl Api {
    /// The first answer to a request that was seen before.
    async fn replay<A: Message + Default>(&self, key: &RequestKey) -> Result<Option<Response<A>>, Status> {
        let read_key = key.clone();
        let seen = self.database.read(move |c: &mut Connection| request_seen(c, &read_key)).await;
        replayed(key, seen.map_err(|error: Error| status::failed(&error))?)
    }

    /// Asks the gate; everything but an answer becomes a refusal.
    async fn ask(&self, ask: &Ask, patience: Duration) -> Result<Answer, Refusal> {
        self.agreements.check(ask, patience).await.map_err(|no_answer| match no_answer {
            NoAnswer::NotTogether => {
                Refusal::NotFound { resource: "customer", id: ask.parties.customer_id.to_string() }
            }
            NoAnswer::PayerIsReseller => Refusal::PayerIsReseller { payer_id: ask.parties.payer_id },
            NoAnswer::Unknown(why) => {
                tracing::warn!(why, "the gate gave no answer");
                Refusal::GateUnavailable
            }
        })
    }
}

/// The first answer to a request id, if there is one and the content is the same.
fn replayed<A: Message + Default>(key: &RequestKey, seen: Seen) -> Result<Option<Response<A>>, Status> {
    match seen {
        Seen::Never => Ok(None),
        Seen::Answered(answer) => {
            let answer = A::decode(answer.as_slice()).map_err(|error| status::undecodable(&error))?;
            Ok(Some(Response::new(answer)))
        }
        Seen::OtherContent => Err(status::refused(&Refusal::RequestIdReused { request_id: key.request_id })),
    }
}

/// Ends the reading of a request.
fn checked(form: Form) -> Result<(), Status> {
    form.finish().map_err(|violations| status::invalid(&violations))
}

/// What a caller may see of orders and subscriptions (ROLE-6).
fn viewer(caller: &Caller) -> Viewer {
    match caller.tenant_kind {
        TenantKind::Operator => Viewer::Everything,
        TenantKind::Partner | TenantKind::Customer | TenantKind::Service => Viewer::Partner(caller.tenant_id),
    }
}
