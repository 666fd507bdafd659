//! The binary as a person starts it: commands, settings, refusals, signals.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_order-svc")).args(args).output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn help_names_every_command_and_setting() {
    let all = words(&run(&["--help"])) + &words(&run(&["serve", "--help"]));
    for word in [
        "serve",
        "migrate",
        "check-health",
        "--database",
        "--create",
        "--offers",
        "--agreements",
        "--listen",
        "--auth",
        "--jwks",
        "--jwt-issuer",
        "--jwt-audience",
        "--jwt-leeway-seconds",
        "--plaintext",
        "--tls-cert",
        "--tls-key",
        "--tls-client-ca",
        "ORDER_JWKS",
        "ORDER_TLS_CERT",
        "--gate-deadline-ms",
        "--metrics-listen",
        "--worker-threads",
        "--log-format",
        "ORDER_DATABASE",
    ] {
        assert!(all.contains(word), "{word} is missing:\n{all}");
    }
}

#[test]
fn wrong_settings_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("sqlite:{}", folder.path().join("missing.sqlite").display());
    let offers = folder.path().join("offers.json");
    std::fs::write(&offers, r#"{"offers": []}"#).unwrap();
    let offers = offers.display().to_string();
    for (args, reason) in [
        (vec!["serve", "--database", &missing], "--auth"),
        (vec!["serve", "--database", &missing, "--auth", "trust"], "trust"),
        (vec!["serve", "--database", &missing, "--auth", "jwt"], "--jwks"),
        (vec!["serve", "--database", &missing, "--auth", "insecure", "--jwks", "keys.json"], "--jwks"),
        (vec!["serve", "--database", &missing, "--auth", "insecure", "--jwt-leeway-seconds", "9"], "--jwks"),
        (
            vec![
                "serve",
                "--database",
                &missing,
                "--auth",
                "jwt",
                "--jwks",
                "x",
                "--jwt-leeway-seconds",
                "301",
            ],
            "--jwt-leeway-seconds",
        ),
        (vec!["serve", "--database", &missing, "--auth", "jwt", "--listen", "0.0.0.0:0"], "--plaintext"),
        (
            vec!["serve", "--database", &missing, "--auth", "jwt", "--listen", "0.0.0.0:0", "--plaintext"],
            "--jwks",
        ),
        (vec!["serve", "--database", &missing, "--auth", "insecure", "--tls-cert", "x.pem"], "--tls-key"),
        (vec!["serve", "--database", &missing, "--auth", "insecure", "--tls-key", "x.pem"], "--tls-cert"),
        (
            vec!["serve", "--database", &missing, "--auth", "insecure", "--tls-client-ca", "x.pem"],
            "--tls-cert",
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
                "--tls-cert",
                "/nowhere/tls.pem",
                "--tls-key",
                "/nowhere/tls.key",
            ],
            "/nowhere/tls.pem",
        ),
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
                "--offers",
                &offers,
            ],
            "there is no offer",
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
                "--agreements",
                "localhost:50051",
            ],
            "http://HOST:PORT",
        ),
        (
            vec!["serve", "--database", &missing, "--auth", "insecure", "--gate-deadline-ms", "5000"],
            "gate-deadline-ms",
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
                "--service-token",
                "x",
            ],
            "--service-token",
        ),
        (vec!["migrate", "--database", &missing], "--create"),
        (vec!["check-health", "--address", "http://127.0.0.1:1"], "cannot be reached"),
        (vec!["check-health", "--address", "https://127.0.0.1:1"], "cannot be reached"),
        (vec!["check-health", "--address", "127.0.0.1:1"], "https://HOST:PORT"),
        (vec!["check-health", "--address", "http://127.0.0.1:1", "--ca", "x.pem"], "https"),
    ] {
        let output = run(&args);
        assert!(!output.status.success(), "{args:?}");
        assert!(words(&output).contains(reason), "{args:?}: {}", words(&output));
    }
}

#[test]
fn a_schema_that_was_not_migrated_is_refused_and_served_afterwards_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orders.sqlite");
    std::fs::write(&path, "").unwrap();
    let database = format!("sqlite:{}", path.display());
    let serve = ["serve", "--database", &database, "--auth", "insecure", "--listen", "127.0.0.1:0"];
    let refused = run(&serve);
    assert!(!refused.status.success() && words(&refused).contains("migrate"), "{}", words(&refused));

    assert!(run(&["migrate", "--database", &database]).status.success());
    let mut serving = Command::new(env!("CARGO_BIN_EXE_order-svc"))
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

#[test]
fn traces_that_cannot_be_exported_as_asked_are_refused_with_the_variable() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("orders.sqlite").display());
    for (variables, named) in [
        (vec![("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], "OTEL_EXPORTER_OTLP_PROTOCOL"),
        (vec![("OTEL_TRACES_EXPORTER", "zipkin")], "OTEL_TRACES_EXPORTER"),
        (
            vec![("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://127.0.0.1:1")],
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        ),
        (vec![("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "no address")], "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_order-svc"))
            .args([
                "serve",
                "--auth",
                "insecure",
                "--create",
                "--listen",
                "127.0.0.1:0",
                "--database",
                &database,
            ])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
            .envs(variables)
            .output()
            .unwrap();
        assert!(!output.status.success() && words(&output).contains(named), "{named}: {}", words(&output));
    }
}
