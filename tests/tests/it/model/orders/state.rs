//! The model's state: orders, subscriptions and withdrawal reports, and how answers, events and time change them.

use std::collections::{BTreeMap, BTreeSet};

use chassis::clock::Time;
use chassis::form::timestamp;
use proto::order::{
    CreateOrderResponse, Order, Subscription, SubscriptionChange, SubscriptionChangeKind as Kind,
    SubscriptionChangeReason as Why, SubscriptionState as State, WithdrawalEffect, WithdrawalOutcome,
    WithdrawalReport,
};
use proto::types::AcceptanceKind;
use uuid::Uuid;

use super::call::{Answer, Call, Content};
use super::expect::Effect;
use super::offers::{offer, term_end};
use crate::model::acceptance::{self, CUSTOMERS, Happened, PARTNERS};

/// A subscription with its changes.
#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub now: Subscription,
    pub changes: Vec<SubscriptionChange>,
    /// How many of the changes were compared.
    pub compared: usize,
}

#[derive(Default)]
pub(super) struct Model {
    pub orders: BTreeMap<String, Order>,
    pub subscriptions: BTreeMap<String, Tracked>,
    /// Requests whose attestation was made: the caller, the request id and the content.
    pub attested: Vec<(usize, String, Content)>,
    /// With the answers that were stored.
    pub calls: Vec<(Call, Option<Answer>)>,
    /// Of each customer: the revision of the last withdrawal or end of a relationship that was applied.
    pub fences: [i64; CUSTOMERS],
    /// Of each customer: the payers and resellers ('' is none) of the active relationships, as far as they were applied.
    pub related: [BTreeSet<(String, String)>; CUSTOMERS],
    /// When each event of the world's history was recorded, and how many were applied.
    pub recorded: Vec<Time>,
    pub applied: usize,
    /// What withdrawals did, by revision.
    pub reports: BTreeMap<i64, (WithdrawalReport, Vec<WithdrawalEffect>)>,
}

impl Model {
    /// Stores the effect of an answer.
    pub(super) fn happened(&mut self, answer: &Answer, effect: Effect) {
        match (answer, effect) {
            (_, Effect::Nothing) => {}
            (Answer::Placed(placed), _) => self.placed(placed),
            (Answer::Changed(after, _), Effect::Changed(changed)) => {
                let after = after.clone().unwrap();
                let tracked = self.subscriptions.get_mut(&after.subscription_id).unwrap();
                tracked.now = after;
                tracked.changes.push(*changed);
            }
            (Answer::Changed(..), Effect::Placed) => {}
        }
    }

    /// Applies an event (WD-2, CUS-3).
    pub(super) fn apply_event(
        &mut self,
        revision: i64,
        event: &Happened,
        customer_ids: &[String],
        world: &acceptance::Model,
    ) {
        let is_withdrawal = matches!(event.kind, "AttestationWithdrawn" | "SignatureWithdrawn");
        let relationship = || {
            let payer_id = event.partner.map(|of| PARTNERS[of].to_string()).unwrap();
            (payer_id, event.others.first().cloned().unwrap_or_default())
        };
        match (event.kind, event.customer) {
            ("RelationshipEstablished", Some(customer)) => _ = self.related[customer].insert(relationship()),
            ("RelationshipEnded", Some(customer)) => _ = self.related[customer].remove(&relationship()),
            _ => {}
        }
        let Some(customer) = event.customer.filter(|_| is_withdrawal || event.kind == "RelationshipEnded")
        else {
            return;
        };
        self.fences[customer] = revision;
        let of_customer = |tracked: &&mut Tracked| {
            tracked.now.customer_id == customer_ids[customer] && !is_final(tracked.now.state())
        };
        let mut effects = vec![];
        for tracked in self.subscriptions.values_mut().filter(of_customer) {
            let is_older = tracked.answer_revision() < revision;
            // An attestation covers only what its own partner pays for (ATT-7).
            let could_cover = event.partner.is_none_or(|of| tracked.now.payer_id == PARTNERS[of].to_string());
            if is_withdrawal && could_cover {
                let is_uncovered = event.others.contains(&tracked.now.payer_id);
                let outcome = match (is_uncovered, is_older) {
                    (false, _) => WithdrawalOutcome::StillCovered,
                    (true, false) => WithdrawalOutcome::NewerAnswer,
                    (true, true) => WithdrawalOutcome::Cancelled,
                };
                if outcome == WithdrawalOutcome::Cancelled {
                    tracked.change_internal(Kind::Cancelled, Why::AgreementWithdrawn, revision, world.now);
                }
                effects.push(WithdrawalEffect {
                    subscription_id: tracked.now.subscription_id.clone(),
                    payer_id: tracked.now.payer_id.clone(),
                    reseller_id: tracked.now.reseller_id.clone(),
                    outcome: outcome.into(),
                });
            } else if !is_withdrawal {
                let others_remain = event.others_remain;
                let reseller = event.others.first().map_or("", String::as_str);
                let is_concerned = Some(tracked.now.payer_id.clone())
                    == event.partner.map(|of| PARTNERS[of].to_string())
                    && (!others_remain || tracked.now.reseller_id == reseller);
                // What has no term would never run out.
                let is_perpetual = tracked.now.term_end.is_none();
                if is_concerned && is_perpetual && !others_remain && is_older {
                    tracked.change_internal(Kind::Cancelled, Why::RelationshipEnded, revision, world.now);
                } else if is_concerned && tracked.now.auto_renew && is_older {
                    tracked.change_internal(Kind::AutoRenewOff, Why::RelationshipEnded, revision, world.now);
                }
            }
        }
        if is_withdrawal {
            let recorded_at = self.recorded[usize::try_from(revision - world.base).unwrap() - 1];
            let kind = match event.partner {
                Some(_) => AcceptanceKind::Attestation,
                None => AcceptanceKind::DirectSignature,
            };
            let report = WithdrawalReport {
                revision,
                customer_id: customer_ids[customer].clone(),
                kind: kind.into(),
                acceptance_id: event.acceptance.clone(),
                partner_id: event.partner.map(|of| PARTNERS[of].to_string()).unwrap_or_default(),
                uncovered_partner_ids: event.others.clone(),
                withdrawn_at: Some(timestamp(recorded_at)),
                applied_at: Some(timestamp(world.now)),
                ..WithdrawalReport::default()
            };
            self.reports.insert(revision, (counted(report, &effects), effects));
        }
    }

    /// SUB-3: renews or ends each subscription whose term has ended, once a term. A renewal says whether the acceptance was
    /// outdated (SUB-10).
    pub(super) fn end_terms(&mut self, world: &acceptance::Play) {
        let now = world.model.now;
        let due = self.subscriptions.iter().filter(|(_, tracked)| is_due(&tracked.now, now));
        let outdated = due.map(|(id, tracked)| (id.clone(), self.is_outdated(world, &tracked.now)));
        for (id, outdated) in outdated.collect::<Vec<_>>() {
            let tracked = self.subscriptions.get_mut(&id).unwrap();
            while is_due(&tracked.now, now) {
                let renews = tracked.now.auto_renew;
                let kind = if renews { Kind::Renewed } else { Kind::Expired };
                tracked.change_internal(kind, Why::TermEnded, 0, now);
                let change = tracked.changes.last_mut().unwrap();
                change.acceptance_outdated = outdated.filter(|_| renews);
            }
        }
    }

    /// An order was stored.
    pub(super) fn placed(&mut self, placed: &CreateOrderResponse) {
        let order = placed.order.clone().unwrap();
        for new in &placed.subscriptions {
            let mut created = SubscriptionChange {
                number: 1,
                changed_at: order.placed_at,
                actor_tenant: order.placed_by_tenant.clone(),
                actor: order.placed_by.clone(),
                quantity_before: 0,
                quantity_after: new.quantity,
                gate: order.gate.clone(),
                event_revision: 0,
                term_number: 1,
                ..SubscriptionChange::default()
            };
            created.set_kind(Kind::Created);
            created.set_reason(Why::Requested);
            let tracked = Tracked { now: new.clone(), changes: vec![created], compared: 0 };
            self.subscriptions.insert(new.subscription_id.clone(), tracked);
        }
        self.orders.insert(order.order_id.clone(), order);
    }
}

impl Tracked {
    /// The revision of the gate's last answer.
    pub(super) fn answer_revision(&self) -> i64 {
        let mut answers = self.changes.iter().rev().filter_map(|change| change.gate.as_ref());
        answers.next().map_or(0, |gate| gate.revision)
    }

    /// A change that order-svc makes itself.
    pub(super) fn change_internal(&mut self, kind: Kind, why: Why, event_revision: i64, now: Time) {
        let mut changed = SubscriptionChange {
            quantity_after: self.now.quantity,
            reason: why.into(),
            event_revision,
            ..SubscriptionChange::default()
        };
        self.now = after(&self.now, kind, &mut changed, now);
        self.changes.push(changed);
    }
}

/// A report with the numbers of effects.
pub(super) fn counted(report: WithdrawalReport, effects: &[WithdrawalEffect]) -> WithdrawalReport {
    let is_cancelled = |effect: &&WithdrawalEffect| effect.outcome() == WithdrawalOutcome::Cancelled;
    let cancelled = u32::try_from(effects.iter().filter(is_cancelled).count()).unwrap();
    let stayed = u32::try_from(effects.len()).unwrap() - cancelled;
    let is_newer = |effect: &&WithdrawalEffect| effect.outcome() == WithdrawalOutcome::NewerAnswer;
    let newer_answer = u32::try_from(effects.iter().filter(is_newer).count()).unwrap();
    WithdrawalReport { cancelled, stayed, newer_answer, ..report }
}

/// The subscription after a change; completes the record of the change.
pub(super) fn after(
    known: &Subscription,
    kind: Kind,
    changed: &mut SubscriptionChange,
    now: Time,
) -> Subscription {
    let number = known.etag.parse::<u32>().unwrap() + 1;
    let mut after =
        Subscription { quantity: changed.quantity_after, etag: number.to_string(), ..known.clone() };
    match kind {
        Kind::Renewed => {
            after.term_number += 1;
            let term = offer(&known.offer_id).unwrap().term;
            after.term_end = term_end(time(known.started_at), term, after.term_number).map(timestamp);
        }
        Kind::AutoRenewOn => after.auto_renew = true,
        Kind::AutoRenewOff => after.auto_renew = false,
        Kind::Suspended => after.set_state(State::Suspended),
        Kind::Resumed => after.set_state(State::Active),
        Kind::Cancelled => after.set_state(State::Cancelled),
        Kind::Expired => after.set_state(State::Expired),
        Kind::ResellerAssigned => after.reseller_id.clone_from(&changed.reseller_id),
        Kind::Unspecified | Kind::Created | Kind::SeatsChanged => {}
    }
    changed.number = number;
    changed.set_kind(kind);
    changed.changed_at = Some(timestamp(now));
    changed.quantity_before = known.quantity;
    changed.term_number = after.term_number;
    after
}

pub(super) fn time(at: Option<prost_types::Timestamp>) -> Time {
    let at = at.unwrap();
    Time::from_timestamp(at.seconds, at.nanos.unsigned_abs()).unwrap()
}

pub(super) fn end_of(subscription: &Subscription) -> Option<Time> {
    subscription.term_end.map(|end| time(Some(end)))
}

pub(super) fn is_final(state: State) -> bool {
    matches!(state, State::Cancelled | State::Expired)
}

/// Whether its term has ended and is to be processed.
pub(super) fn is_due(subscription: &Subscription, now: Time) -> bool {
    !is_final(subscription.state()) && end_of(subscription).is_some_and(|end| end <= now)
}

pub(super) fn user(partner: usize) -> String {
    Uuid::new_v5(&PARTNERS[partner], b"user").to_string()
}

/// ROLE-6.
pub(super) fn is_visible(by: usize, payer_id: &str, reseller_id: &str) -> bool {
    let by = PARTNERS[by].to_string();
    by == payer_id || by == reseller_id
}
