//! Erasure from stored answers: the answers of idempotency keys are searched and rewritten by reflection.

use std::collections::BTreeSet;

use chassis::database::{Connection, Error};
use chassis::idempotency::{StoredAnswer, answers_after};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, Value};
use uuid::Uuid;

use crate::store::erase::Person;

/// Answers of one page: each may be some kilobytes large.
pub(super) const ANSWERS_PER_PAGE: i64 = 200;

/// The message that holds a person.
const CONTACT: &str = "csp.type.v1.Contact";

/// The package of the messages that calls answer with.
const ANSWERS: &str = "csp.agreement.v1";

/// Finds the stored answers with the person, and makes of each what is to take its place: the answer without the person, and
/// without the digest of what was asked, which covers the person, so a guess could be checked against it. Answers that only
/// name an attestation of the person lose the digest for the same reason.
pub(super) fn answers_without(
    connection: &mut Connection,
    person: &Person,
    attestation_ids: &[Uuid],
) -> Result<Vec<StoredAnswer>, Error> {
    let unreadable = |why: String| Error::Query(format!("stored answers cannot be searched: {why}"));
    let messages =
        DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(|e| unreadable(e.to_string()))?;
    let ids: BTreeSet<String> = attestation_ids.iter().map(Uuid::to_string).collect();
    let mut found = vec![];
    let mut after: Option<StoredAnswer> = None;
    loop {
        let page = answers_after(connection, after.as_ref(), ANSWERS_PER_PAGE)?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.clone());
        for mut stored in page {
            // Most answers are about others; reading them all field by field would take long.
            let text = String::from_utf8_lossy(&stored.answer);
            if !person.may_be_in(&text) && !ids.iter().any(|id| text.contains(id.as_str())) {
                continue;
            }
            let name = format!("{ANSWERS}.{}Response", stored.call);
            let of = messages.get_message_by_name(&name);
            let of = of.ok_or_else(|| unreadable(format!("there is no message {name}")))?;
            let mut message = DynamicMessage::decode(of, stored.answer.as_slice())
                .map_err(|_| unreadable(format!("one is no {name}")))?;
            let names_it = erase_in(&mut message, person);
            if names_it {
                stored.answer = message.encode_to_vec();
            }
            if names_it || mentions(&message, &ids) {
                found.push(stored);
            }
        }
    }
}

/// Empties the person's contacts, however deep they stand.
fn erase_in(message: &mut DynamicMessage, person: &Person) -> bool {
    if message.descriptor().full_name() == CONTACT {
        let email = message.get_field_by_name("email");
        let is_person = email.is_some_and(|email| email.as_str().is_some_and(|email| person.has(email)));
        if is_person {
            *message = DynamicMessage::new(message.descriptor());
        }
        return is_person;
    }
    let mut was_there = false;
    for field in fields_of(&message.descriptor(), message) {
        match message.get_field_mut(&field) {
            Value::Message(inner) => was_there |= erase_in(inner, person),
            Value::List(values) => {
                for inner in values.iter_mut().filter_map(Value::as_message_mut) {
                    was_there |= erase_in(inner, person);
                }
            }
            Value::Map(values) => {
                for inner in values.values_mut().filter_map(Value::as_message_mut) {
                    was_there |= erase_in(inner, person);
                }
            }
            _ => {}
        }
    }
    was_there
}

/// Whether one of the ids stands in a field of its own, however deep.
fn mentions(message: &DynamicMessage, ids: &BTreeSet<String>) -> bool {
    fn is_in(value: &Value, ids: &BTreeSet<String>) -> bool {
        match value {
            Value::String(text) => ids.contains(text),
            Value::Message(inner) => mentions(inner, ids),
            Value::List(values) => values.iter().any(|value| is_in(value, ids)),
            Value::Map(values) => values.values().any(|value| is_in(value, ids)),
            _ => false,
        }
    }
    message.fields().any(|(_, value)| is_in(value, ids))
}

/// The fields that are set.
fn fields_of(
    descriptor: &MessageDescriptor,
    message: &DynamicMessage,
) -> Vec<prost_reflect::FieldDescriptor> {
    descriptor.fields().filter(|field| message.has_field(field)).collect()
}
