//! Verification of signed tokens (JWT) against a set of public keys (JWK set).
//!
//! The key decides the algorithm, and the token's header only names the key. So neither the algorithm `none` nor a
//! signature that uses a public key as a shared secret is accepted. Where a token says that its key is to be found
//! (`jwk`, `jku`, `x5u`) is ignored.

mod claims;
mod keys;
#[cfg(test)]
mod mapping_tests;
mod published;
pub mod signing;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::TimeDelta;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub(super) use self::claims::{Expected, Issuer, KnownIdentity, Mapping, life};
use self::claims::{Verified, unverified};
pub(super) use self::keys::KeySet;
use self::keys::Unverified;
pub(super) use self::published::{Location, Published, check_url};
use super::Caller;
use super::registration::{RegistrationUnknown, Registrations};
use crate::clock::{Clock, Time};
use crate::reload::Watched;

/// Verified tokens that are remembered for each issuer. Verifying a signature takes longer than the rest of a cheap call, and
/// clients present the same token for hours. An entry has about 200 bytes. When the cache is full, it is emptied.
const REMEMBERED_MAX: usize = 4096;

/// Verifies tokens of some issuers against keys that may be replaced at any time.
pub(super) struct Tokens {
    issuers: Vec<TrustedIssuer>,
    /// The largest difference between the clocks of issuer and service.
    leeway: TimeDelta,
    clock: Clock,
    registrations: Registrations,
}

/// An issuer whose tokens are accepted.
pub(super) struct TrustedIssuer {
    pub(super) keys: Keys,
    pub(super) expected: Expected,
    remembered: Mutex<Remembered>,
}

/// Where the keys of an issuer come from.
pub(super) enum Keys {
    File(Watched<KeySet>),
    Published(Published),
}

/// The reason why a token is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The claim that is at fault, `kid`, or `authorization` for the token as a whole.
    pub(super) claim: Cow<'static, str>,
    /// What is wrong, and what helps. The token is not part of it.
    pub(super) sentence: Cow<'static, str>,
}

/// The reason why a token identifies no caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unidentified {
    /// The token is refused.
    Refused(Refused),
    /// The issuer's keys are not known, or too old to count.
    KeysUnavailable,
    /// It is not known whether the tenant is registered.
    RegistrationUnknown,
}

/// What is known of the caller of a token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    All(Result<Caller, Unidentified>),
    /// Newer keys of the issuer may verify the token.
    NeedsKeys,
    /// The token is verified, and it is not known whether this tenant is registered.
    NeedsRegistration(Uuid),
}

/// The same while more may become known.
enum Problem<'t> {
    Final(Unidentified),
    /// Newer keys of the issuer may verify it.
    Keys(&'t TrustedIssuer, Unidentified),
}

/// Tokens whose signature and claims were verified with the keys `under`. They are stored by digest, so that an entry
/// has a fixed size and a leaked entry is of no use.
#[derive(Default)]
struct Remembered {
    under: Option<Arc<KeySet>>,
    tokens: HashMap<[u8; 32], Verified>,
}

impl Refused {
    fn new(claim: impl Into<Cow<'static, str>>, sentence: impl Into<Cow<'static, str>>) -> Self {
        Self { claim: claim.into(), sentence: sentence.into() }
    }
}

impl Problem<'_> {
    fn refused(why: Refused) -> Self {
        Self::Final(Unidentified::Refused(why))
    }
}

impl Keys {
    fn now(&self) -> Option<Arc<KeySet>> {
        match self {
            Self::File(file) => Some(file.now()),
            Self::Published(published) => published.now(),
        }
    }

    fn may_renew(&self) -> bool {
        matches!(self, Self::Published(published) if published.may_renew())
    }

    /// Waits until published keys were fetched, or could not be.
    pub(super) async fn first(&self) {
        if let Self::Published(published) = self {
            published.first().await;
        }
    }

    /// Fetches published keys once more. Files are watched.
    async fn renew(&self) {
        if let Self::Published(published) = self {
            published.renew().await;
        }
    }
}

impl TrustedIssuer {
    pub(super) fn new(keys: Keys, expected: Expected) -> Self {
        Self { keys, expected, remembered: Mutex::default() }
    }

    /// What was verified of a remembered token.
    fn find(&self, digest: &[u8; 32]) -> Option<Verified> {
        self.remembered().find(&self.keys.now()?, digest)
    }

    fn verify(&self, token: &str, digest: [u8; 32]) -> Result<Verified, Problem<'_>> {
        let keys = self.keys.now().ok_or(Problem::Keys(self, Unidentified::KeysUnavailable))?;
        let (claims, key_issuer) = keys.verify(token).map_err(|unverified| match unverified {
            Unverified::Token(why) => Problem::refused(why),
            Unverified::Key(why) => Problem::Keys(self, Unidentified::Refused(why)),
        })?;
        let verified = claims.read(key_issuer, &self.expected).map_err(Problem::refused)?;
        self.remembered().insert(&keys, digest, &verified);
        Ok(verified)
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        // No code panics while it is locked.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tokens {
    pub(super) fn new(
        mut issuers: Vec<TrustedIssuer>,
        leeway: TimeDelta,
        clock: Clock,
        registrations: Registrations,
    ) -> Self {
        // A token is of the first that it fits. One issuer has precedence over a template, whatever their order.
        issuers.sort_by_key(|issuer| issuer.expected.issuer.is_template());
        Self { issuers, leeway, clock, registrations }
    }

    pub(super) fn issuers(&self) -> &[TrustedIssuer] {
        &self.issuers
    }

    /// The caller that the token was issued to, as far as that is known without waiting for [`Self::caller`].
    pub(super) fn caller_at_once(&self, token: &str) -> Known {
        match self.verify(token) {
            Ok(verified) if verified.registration_decides => {
                match self.registrations.known(verified.caller.tenant_id) {
                    Some(kind) => Known::All(Ok(Caller { tenant_kind: kind, ..verified.caller })),
                    None => Known::NeedsRegistration(verified.caller.tenant_id),
                }
            }
            Ok(verified) => Known::All(Ok(verified.caller)),
            Err(Problem::Keys(issuer, _)) if issuer.keys.may_renew() => Known::NeedsKeys,
            Err(Problem::Keys(_, why) | Problem::Final(why)) => Known::All(Err(why)),
        }
    }

    /// The caller that the token was issued to. It waits for newer keys of the issuer and for the registration of the
    /// tenant, where either matters.
    pub(super) async fn caller(&self, token: &str) -> Result<Caller, Unidentified> {
        let mut verified = self.verify(token);
        if let Err(Problem::Keys(issuer, _)) = verified
            && issuer.keys.may_renew()
        {
            issuer.keys.renew().await;
            verified = self.verify(token);
        }
        let Verified { caller, registration_decides, .. } = verified.map_err(|problem| match problem {
            Problem::Final(why) | Problem::Keys(_, why) => why,
        })?;
        if !registration_decides {
            return Ok(caller);
        }
        let kind = self.registrations.ask(caller.tenant_id).await;
        let kind = kind.map_err(|RegistrationUnknown| Unidentified::RegistrationUnknown)?;
        Ok(Caller { tenant_kind: kind, ..caller })
    }

    /// A remembered token is neither decoded nor verified again; its times are checked on each use.
    fn verify(&self, token: &str) -> Result<Verified, Problem<'_>> {
        let digest = Sha256::digest(token).into();
        let verified = match self.issuers.iter().find_map(|issuer| issuer.find(&digest)) {
            Some(verified) => verified,
            None => self.issuer_of(token).map_err(Problem::refused)?.verify(token, digest)?,
        };
        self.check_times(&verified).map_err(Problem::refused)?;
        Ok(verified)
    }

    /// The issuer that a token names. Its keys have to verify that.
    fn issuer_of(&self, token: &str) -> Result<&TrustedIssuer, Refused> {
        if let [only] = &*self.issuers {
            return Ok(only);
        }
        let claims = unverified(token);
        let claims = claims.ok_or(Refused::new("authorization", "the token is no signed JWT"))?;
        let issuer = self.issuers.iter().find(|issuer| claims.are_of(&issuer.expected));
        issuer.ok_or(Refused::new("iss", "the token is of another issuer than this service trusts"))
    }

    fn check_times(&self, verified: &Verified) -> Result<(), Refused> {
        let (now, leeway): (Time, _) = (self.clock.now(), self.leeway.num_seconds());
        let now = now.timestamp();
        if now >= verified.expires.saturating_add(leeway) {
            return Err(Refused::new("exp", "the token has expired; get a new one"));
        }
        if verified.not_before.is_some_and(|not_before| now.saturating_add(leeway) < not_before) {
            let sentence = "the token is not valid yet; wait, or compare the clocks of issuer and service";
            return Err(Refused::new("nbf", sentence));
        }
        Ok(())
    }
}

impl Remembered {
    fn find(&mut self, keys: &Arc<KeySet>, digest: &[u8; 32]) -> Option<Verified> {
        if !self.is_under(keys) {
            self.under = Some(keys.clone());
            self.tokens.clear();
        }
        self.tokens.get(digest).cloned()
    }

    /// Remembers a verified token, unless the keys were replaced meanwhile.
    fn insert(&mut self, keys: &Arc<KeySet>, digest: [u8; 32], verified: &Verified) {
        if !self.is_under(keys) {
            return;
        }
        if self.tokens.len() >= REMEMBERED_MAX {
            self.tokens.clear();
        }
        self.tokens.insert(digest, verified.clone());
    }

    fn is_under(&self, keys: &Arc<KeySet>) -> bool {
        self.under.as_ref().is_some_and(|under| Arc::ptr_eq(under, keys))
    }
}
