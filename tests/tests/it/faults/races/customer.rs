//! A customer of two payers, and the clients that race for it.

use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use chassis::form::timestamp;
use futures_util::future::{join, join_all};
use proto::agreement::watch_events_response::Item;
use proto::agreement::{Event, WatchEventsRequest, WithdrawSignatureRequest, WithdrawalReason};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, GetSubscriptionRequest, GetWithdrawalReportRequest,
    GetWithdrawalReportResponse, NewOrderLine, RenewSubscriptionRequest, SetAutoRenewRequest,
};
use tests::fixtures::{self, DIRECT, OFFICE, PROVIDER};
use tests::{As, Cluster, actions, reason_of};
use tonic::{Response, Status};
use uuid::Uuid;

/// Orders that a shopper places in a round.
const ORDERS: usize = 3;

/// Far longer than any wait here takes.
const LONG: Duration = Duration::from_secs(30);

/// The reasons to refuse a call that loses the race with a withdrawal.
const MAY_BE_REFUSED: [&str; 5] =
    ["AGREEMENT_REQUIRED", "ANSWER_OUTDATED", "ETAG_STALE", "SUBSCRIPTION_NOT_ACTIVE", "SUBSCRIPTION_ENDED"];

/// A moment by the clock of both services, comparable.
pub(super) type Moment = (i64, i32);

pub(super) fn moment(at: prost_types::Timestamp) -> Moment {
    (at.seconds, at.nanos)
}

pub(super) fn now() -> Moment {
    moment(timestamp(fixtures::now()))
}

/// An acceptance that can be given and taken back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ground {
    /// The attestation of one of the payers.
    Attestation(usize),
    /// The customer's signature, which counts for all of them.
    Signature,
}

/// A customer of two payers, with its clients.
pub(super) struct Customer {
    pub id: String,
    pub name: String,
    pub admin: As,
    pub operator: As,
    pub payers: [As; 2],
    /// The acceptances that are current now, ground by ground.
    pub held: [Option<String>; 3],
    pub seen: Mutex<Seen>,
}

/// What the clients of a customer have seen.
#[derive(Default)]
pub(super) struct Seen {
    /// Subscriptions of each payer, the latest last.
    pub bought: [Vec<String>; 2],
    /// When each call began and ended.
    pub deeds: Vec<(Moment, Moment)>,
    pub witnesses: Vec<Witness>,
}

/// A subscription as it was when a withdrawal had been applied: its later changes came after that.
pub(super) struct Witness {
    pub revision: i64,
    pub subscription_id: String,
    pub version: u32,
}

impl Customer {
    pub(super) fn new(cluster: &Cluster, n: usize) -> Self {
        let id = Uuid::from_u128(0xcc00 + n as u128);
        Self {
            id: id.to_string(),
            name: format!("Customer {n}"),
            admin: cluster.as_caller(fixtures::admin(id)),
            operator: cluster.as_caller(fixtures::operator()),
            payers: [DIRECT, PROVIDER].map(|payer| cluster.as_caller(fixtures::sales(payer))),
            held: [None, None, None],
            seen: Mutex::default(),
        }
    }

    /// The customer accepts the invitations of both payers, and so has signed; each attests, too.
    pub(super) async fn enter(&mut self) {
        for (payer, company) in self.payers.iter().zip([Some(self.name.as_str()), None]) {
            let invitation = actions::invite(payer, None, None).await.unwrap();
            let request = fixtures::acceptance(&invitation, company);
            let accepted = self.admin.signatures().accept_invitation(request).await.unwrap().into_inner();
            self.held[2] = accepted.signature.map(|signature| signature.signature_id);
        }
        for payer in 0..2 {
            self.held[payer] = Some(self.accept(Ground::Attestation(payer)).await);
        }
        self.check_buying().await;
    }

    /// All clients act at the same time; then the acceptances decide who can buy.
    pub(super) async fn round(&mut self) {
        let accepting = [Ground::Attestation(0), Ground::Attestation(1), Ground::Signature]
            .into_iter()
            .zip(self.held.clone())
            .map(|(ground, held)| self.accept_or_withdraw(ground, held));
        let shopping = [0, 0, 1, 1].map(|payer| self.shop(payer));
        let changing = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)].map(|of| self.change(of.0, of.1));
        let (held, _) = join(join_all(accepting), join(join_all(shopping), join_all(changing))).await;
        self.held = held.try_into().unwrap();
        self.check_buying().await;
    }

    /// Once all withdrawals are applied, a payer can buy if it has an acceptance, and only then.
    async fn check_buying(&self) {
        for payer in 0..2 {
            let is_covered = self.held[payer].is_some() || self.held[2].is_some();
            let order = self.order(payer, 1);
            match self.payers[payer].orders().create_order(order).await {
                Ok(placed) => {
                    assert!(is_covered, "an order without an acceptance");
                    let placed = placed.into_inner().subscriptions;
                    let ids = placed.into_iter().map(|subscription| subscription.subscription_id);
                    self.seen.lock().unwrap().bought[payer].extend(ids);
                }
                Err(refused) => {
                    assert_eq!(reason_of(&refused), "AGREEMENT_REQUIRED", "{refused}");
                    assert!(!is_covered, "no order in spite of an acceptance");
                }
            }
        }
    }

    async fn accept(&self, ground: Ground) -> String {
        match ground {
            Ground::Attestation(payer) => actions::attest_now(&self.payers[payer], &self.id).await.unwrap(),
            Ground::Signature => actions::sign(&self.admin, 2).await.unwrap().signature_id,
        }
    }

    async fn withdraw(&self, ground: Ground, id: String) -> i64 {
        match ground {
            Ground::Attestation(payer) => actions::withdraw(&self.payers[payer], &id).await.unwrap(),
            Ground::Signature => {
                let request = WithdrawSignatureRequest {
                    request_id: fixtures::request_id(),
                    signature_id: id,
                    reason: WithdrawalReason::NoLongerAccepts.into(),
                    validate_only: false,
                };
                let withdrawn = self.admin.signatures().withdraw_signature(request).await;
                withdrawn.unwrap().into_inner().revision
            }
        }
    }

    /// Takes an acceptance back, gives it, or both; what is current then is the answer.
    async fn accept_or_withdraw(&self, ground: Ground, held: Option<String>) -> Option<String> {
        let Some(id) = held else {
            return if rand::random() { Some(self.accept(ground).await) } else { None };
        };
        if rand::random_bool(0.25) {
            return Some(id);
        }
        let revision = self.withdraw(ground, id).await;
        let again = if rand::random_bool(0.75) { Some(self.accept(ground).await) } else { None };
        self.witness(revision).await;
        again
    }

    /// Waits until a withdrawal is applied and keeps how the latest subscriptions are then.
    async fn witness(&self, revision: i64) {
        const LATEST: usize = 3;
        let applied = async { while !report_page(&self.operator, revision, "").await.applied {} };
        tokio::time::timeout(LONG, applied).await.unwrap();
        let bought = self.seen.lock().unwrap().bought.clone();
        for subscription_id in bought.into_iter().flat_map(|ids| ids.into_iter().rev().take(LATEST)) {
            let version = self.etag(&subscription_id).await.parse().unwrap();
            self.seen.lock().unwrap().witnesses.push(Witness { revision, subscription_id, version });
        }
    }

    async fn etag(&self, subscription_id: &str) -> String {
        let request = GetSubscriptionRequest { subscription_id: subscription_id.into() };
        let found = self.operator.subscriptions().get_subscription(request).await.unwrap();
        found.into_inner().subscription.unwrap().etag
    }

    fn order(&self, payer: usize, lines: usize) -> CreateOrderRequest {
        let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 5, friendly_name: String::new() };
        let payer = [DIRECT, PROVIDER][payer];
        let order = fixtures::new_order(&self.id, Some(payer), OFFICE, 5);
        CreateOrderRequest { lines: vec![line; lines], ..order }
    }

    /// Places orders of one to three lines, one after the other.
    async fn shop(&self, payer: usize) {
        for _ in 0..ORDERS {
            let order = self.order(payer, rand::random_range(1..=3));
            let mut orders = self.payers[payer].orders();
            if let Some(placed) = self.call_and_record(orders.create_order(order)).await {
                let ids = placed.subscriptions.into_iter().map(|subscription| subscription.subscription_id);
                self.seen.lock().unwrap().bought[payer].extend(ids);
            }
        }
    }

    /// Changes the number of seats of one of the latest subscriptions, renews it or switches automatic
    /// renewal on.
    async fn change(&self, payer: usize, what: usize) {
        let latest = self.seen.lock().unwrap().bought[payer].iter().rev().nth(what).cloned();
        let Some(subscription_id) = latest else { return };
        let (request_id, etag) = (fixtures::request_id(), self.etag(&subscription_id).await);
        let mut subscriptions = self.payers[payer].subscriptions();
        match what {
            0 => {
                let quantity = rand::random_range(6..=300);
                let request = ChangeSeatsRequest {
                    request_id,
                    subscription_id,
                    quantity,
                    etag,
                    validate_only: false,
                    attestation: None,
                };
                self.call_and_record(subscriptions.change_seats(request)).await.map(drop)
            }
            1 => {
                let request = RenewSubscriptionRequest {
                    request_id,
                    subscription_id,
                    etag,
                    validate_only: false,
                    attestation: None,
                };
                self.call_and_record(subscriptions.renew_subscription(request)).await.map(drop)
            }
            _ => {
                let off = SetAutoRenewRequest {
                    request_id: fixtures::request_id(),
                    subscription_id: subscription_id.clone(),
                    auto_renew: false,
                    etag,
                    attestation: None,
                    validate_only: false,
                };
                let Some(is_off) = self.call_and_record(subscriptions.set_auto_renew(off)).await else {
                    return;
                };
                let etag = is_off.subscription.unwrap().etag;
                let on = SetAutoRenewRequest {
                    request_id,
                    subscription_id,
                    auto_renew: true,
                    etag,
                    attestation: None,
                    validate_only: false,
                };
                self.call_and_record(subscriptions.set_auto_renew(on)).await.map(drop)
            }
        };
    }

    /// A call that may lose the race, and when it was made.
    async fn call_and_record<A>(&self, call: impl Future<Output = Result<Response<A>, Status>>) -> Option<A> {
        let began = now();
        let answer = call.await;
        self.seen.lock().unwrap().deeds.push((began, now()));
        match answer {
            Ok(answer) => Some(answer.into_inner()),
            Err(refused) => {
                assert!(MAY_BE_REFUSED.contains(&reason_of(&refused).as_str()), "{refused}");
                None
            }
        }
    }
}

pub(super) async fn report_page(caller: &As, revision: i64, page_token: &str) -> GetWithdrawalReportResponse {
    let request =
        GetWithdrawalReportRequest { revision, page_size: 500, page_token: page_token.into(), wait: false };
    caller.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner()
}

/// agreement-svc's history, up to its head.
pub(super) async fn all_events(operator: &As) -> Vec<Event> {
    let request = WatchEventsRequest { after_revision: 0, ..WatchEventsRequest::default() };
    let mut stream = operator.events().watch_events(request).await.unwrap().into_inner();
    let mut events = vec![];
    loop {
        match stream.message().await.unwrap().unwrap().item.unwrap() {
            Item::Event(event) => events.push(event),
            Item::Checkpoint(_) => return events,
        }
    }
}
