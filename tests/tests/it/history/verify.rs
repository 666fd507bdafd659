//! The history: whoever alters it, or the acceptances it tells of, is found out; a person can leave it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use agreement_svc::config::{Address, EraseContact, Verify};
use agreement_svc::rules::history::{Broken, Differs, Finding, Head, Verified};
use agreement_svc::{Erased, Failure};
use chassis::clock::{Clock, Time};
use chassis::database::Url;
use chassis::form::timestamp;
use diesel::sql_types::Text;
use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query};
use proto::agreement::{
    CreateAttestationRequest, CreateAttestationResponse, CreateCustomerRequest, CreateInvitationRequest,
    GetAttestationRequest, GetCustomerRequest, InlineAttestation, NotificationState,
    PublishTemplateVersionRequest, SignAgreementRequest, TemplateDocument, UpdateCustomerRequest,
    WithdrawAttestationRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::types::Contact;
use rstest_reuse::apply;
use sha2::{Digest, Sha256};
use tests::world::{self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT};
use tests::{As, Backend, Cluster, reason_of};

use crate::each_backend;
use uuid::Uuid;

fn now() -> Time {
    Clock::system().now()
}

async fn verify(cluster: &Cluster, kept: &[Head]) -> Verified {
    let database = cluster.agreements_database().clone();
    agreement_svc::verify(&Verify { database, head: kept.to_vec() }).await.unwrap()
}

/// Somebody who is not the usual contact.
fn other_contact() -> Contact {
    Contact { first_name: "Kai".into(), email: "kai.berg@contoso.example".into(), ..world::contact() }
}

fn attestation(customer_id: &str, contact: Contact) -> CreateAttestationRequest {
    CreateAttestationRequest {
        request_id: world::request_id(),
        customer_id: customer_id.into(),
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: Some(contact),
        agreed_at: Some(timestamp(now())),
        validate_only: false,
    }
}

async fn attest(partner: &As, customer_id: &str, contact: Contact) -> CreateAttestationResponse {
    let request = attestation(customer_id, contact);
    partner.attestations().create_attestation(request).await.unwrap().into_inner()
}

async fn withdraw(partner: &As, attestation_id: &str) -> i64 {
    let request = WithdrawAttestationRequest {
        request_id: world::request_id(),
        attestation_id: attestation_id.into(),
        reason: WithdrawalReason::RecordedInError.into(),
    };
    partner.attestations().withdraw_attestation(request).await.unwrap().into_inner().revision
}

async fn publish(cluster: &Cluster, version: u32) -> i64 {
    let document = TemplateDocument {
        country: "US".into(),
        language: "en-US".into(),
        link: format!("https://example.com/{version}"),
        sha256: String::new(),
    };
    let request = PublishTemplateVersionRequest {
        request_id: world::request_id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        effective_from: Some(timestamp(now() + chrono::Duration::days(i64::from(version)))),
        documents: vec![document],
        ..Default::default()
    };
    let operator = cluster.as_caller(world::operator());
    operator.templates().publish_template_version(request).await.unwrap().into_inner().revision
}

/// What the history of a test tells of: `first` was superseded by `second`, and `withdrawn` is another
/// customer's. An invitation is in it, too. Numbers are of their events.
struct Told {
    customer: String,
    other_customer: String,
    first: (String, i64),
    second: (String, i64),
    withdrawn: (String, i64),
    withdrawal: i64,
    /// The other customer's too, and withdrawn by it.
    signature: (String, i64),
    signature_withdrawal: i64,
    last: i64,
}

async fn tell(cluster: &Cluster) -> Told {
    world::register_partners(cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let customer = world::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let other_customer = world::create_customer(&direct, "Litware", "FR", None).await.unwrap();
    let known = |attested: CreateAttestationResponse| {
        (attested.attestation.unwrap_or_default().attestation_id, attested.revision)
    };
    let first = known(attest(&direct, &customer, world::contact()).await);
    let second = known(attest(&direct, &customer, other_contact()).await);
    let withdrawn = known(attest(&direct, &other_customer, world::contact()).await);
    let withdrawal = withdraw(&direct, &withdrawn.0).await;
    let admin = cluster.as_caller(world::admin(other_customer.parse().unwrap()));
    let signing = SignAgreementRequest {
        request_id: world::request_id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        template_version: 2,
    };
    let signed = admin.signatures().sign_agreement(signing).await.unwrap().into_inner();
    let signature = (signed.signature.unwrap().signature_id, signed.revision);
    let withdrawing = WithdrawSignatureRequest {
        request_id: world::request_id(),
        signature_id: signature.0.clone(),
        reason: WithdrawalReason::Other.into(),
    };
    let signature_withdrawal =
        admin.signatures().withdraw_signature(withdrawing).await.unwrap().into_inner().revision;
    world::invite(&direct, Some(&other_customer), None).await.unwrap();
    let last = publish(cluster, 1).await;
    Told {
        customer,
        other_customer,
        first,
        second,
        withdrawn,
        withdrawal,
        signature,
        signature_withdrawal,
        last,
    }
}

#[apply(each_backend)]
async fn an_untouched_history_is_whole_and_goes_through_the_heads_it_had(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let empty = verify(&cluster, &[]).await;
    let told = tell(&cluster).await;
    let verified = verify(&cluster, std::slice::from_ref(&empty.head)).await;
    assert_eq!((verified.findings.as_slice(), verified.head.revision), (&[][..], told.last), "{backend:?}");

    publish(&cluster, 2).await;
    let later = verify(&cluster, &[verified.head.clone(), empty.head]).await;
    assert_eq!((later.findings.as_slice(), later.head.revision), (&[][..], told.last + 1));
    let printed = later.to_string();
    let read: Head = printed.strip_prefix("head ").unwrap().parse().unwrap();
    assert_eq!(read, later.head);
}

#[apply(each_backend)]
async fn a_history_that_goes_on_meanwhile_is_whole(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    const ATTESTATIONS: usize = 60;
    let cluster = Cluster::on(backend).await;
    let told = tell(&cluster).await;
    let direct = cluster.as_caller(world::sales(DIRECT));
    let writing = tokio::spawn(async move {
        for n in 0..ATTESTATIONS {
            let contact = Contact { phone: n.to_string(), ..world::contact() };
            attest(&direct, &told.customer, contact).await;
        }
    });
    let mut head = verify(&cluster, &[]).await.head;
    while !writing.is_finished() {
        let verified = verify(&cluster, &[head]).await;
        assert_eq!(verified.findings, [], "{backend:?}");
        head = verified.head;
    }
    writing.await.unwrap();
}

/// Undoes what is done to the history behind the service's back.
struct Restored<'c>(&'c Cluster, Backend);

const KEPT: [&str; 3] = ["event", "acceptance", "revision"];

impl<'c> Restored<'c> {
    fn new(cluster: &'c Cluster, backend: Backend) -> Self {
        let keep = KEPT.map(|table| format!("CREATE TABLE kept_{table} AS SELECT * FROM {table};"));
        // What refers to an acceptance would keep it from being deleted.
        cluster.agreements_sql(&format!("DELETE FROM notification; {}", keep.concat())).unwrap();
        Self(cluster, backend)
    }

    fn sql(&self, sql: &str) {
        // Whoever may do this may also do it past the foreign keys.
        let unguarded = match self.1 {
            Backend::Sqlite => "PRAGMA foreign_keys = OFF;",
            Backend::Postgres => "SET session_replication_role = replica;",
        };
        self.0.agreements_sql(&format!("{unguarded} {sql}")).unwrap();
    }

    fn restore(&self) {
        let restore =
            KEPT.map(|table| format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table};"));
        self.sql(&restore.concat());
    }
}

fn in_order(mut findings: Vec<Finding>) -> Vec<Finding> {
    // Acceptances of one millisecond have their ids in any order.
    findings.sort_by_key(ToString::to_string);
    findings
}

fn broken(revision: i64, how: Broken) -> Finding {
    Finding::Broken { revision, how }
}

fn differs((id, _): &(String, i64), how: Differs) -> Finding {
    Finding::Acceptance { id: id.clone(), how }
}

#[apply(each_backend)]
async fn whatever_is_done_to_the_history_is_named(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let told = tell(&cluster).await;
    let Told { first, second, withdrawn, withdrawal, last, .. } = &told;
    let head = verify(&cluster, &[]).await.head;
    let restored = Restored::new(&cluster, backend);
    let cut = last - 1;
    let own = |column| differs(withdrawn, Differs::Column(column, withdrawn.1));
    for (sql, expected, expected_with_head) in [
        (
            format!(
                "UPDATE event SET body = replace(body, 'RECORDED_IN_ERROR', 'OTHER') WHERE revision = {withdrawal}"
            ),
            vec![
                broken(*withdrawal, Broken::Hash),
                differs(withdrawn, Differs::Column("withdrawal_reason", *withdrawal)),
            ],
            vec![],
        ),
        (
            format!("UPDATE event SET body = '{{}}' WHERE revision = {last}"),
            vec![broken(*last, Broken::Hash)],
            vec![],
        ),
        (
            format!("DELETE FROM event WHERE revision = {withdrawal}"),
            vec![
                broken(*withdrawal, Broken::Missing),
                own("withdrawn_at"),
                own("withdrawal_reason"),
                own("withdrawn_by"),
            ],
            vec![],
        ),
        ("DELETE FROM event WHERE revision = 1".into(), vec![broken(1, Broken::Missing)], vec![]),
        (
            format!(
                "UPDATE event SET revision = -1 WHERE revision = {0}; \
                 UPDATE event SET revision = {0} WHERE revision = {1}; \
                 UPDATE event SET revision = {1} WHERE revision = -1",
                first.1, second.1
            ),
            vec![
                broken(first.1, Broken::Hash),
                Finding::Baseless { revision: first.1, acceptance_id: first.0.parse().unwrap() },
                differs(first, Differs::Column("revision", second.1)),
                differs(first, Differs::Column("superseded_at", second.1)),
                differs(second, Differs::Column("revision", first.1)),
            ],
            vec![],
        ),
        (
            format!("UPDATE event SET revision = -1 WHERE revision = {last}"),
            vec![broken(-1, Broken::Misnumbered), Finding::Counter { counted: *last, last: cut }],
            vec![Finding::Head { kept: head.clone(), last: cut }],
        ),
        (
            format!("UPDATE event SET recorded_at = '2001-01-01 00:00:00' WHERE revision = {withdrawal}"),
            vec![
                broken(*withdrawal, Broken::Hash),
                differs(withdrawn, Differs::Column("withdrawn_at", *withdrawal)),
            ],
            vec![],
        ),
        (
            format!("UPDATE event SET customer_id = '{}' WHERE revision = {}", told.other_customer, first.1),
            vec![broken(first.1, Broken::Column("customer_id"))],
            vec![],
        ),
        (
            format!("UPDATE event SET partner_id = NULL WHERE revision = {}", first.1),
            vec![broken(first.1, Broken::Column("partner_id"))],
            vec![],
        ),
        (
            format!("DELETE FROM event WHERE revision = {last}"),
            vec![Finding::Counter { counted: *last, last: cut }],
            vec![Finding::Head { kept: head.clone(), last: cut }],
        ),
        (
            format!(
                "DELETE FROM event WHERE revision = {last}; UPDATE revision SET value = {cut}, \
                 head = (SELECT hash FROM event WHERE revision = {cut})"
            ),
            vec![],
            vec![Finding::Head { kept: head.clone(), last: cut }],
        ),
        ("UPDATE revision SET head = ''".into(), vec![Finding::CounterHash { last: *last }], vec![]),
        ("DELETE FROM revision".into(), vec![Finding::NoCounter], vec![]),
    ] {
        restored.sql(&sql);
        let found = verify(&cluster, &[]).await.findings;
        assert!(expected.is_empty() || matches!(found[0], _ if found[0] == expected[0]), "{found:?}");
        assert_eq!(in_order(found), in_order(expected.clone()), "{backend:?}: {sql}");
        let found = verify(&cluster, std::slice::from_ref(&head)).await.findings;
        let expected = [expected, expected_with_head].concat();
        assert_eq!(in_order(found), in_order(expected), "{backend:?} with a head: {sql}");
        restored.restore();
        assert_eq!(verify(&cluster, std::slice::from_ref(&head)).await.findings, []);
    }
}

#[apply(each_backend)]
async fn a_forged_event_with_all_hashes_made_anew_is_found_by_a_kept_head_alone(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let told = tell(&cluster).await;
    let kept = verify(&cluster, &[]).await.head;
    let last = told.last;
    let from = |select: &str| texts(cluster.agreements_database(), select).remove(0);
    let previous = from(&format!("SELECT hash AS text FROM event WHERE revision = {}", last - 1));
    let body = from(&format!("SELECT body AS text FROM event WHERE revision = {last}"));
    let forged = body.replace("\"number\":", "\"number\":1");
    assert_ne!(body, forged);
    let digest = Sha256::digest(format!("{previous}\n{last}\n0\n{forged}"));
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let forge = format!(
        "UPDATE event SET body = '{forged}', hash = '{hash}', recorded_at = '1970-01-01 00:00:00' WHERE revision = {last}; \
         UPDATE revision SET head = '{hash}'"
    );
    cluster.agreements_sql(&forge).unwrap();
    assert_eq!(verify(&cluster, &[]).await.findings, []);
    let found = verify(&cluster, std::slice::from_ref(&kept)).await.findings;
    assert_eq!(found, [Finding::Head { kept, last }], "{backend:?}");
}

#[apply(each_backend)]
async fn whatever_is_done_to_an_acceptance_is_named(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let told = tell(&cluster).await;
    let Told { first, withdrawn, withdrawal, second, signature, signature_withdrawal, .. } = &told;
    let restored = Restored::new(&cluster, backend);
    let set = |what: &str, (id, _): &(String, i64)| format!("UPDATE acceptance SET {what} WHERE id = '{id}'");
    let mut table: Vec<(String, Vec<Finding>)> = vec![];

    let somebody = Uuid::from_u128(7).to_string();
    for (column, value, says) in [
        ("kind", "SIGNATURE", first.1),
        ("partner_id", &somebody, first.1),
        ("customer_id", &told.other_customer, first.1),
        ("agreement_type", "MICROSOFT_CLOUD_AGREEMENT", first.1),
        ("template_id", CLOUD_AGREEMENT, first.1),
        ("template_version", "1", first.1),
        ("agreed_at", "2001-01-01 00:00:00", first.1),
        ("recorded_at", "2001-01-01 00:00:00", first.1),
        ("recorded_by", &somebody, first.1),
        ("superseded_at", "2001-01-01 00:00:00", second.1),
        ("withdrawn_at", "2001-01-01 00:00:00", first.1),
        ("withdrawal_reason", "OTHER", first.1),
        ("withdrawn_by", &somebody, first.1),
        ("revision", "1", first.1),
    ] {
        let sql = set(&format!("{column} = '{value}'"), first);
        table.push((sql, vec![differs(first, Differs::Column(column, says))]));
    }
    for column in ["first_name", "last_name", "email", "phone", "contact_salt"] {
        for value in ["somebody else", ""] {
            let sql = set(&format!("{column} = '{value}'"), first);
            table.push((sql, vec![differs(first, Differs::Contact(first.1))]));
        }
    }
    let empty = "first_name = '', last_name = '', email = '', phone = '', contact_salt = ''";
    table.push((set(empty, first), vec![differs(first, Differs::ErasedByNobody)]));
    table.push((
        set("withdrawn_at = NULL, withdrawal_reason = '', withdrawn_by = ''", withdrawn),
        ["withdrawn_at", "withdrawal_reason", "withdrawn_by"]
            .map(|column| differs(withdrawn, Differs::Column(column, *withdrawal)))
            .to_vec(),
    ));
    // A signature is nobody's but the customer's, and names no contact.
    for (column, value, says) in [
        ("kind", "ATTESTATION", signature.1),
        ("partner_id", &somebody, signature.1),
        ("customer_id", &told.customer, signature.1),
        ("template_version", "1", signature.1),
        ("agreed_at", "2001-01-01 00:00:00", signature.1),
        ("recorded_by", &somebody, signature.1),
        ("superseded_at", "2001-01-01 00:00:00", signature.1),
        ("withdrawal_reason", "RECORDED_IN_ERROR", *signature_withdrawal),
        ("withdrawn_by", &somebody, *signature_withdrawal),
    ] {
        let sql = set(&format!("{column} = '{value}'"), signature);
        table.push((sql, vec![differs(signature, Differs::Column(column, says))]));
    }
    let sql = set("email = 'somebody@else.example'", signature);
    table.push((sql, vec![differs(signature, Differs::PersonOnSignature)]));
    table.push((
        set("withdrawn_at = NULL, withdrawal_reason = '', withdrawn_by = ''", signature),
        ["withdrawn_at", "withdrawal_reason", "withdrawn_by"]
            .map(|column| differs(signature, Differs::Column(column, *signature_withdrawal)))
            .to_vec(),
    ));
    table.push((
        format!("DELETE FROM acceptance WHERE id = '{}'", signature.0),
        vec![differs(signature, Differs::Gone(signature.1))],
    ));
    table.push((
        format!("DELETE FROM acceptance WHERE id = '{}'", first.0),
        vec![differs(first, Differs::Gone(first.1))],
    ));
    let renamed = (somebody.clone(), 0);
    table.push((
        set(&format!("id = '{somebody}'"), first),
        vec![differs(&renamed, Differs::Unrecorded), differs(first, Differs::Gone(first.1))],
    ));
    let columns = "kind, partner_id, customer_id, agreement_type, template_id, template_version, \
                   first_name, last_name, email, phone, contact_salt, agreed_at, recorded_at, \
                   recorded_by, superseded_at, withdrawn_at, revision, withdrawal_reason, withdrawn_by";
    let copy = |id: &str| {
        let of = &first.0;
        format!(
            "INSERT INTO acceptance (id, {columns}) SELECT {id}, {columns} FROM acceptance WHERE id = '{of}'"
        )
    };
    table.push((copy(&format!("'{somebody}'")), vec![differs(&renamed, Differs::Unrecorded)]));
    // Every disagreement at once, each on its own line.
    table.push((
        "UPDATE acceptance SET recorded_by = ''".into(),
        [first, second, withdrawn, signature]
            .map(|of| differs(of, Differs::Column("recorded_by", of.1)))
            .to_vec(),
    ));
    if backend == Backend::Sqlite {
        // SQLite keeps anything anywhere.
        let keyless = |table| Finding::Keyless { table, rows: 1 };
        table.push((set("agreed_at = 'yesterday'", first), vec![differs(first, Differs::Unreadable)]));
        table.push((copy("NULL"), vec![keyless("acceptance")]));
        table.push((copy(&format!("CAST('{}' AS BLOB)", first.0)), vec![differs(first, Differs::Twice)]));
        table.push((
            "INSERT INTO event SELECT NULL, customer_id, partner_id, recorded_at, body, hash FROM event WHERE revision = 1".into(),
            vec![keyless("event")],
        ));
        table.push((
            format!("UPDATE event SET recorded_at = 'yesterday' WHERE revision = {}", told.last),
            vec![broken(told.last, Broken::Unreadable), Finding::CounterHash { last: told.last }],
        ));
        table.push((
            "INSERT INTO event SELECT 1.5, customer_id, partner_id, recorded_at, body, hash FROM event WHERE revision = 1".into(),
            vec![broken(1, Broken::Misnumbered)],
        ));
    }
    for (sql, expected) in table {
        restored.sql(&sql);
        let found = verify(&cluster, &[]).await.findings;
        assert_eq!(in_order(found), in_order(expected), "{backend:?}: {sql}");
        restored.restore();
        assert_eq!(verify(&cluster, &[]).await.findings, []);
    }
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    text: String,
}

/// The column `text` of a query.
fn texts(database: &Url, select: &str) -> Vec<String> {
    let lines: Vec<Line> = match database {
        Url::Sqlite(path) => {
            sql_query(select).load(&mut SqliteConnection::establish(&path.to_string_lossy()).unwrap())
        }
        Url::Postgres(url) => sql_query(select).load(&mut PgConnection::establish(url).unwrap()),
    }
    .unwrap();
    lines.into_iter().map(|line| line.text).collect()
}

/// Every byte that the database keeps of its rows: the files of SQLite, the rows of PostgreSQL. In lower
/// case.
fn everything(database: &Url) -> String {
    let bytes = match database {
        Url::Sqlite(path) => {
            let log = fs::read(format!("{}-wal", path.display())).unwrap_or_default();
            [fs::read(path).unwrap(), log].concat()
        }
        Url::Postgres(_) => {
            let tables = texts(
                database,
                "SELECT tablename::text AS text FROM pg_tables WHERE schemaname = current_schema()",
            );
            let rows = tables
                .iter()
                .flat_map(|table| texts(database, &format!("SELECT row::text AS text FROM {table} AS row")));
            rows.collect::<Vec<_>>().join("\n").into_bytes()
        }
    };
    String::from_utf8_lossy(&bytes).to_lowercase()
}

/// How often a text stands there, as it is or, as PostgreSQL shows bytes, in hexadecimal.
fn count(everything: &str, text: &str) -> usize {
    let text = text.to_lowercase();
    // The first letter may be of either case in the bytes.
    let hex: String = text.bytes().skip(1).map(|byte| format!("{byte:02x}")).collect();
    everything.matches(&text).count() + everything.matches(&hex).count()
}

async fn erase(cluster: &Cluster, email: &str, mails: &std::path::Path) -> Result<Erased, Failure> {
    let config = EraseContact {
        database: cluster.agreements_database().clone(),
        email: Address(email.into()),
        mail_folder: Some(mails.to_owned()),
    };
    agreement_svc::erase_contact(&config, &Clock::system()).await
}

/// The person to be erased.
fn person() -> Contact {
    Contact {
        first_name: "Zebulon".into(),
        last_name: "Brambleton".into(),
        email: "zeb.quxley@contoso.example".into(),
        phone: "+00 5550 1777".into(),
    }
}

/// A person whose address ends with the other one's.
fn namesake() -> Contact {
    Contact {
        first_name: "Anna".into(),
        last_name: "Vance".into(),
        email: "anna-zeb.quxley@contoso.example".into(),
        phone: "+00 5550 9999".into(),
    }
}

fn new_customer(name: &str, contact: Contact) -> CreateCustomerRequest {
    CreateCustomerRequest { primary_contact: Some(contact), ..world::new_customer(name, "FR", None) }
}

/// A person in every place that a call can bring it to, and another one beside it.
struct Peopled {
    cluster: Cluster,
    direct: As,
    /// Of which the person is the primary contact and attested.
    customer: String,
    created: CreateCustomerRequest,
    /// In whose name the person attested, in capital letters, and that had another contact meanwhile.
    attested: CreateAttestationResponse,
    attested_request: CreateAttestationRequest,
    /// The namesake's.
    other: CreateAttestationRequest,
    other_answer: CreateAttestationResponse,
    mails: tempfile::TempDir,
}

async fn people(backend: Backend) -> Peopled {
    let cluster = Cluster::on(backend).await;
    world::register_partners(&cluster).await.unwrap();
    let direct = cluster.as_caller(world::sales(DIRECT));
    let inline = InlineAttestation {
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: None,
        agreed_at: Some(timestamp(now())),
    };
    let created = CreateCustomerRequest { attestation: Some(inline), ..new_customer("Contoso", person()) };
    let answer = direct.customers().create_customer(created.clone()).await.unwrap().into_inner();
    let customer = answer.customer.unwrap().customer_id;
    withdraw(&direct, &answer.attestation.unwrap().attestation_id).await;

    let former = direct.customers().create_customer(new_customer("Litware", person())).await.unwrap();
    let former = former.into_inner().customer.unwrap();
    let update = UpdateCustomerRequest {
        request_id: world::request_id(),
        customer_id: former.customer_id.clone(),
        etag: former.etag,
        company_name: former.company_name,
        primary_contact: Some(namesake()),
    };
    direct.customers().update_customer(update).await.unwrap();
    let shouted = Contact { email: person().email.to_uppercase(), ..person() };
    let attested_request = attestation(&former.customer_id, shouted);
    let attested = direct.attestations().create_attestation(attested_request.clone()).await.unwrap();
    let attested = attested.into_inner();
    // Superseded by somebody who is to stay.
    let other = attestation(&former.customer_id, namesake());
    let other_answer = direct.attestations().create_attestation(other.clone()).await.unwrap().into_inner();
    let invitation = CreateInvitationRequest {
        recipient: Some(person()),
        ..world::new_invitation(Some(&former.customer_id), None)
    };
    direct.signatures().create_invitation(invitation).await.unwrap();
    let mails = tempfile::tempdir().unwrap();
    Peopled { cluster, direct, customer, created, attested, attested_request, other, other_answer, mails }
}

impl Peopled {
    /// The mail that the service wrote of an attestation, beside those that are typed here.
    async fn written(&self, attestation: &CreateAttestationResponse) -> std::path::PathBuf {
        let attestation_id = attestation.attestation.clone().unwrap().attestation_id;
        let sent = async {
            loop {
                let request = GetAttestationRequest { attestation_id: attestation_id.clone() };
                let read = self.direct.attestations().get_attestation(request).await.unwrap().into_inner();
                if read.attestation.unwrap().notification.unwrap().state() == NotificationState::Sent {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), sent).await.unwrap();
        let name = format!("{attestation_id}.eml");
        let path = self.mails.path().join(&name);
        fs::copy(self.cluster.mail_folder().join(name), &path).unwrap();
        path
    }

    fn mail(&self, attestation: &CreateAttestationResponse, to: &str, text: &str) -> std::path::PathBuf {
        let id = &attestation.attestation.as_ref().unwrap().attestation_id;
        self.mail_named(id, to, text)
    }

    fn mail_named(&self, id: &str, to: &str, text: &str) -> std::path::PathBuf {
        let path = self.mails.path().join(format!("{id}.eml"));
        fs::write(&path, format!("From: us@example.com\r\nTo: {to}\r\nSubject: To you\r\n\r\n{text}\r\n"))
            .unwrap();
        path
    }
}

#[apply(each_backend)]
async fn an_erased_person_is_nowhere_and_nobody_else_is_touched(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let world = people(backend).await;
    let Peopled { cluster, direct, .. } = &world;
    let database = cluster.agreements_database();
    let naming = world.written(&world.attested).await;
    let mail = fs::read_to_string(&naming).unwrap();
    assert!(mail.contains("Brambleton") && mail.contains(&namesake().email), "{mail}");
    let to = "=?utf-8?b?WmVi?=\r\n <Zeb.Quxley@contoso.example>, bob@contoso.example";
    let addressed = world.mail_named(&Uuid::from_u128(1).to_string(), to, "Anna Vance agreed.");
    let unfinished = world.mails.path().join(format!(".{}.unfinished", Uuid::from_u128(3)));
    fs::write(&unfinished, format!("To: {}\r\n", person().email)).unwrap();
    let others = world.written(&world.other_answer).await;
    let before = everything(database);
    let Contact { first_name, last_name, email, phone } = person();
    let etag = etag_of(direct, &world.customer).await;
    let kept = verify(cluster, &[]).await.head;

    let erased = erase(cluster, " ZEB.Quxley@Contoso.example ", world.mails.path()).await.unwrap();
    // Answers: two customers, an attestation, a withdrawal and an invitation. The update names only who
    // came after.
    let expected = Erased { attestations: 2, customers: 1, invitations: 1, answers: 5, mails: Some(3) };
    assert_eq!(erased, expected, "{backend:?}");

    let after = everything(database);
    for gone in [&first_name, &last_name, &phone] {
        assert!(count(&before, gone) > 0, "{backend:?}: {gone} was never there, so nothing is proven");
        assert_eq!(count(&after, gone), 0, "{backend:?}: {gone}");
    }
    let of_others = count(&after, &format!("anna-{email}"));
    assert!(of_others > 0 && count(&before, &email) > count(&before, &format!("anna-{email}")));
    assert_eq!(count(&after, &email), of_others, "{backend:?}");
    assert_eq!((naming.exists(), addressed.exists(), others.exists()), (false, false, true));
    assert!(!unfinished.exists());
    assert_eq!(verify(cluster, std::slice::from_ref(&kept)).await.findings, [], "{backend:?}");

    // The records are there, without the person.
    let attestation = world.attested.attestation.clone().unwrap();
    let read = GetAttestationRequest { attestation_id: attestation.attestation_id };
    let read = direct.attestations().get_attestation(read).await.unwrap().into_inner().attestation.unwrap();
    assert_eq!((read.contact, read.agreed_at), (Some(Contact::default()), attestation.agreed_at));
    assert_ne!(etag_of(direct, &world.customer).await, etag, "{backend:?}");

    // What the person was asked for with cannot be repeated; what others were can.
    let again = direct.customers().create_customer(world.created.clone()).await.unwrap_err();
    assert_eq!(reason_of(&again), "REQUEST_ID_REUSED", "{backend:?}");
    let again = direct.attestations().create_attestation(world.attested_request.clone()).await.unwrap_err();
    assert_eq!(reason_of(&again), "REQUEST_ID_REUSED", "{backend:?}");
    let again = direct.attestations().create_attestation(world.other.clone()).await.unwrap();
    assert_eq!(again.into_inner(), world.other_answer, "{backend:?}");

    let head = verify(cluster, &[]).await.head;
    let nothing = erase(cluster, &email, world.mails.path()).await.unwrap();
    assert_eq!(nothing, Erased { mails: Some(0), ..Erased::default() });
    assert!(nothing.to_string().contains("nobody"), "{nothing}");
    assert_eq!(verify(cluster, &[]).await.head, head, "{backend:?}");
}

async fn etag_of(partner: &As, customer_id: &str) -> String {
    let request = GetCustomerRequest { customer_id: customer_id.into() };
    partner.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap().etag
}

#[apply(each_backend)]
async fn what_was_cut_off_is_finished_by_the_next_run(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let world = people(backend).await;
    let cluster = &world.cluster;
    let kept = verify(cluster, &[]).await.head;
    // A folder in the place of a mail cannot be deleted as one: the command ends in the middle.
    let obstacle = world.mail(&world.attested, &namesake().email, "");
    fs::remove_file(&obstacle).unwrap();
    fs::create_dir(&obstacle).unwrap();
    let failed = erase(cluster, &person().email, world.mails.path()).await.unwrap_err().to_string();
    assert!(!failed.to_lowercase().contains("quxley"), "{failed}");
    // As long as a mail is left, the records know whose it is.
    assert_eq!(verify(cluster, &[]).await.head, kept, "{backend:?}");
    assert!(count(&everything(cluster.agreements_database()), "Zebulon") > 0);

    fs::remove_dir(&obstacle).unwrap();
    let naming = world.mail(&world.attested, &namesake().email, "Zebulon Brambleton agreed.");
    let erased = erase(cluster, &person().email, world.mails.path()).await.unwrap();
    assert_eq!((erased.attestations, erased.mails, naming.exists()), (2, Some(1), false), "{backend:?}");

    // A mail that was being written meanwhile, and arrives when the records know nobody any more.
    let late = world.mail_named(&Uuid::from_u128(2).to_string(), &person().email, "");
    let erased = erase(cluster, &person().email, world.mails.path()).await.unwrap();
    assert_eq!(erased, Erased { mails: Some(1), ..Erased::default() });
    assert!(!late.exists());
    assert_eq!(verify(cluster, &[]).await.findings, [], "{backend:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_no_address_or_no_folder_is_refused_before_anything_is_erased() {
    tests::needs_own!("databases that it writes to");
    let world = people(Backend::Sqlite).await;
    let cluster = &world.cluster;
    let before = verify(cluster, &[]).await.head;
    for email in ["", " ", "@", "quxley", "zeb.quxley@", "%@contoso.example,x@y.example"] {
        let refused = erase(cluster, email, world.mails.path()).await.unwrap_err().to_string();
        assert!(refused.contains("not an e-mail address") && !refused.contains("quxley"), "{refused}");
    }
    let nowhere = world.mails.path().join("nowhere");
    assert!(erase(cluster, &person().email, &nowhere).await.is_err());
    assert_eq!(verify(cluster, &[]).await.head, before);
}

#[apply(each_backend)]
async fn a_person_that_comes_back_after_an_erasure_is_found_out(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let world = people(backend).await;
    let cluster = &world.cluster;
    let attestation = world.attested.attestation.clone().unwrap();
    let row = format!("FROM acceptance WHERE id = '{}'", attestation.attestation_id);
    let columns = ["first_name", "last_name", "email", "phone", "contact_salt"];
    let database = cluster.agreements_database();
    let values: BTreeMap<_, _> = columns
        .map(|column| (column, texts(database, &format!("SELECT {column} AS text {row}")).remove(0)))
        .into();
    erase(cluster, &person().email, world.mails.path()).await.unwrap();
    let event = verify(cluster, &[]).await.head.revision;
    let sets: Vec<_> = values.iter().map(|(column, value)| format!("{column} = '{value}'")).collect();
    for sets in [sets.join(", "), "phone = '1'".into(), "contact_salt = '1'".into()] {
        let id = &attestation.attestation_id;
        cluster.agreements_sql(&format!("UPDATE acceptance SET {sets} WHERE id = '{id}'")).unwrap();
        let found = verify(cluster, &[]).await.findings;
        let [Finding::Acceptance { id: found_id, how: Differs::NotErased(by) }] = &found[..] else {
            panic!("{found:?}")
        };
        assert!(found_id == id && (event - 1..=event).contains(by), "{found:?}");
        let empty: Vec<_> = columns.map(|column| format!("{column} = ''")).into();
        cluster
            .agreements_sql(&format!("UPDATE acceptance SET {} WHERE id = '{id}'", empty.join(", ")))
            .unwrap();
    }
}
