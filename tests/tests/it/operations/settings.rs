//! The table of settings in docs/operations.md is what the programs take, no more and no less.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use clap::{Command, CommandFactory};

/// The flags of `serve` with their defaults. Each can be given by environment variable, too.
fn settings(program: &mut Command, prefix: &str) -> BTreeMap<String, String> {
    // Settings for all commands, as that of the log, stand among those of each.
    program.build();
    let serve = program.find_subcommand("serve").unwrap();
    let settings = serve.get_arguments().filter(|argument| argument.get_id() != "help").map(|argument| {
        let flag = argument.get_long().unwrap();
        let variable = format!("{prefix}_{}", flag.to_uppercase().replace('-', "_"));
        assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(variable.as_str()), "--{flag}");
        let defaults: Vec<_> =
            argument.get_default_values().iter().filter_map(|value| value.to_str()).collect();
        (flag.to_owned(), defaults.join(","))
    });
    settings.collect()
}

#[test]
fn the_docs_name_every_setting_with_its_default() {
    let agreements = settings(&mut agreement_svc::config::Cli::command(), "AGREEMENT");
    let orders = settings(&mut order_svc::config::Cli::command(), "ORDER");
    let mut expected: Vec<[String; 3]> = Vec::new();
    for flag in agreements.keys().chain(orders.keys()).collect::<BTreeSet<_>>() {
        let (of, default) = match (agreements.get(flag), orders.get(flag)) {
            (Some(one), Some(other)) if one == other => ("both", one.clone()),
            (Some(one), Some(other)) => ("both", format!("{one}, {other}")),
            (Some(one), None) => ("agreement-svc", one.clone()),
            (None, other) => ("order-svc", other.cloned().unwrap_or_default()),
        };
        expected.push([format!("`--{flag}`"), of.to_owned(), default]);
    }

    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `--"));
    let mut named: Vec<[String; 3]> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            assert!(cells.len() == 6 && !cells[4].is_empty(), "a row has four cells: {row}");
            [cells[1].to_owned(), cells[2].to_owned(), cells[3].replace('`', "")]
        })
        .collect();
    named.sort();
    expected.sort();
    assert_eq!(named, expected, "the table of settings");
}
