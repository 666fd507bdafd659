//! The connections of one server as they begin: how many there may be, which ones make room for others, the TLS handshake,
//! and the refusal of those that find no room or fail in it.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rlimit::Resource;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;

use super::connection::{Connection, Peer, WeakPeer};
use super::preface::TLS_HANDSHAKE;
use super::refusal::{PeerLog, Refusal, RefusalLog};
use crate::tls;

/// Connections at a time. An idle one costs some tens of KiB in the process and as much in the system. More clients need
/// more replicas.
const CONNECTIONS_MAX: usize = 4096;

/// File descriptors that are not for connections: those of the database, mails, logs and the program.
const DESCRIPTORS_KEPT: u64 = 64;

/// How long the TLS handshake and HTTP/2's connection preface may take. It is a few round trips. HTTP/2 supervises the
/// connection from then on.
pub(super) const PREFACE_MAX: Duration = Duration::from_secs(10);

/// The pause after a connection could not be accepted: some other connection has to end first, and trying at once would
/// use up a processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a new connection waits for the place of one that is closed for it.
const ROOM_MAX: Duration = Duration::from_secs(1);

/// Connections that wait to be served, which takes no time.
const READY_MAX: usize = 64;

/// The number of connections that this process can hold beside those to its pages, and should.
pub(super) fn connections_max(to_pages: usize) -> usize {
    let descriptors = Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    let connections = usize::try_from(descriptors.saturating_sub(DESCRIPTORS_KEPT)).unwrap_or(usize::MAX);
    connections.saturating_sub(to_pages).clamp(1, CONNECTIONS_MAX)
}

/// Accepts connections, and shakes hands where there is TLS. A slow handshake delays no other connection. For a connection
/// beyond `max` the oldest one on which no caller was identified is closed; if there is none, the new one is closed at
/// once, so that its client tries another replica, or later. The threads get connections in turn, each its own stream, which
/// never ends: an error that keeps a connection from being accepted passes.
pub(super) fn accept(
    incoming: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
    max: usize,
    tls: tls::Server,
    threads: &[Handle],
) -> Vec<ReceiverStream<io::Result<Connection>>> {
    let (ready, connections): (Vec<_>, Vec<_>) = threads.iter().map(|_| mpsc::channel(READY_MAX)).unzip();
    let is_alone = threads.len() == 1;
    let servers: Vec<_> = threads.iter().cloned().zip(ready).collect();
    let mut servers = servers.into_iter().cycle();
    tokio::spawn(async move {
        let mut incoming = pin!(incoming);
        let (permits, mut open) = (Arc::new(Semaphore::new(max)), VecDeque::new());
        let (log, tls, mut is_full) = (Arc::new(RefusalLog::default()), Arc::new(tls), false);
        loop {
            let Some((thread, ready)) = servers.next() else { return };
            let accepted = tokio::select! {
                () = ready.closed() => return,
                accepted = incoming.next() => accepted,
            };
            let stream = match accepted {
                Some(Ok(stream)) => stream,
                // The client closed that connection itself.
                Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                None => return,
            };
            let room = permits.clone().try_acquire_owned().ok();
            if room.is_none() && !is_full {
                tracing::warn!(
                    max,
                    "there are too many connections; those without an identified caller are closed"
                );
            }
            is_full = room.is_none();
            let peer_log = PeerLog::new(log.clone(), &stream);
            if is_full && !make_room(&mut open) {
                peer_log.refused(&Refusal::NoRoom);
                continue;
            }
            let begin = Begin { stream, peer: Peer::new(), log: peer_log, ready };
            remember(&mut open, &begin.peer, max);
            let (permits, tls) = (permits.clone(), tls.clone());
            match room {
                Some(permit) if tls.acceptor().is_none() && is_alone => begin.run(permit, None).await,
                room => drop(thread.spawn(async move {
                    let Ok(begin) = begin.moved_here() else { return };
                    let room = match room {
                        Some(permit) => permit,
                        // The other connection takes a moment to close. This one may have to make room meanwhile.
                        None => {
                            let permit = tokio::select! {
                                () = begin.peer.closing() => return begin.log.refused(&begin.peer.cause()),
                                permit = timeout(ROOM_MAX, permits.acquire_owned()) => permit,
                            };
                            let Ok(Ok(permit)) = permit else { return begin.log.refused(&Refusal::NoRoom) };
                            permit
                        }
                    };
                    begin.run(room, tls.acceptor()).await;
                })),
            }
        }
    });
    connections.into_iter().map(ReceiverStream::new).collect()
}

/// Closes the oldest connection on which no caller was identified; false if there is none.
fn make_room(open: &mut VecDeque<WeakPeer>) -> bool {
    while let Some(oldest) = open.pop_front() {
        if let Some(peer) = oldest.upgrade()
            && !peer.is_identified()
        {
            peer.close(Refusal::MadeRoom);
            return true;
        }
    }
    false
}

/// Remembers a connection that may have to make room. Those that have ended are forgotten when there are too many.
fn remember(open: &mut VecDeque<WeakPeer>, peer: &Peer, max: usize) {
    if open.len() >= max.saturating_mul(2) {
        open.retain(|one| one.upgrade().is_some());
    }
    open.push_back(peer.downgrade());
}

/// A connection that begins.
struct Begin {
    stream: TcpStream,
    peer: Peer,
    log: PeerLog,
    ready: mpsc::Sender<io::Result<Connection>>,
}

impl Begin {
    /// Has this thread's runtime notice what happens on the connection.
    fn moved_here(self) -> io::Result<Self> {
        Ok(Self { stream: TcpStream::from_std(self.stream.into_std()?)?, ..self })
    }

    async fn run(self, permit: OwnedSemaphorePermit, tls: Option<TlsAcceptor>) {
        let Self { stream, peer, log, ready } = self;
        let deadline = Instant::now() + PREFACE_MAX;
        let stream = match tls {
            None => Either::Left(stream),
            Some(acceptor) => {
                let shaken = tokio::select! {
                    () = peer.closing() => Err(peer.cause()),
                    shaken = timeout_at(deadline, shake_hands(&acceptor, stream)) => {
                        shaken.unwrap_or(Err(Refusal::SlowHandshake))
                    }
                };
                match shaken {
                    Ok(Some(stream)) => Either::Right(Box::new(stream)),
                    Ok(None) => return,
                    Err(cause) => return log.refused(&cause),
                }
            }
        };
        let _ = ready.send(Ok(Connection::new(stream, deadline, peer, log, permit))).await;
    }
}

/// Shakes hands; `None` if the peer says nothing and goes, as a check of the port does.
async fn shake_hands(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> Result<Option<TlsStream<TcpStream>>, Refusal> {
    let mut first = [0];
    let Ok(1..) = stream.peek(&mut first).await else { return Ok(None) };
    // What is no TLS is answered by it, too, as far as it can be.
    acceptor.accept(stream).await.map(Some).map_err(|error| match error.kind() {
        _ if first != [TLS_HANDSHAKE] => Refusal::NoTls,
        io::ErrorKind::UnexpectedEof => Refusal::BrokenHandshake,
        _ => Refusal::Handshake(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::transport::server::Connected;

    use super::super::connection::tests::{accept_here, certified, ends, plaintext, refusals};
    use super::super::refusal::REFUSAL_LOG_INTERVAL;
    use super::*;
    use crate::telemetry::Captured;

    #[tokio::test(start_paused = true)]
    async fn an_error_of_accepting_is_waited_out() {
        const TRIES: u32 = 20;
        const TOO_MANY_OPEN_FILES: i32 = 24;
        let failures = (0..TRIES).map(|_| Err(io::Error::from_raw_os_error(TOO_MANY_OPEN_FILES)));
        let began = Instant::now();
        let (client, server) = ends().await;
        let mut connections = accept_here(stream::iter(failures.chain([Ok(server)])), 1, plaintext());
        assert!(connections.next().await.unwrap().is_ok());
        assert!(began.elapsed() >= ACCEPT_PAUSE * TRIES);
        drop(client);
    }

    #[tokio::test]
    async fn a_connection_without_an_identified_caller_makes_room_for_a_new_one() {
        let (log, _guard) = Captured::begin();
        let (sender, incoming) = mpsc::channel(1);
        let mut connections = accept_here(ReceiverStream::new(incoming), 2, plaintext());
        let mut clients = vec![];
        let mut open = vec![];
        for _ in 0..2 {
            let (client, server) = ends().await;
            sender.send(Ok(server)).await.unwrap();
            open.push(connections.next().await.unwrap().unwrap());
            clients.push(client);
        }
        open[0].connect_info().set_identified();
        let second = open.pop().unwrap();
        // The server's end notices by itself, without a word of the client.
        let closes = tokio::spawn(async move {
            let mut second = second;
            second.read_u8().await.unwrap_err().kind()
        });
        let (_third, server) = ends().await;
        sender.send(Ok(server)).await.unwrap();
        let third = connections.next().await.unwrap().unwrap();
        assert_eq!(closes.await.unwrap(), io::ErrorKind::TimedOut);

        // Where every connection has an identified caller, the new one is closed.
        third.connect_info().set_identified();
        let (mut fourth, server) = ends().await;
        sender.send(Ok(server)).await.unwrap();
        assert!(fourth.read_u8().await.is_err());
        assert_eq!(open.len(), 1);
        let [made_room, no_room] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
        assert!(made_room.contains("others needed its place"), "{made_room}");
        let peer = fourth.local_addr().unwrap().to_string();
        assert!(no_room.contains("there was no room for it") && no_room.contains(&peer), "{no_room}");
    }

    #[tokio::test]
    async fn a_refused_handshake_is_logged_with_its_cause_once_in_an_interval() {
        let (log, _guard) = Captured::begin();
        let (sender, incoming) = mpsc::channel(1);
        let (tls, _) = certified();
        let connections = accept_here(ReceiverStream::new(incoming), 8, tls);
        let speak = async |words: &[u8]| {
            let (mut client, server) = ends().await;
            sender.send(Ok(server)).await.unwrap();
            client.write_all(words).await.unwrap();
            client.shutdown().await.unwrap();
            drop(client.read_to_end(&mut vec![]).await);
            client.local_addr().unwrap().to_string()
        };
        // A check of the port is no handshake.
        speak(b"").await;
        assert_eq!(refusals(&log), [""; 0]);
        let mut peers = vec![];
        for _ in 0..3 {
            peers.push(speak(b"GET / HTTP/1.1\r\n\r\n").await);
        }
        let [line] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
        assert!(line.contains("WARN") && line.contains("the peer spoke no TLS to a TLS port"), "{line}");
        assert!(line.contains(&peers[0]), "{peers:?}: {line}");
        // Each kind has lines of its own: the first bytes of a handshake, and one that cannot be read.
        speak(b"\x16\x03\x01\x02\x00\x01").await;
        speak(b"\x16\x03\x01\x00\x04\xff\x00\x00\x00").await;
        let [_, broken, failed] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
        assert!(broken.contains("in the middle of the TLS handshake"), "{broken}");
        assert!(failed.contains("the TLS handshake failed: "), "{failed}");
        tokio::time::pause();
        tokio::time::advance(REFUSAL_LOG_INTERVAL).await;
        tokio::time::resume();
        speak(b"GET / HTTP/1.1\r\n\r\n").await;
        let lines = refusals(&log);
        assert!(lines.len() == 4 && lines[3].contains("suppressed=2"), "{lines:#?}");
        drop(connections);
    }

    #[tokio::test]
    async fn a_handshake_that_goes_on_for_too_long_is_logged() {
        let (log, _guard) = Captured::begin();
        let (mut client, server) = ends().await;
        let connections = accept_here(stream::iter([Ok(server)]).chain(stream::pending()), 1, certified().0);
        tokio::time::pause();
        drop(client.read_to_end(&mut vec![]).await);
        let [line] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
        assert!(line.contains("the TLS handshake took too long"), "{line}");
        drop(connections);
    }
}
