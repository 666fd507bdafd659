//! Admission of calls: a concurrency limit with a bounded queue, fair among tenants.
//!
//! A call takes one of the process's slots. If its tenant may not take one now, the call waits for at most [`WAIT_MAX`]
//! before it is refused; its message is not read meanwhile. Bursts of cheap calls are thereby served instead of
//! refused: to refuse such a call costs nearly as much as to serve it. By Little's law the queue need not hold more
//! calls than end within [`WAIT_MAX`].
//!
//! The slots are shared as in [`tenant`](super::tenant), and the length of the queue by the same rule, so a greedy tenant
//! leaves both to others. A tenant over its share waits as well: its calls are admitted when slots become free, so that a
//! tenant without competition is served at full speed. Released slots go round robin to the waiting tenants that may take
//! one, so a modest tenant waits for one round and not for the calls of a greedy one. An internal service has every
//! second turn, since it asks for all of its tenants. The calls of one tenant are admitted in their order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::tenant::{Overload, Shares, Tenant};

/// A caller notices no shorter delay, and a longer one only makes the refusal late.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Waiting calls for each slot. With the usual 256 slots that is a burst of 512 calls, or 5,000 calls a second that wait
/// for [`WAIT_MAX`]; more calls of a slow kind would only be refused later. A waiting call holds its headers, and up to
/// one window of its message that is not read.
const WAITING_PER_SLOT: usize = 2;

/// The slots of a process and the calls that wait for one. Clones share them.
#[derive(Clone)]
pub(crate) struct CallQueue(Arc<Mutex<State>>);

/// A slot; dropping it hands it on to a waiting call, or frees it.
pub(crate) struct Slot {
    queue: CallQueue,
    tenant: Tenant,
}

/// The state of a call that is not refused.
pub(crate) enum Entry {
    Admitted(Slot),
    Waiting(Waiting),
}

/// A call in the queue; dropping it leaves the queue.
pub(crate) struct Waiting {
    queue: CallQueue,
    tenant: Tenant,
    number: u64,
    slot: oneshot::Receiver<Slot>,
    is_queued: bool,
    overload: Overload,
    wait_max: Duration,
}

struct State {
    slots: Shares,
    waiting: Shares,
    /// The waiting calls of each tenant that has any, oldest first.
    queues: HashMap<Tenant, VecDeque<(u64, oneshot::Sender<Slot>)>>,
    /// The tenants that have waiting calls, the next one first.
    turns: VecDeque<Tenant>,
    last_number: u64,
    wait_max: Duration,
}

impl CallQueue {
    pub(crate) fn new(slots: usize, internal_kind: &'static str) -> Self {
        Self::bounded(slots, slots * WAITING_PER_SLOT, WAIT_MAX, internal_kind)
    }

    /// A queue in which that many may wait, each for that long at most.
    pub(crate) fn bounded(
        slots: usize,
        waiting_max: usize,
        wait_max: Duration,
        internal_kind: &'static str,
    ) -> Self {
        Self(Arc::new(Mutex::new(State {
            slots: Shares::new(slots, internal_kind),
            waiting: Shares::new(waiting_max, internal_kind),
            queues: HashMap::new(),
            turns: VecDeque::new(),
            last_number: 0,
            wait_max,
        })))
    }

    /// Admits a call or lets it wait.
    ///
    /// # Errors
    /// The tenant may not take a slot now, and too many calls wait already.
    pub(crate) fn enter(&self, tenant: Tenant) -> Result<Entry, Overload> {
        let mut state = self.state();
        match state.slots.check(tenant, 1) {
            // The tenant has no waiting calls, or the last release would have admitted one.
            Ok(()) => {
                state.slots.add(tenant, 1);
                Ok(Entry::Admitted(Slot { queue: self.clone(), tenant }))
            }
            Err(overload) => {
                state.waiting.check(tenant, 1).map_err(|_| overload)?;
                let (number, slot) = state.push(tenant);
                let (queue, wait_max) = (self.clone(), state.wait_max);
                Ok(Entry::Waiting(Waiting {
                    queue,
                    tenant,
                    number,
                    slot,
                    is_queued: true,
                    overload,
                    wait_max,
                }))
            }
        }
    }

    fn release(&self, tenant: Tenant) {
        let granted = {
            let mut state = self.state();
            state.slots.remove(tenant, 1);
            state.grant()
        };
        for (tenant, waiting) in granted {
            // If the call has just left, the slot comes back here and is dropped, which hands it on.
            drop(waiting.send(Slot { queue: self.clone(), tenant }));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, tenant: Tenant) -> (u64, oneshot::Receiver<Slot>) {
        self.last_number += 1;
        let (sender, receiver) = oneshot::channel();
        let queue = self.queues.entry(tenant).or_default();
        if queue.is_empty() {
            self.take_turn(tenant);
        }
        let queue = self.queues.entry(tenant).or_default();
        queue.push_back((self.last_number, sender));
        self.waiting.add(tenant, 1);
        (self.last_number, receiver)
    }

    /// Takes a slot for each waiting call that may have one, round robin by tenant.
    fn grant(&mut self) -> Vec<(Tenant, oneshot::Sender<Slot>)> {
        let mut granted = vec![];
        let mut passed_over = 0;
        while let Some(tenant) = self.turns.front().copied().filter(|_| passed_over < self.turns.len()) {
            match self.slots.check(tenant, 1) {
                Ok(()) => {
                    self.turns.pop_front();
                    if let Some((_, waiting)) = self.queues.get_mut(&tenant).and_then(VecDeque::pop_front) {
                        self.slots.add(tenant, 1);
                        self.waiting.remove(tenant, 1);
                        granted.push((tenant, waiting));
                    }
                    self.keep_turn(tenant);
                    passed_over = 0;
                }
                Err(Overload::Process) => break,
                Err(Overload::Tenant) => {
                    self.turns.rotate_left(1);
                    passed_over += 1;
                }
            }
        }
        granted
    }

    /// Puts the tenant at the end of the round, or an internal service behind the next tenant.
    fn take_turn(&mut self, tenant: Tenant) {
        let next = self.turns.iter().position(|next| !self.slots.is_internal(*next));
        match next.filter(|_| self.slots.is_internal(tenant)) {
            Some(next) => self.turns.insert(next + 1, tenant),
            None => self.turns.push_back(tenant),
        }
    }

    /// Gives the tenant its next turn if it has more waiting calls.
    fn keep_turn(&mut self, tenant: Tenant) {
        if self.queues.get(&tenant).is_some_and(|queue| !queue.is_empty()) {
            self.take_turn(tenant);
        } else {
            self.queues.remove(&tenant);
        }
    }

    /// Removes a call that no longer waits, unless it was admitted meanwhile.
    fn leave(&mut self, tenant: Tenant, number: u64) {
        let Some(queue) = self.queues.get_mut(&tenant) else { return };
        let Ok(at) = queue.binary_search_by_key(&number, |(number, _)| *number) else { return };
        queue.remove(at);
        self.waiting.remove(tenant, 1);
        if queue.is_empty() {
            self.queues.remove(&tenant);
            self.turns.retain(|other| *other != tenant);
        }
    }
}

impl Waiting {
    /// Waits for a slot.
    ///
    /// # Errors
    /// No slot became free in time.
    pub(crate) async fn slot(mut self) -> Result<Slot, Overload> {
        match timeout(self.wait_max, &mut self.slot).await {
            Ok(Ok(slot)) => {
                self.is_queued = false;
                Ok(slot)
            }
            Ok(Err(_)) | Err(_) => Err(self.overload),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_queued {
            self.queue.state().leave(self.tenant, self.number);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.queue.release(self.tenant);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use futures_util::{FutureExt, poll};
    use tokio::time::Instant;

    use super::*;

    const GREEDY: Tenant = Tenant::test("TENANT", 1);
    const MODEST: Tenant = Tenant::test("TENANT", 2);
    const INTERNAL: Tenant = Tenant::test("INTERNAL", 3);

    fn queue(slots: usize) -> CallQueue {
        CallQueue::new(slots, "INTERNAL")
    }

    /// Enters until the tenant is refused: its slots, its waiting calls, and the reason.
    fn fill(queue: &CallQueue, tenant: Tenant) -> (Vec<Slot>, Vec<Waiting>, Overload) {
        let (mut slots, mut waiting) = (vec![], vec![]);
        for _ in 0..1000 {
            match queue.enter(tenant) {
                Ok(Entry::Admitted(slot)) => slots.push(slot),
                Ok(Entry::Waiting(call)) => waiting.push(call),
                Err(overload) => return (slots, waiting, overload),
            }
        }
        panic!("the queue has no bound");
    }

    fn admitted(waiting: &mut Waiting) -> Option<Slot> {
        (&mut waiting.slot).now_or_never()?.ok()
    }

    fn wait(queue: &CallQueue, tenant: Tenant) -> Waiting {
        match queue.enter(tenant) {
            Ok(Entry::Waiting(waiting)) => waiting,
            _ => panic!("the call does not wait"),
        }
    }

    #[test]
    fn slots_and_waiting_calls_are_bounded_and_shared() {
        let queue = queue(8);
        let (greedy, greedys_waiting, why) = fill(&queue, GREEDY);
        assert_eq!((greedy.len(), greedys_waiting.len(), why), (4, 8, Overload::Tenant));
        let (modest, modests_waiting, why) = fill(&queue, MODEST);
        assert_eq!((modest.len(), modests_waiting.len(), why), (2, 4, Overload::Tenant));
        // An internal service is exempt from the share, and not from the total.
        let (internal, internals_waiting, why) = fill(&queue, INTERNAL);
        assert_eq!((internal.len(), internals_waiting.len(), why), (2, 4, Overload::Process));
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_call_is_refused_in_time_and_leaves_the_queue() {
        let queue = queue(2);
        let (_slots, waiting, _) = fill(&queue, GREEDY);
        for (n, call) in waiting.into_iter().enumerate() {
            let began = Instant::now();
            assert_eq!(call.slot().await.err(), Some(Overload::Tenant), "{n}");
            assert_eq!(began.elapsed(), WAIT_MAX, "{n}");
        }
        let state = queue.state();
        assert_eq!((state.queues.len(), state.turns.len()), (0, 0));
        assert_eq!(state.waiting.check(GREEDY, 2), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_admitted_as_soon_as_a_slot_is_released() {
        let queue = queue(1);
        let (slots, _, _) = fill(&queue, GREEDY);
        let mut waiting = pin!(wait(&queue, MODEST).slot());
        assert!(poll!(&mut waiting).is_pending());
        tokio::time::advance(WAIT_MAX / 2).await;
        drop(slots);
        assert!(matches!(poll!(&mut waiting), Poll::Ready(Ok(_))));
    }

    #[test]
    fn released_slots_go_round_robin_among_tenants() {
        let queue = queue(4);
        let (mut internal, others, _) = fill(&queue, INTERNAL);
        drop(others);
        let mut greedys: Vec<_> = (0..4).map(|_| wait(&queue, GREEDY)).collect();
        let mut modests: Vec<_> = (0..2).map(|_| wait(&queue, MODEST)).collect();
        internal.pop();
        let mut held = vec![admitted(&mut greedys[0]).unwrap()];
        // The greedy tenant has calls that came earlier, and it is the modest tenant's turn.
        internal.pop();
        held.push(admitted(&mut modests[0]).unwrap());
        // Each holds one, so one free slot is left to others.
        internal.pop();
        assert!(greedys[1..].iter_mut().chain(&mut modests[1..]).all(|call| admitted(call).is_none()));
        internal.pop();
        held.push(admitted(&mut greedys[1]).unwrap());
        // What a tenant releases is handed on, in turn.
        held.remove(0);
        assert!(admitted(&mut modests[1]).is_some());
    }

    #[test]
    fn an_internal_service_has_every_second_turn() {
        let queue = queue(8);
        let (mut held, others, _) = fill(&queue, INTERNAL);
        drop(others);
        let tenants: Vec<_> = (10..14).map(|id| Tenant::test("TENANT", id)).collect();
        let mut modests: Vec<_> = tenants.iter().map(|tenant| wait(&queue, *tenant)).collect();
        // Two of them do not keep tenants from theirs.
        let another = Tenant::test("INTERNAL", 4);
        let mut internals: Vec<_> = (0..4).map(|_| wait(&queue, INTERNAL)).collect();
        internals.extend((0..4).map(|_| wait(&queue, another)));
        let mut order = vec![];
        while held.pop().is_some() {
            for (kind, waiting) in [("tenant", &mut modests), ("internal", &mut internals)] {
                waiting.retain_mut(|call| match admitted(call) {
                    Some(slot) => {
                        std::mem::forget(slot);
                        order.push(kind);
                        false
                    }
                    None => true,
                });
            }
        }
        assert_eq!(order, ["tenant", "internal", "internal"].repeat(4)[..8]);
    }

    #[test]
    fn a_tenant_at_its_share_does_not_hold_up_others() {
        let queue = queue(8);
        let (_greedy, mut greedys_waiting, _) = fill(&queue, GREEDY);
        let (mut modest, mut modests_waiting, _) = fill(&queue, MODEST);
        // It is the greedy tenant's turn, and it holds its share.
        modest.pop();
        assert!(admitted(&mut modests_waiting[0]).is_some());
        assert!(greedys_waiting.iter_mut().all(|call| admitted(call).is_none()));
    }

    #[test]
    fn a_call_that_left_takes_no_slot() {
        let queue = queue(1);
        let (slots, _, _) = fill(&queue, GREEDY);
        let (left, mut next) = (wait(&queue, MODEST), wait(&queue, INTERNAL));
        drop(left);
        drop(slots);
        assert!(admitted(&mut next).is_some());
        // A slot that was granted to a call that is dropped meanwhile is handed on.
        let (slots, _, _) = fill(&queue, GREEDY);
        let (dropped, mut next) = (wait(&queue, MODEST), wait(&queue, INTERNAL));
        drop(slots);
        drop(dropped);
        assert!(admitted(&mut next).is_some());
    }
}
