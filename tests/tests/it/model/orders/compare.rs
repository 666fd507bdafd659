//! The comparison of what callers can read with the model, by pages of two.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use proto::order::{
    GetOfferRequest, GetOrderRequest, GetSubscriptionRequest, GetWithdrawalReportRequest, ListOffersRequest,
    ListOrdersRequest, ListSubscriptionChangesRequest, ListSubscriptionsRequest,
    ListWithdrawalReportsRequest, Order, Subscription, SubscriptionChange, WithdrawalEffect,
    WithdrawalOutcome,
};
use tests::As;

use super::call::{Refusal, refused};
use super::offers::OFFERS;
use super::play::Play;
use super::state::{counted, is_visible};
use crate::model::acceptance::{NOT_FOUND, PARTNERS};

impl Play {
    /// Compares all subscriptions, and what happened to those that changed.
    pub(super) async fn compare(&mut self) -> Result<(), TestCaseError> {
        let answered = subscriptions(&self.world.operator, "", 500).await;
        let known: Vec<_> = self.model.subscriptions.values().map(|tracked| tracked.now.clone()).collect();
        prop_assert_eq!(answered, known, "the subscriptions");
        for (id, tracked) in &mut self.model.subscriptions {
            if tracked.compared < tracked.changes.len() {
                let answered = changes(&self.world.operator, id, 500).await;
                prop_assert_eq!(&answered, &tracked.changes, "what happened to subscription {}", id);
                tracked.compared = answered.len();
            }
        }
        Ok(())
    }
}

/// All pages of a list, each of which is read by the token that the one before returned.
async fn all_pages<T>(page: impl AsyncFn(String) -> (Vec<T>, String)) -> Vec<T> {
    let (mut all, mut page_token) = (vec![], String::new());
    loop {
        let (rows, next_page_token) = page(page_token).await;
        all.extend(rows);
        if next_page_token.is_empty() {
            return all;
        }
        page_token = next_page_token;
    }
}

/// The subscriptions that a caller sees.
pub(super) async fn subscriptions(of: &As, customer_id: &str, page_size: i32) -> Vec<Subscription> {
    all_pages(async |page_token| {
        let request = ListSubscriptionsRequest {
            customer_id: customer_id.into(),
            page_size,
            page_token,
            ..Default::default()
        };
        let page = of.subscriptions().list_subscriptions(request).await.unwrap().into_inner();
        (page.subscriptions, page.next_page_token)
    })
    .await
}

/// The orders that a caller sees.
async fn orders(of: &As, customer_id: &str, page_size: i32) -> Vec<Order> {
    all_pages(async |page_token| {
        let request = ListOrdersRequest {
            customer_id: customer_id.into(),
            page_size,
            page_token,
            ..Default::default()
        };
        let page = of.orders().list_orders(request).await.unwrap().into_inner();
        (page.orders, page.next_page_token)
    })
    .await
}

/// The changes of a subscription.
async fn changes(of: &As, subscription_id: &str, page_size: i32) -> Vec<SubscriptionChange> {
    all_pages(async |page_token| {
        let subscription_id = subscription_id.to_owned();
        let request =
            ListSubscriptionChangesRequest { subscription_id, page_size, page_token, ..Default::default() };
        let page = of.subscriptions().list_subscription_changes(request).await.unwrap().into_inner();
        (page.changes, page.next_page_token)
    })
    .await
}

/// The catalogue is the one that the model knows.
pub(super) async fn compare_offers(of: &As) -> Result<(), TestCaseError> {
    let listed = of.offers().list_offers(ListOffersRequest::default()).await.unwrap().into_inner().offers;
    prop_assert_eq!(listed.len(), OFFERS.len());
    for known in &OFFERS {
        let request = GetOfferRequest { offer_id: known.id.into() };
        let answered = of.offers().get_offer(request).await.unwrap().into_inner().offer.unwrap();
        prop_assert!(listed.contains(&answered));
        let kinds = (answered.kind(), answered.term(), answered.billing_cycle(), answered.auto_renews);
        prop_assert_eq!(kinds, (known.kind, known.term, known.billing, known.auto_renews), "{}", known.id);
        prop_assert_eq!(
            (answered.quantity_min, answered.quantity_max),
            (1, known.quantity_max),
            "{}",
            known.id
        );
        let demands: Vec<_> = answered.agreement_types().collect();
        prop_assert_eq!(demands, known.demands.into_iter().collect::<Vec<_>>(), "{}", known.id);
        prop_assert_eq!(answered.countries.first().map(String::as_str), known.sold_in, "{}", known.id);
    }
    Ok(())
}

impl Play {
    /// Compares everything that each caller can read, by pages of two.
    pub(super) async fn compare_all(&self) -> Result<(), TestCaseError> {
        for by in 0..PARTNERS.len() {
            self.compare_sight(by, &self.world.partners[by]).await?;
            self.compare_reports(&self.world.partners[by], Some(by)).await?;
        }
        self.compare_reports(&self.world.operator, None).await?;
        let answered = orders(&self.world.operator, "", 2).await;
        prop_assert_eq!(answered, self.model.orders.values().cloned().collect::<Vec<_>>(), "the orders");
        self.world.compare_history().await
    }

    /// The withdrawal reports that a caller sees (WD-4): the operator all, a partner its own part.
    pub(super) async fn compare_reports(&self, of: &As, by: Option<usize>) -> Result<(), TestCaseError> {
        let own = by.map(|by| PARTNERS[by].to_string());
        let mut known = vec![];
        for (report, effects) in self.model.reports.values() {
            let Some(own) = &own else {
                known.push((report.clone(), effects.clone()));
                continue;
            };
            let is_own = |effect: &&WithdrawalEffect| effect.payer_id == *own || effect.reseller_id == *own;
            let effects: Vec<_> = effects.iter().filter(is_own).cloned().collect();
            let mut report = counted(report.clone(), &effects);
            report.uncovered_partner_ids.retain(|of| of == own);
            if report.partner_id == *own || !report.uncovered_partner_ids.is_empty() || !effects.is_empty() {
                known.push((report, effects));
            }
        }
        let (mut listed, mut page_token) = (vec![], String::new());
        loop {
            let request = ListWithdrawalReportsRequest { page_size: 2, page_token, ..Default::default() };
            let page = of.withdrawals().list_withdrawal_reports(request).await.unwrap().into_inner();
            listed.extend(page.reports);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        prop_assert_eq!(
            &listed,
            &known.iter().map(|(report, _)| report.clone()).collect::<Vec<_>>(),
            "by {:?}",
            by
        );
        for (report, effects) in known {
            let request = GetWithdrawalReportRequest {
                revision: report.revision,
                page_size: 500,
                ..Default::default()
            };
            let answered = of.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner();
            // What stayed is counted only.
            let is_cancelled = |effect: &WithdrawalEffect| effect.outcome() == WithdrawalOutcome::Cancelled;
            let effects: Vec<_> = effects.into_iter().filter(is_cancelled).collect();
            prop_assert_eq!(
                (answered.applied, answered.report, answered.effects),
                (true, Some(report), effects),
                "by {:?}",
                by
            );
        }
        Ok(())
    }

    /// What one partner sees (ROLE-6).
    pub(super) async fn compare_sight(&self, by: usize, partner: &As) -> Result<(), TestCaseError> {
        for customer_id in &self.world.customer_ids {
            let answered = subscriptions(partner, customer_id, 2).await;
            let known = self.model.subscriptions.values().map(|tracked| &tracked.now);
            let known = known.filter(|one| is_visible(by, &one.payer_id, &one.reseller_id));
            let known: Vec<_> = known.filter(|one| one.customer_id == *customer_id).cloned().collect();
            prop_assert_eq!(answered, known, "the subscriptions that partner {} sees", by);
            let answered = orders(partner, customer_id, 2).await;
            let known = self.model.orders.values();
            let known = known.filter(|one| is_visible(by, &one.payer_id, &one.reseller_id));
            let known: Vec<_> = known.filter(|one| one.customer_id == *customer_id).cloned().collect();
            prop_assert_eq!(answered, known, "the orders that partner {} sees", by);
        }
        for (id, order) in &self.model.orders {
            let request = GetOrderRequest { order_id: id.clone() };
            let answered =
                partner.orders().get_order(request).await.map(|answered| answered.into_inner().order);
            let unseen = refused(NOT_FOUND, [("partner_center_code", "20000".into())]);
            let is_visible = is_visible(by, &order.payer_id, &order.reseller_id);
            let known = if is_visible { Ok(Some(order.clone())) } else { Err(unseen) };
            prop_assert_eq!(answered.map_err(Refusal::from), known);
        }
        for (id, tracked) in &self.model.subscriptions {
            let request = GetSubscriptionRequest { subscription_id: id.clone() };
            let answered = partner.subscriptions().get_subscription(request).await;
            let unseen = refused(NOT_FOUND, [("partner_center_code", "20003".into())]);
            let is_visible = is_visible(by, &tracked.now.payer_id, &tracked.now.reseller_id);
            let known = if is_visible { Ok(Some(tracked.now.clone())) } else { Err(unseen) };
            prop_assert_eq!(
                answered.map(|answered| answered.into_inner().subscription).map_err(Refusal::from),
                known
            );
            if is_visible {
                prop_assert_eq!(&changes(partner, id, 2).await, &tracked.changes, "of subscription {}", id);
            }
        }
        Ok(())
    }
}
