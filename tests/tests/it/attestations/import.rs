//! ATT-10: what is imported is what was sent, in its order, once, wherever the stream was cut.
//!
//! The clients run on a worker thread, so that they hang up while a test waits for a service to stop.

use futures_util::stream::{self, StreamExt};
use proto::agreement::{
    AttestationState, GetAttestationRequest, ImportAttestationsRequest, ImportAttestationsResponse,
    ImportOutcome, NotificationState, WithdrawAttestationRequest, WithdrawalReason,
};
use proto::types::{Contact, ErrorReason};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rstest_reuse::apply;
use tests::fixtures::{self, DIRECT, PROVIDER};
use tests::imports::{Cut, Sheet, import, import_and_cut};
use tests::{As, Backend, actions, reason_of};

use crate::each_backend;
use tokio::sync::oneshot;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

/// Customers that take turns: eighteen rows of each are in flight together.
const CUSTOMERS: usize = 7;

async fn read_all(
    mut answers: Streaming<ImportAttestationsResponse>,
) -> (Vec<ImportAttestationsResponse>, Option<Status>) {
    let mut read = vec![];
    loop {
        match answers.message().await {
            Ok(Some(answer)) => read.push(answer),
            Ok(None) => return (read, None),
            Err(status) => return (read, Some(status)),
        }
    }
}

/// Imports the first rows of a sheet to the end and checks every answer.
async fn import_all(partner: &As, sheet: &Sheet, rows: usize, again: bool) {
    let (answers, ended) =
        read_all(import(partner, || stream::iter(sheet.rows().take(rows))).await.unwrap()).await;
    assert!(ended.is_none(), "{ended:?}");
    assert_eq!(answers.len(), rows);
    for (row, answer) in answers.iter().enumerate() {
        sheet.check(row, answer, again).unwrap();
    }
}

/// The import answers every row, in the order of the rows; when the partner sends the rows again, nothing changes.
#[apply(each_backend)]
async fn import_answers_every_row_in_order_and_once(#[case] backend: Backend) {
    tests::needs!(backend);
    let (cluster, direct) = actions::start_with_partners(backend).await;
    // Around the 500 at which the vendor's own tool loses a row, and where a batch may end.
    for rows in [0, 1, 499, 500, 501, 1000] {
        let sheet = Sheet::new(&direct, &format!("Sheet {rows}"), CUSTOMERS).await.unwrap();
        import_all(&direct, &sheet, rows, false).await;
        let stored = sheet.stored(&direct).await.unwrap();
        assert_eq!(stored, sheet.expected_stored(rows), "{backend:?} {rows}");

        let head = cluster.head().await.unwrap();
        import_all(&direct, &sheet, rows, true).await;
        assert_eq!(cluster.events_after(head).await.unwrap(), []);
        assert_eq!(sheet.stored(&direct).await.unwrap(), stored);
    }
}

/// A stream that is cut at any tenth row and sent again leaves what an uncut stream leaves.
#[apply(each_backend)]
async fn a_stream_cut_at_any_tenth_row_can_be_sent_again(#[case] backend: Backend) {
    tests::needs!(backend);
    const ROWS: usize = 200;
    let uncut = {
        let (_cluster, direct) = actions::start_with_partners(backend).await;
        let sheet = Sheet::new(&direct, "Uncut", CUSTOMERS).await.unwrap();
        import_all(&direct, &sheet, ROWS, false).await;
        sheet.stored(&direct).await.unwrap()
    };
    let (cluster, direct) = actions::start_with_partners(backend).await;
    for cut in (0..=ROWS).step_by(10) {
        for cut in [Cut::AfterAnswers(cut), Cut::AfterRows(cut)] {
            let sheet = Sheet::new(&direct, &format!("{cut:?}"), CUSTOMERS).await.unwrap();
            import_and_cut(&cluster, &sheet, ROWS, cut).await.unwrap();
            let (answers, ended) =
                read_all(import(&direct, || stream::iter(sheet.rows().take(ROWS))).await.unwrap()).await;
            assert!(ended.is_none() && answers.len() == ROWS, "{ended:?}");
            // What had been answered before is not stored a second time, whatever came after it.
            let answered = if let Cut::AfterAnswers(answered) = cut { answered } else { 0 };
            for (row, answer) in answers.iter().enumerate().take(answered) {
                sheet.check(row, answer, true).unwrap();
            }
            assert_eq!(sheet.stored(&direct).await.unwrap(), uncut, "{backend:?} {cut:?}");
        }
    }
}

/// A stream of a thousand rows that is cut at every tenth row in turn leaves what an uncut stream leaves.
#[apply(each_backend)]
async fn a_thousand_rows_survive_a_cut_at_every_tenth_row(#[case] backend: Backend) {
    tests::needs!(backend);
    const ROWS: usize = 1000;
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let sheet = Sheet::new(&direct, "Sheet", CUSTOMERS).await.unwrap();
    let (mut stored, mut interrupted) = (0, 0);
    for cut in (10..ROWS).step_by(10) {
        import_and_cut(&cluster, &sheet, ROWS, Cut::AfterRows(cut)).await.unwrap();
        let now = sheet.stored(&direct).await.unwrap().concat().len();
        interrupted += usize::from(now > stored);
        stored = now;
    }
    assert!(interrupted > 1, "no cut left anything to the next");
    let (answers, ended) =
        read_all(import(&direct, || stream::iter(sheet.rows().take(ROWS))).await.unwrap()).await;
    assert!(ended.is_none() && answers.len() == ROWS, "{ended:?}");
    assert_eq!(sheet.stored(&direct).await.unwrap(), sheet.expected_stored(ROWS), "{backend:?}");
}

/// A stream that is cut twenty times at random leaves what an uncut stream leaves.
#[apply(each_backend)]
async fn a_stream_survives_twenty_random_cuts(#[case] backend: Backend) {
    tests::needs_own!("more changes of acceptances than people make");
    tests::needs!(backend);
    const ROWS: usize = 5000;
    const CUTS: usize = 20;
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let sheet = Sheet::new(&direct, "Cut", CUSTOMERS).await.unwrap();
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for n in 0..CUTS {
        let cut = random.random_range(0..ROWS);
        let cut = if n % 2 == 0 { Cut::AfterAnswers(cut) } else { Cut::AfterRows(cut) };
        import_and_cut(&cluster, &sheet, ROWS, cut).await.unwrap();
    }
    let (answers, ended) =
        read_all(import(&direct, || stream::iter(sheet.rows().take(ROWS))).await.unwrap()).await;
    assert!(ended.is_none() && answers.len() == ROWS, "{ended:?}; seed {seed}");
    let stored = sheet.stored(&direct).await.unwrap();
    assert!(stored == sheet.expected_stored(ROWS), "{backend:?}; seed {seed}");
    import_all(&direct, &sheet, ROWS, true).await;
}

/// The answer to a bad row names everything that is wrong with it, and the other rows go on.
#[apply(each_backend)]
async fn a_bad_row_gets_all_its_errors_and_stops_no_other_row(#[case] backend: Backend) {
    tests::needs!(backend);
    let (_cluster, direct) = actions::start_with_partners(backend).await;
    let sheet = Sheet::new(&direct, "Sheet", CUSTOMERS).await.unwrap();
    let good: Vec<_> = sheet.rows().take(3).collect();
    let garbage = ImportAttestationsRequest {
        request_id: "é".repeat(100_000),
        customer_id: "7".into(),
        contact: Some(Contact { email: "no address".into(), ..Contact::default() }),
        ..ImportAttestationsRequest::default()
    };
    let reused = ImportAttestationsRequest { request_id: good[0].request_id.clone(), ..good[1].clone() };
    let rows = [good[0].clone(), garbage, reused, good[1].clone(), good[0].clone()];
    let (answers, ended) = read_all(import(&direct, || stream::iter(rows.clone())).await.unwrap()).await;
    assert!(ended.is_none(), "{ended:?}");

    let outcomes: Vec<_> = answers.iter().map(ImportAttestationsResponse::outcome).collect();
    use ImportOutcome::{Refused, Replayed, Stored};
    assert_eq!(outcomes, [Stored, Refused, Refused, Stored, Replayed]);
    assert_eq!(answers.iter().map(|answer| answer.row).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let refusal = answers[1].refusal.clone().unwrap();
    assert_eq!((refusal.code, refusal.reason()), (Code::InvalidArgument as i32, ErrorReason::InvalidFields));
    let fields: Vec<_> = refusal.fields.iter().map(|problem| problem.field.as_str()).collect();
    let bad = ["request_id", "customer_id", "template_id", "contact.email", "contact.first_name"];
    assert_eq!(fields, [&bad[..], &["contact.last_name", "agreed_at"]].concat());
    assert_eq!(answers[1].request_id, "é".repeat(36));
    let refusal = answers[2].refusal.clone().unwrap();
    assert_eq!(refusal.reason(), ErrorReason::RequestIdReused);
    assert_eq!(refusal.metadata["request_id"], good[0].request_id);

    // What is stored is an attestation like any other: announced, and taken back for good.
    let attestation_id = answers[0].attestation_id.clone();
    let request = GetAttestationRequest { attestation_id: attestation_id.clone() };
    let get = || async {
        let answer = direct.attestations().get_attestation(request.clone()).await;
        answer.unwrap().into_inner().attestation.unwrap()
    };
    assert!(get().await.notification.unwrap().state() != NotificationState::Unspecified);
    let withdraw = WithdrawAttestationRequest {
        request_id: fixtures::request_id(),
        attestation_id: attestation_id.clone(),
        reason: WithdrawalReason::RecordedInError.into(),
        ..WithdrawAttestationRequest::default()
    };
    direct.attestations().withdraw_attestation(withdraw).await.unwrap();
    let (answers, _) = read_all(import(&direct, || stream::iter([good[0].clone()])).await.unwrap()).await;
    assert_eq!((answers[0].outcome(), &answers[0].attestation_id), (Replayed, &attestation_id));
    assert_eq!(get().await.state(), AttestationState::Withdrawn);
}

/// A row that cannot be read ends the stream, after the answers to the rows before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_unreadable_row_ends_the_stream_after_earlier_answers() {
    let (_cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let sheet = Sheet::new(&direct, "Sheet", CUSTOMERS).await.unwrap();
    let huge = ImportAttestationsRequest { request_id: "x".repeat(2 << 20), ..Default::default() };
    let rows: Vec<_> = sheet.rows().take(3).chain([huge]).chain(sheet.rows().skip(3).take(3)).collect();
    let (answers, ended) = read_all(import(&direct, || stream::iter(rows.clone())).await.unwrap()).await;
    let ended = ended.unwrap();
    assert_eq!((ended.code(), reason_of(&ended)), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".to_owned()));
    assert_eq!(answers.len(), 3);
    assert_eq!(sheet.stored(&direct).await.unwrap(), sheet.expected_stored(3));
}

#[apply(each_backend)]
async fn a_server_that_stops_answers_what_it_took_and_says_so(#[case] backend: Backend) {
    tests::needs_own!("services that it stops");
    tests::needs!(backend);
    let (mut cluster, direct) = actions::start_with_partners(backend).await;
    let sheet = Sheet::new(&direct, "Sheet", CUSTOMERS).await.unwrap();
    let rows = stream::iter(sheet.rows().take(100)).chain(stream::pending());
    let mut answers = direct.attestations().import_attestations(rows).await.unwrap().into_inner();
    sheet.check(0, &answers.message().await.unwrap().unwrap(), false).unwrap();
    let rest = tokio::spawn(read_all(answers));
    cluster.stop_agreements();
    let (rest, ended) = rest.await.unwrap();
    let ended = ended.unwrap();
    assert_eq!((ended.code(), reason_of(&ended)), (Code::Unavailable, "STOPPING".to_owned()));
    for (row, answer) in (1..).zip(&rest) {
        sheet.check(row, answer, false).unwrap();
    }
    cluster.restart_agreements().await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    assert_eq!(sheet.stored(&direct).await.unwrap(), sheet.expected_stored(1 + rest.len()));
}

#[apply(each_backend)]
async fn who_sends_and_never_reads_is_not_read_for_long(#[case] backend: Backend) {
    tests::needs_own!("a history of its own");
    tests::needs!(backend);
    // Answers of 90 bytes: the client takes 64 KiB of them, the server encodes another 32 KiB and
    // keeps 256 rows and answers.
    const TAKEN_MAX: i64 = 2500;
    const ROWS: usize = 5000;
    /// Changes made one after the other, each behind whatever the import has in the writer's queue.
    const LOOKS: usize = 50;
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let sheet = Sheet::new(&direct, "Sheet", CUSTOMERS).await.unwrap();
    let narrow = Endpoint::from_shared(format!("http://{}", cluster.agreements_address())).unwrap();
    let narrow = narrow.initial_stream_window_size(64 << 10);
    let silent = As { agreements: narrow.connect_lazy(), ..direct.clone() };
    // Only rows that are stored, so that the revision counts them.
    let expected = sheet.clone();
    let stored = move |(row, _): &(usize, _)| expected.expected(*row).0 == ImportOutcome::Stored;
    let rows: Vec<_> = sheet.rows().enumerate().filter(stored).map(|(_, row)| row).take(ROWS).collect();
    let before = sheet.head(&direct).await.unwrap();
    let answers = import(&silent, || stream::iter(rows.clone())).await.unwrap();

    let (mut head, mut unchanged) = (before, 0);
    while head == before || unchanged < LOOKS {
        let now = sheet.head(&direct).await.unwrap();
        unchanged = if now == head { unchanged + 1 } else { 0 };
        head = now;
    }
    assert!(head - before < TAKEN_MAX, "{backend:?}: {} rows", head - before);
    let (answers, ended) = read_all(answers).await;
    match ended {
        None => assert_eq!(answers.len(), ROWS),
        // On a machine that is busy enough, looking took so long that the import was given up.
        Some(status) => assert_eq!(reason_of(&status), "STREAM_STOOD_STILL", "{status:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_partner_has_half_of_all_imports_and_another_finds_room() {
    tests::needs_own!("all the imports that there may be");
    const IMPORTS_MAX: usize = 8;
    let (cluster, direct) = actions::start_with_partners(Backend::Sqlite).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let sheet = Sheet::new(&direct, "Sheet", CUSTOMERS).await.unwrap();
    // An import without rows that lasts until the sender is dropped.
    let open = async |partner: &As| {
        let (end, ended) = oneshot::channel::<()>();
        let rows = stream::pending().take_until(ended);
        partner.attestations().import_attestations(rows).await.map(|answers| (end, answers))
    };
    let mut held = vec![];
    for _ in 0..IMPORTS_MAX / 2 {
        held.push(open(&direct).await.unwrap());
    }
    let refused = open(&direct).await.unwrap_err();
    let tenant_overloaded = (Code::ResourceExhausted, "TENANT_OVERLOADED".to_owned());
    assert_eq!((refused.code(), reason_of(&refused)), tenant_overloaded);
    assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    let counted = cluster.agreements_metrics().await.unwrap();
    assert!(counted.contains("agreement_svc_calls_refused_for_load_total 1\n"), "{counted}");
    drop(open(&provider).await.unwrap());
    let (end, answers) = held.remove(0);
    drop(end);
    let (answers, ended) = read_all(answers.into_inner()).await;
    assert!(answers.is_empty() && ended.is_none());
    import_all(&direct, &sheet, 1, false).await;
}
