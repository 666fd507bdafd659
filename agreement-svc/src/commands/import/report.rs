//! The results of an import: the results file, the progress bar and the totals.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;

/// What the results file says of a row.
const COLUMNS: [&str; 6] = ["row", "customer_id", "outcome", "attestation_id", "reason", "message"];

/// The outcome of a row.
pub(super) struct RowResult {
    pub(super) outcome: RowOutcome,
    pub(super) attestation_id: String,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Clone, Copy)]
pub(super) enum RowOutcome {
    Stored,
    Replayed,
    Duplicate,
    Refused,
    Skipped,
}

impl RowResult {
    pub(super) fn locally(outcome: RowOutcome, reason: &str, message: &str) -> Self {
        Self { outcome, attestation_id: String::new(), reason: reason.into(), message: message.into() }
    }
}

impl RowOutcome {
    fn name(self) -> &'static str {
        match self {
            Self::Stored => "STORED",
            Self::Replayed => "REPLAYED",
            Self::Duplicate => "DUPLICATE",
            Self::Refused => "REFUSED",
            Self::Skipped => "SKIPPED",
        }
    }
}

/// How many rows came to what.
#[derive(Default)]
pub(super) struct Tally {
    stored: u64,
    replayed: u64,
    duplicate: u64,
    pub(super) refused: u64,
    skipped: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stored, replayed, duplicate, refused, skipped } = self;
        write!(
            f,
            "{stored} stored, {replayed} replayed, {duplicate} duplicate, {refused} refused, {skipped} skipped"
        )
    }
}

/// Reports the results of the rows: in the results file, in the progress bar, and in total.
pub(super) struct Report {
    results: csv::Writer<File>,
    pub(super) progress: ProgressBar,
    pub(super) tally: Tally,
}

impl Report {
    pub(super) fn create(path: &Path, progress: ProgressBar) -> anyhow::Result<Self> {
        let results = csv::Writer::from_path(path).and_then(|mut results| {
            results.write_record(COLUMNS)?;
            Ok(results)
        });
        let results = results.map_err(|error| anyhow!("{}: {error}", path.display()))?;
        Ok(Self { results, progress, tally: Tally::default() })
    }

    pub(super) fn write(&mut self, row: u64, customer_id: &str, result: &RowResult) -> anyhow::Result<()> {
        let RowResult { outcome, attestation_id, reason, message } = result;
        let row = row.to_string();
        let written = self
            .results
            .write_record([&row, customer_id, outcome.name(), attestation_id, reason, message])
            .map_err(io::Error::from)
            // An operator who opens the file, or stops the command, finds every answer there.
            .and_then(|()| self.results.flush());
        written.context("the results cannot be written")?;
        let tally = &mut self.tally;
        *match outcome {
            RowOutcome::Stored => &mut tally.stored,
            RowOutcome::Replayed => &mut tally.replayed,
            RowOutcome::Duplicate => &mut tally.duplicate,
            RowOutcome::Refused => &mut tally.refused,
            RowOutcome::Skipped => &mut tally.skipped,
        } += 1;
        self.progress.inc(1);
        self.progress.set_message(tally.to_string());
        Ok(())
    }
}
