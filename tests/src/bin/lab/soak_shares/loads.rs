//! What the greedy partner does.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use clap::ValueEnum;
use futures_util::future::pending;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use h2::client::SendRequest;
use http::Request;
use proto::agreement::{ListAttestationsRequest, ListBlockedCustomersRequest};
use proto::order::{GetWithdrawalReportRequest, ListOrdersRequest, ListSubscriptionsRequest};
use tests::databases::copy_subscription;
use tests::fixtures::{self, DIRECT};
use tests::imports::Sheet;
use tests::processes::{Process, Processes};
use tests::{As, actions};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;
use tonic::{Code, Status};
use uuid::Uuid;

use super::Options;
use crate::bare::{LENGTH_BYTES, WINDOW_DEFAULT, connect, exchange, framed, opening};
use crate::bench_gate::store_withdrawn;

/// Rows of a page: the most that one may ask for.
const PAGE_SIZE: i32 = 500;

/// Withdrawn attestations of the customer whose history is listed.
const HISTORY: u32 = 10_000;

/// Calls in flight while customers and orders are made.
const MAKING: usize = 16;

/// A message of 1 MiB comes in pieces, so slowly that it takes nearly the 10 s that it may.
const BODY_BYTES: u32 = 1 << 20;
const PIECE_BYTES: usize = 16 << 10;
const PIECES: usize = 63;
const PIECE_INTERVAL: Duration = Duration::from_millis(150);

/// Imports whose answers are not read: more than one tenant may have.
const UNREAD_IMPORTS: u128 = 8;

/// Before a refused call is made again: to make and refuse it takes from the machine that is measured.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Between two looks whether a withdrawal is applied.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// One thing that takes much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Load {
    /// Keeps long lists of both services in flight.
    Lists,
    /// Attests and withdraws, over and over, for many customers at once.
    Acceptances,
    /// Imports very many rows.
    Import,
    /// Withdraws what all subscriptions of a large customer rest on.
    Withdrawal,
    /// Sends messages of 1 MiB slowly to both services.
    Bodies,
    /// Asks for long lists, and imports, and never reads the answers.
    Unread,
}

/// What the greedy partner has before it begins.
pub(super) struct Greedy {
    caller: As,
    /// Customers that are blocked.
    customers: Vec<String>,
    /// The customer that bought everything, and its attestation.
    large: String,
    attestation: String,
}

/// What it has done: its lists, changes, rows, subscriptions, pieces of bodies, or answers not read.
#[derive(Default)]
pub(super) struct Progress {
    done: AtomicUsize,
    refused: AtomicUsize,
}

/// What keeps the greedy partner busy; dropping it ends that.
pub(super) struct Running {
    tasks: JoinSet<Result<(), Status>>,
    /// What ends by itself, where something does.
    work: Option<AbortHandle>,
    progress: Arc<Progress>,
}

/// One of the calls that are kept in flight, and the connection that it is made on.
struct Lane {
    streams: SendRequest<Bytes>,
    opening: Request<()>,
    message: Bytes,
    progress: Arc<Progress>,
}

impl Greedy {
    /// Makes its customers, and what one of them has bought.
    pub(super) async fn new(
        load: Load,
        processes: &Processes,
        options: &Options,
    ) -> Result<Self, Box<dyn Error>> {
        let caller = processes.as_caller(fixtures::sales(DIRECT));
        let create = |n| {
            let caller = caller.clone();
            async move { actions::create_customer(&caller, &format!("Greedy {n}"), "FR", None).await }
        };
        let customers = stream::iter(0..options.customers).map(create).buffer_unordered(MAKING);
        let customers: Vec<String> = customers.try_collect().await?;
        let large = actions::create_customer(&caller, "Large", "FR", None).await?;
        if matches!(load, Load::Lists | Load::Unread) {
            store_withdrawn(processes.agreements.database(), &large, HISTORY)?;
        }
        let attestation = actions::attest_now(&caller, &large).await?;
        let bought = actions::subscribe(&caller, &large, None).await?;
        let order = |_| actions::order(&caller, &large, None, 5);
        let orders = stream::iter(0..options.customers).map(order).buffer_unordered(MAKING);
        let orders: Vec<_> = orders.try_collect().await?;
        if load == Load::Withdrawal {
            let more = i64::try_from(options.subscriptions.saturating_sub(orders.len() + 1))?;
            copy_subscription(processes.orders.database(), &bought.subscription_id, more, 'a')?;
        }
        Ok(Self { caller, customers, large, attestation })
    }

    /// Begins.
    pub(super) async fn begin(
        &self,
        load: Load,
        processes: &Processes,
        options: &Options,
    ) -> Result<Running, Box<dyn Error>> {
        let progress = Arc::new(Progress::default());
        let (mut tasks, mut work) = (JoinSet::new(), None);
        match load {
            Load::Lists => {
                for lane in self.lanes(processes, options, WINDOW_DEFAULT, &progress).await? {
                    tasks.spawn(lane.list());
                }
            }
            Load::Acceptances => {
                for n in 0..options.clients {
                    let customers = self.customers.iter().skip(n).step_by(options.clients).cloned().collect();
                    let caller = processes.as_caller(fixtures::sales(DIRECT));
                    tasks.spawn(attest_and_withdraw(caller, customers, Arc::clone(&progress)));
                }
            }
            Load::Import => {
                let sheet = Sheet { id: Uuid::from_u128(1), customers: self.customers.clone() };
                let import = import(self.caller.clone(), sheet, options.rows, Arc::clone(&progress));
                work = Some(tasks.spawn(import));
            }
            Load::Withdrawal => {
                let withdraw = withdraw(self.caller.clone(), self.attestation.clone(), Arc::clone(&progress));
                work = Some(tasks.spawn(withdraw));
            }
            Load::Bodies => {
                for lane in self.lanes(processes, options, WINDOW_DEFAULT, &progress).await? {
                    tasks.spawn(lane.send_slowly());
                }
            }
            Load::Unread => {
                for lane in self.lanes(processes, options, 0, &progress).await? {
                    tasks.spawn(lane.leave_unread());
                }
                for n in 0..UNREAD_IMPORTS {
                    let sheet = Sheet { id: Uuid::from_u128(n), customers: self.customers.clone() };
                    let caller = processes.as_caller(fixtures::sales(DIRECT));
                    tasks.spawn(import_unread(caller, sheet, Arc::clone(&progress)));
                }
            }
        }
        Ok(Running { tasks, work, progress })
    }

    /// Calls in flight at both services, half of them of one kind and half of another, over some connections to each.
    async fn lanes(
        &self,
        processes: &Processes,
        options: &Options,
        window: u32,
        progress: &Arc<Progress>,
    ) -> Result<Vec<Lane>, Box<dyn Error>> {
        let blocked = ListBlockedCustomersRequest { page_size: PAGE_SIZE, ..Default::default() };
        let history = ListAttestationsRequest {
            customer_id: self.large.clone(),
            include_history: true,
            page_size: PAGE_SIZE,
            ..Default::default()
        };
        let orders = ListOrdersRequest { page_size: PAGE_SIZE, ..Default::default() };
        let subscriptions = ListSubscriptionsRequest { page_size: PAGE_SIZE, ..Default::default() };
        let lists: [(&Process, [(&str, Bytes); 2]); 2] = [
            (
                &processes.agreements,
                [
                    ("csp.agreement.v1.EligibilityService/ListBlockedCustomers", framed(&blocked)),
                    ("csp.agreement.v1.AttestationService/ListAttestations", framed(&history)),
                ],
            ),
            (
                &processes.orders,
                [
                    ("csp.order.v1.OrderService/ListOrders", framed(&orders)),
                    ("csp.order.v1.SubscriptionService/ListSubscriptions", framed(&subscriptions)),
                ],
            ),
        ];
        let mut lanes = vec![];
        for (server, lists) in lists {
            let mut connections = vec![];
            for n in 0..options.in_flight {
                let (call, message) = lists[n % lists.len()].clone();
                let opening = opening(&server.address(), call, fixtures::sales(DIRECT))?;
                if connections.len() < options.connections {
                    connections.push(connect(&opening, window).await?);
                }
                let streams = connections[n % options.connections].clone();
                lanes.push(Lane { streams, opening, message, progress: Arc::clone(progress) });
            }
        }
        Ok(lanes)
    }
}

impl Running {
    /// Whether what ends by itself has ended.
    pub(super) fn is_over(&self) -> bool {
        self.work.as_ref().is_none_or(AbortHandle::is_finished)
    }

    /// Whether others feel it by now.
    pub(super) fn is_under_way(&self, load: Load, elapsed: Duration, options: &Options) -> bool {
        match load {
            Load::Import => self.progress.done.load(Ordering::Relaxed) >= options.rows / 2,
            Load::Withdrawal => true,
            _ => elapsed >= Duration::from_secs(options.seconds) / 2,
        }
    }

    /// Ends it, and tells what was done.
    ///
    /// # Errors
    /// It did not do what it should: then nothing was measured.
    pub(super) async fn end(mut self) -> Result<Arc<Progress>, Status> {
        self.tasks.abort_all();
        while let Some(task) = self.tasks.join_next().await {
            match task {
                Ok(ended) => ended?,
                Err(error) if error.is_cancelled() => {}
                Err(error) => return Err(Status::internal(error.to_string())),
            }
        }
        if self.progress.done.load(Ordering::Relaxed) == 0 {
            return Err(Status::internal("the greedy partner did nothing"));
        }
        Ok(self.progress)
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [done, refused] = [&self.done, &self.refused].map(|count| count.load(Ordering::Relaxed));
        write!(f, "{done} done and {refused} refused")
    }
}

impl Progress {
    fn count(&self, done: usize) {
        self.done.fetch_add(done, Ordering::Relaxed);
    }

    /// Counts a call that was refused for load, and waits before the next one.
    ///
    /// # Errors
    /// It was refused for anything else.
    async fn after_refusal(&self, refused: Status) -> Result<(), Status> {
        if !matches!(refused.code(), Code::ResourceExhausted | Code::Unavailable) {
            return Err(refused);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        sleep(REFUSED_PAUSE).await;
        Ok(())
    }
}

impl Lane {
    /// Lists again and again.
    async fn list(self) -> Result<(), Status> {
        loop {
            let call = exchange(self.streams.clone(), self.opening.clone(), self.message.clone());
            let (headers, _) = call.await.map_err(broken)?;
            match refusal(&headers) {
                None => self.progress.count(1),
                Some(refused) => self.progress.after_refusal(refused).await?,
            }
        }
    }

    /// Sends one message after the other, each as slowly as it may, and never the last piece.
    async fn send_slowly(self) -> Result<(), Status> {
        let mut begin = BytesMut::with_capacity(LENGTH_BYTES);
        begin.put_u8(0);
        begin.put_u32(BODY_BYTES);
        let begin = begin.freeze();
        let piece = Bytes::from_static(&[0; PIECE_BYTES]);
        loop {
            let mut streams = self.streams.clone().ready().await.map_err(broken)?;
            let begun = streams.send_request(self.opening.clone(), false);
            let (mut answer, mut sending) = begun.map_err(broken)?;
            sending.send_data(begin.clone(), false).map_err(broken)?;
            let send = async {
                for _ in 0..PIECES {
                    sleep(PIECE_INTERVAL).await;
                    // The answer says what ended the call.
                    if sending.send_data(piece.clone(), false).is_err() {
                        break;
                    }
                    self.progress.count(1);
                }
                pending::<()>().await;
            };
            let answered = tokio::select! {
                answered = &mut answer => answered,
                () = send => continue,
            };
            match answered.map(|answer| refusal(answer.headers())) {
                Ok(Some(refused)) => self.progress.after_refusal(refused).await?,
                Ok(None) => return Err(Status::internal("half a message was answered")),
                Err(_) => sleep(REFUSED_PAUSE).await,
            }
        }
    }

    /// Asks for a list, on a connection on which nothing may be sent back, until the service gives that up.
    async fn leave_unread(self) -> Result<(), Status> {
        loop {
            let mut streams = self.streams.clone().ready().await.map_err(broken)?;
            let begun = streams.send_request(self.opening.clone(), false);
            let (answer, mut sending) = begun.map_err(broken)?;
            sending.send_data(self.message.clone(), true).map_err(broken)?;
            let mut answer = answer.await.map_err(broken)?;
            match refusal(answer.headers()) {
                Some(refused) => self.progress.after_refusal(refused).await?,
                None => {
                    self.progress.count(1);
                    let _ = answer.body_mut().data().await;
                }
            }
        }
    }
}

/// What a connection says that is none any more.
fn broken(error: h2::Error) -> Status {
    Status::from_error(error.into())
}

/// What the head of an answer that is a refusal says.
fn refusal(headers: &http::HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

async fn attest_and_withdraw(
    caller: As,
    customers: Vec<String>,
    progress: Arc<Progress>,
) -> Result<(), Status> {
    for customer in customers.iter().cycle() {
        let change = async {
            let attestation = actions::attest_now(&caller, customer).await?;
            actions::withdraw(&caller, &attestation).await
        };
        match change.await {
            Ok(_) => progress.count(1),
            Err(refused) => progress.after_refusal(refused).await?,
        }
    }
    Ok(())
}

async fn import(caller: As, sheet: Sheet, rows: usize, progress: Arc<Progress>) -> Result<(), Status> {
    let sent = stream::iter(sheet.rows().take(rows));
    let mut answers = caller.attestations().import_attestations(sent).await?.into_inner();
    for row in 0..rows {
        let answer = answers.message().await?.ok_or_else(|| Status::internal("the import ended early"))?;
        sheet.check(row, &answer, false).map_err(Status::internal)?;
        progress.count(1);
    }
    Ok(())
}

async fn import_unread(caller: As, sheet: Sheet, progress: Arc<Progress>) -> Result<(), Status> {
    loop {
        match caller.attestations().import_attestations(stream::iter(sheet.rows())).await {
            Ok(answers) => {
                progress.count(1);
                pending::<()>().await;
                drop(answers);
            }
            Err(refused) => progress.after_refusal(refused).await?,
        }
    }
}

async fn withdraw(caller: As, attestation: String, progress: Arc<Progress>) -> Result<(), Status> {
    let revision = actions::withdraw(&caller, &attestation).await?;
    let request = GetWithdrawalReportRequest { revision, page_size: 1, ..Default::default() };
    loop {
        let answer = caller.withdrawals().get_withdrawal_report(request.clone()).await?.into_inner();
        if let Some(report) = answer.report.filter(|_| answer.applied) {
            progress.count(usize::try_from(report.cancelled).unwrap_or_default());
            return Ok(());
        }
        sleep(POLL_INTERVAL).await;
    }
}
