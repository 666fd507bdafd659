//! A world to measure: both services as processes of the real binaries on one database, filled with customers by SQL,
//! and the connections that call them.

use std::collections::VecDeque;
use std::error::Error;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chassis::database::{Connection, Url};
use chassis::query;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use proto::order::{ListOrdersRequest, ListSubscriptionsRequest};
use rand::Rng;
use tests::databases::connect;
use tests::fixtures::{self, DIRECT};
use tests::processes::{Process, Processes};
use tests::{As, Backend, actions};
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::rows::{self, Original, customer_id, customer_number};

/// Connections to each service, unless a single call is in flight.
pub(super) const CONNECTIONS: usize = 8;

/// Every tenth customer is blocked, where some are.
pub(super) const BLOCKED_EVERY: usize = 10;

/// The rows of a page while a list is walked to its depth: the most that a page has.
const WALK_PAGE: i32 = 500;

/// A page at depth comes after half of the orders, or after so many.
const DEPTH_MAX: usize = 100_000;

/// What order-svc still has to do after an order: its events, and the report of the customer's first purchase.
const UNDONE: &str = "SELECT (SELECT count(*) FROM event_pending) \
    + (SELECT count(*) FROM purchase_report WHERE reported_at IS NULL) AS value";

/// What agreement-svc does to customers that it did not create itself.
const UNNAMED: &str =
    "SELECT count(*) AS value FROM (SELECT 1 FROM customer WHERE name_revision <> revision LIMIT 1) AS first";

/// How long that may take, with a million customers.
const DONE_WITHIN: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Both services with their customers.
pub(super) struct World {
    pub backend: Backend,
    pub processes: Processes,
    pub original: Original,
    pub customers: usize,
    blocked_every: Option<usize>,
    connections: Arc<[As]>,
    /// Subscriptions to change, with etag and seats: a call takes the first one and puts it back last.
    seats: Mutex<VecDeque<Seats>>,
    /// The token of the page of orders at depth.
    pub deep_page: String,
}

/// A subscription as it was last read.
pub(super) struct Seats {
    pub subscription: String,
    pub etag: String,
    pub quantity: u32,
}

/// How long each service took from its start until it served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Started {
    pub agreements: Duration,
    pub orders: Duration,
}

impl World {
    /// Starts the services and fills their databases. They are started again afterwards, which is timed.
    ///
    /// # Errors
    /// What fails.
    pub(super) async fn start(
        mut processes: Processes,
        backend: Backend,
        customers: usize,
        blocked_every: Option<usize>,
    ) -> Result<(Self, Started), Box<dyn Error>> {
        // Mails as usual and not one for each attestation at once, which the harness has them do for tests.
        let replica = processes.replicas.as_mut().map(|(agreements, _)| agreements);
        for process in [&mut processes.agreements].into_iter().chain(replica) {
            process.unset("--mail-interval-seconds");
            process.unset("--mails-per-day");
        }
        processes.start().await?;
        actions::register_partners_as(&processes.as_caller(fixtures::operator())).await?;
        let original = rows::make_original(&processes.as_caller(fixtures::sales(DIRECT))).await?;
        // What is undone would be copied, and be done for each copy while others are measured.
        until_done(processes.orders.database(), UNDONE).await?;
        stop(&mut processes)?;
        rows::fill(&processes, &original, customers, blocked_every)?;
        let started = start_timed(&mut processes).await?;
        until_done(processes.agreements.database(), UNNAMED).await?;
        rows::vacuum(&processes)?;
        let connections =
            (0..CONNECTIONS).map(|_| processes.as_caller(fixtures::sales(DIRECT))).collect::<Vec<_>>();
        let mut world = Self {
            backend,
            processes,
            original,
            customers,
            blocked_every,
            connections: connections.into(),
            seats: Mutex::default(),
            deep_page: String::new(),
        };
        let direct = world.caller(1, 0).clone();
        world.seats = Mutex::new(world.read_seats(&direct).await?);
        world.deep_page = world.walk(&direct).await?;
        Ok((world, started))
    }

    /// The connection of a call, by its number.
    pub(super) fn caller(&self, in_flight: usize, number: usize) -> &As {
        let connections = if in_flight == 1 { 1 } else { self.connections.len() };
        &self.connections[number % connections]
    }

    /// Any customer that has attested.
    pub(super) fn any_customer(&self) -> String {
        loop {
            let number = rand::rng().random_range(1..=self.customers);
            if !self.is_blocked(number) {
                return customer_id(number);
            }
        }
    }

    fn is_blocked(&self, number: usize) -> bool {
        self.blocked_every.is_some_and(|every| number.is_multiple_of(every))
    }

    pub(super) fn take_seats(&self) -> Result<Seats, Status> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        seats.pop_front().ok_or_else(|| Status::internal("all subscriptions are being changed"))
    }

    pub(super) fn put_seats(&self, changed: Seats) {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner).push_back(changed);
    }

    async fn read_seats(&self, direct: &As) -> Result<VecDeque<Seats>, Status> {
        let request =
            ListSubscriptionsRequest { page_size: WALK_PAGE, ..ListSubscriptionsRequest::default() };
        let listed = direct.subscriptions().list_subscriptions(request).await?.into_inner();
        let seats = |read: proto::order::Subscription| Seats {
            subscription: read.subscription_id,
            etag: read.etag,
            quantity: read.quantity,
        };
        // The gate refuses seats to a blocked customer.
        let is_blocked = |id: &str| customer_number(id).is_some_and(|number| self.is_blocked(number));
        let listed = listed.subscriptions.into_iter().filter(|read| !is_blocked(&read.customer_id));
        Ok(listed.map(seats).collect())
    }

    async fn walk(&self, direct: &As) -> Result<String, Status> {
        let depth = DEPTH_MAX.min(self.customers / 2);
        let mut request = ListOrdersRequest { page_size: WALK_PAGE, ..ListOrdersRequest::default() };
        let mut walked = 0;
        while walked < depth {
            let page = direct.orders().list_orders(request.clone()).await?.into_inner();
            walked += page.orders.len();
            request.page_token = page.next_page_token;
        }
        Ok(request.page_token)
    }
}

async fn until_done(database: &Url, undone: &str) -> Result<(), String> {
    let done = async {
        while number(database, undone)? > 0 {
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    };
    timeout(DONE_WITHIN, done).await.map_err(|_| format!("not done in time: {undone}"))?
}

fn stop(processes: &mut Processes) -> Result<(), String> {
    let replicas = processes.replicas.iter_mut().flat_map(|(agreements, orders)| [orders, agreements]);
    for process in [&mut processes.orders, &mut processes.agreements].into_iter().chain(replicas) {
        process.stop()?;
    }
    Ok(())
}

async fn start_timed(processes: &mut Processes) -> Result<Started, String> {
    let began = Instant::now();
    processes.agreements.start().await?;
    let agreements = began.elapsed();
    let began = Instant::now();
    processes.orders.start().await?;
    let orders = began.elapsed();
    processes.start().await?;
    Ok(Started { agreements, orders })
}

/// The bytes that a service's database has: its file, or its tables and their indexes.
///
/// # Errors
/// The database's.
pub(super) fn database_bytes(process: &Process) -> Result<u64, String> {
    let schema_bytes = "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint AS value FROM pg_class \
                        WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'";
    match process.database() {
        // What stands in the log is not counted: it is copied to the file in time.
        Url::Sqlite(path) => fs::metadata(path).map(|file| file.len()).map_err(|error| error.to_string()),
        Url::Postgres(_) => number(process.database(), schema_bytes).map(i64::unsigned_abs),
    }
}

/// A single number, which a statement gives as `value`.
///
/// # Errors
/// The database's.
pub(super) fn number(database: &Url, statement: &str) -> Result<i64, String> {
    #[derive(QueryableByName)]
    struct Number {
        #[diesel(sql_type = BigInt)]
        value: i64,
    }
    let mut connection: Connection = connect(database)?;
    let read: Number = query!(&mut connection, c => diesel::sql_query(statement).get_result(c))
        .map_err(|error| error.to_string())?;
    Ok(read.value)
}
