//! `SubscriptionService`.

use std::time::Instant;

use chassis::auth::{self, Caller};
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::page::Page;
use chassis::request::RequestKey;
use chassis::server;
use prost::Message;
use proto::order::subscription_service_server::SubscriptionService;
use proto::order::{
    ChangeSeatsRequest, ChangeSeatsResponse, GetSubscriptionRequest, GetSubscriptionResponse,
    ListSubscriptionChangesRequest, ListSubscriptionChangesResponse, ListSubscriptionsRequest,
    ListSubscriptionsResponse,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, ROUNDS_MAX, checked, convert, replayed, status, viewer};
use crate::agreements::{Ask, Operation};
use crate::rules::Refusal;
use crate::rules::gate::{Answer, Permit};
use crate::rules::order::Parties;
use crate::rules::subscription::{Change, ChangeKind, SeatChange, Subscription};
use crate::store::Slice;
use crate::store::gated::{Stored, store_answer, store_gated};
use crate::store::subscription::{
    change_list, changes_insert, subscription_find, subscription_list, subscription_set_seats,
};

#[tonic::async_trait]
impl SubscriptionService for Api {
    async fn get_subscription(
        &self,
        request: Request<GetSubscriptionRequest>,
    ) -> Result<Response<GetSubscriptionResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut form = Form::new();
        let id = form.id("subscription_id", &request.get_ref().subscription_id);
        checked(form)?;
        let subscription = self.visible(&caller, id).await?;
        let subscription = Some(convert::subscription(&subscription));
        Ok(Response::new(GetSubscriptionResponse { subscription }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<ListSubscriptionsRequest>,
    ) -> Result<Response<ListSubscriptionsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let mut form = Form::new();
        let customer_id = form.optional_id("customer_id", &message.customer_id);
        let asked = (message.page_size, message.page_token.as_str());
        let page = Page::read(&mut form, asked, &caller, "ListSubscriptions", &message.customer_id);
        checked(form)?;
        let slice =
            Slice { viewer: viewer(&caller), customer_id, after: page.after.clone(), limit: page.fetch() };
        let list = move |connection: &mut Connection| subscription_list(connection, &slice);
        let mut rows = self.database.list(list).await.map_err(|error: Error| status::failed(&error))?;
        let next_page_token = page.cut(&mut rows, |subscription| subscription.id.to_string());
        let subscriptions = rows.iter().map(convert::subscription).collect();
        Ok(Response::new(ListSubscriptionsResponse { subscriptions, next_page_token }))
    }

    async fn list_subscription_changes(
        &self,
        request: Request<ListSubscriptionChangesRequest>,
    ) -> Result<Response<ListSubscriptionChangesResponse>, Status> {
        let caller = auth::caller(&request)?;
        let message = request.into_inner();
        let mut form = Form::new();
        let id = form.id("subscription_id", &message.subscription_id);
        let asked = (message.page_size, message.page_token.as_str());
        let page = Page::read(&mut form, asked, &caller, "ListSubscriptionChanges", &message.subscription_id);
        checked(form)?;
        self.visible(&caller, id).await?;
        let (after, limit) =
            (page.after.as_deref().and_then(|key| key.parse().ok()).unwrap_or(0), page.fetch());
        let list = move |connection: &mut Connection| change_list(connection, id, after, limit);
        let mut rows = self.database.list(list).await.map_err(|error: Error| status::failed(&error))?;
        let next_page_token = page.cut(&mut rows, |change| change.number.to_string());
        let changes = rows.iter().map(convert::change).collect();
        Ok(Response::new(ListSubscriptionChangesResponse { changes, next_page_token }))
    }

    async fn change_seats(
        &self,
        request: Request<ChangeSeatsRequest>,
    ) -> Result<Response<ChangeSeatsResponse>, Status> {
        let caller = auth::caller(&request)?;
        let call_id = server::call_id(&request);
        let give_up = Instant::now() + server::time_left(&request);
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let validate_only = std::mem::take(&mut message.validate_only);
        let id = form.id("subscription_id", &message.subscription_id);
        form.text("etag", &message.etag, 1, 50);
        if message.quantity == 0 {
            form.wrong("quantity", "must be at least 1; to have none, cancel the subscription");
        }
        checked(form)?;

        let key = RequestKey::new(&caller, "ChangeSeats", request_id, &message);
        let refused = |refusal: Refusal| status::refused(&refusal);
        for _ in 0..ROUNDS_MAX {
            if !validate_only && let Some(first) = self.replay(&key).await? {
                return Ok(first);
            }
            let known = self.visible(&caller, id).await?;
            let offer = self.catalogue.find(&known.offer_id);
            let change = known.check_seats(offer, &message.etag, message.quantity, self.clock.now());
            if change.map_err(refused)? == SeatChange::None {
                return self.answer_unchanged(key, &known, validate_only).await;
            }
            let ask = Ask {
                parties: Parties {
                    payer_id: known.payer_id,
                    reseller_id: known.reseller_id,
                    customer_id: known.customer_id,
                },
                operation: Operation::SeatChange,
                demands: offer
                    .map(|offer| offer.agreement_types.clone())
                    .filter(|types| !types.is_empty())
                    .into_iter()
                    .collect(),
                caller: caller.clone(),
                call_id: call_id.clone(),
            };
            let patience = give_up.saturating_duration_since(Instant::now());
            let answer = self.ask(&ask, patience).await.map_err(refused)?;
            let permit = answer.permit().map_err(refused)?.clone();
            let changed = known.with_seats(message.quantity, &permit);
            let response = ChangeSeatsResponse {
                subscription: Some(convert::subscription(&changed)),
                gate: Some(convert::permit(&permit)),
            };
            if validate_only {
                return Ok(Response::new(response));
            }
            let seats = Seats { known, changed, caller: caller.clone() };
            match self.store_seats(&key, (answer, permit), seats, &response).await {
                Ok(Stored::Done) => return Ok(Response::new(response)),
                Ok(Stored::LostRace) => return Err(refused(Refusal::StaleEtag)),
                Ok(Stored::Seen(seen)) => {
                    if let Some(first) = replayed(&key, seen)? {
                        return Ok(first);
                    }
                }
                Ok(Stored::AnswerOutdated) => {}
                Err(error) => return Err(status::failed(&error)),
            }
        }
        Err(refused(Refusal::AnswerOutdated))
    }
}

/// A change of seats that the gate allowed.
struct Seats {
    known: Subscription,
    changed: Subscription,
    caller: Caller,
}

impl Api {
    async fn visible(&self, caller: &Caller, id: Uuid) -> Result<Subscription, Status> {
        let viewer = viewer(caller);
        let read = move |connection: &mut Connection| subscription_find(connection, viewer, id);
        let subscription = self.database.read(read).await.map_err(|error: Error| status::failed(&error))?;
        let unseen = || Refusal::NotFound { resource: "subscription", id: id.to_string() };
        subscription.ok_or_else(|| status::refused(&unseen()))
    }

    /// The count is what it was: a success without effect, remembered like any other.
    async fn answer_unchanged(
        &self,
        key: RequestKey,
        known: &Subscription,
        validate_only: bool,
    ) -> Result<Response<ChangeSeatsResponse>, Status> {
        let response = ChangeSeatsResponse { subscription: Some(convert::subscription(known)), gate: None };
        if validate_only {
            return Ok(Response::new(response));
        }
        let stored = store_answer(&self.database, &self.clock, key.clone(), response.encode_to_vec()).await;
        let first = replayed(&key, stored.map_err(|error| status::failed(&error))?)?;
        Ok(first.unwrap_or_else(|| Response::new(response)))
    }

    async fn store_seats(
        &self,
        key: &RequestKey,
        basis: (Answer, Permit),
        seats: Seats,
        response: &ChangeSeatsResponse,
    ) -> Result<Stored, Error> {
        let now = self.clock.now();
        let permit = basis.1.clone();
        let effect = move |connection: &mut Connection| {
            let Seats { known, changed, caller } = seats;
            if !subscription_set_seats(connection, &changed, known.version)? {
                return Ok(false);
            }
            let change = Change {
                number: changed.version,
                kind: ChangeKind::SeatsChanged,
                changed_at: now,
                actor_tenant: caller.tenant_id,
                actor: caller.user_id,
                quantity_before: known.quantity,
                quantity_after: changed.quantity,
                permit,
            };
            changes_insert(connection, &[(changed.id, change)])?;
            Ok(true)
        };
        let response = response.encode_to_vec();
        store_gated(&self.database, &self.clock, key.clone(), basis, response, effect).await
    }
}
