//! The hash chain of the history: `verify` names every change that was made to an event, or to an acceptance that it
//! records.

use agreement_svc::config::Verify;
use agreement_svc::rules::chain::{Broken, Differs, Finding, Head, Verified};
use chassis::database::Url;
use chassis::form::timestamp;
use chassis::query;
use diesel::sql_types::Text;
use diesel::{QueryableByName, RunQueryDsl, sql_query};
use proto::agreement::{
    ApproveProposalRequest, CreateAttestationRequest, CreateAttestationResponse,
    PublishTemplateVersionRequest, SignAgreementRequest, WithdrawSignatureRequest, WithdrawalReason,
};
use proto::types::{AttestationDetails, Contact, ShownText};
use rstest_reuse::apply;
use sha2::{Digest, Sha256};
use tests::databases::connect;
use tests::fixtures::{
    self, CLOUD_AGREEMENT, CUSTOMER_AGREEMENT, DIRECT, PROVIDER, RESELLER, new_attestation, new_proposal, now,
};
use tests::{As, Backend, Cluster, actions};
use uuid::Uuid;

use crate::each_backend;

pub(super) async fn verify(cluster: &Cluster, kept: &[Head]) -> Verified {
    let database = cluster.agreements_database().clone();
    agreement_svc::commands::verify::verify(&Verify { database, head: kept.to_vec() }).await.unwrap()
}

/// Another person than the usual contact.
fn other_contact() -> Contact {
    Contact { first_name: "Kai".into(), email: "kai.berg@contoso.example".into(), ..fixtures::contact() }
}

/// Attests that a contact accepted.
async fn attest_by(partner: &As, customer_id: &str, contact: Contact) -> CreateAttestationResponse {
    let request = fixtures::new_attestation_by(customer_id, contact);
    partner.attestations().create_attestation(request).await.unwrap().into_inner()
}

/// Publishes a version of the Customer Agreement that is in force in so many days, and returns the revision.
async fn publish_for_day(cluster: &Cluster, days: i64) -> i64 {
    let version = PublishTemplateVersionRequest {
        effective_from: Some(timestamp(now() + chrono::Duration::days(days))),
        ..fixtures::new_version(CUSTOMER_AGREEMENT)
    };
    let operator = cluster.as_caller(fixtures::operator());
    actions::publish(&operator, version).await.unwrap().revision
}

/// The history of a test: `second` superseded `first`, and `withdrawn` is another customer's. It has an invitation, too.
/// Numbers are the revisions of the events.
struct Recorded {
    customer: String,
    other_customer: String,
    first: (String, i64),
    second: (String, i64),
    withdrawn: (String, i64),
    withdrawal: i64,
    /// The other customer's, which withdrew it.
    signature: (String, i64),
    signature_withdrawal: i64,
    /// Of the provider, as its reseller proposed it.
    approved: (String, i64),
    last: i64,
}

/// A reseller proposes an attestation, and its provider approves it.
async fn approve_proposal(cluster: &Cluster) -> (String, i64) {
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let customer = actions::create_customer(&reseller, "Wingtip", "FR", Some(PROVIDER)).await.unwrap();
    let proposal = reseller.proposals().propose_attestation(new_proposal(PROVIDER, &customer)).await.unwrap();
    let request = ApproveProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposal.into_inner().proposal.unwrap().proposal_id,
        validate_only: false,
    };
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let approved = provider.proposals().approve_proposal(request).await.unwrap().into_inner();
    let attestation = approved.attestation.unwrap();
    (attestation.attestation_id, attestation.revision)
}

async fn record_history(cluster: &Cluster) -> Recorded {
    actions::register_partners(cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let other_customer = actions::create_customer(&direct, "Litware", "FR", None).await.unwrap();
    let known = |attested: CreateAttestationResponse| {
        (attested.attestation.unwrap_or_default().attestation_id, attested.revision)
    };
    let details = AttestationDetails {
        title: "CFO".into(),
        evidence_reference: "Archive 7".into(),
        on_behalf_of: "E-1".into(),
        shown_text: Some(ShownText {
            country: "FR".into(),
            language: "fr-FR".into(),
            sha256: "fedcba9876543210".repeat(4),
        }),
        ..AttestationDetails::default()
    };
    let request = CreateAttestationRequest { details: Some(details), ..new_attestation(&customer) };
    let first = known(direct.attestations().create_attestation(request).await.unwrap().into_inner());
    let second = known(attest_by(&direct, &customer, other_contact()).await);
    let withdrawn = known(attest_by(&direct, &other_customer, fixtures::contact()).await);
    let withdrawal = actions::withdraw(&direct, &withdrawn.0).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(other_customer.parse().unwrap()));
    let signing = SignAgreementRequest {
        request_id: fixtures::request_id(),
        template_id: CUSTOMER_AGREEMENT.into(),
        template_version: 2,
        validate_only: false,
        shown_text: None,
    };
    let signed = admin.signatures().sign_agreement(signing).await.unwrap().into_inner();
    let signature = (signed.signature.unwrap().signature_id, signed.revision);
    let withdrawing = WithdrawSignatureRequest {
        request_id: fixtures::request_id(),
        signature_id: signature.0.clone(),
        reason: WithdrawalReason::Other.into(),
        validate_only: false,
    };
    let signature_withdrawal =
        admin.signatures().withdraw_signature(withdrawing).await.unwrap().into_inner().revision;
    actions::invite(&direct, Some(&other_customer), None).await.unwrap();
    let approved = approve_proposal(cluster).await;
    let last = publish_for_day(cluster, 1).await;
    Recorded {
        approved,
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
async fn an_untouched_history_verifies_against_kept_heads(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let empty = verify(&cluster, &[]).await;
    let recorded = record_history(&cluster).await;
    let verified = verify(&cluster, std::slice::from_ref(&empty.head)).await;
    assert_eq!(
        (verified.findings.as_slice(), verified.head.revision),
        (&[][..], recorded.last),
        "{backend:?}"
    );

    publish_for_day(&cluster, 2).await;
    let later = verify(&cluster, &[verified.head.clone(), empty.head]).await;
    assert_eq!((later.findings.as_slice(), later.head.revision), (&[][..], recorded.last + 1));
    let printed = later.to_string();
    let read: Head = printed.strip_prefix("head ").unwrap().parse().unwrap();
    assert_eq!(read, later.head);
}

/// The history verifies while attestations are recorded.
#[apply(each_backend)]
async fn a_growing_history_verifies(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    const ATTESTATIONS: usize = 60;
    let cluster = Cluster::on(backend).await;
    let recorded = record_history(&cluster).await;
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let writing = tokio::spawn(async move {
        for n in 0..ATTESTATIONS {
            let contact = Contact { phone: n.to_string(), ..fixtures::contact() };
            attest_by(&direct, &recorded.customer, contact).await;
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

/// Tampers with the history past the service, and undoes it.
struct Tampered<'c>(&'c Cluster, Backend);

const KEPT: [&str; 3] = ["event", "acceptance", "revision"];

impl<'c> Tampered<'c> {
    fn new(cluster: &'c Cluster, backend: Backend) -> Self {
        let keep = KEPT.map(|table| format!("CREATE TABLE kept_{table} AS SELECT * FROM {table};"));
        // A row that refers to an acceptance would keep it from being deleted.
        cluster.agreements_sql(&format!("DELETE FROM notification; {}", keep.concat())).unwrap();
        Self(cluster, backend)
    }

    fn sql(&self, sql: &str) {
        // An attacker with this access can also bypass the foreign keys.
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
async fn verify_names_every_change_of_an_event(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let recorded = record_history(&cluster).await;
    let Recorded { first, second, withdrawn, withdrawal, last, .. } = &recorded;
    let head = verify(&cluster, &[]).await.head;
    let tampered = Tampered::new(&cluster, backend);
    let cut = last - 1;
    let own = |column| differs(withdrawn, Differs::Column(column, withdrawn.1));
    for (sql, expected, expected_with_head) in [
        (
            format!(
                "UPDATE event SET body = replace(body, 'NO_LONGER_ACCEPTS', 'OTHER') WHERE revision = {withdrawal}"
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
                Finding::NoSuchAcceptance { revision: first.1, acceptance_id: first.0.parse().unwrap() },
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
            format!(
                "UPDATE event SET customer_id = '{}' WHERE revision = {}",
                recorded.other_customer, first.1
            ),
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
        tampered.sql(&sql);
        let found = verify(&cluster, &[]).await.findings;
        assert!(expected.is_empty() || matches!(found[0], _ if found[0] == expected[0]), "{found:?}");
        assert_eq!(in_order(found), in_order(expected.clone()), "{backend:?}: {sql}");
        let found = verify(&cluster, std::slice::from_ref(&head)).await.findings;
        let expected = [expected, expected_with_head].concat();
        assert_eq!(in_order(found), in_order(expected), "{backend:?} with a head: {sql}");
        tampered.restore();
        assert_eq!(verify(&cluster, std::slice::from_ref(&head)).await.findings, []);
    }
}

/// Against an event that was forged together with its hash, only a head that was kept elsewhere helps.
#[apply(each_backend)]
async fn only_a_kept_head_finds_a_forged_event(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let recorded = record_history(&cluster).await;
    let kept = verify(&cluster, &[]).await.head;
    let last = recorded.last;
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

/// I7.
#[apply(each_backend)]
async fn verify_names_every_change_of_an_acceptance(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let cluster = Cluster::on(backend).await;
    let recorded = record_history(&cluster).await;
    let Recorded { first, withdrawn, withdrawal, second, signature, signature_withdrawal, approved, .. } =
        &recorded;
    let tampered = Tampered::new(&cluster, backend);
    let set = |what: &str, (id, _): &(String, i64)| format!("UPDATE acceptance SET {what} WHERE id = '{id}'");
    let mut table: Vec<(String, Vec<Finding>)> = vec![];

    let stranger = Uuid::from_u128(7).to_string();
    for (column, value, says) in [
        ("kind", "SIGNATURE", first.1),
        ("partner_id", &stranger, first.1),
        ("customer_id", &recorded.other_customer, first.1),
        ("agreement_type", "MICROSOFT_CLOUD_AGREEMENT", first.1),
        ("template_id", CLOUD_AGREEMENT, first.1),
        ("template_version", "1", first.1),
        ("agreed_at", "2001-01-01 00:00:00", first.1),
        ("recorded_at", "2001-01-01 00:00:00", first.1),
        ("recorded_by", &stranger, first.1),
        ("superseded_at", "2001-01-01 00:00:00", second.1),
        ("withdrawn_at", "2001-01-01 00:00:00", first.1),
        ("withdrawal_reason", "OTHER", first.1),
        ("withdrawn_by", &stranger, first.1),
        ("evidence_sha256", "e3", first.1),
        ("recorded_client", "another", first.1),
        ("shown_country", "US", first.1),
        ("shown_language", "en-US", first.1),
        ("shown_sha256", "", first.1),
        ("proposal_id", &stranger, first.1),
        ("proposed_by_partner", &stranger, first.1),
        ("proposed_by_user", &stranger, first.1),
        ("revision", "1", first.1),
    ] {
        let sql = set(&format!("{column} = '{value}'"), first);
        table.push((sql, vec![differs(first, Differs::Column(column, says))]));
    }
    let erased = ["title", "evidence_reference", "on_behalf_of"];
    for column in ["proposal_id", "proposed_by_partner", "proposed_by_user"] {
        let own = Differs::Column(column, approved.1);
        table.push((set(&format!("{column} = ''"), approved), vec![differs(approved, own)]));
    }
    for column in ["first_name", "last_name", "email", "phone", "contact_salt"].into_iter().chain(erased) {
        for value in ["another person", ""] {
            let sql = set(&format!("{column} = '{value}'"), first);
            table.push((sql, vec![differs(first, Differs::Contact(first.1))]));
        }
    }
    let empty = "first_name = '', last_name = '', email = '', phone = '', contact_salt = '', \
                 title = '', evidence_reference = '', on_behalf_of = ''";
    table.push((set(empty, first), vec![differs(first, Differs::ErasedByNobody)]));
    table.push((
        set("withdrawn_at = NULL, withdrawal_reason = '', withdrawn_by = ''", withdrawn),
        ["withdrawn_at", "withdrawal_reason", "withdrawn_by"]
            .map(|column| differs(withdrawn, Differs::Column(column, *withdrawal)))
            .to_vec(),
    ));
    // A signature belongs to the customer alone, and names no contact.
    for (column, value, says) in [
        ("kind", "ATTESTATION", signature.1),
        ("partner_id", &stranger, signature.1),
        ("customer_id", &recorded.customer, signature.1),
        ("template_version", "1", signature.1),
        ("shown_country", "US", signature.1),
        ("shown_language", "en-US", signature.1),
        ("shown_sha256", "e3", signature.1),
        ("agreed_at", "2001-01-01 00:00:00", signature.1),
        ("recorded_by", &stranger, signature.1),
        ("superseded_at", "2001-01-01 00:00:00", signature.1),
        ("withdrawal_reason", "RECORDED_IN_ERROR", *signature_withdrawal),
        ("withdrawn_by", &stranger, *signature_withdrawal),
    ] {
        let sql = set(&format!("{column} = '{value}'"), signature);
        table.push((sql, vec![differs(signature, Differs::Column(column, says))]));
    }
    let sql = set("email = 'stranger@else.example'", signature);
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
    let renamed = (stranger.clone(), 0);
    table.push((
        set(&format!("id = '{stranger}'"), first),
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
    table.push((copy(&format!("'{stranger}'")), vec![differs(&renamed, Differs::Unrecorded)]));
    // Every disagreement at once, each on its own line.
    table.push((
        "UPDATE acceptance SET recorded_by = ''".into(),
        [first, second, withdrawn, signature, approved]
            .map(|of| differs(of, Differs::Column("recorded_by", of.1)))
            .to_vec(),
    ));
    if backend == Backend::Sqlite {
        // SQLite stores values of any type in any column.
        let keyless = |table| Finding::Keyless { table, rows: 1 };
        table.push((set("agreed_at = 'yesterday'", first), vec![differs(first, Differs::Unreadable)]));
        table.push((copy("NULL"), vec![keyless("acceptance")]));
        table.push((copy(&format!("CAST('{}' AS BLOB)", first.0)), vec![differs(first, Differs::Twice)]));
        table.push((
            "INSERT INTO event SELECT NULL, customer_id, partner_id, recorded_at, body, hash FROM event WHERE revision = 1".into(),
            vec![keyless("event")],
        ));
        table.push((
            format!("UPDATE event SET recorded_at = 'yesterday' WHERE revision = {}", recorded.last),
            vec![broken(recorded.last, Broken::Unreadable), Finding::CounterHash { last: recorded.last }],
        ));
        table.push((
            "INSERT INTO event SELECT 1.5, customer_id, partner_id, recorded_at, body, hash FROM event WHERE revision = 1".into(),
            vec![broken(1, Broken::Misnumbered)],
        ));
    }
    for (sql, expected) in table {
        tampered.sql(&sql);
        let found = verify(&cluster, &[]).await.findings;
        assert_eq!(in_order(found), in_order(expected), "{backend:?}: {sql}");
        tampered.restore();
        assert_eq!(verify(&cluster, &[]).await.findings, []);
    }
}

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    text: String,
}

/// The column `text` of a query.
pub(super) fn texts(database: &Url, select: &str) -> Vec<String> {
    let lines: Vec<Line> = query!(&mut connect(database).unwrap(), c => sql_query(select).load(c)).unwrap();
    lines.into_iter().map(|line| line.text).collect()
}
