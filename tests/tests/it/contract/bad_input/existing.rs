//! What exists before bad requests are sent, and the table of the requests.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::form::timestamp;
use chrono::Duration;
use prost::Message;
use prost_types::Timestamp;
use proto::agreement::{
    Attestation, CreateAttestationRequest, Customer, GetCustomerRequest, GetPartnerRequest,
    GetTemplateRequest, ImportAttestationsResponse, ListAttestationsRequest, ListCustomersRequest, Partner,
    PublishTemplateVersionRequest, ReportPurchaseRequest, Template, TemplateDocument,
};
use proto::order::{ChangeSeatsRequest, ListOrdersRequest, ListSubscriptionsRequest, Order, Subscription};
use proto::types::Contact;
use tests::clients::bad_fields_of;
use tests::fixtures::{self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER};
use tests::{Backend, Cluster, actions, reason_of};

use tonic::Code;

use crate::contract::access::{ask, calls_of_the_contract, wire};

use super::values::*;

/// A request with what its answer must name.
pub(super) struct Row {
    pub call: &'static str,
    pub about: String,
    pub by: Caller,
    pub request: Vec<u8>,
    pub bad: BTreeSet<String>,
}

pub(super) fn row(call: &'static str, about: &str, by: &Caller, bad: &[&str], request: &impl Message) -> Row {
    Row {
        call: path(call),
        about: about.to_owned(),
        by: by.clone(),
        request: request.encode_to_vec(),
        bad: bad.iter().map(|field| (*field).to_owned()).collect(),
    }
}

/// The table under construction.
#[derive(Default)]
pub(super) struct Table(Vec<Row>);

impl Table {
    /// A call with all its fields bad at once, in many ways.
    pub(super) fn all_bad<M: Message>(
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
    pub(super) fn bad(
        &mut self,
        call: &'static str,
        about: &str,
        by: &Caller,
        bad: &[&str],
        request: &impl Message,
    ) {
        self.0.push(row(call, about, by, bad, request));
    }
}

/// What exists before the table is tried, so that good ids can stand beside bad fields.
pub(super) struct Existing {
    pub cluster: Cluster,
    /// Of the direct-bill partner and the provider, attested twice; another one without acceptance.
    pub customer: Customer,
    pub other_customer: String,
    /// With a second change.
    pub subscription: Subscription,
    pub direct: Caller,
    pub operator: Caller,
    pub service: Caller,
    /// Of the first customer.
    pub admin: Caller,
}

impl Existing {
    pub(super) async fn new() -> Self {
        let cluster = Cluster::on(Backend::Sqlite).await;
        actions::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
        let other_customer = actions::create_customer(&direct, "Fabrikam", "FR", None).await.unwrap();
        let now = Clock::system().now();
        actions::attest(&direct, &customer, now).await.unwrap();
        let again = attestation(&customer, Some(timestamp(now)));
        direct.attestations().create_attestation(again).await.unwrap();
        // Earlier than the orders below, so that order-svc's own report changes nothing.
        let bought = ReportPurchaseRequest {
            request_id: fixtures::request_id(),
            customer_id: customer.clone(),
            payer_id: DIRECT.to_string(),
            purchased_at: Some(timestamp(now - Duration::days(1))),
            validate_only: false,
        };
        cluster.as_caller(fixtures::service()).gate().report_purchase(bought).await.unwrap();
        let provider = cluster.as_caller(fixtures::sales(PROVIDER));
        let invited = actions::invite(&provider, None, None).await.unwrap();
        let admin = fixtures::admin(customer.parse().unwrap());
        let accepted = fixtures::acceptance(&invited, None);
        cluster.as_caller(admin.clone()).signatures().accept_invitation(accepted).await.unwrap();
        for _ in 0..2 {
            actions::invite(&direct, None, None).await.unwrap();
        }
        actions::order(&direct, &customer, None, 1).await.unwrap();
        let bought = actions::order(&direct, &customer, None, 5).await.unwrap().subscriptions.remove(0);
        let changed = direct.subscriptions().change_seats(seats(&bought, 6)).await.unwrap().into_inner();
        let customer = GetCustomerRequest { customer_id: customer };
        let customer = direct.customers().get_customer(customer).await.unwrap().into_inner();
        Self {
            cluster,
            customer: customer.customer.unwrap(),
            other_customer,
            subscription: changed.subscription.unwrap(),
            direct: fixtures::sales(DIRECT),
            operator: fixtures::operator(),
            service: fixtures::service(),
            admin,
        }
    }

    pub(super) fn table(&self) -> Vec<Row> {
        let mut table = Table::default();
        self.templates(&mut table);
        self.partners(&mut table);
        self.customers(&mut table);
        self.attestations(&mut table);
        self.invitations(&mut table);
        self.proposals(&mut table);
        self.signatures(&mut table);
        self.gate(&mut table);
        self.events(&mut table);
        self.offers(&mut table);
        self.orders(&mut table);
        self.order_events(&mut table);
        self.subscriptions(&mut table);
        self.withdrawals(&mut table);
        table.0
    }

    /// Everything that its partners have, as they see it.
    pub(super) async fn everything(&self) -> Everything {
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
        // How far its notification is changes by itself.
        everything.attestations.iter_mut().for_each(|attestation| attestation.notification = None);
        for partner_id in [DIRECT, PROVIDER, RESELLER] {
            let partner = self.cluster.as_caller(fixtures::sales(partner_id));
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
    pub(super) async fn assert_unchanged_since(&self, before: &Everything) {
        assert_eq!(self.cluster.events_after(before.head).await.unwrap(), []);
        let now = self.everything().await;
        assert_eq!(Everything { head: before.head, ..now }, *before);
    }

    /// How a request is refused, if it is: code, reason and the fields named. A row of an import is
    /// refused in an answer.
    pub(super) async fn refusal_of(&self, row: &Row) -> Option<(Code, String, BTreeSet<String>)> {
        let services = self.cluster.as_caller(row.by.clone());
        let service = services.identified(wire(&services, row.call));
        let answer = ask(service, row.call, &row.request).await;
        match answer {
            Err(refused) => {
                let named = bad_fields_of(&refused).into_iter().collect();
                Some((refused.code(), reason_of(&refused), named))
            }
            Ok(answer) if ["ImportAttestations", "ImportCustomers"].map(path).contains(&row.call) => {
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
pub(super) struct Everything {
    /// The revision of the last event there is.
    pub head: i64,
    pub templates: Vec<Template>,
    pub partners: Vec<Partner>,
    pub customers: Vec<Customer>,
    pub attestations: Vec<Attestation>,
    pub orders: Vec<Order>,
    pub subscriptions: Vec<Subscription>,
}

/// An attestation by another person than the usual contact.
pub(super) fn attestation(customer_id: &str, agreed_at: Option<Timestamp>) -> CreateAttestationRequest {
    CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: customer_id.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(Contact { first_name: "Tomas".into(), ..fixtures::contact() }),
        agreed_at,
        validate_only: false,
        details: None,
    }
}

pub(super) fn document(country: &str, language: &str) -> TemplateDocument {
    TemplateDocument {
        country: country.into(),
        language: language.into(),
        link: "https://contoso.example/agreement".into(),
        sha256: String::new(),
    }
}

pub(super) fn publication(
    template_id: &str,
    documents: Vec<TemplateDocument>,
) -> PublishTemplateVersionRequest {
    PublishTemplateVersionRequest {
        request_id: fixtures::request_id(),
        template_id: template_id.into(),
        documents,
        ..PublishTemplateVersionRequest::default()
    }
}

pub(super) fn seats(subscription: &Subscription, quantity: u32) -> ChangeSeatsRequest {
    ChangeSeatsRequest {
        request_id: fixtures::request_id(),
        subscription_id: subscription.subscription_id.clone(),
        quantity,
        etag: subscription.etag.clone(),
        validate_only: false,
        attestation: None,
    }
}

/// The path of a call by its name, or by its service and name, from the descriptors of the contract.
pub(super) fn path(call: &str) -> &'static str {
    static CALLS: LazyLock<BTreeSet<String>> = LazyLock::new(calls_of_the_contract);
    CALLS.iter().find(|path| path.ends_with(&format!("/{call}"))).unwrap()
}
