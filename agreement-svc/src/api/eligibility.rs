//! `EligibilityService`: the gate.

use chassis::auth::{self, Caller};
use chassis::database::{Connection, Error};
use chassis::form::{Form, timestamp};
use chassis::idempotency::IdempotencyKey;
use chassis::paging::Page;
use chrono::Datelike;
use proto::agreement::eligibility_result::Result as ItemResult;
use proto::agreement::eligibility_service_server::EligibilityService;
use proto::agreement::{
    AssumedAttestation, BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, BlockedCustomer,
    CheckEligibilityRequest, CheckEligibilityResponse, EligibilityResult, ListBlockedCustomersRequest,
    ListBlockedCustomersResponse, PartnerRole, ReportPurchaseRequest, ReportPurchaseResponse,
};
use proto::identity::TenantKind;
use proto::types;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::access::PARTNER_WRITE;
use super::{Api, checked, convert, existing, status, visible};
use crate::rules::attestation::check_not_in_the_future;
use crate::rules::eligibility::{
    Acceptance, AcceptanceKind, Acting, Answer, Decision, Facts, Operation, Question, Standing, decide,
    reacceptances, remedies,
};
use crate::rules::event::Event;
use crate::rules::party::PartnerKind;
use crate::rules::policy::{Channel, Policy};
use crate::rules::signature::may_sign_directly;
use crate::rules::template::AgreementType;
use crate::rules::{Refusal, Time};
use crate::store::change::ChangeError;
use crate::store::customer::{Viewer, customer_names, customer_set_first_purchase};
use crate::store::event::event_exists;
use crate::store::gate::{Pair, Snapshot, active_pairs, gate_snapshot, gate_snapshots};
use crate::store::partner::partner_find;
use crate::store::template::{template_find, template_list, template_live};

/// One entry for each line of the largest order.
const DEMANDS_MAX: usize = 100;

/// Questions of one batch: a screenful of customers several times over. Each costs a statement of its
/// own, and all of them together hold one connection.
const ITEMS_MAX: usize = 100;

/// Pairs of payer and customer that are read together: enough to make the statements cheap, few enough
/// that a small page which fills up early has not read much in vain.
const PAIRS_PER_READ: usize = 250;

/// Reads of one page. A partner with many customers of which few are blocked gets short pages rather
/// than one call that holds a connection until it has looked at everybody.
const READS_MAX: usize = 8;

#[tonic::async_trait]
impl EligibilityService for Api {
    async fn check_eligibility(
        &self,
        request: Request<CheckEligibilityRequest>,
    ) -> Result<Response<CheckEligibilityResponse>, Status> {
        let caller = auth::caller(&request)?;
        let asked = Asked::read(&caller, &request.into_inner(), self.clock.now(), self.links.is_some())?;
        let policy = self.policy.clone();
        let read = move |connection: &mut Connection| answered(connection, &policy, &caller, &asked);
        let answer = self.database.read(read).await.map_err(status::of)?;
        self.decisions.count(&answer);
        Ok(Response::new(answer))
    }

    async fn batch_check_eligibility(
        &self,
        request: Request<BatchCheckEligibilityRequest>,
    ) -> Result<Response<BatchCheckEligibilityResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let items = request.into_inner().items;
        let mut form = Form::new();
        if items.is_empty() || items.len() > ITEMS_MAX {
            form.violation("items", format!("must have 1 to {ITEMS_MAX} entries"));
        }
        checked(form)?;
        let may_invite = self.links.is_some();
        let items: Vec<_> = items.iter().map(|item| Asked::read(&caller, item, now, may_invite)).collect();

        let policy = self.policy.clone();
        let read = move |connection: &mut Connection| {
            let results = items.into_iter().map(|item| match item {
                Ok(asked) => result_of(answered(connection, &policy, &caller, &asked)),
                Err(status) => Ok(EligibilityResult { result: Some(refused_item(&status)) }),
            });
            Ok(BatchCheckEligibilityResponse { results: results.collect::<Result<_, ChangeError>>()? })
        };
        let batch = self.database.snapshot(read).await.map_err(status::of)?;
        for item in &batch.results {
            if let Some(ItemResult::Answer(answer)) = &item.result {
                self.decisions.count(answer);
            }
        }
        Ok(Response::new(batch))
    }

    async fn list_blocked_customers(
        &self,
        request: Request<ListBlockedCustomersRequest>,
    ) -> Result<Response<ListBlockedCustomersResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let message = request.into_inner();
        let mut form = Form::new();
        let as_of = form.optional_time("as_of", message.as_of.as_ref());
        let channel = convert::channel_of(&caller);
        let filter = format!("{channel:?}/{}", as_of.map_or(String::new(), |at| at.to_rfc3339()));
        let asked = (message.page_size, message.page_token.as_str());
        let page = Page::read(&mut form, asked, &caller, "ListBlockedCustomers", &filter);
        let resumed = page.after.as_deref().map(read_position);
        if resumed == Some(None) {
            form.violation("page_token", "is not a token of this list; start without one");
        }
        checked(form)?;
        let (begun_at, after) = resumed.flatten().unzip();
        let at = as_of.or(begun_at).unwrap_or(now);
        let listing = Listing {
            acting: Acting {
                partner_id: caller.tenant_id,
                may_act: PARTNER_WRITE.contains(&caller),
                may_invite: self.links.is_some(),
            },
            question: Question { operation: Operation::NewPurchase, channel, demands: vec![], at },
            after,
            size: page.size,
        };

        let policy = self.policy.clone();
        let list = move |connection: &mut Connection| {
            let (customers, more_after) = blocked(connection, &policy, &listing)?;
            let next_page_token = more_after.map(|last| page.token(&position(at, last))).unwrap_or_default();
            let evaluated_at = Some(timestamp(at));
            Ok(ListBlockedCustomersResponse { customers, next_page_token, evaluated_at })
        };
        self.database.snapshot(list).await.map(Response::new).map_err(status::of)
    }

    async fn report_purchase(
        &self,
        request: Request<ReportPurchaseRequest>,
    ) -> Result<Response<ReportPurchaseResponse>, Status> {
        let caller = auth::caller(&request)?;
        let now = self.clock.now();
        let mut message = request.into_inner();
        let mut form = Form::new();
        let request_id = form.id("request_id", &std::mem::take(&mut message.request_id));
        let customer_id = form.id("customer_id", &message.customer_id);
        let payer_id = form.id("payer_id", &message.payer_id);
        let purchased_at = form.time("purchased_at", message.purchased_at.as_ref());
        if let Err(problem) = check_not_in_the_future(purchased_at, now) {
            form.violation("purchased_at", problem);
        }
        checked(form)?;

        let key = IdempotencyKey::new(&caller, "ReportPurchase", request_id, &message);
        self.change(key, now, false, move |change| {
            let customer = visible(change.connection, Viewer::Everything, customer_id)?;
            existing(change, payer_id)?;
            let first = customer.first_purchase_at.filter(|first| *first <= purchased_at);
            if first.is_none() {
                change.record(&Event::FirstPurchaseReported { customer_id, payer_id, purchased_at })?;
                customer_set_first_purchase(change.connection, customer_id, purchased_at)?;
            }
            let first_purchase_at = Some(timestamp(first.unwrap_or(purchased_at)));
            Ok(ReportPurchaseResponse { first_purchase_at })
        })
        .await
    }
}

/// A question, read and checked.
struct Asked {
    payer_id: Uuid,
    customer_id: Uuid,
    reseller_id: Option<Uuid>,
    at_least_revision: i64,
    acting: Acting,
    question: Question,
    assumed: Option<Assumed>,
}

/// An attestation that is not stored and is to be taken for the payer's current one (ORD-5).
struct Assumed {
    attestation_id: Uuid,
    template_id: Uuid,
    template_version: u32,
}

impl Asked {
    fn read(
        caller: &Caller,
        message: &CheckEligibilityRequest,
        now: Time,
        may_invite: bool,
    ) -> Result<Self, Status> {
        let mut form = Form::new();
        let payer_id = form.id("payer_id", &message.payer_id);
        let customer_id = form.id("customer_id", &message.customer_id);
        let reseller_id = form.optional_id("reseller_id", &message.reseller_id);
        let operation = convert::read_operation(&mut form, "operation", message.operation);
        let demands = read_demands(&mut form, message);
        if message.at_least_revision < 0 {
            form.violation("at_least_revision", "must not be negative");
        }
        let as_of = form.optional_time("as_of", message.as_of.as_ref());
        let acting_partner_id = form.optional_id("acting_partner_id", &message.acting_partner_id);
        let assumed = message.assumed_attestation.as_ref().map(|assumed| read_assumed(&mut form, assumed));
        let (channel, acting);
        if caller.tenant_kind == TenantKind::Service {
            channel = convert::read_channel(&mut form, "channel", message.channel);
            if as_of.is_some() {
                form.violation("as_of", "is for partner users who ask for an explanation, not for services");
            }
            let partner_id = acting_partner_id.or(reseller_id).unwrap_or(payer_id);
            let may_act = read_roles(&mut form, &message.acting_roles);
            acting = Acting { partner_id, may_act, may_invite };
        } else {
            channel = Some(convert::channel_of(caller));
            for (field, is_given) in [
                ("channel", message.channel != 0),
                ("acting_partner_id", acting_partner_id.is_some()),
                ("acting_roles", !message.acting_roles.is_empty()),
            ] {
                if is_given {
                    form.violation(field, "is for services; a partner user's identity says it");
                }
            }
            if assumed.is_some() {
                form.violation("assumed_attestation", "is for services; validate the attestation by itself");
            }
            let may_act = PARTNER_WRITE.contains(caller);
            acting = Acting { partner_id: caller.tenant_id, may_act, may_invite };
        }
        checked(form)?;
        let question = Question {
            operation: operation.unwrap_or(Operation::NewPurchase),
            channel: channel.unwrap_or(Channel::Dashboard),
            demands,
            at: as_of.unwrap_or(now),
        };
        let at_least_revision = message.at_least_revision;
        Ok(Self { payer_id, customer_id, reseller_id, at_least_revision, acting, question, assumed })
    }

    /// A partner is told about itself only, as payer or as the reseller.
    fn may_be_told(&self, caller: &Caller) -> bool {
        caller.tenant_kind == TenantKind::Service
            || caller.tenant_id == self.payer_id
            || Some(caller.tenant_id) == self.reseller_id
    }
}

fn read_assumed(form: &mut Form, assumed: &AssumedAttestation) -> Assumed {
    if assumed.template_version == 0 {
        form.violation("assumed_attestation.template_version", "must be at least 1");
    }
    Assumed {
        attestation_id: form.id("assumed_attestation.attestation_id", &assumed.attestation_id),
        template_id: form.id("assumed_attestation.template_id", &assumed.template_id),
        template_version: assumed.template_version,
    }
}

fn read_demands(form: &mut Form, message: &CheckEligibilityRequest) -> Vec<Vec<AgreementType>> {
    if message.demands.len() > DEMANDS_MAX {
        form.violation("demands", format!("must have at most {DEMANDS_MAX} entries"));
        return vec![];
    }
    let demands = message.demands.iter().enumerate();
    demands
        .map(|(n, demand)| {
            let field = format!("demands[{n}].agreement_types");
            convert::read_agreement_types(form, &field, &demand.agreement_types)
        })
        .collect()
}

/// Whether the roles let the acting user attest and invite (ROLE-1).
fn read_roles(form: &mut Form, roles: &[i32]) -> bool {
    const ROLES_MAX: usize = 10;
    if roles.len() > ROLES_MAX {
        form.violation("acting_roles", format!("must have at most {ROLES_MAX} entries"));
        return false;
    }
    let mut may_act = false;
    for (n, role) in roles.iter().enumerate() {
        match PartnerRole::try_from(*role) {
            Ok(PartnerRole::AdminAgent | PartnerRole::SalesAgent) => may_act = true,
            Ok(PartnerRole::HelpdeskAgent | PartnerRole::GlobalAdmin) => {}
            Ok(PartnerRole::Unspecified) | Err(_) => {
                form.violation(format!("acting_roles[{n}]"), "must be a role of partner users");
            }
        }
    }
    may_act
}

/// GATE-0: why payer, customer and reseller have no answer. Of other partners' kinds nothing is told.
fn apart(connection: &mut Connection, asked: &Asked) -> Result<ChangeError, ChangeError> {
    let payer = partner_find(connection, asked.payer_id)?;
    Ok(match payer {
        Some(payer) if payer.kind == PartnerKind::IndirectReseller && payer.id == asked.acting.partner_id => {
            Refusal::PayerIsReseller { payer_id: payer.id }.into()
        }
        _ => Refusal::NotFound { resource: "customer", id: asked.customer_id }.into(),
    })
}

/// The live template of the newest satisfying type.
fn live_template(
    connection: &mut Connection,
    satisfying: &[AgreementType],
    at: Time,
) -> Result<Option<Uuid>, ChangeError> {
    match satisfying.iter().max() {
        Some(newest) => Ok(template_live(connection, *newest, at)?),
        None => Ok(None),
    }
}

/// Answers one question, on a connection that sees one state while it does.
fn answered(
    connection: &mut Connection,
    policy: &Policy,
    caller: &Caller,
    asked: &Asked,
) -> Result<CheckEligibilityResponse, ChangeError> {
    if !asked.may_be_told(caller) {
        return Err(Refusal::NotFound { resource: "customer", id: asked.customer_id }.into());
    }
    let together = gate_snapshot(connection, asked.payer_id, asked.customer_id, asked.reseller_id)?;
    let Some(mut snapshot) = together else { return Err(apart(connection, asked)?) };
    if snapshot.head < asked.at_least_revision {
        return Err(Refusal::RevisionBehind { head: snapshot.head }.into());
    }
    // A revision that a restore passed over is below the head, and nothing of it is known.
    if asked.at_least_revision > 0 && !event_exists(connection, asked.at_least_revision)? {
        return Err(Refusal::HistoryForked { revision: asked.at_least_revision }.into());
    }
    if let Some(assumed) = &asked.assumed {
        snapshot.facts = assuming(connection, snapshot.facts, assumed, asked.question.at)?;
    }
    let answer = decide(policy, &asked.question, &snapshot.facts);
    let live = match answer.reasons.as_slice() {
        [] => None,
        _ => live_template(connection, &answer.satisfying, asked.question.at)?,
    };
    Ok(CheckEligibilityResponse {
        decision: convert::decision(answer.decision),
        rule: convert::rule(answer.rule),
        reasons: answer.reasons.iter().map(|reason| convert::reason(*reason)).collect(),
        remedies: open_remedies(&answer, asked.payer_id, asked.acting, &snapshot, live),
        evidence: answer.evidence.as_ref().map(convert::evidence),
        payer_id: asked.payer_id.to_string(),
        customer_id: asked.customer_id.to_string(),
        customer_country: snapshot.country,
        customer_cloud: convert::cloud(snapshot.facts.cloud),
        revision: snapshot.acceptance_revision,
        evaluated_at: Some(timestamp(asked.question.at)),
        valid_until: answer.valid_until.map(timestamp),
    })
}

/// The facts as they would be had the payer attested what is only assumed.
fn assuming(
    connection: &mut Connection,
    facts: Facts,
    assumed: &Assumed,
    at: Time,
) -> Result<Facts, ChangeError> {
    let Assumed { attestation_id, template_id, template_version } = *assumed;
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
        agreed_at: at,
        standing: Standing::Current,
    };
    let later = reacceptances(&template_list(connection, &[template.agreement_type])?, effective_from);
    Ok(facts.with_attestation(attested, later))
}

fn open_remedies(
    answer: &Answer,
    payer_id: Uuid,
    acting: Acting,
    snapshot: &Snapshot,
    live: Option<Uuid>,
) -> Vec<types::Remedy> {
    let signatures = snapshot.facts.acceptances.iter().filter(|a| a.kind == AcceptanceKind::Signature);
    let first_signed_at = signatures.map(|signature| signature.agreed_at).min();
    let may_sign = may_sign_directly(snapshot.first_purchase_at, first_signed_at);
    remedies(answer, payer_id, acting, live, may_sign).into_iter().map(convert::remedy).collect()
}

/// What stands for one item of a batch. A refusal is the item's own, and so is a damaged row; a
/// database that does not answer is everybody's.
fn result_of(
    answered: Result<CheckEligibilityResponse, ChangeError>,
) -> Result<EligibilityResult, ChangeError> {
    let result = match answered {
        Ok(answer) => ItemResult::Answer(answer),
        Err(error @ (ChangeError::Refused(_) | ChangeError::Failed(Error::Corrupt { .. }))) => {
            refused_item(&status::of(error))
        }
        Err(error) => return Err(error),
    };
    Ok(EligibilityResult { result: Some(result) })
}

fn refused_item(status: &Status) -> ItemResult {
    ItemResult::Refusal(status::item(status))
}

/// A page of blocked customers to be found.
struct Listing {
    acting: Acting,
    question: Question,
    after: Option<Pair>,
    size: usize,
}

/// The blocked customers of a page, and, unless it is the last, after which pair the next begins.
fn blocked(
    connection: &mut Connection,
    policy: &Policy,
    listing: &Listing,
) -> Result<(Vec<BlockedCustomer>, Option<Pair>), ChangeError> {
    let Listing { acting, question, size, .. } = listing;
    let mut after = listing.after;
    let mut found = vec![];
    'reading: for _ in 0..READS_MAX {
        let pairs = active_pairs(connection, Some(acting.partner_id), after, PAIRS_PER_READ)?;
        for (pair, snapshot) in pairs.iter().zip(gate_snapshots(connection, &pairs)?) {
            let answer = decide(policy, question, &snapshot.facts);
            if answer.decision == Decision::Blocked {
                if found.len() == *size {
                    break 'reading;
                }
                found.push((*pair, answer, snapshot));
            }
            after = Some(*pair);
        }
        if pairs.len() < PAIRS_PER_READ {
            after = None;
            break;
        }
    }
    // All answers are to the same question, so what satisfies is the same.
    let live = match found.first() {
        Some((_, answer, _)) => live_template(connection, &answer.satisfying, question.at)?,
        None => None,
    };
    let ids: Vec<Uuid> = found.iter().map(|(pair, ..)| pair.customer_id).collect();
    let names = customer_names(connection, &ids)?;
    let customers = found.iter().map(|(pair, answer, snapshot)| BlockedCustomer {
        customer_id: pair.customer_id.to_string(),
        company_name: names.get(&pair.customer_id).cloned().unwrap_or_default(),
        payer_id: pair.payer_id.to_string(),
        reasons: answer.reasons.iter().map(|reason| convert::reason(*reason)).collect(),
        remedies: open_remedies(answer, pair.payer_id, *acting, snapshot, live),
    });
    Ok((customers.collect(), after))
}

/// Where a list of blocked customers goes on, as a page token carries it: the time all its pages are
/// about, and the last pair that was looked at.
fn position(at: Time, last: Pair) -> String {
    format!("{}/{}/{}", at.timestamp_micros(), last.customer_id, last.payer_id)
}

fn read_position(key: &str) -> Option<(Time, Pair)> {
    let (at, pair) = key.split_once('/')?;
    let (customer_id, payer_id) = pair.split_once('/')?;
    // Only times that the wire can carry; a token that was made up may hold any.
    let at = Time::from_timestamp_micros(at.parse().ok()?).filter(|at| (1..=9999).contains(&at.year()))?;
    Some((at, Pair { customer_id: customer_id.parse().ok()?, payer_id: payer_id.parse().ok()? }))
}
