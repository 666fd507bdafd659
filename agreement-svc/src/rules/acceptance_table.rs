//! The life of acceptances and invitations, each as one table: every state, every move.

use std::fmt::Write;

use expect_test::expect;
use uuid::Uuid;

use super::attestation::{self, Attestation, Claim, Details, attest};
use super::invitation::{DeclineReason, Invitation, InvitationKind, Settled};
use super::party::{Cloud, Contact, Customer, Relationship};
use super::signature::{self, Signature, sign};
use super::template::{AgreementType, Template, Version};
use super::withdrawal::{Withdrawal, WithdrawalReason, check_withdrawal};
use super::{Refusal, Time};

const CUSTOMER: Uuid = Uuid::from_u128(7);
const OTHER: Uuid = Uuid::from_u128(8);
const PARTNER: Uuid = Uuid::from_u128(9);
const RECORD: Uuid = Uuid::from_u128(10);
const SUCCESSOR: Uuid = Uuid::from_u128(11);

fn at(seconds: i64) -> Time {
    Time::from_timestamp(seconds, 0).unwrap()
}

fn contact(email: &str) -> Contact {
    Contact {
        first_name: "Tania".into(),
        last_name: "Carr".into(),
        email: email.into(),
        phone: String::new(),
    }
}

fn customer(first_purchase_at: Option<Time>) -> Customer {
    Customer {
        id: CUSTOMER,
        company_name: "Contoso".into(),
        domain: "contoso.example".into(),
        country: "FR".into(),
        given_language: String::new(),
        cloud: Cloud::Public,
        primary_contact: contact("t@contoso.example"),
        contact_salt: String::new(),
        created_at: at(0),
        first_purchase_at,
        acceptance_revision: 1,
        revision: 1,
    }
}

/// Three versions, in force from 100, 200 and 300.
fn template() -> Template {
    let version = |(number, effective): (u32, i64)| Version {
        number,
        effective_from: at(effective),
        reaccept_by: Some(at(effective)),
        published_at: at(0),
        document_count: 1,
    };
    Template {
        id: Uuid::from_u128(1),
        name: "Agreement".into(),
        agreement_type: AgreementType::MicrosoftCustomerAgreement,
        retired_at: None,
        revision: 1,
        versions: [(1, 100), (2, 200), (3, 300)].map(version).to_vec(),
    }
}

/// Where a record stands: the four states an acceptance can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Absent,
    Current,
    Superseded,
    Withdrawn,
}

const STATES: [State; 4] = [State::Absent, State::Current, State::Superseded, State::Withdrawn];

impl State {
    fn name(self) -> String {
        format!("{self:?}")
    }

    fn superseded_at(self) -> Option<Time> {
        (self == Self::Superseded).then(|| at(250))
    }

    fn withdrawn(self) -> Option<Withdrawal> {
        let withdrawal = Withdrawal { at: at(250), reason: WithdrawalReason::Other, by: OTHER };
        (self == Self::Withdrawn).then_some(withdrawal)
    }
}

fn attestation(state: State) -> Attestation {
    Attestation {
        id: RECORD,
        partner_id: PARTNER,
        customer_id: CUSTOMER,
        agreement_type: AgreementType::MicrosoftCustomerAgreement,
        template_id: Uuid::from_u128(1),
        template_version: 2,
        contact: contact("t@contoso.example"),
        contact_salt: String::new(),
        agreed_at: at(220),
        recorded_at: at(220),
        recorded_by: OTHER,
        recorded_client: String::new(),
        details: Details::default(),
        proposed_by: None,
        superseded_at: state.superseded_at(),
        withdrawn: state.withdrawn(),
        revision: 1,
    }
}

fn signed(state: State) -> Signature {
    Signature {
        id: RECORD,
        customer_id: CUSTOMER,
        agreement_type: AgreementType::MicrosoftCustomerAgreement,
        template_id: Uuid::from_u128(1),
        template_version: 2,
        signed_at: at(220),
        signed_by: OTHER,
        superseded_at: state.superseded_at(),
        withdrawn: state.withdrawn(),
        revision: 1,
        shown_text: None,
    }
}

fn text_of(refusal: &Refusal) -> String {
    let text = format!("{refusal:?}");
    format!("refused: {}", text.split([' ', '{']).next().unwrap_or_default())
}

fn withdraw(state: State) -> String {
    if state == State::Absent {
        return "-".into();
    }
    match check_withdrawal(RECORD, state.superseded_at(), state.withdrawn(), Some(SUCCESSOR)) {
        Ok(true) => "withdrawn".into(),
        Ok(false) => "as it was".into(),
        Err(refusal) => text_of(&refusal),
    }
}

#[test]
fn every_move_from_every_state_of_an_attestation() {
    let (customer, template) = (customer(None), template());
    let mut table = String::new();
    for state in STATES {
        let known = attestation(state);
        // What stands under the unique key of partner, customer and type; the record of version 2.
        let current = (state == State::Current).then_some((&known, at(200)));
        for (said, agreed, email) in [
            ("the same again", 220, "T@contoso.example"),
            ("another date", 250, "t@contoso.example"),
            ("another person", 220, "x@contoso.example"),
            ("version 1", 150, "t@contoso.example"),
            ("version 3", 350, "t@contoso.example"),
        ] {
            let facts = attestation::Facts {
                customer: &customer,
                template: &template,
                live_template_id: None,
                current,
            };
            let claim = Claim { contact: contact(email), agreed_at: at(agreed), details: Details::default() };
            let outcome = match attest(&facts, &claim, at(400)) {
                Ok(accepted) => match accepted.supersedes {
                    Some(_) => format!("new of version {}, supersedes it", accepted.template_version),
                    None => format!("new of version {}", accepted.template_version),
                },
                Err(refusal) => text_of(&refusal),
            };
            writeln!(table, "{:<11}attest {said:<15} {outcome}", state.name()).unwrap();
        }
        writeln!(table, "{:<11}{:<22} {}", state.name(), "withdraw", withdraw(state)).unwrap();
    }
    expect![[r#"
        Absent     attest the same again  new of version 2
        Absent     attest another date    new of version 2
        Absent     attest another person  new of version 2
        Absent     attest version 1       new of version 1
        Absent     attest version 3       new of version 3
        Absent     withdraw               -
        Current    attest the same again  refused: AlreadyAttested
        Current    attest another date    new of version 2, supersedes it
        Current    attest another person  new of version 2, supersedes it
        Current    attest version 1       refused: OlderThanCurrent
        Current    attest version 3       new of version 3, supersedes it
        Current    withdraw               withdrawn
        Superseded attest the same again  new of version 2
        Superseded attest another date    new of version 2
        Superseded attest another person  new of version 2
        Superseded attest version 1       new of version 1
        Superseded attest version 3       new of version 3
        Superseded withdraw               refused: AcceptanceSuperseded
        Withdrawn  attest the same again  new of version 2
        Withdrawn  attest another date    new of version 2
        Withdrawn  attest another person  new of version 2
        Withdrawn  attest version 1       new of version 1
        Withdrawn  attest version 3       new of version 3
        Withdrawn  withdraw               as it was
    "#]]
    .assert_eq(&table);
}

#[test]
fn every_move_from_every_state_of_a_signature() {
    let template = template();
    let mut table = String::new();
    for bought in [None, Some(at(50)), Some(at(230))] {
        let customer = customer(bought);
        for state in STATES {
            let known = signed(state);
            let facts = signature::Facts {
                customer: &customer,
                template: &template,
                live_template_id: None,
                current: (state == State::Current).then_some(&known),
                first_signed_at: (state != State::Absent).then(|| at(220)),
            };
            for (shown, now) in [(2, 250), (2, 350), (3, 350)] {
                let outcome = match sign(&facts, shown, at(now)) {
                    Ok(signature::Signing::Already) => "as it was".into(),
                    Ok(signature::Signing::New { supersedes: Some(_) }) => "new, supersedes it".to_owned(),
                    Ok(signature::Signing::New { supersedes: None }) => "new".into(),
                    Err(refusal) => text_of(&refusal),
                };
                let bought = bought.map_or("never".into(), |time| format!("at {}", time.timestamp()));
                writeln!(table, "bought {bought:<7}{:<11}sign {shown} at {now}  {outcome}", state.name())
                    .unwrap();
            }
        }
    }
    for state in STATES {
        writeln!(table, "{:<11}withdraw  {}", state.name(), withdraw(state)).unwrap();
    }
    expect![[r#"
        bought never  Absent     sign 2 at 250  new
        bought never  Absent     sign 2 at 350  refused: VersionChanged
        bought never  Absent     sign 3 at 350  new
        bought never  Current    sign 2 at 250  as it was
        bought never  Current    sign 2 at 350  refused: VersionChanged
        bought never  Current    sign 3 at 350  new, supersedes it
        bought never  Superseded sign 2 at 250  new
        bought never  Superseded sign 2 at 350  refused: VersionChanged
        bought never  Superseded sign 3 at 350  new
        bought never  Withdrawn  sign 2 at 250  new
        bought never  Withdrawn  sign 2 at 350  refused: VersionChanged
        bought never  Withdrawn  sign 3 at 350  new
        bought at 50  Absent     sign 2 at 250  refused: ContactPartner
        bought at 50  Absent     sign 2 at 350  refused: VersionChanged
        bought at 50  Absent     sign 3 at 350  refused: ContactPartner
        bought at 50  Current    sign 2 at 250  as it was
        bought at 50  Current    sign 2 at 350  refused: VersionChanged
        bought at 50  Current    sign 3 at 350  refused: ContactPartner
        bought at 50  Superseded sign 2 at 250  refused: ContactPartner
        bought at 50  Superseded sign 2 at 350  refused: VersionChanged
        bought at 50  Superseded sign 3 at 350  refused: ContactPartner
        bought at 50  Withdrawn  sign 2 at 250  refused: ContactPartner
        bought at 50  Withdrawn  sign 2 at 350  refused: VersionChanged
        bought at 50  Withdrawn  sign 3 at 350  refused: ContactPartner
        bought at 230 Absent     sign 2 at 250  refused: ContactPartner
        bought at 230 Absent     sign 2 at 350  refused: VersionChanged
        bought at 230 Absent     sign 3 at 350  refused: ContactPartner
        bought at 230 Current    sign 2 at 250  as it was
        bought at 230 Current    sign 2 at 350  refused: VersionChanged
        bought at 230 Current    sign 3 at 350  new, supersedes it
        bought at 230 Superseded sign 2 at 250  new
        bought at 230 Superseded sign 2 at 350  refused: VersionChanged
        bought at 230 Superseded sign 3 at 350  new
        bought at 230 Withdrawn  sign 2 at 250  new
        bought at 230 Withdrawn  sign 2 at 350  refused: VersionChanged
        bought at 230 Withdrawn  sign 3 at 350  new
        Absent     withdraw  -
        Current    withdraw  withdrawn
        Superseded withdraw  refused: AcceptanceSuperseded
        Withdrawn  withdraw  as it was
    "#]]
    .assert_eq(&table);
}

/// INV-2.
#[test]
fn every_move_from_every_state_of_an_invitation() {
    let mut table = String::new();
    for (kind, invited) in
        [(InvitationKind::Agreement, Some(CUSTOMER)), (InvitationKind::RelationshipAndAgreement, None)]
    {
        for (before, settled, expires) in [
            ("PENDING", None, 100),
            ("EXPIRED", None, 50),
            ("ACCEPTED", Some(Settled::Accepted { at: at(40) }), 100),
            ("REVOKED", Some(Settled::Revoked { at: at(40) }), 100),
            ("DECLINED", Some(Settled::Declined { at: at(40), reason: DeclineReason::Terms }), 100),
        ] {
            let accepted = matches!(settled, Some(Settled::Accepted { .. }));
            let invitation = Invitation {
                id: RECORD,
                kind,
                relationship: Relationship { payer_id: PARTNER, reseller_id: None },
                customer_id: invited.or(accepted.then_some(CUSTOMER)),
                template_id: Uuid::from_u128(1),
                language: String::new(),
                recipient: None,
                contact_salt: String::new(),
                created_at: at(0),
                created_by: OTHER,
                expires_at: at(expires),
                settled,
                revision: 1,
            };
            assert_eq!(invitation.state(at(50)).into_str(), before);
            let mut tell = |name: &str, run: &dyn Fn(&mut Invitation) -> Result<bool, Refusal>| {
                let mut invitation = invitation.clone();
                let outcome = match run(&mut invitation) {
                    Ok(true) => invitation.state(at(50)).into_str().to_owned(),
                    Ok(false) => "as it was".into(),
                    Err(refusal) => text_of(&refusal),
                };
                writeln!(table, "{:<28}{before:<10}{name:<19}{outcome}", kind.into_str()).unwrap();
            };
            tell("accept", &|invitation| invitation.accept(CUSTOMER, at(50)));
            tell("accept as another", &|invitation| invitation.accept(OTHER, at(50)));
            tell("revoke", &|invitation| invitation.revoke(at(50)));
            tell("decline", &|invitation| invitation.decline(CUSTOMER, DeclineReason::Other, at(50)));
            tell("decline as another", &|invitation| invitation.decline(OTHER, DeclineReason::Other, at(50)));
        }
    }
    expect![[r#"
        AGREEMENT                   PENDING   accept             ACCEPTED
        AGREEMENT                   PENDING   accept as another  refused: NotFound
        AGREEMENT                   PENDING   revoke             REVOKED
        AGREEMENT                   PENDING   decline            DECLINED
        AGREEMENT                   PENDING   decline as another refused: NotFound
        AGREEMENT                   EXPIRED   accept             refused: InvitationNotPending
        AGREEMENT                   EXPIRED   accept as another  refused: InvitationNotPending
        AGREEMENT                   EXPIRED   revoke             refused: InvitationNotPending
        AGREEMENT                   EXPIRED   decline            refused: InvitationNotPending
        AGREEMENT                   EXPIRED   decline as another refused: InvitationNotPending
        AGREEMENT                   ACCEPTED  accept             as it was
        AGREEMENT                   ACCEPTED  accept as another  refused: InvitationNotPending
        AGREEMENT                   ACCEPTED  revoke             refused: InvitationNotPending
        AGREEMENT                   ACCEPTED  decline            refused: InvitationNotPending
        AGREEMENT                   ACCEPTED  decline as another refused: InvitationNotPending
        AGREEMENT                   REVOKED   accept             refused: InvitationNotPending
        AGREEMENT                   REVOKED   accept as another  refused: InvitationNotPending
        AGREEMENT                   REVOKED   revoke             as it was
        AGREEMENT                   REVOKED   decline            refused: InvitationNotPending
        AGREEMENT                   REVOKED   decline as another refused: InvitationNotPending
        AGREEMENT                   DECLINED  accept             refused: InvitationNotPending
        AGREEMENT                   DECLINED  accept as another  refused: InvitationNotPending
        AGREEMENT                   DECLINED  revoke             refused: InvitationNotPending
        AGREEMENT                   DECLINED  decline            as it was
        AGREEMENT                   DECLINED  decline as another refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  PENDING   accept             ACCEPTED
        RELATIONSHIP_AND_AGREEMENT  PENDING   accept as another  ACCEPTED
        RELATIONSHIP_AND_AGREEMENT  PENDING   revoke             REVOKED
        RELATIONSHIP_AND_AGREEMENT  PENDING   decline            DECLINED
        RELATIONSHIP_AND_AGREEMENT  PENDING   decline as another DECLINED
        RELATIONSHIP_AND_AGREEMENT  EXPIRED   accept             refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  EXPIRED   accept as another  refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  EXPIRED   revoke             refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  EXPIRED   decline            refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  EXPIRED   decline as another refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  ACCEPTED  accept             as it was
        RELATIONSHIP_AND_AGREEMENT  ACCEPTED  accept as another  refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  ACCEPTED  revoke             refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  ACCEPTED  decline            refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  ACCEPTED  decline as another refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  REVOKED   accept             refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  REVOKED   accept as another  refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  REVOKED   revoke             as it was
        RELATIONSHIP_AND_AGREEMENT  REVOKED   decline            refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  REVOKED   decline as another refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  DECLINED  accept             refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  DECLINED  accept as another  refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  DECLINED  revoke             refused: InvitationNotPending
        RELATIONSHIP_AND_AGREEMENT  DECLINED  decline            as it was
        RELATIONSHIP_AND_AGREEMENT  DECLINED  decline as another as it was
    "#]]
    .assert_eq(&table);
}
