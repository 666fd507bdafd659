//! The page with signed tokens and TLS, as behind a proxy.

use chassis::auth::Caller;
use tests::Setup;
use tests::actions::{self, invite};
use tests::fixtures::{self, DIRECT};

use super::browser::{Browser, filled};
use super::{path_of, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_a_global_administrator_of_the_customer_is_let_in() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup { secured: true, ..Setup::default() }).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let path = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let admin = fixtures::admin(customer.parse().unwrap());
    let without_role = Caller { roles: vec![], ..admin.clone() };
    let unknown = Browser::new(&cluster);
    let with = |token: &str| unknown.clone().with("authorization", format!("Bearer {token}"));
    let by = |caller: &Caller| with(&cluster.token(caller));

    for (browser, status, title) in [
        (by(&admin), 200, "<h1>Invitation to accept an agreement</h1>"),
        (by(&without_role), 403, "<h1>Not allowed</h1>"),
        (by(&fixtures::sales(DIRECT)), 403, "<h1>Not allowed</h1>"),
        (by(&fixtures::operator()), 403, "<h1>Not allowed</h1>"),
        (by(&fixtures::admin(fixtures::TAILSPIN)), 404, "<h1>Unknown invitation</h1>"),
        (unknown.clone(), 401, "<h1>Not signed in</h1>"),
        (with("a.b.c"), 401, "<h1>Not signed in</h1>"),
        (by(&admin).with("authorization", format!("Bearer {}", cluster.token(&admin))), 401, "Not signed in"),
        // What counts without tokens counts for nothing here.
        (Browser::signed_in(&cluster, &customer), 401, "<h1>Not signed in</h1>"),
        (
            unknown
                .clone()
                .with("x-tenant-kind", "CUSTOMER")
                .with("x-tenant-id", customer.clone())
                .with("x-user-id", customer.clone())
                .with("x-roles", "GLOBAL_ADMIN"),
            401,
            "<h1>Not signed in</h1>",
        ),
    ] {
        browser.get(&path).await.assert_says(status, &[title]);
    }
    // Who is not signed in reaches the sign-in by the same address; an administrator without the role learns whom to ask.
    unknown.get(&path).await.assert_says(401, &["<a href=\"\">Sign in again</a>"]);
    let refused = by(&without_role).get(&path).await;
    refused.assert_says(403, &["If you are one, ask your partner for help"]);
    assert!(!refused.body.contains("<a href=\"\">"), "{}", refused.body);
    let sign_in = format!("/development-sign-in?tenant_id={customer}&user_id={customer}&next=/partners");
    let absent = by(&admin).get(&sign_in).await;
    absent.assert_says(404, &["<h1>Not found</h1>"]);
    assert_eq!(absent.header("set-cookie"), None);

    let browser = by(&admin);
    let form = filled(browser.get(&path).await.form("accept"), &[("accepted", "yes")]);
    by(&without_role).post(&path, &form).await.assert_says(403, &["Not allowed"]);
    browser.post(&path, &form).await.assert_says(200, &["<h1>Accepted</h1>"]);
}
