//! The replicas of agreement-svc: one connection to each, used in turn, with a circuit breaker per replica.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chassis::auth::Auth;
use chassis::metrics::Metrics;
use chassis::telemetry::trace::Traced;
use chassis::tls::{self, Address};
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::lookup::Lookup;
use crate::config::Serve;

/// A dead connection is noticed after the interval and the timeout together, also while idle;
/// without this a channel stays dead after a network partition.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the circuit of a failed replica stays open: calls skip it as long as there is another replica. Then one call
/// probes it.
const OPEN_FOR: Duration = Duration::from_secs(2);

/// The replicas, of which each call takes the next. Clones share connections and turns.
#[derive(Clone)]
pub(crate) struct Replicas {
    /// Those that calls may go to. Look-ups of names change them, and each look-up that ends notifies.
    known: Arc<watch::Sender<Vec<Arc<Replica>>>>,
    turn: Arc<AtomicUsize>,
    tls: tls::Client,
    /// Notified where there is no replica at all: one for each name.
    lookups_wanted: Arc<[Arc<Notify>]>,
    count: IntGauge,
}

/// One of them.
pub(crate) struct Replica {
    channel: Traced<Channel>,
    open_until: Mutex<Option<Instant>>,
    /// Notified when it fails: the name that led here may lead elsewhere by now. An IP address has none.
    lookup_wanted: Option<Arc<Notify>>,
    dropped: CancellationToken,
}

impl Replicas {
    /// Connects to each IP address when it is first used and again whenever the connection is lost. Names get their replicas
    /// from look-ups, which the caller runs.
    ///
    /// # Errors
    /// Certificates that are missing or do not fit; tokens that would travel unencrypted.
    pub(crate) fn open(config: &Serve, deadline: Duration) -> anyhow::Result<(Self, Vec<Lookup>)> {
        let settings = config.agreements_tls();
        let is_readable_on_the_way = |address: &&Address| !address.is_private();
        if let Some(address) = config.agreements.iter().find(is_readable_on_the_way)
            && config.identity.auth == Auth::Jwt
            && !config.tls.plaintext
        {
            bail!(
                "tokens would travel to --agreements {address} unencrypted: use https, or, where something else \
                 encrypts, --plaintext"
            );
        }
        let client = tls::Client::open(&settings, &config.agreements)
            .context("--agreements-ca, --agreements-cert, --agreements-key")?;
        ensure!(!config.agreements.is_empty(), "--agreements names no address");
        let (ips, names): (Vec<_>, Vec<_>) =
            config.agreements.iter().partition(|address| address.ip().is_some());
        let replicas = Self {
            known: Arc::new(watch::Sender::default()),
            turn: Arc::default(),
            tls: client.clone(),
            lookups_wanted: names.iter().map(|_| Arc::default()).collect(),
            count: IntGauge::new(
                "agreements_replicas",
                "Replicas of agreement-svc that calls may go to: IP addresses in --agreements, and those of its names.",
            )?,
        };
        for address in ips {
            let endpoint = with_timeouts(tls::Client::endpoint(address), deadline);
            replicas.add(Arc::new(Replica::new(client.connect_lazy(address, &endpoint), None)));
        }
        let lookups = names.into_iter().zip(&*replicas.lookups_wanted).map(|(address, wanted)| {
            Lookup::new(address.clone(), client.clone(), deadline, replicas.clone(), wanted.clone())
        });
        let lookups = lookups.collect();
        Ok((replicas, lookups))
    }

    /// Registers the metrics of the replicas and of the certificates.
    ///
    /// # Errors
    /// They are registered already.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) -> Result<(), prometheus::Error> {
        self.tls.register_metrics(metrics);
        metrics.register(self.count.clone())
    }

    /// Whose turn it is. Where there is no replica, because no name has led to one yet, it waits for the end of a look-up,
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

    pub(super) fn add(&self, replica: Arc<Replica>) {
        self.known.send_modify(|known| known.push(replica));
        self.recount();
    }

    /// Takes a replica out. Its connection is closed when its last call has ended; streams end at once.
    pub(super) fn remove(&self, replica: &Arc<Replica>) {
        self.known.send_modify(|known| known.retain(|other| !Arc::ptr_eq(other, replica)));
        replica.dropped.cancel();
        self.recount();
    }

    /// A look-up has ended, whatever it found.
    pub(super) fn looked_up(&self) {
        self.known.send_modify(|_| {});
    }

    fn recount(&self) {
        self.count.set(self.known.borrow().len().try_into().unwrap_or(i64::MAX));
    }
}

/// An endpoint with the time limits of every connection to agreement-svc.
pub(super) fn with_timeouts(endpoint: Endpoint, connect_max: Duration) -> Endpoint {
    endpoint
        .connect_timeout(connect_max)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
}

impl Replica {
    pub(super) fn new(channel: Channel, lookup_wanted: Option<Arc<Notify>>) -> Self {
        let (open_until, dropped) = Default::default();
        Self { channel: Traced(channel), open_until, lookup_wanted, dropped }
    }

    pub(crate) fn channel(&self) -> Traced<Channel> {
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

    use clap::Parser;
    use proto::agreement::CheckEligibilityRequest;
    use proto::agreement::eligibility_service_client::EligibilityServiceClient;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::config::{Cli, Command};

    fn replicas(settings: &[&str]) -> anyhow::Result<Replicas> {
        let fixed = ["order-svc", "serve", "--database", "sqlite:x"];
        let cli = Cli::try_parse_from(fixed.iter().chain(settings))?;
        let Command::Serve(config) = cli.command else { panic!("the command is serve") };
        Replicas::open(&config, Duration::from_millis(100)).map(|(replicas, _)| replicas)
    }

    fn three() -> Replicas {
        let addresses = "http://127.0.0.1:1,http://127.0.0.1:2,https://127.0.0.1:3";
        replicas(&["--auth", "insecure", "--agreements", addresses]).unwrap()
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
        assert_eq!(replicas.count.get(), 3);
    }

    #[tokio::test]
    async fn without_a_replica_a_call_waits_for_a_lookup_and_not_for_long() {
        let nameless =
            replicas(&["--auth", "insecure", "--agreements", "http://agreements.invalid:1"]).unwrap();
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
    async fn invalid_addresses_and_unencrypted_tokens_are_refused() {
        let jwt = |address| ["--auth", "jwt", "--jwks", "x", "--agreements", address];
        for (settings, complaint) in [
            (&["--auth", "insecure", "--agreements", "localhost:50051"][..], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "ftp://localhost:50051"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "http://localhost"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "http://localhost:1/path"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements", "http://localhost:1,"], "http://HOST:PORT"),
            (&["--auth", "insecure", "--agreements-ca", "ca.pem"], "https"),
            (&["--auth", "insecure", "--agreements-cert", "cert.pem"], "--agreements-key"),
            (&jwt("http://agreements:50051"), "--plaintext"),
            (&jwt("http://10.0.0.1:50051"), "--plaintext"),
        ] {
            let why = format!("{:#}", replicas(settings).err().unwrap());
            assert!(why.contains(complaint), "{settings:?}: {why}");
        }
        for address in ["http://localhost:1", "http://[::1]:1", "http://127.0.0.1:1/", "https://agreements:1"]
        {
            assert!(replicas(&jwt(address)).is_ok(), "{address}");
        }
        let meshed = [&jwt("http://agreements:1")[..], &["--plaintext"]].concat();
        assert!(replicas(&meshed).is_ok());
    }

    #[tokio::test]
    async fn a_silent_idle_connection_is_given_up() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", silent.local_addr().unwrap());
        let replicas = replicas(&["--auth", "insecure", "--agreements", &address]).unwrap();
        let mut gate = EligibilityServiceClient::new(replicas.in_turn().unwrap().channel());
        let asking = gate.check_eligibility(CheckEligibilityRequest::default());
        assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
        let (mut connection, _) = silent.accept().await.unwrap();
        let closing = async { while connection.read(&mut [0; 4096]).await.unwrap() > 0 {} };
        let soon = 2 * (KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT);
        tokio::time::timeout(soon, closing).await.unwrap();
    }
}
