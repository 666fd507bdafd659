//! Old and new versions beside each other: a schema that newer ones have expanded suits those that do not know it.

use std::sync::Arc;

use agreement_svc::config::Storage;
use chassis::clock::Clock;
use chassis::database::Url;
use rstest_reuse::apply;
use tests::fixtures::{self, DIRECT};
use tests::{Backend, Cluster, actions};

use crate::each_backend;

/// What a migration of some later version may do: columns that may be empty or have a default, tables, indexes.
fn expand(tables: &[&str]) -> String {
    let columns = tables.iter().map(|table| {
        format!(
            "ALTER TABLE {table} ADD COLUMN later TEXT; ALTER TABLE {table} ADD COLUMN later_count BIGINT NOT NULL DEFAULT 0;"
        )
    });
    let columns: String = columns.collect();
    format!(
        "{columns} CREATE TABLE later (id TEXT PRIMARY KEY); \
         INSERT INTO __diesel_schema_migrations (version) VALUES ('20991231000001')"
    )
}

#[apply(each_backend)]
async fn a_schema_that_a_newer_version_expanded_is_served(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let mut cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let buy = async |name: &str| {
        let customer = actions::create_customer(&direct, name, "FR", None).await.unwrap();
        actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
        actions::order(&direct, &customer, None, 1).await.unwrap();
    };
    buy("Contoso").await;
    // Under running services, as a rolling upgrade does it.
    let agreements =
        ["revision", "event", "request", "customer", "acceptance", "notification", "relationship"];
    cluster.agreements_sql(&expand(&agreements)).unwrap();
    let orders =
        ["follower", "request", "fence", "orders", "order_line", "subscription", "subscription_change"];
    cluster.orders_sql(&expand(&orders)).unwrap();
    buy("Fabrikam").await;
    // And by services that start on it, which migrate first, too.
    cluster.stop_agreements();
    cluster.restart_agreements().await.unwrap();
    cluster.restart_orders().await.unwrap();
    buy("Fourth Coffee").await;
    // It is still there.
    cluster.agreements_sql("INSERT INTO later (id) VALUES ('1')").unwrap();
    cluster.orders_sql("INSERT INTO later (id) VALUES ('1')").unwrap();
}

#[rstest::rstest]
#[case::sqlite(Backend::Sqlite)]
#[case::postgres(Backend::Postgres)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_migrations_of_an_empty_database_succeed(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    const PROCESSES: usize = 4;
    let mut cluster = Cluster::on(backend).await;
    cluster.stop_agreements();
    let database = cluster.agreements_database();
    match database {
        Url::Sqlite(path) => std::fs::remove_file(path).unwrap(),
        Url::Postgres(_) => {
            let anew = "DO $$ DECLARE own TEXT := current_schema(); BEGIN \
                        EXECUTE 'DROP SCHEMA ' || own || ' CASCADE'; EXECUTE 'CREATE SCHEMA ' || own; END $$";
            cluster.agreements_sql(anew).unwrap();
        }
    }
    let storage = Storage { database: database.clone(), create: true, templates: None, document_table: None };
    let (storage, start) = (Arc::new(storage), Arc::new(tokio::sync::Barrier::new(PROCESSES)));
    let migrating: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let (storage, start) = (storage.clone(), start.clone());
            tokio::spawn(async move {
                start.wait().await;
                let migrated = agreement_svc::commands::migrate::migrate(&storage, &Clock::system()).await;
                migrated.map(drop).map_err(|error| format!("{error:#}"))
            })
        })
        .collect();
    for migrated in migrating {
        migrated.await.unwrap().unwrap();
    }
    // The templates were loaded once, or the services would find two of a type.
    cluster.restart_agreements().await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    actions::attest(&direct, &customer, Clock::system().now()).await.unwrap();
}
