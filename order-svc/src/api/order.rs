//! `OrderService`.

use std::mem::take;

use chassis::auth::{self, Caller};
use chassis::clock::new_id;
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::idempotency::IdempotencyKey;
use chassis::paging::filter_of;
use chassis::server::call;
use proto::order::order_service_server::OrderService;
use proto::order::{
    CreateOrderRequest, CreateOrderResponse, GetOrderRequest, GetOrderResponse, ListOrdersRequest,
    ListOrdersResponse,
};
use tonic::{Request, Response, Status};

use super::attestation::Carried;
use super::{
    Api, Attempt, Failure, Origin, checked, convert, optional_offer, status, viewer, without_effect,
};
use crate::agreements::attest::Attested;
use crate::agreements::gate::GateQuery;
use crate::rules::gate::{Answer, Operation};
use crate::rules::order::{Line, Order, Parties, Placing, check_lines, demands, parties, place};
use crate::rules::subscription::Subscription;
use crate::rules::{Refusal, Time};
use crate::store::Slice;
use crate::store::commit::{Basis, Effect};
use crate::store::fence::answer_void;
use crate::store::open::has_room;
use crate::store::order::{order_find, order_list};

/// Lines of one order.
const LINES_MAX: usize = 100;

#[tonic::async_trait]
impl OrderService for Api {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let origin = Origin::of(&request)?;
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &take(&mut message.request_id));
        let validate_only = take(&mut message.validate_only);
        let external_reference = optional_reference(&mut form, &message.external_reference);
        let parties = read_parties(&mut form, &origin.caller, &message);
        let lines = read_lines(&mut form, &message);
        let carried = Carried::read(&mut form, message.attestation.clone(), request_id, validate_only);
        let bad_lines = check_lines(&lines, &self.catalogue, None).err();
        // Beside other bad fields bad lines are named at once; alone they wait for the customer's
        // country, which is in the gate's answer.
        if let (false, Some(Refusal::Fields(bad))) = (form.is_valid(), &bad_lines) {
            for bad in bad {
                if !form.has_violation(&bad.field) {
                    form.violation(&bad.field, &bad.problem);
                }
            }
        }
        checked(form)?;
        let key = self.hasher.key(&origin.caller, "CreateOrder", request_id, &message);
        let key = (!validate_only).then_some(key);
        let new = NewOrder { parties, lines, bad_lines, carried, external_reference, origin };
        self.answer_once(key.as_ref(), || self.try_order(&new, key.as_ref())).await
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut form = Form::new();
        let id = form.id("order_id", &request.get_ref().order_id);
        checked(form)?;
        let viewer = viewer(&caller);
        let read = move |connection: &mut Connection| order_find(connection, viewer, id);
        let order = self.database.read(read).await.map_err(|error: Error| status::failed(&error))?;
        let unseen = || status::refused(&Refusal::NotFound { resource: "order", id: id.to_string() });
        let order = Some(convert::order(&order.ok_or_else(unseen)?, viewer));
        Ok(Response::new(GetOrderResponse { order }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let (caller, mut message, mut form) = call::open(request)?;
        let asked = (take(&mut message.page_size), take(&mut message.page_token));
        let asked = (asked.0, asked.1.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListOrders", &filter_of(&message));
        let external_reference = optional_reference(&mut form, &message.external_reference);
        let viewer = viewer(&caller);
        let slice = Slice {
            viewer,
            customer_id: form.optional_id("customer_id", &message.customer_id),
            offer_id: optional_offer(&mut form, &message.offer_id),
            from: form.optional_time("placed_from", message.placed_from.as_ref()),
            before: form.optional_time("placed_before", message.placed_before.as_ref()),
            newest_first: message.newest_first,
            after: page.after.clone(),
            limit: page.fetch(),
        };
        checked(form)?;
        let read =
            move |connection: &mut Connection| order_list(connection, &slice, external_reference.as_deref());
        let (rows, next_page_token) = self.list(page, read, |order| order.id.to_string()).await?;
        let orders = rows.iter().map(|order| convert::order(order, viewer)).collect();
        Ok(Response::new(ListOrdersResponse { orders, next_page_token }))
    }
}

/// An order that was asked for.
struct NewOrder {
    parties: Parties,
    lines: Vec<Line>,
    /// What is wrong with the lines whatever the gate answers (ORD-3).
    bad_lines: Option<Refusal>,
    /// To be made first (ORD-4). None is made for lines that are refused whatever the gate answers; the refusal
    /// waits for the customer's country in that answer.
    carried: Option<Carried>,
    external_reference: Option<String>,
    origin: Origin,
}

impl NewOrder {
    /// Why an order is refused about which the gate gave no answer. Lines that are bad whatever the answer
    /// are named instead: the client can act on that.
    fn without_answer(&self, refusal: Refusal) -> Refusal {
        self.bad_lines.clone().unwrap_or(refusal)
    }

    fn to_attest(&self) -> Option<&Carried> {
        self.carried.as_ref().filter(|_| self.bad_lines.is_none())
    }
}

impl Api {
    fn gate_query(&self, new: &NewOrder, at_least_revision: i64) -> GateQuery {
        GateQuery {
            parties: new.parties,
            operation: Operation::NewPurchase,
            demands: demands(&new.lines, &self.catalogue),
            at_least_revision,
            caller: new.origin.caller.clone(),
            call_id: new.origin.call_id.clone(),
        }
    }

    fn place(&self, new: &NewOrder, answer: &Answer) -> Result<(Order, Vec<Subscription>), Refusal> {
        let now: Time = self.clock.now();
        let placing = Placing {
            order_id: new_id(now),
            subscription_ids: new.lines.iter().map(|_| new_id(now)).collect(),
            by_tenant: new.origin.caller.tenant_id,
            by: new.origin.caller.user_id,
            now,
            external_reference: new.external_reference.clone(),
        };
        place(new.parties, new.lines.clone(), &self.catalogue, answer, placing)
    }

    /// One attempt: makes the attestation unless it is made, asks the gate, places and, with a key, stores.
    async fn try_order(
        &self,
        new: &NewOrder,
        key: Option<&IdempotencyKey>,
    ) -> Result<Attempt<CreateOrderResponse>, Failure> {
        let attested = self.attest(new.to_attest(), &new.origin, &new.parties).await?;
        let Some(key) = key else {
            return self.dry_order(new, attested).await;
        };
        let query = self.gate_query(new, attested.map_or(0, |attested| attested.revision));
        let answer = self.ask(&query, new.origin.time_left()).await;
        let answer = answer.map_err(|refusal| new.without_answer(refusal))?;
        let (order, subscriptions) = self.place(new, &answer)?;
        let response = response(new, &order, &subscriptions);
        let basis = Basis::Answer(Box::new((answer, order.approval.clone())));
        let effect = Effect::Order { order: order.into(), subscriptions, open_max: self.subscriptions_max };
        let attempt = self.store(key, new.parties.customer_id, basis, effect, response).await?;
        if let Attempt::Done(_) = attempt {
            self.orders.send_replace(());
        }
        Ok(attempt)
    }

    /// What the order would become; nothing is stored anywhere (ORD-5).
    async fn dry_order(
        &self,
        new: &NewOrder,
        assumed: Option<&Attested>,
    ) -> Result<Attempt<CreateOrderResponse>, Failure> {
        let dry_run = self.dry_run(&self.gate_query(new, 0), assumed, new.origin.time_left()).await;
        let dry_run = dry_run.map_err(|refusal| new.without_answer(refusal))?;
        let (order, subscriptions) = self.place(new, dry_run.answer())?;
        let (parties, more, open_max) = (new.parties, subscriptions.len(), self.subscriptions_max);
        let (revision, approval) = (dry_run.revision(), order.approval.clone());
        let read = move |connection: &mut Connection| {
            let void = answer_void(connection, parties.customer_id, revision, &approval)?;
            Ok::<_, Error>((void, has_room(connection, &parties, more, open_max)?))
        };
        match self.database.read(read).await? {
            (Some(void), _) => without_effect(parties.customer_id, void),
            (None, false) => Err(self.too_many_subscriptions(parties.customer_id).into()),
            (None, true) => Ok(Attempt::Done(response(new, &order, &subscriptions))),
        }
    }
}

fn response(new: &NewOrder, order: &Order, subscriptions: &[Subscription]) -> CreateOrderResponse {
    CreateOrderResponse {
        order: Some(convert::order(order, viewer(&new.origin.caller))),
        subscriptions: subscriptions.iter().map(convert::subscription).collect(),
    }
}

fn optional_reference(form: &mut Form, external_reference: &str) -> Option<String> {
    Some(form.text("external_reference", external_reference, 0, 80)).filter(|text| !text.is_empty())
}

fn read_parties(form: &mut Form, caller: &Caller, message: &CreateOrderRequest) -> Parties {
    let customer_id = form.id("customer_id", &message.customer_id);
    let payer_id = form.optional_id("payer_id", &message.payer_id);
    let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
    parties(caller.tenant_id, customer_id, payer_id, reseller_id).unwrap_or_else(|bad| {
        form.violation(bad.field, bad.problem);
        Parties { payer_id: caller.tenant_id, reseller_id: None, customer_id }
    })
}

fn read_lines(form: &mut Form, message: &CreateOrderRequest) -> Vec<Line> {
    if message.lines.is_empty() || message.lines.len() > LINES_MAX {
        form.violation("lines", format!("must have 1 to {LINES_MAX} entries"));
        return vec![];
    }
    let mut lines = vec![];
    for (n, line) in message.lines.iter().enumerate() {
        let offer_id = form.text(&format!("lines[{n}].offer_id"), &line.offer_id, 1, 100);
        let friendly_name = form.text(&format!("lines[{n}].friendly_name"), &line.friendly_name, 0, 200);
        lines.push(Line { offer_id, quantity: line.quantity, friendly_name });
    }
    lines
}
