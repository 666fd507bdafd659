//! A restored order-svc: its watchers notice what was lost, once the restore is announced.

use proto::order::event::Change;
use rstest_reuse::apply;
use tests::assert::refusal;
use tests::backup::Backup;
use tests::fixtures;
use tests::{Backend, actions, metadata_of};
use tokio::time::timeout;
use tonic::Code;

use super::{LONG, history_of, kinds, next, watch};
use crate::each_backend;

/// How far the announcement of a restore raises the revision.
const LIFT: i64 = 1 << 32;

#[apply(each_backend)]
async fn a_watcher_hears_of_a_restore(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let (mut cluster, direct) = actions::start_with_partners(backend).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&direct, &customer).await.unwrap();
    actions::subscribe(&direct, &customer, None).await.unwrap();
    let watcher = cluster.as_caller(fixtures::service());
    history_of(&watcher, &customer, 2).await;
    let copy = Backup::of(cluster.orders_database()).unwrap();
    // It will lose this order, whose events a watcher knows.
    actions::subscribe(&direct, &customer, None).await.unwrap();
    history_of(&watcher, &customer, 4).await;
    cluster.stop_orders();
    copy.restore().unwrap();
    cluster.restart_orders().await.unwrap();

    let ahead = watch(&watcher, 4).await.unwrap_err();
    assert_eq!(refusal(&ahead), (Code::OutOfRange, "CURSOR_AHEAD".into()));
    assert_eq!(metadata_of(&ahead)["head"], "2");

    cluster.announce_orders_restore().await.unwrap();
    actions::subscribe(&direct, &customer, None).await.unwrap();
    for cursor in [2, 4] {
        let mut stream = watch(&watcher, cursor).await.unwrap();
        let mut events = vec![];
        for _ in 0..3 {
            events.push(timeout(LONG, next(&mut stream)).await.unwrap());
        }
        assert_eq!(kinds(&events), ["RESTORED", "PLACED", "CREATED"], "after {cursor}");
        let revisions: Vec<_> = events.iter().map(|event| event.revision).collect();
        assert_eq!(revisions, [2 + LIFT, 3 + LIFT, 4 + LIFT]);
        let Some(Change::HistoryRestored(restored)) = &events[0].change else { panic!("{:?}", events[0]) };
        assert_eq!(restored.last_revision, 2);
    }
}
