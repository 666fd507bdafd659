//! Mail as the binary sends it: TLS and whom it trusts, logging in, what a crash does, and what the log
//! says. Stories that need no process of their own are in `tests/it/mail.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod smtp_server;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use agreement_svc::config::{Cli, Command as Chosen};
use chassis::auth::{Caller, Channel};
use chassis::clock::{Clock, Time, new_id};
use chassis::form::timestamp;
use chassis::server::Listeners;
use clap::Parser;
use proto::agreement::attestation_service_client::AttestationServiceClient;
use proto::agreement::customer_service_client::CustomerServiceClient;
use proto::agreement::partner_service_client::PartnerServiceClient;
use proto::agreement::{
    CreateCustomerRequest, GetAttestationRequest, InlineAttestation, Notification, NotificationState,
    PartnerKind, RegisterPartnerRequest,
};
use proto::identity::{Role, TenantKind};
use proto::types::{Cloud, Contact};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use smtp_server::{SmtpServer, header, python};
use tempfile::TempDir;
use tonic::Request;
use tonic::transport::Endpoint;
use uuid::Uuid;

const PARTNER: Uuid = Uuid::from_u128(0xd1);
/// Longer than anything here takes.
const WAIT_MAX: Duration = Duration::from_secs(60);

const CUSTOMER_AGREEMENT: &str = "117a77b0-9360-443b-8795-c6dedc750cf9";

/// What must never be in a log.
const PERSONAL: [&str; 3] = ["primary@contoso.example", "Tania", "Carr"];

/// An agreement-svc in a process of its own.
struct Process {
    child: Child,
    log: Receiver<String>,
    address: String,
}

impl Process {
    fn start(folder: &Path, trusted: Option<&Path>, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agreement-svc"));
        command.args(serve(folder, args)).args(["--log-format", "json"]).env("RUST_LOG", "trace");
        if let Some(trusted) = trusted {
            command.env("SSL_CERT_FILE", trusted);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // The log must be read on, or the process would block on a full pipe.
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (tell, log) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let mut process = Self { child, log, address: String::new() };
        let serving = process.log_until(r#""address":""#).pop().unwrap();
        let address = serving.split_once(r#""address":""#).unwrap().1.split('"').next().unwrap();
        process.address = format!("http://{address}");
        process
    }

    /// The log until a line says this, which is the last.
    fn log_until(&self, words: &str) -> Vec<String> {
        let mut lines = vec![];
        loop {
            match self.log.recv_timeout(WAIT_MAX) {
                Ok(line) => lines.push(line),
                Err(_) => panic!("it never logs {words}: {lines:#?}"),
            }
            if lines.last().is_some_and(|line| line.contains(words)) {
                return lines;
            }
        }
    }

    /// Ends it as nothing in it can notice, and returns the rest of the log.
    fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log.iter().collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is gone already unless the test failed.
        let _ = self.child.kill();
    }
}

fn serve(folder: &Path, args: &[&str]) -> Vec<String> {
    let database = format!("sqlite:{}", folder.join("agreements.sqlite").display());
    let fixed =
        ["serve", "--auth", "insecure", "--create", "--listen", "127.0.0.1:0", "--database", &database];
    fixed.iter().chain(args).map(|arg| (*arg).to_owned()).collect()
}

fn by<T>(tenant_kind: TenantKind, tenant_id: Uuid, message: T) -> Request<T> {
    let roles = vec![Role::SalesAgent.into_str()];
    let caller = Caller {
        tenant_kind: tenant_kind.into_str(),
        tenant_id,
        user_id: tenant_id,
        roles,
        channel: Channel::Dashboard,
        client: None,
    };
    let mut request = Request::new(message);
    caller.present(request.metadata_mut());
    request
}

fn request_id() -> String {
    new_id(Clock::system().now()).to_string()
}

/// Makes a partner and a customer with an attestation, and returns the attestation's id.
async fn attest(address: &str, now: Time) -> String {
    let channel = Endpoint::from_shared(address.to_owned()).unwrap().connect().await.unwrap();
    let partner = RegisterPartnerRequest {
        request_id: request_id(),
        partner_id: PARTNER.to_string(),
        name: "Northwind Direct".into(),
        kind: PartnerKind::DirectBill.into(),
        cloud: Cloud::Public.into(),
        validate_only: false,
        support: None,
    };
    let partner = by(TenantKind::Operator, Uuid::from_u128(0xa0), partner);
    PartnerServiceClient::new(channel.clone()).register_partner(partner).await.unwrap();
    let contact = |email: &str| Contact {
        first_name: "Tania".into(),
        last_name: "Carr".into(),
        email: email.into(),
        phone: String::new(),
    };
    let customer = CreateCustomerRequest {
        request_id: request_id(),
        company_name: "Café Contoso".into(),
        domain: "contoso.example".into(),
        country: "FR".into(),
        primary_contact: Some(contact("primary@contoso.example")),
        attestation: Some(InlineAttestation {
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(contact("tania.carr@contoso.example")),
            agreed_at: Some(timestamp(now)),
            details: None,
        }),
        ..CreateCustomerRequest::default()
    };
    let customer = by(TenantKind::Partner, PARTNER, customer);
    let created = CustomerServiceClient::new(channel).create_customer(customer).await.unwrap();
    created.into_inner().attestation.unwrap().attestation_id
}

async fn notification(address: &str, attestation_id: &str) -> Notification {
    let channel = Endpoint::from_shared(address.to_owned()).unwrap().connect().await.unwrap();
    let request = GetAttestationRequest { attestation_id: attestation_id.into() };
    let request = by(TenantKind::Partner, PARTNER, request);
    let read = AttestationServiceClient::new(channel).get_attestation(request).await.unwrap();
    read.into_inner().attestation.unwrap().notification.unwrap()
}

/// A certificate authority (CA) and a certificate that it issued, as files.
struct Ca {
    folder: TempDir,
}

impl Ca {
    /// The certificate is for `localhost` only.
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        write("ca.pem", own.pem());
        write("leaf.pem", leaf.pem());
        write("leaf.key", leaf_key.serialize_pem());
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn server_args(&self) -> [String; 3] {
        let file = |name| self.file(name).display().to_string();
        ["--certificate".into(), file("leaf.pem"), file("leaf.key")]
    }
}

#[tokio::test]
async fn mail_goes_over_tls_to_a_trusted_server_only() {
    let Some(python) = python() else { return };
    let (ca, stranger) = (Ca::new(), Ca::new());
    let certificate = ca.server_args();
    let mut args: Vec<&str> = certificate.iter().map(String::as_str).collect();
    let from_the_start = SmtpServer::start(&python, &args).await;
    args.push("--starttls");
    let upgraded = SmtpServer::start(&python, &args).await;
    let without = SmtpServer::start(&python, &[]).await;
    let (trusted, untrusted) = (Some(ca.file("ca.pem")), Some(stranger.file("ca.pem")));
    let (smtps, smtp) = (from_the_start.port, upgraded.port);

    for (mut server, url) in [
        (from_the_start, format!("smtps://localhost:{smtps}")),
        (upgraded, format!("smtp://localhost:{smtp}")),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(folder.path(), untrusted.as_deref(), &["--smtp", &url]);
        refused_as(process, "TLS").await;
        // It vouches for another name.
        let elsewhere = url.replace("localhost", "127.0.0.1");
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(folder.path(), trusted.as_deref(), &["--smtp", &elsewhere]);
        refused_as(process, "TLS").await;

        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(folder.path(), trusted.as_deref(), &["--smtp", &url]);
        let id = attest(&process.address, Clock::system().now()).await;
        let mail = server.mail().await;
        assert_eq!(header(&mail, "Message-ID"), format!("<{id}@localhost>"));
        assert_eq!(server.events_so_far(), [""; 0]);
        process.kill();
    }
    // A server without STARTTLS gets nothing, unless that was asked for.
    let folder = tempfile::tempdir().unwrap();
    let url = format!("smtp://localhost:{}", without.port);
    refused_as(Process::start(folder.path(), trusted.as_deref(), &["--smtp", &url]), "TLS").await;
}

/// The mail stays queued, with this failure.
async fn refused_as(process: Process, failure: &str) {
    let id = attest(&process.address, Clock::system().now()).await;
    // The second failure is logged after the first was stored.
    let said = format!(r#""failure":"{failure}""#);
    process.log_until(&said);
    process.log_until(&said);
    let queued = notification(&process.address, &id).await;
    assert_eq!((queued.state(), queued.last_failure.as_str()), (NotificationState::Queued, failure));
    process.kill();
}

#[tokio::test]
async fn the_mailer_logs_in_with_the_password_of_the_file() {
    let Some(python) = python() else { return };
    let ca = Ca::new();
    let certificate = ca.server_args();
    let mut args: Vec<&str> = certificate.iter().map(String::as_str).collect();
    args.extend(["--starttls", "--login", "mailer:correct horse"]);
    let mut server = SmtpServer::start(&python, &args).await;
    let url = format!("smtp://localhost:{}", server.port);
    let password = ca.file("password");
    let file = password.display().to_string();
    let settings = ["--smtp", &url, "--smtp-user", "mailer", "--smtp-password-file", &file];
    let trusted = ca.file("ca.pem");

    std::fs::write(&password, "wrong horse\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    refused_as(Process::start(folder.path(), Some(&trusted), &settings), "SMTP 535").await;

    std::fs::write(&password, "correct horse\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let process = Process::start(folder.path(), Some(&trusted), &settings);
    attest(&process.address, Clock::system().now()).await;
    server.mail().await;
    let log = process.kill().concat();
    assert!(!log.contains("correct horse"), "{log}");
}

#[tokio::test]
async fn the_log_names_no_person_though_the_server_quotes_the_address() {
    let Some(python) = python() else { return };
    let mut server = SmtpServer::start(&python, &["--plan", "550,451,drop"]).await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("smtp://127.0.0.1:{}?tls=none", server.port);
    let process = Process::start(folder.path(), None, &["--smtp", &url]);
    let id = attest(&process.address, Clock::system().now()).await;
    let mut log = vec![];
    for failure in ["SMTP 550", "SMTP 451", "CONNECTION"] {
        log.extend(process.log_until("a mail was not sent"));
        let line = log.last().unwrap();
        assert!(line.contains(&id) && line.contains(&format!(r#""failure":"{failure}""#)), "{line}");
    }
    for _ in 0..3 {
        server.event().await;
    }
    // The company's name is in a header, where it has to be ASCII.
    let mail = server.mail().await;
    assert!(header(&mail, "Subject").is_ascii() && !header(&mail, "Subject").contains("Café"), "{mail}");
    log.extend(process.kill());
    assert!(log.len() > 10, "{log:?}");
    for line in &log {
        assert!(!PERSONAL.iter().any(|word| line.contains(word)), "{line}");
    }
}

#[tokio::test]
async fn a_mail_claimed_before_a_crash_is_sent_after_the_lease() {
    let Some(python) = python() else { return };
    let mut hanging = SmtpServer::start(&python, &["--plan", "hang"]).await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("smtp://127.0.0.1:{}?tls=none", hanging.port);
    let process = Process::start(folder.path(), None, &["--smtp", &url]);
    let id = attest(&process.address, Clock::system().now()).await;
    assert_eq!(hanging.event().await, "hung");
    process.kill();

    // The next one's clock is the test's, so that it does not wait.
    let mut server = SmtpServer::start(&python, &[]).await;
    let url = format!("smtp://127.0.0.1:{}?tls=none", server.port);
    let arguments = serve(folder.path(), &["--smtp", &url]);
    let arguments = std::iter::once("agreement-svc".to_owned()).chain(arguments);
    let Chosen::Serve(config) = Cli::try_parse_from(arguments).unwrap().command else { panic!("not serve") };
    let now = Clock::system().now();
    let clock = Clock::manual(now);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async { drop(stopped.await) };
    let listeners = Listeners { calls: listener, metrics: None, web: None };
    let serving = tokio::spawn(agreement_svc::serve(*config, clock.clone(), listeners, stopped));
    let client = chassis::tls::ClientSettings::default();
    chassis::health::check_health(&address.parse().unwrap(), &client).await.unwrap();

    let claimed = notification(&address, &id).await;
    assert_eq!((claimed.state(), claimed.attempts), (NotificationState::Queued, 1));
    let due_at = claimed.due_at.unwrap();
    assert!(due_at.seconds > timestamp(now).seconds, "the crash did not leave a claim behind");
    clock.set(Time::from_timestamp(due_at.seconds + 1, 0).unwrap());
    let mail = server.mail().await;
    assert_eq!(header(&mail, "Message-ID"), format!("<{id}@localhost>"));
    drop(stop);
    serving.await.unwrap().unwrap();
    assert_eq!(server.events_so_far(), [""; 0]);
}
