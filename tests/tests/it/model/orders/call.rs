//! A call of order-svc that buys or changes, its answer, and its refusal with all details.

use std::collections::BTreeMap;

use proto::order::{
    AssignResellerRequest, CancelSubscriptionRequest, ChangeSeatsRequest, CreateOrderRequest,
    CreateOrderResponse, RenewSubscriptionRequest, ResumeSubscriptionRequest, SetAutoRenewRequest,
    Subscription, SuspendSubscriptionRequest,
};
use proto::types::GateEvidence;
use tests::clients::bad_fields_of;
use tests::{As, metadata_of, reason_of};
use tonic::Status;
use tonic_types::StatusExt;

use super::steps::Command;
use crate::model::acceptance::PARTNERS;

/// A refusal with what it carries.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub reason: String,
    pub metadata: BTreeMap<String, String>,
    /// The bad fields, or the preconditions that are not met.
    pub named: Vec<String>,
}

pub(super) fn refused<const N: usize>(reason: &str, metadata: [(&str, String); N]) -> Refusal {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Refusal { reason: reason.into(), metadata, named: vec![] }
}

pub(super) fn bad_fields(named: Vec<String>) -> Refusal {
    Refusal { named, ..refused("INVALID_FIELDS", []) }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let unmet =
            status.get_details_precondition_failure().into_iter().flat_map(|failure| failure.violations);
        let unmet = unmet.map(|unmet| format!("{} {}", unmet.r#type, unmet.description));
        let mut metadata: BTreeMap<_, _> = metadata_of(&status).into_iter().collect();
        let considered = metadata.remove("considered").unwrap_or_else(|| "[]".into());
        let considered: Vec<serde_json::Value> = serde_json::from_str(&considered).unwrap();
        let mut considered: Vec<_> = considered
            .iter()
            .map(|one| format!("CONSIDERED {}", one["reason"].as_str().unwrap_or_default()))
            .collect();
        considered.sort();
        let named = bad_fields_of(&status).into_iter().chain(unmet).chain(considered).collect();
        Self { reason: reason_of(&status), metadata, named }
    }
}

/// A request of order-svc that buys or changes.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub by: usize,
    pub request_id: String,
    pub content: Content,
    pub validate_only: bool,
}

/// What a request id stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// Without request id and `validate_only`.
    Order(Box<CreateOrderRequest>),
    Change {
        subscription_id: String,
        etag: String,
        command: Command,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Placed(CreateOrderResponse),
    Changed(Option<Subscription>, Option<GateEvidence>),
}

/// Asks order-svc.
pub(super) async fn send(by: &As, call: &Call) -> Result<Answer, Status> {
    let (request_id, validate_only) = (call.request_id.clone(), call.validate_only);
    let (subscription_id, etag, command) = match &call.content {
        Content::Order(order) => {
            let request = CreateOrderRequest { request_id, validate_only, ..(**order).clone() };
            let placed = by.orders().create_order(request).await?.into_inner();
            return Ok(Answer::Placed(placed));
        }
        Content::Change { subscription_id, etag, command } => {
            (subscription_id.clone(), etag.clone(), *command)
        }
    };
    let mut service = by.subscriptions();
    let (subscription, gate) = match command {
        Command::Seats(quantity) => {
            let request = ChangeSeatsRequest {
                request_id,
                subscription_id,
                quantity,
                etag,
                validate_only,
                attestation: None,
            };
            let changed = service.change_seats(request).await?.into_inner();
            (changed.subscription, changed.gate)
        }
        Command::Renew => {
            let request = RenewSubscriptionRequest {
                request_id,
                subscription_id,
                etag,
                validate_only,
                attestation: None,
            };
            let changed = service.renew_subscription(request).await?.into_inner();
            (changed.subscription, changed.gate)
        }
        Command::AutoRenew(auto_renew) => {
            let request = SetAutoRenewRequest {
                request_id,
                subscription_id,
                auto_renew,
                etag,
                attestation: None,
                validate_only,
            };
            let changed = service.set_auto_renew(request).await?.into_inner();
            (changed.subscription, changed.gate)
        }
        Command::Suspend => {
            let request = SuspendSubscriptionRequest { request_id, subscription_id, etag, validate_only };
            (service.suspend_subscription(request).await?.into_inner().subscription, None)
        }
        Command::Resume => {
            let request = ResumeSubscriptionRequest { request_id, subscription_id, etag, validate_only };
            (service.resume_subscription(request).await?.into_inner().subscription, None)
        }
        Command::AssignReseller(some) => {
            let reseller_id = if some { PARTNERS[2].to_string() } else { String::new() };
            let request =
                AssignResellerRequest { request_id, subscription_id, etag, reseller_id, validate_only };
            (service.assign_reseller(request).await?.into_inner().subscription, None)
        }
        Command::Cancel => {
            let request = CancelSubscriptionRequest { request_id, subscription_id, etag, validate_only };
            (service.cancel_subscription(request).await?.into_inner().subscription, None)
        }
    };
    Ok(Answer::Changed(subscription, gate))
}
