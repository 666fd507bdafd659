//! Verification of signed tokens (JWT) against a set of public keys (JWK set).
//!
//! The key decides the algorithm, and the token's header only names the key. So neither the algorithm `none` nor a
//! signature that uses a public key as a shared secret is accepted. Where a token says that its key is to be found
//! (`jwk`, `jku`, `x5u`) is ignored.

mod claims;
mod keys;
pub mod signing;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use sha2::{Digest, Sha256};

pub(super) use self::claims::life;
use self::claims::{Expected, Verified};
pub(super) use self::keys::KeySet;
use super::{Caller, Vocabulary};
use crate::clock::{Clock, Time};
use crate::reload::Watched;

/// Verified tokens that are remembered. Verifying a signature takes longer than the rest of a cheap call, and clients
/// present the same token for hours. An entry has about 200 bytes. When the cache is full, it is emptied.
const REMEMBERED_MAX: usize = 4096;

/// Verifies tokens against keys that may be reloaded at any time.
pub(super) struct Tokens {
    keys: Watched<KeySet>,
    expected: Expected,
    /// The largest difference between the clocks of issuer and service.
    leeway: TimeDelta,
    clock: Clock,
    remembered: Mutex<Remembered>,
}

/// The reason why a token is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The claim that is at fault, `kid`, or `authorization` for the token as a whole.
    pub(super) claim: &'static str,
    /// What is wrong, and what helps. The token is not part of it.
    pub(super) sentence: Cow<'static, str>,
}

/// Tokens whose signature and claims were verified with the keys `under`. They are stored by digest, so that an entry
/// has a fixed size and a leaked entry is of no use.
struct Remembered {
    under: Arc<KeySet>,
    tokens: HashMap<[u8; 32], Verified>,
}

impl Refused {
    fn new(claim: &'static str, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { claim, sentence: sentence.into() }
    }
}

impl Tokens {
    pub(super) fn new(
        keys: Watched<KeySet>,
        issuer: String,
        audience: String,
        leeway: TimeDelta,
        vocabulary: Vocabulary,
        clock: Clock,
    ) -> Self {
        let remembered = Mutex::new(Remembered { under: keys.now(), tokens: HashMap::new() });
        Self { keys, expected: Expected { issuer, audience, vocabulary }, leeway, clock, remembered }
    }

    /// The caller that the token was issued to. Signature and claims of a remembered token are not verified again;
    /// its times are checked on each use.
    pub(super) fn caller(&self, token: &str) -> Result<Caller, Refused> {
        let keys = self.keys.now();
        let digest: [u8; 32] = Sha256::digest(token).into();
        let remembered = self.remembered().find(&keys, &digest);
        let verified = match remembered {
            Some(verified) => verified,
            None => {
                let verified = keys.verify(token)?.read(&self.expected)?;
                self.remembered().insert(&keys, digest, &verified);
                verified
            }
        };
        self.check_times(verified)
    }

    pub(super) fn keys(&self) -> &Watched<KeySet> {
        &self.keys
    }

    fn check_times(&self, verified: Verified) -> Result<Caller, Refused> {
        let (now, leeway): (Time, _) = (self.clock.now(), self.leeway.num_seconds());
        let now = now.timestamp();
        if now >= verified.expires.saturating_add(leeway) {
            return Err(Refused::new("exp", "the token has expired; get a new one"));
        }
        if verified.not_before.is_some_and(|not_before| now.saturating_add(leeway) < not_before) {
            let sentence = "the token is not valid yet; wait, or compare the clocks of issuer and service";
            return Err(Refused::new("nbf", sentence));
        }
        Ok(verified.caller)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        // No code panics while it is locked.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn find(&mut self, keys: &Arc<KeySet>, digest: &[u8; 32]) -> Option<Verified> {
        if !Arc::ptr_eq(&self.under, keys) {
            self.under = keys.clone();
            self.tokens.clear();
        }
        self.tokens.get(digest).cloned()
    }

    /// Remembers a verified token, unless the keys were reloaded meanwhile.
    fn insert(&mut self, keys: &Arc<KeySet>, digest: [u8; 32], verified: &Verified) {
        if !Arc::ptr_eq(&self.under, keys) {
            return;
        }
        if self.tokens.len() >= REMEMBERED_MAX {
            self.tokens.clear();
        }
        self.tokens.insert(digest, verified.clone());
    }
}
