//! The pages of partners, of a signature and of its withdrawal.

use proto::agreement::{CheckEligibilityRequest, EndRelationshipRequest, WithdrawalReason};
use proto::types::Decision;
use tests::Setup;
use tests::actions;
use tests::fixtures::{self, DIRECT, PROVIDER, RESELLER};

use super::browser::{Browser, filled};
use super::{path_of, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_customer_signs_and_withdraws_in_a_browser() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let browser = Browser::signed_in(&cluster, &customer);
    let decision = async || {
        let check: CheckEligibilityRequest = fixtures::new_check(DIRECT, &customer);
        actions::check(&direct, check).await.unwrap().decision()
    };
    let list = browser.get("/partners").await;
    list.assert_says(200, &["Northwind Direct", "help@northwind.example", "has no current signature"]);
    list.assert_says(200, &["Sign the agreement (Microsoft Customer Agreement, version 2)</a>"]);
    let sign = link_in(&list.body, "sign?template=");

    let page = browser.get(&sign).await;
    page.assert_says(
        200,
        &["US, en-US", "type=\"checkbox\"", "accept it for Contoso (contoso.example), and I am authorized"],
    );
    page.assert_says(
        200,
        &[
            "<dt>Your company</dt><dd>Contoso (contoso.example)</dd>",
            "including any that you start working with later",
        ],
    );
    page.assert_says(
        200,
        &["<p>If you accept, your partners can order Microsoft services for your company."],
    );
    let form = page.form_with("type=\"checkbox\"");
    browser.post(&sign, &form).await.assert_says(422, &["id=\"accepted-error\""]);
    let form = filled(form, &[("accepted", "yes")]);
    let details = [
        "<dt>Agreement</dt><dd>Microsoft Customer Agreement</dd><dt>Version</dt><dd>2</dd>",
        "<dt>Your company</dt><dd>Contoso (contoso.example)</dd><dt>Signed</dt>",
        "<dt>Signature number</dt><dd>",
        "<p><a href=\"partners\">Partners and acceptances</a></p>",
    ];
    for _ in 0..2 {
        let signed = browser.post(&sign, &form).await;
        signed.assert_says(200, &["<h1>Accepted</h1>"]);
        signed.assert_says(200, &details);
    }
    assert_eq!(decision().await, Decision::Allowed);

    let list = browser.get("/").await;
    assert!(!list.body.contains("sign?template="), "{}", list.body);
    let withdraw = link_in(&list.body, "withdraw?signature=");
    let page = browser.get(&withdraw).await;
    page.assert_says(
        200,
        &[
            "<h2 id=\"effect\">What will happen</h2>\n\n<p>These partners can then no longer order for your company:</p>",
            "<ul><li>Northwind Direct</li></ul>\n<p>All subscriptions that they have for your company are cancelled",
            "Accepting again later does not restore them.</p>",
            "<dt>Your company</dt><dd>Contoso (contoso.example)</dd>",
        ],
    );
    let form = page.form_with("id=\"reason\"");
    browser.post(&withdraw, &form).await.assert_says(422, &["aria-describedby=\"reason-error\""]);
    assert_eq!(decision().await, Decision::Allowed);
    let form = filled(form, &[("reason", WithdrawalReason::NoLongerAccepts.as_str_name())]);
    let pages = [
        browser.post(&withdraw, &form).await,
        browser.post(&withdraw, &form).await,
        browser.get(&withdraw).await,
    ];
    for page in &pages {
        page.assert_says(200, &["<h1>Signature withdrawn</h1>", "<dt>Withdrawn on</dt>"]);
        page.assert_says(200, &details);
        assert_eq!(link_in(&page.body, "sign?template="), sign);
    }
    assert_eq!(decision().await, Decision::Blocked);

    // Signed again, the old signature offers no further one.
    let form = browser.get(&sign).await.form_with("type=\"checkbox\"");
    browser.post(&sign, &filled(form, &[("accepted", "yes")])).await.assert_says(200, &["<h1>Accepted</h1>"]);
    let page = browser.get(&withdraw).await;
    page.assert_says(200, &["<h1>Signature withdrawn</h1>"]);
    assert!(!page.body.contains("sign?template="), "{}", page.body);

    // Another company sees nothing of it.
    let stranger = Browser::signed_in(&cluster, &fixtures::TAILSPIN.to_string());
    stranger.get(&withdraw).await.assert_says(404, &["Not found"]);
    stranger.get("/partners").await.assert_says(200, &["has no partner here"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_page_of_a_withdrawal_names_only_partners_without_another_acceptance() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let reseller = cluster.as_caller(fixtures::sales(RESELLER));
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&reseller, "Contoso", "US", Some(PROVIDER)).await.unwrap();
    let admin = cluster.as_caller(fixtures::admin(customer.parse().unwrap()));
    let browser = Browser::signed_in(&cluster, &customer);
    let resold = actions::invite(&reseller, Some(&customer), None).await.unwrap();
    browser.get(&path_of(&resold)).await.assert_says(
        200,
        &["<p>If you accept, Fabrikam Distribution and Adventure Works Reselling can order Microsoft services"],
    );
    let open = actions::invite(&direct, None, None).await.unwrap();
    admin.signatures().accept_invitation(fixtures::acceptance(&open, None)).await.unwrap();
    let list = browser.get("/partners").await;
    list.assert_says(
        200,
        &["Fabrikam Distribution (provider)", "Adventure Works Reselling (reseller)", ">Northwind Direct<"],
    );
    let withdraw = link_in(&list.body, "withdraw?signature=");
    let both = "<li>Fabrikam Distribution (provider), Adventure Works Reselling (reseller)</li>";
    browser.get(&withdraw).await.assert_says(200, &["<li>Northwind Direct</li>", both]);
    actions::attest_now(&provider, &customer).await.unwrap();
    browser.get("/partners").await.assert_says(200, &["Tania Carr"]);
    let page = browser.get(&withdraw).await;
    page.assert_says(200, &["<li>Northwind Direct</li>"]);
    assert!(!page.body.contains("Fabrikam"), "{}", page.body);
    actions::attest_now(&direct, &customer).await.unwrap();
    let page = browser.get(&withdraw).await;
    page.assert_says(200, &["No subscription is cancelled."]);

    // A partner keeps its name after the relationship.
    let end = EndRelationshipRequest {
        request_id: fixtures::request_id(),
        customer_id: customer,
        ..EndRelationshipRequest::default()
    };
    direct.customers().end_relationship(end).await.unwrap();
    let list = browser.get("/partners").await;
    list.assert_says(200, &["<dt>Confirmed by</dt><dd>Northwind Direct</dd>"]);
    assert!(!list.body.contains(&DIRECT.to_string()), "{}", list.body);
}

/// What is said holds whether they have or not, and whichever version they confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_customer_who_cannot_sign_is_not_sent_to_partners_that_have_confirmed() {
    tests::needs_own!("the acceptance page");
    let (cluster, _) = start(Setup::default()).await;
    let provider = cluster.as_caller(fixtures::sales(PROVIDER));
    let customer = actions::create_customer(&provider, "Contoso", "FR", None).await.unwrap();
    actions::report_purchase(&cluster, &customer, PROVIDER, fixtures::now()).await.unwrap();
    let browser = Browser::signed_in(&cluster, &customer);
    for is_confirmed in [false, true] {
        let list = browser.get("/partners").await;
        list.assert_says(200, &["Contactez un partenaire dont la confirmation n’y figure pas."]);
        assert_eq!(list.body.contains("<dt>Confirmé par</dt>"), is_confirmed, "{}", list.body);
        assert!(!list.body.contains("Contrat client Microsoft"), "{}", list.body);
        actions::attest_now(&provider, &customer).await.unwrap();
    }
}

/// The path of the first link of a page that begins so.
fn link_in(body: &str, begins: &str) -> String {
    let (_, rest) =
        body.split_once(&format!("href=\"{begins}")).unwrap_or_else(|| panic!("{begins}: {body}"));
    format!("/{begins}{}", rest.split('"').next().unwrap())
}
