//! What a page costs, and that it says what single checks say, for rows that are written directly, on both databases.

use chassis::database::Database;
use chassis::database::testing::{statements_of, url};
use rstest::rstest;

use super::*;
use crate::actions::gate::{GateQuery, answer, check_each};
use crate::data::read_policy;
use crate::rules::Time;
use crate::rules::eligibility::{Acceptance, AcceptanceKind, Considered, Operation, Problem};
use crate::rules::policy::Channel;
use crate::rules::template::AgreementType::{self, MicrosoftCloudAgreement, MicrosoftCustomerAgreement};
use crate::store::gate::Snapshot;
use crate::store::gate::tests::{DIRECT, PROVIDER, TEMPLATE, database, run};

/// Customers, all of them blocked: more than a page has.
const CUSTOMERS: u128 = 70;

fn customer(n: u128) -> Uuid {
    Uuid::from_u128(0xc000 + n)
}

/// Customers of the direct-bill partner. The bits of a number say what its customer has.
async fn fill(database: &Database) {
    let (mut customers, mut relationships, mut acceptances, mut invitations) =
        (vec![], vec![], vec![], vec![]);
    for n in 0..CUSTOMERS {
        let (id, revision) = (customer(n), 1000 + n);
        let bought = if n & 1 == 0 { "NULL" } else { "'2020-01-02 00:00:00'" };
        customers.push(format!(
            "('{id}', 'Company {n}', '{id}.example', 'FR', 'PUBLIC', '', '', '', '', '', '2020-01-01 00:00:00', {bought}, 1, {revision})"
        ));
        relationships.push(format!("('{DIRECT}', '{id}', '', '2020-01-01 00:00:00', {revision})"));
        let mut accept = |bit: u32, kind: &str, of: &str, day: u32, withdrawn: Option<u32>| {
            if n & (1 << bit) != 0 {
                let number = acceptances.len();
                let partner = if kind == "SIGNATURE" { String::new() } else { DIRECT.to_string() };
                let withdrawn =
                    withdrawn.map_or("NULL".to_owned(), |day| format!("'2020-04-{day} 00:00:00'"));
                acceptances.push(format!(
                    "('{}', '{kind}', '{partner}', '{id}', 'MICROSOFT_{of}_AGREEMENT', '{TEMPLATE}', 1, '', '', '', \
                     '', '', '2020-03-{day} 00:00:00', '2020-03-{day} 00:00:00', '', {withdrawn}, {number}, '', '')",
                    Uuid::from_u128(0xa000 + number as u128)
                ));
            }
        };
        // The one that was withdrawn last is neither the first nor the last row.
        accept(1, "ATTESTATION", "CUSTOMER", 11, Some(11));
        accept(1, "ATTESTATION", "CUSTOMER", 13, Some(13));
        accept(1, "ATTESTATION", "CUSTOMER", 12, Some(12));
        accept(2, "SIGNATURE", "CUSTOMER", 14, Some(14));
        accept(3, "SIGNATURE", "CLOUD", 15, Some(15));
        accept(4, "ATTESTATION", "CLOUD", 16, None);
        // Of a version that counts no longer.
        accept(5, "ATTESTATION", "CUSTOMER", 17, None);
        accept(6, "SIGNATURE", "CUSTOMER", 18, None);
        for (m, (partner, reseller, day)) in declined(n).into_iter().enumerate() {
            let invitation = invitation(n, m);
            invitations.push(format!(
                "('{invitation}', 'AGREEMENT', '{partner}', '{reseller}', '{id}', '{TEMPLATE}', '', '', '', '', '', \
                 '2020-01-01 00:00:00', '{PROVIDER}', '2020-02-01 00:00:00', {}, '2020-01-{day} 00:00:00', 'TERMS')",
                invitations.len()
            ));
        }
    }
    for (into, rows) in [
        (
            "customer (id, company_name, domain, country, cloud, first_name, last_name, email, phone, contact_salt, created_at, \
          first_purchase_at, acceptance_revision, revision)",
            customers,
        ),
        ("relationship (partner_id, customer_id, reseller_id, established_at, revision)", relationships),
        (
            "acceptance (id, kind, partner_id, customer_id, agreement_type, template_id, template_version, first_name, \
          last_name, email, phone, contact_salt, agreed_at, recorded_at, recorded_by, withdrawn_at, revision, \
          withdrawal_reason, withdrawn_by)",
            acceptances,
        ),
        (
            "invitation (id, kind, partner_id, reseller_id, customer_id, template_id, first_name, last_name, email, phone, \
          contact_salt, created_at, created_by, expires_at, revision, declined_at, decline_reason)",
            invitations,
        ),
    ] {
        run(database, format!("INSERT INTO {into} VALUES {}", rows.join(", "))).await;
    }
}

/// The invitations that a customer declined: payer, reseller, and on which day. The partner's latest is the second.
fn declined(n: u128) -> Vec<(Uuid, String, u32)> {
    if !n.is_multiple_of(3) {
        return vec![];
    }
    let of_other = (PROVIDER, String::new(), 25);
    let through_it = (PROVIDER, DIRECT.to_string(), 23);
    vec![(DIRECT, String::new(), 21), through_it, (DIRECT, String::new(), 22), of_other]
}

fn invitation(customer: u128, n: usize) -> Uuid {
    Uuid::from_u128(0xb_0000 + customer * 16 + n as u128)
}

fn question() -> Question {
    let at: Time = "2026-11-21T00:00:00Z".parse().unwrap();
    Question { operation: Operation::NewPurchase, channel: Channel::Dashboard, demands: vec![], at }
}

const ACTING: Acting = Acting { partner_id: DIRECT, may_act: true, may_invite: true };

fn listing(size: usize) -> Listing {
    // Behind the customers that the database came with.
    let behind = Pair { customer_id: customer(0), payer_id: Uuid::nil() };
    Listing { acting: ACTING, question: question(), after: Some(behind), size }
}

fn query(pair: Pair) -> GateQuery {
    let parties = Parties { pair, reseller_id: None };
    GateQuery {
        parties,
        at_least_revision: 0,
        acting: ACTING,
        is_party: true,
        question: question(),
        assumed: None,
    }
}

async fn filled(is_postgres: bool, folder: &std::path::Path) -> Option<Database> {
    let database = database(&url(is_postgres, folder)?).await;
    fill(&database).await;
    Some(database)
}

/// However many rows it has, a page runs the same number of statements; so does a batch, whatever is blocked.
#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_and_a_batch_cost_no_statement_for_each_row(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(database) = filled(is_postgres, folder.path()).await else { return };
    let policy = read_policy(None).unwrap();
    let measure = move |connection: &mut Connection| {
        let cache = TemplateCache::default();
        let mut costs = vec![];
        // The first reads the templates.
        for size in [1, 1, 5, 50] {
            let page = |c: &mut Connection| blocked_list(c, &policy, &cache, &listing(size));
            let ((page, _), statements) = statements_of(connection, page)?;
            assert_eq!(page.len(), size);
            let queries: Vec<_> = page.iter().map(|blocked| query(blocked.pair)).collect();
            let batch = |c: &mut Connection| check_each(c, &policy, &cache, &queries);
            let (answers, of_batch) = statements_of(connection, batch)?;
            assert!(answers.iter().flatten().all(|answer| !answer.answer.reasons.is_empty()));
            costs.push((statements, of_batch));
        }
        Ok::<_, ChangeError>(costs)
    };
    let costs = database.snapshot(measure).await.unwrap();
    for (page, batch) in &costs[1..] {
        assert_eq!((page.len(), batch.len()), (8, 3), "{page:#?} {batch:#?}");
    }
}

/// GATE-6: the page says of each customer what a check says of it, and a batch of checks.
#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_explains_each_row_as_a_check_does(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(database) = filled(is_postgres, folder.path()).await else { return };
    let policy = read_policy(None).unwrap();
    let compare = move |connection: &mut Connection| {
        let cache = TemplateCache::default();
        let (page, after) = blocked_list(connection, &policy, &cache, &listing(100))?;
        assert_eq!((page.len() as u128, after), (CUSTOMERS, None));
        let queries: Vec<_> = page.iter().map(|blocked| query(blocked.pair)).collect();
        let batch = check_each(connection, &policy, &cache, &queries)?;
        let explained = |GateAnswer { answer, snapshot, remedies, considered }: GateAnswer| {
            (answer, snapshot, remedies, considered)
        };
        let mut differing = std::collections::BTreeSet::new();
        for ((blocked, query), of_batch) in page.into_iter().zip(&queries).zip(batch) {
            let snapshot: Option<Snapshot> = gate_facts(connection, &cache, &[query.parties])?.remove(0)?;
            let alone = explained(answer(connection, &policy, query, snapshot)?);
            assert_eq!(explained(blocked.answer), alone);
            assert_eq!(explained(of_batch?), alone);
            let (answer, _, remedies, considered) = alone;
            let problems: Vec<_> =
                considered.iter().map(|one| std::mem::discriminant(&one.problem)).collect();
            let withdrawn: Vec<_> = considered.iter().filter_map(withdrawn).collect();
            assert!(withdrawn.is_sorted(), "{withdrawn:?}");
            // The one that was withdrawn last.
            let of_day = |kind, of, day| (kind, of, format!("2020-04-{day} 00:00:00 UTC"));
            let possible = [
                of_day(false, MicrosoftCustomerAgreement, 13),
                of_day(true, MicrosoftCloudAgreement, 15),
                of_day(true, MicrosoftCustomerAgreement, 14),
            ];
            assert!(withdrawn.iter().all(|one| possible.contains(one)), "{withdrawn:?}");
            differing.insert(format!("{:?} {} {problems:?}", answer.reasons, remedies.len()));
        }
        Ok::<_, ChangeError>(differing)
    };
    let differing = database.snapshot(compare).await.unwrap();
    assert!(differing.len() > 15, "{differing:#?}");
}

/// Whether a withdrawn acceptance is a signature, of which type, and when it was withdrawn.
fn withdrawn(one: &Considered) -> Option<(bool, AgreementType, String)> {
    let Problem::Withdrawn(at) = one.problem else { return None };
    let Acceptance { kind, agreement_type, .. } = one.acceptance;
    Some((kind == AcceptanceKind::Signature, agreement_type, at.to_string()))
}

/// INV-5: of several that a customer declined, a page shows the latest of the partner, also as the reseller, and in each row of
/// the customer.
#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_shows_the_latest_declined_invitation(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(database) = filled(is_postgres, folder.path()).await else { return };
    let through_it = format!("('{PROVIDER}', '{}', '{DIRECT}', '2020-01-01 00:00:00', 9)", customer(0));
    let columns = "partner_id, customer_id, reseller_id, established_at, revision";
    run(&database, format!("INSERT INTO relationship ({columns}) VALUES {through_it}")).await;
    let policy = read_policy(None).unwrap();
    let list = move |connection: &mut Connection| {
        blocked_list(connection, &policy, &TemplateCache::default(), &listing(100))
    };
    let (page, _) = database.snapshot(list).await.unwrap();
    let shown = page.iter().map(|blocked| blocked.declined.map(|declined| declined.invitation_id));
    let numbers = std::iter::once(0).chain(0..CUSTOMERS);
    let expected = numbers.map(|n| n.is_multiple_of(3).then(|| invitation(n, 1)));
    assert!(shown.eq(expected));
}

#[test]
fn a_read_takes_as_many_pairs_as_the_page_may_need() {
    // rows missing, pairs looked at, rows found -> pairs to read
    for (missing, looked_at, found, expected) in [
        (1, 0, 0, 50),
        (51, 0, 0, 63),
        (501, 0, 0, 500),
        // One of ten.
        (46, 50, 5, 500),
        (26, 250, 25, 325),
        // Hardly any.
        (3, 500, 0, 500),
        // Nearly full: few more may do, but a page takes few reads.
        (1, 100, 50, 100),
        (51, 1900, 0, 100),
    ] {
        assert_eq!(pairs_to_read(missing, looked_at, found), expected, "{missing} {looked_at} {found}");
    }
}
