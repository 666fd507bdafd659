//! The contract of the reader: what it gives for rows that are written directly, on both databases.

use std::sync::Mutex;

use chassis::clock::Clock;
use chassis::database::Database;
use chassis::database::testing::url;
use diesel::connection::{InstrumentationEvent, SimpleConnection};
use diesel::sqlite::Sqlite;
use diesel::{Connection as _, debug_query, sql_query};
use rstest::rstest;

use super::history::PastAcceptances;
use super::*;
use crate::config::Storage;
use crate::rules::eligibility::AcceptanceKind;

const CUSTOMER: Uuid = Uuid::from_u128(0xc1);
const OTHER: Uuid = Uuid::from_u128(0xc2);
pub(crate) const DIRECT: Uuid = Uuid::from_u128(0xd1);
pub(crate) const PROVIDER: Uuid = Uuid::from_u128(0xe1);
const RESELLER: Uuid = Uuid::from_u128(0xf1);
const STRANGER: Uuid = Uuid::from_u128(0xf2);
pub(crate) const TEMPLATE: &str = "117a77b0-9360-443b-8795-c6dedc750cf9";

/// A database of a test's own, with two partners' relationships to one customer and none to the other.
pub(crate) async fn database(url: &str) -> Database {
    let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
    let storage =
        Storage { database: url.parse().unwrap(), create: true, templates: None, document_table: None };
    let database = crate::migrate(&storage, &clock).await.unwrap();
    for (id, kind) in
        [(DIRECT, "DIRECT_BILL"), (PROVIDER, "INDIRECT_PROVIDER"), (RESELLER, "INDIRECT_RESELLER")]
    {
        run(
            &database,
            format!("INSERT INTO partner (id, name, kind, cloud, registered_at, revision) VALUES ('{id}', 'P', '{kind}', 'PUBLIC', '2020-01-01', 1)"),
        )
        .await;
    }
    for id in [CUSTOMER, OTHER] {
        run(&database, format!("INSERT INTO customer (id, company_name, domain, country, cloud, first_name, last_name, email, phone, contact_salt, created_at, first_purchase_at, acceptance_revision, revision, name_key, name_revision) VALUES ('{id}', 'C', '{id}.example', 'FR', 'PUBLIC', '', '', '', '', '', '2020-01-01', NULL, 7, 7, NULL, -1)")).await;
    }
    for (n, payer, reseller, ended) in [
        (1, DIRECT, String::new(), "NULL"),
        (2, PROVIDER, RESELLER.to_string(), "NULL"),
        (3, PROVIDER, STRANGER.to_string(), "'2020-02-01 00:00:00'"),
    ] {
        run(&database, format!("INSERT INTO relationship VALUES ('{payer}', '{CUSTOMER}', '{reseller}', '2020-01-01 00:00:00', {ended}, {n})")).await;
    }
    database
}

pub(crate) async fn run(database: &Database, sql: String) {
    let execute = move |connection: &mut Connection| query!(connection, c => c.batch_execute(&sql));
    database.write(move |connection| Ok::<_, Error>(execute(connection)?)).await.unwrap();
}

/// Acceptances of the customer, as the table has them.
async fn accept(
    database: &Database,
    partner: &str,
    rows: std::ops::Range<u32>,
    superseded: &str,
    withdrawn: &str,
) {
    const COLUMNS: &str = "id, kind, partner_id, customer_id, agreement_type, template_id, template_version, first_name, last_name, email, phone, \
        contact_salt, agreed_at, recorded_at, recorded_by, superseded_at, withdrawn_at, revision, withdrawal_reason, \
        withdrawn_by";
    let kind = if partner.is_empty() { "SIGNATURE" } else { "ATTESTATION" };
    let values: Vec<_> = rows.map(|n| format!(
        "('{}', '{kind}', '{partner}', '{CUSTOMER}', 'MICROSOFT_CUSTOMER_AGREEMENT', '{TEMPLATE}', 1, \
         '', '', '', '', '', '2020-03-01 00:00:00.{:06}', '2020-03-01', '', {superseded}, {withdrawn}, {n}, '', '')",
        Uuid::from_u128(n.into()), n
    )).collect();
    for values in values.chunks(5_000) {
        run(database, format!("INSERT INTO acceptance ({COLUMNS}) VALUES {}", values.join(", "))).await;
    }
}

fn parties(customer_id: Uuid, payer_id: Uuid, reseller_id: Option<Uuid>) -> Parties {
    Parties { pair: Pair { customer_id, payer_id }, reseller_id }
}

/// The facts of each of the parties, asked about together and one by one, which must be the same.
async fn facts(database: &Database, all: &[Parties]) -> Vec<Option<Snapshot>> {
    let all = all.to_vec();
    let read = move |connection: &mut Connection| {
        let cache = TemplateCache::default();
        let found = |found: Vec<Result<_, Error>>| found.into_iter().collect::<Result<Vec<_>, _>>();
        let together = found(gate_facts(connection, &cache, &all)?)?;
        for (one, expected) in all.iter().zip(&together) {
            let alone = found(gate_facts(connection, &cache, &[*one])?)?;
            assert_eq!(alone.as_slice(), std::slice::from_ref(expected), "{one:?}");
        }
        Ok::<_, Error>(together)
    };
    database.snapshot(read).await.unwrap()
}

/// GATE-0, GATE-4, GATE-5, DIR-4: one reader serves single checks, batches and lists.
#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn single_and_many_parties_have_the_same_facts(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = url(is_postgres, folder.path()) else { return };
    let database = database(&url).await;
    accept(&database, &DIRECT.to_string(), 1..2, "NULL", "NULL").await;
    accept(&database, &PROVIDER.to_string(), 2..3, "NULL", "'2020-04-01 00:00:00'").await;
    accept(&database, "", 3..4, "'2020-04-01 00:00:00'", "NULL").await;
    accept(&database, "", 4..5, "NULL", "'2020-04-01 00:00:00'").await;
    let all = [
        parties(CUSTOMER, DIRECT, None),
        parties(CUSTOMER, PROVIDER, None),
        parties(CUSTOMER, PROVIDER, Some(RESELLER)),
        parties(CUSTOMER, PROVIDER, Some(STRANGER)),
        parties(CUSTOMER, DIRECT, Some(RESELLER)),
        parties(OTHER, DIRECT, None),
    ];
    let facts = facts(&database, &all).await;
    let only_resellers = facts.iter().map(|facts| Some(facts.as_ref()?.only_reseller_id));
    let of_provider = Some(Some(RESELLER));
    assert_eq!(only_resellers.collect::<Vec<_>>(), [Some(None), of_provider, of_provider, None, None, None]);
    let accepted_now = facts.iter().map(|facts| {
        let accepted = facts.as_ref()?.facts.acceptances.iter();
        Some(accepted.map(|one| (one.id.as_u128(), one.kind, one.template_version)).collect::<Vec<_>>())
    });
    let of_provider = Some(vec![]);
    assert_eq!(
        accepted_now.collect::<Vec<_>>(),
        [Some(vec![(1, AcceptanceKind::Attestation, 1)]), of_provider.clone(), of_provider, None, None, None]
    );
    let pairs = [DIRECT, PROVIDER].map(|payer_id| Pair { customer_id: CUSTOMER, payer_id });
    let history = database.snapshot(move |connection| history_of(connection, &pairs)).await.unwrap();
    let first_signed_at = Some("2020-03-01T00:00:00.000003Z".parse::<Time>().unwrap());
    assert!(history.iter().all(|history| history.first_signed_at == first_signed_at));
    let withdrawn = history.iter().map(|history| {
        let withdrawn = history.withdrawn.iter();
        withdrawn.map(|(last, at)| (last.id.as_u128(), last.kind, at.to_string())).collect::<Vec<_>>()
    });
    let withdrawn_at = "2020-04-01 00:00:00 UTC".to_owned();
    let signature = (4, AcceptanceKind::Signature, withdrawn_at.clone());
    let attestation = (2, AcceptanceKind::Attestation, withdrawn_at);
    assert_eq!(withdrawn.collect::<Vec<_>>(), [vec![signature.clone()], vec![attestation, signature]]);
}

/// The histories of pairs, asked about together and one by one, which must be the same.
fn history_of(connection: &mut Connection, pairs: &[Pair]) -> Result<Vec<PastAcceptances>, Error> {
    let together = gate_history(connection, pairs)?.into_iter().collect::<Result<Vec<_>, _>>()?;
    for (pair, expected) in pairs.iter().zip(&together) {
        let alone = gate_history(connection, &[*pair])?.into_iter().collect::<Result<Vec<_>, _>>()?;
        assert_eq!(alone.as_slice(), std::slice::from_ref(expected), "{pair:?}");
    }
    Ok(together)
}

/// A step of a plan of SQLite.
#[derive(QueryableByName)]
struct Step {
    #[diesel(sql_type = Text)]
    detail: String,
}

/// A long history is not scanned: SQLite finds the current acceptances by an index that has all conditions as columns.
/// Without that index its planner reads every acceptance of the pair. (PostgreSQL plans by the data; `lab bench-gate`
/// compares both databases.)
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sqlite_finds_current_acceptances_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(&url(false, folder.path()).unwrap()).await;
    let asked = || Asked::new(&[parties(CUSTOMER, DIRECT, None)]);
    let (alone, together) = (ReadFacts(AskedAlone(asked())), ReadFacts(asked()));
    for statement in
        [debug_query::<Sqlite, _>(&alone).to_string(), debug_query::<Sqlite, _>(&together).to_string()]
    {
        let explain = move |connection: &mut Connection| {
            let Connection::Sqlite(c) = connection else { panic!("the database is SQLite") };
            Ok::<_, Error>(sql_query(format!("EXPLAIN QUERY PLAN {statement}")).load::<Step>(c)?)
        };
        let plan = database.snapshot(explain).await.unwrap();
        let plan: Vec<_> = plan.into_iter().map(|step| step.detail).collect();
        let conditions =
            "acceptance_in_force (customer_id=? AND partner_id=? AND superseded_at=? AND withdrawn_at=?)";
        assert!(plan.iter().any(|step| step.contains(conditions)), "{plan:#?}");
    }
}

/// What is read of one customer costs the same however many there are, and however much was withdrawn.
#[tokio::test]
async fn sqlite_finds_the_rows_of_one_customer_by_an_index() {
    use crate::store::acceptance::{acceptances_cover, signatures_current};
    use crate::store::contact::contacts_of;
    use crate::store::customer::{active_partners, partnership_list, related_partners};

    let folder = tempfile::tempdir().unwrap();
    let database = database(&url(false, folder.path()).unwrap()).await;
    let statements: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = statements.clone();
    let explain = move |connection: &mut Connection| {
        if let Connection::Sqlite(c) = &mut *connection {
            c.set_instrumentation(move |event: InstrumentationEvent<'_>| {
                if let InstrumentationEvent::StartQuery { query, .. } = event {
                    seen.lock().unwrap().push(query.to_string());
                }
            });
        }
        related_partners(connection, CUSTOMER)?;
        active_partners(connection, CUSTOMER)?;
        contacts_of(connection, &[CUSTOMER])?;
        contacts_of(connection, &[CUSTOMER, OTHER])?;
        partnership_list(connection, CUSTOMER, true, 0, 10)?;
        partnership_list(connection, CUSTOMER, false, 0, 10)?;
        signatures_current(connection, CUSTOMER)?;
        acceptances_cover(connection, CUSTOMER, &[DIRECT, PROVIDER], Uuid::nil())?;
        let Connection::Sqlite(c) = connection else { panic!("the database is SQLite") };
        c.set_instrumentation(|_: InstrumentationEvent<'_>| {});
        let mut plans = vec![];
        for statement in statements.lock().unwrap().iter() {
            let (statement, _) = statement.split_once(" -- binds").unwrap_or((statement, ""));
            let steps = sql_query(format!("EXPLAIN QUERY PLAN {statement}")).load::<Step>(c)?;
            plans.push((statement.to_owned(), steps.into_iter().map(|step| step.detail).collect::<Vec<_>>()));
        }
        Ok::<_, Error>(plans)
    };
    let plans = database.snapshot(explain).await.unwrap();
    assert_eq!(plans.len(), 12, "{plans:#?}");
    for (statement, steps) in plans {
        let is_scan = |step: &&String| step.starts_with("SCAN");
        assert_eq!(steps.iter().find(is_scan), None, "{statement}: {steps:#?}");
        let reads_history = |step: &&String| {
            step.contains(" acceptance ") && !step.contains("superseded_at=? AND withdrawn_at=?")
        };
        assert_eq!(steps.iter().find(reads_history), None, "{statement}: {steps:#?}");
    }
}

/// The rows that a check reads are bounded, whatever the history of the pair.
#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_history_adds_no_rows(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = url(is_postgres, folder.path()) else { return };
    let database = database(&url).await;
    accept(&database, &DIRECT.to_string(), 1..10_001, "NULL", "'2020-04-01 00:00:00'").await;
    accept(&database, "", 10_001..20_001, "'2020-04-01 00:00:00'", "NULL").await;
    accept(&database, &DIRECT.to_string(), 20_001..20_002, "NULL", "NULL").await;
    let one = parties(CUSTOMER, DIRECT, None);
    let read = move |connection: &mut Connection| gate_rows(connection, &[one]);
    assert_eq!(database.snapshot(read).await.unwrap().len(), 1);
    let all = [one, parties(OTHER, DIRECT, None), parties(CUSTOMER, PROVIDER, None)];
    let read = move |connection: &mut Connection| gate_rows(connection, &all);
    let rows = database.snapshot(read).await.unwrap();
    assert_eq!(rows.len(), 3, "one row for each customer");
    let history = database.snapshot(move |connection| history_of(connection, &[one.pair])).await.unwrap();
    let last: Vec<_> = history[0].withdrawn.iter().map(|(last, _)| last.id.as_u128()).collect();
    assert_eq!(last.len(), 1, "of a kind and type the last");
}
