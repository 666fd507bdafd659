//! Nothing that a person or a secret can be known by is in what the services say of themselves: log lines at
//! the finest level, metrics, spans. Marked values are put wherever a call, a mail or a setting can carry
//! such, things are made to fail, and everything that was said is searched for the mark.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use chassis::auth::Caller;
use chassis::clock::Clock;
use chassis::form::timestamp;
use futures_util::stream;
use proto::agreement::{
    CreateAttestationRequest, CreateInvitationRequest, ImportAttestationsRequest, InvitationKind,
    ListCustomersRequest, UpdateCustomerRequest,
};
use proto::order::{ChangeSeatsRequest, CreateOrderRequest, InlineAttestation, ListOrdersRequest};
use proto::types::Contact;
use rstest_reuse::apply;
use tests::clients::Identity;
use tests::fixtures::{self, CUSTOMER_AGREEMENT, DIRECT, OFFICE};
use tests::processes::{Process, Processes, build_binaries};
use tests::{As, Backend, actions};

use crate::each_backend;
use tonic::Request;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use crate::attestations::mail::smtp_server::{SmtpServer, python};
use crate::operations::traces::{Collector, export_to};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// In everything that must not be said; in telephone numbers the second.
const MARK: &str = "5ecret7a9q";
const MARKED_NUMBER: &str = "015773141592";

/// The ways in which something may be said.
fn forms(mark: &str) -> Vec<String> {
    let bytes = mark.as_bytes();
    let decimals = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // At each of the three positions in a base64 text; the characters that depend on adjacent bytes are left out.
    let base64 = (0..3).map(|before| {
        let text = STANDARD_NO_PAD.encode([vec![0; before], bytes.to_vec()].concat());
        text[(before * 8).div_ceil(6)..text.len() - 1].to_owned()
    });
    base64.chain([mark.to_owned(), mark.to_uppercase(), decimals, hex]).collect()
}

/// The same person each time, under another first name: what was attested before would not be attested again.
fn marked_contact() -> Contact {
    Contact {
        first_name: format!("Jane {} {MARK}", fixtures::request_id()),
        last_name: format!("Doe {MARK}"),
        email: format!("jane.{MARK}@contoso.example"),
        phone: MARKED_NUMBER.into(),
    }
}

/// A request with marks in its metadata.
fn marked<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    for (name, value) in [
        ("authorization", format!("Bearer {MARK}")),
        ("cookie", format!("session={MARK}")),
        ("x-call-id", format!("jane.{MARK}@contoso.example")),
        ("x-odd", MARK.to_owned()),
        ("traceparent", format!("00-{MARK}")),
        ("baggage", format!("user={MARK}")),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request.metadata_mut().insert_bin("x-odd-bin", MetadataValue::from_bytes(MARK.as_bytes()));
    request
}

fn channel(of: &Process) -> Channel {
    Endpoint::from_shared(of.address()).unwrap().user_agent(format!("agent {MARK}")).unwrap().connect_lazy()
}

fn as_caller(processes: &Processes, caller: Caller) -> As {
    let (agreements, orders) = (channel(&processes.agreements), channel(&processes.orders));
    As { agreements, orders, identity: Identity::of(caller) }
}

/// A call that is in no contract, or with a message that is none.
async fn raw(to: &Channel, path: String, message: Request<prost_types::Any>) {
    let mut client = tonic::client::Grpc::new(to.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<prost_types::Any, ()>::default();
    client.unary(message, PathAndQuery::try_from(path).unwrap(), codec).await.unwrap_err();
}

fn order(customer: &str) -> CreateOrderRequest {
    let attestation = InlineAttestation {
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(marked_contact()),
        agreed_at: Some(timestamp(Clock::system().now())),
        details: None,
    };
    let mut order = CreateOrderRequest {
        attestation: Some(attestation),
        external_reference: format!("for {MARK}"),
        ..fixtures::new_order(customer, None, OFFICE, 1)
    };
    order.lines[0].friendly_name = format!("for {MARK}");
    order
}

fn attestation(customer: &str) -> CreateAttestationRequest {
    CreateAttestationRequest {
        request_id: fixtures::request_id(),
        customer_id: customer.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(marked_contact()),
        agreed_at: Some(timestamp(Clock::system().now())),
        validate_only: false,
        details: None,
    }
}

/// Creates a customer and does with it what there is to do; every call succeeds.
async fn succeed(direct: &As) -> (String, String) {
    let mut new = fixtures::new_customer(&format!("Contoso {MARK}"), "FR", None);
    new.primary_contact = Some(marked_contact());
    new.domain = format!("{MARK}.example");
    let customer =
        direct.customers().create_customer(marked(new)).await.unwrap().into_inner().customer.unwrap();
    let id = customer.customer_id.clone();
    let update = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: id.clone(),
        etag: customer.etag,
        company_name: format!("New {MARK}"),
        primary_contact: Some(marked_contact()),
        ..UpdateCustomerRequest::default()
    };
    direct.customers().update_customer(marked(update)).await.unwrap();
    let invite = CreateInvitationRequest {
        recipient: Some(marked_contact()),
        kind: InvitationKind::Agreement.into(),
        ..fixtures::new_invitation(Some(&id), None)
    };
    let invited = direct.signatures().create_invitation(marked(invite)).await.unwrap().into_inner();
    let invitation = invited.invitation.unwrap();
    let token = invitation.acceptance_url.rsplit_once("token=").unwrap().1.to_owned();
    direct.orders().create_order(marked(order(&id))).await.unwrap();
    direct.attestations().create_attestation(marked(attestation(&id))).await.unwrap();
    let row = ImportAttestationsRequest {
        request_id: fixtures::request_id(),
        customer_id: id.clone(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(marked_contact()),
        agreed_at: Some(timestamp(Clock::system().now())),
        details: None,
    };
    let broken = ImportAttestationsRequest { customer_id: MARK.into(), ..row.clone() };
    let rows = marked(stream::iter([row, broken]));
    let mut results = direct.attestations().import_attestations(rows).await.unwrap().into_inner();
    while results.message().await.unwrap().is_some() {}
    (id, token)
}

/// Everything that is wrong with a request, with marks in it.
async fn fail(direct: &As, customer: &str, token: &str) {
    let mut bad = order(customer);
    let contact = bad.attestation.as_mut().unwrap().contact.as_mut().unwrap();
    contact.email = format!("no address {MARK}");
    contact.phone = format!("no number {MARK}");
    bad.request_id = format!("no id {MARK}");
    bad.lines[0].offer_id = MARK.into();
    direct.orders().create_order(marked(bad)).await.unwrap_err();
    // agreement-svc rejects this one.
    let mut bad = order(customer);
    bad.attestation.as_mut().unwrap().template_id = fixtures::request_id();
    direct.orders().create_order(marked(bad)).await.unwrap_err();
    let bad = CreateAttestationRequest { customer_id: MARK.into(), ..attestation(customer) };
    direct.attestations().create_attestation(marked(bad)).await.unwrap_err();
    let page = ListCustomersRequest { page_token: MARK.into(), ..Default::default() };
    direct.customers().list_customers(marked(page)).await.unwrap_err();
    let page = ListOrdersRequest { page_token: MARK.into(), ..Default::default() };
    direct.orders().list_orders(marked(page)).await.unwrap_err();
    let attestation = order(customer).attestation;
    let seats = ChangeSeatsRequest {
        subscription_id: MARK.into(),
        etag: MARK.into(),
        attestation,
        ..Default::default()
    };
    direct.subscriptions().change_seats(marked(seats)).await.unwrap_err();
    // A token that is right and one that is not, for an invitation that there is none of.
    let admin = As { identity: Identity::of(fixtures::admin(customer.parse().unwrap())), ..direct.clone() };
    for token in [token, MARK] {
        let mut accept = fixtures::acceptance(&Default::default(), Some(MARK));
        (accept.invitation_id, accept.token) = (fixtures::request_id(), token.to_owned());
        admin.signatures().accept_invitation(marked(accept)).await.unwrap_err();
    }
    // Text that is none, calls that there are none of, and malformed identities.
    let any = || prost_types::Any { type_url: MARK.into(), value: [MARK.as_bytes(), &[0xff]].concat() };
    for to in [&direct.agreements, &direct.orders] {
        let identified = |mut request: Request<prost_types::Any>| {
            fixtures::sales(DIRECT).present(request.metadata_mut());
            request
        };
        raw(to, format!("/csp.order.v1.OrderService/{MARK}"), identified(marked(any()))).await;
        raw(to, format!("/{MARK}?token={MARK}"), marked(any())).await;
        raw(to, "/csp.order.v1.OrderService/CreateOrder".into(), identified(marked(any()))).await;
        let customer = "/csp.agreement.v1.CustomerService/CreateCustomer";
        raw(to, customer.into(), identified(marked(any()))).await;
        for claim in ["x-tenant-id", "x-tenant-kind", "x-user-id", "x-roles", "x-channel"] {
            let mut request = identified(marked(any()));
            request.metadata_mut().insert(claim, MARK.parse().unwrap());
            raw(to, "/csp.order.v1.OrderService/CreateOrder".into(), request).await;
        }
    }
}

/// Waits until a service has said something as often as that.
async fn until_said(service: &Process, words: &str, times: usize) {
    let saying = async { while service.said().unwrap().matches(words).count() < times {} };
    tokio::time::timeout(LONG, saying).await.unwrap_or_else(|_| panic!("{words} is not said"));
}

#[apply(each_backend)]
async fn no_person_and_no_secret_is_in_the_logs(#[case] backend: Backend) {
    tests::needs_own!("processes that it listens to");
    tests::needs!(backend);
    let Some(python) = python() else { return };
    build_binaries().unwrap();
    let (collector, address) = Collector::start().await;
    let mut processes = Processes::new(backend).unwrap();
    let folder = processes.folder().to_owned();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    // A mail server that one must log in at, and that quotes the address of the first mail.
    let known = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = file("mail.pem", &known.cert.pem());
    let key = file("mail.key", &known.signing_key.serialize_pem());
    let login = format!("mailer-{MARK}:password-{MARK}");
    let options = ["--certificate", &certificate, &key, "--login", &login, "--plan", "550"];
    let mut mail_server = SmtpServer::start(&python, &options).await;
    let password = file("password", &format!("password-{MARK}"));
    let smtp = format!("smtps://localhost:{}", mail_server.port);
    for setting in [
        ["--smtp", &smtp],
        ["--smtp-user", &format!("mailer-{MARK}")],
        ["--smtp-password-file", &password],
        ["--mail-from", &format!("{MARK}@vendor.example")],
    ] {
        processes.agreements.set(&setting);
    }
    processes.agreements.set_variable("SSL_CERT_FILE", &certificate);
    for service in [&mut processes.agreements, &mut processes.orders] {
        export_to(service, &address);
        service.set_variable("OTEL_EXPORTER_OTLP_HEADERS", &format!("authorization=Bearer {MARK}"));
        service.set_variable("RUST_LOG", "trace");
    }
    processes.start().await.unwrap();
    actions::register_partners_as(&as_caller(&processes, fixtures::operator())).await.unwrap();

    let direct = as_caller(&processes, fixtures::sales(DIRECT));
    let (customer, token) = succeed(&direct).await;
    fail(&direct, &customer, &token).await;
    // One mail is refused for good, others are taken, and some find no server.
    assert!(mail_server.event().await.starts_with("refused"));
    mail_server.mail().await;
    drop(mail_server);
    let not_sent = processes.agreements.said().unwrap().matches("a mail was not sent").count();
    direct.attestations().create_attestation(marked(attestation(&customer))).await.unwrap();
    until_said(&processes.agreements, "a mail was not sent", not_sent + 1).await;
    let mut said =
        vec![processes.agreements.metrics().await.unwrap(), processes.orders.metrics().await.unwrap()];

    // The databases lose tables.
    let behind = |service: &Process, sql: &str| tests::databases::behind(service.database(), sql).unwrap();
    behind(&processes.orders, "ALTER TABLE orders RENAME TO gone");
    let unattested = CreateOrderRequest { attestation: None, ..order(&customer) };
    direct.orders().create_order(marked(unattested)).await.unwrap_err();
    behind(&processes.orders, "ALTER TABLE gone RENAME TO orders");
    behind(&processes.agreements, "ALTER TABLE acceptance RENAME TO gone");
    direct.attestations().create_attestation(marked(attestation(&customer))).await.unwrap_err();
    direct.orders().create_order(marked(order(&customer))).await.unwrap_err();
    // agreement-svc is away.
    processes.agreements.stop().unwrap();
    direct.orders().create_order(marked(order(&customer))).await.unwrap_err();
    processes.orders.stop().unwrap();

    let spans = collector.spans();
    assert!(spans.len() > 20, "otherwise it would prove nothing");
    said.extend(spans.iter().map(|span| format!("{span:?}")));
    for service in [&processes.agreements, &processes.orders] {
        let log = service.said().unwrap();
        for own in ["TRACE h2::", "TRACE hyper", "INFO call{", "ERROR "] {
            assert!(log.contains(own), "{own} is not said, so this would prove nothing: {log}");
        }
        said.push(log);
    }

    let secrets = forms(MARK).into_iter().chain(forms(MARKED_NUMBER)).chain([token]).collect::<Vec<_>>();
    for said in &said {
        for secret in &secrets {
            let Some(at) = said.find(secret) else { continue };
            let line = said[..at].rsplit('\n').next().unwrap_or_default();
            panic!("{secret} is said: {line}{}", said[at..].lines().next().unwrap_or_default());
        }
    }
}
