//! `cargo lab soak-import`: an import of a hundred thousand rows, cut twenty times at random and sent again, and the
//! memory that it costs the server beside an import of a thousand.
//!
//! The first part compares what is stored with what an import that was never cut has to leave. The
//! second runs the real binary, a fresh one for each size, and reads its resident memory.

use std::error::Error;
use std::time::Instant;

use clap::Args;
use futures_util::stream;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tests::fixtures::DIRECT;
use tests::imports::{Cut, Sheet, import_and_cut};
use tests::processes::{Process, build_binaries};
use tests::{As, Backend, Cluster, actions, fixtures};
use tonic::transport::Endpoint;

/// How much more resident memory a server may have needed for a hundred thousand rows than for a thousand.
const RATIO_MAX: f64 = 1.2;

const FEW: usize = 1000;

#[derive(Args)]
pub(crate) struct Options {
    /// Rows of the large import. They attest the same customers over and over.
    #[arg(long, default_value_t = 100_000)]
    rows: usize,
    #[arg(long, default_value_t = 300)]
    customers: usize,
    /// How often it is cut.
    #[arg(long, default_value_t = 20)]
    cuts: usize,
    /// Makes the same cuts again.
    #[arg(long)]
    seed: Option<u64>,
}

pub(crate) async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    build_binaries()?;
    let mut ratios = vec![];
    for backend in Backend::all() {
        cut_at_random(backend, &options).await?;
        let few = memory(backend, FEW, &options).await?;
        let many = memory(backend, options.rows, &options).await?;
        let growth = f64::from(many.growth) / f64::from(few.growth.max(1));
        println!("{backend}: growth {growth:.2} times that of {FEW} rows");
        ratios.push(f64::from(many.peak) / f64::from(few.peak));
    }
    if ratios.iter().any(|ratio| *ratio > RATIO_MAX) {
        return Err(format!("memory grows with the rows: more than {RATIO_MAX} times").into());
    }
    Ok(())
}

async fn sheet_on(cluster: &Cluster, customers: usize) -> Result<(As, Sheet), Box<dyn Error>> {
    actions::register_partners(cluster).await?;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let sheet = Sheet::new(&direct, "Soak", customers).await?;
    Ok((direct, sheet))
}

async fn cut_at_random(backend: Backend, options: &Options) -> Result<(), Box<dyn Error>> {
    let seed = options.seed.unwrap_or_else(rand::random);
    let replay = format!("{backend}; replay with --seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::on(backend).await;
    let (direct, sheet) = sheet_on(&cluster, options.customers).await?;
    let rows = options.rows;
    let began = Instant::now();
    for n in 0..options.cuts {
        let at = random.random_range(0..rows);
        let cut = if n % 2 == 0 { Cut::AfterAnswers(at) } else { Cut::AfterRows(at) };
        import_and_cut(&cluster, &sheet, rows, cut).await.map_err(|error| format!("{error}; {replay}"))?;
    }
    let answered = import(&direct, &sheet, rows, None).await.map_err(|error| format!("{error}; {replay}"))?;
    let took = began.elapsed().as_secs_f64();
    if sheet.stored(&direct).await? != sheet.expected_stored(rows) {
        return Err(format!("what is stored is not what an uncut import leaves: {replay}").into());
    }
    let head = sheet.head(&direct).await?;
    import(&direct, &sheet, rows, Some(true)).await.map_err(|error| format!("{error}; {replay}"))?;
    if sheet.head(&direct).await? != head {
        return Err(format!("a complete import sent again changed something: {replay}").into());
    }
    println!("{backend}: {answered} rows cut {} times in {took:.0} s, seed {seed}", options.cuts);
    Ok(())
}

/// Imports all rows; where it is known whether they were sent before, every answer is checked.
async fn import(
    partner: &As,
    sheet: &Sheet,
    rows: usize,
    again: Option<bool>,
) -> Result<usize, Box<dyn Error>> {
    let sent = stream::iter(sheet.rows().take(rows));
    let mut answers = partner.attestations().import_attestations(sent).await?.into_inner();
    let mut answered = 0;
    while let Some(answer) = answers.message().await? {
        if let Some(again) = again {
            sheet.check(answered, &answer, again)?;
        }
        answered += 1;
    }
    if answered == rows { Ok(rows) } else { Err(format!("{answered} of {rows} rows were answered").into()) }
}

/// The resident memory of a server, in KiB.
struct Memory {
    /// The most it has needed.
    peak: u32,
    /// How much more that is than when it had started.
    growth: u32,
}

/// What a fresh server needs to import the rows.
async fn memory(backend: Backend, rows: usize, options: &Options) -> Result<Memory, Box<dyn Error>> {
    let mut cluster = Cluster::on(backend).await;
    let (direct, sheet) = sheet_on(&cluster, options.customers).await?;
    cluster.stop_agreements();
    let mails = cluster.mail_folder();
    let folder = mails.parent().unwrap_or(&mails);
    let mut server = Process::agreements(cluster.agreements_database().clone(), &mails, folder)?;
    server.start().await?;
    let agreements = Endpoint::from_shared(server.address())?.connect_lazy();
    let direct = As { agreements, ..direct };
    sheet.head(&direct).await?;
    let before = server.memory("VmRSS")?;
    let began = Instant::now();
    import(&direct, &sheet, rows, Some(false)).await?;
    let rate = f64::from(u32::try_from(rows)?) / began.elapsed().as_secs_f64();
    let peak = server.memory("VmHWM")?;
    let growth = peak.saturating_sub(before);
    println!("{backend}: {rows} rows at {rate:.0}/s; {before} KiB before, {growth} more at the peak");
    Ok(Memory { peak, growth })
}
