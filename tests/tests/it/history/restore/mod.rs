//! Restores from a backup: lost events are noticed, order-svc applies only events that continue the history that it
//! knows, and once the restore is announced both services go on.

mod agreements;
mod gaps;
mod orders;
mod resellers;
mod withdrawn;

use agreement_svc::config::Verify;
use agreement_svc::rules::chain::{Finding, Head};
use chassis::clock::new_id;
use chassis::query;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use proto::agreement::watch_events_response::Item;
use proto::agreement::{Event, PartnerKind, WatchEventsRequest};
use proto::order::{Subscription, SubscriptionState};
use proto::types::Cloud;
use tests::assert::eventually;
use tests::backup::Backup;
use tests::databases::connect;
use tests::fixtures::{self, now};
use tests::{As, Backend, Cluster, actions};
use tokio::time::timeout;
use tonic::Status;

/// Far longer than any wait here takes.
const LONG: std::time::Duration = std::time::Duration::from_secs(60);

/// How far the announcement of a restore raises the revision.
const LIFT: i64 = 1 << 32;

struct World {
    cluster: Cluster,
    direct: As,
    customers: usize,
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
    async fn on(backend: Backend) -> Self {
        let (cluster, direct) = actions::start_with_partners(backend).await;
        Self { cluster, direct, customers: 0 }
    }

    async fn customer(&mut self) -> String {
        self.customers += 1;
        let name = format!("Customer {}", self.customers);
        actions::create_customer(&self.direct, &name, "FR", None).await.unwrap()
    }

    /// A customer with an attestation, and a subscription that rests on it.
    async fn buyer(&mut self) -> (String, String, Subscription) {
        let customer = self.customer().await;
        let attestation = actions::attest_now(&self.direct, &customer).await.unwrap();
        let bought = actions::subscribe(&self.direct, &customer, None).await.unwrap();
        (customer, attestation, bought)
    }

    /// Records one event that concerns no customer.
    async fn one_event(&self, name: &str) {
        let operator = self.cluster.as_caller(fixtures::operator());
        let (kind, cloud) = (PartnerKind::DirectBill, Cloud::Public);
        actions::register_partner(&operator, new_id(now()), name, kind, cloud).await.unwrap();
    }

    /// Number and hash of agreement-svc's last event.
    fn head(&self) -> Head {
        let place: Place = query!(&mut connect(self.cluster.agreements_database()).unwrap(), c => {
            sql_query("SELECT value AS revision, head FROM revision").get_result(c).unwrap()
        });
        Head { revision: place.revision, hash: place.head.unwrap() }
    }

    /// The revision of the last event that order-svc has applied.
    fn cursor(&self) -> i64 {
        let place: Place = query!(&mut connect(self.cluster.orders_database()).unwrap(), c => {
            sql_query("SELECT revision, head FROM follower").get_result(c).unwrap()
        });
        assert!(place.head.is_none_or(|head| head.starts_with(&format!("{}:", place.revision))));
        place.revision
    }

    /// Waits until order-svc has reported every first purchase and applied every event.
    async fn followed(&self) -> Head {
        let unreported = "SELECT order_id AS id FROM purchase_report WHERE reported_at IS NULL";
        eventually("first purchases are reported", async || self.ids(unreported).is_empty().then_some(()))
            .await;
        let head = self.head();
        self.passed(&head).await;
        head
    }

    /// Waits until order-svc has applied an event.
    async fn passed(&self, head: &Head) {
        eventually("the event is applied", async || (self.cursor() >= head.revision).then_some(())).await;
    }

    async fn restore(&mut self, copy: &Backup) {
        self.cluster.stop_agreements();
        copy.restore().unwrap();
    }

    /// Waits until order-svc reports that it cannot apply the history.
    async fn lost_track(&self) {
        eventually("order-svc reports that it cannot follow", async || {
            let metrics = self.cluster.orders_metrics().await.unwrap();
            metrics.contains("order_svc_history_behind_seconds inf").then_some(())
        })
        .await;
    }

    async fn state(&self, bought: &Subscription) -> SubscriptionState {
        actions::get_subscription(&self.direct, &bought.subscription_id).await.unwrap().state()
    }

    async fn findings(&self, kept: &[&Head]) -> Vec<Finding> {
        let head = kept.iter().map(|head| (*head).clone()).collect();
        let database = self.cluster.agreements_database().clone();
        agreement_svc::commands::verify::verify(&Verify { database, head }).await.unwrap().findings
    }

    fn ids(&self, sql: &str) -> Vec<String> {
        let rows: Vec<Id> = query!(&mut connect(self.cluster.orders_database()).unwrap(), c => {
            sql_query(sql).load(c).unwrap()
        });
        rows.into_iter().map(|row| row.id).collect()
    }

    async fn next_after(&self, after_revision: i64, after_hash: &str) -> Result<Event, Status> {
        let operator = self.cluster.as_caller(fixtures::operator());
        let request = WatchEventsRequest { after_revision, after_hash: after_hash.into() };
        let mut stream = operator.events().watch_events(request).await?.into_inner();
        match timeout(LONG, stream.message()).await.unwrap()?.unwrap().item {
            Some(Item::Event(event)) => Ok(event),
            other => panic!("{other:?}"),
        }
    }
}

/// The ids that the two statements of the operations page list: customers with lost withdrawals, and subscriptions that
/// rest on lost answers.
fn remains(last: i64, restored: i64) -> [String; 2] {
    let page = include_str!("../../../../../docs/operations.md");
    let (_, block) = page.split_once("```sql\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let block = block.replace(":last", &last.to_string()).replace(":new", &restored.to_string());
    let (customers, subscriptions) = block.trim().trim_end_matches(';').split_once(";\n").unwrap();
    [
        format!("SELECT customer_id AS id FROM ({customers}) AS lost"),
        format!("SELECT id FROM ({subscriptions}) AS lost"),
    ]
}
