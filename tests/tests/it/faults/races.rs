//! The race of withdrawals with whatever rests on acceptances (I2), both ways: nothing is stored on an
//! answer that a withdrawal has overtaken, and no withdrawal touches what rests on a later answer.
//!
//! Partners buy, change and renew for the same few customers while attestations and signatures are
//! withdrawn and given again. A relay between the services makes the ways between them longer, each
//! answer and each event by a little time of its own, so that they overtake each other in every way
//! that a network allows; their words are the real ones. Afterwards what both services tell is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use chassis::clock::Clock;
use chassis::form::timestamp;
use futures_util::StreamExt;
use futures_util::future::{join, join_all};
use futures_util::stream::{self, BoxStream};
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::eligibility_service_server::{EligibilityService, EligibilityServiceServer};
use proto::agreement::event::Change;
use proto::agreement::event_service_client::EventServiceClient;
use proto::agreement::event_service_server::{EventService, EventServiceServer};
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, CheckEligibilityRequest,
    CheckEligibilityResponse, Event, ListBlockedCustomersRequest, ListBlockedCustomersResponse,
    ListEventsRequest, ListEventsResponse, ReportPurchaseRequest, ReportPurchaseResponse, WatchEventsRequest,
    WatchEventsResponse, WithdrawAttestationRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, GetSubscriptionRequest, GetWithdrawalReportRequest,
    GetWithdrawalReportResponse, ListSubscriptionChangesRequest, ListSubscriptionsRequest,
    ListWithdrawalReportsRequest, NewOrderLine, RenewSubscriptionRequest, SetAutoRenewRequest, Subscription,
    SubscriptionChange, SubscriptionChangeReason, SubscriptionState, WithdrawalOutcome, WithdrawalReport,
};
use tests::world::{self, DIRECT, OFFICE, PROVIDER};
use tests::{As, Backend, Cluster, Setup, reason_of};
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};
use uuid::Uuid;

const CUSTOMERS: usize = 4;
const ROUNDS: usize = 30;

/// Times that all rounds are raced until a question was asked again.
const BOUTS_MAX: usize = 8;

/// Orders that a shopper places in a round.
const ORDERS: usize = 3;

/// How much longer an answer or an event is under way at most: some times as long as either service
/// needs for what it does then.
const LATE_MAX: Duration = Duration::from_millis(30);

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// What somebody who races with a withdrawal may be told.
const MAY_BE_REFUSED: [&str; 5] =
    ["AGREEMENT_REQUIRED", "ANSWER_OUTDATED", "ETAG_STALE", "SUBSCRIPTION_NOT_ACTIVE", "SUBSCRIPTION_ENDED"];

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_outlives_a_withdrawal_on_an_older_answer_and_nothing_newer_is_touched_on_sqlite() {
    tests::needs_own!("services that it stops");
    race(Backend::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_outlives_a_withdrawal_on_an_older_answer_and_nothing_newer_is_touched_on_postgres() {
    tests::needs_own!("services that it stops");
    if Backend::all().contains(&Backend::Postgres) {
        race(Backend::Postgres).await;
    }
}

async fn race(backend: Backend) {
    let began = Instant::now();
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let setup = Setup { backend, agreements_at, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    if backend == Backend::Postgres {
        // Two followers, of which each event is applied by one.
        cluster.start_orders_replica().await.unwrap();
    }
    world::register_partners(&cluster).await.unwrap();

    let mut customers: Vec<_> = (0..CUSTOMERS).map(|n| Customer::new(&cluster, n)).collect();
    for customer in &mut customers {
        customer.enter().await;
    }
    let mut asked_again = 0;
    // An answer is seldom outdated by the time it is stored, and by chance none is.
    for _ in 0..BOUTS_MAX {
        let racing = customers.into_iter().map(|mut customer| {
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    customer.round().await;
                }
                customer
            })
        });
        customers = join_all(racing).await.into_iter().map(Result::unwrap).collect();
        asked_again = relay.asked_again.load(Ordering::Relaxed);
        if asked_again > 0 {
            break;
        }
    }

    let operator = cluster.as_caller(world::operator());
    let events = all_events(&operator).await;
    let (mut wrong, mut sum) = (vec![], Sum::default());
    for customer in &customers {
        let truth = Truth::read(&operator, customer, &events).await;
        truth.check(&mut wrong);
        truth.add_to(&mut sum);
    }
    summary(backend, &sum, asked_again, began.elapsed());
    let few: Vec<_> = wrong.iter().take(10).collect();
    assert!(wrong.is_empty(), "{} contradictions, among them {few:#?}", wrong.len());
    // Otherwise the race was none, and nothing was proved.
    assert!(sum.overlapped > 0 && asked_again > 0 && sum.newer > 0);
}

/// What was raced, for whoever reads the output.
#[derive(Default)]
struct Sum {
    deeds: usize,
    /// Deeds under way while a withdrawal of the same customer was recorded and not yet applied.
    overlapped: usize,
    withdrawals: usize,
    cancelled: usize,
    /// Subscriptions that a withdrawal left alone because they rested on a later answer.
    newer: usize,
}

#[expect(clippy::print_stderr, reason = "how much was raced is worth a line")]
fn summary(backend: Backend, sum: &Sum, asked_again: usize, took: Duration) {
    eprintln!(
        "{backend:?}: {} withdrawals, {} of {} operations under way meanwhile, {} questions asked again, {} \
         subscriptions cancelled, {} left alone on a later answer, {:.1} s",
        sum.withdrawals,
        sum.overlapped,
        sum.deeds,
        asked_again,
        sum.cancelled,
        sum.newer,
        took.as_secs_f64()
    );
}

/// Stands between order-svc and agreement-svc and takes its time.
#[derive(Clone)]
struct Relay {
    address: SocketAddr,
    to: Arc<OnceLock<Channel>>,
    /// The calls for which the gate was asked.
    asked: Arc<Mutex<BTreeSet<String>>>,
    /// Questions for the sake of the same call.
    asked_again: Arc<AtomicUsize>,
}

impl Relay {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Self { address, to: Arc::default(), asked: Arc::default(), asked_again: Arc::default() };
        let server = Server::builder()
            .add_service(EligibilityServiceServer::new(relay.clone()))
            .add_service(EventServiceServer::new(relay.clone()))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        tokio::spawn(server);
        relay
    }

    fn pass_to(&self, address: SocketAddr) {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        self.to.set(endpoint.connect_lazy()).unwrap();
    }

    fn to(&self) -> Result<Channel, Status> {
        self.to.get().cloned().ok_or_else(|| Status::unavailable("there is nobody to pass it to"))
    }
}

/// The longer way of one message: every second takes the short one.
async fn way() {
    if rand::random() {
        tokio::time::sleep(LATE_MAX.mul_f64(rand::random())).await;
    }
}

#[tonic::async_trait]
impl EligibilityService for Relay {
    async fn check_eligibility(
        &self,
        request: Request<CheckEligibilityRequest>,
    ) -> Result<Response<CheckEligibilityResponse>, Status> {
        let call_id = request.metadata().get("x-call-id").unwrap().to_str().unwrap().to_owned();
        if !self.asked.lock().unwrap().insert(call_id) {
            self.asked_again.fetch_add(1, Ordering::Relaxed);
        }
        let answer = EligibilityServiceClient::new(self.to()?).check_eligibility(request).await;
        way().await;
        answer
    }

    async fn report_purchase(
        &self,
        request: Request<ReportPurchaseRequest>,
    ) -> Result<Response<ReportPurchaseResponse>, Status> {
        EligibilityServiceClient::new(self.to()?).report_purchase(request).await
    }

    async fn batch_check_eligibility(
        &self,
        _request: Request<BatchCheckEligibilityRequest>,
    ) -> Result<Response<BatchCheckEligibilityResponse>, Status> {
        Err(Status::unimplemented("order-svc does not ask for it"))
    }

    async fn list_blocked_customers(
        &self,
        _request: Request<ListBlockedCustomersRequest>,
    ) -> Result<Response<ListBlockedCustomersResponse>, Status> {
        Err(Status::unimplemented("order-svc does not ask for it"))
    }
}

#[tonic::async_trait]
impl EventService for Relay {
    type WatchEventsStream = BoxStream<'static, Result<WatchEventsResponse, Status>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        const UNDER_WAY_MAX: usize = 100;
        let events = EventServiceClient::new(self.to()?).watch_events(request).await?.into_inner();
        let late = events.map(|event| async {
            way().await;
            event
        });
        Ok(Response::new(late.buffered(UNDER_WAY_MAX).boxed()))
    }

    async fn list_events(
        &self,
        _request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        Err(Status::unimplemented("order-svc does not ask for it"))
    }
}

/// A moment by the clock of both services, comparable.
type Moment = (i64, i32);

fn moment(at: prost_types::Timestamp) -> Moment {
    (at.seconds, at.nanos)
}

fn now() -> Moment {
    moment(timestamp(Clock::system().now()))
}

/// An acceptance that can be given and taken back.
#[derive(Clone, Copy, Debug)]
enum Ground {
    /// The attestation of one of the payers.
    Attestation(usize),
    /// The customer's signature, which counts for all of them.
    Signature,
}

/// A customer of two payers, and everybody who acts for it.
struct Customer {
    id: String,
    name: String,
    admin: As,
    operator: As,
    payers: [As; 2],
    /// The acceptances that are current now, ground by ground.
    held: [Option<String>; 3],
    seen: Mutex<Seen>,
}

/// What those who act for a customer have seen.
#[derive(Default)]
struct Seen {
    /// Subscriptions of each payer, the latest last.
    bought: [Vec<String>; 2],
    /// When each deed began and ended.
    deeds: Vec<(Moment, Moment)>,
    witnesses: Vec<Witness>,
}

/// A subscription as it was when a withdrawal had been applied: its later changes came after that.
struct Witness {
    revision: i64,
    subscription_id: String,
    version: u32,
}

impl Customer {
    fn new(cluster: &Cluster, n: usize) -> Self {
        let id = Uuid::from_u128(0xcc00 + n as u128);
        Self {
            id: id.to_string(),
            name: format!("Customer {n}"),
            admin: cluster.as_caller(world::admin(id)),
            operator: cluster.as_caller(world::operator()),
            payers: [DIRECT, PROVIDER].map(|payer| cluster.as_caller(world::sales(payer))),
            held: [None, None, None],
            seen: Mutex::default(),
        }
    }

    /// The customer accepts the invitations of both payers, and so has signed; each attests, too.
    async fn enter(&mut self) {
        for (payer, company) in self.payers.iter().zip([Some(self.name.as_str()), None]) {
            let invitation = world::invite(payer, None, None).await.unwrap();
            let request = world::acceptance(&invitation, company);
            let accepted = self.admin.signatures().accept_invitation(request).await.unwrap().into_inner();
            self.held[2] = accepted.signature.map(|signature| signature.signature_id);
        }
        for payer in 0..2 {
            self.held[payer] = Some(self.accept(Ground::Attestation(payer)).await);
        }
        self.settle().await;
    }

    /// Everybody acts at once; then what has come of it is what the acceptances say.
    async fn round(&mut self) {
        let wavering = [Ground::Attestation(0), Ground::Attestation(1), Ground::Signature]
            .into_iter()
            .zip(self.held.clone())
            .map(|(ground, held)| self.waver(ground, held));
        let shopping = [0, 0, 1, 1].map(|payer| self.shop(payer));
        let changing = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)].map(|of| self.change(of.0, of.1));
        let (held, _) = join(join_all(wavering), join(join_all(shopping), join_all(changing))).await;
        self.held = held.try_into().unwrap();
        self.settle().await;
    }

    /// Once all withdrawals are applied, whoever has an acceptance can buy, and nobody else.
    async fn settle(&self) {
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
            Ground::Attestation(payer) => {
                let at = Clock::system().now();
                let attested = world::attest(&self.payers[payer], &self.id, at).await.unwrap();
                attested.attestation.unwrap().attestation_id
            }
            Ground::Signature => world::sign(&self.admin, 2).await.unwrap().signature_id,
        }
    }

    async fn withdraw(&self, ground: Ground, id: String) -> i64 {
        let (request_id, reason) = (world::request_id(), WithdrawalReason::NoLongerAccepts.into());
        match ground {
            Ground::Attestation(payer) => {
                let request = WithdrawAttestationRequest { request_id, attestation_id: id, reason };
                let withdrawn = self.payers[payer].attestations().withdraw_attestation(request).await;
                withdrawn.unwrap().into_inner().revision
            }
            Ground::Signature => {
                let request = WithdrawSignatureRequest { request_id, signature_id: id, reason };
                let withdrawn = self.admin.signatures().withdraw_signature(request).await;
                withdrawn.unwrap().into_inner().revision
            }
        }
    }

    /// Takes an acceptance back, gives it, or both; what is current then is the answer.
    async fn waver(&self, ground: Ground, held: Option<String>) -> Option<String> {
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
        let order = world::new_order(&self.id, Some(payer), OFFICE, 5);
        CreateOrderRequest { lines: vec![line; lines], ..order }
    }

    /// Places orders of one to three lines, one after the other.
    async fn shop(&self, payer: usize) {
        for _ in 0..ORDERS {
            let order = self.order(payer, rand::random_range(1..=3));
            let mut orders = self.payers[payer].orders();
            if let Some(placed) = self.deed(orders.create_order(order)).await {
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
        let (request_id, etag) = (world::request_id(), self.etag(&subscription_id).await);
        let mut subscriptions = self.payers[payer].subscriptions();
        match what {
            0 => {
                let quantity = rand::random_range(6..=300);
                let request =
                    ChangeSeatsRequest { request_id, subscription_id, quantity, etag, validate_only: false };
                self.deed(subscriptions.change_seats(request)).await.map(drop)
            }
            1 => {
                let request =
                    RenewSubscriptionRequest { request_id, subscription_id, etag, validate_only: false };
                self.deed(subscriptions.renew_subscription(request)).await.map(drop)
            }
            _ => {
                let off = SetAutoRenewRequest {
                    request_id: world::request_id(),
                    subscription_id: subscription_id.clone(),
                    auto_renew: false,
                    etag,
                };
                let Some(is_off) = self.deed(subscriptions.set_auto_renew(off)).await else { return };
                let etag = is_off.subscription.unwrap().etag;
                let on = SetAutoRenewRequest { request_id, subscription_id, auto_renew: true, etag };
                self.deed(subscriptions.set_auto_renew(on)).await.map(drop)
            }
        };
    }

    /// A call that may lose the race, and when it was made.
    async fn deed<A>(&self, call: impl Future<Output = Result<Response<A>, Status>>) -> Option<A> {
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

async fn report_page(caller: &As, revision: i64, page_token: &str) -> GetWithdrawalReportResponse {
    let request = GetWithdrawalReportRequest { revision, page_size: 500, page_token: page_token.into() };
    caller.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner()
}

/// agreement-svc's history, up to its head.
async fn all_events(operator: &As) -> Vec<Event> {
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

/// What both services tell of one customer.
struct Truth<'a> {
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
    async fn read(operator: &As, customer: &'a Customer, events: &[Event]) -> Self {
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

    /// Everything that cannot be, in words.
    fn check(&self, wrong: &mut Vec<String>) {
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

    /// A report says what its withdrawal did: it lists all that the acceptance could cover and that had not
    /// ended when it was applied.
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
        let cancelled = effects.values().filter(|outcome| **outcome == WithdrawalOutcome::Cancelled).count();
        if (report.cancelled as usize, report.stayed as usize) != (cancelled, effects.len() - cancelled) {
            wrong.push(format!("report {revision} counts what it does not list"));
        }
        for kept in &self.subscriptions {
            let (id, is_uncovered) = (kept.id(), uncovered.contains(&kept.subscription.payer_id));
            let was_final = kept.cancelled_by().is_some_and(|by| by < revision);
            let is_cancelled = kept.cancelled_by() == Some(revision);
            let is_right = match effects.get(id) {
                Some(WithdrawalOutcome::Cancelled) => is_cancelled && is_uncovered,
                Some(WithdrawalOutcome::StillCovered) => !is_cancelled && !is_uncovered && !was_final,
                Some(WithdrawalOutcome::NewerAnswer) => {
                    !is_cancelled && is_uncovered && !was_final && kept.answer() >= revision
                }
                Some(WithdrawalOutcome::Unspecified) => false,
                None => !is_cancelled,
            };
            if !is_right {
                wrong.push(format!("report {revision} says {:?} of {id}", effects.get(id)));
            }
            // What is not listed, though the acceptance could cover it, and had not ended was bought later.
            let could_cover = ["", kept.subscription.payer_id.as_str()].contains(&report.partner_id.as_str());
            if effects.contains_key(id) || was_final || !could_cover {
                continue;
            }
            for (number, answer) in kept.answers().filter(|(_, answer)| *answer < revision) {
                wrong.push(format!(
                    "change {number} of {id} was stored on answer {answer} after withdrawal {revision} was applied"
                ));
            }
        }
    }

    fn add_to(&self, sum: &mut Sum) {
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
        let is_newer = |outcome: &&WithdrawalOutcome| **outcome == WithdrawalOutcome::NewerAnswer;
        sum.newer += self.reports.iter().flat_map(|(_, effects)| effects.values()).filter(is_newer).count();
    }
}

async fn reports_of(operator: &As, customer_id: &str) -> Vec<WithdrawalReport> {
    let (mut reports, mut page_token) = (vec![], String::new());
    loop {
        let customer_id = customer_id.into();
        let request = ListWithdrawalReportsRequest { customer_id, page_size: 500, page_token };
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
        let request = ListSubscriptionsRequest { customer_id, page_size: 500, page_token };
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
            ListSubscriptionChangesRequest { subscription_id, page_size: 500, page_token: String::new() };
        let page = operator.subscriptions().list_subscription_changes(request).await.unwrap().into_inner();
        assert_eq!(page.next_page_token, "");
        Kept { subscription, changes: page.changes }
    });
    stream::iter(with_changes).buffered(AT_ONCE).collect().await
}
