//! `EligibilityService`: the gate.

use chassis::auth::{self, Caller};
use chassis::database::row::id_or_empty;
use chassis::database::{Connection, Error};
use chassis::form::{Form, timestamp};
use chassis::server::call;
use chrono::Datelike;
use prost_types::Timestamp;
use proto::agreement::eligibility_result::Result as ItemResult;
use proto::agreement::eligibility_service_server::EligibilityService;
use proto::agreement::{
    BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, BlockedCustomer, CheckEligibilityRequest,
    CheckEligibilityResponse, CheckWithdrawalRequest, CheckWithdrawalResponse, DeclinedInvitation,
    EligibilityResult, GetPolicyRequest, GetPolicyResponse, ListBlockedCustomersRequest,
    ListBlockedCustomersResponse, PartnerRole, ReportPurchaseRequest, ReportPurchaseResponse,
};
use proto::identity::TenantKind;
use proto::types;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::access::PARTNER_WRITE;
use super::{Api, Mutation, checked, convert, explain, status};
use crate::actions::blocked::{Blocked, Listing, blocked_list};
use crate::actions::customer::note_purchase;
use crate::actions::gate::{self, AssumedAttestation, GateAnswer, GateQuery};
use crate::actions::visibility::{require_customer, require_partner};
use crate::actions::withdraw::{self, WithdrawalCheck};
use crate::rules::Time;
use crate::rules::attestation::check_not_in_the_future;
use crate::rules::eligibility::{Acting, Operation, Question};
use crate::rules::policy::Channel;
use crate::rules::template::AgreementType;
use crate::store::change::ChangeError;
use crate::store::customer::Viewer;
use crate::store::gate::{Pair, Parties};
use crate::store::invitation::Declined;
use crate::store::template::template_list;

/// One entry for each line of the largest order.
const DEMANDS_MAX: usize = 100;

/// Questions of one batch: a screenful of customers several times over. One statement reads the facts of all, and another one
/// what explains the answers with reasons.
const ITEMS_MAX: usize = 100;

#[tonic::async_trait]
impl EligibilityService for Api {
    async fn check_eligibility(
        &self,
        request: Request<CheckEligibilityRequest>,
    ) -> Result<Response<CheckEligibilityResponse>, Status> {
        let caller = auth::caller(&request)?;
        let query = read_query(&caller, &request.into_inner(), self.clock.now(), self.links.is_some())?;
        let facts = self.gate.read(query.parties).await.map_err(|error| status::of(error.into()))?;
        let answer = match gate::answer_from_facts(&self.policy, &query, facts) {
            Ok(answer) => response(&query, answer),
            Err(facts) => {
                let policy = self.policy.clone();
                let explain = move |connection: &mut Connection| {
                    gate::answer(connection, &policy, &query, facts).map(|answer| response(&query, answer))
                };
                self.database.read(explain).await.map_err(status::of)?
            }
        };
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
        let (mut queries, mut items_read) = (vec![], vec![]);
        for item in &items {
            items_read.push(read_query(&caller, item, now, may_invite).map(|query| queries.push(query)));
        }
        let (policy, cache) = (self.policy.clone(), self.templates.clone());
        let read = move |connection: &mut Connection| {
            let answers = gate::check_each(connection, &policy, &cache, &queries)?;
            let mut answers = queries.iter().zip(answers);
            let results = items_read.into_iter().filter_map(|item| match item {
                Ok(()) => answers.next().map(|(query, answer)| item_result(query, answer)),
                Err(status) => Some(Ok(EligibilityResult { result: Some(refused_item(&status)) })),
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
        let partner = form.optional_id("partner_id", &message.partner_id);
        let is_operator = caller.tenant_kind == TenantKind::Operator;
        if is_operator && message.partner_id.is_empty() {
            form.violation("partner_id", "is required: name the partner whose customers to list");
        } else if !is_operator && partner.is_some() {
            form.violation("partner_id", "must be empty: you see the customers of your own tenant");
        }
        // Operators read on the stricter channel, and the remedies of a user who may act.
        let (partner_id, channel, may_act) = match partner {
            Some(partner) => (partner, Channel::Dashboard, true),
            None => (caller.tenant_id, convert::channel_of(&caller), PARTNER_WRITE.contains(&caller)),
        };
        let filter =
            format!("{partner_id}/{channel:?}/{}", as_of.map_or(String::new(), |at| at.to_rfc3339()));
        let asked = (message.page_size, message.page_token.as_str());
        let page = self.pages.read(&mut form, asked, &caller, "ListBlockedCustomers", &filter);
        let resumed = page.after.as_deref().map(read_position);
        if resumed == Some(None) {
            form.violation("page_token", "is not a token of this list; start without one");
        }
        checked(form)?;
        let (begun_at, after) = resumed.flatten().unzip();
        let at = as_of.or(begun_at).unwrap_or(now);
        let listing = Listing {
            acting: Acting { partner_id, may_act, may_invite: self.links.is_some() },
            question: Question { operation: Operation::NewPurchase, channel, demands: vec![], at },
            after,
            size: page.size,
        };

        let (policy, cache) = (self.policy.clone(), self.templates.clone());
        let list = move |connection: &mut Connection| {
            if is_operator {
                require_partner(connection, partner_id)?;
            }
            let (blocked, more_after) = blocked_list(connection, &policy, &cache, &listing)?;
            let customers = blocked.into_iter().map(blocked_customer).collect();
            let next_page_token = more_after.map(|last| page.token(&position(at, last))).unwrap_or_default();
            let evaluated_at = Some(timestamp(at));
            Ok(ListBlockedCustomersResponse { customers, next_page_token, evaluated_at })
        };
        self.database.snapshot(list).await.map(Response::new).map_err(status::of)
    }

    async fn get_policy(
        &self,
        request: Request<GetPolicyRequest>,
    ) -> Result<Response<GetPolicyResponse>, Status> {
        let (_, _, form) = call::open(request)?;
        let policy = self.policy.clone();
        let now = self.clock.now();
        self.read(form, move |connection| {
            let mut types: Vec<AgreementType> =
                policy.periods().iter().flat_map(|period| period.agreement_types.clone()).collect();
            types.sort_unstable();
            types.dedup();
            let templates = template_list(connection, &types)?;
            let mut reacceptances: Vec<_> = templates.iter().flat_map(convert::reacceptances).collect();
            reacceptances.sort_by_key(|of| {
                let time = |at: Option<Timestamp>| at.map(|at| (at.seconds, at.nanos));
                (of.agreement_type, time(of.reaccept_by), time(of.effective_from))
            });
            Ok(GetPolicyResponse {
                periods: policy.periods().iter().map(convert::period).collect(),
                reacceptances,
                evaluated_at: Some(timestamp(now)),
            })
        })
        .await
    }

    async fn report_purchase(
        &self,
        request: Request<ReportPurchaseRequest>,
    ) -> Result<Response<ReportPurchaseResponse>, Status> {
        let mut call = self.mutation("ReportPurchase", request, |message| {
            (&mut message.request_id, &mut message.validate_only)
        })?;
        let Mutation { form, message, timed, .. } = &mut call;
        let customer_id = form.id("customer_id", &message.customer_id);
        let payer_id = form.id("payer_id", &message.payer_id);
        let purchased_at = form.time("purchased_at", message.purchased_at.as_ref());
        timed.push(("purchased_at".into(), purchased_at, check_not_in_the_future));

        self.change(call, move |change, _| {
            let customer = require_customer(change.connection, Viewer::Everything, customer_id)?;
            require_partner(change.connection, payer_id)?;
            let first = note_purchase(change, &customer, payer_id, purchased_at, None)?;
            Ok(ReportPurchaseResponse { first_purchase_at: Some(timestamp(first)) })
        })
        .await
    }

    async fn check_withdrawal(
        &self,
        request: Request<CheckWithdrawalRequest>,
    ) -> Result<Response<CheckWithdrawalResponse>, Status> {
        let (_, message, mut form) = call::open(request)?;
        let id = form.id("acceptance_id", &message.acceptance_id);
        checked(form)?;
        let read = move |connection: &mut Connection| {
            let WithdrawalCheck { customer_id, partner_id, is_current, uncovered } =
                withdraw::check(connection, id)?;
            let kind = match partner_id {
                Some(_) => types::AcceptanceKind::Attestation,
                None => types::AcceptanceKind::DirectSignature,
            };
            Ok::<_, ChangeError>(CheckWithdrawalResponse {
                customer_id: customer_id.to_string(),
                kind: kind.into(),
                partner_id: id_or_empty(partner_id),
                is_current,
                uncovered_partner_ids: uncovered.iter().map(ToString::to_string).collect(),
            })
        };
        self.database.snapshot(read).await.map(Response::new).map_err(status::of)
    }
}

/// Reads and checks a question.
fn read_query(
    caller: &Caller,
    message: &CheckEligibilityRequest,
    now: Time,
    may_invite: bool,
) -> Result<GateQuery, Status> {
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
    let refuse_claims = |form: &mut Form, why: &str| {
        for (field, is_given) in [
            ("acting_partner_id", acting_partner_id.is_some()),
            ("acting_roles", !message.acting_roles.is_empty()),
        ] {
            if is_given {
                form.violation(field, why);
            }
        }
        if assumed.is_some() {
            form.violation("assumed_attestation", "is for services; validate the attestation by itself");
        }
    };
    if caller.tenant_kind == TenantKind::Operator {
        // The stricter channel, unless the operator asks about the other.
        channel = match message.channel {
            0 => Some(Channel::Dashboard),
            given => convert::read_channel(&mut form, "channel", given),
        };
        refuse_claims(&mut form, "is for services; the remedies are those of the reseller, or of the payer");
        let partner_id = reseller_id.unwrap_or(payer_id);
        acting = Acting { partner_id, may_act: true, may_invite };
    } else if caller.tenant_kind == TenantKind::Service {
        channel = convert::read_channel(&mut form, "channel", message.channel);
        if as_of.is_some() {
            form.violation("as_of", "is for partner users who ask for an explanation, not for services");
        }
        let partner_id = acting_partner_id.or(reseller_id).unwrap_or(payer_id);
        let may_act = read_roles(&mut form, &message.acting_roles);
        acting = Acting { partner_id, may_act, may_invite };
    } else {
        channel = Some(convert::channel_of(caller));
        let why = "is for services; a partner user's identity says it";
        if message.channel != 0 {
            form.violation("channel", why);
        }
        refuse_claims(&mut form, why);
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
    let parties = Parties { pair: Pair { customer_id, payer_id }, reseller_id };
    let at_least_revision = message.at_least_revision;
    let is_party = may_see_answer(caller, payer_id, reseller_id);
    Ok(GateQuery { parties, at_least_revision, acting, is_party, question, assumed })
}

/// A partner gets answers about itself only, as payer or as the reseller (ROLE-6).
fn may_see_answer(caller: &Caller, payer_id: Uuid, reseller_id: Option<Uuid>) -> bool {
    caller.tenant_kind != TenantKind::Partner
        || caller.tenant_id == payer_id
        || Some(caller.tenant_id) == reseller_id
}

fn read_assumed(form: &mut Form, assumed: &proto::agreement::AssumedAttestation) -> AssumedAttestation {
    if assumed.template_version == 0 {
        form.violation("assumed_attestation.template_version", "must be at least 1");
    }
    AssumedAttestation {
        attestation_id: form.id("assumed_attestation.attestation_id", &assumed.attestation_id),
        template_id: form.id("assumed_attestation.template_id", &assumed.template_id),
        template_version: assumed.template_version,
        agreed_at: form.optional_time("assumed_attestation.agreed_at", assumed.agreed_at.as_ref()),
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

fn response(query: &GateQuery, answered: GateAnswer) -> CheckEligibilityResponse {
    let GateAnswer { answer, snapshot, remedies, considered } = answered;
    let only_reseller_id = snapshot.only_reseller_id.filter(|_| query.parties.reseller_id.is_none());
    CheckEligibilityResponse {
        decision: convert::decision(answer.decision),
        rule: convert::rule(answer.rule),
        reasons: answer.reasons.iter().map(|reason| convert::reason(*reason)).collect(),
        remedies: remedies.into_iter().map(explain::remedy).collect(),
        evidence: answer.evidence.as_ref().map(explain::evidence),
        payer_id: query.parties.pair.payer_id.to_string(),
        customer_id: query.parties.pair.customer_id.to_string(),
        customer_country: snapshot.country,
        customer_cloud: convert::cloud(snapshot.facts.cloud),
        revision: snapshot.acceptance_revision,
        evaluated_at: Some(timestamp(query.question.at)),
        valid_until: answer.valid_until.map(timestamp),
        only_reseller_id: only_reseller_id.map(|id| id.to_string()).unwrap_or_default(),
        considered: considered.iter().map(explain::considered).collect(),
        satisfying_types: answer.satisfying.iter().map(|of| convert::agreement_type(*of)).collect(),
    }
}

fn blocked_customer(blocked: Blocked) -> BlockedCustomer {
    let Blocked { pair, company_name, answer: GateAnswer { answer, remedies, considered, .. }, declined } =
        blocked;
    BlockedCustomer {
        customer_id: pair.customer_id.to_string(),
        company_name,
        payer_id: pair.payer_id.to_string(),
        reasons: answer.reasons.iter().map(|reason| convert::reason(*reason)).collect(),
        remedies: remedies.into_iter().map(explain::remedy).collect(),
        considered: considered.iter().map(explain::considered).collect(),
        declined_invitation: declined.map(|Declined { invitation_id, at, reason }| DeclinedInvitation {
            invitation_id: invitation_id.to_string(),
            declined_at: Some(timestamp(at)),
            reason: convert::decline_reason(reason),
        }),
    }
}

/// The result of one item of a batch. A refusal belongs to the item, and so does a damaged row; a database that
/// does not answer fails the whole batch.
fn item_result(
    query: &GateQuery,
    answered: Result<GateAnswer, ChangeError>,
) -> Result<EligibilityResult, ChangeError> {
    let result = match answered {
        Ok(answer) => ItemResult::Answer(response(query, answer)),
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
