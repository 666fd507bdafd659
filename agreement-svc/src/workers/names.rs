//! Gives customers that an older version created or changed the key by which they are found by name.
//!
//! It looks again from time to time, because older replicas may run beside this one during an upgrade.

use std::time::Duration;

use chassis::database::Database;
use tokio_util::sync::CancellationToken;

use crate::store::customer::name_keys_fill;

/// Customers of one transaction: other changes wait for it.
const PIECE: i64 = 200;

const PAUSE: Duration = Duration::from_secs(600);

/// Looks for customers without a key until `stop` is cancelled.
pub(crate) async fn run(database: Database, stop: CancellationToken) {
    loop {
        let pause = match database.write(|connection| name_keys_fill(connection, PIECE)).await {
            Ok(0) => PAUSE,
            // Others have a turn in between.
            Ok(_) => Duration::from_millis(10),
            Err(error) => {
                tracing::warn!(%error, "customers cannot be given the keys of their names; trying again");
                PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
