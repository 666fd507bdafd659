//! ATT-10: rows that arrive together are decided in one change, and leave exactly what they leave one by one.

use std::collections::BTreeSet;

use futures_util::stream;
use proto::agreement::event::Change;
use proto::agreement::{
    Attestation, AttestationState, GetCustomerRequest, ImportAttestationsRequest, ImportAttestationsResponse,
    ImportOutcome, ListAttestationsRequest,
};
use proto::types::{Contact, ErrorReason};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rstest_reuse::apply;
use tests::fixtures::{self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT};
use tests::imports::import;
use tests::{As, Backend, Cluster, Setup, actions};
use uuid::Uuid;

use crate::each_backend;

const CASES: usize = 12;

/// More than are decided together.
const ROWS: usize = 150;

const CUSTOMERS: usize = 5;

/// Few enough that it is reached in the middle.
const CHANGES_MAX: u32 = 8;

/// A row, whatever its customers and request ids are called.
#[derive(Clone, Debug)]
struct Line {
    request: usize,
    customer: Option<usize>,
    template: &'static str,
    email: String,
    agreed: &'static str,
}

/// Rows of few customers and persons: some bad, some of unknown customers, some that come again under the same request id,
/// with the same content or with other content.
fn random_lines(random: &mut StdRng) -> Vec<Line> {
    let mut lines: Vec<Line> = vec![];
    for request in 0..ROWS {
        let line = Line {
            request,
            customer: random.random_bool(0.9).then(|| random.random_range(0..CUSTOMERS)),
            template: match random.random_range(0..20) {
                0 => CLOUD_AGREEMENT,
                1 => "00000000-0000-4000-8000-000000000001",
                _ => CUSTOMER_AGREEMENT,
            },
            email: match random.random_range(0..10) {
                0 => "no address".to_owned(),
                person => format!("person-{}@contoso.example", person % 3),
            },
            agreed: match random.random_range(0..10) {
                0 => "2999-01-01T00:00:00Z",
                1..4 => "2020-01-01T00:00:00Z",
                _ => "2024-01-01T00:00:00Z",
            },
        };
        let earlier = (!lines.is_empty()).then(|| lines[random.random_range(0..lines.len())].clone());
        lines.push(match (random.random_range(0..10), earlier) {
            (0, Some(earlier)) => earlier,
            (1, Some(earlier)) => Line { request: earlier.request, ..line },
            _ => line,
        });
    }
    lines
}

/// The place of each attestation in the order in which they were made.
type Place = Option<usize>;

/// Version, e-mail, state, whether it is announced, and revision.
type Stored = (u32, String, AttestationState, bool, i64);

/// Everything that can be seen of the rows afterwards, without ids and times.
#[derive(Debug, PartialEq)]
struct Left {
    answers: Vec<(u64, ImportOutcome, ErrorReason, Vec<String>, Place)>,
    /// Revision, customer, version, attestation and the one that it replaced.
    events: Vec<(i64, Place, u32, Place, Place)>,
    /// Of each customer the acceptance revision and its attestations.
    stored: Vec<(i64, Vec<Stored>)>,
}

/// Imports the lines twice, for new customers, and says how many events share their time with the one before.
async fn leave(cluster: &Cluster, name: &str, lines: &[Line], together: bool) -> (Left, usize) {
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = vec![];
    for n in 0..CUSTOMERS {
        customers.push(actions::create_customer(&direct, &format!("{name}{n}"), "FR", None).await.unwrap());
    }
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
    let rows: Vec<_> = lines.iter().map(|line| row(line, &customers, namespace)).collect();
    let before = cluster.head().await.unwrap();
    let mut answers = vec![];
    for _ in 0..2 {
        let size = if together { rows.len() } else { 1 };
        for rows in rows.chunks(size) {
            answers.extend(send(&direct, rows).await);
        }
    }

    let history = cluster.events_after(before).await.unwrap();
    let made: Vec<_> = history
        .iter()
        .map(|event| match event.change.clone().unwrap() {
            Change::Attested(attested) => attested,
            other => panic!("{other:?}"),
        })
        .collect();
    let place = |id: &str| made.iter().position(|attested| attested.attestation_id == id);
    let events = history.iter().zip(&made).map(|(event, attested)| {
        let customer = customers.iter().position(|customer| *customer == event.customer_id);
        let (attestation, superseded) = (place(&attested.attestation_id), place(&attested.supersedes_id));
        (event.revision - before, customer, attested.template_version, attestation, superseded)
    });
    let mut stored = vec![];
    for customer_id in &customers {
        let request = GetCustomerRequest { customer_id: customer_id.clone() };
        let customer = direct.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap();
        let attestations = list(&direct, customer_id).await;
        for (one, next) in attestations.iter().zip(&attestations[1.min(attestations.len())..]) {
            assert_eq!(one.superseded_at, next.recorded_at);
        }
        let attestations = attestations.into_iter().map(|one| {
            let (state, is_announced) = (one.state(), one.notification.is_some());
            (one.template_version, one.contact.unwrap().email, state, is_announced, one.revision - before)
        });
        stored.push((customer.acceptance_revision - before, attestations.collect()));
    }
    let left = Left {
        answers: answers
            .iter()
            .map(|answer| {
                let refusal = answer.refusal.clone().unwrap_or_default();
                let fields = refusal.fields.iter().map(|problem| problem.field.clone()).collect();
                let number = if together { answer.row } else { 0 };
                (number, answer.outcome(), refusal.reason(), fields, place(&answer.attestation_id))
            })
            .collect(),
        events: events.collect(),
        stored,
    };
    let times: Vec<_> = history.iter().map(|event| event.recorded_at).collect();
    (left, times.windows(2).filter(|pair| pair[0] == pair[1]).count())
}

fn row(line: &Line, customers: &[String], namespace: Uuid) -> ImportAttestationsRequest {
    ImportAttestationsRequest {
        request_id: Uuid::new_v5(&namespace, line.request.to_string().as_bytes()).to_string(),
        customer_id: line.customer.map_or_else(|| Uuid::from_u128(7).to_string(), |n| customers[n].clone()),
        template_id: line.template.into(),
        contact: Some(Contact { email: line.email.clone(), ..fixtures::contact() }),
        agreed_at: Some(chassis::form::timestamp(fixtures::time(line.agreed))),
        details: None,
    }
}

async fn send(direct: &As, rows: &[ImportAttestationsRequest]) -> Vec<ImportAttestationsResponse> {
    let mut stream = import(direct, || stream::iter(rows.to_vec())).await.unwrap();
    let mut answers = vec![];
    while let Some(answer) = stream.message().await.unwrap() {
        answers.push(answer);
    }
    assert_eq!(answers.len(), rows.len());
    answers
}

async fn list(direct: &As, customer_id: &str) -> Vec<Attestation> {
    let request = ListAttestationsRequest {
        customer_id: customer_id.to_owned(),
        include_history: true,
        page_size: 500,
        page_token: String::new(),
        ..ListAttestationsRequest::default()
    };
    direct.attestations().list_attestations(request).await.unwrap().into_inner().attestations
}

#[apply(each_backend)]
async fn rows_that_arrive_together_leave_what_they_leave_one_by_one(#[case] backend: Backend) {
    tests::needs_own!("settings of its own");
    tests::needs!(backend);
    let setup = Setup { backend, acceptance_changes_max: CHANGES_MAX, ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut reasons = BTreeSet::new();
    let mut shared = 0;
    for case in 0..CASES {
        let lines = random_lines(&mut random);
        let (mut together, in_one_change) = leave(&cluster, &format!("Together{case}x"), &lines, true).await;
        let (single, alone) = leave(&cluster, &format!("Single{case}x"), &lines, false).await;
        let numbers = together.answers.iter_mut().map(|answer| std::mem::take(&mut answer.0));
        assert!(numbers.eq((1..=ROWS as u64).chain(1..=ROWS as u64)));
        assert_eq!(together, single, "{backend:?}, case {case}, seed {seed}: {lines:#?}");
        assert_eq!(alone, 0);
        shared += in_one_change;
        reasons
            .extend(single.answers.iter().map(|(_, outcome, reason, ..)| (*outcome as i32, *reason as i32)));
    }
    // Rows did arrive together, and everything that can become of one did.
    assert!(shared > CASES, "{shared}");
    let outcomes = [ImportOutcome::Stored, ImportOutcome::Replayed, ImportOutcome::Duplicate];
    let refusals = [
        ErrorReason::InvalidFields,
        ErrorReason::RequestIdReused,
        ErrorReason::ResourceNotFound,
        ErrorReason::TemplateRetired,
        ErrorReason::OlderThanCurrent,
        ErrorReason::AcceptanceChangeLimit,
    ];
    let refusals = refusals.map(|reason| (ImportOutcome::Refused as i32, reason as i32));
    let expected = outcomes.map(|outcome| (outcome as i32, ErrorReason::Unspecified as i32));
    assert_eq!(reasons, expected.into_iter().chain(refusals).collect());
}
