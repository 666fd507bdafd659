//! The arrows of the house: who may know whom. The sources are read, and an arrow that runs the
//! wrong way fails here, before it becomes a habit.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder or file of a service, and what it must never mention.
#[rustfmt::skip]
const NEVER: [(&str, &[&str]); 14] = [
    // The rules are pure: std, chrono, uuid, serde and each other.
    ("agreement-svc/src/rules",  PURE),
    ("order-svc/src/rules",      PURE),
    // The memory knows no wire and no neighbour.
    ("agreement-svc/src/store",  &["tonic", "proto::", "prost", "crate::api", "async_trait", "Status", "Refusal::Field", "clock.now"]),
    ("order-svc/src/store",      &["tonic", "proto::", "prost", "crate::api", "crate::agreements", "Status", "Refusal"]),
    // The wire does not write SQL.
    ("agreement-svc/src/api",    &["diesel", "schema", "query!"]),
    ("order-svc/src/api",        &["diesel", "schema", "query!"]),
    // The neighbour's client turns messages into facts and stores nothing.
    ("order-svc/src/agreements", &["diesel", "crate::api", "crate::store"]),
    // An action knows neither the wire nor SQL.
    ("agreement-svc/src/actions", &["tonic", "proto::", "diesel", "Status", "crate::api"]),
    // Mails are sent without the wire and without SQL.
    ("agreement-svc/src/mail",   &["diesel", "crate::api", "tonic"]),
    // What runs by itself does not go through the wire.
    ("agreement-svc/src/workers", &["diesel", "crate::api", "tonic"]),
    ("order-svc/src/workers",    &["diesel", "crate::api", "tonic"]),
    // The services never see each other.
    ("agreement-svc/src",        &["order_svc", "proto::order", "order::"]),
    ("order-svc/src",            &["agreement_svc"]),
    // The plumbing knows no noun of the business.
    ("chassis/src",              &["proto::", "agreement", "Agreement", "attest", "Attest", "subscription", "Subscription", "Order::", "customer_id", "Partner", "Customer", "Operator", "AdminAgent", "SalesAgent", "HelpdeskAgent", "GlobalAdmin"]),
];

const PURE: &[&str] = &[
    "async ",
    ".await",
    "tokio",
    "tonic",
    "proto::",
    "prost",
    "diesel",
    "chassis",
    "tracing",
    "serde_json",
    "rand::",
    "Utc::now",
    "SystemTime",
    "Instant",
    "std::fs",
    "std::io",
    "std::env",
    "println!",
    "crate::store",
    "crate::api",
    "crate::agreements",
    "crate::config",
];

/// Who may depend on whom, among the packages of the house.
const MAY_DEPEND: [(&str, &[&str]); 4] = [
    ("proto", &[]),
    ("chassis", &[]),
    ("agreement-svc", &["chassis", "proto"]),
    ("order-svc", &["chassis", "proto"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let mut found = vec![];
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(sources(&path));
        }
    }
    assert!(!found.is_empty(), "{} holds no sources: this test would prove nothing", place.display());
    found
}

/// The code of a file: no comments, and nothing from its test module on.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let until_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = until_tests.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn no_arrow_of_the_house_runs_the_wrong_way() {
    let mut wrong = vec![];
    for (place, never) in NEVER {
        for path in sources(&root().join(place)) {
            let code = code(&path);
            for (n, line) in code.lines().enumerate() {
                for word in never.iter().filter(|word| line.contains(**word)) {
                    wrong.push(format!("{}:{}: {word:?}", path.display(), n + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn packages_depend_only_on_what_is_below_them() {
    let packages = ["proto", "chassis", "agreement-svc", "order-svc", "tests"];
    for (package, allowed) in MAY_DEPEND {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        for other in packages.iter().filter(|other| !allowed.contains(other)) {
            assert!(
                !dependencies.lines().any(|line| line.starts_with(&format!("{other} ="))),
                "{package} depends on {other}"
            );
        }
    }
}

#[test]
fn a_code_is_chosen_in_one_file_of_each_service() {
    for service in ["agreement-svc", "order-svc"] {
        for path in sources(&root().join(service).join("src/api")) {
            let is_the_one = path.ends_with("status.rs");
            assert!(
                is_the_one || !code(&path).contains("Code::"),
                "{} chooses a code; that is for api/status.rs",
                path.display()
            );
        }
    }
}
