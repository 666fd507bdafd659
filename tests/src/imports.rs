//! Rows to import, and what has become of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::clock::Time;
use chassis::form::timestamp;
use futures_util::stream::{self, Stream, StreamExt};
use proto::agreement::{
    AttestationState, CreateAttestationRequest, ImportAttestationsRequest, ImportAttestationsResponse,
    ImportOutcome, ListAttestationsRequest,
};
use proto::types::{Contact, ErrorReason};
use tokio::sync::Notify;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::actions;
use crate::clients::{As, reason_of};
use crate::cluster::Cluster;
use crate::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT};
use crate::service::channel_to;

/// Rows for a few customers that take turns, so that rows of one customer are in flight together. Round
/// by round each of them is attested anew, twice the same, badly, of an older version, and as before.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// The request ids are made in it.
    pub id: Uuid,
    pub customers: Vec<String>,
}

/// A stored attestation, as far as two imports of the same rows agree: version, e-mail and state.
pub type Stored = (u32, String, AttestationState);

impl Sheet {
    /// Makes the customers, named after the sheet.
    ///
    /// # Errors
    /// The refusal.
    pub async fn new(partner: &As, name: &str, customers: usize) -> Result<Self, Status> {
        let mut ids = vec![];
        for n in 0..customers {
            // The name becomes a domain.
            let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "");
            ids.push(actions::create_customer(partner, &format!("{name} {n}"), "FR", None).await?);
        }
        Ok(Self { id: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()), customers: ids })
    }

    fn round(&self, row: usize) -> usize {
        row / self.customers.len()
    }

    /// The rows, from the first, without end.
    pub fn rows(&self) -> impl Iterator<Item = ImportAttestationsRequest> + Send + 'static {
        let sheet = self.clone();
        (0..).map(move |row| sheet.row(row))
    }

    fn row(&self, row: usize) -> ImportAttestationsRequest {
        let round = self.round(row);
        let customer = match round % 10 {
            8 => Uuid::nil().to_string().replace('0', "1"),
            _ => self.customers[row % self.customers.len()].clone(),
        };
        let day = |text: &str| text.parse::<Time>().unwrap_or_default();
        let agreed_at = match round {
            0 | 1 => day("2020-01-01T00:00:00Z"),
            _ if round % 10 == 4 => day("2020-01-01T00:00:00Z"),
            _ if round % 10 == 6 => day("2999-01-01T00:00:00Z"),
            _ => day("2024-01-01T00:00:00Z"),
        };
        let email = if round % 10 == 3 { "no address".to_owned() } else { email(person(round)) };
        ImportAttestationsRequest {
            request_id: Uuid::new_v5(&self.id, row.to_string().as_bytes()).to_string(),
            customer_id: customer,
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(Contact { email, ..fixtures::contact() }),
            agreed_at: Some(timestamp(agreed_at)),
            details: None,
        }
    }

    /// What the row has to be answered when it comes the first time, and, but for STORED, every time.
    #[must_use]
    pub fn expected(&self, row: usize) -> (ImportOutcome, ErrorReason) {
        match self.round(row) % 10 {
            1 | 7 => (ImportOutcome::Duplicate, ErrorReason::Unspecified),
            3 | 6 => (ImportOutcome::Refused, ErrorReason::InvalidFields),
            4 => (ImportOutcome::Refused, ErrorReason::OlderThanCurrent),
            8 => (ImportOutcome::Refused, ErrorReason::ResourceNotFound),
            _ => (ImportOutcome::Stored, ErrorReason::Unspecified),
        }
    }

    /// Compares an answer with what it has to be.
    ///
    /// # Errors
    /// How it differs.
    pub fn check(&self, row: usize, answer: &ImportAttestationsResponse, again: bool) -> Result<(), String> {
        let (mut outcome, reason) = self.expected(row);
        if again && outcome == ImportOutcome::Stored {
            outcome = ImportOutcome::Replayed;
        }
        let refusal = answer.refusal.clone().unwrap_or_default();
        let is_right = answer.row == row as u64 + 1
            && answer.request_id == self.row(row).request_id
            && (answer.outcome(), refusal.reason()) == (outcome, reason)
            && answer.attestation_id.is_empty() == (outcome == ImportOutcome::Refused);
        if is_right { Ok(()) } else { Err(format!("row {row}, {outcome:?} {reason:?} expected: {answer:?}")) }
    }

    /// What has to be stored for each customer once that many rows were taken, oldest first.
    #[must_use]
    pub fn expected_stored(&self, rows: usize) -> Vec<Vec<Stored>> {
        let mut stored = vec![vec![]; self.customers.len()];
        for row in (0..rows).filter(|row| self.expected(*row).0 == ImportOutcome::Stored) {
            let of_customer: &mut Vec<Stored> = &mut stored[row % self.customers.len()];
            if let Some((_, _, state)) = of_customer.last_mut() {
                *state = AttestationState::Superseded;
            }
            let round = self.round(row);
            let version = if round == 0 { 1 } else { 2 };
            of_customer.push((version, email(person(round)), AttestationState::Current));
        }
        stored
    }

    /// What is stored for each customer, oldest first.
    ///
    /// # Errors
    /// The refusal.
    pub async fn stored(&self, partner: &As) -> Result<Vec<Vec<Stored>>, Status> {
        let mut stored = vec![];
        for customer in &self.customers {
            let mut of_customer = vec![];
            let mut page = ListAttestationsRequest {
                customer_id: customer.clone(),
                include_history: true,
                page_size: 500,
                ..ListAttestationsRequest::default()
            };
            loop {
                let listed = partner.attestations().list_attestations(page.clone()).await?.into_inner();
                of_customer.extend(listed.attestations.into_iter().map(|attestation| {
                    let state = attestation.state();
                    (attestation.template_version, attestation.contact.unwrap_or_default().email, state)
                }));
                page.page_token = listed.next_page_token;
                if page.page_token.is_empty() {
                    break;
                }
            }
            stored.push(of_customer);
        }
        Ok(stored)
    }

    /// The number of the last event, as a dry run of an attestation reports it.
    ///
    /// # Errors
    /// The refusal.
    pub async fn head(&self, partner: &As) -> Result<i64, Status> {
        let request = CreateAttestationRequest {
            request_id: fixtures::request_id(),
            customer_id: self.customers.first().cloned().unwrap_or_default(),
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(Contact { email: "dry-run@contoso.example".into(), ..fixtures::contact() }),
            agreed_at: Some(timestamp(Time::UNIX_EPOCH + Duration::from_secs(1_750_000_000))),
            validate_only: true,
            details: None,
        };
        Ok(partner.attestations().create_attestation(request).await?.into_inner().revision - 1)
    }
}

/// Where a stream is cut: the client is gone at once, with its connection, whatever was under way.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// All rows are being sent; that many answers were read.
    AfterAnswers(usize),
    /// That many rows were sent, and no answer was read.
    AfterRows(usize),
}

/// What a client that reads nothing has room for: the answers to a hundred thousand rows.
const UNREAD_BYTES_MAX: u32 = 16 << 20;

/// Far longer than any import takes to notice that its client is gone.
const ROOM_MAX: Duration = Duration::from_secs(60);

/// Begins to import the rows as a process of its own would, on a runtime that is dropped: a client that
/// only drops its stream keeps the call open while its rows go on.
///
/// # Errors
/// What went wrong before the cut.
pub async fn import_and_cut(cluster: &Cluster, sheet: &Sheet, rows: usize, cut: Cut) -> Result<(), String> {
    let ([address, _], tls) = (cluster.addresses(), cluster.client_tls());
    let (partner, sheet) = (cluster.as_caller(fixtures::sales(DIRECT)), sheet.clone());
    let client = move || {
        let runtime = chassis::lifecycle::runtime().map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let agreements = channel_to(&address, &tls, |endpoint| {
                endpoint
                    .initial_stream_window_size(UNREAD_BYTES_MAX)
                    .initial_connection_window_size(UNREAD_BYTES_MAX)
            });
            let partner = As { agreements, ..partner };
            begin_to_import(&partner, &sheet, rows, cut).await.map_err(|status| status.to_string())
        })
    };
    tokio::task::spawn_blocking(client).await.map_err(|error| error.to_string())?
}

/// Imports rows, as soon as there is room.
///
/// # Errors
/// As [`with_room`].
pub async fn import<S>(
    partner: &As,
    rows: impl Fn() -> S,
) -> Result<Streaming<ImportAttestationsResponse>, Status>
where
    S: Stream<Item = ImportAttestationsRequest> + Send + 'static,
{
    let begin = async || partner.attestations().import_attestations(rows()).await;
    Ok(with_room(begin).await?.into_inner())
}

/// Begins an import, as soon as there is room: only the service knows when an import that was cut is over, and on
/// a stack others import, too.
///
/// # Errors
/// Another refusal than that, or that there was no room for long.
pub async fn with_room<A>(begin: impl AsyncFn() -> Result<A, Status>) -> Result<A, Status> {
    let began = Instant::now();
    loop {
        let refused = match begin().await {
            Ok(answers) => return Ok(answers),
            Err(refused) => refused,
        };
        let is_full = ["OVERLOADED", "TENANT_OVERLOADED"].contains(&reason_of(&refused).as_str());
        if !is_full || began.elapsed() > ROOM_MAX {
            return Err(refused);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn begin_to_import(partner: &As, sheet: &Sheet, rows: usize, cut: Cut) -> Result<(), Status> {
    match cut {
        Cut::AfterAnswers(answers) => {
            let mut stream = import(partner, || stream::iter(sheet.rows().take(rows))).await?;
            for _ in 0..answers {
                stream.message().await?;
            }
        }
        Cut::AfterRows(rows) => {
            let sent = Arc::new(Notify::new());
            let rows = || {
                let sent = sent.clone();
                let rest = stream::once(async move {
                    sent.notify_one();
                    std::future::pending().await
                });
                stream::iter(sheet.rows().take(rows)).chain(rest)
            };
            let _answers = import(partner, rows).await?;
            sent.notified().await;
        }
    }
    Ok(())
}

/// The round in which that person was first attested.
fn person(round: usize) -> usize {
    match round % 10 {
        1 => round - 1,
        5 => round - 5,
        7 => round - 7,
        _ => round,
    }
}

fn email(person: usize) -> String {
    format!("person-{person}@contoso.example")
}
