//! A cache of whether tenants are registered with the service, for issuers whose tokens do not say what kind of tenant they
//! are for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;
use uuid::Uuid;

use super::Vocabulary;
use crate::database::share;
use crate::limits::tenant::Tenant;

/// How long a registered tenant counts as registered without being asked about again.
const REGISTERED_FOR: Duration = Duration::from_secs(60);

/// The same for a tenant that is not registered. It may be so any moment.
const UNREGISTERED_FOR: Duration = Duration::from_secs(1);

/// Tenants that are remembered. When there are more, all are forgotten.
const KNOWN_MAX: usize = 4096;

/// Asks whether a tenant is registered.
pub type IsRegistered =
    Arc<dyn Fn(Uuid) -> BoxFuture<'static, Result<bool, RegistrationUnknown>> + Send + Sync>;

/// Whether a tenant is registered could not be found out; the log says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrationUnknown;

/// The tenants that were asked about.
pub(super) struct Registrations {
    is_registered: IsRegistered,
    vocabulary: Vocabulary,
    asked: Mutex<HashMap<Uuid, Asked>>,
}

/// A question, which all calls of the tenant share, and until when its answer counts; nothing while there is none.
struct Asked {
    answer: Shared<BoxFuture<'static, Result<bool, RegistrationUnknown>>>,
    until: Option<Instant>,
}

impl Registrations {
    pub(super) fn new(is_registered: IsRegistered, vocabulary: Vocabulary) -> Self {
        Self { is_registered, vocabulary, asked: Mutex::default() }
    }

    /// The kind of a tenant, if it need not be asked about.
    pub(super) fn known(&self, tenant_id: Uuid) -> Option<&'static str> {
        let asked = self.asked();
        let Asked { answer, until } = asked.get(&tenant_id)?;
        let counts = until.is_some_and(|until| Instant::now() < until);
        let is_registered = answer.peek().filter(|_| counts)?.ok()?;
        Some(self.kind(is_registered))
    }

    /// The kind of a tenant.
    pub(super) async fn ask(&self, tenant_id: Uuid) -> Result<&'static str, RegistrationUnknown> {
        let answer = self.question(tenant_id);
        let is_registered = answer.clone().await;
        let mut asked = self.asked();
        if let Some(entry) = asked.get_mut(&tenant_id).filter(|entry| entry.answer.ptr_eq(&answer)) {
            match is_registered {
                Err(RegistrationUnknown) => drop(asked.remove(&tenant_id)),
                Ok(is_registered) => {
                    let counts_for = if is_registered { REGISTERED_FOR } else { UNREGISTERED_FOR };
                    entry.until.get_or_insert_with(|| Instant::now() + counts_for);
                }
            }
        }
        is_registered.map(|is_registered| self.kind(is_registered))
    }

    /// The question about a tenant: that of an earlier call, unless its answer counts no longer.
    fn question(&self, tenant_id: Uuid) -> Shared<BoxFuture<'static, Result<bool, RegistrationUnknown>>> {
        let mut asked = self.asked();
        let earlier = asked
            .get(&tenant_id)
            .filter(|Asked { until, .. }| until.is_none_or(|until| Instant::now() < until));
        if let Some(earlier) = earlier {
            return earlier.answer.clone();
        }
        if asked.len() >= KNOWN_MAX {
            asked.clear();
        }
        // It takes the tenant's share of the database, and not that of the service.
        let tenant = Tenant::new(self.vocabulary.unregistered_kind, tenant_id);
        let answer = share::on_behalf_of(tenant, (self.is_registered)(tenant_id)).boxed().shared();
        asked.insert(tenant_id, Asked { answer: answer.clone(), until: None });
        answer
    }

    fn kind(&self, is_registered: bool) -> &'static str {
        if is_registered { self.vocabulary.registered_kind } else { self.vocabulary.unregistered_kind }
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Uuid, Asked>> {
        // No code panics while it is locked.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_shared_and_counts_for_a_while() {
        let questions = Arc::new(AtomicUsize::new(0));
        let counted = questions.clone();
        let is_registered: IsRegistered = Arc::new(move |id| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                yield_now().await;
                if id.is_nil() { Err(RegistrationUnknown) } else { Ok(id == Uuid::from_u128(1)) }
            })
        });
        let registrations = Registrations::new(is_registered, Vocabulary::TEST);
        let asked = || questions.load(Ordering::Relaxed);
        let [registered, stranger] = [1, 2].map(Uuid::from_u128);
        for (n, (tenant, kind, counts_for)) in
            [(registered, "TENANT", REGISTERED_FOR), (stranger, "OTHER", UNREGISTERED_FOR)]
                .into_iter()
                .enumerate()
        {
            let before = 2 * n;
            assert_eq!(registrations.known(tenant), None);
            let together = join_all((0..20).map(|_| registrations.ask(tenant))).await;
            assert!(together.iter().all(|said| *said == Ok(kind)), "{together:?}");
            assert_eq!((registrations.known(tenant), asked()), (Some(kind), before + 1));
            advance(counts_for - Duration::from_millis(1)).await;
            assert_eq!((registrations.ask(tenant).await, asked()), (Ok(kind), before + 1));
            advance(Duration::from_millis(1)).await;
            assert_eq!(registrations.known(tenant), None);
            assert_eq!((registrations.ask(tenant).await, asked()), (Ok(kind), before + 2));
        }
        // What is not known is asked again.
        for n in 5..7 {
            assert_eq!((registrations.ask(Uuid::nil()).await, asked()), (Err(RegistrationUnknown), n));
            assert_eq!(registrations.known(Uuid::nil()), None);
        }
        for n in 0..KNOWN_MAX {
            registrations.ask(Uuid::from_u128(n as u128)).await.ok();
        }
        assert!(registrations.asked().len() <= KNOWN_MAX);
    }
}
