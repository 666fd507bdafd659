//! The look-ups of a name in `--agreements` (service discovery by DNS): each address that the name has is a replica with one
//! connection, for as long as the name has it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use chassis::tls::{self, Address};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::replicas::{Replica, Replicas, with_timeouts};

/// How often a name is looked up. The system's resolver gives no time to live; within Kubernetes it is 5 seconds.
const INTERVAL: Duration = Duration::from_secs(2);

/// The shortest time between two look-ups: a call that fails asks for one at once.
const INTERVAL_MIN: Duration = Duration::from_millis(250);

/// The addresses of a name that are used, each with a connection: more replicas than a database has use for.
const ADDRESSES_MAX: usize = 64;

/// The look-ups of one name.
pub(crate) struct Lookup {
    address: Address,
    tls: tls::Client,
    connect_max: Duration,
    replicas: Replicas,
    /// Notified when a look-up is not to wait for its time.
    wanted: Arc<Notify>,
    /// The replicas of this name.
    known: BTreeMap<IpAddr, Arc<Replica>>,
    /// What was logged already: that the name cannot be looked up, how many addresses are left out, and those to which
    /// there is no connection.
    has_failed: bool,
    left_out: usize,
    unreachable: BTreeSet<IpAddr>,
}

impl Lookup {
    pub(super) fn new(
        address: Address,
        tls: tls::Client,
        connect_max: Duration,
        replicas: Replicas,
        wanted: Arc<Notify>,
    ) -> Self {
        let (known, unreachable) = Default::default();
        Self {
            address,
            tls,
            connect_max,
            replicas,
            wanted,
            known,
            has_failed: false,
            left_out: 0,
            unreachable,
        }
    }

    /// Looks the name up until `stop` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.refresh() => {}
            }
            let pause = async {
                sleep(INTERVAL_MIN).await;
                drop(timeout(INTERVAL - INTERVAL_MIN, self.wanted.notified()).await);
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = pause => {}
            }
        }
    }

    /// Looks the name up once, and follows what it says. Without an answer, or with one that names no address, the replicas
    /// stay: DNS that is down must not take agreement-svc down, and Kubernetes gives no address while no replica is ready.
    async fn refresh(&mut self) {
        let name = self.address.to_string();
        let why = match resolve(self.address.bare_host(), self.address.port()).await {
            Ok(found) if !found.is_empty() => {
                self.has_failed = false;
                self.follow(&name, found).await;
                None
            }
            Ok(_) => Some("it has no address".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why
            && !std::mem::replace(&mut self.has_failed, true)
        {
            let replicas = self.known.len();
            tracing::warn!(
                name,
                why,
                replicas,
                "a name in --agreements cannot be looked up; its replicas stay"
            );
        }
        self.replicas.looked_up();
    }

    /// Drops the replicas whose addresses the name no longer has, and connects to new addresses. A new one gets calls once it
    /// is connected, so that no call pays for an address where nothing listens.
    async fn follow(&mut self, name: &str, found: BTreeSet<IpAddr>) {
        let all = found.len();
        // The lowest, so that look-ups in another order mean the same replicas.
        let used: BTreeSet<IpAddr> = found.into_iter().take(ADDRESSES_MAX).collect();
        let left_out = all - used.len();
        if std::mem::replace(&mut self.left_out, left_out) != left_out {
            tracing::warn!(name, left_out, "a name in --agreements has more addresses than are used");
        }
        self.unreachable.retain(|ip| used.contains(ip));
        let is_vanished = |ip: &IpAddr| !used.contains(ip);
        let vanished: Vec<IpAddr> = self.known.keys().copied().filter(is_vanished).collect();
        for ip in vanished {
            if let Some(replica) = self.known.remove(&ip) {
                self.replicas.remove(&replica);
                tracing::info!(name, %ip, "the replica was dropped: its address is no longer one of the name's");
            }
        }
        let new = used.iter().copied().filter(|ip| !self.known.contains_key(ip));
        let mut connecting: FuturesUnordered<_> = new
            .map(|ip| {
                let endpoint = with_timeouts(tls::Client::endpoint_at(&self.address, ip), self.connect_max);
                let (tls, address) = (self.tls.clone(), self.address.clone());
                async move { (ip, tls.connect(&address, &endpoint).await) }
            })
            .collect();
        while let Some((ip, connected)) = connecting.next().await {
            match connected {
                Ok(channel) => {
                    let replica = Arc::new(Replica::new(channel, Some(self.wanted.clone())));
                    self.replicas.add(replica.clone());
                    self.known.insert(ip, replica);
                    self.unreachable.remove(&ip);
                    tracing::info!(name, %ip, "the replica is connected");
                }
                Err(error) if self.unreachable.insert(ip) => {
                    let why = format!("{error:#}");
                    tracing::warn!(name, %ip, why, "an address of a name in --agreements gets no calls yet");
                }
                Err(_) => {}
            }
        }
    }
}

/// The addresses that the system's resolver finds for a name.
async fn resolve(host: &str, port: u16) -> io::Result<BTreeSet<IpAddr>> {
    let (answer, answered) = oneshot::channel();
    let name = (host.to_owned(), port);
    // A thread of its own and not one of the runtime's: the resolver may wait for long, and the end of the process would
    // wait with it.
    std::thread::Builder::new().name("lookup".into()).spawn(move || {
        let found = name.to_socket_addrs().map(|all| all.map(|address| address.ip()).collect());
        // Nothing waits for it where the process ends.
        drop(answer.send(found));
    })?;
    answered.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{Cli, Command};

    fn lookup(port: u16) -> Lookup {
        let address = format!("http://agreements.example:{port}");
        let settings = ["order-svc", "serve", "--database", "sqlite:x", "--auth", "insecure", "--agreements"];
        let cli = Cli::try_parse_from(settings.into_iter().chain([address.as_str()])).unwrap();
        let Command::Serve(config) = cli.command else { panic!("the command is serve") };
        Replicas::open(&config, Duration::from_secs(5)).unwrap().1.remove(0)
    }

    fn loopback(hosts: impl IntoIterator<Item = u8>) -> BTreeSet<IpAddr> {
        hosts.into_iter().map(|host| [127, 0, 1, host].into()).collect()
    }

    fn known(lookup: &Lookup) -> BTreeSet<IpAddr> {
        lookup.known.keys().copied().collect()
    }

    #[tokio::test]
    async fn the_lowest_addresses_are_used_and_what_stays_keeps_its_connection() {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let mut lookup = lookup(listener.local_addr().unwrap().port());
        lookup.follow("a name", loopback(1..=70)).await;
        assert_eq!((known(&lookup), lookup.left_out), (loopback(1..=64), 6));
        let before = lookup.known.clone();
        lookup.follow("a name", loopback(64..=65)).await;
        assert_eq!((known(&lookup), lookup.left_out), (loopback(64..=65), 0));
        let stayed: IpAddr = [127, 0, 1, 64].into();
        assert!(Arc::ptr_eq(&before[&stayed], &lookup.known[&stayed]));
        let has_ended = |replica: &Arc<Replica>| replica.dropped().is_cancelled();
        assert_eq!(before.values().filter(|replica| has_ended(replica)).count(), 63);
    }

    #[tokio::test]
    async fn an_address_where_nothing_listens_gets_no_calls() {
        let listener = TcpListener::bind("127.0.1.1:0").await.unwrap();
        let mut lookup = lookup(listener.local_addr().unwrap().port());
        lookup.follow("a name", loopback(1..=2)).await;
        assert_eq!((known(&lookup), lookup.unreachable.clone()), (loopback([1]), loopback([2])));
        let _other = TcpListener::bind(("127.0.1.2", listener.local_addr().unwrap().port())).await.unwrap();
        lookup.follow("a name", loopback(1..=2)).await;
        assert_eq!((known(&lookup), lookup.unreachable.len()), (loopback(1..=2), 0));
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_changes_nothing() {
        let listener = TcpListener::bind("127.0.1.1:0").await.unwrap();
        let mut lookup = lookup(listener.local_addr().unwrap().port());
        lookup.follow("a name", loopback([1])).await;
        lookup.address = "http://invalid..name:1".parse().unwrap();
        lookup.refresh().await;
        assert!(lookup.has_failed);
        assert_eq!(known(&lookup), loopback([1]));
    }
}
