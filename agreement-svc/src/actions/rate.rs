//! The bound on how often the acceptances of a customer change (ATT-8), which attestations and signatures share. Withdrawals
//! count and are never refused: what was accepted wrongly must not go on counting.

use std::collections::BTreeMap;
use std::iter::repeat_n;

use chassis::database::Error;
use uuid::Uuid;

use crate::rules::attestation::{CHANGES_COUNTED, check_change_rate};
use crate::store::acceptance::{changes_counted, changes_since};
use crate::store::change::{Change, ChangeError};

/// Refuses a change of an acceptance by the partner, or by the customer itself, that comes too soon after many others.
pub(super) fn require_room_for_change(
    change: &mut Change<'_>,
    partner_id: Option<Uuid>,
    customer_id: Uuid,
) -> Result<(), ChangeError> {
    require_room(change, partner_id, customer_id, 0)
}

/// How often a partner's acceptances of some customers have changed lately.
pub(super) struct RecentChanges {
    partner_id: Uuid,
    stored: BTreeMap<Uuid, usize>,
    /// Those of this change, which are not stored yet.
    made: BTreeMap<Uuid, usize>,
}

impl RecentChanges {
    pub(super) fn read(change: &mut Change<'_>, partner_id: Uuid, customers: &[Uuid]) -> Result<Self, Error> {
        let since = change.now - CHANGES_COUNTED;
        let stored = changes_counted(change.connection, partner_id, customers, since)?;
        Ok(Self { partner_id, stored, made: BTreeMap::new() })
    }

    /// Counts a change that is made now, or refuses it as [`require_room_for_change`] does.
    pub(super) fn take_room(
        &mut self,
        change: &mut Change<'_>,
        customer_id: Uuid,
    ) -> Result<(), ChangeError> {
        let stored = self.stored.get(&customer_id).copied().unwrap_or_default();
        let made = self.made.entry(customer_id).or_default();
        // When they were made matters only where there are too many.
        if u32::try_from(stored + *made).unwrap_or(u32::MAX) >= change.acceptance_changes_max {
            require_room(change, Some(self.partner_id), customer_id, *made)?;
        }
        *made += 1;
        Ok(())
    }
}

fn require_room(
    change: &mut Change<'_>,
    partner_id: Option<Uuid>,
    customer_id: Uuid,
    made: usize,
) -> Result<(), ChangeError> {
    let (now, max) = (change.now, change.acceptance_changes_max);
    let mut recent = changes_since(change.connection, partner_id, customer_id, now - CHANGES_COUNTED, max)?;
    recent.extend(repeat_n(now, made));
    Ok(check_change_rate(recent, max, now)?)
}
