//! The binary as a person starts it: commands, settings, refusals, signals.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agreement-svc")).args(args).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn help_names_every_command_and_setting() {
    let commands =
        [&["--help"][..], &["serve", "--help"], &["verify", "--help"], &["erase-contact", "--help"]];
    let all: String = commands.iter().map(|args| words(&run(args))).collect();
    for word in [
        "serve",
        "migrate",
        "check-health",
        "verify",
        "--head",
        "erase-contact",
        "--email",
        "--mail-folder",
        "--database",
        "--create",
        "--templates",
        "--document-table",
        "--listen",
        "--auth",
        "--policy",
        "--worker-threads",
        "--log-format",
        "AGREEMENT_DATABASE",
    ] {
        assert!(all.contains(word), "{word} is missing:\n{all}");
    }
}

#[test]
fn wrong_settings_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("sqlite:{}", folder.path().join("missing.sqlite").display());
    let policy = folder.path().join("policy.json");
    std::fs::write(&policy, r#"{"periods": []}"#).unwrap();
    let policy = policy.display().to_string();
    for (args, reason) in [
        (vec!["serve", "--database", &missing], "--auth"),
        (vec!["serve", "--database", &missing, "--auth", "trust"], "trust"),
        (vec!["serve", "--database", "mysql://x", "--auth", "insecure"], "sqlite:PATH"),
        (vec!["serve", "--database", &missing, "--auth", "insecure", "--listen", "127.0.0.1:0"], "--create"),
        (
            vec!["serve", "--database", &missing, "--auth", "insecure", "--listen", "0.0.0.0:0", "--create"],
            "loopback",
        ),
        (
            vec!["serve", "--database", &missing, "--auth", "insecure", "--worker-threads", "0"],
            "worker-threads",
        ),
        (
            vec![
                "serve",
                "--database",
                &missing,
                "--auth",
                "insecure",
                "--listen",
                "127.0.0.1:0",
                "--policy",
                &policy,
            ],
            "no periods",
        ),
        (vec!["migrate", "--database", &missing], "--create"),
        (vec!["check-health", "--address", "http://127.0.0.1:1"], "cannot be reached"),
        (vec!["verify", "--database", &missing], "does not exist"),
        (vec!["verify", "--database", &missing, "--head", "12"], "REVISION:HASH"),
        (vec!["verify", "--database", &missing, "--head", "12:abc"], "REVISION:HASH"),
        (vec!["erase-contact", "--database", &missing, "--email", "a@b.example"], "does not exist"),
    ] {
        let output = run(&args);
        assert!(!output.status.success(), "{args:?}");
        assert!(words(&output).contains(reason), "{args:?}: {}", words(&output));
    }
}

#[test]
fn a_schema_that_was_not_migrated_is_refused_and_served_afterwards_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agreements.sqlite");
    std::fs::write(&path, "").unwrap();
    let database = format!("sqlite:{}", path.display());
    let serve = ["serve", "--database", &database, "--auth", "insecure", "--listen", "127.0.0.1:0"];
    let refused = run(&serve);
    assert!(!refused.status.success() && words(&refused).contains("migrate"), "{}", words(&refused));

    assert!(run(&["migrate", "--database", &database]).status.success());
    let mut serving = Command::new(env!("CARGO_BIN_EXE_agreement-svc"))
        .args(serve)
        .args(["--log-format", "json"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let address = format!("http://{}", address_of(&mut serving));
    assert!(run(&["check-health", "--address", &address]).status.success());
    Command::new("kill").args(["-TERM", &serving.id().to_string()]).status().unwrap();
    assert!(serving.wait().unwrap().success());
    assert!(!run(&["check-health", "--address", &address]).status.success());
}

#[test]
fn the_history_is_verified_and_a_person_erased_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("agreements.sqlite").display());
    assert!(run(&["migrate", "--create", "--database", &database]).status.success());
    let clean = run(&["verify", "--database", &database]);
    assert!(clean.status.success(), "{}", words(&clean));
    let printed = String::from_utf8(clean.stdout).unwrap();
    let head = printed.trim_end().strip_prefix("head ").unwrap();
    assert!(run(&["verify", "--database", &database, "--head", head]).status.success());

    let another = head.replace(':', ":0").split_at(head.len()).0.to_owned();
    let found = run(&["verify", "--database", &database, "--head", head, "--head", &another]);
    assert_eq!(found.status.code(), Some(1));
    let lines = String::from_utf8(found.stdout).unwrap();
    let revision = head.split(':').next().unwrap();
    let expected = format!(
        "the history does not have the head {another}: event {revision} or one before it was replaced\nhead {head}\n"
    );
    assert_eq!(lines, expected);

    let erase = |email| run(&["erase-contact", "--database", &database, "--email", email]);
    let nobody = erase("Zeb@Contoso.example");
    assert!(nobody.status.success() && words(&nobody).contains("nobody"), "{}", words(&nobody));
    let refused = erase("zeb at contoso");
    assert!(!refused.status.success());
    for output in [nobody, refused] {
        assert!(!words(&output).to_lowercase().contains("zeb"), "{}", words(&output));
    }
}

/// Reads the log until it says where the server listens.
fn address_of(serving: &mut Child) -> String {
    let mut log = BufReader::new(serving.stderr.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended without serving");
        let Some((_, rest)) = line.split_once(r#""address":""#) else { continue };
        let address = rest.split('"').next().unwrap().to_owned();
        // The log must be read on, or the server would block on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        return address;
    }
}
