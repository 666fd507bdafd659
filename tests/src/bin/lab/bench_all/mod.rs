//! `cargo lab bench-all`: everything that is measured, in one run, as a page (BENCHMARKS.md) with plots (docs/benchmarks).
//!
//! The services run as processes of the real binaries with their default settings; as in all tests, the bound on changes of
//! acceptances is out of reach, and digests of requests have a key. This process offers the load, on the same machine.
//! `floors` has what the same work takes without the services, `calls` the calls, `growth` what depends on the number of
//! customers; `world` starts and fills services, `rows` describes what they store, `series` alternates rounds, `machine`,
//! `page` and `plots` report.

mod calls;
mod floors;
mod growth;
mod machine;
mod page;
mod plots;
mod rows;
mod series;
mod world;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tests::Backend;
use tests::processes::{Processes, build_binaries};

use self::calls::{Call, FanOut};
use self::page::{PLOTS, Section};
use self::plots::Plot;
use self::series::{Floor, Series, alternate};
use self::world::{BLOCKED_EVERY, World};
use crate::bench_withdrawal;

#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each subject is measured in a round, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    round_ms: u64,
    /// The most customers that growth is measured with.
    #[arg(long, default_value_t = 1_000_000)]
    customers_max: usize,
    /// One short round of everything, with little data: whether it runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// The folder of the page and its plots, in place of the repository.
    #[arg(long, conflicts_with = "only")]
    into: Option<PathBuf>,
    /// Measures these parts alone, prints their tables and writes no file.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Of the tables Floors and Calls, and those of Threads and Replicas, measures rows alone whose name, as `CreateOrder, SQLite`,
    /// contains this text. Withdrawal, TLS and tokens, and WatchEvents are left out.
    #[arg(long, requires = "only", default_value = "")]
    rows: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Floors,
    Calls,
    Import,
    Growth,
    Footprint,
    Threads,
    Replicas,
}

/// How much is measured.
pub(super) struct Plan {
    rounds: usize,
    length: Duration,
    /// What the name of a row contains that is measured beside others.
    named: String,
    /// Customers, but where their number is what is varied.
    customers: usize,
    customers_max: usize,
    rows: usize,
    changes: usize,
    watchers: &'static [usize],
    /// Watchers that two processes share.
    watchers_of_two: usize,
    withdrawal: bench_withdrawal::Options,
}

impl Plan {
    fn new(options: &Options) -> Self {
        if options.quick {
            return Self {
                rounds: 1,
                length: Duration::from_millis(200),
                named: options.rows.clone(),
                customers: 1000,
                customers_max: 1000,
                rows: 500,
                changes: 10,
                watchers: &[1, 10],
                watchers_of_two: 20,
                withdrawal: bench_withdrawal::Options { subscriptions: 20, repetitions: 1 },
            };
        }
        Self {
            rounds: options.rounds,
            length: Duration::from_millis(options.round_ms),
            named: options.rows.clone(),
            customers: 5000,
            customers_max: options.customers_max,
            rows: 5000,
            changes: 100,
            // A process has 64 at most, and order-svc is one of them.
            watchers: &[1, 10, 60],
            watchers_of_two: 100,
            withdrawal: bench_withdrawal::Options { subscriptions: 1000, repetitions: options.rounds },
        }
    }
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    build_binaries()?;
    if !Backend::Postgres.is_available() {
        println!("NOT MEASURED ON POSTGRESQL: TEST_POSTGRES_URL is not set");
    }
    let plan = Plan::new(&options);
    let has = |part| options.only.is_empty() || options.only.contains(&part);
    let machine = machine::lines()?;
    let (mut sections, mut plots) = (vec![], vec![]);
    if has(Part::Floors) || has(Part::Calls) {
        let (more, more_plots) = floors_and_calls(&plan, has(Part::Floors), has(Part::Calls)).await?;
        sections.extend(more);
        plots.extend(more_plots);
    }
    if has(Part::Import) {
        sections.push(imports(&plan).await?);
    }
    if has(Part::Growth) {
        let (section, grown) = growth::measure(&plan).await?;
        sections.push(section);
        plots.push(plots::of_growth(&grown));
    }
    if has(Part::Footprint) {
        sections.push(growth::footprint(&plan).await?);
    }
    if has(Part::Threads) {
        let series = growth::shapes(&plan, growth::threads()?).await?;
        let text = "Both services with `--worker-threads 1`, and with their default, a thread for each core. The load and the \
                    database share the cores.";
        sections.push(Section::of_series("Threads", text, &series.iter().collect::<Vec<_>>(), &series));
    }
    if has(Part::Replicas) && Backend::Postgres.is_available() {
        let series = growth::shapes(&plan, growth::replicas()?).await?;
        let text = "Two processes of each service on one PostgreSQL, each order-svc beside an agreement-svc of its own, and the \
                    calls spread over both. All of them, the database and the load share the machine's cores.";
        sections.push(Section::of_series("Replicas", text, &series.iter().collect::<Vec<_>>(), &series));
    }
    if !options.only.is_empty() {
        sections.iter().for_each(|section| println!("\n{}", section.markdown()));
        return Ok(());
    }
    let into = options.into.clone().unwrap_or_else(root);
    let folder = into.join(PLOTS);
    std::fs::create_dir_all(&folder)?;
    plots.iter().try_for_each(|plot| plot.draw(&folder))?;
    page::write(&into.join("BENCHMARKS.md"), &head(&options, &plan, &machine)?, &sections)?;
    println!("written to {}: BENCHMARKS.md and {} plots", into.display(), plots.len());
    Ok(())
}

/// The root of the repository.
fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_owned()
}

/// How the page begins: what was run, and where.
fn head(options: &Options, plan: &Plan, machine: &[String]) -> Result<String, Box<dyn Error>> {
    let mut arguments = vec!["cargo lab bench-all".to_owned()];
    if options.quick {
        arguments.push("--quick".into());
    } else {
        let (rounds, round_ms, most) = (options.rounds, options.round_ms, options.customers_max);
        arguments.push(format!("--rounds {rounds} --round-ms {round_ms} --customers-max {most}"));
    }
    Ok(format!(
        "# Benchmarks\n\nMade by `{}`, in the profile `{}`.\n\nServices, database and load share the machine, so figures depend \
         on it; the fractions of a floor, which was measured in the same run, depend on it less. Each figure is the median of {} \
         rounds of {} ms; p50 and p99 are those of the median round. The rounds of all rows of a table alternate, but for Import, Growth, \
         Withdrawal, WatchEvents and Footprint. Services have their default settings, but for the bound on changes of acceptances and \
         a key for digests of requests. A single call in flight uses one connection; more calls share {}.\n\n{}\n",
        arguments.join(" "),
        tests::processes::profile()?,
        plan.rounds,
        plan.length.as_millis(),
        world::CONNECTIONS,
        machine.join("\n")
    ))
}

/// Floors and calls take turns in each round; then come what changes the databases for good, and what runs over TLS.
async fn floors_and_calls(
    plan: &Plan,
    with_floors: bool,
    with_calls: bool,
) -> Result<(Vec<Section>, Vec<Plot>), Box<dyn Error>> {
    let mut worlds = vec![];
    for backend in Backend::all() {
        let processes = Processes::new(backend)?;
        let (world, _) = World::start(processes, backend, plan.customers, Some(BLOCKED_EVERY)).await?;
        worlds.push(Arc::new(world));
    }
    let mut subjects = vec![];
    if with_floors {
        subjects.extend(floors::echoes()?);
        for world in &worlds {
            subjects.extend(floors::of_database(world)?);
        }
    }
    let floors_end = subjects.len();
    if with_calls {
        worlds.iter().for_each(|world| subjects.extend(calls::subjects(world)));
    }
    let all = alternate(subjects, plan).await?;
    let (floors, calls): (Vec<_>, Vec<_>) =
        (all[..floors_end].iter().collect(), all[floors_end..].iter().collect());
    let (mut sections, mut plots) = (vec![], vec![]);
    if with_floors {
        sections.push(Section::of_series("Floors", FLOORS, &floors, &all));
        if plan.named.is_empty() {
            sections.push(withdrawal(plan).await?);
        }
    }
    if with_calls {
        let mut section = Section::of_series("Calls", CALLS, &calls, &all);
        plots = plots::of_calls(&calls);
        section.plots = plots.iter().map(|plot| plot.name.clone()).collect();
        sections.push(section);
    }
    if with_calls && plan.named.is_empty() {
        sections.push(secured(plan).await?);
        sections.push(watched(plan, &worlds).await?);
    }
    Ok((sections, plots))
}

async fn watched(plan: &Plan, worlds: &[Arc<World>]) -> Result<Section, Box<dyn Error>> {
    let mut fan = FanOut::new();
    for world in worlds {
        for watchers in plan.watchers {
            fan.add(world, *watchers, plan.changes).await?;
        }
    }
    let backend = Backend::Postgres;
    if backend.is_available() {
        let (world, _) = World::start(Processes::replicated()?, backend, plan.customers, None).await?;
        fan.add(&world, plan.watchers_of_two, plan.changes).await?;
    }
    Ok(fan.section(plan.changes))
}

async fn imports(plan: &Plan) -> Result<Section, Box<dyn Error>> {
    let mut imports = vec![];
    for backend in Backend::all() {
        let (world, _) = World::start(Processes::new(backend)?, backend, plan.customers, None).await?;
        imports.push(calls::import(&world, plan.rows, plan.rounds).await?);
    }
    let text = format!("One stream of {} rows, an attestation each, all of which are stored.", plan.rows);
    Ok(Section::of_series("Import", &text, &imports.iter().collect::<Vec<_>>(), &imports))
}

const FLOORS: &str = "An echo is a service of tonic on one thread that always gives the same answer; the nested one first calls \
                      the other over one channel. The rows of a check are read by pgbench with one statement, those of an order \
                      are written by pgbench in one pipelined transaction, and on SQLite by one writer with prepared statements and a \
                      durable commit for 64 orders; for these rows, \"in flight\" is the number of clients, and latencies are those of \
                      statements and transactions.";

const CALLS: &str = "The fraction compares the rate with that of the floor: of an echo with as many calls in flight, or of the \
                     fastest row of the other floors. \"A and B together\" is the rate at which a call would take the time of one A \
                     and one B. A call that a service refused for load counts as refused and not in the rate.";

/// A check and an order over mutual TLS with signed tokens, and without either.
async fn secured(plan: &Plan) -> Result<Section, Box<dyn Error>> {
    const IN_FLIGHT: usize = 64;
    let mut subjects = vec![];
    for backend in Backend::all() {
        println!("TLS and tokens: {backend}");
        for (processes, is_secured) in
            [(Processes::new(backend)?, false), (Processes::secured(backend)?, true)]
        {
            let (world, _) = World::start(processes, backend, plan.customers, Some(BLOCKED_EVERY)).await?;
            let world = Arc::new(world);
            for (call, secured) in
                [(Call::Check, "CheckEligibility, secured"), (Call::Order, "CreateOrder, secured")]
            {
                let name = if is_secured { secured } else { call.name() };
                let mut series = Series::new(name, Some(backend), IN_FLIGHT);
                series.floors = is_secured.then_some(Floor::SameInFlight(call.name())).into_iter().collect();
                subjects.push(call.subject(series, &world));
            }
        }
    }
    let all = alternate(subjects, plan).await?;
    let text = "Mutual TLS and signed tokens on both services (secured), beside the same calls without either, which are the floor.";
    Ok(Section::of_series("TLS and tokens", text, &all.iter().collect::<Vec<_>>(), &all))
}

/// A withdrawal beside its floor.
async fn withdrawal(plan: &Plan) -> Result<Section, Box<dyn Error>> {
    let mut lines =
        vec!["| ending subscriptions | median | times the floor |".to_owned(), "|---|---|---|".to_owned()];
    for backend in Backend::all() {
        println!("withdrawal: {backend}");
        let rows = bench_withdrawal::measure(backend, &plan.withdrawal).await?;
        lines.extend(rows.iter().map(bench_withdrawal::Row::line));
    }
    let text = format!(
        "One withdrawal that ends {} subscriptions of one customer, until its report can be read; both services run in one \
         process here. The floor is the bare transaction on the same tables.",
        plan.withdrawal.subscriptions
    );
    Ok(Section { title: "Withdrawal".into(), text, lines, plots: vec![] })
}
