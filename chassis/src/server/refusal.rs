//! The log of connections that are refused, or closed while they are in use, below gRPC. HTTP/2's own log of them is for
//! those who look for defects in it.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant, take};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

/// How often a refusal of one kind is logged.
pub(super) const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a connection is refused or closed, in words for an operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there was no room for it; more clients need more replicas")]
    NoRoom,
    #[error("no caller was identified on it, and others needed its place")]
    MadeRoom,
    #[error("the peer spoke no TLS to a TLS port")]
    NoTls,
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    #[error("the peer closed it in the middle of the TLS handshake")]
    BrokenHandshake,
    #[error("the TLS handshake took too long")]
    SlowHandshake,
    #[error("the peer spoke TLS to a plaintext port")]
    Tls,
    #[error("the peer spoke HTTP/1.1")]
    Http1,
    #[error("the peer began with something else than HTTP/2")]
    NoHttp2,
    #[error("the peer closed it in the middle of HTTP/2's connection preface")]
    BrokenPreface,
    #[error("HTTP/2's connection preface did not arrive in time")]
    SlowPreface,
    #[error("no caller was identified on it, and a call stood still")]
    StoodStill,
    #[error("the peer did not read a response in time")]
    Unread,
    #[error("its calls did not end in time for its renewal")]
    TooOld,
}

/// The log, for the connections of one server. It has at most one line of each kind in each interval, since clients can
/// cause as many as they like.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(Mutex<HashMap<Discriminant<Refusal>, Refused>>);

#[derive(Debug, Default)]
struct Refused {
    logged: Option<Instant>,
    suppressed: u64,
}

/// The log, for one connection.
#[derive(Debug)]
pub(super) struct PeerLog {
    log: Arc<RefusalLog>,
    address: Option<SocketAddr>,
}

impl PeerLog {
    /// The address is kept: once a connection is closed, the system does not know it any more.
    pub(super) fn new(log: Arc<RefusalLog>, stream: &TcpStream) -> Self {
        Self { log, address: stream.peer_addr().ok() }
    }

    pub(super) fn refused(&self, cause: &Refusal) {
        if let Some(suppressed) = self.log.turn(cause) {
            let peer = self.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string());
            tracing::warn!(%cause, peer, suppressed, "a connection was closed");
        }
    }
}

impl RefusalLog {
    /// Whether a line of this kind may be written, and how many were not since the last one.
    fn turn(&self, cause: &Refusal) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = kinds.entry(discriminant(cause)).or_default();
        if refused.logged.is_some_and(|logged| logged.elapsed() < REFUSAL_LOG_INTERVAL) {
            refused.suppressed += 1;
            return None;
        }
        refused.logged = Some(Instant::now());
        Some(take(&mut refused.suppressed))
    }
}
