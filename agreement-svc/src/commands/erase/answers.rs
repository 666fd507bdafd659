//! Erasure from stored answers: the answers of idempotency keys are searched and rewritten by reflection.

use std::collections::BTreeSet;

use chassis::database::{Connection, Error};
use chassis::idempotency::{StoredAnswer, answers_after};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage, Value};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::store::erase::Person;

/// Answers of one page: each may be some kilobytes large.
pub(super) const ANSWERS_PER_PAGE: i64 = 200;

/// Characters of an id as text.
const ID_LENGTH: usize = Hyphenated::LENGTH;

/// The message with the person who accepted, or is written to.
const CONTACT: &str = "csp.type.v1.Contact";

/// The messages that hold a person.
const CONTACTS: [&str; 2] = [CONTACT, "csp.agreement.v1.SupportContact"];

/// The message with more of the person, beside the contact, and its fields that are erased with it.
const DETAILS: &str = "csp.type.v1.AttestationDetails";
const ERASED_DETAILS: [&str; 3] = ["title", "evidence_reference", "on_behalf_of"];

/// The package of the messages that calls answer with.
const ANSWERS: &str = "csp.agreement.v1";

/// The call whose answers name the customer that the request described with its contact.
const OF_CUSTOMERS: &str = "ImportCustomers";

/// The records of a person, which answers name.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    pub attestations: BTreeSet<Uuid>,
    /// The customers whose contact the person is.
    pub customers: BTreeSet<Uuid>,
}

/// A stored answer, and what is to take its place.
pub(super) type Replaced = (StoredAnswer, Vec<u8>);

/// Finds the stored answers with the person, and makes of each what is to take its place: the answer without the person, and
/// without the digest of what was asked, which covers the person, so a guess could be checked against it. Answers that only
/// name an attestation of the person, or the imported customer whose contact it is, lose the digest for the same reason.
pub(super) fn answers_without(
    connection: &mut Connection,
    person: &Person,
    records: &Records,
) -> Result<Vec<Replaced>, Error> {
    let unreadable = |why: String| Error::Query(format!("stored answers cannot be searched: {why}"));
    let messages =
        DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(|e| unreadable(e.to_string()))?;
    let [attestations, customers] = [&records.attestations, &records.customers]
        .map(|ids| ids.iter().map(Uuid::to_string).collect::<BTreeSet<String>>());
    let mut found = vec![];
    let mut after: Option<StoredAnswer> = None;
    loop {
        let page = answers_after(connection, after.as_ref(), ANSWERS_PER_PAGE)?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.clone());
        for stored in page {
            let ids = if stored.call == OF_CUSTOMERS { &customers } else { &attestations };
            // Most answers are about others; reading them all field by field would take long.
            let may_mention = stored.has_digest && may_mention(&stored.answer, ids);
            if !may_mention && !person.may_be_in(&String::from_utf8_lossy(&stored.answer)) {
                continue;
            }
            let name = format!("{ANSWERS}.{}Response", stored.call);
            let of = messages.get_message_by_name(&name);
            let of = of.ok_or_else(|| unreadable(format!("there is no message {name}")))?;
            let mut message = DynamicMessage::decode(of, stored.answer.as_slice())
                .map_err(|_| unreadable(format!("one is no {name}")))?;
            if erase_in(&mut message, person) {
                found.push((stored, message.encode_to_vec()));
            } else if may_mention && mentions(&message, ids) {
                let same = stored.answer.clone();
                found.push((stored, same));
            }
        }
    }
}

/// Whether one of the ids may stand in an encoded message. Each piece that may be an id is looked up, so that many ids take
/// no longer than one.
fn may_mention(encoded: &[u8], ids: &BTreeSet<String>) -> bool {
    let is_of_id = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'-';
    let pieces = encoded.split(|byte| !is_of_id(byte)).flat_map(|piece| piece.windows(ID_LENGTH));
    pieces.filter_map(|piece| std::str::from_utf8(piece).ok()).any(|piece| ids.contains(piece))
}

/// Empties the person's contacts, however deep they stand, and the details beside them.
fn erase_in(message: &mut DynamicMessage, person: &Person) -> bool {
    if CONTACTS.contains(&message.descriptor().full_name()) {
        let email = message.get_field_by_name("email");
        let is_person = email.is_some_and(|email| email.as_str().is_some_and(|email| person.has(email)));
        if is_person {
            *message = DynamicMessage::new(message.descriptor());
        }
        return is_person;
    }
    let mut was_there = false;
    let mut is_beside = false;
    for field in fields_of(&message.descriptor(), message) {
        match message.get_field_mut(&field) {
            Value::Message(inner) => {
                let was_in = erase_in(inner, person);
                is_beside |= was_in && inner.descriptor().full_name() == CONTACT;
                was_there |= was_in;
            }
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
    for field in fields_of(&message.descriptor(), message).iter().filter(|_| is_beside) {
        if let Value::Message(details) = message.get_field_mut(field)
            && details.descriptor().full_name() == DETAILS
        {
            ERASED_DETAILS.iter().for_each(|name| details.clear_field_by_name(name));
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
