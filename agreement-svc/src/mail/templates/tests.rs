//! Tests of the texts of mails and invitations.

use expect_test::expect;

use super::*;
use crate::rules::notification::testing::{announced, mail, sender};

fn texts() -> MailTemplates {
    MailTemplates::read(None).unwrap()
}

fn text_of(mail: &DueMail) -> Text {
    texts().mail(mail).unwrap()
}

fn written(mail: &DueMail) -> String {
    let (subject, text) = text_of(mail);
    format!("{subject}\n\n{text}")
}

#[test]
fn the_mail_says_who_agreed_to_what_and_whom_to_ask() {
    expect![[r#"
        Northwind Direct confirmed that Contoso accepted the Microsoft Customer Agreement

        Northwind Direct has confirmed to us that the Microsoft Customer Agreement was accepted for Contoso.

        Accepted by: Tania Carr
        Accepted on: 1 January 1970 (UTC)
        Version: 2
        Reference: 00000000-0000-0000-0000-000000000007

        You receive this mail as a contact of Contoso. If anything in it is not right, or if you have a question, please ask Northwind Direct (help@northwind.example).
    "#]].assert_eq(&written(&mail("Northwind Direct", "Contoso", vec![announced(7)])));
}

#[test]
fn one_mail_announces_several_attestations() {
    let other = Announced { first_name: "Ann".into(), version: 3, ..announced(8) };
    expect![[r#"
        Northwind Direct confirmed 2 acceptances by Contoso

        Northwind Direct has confirmed to us that 2 agreements were accepted for Contoso.

        Agreement: Microsoft Customer Agreement
        Accepted by: Tania Carr
        Accepted on: 1 January 1970 (UTC)
        Version: 2
        Reference: 00000000-0000-0000-0000-000000000007

        Agreement: Microsoft Customer Agreement
        Accepted by: Ann Carr
        Accepted on: 1 January 1970 (UTC)
        Version: 3
        Reference: 00000000-0000-0000-0000-000000000008

        You receive this mail as a contact of Contoso. If anything in it is not right, or if you have a question, please ask Northwind Direct (help@northwind.example).
    "#]].assert_eq(&written(&mail("Northwind Direct", "Contoso", vec![announced(7), other])));
}

#[test]
fn the_mail_about_an_erased_person_says_so_and_is_still_sent() {
    let erased = Announced { first_name: String::new(), last_name: String::new(), ..announced(7) };
    expect![[r#"
        Northwind Direct confirmed that Contoso accepted the Microsoft Customer Agreement

        Northwind Direct has confirmed to us that the Microsoft Customer Agreement was accepted for Contoso.

        Accepted by: a person whose data has been erased since
        Accepted on: 1 January 1970 (UTC)
        Version: 2
        Reference: 00000000-0000-0000-0000-000000000007

        You receive this mail as a contact of Contoso. If anything in it is not right, or if you have a question, please ask Northwind Direct (help@northwind.example).
    "#]].assert_eq(&written(&mail("Northwind Direct", "Contoso", vec![erased])));
}

#[test]
fn a_replaced_contact_learns_by_whom_and_not_by_which_address() {
    let changed = |partner_name: Option<&str>| DueMail {
        content: Content::ContactChanged { partner: partner_name.map(sender), attempts: 1 },
        ..mail("", "Contoso", vec![])
    };
    expect![[r#"
        Northwind Direct changed its contact for Contoso

        Northwind Direct has named another contact for Contoso. That contact, and no longer you, will receive the mails about agreements that Northwind Direct confirms for Contoso.

        If this is not right, or if you have a question, please ask Northwind Direct (help@northwind.example).
    "#]].assert_eq(&written(&changed(Some("Northwind Direct"))));
    expect![[r#"
        Contoso changed its contact for agreements

        An administrator of Contoso has named a contact. That contact, and no longer you, will receive the mails about agreements that partners confirm for Contoso.

        If this is not right, or if you have a question, please ask the administrators of Contoso.
    "#]].assert_eq(&written(&changed(None)));
}

/// ATT-9: only who is erased whole is no longer named.
#[test]
fn a_person_with_one_name_is_named() {
    for (first_name, last_name, named) in [
        ("Tania", "", "Accepted by: Tania \n"),
        ("", "Carr", "Accepted by:  Carr\n"),
        ("", "", "Accepted by: a person whose data has been erased since\n"),
    ] {
        let person = Announced { first_name: first_name.into(), last_name: last_name.into(), ..announced(7) };
        let (_, text) = text_of(&mail("Northwind Direct", "Contoso", vec![person]));
        assert!(text.contains(named), "{named} in {text}");
    }
}

/// ATT-9: a name is no longer than names are.
#[test]
fn a_mail_carries_no_message_in_a_name() {
    let advert = "Buy now and win! ".repeat(12);
    let person = Announced { first_name: advert.clone(), last_name: advert.clone(), ..announced(7) };
    let (subject, text) = text_of(&mail(&advert, &advert, vec![person]));
    let longest = text.matches("Buy now").count();
    assert!(subject.chars().count() < 200 && longest <= 8 * 4, "{longest} in {text}");
}

#[test]
fn an_invitation_says_who_asks_for_what_where_and_until_when() {
    let support = Support { phone: "+44 20 7946 0000".into(), ..Support::default() };
    let data = |kind| InvitationData {
        kind,
        partner: "Reselling",
        support: &support,
        agreement: "Agreement",
        url: "https://accept.example/1",
        expires_at: Time::from_timestamp(60, 0).unwrap(),
    };
    for (kind, language, subject, ask) in [
        (
            InvitationKind::Agreement,
            "en",
            "Reselling asks you to accept the Agreement",
            "asks your company to accept",
        ),
        (
            InvitationKind::RelationshipAndAgreement,
            "en",
            "Reselling invites your company",
            "enters this relationship",
        ),
        (
            InvitationKind::Agreement,
            "fr-BE",
            "Reselling vous demande d’accepter le contrat Agreement",
            "demande à",
        ),
        (InvitationKind::Agreement, "de", "Reselling bittet Sie um Zustimmung: Agreement", "zuzustimmen"),
        (InvitationKind::RelationshipAndAgreement, "ja", "Reselling invites your company", "enters"),
    ] {
        let (said, text) = texts().invitation(language, &data(kind)).unwrap();
        assert_eq!(said, subject);
        let whom = "Reselling (+44 20 7946 0000)";
        for part in [ask, whom, "https://accept.example/1", "1970-01-01 00:01 UTC", "Agreement"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

/// CUS-5.
#[test]
fn mails_are_written_in_french_and_german_too() {
    let mail = |language: &str| DueMail {
        language: language.into(),
        ..mail("Northwind Direct", "Contoso", vec![announced(7), announced(8)])
    };
    for (language, subject, date) in [
        ("fr-CA", "Northwind Direct a confirmé 2 acceptations par Contoso", "1 janvier 1970"),
        ("de", "Northwind Direct hat 2 Zustimmungen von Contoso bestätigt", "1. Januar 1970"),
        ("ja", "Northwind Direct confirmed 2 acceptances by Contoso", "1 January 1970"),
    ] {
        let (said, text) = text_of(&mail(language));
        assert!(said == subject && text.contains(date), "{language}: {said}\n{text}");
    }
}

const IN_JULY: &str =
    "Subject: Hi\n\nHello{% for of in attestations if of.month == 7 %}{{ july }}{% endfor %}\n";
const OF_AN_ERASED_PERSON: &str = "Subject: Hi\n\nHello{% if attestations|length == 1 and not attestations[0].person %}{{ whose }}{% endif %}\n";
const WITH_SUPPORT: &str = "Subject: Hi\n\nHello{% if '(' in support %}{{ whom }}{% endif %}\n";

/// CUS-5: a text that cannot be written stops the start.
#[test]
fn a_folder_of_templates_is_whole_or_refused() {
    let with = |name: &str, text: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        for (known, shipped) in FILES {
            std::fs::write(folder.path().join(known), shipped).unwrap();
        }
        match text {
            Some(text) => std::fs::write(folder.path().join(name), text).unwrap(),
            None => std::fs::remove_file(folder.path().join(name)).unwrap(),
        }
        MailTemplates::read(Some(folder.path()))
    };
    let url = "Subject: Hi\n\nAccept at {{ url }}\n";
    assert!(with("invitation.fr.txt", Some(url)).is_ok());
    for (name, text, problem) in [
        ("invitation.fr.txt", None, "invitation.fr.txt"),
        ("invitation.fr.txt", Some("Subject: Hi\n\n{{ link }}\n"), "invitation.fr.txt"),
        ("invitation.fr.txt", Some("Subject: Hi\n\nAccept!\n"), "must contain {{ url }}"),
        ("invitation.fr.txt", Some("{{ url }}\n"), "must begin with `Subject: …`"),
        // What fails now and then only.
        ("attestation.fr.txt", Some(IN_JULY), "attestation.fr.txt"),
        ("attestation.de.txt", Some(OF_AN_ERASED_PERSON), "attestation.de.txt"),
        ("attestation.en.txt", Some(WITH_SUPPORT), "attestation.en.txt"),
        ("contact.en.txt", Some(WITH_SUPPORT), "contact.en.txt"),
        (
            "invitation.en.txt",
            Some("Subject: Hi\n\n{{ url }}{% if '(' in support %}{{ whom }}{% endif %}\n"),
            "en.txt",
        ),
        ("contact.de.txt", Some("Subject: {% if partner %}\n\nHello\n"), "contact.de.txt"),
        ("contact.es.txt", Some("Subject: Hola\n\nHola\n"), "attestation.es.txt"),
        ("letter.en.txt", Some("Subject: Hi\n\nHi\n"), "letter.en.txt is no text of a mail"),
        ("contact.FR.txt", Some("Subject: Hi\n\nHi\n"), "contact.FR.txt is no text of a mail"),
    ] {
        let refused = format!("{:#}", with(name, text).unwrap_err());
        assert!(refused.contains(problem), "{name} {text:?}: {refused}");
    }
}
