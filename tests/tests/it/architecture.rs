//! Tidy tests: they read the sources and pages. Dependencies go in the allowed direction, rules and reasons are documented,
//! the README's tables of calls are the access policies, files stay short, and private words stay out.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder or file of a service, and what it must never mention.
#[rustfmt::skip]
const NEVER: [(&str, &[&str]); 16] = [
    // The rules are pure: std, chrono, uuid, serde, strum, thiserror, ICU's data and each other.
    ("agreement-svc/src/rules",  PURE),
    ("order-svc/src/rules",      PURE),
    // The store knows neither the wire nor the other service.
    ("agreement-svc/src/store",  &["tonic", "proto::", "prost", "crate::api", "async_trait", "Status", "Refusal::Field"]),
    ("order-svc/src/store",      &["tonic", "proto::", "prost", "agreement_gate_client", "crate::api", "crate::agreements", "Status", "Refusal"]),
    // The wire does not write SQL.
    ("agreement-svc/src/api",    &["diesel", "schema", "query!"]),
    ("order-svc/src/api",        &["diesel", "schema", "query!"]),
    // What asks agreement-svc turns messages into facts and stores nothing.
    ("order-svc/src/agreements", &["diesel", "crate::api", "crate::store"]),
    // An action knows neither the wire nor SQL.
    ("agreement-svc/src/actions", &["tonic", "proto::", "diesel", "Status", "crate::api"]),
    // Mails are sent without the wire and without SQL.
    ("agreement-svc/src/mail",   &["diesel", "crate::api", "tonic"]),
    // The acceptance page makes calls, and reaches nothing below them.
    ("agreement-svc/src/page",   &["diesel", "crate::store", "crate::actions", "crate::mail"]),
    // What runs by itself does not go through the wire.
    ("agreement-svc/src/workers", &["diesel", "crate::api", "tonic"]),
    ("order-svc/src/workers",    &["diesel", "crate::api", "tonic"]),
    // The services never see each other.
    ("agreement-svc/src",        &["order_svc", "proto::order", "order::"]),
    ("order-svc/src",            &["agreement_svc"]),
    // The client for other programs knows the contract and gRPC: no service, and nothing that the services are made of.
    ("client/src",               &["agreement_svc", "order_svc", "chassis", "diesel", "clap", "prometheus", "rules"]),
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
    "agreement_gate_client",
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

/// The packages of this workspace that the package in each folder may depend on.
const MAY_DEPEND: [(&str, &[&str]); 5] = [
    ("proto", &[]),
    ("client", &["proto"]),
    ("chassis", &[]),
    ("agreement-svc", &["chassis", "proto"]),
    ("order-svc", &["agreement-gate-client", "chassis", "proto"]),
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
fn no_package_depends_in_the_wrong_direction() {
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

/// Everything in a change has the one time that is taken under its lock.
#[test]
fn a_change_reads_the_clock_once() {
    let places = ["agreement-svc/src/store", "agreement-svc/src/actions"];
    let files = places.iter().flat_map(|place| sources(&root().join(place)));
    let readings = files.flat_map(|path| {
        let count = code(&path).matches("clock.now").count();
        vec![path.file_name().unwrap().to_owned(); count]
    });
    assert_eq!(readings.collect::<Vec<_>>(), ["change.rs"]);
}

#[test]
fn packages_depend_only_on_what_is_below_them() {
    let packages = ["proto", "agreement-gate-client", "chassis", "agreement-svc", "order-svc", "tests"];
    for (folder, allowed) in MAY_DEPEND {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        for other in packages.iter().filter(|other| !allowed.contains(other)) {
            assert!(
                !dependencies.lines().any(|line| line.starts_with(&format!("{other} ="))),
                "{folder} depends on {other}"
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

/// The files of the repository that match, as git lists them.
fn tracked(matches: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let listed = std::process::Command::new("git").arg("ls-files").current_dir(root()).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    let found: Vec<_> = names
        .lines()
        .filter(|name| matches(name))
        // A file that is deleted and not committed yet is still listed.
        .filter_map(|name| Some((name.to_owned(), fs::read_to_string(root().join(name)).ok()?)))
        .collect();
    assert!(!found.is_empty(), "no file matches: this test would prove nothing");
    found
}

fn has_ending(name: &str, endings: &[&str]) -> bool {
    endings.iter().any(|ending| name.ends_with(ending))
}

/// The words of a text: letters, digits, `-` and `_`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).filter(|word| !word.is_empty())
}

/// The rows of a page's tables whose first cell passes, as cells.
fn rows(page: &str, first: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(page)).unwrap();
    let cells =
        |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect();
    let rows = text.lines().filter(|line| line.starts_with("| ")).map(cells);
    let rows: Vec<Vec<String>> = rows.filter(|row: &Vec<String>| first(&row[0])).collect();
    assert!(!rows.is_empty(), "{page} has no such rows");
    rows
}

fn is_rule_id(word: &str) -> bool {
    let number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    const SUBJECTS: [&str; 11] =
        ["ROLE", "TPL", "ATT", "PRO", "DIR", "INV", "CUS", "GATE", "WD", "ORD", "SUB"];
    match word.split_once('-') {
        // As WD-3a, which belongs to WD-3.
        Some((subject, digits)) => {
            SUBJECTS.contains(&subject)
                && number(digits.trim_end_matches(|last: char| last.is_ascii_lowercase()))
        }
        None => word.strip_prefix('I').is_some_and(|digits| digits.len() == 1 && number(digits)),
    }
}

#[test]
fn every_cited_rule_is_defined() {
    let defined: Vec<String> =
        rows("docs/rules.md", is_rule_id).into_iter().map(|row| row[0].clone()).collect();
    for (nth, id) in defined.iter().enumerate() {
        assert!(!defined[..nth].contains(id), "docs/rules.md defines {id} twice");
    }
    let mut unknown = vec![];
    for (name, text) in tracked(|name| has_ending(name, &[".rs", ".proto", ".sql", ".md"])) {
        for id in words(&text).filter(|word| is_rule_id(word)) {
            if !defined.iter().any(|known| known == id) {
                unknown.push(format!("{name}: {id}"));
            }
        }
    }
    assert!(unknown.is_empty(), "docs/rules.md does not define\n{}", unknown.join("\n"));
}

#[test]
fn every_rule_names_the_test_that_proves_it() {
    let sources = tracked(|name| name.ends_with(".rs"));
    let mut wrong = vec![];
    for row in rows("docs/rules.md", is_rule_id) {
        let (id, test) = (&row[0], &row[3]);
        let declaration = format!("fn {test}(");
        let files: Vec<_> = sources.iter().filter(|(_, text)| text.contains(&declaration)).collect();
        match files.as_slice() {
            [(_, text)] if words(text).any(|word| word == id) => {}
            [(name, _)] => wrong.push(format!("{id}: {name}, which has {test}, does not cite it")),
            [] => wrong.push(format!("{id}: there is no test {test}")),
            _ => wrong.push(format!("{id}: more than one file has a test {test}")),
        }
    }
    assert!(wrong.is_empty(), "docs/rules.md\n{}", wrong.join("\n"));
}

#[test]
fn every_error_reason_is_documented() {
    let is_reason =
        |word: &str| word.len() > 3 && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    let documented = rows("docs/errors.md", is_reason).into_iter().filter(|row| row.len() == 5);
    let mut documented: Vec<String> = documented.map(|row| row[0].clone()).collect();
    let contract = fs::read_to_string(root().join("proto/csp/type/v1/error_reason.proto")).unwrap();
    let mut expected: Vec<String> = words(&contract)
        .filter_map(|word| word.strip_prefix("ERROR_REASON_"))
        .filter(|name| !matches!(*name, "" | "UNSPECIFIED"))
        .map(str::to_owned)
        .collect();
    documented.sort();
    expected.sort();
    assert_eq!(documented, expected, "the tables of docs/errors.md");
}

/// The README's tables, one for each service, have every call with exactly the callers of the access policies.
#[test]
fn the_tables_of_calls_are_the_access_policies() {
    use chassis::auth::access::CallerClass;
    let letter = |class: &CallerClass| match class.description {
        description if description.starts_with("a partner user with ADMIN_AGENT or") => "P",
        description if description.starts_with("a partner user") => "R",
        description if description.contains("customer") => "C",
        description if description.contains("operator") => "O",
        description if description.contains("service") => "S",
        _ => "all",
    };
    let mut expected = vec![];
    let policies = [("agreement-svc", agreement_svc::ACCESS_POLICY), ("order-svc", order_svc::ACCESS_POLICY)];
    for (program, policy) in policies {
        expected.extend(policy.iter().map(|(path, classes)| {
            let (service, call) = path.rsplit_once('/').unwrap();
            let service = service.rsplit('.').next().unwrap();
            let mut callers: Vec<&str> = classes.iter().map(letter).collect();
            callers.sort_unstable();
            format!("{program}: {service}/{call}: {}", callers.join(", "))
        }));
    }
    let mut documented = vec![];
    let mut program = String::new();
    for row in rows("README.md", |cell| cell.ends_with("Service") || cell.ends_with("-svc")) {
        if row[0].ends_with("-svc") {
            program.clone_from(&row[0]);
            continue;
        }
        for group in row[1].split(';') {
            let (calls, callers) = group.trim().trim_end_matches(')').split_once('(').unwrap();
            let mut callers: Vec<&str> = callers.split(", ").collect();
            callers.sort_unstable();
            let calls = calls.split(',').map(str::trim).filter(|call| !call.is_empty());
            let callers = callers.join(", ");
            documented.extend(calls.map(|call| format!("{program}: {}/{call}: {callers}", row[0])));
        }
    }
    expected.sort();
    documented.sort();
    assert_eq!(documented, expected);
}

/// A file that is longer holds two subjects.
const LINES_MAX: usize = 600;

#[test]
fn no_source_file_is_too_long() {
    let long: Vec<_> = tracked(|name| name.ends_with(".rs"))
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "longer than {LINES_MAX} lines: {long:?}");
}

/// Words that stand for a missing noun or verb: a sentence names the caller, the operator, the tenant or the client,
/// and says what it does.
const PRIVATE_WORDS: [&str; 17] = [
    "nobody",
    "somebody",
    "whoever",
    "anybody",
    "everybody",
    "patience",
    "greeted",
    "reread",
    "unasked",
    "insist",
    "passage",
    "told",
    "neighbour",
    "neighbours",
    "rehearse",
    "rehearsed",
    "rehearsal",
];

/// The same, of several words.
const PRIVATE_PHRASES: [&str; 5] =
    ["makes no sense", "made no sense", "as it stands", "of the house", "what became of"];

/// Files that may contain them, and why.
const PRIVATE_WORDS_ALLOWED: [(&str, &str); 2] = [
    (".ci/images/prometheus.Dockerfile", "the name of a user account"),
    ("tests/tests/it/architecture.rs", "this list"),
];

#[test]
fn no_private_word_is_used() {
    let is_allowed = |name: &str| PRIVATE_WORDS_ALLOWED.iter().any(|(file, _)| *file == name);
    let mut found = vec![];
    for (name, text) in tracked(|name| !has_ending(name, &[".binpb", "Cargo.lock"]) && !is_allowed(name)) {
        // A published migration is not edited.
        if name.contains("/migrations/") {
            continue;
        }
        for (n, line) in text.lines().enumerate() {
            let line = line.to_lowercase().replace('_', " ");
            let phrases = PRIVATE_PHRASES.into_iter().filter(|phrase| line.contains(phrase));
            found.extend(phrases.map(|phrase| format!("{name}:{}: {phrase}", n + 1)));
            for word in words(&line).filter(|word| PRIVATE_WORDS.contains(word)) {
                found.push(format!("{name}:{}: {word}", n + 1));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}
