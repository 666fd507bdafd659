//! `OrderService`.

use std::time::Instant;

use chassis::auth::{self, Caller, Credentials};
use chassis::clock::new_id;
use chassis::database::{Connection, Error};
use chassis::form::Form;
use chassis::idempotency::IdempotencyKey;
use chassis::server::call::{self, call_id};
use chassis::server::deadline::time_left;
use prost::Message;
use proto::order::order_service_server::OrderService;
use proto::order::{
    CreateOrderRequest, CreateOrderResponse, GetOrderRequest, GetOrderResponse, ListOrdersRequest,
    ListOrdersResponse,
};
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    Api, Attempt, Failure, checked, convert, status, time_until, unanswered, viewer, without_effect,
};
use crate::agreements::attest::{AttestationQuery, Attested, NotAttested};
use crate::agreements::gate::GateQuery;
use crate::rules::gate::{Answer, Operation};
use crate::rules::order::{Line, Order, Parties, Placing, check_lines, demands, parties, place};
use crate::rules::relationship::Needed;
use crate::rules::subscription::Subscription;
use crate::rules::{Refusal, Time};
use crate::store::Slice;
use crate::store::commit::{answer_void, has_room};
use crate::store::order::{order_find, order_list};
use crate::store::placement::{Placed, Placement};
use crate::store::relationship::relationships_of;

/// Lines of one order.
const LINES_MAX: usize = 100;

#[tonic::async_trait]
impl OrderService for Api {
    async fn create_order(
        &self,
        request: Request<CreateOrderRequest>,
    ) -> Result<Response<CreateOrderResponse>, Status> {
        let caller = auth::caller(&request)?;
        let credentials = auth::credentials(&request)?;
        let call_id = call_id(&request);
        let deadline = Instant::now() + time_left(&request);
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let validate_only = std::mem::take(&mut message.validate_only);
        let parties = read_parties(&mut form, &caller, &message);
        let lines = read_lines(&mut form, &message);
        let template_id = read_attestation(&mut form, &message);
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
        let key = self.hasher.key(&caller, "CreateOrder", request_id, &message);
        let key = (!validate_only).then_some(key);
        let attestation = message.attestation.map(|attestation| AttestationQuery {
            order_request_id: request_id,
            hasher: self.hasher.clone(),
            customer_id: parties.customer_id,
            template_id,
            contact: attestation.contact,
            agreed_at: attestation.agreed_at,
            validate_only,
        });
        let new = NewOrder { parties, lines, bad_lines, attestation, caller, credentials, call_id, deadline };
        // Once a call: all attempts ask the gate about the same attestation.
        let attested = OnceCell::new();
        self.answer_once(key.as_ref(), || self.try_order(&new, &attested, key.as_ref())).await
    }

    async fn get_order(
        &self,
        request: Request<GetOrderRequest>,
    ) -> Result<Response<GetOrderResponse>, Status> {
        let caller = auth::caller(&request)?;
        let mut form = Form::new();
        let id = form.id("order_id", &request.get_ref().order_id);
        checked(form)?;
        let read = move |connection: &mut Connection| order_find(connection, viewer(&caller), id);
        let order = self.database.read(read).await.map_err(|error: Error| status::failed(&error))?;
        let unseen = || status::refused(&Refusal::NotFound { resource: "order", id: id.to_string() });
        let order = Some(convert::order(&order.ok_or_else(unseen)?));
        Ok(Response::new(GetOrderResponse { order }))
    }

    async fn list_orders(
        &self,
        request: Request<ListOrdersRequest>,
    ) -> Result<Response<ListOrdersResponse>, Status> {
        let (caller, message, mut form) = call::open(request)?;
        let customer_id = form.optional_id("customer_id", &message.customer_id);
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListOrders", &message.customer_id);
        checked(form)?;
        let slice =
            Slice { viewer: viewer(&caller), customer_id, after: page.after.clone(), limit: page.fetch() };
        let read = move |connection: &mut Connection| order_list(connection, &slice);
        let (rows, next_page_token) = self.list(page, read, |order| order.id.to_string()).await?;
        let orders = rows.iter().map(convert::order).collect();
        Ok(Response::new(ListOrdersResponse { orders, next_page_token }))
    }
}

/// An order that was asked for.
struct NewOrder {
    parties: Parties,
    lines: Vec<Line>,
    /// What is wrong with the lines whatever the gate answers (ORD-3).
    bad_lines: Option<Refusal>,
    /// To be made first (ORD-4).
    attestation: Option<AttestationQuery>,
    caller: Caller,
    /// For the attestation, which is the caller's own.
    credentials: Credentials,
    call_id: String,
    /// The caller's deadline.
    deadline: Instant,
}

impl NewOrder {
    /// Why an order is refused about which the gate gave no answer. Lines that are bad whatever the answer
    /// are named instead: the client can act on that.
    fn without_answer(&self, refusal: Refusal) -> Refusal {
        self.bad_lines.clone().unwrap_or(refusal)
    }
}

impl Api {
    /// Makes the attestation that an order carries, if it carries one. None is made for lines that are
    /// refused whatever the gate answers; the refusal waits for the customer's country in that answer.
    async fn attest(&self, new: &NewOrder) -> Result<Option<Attested>, Failure> {
        let Some(attestation) = &new.attestation else { return Ok(None) };
        if new.bad_lines.is_some() {
            return Ok(None);
        }
        let time_left = time_until(new.deadline);
        let (caller, credentials) = (&new.caller, &new.credentials);
        let attested =
            self.agreements.attest(attestation, caller, credentials, &new.call_id, time_left).await;
        match attested {
            Ok(attested) => Ok(attested),
            Err(NotAttested::Refused(refused)) => {
                let payer_id = self.payer_of_reseller(&new.parties).await?;
                Err(Failure::NotAttested { refused, payer_id })
            }
            Err(NotAttested::Unknown(why)) => {
                tracing::warn!(why, "whether the attestation was stored is not known");
                Err(Refusal::GateUnavailable.into())
            }
        }
    }

    /// The payer of a reseller's order, if the reseller serves the customer through it. agreement-svc does not know which
    /// of its providers it orders through.
    async fn payer_of_reseller(&self, parties: &Parties) -> Result<Option<Uuid>, Error> {
        let Parties { payer_id, reseller_id: Some(reseller), customer_id } = *parties else {
            return Ok(None);
        };
        let read = move |connection: &mut Connection| relationships_of(connection, customer_id, payer_id);
        let known = self.database.read(read).await?;
        Ok(known.is_some_and(|known| Needed::WithReseller(reseller).is_met_by(&known)).then_some(payer_id))
    }

    fn gate_query(&self, new: &NewOrder, at_least_revision: i64) -> GateQuery {
        GateQuery {
            parties: new.parties,
            operation: Operation::NewPurchase,
            demands: demands(&new.lines, &self.catalogue),
            at_least_revision,
            caller: new.caller.clone(),
            call_id: new.call_id.clone(),
        }
    }

    fn place(&self, new: &NewOrder, answer: &Answer) -> Result<(Order, Vec<Subscription>), Refusal> {
        let now: Time = self.clock.now();
        let placing = Placing {
            order_id: new_id(now),
            subscription_ids: new.lines.iter().map(|_| new_id(now)).collect(),
            by_tenant: new.caller.tenant_id,
            by: new.caller.user_id,
            now,
        };
        place(new.parties, new.lines.clone(), &self.catalogue, answer, placing)
    }

    fn too_many_subscriptions(&self, new: &NewOrder) -> Refusal {
        let customer_id = new.parties.customer_id;
        Refusal::TooManySubscriptions { customer_id, max: self.subscriptions_max }
    }

    /// One attempt: makes the attestation unless it is made, asks the gate, places and, with a key, stores.
    async fn try_order(
        &self,
        new: &NewOrder,
        attested: &OnceCell<Option<Attested>>,
        key: Option<&IdempotencyKey>,
    ) -> Result<Attempt<CreateOrderResponse>, Failure> {
        let attested = attested.get_or_try_init(|| self.attest(new)).await?.as_ref();
        let Some(key) = key else {
            return self.dry_run(new, attested).await;
        };
        let query = self.gate_query(new, attested.map_or(0, |attested| attested.revision));
        let answer = self.ask(&query, time_until(new.deadline)).await;
        let answer = answer.map_err(|refusal| new.without_answer(refusal))?;
        let (order, subscriptions) = self.place(new, &answer)?;
        let response = response(&order, &subscriptions);
        let placement = Placement {
            key: key.clone(),
            response: response.encode_to_vec(),
            answer,
            order,
            subscriptions,
            open_max: self.subscriptions_max,
        };
        match self.placements.place(placement).await? {
            Placed::Done => {
                self.orders.send_replace(());
                Ok(Attempt::Done(response))
            }
            Placed::SeenBefore | Placed::AnswerStale => Ok(Attempt::Retry(Refusal::GateUnavailable)),
            Placed::TooManySubscriptions => Err(self.too_many_subscriptions(new).into()),
            Placed::Void(void) => without_effect(new.parties.customer_id, void),
        }
    }

    /// What the order would become; nothing is stored anywhere (ORD-5).
    async fn dry_run(
        &self,
        new: &NewOrder,
        assumed: Option<&Attested>,
    ) -> Result<Attempt<CreateOrderResponse>, Failure> {
        self.check_history(time_until(new.deadline)).await?;
        let query = self.gate_query(new, 0);
        let dry_run = self.agreements.dry_run(&query, assumed, time_until(new.deadline)).await;
        let dry_run = dry_run.map_err(|no_answer| new.without_answer(unanswered(&new.parties, no_answer)))?;
        let (order, subscriptions) = self.place(new, dry_run.answer())?;
        let (parties, more, open_max) = (new.parties, subscriptions.len(), self.subscriptions_max);
        let approval = order.approval.clone();
        // An attestation that is only assumed would be newer than all that was applied here.
        let revision = if assumed.is_some() { i64::MAX } else { approval.revision };
        let read = move |connection: &mut Connection| {
            let void = answer_void(connection, parties.customer_id, revision, &approval)?;
            Ok::<_, Error>((void, has_room(connection, &parties, more, open_max)?))
        };
        match self.database.read(read).await? {
            (Some(void), _) => without_effect(parties.customer_id, void),
            (None, false) => Err(self.too_many_subscriptions(new).into()),
            (None, true) => Ok(Attempt::Done(response(&order, &subscriptions))),
        }
    }
}

fn response(order: &Order, subscriptions: &[Subscription]) -> CreateOrderResponse {
    CreateOrderResponse {
        order: Some(convert::order(order)),
        subscriptions: subscriptions.iter().map(convert::subscription).collect(),
    }
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

/// Checks the form of the attestation, if there is one, and reads its template; agreement-svc decides whether it
/// can be made.
fn read_attestation(form: &mut Form, message: &CreateOrderRequest) -> Uuid {
    let Some(attestation) = &message.attestation else { return Uuid::nil() };
    let template_id = form.id("attestation.template_id", &attestation.template_id);
    let contact = attestation.contact.clone().unwrap_or_default();
    form.text("attestation.contact.first_name", &contact.first_name, 1, 100);
    form.text("attestation.contact.last_name", &contact.last_name, 1, 100);
    form.text("attestation.contact.email", &contact.email, 1, 254);
    form.text("attestation.contact.phone", &contact.phone, 0, 50);
    form.time("attestation.agreed_at", attestation.agreed_at.as_ref());
    template_id
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
