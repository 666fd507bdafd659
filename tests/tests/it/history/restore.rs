//! Databases that were restored from older copies: what was lost is noticed, nothing is applied that does not
//! follow on what was, and once it is announced both services go on.

use std::time::Duration;

use agreement_svc::config::Verify;
use agreement_svc::rules::history::{Broken, Finding, Head};
use chassis::clock::{Clock, Time, new_id};
use chassis::query;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamp};
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use proto::agreement::PartnerKind;
use proto::agreement::event::Change;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    CheckEligibilityRequest, Event, GetCustomerRequest, WatchEventsRequest, WithdrawAttestationRequest,
    WithdrawalReason,
};
use proto::order::{
    CreateOrderRequest, GetSubscriptionRequest, GetWithdrawalReportRequest, ListSubscriptionChangesRequest,
    ListWithdrawalReportsRequest, Subscription, SubscriptionState,
};
use proto::types::{Cloud, Operation};
use rstest_reuse::apply;
use sha2::{Digest, Sha256};
use tests::backup::Backup;
use tests::databases::connect;
use tests::world::{self, DIRECT};
use tests::{As, Backend, Cluster, Setup, metadata_of, reason_of};

use crate::each_backend;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::faults::relay::Relay;
use crate::subscriptions::withdrawals::withdraw_signature;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

const LIFT: i64 = 1 << 32;

fn now() -> Time {
    Clock::system().now()
}

struct World {
    cluster: Cluster,
    direct: As,
    customers: usize,
}

async fn world_on(backend: Backend) -> World {
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    World { cluster, direct, customers: 0 }
}

#[derive(QueryableByName)]
struct Place {
    #[diesel(sql_type = BigInt)]
    revision: i64,
    #[diesel(sql_type = Nullable<Text>)]
    head: Option<String>,
}

#[derive(QueryableByName)]
struct Id {
    #[diesel(sql_type = Text)]
    id: String,
}

impl World {
    async fn customer(&mut self) -> String {
        self.customers += 1;
        let name = format!("Customer {}", self.customers);
        world::create_customer(&self.direct, &name, "FR", None).await.unwrap()
    }

    /// A customer with an attestation, and a subscription that rests on it.
    async fn buyer(&mut self) -> (String, String, Subscription) {
        let customer = self.customer().await;
        let attestation = attest(&self.direct, &customer).await;
        let bought = buy(&self.direct, &customer).await;
        (customer, attestation, bought)
    }

    /// Records one event that concerns nobody.
    async fn one_event(&self, name: &str) {
        let operator = self.cluster.as_caller(world::operator());
        let (kind, cloud) = (PartnerKind::DirectBill, Cloud::Public);
        world::register_partner(&operator, new_id(now()), name, kind, cloud).await.unwrap();
    }

    /// Number and hash of agreement-svc's last event.
    fn head(&self) -> Head {
        let place: Place = query!(&mut connect(self.cluster.agreements_database()).unwrap(), c => {
            sql_query("SELECT value AS revision, head FROM revision").get_result(c).unwrap()
        });
        Head { revision: place.revision, hash: place.head.unwrap() }
    }

    /// How far order-svc has applied the history.
    fn cursor(&self) -> i64 {
        let place: Place = query!(&mut connect(self.cluster.orders_database()).unwrap(), c => {
            sql_query("SELECT revision, head FROM follower").get_result(c).unwrap()
        });
        assert!(place.head.is_none_or(|head| head.starts_with(&format!("{}:", place.revision))));
        place.revision
    }

    /// Waits until order-svc has reported every first purchase and applied all there is.
    async fn followed(&self) -> Head {
        let unreported = "SELECT order_id AS id FROM purchase_report WHERE reported_at IS NULL";
        let reporting = async {
            while !self.ids(unreported).is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, reporting).await.unwrap();
        let head = self.head();
        self.passed(&head).await;
        head
    }

    /// Waits until order-svc has applied an event.
    async fn passed(&self, head: &Head) {
        let following = async {
            while self.cursor() < head.revision {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, following).await.unwrap();
    }

    async fn restore(&mut self, copy: &Backup) {
        self.cluster.stop_agreements();
        copy.restore().unwrap();
    }

    /// Waits until order-svc says that it cannot follow.
    async fn lost_track(&self) {
        let losing = async {
            while !self
                .cluster
                .orders_metrics()
                .await
                .unwrap()
                .contains("order_svc_history_behind_seconds inf")
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, losing).await.unwrap();
    }

    async fn state(&self, bought: &Subscription) -> SubscriptionState {
        let request = GetSubscriptionRequest { subscription_id: bought.subscription_id.clone() };
        let found = self.direct.subscriptions().get_subscription(request).await.unwrap();
        found.into_inner().subscription.unwrap().state()
    }

    async fn findings(&self, kept: &[&Head]) -> Vec<Finding> {
        let head = kept.iter().map(|head| (*head).clone()).collect();
        let database = self.cluster.agreements_database().clone();
        agreement_svc::verify(&Verify { database, head }).await.unwrap().findings
    }

    fn ids(&self, sql: &str) -> Vec<String> {
        let rows: Vec<Id> = query!(&mut connect(self.cluster.orders_database()).unwrap(), c => {
            sql_query(sql).load(c).unwrap()
        });
        rows.into_iter().map(|row| row.id).collect()
    }

    async fn next_after(&self, after_revision: i64, after_hash: &str) -> Result<Event, Status> {
        let operator = self.cluster.as_caller(world::operator());
        let request = WatchEventsRequest { after_revision, after_hash: after_hash.into() };
        let mut stream = operator.events().watch_events(request).await?.into_inner();
        match timeout(LONG, stream.message()).await.unwrap()?.unwrap().item {
            Some(Item::Event(event)) => Ok(event),
            other => panic!("{other:?}"),
        }
    }
}

async fn attest(caller: &As, customer: &str) -> String {
    world::attest(caller, customer, now()).await.unwrap().attestation.unwrap().attestation_id
}

async fn withdraw(caller: &As, attestation_id: &str) -> i64 {
    let request = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id: attestation_id.into(),
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    caller.attestations().withdraw_attestation(request).await.unwrap().into_inner().revision
}

async fn buy(caller: &As, customer: &str) -> Subscription {
    world::order(caller, customer, None, 5).await.unwrap().subscriptions.remove(0)
}

fn refusal<T: std::fmt::Debug>(refused: Result<T, Status>) -> (Code, String) {
    let refused = refused.unwrap_err();
    (refused.code(), reason_of(&refused))
}

/// The customers with lost withdrawals, and the subscriptions that rest on lost answers, as the README has them
/// looked for.
fn remains(last: i64, restored: i64) -> [String; 2] {
    [
        format!(
            "SELECT customer_id AS id FROM fence WHERE fence_revision > {last} AND fence_revision < {restored}"
        ),
        format!(
            "SELECT id FROM subscription WHERE answer_revision > {last} AND answer_revision < {restored} \
             AND state IN ('ACTIVE', 'SUSPENDED')"
        ),
    ]
}

#[apply(each_backend)]
async fn after_an_announced_restore_what_was_lost_stays_done_and_orders_go_on(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    use SubscriptionState::{Active, Cancelled};
    let mut world = world_on(backend).await;
    let direct = world.direct.clone();
    let (untouched, _, _) = world.buyer().await;
    // What was withdrawn and accepted anew before is applied again and opens nothing.
    let (withdrawn, earlier, _) = world.buyer().await;
    withdraw(&direct, &earlier).await;
    let attestation = attest(&direct, &withdrawn).await;
    let ended = buy(&direct, &withdrawn).await;
    let accepted = world.customer().await;
    let before = world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();

    // What will be lost: a withdrawal, and an acceptance with what rests on it.
    withdraw(&direct, &attestation).await;
    attest(&direct, &accepted).await;
    let on_lost = buy(&direct, &accepted).await;
    world.customer().await;
    let lost = world.followed().await;
    assert_eq!(world.state(&ended).await, Cancelled);

    world.restore(&copy).await;
    assert_eq!(world.head(), before);
    world.cluster.announce_restore().await.unwrap();
    let restored = world.head();
    assert_eq!(restored.revision, before.revision + LIFT);
    world.cluster.restart_agreements().await.unwrap();
    world.passed(&restored).await;
    // The history holds, with the gap; a head of what was lost is told for what it is.
    assert_eq!(world.findings(&[&before, &restored]).await, []);
    let told = Finding::Lost { kept: lost.clone(), last: before.revision, restored: restored.revision };
    assert_eq!(world.findings(&[&lost]).await, [told]);

    // What was done stays done, and what rests on what was lost can be found.
    assert_eq!([world.state(&ended).await, world.state(&on_lost).await], [Cancelled, Active]);
    let [customers, subscriptions] = remains(before.revision, restored.revision);
    assert_eq!(world.ids(&customers), vec![withdrawn.clone()]);
    assert_eq!(world.ids(&subscriptions), vec![on_lost.subscription_id.clone()]);
    // The first purchase of the customer whose report was lost with the rest is known again.
    let reported = async {
        let get = || GetCustomerRequest { customer_id: accepted.clone() };
        let operator = world.cluster.as_caller(world::operator());
        let known = async || {
            let found = operator.customers().get_customer(get()).await.unwrap().into_inner();
            found.customer.unwrap().first_purchase_at
        };
        while known().await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, reported).await.unwrap();

    // Nobody else is concerned.
    buy(&direct, &untouched).await;
    // agreement-svc takes the customer for covered, and order-svc knows better until that is settled.
    let outdated = (Code::Aborted, "ANSWER_OUTDATED".to_owned());
    assert_eq!(refusal(world::order(&direct, &withdrawn, None, 1).await), outdated);
    withdraw(&direct, &attestation).await;
    let required = (Code::FailedPrecondition, "AGREEMENT_REQUIRED".to_owned());
    assert_eq!(refusal(world::order(&direct, &withdrawn, None, 1).await), required);
    attest(&direct, &withdrawn).await;
    buy(&direct, &withdrawn).await;
    // An acceptance that was lost is missing until it is stated again, and then it can be withdrawn, with
    // what rests on the lost one.
    assert_eq!(refusal(world::order(&direct, &accepted, None, 1).await), required);
    let again = attest(&direct, &accepted).await;
    buy(&direct, &accepted).await;
    withdraw(&direct, &again).await;
    world.followed().await;
    assert_eq!(world.state(&on_lost).await, Cancelled);
    assert_eq!(world.findings(&[&before, &restored]).await, []);
}

#[apply(each_backend)]
async fn a_history_that_went_another_way_is_not_followed_until_its_restore_is_announced(
    #[case] backend: Backend,
) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    use SubscriptionState::{Active, Cancelled};
    // Events lost, events recorded after the restore before it is announced.
    for (lost, grown) in [(4, 2), (2, 2), (1, 4)] {
        let mut world = world_on(backend).await;
        let direct = world.direct.clone();
        let (_, attestation, bought) = world.buyer().await;
        let before = world.followed().await;
        let copy = Backup::of(world.cluster.agreements_database()).unwrap();
        for _ in 0..lost {
            world.one_event("Lost").await;
        }
        let known = world.followed().await;
        world.restore(&copy).await;
        world.cluster.restart_agreements().await.unwrap();
        // The withdrawal has a number that order-svc has applied something else under.
        let withdrawal = withdraw(&direct, &attestation).await;
        assert!(withdrawal == before.revision + 1 && withdrawal <= known.revision);
        for _ in 1..grown {
            world.one_event("Grown").await;
        }
        world.lost_track().await;
        let refused = refusal(world.next_after(known.revision, &known.hash).await);
        let expected = match grown < lost {
            true => (Code::OutOfRange, "CURSOR_AHEAD".to_owned()),
            false => (Code::FailedPrecondition, "HISTORY_FORKED".to_owned()),
        };
        assert_eq!(refused, expected);
        assert_eq!((world.cursor(), world.state(&bought).await), (known.revision, Active));

        // Late, and beside the running service.
        let last = world.head();
        world.cluster.announce_restore().await.unwrap();
        let restored = world.head();
        assert_eq!(restored.revision, last.revision + LIFT);
        world.passed(&restored).await;
        assert_eq!(world.state(&bought).await, Cancelled, "{lost} lost, {grown} grown");
        assert_eq!(world.findings(&[&before, &last, &restored]).await, []);
        let (customer, _, _) = world.buyer().await;
        buy(&direct, &customer).await;
        world.followed().await;
    }
}

#[apply(each_backend)]
async fn a_withdrawal_under_the_revision_of_a_lost_one_has_its_report_and_the_lost_one_keeps_its_own(
    #[case] backend: Backend,
) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = world_on(backend).await;
    let direct = world.direct.clone();
    let mut buyers = vec![];
    for _ in 0..3 {
        buyers.push(world.buyer().await);
    }
    world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    let revision = withdraw(&direct, &buyers[0].1).await;
    world.followed().await;

    // Each restore loses the withdrawal of one customer, and another one's has its revision before it is
    // announced. The second copy is older than the first announcement.
    for (n, announcements) in [(1, 1), (2, 2)] {
        world.restore(&copy).await;
        world.cluster.restart_agreements().await.unwrap();
        assert_eq!(withdraw(&direct, &buyers[n].1).await, revision);
        world.lost_track().await;
        for _ in 0..announcements {
            world.cluster.announce_restore().await.unwrap();
        }
        let restored = world.head();
        world.passed(&restored).await;

        // The last one has the revision, and each that was lost another, which is no event's.
        let asked = ListWithdrawalReportsRequest::default();
        let list = direct.withdrawals().list_withdrawal_reports(asked).await.unwrap();
        let reports = list.into_inner().reports;
        let revisions: Vec<_> = reports.iter().map(|report| report.revision).collect();
        assert_eq!((revisions.len(), revisions[0]), (n + 1, revision), "{reports:#?}");
        assert!(revisions.is_sorted() && revisions[1..].iter().all(|aside| *aside > revision + 1));
        assert!(*revisions.last().unwrap() < restored.revision, "{revisions:?}");
        let order = [n].into_iter().chain(0..n);
        for (report, (_, attestation, bought)) in reports.iter().zip(order.map(|n| &buyers[n])) {
            let request = GetWithdrawalReportRequest {
                revision: report.revision,
                ..GetWithdrawalReportRequest::default()
            };
            let told = direct.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner();
            assert_eq!(told.report.as_ref(), Some(report));
            assert_eq!((&report.acceptance_id, report.cancelled), (attestation, 1));
            assert_eq!(report.uncovered_partner_ids, [DIRECT.to_string()]);
            let effects: Vec<_> = told.effects.iter().map(|effect| &effect.subscription_id).collect();
            assert_eq!(effects, [&bought.subscription_id]);
            assert_eq!(world.state(bought).await, SubscriptionState::Cancelled);
            let asked = ListSubscriptionChangesRequest {
                subscription_id: bought.subscription_id.clone(),
                ..ListSubscriptionChangesRequest::default()
            };
            let changes = direct.subscriptions().list_subscription_changes(asked).await.unwrap();
            let changes = changes.into_inner().changes;
            assert_eq!(changes.last().unwrap().event_revision, report.revision, "{changes:#?}");
        }
    }
}

#[apply(each_backend)]
async fn what_a_lost_withdrawal_left_alone_was_ended_by_the_one_that_has_its_revision(
    #[case] backend: Backend,
) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = world_on(backend).await;
    let direct = world.direct.clone();
    let customer = world.customer().await;
    let admin = world.cluster.as_caller(world::admin(customer.parse().unwrap()));
    world::sign(&admin, 2).await.unwrap();
    let attestation = attest(&direct, &customer).await;
    let bought = buy(&direct, &customer).await;
    world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    world.one_event("Lost").await;
    let revision = withdraw_signature(&admin, &customer).await;
    world.followed().await;
    assert_eq!(world.state(&bought).await, SubscriptionState::Active);

    world.restore(&copy).await;
    world.cluster.restart_agreements().await.unwrap();
    assert_eq!(withdraw_signature(&admin, &customer).await, revision - 1);
    assert_eq!(withdraw(&direct, &attestation).await, revision);
    world.lost_track().await;
    world.cluster.announce_restore().await.unwrap();
    world.passed(&world.head()).await;
    assert_eq!(world.state(&bought).await, SubscriptionState::Cancelled);
    let asked = ListSubscriptionChangesRequest {
        subscription_id: bought.subscription_id.clone(),
        ..ListSubscriptionChangesRequest::default()
    };
    let changes = direct.subscriptions().list_subscription_changes(asked).await.unwrap();
    assert_eq!(changes.into_inner().changes.last().unwrap().event_revision, revision);
}

#[apply(each_backend)]
async fn a_watcher_gets_what_follows_on_what_it_knows_or_the_restore_that_lost_it(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = world_on(backend).await;
    let first = world.head();
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    world.customer().await;
    world.customer().await;
    let lost = world.head();
    assert!(lost.revision > first.revision + 1);
    world.restore(&copy).await;
    world.cluster.announce_restore().await.unwrap();
    let restored = world.head();
    world.cluster.restart_agreements().await.unwrap();
    world.customer().await;

    let forked = || (Code::FailedPrecondition, "HISTORY_FORKED".to_owned());
    let other = "0".repeat(64);
    // A cursor, the hash it says; the revision that it gets next.
    for (after, hash, next) in [
        (0, "", Some(1)),
        (first.revision, "", Some(restored.revision)),
        (first.revision, &first.hash, Some(restored.revision)),
        (first.revision, &other, Some(restored.revision)),
        (1, &other, Some(restored.revision)),
        (first.revision + 1, "", Some(restored.revision)),
        (lost.revision, &lost.hash, Some(restored.revision)),
        (restored.revision - 1, "", Some(restored.revision)),
        (restored.revision, "", Some(restored.revision + 1)),
        (restored.revision, &restored.hash, Some(restored.revision + 1)),
        (restored.revision, &other, None),
    ] {
        let came = world.next_after(after, hash).await;
        let about = format!("after {after} with {hash:?}");
        let Some(next) = next else {
            assert_eq!(refusal(came), forked(), "{about}");
            continue;
        };
        let event = came.unwrap();
        assert_eq!(event.revision, next, "{about}");
        if next == restored.revision {
            let Some(Change::HistoryRestored(told)) = event.change else { panic!("{about}: {event:?}") };
            assert_eq!((told.last_revision, told.last_hash.as_str()), (first.revision, first.hash.as_str()));
            assert_eq!(event.hash, restored.hash);
        }
    }
    let nothing_known = refusal(world.next_after(0, &other).await);
    assert_eq!(nothing_known, (Code::InvalidArgument, "INVALID_FIELDS".into()));

    // What the gate is asked to know of must be there, or else it knows nothing.
    let customer = world.customer().await;
    let operator = world.direct.clone();
    let ask = async |at_least_revision| {
        let request = CheckEligibilityRequest {
            customer_id: customer.clone(),
            payer_id: DIRECT.to_string(),
            operation: Operation::NewPurchase.into(),
            at_least_revision,
            ..CheckEligibilityRequest::default()
        };
        operator.gate().check_eligibility(request).await
    };
    for known in [0, first.revision, restored.revision, restored.revision + 1] {
        ask(known).await.unwrap();
    }
    for unknown in [first.revision + 1, lost.revision, restored.revision - 1] {
        let refused = ask(unknown).await.unwrap_err();
        assert_eq!(metadata_of(&refused)["revision"], unknown.to_string());
        assert_eq!(refusal::<()>(Err(refused)), forked());
    }

    // A copy from before the first announcement: one more does not lead beyond what was known, and two do.
    world.followed().await;
    let known = world.head();
    world.restore(&copy).await;
    world.cluster.announce_restore().await.unwrap();
    world.cluster.restart_agreements().await.unwrap();
    let ahead = (Code::OutOfRange, "CURSOR_AHEAD".to_owned());
    assert_eq!(refusal(world.next_after(known.revision, &known.hash).await), ahead);
    world.cluster.announce_restore().await.unwrap();
    let twice = world.head();
    world.passed(&twice).await;
    assert_eq!(twice.revision, first.revision + 2 * LIFT);
    // Once too often does no harm.
    world.cluster.announce_restore().await.unwrap();
    world.buyer().await;
    world.followed().await;
    assert_eq!(world.findings(&[&first, &twice]).await, []);
}

#[apply(each_backend)]
async fn an_answer_from_before_a_restore_is_too_old_once_the_restore_is_known(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let setup = Setup { backend, agreements_at, gate_deadline_ms: 30_000, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut world = World { cluster, direct: direct.clone(), customers: 0 };
    let customer = world.customer().await;
    let before = world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    attest(&direct, &customer).await;
    world.followed().await;

    // A yes that rests on what is lost while it is on its way.
    let (answered, let_go) = relay.hold_answer();
    let ordering = tokio::spawn({
        let (direct, customer) = (direct.clone(), customer.clone());
        async move { world::order(&direct, &customer, None, 5).await }
    });
    timeout(LONG, answered).await.unwrap().unwrap();
    world.restore(&copy).await;
    world.cluster.announce_restore().await.unwrap();
    world.cluster.restart_agreements().await.unwrap();
    relay.pass_to(world.cluster.agreements_address());
    let restored = world.head();
    world.passed(&restored).await;
    let_go.send(()).unwrap();
    let told = timeout(LONG, ordering).await.unwrap().unwrap();
    assert_eq!(refusal(told), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()));
    let [_, subscriptions] = remains(before.revision, restored.revision);
    assert_eq!(world.ids(&subscriptions), Vec::<String>::new());
}

/// An event as somebody forges it who can make hashes.
struct Forged {
    revision: i64,
    body: String,
}

#[apply(each_backend)]
async fn no_other_gap_than_that_of_a_restore_holds(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = world_on(backend).await;
    world.customer().await;
    let last = world.head();
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    let restored = |last_revision: i64, last_hash: &str| {
        format!(r#"{{"event":"HISTORY_RESTORED","last_revision":{last_revision},"last_hash":"{last_hash}"}}"#)
    };
    let linked = r#"{"event":"RESELLER_LINKED","provider_id":"00000000-0000-4000-8000-0000000000e1","reseller_id":"00000000-0000-4000-8000-0000000000f1","by":"00000000-0000-4000-8000-000000000001"}"#;
    let right = restored(last.revision, &last.hash);
    let (next, lifted) = (last.revision + 1, last.revision + LIFT);
    for (revision, body, found) in [
        (lifted, right.clone(), None),
        (lifted - 1, right.clone(), Some((lifted - 1, Broken::Misnumbered))),
        (lifted + 1, right.clone(), Some((lifted, Broken::Missing))),
        (next, right.clone(), Some((next, Broken::Misnumbered))),
        (lifted, restored(last.revision - 1, &last.hash), Some((lifted, Broken::Hash))),
        (lifted, restored(last.revision, ""), Some((lifted, Broken::Hash))),
        (lifted, linked.to_owned(), Some((next, Broken::Missing))),
    ] {
        let forged = Forged { revision, body };
        world.cluster.stop_agreements();
        copy.restore().unwrap();
        forged.append(&world, &last);
        let expected: Vec<_> =
            found.map(|(revision, how)| Finding::Broken { revision, how }).into_iter().collect();
        let about = format!("{revision} {}", forged.body);
        let mut findings = world.findings(&[&last]).await;
        // That the columns beside the body say nothing is another matter.
        findings.retain(|finding| !matches!(finding, Finding::Broken { how: Broken::Column(_), .. }));
        assert_eq!(findings, expected, "{about}");
    }
}

#[derive(QueryableByName)]
struct RecordedAt {
    #[diesel(sql_type = Timestamp)]
    recorded_at: chrono::NaiveDateTime,
}

impl Forged {
    /// Appends it with the right hash, and moves the counter.
    fn append(&self, world: &World, last: &Head) {
        let database = world.cluster.agreements_database();
        let Self { revision, body } = self;
        let at: RecordedAt = query!(&mut connect(database).unwrap(), c => {
            sql_query("SELECT recorded_at FROM event ORDER BY revision DESC LIMIT 1").get_result(c).unwrap()
        });
        let micros = at.recorded_at.and_utc().timestamp_micros();
        let hash = Sha256::digest(format!("{}\n{revision}\n{micros}\n{body}", last.hash));
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let sql = format!(
            "INSERT INTO event (revision, customer_id, partner_id, recorded_at, body, hash) \
             SELECT {revision}, NULL, NULL, recorded_at, '{body}', '{hash}' FROM event \
             WHERE revision = {}; UPDATE revision SET value = {revision}, head = '{hash}'",
            last.revision
        );
        world.cluster.agreements_sql(&sql).unwrap();
    }
}

#[apply(each_backend)]
async fn a_restored_order_svc_goes_on_by_itself(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    use SubscriptionState::{Active, Cancelled};
    let mut world = world_on(backend).await;
    let direct = world.direct.clone();
    let (_, attestation, ended) = world.buyer().await;
    let (kept, _, _) = world.buyer().await;
    let new = world.customer().await;
    let earlier = world.followed().await;
    let copy = Backup::of(world.cluster.orders_database()).unwrap();

    // What it will forget: a withdrawal that it applied, and an order that brought its attestation along.
    withdraw(&direct, &attestation).await;
    let order = CreateOrderRequest {
        attestation: Some(world::inline_attestation(now())),
        ..world::new_order(&new, None, world::OFFICE, 3)
    };
    let first = direct.orders().create_order(order.clone()).await.unwrap().into_inner();
    world.followed().await;
    assert_eq!(world.state(&ended).await, Cancelled);

    world.cluster.stop_orders();
    copy.restore().unwrap();
    assert_eq!(world.cursor(), earlier.revision);
    world.cluster.restart_orders().await.unwrap();
    // The withdrawal is applied again.
    let last = world.followed().await;
    assert_eq!(world.state(&ended).await, Cancelled);
    // The order is gone, and whoever repeats it has it placed anew, on the one attestation.
    let again = direct.orders().create_order(order.clone()).await.unwrap().into_inner();
    assert_ne!(again.order.as_ref().unwrap().order_id, first.order.unwrap().order_id);
    assert_eq!(direct.orders().create_order(order).await.unwrap().into_inner(), again);
    assert_eq!(world.state(&again.subscriptions[0]).await, Active);
    // Its first purchase has been reported already, as the earlier one that it was; nothing new happened there.
    buy(&direct, &kept).await;
    assert_eq!(world.followed().await, last);
    assert_eq!(world.findings(&[&earlier, &last]).await, []);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lost {
    Agreements,
    Orders,
    Both,
}

#[apply(each_backend)]
async fn copies_made_under_load_bring_both_services_back(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    const CUSTOMERS: usize = 4;
    for lost in [Lost::Agreements, Lost::Orders, Lost::Both] {
        let mut world = world_on(backend).await;
        let direct = world.direct.clone();
        let mut customers = vec![];
        for _ in 0..CUSTOMERS {
            customers.push(world.buyer().await.0);
        }
        // Everybody withdraws, attests anew and buys, again and again.
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let clients: Vec<_> = customers
            .iter()
            .map(|customer| {
                let (direct, customer, stopped) = (direct.clone(), customer.clone(), stopped.clone());
                tokio::spawn(async move {
                    let mut rounds = 0;
                    while !*stopped.borrow() {
                        // Somebody else's purchase is in the way of nobody's.
                        let bought = world::order(&direct, &customer, None, 1).await.unwrap();
                        let gate = bought.order.unwrap().gate.unwrap().evidence.unwrap();
                        withdraw(&direct, &gate.acceptance_id).await;
                        attest(&direct, &customer).await;
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let agreements = Backup::of(world.cluster.agreements_database()).unwrap();
        let orders = Backup::of(world.cluster.orders_database()).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.send_replace(true);
        for client in clients {
            assert!(client.await.unwrap() > 0);
        }
        let last = world.followed().await;

        world.cluster.stop_orders();
        world.cluster.stop_agreements();
        if lost != Lost::Orders {
            agreements.restore().unwrap();
            assert!(world.head().revision < last.revision, "nothing was lost");
            world.cluster.announce_restore().await.unwrap();
        }
        if lost != Lost::Agreements {
            orders.restore().unwrap();
        }
        world.cluster.restart_agreements().await.unwrap();
        world.cluster.restart_orders().await.unwrap();
        world.followed().await;
        assert_eq!(world.findings(&[]).await, [], "{lost:?}");
        for customer in &customers {
            // Whoever's last change was lost states it again.
            let attestation = attest_or_current(&direct, customer).await;
            withdraw(&direct, &attestation).await;
            attest(&direct, customer).await;
            let bought = buy(&direct, customer).await;
            assert_eq!(world.state(&bought).await, SubscriptionState::Active, "{lost:?}");
        }
        world.followed().await;
        assert_eq!(world.findings(&[]).await, [], "{lost:?}");
    }
}

/// The customer's attestation, made now unless it has one.
async fn attest_or_current(caller: &As, customer: &str) -> String {
    match world::attest(caller, customer, now()).await {
        Ok(attested) => attested.attestation.unwrap().attestation_id,
        Err(refused) => {
            assert_eq!(reason_of(&refused), "ALREADY_ATTESTED");
            metadata_of(&refused)["attestation_id"].clone()
        }
    }
}
