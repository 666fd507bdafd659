//! Who may do what, over gRPC: every call of both services by every kind of caller.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Display;

use chassis::auth::Caller;
use http_body::Body as HttpBody;
use prost::Message;
use prost::bytes::{Buf, BufMut, Bytes};
use prost_types::FileDescriptorSet;
use proto::identity::{Role, TenantKind};
use tests::clients::{Identity, caller};
use tests::fixtures::{self, DIRECT, OPERATOR};
use tests::{As, Backend, Cluster, Setup, metadata_of, reason_of};
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use uuid::Uuid;

/// Who is let in, written out by hand from the rules ROLE-1 to ROLE-5 and the contract's columns
/// "who", so that a slip in the services' own tables shows here. The columns, `-` where the caller is
/// turned away: no identity | a partner user with ADMIN_AGENT, SALES_AGENT, HELPDESK_AGENT, GLOBAL_ADMIN,
/// no role | a customer user with GLOBAL_ADMIN, without that role | an operator | a service.
#[rustfmt::skip]
const LET_IN: [(&str, &str); 73] = [
    ("/csp.agreement.v1.TemplateService/ListTemplates",          "- | A S H G n | G n | O | S"),
    ("/csp.agreement.v1.TemplateService/GetTemplate",            "- | A S H G n | G n | O | S"),
    ("/csp.agreement.v1.TemplateService/GetTemplateDocument",    "- | A S H G n | G n | O | S"),
    ("/csp.agreement.v1.TemplateService/ListTemplateDocuments",  "- | A S H G n | G n | O | S"),
    ("/csp.agreement.v1.TemplateService/PublishTemplateVersion", "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.TemplateService/RetireTemplate",         "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.PartnerService/RegisterPartner",         "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.PartnerService/UpdatePartner",           "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.PartnerService/LinkReseller",            "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.PartnerService/UnlinkReseller",          "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.PartnerService/ListPartners",            "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.PartnerService/GetPartner",              "- | A S H G - | - - | O | S"),
    ("/csp.agreement.v1.CustomerService/CreateCustomer",         "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.CustomerService/ImportCustomers",        "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.CustomerService/UpdateCustomer",         "- | A S - - - | G - | O | -"),
    ("/csp.agreement.v1.CustomerService/GetCustomer",            "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.CustomerService/ListCustomers",          "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.CustomerService/EndRelationship",        "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.CustomerService/GetRelationship",        "- | A S H G - | - - | O | -"),
    ("/csp.agreement.v1.CustomerService/ListRelationships",      "- | A S H G - | - - | O | -"),
    ("/csp.agreement.v1.CustomerService/ListCustomerPartners",   "- | - - - - - | G - | - | -"),
    ("/csp.agreement.v1.AttestationService/CreateAttestation",   "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.AttestationService/GetAttestation",      "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.AttestationService/ListAttestations",    "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.AttestationService/WithdrawAttestation", "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.AttestationService/ImportAttestations",  "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.AttestationService/RetryNotification",   "- | A S - - - | - - | O | -"),
    ("/csp.agreement.v1.AttestationService/ListNotifications",   "- | - - - - - | - - | O | -"),
    ("/csp.agreement.v1.ProposalService/ProposeAttestation",     "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.ProposalService/GetProposal",            "- | A S H G - | - - | O | -"),
    ("/csp.agreement.v1.ProposalService/ListProposals",          "- | A S H G - | - - | O | -"),
    ("/csp.agreement.v1.ProposalService/ApproveProposal",        "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.ProposalService/RejectProposal",         "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.ProposalService/WithdrawProposal",       "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.DirectSignService/CreateInvitation",     "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.DirectSignService/RevokeInvitation",     "- | A S - - - | - - | - | -"),
    ("/csp.agreement.v1.DirectSignService/GetInvitation",        "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.DirectSignService/ListInvitations",      "- | A S H G - | - - | O | -"),
    ("/csp.agreement.v1.DirectSignService/AcceptInvitation",     "- | - - - - - | G - | - | -"),
    ("/csp.agreement.v1.DirectSignService/DeclineInvitation",    "- | - - - - - | G - | - | -"),
    ("/csp.agreement.v1.DirectSignService/SignAgreement",        "- | - - - - - | G - | - | -"),
    ("/csp.agreement.v1.DirectSignService/WithdrawSignature",    "- | - - - - - | G - | - | -"),
    ("/csp.agreement.v1.DirectSignService/GetSignature",         "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.DirectSignService/ListSignatures",       "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.DirectSignService/GetDirectSignStatus",  "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.EligibilityService/CheckEligibility",    "- | A S H G - | - - | O | S"),
    ("/csp.agreement.v1.EligibilityService/BatchCheckEligibility", "- | A S H G - | - - | O | S"),
    ("/csp.agreement.v1.EligibilityService/ListBlockedCustomers", "- | A S H G - | - - | O | -"),
    ("/csp.agreement.v1.EligibilityService/GetPolicy",           "- | A S H G n | G n | O | S"),
    ("/csp.agreement.v1.EligibilityService/ReportPurchase",      "- | - - - - - | - - | - | S"),
    ("/csp.agreement.v1.EligibilityService/CheckWithdrawal",     "- | - - - - - | - - | - | S"),
    ("/csp.agreement.v1.EventService/ListEvents",                "- | A S H G - | G - | O | -"),
    ("/csp.agreement.v1.EventService/WatchEvents",               "- | - - - - - | - - | O | S"),
    ("/csp.order.v1.OfferService/ListOffers",                    "- | A S H G n | G n | O | S"),
    ("/csp.order.v1.OfferService/GetOffer",                      "- | A S H G n | G n | O | S"),
    ("/csp.order.v1.OrderService/CreateOrder",                   "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.OrderService/GetOrder",                      "- | A S H G - | - - | O | S"),
    ("/csp.order.v1.OrderService/ListOrders",                    "- | A S H G - | - - | O | S"),
    ("/csp.order.v1.SubscriptionService/GetSubscription",        "- | A S H G - | G - | O | S"),
    ("/csp.order.v1.SubscriptionService/ListSubscriptions",      "- | A S H G - | G - | O | S"),
    ("/csp.order.v1.SubscriptionService/ListSubscriptionChanges","- | A S H G - | - - | O | S"),
    ("/csp.order.v1.SubscriptionService/ChangeSeats",            "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.SubscriptionService/RenewSubscription",      "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.SubscriptionService/SetAutoRenew",           "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.SubscriptionService/SuspendSubscription",    "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.SubscriptionService/ResumeSubscription",     "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.SubscriptionService/CancelSubscription",     "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.SubscriptionService/AssignReseller",         "- | A S - - - | - - | - | -"),
    ("/csp.order.v1.WithdrawalService/GetWithdrawalReport",      "- | A S H G - | G - | O | S"),
    ("/csp.order.v1.WithdrawalService/ListWithdrawalReports",    "- | A S H G - | G - | O | S"),
    ("/csp.order.v1.WithdrawalService/PreviewWithdrawal",        "- | A S H G - | G - | O | -"),
    ("/csp.order.v1.EventService/ListEvents",                    "- | A S H G - | - - | O | S"),
    ("/csp.order.v1.EventService/WatchEvents",                   "- | - - - - - | - - | O | S"),
];

const EVERY_ROLE: [Role; 4] = [Role::AdminAgent, Role::SalesAgent, Role::HelpdeskAgent, Role::GlobalAdmin];

/// Callers, each with the column of the table it belongs to. Roles mean nothing to operators and
/// services, and a partner's roles mean nothing in a customer's tenant.
fn kinds() -> Vec<(usize, &'static str, Option<Caller>)> {
    let customer = Uuid::from_u128(0xc1);
    let service = Uuid::from_u128(0x5e);
    let of = |kind, tenant, roles: &[Role]| Some(caller(kind, tenant, roles));
    vec![
        (0, "no identity", None),
        (1, "partner user with ADMIN_AGENT", of(TenantKind::Partner, DIRECT, &[Role::AdminAgent])),
        (2, "partner user with SALES_AGENT", of(TenantKind::Partner, DIRECT, &[Role::SalesAgent])),
        (3, "partner user with HELPDESK_AGENT", of(TenantKind::Partner, DIRECT, &[Role::HelpdeskAgent])),
        (4, "partner user with GLOBAL_ADMIN", of(TenantKind::Partner, DIRECT, &[Role::GlobalAdmin])),
        (5, "partner user without a role", of(TenantKind::Partner, DIRECT, &[])),
        (6, "customer user with GLOBAL_ADMIN", of(TenantKind::Customer, customer, &[Role::GlobalAdmin])),
        (7, "customer user without a role", of(TenantKind::Customer, customer, &[])),
        (7, "customer user with a partner's roles", of(TenantKind::Customer, customer, &EVERY_ROLE[..3])),
        (8, "operator", of(TenantKind::Operator, OPERATOR, &[])),
        (8, "operator with every role", of(TenantKind::Operator, OPERATOR, &EVERY_ROLE)),
        (9, "service", of(TenantKind::Service, service, &[])),
        (9, "service with every role", of(TenantKind::Service, service, &EVERY_ROLE)),
    ]
}

/// The marks of a row, one for each column.
fn marks(row: &str) -> Vec<char> {
    let marks: Vec<_> = row.chars().filter(|mark| !" |".contains(*mark)).collect();
    let all = ['-', 'A', 'S', 'H', 'G', 'n', 'G', 'n', 'O', 'S'];
    assert_eq!(marks.len(), all.len(), "{row}");
    assert!(marks.iter().zip(all).all(|(mark, letter)| *mark == letter || *mark == '-'), "{row}");
    marks
}

/// A message whose bytes stay unchanged on the way out and in, well formed or not.
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, message: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// Makes a call by its path, with bytes for its only message, and takes the first message of the
/// answer. What would follow in a stream is not waited for.
pub(crate) async fn call(
    wire: &Channel,
    identity: impl Interceptor,
    path: &str,
    message: &[u8],
) -> Result<Vec<u8>, Status> {
    ask(InterceptedService::new(wire.clone(), identity), path, message).await
}

/// The same, by a caller whose calls go through a service of its own.
pub(crate) async fn ask<S>(service: S, path: &str, message: &[u8]) -> Result<Vec<u8>, Status>
where
    S: GrpcService<Body, Error: Display>,
    S::ResponseBody: HttpBody<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let mut client = Grpc::new(service);
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let request = Request::new(message.to_vec());
    let mut answer = client.server_streaming(request, path.parse().unwrap(), Raw).await?.into_inner();
    answer.message().await?.ok_or_else(|| Status::unknown("the answer holds no message"))
}

/// The service that a call belongs to.
pub(crate) fn wire<'a>(services: &'a As, path: &str) -> &'a Channel {
    if path.starts_with("/csp.agreement.") { &services.agreements } else { &services.orders }
}

pub(crate) fn contract() -> FileDescriptorSet {
    FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap()
}

/// The full names of the services in the contract, each with the names of its calls.
fn services_of_the_contract() -> Vec<(String, Vec<String>)> {
    let contract = contract();
    let own = contract.file.iter().filter(|file| file.package().starts_with("csp."));
    own.flat_map(|file| {
        file.service.iter().map(|service| {
            let calls = service.method.iter().map(|method| method.name().to_owned());
            (format!("{}.{}", file.package(), service.name()), calls.collect())
        })
    })
    .collect()
}

/// The paths of all calls in the contract.
pub(crate) fn calls_of_the_contract() -> BTreeSet<String> {
    let services = services_of_the_contract();
    let path = |(service, calls): &(String, Vec<String>)| {
        calls.iter().map(|call| format!("/{service}/{call}")).collect::<Vec<_>>()
    };
    services.iter().flat_map(path).collect()
}

/// How the door answered: whether the call was let in, or what is wrong with the way it was not.
fn was_admitted(path: &str, answer: Result<Vec<u8>, Status>) -> Result<bool, String> {
    let Err(status) = answer else { return Ok(true) };
    match (status.code(), reason_of(&status).as_str()) {
        (Code::Unauthenticated, "IDENTITY_REQUIRED") => Ok(false),
        (Code::PermissionDenied, "ROLE_NOT_ALLOWED") => {
            let metadata = metadata_of(&status);
            let names_both =
                metadata.get("call").is_some_and(|call| call == path) && metadata.contains_key("allowed");
            if names_both { Ok(false) } else { Err(format!("names {metadata:?}")) }
        }
        (Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::Internal, reason) => {
            Err(format!("answered {:?} {reason}", status.code()))
        }
        _ => Ok(true),
    }
}

/// ROLE-2, ROLE-3, ROLE-4.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_access_policy_lets_in_the_callers_it_names() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    check_access_table(&cluster, |caller| cluster.identity(caller)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn with_tokens_over_mutual_tls_the_table_is_the_same() {
    tests::needs_own!("keys and certificates that it makes");
    let setup = Setup { secured: true, ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    check_access_table(&cluster, |caller| cluster.identity(caller)).await;
}

/// Tries every call as every kind of caller, each with the identity that it gets.
pub(crate) async fn check_access_table(cluster: &Cluster, identity: impl Fn(Caller) -> Identity) {
    let services = cluster.as_unidentified();
    let mut wrong = vec![];
    for (path, row) in LET_IN {
        let marks = marks(row);
        for (column, who, caller) in kinds() {
            let identity = caller.map_or_else(Identity::none, &identity);
            let answer = call(wire(&services, path), identity, path, &[]).await;
            let expected = marks[column] != '-';
            match was_admitted(path, answer) {
                Ok(let_in) if let_in == expected => {}
                Ok(true) => wrong.push(format!("{path} lets in: {who}")),
                Ok(false) => wrong.push(format!("{path} turns away: {who}")),
                Err(problem) => wrong.push(format!("{path}, {who}: {problem}")),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The answer to a call without an identity is about the identity, whatever the call.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_without_identity_is_refused_for_its_identity() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let unidentified = cluster.as_unidentified();
    for (path, _) in LET_IN {
        let refused = call(wire(&unidentified, path), Identity::none(), path, &[]).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), IDENTITY_REQUIRED, "{path}");
    }
}

const IDENTITY_REQUIRED: (Code, &str) = (Code::Unauthenticated, "IDENTITY_REQUIRED");
const CALL_UNKNOWN: (Code, &str) = (Code::Unimplemented, "CALL_UNKNOWN");
const ROLE_NOT_ALLOWED: (Code, &str) = (Code::PermissionDenied, "ROLE_NOT_ALLOWED");

/// Every call of the contract has a row here and in its service, and no row is left over.
#[test]
fn the_access_tables_have_one_row_for_each_call() {
    let in_the_contract = calls_of_the_contract();
    let here: BTreeSet<_> = LET_IN.iter().map(|(path, _)| (*path).to_owned()).collect();
    let rows: Vec<_> = agreement_svc::ACCESS_POLICY.iter().chain(order_svc::ACCESS_POLICY).collect();
    let in_the_services: BTreeSet<_> = rows.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(here, in_the_contract);
    assert_eq!(in_the_services, in_the_contract);
    // A second row for a call would never be read.
    assert_eq!((LET_IN.len(), rows.len()), (in_the_contract.len(), in_the_contract.len()));
    for (path, _) in agreement_svc::ACCESS_POLICY {
        assert!(path.starts_with("/csp.agreement.v1."), "{path} is not agreement-svc's");
    }
    for (path, _) in order_svc::ACCESS_POLICY {
        assert!(path.starts_with("/csp.order.v1."), "{path} is not order-svc's");
    }
}

#[test]
fn the_services_that_health_knows_are_those_of_the_contract() {
    let in_the_contract: BTreeSet<_> =
        services_of_the_contract().into_iter().map(|(service, _)| service).collect();
    let known = agreement_svc::SERVICES.iter().chain(order_svc::SERVICES);
    assert_eq!(known.map(|service| (*service).to_owned()).collect::<BTreeSet<_>>(), in_the_contract);
}

/// Every identified caller may make these, so that only the identity can be wrong.
pub(crate) const FOR_EVERYONE: [&str; 2] =
    ["/csp.agreement.v1.TemplateService/GetTemplate", "/csp.order.v1.OfferService/GetOffer"];

/// An identity, claim by claim, with one claim replaced or, without a value, left out.
fn claiming(claim: &'static str, value: Option<&[u8]>) -> impl Interceptor {
    let (tenant, user) = (DIRECT.to_string(), Uuid::from_u128(0xabc).to_string());
    let mut claims = vec![
        ("x-tenant-kind", b"PARTNER".to_vec()),
        ("x-tenant-id", tenant.into_bytes()),
        ("x-user-id", user.into_bytes()),
        ("x-roles", b"SALES_AGENT".to_vec()),
        ("x-channel", b"API".to_vec()),
    ];
    claims.retain(|(key, _)| *key != claim);
    claims.extend(value.map(|value| (claim, value.to_vec())));
    move |mut request: Request<()>| {
        for (key, value) in &claims {
            let value = MetadataValue::<Ascii>::try_from(value.as_slice()).unwrap();
            request.metadata_mut().insert(*key, value);
        }
        Ok(request)
    }
}

/// A malformed identity is no identity, and the refusal names the claim.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_malformed_identity_is_refused_by_its_claim() {
    tests::needs_own!("callers whose word is believed");
    const BAD_IDS: [Option<&[u8]>; 9] = [
        None,
        Some(b""),
        Some(b"ABCDEF00-0000-4000-8000-0000000000D1"),
        Some(b"00000000-0000-0000-0000-000000000000"),
        Some(b"0000000000004000800000000000abcd"),
        Some(b"{00000000-0000-4000-8000-0000000000d1}"),
        Some(b"urn:uuid:00000000-0000-4000-8000-0000000000d1"),
        Some(b"00000000-0000-4000-8000-0000000000d1,00000000-0000-4000-8000-0000000000d2"),
        Some(b"\xff\xfe"),
    ];
    const BAD_KINDS: [Option<&[u8]>; 7] = [
        None,
        Some(b""),
        Some(b"partner"),
        Some(b"RESELLER"),
        Some(b"PARTNER,OPERATOR"),
        Some(b"UNSPECIFIED"),
        Some(b"OPERATOR\xff"),
    ];
    // Without the claim it is DASHBOARD, the stricter; an unreadable one is not an absent one.
    const BAD_CHANNELS: [Option<&[u8]>; 5] =
        [Some(b"PHONE"), Some(b"api"), Some(b"API,DASHBOARD"), Some(b"CHANNEL_API"), Some(b"API\xff")];
    let malformed = [
        ("x-tenant-kind", &BAD_KINDS[..]),
        ("x-tenant-id", &BAD_IDS[..]),
        ("x-user-id", &BAD_IDS[..]),
        ("x-channel", &BAD_CHANNELS[..]),
    ];
    let cluster = Cluster::on(Backend::Sqlite).await;
    let services = cluster.as_unidentified();
    let mut wrong = vec![];
    for path in FOR_EVERYONE {
        let sound = call(wire(&services, path), claiming("x-channel", None), path, &[]).await;
        assert_eq!(sound.unwrap_err().code(), Code::InvalidArgument, "{path}: a sound identity");
        for (claim, values) in malformed {
            for value in values {
                let about = || {
                    let value = value.map(<[u8]>::escape_ascii);
                    format!("{path} with {claim} {}", value.map_or("absent".into(), |v| v.to_string()))
                };
                let answer = call(wire(&services, path), claiming(claim, *value), path, &[]).await;
                let Err(refused) = answer else {
                    wrong.push(format!("{} is let in", about()));
                    continue;
                };
                let named = metadata_of(&refused).get("claim").cloned().unwrap_or_default();
                if (refused.code(), reason_of(&refused).as_str(), named.as_str())
                    != (IDENTITY_REQUIRED.0, IDENTITY_REQUIRED.1, claim)
                    || !refused.message().contains(claim)
                {
                    wrong.push(format!("{}: {refused}", about()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn unknown_roles_grant_nothing_and_take_nothing_away() {
    tests::needs_own!("callers whose word is believed");
    let readable =
        ["/csp.agreement.v1.CustomerService/ListCustomers", "/csp.order.v1.OrderService/ListOrders"];
    let cluster = Cluster::on(Backend::Sqlite).await;
    let services = cluster.as_unidentified();
    for path in readable {
        for roles in [
            &b""[..],
            b",",
            b"OWNER",
            b"*",
            b"sales_agent",
            b"SALES AGENT",
            b"SALES_AGENTS",
            b"XSALES_AGENT",
            b"SALES_AGENT;ADMIN_AGENT",
            b"ROLE_SALES_AGENT",
            b"SALES_AGENT\xff",
        ] {
            let refused = call(wire(&services, path), claiming("x-roles", Some(roles)), path, &[]).await;
            let refused = refused.unwrap_err();
            let about = roles.escape_ascii();
            assert_eq!((refused.code(), reason_of(&refused).as_str()), ROLE_NOT_ALLOWED, "{path}: {about}");
        }
        for roles in [&b"OWNER,SALES_AGENT"[..], b"SALES_AGENT, OWNER", b" ,SALES_AGENT", b"HELPDESK_AGENT"] {
            let answer = call(wire(&services, path), claiming("x-roles", Some(roles)), path, &[]).await;
            assert!(answer.is_ok(), "{path}: {}: {answer:?}", roles.escape_ascii());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_does_not_exist_is_unimplemented_for_each_caller() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let operator = cluster.as_caller(fixtures::operator());
    for path in [
        "/",
        "/csp.order.v1.OrderService",
        "/csp.order.v1.OrderService/Nothing",
        "/csp.order.v1.OrderService/ListOrders/",
        "/csp.order.v1.OrderService/listorders",
        "/csp.order.v1.OrderService/%4cistOrders",
        "/csp.order.v1.orderservice/ListOrders",
        "//csp.order.v1.OrderService/ListOrders",
        "/x/../csp.order.v1.OrderService/ListOrders",
        // Served, but not here.
        "/csp.agreement.v1.CustomerService/ListCustomers",
        // Health and reflection need no identity; nothing else is reachable through their names.
        "/grpc.health.v1.Health/../../csp.order.v1.OfferService/ListOffers",
        "/grpc.health.v1.Health/Checks",
        "/grpc.anything/ListOffers",
        "/grpc.csp.order.v1.OfferService/ListOffers",
    ] {
        // Whether a call exists is no secret, so a client learns it with or without an identity.
        for identity in [operator.identity.clone(), Identity::none()] {
            let refused = call(&operator.orders, identity, path, &[]).await.unwrap_err();
            assert_eq!((refused.code(), reason_of(&refused).as_str()), CALL_UNKNOWN, "{path}");
        }
    }
}

/// Both servers with the services that each serves.
fn servers(cluster: &Cluster) -> [(&'static str, Channel, &'static [&'static str]); 2] {
    let unidentified = cluster.as_unidentified();
    [
        ("agreement-svc", unidentified.agreements, agreement_svc::SERVICES),
        ("order-svc", unidentified.orders, order_svc::SERVICES),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_needs_no_identity() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    for (server, wire, services) in servers(&cluster) {
        let mut health = HealthClient::new(wire);
        for service in services.iter().chain(&[""]) {
            let answer = health.check(HealthCheckRequest { service: (*service).to_owned() }).await;
            let status = answer.unwrap().into_inner().status();
            assert_eq!(status, ServingStatus::Serving, "{server}: {service:?}");
        }
        let unknown = HealthCheckRequest { service: "csp.unknown.v1.NoService".into() };
        assert_eq!(health.check(unknown.clone()).await.unwrap_err().code(), Code::NotFound, "{server}");
        // A watcher may come before the service that it watches.
        let mut watched = health.watch(unknown).await.unwrap().into_inner();
        let first = watched.message().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::ServiceUnknown, "{server}");
    }
}

/// The questions to reflection, and what it answers: both versions of it, whose messages have the same fields.
macro_rules! reflected {
    ($version:ident, $wire:expr, $symbols:expr) => {{
        use reflection::ServerReflectionRequest;
        use reflection::server_reflection_request::MessageRequest;
        use reflection::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::$version as reflection;
        let ask = |question| ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let symbols =
            $symbols.iter().map(|name| ask(MessageRequest::FileContainingSymbol((*name).to_owned())));
        let questions = [ask(MessageRequest::ListServices(String::new()))].into_iter().chain(symbols);
        let mut client = reflection::server_reflection_client::ServerReflectionClient::new($wire);
        let questions = tokio_stream::iter(questions.collect::<Vec<_>>());
        let mut answers = client.server_reflection_info(questions).await.unwrap().into_inner();
        let mut listed = BTreeSet::new();
        let mut files = vec![];
        while let Some(answer) = answers.message().await.unwrap() {
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    listed = list.service.into_iter().map(|service| service.name).collect();
                }
                MessageResponse::FileDescriptorResponse(file) => files.extend(file.file_descriptor_proto),
                other => panic!("{other:?}"),
            }
        }
        (listed, files)
    }};
}

/// Reflection describes each service, and the details of errors, which tools otherwise show as bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflection_needs_no_identity() {
    const DETAILS: [&str; 6] = [
        "google.rpc.Status",
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RetryInfo",
        "google.rpc.ResourceInfo",
        "google.rpc.PreconditionFailure",
    ];
    let cluster = Cluster::on(Backend::Sqlite).await;
    for (server, wire, services) in servers(&cluster) {
        let symbols = [services, &DETAILS].concat();
        let mut served: BTreeSet<_> = services.iter().map(|service| (*service).to_owned()).collect();
        let infrastructure =
            ["health.v1.Health", "reflection.v1.ServerReflection", "reflection.v1alpha.ServerReflection"];
        served.extend(infrastructure.map(|name| format!("grpc.{name}")));
        let v1 = reflected!(v1, wire.clone(), symbols);
        assert_eq!(v1, reflected!(v1alpha, wire.clone(), symbols), "{server}");
        let (listed, files) = v1;
        assert_eq!(listed, served, "{server}");
        assert_eq!(files.len(), symbols.len(), "{server}");
    }
}
