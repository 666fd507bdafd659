//! A TCP proxy between order-svc and agreement-svc: it can hold back the bytes of responses, drop everything silently, or
//! reset the connection, as networks and machines do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy from an address, for as long as the test's runtime lives.
pub(crate) struct TcpProxy {
    /// Where it begins, for order-svc.
    pub url: String,
    to: Arc<Mutex<Option<SocketAddr>>>,
    cuts: watch::Sender<()>,
    are_answers_held: watch::Sender<bool>,
    is_reset: Arc<AtomicBool>,
}

impl TcpProxy {
    /// A proxy that leads nowhere yet: a client that connects is cut off at once.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (cuts, are_answers_held) = (watch::Sender::new(()), watch::Sender::new(false));
        let proxy = Self { url, to: Arc::default(), cuts, are_answers_held, is_reset: Arc::default() };
        let (to, cuts, held) = (proxy.to.clone(), proxy.cuts.clone(), proxy.are_answers_held.clone());
        let is_reset = proxy.is_reset.clone();
        tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let to = *to.lock().unwrap();
                if let Some(to) = to {
                    tokio::spawn(carry(near, to, cuts.subscribe(), held.subscribe(), is_reset.clone()));
                }
            }
        });
        proxy
    }

    /// From now on connections lead to this address.
    pub(crate) fn lead_to(&self, address: SocketAddr) {
        *self.to.lock().unwrap() = Some(address);
    }

    /// The connections that there are stay open and carry nothing any more; new ones do.
    pub(crate) fn cut(&self) {
        self.cuts.send_replace(());
    }

    /// Holds back what is answered from now on, or lets it go.
    pub(crate) fn hold_answers(&self, hold: bool) {
        self.are_answers_held.send_replace(hold);
    }

    /// The next answer does not come: its connection is reset instead.
    pub(crate) fn reset_next(&self) {
        self.is_reset.store(true, Ordering::SeqCst);
    }
}

/// Carries what comes until an end closes, or until the proxy is cut.
async fn carry(
    mut near: TcpStream,
    to: SocketAddr,
    mut cuts: watch::Receiver<()>,
    held: watch::Receiver<bool>,
    is_reset: Arc<AtomicBool>,
) {
    let Ok(mut far) = TcpStream::connect(to).await else { return };
    let (mut asked, near_end) = near.split();
    let (answered, mut far_end) = far.split();
    let mut has_failed = false;
    let is_cut = tokio::select! {
        _ = copy(&mut asked, &mut far_end) => false,
        ended = answer(answered, near_end, held, &is_reset) => {
            has_failed = ended.is_err();
            false
        }
        cut = cuts.changed() => cut.is_ok(),
    };
    if has_failed {
        near.set_zero_linger().unwrap();
    }
    if is_cut {
        // The far end may know; order-svc must find out by itself.
        drop(far);
        std::future::pending::<()>().await;
    }
}

async fn answer(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut held: watch::Receiver<bool>,
    is_reset: &AtomicBool,
) -> std::io::Result<()> {
    let mut bytes = [0; 4096];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        if is_reset.swap(false, Ordering::SeqCst) {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        drop(held.wait_for(|held| !held).await);
        to.write_all(&bytes[..count]).await?;
    }
}
