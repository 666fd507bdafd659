//! The floors: what the same work takes without the services. A bare echo and a nested one stand for the calls, pgbench and
//! rusqlite for the rows that an order and a check take.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::database::Url;
use order_svc::config::Storage;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use tests::databases::behind;
use tests::fixtures::{self, DIRECT};
use tests::{As, Backend, actions};

use super::calls::IN_FLIGHT;
use super::rows::{CUSTOMER, NUMBER_BASE, ORDER_TABLES, customer_id};
use super::series::{Figures, Measuring, Series, Subject};
use super::world::{CONNECTIONS, World};
use crate::bench_gate::{connect, start_echo};
use crate::load::{number, percentile, rate};

pub(super) const ECHO: &str = "bare echo";
pub(super) const NESTED: &str = "nested echo";
pub(super) const ONE_PAIR: &str = "rows of a check, a pair a statement";
pub(super) const MANY_PAIRS: &str = "rows of a check, 64 pairs a statement";
pub(super) const ORDERS_64: &str = "rows of an order, 64 orders a transaction";
const ORDERS_16: &str = "rows of an order, 16 orders a transaction";

/// Clients of pgbench that write.
const CLIENTS: [usize; 3] = [1, 2, 4];
/// Clients of pgbench that read: the connections that a service has.
const READERS: usize = 8;
/// Pairs of a statement that reads many.
const PAIRS: usize = 64;

/// The columns that a check reads, of the same tables and by the same keys.
const CHECK_COLUMNS: &str = "SELECT c.id, p.id, \
    (SELECT min(r.reseller_id) FROM relationship r WHERE r.customer_id = c.id AND r.partner_id = p.id AND r.ended_at IS NULL), \
    c.country, c.cloud, c.first_purchase_at, c.acceptance_revision, \
    (SELECT value FROM revision), (SELECT max(revision) FROM template), \
    a.id, a.kind, a.agreement_type, a.template_id, a.template_version, a.agreed_at";
const CHECK_TABLES: &str = "LEFT JOIN acceptance a ON a.customer_id = c.id AND (a.partner_id = p.id OR a.partner_id = '') \
    AND a.superseded_at IS NULL AND a.withdrawn_at IS NULL";

/// The echoes at each number of calls in flight.
///
/// # Errors
/// An echo that does not start.
pub(super) fn echoes() -> Result<Vec<Subject>, Box<dyn Error>> {
    let echo = start_echo(None)?;
    let nested = start_echo(Some(echo))?;
    let mut subjects = vec![];
    for (name, address) in [(ECHO, echo), (NESTED, nested)] {
        let all: Arc<[As]> = connect(CONNECTIONS, address, address, &fixtures::service()).into();
        for in_flight in IN_FLIGHT {
            let all = Arc::clone(&all);
            subjects.push(Subject::calls(Series::new(name, None, in_flight), move |number| {
                let all = Arc::clone(&all);
                async move {
                    let connections = if in_flight == 1 { 1 } else { all.len() };
                    let request = fixtures::new_check(DIRECT, &customer_id(number % 1000));
                    actions::check(&all[number % connections], request).await.map(drop)
                }
            }));
        }
    }
    Ok(subjects)
}

/// The floors of a database.
///
/// # Errors
/// What cannot be prepared.
pub(super) fn of_database(world: &World) -> Result<Vec<Subject>, Box<dyn Error>> {
    match world.backend {
        Backend::Sqlite => Ok(vec![sqlite_orders(world)?]),
        Backend::Postgres => {
            // The service's own events are numbered up from 1.
            behind(world.processes.orders.database(), "CREATE SEQUENCE floor_event INCREMENT -1")?;
            let mut subjects = vec![
                pgbench(world, ONE_PAIR, "pairs", READERS, 1, one_pair(world.customers))?,
                pgbench(world, MANY_PAIRS, "pairs", READERS, PAIRS, many_pairs(world.customers))?,
            ];
            for (name, orders) in [(ORDERS_64, 64), (ORDERS_16, 16)] {
                for clients in CLIENTS {
                    let script = postgres_orders(world, orders, clients);
                    subjects.push(pgbench(world, name, "orders", clients, orders, script)?);
                }
            }
            Ok(subjects)
        }
    }
}

fn one_pair(customers: usize) -> String {
    format!(
        "\\set n random(1, {customers})\n{CHECK_COLUMNS} FROM customer c JOIN partner p ON p.id = '{DIRECT}' {CHECK_TABLES} \
         WHERE c.id = '{CUSTOMER}' || ({NUMBER_BASE} + :n);\n"
    )
}

fn many_pairs(customers: usize) -> String {
    // Strides that share no factor with the number of customers name a customer once only.
    format!(
        "\\set n random(1, {customers})\n{CHECK_COLUMNS} FROM unnest((SELECT array_agg('{CUSTOMER}' || ({NUMBER_BASE} + 1 + \
         (:n + i * 7919) % {customers})) FROM generate_series(1, {PAIRS}) i)) AS asked(id) JOIN customer c ON c.id = asked.id \
         JOIN partner p ON p.id = '{DIRECT}' {CHECK_TABLES};\n"
    )
}

/// One transaction that writes the rows of so many orders, sent at once. Each client has customers of its own, and takes
/// their fences in the order of their ids.
fn postgres_orders(world: &World, orders: usize, clients: usize) -> String {
    let share = world.customers / clients;
    let last = orders - 1;
    let numbers = format!("generate_series(0, {last}) i");
    let customer = format!("'{CUSTOMER}' || ({NUMBER_BASE} + :first + i) AS customer_id");
    let [fence, request, rest @ ..] = &ORDER_TABLES;
    let fences =
        fence.copy(&world.original, &format!("(SELECT {customer} FROM {numbers} ORDER BY i)"), "true");
    let requests = request.copy(
        &world.original,
        &format!("(SELECT gen_random_uuid()::text AS request_id FROM {numbers})"),
        "true",
    );
    let copies: Vec<String> = rest.iter().map(|table| table.copy(&world.original, "made", "true")).collect();
    let (copies, report) = copies.split_at(copies.len() - 1);
    let copies: Vec<String> = (0..).zip(copies).map(|(n, copy)| format!("copy_{n} AS ({copy})")).collect();
    let first_max = share.saturating_sub(orders).max(1);
    format!(
        "\\set first :client_id * {share} + random(1, {first_max})\n\\startpipeline\nBEGIN;\n{fences};\n{requests};\n\
         WITH made AS MATERIALIZED (SELECT gen_random_uuid()::text AS order_id, gen_random_uuid()::text AS subscription_id, \
         nextval('floor_event') AS order_event, nextval('floor_event') AS change_event, {customer} FROM {numbers}), {} {};\nCOMMIT;\n\\endpipeline\n",
        copies.join(", "),
        report.concat()
    )
}

/// A script of pgbench, of whose transactions each has so many units.
fn pgbench(
    world: &World,
    name: &'static str,
    unit: &'static str,
    clients: usize,
    units: usize,
    script: String,
) -> Result<Subject, Box<dyn Error>> {
    let Url::Postgres(url) = world.processes.orders.database().clone() else {
        return Err("pgbench is for PostgreSQL".into());
    };
    let url = match (unit, world.processes.agreements.database()) {
        ("pairs", Url::Postgres(url)) => url.clone(),
        _ => url,
    };
    let mut series = Series::new(name, Some(world.backend), clients);
    series.unit = unit;
    let folder = world.processes.folder().to_owned();
    let measure = move |length: Duration| -> Measuring {
        let (folder, script, url) = (folder.clone(), script.clone(), url.clone());
        Box::pin(async move {
            let job =
                move || run_pgbench(&folder, &script, &url, clients, length).map_err(|why| why.to_string());
            let mut figures = tokio::task::spawn_blocking(job).await??;
            figures.rate *= number(units);
            Ok(figures)
        })
    };
    Ok(Subject { series, measure: Box::new(measure) })
}

/// Runs a script for so long, rounded up to whole seconds.
fn run_pgbench(
    folder: &Path,
    script: &str,
    url: &str,
    clients: usize,
    length: Duration,
) -> Result<Figures, Box<dyn Error>> {
    let file = folder.join("script.sql");
    std::fs::write(&file, script)?;
    let log = tempfile::tempdir_in(folder)?;
    let seconds = length.as_secs_f64().ceil();
    let mut command = Command::new("pgbench");
    command.args(["--no-vacuum", "--protocol", "prepared", "--log"]);
    command.args(["--client", &clients.to_string(), "--time", &seconds.to_string()]);
    command.arg("--log-prefix").arg(log.path().join("log")).arg("--file").arg(&file).arg(url);
    let ended = command.output().map_err(|error| format!("pgbench: {error}"))?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let failed = || format!("pgbench: {said}{}", String::from_utf8_lossy(&ended.stderr));
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    let rate = rate.filter(|_| ended.status.success()).ok_or_else(failed)?;
    let mut latencies = vec![];
    for file in std::fs::read_dir(log.path())? {
        let micros = std::fs::read_to_string(file?.path())?;
        let micros = micros.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
        latencies.extend(micros.map(Duration::from_micros));
    }
    Ok(Figures { rate, refused: 0.0, p50: percentile(&latencies, 50), p99: percentile(&latencies, 99) })
}

/// Orders of a transaction of the writer of SQLite.
const ORDERS_A_COMMIT: usize = 64;

/// A statement for a row of an order, and what stands in its row.
struct Insert {
    sql: String,
    row: Vec<Value>,
    /// The columns that differ, and with what.
    fresh: Vec<(usize, &'static str)>,
}

/// One writer on a file of its own, which the migrations of order-svc have made.
fn sqlite_orders(world: &World) -> Result<Subject, Box<dyn Error>> {
    let Url::Sqlite(served) = world.processes.orders.database() else {
        return Err("the floor of SQLite is for SQLite".into());
    };
    let file = world.processes.folder().join("floor.sqlite");
    let url = tests::databases::sqlite(&file)?;
    drop(order_svc::migrate(&Storage { database: url, create: true })?);
    let from = Connection::open(served)?;
    let mut inserts = vec![];
    for table in &ORDER_TABLES {
        let columns = table.columns.join(", ");
        let read =
            format!("SELECT {columns} FROM {} WHERE {}", table.name, table.is_original(&world.original));
        let row = from.query_row(&read, [], |row| {
            (0..table.columns.len()).map(|n| row.get(n)).collect::<Result<Vec<Value>, _>>()
        })?;
        let places = vec!["?"; table.columns.len()].join(", ");
        let sql = format!("INSERT INTO {} ({columns}) VALUES ({places}) {}", table.name, table.conflict);
        let place = |(column, value): &(&str, &'static str)| {
            Some((table.columns.iter().position(|known| known == column)?, *value))
        };
        inserts.push(Insert { sql, row, fresh: table.fresh.iter().filter_map(place).collect() });
    }
    let inserts = Arc::new(inserts);
    let customers = world.customers;
    let mut series = Series::new(ORDERS_64, Some(world.backend), 1);
    series.unit = "orders";
    let measure = move |length| -> Measuring {
        let (file, inserts) = (file.clone(), Arc::clone(&inserts));
        Box::pin(async move {
            let job = move || write_orders(&file, &inserts, customers, length).map_err(|why| why.to_string());
            Ok(tokio::task::spawn_blocking(job).await??)
        })
    };
    Ok(Subject { series, measure: Box::new(measure) })
}

/// Writes orders for a time, as durably as order-svc does. The latencies are those of the commits.
fn write_orders(
    file: &PathBuf,
    inserts: &[Insert],
    customers: usize,
    length: Duration,
) -> Result<Figures, rusqlite::Error> {
    let connection = Connection::open(file)?;
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")?;
    let mut statements = vec![];
    for insert in inserts {
        statements.push((connection.prepare(&insert.sql)?, insert.row.clone(), &insert.fresh));
    }
    let stored: i64 = connection.query_row("SELECT count(*) FROM event", [], |row| row.get(0))?;
    let (began, mut latencies, mut count, mut event) = (Instant::now(), vec![], 0, stored);
    while began.elapsed() < length {
        let sent = Instant::now();
        connection.execute_batch("BEGIN IMMEDIATE")?;
        for _ in 0..ORDERS_A_COMMIT {
            count += 1;
            event += 2;
            let new = [
                ("request_id", fixtures::request_id()),
                ("order_id", fixtures::request_id()),
                ("subscription_id", fixtures::request_id()),
                ("customer_id", customer_id(count % customers + 1)),
                ("order_event", (event - 1).to_string()),
                ("change_event", event.to_string()),
            ];
            for (statement, row, fresh) in &mut statements {
                for (place, named) in fresh.iter() {
                    if let Some((_, value)) = new.iter().find(|(name, _)| name == named) {
                        row[*place] = Value::Text(value.clone());
                    }
                }
                statement.execute(params_from_iter(row.iter()))?;
            }
        }
        connection.execute_batch("COMMIT")?;
        latencies.push(sent.elapsed());
    }
    Ok(Figures {
        rate: rate(count, began.elapsed()),
        refused: 0.0,
        p50: percentile(&latencies, 50),
        p99: percentile(&latencies, 99),
    })
}
