//! The connection preface: the first bytes that a client sends. A client that does not speak HTTP/2 is usually misconfigured;
//! its first bytes show which protocol it speaks.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;

use tokio::time::{Instant, Sleep, sleep_until};

use super::refusal::Refusal;

/// The preface that every HTTP/2 client sends first.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The type of the record with which TLS begins.
pub(super) const TLS_HANDSHAKE: u8 = 0x16;

/// How requests of HTTP/1.1 begin.
const HTTP1_METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH "];

/// The preface of a connection, as far as it has arrived, and its deadline.
pub(super) struct Preface {
    passed: Pin<Box<Sleep>>,
    received: Vec<u8>,
}

impl Preface {
    pub(super) fn new(deadline: Instant) -> Self {
        Self { passed: Box::pin(sleep_until(deadline)), received: vec![] }
    }

    /// Whether it has arrived, with the bytes that have just been read. `is_end` tells that none follow.
    ///
    /// # Errors
    /// Something else has arrived, or too little in time. A connection that ends without a byte is a check of the port.
    pub(super) fn has_arrived(
        &mut self,
        context: &mut Context<'_>,
        read: &[u8],
        is_end: bool,
    ) -> Result<bool, Refusal> {
        let missing = PREFACE.len().saturating_sub(self.received.len());
        self.received.extend(read.iter().take(missing));
        if self.received == PREFACE {
            return Ok(true);
        }
        if !PREFACE.starts_with(&self.received) {
            return Err(spoken(&self.received));
        }
        if is_end && !self.received.is_empty() {
            return Err(Refusal::BrokenPreface);
        }
        if !is_end && self.passed.as_mut().poll(context).is_ready() {
            return Err(Refusal::SlowPreface);
        }
        Ok(false)
    }
}

/// What a peer speaks that does not begin with the preface. Few of its bytes may have arrived.
fn spoken(received: &[u8]) -> Refusal {
    if received.first() == Some(&TLS_HANDSHAKE) {
        Refusal::Tls
    } else if HTTP1_METHODS.iter().any(|method| method.starts_with(received) || received.starts_with(method))
    {
        Refusal::Http1
    } else {
        Refusal::NoHttp2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_http_2_is_known_by_its_first_bytes() {
        for (received, refusal) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], Refusal::Tls),
            (b"\x16", Refusal::Tls),
            (b"GET / HTTP/1.1\r\nHost: a", Refusal::Http1),
            (b"POST /csp.agreement.v1.Cu", Refusal::Http1),
            (b"PO", Refusal::Http1),
            (b"PROXY TCP4 127.0.0.1", Refusal::NoHttp2),
            (b"PRI * HTTP/3.0", Refusal::NoHttp2),
            (b"\0", Refusal::NoHttp2),
        ] {
            assert_eq!(spoken(received), refusal, "{}", received.escape_ascii());
        }
    }
}
