//! The connections of one server: how many there may be, how long one may take to begin, and how long an
//! answer on it may remain without being taken. What comes and goes on them is HTTP/2's business.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

/// Connections at a time. An idle one costs some tens of KiB here and as much in the system; whoever needs
/// more runs more replicas.
const CONNECTIONS_MAX: usize = 4096;

/// File descriptors that are not for connections: those of the database, mails, logs and the program.
const DESCRIPTORS_KEPT: usize = 64;

/// How long TLS and the first bytes of HTTP/2 may take. It is a few round trips; whoever does not send them
/// is no client of ours, and HTTP/2 looks after those that have.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// What every client sends first, once there is TLS where there is to be.
const GREETING_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// How long an answer may take to be taken. One of several MiB, as long lists can be, takes that long over a
/// megabit a second; HTTP/2's probes are answered meanwhile, so nothing else would notice.
const ANSWER_TAKEN_MAX: Duration = Duration::from_secs(60);

/// When nothing can be accepted, something has to end first. Trying at once would take all of a processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections this process can hold, and should.
pub(super) fn connections_max() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    descriptors_max(&limits).map_or(CONNECTIONS_MAX, |descriptors| {
        CONNECTIONS_MAX.min(descriptors.saturating_sub(DESCRIPTORS_KEPT).max(1))
    })
}

/// What the system says of open files, where it does.
fn descriptors_max(limits: &str) -> Option<usize> {
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    files.split_whitespace().next()?.parse().ok()
}

/// The connections that are let in. One beyond the limit is closed at once, so that its client tries another
/// replica, or later. Nothing ends the stream: what kept one from being accepted passes.
pub(super) fn admitted(
    incoming: impl Stream<Item = io::Result<TcpStream>>,
    max: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let (places, is_full) = (Arc::new(Semaphore::new(max)), Arc::new(AtomicBool::new(false)));
    incoming.filter_map(move |accepted| {
        let (place, is_full) = (places.clone().try_acquire_owned(), Arc::clone(&is_full));
        async move {
            match (accepted, place) {
                (Ok(stream), Ok(place)) => {
                    is_full.store(false, Ordering::Relaxed);
                    return Some(Ok(Connection::new(stream, place)));
                }
                (Ok(_), Err(_)) => {
                    if !is_full.swap(true, Ordering::Relaxed) {
                        tracing::warn!(max, "there are too many connections; more are closed at once");
                    }
                }
                // That one has gone away by itself.
                (Err(error), _) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                (Err(error), _) => {
                    tracing::warn!(%error, "connections cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
            None
        }
    })
}

/// One connection. It fails when it takes too long to begin, or when an answer is not taken.
pub(super) struct Connection {
    stream: TcpStream,
    /// Until it has come in whole.
    greeting: Option<Greeting>,
    answers: Answers,
    _place: OwnedSemaphorePermit,
}

/// What tonic tells each call of its connection where there is TLS.
pub(super) type Secured = <TlsStream<Connection> as Connected>::ConnectInfo;

/// What a client sends first.
struct Greeting {
    over: Pin<Box<Sleep>>,
    has_come: Arc<AtomicBool>,
}

/// A connection as HTTP/2 has it, above TLS where there is TLS. It tells the connection below when the greeting
/// has come: there, what TLS makes of a single byte, or sends by itself, would count for as much.
pub(super) struct Greeted<C> {
    stream: C,
    /// How many bytes of the greeting have not come yet.
    missing: usize,
    has_come: Arc<AtomicBool>,
}

/// The answers of one connection that have not been taken yet, by number, with when they are to be.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<Mutex<BTreeMap<u64, Instant>>>);

/// An answer that has not been taken yet; dropped when it has.
#[derive(Debug)]
pub(super) struct Answer {
    answers: Answers,
    number: u64,
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        let greeting = Greeting { over: Box::pin(sleep(GREETING_MAX)), has_come: Arc::default() };
        Self { stream, greeting: Some(greeting), answers: Answers::default(), _place: place }
    }

    /// Fails when the connection should be closed.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let too_late = |why| Err(io::Error::new(io::ErrorKind::TimedOut, why));
        if let Some(greeting) = &mut self.greeting {
            if greeting.has_come.load(Ordering::Relaxed) {
                self.greeting = None;
            } else if greeting.over.as_mut().poll(context).is_ready() {
                return too_late("it did not begin in time");
            }
        }
        // Probes see to it that something comes every now and then.
        if self.answers.are_overdue() {
            return too_late("an answer was not taken in time");
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
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.check(context)?;
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
    type ConnectInfo = Answers;

    fn connect_info(&self) -> Answers {
        self.answers.clone()
    }
}

/// Connections as HTTP/2 takes them; `below` is the one that came in.
pub(super) fn greeted<C>(
    incoming: impl Stream<Item = io::Result<C>>,
    below: impl Fn(&C) -> &Connection,
) -> impl Stream<Item = io::Result<Greeted<C>>> {
    incoming.map(move |stream| {
        stream.map(|stream| {
            let greeting = below(&stream).greeting.as_ref();
            let has_come = greeting.map(|greeting| greeting.has_come.clone()).unwrap_or_default();
            Greeted { stream, missing: GREETING_BYTES, has_come }
        })
    })
}

impl<C: AsyncRead + Unpin> AsyncRead for Greeted<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.missing > 0 {
            self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
            self.has_come.store(self.missing == 0, Ordering::Relaxed);
        }
        read
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Greeted<C> {
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

impl<C: Connected> Connected for Greeted<C> {
    type ConnectInfo = C::ConnectInfo;

    fn connect_info(&self) -> C::ConnectInfo {
        self.stream.connect_info()
    }
}

impl Answers {
    /// An answer that is to be taken in time.
    pub(super) fn begin(&self) -> Answer {
        let mut waiting = self.waiting();
        let number = waiting.last_key_value().map_or(0, |(last, _)| last + 1);
        waiting.insert(number, Instant::now() + ANSWER_TAKEN_MAX);
        Answer { answers: self.clone(), number }
    }

    fn are_overdue(&self) -> bool {
        // The oldest has the smallest number.
        self.waiting().first_key_value().is_some_and(|(_, due)| *due <= Instant::now())
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        // Nothing panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.answers.waiting().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::stream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsConnector, client};

    use super::*;
    use crate::auth::Auth;
    use crate::tls;

    /// Both ends of a connection.
    async fn connection() -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut connections = pin!(admitted(stream::iter([Ok(stream)]), 1));
        (client, connections.next().await.unwrap().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_accepted_is_waited_for_and_ends_nothing() {
        const TRIES: u32 = 20;
        const TOO_MANY_OPEN_FILES: i32 = 24;
        let failures = (0..TRIES).map(|_| Err(io::Error::from_raw_os_error(TOO_MANY_OPEN_FILES)));
        let began = Instant::now();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        let at_last = [Ok(accepted.unwrap().0)];
        let mut connections = pin!(admitted(stream::iter(failures.chain(at_last)), 1));
        assert!(connections.next().await.unwrap().is_ok());
        assert!(began.elapsed() >= ACCEPT_PAUSE * TRIES);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_begin_ends() {
        let (_client, mut connection) = connection().await;
        let began = Instant::now();
        let ended = tokio::time::timeout(GREETING_MAX * 2, connection.read_u8()).await.unwrap().unwrap_err();
        assert_eq!((ended.kind(), began.elapsed()), (io::ErrorKind::TimedOut, GREETING_MAX));
    }

    /// Both ends of a connection over TLS, as client and HTTP/2 have them.
    async fn secured() -> (client::TlsStream<TcpStream>, Greeted<TlsStream<Connection>>) {
        let folder = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let settings = tls::ServerSettings {
            tls_cert: Some(folder.path().join("tls.pem")),
            tls_key: Some(folder.path().join("tls.key")),
            ..tls::ServerSettings::default()
        };
        fs::write(folder.path().join("tls.pem"), own.cert.pem()).unwrap();
        fs::write(folder.path().join("tls.key"), own.signing_key.serialize_pem()).unwrap();
        let server = tls::Server::open(&settings, Auth::Jwt, "127.0.0.1:0".parse().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());

        let (client, connection) = connection().await;
        let accepted = tls::accept(stream::iter([Ok(connection)]), server.0.unwrap());
        let mut accepted = pin!(greeted(accepted, |stream| stream.get_ref().0));
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = TlsConnector::from(config).connect(name, client);
        let (client, accepted) = tokio::join!(connecting, accepted.next());
        (client.unwrap(), accepted.unwrap().unwrap())
    }

    #[tokio::test]
    async fn a_connection_begins_with_the_greeting_and_not_with_what_tls_makes_of_its_first_bytes() {
        let (mut client, mut server) = secured().await;
        for byte in &b"PRI * HTTP/2.0"[..] {
            client.write_all(&[*byte]).await.unwrap();
            client.flush().await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), *byte);
        }
        tokio::time::pause();
        let ended = tokio::time::timeout(GREETING_MAX * 2, server.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_that_has_begun_may_be_silent() {
        let (mut client, mut server) = secured().await;
        let mut come = [0; GREETING_BYTES];
        client.write_all(&come).await.unwrap();
        server.read_exact(&mut come).await.unwrap();
        tokio::time::pause();
        let silent = tokio::time::timeout(GREETING_MAX * 2, server.read_u8()).await;
        assert!(silent.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_ends_the_connection() {
        let (client, connection) = connection().await;
        let mut connections = pin!(greeted(stream::iter([Ok(connection)]), |connection| connection));
        let mut connection = connections.next().await.unwrap().unwrap();
        let mut bytes = [0; GREETING_BYTES];
        client.try_write(&bytes).unwrap();
        connection.read_exact(&mut bytes).await.unwrap();
        let answers = connection.connect_info();
        let slow = answers.begin();
        tokio::time::advance(ANSWER_TAKEN_MAX / 2).await;
        let quick = answers.begin();
        client.try_write(&bytes).unwrap();
        connection.read_exact(&mut bytes).await.unwrap();
        tokio::time::advance(ANSWER_TAKEN_MAX / 2).await;
        client.try_write(&bytes).unwrap();
        let ended = connection.read_exact(&mut bytes).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        drop(slow);
        client.try_write(&bytes).unwrap();
        connection.read_exact(&mut bytes).await.unwrap();
        drop(quick);
        assert!(answers.waiting().is_empty());
    }

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files";
        assert_eq!(descriptors_max(limits), Some(1024));
        assert_eq!(descriptors_max("Max open files  unlimited  unlimited  files"), None);
        assert_eq!(descriptors_max(""), None);
    }
}
