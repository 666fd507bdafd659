//! Trouble with the database of one service: its callers get what the table of the operations page says, with and without
//! PgBouncer before a PostgreSQL that the test stops and configures.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use chassis::database::Connection;
use chassis::query;
use diesel::connection::SimpleConnection;
use diesel::sql_types::Integer;
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use futures_util::future::join_all;
use proto::agreement::ListCustomersRequest;
use proto::order::ListOrdersRequest;
use rstest::rstest;
use tempfile::TempDir;
use tests::assert::eventually;
use tests::fixtures::DIRECT;
use tests::postgres_servers::PostgresServer;
use tests::{As, Backend, Cluster, Setup, actions, databases, fixtures, reason_of};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

/// Every answer comes within this time, as the page says.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// More callers at a time than a service has connections.
const CALLERS: usize = 12;

/// The columns of the table.
const COLUMNS: usize = 5;

/// What calls get, by the trouble and then by column.
type Answers = BTreeMap<String, [String; COLUMNS]>;

/// The service whose database is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Agreements,
    Orders,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// Of the service whose database is in trouble, as is the change.
    Read,
    Change,
    /// Of order-svc, which asks agreement-svc.
    Order,
}

fn page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    std::fs::read_to_string(page).unwrap()
}

/// The table of the page. Only where it is agreement-svc's database, its last column counts.
fn documented(service: Service) -> Answers {
    let page = page();
    let (_, table) = page.split_once("\n| trouble | read afterwards |").unwrap();
    let rows = table.lines().skip(2).map_while(|line| line.strip_prefix("| "));
    rows.map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        let trouble = cells.next().unwrap();
        let mut answers = [(); COLUMNS].map(|()| cells.next().unwrap());
        if service == Service::Orders {
            answers[COLUMNS - 1].clear();
        }
        (trouble, answers)
    })
    .collect()
}

/// The settings of PgBouncer that the page asks for.
fn bouncer_settings() -> String {
    let page = page();
    let (_, settings) = page.split_once("\n```ini\n").unwrap();
    settings.split_once("```").unwrap().0.to_owned()
}

/// A cluster in which one service has its database on a server that gets into trouble, and a buyer.
struct World {
    service: Service,
    /// Ends before the server does.
    _cluster: Cluster,
    server: PostgresServer,
    direct: As,
    customer: String,
    seen: Answers,
    _folder: TempDir,
}

impl World {
    async fn with_trouble_of(service: Service, is_bounced: bool) -> Self {
        let server = PostgresServer::start().unwrap();
        let mut urls = server.databases().unwrap();
        if is_bounced {
            urls = server.bounce(&bouncer_settings()).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let untroubled = usize::from(service == Service::Agreements);
        urls[untroubled] = databases::sqlite(&folder.path().join("untroubled.sqlite")).unwrap();
        let setup = Setup { databases: Some(urls), ..Setup::default() };
        let cluster = Cluster::start(setup).await.unwrap();
        actions::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        actions::attest_now(&direct, &customer).await.unwrap();
        Self { service, _cluster: cluster, server, direct, customer, seen: BTreeMap::new(), _folder: folder }
    }

    fn call(&self, call: Call) -> impl Future<Output = Result<(), Status>> + Send + 'static {
        let (service, direct, customer) = (self.service, self.direct.clone(), self.customer.clone());
        let answer = async move {
            match (call, service) {
                (Call::Read, Service::Agreements) => {
                    direct.customers().list_customers(ListCustomersRequest::default()).await.map(drop)
                }
                (Call::Read, Service::Orders) => {
                    direct.orders().list_orders(ListOrdersRequest::default()).await.map(drop)
                }
                (Call::Change, Service::Agreements) => {
                    let name = format!("C{}", Uuid::from_u128(rand::random()).simple());
                    actions::create_customer(&direct, &name, "FR", None).await.map(drop)
                }
                (Call::Change, Service::Orders) | (Call::Order, _) => {
                    actions::order(&direct, &customer, None, 1).await.map(drop)
                }
            }
        };
        async move { timeout(ANSWER_MAX, answer).await.unwrap_or_else(|_| panic!("{call:?} hangs")) }
    }

    /// What many callers get at the same time.
    async fn calls(&self, call: Call) -> Vec<Result<(), Status>> {
        join_all((0..CALLERS).map(|_| self.call(call))).await
    }

    /// Notes what calls get, once if all get the same.
    fn note(&mut self, trouble: &str, column: usize, answers: Vec<Result<(), Status>>) {
        let answers: BTreeSet<_> = answers.into_iter().map(|answer| shown(trouble, answer)).collect();
        let row = self.seen.entry(trouble.into()).or_default();
        row[column] = answers.into_iter().collect::<Vec<_>>().join(" ");
    }

    /// Notes what calls get that begin now.
    async fn after(&mut self, trouble: &str) {
        for (column, call) in [(0, Call::Read), (1, Call::Change), (4, Call::Order)] {
            if call != Call::Order || self.service == Service::Agreements {
                let answers = self.calls(call).await;
                self.note(trouble, column, answers);
            }
        }
    }

    /// Notes what a read and a change get in whose middle something happens.
    async fn in_the_middle(&mut self, trouble: &str, happen: impl AsyncFnOnce(&PostgresServer)) {
        let (name, table) = match self.service {
            Service::Agreements => ("agreements", "customer"),
            Service::Orders => ("orders", "orders"),
        };
        let mut lock = self.server.connect_to(name).unwrap();
        if self.service == Service::Orders {
            // Else order-svc's recorder of events might wait for the lock, too, and be taken for a call.
            let pending = "SELECT change_number AS pid FROM event_pending";
            eventually("the orders before are recorded", async || {
                rows::<Process>(&mut self.server.connect_to(name).unwrap(), pending).is_empty().then_some(())
            })
            .await;
        }
        run(&mut lock, &format!("BEGIN; LOCK TABLE {table}"));
        let read = self.waiting(Call::Read, 1).await;
        let change = self.waiting(Call::Change, 2).await;
        happen(&self.server).await;
        drop(lock);
        self.note(trouble, 2, vec![read.await.unwrap()]);
        self.note(trouble, 3, vec![change.await.unwrap()]);
    }

    /// A call that waits in the database, as the last of that many.
    async fn waiting(&self, call: Call, count: usize) -> JoinHandle<Result<(), Status>> {
        let mut server = self.server.connect().unwrap();
        let waiting = tokio::spawn(self.call(call));
        while rows::<Process>(&mut server, &format!("{OF_CLERK} {AND_WAITS} {OF_A_CALL}")).len() < count {
            assert!(!waiting.is_finished(), "{call:?} does not wait: {:?}", waiting.await);
            tokio::task::yield_now().await;
        }
        waiting
    }

    /// Until the trouble is over.
    async fn recovered(&self) {
        eventually("the services recover", async || {
            for call in [Call::Read, Call::Change, Call::Order] {
                if self.calls(call).await.iter().any(Result::is_err) {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }
}

const OF_CLERK: &str = "SELECT pid FROM pg_stat_activity WHERE usename = 'clerk'";
const AND_WAITS: &str = "AND wait_event_type = 'Lock'";
/// order-svc's recorder of events waits, too, when it looks for rows of older versions.
const OF_A_CALL: &str = "AND query NOT LIKE 'SELECT EXISTS%in_history%'";

#[derive(QueryableByName)]
struct Process {
    #[diesel(sql_type = Integer)]
    pid: i32,
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

/// As the table shows it. Every refusal says when to try again.
fn shown(trouble: &str, answer: Result<(), Status>) -> String {
    let Err(refused) = answer else { return "OK".into() };
    assert_eq!(refused.code(), Code::Unavailable, "{trouble}: {refused:?}");
    assert!(refused.get_details_retry_info().is_some(), "{trouble}: {refused:?}");
    reason_of(&refused)
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_get_what_the_operations_page_says(
    #[values(Service::Agreements, Service::Orders)] service: Service,
    #[values(false, true)] is_bounced: bool,
) {
    tests::needs_own!("a database server that it stops");
    tests::needs!(Backend::Postgres);
    let mut world = World::with_trouble_of(service, is_bounced).await;
    world.recovered().await;

    let restarts = "PostgreSQL restarts";
    let restart = async |server: &PostgresServer| {
        halt(server).await;
        server.resume().unwrap();
    };
    restart(&world.server).await;
    if is_bounced {
        // It may take PgBouncer moments to connect again.
        world.recovered().await;
    }
    world.after(restarts).await;
    world.in_the_middle(restarts, restart).await;
    world.recovered().await;

    let down = "PostgreSQL is down";
    world.in_the_middle(down, halt).await;
    world.after(down).await;
    world.server.resume().unwrap();
    world.recovered().await;

    let read_only = "PostgreSQL has become read-only, after a failover or with a full disk";
    world.in_the_middle(read_only, async |server| turn_read_only(server, "on").await).await;
    world.after(read_only).await;
    turn_read_only(&world.server, "off").await;
    world.recovered().await;

    let full = "PostgreSQL has no connection left";
    let limit = |server: &PostgresServer, to: i32| {
        server.run(&format!("ALTER ROLE clerk CONNECTION LIMIT {to}")).unwrap();
    };
    world.in_the_middle(full, async |server| limit(server, 0)).await;
    end_connections(&mut world.server.connect().unwrap()).await;
    world.after(full).await;
    limit(&world.server, -1);
    world.recovered().await;

    let frozen = "PostgreSQL answers no new connection";
    let mut admin = world.server.connect().unwrap();
    world.in_the_middle(frozen, async |server| server.freeze().unwrap()).await;
    end_connections(&mut admin).await;
    world.after(frozen).await;
    world.server.thaw().unwrap();
    world.recovered().await;

    let cancelled = "an administrator or a time limit cancels the statement";
    world
        .in_the_middle(cancelled, async |server| {
            let sql = OF_CLERK.replace("SELECT pid", "SELECT pg_cancel_backend(pid)");
            run(&mut server.connect().unwrap(), &format!("{sql} {AND_WAITS}"));
        })
        .await;
    world.after(cancelled).await;

    let idle = "idle_session_timeout closes connections";
    world.server.run("ALTER ROLE clerk SET idle_session_timeout = 1500").unwrap();
    end_connections(&mut world.server.connect().unwrap()).await;
    world.recovered().await;
    world.in_the_middle(idle, async |server| until_idle_end(server).await).await;
    world.recovered().await;
    until_idle_end(&world.server).await;
    world.after(idle).await;

    assert_eq!(world.seen, documented(service));
}

/// Has the server refuse writes in transactions that begin from now on, or accept them. Once a new connection has the new
/// setting, the server has sent word of it to the others, too.
async fn turn_read_only(server: &PostgresServer, to: &str) {
    server.run(&format!("ALTER SYSTEM SET default_transaction_read_only = {to}")).unwrap();
    server.run("SELECT pg_reload_conf()").unwrap();
    eventually("the server reads its settings", async || {
        let sql = format!("SELECT 1 AS pid WHERE current_setting('default_transaction_read_only') = '{to}'");
        rows::<Process>(&mut server.connect().unwrap(), &sql).pop()
    })
    .await;
}

/// Ends the connections of the services, and then the server: it ends them in any order, and what holds the lock for which
/// a call waits must not come first.
async fn halt(server: &PostgresServer) {
    end_connections(&mut server.connect().unwrap()).await;
    server.halt().unwrap();
}

/// Ends the connections of the services, so that they make new ones.
async fn end_connections(admin: &mut Connection) {
    let sql = OF_CLERK.replace("SELECT pid", "SELECT pid, pg_terminate_backend(pid)");
    let ended: Vec<Process> = rows(admin, &sql);
    while rows(admin, OF_CLERK).iter().any(|left: &Process| ended.iter().any(|ended| ended.pid == left.pid)) {
        tokio::task::yield_now().await;
    }
}

/// Until the system has closed the connections that are idle. A poller may keep one busy.
async fn until_idle_end(server: &PostgresServer) {
    let idle: Vec<Process> = rows(&mut server.connect().unwrap(), &format!("{OF_CLERK} AND state = 'idle'"));
    let is_left = |process: &&Process| Path::new(&format!("/proc/{}", process.pid)).exists();
    eventually("idle connections end", async || (idle.iter().filter(is_left).count() <= 2).then_some(()))
        .await;
}
