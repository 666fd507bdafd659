//! Growth: the same calls with a thousand to a million customers, memory, size and start at each, what an idle service
//! takes, and what more threads and a second replica add.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tests::Backend;
use tests::processes::{Processes, binary};

use super::calls::Call;
use super::page::Section;
use super::series::{Series, alternate};
use super::world::{BLOCKED_EVERY, World, database_bytes};
use super::{Plan, page};
use crate::load::number;

/// Calls in flight: fewer than one tenant may have.
const IN_FLIGHT: usize = 64;

/// What is measured at each number of customers.
const CALLS: [Call; 4] = [Call::Check, Call::Order, Call::FirstOrders, Call::Orders];

/// The latencies of a call by the number of customers.
pub(super) struct Grown {
    pub call: &'static str,
    pub backend: Backend,
    /// The number of customers, and p99.
    pub points: Vec<(usize, Duration)>,
}

/// Measures each number of customers on each database.
///
/// # Errors
/// What fails.
pub(super) async fn measure(plan: &Plan) -> Result<(Section, Vec<Grown>), Box<dyn Error>> {
    let mut grown = vec![];
    let mut lines = vec![
        "| customers | call | calls/s | p50 | p99 | agreement-svc, order-svc: start | resident | a customer, an order on disk |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|".to_owned(),
    ];
    for backend in Backend::all() {
        let mut points: Vec<Grown> =
            CALLS.iter().map(|call| Grown { call: call.name(), backend, points: vec![] }).collect();
        let sizes = (3..).map(|power| 10_usize.pow(power));
        for customers in sizes.take_while(|customers| *customers <= plan.customers_max) {
            println!("growth: {customers} customers, {backend}");
            let (world, started) = World::start(Processes::new(backend)?, backend, customers, None).await?;
            let world = Arc::new(world);
            // Before the load, whose orders would be counted as those of more customers.
            let disk = disk(&world)?;
            let mut rows = vec![];
            for (call, grown) in CALLS.iter().zip(&mut points) {
                let mut series = Series::new(call.name(), Some(backend), IN_FLIGHT);
                for _ in 0..plan.rounds {
                    series.rounds.push(call.measure(&world, IN_FLIGHT, plan.length).await?);
                }
                grown.points.push((customers, series.median().p99));
                rows.push(series);
            }
            let resident = resident(&world.processes)?;
            for (n, series) in rows.iter().enumerate() {
                let median = series.median();
                let once = match n {
                    0 => format!("{} | {resident} | {disk}", page::starts(&started)),
                    _ => " | | ".into(),
                };
                lines.push(format!(
                    "| {}, {backend} | {} | {} | {} | {} | {once} |",
                    page::count(number(customers)),
                    series.name,
                    page::count(median.rate),
                    page::ms(median.p50),
                    page::ms(median.p99)
                ));
            }
        }
        grown.extend(points);
    }
    let text = format!(
        "Each customer has a relationship, a contact, one attestation and one order of one line, all of which were copied in \
         SQL; calls ask about customers at random, {IN_FLIGHT} in flight. Memory was read after the calls, sizes before them; \
         they count tables and indexes, and neither events nor stored answers."
    );
    Ok((Section { title: "Growth".into(), text, lines, plots: vec!["p99-by-customers".into()] }, grown))
}

/// The bytes of a customer at agreement-svc, and of an order at order-svc.
fn disk(world: &World) -> Result<String, String> {
    let bytes = |process| -> Result<String, String> {
        let customers = u64::try_from(world.customers.max(1)).unwrap_or(u64::MAX);
        let bytes = database_bytes(process)? / customers;
        Ok(page::count(u32::try_from(bytes).map_or(f64::from(u32::MAX), f64::from)))
    };
    Ok(format!("{}, {} bytes", bytes(&world.processes.agreements)?, bytes(&world.processes.orders)?))
}

/// The resident memory of both services.
fn resident(processes: &Processes) -> Result<String, String> {
    let mib = |kib: u32| f64::from(kib) / 1024.0;
    let [agreements, orders] =
        [processes.agreements.memory("VmRSS")?, processes.orders.memory("VmRSS")?].map(mib);
    Ok(format!("{agreements:.1}, {orders:.1} MiB"))
}

/// The binaries, and both services idle and after load.
///
/// # Errors
/// What fails.
pub(super) async fn footprint(plan: &Plan) -> Result<Section, Box<dyn Error>> {
    let mut lines = vec!["| agreement-svc, order-svc | |".to_owned(), "|---|---|".to_owned()];
    let size = |name| -> Result<f64, Box<dyn Error>> {
        let bytes = std::fs::metadata(binary(name)?)?.len();
        Ok(u32::try_from(bytes).map_or(f64::from(u32::MAX), f64::from) / f64::from(1 << 20))
    };
    lines.push(format!("| binaries | {:.1}, {:.1} MiB |", size("agreement-svc")?, size("order-svc")?));
    for backend in Backend::all() {
        println!("footprint: {backend}");
        let (world, started) =
            World::start(Processes::new(backend)?, backend, plan.customers, Some(BLOCKED_EVERY)).await?;
        let world = Arc::new(world);
        lines.push(format!("| start until SERVING, {backend} | {} |", page::starts(&started)));
        lines.push(format!("| resident, idle, {backend} | {} |", resident(&world.processes)?));
        for call in CALLS {
            call.measure(&world, IN_FLIGHT, plan.length).await?;
        }
        lines.push(format!("| resident, after load, {backend} | {} |", resident(&world.processes)?));
    }
    let text = format!(
        "The binaries are those of the profile `{}`, as everything here; the profile `release` is smaller. A start is that of \
         a process on a database that is migrated already; SERVING is polled every 5 ms. The load is one round of each \
         of four calls.",
        tests::processes::profile()?
    );
    Ok(Section { title: "Footprint".into(), text, lines, plots: vec![] })
}

/// Checks and orders a second of services in several shapes, which take turns in each round.
///
/// # Errors
/// What fails.
pub(super) async fn shapes(plan: &Plan, shapes: Vec<Shape>) -> Result<Vec<Series>, Box<dyn Error>> {
    let mut subjects = vec![];
    for Shape { backend, processes, check, order } in shapes {
        println!("{check}, {backend}");
        let (world, _) = World::start(processes, backend, plan.customers, Some(BLOCKED_EVERY)).await?;
        let world = Arc::new(world);
        for (call, name) in [(Call::Check, check), (Call::Order, order)] {
            subjects.push(call.subject(Series::new(name, Some(backend), IN_FLIGHT), &world));
        }
    }
    alternate(subjects, plan).await
}

/// Services to compare with others, and what their rows are called.
pub(super) struct Shape {
    backend: Backend,
    processes: Processes,
    check: &'static str,
    order: &'static str,
}

/// One thread, and the default.
///
/// # Errors
/// What fails.
pub(super) fn threads() -> Result<Vec<Shape>, Box<dyn Error>> {
    let mut shapes = vec![];
    for backend in Backend::all() {
        let mut processes = Processes::new(backend)?;
        for process in [&mut processes.agreements, &mut processes.orders] {
            process.set(&["--worker-threads", "1"]);
        }
        let (check, order) = ("CheckEligibility, one thread", "CreateOrder, one thread");
        shapes.push(Shape { backend, processes, check, order });
        let (check, order) =
            ("CheckEligibility, a thread for each core", "CreateOrder, a thread for each core");
        shapes.push(Shape { backend, processes: Processes::new(backend)?, check, order });
    }
    Ok(shapes)
}

/// One and two processes of each service on one PostgreSQL.
///
/// # Errors
/// What fails.
pub(super) fn replicas() -> Result<Vec<Shape>, Box<dyn Error>> {
    let backend = Backend::Postgres;
    let (check, order) = ("CheckEligibility, one of each", "CreateOrder, one of each");
    let one = Shape { backend, processes: Processes::new(backend)?, check, order };
    let (check, order) = ("CheckEligibility, two of each", "CreateOrder, two of each");
    Ok(vec![one, Shape { backend, processes: Processes::replicated()?, check, order }])
}
