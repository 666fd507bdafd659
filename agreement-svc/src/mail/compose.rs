//! Composes the mail of an announcement: addresses, headers and text.

use std::time::SystemTime;

use chassis::clock::Time;
use lettre::Address;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};

use crate::rules::notification::{Announcement, Failure, mail_of};

/// The mail of an announcement. Its id is the same at every attempt, so that a mailbox can tell a
/// repetition.
pub(super) fn compose(from: &Mailbox, announcement: &Announcement, now: Time) -> Result<Message, Failure> {
    if announcement.recipient.is_empty() {
        return Err(Failure::Erased);
    }
    let to: Address = announcement.recipient.parse().map_err(|_| Failure::Address)?;
    let (subject, text) = mail_of(announcement);
    // Out-of-office replies to it would reach no person (RFC 3834).
    let automatic =
        HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned());
    Message::builder()
        .from(from.clone())
        .to(Mailbox::new(None, to))
        .message_id(Some(format!("<{}@{}>", announcement.attestation_id, from.email.domain())))
        .date(SystemTime::from(now))
        .subject(subject)
        .header(ContentType::TEXT_PLAIN)
        .raw_header(automatic)
        .body(text)
        .map_err(|_| Failure::Address)
}
