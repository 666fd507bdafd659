//! The connections of the pool, shared as calls are: a tenant holds as many as remain free, waiting reads and writes get
//! theirs round robin by tenant, and internal services and the process's own workers are limited by the total only.
//! Longer reads of tenants have at most half of the connections, so that they leave some to reads of a few rows, to writes,
//! and to what internal services and workers read.

use std::future::Future;
use std::time::Duration;

use super::{Error, POOL_SIZE};
use crate::limits::queue::{CallQueue, Entry, Slot};
use crate::limits::tenant::Tenant;

/// Who has no share: the process itself, and the internal services that act for all tenants.
pub(crate) const INTERNAL: Tenant = Tenant::internal(INTERNAL_KIND);

const INTERNAL_KIND: &str = "INTERNAL";

/// How long a call waits for its turn before it fails.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Reads and writes that may wait: no limit of its own, since the calls in progress are limited already.
const WAITING_MAX: usize = usize::MAX / 2;

tokio::task_local! {
    static TENANT: Tenant;
}

/// Runs the handler of a call whose reads and writes count against the share of a tenant.
pub(crate) async fn on_behalf_of<F: Future>(tenant: Tenant, call: F) -> F::Output {
    TENANT.scope(tenant, call).await
}

/// The tenant for whom this task reads and writes.
pub(super) fn tenant() -> Tenant {
    TENANT.try_with(|tenant| *tenant).unwrap_or(INTERNAL)
}

/// Who may use how many connections.
pub(super) struct ConnectionShares {
    all: CallQueue,
    longer: CallQueue,
}

/// The right to one connection.
pub(super) struct ConnectionShare {
    _connection: Slot,
    _longer: Option<Slot>,
}

impl ConnectionShares {
    pub(super) fn new() -> Self {
        let queue = |slots| CallQueue::bounded(slots, WAITING_MAX, WAIT_MAX, INTERNAL_KIND);
        let all = POOL_SIZE as usize;
        Self { all: queue(all), longer: queue(all / 2) }
    }

    /// Waits for the right to one connection.
    ///
    /// # Errors
    /// It was not this call's turn in time.
    pub(super) async fn take(&self, is_longer: bool) -> Result<ConnectionShare, Error> {
        let tenant = tenant();
        let is_limited = is_longer && tenant != INTERNAL;
        let longer = if is_limited { Some(slot(&self.longer, tenant).await?) } else { None };
        Ok(ConnectionShare { _connection: slot(&self.all, tenant).await?, _longer: longer })
    }
}

async fn slot(queue: &CallQueue, tenant: Tenant) -> Result<Slot, Error> {
    let slot = match queue.enter(tenant) {
        Ok(Entry::Admitted(slot)) => Ok(slot),
        Ok(Entry::Waiting(waiting)) => waiting.slot().await,
        Err(full) => Err(full),
    };
    slot.map_err(|_| Error::Unavailable("no connection became free in time".into()))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    const GREEDY: Tenant = Tenant::test("TENANT", 1);
    const MODEST: Tenant = Tenant::test("TENANT", 2);

    /// How many connections a tenant gets at once, of that many that it asks for.
    async fn taken(
        shares: &ConnectionShares,
        tenant: Tenant,
        is_longer: bool,
        asked: usize,
    ) -> Vec<ConnectionShare> {
        let now = async || on_behalf_of(tenant, shares.take(is_longer)).now_or_never();
        join_all((0..asked).map(|_| now())).await.into_iter().flatten().map(|share| share.unwrap()).collect()
    }

    #[tokio::test]
    async fn longer_reads_leave_connections_to_all_others() {
        let shares = ConnectionShares::new();
        let greedy = taken(&shares, GREEDY, true, 128).await;
        let more: Vec<Tenant> = (10..20).map(|id| Tenant::test("TENANT", id)).collect();
        let mut others = vec![];
        for tenant in more {
            others.extend(taken(&shares, tenant, true, 128).await);
        }
        assert_eq!((greedy.len(), others.len()), (2, 2), "longer reads have half of the connections");
        let more = taken(&shares, GREEDY, false, 128).await;
        assert_eq!(more.len(), 1, "it then holds as many as are free");
        assert_eq!(taken(&shares, MODEST, false, 1).await.len(), 1);
        assert_eq!(
            taken(&shares, INTERNAL, true, 128).await.len(),
            3,
            "what is internal waits for none of them"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_connection_goes_to_the_tenant_whose_turn_it_is() {
        let shares = ConnectionShares::new();
        let held = taken(&shares, INTERNAL, false, 8).await;
        let mut greedy: Vec<_> =
            (0..128).map(|_| Box::pin(on_behalf_of(GREEDY, shares.take(false)))).collect();
        for waiting in &mut greedy {
            assert!(waiting.now_or_never().is_none());
        }
        let mut modest = Box::pin(on_behalf_of(MODEST, shares.take(false)));
        assert!((&mut modest).now_or_never().is_none());
        drop(held);
        assert!(modest.await.is_ok(), "it does not wait for the 128 that came before it");
        let outcomes = join_all(greedy).await;
        assert!(outcomes.iter().any(Result::is_err), "what waits for too long fails");
    }
}
