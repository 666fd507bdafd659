//! Orders and changes of subscriptions that come at the same time: each has the outcome that it would have alone, on both
//! databases.

use chassis::auth::{Caller, Channel};
use chassis::database::Writes;
use chassis::database::testing::url;
use chassis::idempotency::{Lookup, RequestHasher, response_find};
use chassis::query;
use diesel::connection::SimpleConnection;
use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl};
use futures_util::FutureExt;
use futures_util::future::join_all;
use rstest::rstest;
use rstest_reuse::{apply, template};
use tempfile::TempDir;

use super::*;
use crate::rules::gate::{AgreementType, Decision, Evidence, EvidenceKind, Rule, Verdict};
use crate::rules::order::Parties;
use crate::rules::relationship::Relationship;
use crate::rules::subscription::{Cause, ChangeKind, State, Step, tests::subscription};
use crate::store::fence::fence_raise;
use crate::store::relationship::relationship_write;
use crate::store::schema::{orders, subscription as row, subscription_change};
use crate::store::subscription::subscription_find;
use crate::store::{MIGRATIONS, Viewer};

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

fn acceptance(number: u128) -> Uuid {
    Uuid::from_u128(number << 64)
}

fn approval(number: u128) -> Approval {
    let evidence = Evidence {
        kind: EvidenceKind::Attestation,
        acceptance_id: acceptance(number),
        template_id: Uuid::nil(),
        template_version: 1,
        agreement_type: AgreementType::MicrosoftCustomerAgreement,
    };
    Approval {
        decision: Decision::Allowed,
        rule: Rule::Attestation,
        evidence: Some(evidence),
        revision: 5,
        evaluated_at: NOW.parse().unwrap(),
    }
}

/// What the customer of that number does with an effect, on an answer of revision 5, under a request id.
fn write(number: u128, request_id: u128, effect: Effect) -> Write {
    let customer_id = Uuid::from_u128(number);
    let answer = Answer {
        customer_id,
        customer_country: "FR".into(),
        only_reseller_id: None,
        revision: 5,
        verdict: Verdict::Approved(approval(number)),
        asked_at: NOW.parse().unwrap(),
        valid_for: None,
    };
    let partner = subscription(State::Active).payer_id;
    let caller = Caller {
        tenant_kind: "PARTNER",
        tenant_id: partner,
        user_id: partner,
        roles: vec![],
        channel: Channel::Api,
        client: None,
    };
    Write {
        key: RequestHasher::default().key(&caller, "Call", Uuid::from_u128(request_id), &()),
        response: vec![1, 2, 3],
        customer_id,
        basis: Basis::Answer(Box::new((answer, approval(number)))),
        effect,
    }
}

/// The subscription of the customer of that number.
fn of_line(number: u128) -> Subscription {
    Subscription {
        id: Uuid::from_u128(number << 96),
        order_id: Uuid::from_u128(number << 32),
        customer_id: Uuid::from_u128(number),
        ..subscription(State::Active)
    }
}

/// An order of one line for the customer of that number, under a request id of the number.
fn order(number: u128) -> Write {
    let subscription = of_line(number);
    let order = Order {
        id: subscription.order_id,
        parties: Parties {
            payer_id: subscription.payer_id,
            reseller_id: None,
            customer_id: subscription.customer_id,
        },
        lines: vec![],
        placed_at: NOW.parse().unwrap(),
        placed_by_tenant: subscription.payer_id,
        placed_by: subscription.payer_id,
        approval: approval(number),
        external_reference: None,
    };
    let effect = Effect::Order { order: order.into(), subscriptions: vec![subscription], open_max: 10 };
    write(number, number, effect)
}

/// Other seats for the subscription of the customer of that number, on a version, under a request id of the number of seats.
fn seats(number: u128, version: i64, quantity: u32) -> Write {
    let after = Subscription { quantity, version: version + 1, ..of_line(number) };
    let step = Step { kind: ChangeKind::SeatsChanged, after };
    let cause = Cause::Requested { tenant_id: Uuid::nil(), user_id: Uuid::nil() };
    let change = step.change(5, cause, Some(approval(number)), NOW.parse().unwrap());
    let update = Update { after: step.after, version, changes: vec![change] };
    write(number, quantity.into(), Effect::Change(update.into()))
}

/// The version of the subscriptions of orders.
const BOUGHT: i64 = 7;

/// What comes at the same time: how each of it ended.
async fn committed(database: &Database, all: Vec<Write>) -> Vec<String> {
    let commits = Commits::new(database.clone(), clock());
    let outcomes = join_all(all.into_iter().map(|write| commits.commit(write))).await;
    let outcomes = outcomes.iter().map(|outcome| match outcome {
        Ok(commit) => format!("{commit:?}"),
        Err(error) => format!("{error:?}").chars().take(5).collect(),
    });
    outcomes.collect()
}

/// The customers of the orders that are stored.
async fn stored(database: &Database) -> Vec<u128> {
    let read = |connection: &mut Connection| -> Result<Vec<String>, Error> {
        Ok(query!(connection, c => orders::table.select(orders::customer_id).order(orders::id).load(c))?)
    };
    let ids = database.read(read).await.unwrap();
    ids.into_iter().map(|id| id.parse::<Uuid>().unwrap().as_u128()).collect()
}

/// The seats of all subscriptions, and the recorded changes of each, in the order of the customers' numbers.
async fn all_seats(database: &Database) -> Vec<(i64, i64)> {
    let read = |connection: &mut Connection| -> Result<_, Error> {
        query!(connection, c => {
            let seats: Vec<(String, i64)> = row::table.select((row::id, row::quantity)).order(row::id).load(c)?;
            let of = |id| subscription_change::table.filter(subscription_change::subscription_id.eq(id));
            let count = |(id, seats)| Ok((seats, of(id).count().get_result(c)?));
            seats.into_iter().map(count).collect()
        })
    };
    database.read(read).await.unwrap()
}

/// A database in which the customers of those numbers have bought.
async fn bought(database: &Database, numbers: impl Iterator<Item = u128>) {
    let ends = committed(database, numbers.map(order).collect()).await;
    assert!(ends.iter().all(|end| end == "Done"), "{ends:?}");
}

/// WD-3, WD-3a, idempotency, optimistic locking: what is overtaken by a withdrawal, was seen before, or lost its race, leaves the
/// others alone.
#[apply(on_both_databases)]
async fn each_has_an_outcome_of_its_own(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    bought(&database, 11..=16).await;
    let arrange = move |connection: &mut Connection| -> Result<(), Error> {
        fence_raise(connection, Uuid::from_u128(2), 6)?;
        fence_raise(connection, Uuid::from_u128(12), 6)?;
        // A fence of the answer's revision is no hindrance.
        fence_raise(connection, Uuid::from_u128(4), 5)?;
        for number in [3, 13] {
            let sql = format!(
                "INSERT INTO withdrawal (revision, customer_id, kind, acceptance_id, partner_id, withdrawn_at, \
                 applied_at, cancelled, stayed) VALUES ({number}, '{}', 'ATTESTATION', '{}', '', '{at}', '{at}', 0, 0)",
                Uuid::from_u128(number),
                acceptance(number),
                at = "2026-11-01 00:00:00"
            );
            query!(&mut *connection, c => c.batch_execute(&sql))?;
        }
        Ok(())
    };
    database.write(arrange).await.unwrap();
    let twice = |write: Write| Write { key: order(1).key, ..write };
    let without_effect = Write { basis: Basis::Nothing, ..write(16, 29, Effect::Nothing) };
    let overtaken = "Void(Outdated { fence: 6 })";
    let revived = |number| format!("Void(EvidenceWithdrawn {{ acceptance_id: {} }})", acceptance(number));
    let (revived_3, revived_13) = (revived(3), revived(13));
    let all = [
        (order(1), "Done"),
        (order(2), overtaken),
        (order(3), &revived_3),
        (order(4), "Done"),
        (twice(order(5)), "SeenBefore"),
        (order(6), "Done"),
        (seats(11, BOUGHT, 21), "Done"),
        (seats(12, BOUGHT, 22), overtaken),
        (seats(13, BOUGHT, 23), &revived_13),
        // Of several on the version that is there the first one is stored, whatever came before it on another.
        (seats(14, BOUGHT - 1, 24), "LostRace"),
        (seats(14, BOUGHT, 25), "Done"),
        (seats(14, BOUGHT, 26), "LostRace"),
        (twice(seats(15, BOUGHT, 27)), "SeenBefore"),
        (seats(15, BOUGHT, 28), "Done"),
        (without_effect, "Done"),
    ];
    let keys = all.each_ref().map(|(write, _)| write.key.clone());
    let (all, expected): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    assert_eq!(committed(&database, all).await, expected);
    assert_eq!(stored(&database).await, [1, 4, 6, 11, 12, 13, 14, 15, 16]);
    let (as_bought, changed) = ((5, 1), |seats| (seats, 2));
    assert_eq!(
        all_seats(&database).await,
        [
            as_bought,
            as_bought,
            as_bought,
            changed(21),
            as_bought,
            as_bought,
            changed(25),
            changed(28),
            as_bought
        ]
    );
    // A request without effect may be made again.
    let answered = keys.map(|key| async {
        let find = move |connection: &mut Connection| response_find(connection, &key);
        database.read(find).await.unwrap() != Lookup::Never
    });
    let has_answer = |end: &&str| ["Done", "SeenBefore"].contains(end);
    assert_eq!(join_all(answered).await, expected.iter().map(has_answer).collect::<Vec<_>>());
}

/// SUB-7: orders for the same customer that come together leave the bound where it is.
#[apply(on_both_databases)]
async fn orders_together_do_not_pass_the_bound(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    let of_first = |number: u128, bound: u32| {
        let (mut write, id) = (order(number), Uuid::from_u128(1));
        write.customer_id = id;
        let Effect::Order { order, subscriptions, open_max } = &mut write.effect else { unreachable!() };
        (order.parties.customer_id, subscriptions[0].customer_id, *open_max) = (id, id, bound);
        write
    };
    let all = vec![of_first(1, 2), of_first(2, 2), of_first(3, 2), of_first(4, 0), order(5)];
    let mut outcomes = committed(&database, all).await;
    assert_eq!(outcomes.remove(4), "Done", "the others have room");
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["Done", "Done", "TooManySubscriptions", "TooManySubscriptions"]);
    assert_eq!(stored(&database).await, [1, 1, 5]);
}

/// I1: an answer that is too old when all is written undoes the transaction, and only its own order or change.
#[apply(on_both_databases)]
async fn a_stale_answer_stores_nothing_and_undoes_no_other(
    is_postgres: bool,
    #[values(false, true)] is_of_order: bool,
) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    bought(&database, 11..=12).await;
    let mut all = vec![order(1), order(2), seats(11, BOUGHT, 21), seats(12, BOUGHT, 22)];
    let stale = if is_of_order { 1 } else { 3 };
    let Basis::Answer(basis) = &mut all[stale].basis else { unreachable!() };
    basis.0.asked_at -= chrono::Duration::seconds(5);
    let mut expected = ["Done"; 4];
    expected[stale] = "AnswerStale";
    assert_eq!(committed(&database, all).await, expected);
    let (orders, seats) = (stored(&database).await, all_seats(&database).await);
    match is_of_order {
        true => assert_eq!((orders, &seats[1..]), (vec![1, 11, 12], &[(21, 2), (22, 2)][..])),
        false => assert_eq!((orders, &seats[2..]), (vec![1, 2, 11, 12], &[(21, 2), (5, 1)][..])),
    }
}

#[apply(on_both_databases)]
async fn what_cannot_be_stored_fails_alone(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    let line = |write: &mut Write, change: fn(&mut Subscription)| {
        let Effect::Order { subscriptions, .. } = &mut write.effect else { unreachable!() };
        change(&mut subscriptions[0]);
    };
    let mut of_last_version = order(11);
    line(&mut of_last_version, |subscription| subscription.version = i32::MAX.into());
    assert_eq!(committed(&database, vec![of_last_version, order(12)]).await, ["Done", "Done"]);
    let mut of_another_order = order(2);
    line(&mut of_another_order, |subscription| subscription.order_id = Uuid::from_u128(99));
    let all = vec![order(3), of_another_order, seats(12, BOUGHT, 22)];
    assert_eq!(committed(&database, all).await, ["Done", "Query", "Done"]);
    let without_number = seats(11, i32::MAX.into(), 21);
    let all = vec![order(4), without_number, seats(12, BOUGHT + 1, 23)];
    assert_eq!(committed(&database, all).await, ["Done", "Corru", "Done"]);
    assert_eq!(stored(&database).await, [3, 4, 11, 12]);
    assert_eq!(all_seats(&database).await, [(5, 1), (5, 1), (5, 1), (23, 3)]);
}

/// A customer whose fence another transaction has, or has just made, keeps only what is for it waiting.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_waits_for_another_customers_fence(
    #[values(true, false)] is_known: bool,
    #[values(true, false)] is_order: bool,
) {
    let Some((database, _folder)) = database(true) else { return };
    bought(&database, 11..=12).await;
    let of = |number: u128| if is_order { order(number - 10) } else { seats(number, BOUGHT, 20) };
    let customer = of(11).customer_id;
    let arrange = move |connection: &mut Connection| match is_known {
        true => fence_raise(connection, customer, 5),
        false => fence_remove(connection, customer),
    };
    database.write(arrange).await.unwrap();
    let (holds, held) = tokio::sync::oneshot::channel();
    let (release, released) = std::sync::mpsc::channel();
    let hold = move |connection: &mut Connection| {
        fence_raise(connection, customer, 6)?;
        holds.send(()).unwrap();
        released.recv().map_err(|error| Error::Query(error.to_string()))
    };
    let of_holder = database.clone();
    let holding = tokio::spawn(async move { of_holder.write(hold).await });
    held.await.unwrap();
    let commits = Commits::new(database.clone(), clock());
    let mut behind = Box::pin(commits.commit(of(11)));
    let mut others = Box::pin(join_all([commits.commit(order(3)), commits.commit(seats(12, BOUGHT, 22))]));
    assert!((&mut behind).now_or_never().is_none() && (&mut others).now_or_never().is_none());
    assert!(matches!(others.await[..], [Ok(Commit::Done), Ok(Commit::Done)]));
    assert!((&mut behind).now_or_never().is_none(), "its fence is not free yet");
    release.send(()).unwrap();
    assert!(matches!(behind.await, Ok(Commit::Void(Void::Outdated { fence: 6 }))));
    holding.await.unwrap().unwrap();
    assert_eq!(stored(&database).await, [3, 11, 12]);
    assert_eq!(all_seats(&database).await, [(5, 1), (5, 1), (22, 2)]);
}

fn fence_remove(connection: &mut Connection, customer: Uuid) -> Result<(), Error> {
    let sql = format!("DELETE FROM fence WHERE customer_id = '{customer}'");
    Ok(query!(connection, c => c.batch_execute(&sql))?)
}

/// ROLE-6: what needs no answer of the gate is stored only while the relationship that the caller needs is active, and
/// known. Between its look and the transaction it may have ended.
#[apply(on_both_databases)]
async fn a_relationship_that_ended_meanwhile_stores_nothing(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    bought(&database, 11..=12).await;
    let (reseller, payer_id) = (Uuid::from_u128(9), of_line(11).payer_id);
    let relationship =
        Relationship { customer_id: Uuid::from_u128(11), payer_id, reseller_id: Some(reseller) };
    // The change is on another version than the row's: it comes that far and no further.
    let past_the_check = "LostRace";
    for (revision, is_active, cursor, expected) in [
        (1, true, "revision = 1, relationships_revision = 1", past_the_check),
        (2, false, "revision = 2, relationships_revision = 2", "NotRelated"),
        (3, true, "revision = 3, relationships_revision = 3", past_the_check),
        (3, true, "revision = 4, relationships_revision = 3", "NotRelated"),
        (3, true, "revision = 4, relationships_revision = 4, relationships_complete_at = 5", "NotRelated"),
        (3, true, "revision = 5, relationships_revision = 5", past_the_check),
    ] {
        let sql = format!("UPDATE follower SET {cursor}");
        let arrange = move |connection: &mut Connection| {
            query!(&mut *connection, c => c.batch_execute(&sql))?;
            relationship_write(connection, relationship, is_active, revision)
        };
        database.write(arrange).await.unwrap();
        let needs = |number: u128, payer_id: Uuid, needed: Needed| Write {
            basis: Basis::Relationship { payer_id, needed },
            ..seats(number, 3, 20)
        };
        let all = [
            (needs(11, payer_id, Needed::WithReseller(reseller)), expected),
            (needs(11, payer_id, Needed::Any), expected),
            (needs(11, payer_id, Needed::WithReseller(Uuid::from_u128(8))), "NotRelated"),
            (needs(11, Uuid::from_u128(8), Needed::Any), "NotRelated"),
            (needs(12, payer_id, Needed::Any), "NotRelated"),
            (Write { basis: Basis::Nothing, ..seats(11, 3, 20) }, past_the_check),
        ];
        // Each has a request id of its own, or one would be seen before.
        let all = (100..)
            .zip(all)
            .map(|(id, (of, end))| (Write { key: write(1, id, Effect::Nothing).key, ..of }, end));
        let (all, expected): (Vec<_>, Vec<_>) = all.unzip();
        assert_eq!(committed(&database, all).await, expected, "{cursor}");
    }
}

/// CUS-3: a reseller that is assigned is newer than the ends that were applied.
#[apply(on_both_databases)]
async fn an_assigned_reseller_is_newer_than_what_was_applied(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    bought(&database, 11..=13).await;
    let arrange = |connection: &mut Connection| -> Result<(), Error> {
        Ok(query!(connection, c => c.batch_execute("UPDATE follower SET revision = 9"))?)
    };
    database.write(arrange).await.unwrap();
    let assigned = |number: u128, quantity: u32| {
        let mut write = seats(number, BOUGHT, quantity);
        let Effect::Change(update) = &mut write.effect else { unreachable!() };
        update.changes[0].kind = ChangeKind::ResellerAssigned;
        write
    };
    let all = vec![assigned(11, 21), seats(12, BOUGHT, 22), assigned(13, 23)];
    assert_eq!(committed(&database, all).await, ["Done"; 3]);
    let read = |connection: &mut Connection| -> Result<Vec<i64>, Error> {
        Ok(query!(connection, c => row::table.select(row::reseller_revision).order(row::id).load(c))?)
    };
    assert_eq!(database.read(read).await.unwrap(), [9, 0, 9]);
}

/// A change of a batch leaves the row as a change alone does.
#[apply(on_both_databases)]
async fn a_change_is_stored_as_it_is(is_postgres: bool) {
    let Some((database, _folder)) = database(is_postgres) else { return };
    bought(&database, 11..=12).await;
    let after = |number: u128| Subscription {
        reseller_id: Some(Uuid::from_u128(9)),
        quantity: 21,
        state: State::Suspended,
        auto_renew: false,
        term_number: 3,
        term_end: (number == 11).then(|| NOW.parse().unwrap()),
        answer_revision: 6,
        version: BOUGHT + 1,
        ..of_line(number)
    };
    let changed = |number: u128| {
        let update = Update { after: after(number), version: BOUGHT, changes: vec![] };
        write(number, 20 + number, Effect::Change(update.into()))
    };
    assert_eq!(committed(&database, vec![changed(11), changed(12)]).await, ["Done", "Done"]);
    for number in [11, 12] {
        let id = of_line(number).id;
        let read = move |connection: &mut Connection| subscription_find(connection, Viewer::Everything, id);
        assert_eq!(database.read(read).await.unwrap(), Some(after(number)));
    }
    let read = |connection: &mut Connection| -> Result<Vec<Option<chrono::NaiveDateTime>>, Error> {
        Ok(query!(connection, c => row::table.select(row::due_at).order(row::id).load(c))?)
    };
    assert_eq!(
        database.read(read).await.unwrap(),
        [after(11), after(12)].map(|after| after.due_at().map(|at| at.naive_utc()))
    );
}
