//! One connection: how long it may take to begin, how long a response may remain unread, and when it is closed. The frames on them are HTTP/2's concern.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{CONNECTION_AGE_MAX, CONNECTION_GRACE};

/// The preface that every HTTP/2 client sends first.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

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

/// One connection, above TLS where there is TLS. Reading from it fails if its preface does not arrive in time, or if a
/// response is not read in time.
pub(super) struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    /// Until the whole preface has arrived.
    preface: Option<PrefaceDeadline>,
    peer: Peer,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    /// When the connection is too old to go on.
    oldest: Instant,
    _permit: OwnedSemaphorePermit,
}

struct PrefaceDeadline {
    passed: Pin<Box<Sleep>>,
    bytes_missing: usize,
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
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let passed = Box::pin(sleep_until(deadline));
        let preface = Some(PrefaceDeadline { passed, bytes_missing: PREFACE_BYTES });
        let closing = Box::pin(peer.closing());
        Self { stream, preface, peer, closing, oldest: Instant::now() + AGE_MAX, _permit: permit }
    }

    /// Fails if the connection has to be closed; `read` bytes have just been read.
    fn check(&mut self, context: &mut Context<'_>, read: usize) -> io::Result<()> {
        let too_late = |why| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        if let Some(preface) = &mut self.preface {
            preface.bytes_missing = preface.bytes_missing.saturating_sub(read);
            if preface.bytes_missing == 0 {
                self.preface = None;
            } else if preface.passed.as_mut().poll(context).is_ready() {
                return too_late("the connection preface did not arrive in time");
            }
        }
        if self.closing.as_mut().poll(context).is_ready() {
            return too_late("no caller was identified on it, and it stood still or others need its place");
        }
        // The answers to pings see to it that this is checked every now and then.
        if self.peer.is_overdue() {
            return too_late("a response was not read in time");
        }
        if self.oldest <= Instant::now() {
            return too_late("its calls did not end in time for its renewal");
        }
        Ok(())
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
        self.check(context, buffer.filled().len() - before)?;
        read
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
    pub(super) fn close(&self) {
        self.0.closing.cancel();
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
                peer.close();
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

    use futures_util::{StreamExt, stream};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsConnector, client};

    use super::super::accept::{PREFACE_MAX, accept};
    use super::*;
    use crate::auth::Auth;
    use crate::tls;

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
        let mut connections = accept(stream::iter([Ok(server)]), 1, plaintext());
        (client, connections.next().await.unwrap().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_begin_ends() {
        let (_client, mut connection) = connection().await;
        let began = Instant::now();
        let ended = tokio::time::timeout(PREFACE_MAX * 2, connection.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= PREFACE_MAX);
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
        let mut connections = accept(stream::iter([Ok(server)]).chain(stream::pending()), 1, tls);
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
        let mut bytes = [0; PREFACE_BYTES];
        client.write_all(&bytes).await.unwrap();
        server.read_exact(&mut bytes).await.unwrap();
        tokio::time::pause();
        let silent = tokio::time::timeout(PREFACE_MAX * 2, server.read_u8()).await;
        assert!(silent.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_is_not_read_ends_the_connection() {
        let (client, mut connection) = connection().await;
        let mut bytes = [0; PREFACE_BYTES];
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
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_an_unidentified_call_stood_still_or_when_it_is_too_old() {
        for is_identified in [false, true] {
            let (client, mut connection) = connection().await;
            let mut bytes = [0; PREFACE_BYTES];
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
        }
    }
}
