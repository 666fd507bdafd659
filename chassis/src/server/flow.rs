//! What may be in progress beyond the places there are: calls that end so soon that nobody waits for long.
//!
//! Of a call of which hundreds end in a moment, hundreds are in progress as soon as they come in together.
//! To refuse those takes a good part of what answering them takes, and spares nobody anything. So of each call as
//! many may be in progress as were answered within [`WAIT_MAX`]: that is how long they then wait (Little's law).
//! They are shared among tenants as places are; places themselves as if there were none of this.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::limits::tenant::{Overload, Permit, Taken, Tenant};
use crate::auth::Caller;

/// How long a call without a place waits for those before.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// How each call flows. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Flows(Arc<Mutex<HashMap<&'static str, Flow>>>, &'static str);

/// How one of them does.
#[derive(Debug)]
struct Flow {
    in_progress: Taken,
    /// When calls were answered, as far back as it matters.
    answered: VecDeque<Instant>,
}

/// A call in progress, with its place if there was one. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Passage {
    flows: Flows,
    path: &'static str,
    tenant: Tenant,
    is_answered: bool,
    _place: Option<Permit>,
}

impl Flows {
    pub(super) fn new(internal_kind: &'static str) -> Self {
        Self(Arc::default(), internal_kind)
    }

    /// Lets a call in that has a place or needs none.
    ///
    /// # Errors
    /// Why it has no place; and its like do not end soon enough to do without, or the tenant's are too many.
    pub(super) fn enter(
        &self,
        path: &'static str,
        caller: &Caller,
        place: Result<Permit, Overload>,
    ) -> Result<Passage, Overload> {
        let tenant = Tenant::of(caller);
        let mut flows = self.flows();
        let flow = flows.entry(path).or_insert_with(|| Flow::new(self.1));
        let place = match place {
            Ok(place) => Some(place),
            Err(full) => {
                let max = flow.answered_lately();
                flow.in_progress.check(max, tenant).map_err(|_| full)?;
                None
            }
        };
        flow.in_progress.add(tenant);
        Ok(Passage { flows: self.clone(), path, tenant, is_answered: false, _place: place })
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<&'static str, Flow>> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    fn new(internal_kind: &'static str) -> Self {
        Self { in_progress: Taken::new(internal_kind), answered: VecDeque::new() }
    }

    fn answered_lately(&mut self) -> usize {
        let now = Instant::now();
        while self.answered.front().is_some_and(|then| now.duration_since(*then) >= WAIT_MAX) {
            self.answered.pop_front();
        }
        self.answered.len()
    }
}

impl Passage {
    /// There is an answer. What is given up or refused is no sign that others will not have to wait.
    pub(super) fn is_answered(&mut self) {
        self.is_answered = true;
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut flows = self.flows.flows();
        let flow = flows.entry(self.path).or_insert_with(|| Flow::new(self.flows.1));
        flow.in_progress.give_back(self.tenant);
        if self.is_answered {
            // It makes room for those that ended long ago, also where nobody is ever refused.
            flow.answered_lately();
            flow.answered.push_back(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::limits::tenant::TenantLimiter;
    use super::*;
    use crate::auth::Channel;

    const CHEAP: &str = "/a.B/Cheap";
    const DEAR: &str = "/a.B/Dear";

    fn caller(tenant_kind: &'static str, tenant: u128) -> Caller {
        let (tenant_id, user_id) = (Uuid::from_u128(tenant), Uuid::nil());
        Caller { tenant_kind, tenant_id, user_id, roles: vec![], channel: Channel::Api }
    }

    /// All of a caller's that are let in without a place.
    fn all(flows: &Flows, path: &'static str, caller: &Caller) -> Vec<Passage> {
        std::iter::from_fn(|| flows.enter(path, caller, Err(Overload::Process)).ok()).collect()
    }

    fn answer(passages: Vec<Passage>) {
        for mut passage in passages {
            passage.is_answered();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_need_no_place_as_were_answered_lately() {
        let flows = Flows::new("INTERNAL");
        let service = caller("INTERNAL", 0);
        assert_eq!(flows.enter(CHEAP, &service, Err(Overload::Tenant)).unwrap_err(), Overload::Tenant);
        let places = TenantLimiter::new(1000, "INTERNAL");
        let with_place = || flows.enter(CHEAP, &service, places.try_acquire(&service)).unwrap();
        answer((0..10).map(|_| with_place()).collect());
        let held = all(&flows, CHEAP, &service);
        assert_eq!(held.len(), 10);
        assert_eq!(all(&flows, DEAR, &service).len(), 0, "another call may take longer");

        // Those that have places count, too.
        answer(held);
        let with_places: Vec<_> = (0..5).map(|_| with_place()).collect();
        assert_eq!(all(&flows, CHEAP, &service).len(), 15);

        // From now on nothing ends.
        tokio::time::advance(WAIT_MAX).await;
        assert_eq!(all(&flows, CHEAP, &service).len(), 0);
        // What is given up counts for nothing.
        drop(with_places);
        assert_eq!(all(&flows, CHEAP, &service).len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_leaves_as_many_to_others_as_it_has() {
        let flows = Flows::new("INTERNAL");
        let places = TenantLimiter::new(1000, "INTERNAL");
        let [greedy, modest] = [1, 2].map(|tenant| caller("TENANT", tenant));
        let with_place = || flows.enter(CHEAP, &greedy, places.try_acquire(&greedy)).unwrap();
        answer((0..12).map(|_| with_place()).collect());
        let greedys = all(&flows, CHEAP, &greedy);
        assert_eq!((greedys.len(), all(&flows, CHEAP, &modest).len()), (6, 3));
        drop(greedys);

        // What it has with places is its own, too.
        let _with_places: Vec<_> = (0..7).map(|_| with_place()).collect();
        assert_eq!(all(&flows, CHEAP, &greedy).len(), 0);
        assert_eq!(all(&flows, CHEAP, &modest).len(), 3);
    }
}
