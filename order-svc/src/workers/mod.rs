//! The background workers: the consumer of agreement-svc's history, the recorder of order-svc's own, renewals, and the
//! purchase reports.

pub(crate) mod history;
pub(crate) mod recorder;
pub(crate) mod renewals;
pub(crate) mod reporter;

use crate::rules::Time;

/// How far the history has been applied, as this process knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    /// The revision of the last event.
    pub revision: i64,
    /// What was recorded until then has been applied, but for what was just being stored; `None` when that
    /// is not known.
    pub until: Option<Time>,
    /// Whether agreement-svc's history is known not to be the one that was followed: its database was restored from an
    /// older copy. `None` until it was asked.
    pub is_invalid: Option<bool>,
}
