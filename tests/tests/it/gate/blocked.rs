//! Seeing it before it hurts: who is blocked and why, now and later, many questions at once, and the
//! rehearsal of a version. All of it must say what the gate says.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use chassis::auth::{Caller, Channel};
use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chrono::Duration;
use futures_util::future::join_all;
use proto::agreement::eligibility_result::Result as ItemResult;
use proto::agreement::publish_template_version_request::Reacceptance;
use proto::agreement::{
    BatchCheckEligibilityRequest, BatchCheckEligibilityResponse, BlockedCustomer, CheckEligibilityRequest,
    CreateAttestationRequest, EndRelationshipRequest, GetTemplateRequest, LinkResellerRequest,
    ListBlockedCustomersRequest, ListBlockedCustomersResponse, PartnerKind, PublicationImpact,
    PublishTemplateVersionRequest, PublishTemplateVersionResponse, ReportPurchaseRequest,
    WithdrawAttestationRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::identity::{Role, TenantKind};
use proto::types::{AgreementType, Cloud, Decision, Operation, RemedyKind};
use rstest_reuse::apply;
use tests::clients::{bad_fields_of, caller, metadata_of};
use tests::world::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, Setup, reason_of};

use crate::each_backend;
use tonic::{Code, Status};
use uuid::{Uuid, uuid};

const GERMAN: Uuid = uuid!("00000000-0000-4000-8000-0000000000de");

/// Another provider.
const SECOND: Uuid = uuid!("00000000-0000-4000-8000-0000000000e2");

fn time(text: &str) -> Time {
    text.parse().unwrap()
}

/// A cluster under a clock that stands, with the usual partners.
async fn world_at(backend: Backend, start: &str) -> (Cluster, Clock) {
    let clock = Clock::manual(time(start));
    let cluster = Cluster::start(Setup { backend, clock: clock.clone(), ..Setup::default() }).await.unwrap();
    world::register_partners(&cluster).await.unwrap();
    (cluster, clock)
}

fn over_api(caller: Caller) -> Caller {
    Caller { channel: Channel::Api, ..caller }
}

async fn page(
    partner: &As,
    as_of: Option<Time>,
    size: i32,
    token: &str,
) -> Result<ListBlockedCustomersResponse, Status> {
    let request = ListBlockedCustomersRequest {
        as_of: as_of.map(timestamp),
        page_size: size,
        page_token: token.into(),
    };
    Ok(partner.gate().list_blocked_customers(request).await?.into_inner())
}

/// All pages of a list.
async fn pages(partner: &As, as_of: Option<Time>, size: i32) -> Vec<ListBlockedCustomersResponse> {
    let mut pages = vec![page(partner, as_of, size, "").await.unwrap()];
    while let Some(token) = pages.last().map(|p| p.next_page_token.clone()).filter(|token| !token.is_empty())
    {
        pages.push(page(partner, as_of, size, &token).await.unwrap());
    }
    pages
}

async fn blocked(partner: &As, as_of: Option<Time>) -> Vec<BlockedCustomer> {
    let pages = pages(partner, as_of, 3).await;
    assert!(pages.iter().all(|page| page.evaluated_at == pages[0].evaluated_at));
    let customers: Vec<_> = pages.into_iter().flat_map(|page| page.customers).collect();
    let keys: Vec<_> = customers.iter().map(|c| (c.customer_id.clone(), c.payer_id.clone())).collect();
    assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
    customers
}

/// A row in short, as in `Contoso: NO_ACCEPTANCE; ATTEST,INVITE_CUSTOMER`.
fn short(row: &BlockedCustomer) -> String {
    let reasons: Vec<_> =
        row.reasons().map(|r| r.as_str_name().trim_start_matches("BLOCK_REASON_").to_owned()).collect();
    let remedies: Vec<_> = row
        .remedies
        .iter()
        .map(|r| r.kind().as_str_name().trim_start_matches("REMEDY_KIND_").to_owned())
        .collect();
    format!("{}: {}; {}", row.company_name, reasons.join(","), remedies.join(","))
}

/// The rows in short, by name.
fn shown(rows: &[BlockedCustomer]) -> Vec<String> {
    let mut shown: Vec<_> = rows.iter().map(short).collect();
    shown.sort();
    shown
}

fn names(rows: &[BlockedCustomer]) -> Vec<&str> {
    let mut names: Vec<_> = rows.iter().map(|row| row.company_name.as_str()).collect();
    names.sort_unstable();
    names
}

fn question(payer: Uuid, customer_id: &str) -> CheckEligibilityRequest {
    CheckEligibilityRequest {
        payer_id: payer.to_string(),
        customer_id: customer_id.into(),
        operation: Operation::NewPurchase.into(),
        ..CheckEligibilityRequest::default()
    }
}

/// Asks the gate about each customer: the list must hold those that it blocks, with what it says.
async fn check_against_the_gate(
    partner: &As,
    (payer, reseller): (Uuid, Option<Uuid>),
    customers: &[&String],
    as_of: Option<Time>,
) {
    let listed = blocked(partner, as_of).await;
    for customer in customers {
        let question = CheckEligibilityRequest {
            reseller_id: reseller.map(|id| id.to_string()).unwrap_or_default(),
            as_of: as_of.map(timestamp),
            ..question(payer, customer)
        };
        let answer = partner.gate().check_eligibility(question).await.unwrap().into_inner();
        let rows: Vec<_> = listed.iter().filter(|row| row.customer_id == **customer).collect();
        if answer.decision() == Decision::Blocked {
            assert_eq!(rows.len(), 1);
            assert_eq!((&rows[0].reasons, &rows[0].remedies), (&answer.reasons, &answer.remedies));
            assert_eq!(rows[0].payer_id, payer.to_string());
        } else {
            assert_eq!(rows, [] as [&BlockedCustomer; 0], "the gate says {:?}", answer.decision());
        }
    }
}

async fn attest(partner: &As, customer: &str, template: &str, agreed_at: Time) -> String {
    let request = CreateAttestationRequest {
        request_id: world::request_id(),
        customer_id: customer.into(),
        template_id: template.into(),
        contact: Some(world::contact()),
        agreed_at: Some(timestamp(agreed_at)),
        validate_only: false,
    };
    let attested = partner.attestations().create_attestation(request).await.unwrap().into_inner();
    attested.attestation.unwrap().attestation_id
}

async fn withdraw(partner: &As, attestation_id: String) {
    let request = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    partner.attestations().withdraw_attestation(request).await.unwrap();
}

/// A version of the Customer Agreement.
fn version(
    effective_from: Option<Time>,
    reacceptance: Option<Reacceptance>,
) -> PublishTemplateVersionRequest {
    PublishTemplateVersionRequest {
        effective_from: effective_from.map(timestamp),
        reacceptance,
        ..world::new_version(CUSTOMER_AGREEMENT)
    }
}

fn due(at: Time) -> Option<Reacceptance> {
    Some(Reacceptance::ReacceptBy(timestamp(at)))
}

async fn publish(
    operator: &As,
    version: PublishTemplateVersionRequest,
) -> Result<PublishTemplateVersionResponse, Status> {
    Ok(operator.templates().publish_template_version(version).await?.into_inner())
}

async fn rehearse(operator: &As, version: &PublishTemplateVersionRequest) -> PublicationImpact {
    let rehearsed = PublishTemplateVersionRequest { validate_only: true, ..version.clone() };
    publish(operator, rehearsed).await.unwrap().impact.unwrap()
}

/// Customers of the direct-bill partner's, one for each way to stand, by what it is. A Cloud Agreement is
/// one of the test's own: the vendor's can be accepted no more.
async fn one_of_each(cluster: &Cluster, cloud_agreement: &str) -> BTreeMap<&'static str, String> {
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut customers = BTreeMap::new();
    for name in ["None", "Withdrawn", "Old", "Cloud", "Current", "Bought", "Ended"] {
        customers.insert(name, world::create_customer(&direct, name, "FR", None).await.unwrap());
    }
    // In 2019 both types satisfied.
    let (then, now) = (time("2019-11-01T00:00:00Z"), Clock::system().now());
    attest(&direct, &customers["Cloud"], cloud_agreement, then).await;
    attest(&direct, &customers["Old"], CUSTOMER_AGREEMENT, then).await;
    let given = attest(&direct, &customers["Withdrawn"], CUSTOMER_AGREEMENT, now).await;
    withdraw(&direct, given).await;
    attest(&direct, &customers["Current"], CUSTOMER_AGREEMENT, now).await;
    let purchase = ReportPurchaseRequest {
        request_id: world::request_id(),
        customer_id: customers["Bought"].clone(),
        payer_id: DIRECT.to_string(),
        purchased_at: Some(timestamp(now)),
    };
    cluster.as_caller(world::service()).gate().report_purchase(purchase).await.unwrap();
    end_relationship(&direct, &customers["Ended"], None).await;
    customers
}

/// Those that the direct-bill partner still works with.
fn active<'c>(customers: &'c BTreeMap<&str, String>) -> Vec<&'c String> {
    customers.iter().filter(|(name, _)| **name != "Ended").map(|(_, id)| id).collect()
}

#[apply(each_backend)]
async fn a_partner_sees_which_of_its_customers_are_blocked_why_and_what_it_can_do(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(world::operator());
    world::register_partner(&operator, GERMAN, "Nord", PartnerKind::DirectBill, Cloud::Germany)
        .await
        .unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let (cloud_agreement, _turn) = world::publish_cloud_agreement(&cluster).await.unwrap();
    let customers = one_of_each(&cluster, &cloud_agreement.template_id).await;

    let listed = blocked(&direct, None).await;
    assert_eq!(
        shown(&listed),
        [
            "Bought: NO_ACCEPTANCE; ATTEST",
            "Cloud: WRONG_AGREEMENT_TYPE; ATTEST,INVITE_CUSTOMER",
            "None: NO_ACCEPTANCE; ATTEST,INVITE_CUSTOMER",
            "Old: VERSION_SUPERSEDED; ATTEST,INVITE_CUSTOMER",
            "Withdrawn: WITHDRAWN; ATTEST,INVITE_CUSTOMER",
        ]
    );
    assert!(listed.iter().all(|row| row.payer_id == DIRECT.to_string()));
    let remedies = listed.iter().flat_map(|row| &row.remedies);
    assert!(remedies.into_iter().all(|remedy| remedy.template_id == CUSTOMER_AGREEMENT));
    let active = active(&customers);
    check_against_the_gate(&direct, (DIRECT, None), &active, None).await;
    // A user who only reads gets no remedies of its own.
    let helpdesk = cluster.as_caller(caller(TenantKind::Partner, DIRECT, &[Role::HelpdeskAgent]));
    assert!(blocked(&helpdesk, None).await.iter().all(|row| row.remedies.is_empty()));
    // The other provider's customers are none of its business, and acceptance does not exist elsewhere.
    let nord = cluster.as_caller(world::sales(GERMAN));
    world::create_customer(&nord, "Nordwind", "DE", None).await.unwrap();
    assert_eq!(blocked(&nord, None).await, []);
    assert_eq!(blocked(&cluster.as_caller(world::sales(PROVIDER)), None).await, []);

    // Back in time the policy and the versions move, and the acceptances stay.
    for (as_of, by, expected) in [
        ("2017-01-01T00:00:00Z", world::sales(DIRECT), &[][..]),
        ("2019-01-01T00:00:00Z", over_api(world::sales(DIRECT)), &[]),
        // Only the Cloud Agreement satisfied.
        ("2019-01-01T00:00:00Z", world::sales(DIRECT), &["Bought", "Current", "None", "Old", "Withdrawn"]),
        ("2019-12-01T00:00:00Z", over_api(world::sales(DIRECT)), &["Bought", "None", "Withdrawn"]),
        // The second version of the Customer Agreement was due in April 2023.
        ("2023-03-31T23:59:59.999999Z", world::sales(DIRECT), &["Bought", "Cloud", "None", "Withdrawn"]),
        ("2023-04-01T00:00:00Z", world::sales(DIRECT), &["Bought", "Cloud", "None", "Old", "Withdrawn"]),
    ] {
        let partner = cluster.as_caller(by);
        let as_of = Some(time(as_of));
        assert_eq!(names(&blocked(&partner, as_of).await), expected, "{as_of:?}");
        check_against_the_gate(&partner, (DIRECT, None), &active, as_of).await;
    }
}

#[apply(each_backend)]
async fn a_version_that_is_scheduled_is_seen_from_the_day_on_which_it_is_due(#[case] backend: Backend) {
    tests::needs_own!("templates of its own");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let (cloud_agreement, _turn) = world::publish_cloud_agreement(&cluster).await.unwrap();
    let customers = one_of_each(&cluster, &cloud_agreement.template_id).await;
    let operator = cluster.as_caller(world::operator());
    let direct = cluster.as_caller(world::sales(DIRECT));
    let now = Clock::system().now();
    let (effective, by) = (now + Duration::days(30), now + Duration::days(60));
    publish(&operator, version(Some(effective), due(by))).await.unwrap();
    let still = &["Bought", "Cloud", "None", "Old", "Withdrawn"][..];
    let then = ["Bought", "Cloud", "Current", "None", "Old", "Withdrawn"];
    for (as_of, expected) in [
        (None, still),
        (Some(effective), still),
        (Some(by - Duration::microseconds(1)), still),
        (Some(by), &then),
    ] {
        assert_eq!(names(&blocked(&direct, as_of).await), expected, "{as_of:?}");
        check_against_the_gate(&direct, (DIRECT, None), &active(&customers), as_of).await;
    }
}

/// Ends a partner's relationship with a customer, for a reseller the one through a provider.
async fn end_relationship(partner: &As, customer: &str, provider: Option<Uuid>) {
    let request = EndRelationshipRequest {
        request_id: world::request_id(),
        customer_id: customer.into(),
        provider_id: provider.map(|id| id.to_string()).unwrap_or_default(),
        reseller_id: String::new(),
    };
    partner.customers().end_relationship(request).await.unwrap();
}

/// Lets a partner work with a customer, beside those that do already.
fn share(cluster: &Cluster, customer: &str, payer: Uuid, reseller: Option<Uuid>, revision: i64) {
    let reseller = reseller.map(|id| id.to_string()).unwrap_or_default();
    let columns = "partner_id, customer_id, reseller_id, established_at, revision";
    cluster
        .agreements_sql(&format!(
            "INSERT INTO relationship ({columns})
             VALUES ('{payer}', '{customer}', '{reseller}', '2026-11-21 00:00:00.000000', {revision})"
        ))
        .unwrap();
}

#[apply(each_backend)]
async fn a_reseller_sees_its_own_customers_by_who_pays_and_is_sent_to_them(#[case] backend: Backend) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(world::operator());
    world::register_partner(&operator, SECOND, "Second", PartnerKind::IndirectProvider, Cloud::Public)
        .await
        .unwrap();
    let link = LinkResellerRequest {
        request_id: world::request_id(),
        provider_id: SECOND.to_string(),
        reseller_id: RESELLER.to_string(),
    };
    operator.partners().link_reseller(link).await.unwrap();
    let provider = cluster.as_caller(world::sales(PROVIDER));
    let reseller = cluster.as_caller(world::sales(RESELLER));
    let shared = world::create_customer(&reseller, "Shared", "FR", Some(PROVIDER)).await.unwrap();
    let other = world::create_customer(&reseller, "Other", "FR", Some(PROVIDER)).await.unwrap();
    world::create_customer(&provider, "Own", "FR", None).await.unwrap();
    // The same pair of payer and customer through another relationship, and another payer. Both come
    // with a signature, which is withdrawn.
    let admin = cluster.as_caller(world::admin(shared.parse().unwrap()));
    for invited in [
        world::invite(&provider, None, None).await.unwrap(),
        world::invite(&reseller, None, Some(SECOND)).await.unwrap(),
    ] {
        admin.signatures().accept_invitation(world::acceptance(&invited, None)).await.unwrap();
    }
    let request = WithdrawSignatureRequest {
        request_id: world::request_id(),
        signature_id: world::sign(&admin, 2).await.unwrap().signature_id,
        reason: WithdrawalReason::NoLongerAccepts.into(),
    };
    admin.signatures().withdraw_signature(request).await.unwrap();

    assert_eq!(
        shown(&blocked(&provider, None).await),
        [
            "Other: NO_ACCEPTANCE; ATTEST,INVITE_CUSTOMER",
            "Own: NO_ACCEPTANCE; ATTEST,INVITE_CUSTOMER",
            "Shared: WITHDRAWN; ATTEST,INVITE_CUSTOMER",
        ]
    );
    let listed = blocked(&reseller, None).await;
    let expected = ["Other: NO_ACCEPTANCE", "Shared: WITHDRAWN", "Shared: WITHDRAWN"];
    assert_eq!(shown(&listed), expected.map(|row| format!("{row}; ASK_PROVIDER,INVITE_CUSTOMER")));
    for row in &listed {
        let ask = row.remedies.iter().find(|remedy| remedy.kind() == RemedyKind::AskProvider);
        assert_eq!(ask.unwrap().provider_id, row.payer_id);
    }
    // One provider's attestation does not cover the other's orders.
    world::attest(&provider, &shared, Clock::system().now()).await.unwrap();
    let payers: Vec<_> = blocked(&reseller, None)
        .await
        .into_iter()
        .filter(|row| row.customer_id == shared)
        .map(|row| row.payer_id)
        .collect();
    assert_eq!(payers, [SECOND.to_string()]);
    check_against_the_gate(&reseller, (PROVIDER, Some(RESELLER)), &[&other], None).await;
    end_relationship(&reseller, &other, Some(PROVIDER)).await;
    assert_eq!(names(&blocked(&reseller, None).await), ["Shared"]);
    assert_eq!(names(&blocked(&provider, None).await), ["Own"]);
}

#[apply(each_backend)]
async fn the_pages_of_a_list_are_all_about_the_time_the_first_was(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let start = time("2026-11-21T00:00:00Z");
    let (cluster, clock) = world_at(backend, "2026-11-21T00:00:00Z").await;
    let operator = cluster.as_caller(world::operator());
    let direct = cluster.as_caller(world::sales(DIRECT));
    for n in 0..6 {
        let customer = world::create_customer(&direct, &format!("Customer {n}"), "FR", None).await.unwrap();
        if n % 2 == 1 {
            world::attest(&direct, &customer, start).await.unwrap();
        }
    }
    let by = start + Duration::hours(1);
    publish(&operator, version(Some(by), due(by))).await.unwrap();

    let first = page(&direct, None, 1, "").await.unwrap();
    clock.set(by);
    let second = page(&direct, None, 1, &first.next_page_token).await.unwrap();
    let third = page(&direct, None, 5, &second.next_page_token).await.unwrap();
    for page in [&first, &second, &third] {
        assert_eq!(page.evaluated_at, Some(timestamp(start)));
        assert_eq!(page.customers.len(), 1);
    }
    assert_eq!(third.next_page_token, "");
    assert_eq!(blocked(&direct, None).await.len(), 6);

    // A token serves its own list only, and only as it was given.
    let then = page(&direct, Some(by), 1, "").await.unwrap();
    assert_eq!(then.evaluated_at, Some(timestamp(by)));
    let api = cluster.as_caller(over_api(world::sales(DIRECT)));
    let provider = cluster.as_caller(world::sales(PROVIDER));
    let cut = &first.next_page_token[..first.next_page_token.len() - 8];
    for (by, as_of, token) in [
        (&direct, None, then.next_page_token.as_str()),
        (&direct, Some(start), then.next_page_token.as_str()),
        (&direct, Some(by), first.next_page_token.as_str()),
        (&api, None, first.next_page_token.as_str()),
        (&provider, None, first.next_page_token.as_str()),
        (&direct, None, cut),
    ] {
        let refused = page(by, as_of, 1, token).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(bad_fields_of(&refused), ["page_token"]);
    }
}

async fn batch(caller: &As, items: Vec<CheckEligibilityRequest>) -> Result<Vec<ItemResult>, Status> {
    let request = BatchCheckEligibilityRequest { items };
    let answer: BatchCheckEligibilityResponse =
        caller.gate().batch_check_eligibility(request).await?.into_inner();
    Ok(answer.results.into_iter().map(|result| result.result.unwrap()).collect())
}

#[apply(each_backend)]
async fn each_item_of_a_batch_is_answered_in_its_place_as_a_call_of_its_own_would_be(
    #[case] backend: Backend,
) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let (cluster, _) = world_at(backend, "2026-11-21T00:00:00Z").await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let reseller = cluster.as_caller(world::sales(RESELLER));
    let service = cluster.as_caller(world::service());
    let good = world::create_customer(&direct, "Good", "FR", None).await.unwrap();
    world::attest(&direct, &good, time("2026-11-21T00:00:00Z")).await.unwrap();
    let bad = world::create_customer(&direct, "Bad", "FR", None).await.unwrap();
    let resold = world::create_customer(&reseller, "Resold", "FR", Some(PROVIDER)).await.unwrap();

    let questions = vec![
        question(DIRECT, &bad),
        question(DIRECT, "no id"),
        question(DIRECT, &good),
        question(DIRECT, &Uuid::from_u128(7).to_string()),
        question(DIRECT, &resold),
        question(RESELLER, &resold),
        CheckEligibilityRequest { at_least_revision: 1 << 40, ..question(DIRECT, &good) },
        CheckEligibilityRequest { operation: 0, channel: 99, ..question(DIRECT, "") },
        CheckEligibilityRequest { reseller_id: RESELLER.to_string(), ..question(PROVIDER, &resold) },
        CheckEligibilityRequest {
            as_of: Some(timestamp(time("2018-09-01T00:00:00Z"))),
            ..question(DIRECT, &bad)
        },
        question(DIRECT, &good),
    ];
    let (mut answers, mut reasons) = (0, BTreeSet::new());
    for (caller, is_service) in [(&direct, false), (&reseller, false), (&service, true)] {
        let mut questions = questions.clone();
        if is_service {
            questions.iter_mut().filter(|q| q.channel == 0).for_each(|q| q.channel = 1);
        }
        let results = batch(caller, questions.clone()).await.unwrap();
        assert_eq!(results.len(), questions.len());
        for (question, result) in questions.into_iter().zip(results) {
            match (caller.gate().check_eligibility(question).await, result) {
                (Ok(alone), ItemResult::Answer(item)) => {
                    assert_eq!(item, alone.into_inner());
                    answers += 1;
                }
                (Err(alone), ItemResult::Refusal(item)) => {
                    assert_eq!(item.code, i32::from(alone.code()));
                    assert_eq!(item.message, alone.message());
                    assert_eq!(item.metadata, metadata_of(&alone));
                    let fields: Vec<_> = item.fields.iter().map(|f| f.field.clone()).collect();
                    assert_eq!(fields, bad_fields_of(&alone));
                    let reason = item.reason().as_str_name().trim_start_matches("ERROR_REASON_");
                    assert_eq!(reason, reason_of(&alone));
                    reasons.insert(reason.to_owned());
                }
                (alone, item) => panic!("alone {alone:?}, in a batch {item:?}"),
            }
        }
    }
    // So that none of the kinds was forgotten.
    assert_eq!(answers, 4 + 1 + 4);
    let all = ["INVALID_FIELDS", "PAYER_IS_RESELLER", "RESOURCE_NOT_FOUND", "REVISION_BEHIND"];
    assert_eq!(reasons, all.map(String::from).into());

    for count in [0, 101] {
        let refused = batch(&direct, vec![question(DIRECT, &good); count]).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::InvalidArgument, "INVALID_FIELDS"));
        assert_eq!(bad_fields_of(&refused), ["items"]);
    }
    assert_eq!(batch(&direct, vec![question(DIRECT, &good); 100]).await.unwrap().len(), 100);

    // A damaged row is the refusal of those whose it is.
    let damage = format!("UPDATE customer SET cloud = 'MARS' WHERE id = '{good}'");
    cluster.agreements_sql(&damage).unwrap();
    let results = batch(&direct, vec![question(DIRECT, &good), question(DIRECT, &bad)]).await.unwrap();
    match results.as_slice() {
        [ItemResult::Refusal(damaged), ItemResult::Answer(_)] => {
            assert_eq!(damaged.code, i32::from(Code::Internal));
        }
        other => panic!("{other:?}"),
    }
}

#[apply(each_backend)]
async fn a_batch_is_answered_from_one_state_at_one_time(#[case] backend: Backend) {
    tests::needs!(backend);
    const PAIRS: usize = 50;
    /// Pairs that accept during one batch.
    const TOGETHER: usize = 10;
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let mut customers = vec![];
    for n in 0..2 * PAIRS {
        customers.push(world::create_customer(&direct, &format!("Customer {n}"), "FR", None).await.unwrap());
    }
    // Of each pair the first accepts before the second, and is asked about before it.
    let (firsts, seconds) = customers.split_at(PAIRS);
    let items: Vec<_> =
        firsts.iter().chain(seconds.iter().rev()).map(|customer| question(DIRECT, customer)).collect();
    let batches = Cell::new(0);
    let write = async {
        for (n, (first, second)) in firsts.iter().zip(seconds).enumerate() {
            world::attest(&direct, first, Clock::system().now()).await.unwrap();
            world::attest(&direct, second, Clock::system().now()).await.unwrap();
            let seen = batches.get();
            while n % TOGETHER == TOGETHER - 1 && batches.get() == seen {
                tokio::task::yield_now().await;
            }
        }
    };
    let mixed = Cell::new(0);
    let read = async {
        loop {
            let results = batch(&direct, items.clone()).await.unwrap();
            let answers: Vec<_> = results
                .into_iter()
                .map(|result| match result {
                    ItemResult::Answer(answer) => answer,
                    ItemResult::Refusal(refusal) => panic!("{refusal:?}"),
                })
                .collect();
            assert!(answers.iter().all(|answer| answer.evaluated_at == answers[0].evaluated_at));
            let allowed: Vec<_> = answers.iter().map(|a| a.decision() == Decision::Allowed).collect();
            for n in 0..PAIRS {
                let (first, second) = (allowed[n], allowed[2 * PAIRS - 1 - n]);
                assert!(first || !second, "{backend:?}: pair {n} was read before and after a change");
            }
            batches.set(batches.get() + 1);
            if allowed.iter().all(|is_allowed| *is_allowed) {
                return;
            }
            mixed.set(mixed.get() + usize::from(allowed.contains(&true)));
        }
    };
    tokio::join!(read, write);
    assert!(mixed.get() >= 3, "{backend:?}: only {} batches saw changes in progress", mixed.get());
}

#[apply(each_backend)]
async fn a_rehearsal_tells_whom_publishing_would_stop_and_stores_nothing(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let start = time("2026-11-21T00:00:00Z");
    let (cluster, _) = world_at(backend, "2026-11-21T00:00:00Z").await;
    let operator = cluster.as_caller(world::operator());
    let direct = cluster.as_caller(world::sales(DIRECT));
    let provider = cluster.as_caller(world::sales(PROVIDER));
    let reseller = cluster.as_caller(world::sales(RESELLER));
    // Of the direct-bill partner one never accepted, one only the version of 2019, one ended.
    for (name, agreed_at) in [
        ("A", Some(start)),
        ("Never", None),
        ("Old", Some(time("2020-06-01T00:00:00Z"))),
        ("Ended", Some(start)),
    ] {
        let customer = world::create_customer(&direct, name, "FR", None).await.unwrap();
        if let Some(agreed_at) = agreed_at {
            world::attest(&direct, &customer, agreed_at).await.unwrap();
        }
        if name == "Ended" {
            end_relationship(&direct, &customer, None).await;
        }
    }
    for (creator, name, through) in [(&provider, "B", None), (&reseller, "C", Some(PROVIDER))] {
        let customer = world::create_customer(creator, name, "FR", through).await.unwrap();
        world::attest(&provider, &customer, start).await.unwrap();
    }
    // One signed by itself, which counts for both partners; through the reseller it is the same pair.
    let signed = world::create_customer(&direct, "Signed", "FR", None).await.unwrap();
    share(&cluster, &signed, PROVIDER, None, 1001);
    share(&cluster, &signed, PROVIDER, Some(RESELLER), 1002);
    let columns = "id, kind, partner_id, customer_id, agreement_type, template_id, template_version, \
                   first_name, last_name, email, phone, contact_salt, agreed_at, recorded_at, \
                   recorded_by, revision";
    let at = "'2026-11-21 00:00:00.000000'";
    cluster
        .agreements_sql(&format!(
            "INSERT INTO acceptance ({columns}) VALUES ('{signed}', 'SIGNATURE', '', '{signed}',
             'MICROSOFT_CUSTOMER_AGREEMENT', '{CUSTOMER_AGREEMENT}', 2, '', '', '', '', '', {at}, {at},
             '{signed}', 1003)"
        ))
        .unwrap();

    let by = start + Duration::days(10);
    let planned = version(Some(start + Duration::days(1)), due(by));
    let impact = rehearse(&operator, &planned).await;
    let partners: Vec<_> = impact.partners.iter().map(|p| (p.partner_id.as_str(), p.customers)).collect();
    // The most affected first.
    assert_eq!(partners, [(PROVIDER.to_string().as_str(), 3), (DIRECT.to_string().as_str(), 2)]);
    assert_eq!((impact.relationships, impact.customers), (5, 4));

    let never = PublishTemplateVersionRequest {
        reacceptance: Some(Reacceptance::NeverReaccept(true)),
        ..planned.clone()
    };
    assert_eq!(rehearse(&operator, &never).await, PublicationImpact::default());
    let other_type = PublishTemplateVersionRequest {
        template_id: Uuid::from_u128(0x7e).to_string(),
        agreement_type: AgreementType::MicrosoftCloudAgreement.into(),
        name: "Cloud Agreement, second edition".into(),
        ..planned.clone()
    };
    assert_eq!(rehearse(&operator, &other_type).await, PublicationImpact::default());
    // At once is due at once.
    assert_eq!(rehearse(&operator, &version(None, None)).await, impact);
    let early = PublishTemplateVersionRequest {
        validate_only: true,
        ..version(Some(start - Duration::days(1)), None)
    };
    let refused = publish(&operator, early).await.unwrap_err();
    assert_eq!(reason_of(&refused), "NOT_LATER_THAN_LAST_VERSION");
    // Nothing of it was stored.
    let stored = GetTemplateRequest { template_id: CUSTOMER_AGREEMENT.into() };
    let stored = operator.templates().get_template(stored).await.unwrap().into_inner();
    assert_eq!(stored.template.unwrap().versions.len(), 2);
    assert_eq!(names(&blocked(&direct, Some(by)).await), ["Never", "Old"]);

    // Really published, the very same are blocked, and no others.
    let before = [blocked(&direct, Some(by)).await, blocked(&provider, Some(by)).await];
    let published = publish(&operator, planned).await.unwrap();
    assert_eq!(published.impact, None);
    let mut customers = BTreeSet::new();
    for ((partner, id), before) in [(&direct, DIRECT), (&provider, PROVIDER)].into_iter().zip(before) {
        let after = blocked(partner, Some(by)).await;
        let new: Vec<_> = after.iter().filter(|row| !before.contains(row)).collect();
        let told = impact.partners.iter().find(|p| p.partner_id == id.to_string()).unwrap();
        assert_eq!(new.len(), usize::try_from(told.customers).unwrap());
        assert_eq!(after.len(), before.len() + new.len());
        customers.extend(new.into_iter().map(|row| row.customer_id.clone()));
    }
    assert_eq!(customers.len(), usize::try_from(impact.customers).unwrap());
    // Whom this version stops, the next one does not stop again.
    let next = version(Some(start + Duration::days(2)), due(by + Duration::days(1)));
    assert_eq!(rehearse(&operator, &next).await, PublicationImpact::default());
    let sooner = version(Some(start + Duration::days(2)), due(by - Duration::days(1)));
    assert_eq!(rehearse(&operator, &sooner).await, impact);
}

const MANY: usize = 10_000;

/// Ten thousand customers of the direct-bill partner without acceptance, in key order. They are written
/// into the tables: by call it would take longer than everything that is tested here.
fn populate(cluster: &Cluster) -> Vec<Uuid> {
    let mut ids: Vec<_> = (0..MANY).map(|n| Uuid::new_v5(&DIRECT, &n.to_be_bytes())).collect();
    ids.sort_unstable();
    let at = "'2026-01-01 00:00:00.000000'";
    for (chunk, ids) in ids.chunks(500).enumerate() {
        let customers = ids.iter().map(|id| {
            format!("('{id}', 'Many', '{id}.example', 'FR', 'PUBLIC', 'A', 'B', 'a@b.example', '', '', {at}, 1, 1)")
        });
        let customers = customers.collect::<Vec<_>>().join(", ");
        let revision = |n: usize| 1_000_000 + chunk * 500 + n;
        let relationships = ids.iter().enumerate();
        let relationships =
            relationships.map(|(n, id)| format!("('{DIRECT}', '{id}', '', {at}, {})", revision(n)));
        let relationships = relationships.collect::<Vec<_>>().join(", ");
        cluster
            .agreements_sql(&format!(
                "INSERT INTO customer (id, company_name, domain, country, cloud, first_name, last_name, email,
                 phone, contact_salt, created_at, acceptance_revision, revision) VALUES {customers};
                 INSERT INTO relationship (partner_id, customer_id, reseller_id, established_at, revision)
                 VALUES {relationships};"
            ))
            .unwrap();
    }
    ids
}

fn ids_of(pages: &[ListBlockedCustomersResponse]) -> Vec<Uuid> {
    pages.iter().flat_map(|page| &page.customers).map(|row| row.customer_id.parse().unwrap()).collect()
}

#[apply(each_backend)]
async fn of_ten_thousand_customers_none_is_listed_twice_or_lost_while_others_attest(
    #[case] backend: Backend,
) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    /// Attested at a time, and how far apart the customers are.
    const AT_ONCE: usize = 8;
    const EVERY: usize = 20;
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let all = populate(&cluster);
    let attested: Vec<Uuid> = all.iter().copied().step_by(EVERY).collect();
    let throughout: BTreeSet<Uuid> = all.iter().copied().filter(|id| !attested.contains(id)).collect();

    let done = Cell::new(false);
    let write = async {
        // Spread over the keys, so that some lie before the page being read and some behind it.
        let mut order: Vec<_> = attested.iter().collect();
        order.sort_by_key(|id| Uuid::new_v5(&PROVIDER, id.as_bytes()));
        for together in order.chunks(AT_ONCE) {
            let now = Clock::system().now();
            let attested = together.iter().map(async |id| world::attest(&direct, &id.to_string(), now).await);
            join_all(attested).await.into_iter().for_each(|answer| drop(answer.unwrap()));
        }
        done.set(true);
    };
    let read = async {
        let (mut lists, mut between) = (0, 0);
        while !done.get() || lists == 0 {
            let pages = pages(&direct, None, 500).await;
            let listed = ids_of(&pages);
            assert!(listed.is_sorted_by(|a, b| a < b), "{backend:?}: twice, or out of order");
            let listed: BTreeSet<_> = listed.into_iter().collect();
            let lost = throughout.difference(&listed).count();
            assert_eq!(lost, 0, "{backend:?}: blocked throughout and not listed");
            let still = attested.iter().filter(|id| listed.contains(id)).count();
            between += usize::from(0 < still && still < attested.len());
            lists += 1;
        }
        assert!(between > 0, "{backend:?}: of {lists} lists none was read while others attested");
    };
    tokio::join!(read, write);
    let after = pages(&direct, None, 500).await;
    assert!(ids_of(&after).iter().eq(&throughout), "{backend:?}: those that attested are gone, no others");
    assert_eq!(after.len(), throughout.len().div_ceil(500));

    // With few blocked among many a page ends before it is full, and the list still goes on.
    let columns = "id, kind, partner_id, customer_id, agreement_type, template_id, template_version, \
                   first_name, last_name, email, phone, contact_salt, agreed_at, recorded_at, \
                   recorded_by, revision";
    let last: Vec<_> = all.iter().copied().filter(|id| throughout.contains(id)).rev().take(3).collect();
    cluster
        .agreements_sql(&format!(
            "INSERT INTO acceptance ({columns}) SELECT id, 'ATTESTATION', '{DIRECT}', id,
             'MICROSOFT_CUSTOMER_AGREEMENT', '{CUSTOMER_AGREEMENT}', 2, 'A', 'B', 'a@b.example', '', '',
             created_at, created_at, id, 1 FROM customer WHERE id < '{}'
             AND id NOT IN (SELECT customer_id FROM acceptance)",
            last[2]
        ))
        .unwrap();
    let few = pages(&direct, None, 2).await;
    assert!(ids_of(&few).iter().eq(last.iter().rev()));
    let sizes: Vec<_> = few.iter().map(|page| page.customers.len()).collect();
    assert_eq!(sizes, [0, 0, 0, 0, 2, 1], "{backend:?}");
}
