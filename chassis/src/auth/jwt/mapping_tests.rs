//! Tests of claims as identity providers shape them: mapped, of several issuers, with registered tenants.

use serde_json::{Value, json};
use uuid::Uuid;

use super::signing::SigningKey;
use super::tests::{ISSUER, NOW, at, expected, file_keys, tokens_of};
use super::*;
use crate::auth::Channel;

const TENANT: Uuid = Uuid::from_u128(0xd1);
const USER: Uuid = Uuid::from_u128(7);

/// As Microsoft Entra ID gives them out (access tokens, version 2.0).
fn entra() -> Value {
    json!({
        "aud": "ours",
        "iss": format!("https://login.example/{TENANT}/v2.0"),
        "iat": NOW, "nbf": NOW, "exp": NOW + 3600,
        "azp": "3f0e2d11-8c54-4c5f-9a63-1d2b6cfb3f10", "azpacr": "1",
        "name": "A person", "preferred_username": "person@tenant.example",
        "oid": USER, "tid": TENANT, "sub": "AbCdPairwise", "uti": "x", "ver": "2.0", "idtyp": "user",
        "roles": ["Gate.Write", "Other.Role"], "scp": "access"
    })
}

fn entra_mapping() -> Value {
    json!({
        "tenant_id": "tid",
        "user_id": "oid",
        "roles": [
            {"name": "roles", "values": {"Gate.Write": "WRITER", "Gate.Read": "READER"}},
            {"name": "wids", "values": {"62e90394-69f5-4237-9190-012177145e10": "READER"}}
        ],
        "channel": {"name": "idtyp", "values": {"app": "API", "user": "DASHBOARD"}},
        "tenant_kind": "registration"
    })
}

/// As Keycloak gives them out, with attributes of the user mapped into the token.
fn keycloak() -> Value {
    json!({
        "exp": NOW + 300, "iat": NOW, "auth_time": NOW, "jti": "onrtac:4d6b",
        "iss": "https://keycloak.example/realms/partners",
        "aud": ["ours", "account"], "sub": USER, "typ": "Bearer", "azp": "portal", "acr": "1",
        "realm_access": {"roles": ["offline_access", "uma_authorization"]},
        "resource_access": {"the/gate": {"roles": ["writers"]}, "account": {"roles": ["view-profile"]}},
        "scope": "openid profile", "tenant": {"id": TENANT, "kind": "reseller"}
    })
}

fn keycloak_mapping() -> Value {
    json!({
        "tenant_id": "/tenant/id",
        "roles": [{"name": "/resource_access/the~1gate/roles", "values": {"writers": "WRITER"}}],
        "tenant_kind": {"claim": {"name": "/tenant/kind", "values": {"reseller": "TENANT"}}}
    })
}

fn with(mut claims: Value, pointer: &str, value: Value) -> Value {
    match claims.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => claims[&pointer[1..]] = value,
    }
    claims
}

fn without(mut claims: Value, claim: &str) -> Value {
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

fn issuer(key: &SigningKey, expected: Expected) -> TrustedIssuer {
    TrustedIssuer::new(Keys::File(file_keys(&SigningKey::public_set(&[key]))), expected)
}

#[tokio::test]
async fn claims_of_providers_are_read_as_mapped() {
    let [entra_key, keycloak_key, own_key] = [0; 3].map(|_| SigningKey::generate().unwrap().0);
    let mut known = expected("https://login.example/{tenantid}/v2.0", entra_mapping());
    known.identities = serde_json::from_value(json!([
        {"tenant_id": Uuid::from_u128(0x5e), "user_id": USER, "tenant_kind": "INTERNAL"},
        {"tenant_id": Uuid::from_u128(0x5e), "role": "Gate.Write", "tenant_kind": "TENANT"},
    ]))
    .unwrap();
    let issuers = vec![
        issuer(&entra_key, known),
        issuer(&keycloak_key, expected("https://keycloak.example/realms/partners", keycloak_mapping())),
        issuer(&own_key, expected(ISSUER, json!({}))),
    ];
    let tokens = tokens_of(issuers, Clock::manual(at(NOW)), |id| Ok(id == TENANT));
    let caller = Caller {
        tenant_kind: "TENANT",
        tenant_id: TENANT,
        user_id: USER,
        roles: vec!["WRITER"],
        channel: Channel::Dashboard,
        client: Some("3f0e2d11-8c54-4c5f-9a63-1d2b6cfb3f10".into()),
    };
    let by_entra = async |claims: &Value| tokens.caller(&entra_key.sign(claims).unwrap()).await;
    let by_keycloak = async |claims: &Value| tokens.caller(&keycloak_key.sign(claims).unwrap()).await;
    assert_eq!(by_entra(&entra()).await, Ok(caller.clone()));
    let portal = Some("portal".to_owned());
    assert_eq!(by_keycloak(&keycloak()).await, Ok(Caller { client: portal, ..caller.clone() }));

    // The registration decides, unless the identity is written down; the user's line stands before its tenant's.
    let of = |tenant: u128, user: u128| {
        let tenant = Uuid::from_u128(tenant);
        let claims = with(entra(), "/iss", json!(format!("https://login.example/{tenant}/v2.0")));
        with(with(claims, "/tid", json!(tenant)), "/oid", json!(Uuid::from_u128(user)))
    };
    for (claims, kind) in [
        (of(9, 7), "OTHER"),
        (of(0x5e, 7), "INTERNAL"),
        (of(0x5e, 8), "TENANT"),
        (without(of(0x5e, 8), "roles"), "OTHER"),
        (with(without(of(0x5e, 8), "roles"), "/wids", json!(["Gate.Write"])), "TENANT"),
    ] {
        assert_eq!(by_entra(&claims).await.map(|caller| caller.tenant_kind), Ok(kind), "{claims}");
    }
    let app = with(entra(), "/idtyp", json!("app"));
    assert_eq!(by_entra(&app).await.map(|caller| caller.channel), Ok(Channel::Api));
    for (roles, read) in [
        (json!("Gate.Write Gate.Read"), vec!["READER", "WRITER"]),
        (json!("Gate.Read,Other"), vec!["READER"]),
        // Where names are mapped, the service's own mean nothing.
        (json!(["WRITER"]), vec![]),
        (json!(null), vec![]),
    ] {
        let claims = if roles.is_null() { without(entra(), "roles") } else { with(entra(), "/roles", roles) };
        assert_eq!(by_entra(&claims).await.map(|caller| caller.roles), Ok(read), "{claims}");
    }

    // Each claim has names of its own, and all of them together give the roles.
    for (wids, read) in [
        (json!(["62e90394-69f5-4237-9190-012177145e10"]), vec!["READER", "WRITER"]),
        (json!(["Gate.Read"]), vec!["WRITER"]),
    ] {
        let claims = with(entra(), "/wids", wids);
        assert_eq!(by_entra(&claims).await.map(|caller| caller.roles), Ok(read), "{claims}");
    }

    let refused = |said: Result<Caller, Unidentified>| match said {
        Err(Unidentified::Refused(refused)) => refused.claim.into_owned(),
        other => panic!("{other:?}"),
    };
    for (claims, claim) in [
        (without(entra(), "tid"), "iss"),
        (with(entra(), "/tid", json!("tenant")), "iss"),
        (with(entra(), "/iss", json!("https://login.example/tenant/v2.0")), "iss"),
        // Only an id stands for the tenant.
        (
            with(with(entra(), "/tid", json!("x/../y")), "/iss", json!("https://login.example/x/../y/v2.0")),
            "iss",
        ),
        // Of another tenant's issuer.
        (with(entra(), "/tid", json!(Uuid::from_u128(9))), "iss"),
        (with(entra(), "/aud", json!("others")), "aud"),
        (without(entra(), "oid"), "oid"),
        (with(entra(), "/oid", json!(7)), "oid"),
        (with(entra(), "/idtyp", json!("API")), "idtyp"),
        (with(entra(), "/roles", json!({"Gate.Write": true})), "roles"),
        (with(entra(), "/wids", json!(true)), "wids"),
    ] {
        assert_eq!(refused(by_entra(&claims).await), claim, "{claims}");
    }
    for (claims, claim) in [
        (with(keycloak(), "/tenant", json!({"id": TENANT})), "/tenant/kind"),
        // Where names are mapped, the service's own mean nothing.
        (with(keycloak(), "/tenant/kind", json!("INTERNAL")), "/tenant/kind"),
        (with(keycloak(), "/tenant/id", json!(null)), "/tenant/id"),
        (with(keycloak(), "/aud", json!(["account"])), "aud"),
    ] {
        assert_eq!(refused(by_keycloak(&claims).await), claim, "{claims}");
    }

    // An issuer's key signs for no other issuer.
    assert_eq!(refused(by_keycloak(&entra()).await), "kid");
    assert_eq!(refused(by_entra(&keycloak()).await), "kid");
    assert_eq!(refused(tokens.caller("no.token").await), "authorization");
}

/// In whatever order they are listed.
#[tokio::test]
async fn an_issuer_of_one_name_has_precedence_over_a_template() {
    let [tenants_key, own_key] = [0; 2].map(|_| SigningKey::generate().unwrap().0);
    let own = entra()["iss"].as_str().unwrap().to_owned();
    for is_own_first in [true, false] {
        let mut issuers = vec![
            issuer(&own_key, expected(&own, entra_mapping())),
            issuer(&tenants_key, expected("https://login.example/{tenantid}/v2.0", entra_mapping())),
        ];
        if !is_own_first {
            issuers.reverse();
        }
        let tokens = tokens_of(issuers, Clock::manual(at(NOW)), |_| Ok(true));
        let other = Uuid::from_u128(9);
        let of_other = with(entra(), "/iss", json!(format!("https://login.example/{other}/v2.0")));
        let of_other = with(of_other, "/tid", json!(other));
        for (key, claims, is_accepted) in [
            (&own_key, entra(), true),
            (&tenants_key, entra(), false),
            (&own_key, of_other.clone(), false),
            (&tenants_key, of_other, true),
        ] {
            let caller = tokens.caller(&key.sign(&claims).unwrap()).await;
            assert_eq!(caller.is_ok(), is_accepted, "{is_own_first} {claims}: {caller:?}");
        }
    }
}

/// Its text would be no token.
#[tokio::test]
async fn a_remembered_token_of_one_of_several_issuers_is_not_decoded_again() {
    let (key, _) = SigningKey::generate().unwrap();
    let issuers = [ISSUER, "https://other.example"].map(|name| issuer(&key, expected(name, json!({}))));
    let tokens = tokens_of(issuers.into(), Clock::manual(at(NOW)), |_| Ok(false));
    let token = "remembered";
    let why = Refused::new("authorization", "the token is no signed JWT");
    assert_eq!(tokens.caller_at_once(token), Known::All(Err(Unidentified::Refused(why))));
    let caller = Caller {
        tenant_kind: "TENANT",
        tenant_id: TENANT,
        user_id: USER,
        roles: vec![],
        channel: Channel::Api,
        client: None,
    };
    let verified =
        Verified { caller: caller.clone(), registration_decides: false, expires: NOW + 1, not_before: None };
    for issuer in tokens.issuers() {
        let keys = issuer.keys.now().unwrap();
        issuer.remembered().insert(&keys, Sha256::digest(token).into(), &verified);
        assert_eq!(tokens.caller_at_once(token), Known::All(Ok(caller.clone())));
        issuer.remembered().tokens.clear();
    }
}

#[tokio::test]
async fn a_key_published_for_one_issuer_signs_for_no_other() {
    let (key, _) = SigningKey::generate().unwrap();
    let accepted = async |key_issuer: Value| {
        let mut set: Value = serde_json::from_str(&SigningKey::public_set(&[&key])).unwrap();
        set["keys"][0]["issuer"] = key_issuer;
        let keys = Keys::File(file_keys(&set.to_string()));
        let entra_ids = expected("https://login.example/{tenantid}/v2.0", entra_mapping());
        let tokens =
            tokens_of(vec![TrustedIssuer::new(keys, entra_ids)], Clock::manual(at(NOW)), |_| Ok(true));
        tokens.caller(&key.sign(&entra()).unwrap()).await.is_ok()
    };
    for (issuer, is_accepted) in [
        ("https://login.example/{tenantid}/v2.0".to_owned(), true),
        (format!("https://login.example/{TENANT}/v2.0"), true),
        (format!("https://login.example/{}/v2.0", Uuid::from_u128(9)), false),
        ("https://other.example/{tenantid}/v2.0".to_owned(), false),
    ] {
        assert_eq!(accepted(json!(issuer)).await, is_accepted, "{issuer}");
    }
}

#[tokio::test]
async fn a_tenant_that_cannot_be_asked_about_is_refused() {
    let (key, _) = SigningKey::generate().unwrap();
    let entra_ids = || expected("https://login.example/{tenantid}/v2.0", entra_mapping());
    let tokens =
        tokens_of(vec![issuer(&key, entra_ids())], Clock::manual(at(NOW)), |_| Err(RegistrationUnknown));
    let token = key.sign(&entra()).unwrap();
    assert_eq!(tokens.caller_at_once(&token), Known::NeedsRegistration(TENANT));
    assert_eq!(tokens.caller(&token).await, Err(Unidentified::RegistrationUnknown));
}
