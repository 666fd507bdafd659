//! The calls: each at several numbers of calls in flight, on both databases; an import; and how soon watchers have the
//! event of a change.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream;
use proto::agreement::watch_events_response::Item;
use proto::agreement::{
    BatchCheckEligibilityRequest, ImportAttestationsRequest, ImportOutcome, ListBlockedCustomersRequest,
    WatchEventsRequest,
};
use proto::order::{ChangeSeatsRequest, ListOrdersRequest};
use proto::types::{Contact, Decision};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE};
use tests::{As, Backend, actions};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use super::rows::customer_id;
use super::series::{Figures, Floor, Series, Subject, measure_calls};
use super::world::{Seats, World};
use super::{floors, page::Section};
use crate::load::{percentile, rate};

/// Calls in flight. One is in flight over one connection, more over eight.
pub(super) const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];

/// Rows of a page of a list.
const PAGE: i32 = 50;

/// Items of a batch.
const BATCH: usize = 20;

/// Seats that the offer allows.
const SEATS_MAX: u32 = 300;

/// A call that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Check,
    Batch,
    Order,
    Seats,
    Orders,
    FirstOrders,
    Blocked,
}

impl Call {
    /// Those that are measured at each number in flight.
    const ALL: [Self; 6] = [Self::Check, Self::Batch, Self::Order, Self::Seats, Self::Orders, Self::Blocked];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Check => "CheckEligibility",
            Self::Batch => "BatchCheckEligibility, 20 items",
            Self::Order => "CreateOrder",
            Self::Seats => "ChangeSeats",
            Self::Orders => "ListOrders, 50 at depth",
            Self::FirstOrders => "ListOrders, first 50",
            Self::Blocked => "ListBlockedCustomers, 50",
        }
    }

    fn floors(self, backend: Backend) -> Vec<Floor> {
        let echo = Floor::SameInFlight(floors::ECHO);
        let nested = Floor::SameInFlight(floors::NESTED);
        match (self, backend) {
            (Self::Check, Backend::Postgres) => {
                let both = Floor::Both(floors::ECHO, floors::MANY_PAIRS);
                vec![echo, Floor::Fastest(floors::ONE_PAIR), both]
            }
            (Self::Order, Backend::Postgres) => {
                let both = Floor::Both(floors::NESTED, floors::ORDERS_64);
                vec![nested, Floor::Fastest(floors::ORDERS_64), both]
            }
            (Self::Order, Backend::Sqlite) => vec![nested, Floor::Fastest(floors::ORDERS_64)],
            (Self::Seats, _) => vec![nested],
            _ => vec![echo],
        }
    }

    /// Makes the call and looks at its answer.
    ///
    /// # Errors
    /// A refusal, or another answer than expected.
    pub(super) async fn call(self, world: &World, caller: &As) -> Result<(), Status> {
        let wrong = |what: &str| Err(Status::internal(format!("{}: {what}", self.name())));
        match self {
            Self::Check => {
                let answer =
                    actions::check(caller, fixtures::new_check(DIRECT, &world.any_customer())).await?;
                if answer.decision() == Decision::Allowed { Ok(()) } else { wrong("the gate is closed") }
            }
            Self::Batch => {
                let items = (0..BATCH).map(|_| fixtures::new_check(DIRECT, &world.any_customer()));
                let request = BatchCheckEligibilityRequest { items: items.collect() };
                let answer = caller.gate().batch_check_eligibility(request).await?.into_inner();
                if answer.results.len() == BATCH { Ok(()) } else { wrong("results are missing") }
            }
            Self::Order => {
                let order = fixtures::new_order(&world.any_customer(), None, OFFICE, 5);
                caller.orders().create_order(order).await.map(drop)
            }
            Self::Seats => {
                let read = world.take_seats()?;
                let request = ChangeSeatsRequest {
                    request_id: fixtures::request_id(),
                    subscription_id: read.subscription.clone(),
                    quantity: read.quantity % SEATS_MAX + 1,
                    etag: read.etag.clone(),
                    validate_only: false,
                    attestation: None,
                };
                match caller.subscriptions().change_seats(request).await {
                    Ok(changed) => {
                        let changed = changed.into_inner().subscription.unwrap_or_default();
                        let (etag, quantity) = (changed.etag, changed.quantity);
                        world.put_seats(Seats { etag, quantity, ..read });
                        Ok(())
                    }
                    Err(refused) => {
                        world.put_seats(read);
                        Err(refused)
                    }
                }
            }
            Self::Orders | Self::FirstOrders => {
                let page_token = if self == Self::Orders { world.deep_page.clone() } else { String::new() };
                let request =
                    ListOrdersRequest { page_size: PAGE, page_token, ..ListOrdersRequest::default() };
                let page = caller.orders().list_orders(request).await?.into_inner();
                if page.orders.len() == 50 { Ok(()) } else { wrong("the page is not full") }
            }
            Self::Blocked => {
                let request =
                    ListBlockedCustomersRequest { page_size: PAGE, ..ListBlockedCustomersRequest::default() };
                let page = caller.gate().list_blocked_customers(request).await?.into_inner();
                if page.customers.len() == 50 { Ok(()) } else { wrong("the page is not full") }
            }
        }
    }

    /// The call to a world, to be measured beside others.
    pub(super) fn subject(self, series: Series, world: &Arc<World>) -> Subject {
        let (world, in_flight) = (Arc::clone(world), series.in_flight);
        Subject::calls(series, move |number| {
            let world = Arc::clone(&world);
            async move { self.call(&world, world.caller(in_flight, number)).await }
        })
    }

    /// Measures the call for a time.
    ///
    /// # Errors
    /// As [`Call::call`], but for refusals for load.
    pub(super) async fn measure(
        self,
        world: &Arc<World>,
        in_flight: usize,
        length: Duration,
    ) -> Result<Figures, Status> {
        let world = Arc::clone(world);
        measure_calls(in_flight, length, move |number| {
            let world = Arc::clone(&world);
            async move { self.call(&world, world.caller(in_flight, number)).await }
        })
        .await
    }
}

/// All calls to a world.
pub(super) fn subjects(world: &Arc<World>) -> Vec<Subject> {
    let mut subjects = vec![];
    for call in Call::ALL {
        for in_flight in IN_FLIGHT {
            let mut series = Series::new(call.name(), Some(world.backend), in_flight);
            series.floors = call.floors(world.backend);
            subjects.push(call.subject(series, world));
        }
    }
    subjects
}

/// Imports one attestation for each of so many customers, in one stream, round by round.
///
/// # Errors
/// A refusal, or a row that was not stored.
pub(super) async fn import(world: &World, rows: usize, rounds: usize) -> Result<Series, Box<dyn Error>> {
    let mut series = Series::new("ImportAttestations, one stream", Some(world.backend), 1);
    series.unit = "rows";
    let direct = world.caller(1, 0);
    for round in 0..rounds {
        let agreed_at = chassis::form::timestamp(fixtures::now());
        let row = move |number| ImportAttestationsRequest {
            request_id: fixtures::request_id(),
            customer_id: customer_id(number),
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(Contact { email: format!("round-{round}@contoso.example"), ..fixtures::contact() }),
            agreed_at: Some(agreed_at),
            details: None,
        };
        let began = Instant::now();
        let sent = stream::iter((1..=rows).map(row));
        let mut answers = direct.attestations().import_attestations(sent).await?.into_inner();
        let mut stored = 0;
        while let Some(answer) = answers.message().await? {
            if answer.outcome() != ImportOutcome::Stored {
                return Err(format!("a row was not stored: {answer:?}").into());
            }
            stored += 1;
        }
        if stored != rows {
            return Err(format!("{stored} of {rows} rows were answered").into());
        }
        series.rounds.push(Figures { rate: rate(rows, began.elapsed()), ..Figures::default() });
    }
    Ok(series)
}

/// The delay of each of some changes from its answer until the last watcher has its event. The processes of the world share the
/// watchers evenly.
///
/// # Errors
/// A refusal, or a stream that ended.
async fn fan_out(world: &World, watchers: usize, changes: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let direct = world.caller(1, 0);
    let replica = world.processes.replicas.as_ref().map(|(agreements, _)| agreements);
    let processes = [&world.processes.agreements].into_iter().chain(replica);
    let services: Vec<As> = processes.map(|process| process.as_caller(fixtures::service())).collect();
    let customer =
        |n: usize| fixtures::new_customer(&format!("Watched by {watchers} change {n}"), "FR", None);
    let head = direct.customers().create_customer(customer(0)).await?.into_inner().revision;
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    // Their end leaves room for the next ones.
    let mut streams = JoinSet::new();
    for service in services.iter().cycle().take(watchers) {
        let request = WatchEventsRequest { after_revision: head - 1, ..WatchEventsRequest::default() };
        let mut stream = service.events().watch_events(request).await?.into_inner();
        let sender = sender.clone();
        streams.spawn(async move {
            while let Ok(Some(response)) = stream.message().await {
                if let Some(Item::Event(event)) = response.item
                    && sender.send((event.revision, Instant::now())).is_err()
                {
                    return;
                }
            }
        });
    }
    drop(sender);
    last_arrival(&mut arrivals, head, watchers).await?;
    let mut delays = vec![];
    for n in 1..=changes {
        let revision = direct.customers().create_customer(customer(n)).await?.into_inner().revision;
        let answered = Instant::now();
        let last = last_arrival(&mut arrivals, revision, watchers).await?;
        delays.push(last.saturating_duration_since(answered));
    }
    Ok(delays)
}

async fn last_arrival(
    arrivals: &mut mpsc::UnboundedReceiver<(i64, Instant)>,
    revision: i64,
    watchers: usize,
) -> Result<Instant, Box<dyn Error>> {
    let mut seen = 0;
    while let Some((arrived, at)) = arrivals.recv().await {
        seen += usize::from(arrived == revision);
        if seen == watchers {
            return Ok(at);
        }
    }
    Err("a stream of events ended".into())
}

/// The table of the delays.
pub(super) struct FanOut {
    lines: Vec<String>,
}

impl FanOut {
    pub(super) fn new() -> Self {
        Self { lines: vec!["| watchers | p50 | p99 |".into(), "|---|---|---|".into()] }
    }

    /// Measures with so many watchers.
    ///
    /// # Errors
    /// As [`fan_out`].
    pub(super) async fn add(
        &mut self,
        world: &World,
        watchers: usize,
        changes: usize,
    ) -> Result<(), Box<dyn Error>> {
        let delays = fan_out(world, watchers, changes).await?;
        let ms = |percent| percentile(&delays, percent).as_secs_f64() * 1000.0;
        let shared = if world.processes.replicas.is_some() { " of two processes" } else { "" };
        let row = format!("| {watchers}{shared}, {} | {:.1} ms | {:.1} ms |", world.backend, ms(50), ms(99));
        self.lines.push(row);
        Ok(())
    }

    pub(super) fn section(self, changes: usize) -> Section {
        let text = format!(
            "{changes} changes, one after the other: the time from the answer of a change until the last watcher has its \
             event. A process has 64 watchers at most, and order-svc is one of them. A process looks every \
             100 ms for what another one stored."
        );
        Section { title: "WatchEvents".into(), text, lines: self.lines, plots: vec![] }
    }
}
