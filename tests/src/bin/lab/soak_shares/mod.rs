//! `cargo lab soak-shares`: one partner does each thing that takes much, and another one, which asks for little, is not to
//! pay for it.
//!
//! The real binaries run on fresh databases for each load. The modest partner offers checks and orders at a fixed
//! low rate, first alone and then beside the greedy one, and is judged by the ratio of the two, in the same run: nearly
//! all must be answered, and hardly any much later than before. Latencies count from when a call was due. Meanwhile it
//! also attests, orders and withdraws for a customer of its own, and what it withdrew must have its effect in time.
//!
//! Load, services and database share the machine, so whatever the greedy client takes to send and read is taken from what
//! is measured: lists and bodies go over bare HTTP/2, and what was refused is asked for again after a pause. Whatever
//! else the machine does falls on one try and not on all of them. `--acceptance-changes-max` is out of reach here:
//! with its default a partner could not keep attesting and withdrawing, and this is about how that is shared.
//!
//! Mail is shown on a smaller scale. An import of 200,000 rows leaves some 120,000 announcements, which at a mail server
//! that takes half a second for each, over the eight lines of the service, are sent in two hours. Of the half that
//! is there when the modest partner attests, none may hold its mail up for more than 30 minutes. With fewer rows all
//! this, and the bound, is shorter by the same factor; the mail server stays as slow.

mod loads;
#[path = "../../../../../agreement-svc/tests/smtp_server/mod.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "tests look at mails, and fail where they cannot")]
mod smtp_server;

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use proto::agreement::{GetAttestationRequest, NotificationState};
use proto::order::SubscriptionState;
use proto::types::Decision;
use tests::fixtures::{self, PROVIDER};
use tests::processes::{Processes, build_binaries};
use tests::{As, Backend, actions};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{interval, sleep};
use tonic::Status;

use crate::load::{number, percentile};
use loads::{Greedy, Load};
use smtp_server::SmtpServer;

/// How much of what the modest partner asks must be answered.
const ANSWERED_MIN: f64 = 0.9;

/// How much later than alone its calls may be answered.
const P99_TIMES: u32 = 2;

/// What they may take anyhow: a few milliseconds alone, doubled, are less than a turn of the scheduler where everything
/// shares two cores. A call that waits for its turn among the greedy partner's takes seconds instead: there are 128
/// before it, of some 200 a second. In a build that is not optimized all of them take several times as much.
const P99_BASE: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 200 });

/// How soon order-svc must have applied the modest partner's withdrawal.
const WITHDRAWN_MAX: Duration = Duration::from_secs(10);

/// How soon the modest partner's mail must have left, beside an import of so many rows.
const MAILED_MAX: Duration = Duration::from_secs(30 * 60);
const MAILED_MAX_ROWS: usize = 200_000;

/// Seconds that the mail server takes for each mail.
const MAIL_SECONDS: &str = "0.5";

/// Customers that the modest partner checks and orders for.
const CUSTOMERS: usize = 8;

const TRIES_MAX: usize = 3;

/// Between two looks at what the modest partner waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Args)]
pub(crate) struct Options {
    /// How long the modest partner is measured, alone and beside each load; beside an import and a withdrawal until those
    /// end. The services close a connection whose answers are not read after 60 s.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=40))]
    seconds: u64,
    /// The loads.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Load::value_variants().to_vec())]
    loads: Vec<Load>,
    /// Checks a second of the modest partner.
    #[arg(long, default_value_t = 50.0)]
    checks: f64,
    /// Orders a second of the modest partner.
    #[arg(long, default_value_t = 25.0)]
    orders: f64,
    /// Customers of the greedy partner that are listed, attested and imported, and its orders.
    #[arg(long, default_value_t = 500)]
    customers: usize,
    /// Lists, slow bodies and unread answers that the greedy partner has in flight at each service.
    #[arg(long, default_value_t = 128)]
    in_flight: usize,
    /// Connections that it has to each for them.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Clients of it that attest and withdraw.
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Rows that it imports.
    #[arg(long, default_value_t = MAILED_MAX_ROWS)]
    rows: usize,
    /// Subscriptions that end with one withdrawal of it.
    #[arg(long, default_value_t = 10_000)]
    subscriptions: usize,
}

/// The partner that asks for little.
struct Modest {
    caller: As,
    customers: Vec<String>,
    /// Customers without an acceptance, one to withdraw from and one to announce to.
    withdrawing: String,
    announced: String,
}

/// The outcomes of its calls of one kind.
struct Answers {
    offered: usize,
    latencies: Vec<Duration>,
    /// Why the first was refused that was.
    refused: Option<Status>,
}

/// The outcomes of its checks and its orders.
struct Figures([Answers; 2]);

/// When its withdrawal was applied, and when its mail left.
struct Story {
    withdrawn: Duration,
    mailed: Option<Duration>,
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    build_binaries()?;
    let mut failed = vec![];
    for backend in Backend::all() {
        for load in &options.loads {
            let mut wrong = vec![];
            for _ in 0..TRIES_MAX {
                let tried = attempt(backend, *load, &options).await;
                wrong = tried.unwrap_or_else(|error| vec![error.to_string()]);
                if wrong.is_empty() {
                    break;
                }
                println!("  not so: {}", wrong.join("; "));
            }
            failed.extend(wrong.into_iter().map(|what| format!("{backend} {load:?}: {what}")));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

/// Measures the modest partner alone and beside one load, and says what does not hold.
async fn attempt(backend: Backend, load: Load, options: &Options) -> Result<Vec<String>, Box<dyn Error>> {
    let mut processes = Processes::new(backend)?;
    let mails = match smtp_server::python() {
        Some(python) => Some(SmtpServer::start(&python, &["--seconds", MAIL_SECONDS]).await),
        None => None,
    };
    if let Some(mails) = &mails {
        let url = format!("smtp://127.0.0.1:{}?tls=none", mails.port);
        processes.agreements.set(&["--smtp", &url]);
    }
    processes.start().await?;
    actions::register_partners_as(&processes.as_caller(fixtures::operator())).await?;
    let greedy = Greedy::new(load, &processes, options).await?;
    let modest = Modest::new(&processes).await?;
    let length = Duration::from_secs(options.seconds);

    // What fills once (caches, connections) is full after the first.
    modest.measure(options, lasts(length / 2)).await?;
    let alone = modest.measure(options, lasts(length)).await?;
    let running = greedy.begin(load, &processes, options).await?;
    let (began, is_story_over) = (Instant::now(), Cell::new(false));
    let story = async {
        while !running.is_under_way(load, began.elapsed(), options) {
            sleep(POLL_INTERVAL).await;
        }
        let story = modest.story(load == Load::Import).await;
        is_story_over.set(true);
        story
    };
    let is_over = || began.elapsed() >= length && running.is_over() && is_story_over.get();
    let (beside, story) = tokio::join!(modest.measure(options, is_over), story);
    let (beside, story, took) = (beside?, story?, began.elapsed());
    let progress = running.end().await?;
    println!(
        "{backend} {load:?}, {progress} in {took:.1?}\n  alone:  {alone}\n  beside: {beside}\n  {story}"
    );
    Ok(judge(&alone, &beside, &story, options))
}

/// Has something last for a time, beginning now.
fn lasts(length: Duration) -> impl Fn() -> bool {
    let began = Instant::now();
    move || began.elapsed() >= length
}

/// What must not be.
fn judge(alone: &Figures, beside: &Figures, story: &Story, options: &Options) -> Vec<String> {
    let mut failed = vec![];
    for ((what, alone), beside) in ["checks", "orders"].into_iter().zip(&alone.0).zip(&beside.0) {
        let kept = beside.part_answered() / alone.part_answered();
        if kept < ANSWERED_MIN {
            let why = beside.refused.as_ref().map(ToString::to_string).unwrap_or_default();
            failed.push(format!("{kept:.2} of the {what} were answered: {why}"));
        }
        let (p99, most) = (beside.p99(), alone.p99() * P99_TIMES + P99_BASE);
        if p99 > most {
            failed.push(format!("{what} took {p99:.1?}, more than {most:.1?}"));
        }
    }
    if story.withdrawn > WITHDRAWN_MAX {
        failed.push(format!("a withdrawal was applied after {:.1?}", story.withdrawn));
    }
    let mailed_max = MAILED_MAX.mul_f64(number(options.rows) / number(MAILED_MAX_ROWS));
    if let Some(mailed) = story.mailed.filter(|mailed| *mailed > mailed_max) {
        failed.push(format!("a mail left after {mailed:.1?}, more than {mailed_max:.1?}"));
    }
    failed
}

impl Modest {
    async fn new(processes: &Processes) -> Result<Self, Status> {
        let caller = processes.as_caller(fixtures::sales(PROVIDER));
        let create = async |name: &str| actions::create_customer(&caller, name, "FR", None).await;
        let mut customers = vec![];
        for n in 0..CUSTOMERS {
            customers.push(create(&format!("Modest {n}")).await?);
        }
        let (withdrawing, announced) = (create("Withdrawing").await?, create("Announced").await?);
        for customer in &customers {
            actions::attest_now(&caller, customer).await?;
        }
        Ok(Self { caller, customers, withdrawing, announced })
    }

    /// Offers checks and orders until it is over.
    async fn measure(&self, options: &Options, is_over: impl Fn() -> bool) -> Result<Figures, JoinError> {
        let customer = |n: usize| (self.caller.clone(), self.customers[n % self.customers.len()].clone());
        let check = |n| {
            let (caller, customer) = customer(n);
            async move {
                let answer = actions::check(&caller, fixtures::new_check(PROVIDER, &customer)).await?;
                let is_right = answer.decision() == Decision::Allowed;
                if is_right { Ok(()) } else { Err(Status::internal("the gate is closed")) }
            }
        };
        let order = |n| {
            let (caller, customer) = customer(n);
            async move { actions::order(&caller, &customer, None, 5).await.map(drop) }
        };
        let (checks, orders) =
            tokio::try_join!(offer(options.checks, &is_over, check), offer(options.orders, &is_over, order))?;
        Ok(Figures([checks, orders]))
    }

    /// Attests, orders and withdraws for a customer, until the subscription has ended; and, beside that, attests for
    /// another one until its mail has left, where that is asked for.
    async fn story(&self, is_mailed: bool) -> Result<Story, Status> {
        let withdrawn = async {
            let attestation = actions::attest_now(&self.caller, &self.withdrawing).await?;
            let bought = actions::subscribe(&self.caller, &self.withdrawing, None).await?;
            actions::withdraw(&self.caller, &attestation).await?;
            let answered = Instant::now();
            loop {
                let now = actions::get_subscription(&self.caller, &bought.subscription_id).await?;
                if now.state() == SubscriptionState::Cancelled {
                    return Ok(answered.elapsed());
                }
                sleep(POLL_INTERVAL).await;
            }
        };
        let mailed = async {
            if !is_mailed {
                return Ok(None);
            }
            let attestation_id = actions::attest_now(&self.caller, &self.announced).await?;
            let answered = Instant::now();
            loop {
                let request = GetAttestationRequest { attestation_id: attestation_id.clone() };
                let found = self.caller.attestations().get_attestation(request).await?.into_inner();
                let state = found.attestation.unwrap_or_default().notification.unwrap_or_default().state();
                match state {
                    NotificationState::Sent => return Ok(Some(answered.elapsed())),
                    NotificationState::DeadLetter => return Err(Status::internal("a mail was not sent")),
                    _ => sleep(POLL_INTERVAL).await,
                }
            }
        };
        let (withdrawn, mailed) = tokio::try_join!(withdrawn, mailed)?;
        Ok(Story { withdrawn, mailed })
    }
}

/// Offers calls at a fixed rate until it is over, whatever becomes of those before.
async fn offer<F>(
    rate: f64,
    is_over: impl Fn() -> bool,
    call: impl Fn(usize) -> F,
) -> Result<Answers, JoinError>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut times = interval(Duration::from_secs_f64(rate.recip()));
    let mut calls = JoinSet::new();
    let mut offered = 0;
    while !is_over() {
        let (due, call) = (times.tick().await, call(offered));
        calls.spawn(async move {
            let ended = call.await;
            (due.elapsed(), ended)
        });
        offered += 1;
    }
    let mut answers = Answers { offered, latencies: vec![], refused: None };
    while let Some(ended) = calls.join_next().await {
        match ended? {
            (latency, Ok(())) => answers.latencies.push(latency),
            (_, Err(refused)) => answers.refused = Some(refused),
        }
    }
    Ok(answers)
}

impl Answers {
    fn part_answered(&self) -> f64 {
        number(self.latencies.len()) / number(self.offered.max(1))
    }

    fn p99(&self) -> Duration {
        percentile(&self.latencies, 99)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let describe = |answers: &Answers| {
            let (part, p50) = (answers.part_answered() * 100.0, percentile(&answers.latencies, 50));
            format!("{part:.1} % of {} ({p50:.1?} {:.1?})", answers.offered, answers.p99())
        };
        let Self([checks, orders]) = self;
        write!(f, "checks {}, orders {}", describe(checks), describe(orders))
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a withdrawal was applied after {:.1?}", self.withdrawn)?;
        match self.mailed {
            Some(mailed) => write!(f, ", a mail left after {mailed:.1?}"),
            None => Ok(()),
        }
    }
}
