//! What each call must answer, by the rules alone, and what it stores.

use chassis::clock::Time;
use chassis::form::timestamp;
use proto::order::{
    CreateOrderRequest, CreateOrderResponse, NewOrderLine, OfferKind, Order, OrderLine, Subscription,
    SubscriptionChange, SubscriptionChangeKind as Kind, SubscriptionChangeReason as Why,
    SubscriptionState as State, Term,
};
use proto::types::{AcceptanceKind, AgreementType, BlockReason, Decision, Evidence, GateEvidence, GateRule};
use tests::fixtures::CUSTOMER_AGREEMENT;

use super::call::{Answer, Call, Content, Refusal, bad_fields, refused};
use super::offers::{offer, term_end};
use super::state::{Model, after, end_of, is_final, is_visible, time, user};
use super::steps::Command;
use crate::model::acceptance::{self, COUNTRIES, NOT_FOUND, PARTNERS, payer};

/// What an accepted command does.
pub(super) enum Plan {
    Nothing,
    Free(Kind),
    Gated(Kind),
}

impl Model {
    /// The gate for a payer and, where there is one, the reseller on record.
    fn gate(
        &self,
        world: &acceptance::Play,
        by: usize,
        (payer_id, reseller_id): (&str, &str),
        customer_id: &str,
        demands: &[AgreementType],
    ) -> Result<GateEvidence, Refusal> {
        let model = &world.model;
        let customer = world.customer_ids.iter().position(|id| id == customer_id).unwrap();
        let paying = PARTNERS.iter().position(|id| id.to_string() == payer_id).unwrap();
        let relationships = &model.customers[customer].relationships;
        let is_together = match reseller_id {
            "" => model.customers[customer].is_paid_for_by(paying),
            reseller => relationships.iter().any(|of| {
                (*of, payer(*of)) != (paying, paying)
                    && payer(*of) == paying
                    && PARTNERS[*of].to_string() == reseller
            }),
        };
        // GATE-0.
        if payer(paying) != paying && paying == by {
            return Err(refused("PAYER_IS_RESELLER", [("payer_id", payer_id.into())]));
        }
        let of = &model.customers[customer];
        if (!is_together || payer(paying) != paying) && of.is_seen_by(by) {
            let is_with_payer = match by == paying {
                true => of.is_paid_for_by(by),
                false => of.relationships.contains(&by) && payer(by) == paying,
            };
            let own_payer = if of.is_paid_for_by(by) { by } else { payer(by) };
            return Err(match is_with_payer {
                true => refused(NOT_FOUND, [("field", "reseller_id".into())]),
                false => {
                    let instead = ("use_payer_id", PARTNERS[own_payer].to_string());
                    refused(NOT_FOUND, [("field", "payer_id".into()), instead])
                }
            });
        }
        if !is_together || payer(paying) != paying {
            return Err(refused(NOT_FOUND, [("partner_center_code", "20002".into())]));
        }
        let is_wrong_type = demands.contains(&AgreementType::MicrosoftCloudAgreement);
        let decided = match is_wrong_type {
            true => Err(["BLOCK_REASON_WRONG_AGREEMENT_TYPE"].into()),
            false => model.gate(customer, paying, model.now),
        };
        let blocked = match decided {
            Ok(on) => {
                let (rule, kind) = match on.partner {
                    None => (GateRule::DirectSignature, AcceptanceKind::DirectSignature),
                    Some(_) => (GateRule::Attestation, AcceptanceKind::Attestation),
                };
                let evidence = Evidence {
                    kind: kind.into(),
                    acceptance_id: on.id.clone(),
                    template_id: CUSTOMER_AGREEMENT.into(),
                    template_version: on.version,
                    agreement_type: AgreementType::MicrosoftCustomerAgreement.into(),
                };
                return Ok(GateEvidence {
                    decision: Decision::Allowed.into(),
                    rule: rule.into(),
                    evidence: Some(evidence),
                    revision: model.customers[customer].acceptance_revision,
                    evaluated_at: Some(timestamp(model.now)),
                });
            }
            Err(reasons) => reasons,
        };
        let reasons = blocked.iter().map(|reason| reason.trim_start_matches("BLOCK_REASON_"));
        let mut reasons: Vec<_> = reasons.collect();
        // As the gate lists them.
        reasons.sort_by_key(|reason| {
            ["WITHDRAWN", "VERSION_SUPERSEDED"].iter().position(|first| first == reason)
        });
        let mut refusal = refused(
            "AGREEMENT_REQUIRED",
            [
                ("customer_id", customer_id.to_owned()),
                ("reasons", reasons.join(",")),
                ("partner_center_code", "13605".into()),
            ],
        );
        // A reseller sees no attestation of its provider, and what was withdrawn is named where its type would help.
        let considered = model.considered(customer, paying).into_iter().filter_map(|(ids, reason)| {
            let is_signature = model.is_signature(ids[0]);
            let reason = match (is_wrong_type, reason) {
                (true, BlockReason::Withdrawn) => return None,
                (true, _) => BlockReason::WrongAgreementType,
                (false, reason) => reason,
            };
            let reason = reason.as_str_name().trim_start_matches("BLOCK_REASON_");
            (by == paying || is_signature).then(|| format!("CONSIDERED {reason}"))
        });
        let mut considered: Vec<_> = considered.collect();
        considered.sort();
        let named = reasons.iter().map(|reason| format!("AGREEMENT {reason}"));
        refusal.named = named.chain(considered).collect();
        let mut remedies = vec![];
        if !is_wrong_type {
            let template = ("template_id".to_owned(), CUSTOMER_AGREEMENT.to_owned());
            if by == paying {
                remedies.push("ATTEST");
                let optional = "contact.phone,details.title,details.evidence_reference,details.evidence_sha256,\
                                details.on_behalf_of,details.external_reference,\
                                details.shown_text.country,details.shown_text.language,details.shown_text.sha256";
                let required = "template_id,contact.first_name,contact.last_name,contact.email,agreed_at";
                refusal.metadata.extend([
                    template.clone(),
                    ("required_fields".into(), required.into()),
                    ("optional_fields".into(), optional.into()),
                ]);
            } else {
                remedies.push("ASK_PROVIDER");
                refusal.metadata.insert("provider_id".into(), payer_id.into());
            }
            if model.may_sign_directly(customer) {
                remedies.push("INVITE_CUSTOMER");
                refusal.metadata.extend([template]);
            }
        }
        refusal.metadata.insert("remedies".into(), remedies.join(","));
        Err(refusal)
    }

    /// SUB-10: whether the gate would refuse a renewal by the payer for want of an acceptance; none where it does not come so
    /// far.
    pub(super) fn is_outdated(&self, world: &acceptance::Play, known: &Subscription) -> Option<bool> {
        let paying = PARTNERS.iter().position(|id| id.to_string() == known.payer_id).unwrap();
        let demands: Vec<_> = offer(&known.offer_id).unwrap().demands.into_iter().collect();
        match self.gate(world, paying, (&known.payer_id, ""), &known.customer_id, &demands) {
            Ok(_) => Some(false),
            Err(no) => (no.reason == "AGREEMENT_REQUIRED").then_some(true),
        }
    }

    /// ORD-1: who pays and who is on record, or the bad field.
    fn parties(by: usize, order: &CreateOrderRequest) -> Result<(String, String), String> {
        let caller = PARTNERS[by].to_string();
        let is_own = order.payer_id.is_empty() || order.payer_id == caller;
        match (is_own, order.reseller_id.as_str()) {
            (true, reseller) if reseller == caller => Err("reseller_id".into()),
            (true, reseller) => Ok((caller, reseller.into())),
            (false, reseller) if reseller.is_empty() || reseller == caller => {
                Ok((order.payer_id.clone(), caller))
            }
            (false, _) => Err("reseller_id".into()),
        }
    }

    /// ORD-3: the bad fields of the lines; the country counts where it is known.
    fn bad_lines(lines: &[NewOrderLine], country: Option<&str>) -> Vec<String> {
        let mut bad = vec![];
        for (n, line) in lines.iter().enumerate() {
            let known = offer(&line.offer_id);
            if known.is_none() {
                bad.push(format!("lines[{n}].offer_id"));
            }
            if !(1..=known.map_or(u32::MAX, |offer| offer.quantity_max)).contains(&line.quantity) {
                bad.push(format!("lines[{n}].quantity"));
            }
            let sold_in = known.and_then(|offer| offer.sold_in);
            if country.is_some_and(|country| sold_in.is_some_and(|sold_in| sold_in != country)) {
                bad.push(format!("lines[{n}].offer_id"));
            }
        }
        bad
    }

    /// The violations of a request that do not depend on any state.
    fn form(call: &Call) -> Result<(), Refusal> {
        let bad: Vec<_> = match &call.content {
            Content::Order(order) => match Self::parties(call.by, order) {
                Ok(_) => vec![],
                Err(bad) => [bad].into_iter().chain(Self::bad_lines(&order.lines, None)).collect(),
            },
            Content::Change { command: Command::Seats(0), .. } => vec!["quantity".into()],
            Content::Change { .. } => vec![],
        };
        if bad.is_empty() { Ok(()) } else { Err(bad_fields(bad)) }
    }

    /// The answer to an order, without the ids that order-svc makes.
    fn place(
        &self,
        world: &acceptance::Play,
        by: usize,
        order: &CreateOrderRequest,
    ) -> Result<CreateOrderResponse, Refusal> {
        let (payer_id, reseller_id) = Self::parties(by, order).unwrap();
        let customer = world.customer_ids.iter().position(|id| *id == order.customer_id).unwrap();
        let demands: Vec<_> = order
            .lines
            .iter()
            .filter_map(|line| offer(&line.offer_id))
            .filter_map(|offer| offer.demands)
            .collect();
        let decided = self.gate(world, by, (&payer_id, &reseller_id), &order.customer_id, &demands);
        // Where no type satisfies all offers, the lines that take certain types only are named.
        let decided = decided.map_err(|mut refusal| {
            let no_remedy = refusal.metadata.get("remedies").is_some_and(String::is_empty);
            if no_remedy {
                let takes =
                    |line: &NewOrderLine| offer(&line.offer_id).is_some_and(|offer| offer.demands.is_some());
                let lines = order.lines.iter().enumerate().filter(|(_, line)| takes(line));
                let lines = lines.map(|(n, _)| format!("lines[{n}]")).collect::<Vec<_>>().join(",");
                refusal.metadata.insert("lines".into(), lines);
            }
            refusal
        });
        // The answer has the customer's country only where the gate knows the customer.
        let is_known =
            decided.as_ref().is_ok() || decided.as_ref().is_err_and(|no| no.reason == "AGREEMENT_REQUIRED");
        let bad = Self::bad_lines(&order.lines, is_known.then_some(COUNTRIES[customer]));
        if !bad.is_empty() {
            return Err(bad_fields(bad));
        }
        let gate = decided?;
        // ORD-1: where payer and customer have one relationship only, its reseller is on record.
        let paying = PARTNERS.iter().position(|id| id.to_string() == payer_id).unwrap();
        let of_payer =
            world.model.customers[customer].relationships.iter().filter(|of| payer(**of) == paying);
        let reseller_id = match of_payer.collect::<Vec<_>>()[..] {
            [only] if *only != paying && reseller_id.is_empty() => PARTNERS[*only].to_string(),
            _ => reseller_id,
        };
        let now = world.model.now;
        let (mut lines, mut subscriptions) = (vec![], vec![]);
        for line in &order.lines {
            let offer = offer(&line.offer_id).unwrap();
            lines.push(OrderLine {
                offer_id: line.offer_id.clone(),
                quantity: line.quantity,
                friendly_name: line.friendly_name.clone(),
                ..OrderLine::default()
            });
            subscriptions.push(Subscription {
                payer_id: payer_id.clone(),
                reseller_id: reseller_id.clone(),
                customer_id: order.customer_id.clone(),
                offer_id: line.offer_id.clone(),
                quantity: line.quantity,
                friendly_name: line.friendly_name.clone(),
                state: State::Active.into(),
                auto_renew: offer.auto_renews,
                started_at: Some(timestamp(now)),
                term_number: 1,
                term_end: term_end(now, offer.term, 1).map(timestamp),
                etag: "1".into(),
                ..Subscription::default()
            });
        }
        let order = Order {
            payer_id,
            reseller_id,
            customer_id: order.customer_id.clone(),
            lines,
            placed_at: Some(timestamp(now)),
            placed_by_tenant: PARTNERS[by].to_string(),
            placed_by: user(by),
            gate: Some(gate),
            ..Order::default()
        };
        Ok(CreateOrderResponse { order: Some(order), subscriptions })
    }

    /// What an accepted command does to a subscription (SUB-1 to SUB-4).
    fn plan(known: &Subscription, etag: &str, command: Command, now: Time) -> Result<Plan, Refusal> {
        let (state, offer) = (known.state(), offer(&known.offer_id).unwrap());
        if known.etag != etag {
            return Err(refused("ETAG_STALE", [("partner_center_code", "2055".into())]));
        }
        let is_final = is_final(state);
        let name = state.as_str_name().trim_start_matches("SUBSCRIPTION_STATE_").to_owned();
        let code = if is_final { "2011" } else { "2001" }.to_owned();
        let details = [("state", name), ("partner_center_code", code)];
        if command == Command::Cancel && state == State::Cancelled {
            return Ok(Plan::Nothing);
        }
        if matches!(command, Command::Seats(_) | Command::Renew) && state != State::Active {
            return Err(refused("SUBSCRIPTION_NOT_ACTIVE", details));
        }
        if is_final {
            return Err(refused("SUBSCRIPTION_ENDED", details));
        }
        if let Some(end) = end_of(known).filter(|end| *end <= now) {
            let end = end.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
            return Err(refused("TERM_ENDED", [("term_end", end)]));
        }
        let not_renewable = || {
            let code = ("partner_center_code", "800093".to_owned());
            refused("NOT_RENEWABLE", [("offer_id", known.offer_id.clone()), code])
        };
        match command {
            Command::Seats(_) if offer.kind != OfferKind::License => {
                let kind = offer.kind.as_str_name().trim_start_matches("OFFER_KIND_");
                Err(refused("NOT_A_LICENCE", [("kind", kind.into())]))
            }
            Command::Seats(seats) if seats == known.quantity => Ok(Plan::Nothing),
            Command::Seats(seats) if seats > offer.quantity_max => Err(bad_fields(vec!["quantity".into()])),
            Command::Seats(_) => Ok(Plan::Gated(Kind::SeatsChanged)),
            Command::Renew if offer.term == Term::Perpetual => Err(not_renewable()),
            Command::Renew => Ok(Plan::Gated(Kind::Renewed)),
            Command::AutoRenew(on) if on == known.auto_renew => Ok(Plan::Nothing),
            Command::AutoRenew(true) if !offer.auto_renews => Err(not_renewable()),
            Command::AutoRenew(true) => Ok(Plan::Gated(Kind::AutoRenewOn)),
            Command::AutoRenew(false) => Ok(Plan::Free(Kind::AutoRenewOff)),
            Command::Suspend if state == State::Suspended => Ok(Plan::Nothing),
            Command::Suspend => Ok(Plan::Free(Kind::Suspended)),
            Command::Resume if state == State::Active => Ok(Plan::Nothing),
            Command::Resume => Ok(Plan::Free(Kind::Resumed)),
            Command::AssignReseller(some) if assigned(some) == known.reseller_id => Ok(Plan::Nothing),
            Command::AssignReseller(_) => Ok(Plan::Free(Kind::ResellerAssigned)),
            Command::Cancel => Ok(Plan::Free(Kind::Cancelled)),
        }
    }

    /// ROLE-6: whether a partner that sees a subscription may do what it asks.
    fn may_act(
        &self,
        customer_ids: &[String],
        by: usize,
        known: &Subscription,
        command: Command,
    ) -> Result<(), Refusal> {
        let customer = customer_ids.iter().position(|id| *id == known.customer_id).unwrap();
        let related = &self.related[customer];
        let by = PARTNERS[by].to_string();
        let is_payer = by == known.payer_id;
        let has_reseller = |reseller: String| related.contains(&(known.payer_id.clone(), reseller));
        let may = match command {
            Command::AssignReseller(_) if !is_payer => {
                return Err(refused("PAYER_ONLY", [("payer_id", known.payer_id.clone())]));
            }
            Command::AssignReseller(true) if !has_reseller(assigned(true)) => {
                return Err(bad_fields(vec!["reseller_id".into()]));
            }
            Command::Resume if is_payer => related.iter().any(|(payer, _)| *payer == by),
            _ => is_payer || has_reseller(by),
        };
        let parties = [("customer_id", known.customer_id.clone()), ("payer_id", known.payer_id.clone())];
        if may { Ok(()) } else { Err(refused("RELATIONSHIP_ENDED", parties)) }
    }

    /// The subscription after a command, and the change, unless it is so already.
    fn change(
        &self,
        world: &acceptance::Play,
        by: usize,
        (id, etag, command): (&str, &str, Command),
    ) -> Result<(Subscription, Option<SubscriptionChange>), Refusal> {
        let tracked = self
            .subscriptions
            .get(id)
            .filter(|tracked| is_visible(by, &tracked.now.payer_id, &tracked.now.reseller_id));
        let unseen = || refused(NOT_FOUND, [("partner_center_code", "20003".into())]);
        let known = &tracked.ok_or_else(unseen)?.now;
        self.may_act(&world.customer_ids, by, known, command)?;
        let (kind, gate) = match Self::plan(known, etag, command, world.model.now)? {
            Plan::Nothing => return Ok((known.clone(), None)),
            Plan::Free(kind) => (kind, None),
            Plan::Gated(kind) => {
                // A payer goes on without a reseller that has parted.
                let is_payer = PARTNERS[by].to_string() == known.payer_id;
                let reseller_id = if is_payer { "" } else { known.reseller_id.as_str() };
                let parties = (known.payer_id.as_str(), reseller_id);
                let demands: Vec<_> = offer(&known.offer_id).unwrap().demands.into_iter().collect();
                let ended =
                    [("customer_id", known.customer_id.clone()), ("payer_id", known.payer_id.clone())];
                let gate = self.gate(world, by, parties, &known.customer_id, &demands);
                let gate = gate.map_err(|no| match no.reason == NOT_FOUND {
                    true => refused("RELATIONSHIP_ENDED", ended),
                    false => no,
                });
                (kind, Some(gate?))
            }
        };
        let seats = if let Command::Seats(seats) = command { seats } else { known.quantity };
        let mut changed = SubscriptionChange {
            actor_tenant: PARTNERS[by].to_string(),
            actor: user(by),
            quantity_after: seats,
            gate,
            reseller_id: match command {
                Command::AssignReseller(some) => assigned(some),
                _ => String::new(),
            },
            reason: Why::Requested.into(),
            ..SubscriptionChange::default()
        };
        let after = after(known, kind, &mut changed, world.model.now);
        Ok((after, Some(changed)))
    }
}

/// The reseller that a command assigns.
fn assigned(some: bool) -> String {
    if some { PARTNERS[2].to_string() } else { String::new() }
}

/// The answer and the effect that the rules expect of a call.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub answer: Answer,
    pub effect: Effect,
}

#[derive(Clone, Debug)]
pub(super) enum Effect {
    Nothing,
    Placed,
    Changed(Box<SubscriptionChange>),
}

impl Expected {
    /// With the ids that order-svc made.
    pub(super) fn with_ids(mut self, answered: &Result<Answer, Refusal>) -> Self {
        if let (Effect::Placed, Answer::Placed(own), Ok(Answer::Placed(answered))) =
            (&self.effect, &mut self.answer, answered)
            && let (Some(order), Some(given)) = (&mut own.order, &answered.order)
        {
            order.order_id.clone_from(&given.order_id);
            let new = own.subscriptions.iter_mut().zip(&mut order.lines);
            for ((new, line), answered) in new.zip(&answered.subscriptions) {
                new.order_id.clone_from(&order.order_id);
                new.subscription_id.clone_from(&answered.subscription_id);
                line.subscription_id.clone_from(&answered.subscription_id);
            }
            // An attestation that was only assumed has an id, too.
            let evidence = given.gate.clone().and_then(|gate| gate.evidence);
            let own = order.gate.as_mut().and_then(|gate| gate.evidence.as_mut());
            if let (Some(own), Some(evidence)) = (own.filter(|own| own.acceptance_id.is_empty()), evidence) {
                own.acceptance_id = evidence.acceptance_id;
            }
        }
        self
    }

    /// The gate's answer that it rests on.
    fn gate(&self) -> Option<&GateEvidence> {
        match (&self.answer, &self.effect) {
            (_, Effect::Nothing) => None,
            (_, Effect::Changed(changed)) => changed.gate.as_ref(),
            (Answer::Placed(placed), _) => placed.order.as_ref()?.gate.as_ref(),
            (Answer::Changed(..), Effect::Placed) => None,
        }
    }
}

/// An attestation that an order makes.
pub(super) struct Made {
    pub customer: usize,
    pub version: u32,
    pub claim: acceptance::Claim,
}

impl Model {
    /// What an order attests before anything else, unless it is attested already (ORD-4).
    pub(super) fn attest(&self, world: &acceptance::Play, call: &Call) -> Result<Option<Made>, Refusal> {
        let Content::Order(order) = &call.content else { return Ok(None) };
        let Some(attestation) = &order.attestation else { return Ok(None) };
        let is_decided_before = Self::form(call).is_err() || self.first(call).is_some();
        if is_decided_before || !Self::bad_lines(&order.lines, None).is_empty() {
            return Ok(None);
        }
        let is_repeated = |(by, request_id, content): &(usize, String, Content)| {
            let Content::Order(of) = content else { return false };
            (*by, request_id) == (call.by, &call.request_id)
                && (&of.attestation, &of.customer_id) == (&order.attestation, &order.customer_id)
        };
        if !call.validate_only && self.attested.iter().any(is_repeated) {
            return Ok(None);
        }
        let model = &world.model;
        let customer = world.customer_ids.iter().position(|id| *id == order.customer_id).unwrap();
        let agreed_at = time(attestation.agreed_at);
        let version = model.in_force(agreed_at.min(model.now));
        let is_other = attestation.contact.as_ref().is_some_and(|one| *one == acceptance::person(1));
        let claim = (usize::from(is_other), agreed_at);
        let current = model.current(customer, Some(call.by)).map(|n| &model.acceptances[n]);
        match model.may_attest(customer, call.by, claim, version) {
            Ok(()) => Ok(Some(Made { customer, version, claim })),
            Err("ALREADY_ATTESTED") => Ok(None),
            Err("OLDER_THAN_CURRENT") => {
                let current = current.unwrap();
                let versions = [
                    ("attestation_id", current.id.clone()),
                    ("current_version", current.version.to_string()),
                    ("offered_version", version.to_string()),
                ];
                Err(refused("OLDER_THAN_CURRENT", versions))
            }
            Err("RESELLER_CANNOT_ATTEST") => {
                let provider = PARTNERS[payer(call.by)].to_string();
                Err(refused("RESELLER_CANNOT_ATTEST", [("provider_id", provider)]))
            }
            Err(reason) => Err(refused(reason, [("partner_center_code", "20002".into())])),
        }
    }

    /// What the rules expect of a call.
    pub(super) fn expect(&self, world: &acceptance::Play, call: &Call) -> Result<Expected, Refusal> {
        Self::form(call)?;
        if let Some((content, answer)) = self.first(call) {
            return match *content == call.content {
                true => Ok(Expected { answer: answer.clone(), effect: Effect::Nothing }),
                false => Err(refused("REQUEST_ID_REUSED", [("request_id", call.request_id.clone())])),
            };
        }
        match &call.content {
            Content::Order(order) => {
                let placed = self.place(world, call.by, order)?;
                Ok(Expected { answer: Answer::Placed(placed), effect: Effect::Placed })
            }
            Content::Change { subscription_id, etag, command } => {
                let (after, changed) = self.change(world, call.by, (subscription_id, etag, *command))?;
                let gate = changed.as_ref().and_then(|changed| changed.gate.clone());
                let effect = changed.map_or(Effect::Nothing, |changed| Effect::Changed(Box::new(changed)));
                Ok(Expected { answer: Answer::Changed(Some(after), gate), effect })
            }
        }
    }

    /// What is expected of a call when order-svc applied something else while the gate's answer was on its way (WD-3).
    pub(super) fn overtaken(
        &self,
        world: &acceptance::Play,
        call: &Call,
        known: Expected,
    ) -> Result<Expected, Refusal> {
        let Some(gate) = known.gate() else { return Ok(known) };
        if gate.revision < self.fence(&world.customer_ids, call) {
            return self.expect(world, call);
        }
        match &call.content {
            Content::Change { subscription_id, etag, .. }
                if self.subscriptions[subscription_id].now.etag != *etag =>
            {
                Err(refused("ETAG_STALE", [("partner_center_code", "2055".into())]))
            }
            _ => Ok(known),
        }
    }

    /// The revision of the last withdrawal of the customer's that was applied.
    fn fence(&self, customer_ids: &[String], call: &Call) -> i64 {
        let customer_id = match &call.content {
            Content::Order(order) => &order.customer_id,
            Content::Change { subscription_id, .. } => &self.subscriptions[subscription_id].now.customer_id,
        };
        customer_ids.iter().position(|id| id == customer_id).map_or(0, |customer| self.fences[customer])
    }

    /// The first content under a request id, and its answer.
    fn first(&self, call: &Call) -> Option<(&Content, &Answer)> {
        let is_same = |of: &Call| {
            (of.by, &of.request_id) == (call.by, &call.request_id)
                && std::mem::discriminant(&of.content) == std::mem::discriminant(&call.content)
        };
        let answered = |(of, answer): &'_ (Call, Option<Answer>)| is_same(of) && answer.is_some();
        let (of, answer) = self.calls.iter().find(|one| answered(one)).filter(|_| !call.validate_only)?;
        Some((&of.content, answer.as_ref()?))
    }
}
