//! `cargo kill-soak`: fifty rounds on each database, in each of which one service or both, the real
//! binaries, are killed under load.

use std::error::Error;

use clap::Parser;
use tests::Backend;
use tests::kill::{Plan, run};
use tests::processes::build_binaries;

#[derive(Parser)]
#[command(about = "Kills both services under load, and compares what is stored with what was answered.")]
struct Options {
    /// Rounds on each database; in each of them something is killed once or twice.
    #[arg(long, default_value_t = 50)]
    rounds: usize,
    /// Makes the same choices again; when exactly a process dies is not among them.
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
#[expect(clippy::print_stdout, reason = "a measurement talks to whoever started it")]
async fn main() -> Result<(), Box<dyn Error>> {
    let Options { rounds, seed } = Options::parse();
    build_binaries()?;
    for backend in Backend::all() {
        let seed = seed.unwrap_or_else(rand::random);
        let done = run(Plan { backend, rounds, seed, until_all_is_sent: true }).await?;
        println!("{backend:?}: {done}; seed {seed}");
    }
    Ok(())
}
