//! `cargo lab failover`: kills the primary of a PostgreSQL pair under load, promotes its synchronous standby, and compares
//! what is stored with what was answered.

use std::error::Error;

use clap::Args;
use tests::crash::run_fail_over;
use tests::processes::build_binaries;

#[derive(Args)]
pub(crate) struct Options {
    /// How often, each time with new servers.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Makes the same choices again; what is under way at the kill is not among them.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) async fn run(Options { rounds, seed }: Options) -> Result<(), Box<dyn Error>> {
    build_binaries()?;
    for _ in 0..rounds {
        let seed = seed.unwrap_or_else(rand::random);
        let (done, after) = run_fail_over(seed, false).await?;
        println!(
            "promoted after {} ms, the first change at agreement-svc after {} ms, the first order after {} ms; {} \
             calls, {} of them repeated; {} orders, {} withdrawals; seed {seed}",
            after.promoted.as_millis(),
            after.agreement.as_millis(),
            after.order.as_millis(),
            done.calls,
            done.retried,
            done.orders,
            done.withdrawals,
        );
    }
    Ok(())
}
