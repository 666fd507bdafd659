//! TenantLimiter for what is in progress, so few that nobody waits for long, and shared so that no tenant takes
//! them all.
//!
//! A tenant may hold as many places as are free. One that wants all of them gets half; two get a third
//! each; and whoever comes with little finds as many free as each of the greedy ones holds. Nothing has to be
//! known beforehand of who calls how much. Services of the house act for everybody and have
//! been asked for by somebody who holds a place there, so for them only the end of all places is one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::auth::Caller;

/// So many places. Clones share them.
#[derive(Clone, Debug)]
pub struct TenantLimiter(Arc<Inner>);

/// One place; dropping it gives it back.
#[derive(Debug)]
pub struct Permit {
    places: TenantLimiter,
    tenant: Tenant,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// All are taken.
    Process,
    /// The tenant holds as many as are left for others.
    Tenant,
}

/// Whose a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::server) struct Tenant(&'static str, Uuid);

#[derive(Debug)]
struct Inner {
    max: usize,
    taken: Mutex<Taken>,
}

/// How many are taken, and by whom.
#[derive(Debug)]
pub(in crate::server) struct Taken {
    total: usize,
    /// The kind of tenant that is exempt from the share.
    internal_kind: &'static str,
    /// Tenants that hold any.
    by_tenant: HashMap<Tenant, usize>,
}

impl TenantLimiter {
    /// A limiter of `max` permits. Tenants of the internal kind are exempt from the share of a tenant.
    #[must_use]
    pub fn new(max: usize, internal_kind: &'static str) -> Self {
        Self(Arc::new(Inner { max, taken: Mutex::new(Taken::new(internal_kind)) }))
    }

    /// A place for a caller, now or not at all.
    ///
    /// # Errors
    /// Who holds too many.
    pub fn try_acquire(&self, caller: &Caller) -> Result<Permit, Overload> {
        let tenant = Tenant::of(caller);
        let mut taken = self.taken();
        taken.check(self.0.max, tenant)?;
        taken.add(tenant);
        Ok(Permit { places: self.clone(), tenant })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is locked.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.taken().give_back(self.tenant);
    }
}

impl Tenant {
    pub(in crate::server) fn of(caller: &Caller) -> Self {
        Self(caller.tenant_kind, caller.tenant_id)
    }
}

impl Taken {
    pub(in crate::server) fn new(internal_kind: &'static str) -> Self {
        Self { total: 0, internal_kind, by_tenant: HashMap::new() }
    }

    /// Whether a tenant may have one more, where there are `max`.
    pub(in crate::server) fn check(&self, max: usize, tenant: Tenant) -> Result<(), Overload> {
        let free = max.saturating_sub(self.total);
        let held = self.by_tenant.get(&tenant).copied().unwrap_or(0);
        match tenant {
            _ if free == 0 => Err(Overload::Process),
            Tenant(kind, _) if kind == self.internal_kind => Ok(()),
            _ if held >= free => Err(Overload::Tenant),
            _ => Ok(()),
        }
    }

    pub(in crate::server) fn add(&mut self, tenant: Tenant) {
        self.total += 1;
        *self.by_tenant.entry(tenant).or_default() += 1;
    }

    pub(in crate::server) fn give_back(&mut self, tenant: Tenant) {
        self.total -= 1;
        if let Some(held) = self.by_tenant.get_mut(&tenant) {
            *held -= 1;
            if *held == 0 {
                self.by_tenant.remove(&tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Channel;

    fn caller(tenant_kind: &'static str, tenant: u128) -> Caller {
        let (tenant_id, user_id) = (Uuid::from_u128(tenant), Uuid::from_u128(1));
        Caller { tenant_kind, tenant_id, user_id, roles: vec![], channel: Channel::Api }
    }

    /// All that a caller is given before it is refused, and why it is.
    fn all(places: &TenantLimiter, caller: &Caller) -> (Vec<Permit>, Overload) {
        let mut held = vec![];
        loop {
            match places.try_acquire(caller) {
                Ok(place) => held.push(place),
                Err(full) => return (held, full),
            }
        }
    }

    #[test]
    fn a_tenant_gets_as_many_places_as_are_left() {
        let places = TenantLimiter::new(12, "INTERNAL");
        let [one, other, third] = [1, 2, 3].map(|tenant| caller("TENANT", tenant));
        let (held, why) = all(&places, &one);
        assert_eq!((held.len(), why), (6, Overload::Tenant));
        let (others, why) = all(&places, &other);
        assert_eq!((others.len(), why), (3, Overload::Tenant));
        // TenantLimiter that become free are for whoever holds fewer of them.
        drop(held);
        let (again, _) = all(&places, &one);
        assert_eq!(again.len(), 5);
        let (mut thirds, why) = all(&places, &third);
        assert_eq!((thirds.len(), why), (2, Overload::Tenant));
        assert_eq!(places.try_acquire(&other).unwrap_err(), Overload::Tenant);
        let (fourths, _) = all(&places, &caller("OTHER", 3));
        assert_eq!(fourths.len(), 1);
        let (fifths, why) = all(&places, &caller("OTHER", 4));
        assert_eq!((fifths.len(), why), (1, Overload::Process));
        thirds.pop();
        assert!(places.try_acquire(&caller("OTHER", 5)).is_ok());
    }

    #[test]
    fn the_last_place_can_be_taken() {
        let places = TenantLimiter::new(1, "INTERNAL");
        let one = caller("TENANT", 1);
        let (held, why) = all(&places, &one);
        assert_eq!((held.len(), why), (1, Overload::Process));
    }

    #[test]
    fn services_may_take_every_place_that_there_is() {
        let places = TenantLimiter::new(12, "INTERNAL");
        let (partners, _) = all(&places, &caller("TENANT", 1));
        let (services, why) = all(&places, &caller("INTERNAL", 1));
        assert_eq!((partners.len(), services.len(), why), (6, 6, Overload::Process));
    }

    #[test]
    fn nothing_is_remembered_of_who_holds_no_place() {
        let places = TenantLimiter::new(12, "INTERNAL");
        drop(all(&places, &caller("TENANT", 1)));
        let taken = places.taken();
        assert_eq!((taken.total, taken.by_tenant.len()), (0, 0));
    }
}
