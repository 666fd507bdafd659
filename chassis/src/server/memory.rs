//! Bound on the memory of request messages in progress, fair among tenants.
//!
//! Each call may hold [`SMALL_BYTES`] of its message, so the many small messages are bounded by the number of slots and
//! cost nothing here. The bytes beyond that come from a budget of the process, as they arrive: messages that are sent
//! halfway cannot take more memory than that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::limits::tenant::{Overload, Permit, Tenant, TenantLimiter};
use crate::server::MESSAGE_BYTES_MAX;

/// What arrives before the service reads a message is bounded by a window of the same size.
const SMALL_BYTES: usize = 64 << 10;

/// The budget of a process: 64 of the largest messages. One tenant gets at most half of it.
const LARGE_BYTES_MAX: usize = 64 << 20;

/// The budget is taken in pieces of this size, so that not each frame of a message locks it.
const PIECE_BYTES: usize = 64 << 10;

pub(in crate::server) fn budget(internal_kind: &'static str) -> TenantLimiter {
    TenantLimiter::new(LARGE_BYTES_MAX / PIECE_BYTES, internal_kind)
}

/// The message of one call in progress.
pub(in crate::server) struct RequestMemory {
    budget: TenantLimiter,
    tenant: Tenant,
    pieces: Mutex<Vec<Permit>>,
    has_arrived: AtomicBool,
    is_broken: AtomicBool,
}

impl RequestMemory {
    pub(in crate::server) fn new(budget: TenantLimiter, tenant: Tenant) -> Self {
        Self {
            budget,
            tenant,
            pieces: Mutex::default(),
            has_arrived: AtomicBool::default(),
            is_broken: AtomicBool::default(),
        }
    }

    /// Makes room for the bytes of the message that have arrived. Of a stream of messages only one is held at a time, so
    /// no call needs more than the largest message.
    ///
    /// # Errors
    /// The budget is used up.
    pub(in crate::server) fn reserve(&self, arrived: usize) -> Result<(), Overload> {
        let large = arrived.min(MESSAGE_BYTES_MAX).saturating_sub(SMALL_BYTES);
        if large == 0 {
            return Ok(());
        }
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        while pieces.len() < large.div_ceil(PIECE_BYTES) {
            pieces.push(self.budget.try_acquire_many(self.tenant, 1)?);
        }
        Ok(())
    }

    pub(in crate::server) fn set_arrived(&self) {
        self.has_arrived.store(true, Ordering::Relaxed);
    }

    /// The message broke off: nothing more arrives.
    pub(in crate::server) fn set_broken(&self) {
        self.is_broken.store(true, Ordering::Relaxed);
        self.set_arrived();
    }

    pub(in crate::server) fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// Whether the whole message has arrived.
    pub(in crate::server) fn has_arrived(&self) -> bool {
        self.has_arrived.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: Tenant = Tenant::test("TENANT", 1);
    const OTHER: Tenant = Tenant::test("TENANT", 2);

    #[test]
    fn large_messages_are_bounded_and_small_ones_pass() {
        let budget = budget("INTERNAL");
        let message = |tenant| RequestMemory::new(budget.clone(), tenant);
        let mut held = vec![];
        let refused = (0..1000).find_map(|_| {
            let next = message(TENANT);
            let refused = next.reserve(MESSAGE_BYTES_MAX).err();
            held.push(next);
            refused
        });
        held.pop();
        assert_eq!((held.len(), refused), (34, Some(Overload::Tenant)));
        assert_eq!(message(TENANT).reserve(SMALL_BYTES), Ok(()));
        assert_eq!(message(OTHER).reserve(MESSAGE_BYTES_MAX), Ok(()));
        // A stream of messages holds as much as one.
        assert_eq!(held[0].reserve(usize::MAX), Ok(()));
        held.pop();
        assert_eq!(message(TENANT).reserve(MESSAGE_BYTES_MAX), Ok(()));
    }
}
