//! How the databases find the rows of lists: every list, with each filter, goes by an index.

use std::iter;
use std::time::Duration;

use chassis::clock::Clock;
use chassis::database::testing::{plans_of, rows_read, url};
use chassis::database::{Connection, Database, Error};
use chassis::query;
use chrono::TimeDelta;
use diesel::connection::SimpleConnection;
use diesel::{Connection as _, PgConnection};
use rstest::rstest;
use strum::VariantArray;
use uuid::Uuid;

use super::acceptance::{AcceptanceFilter, attestation_list, signature_list};
use super::customer::list::{CustomerFilter, customer_list};
use super::customer::reference::references_of;
use super::customer::{
    RelationshipFilter, Viewer, Whose, name_keys_fill, partnerships_of, partnerships_of_partner,
};
use super::event::events_of;
use super::gate::{Pair, gate_history};
use super::invitation::{self, invitation_list, invitations_declined};
use super::notification::notifications_unsent;
use super::outbox::{MailClaim, Turns, mails_claim};
use super::proposal::{ProposalFilter, proposal_list};
use crate::config::Storage;
use crate::rules::attestation::AcceptanceState;
use crate::rules::invitation::InvitationState;
use crate::rules::notification::NotificationState;
use crate::rules::proposal::ProposalState;

const PARTNER: Uuid = Uuid::from_u128(0xd1);
const RESELLER: Uuid = Uuid::from_u128(0xf1);
const CUSTOMER: Uuid = Uuid::from_u128(0xc1);

/// Rows of a large database: a hundred thousand customers of ten partners, each with a relationship and an attestation or a signature.
/// An autovacuum meanwhile would see none of the uncommitted rows, and note the tables that others refer to as empty. ANALYZE in the
/// same transaction notes their sizes first, and its lock keeps autovacuum away until the commit. Each names its tables: without
/// names it locks those of all tests, and two at once end in a deadlock.
const FILL: &str = "
    INSERT INTO partner (id, name, kind, cloud, registered_at, revision) SELECT '00000000-0000-0000-0000-' || lpad(to_hex(207 + n), 12, '0'), 'P', 'DIRECT_BILL', 'PUBLIC',
        '2020-01-01', n FROM generate_series(1, 10) AS n;
    INSERT INTO customer (id, company_name, domain, country, cloud, first_name, last_name, email, phone, contact_salt, created_at,
        first_purchase_at, acceptance_revision, revision, name_key, name_revision) SELECT '00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'), 'Company ' || n,
        n || '.example', 'FR', 'PUBLIC', '', '', '', '', '', '2020-01-01', NULL, n, n,
        convert_to('company ' || n, 'UTF8'), n FROM generate_series(1, 100000) AS n;
    ANALYZE partner, customer, template, template_version;
    INSERT INTO relationship SELECT '00000000-0000-0000-0000-' || lpad(to_hex(208 + n % 10), 12, '0'),
        '00000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'),
        CASE WHEN n % 50 = 0 THEN '00000000-0000-0000-0000-0000000000f1' ELSE '' END,
        '2020-01-01', NULL, n FROM generate_series(1, 100000) AS n;
    INSERT INTO proposal (id, reseller_id, provider_id, customer_id, template_id, first_name, last_name, email, phone,
        contact_salt, title, evidence_reference, evidence_sha256, on_behalf_of, external_reference, agreed_at, proposed_at,
        proposed_by, expires_at, rejected_at, rejection_reason, revision) SELECT
        '20000000-0000-0000-0000-' || lpad(to_hex(revision), 12, '0'), '00000000-0000-0000-0000-0000000000d0', partner_id,
        customer_id, (SELECT id FROM template LIMIT 1), '', '', '', '', '', '', '', '', '', '', '2020-01-01', '2020-01-01',
        '00000000-0000-0000-0000-000000000001', '2020-02-01', CASE WHEN revision % 20 > 0 THEN '2020-01-02'::timestamp END,
        CASE WHEN revision % 20 > 0 THEN 'OTHER' END, revision FROM relationship;
    INSERT INTO invitation (id, kind, partner_id, reseller_id, customer_id, template_id, first_name, last_name, email, phone,
        contact_salt, created_at, created_by, expires_at, revision) SELECT
        '30000000-0000-0000-0000-' || lpad(to_hex(revision), 12, '0'), 'AGREEMENT', partner_id, reseller_id, customer_id,
        (SELECT id FROM template LIMIT 1), '', '', '', '', '', '2020-01-01', '00000000-0000-0000-0000-000000000001',
        '2020-02-01', revision FROM relationship;
    INSERT INTO event (revision, customer_id, partner_id, recorded_at, body, hash) SELECT 1000000 + revision, customer_id,
        partner_id, '2020-01-01', '{\"event\":\"HISTORY_RESTORED\",\"last_revision\":0,\"last_hash\":\"\"}', '' FROM relationship;
    INSERT INTO customer_reference (partner_id, customer_id, external_reference)
        SELECT partner_id, customer_id, 'C ' || revision FROM relationship;
    INSERT INTO acceptance (id, kind, partner_id, customer_id, agreement_type, template_id, template_version, first_name,
        last_name, email, phone, contact_salt, agreed_at, recorded_at, recorded_by, superseded_at, withdrawn_at, revision,
        withdrawal_reason, withdrawn_by, external_reference) SELECT '10000000-0000-0000-0000-' || lpad(to_hex(n), 12, '0'),
        CASE WHEN n % 7 = 0 THEN 'SIGNATURE' ELSE 'ATTESTATION' END,
        CASE WHEN n % 7 = 0 THEN '' ELSE '00000000-0000-0000-0000-' || lpad(to_hex(208 + n % 10), 12, '0') END,
        '00000000-0000-0000-0000-' || lpad(to_hex(1 + n % 100000), 12, '0'), 'MICROSOFT_CUSTOMER_AGREEMENT',
        template_id, number, '', '', '', '', '', '2020-01-01'::timestamp + n * interval '1 minute',
        '2020-01-01'::timestamp + n * interval '1 minute', '00000000-0000-0000-0000-000000000001',
        CASE WHEN n % 2 = 0 THEN '2024-01-01'::timestamp END, NULL, n, '', '',
        CASE WHEN n % 3 = 0 THEN 'PO ' || n END
        FROM generate_series(1, 100000) AS n
        JOIN (SELECT template_id, number FROM template_version WHERE agreement_type = 'MICROSOFT_CUSTOMER_AGREEMENT'
            ORDER BY number LIMIT 1) AS version ON true;
    ANALYZE relationship, proposal, invitation, event, customer_reference, acceptance";

/// The same of one partner.
fn fill_of_one() -> String {
    FILL.replace("generate_series(1, 100000)", "generate_series(1, 2000)")
        .replace("208 + n % 10", "208")
        .replace("1 + n % 100000", "n")
        .replace("WHEN n % 50 = 0 THEN '00000000-0000-0000-0000-0000000000f1'", "WHEN FALSE THEN ''")
}

/// Reads every list, with each of its filters and all together.
fn read_lists(connection: &mut Connection) -> Result<(), Error> {
    let viewers = [Viewer::Everything, Viewer::Partner(PARTNER), Viewer::Customer(CUSTOMER)];
    for viewer in viewers {
        for bits in 0..16 {
            let given = |bit: u8| bits & (1 << bit) != 0;
            let filter = CustomerFilter {
                viewer,
                domain: given(0).then(|| "7.example".to_owned()),
                name_prefix: given(1).then(|| "Company 77".to_owned()),
                reseller: given(2).then_some(RESELLER),
                external_reference: given(3).then(|| "C 77".to_owned()),
            };
            customer_list(connection, &filter, None, 51)?;
            customer_list(connection, &filter, Some("company 770"), 51)?;
        }
    }
    references_of(connection, PARTNER, &[CUSTOMER, RESELLER])?;
    invitations_declined(connection, PARTNER, &[CUSTOMER, RESELLER])?;
    // SQLite has another statement for a pair alone.
    let pair = Pair { customer_id: CUSTOMER, payer_id: PARTNER };
    gate_history(connection, &[pair])?;
    gate_history(connection, &[pair, pair])?;
    for state in [NotificationState::Queued, NotificationState::DeadLetter] {
        notifications_unsent(connection, state, None, 51)?;
    }
    let time = "2020-02-01T00:00:00Z".parse().ok();
    let all = AcceptanceFilter::default;
    let filters = [
        all(),
        AcceptanceFilter { state: Some(AcceptanceState::Current), ..all() },
        AcceptanceFilter { state: Some(AcceptanceState::Superseded), ..all() },
        AcceptanceFilter { state: Some(AcceptanceState::Withdrawn), ..all() },
        AcceptanceFilter { template: Some(CUSTOMER), ..all() },
        AcceptanceFilter { agreed_from: time, agreed_before: time, ..all() },
        AcceptanceFilter { recorded_from: time, recorded_before: time, ..all() },
        AcceptanceFilter { external_reference: Some("PO 7".into()), ..all() },
    ];
    for filter in filters {
        for newest_first in [false, true] {
            let from = if newest_first { i64::MAX } else { 0 };
            let filter = AcceptanceFilter { newest_first, ..filter.clone() };
            let seen = AcceptanceFilter { seen_by: Some(PARTNER), ..filter.clone() };
            let of_customer = AcceptanceFilter { customer: Some(CUSTOMER), ..filter.clone() };
            attestation_list(connection, Some(PARTNER), &seen, from, 51)?;
            attestation_list(connection, Some(PARTNER), &filter, from, 51)?;
            attestation_list(connection, Some(PARTNER), &of_customer, from, 51)?;
            attestation_list(connection, None, &of_customer, from, 51)?;
            signature_list(connection, &filter, from, 51)?;
            signature_list(connection, &of_customer, from, 51)?;
        }
    }
    for include_ended in [false, true] {
        let all = RelationshipFilter { include_ended, ..RelationshipFilter::default() };
        let of_reseller = RelationshipFilter { reseller: Some(RESELLER), ..all };
        let of_customer = RelationshipFilter { customer: Some(CUSTOMER), ..all };
        for filter in [all, of_reseller, of_customer] {
            partnerships_of_partner(connection, PARTNER, filter, 0, 51)?;
            partnerships_of(connection, Whose::Customer(CUSTOMER), filter, 0, 51)?;
        }
    }
    name_keys_fill(connection, 100)?;
    read_proposals_invitations_and_events(connection)
}

fn read_proposals_invitations_and_events(connection: &mut Connection) -> Result<(), Error> {
    let now = "2020-02-01T00:00:00Z".parse().unwrap();
    let (partner, customer) = (Some(PARTNER), Some(CUSTOMER));
    for (partner, customer) in [(None, None), (partner, None), (None, customer), (partner, customer)] {
        for state in iter::once(None).chain(ProposalState::VARIANTS.iter().map(Some)) {
            let filter = ProposalFilter { partner, customer, state: state.map(|state| (*state, now)) };
            proposal_list(connection, filter, 0, 51)?;
        }
        for state in iter::once(None).chain(InvitationState::VARIANTS.iter().map(Some)) {
            for newest_first in [false, true] {
                let state = state.map(|state| (*state, now));
                let filter = invitation::Filter { partner, customer, state, newest_first };
                invitation_list(connection, filter, if newest_first { i64::MAX } else { 0 }, 51)?;
            }
        }
        for (newest_first, from) in [(false, 0), (true, i64::MAX)] {
            events_of(connection, CUSTOMER, partner, (newest_first, from), 51)?;
        }
    }
    Ok(())
}

async fn migrated(url: &str) -> Database {
    let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
    let storage =
        Storage { database: url.parse().unwrap(), create: true, templates: None, document_table: None };
    crate::migrate(&storage, &clock).await.unwrap()
}

/// A notification that waits.
const QUEUE: &str = "
    INSERT INTO partner (id, name, kind, cloud, registered_at, revision) VALUES
        ('00000000-0000-0000-0000-0000000000d1', 'P', 'DIRECT_BILL', 'PUBLIC', '2020-01-01 00:00:00', 1);
    INSERT INTO customer (id, company_name, domain, country, cloud, first_name, last_name, email, phone, contact_salt, created_at,
        acceptance_revision, revision) VALUES ('00000000-0000-0000-0000-0000000000c1', 'C', 'c.example', 'FR', 'PUBLIC', '', '', '',
        '', '', '2020-01-01 00:00:00', 1, 1);
    INSERT INTO acceptance (id, kind, partner_id, customer_id, agreement_type, template_id, template_version, first_name,
        last_name, email, phone, contact_salt, agreed_at, recorded_at, recorded_by, revision, withdrawal_reason, withdrawn_by)
        SELECT '00000000-0000-0000-0000-0000000000a1', 'ATTESTATION', '00000000-0000-0000-0000-0000000000d1',
        '00000000-0000-0000-0000-0000000000c1', agreement_type, template_id, number, '', '', '', '', '', '2020-01-01 00:00:00', '2020-01-01 00:00:00',
        '00000000-0000-0000-0000-000000000001', 1, '', '' FROM template_version
        WHERE agreement_type = 'MICROSOFT_CUSTOMER_AGREEMENT' ORDER BY number LIMIT 1;
    INSERT INTO notification (attestation_id, state, attempts, due_at, last_failure, partner_id, customer_id) VALUES
        ('00000000-0000-0000-0000-0000000000a1', 'QUEUED', 0, '2020-01-01 00:00:00', '', '00000000-0000-0000-0000-0000000000d1',
        '00000000-0000-0000-0000-0000000000c1')";

fn claim_mails(connection: &mut Connection) -> Result<(), Error> {
    let now = "2020-02-01T00:00:00Z".parse().unwrap();
    let interval = Duration::from_secs(600);
    let claim = MailClaim { now, lease: TimeDelta::seconds(60), limit: 1, per_day: 10, interval };
    let claimed = mails_claim(connection, &claim, &mut Turns::default())?;
    assert_eq!(claimed.mails.len(), 1);
    Ok(())
}

/// However much a partner has queued: the one to a customer is found by the customer, and the next partner's by the partner.
#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_mail_is_looked_for_among_all_of_a_partner(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = url(is_postgres, folder.path()) else { return };
    let database = migrated(&url).await;
    let plans = |connection: &mut Connection| -> Result<_, Error> {
        query!(&mut *connection, c => c.batch_execute(QUEUE)?);
        if let Connection::Postgres(c) = connection {
            // All that it knows of the table when a large import begins.
            c.batch_execute("ANALYZE partner, customer, acceptance, notification")?;
        }
        plans_of(connection, claim_mails)
    };
    let plans = database.write(plans).await.unwrap();
    let (mut of_customer, mut of_partner) = (0, 0);
    for plan in plans.iter().filter(|plan| plan.statement.contains("SELECT")) {
        let is_by = |index: &str| {
            let step = plan.steps.iter().find(|step| step.contains("notification_"));
            step.is_some_and(|step| step.contains(index))
        };
        let asks = |words: &str| plan.statement.replace(['"', '`'], "").contains(words);
        if asks("notification.customer_id =") {
            of_customer += 1;
            assert!(is_by("notification_by_customer"), "{plan:#?}");
        } else if asks("notification.state = 'QUEUED'") {
            of_partner += 1;
            assert!(is_by("notification_next"), "{plan:#?}");
        }
    }
    assert!(of_customer >= 3 && of_partner >= 3, "{of_customer} {of_partner} {plans:#?}");
}

#[rstest]
#[case::sqlite(false)]
#[case::postgres(true)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_list_goes_by_an_index(#[case] is_postgres: bool) {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = url(is_postgres, folder.path()) else { return };
    let database = migrated(&url).await;
    if is_postgres {
        PgConnection::establish(&url).unwrap().batch_execute(FILL).unwrap();
    }
    let plans = database.write(|connection| plans_of(connection, read_lists)).await.unwrap();
    assert!(plans.len() > 80, "{}", plans.len());
    let expected = [
        "customer_by_reference",
        "proposal_open",
        "proposal_open_of_provider",
        "proposal_open_of_reseller",
        "invitation_declined",
        "acceptance_last_withdrawn",
    ];
    // Of several that fit, PostgreSQL chooses by a random sample of the rows.
    for index in expected.into_iter().filter(|_| !is_postgres) {
        let goes_by = |step: &String| step.contains(&format!("{index} "));
        assert!(plans.iter().any(|plan| plan.steps.iter().any(goes_by)), "{index}");
    }
    for plan in plans {
        // A partial index is read from end to end: it has only what is asked for.
        let small =
            ["Seq Scan on partner", "customer_to_name", "SCAN CONSTANT ROW", "SCAN asked", "SCAN json_each"];
        assert_eq!(plan.full_scan(&small), None, "{plan:#?}");
    }
}

/// Lists of a partner that has a part in nothing.
fn list_often(connection: &mut Connection) -> Result<(), Error> {
    let viewer = Viewer::Partner(RESELLER);
    let partner = Some(RESELLER);
    // PostgreSQL makes a plan for all values after five of its own for each.
    for _ in 0..20 {
        let filter = CustomerFilter {
            viewer,
            domain: None,
            name_prefix: None,
            reseller: None,
            external_reference: None,
        };
        customer_list(connection, &filter, None, 1)?;
        let filter = AcceptanceFilter { seen_by: partner, ..AcceptanceFilter::default() };
        attestation_list(connection, partner, &filter, 0, 1)?;
        proposal_list(connection, ProposalFilter { partner, customer: None, state: None }, 0, 1)?;
        for (newest_first, from) in [(false, 0), (true, i64::MAX)] {
            let filter = invitation::Filter { partner, customer: None, state: None, newest_first };
            invitation_list(connection, filter, from, 1)?;
        }
        partnerships_of_partner(connection, RESELLER, RelationshipFilter::default(), 0, 1)?;
    }
    Ok(())
}

/// However many rows others have: where all have the same partner, a plan for all values takes that for any partner.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_partner_does_not_read_the_rows_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let Some(url) = url(true, folder.path()) else { return };
    let database = migrated(&url).await;
    PgConnection::establish(&url).unwrap().batch_execute(&fill_of_one()).unwrap();
    let read = database.write(|connection| rows_read(connection, list_often)).await.unwrap();
    // The tables that lists read have 2,000 rows each.
    assert!(read < 1000, "{read} rows were read");
}
