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
    ListNotificationsRequest, Notification, NotificationState, RetryNotificationRequest,
};
use proto::types::Contact;
use rstest_reuse::apply;
use smtp_server::{SmtpServer, header, python, read};
use tests::fixtures::{self, DIRECT, PROVIDER, RESELLER};
use tests::{As, Backend, Cluster, Setup, actions, metadata_of, reason_of};

use crate::each_backend;
use tonic::Code;
use uuid::Uuid;

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
        Self::with(server, Setup { backend, ..Setup::default() }).await
    }

    async fn with(server: Option<&SmtpServer>, setup: Setup) -> Self {
        let now = Clock::system().now();
        let clock = Clock::manual(now);
        let smtp = server.map(|server| format!("smtp://127.0.0.1:{}?tls=none", server.port));
        let setup = Setup { clock: clock.clone(), smtp, ..setup };
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

    /// Attests for a customer that there is and returns the attestation's id.
    async fn attest_again(&self, partner: Uuid, customer_id: &str, agreed: &Contact) -> String {
        let request = CreateAttestationRequest {
            agreed_at: Some(timestamp(self.now)),
            ..fixtures::new_attestation_by(customer_id, agreed.clone())
        };
        let partner = self.cluster.as_caller(fixtures::sales(partner));
        let attested = partner.attestations().create_attestation(request).await.unwrap();
        attested.into_inner().attestation.unwrap().attestation_id
    }

    /// Lets everything that failed become due, and wakes the mailer.
    async fn later(&mut self) {
        self.after(LONGEST_WAIT).await;
    }

    /// Lets time pass, and wakes the mailer with a commit that changes nothing.
    async fn after(&mut self, time: Duration) {
        self.now += time;
        self.clock.set(self.now);
        let again = LinkResellerRequest {
            request_id: fixtures::request_id(),
            provider_id: PROVIDER.to_string(),
            reseller_id: RESELLER.to_string(),
            validate_only: false,
        };
        self.cluster.as_caller(fixtures::operator()).partners().link_reseller(again).await.unwrap();
    }
}

fn retry(id: &str) -> RetryNotificationRequest {
    RetryNotificationRequest {
        request_id: fixtures::request_id(),
        attestation_id: id.into(),
        validate_only: false,
    }
}

#[apply(each_backend)]
async fn without_a_mail_server_the_mail_is_in_the_folder(#[case] backend: Backend) {
    tests::needs_own!("mails in a folder");
    tests::needs!(backend);
    let post = Post::through(backend, None).await;
    actions::set_support(&post.cluster, DIRECT, "help@northwind.example").await.unwrap();
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
    assert_eq!(header(&mail, "Reply-To"), "help@northwind.example");
    let text = mail.replace("=\r\n", "").replace("=\n", "");
    // In the language of the customer's country.
    assert!(text.contains(" Northwind Direct (help@northwind.example)"), "{mail}");
    assert!(text.contains("Accept=C3=A9 par"), "{mail}");
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

    // An operator finds them, and may retry them, too.
    let operator = post.cluster.as_caller(fixtures::operator());
    for (state, ids) in
        [(NotificationState::DeadLetter, vec![id.as_str()]), (NotificationState::Queued, vec![])]
    {
        let list = ListNotificationsRequest { state: state.into(), ..ListNotificationsRequest::default() };
        let found = operator.attestations().list_notifications(list).await.unwrap().into_inner();
        let found = found.notifications.iter();
        assert_eq!(found.map(|found| found.attestation_id.as_str()).collect::<Vec<_>>(), ids);
    }
    let dry = RetryNotificationRequest { validate_only: true, ..retry(&id) };
    let would_be = operator.attestations().retry_notification(dry).await.unwrap().into_inner();
    assert_eq!(would_be.notification.unwrap().state(), NotificationState::Queued);

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
    let sql = "UPDATE contact SET email = 'tània@fabrikam.example' \
               WHERE customer_id IN (SELECT id FROM customer WHERE company_name = 'Fabrikam')";
    post.cluster.agreements_sql(sql).unwrap();
    post.later().await;
    let erased = post.settled(&ids[0], NotificationState::DeadLetter, 2).await;
    assert_eq!(erased.last_failure, "NO_CONTACT");
    // The server takes ASCII addresses only, as many do.
    let undeliverable = post.settled(&ids[1], NotificationState::DeadLetter, 2).await;
    assert_eq!(undeliverable.last_failure, "ADDRESS");
    let mail = server.mail().await;
    assert_eq!(header(&mail, "Message-ID"), format!("<{}@vendor.example>", ids[2]));
    assert!(
        mail.contains("une personne dont les donn=C3=A9es") && !mail.contains(&to_go.last_name),
        "{mail}"
    );
    post.settled(&ids[2], NotificationState::Sent, 2).await;
    assert_eq!(server.events_so_far(), [""; 0]);
}

/// ATT-9: partners share the mailer by turns. However many mails wait of one, the single mail of another is among the
/// first; with one queue for all it would be the last.
#[apply(each_backend)]
async fn the_mails_of_one_partner_do_not_delay_those_of_another(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let Some(python) = python() else { return };
    const IMPORTED: u128 = 5000;
    // Each of the mailer's lines may have a mail of the import before the other partner's turn.
    const FIRST: usize = 16;
    let mut server = SmtpServer::start(&python, &[]).await;
    let post = Post::through(backend, Some(&server)).await;
    let of_import = post.attest("Contoso").await;
    let provider = post.cluster.as_caller(fixtures::sales(PROVIDER));
    let customer_id = actions::create_customer(&provider, "Fabrikam", "FR", None).await.unwrap();
    let single = post.attest_again(PROVIDER, &customer_id, &fixtures::contact()).await;
    for _ in 0..2 {
        server.mail().await;
    }
    for id in [&of_import, &single] {
        let partner = if *id == single { &provider } else { &post.direct };
        let request = GetAttestationRequest { attestation_id: id.clone() };
        tests::assert::eventually("it is recorded as sent", async || {
            let read = partner.attestations().get_attestation(request.clone()).await.unwrap().into_inner();
            let known = read.attestation.unwrap().notification.unwrap();
            (known.state() == NotificationState::Sent).then_some(())
        })
        .await;
    }
    // All at once, so that nothing is sent before everything waits: thousands of one partner, and last the other's.
    let ids: Vec<_> = (1..=IMPORTED).map(|n| format!("('{}')", Uuid::from_u128(n))).collect();
    let columns = "kind, partner_id, customer_id, agreement_type, template_id, template_version, first_name, \
                   last_name, email, phone, contact_salt, agreed_at, recorded_at, recorded_by, withdrawn_at, revision";
    let sql = format!(
        "BEGIN;
         WITH row (id) AS (VALUES {ids})
         INSERT INTO acceptance (id, superseded_at, {columns})
         SELECT row.id, recorded_at, {columns} FROM acceptance, row WHERE acceptance.id = '{of_import}';
         INSERT INTO notification
             (attestation_id, state, attempts, due_at, last_failure, partner_id, customer_id, mail_id)
         SELECT id, 'QUEUED', 0, '2026-01-01 00:00:00', '', partner_id, customer_id, '' FROM acceptance
         WHERE superseded_at IS NOT NULL;
         UPDATE notification SET state = 'QUEUED', due_at = '2026-01-01 00:00:01', attempts = 0, mail_id = ''
         WHERE attestation_id = '{single}';
         COMMIT",
        ids = ids.join(","),
    );
    post.cluster.agreements_sql(&sql).unwrap();
    let mut first = vec![];
    for _ in 0..FIRST {
        first.push(header(&server.mail().await, "Message-ID").to_owned());
    }
    assert!(first.contains(&format!("<{single}@vendor.example>")), "{first:?}");
}

/// ATT-9: what a partner attests for a customer soon after a mail is announced in one mail, which stays as it is however
/// often it is tried.
#[apply(each_backend)]
async fn announcements_within_an_interval_are_one_mail(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let Some(python) = python() else { return };
    const INTERVAL: Duration = Duration::from_secs(60);
    let mut server = SmtpServer::start(&python, &["--plan", "accept,451"]).await;
    let setup = Setup { backend, mail_interval_seconds: 60, ..Setup::default() };
    let mut post = Post::with(Some(&server), setup).await;
    let id = post.attest("Contoso").await;
    let request = GetAttestationRequest { attestation_id: id.clone() };
    let attestation = post.direct.attestations().get_attestation(request).await.unwrap().into_inner();
    let customer_id = attestation.attestation.unwrap().customer_id;
    // The first goes at once.
    assert!(server.mail().await.contains(&id));
    post.settled(&id, NotificationState::Sent, 1).await;
    let mut together = vec![];
    for name in ["Ada", "Grace", "Mary"] {
        together.push(post.attest_again(DIRECT, &customer_id, &fixtures::person(name)).await);
        let waiting = post.notification(together.last().unwrap()).await;
        assert_eq!((waiting.state(), waiting.attempts), (NotificationState::Queued, 0));
    }
    assert_eq!(server.events_so_far(), [""; 0]);
    post.after(INTERVAL).await;
    let refused = server.event().await;
    let refused = read(refused.strip_prefix("refused ").unwrap());
    for id in &together {
        post.settled(id, NotificationState::Queued, 1).await;
        assert!(refused.contains(id.as_str()), "{refused}");
    }
    // What comes meanwhile is another mail: a mailbox may take the next attempt for a repetition.
    let late = post.attest_again(DIRECT, &customer_id, &fixtures::person("Rosa")).await;
    let with_late = server.mail().await;
    assert!(with_late.contains(&late) && !together.iter().any(|id| with_late.contains(id.as_str())));
    post.settled(&late, NotificationState::Sent, 1).await;
    // Another replica that holds one of them has the mail; what another partner attests is announced meanwhile.
    let held = match post.cluster.agreements_database() {
        Url::Sqlite(_) => None,
        Url::Postgres(url) => {
            let mut replica = PgConnection::establish(url).unwrap();
            let of =
                format!("SELECT * FROM notification WHERE attestation_id = '{}' FOR UPDATE", together[0]);
            replica.batch_execute(&format!("BEGIN; {of}")).unwrap();
            Some(replica)
        }
    };
    post.after(INTERVAL).await;
    if let Some(replica) = held {
        let provider = post.cluster.as_caller(fixtures::sales(PROVIDER));
        let customer_id = actions::create_customer(&provider, "Fabrikam", "FR", None).await.unwrap();
        let other = post.attest_again(PROVIDER, &customer_id, &fixtures::contact()).await;
        assert!(server.mail().await.contains(&other));
        drop(replica);
    }
    let again = server.mail().await;
    assert_eq!(header(&again, "Message-ID"), header(&refused, "Message-ID"));
    for id in &together {
        assert!(again.contains(id.as_str()) && !again.contains(&late));
        post.settled(id, NotificationState::Sent, 2).await;
    }
    assert_eq!(server.events_so_far(), [""; 0]);
}

/// ATT-9: a partner's mails per day are bounded. What is above waits for the next day, can be seen, and delays nothing of
/// other partners.
#[apply(each_backend)]
async fn mails_above_the_limit_of_a_partners_day_wait_and_say_so(#[case] backend: Backend) {
    tests::needs_own!("a clock that it sets");
    tests::needs!(backend);
    let setup = Setup { backend, mails_per_day: 2, ..Setup::default() };
    let mut post = Post::with(None, setup).await;
    for name in ["Contoso", "Fabrikam"] {
        let id = post.attest(name).await;
        post.settled(&id, NotificationState::Sent, 1).await;
    }
    let held = post.attest("Tailspin").await;
    let next_day = post.now.date_naive().succ_opt().unwrap().and_hms_opt(0, 0, 0).unwrap().and_utc();
    let why = tests::assert::eventually("the mail is held", async || {
        let known = post.notification(&held).await;
        let is_held = known.due_at == Some(timestamp(next_day));
        is_held.then_some((known.state(), known.attempts, known.last_failure))
    })
    .await;
    assert_eq!(why, (NotificationState::Queued, 0, "DAILY_LIMIT".into()));
    let metrics = post.cluster.agreements_metrics().await.unwrap();
    for line in ["agreement_svc_mails_held 1", "agreement_svc_mails_oldest_age_seconds 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line}");
    }
    let provider = post.cluster.as_caller(fixtures::sales(PROVIDER));
    let customer_id = actions::create_customer(&provider, "Litware", "FR", None).await.unwrap();
    let of_another = post.attest_again(PROVIDER, &customer_id, &fixtures::contact()).await;
    let written = post.cluster.mail_folder().join(format!("{of_another}.eml"));
    tests::assert::eventually("the other partner's mail", async || written.exists().then_some(())).await;
    assert!(!post.cluster.mail_folder().join(format!("{held}.eml")).exists());
    let rest = (next_day - post.now).to_std().unwrap();
    post.after(rest).await;
    post.settled(&held, NotificationState::Sent, 1).await;
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
        let listeners = Listeners { calls: listener, metrics: None, web: None };
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
