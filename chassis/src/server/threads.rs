//! The threads that serve: each has a runtime of its own, and serves the connections that it is given, in turn. A call runs on
//! the thread of its connection, so that no thread hands it to another, which would cost more than most calls take.

use std::io;
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::lifecycle::runtime;

/// The thread that calls this, and others. Dropping it ends those, with whatever still runs there.
pub(super) struct Threads {
    handles: Vec<Handle>,
    others: Vec<JoinHandle<()>>,
    stop: Option<DropGuard>,
}

impl Threads {
    /// So many threads, the calling one included.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn start(count: u16) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut threads =
            Self { handles: vec![Handle::current()], others: vec![], stop: Some(stop.clone().drop_guard()) };
        for _ in 1..count {
            let runtime = runtime()?;
            threads.handles.push(runtime.handle().clone());
            let stopped = stop.clone().cancelled_owned();
            threads.others.push(std::thread::spawn(move || {
                runtime.block_on(stopped);
                // What still waits for a database keeps no shutdown waiting.
                runtime.shutdown_background();
            }));
        }
        Ok(threads)
    }

    pub(super) fn handles(&self) -> &[Handle] {
        &self.handles
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.others.drain(..) {
            drop(thread.join());
        }
    }
}
