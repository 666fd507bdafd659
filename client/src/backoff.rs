//! Exponential backoff with jitter.

use std::time::Duration;

use tower::retry::backoff::{ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff};
use tower::util::rng::HasherRng;

/// Each wait is twice as long as the one before, from `first` to `longest`, and up to twice that by chance, so that clients
/// that failed together do not come back together.
pub(crate) fn backoff(first: Duration, longest: Duration) -> ExponentialBackoff {
    // It is an error only if `first` is longer than `longest`.
    ExponentialBackoffMaker::new(first, longest, 1.0, HasherRng::new()).unwrap_or_default().make_backoff()
}
