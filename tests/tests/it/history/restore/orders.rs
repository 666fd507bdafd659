//! A restored order-svc, and both services restored from backups that were made under load.

use std::time::Duration;

use proto::order::{CreateOrderRequest, SubscriptionState};
use rstest_reuse::apply;
use tests::backup::Backup;
use tests::fixtures::{self, now};
use tests::{As, Backend, actions, metadata_of, reason_of};

use super::World;
use crate::each_backend;

#[apply(each_backend)]
async fn a_restored_order_svc_catches_up(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    use SubscriptionState::{Active, Cancelled};
    let mut world = World::on(backend).await;
    let direct = world.direct.clone();
    let (_, attestation, ended) = world.buyer().await;
    let (kept, _, _) = world.buyer().await;
    let new = world.customer().await;
    let earlier = world.followed().await;
    let copy = Backup::of(world.cluster.orders_database()).unwrap();

    // It will lose a withdrawal that it applied, and an order that carried its attestation.
    actions::withdraw(&direct, &attestation).await.unwrap();
    let order = CreateOrderRequest {
        attestation: Some(fixtures::inline_attestation(now())),
        ..fixtures::new_order(&new, None, fixtures::OFFICE, 3)
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
    // The order is gone, and a client that repeats it has it placed anew, on the one attestation.
    let again = direct.orders().create_order(order.clone()).await.unwrap().into_inner();
    assert_ne!(again.order.as_ref().unwrap().order_id, first.order.unwrap().order_id);
    assert_eq!(direct.orders().create_order(order).await.unwrap().into_inner(), again);
    assert_eq!(world.state(&again.subscriptions[0]).await, Active);
    // Its first purchase has been reported already, as the earlier one that it was; nothing new happened there.
    actions::subscribe(&direct, &kept, None).await.unwrap();
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
async fn backups_made_under_load_restore_both_services(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    const CUSTOMERS: usize = 4;
    for lost in [Lost::Agreements, Lost::Orders, Lost::Both] {
        let mut world = World::on(backend).await;
        let direct = world.direct.clone();
        let mut customers = vec![];
        for _ in 0..CUSTOMERS {
            customers.push(world.buyer().await.0);
        }
        // Each client withdraws, attests anew and buys, again and again.
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let clients: Vec<_> = customers
            .iter()
            .map(|customer| {
                let (direct, customer, stopped) = (direct.clone(), customer.clone(), stopped.clone());
                tokio::spawn(async move {
                    let mut rounds = 0;
                    while !*stopped.borrow() {
                        let bought = actions::order(&direct, &customer, None, 1).await.unwrap();
                        let gate = bought.order.unwrap().gate.unwrap().evidence.unwrap();
                        actions::withdraw(&direct, &gate.acceptance_id).await.unwrap();
                        actions::attest_now(&direct, &customer).await.unwrap();
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
            // A customer whose last change was lost attests again.
            let attestation = attest_or_current(&direct, customer).await;
            actions::withdraw(&direct, &attestation).await.unwrap();
            actions::attest_now(&direct, customer).await.unwrap();
            let bought = actions::subscribe(&direct, customer, None).await.unwrap();
            assert_eq!(world.state(&bought).await, SubscriptionState::Active, "{lost:?}");
        }
        world.followed().await;
        assert_eq!(world.findings(&[]).await, [], "{lost:?}");
    }
}

/// The customer's attestation, which is made now unless it has one.
async fn attest_or_current(caller: &As, customer: &str) -> String {
    match actions::attest(caller, customer, now()).await {
        Ok(attested) => attested.attestation.unwrap().attestation_id,
        Err(refused) => {
            assert_eq!(reason_of(&refused), "ALREADY_ATTESTED");
            metadata_of(&refused)["attestation_id"].clone()
        }
    }
}
