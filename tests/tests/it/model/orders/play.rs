//! The player: takes each step over gRPC and in the model, and compares the answers.

use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;
use proto::agreement::{GetCustomerRequest, ListAttestationsRequest};
use proto::order::{
    CreateOrderRequest, CreateOrderResponse, GetWithdrawalReportRequest, InlineAttestation, NewOrderLine,
    Subscription,
};
use tests::assert::eventually;
use tests::fixtures::{self, CUSTOMER_AGREEMENT};
use tests::reason_of;

use super::call::{Answer, Call, Content, Refusal, send};
use super::compare::subscriptions;
use super::expect::{Expected, Made};
use super::offers::{OFFERS, UNKNOWN_OFFER};
use super::state::{Model, end_of, is_due, time};
use super::steps::{Actor, Again, Buyer, Command, Etag, Line, Step};
use crate::faults::relay::Relay;
use crate::model::acceptance::{self, NOT_FOUND, PARTNERS};

/// The services and the model after the same steps.
pub(super) struct Play {
    pub world: acceptance::Play,
    pub relay: Relay,
    pub is_history_held: bool,
    pub clock: Clock,
    pub model: Model,
}

impl Play {
    pub(super) async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Accept(step) => {
                self.end_due_terms().await?;
                let preview = self.preview(step).await;
                let events = self.world.model.history.len();
                self.world.take(step).await?;
                self.catch_up().await?;
                match preview {
                    Some(preview) if self.world.model.history.len() > events => {
                        self.compare_preview(&preview)
                    }
                    _ => Ok(()),
                }
            }
            Step::Overtaken { by, request } => {
                self.end_due_terms().await?;
                match self.request(request) {
                    Some(call) => self.call_overtaken(call, by).await,
                    None => Ok(()),
                }
            }
            Step::HoldHistory(hold) => {
                self.hold_history(*hold);
                self.catch_up().await
            }
            Step::AwaitTermEnd { which, micros_after, asked } => {
                let Some(known) = self.pick(which) else { return Ok(()) };
                let Some(end) = end_of(known) else { return Ok(()) };
                let id = known.subscription_id.clone();
                let was_held = self.is_history_held;
                // order-svc ends a term once it knows the history beyond the term's end.
                self.hold_history(was_held || asked.is_some());
                let model = &mut self.world.model;
                model.now = model.now.max(end + Duration::microseconds(*micros_after));
                self.clock.set(model.now);
                if let Some(command) = *asked {
                    let call = Self::command(&self.model.subscriptions[&id].now, command);
                    self.call(call).await?;
                }
                self.hold_history(was_held);
                self.catch_up().await
            }
            Step::Order { .. } | Step::Change { .. } | Step::Again { .. } => match self.request(step) {
                Some(call) => self.call(call).await,
                None => Ok(()),
            },
        }
    }

    /// The request that a step makes.
    fn request(&self, step: &Step) -> Option<Call> {
        match step {
            Step::Order { by, customer, lines, attestation, validate_only } => {
                let mut order = self.new_order(*by, *customer, lines);
                order.attestation = attestation.map(|of| InlineAttestation {
                    template_id: CUSTOMER_AGREEMENT.into(),
                    contact: Some(acceptance::person(of.person)),
                    agreed_at: Some(timestamp(
                        self.world.model.now - Duration::minutes(of.agreed_minutes_ago),
                    )),
                    details: None,
                });
                let content = Content::Order(Box::new(order));
                let by = match *by {
                    Buyer::ForItself(by) => by,
                    Buyer::DirectNamesReseller => 0,
                    Buyer::ProviderNamesReseller | Buyer::NamesItselfReseller => 1,
                    Buyer::ResellerNamesProvider | Buyer::NamesBothOthers => 2,
                };
                Some(Call { by, request_id: fixtures::request_id(), content, validate_only: *validate_only })
            }
            Step::Change { which, by, etag, command, validate_only } => {
                let known = self.pick(which)?;
                let paying = PARTNERS.iter().position(|id| id.to_string() == known.payer_id)?;
                let number: i64 = known.etag.parse().unwrap();
                let number = match etag {
                    Etag::Current => number,
                    Etag::Before => number - 1,
                    Etag::Next => number + 1,
                };
                let by = match by {
                    Actor::Payer => paying,
                    Actor::Reseller => 2,
                    Actor::OtherPayer => 1 - paying,
                };
                let subscription_id = known.subscription_id.clone();
                let content =
                    Content::Change { subscription_id, etag: number.to_string(), command: *command };
                Some(Call { by, request_id: fixtures::request_id(), content, validate_only: *validate_only })
            }
            Step::Again { which, how } => {
                let calls = &self.model.calls;
                let mut call = (!calls.is_empty()).then(|| which.get(calls).0.clone())?;
                match how {
                    Again::AsItWas => {}
                    Again::OtherContent => match &mut call.content {
                        Content::Order(order) => order.lines[0].friendly_name = "another".into(),
                        Content::Change { etag, .. } => *etag = "1000".into(),
                    },
                    Again::Stored => call.validate_only = false,
                    Again::By(by) => call.by = *by,
                }
                Some(call)
            }
            Step::Accept(_) | Step::Overtaken { .. } | Step::HoldHistory(_) | Step::AwaitTermEnd { .. } => {
                None
            }
        }
    }

    pub(super) fn hold_history(&mut self, hold: bool) {
        self.is_history_held = hold;
        self.relay.hold_history(hold);
    }

    /// Waits until order-svc has applied the events and ended the due terms, and does the same in the model.
    pub(super) async fn catch_up(&mut self) -> Result<(), TestCaseError> {
        let (world, model) = (&self.world.model, &mut self.model);
        model.recorded.resize(world.history.len(), world.now);
        if self.is_history_held {
            return Ok(());
        }
        let revision = world.base + i64::try_from(world.history.len()).unwrap();
        let operator = self.world.operator.clone();
        eventually("the events are applied", async || {
            let request = GetWithdrawalReportRequest { revision, ..Default::default() };
            let is_applied = match operator.withdrawals().get_withdrawal_report(request).await {
                Ok(report) => report.get_ref().applied,
                Err(refused) => reason_of(&refused) == NOT_FOUND,
            };
            is_applied.then_some(())
        })
        .await;
        for (n, happened) in world.history.iter().enumerate().skip(model.applied) {
            let revision = world.base + i64::try_from(n).unwrap() + 1;
            model.apply_event(revision, happened, &self.world.customer_ids, world);
        }
        model.applied = world.history.len();
        let now = world.now;
        eventually("ended terms are processed", async || {
            let known = subscriptions(&operator, "", 500).await;
            known.iter().all(|known| !is_due(known, now)).then_some(())
        })
        .await;
        model.end_terms(&self.world);
        Ok(())
    }

    /// Ends the terms that are due before anything else happens. Without that, the order of both would be open.
    async fn end_due_terms(&mut self) -> Result<(), TestCaseError> {
        if self.model.subscriptions.values().any(|tracked| is_due(&tracked.now, self.world.model.now)) {
            self.hold_history(false);
            self.catch_up().await?;
        }
        Ok(())
    }

    /// A call by which a subscription's payer sends a command.
    fn command(known: &Subscription, command: Command) -> Call {
        let by = PARTNERS.iter().position(|id| id.to_string() == known.payer_id).unwrap();
        let (subscription_id, etag) = (known.subscription_id.clone(), known.etag.clone());
        let content = Content::Change { subscription_id, etag, command };
        Call { by, request_id: fixtures::request_id(), content, validate_only: false }
    }

    fn pick(&self, which: &Index) -> Option<&Subscription> {
        let all: Vec<_> = self.model.subscriptions.values().collect();
        (!all.is_empty()).then(|| &which.get(&all).now)
    }

    fn new_order(&self, by: Buyer, customer: usize, lines: &[Line]) -> CreateOrderRequest {
        let [direct, provider, reseller] = PARTNERS.map(|id| id.to_string());
        let none = String::new;
        let (payer_id, reseller_id) = match by {
            Buyer::ForItself(_) => (none(), none()),
            Buyer::ProviderNamesReseller | Buyer::DirectNamesReseller => (none(), reseller),
            Buyer::ResellerNamesProvider => (provider, none()),
            Buyer::NamesItselfReseller => (none(), provider),
            Buyer::NamesBothOthers => (provider, direct),
        };
        let line = |line: &Line| NewOrderLine {
            offer_id: OFFERS.get(line.offer).map_or(UNKNOWN_OFFER, |offer| offer.id).into(),
            quantity: line.quantity,
            friendly_name: format!("{} of {}", line.quantity, line.offer),
        };
        CreateOrderRequest {
            customer_id: self.world.customer_ids[customer].clone(),
            payer_id,
            reseller_id,
            lines: lines.iter().map(line).collect(),
            ..CreateOrderRequest::default()
        }
    }

    /// Calls order-svc, and compares its answer with the one that the model expects.
    async fn call(&mut self, call: Call) -> Result<(), TestCaseError> {
        let answered = send(&self.world.partners[call.by], &call).await.map_err(Refusal::from);
        let expected = match self.model.attest(&self.world, &call) {
            Err(refusal) => Err(refusal),
            Ok(None) => self.model.expect(&self.world, &call),
            Ok(Some(made)) if call.validate_only => {
                let model = &self.world.model;
                let acceptance_revision = model.customers[made.customer].acceptance_revision;
                let mut assumed = model.clone();
                assumed.accepted(String::new(), made.customer, Some(call.by), made.version, made.claim);
                assumed.customers[made.customer].acceptance_revision = acceptance_revision;
                let model = std::mem::replace(&mut self.world.model, assumed);
                let expected = self.model.expect(&self.world, &call);
                self.world.model = model;
                expected
            }
            Ok(Some(made)) => {
                let id = self.attested(&made, call.by).await?;
                self.world.model.accepted(id, made.customer, Some(call.by), made.version, made.claim);
                self.model.attested.push((call.by, call.request_id.clone(), call.content.clone()));
                self.model.expect(&self.world, &call)
            }
        };
        let answered = self.answered_for_good(&call, answered, &expected).await;
        self.compare_answer(call, answered, expected).await
    }

    /// Sends a call again that was not decided because order-svc does not know yet which relationships are active. While
    /// the history is held back it may never know.
    async fn answered_for_good(
        &self,
        call: &Call,
        mut answered: Result<Answer, Refusal>,
        expected: &Result<Expected, Refusal>,
    ) -> Result<Answer, Refusal> {
        let rests_on_relationships = ["RELATIONSHIP_ENDED", "INVALID_FIELDS"];
        let Err(refusal) = expected else { return answered };
        while rests_on_relationships.contains(&refusal.reason.as_str())
            && answered.as_ref().is_err_and(|refused| refused.reason == "GATE_UNAVAILABLE")
        {
            if self.is_history_held {
                return Err(refusal.clone());
            }
            answered = send(&self.world.partners[call.by], call).await.map_err(Refusal::from);
        }
        answered
    }

    /// The id of the attestation that was just made.
    async fn attested(&self, made: &Made, by: usize) -> Result<String, TestCaseError> {
        let request = ListAttestationsRequest {
            customer_id: self.world.customer_ids[made.customer].clone(),
            ..ListAttestationsRequest::default()
        };
        let listed = self.world.operator.attestations().list_attestations(request).await.unwrap();
        let by = PARTNERS[by].to_string();
        let current = listed.into_inner().attestations.into_iter().find(|one| one.partner_id == by);
        let id = current.map(|current| current.attestation_id);
        id.ok_or_else(|| TestCaseError::fail("there is no attestation of the order"))
    }

    /// Calls order-svc, and takes another step while the gate's answer is on its way.
    async fn call_overtaken(&mut self, mut call: Call, by: &Step) -> Result<(), TestCaseError> {
        if let Content::Order(order) = &mut call.content {
            order.attestation = None;
        }
        let expected = self.model.expect(&self.world, &call);
        let relay = self.relay.clone();
        let (is_answered, let_go) = relay.hold_answer();
        let partner = self.world.partners[call.by].clone();
        let sent = async {
            let answered = send(&partner, &call).await;
            // A call that does not reach the gate holds nothing.
            relay.hold_nothing();
            answered
        };
        let (answered, is_overtaken) = tokio::join!(sent, async {
            let is_asked = is_answered.await.is_ok();
            if is_asked {
                Box::pin(self.take(by)).await?;
                let_go.send(()).unwrap();
            }
            Ok::<_, TestCaseError>(is_asked)
        });
        let expected = match expected {
            Ok(known) if is_overtaken? => self.model.overtaken(&self.world, &call, known),
            expected => expected,
        };
        let answered = self.answered_for_good(&call, answered.map_err(Refusal::from), &expected).await;
        self.compare_answer(call, answered, expected).await
    }

    /// Compares an answer with the expected one, and stores its effect in the model.
    async fn compare_answer(
        &mut self,
        call: Call,
        answered: Result<Answer, Refusal>,
        expected: Result<Expected, Refusal>,
    ) -> Result<(), TestCaseError> {
        let expected = expected.map(|expected| expected.with_ids(&answered));
        let decided = expected.as_ref().map(|expected| &expected.answer).map_err(Clone::clone);
        prop_assert_eq!(answered.as_ref().map_err(Clone::clone), decided, "{:?}", call);
        let stored = expected.ok().filter(|_| !call.validate_only);
        self.model.calls.push((call, stored.as_ref().map(|stored| stored.answer.clone())));
        if let Some(Expected { answer, effect }) = stored {
            self.model.happened(&answer, effect);
            self.wait_until_reported(&answer).await?;
        }
        self.catch_up().await
    }

    /// DIR-4: waits until the customer's first purchase is reported to agreement-svc.
    async fn wait_until_reported(&mut self, answer: &Answer) -> Result<(), TestCaseError> {
        let Answer::Placed(CreateOrderResponse { order: Some(order), .. }) = answer else { return Ok(()) };
        let customer = self.world.customer_ids.iter().position(|id| *id == order.customer_id).unwrap();
        if self.world.model.customers[customer].first_purchase_at.is_some() {
            return Ok(());
        }
        let operator = self.world.operator.clone();
        let request = GetCustomerRequest { customer_id: order.customer_id.clone() };
        eventually("the purchase is reported", async || {
            let known = operator.customers().get_customer(request.clone()).await.unwrap().into_inner();
            known.customer.unwrap_or_default().first_purchase_at
        })
        .await;
        let payer = PARTNERS.iter().position(|id| id.to_string() == order.payer_id).unwrap();
        self.world.model.purchased(payer, customer, time(order.placed_at));
        Ok(())
    }
}
