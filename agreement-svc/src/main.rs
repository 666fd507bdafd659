//! Chooses the command; the library does the work.

use std::process::ExitCode;

use agreement_svc::Failure;
use agreement_svc::config::{Cli, Command};
use chassis::clock::Clock;
use chassis::{server, telemetry};
use clap::Parser;

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::start(cli.log_format);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(config) => server::runtime(config.worker_threads)?.block_on(async {
            let listener = server::bind(config.listen, config.auth).await?;
            agreement_svc::serve(*config, Clock::system(), listener, server::signal()).await
        }),
        Command::Migrate(storage) => server::runtime(1)?.block_on(async {
            agreement_svc::migrate(&storage, &Clock::system()).await?;
            Ok(())
        }),
        Command::CheckHealth { address } => {
            server::runtime(1)?.block_on(async { Ok(server::check_health(&address).await?) })
        }
    }
}
