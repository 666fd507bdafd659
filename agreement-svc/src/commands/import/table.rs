//! A CSV file: its header and its rows.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, anyhow};
use csv::StringRecord;

use super::columns::{Column, Columns, is_blank};
use super::layout::Layout;

/// A file that was read through: every row can be read and has all required columns.
pub(super) struct Table {
    pub(super) columns: Columns,
    /// The rows that are not blank, with their numbers. Blank ones are counted, so that a number leads to the row in
    /// the spreadsheet.
    pub(super) rows: Vec<(u64, StringRecord)>,
}

impl Table {
    /// Reads a whole file, so that one that cannot be read is refused before anything is sent.
    ///
    /// # Errors
    /// What cannot be read, by line and column, and never by its contents.
    pub(super) fn read(path: &Path, known: &'static [Column]) -> anyhow::Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| name.to_string())?;
        let layout = Layout::of(&file, known).with_context(|| name.to_string())?;
        let mut reader = layout.reader(&file).with_context(|| name.to_string())?;
        let header_line = layout.header_line;
        let mut record = StringRecord::new();
        reader
            .read_record(&mut record)
            .map_err(|error| anyhow!("{name}: {}", unreadable(header_line, None, &error)))?;
        let columns = Columns::find(&record, known)
            .map_err(|problem| anyhow!("{name}: line {header_line} {problem}"))?;
        let line =
            |position: Option<&csv::Position>| position.map_or(1, csv::Position::line) + header_line - 1;
        let mut rows = vec![];
        for row in 1.. {
            let is_row = reader.read_record(&mut record).map_err(|error| {
                anyhow!("{name}: {}", unreadable(line(error.position()), Some(&columns), &error))
            })?;
            if !is_row {
                break;
            }
            if is_blank(&record) {
                continue;
            }
            columns
                .check(&record)
                .map_err(|problem| anyhow!("{name}: line {}, {problem}", line(record.position())))?;
            rows.push((row, record.clone()));
        }
        Ok(Self { columns, rows })
    }
}

/// Names line and column of what cannot be read, and never quotes it.
fn unreadable(line: u64, columns: Option<&Columns>, error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => {
            let column = columns.map_or_else(|| (err.field() + 1).to_string(), |it| it.name(err.field()));
            format!("line {line}, column {column}: not UTF-8; save the file as CSV UTF-8")
        }
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => format!("line {line}: {error}"),
    }
}
