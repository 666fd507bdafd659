//! Seeing it before it hurts: who is blocked and why, now and later, many questions at once, and the
//! dry run of a version. All of it must say what the gate says.

mod batches;
mod dry_run;
mod lists;
mod many;

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
    EndRelationshipRequest, GetTemplateRequest, LinkResellerRequest, ListBlockedCustomersRequest,
    ListBlockedCustomersResponse, PartnerKind, PublicationImpact, PublishTemplateVersionRequest,
    WithdrawSignatureRequest, WithdrawalReason,
};
use proto::identity::{Role, TenantKind};
use proto::types::{AgreementType, Cloud, Decision, RemedyKind};
use rstest_reuse::apply;
use tests::actions::{self, publish};
use tests::clients::{bad_fields_of, caller, metadata_of};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER, new_check, time};
use tests::{As, Backend, Cluster, Setup, reason_of};

use crate::each_backend;
use tonic::{Code, Status};
use uuid::{Uuid, uuid};

const GERMAN: Uuid = uuid!("00000000-0000-4000-8000-0000000000de");

/// Another provider.
const SECOND: Uuid = uuid!("00000000-0000-4000-8000-0000000000e2");

/// A cluster under a clock that stands, with the usual partners.
async fn world_at(backend: Backend, start: &str) -> (Cluster, Clock) {
    let clock = Clock::manual(time(start));
    let cluster = Cluster::start(Setup { backend, clock: clock.clone(), ..Setup::default() }).await.unwrap();
    actions::register_partners(&cluster).await.unwrap();
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
        partner_id: String::new(),
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
            ..new_check(payer, customer)
        };
        let answer = partner.gate().check_eligibility(question).await.unwrap().into_inner();
        let rows: Vec<_> = listed.iter().filter(|row| row.customer_id == **customer).collect();
        if answer.decision() == Decision::Blocked {
            assert_eq!(rows.len(), 1);
            assert_eq!((&rows[0].reasons, &rows[0].remedies), (&answer.reasons, &answer.remedies));
            assert_eq!(rows[0].considered, answer.considered);
            assert_eq!(rows[0].payer_id, payer.to_string());
        } else {
            assert_eq!(rows, [] as [&BlockedCustomer; 0], "the gate says {:?}", answer.decision());
        }
    }
}

/// A version of the Customer Agreement.
fn version(
    effective_from: Option<Time>,
    reacceptance: Option<Reacceptance>,
) -> PublishTemplateVersionRequest {
    PublishTemplateVersionRequest {
        effective_from: effective_from.map(timestamp),
        reacceptance,
        ..fixtures::new_version(CUSTOMER_AGREEMENT)
    }
}

fn due(at: Time) -> Option<Reacceptance> {
    Some(Reacceptance::ReacceptBy(timestamp(at)))
}

async fn dry_run(operator: &As, version: &PublishTemplateVersionRequest) -> PublicationImpact {
    let request = PublishTemplateVersionRequest { validate_only: true, ..version.clone() };
    publish(operator, request).await.unwrap().impact.unwrap()
}

/// Customers of the direct-bill partner's, one for each way to stand, by what it is. A Cloud Agreement is
/// one of the test's own: the vendor's can be accepted no more.
async fn one_of_each(cluster: &Cluster, cloud_agreement: &str) -> BTreeMap<&'static str, String> {
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let mut customers = BTreeMap::new();
    for name in ["None", "Withdrawn", "Old", "Cloud", "Current", "Bought", "Ended"] {
        customers.insert(name, actions::create_customer(&direct, name, "FR", None).await.unwrap());
    }
    // In 2019 both types satisfied.
    let then = time("2019-11-01T00:00:00Z");
    actions::attest_to(&direct, &customers["Cloud"], cloud_agreement, then).await.unwrap();
    actions::attest(&direct, &customers["Old"], then).await.unwrap();
    let given = actions::attest_now(&direct, &customers["Withdrawn"]).await.unwrap();
    actions::withdraw(&direct, &given).await.unwrap();
    actions::attest_now(&direct, &customers["Current"]).await.unwrap();
    actions::report_purchase(cluster, &customers["Bought"], DIRECT, fixtures::now()).await.unwrap();
    end_relationship(&direct, &customers["Ended"], None).await;
    customers
}

/// Those that the direct-bill partner still works with.
fn active<'c>(customers: &'c BTreeMap<&str, String>) -> Vec<&'c String> {
    customers.iter().filter(|(name, _)| **name != "Ended").map(|(_, id)| id).collect()
}

/// Ends a partner's relationship with a customer, for a reseller the one through a provider.
async fn end_relationship(partner: &As, customer: &str, provider: Option<Uuid>) {
    let request = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        provider_id: provider.map(|id| id.to_string()).unwrap_or_default(),
        reseller_id: String::new(),
        validate_only: false,
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
