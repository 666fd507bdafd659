//! The impact of a version that is only validated: the customers that it would block (TPL-3).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use chassis::database::{Connection, Error};
use uuid::Uuid;

use crate::rules::eligibility::{Reacceptance, would_close};
use crate::rules::policy::Policy;
use crate::store::gate::{Parties, TemplateCache, active_pairs, gate_facts};

/// Pairs of payer and customer that are read together: enough to make the statements cheap.
const PAIRS_PER_READ: usize = 500;

/// Partners that an impact names. There may be more than an answer can hold; those most affected
/// are the ones to inform.
const PARTNERS_MAX: usize = 1000;

/// Whom a planned version would block.
#[derive(Default)]
pub(crate) struct Impact {
    pub relationships: u64,
    pub customers: u64,
    /// Partners with their customers affected, most affected first.
    pub partners: Vec<(Uuid, u64)>,
}

/// The customers that a planned version would block, of all in this snapshot.
pub(crate) fn impact_of(
    connection: &mut Connection,
    policy: &Policy,
    cache: &TemplateCache,
    planned: Reacceptance,
) -> Result<Impact, Error> {
    let mut affected: BTreeMap<Uuid, u64> = BTreeMap::new();
    let (mut customers, mut last_affected, mut after) = (0, None, None);
    loop {
        let pairs = active_pairs(connection, None, after, PAIRS_PER_READ)?;
        let parties: Vec<_> = pairs.iter().map(|pair| Parties { pair: *pair, reseller_id: None }).collect();
        for (pair, snapshot) in pairs.iter().zip(gate_facts(connection, cache, &parties)?) {
            // In one snapshot a pair that is listed has facts.
            let Some(snapshot) = snapshot? else { continue };
            if would_close(policy, &snapshot.facts, planned) {
                *affected.entry(pair.payer_id).or_default() += 1;
                // Pairs come by customer, so that those of one stand together.
                customers += u64::from(last_affected != Some(pair.customer_id));
                last_affected = Some(pair.customer_id);
            }
        }
        if pairs.len() < PAIRS_PER_READ {
            break;
        }
        after = pairs.last().copied();
    }
    let relationships = affected.values().sum();
    let mut partners: Vec<_> = affected.into_iter().collect();
    partners.sort_by_key(|(_, customers)| Reverse(*customers));
    partners.truncate(PARTNERS_MAX);
    Ok(Impact { relationships, customers, partners })
}
