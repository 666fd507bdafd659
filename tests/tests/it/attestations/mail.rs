//! The customer receives a mail about every attestation (ATT-9), whatever the mail server does, or a dead letter
//! says that it did not (I6). The mail server is a real one, and a plan makes it misbehave.

#[path = "../../../../agreement-svc/tests/smtp_server/mod.rs"]
pub(crate) mod smtp_server;

use std::time::Duration;

use agreement_svc::config::{Address, EraseContact};
use chassis::clock::{Clock, Time};
use chassis::database::Url;
use chassis::form::timestamp;
use chassis::server::Listeners;
use diesel::connection::SimpleConnection;
use diesel::sql_types::BigInt;
use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, sql_query};
use proto::agreement::{
    CreateAttestationRequest, CreateCustomerRequest, GetAttestationRequest, LinkResellerRequest,
    Notification, NotificationState, RetryNotificationRequest,
};
use proto::types::Contact;
use rstest_reuse::apply;
use smtp_server::{SmtpServer, header, python, read};
use tests::fixtures::{self, DIRECT, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, Setup, actions, metadata_of, reason_of};

use crate::each_backend;
use tonic::Code;

/// The longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How long a claim lasts.
const LEASE: Duration = Duration::from_secs(60);

/// A cluster whose clock stands still, so that nothing is tried again by itself.
struct Post {
    cluster: Cluster,
    clock: Clock,
    now: Time,
    direct: As,
}

impl Post {
    async fn through(backend: Backend, server: Option<&SmtpServer>) -> Self {
        let now = Clock::system().now();
        let clock = Clock::manual(now);
        let smtp = server.map(|server| format!("smtp://127.0.0.1:{}?tls=none", server.port));
        let setup = Setup { backend, clock: clock.clone(), smtp, ..Setup::default() };
        let cluster = Cluster::start(setup).await.unwrap();
        actions::register_partners(&cluster).await.unwrap();
        let direct = cluster.as_caller(fixtures::sales(DIRECT));
        Self { cluster, clock, now, direct }
    }

    /// Attests for a new customer and returns the attestation's id.
    async fn attest(&self, customer: &str) -> String {
        self.attest_by(customer, &fixtures::contact(), &fixtures::contact()).await
    }

    /// Attests for a new customer, whose primary contact receives the mail and for which the other contact agreed.
    async fn attest_by(&self, customer: &str, primary: &Contact, agreed: &Contact) -> String {
        let new = fixtures::new_customer(customer, "FR", None);
        let new = CreateCustomerRequest { primary_contact: Some(primary.clone()), ..new };
        let created = self.direct.customers().create_customer(new).await.unwrap().into_inner();
        let customer_id = created.customer.unwrap().customer_id;
        let request = CreateAttestationRequest {
            agreed_at: Some(timestamp(self.now)),
            ..fixtures::new_attestation_by(&customer_id, agreed.clone())
        };
        let attested = self.direct.attestations().create_attestation(request).await.unwrap();
        attested.into_inner().attestation.unwrap().attestation_id
    }

    async fn notification(&self, id: &str) -> Notification {
        let request = GetAttestationRequest { attestation_id: id.into() };
        let read = self.direct.attestations().get_attestation(request).await.unwrap();
        read.into_inner().attestation.unwrap().notification.unwrap()
    }

    /// Waits until the notification is in this state after so many attempts, and the last is over: no process
    /// has it claimed.
    async fn settled(&self, id: &str, state: NotificationState, attempts: u32) -> Notification {
        let settled = async {
            loop {
                let known = self.notification(id).await;
                let is_claimed = known.due_at == Some(timestamp(self.now + LEASE));
                if !is_claimed && known.state() == state && known.attempts == attempts {
                    return known;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), settled).await {
            Ok(known) => known,
            Err(_) => panic!("{id} never becomes {state:?}: {:?}", self.notification(id).await),
        }
    }

    /// Lets everything that failed become due, and wakes the mailer with a commit that changes nothing.
    async fn later(&mut self) {
        self.now += LONGEST_WAIT;
        self.clock.set(self.now);
        let again = LinkResellerRequest {
            request_id: fixtures::request_id(),
            provider_id: PROVIDER.to_string(),
            reseller_id: RESELLER.to_string(),
        };
        self.cluster.as_caller(fixtures::operator()).partners().link_reseller(again).await.unwrap();
    }
}

fn retry(id: &str) -> RetryNotificationRequest {
    RetryNotificationRequest { request_id: fixtures::request_id(), attestation_id: id.into() }
}

#[apply(each_backend)]
async fn without_a_mail_server_the_mail_is_in_the_folder(#[case] backend: Backend) {
    tests::needs_own!("mails in a folder");
    tests::needs!(backend);
    let post = Post::through(backend, None).await;
    let id = post.attest("Contoso").await;
    let sent = post.settled(&id, NotificationState::Sent, 1).await;
    assert_eq!((sent.last_failure.as_str(), sent.due_at), ("", None));
    assert!(sent.sent_at.is_some());
    let folder = post.cluster.mail_folder();
    let mail = read(folder.join(format!("{id}.eml")));
    assert_eq!(header(&mail, "Message-ID"), format!("<{id}@vendor.example>"));
    assert_eq!(header(&mail, "From"), "agreements@vendor.example");
    assert_eq!(header(&mail, "To"), "tania.carr@contoso.example");
    assert_eq!(header(&mail, "Auto-Submitted"), "auto-generated");
    assert!(mail.contains("Northwind Direct") && mail.contains("Tania Carr"), "{mail}");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1);
}

/// The mail arrives although the mail server first refuses it, drops the connection and hangs.
#[apply(each_backend)]
async fn mail_arrives_after_the_server_refuses_drops_and_hangs(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let Some(python) = python() else { return };
    // Hanging takes as long as a mail may take, so once is enough.
    let (plan, failures): (_, &[&str]) = match backend {
        Backend::Sqlite => ("451,drop,550,hang", &["SMTP 451", "CONNECTION", "SMTP 550", "TIMEOUT"]),
        Backend::Postgres => ("451,drop,550", &["SMTP 451", "CONNECTION", "SMTP 550"]),
    };
    let mut server = SmtpServer::start(&python, &["--plan", plan]).await;
    let mut post = Post::through(backend, Some(&server)).await;
    let id = post.attest("Contoso").await;
    let mut attempts = 0;
    for failure in failures {
        attempts += 1;
        let event = server.event().await;
        if let Some(refused) = event.strip_prefix("refused ") {
            assert_eq!(header(&read(refused), "Message-ID"), format!("<{id}@vendor.example>"));
        }
        let known = post.settled(&id, NotificationState::Queued, attempts).await;
        assert_eq!(known.last_failure, *failure);
        assert!(known.due_at.is_some() && known.sent_at.is_none());
        post.later().await;
    }
    let mail = server.mail().await;
    assert_eq!(header(&mail, "Message-ID"), format!("<{id}@vendor.example>"));
    let sent = post.settled(&id, NotificationState::Sent, attempts + 1).await;
    assert_eq!(sent.last_failure, "");
    assert_eq!(server.events_so_far(), [""; 0]);
}

/// A mail that failed too often is a dead letter, and its partner can retry it.
#[apply(each_backend)]
async fn a_partner_can_retry_its_dead_letters(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let Some(python) = python() else { return };
    const ATTEMPTS_MAX: u32 = 12;
    let plan = ["550"; ATTEMPTS_MAX as usize].join(",");
    let mut server = SmtpServer::start(&python, &["--plan", &plan]).await;
    let mut post = Post::through(backend, Some(&server)).await;
    let id = post.attest("Contoso").await;
    for attempt in 1..ATTEMPTS_MAX {
        assert!(server.event().await.starts_with("refused "));
        let queued = post.settled(&id, NotificationState::Queued, attempt).await;
        assert_eq!(queued.last_failure, "SMTP 550");
        if attempt == 1 {
            let refused = post.direct.attestations().retry_notification(retry(&id)).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert_eq!(reason_of(&refused), "NOTIFICATION_NOT_DEAD");
            assert_eq!(metadata_of(&refused)["state"], "QUEUED");
        }
        post.later().await;
    }
    let dead = post.settled(&id, NotificationState::DeadLetter, ATTEMPTS_MAX).await;
    assert_eq!((dead.last_failure.as_str(), dead.due_at, dead.sent_at), ("SMTP 550", None, None));
    post.later().await;

    let stranger = post.cluster.as_caller(fixtures::sales(PROVIDER));
    let refused = stranger.attestations().retry_notification(retry(&id)).await.unwrap_err();
    assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::NotFound, "RESOURCE_NOT_FOUND"));

    let request = retry(&id);
    let retried = post.direct.attestations().retry_notification(request.clone()).await.unwrap();
    let retried = retried.into_inner();
    let queued = retried.notification.clone().unwrap();
    assert_eq!((queued.state(), queued.attempts), (NotificationState::Queued, 0));
    assert_eq!(queued.last_failure, "SMTP 550");
    // Of the refused ones the last is still unread: nothing was sent while it was a dead letter.
    assert!(server.event().await.starts_with("refused "));
    let mail = server.mail().await;
    assert_eq!(header(&mail, "Message-ID"), format!("<{id}@vendor.example>"));
    post.settled(&id, NotificationState::Sent, 1).await;
    let replayed = post.direct.attestations().retry_notification(request).await.unwrap();
    assert_eq!(replayed.into_inner(), retried);
    let refused = post.direct.attestations().retry_notification(retry(&id)).await.unwrap_err();
    assert_eq!(metadata_of(&refused)["state"], "SENT");
}

#[apply(each_backend)]
async fn erased_people_get_no_mail_and_are_not_named_in_any(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let Some(python) = python() else { return };
    let mut server = SmtpServer::start(&python, &["--plan", "451,451,451"]).await;
    let mut post = Post::through(backend, Some(&server)).await;
    let mut ids = vec![];
    let (to_stay, to_go) = (fixtures::contact(), fixtures::contact_to_erase());
    for (customer, primary, agreed) in
        [("Contoso", &to_go, &to_go), ("Fabrikam", &to_stay, &to_stay), ("Tailspin", &to_stay, &to_go)]
    {
        let id = post.attest_by(customer, primary, agreed).await;
        assert!(server.event().await.starts_with("refused "));
        post.settled(&id, NotificationState::Queued, 1).await;
        ids.push(id);
    }
    let config = EraseContact {
        database: post.cluster.agreements_database().clone(),
        email: Address(to_go.email.clone()),
        mail_folder: None,
    };
    let erased = agreement_svc::commands::erase::erase_contact(&config, &post.clock).await.unwrap();
    assert_eq!((erased.customers, erased.attestations), (1, 2), "{backend:?}");
    let sql = "UPDATE customer SET email = 'tània@fabrikam.example' WHERE company_name = 'Fabrikam'";
    post.cluster.agreements_sql(sql).unwrap();
    post.later().await;
    let erased = post.settled(&ids[0], NotificationState::DeadLetter, 2).await;
    assert_eq!(erased.last_failure, "ERASED");
    // The server takes ASCII addresses only, as many do.
    let undeliverable = post.settled(&ids[1], NotificationState::DeadLetter, 2).await;
    assert_eq!(undeliverable.last_failure, "ADDRESS");
    let mail = server.mail().await;
    assert_eq!(header(&mail, "Message-ID"), format!("<{}@vendor.example>", ids[2]));
    assert!(mail.contains("has been erased") && !mail.contains(&to_go.last_name), "{mail}");
    post.settled(&ids[2], NotificationState::Sent, 2).await;
    assert_eq!(server.events_so_far(), [""; 0]);
}

#[derive(QueryableByName)]
struct Waiting {
    #[diesel(sql_type = BigInt)]
    count: i64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn replicas_never_claim_the_same_notification() {
    tests::needs_own!("a clock that it sets");
    let Some(python) = python() else { return };
    tests::needs!(Backend::Postgres);
    const MAILS: usize = 20;
    let plan = ["451"; MAILS].join(",");
    let mut server = SmtpServer::start(&python, &["--plan", &plan]).await;
    let mut post = Post::through(Backend::Postgres, Some(&server)).await;
    let mut ids = vec![];
    for n in 0..MAILS {
        ids.push(post.attest(&format!("Customer {n}")).await);
    }
    for id in &ids {
        post.settled(id, NotificationState::Queued, 1).await;
    }
    server.events_so_far();

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let config = post.cluster.agreements_config().unwrap();
    let clock = post.clock.clone();
    let second = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        let listeners = Listeners { calls: listener, metrics: None };
        agreement_svc::serve(config, clock, listeners, stopped).await.unwrap();
    });

    // Both claim at the same moment: no process may write to the table until both want to.
    let Url::Postgres(url) = post.cluster.agreements_database() else { panic!("not on PostgreSQL") };
    let mut gate = PgConnection::establish(url).unwrap();
    gate.batch_execute("BEGIN; LOCK TABLE notification IN EXCLUSIVE MODE").unwrap();
    post.now += LONGEST_WAIT;
    post.clock.set(post.now);
    let waiting =
        "SELECT count(*) AS count FROM pg_locks WHERE NOT granted AND relation = 'notification'::regclass";
    let both_wait = async {
        while sql_query(waiting).get_result::<Waiting>(&mut gate).unwrap().count < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), both_wait).await.unwrap();
    gate.batch_execute("COMMIT").unwrap();

    for id in &ids {
        post.settled(id, NotificationState::Sent, 2).await;
    }
    drop(stop);
    second.await.unwrap();
    let mut taken = vec![];
    for _ in 0..MAILS {
        taken.push(header(&server.mail().await, "Message-ID").to_owned());
    }
    taken.sort();
    let mut expected: Vec<_> = ids.iter().map(|id| format!("<{id}@vendor.example>")).collect();
    expected.sort();
    assert_eq!(taken, expected);
    assert_eq!(server.events_so_far(), [""; 0]);
}
