//! `SubscriptionService`.

use std::mem::take;

use chassis::auth::{self, Caller, Channel};
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::idempotency::IdempotencyKey;
use chassis::paging::{Page, filter_of};
use chassis::server::call;
use chassis::status::too_many_streams;
use prost::Message;
use proto::order::subscription_service_server::SubscriptionService;
use proto::order::{
    self as wire, AssignResellerRequest, AssignResellerResponse, CancelSubscriptionRequest,
    CancelSubscriptionResponse, ChangeSeatsRequest, ChangeSeatsResponse, GetSubscriptionRequest,
    GetSubscriptionResponse, InlineAttestation, ListSubscriptionChangesRequest,
    ListSubscriptionChangesResponse, ListSubscriptionsRequest, ListSubscriptionsResponse,
    RenewSubscriptionRequest, RenewSubscriptionResponse, ResumeSubscriptionRequest,
    ResumeSubscriptionResponse, SetAutoRenewRequest, SetAutoRenewResponse, SuspendSubscriptionRequest,
    SuspendSubscriptionResponse,
};
use proto::types::GateEvidence;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::attestation::Carried;
use super::{
    Api, Attempt, Failure, Origin, checked, convert, optional_offer, status, viewer, without_effect,
};
use crate::agreements::attest::{Attested, is_of_unseen_customer};
use crate::agreements::gate::{GateError, GateQuery};
use crate::agreements::renewal::QUERIES_MAX;
use crate::rules::Refusal;
use crate::rules::gate::{Approval, Operation};
use crate::rules::offer::Offer;
use crate::rules::relationship::{Needed, not_related, parties_for, relationship_needed};
use crate::rules::subscription::{Cause, Command, Planned, Subscription};
use crate::store::Slice;
use crate::store::commit::{Basis, Effect};
use crate::store::fence::answer_void;
use crate::store::relationship::relationships_of;
use crate::store::subscription::{Wanted, change_list, subscription_find, subscription_list};
use crate::store::update::Update;

/// How often the gate is asked for one page of the subscriptions with outdated acceptances.
const BATCHES_MAX: usize = 5;

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
        let origin = Origin::of(&request)?;
        let (caller, mut message, mut form) = call::open(request)?;
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListSubscriptions", &filter_of(&message));
        let slice = Slice {
            viewer: viewer(&caller),
            customer_id: form.optional_id("customer_id", &message.customer_id),
            offer_id: optional_offer(&mut form, &message.offer_id),
            from: form.optional_time("started_from", message.started_from.as_ref()),
            before: form.optional_time("started_before", message.started_before.as_ref()),
            newest_first: message.newest_first,
            after: page.after.clone(),
            limit: page.fetch(),
        };
        let state = match message.state {
            0 => None,
            given => convert::read_state(&mut form, "state", given),
        };
        let ends_before = form.optional_time("ends_before", message.ends_before.as_ref());
        checked(form)?;
        let wanted = Wanted { slice, state, ends_before, has_term: message.acceptance_outdated };
        let (rows, next_page_token) = match message.acceptance_outdated {
            true => self.list_outdated(page, wanted, &origin).await?,
            false => {
                let read = move |connection: &mut Connection| subscription_list(connection, &wanted);
                self.list(page, read, |subscription| subscription.id.to_string()).await?
            }
        };
        let subscriptions = rows.iter().map(convert::subscription).collect();
        Ok(Response::new(ListSubscriptionsResponse { subscriptions, next_page_token }))
    }

    async fn list_subscription_changes(
        &self,
        request: Request<ListSubscriptionChangesRequest>,
    ) -> Result<Response<ListSubscriptionChangesResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let id = form.id("subscription_id", &message.subscription_id);
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page =
            self.pages.read(&mut form, asked, &caller, "ListSubscriptionChanges", &filter_of(&message));
        checked(form)?;
        if let Err(failure) = self.visible(&caller, id).await {
            return self.fail(failure, None).await;
        }
        let newest_first = message.newest_first;
        let from = if newest_first { page.before_number() } else { page.after_number() };
        let limit = page.fetch();
        let read = move |connection: &mut Connection| change_list(connection, id, newest_first, from, limit);
        let (rows, next_page_token) = self.list(page, read, |change| change.number.to_string()).await?;
        let changes = rows.iter().map(convert::change).collect();
        Ok(Response::new(ListSubscriptionChangesResponse { changes, next_page_token }))
    }

    async fn change_seats(
        &self,
        request: Request<ChangeSeatsRequest>,
    ) -> Result<Response<ChangeSeatsResponse>, Status> {
        let asked = self.read("ChangeSeats", request, |form, message| {
            if message.quantity == 0 {
                form.violation("quantity", "must be at least 1; to have none, cancel the subscription");
            }
            Fields {
                request_id: take(&mut message.request_id),
                validate_only: take(&mut message.validate_only),
                subscription_id: message.subscription_id.clone(),
                etag: message.etag.clone(),
                command: Command::Seats(message.quantity),
                attestation: message.attestation.clone(),
            }
        })?;
        let answer = |subscription, gate| ChangeSeatsResponse { subscription: Some(subscription), gate };
        self.change(asked, answer).await
    }

    async fn renew_subscription(
        &self,
        request: Request<RenewSubscriptionRequest>,
    ) -> Result<Response<RenewSubscriptionResponse>, Status> {
        let asked = self.read("RenewSubscription", request, |_, message| Fields {
            request_id: take(&mut message.request_id),
            validate_only: take(&mut message.validate_only),
            subscription_id: message.subscription_id.clone(),
            etag: message.etag.clone(),
            command: Command::Renew,
            attestation: message.attestation.clone(),
        })?;
        let answer =
            |subscription, gate| RenewSubscriptionResponse { subscription: Some(subscription), gate };
        self.change(asked, answer).await
    }

    async fn set_auto_renew(
        &self,
        request: Request<SetAutoRenewRequest>,
    ) -> Result<Response<SetAutoRenewResponse>, Status> {
        let asked = self.read("SetAutoRenew", request, |form, message| {
            // What is attested is never left out of what a call does, so it is refused where it is no use.
            if !message.auto_renew && message.attestation.is_some() {
                form.violation(
                    "attestation",
                    "must be absent: to switch automatic renewal off needs no acceptance",
                );
            }
            Fields {
                request_id: take(&mut message.request_id),
                validate_only: take(&mut message.validate_only),
                subscription_id: message.subscription_id.clone(),
                etag: message.etag.clone(),
                command: Command::AutoRenew(message.auto_renew),
                attestation: message.attestation.clone().filter(|_| message.auto_renew),
            }
        })?;
        let answer = |subscription, gate| SetAutoRenewResponse { subscription: Some(subscription), gate };
        self.change(asked, answer).await
    }

    async fn suspend_subscription(
        &self,
        request: Request<SuspendSubscriptionRequest>,
    ) -> Result<Response<SuspendSubscriptionResponse>, Status> {
        let asked = self.read("SuspendSubscription", request, |_, message| Fields {
            request_id: take(&mut message.request_id),
            validate_only: take(&mut message.validate_only),
            subscription_id: message.subscription_id.clone(),
            etag: message.etag.clone(),
            command: Command::Suspend,
            attestation: None,
        })?;
        let answer = |subscription, _| SuspendSubscriptionResponse { subscription: Some(subscription) };
        self.change(asked, answer).await
    }

    async fn resume_subscription(
        &self,
        request: Request<ResumeSubscriptionRequest>,
    ) -> Result<Response<ResumeSubscriptionResponse>, Status> {
        let asked = self.read("ResumeSubscription", request, |_, message| Fields {
            request_id: take(&mut message.request_id),
            validate_only: take(&mut message.validate_only),
            subscription_id: message.subscription_id.clone(),
            etag: message.etag.clone(),
            command: Command::Resume,
            attestation: None,
        })?;
        let answer = |subscription, _| ResumeSubscriptionResponse { subscription: Some(subscription) };
        self.change(asked, answer).await
    }

    async fn cancel_subscription(
        &self,
        request: Request<CancelSubscriptionRequest>,
    ) -> Result<Response<CancelSubscriptionResponse>, Status> {
        let asked = self.read("CancelSubscription", request, |_, message| Fields {
            request_id: take(&mut message.request_id),
            validate_only: take(&mut message.validate_only),
            subscription_id: message.subscription_id.clone(),
            etag: message.etag.clone(),
            command: Command::Cancel,
            attestation: None,
        })?;
        let answer = |subscription, _| CancelSubscriptionResponse { subscription: Some(subscription) };
        self.change(asked, answer).await
    }

    async fn assign_reseller(
        &self,
        request: Request<AssignResellerRequest>,
    ) -> Result<Response<AssignResellerResponse>, Status> {
        let asked = self.read("AssignReseller", request, |form, message| Fields {
            request_id: take(&mut message.request_id),
            validate_only: take(&mut message.validate_only),
            subscription_id: message.subscription_id.clone(),
            etag: message.etag.clone(),
            command: Command::AssignReseller(form.optional_id("reseller_id", &message.reseller_id)),
            attestation: None,
        })?;
        let answer = |subscription, _| AssignResellerResponse { subscription: Some(subscription) };
        self.change(asked, answer).await
    }
}

/// The fields that every change has. The request id and `validate_only` are taken out of the message,
/// so that what is left is the request's content.
struct Fields {
    request_id: String,
    validate_only: bool,
    subscription_id: String,
    etag: String,
    command: Command,
    attestation: Option<InlineAttestation>,
}

/// A change that was asked for.
struct SubscriptionCall {
    id: Uuid,
    etag: String,
    command: Command,
    /// To be made before the gate is asked (SUB-8).
    carried: Option<Carried>,
    origin: Origin,
    /// Absent when it is only to be validated.
    key: Option<IdempotencyKey>,
}

impl SubscriptionCall {
    /// Asks whether a relationship is active, whatever the gate says of buying.
    fn relationship_query(&self, known: &Subscription, needed: Needed) -> GateQuery {
        let mut query = self.gate_query(known, Operation::SeatChange, None, 0);
        query.parties.reseller_id = match needed {
            Needed::Any => None,
            Needed::WithReseller(reseller) => Some(reseller),
        };
        query
    }

    /// What the gate is asked about it.
    fn gate_query(
        &self,
        known: &Subscription,
        operation: Operation,
        offer: Option<&Offer>,
        at_least_revision: i64,
    ) -> GateQuery {
        let Origin { caller, call_id, .. } = &self.origin;
        let query = GateQuery::of_subscription(known, operation, offer, caller.clone(), call_id.clone());
        GateQuery { at_least_revision, ..query }
    }
}

impl Api {
    /// Reads a change that is asked for.
    fn read<M: Message>(
        &self,
        call: &'static str,
        request: Request<M>,
        fields: impl FnOnce(&mut Form, &mut M) -> Fields,
    ) -> Result<SubscriptionCall, Status> {
        let origin = Origin::of(&request)?;
        let mut message = request.into_inner();
        let mut form = Form::new();
        let Fields { request_id, validate_only, subscription_id, etag, command, attestation } =
            fields(&mut form, &mut message);
        let request_id = form.id("request_id", &request_id);
        let id = form.id("subscription_id", &subscription_id);
        form.text("etag", &etag, 1, 50);
        let carried = Carried::read(&mut form, attestation, request_id, validate_only);
        checked(form)?;
        let key = self.hasher.key(&origin.caller, call, request_id, &message);
        let key = (!validate_only).then_some(key);
        Ok(SubscriptionCall { id, etag, command, carried, origin, key })
    }

    /// A page of the subscriptions whose renewal the gate would refuse to a user (SUB-10), and the token of the next one.
    async fn list_outdated(
        &self,
        page: Page,
        mut wanted: Wanted,
        origin: &Origin,
    ) -> Result<(Vec<Subscription>, String), Status> {
        let full = |full| too_many_streams(status::DOMAIN, "lists of outdated acceptances", full);
        let _permit = self.outdated_lists.try_acquire(origin.caller.tenant()).map_err(full)?;
        self.check_history(origin.time_left()).await.map_err(|refusal| status::refused(&refusal))?;
        wanted.slice.limit = i64::try_from(QUERIES_MAX).unwrap_or(i64::MAX);
        let mut found = vec![];
        for batch in 0..BATCHES_MAX {
            let slice = wanted.clone();
            let read = move |connection: &mut Connection| subscription_list(connection, &slice);
            let rows: Vec<Subscription> =
                self.database.list(read).await.map_err(|error: Error| status::failed(&error))?;
            let is_last = rows.len() < QUERIES_MAX;
            // On the stricter channel, as for a renewal.
            let caller = |_: &Subscription| Caller { channel: Channel::Dashboard, ..origin.caller.clone() };
            let time_left = origin.time_left();
            let asked = self.agreements.are_acceptances_outdated(
                &rows,
                &self.catalogue,
                caller,
                &origin.call_id,
                time_left,
            );
            let outdated = match asked.await {
                Ok(outdated) => outdated,
                Err(why) => {
                    tracing::warn!(why, "the gate gave no answer");
                    // The next page goes on from what was found before.
                    return match batch {
                        0 => Err(status::refused(&Refusal::GateUnavailable)),
                        _ => Ok((found, page.token(&wanted.slice.after.unwrap_or_default()))),
                    };
                }
            };
            for (row, is_outdated) in rows.into_iter().zip(outdated) {
                let is_outdated = is_outdated.map_err(|why| {
                    tracing::warn!(why, subscription = %row.id, "the gate gave no answer");
                    status::refused(&Refusal::GateUnavailable)
                })?;
                let is_outdated = is_outdated.unwrap_or(false);
                if is_outdated && found.len() == page.size {
                    return Ok((found, page.token(&wanted.slice.after.unwrap_or_default())));
                }
                wanted.slice.after = Some(row.id.to_string());
                found.extend(is_outdated.then_some(row));
            }
            if is_last {
                return Ok((found, String::new()));
            }
        }
        Ok((found, page.token(&wanted.slice.after.unwrap_or_default())))
    }

    async fn visible(&self, caller: &Caller, id: Uuid) -> Result<Subscription, Failure> {
        let viewer = viewer(caller);
        let read = move |connection: &mut Connection| subscription_find(connection, viewer, id);
        let subscription = self.database.read(read).await?;
        let unseen = || Refusal::NotFound { resource: "subscription", id: id.to_string() };
        Ok(subscription.ok_or_else(unseen)?)
    }

    /// Refuses what the caller may not do with a subscription that it sees (ROLE-6), and says which relationship it needs
    /// for the rest.
    async fn check_may_act(
        &self,
        asked: &SubscriptionCall,
        known: &Subscription,
    ) -> Result<Option<Needed>, Failure> {
        let Some(needed) = relationship_needed(asked.origin.caller.tenant_id, known, asked.command)? else {
            return Ok(None);
        };
        let (customer, payer) = (known.customer_id, known.payer_id);
        let read = move |connection: &mut Connection| relationships_of(connection, customer, payer);
        let relationships = self.database.read(read).await?.ok_or(Refusal::HistoryBehind)?;
        if needed.is_met_by(&relationships) {
            return Ok(Some(needed));
        }
        // What agreement-svc has just stored may not have been applied here.
        let query = asked.relationship_query(known, needed);
        match self.agreements.check(&query, asked.origin.time_left()).await {
            Err(GateError::NoActiveRelationship(_) | GateError::PayerIsReseller) => {
                Err(not_related(known, asked.command).into())
            }
            Ok(answer) if needed.has_lost_end(&relationships, answer.revision) => {
                Err(Refusal::WithdrawalLost { customer_id: customer, acceptance_id: None }.into())
            }
            Ok(_) => Err(Refusal::HistoryBehind.into()),
            Err(GateError::Unknown(why)) => {
                tracing::warn!(why, "the gate gave no answer");
                Err(Refusal::HistoryBehind.into())
            }
        }
    }

    /// Does what was asked, under its request id; `answer` makes the call's response of the
    /// subscription as it is then and the gate's answer.
    async fn change<A: Message + Default>(
        &self,
        asked: SubscriptionCall,
        answer: impl Fn(wire::Subscription, Option<GateEvidence>) -> A + Send + Sync,
    ) -> Result<Response<A>, Status> {
        self.answer_once(asked.key.as_ref(), || self.try_change(&asked, &answer)).await
    }

    /// One attempt: plans, makes the attestation unless it is made, asks the gate where the change is gated and, with
    /// a key, stores.
    async fn try_change<A: Message>(
        &self,
        asked: &SubscriptionCall,
        answer: &(impl Fn(wire::Subscription, Option<GateEvidence>) -> A + Sync),
    ) -> Result<Attempt<A>, Failure> {
        let known = self.visible(&asked.origin.caller, asked.id).await?;
        let needed = self.check_may_act(asked, &known).await?;
        let offer = self.catalogue.find(&known.offer_id);
        let (step, operation) = match known.plan(asked.command, &asked.etag, offer, self.clock.now())? {
            Planned::Nothing => (None, None),
            Planned::Free(step) => (Some(step), None),
            Planned::Gated(step, operation) => (Some(step), Some(operation)),
        };
        let attested = self
            .attest(
                asked.carried.as_ref(),
                &asked.origin,
                &parties_for(asked.origin.caller.tenant_id, &known),
            )
            .await;
        let attested = attested.map_err(|failure| not_attested(failure, &known))?;
        let after = step.as_ref().map_or(&known, |step| &step.after);
        let response = |approval: Option<&Approval>| {
            answer(convert::subscription(after), approval.map(convert::approval))
        };
        let Some(key) = &asked.key else {
            let query = operation.map(|operation| asked.gate_query(&known, operation, offer, 0));
            return self.dry_change(asked, &known, query, attested, response).await;
        };
        let basis = match operation {
            // Where it is so already, only the answer is stored.
            None => match needed.filter(|_| step.is_some()) {
                Some(needed) => Basis::Relationship { payer_id: known.payer_id, needed },
                None => Basis::Nothing,
            },
            Some(operation) => {
                let at_least_revision = attested.map_or(0, |attested| attested.revision);
                let query = asked.gate_query(&known, operation, offer, at_least_revision);
                let answer = self.ask(&query, asked.origin.time_left()).await;
                let answer = answer.map_err(|refusal| has_ended(refusal, &known))?;
                let approval = answer.approval()?.clone();
                Basis::Answer(Box::new((answer, approval)))
            }
        };
        let approval = match &basis {
            Basis::Answer(basis) => Some(basis.1.clone()),
            Basis::Relationship { .. } | Basis::Nothing => None,
        };
        let response = response(approval.as_ref());

        let cause = Cause::Requested {
            tenant_id: asked.origin.caller.tenant_id,
            user_id: asked.origin.caller.user_id,
        };
        let now = self.clock.now();
        let effect = match step {
            None => Effect::Nothing,
            Some(step) => {
                let step = match &approval {
                    Some(approval) => step.with_approval(approval),
                    None => step,
                };
                let change = step.change(known.quantity, cause, approval, now);
                let update = Update { after: step.after, version: known.version, changes: vec![change] };
                Effect::Change(update.into())
            }
        };
        self.store(key, known.customer_id, basis, effect, response).await
    }

    /// What the change would come to; nothing is stored anywhere (ORD-5).
    async fn dry_change<A>(
        &self,
        asked: &SubscriptionCall,
        known: &Subscription,
        query: Option<GateQuery>,
        assumed: Option<&Attested>,
        response: impl Fn(Option<&Approval>) -> A,
    ) -> Result<Attempt<A>, Failure> {
        let Some(query) = query else { return Ok(Attempt::Done(response(None))) };
        let dry_run = self.dry_run(&query, assumed, asked.origin.time_left()).await;
        let dry_run = dry_run.map_err(|refusal| has_ended(refusal, known))?;
        let approval = dry_run.answer().approval()?;
        let (customer, revision, basis) = (known.customer_id, dry_run.revision(), approval.clone());
        let read = move |connection: &mut Connection| answer_void(connection, customer, revision, &basis);
        match self.database.read(read).await? {
            Some(void) => without_effect(customer, void),
            None => Ok(Attempt::Done(response(Some(approval)))),
        }
    }
}

/// Why a change is refused whose attestation was: where agreement-svc finds no customer, the relationship has ended
/// (ROLE-6).
fn not_attested(failure: Failure, known: &Subscription) -> Failure {
    match failure {
        Failure::NotAttested { refused, .. } if is_of_unseen_customer(&refused) => {
            relationship_ended(known).into()
        }
        other => other,
    }
}

/// The parties on record of a subscription had a relationship: where the gate finds none, it has ended (ROLE-6).
fn has_ended(refusal: Refusal, known: &Subscription) -> Refusal {
    match refusal {
        Refusal::NotFound { .. } | Refusal::NotTogether { .. } => relationship_ended(known),
        other => other,
    }
}

fn relationship_ended(known: &Subscription) -> Refusal {
    Refusal::RelationshipEnded { customer_id: known.customer_id, payer_id: known.payer_id }
}
