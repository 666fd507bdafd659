//! The life of a process: its runtime, and the signals that begin its graceful shutdown.

/// The exit code of a process that a signal ended.
const INTERRUPTED: i32 = 130;

/// A runtime of one thread. A server that has more of them gives each its own connections.
///
/// # Errors
/// The operating system's.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// The number of threads that serve: as many as the machine has cores for this process, unless it is set.
#[must_use]
pub fn serving_threads(set: Option<u16>) -> u16 {
    let cores = || {
        std::thread::available_parallelism().map_or(1, |cores| u16::try_from(cores.get()).unwrap_or(u16::MAX))
    };
    set.unwrap_or_else(cores)
}

/// Resolves at the first interrupt or termination signal; the second ends the process at once.
pub async fn signal() {
    first_signal().await;
    tokio::spawn(async {
        first_signal().await;
        std::process::exit(INTERRUPTED);
    });
}

/// Ends the process at the first signal, for a command that may be cut off anywhere. Without a handler the first process of
/// a container would not hear signals.
///
/// # Errors
/// The operating system's.
pub fn end_at_signal() -> std::io::Result<()> {
    let runtime = runtime()?;
    // A thread of its own, because a command may block the one it runs on.
    std::thread::spawn(move || {
        runtime.block_on(first_signal());
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

async fn first_signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the process cannot receive termination signals");
                let _ = tokio::signal::ctrl_c().await;
            }
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}
