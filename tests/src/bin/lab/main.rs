//! The lab: the demo, benchmarks, soak tests and the check of the compose stack, one subcommand each. `cargo demo` and
//! `cargo lab SUBCOMMAND` run it; PostgreSQL takes part where `TEST_POSTGRES_URL` names one.

#![expect(clippy::print_stdout, reason = "these programs report on standard output")]

mod bare;
mod bench_all;
mod bench_delays;
mod bench_gate;
mod bench_withdrawal;
mod compose_check;
mod demo;
mod failover;
mod load;
mod soak_crash;
mod soak_import;
mod soak_overload;
mod soak_shares;

use std::error::Error;

use clap::Parser;
use tokio::runtime::Builder;

#[derive(Parser)]
#[command(about = "Demo, benchmarks and soak tests of both services.")]
enum Command {
    /// Runs the scenario of the gate against both services on embedded SQLite.
    Demo(demo::Options),
    /// Measures everything in one run and writes BENCHMARKS.md.
    BenchAll(bench_all::Options),
    /// Measures the throughput of CheckEligibility and CreateOrder beside a bare tonic echo.
    BenchGate(bench_gate::Options),
    /// Measures the delay from a change to its watchers, and from an attestation to its mail.
    BenchDelays(bench_delays::Options),
    /// Measures a withdrawal that cancels many subscriptions beside the bare transaction.
    BenchWithdrawal(bench_withdrawal::Options),
    /// Cuts a large import at random, sends it again, and measures the server's memory.
    SoakImport(soak_import::Options),
    /// Kills the services under load, and compares what is stored with what was answered.
    SoakCrash(soak_crash::Options),
    /// Offers each service several times the load that it can serve, and judges what it answers.
    SoakOverload(soak_overload::Options),
    /// Has one partner do each thing that takes much, and measures what another one notices of it.
    SoakShares(soak_shares::Options),
    /// Kills a PostgreSQL primary under load, promotes its standby, and compares what is stored with what was answered.
    Failover(failover::Options),
    /// Checks and breaks a running stack of docker-compose.yml, which `.ci/compose` starts.
    ComposeCheck,
}

fn main() -> Result<(), Box<dyn Error>> {
    let command = Command::parse();
    let runtime = match command {
        // One thread offers the load, so that the services keep the rest of the machine.
        Command::SoakOverload(_) => Builder::new_current_thread().enable_all().build()?,
        _ => Builder::new_multi_thread().worker_threads(2).enable_all().build()?,
    };
    runtime.block_on(command.run())
}

impl Command {
    async fn run(self) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Demo(options) => demo::run(options).await,
            Self::BenchAll(options) => bench_all::run(options).await,
            Self::BenchGate(options) => bench_gate::run(options).await,
            Self::BenchDelays(options) => bench_delays::run(options).await,
            Self::BenchWithdrawal(options) => bench_withdrawal::run(options).await,
            Self::SoakImport(options) => soak_import::run(options).await,
            Self::SoakCrash(options) => soak_crash::run(options).await,
            Self::SoakOverload(options) => soak_overload::run(options).await,
            Self::SoakShares(options) => soak_shares::run(options).await,
            Self::Failover(options) => failover::run(options).await,
            Self::ComposeCheck => compose_check::run().await,
        }
    }
}
