//! The CSV file of an import: its columns, its rows, and the request id of each row.

use std::fs::File;
use std::io::{self, Read, Seek};

use anyhow::{Context, anyhow, bail, ensure};
use chassis::clock::Time;
use chassis::form::timestamp;
use csv::StringRecord;
use proto::agreement::ImportAttestationsRequest;
use proto::types::Contact;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::report::{RowOutcome, RowResult};
use crate::config::{Import, read_date};

/// A file that was checked: every row can be read and has all columns.
pub(super) struct Sheet {
    name: String,
    file: File,
    columns: Columns,
    pub(super) rows: u64,
    /// From the file's bytes. The request ids of its rows are made in it.
    namespace: Uuid,
    template_id: Uuid,
    agreed_at: Option<Time>,
}

/// Where in a row something stands.
struct Columns {
    customer: usize,
    first_name: usize,
    last_name: usize,
    email: usize,
    phone: Option<usize>,
    template: Option<usize>,
    agreed_at: Option<usize>,
    completed: Option<usize>,
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
        let mut file = File::open(&settings.file).with_context(|| name.clone())?;
        let mut hashed = Hashed { file: &file, digest: Sha256::new() };
        let mut reader = csv::Reader::from_reader(&mut hashed);
        let headers = reader.headers().map_err(|error| unreadable(&name, None, &error))?.clone();
        let columns = Columns::find(&headers).with_context(|| name.clone())?;
        ensure!(
            columns.agreed_at.is_some() || settings.agreed_at.is_some(),
            "{name} has no column DateAgreed; if all of its rows agreed at the same time, give it with --agreed-at"
        );
        let mut rows = 0;
        let mut record = StringRecord::new();
        while reader.read_record(&mut record).map_err(|error| unreadable(&name, Some(&headers), &error))? {
            rows += 1;
        }
        drop(reader);
        let mut namespace = [0; 16];
        namespace.copy_from_slice(&hashed.digest.finalize()[..16]);
        file.rewind().with_context(|| name.clone())?;
        Ok(Self {
            name,
            file,
            columns,
            rows,
            namespace: Uuid::from_bytes(namespace),
            template_id: settings.template_id,
            agreed_at: settings.agreed_at,
        })
    }

    /// Sends the rows, and announces each before, so that its answer can be matched. Ends early when
    /// a receiver has gone.
    pub(super) fn send(
        self,
        send: &mpsc::Sender<ImportAttestationsRequest>,
        announce: &mpsc::Sender<SentRow>,
    ) -> anyhow::Result<()> {
        let mut reader = csv::Reader::from_reader(&self.file);
        for (row, record) in (1..).zip(reader.records()) {
            let record = record.map_err(|error| unreadable(&self.name, None, &error))?;
            let request_id = Uuid::new_v5(&self.namespace, u64::to_string(&row).as_bytes()).to_string();
            let (locally, request) = match self.request(&record, &request_id) {
                Ok(request) => (None, Some(request)),
                Err(result) => (Some(result), None),
            };
            // What is no id could be anything, so it is not repeated.
            let customer_id = Uuid::try_parse(text(&record, self.columns.customer));
            let customer_id = customer_id.map(|id| id.to_string()).unwrap_or_default();
            let announced = announce.blocking_send(SentRow { row, customer_id, request_id, locally });
            if announced.is_err() || request.is_some_and(|request| send.blocking_send(request).is_err()) {
                break;
            }
        }
        Ok(())
    }

    /// The request of a row, or the result of a row that is not sent. The server checks everything but a date that
    /// cannot be sent.
    fn request(
        &self,
        record: &StringRecord,
        request_id: &str,
    ) -> Result<ImportAttestationsRequest, RowResult> {
        let columns = &self.columns;
        let optional = |column: Option<usize>| column.map_or("", |column| text(record, column));
        if columns.completed.is_some() && !optional(columns.completed).eq_ignore_ascii_case("true") {
            return Err(RowResult::locally(
                RowOutcome::Skipped,
                "",
                "PartnerAttestationCompleted is not true",
            ));
        }
        let agreed_at = match (optional(columns.agreed_at), self.agreed_at) {
            ("", Some(time)) => Ok(time),
            ("", None) => Err("is required".to_owned()),
            (date, _) => read_date(date),
        };
        let agreed_at = agreed_at.map_err(|problem| {
            let message = format!("INVALID_FIELDS: DateAgreed {problem}");
            RowResult::locally(RowOutcome::Refused, "INVALID_FIELDS", &message)
        })?;
        let template_id = match optional(columns.template) {
            "" => self.template_id.to_string(),
            id => id.to_ascii_lowercase(),
        };
        Ok(ImportAttestationsRequest {
            request_id: request_id.to_owned(),
            customer_id: text(record, columns.customer).to_ascii_lowercase(),
            template_id,
            contact: Some(Contact {
                first_name: text(record, columns.first_name).to_owned(),
                last_name: text(record, columns.last_name).to_owned(),
                email: text(record, columns.email).to_owned(),
                phone: optional(columns.phone).to_owned(),
            }),
            agreed_at: Some(timestamp(agreed_at)),
        })
    }
}

impl Columns {
    fn find(headers: &StringRecord) -> anyhow::Result<Self> {
        let find = |name: &str| {
            let is_it = |(_, header): &(usize, &str)| header.trim().eq_ignore_ascii_case(name);
            let mut found = headers.iter().enumerate().filter(is_it).map(|(column, _)| column);
            match (found.next(), found.next()) {
                (_, Some(_)) => bail!("line 1 has the column {name} twice"),
                (column, None) => Ok(column),
            }
        };
        let missing = |name: &str| format!("line 1 does not name the column {name}");
        let required = |name: &str| find(name)?.with_context(|| missing(name));
        Ok(Self {
            customer: match find("CustomerTenantId")? {
                Some(column) => column,
                None => find("CustomerId")?.with_context(|| missing("CustomerTenantId (or CustomerId)"))?,
            },
            first_name: required("FirstName")?,
            last_name: required("LastName")?,
            email: required("Email")?,
            phone: find("PhoneNumber")?,
            template: find("TemplateId")?,
            agreed_at: find("DateAgreed")?,
            completed: find("PartnerAttestationCompleted")?,
        })
    }
}

fn text(record: &StringRecord, column: usize) -> &str {
    record.get(column).unwrap_or_default().trim()
}

/// Names line and column of what cannot be read, and never quotes it.
fn unreadable(name: &str, headers: Option<&StringRecord>, error: &csv::Error) -> anyhow::Error {
    let line = error.position().map_or(1, csv::Position::line);
    let column = |n: usize| match headers.and_then(|headers| headers.get(n)) {
        Some(header) => format!("column {header}"),
        None => format!("column {}", n + 1),
    };
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => {
            anyhow!("{name}: line {line}, {}: not UTF-8; save the file as UTF-8", column(err.field()))
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let first = usize::try_from(*len.min(expected_len)).unwrap_or(usize::MAX);
            let what = if len < expected_len { "missing" } else { "one too many" };
            anyhow!("{name}: line {line}, {}: {what}; line 1 names {expected_len} columns", column(first))
        }
        _ => anyhow!("{name}: line {line}: {error}"),
    }
}

/// Reads a file and hashes what was read.
struct Hashed<'a> {
    file: &'a File,
    digest: Sha256,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.digest.update(&buffer[..length]);
        Ok(length)
    }
}
