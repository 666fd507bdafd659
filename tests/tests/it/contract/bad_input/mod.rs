//! Bad input on every call of both services: every bad field is named, nothing is stored, nobody falls
//! over. And its opposite: text that is odd but legal comes back as it was given.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

mod agreement;
mod order;

use std::collections::{BTreeMap, BTreeSet};

use chassis::auth::Caller;
use chassis::clock::{Clock, Time};
use chassis::form::timestamp;
use chassis::server::MESSAGE_BYTES_MAX;
use chrono::Duration;
use prost::Message;
use prost_types::{DescriptorProto, Timestamp};
use proto::agreement::eligibility_result::Result as ItemResult;
use proto::agreement::{
    AgreementDemand, Attestation, BatchCheckEligibilityRequest, CheckEligibilityRequest,
    CreateAttestationRequest, CreateCustomerRequest, Customer, EligibilityResult, GetCustomerRequest,
    GetPartnerRequest, GetTemplateRequest, ImportAttestationsResponse, InlineAttestation, InvitationState,
    ListAttestationsRequest, ListCustomerPartnersRequest, ListCustomersRequest, ListEventsRequest,
    ListInvitationsRequest, ListPartnersRequest, ListTemplatesRequest, Partner, PartnerKind,
    PublishTemplateVersionRequest, ReportPurchaseRequest, RetireTemplateRequest, Template, TemplateDocument,
    UpdateCustomerRequest,
};
use proto::order::{
    ChangeSeatsRequest, CreateOrderRequest, GetOfferRequest, GetOrderRequest, GetSubscriptionRequest,
    ListOffersRequest, ListOrdersRequest, ListSubscriptionChangesRequest, ListSubscriptionsRequest,
    NewOrderLine, Order, Subscription,
};
use proto::types::{AgreementType, Channel, Cloud, Contact, ErrorReason, Operation};
use rstest_reuse::apply;
use tests::clients::{Identity, bad_fields_of};
use tests::world::{self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, Setup, reason_of};

use crate::each_backend;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::contract::access::{ask, call, calls_of_the_contract, contract, wire};

// Bad values. A request takes one of each list for the fields it has, and every value has its turn.

const IDS: [&str; 10] = [
    "",
    "ABCDEF00-0000-4000-8000-00000000ABCD",
    "00000000-0000-0000-0000-000000000000",
    "garbage",
    "abcdef000000400080000000000000ab",
    "{abcdef00-0000-4000-8000-00000000abcd}",
    "urn:uuid:abcdef00-0000-4000-8000-00000000abcd",
    " abcdef00-0000-4000-8000-00000000abcd",
    "abcdef00-0000-4000-8000-00000000abc\0",
    "abcdef00-0000-4000-8000-00000000abcd' OR '1'='1",
];
const COUNTRIES: [&str; 7] = ["", "fr", "F", "FRA", "F\0", "ＦＲ", "FR "];
const LANGUAGES: [&str; 8] = ["", "f", "FR-fr", "fr_FR", "fr-", "fr-F\0", "français", "deutsch-DE"];
const EMAILS: [&str; 8] = [
    "",
    "tania",
    "tania@contoso",
    "tania carr@contoso.example",
    "tania\0@contoso.example",
    "tania@carr@contoso.example",
    "tania@contoso.example,mal@contoso.example",
    "tania@contoso.example\nBcc: mal@contoso.example",
];
const DOMAINS: [&str; 10] = [
    "",
    " ",
    "contoso",
    "-contoso.example",
    "contoso..example",
    "contoso.example.",
    "contoso.exam\0ple",
    "https://contoso.example",
    "contoso\u{e9}.example",
    // KELVIN SIGN, whose lower case is an ASCII letter.
    "\u{212a}ontoso.example",
];
const LINKS: [&str; 4] = ["", "http://contoso.example", "javascript:alert(1)", "https://contoso.example/\0"];
const DIGESTS: [&str; 4] = [
    "abc",
    "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85\0",
];
const ENUMS: [i32; 5] = [0, 99, -1, i32::MAX, i32::MIN];
const PAGE_SIZES: [i32; 2] = [-1, i32::MIN];
const PAGE_TOKENS: [&str; 6] = ["garbage", "AAAA", "AAAAAAAAAAAAAAAAAAAAAAAA", "\0", "ÿ", "' OR '1'='1"];

/// Times that are no times on the wire: finer than microseconds, or outside the years 1 to 9999.
const TIMES: [Timestamp; 9] = [
    Timestamp { seconds: 1_700_000_000, nanos: 1 },
    Timestamp { seconds: 1_700_000_000, nanos: 999_999_999 },
    Timestamp { seconds: 1_700_000_000, nanos: -1 },
    Timestamp { seconds: 1_700_000_000, nanos: 1_000_000_000 },
    Timestamp { seconds: 1_700_000_000, nanos: i32::MIN },
    Timestamp { seconds: 253_402_300_800, nanos: 0 },
    Timestamp { seconds: -62_135_596_801, nanos: 0 },
    Timestamp { seconds: i64::MAX, nanos: 0 },
    Timestamp { seconds: i64::MIN, nanos: 0 },
];

/// Enough rounds for every value of every list.
const ROUNDS: usize = 12;

fn pick<T: Clone>(values: &[T], round: usize) -> T {
    values[round % values.len()].clone()
}

/// As [`pick`], of a field that may be left empty.
fn pick_given(values: &[&str], round: usize) -> String {
    let given: Vec<_> = values.iter().filter(|value| !value.trim().is_empty()).collect();
    pick(&given, round).to_string()
}

fn id(round: usize) -> String {
    pick(&IDS, round).into()
}

fn given_id(round: usize) -> String {
    pick_given(&IDS, round)
}

/// Required text of at most `max` characters: nothing, blanks, one too many, control characters.
fn text(round: usize, max: usize) -> String {
    let bad =
        ["".into(), " \t\u{3000}".into(), "x".repeat(max + 1), "😀".repeat(max + 1), "Con\0toso".into()];
    pick(&[&bad[..], &["Con\ntoso", "Con\u{7f}toso", "Con\u{85}toso"].map(String::from)].concat(), round)
}

/// Text that may be left empty.
fn given_text(round: usize, max: usize) -> String {
    text(2 + round % 6, max)
}

fn required_time(round: usize) -> Option<Timestamp> {
    let in_an_hour = timestamp(Clock::system().now() + Duration::hours(1));
    let end_of_time = Timestamp { seconds: 253_402_300_799, nanos: 999_999_000 };
    let mut times: Vec<_> = TIMES.map(Some).to_vec();
    times.extend([None, Some(in_an_hour), Some(end_of_time)]);
    pick(&times, round)
}

/// Until when an invitation may not be made to last: the past, more than 90 days, no time.
fn expiry(round: usize) -> Option<Timestamp> {
    let now = Clock::system().now();
    let mut times: Vec<_> = TIMES.map(Some).to_vec();
    times.extend([now, now + Duration::days(91)].map(|time| Some(timestamp(time))));
    pick(&times, round)
}

fn contact(round: usize) -> Option<Contact> {
    Some(Contact {
        first_name: text(round, 100),
        last_name: text(round + 1, 100),
        email: if round == 0 { "x".repeat(255) } else { pick(&EMAILS, round).into() },
        phone: given_text(round, 50),
    })
}

/// A request with what its answer must name.
struct Row {
    call: &'static str,
    about: String,
    by: Caller,
    request: Vec<u8>,
    bad: BTreeSet<String>,
}

fn row(call: &'static str, about: &str, by: &Caller, bad: &[&str], request: &impl Message) -> Row {
    Row {
        call,
        about: about.to_owned(),
        by: by.clone(),
        request: request.encode_to_vec(),
        bad: bad.iter().map(|field| (*field).to_owned()).collect(),
    }
}

/// The table under construction.
#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    /// A call with all its fields bad at once, in many ways.
    fn all_bad<M: Message>(
        &mut self,
        call: &'static str,
        by: &Caller,
        bad: &[&str],
        request: impl Fn(usize) -> M,
    ) {
        for round in 0..ROUNDS {
            self.0.push(row(call, &format!("round {round}"), by, bad, &request(round)));
        }
    }

    /// A request that is bad in one way.
    fn bad(&mut self, call: &'static str, about: &str, by: &Caller, bad: &[&str], request: &impl Message) {
        self.0.push(row(call, about, by, bad, request));
    }
}

const LIST_TEMPLATES: &str = "/csp.agreement.v1.TemplateService/ListTemplates";
const GET_TEMPLATE: &str = "/csp.agreement.v1.TemplateService/GetTemplate";
const GET_TEMPLATE_DOCUMENT: &str = "/csp.agreement.v1.TemplateService/GetTemplateDocument";
const PUBLISH_TEMPLATE_VERSION: &str = "/csp.agreement.v1.TemplateService/PublishTemplateVersion";
const RETIRE_TEMPLATE: &str = "/csp.agreement.v1.TemplateService/RetireTemplate";
const REGISTER_PARTNER: &str = "/csp.agreement.v1.PartnerService/RegisterPartner";
const LINK_RESELLER: &str = "/csp.agreement.v1.PartnerService/LinkReseller";
const UNLINK_RESELLER: &str = "/csp.agreement.v1.PartnerService/UnlinkReseller";
const LIST_PARTNERS: &str = "/csp.agreement.v1.PartnerService/ListPartners";
const GET_PARTNER: &str = "/csp.agreement.v1.PartnerService/GetPartner";
const CREATE_CUSTOMER: &str = "/csp.agreement.v1.CustomerService/CreateCustomer";
const UPDATE_CUSTOMER: &str = "/csp.agreement.v1.CustomerService/UpdateCustomer";
const GET_CUSTOMER: &str = "/csp.agreement.v1.CustomerService/GetCustomer";
const LIST_CUSTOMERS: &str = "/csp.agreement.v1.CustomerService/ListCustomers";
const END_RELATIONSHIP: &str = "/csp.agreement.v1.CustomerService/EndRelationship";
const LIST_CUSTOMER_PARTNERS: &str = "/csp.agreement.v1.CustomerService/ListCustomerPartners";
const CREATE_ATTESTATION: &str = "/csp.agreement.v1.AttestationService/CreateAttestation";
const GET_ATTESTATION: &str = "/csp.agreement.v1.AttestationService/GetAttestation";
const LIST_ATTESTATIONS: &str = "/csp.agreement.v1.AttestationService/ListAttestations";
const WITHDRAW_ATTESTATION: &str = "/csp.agreement.v1.AttestationService/WithdrawAttestation";
const IMPORT_ATTESTATIONS: &str = "/csp.agreement.v1.AttestationService/ImportAttestations";
const RETRY_NOTIFICATION: &str = "/csp.agreement.v1.AttestationService/RetryNotification";
const CREATE_INVITATION: &str = "/csp.agreement.v1.DirectSignService/CreateInvitation";
const REVOKE_INVITATION: &str = "/csp.agreement.v1.DirectSignService/RevokeInvitation";
const GET_INVITATION: &str = "/csp.agreement.v1.DirectSignService/GetInvitation";
const LIST_INVITATIONS: &str = "/csp.agreement.v1.DirectSignService/ListInvitations";
const ACCEPT_INVITATION: &str = "/csp.agreement.v1.DirectSignService/AcceptInvitation";
const SIGN_AGREEMENT: &str = "/csp.agreement.v1.DirectSignService/SignAgreement";
const WITHDRAW_SIGNATURE: &str = "/csp.agreement.v1.DirectSignService/WithdrawSignature";
const GET_DIRECT_SIGN_STATUS: &str = "/csp.agreement.v1.DirectSignService/GetDirectSignStatus";
const CHECK_ELIGIBILITY: &str = "/csp.agreement.v1.EligibilityService/CheckEligibility";
const BATCH_CHECK_ELIGIBILITY: &str = "/csp.agreement.v1.EligibilityService/BatchCheckEligibility";
const LIST_BLOCKED_CUSTOMERS: &str = "/csp.agreement.v1.EligibilityService/ListBlockedCustomers";
const REPORT_PURCHASE: &str = "/csp.agreement.v1.EligibilityService/ReportPurchase";
const LIST_EVENTS: &str = "/csp.agreement.v1.EventService/ListEvents";
const WATCH_EVENTS: &str = "/csp.agreement.v1.EventService/WatchEvents";
const LIST_OFFERS: &str = "/csp.order.v1.OfferService/ListOffers";
const GET_OFFER: &str = "/csp.order.v1.OfferService/GetOffer";
const CREATE_ORDER: &str = "/csp.order.v1.OrderService/CreateOrder";
const GET_ORDER: &str = "/csp.order.v1.OrderService/GetOrder";
const LIST_ORDERS: &str = "/csp.order.v1.OrderService/ListOrders";
const GET_SUBSCRIPTION: &str = "/csp.order.v1.SubscriptionService/GetSubscription";
const LIST_SUBSCRIPTIONS: &str = "/csp.order.v1.SubscriptionService/ListSubscriptions";
const GET_WITHDRAWAL_REPORT: &str = "/csp.order.v1.WithdrawalService/GetWithdrawalReport";
const LIST_WITHDRAWAL_REPORTS: &str = "/csp.order.v1.WithdrawalService/ListWithdrawalReports";
const LIST_SUBSCRIPTION_CHANGES: &str = "/csp.order.v1.SubscriptionService/ListSubscriptionChanges";
const CHANGE_SEATS: &str = "/csp.order.v1.SubscriptionService/ChangeSeats";
const RENEW_SUBSCRIPTION: &str = "/csp.order.v1.SubscriptionService/RenewSubscription";
const SET_AUTO_RENEW: &str = "/csp.order.v1.SubscriptionService/SetAutoRenew";
const SUSPEND_SUBSCRIPTION: &str = "/csp.order.v1.SubscriptionService/SuspendSubscription";
const RESUME_SUBSCRIPTION: &str = "/csp.order.v1.SubscriptionService/ResumeSubscription";
const CANCEL_SUBSCRIPTION: &str = "/csp.order.v1.SubscriptionService/CancelSubscription";

/// What exists before the table is tried, so that good ids can stand beside bad fields.
struct Existing {
    cluster: Cluster,
    /// Of the direct-bill partner and the provider, attested twice; another one without acceptance.
    customer: Customer,
    other_customer: String,
    /// With a second change.
    subscription: Subscription,
    direct: Caller,
    operator: Caller,
    service: Caller,
    /// Of the first customer.
    admin: Caller,
}

impl Existing {
    async fn new() -> Self {
        let cluster = Cluster::on(Backend::Sqlite).await;
        world::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(world::sales(DIRECT));
        let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        let other_customer = world::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
        let now = Clock::system().now();
        world::attest(&direct, &customer, now).await.unwrap();
        let again = attestation(&customer, Some(timestamp(now)));
        direct.attestations().create_attestation(again).await.unwrap();
        // Earlier than the orders below, so that order-svc's own report changes nothing.
        let bought = ReportPurchaseRequest {
            request_id: world::request_id(),
            customer_id: customer.clone(),
            payer_id: DIRECT.to_string(),
            purchased_at: Some(timestamp(now - Duration::days(1))),
        };
        cluster.as_caller(world::service()).gate().report_purchase(bought).await.unwrap();
        let provider = cluster.as_caller(world::sales(PROVIDER));
        let invited = world::invite(&provider, None, None).await.unwrap();
        let admin = world::admin(customer.parse().unwrap());
        let accepted = world::acceptance(&invited, None);
        cluster.as_caller(admin.clone()).signatures().accept_invitation(accepted).await.unwrap();
        for _ in 0..2 {
            world::invite(&direct, None, None).await.unwrap();
        }
        world::order(&direct, &customer, None, 1).await.unwrap();
        let bought = world::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
        let changed = direct.subscriptions().change_seats(seats(&bought, 6)).await.unwrap().into_inner();
        let customer = GetCustomerRequest { customer_id: customer };
        let customer = direct.customers().get_customer(customer).await.unwrap().into_inner();
        Self {
            cluster,
            customer: customer.customer.unwrap(),
            other_customer,
            subscription: changed.subscription.unwrap(),
            direct: world::sales(DIRECT),
            operator: world::operator(),
            service: world::service(),
            admin,
        }
    }

    fn table(&self) -> Vec<Row> {
        let mut table = Table::default();
        self.templates(&mut table);
        self.partners(&mut table);
        self.customers(&mut table);
        self.attestations(&mut table);
        self.invitations(&mut table);
        self.signatures(&mut table);
        self.gate(&mut table);
        self.events(&mut table);
        self.offers(&mut table);
        self.orders(&mut table);
        self.subscriptions(&mut table);
        self.withdrawals(&mut table);
        table.0
    }

    /// Everything that its partners have, as they see it.
    async fn everything(&self) -> Everything {
        let operator = self.cluster.as_caller(self.operator.clone());
        let mut everything = Everything { head: self.cluster.head().await.unwrap(), ..Everything::default() };
        for template_id in [CLOUD_AGREEMENT, CUSTOMER_AGREEMENT] {
            let request = GetTemplateRequest { template_id: template_id.into() };
            let template = operator.templates().get_template(request).await.unwrap().into_inner().template;
            everything.templates.extend(template);
        }
        let attestations = ListAttestationsRequest {
            customer_id: self.customer.customer_id.clone(),
            include_history: true,
            ..ListAttestationsRequest::default()
        };
        let attestations = operator.attestations().list_attestations(attestations).await.unwrap();
        everything.attestations = attestations.into_inner().attestations;
        // How far its announcement is changes by itself.
        everything.attestations.iter_mut().for_each(|attestation| attestation.notification = None);
        for partner_id in [DIRECT, PROVIDER, RESELLER] {
            let partner = self.cluster.as_caller(world::sales(partner_id));
            let (mut customers, mut orders) = (partner.customers(), partner.orders());
            let request = GetPartnerRequest { partner_id: partner_id.to_string() };
            let known = operator.partners().get_partner(request).await.unwrap().into_inner();
            everything.partners.extend(known.partner);
            let all = customers.list_customers(ListCustomersRequest::default()).await.unwrap();
            everything.customers.extend(all.into_inner().customers);
            let all = orders.list_orders(ListOrdersRequest::default()).await.unwrap();
            everything.orders.extend(all.into_inner().orders);
            let all = ListSubscriptionsRequest::default();
            let all = partner.subscriptions().list_subscriptions(all).await.unwrap();
            everything.subscriptions.extend(all.into_inner().subscriptions);
        }
        everything
    }

    /// That nothing was recorded since, and everything is as it was.
    async fn assert_unchanged_since(&self, before: &Everything) {
        assert_eq!(self.cluster.events_after(before.head).await.unwrap(), []);
        let now = self.everything().await;
        assert_eq!(Everything { head: before.head, ..now }, *before);
    }

    /// How a request is refused, if it is: code, reason and the fields named. A row of an import is
    /// refused in an answer.
    async fn refusal_of(&self, row: &Row) -> Option<(Code, String, BTreeSet<String>)> {
        let services = self.cluster.as_caller(row.by.clone());
        let service = services.identified(wire(&services, row.call));
        let answer = ask(service, row.call, &row.request).await;
        match answer {
            Err(refused) => {
                let named = bad_fields_of(&refused).into_iter().collect();
                Some((refused.code(), reason_of(&refused), named))
            }
            Ok(answer) if row.call == IMPORT_ATTESTATIONS => {
                let answer = ImportAttestationsResponse::decode(answer.as_slice()).unwrap();
                let refusal = answer.refusal?;
                let (code, reason) = (Code::from_i32(refusal.code), refusal.reason().name().to_owned());
                Some((code, reason, refusal.fields.into_iter().map(|problem| problem.field).collect()))
            }
            Ok(_) => None,
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct Everything {
    /// The revision of the last event there is.
    head: i64,
    templates: Vec<Template>,
    partners: Vec<Partner>,
    customers: Vec<Customer>,
    attestations: Vec<Attestation>,
    orders: Vec<Order>,
    subscriptions: Vec<Subscription>,
}

/// An attestation by another person than the usual contact.
fn attestation(customer_id: &str, agreed_at: Option<Timestamp>) -> CreateAttestationRequest {
    CreateAttestationRequest {
        request_id: world::request_id(),
        customer_id: customer_id.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(Contact { first_name: "Tomas".into(), ..world::contact() }),
        agreed_at,
        validate_only: false,
    }
}

fn document(country: &str, language: &str) -> TemplateDocument {
    TemplateDocument {
        country: country.into(),
        language: language.into(),
        link: "https://contoso.example/agreement".into(),
        sha256: String::new(),
    }
}

fn publication(template_id: &str, documents: Vec<TemplateDocument>) -> PublishTemplateVersionRequest {
    PublishTemplateVersionRequest {
        request_id: world::request_id(),
        template_id: template_id.into(),
        documents,
        ..PublishTemplateVersionRequest::default()
    }
}

fn seats(subscription: &Subscription, quantity: u32) -> ChangeSeatsRequest {
    ChangeSeatsRequest {
        request_id: world::request_id(),
        subscription_id: subscription.subscription_id.clone(),
        quantity,
        etag: subscription.etag.clone(),
        validate_only: false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_bad_field_of_every_call_is_named_and_nothing_is_stored() {
    let existing = Existing::new().await;
    let before = existing.everything().await;
    let mut wrong = vec![];
    for row in existing.table() {
        let about = format!("{}, {}", row.call, row.about);
        match existing.refusal_of(&row).await {
            None => wrong.push(format!("{about}: accepted")),
            Some((Code::InvalidArgument, reason, named)) if reason == "INVALID_FIELDS" => {
                if named != row.bad {
                    let missing: Vec<_> = row.bad.difference(&named).collect();
                    let more: Vec<_> = named.difference(&row.bad).collect();
                    wrong.push(format!("{about}: does not name {missing:?}, and names {more:?}"));
                }
            }
            Some((code, reason, _)) => wrong.push(format!("{about}: {code:?} {reason}")),
        }
    }
    existing.assert_unchanged_since(&before).await;
    assert!(wrong.is_empty(), "{} rows\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_bad_field_of_an_item_of_a_batch_is_named_with_that_item() {
    let existing = Existing::new().await;
    let rows = existing.table().into_iter().filter(|row| row.call == CHECK_ELIGIBILITY);
    for row in rows {
        let item = CheckEligibilityRequest::decode(row.request.as_slice()).unwrap();
        let request = BatchCheckEligibilityRequest { items: vec![item] };
        let mut gate = existing.cluster.as_caller(row.by).gate();
        let results = gate.batch_check_eligibility(request).await.unwrap().into_inner().results;
        let [EligibilityResult { result: Some(ItemResult::Refusal(refusal)) }] = results.as_slice() else {
            panic!("{}: {results:?}", row.about)
        };
        assert_eq!(refusal.reason(), ErrorReason::InvalidFields, "{}", row.about);
        let named: BTreeSet<_> = refusal.fields.iter().map(|problem| problem.field.clone()).collect();
        assert_eq!(named, row.bad, "{}", row.about);
    }
}

/// Calls that answer each item by itself, and where the items stand; that their fields are named has
/// tests of its own.
const ANSWERED_BY_ITEM: [(&str, &str); 1] = [(BATCH_CHECK_ELIGIBILITY, "items.")];

/// Fields that hold nothing bad: flags, and a version that exists or does not.
const NEVER_BAD: [&str; 6] =
    ["validate_only", "include_history", "include_ended", "never_reaccept", "version", "auto_renew"];

/// The fields of a message by path, down to those that are no message of ours.
fn leaves(messages: &BTreeMap<String, DescriptorProto>, name: &str, path: &str) -> Vec<String> {
    let fields = messages[name].field.iter();
    fields
        .flat_map(|field| {
            let path = format!("{path}{}", field.name());
            match messages.contains_key(field.type_name()) {
                true => leaves(messages, field.type_name(), &format!("{path}.")),
                false => vec![path],
            }
        })
        .collect()
}

/// A path without the places in lists.
fn without_places(path: &str) -> String {
    let parts = path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest));
    parts.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_field_of_every_call_is_bad_in_some_row() {
    let mut tried: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in Existing::new().await.table() {
        tried.entry(row.call).or_default().extend(row.bad.iter().map(|field| without_places(field)));
    }
    let contract = contract();
    let own = || contract.file.iter().filter(|file| file.package().starts_with("csp."));
    let messages: BTreeMap<_, _> = own()
        .flat_map(|file| {
            let package = file.package();
            file.message_type.iter().map(move |m| (format!(".{package}.{}", m.name()), m.clone()))
        })
        .collect();
    let mut untried = vec![];
    for file in own() {
        for service in &file.service {
            for method in &service.method {
                let call = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let nothing = BTreeSet::new();
                let tried = tried.get(call.as_str()).unwrap_or(&nothing);
                let fields = leaves(&messages, method.input_type(), "");
                let is_of_an_item = |field: &str| {
                    ANSWERED_BY_ITEM.iter().any(|(of, items)| call == *of && field.starts_with(items))
                };
                let untried_here = fields
                    .iter()
                    .filter(|f| !NEVER_BAD.contains(&f.as_str()) && !tried.contains(*f) && !is_of_an_item(f));
                untried.extend(untried_here.map(|field| format!("{call}: {field}")));
            }
        }
    }
    assert!(untried.is_empty(), "\n{}", untried.join("\n"));
}

/// Whatever was sent before, both services answer the next caller.
async fn assert_both_answer(cluster: &Cluster) {
    let operator = cluster.as_caller(world::operator());
    operator.partners().list_partners(ListPartnersRequest::default()).await.unwrap();
    operator.orders().list_orders(ListOrdersRequest::default()).await.unwrap();
}

/// Somebody who may make the call.
fn allowed(call: &str) -> Caller {
    match call {
        REGISTER_PARTNER | LINK_RESELLER | UNLINK_RESELLER | LIST_PARTNERS => world::operator(),
        PUBLISH_TEMPLATE_VERSION | RETIRE_TEMPLATE => world::operator(),
        REPORT_PURCHASE | WATCH_EVENTS => world::service(),
        LIST_CUSTOMER_PARTNERS | ACCEPT_INVITATION | SIGN_AGREEMENT | WITHDRAW_SIGNATURE => {
            world::admin(Uuid::from_u128(0xc1))
        }
        _ => world::sales(DIRECT),
    }
}

async fn send(services: &As, path: &str, message: &[u8]) -> Result<Vec<u8>, Status> {
    call(wire(services, path), Identity::of(allowed(path)), path, message).await
}

/// A message with nothing but one unknown field, `size` bytes long: well formed, and known to nobody.
fn unknown_field(size: usize) -> Vec<u8> {
    const KEY: [u8; 2] = [0xba, 0x3e];
    let mut message = KEY.to_vec();
    let length_bytes = (1..).find(|n| prost::length_delimiter_len(size - 2 - n) == *n).unwrap();
    prost::encode_length_delimiter(size - 2 - length_bytes, &mut message).unwrap();
    message.resize(size, 0);
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_message_that_is_too_large_is_refused_with_its_reason() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let services = cluster.as_nobody();
    for path in calls_of_the_contract() {
        let fits = send(&services, &path, &unknown_field(MESSAGE_BYTES_MAX)).await;
        let reason = fits.as_ref().map_or_else(reason_of, |_| String::new());
        assert!(["", "INVALID_FIELDS"].contains(&reason.as_str()), "{path}: {fits:?}");
        for size in [MESSAGE_BYTES_MAX + 1, 5_000_000] {
            let refused = send(&services, &path, &unknown_field(size)).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason_of(&refused).as_str()),
                (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
                "{path}, {size} bytes: {refused}"
            );
        }
    }
    assert_both_answer(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bytes_that_are_no_message_are_refused_and_harm_nobody() {
    let existing = Existing::new().await;
    let before = existing.everything().await;
    let services = existing.cluster.as_nobody();
    let mut whole: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for row in existing.table() {
        let longest = whole.entry(row.call).or_default();
        if row.request.len() > longest.len() {
            *longest = row.request;
        }
    }
    // A group in a group in a group: deeper than a parser should follow.
    let nested = [0xc3, 0x3e].repeat(100_000);
    for path in calls_of_the_contract() {
        let whole = &whole[path.as_str()];
        let bytes: [(&str, &[u8]); 7] = [
            ("cut short", &whole[..whole.len() - 1]),
            ("cut to one byte", &whole[..1]),
            ("all ones", &[0xff; 64]),
            ("not UTF-8", &[0x0a, 0x01, 0xff]),
            ("a length beyond the end", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            ("field number 0", &[0x02, 0x00]),
            ("nested without end", &nested),
        ];
        for (about, bytes) in bytes {
            let refused = send(&services, &path, bytes).await.unwrap_err();
            // The reason INTERNAL is what a panic or a damaged row is answered with.
            assert_ne!(reason_of(&refused), "INTERNAL", "{path}, {about}: {refused}");
            assert!(
                !matches!(refused.code(), Code::Unknown | Code::Unavailable | Code::Cancelled),
                "{path}, {about}: {refused}"
            );
        }
    }
    existing.assert_unchanged_since(&before).await;
    assert_both_answer(&existing.cluster).await;
}

/// A million bad entries fit into a message; the answer must not grow with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_long_list_of_bad_entries_is_refused_in_few_words() {
    let cluster = Cluster::on(Backend::Sqlite).await;
    let services = cluster.as_nobody();
    let entries = vec![99; MESSAGE_BYTES_MAX - 100];
    let demands = vec![AgreementDemand { agreement_types: entries.clone() }];
    let id = world::request_id();
    for (path, request) in [
        (LIST_TEMPLATES, ListTemplatesRequest { agreement_types: entries.clone() }.encode_to_vec()),
        (CHECK_ELIGIBILITY, CheckEligibilityRequest { demands, ..Default::default() }.encode_to_vec()),
        (
            CHECK_ELIGIBILITY,
            CheckEligibilityRequest { payer_id: id, acting_roles: entries, ..Default::default() }
                .encode_to_vec(),
        ),
    ] {
        let caller = Identity::of(world::service());
        let refused = call(wire(&services, path), caller, path, &request).await.unwrap_err();
        assert_eq!(reason_of(&refused), "INVALID_FIELDS", "{path}: {refused}");
        assert!(refused.details().len() < 6000, "{path}: {} bytes", refused.details().len());
    }
    // A hundred bad lines do not all fit into the headers; those that do not are counted.
    let line = NewOrderLine { offer_id: "\0".into(), quantity: 1, friendly_name: "\0".into() };
    let order =
        CreateOrderRequest { lines: vec![line; 100], ..world::new_order(&world::request_id(), None, "", 1) };
    let refused = send(&services, CREATE_ORDER, &order.encode_to_vec()).await.unwrap_err();
    let named = bad_fields_of(&refused);
    assert_eq!(named[..2], ["lines[0].offer_id", "lines[0].friendly_name"]);
    assert_eq!(named.last().unwrap(), "");
    assert!(refused.message().ends_with("and 195 more"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_token_serves_only_the_caller_and_the_filter_it_was_made_for() {
    let existing = Existing::new().await;
    let customer = existing.customer.customer_id.clone();
    let other_operator = Caller { tenant_id: Uuid::from_u128(0xa1), ..world::operator() };
    let direct = existing.cluster.as_caller(existing.direct.clone());
    let provider = existing.cluster.as_caller(world::sales(PROVIDER));
    let operator = existing.cluster.as_caller(existing.operator.clone());
    let other = existing.cluster.as_caller(other_operator);
    let mut answers = vec![];

    let partners = |page_token: &str| ListPartnersRequest { page_size: 1, page_token: page_token.into() };
    let token = operator.partners().list_partners(partners("")).await.unwrap().into_inner().next_page_token;
    answers.push(("partners, same", operator.partners().list_partners(partners(&token)).await.map(drop)));
    answers.push(("partners, other", other.partners().list_partners(partners(&token)).await.map(drop)));

    let customers = |page_token: &str| ListCustomersRequest { page_size: 1, page_token: page_token.into() };
    answers.push(("partners' for customers", {
        operator.customers().list_customers(customers(&token)).await.map(drop)
    }));
    let token = direct.customers().list_customers(customers("")).await.unwrap().into_inner().next_page_token;
    answers.push(("customers, same", direct.customers().list_customers(customers(&token)).await.map(drop)));
    for (about, somebody) in [("customers, provider", &provider), ("customers, operator", &operator)] {
        answers.push((about, somebody.customers().list_customers(customers(&token)).await.map(drop)));
    }

    let attestations = |page_token: &str| ListAttestationsRequest {
        customer_id: customer.clone(),
        include_history: true,
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = direct.attestations();
    let token = calls.list_attestations(attestations("")).await.unwrap().into_inner().next_page_token;
    let same = attestations(&token);
    let current = ListAttestationsRequest { include_history: false, ..same.clone() };
    let elsewhere = ListAttestationsRequest { customer_id: existing.other_customer.clone(), ..same.clone() };
    answers.push(("attestations, same", calls.list_attestations(same.clone()).await.map(drop)));
    answers.push(("attestations, current", calls.list_attestations(current).await.map(drop)));
    answers.push(("attestations, customer", calls.list_attestations(elsewhere).await.map(drop)));
    answers.push(("attestations, operator", {
        operator.attestations().list_attestations(same).await.map(drop)
    }));

    let admin = existing.cluster.as_caller(existing.admin.clone());
    let other_admin = existing.cluster.as_caller(world::admin(existing.other_customer.parse().unwrap()));
    let partners = |page_token: &str| ListCustomerPartnersRequest {
        include_ended: true,
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = admin.customers();
    let token = calls.list_customer_partners(partners("")).await.unwrap().into_inner().next_page_token;
    let active = ListCustomerPartnersRequest { include_ended: false, ..partners(&token) };
    answers.push(("its partners, same", calls.list_customer_partners(partners(&token)).await.map(drop)));
    answers.push(("its partners, active", calls.list_customer_partners(active).await.map(drop)));
    answers.push(("its partners, customer", {
        other_admin.customers().list_customer_partners(partners(&token)).await.map(drop)
    }));

    let invitations = |page_token: &str| ListInvitationsRequest {
        page_size: 1,
        page_token: page_token.into(),
        ..ListInvitationsRequest::default()
    };
    let mut calls = direct.signatures();
    let token = calls.list_invitations(invitations("")).await.unwrap().into_inner().next_page_token;
    let pending = ListInvitationsRequest { state: InvitationState::Pending.into(), ..invitations(&token) };
    let named = ListInvitationsRequest { customer_id: customer.clone(), ..invitations(&token) };
    answers.push(("invitations, same", calls.list_invitations(invitations(&token)).await.map(drop)));
    answers.push(("invitations, pending", calls.list_invitations(pending).await.map(drop)));
    answers.push(("invitations, customer", calls.list_invitations(named).await.map(drop)));
    for (about, somebody) in [("invitations, provider", &provider), ("invitations, operator", &operator)] {
        answers.push((about, somebody.signatures().list_invitations(invitations(&token)).await.map(drop)));
    }

    let events = |customer_id: &str, page_token: &str| ListEventsRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = direct.events();
    let token = calls.list_events(events(&customer, "")).await.unwrap().into_inner().next_page_token;
    let elsewhere = events(&existing.other_customer, &token);
    answers.push(("events, same", calls.list_events(events(&customer, &token)).await.map(drop)));
    answers.push(("events, customer", calls.list_events(elsewhere).await.map(drop)));
    for (about, somebody) in [("events, provider", &provider), ("events, operator", &operator)] {
        answers.push((about, somebody.events().list_events(events(&customer, &token)).await.map(drop)));
    }

    let offers = |country: &str, page_token: &str| ListOffersRequest {
        country: country.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let token = direct.offers().list_offers(offers("FR", "")).await.unwrap().into_inner().next_page_token;
    answers.push(("offers, same", direct.offers().list_offers(offers("FR", &token)).await.map(drop)));
    answers.push(("offers, country", direct.offers().list_offers(offers("DE", &token)).await.map(drop)));
    answers.push(("offers, everywhere", direct.offers().list_offers(offers("", &token)).await.map(drop)));
    answers.push(("offers, provider", provider.offers().list_offers(offers("FR", &token)).await.map(drop)));

    let orders = |customer_id: &str, page_token: &str| ListOrdersRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = direct.orders();
    let token = calls.list_orders(orders(&customer, "")).await.unwrap().into_inner().next_page_token;
    answers.push(("orders, same", calls.list_orders(orders(&customer, &token)).await.map(drop)));
    answers.push(("orders, all", calls.list_orders(orders("", &token)).await.map(drop)));
    answers.push(("orders, customer", {
        calls.list_orders(orders(&existing.other_customer, &token)).await.map(drop)
    }));
    answers
        .push(("orders, operator", operator.orders().list_orders(orders(&customer, &token)).await.map(drop)));

    let subscriptions = |customer_id: &str, page_token: &str| ListSubscriptionsRequest {
        customer_id: customer_id.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let mut calls = direct.subscriptions();
    answers.push(("orders' for subscriptions", {
        calls.list_subscriptions(subscriptions(&customer, &token)).await.map(drop)
    }));
    let first = calls.list_subscriptions(subscriptions(&customer, "")).await.unwrap().into_inner();
    let token = first.next_page_token;
    answers.push(("subscriptions, same", {
        calls.list_subscriptions(subscriptions(&customer, &token)).await.map(drop)
    }));
    answers.push(("subscriptions, all", calls.list_subscriptions(subscriptions("", &token)).await.map(drop)));
    answers.push(("subscriptions, operator", {
        operator.subscriptions().list_subscriptions(subscriptions(&customer, &token)).await.map(drop)
    }));

    let changes = |subscription_id: &str, page_token: &str| ListSubscriptionChangesRequest {
        subscription_id: subscription_id.into(),
        page_size: 1,
        page_token: page_token.into(),
    };
    let (changed, other) = (&existing.subscription.subscription_id, &first.subscriptions[0].subscription_id);
    let first = calls.list_subscription_changes(changes(changed, "")).await.unwrap().into_inner();
    let token = first.next_page_token;
    answers.push(("changes, same", {
        calls.list_subscription_changes(changes(changed, &token)).await.map(drop)
    }));
    answers.push(("changes, subscription", {
        calls.list_subscription_changes(changes(other, &token)).await.map(drop)
    }));
    answers.push(("changes, operator", {
        operator.subscriptions().list_subscription_changes(changes(changed, &token)).await.map(drop)
    }));

    for (about, answer) in answers {
        if about.ends_with(", same") {
            assert!(answer.is_ok(), "{about}: {answer:?}");
        } else {
            let refused = answer.expect_err(about);
            assert_eq!(reason_of(&refused), "INVALID_FIELDS", "{about}: {refused}");
            assert_eq!(bad_fields_of(&refused), ["page_token"], "{about}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_date_up_to_five_minutes_ahead_is_taken_and_one_beyond_is_told_the_servers_time() {
    tests::needs_own!("a clock that it sets");
    let now: Time = "2026-03-04T05:06:07.000089Z".parse().unwrap();
    let setup = Setup { clock: Clock::manual(now), ..Setup::default() };
    let cluster = Cluster::start(setup).await.unwrap();
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let service = cluster.as_caller(world::service());
    let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let created_with = |agreed_at| CreateCustomerRequest {
        attestation: Some(InlineAttestation {
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: None,
            agreed_at: Some(agreed_at),
        }),
        ..world::new_customer("Fabrikam", "FR", None)
    };
    let purchase = |purchased_at| ReportPurchaseRequest {
        request_id: world::request_id(),
        customer_id: customer.clone(),
        payer_id: DIRECT.to_string(),
        purchased_at: Some(purchased_at),
    };
    let last = now + Duration::minutes(5);
    let too_late = timestamp(last + Duration::microseconds(1));
    for (field, answer) in [
        ("agreed_at", {
            direct.attestations().create_attestation(attestation(&customer, Some(too_late))).await.map(drop)
        }),
        ("attestation.agreed_at", {
            direct.customers().create_customer(created_with(too_late)).await.map(drop)
        }),
        ("purchased_at", service.gate().report_purchase(purchase(too_late)).await.map(drop)),
    ] {
        let refused = answer.expect_err(field);
        assert_eq!(
            (refused.code(), bad_fields_of(&refused)),
            (Code::InvalidArgument, vec![field.to_owned()])
        );
        assert!(refused.message().contains("2026-03-04T05:06:07.000089Z"), "{field}: {}", refused.message());
    }

    let last = timestamp(last);
    let attested = direct.attestations().create_attestation(attestation(&customer, Some(last))).await;
    assert_eq!(attested.unwrap().into_inner().attestation.unwrap().agreed_at, Some(last));
    let created = direct.customers().create_customer(created_with(last)).await;
    assert_eq!(created.unwrap().into_inner().attestation.unwrap().agreed_at, Some(last));
    let reported = service.gate().report_purchase(purchase(last)).await;
    assert_eq!(reported.unwrap().into_inner().first_purchase_at, Some(last));
}

/// Odd but legal. Fields that take less get the beginning.
fn hostile_texts() -> Vec<String> {
    let texts = [
        "O'Neil \"the\" `Great` \\ /",
        "Robert'); DROP TABLE customer;--",
        "' OR '1'='1' /* %s %n {0} ${jndi:ldap://x} */",
        "<script>alert(1)</script> &amp; &#0;",
        "=cmd|'/c calc'!A1",
        "👩‍👩‍👧‍👦 🏴‍☠️ 🇫🇷",
        "\u{202e}desrever\u{202c} \u{200f}עברית\u{200e} \u{2067}عربي\u{2069}",
        // The same letter, composed and not: neither may be turned into the other.
        "Caf\u{e9} Cafe\u{301}",
        "\u{feff}\u{200b}zero width\u{200d}",
        "\u{fffd}\u{fffe}\u{10ffff}\u{e000}",
        "two  spaces\u{a0}and\u{2003}odd ones",
        "NULL",
        "\\u0000 \\0 %00 \\x00",
    ];
    let mut texts: Vec<_> = texts.map(String::from).to_vec();
    texts.extend(["😀".repeat(200), "\u{10ffff}".repeat(200)]);
    texts
}

/// As much of a text as a field takes.
fn cut(text: &str, max: usize) -> String {
    text.chars().take(max).collect()
}

/// With blanks around it, which are taken off.
fn padded(text: &str) -> String {
    format!(" \t\u{3000}{text}\n ")
}

/// A template has its type for good, and at most one of a type is live: names take turns.
async fn publish_and_retire(operator: &As, name: &str) -> String {
    let mut templates = operator.templates();
    let request = PublishTemplateVersionRequest {
        agreement_type: AgreementType::MicrosoftCloudAgreement.into(),
        name: padded(name),
        ..publication(&world::request_id(), vec![document("US", "en-US")])
    };
    let published = templates.publish_template_version(request).await.unwrap().into_inner().template.unwrap();
    let request = RetireTemplateRequest {
        request_id: world::request_id(),
        template_id: published.template_id.clone(),
        etag: published.etag,
    };
    templates.retire_template(request).await.unwrap();
    let request = GetTemplateRequest { template_id: published.template_id };
    templates.get_template(request).await.unwrap().into_inner().template.unwrap().name
}

#[apply(each_backend)]
async fn odd_but_legal_text_comes_back_as_it_was_given_without_the_blanks_around_it(
    #[case] backend: Backend,
) {
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let operator = cluster.as_caller(world::operator());
    let direct = cluster.as_caller(world::sales(DIRECT));
    for (n, text) in hostile_texts().iter().enumerate() {
        let (person, phone) = (cut(text, 100), cut(text, 50));
        let given = |email: &str| Contact {
            first_name: padded(&person),
            last_name: padded(&person),
            email: padded(email),
            phone: padded(&phone),
        };
        let kept = |email: &str| Contact {
            first_name: person.clone(),
            last_name: person.clone(),
            email: email.into(),
            phone: phone.clone(),
        };
        let (email, other_email) = ("o'neil+tag@contoso.example", "用户{%s}@contoso.example");
        let new = CreateCustomerRequest {
            company_name: padded(text),
            domain: padded(&format!("HOSTILE-{n}.example")),
            primary_contact: Some(given(email)),
            ..world::new_customer("", "FR", None)
        };
        let created = direct.customers().create_customer(new.clone()).await.unwrap().into_inner();
        let replayed = direct.customers().create_customer(new).await.unwrap().into_inner();
        assert_eq!(replayed, created);
        let customer = created.customer.unwrap();
        let get = GetCustomerRequest { customer_id: customer.customer_id.clone() };
        let read = direct.customers().get_customer(get.clone()).await.unwrap().into_inner().customer.unwrap();
        assert_eq!(read, customer);
        assert_eq!((&read.company_name, &read.domain), (text, &format!("hostile-{n}.example")));
        assert_eq!(read.primary_contact, Some(kept(email)));

        let update = UpdateCustomerRequest {
            request_id: world::request_id(),
            customer_id: customer.customer_id.clone(),
            etag: customer.etag,
            company_name: padded(text),
            primary_contact: Some(given(other_email)),
        };
        direct.customers().update_customer(update).await.unwrap();
        let read = direct.customers().get_customer(get).await.unwrap().into_inner().customer.unwrap();
        assert_eq!((&read.company_name, read.primary_contact), (text, Some(kept(other_email))));

        // From year 1 on, to the microsecond.
        let agreed_at = Some(Timestamp { seconds: -62_135_596_800, nanos: 1000 });
        let attest = CreateAttestationRequest {
            contact: Some(given(other_email)),
            ..attestation(&customer.customer_id, agreed_at)
        };
        direct.attestations().create_attestation(attest).await.unwrap();
        let list =
            ListAttestationsRequest { customer_id: customer.customer_id.clone(), ..Default::default() };
        let listed = direct.attestations().list_attestations(list).await.unwrap().into_inner();
        assert_eq!(listed.attestations[0].contact, Some(kept(other_email)));
        assert_eq!(listed.attestations[0].agreed_at, agreed_at);

        // The version of that date no longer satisfies.
        world::attest(&direct, &customer.customer_id, Clock::system().now()).await.unwrap();
        let mut order = world::new_order(&customer.customer_id, None, OFFICE, 300);
        order.lines[0].friendly_name = padded(text);
        let placed = direct.orders().create_order(order).await.unwrap().into_inner();
        let get = GetOrderRequest { order_id: placed.order.clone().unwrap().order_id };
        let read = direct.orders().get_order(get).await.unwrap().into_inner().order;
        assert_eq!(read, placed.order);
        assert_eq!(&read.unwrap().lines[0].friendly_name, text);
        let subscription_id = placed.subscriptions[0].subscription_id.clone();
        let get = GetSubscriptionRequest { subscription_id };
        let read = direct.subscriptions().get_subscription(get).await.unwrap().into_inner();
        assert_eq!(&read.subscription.unwrap().friendly_name, text);

        let partner = Uuid::from_u128(DIRECT.as_u128() + 0x1000 + n as u128);
        let (kind, cloud) = (PartnerKind::DirectBill, Cloud::Public);
        world::register_partner(&operator, partner, &padded(text), kind, cloud).await.unwrap();
        let get = GetPartnerRequest { partner_id: partner.to_string() };
        let read = operator.partners().get_partner(get).await.unwrap().into_inner();
        assert_eq!(&read.partner.unwrap().name, text);

        let _turn = world::cloud_agreements_turn(&cluster).await.unwrap();
        assert_eq!(&publish_and_retire(&operator, text).await, text);

        // An offer's id is text too; a refusal may repeat it, if its letters survive a header.
        let offer_id = cut(text, 100);
        let refused = direct.offers().get_offer(GetOfferRequest { offer_id: padded(&offer_id) }).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
        assert!(refused.message().contains(&offer_id), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_just_within_bounds_is_taken() {
    let existing = Existing::new().await;
    let direct = existing.cluster.as_caller(existing.direct.clone());
    let service = existing.cluster.as_caller(existing.service.clone());
    let customer = existing.customer.customer_id.clone();

    let line = NewOrderLine { offer_id: OFFICE.into(), quantity: 300, friendly_name: "😀".repeat(200) };
    let order = CreateOrderRequest { lines: vec![line; 100], ..world::new_order(&customer, None, OFFICE, 1) };
    let placed = direct.orders().create_order(order).await.unwrap().into_inner();
    assert_eq!(placed.subscriptions.len(), 100);

    let host = format!("{}.example", ["x".repeat(61), "y".repeat(61), "z".repeat(56)].join("."));
    let local = "l".repeat(64);
    let email = format!("{local}@{}", cut(&host, 254 - 65));
    assert_eq!(email.len(), 253);
    let new = CreateCustomerRequest {
        company_name: "x".repeat(200),
        domain: host,
        primary_contact: Some(Contact {
            first_name: "x".repeat(100),
            last_name: "x".repeat(100),
            email,
            phone: "1".repeat(50),
        }),
        ..world::new_customer("", "XK", None)
    };
    direct.customers().create_customer(new).await.unwrap();

    let known = AgreementType::MicrosoftCustomerAgreement.into();
    let question = CheckEligibilityRequest {
        payer_id: DIRECT.to_string(),
        customer_id: customer,
        operation: Operation::NewPurchase.into(),
        channel: Channel::Api.into(),
        demands: vec![AgreementDemand { agreement_types: vec![known] }; 100],
        ..CheckEligibilityRequest::default()
    };
    service.gate().check_eligibility(question).await.unwrap();

    // More than there is on one page is as much as there may be.
    let all = ListCustomersRequest { page_size: i32::MAX, page_token: String::new() };
    let listed = direct.customers().list_customers(all).await.unwrap().into_inner();
    assert_eq!((listed.customers.len(), listed.next_page_token.as_str()), (3, ""));
}
