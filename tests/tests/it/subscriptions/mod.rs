//! Subscriptions: what changes them, by request, by time and by a withdrawal.

mod changes;
mod resellers;
pub(crate) mod withdrawals;
