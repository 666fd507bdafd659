//! The real binaries, killed under load: what was acknowledged is there, once, and nothing else is.

use tests::Backend;
use tests::crash::{Plan, run, run_replicas};
use tests::processes::build_binaries;

/// Whichever service is killed, and whenever: what was acknowledged is stored once, and nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn crashes_lose_and_repeat_nothing_acknowledged() {
    tests::needs_own!("processes that it kills");
    build_binaries().unwrap();
    let (mut brought, mut relationship_ends) = (0, 0);
    for backend in Backend::all() {
        let plan = Plan { backend, rounds: 5, seed: rand::random(), until_all_is_sent: false };
        let done = run(plan).await.unwrap_or_else(|why| panic!("{why}"));
        // Otherwise it proved nothing.
        assert!(done.retried > 0 && done.orders > 0 && done.withdrawals > 0, "{done}");
        (brought, relationship_ends) = (brought + done.brought, relationship_ends + done.relationship_ends);
    }
    // They are fewer.
    assert!(
        brought > 0 && relationship_ends > 0,
        "{brought} attestations brought, {relationship_ends} relationships ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_do_everything_once_and_one_can_stop() {
    tests::needs_own!("processes that it stops");
    tests::needs!(Backend::Postgres);
    build_binaries().unwrap();
    let done = run_replicas(4, rand::random()).await.unwrap_or_else(|why| panic!("{why}"));
    assert!(done.orders > 0 && done.withdrawals > 0 && done.reported > 0, "{done}");
}
