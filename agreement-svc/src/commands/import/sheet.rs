//! The CSV file of an import: its rows, and the request id of each row.

use std::collections::HashMap;
use std::fs::File;

use anyhow::{Context, anyhow, ensure};
use chassis::clock::Time;
use chassis::form::text::normalized;
use chassis::form::timestamp;
use csv::StringRecord;
use prost::Message;
use proto::agreement::ImportAttestationsRequest;
use proto::types::Contact;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::columns::{COMPLETED, Columns, is_blank, text, truth};
use super::layout::Layout;
use super::report::{RowOutcome, RowResult};
use crate::config::{Import, read_date};

/// The request ids of all rows are made in it.
const REQUEST_IDS: Uuid = Uuid::from_u128(0x7d0c_5f0e_39b1_4c55_9d1f_8a4e_6b2c_1e70);

/// A file that was checked: every row can be read and has all columns.
pub(super) struct Sheet {
    name: String,
    file: File,
    layout: Layout,
    columns: Columns,
    pub(super) rows: u64,
    template_id: Uuid,
    agreed_at: Option<Time>,
}

/// A row that was sent, or its result without sending it.
pub(super) struct SentRow {
    pub(super) row: u64,
    pub(super) customer_id: String,
    pub(super) request_id: String,
    pub(super) locally: Option<RowResult>,
}

impl Sheet {
    /// Reads the whole file once, so that one that cannot be read is refused before anything is sent.
    pub(super) fn open(settings: &Import) -> anyhow::Result<Self> {
        let name = settings.file.display().to_string();
        let file = File::open(&settings.file).with_context(|| name.clone())?;
        let layout = Layout::of(&file).with_context(|| name.clone())?;
        let mut reader = layout.reader(&file).with_context(|| name.clone())?;
        let mut header = StringRecord::new();
        let line = layout.header_line;
        reader.read_record(&mut header).map_err(|error| unreadable(&name, line, None, &error))?;
        let columns = Columns::find(&header).map_err(|problem| anyhow!("{name}: line {line} {problem}"))?;
        drop(reader);
        ensure!(
            columns.agreed_at.is_some() || settings.agreed_at.is_some(),
            "{name} has no column DateAgreed; if all of its rows agreed at the same time, give it with --agreed-at"
        );
        let (template_id, agreed_at) = (settings.template_id, settings.agreed_at);
        let mut sheet = Self { name, file, layout, columns, rows: 0, template_id, agreed_at };
        let mut rows = 0;
        sheet.for_each_row(|_, _| {
            rows += 1;
            true
        })?;
        sheet.rows = rows;
        Ok(sheet)
    }

    /// Reads the rows that are not blank, with their numbers, as long as it is wanted. Blank ones are counted, so
    /// that a number leads to the row in the spreadsheet.
    fn for_each_row(&self, mut take: impl FnMut(u64, &StringRecord) -> bool) -> anyhow::Result<()> {
        let mut reader = self.layout.reader(&self.file).with_context(|| self.name.clone())?;
        let lines_before = self.layout.header_line - 1;
        let mut record = StringRecord::new();
        for row in 0.. {
            let read = reader.read_record(&mut record);
            let is_row = read.map_err(|error| {
                let line = error.position().map_or(1, csv::Position::line) + lines_before;
                unreadable(&self.name, line, Some(&self.columns), &error)
            })?;
            if !is_row {
                break;
            }
            if row == 0 || is_blank(&record) {
                continue;
            }
            self.columns.check(&record).map_err(|problem| {
                let line = record.position().map_or(1, csv::Position::line) + lines_before;
                anyhow!("{}: line {line}, {problem}", self.name)
            })?;
            if !take(row, &record) {
                break;
            }
        }
        Ok(())
    }

    /// Sends the rows, and announces each before, so that its answer can be matched. Ends early when
    /// a receiver has gone.
    pub(super) fn send(
        self,
        send: &mpsc::Sender<ImportAttestationsRequest>,
        announce: &mpsc::Sender<SentRow>,
    ) -> anyhow::Result<()> {
        let mut request_ids = RequestIds::default();
        self.for_each_row(|row, record| {
            let (locally, request) = match self.request(record) {
                Ok(request) => (None, Some(request_ids.give(request))),
                Err(result) => (Some(result), None),
            };
            // What is no id could be anything, so it is not repeated.
            let customer_id = Uuid::try_parse(text(record, self.columns.customer));
            let customer_id = customer_id.map(|id| id.to_string()).unwrap_or_default();
            let request_id = request.as_ref().map(|request| request.request_id.clone()).unwrap_or_default();
            let announced = announce.blocking_send(SentRow { row, customer_id, request_id, locally });
            announced.is_ok() && request.is_none_or(|request| send.blocking_send(request).is_ok())
        })
    }

    /// The request of a row, still without its id, or the result of a row that is not sent. The server checks
    /// everything but what cannot be sent. Text is as the server keeps it, so that a row which another program saved anew
    /// is the same.
    fn request(&self, record: &StringRecord) -> Result<ImportAttestationsRequest, RowResult> {
        let columns = &self.columns;
        let optional = |column: Option<usize>| column.map_or("", |column| text(record, column));
        let refused = |problem: &str| {
            let message = format!("INVALID_FIELDS: {problem}");
            RowResult::locally(RowOutcome::Refused, "INVALID_FIELDS", &message)
        };
        match columns.completed.map(|completed| truth(text(record, completed))) {
            None | Some(Some(true)) => {}
            Some(Some(false)) => {
                return Err(RowResult::locally(RowOutcome::Skipped, "", &format!("{COMPLETED} is false")));
            }
            Some(None) => {
                let problem = "must be true or false, in a language in which spreadsheets write them, or 1, 0, yes or no";
                return Err(refused(&format!("{COMPLETED} {problem}")));
            }
        }
        let agreed_at = match (optional(columns.agreed_at), self.agreed_at) {
            ("", Some(time)) => Ok(time),
            ("", None) => Err("is required".to_owned()),
            (date, _) => read_date(date),
        };
        let agreed_at = agreed_at.map_err(|problem| refused(&format!("DateAgreed {problem}")))?;
        let template_id = match optional(columns.template) {
            "" => self.template_id.to_string(),
            id => id.to_ascii_lowercase(),
        };
        Ok(ImportAttestationsRequest {
            request_id: String::new(),
            customer_id: text(record, columns.customer).to_ascii_lowercase(),
            template_id,
            contact: Some(Contact {
                first_name: normalized(text(record, columns.first_name)),
                last_name: normalized(text(record, columns.last_name)),
                email: normalized(text(record, columns.email)),
                phone: normalized(optional(columns.phone)),
            }),
            agreed_at: Some(timestamp(agreed_at)),
        })
    }
}

/// Gives each row the request id that follows from what it sends and from how often the file had the same row before.
/// So a row that was sent is known again in another file, in another place, and beside rows that were corrected, and
/// one that sends something else, be it only another `--agreed-at`, is another request.
#[derive(Default)]
struct RequestIds {
    /// 16 bytes for a row and the count: 10 MB for 200,000 rows.
    sent: HashMap<Uuid, u32>,
}

impl RequestIds {
    fn give(&mut self, request: ImportAttestationsRequest) -> ImportAttestationsRequest {
        let content = Uuid::new_v5(&REQUEST_IDS, &request.encode_to_vec());
        let occurrence = self.sent.entry(content).or_default();
        *occurrence += 1;
        let request_id = Uuid::new_v5(&content, &occurrence.to_be_bytes()).to_string();
        ImportAttestationsRequest { request_id, ..request }
    }
}

/// Names line and column of what cannot be read, and never quotes it.
fn unreadable(name: &str, line: u64, columns: Option<&Columns>, error: &csv::Error) -> anyhow::Error {
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => {
            let column = columns.map_or_else(|| (err.field() + 1).to_string(), |it| it.name(err.field()));
            anyhow!("{name}: line {line}, column {column}: not UTF-8; save the file as CSV UTF-8")
        }
        csv::ErrorKind::Io(error) => anyhow!("{name}: {error}"),
        _ => anyhow!("{name}: line {line}: {error}"),
    }
}
