//! The invariants of a crash test: what must hold between two databases, the history and every answer that clients received, however often
//! the services were killed. The clients are quiet meanwhile; background work goes on.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::path::Path;
use std::time::Instant;

use chassis::clock::Time;
use chassis::database::Connection;
use chrono::TimeDelta;
use prost::Message;
use proto::agreement::CreateAttestationResponse;
use tonic::Code;

use super::load::{Asked, CALLS, Call, Done, brought_by};
use super::rows::{self, Acceptance, Answered, Change, Customer, Gated, Purchase, Report, Subscription};
use crate::history::{History, RelationshipEnd};

/// How old an answer of the gate may be when something is stored on it.
const ANSWER_AGE_MAX: TimeDelta = TimeDelta::seconds(5);

/// All that order-svc has stored, in one snapshot.
pub(super) struct Orders {
    pub cursor: i64,
    gated: Vec<Gated>,
    pub changes: Vec<Change>,
    subscriptions: Vec<Subscription>,
    answered: Vec<Answered>,
    reports: Vec<Report>,
    uncovered: BTreeMap<i64, Vec<String>>,
    purchases: Vec<Purchase>,
}

impl Orders {
    pub(super) fn read(orders: &mut Connection) -> Result<Self, String> {
        Ok(Self {
            cursor: rows::cursor(orders)?,
            gated: rows::gated(orders)?,
            changes: rows::changes(orders)?,
            subscriptions: rows::subscriptions(orders)?,
            answered: rows::answered(orders)?,
            reports: rows::reports(orders)?,
            uncovered: rows::uncovered(orders)?,
            purchases: rows::purchases(orders)?,
        })
    }

    /// All orders.
    pub(super) fn placed(&self) -> impl Iterator<Item = &Gated> {
        self.gated.iter().filter(|made| made.kind == "ORDER")
    }

    /// Changes of subscriptions that were made for a reason.
    pub(super) fn changed_because(&self, reason: &str) -> usize {
        self.changes.iter().filter(|change| change.reason == reason).count()
    }

    /// The first purchases that are still to be reported.
    pub(super) fn unreported(&self) -> usize {
        self.purchases.len() - self.reported()
    }

    pub(super) fn reported(&self) -> usize {
        self.purchases.iter().filter(|known| known.is_reported).count()
    }
}

/// All that agreement-svc has stored besides its history, in one snapshot.
pub(super) struct Agreements {
    acceptances: Vec<Acceptance>,
    customers: Vec<Customer>,
    answered: Vec<Answered>,
}

impl Agreements {
    pub(super) fn read(agreements: &mut Connection) -> Result<Self, String> {
        Ok(Self {
            acceptances: rows::acceptances(agreements)?,
            customers: rows::customers(agreements)?,
            answered: rows::answered(agreements)?,
        })
    }

    /// The notifications that are still to be sent.
    pub(super) fn queued(&self) -> usize {
        self.acceptances.iter().filter(|known| known.notification.as_deref() == Some("QUEUED")).count()
    }

    /// The attestations that orders have brought along.
    pub(super) fn brought(&self) -> usize {
        self.acceptances.iter().filter(|known| brought_by(&known.email).is_some()).count()
    }
}

/// Everything. `orders` was read before `history`, so that nothing in it is unknown to the history.
pub(super) fn check(
    agreements: &Agreements,
    orders: &Orders,
    history: &History,
    asked: &[Asked],
    mails: &Path,
) -> Result<(), String> {
    gate_was_asked(&orders.gated, history)?;
    nothing_older_than_answers(asked, history)?;
    let brought = brought_once(asked, &agreements.acceptances)?;
    one_answer_each(asked, &brought, agreements.answered.iter().chain(&orders.answered))?;
    one_effect_each(asked, &brought, agreements, orders, history)?;
    changes_add_up(&orders.changes, &orders.subscriptions)?;
    withdrawals_were_applied(orders, history)?;
    relationship_ends_were_applied(orders, history)?;
    first_purchases_were_reported(asked, agreements, orders)?;
    customers_received_mail(&agreements.acceptances, mails)
}

/// I1: whatever needs the gate rests on an answer that was a yes, was young, and was right at its revision.
fn gate_was_asked(gated: &[Gated], history: &History) -> Result<(), String> {
    for made in gated {
        let (kind, id) = (&made.kind, &made.id);
        let wrong = |what: &str| Err(format!("I1: {kind} {id}: {what}: {made:?}"));
        if made.gate_decision != "ALLOWED" {
            // Nothing here is exempt: every customer is in the public cloud, and acceptance mandatory.
            return wrong("stored without a yes");
        }
        check_age(made.evaluated_at(), made.made_at()).or_else(|why| wrong(&why))?;
        if !history.changed_at(&made.customer_id, made.gate_revision) {
            return wrong("no change of the customer has the answer's revision");
        }
        let evidence: serde_json::Value =
            serde_json::from_str(&made.gate_evidence).map_err(|error| error.to_string())?;
        let covering = history.evidence_at(&made.customer_id, &made.payer_id, made.gate_revision);
        if !covering.contains(evidence["acceptance_id"].as_str().unwrap_or_default()) {
            return wrong("the payer was not covered by that at the answer's revision");
        }
    }
    Ok(())
}

/// That an answer was not too old when it was used. Both services read the same clock.
fn check_age(evaluated_at: Time, used_at: Time) -> Result<(), String> {
    let age = used_at - evaluated_at;
    if (TimeDelta::zero()..ANSWER_AGE_MAX).contains(&age) {
        return Ok(());
    }
    Err(format!("the gate's answer was {} ms old", age.num_milliseconds()))
}

/// I1, as a client sees it: what was asked after a client had the answer to a withdrawal, or of the end of a
/// relationship, does not rest on an answer from before it.
fn nothing_older_than_answers(asked: &[Asked], history: &History) -> Result<(), String> {
    let by_acceptance: HashMap<&str, (&str, i64)> = history
        .withdrawals()
        .iter()
        .map(|known| (known.acceptance_id.as_str(), (known.customer_id.as_str(), known.revision)))
        .collect();
    let mut received: HashMap<&str, Vec<(Instant, i64)>> = HashMap::new();
    for (at, done) in asked.iter().flat_map(Asked::done) {
        if let Some(acceptance) = withdrawn(done) {
            let known = by_acceptance.get(acceptance);
            let (customer, revision) =
                known.ok_or_else(|| format!("I4: the withdrawal of {acceptance} is not in the history"))?;
            received.entry(customer).or_default().push((at, *revision));
        }
        if let Done::EndRelationship(ended) = done {
            let relationship_end =
                history.relationship_ends().iter().find(|known| known.revision == ended.revision);
            let relationship_end =
                relationship_end.ok_or_else(|| format!("I4: {ended:?} is not in the history"))?;
            received.entry(&relationship_end.customer_id).or_default().push((at, relationship_end.revision));
        }
    }
    for one in asked {
        let Some((customer, gate)) = one.done().find_map(|(_, done)| done.gated()) else { continue };
        let before = received.get(customer).into_iter().flatten().filter(|(at, _)| *at < one.first_sent);
        let known = before.map(|(_, revision)| *revision).max().unwrap_or_default();
        if gate.revision < known {
            return Err(format!(
                "I1: allowed on an answer older than {known}, which a client received before: {one:?}"
            ));
        }
    }
    Ok(())
}

/// ORD-4: each order has at most the one attestation that it brought along, stored as that of the caller that ordered. It
/// is there, and stays, once the order was accepted or refused for anything but that the customer is not
/// there, and the order rests on nothing older. Answers their ids.
fn brought_once<'r>(asked: &[Asked], acceptances: &'r [Acceptance]) -> Result<BTreeSet<&'r str>, String> {
    let mut stored: HashMap<&str, &Acceptance> = HashMap::new();
    for known in acceptances {
        let Some(order) = brought_by(&known.email) else { continue };
        if let Some(first) = stored.insert(order, known) {
            return Err(format!("I4: two attestations for one order: {first:?} and {known:?}"));
        }
    }
    let brought = stored.values().map(|known| known.id.as_str()).collect();
    for one in asked {
        let Some(order) = one.bringing() else { continue };
        let Some(known) = stored.remove(order.request_id.as_str()) else {
            if one.outcomes.iter().any(|(_, outcome)| !matches!(outcome, Err(Code::NotFound))) {
                return Err(format!("I7: the attestation is not stored: {one:?}"));
            }
            continue;
        };
        let by = (one.by.tenant_id.to_string(), one.by.user_id.to_string());
        if (&known.partner_id, &known.recorded_by, &known.customer_id) != (&by.0, &by.1, &order.customer_id) {
            return Err(format!("ORD-4: stored as another partner's: {known:?}: {one:?}"));
        }
        let gate = one.done().find_map(|(_, done)| done.gated());
        if gate.is_some_and(|(_, gate)| gate.revision < known.revision) {
            return Err(format!("ORD-4: the order rests on an answer older than {known:?}: {one:?}"));
        }
    }
    match stored.into_values().next() {
        None => Ok(brought),
        Some(unknown) => Err(format!("I4: no order brought {unknown:?}")),
    }
}

/// I4: a repeated request is answered the same, and that is what is stored under its id; a request
/// that was never answered so has left nothing there. What orders brought along was answered to order-svc,
/// once.
fn one_answer_each<'r>(
    asked: &[Asked],
    brought: &BTreeSet<&str>,
    answered: impl Iterator<Item = &'r Answered>,
) -> Result<(), String> {
    let answered = answered.filter(|row| CALLS.contains(&row.call.as_str()));
    let mut stored: HashMap<(&str, &str), &Answered> =
        answered.map(|row| ((row.call.as_str(), row.request_id.as_str()), row)).collect();
    for one in asked {
        let kept = stored.remove(&(one.call.name(), one.call.request_id()));
        match (one.done().next(), kept) {
            (None, None) => {}
            (None, Some(_)) => return Err(format!("I4: never answered, and yet stored: {one:?}")),
            (Some(_), None) => return Err(format!("I4: answered, and not stored: {one:?}")),
            (Some(_), Some(kept)) => {
                if one.done().any(|(_, done)| done.encoded() != kept.answer) {
                    return Err(format!("I4: answered differently from what is stored: {one:?}"));
                }
                let gate = one.done().find_map(|(_, done)| done.gated()?.1.evaluated_at);
                if let Some(at) = gate {
                    let nanos = u32::try_from(at.nanos).unwrap_or_default();
                    let evaluated_at = Time::from_timestamp(at.seconds, nanos).unwrap_or_default();
                    check_age(evaluated_at, kept.answered_at())
                        .map_err(|why| format!("I1: {why} when it was stored: {one:?}"))?;
                }
            }
        }
    }
    let mut of_orders = brought.clone();
    stored.retain(|(call, _), row| {
        *call != "CreateAttestation" || !is_about_one_of(&mut of_orders, &row.answer)
    });
    if let Some(unanswered) = of_orders.first() {
        return Err(format!("I4: stored, and no answer with it: attestation {unanswered}"));
    }
    match stored.into_keys().next() {
        None => Ok(()),
        Some(extra) => Err(format!("I4: no client asked for {extra:?}")),
    }
}

/// Whether an answer is about one of the attestations, which is taken out.
fn is_about_one_of(attestations: &mut BTreeSet<&str>, answer: &[u8]) -> bool {
    let made = CreateAttestationResponse::decode(answer).unwrap_or_default().attestation;
    made.is_some_and(|made| attestations.remove(made.attestation_id.as_str()))
}

/// I4: the databases hold what the answers to clients say, no more and no less, each once for one request id.
fn one_effect_each(
    asked: &[Asked],
    brought: &BTreeSet<&str>,
    agreements: &Agreements,
    orders: &Orders,
    history: &History,
) -> Result<(), String> {
    let mut acknowledged = Acknowledged::default();
    // Orders do not name theirs.
    acknowledged.attestations.extend(brought.iter().map(ToString::to_string));
    for one in asked {
        if let Some((_, done)) = one.done().next() {
            acknowledged.note(&one.call, done)?;
        }
    }
    same("customer", &acknowledged.customers, agreements.customers.iter().map(|known| &known.id))?;
    same(
        "end of a relationship",
        &acknowledged.relationship_ends,
        history.relationship_ends().iter().map(|known| &known.revision),
    )?;
    let of_kind = |kind: &'static str| {
        agreements.acceptances.iter().filter(move |known| known.kind == kind).map(|known| &known.id)
    };
    same("attestation", &acknowledged.attestations, of_kind("ATTESTATION"))?;
    same("signature", &acknowledged.signatures, of_kind("SIGNATURE"))?;
    let withdrawn = agreements.acceptances.iter().filter(|known| known.is_withdrawn).map(|known| &known.id);
    same("withdrawal", &acknowledged.withdrawn, withdrawn)?;
    same("order", &acknowledged.orders, orders.placed().map(|order| &order.id))?;
    same("subscription", &acknowledged.subscriptions, orders.subscriptions.iter().map(|known| &known.id))?;
    let requested = orders.changes.iter().filter(|row| row.reason == "REQUESTED" && row.kind != "CREATED");
    let stored: BTreeSet<_> =
        requested.map(|row| (row.subscription_id.clone(), row.number, row.quantity_after)).collect();
    same("change", &acknowledged.changes, &stored)
}

/// What exists now, according to the answers that clients received.
#[derive(Default)]
struct Acknowledged {
    customers: BTreeSet<String>,
    attestations: BTreeSet<String>,
    signatures: BTreeSet<String>,
    withdrawn: BTreeSet<String>,
    /// The revisions of the ends of relationships.
    relationship_ends: BTreeSet<i64>,
    orders: BTreeSet<String>,
    subscriptions: BTreeSet<String>,
    /// Subscription, number of the change, and quantity after it.
    changes: BTreeSet<(String, i32, i64)>,
}

impl Acknowledged {
    fn note(&mut self, call: &Call, done: &Done) -> Result<(), String> {
        let twice =
            |is_new: bool| if is_new { Ok(()) } else { Err(format!("I4: two requests did {done:?}")) };
        match done {
            Done::CreateCustomer(created) => {
                let customer = created.customer.clone().unwrap_or_default();
                twice(self.customers.insert(customer.customer_id))?;
                let attested = created.attestation.clone();
                attested.map_or(Ok(()), |it| twice(self.attestations.insert(it.attestation_id)))
            }
            Done::EndRelationship(ended) => twice(self.relationship_ends.insert(ended.revision)),
            Done::CreateAttestation(created) => {
                let attestation = created.attestation.clone().unwrap_or_default();
                twice(self.attestations.insert(attestation.attestation_id))
            }
            // Signing or withdrawing twice is once (DIR-1, WD-1).
            Done::SignAgreement(signed) => {
                self.signatures.extend(signed.signature.clone().map(|it| it.signature_id));
                Ok(())
            }
            Done::AcceptInvitation(accepted) => {
                self.signatures.extend(accepted.signature.clone().map(|it| it.signature_id));
                Ok(())
            }
            Done::WithdrawAttestation(_) | Done::WithdrawSignature(_) => {
                self.withdrawn.extend(withdrawn(done).map(str::to_owned));
                Ok(())
            }
            Done::CreateOrder(placed) => {
                let order = placed.order.clone().unwrap_or_default();
                self.subscriptions.extend(placed.subscriptions.iter().map(|it| it.subscription_id.clone()));
                twice(self.orders.insert(order.order_id))
            }
            _ => {
                let changed = done.changed().cloned().unwrap_or_default();
                // What was so already changes nothing, and keeps its etag.
                if call.etag().as_ref() == Some(&changed.etag) {
                    return Ok(());
                }
                let number = changed.etag.parse().map_err(|_| "an etag that is no number")?;
                twice(self.changes.insert((changed.subscription_id, number, changed.quantity.into())))
            }
        }
    }
}

fn withdrawn(done: &Done) -> Option<&str> {
    match done {
        Done::WithdrawAttestation(done) => Some(&done.attestation.as_ref()?.attestation_id),
        Done::WithdrawSignature(done) => Some(&done.signature.as_ref()?.signature_id),
        _ => None,
    }
}

fn same<'r, T: Ord + Debug + 'r>(
    what: &str,
    acknowledged: &BTreeSet<T>,
    stored: impl IntoIterator<Item = &'r T>,
) -> Result<(), String> {
    let stored: BTreeSet<&T> = stored.into_iter().collect();
    if let Some(lost) = acknowledged.iter().find(|one| !stored.contains(one)) {
        return Err(format!("I4: {what} {lost:?} was acknowledged and is not stored"));
    }
    match stored.into_iter().find(|one| !acknowledged.contains(*one)) {
        None => Ok(()),
        Some(unknown) => Err(format!("I4: {what} {unknown:?} is stored and no client has the answer")),
    }
}

/// Every subscription is what its changes made of it, one after the other, and rests on the last answer
/// that one of them needed. No event changed it that is older than the answer it rested on then.
fn changes_add_up(changes: &[Change], subscriptions: &[Subscription]) -> Result<(), String> {
    let mut last: HashMap<&str, (i32, i64, i64)> = HashMap::new();
    for change in changes {
        let (number, quantity, answer) = last.entry(&change.subscription_id).or_default();
        if change.number != *number + 1 {
            return Err(format!("change {number} is followed by {change:?}"));
        }
        if change.event_revision != 0 && change.event_revision <= *answer {
            return Err(format!("I2, CUS-3: it rested on the newer answer {answer}: {change:?}"));
        }
        (*number, *quantity) = (change.number, change.quantity_after);
        if change.gate_revision != 0 {
            *answer = change.gate_revision;
        }
    }
    for known in subscriptions {
        let (number, quantity, answer) = last.get(known.id.as_str()).copied().unwrap_or_default();
        if (i64::from(number), quantity, answer) != (known.version, known.quantity, known.answer_revision) {
            return Err(format!(
                "its {number} changes led to {quantity} seats on answer {answer}: {known:?}"
            ));
        }
    }
    Ok(())
}

/// I2 and I3: each withdrawal up to the cursor has had its effect, once, and no other.
fn withdrawals_were_applied(orders: &Orders, history: &History) -> Result<(), String> {
    let applied: Vec<_> =
        history.withdrawals().iter().filter(|known| known.revision <= orders.cursor).collect();
    let reported = orders.reports.iter().map(|row| (row.revision, &row.customer_id, &row.acceptance_id));
    let expected = applied.iter().map(|known| (known.revision, &known.customer_id, &known.acceptance_id));
    let (reported, expected): (BTreeSet<_>, BTreeSet<_>) = (reported.collect(), expected.collect());
    if let Some(one) = reported.symmetric_difference(&expected).next() {
        let cursor = orders.cursor;
        return Err(format!("I3: applied up to {cursor}, and not one report for each withdrawal: {one:?}"));
    }
    let mut uncovering: HashMap<(&str, &str), Vec<i64>> = HashMap::new();
    for withdrawal in applied {
        let reported = orders.uncovered.get(&withdrawal.revision).into_iter().flatten().cloned();
        if reported.collect::<BTreeSet<_>>() != withdrawal.uncovered {
            return Err(format!("I3: another report uncovers whom {withdrawal:?} uncovers"));
        }
        for partner in &withdrawal.uncovered {
            let key = (withdrawal.customer_id.as_str(), partner.as_str());
            uncovering.entry(key).or_default().push(withdrawal.revision);
        }
    }
    let mut cancelled: HashMap<&str, i64> = HashMap::new();
    let mut of_report: HashMap<i64, i32> = HashMap::new();
    for change in orders.changes.iter().filter(|change| change.reason == "AGREEMENT_WITHDRAWN") {
        if cancelled.insert(&change.subscription_id, change.event_revision).is_some() {
            return Err(format!("I3: cancelled twice: {change:?}"));
        }
        *of_report.entry(change.event_revision).or_default() += 1;
    }
    for report in &orders.reports {
        let found = of_report.remove(&report.revision).unwrap_or_default();
        if found != report.cancelled {
            return Err(format!("I3: {found} were cancelled: {report:?}"));
        }
    }
    for known in &orders.subscriptions {
        let revisions = uncovering.get(&(known.customer_id.as_str(), known.payer_id.as_str()));
        let after: Vec<i64> =
            revisions.into_iter().flatten().copied().filter(|w| known.answer_revision < *w).collect();
        if !after.is_empty() && !known.is_final() {
            return Err(format!("I2: it rests on an answer older than withdrawals {after:?}: {known:?}"));
        }
        let by = cancelled.get(known.id.as_str());
        if let Some(by) = by.filter(|by| after.first() != Some(by)) {
            return Err(format!("I2: cancelled for {by}, though {after:?} should have: {known:?}"));
        }
    }
    Ok(())
}

/// CUS-3 and I3: each end of a relationship up to the cursor has had its effect, once, and no other.
/// Whether it came before the answers that a subscription rested on, the changes tell.
fn relationship_ends_were_applied(orders: &Orders, history: &History) -> Result<(), String> {
    let concerns = |relationship_end: &RelationshipEnd, known: &Subscription| {
        (&known.customer_id, &known.payer_id) == (&relationship_end.customer_id, &relationship_end.partner_id)
            && (!relationship_end.others_remain || known.reseller_id == relationship_end.reseller_id)
    };
    let subscriptions: HashMap<&str, &Subscription> =
        orders.subscriptions.iter().map(|known| (known.id.as_str(), known)).collect();
    let mut switched_off = BTreeSet::new();
    for change in orders.changes.iter().filter(|change| change.reason == "RELATIONSHIP_ENDED") {
        let relationship_end =
            history.relationship_ends().iter().find(|known| known.revision == change.event_revision);
        let known = subscriptions.get(change.subscription_id.as_str());
        let is_concerned = relationship_end
            .zip(known)
            .is_some_and(|(relationship_end, known)| concerns(relationship_end, known));
        // What has no term is cancelled with the last relationship of payer and customer.
        let is_last = relationship_end.is_some_and(|relationship_end| !relationship_end.others_remain);
        let is_perpetual = known.is_some_and(|known| known.term == "PERPETUAL");
        let kind = if is_perpetual && is_last { "CANCELLED" } else { "AUTO_RENEW_OFF" };
        if change.kind != kind || change.event_revision > orders.cursor || !is_concerned {
            return Err(format!("CUS-3: no end of a relationship did this: {change:?}"));
        }
        if !switched_off.insert((&change.subscription_id, change.event_revision)) {
            return Err(format!("I3: done twice: {change:?}"));
        }
    }
    for relationship_end in history.relationship_ends().iter().filter(|known| known.revision <= orders.cursor)
    {
        let goes_on = |known: &&Subscription| {
            concerns(relationship_end, known)
                && known.answer_revision < relationship_end.revision
                && (known.auto_renew || (known.term == "PERPETUAL" && !relationship_end.others_remain))
                && !known.is_final()
        };
        if let Some(known) = orders.subscriptions.iter().find(goes_on) {
            return Err(format!("CUS-3: it renews by itself after {relationship_end:?}: {known:?}"));
        }
    }
    Ok(())
}

/// DIR-4: every customer with an order has one report, of its first, and agreement-svc knows what was
/// reported and nothing else.
fn first_purchases_were_reported(
    asked: &[Asked],
    agreements: &Agreements,
    orders: &Orders,
) -> Result<(), String> {
    let placed: HashMap<&str, &Gated> = orders.placed().map(|made| (made.id.as_str(), made)).collect();
    let mut acknowledged: HashMap<&str, (Instant, Instant)> = HashMap::new();
    for one in asked {
        if let Some((at, Done::CreateOrder(done))) = one.done().next() {
            let order = done.order.as_ref().map(|order| order.order_id.as_str()).unwrap_or_default();
            acknowledged.insert(order, (one.first_sent, at));
        }
    }
    let mut first: HashMap<&str, &Purchase> =
        orders.purchases.iter().map(|known| (known.customer_id.as_str(), known)).collect();
    for order in placed.values() {
        let Some(reported) = first.get(order.customer_id.as_str()) else {
            return Err(format!("a first purchase is not to be reported: {order:?}"));
        };
        // Which of two at the same time comes first is the database's choice.
        let of_reported =
            acknowledged.get(reported.order_id.as_str()).zip(acknowledged.get(order.id.as_str()));
        if of_reported.is_some_and(|((sent, _), (_, answered))| answered < sent) {
            return Err(format!("{order:?} came before the reported {reported:?}"));
        }
    }
    for known in &agreements.customers {
        let reported = first.remove(known.id.as_str());
        let is_right = match (reported, known.first_purchase_at) {
            (None, None) => true,
            (None, Some(_)) => false,
            // It may be there, and its sender was killed before it knew.
            (Some(reported), None) => !reported.is_reported,
            (Some(reported), Some(at)) => at == reported.purchased_at,
        };
        if !is_right {
            return Err(format!("DIR-4: {known:?}, and reported is {reported:?}"));
        }
        let order =
            reported.map(|reported| placed.get(reported.order_id.as_str()).map(|order| order.made_at()));
        if order.is_some_and(|at| at != reported.map(|reported| reported.purchased_at.and_utc())) {
            return Err(format!("DIR-4: the order was placed at another time: {reported:?}"));
        }
    }
    match first.into_values().next() {
        None => Ok(()),
        Some(unknown) => Err(format!("DIR-4: there is no such customer: {unknown:?}")),
    }
}

/// I6: every attestation has its mail, or it can be seen that it has none yet, or never will; signatures
/// have none.
fn customers_received_mail(acceptances: &[Acceptance], mails: &Path) -> Result<(), String> {
    let mut written = BTreeSet::new();
    // There is no folder before the first mail.
    for entry in std::fs::read_dir(mails).into_iter().flatten() {
        let name = entry.map_err(|error| error.to_string())?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') {
            written.insert(name.trim_end_matches(".eml").to_owned());
        }
    }
    for known in acceptances {
        let is_written = written.remove(&known.id);
        let is_right = match (known.kind.as_str(), known.notification.as_deref()) {
            ("ATTESTATION", Some("SENT")) => is_written,
            ("ATTESTATION", Some("QUEUED" | "DEAD_LETTER")) => true,
            ("SIGNATURE", None) => !is_written,
            _ => false,
        };
        if !is_right {
            return Err(format!("I6: with a mail: {is_written}: {known:?}"));
        }
    }
    match written.pop_first() {
        None => Ok(()),
        Some(unknown) => Err(format!("I6: a mail for {unknown}, which is no attestation")),
    }
}
