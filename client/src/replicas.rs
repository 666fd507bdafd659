//! The replicas of a service: one connection to each, used in turn, with a circuit breaker per replica.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// A dead connection is noticed after the interval and the timeout together, also while idle;
/// without this a channel stays dead after a network partition.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the circuit of a failed replica stays open: calls skip it as long as there is another replica. Then one call
/// probes it.
const OPEN_FOR: Duration = Duration::from_secs(2);

/// The replicas, of which each call takes the next. Clones share connections and turns.
#[derive(Clone)]
pub struct Replicas {
    /// Those that calls may go to. Lookups of names change them, and each lookup that ends notifies.
    known: Arc<watch::Sender<Vec<Arc<Replica>>>>,
    turn: Arc<AtomicUsize>,
    /// Notified where there is no replica at all: one for each name.
    lookups_wanted: Arc<[Arc<Notify>]>,
}

/// One of them.
pub(crate) struct Replica {
    channel: Channel,
    open_until: Mutex<Option<Instant>>,
    /// Notified when it fails: the name that led here may lead elsewhere by now. A channel of the program has none.
    lookup_wanted: Option<Arc<Notify>>,
    dropped: CancellationToken,
}

impl Replicas {
    /// The replicas at the other ends of these channels.
    #[must_use]
    pub fn of(channels: impl IntoIterator<Item = Channel>) -> Self {
        Self::with_lookups(channels, [])
    }

    /// The replicas at the other ends of these channels, and those that lookups will add. A lookup is notified when it is wanted.
    pub(crate) fn with_lookups(
        channels: impl IntoIterator<Item = Channel>,
        lookups_wanted: impl IntoIterator<Item = Arc<Notify>>,
    ) -> Self {
        let known = channels.into_iter().map(|channel| Arc::new(Replica::new(channel, None)));
        Self {
            known: Arc::new(watch::Sender::new(known.collect())),
            turn: Arc::default(),
            lookups_wanted: lookups_wanted.into_iter().collect(),
        }
    }

    /// How many there are that calls may go to.
    #[must_use]
    pub fn count(&self) -> usize {
        self.known.borrow().len()
    }

    /// Whose turn it is. Where there is no replica, because no name has led to one yet, it waits for the end of a lookup,
    /// for so long at most.
    pub(crate) async fn next(&self, wait: Duration) -> Option<Arc<Replica>> {
        if let Some(replica) = self.in_turn() {
            return Some(replica);
        }
        let mut looked_up = self.known.subscribe();
        self.lookups_wanted.iter().for_each(|wanted| wanted.notify_one());
        drop(tokio::time::timeout(wait, looked_up.changed()).await);
        self.in_turn()
    }

    /// The next that did not fail just now, or the next at all where all did.
    fn in_turn(&self) -> Option<Arc<Replica>> {
        let known = self.known.borrow();
        if known.is_empty() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut in_turn = (0..known.len()).map(|n| &known[turn.wrapping_add(n) % known.len()]);
        Some(in_turn.find(|replica| replica.is_usable(now)).unwrap_or(&known[turn % known.len()]).clone())
    }

    pub(crate) fn add(&self, replica: Arc<Replica>) {
        self.known.send_modify(|known| known.push(replica));
    }

    /// Takes a replica out. Its connection is closed when its last call has ended; streams end at once.
    pub(crate) fn remove(&self, replica: &Arc<Replica>) {
        self.known.send_modify(|known| known.retain(|other| !Arc::ptr_eq(other, replica)));
        replica.dropped.cancel();
    }

    /// A lookup has ended, whatever it found.
    pub(crate) fn looked_up(&self) {
        self.known.send_modify(|_| {});
    }
}

/// An endpoint that gives up a connection attempt after a time, and a connection on which nothing comes, also an idle one.
#[must_use]
pub fn keep_alive(endpoint: Endpoint, connect_max: Duration) -> Endpoint {
    endpoint
        .connect_timeout(connect_max)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

impl Replica {
    pub(crate) fn new(channel: Channel, lookup_wanted: Option<Arc<Notify>>) -> Self {
        let (open_until, dropped) = Default::default();
        Self { channel, open_until, lookup_wanted, dropped }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Cancelled when the replica is no longer one.
    pub(crate) fn dropped(&self) -> CancellationToken {
        self.dropped.clone()
    }

    /// It did not answer, or could not.
    pub(crate) fn failed(&self) {
        self.open_circuit_until(Some(Instant::now() + OPEN_FOR));
        if let Some(wanted) = &self.lookup_wanted {
            wanted.notify_one();
        }
    }

    /// It answered, whatever it said.
    pub(crate) fn answered(&self) {
        self.open_circuit_until(None);
    }

    /// Whether calls may use it. After the cool-down one caller may probe the replica; the others keep skipping it,
    /// so that a replica that is still down costs one call an attempt.
    fn is_usable(&self, now: Instant) -> bool {
        let mut until = self.open_until.lock().unwrap_or_else(PoisonError::into_inner);
        match *until {
            None => true,
            Some(time) if time <= now => {
                *until = Some(now + OPEN_FOR);
                true
            }
            Some(_) => false,
        }
    }

    fn open_circuit_until(&self, time: Option<Instant>) {
        *self.open_until.lock().unwrap_or_else(PoisonError::into_inner) = time;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proto::agreement::CheckEligibilityRequest;
    use proto::agreement::eligibility_service_client::EligibilityServiceClient;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Leads to a port where nothing listens.
    fn channel(port: u16) -> Channel {
        let address = format!("http://127.0.0.1:{port}");
        keep_alive(Endpoint::from_shared(address).unwrap(), Duration::from_millis(100)).connect_lazy()
    }

    fn three() -> Replicas {
        Replicas::of([1, 2, 3].map(channel))
    }

    /// The places of the replicas whose turn it is in so many calls.
    fn turns(replicas: &Replicas, calls: usize) -> BTreeSet<usize> {
        let known = known(replicas);
        let place = |replica| known.iter().position(|other| Arc::ptr_eq(other, &replica)).unwrap();
        (0..calls).map(|_| place(replicas.in_turn().unwrap())).collect()
    }

    fn known(replicas: &Replicas) -> Vec<Arc<Replica>> {
        replicas.known.borrow().clone()
    }

    #[tokio::test]
    async fn calls_take_turns_and_skip_a_failed_replica_until_it_answers() {
        let replicas = three();
        assert_eq!(turns(&replicas, 3), [0, 1, 2].into());
        known(&replicas)[1].failed();
        assert_eq!(turns(&replicas, 30), [0, 2].into());
        known(&replicas)[0].failed();
        assert_eq!(turns(&replicas, 30), [2].into());
        known(&replicas)[1].answered();
        assert_eq!(turns(&replicas, 30), [1, 2].into());
    }

    #[tokio::test]
    async fn when_all_have_failed_each_is_asked_all_the_same() {
        let replicas = three();
        known(&replicas).iter().for_each(|replica| replica.failed());
        assert_eq!(turns(&replicas, 3), [0, 1, 2].into());
    }

    /// What stays keeps its circuit, and streams of what is dropped end.
    #[tokio::test]
    async fn replicas_come_and_go() {
        let replicas = three();
        let [first, second, third] = &known(&replicas)[..] else { panic!("there are three") };
        third.failed();
        replicas.remove(first);
        assert!(first.dropped().is_cancelled() && !second.dropped().is_cancelled());
        assert_eq!(turns(&replicas, 30), [0].into(), "the circuit of the other is open still");
        replicas.add(first.clone());
        assert_eq!(turns(&replicas, 30), [0, 2].into());
        assert_eq!(replicas.count(), 3);
    }

    #[tokio::test]
    async fn without_a_replica_a_call_waits_for_a_lookup_and_not_for_long() {
        let nameless = Replicas::with_lookups([], [Arc::default()]);
        assert!(nameless.next(Duration::ZERO).await.is_none());
        let lookup = async {
            nameless.lookups_wanted[0].notified().await;
            nameless.looked_up();
        };
        let (found, ()) = tokio::join!(nameless.next(Duration::from_secs(60)), lookup);
        assert!(found.is_none(), "it found nothing");
        let lookup = async {
            nameless.lookups_wanted[0].notified().await;
            nameless.add(known(&three())[0].clone());
        };
        let (found, ()) = tokio::join!(nameless.next(Duration::from_secs(60)), lookup);
        assert!(found.is_some());
    }

    #[tokio::test]
    async fn when_its_time_is_over_one_call_tries_and_not_all() {
        let replicas = three();
        let now = Instant::now();
        known(&replicas)[1].open_circuit_until(Some(now));
        assert!(known(&replicas)[1].is_usable(now));
        assert!(!known(&replicas)[1].is_usable(now));
        assert!(known(&replicas)[1].is_usable(now + OPEN_FOR));
    }

    #[tokio::test]
    async fn a_silent_idle_connection_is_given_up() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let replicas = Replicas::of([channel(silent.local_addr().unwrap().port())]);
        let mut gate = EligibilityServiceClient::new(replicas.in_turn().unwrap().channel());
        let asking = gate.check_eligibility(CheckEligibilityRequest::default());
        assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
        let (mut connection, _) = silent.accept().await.unwrap();
        let closing = async { while connection.read(&mut [0; 4096]).await.unwrap() > 0 {} };
        let soon = 2 * (KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT);
        tokio::time::timeout(soon, closing).await.unwrap();
    }
}
