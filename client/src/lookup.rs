//! The lookups of a name (service discovery by DNS): each address that the name has is a replica with one connection, for as
//! long as the name has it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, TryFutureExt};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tower::BoxError;

use crate::replicas::{Replica, Replicas};

/// How often a name is looked up. The system's resolver gives no time to live; within Kubernetes it is 5 seconds.
const INTERVAL: Duration = Duration::from_secs(2);

/// The shortest time between two lookups: a call that fails asks for one at once.
const INTERVAL_MIN: Duration = Duration::from_millis(250);

/// The addresses of a name that are used, each with a connection: more replicas than a database has use for.
const ADDRESSES_MAX: usize = 64;

/// A name that leads to replicas.
pub struct Name {
    host: String,
    port: u16,
    connect: Connect,
}

/// Connects to one of the addresses that a name has.
type Connect = Box<dyn Fn(IpAddr) -> BoxFuture<'static, Result<Channel, BoxError>> + Send + Sync>;

impl Name {
    /// A name, the port of the replicas, and what connects to one of its addresses: the program decides on TLS and time limits
    /// ([`keep_alive`](crate::keep_alive)).
    pub fn new<F, E>(
        host: impl Into<String>,
        port: u16,
        connect: impl Fn(IpAddr) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Channel, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let connect = move |ip| connect(ip).map_err(Into::into).boxed();
        Self { host: host.into(), port, connect: Box::new(connect) }
    }
}

impl Replicas {
    /// The replicas at the other ends of these channels, and those to which names lead. The program runs the lookups.
    #[must_use]
    pub fn open(
        channels: impl IntoIterator<Item = Channel>,
        names: impl IntoIterator<Item = Name>,
    ) -> (Self, Vec<Lookup>) {
        let names: Vec<_> = names.into_iter().map(|name| (name, Arc::<Notify>::default())).collect();
        let replicas = Self::with_lookups(channels, names.iter().map(|(_, wanted)| wanted.clone()));
        let lookups = names.into_iter().map(|(name, wanted)| Lookup::new(name, replicas.clone(), wanted));
        let lookups = lookups.collect();
        (replicas, lookups)
    }
}

/// The lookups of one name.
pub struct Lookup {
    name: Name,
    replicas: Replicas,
    /// Notified when a lookup is not to wait for its time.
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
    fn new(name: Name, replicas: Replicas, wanted: Arc<Notify>) -> Self {
        let (known, unreachable) = Default::default();
        Self { name, replicas, wanted, known, has_failed: false, left_out: 0, unreachable }
    }

    /// Looks the name up until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
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
    /// stay: DNS that is down must not take the service down, and Kubernetes gives no address while no replica is ready.
    async fn refresh(&mut self) {
        let why = match resolve(&self.name.host, self.name.port).await {
            Ok(found) if !found.is_empty() => {
                self.has_failed = false;
                self.follow(found).await;
                None
            }
            Ok(_) => Some("it has no address".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why
            && !std::mem::replace(&mut self.has_failed, true)
        {
            let (name, replicas) = (&self.name.host, self.known.len());
            tracing::warn!(
                name,
                why,
                replicas,
                "the name of a service cannot be looked up; its replicas stay"
            );
        }
        self.replicas.looked_up();
    }

    /// Drops the replicas whose addresses the name no longer has, and connects to new addresses. A new one gets calls once it
    /// is connected, so that no call pays for an address where nothing listens.
    async fn follow(&mut self, found: BTreeSet<IpAddr>) {
        let name = &self.name.host;
        let all = found.len();
        // The lowest, so that lookups in another order mean the same replicas.
        let used: BTreeSet<IpAddr> = found.into_iter().take(ADDRESSES_MAX).collect();
        let left_out = all - used.len();
        if std::mem::replace(&mut self.left_out, left_out) != left_out {
            tracing::warn!(name, left_out, "the name of a service has more addresses than are used");
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
        let mut connecting: FuturesUnordered<_> =
            new.map(|ip| (self.name.connect)(ip).map(move |connected| (ip, connected))).collect();
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
                    tracing::warn!(name, %ip, why = %error, "an address of the name of a service gets no calls yet");
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
    use tokio::net::TcpListener;
    use tonic::transport::Endpoint;

    use super::*;

    fn lookup(port: u16) -> Lookup {
        let connect = move |ip| async move {
            Endpoint::from_shared(format!("http://{ip}:{port}"))?.connect_timeout(LONG).connect().await
        };
        Replicas::open([], [Name::new("agreements.example", port, connect)]).1.remove(0)
    }

    /// Longer than it takes to connect.
    const LONG: Duration = Duration::from_secs(5);

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
        lookup.follow(loopback(1..=70)).await;
        assert_eq!((known(&lookup), lookup.left_out), (loopback(1..=64), 6));
        let before = lookup.known.clone();
        lookup.follow(loopback(64..=65)).await;
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
        lookup.follow(loopback(1..=2)).await;
        assert_eq!((known(&lookup), lookup.unreachable.clone()), (loopback([1]), loopback([2])));
        let _other = TcpListener::bind(("127.0.1.2", listener.local_addr().unwrap().port())).await.unwrap();
        lookup.follow(loopback(1..=2)).await;
        assert_eq!((known(&lookup), lookup.unreachable.len()), (loopback(1..=2), 0));
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_changes_nothing() {
        let listener = TcpListener::bind("127.0.1.1:0").await.unwrap();
        let mut lookup = lookup(listener.local_addr().unwrap().port());
        lookup.follow(loopback([1])).await;
        lookup.name.host = "invalid..name".into();
        lookup.refresh().await;
        assert!(lookup.has_failed);
        assert_eq!(known(&lookup), loopback([1]));
    }
}
