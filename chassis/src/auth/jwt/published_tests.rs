//! Tests of fetched keys, against an HTTP server.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::StatusCode as HttpStatus;
use axum::http::header::LOCATION;
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use super::super::signing::SigningKey;
use super::*;

const ISSUER: &str = "https://issuer.example";

const HOUR: Duration = Duration::from_secs(3600);

/// An issuer that publishes what it is set to.
struct Publisher {
    base: Url,
    document: Arc<Mutex<(HttpStatus, String)>>,
    keys: Arc<Mutex<(HttpStatus, String)>>,
    asked: Arc<AtomicUsize>,
}

impl Publisher {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let [document, keys] = [0; 2].map(|_| Arc::new(Mutex::new((HttpStatus::OK, String::new()))));
        let asked = Arc::new(AtomicUsize::new(0));
        let (said, published, counted) = (document.clone(), keys.clone(), asked.clone());
        let router = Router::new()
            .route("/moved", get(async || (HttpStatus::FOUND, [(LOCATION, "/keys")])))
            .route("/document", get(async move || said.lock().unwrap().clone()))
            .route(
                "/keys",
                get(async move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                    published.lock().unwrap().clone()
                }),
            );
        tokio::spawn(axum::serve(listener, router).into_future());
        let publisher = Self { base, document, keys, asked };
        publisher.describe(ISSUER, publisher.at("keys").as_str());
        publisher
    }

    fn at(&self, path: &str) -> Url {
        self.base.join(path).unwrap()
    }

    fn describe(&self, issuer: &str, jwks_uri: &str) {
        *self.document.lock().unwrap() =
            (HttpStatus::OK, json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string());
    }

    fn publish(&self, contents: impl Into<String>) {
        *self.keys.lock().unwrap() = (HttpStatus::OK, contents.into());
    }

    fn open(&self, path: &str) -> Published {
        self.open_each(path, FETCH_INTERVAL_MIN)
    }

    fn open_each(&self, path: &str, interval: Duration) -> Published {
        let url = self.at(path);
        let location = if path == "document" { Location::Discovery(url) } else { Location::Keys(url) };
        Published::open(location, Issuer(ISSUER.into()), None, interval).unwrap()
    }
}

/// Whether a token of the key is verified.
fn verifies(published: &Published, key: &SigningKey) -> bool {
    let token = key.sign(&json!({"iss": ISSUER})).unwrap();
    published.now().is_some_and(|keys| keys.verify(&token).is_ok())
}

/// Waits until the next fetch has ended. The clock of the runtime stands still unless all wait, so that takes no time.
async fn next_fetch(published: &Published) {
    let mut state = published.state.clone();
    let before = state.borrow().fetches;
    state.wait_for(|state| state.fetches > before).await.unwrap();
}

#[tokio::test]
async fn keys_are_found_by_url_or_by_discovery_of_their_own_issuer() {
    let (key, _) = SigningKey::generate().unwrap();
    let publisher = Publisher::start().await;
    publisher.publish(SigningKey::public_set(&[&key]));
    for path in ["keys", "document"] {
        let published = publisher.open(path);
        published.renew().await;
        assert!(verifies(&published, &key) && !published.has_failed(), "{path}");
    }
    for (issuer, jwks_uri) in [
        ("https://other.example", publisher.at("keys").to_string()),
        (ISSUER, "http://192.0.2.1/keys".to_owned()),
        (ISSUER, "file:///keys".to_owned()),
        (ISSUER, "keys".to_owned()),
        (ISSUER, publisher.at("keys").to_string().replace("127.0.0.1", "user:password@127.0.0.1")),
    ] {
        publisher.describe(issuer, &jwks_uri);
        let published = publisher.open("document");
        published.renew().await;
        assert!(published.now().is_none() && published.has_failed(), "{issuer} {jwks_uri}");
    }
}

#[tokio::test]
async fn the_last_good_set_stays_until_another_good_one_is_published() {
    let [old, new] = [0; 2].map(|_| SigningKey::generate().unwrap().0);
    let publisher = Publisher::start().await;
    publisher.publish(SigningKey::public_set(&[&old]));
    let published = publisher.open("keys");
    published.renew().await;
    let first = published.now().unwrap();
    tokio::time::pause();
    let too_large = format!("{}{}", SigningKey::public_set(&[&new]), " ".repeat(BYTES_MAX));
    for (status, contents) in [
        (HttpStatus::INTERNAL_SERVER_ERROR, SigningKey::public_set(&[&new])),
        (HttpStatus::FOUND, SigningKey::public_set(&[&new])),
        (HttpStatus::OK, "<html>maintenance</html>".into()),
        (HttpStatus::OK, json!({"keys": [{"kty": "RSA", "kid": "a"}]}).to_string()),
        (HttpStatus::OK, too_large),
    ] {
        *publisher.keys.lock().unwrap() = (status, contents);
        next_fetch(&published).await;
        assert!(published.has_failed(), "{status}");
        assert!(Arc::ptr_eq(&published.now().unwrap(), &first), "{status}");
    }
    // The same keys again are the same set: verified tokens stay verified.
    publisher.publish(SigningKey::public_set(&[&old]));
    next_fetch(&published).await;
    assert!(!published.has_failed() && Arc::ptr_eq(&published.now().unwrap(), &first));
    publisher.publish(SigningKey::public_set(&[&new]));
    next_fetch(&published).await;
    assert!(verifies(&published, &new) && !verifies(&published, &old));
    // An empty set is a good one: the issuer withdraws its keys.
    publisher.publish(r#"{"keys": []}"#);
    next_fetch(&published).await;
    assert!(!verifies(&published, &new) && !published.has_failed());
}

#[tokio::test]
async fn keys_that_cannot_be_renewed_stop_counting_after_a_day() {
    let (key, _) = SigningKey::generate().unwrap();
    let publisher = Publisher::start().await;
    publisher.publish(SigningKey::public_set(&[&key]));
    let published = publisher.open("keys");
    published.renew().await;
    tokio::time::pause();
    *publisher.keys.lock().unwrap() = (HttpStatus::BAD_GATEWAY, String::new());
    tokio::time::advance(AGE_MAX - FETCH_INTERVAL_MIN).await;
    assert!(verifies(&published, &key));
    tokio::time::advance(FETCH_INTERVAL_MIN).await;
    next_fetch(&published).await;
    assert!(published.now().is_none());
    publisher.publish(SigningKey::public_set(&[&key]));
    next_fetch(&published).await;
    assert!(verifies(&published, &key));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (key, _) = SigningKey::generate().unwrap();
    let publisher = Publisher::start().await;
    publisher.publish(SigningKey::public_set(&[&key]));
    let published = publisher.open("moved");
    published.first().await;
    assert!(published.now().is_none() && published.has_failed());
    assert_eq!(publisher.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_first_fetch_is_not_waited_for_twice_and_the_next_comes_after_the_interval() {
    let (key, _) = SigningKey::generate().unwrap();
    let publisher = Publisher::start().await;
    publisher.publish(SigningKey::public_set(&[&key]));
    let published = publisher.open_each("keys", HOUR);
    published.first().await;
    tokio::time::pause();
    let began = Instant::now();
    published.first().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    next_fetch(&published).await;
    assert!(began.elapsed() >= HOUR - Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Forged tokens cannot make the issuer be asked more often.
#[tokio::test]
async fn requested_fetches_keep_their_distance() {
    let (key, _) = SigningKey::generate().unwrap();
    let publisher = Publisher::start().await;
    publisher.publish(SigningKey::public_set(&[&key]));
    let published = publisher.open_each("keys", HOUR);
    published.renew().await;
    assert!(!published.may_renew());
    tokio::time::pause();
    let began = Instant::now();
    let asked = publisher.asked.load(Ordering::Relaxed);
    for _ in 0..4 {
        futures_util::future::join_all((0..50).map(|_| published.renew())).await;
        let fetches = publisher.asked.load(Ordering::Relaxed) - asked;
        let allowed = 1 + began.elapsed().as_secs() / FETCH_INTERVAL_MIN.as_secs();
        assert!(u64::try_from(fetches).unwrap() <= allowed, "{fetches} in {:?}", began.elapsed());
    }
    assert!(publisher.asked.load(Ordering::Relaxed) > asked);
}
