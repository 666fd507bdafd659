//! PgBouncer before a PostgreSQL of the test's own; and long lists, which leave connections to others.

use std::sync::atomic::{AtomicBool, Ordering};

use chassis::database::{Database, Url, Writes};
use chassis::query;
use diesel::sql_types::Text;
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use futures_util::future::join_all;
use proto::agreement::{ListBlockedCustomersRequest, ListCustomersRequest};
use tests::fixtures::{DIRECT, PROVIDER};
use tests::postgres_servers::PostgresServer;
use tests::{Backend, Cluster, Setup, actions, fixtures};
use uuid::Uuid;

use crate::each_backend;
use rstest_reuse::apply;

#[derive(QueryableByName)]
struct Shown {
    #[diesel(sql_type = Text)]
    value: String,
}

/// Behind PgBouncer in transaction mode everything works, and leaves no setting to other clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_services_work_behind_pgbouncer() {
    const CUSTOMERS: usize = 12;
    tests::needs_own!("a database server of its own");
    tests::needs!(Backend::Postgres);
    let server = PostgresServer::start().unwrap();
    server.databases().unwrap();
    // The one refuses our options, the other ignores them.
    for ignored in ["", "options"] {
        let databases = server.bounce(&format!("ignore_startup_parameters = {ignored}")).unwrap();
        let setup = Setup { databases: Some(databases.clone()), ..Setup::default() };
        let cluster = Cluster::start(setup).await.unwrap();
        actions::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let customers = join_all((0..CUSTOMERS).map(async |n| {
            let name = format!("Contoso {n}{ignored}");
            let customer = actions::create_customer(&direct, &name, "FR", None).await.unwrap();
            let attestation = actions::attest_now(&direct, &customer).await.unwrap();
            actions::order(&direct, &customer, None, 5).await.unwrap();
            assert_eq!(actions::orders_of(&direct, &customer).await.unwrap().len(), 1);
            actions::withdraw(&direct, &attestation).await.unwrap();
            customer
        }))
        .await;
        let list = ListCustomersRequest { page_size: 100, ..ListCustomersRequest::default() };
        let listed = direct.customers().list_customers(list).await.unwrap().into_inner().customers;
        for customer in customers {
            assert!(listed.iter().any(|listed| listed.customer_id == customer));
        }
        // Another client, on whichever connections the services have used.
        let Url::Postgres(url) = &databases[0] else { panic!("this is PostgreSQL") };
        for _ in 0..8 {
            let mut other = tests::databases::connect(&url.parse().unwrap()).unwrap();
            for setting in ["statement_timeout", "lock_timeout"] {
                let sql = format!("SELECT current_setting('{setting}') AS value");
                let shown: Shown = query!(&mut other, c => sql_query(sql).get_result(c)).unwrap();
                assert_eq!(shown.value, "0", "{setting} is left behind");
            }
        }
        // A URL that sets what a pooler does not apply is refused.
        let url: Url = format!("{url}&options=-csearch_path%3Dsecret").parse().unwrap();
        let refused = Database::open(&url, false, Writes::Concurrent).map(drop).unwrap_err();
        assert!(refused.to_string().contains("options"), "{refused}");
        drop(cluster);
        server.unbounce().unwrap();
    }
}

/// However many lists one partner reads at a time, another partner's orders are accepted.
#[apply(each_backend)]
async fn lists_of_one_partner_leave_connections_to_others(#[case] backend: Backend) {
    const LISTS: usize = 128;
    const ORDERS: usize = 20;
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    actions::register_partners(&cluster).await.unwrap();
    let [direct, provider] = [DIRECT, PROVIDER].map(|partner| cluster.as_caller(fixtures::sales(partner)));
    let customer = actions::create_customer(&provider, "Contoso", "FR", None).await.unwrap();
    actions::attest_now(&provider, &customer).await.unwrap();
    cluster.agreements_sql(&many_customers()).unwrap();

    let is_done = AtomicBool::new(false);
    let lists = join_all((0..LISTS).map(async |_| {
        while !is_done.load(Ordering::Relaxed) {
            let request = ListBlockedCustomersRequest { page_size: 500, ..Default::default() };
            // Most wait for too long.
            drop(direct.gate().list_blocked_customers(request).await);
        }
    }));
    let orders = async {
        let mut refused = vec![];
        for _ in 0..ORDERS {
            refused.extend(actions::order(&provider, &customer, None, 5).await.err());
        }
        is_done.store(true, Ordering::Relaxed);
        refused
    };
    let (_, refused) = tokio::join!(lists, orders);
    assert!(refused.is_empty(), "{backend}: {} of {ORDERS} orders, such as {:?}", refused.len(), refused[0]);
}

/// Customers of the direct-bill partner without acceptance, in SQL: by call they would take longer than the test.
fn many_customers() -> String {
    const AT: &str = "'2026-01-01 00:00:00.000000'";
    let ids: Vec<_> = (0..3000_u32).map(|n| Uuid::new_v5(&DIRECT, &n.to_be_bytes())).collect();
    let customers = ids.iter().map(|id| {
        format!(
            "('{id}', 'Many', '{id}.example', 'FR', 'PUBLIC', 'A', 'B', 'a@b.example', '', '', {AT}, 1, 1)"
        )
    });
    let relationships = ids.iter().enumerate();
    let relationships =
        relationships.map(|(n, id)| format!("('{DIRECT}', '{id}', '', {AT}, {})", 1_000_000 + n));
    format!(
        "INSERT INTO customer (id, company_name, domain, country, cloud, first_name, last_name, email,
         phone, contact_salt, created_at, acceptance_revision, revision) VALUES {};
         INSERT INTO relationship (partner_id, customer_id, reseller_id, established_at, revision) VALUES {};",
        customers.collect::<Vec<_>>().join(", "),
        relationships.collect::<Vec<_>>().join(", ")
    )
}
