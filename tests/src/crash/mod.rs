//! Disturbs both services under load, again and again, and compares what is stored with what was answered: kills
//! them, stops one of two, or takes the database from under them.

mod checks;
mod load;
mod order_events;
mod rows;

use std::fmt;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use proto::agreement::WatchEventsRequest;
use proto::agreement::watch_events_response::Item;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::Code;

use self::checks::{Agreements, Orders, check};
use self::load::{Done, Load};
use self::order_events::OrderEvents;
use crate::databases::{Backend, State};
use crate::fixtures;
use crate::harness::postgres_servers::FailoverPair;
use crate::history::History;
use crate::processes::{Processes, verify};

/// Clients that call at the same time.
const CLIENTS: usize = 6;

/// How long to wait for background work: longer than the minute for which a process that was killed
/// has claimed what it was at.
const SETTLE_MAX: Duration = Duration::from_secs(90);

/// How long it may take after the database has gone until everything is served from its standby.
const RESUME_MAX: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub backend: Backend,
    pub rounds: usize,
    pub seed: u64,
    /// Whether to wait until the last mail is written and the last first purchase reported. Otherwise it
    /// suffices that those missing can be seen to be queued: one that was claimed by a process that was
    /// killed takes a minute.
    pub until_all_is_sent: bool,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub rounds: usize,
    pub agreements_killed: usize,
    pub orders_killed: usize,
    pub calls: usize,
    /// Calls that were sent again because their outcome was unknown.
    pub retried: usize,
    pub orders: usize,
    /// Attestations that orders brought along, of those accepted and of those refused afterwards.
    pub brought: usize,
    pub withdrawals: usize,
    pub subscriptions_cancelled: usize,
    /// Relationships that ended.
    pub relationship_ends: usize,
    /// Subscriptions that stopped renewing because of that.
    pub running_out: usize,
    /// Customers whose first purchase was reported.
    pub reported: usize,
    /// How often everything was checked.
    pub checks: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds; agreement-svc killed {} times, order-svc {}; {} calls, {} of them retried; {} orders, \
             {} attestations brought by orders; {} withdrawals, {} subscriptions cancelled by them; {} \
             relationships ended, {} subscriptions running out by that; {} first purchases reported; everything \
             checked {} times",
            self.rounds,
            self.agreements_killed,
            self.orders_killed,
            self.calls,
            self.retried,
            self.orders,
            self.brought,
            self.withdrawals,
            self.subscriptions_cancelled,
            self.relationship_ends,
            self.running_out,
            self.reported,
            self.checks
        )
    }
}

/// What is done to the services in a round, while clients call them.
enum Disturbance {
    /// One of them or both are killed, and started again.
    Kill,
    /// Both replicas stay for a while, then one of each service is stopped, and started again. In the rounds
    /// before, nothing is done to them.
    Leave { after_rounds: usize },
    /// The database fails over to its standby, and nothing else is done.
    FailOver(FailoverPair),
}

/// How long calls took to succeed again after the database was gone.
#[derive(Clone, Copy, Debug)]
pub struct FailedOver {
    /// Until the standby was the primary.
    pub promoted: Duration,
    /// Until the first order was accepted that was asked for after the kill, and the first change at agreement-svc.
    pub order: Duration,
    pub agreement: Duration,
}

/// Kills the services in all rounds on one database.
///
/// # Errors
/// What does not hold, with the seed, and where logs and SQLite files are left behind.
pub async fn run(plan: Plan) -> Result<Summary, String> {
    soak(Processes::new(plan.backend)?, Disturbance::Kill, plan).await.map(|soak| soak.summary)
}

/// Runs two replicas of each service on PostgreSQL, with clients balanced over them: in the first half of the rounds
/// undisturbed, and then with one of each stopped and started again.
///
/// # Errors
/// As [`run`].
pub async fn run_replicas(rounds: usize, seed: u64) -> Result<Summary, String> {
    let plan = Plan { backend: Backend::Postgres, rounds, seed, until_all_is_sent: true };
    let leave = Disturbance::Leave { after_rounds: rounds / 2 };
    soak(Processes::replicated()?, leave, plan).await.map(|soak| soak.summary)
}

/// Runs two replicas of each service on a PostgreSQL that fails over to a synchronous standby.
///
/// # Errors
/// As [`run`].
pub async fn run_fail_over(seed: u64, until_all_is_sent: bool) -> Result<(Summary, FailedOver), String> {
    let pair = FailoverPair::start()?;
    let databases = [pair.database("agreements")?, pair.database("orders")?];
    let processes = Processes::replicated_on(databases, State::new()?)?;
    let plan = Plan { backend: Backend::Postgres, rounds: 1, seed, until_all_is_sent };
    let soak = soak(processes, Disturbance::FailOver(pair), plan).await?;
    let failed_over = soak.failed_over.ok_or("nothing failed over")?;
    Ok((soak.summary, failed_over))
}

async fn soak(processes: Processes, disturbance: Disturbance, plan: Plan) -> Result<Soak, String> {
    let mut soak = Soak {
        load: Load::new(processes.as_caller(fixtures::operator())),
        processes,
        disturbance,
        failed_over: None,
        random: StdRng::seed_from_u64(plan.seed),
        history: History::default(),
        order_events: OrderEvents::default(),
        heads: vec![],
        summary: Summary::default(),
    };
    match soak.run(plan).await {
        Ok(()) => Ok(soak),
        Err(why) => {
            let folder = soak.processes.leave_behind();
            Err(format!("{why}\n{plan:?}; replay with --seed {}; see {}", plan.seed, folder.display()))
        }
    }
}

struct Soak {
    load: Load,
    processes: Processes,
    disturbance: Disturbance,
    failed_over: Option<FailedOver>,
    random: StdRng,
    history: History,
    /// What order-svc's stream has had so far, read on after each round.
    order_events: OrderEvents,
    /// The ends of the history, as they were before each kill.
    heads: Vec<String>,
    summary: Summary,
}

impl Soak {
    async fn run(&mut self, plan: Plan) -> Result<(), String> {
        self.processes.start().await?;
        self.load.begin(plan.rounds).await?;
        for _ in 0..plan.rounds {
            self.round().await?;
            self.check().await?;
            self.summary.rounds += 1;
            if matches!(self.disturbance, Disturbance::Leave { after_rounds } if after_rounds == self.summary.rounds)
            {
                self.settle(plan).await?;
                self.check_tried_once()?;
            }
        }
        self.settle(plan).await?;
        self.check().await?;
        self.read_order_events_from_start().await?;
        self.count();
        Ok(())
    }

    /// Drives load, kills while it runs, waits until every client has its answers, and has them repeat what
    /// was done.
    async fn round(&mut self) -> Result<(), String> {
        let first = self.load.asked().len();
        let (stop, stopped) = watch::channel(false);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| self.load.run(StdRng::from_rng(&mut self.random), stopped.clone()))
            .collect();
        let round = self.summary.rounds;
        let (processes, random, heads, summary) =
            (&mut self.processes, &mut self.random, &mut self.heads, &mut self.summary);
        let (load, disturbance, failed_over) = (&self.load, &self.disturbance, &mut self.failed_over);
        let disturbing = async {
            match disturbance {
                Disturbance::Kill => {
                    kill(processes, random, heads, summary).await?;
                    // Often again, while they have just come back and clients retry.
                    if random.random_bool(0.3) {
                        kill(processes, random, heads, summary).await?;
                    }
                }
                Disturbance::Leave { after_rounds } if round < *after_rounds => {
                    pause(random, 300..800).await;
                }
                Disturbance::Leave { .. } => leave(processes, random, summary).await?,
                Disturbance::FailOver(pair) => *failed_over = Some(fail_over(pair, load, random).await?),
            }
            pause(random, 20..200).await;
            stop.send_replace(true);
            Ok(())
        };
        tokio::try_join!(try_join_all(clients), disturbing)?;
        self.load.repeat_since(first).await
    }

    /// Checks everything that is stored.
    async fn check(&mut self) -> Result<(), String> {
        self.processes.check_running()?;
        let orders = Orders::read(&mut rows::snapshot(self.processes.orders.database())?)?;
        self.read_history().await?;
        self.read_order_events(&orders).await?;
        let agreements = Agreements::read(&mut rows::snapshot(self.processes.agreements.database())?)?;
        verify(self.processes.agreements.database(), &self.heads)?;
        check(&agreements, &orders, &self.history, &self.load.asked(), &self.processes.mail_folder())?;
        self.summary.subscriptions_cancelled = orders.changed_because("AGREEMENT_WITHDRAWN");
        self.summary.running_out = orders.changed_because("RELATIONSHIP_ENDED");
        self.summary.reported = orders.reported();
        self.summary.brought = agreements.brought();
        self.summary.checks += 1;
        Ok(())
    }

    /// That no replica sent a mail or a report that another one sends, while nothing failed.
    fn check_tried_once(&mut self) -> Result<(), String> {
        let mails =
            rows::tried_again(&mut rows::snapshot(self.processes.agreements.database())?, "notification")?;
        let reports =
            rows::tried_again(&mut rows::snapshot(self.processes.orders.database())?, "purchase_report")?;
        match (mails, reports) {
            (0, 0) => Ok(()),
            _ => Err(format!("{mails} mails and {reports} reports were sent more than once")),
        }
    }

    /// Reads on to the end of the history.
    async fn read_history(&mut self) -> Result<(), String> {
        let (head, _) = rows::head(&mut rows::snapshot(self.processes.agreements.database())?)?;
        let request =
            WatchEventsRequest { after_revision: self.history.head(), ..WatchEventsRequest::default() };
        let watcher = self.processes.as_caller(fixtures::operator());
        let began = Instant::now();
        let watched = loop {
            match watcher.events().watch_events(request.clone()).await {
                // Connections that died with the primary are found dead one by one.
                Err(status) if status.code() == Code::Unavailable && began.elapsed() < RESUME_MAX => {}
                watched => break watched.map_err(|error| error.to_string())?,
            }
        };
        let mut events = watched.into_inner();
        while self.history.head() < head {
            let next = events.message().await.map_err(|error| error.to_string())?;
            // A checkpoint would say that there is no more.
            let Some(Item::Event(event)) = next.and_then(|next| next.item) else {
                return Err(format!("the history ends at {} of {head}", self.history.head()));
            };
            self.history.apply(event).map_err(|why| format!("the history: {why}"))?;
        }
        Ok(())
    }

    /// Reads on in order-svc's history until it has had all that was stored.
    async fn read_order_events(&mut self, stored: &Orders) -> Result<(), String> {
        let watcher = self.processes.as_caller(fixtures::operator());
        self.order_events.read_on(&watcher, stored).await?;
        // Background work goes on, so that what is in the stream may have been stored since.
        let now = Orders::read(&mut rows::snapshot(self.processes.orders.database())?)?;
        self.order_events.check_stored(&now)
    }

    /// That a watcher from the beginning hears once and in the same order what the one that resumed after each round heard.
    async fn read_order_events_from_start(&self) -> Result<(), String> {
        let stored = Orders::read(&mut rows::snapshot(self.processes.orders.database())?)?;
        let watcher = self.processes.as_caller(fixtures::operator());
        let mut anew = OrderEvents::default();
        anew.read_on(&watcher, &stored).await?;
        anew.check_continues(&self.order_events)
    }

    /// Waits for background work.
    async fn settle(&mut self, plan: Plan) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let agreements = Agreements::read(&mut rows::snapshot(self.processes.agreements.database())?)?;
            let (head, _) = rows::head(&mut rows::snapshot(self.processes.agreements.database())?)?;
            let orders = Orders::read(&mut rows::snapshot(self.processes.orders.database())?)?;
            let (mails, cursor, purchases) = (agreements.queued(), orders.cursor, orders.unreported());
            let is_all_sent = (mails, purchases) == (0, 0);
            if cursor == head && (is_all_sent || !plan.until_all_is_sent) {
                return Ok(());
            }
            if began.elapsed() > SETTLE_MAX {
                return Err(format!(
                    "I3, I6: {cursor} of {head} events are applied, {mails} mails queued, {purchases} first \
                     purchases not reported"
                ));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn count(&mut self) {
        let asked = self.load.asked();
        self.summary.calls = asked.len();
        self.summary.retried = asked.iter().filter(|one| one.unknown > 0).count();
        let is_order = |done: &Done| matches!(done, Done::CreateOrder(_));
        let orders = asked.iter().filter(|one| one.done().any(|(_, done)| is_order(done)));
        self.summary.orders = orders.count();
        self.summary.withdrawals = self.history.withdrawals().len();
        self.summary.relationship_ends = self.history.relationship_ends().len();
    }
}

/// Kills one service or both at a random moment, and starts them again.
async fn kill(
    processes: &mut Processes,
    random: &mut StdRng,
    heads: &mut Vec<String>,
    summary: &mut Summary,
) -> Result<(), String> {
    pause(random, 20..400).await;
    let (revision, hash) = rows::head(&mut rows::snapshot(processes.agreements.database())?)?;
    heads.push(format!("{revision}:{hash}"));
    let which = random.random_range(0..3);
    if which != 0 {
        processes.agreements.kill()?;
        summary.agreements_killed += 1;
    }
    if which != 1 {
        processes.orders.kill()?;
        summary.orders_killed += 1;
    }
    pause(random, 0..60).await;
    processes.start().await
}

/// Stops one of each service, both of them the first or the second, or one each, while the others go on.
async fn leave(processes: &mut Processes, random: &mut StdRng, summary: &mut Summary) -> Result<(), String> {
    pause(random, 100..400).await;
    let Some((agreements, orders)) = &mut processes.replicas else {
        return Err("there is one of each".into());
    };
    // In a thread that may wait: the process ends when its last call has.
    tokio::task::block_in_place(|| {
        let agreements = if random.random_bool(0.5) { agreements } else { &mut processes.agreements };
        let orders = if random.random_bool(0.5) { orders } else { &mut processes.orders };
        agreements.stop().and(orders.stop())
    })?;
    summary.agreements_killed += 1;
    summary.orders_killed += 1;
    pause(random, 200..600).await;
    processes.start().await
}

/// Kills the primary and promotes the standby; then waits until both services do again what they are asked.
async fn fail_over(pair: &FailoverPair, load: &Load, random: &mut StdRng) -> Result<FailedOver, String> {
    pause(random, 1000..2000).await;
    tokio::task::block_in_place(|| pair.kill_primary())?;
    let killed = Instant::now();
    tokio::task::block_in_place(|| pair.promote())?;
    let promoted = killed.elapsed();
    while killed.elapsed() < RESUME_MAX {
        sleep(Duration::from_millis(10)).await;
        let first = |is_right: fn(&Done) -> bool| {
            let asked = load.asked();
            let since = asked.iter().filter(|one| one.first_sent > killed).flat_map(load::Asked::done);
            since.filter(|(_, done)| is_right(done)).map(|(at, _)| at - killed).min()
        };
        let order = first(|done| matches!(done, Done::CreateOrder(_)));
        let agreement =
            first(|done| matches!(done, Done::CreateAttestation(_) | Done::WithdrawAttestation(_)));
        if let Some((order, agreement)) = order.zip(agreement) {
            pause(random, 1000..2000).await;
            return Ok(FailedOver { promoted, order, agreement });
        }
    }
    Err(format!("{RESUME_MAX:?} after the primary was killed, not everything is served again"))
}

async fn pause(random: &mut StdRng, milliseconds: std::ops::Range<u64>) {
    sleep(Duration::from_millis(random.random_range(milliseconds))).await;
}
