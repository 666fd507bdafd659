//! Both services with signed tokens and mutual TLS: what is forged is refused, and everything that
//! identifies a caller can be replaced while they serve.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

use std::time::Duration;

use agreement_svc::config::{Import, ImportAttestations, ImportClient};
use chassis::auth::jwt::signing::SigningKey;
use chassis::auth::{Caller, Channel};
use chassis::clock::Clock;
use chassis::tls::{self, Address, ClientSettings};
use proto::agreement::ListAttestationsRequest;
use proto::order::CreateOrderRequest;
use serde_json::{Value, json};
use tests::actions::{self, place};
use tests::assert::eventually;
use tests::clients::Identity;
use tests::fixtures::{self, DIRECT, OFFICE};
use tests::pki::{Ca, Pki, bearer};
use tests::service::channel_to;
use tests::{As, Cluster, Setup, metadata_of, reason_of};
use tokio::net::TcpStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use crate::contract::access::{FOR_EVERYONE, call, wire};

/// Longer than anything here takes.
const WAIT_MAX: Duration = Duration::from_secs(60);

async fn secured() -> Cluster {
    Cluster::start(Setup { secured: true, ..Setup::default() }).await.unwrap()
}

fn base64(json: &Value) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json.to_string())
}

/// Metadata as it is given, in the order in which it is given.
fn sending(
    headers: Vec<(&'static str, String)>,
) -> impl Fn(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |mut request| {
        for (key, value) in &headers {
            let value: MetadataValue<Ascii> = value.parse().unwrap();
            request.metadata_mut().append(*key, value);
        }
        Ok(request)
    }
}

/// A connection to an address that a name has checks the certificate for the name: the one here is valid for `localhost` and
/// for the address, but not for the other name.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_certificate_is_checked_for_the_name_and_not_for_its_address() {
    tests::needs_own!("a service on an address of this machine");
    let cluster = secured().await;
    let at = cluster.agreements_address();
    for (name, is_trusted) in [("localhost", true), ("agreements.example", false)] {
        let address: Address = format!("https://{name}:{}", at.port()).parse().unwrap();
        let client = tls::Client::open(&cluster.client_tls(), std::slice::from_ref(&address)).unwrap();
        let connected = client.connect(&address, &tls::Client::endpoint_at(&address, at.ip())).await;
        assert_eq!(connected.is_ok(), is_trusted, "{name}: {connected:?}");
    }
}

/// Both services refuse a forged or unusable token, and the refusal names the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn both_services_refuse_forged_and_unusable_tokens() {
    let cluster = secured().await;
    let (issuer, services) = (cluster.issuer(), cluster.as_unidentified());
    let signed = |claims: &Value| issuer.signs().sign(claims).unwrap();
    // An operator may do most.
    let operator = issuer.claims(&fixtures::operator());
    let with = |claim: &str, value: Value| {
        let mut claims = operator.clone();
        claims[claim] = value;
        claims
    };
    let good = signed(&operator);
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let (stranger, _) = SigningKey::generate().unwrap();
    let now = Clock::system().now().timestamp();
    let everything = with("roles", json!(["ADMIN_AGENT", "SALES_AGENT"]));
    let kid =
        serde_json::from_str::<Value>(&SigningKey::public_set(&[issuer.signs()])).unwrap()["keys"][0].clone();
    let hmac = {
        use base64::Engine;
        use hmac::{Hmac, KeyInit, Mac};
        let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let message =
            format!("{}.{payload}", base64(&json!({"alg": "HS256", "typ": "JWT", "kid": kid["kid"]})));
        let public = engine.decode(kid["x"].as_str().unwrap()).unwrap();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&public).unwrap();
        mac.update(message.as_bytes());
        format!("{message}.{}", engine.encode(mac.finalize().into_bytes()))
    };
    let unsigned = base64(&json!({"alg": "none", "kid": kid["kid"]}));
    let mine = base64(&json!({"alg": "EdDSA", "kid": "unknown"}));
    let refused = [
        ("forged claims", format!("{header}.{}.{signature}", base64(&everything)), "authorization"),
        ("no signature", format!("{header}.{payload}."), "authorization"),
        ("truncated", good[..good.len() - 10].to_owned(), "authorization"),
        ("alg none", format!("{unsigned}.{payload}."), "authorization"),
        ("HS256 by the public key", hmac, "authorization"),
        ("a stranger's key", stranger.sign(&operator).unwrap(), "kid"),
        ("an unknown kid", format!("{mine}.{payload}.{signature}"), "kid"),
        ("expired", signed(&with("exp", json!(now - 3600))), "exp"),
        ("without an end", signed(&with("exp", json!(null))), "exp"),
        ("not yet valid", signed(&with("nbf", json!(now + 3600))), "nbf"),
        ("another audience", signed(&with("aud", json!("other"))), "aud"),
        ("another issuer", signed(&with("iss", json!("https://other.example"))), "iss"),
        ("no tenant", signed(&with("tenant_id", json!(null))), "tenant_id"),
        ("no kind of tenant", signed(&with("tenant_kind", json!("GOD"))), "tenant_kind"),
        ("no user", signed(&with("sub", json!("no id"))), "sub"),
        ("a channel that is none", signed(&with("channel", json!("RENEWAL"))), "channel"),
    ];
    let mut wrong = vec![];
    for path in FOR_EVERYONE {
        let sound = call(wire(&services, path), Identity::by(bearer(&good)), path, &[]).await.unwrap_err();
        assert_eq!(sound.code(), Code::InvalidArgument, "{path}: a sound token");
        for (about, token, claim) in &refused {
            let headers = vec![("authorization", format!("Bearer {token}"))];
            let answer = call(wire(&services, path), sending(headers), path, &[]).await;
            let status = answer.map_or_else(|status| status, |_| Status::ok("let in"));
            let said = (status.code(), reason_of(&status), metadata_of(&status).remove("claim"));
            if said != (Code::Unauthenticated, "IDENTITY_REQUIRED".into(), Some((*claim).into()))
                || status.message().contains(&token[..20])
            {
                wrong.push(format!("{path}, {about}: {said:?} {status}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Only one bearer token identifies a caller, and metadata beside it counts for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_one_bearer_token_identifies_a_caller() {
    let cluster = secured().await;
    let services = cluster.as_unidentified();
    let token = |caller| cluster.token(&caller);
    let operator_word = || {
        let mut word = vec![("x-tenant-kind", "OPERATOR".to_owned())];
        word.push(("x-tenant-id", fixtures::OPERATOR.to_string()));
        word.push(("x-user-id", Uuid::from_u128(1).to_string()));
        word
    };
    let (sales, operator) = (token(fixtures::sales(DIRECT)), token(fixtures::operator()));
    for path in FOR_EVERYONE {
        for headers in [
            operator_word(),
            vec![
                ("authorization", format!("Bearer {sales}")),
                ("authorization", format!("Bearer {operator}")),
            ],
            vec![("authorization", format!("Bearer {sales}")), ("authorization", format!("Bearer {sales}"))],
            vec![("authorization", format!("Basic {sales}"))],
            vec![("authorization", sales.clone())],
        ] {
            let refused = call(wire(&services, path), sending(headers.clone()), path, &[]).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason_of(&refused).as_str()),
                (Code::Unauthenticated, "IDENTITY_REQUIRED")
            );
        }
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let headers = vec![("authorization", format!("{scheme} {sales}"))];
            let let_in = call(wire(&services, path), sending(headers), path, &[]).await.unwrap_err();
            assert_eq!(let_in.code(), Code::InvalidArgument, "{scheme}");
        }
    }
    // An operator by its word, a partner by its token: a partner.
    let path = "/csp.agreement.v1.PartnerService/ListPartners";
    let mut both = operator_word();
    both.push(("authorization", format!("Bearer {sales}")));
    let refused = call(&services.agreements, sending(both), path, &[]).await.unwrap_err();
    assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::PermissionDenied, "ROLE_NOT_ALLOWED"));
}

/// A customer of the direct partner.
async fn customer(cluster: &Cluster) -> (As, String) {
    actions::register_partners(cluster).await.unwrap();
    let direct = cluster.as_caller(fixtures::sales(DIRECT));
    let customer_id = actions::create_customer(&direct, "Contoso", "FR", None).await.unwrap();
    (direct, customer_id)
}

fn prompted(customer_id: &str) -> CreateOrderRequest {
    CreateOrderRequest {
        attestation: Some(fixtures::inline_attestation(Clock::system().now())),
        ..fixtures::new_order(customer_id, None, OFFICE, 5)
    }
}

/// An order with its attestation is placed, and no identity is exempt from the gate.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_identity_is_exempt_from_the_gate() {
    let cluster = secured().await;
    let (direct, customer_id) = customer(&cluster).await;
    for channel in [Channel::Dashboard, Channel::Api] {
        let partner = cluster.as_caller(Caller { channel, ..fixtures::sales(DIRECT) });
        let blocked = place(&partner, fixtures::new_order(&customer_id, None, OFFICE, 5)).await.unwrap_err();
        assert_eq!(blocked.code(), Code::FailedPrecondition, "{channel}: {blocked}");
    }
    let everything = [fixtures::sales(DIRECT).roles, fixtures::admin(DIRECT).roles].concat();
    for channel in [Channel::Dashboard, Channel::Api] {
        let service = Caller { channel, roles: everything.clone(), ..fixtures::service() };
        for tenant_id in [service.tenant_id, DIRECT] {
            let service = cluster.as_caller(Caller { tenant_id, ..service.clone() });
            let refused = place(&service, prompted(&customer_id)).await.unwrap_err();
            assert_eq!(
                (refused.code(), reason_of(&refused).as_str()),
                (Code::PermissionDenied, "ROLE_NOT_ALLOWED")
            );
        }
    }

    // The attestation is the caller's own, and the question the service's.
    place(&direct, prompted(&customer_id)).await.unwrap();
    let of =
        ListAttestationsRequest { customer_id: customer_id.clone(), ..ListAttestationsRequest::default() };
    let attested = direct.attestations().list_attestations(of).await.unwrap().into_inner().attestations;
    assert_eq!(attested.len(), 1);
    assert_eq!(attested[0].recorded_by, fixtures::sales(DIRECT).user_id.to_string());
    place(&direct, fixtures::new_order(&customer_id, None, OFFICE, 5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_is_imported_by_whom_a_token_names_over_mutual_tls() {
    let cluster = secured().await;
    let (direct, customer_id) = customer(&cluster).await;
    let folder = tempfile::tempdir().unwrap();
    let (token, file) = (folder.path().join("partner.token"), folder.path().join("customers.csv"));
    std::fs::write(&token, cluster.token(&fixtures::sales(DIRECT))).unwrap();
    let rows = format!(
        "CustomerId,FirstName,LastName,Email,DateAgreed\n{customer_id},Tania,Carr,t@a.example,2026-01-01\n"
    );
    std::fs::write(&file, &rows).unwrap();
    let client = ImportClient {
        address: cluster.addresses()[0].parse().unwrap(),
        tls: cluster.client_tls(),
        token: Some(token),
        partner_id: None,
        user_id: None,
        results: None,
    };
    let import = Import::Attestations(ImportAttestations {
        file,
        customer_id: None,
        template_id: fixtures::CUSTOMER_AGREEMENT.parse().unwrap(),
        agreed_at: None,
        client,
    });
    assert_eq!(
        format!("{:?}", agreement_svc::commands::import::run(import).await),
        format!("{:?}", std::process::ExitCode::SUCCESS)
    );
    let of = ListAttestationsRequest { customer_id, ..ListAttestationsRequest::default() };
    let attested = direct.attestations().list_attestations(of).await.unwrap().into_inner().attestations;
    assert_eq!(attested.len(), 1);
    assert_eq!(attested[0].recorded_by, fixtures::sales(DIRECT).user_id.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn issuer_keys_are_replaced_while_both_services_serve() {
    tests::needs_own!("keys and certificates that it makes");
    let cluster = secured().await;
    let services = cluster.as_unidentified();
    let (next, _) = SigningKey::generate().unwrap();
    let issuer = cluster.issuer();
    let old = || Identity::by(bearer(&issuer.token(&fixtures::operator())));
    let new = || Identity::by(bearer(&next.sign(&issuer.claims(&fixtures::operator())).unwrap()));
    let is_let_in =
        |answer: &Result<_, Status>| !matches!(answer, Err(status) if status.code() == Code::Unauthenticated);
    let with_bad_key = |others: &str| {
        let mut set: Value = serde_json::from_str(others).unwrap();
        let bad = json!({"kty": "OKP", "crv": "Ed25519", "kid": "short", "use": "sig", "x": "AAAA"});
        set["keys"].as_array_mut().unwrap().insert(0, bad);
        // As an editor on Windows stores it.
        format!("\u{feff}{set}")
    };
    let sets = [
        (SigningKey::public_set(&[issuer.signs()]), (true, false)),
        // A bad key takes nothing from the others.
        (with_bad_key(&SigningKey::public_set(&[&next])), (false, true)),
        (with_bad_key(r#"{"keys": []}"#), (false, true)),
        (SigningKey::public_set(&[issuer.signs(), &next]), (true, true)),
        (SigningKey::public_set(&[&next]), (false, true)),
        ("not a set at all".to_owned(), (false, true)),
        // An empty set locks every caller out.
        (r#"{"keys": []}"#.to_owned(), (false, false)),
        (SigningKey::public_set(&[issuer.signs()]), (true, false)),
    ];
    for (n, (set, expected)) in sets.iter().enumerate() {
        cluster.pki().put("jwks.json", set).unwrap();
        for path in FOR_EVERYONE {
            let wire = wire(&services, path);
            let both = || async {
                let (old, new) = (call(wire, old(), path, &[]).await, call(wire, new(), path, &[]).await);
                (is_let_in(&old), is_let_in(&new))
            };
            eventually(&format!("set {n} at {path}"), async || {
                Some(both().await).filter(|both| both == expected)
            })
            .await;
        }
    }
}

/// Without a valid token of its own order-svc sells nothing until it is given one.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_valid_token_order_svc_sells_nothing() {
    tests::needs_own!("keys and certificates that it makes");
    let cluster = secured().await;
    let (direct, customer_id) = customer(&cluster).await;
    place(&direct, prompted(&customer_id)).await.unwrap();
    let pki = cluster.pki();
    let order = || place(&direct, fixtures::new_order(&customer_id, None, OFFICE, 5));
    let issuer = pki.issuer();
    let expired = issuer.signs().sign(&json!({"exp": 1})).unwrap();
    // One that is believed, of a caller that may not ask for others.
    let partners = issuer.token(&fixtures::sales(Uuid::from_u128(0xbad)));
    for token in [expired, partners] {
        pki.put("service.token", &token).unwrap();
        let refused =
            eventually("refused", async || Some(order().await).filter(Result::is_err)).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused).as_str()), (Code::Unavailable, "GATE_UNAVAILABLE"));
        pki.put("service.token", &issuer.token(&fixtures::service())).unwrap();
        eventually("accepted again", async || Some(order().await).filter(Result::is_ok)).await.unwrap();
    }
    // What is no token at all is not taken.
    pki.put("service.token", "two words").unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    order().await.unwrap();
}

/// Whether a call came as far as to a form that it does not fill in, or its connection did not come about.
fn is_connected(answer: Result<Vec<u8>, Status>) -> bool {
    let status = answer.unwrap_err();
    match (status.code(), reason_of(&status).as_str()) {
        (Code::InvalidArgument, "INVALID_FIELDS") => true,
        // What the client's own side says, in words that differ with the moment at which it was cut off.
        (Code::Unknown | Code::Unavailable | Code::Internal, "") => false,
        _ => panic!("{status}"),
    }
}

/// A client is let in by a certificate of the CA, and by no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn only_a_certificate_of_the_ca_lets_a_client_in() {
    let cluster = secured().await;
    let known = cluster.client_tls();
    let unnamed = ClientSettings { cert: None, key: None, ..known.clone() };
    let strangers = Pki::new(Clock::system()).unwrap();
    let stranger = ClientSettings { ca: known.ca.clone(), ..strangers.client_tls(Some("client")) };
    for (address, path) in cluster.addresses().iter().zip(FOR_EVERYONE) {
        let ask = |address: &str, settings: &ClientSettings| {
            let wire = channel_to(address, settings, |endpoint| endpoint);
            let identity = cluster.identity(fixtures::operator());
            async move { is_connected(call(&wire, identity, path, &[]).await) }
        };
        assert!(ask(address, &known).await);
        assert!(!ask(address, &unnamed).await);
        assert!(!ask(address, &stranger).await);
        // Without TLS there is no answer.
        assert!(!ask(&address.replace("https://", "http://"), &ClientSettings::default()).await);
    }
}

/// Certificates and CA certificates are replaced while both services serve.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificates_are_replaced_while_both_services_serve() {
    tests::needs_own!("keys and certificates that it makes");
    let cluster = secured().await;
    let (direct, customer_id) = customer(&cluster).await;
    place(&direct, prompted(&customer_id)).await.unwrap();
    let pki = cluster.pki();
    let next = Ca::new().unwrap();
    let addresses = cluster.addresses();
    let identity = cluster.identity(fixtures::operator());
    // How many of the two let a new connection in.
    let fresh = |certificate: &'static str, ca: &'static str| {
        let mut settings = pki.client_tls(Some(certificate));
        settings.ca = Some(pki.file(ca));
        let wires = addresses.each_ref().map(|address| channel_to(address, &settings, |endpoint| endpoint));
        let identity = identity.clone();
        async move {
            let mut let_in = 0;
            for (wire, path) in wires.iter().zip(FOR_EVERYONE) {
                let_in += usize::from(is_connected(call(wire, identity.clone(), path, &[]).await));
            }
            let_in
        }
    };
    pki.put("old.pem", &std::fs::read_to_string(pki.file("ca.pem")).unwrap()).unwrap();
    pki.put("next.pem", &next.pem()).unwrap();
    pki.issue(&next, "successor").unwrap();
    assert_eq!(fresh("client", "old.pem").await, 2);
    assert_eq!(fresh("client", "next.pem").await, 0);
    for end in [".pem", ".key"] {
        let of_the_old = std::fs::read_to_string(pki.file(&format!("client{end}"))).unwrap();
        pki.put(&format!("former{end}"), &of_the_old).unwrap();
    }

    // First both CA certificates are trusted, then every process has new certificates, then one CA certificate is.
    let both = format!("{}{}", next.pem(), std::fs::read_to_string(pki.file("ca.pem")).unwrap());
    pki.put("ca.pem", &both).unwrap();
    eventually("the successor is let in", async || {
        Some(fresh("successor", "old.pem").await).filter(|let_in| *let_in == 2)
    })
    .await;
    pki.issue(&next, "server").unwrap();
    pki.issue(&next, "client").unwrap();
    eventually("the new certificate is shown", async || {
        Some(fresh("successor", "next.pem").await).filter(|let_in| *let_in == 2)
    })
    .await;
    assert_eq!(fresh("successor", "old.pem").await, 0);
    // The connections that there are go on.
    place(&direct, fixtures::new_order(&customer_id, None, OFFICE, 5)).await.unwrap();
    assert_eq!(fresh("former", "next.pem").await, 2);
    pki.put("ca.pem", &next.pem()).unwrap();
    eventually("the former is let in no more", async || {
        Some(fresh("former", "next.pem").await).filter(|let_in| *let_in == 0)
    })
    .await;

    let mut cluster = cluster;
    // order-svc has to connect anew, and does so with what the files say now.
    cluster.stop_agreements();
    cluster.restart_agreements().await.unwrap();
    let order = || place(&direct, fixtures::new_order(&customer_id, None, OFFICE, 5));
    eventually("order-svc has connected again", async || Some(order().await).filter(Result::is_ok))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_that_never_shake_hands_hold_up_no_other() {
    let cluster = secured().await;
    for (address, path) in cluster.addresses().iter().zip(FOR_EVERYONE) {
        let mut silent = vec![];
        for _ in 0..100 {
            silent.push(TcpStream::connect(address.trim_start_matches("https://")).await.unwrap());
        }
        let wire = channel_to(address, &cluster.client_tls(), |endpoint| endpoint);
        let asking = call(&wire, cluster.identity(fixtures::operator()), path, &[]);
        let answer = tokio::time::timeout(WAIT_MAX, asking).await.unwrap();
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
        drop(silent);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_replica_that_is_down_costs_no_order() {
    tests::needs_own!("replicas that it starts");
    let first = Cluster::start(Setup::default()).await.unwrap();
    let (_, customer_id) = customer(&first).await;
    // It takes connections and never shakes hands.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let all = [
        format!("https://{}", silent.local_addr().unwrap()),
        format!("http://{}", first.agreements_address()),
        format!("http://{gone}"),
    ];
    let setup = Setup { agreements_at: Some(all.join(",")), ..Setup::default() };
    let second = Cluster::start(setup).await.unwrap();
    let direct = second.as_caller(fixtures::sales(DIRECT));
    place(&direct, prompted(&customer_id)).await.unwrap();
    for _ in 0..30 {
        place(&direct, fixtures::new_order(&customer_id, None, OFFICE, 5)).await.unwrap();
    }
}
