//! Group commit: one thread writes, and commits all commands that wait together, which is several times faster than a
//! commit for each and no less durable.
//!
//! Each command but the first runs in a savepoint of its own, so that a command that fails, or panics, undoes only itself. No
//! command returns before the commit. If the batch as a whole fails (a full disk, a lost connection), all of its commands fail,
//! and the next batch starts on a new connection.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot};

use super::connection::{Begin, Purpose};
use super::{Connection, Error, Manager, PooledConnection, Url, error};

/// Commands of one commit, each counted as often as it has parts. Beyond this the gain of a larger batch is small and its
/// delay is not.
const BATCH_MAX: usize = 128;

/// Commands in the queue. Further callers wait to enter it.
const QUEUE_MAX: usize = 1024;

/// A command that waits.
struct Job {
    parts: usize,
    run: Run,
}

/// It gets the connection, or the error why there is none.
type Run = Box<dyn FnOnce(Result<&mut Connection, Error>) -> Ran + Send>;

/// A command that has run and whose caller waits for the commit.
struct Ran {
    keep: bool,
    answer: Box<dyn FnOnce(Option<Error>)>,
}

pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    /// Dropped after `jobs`, whose end is its end.
    _thread: Joined,
}

/// The writing thread, if it has a file; dropping this waits for its end. The last connection to a file of SQLite removes
/// the file's log when it is closed, and must not do so after the file has been replaced. A thread with a connection to a
/// server is not waited for, since the server may be silent.
struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        // A command may hold the last handle to the database.
        if let Some(thread) = self.0.take().filter(|own| own.thread().id() != thread::current().id()) {
            drop(thread.join());
        }
    }
}

impl Writer {
    pub(super) fn start(manager: Manager) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let has_file = matches!(manager.url, Url::Sqlite(_));
        let thread = thread::spawn(move || work(&manager, queue));
        Self { jobs, _thread: Joined(has_file.then_some(thread)) }
    }

    /// Commands that wait to be run.
    pub(super) fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }

    pub(super) async fn write<T, E, F>(&self, parts: usize, write: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel::<Result<T, E>>();
        let run: Run = Box::new(move |connection| {
            let result = match connection {
                Err(error) => Err(error.into()),
                Ok(connection) => catch_unwind(AssertUnwindSafe(|| write(connection)))
                    .unwrap_or_else(|_| Err(Error::Panicked.into())),
            };
            let keep = result.is_ok();
            let answer = move |outage: Option<Error>| {
                // The caller may have gone away.
                let _ = reply.send(outage.map_or(result, |outage| Err(outage.into())));
            };
            Ran { keep, answer: Box::new(answer) }
        });
        let gone = || E::from(Error::Unavailable("the writer has stopped".into()));
        self.jobs.send(Job { parts, run }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn work(manager: &Manager, mut queue: mpsc::Receiver<Job>) {
    error::work_for(manager.reading_max);
    let mut idle: Option<PooledConnection> = None;
    while let Some(first) = queue.blocking_recv() {
        match begun(manager, idle.take()) {
            Err(error) => {
                let waiting = if matches!(manager.url, Url::Sqlite(_)) { 0 } else { queue.len() };
                refuse(&error, first, waiting, &mut queue);
            }
            Ok(mut connection) => {
                if batch(&mut connection, first, &mut queue) {
                    if error::take_trouble() {
                        manager.examine(&mut connection);
                    }
                    idle = Some(connection);
                } else {
                    tracing::warn!("a batch of writes failed; starting over on a new connection");
                    manager.examine(&mut connection);
                }
            }
        }
    }
}

/// A connection on which a transaction has begun: a new one where that fails on the idle one.
fn begun(manager: &Manager, idle: Option<PooledConnection>) -> Result<PooledConnection, Error> {
    if let Some(mut connection) = idle
        && manager.is_current(&mut connection)
    {
        match connection.begin(Purpose::Write, manager.is_pooled) {
            Ok(()) => return Ok(connection),
            Err(error) if matches!(manager.url, Url::Sqlite(_)) => return Err(error),
            Err(_) => manager.discard(&mut connection),
        }
    }
    let mut connection = manager.connect_pooled()?;
    connection.begin(Purpose::Write, manager.is_pooled)?;
    Ok(connection)
}

/// Refuses a command, and those that have waited for the same connection: a server that does not answer would keep each of
/// them waiting as long, one after the other.
fn refuse(error: &Error, first: Job, waiting: usize, queue: &mut mpsc::Receiver<Job>) {
    ((first.run)(Err(error.clone())).answer)(None);
    for _ in 0..waiting {
        let Ok(job) = queue.try_recv() else { return };
        ((job.run)(Err(error.clone())).answer)(None);
    }
}

/// Runs one batch in the transaction that has begun; false if the connection must not be used again.
///
/// The first command has no savepoint: if it fails, the transaction is rolled back, and nothing else is in it. For a savepoint
/// SQLite copies each page that is changed after it.
fn batch(connection: &mut Connection, first: Job, queue: &mut mpsc::Receiver<Job>) -> bool {
    error::take_trouble();
    let mut parts = first.parts;
    let ran = (first.run)(Ok(connection));
    if !ran.keep {
        let is_undone = connection.roll_back_to(Begin::Transaction).is_ok();
        (ran.answer)(None);
        return is_undone;
    }
    let mut answers = vec![ran.answer];
    let mut outcome = connection.probe_transaction();
    while outcome.is_ok() && parts < BATCH_MAX {
        let Ok(job) = queue.try_recv() else { break };
        parts += job.parts;
        let ran = match connection.begin_savepoint() {
            Ok(()) => (job.run)(Ok(connection)),
            Err(error) => {
                outcome = Err(error.clone());
                (job.run)(Err(error))
            }
        };
        if outcome.is_ok() {
            outcome = if ran.keep { connection.commit() } else { connection.roll_back_to(Begin::Savepoint) };
        }
        answers.push(ran.answer);
    }
    if outcome.is_ok() {
        outcome = connection.commit();
    }
    let outage = outcome.err().map(|error| match error {
        Error::Unavailable(_) => error,
        other => Error::Unavailable(format!("a batch of writes failed: {other}")),
    });
    if outage.is_some() {
        // The rest of the transaction ends with the connection.
        let _ = connection.roll_back();
    }
    for answer in answers {
        answer(outage.clone());
    }
    outage.is_none()
}

#[cfg(test)]
mod tests {
    use diesel::connection::SimpleConnection;

    use super::*;

    #[tokio::test]
    async fn dropping_the_writer_closes_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let (file, log) = (folder.path().join("a.sqlite"), folder.path().join("a.sqlite-wal"));
        let (manager, _) = Manager::open(&Url::Sqlite(file)).unwrap();
        let writer = Writer::start(manager.writing());
        let create = |connection: &mut Connection| {
            crate::query!(connection, c => c.batch_execute("CREATE TABLE t (id TEXT)")).map_err(Error::from)
        };
        writer.write(1, create).await.unwrap();
        assert!(log.exists());
        drop(writer);
        assert!(!log.exists());
    }
}
