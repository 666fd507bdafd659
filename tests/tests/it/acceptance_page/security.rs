//! Headers, requests of other sites, limits, and the end of the service.

use tests::Setup;
use tests::actions::{self, invite};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::browser::{Browser, filled};
use super::{LONG, path_of, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_answer_has_the_headers_that_protect_it() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let path = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let (browser, unknown) = (Browser::signed_in(&cluster, &customer), Browser::new(&cluster));
    for (answer, status, cache) in [
        (browser.get(&path).await, 200, "no-store"),
        (browser.get("/partners").await, 200, "no-store"),
        (browser.get("/nothing").await, 404, "no-store"),
        (unknown.get(&path).await, 401, "no-store"),
        (browser.post_from(&path, &[], &[]).await, 403, "no-store"),
        (browser.send("PUT", &path, &[("sec-fetch-site", "same-origin")], "").await, 405, "no-store"),
        (browser.send("POST", &path, &[("sec-fetch-site", "same-origin")], "").await, 415, "no-store"),
        (browser.get("/accept?token=a&token=b").await, 400, "no-store"),
        (unknown.get("/style.css").await, 200, "max-age=3600"),
    ] {
        assert_eq!(answer.status, status, "{}", answer.body);
        for (name, value) in [
            (
                "content-security-policy",
                "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
            ),
            ("x-frame-options", "deny"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "strict-origin"),
            ("cache-control", cache),
        ] {
            assert_eq!(answer.header(name), Some(value), "{status} {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn another_site_cannot_answer_for_a_user() {
    tests::needs_own!("the acceptance page");
    let (cluster, direct) = start(Setup::default()).await;
    let customer = actions::create_customer(&direct, "Contoso", "US", None).await.unwrap();
    let path = path_of(&invite(&direct, Some(&customer), None).await.unwrap());
    let browser = Browser::signed_in(&cluster, &customer);
    let form = filled(browser.get(&path).await.form("accept"), &[("accepted", "yes")]);
    let own = format!("http://localhost:{}", cluster.page_address().port());
    for from in [
        &[][..],
        &[("origin", "https://evil.example")],
        &[("origin", "null")],
        &[("sec-fetch-site", "cross-site"), ("origin", &own)],
        &[("sec-fetch-site", "same-site"), ("origin", &own)],
        &[("sec-fetch-site", "none"), ("origin", &own)],
    ] {
        browser.post_from(&path, &form, from).await.assert_says(403, &["<h1>Request refused</h1>"]);
    }
    browser.get(&path).await.assert_says(200, &["type=\"checkbox\""]);
    browser.post_from(&path, &form, &[("origin", &own)]).await.assert_says(200, &["<h1>Accepted</h1>"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_requests_are_refused() {
    tests::needs_own!("the acceptance page");
    let (cluster, _) = start(Setup::default()).await;
    let browser = Browser::signed_in(&cluster, &tests::fixtures::TAILSPIN.to_string());
    let field = |bytes: usize| vec![("token".to_owned(), "x".repeat(bytes))];
    assert_eq!(browser.post("/accept", &field(15 << 10)).await.status, 404);
    browser.post("/accept", &field(17 << 10)).await.assert_says(413, &["<h1>Please check again</h1>"]);
    browser.get("/accept?token=a&token=b").await.assert_says(400, &["<h1>Please check again</h1>"]);
    for (bytes, status) in [(31 << 10, 200), (33 << 10, 431), (65 << 10, 431)] {
        let header = "x".repeat(bytes);
        assert_eq!(browser.clone().with("x-large", header).get("/partners").await.status, status, "{bytes}");
    }
    let many = (0..65).fold(browser, |browser, _| browser.with("x-one-of-many", "1"));
    assert_eq!(many.get("/partners").await.status, 431);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_is_closed_after_its_request_and_at_the_end_of_the_service() {
    tests::needs_own!("the acceptance page, and stops the service");
    let (mut cluster, _) = start(Setup::default()).await;
    let mut idle = TcpStream::connect(cluster.page_address()).await.unwrap();
    let mut used = TcpStream::connect(cluster.page_address()).await.unwrap();
    used.write_all(b"GET /style.css HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(LONG, used.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\nconnection: close\r\n"),
        "{answer}"
    );
    cluster.stop_agreements();
    tokio::time::timeout(LONG, idle.read_to_end(&mut vec![])).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_user_signs_in_for_development_and_stays_on_this_site() {
    tests::needs_own!("the acceptance page");
    let (cluster, _) = start(Setup::default()).await;
    let browser = Browser::new(&cluster);
    browser.get("/accept?invitation=a&token=b").await.assert_says(
        401,
        &["<h1>Sign in for development</h1>", "name=\"next\" value=\"/accept?invitation=a&#38;token=b\""],
    );
    let (tenant, user) = (tests::fixtures::TAILSPIN, "00000000-0000-4000-8000-000000000007");
    for (next, location) in [
        ("/accept?invitation=a%26token=b", "/accept?invitation=a&token=b"),
        ("", "/partners"),
        ("//evil.example", "/partners"),
        ("/%5Cevil.example", "/partners"),
        ("https://evil.example", "/partners"),
        ("/a%0d%0ab:c", "/partners"),
    ] {
        let path = format!("/development-sign-in?tenant_id={tenant}&user_id={user}&next={next}");
        let answer = browser.get(&path).await;
        assert_eq!((answer.status, answer.header("location")), (303, Some(location)), "{next}");
        let cookie = answer.header("set-cookie").unwrap();
        assert_eq!(
            cookie,
            format!("development-identity={tenant}.{user}; path=/; httponly; samesite=strict")
        );
    }
    // A user who opens the sign-in by itself, or mistypes an id, gets the form.
    browser.get("/development-sign-in").await.assert_says(400, &["must be UUIDs", "name=\"tenant_id\""]);
    let again = browser.get("/development-sign-in?tenant_id=x&user_id=%22y&next=/sign").await;
    again.assert_says(
        400,
        &[
            "must be UUIDs",
            "name=\"tenant_id\" value=\"x\"",
            "name=\"user_id\" value=\"&#34;y\"",
            "name=\"next\" value=\"/sign\"",
        ],
    );
    browser
        .with("accept-language", "de")
        .get("/development-sign-in")
        .await
        .assert_says(400, &["<button>Anmelden</button>"]);
}
