//! The life of a process: its runtime, and the signals that begin its graceful shutdown.

/// The exit code of a process that a signal ended.
const INTERRUPTED: i32 = 130;

/// A runtime with that many threads for calls. With one thread, calls run on the thread that accepts them, which spares
/// each hand-over between threads.
///
/// # Errors
/// The operating system's.
pub fn runtime(worker_threads: u16) -> std::io::Result<tokio::runtime::Runtime> {
    let mut runtime = match worker_threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    runtime.worker_threads(worker_threads.into()).enable_all().build()
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
    let runtime = runtime(1)?;
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
