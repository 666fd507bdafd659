//! The gap in the revisions that the announcement of a restore leaves, and forged gaps.

use agreement_svc::rules::chain::{Broken, Finding, Head};
use chassis::query;
use diesel::sql_types::Timestamp;
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use rstest_reuse::apply;
use sha2::{Digest, Sha256};
use tests::Backend;
use tests::backup::Backup;
use tests::databases::connect;

use super::{LIFT, World};
use crate::each_backend;

/// A forged event with a correct hash.
struct Forged {
    revision: i64,
    body: String,
}

#[apply(each_backend)]
async fn only_the_gap_of_a_restore_verifies(#[case] backend: Backend) {
    tests::needs_own!("databases that it restores");
    tests::needs!(backend);
    let mut world = World::on(backend).await;
    world.customer().await;
    let last = world.head();
    let copy = Backup::of(world.cluster.agreements_database()).unwrap();
    let restored = |last_revision: i64, last_hash: &str| {
        format!(r#"{{"event":"HISTORY_RESTORED","last_revision":{last_revision},"last_hash":"{last_hash}"}}"#)
    };
    let linked = r#"{"event":"RESELLER_LINKED","provider_id":"00000000-0000-4000-8000-0000000000e1","reseller_id":"00000000-0000-4000-8000-0000000000f1","by":"00000000-0000-4000-8000-000000000001"}"#;
    let right = restored(last.revision, &last.hash);
    let (next, lifted) = (last.revision + 1, last.revision + LIFT);
    for (revision, body, found) in [
        (lifted, right.clone(), None),
        (lifted - 1, right.clone(), Some((lifted - 1, Broken::Misnumbered))),
        (lifted + 1, right.clone(), Some((lifted, Broken::Missing))),
        (next, right.clone(), Some((next, Broken::Misnumbered))),
        (lifted, restored(last.revision - 1, &last.hash), Some((lifted, Broken::Hash))),
        (lifted, restored(last.revision, ""), Some((lifted, Broken::Hash))),
        (lifted, linked.to_owned(), Some((next, Broken::Missing))),
    ] {
        let forged = Forged { revision, body };
        world.cluster.stop_agreements();
        copy.restore().unwrap();
        forged.append(&world, &last);
        let expected: Vec<_> =
            found.map(|(revision, how)| Finding::Broken { revision, how }).into_iter().collect();
        let about = format!("{revision} {}", forged.body);
        let mut findings = world.findings(&[&last]).await;
        // The columns beside the body are no subject of this test.
        findings.retain(|finding| !matches!(finding, Finding::Broken { how: Broken::Column(_), .. }));
        assert_eq!(findings, expected, "{about}");
    }
}

#[derive(QueryableByName)]
struct RecordedAt {
    #[diesel(sql_type = Timestamp)]
    recorded_at: chrono::NaiveDateTime,
}

impl Forged {
    /// Appends the event with the right hash, and moves the counter.
    fn append(&self, world: &World, last: &Head) {
        let database = world.cluster.agreements_database();
        let Self { revision, body } = self;
        let at: RecordedAt = query!(&mut connect(database).unwrap(), c => {
            sql_query("SELECT recorded_at FROM event ORDER BY revision DESC LIMIT 1").get_result(c).unwrap()
        });
        let micros = at.recorded_at.and_utc().timestamp_micros();
        let hash = Sha256::digest(format!("{}\n{revision}\n{micros}\n{body}", last.hash));
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let sql = format!(
            "INSERT INTO event (revision, customer_id, partner_id, recorded_at, body, hash) \
             SELECT {revision}, NULL, NULL, recorded_at, '{body}', '{hash}' FROM event \
             WHERE revision = {}; UPDATE revision SET value = {revision}, head = '{hash}'",
            last.revision
        );
        world.cluster.agreements_sql(&sql).unwrap();
    }
}
