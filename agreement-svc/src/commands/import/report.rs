//! The results of an import: the results file, the progress bar and the totals.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;

/// The outcome of a row.
pub(super) struct RowResult {
    pub(super) outcome: RowOutcome,
    /// The id of what the row stored, or of what was there.
    pub(super) id: String,
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
        Self { outcome, id: String::new(), reason: reason.into(), message: message.into() }
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
    /// Whether the results have a column for the id of what a row stored.
    has_ids: bool,
    pub(super) progress: ProgressBar,
    pub(super) tally: Tally,
}

impl Report {
    pub(super) fn create(
        path: &Path,
        id_column: Option<&str>,
        progress: ProgressBar,
    ) -> anyhow::Result<Self> {
        let results = csv::Writer::from_path(path).and_then(|mut results| {
            let columns = ["row", "customer_id", "outcome"].into_iter().chain(id_column);
            results.write_record(columns.chain(["reason", "message"]))?;
            Ok(results)
        });
        let results = results.map_err(|error| anyhow!("{}: {error}", path.display()))?;
        Ok(Self { results, has_ids: id_column.is_some(), progress, tally: Tally::default() })
    }

    pub(super) fn write(&mut self, row: u64, customer_id: &str, result: &RowResult) -> anyhow::Result<()> {
        let RowResult { outcome, id, reason, message } = result;
        let row = row.to_string();
        let cells = [row.as_str(), customer_id, outcome.name()].into_iter();
        let cells = cells.chain(self.has_ids.then_some(id.as_str()));
        let written = self
            .results
            .write_record(cells.chain([reason.as_str(), message]))
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
