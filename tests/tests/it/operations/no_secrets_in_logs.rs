//! Nothing that a person or a secret can be known by is in what the services say of themselves: log lines at
//! the finest level, metrics, spans. Marked values are put wherever a call, a mail or a setting can carry
//! such, things are made to fail, and everything that was said is searched for the mark.

mod calls;
mod marks;

use std::time::Duration;

use chassis::auth::Caller;
use proto::order::CreateOrderRequest;
use rstest_reuse::apply;
use tests::clients::Identity;
use tests::fixtures::{self, DIRECT, PROVIDER};
use tests::processes::{Process, Processes, build_binaries};
use tests::{As, Backend, actions};
use tonic::transport::{Channel, Endpoint};

use crate::attestations::mail::smtp_server::{SmtpServer, python};
use crate::each_backend;
use crate::operations::traces::{Collector, export_to};
use calls::{approval, attestation, by, fail, order, replacement, succeed, token_of};
use marks::{MARK, MARKED_NUMBER, assert_sent_everywhere, forms, marked};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn channel(of: &Process) -> Channel {
    Endpoint::from_shared(of.address()).unwrap().user_agent(format!("agent {MARK}")).unwrap().connect_lazy()
}

fn as_caller(processes: &Processes, caller: Caller) -> As {
    let (agreements, orders) = (channel(&processes.agreements), channel(&processes.orders));
    As { agreements, orders, identity: Identity::of(caller) }
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
    let made = succeed(&direct).await;
    fail(&direct, &made).await;
    assert_sent_everywhere();
    // One mail is refused for good, others are taken, and some find no server.
    assert!(mail_server.event().await.starts_with("refused"));
    mail_server.mail().await;
    drop(mail_server);
    let not_sent = processes.agreements.said().unwrap().matches("a mail was not sent").count();
    direct.attestations().create_attestation(marked(attestation(&made.customer))).await.unwrap();
    until_said(&processes.agreements, "a mail was not sent", not_sent + 1).await;
    let mut said =
        vec![processes.agreements.metrics().await.unwrap(), processes.orders.metrics().await.unwrap()];

    // The databases lose tables.
    let behind = |service: &Process, sql: &str| tests::databases::behind(service.database(), sql).unwrap();
    behind(&processes.orders, "ALTER TABLE orders RENAME TO gone");
    let unattested = CreateOrderRequest { attestation: None, ..order(&made.customer) };
    direct.orders().create_order(marked(unattested)).await.unwrap_err();
    behind(&processes.orders, "ALTER TABLE gone RENAME TO orders");
    behind(&processes.agreements, "ALTER TABLE acceptance RENAME TO gone");
    direct.attestations().create_attestation(marked(attestation(&made.customer))).await.unwrap_err();
    let replaced = replacement(&made.attestation);
    direct.attestations().withdraw_attestation(marked(replaced)).await.unwrap_err();
    let provider = by(&direct, fixtures::sales(PROVIDER));
    provider.proposals().approve_proposal(marked(approval(&made.pending))).await.unwrap_err();
    direct.orders().create_order(marked(order(&made.customer))).await.unwrap_err();
    // agreement-svc is away.
    processes.agreements.stop().unwrap();
    direct.orders().create_order(marked(order(&made.customer))).await.unwrap_err();
    processes.orders.stop().unwrap();

    let spans = collector.spans();
    assert!(spans.len() > 20, "otherwise it would prove nothing");
    said.extend(spans.iter().map(|span| format!("{span:?}")));
    for service in [&processes.agreements, &processes.orders] {
        let log = service.said().unwrap();
        for own in ["TRACE h2::", "TRACE hyper", "INFO chassis::server::record: call ", "ERROR "] {
            assert!(log.contains(own), "{own} is not said, so this would prove nothing: {log}");
        }
        said.push(log);
    }

    let tokens = [made.token, token_of(&made.open)];
    let secrets = forms(MARK).into_iter().chain(forms(MARKED_NUMBER)).chain(tokens).collect::<Vec<_>>();
    for said in &said {
        for secret in &secrets {
            let Some(at) = said.find(secret) else { continue };
            let line = said[..at].rsplit('\n').next().unwrap_or_default();
            panic!("{secret} is said: {line}{}", said[at..].lines().next().unwrap_or_default());
        }
    }
}
