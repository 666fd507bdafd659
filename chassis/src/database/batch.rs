//! Batches: work of one kind that arrives while other work of that kind is done is done together, so that what a
//! statement, a transaction or a round trip costs is paid once for all of it.
//!
//! Work that arrives alone is begun at once. What arrives while a batch is done waits for its end, and then all of it is
//! the next batch, up to a limit. So the batches are as large as the load is high, and no work joins a batch that has begun:
//! none reads a state that is older than its arrival. A batch that takes long may be left to end beside the next one. A batch
//! takes from the tenants in turn, and from internal services before each of them, as the
//! [queue of calls](crate::limits::queue) does.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::share::{INTERNAL, on_behalf_of, tenant};
use super::{Connection, Database, Error};
use crate::limits::tenant::Tenant;

/// How long work waits for its batch before it fails. It waits that long while the database does not answer, and an answer of
/// the gate on which it may rest is too old after that.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Batches of one kind that are read at a time. With more of them each answers fewer questions.
const READS_AT_ONCE: usize = 1;

/// Reads of one kind that may be slow while others go on. Together they leave connections of the pool to other work.
const SLOW_READS_MAX: usize = 3;

/// How long the next batch waits for the one before it, while fewer than the permitted number are slow. A server that has
/// fallen silent would be waited for much longer, and other connections may well answer.
const SLOW_AFTER: Duration = Duration::from_millis(200);

/// Does work in batches. Clones share the batches.
pub struct Batcher<W, A>(Arc<Inner<W, A>>);

/// Reads for several calls at a time: on PostgreSQL in batches. On SQLite there are no round trips to save, and each call
/// reads by itself. Clones share the batches.
pub struct BatchedReads<W, A> {
    database: Database,
    read: ReadAll<W, A>,
    batches: Batcher<W, Result<A, Error>>,
}

/// Reads the answers to all of the questions, in their order.
type ReadAll<W, A> = Arc<dyn Fn(&mut Connection, &[W]) -> Result<Vec<Result<A, Error>>, Error> + Send + Sync>;

/// Work of one call, and the means to answer it. A call whose work is dropped gets an error.
pub struct Work<W, A> {
    work: W,
    reply: Reply<A>,
}

/// The means to answer a call.
pub struct Reply<A> {
    sender: oneshot::Sender<A>,
    tenant: Tenant,
}

/// Does a batch.
type Run<W, A> = Box<dyn Fn(Vec<Work<W, A>>) -> Done + Send + Sync>;

type Done = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Inner<W, A> {
    state: Mutex<State<W, A>>,
    /// How much of a batch work takes.
    size: fn(&W) -> usize,
    size_max: usize,
    /// Batches that may be done at a time.
    at_once: usize,
    /// Has a permit for each batch that may be slow beside them.
    slow: Arc<Semaphore>,
    run: Run<W, A>,
}

struct State<W, A> {
    /// Batches that are being done.
    running: usize,
    /// The work that waits, oldest first.
    internal: VecDeque<Waiting<W, A>>,
    by_tenant: HashMap<Tenant, VecDeque<Waiting<W, A>>>,
    /// The tenants whose work waits, the next one first.
    turns: VecDeque<Tenant>,
}

struct Waiting<W, A> {
    work: Work<W, A>,
    /// Dropped when the work is taken into a batch.
    taken: oneshot::Sender<()>,
}

impl<W, A> Work<W, A> {
    /// What is to be done, and the means to answer.
    pub fn split(self) -> (W, Reply<A>) {
        (self.work, self.reply)
    }
}

impl<A> Reply<A> {
    /// Answers the call, if it still waits.
    pub fn answer(self, answer: A) {
        let _ = self.sender.send(answer);
    }
}

impl<A: Send + 'static> Reply<A> {
    /// Answers the call by a task of its own, on behalf of its tenant, so that the next batch does not wait for that. The task
    /// ends with the call.
    pub fn answer_later(mut self, answer: impl Future<Output = A> + Send + 'static) {
        let tenant = self.tenant;
        let task = async move {
            let answer = tokio::select! {
                answer = answer => answer,
                () = self.sender.closed() => return,
            };
            self.answer(answer);
        };
        tokio::spawn(on_behalf_of(tenant, task));
    }
}

impl<W, A> Clone for Batcher<W, A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Send + 'static, A: Send + 'static> Batcher<W, A> {
    /// A batch takes work until its size reaches `size_max`, which the last one may exceed; `at_once` of them are done at a
    /// time, plus up to `slow_max` of them that take long. `run` does a batch and answers its work; it may leave some to
    /// tasks of their own.
    pub fn new<F>(
        (size, size_max): (fn(&W) -> usize, usize),
        (at_once, slow_max): (usize, usize),
        run: impl Fn(Vec<Work<W, A>>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let state = State {
            running: 0,
            internal: VecDeque::new(),
            by_tenant: HashMap::new(),
            turns: VecDeque::new(),
        };
        let run = Box::new(move |batch| -> Done { Box::pin(run(batch)) });
        let slow = Arc::new(Semaphore::new(slow_max));
        Self(Arc::new(Inner { state: Mutex::new(state), size, size_max, at_once, slow, run }))
    }

    /// Has the work done in a batch that begins later than this call, on behalf of its tenant.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if no batch took the work in time; [`Error::Panicked`] if the batch panicked.
    pub async fn submit(&self, work: W) -> Result<A, Error> {
        let (sender, answer) = oneshot::channel();
        let (taken, is_taken) = oneshot::channel();
        let work = Work { work, reply: Reply { sender, tenant: tenant() } };
        if self.0.state().push(Waiting { work, taken }, self.0.at_once) {
            let inner = Arc::clone(&self.0);
            tokio::spawn(async move { inner.run_batches().await });
        }
        if timeout(WAIT_MAX, is_taken).await.is_err() {
            return Err(Error::Unavailable("the database did not answer in time".into()));
        }
        answer.await.map_err(|_| Error::Panicked)
    }
}

impl<W, A> Clone for BatchedReads<W, A> {
    fn clone(&self) -> Self {
        Self { database: self.database.clone(), read: self.read.clone(), batches: self.batches.clone() }
    }
}

impl<W: Send + Sync + 'static, A: Send + 'static> BatchedReads<W, A> {
    /// `read` answers the questions of a batch, at most `batch_max`, by as few statements as it can.
    pub fn new(
        database: Database,
        batch_max: usize,
        read: impl Fn(&mut Connection, &[W]) -> Result<Vec<Result<A, Error>>, Error> + Send + Sync + 'static,
    ) -> Self {
        let read: ReadAll<W, A> = Arc::new(read);
        let (of_batches, read_batch) = (database.clone(), read.clone());
        let run = move |batch: Vec<Work<W, Result<A, Error>>>| {
            read_together(of_batches.clone(), read_batch.clone(), batch)
        };
        let at_once = (READS_AT_ONCE, SLOW_READS_MAX);
        Self { database, read, batches: Batcher::new((|_| 1, batch_max), at_once, run) }
    }

    /// Reads the answer to a question, from a state of the database that is not older than this call.
    ///
    /// # Errors
    /// Its own error of the read; [`Error`] if the batch could not be read.
    pub async fn read(&self, question: W) -> Result<A, Error> {
        if !self.database.is_embedded() {
            return self.batches.submit(question).await?;
        }
        let read = self.read.clone();
        let alone = move |connection: &mut Connection| read(connection, &[question]);
        self.database.read(alone).await?.pop().unwrap_or(Err(Error::Panicked))
    }
}

async fn read_together<W: Send + Sync + 'static, A: Send + 'static>(
    database: Database,
    read: ReadAll<W, A>,
    batch: Vec<Work<W, Result<A, Error>>>,
) {
    let (questions, replies): (Vec<W>, Vec<_>) = batch.into_iter().map(Work::split).unzip();
    match database.read(move |connection: &mut Connection| read(connection, &questions)).await {
        Ok(answers) => replies.into_iter().zip(answers).for_each(|(reply, answer)| reply.answer(answer)),
        Err(error) => {
            let error: Error = error;
            replies.into_iter().for_each(|reply| reply.answer(Err(error.clone())));
        }
    }
}

impl<W, A> Inner<W, A> {
    fn state(&self) -> MutexGuard<'_, State<W, A>> {
        // No code panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one batch after the other until no work waits.
    async fn run_batches(&self) {
        let mut running = Running { inner: self, is_over: false };
        while let Some(batch) = self.next() {
            // The calls of a batch that panics get an error, and the next batch is done.
            let mut done = AssertUnwindSafe((self.run)(batch)).catch_unwind();
            if timeout(SLOW_AFTER, &mut done).await.is_ok() {
                continue;
            }
            // With all permits taken, the next batch waits for this one or another to end.
            tokio::select! {
                _ = &mut done => {}
                permit = Arc::clone(&self.slow).acquire_owned() => drop(tokio::spawn(async move {
                    let _ = done.await;
                    drop(permit);
                })),
            }
        }
        running.is_over = true;
    }

    /// The next batch; without one there is one task less that does batches.
    fn next(&self) -> Option<Vec<Work<W, A>>> {
        let mut state = self.state();
        let batch = state.take(self.size, self.size_max);
        if batch.is_empty() {
            state.running -= 1;
            return None;
        }
        Some(batch)
    }
}

/// A task that does batches. It does not count as one any more when its thread has ended.
struct Running<'a, W, A> {
    inner: &'a Inner<W, A>,
    is_over: bool,
}

impl<W, A> Drop for Running<'_, W, A> {
    fn drop(&mut self) {
        if !self.is_over {
            self.inner.state().running -= 1;
        }
    }
}

impl<W, A> State<W, A> {
    /// Adds work; true if a task has to be begun for it.
    fn push(&mut self, waiting: Waiting<W, A>, at_once: usize) -> bool {
        let tenant = waiting.work.reply.tenant;
        if tenant == INTERNAL {
            self.internal.push_back(waiting);
        } else {
            let queue = self.by_tenant.entry(tenant).or_default();
            if queue.is_empty() {
                self.turns.push_back(tenant);
            }
            queue.push_back(waiting);
        }
        let is_free = self.running < at_once;
        self.running += usize::from(is_free);
        is_free
    }

    /// Takes a batch, one work of each tenant in turn and one of internal services before each. Work whose call has ended
    /// is dropped.
    fn take(&mut self, size: fn(&W) -> usize, size_max: usize) -> Vec<Work<W, A>> {
        let (mut batch, mut taken, mut is_internals_turn) = (vec![], 0, true);
        while taken < size_max {
            let internal = if is_internals_turn { self.internal.pop_front() } else { None };
            is_internals_turn = internal.is_none();
            let next = internal.or_else(|| self.take_of_tenant()).or_else(|| self.internal.pop_front());
            let Some(Waiting { work, taken: is_taken }) = next else { break };
            if !work.reply.sender.is_closed() {
                taken += size(&work.work);
                let _ = is_taken.send(());
                batch.push(work);
            }
        }
        batch
    }

    /// The next work of the tenant whose turn it is.
    fn take_of_tenant(&mut self) -> Option<Waiting<W, A>> {
        let tenant = self.turns.pop_front()?;
        let queue = self.by_tenant.get_mut(&tenant)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.by_tenant.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::sync::mpsc;

    use super::*;

    const GREEDY: Tenant = Tenant::test("TENANT", 1);
    const MODEST: Tenant = Tenant::test("TENANT", 2);

    type Batches = mpsc::UnboundedReceiver<(Vec<u32>, oneshot::Sender<bool>)>;

    /// A batcher of at most four at a time, and its batches, each with a channel that ends it, by an answer or by a panic.
    fn batcher() -> (Batcher<u32, u32>, Batches) {
        let (begun, batches) = mpsc::unbounded_channel();
        let batcher = Batcher::new((|_| 1, 4), (1, 1), move |batch: Vec<Work<u32, u32>>| {
            let begun = begun.clone();
            async move {
                let (work, replies): (Vec<u32>, Vec<_>) = batch.into_iter().map(Work::split).unzip();
                let (go_on, goes_on) = oneshot::channel::<bool>();
                begun.send((work.clone(), go_on)).unwrap();
                assert!(goes_on.await.unwrap(), "this batch panics");
                work.into_iter().zip(replies).for_each(|(work, reply)| reply.answer(work * 10));
            }
        });
        (batcher, batches)
    }

    fn submit(
        batcher: &Batcher<u32, u32>,
        tenant: Tenant,
        work: u32,
    ) -> tokio::task::JoinHandle<Result<u32, Error>> {
        let batcher = batcher.clone();
        tokio::spawn(on_behalf_of(tenant, async move { batcher.submit(work).await }))
    }

    #[tokio::test]
    async fn what_arrives_while_a_batch_is_done_is_the_next_batch() {
        let (batcher, mut batches) = batcher();
        let first = submit(&batcher, MODEST, 1);
        let (batch, go_on) = batches.recv().await.unwrap();
        assert_eq!(batch, [1], "alone it waits for no other");
        let next: Vec<_> = (2..5).map(|work| submit(&batcher, MODEST, work)).collect();
        tokio::task::yield_now().await;
        assert!(batches.try_recv().is_err(), "one batch is done at a time");
        go_on.send(true).unwrap();
        assert!(matches!(first.await.unwrap(), Ok(10)));
        let (batch, go_on) = batches.recv().await.unwrap();
        assert_eq!(batch, [2, 3, 4]);
        go_on.send(true).unwrap();
        for (answer, expected) in join_all(next).await.into_iter().zip([20, 30, 40]) {
            assert!(matches!(answer.unwrap(), Ok(answer) if answer == expected));
        }
    }

    #[tokio::test]
    async fn a_batch_takes_from_tenants_in_turn_and_from_internal_services_before_each() {
        let (batcher, mut batches) = batcher();
        submit(&batcher, MODEST, 0);
        let (_, go_on) = batches.recv().await.unwrap();
        for (tenant, work) in [(GREEDY, 1), (GREEDY, 2), (GREEDY, 3), (GREEDY, 4), (MODEST, 5), (INTERNAL, 6)]
        {
            submit(&batcher, tenant, work);
        }
        tokio::task::yield_now().await;
        go_on.send(true).unwrap();
        let (batch, go_on) = batches.recv().await.unwrap();
        assert_eq!(batch, [6, 1, 5, 2], "the modest tenant does not wait for all that came before it");
        go_on.send(true).unwrap();
        assert_eq!(batches.recv().await.unwrap().0, [3, 4]);
    }

    #[tokio::test]
    async fn a_batch_that_panics_fails_alone() {
        let (batcher, mut batches) = batcher();
        let first = submit(&batcher, MODEST, 1);
        let (_, go_on) = batches.recv().await.unwrap();
        let second = submit(&batcher, MODEST, 2);
        tokio::task::yield_now().await;
        go_on.send(false).unwrap();
        assert!(matches!(first.await.unwrap(), Err(Error::Panicked)));
        let (batch, go_on) = batches.recv().await.unwrap();
        assert_eq!(batch, [2]);
        go_on.send(true).unwrap();
        assert!(matches!(second.await.unwrap(), Ok(20)));
    }

    #[tokio::test]
    async fn the_work_of_a_call_that_has_ended_is_left_out() {
        let (batcher, mut batches) = batcher();
        submit(&batcher, MODEST, 1);
        let (_, go_on) = batches.recv().await.unwrap();
        let ended = submit(&batcher, MODEST, 2);
        submit(&batcher, MODEST, 3);
        tokio::task::yield_now().await;
        ended.abort();
        assert!(ended.await.unwrap_err().is_cancelled());
        go_on.send(true).unwrap();
        assert_eq!(batches.recv().await.unwrap().0, [3]);
    }

    #[tokio::test]
    async fn what_is_answered_later_is_done_for_its_tenant_and_ends_with_its_call() {
        let (sender, mut tenants) = mpsc::unbounded_channel();
        let batcher = Batcher::new((|_| 1, 4), (1, 0), move |batch: Vec<Work<u32, u32>>| {
            for (work, reply) in batch.into_iter().map(Work::split) {
                let end = End(sender.clone());
                reply.answer_later(async move {
                    end.0.send(Some(tenant())).unwrap();
                    if work == 1 { 10 } else { std::future::pending().await }
                });
            }
            std::future::ready(())
        });
        let first = submit(&batcher, MODEST, 1);
        assert_eq!(tenants.recv().await.unwrap(), Some(MODEST));
        assert!(matches!(first.await.unwrap(), Ok(10)));
        assert_eq!(tenants.recv().await.unwrap(), None);
        let second = submit(&batcher, GREEDY, 2);
        assert_eq!(tenants.recv().await.unwrap(), Some(GREEDY));
        second.abort();
        assert_eq!(tenants.recv().await.unwrap(), None, "nothing is done for a call that has ended");
    }

    /// Sends when it is dropped.
    struct End(mpsc::UnboundedSender<Option<Tenant>>);

    impl Drop for End {
        fn drop(&mut self) {
            let _ = self.0.send(None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_batch_holds_up_others_for_a_moment() {
        let (batcher, mut batches) = batcher();
        let first = submit(&batcher, MODEST, 1);
        let (_, first_goes_on) = batches.recv().await.unwrap();
        let second = submit(&batcher, MODEST, 2);
        let began = tokio::time::Instant::now();
        let begun = timeout(WAIT_MAX, batches.recv()).await;
        let (batch, second_goes_on) = begun.expect("the first one does not hold up the second").unwrap();
        assert_eq!((batch, began.elapsed().as_millis() / 10), (vec![2], SLOW_AFTER.as_millis() / 10));
        second_goes_on.send(true).unwrap();
        assert!(matches!(second.await.unwrap(), Ok(20)));
        // The next one is begun at once, although the first is still being done.
        let began = tokio::time::Instant::now();
        let third = submit(&batcher, MODEST, 3);
        let (_, third_goes_on) = batches.recv().await.unwrap();
        assert!(began.elapsed().is_zero());
        for (go_on, done, answer) in [(first_goes_on, first, 10), (third_goes_on, third, 30)] {
            go_on.send(true).unwrap();
            assert!(matches!(done.await.unwrap(), Ok(given) if given == answer));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_slow_batch_has_ended_another_may_be_slow() {
        let (batcher, mut batches) = batcher();
        let first = submit(&batcher, MODEST, 1);
        let (_, first_goes_on) = batches.recv().await.unwrap();
        submit(&batcher, MODEST, 2);
        let (_, _second_never_goes_on) = batches.recv().await.unwrap();
        let third = submit(&batcher, MODEST, 3);
        // Longer than a batch may take before it is slow: both are.
        tokio::time::sleep(2 * SLOW_AFTER).await;
        assert!(batches.try_recv().is_err(), "only one may be slow beside another");
        first_goes_on.send(false).unwrap();
        assert!(matches!(first.await.unwrap(), Err(Error::Panicked)));
        let begun = timeout(WAIT_MAX, batches.recv()).await;
        let (batch, go_on) = begun.expect("the second one does not hold up the third").unwrap();
        assert_eq!(batch, [3]);
        go_on.send(true).unwrap();
        assert!(matches!(third.await.unwrap(), Ok(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_no_batch_takes_in_time_fails() {
        let (batcher, mut batches) = batcher();
        let mut begun = vec![];
        // One batch may be slow beside the one that is done.
        for work in 1..=2 {
            let submitted = submit(&batcher, MODEST, work);
            begun.push((batches.recv().await.unwrap(), submitted));
        }
        let late = submit(&batcher, MODEST, 3);
        assert!(matches!(late.await.unwrap(), Err(Error::Unavailable(_))));
        // What a batch has taken is not given up.
        for ((work, go_on), submitted) in begun {
            go_on.send(true).unwrap();
            assert!(matches!(submitted.await.unwrap(), Ok(answer) if answer == work[0] * 10));
        }
    }
}
