//! Trouble with the database: what callers get, on a PostgreSQL that the test stops and configures, with and without
//! PgBouncer before it; and long lists, which leave connections to others.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use chassis::database::{Connection, Database, Url, Writes};
use chassis::query;
use diesel::connection::SimpleConnection;
use diesel::sql_types::{Integer, Text};
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use futures_util::future::join_all;
use proto::agreement::{ListBlockedCustomersRequest, ListCustomersRequest};
use tests::fixtures::{DIRECT, PROVIDER};
use tests::postgres_servers::PostgresServer;
use tests::{As, Backend, Cluster, Setup, actions, fixtures, reason_of};
use tokio::task::JoinHandle;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::each_backend;
use rstest_reuse::apply;

/// What calls get: of those that begin after the trouble, a read and a change; of those in its middle, a change.
type Codes = (Vec<Code>, Vec<Code>);

/// The table of the operations page, by its first column.
fn documented() -> BTreeMap<String, Codes> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, table) =
        page.split_once("| trouble | a call that begins afterwards | a call in progress |\n").unwrap();
    let codes = |cell: &str| {
        let names = cell.split('`').skip(1).step_by(2);
        names.map(|name| if name == "OK" { Code::Ok } else { Code::Unavailable }).collect()
    };
    let rows = table.lines().skip(1).map_while(|line| line.strip_prefix("| "));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        (cells[0].to_owned(), (codes(cells[1]), codes(cells[2])))
    })
    .collect()
}

/// A cluster on a server of its own, and a partner.
struct World {
    server: PostgresServer,
    cluster: Cluster,
    direct: As,
    seen: BTreeMap<String, Codes>,
}

impl World {
    async fn on(server: PostgresServer, databases: [Url; 2]) -> Self {
        let setup = Setup { databases: Some(databases), ..Setup::default() };
        let cluster = Cluster::start(setup).await.unwrap();
        actions::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        Self { server, cluster, direct, seen: BTreeMap::new() }
    }

    /// Notes what a read and a change get now, once if they get the same.
    async fn after(&mut self, trouble: &str) {
        let read = self.direct.customers().list_customers(ListCustomersRequest::default()).await;
        let changed = change(&self.direct).await;
        let mut codes = vec![code(trouble, read.map(drop)), code(trouble, changed)];
        codes.dedup();
        self.seen.entry(trouble.into()).or_default().0 = codes;
    }

    /// Notes what a change gets in whose middle something happens.
    async fn in_the_middle(&mut self, trouble: &str, happen: impl FnOnce(&PostgresServer)) {
        let lock = self.hold_changes();
        let waiting = self.waiting_change().await;
        happen(&self.server);
        drop(lock);
        self.seen.entry(trouble.into()).or_default().1 = vec![code(trouble, waiting.await.unwrap())];
    }

    /// Has changes wait until it is dropped.
    fn hold_changes(&self) -> Connection {
        let mut lock = self.server.connect_to_agreements().unwrap();
        run(&mut lock, "BEGIN; SELECT 1 FROM revision FOR UPDATE");
        lock
    }

    /// A change that waits in the database. Behind a pooler, those that come right after some trouble may fail.
    async fn waiting_change(&self) -> JoinHandle<Result<(), Status>> {
        let mut server = self.server.connect().unwrap();
        let waits = format!("{OF_CLERK} AND wait_event_type = 'Lock'");
        for _ in 0..100 {
            let direct = self.direct.clone();
            let waiting = tokio::spawn(async move { change(&direct).await });
            while !waiting.is_finished() {
                if !rows::<Process>(&mut server, &waits).is_empty() {
                    return waiting;
                }
                tokio::task::yield_now().await;
            }
        }
        panic!("no change waits");
    }
}

const OF_CLERK: &str = "SELECT pid FROM pg_stat_activity WHERE usename = 'clerk'";

#[derive(QueryableByName)]
struct Process {
    #[diesel(sql_type = Integer)]
    pid: i32,
}

#[derive(QueryableByName)]
struct Shown {
    #[diesel(sql_type = Text)]
    value: String,
}

fn run(connection: &mut Connection, sql: &str) {
    query!(connection, c => c.batch_execute(sql)).unwrap();
}

fn rows<R>(connection: &mut Connection, sql: &str) -> Vec<R>
where
    R: QueryableByName<diesel::pg::Pg> + 'static,
{
    let Connection::Postgres(c) = connection else { panic!("this is about PostgreSQL") };
    sql_query(sql).load(c).unwrap()
}

async fn change(partner: &As) -> Result<(), Status> {
    let name = format!("C{}", Uuid::from_u128(rand::random()).simple());
    actions::create_customer(partner, &name, "FR", None).await.map(drop)
}

/// Every refusal says when to try again.
fn code(trouble: &str, answer: Result<(), Status>) -> Code {
    let Err(refused) = answer else { return Code::Ok };
    assert_eq!(reason_of(&refused), "DATABASE_UNAVAILABLE", "{trouble}: {refused:?}");
    assert!(refused.get_details_retry_info().is_some(), "{trouble}: {refused:?}");
    refused.code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_get_what_the_operations_page_says() {
    tests::needs_own!("a database server that it stops");
    tests::needs!(Backend::Postgres);
    let server = PostgresServer::start().unwrap();
    let databases = server.databases().unwrap();
    let mut world = World::on(server, databases).await;

    let restarts = "PostgreSQL restarts";
    let restart = |server: &PostgresServer| {
        server.halt().unwrap();
        server.resume().unwrap();
    };
    restart(&world.server);
    world.after(restarts).await;
    world.in_the_middle(restarts, restart).await;

    let down = "PostgreSQL is down";
    world.in_the_middle(down, |server| server.halt().unwrap()).await;
    world.after(down).await;
    world.server.resume().unwrap();
    change(&world.direct).await.unwrap();

    let read_only = "PostgreSQL has become read-only, after a failover or with a full disk";
    let turn = |server: &PostgresServer, to: &str| {
        server.run(&format!("ALTER ROLE clerk SET default_transaction_read_only = {to}")).unwrap();
        end_connections(server);
    };
    turn(&world.server, "on");
    world.after(read_only).await;
    turn(&world.server, "off");
    change(&world.direct).await.unwrap();

    let full = "PostgreSQL has no connection left";
    let limit = |server: &PostgresServer, to: i32| {
        server.run(&format!("ALTER ROLE clerk CONNECTION LIMIT {to}")).unwrap();
    };
    world.in_the_middle(full, |server| limit(server, 0)).await;
    end_connections(&world.server);
    world.after(full).await;
    limit(&world.server, -1);
    change(&world.direct).await.unwrap();

    let cancelled = "an administrator or a time limit cancels the statement";
    world
        .in_the_middle(cancelled, |server| {
            let mut server = server.connect().unwrap();
            let waiting = format!("{OF_CLERK} AND wait_event_type = 'Lock'");
            run(&mut server, &waiting.replace("SELECT pid", "SELECT pg_cancel_backend(pid)"));
        })
        .await;

    let idle = "idle_session_timeout closes connections";
    world.server.run("ALTER ROLE clerk SET idle_session_timeout = 300").unwrap();
    end_connections(&world.server);
    let read = async || world.direct.customers().list_customers(ListCustomersRequest::default()).await;
    let reads = async || join_all((0..8).map(|_| read())).await;
    reads().await.into_iter().for_each(|read| drop(read.unwrap()));
    change(&world.direct).await.unwrap();
    wait_for_end_of(&rows(&mut world.server.connect().unwrap(), OF_CLERK));
    reads().await.into_iter().for_each(|read| drop(read.unwrap()));
    world.after(idle).await;
    world.server.run("ALTER ROLE clerk RESET idle_session_timeout").unwrap();
    end_connections(&world.server);

    assert_eq!(world.seen, documented());
}

/// Ends the connections of the services, so that they make new ones.
fn end_connections(server: &PostgresServer) {
    let sql = OF_CLERK.replace("SELECT pid", "SELECT pg_terminate_backend(pid, 5000)");
    run(&mut server.connect().unwrap(), &sql);
}

/// Until the system has closed the connections of server processes. A poller may keep one busy.
fn wait_for_end_of(processes: &[Process]) {
    let left = || processes.iter().filter(|process| Path::new(&format!("/proc/{}", process.pid)).exists());
    while left().count() > 2 {
        std::thread::yield_now();
    }
}

/// Behind PgBouncer in transaction mode everything works, and leaves no setting to other clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_services_work_behind_pgbouncer() {
    const CUSTOMERS: usize = 12;
    tests::needs_own!("a database server of its own");
    tests::needs!(Backend::Postgres);
    let mut server = Some(PostgresServer::start().unwrap());
    server.as_ref().unwrap().databases().unwrap();
    // The one refuses our options, the other ignores them.
    for ignored in ["", "options"] {
        let own = server.take().unwrap();
        let databases = own.bounce(ignored).unwrap();
        let World { server: own, cluster, direct, .. } = World::on(own, databases.clone()).await;
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
                let shown: Vec<Shown> =
                    rows(&mut other, &format!("SELECT current_setting('{setting}') AS value"));
                assert_eq!(shown[0].value, "0", "{setting} is left behind");
            }
        }
        // A URL that sets what a pooler does not apply is refused.
        let url: Url = format!("{url}&options=-csearch_path%3Dsecret").parse().unwrap();
        let refused = Database::open(&url, false, Writes::Concurrent).map(drop).unwrap_err();
        assert!(refused.to_string().contains("options"), "{refused}");
        drop(cluster);
        own.unbounce().unwrap();
        server = Some(own);
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
