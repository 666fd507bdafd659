//! The list of blocked customers: the gate's own rules over every customer of a partner, a page at a time.

use chassis::database::Connection;
use uuid::Uuid;

use super::gate::{Explained, decide_with_reasons, live_template, remedies_of, seen_by};
use crate::rules::eligibility::{Acting, Answer, Considered, Decision, Question, Remedy, decide};
use crate::rules::policy::Policy;
use crate::store::change::ChangeError;
use crate::store::customer::customer_names;
use crate::store::gate::{Pair, Parties, TemplateCache, active_pairs, gate_facts};
use crate::store::invitation::{Declined, invitations_declined};

/// Pairs of payer and customer that are read together: enough to make the statement cheap, few enough
/// that a small page which fills up early has not read much in vain.
const PAIRS_PER_READ: usize = 250;

/// Reads of one page. A partner with many customers of which few are blocked gets short pages rather
/// than one call that holds a connection until it has looked at every customer.
const READS_MAX: usize = 8;

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
    pub answer: Answer,
    pub remedies: Vec<Remedy>,
    /// The acceptances that do not count.
    pub considered: Vec<Considered>,
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
    let mut found = vec![];
    'reading: for _ in 0..READS_MAX {
        let pairs = active_pairs(connection, Some(acting.partner_id), after, PAIRS_PER_READ)?;
        let parties: Vec<_> = pairs.iter().map(|pair| Parties { pair: *pair, reseller_id: None }).collect();
        for (pair, snapshot) in pairs.iter().zip(gate_facts(connection, cache, &parties)?) {
            // In one snapshot a pair that is listed has facts.
            let Some(mut snapshot) = snapshot? else { continue };
            if decide(policy, question, &snapshot.facts).decision == Decision::Blocked {
                if found.len() == *size {
                    break 'reading;
                }
                if let (answer, Some(explained)) =
                    decide_with_reasons(connection, policy, question, *pair, &mut snapshot)?
                {
                    found.push((*pair, answer, snapshot, explained));
                }
            }
            after = Some(*pair);
        }
        if pairs.len() < PAIRS_PER_READ {
            after = None;
            break;
        }
    }
    // All answers are to the same question, so the satisfying types are the same.
    let live = match found.first() {
        Some((_, answer, ..)) => live_template(connection, &answer.satisfying, question.at)?,
        None => None,
    };
    let ids: Vec<Uuid> = found.iter().map(|(pair, ..)| pair.customer_id).collect();
    let names = customer_names(connection, &ids)?;
    let mut declined = invitations_declined(connection, acting.partner_id, &ids)?;
    let blocked =
        found.into_iter().map(|(pair, answer, snapshot, Explained { history, considered })| Blocked {
            pair,
            company_name: names.get(&pair.customer_id).cloned().unwrap_or_default(),
            remedies: remedies_of(&answer, pair, *acting, &snapshot, &history, live),
            declined: declined.remove(&pair.customer_id),
            considered: seen_by(*acting, pair, considered),
            answer,
        });
    Ok((blocked.collect(), after))
}
