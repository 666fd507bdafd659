//! The commands that import: clients of a running server, over `ImportAttestations` and `ImportCustomers`.
//!
//! A file is read whole before the first row is sent. The request id of a row follows from what it says. So the same file
//! sent again names the same requests, a run that was cut off is completed by running it again, and after a correction
//! only the corrected rows are new. Contacts are sent and go nowhere else.

mod attestations;
mod columns;
mod customers;
mod layout;
mod report;
mod rows;
mod table;
mod truth;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use chassis::auth::{Caller, Channel, Credentials};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::agreement::ImportOutcome;
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::customer_service_client::CustomerServiceClient;
use proto::identity::{Role, TenantKind};
use proto::types::ErrorReason;
use tokio_stream::Iter;
use tonic::{Request, Response, Status, Streaming, transport};

use super::client::{connect, said, token};
use crate::api::import::Settled;
use crate::config::{Import, ImportClient};
use report::{Report, RowOutcome, RowResult, Tally};
use rows::Row;

/// Exit code: every row has a result, and some were refused.
const ROWS_REFUSED: u8 = 1;

/// Exit code: it did not begin, or it was cut off.
const NOT_CARRIED_THROUGH: u8 = 2;

/// Imports and prints the counts of the outcomes.
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
    match settings {
        Import::Attestations(settings) => {
            let session = Session::of(settings.client.clone(), &settings.file)?;
            let rows = attestations::read(&settings)?;
            let call =
                async |channel, rows| AttestationServiceClient::new(channel).import_attestations(rows).await;
            session.send(rows, |row| &row.request_id, Some("attestation_id"), call).await
        }
        Import::Customers(settings) => {
            let session = Session::of(settings.client.clone(), &settings.file)?;
            let rows = customers::read(&settings)?;
            let call = async |channel, rows| CustomerServiceClient::new(channel).import_customers(rows).await;
            session.send(rows, |row| &row.request_id, None, call).await
        }
    }
}

/// What an import needs besides its rows.
struct Session {
    settings: ImportClient,
    results: PathBuf,
    credentials: Credentials,
}

impl Session {
    fn of(settings: ImportClient, file: &Path) -> anyhow::Result<Self> {
        let results = results_of(&settings, file)?;
        let credentials = credentials(&settings)?;
        Ok(Self { settings, results, credentials })
    }

    /// Sends the rows and writes the result of each. `id_column` is what the results call the id of what a row stored, where
    /// that is not the customer.
    async fn send<R, A>(
        self,
        rows: Vec<Row<R>>,
        request_id: impl Fn(&R) -> &String,
        id_column: Option<&'static str>,
        call: impl AsyncFnOnce(
            transport::Channel,
            Request<Iter<std::vec::IntoIter<R>>>,
        ) -> Result<Response<Streaming<A>>, Status>,
    ) -> anyhow::Result<Tally>
    where
        A: Into<Settled>,
    {
        let Self { settings, results, credentials } = self;
        let channel = connect(&settings.address, &settings.tls, settings.token.is_some()).await?;

        let progress = ProgressBar::with_draw_target(Some(rows.len() as u64), ProgressDrawTarget::stderr());
        progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} rows, {eta} left: {msg}")?);
        let mut report = Report::create(&results, id_column, progress)?;
        let (mut expected, mut requests) = (vec![], vec![]);
        for Row { number, customer_id, request } in rows {
            let sent = request.map(|request| {
                let request_id = request_id(&request).clone();
                requests.push(request);
                request_id
            });
            expected.push((number, customer_id, sent));
        }
        let mut request = Request::new(tokio_stream::iter(requests));
        credentials.present(request.metadata_mut());
        let answers = call(channel, request).await;
        let mut answers = answers
            .map_err(|status| anyhow!("the server does not take the import: {}", said(&status)))?
            .into_inner();
        for (number, customer_id, sent) in expected {
            let result = match sent {
                Err(result) => result,
                Ok(request_id) => {
                    let answer = answer_to(&request_id, &mut answers).await;
                    answer.map_err(|why| anyhow!("{}: {why:#}; {AGAIN}", report.tally))?
                }
            };
            report.write(number, &customer_id, &result)?;
        }
        report.progress.finish_and_clear();
        Ok(report.tally)
    }
}

/// What to do when an import was cut off.
const AGAIN: &str =
    "run the same command again: rows that were stored will be REPLAYED, none is stored twice";

/// The settings' token, or their word where there is none.
fn credentials(settings: &ImportClient) -> anyhow::Result<Credentials> {
    if let Some(file) = &settings.token {
        return token(file);
    }
    let (Some(tenant_id), Some(user_id)) = (settings.partner_id, settings.user_id) else {
        bail!("say who imports: --token, or --partner-id and --user-id");
    };
    let roles = vec![Role::SalesAgent.into_str()];
    let tenant_kind = TenantKind::Partner.into_str();
    Ok(Credentials::Metadata(Caller {
        tenant_kind,
        tenant_id,
        user_id,
        roles,
        channel: Channel::Api,
        client: None,
    }))
}

/// The next answer, which has to be the one to that request.
async fn answer_to<A: Into<Settled>>(
    request_id: &str,
    answers: &mut Streaming<A>,
) -> anyhow::Result<RowResult> {
    let answer = answers.message().await.map_err(|status| anyhow!("cut off, {}", said(&status)))?;
    let answer: Settled = answer.context("the server ended before the file did")?.into();
    ensure!(answer.request_id == request_id, "the server's answers are not in the order of the rows");
    let outcome = match answer.outcome {
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
    Ok(RowResult { outcome, id: answer.id, reason, message: refusal.message })
}

fn results_of(settings: &ImportClient, file: &Path) -> anyhow::Result<PathBuf> {
    let results = settings.results.clone().unwrap_or_else(|| file.with_extension("results.csv"));
    let is_the_file =
        results.canonicalize().is_ok_and(|results| Ok(results) == file.canonicalize().map_err(drop));
    ensure!(!is_the_file, "the results would overwrite the file; name another with --results");
    Ok(results)
}
