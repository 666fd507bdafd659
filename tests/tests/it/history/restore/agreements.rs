//! A restored agreement-svc: lost and forked events, the watchers that know them, and answers on their way.

use agreement_svc::rules::chain::Finding;
use proto::agreement::CheckEligibilityRequest;
use proto::agreement::event::Change;
use proto::order::{GetWithdrawalReportRequest, ListWithdrawalReportsRequest, SubscriptionState};
use rstest_reuse::apply;
use tests::assert::{refusal, refused};
use tests::backup::Backup;
use tests::databases::copy_subscription;
use tests::fixtures::{self, DIRECT};
use tests::{Backend, Cluster, Setup, actions, metadata_of};
use tokio::time::timeout;
use tonic::Code;

use super::{LIFT, LONG, World, remains};
use crate::each_backend;
use crate::faults::relay::Relay;

/// After an announced restore the effects of lost events stay, and orders go on.
#[apply(each_backend)]
async fn an_announced_restore_keeps_effects_and_orders_go_on(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    use SubscriptionState::{Active, Cancelled};
    let mut world = World::on(backend).await;
    let direct = world.direct.clone();
    let (untouched, _, _) = world.buyer().await;
    // What was withdrawn and accepted anew before is applied again and opens nothing.
    let (withdrawn, earlier, _) = world.buyer().await;
    actions::withdraw(&direct, &earlier).await.unwrap();
    let attestation = actions::attest_now(&direct, &withdrawn).await.unwrap();
    let ended = actions::subscribe(&direct, &withdrawn, None).await.unwrap();
    let accepted = world.customer().await;
    let before = world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();

    // What will be lost: a withdrawal, and an acceptance with what rests on it.
    actions::withdraw(&direct, &attestation).await.unwrap();
    actions::attest_now(&direct, &accepted).await.unwrap();
    let on_lost = actions::subscribe(&direct, &accepted, None).await.unwrap();
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
    // The history verifies, with the gap; a lost head is reported as lost.
    assert_eq!(world.findings(&[&before, &restored]).await, []);
    let finding = Finding::Lost { kept: lost.clone(), last: before.revision, restored: restored.revision };
    assert_eq!(world.findings(&[&lost]).await, [finding]);

    // Effects stay, and subscriptions that rest on lost answers can be found.
    assert_eq!([world.state(&ended).await, world.state(&on_lost).await], [Cancelled, Active]);
    let [customers, subscriptions] = remains(before.revision, restored.revision);
    assert_eq!(world.ids(&customers), vec![withdrawn.clone()]);
    assert_eq!(world.ids(&subscriptions), vec![on_lost.subscription_id.clone()]);
    // The first purchase of the customer whose report was lost with the rest is known again.
    actions::until_bought(&world.cluster, &accepted).await.unwrap();

    // No other customer is concerned.
    actions::subscribe(&direct, &untouched, None).await.unwrap();
    // agreement-svc regards the customer as covered; order-svc refuses until the withdrawal is repeated.
    let lost = (Code::FailedPrecondition, "WITHDRAWAL_LOST".to_owned());
    assert_eq!(refused(actions::order(&direct, &withdrawn, None, 1).await), lost);
    actions::withdraw(&direct, &attestation).await.unwrap();
    let required = (Code::FailedPrecondition, "AGREEMENT_REQUIRED".to_owned());
    assert_eq!(refused(actions::order(&direct, &withdrawn, None, 1).await), required);
    actions::attest_now(&direct, &withdrawn).await.unwrap();
    actions::subscribe(&direct, &withdrawn, None).await.unwrap();
    // A lost acceptance is missing until it is attested again; a withdrawal then also cancels what rests on the
    // lost one.
    assert_eq!(refused(actions::order(&direct, &accepted, None, 1).await), required);
    let again = actions::attest_now(&direct, &accepted).await.unwrap();
    actions::subscribe(&direct, &accepted, None).await.unwrap();
    actions::withdraw(&direct, &again).await.unwrap();
    world.followed().await;
    assert_eq!(world.state(&on_lost).await, Cancelled);
    assert_eq!(world.findings(&[&before, &restored]).await, []);
}

/// A history that forked is not applied until its restore is announced.
#[apply(each_backend)]
async fn order_svc_stops_at_a_fork_until_a_restore_is_announced(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    use SubscriptionState::{Active, Cancelled};
    // Events lost, events recorded after the restore before it is announced.
    for (lost, grown) in [(4, 2), (2, 2), (1, 4)] {
        let mut world = World::on(backend).await;
        let direct = world.direct.clone();
        let (_, attestation, bought) = world.buyer().await;
        let (untouched, _, _) = world.buyer().await;
        let before = world.followed().await;
        let copy = Backup::of(world.cluster.agreements_database()).unwrap();
        for _ in 0..lost {
            world.one_event("Lost").await;
        }
        let known = world.followed().await;
        world.restore(&copy).await;
        world.cluster.restart_agreements().await.unwrap();
        // The withdrawal has a revision under which order-svc has applied another event.
        let withdrawal = actions::withdraw(&direct, &attestation).await.unwrap();
        assert!(withdrawal == before.revision + 1 && withdrawal <= known.revision);
        for _ in 1..grown {
            world.one_event("Grown").await;
        }
        world.lost_track().await;
        let refused = refused(world.next_after(known.revision, &known.hash).await);
        let expected = match grown < lost {
            true => (Code::OutOfRange, "CURSOR_AHEAD".to_owned()),
            false => (Code::FailedPrecondition, "HISTORY_FORKED".to_owned()),
        };
        assert_eq!(refused, expected);
        assert_eq!((world.cursor(), world.state(&bought).await), (known.revision, Active));
        // What such an agreement-svc answers opens nothing (WD-3a), also for a customer of whom nothing was lost.
        let unknown = (Code::Unavailable, "GATE_UNAVAILABLE".to_owned());
        assert_eq!(tests::assert::refused(actions::order(&direct, &untouched, None, 1).await), unknown);

        // Late, and beside the running service.
        let last = world.head();
        world.cluster.announce_restore().await.unwrap();
        let restored = world.head();
        assert_eq!(restored.revision, last.revision + LIFT);
        world.passed(&restored).await;
        assert_eq!(world.state(&bought).await, Cancelled, "{lost} lost, {grown} grown");
        assert_eq!(world.findings(&[&before, &last, &restored]).await, []);
        actions::order(&direct, &untouched, None, 1).await.unwrap();
        let (customer, _, _) = world.buyer().await;
        actions::subscribe(&direct, &customer, None).await.unwrap();
        world.followed().await;
    }
}

/// A withdrawal that has the revision of a lost one has a report of its own, and the lost one keeps its report.
#[apply(each_backend)]
async fn a_lost_withdrawal_keeps_its_report(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = World::on(backend).await;
    let direct = world.direct.clone();
    let mut buyers = vec![];
    for _ in 0..3 {
        buyers.push(world.buyer().await);
    }
    // More than one transaction archives.
    let many = 1_500;
    copy_subscription(world.cluster.orders_database(), &buyers[0].2.subscription_id, many - 1, 'a').unwrap();
    world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    let revision = actions::withdraw(&direct, &buyers[0].1).await.unwrap();
    world.followed().await;

    // Each restore loses the withdrawal of one customer, and another one's has its revision before it is
    // announced. The second copy is older than the first announcement.
    for (n, announcements) in [(1, 1), (2, 2)] {
        world.restore(&copy).await;
        world.cluster.restart_agreements().await.unwrap();
        assert_eq!(actions::withdraw(&direct, &buyers[n].1).await.unwrap(), revision);
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
            let answered = direct.withdrawals().get_withdrawal_report(request).await.unwrap().into_inner();
            assert_eq!(answered.report.as_ref(), Some(report));
            let is_large = *attestation == buyers[0].1;
            let cancelled = if is_large { u32::try_from(many).unwrap() } else { 1 };
            assert_eq!((&report.acceptance_id, report.cancelled), (attestation, cancelled));
            assert_eq!(report.uncovered_partner_ids, [DIRECT.to_string()]);
            let effects: Vec<_> = answered.effects.iter().map(|effect| &effect.subscription_id).collect();
            assert!(if is_large { effects.len() == 50 } else { effects == [&bought.subscription_id] });
            assert_eq!(world.state(bought).await, SubscriptionState::Cancelled);
            let changes = actions::changes_of(&direct, &bought.subscription_id).await.unwrap();
            assert_eq!(changes.last().unwrap().event_revision, report.revision, "{changes:#?}");
        }
    }
}

/// A withdrawal that has the revision of a lost one cancels a subscription that the lost one kept.
#[apply(each_backend)]
async fn a_withdrawal_cancels_what_a_lost_one_kept(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = World::on(backend).await;
    let direct = world.direct.clone();
    let customer = world.customer().await;
    let admin = world.cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    actions::sign(&admin, 2).await.unwrap();
    let attestation = actions::attest_now(&direct, &customer).await.unwrap();
    let bought = actions::subscribe(&direct, &customer, None).await.unwrap();
    world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    world.one_event("Lost").await;
    let revision = actions::withdraw_signature(&admin, &customer).await.unwrap();
    world.followed().await;
    assert_eq!(world.state(&bought).await, SubscriptionState::Active);

    world.restore(&copy).await;
    world.cluster.restart_agreements().await.unwrap();
    assert_eq!(actions::withdraw_signature(&admin, &customer).await.unwrap(), revision - 1);
    assert_eq!(actions::withdraw(&direct, &attestation).await.unwrap(), revision);
    world.lost_track().await;
    world.cluster.announce_restore().await.unwrap();
    world.passed(&world.head()).await;
    assert_eq!(world.state(&bought).await, SubscriptionState::Cancelled);
    let changes = actions::changes_of(&direct, &bought.subscription_id).await.unwrap();
    assert_eq!(changes.last().unwrap().event_revision, revision);
}

/// A watcher gets the event after the one that it knows, or the restore that lost it.
#[apply(each_backend)]
async fn a_watcher_gets_the_next_event_or_the_restore(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = World::on(backend).await;
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
            assert_eq!(refused(came), forked(), "{about}");
            continue;
        };
        let event = came.unwrap();
        assert_eq!(event.revision, next, "{about}");
        if next == restored.revision {
            let Some(Change::HistoryRestored(announced)) = event.change else { panic!("{about}: {event:?}") };
            assert_eq!(
                (announced.last_revision, announced.last_hash.as_str()),
                (first.revision, first.hash.as_str())
            );
            assert_eq!(event.hash, restored.hash);
        }
    }
    let nothing_known = refused(world.next_after(0, &other).await);
    assert_eq!(nothing_known, (Code::InvalidArgument, "INVALID_FIELDS".into()));

    // The revision that the gate is required to know must be there.
    let customer = world.customer().await;
    let operator = world.direct.clone();
    let ask = async |at_least_revision| {
        let request = CheckEligibilityRequest { at_least_revision, ..fixtures::new_check(DIRECT, &customer) };
        operator.gate().check_eligibility(request).await
    };
    for known in [0, first.revision, restored.revision, restored.revision + 1] {
        ask(known).await.unwrap();
    }
    for unknown in [first.revision + 1, lost.revision, restored.revision - 1] {
        let refused = ask(unknown).await.unwrap_err();
        assert_eq!(metadata_of(&refused)["revision"], unknown.to_string());
        assert_eq!(refusal(&refused), forked());
    }

    // A copy from before the first announcement: one more does not lead beyond what was known, and two do.
    world.followed().await;
    let known = world.head();
    world.restore(&copy).await;
    world.cluster.announce_restore().await.unwrap();
    world.cluster.restart_agreements().await.unwrap();
    let ahead = (Code::OutOfRange, "CURSOR_AHEAD".to_owned());
    assert_eq!(refused(world.next_after(known.revision, &known.hash).await), ahead);
    world.cluster.announce_restore().await.unwrap();
    let twice = world.head();
    world.passed(&twice).await;
    assert_eq!(twice.revision, first.revision + 2 * LIFT);
    // A superfluous announcement does no harm.
    world.cluster.announce_restore().await.unwrap();
    world.buyer().await;
    world.followed().await;
    assert_eq!(world.findings(&[&first, &twice]).await, []);
}

#[apply(each_backend)]
async fn an_answer_from_before_a_restore_is_outdated(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let relay = Relay::start().await;
    let agreements_at = Some(format!("http://{}", relay.address));
    let setup = Setup { backend, agreements_at, gate_deadline_ms: 30_000, ..Setup::default() };
    let mut cluster = Cluster::start(setup).await.unwrap();
    cluster.restart_agreements().await.unwrap();
    relay.pass_to(cluster.agreements_address());
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut world = World { cluster, direct: direct.clone(), customers: 0 };
    let customer = world.customer().await;
    let before = world.followed().await;
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    world.followed().await;

    // An answer that rests on an acceptance which is lost while the answer is on its way.
    let (answered, let_go) = relay.hold_answer();
    let ordering = tokio::spawn({
        let (direct, customer) = (direct.clone(), customer.clone());
        async move { actions::order(&direct, &customer, None, 5).await }
    });
    timeout(LONG, answered).await.unwrap().unwrap();
    world.restore(&copy).await;
    world.cluster.announce_restore().await.unwrap();
    world.cluster.restart_agreements().await.unwrap();
    relay.pass_to(world.cluster.agreements_address());
    let restored = world.head();
    world.passed(&restored).await;
    let_go.send(()).unwrap();
    let answered = timeout(LONG, ordering).await.unwrap().unwrap();
    assert_eq!(refused(answered), (Code::FailedPrecondition, "AGREEMENT_REQUIRED".into()));
    let [_, subscriptions] = remains(before.revision, restored.revision);
    assert_eq!(world.ids(&subscriptions), Vec::<String>::new());
}
