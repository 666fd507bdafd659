//! The whole life of subscriptions (SUB-1 to SUB-5) and how long first answers are kept, over months
//! that a manual clock makes pass.

use std::future::Future;
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
    CancelSubscriptionRequest, ChangeSeatsRequest, CreateOrderRequest, GetSubscriptionRequest,
    ListSubscriptionChangesRequest, ListSubscriptionsRequest, NewOrderLine, RenewSubscriptionRequest,
    ResumeSubscriptionRequest, SetAutoRenewRequest, Subscription, SubscriptionChange,
    SubscriptionChangeKind as Kind, SubscriptionChangeReason as Why, SubscriptionState as State,
    SuspendSubscriptionRequest,
};
use proto::types::{GateEvidence, GateRule};
use rstest_reuse::apply;
use tempfile::TempDir;
use tests::clients::bad_fields_of;
use tests::world::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE};
use tests::{As, Backend, Cluster, Setup, metadata_of, reason_of};

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

/// Callers of one moment.
const CALLERS: usize = 64;

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

/// A wish as a request.
#[derive(Clone, Debug)]
struct Asked {
    wish: Command,
    request_id: String,
    subscription_id: String,
    etag: String,
    validate_only: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Answer {
    bytes: Vec<u8>,
    subscription: Subscription,
    gate: Option<GateEvidence>,
}

impl Asked {
    fn of(wish: Command, subscription: &Subscription) -> Self {
        Self {
            wish,
            request_id: world::request_id(),
            subscription_id: subscription.subscription_id.clone(),
            etag: subscription.etag.clone(),
            validate_only: false,
        }
    }

    async fn send(self, partner: &As) -> Result<Answer, Status> {
        let Self { wish, request_id, subscription_id, etag, validate_only } = self;
        let mut client = partner.subscriptions();
        let answer = |bytes, subscription: Option<Subscription>, gate| Answer {
            bytes,
            subscription: subscription.unwrap(),
            gate,
        };
        Ok(match wish {
            Command::Seats(quantity) => {
                let request =
                    ChangeSeatsRequest { request_id, subscription_id, quantity, etag, validate_only };
                let told = client.change_seats(request).await?.into_inner();
                answer(told.encode_to_vec(), told.subscription, told.gate)
            }
            Command::Renew => {
                let request = RenewSubscriptionRequest { request_id, subscription_id, etag, validate_only };
                let told = client.renew_subscription(request).await?.into_inner();
                answer(told.encode_to_vec(), told.subscription, told.gate)
            }
            Command::AutoRenew(auto_renew) => {
                let request = SetAutoRenewRequest { request_id, subscription_id, auto_renew, etag };
                let told = client.set_auto_renew(request).await?.into_inner();
                answer(told.encode_to_vec(), told.subscription, told.gate)
            }
            Command::Suspend => {
                let request = SuspendSubscriptionRequest { request_id, subscription_id, etag };
                let told = client.suspend_subscription(request).await?.into_inner();
                answer(told.encode_to_vec(), told.subscription, None)
            }
            Command::Resume => {
                let request = ResumeSubscriptionRequest { request_id, subscription_id, etag };
                let told = client.resume_subscription(request).await?.into_inner();
                answer(told.encode_to_vec(), told.subscription, None)
            }
            Command::Cancel => {
                let request = CancelSubscriptionRequest { request_id, subscription_id, etag };
                let told = client.cancel_subscription(request).await?.into_inner();
                answer(told.encode_to_vec(), told.subscription, None)
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
        world::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
        world
    }

    /// Under the system's clock, with the offers that ship.
    async fn today(backend: Backend) -> Self {
        let world = Self::on(Setup { backend, ..Setup::default() }, None).await;
        world::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
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
        world::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(world::sales(DIRECT));
        let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        Self { cluster, clock, direct, customer, _offers: offers }
    }

    fn new_order(&self, offer_id: &str, lines: usize) -> CreateOrderRequest {
        let line = NewOrderLine { offer_id: offer_id.into(), quantity: 5, friendly_name: String::new() };
        CreateOrderRequest { lines: vec![line; lines], ..world::new_order(&self.customer, None, offer_id, 5) }
    }

    /// So many subscriptions of 5.
    async fn subscribe_to(&self, offer_id: &str, lines: usize) -> Vec<Subscription> {
        let order = self.new_order(offer_id, lines);
        self.direct.orders().create_order(order).await.unwrap().into_inner().subscriptions
    }

    async fn subscribe(&self, offer_id: &str) -> Subscription {
        self.subscribe_to(offer_id, 1).await.remove(0)
    }

    async fn ask(&self, wish: Command, of: &Subscription) -> Result<Answer, Status> {
        Asked::of(wish, of).send(&self.direct).await
    }

    /// A wish that is granted, and the subscription afterwards.
    async fn done(&self, wish: Command, of: &Subscription) -> Subscription {
        self.ask(wish, of).await.unwrap().subscription
    }

    async fn refused(&self, wish: Command, of: &Subscription) -> (Code, String) {
        refusal(&self.ask(wish, of).await.unwrap_err())
    }

    async fn now(&self, of: &Subscription) -> Subscription {
        let request = GetSubscriptionRequest { subscription_id: of.subscription_id.clone() };
        let read = self.direct.subscriptions().get_subscription(request).await.unwrap().into_inner();
        read.subscription.unwrap()
    }

    /// What a subscription is once a worker has made it so.
    async fn once(&self, of: &Subscription, is_so: impl Fn(&Subscription) -> bool) -> Subscription {
        eventually(async || Some(self.now(of).await).filter(&is_so)).await
    }

    async fn changes(&self, of: &Subscription) -> Vec<SubscriptionChange> {
        let mut request = ListSubscriptionChangesRequest {
            subscription_id: of.subscription_id.clone(),
            page_size: 2,
            page_token: String::new(),
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
            PublishTemplateVersionRequest { reacceptance, ..world::new_version(CUSTOMER_AGREEMENT) };
        let operator = self.cluster.as_caller(world::operator());
        operator.templates().publish_template_version(request).await.unwrap();
    }
}

/// Waits until there is something.
async fn eventually<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT_MAX, waiting).await.unwrap()
}

fn time(text: &str) -> Time {
    text.parse().unwrap()
}

fn refusal(status: &Status) -> (Code, String) {
    (status.code(), reason_of(status))
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

/// What a wish comes to.
#[derive(Clone, Copy, Debug)]
enum Comes {
    /// It changes something without asking the gate.
    Free(Kind),
    /// It changes something on the gate's yes.
    Gated(Kind),
    /// It is so already.
    Nothing,
    Refused(&'static str),
}

#[apply(each_backend)]
async fn every_command_has_its_answer_in_every_state(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    use Comes::{Free, Gated, Nothing, Refused};
    const NOT_ACTIVE: Comes = Refused("SUBSCRIPTION_NOT_ACTIVE");
    const ENDED: Comes = Refused("SUBSCRIPTION_ENDED");
    // What it comes to when ACTIVE, SUSPENDED, CANCELLED, EXPIRED.
    let table = [
        (Command::Seats(8), [Gated(Kind::SeatsChanged), NOT_ACTIVE, NOT_ACTIVE, NOT_ACTIVE]),
        (Command::Seats(5), [Nothing, NOT_ACTIVE, NOT_ACTIVE, NOT_ACTIVE]),
        (Command::Renew, [Gated(Kind::Renewed), NOT_ACTIVE, NOT_ACTIVE, NOT_ACTIVE]),
        (Command::AutoRenew(true), [Nothing, Nothing, ENDED, ENDED]),
        (Command::AutoRenew(false), [Free(Kind::AutoRenewOff), Free(Kind::AutoRenewOff), ENDED, ENDED]),
        (Command::Suspend, [Free(Kind::Suspended), Nothing, ENDED, ENDED]),
        (Command::Resume, [Nothing, Free(Kind::Resumed), ENDED, ENDED]),
        (Command::Cancel, [Free(Kind::Cancelled), Free(Kind::Cancelled), Nothing, ENDED]),
    ];
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let mut expired = world.subscribe_to("MONTH", table.len()).await;
    for subscription in &mut expired {
        *subscription = world.done(Command::AutoRenew(false), subscription).await;
    }
    world.clock.set(time("2026-02-28T12:00:00Z"));
    for subscription in &mut expired {
        *subscription = world.once(subscription, |s| s.state() == State::Expired).await;
    }
    let active = world.subscribe_to("MONTH", table.len()).await;
    let mut suspended = world.subscribe_to("MONTH", table.len()).await;
    let mut cancelled = world.subscribe_to("MONTH", table.len()).await;
    for subscription in &mut suspended {
        *subscription = world.done(Command::Suspend, subscription).await;
    }
    for subscription in &mut cancelled {
        *subscription = world.done(Command::Cancel, subscription).await;
    }
    for (n, (wish, expected)) in table.into_iter().enumerate() {
        let states = [&active[n], &suspended[n], &cancelled[n], &expired[n]];
        for (before, comes) in states.into_iter().zip(expected) {
            let about = format!("{backend:?}: {wish:?} when {:?}", before.state());
            let outdated = Asked { etag: "0".into(), ..Asked::of(wish, before) };
            assert_eq!(refusal(&outdated.send(&world.direct).await.unwrap_err()), stale(), "{about}");
            let told = world.ask(wish, before).await;
            match comes {
                Free(kind) | Gated(kind) => {
                    let Answer { subscription, gate, .. } = told.unwrap();
                    let last = world.changes(before).await.pop().unwrap();
                    assert_eq!((last.kind(), last.reason()), (kind, Why::Requested), "{about}");
                    assert_eq!(gate.is_some(), matches!(comes, Gated(_)), "{about}");
                    assert_eq!(last.gate, gate, "{about}");
                    assert_eq!(world.now(before).await, subscription, "{about}");
                    assert_ne!(subscription.etag, before.etag, "{about}");
                }
                Nothing => {
                    let Answer { subscription, gate, .. } = told.unwrap();
                    assert_eq!((&subscription, gate), (before, None), "{about}");
                    assert_eq!(world.now(before).await, *before, "{about}");
                }
                Refused(reason) => {
                    let refused = told.unwrap_err();
                    assert_eq!(refusal(&refused), forbidden(reason), "{about}");
                    let state = before.state().as_str_name().rsplit('_').next().unwrap();
                    assert_eq!(metadata_of(&refused)["state"], state, "{about}");
                    assert_eq!(world.now(before).await, *before, "{about}");
                }
            }
        }
    }
}

#[apply(each_backend)]
async fn what_the_offer_does_not_allow_is_refused(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let licences = world.subscribe("YEAR").await;
    for seats in [1, 301] {
        let refused = world.ask(Command::Seats(seats), &licences).await.unwrap_err();
        assert_eq!(bad_fields_of(&refused), ["quantity"]);
        assert!(refused.message().contains("2 to 300"), "{}", refused.message());
    }
    let by_hand = world.subscribe("BY_HAND").await;
    assert!(!by_hand.auto_renew);
    assert_eq!(world.refused(Command::Seats(8), &by_hand).await, forbidden("NOT_A_LICENCE"));
    assert_eq!(world.refused(Command::AutoRenew(true), &by_hand).await, forbidden("NOT_RENEWABLE"));
    let renewed = world.done(Command::Renew, &by_hand).await;
    assert_eq!(renewed.term_end, Some(timestamp(time("2028-01-31T12:00:00Z"))));

    let perpetual = world.subscribe("PERPETUAL").await;
    for wish in [Command::Renew, Command::AutoRenew(true)] {
        assert_eq!(world.refused(wish, &perpetual).await, forbidden("NOT_RENEWABLE"), "{wish:?}");
    }
    // However much time passes.
    world.clock.set(time("2126-01-31T12:00:00Z"));
    world.once(&licences, |s| s.term_number == 101).await;
    assert_eq!(world.now(&perpetual).await, perpetual);
}

#[apply(each_backend)]
async fn only_what_is_gated_needs_agreement_svc(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let on = world.subscribe("YEAR").await;
    let off = world.subscribe("YEAR").await;
    let off = world.done(Command::AutoRenew(false), &off).await;
    world.cluster.stop_agreements();

    for wish in [Command::Seats(8), Command::Renew] {
        assert_eq!(world.refused(wish, &on).await, unavailable(), "{wish:?}");
    }
    assert_eq!(world.refused(Command::AutoRenew(true), &off).await, unavailable());
    let same = [
        (Command::Seats(5), &on),
        (Command::AutoRenew(true), &on),
        (Command::AutoRenew(false), &off),
        (Command::Resume, &on),
    ];
    for (wish, subscription) in same {
        let told = world.ask(wish, subscription).await.unwrap();
        assert_eq!((&told.subscription, told.gate), (subscription, None), "{wish:?}");
    }
    let mut subscription = on;
    for wish in
        [Command::AutoRenew(false), Command::Suspend, Command::Suspend, Command::Resume, Command::Cancel]
    {
        subscription = world.done(wish, &subscription).await;
    }
    assert_eq!(world.done(Command::Cancel, &subscription).await, subscription);
    let expected = [Kind::Created, Kind::AutoRenewOff, Kind::Suspended, Kind::Resumed, Kind::Cancelled];
    assert_eq!(world.kinds(&subscription).await, (1..).zip(expected).collect::<Vec<_>>());
}

/// What is gated is refused for that reason, and what is not is done, on fresh subscriptions.
async fn check_blocked(world: &World, on: [&Subscription; 3], off: &Subscription, reason: &str) {
    for (wish, subscription) in
        [(Command::Seats(8), on[0]), (Command::Renew, on[0]), (Command::AutoRenew(true), off)]
    {
        let rehearsed = Asked { validate_only: true, ..Asked::of(wish, subscription) };
        for asked in [rehearsed, Asked::of(wish, subscription)] {
            let refused = asked.send(&world.direct).await.unwrap_err();
            assert_eq!(refusal(&refused), forbidden("AGREEMENT_REQUIRED"), "{wish:?}");
            let reasons = metadata_of(&refused)["reasons"].clone();
            assert!(reasons.split(',').any(|given| given == reason), "{wish:?}: {reasons}");
        }
    }
    world.done(Command::AutoRenew(false), on[0]).await;
    let suspended = world.done(Command::Suspend, on[1]).await;
    world.done(Command::Resume, &suspended).await;
    world.done(Command::Cancel, on[2]).await;
}

#[apply(each_backend)]
async fn what_is_gated_needs_an_acceptance_that_was_not_withdrawn(#[case] backend: Backend) {
    tests::needs!(backend);
    let world = World::today(backend).await;
    let (template, _turn) = world::publish_cloud_agreement(&world.cluster).await.unwrap();
    let cloud = CreateAttestationRequest {
        request_id: world::request_id(),
        customer_id: world.customer.clone(),
        template_id: template.template_id,
        contact: Some(world::contact()),
        agreed_at: Some(timestamp(world.clock.now())),
        validate_only: false,
    };
    world.direct.attestations().create_attestation(cloud).await.unwrap();
    let on = world.subscribe_to(OFFICE, 3).await;
    let off = world.subscribe(OFFICE).await;
    let off = world.done(Command::AutoRenew(false), &off).await;

    // The Cloud Agreement that is left no longer satisfies, but it is an acceptance: nothing
    // is cancelled.
    let renewed = world::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap_err();
    assert_eq!(renewed.code(), Code::AlreadyExists);
    let request = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id: metadata_of(&renewed)["attestation_id"].clone(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    world.direct.attestations().withdraw_attestation(request).await.unwrap();
    check_blocked(&world, [&on[0], &on[1], &on[2]], &off, "WITHDRAWN").await;
}

#[apply(each_backend)]
async fn a_new_version_blocks_what_is_gated_once_it_must_be_accepted_and_renewals_go_on(
    #[case] backend: Backend,
) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let on = world.subscribe_to("MONTH", 6).await;
    let off = world.done(Command::AutoRenew(false), &on[3]).await;
    let suspended = world.done(Command::Suspend, &on[4]).await;
    let deadline = time("2026-02-15T00:00:00Z");
    world.publish(Some(Reacceptance::ReacceptBy(timestamp(deadline)))).await;
    // Until then the grace period lasts.
    world.clock.set(deadline - Duration::from_micros(1));
    let more = world.done(Command::Seats(8), &on[5]).await;
    world.clock.set(deadline);
    check_blocked(&world, [&on[0], &on[1], &on[2]], &off, "VERSION_SUPERSEDED").await;

    world.clock.set(time("2026-03-05T00:00:00Z"));
    let renewed = world.once(&more, |s| s.term_number == 2).await;
    let end = Some(timestamp(time("2026-03-31T12:00:00Z")));
    assert_eq!((renewed.state(), renewed.quantity, renewed.term_end), (State::Active, 8, end));
    let renewed = world.once(&suspended, |s| s.term_number == 2).await;
    assert_eq!((renewed.state(), renewed.term_end), (State::Suspended, end));
    let ended = world.once(&off, |s| s.state() == State::Expired).await;
    assert_eq!((ended.term_number, ended.term_end), (1, on[3].term_end));
    for subscription in [&more, &suspended, &off] {
        let last = world.changes(subscription).await.pop().unwrap();
        let by = (last.actor_tenant.as_str(), last.actor.as_str(), last.event_revision);
        assert_eq!((last.reason(), by, last.gate), (Why::TermEnded, ("", "", 0), None));
        assert_eq!(last.changed_at, Some(timestamp(world.clock.now())));
    }
    world.done(Command::Resume, &world.now(&suspended).await).await;
}

#[apply(each_backend)]
async fn nothing_changes_between_the_end_of_a_term_and_its_processing(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let bought = world.subscribe_to("MONTH", 2).await;
    let suspended = world.done(Command::Suspend, &bought[1]).await;
    let end = time("2026-02-28T12:00:00Z");
    world.clock.set(end - Duration::from_micros(1));
    let active = world.done(Command::Seats(8), &bought[0]).await;
    // Without agreement-svc it is unknown what came before the end.
    world.cluster.stop_agreements();
    world.clock.set(end);
    world.cluster.restart_orders().await.unwrap();
    let wishes = [
        Command::Seats(9),
        Command::Seats(8),
        Command::Renew,
        Command::AutoRenew(true),
        Command::AutoRenew(false),
        Command::Suspend,
        Command::Resume,
        Command::Cancel,
    ];
    for wish in wishes {
        assert_eq!(world.refused(wish, &active).await, forbidden("TERM_ENDED"), "{wish:?}");
    }
    for wish in &wishes[3..] {
        assert_eq!(world.refused(*wish, &suspended).await, forbidden("TERM_ENDED"), "{wish:?}");
    }
    world.cluster.restart_agreements().await.unwrap();
    let renewed = world.once(&active, |s| s.term_number == 2).await;
    for wish in [Command::Seats(9), Command::Cancel] {
        assert_eq!(world.refused(wish, &active).await, stale(), "{wish:?}");
    }
    assert_eq!(world.done(Command::Seats(9), &renewed).await.quantity, 9);
}

/// SUB-4.
#[apply(each_backend)]
async fn each_renewal_by_hand_adds_one_term_that_ends_on_the_same_day_or_the_months_last(
    #[case] backend: Backend,
) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    for (start, offer, ends) in [
        ("2026-01-31", "MONTH", &["2026-02-28", "2026-03-31", "2026-04-30"][..]),
        ("2024-01-31", "MONTH", &["2024-02-29", "2024-03-31", "2024-04-30"]),
        ("2024-02-29", "YEAR", &["2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2024-02-29", "THREE_YEARS", &["2027-02-28", "2030-02-28", "2033-02-28", "2036-02-29"]),
    ] {
        let at = |day: &str| time(&format!("{day}T12:00:00Z"));
        let world = World::new(backend, &format!("{start}T12:00:00Z")).await;
        let mut subscription = world.subscribe(offer).await;
        for (term, end) in (1..).zip(ends) {
            assert_eq!(subscription.term_end, Some(timestamp(at(end))), "{offer} from {start}");
            assert_eq!(subscription.term_number, term);
            subscription = world.done(Command::Renew, &subscription).await;
        }
        // Terms that were bought ahead end one day, too, and then the next is added by itself.
        let last = subscription.term_number;
        world.clock.set(at(ends[ends.len() - 1]));
        let end = subscription.term_end.unwrap();
        assert_eq!(world.now(&subscription).await, subscription);
        world.clock.set(Time::from_timestamp(end.seconds, 0).unwrap());
        world.once(&subscription, |s| s.term_number == last + 1).await;
        let mut expected = vec![Kind::Renewed; ends.len() + 2];
        expected[0] = Kind::Created;
        assert_eq!(world.kinds(&subscription).await, (1..).zip(expected).collect::<Vec<_>>());
    }
}

/// SUB-3.
#[apply(each_backend)]
async fn after_downtime_each_term_is_processed_once(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let monthly = world.subscribe("MONTH").await;
    let yearly = world.subscribe("YEAR").await;
    let off = world.subscribe("MONTH").await;
    let off = world.done(Command::AutoRenew(false), &off).await;
    world.cluster.stop_orders();
    world.clock.set(time("2027-03-31T12:00:00Z"));
    world.cluster.restart_orders().await.unwrap();

    let renewed = world.once(&monthly, |s| s.term_number > 1).await;
    let end = Some(timestamp(time("2027-04-30T12:00:00Z")));
    assert_eq!((renewed.term_number, renewed.term_end, renewed.etag.as_str()), (15, end, "15"));
    let changes = world.changes(&monthly).await;
    let kept: Vec<_> = changes.iter().map(|c| (c.number, c.term_number, c.reason())).collect();
    let expected = (1..=15).map(|n| (n, n, if n == 1 { Why::Requested } else { Why::TermEnded }));
    assert_eq!(kept, expected.collect::<Vec<_>>());
    assert!(
        changes.iter().all(|c| c.quantity_after == 5 && c.quantity_before == 5 * u32::from(c.number > 1))
    );
    let renewed = world.once(&yearly, |s| s.term_number > 1).await;
    assert_eq!(renewed.term_end, Some(timestamp(time("2028-01-31T12:00:00Z"))));
    world.once(&off, |s| s.state() == State::Expired).await;
    assert_eq!(world.kinds(&off).await, [(1, Kind::Created), (2, Kind::AutoRenewOff), (3, Kind::Expired)]);
}

/// Subscriptions that one order-svc renews at a time.
const RENEWED_AT_A_TIME: usize = 4;

/// Keeps all rows of a table as they are, on PostgreSQL.
struct Holder {
    connection: PgConnection,
    table: &'static str,
}

impl Holder {
    fn of(cluster: &Cluster, table: &'static str) -> Option<Self> {
        let Url::Postgres(url) = cluster.orders_database() else { return None };
        let mut connection = PgConnection::establish(url).unwrap();
        connection.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN SHARE MODE")).unwrap();
        Some(Self { connection, table })
    }

    /// Lets go once so many transactions wait.
    async fn let_go_after(mut self, waiting: usize) {
        let blocked =
            format!("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{}'::regclass", self.table);
        let waiters = async {
            while diesel::sql_query(&blocked).execute(&mut self.connection).unwrap() < waiting {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WAIT_MAX, waiters).await.unwrap();
        self.connection.batch_execute("COMMIT").unwrap();
    }
}

#[apply(each_backend)]
async fn replicas_never_renew_twice(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    const ORDERS: usize = 4;
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let mut bought = vec![];
    for _ in 0..ORDERS {
        bought.extend(world.subscribe_to("MONTH", 100).await);
    }
    world.cluster.start_orders_replica().await.unwrap();
    // Each looks at its own times. On PostgreSQL no replica gets further than to a first change until
    // both are there; on SQLite it is left to chance where they meet.
    let holder = Holder::of(&world.cluster, "subscription");
    world.clock.set(time("2026-04-30T12:00:00Z"));
    if let Some(holder) = holder {
        holder.let_go_after(2 * RENEWED_AT_A_TIME).await;
    }
    let all = ListSubscriptionsRequest { page_size: 500, ..ListSubscriptionsRequest::default() };
    let renewed = eventually(async || {
        let listed = world.direct.subscriptions().list_subscriptions(all.clone()).await.unwrap();
        let listed = listed.into_inner().subscriptions;
        listed.iter().all(|s| s.term_number > 1).then_some(listed)
    });
    let renewed = renewed.await;
    assert_eq!(renewed.len(), bought.len());
    assert!(renewed.iter().all(|s| s.term_number == 4 && s.etag == "4"));
    for subscription in &renewed {
        let expected = [Kind::Created, Kind::Renewed, Kind::Renewed, Kind::Renewed];
        assert_eq!(world.kinds(subscription).await, (1..).zip(expected).collect::<Vec<_>>());
    }
}

async fn all_are_reported(cluster: &Cluster) {
    let look = async || {
        let metrics = cluster.orders_metrics().await.unwrap();
        metrics.contains("order_svc_purchase_reports_waiting 0\n").then_some(())
    };
    eventually(look).await;
}

#[apply(each_backend)]
async fn replicas_never_report_a_first_purchase_twice(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    const CUSTOMERS: usize = 6;
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    for n in 0..CUSTOMERS {
        world.customer =
            world::create_customer(&world.direct, &format!("Customer {n}"), "FR", None).await.unwrap();
        world::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
        world.subscribe_to("MONTH", 1).await;
    }
    all_are_reported(&world.cluster).await;
    // They are due once more, and both see it before either may claim them.
    let again = "UPDATE purchase_report SET reported_at = NULL, due_at = '2026-02-01 00:00:00'";
    world.cluster.orders_sql(again).unwrap();
    world.cluster.start_orders_replica().await.unwrap();
    let holder = Holder::of(&world.cluster, "purchase_report");
    world.clock.set(time("2026-02-01T12:00:00Z"));
    if let Some(holder) = holder {
        holder.let_go_after(2).await;
    }
    all_are_reported(&world.cluster).await;
    let calls = world.cluster.agreements_metrics().await.unwrap();
    let path = "/csp.agreement.v1.EligibilityService/ReportPurchase";
    let taken = format!("calls_total{{code=\"Ok\",path=\"{path}\"}} {}\n", 2 * CUSTOMERS);
    assert!(calls.contains(&taken), "{calls}");
}

#[apply(each_backend)]
async fn a_damaged_row_does_not_stop_other_renewals(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    // More than are looked up at a time.
    world.subscribe_to("MONTH", 70).await;
    world.cluster.orders_sql("UPDATE subscription SET state = 'GARBAGE'").unwrap();
    world.clock.set(time("2026-01-31T12:00:01Z"));
    let whole = world.subscribe_to("MONTH", 3).await;
    world.clock.set(time("2026-03-05T00:00:00Z"));
    for subscription in &whole {
        world.once(subscription, |s| s.term_number == 2).await;
    }
    // Nor those that come after a look that found nothing but damage.
    world.clock.set(time("2026-04-05T00:00:00Z"));
    for subscription in &whole {
        world.once(subscription, |s| s.term_number == 3).await;
    }
}

#[apply(each_backend)]
async fn everything_that_happened_is_kept_with_who_and_why(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let mut subscription = world.subscribe("MONTH").await;
    let wishes = [
        Command::Seats(8),
        Command::Renew,
        Command::AutoRenew(false),
        Command::AutoRenew(true),
        Command::Suspend,
        Command::Resume,
        Command::Seats(3),
    ];
    let mut gates = vec![None];
    for (minute, wish) in (1..).zip(wishes) {
        world.clock.set(time("2026-01-31T12:00:00Z") + Duration::from_secs(60 * minute));
        let told = world.ask(wish, &subscription).await.unwrap();
        (subscription, _) = (told.subscription, gates.push(told.gate));
    }
    world.clock.set(time("2026-03-31T12:00:00Z"));
    let renewed = world.once(&subscription, |s| s.term_number == 3).await;
    world.clock.set(time("2026-04-01T12:00:00Z"));
    world.done(Command::Cancel, &renewed).await;
    gates.extend([None, None]);

    let changes = world.changes(&subscription).await;
    gates[0].clone_from(&changes[0].gate);
    let by = world::sales(DIRECT);
    let (tenant, user) = (by.tenant_id.to_string(), by.user_id.to_string());
    let kept: Vec<_> = changes
        .iter()
        .map(|c| (c.number, c.kind(), c.quantity_before, c.quantity_after, c.term_number))
        .collect();
    assert_eq!(
        kept,
        [
            (1, Kind::Created, 0, 5, 1),
            (2, Kind::SeatsChanged, 5, 8, 1),
            (3, Kind::Renewed, 8, 8, 2),
            (4, Kind::AutoRenewOff, 8, 8, 2),
            (5, Kind::AutoRenewOn, 8, 8, 2),
            (6, Kind::Suspended, 8, 8, 2),
            (7, Kind::Resumed, 8, 8, 2),
            (8, Kind::SeatsChanged, 8, 3, 2),
            (9, Kind::Renewed, 3, 3, 3),
            (10, Kind::Cancelled, 3, 3, 3),
        ]
    );
    for (change, gate) in changes.iter().zip(&gates) {
        let is_own = change.number == 9;
        let by = if is_own { ("", "") } else { (tenant.as_str(), user.as_str()) };
        assert_eq!((change.actor_tenant.as_str(), change.actor.as_str()), by, "{change:?}");
        assert_eq!(change.reason(), if is_own { Why::TermEnded } else { Why::Requested });
        assert_eq!(change.gate, *gate, "{change:?}");
        let is_gated = matches!(change.number, 1 | 2 | 3 | 5 | 8);
        assert_eq!(gate.as_ref().map(GateEvidence::rule), is_gated.then_some(GateRule::Attestation));
        let minutes = i64::from(change.number) - 1;
        if change.number < 9 {
            let at = time("2026-01-31T12:00:00Z") + chrono::Duration::minutes(minutes);
            assert_eq!(change.changed_at, Some(timestamp(at)));
            assert!(gate.as_ref().is_none_or(|gate| gate.evaluated_at == Some(timestamp(at))));
        }
    }
}

#[apply(each_backend)]
async fn the_channel_of_the_caller_decides_when_it_became_mandatory(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    // Mandatory at the dashboard, optional through the API.
    let world = World::without_acceptance(backend, "2018-12-01T12:00:00Z").await;
    let api = Caller { channel: Channel::Api, ..world::sales(DIRECT) };
    let api = world.cluster.as_caller(api);
    let order = world.new_order("YEAR", 2);
    let mut bought = api.orders().create_order(order).await.unwrap().into_inner().subscriptions;
    bought[1] = world.done(Command::AutoRenew(false), &bought[1]).await;
    let wishes = [(Command::Seats(8), 0), (Command::Renew, 0), (Command::AutoRenew(true), 1)];
    for (wish, of) in wishes {
        let refused = world.refused(wish, &bought[of]).await;
        assert_eq!(refused, forbidden("AGREEMENT_REQUIRED"), "{wish:?}");
        let told = Asked::of(wish, &bought[of]).send(&api).await.unwrap();
        assert_eq!(told.gate.unwrap().rule(), GateRule::NotYetMandatory, "{wish:?}");
        bought[of] = told.subscription;
    }
    bought[1] = world.done(Command::AutoRenew(false), &bought[1]).await;
    world.clock.set(time("2019-03-22T00:00:00Z"));
    for (wish, of) in [(Command::Seats(9), 0), (Command::Renew, 0), (Command::AutoRenew(true), 1)] {
        let refused = Asked::of(wish, &bought[of]).send(&api).await.unwrap_err();
        assert_eq!(refusal(&refused), forbidden("AGREEMENT_REQUIRED"), "{wish:?}");
    }
}

#[apply(each_backend)]
async fn what_is_only_validated_stores_nothing(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let subscription = world.subscribe("YEAR").await;
    for wish in [Command::Seats(8), Command::Renew] {
        let asked = Asked::of(wish, &subscription);
        let rehearsed = Asked { validate_only: true, ..asked.clone() };
        let rehearsed = rehearsed.send(&world.direct).await.unwrap();
        assert_eq!(world.now(&subscription).await, subscription, "{wish:?}");
        assert_eq!(world.kinds(&subscription).await, [(1, Kind::Created)], "{wish:?}");

        // The id is still free, and it comes to what was said.
        let other = world.subscribe("YEAR").await;
        let real = Asked { subscription_id: other.subscription_id.clone(), ..asked };
        let mut real = real.send(&world.direct).await.unwrap();
        real.subscription.subscription_id.clone_from(&subscription.subscription_id);
        real.subscription.order_id.clone_from(&subscription.order_id);
        assert_eq!((real.subscription, real.gate), (rehearsed.subscription, rehearsed.gate), "{wish:?}");
    }
    for (wish, expected) in [(Command::Seats(5), Ok(None)), (Command::Seats(301), Err("quantity"))] {
        let rehearsed = Asked { validate_only: true, ..Asked::of(wish, &subscription) };
        let told = rehearsed.send(&world.direct).await;
        assert_eq!(told.as_ref().map(|told| told.gate.clone()).ok(), expected.clone().ok());
        assert_eq!(told.err().map(|refused| bad_fields_of(&refused).join(",")).as_deref(), expected.err());
    }
}

#[apply(each_backend)]
async fn a_repeated_change_gets_its_first_answer_whatever_has_happened_since(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let wishes = [
        (Command::Seats(8), Command::Seats(9)),
        (Command::Renew, Command::Renew),
        (Command::AutoRenew(false), Command::AutoRenew(true)),
        (Command::Suspend, Command::Suspend),
        (Command::Resume, Command::Resume),
        (Command::Cancel, Command::Cancel),
    ];
    let bought = world.subscribe_to("MONTH", wishes.len()).await;
    let mut sent = vec![];
    for ((wish, other), subscription) in wishes.into_iter().zip(&bought) {
        let asked = Asked::of(wish, subscription);
        let first = asked.clone().send(&world.direct).await.unwrap();
        sent.push((asked, other, first));
    }
    for (_, _, first) in &sent {
        if first.subscription.state() != State::Cancelled {
            world.done(Command::Cancel, &first.subscription).await;
        }
    }
    world.cluster.stop_agreements();
    world.clock.set(time("2026-02-28T12:00:00Z"));
    world.cluster.restart_orders().await.unwrap();
    for (asked, other, first) in sent {
        let before = world.kinds(&first.subscription).await;
        let again = asked.clone().send(&world.direct).await.unwrap();
        assert_eq!(again, first, "{:?}", asked.wish);
        let etag = world.now(&first.subscription).await.etag;
        let other = Asked { wish: other, etag: format!("{etag}0"), ..asked };
        let refused = other.send(&world.direct).await.unwrap_err();
        assert_eq!(refusal(&refused), (Code::InvalidArgument, "REQUEST_ID_REUSED".into()));
        assert_eq!(world.kinds(&first.subscription).await, before);
    }
}

/// The same user on several connections.
fn agents(world: &World) -> Vec<As> {
    (0..4).map(|_| world.cluster.as_caller(world::sales(DIRECT))).collect()
}

/// What many callers at once are told.
async fn at_once(agents: &[As], asked: impl Fn() -> Asked) -> Vec<Result<Answer, Status>> {
    join_all((0..CALLERS).map(|n| asked().send(&agents[n % agents.len()]))).await
}

/// A wish of each kind that changes an active subscription.
const CHANGING: [Command; 5] =
    [Command::Seats(8), Command::Renew, Command::AutoRenew(false), Command::Suspend, Command::Cancel];

#[apply(each_backend)]
async fn many_callers_with_one_request_id_have_one_effect(#[case] backend: Backend) {
    tests::needs!(backend);
    let world = World::today(backend).await;
    let agents = agents(&world);
    for wish in CHANGING {
        let subscription = world.subscribe(OFFICE).await;
        let asked = Asked::of(wish, &subscription);
        let told = at_once(&agents, || asked.clone()).await;
        let first = told[0].as_ref().unwrap();
        assert!(told.iter().all(|told| told.as_ref().unwrap() == first), "{wish:?}");
        assert_eq!(world.changes(&subscription).await.len(), 2, "{wish:?}");
    }
}

#[apply(each_backend)]
async fn of_many_callers_with_one_etag_exactly_one_wins(#[case] backend: Backend) {
    tests::needs!(backend);
    let world = World::today(backend).await;
    let agents = agents(&world);
    for wish in CHANGING {
        let subscription = world.subscribe(OFFICE).await;
        let told = at_once(&agents, || Asked::of(wish, &subscription)).await;
        let (won, lost): (Vec<_>, Vec<_>) = told.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1, "{wish:?}");
        for lost in lost {
            assert_eq!(refusal(&lost.unwrap_err()), stale(), "{wish:?}");
        }
        let won = won.into_iter().next().unwrap().unwrap().subscription;
        assert_eq!(world.now(&subscription).await, won, "{wish:?}");
        assert_eq!(world.changes(&subscription).await.len(), 2, "{wish:?}");
    }
}

#[apply(each_backend)]
async fn a_first_answer_is_given_again_for_thirty_days_and_then_its_request_id_is_free(
    #[case] backend: Backend,
) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let start = time("2026-01-31T12:00:00Z");
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let place = async |world: &World, order: &CreateOrderRequest| {
        world.direct.orders().create_order(order.clone()).await.map(Response::into_inner)
    };
    let create = async |world: &World, name: &str, request_id: &str| {
        let new = world::new_customer(name, "FR", None);
        let new = proto::agreement::CreateCustomerRequest { request_id: request_id.into(), ..new };
        world.direct.customers().create_customer(new).await.map(Response::into_inner)
    };
    let (old_order, order) = (world.new_order("YEAR", 1), world.new_order("YEAR", 1));
    let (old_id, id) = (world::request_id(), world::request_id());
    let first_order = place(&world, &old_order).await.unwrap();
    create(&world, "Old", &old_id).await.unwrap();
    world.clock.set(start + Duration::from_secs(1));
    let order_placed = place(&world, &order).await.unwrap();
    let created = create(&world, "New", &id).await.unwrap();

    // To the microsecond.
    world.clock.set(start + Duration::from_secs(30 * 86_400 + 1));
    world.cluster.stop_agreements();
    world.cluster.restart_agreements().await.unwrap();
    world.cluster.restart_orders().await.unwrap();
    let second_order = eventually(async || {
        let placed = place(&world, &old_order).await.unwrap();
        (placed != first_order).then_some(placed)
    });
    let second_order = second_order.await.order.unwrap();
    assert_ne!(second_order.order_id, first_order.order.unwrap().order_id);
    eventually(async || create(&world, "Other", &old_id).await.ok()).await;
    assert_eq!(place(&world, &order).await.unwrap(), order_placed);
    assert_eq!(create(&world, "New", &id).await.unwrap(), created);
    let reused = create(&world, "Another", &id).await.unwrap_err();
    assert_eq!(refusal(&reused), (Code::InvalidArgument, "REQUEST_ID_REUSED".into()));

    world.clock.set(start + Duration::from_secs(31 * 86_400));
    world.cluster.stop_agreements();
    world.cluster.restart_agreements().await.unwrap();
    eventually(async || create(&world, "Another", &id).await.ok()).await;
}

#[apply(each_backend)]
async fn terms_and_history_are_processed_in_order_after_downtime(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let before = Meanwhile {
        happened_at: "2026-02-28T11:00:00Z",
        parted: &[(Kind::AutoRenewOff, Why::RelationshipEnded), (Kind::Expired, Why::TermEnded)],
        withdrawn: &[(Kind::Cancelled, Why::AgreementWithdrawn)],
        switched_off: &[(Kind::Cancelled, Why::AgreementWithdrawn)],
    };
    let after = Meanwhile {
        happened_at: "2026-02-28T13:00:00Z",
        parted: &[
            (Kind::Renewed, Why::TermEnded),
            (Kind::AutoRenewOff, Why::RelationshipEnded),
            (Kind::Expired, Why::TermEnded),
        ],
        withdrawn: &[(Kind::Renewed, Why::TermEnded), (Kind::Cancelled, Why::AgreementWithdrawn)],
        switched_off: &[(Kind::AutoRenewOff, Why::Requested), (Kind::Expired, Why::TermEnded)],
    };
    before.check(backend).await;
    after.check(backend).await;
}

/// What happens around the end of a term while order-svc is down, and what it comes to.
struct Meanwhile {
    happened_at: &'static str,
    /// Of a subscription that renews by itself, whose payer and customer part.
    parted: &'static [(Kind, Why)],
    /// Of one that renews by itself, whose acceptance is withdrawn.
    withdrawn: &'static [(Kind, Why)],
    /// Of one that does not, whose acceptance is withdrawn.
    switched_off: &'static [(Kind, Why)],
}

impl Meanwhile {
    async fn check(&self, backend: Backend) {
        let mut world = World::without_acceptance(backend, "2026-01-31T12:00:00Z").await;
        let attested = world::attest(&world.direct, &world.customer, world.clock.now()).await.unwrap();
        let mut bought = world.subscribe_to("MONTH", 2).await;
        let (off, withdrawn) = (bought.remove(1), bought.remove(0));
        world.done(Command::AutoRenew(false), &off).await;
        let left = world::create_customer(&world.direct, "Fabrikam", "FR", None).await.unwrap();
        world::attest(&world.direct, &left, world.clock.now()).await.unwrap();
        let order = CreateOrderRequest { customer_id: left.clone(), ..world.new_order("MONTH", 1) };
        let parted = world.direct.orders().create_order(order).await.unwrap().into_inner();
        let parted = &parted.subscriptions[0];

        world.cluster.stop_orders();
        world.clock.set(time(self.happened_at));
        let request = WithdrawAttestationRequest {
            request_id: world::request_id(),
            attestation_id: attested.attestation.unwrap().attestation_id,
            reason: WithdrawalReason::NoLongerAccepts.into(),
        };
        world.direct.attestations().withdraw_attestation(request).await.unwrap();
        let request = EndRelationshipRequest {
            request_id: world::request_id(),
            customer_id: left,
            ..EndRelationshipRequest::default()
        };
        world.direct.customers().end_relationship(request).await.unwrap();
        world.clock.set(time("2026-04-30T12:00:00Z"));
        world.cluster.restart_orders().await.unwrap();

        let is_final = |s: &Subscription| matches!(s.state(), State::Cancelled | State::Expired);
        for (of, expected) in [(parted, self.parted), (&withdrawn, self.withdrawn), (&off, self.switched_off)]
        {
            world.once(of, is_final).await;
            let changes = world.changes(of).await;
            let since: Vec<_> = changes.iter().map(|change| (change.kind(), change.reason())).collect();
            assert!(since.ends_with(expected), "{}: {since:?} ends otherwise", self.happened_at);
            let others = since.len() - expected.len();
            assert!(others <= 2 && since[0] == (Kind::Created, Why::Requested), "{since:?}");
        }
    }
}

#[apply(each_backend)]
async fn a_term_waits_while_the_history_before_its_end_cannot_be_followed(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let mut world = World::new(backend, "2026-01-31T12:00:00Z").await;
    let bought = world.subscribe_to("MONTH", 4).await;
    // A term that is moved behind the service's back into the time that was followed is processed at
    // the next look.
    let next_look = async |world: &World, moved: &Subscription| {
        let end = "'2026-01-31 11:59:59'";
        let id = &moved.subscription_id;
        let sql = format!("UPDATE subscription SET term_end = {end}, due_at = {end} WHERE id = '{id}'");
        world.cluster.orders_sql(&sql).unwrap();
        world.once(moved, |s| s.term_number == 2).await;
    };
    next_look(&world, &bought[1]).await;
    world.cluster.start_replica().await.unwrap();
    world.cluster.stop_agreements();
    world.clock.set(time("2026-02-28T11:00:00Z"));
    let request = EndRelationshipRequest {
        request_id: world::request_id(),
        customer_id: world.customer.clone(),
        ..EndRelationshipRequest::default()
    };
    let at_replica = world.cluster.at_replica(world::sales(DIRECT));
    at_replica.customers().end_relationship(request).await.unwrap();
    world.clock.set(time("2026-03-05T00:00:00Z"));
    // The second look begins when the first is over.
    next_look(&world, &bought[2]).await;
    next_look(&world, &bought[3]).await;
    assert_eq!(world.now(&bought[0]).await, bought[0]);
    assert_eq!(world.refused(Command::Cancel, &bought[0]).await, forbidden("TERM_ENDED"));

    world.cluster.restart_agreements().await.unwrap();
    world.once(&bought[0], |s| s.state() == State::Expired).await;
    assert_eq!(
        world.kinds(&bought[0]).await,
        [(1, Kind::Created), (2, Kind::AutoRenewOff), (3, Kind::Expired)]
    );
}
