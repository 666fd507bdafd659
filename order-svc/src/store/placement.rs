//! The transaction in which orders take effect, each at most once for its idempotency key. Orders that come at the same
//! time share a transaction of as many statements as one order takes, and each has an outcome of its own.
//!
//! What holds for each of them is what [`super::commit`] says: it is stored behind the fence of its customer, on an answer of
//! the gate that is not older than what was applied there, and fresh when all is written. Orders together do not wait for a
//! fence that another transaction has, and none fails because of another: where one cannot be stored with the others, it is
//! tried alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chassis::clock::Clock;
use chassis::database::{Batcher, Connection, Database, Error, Work};
use chassis::idempotency::{IdempotencyKey, responses_store};
use uuid::Uuid;

use super::commit::{Void, fences_take};
use super::open::{Room, are_more_open_of};
use super::order::orders_insert;
use super::withdrawal::withdrawn_of;
use crate::rules::gate::Answer;
use crate::rules::order::Order;
use crate::rules::subscription::Subscription;

/// Lines of the orders of one transaction. More would hardly be cheaper for each, and would wait longer for each other.
const LINES_MAX: usize = 128;

/// An order to be stored with the answer to its caller, on the gate's answer.
#[derive(Debug)]
pub(crate) struct Placement {
    pub key: IdempotencyKey,
    pub response: Vec<u8>,
    pub answer: Answer,
    pub order: Order,
    pub subscriptions: Vec<Subscription>,
    /// Open subscriptions that payer and customer may have afterwards (SUB-7).
    pub open_max: u32,
}

/// The outcome of an order.
#[derive(Clone, Debug)]
pub(crate) enum Placed {
    Done,
    /// Another call was first with the same request id.
    SeenBefore,
    /// The gate's answer does not count any more.
    Void(Void),
    /// The answer is too old, or could have changed by itself: ask the gate again.
    AnswerStale,
    /// Payer and customer would have too many open subscriptions (SUB-7).
    TooManySubscriptions,
}

/// Why orders together were rolled back.
enum Undone {
    AnswerStale,
    Failed(Error),
}

impl From<Error> for Undone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Outcome = Result<Placed, Error>;

/// Stores orders, those that come at the same time together. Clones share the transactions.
#[derive(Clone)]
pub(crate) struct Placements(Batcher<Placement, Outcome>);

impl Placements {
    pub(crate) fn new(database: Database, clock: Clock) -> Self {
        let lines = |placement: &Placement| placement.subscriptions.len();
        // One transaction at a time, so that two have no customers in common.
        Self(Batcher::new((lines, LINES_MAX), (1, 0), move |batch| {
            place_together(database.clone(), clock.clone(), batch)
        }))
    }

    /// Stores an order.
    pub(crate) async fn place(&self, placement: Placement) -> Outcome {
        self.0.submit(placement).await?
    }
}

/// Stores orders in one transaction, and answers them. Those that cannot be stored with the others, or whose customer's fence
/// another transaction has, are left to tasks of their own, so that the next transaction does not wait for them.
async fn place_together(database: Database, clock: Clock, batch: Vec<Work<Placement, Outcome>>) {
    let (placements, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(Work::split).unzip();
    let placements: Vec<Arc<Placement>> = placements.into_iter().map(Arc::new).collect();
    let outcomes = write(&database, &clock, placements.clone(), false).await;
    for ((placement, reply), outcome) in placements.into_iter().zip(replies).zip(outcomes) {
        match outcome {
            Some(outcome) => reply.answer(outcome),
            None => {
                let (database, clock) = (database.clone(), clock.clone());
                reply.answer_later(async move {
                    let outcome = write(&database, &clock, vec![placement], true).await.pop().flatten();
                    outcome.unwrap_or(Err(Error::Panicked))
                });
            }
        }
    }
}

/// The outcomes of orders in one transaction; none for an order that has to be tried alone.
async fn write(
    database: &Database,
    clock: &Clock,
    placements: Vec<Arc<Placement>>,
    waits: bool,
) -> Vec<Option<Outcome>> {
    let (count, clock) = (placements.len(), clock.clone());
    let write = move |connection: &mut Connection| place(connection, &clock, &placements, waits);
    match database.write(write).await {
        Ok(placed) => placed.into_iter().map(|placed| placed.map(Ok)).collect(),
        // One answer that has grown stale undid all of them; a row that cannot be stored may be of one, too.
        Err(
            Undone::AnswerStale | Undone::Failed(Error::Query(_) | Error::Corrupt { .. } | Error::Panicked),
        ) if count > 1 => {
            vec![None; count]
        }
        Err(Undone::AnswerStale) => vec![Some(Ok(Placed::AnswerStale))],
        Err(Undone::Failed(error)) => vec![Some(Err(error)); count],
    }
}

/// The statements take locks in one order: fences first, which are not waited for, then request ids in the order of their keys. An
/// order without an outcome has to be tried alone; `waits` says that this is that try.
fn place(
    connection: &mut Connection,
    clock: &Clock,
    placements: &[Arc<Placement>],
    waits: bool,
) -> Result<Vec<Option<Placed>>, Undone> {
    let is_alone = placements.len() == 1;
    let mut placed: Vec<Option<Placed>> = vec![Some(Placed::Done); placements.len()];
    let rest = |placed: &[Option<Placed>]| -> Vec<usize> {
        (0..placements.len()).filter(|n| matches!(placed[*n], Some(Placed::Done))).collect()
    };

    let customers: BTreeSet<Uuid> = placements.iter().map(|new| new.answer.customer_id).collect();
    let fences: BTreeMap<Uuid, i64> = fences_take(connection, &customers, waits)?;
    let accepted_on =
        |new: &Placement| new.order.approval.evidence.as_ref().map(|evidence| evidence.acceptance_id);
    let accepted_on_all: Vec<Uuid> = placements.iter().filter_map(|new| accepted_on(new)).collect();
    let withdrawn = withdrawn_of(connection, &accepted_on_all)?;
    for (new, placed) in placements.iter().zip(&mut placed) {
        let of_evidence = accepted_on(new).filter(|id| withdrawn.contains(id));
        *placed = match (fences.get(&new.answer.customer_id), of_evidence) {
            (None, _) => None,
            (Some(fence), _) if *fence > new.order.approval.revision => {
                Some(Placed::Void(Void::Outdated { fence: *fence }))
            }
            (_, Some(acceptance_id)) => Some(Placed::Void(Void::EvidenceWithdrawn { acceptance_id })),
            (Some(_), None) => Some(Placed::Done),
        };
    }

    let open = rest(&placed);
    let rooms = rooms(open.iter().map(|n| &*placements[*n]));
    for (n, is_exceeded) in open.iter().zip(are_more_open_of(connection, &rooms)?) {
        if is_exceeded {
            // Those before it in the transaction may leave it room after all.
            placed[*n] = is_alone.then_some(Placed::TooManySubscriptions);
        }
    }

    let open = rest(&placed);
    let answers: Vec<_> =
        open.iter().map(|n| (&placements[*n].key, placements[*n].response.as_slice())).collect();
    for (n, is_new) in open.iter().zip(responses_store(connection, &answers, clock.now())?) {
        if !is_new {
            placed[*n] = Some(Placed::SeenBefore);
        }
    }

    let open = rest(&placed);
    let orders: Vec<_> =
        open.iter().map(|n| (&placements[*n].order, placements[*n].subscriptions.as_slice())).collect();
    orders_insert(connection, &orders)?;
    // The age is checked last: the queue for the transaction, the fence and the request id may each have taken longer
    // than the answer may be old.
    let now = clock.now();
    if open.iter().any(|n| !placements[*n].answer.is_fresh(now)) {
        return Err(Undone::AnswerStale);
    }
    Ok(placed)
}

/// The room that each order needs, after those before it.
fn rooms<'a>(orders: impl Iterator<Item = &'a Placement>) -> Vec<Room> {
    let mut more: HashMap<(Uuid, Uuid), i64> = HashMap::new();
    orders
        .map(|new| {
            let (customer_id, payer_id) = (new.order.parties.customer_id, new.order.parties.payer_id);
            let of_both = more.entry((customer_id, payer_id)).or_default();
            *of_both += i64::try_from(new.subscriptions.len()).unwrap_or(i64::from(u32::MAX));
            Room { customer_id, payer_id, open_max: i64::from(new.open_max) - *of_both }
        })
        .collect()
}

#[cfg(test)]
mod tests;
