//! The transaction in which what a call buys or changes takes effect, at most once for its idempotency key. Orders and changes of
//! subscriptions that come at the same time share a transaction of as many statements as one of them takes, and each has an
//! outcome of its own.
//!
//! Each is stored behind the [fence](super::fence) of its customer, while what it rests on still holds there; an answer of the
//! gate has to be fresh when all is written. Those together do not wait for a fence that another transaction has, and none
//! fails because of another: where one cannot be stored with the others, it is tried alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use chassis::clock::Clock;
use chassis::database::{Batcher, Connection, Database, Error, Work};
use chassis::idempotency::{IdempotencyKey, responses_remove, responses_store};
use uuid::Uuid;

use super::fence::{Void, fences_take, void};
use super::open::{Room, are_more_open_of};
use super::order::orders_insert;
use super::relationship::relationships_of_all;
use super::update::{Update, subscriptions_change};
use super::withdrawal::withdrawn_of;
use crate::rules::gate::{Answer, Approval};
use crate::rules::order::Order;
use crate::rules::relationship::Needed;
use crate::rules::subscription::Subscription;

/// Lines of orders, and changes, after which a transaction takes no more of them. More would hardly be cheaper for each, and would
/// wait longer for each other.
const LINES_MAX: usize = 128;

/// What a call stores, together with the answer to its caller.
#[derive(Debug)]
pub(crate) struct Write {
    pub key: IdempotencyKey,
    pub response: Vec<u8>,
    pub customer_id: Uuid,
    pub basis: Basis,
    pub effect: Effect,
}

/// What has to hold still when it is stored.
#[derive(Debug)]
pub(crate) enum Basis {
    /// The gate's answer, with its yes.
    Answer(Box<(Answer, Approval)>),
    /// A relationship of the customer and a payer, which the caller needs (ROLE-6).
    Relationship {
        payer_id: Uuid,
        needed: Needed,
    },
    Nothing,
}

#[derive(Debug)]
pub(crate) enum Effect {
    Order {
        order: Box<Order>,
        subscriptions: Vec<Subscription>,
        /// Open subscriptions that payer and customer may have afterwards (SUB-7).
        open_max: u32,
    },
    Change(Box<Update>),
    /// It is so already.
    Nothing,
}

/// How it ended.
#[derive(Clone, Debug)]
pub(crate) enum Commit {
    Done,
    /// Another call was first with the same request id.
    SeenBefore,
    /// The gate's answer does not count any more.
    Void(Void),
    /// The answer is too old, or could have changed by itself: ask the gate again.
    AnswerStale,
    /// The relationship that the caller needs is not active any more (ROLE-6).
    NotRelated,
    /// Payer and customer would have too many open subscriptions (SUB-7).
    TooManySubscriptions,
    /// The subscription has changed since it was read.
    LostRace,
}

/// Why a transaction was rolled back.
enum Rollback {
    AnswerStale,
    Failed(Error),
}

impl From<Error> for Rollback {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Write {
    fn answer(&self) -> Option<(&Answer, &Approval)> {
        match &self.basis {
            Basis::Answer(basis) => Some((&basis.0, &basis.1)),
            Basis::Relationship { .. } | Basis::Nothing => None,
        }
    }

    fn relationship(&self) -> Option<(Uuid, Uuid)> {
        match self.basis {
            Basis::Relationship { payer_id, .. } => Some((self.customer_id, payer_id)),
            Basis::Answer(_) | Basis::Nothing => None,
        }
    }

    fn order(&self) -> Option<(&Order, &[Subscription])> {
        match &self.effect {
            Effect::Order { order, subscriptions, .. } => Some((order, subscriptions)),
            Effect::Change(_) | Effect::Nothing => None,
        }
    }

    fn change(&self) -> Option<&Update> {
        match &self.effect {
            Effect::Change(update) => Some(update),
            Effect::Order { .. } | Effect::Nothing => None,
        }
    }

    fn lines(&self) -> usize {
        self.order().map_or(1, |(_, subscriptions)| subscriptions.len())
    }
}

type Outcome = Result<Commit, Error>;

/// Stores what calls buy and change; what comes at the same time, together. Clones share the transactions.
#[derive(Clone)]
pub(crate) struct Commits(Batcher<Write, Outcome>);

impl Commits {
    pub(crate) fn new(database: Database, clock: Clock) -> Self {
        // One transaction at a time, so that two have no customers in common.
        Self(Batcher::new((Write::lines, LINES_MAX), (1, 0), move |batch| {
            commit_together(database.clone(), clock.clone(), batch)
        }))
    }

    /// Stores what a call buys or changes.
    pub(crate) async fn commit(&self, write: Write) -> Outcome {
        self.0.submit(write).await?
    }
}

/// Stores writes in one transaction, and answers them. Those that cannot be stored with the others, or whose customer's fence
/// another transaction has, are left to tasks of their own, so that the next transaction does not wait for them.
async fn commit_together(database: Database, clock: Clock, batch: Vec<Work<Write, Outcome>>) {
    let (writes, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(Work::split).unzip();
    let writes: Vec<Arc<Write>> = writes.into_iter().map(Arc::new).collect();
    let outcomes = transact(&database, &clock, writes.clone(), false).await;
    for ((write, reply), outcome) in writes.into_iter().zip(replies).zip(outcomes) {
        match outcome {
            Some(outcome) => reply.answer(outcome),
            None => {
                let (database, clock) = (database.clone(), clock.clone());
                reply.answer_later(async move {
                    let outcome = transact(&database, &clock, vec![write], true).await.pop().flatten();
                    outcome.unwrap_or(Err(Error::Panicked))
                });
            }
        }
    }
}

/// The outcomes of writes in one transaction; none for one that has to be tried alone.
async fn transact(
    database: &Database,
    clock: &Clock,
    writes: Vec<Arc<Write>>,
    waits: bool,
) -> Vec<Option<Outcome>> {
    let (count, clock) = (writes.len(), clock.clone());
    let write = move |connection: &mut Connection| store(connection, &clock, &writes, waits);
    match database.write(write).await {
        Ok(ends) => ends.into_iter().map(|end| end.map(Ok)).collect(),
        // One answer that has grown stale undid all of them; a row that cannot be stored may be of one, too.
        Err(
            Rollback::AnswerStale
            | Rollback::Failed(Error::Query(_) | Error::Corrupt { .. } | Error::Panicked),
        ) if count > 1 => {
            vec![None; count]
        }
        Err(Rollback::AnswerStale) => vec![Some(Ok(Commit::AnswerStale))],
        Err(Rollback::Failed(error)) => vec![Some(Err(error)); count],
    }
}

/// How each write ended, as far as that is known.
type Ends = Vec<Option<Commit>>;

/// The writes that nothing has kept from their effect so far.
fn rest<'a>(writes: &'a [Arc<Write>], ends: &Ends) -> Vec<(usize, &'a Write)> {
    let all = writes.iter().map(|write| &**write).enumerate();
    all.filter(|(n, _)| matches!(ends[*n], Some(Commit::Done))).collect()
}

/// The statements take locks in one order: fences first, which are not waited for, then request ids in the order of their keys,
/// then subscriptions, which nothing but an ended term locks without the fence. A write without an end has to be tried alone;
/// `waits` says that this is that try.
fn store(
    connection: &mut Connection,
    clock: &Clock,
    writes: &[Arc<Write>],
    waits: bool,
) -> Result<Ends, Rollback> {
    let mut ends = look_behind_fences(connection, writes, waits)?;

    let open = rest(writes, &ends);
    let (orders, rooms): (Vec<usize>, Vec<Room>) = rooms(&open).into_iter().unzip();
    for (n, is_exceeded) in orders.into_iter().zip(are_more_open_of(connection, &rooms)?) {
        if is_exceeded {
            // Those before it in the transaction may leave it room after all.
            ends[n] = (writes.len() == 1).then_some(Commit::TooManySubscriptions);
        }
    }

    let open = rest(writes, &ends);
    let answers: Vec<_> = open.iter().map(|(_, write)| (&write.key, write.response.as_slice())).collect();
    for ((n, _), is_new) in open.iter().zip(responses_store(connection, &answers, clock.now())?) {
        if !is_new {
            ends[*n] = Some(Commit::SeenBefore);
        }
    }

    let open = rest(writes, &ends);
    let orders: Vec<_> = open.iter().filter_map(|(_, write)| write.order()).collect();
    orders_insert(connection, &orders)?;
    let changes: Vec<_> =
        open.iter().filter_map(|(n, write)| Some((*n, &write.key, write.change()?))).collect();
    let updates: Vec<&Update> = changes.iter().map(|(.., update)| *update).collect();
    let mut without_effect = vec![];
    for ((n, key, _), is_as_read) in changes.iter().zip(subscriptions_change(connection, &updates)?) {
        if !is_as_read {
            ends[*n] = Some(Commit::LostRace);
            without_effect.push(*key);
        }
    }
    responses_remove(connection, &without_effect)?;
    // The age is checked last: the queue for the transaction, the fence and the request id may each have taken longer
    // than the answer may be old.
    let now = clock.now();
    let mut answers = rest(writes, &ends).into_iter().filter_map(|(_, write)| write.answer());
    if answers.any(|(answer, _)| !answer.is_fresh(now)) {
        return Err(Rollback::AnswerStale);
    }
    Ok(ends)
}

/// Takes the fences of the writes' customers, and ends those whose basis does not hold behind them.
fn look_behind_fences(
    connection: &mut Connection,
    writes: &[Arc<Write>],
    waits: bool,
) -> Result<Ends, Error> {
    let customers: BTreeSet<Uuid> = writes.iter().map(|write| write.customer_id).collect();
    let fences: BTreeMap<Uuid, i64> = fences_take(connection, &customers, waits)?;
    let evidence = writes.iter().filter_map(|write| write.answer()?.1.evidence.as_ref());
    let evidence: Vec<Uuid> = evidence.map(|evidence| evidence.acceptance_id).collect();
    let withdrawn = withdrawn_of(connection, &evidence)?;
    let needed: BTreeSet<_> = writes.iter().filter_map(|write| write.relationship()).collect();
    let known = relationships_of_all(connection, &needed)?;
    let end = |write: &Arc<Write>| {
        let fence = *fences.get(&write.customer_id)?;
        Some(match &write.basis {
            Basis::Answer(basis) => {
                let approval = &basis.1;
                let void = void(fence, approval.revision, approval, &withdrawn);
                void.map_or(Commit::Done, Commit::Void)
            }
            Basis::Relationship { payer_id, needed } => {
                let known = known.get(&(write.customer_id, *payer_id));
                let is_met = known.is_some_and(|known| needed.is_met_by(known));
                if is_met { Commit::Done } else { Commit::NotRelated }
            }
            Basis::Nothing => Commit::Done,
        })
    };
    Ok(writes.iter().map(end).collect())
}

/// The room that each order needs, after those before it.
fn rooms(writes: &[(usize, &Write)]) -> Vec<(usize, Room)> {
    let mut more: HashMap<(Uuid, Uuid), i64> = HashMap::new();
    let room = |(n, write): &(usize, &Write)| {
        let Effect::Order { order, subscriptions, open_max } = &write.effect else { return None };
        let (customer_id, payer_id) = (order.parties.customer_id, order.parties.payer_id);
        let of_both = more.entry((customer_id, payer_id)).or_default();
        *of_both += i64::try_from(subscriptions.len()).unwrap_or(i64::from(u32::MAX));
        Some((*n, Room { customer_id, payer_id, open_max: i64::from(*open_max) - *of_both }))
    };
    writes.iter().filter_map(room).collect()
}

#[cfg(test)]
mod tests;
