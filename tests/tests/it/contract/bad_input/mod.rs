//! Bad input on every call of both services: every bad field is named, nothing is stored, and no other caller is
//! affected. Each row of the table says the call, the field, the value and the violation.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

mod agreement;
mod constraints;
mod customers;
mod existing;
mod legal_text;
mod order;
mod page_tokens;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use chassis::auth::Caller;
use chassis::server::MESSAGE_BYTES_MAX;
use prost::Message;
use prost_types::DescriptorProto;
use proto::agreement::eligibility_result::Result as ItemResult;
use proto::agreement::{
    AgreementDemand, BatchCheckEligibilityRequest, CheckEligibilityRequest, EligibilityResult,
    ListPartnersRequest, ListTemplatesRequest,
};
use proto::order::{CreateOrderRequest, ListOrdersRequest, NewOrderLine};
use proto::types::ErrorReason;
use tests::clients::{Identity, bad_fields_of};
use tests::fixtures::{self, DIRECT};
use tests::{As, Backend, Cluster, reason_of};

use tonic::{Code, Status};
use uuid::Uuid;

use crate::contract::access::{call, calls_of_the_contract, contract, wire};

use self::existing::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_bad_field_of_every_call_is_named_and_nothing_is_stored() {
    let existing = Existing::new().await;
    let before = existing.everything().await;
    let mut wrong = vec![];
    for row in existing.table() {
        let about = format!("{}, {}", row.call, row.about);
        match existing.refusal_of(&row).await {
            None => wrong.push(format!("{about}: accepted")),
            Some((Code::InvalidArgument, reason, named)) if reason == "INVALID_FIELDS" => {
                if named != row.bad {
                    let missing: Vec<_> = row.bad.difference(&named).collect();
                    let more: Vec<_> = named.difference(&row.bad).collect();
                    wrong.push(format!("{about}: does not name {missing:?}, and names {more:?}"));
                }
            }
            Some((code, reason, _)) => wrong.push(format!("{about}: {code:?} {reason}")),
        }
    }
    existing.assert_unchanged_since(&before).await;
    assert!(wrong.is_empty(), "{} rows\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_bad_field_of_a_batch_item_is_named_with_it() {
    let existing = Existing::new().await;
    let rows = existing.table().into_iter().filter(|row| row.call == path("CheckEligibility"));
    for row in rows {
        let item = CheckEligibilityRequest::decode(row.request.as_slice()).unwrap();
        let request = BatchCheckEligibilityRequest { items: vec![item] };
        let mut gate = existing.cluster.as_caller(row.by).gate();
        let results = gate.batch_check_eligibility(request).await.unwrap().into_inner().results;
        let [EligibilityResult { result: Some(ItemResult::Refusal(refusal)) }] = results.as_slice() else {
            panic!("{}: {results:?}", row.about)
        };
        assert_eq!(refusal.reason(), ErrorReason::InvalidFields, "{}", row.about);
        let named: BTreeSet<_> = refusal.fields.iter().map(|problem| problem.field.clone()).collect();
        assert_eq!(named, row.bad, "{}", row.about);
    }
}

/// Calls that answer each item by itself, and where the items stand; that their fields are named has
/// tests of its own.
const ANSWERED_BY_ITEM: [(&str, &str); 1] = [("/BatchCheckEligibility", "items.")];

/// Fields that hold nothing bad: flags, and a version that exists or does not.
const NEVER_BAD: [&str; 9] = [
    "validate_only",
    "include_history",
    "include_ended",
    "never_reaccept",
    "version",
    "auto_renew",
    "newest_first",
    "acceptance_outdated",
    "wait",
];

/// The fields of a message by path, down to those that are no message of ours.
fn leaves(messages: &BTreeMap<String, DescriptorProto>, name: &str, path: &str) -> Vec<String> {
    let fields = messages[name].field.iter();
    fields
        .flat_map(|field| {
            let path = format!("{path}{}", field.name());
            match messages.contains_key(field.type_name()) {
                true => leaves(messages, field.type_name(), &format!("{path}.")),
                false => vec![path],
            }
        })
        .collect()
}

/// A path without the places in lists.
fn without_places(path: &str) -> String {
    let parts = path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest));
    parts.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_field_of_every_call_is_bad_in_some_row() {
    let mut tried: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in Existing::new().await.table() {
        tried.entry(row.call).or_default().extend(row.bad.iter().map(|field| without_places(field)));
    }
    let contract = contract();
    let own = || contract.file.iter().filter(|file| file.package().starts_with("csp."));
    let messages: BTreeMap<_, _> = own()
        .flat_map(|file| {
            let package = file.package();
            file.message_type.iter().map(move |m| (format!(".{package}.{}", m.name()), m.clone()))
        })
        .collect();
    let mut untried = vec![];
    for file in own() {
        for service in &file.service {
            for method in &service.method {
                let call = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let nothing = BTreeSet::new();
                let tried = tried.get(call.as_str()).unwrap_or(&nothing);
                let fields = leaves(&messages, method.input_type(), "");
                let is_of_an_item = |field: &str| {
                    ANSWERED_BY_ITEM.iter().any(|(of, items)| call.ends_with(of) && field.starts_with(items))
                };
                let untried_here = fields
                    .iter()
                    .filter(|f| !NEVER_BAD.contains(&f.as_str()) && !tried.contains(*f) && !is_of_an_item(f));
                untried.extend(untried_here.map(|field| format!("{call}: {field}")));
            }
        }
    }
    assert!(untried.is_empty(), "\n{}", untried.join("\n"));
}

/// Both services answer the next caller.
async fn assert_both_answer(cluster: &Cluster) {
    let operator = cluster.as_caller(fixtures::operator());
    operator.partners().list_partners(ListPartnersRequest::default()).await.unwrap();
    operator.orders().list_orders(ListOrdersRequest::default()).await.unwrap();
}

/// A caller that may make the call.
fn allowed(call: &str) -> Caller {
    match call.rsplit('/').next().unwrap_or(call) {
        "RegisterPartner" | "UpdatePartner" | "LinkReseller" | "UnlinkReseller" | "ListPartners" => {
            fixtures::operator()
        }
        "PublishTemplateVersion" | "RetireTemplate" | "ListNotifications" => fixtures::operator(),
        "ReportPurchase" | "CheckWithdrawal" | "WatchEvents" => fixtures::service(),
        "ListCustomerPartners"
        | "AcceptInvitation"
        | "DeclineInvitation"
        | "SignAgreement"
        | "WithdrawSignature" => fixtures::admin(Uuid::from_u128(0xc1)),
        _ => fixtures::sales(DIRECT),
    }
}

async fn send(services: &As, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
    call(wire(services, path), Identity::of(allowed(path)), path, message).await
}

/// A message with nothing but one unknown field, `size` bytes long: well formed, and known to no call.
fn unknown_field(size: usize) -> Vec<u8> {
    const KEY: [u8; 2] = [0xba, 0x3e];
    let mut message = KEY.to_vec();
    let length_bytes = (1..).find(|n| prost::length_delimiter_len(size - 2 - n) == *n).unwrap();
    prost::encode_length_delimiter(size - 2 - length_bytes, &mut message).unwrap();
    message.resize(size, 0);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_message_that_is_too_large_is_refused_with_its_reason() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let services = cluster.as_unidentified();
    for path in calls_of_the_contract() {
        let fits = send(&services, &path, &unknown_field(MESSAGE_BYTES_MAX)).await;
        let reason = fits.as_ref().map_or_else(reason_of, |_| String::new());
        assert!(["", "INVALID_FIELDS"].contains(&reason.as_str()), "{path}: {fits:?}");
        for size in [MESSAGE_BYTES_MAX + 1, 5_000_000] {
            let refused = send(&services, &path, &unknown_field(size)).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason_of(&refused).as_str()),
                (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
                "{path}, {size} bytes: {refused}"
            );
        }
    }
    assert_both_answer(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn malformed_messages_are_refused() {
    let existing = Existing::new().await;
    let before = existing.everything().await;
    let services = existing.cluster.as_unidentified();
    let mut whole: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for row in existing.table() {
        let longest = whole.entry(row.call).or_default();
        if row.request.len() > longest.len() {
            *longest = row.request;
        }
    }
    // A group in a group in a group: deeper than a parser should follow.
    let nested = [0xc3, 0x3e].repeat(100_000);
    for path in calls_of_the_contract() {
        // A call without fields has no row, and takes whatever is well formed.
        let Some(whole) = whole.get(path.as_str()) else { continue };
        let bytes: [(&str, &[u8]); 7] = [
            ("cut short", &whole[..whole.len() - 1]),
            ("cut to one byte", &whole[..1]),
            ("all ones", &[0xff; 64]),
            ("not UTF-8", &[0x0a, 0x01, 0xff]),
            ("a length beyond the end", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            ("field number 0", &[0x02, 0x00]),
            ("nested without end", &nested),
        ];
        for (about, bytes) in bytes {
            let refused = send(&services, &path, bytes).await.unwrap_err();
            // The reason INTERNAL is what a panic or a damaged row is answered with.
            assert_ne!(reason_of(&refused), "INTERNAL", "{path}, {about}: {refused}");
            assert!(
                !matches!(refused.code(), Code::Unknown | Code::Unavailable | Code::Cancelled),
                "{path}, {about}: {refused}"
            );
        }
    }
    existing.assert_unchanged_since(&before).await;
    assert_both_answer(&existing.cluster).await;
}

/// A million bad entries fit into a message; the answer must not grow with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_list_of_bad_entries_has_a_short_refusal() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let services = cluster.as_unidentified();
    let entries = vec![99; MESSAGE_BYTES_MAX - 100];
    let demands = vec![AgreementDemand { agreement_types: entries.clone() }];
    let id = fixtures::request_id();
    for (path, request) in [
        (path("ListTemplates"), ListTemplatesRequest { agreement_types: entries.clone() }.encode_to_vec()),
        (path("CheckEligibility"), CheckEligibilityRequest { demands, ..Default::default() }.encode_to_vec()),
        (
            path("CheckEligibility"),
            CheckEligibilityRequest { payer_id: id, acting_roles: entries, ..Default::default() }
                .encode_to_vec(),
        ),
    ] {
        let caller = Identity::of(fixtures::service());
        let refused = call(wire(&services, path), caller, path, &request).await.unwrap_err();
        assert_eq!(reason_of(&refused), "INVALID_FIELDS", "{path}: {refused}");
        assert!(refused.details().len() < 6000, "{path}: {} bytes", refused.details().len());
    }
    // A hundred bad lines do not all fit into the headers; those that do not are counted.
    let line = NewOrderLine { offer_id: "\0".into(), quantity: 1, friendly_name: "\0".into() };
    let order = CreateOrderRequest {
        lines: vec![line; 100],
        ..fixtures::new_order(&fixtures::request_id(), None, "", 1)
    };
    let refused = send(&services, path("CreateOrder"), &order.encode_to_vec()).await.unwrap_err();
    let named = bad_fields_of(&refused);
    assert_eq!(named[..2], ["lines[0].offer_id", "lines[0].friendly_name"]);
    assert_eq!(named.last().unwrap(), "");
    assert!(refused.message().ends_with("and 195 more"), "{refused}");
}
