//! The announcement of an attestation to the customer's primary contact (ATT-9).

use uuid::Uuid;

use super::{Time, names};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotificationState {
    /// Will be sent, or tried again, when it is due.
    Queued,
    /// The mail server took it.
    Sent,
    /// Failed too often; waits for somebody to ask for another try.
    DeadLetter,
}

names!(NotificationState { Queued = "QUEUED", Sent = "SENT", DeadLetter = "DEAD_LETTER" });

/// How far the announcement of an attestation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub attestation_id: Uuid,
    pub state: NotificationState,
    /// Made so far.
    pub attempts: u32,
    /// When it is tried next, or, claimed, when somebody else may.
    pub due_at: Time,
    pub sent_at: Option<Time>,
    /// Why the last attempt failed; empty while none did. Never what a mail server said, which may name
    /// the addressee.
    pub last_failure: String,
}
