//! Erasure of a contact: the person leaves records, answers and mails, and the hash chain holds.

use std::collections::BTreeMap;
use std::fs;

use agreement_svc::commands::erase::Erased;
use agreement_svc::config::{Address, EraseContact};
use agreement_svc::rules::chain::{Differs, Finding};
use chassis::clock::Clock;
use chassis::database::Url;
use chassis::form::timestamp;
use proto::agreement::{
    ApproveProposalRequest, CreateAttestationRequest, CreateAttestationResponse, CreateCustomerRequest,
    CreateInvitationRequest, GetAttestationRequest, GetCustomerRequest, InlineAttestation,
    ListCustomersRequest, NotificationState, ProposeAttestationRequest, Replacement, SupportContact,
    UpdateCustomerRequest, UpdatePartnerRequest, WithdrawAttestationRequest, WithdrawalReason,
};
use proto::order::{CreateOrderRequest, CreateOrderResponse};
use proto::types::{AttestationDetails, Contact, ShownText};
use rstest_reuse::apply;
use tests::assert::eventually;
use tests::fixtures::{
    self, CUSTOMER_AGREEMENT, DIRECT, OFFICE, PROVIDER, RESELLER, contact_to_erase, new_attestation_by, now,
};
use tests::{As, Backend, Cluster, actions, reason_of};
use uuid::Uuid;

use super::verify::{texts, verify};
use crate::each_backend;

/// It is about no person, and stays.
fn shown_text() -> ShownText {
    ShownText { country: "FR".into(), language: "fr-FR".into(), sha256: "5".repeat(64) }
}

/// What else is known of the person, beside the contact. The external reference and the shown text stay.
fn details() -> AttestationDetails {
    AttestationDetails {
        title: "Quillmaster".into(),
        evidence_reference: "Vellumroom 7".into(),
        on_behalf_of: "Employee-90210".into(),
        external_reference: "Ledger 5".into(),
        shown_text: Some(shown_text()),
        ..AttestationDetails::default()
    }
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

/// How often a text occurs, as it is or, as PostgreSQL prints bytes, in hexadecimal.
fn count(everything: &str, text: &str) -> usize {
    let text = text.to_lowercase();
    // The first letter may be of either case in the bytes.
    let hex: String = text.bytes().skip(1).map(|byte| format!("{byte:02x}")).collect();
    everything.matches(&text).count() + everything.matches(&hex).count()
}

async fn erase(cluster: &Cluster, email: &str, mails: &std::path::Path) -> anyhow::Result<Erased> {
    let config = EraseContact {
        database: cluster.agreements_database().clone(),
        email: Address(email.into()),
        mail_folder: Some(mails.to_owned()),
    };
    agreement_svc::commands::erase::erase_contact(&config, &Clock::system()).await
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
    CreateCustomerRequest { primary_contact: Some(contact), ..fixtures::new_customer(name, "FR", None) }
}

/// A person in every column that a call writes a person to, and another person beside it.
struct People {
    cluster: Cluster,
    direct: As,
    /// The customer whose primary contact the person is, and that it attested for.
    customer: String,
    created: CreateCustomerRequest,
    /// An attestation by the person, in capital letters, for a customer that had another contact meanwhile.
    attested: CreateAttestationResponse,
    attested_request: CreateAttestationRequest,
    /// The namesake's.
    other: CreateAttestationRequest,
    other_answer: CreateAttestationResponse,
    mails: tempfile::TempDir,
}

async fn with_people(backend: Backend) -> People {
    let (cluster, direct) = actions::start_with_partners(backend).await;
    let inline = InlineAttestation {
        template_id: CUSTOMER_AGREEMENT.into(),
        contact: None,
        agreed_at: Some(timestamp(now())),
        details: None,
    };
    let created =
        CreateCustomerRequest { attestation: Some(inline), ..new_customer("Contoso", contact_to_erase()) };
    let answer = direct.customers().create_customer(created.clone()).await.unwrap().into_inner();
    let customer = answer.customer.unwrap().customer_id;
    actions::withdraw(&direct, &answer.attestation.unwrap().attestation_id).await.unwrap();

    let former =
        direct.customers().create_customer(new_customer("Litware", contact_to_erase())).await.unwrap();
    let former = former.into_inner().customer.unwrap();
    let update = UpdateCustomerRequest {
        request_id: fixtures::request_id(),
        customer_id: former.customer_id.clone(),
        etag: former.etag,
        company_name: former.company_name,
        primary_contact: Some(namesake()),
        external_reference: Some("Ledger 6".into()),
        ..UpdateCustomerRequest::default()
    };
    direct.customers().update_customer(update).await.unwrap();
    let shouted = Contact { email: contact_to_erase().email.to_uppercase(), ..contact_to_erase() };
    let attested_request = CreateAttestationRequest {
        details: Some(details()),
        ..new_attestation_by(&former.customer_id, shouted)
    };
    let attested = direct.attestations().create_attestation(attested_request.clone()).await.unwrap();
    let attested = attested.into_inner();
    // Superseded by the namesake's, which stays.
    let other = new_attestation_by(&former.customer_id, namesake());
    let other_answer = direct.attestations().create_attestation(other.clone()).await.unwrap().into_inner();
    let invitation = CreateInvitationRequest {
        recipient: Some(contact_to_erase()),
        ..fixtures::new_invitation(Some(&former.customer_id), None)
    };
    direct.signatures().create_invitation(invitation).await.unwrap();
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let resold = actions::create_customer(&reseller, "Wingtip", "FR", Some(PROVIDER)).await.unwrap();
    let proposal = ProposeAttestationRequest {
        contact: Some(contact_to_erase()),
        details: Some(details()),
        ..fixtures::new_proposal(PROVIDER, &resold)
    };
    reseller.proposals().propose_attestation(proposal).await.unwrap();
    let mails = tempfile::tempdir().unwrap();
    People { cluster, direct, customer, created, attested, attested_request, other, other_answer, mails }
}

/// The person where a call other than those of an attestation brings it: an order, an approved proposal, and the
/// correction of an attestation.
struct Elsewhere {
    ordered: CreateOrderRequest,
    order_answer: CreateOrderResponse,
    approved: ApproveProposalRequest,
    corrected: WithdrawAttestationRequest,
}

async fn elsewhere(people: &People) -> Elsewhere {
    let People { cluster, direct, .. } = people;
    let ordering = actions::create_customer(direct, "Tailspin", "FR", None).await.unwrap();
    let ordered = CreateOrderRequest {
        attestation: Some(proto::order::InlineAttestation {
            contact: Some(contact_to_erase()),
            details: Some(details()),
            ..fixtures::inline_attestation(now())
        }),
        external_reference: "Ledger 8".into(),
        ..fixtures::new_order(&ordering, None, OFFICE, 1)
    };
    let order_answer = actions::place(direct, ordered.clone()).await.unwrap();
    // So that the history does not grow by the purchase while it is compared.
    actions::until_bought(cluster, &ordering).await.unwrap();

    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let resold = actions::create_customer(&reseller, "Proseware", "FR", Some(PROVIDER)).await.unwrap();
    let proposal = ProposeAttestationRequest {
        contact: Some(contact_to_erase()),
        details: Some(details()),
        ..fixtures::new_proposal(PROVIDER, &resold)
    };
    let proposed = reseller.proposals().propose_attestation(proposal).await.unwrap().into_inner();
    let approved = ApproveProposalRequest {
        request_id: fixtures::request_id(),
        proposal_id: proposed.proposal.unwrap().proposal_id,
        validate_only: false,
    };
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    provider.proposals().approve_proposal(approved.clone()).await.unwrap();

    let mistaken = actions::create_customer(direct, "Lucerne", "FR", None).await.unwrap();
    let mistake = actions::attest_now(direct, &mistaken).await.unwrap();
    let corrected = WithdrawAttestationRequest {
        reason: WithdrawalReason::RecordedInError.into(),
        replacement: Some(Replacement {
            template_id: CUSTOMER_AGREEMENT.into(),
            contact: Some(contact_to_erase()),
            agreed_at: Some(timestamp(now())),
            details: Some(details()),
        }),
        ..fixtures::new_withdrawal(&mistake)
    };
    direct.attestations().withdraw_attestation(corrected.clone()).await.unwrap();
    Elsewhere { ordered, order_answer, approved, corrected }
}

impl Elsewhere {
    /// What agreement-svc answered named the person, and cannot be had again. What order-svc answered did not.
    async fn assert_repeated(self, people: &People) {
        let People { cluster, direct, .. } = people;
        let provider = cluster.as_caller(fixtures::sales(PROVIDER));
        let again = provider.proposals().approve_proposal(self.approved).await.unwrap_err();
        assert_eq!(reason_of(&again), "REQUEST_ID_REUSED");
        let again = direct.attestations().withdraw_attestation(self.corrected).await.unwrap_err();
        assert_eq!(reason_of(&again), "REQUEST_ID_REUSED");
        assert_eq!(actions::place(direct, self.ordered).await.unwrap(), self.order_answer);
    }
}

/// Where the customers of a partner ask: the person, under a telephone number and a page of its own.
fn support() -> SupportContact {
    SupportContact {
        email: contact_to_erase().email,
        phone: "+00 5550 2888".into(),
        url: "https://inkwell-desk.example/help".into(),
    }
}

/// Has customers ask the person, first by e-mail only.
async fn set_support(cluster: &Cluster) {
    let by_mail = actions::set_support(cluster, DIRECT, &support().email).await.unwrap();
    let update = UpdatePartnerRequest {
        request_id: fixtures::request_id(),
        partner_id: by_mail.partner_id,
        etag: by_mail.etag,
        name: by_mail.name,
        validate_only: false,
        support: Some(support()),
    };
    cluster.as_caller(fixtures::operator()).partners().update_partner(update).await.unwrap();
}

impl People {
    /// Copies the mail that the service wrote about an attestation to the folder of this test's mails.
    async fn written(&self, attestation: &CreateAttestationResponse) -> std::path::PathBuf {
        let attestation_id = attestation.attestation.clone().unwrap().attestation_id;
        eventually("the mail is sent", async || {
            let request = GetAttestationRequest { attestation_id: attestation_id.clone() };
            let read = self.direct.attestations().get_attestation(request).await.unwrap().into_inner();
            let notification = read.attestation.unwrap().notification.unwrap();
            (notification.state() == NotificationState::Sent).then_some(())
        })
        .await;
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
async fn an_erased_person_is_gone_and_no_other_person_is(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let people = with_people(backend).await;
    let elsewhere = elsewhere(&people).await;
    let People { cluster, direct, .. } = &people;
    let database = cluster.agreements_database();
    let naming = people.written(&people.attested).await;
    let mail = fs::read_to_string(&naming).unwrap();
    assert!(mail.contains("Brambleton") && mail.contains(&namesake().email), "{mail}");
    let to = "=?utf-8?b?WmVi?=\r\n <Zeb.Quxley@contoso.example>, bob@contoso.example";
    let addressed = people.mail_named(&Uuid::from_u128(1).to_string(), to, "Anna Vance agreed.");
    let unfinished = people.mails.path().join(format!(".{}.unfinished", Uuid::from_u128(3)));
    fs::write(&unfinished, format!("To: {}\r\n", contact_to_erase().email)).unwrap();
    let others = people.written(&people.other_answer).await;
    // After all mails were written: none of them is answered to the person but this one.
    set_support(cluster).await;
    let to = format!("bob@contoso.example\r\nReply-To: {}", contact_to_erase().email);
    let replied = people.mail_named(&Uuid::from_u128(2).to_string(), &to, "Anna Vance agreed.");
    let before = everything(database);
    let Contact { first_name, last_name, email, phone } = contact_to_erase();
    let etag = etag_of(direct, &people.customer).await;
    let kept = verify(cluster, &[]).await.head;

    let erased = erase(cluster, " ZEB.Quxley@Contoso.example ", people.mails.path()).await.unwrap();
    // Answers: two customers, two attestations, of which an order made one, a withdrawal, a correction, an
    // invitation, two proposals, an approval and two updates of a partner. The update of the customer names only
    // the namesake.
    let expected = Erased {
        attestations: 5,
        customers: 1,
        partners: 1,
        invitations: 1,
        proposals: 2,
        answers: 12,
        mails: Some(4),
    };
    assert_eq!(erased, expected, "{backend:?}");

    let after = everything(database);
    let AttestationDetails { title, evidence_reference, on_behalf_of, .. } = details();
    let details = [title, evidence_reference, on_behalf_of];
    let SupportContact { phone: support_phone, url, .. } = support();
    let of_person = [&first_name, &last_name, &phone];
    for gone in of_person.into_iter().chain(&details).chain([&support_phone, &url]) {
        assert!(count(&before, gone) > 0, "{backend:?}: {gone} was never there, so nothing is proven");
        assert_eq!(count(&after, gone), 0, "{backend:?}: {gone}");
    }
    let of_others = count(&after, &format!("anna-{email}"));
    assert!(of_others > 0 && count(&before, &email) > count(&before, &format!("anna-{email}")));
    assert_eq!(count(&after, &email), of_others, "{backend:?}");
    // order-svc keeps nothing of the person of an order's attestation, so there is nothing to erase.
    let orders = everything(cluster.orders_database());
    assert!(count(&orders, "Ledger 8") > 0, "{backend:?}: the order is not there, so nothing is proven");
    for gone in of_person.into_iter().chain(&details).chain([&email]) {
        assert_eq!(count(&orders, gone), 0, "{backend:?}: {gone}");
    }
    assert_eq!((naming.exists(), addressed.exists(), others.exists()), (false, false, true));
    assert!(!unfinished.exists() && !replied.exists());
    assert_eq!(verify(cluster, std::slice::from_ref(&kept)).await.findings, [], "{backend:?}");

    // The records are there, without the person.
    let attestation = people.attested.attestation.clone().unwrap();
    let read = GetAttestationRequest { attestation_id: attestation.attestation_id };
    let read = direct.attestations().get_attestation(read).await.unwrap().into_inner().attestation.unwrap();
    assert_eq!((read.contact, read.agreed_at), (Some(Contact::default()), attestation.agreed_at));
    let kept = AttestationDetails {
        external_reference: "Ledger 5".into(),
        shown_text: Some(shown_text()),
        ..AttestationDetails::default()
    };
    assert_eq!(read.details, Some(kept));
    let kept = ListCustomersRequest { external_reference: "Ledger 6".into(), ..Default::default() };
    assert_eq!(direct.customers().list_customers(kept).await.unwrap().get_ref().customers.len(), 1);
    assert_ne!(etag_of(direct, &people.customer).await, etag, "{backend:?}");

    // Requests that named the person cannot be repeated; others can.
    let again = direct.customers().create_customer(people.created.clone()).await.unwrap_err();
    assert_eq!(reason_of(&again), "REQUEST_ID_REUSED", "{backend:?}");
    let again = direct.attestations().create_attestation(people.attested_request.clone()).await.unwrap_err();
    assert_eq!(reason_of(&again), "REQUEST_ID_REUSED", "{backend:?}");
    let again = direct.attestations().create_attestation(people.other.clone()).await.unwrap();
    assert_eq!(again.into_inner(), people.other_answer, "{backend:?}");
    elsewhere.assert_repeated(&people).await;

    let head = verify(cluster, &[]).await.head;
    let nothing = erase(cluster, &email, people.mails.path()).await.unwrap();
    assert_eq!(nothing, Erased { mails: Some(0), ..Erased::default() });
    assert!(nothing.to_string().contains("no person"), "{nothing}");
    assert_eq!(verify(cluster, &[]).await.head, head, "{backend:?}");
}

async fn etag_of(partner: &As, customer_id: &str) -> String {
    let request = GetCustomerRequest { customer_id: customer_id.into() };
    partner.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap().etag
}

#[apply(each_backend)]
async fn an_interrupted_erasure_is_finished_by_the_next_run(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let people = with_people(backend).await;
    let cluster = &people.cluster;
    let kept = verify(cluster, &[]).await.head;
    // A folder in the place of a mail cannot be deleted as one: the command ends in the middle.
    let obstacle = people.mail(&people.attested, &namesake().email, "");
    fs::remove_file(&obstacle).unwrap();
    fs::create_dir(&obstacle).unwrap();
    let failed = erase(cluster, &contact_to_erase().email, people.mails.path()).await.unwrap_err();
    let failed = format!("{failed:#}");
    assert!(!failed.to_lowercase().contains("quxley"), "{failed}");
    // As long as a mail is left, the records name the person.
    assert_eq!(verify(cluster, &[]).await.head, kept, "{backend:?}");
    assert!(count(&everything(cluster.agreements_database()), "Zebulon") > 0);

    fs::remove_dir(&obstacle).unwrap();
    let naming = people.mail(&people.attested, &namesake().email, "Zebulon Brambleton agreed.");
    let erased = erase(cluster, &contact_to_erase().email, people.mails.path()).await.unwrap();
    assert_eq!((erased.attestations, erased.mails, naming.exists()), (2, Some(1), false), "{backend:?}");

    // A mail that was being written meanwhile, and arrives when the records name no person any more.
    let late = people.mail_named(&Uuid::from_u128(2).to_string(), &contact_to_erase().email, "");
    let erased = erase(cluster, &contact_to_erase().email, people.mails.path()).await.unwrap();
    assert_eq!(erased, Erased { mails: Some(1), ..Erased::default() });
    assert!(!late.exists());
    assert_eq!(verify(cluster, &[]).await.findings, [], "{backend:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_bad_address_or_folder_is_refused_before_any_erasure() {
    tests::needs_own!("databases that it writes to");
    let people = with_people(Backend::Sqlite).await;
    let cluster = &people.cluster;
    let before = verify(cluster, &[]).await.head;
    for email in ["", " ", "@", "quxley", "zeb.quxley@", "%@contoso.example,x@y.example"] {
        let refused = format!("{:#}", erase(cluster, email, people.mails.path()).await.unwrap_err());
        assert!(refused.contains("not an e-mail address") && !refused.contains("quxley"), "{refused}");
    }
    let nowhere = people.mails.path().join("nowhere");
    assert!(erase(cluster, &contact_to_erase().email, &nowhere).await.is_err());
    assert_eq!(verify(cluster, &[]).await.head, before);
}

#[apply(each_backend)]
async fn verify_finds_a_person_restored_after_an_erasure(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    let people = with_people(backend).await;
    let cluster = &people.cluster;
    let attestation = people.attested.attestation.clone().unwrap();
    let row = format!("FROM acceptance WHERE id = '{}'", attestation.attestation_id);
    let columns = ["first_name", "last_name", "email", "phone", "contact_salt"];
    let database = cluster.agreements_database();
    let values: BTreeMap<_, _> = columns
        .map(|column| (column, texts(database, &format!("SELECT {column} AS text {row}")).remove(0)))
        .into();
    erase(cluster, &contact_to_erase().email, people.mails.path()).await.unwrap();
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

/// A person who agreed for very many customers is erased in pieces, and other changes come between them.
#[apply(each_backend)]
async fn a_large_erasure_keeps_no_change_waiting(#[case] backend: Backend) {
    tests::needs_own!("databases that it writes to");
    tests::needs!(backend);
    const ATTESTATIONS: usize = 2050;
    const PIECE: usize = 100;
    let people = with_people(backend).await;
    let People { cluster, direct, attested, mails, .. } = &people;
    let attestation_id = &attested.attestation.as_ref().unwrap().attestation_id;
    let columns = "kind, partner_id, customer_id, agreement_type, template_id, template_version, first_name, \
                   last_name, email, phone, contact_salt, agreed_at, recorded_at, recorded_by, withdrawn_at, revision";
    let copies = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ATTESTATIONS}) \
         INSERT INTO acceptance (id, superseded_at, {columns}) \
         SELECT '00000000-0000-4000-a000-' || (100000000000 + i), recorded_at, {columns} FROM acceptance, n \
         WHERE id = '{attestation_id}'"
    );
    cluster.agreements_sql(&copies).unwrap();

    let (email, (done, is_done)) = (contact_to_erase().email, tokio::sync::oneshot::channel());
    let changes = tokio::spawn({
        let direct = direct.clone();
        async move {
            let (mut is_done, mut revisions, mut n) = (is_done, vec![], 0);
            while is_done.try_recv().is_err() {
                let new = fixtures::new_customer(&format!("Other {n}"), "FR", None);
                let created = direct.customers().create_customer(new).await.unwrap().into_inner();
                revisions.push(created.revision);
                n += 1;
            }
            revisions
        }
    });
    let erased = erase(cluster, &email, mails.path()).await.unwrap();
    done.send(()).unwrap();
    let changes = changes.await.unwrap();
    assert_eq!(erased.attestations, 2 + ATTESTATIONS);
    let events = texts(
        cluster.agreements_database(),
        "SELECT revision || ' ' || body AS text FROM event WHERE body LIKE '%\"CONTACT_ERASED\"%' ORDER BY revision",
    );
    let erasures: Vec<(i64, usize)> = events
        .iter()
        .map(|event| {
            let (revision, body) = event.split_once(' ').unwrap();
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            (revision.parse().unwrap(), body["attestation_ids"].as_array().map_or(0, Vec::len))
        })
        .collect();
    assert!(erasures.iter().all(|(_, rows)| *rows <= PIECE), "{erasures:?}");
    let (first, last) = (erasures[0].0, erasures[erasures.len() - 1].0);
    let between = changes.iter().filter(|revision| (first..last).contains(revision)).count();
    assert!(between > 0, "{first} {last} {changes:?}");
    assert_eq!(count(&everything(cluster.agreements_database()), "Zebulon"), 0);
}
