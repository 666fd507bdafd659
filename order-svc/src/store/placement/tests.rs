//! Orders that come at the same time: each has the outcome that it would have alone, on both databases.

use chassis::auth::{Caller, Channel};
use chassis::database::Writes;
use chassis::database::testing::url;
use chassis::idempotency::RequestHasher;
use chassis::query;
use diesel::connection::SimpleConnection;
use diesel::{QueryDsl, RunQueryDsl};
use futures_util::FutureExt;
use futures_util::future::join_all;
use rstest::rstest;
use rstest_reuse::{apply, template};
use tempfile::TempDir;

use super::*;
use crate::rules::gate::{AgreementType, Approval, Decision, Evidence, EvidenceKind, Rule, Verdict};
use crate::rules::order::Parties;
use crate::rules::subscription::{State, tests::subscription};
use crate::store::MIGRATIONS;
use crate::store::commit::fence_raise;
use crate::store::schema::orders;

#[template]
#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test]
async fn on_both_databases(#[case] is_postgres: bool) {}

const NOW: &str = "2026-11-21T12:00:00Z";

/// A database of a test's own; none where the test has no PostgreSQL.
fn database(is_postgres: bool) -> Option<(Database, TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    let url = url(is_postgres, folder.path())?;
    let database = Database::open(&url.parse().unwrap(), true, Writes::Concurrent).unwrap();
    database.migrate(MIGRATIONS).unwrap();
    Some((database, folder))
}

fn clock() -> Clock {
    Clock::manual(NOW.parse().unwrap())
}

/// An order of one line for the customer of that number, on an answer of revision 5, under a request id of the number.
fn new(number: u128) -> Placement {
    let now = NOW.parse().unwrap();
    let of_line = subscription(State::Active);
    let customer_id = Uuid::from_u128(number);
    let order_id = Uuid::from_u128(number << 32);
    let evidence = Evidence {
        kind: EvidenceKind::Attestation,
        acceptance_id: Uuid::from_u128(number << 64),
        template_id: Uuid::nil(),
        template_version: 1,
        agreement_type: AgreementType::MicrosoftCustomerAgreement,
    };
    let approval = Approval {
        decision: Decision::Allowed,
        rule: Rule::Attestation,
        evidence: Some(evidence),
        revision: 5,
        evaluated_at: now,
    };
    let caller = Caller {
        tenant_kind: "PARTNER",
        tenant_id: of_line.payer_id,
        user_id: of_line.payer_id,
        roles: vec![],
        channel: Channel::Api,
        client: None,
    };
    Placement {
        key: RequestHasher::default().key(&caller, "CreateOrder", customer_id, &()),
        response: vec![1, 2, 3],
        answer: Answer {
            customer_id,
            customer_country: "FR".into(),
            only_reseller_id: None,
            revision: 5,
            verdict: Verdict::Approved(approval.clone()),
            asked_at: now,
            valid_for: None,
        },
        order: Order {
            id: order_id,
            parties: Parties { payer_id: of_line.payer_id, reseller_id: None, customer_id },
            lines: vec![],
            placed_at: now,
            placed_by_tenant: of_line.payer_id,
            placed_by: of_line.payer_id,
            approval,
            external_reference: None,
        },
        subscriptions: vec![Subscription {
            id: Uuid::from_u128(number << 96),
            order_id,
            customer_id,
            ..of_line
        }],
        open_max: 10,
    }
}

/// The outcomes of orders that come at the same time, and the orders that are stored then.
async fn placed(database: &Database, all: Vec<Placement>) -> (Vec<String>, Vec<u128>) {
    let placements = Placements::new(database.clone(), clock());
    let outcomes = join_all(all.into_iter().map(|new| placements.place(new))).await;
    let outcomes = outcomes.iter().map(|outcome| match outcome {
        Ok(placed) => format!("{placed:?}"),
        Err(error) => format!("{error:?}").chars().take(5).collect(),
    });
    (outcomes.collect(), stored(database).await)
}

async fn stored(database: &Database) -> Vec<u128> {
    let read = |connection: &mut Connection| -> Result<Vec<String>, Error> {
        Ok(query!(connection, c => orders::table.select(orders::customer_id).order(orders::id).load(c))?)
    };
    let ids = database.read(read).await.unwrap();
    ids.into_iter().map(|id| id.parse::<Uuid>().unwrap().as_u128()).collect()
}

/// WD-3, WD-3a, idempotency: an order that is overtaken by a withdrawal, or was seen before, leaves the others alone.
#[apply(on_both_databases)]
async fn each_order_has_an_outcome_of_its_own(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    let withdrawn = new(3).order.approval.evidence.unwrap().acceptance_id;
    let arrange = move |connection: &mut Connection| -> Result<(), Error> {
        fence_raise(connection, Uuid::from_u128(2), 6)?;
        // A fence of the answer's revision is no hindrance.
        fence_raise(connection, Uuid::from_u128(4), 5)?;
        let sql = format!(
            "INSERT INTO withdrawal (revision, customer_id, kind, acceptance_id, partner_id, withdrawn_at, applied_at, \
             cancelled, stayed) VALUES (4, '{}', 'ATTESTATION', '{withdrawn}', '', '{at}', '{at}', 0, 0)",
            Uuid::from_u128(3),
            at = "2026-11-01 00:00:00"
        );
        Ok(query!(connection, c => c.batch_execute(&sql))?)
    };
    database.write(arrange).await.unwrap();
    let twice = |number: u128| Placement { key: new(1).key, ..new(number) };
    let all = vec![new(1), new(2), new(3), new(4), twice(5), new(6)];
    let (outcomes, stored) = placed(&database, all).await;
    let overtaken = "Void(Outdated { fence: 6 })".to_owned();
    let revived = format!("Void(EvidenceWithdrawn {{ acceptance_id: {withdrawn} }})");
    let done = || "Done".to_owned();
    assert_eq!(outcomes, [done(), overtaken, revived, done(), "SeenBefore".to_owned(), done()]);
    assert_eq!(stored, [1, 4, 6]);
}

/// SUB-7: orders for the same customer that come together leave the bound where it is.
#[apply(on_both_databases)]
async fn orders_together_do_not_pass_the_bound(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    let of_first = |number: u128, open_max: u32| {
        let (mut order, id) = (new(number), Uuid::from_u128(1));
        order.answer.customer_id = id;
        order.order.parties.customer_id = id;
        order.subscriptions[0].customer_id = id;
        Placement { open_max, ..order }
    };
    let all = vec![of_first(1, 2), of_first(2, 2), of_first(3, 2), of_first(4, 0), new(5)];
    let (mut outcomes, stored) = placed(&database, all).await;
    assert_eq!(outcomes.remove(4), "Done", "the others have room");
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["Done", "Done", "TooManySubscriptions", "TooManySubscriptions"]);
    assert_eq!(stored, [1, 1, 5]);
}

/// I1: an answer that is too old when all is written undoes the transaction, and only its own order.
#[apply(on_both_databases)]
async fn a_stale_answer_stores_nothing_and_undoes_no_other(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    let mut stale = new(2);
    stale.answer.asked_at -= chrono::Duration::seconds(5);
    let (outcomes, stored) = placed(&database, vec![new(1), stale, new(3)]).await;
    assert_eq!(outcomes, ["Done", "AnswerStale", "Done"]);
    assert_eq!(stored, [1, 3]);
}

#[apply(on_both_databases)]
async fn an_order_that_cannot_be_stored_fails_alone(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    let mut of_another_order = new(2);
    of_another_order.subscriptions[0].order_id = Uuid::from_u128(99);
    let (outcomes, stored) = placed(&database, vec![new(1), of_another_order, new(3)]).await;
    assert_eq!(outcomes, ["Done", "Query", "Done"]);
    assert_eq!(stored, [1, 3]);
}

/// A customer whose fence another transaction has, or has just made, keeps only its own orders waiting.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn orders_wait_for_no_other_customers_fence(#[values(true, false)] is_known: bool) {
    let Some((database, _folder)) = database(true) else { return };
    if is_known {
        let raise = |connection: &mut Connection| fence_raise(connection, Uuid::from_u128(1), 5);
        database.write(raise).await.unwrap();
    }
    let (holds, held) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel();
    let hold = move |connection: &mut Connection| {
        fence_raise(connection, Uuid::from_u128(1), 6)?;
        holds.send(()).unwrap();
        released.recv().map_err(|error| Error::Query(error.to_string()))
    };
    let of_holder = database.clone();
    let holding = tokio::spawn(async move { of_holder.write(hold).await });
    held.await.unwrap();
    let placements = Placements::new(database.clone(), clock());
    let (mut behind, mut other) = (Box::pin(placements.place(new(1))), Box::pin(placements.place(new(2))));
    assert!((&mut behind).now_or_never().is_none() && (&mut other).now_or_never().is_none());
    assert!(matches!(other.await, Ok(Placed::Done)));
    assert!((&mut behind).now_or_never().is_none(), "its fence is not free yet");
    release.send(()).unwrap();
    assert!(matches!(behind.await, Ok(Placed::Void(Void::Outdated { fence: 6 }))));
    holding.await.unwrap().unwrap();
    assert_eq!(stored(&database).await, [2]);
}
