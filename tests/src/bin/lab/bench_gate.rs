//! `cargo lab bench-gate`: throughput and latency of CheckEligibility and CreateOrder beside a bare tonic echo, in one
//! run. CheckEligibility is measured a second time for a customer with a long history of withdrawn attestations, which
//! must not cost more.
//!
//! All servers run on the same runtime flavour, one thread each, and are called over the same number
//! of connections with the same number of calls in flight. Rounds alternate between them, so that other
//! load on the machine slows all of them alike; ratios carry over to other machines, figures do not.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::auth::Caller;
use chassis::database::Url;
use chassis::form::timestamp;
use chrono::TimeDelta;
use clap::Args;
use proto::agreement::eligibility_service_client::EligibilityServiceClient;
use proto::agreement::eligibility_service_server::{EligibilityService, EligibilityServiceServer};
use proto::agreement::{
    BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, CheckEligibilityRequest,
    CheckEligibilityResponse, CheckWithdrawalRequest, CheckWithdrawalResponse, GetPolicyRequest,
    GetPolicyResponse, ListBlockedCustomersRequest, ListBlockedCustomersResponse, ReportPurchaseRequest,
    ReportPurchaseResponse,
};
use proto::types;
use tests::clients::{As, Identity};
use tests::databases::behind;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE};
use tests::{Backend, Cluster, actions};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::load::{closed_loop, percentile, rate};

#[derive(Args)]
pub(crate) struct Options {
    /// Connections to each server.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Calls in flight on each connection.
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each server is called in a round, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    round_ms: u64,
    /// Customers that calls are spread over.
    #[arg(long, default_value_t = 64)]
    customers: usize,
    /// Withdrawn attestations of the customer with a long history.
    #[arg(long, default_value_t = 100_000)]
    withdrawn: u32,
}

/// Always gives the same answer, which costs what tonic costs.
struct Echo {
    /// An echo to call before it answers.
    next: Option<EligibilityServiceClient<Channel>>,
}

#[tonic::async_trait]
impl EligibilityService for Echo {
    async fn check_eligibility(
        &self,
        request: Request<CheckEligibilityRequest>,
    ) -> Result<Response<CheckEligibilityResponse>, Status> {
        let asked = request.into_inner();
        if let Some(next) = &self.next {
            return next.clone().check_eligibility(asked).await;
        }
        let answer = CheckEligibilityResponse {
            payer_id: asked.payer_id,
            customer_id: asked.customer_id,
            customer_country: "FR".into(),
            ..CheckEligibilityResponse::default()
        };
        Ok(Response::new(answer))
    }

    async fn batch_check_eligibility(
        &self,
        _request: Request<BatchCheckEligibilityRequest>,
    ) -> Result<Response<BatchCheckEligibilityResponse>, Status> {
        Ok(Response::new(BatchCheckEligibilityResponse::default()))
    }

    async fn list_blocked_customers(
        &self,
        _request: Request<ListBlockedCustomersRequest>,
    ) -> Result<Response<ListBlockedCustomersResponse>, Status> {
        Ok(Response::new(ListBlockedCustomersResponse::default()))
    }

    async fn get_policy(
        &self,
        _request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        Ok(Response::new(GetPolicyResponse::default()))
    }

    async fn report_purchase(
        &self,
        _request: Request<ReportPurchaseRequest>,
    ) -> Result<Response<ReportPurchaseResponse>, Status> {
        Ok(Response::new(ReportPurchaseResponse::default()))
    }

    async fn check_withdrawal(
        &self,
        _request: Request<CheckWithdrawalRequest>,
    ) -> Result<Response<CheckWithdrawalResponse>, Status> {
        Ok(Response::new(CheckWithdrawalResponse::default()))
    }
}

/// What is measured.
#[derive(Clone, Copy)]
enum Subject {
    Echo,
    Check,
    Order,
}

/// A database's cluster, its customers, and a connection set for each subject.
struct Bench {
    backend: Backend,
    _cluster: Cluster,
    customers: Vec<String>,
    /// One customer, so that each call reads the same long history.
    with_history: Vec<String>,
    callers: Vec<As>,
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let echo = start_echo(None)?;
    let mut benches = vec![];
    for backend in Backend::all() {
        benches.push(Bench::start(backend, &options).await?);
    }
    let echoes: Vec<As> = connect(options.connections, echo, echo, &fixtures::service());

    let mut rows: Vec<(String, Vec<Figures>)> = vec![("bare echo".into(), vec![])];
    for bench in &benches {
        rows.push((format!("CheckEligibility, {}", bench.backend), vec![]));
        rows.push((format!("- long history, {}", bench.backend), vec![]));
        rows.push((format!("CreateOrder, {}", bench.backend), vec![]));
    }
    for _ in 0..options.rounds {
        rows[0].1.push(measure(Subject::Echo, &echoes, &benches[0].customers, &options).await?);
        for (n, bench) in benches.iter().enumerate() {
            let check = measure(Subject::Check, &bench.callers, &bench.customers, &options).await?;
            rows[1 + 3 * n].1.push(check);
            let check = measure(Subject::Check, &bench.callers, &bench.with_history, &options).await?;
            rows[2 + 3 * n].1.push(check);
            let order = measure(Subject::Order, &bench.callers, &bench.customers, &options).await?;
            rows[3 + 3 * n].1.push(order);
        }
    }
    report(&options, rows);
    Ok(())
}

impl Bench {
    async fn start(backend: Backend, options: &Options) -> Result<Self, Box<dyn Error>> {
        let (cluster, direct) = actions::start_with_partners(backend).await;
        let mut customers = vec![];
        for n in 0..options.customers {
            let customer = actions::create_customer(&direct, &format!("Customer {n}"), "FR", None).await?;
            actions::attest_now(&direct, &customer).await?;
            customers.push(customer);
        }
        let with_history = actions::create_customer(&direct, "Customer with history", "FR", None).await?;
        store_withdrawn(cluster.agreements_database(), &with_history, options.withdrawn)?;
        actions::attest_now(&direct, &with_history).await?;
        let (agreements, orders) = (cluster.agreements_address(), cluster.orders_address());
        let callers = connect(options.connections, agreements, orders, &fixtures::sales(DIRECT));
        Ok(Self { backend, _cluster: cluster, customers, with_history: vec![with_history], callers })
    }
}

/// Stores withdrawn attestations of a customer as SQL: as calls they would take minutes.
pub(crate) fn store_withdrawn(database: &Url, customer: &str, count: u32) -> Result<(), String> {
    const ROWS_MAX: usize = 5_000;
    const COLUMNS: &str = "id, kind, partner_id, customer_id, agreement_type, template_id, template_version, first_name, last_name, email, phone, \
        contact_salt, agreed_at, recorded_at, recorded_by, superseded_at, withdrawn_at, revision, withdrawal_reason, \
        withdrawn_by";
    let row = |n: u32| {
        let id = Uuid::from_u128(n.into());
        let second = fixtures::now() - TimeDelta::days(400) + TimeDelta::seconds(n.into());
        let agreed_at = second.format("%F %T");
        format!(
            "('{id}', 'ATTESTATION', '{DIRECT}', '{customer}', 'MICROSOFT_CUSTOMER_AGREEMENT', \
             '{CUSTOMER_AGREEMENT}', 1, '', '', '', '', '', '{agreed_at}', '{agreed_at}', '', NULL, '{agreed_at}', 0, \
             'ENTERED_IN_ERROR', '')"
        )
    };
    let rows: Vec<_> = (0..count).map(row).collect();
    for rows in rows.chunks(ROWS_MAX) {
        behind(database, &format!("INSERT INTO acceptance ({COLUMNS}) VALUES {}", rows.join(", ")))?;
    }
    Ok(())
}

/// Starts an echo on a runtime and thread of its own. It calls the next one, if there is, over one channel.
pub(crate) fn start_echo(next: Option<SocketAddr>) -> Result<SocketAddr, Box<dyn Error>> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = chassis::lifecycle::runtime()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let next = next.map(|address| EligibilityServiceClient::new(lazy(address)));
            tonic::transport::Server::builder()
                .add_service(EligibilityServiceServer::new(Echo { next }))
                .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
                .await
                .map_err(std::io::Error::other)
        })
    });
    Ok(address)
}

fn lazy(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .map(|endpoint| endpoint.connect_lazy())
        .unwrap_or_else(|error| panic!("{address} is no address: {error}"))
}

pub(crate) fn connect(
    connections: usize,
    agreements: SocketAddr,
    orders: SocketAddr,
    caller: &Caller,
) -> Vec<As> {
    let one =
        |_| As { agreements: lazy(agreements), orders: lazy(orders), identity: Identity::of(caller.clone()) };
    (0..connections).map(one).collect()
}

/// Calls a second, and latencies in microseconds.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    p50: u128,
    p99: u128,
}

async fn measure(
    subject: Subject,
    callers: &[As],
    customers: &[String],
    options: &Options,
) -> Result<Figures, Status> {
    let length = Duration::from_millis(options.round_ms);
    let (callers, customers) = (Arc::<[As]>::from(callers), Arc::<[String]>::from(customers));
    let began = Instant::now();
    let latencies =
        closed_loop(callers.len() * options.in_flight, length, move |number| {
            let (callers, customers) = (Arc::clone(&callers), Arc::clone(&customers));
            async move {
                call(subject, &callers[number % callers.len()], &customers[number % customers.len()]).await
            }
        })
        .await?;
    Ok(Figures {
        rate: rate(latencies.len(), began.elapsed()),
        p50: percentile(&latencies, 50).as_micros(),
        p99: percentile(&latencies, 99).as_micros(),
    })
}

async fn call(subject: Subject, caller: &As, customer: &str) -> Result<(), Status> {
    match subject {
        Subject::Echo | Subject::Check => {
            let answer = actions::check(caller, fixtures::new_check(DIRECT, customer)).await?;
            let is_right = matches!(subject, Subject::Echo) || answer.decision() == types::Decision::Allowed;
            if is_right { Ok(()) } else { Err(Status::internal("the gate is closed")) }
        }
        Subject::Order => {
            let order = fixtures::new_order(customer, None, OFFICE, 5);
            caller.orders().create_order(order).await.map(drop)
        }
    }
}

fn report(options: &Options, rows: Vec<(String, Vec<Figures>)>) {
    println!(
        "{} connections x {} in flight, median of {} rounds of {} ms, load and servers on the same {} cores, at {}",
        options.connections,
        options.in_flight,
        options.rounds,
        options.round_ms,
        std::thread::available_parallelism().map_or(0, usize::from),
        timestamp(fixtures::now()),
    );
    println!("{:<28} {:>10} {:>9} {:>9} {:>8}", "", "calls/s", "p50 us", "p99 us", "of echo");
    let mut echo = None;
    for (name, mut figures) in rows {
        figures.sort_by(|a, b| a.rate.total_cmp(&b.rate));
        let Some(median) = figures.get(figures.len() / 2) else { continue };
        let floor = *echo.get_or_insert(median.rate);
        println!(
            "{name:<28} {:>10.0} {:>9} {:>9} {:>8.2}",
            median.rate,
            median.p50,
            median.p99,
            median.rate / floor
        );
    }
}
