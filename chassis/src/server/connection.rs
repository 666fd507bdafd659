//! One connection: how long it may take to begin, how long a response may remain unread, and when it is closed. The frames on them are HTTP/2's concern.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::preface::Preface;
use super::refusal::{PeerLog, Refusal};
use super::{CONNECTION_AGE_MAX, CONNECTION_GRACE};

/// How long a client may take to read a response. One of several MiB, as long lists can be, takes that long over a
/// megabit a second. Such a client still answers HTTP/2's pings, so no other limit would notice.
const RESPONSE_READ_MAX: Duration = Duration::from_secs(60);

/// Calls without an identity that one connection may have open: an orchestrator's checks, watchers of the health of each
/// service, an operator who looks around. They are free of every other limit, so that no other connection can make a
/// check of health fail.
pub(super) const UNIDENTIFIED_CALLS_MAX: usize = 16;

/// The time for the answer to a call that stood still to be sent before its connection is closed.
const ANSWER_SENT: Duration = Duration::from_secs(1);

/// The age at which a connection is closed, whatever goes on on it: its renewal began half of that before.
const AGE_MAX: Duration = CONNECTION_AGE_MAX.saturating_add(CONNECTION_GRACE);

/// One connection, above TLS where there is TLS. Reading from it fails, with a line in the log, if it begins with
/// something else than HTTP/2's preface, if that does not arrive in time, or if a response is not read in time.
pub(super) struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    /// Until the whole preface has arrived.
    preface: Option<Preface>,
    peer: Peer,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When the connection is too old to go on.
    oldest: Instant,
    /// Until the line is written.
    log: Option<PeerLog>,
    _permit: OwnedSemaphorePermit,
}

/// The client at the other end of one connection, as its calls and the connection know it. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Peer(Arc<State>);

/// A handle to a peer whose connection may have ended.
pub(super) struct WeakPeer(Weak<State>);

#[derive(Debug)]
struct State {
    /// The number of the connection in this process.
    connection: u64,
    /// The responses that the client has not read yet, by number, with the time by which it must.
    due: Mutex<BTreeMap<u64, Instant>>,
    /// Calls without an identity that may be open.
    unidentified: Arc<Semaphore>,
    /// Whether a call on this connection had an identity.
    is_identified: AtomicBool,
    /// Cancelled when the connection has to be closed.
    closing: CancellationToken,
    /// Why it has to.
    cause: OnceLock<Refusal>,
}

/// A response that the client has not read yet; dropped when it has.
#[derive(Debug)]
pub(super) struct PendingResponse {
    peer: Peer,
    number: u64,
}

impl Connection {
    pub(super) fn new(
        stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
        deadline: Instant,
        peer: Peer,
        log: PeerLog,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let (preface, closing) = (Some(Preface::new(deadline)), Box::pin(peer.closing()));
        let oldest = Instant::now() + AGE_MAX;
        Self { stream, preface, peer, closing, oldest, log: Some(log), _permit: permit }
    }

    /// Fails if the connection has to be closed; these bytes have just been read, or its end.
    fn check(&mut self, context: &mut Context<'_>, read: &[u8], is_end: bool) -> Result<(), Refusal> {
        if let Some(preface) = &mut self.preface {
            match preface.has_arrived(context, read, is_end) {
                Ok(true) => self.preface = None,
                Ok(false) => {}
                // The port speaks TLS, and inside it something else was spoken.
                Err(Refusal::Tls) if matches!(self.stream, Either::Right(_)) => return Err(Refusal::NoHttp2),
                Err(other) => return Err(other),
            }
        }
        if self.closing.as_mut().poll(context).is_ready() {
            return Err(self.peer.cause());
        }
        // The answers to pings see to it that this is checked every now and then.
        if self.peer.is_overdue() {
            return Err(Refusal::Unread);
        }
        if self.oldest <= Instant::now() {
            return Err(Refusal::TooOld);
        }
        Ok(())
    }

    fn refuse(&mut self, cause: Refusal) -> io::Error {
        if let Some(log) = self.log.take() {
            log.refused(&cause);
        }
        io::Error::new(io::ErrorKind::TimedOut, cause)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let bytes = &buffer.filled()[before..];
        let is_end = match &read {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => bytes.is_empty() && buffer.capacity() > before,
            Poll::Ready(Err(_)) => true,
        };
        match self.check(context, bytes, is_end) {
            Ok(()) => read,
            Err(cause) => {
                // A read that fails has read nothing.
                buffer.set_filled(before);
                Poll::Ready(Err(self.refuse(cause)))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl Peer {
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(State {
            connection: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            due: Mutex::default(),
            unidentified: Arc::new(Semaphore::new(UNIDENTIFIED_CALLS_MAX)),
            is_identified: AtomicBool::default(),
            closing: CancellationToken::new(),
            cause: OnceLock::new(),
        }))
    }

    /// A response that has to be read in time.
    pub(super) fn begin(&self) -> PendingResponse {
        let mut due = self.due();
        let number = due.last_key_value().map_or(0, |(last, _)| last + 1);
        due.insert(number, Instant::now() + RESPONSE_READ_MAX);
        PendingResponse { peer: self.clone(), number }
    }

    /// The number of the connection in this process.
    pub(super) fn connection(&self) -> u64 {
        self.0.connection
    }

    /// A call without an identity, if the connection may have one more.
    pub(super) fn begin_unidentified(&self) -> Option<OwnedSemaphorePermit> {
        self.0.unidentified.clone().try_acquire_owned().ok()
    }

    /// A call on this connection has an identity: from now on the connection is closed for no other's sake.
    pub(super) fn set_identified(&self) {
        self.0.is_identified.store(true, Ordering::Relaxed);
    }

    /// Closes the connection at once.
    pub(super) fn close(&self, cause: Refusal) {
        // The first cause counts.
        let _ = self.0.cause.set(cause);
        self.0.closing.cancel();
    }

    /// Why the connection has to be closed.
    pub(super) fn cause(&self) -> Refusal {
        self.0.cause.get().cloned().unwrap_or(Refusal::StoodStill)
    }

    /// Resolves when the connection has to be closed.
    pub(super) fn closing(&self) -> WaitForCancellationFutureOwned {
        self.0.closing.clone().cancelled_owned()
    }

    /// A handle that does not keep it.
    pub(super) fn downgrade(&self) -> WeakPeer {
        WeakPeer(Arc::downgrade(&self.0))
    }

    /// Closes the connection after a call without an identity stood still, unless callers were identified on it. The
    /// answer to that call is sent first.
    pub(super) fn stood_still(&self) {
        if !self.is_identified() {
            let peer = self.clone();
            tokio::spawn(async move {
                sleep(ANSWER_SENT).await;
                peer.close(Refusal::StoodStill);
            });
        }
    }

    pub(super) fn is_identified(&self) -> bool {
        self.0.is_identified.load(Ordering::Relaxed)
    }

    fn is_overdue(&self) -> bool {
        // The oldest has the smallest number.
        self.due().first_key_value().is_some_and(|(_, due)| *due <= Instant::now())
    }

    fn due(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        // No code panics while it is locked.
        self.0.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WeakPeer {
    pub(super) fn upgrade(&self) -> Option<Peer> {
        self.0.upgrade().map(Peer)
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        self.peer.due().remove(&self.number);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use futures_util::{Stream, StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::runtime::Handle;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsConnector, client};
    use tokio_stream::wrappers::ReceiverStream;

    use super::super::accept::{PREFACE_MAX, accept};
    use super::super::preface::PREFACE;
    use super::*;

    /// Connections for the thread of the test.
    pub(in super::super) fn accept_here(
        incoming: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
        max: usize,
        tls: tls::Server,
    ) -> ReceiverStream<io::Result<Connection>> {
        accept(incoming, max, tls, &[Handle::current()]).remove(0)
    }
    use crate::auth::Auth;
    use crate::telemetry::Captured;
    use crate::tls;

    /// The lines of the log that are about connections that were closed.
    pub(in crate::server) fn refusals(log: &Captured) -> Vec<String> {
        log.lines().into_iter().filter(|line| line.contains("a connection was closed")).collect()
    }

    pub(in crate::server) fn plaintext() -> tls::Server {
        let address = "127.0.0.1:0".parse().unwrap();
        tls::Server::open(&tls::ServerSettings::default(), Auth::Insecure, address).unwrap()
    }

    pub(in crate::server) async fn ends() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        (client, server)
    }

    /// Both ends of a connection.
    async fn connection() -> (TcpStream, Connection) {
        let (client, server) = ends().await;
        let mut connections = accept_here(stream::iter([Ok(server)]), 1, plaintext());
        (client, connections.next().await.unwrap().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_begin_ends() {
        let (log, _guard) = Captured::begin();
        let (_client, mut connection) = connection().await;
        let began = Instant::now();
        let ended = tokio::time::timeout(PREFACE_MAX * 2, connection.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= PREFACE_MAX);
        let [line] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
        assert!(line.contains("preface did not arrive in time"), "{line}");
    }

    #[tokio::test]
    async fn a_connection_that_begins_with_something_else_is_logged_with_what_it_is() {
        for (words, cause) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..], "the peer spoke TLS to a plaintext port"),
            (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "the peer spoke HTTP/1.1"),
            (b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", "the peer began with something else than HTTP/2"),
            (b"PRI * HTTP/2.0\r\n", "the peer closed it in the middle of HTTP/2's connection preface"),
        ] {
            let (log, _guard) = Captured::begin();
            let (mut client, mut connection) = connection().await;
            client.write_all(words).await.unwrap();
            client.shutdown().await.unwrap();
            connection.read_to_end(&mut vec![]).await.unwrap_err();
            let [line] = &refusals(&log)[..] else { panic!("{cause}: {:#?}", log.lines()) };
            let peer = client.local_addr().unwrap().to_string();
            assert!(line.contains("WARN") && line.contains(cause) && line.contains(&peer), "{line}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_a_word_or_after_its_preface_is_not_logged() {
        for words in [&b""[..], PREFACE] {
            let (log, _guard) = Captured::begin();
            let (mut client, mut connection) = connection().await;
            client.write_all(words).await.unwrap();
            client.shutdown().await.unwrap();
            connection.read_to_end(&mut vec![]).await.unwrap();
            assert_eq!(refusals(&log), [""; 0]);
        }
    }

    #[tokio::test]
    async fn what_is_spoken_inside_tls_is_not_taken_for_a_plaintext_port() {
        let (log, _guard) = Captured::begin();
        let (mut client, mut server) = secured().await;
        client.write_all(b"\x16\x03\x01").await.unwrap();
        client.flush().await.unwrap();
        server.read_u8().await.unwrap_err();
        let [line] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
        assert!(line.contains("the peer began with something else than HTTP/2"), "{line}");
    }

    /// A server with a certificate, and who trusts it.
    pub(in crate::server) fn certified() -> (tls::Server, RootCertStore) {
        let folder = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let settings = tls::ServerSettings {
            tls_cert: Some(folder.path().join("tls.pem")),
            tls_key: Some(folder.path().join("tls.key")),
            ..tls::ServerSettings::default()
        };
        fs::write(folder.path().join("tls.pem"), own.cert.pem()).unwrap();
        fs::write(folder.path().join("tls.key"), own.signing_key.serialize_pem()).unwrap();
        let tls = tls::Server::open(&settings, Auth::Jwt, "127.0.0.1:0".parse().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        (tls, roots)
    }

    /// Both ends of a connection over TLS.
    async fn secured() -> (client::TlsStream<TcpStream>, Connection) {
        let (tls, roots) = certified();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());

        let (client, server) = ends().await;
        let mut connections = accept_here(stream::iter([Ok(server)]).chain(stream::pending()), 1, tls);
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = TlsConnector::from(config).connect(name, client);
        let (client, accepted) = tokio::join!(connecting, connections.next());
        (client.unwrap(), accepted.unwrap().unwrap())
    }

    #[tokio::test]
    async fn a_connection_over_tls_begins_with_the_whole_preface() {
        let (mut client, mut server) = secured().await;
        for byte in &b"PRI * HTTP/2.0"[..] {
            client.write_all(&[*byte]).await.unwrap();
            client.flush().await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), *byte);
        }
        tokio::time::pause();
        let ended = tokio::time::timeout(PREFACE_MAX * 2, server.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_has_begun_may_be_silent() {
        let (mut client, mut server) = secured().await;
        let mut bytes = *PREFACE;
        client.write_all(&bytes).await.unwrap();
        server.read_exact(&mut bytes).await.unwrap();
        tokio::time::pause();
        let silent = tokio::time::timeout(PREFACE_MAX * 2, server.read_u8()).await;
        assert!(silent.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_not_read_ends_the_connection() {
        let (log, _guard) = Captured::begin();
        let (client, mut connection) = connection().await;
        let mut bytes = *PREFACE;
        client.try_write(&bytes).unwrap();
        connection.read_exact(&mut bytes).await.unwrap();
        let peer = connection.connect_info();
        let slow = peer.begin();
        tokio::time::advance(RESPONSE_READ_MAX / 2).await;
        let quick = peer.begin();
        client.try_write(&bytes).unwrap();
        connection.read_exact(&mut bytes).await.unwrap();
        tokio::time::advance(RESPONSE_READ_MAX / 2).await;
        client.try_write(&bytes).unwrap();
        let ended = connection.read_exact(&mut bytes).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(slow);
        client.try_write(&bytes).unwrap();
        connection.read_exact(&mut bytes).await.unwrap();
        drop(quick);
        assert!(peer.due().is_empty());
        let [line] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
        assert!(line.contains("the peer did not read a response in time"), "{line}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_an_unidentified_call_stood_still_or_when_it_is_too_old() {
        for is_identified in [false, true] {
            let (log, _guard) = Captured::begin();
            let (client, mut connection) = connection().await;
            let mut bytes = *PREFACE;
            client.try_write(&bytes).unwrap();
            connection.read_exact(&mut bytes).await.unwrap();
            let (peer, began) = (connection.connect_info(), Instant::now());
            if is_identified {
                peer.set_identified();
            }
            peer.stood_still();
            let closed = tokio::time::timeout(ANSWER_SENT * 2, connection.read_u8()).await;
            assert_eq!(closed.is_ok(), !is_identified);
            if is_identified {
                tokio::time::advance(AGE_MAX).await;
                client.try_write(&bytes).unwrap();
            } else {
                assert!(began.elapsed() >= ANSWER_SENT);
            }
            let ended = connection.read_exact(&mut bytes).await.unwrap_err();
            assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
            let cause = if is_identified { "in time for its renewal" } else { "a call stood still" };
            let [line] = &refusals(&log)[..] else { panic!("{:#?}", log.lines()) };
            assert!(line.contains(cause), "{line}");
        }
    }
}
