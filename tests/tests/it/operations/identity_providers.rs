//! Both services with the tokens of identity providers: claims of other names, keys fetched over HTTP, tenants whose kind
//! the registration of partners decides.

#![expect(clippy::unwrap_used, reason = "an unexpected answer fails the test")]

use std::path::Path;

use chassis::auth::{Auth, Caller, Settings, TrustedIssuers};
use chassis::clock::Clock;
use proto::identity::{Role, TenantKind};
use serde_json::{Value, json};
use tests::clients::{Identity, caller};
use tests::fixtures::{DIRECT, OPERATOR, PROVIDER};
use tests::identity_provider::{IdentityProvider, ProviderKey};
use tests::pki::{AUDIENCE, Ca, bearer};
use tests::{Cluster, Setup, actions, reason_of};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::contract::access::{FOR_EVERYONE, call, check_access_table, wire};

const ENTRA: &str = "https://login.example/{tenantid}/v2.0";
const KEYCLOAK: &str = "https://keycloak.example/realms/gate";

/// An access token of Microsoft Entra ID, version 2.0. It names no kind of tenant.
fn entra(of: &Caller) -> Value {
    let now = Clock::system().now().timestamp();
    json!({
        "aud": AUDIENCE,
        "iss": ENTRA.replace("{tenantid}", &of.tenant_id.to_string()),
        "iat": now, "nbf": now, "exp": now + 3600,
        "azp": "3f0e2d11-8c54-4c5f-9a63-1d2b6cfb3f10", "azpacr": "1", "idtyp": "user",
        "oid": of.user_id, "tid": of.tenant_id, "sub": "XoM9pairwise", "ver": "2.0",
        "roles": of.roles.iter().map(|role| format!("Gate.{role}")).collect::<Vec<_>>(),
    })
}

fn entra_claims() -> Value {
    let roles = ["ADMIN_AGENT", "SALES_AGENT", "HELPDESK_AGENT", "GLOBAL_ADMIN"];
    let values: serde_json::Map<_, _> =
        roles.iter().map(|role| (format!("Gate.{role}"), json!(role))).collect();
    json!({
        "tenant_id": "tid",
        "user_id": "oid",
        "roles": [{"name": "roles", "values": values}],
        "channel": {"name": "idtyp", "values": {"app": "API", "user": "DASHBOARD"}},
        "tenant_kind": "registration",
    })
}

/// The tenants of the operator and of services, which no registration knows.
fn entra_identities() -> Value {
    let of = |kind, tenant: Uuid| {
        let user_id = caller(kind, tenant, &[]).user_id;
        json!({"tenant_id": tenant, "user_id": user_id, "tenant_kind": kind.into_str()})
    };
    json!([of(TenantKind::Operator, OPERATOR), of(TenantKind::Service, Uuid::from_u128(0x5e))])
}

/// An access token of Keycloak, with roles of the client and attributes of the user.
fn keycloak(of: &Caller) -> Value {
    let now = Clock::system().now().timestamp();
    json!({
        "exp": now + 300, "iat": now, "jti": "onrtac:4d6b", "iss": KEYCLOAK, "aud": [AUDIENCE, "account"],
        "sub": of.user_id, "typ": "Bearer", "azp": "portal", "acr": "1", "scope": "openid profile",
        "realm_access": {"roles": ["offline_access"]},
        "resource_access": {AUDIENCE: {"roles": of.roles}},
        "tenant": {"id": of.tenant_id, "kind": of.tenant_kind.to_lowercase()},
    })
}

fn keycloak_claims() -> Value {
    json!({
        "tenant_id": "/tenant/id",
        "roles": [{"name": format!("/resource_access/{AUDIENCE}/roles")}],
        "tenant_kind": {"claim": {"name": "/tenant/kind", "values": {
            "partner": "PARTNER", "customer": "CUSTOMER", "operator": "OPERATOR", "service": "SERVICE",
        }}},
    })
}

async fn cluster(providers: Vec<Value>) -> Cluster {
    let setup = Setup { secured: true, identity_providers: providers, ..Setup::default() };
    Cluster::start(setup).await.unwrap()
}

/// What each service says to a token.
async fn answers(cluster: &Cluster, token: &str) -> Vec<Status> {
    let services = cluster.as_unidentified();
    let mut answers = vec![];
    for path in FOR_EVERYONE {
        let answer = call(wire(&services, path), Identity::by(bearer(token)), path, &[]).await;
        answers.push(answer.unwrap_err());
    }
    answers
}

/// Waits until both services answer to a token in one way: `INVALID_FIELDS`, since the message is empty, or a refusal of the
/// token.
async fn eventually_answer(cluster: &Cluster, token: &str, reason: &str) {
    tests::assert::eventually(&format!("{reason} of both services"), async || {
        let answers = answers(cluster, token).await;
        answers.iter().all(|status| reason_of(status) == reason).then_some(())
    })
    .await;
}

/// The access policy does not depend on which issuer names the caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn mapped_tokens_meet_the_same_access_policy() {
    tests::needs_own!("identity providers of its own");
    let (entra_key, keycloak_key) =
        (ProviderKey::generate("a").unwrap(), ProviderKey::generate("b").unwrap());
    let entra_id = IdentityProvider::start(ENTRA, &[&entra_key]).await.unwrap();
    let keycloak_realm = IdentityProvider::start(KEYCLOAK, &[&keycloak_key]).await.unwrap();
    let cluster = cluster(vec![
        entra_id.setting(AUDIENCE, &entra_claims(), &entra_identities()),
        keycloak_realm.setting(AUDIENCE, &keycloak_claims(), &json!([])),
    ])
    .await;
    actions::register_partners(&cluster).await.unwrap();
    check_access_table(&cluster, |caller| Identity::by(bearer(&entra_key.sign(&entra(&caller))))).await;
    check_access_table(&cluster, |caller| Identity::by(bearer(&keycloak_key.sign(&keycloak(&caller))))).await;

    // A tenant that is no registered partner is a customer, whatever roles it gives its users.
    let stranger = caller(
        TenantKind::Partner,
        Uuid::from_u128(0xbad),
        &[Role::AdminAgent, Role::SalesAgent, Role::GlobalAdmin],
    );
    let token = entra_key.sign(&entra(&stranger));
    let services = cluster.as_unidentified();
    for path in ["/csp.agreement.v1.CustomerService/CreateCustomer", "/csp.order.v1.OrderService/CreateOrder"]
    {
        let answer = call(wire(&services, path), Identity::by(bearer(&token)), path, &[]).await;
        assert_eq!(reason_of(&answer.unwrap_err()), "ROLE_NOT_ALLOWED", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_of_a_provider_are_rotated_fail_and_are_withdrawn_while_both_services_serve() {
    tests::needs_own!("identity providers of its own");
    let [old, new, wrong] = ["old", "new", "new"].map(|id| ProviderKey::generate(id).unwrap());
    let provider = IdentityProvider::start(KEYCLOAK, &[&old]).await.unwrap();
    let cluster = cluster(vec![provider.setting(AUDIENCE, &keycloak_claims(), &json!([]))]).await;
    let agent = caller(TenantKind::Partner, DIRECT, &[]);
    let by = |key: &ProviderKey| key.sign(&keycloak(&agent));
    let accepted = "INVALID_FIELDS";
    eventually_answer(&cluster, &by(&old), accepted).await;

    // While the provider is away, its last keys count, and a key that they do not have counts for nothing.
    provider.fail();
    tests::assert::eventually("both services notice the outage", async || {
        let failing = format!("_identity_provider_failing{{issuer=\"{KEYCLOAK}\"}} 1");
        let metrics = [cluster.agreements_metrics().await.unwrap(), cluster.orders_metrics().await.unwrap()];
        metrics.iter().all(|metrics| metrics.contains(&failing)).then_some(())
    })
    .await;
    eventually_answer(&cluster, &by(&old), accepted).await;
    eventually_answer(&cluster, &by(&new), "IDENTITY_REQUIRED").await;

    // A wrong key under the name of the new one, for a while.
    provider.publish(&[&old, &wrong]);
    eventually_answer(&cluster, &by(&wrong), accepted).await;
    eventually_answer(&cluster, &by(&new), "IDENTITY_REQUIRED").await;
    provider.publish(&[&old, &new]);
    eventually_answer(&cluster, &by(&new), accepted).await;
    eventually_answer(&cluster, &by(&wrong), "IDENTITY_REQUIRED").await;
    eventually_answer(&cluster, &by(&old), accepted).await;

    // A withdrawn key ends, also for tokens that were accepted before.
    provider.publish(&[&new]);
    eventually_answer(&cluster, &by(&old), "IDENTITY_REQUIRED").await;
    eventually_answer(&cluster, &by(&new), accepted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_provider_that_is_away_at_the_start_refuses_only_its_own_tokens() {
    tests::needs_own!("identity providers of its own");
    let key = ProviderKey::generate("key").unwrap();
    let provider = IdentityProvider::start(KEYCLOAK, &[&key]).await.unwrap();
    provider.fail();
    let cluster = cluster(vec![provider.setting(AUDIENCE, &keycloak_claims(), &json!([]))]).await;
    let agent = caller(TenantKind::Partner, DIRECT, &[]);
    let token = key.sign(&keycloak(&agent));
    for status in answers(&cluster, &token).await {
        assert_eq!((status.code(), &*reason_of(&status)), (Code::Unavailable, "IDENTITY_UNAVAILABLE"));
    }
    eventually_answer(&cluster, &cluster.token(&agent), "INVALID_FIELDS").await;
    provider.publish(&[&key]);
    eventually_answer(&cluster, &token, "INVALID_FIELDS").await;
}

/// Keys come only from a server whose certificate is for its host, and is verified by a CA certificate of `ca_file`.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn keys_are_fetched_over_https_from_a_server_that_ca_file_verifies() {
    tests::needs_own!("identity providers of its own");
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    let (trusted, other) = (Ca::new().unwrap(), Ca::new().unwrap());
    std::fs::write(&ca_file, trusted.pem()).unwrap();
    let key = ProviderKey::generate("key").unwrap();
    let unverified = (Code::Unavailable, "IDENTITY_UNAVAILABLE");
    let servers = [
        ("https://verified.example", &trusted, "localhost", (Code::InvalidArgument, "INVALID_FIELDS")),
        ("https://other-ca.example", &other, "localhost", unverified),
        ("https://other-host.example", &trusted, "elsewhere.example", unverified),
    ];
    let (mut providers, mut settings) = (vec![], vec![]);
    for (issuer, ca, host, _) in servers {
        let provider = IdentityProvider::start_https(issuer, &[&key], ca, host).await.unwrap();
        let mut setting = provider.setting(AUDIENCE, &keycloak_claims(), &json!([]));
        setting["ca_file"] = json!(ca_file);
        settings.push(setting);
        providers.push(provider);
    }
    let cluster = cluster(settings).await;
    let mut claims = keycloak(&caller(TenantKind::Partner, DIRECT, &[]));
    for (issuer, _, _, expected) in servers {
        claims["iss"] = json!(issuer);
        for status in answers(&cluster, &key.sign(&claims)).await {
            assert_eq!((status.code(), &*reason_of(&status)), expected, "{issuer}");
        }
    }
}

/// order-svc asks agreement-svc for the kind of a tenant; it guesses none.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn order_svc_refuses_a_tenant_that_it_cannot_ask_about() {
    tests::needs_own!("identity providers of its own");
    let key = ProviderKey::generate("key").unwrap();
    let provider = IdentityProvider::start(ENTRA, &[&key]).await.unwrap();
    let setting = provider.setting(AUDIENCE, &entra_claims(), &entra_identities());
    let mut cluster = cluster(vec![setting]).await;
    actions::register_partners(&cluster).await.unwrap();
    let path = "/csp.order.v1.OfferService/GetOffer";
    let services = cluster.as_unidentified();
    let asked = async |tenant: Uuid| {
        let token = key.sign(&entra(&caller(TenantKind::Partner, tenant, &[])));
        reason_of(&call(&services.orders, Identity::by(bearer(&token)), path, &[]).await.unwrap_err())
    };
    assert_eq!(asked(DIRECT).await, "INVALID_FIELDS");
    cluster.stop_agreements();
    assert_eq!(asked(PROVIDER).await, "IDENTITY_UNAVAILABLE");
    assert_eq!(asked(Uuid::from_u128(0xc1)).await, "IDENTITY_UNAVAILABLE");
    // A registered tenant is remembered, and identities that are written down need not be asked about.
    assert_eq!(asked(DIRECT).await, "INVALID_FIELDS");
    assert_eq!(asked(OPERATOR).await, "INVALID_FIELDS");
}

/// The file in docs/operations.md is one that the services take.
#[tokio::test]
async fn the_docs_show_a_valid_file() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut blocks = page.split("```json\n").filter_map(|rest| rest.split("```").next());
    let shown = blocks.find(|block| block.starts_with("{\"providers\"")).unwrap();
    // No test asks servers of others.
    let shown = [
        "https://login.microsoftonline.com/organizations",
        "https://keycloak.example/realms/partners/protocol",
    ]
    .iter()
    .fold(shown.to_owned(), |shown, url| {
        assert!(shown.contains(url));
        shown.replace(url, "http://127.0.0.1:1")
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("providers.json");
    std::fs::write(&file, shown).unwrap();
    let settings = Settings { auth: Auth::Jwt, identity_providers: Some(file), ..Settings::insecure() };
    TrustedIssuers::read(&settings, agreement_svc::VOCABULARY).unwrap();
}
