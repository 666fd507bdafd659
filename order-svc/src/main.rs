//! Chooses the command; the library does the work.

use std::process::ExitCode;

use chassis::clock::Clock;
use chassis::health::check_health;
use chassis::lifecycle::{end_at_signal, runtime, signal};
use chassis::release;
use chassis::server::Listeners;
use chassis::telemetry::{self, trace};
use clap::Parser;
use order_svc::config::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::start(cli.log_format);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    if !matches!(command, Command::Serve(_)) {
        end_at_signal()?;
    }
    match command {
        Command::Serve(config) => {
            let _export = trace::export(env!("CARGO_PKG_NAME"), release::VERSION)?;
            runtime()?.block_on(async {
                let auth = config.identity.auth;
                let listeners = Listeners::bind(config.listen, config.metrics_listen, auth).await?;
                order_svc::serve(*config, Clock::system(), listeners, signal()).await
            })
        }
        Command::SkipEvent(config) => {
            say(&runtime()?.block_on(order_svc::skip_event(&config))?);
            Ok(())
        }
        Command::Migrate(config) => {
            let database = order_svc::migrate(&config.storage)?;
            if config.after_restore {
                let clock = Clock::system();
                say(&runtime()?.block_on(order_svc::announce_restore(&database, &clock))?);
            }
            Ok(())
        }
        Command::CheckHealth(settings) => runtime()?.block_on(check_health(&settings.address, &settings.tls)),
    }
}

#[expect(clippy::print_stdout, reason = "what a command was asked for is not a log line")]
fn say(answer: &str) {
    println!("{answer}");
}
