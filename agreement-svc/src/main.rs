//! Chooses the command; the library does the work.

use std::io::Write;
use std::process::ExitCode;

use agreement_svc::commands::erase::erase_contact;
use agreement_svc::commands::migrate::{announce_restore, migrate};
use agreement_svc::commands::verify::verify;
use agreement_svc::commands::{export, import, token};
use agreement_svc::config::{Cli, Command};
use anyhow::bail;
use chassis::clock::Clock;
use chassis::health::check_health;
use chassis::lifecycle::{end_at_signal, runtime, signal};
use chassis::release;
use chassis::server::{Listeners, bind};
use chassis::telemetry::{self, trace};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::start(cli.log_format);
    match run(cli.command) {
        Ok(ended) => ended,
        Err(failure) => {
            tracing::error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    if !matches!(command, Command::Serve(_)) {
        end_at_signal()?;
    }
    let done: anyhow::Result<()> = match command {
        Command::Import(settings) => return Ok(runtime()?.block_on(import::run(settings))),
        Command::Export(settings) => {
            let written = runtime()?.block_on(export::export(&settings))?;
            std::io::stdout().write_all(&written)?;
            Ok(())
        }
        Command::Serve(config) => {
            let _export = trace::export(env!("CARGO_PKG_NAME"), release::VERSION)?;
            runtime()?.block_on(async {
                let auth = config.identity.auth;
                let listeners = Listeners::bind(config.listen, config.metrics_listen, auth).await?;
                let web = match config.acceptance_listen {
                    None => None,
                    Some(address) => Some(bind(address, auth).await?),
                };
                let listeners = Listeners { web, ..listeners };
                agreement_svc::serve(*config, Clock::system(), listeners, signal()).await
            })
        }
        Command::Migrate(config) => runtime()?.block_on(async {
            let database = migrate(&config.storage, &Clock::system()).await?;
            if config.after_restore {
                say(&announce_restore(&database, &Clock::system()).await?);
            }
            Ok(())
        }),
        Command::CheckHealth(settings) => runtime()?.block_on(check_health(&settings.address, &settings.tls)),
        Command::Key { folder } => token::make_key(&folder),
        Command::Token(settings) => {
            say(&token::sign(&settings, &Clock::system())?);
            Ok(())
        }
        Command::Verify(config) => {
            let verified = runtime()?.block_on(verify(&config))?;
            say(&verified);
            match verified.findings.len() {
                0 => Ok(()),
                findings => bail!("verification failed; findings: {findings}"),
            }
        }
        Command::EraseContact(config) => {
            let erased = runtime()?.block_on(erase_contact(&config, &Clock::system()))?;
            say(&erased);
            Ok(())
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "what a command was asked for is not a log line")]
fn say(answer: &dyn std::fmt::Display) {
    println!("{answer}");
}
