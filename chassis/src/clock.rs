//! The clock, ids that are ordered by time (UUID version 7), and random values. Only this file reads them from the system.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use uuid::{NoContext, Timestamp, Uuid};

/// An instant in UTC, in whole microseconds: what both databases keep without loss.
pub type Time = DateTime<Utc>;

/// Knows what time it is, and nothing more.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start` until [`Clock::set`] moves it. Clones move together.
    #[must_use]
    pub fn manual(start: Time) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(start.timestamp_micros()))))
    }

    /// Moves a manual clock; a system clock is left alone.
    pub fn set(&self, now: Time) {
        if let Source::Manual(micros) = &self.0 {
            micros.store(now.timestamp_micros(), Ordering::SeqCst);
        }
    }

    /// The time now, cut to whole microseconds.
    #[must_use]
    pub fn now(&self) -> Time {
        let micros = match &self.0 {
            #[expect(clippy::disallowed_methods, reason = "this is the one place that asks")]
            Source::System => Utc::now().timestamp_micros(),
            Source::Manual(micros) => micros.load(Ordering::SeqCst),
        };
        DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::UNIX_EPOCH)
    }
}

/// A new id whose order follows `now` to the millisecond (UUID version 7).
#[must_use]
pub fn new_id(now: Time) -> Uuid {
    let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, now.timestamp_subsec_nanos()))
}

/// The lowest id that [`new_id`] makes at a time or later, in text: ids of earlier milliseconds are lower.
#[must_use]
pub fn lowest_id(at: Time) -> String {
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or(0);
    Uuid::from_u128(u128::from(millis) << 80).to_string()
}

/// 128 random bits in hexadecimal: a salt that makes a commitment impossible to guess.
#[must_use]
pub fn new_salt() -> String {
    format!("{:032x}", rand::random::<u128>())
}
