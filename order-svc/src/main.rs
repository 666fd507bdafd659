//! Chooses the command; the library does the work.

use std::process::ExitCode;

use chassis::clock::Clock;
use chassis::{server, telemetry};
use clap::Parser;
use order_svc::config::{Cli, Command};
use order_svc::{Failure, Listeners};

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
            let calls = server::bind(config.listen, config.identity.auth).await?;
            let metrics = match config.metrics_listen {
                None => None,
                Some(at) => Some(server::bind(at, config.identity.auth).await?),
            };
            order_svc::serve(*config, Clock::system(), Listeners { calls, metrics }, server::signal()).await
        }),
        Command::Migrate(storage) => order_svc::migrate(&storage).map(|_| ()),
        Command::CheckHealth(settings) => server::runtime(1)?
            .block_on(async { Ok(server::check_health(&settings.address, &settings.tls).await?) }),
    }
}
