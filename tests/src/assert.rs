//! Assertions: what a refusal says, and waiting for what a service does in its own time.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use crate::clients::reason_of;

/// The longest that a test waits for what a service does after it answered.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Between two attempts to see what a test waits for.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(10);

/// The code and the reason of a refusal.
#[must_use]
pub fn refusal(status: &Status) -> (Code, String) {
    (status.code(), reason_of(status))
}

/// The code and the reason of a call that must be refused.
///
/// # Panics
/// When the call succeeded.
#[track_caller]
pub fn refused<T: Debug>(answer: Result<T, Status>) -> (Code, String) {
    match answer {
        Ok(answer) => panic!("not refused: {answer:?}"),
        Err(status) => refusal(&status),
    }
}

/// Makes attempts until one yields something.
///
/// # Panics
/// When none does within a minute; the message names what the test waits for.
pub async fn eventually<T>(what: &str, attempt: impl AsyncFn() -> Option<T>) -> T {
    let attempts = async {
        loop {
            if let Some(seen) = attempt().await {
                return seen;
            }
            sleep(ATTEMPT_INTERVAL).await;
        }
    };
    match timeout(WAIT_MAX, attempts).await {
        Ok(seen) => seen,
        Err(_) => panic!("not within {WAIT_MAX:?}: {what}"),
    }
}
