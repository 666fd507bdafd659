//! Subscriptions: what changes them, by request, by time and by a withdrawal.

mod changes;
pub(crate) mod withdrawals;
