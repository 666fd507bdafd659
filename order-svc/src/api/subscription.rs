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

use super::{Api, Failure, ROUNDS_MAX, Round, checked, convert, status, time_until, viewer};
use crate::agreements::{Ask, Operation};
use crate::rules::Refusal;
use crate::rules::offer::Offer;
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
        let subscription = match self.visible(&caller, id).await {
            Ok(subscription) => subscription,
            Err(failure) => return self.fail(failure, None).await,
        };
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
        if let Err(failure) = self.visible(&caller, id).await {
            return self.fail(failure, None).await;
        }
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
        let key = (!validate_only).then_some(key);
        let new = NewSeats { id, quantity: message.quantity, etag: message.etag, caller, call_id };

        let mut last = Refusal::GateUnavailable;
        for _ in 0..ROUNDS_MAX {
            if let Some(first) = self.replay(key.as_ref()).await? {
                return Ok(first);
            }
            match self.try_seats(&new, key.as_ref(), give_up).await {
                Ok(Round::Done(changed)) => return Ok(Response::new(changed)),
                Ok(Round::Again(refusal)) => last = refusal,
                Err(failure) => return self.fail(failure, key.as_ref()).await,
            }
        }
        self.fail(last.into(), key.as_ref()).await
    }
}

/// A number of seats that was asked for.
struct NewSeats {
    id: Uuid,
    quantity: u32,
    etag: String,
    caller: Caller,
    call_id: String,
}

impl Api {
    async fn visible(&self, caller: &Caller, id: Uuid) -> Result<Subscription, Failure> {
        let viewer = viewer(caller);
        let read = move |connection: &mut Connection| subscription_find(connection, viewer, id);
        let subscription = self.database.read(read).await?;
        let unseen = || Refusal::NotFound { resource: "subscription", id: id.to_string() };
        Ok(subscription.ok_or_else(unseen)?)
    }

    /// One round: asks, changes and, with a key, stores.
    async fn try_seats(
        &self,
        new: &NewSeats,
        key: Option<&RequestKey>,
        give_up: Instant,
    ) -> Result<Round<ChangeSeatsResponse>, Failure> {
        let known = self.visible(&new.caller, new.id).await?;
        let offer = self.catalogue.find(&known.offer_id);
        if known.check_seats(offer, &new.etag, new.quantity, self.clock.now())? == SeatChange::None {
            let response =
                ChangeSeatsResponse { subscription: Some(convert::subscription(&known)), gate: None };
            let Some(key) = key else { return Ok(Round::Done(response)) };
            let encoded = response.encode_to_vec();
            let is_first = store_answer(&self.database, &self.clock, key.clone(), encoded).await?;
            return Ok(match is_first {
                true => Round::Done(response),
                false => Round::Again(Refusal::AnswerOutdated),
            });
        }

        let answer = self.ask(&question(new, &known, offer), time_until(give_up)).await?;
        let permit = answer.permit()?.clone();
        let changed = known.with_seats(new.quantity, &permit);
        let response = ChangeSeatsResponse {
            subscription: Some(convert::subscription(&changed)),
            gate: Some(convert::permit(&permit)),
        };
        let Some(key) = key else { return Ok(Round::Done(response)) };

        let change = Change {
            number: changed.version,
            kind: ChangeKind::SeatsChanged,
            changed_at: self.clock.now(),
            actor_tenant: new.caller.tenant_id,
            actor: new.caller.user_id,
            quantity_before: known.quantity,
            quantity_after: changed.quantity,
            permit: permit.clone(),
        };
        let effect = move |connection: &mut Connection| {
            let is_as_read = subscription_set_seats(connection, &changed, known.version)?;
            if is_as_read {
                changes_insert(connection, &[(changed.id, change)])?;
            }
            Ok(is_as_read)
        };
        let encoded = response.encode_to_vec();
        match store_gated(&self.database, &self.clock, key.clone(), (answer, permit), encoded, effect).await?
        {
            Stored::Done => Ok(Round::Done(response)),
            Stored::LostRace => Err(Refusal::StaleEtag.into()),
            Stored::SeenBefore | Stored::AnswerOutdated => Ok(Round::Again(Refusal::AnswerOutdated)),
            Stored::AnswerStale => Ok(Round::Again(Refusal::GateUnavailable)),
        }
    }
}

/// What the gate is asked about a change of seats.
fn question(new: &NewSeats, known: &Subscription, offer: Option<&Offer>) -> Ask {
    let demanded = offer.map(|offer| offer.agreement_types.clone()).filter(|types| !types.is_empty());
    Ask {
        parties: Parties {
            payer_id: known.payer_id,
            reseller_id: known.reseller_id,
            customer_id: known.customer_id,
        },
        operation: Operation::SeatChange,
        demands: demanded.into_iter().collect(),
        caller: new.caller.clone(),
        call_id: new.call_id.clone(),
    }
}
