//! `cargo lab soak-overload`: each service at several times the load that it can serve.
//!
//! The real binaries are called from this process, so that memory is theirs alone. What they can serve is
//! found with a fixed number of calls in flight; then calls are offered at a fixed rate as long as their
//! connections have room for them, whatever becomes of those before: most by one partner, and some by another
//! that asks for little. Latencies count from when a call was due. Servers, database and load share the machine,
//! so what is offered takes from what can be served: it is sent by one thread, on bare HTTP/2. All bounds are
//! ratios, or generous.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use futures_util::future::join_all;
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use proto::agreement::CheckEligibilityResponse;
use proto::order::CreateOrderResponse;
use proto::types::Decision;
use tests::fixtures::{self, DIRECT, OFFICE, PROVIDER};
use tests::processes::{Process, Processes, build_binaries};
use tests::{Backend, actions, reason_of};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use crate::bare::{self, LENGTH_BYTES, WINDOW_DEFAULT, exchange, framed};
use crate::load::{closed_loop, number, percentile, rate};

/// Calls in flight while no call is to be refused: fewer than one tenant may have.
const IN_FLIGHT: usize = 64;

/// What the partner that asks for little offers, of what can be served.
const MODEST: f64 = 0.05;

/// How much of what the modest partner asks must be answered, however much the other one offers.
const MODEST_ANSWERED_MIN: f64 = 0.95;

/// What is in flight when a call is let in was let in before it: it waits for that, at the rate at which calls are answered
/// meanwhile, and a few times over where load and servers share the cores. How low that rate may be is a bound of its own.
const WAITS_MAX: f64 = 6.0;
const WAIT_BASE: Duration = Duration::from_millis(500);

/// What more load than can be served may leave behind, or need for a while.
const GROWTH_MAX_KIB: u32 = 48 << 10;

/// Connections on which nothing happens, and what one of them may take.
const IDLE: usize = 1000;
const IDLE_MAX_KIB: u32 = 64;

/// What must be served afterwards, of what was before.
const RECOVERY_MIN: f64 = 0.8;

/// How much must be answered of what can be served, whatever is offered. Refusing the rest takes its part, and
/// so does offering it, on the same machine: of a build that is not optimized both take several times as much.
const ANSWERED_MIN: f64 = if cfg!(debug_assertions) { 0.1 } else { 0.3 };

/// Calls that one connection may have open. What is due while all are is not sent, and only counted: every client of
/// HTTP/2 has to wait then, so no client can offer more over as many connections.
const OPEN_MAX: usize = 256;

/// Between two looks at what is due.
const PAUSE: Duration = Duration::from_millis(1);

/// Whatever else the machine does falls on one try and not on all of them.
const TRIES_MAX: usize = 3;
const RECOVERY_TRIES_MAX: usize = 20;

/// What the services let in when nothing else is said.
const CALLS_MAX_DEFAULT: usize = 256;

#[derive(Args)]
pub(crate) struct Options {
    /// How long each load lasts.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Connections of the greedy partner; one has at most 256 calls open.
    #[arg(long, default_value_t = 24)]
    connections: usize,
    /// How many times what can be served is offered, one load after the other; the last one is judged.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    times: Vec<f64>,
    /// Customers of each partner.
    #[arg(long, default_value_t = 32)]
    customers: usize,
    /// Calls in progress that the services let in, instead of their default.
    #[arg(long)]
    calls_max: Option<usize>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Check,
    Order,
}

/// A partner that asks, over some connections, about customers of its own.
struct Partner {
    connections: Vec<SendRequest<Bytes>>,
    /// What every call begins with.
    opening: Request<()>,
    payer: Uuid,
    customers: Vec<String>,
}

/// The outcomes of the calls of one load.
#[derive(Debug, Default)]
struct Outcome {
    /// How long it lasted.
    took: Duration,
    /// Latencies of what was answered, and of what was refused for load.
    answered: Vec<Duration>,
    refused: Vec<Duration>,
    /// Due while all were open that the connections may have.
    not_sent: usize,
    /// Anything else, which should not be.
    wrong: Vec<String>,
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    build_binaries()?;
    let mut failed = vec![];
    for backend in Backend::all() {
        for subject in [Subject::Check, Subject::Order] {
            failed.extend(overload(backend, subject, &options).await?);
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

/// Finds out what can be served, offers more, and says what does not hold.
async fn overload(
    backend: Backend,
    subject: Subject,
    options: &Options,
) -> Result<Vec<String>, Box<dyn Error>> {
    let mut processes = Processes::new(backend)?;
    if let Some(calls_max) = options.calls_max {
        for process in [&mut processes.agreements, &mut processes.orders] {
            process.set(&["--calls-max", &calls_max.to_string()]);
        }
    }
    processes.start().await?;
    actions::register_partners_as(&processes.as_caller(fixtures::operator())).await?;
    let server = match subject {
        Subject::Check => &processes.agreements,
        Subject::Order => &processes.orders,
    };
    let partner = async |payer, connections| {
        let opening = subject.opening(server, payer)?;
        Partner::new(&processes, opening, payer, connections, options.customers).await
    };
    let (greedy, modest) = (partner(DIRECT, options.connections).await?, partner(PROVIDER, 1).await?);
    let length = Duration::from_secs(options.seconds);

    // What fills once (caches, windows, connections) is full after the first.
    served(subject, &greedy, length / 2).await?;
    let before = served(subject, &greedy, length).await?;
    let (capacity, resident) = (before.rate(), server.memory("VmRSS")?);
    println!("{backend} {subject:?}, {IN_FLIGHT} in flight: {before}; {} MiB", resident >> 10);

    let mut failed = vec![];
    for (n, times) in options.times.iter().enumerate() {
        let is_last = n + 1 == options.times.len();
        for _ in 0..if is_last { TRIES_MAX } else { 1 } {
            let much = offer(subject, &greedy, capacity * times, length);
            let little = offer(subject, &modest, capacity * MODEST, length);
            let (much, little) = tokio::try_join!(much, little)?;
            println!("  {times} times, greedy: {much}; {} MiB", server.memory("VmRSS")? >> 10);
            println!("  {times} times, modest: {little}");
            failed = judge(&much, &little, capacity, options);
            if failed.is_empty() {
                break;
            }
        }
    }
    let peak = server.memory("VmHWM")?;
    println!("  at most {} MiB", peak >> 10);
    if peak > resident + GROWTH_MAX_KIB {
        failed.push(format!("memory grew from {resident} to {peak} KiB"));
    }

    let mut best = 0.0_f64;
    for _ in 0..RECOVERY_TRIES_MAX {
        let after = served(subject, &greedy, length / 2).await?;
        println!("  afterwards: {after}; {} MiB", server.memory("VmRSS")? >> 10);
        best = best.max(after.rate() / capacity);
        if best >= RECOVERY_MIN {
            break;
        }
    }
    if best < RECOVERY_MIN {
        failed.push(format!("afterwards {best:.2} of what was served before"));
    }

    let resident = server.memory("VmRSS")?;
    let idle = join_all((0..IDLE).map(|_| connect(server.address()))).await;
    let idle: Vec<Channel> = idle.into_iter().collect::<Result<_, _>>()?;
    let beside = served(subject, &greedy, length / 2).await?;
    let each = server.memory("VmRSS")?.saturating_sub(resident) / u32::try_from(IDLE)?;
    println!("  beside {} idle connections of {each} KiB: {beside}", idle.len());
    if each > IDLE_MAX_KIB {
        failed.push(format!("an idle connection takes {each} KiB"));
    }
    Ok(failed.into_iter().map(|what| format!("{backend} {subject:?}: {what}")).collect())
}

/// What must not be, among the outcomes of both partners' calls.
fn judge(much: &Outcome, little: &Outcome, capacity: f64, options: &Options) -> Vec<String> {
    let calls_max = options.calls_max.unwrap_or(CALLS_MAX_DEFAULT);
    let answered = (much.rate() + little.rate()).max(1.0);
    let wait_max = WAIT_BASE + Duration::from_secs_f64(WAITS_MAX * number(calls_max) / answered);
    let mut failed: Vec<_> = much.failed("greedy", wait_max).collect();
    failed.extend(little.failed("modest", wait_max));
    if much.refused.is_empty() {
        failed.push("nothing was refused, so nothing is proven".into());
    }
    let part = answered / capacity;
    if part < ANSWERED_MIN {
        failed.push(format!("{part:.2} of what was served before was answered"));
    }
    let part = little.part_answered();
    if part < MODEST_ANSWERED_MIN {
        failed.push(format!("of the modest partner's calls {part:.3} were answered"));
    }
    failed
}

async fn connect(address: String) -> Result<Channel, Box<dyn Error>> {
    Ok(Endpoint::from_shared(address)?.connect().await?)
}

impl Subject {
    /// How a partner begins a call.
    fn opening(self, server: &Process, payer: Uuid) -> http::Result<Request<()>> {
        let call = match self {
            Self::Check => "csp.agreement.v1.EligibilityService/CheckEligibility",
            Self::Order => "csp.order.v1.OrderService/CreateOrder",
        };
        bare::opening(&server.address(), call, fixtures::sales(payer))
    }

    /// A call's message, which asks about a customer.
    fn message(self, payer: Uuid, customer: &str) -> Bytes {
        match self {
            Self::Check => framed(&fixtures::new_check(payer, customer)),
            Self::Order => framed(&fixtures::new_order(customer, None, OFFICE, 5)),
        }
    }

    /// Looks at what is answered, behind its length.
    fn check(self, answer: &[u8]) -> Result<(), Status> {
        let message = answer.get(LENGTH_BYTES..).unwrap_or_default();
        let is_right = match self {
            Self::Check => CheckEligibilityResponse::decode(message)
                .is_ok_and(|answer| answer.decision() == Decision::Allowed),
            Self::Order => CreateOrderResponse::decode(message).is_ok_and(|answer| answer.order.is_some()),
        };
        if is_right { Ok(()) } else { Err(Status::internal("that is no answer to what was asked")) }
    }
}

impl Partner {
    async fn new(
        processes: &Processes,
        opening: Request<()>,
        payer: Uuid,
        connections: usize,
        customers: usize,
    ) -> Result<Arc<Self>, Box<dyn Error>> {
        let mut partner = Self { connections: vec![], opening, payer, customers: vec![] };
        let caller = processes.as_caller(fixtures::sales(payer));
        for n in 0..customers {
            let customer =
                actions::create_customer(&caller, &format!("Customer {n} of {payer}"), "FR", None).await?;
            actions::attest_now(&caller, &customer).await?;
            partner.customers.push(customer);
        }
        for _ in 0..connections {
            partner.connections.push(bare::connect(&partner.opening, WINDOW_DEFAULT).await?);
        }
        Ok(Arc::new(partner))
    }

    /// Makes one of its calls, in turn over its connections and customers.
    async fn call(&self, subject: Subject, number: usize) -> Result<(), Status> {
        let streams = &self.connections[number % self.connections.len()];
        let message = subject.message(self.payer, &self.customers[number % self.customers.len()]);
        match exchange(streams.clone(), self.opening.clone(), message).await {
            Ok((headers, answer)) => match Status::from_header_map(&headers) {
                Some(status) if status.code() != Code::Ok => Err(status),
                _ => subject.check(&answer),
            },
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

/// What is served with a fixed number of calls in flight, when no call is refused.
async fn served(
    subject: Subject,
    partner: &Arc<Partner>,
    length: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let partner = Arc::clone(partner);
    let answered = closed_loop(IN_FLIGHT, length, move |number| {
        let partner = Arc::clone(&partner);
        async move { partner.call(subject, number).await }
    });
    Ok(Outcome { took: length, answered: answered.await?, ..Outcome::default() })
}

/// Offers calls at a fixed rate, whatever becomes of those before.
async fn offer(
    subject: Subject,
    partner: &Arc<Partner>,
    rate: f64,
    length: Duration,
) -> Result<Outcome, Box<dyn Error>> {
    let mut outcome = Outcome { took: length, ..Outcome::default() };
    let mut calls = JoinSet::new();
    let began = Instant::now();
    let mut number = 0;
    loop {
        while let Some(ended) = calls.try_join_next() {
            outcome.count(ended?);
        }
        if began.elapsed() >= length {
            break;
        }
        let mut due = began + Duration::from_secs_f64(f64::from(number) / rate);
        while due <= Instant::now() {
            number += 1;
            if calls.len() >= partner.connections.len() * OPEN_MAX {
                outcome.not_sent += 1;
            } else {
                let partner = Arc::clone(partner);
                calls.spawn(async move {
                    let ended = partner.call(subject, number as usize).await;
                    (due.elapsed(), ended)
                });
            }
            due = began + Duration::from_secs_f64(f64::from(number) / rate);
        }
        tokio::time::sleep(PAUSE).await;
    }
    while let Some(ended) = calls.join_next().await {
        outcome.count(ended?);
    }
    Ok(outcome)
}

impl Outcome {
    fn count(&mut self, (latency, ended): (Duration, Result<(), Status>)) {
        match ended {
            Ok(()) => self.answered.push(latency),
            Err(status) if is_overloaded(&status) => self.refused.push(latency),
            Err(status) => self.wrong.push(status.to_string()),
        }
    }

    fn rate(&self) -> f64 {
        rate(self.answered.len(), self.took)
    }

    fn part_answered(&self) -> f64 {
        let all = self.answered.len() + self.refused.len() + self.not_sent + self.wrong.len();
        number(self.answered.len()) / number(all.max(1))
    }

    /// What of it should not be.
    fn failed(&self, who: &str, wait_max: Duration) -> impl Iterator<Item = String> {
        let otherwise = self.wrong.first().map(|first| {
            format!("{} calls of the {who} partner failed otherwise: {first}", self.wrong.len())
        });
        let p99 = percentile(&self.answered, 99);
        let late =
            (p99 > wait_max).then(|| format!("the {who} partner waited for {p99:?}, more than {wait_max:?}"));
        let p99 = percentile(&self.refused, 99);
        let slow = (p99 > wait_max)
            .then(|| format!("the {who} partner waited for {p99:?} to be refused, more than {wait_max:?}"));
        otherwise.into_iter().chain(late).chain(slow)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a_second = |count: usize| rate(count, self.took);
        let Self { answered, refused, not_sent, wrong, .. } = self;
        let all = answered.len() + refused.len() + not_sent + wrong.len();
        write!(
            f,
            "{:.0}/s offered, {:.0} answered ({:.1?} {:.1?}), {:.0} refused ({:.1?} {:.1?}), {:.0} wrong, {:.0} not sent",
            a_second(all),
            a_second(answered.len()),
            percentile(answered, 50),
            percentile(answered, 99),
            a_second(refused.len()),
            percentile(refused, 50),
            percentile(refused, 99),
            a_second(wrong.len()),
            a_second(*not_sent),
        )
    }
}

/// Whether a refusal says all that one for load has to.
fn is_overloaded(status: &Status) -> bool {
    let reason = reason_of(status);
    status.code() == Code::ResourceExhausted
        && (reason == "OVERLOADED" || reason == "TENANT_OVERLOADED")
        && status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some())
}
