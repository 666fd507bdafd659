//! The connections of one server: how many there may be, how long one may take to begin, and how long a response may
//! remain unread. The frames on them are HTTP/2's concern.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use rlimit::Resource;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::either::Either;
use tonic::transport::server::Connected;

use crate::tls;

/// Connections at a time. An idle one costs some tens of KiB in the process and as much in the system. More clients need
/// more replicas.
const CONNECTIONS_MAX: usize = 4096;

/// File descriptors that are not for connections: those of the database, mails, logs and the program.
const DESCRIPTORS_KEPT: u64 = 64;

/// How long the TLS handshake and HTTP/2's connection preface may take. It is a few round trips. HTTP/2 supervises the
/// connection from then on.
const PREFACE_MAX: Duration = Duration::from_secs(10);

/// The preface that every HTTP/2 client sends first.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// How long a client may take to read a response. One of several MiB, as long lists can be, takes that long over a
/// megabit a second. Such a client still answers HTTP/2's pings, so no other limit would notice.
const RESPONSE_READ_MAX: Duration = Duration::from_secs(60);

/// The pause after a connection could not be accepted: some other connection has to end first, and trying at once would
/// use up a processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait to be served, which takes no time.
const READY_MAX: usize = 64;

/// The number of connections that this process can hold, and should.
pub(super) fn connections_max() -> usize {
    let descriptors = Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
    let connections = descriptors.saturating_sub(DESCRIPTORS_KEPT).max(1);
    usize::try_from(connections).unwrap_or(usize::MAX).min(CONNECTIONS_MAX)
}

/// Accepts connections, and shakes hands where there is TLS. A slow handshake delays no other connection. A connection
/// beyond `max` is closed at once, so that its client tries another replica, or later. The stream never ends: an error
/// that keeps a connection from being accepted passes.
pub(super) fn accept(
    incoming: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
    max: usize,
    tls: tls::Server,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let mut incoming = pin!(incoming);
        let (permits, mut is_full) = (Arc::new(Semaphore::new(max)), false);
        loop {
            let accepted = tokio::select! {
                () = ready.closed() => return,
                accepted = incoming.next() => accepted,
            };
            match (accepted, permits.clone().try_acquire_owned()) {
                (Some(Ok(stream)), Ok(permit)) => {
                    is_full = false;
                    begin(stream, permit, &tls, ready.clone()).await;
                }
                (Some(Ok(_)), Err(_)) => {
                    if !is_full {
                        tracing::warn!(max, "there are too many connections; new ones are closed at once");
                    }
                    is_full = true;
                }
                // The client closed that connection itself.
                (Some(Err(error)), _) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                (Some(Err(error)), _) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
                (None, _) => return,
            }
        }
    });
    ReceiverStream::new(connections)
}

async fn begin(
    stream: TcpStream,
    permit: OwnedSemaphorePermit,
    tls: &tls::Server,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let deadline = Instant::now() + PREFACE_MAX;
    let Some(acceptor) = tls.acceptor() else {
        let _ = ready.send(Ok(Connection::new(Either::Left(stream), deadline, permit))).await;
        return;
    };
    tokio::spawn(async move {
        match timeout_at(deadline, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let connection = Connection::new(Either::Right(Box::new(stream)), deadline, permit);
                let _ = ready.send(Ok(connection)).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        }
    });
}

/// One connection, above TLS where there is TLS. Reading from it fails if its preface does not arrive in time, or if a
/// response is not read in time.
pub(super) struct Connection {
    stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    /// Until the whole preface has arrived.
    preface: Option<PrefaceDeadline>,
    responses: PendingResponses,
    _permit: OwnedSemaphorePermit,
}

struct PrefaceDeadline {
    passed: Pin<Box<Sleep>>,
    bytes_missing: usize,
}

/// The responses of one connection that the client has not read yet, by number, with the time by which it must.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingResponses(Arc<Pending>);

#[derive(Debug, Default)]
struct Pending {
    connection: u64,
    due: Mutex<BTreeMap<u64, Instant>>,
}

/// A response that the client has not read yet; dropped when it has.
#[derive(Debug)]
pub(super) struct PendingResponse {
    responses: PendingResponses,
    number: u64,
}

impl Connection {
    fn new(
        stream: Either<TcpStream, Box<TlsStream<TcpStream>>>,
        deadline: Instant,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let connection = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let responses = PendingResponses(Arc::new(Pending { connection, due: Mutex::default() }));
        let passed = Box::pin(sleep_until(deadline));
        let preface = Some(PrefaceDeadline { passed, bytes_missing: PREFACE_BYTES });
        Self { stream, preface, responses, _permit: permit }
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
        // The answers to pings see to it that this is checked every now and then.
        if self.responses.are_overdue() {
            return too_late("a response was not read in time");
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
    type ConnectInfo = PendingResponses;

    fn connect_info(&self) -> PendingResponses {
        self.responses.clone()
    }
}

impl PendingResponses {
    /// A response that has to be read in time.
    pub(super) fn begin(&self) -> PendingResponse {
        let mut due = self.due();
        let number = due.last_key_value().map_or(0, |(last, _)| last + 1);
        due.insert(number, Instant::now() + RESPONSE_READ_MAX);
        PendingResponse { responses: self.clone(), number }
    }

    /// The number of the connection in this process.
    pub(super) fn connection(&self) -> u64 {
        self.0.connection
    }

    fn are_overdue(&self) -> bool {
        // The oldest has the smallest number.
        self.due().first_key_value().is_some_and(|(_, due)| *due <= Instant::now())
    }

    fn due(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        // No code panics while it is locked.
        self.0.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        self.responses.due().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsConnector, client};

    use super::*;
    use crate::auth::Auth;

    fn plaintext() -> tls::Server {
        let address = "127.0.0.1:0".parse().unwrap();
        tls::Server::open(&tls::ServerSettings::default(), Auth::Insecure, address).unwrap()
    }

    async fn ends() -> (TcpStream, TcpStream) {
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
    async fn an_error_of_accepting_is_waited_out() {
        const TRIES: u32 = 20;
        const TOO_MANY_OPEN_FILES: i32 = 24;
        let failures = (0..TRIES).map(|_| Err(io::Error::from_raw_os_error(TOO_MANY_OPEN_FILES)));
        let began = Instant::now();
        let (client, server) = ends().await;
        let mut connections = accept(stream::iter(failures.chain([Ok(server)])), 1, plaintext());
        assert!(connections.next().await.unwrap().is_ok());
        assert!(began.elapsed() >= ACCEPT_PAUSE * TRIES);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_begin_ends() {
        let (_client, mut connection) = connection().await;
        let began = Instant::now();
        let ended = tokio::time::timeout(PREFACE_MAX * 2, connection.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() <= PREFACE_MAX);
    }

    /// Both ends of a connection over TLS.
    async fn secured() -> (client::TlsStream<TcpStream>, Connection) {
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
        let responses = connection.connect_info();
        let slow = responses.begin();
        tokio::time::advance(RESPONSE_READ_MAX / 2).await;
        let quick = responses.begin();
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
        assert!(responses.due().is_empty());
    }
}
