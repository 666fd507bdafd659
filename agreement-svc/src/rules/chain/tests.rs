use expect_test::expect;

use super::super::withdrawal::WithdrawalReason;
use super::*;

const PARTNER: Uuid = Uuid::from_u128(1);
const CUSTOMER: Uuid = Uuid::from_u128(2);
const TEMPLATE: Uuid = Uuid::from_u128(3);
const USER: Uuid = Uuid::from_u128(4);
const PROPOSED_BY: ProposedBy = ProposedBy {
    proposal_id: Uuid::from_u128(5),
    partner_id: Uuid::from_u128(6),
    user_id: Uuid::from_u128(7),
};
/// An attestation that is superseded and erased, and its successor, which is withdrawn.
const FIRST: Uuid = Uuid::from_u128(0xa1);
const SECOND: Uuid = Uuid::from_u128(0xa2);
/// The same of signatures.
const SIGNED: Uuid = Uuid::from_u128(0xb1);
const SIGNED_AGAIN: Uuid = Uuid::from_u128(0xb2);
/// What no event records.
const UNKNOWN: Uuid = Uuid::from_u128(99);

/// Each event is recorded at the second of its number.
fn at(seconds: i64) -> Time {
    Time::from_timestamp(seconds, 0).unwrap()
}

fn shown() -> ShownText {
    ShownText { country: "FR".into(), language: "fr-FR".into(), sha256: "5a".into() }
}

fn attested(attestation_id: Uuid, template_version: u32, supersedes: Option<Uuid>) -> Event {
    Event::Attested {
        attestation_id,
        partner_id: PARTNER,
        customer_id: CUSTOMER,
        agreement_type: AgreementType::MicrosoftCustomerAgreement,
        template_id: TEMPLATE,
        template_version,
        contact_commitment: format!("of {template_version}"),
        agreed_at: at(-1),
        evidence_sha256: Some("e3".into()),
        client: Some("shop".into()),
        proposed_by: Some(PROPOSED_BY),
        shown_text: Some(shown()),
        supersedes,
        by: USER,
    }
}

fn signed(signature_id: Uuid, template_version: u32, supersedes: Option<Uuid>) -> Event {
    Event::Signed {
        signature_id,
        customer_id: CUSTOMER,
        agreement_type: AgreementType::MicrosoftCloudAgreement,
        template_id: TEMPLATE,
        template_version,
        shown_text: Some(shown()),
        supersedes,
        by: USER,
    }
}

fn withdrawn(attestation_id: Uuid) -> Event {
    Event::AttestationWithdrawn {
        attestation_id,
        partner_id: PARTNER,
        customer_id: CUSTOMER,
        reason: WithdrawalReason::NotEntitled,
        uncovered_partner_ids: vec![],
        by: USER,
    }
}

fn erased(attestation_ids: &[Uuid]) -> Event {
    Event::ContactErased {
        customer_id: Some(CUSTOMER),
        attestation_ids: attestation_ids.to_vec(),
        invitation_ids: vec![],
        proposal_ids: vec![],
        was_primary_contact: false,
    }
}

/// The events, from revision 1 on, and what following each of them finds.
fn followed(events: &[Event]) -> (Acceptances, Vec<Finding>) {
    let mut acceptances = Acceptances::default();
    let follow = |(revision, event)| acceptances.follow(revision, at(revision), event);
    let findings = (1..).zip(events).flat_map(follow).collect();
    (acceptances, findings)
}

fn history() -> Acceptances {
    let (acceptances, findings) = followed(&[
        attested(FIRST, 1, None),
        attested(SECOND, 2, Some(FIRST)),
        withdrawn(SECOND),
        erased(&[FIRST]),
        signed(SIGNED, 1, None),
        signed(SIGNED_AGAIN, 2, Some(SIGNED)),
        Event::SignatureWithdrawn {
            signature_id: SIGNED_AGAIN,
            customer_id: CUSTOMER,
            reason: WithdrawalReason::Other,
            uncovered_partner_ids: vec![],
            by: USER,
        },
    ]);
    assert_eq!(findings, []);
    acceptances
}

fn contact(commitment: &str) -> StoredContact {
    StoredContact::Of { commitment: commitment.into() }
}

/// The row of an acceptance of the history, as the service writes it.
fn stored(id: Uuid) -> Stored {
    let attestation = Columns {
        kind: "ATTESTATION".into(),
        partner_id: PARTNER.to_string(),
        customer_id: CUSTOMER.to_string(),
        agreement_type: "MICROSOFT_CUSTOMER_AGREEMENT".into(),
        template_id: TEMPLATE.to_string(),
        template_version: 1,
        agreed_at: at(-1),
        recorded_at: at(1),
        recorded_by: USER.to_string(),
        recorded_client: "shop".into(),
        evidence_sha256: "e3".into(),
        proposal_id: PROPOSED_BY.proposal_id.to_string(),
        proposed_by_partner: PROPOSED_BY.partner_id.to_string(),
        proposed_by_user: PROPOSED_BY.user_id.to_string(),
        shown_country: "FR".into(),
        shown_language: "fr-FR".into(),
        shown_sha256: "5a".into(),
        superseded_at: Some(at(2)),
        withdrawn_at: None,
        withdrawal_reason: String::new(),
        withdrawn_by: String::new(),
        revision: 1,
    };
    let signature = Columns {
        kind: "SIGNATURE".into(),
        partner_id: String::new(),
        agreement_type: "MICROSOFT_CLOUD_AGREEMENT".into(),
        agreed_at: at(5),
        recorded_at: at(5),
        recorded_client: String::new(),
        evidence_sha256: String::new(),
        proposal_id: String::new(),
        proposed_by_partner: String::new(),
        proposed_by_user: String::new(),
        superseded_at: Some(at(6)),
        revision: 5,
        ..attestation.clone()
    };
    let (columns, contact) = match id {
        FIRST => (attestation, StoredContact::Empty),
        SECOND => {
            let columns = Columns {
                template_version: 2,
                recorded_at: at(2),
                superseded_at: None,
                withdrawn_at: Some(at(3)),
                withdrawal_reason: "NOT_ENTITLED".into(),
                withdrawn_by: USER.to_string(),
                revision: 2,
                ..attestation
            };
            (columns, contact("of 2"))
        }
        SIGNED => (signature, StoredContact::Empty),
        SIGNED_AGAIN => {
            let columns = Columns {
                template_version: 2,
                agreed_at: at(6),
                recorded_at: at(6),
                superseded_at: None,
                withdrawn_at: Some(at(7)),
                withdrawal_reason: "OTHER".into(),
                withdrawn_by: USER.to_string(),
                revision: 6,
                ..signature
            };
            (columns, StoredContact::Empty)
        }
        other => panic!("the history has no {other}"),
    };
    Stored { id: id.to_string(), columns, contact }
}

/// How the row of an acceptance differs.
fn differences(row: Stored) -> Vec<Differs> {
    let id = row.id.clone();
    let differs = |finding| match finding {
        Finding::Acceptance { id: of, how } if of == id => how,
        other => panic!("{other:?}"),
    };
    history().compare(row).into_iter().map(differs).collect()
}

/// I7.
#[test]
fn the_records_that_the_service_wrote_agree_with_the_history() {
    let mut acceptances = history();
    for id in [FIRST, SECOND, SIGNED, SIGNED_AGAIN] {
        assert_eq!(acceptances.compare(stored(id)), [], "{id}");
    }
    assert_eq!(acceptances.gone().collect::<Vec<_>>(), []);
}

/// I7: each column, with the event that says what it should be.
#[test]
fn a_changed_column_is_named_with_the_event_that_it_contradicts() {
    type Change = fn(&mut Columns);
    #[rustfmt::skip]
    let changes: [(&str, Change, [i64; 2]); 22] = [
        // column, change -> event, of the superseded attestation and of the withdrawn one
        ("kind",              |row| row.kind = "SIGNATURE".into(),                           [1, 2]),
        ("partner_id",        |row| row.partner_id = UNKNOWN.to_string(),                    [1, 2]),
        ("customer_id",       |row| row.customer_id = UNKNOWN.to_string(),                   [1, 2]),
        ("agreement_type",    |row| row.agreement_type = "MICROSOFT_CLOUD_AGREEMENT".into(), [1, 2]),
        ("template_id",       |row| row.template_id = UNKNOWN.to_string(),                   [1, 2]),
        ("template_version",  |row| row.template_version = -1,                               [1, 2]),
        ("agreed_at",         |row| row.agreed_at = at(-2),                                  [1, 2]),
        ("recorded_at",       |row| row.recorded_at = at(9),                                 [1, 2]),
        ("recorded_by",       |row| row.recorded_by = UNKNOWN.to_string(),                   [1, 2]),
        ("recorded_client",   |row| row.recorded_client = String::new(),                     [1, 2]),
        ("evidence_sha256",   |row| row.evidence_sha256 = String::new(),                     [1, 2]),
        ("proposal_id",         |row| row.proposal_id = UNKNOWN.to_string(),                 [1, 2]),
        ("proposed_by_partner", |row| row.proposed_by_partner = String::new(),               [1, 2]),
        ("proposed_by_user",    |row| row.proposed_by_user = UNKNOWN.to_string(),            [1, 2]),
        ("shown_country",     |row| row.shown_country = "US".into(),                         [1, 2]),
        ("shown_language",    |row| row.shown_language = String::new(),                      [1, 2]),
        ("shown_sha256",      |row| row.shown_sha256 = String::new(),                        [1, 2]),
        ("revision",          |row| row.revision = 9,                                        [1, 2]),
        ("superseded_at",     |row| row.superseded_at = Some(at(9)),                         [2, 2]),
        ("withdrawn_at",      |row| row.withdrawn_at = Some(at(9)),                          [1, 3]),
        ("withdrawal_reason", |row| row.withdrawal_reason = "OTHER".into(),                  [1, 3]),
        ("withdrawn_by",      |row| row.withdrawn_by = UNKNOWN.to_string(),                  [1, 3]),
    ];
    for (column, change, events) in changes {
        for (id, event) in [FIRST, SECOND].into_iter().zip(events) {
            let mut row = stored(id);
            change(&mut row.columns);
            assert_eq!(differences(row), [Differs::Column(column, event)], "{id}");
        }
    }
    let mut several = stored(SIGNED);
    several.columns.partner_id = PARTNER.to_string();
    several.columns.shown_sha256 = "e3".into();
    several.columns.superseded_at = None;
    let columns = [("partner_id", 5), ("shown_sha256", 5), ("superseded_at", 6)];
    assert_eq!(differences(several), columns.map(|(column, event)| Differs::Column(column, event)));
}

/// I7.
#[test]
fn a_contact_is_what_was_committed_to_until_an_event_erases_it() {
    for (id, contact, expected) in [
        (SECOND, contact("of 2"), None),
        (SECOND, contact("of 1"), Some(Differs::Contact(2))),
        (SECOND, StoredContact::Empty, Some(Differs::ErasedByNobody)),
        (FIRST, StoredContact::Empty, None),
        (FIRST, contact("of 1"), Some(Differs::NotErased(4))),
        (SIGNED, StoredContact::Empty, None),
        (SIGNED, contact("of 1"), Some(Differs::PersonOnSignature)),
    ] {
        let row = Stored { contact: contact.clone(), ..stored(id) };
        assert_eq!(differences(row), Vec::from_iter(expected), "{id} {contact:?}");
    }
}

#[test]
fn a_record_stands_once_under_its_id_as_the_service_writes_it() {
    let mut acceptances = history();
    let found = |id: &str, how| vec![Finding::Acceptance { id: id.into(), how }];
    assert_eq!(acceptances.compare(stored(FIRST)), []);
    assert_eq!(acceptances.compare(stored(FIRST)), found(&FIRST.to_string(), Differs::Twice));
    for id in
        [UNKNOWN.to_string(), SECOND.to_string().to_uppercase(), SECOND.simple().to_string(), "x".into()]
    {
        let row = Stored { id: id.clone(), ..stored(SECOND) };
        assert_eq!(acceptances.compare(row), found(&id, Differs::Unrecorded), "{id}");
    }
}

#[test]
fn what_was_recorded_and_has_no_row_is_gone() {
    let mut acceptances = history();
    acceptances.compare(stored(SECOND));
    // What cannot be read is there.
    let unreadable = acceptances.unreadable(SIGNED.to_string());
    assert_eq!(unreadable, Finding::Acceptance { id: SIGNED.to_string(), how: Differs::Unreadable });
    let unknown = acceptances.unreadable("x".into());
    assert_eq!(unknown, Finding::Acceptance { id: "x".into(), how: Differs::Unreadable });
    let gone = |id: Uuid, event| Finding::Acceptance { id: id.to_string(), how: Differs::Gone(event) };
    assert_eq!(acceptances.gone().collect::<Vec<_>>(), [gone(FIRST, 1), gone(SIGNED_AGAIN, 6)]);
}

#[test]
fn an_event_about_an_acceptance_that_none_before_it_records_is_found() {
    let (_, findings) = followed(&[
        attested(FIRST, 1, Some(UNKNOWN)),
        withdrawn(UNKNOWN),
        erased(&[FIRST, UNKNOWN, SECOND]),
        signed(SIGNED, 1, Some(SECOND)),
        Event::PartnerUpdated { partner_id: PARTNER, name: String::new(), support_changed: true, by: USER },
    ]);
    let unknown = |revision, acceptance_id| Finding::NoSuchAcceptance { revision, acceptance_id };
    assert_eq!(
        findings,
        [
            unknown(1, UNKNOWN),
            unknown(2, UNKNOWN),
            unknown(3, UNKNOWN),
            unknown(3, SECOND),
            unknown(4, SECOND)
        ]
    );
}

#[test]
fn a_head_is_read_as_it_is_written() {
    let digest = "0123456789abcdef".repeat(4);
    for (revision, hash) in [(0, ""), (1, digest.as_str()), (i64::MAX, digest.as_str())] {
        let head = Head { revision, hash: hash.into() };
        assert_eq!(head.to_string().parse(), Ok(head.clone()), "{head}");
    }
    for text in [
        "".into(),
        "0".into(),
        "1:".into(),
        ":".into(),
        "-1:".into(),
        format!("0:{digest}"),
        format!("-1:{digest}"),
        format!("1:{}", &digest[1..]),
        format!("1:{digest}0"),
        format!("1:{}", digest.to_uppercase()),
        format!("1:{}g", &digest[1..]),
        format!("1:{digest}:"),
        format!("9223372036854775808:{digest}"),
        format!("x:{digest}"),
    ] {
        let refused = Err("must be REVISION:HASH, as the command printed it".to_owned());
        assert_eq!(text.parse::<Head>(), refused, "{text}");
    }
}

#[test]
fn each_finding_is_a_line_that_names_records_and_never_their_content() {
    let head = |revision| Head { revision, hash: "abc".into() };
    let broken = |how| Finding::Broken { revision: 7, how };
    let acceptance = |how| Finding::Acceptance { id: FIRST.to_string(), how };
    let findings = vec![
        broken(Broken::Missing),
        broken(Broken::Misnumbered),
        broken(Broken::Unreadable),
        broken(Broken::Hash),
        broken(Broken::Body),
        broken(Broken::Column("customer_id")),
        Finding::Keyless { table: "acceptance", rows: 2 },
        Finding::NoCounter,
        Finding::Counter { counted: 9, last: 8 },
        Finding::Counter { counted: 7, last: 8 },
        Finding::CounterHash { last: 8 },
        Finding::Head { kept: head(9), last: 8 },
        Finding::Head { kept: head(8), last: 8 },
        Finding::Head { kept: head(7), last: 8 },
        Finding::Lost { kept: head(9), last: 8, restored: 12 },
        Finding::NoSuchAcceptance { revision: 7, acceptance_id: FIRST },
        acceptance(Differs::Column("agreed_at", 5)),
        acceptance(Differs::Contact(5)),
        acceptance(Differs::NotErased(5)),
        acceptance(Differs::ErasedByNobody),
        acceptance(Differs::PersonOnSignature),
        acceptance(Differs::Unreadable),
        acceptance(Differs::Unrecorded),
        acceptance(Differs::Gone(5)),
        acceptance(Differs::Twice),
        // A row that another program wrote does not end the line.
        Finding::Acceptance { id: "a\nb".into(), how: Differs::Unrecorded },
    ];
    expect![[r#"
        event 7 is missing; later events cannot be verified; the records are compared with them all the same
        event 7 is not where its number belongs; later events cannot be verified; the records are compared with them all the same
        event 7 cannot be read; later events cannot be verified; the records are compared with them all the same
        event 7 was altered or moved, or the one before it was: the hash does not fit; later events cannot be verified; the records are compared with them all the same
        event 7 has a body that is no event; later events cannot be verified; the records are compared with them all the same
        event 7 has another customer_id in its column than in its body; later events cannot be verified; the records are compared with them all the same
        2 rows of table acceptance have no proper key
        the revision row is gone
        the revision row counts 9 events, but the last one is 8: the end was cut off
        the revision row counts 7 events, but the last one is 8
        the revision row has another hash than event 8, the last one
        the history ends with event 8 before the head 9:abc: the end was cut off
        the history does not have the head 8:abc: event 8 or one before it was replaced
        the history does not have the head 7:abc: event 7 or one before it was replaced
        the head 9:abc was lost by a restore: the copy ended with event 8, and event 12 says so
        event 7 is about acceptance 00000000-0000-0000-0000-0000000000a1, which no event before it records
        acceptance 00000000-0000-0000-0000-0000000000a1: agreed_at does not agree with event 5
        acceptance 00000000-0000-0000-0000-0000000000a1: the contact or its salt does not agree with the commitment in event 5
        acceptance 00000000-0000-0000-0000-0000000000a1: the contact is there, but event 5 erased it
        acceptance 00000000-0000-0000-0000-0000000000a1: the contact is empty, but no event erased it
        acceptance 00000000-0000-0000-0000-0000000000a1: the signature has a contact, which none has
        acceptance 00000000-0000-0000-0000-0000000000a1: it cannot be read
        acceptance 00000000-0000-0000-0000-0000000000a1: no event records it
        acceptance 00000000-0000-0000-0000-0000000000a1: event 5 records it, but there is no such row
        acceptance 00000000-0000-0000-0000-0000000000a1: there is more than one such row
        acceptance "a\nb": no event records it
        head 8:abc"#]].assert_eq(&Verified { findings, head: head(8) }.to_string());
}
