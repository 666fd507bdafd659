//! Concurrency limit, fair among tenants.
//!
//! A tenant may hold as many permits as remain free. So a single greedy tenant gets half of them, two get a third each,
//! and a modest tenant finds as many free permits as each greedy one holds. No tenant has to be known beforehand.
//! Internal services act for all tenants, so they are exempt from the share and limited by the total only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// A limit of permits. Clones share it.
#[derive(Clone, Debug)]
pub struct TenantLimiter(Arc<Mutex<Shares>>);

/// A permit; dropping it releases it.
#[derive(Debug)]
pub struct Permit {
    limiter: TenantLimiter,
    tenant: Tenant,
    amount: usize,
}

/// The reason why there is no permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// All permits are taken.
    Process,
    /// The tenant holds as many permits as remain free.
    Tenant,
}

/// The holder of a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenant(&'static str, Uuid);

/// The permits that are taken, by tenant.
#[derive(Debug)]
pub(crate) struct Shares {
    max: usize,
    internal_kind: &'static str,
    taken: usize,
    /// Tenants that hold at least one.
    by_tenant: HashMap<Tenant, usize>,
}

impl TenantLimiter {
    /// A limit of `max` permits. Tenants of the internal kind are exempt from the share of a tenant.
    #[must_use]
    pub fn new(max: usize, internal_kind: &'static str) -> Self {
        Self(Arc::new(Mutex::new(Shares::new(max, internal_kind))))
    }

    /// A permit for a tenant, at once.
    ///
    /// # Errors
    /// There is none.
    pub fn try_acquire(&self, tenant: Tenant) -> Result<Permit, Overload> {
        self.try_acquire_many(tenant, 1)
    }

    pub(crate) fn try_acquire_many(&self, tenant: Tenant, amount: usize) -> Result<Permit, Overload> {
        let mut shares = self.shares();
        shares.check(tenant, amount)?;
        shares.add(tenant, amount);
        Ok(Permit { limiter: self.clone(), tenant, amount })
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        // No code panics while it is locked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.shares().remove(self.tenant, self.amount);
    }
}

impl Tenant {
    /// A tenant of a kind.
    #[must_use]
    pub const fn new(kind: &'static str, id: Uuid) -> Self {
        Self(kind, id)
    }

    /// The process itself, and the internal services that act for all tenants.
    pub(crate) const fn internal(kind: &'static str) -> Self {
        Self(kind, Uuid::nil())
    }

    /// A connection takes the part of the tenant for callers without an identity.
    pub(crate) fn of_connection(number: u64) -> Self {
        Self("", Uuid::from_u128(number.into()))
    }
}

#[cfg(test)]
impl Tenant {
    pub(crate) const fn test(kind: &'static str, id: u128) -> Self {
        Self(kind, Uuid::from_u128(id))
    }
}

impl Shares {
    pub(crate) fn new(max: usize, internal_kind: &'static str) -> Self {
        Self { max, internal_kind, taken: 0, by_tenant: HashMap::new() }
    }

    /// Whether a tenant may take that many more.
    pub(crate) fn check(&self, tenant: Tenant, amount: usize) -> Result<(), Overload> {
        let free = self.max.saturating_sub(self.taken);
        if amount > free {
            return Err(Overload::Process);
        }
        let held = self.by_tenant.get(&tenant).copied().unwrap_or(0);
        if self.is_internal(tenant) || held + amount <= free { Ok(()) } else { Err(Overload::Tenant) }
    }

    pub(crate) fn is_internal(&self, tenant: Tenant) -> bool {
        tenant.0 == self.internal_kind
    }

    pub(crate) fn add(&mut self, tenant: Tenant, amount: usize) {
        self.taken += amount;
        *self.by_tenant.entry(tenant).or_default() += amount;
    }

    pub(crate) fn remove(&mut self, tenant: Tenant, amount: usize) {
        self.taken -= amount;
        if let Some(held) = self.by_tenant.get_mut(&tenant) {
            *held -= amount;
            if *held == 0 {
                self.by_tenant.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All permits that a tenant gets before it is refused, and the reason of the refusal.
    fn all(limiter: &TenantLimiter, tenant: Tenant) -> (Vec<Permit>, Overload) {
        let mut held = vec![];
        loop {
            match limiter.try_acquire(tenant) {
                Ok(permit) => held.push(permit),
                Err(overload) => return (held, overload),
            }
        }
    }

    #[test]
    fn a_tenant_gets_as_many_permits_as_remain_free() {
        let limiter = TenantLimiter::new(12, "INTERNAL");
        let [one, other, third] = [1, 2, 3].map(|tenant| Tenant::test("TENANT", tenant));
        let (held, why) = all(&limiter, one);
        assert_eq!((held.len(), why), (6, Overload::Tenant));
        let (others, why) = all(&limiter, other);
        assert_eq!((others.len(), why), (3, Overload::Tenant));
        // A tenant that holds fewer gets the released ones.
        drop(held);
        let (again, _) = all(&limiter, one);
        assert_eq!(again.len(), 5);
        let (mut thirds, why) = all(&limiter, third);
        assert_eq!((thirds.len(), why), (2, Overload::Tenant));
        assert_eq!(limiter.try_acquire(other).unwrap_err(), Overload::Tenant);
        let (fourths, _) = all(&limiter, Tenant::test("OTHER", 3));
        assert_eq!(fourths.len(), 1);
        let (fifths, why) = all(&limiter, Tenant::test("OTHER", 4));
        assert_eq!((fifths.len(), why), (1, Overload::Process));
        thirds.pop();
        assert!(limiter.try_acquire(Tenant::test("OTHER", 5)).is_ok());
    }

    #[test]
    fn the_last_permit_can_be_taken() {
        let limiter = TenantLimiter::new(1, "INTERNAL");
        let (held, why) = all(&limiter, Tenant::test("TENANT", 1));
        assert_eq!((held.len(), why), (1, Overload::Process));
    }

    #[test]
    fn internal_services_may_take_every_permit() {
        let limiter = TenantLimiter::new(12, "INTERNAL");
        let (tenants, _) = all(&limiter, Tenant::test("TENANT", 1));
        let (services, why) = all(&limiter, Tenant::test("INTERNAL", 1));
        assert_eq!((tenants.len(), services.len(), why), (6, 6, Overload::Process));
    }

    #[test]
    fn a_large_amount_needs_as_much_free_beside_it() {
        let limiter = TenantLimiter::new(12, "INTERNAL");
        let tenant = Tenant::test("TENANT", 1);
        let take = |amount| limiter.try_acquire_many(tenant, amount);
        assert_eq!(take(13).unwrap_err(), Overload::Process);
        let held = take(8).unwrap();
        assert_eq!(take(1).unwrap_err(), Overload::Tenant);
        drop(held);
        assert!(take(8).is_ok());
    }

    #[test]
    fn tenants_without_a_permit_are_forgotten() {
        let limiter = TenantLimiter::new(12, "INTERNAL");
        drop(all(&limiter, Tenant::test("TENANT", 1)));
        let shares = limiter.shares();
        assert_eq!((shares.taken, shares.by_tenant.len()), (0, 0));
    }
}
