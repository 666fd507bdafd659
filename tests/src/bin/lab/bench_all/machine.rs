//! The machine and the versions that figures were measured with.

use std::error::Error;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use chassis::database::Url;
use tests::Backend;
use tests::processes::Processes;

use super::world::number;
use crate::load::percentile;

/// Writes that are forced to the disk, of a page of the log of SQLite each.
const SYNCS: usize = 200;
const SYNC_BYTES: usize = 4096;

/// The lines of the table.
///
/// # Errors
/// What the system does not tell.
pub(super) fn lines() -> Result<Vec<String>, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let cores = std::thread::available_parallelism()?;
    let syncs = sync_latencies(folder.path())?;
    let ms = |percent| percentile(&syncs, percent).as_secs_f64() * 1000.0;
    let mut lines = vec!["| | |".to_owned(), "|---|---|".to_owned()];
    let mut line = |name: &str, value: String| lines.push(format!("| {name} | {value} |"));
    line("processor", format!("{}, {cores} cores", field("/proc/cpuinfo", "model name")));
    line("memory", field("/proc/meminfo", "MemTotal"));
    line("kernel", said("uname", &["-sr"]));
    line("filesystem", filesystem(folder.path()));
    line("fdatasync after 4 KiB", format!("p50 {:.2} ms, p99 {:.2} ms", ms(50), ms(99)));
    line("Rust", said("rustc", &["--version"]));
    line("PostgreSQL", postgres_version()?);
    line("SQLite", rusqlite::version().to_owned());
    line("pgbench", said("pgbench", &["--version"]));
    let changed = said("git", &["status", "--porcelain", "--untracked-files=no"]);
    let state = if changed.is_empty() { "" } else { ", with changes that are not committed" };
    line("commit", format!("{}{state}", said("git", &["rev-parse", "--short=12", "HEAD"])));
    line("date", format!("{}", tests::fixtures::now().format("%F")));
    Ok(lines)
}

/// How long each of some writes takes until the disk has it.
fn sync_latencies(folder: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file = File::create(folder.join("sync"))?;
    let page = [0_u8; SYNC_BYTES];
    let mut latencies = vec![];
    for _ in 0..SYNCS {
        file.seek(SeekFrom::Start(0))?;
        let began = Instant::now();
        file.write_all(&page)?;
        file.sync_data()?;
        latencies.push(began.elapsed());
    }
    Ok(latencies)
}

/// The first value of a field of a file of the system.
fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    line.map_or_else(|| "unknown".into(), |(_, value)| value.trim().to_owned())
}

/// The kind of the filesystem that a folder is on: of the mount point with the longest path.
fn filesystem(folder: &Path) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let over = fields.filter(|fields| fields.get(1).is_some_and(|point| folder.starts_with(point)));
    let nearest = over.max_by_key(|fields| fields.get(1).map_or(0, |point| point.len()));
    nearest
        .and_then(|fields| fields.get(2).map(|kind| (*kind).to_owned()))
        .unwrap_or_else(|| "unknown".into())
}

/// What a program says of itself, or nothing.
fn said(program: &str, arguments: &[&str]) -> String {
    let ended = Command::new(program).args(arguments).current_dir(super::root()).output();
    ended.map(|ended| String::from_utf8_lossy(&ended.stdout).trim().to_owned()).unwrap_or_default()
}

fn postgres_version() -> Result<String, Box<dyn Error>> {
    if !Backend::Postgres.is_available() {
        return Ok("not measured".into());
    }
    let processes = Processes::new(Backend::Postgres)?;
    let database: &Url = processes.orders.database();
    let version = number(database, "SELECT current_setting('server_version_num')::bigint AS value")?;
    Ok(format!("{}.{}", version / 10_000, version % 10_000))
}
