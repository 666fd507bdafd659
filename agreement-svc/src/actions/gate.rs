//! The gate's answer (GATE-0 to GATE-6): facts read, the rules asked, remedies worked out. Single checks, batches
//! and orders that are only validated all come through here.

use std::collections::btree_map::{BTreeMap, Entry};

use chassis::database::{Connection, Error};
use uuid::Uuid;

use super::visibility::require_relationship;
use crate::rules::eligibility::{
    Acceptance, AcceptanceKind, Acting, Answer, Considered, Facts, Question, Remedy, considered, decide,
    misnamed, reacceptances, remedies,
};
use crate::rules::party::{PartnerKind, Relationship};
use crate::rules::policy::Policy;
use crate::rules::signature::may_sign_directly;
use crate::rules::{Refusal, Time};
use crate::store::change::ChangeError;
use crate::store::customer::relationship_active;
use crate::store::event::event_exists;
use crate::store::gate::{Pair, Parties, Snapshot, TemplateCache, gate_facts, gate_history};
use crate::store::partner::partner_find;
use crate::store::template::{template_find, template_list, template_live};

/// A question to the gate.
pub(crate) struct GateQuery {
    pub parties: Parties,
    /// The answer must not be of an older state; 0 asks for none.
    pub at_least_revision: i64,
    pub acting: Acting,
    /// Whether the caller may have the answer: a service, or a partner that is one of the parties (ROLE-6).
    pub is_party: bool,
    pub question: Question,
    pub assumed: Option<AssumedAttestation>,
}

/// An attestation that is not stored and counts as the payer's current one (ORD-5).
pub(crate) struct AssumedAttestation {
    pub attestation_id: Uuid,
    pub template_id: Uuid,
    pub template_version: u32,
    pub agreed_at: Option<Time>,
}

/// The gate's answer, with the state that it rests on.
pub(crate) struct GateAnswer {
    pub answer: Answer,
    pub snapshot: Snapshot,
    pub remedies: Vec<Remedy>,
    /// The acceptances that do not count, if the answer has reasons.
    pub considered: Vec<Considered>,
}

/// Those that a partner may see: a reseller sees no attestation of its provider.
fn seen_by(acting: Acting, pair: Pair, mut considered: Vec<Considered>) -> Vec<Considered> {
    if acting.partner_id != pair.payer_id {
        considered.retain(|one| one.acceptance.kind == AcceptanceKind::Signature);
    }
    considered
}

/// A question about parties of which the facts are known.
pub(super) struct Case<'q> {
    pub pair: Pair,
    pub acting: Acting,
    pub question: &'q Question,
    pub snapshot: Snapshot,
}

/// The answer to a question that the facts suffice for; else the facts, for [`answer`], which reads more.
pub(crate) fn answer_from_facts(
    policy: &Policy,
    query: &GateQuery,
    facts: Option<Snapshot>,
) -> Result<GateAnswer, Option<Snapshot>> {
    let needs_more = !query.is_party || query.at_least_revision > 0 || query.assumed.is_some();
    match facts {
        Some(snapshot) if !needs_more => {
            let answer = decide(policy, &query.question, &snapshot.facts);
            // Reasons are to be explained.
            if answer.reasons.is_empty() {
                Ok(GateAnswer { answer, snapshot, remedies: vec![], considered: vec![] })
            } else {
                Err(Some(snapshot))
            }
        }
        facts => Err(facts),
    }
}

/// Answers many questions, on a connection that sees one state meanwhile. Each has an answer or an error of its own.
pub(crate) fn check_each(
    connection: &mut Connection,
    policy: &Policy,
    cache: &TemplateCache,
    queries: &[GateQuery],
) -> Result<Vec<Result<GateAnswer, ChangeError>>, Error> {
    let parties: Vec<Parties> = queries.iter().map(|query| query.parties).collect();
    let facts = gate_facts(connection, cache, &parties)?;
    let cases = queries.iter().zip(facts).map(|(query, facts)| case(connection, query, facts?)).collect();
    answer_cases(connection, policy, cases)
}

/// Answers one question about parties of which the facts were read before.
pub(crate) fn answer(
    connection: &mut Connection,
    policy: &Policy,
    query: &GateQuery,
    snapshot: Option<Snapshot>,
) -> Result<GateAnswer, ChangeError> {
    let case = case(connection, query, snapshot)?;
    answer_cases(connection, policy, vec![Ok(case)])?.pop().unwrap_or(Err(Error::Panicked.into()))
}

/// What is to be decided, or why nothing is.
fn case<'q>(
    connection: &mut Connection,
    query: &'q GateQuery,
    snapshot: Option<Snapshot>,
) -> Result<Case<'q>, ChangeError> {
    let Some(mut snapshot) = snapshot.filter(|_| query.is_party) else {
        return Err(explain_not_found(connection, query)?);
    };
    if snapshot.head < query.at_least_revision {
        return Err(Refusal::RevisionBehind { head: snapshot.head }.into());
    }
    // A restore passes over revisions. They are below the head, and no event has them.
    if query.at_least_revision > 0 && !event_exists(connection, query.at_least_revision)? {
        return Err(Refusal::HistoryForked { revision: query.at_least_revision }.into());
    }
    if let Some(assumed) = &query.assumed {
        snapshot.facts = with_assumed(connection, snapshot.facts, assumed, query.question.at)?;
    }
    Ok(Case { pair: query.parties.pair, acting: query.acting, question: &query.question, snapshot })
}

/// Decides each case, and explains the answers that have reasons. What explains them is read for all of them together.
pub(super) fn answer_cases(
    connection: &mut Connection,
    policy: &Policy,
    cases: Vec<Result<Case<'_>, ChangeError>>,
) -> Result<Vec<Result<GateAnswer, ChangeError>>, Error> {
    let decided = cases.into_iter().map(|case| {
        let case = case?;
        Ok((decide(policy, case.question, &case.snapshot.facts), case))
    });
    let decided: Vec<Result<_, ChangeError>> = decided.collect();
    let (mut pairs, mut live) = (vec![], BTreeMap::new());
    for (answer, case) in decided.iter().flatten().filter(|(answer, _)| !answer.reasons.is_empty()) {
        pairs.push(case.pair);
        if let Some(newest) = answer.satisfying.iter().max() {
            let at = case.question.at;
            if let Entry::Vacant(unread) = live.entry((*newest, at)) {
                unread.insert(template_live(connection, *newest, at)?);
            }
        }
    }
    let mut histories = gate_history(connection, &pairs)?.into_iter();
    let answers = decided.into_iter().map(|decided| {
        let (answer, Case { pair, acting, question, mut snapshot }) = decided?;
        if answer.reasons.is_empty() {
            return Ok(GateAnswer { answer, snapshot, remedies: vec![], considered: vec![] });
        }
        let history = histories.next().unwrap_or(Err(Error::Panicked))?;
        snapshot.facts.withdrawn = history.withdrawn;
        // With what was withdrawn, the decision is the same, and the reasons may be others.
        let answer = decide(policy, question, &snapshot.facts);
        // The live template of the newest satisfying type.
        let live = answer.satisfying.iter().max().and_then(|newest| *live.get(&(*newest, question.at))?);
        let may_sign = may_sign_directly(snapshot.first_purchase_at, history.first_signed_at);
        let remedies = remedies(&answer, pair.payer_id, acting, live, may_sign);
        let considered = seen_by(acting, pair, considered(&answer, &snapshot.facts, question.at));
        Ok(GateAnswer { answer, snapshot, remedies, considered })
    });
    Ok(answers.collect())
}

/// GATE-0: the refusal for parties without an active relationship. It names the wrong one of them to a partner that sees
/// the customer; to all others the customer does not exist (ROLE-6). It reveals nothing about the kind and the
/// relationships of another partner.
fn explain_not_found(connection: &mut Connection, query: &GateQuery) -> Result<ChangeError, ChangeError> {
    let Parties { pair: Pair { customer_id, payer_id }, .. } = query.parties;
    let acting = query.acting.partner_id;
    let payer = partner_find(connection, payer_id)?;
    if payer.is_some_and(|payer| payer.kind == PartnerKind::IndirectReseller && payer.id == acting) {
        return Ok(Refusal::PayerIsReseller { payer_id }.into());
    }
    let own = require_relationship(connection, acting, customer_id)?;
    let with_payer = Relationship { payer_id, reseller_id: Some(acting) };
    let is_with_payer =
        own.payer_id == payer_id || relationship_active(connection, with_payer, customer_id)?.is_some();
    let misnamed = misnamed(payer_id, acting, own, is_with_payer);
    Ok(Refusal::NotTogether { customer_id, misnamed }.into())
}

/// The facts as they would be with the assumed attestation stored.
fn with_assumed(
    connection: &mut Connection,
    facts: Facts,
    assumed: &AssumedAttestation,
    at: Time,
) -> Result<Facts, ChangeError> {
    let AssumedAttestation { attestation_id, template_id, template_version, agreed_at } = *assumed;
    let template = template_find(connection, template_id)?;
    let unknown = || Refusal::field("assumed_attestation.template_id", "is not a template");
    let template = template.ok_or_else(unknown)?;
    let version = template.versions.iter().find(|version| version.number == template_version);
    let unknown = || Refusal::field("assumed_attestation.template_version", "is not one of the template's");
    let effective_from = version.ok_or_else(unknown)?.effective_from;
    let attested = Acceptance {
        id: attestation_id,
        kind: AcceptanceKind::Attestation,
        agreement_type: template.agreement_type,
        template_id,
        template_version,
        effective_from,
        agreed_at: agreed_at.unwrap_or(at),
    };
    let later = reacceptances(&template_list(connection, &[template.agreement_type])?, effective_from);
    Ok(facts.with_attestation(attested, later))
}
