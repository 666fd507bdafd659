//! The retries and deadlines that the examples hand to clients fit the contract: each call is in the file once, with what its
//! level of idempotency allows.

use std::collections::BTreeMap;

use prost_types::MethodDescriptorProto;
use prost_types::method_options::IdempotencyLevel;
use serde_json::{Value, json};

use super::access::contract;

const FILE: &str = include_str!("../../../../examples/service-config.json");

/// The calls of the contract by service and name.
fn calls() -> BTreeMap<(String, String), MethodDescriptorProto> {
    let mut calls = BTreeMap::new();
    for file in contract().file.iter().filter(|file| file.package().starts_with("csp.")) {
        for service in &file.service {
            for method in &service.method {
                let service = format!("{}.{}", file.package(), service.name());
                calls.insert((service, method.name().to_owned()), method.clone());
            }
        }
    }
    calls
}

#[test]
fn every_call_without_effect_or_with_a_request_id_says_so() {
    let has_request_id = |input: &str| {
        let (package, name) = input[1..].rsplit_once('.').unwrap();
        contract().file.iter().filter(|file| file.package() == package).any(|file| {
            let message = file.message_type.iter().find(|message| message.name() == name);
            message.is_some_and(|message| message.field.iter().any(|field| field.name() == "request_id"))
        })
    };
    for ((_, name), method) in calls() {
        let level = match has_request_id(method.input_type()) {
            true => IdempotencyLevel::Idempotent,
            false => IdempotencyLevel::NoSideEffects,
        };
        assert_eq!(method.options.unwrap().idempotency_level(), level, "{name}");
    }
}

#[test]
fn the_service_config_retries_every_call_that_may_be_repeated_and_no_other() {
    let config: Value = serde_json::from_str(FILE).unwrap();
    let mut calls = calls();
    for entry in config["methodConfig"].as_array().unwrap() {
        // RESOURCE_EXHAUSTED has its time in RetryInfo, which such a policy does not read, and may mean a message that is too
        // large.
        assert_eq!(entry["retryPolicy"]["retryableStatusCodes"], json!(["UNAVAILABLE"]));
        assert_eq!(entry.get("hedgingPolicy"), None);
        for name in entry["name"].as_array().unwrap() {
            let of = |key: &str| name[key].as_str().unwrap().to_owned();
            let method = calls.remove(&(of("service"), of("method"))).expect("a call of the contract, once");
            let level = method.options.as_ref().unwrap().idempotency_level();
            let timeout = match level {
                _ if method.client_streaming() || method.server_streaming() => None,
                IdempotencyLevel::NoSideEffects => Some("10s"),
                IdempotencyLevel::Idempotent => Some("30s"),
                IdempotencyLevel::IdempotencyUnknown => panic!("{name} must not be repeated"),
            };
            assert_eq!(entry.get("timeout").and_then(Value::as_str), timeout, "{name}");
        }
    }
    let is_repeatable = |method: &MethodDescriptorProto| {
        method.options.as_ref().is_some_and(|options| options.idempotency_level.is_some())
    };
    calls.retain(|_, method| is_repeatable(method));
    assert!(calls.is_empty(), "not in the file: {:?}", calls.keys());
    assert!(config["retryThrottling"]["maxTokens"].as_u64().is_some_and(|tokens| tokens > 0));
}
