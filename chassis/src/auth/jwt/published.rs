//! Keys that an issuer publishes at a URL, fetched again and again.
//!
//! The last set that was fetched stays in force while the issuer cannot be reached or answers with something else, for a
//! day at most: a key that the issuer withdraws must stop counting. A token under an unknown key makes the keys be fetched at
//! once, and its call waits for that, so that a rotation refuses no caller. Such fetches are at least 5 seconds apart, so that forged
//! tokens cannot cause more.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::{Certificate, Client, StatusCode, redirect};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use url::{Host, Url};

use super::KeySet;
use super::claims::Issuer;
use crate::backoff;

/// How long one fetch may take, with the discovery document.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest time from one fetch to the next.
const FETCH_INTERVAL_MIN: Duration = Duration::from_secs(5);

/// What is added to it at most, at random, while an issuer cannot be reached.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How long fetched keys count when no later fetch succeeds.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The largest document. A set of keys has a hundredth of that.
const BYTES_MAX: usize = 1 << 20;

/// Where an issuer publishes its keys.
#[derive(Clone, Debug)]
pub(in crate::auth) enum Location {
    /// The JWK set itself.
    Keys(Url),
    /// The document of OpenID Connect Discovery that names the JWK set.
    Discovery(Url),
}

/// Fetched keys. Clones share them; they are fetched until the last clone is dropped.
#[derive(Clone)]
pub(in crate::auth) struct Published {
    state: watch::Receiver<State>,
    fetch_requested: Arc<Notify>,
}

#[derive(Clone, Default)]
struct State {
    /// The keys of the last fetch that succeeded, and when that was.
    keys: Option<(Arc<KeySet>, Instant)>,
    /// Whether the last fetch failed.
    has_failed: bool,
    /// When the last fetch ended; nothing while one is in progress.
    ended: Option<Instant>,
    /// The fetches that ended.
    fetches: u64,
}

/// The part of the discovery document that is read (OpenID Connect Discovery 1.0, section 3).
#[derive(Deserialize)]
struct Discovery {
    issuer: Issuer,
    jwks_uri: Url,
}

impl Published {
    /// Fetches the keys on this runtime from now on, each `interval`.
    ///
    /// # Errors
    /// CA certificates that are not in PEM.
    pub(in crate::auth) fn open(
        location: Location,
        issuer: Issuer,
        ca_certificates: Option<&[u8]>,
        interval: Duration,
    ) -> anyhow::Result<Self> {
        let mut client = Client::builder().timeout(FETCH_TIMEOUT).redirect(redirect::Policy::none());
        let (Location::Keys(url) | Location::Discovery(url)) = &location;
        // A proxy cannot reach the loopback of this machine, and would carry http over the network in clear text.
        if is_loopback(url) {
            client = client.no_proxy();
        }
        if let Some(pem) = ca_certificates {
            let all = Certificate::from_pem_bundle(pem).context("no certificates in PEM")?;
            ensure!(!all.is_empty(), "no certificates in PEM");
            client = client.tls_certs_only(all);
        }
        let client = client.build().context("no HTTP client can be made")?;
        let (sender, state) = watch::channel(State::default());
        let fetch_requested = Arc::new(Notify::new());
        tokio::spawn(keep_fetching(client, location, issuer, interval, sender, fetch_requested.clone()));
        Ok(Self { state, fetch_requested })
    }

    /// The last fetched keys, if they are recent enough to count.
    pub(super) fn now(&self) -> Option<Arc<KeySet>> {
        let state = self.state.borrow();
        let (keys, fetched) = state.keys.as_ref()?;
        (fetched.elapsed() < AGE_MAX).then(|| keys.clone())
    }

    /// Whether the last fetch failed.
    pub(in crate::auth) fn has_failed(&self) -> bool {
        self.state.borrow().has_failed
    }

    /// Whether [`Self::renew`] may find newer keys.
    pub(super) fn may_renew(&self) -> bool {
        self.state.borrow().ended.is_none_or(|ended| ended.elapsed() >= FETCH_INTERVAL_MIN)
    }

    /// Waits until the first fetch has ended.
    pub(in crate::auth) async fn first(&self) {
        let mut state = self.state.clone();
        let _ = timeout(FETCH_TIMEOUT, state.wait_for(|state| state.fetches > 0)).await;
    }

    /// Waits for the fetch in progress, or for one more.
    pub(super) async fn renew(&self) {
        let mut state = self.state.clone();
        let (before, is_fetching) = {
            let state = state.borrow();
            (state.fetches, state.ended.is_none())
        };
        if !is_fetching {
            self.fetch_requested.notify_one();
        }
        // A fetch takes no longer, and its end is no condition for the call.
        let _ = timeout(FETCH_TIMEOUT, state.wait_for(|state| state.fetches > before)).await;
    }
}

async fn keep_fetching(
    client: Client,
    location: Location,
    issuer: Issuer,
    interval: Duration,
    sender: watch::Sender<State>,
    fetch_requested: Arc<Notify>,
) {
    let mut last = vec![];
    let mut failures = 0;
    loop {
        let fetched = match timeout(FETCH_TIMEOUT, fetch(&client, &location, &issuer)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(anyhow::anyhow!("it took more than {} seconds", FETCH_TIMEOUT.as_secs())),
        };
        // The same contents are the same keys, so that tokens verified with them need not be verified again.
        let known = sender.borrow().keys.as_ref().map(|(keys, _)| keys.clone());
        let keys = fetched.and_then(|contents| match known {
            Some(known) if contents == last => Ok(known),
            _ => {
                let keys = KeySet::read(&contents)?;
                last = contents;
                tracing::info!(issuer = issuer.0, "the issuer's keys were fetched");
                Ok(Arc::new(keys))
            }
        });
        match &keys {
            Ok(_) => failures = 0,
            Err(why) => {
                failures += 1;
                let why = format!("{why:#}");
                tracing::warn!(
                    issuer = issuer.0,
                    why,
                    "the issuer's keys cannot be fetched; earlier ones stay in force for a day"
                );
            }
        }
        let pause = match failures {
            0 => interval,
            _ => FETCH_INTERVAL_MIN + backoff::wait(failures, FETCH_INTERVAL_MIN, RETRY_MAX),
        };
        sender.send_modify(|state| {
            state.has_failed = keys.is_err();
            if let Ok(keys) = keys {
                state.keys = Some((keys, Instant::now()));
            }
            state.ended = Some(Instant::now());
            state.fetches += 1;
        });
        let wait = async {
            tokio::select! {
                () = sleep(pause) => {}
                () = async { sleep(FETCH_INTERVAL_MIN).await; fetch_requested.notified().await } => {}
            }
        };
        tokio::select! {
            () = sender.closed() => return,
            () = wait => {}
        }
        sender.send_modify(|state| state.ended = None);
    }
}

/// The contents of the issuer's JWK set.
async fn fetch(client: &Client, location: &Location, issuer: &Issuer) -> anyhow::Result<Vec<u8>> {
    match location {
        Location::Keys(url) => get(client, url.clone()).await,
        Location::Discovery(url) => {
            let document = get(client, url.clone()).await?;
            let document: Discovery = serde_json::from_slice(&document)
                .with_context(|| format!("{url} is no discovery document"))?;
            // Section 4.3: otherwise one issuer could speak for another.
            let named: String = document.issuer.0.chars().take(200).collect();
            ensure!(document.issuer == *issuer, "{url} is of the issuer {named}, not of {}", issuer.0);
            check_url(&document.jwks_uri).context("jwks_uri")?;
            // A document from elsewhere sends no request to what listens on this machine.
            ensure!(
                document.jwks_uri.scheme() == url.scheme(),
                "jwks_uri must be {} as {url} is",
                url.scheme()
            );
            get(client, document.jwks_uri).await
        }
    }
}

async fn get(client: &Client, url: Url) -> anyhow::Result<Vec<u8>> {
    let mut response = client.get(url.clone()).header("accept", "application/json").send().await?;
    if response.status() != StatusCode::OK {
        bail!("{url} answers {}", response.status());
    }
    let mut contents = vec![];
    while let Some(chunk) = response.chunk().await? {
        contents.extend_from_slice(&chunk);
        ensure!(contents.len() <= BYTES_MAX, "{url} has more than {BYTES_MAX} bytes");
    }
    Ok(contents)
}

/// Rejects a URL whose answer could be changed on the way: with keys that others can replace, anyone could sign.
pub(in crate::auth) fn check_url(url: &Url) -> anyhow::Result<()> {
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback(url));
    // It would stand in the log.
    ensure!(url.username().is_empty() && url.password().is_none(), "a URL must name no user and no password");
    ensure!(is_safe, "{url} must be an https URL; http is for loopback only");
    Ok(())
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
#[path = "published_tests.rs"]
mod tests;
