//! The history of orders and changes of subscriptions: the order of events.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Time;
use super::order::Order;
use super::subscription::Change;

/// How far the announcement of a restore lifts the revision: beyond whatever was recorded after the copy was made.
pub const LIFT: i64 = 1 << 32;

/// An event with its place in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: i64,
    pub recorded_at: Time,
    pub happened: Happened,
}

/// What an event tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    OrderPlaced(Order),
    SubscriptionChanged(Changed),
    /// The database was restored from an older copy, whose last event was [`LIFT`] before this one.
    HistoryRestored,
}

/// A change, and what of its subscription never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub subscription_id: Uuid,
    pub order_id: Uuid,
    pub payer_id: Uuid,
    pub customer_id: Uuid,
    pub offer_id: String,
    pub change: Change,
    /// When the current term ends after the change; `None` for what lasts for good.
    pub term_end: Option<Time>,
}

/// What becomes an event next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Order { order_id: Uuid },
    Change { subscription_id: Uuid, number: i32 },
}

/// Puts the changes of each subscription into the order of their numbers, at the places that they have together.
pub fn in_order(entries: &[Entry]) -> Vec<Entry> {
    let mut numbers: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
    for entry in entries {
        if let Entry::Change { subscription_id, number } = entry {
            numbers.entry(*subscription_id).or_default().push(*number);
        }
    }
    // The last one is taken first.
    numbers.values_mut().for_each(|of_one| of_one.sort_unstable_by(|a, b| b.cmp(a)));
    let mut place = |entry: &Entry| match entry {
        Entry::Order { .. } => entry.clone(),
        Entry::Change { subscription_id, number } => {
            let next = numbers.get_mut(subscription_id).and_then(Vec::pop);
            Entry::Change { subscription_id: *subscription_id, number: next.unwrap_or(*number) }
        }
    };
    entries.iter().map(&mut place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// During an upgrade, changes of one subscription come from replicas with and without the history.
    #[test]
    fn the_changes_of_a_subscription_come_in_the_order_of_their_numbers() {
        let order = |id| Entry::Order { order_id: Uuid::from_u128(id) };
        let change = |id, number| Entry::Change { subscription_id: Uuid::from_u128(id), number };
        let taken =
            [order(1), change(8, 3), change(9, 1), change(8, 1), order(2), change(8, 2), change(9, 2)];
        let expected =
            [order(1), change(8, 1), change(9, 1), change(8, 2), order(2), change(8, 3), change(9, 2)];
        assert_eq!(in_order(&taken), expected);
        assert_eq!(in_order(&expected), expected);
    }

    /// Consumers know it, and so do the histories of every version.
    #[test]
    fn a_restore_lifts_the_revision_by_as_much_as_ever() {
        assert_eq!(LIFT, 4_294_967_296);
    }
}
