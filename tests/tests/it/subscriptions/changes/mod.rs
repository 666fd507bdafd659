//! The whole life of subscriptions (SUB-1 to SUB-5) and how long first answers are kept, over months
//! that a manual clock makes pass.

mod attestations;
mod commands;
mod gated;
mod history;
mod order;
mod outdated;
mod repeats;
mod terms;

use std::time::Duration;

use chassis::auth::{Caller, Channel};
use chassis::clock::{Clock, Time};
use chassis::database::Url;
use chassis::form::timestamp;
use diesel::connection::SimpleConnection;
use diesel::{Connection, PgConnection, RunQueryDsl};
use futures_util::future::join_all;
use prost::Message;
use proto::agreement::publish_template_version_request::Reacceptance;
use proto::agreement::{
    CreateAttestationRequest, EndRelationshipRequest, PublishTemplateVersionRequest,
    WithdrawAttestationRequest, WithdrawalReason,
};
use proto::order::{
    CancelSubscriptionRequest, ChangeSeatsRequest, CreateOrderRequest, InlineAttestation,
    ListSubscriptionChangesRequest, ListSubscriptionsRequest, NewOrderLine, RenewSubscriptionRequest,
    ResumeSubscriptionRequest, SetAutoRenewRequest, Subscription, SubscriptionChange,
    SubscriptionChangeKind as Kind, SubscriptionChangeReason as Why, SubscriptionState as State,
    SuspendSubscriptionRequest,
};
use proto::types::{GateEvidence, GateRule};
use rstest_reuse::apply;
use tempfile::TempDir;
use tests::assert::{eventually, refusal};
use tests::clients::bad_fields_of;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE, time};
use tests::{As, Backend, Cluster, Setup, actions, metadata_of};

use crate::each_backend;
use tonic::{Code, Response, Status};

/// One offer of each term and kind, with the term as its id where that says enough.
const OFFERS: &str = r#"{"offers": [
    {"offer_id": "MONTH", "name": "Licences by the month", "kind": "LICENSE", "quantity_min": 2, "quantity_max": 300,
     "term": "MONTH", "billing_cycle": "MONTHLY", "auto_renews": true, "countries": [], "agreement_types": []},
    {"offer_id": "YEAR", "name": "Licences by the year", "kind": "LICENSE", "quantity_min": 2, "quantity_max": 300,
     "term": "YEAR", "billing_cycle": "MONTHLY", "auto_renews": true, "countries": [], "agreement_types": []},
    {"offer_id": "THREE_YEARS", "name": "Licences for years", "kind": "LICENSE", "quantity_min": 2, "quantity_max": 300,
     "term": "THREE_YEARS", "billing_cycle": "ANNUAL", "auto_renews": true, "countries": [], "agreement_types": []},
    {"offer_id": "BY_HAND", "name": "A reservation", "kind": "RESERVED_INSTANCE", "quantity_min": 1, "quantity_max": 300,
     "term": "YEAR", "billing_cycle": "ONE_TIME", "auto_renews": false, "countries": [], "agreement_types": []},
    {"offer_id": "PERPETUAL", "name": "Software for good", "kind": "SOFTWARE", "quantity_min": 1, "quantity_max": 300,
     "term": "PERPETUAL", "billing_cycle": "ONE_TIME", "auto_renews": false, "countries": [], "agreement_types": []}
]}"#;

/// Callers at the same time.
const CALLERS: usize = 32;

/// Longer than any worker may take to notice that the clock has moved.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Seats(u32),
    Renew,
    AutoRenew(bool),
    Suspend,
    Resume,
    Cancel,
}

/// A command as a request.
#[derive(Clone, Debug)]
struct Asked {
    command: Command,
    request_id: String,
    subscription_id: String,
    etag: String,
    validate_only: bool,
    attestation: Option<InlineAttestation>,
}

#[derive(Clone, Debug, PartialEq)]
struct Answer {
    bytes: Vec<u8>,
    subscription: Subscription,
    gate: Option<GateEvidence>,
}

impl Asked {
    fn of(command: Command, subscription: &Subscription) -> Self {
        Self {
            command,
            request_id: fixtures::request_id(),
            subscription_id: subscription.subscription_id.clone(),
            etag: subscription.etag.clone(),
            validate_only: false,
            attestation: None,
        }
    }

    async fn send(self, partner: &As) -> Result<Answer, Status> {
        let Self { command, request_id, subscription_id, etag, validate_only, attestation } = self;
        let mut client = partner.subscriptions();
        let answer = |bytes, subscription: Option<Subscription>, gate| Answer {
            bytes,
            subscription: subscription.unwrap(),
            gate,
        };
        Ok(match command {
            Command::Seats(quantity) => {
                let request = ChangeSeatsRequest {
                    request_id,
                    subscription_id,
                    quantity,
                    etag,
                    validate_only,
                    attestation,
                };
                let response = client.change_seats(request).await?.into_inner();
                answer(response.encode_to_vec(), response.subscription, response.gate)
            }
            Command::Renew => {
                let request = RenewSubscriptionRequest {
                    request_id,
                    subscription_id,
                    etag,
                    validate_only,
                    attestation,
                };
                let response = client.renew_subscription(request).await?.into_inner();
                answer(response.encode_to_vec(), response.subscription, response.gate)
            }
            Command::AutoRenew(auto_renew) => {
                let request = SetAutoRenewRequest {
                    request_id,
                    subscription_id,
                    auto_renew,
                    etag,
                    attestation,
                    validate_only: false,
                };
                let response = client.set_auto_renew(request).await?.into_inner();
                answer(response.encode_to_vec(), response.subscription, response.gate)
            }
            Command::Suspend => {
                let request =
                    SuspendSubscriptionRequest { request_id, subscription_id, etag, validate_only: false };
                let response = client.suspend_subscription(request).await?.into_inner();
                answer(response.encode_to_vec(), response.subscription, None)
            }
            Command::Resume => {
                let request =
                    ResumeSubscriptionRequest { request_id, subscription_id, etag, validate_only: false };
                let response = client.resume_subscription(request).await?.into_inner();
                answer(response.encode_to_vec(), response.subscription, None)
            }
            Command::Cancel => {
                let request =
                    CancelSubscriptionRequest { request_id, subscription_id, etag, validate_only: false };
                let response = client.cancel_subscription(request).await?.into_inner();
                answer(response.encode_to_vec(), response.subscription, None)
            }
        })
    }
}

/// Both services, most often under a manual clock, and a customer that accepted when it began.
struct World {
    cluster: Cluster,
    clock: Clock,
    direct: As,
    customer: String,
    _offers: Option<TempDir>,
}

impl World {
    async fn new(backend: Backend, start: &str) -> Self {
        let world = Self::without_acceptance(backend, start).await;
        actions::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
        world
    }

    /// Under the system's clock, with the offers that ship.
    async fn today(backend: Backend) -> Self {
        let world = Self::on(Setup { backend, ..Setup::default() }, None).await;
        actions::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
        world
    }

    async fn without_acceptance(backend: Backend, start: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let offers = folder.path().join("offers.json");
        std::fs::write(&offers, OFFERS).unwrap();
        let clock = Clock::manual(time(start));
        Self::on(Setup { backend, clock, offers: Some(offers), ..Setup::default() }, Some(folder)).await
    }

    async fn on(setup: Setup, offers: Option<TempDir>) -> Self {
        let clock = setup.clock.clone();
        let cluster = Cluster::start(setup).await.unwrap();
        actions::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        Self { cluster, clock, direct, customer, _offers: offers }
    }

    fn new_order(&self, offer_id: &str, lines: usize) -> CreateOrderRequest {
        let line = NewOrderLine { offer_id: offer_id.into(), quantity: 5, friendly_name: String::new() };
        CreateOrderRequest {
            lines: vec![line; lines],
            ..fixtures::new_order(&self.customer, None, offer_id, 5)
        }
    }

    /// So many subscriptions of 5.
    async fn subscribe_to(&self, offer_id: &str, lines: usize) -> Vec<Subscription> {
        let order = self.new_order(offer_id, lines);
        self.direct.orders().create_order(order).await.unwrap().into_inner().subscriptions
    }

    async fn subscribe(&self, offer_id: &str) -> Subscription {
        self.subscribe_to(offer_id, 1).await.remove(0)
    }

    async fn ask(&self, command: Command, of: &Subscription) -> Result<Answer, Status> {
        Asked::of(command, of).send(&self.direct).await
    }

    /// A command that is granted, and the subscription afterwards.
    async fn done(&self, command: Command, of: &Subscription) -> Subscription {
        self.ask(command, of).await.unwrap().subscription
    }

    async fn refused(&self, command: Command, of: &Subscription) -> (Code, String) {
        refusal(&self.ask(command, of).await.unwrap_err())
    }

    async fn now(&self, of: &Subscription) -> Subscription {
        actions::get_subscription(&self.direct, &of.subscription_id).await.unwrap()
    }

    /// What a subscription is once a worker has made it so.
    async fn once(&self, of: &Subscription, is_so: impl Fn(&Subscription) -> bool) -> Subscription {
        eventually("a worker changes the subscription", async || Some(self.now(of).await).filter(&is_so))
            .await
    }

    async fn changes(&self, of: &Subscription) -> Vec<SubscriptionChange> {
        let mut request = ListSubscriptionChangesRequest {
            subscription_id: of.subscription_id.clone(),
            page_size: 2,
            page_token: String::new(),
            ..ListSubscriptionChangesRequest::default()
        };
        let mut changes = vec![];
        loop {
            let mut client = self.direct.subscriptions();
            let page = client.list_subscription_changes(request.clone()).await.unwrap().into_inner();
            assert!(page.changes.len() <= 2);
            changes.extend(page.changes);
            if page.next_page_token.is_empty() {
                return changes;
            }
            request.page_token = page.next_page_token;
        }
    }

    /// The numbers and kinds of everything that happened.
    async fn kinds(&self, of: &Subscription) -> Vec<(u32, Kind)> {
        self.changes(of).await.iter().map(|change| (change.number, change.kind())).collect()
    }

    /// Publishes a version of the Customer Agreement that is in force now.
    async fn publish(&self, reacceptance: Option<Reacceptance>) {
        let request =
            PublishTemplateVersionRequest { reacceptance, ..fixtures::new_version(CUSTOMER_AGREEMENT) };
        actions::publish(&self.cluster.as_caller(fixtures::operator()), request).await.unwrap();
    }
}

fn stale() -> (Code, String) {
    (Code::Aborted, "ETAG_STALE".into())
}

fn forbidden(reason: &str) -> (Code, String) {
    (Code::FailedPrecondition, reason.into())
}

fn unavailable() -> (Code, String) {
    (Code::Unavailable, "GATE_UNAVAILABLE".into())
}

/// What is gated is refused for that reason, and what is not is done, on fresh subscriptions.
async fn check_blocked(world: &World, on: [&Subscription; 3], off: &Subscription, reason: &str) {
    for (command, subscription) in
        [(Command::Seats(8), on[0]), (Command::Renew, on[0]), (Command::AutoRenew(true), off)]
    {
        let dry_run = Asked { validate_only: true, ..Asked::of(command, subscription) };
        for asked in [dry_run, Asked::of(command, subscription)] {
            let refused = asked.send(&world.direct).await.unwrap_err();
            assert_eq!(refusal(&refused), forbidden("AGREEMENT_REQUIRED"), "{command:?}");
            let reasons = metadata_of(&refused)["reasons"].clone();
            assert!(reasons.split(',').any(|given| given == reason), "{command:?}: {reasons}");
        }
    }
    world.done(Command::AutoRenew(false), on[0]).await;
    let suspended = world.done(Command::Suspend, on[1]).await;
    world.done(Command::Resume, &suspended).await;
    world.done(Command::Cancel, on[2]).await;
}
