//! How the databases find the rows of lists: every list, with each filter, goes by an index.

use chassis::database::testing::{plans_of, rows_read, url};
use chassis::database::{Connection, Database, Error, Writes};
use diesel::connection::SimpleConnection;
use diesel::{Connection as _, PgConnection};
use rstest::rstest;
use uuid::Uuid;

use super::event::{events_following, events_of};
use super::order::order_list;
use super::preview::{Previewed, open_groups, open_list};
use super::subscription::{Wanted, change_list, due_list, due_of, renewing_of, subscription_list};
use super::withdrawal::{Withdrawals, effect_list, withdrawal_list};
use super::{MIGRATIONS, Slice, Viewer};
use crate::rules::Time;
use crate::rules::subscription::State;

const PAYER: Uuid = Uuid::from_u128(0xd1);
const CUSTOMER: Uuid = Uuid::from_u128(0xc1);

/// Rows of a large database: a hundred thousand customers of ten payers, each with an order, a subscription, its creation and an
/// event, and every tenth with a withdrawal. An autovacuum meanwhile would see none of the uncommitted rows, and note the
/// tables that others refer to as empty. ANALYZE in the same transaction notes their sizes first, and its lock keeps autovacuum away
/// until the commit. Each names its tables: without names it locks those of all tests, and two at once end in a deadlock.
const FILL: &str = "
    INSERT INTO orders (id, payer_id, reseller_id, customer_id, placed_at, placed_by_tenant, placed_by, gate_decision, gate_rule,
        gate_evidence, gate_revision, gate_evaluated_at, in_history, external_reference)
        SELECT '10000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'), '00000000-0000-0000-0000-' || lpad(to_hex(208 + n % 10), 12, '0'),
        CASE WHEN n % 50 = 0 THEN '00000000-0000-0000-0000-0000000000f1' ELSE '' END,
        '00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'), '2020-01-01'::timestamp + n * interval '1 minute',
        '00000000-0000-0000-0000-' || lpad(to_hex(208 + n % 10), 12, '0'), '00000000-0000-0000-0000-000000000001', 'ALLOWED',
        'ATTESTATION', '', n, '2020-01-01', TRUE, CASE WHEN n % 3 = 0 THEN 'PO ' || n END FROM generate_series(1, 100000) AS n;
    ANALYZE orders;
    INSERT INTO order_line (order_id, number, offer_id, quantity, friendly_name, subscription_id)
        SELECT id, 0, 'OFFER', 5, '', '2' || substr(id, 2) FROM orders;
    INSERT INTO subscription (id, order_id, payer_id, reseller_id, customer_id, offer_id, quantity, friendly_name, state, auto_renew,
        started_at, term, term_number, term_end, answer_revision, version, due_at, reseller_revision)
        SELECT '2' || substr(id, 2), id, payer_id, reseller_id, customer_id, 'OFFER', 5, '',
        CASE WHEN gate_revision % 2 = 0 THEN 'ACTIVE' ELSE 'EXPIRED' END, TRUE, placed_at, 'YEAR', 1, placed_at + interval '1 year',
        gate_revision, 1, CASE WHEN gate_revision % 2 = 0 THEN placed_at + interval '1 year' END, 0 FROM orders;
    ANALYZE subscription;
    INSERT INTO subscription_change (subscription_id, number, kind, changed_at, actor_tenant, actor, quantity_before, quantity_after,
        gate_decision, gate_rule, gate_evidence, gate_revision, gate_evaluated_at, reason, event_revision, term_number, reseller_id,
        in_history) SELECT id, 1, 'CREATED', started_at, '', '', 0, 5, '', '', '', 0, started_at, 'REQUESTED', 0, 1, '', TRUE
        FROM subscription;
    INSERT INTO event (revision, recorded_at, customer_id, order_id, subscription_id, change_number)
        SELECT gate_revision, placed_at, customer_id, id, '', 0 FROM orders;
    INSERT INTO withdrawal (revision, customer_id, kind, acceptance_id, partner_id, withdrawn_at, applied_at, cancelled, stayed,
        is_complete, newer_answer) SELECT gate_revision, customer_id, 'ATTESTATION', id, payer_id, placed_at, placed_at, 1, 0, TRUE, 0
        FROM orders WHERE gate_revision % 10 = 0;
    INSERT INTO withdrawal_partner (partner_id, revision, is_uncovered, cancelled, stayed, newer_answer)
        SELECT partner_id, revision, TRUE, 1, 0, 0 FROM withdrawal;
    ANALYZE order_line, subscription_change, event, withdrawal, withdrawal_partner";

/// Reads every list, with each of its filters and all together.
fn read_lists(connection: &mut Connection) -> Result<(), Error> {
    let time: Option<Time> = "2020-02-01T00:00:00Z".parse().ok();
    for viewer in [Viewer::Everything, Viewer::Partner(PAYER), Viewer::Customer(CUSTOMER)] {
        for newest_first in [false, true] {
            for bits in 0..8 {
                let given = |bit: u8| bits & (1 << bit) != 0;
                let slice = Slice {
                    viewer,
                    customer_id: given(0).then_some(CUSTOMER),
                    offer_id: given(1).then(|| "OFFER".to_owned()),
                    from: time.filter(|_| given(2)),
                    before: time.filter(|_| given(2)),
                    newest_first,
                    after: None,
                    limit: 51,
                };
                order_list(connection, &slice, None)?;
                order_list(connection, &slice, Some("PO 7"))?;
                for (state, ends_before, has_term) in [
                    (None, None, false),
                    (Some(State::Active), None, false),
                    (None, time, false),
                    (None, None, true),
                    (Some(State::Suspended), time, true),
                ] {
                    let wanted = Wanted { slice: slice.clone(), state, ends_before, has_term };
                    subscription_list(connection, &wanted)?;
                }
            }
            for customer_id in [None, Some(CUSTOMER)] {
                let from = if newest_first { i64::MAX } else { 0 };
                withdrawal_list(
                    connection,
                    Withdrawals { viewer, customer_id, from, newest_first, limit: 51 },
                )?;
            }
            change_list(connection, CUSTOMER, newest_first, 1, 51)?;
        }
        effect_list(connection, viewer, 10, "", 51)?;
        events_of(connection, CUSTOMER, viewer, (false, 0), 51)?;
        events_of(connection, CUSTOMER, viewer, (true, i64::MAX), 51)?;
        for payer_id in [None, Some(PAYER)] {
            let of = Previewed { customer_id: CUSTOMER, payer_id };
            open_groups(connection, of)?;
            open_list(connection, viewer, of, "", 51)?;
        }
    }
    events_following(connection, 7, 51)?;
    let now = "2020-02-01T00:00:00Z".parse().unwrap_or_default();
    for after in [None, Some((Time::default().naive_utc(), String::new()))] {
        due_list(connection, now, after.as_ref(), 51)?;
    }
    due_of(connection, CUSTOMER, now)?;
    renewing_of(connection, &[PAYER.to_string(), CUSTOMER.to_string()])?;
    Ok(())
}

#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_list_goes_by_an_index(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = url(is_postgres, folder.path()) else { return };
    let database = Database::open(&url.parse().unwrap(), true, Writes::Concurrent).unwrap();
    database.migrate(MIGRATIONS).unwrap();
    if is_postgres {
        PgConnection::establish(&url).unwrap().batch_execute(FILL).unwrap();
    }
    let plans = database.write(|connection| plans_of(connection, read_lists)).await.unwrap();
    assert!(plans.len() > 80, "{}", plans.len());
    for plan in plans {
        // The heads of the histories are tables of one row.
        assert_eq!(plan.full_scan(&["event_head"]), None, "{plan:#?}");
    }
}

/// Orders and subscriptions of one payer, without resellers.
const OF_ONE: &str = "
    INSERT INTO orders (id, payer_id, reseller_id, customer_id, placed_at, placed_by_tenant, placed_by, gate_decision, gate_rule,
        gate_evidence, gate_revision, gate_evaluated_at, in_history)
        SELECT '10000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'), '00000000-0000-0000-0000-0000000000d1', '',
        '00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'), '2020-01-01', '00000000-0000-0000-0000-0000000000d1',
        '00000000-0000-0000-0000-000000000001', 'ALLOWED', 'ATTESTATION', '', n, '2020-01-01', TRUE
        FROM generate_series(1, 2000) AS n;
    INSERT INTO subscription (id, order_id, payer_id, reseller_id, customer_id, offer_id, quantity, friendly_name, state, auto_renew,
        started_at, term, term_number, term_end, answer_revision, version, due_at, reseller_revision)
        SELECT '2' || substr(id, 2), id, payer_id, reseller_id, customer_id, 'OFFER', 5, '', 'ACTIVE', TRUE, placed_at, 'YEAR', 1,
        placed_at, gate_revision, 1, placed_at, 0 FROM orders;
    INSERT INTO withdrawal (revision, customer_id, kind, acceptance_id, partner_id, withdrawn_at, applied_at, cancelled, stayed,
        is_complete, newer_answer) SELECT gate_revision, customer_id, 'ATTESTATION', id, payer_id, placed_at, placed_at, 1, 0, TRUE, 0
        FROM orders;
    INSERT INTO withdrawal_partner (partner_id, revision, is_uncovered, cancelled, stayed, newer_answer)
        SELECT partner_id, revision, TRUE, 1, 0, 0 FROM withdrawal;
    ANALYZE orders, subscription, withdrawal, withdrawal_partner";

/// Lists of a partner that has a part in nothing, and of the payer, to which no reseller sells.
fn list_often(connection: &mut Connection) -> Result<(), Error> {
    // PostgreSQL makes a plan for all values after five of its own for each.
    for partner in [PAYER, CUSTOMER].repeat(10) {
        for newest_first in [false, true] {
            let viewer = Viewer::Partner(partner);
            let (customer_id, offer_id, from, before, after) = (None, None, None, None, None);
            let slice = Slice { viewer, customer_id, offer_id, from, before, newest_first, after, limit: 1 };
            order_list(connection, &slice, None)?;
            let wanted = Wanted { slice, state: None, ends_before: None, has_term: false };
            subscription_list(connection, &wanted)?;
            let from = if newest_first { i64::MAX } else { 0 };
            let wanted = Withdrawals { viewer, customer_id: None, from, newest_first, limit: 1 };
            withdrawal_list(connection, wanted)?;
        }
    }
    Ok(())
}

/// However many rows others have: where all have the same payer, a plan for all values takes that for any payer.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_partner_does_not_read_the_rows_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = url(true, folder.path()) else { return };
    let database = Database::open(&url.parse().unwrap(), true, Writes::Concurrent).unwrap();
    database.migrate(MIGRATIONS).unwrap();
    PgConnection::establish(&url).unwrap().batch_execute(OF_ONE).unwrap();
    let read = database.write(|connection| rows_read(connection, list_often)).await.unwrap();
    // Each table has 2,000 rows.
    assert!(read < 1000, "{read} rows were read");
}
