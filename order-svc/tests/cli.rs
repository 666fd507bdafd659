//! The binary as a person starts it: commands, settings, refusals, signals.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_order-svc")).args(args).output().unwrap()
}

/// How the variables begin that decide what a command says, beside its arguments.
const VARIABLES: [&str; 4] = ["ORDER_", "OTEL_", "RUST_LOG", "CLICOLOR_FORCE"];

/// The transcripts in `tests/cmd`, each about one subject. `TRYCMD=overwrite` writes what the commands say into them.
#[test]
fn commands_answer_as_their_transcripts_show() {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let set: Vec<_> = names.filter(|name| VARIABLES.iter().any(|start| name.starts_with(start))).collect();
    if !set.is_empty() {
        // A process cannot take variables from itself safely, so it starts this test again without them.
        let mut clean = Command::new(std::env::current_exe().unwrap());
        set.iter().for_each(|name| _ = clean.env_remove(name));
        let ended =
            clean.args(["--exact", "commands_answer_as_their_transcripts_show", "--nocapture"]).status();
        assert!(ended.unwrap().success(), "a transcript does not hold");
        return;
    }
    let mut commands = 0;
    for file in std::fs::read_dir("tests/cmd").unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|ending| ending == "trycmd") {
            let text = std::fs::read_to_string(&file).unwrap();
            for command in text.lines().filter_map(|line| line.strip_prefix("$ ")) {
                // `trycmd` skips a program that it does not find.
                assert!(command.split(' ').any(|word| word == "order-svc"), "{}: {command}", file.display());
                commands += 1;
            }
        }
    }
    assert!(commands > 0, "no transcript was found");
    trycmd::TestCases::new()
        .register_bin("order-svc", Path::new(env!("CARGO_BIN_EXE_order-svc")))
        .timeout(Duration::from_secs(60))
        .case("tests/cmd/*.trycmd");
}

#[test]
fn a_migrated_database_is_served_until_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orders.sqlite");
    std::fs::write(&path, "").unwrap();
    let database = format!("sqlite:{}", path.display());
    assert!(run(&["migrate", "--database", &database]).status.success());
    let serve = ["serve", "--database", &database, "--auth", "insecure", "--listen", "127.0.0.1:0"];
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

/// Neither the help nor a refusal shows the password in a database URL.
#[test]
fn a_database_url_is_not_shown() {
    const BAD: &str = "postgre://clerk:hunter2@127.0.0.1/things";
    let run = |args: &[&str], url: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_order-svc"));
        let ended = command.args(args).env("ORDER_DATABASE", url).output().unwrap();
        String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned()
    };
    for command in ["serve", "migrate"] {
        let help = run(&[command, "--help"], &BAD.replace("postgre:", "postgres:"));
        assert!(help.contains("--database") && !help.contains("hunter2"), "{help}");
        for refused in [run(&[command], BAD), run(&[command, "--database", BAD], "")] {
            let says = refused.contains("--database") && refused.contains("must be sqlite:PATH");
            assert!(says && !refused.contains("hunter2"), "{refused}");
        }
    }
}
