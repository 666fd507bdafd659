//! The command that attests from a file: a client of a running server, over `ImportAttestations`.
//!
//! The file is read twice and never held: first to check it, then to send it. The request id of a row follows from
//! what it says. So the same file sent again names the same requests, a run that was cut off is completed by running
//! it again, and after a correction only the corrected rows are new. Contacts are sent and go nowhere else.

mod columns;
mod layout;
mod report;
mod sheet;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use chassis::auth::{Bearer, Caller, Channel, Credentials};
use chassis::{reload, tls};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::{ImportAttestationsResponse, ImportOutcome};
use proto::identity::{Role, TenantKind};
use proto::types::ErrorReason;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};

use crate::config::Import;
use report::{Report, RowOutcome, RowResult, Tally};
use sheet::{SentRow, Sheet};

/// Exit code: every row has a result, and some were refused.
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

/// Attests from the file and prints the counts of the outcomes.
#[expect(clippy::print_stdout, reason = "a command prints to the terminal that started it")]
pub async fn run(settings: Import) -> ExitCode {
    match import(settings).await {
        Ok(tally) => {
            println!("{tally}");
            ExitCode::from(if tally.refused == 0 { 0 } else { ROWS_REFUSED })
        }
        Err(failure) => {
            tracing::error!("{failure:#}");
            ExitCode::from(NOT_CARRIED_THROUGH)
        }
    }
}

async fn import(settings: Import) -> anyhow::Result<Tally> {
    let results = results_of(&settings)?;
    let credentials = credentials(&settings)?;
    let sheet = Sheet::open(&settings)?;
    ensure!(
        settings.token.is_none() || settings.address.is_private(),
        "a token is sent to https or to this machine, not to {}",
        settings.address
    );
    let endpoint = tls::Client::endpoint(&settings.address)
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let client = tls::Client::open(&settings.tls, std::slice::from_ref(&settings.address))?;
    let channel = client.connect(&settings.address, &endpoint).await?;

    let progress = ProgressBar::with_draw_target(Some(sheet.rows), ProgressDrawTarget::stderr());
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} rows, {eta} left: {msg}")?);
    let mut report = Report::create(&results, progress)?;
    let (announce, mut sent) = mpsc::channel(ROWS_AHEAD);
    let (send, rows) = mpsc::channel(ROWS_TOGETHER);
    let mut request = Request::new(ReceiverStream::new(rows));
    credentials.present(request.metadata_mut());
    let mut client = AttestationServiceClient::new(channel);
    let reading = tokio::task::spawn_blocking(move || sheet.send(&send, &announce));
    let answers = client.import_attestations(request).await;
    let mut answers = answers
        .map_err(|status| anyhow!("the server does not take the import: {}", said(&status)))?
        .into_inner();

    while let Some(SentRow { row, customer_id, request_id, locally }) = sent.recv().await {
        let result = match locally {
            Some(result) => result,
            None => {
                let answer = answer_to(&request_id, &mut answers).await;
                answer.map_err(|why| anyhow!("{}: {why:#}; {AGAIN}", report.tally))?
            }
        };
        report.write(row, &customer_id, &result)?;
    }
    reading.await??;
    report.progress.finish_and_clear();
    Ok(report.tally)
}

/// What to do when an import was cut off.
const AGAIN: &str =
    "run the same command again: rows that were stored will be REPLAYED, none is stored twice";

/// The settings' token, or their word where there is none.
fn credentials(settings: &Import) -> anyhow::Result<Credentials> {
    if let Some(file) = &settings.token {
        let contents = reload::read(file).context("--token")?;
        let token = Bearer::read(&contents).with_context(|| format!("--token: {}", file.display()))?;
        return Ok(Credentials::Token(token));
    }
    let (Some(tenant_id), Some(user_id)) = (settings.partner_id, settings.user_id) else {
        bail!("say who attests: --token, or --partner-id and --user-id");
    };
    let roles = vec![Role::SalesAgent.into_str()];
    let tenant_kind = TenantKind::Partner.into_str();
    Ok(Credentials::Metadata(Caller { tenant_kind, tenant_id, user_id, roles, channel: Channel::Api }))
}

/// The next answer, which has to be the one to that request.
async fn answer_to(
    request_id: &str,
    answers: &mut Streaming<ImportAttestationsResponse>,
) -> anyhow::Result<RowResult> {
    let answer = answers.message().await.map_err(|status| anyhow!("cut off, {}", said(&status)))?;
    let answer = answer.context("the server ended before the file did")?;
    ensure!(answer.request_id == request_id, "the server's answers are not in the order of the rows");
    let outcome = match answer.outcome() {
        ImportOutcome::Stored => RowOutcome::Stored,
        ImportOutcome::Replayed => RowOutcome::Replayed,
        ImportOutcome::Duplicate => RowOutcome::Duplicate,
        ImportOutcome::Refused => RowOutcome::Refused,
        ImportOutcome::Unspecified => bail!("the server's answer is invalid"),
    };
    let refusal = answer.refusal.unwrap_or_default();
    let reason = match refusal.reason() {
        ErrorReason::Unspecified => String::new(),
        reason => reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned(),
    };
    Ok(RowResult { outcome, attestation_id: answer.attestation_id, reason, message: refusal.message })
}

fn said(status: &Status) -> String {
    format!("{}: {}", status.code().description(), status.message())
}

fn results_of(settings: &Import) -> anyhow::Result<PathBuf> {
    let results = settings.results.clone().unwrap_or_else(|| settings.file.with_extension("results.csv"));
    let is_the_file =
        results.canonicalize().is_ok_and(|results| Ok(results) == settings.file.canonicalize().map_err(drop));
    ensure!(!is_the_file, "the results would overwrite the file; name another with --results");
    Ok(results)
}
