//! The command that attests from a file: a client of a running server, over `ImportAttestations`.
//!
//! The file is read twice and never held: first to check it and to make its rows' request ids, which
//! follow from its bytes, then to send it. So the same file sent again names the same requests, and a
//! run that was cut off is completed by running it again. Contacts are sent and go nowhere else.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use chassis::auth::{Bearer, Caller, Channel, Credentials};
use chassis::clock::Time;
use chassis::form::timestamp;
use chassis::{reload, tls};
use csv::StringRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::{ImportAttestationsRequest, ImportAttestationsResponse, ImportOutcome};
use proto::identity::{Role, TenantKind};
use proto::types::{Contact, ErrorReason};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use uuid::Uuid;

use crate::Failure;
use crate::config::{Import, read_date};

/// Exit code: every row that was not refused is settled, and some were refused.
const ROWS_REFUSED: u8 = 1;

/// Exit code: it did not begin, or it was cut off.
const NOT_CARRIED_THROUGH: u8 = 2;

/// Rows read and not answered yet: enough to keep the server busy over a slow line, few to hold.
const ROWS_AHEAD: usize = 1024;

/// Rows that are sent together, where the server takes them as fast as the file is read.
const ROWS_TOGETHER: usize = 64;

/// How long the server may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How often a silent server is probed, and how long it may take to show that it is there.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What the results file says of a row.
const COLUMNS: [&str; 6] = ["row", "customer_id", "outcome", "attestation_id", "reason", "message"];

/// Attests from the file and tells the person who started it what became of it.
#[expect(clippy::print_stdout, reason = "a command answers whoever started it")]
pub async fn run(settings: Import) -> ExitCode {
    match import(settings).await {
        Ok(tally) => {
            println!("{tally}");
            ExitCode::from(if tally.refused == 0 { 0 } else { ROWS_REFUSED })
        }
        Err(failure) => {
            tracing::error!("{failure}");
            ExitCode::from(NOT_CARRIED_THROUGH)
        }
    }
}

async fn import(settings: Import) -> Result<Tally, Failure> {
    let results = results_of(&settings)?;
    let credentials = credentials(&settings)?;
    let sheet = Sheet::open(&settings)?;
    if settings.token.is_some() && !settings.address.is_private() {
        return Err(
            format!("a token is sent to https or to this machine, not to {}", settings.address).into()
        );
    }
    let endpoint = tls::Client::endpoint(&settings.address)
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let client = tls::Client::open(&settings.tls, std::slice::from_ref(&settings.address))?;
    let channel = client.connect(&settings.address, &endpoint).await?;

    let progress = ProgressBar::with_draw_target(Some(sheet.rows), ProgressDrawTarget::stderr());
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} rows, {eta} left: {msg}")?);
    let mut report = Report::create(&results, progress)?;
    let (tell, mut asked) = mpsc::channel(ROWS_AHEAD);
    let (send, rows) = mpsc::channel(ROWS_TOGETHER);
    let mut request = Request::new(ReceiverStream::new(rows));
    credentials.present(request.metadata_mut());
    let mut client = AttestationServiceClient::new(channel);
    let reading = tokio::task::spawn_blocking(move || sheet.send(&send, &tell));
    let answers = client.import_attestations(request).await;
    let mut answers = answers
        .map_err(|status| format!("the server does not take the import: {}", said(&status)))?
        .into_inner();

    while let Some(Asked { row, customer_id, request_id, locally }) = asked.recv().await {
        let settled = match locally {
            Some(settled) => settled,
            None => {
                let answer = answer_to(&request_id, &mut answers).await;
                answer.map_err(|why| format!("{}: {why}; {AGAIN}", report.tally))?
            }
        };
        report.tell(row, &customer_id, &settled)?;
    }
    reading.await??;
    report.progress.finish_and_clear();
    Ok(report.tally)
}

/// What to do when an import was cut off.
const AGAIN: &str =
    "run the same command again: rows that were stored will be REPLAYED, none is stored twice";

/// The settings' token, or their word where there is none.
fn credentials(settings: &Import) -> Result<Credentials, String> {
    if let Some(file) = &settings.token {
        let token = reload::read(file)
            .and_then(|contents| Bearer::read(&contents).map_err(|why| format!("{}: {why}", file.display())));
        return token.map(Credentials::Token).map_err(|why| format!("--token {why}"));
    }
    let (Some(tenant_id), Some(user_id)) = (settings.partner_id, settings.user_id) else {
        return Err("say who attests: --token, or --partner-id and --user-id".into());
    };
    let roles = vec![Role::SalesAgent.into_str()];
    let tenant_kind = TenantKind::Partner.into_str();
    Ok(Credentials::Metadata(Caller { tenant_kind, tenant_id, user_id, roles, channel: Channel::Api }))
}

/// The next answer, which has to be the one to that request.
async fn answer_to(
    request_id: &str,
    answers: &mut Streaming<ImportAttestationsResponse>,
) -> Result<Settled, String> {
    let answer = answers.message().await.map_err(|status| format!("cut off, {}", said(&status)))?;
    let answer = answer.ok_or("the server ended before the file did")?;
    if answer.request_id != request_id {
        return Err("the server's answers are not in the order of the rows".into());
    }
    let outcome = match answer.outcome() {
        ImportOutcome::Stored => Outcome::Stored,
        ImportOutcome::Replayed => Outcome::Replayed,
        ImportOutcome::Duplicate => Outcome::Duplicate,
        ImportOutcome::Refused => Outcome::Refused,
        ImportOutcome::Unspecified => return Err("the server's answer makes no sense".into()),
    };
    let refusal = answer.refusal.unwrap_or_default();
    let reason = match refusal.reason() {
        ErrorReason::Unspecified => String::new(),
        reason => reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned(),
    };
    Ok(Settled { outcome, attestation_id: answer.attestation_id, reason, message: refusal.message })
}

fn said(status: &Status) -> String {
    format!("{}: {}", status.code().description(), status.message())
}

fn results_of(settings: &Import) -> Result<PathBuf, String> {
    let results = settings.results.clone().unwrap_or_else(|| settings.file.with_extension("results.csv"));
    let is_the_file =
        results.canonicalize().is_ok_and(|results| Ok(results) == settings.file.canonicalize().map_err(drop));
    if is_the_file {
        return Err("the results would overwrite the file; name another with --results".into());
    }
    Ok(results)
}

/// A file that was checked: every row can be read and has all columns.
struct Sheet {
    name: String,
    file: File,
    columns: Columns,
    rows: u64,
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

/// A row that was sent, or settled without.
struct Asked {
    row: u64,
    customer_id: String,
    request_id: String,
    locally: Option<Settled>,
}

impl Sheet {
    /// Reads the whole file once, so that one that cannot be read is refused before anything is sent.
    fn open(settings: &Import) -> Result<Self, String> {
        let name = settings.file.display().to_string();
        let failed = |error: io::Error| format!("{name}: {error}");
        let mut file = File::open(&settings.file).map_err(failed)?;
        let mut hashed = Hashed { file: &file, digest: Sha256::new() };
        let mut reader = csv::Reader::from_reader(&mut hashed);
        let headers = reader.headers().map_err(|error| unreadable(&name, None, &error))?.clone();
        let columns = Columns::find(&headers).map_err(|problem| format!("{name}: {problem}"))?;
        if columns.agreed_at.is_none() && settings.agreed_at.is_none() {
            return Err(format!(
                "{name} has no column DateAgreed; if all of its rows agreed at the same time, give it with --agreed-at"
            ));
        }
        let mut rows = 0;
        let mut record = StringRecord::new();
        while reader.read_record(&mut record).map_err(|error| unreadable(&name, Some(&headers), &error))? {
            rows += 1;
        }
        drop(reader);
        let mut namespace = [0; 16];
        namespace.copy_from_slice(&hashed.digest.finalize()[..16]);
        file.rewind().map_err(failed)?;
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

    /// Sends the rows, and tells ahead of each what there is to know for its answer. Ends early when
    /// nobody listens any more.
    fn send(
        self,
        send: &mpsc::Sender<ImportAttestationsRequest>,
        tell: &mpsc::Sender<Asked>,
    ) -> Result<(), String> {
        let mut reader = csv::Reader::from_reader(&self.file);
        for (row, record) in (1..).zip(reader.records()) {
            let record = record.map_err(|error| unreadable(&self.name, None, &error))?;
            let request_id = Uuid::new_v5(&self.namespace, u64::to_string(&row).as_bytes()).to_string();
            let (locally, request) = match self.request(&record, &request_id) {
                Ok(request) => (None, Some(request)),
                Err(settled) => (Some(settled), None),
            };
            // What is no id could be anything, so it is not repeated.
            let customer_id = Uuid::try_parse(text(&record, self.columns.customer));
            let customer_id = customer_id.map(|id| id.to_string()).unwrap_or_default();
            let told = tell.blocking_send(Asked { row, customer_id, request_id, locally });
            if told.is_err() || request.is_some_and(|request| send.blocking_send(request).is_err()) {
                break;
            }
        }
        Ok(())
    }

    /// What a row asks for, or what becomes of it without asking. Whether it is any good is the server's
    /// business, but for a date that cannot be sent.
    fn request(&self, record: &StringRecord, request_id: &str) -> Result<ImportAttestationsRequest, Settled> {
        let columns = &self.columns;
        let optional = |column: Option<usize>| column.map_or("", |column| text(record, column));
        if columns.completed.is_some() && !optional(columns.completed).eq_ignore_ascii_case("true") {
            return Err(Settled::locally(Outcome::Skipped, "", "PartnerAttestationCompleted is not true"));
        }
        let agreed_at = match (optional(columns.agreed_at), self.agreed_at) {
            ("", Some(time)) => Ok(time),
            ("", None) => Err("is required".to_owned()),
            (date, _) => read_date(date),
        };
        let agreed_at = agreed_at.map_err(|problem| {
            let message = format!("INVALID_FIELDS: DateAgreed {problem}");
            Settled::locally(Outcome::Refused, "INVALID_FIELDS", &message)
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
    fn find(headers: &StringRecord) -> Result<Self, String> {
        let find = |name: &str| {
            let is_it = |(_, header): &(usize, &str)| header.trim().eq_ignore_ascii_case(name);
            let mut found = headers.iter().enumerate().filter(is_it).map(|(column, _)| column);
            match (found.next(), found.next()) {
                (_, Some(_)) => Err(format!("line 1 has the column {name} twice")),
                (column, None) => Ok(column),
            }
        };
        let missing = |name: &str| format!("line 1 does not name the column {name}");
        let required = |name: &str| find(name)?.ok_or_else(|| missing(name));
        Ok(Self {
            customer: match find("CustomerTenantId")? {
                Some(column) => column,
                None => find("CustomerId")?.ok_or_else(|| missing("CustomerTenantId (or CustomerId)"))?,
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
fn unreadable(name: &str, headers: Option<&StringRecord>, error: &csv::Error) -> String {
    let line = error.position().map_or(1, csv::Position::line);
    let column = |n: usize| match headers.and_then(|headers| headers.get(n)) {
        Some(header) => format!("column {header}"),
        None => format!("column {}", n + 1),
    };
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => {
            format!("{name}: line {line}, {}: not UTF-8; save the file as UTF-8", column(err.field()))
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let first = usize::try_from(*len.min(expected_len)).unwrap_or(usize::MAX);
            let what = if len < expected_len { "missing" } else { "one too many" };
            format!("{name}: line {line}, {}: {what}; line 1 names {expected_len} columns", column(first))
        }
        _ => format!("{name}: line {line}: {error}"),
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

/// What became of a row.
struct Settled {
    outcome: Outcome,
    attestation_id: String,
    reason: String,
    message: String,
}

#[derive(Clone, Copy)]
enum Outcome {
    Stored,
    Replayed,
    Duplicate,
    Refused,
    Skipped,
}

impl Settled {
    fn locally(outcome: Outcome, reason: &str, message: &str) -> Self {
        Self { outcome, attestation_id: String::new(), reason: reason.into(), message: message.into() }
    }
}

impl Outcome {
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
struct Tally {
    stored: u64,
    replayed: u64,
    duplicate: u64,
    refused: u64,
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

/// Tells what becomes of the rows: in the results file, in the progress bar, and in sum.
struct Report {
    results: csv::Writer<File>,
    progress: ProgressBar,
    tally: Tally,
}

impl Report {
    fn create(path: &Path, progress: ProgressBar) -> Result<Self, String> {
        let results = csv::Writer::from_path(path).and_then(|mut results| {
            results.write_record(COLUMNS)?;
            Ok(results)
        });
        let results = results.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { results, progress, tally: Tally::default() })
    }

    fn tell(&mut self, row: u64, customer_id: &str, settled: &Settled) -> Result<(), String> {
        let Settled { outcome, attestation_id, reason, message } = settled;
        let row = row.to_string();
        let written = self
            .results
            .write_record([&row, customer_id, outcome.name(), attestation_id, reason, message])
            .map_err(io::Error::from)
            // Whoever looks into the file, or stops the command, finds every answer there.
            .and_then(|()| self.results.flush());
        written.map_err(|error| format!("the results cannot be written: {error}"))?;
        let tally = &mut self.tally;
        *match outcome {
            Outcome::Stored => &mut tally.stored,
            Outcome::Replayed => &mut tally.replayed,
            Outcome::Duplicate => &mut tally.duplicate,
            Outcome::Refused => &mut tally.refused,
            Outcome::Skipped => &mut tally.skipped,
        } += 1;
        self.progress.inc(1);
        self.progress.set_message(tally.to_string());
        Ok(())
    }
}
