//! The pages in Chromium, with the keyboard alone, in each language: every page is accessible, and fits narrow and wide
//! windows in light and dark colours.
//!
//! `TEST_CHROMEDRIVER` names the driver and `TEST_AXE` the file `axe.min.js`. With `TEST_SCREENSHOTS`, a folder, the pages
//! are written there as pictures.

use std::path::Path;
use std::{env, fs};

use proto::agreement::RevokeInvitationRequest;
use rstest::rstest;
use serde_json::{Value, json};
use tests::Setup;
use tests::actions::{self, invite};
use tests::fixtures;
use uuid::Uuid;

use super::start;
use super::webdriver::{Chromium, DOWN, ENTER, SPACE, TAB};

/// What the pages of a language are called.
struct Headings {
    language: &'static str,
    country: &'static str,
    sign_in: &'static str,
    invitation: &'static str,
    accepted: &'static str,
    already: &'static str,
    partners: &'static str,
    withdraw: &'static str,
    withdrawn: &'static str,
    sign: &'static str,
    declined: &'static str,
    revoked: &'static str,
    unknown: &'static str,
}

const ENGLISH: Headings = Headings {
    language: "en",
    country: "US",
    sign_in: "Sign in for development",
    invitation: "Invitation to accept an agreement",
    accepted: "Accepted",
    already: "Already accepted",
    partners: "Partners and acceptances",
    withdraw: "Withdraw the signature",
    withdrawn: "Signature withdrawn",
    sign: "Sign the agreement",
    declined: "Declined",
    revoked: "Invitation revoked",
    unknown: "Unknown invitation",
};
const FRENCH: Headings = Headings {
    language: "fr",
    country: "FR",
    sign_in: "Connexion pour le développement",
    invitation: "Invitation à accepter un contrat",
    accepted: "Accepté",
    already: "Déjà accepté",
    partners: "Partenaires et acceptations",
    withdraw: "Retirer la signature",
    withdrawn: "Signature retirée",
    sign: "Signer le contrat",
    declined: "Refusé",
    revoked: "Invitation révoquée",
    unknown: "Invitation inconnue",
};
const GERMAN: Headings = Headings {
    language: "de",
    country: "DE",
    sign_in: "Anmeldung für die Entwicklung",
    invitation: "Einladung, einer Vereinbarung zuzustimmen",
    accepted: "Zugestimmt",
    already: "Bereits zugestimmt",
    partners: "Partner und Zustimmungen",
    withdraw: "Unterschrift zurückziehen",
    withdrawn: "Unterschrift zurückgezogen",
    sign: "Vereinbarung unterzeichnen",
    declined: "Abgelehnt",
    revoked: "Einladung widerrufen",
    unknown: "Unbekannte Einladung",
};

/// Driver and axe, where this run has them.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
fn tools() -> Option<(String, String)> {
    let named = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
    let (Some(driver), Some(axe)) = (named("TEST_CHROMEDRIVER"), named("TEST_AXE")) else {
        assert!(env::var_os("CI").is_none(), "TEST_CHROMEDRIVER and TEST_AXE must be set in CI");
        eprintln!("SKIPPED without a browser: TEST_CHROMEDRIVER and TEST_AXE are not set");
        return None;
    };
    Some((driver, fs::read_to_string(axe).unwrap()))
}

/// A page in the browser, as it is checked.
struct Check<'a> {
    chromium: &'a Chromium,
    axe: &'a str,
    language: &'static str,
}

impl Check<'_> {
    /// Waits for a page, and checks it in both widths and colours.
    async fn page(&self, name: &str, heading: &str) {
        let Self { chromium, language, .. } = self;
        chromium.wait_for(heading).await;
        for (width, colours) in [(1280, "light"), (320, "dark")] {
            let size = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
            chromium.chromium("Emulation.setDeviceMetricsOverride", size).await;
            let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": colours }] });
            chromium.chromium("Emulation.setEmulatedMedia", scheme).await;
            let script = "const page = document.documentElement;
                return [page.lang, document.querySelectorAll('h1').length, page.scrollWidth <= page.clientWidth, innerWidth]";
            let found = chromium.script(script, &[]).await;
            assert_eq!(found, json!([language, 1, true, width]), "{name} at {width}");
            self.screenshot(&format!("{name}-{language}-{width}")).await;
            chromium.script(&format!("if (!window.axe) {{ {} }}", self.axe), &[]).await;
            let script = "const done = arguments[arguments.length - 1];
                axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa'] })
                    .then(found => done(found.violations.map(one => [one.id, one.nodes.map(node => node.html)])),
                          failed => done(String(failed)));";
            assert_eq!(
                chromium.script_with_callback(script).await,
                json!([]),
                "{name} at {width}, {colours}"
            );
        }
    }

    async fn screenshot(&self, name: &str) {
        let Ok(folder) = env::var("TEST_SCREENSHOTS") else { return };
        let height = self.chromium.script("return document.documentElement.scrollHeight", &[]).await;
        let width = self.chromium.script("return document.documentElement.clientWidth", &[]).await;
        let size = |height: Value| json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.chromium.chromium("Emulation.setDeviceMetricsOverride", size(height)).await;
        fs::write(Path::new(&folder).join(format!("{name}.png")), self.chromium.screenshot().await).unwrap();
        self.chromium.chromium("Emulation.setDeviceMetricsOverride", size(json!(800))).await;
    }
}

#[rstest]
#[case::english(ENGLISH)]
#[case::french(FRENCH)]
#[case::german(GERMAN)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_administrator_needs_only_a_keyboard(#[case] headings: Headings) {
    tests::needs_own!("the acceptance page");
    let Some((driver, axe)) = tools() else { return };
    let (_cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", headings.country, None).await.unwrap();
    let accepts = invite(&direct, Some(&customer), None).await.unwrap();
    let declines = invite(&direct, Some(&customer), None).await.unwrap();
    let revoked = invite(&direct, Some(&customer), None).await.unwrap();
    let request = RevokeInvitationRequest {
        request_id: fixtures::request_id(),
        invitation_id: revoked.invitation_id.clone(),
        validate_only: false,
    };
    direct.signatures().revoke_invitation(request).await.unwrap();
    let chromium = Chromium::start(&driver, headings.language).await;
    let check = Check { chromium: &chromium, axe: &axe, language: headings.language };

    chromium.open(&accepts.acceptance_url).await;
    check.page("sign-in", headings.sign_in).await;
    chromium.tab_to("#tenant_id").await;
    chromium.press(&customer).await;
    chromium.press(TAB).await;
    chromium.press(&Uuid::from_u128(7).to_string()).await;
    chromium.press(ENTER).await;

    check.page("invitation", headings.invitation).await;
    // The browser does not send the form without the tick; if it did, the service would say so at the box.
    chromium.script("document.querySelector('#accepted').required = false", &[]).await;
    chromium.tab_to("button[value=accept]").await;
    chromium.press(ENTER).await;
    chromium.wait_for_element("#accepted-error").await;
    check.page("invitation-error", headings.invitation).await;
    chromium.tab_to("#accepted").await;
    chromium.press(SPACE).await;
    chromium.tab_to("button[value=accept]").await;
    chromium.press(ENTER).await;
    check.page("accepted", headings.accepted).await;
    chromium.open(&accepts.acceptance_url).await;
    check.page("already-accepted", headings.already).await;

    chromium.tab_to("main a[href=partners]").await;
    chromium.press(ENTER).await;
    check.page("partners", headings.partners).await;
    chromium.tab_to("a[href^=withdraw]").await;
    chromium.press(ENTER).await;
    check.page("withdraw", headings.withdraw).await;
    chromium.tab_to("#reason").await;
    chromium.press(DOWN).await;
    chromium.tab_to("button.danger").await;
    chromium.press(ENTER).await;
    check.page("withdrawn", headings.withdrawn).await;

    chromium.tab_to("nav a").await;
    chromium.press(ENTER).await;
    chromium.wait_for(headings.partners).await;
    chromium.tab_to("a[href^=sign]").await;
    chromium.press(ENTER).await;
    check.page("sign", headings.sign).await;
    chromium.tab_to("#accepted").await;
    chromium.press(SPACE).await;
    chromium.press(TAB).await;
    chromium.press(ENTER).await;
    check.page("signed", headings.accepted).await;

    chromium.open(&declines.acceptance_url).await;
    chromium.wait_for(headings.invitation).await;
    chromium.tab_to("#reason").await;
    chromium.press(DOWN).await;
    chromium.tab_to("button[value=decline]").await;
    chromium.press(ENTER).await;
    check.page("declined", headings.declined).await;

    chromium.open(&revoked.acceptance_url).await;
    check.page("revoked", headings.revoked).await;
    chromium.open(&format!("{}x", declines.acceptance_url)).await;
    check.page("unknown", headings.unknown).await;
}

#[rstest]
#[case::english(ENGLISH)]
#[case::french(FRENCH)]
#[case::german(GERMAN)]
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_company_enters_its_particulars_by_keyboard(#[case] headings: Headings) {
    tests::needs_own!("the acceptance page");
    let Some((driver, axe)) = tools() else { return };
    let (cluster, direct) = start(Setup::default()).await;
    let invitation = invite(&direct, None, None).await.unwrap();
    let page = cluster.page_address().port();
    let chromium = Chromium::start(&driver, headings.language).await;
    let check = Check { chromium: &chromium, axe: &axe, language: headings.language };
    let (tenant, user) = (fixtures::TAILSPIN, Uuid::from_u128(7));
    chromium
        .open(&format!("http://localhost:{page}/development-sign-in?tenant_id={tenant}&user_id={user}"))
        .await;
    check.page("no-partners", headings.partners).await;
    chromium.open(&invitation.acceptance_url).await;
    check.page("company", headings.invitation).await;
    chromium.tab_to("#company_name").await;
    let entries = ["Tailspin Toys", "no domain", "at", "Tania", "Carr", "tania.carr@tailspin.example"];
    for entry in entries {
        chromium.press(entry).await;
        chromium.press(TAB).await;
    }
    chromium.press(ENTER).await;
    chromium.wait_for_element("#domain-error").await;
    check.page("company-error", headings.invitation).await;
    // The Tab key selects what is in a field.
    chromium.tab_to("#domain").await;
    chromium.press("tailspin.example").await;
    chromium.press(ENTER).await;
    chromium.wait_for_element("#accepted").await;
    check.page("company-agreement", headings.invitation).await;
    chromium.tab_to("#accepted").await;
    chromium.press(SPACE).await;
    chromium.tab_to("button[value=accept]").await;
    chromium.press(ENTER).await;
    chromium.wait_for(headings.accepted).await;
}
