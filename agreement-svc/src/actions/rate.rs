//! The bound on how often the acceptances of a customer change (ATT-8), which attestations and signatures share. Withdrawals
//! count and are never refused: what was accepted wrongly must not go on counting.

use uuid::Uuid;

use crate::rules::attestation::{CHANGES_COUNTED, check_change_rate};
use crate::store::acceptance::changes_since;
use crate::store::change::{Change, ChangeError};

/// Refuses a change of an acceptance by the partner, or by the customer itself, that comes too soon after many others.
pub(super) fn require_room_for_change(
    change: &mut Change<'_>,
    partner_id: Option<Uuid>,
    customer_id: Uuid,
) -> Result<(), ChangeError> {
    let (now, max) = (change.now, change.acceptance_changes_max);
    let recent = changes_since(change.connection, partner_id, customer_id, now - CHANGES_COUNTED, max)?;
    Ok(check_change_rate(recent, max, now)?)
}
