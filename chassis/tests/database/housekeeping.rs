//! Old answers are deleted beside changes of other replicas.

use chassis::clock::{Clock, Time};
use chassis::idempotency::run_expiry;
use tokio_util::sync::CancellationToken;

use super::*;

/// Another replica holds the lock of one old answer, and may be waiting for a lock of this one. So what deletes answers
/// waits for nothing, and holds its locks no longer than it needs.
#[tokio::test]
async fn deleting_old_answers_waits_for_no_other_replica() {
    const TABLE: &str = "CREATE TABLE request (tenant_id TEXT NOT NULL, call TEXT NOT NULL,
        request_id TEXT NOT NULL, content TEXT NOT NULL, answer BYTEA NOT NULL,
        answered_at TIMESTAMP NOT NULL, PRIMARY KEY (tenant_id, call, request_id));
        INSERT INTO request VALUES ('t', 'c', '1', '', '', '2026-01-01'), ('t', 'c', '2', '', '', '2026-01-02'),
            ('t', 'c', '3', '', '', '2026-01-03')";
    const HELD: &str = "BEGIN; SELECT 1 FROM request WHERE request_id = '1' FOR UPDATE";
    let Some(backend) = Backend::postgres() else { return };
    for writes in [Writes::Serial, Writes::Concurrent] {
        let home = Home::new(backend);
        let database = home.open(writes);
        let mut other = home.independent();
        query!(&mut other, c => c.batch_execute(TABLE)).unwrap();
        query!(&mut other, c => c.batch_execute(HELD)).unwrap();
        let stop = CancellationToken::new();
        let clock = Clock::manual(Time::from_timestamp(1_900_000_000, 0).unwrap());
        let expiring = tokio::spawn(run_expiry(database.clone(), clock, stop.clone()));
        let mut looking = home.independent();
        let gone = async {
            let mut left = || -> usize {
                query!(&mut looking, c => sql_query("SELECT 1 FROM request").execute(c)).unwrap()
            };
            while left() > 1 {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(4), gone).await;
        assert!(waited.is_ok(), "{writes:?}: it waits for the lock");
        stop.cancel();
        expiring.await.unwrap();
    }
}
