//! The list of blocked customers: the gate's own rules over every customer of a partner, a page at a time.

use std::ops::RangeInclusive;

use chassis::database::Connection;
use uuid::Uuid;

use super::gate::{Case, GateAnswer, answer_cases};
use crate::rules::eligibility::{Acting, Decision, Question, decide};
use crate::rules::policy::Policy;
use crate::store::change::ChangeError;
use crate::store::customer::customer_names;
use crate::store::gate::{Pair, Parties, TemplateCache, active_pairs, gate_facts};
use crate::store::invitation::{Declined, invitations_declined};

/// Pairs of payer and customer that are read together: enough to make the statement cheap, few enough that not many are read
/// in vain.
const PAIRS_PER_READ: RangeInclusive<usize> = 50..=500;

/// Pairs that a page looks at. A partner with many customers of which few are blocked gets short pages rather
/// than one call that holds a connection until it has looked at every customer.
const PAIRS_MAX: usize = 2000;

/// A page of blocked customers to be found.
pub(crate) struct Listing {
    pub acting: Acting,
    pub question: Question,
    pub after: Option<Pair>,
    pub size: usize,
}

/// A customer that the acting partner could not order for.
pub(crate) struct Blocked {
    pub pair: Pair,
    pub company_name: String,
    pub answer: GateAnswer,
    /// The acting partner's latest invitation that the customer declined.
    pub declined: Option<Declined>,
}

/// The blocked customers of a page, and, unless it is the last, after which pair the next begins.
pub(crate) fn blocked_list(
    connection: &mut Connection,
    policy: &Policy,
    cache: &TemplateCache,
    listing: &Listing,
) -> Result<(Vec<Blocked>, Option<Pair>), ChangeError> {
    let Listing { acting, question, size, .. } = listing;
    let mut after = listing.after;
    let (mut looked_at, mut found, mut cases) = (0, vec![], vec![]);
    'reading: while looked_at < PAIRS_MAX {
        let limit = pairs_to_read(size + 1 - found.len(), looked_at, found.len());
        let pairs = active_pairs(connection, Some(acting.partner_id), after, limit)?;
        let parties: Vec<_> = pairs.iter().map(|pair| Parties { pair: *pair, reseller_id: None }).collect();
        for (pair, snapshot) in pairs.iter().zip(gate_facts(connection, cache, &parties)?) {
            // In one snapshot a pair that is listed has facts.
            let Some(snapshot) = snapshot? else { continue };
            if decide(policy, question, &snapshot.facts).decision == Decision::Blocked {
                if found.len() == *size {
                    break 'reading;
                }
                found.push(*pair);
                cases.push(Ok(Case { pair: *pair, acting: *acting, question, snapshot }));
            }
            after = Some(*pair);
        }
        if pairs.len() < limit {
            after = None;
            break;
        }
        looked_at += limit;
    }
    let ids: Vec<Uuid> = found.iter().map(|pair| pair.customer_id).collect();
    let names = customer_names(connection, &ids)?;
    let declined = invitations_declined(connection, acting.partner_id, &ids)?;
    let answers = answer_cases(connection, policy, cases)?;
    let blocked = found.into_iter().zip(answers).map(|(pair, answer)| {
        Ok::<_, ChangeError>(Blocked {
            pair,
            company_name: names.get(&pair.customer_id).cloned().unwrap_or_default(),
            // A customer of two payers has two rows.
            declined: declined.get(&pair.customer_id).copied(),
            answer: answer?,
        })
    });
    Ok((blocked.collect::<Result<_, _>>()?, after))
}

/// As many pairs as have the missing rows if a row is as frequent among them as among those that were looked at, and a quarter
/// more; at least as many as those, so that a page takes few reads.
fn pairs_to_read(missing: usize, looked_at: usize, found: usize) -> usize {
    let expected = missing * looked_at.max(1) / found.max(1);
    let limit = (expected + expected / 4).max(looked_at);
    limit.clamp(*PAIRS_PER_READ.start(), *PAIRS_PER_READ.end()).min(PAIRS_MAX - looked_at)
}

#[cfg(test)]
mod tests;
