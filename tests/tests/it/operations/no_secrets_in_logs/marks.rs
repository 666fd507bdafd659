//! The marks: what must not be said, where it is put, and whether it was put wherever the contract has a place
//! for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use futures_util::stream;
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use proto::agreement::SupportContact;
use proto::types::{AttestationDetails, Contact};
use tests::fixtures;
use tonic::Request;
use tonic::metadata::MetadataValue;

/// In everything that must not be said; in telephone numbers the second.
pub(super) const MARK: &str = "5ecret7a9q";
pub(super) const MARKED_NUMBER: &str = "015773141592";

/// The messages that a person stands in, as fields of the contract refer to them.
const PEOPLE: [&str; 3] =
    [".csp.type.v1.Contact", ".csp.type.v1.AttestationDetails", ".csp.agreement.v1.SupportContact"];

/// Every request that was marked, encoded, by the name of its type. One list for both databases: each has the
/// same calls.
static SENT: Mutex<Vec<(&'static str, Vec<u8>)>> = Mutex::new(Vec::new());

/// The ways in which something may be said.
pub(super) fn forms(mark: &str) -> Vec<String> {
    let bytes = mark.as_bytes();
    let decimals = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // At each of the three positions in a base64 text; the characters that depend on adjacent bytes are left out.
    let base64 = (0..3).map(|before| {
        let text = STANDARD_NO_PAD.encode([vec![0; before], bytes.to_vec()].concat());
        text[(before * 8).div_ceil(6)..text.len() - 1].to_owned()
    });
    base64.chain([mark.to_owned(), mark.to_uppercase(), decimals, hex]).collect()
}

/// The same person each time, under another first name: what was attested before would not be attested again.
pub(super) fn marked_contact() -> Contact {
    Contact {
        first_name: format!("Jane {} {MARK}", fixtures::request_id()),
        last_name: format!("Doe {MARK}"),
        email: format!("jane.{MARK}@contoso.example"),
        phone: MARKED_NUMBER.into(),
    }
}

pub(super) fn bad_contact() -> Contact {
    Contact {
        email: format!("no address {MARK}"),
        phone: format!("no number {MARK} {MARKED_NUMBER}"),
        ..marked_contact()
    }
}

pub(super) fn marked_details() -> AttestationDetails {
    AttestationDetails {
        title: format!("Head of {MARK}"),
        evidence_reference: format!("Shelf {MARK}"),
        on_behalf_of: format!("Employee {MARK}"),
        external_reference: reference(),
        ..AttestationDetails::default()
    }
}

/// Every text is too long, and the digest is none.
pub(super) fn bad_details() -> AttestationDetails {
    AttestationDetails {
        title: MARK.repeat(11),
        evidence_reference: MARK.repeat(21),
        evidence_sha256: MARK.into(),
        on_behalf_of: MARK.repeat(6),
        external_reference: too_long_reference(),
        shown_text: None,
    }
}

pub(super) fn marked_support() -> SupportContact {
    SupportContact {
        email: format!("help.{MARK}@northwind.example"),
        phone: MARKED_NUMBER.into(),
        url: format!("https://{MARK}.example/help"),
    }
}

pub(super) fn bad_support() -> SupportContact {
    SupportContact {
        email: format!("no address {MARK}"),
        phone: format!("no number {MARK} {MARKED_NUMBER}"),
        url: format!("no page {MARK}"),
    }
}

/// An external reference.
pub(super) fn reference() -> String {
    format!("for {MARK}")
}

pub(super) fn too_long_reference() -> String {
    MARK.repeat(9)
}

/// A request with marks in its metadata.
pub(super) fn marked<M: Message>(message: M) -> Request<M> {
    remember(&message);
    with_marks(message)
}

/// The rows of an import, with marks in the metadata.
pub(super) fn marked_rows<M: Message>(rows: Vec<M>) -> Request<stream::Iter<std::vec::IntoIter<M>>> {
    rows.iter().for_each(remember);
    with_marks(stream::iter(rows))
}

fn remember<M: Message>(message: &M) {
    SENT.lock().unwrap().push((std::any::type_name::<M>(), message.encode_to_vec()));
}

fn with_marks<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    for (name, value) in [
        ("authorization", format!("Bearer {MARK}")),
        ("cookie", format!("session={MARK}")),
        ("x-call-id", format!("jane.{MARK}@contoso.example")),
        ("x-odd", MARK.to_owned()),
        ("traceparent", format!("00-{MARK}")),
        ("baggage", format!("user={MARK}")),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request.metadata_mut().insert_bin("x-odd-bin", MetadataValue::from_bytes(MARK.as_bytes()));
    request
}

/// Fails unless a mark was sent in each field of each request of the contract that a person can be known by.
pub(super) fn assert_sent_everywhere() {
    let contract = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut messages = BTreeMap::new();
    for file in &contract.file {
        for message in &file.message_type {
            messages.insert(format!(".{}.{}", file.package(), message.name()), message);
        }
    }
    let methods = contract.file.iter().flat_map(|file| &file.service).flat_map(|service| &service.method);
    let requests: BTreeSet<String> = methods.map(|method| method.input_type().to_owned()).collect();
    let sent = SENT.lock().unwrap();
    let (mut places, mut unsent) = (0, vec![]);
    for request in &requests {
        let type_name = format!("proto{}", request.replace('.', "::"));
        for (path, numbers) in places_in(&messages, request) {
            places += 1;
            let mut of_type = sent.iter().filter(|(name, _)| *name == type_name);
            if !of_type.any(|(_, encoded)| values(encoded, &numbers).into_iter().any(is_marked)) {
                unsent.push(format!("{request}.{path}"));
            }
        }
    }
    assert!(places > 50, "{places} places: otherwise it would prove nothing");
    assert_eq!(unsent, [""; 0], "a person may stand there, and no mark was sent there");
}

/// The fields in a message, however deep, that a person can be known by: their names and their numbers.
fn places_in(messages: &BTreeMap<String, &DescriptorProto>, name: &str) -> Vec<(String, Vec<usize>)> {
    let Some(message) = messages.get(name) else { return vec![] };
    let in_field = |field: &FieldDescriptorProto| {
        let (of, number) = (field.name(), usize::try_from(field.number()).unwrap());
        match field.r#type() {
            Type::Message => {
                let inner = places_in(messages, field.type_name()).into_iter();
                let inner = inner.map(|(path, rest)| (format!("{of}.{path}"), [vec![number], rest].concat()));
                inner.collect::<Vec<_>>()
            }
            Type::String if is_place(name, of) => vec![(of.to_owned(), vec![number])],
            _ => vec![],
        }
    };
    message.field.iter().flat_map(in_field).collect()
}

/// A digest names no person, and a good one has no room for a mark.
fn is_place(message: &str, field: &str) -> bool {
    field == "external_reference" || (PEOPLE.contains(&message) && field != "evidence_sha256")
}

fn is_marked(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value);
    text.contains(MARK) || text.contains(MARKED_NUMBER)
}

/// What stands in an encoded message in the field that a path of numbers leads to.
fn values<'a>(encoded: &'a [u8], numbers: &[usize]) -> Vec<&'a [u8]> {
    let Some((first, rest)) = numbers.split_first() else { return vec![encoded] };
    let of_field = fields(encoded).into_iter().filter(|(number, _)| number == first);
    of_field.flat_map(|(_, value)| values(value, rest)).collect()
}

/// The texts and messages in an encoded message, by the numbers of their fields.
fn fields(mut encoded: &[u8]) -> Vec<(usize, &[u8])> {
    let mut found = vec![];
    while !encoded.is_empty() {
        let key = prost::decode_length_delimiter(&mut encoded).unwrap();
        // Of a text or message the length, of anything else in this contract the value itself.
        let number = prost::decode_length_delimiter(&mut encoded).unwrap();
        match key & 7 {
            0 => {}
            2 => {
                let (value, rest) = encoded.split_at(number);
                found.push((key >> 3, value));
                encoded = rest;
            }
            other => panic!("the contract has got fields of another kind: {other}"),
        }
    }
    found
}
