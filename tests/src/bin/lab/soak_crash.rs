//! `cargo lab soak-crash`: crash tests of the real binaries, fifty rounds on each database, each of which kills one
//! service or both under load.

use std::error::Error;

use clap::Args;
use tests::Backend;
use tests::crash::{self, Plan};
use tests::processes::build_binaries;

#[derive(Args)]
pub(crate) struct Options {
    /// Rounds on each database; in each of them something is killed once or twice.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Makes the same choices again; when exactly a process dies is not among them.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) async fn run(Options { rounds, seed }: Options) -> Result<(), Box<dyn Error>> {
    build_binaries()?;
    for backend in Backend::all() {
        let seed = seed.unwrap_or_else(rand::random);
        let done = crash::run(Plan { backend, rounds, seed, until_all_is_sent: true }).await?;
        println!("{backend}: {done}; seed {seed}");
    }
    Ok(())
}
