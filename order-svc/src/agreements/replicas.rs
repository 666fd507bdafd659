//! The replicas of agreement-svc: a connection to each, used in turn, with a circuit breaker per replica.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chassis::auth::Auth;
use chassis::metrics::Metrics;
use chassis::telemetry::trace::Traced;
use chassis::tls::{self, Address};
use tonic::transport::Channel;

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
    all: Arc<[Replica]>,
    turn: Arc<AtomicUsize>,
    tls: tls::Client,
}

/// One of them.
pub(crate) struct Replica {
    channel: Traced<Channel>,
    open_until: Mutex<Option<Instant>>,
}

impl Replicas {
    /// Connects to each when it is first used and again whenever the connection is lost.
    ///
    /// # Errors
    /// Certificates that are missing or do not fit; tokens that would travel unencrypted.
    pub(crate) fn open(config: &Serve, deadline: Duration) -> anyhow::Result<Self> {
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
        let replica = |address: &Address| {
            let endpoint = tls::Client::endpoint(address)
                .connect_timeout(deadline)
                .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                .keep_alive_while_idle(true);
            let channel = Traced(client.connect_lazy(address, &endpoint));
            Replica { channel, open_until: Mutex::new(None) }
        };
        let all: Arc<[_]> = config.agreements.iter().map(replica).collect();
        ensure!(!all.is_empty(), "--agreements names no address");
        Ok(Self { all, turn: Arc::default(), tls: client })
    }

    /// Registers the metrics of the certificates.
    pub(crate) fn register_metrics(&self, metrics: &Metrics) {
        self.tls.register_metrics(metrics);
    }

    /// Whose turn it is: the next that did not fail just now, or the next at all where all did.
    pub(crate) fn next(&self) -> &Replica {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let in_turn = (0..self.all.len()).map(|n| &self.all[turn.wrapping_add(n) % self.all.len()]);
        in_turn.clone().find(|replica| replica.is_usable(now)).unwrap_or(&self.all[turn % self.all.len()])
    }
}

impl Replica {
    pub(crate) fn channel(&self) -> Traced<Channel> {
        self.channel.clone()
    }

    /// It did not answer, or could not.
    pub(crate) fn failed(&self) {
        self.open_circuit_until(Some(Instant::now() + OPEN_FOR));
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
        Replicas::open(&config, Duration::from_millis(100))
    }

    fn three() -> Replicas {
        let addresses = "http://127.0.0.1:1,http://127.0.0.1:2,https://127.0.0.1:3";
        replicas(&["--auth", "insecure", "--agreements", addresses]).unwrap()
    }

    /// The places of the replicas whose turn it is in so many calls.
    fn turns(replicas: &Replicas, calls: usize) -> BTreeSet<usize> {
        let place = |replica| replicas.all.iter().position(|other| std::ptr::eq(other, replica)).unwrap();
        (0..calls).map(|_| place(replicas.next())).collect()
    }

    #[tokio::test]
    async fn calls_take_turns_and_skip_a_failed_replica_until_it_answers() {
        let replicas = three();
        assert_eq!(turns(&replicas, 3), [0, 1, 2].into());
        replicas.all[1].failed();
        assert_eq!(turns(&replicas, 30), [0, 2].into());
        replicas.all[0].failed();
        assert_eq!(turns(&replicas, 30), [2].into());
        replicas.all[1].answered();
        assert_eq!(turns(&replicas, 30), [1, 2].into());
    }

    #[tokio::test]
    async fn when_all_have_failed_each_is_asked_all_the_same() {
        let replicas = three();
        replicas.all.iter().for_each(Replica::failed);
        assert_eq!(turns(&replicas, 3), [0, 1, 2].into());
    }

    #[tokio::test]
    async fn when_its_time_is_over_one_call_tries_and_not_all() {
        let replicas = three();
        let now = Instant::now();
        replicas.all[1].open_circuit_until(Some(now));
        assert!(replicas.all[1].is_usable(now));
        assert!(!replicas.all[1].is_usable(now));
        assert!(replicas.all[1].is_usable(now + OPEN_FOR));
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
        let mut gate = EligibilityServiceClient::new(replicas.next().channel());
        let asking = gate.check_eligibility(CheckEligibilityRequest::default());
        assert!(tokio::time::timeout(Duration::from_millis(100), asking).await.is_err());
        let (mut connection, _) = silent.accept().await.unwrap();
        let closing = async { while connection.read(&mut [0; 4096]).await.unwrap() > 0 {} };
        let soon = 2 * (KEEPALIVE_INTERVAL + KEEPALIVE_TIMEOUT);
        tokio::time::timeout(soon, closing).await.unwrap();
    }
}
