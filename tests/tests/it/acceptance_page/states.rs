//! The page of an invitation in each state, and the answers to it.

use chrono::TimeDelta;
use proto::agreement::{
    CreateInvitationRequest, DeclineReason, GetCustomerRequest, GetDirectSignStatusRequest, InvitationState,
    RegisterPartnerRequest, RevokeInvitationRequest,
};
use proto::types::ShownText;
use tests::Setup;
use tests::actions::{self, invite};
use tests::fixtures::{self, CUSTOMER_AGREEMENT, TAILSPIN};
use uuid::Uuid;

use super::browser::{Browser, filled};
use super::{clock, path_of, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_administrator_accepts_in_a_browser() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso Lyon", "FR", None).await.unwrap();
    let invitation = invite(&direct, Some(&customer), None).await.unwrap();
    let browser = Browser::signed_in(&cluster, &customer);
    let path = path_of(&invitation);

    let page = browser.get(&path).await;
    page.assert_says(
        200,
        &["<html lang=\"fr\">", "Northwind Direct", "type=\"checkbox\"", "FR, fr-FR", " (UTC)"],
    );
    let at = |text: &str| page.body.find(text).unwrap_or_else(|| panic!("{text}: {}", page.body));
    assert!(at("help@northwind.example") < at("type=\"checkbox\""));
    assert!(at("Contoso Lyon (contoso-lyon.example)") < at("type=\"checkbox\""));
    assert!(at("Northwind Direct pourra commander des services Microsoft") < at("type=\"checkbox\""));
    assert!(at("Vous pourrez retirer la signature plus tard") < at("type=\"checkbox\""));
    assert!(at("La signature vaut pour tous vos partenaires, y compris") < at("type=\"checkbox\""));
    page.assert_says(
        200,
        &["j’y suis habilité", "target=\"_blank\" rel=\"noopener noreferrer\"", "nouvel onglet"],
    );
    assert!(!page.body.contains("devient aussi partenaire") && !page.body.contains("<script"));

    // Without the tick there is no acceptance, and the error stands at the box.
    let form = page.form("accept");
    let refused = browser.post(&path, &form).await;
    refused.assert_says(
        422,
        &["aria-describedby=\"accepted-error\"", "id=\"accepted-error\"", "<title>Erreur\u{a0}:"],
    );

    let before = cluster.head().await.unwrap();
    let form = filled(form, &[("accepted", "yes")]);
    let accepted = browser.post(&path, &form).await;
    accepted.assert_says(
        200,
        &[
            "<h1>Accepté</h1>",
            "Northwind Direct",
            "<dt>Contrat</dt><dd>Microsoft Customer Agreement</dd><dt>Version</dt><dd>2</dd>",
            "<dt>Votre entreprise</dt><dd>Contoso Lyon (contoso-lyon.example)</dd><dt>Signé le</dt>",
            "<dt>Numéro de signature</dt><dd>",
        ],
    );
    let after = cluster.head().await.unwrap();
    assert!(after > before);
    // The same form again gets the first answer and changes nothing.
    let again = browser.post(&path, &form).await;
    assert_eq!((again.status, again.body), (200, accepted.body));
    assert_eq!(cluster.head().await.unwrap(), after);
    browser.get(&path).await.assert_says(
        200,
        &[
            "<h1>Déjà accepté</h1>",
            "Il n’y a rien à faire.",
            "<dt>Contrat</dt><dd>Microsoft Customer Agreement</dd>",
            "<dt>Votre entreprise</dt><dd>Contoso Lyon (contoso-lyon.example)</dd>",
        ],
    );

    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let status = GetDirectSignStatusRequest { customer_id: customer };
    let signed =
        admin.signatures().get_direct_sign_status(status).await.unwrap().into_inner().signature.unwrap();
    let shown = ShownText { country: "FR".into(), language: "fr-FR".into(), ..ShownText::default() };
    assert_eq!(signed.shown_text.map(|text| ShownText { sha256: String::new(), ..text }), Some(shown));
    assert_eq!(signed.signed_by, Uuid::from_u128(7 << 64 | 7).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_language_is_that_of_the_browser_else_of_the_customer_else_english() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso Lyon", "FR", None).await.unwrap();
    let path = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let known = Browser::signed_in(&cluster, &customer);
    let stranger = Browser::signed_in(&cluster, &TAILSPIN.to_string());
    for (browser, accepted, expected) in [
        (&known, "de-CH, fr;q=0.5", "de"),
        (&known, "en-GB", "en"),
        (&known, "ja, *;q=0.5", "fr"),
        (&known, "", "fr"),
        (&stranger, "fr", "fr"),
        (&stranger, "ja", "en"),
    ] {
        let browser = browser.clone().with("accept-language", accepted);
        for path in [&*path, "/partners"] {
            let page = browser.get(path).await;
            assert!(page.body.contains(&format!("<html lang=\"{expected}\">")), "{accepted}: {}", page.body);
        }
    }
    // The text of the agreement stays that for the customer.
    known
        .with("accept-language", "de")
        .get(&path)
        .await
        .assert_says(200, &["<html lang=\"de\">", "FR, fr-FR"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_company_gives_its_particulars_before_it_accepts() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let path = path_of(&invite(&direct, None, None).await.unwrap());
    let browser =
        Browser::signed_in(&cluster, &TAILSPIN.to_string()).with("accept-language", "de-AT, en;q=0.5");
    let page = browser.get(&path).await;
    page.assert_says(200, &["<html lang=\"de\">", "name=\"company_name\"", "Northwind Direct"]);
    page.assert_says(
        200,
        &[
            "Vereinbarung: Microsoft Customer Agreement. Wenn Sie zustimmen, wird Northwind Direct auch Partner Ihres",
        ],
    );
    assert!(!page.body.contains("type=\"checkbox\""));

    // The button says that a company is given: each field that must be filled is marked.
    let empty = browser.post(&path, &page.form("company")).await;
    empty.assert_says(
        422,
        &["id=\"company_name-error\"", "id=\"domain-error\"", "id=\"company_country-error\""],
    );
    empty.assert_says(422, &["id=\"first_name-error\"", "id=\"last_name-error\"", "id=\"email-error\""]);
    assert!(!empty.body.contains("id=\"phone-error\""));
    assert_eq!(empty.body.matches(">Diese Angabe fehlt.</p>").count(), 6, "{}", empty.body);
    let bad = [
        ("company_name", "x\u{7}"),
        ("domain", "10.0.0.1"),
        ("company_country", "Österreich"),
        ("first_name", "x\u{7}"),
        ("last_name", "x\u{7}"),
        ("email", "tania"),
        ("phone", "none"),
    ];
    let bad = browser.post(&path, &filled(empty.form("company"), &bad)).await;
    bad.assert_says(
        422,
        &[
            "\"company_name-error\">Der Name ist zu lang oder hat",
            "\"domain-error\">Das ist keine Internet-Domain",
            "\"company_country-error\">Das ist kein Code eines Landes. Geben Sie zwei Buchstaben an",
            "\"first_name-error\">Der Vorname ist",
            "\"last_name-error\">Der Nachname ist",
            "\"email-error\">Das ist keine E-Mail-Adresse.",
            "\"phone-error\">Das ist keine Telefonnummer.",
        ],
    );
    actions::create_customer(&direct, "Contoso", "DE", None).await.unwrap();
    let taken = filled(empty.form("company"), &particulars("contoso.example", "de"));
    browser.post(&path, &taken).await.assert_says(
        422,
        &["\"domain-error\">Diese Domain gehört einem anderen Kunden.</p>", "value=\"DE\""],
    );
    let particulars = particulars("not a domain", "de");
    let wrong = browser.post(&path, &filled(page.form("company"), &particulars)).await;
    wrong.assert_says(
        422,
        &["aria-describedby=\"domain-error domain-hint\"", "id=\"domain-error\"", "not a domain"],
    );
    assert!(!wrong.body.contains("email-error") && !wrong.body.contains("<b>Toys"));
    let nameless =
        filled(wrong.form("company"), &[("domain", "tailspin.example"), ("company_country", "de")]);
    let nameless = browser.post(&path, &nameless).await;
    nameless.assert_says(422, &["id=\"company_name-error\"", "value=\"tailspin.example\""]);
    assert!(!nameless.body.contains("id=\"domain-error\""));

    let right = filled(
        particulars.map(|(name, value)| (name.into(), value.into())).into(),
        &[("domain", "tailspin.example")],
    );
    let right: Vec<_> = wrong.form("company").into_iter().chain(right).collect();
    let agreement = browser.post(&path, &right).await;
    agreement.assert_says(200, &["type=\"checkbox\"", "DE, de-DE", "value=\"edit\""]);
    agreement.assert_says(
        200,
        &[
            "<dt>Domain</dt><dd>tailspin.example</dd>",
            "<dd>tania.carr@tailspin.example</dd>",
            "<dt>Land</dt><dd>DE</dd>",
            "<p>Wenn Sie zustimmen, wird Northwind Direct auch Partner Ihres Unternehmens.</p>",
            "Toys&#60;/b&#62; (tailspin.example) zu, und ich bin dazu berechtigt.</label>",
        ],
    );
    let edit = browser.post(&path, &filled(agreement.form("accept"), &[("action", "edit")])).await;
    edit.assert_says(200, &["value=\"tailspin.example\"", "name=\"company_name\""]);

    let accepted = browser.post(&path, &filled(agreement.form("accept"), &[("accepted", "yes")])).await;
    accepted.assert_says(200, &["<h1>Zugestimmt</h1>", "Toys&#60;/b&#62; (tailspin.example)</dd>"]);
    let admin = cluster.as_caller(fixtures::admin(TAILSPIN));
    let request = GetCustomerRequest { customer_id: TAILSPIN.to_string() };
    let customer = admin.customers().get_customer(request).await.unwrap().into_inner().customer.unwrap();
    assert_eq!(customer.company_name, "Tailspin & <b>Toys</b>");
    assert_eq!((&*customer.country, &*customer.language), ("DE", "de"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_text_for_another_country_or_language_is_named_as_such() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    // A new company, which has only said where it is, reads what an existing customer reads.
    let path = path_of(&invite(&direct, None, None).await.unwrap());
    let browser = Browser::signed_in(&cluster, &TAILSPIN.to_string());
    for (accepted, country, notice) in [
        (
            "de",
            "AT",
            "Für Ihr Land (AT) gibt es keinen Text in der Sprache Ihres Unternehmens (de). Sie sehen den Text für US, en-US.",
        ),
        (
            "fr",
            "DE",
            "Il n’y a pas de texte pour votre pays (DE) dans la langue de votre entreprise (fr). Vous voyez le texte pour DE, en-US.",
        ),
        (
            "en",
            "IE",
            "There is no text for your country (IE) in the language of your company (en). You are shown the text for US, en-US.",
        ),
        ("en", "GB", ""),
    ] {
        let browser = browser.clone().with("accept-language", accepted);
        let form = browser.get(&path).await.form("company");
        let page = browser.post(&path, &filled(form, &particulars("tailspin.example", country))).await;
        page.assert_says(200, &["type=\"checkbox\"", notice]);
        assert_eq!(page.body.contains(&format!("({country})")), !notice.is_empty(), "{}", page.body);
    }

    let customer = actions::create_customer(&direct, "Contoso Wien", "AT", None).await.unwrap();
    let path = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let page = Browser::signed_in(&cluster, &customer).with("accept-language", "en").get(&path).await;
    page.assert_says(
        200,
        &["in the language of your company (de). You are shown the text for US, en-US.", "<dt>Text</dt>"],
    );
}

/// The particulars of a company, as its form carries them.
fn particulars<'a>(domain: &'a str, country: &'a str) -> [(&'a str, &'a str); 6] {
    [
        ("company_name", "Tailspin & <b>Toys</b>"),
        ("domain", domain),
        ("company_country", country),
        ("first_name", "Tania"),
        ("last_name", "Carr"),
        ("email", "tania.carr@tailspin.example"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_customer_declines_in_a_browser() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let invitation = invite(&direct, Some(&customer), None).await.unwrap();
    let (browser, path) = (Browser::signed_in(&cluster, &customer), path_of(&invitation));
    let form = browser.get(&path).await.form("decline");
    let refused = browser.post(&path, &filled(form.clone(), &[("reason", "")])).await;
    refused.assert_says(422, &["aria-describedby=\"reason-error\""]);
    let form = filled(form, &[("reason", DeclineReason::Terms.as_str_name())]);
    let declined = browser.post(&path, &form).await;
    declined.assert_says(200, &["<h1>Declined</h1>"]);
    assert_eq!(browser.post(&path, &form).await.body, declined.body);
    browser.get(&path).await.assert_says(200, &["<h1>Declined</h1>"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_state_of_an_invitation_has_its_page() {
    tests::needs_own!("the acceptance page, and a clock");
    let clock = clock();
    let (cluster, direct) = start(Setup { clock: clock.clone(), ..Setup::default() }).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let browser = Browser::signed_in(&cluster, &customer);
    let [revoked, expires] = [
        invite(&direct, Some(&customer), None).await.unwrap(),
        invite(&direct, Some(&customer), None).await.unwrap(),
    ];
    let (page, expired_page) = (browser.get(&path_of(&revoked)).await, browser.get(&path_of(&expires)).await);
    page.assert_says(200, &["<h1>Invitation to accept an agreement</h1>"]);

    // Between the page and the answer the partner revoked one, and the other expired.
    let request = RevokeInvitationRequest {
        request_id: fixtures::request_id(),
        invitation_id: revoked.invitation_id.clone(),
        validate_only: false,
    };
    direct.signatures().revoke_invitation(request).await.unwrap();
    clock.set(clock.now() + TimeDelta::days(40));
    for (invitation, page, title) in [
        (&revoked, &page, "<h1>Invitation revoked</h1>"),
        (&expires, &expired_page, "<h1>Invitation expired</h1>"),
    ] {
        let path = path_of(invitation);
        browser.get(&path).await.assert_says(410, &[title]);
        let accept = filled(page.form("accept"), &[("accepted", "yes")]);
        browser.post(&path, &accept).await.assert_says(410, &[title]);
        let decline = filled(page.form("decline"), &[("reason", DeclineReason::Other.as_str_name())]);
        browser.post(&path, &decline).await.assert_says(410, &[title]);
    }

    // Unknown links, and another company's, say the same.
    let live = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let stranger = Browser::signed_in(&cluster, &Uuid::from_u128(0x4000_8000_0000_0bad_0000).to_string());
    let unknown = Uuid::from_u128(0x4000_8000_0000_0bad_0001);
    for (browser, path) in [
        (&stranger, live.clone()),
        (&browser, live.clone() + "x"),
        (&browser, live.split("&token").next().unwrap().to_owned()),
        (&browser, format!("/accept?invitation={unknown}&token=x")),
        (&browser, "/accept?invitation=x&token=x".into()),
        (&browser, "/accept".into()),
    ] {
        browser.get(&path).await.assert_says(404, &["<h1>Unknown invitation</h1>"]);
    }
    let form = browser.get(&live).await.form("accept");
    stranger
        .post("/accept", &filled(form, &[("accepted", "yes")]))
        .await
        .assert_says(404, &["Unknown invitation"]);
    for path in ["/elsewhere", "/a/folder/elsewhere"] {
        browser
            .get(path)
            .await
            .assert_says(404, &["<h1>Not found</h1>", "href=\"/partners\"", "href=\"/style.css\""]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_acceptance_whose_signature_was_withdrawn_is_not_claimed() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let path = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let browser = Browser::signed_in(&cluster, &customer);
    // Two administrators open the page. One accepts and withdraws before the other presses the button.
    let [one, other] = [browser.get(&path).await.form("accept"), browser.get(&path).await.form("accept")];
    browser
        .post(&path, &filled(one, &[("accepted", "yes")]))
        .await
        .assert_says(200, &["can now order for you"]);
    browser.get(&path).await.assert_says(200, &["<h1>Already accepted</h1>", "There is nothing to do."]);
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    actions::withdraw_signature(&admin, &customer).await.unwrap();
    for page in [browser.post(&path, &filled(other, &[("accepted", "yes")])).await, browser.get(&path).await]
    {
        page.assert_says(200, &["<h1>Already accepted</h1>", "It currently has no valid signature."]);
        assert!(!page.body.contains("can now order"), "{}", page.body);
        assert!(!page.body.contains("nothing to do"), "{}", page.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_version_that_changed_meanwhile_is_shown_before_it_is_accepted() {
    tests::needs_own!("the acceptance page, and the versions");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let path = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let browser = Browser::signed_in(&cluster, &customer);
    let form = browser.get(&path).await.form("accept");
    let operator = cluster.as_caller(fixtures::operator());
    actions::publish(&operator, fixtures::new_version(CUSTOMER_AGREEMENT)).await.unwrap();
    let changed = browser.post(&path, &filled(form, &[("accepted", "yes")])).await;
    changed.assert_says(409, &["role=\"alert\"", "name=\"template_version\" value=\"3\""]);
    let accepted = browser.post(&path, &filled(changed.form("accept"), &[("accepted", "yes")])).await;
    accepted.assert_says(200, &["<h1>Accepted</h1>"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_customer_that_cannot_sign_is_sent_to_its_partner() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    let invitation = invite(&direct, Some(&customer), None).await.unwrap();
    actions::report_purchase(&cluster, &customer, fixtures::DIRECT, fixtures::now()).await.unwrap();
    let page = Browser::signed_in(&cluster, &customer).get(&path_of(&invitation)).await;
    page.assert_says(
        200,
        &["Contactez un partenaire dont la confirmation", "help@northwind.example", "value=\"decline\""],
    );
    assert!(!page.body.contains("type=\"checkbox\""));
    // An offered relationship can still be accepted.
    let open = path_of(&invite(&direct, None, None).await.unwrap());
    let browser = Browser::signed_in(&cluster, &customer);
    let page = browser.get(&open).await;
    assert!(!page.body.contains("commander des services"), "{}", page.body);
    page.assert_says(200, &["type=\"checkbox\"", "Je confirme au nom de Contoso (contoso.example) que"]);
    let related = browser.post(&open, &filled(page.form("accept"), &[("accepted", "yes")])).await;
    related.assert_says(200, &["<h1>Accepté</h1>", "Elle n’a pas signé"]);
    let again = browser.get(&open).await;
    again.assert_says(200, &["<h1>Déjà accepté</h1>", "Contactez un partenaire dont la confirmation"]);
    assert!(!again.body.contains("rien à faire"), "{}", again.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_others_wrote_is_escaped() {
    tests::needs_own!("the acceptance page");
    const HOSTILE: &str = "<script>alert(1)</script>\"'&";
    let (cluster, _) = start(Setup::default()).await;
    let partner = Uuid::from_u128(0x4000_8000_0000_0bad_0002);
    let register = RegisterPartnerRequest {
        request_id: fixtures::request_id(),
        partner_id: partner.to_string(),
        name: HOSTILE.into(),
        kind: proto::agreement::PartnerKind::DirectBill.into(),
        cloud: proto::types::Cloud::Public.into(),
        ..RegisterPartnerRequest::default()
    };
    cluster.as_caller(fixtures::operator()).partners().register_partner(register).await.unwrap();
    let hostile = cluster.as_caller(fixtures::sales(partner));
    let named = proto::agreement::CreateCustomerRequest {
        company_name: HOSTILE.into(),
        ..fixtures::new_customer("Contoso", "US", None)
    };
    let created = hostile.customers().create_customer(named).await.unwrap().into_inner();
    let customer = created.customer.unwrap().customer_id;
    let invitation = hostile
        .signatures()
        .create_invitation(CreateInvitationRequest { ..fixtures::new_invitation(Some(&customer), None) })
        .await
        .unwrap()
        .into_inner()
        .invitation
        .unwrap();
    assert_eq!(invitation.state(), InvitationState::Pending);
    let browser = Browser::signed_in(&cluster, &customer);
    let hostile_link = "/accept?invitation=%22%3E%3Cscript%3E&token=%22%3E%3Cscript%3E";
    for (path, has_name) in [(&*path_of(&invitation), true), ("/partners", true), (hostile_link, false)] {
        let page = browser.get(path).await;
        assert!(!page.body.contains("<script"), "{path}: {}", page.body);
        assert_eq!(page.body.contains("&#60;script&#62;alert(1)"), has_name, "{path}: {}", page.body);
    }
    let unknown = Browser::new(&cluster).get(hostile_link).await;
    assert!(unknown.status == 401 && !unknown.body.contains("<script"), "{}", unknown.body);
}
