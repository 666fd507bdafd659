//! Exponential backoff with jitter: how long to wait before the next attempt.

use std::time::Duration;

/// A random wait of at most `base` doubled for each attempt made so far (from 0), and never more
/// than `max`. Full jitter, so that callers who failed together do not come back together.
#[must_use]
pub fn wait(attempt: u32, base: Duration, max: Duration) -> Duration {
    let ceiling = base.saturating_mul(2_u32.saturating_pow(attempt.min(30))).min(max);
    ceiling.mul_f64(rand::random::<f64>())
}
