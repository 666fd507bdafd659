//! Composes a mail: addresses, headers and text.

use std::time::SystemTime;

use chassis::clock::Time;
use lettre::Address;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message};

use super::templates::MailTemplates;
use crate::rules::notification::{DueMail, MailFailure};

/// A mail as it is handed over. Its id is the same at every attempt, so that a mailbox can tell a repetition.
pub(super) fn compose(
    from: &Mailbox,
    texts: &MailTemplates,
    mail: &DueMail,
    now: Time,
) -> Result<Message, MailFailure> {
    if mail.recipient.is_empty() {
        return Err(MailFailure::NoContact);
    }
    let to: Address = mail.recipient.parse().map_err(|_| MailFailure::Address)?;
    let (subject, text) = texts.mail(mail).map_err(|error| {
        tracing::warn!(mail = %mail.id, error = format!("{error:#}"), "a mail cannot be written");
        MailFailure::Template
    })?;
    // Out-of-office replies to it would reach no person (RFC 3834).
    let automatic =
        HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned());
    let support = mail.sender().map(|partner| partner.support.email.parse::<Address>());
    let mut message = Message::builder();
    // A reply to the sender would reach no person.
    if let Some(Ok(support)) = support {
        message = message.reply_to(Mailbox::new(None, support));
    }
    message
        .from(from.clone())
        .to(Mailbox::new(None, to))
        .message_id(Some(format!("<{}@{}>", mail.id, from.email.domain())))
        .date(SystemTime::from(now))
        .subject(subject)
        .header(ContentType::TEXT_PLAIN)
        .raw_header(automatic)
        .body(text)
        .map_err(|_| MailFailure::Address)
}
