//! Whether the tenant of a caller is registered with the service, for issuers whose tokens do not say what kind of tenant
//! they are for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use uuid::Uuid;

use super::Vocabulary;

/// How long a registered tenant counts as registered without being asked about again.
const KNOWN_FOR: Duration = Duration::from_secs(60);

/// Registered tenants that are remembered. When there are more, all are forgotten.
const KNOWN_MAX: usize = 4096;

/// Asks whether a tenant is registered.
pub type IsRegistered = Arc<dyn Fn(Uuid) -> BoxFuture<'static, Result<bool, Unanswered>> + Send + Sync>;

/// Whether a tenant is registered could not be found out; the log says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered;

/// The registered tenants, as far as they were asked about.
pub(super) struct Registrations {
    is_registered: IsRegistered,
    vocabulary: Vocabulary,
    /// Registered tenants, and until when they count as such. A tenant that is not registered may be so any moment, and is
    /// asked about each time.
    known: Mutex<HashMap<Uuid, Instant>>,
}

impl Registrations {
    pub(super) fn new(is_registered: IsRegistered, vocabulary: Vocabulary) -> Self {
        Self { is_registered, vocabulary, known: Mutex::default() }
    }

    /// The kind of a tenant, if it need not be asked about.
    pub(super) fn known(&self, tenant_id: Uuid) -> Option<&'static str> {
        // No code panics while it is locked.
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let until = known.get(&tenant_id)?;
        (Instant::now() < *until).then_some(self.vocabulary.registered_kind)
    }

    /// The kind of a tenant.
    pub(super) async fn ask(&self, tenant_id: Uuid) -> Result<&'static str, Unanswered> {
        if !(self.is_registered)(tenant_id).await? {
            return Ok(self.vocabulary.unregistered_kind);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(tenant_id, Instant::now() + KNOWN_FOR);
        Ok(self.vocabulary.registered_kind)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_registered_tenant_is_remembered_and_another_is_asked_about_each_time() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let is_registered: IsRegistered = Arc::new(move |id| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move { if id.is_nil() { Err(Unanswered) } else { Ok(id == Uuid::from_u128(1)) } })
        });
        let registrations = Registrations::new(is_registered, Vocabulary::TEST);
        let [registered, stranger] = [1, 2].map(Uuid::from_u128);
        assert_eq!(registrations.known(registered), None);
        assert_eq!(registrations.ask(registered).await, Ok("TENANT"));
        assert_eq!(registrations.known(registered), Some("TENANT"));
        for n in 2..4 {
            assert_eq!(registrations.ask(stranger).await, Ok("OTHER"));
            assert_eq!((registrations.known(stranger), asked.load(Ordering::Relaxed)), (None, n));
        }
        assert_eq!(registrations.ask(Uuid::nil()).await, Err(Unanswered));
        assert_eq!(registrations.known(Uuid::nil()), None);
        for n in 0..=KNOWN_MAX {
            registrations.known.lock().unwrap().insert(Uuid::from_u128(n as u128), Instant::now());
        }
        registrations.ask(registered).await.unwrap();
        assert_eq!(registrations.known.lock().unwrap().len(), 1);
    }
}
