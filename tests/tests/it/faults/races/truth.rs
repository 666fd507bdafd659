//! The comparison of what both services record about one customer.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use futures_util::stream;
use proto::agreement::Event;
use proto::agreement::event::Change;
use proto::order::{
    ListSubscriptionChangesRequest, ListSubscriptionsRequest, ListWithdrawalReportsRequest, Subscription,
    SubscriptionChange, SubscriptionChangeReason, SubscriptionState, WithdrawalOutcome, WithdrawalReport,
};
use tests::As;

use super::Sum;
use super::customer::{Customer, Moment, moment, report_page};

/// What both services record about one customer.
pub(super) struct Truth<'a> {
    customer: &'a Customer,
    /// By revision: the partners that each withdrawal left without acceptance.
    withdrawals: BTreeMap<i64, Vec<String>>,
    /// By acceptance: the revisions between which it was current.
    current: BTreeMap<String, (i64, i64)>,
    reports: Vec<(WithdrawalReport, BTreeMap<String, WithdrawalOutcome>)>,
    subscriptions: Vec<Kept>,
}

/// A subscription, with what happened to it.
struct Kept {
    subscription: Subscription,
    changes: Vec<SubscriptionChange>,
}

impl Kept {
    fn id(&self) -> &str {
        &self.subscription.subscription_id
    }

    /// The withdrawal that cancelled it.
    fn cancelled_by(&self) -> Option<i64> {
        let last = self.changes.last().unwrap();
        (last.reason() == SubscriptionChangeReason::AgreementWithdrawn).then_some(last.event_revision)
    }

    /// The revisions of the answers that it has rested on, with the numbers of the changes.
    fn answers(&self) -> impl DoubleEndedIterator<Item = (u32, i64)> {
        self.changes.iter().filter_map(|change| Some((change.number, change.gate.as_ref()?.revision)))
    }

    /// The revision of the answer that it rests on.
    fn answer(&self) -> i64 {
        self.answers().next_back().unwrap().1
    }
}

impl<'a> Truth<'a> {
    pub(super) async fn read(operator: &As, customer: &'a Customer, events: &[Event]) -> Self {
        let (mut withdrawals, mut current) = (BTreeMap::new(), BTreeMap::new());
        for event in events.iter().filter(|event| event.customer_id == customer.id) {
            match event.change.clone().unwrap() {
                Change::Attested(attested) => {
                    current.insert(attested.attestation_id, (event.revision, i64::MAX));
                }
                Change::Signed(signed) => {
                    current.insert(signed.signature_id, (event.revision, i64::MAX));
                }
                Change::AttestationWithdrawn(withdrawn) => {
                    current.get_mut(&withdrawn.attestation_id).unwrap().1 = event.revision;
                    withdrawals.insert(event.revision, withdrawn.uncovered_partner_ids);
                }
                Change::SignatureWithdrawn(withdrawn) => {
                    current.get_mut(&withdrawn.signature_id).unwrap().1 = event.revision;
                    withdrawals.insert(event.revision, withdrawn.uncovered_partner_ids);
                }
                _ => {}
            }
        }
        let mut reports = vec![];
        for report in reports_of(operator, &customer.id).await {
            let effects = effects_of(operator, report.revision).await;
            reports.push((report, effects));
        }
        let subscriptions = subscriptions_of(operator, &customer.id).await;
        Self { customer, withdrawals, current, reports, subscriptions }
    }

    /// Collects every contradiction, in words.
    pub(super) fn check(&self, wrong: &mut Vec<String>) {
        let reported: Vec<i64> = self.reports.iter().map(|(report, _)| report.revision).collect();
        if !self.withdrawals.keys().eq(&reported) {
            wrong.push(format!("withdrawals {:?} have the reports {reported:?}", self.withdrawals.keys()));
        }
        for kept in &self.subscriptions {
            self.check_life(kept, wrong);
        }
        for (report, effects) in &self.reports {
            self.check_report(report, effects, wrong);
        }
        for witness in &self.customer.seen.lock().unwrap().witnesses {
            let kept = self.subscriptions.iter().find(|kept| kept.id() == witness.subscription_id).unwrap();
            let later = kept.answers().filter(|(number, _)| *number > witness.version);
            for (number, answer) in later.filter(|(_, answer)| *answer < witness.revision) {
                wrong.push(format!(
                    "change {number} of {} rests on answer {answer}, though withdrawal {} had been applied",
                    kept.id(),
                    witness.revision
                ));
            }
        }
    }

    /// A subscription by itself: it ends as the withdrawals demand, and only so.
    fn check_life(&self, kept: &Kept, wrong: &mut Vec<String>) {
        let (id, payer) = (kept.id(), &kept.subscription.payer_id);
        let uncovers = |revision: &i64| self.withdrawals.get(revision).is_some_and(|of| of.contains(payer));
        if !kept.changes.iter().map(|change| change.number).eq(1..=kept.changes.len() as u32) {
            wrong.push(format!("{id}: its changes are not numbered one by one"));
        }
        for gate in kept.changes.iter().filter_map(|change| change.gate.as_ref()) {
            let acceptance = &gate.evidence.as_ref().unwrap().acceptance_id;
            let (from, until) = self.current[acceptance];
            if gate.revision < from || gate.revision >= until {
                wrong.push(format!("{id}: {acceptance} was not current at answer {}", gate.revision));
            }
        }
        let is_final = kept.subscription.state() == SubscriptionState::Cancelled;
        if is_final != kept.cancelled_by().is_some() {
            wrong.push(format!("{id}: {:?} after its last change", kept.subscription.state()));
        }
        if let Some(by) = kept.cancelled_by() {
            if !uncovers(&by) {
                wrong.push(format!("{id}: cancelled by {by}, which is not about its payer"));
            }
            if kept.answer() >= by {
                wrong.push(format!(
                    "{id}: cancelled by withdrawal {by}, but rests on answer {}",
                    kept.answer()
                ));
            }
        }
        let end = kept.cancelled_by().unwrap_or(i64::MAX);
        let outlived = |revision: &&i64| kept.answer() < **revision && **revision < end && uncovers(revision);
        for revision in self.withdrawals.keys().filter(outlived) {
            wrong.push(format!("{id}: rests on answer {}, but outlived {revision}", kept.answer()));
        }
    }

    /// A report says what its withdrawal did: it lists what it cancelled, and counts the rest of what the acceptance could
    /// cover and that had not ended when it was applied.
    fn check_report(
        &self,
        report: &WithdrawalReport,
        effects: &BTreeMap<String, WithdrawalOutcome>,
        wrong: &mut Vec<String>,
    ) {
        let revision = report.revision;
        let uncovered = &self.withdrawals[&revision];
        let sorted = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
        if sorted(uncovered) != sorted(&report.uncovered_partner_ids) {
            wrong.push(format!("report {revision} names other partners than the event"));
        }
        let is_cancelled = |outcome: &WithdrawalOutcome| *outcome == WithdrawalOutcome::Cancelled;
        if !effects.values().all(is_cancelled) || report.cancelled as usize != effects.len() {
            wrong.push(format!("report {revision} counts what it does not list"));
        }
        let (mut known, mut all) = (0, 0);
        for kept in &self.subscriptions {
            let (id, is_uncovered) = (kept.id(), uncovered.contains(&kept.subscription.payer_id));
            let is_cancelled = kept.cancelled_by() == Some(revision);
            if effects.contains_key(id) != is_cancelled || (is_cancelled && !is_uncovered) {
                wrong.push(format!("report {revision} says {:?} of {id}", effects.get(id)));
            }
            let was_final = kept.cancelled_by().is_some_and(|by| by < revision);
            let could_cover = ["", kept.subscription.payer_id.as_str()].contains(&report.partner_id.as_str());
            if could_cover && !was_final {
                all += 1;
                known += usize::from(kept.answers().next().is_some_and(|(_, answer)| answer < revision));
            }
        }
        // What was bought on an older answer was stored before the withdrawal was applied, and so is counted.
        let counted = report.cancelled as usize + report.stayed as usize;
        if counted < known {
            let late = known - counted;
            wrong
                .push(format!("{late} were stored on older answers after withdrawal {revision} was applied"));
        }
        if counted > all || report.newer_answer > report.stayed {
            wrong.push(format!("report {revision} counts {counted} of {all}"));
        }
    }

    pub(super) fn add_to(&self, sum: &mut Sum) {
        let deeds = &self.customer.seen.lock().unwrap().deeds;
        let span = |report: &WithdrawalReport| {
            (moment(report.withdrawn_at.unwrap()), moment(report.applied_at.unwrap()))
        };
        let spans: Vec<_> = self.reports.iter().map(|(report, _)| span(report)).collect();
        let overlaps = |(began, ended): &&(Moment, Moment)| {
            spans.iter().any(|(withdrawn, applied)| began <= applied && withdrawn <= ended)
        };
        sum.deeds += deeds.len();
        sum.overlapped += deeds.iter().filter(overlaps).count();
        sum.withdrawals += self.withdrawals.len();
        sum.cancelled += self.subscriptions.iter().filter(|kept| kept.cancelled_by().is_some()).count();
        sum.newer += self.reports.iter().map(|(report, _)| report.newer_answer as usize).sum::<usize>();
    }
}

pub(super) async fn reports_of(operator: &As, customer_id: &str) -> Vec<WithdrawalReport> {
    let (mut reports, mut page_token) = (vec![], String::new());
    loop {
        let customer_id = customer_id.into();
        let request =
            ListWithdrawalReportsRequest { customer_id, page_size: 500, page_token, ..Default::default() };
        let page = operator.withdrawals().list_withdrawal_reports(request).await.unwrap().into_inner();
        reports.extend(page.reports);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return reports;
        }
    }
}

async fn effects_of(operator: &As, revision: i64) -> BTreeMap<String, WithdrawalOutcome> {
    let (mut effects, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let page = report_page(operator, revision, &page_token).await;
        effects.extend(page.effects.into_iter().map(|e| (e.subscription_id.clone(), e.outcome())));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return effects;
        }
    }
}

async fn subscriptions_of(operator: &As, customer_id: &str) -> Vec<Kept> {
    const AT_ONCE: usize = 16;
    let (mut subscriptions, mut page_token) = (vec![], String::new());
    loop {
        let customer_id = customer_id.into();
        let request =
            ListSubscriptionsRequest { customer_id, page_size: 500, page_token, ..Default::default() };
        let page = operator.subscriptions().list_subscriptions(request).await.unwrap().into_inner();
        subscriptions.extend(page.subscriptions);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let with_changes = subscriptions.into_iter().map(|subscription| async move {
        let subscription_id = subscription.subscription_id.clone();
        let request =
            ListSubscriptionChangesRequest { subscription_id, page_size: 500, ..Default::default() };
        let page = operator.subscriptions().list_subscription_changes(request).await.unwrap().into_inner();
        assert_eq!(page.next_page_token, "");
        Kept { subscription, changes: page.changes }
    });
    stream::iter(with_changes).buffered(AT_ONCE).collect().await
}
