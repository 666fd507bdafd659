//! Tests of tokens: signatures, claims and keys.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::DateTime;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use super::signing::{SigningKey, claims};
use super::*;
use crate::auth::registration::IsRegistered;
use crate::auth::{Channel, Vocabulary};
use crate::telemetry::Captured;

pub(super) const ISSUER: &str = "https://issuer.example";
pub(super) const NOW: i64 = 1_790_000_000;

pub(super) fn at(seconds: i64) -> Time {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

fn agent() -> Caller {
    Caller {
        tenant_kind: "TENANT",
        tenant_id: Uuid::from_u128(0xd1),
        user_id: Uuid::from_u128(7),
        roles: vec!["WRITER"],
        channel: Channel::Api,
        client: None,
    }
}

fn valid() -> Value {
    claims(&agent(), ISSUER, "ours", at(NOW), TimeDelta::hours(1))
}

/// The valid claims with one replaced, or left out if the value is null.
fn with(claim: &str, value: Value) -> Value {
    let mut claims = valid();
    claims[claim] = value;
    claims
}

struct Verifier {
    tokens: Tokens,
    clock: Clock,
    jwks: std::path::PathBuf,
    _folder: TempDir,
}

fn verifier(set: &str) -> Verifier {
    let folder = tempfile::tempdir().unwrap();
    let jwks = folder.path().join("jwks.json");
    std::fs::write(&jwks, set).unwrap();
    let clock = Clock::manual(at(NOW));
    let keys = Watched::open(vec![jwks.clone()], |contents| KeySet::read(&contents[0])).unwrap();
    let issuers = vec![TrustedIssuer::new(Keys::File(keys), expected(ISSUER, json!({})))];
    Verifier { tokens: tokens_of(issuers, clock.clone(), |_| Ok(false)), clock, jwks, _folder: folder }
}

/// Tokens of some issuers, for a service with which the tenants of `is_registered` are.
pub(super) fn tokens_of(
    issuers: Vec<TrustedIssuer>,
    clock: Clock,
    is_registered: fn(Uuid) -> Result<bool, RegistrationUnknown>,
) -> Tokens {
    let is_registered: IsRegistered = Arc::new(move |id| Box::pin(std::future::ready(is_registered(id))));
    let registrations = Registrations::new(is_registered, Vocabulary::TEST);
    Tokens::new(issuers, TimeDelta::seconds(30), clock, registrations)
}

/// The keys of a set, as a file that never changes.
pub(super) fn file_keys(set: &str) -> Watched<KeySet> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, set).unwrap();
    Watched::open(vec![file], |contents| KeySet::read(&contents[0])).unwrap()
}

pub(super) fn expected(issuer: &str, mapping: Value) -> Expected {
    Expected {
        issuer: Issuer(issuer.into()),
        audiences: vec!["ours".into()],
        mapping: serde_json::from_value(mapping).unwrap(),
        identities: vec![],
        vocabulary: Vocabulary::TEST,
    }
}

impl Verifier {
    fn caller(&self, token: &str) -> Result<Caller, Refused> {
        match self.tokens.caller_at_once(token) {
            Known::All(Ok(caller)) => Ok(caller),
            Known::All(Err(Unidentified::Refused(refused))) => Err(refused),
            other => panic!("{other:?}"),
        }
    }

    fn file(&self) -> &Watched<KeySet> {
        let Keys::File(file) = &self.tokens.issuers()[0].keys else { panic!("the keys are no file") };
        file
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.tokens.issuers()[0].remembered()
    }
}

fn part(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

/// The claim that the refusal of a token names.
fn refused(verifier: &Verifier, token: &str) -> String {
    match verifier.caller(token) {
        Err(refused) => {
            assert!(!token.is_empty() && !refused.sentence.contains(token));
            refused.claim.into_owned()
        }
        Ok(caller) => panic!("{caller:?} is accepted by {token}"),
    }
}

fn jwk(signs: &EncodingKey, algorithm: Algorithm, id: &str) -> Value {
    let mut jwk = Jwk::from_encoding_key(signs, algorithm).unwrap();
    jwk.common.key_id = Some(id.into());
    serde_json::to_value(jwk).unwrap()
}

fn signed(signs: &EncodingKey, algorithm: Algorithm, id: &str) -> String {
    let mut header = Header::new(algorithm);
    header.kid = Some(id.into());
    jsonwebtoken::encode(&header, &valid(), signs).unwrap()
}

fn p256() -> EncodingKey {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref())
}

fn rsa() -> EncodingKey {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let pem = pem_of("PRIVATE KEY", pkcs8.as_ref());
    EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
}

fn pem_of(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

#[test]
fn a_key_is_read_back_and_its_public_set_holds_no_secret() {
    let (key, pem) = SigningKey::generate().unwrap();
    let again = SigningKey::read(pem.as_bytes()).unwrap();
    assert_eq!(key.public, again.public);
    let set = SigningKey::public_set(&[&key]);
    assert!(!set.contains("\"d\"") && set.contains("\"kid\""), "{set}");
    for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", &set] {
        assert!(SigningKey::read(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_token_is_accepted_under_the_key_it_names_only() {
    let (ed, pem) = SigningKey::generate().unwrap();
    let ed_signs = EncodingKey::from_ed_pem(pem.as_bytes()).unwrap();
    let (ec, rsa) = (p256(), rsa());
    let keys =
        [(&ed_signs, Algorithm::EdDSA, "ed"), (&ec, Algorithm::ES256, "ec"), (&rsa, Algorithm::RS256, "rsa")];
    let mut set: Vec<_> = keys.iter().map(|(signs, algorithm, id)| jwk(signs, *algorithm, id)).collect();
    // Other keys that a provider publishes are skipped.
    let mut encrypts = jwk(&rsa, Algorithm::RS256, "encrypts");
    encrypts["use"] = json!("enc");
    let mut other_algorithm = jwk(&rsa, Algorithm::RS256, "rs512");
    other_algorithm["alg"] = json!("RS512");
    let mut nameless = jwk(&rsa, Algorithm::RS256, "");
    nameless.as_object_mut().unwrap().remove("kid");
    let secret = json!({"kty": "oct", "kid": "secret", "k": URL_SAFE_NO_PAD.encode("a secret of 32 bytes, all of it!")});
    let unknown_kind = json!({"kty": "LATTICE", "kid": "new", "x": "AAAA"});
    set.extend([encrypts, other_algorithm, nameless, secret, unknown_kind]);
    let verifier = verifier(&json!({ "keys": set }).to_string());
    for (signs, algorithm, id) in keys {
        assert_eq!(verifier.caller(&signed(signs, algorithm, id)), Ok(agent()), "{id}");
        for other in ["ed", "ec", "rsa"].into_iter().filter(|other| *other != id) {
            assert_eq!(refused(&verifier, &signed(signs, algorithm, other)), "authorization");
        }
    }
    for skipped in ["encrypts", "rs512", "secret", "new", ""] {
        assert_eq!(refused(&verifier, &signed(&rsa, Algorithm::RS256, skipped)), "kid");
    }
    // The same key with another algorithm of its kind.
    assert_eq!(refused(&verifier, &signed(&rsa, Algorithm::RS512, "rsa")), "authorization");
    assert_eq!(refused(&verifier, &signed(&rsa, Algorithm::PS256, "rsa")), "authorization");
    let secret = EncodingKey::from_secret(b"a secret of 32 bytes, all of it!");
    assert_eq!(refused(&verifier, &signed(&secret, Algorithm::HS256, "secret")), "kid");
    assert!(ed.sign(&valid()).is_ok());
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let (key, _) = SigningKey::generate().unwrap();
    let (other, _) = SigningKey::generate().unwrap();
    let verifier = verifier(&SigningKey::public_set(&[&key]));
    let good = key.sign(&valid()).unwrap();
    let id = key.public.common.key_id.clone().unwrap();
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
    let AlgorithmParameters::OctetKeyPair(public) = &key.public.algorithm else { panic!("no Ed25519") };
    let public = URL_SAFE_NO_PAD.decode(&public.x).unwrap();

    let unsigned = part(&json!({"alg": "none", "kid": id}));
    let by_public_key = |secret: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some(id.clone());
        jsonwebtoken::encode(&header, &valid(), &EncodingKey::from_secret(secret)).unwrap()
    };
    let others = other.sign(&valid()).unwrap();
    let others_signature = others.rsplit('.').next().unwrap();
    let other_kind = part(&with("tenant_kind", json!("OTHER")));
    let headed = |header: Value| {
        let message = format!("{}.{payload}", part(&header));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key.signs, Algorithm::EdDSA).unwrap();
        format!("{message}.{signature}")
    };
    for (forged, about) in [
        (format!("{header}.{other_kind}.{signature}"), "authorization"),
        (format!("{header}.{payload}.{others_signature}"), "authorization"),
        (format!("{header}.{payload}."), "authorization"),
        (format!("{header}.{payload}"), "authorization"),
        (format!("{header}.{payload}.{}", &signature[..signature.len() - 2]), "authorization"),
        (good[..good.len() / 2].to_owned(), "authorization"),
        (format!("{good}.{good}"), "authorization"),
        (format!("{good}x"), "authorization"),
        (format!("{unsigned}.{payload}."), "authorization"),
        (format!("{unsigned}.{payload}.{signature}"), "authorization"),
        (by_public_key(&public), "authorization"),
        (by_public_key(SigningKey::public_set(&[&key]).as_bytes()), "authorization"),
        (others, "kid"),
        (headed(json!({"alg": "EdDSA"})), "kid"),
        (headed(json!({"alg": "EdDSA", "kid": "unknown"})), "kid"),
        (headed(json!({"alg": "EdDSA", "kid": id, "crit": ["b64"], "b64": false})), "authorization"),
        (headed(json!({"alg": "ES256", "kid": id})), "authorization"),
        (headed(json!({"alg": "eddsa", "kid": id})), "authorization"),
        // The token brings its own key.
        (headed(json!({"alg": "EdDSA", "kid": "mine", "jwk": key.public})), "kid"),
        ("abc".into(), "authorization"),
        ("..".into(), "authorization"),
    ] {
        assert_eq!(refused(&verifier, &forged), about, "{forged}");
    }
    assert_eq!(verifier.caller(&headed(json!({"alg": "EdDSA", "kid": id}))), Ok(agent()));
    assert_eq!(verifier.caller(&good), Ok(agent()));
}

#[tokio::test]
async fn a_claim_that_is_missing_or_malformed_is_named() {
    let (key, _) = SigningKey::generate().unwrap();
    let verifier = verifier(&SigningKey::public_set(&[&key]));
    let bad_ids = [
        json!(null),
        json!(""),
        json!(7),
        json!("ABCDEF00-0000-4000-8000-0000000000D1"),
        json!("00000000-0000-0000-0000-000000000000"),
        json!("0000000000004000800000000000abcd"),
        json!(["00000000-0000-4000-8000-0000000000d1"]),
    ];
    let bad_kinds = [json!(null), json!(""), json!("tenant"), json!("STRANGER"), json!(["TENANT"])];
    let bad_times = [json!(null), json!("1790003600"), json!([1_790_003_600]), json!(true)];
    for (claim, values) in [
        ("iss", &[json!(null), json!("https://other.example"), json!([ISSUER]), json!("")][..]),
        ("aud", &[json!(null), json!("theirs"), json!([]), json!(["theirs"]), json!("ours,theirs")]),
        ("exp", &bad_times),
        ("nbf", &bad_times[1..]),
        ("sub", &bad_ids),
        ("tenant_id", &bad_ids),
        ("tenant_kind", &bad_kinds),
        ("roles", &[json!(7), json!({"WRITER": true})]),
        ("channel", &[json!("PHONE"), json!("api"), json!(""), json!(["API"])]),
    ] {
        for value in values {
            let token = key.sign(&with(claim, value.clone())).unwrap();
            assert_eq!(refused(&verifier, &token), claim, "{value}");
        }
    }
    for (claim, value) in
        [("aud", json!(["theirs", "ours"])), ("exp", json!(1_790_003_600.5)), ("nbf", json!(null))]
    {
        let token = key.sign(&with(claim, value)).unwrap();
        assert_eq!(verifier.caller(&token), Ok(agent()), "{claim}");
    }
    for (client_id, azp, appid, expected) in [
        (json!("a"), json!("b"), json!("c"), Some("a")),
        (json!(null), json!("b"), json!("c"), Some("b")),
        (json!([]), json!(""), json!("c"), Some("c")),
        (json!(null), json!(null), json!(null), None),
    ] {
        let mut claims = with("client_id", client_id);
        claims["azp"] = azp;
        claims["appid"] = appid;
        let token = key.sign(&claims).unwrap();
        assert_eq!(verifier.caller(&token).unwrap().client.as_deref(), expected, "{claims}");
    }
    let without_channel = key.sign(&with("channel", json!(null))).unwrap();
    assert_eq!(verifier.caller(&without_channel).unwrap().channel, Channel::Dashboard);
    for roles in [json!(["OWNER", "writer", "*", 7, null, "WRITER,READER"]), json!([]), json!(null)] {
        let token = key.sign(&with("roles", roles)).unwrap();
        assert_eq!(verifier.caller(&token).unwrap().roles, [""; 0]);
    }
    for roles in ["WRITER", "OWNER WRITER", "WRITER,WRITER", " WRITER, OWNER"] {
        let token = key.sign(&with("roles", json!(roles))).unwrap();
        assert_eq!(verifier.caller(&token).unwrap().roles, ["WRITER"], "{roles}");
    }
    let not_an_object = key.sign(&json!(["iss"])).unwrap();
    assert_eq!(refused(&verifier, &not_an_object), "authorization");
}

#[tokio::test]
async fn the_times_are_checked_on_each_use_with_the_leeway() {
    let (key, _) = SigningKey::generate().unwrap();
    let verifier = verifier(&SigningKey::public_set(&[&key]));
    let token = key.sign(&valid()).unwrap();
    let expires = NOW + 3600;
    for (seconds, about) in [
        (NOW - 31, Some("nbf")),
        (NOW - 30, None),
        (expires + 29, None),
        (expires + 30, Some("exp")),
        // A remembered token is checked again.
        (NOW, None),
        (expires + 86_400, Some("exp")),
        (NOW - 86_400, Some("nbf")),
    ] {
        verifier.clock.set(at(seconds));
        assert_eq!(
            verifier.caller(&token).err().map(|refused| refused.claim),
            about.map(Into::into),
            "{seconds}"
        );
    }
    verifier.clock.set(at(NOW));
    let forever = key.sign(&with("exp", json!(1e300))).unwrap();
    assert_eq!(verifier.caller(&forever), Ok(agent()));
    assert_eq!(refused(&verifier, &key.sign(&with("exp", json!(-1e300))).unwrap()), "exp");
    assert_eq!(refused(&verifier, &key.sign(&with("nbf", json!(1e300))).unwrap()), "nbf");
}

#[tokio::test]
async fn remembered_tokens_are_bounded_and_forgotten_with_the_keys() {
    let (key, _) = SigningKey::generate().unwrap();
    let (other, _) = SigningKey::generate().unwrap();
    let verifier = verifier(&SigningKey::public_set(&[&key]));
    let token = key.sign(&valid()).unwrap();
    let remembered = || verifier.remembered().tokens.len();
    assert_eq!((verifier.caller(&token), remembered()), (Ok(agent()), 1));
    assert_eq!((verifier.caller(&token), remembered()), (Ok(agent()), 1));
    // A token that differs in its last byte is another token, and refused tokens are not remembered.
    let last = if token.ends_with('A') { 'Q' } else { 'A' };
    refused(&verifier, &format!("{}{last}", &token[..token.len() - 1]));
    refused(&verifier, &other.sign(&valid()).unwrap());
    assert_eq!(remembered(), 1);

    let (keys, verified) = (
        verifier.tokens.issuers()[0].keys.now().unwrap(),
        Verified { caller: agent(), registration_decides: false, expires: 0, not_before: None },
    );
    for n in 0..REMEMBERED_MAX + 10 {
        let digest = Sha256::digest(n.to_string()).into();
        verifier.remembered().insert(&keys, digest, &verified);
        assert!(remembered() <= REMEMBERED_MAX);
    }

    assert_eq!(verifier.caller(&token), Ok(agent()));
    std::fs::write(&verifier.jwks, SigningKey::public_set(&[&other])).unwrap();
    let replaced = async {
        while verifier.caller(&token).is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), replaced).await.unwrap();
    assert_eq!(refused(&verifier, &token), "kid");
    // A verification that began under the old keys is not remembered under the new ones.
    verifier.remembered().insert(&keys, Sha256::digest(&token).into(), &verified);
    assert_eq!(refused(&verifier, &token), "kid");
    assert_eq!(verifier.caller(&other.sign(&valid()).unwrap()), Ok(agent()));
}

#[tokio::test]
async fn an_empty_set_rejects_all_tokens() {
    let (key, _) = SigningKey::generate().unwrap();
    let verifier = verifier(r#"{"keys": []}"#);
    assert_eq!(refused(&verifier, &key.sign(&valid()).unwrap()), "kid");
}

#[test]
fn the_validity_of_a_token_is_read_without_its_key() {
    let (key, _) = SigningKey::generate().unwrap();
    let life_of = |claims: &Value| life(&key.sign(claims).unwrap());
    let ends = NOW + 3600;
    assert_eq!(life_of(&valid()), Some((Some(NOW), ends)));
    assert_eq!(life_of(&with("iat", json!(null))), Some((Some(NOW), ends)));
    assert_eq!(life_of(&json!({"exp": ends, "nbf": 7})), Some((Some(7), ends)));
    assert_eq!(life_of(&json!({"exp": ends})), Some((None, ends)));
    assert_eq!(life_of(&with("exp", json!(null))), None);
    for none in ["", "a.b.c", "opaque"] {
        assert_eq!(life(none), None, "{none}");
    }
}

/// Keys that verify no token, each with a word of its problem.
fn unusable() -> Vec<(Value, &'static str)> {
    let (key, _) = SigningKey::generate().unwrap();
    let with = |claim: &str, value: Value| {
        let mut key = serde_json::to_value(&key.public).unwrap();
        key[claim] = value;
        key
    };
    let mut weak = jwk(&rsa(), Algorithm::RS256, "weak");
    weak["n"] = json!(URL_SAFE_NO_PAD.encode([0xff; 128]));
    // As RFC 7518, section 6.3.1.1, warns of.
    let mut with_zero = jwk(&rsa(), Algorithm::RS256, "zero");
    let modulus = URL_SAFE_NO_PAD.decode(with_zero["n"].as_str().unwrap()).unwrap();
    with_zero["n"] = json!(URL_SAFE_NO_PAD.encode([&[0], modulus.as_slice()].concat()));
    let mut even = jwk(&rsa(), Algorithm::RS256, "even");
    even["e"] = json!("Ag");
    let mut off_the_curve = jwk(&p256(), Algorithm::ES256, "curve");
    off_the_curve["y"] = off_the_curve["x"].clone();
    let mut without_point = jwk(&p256(), Algorithm::ES256, "point");
    without_point["y"] = json!("");
    vec![
        (with("x", json!("AAAA")), "length"),
        (with("x", json!("not base64!")), ""),
        (with("x", json!(7)), "malformed"),
        (with("kid", json!(null)), "kid"),
        (with("kid", json!(7)), "malformed"),
        (with("kty", json!("LATTICE")), "malformed"),
        (with("crv", json!("Ed448")), ""),
        (with("alg", json!("HS512")), "alg"),
        (with("alg", json!("ML-DSA-44")), "alg"),
        (with("use", json!("enc")), "use"),
        (with("use", json!("dance")), "use"),
        (with("key_ops", json!(["sign"])), "key_ops"),
        (weak, "length"),
        (with_zero, "no public key"),
        (even, "no public key"),
        (off_the_curve, "no public key"),
        (without_point, ""),
        (json!({"kty": "oct", "kid": "a", "k": "AAAA"}), "malformed"),
        (json!("no object"), "malformed"),
        (json!(null), "malformed"),
        (json!({}), "malformed"),
    ]
}

#[test]
fn an_invalid_set_is_refused() {
    for (set, complaint) in
        [("", "not a JWK set"), ("{}", "not a JWK set"), (r#"{"keys": {}}"#, "not a JWK set")]
    {
        let why = format!("{:#}", KeySet::read(set.as_bytes()).err().unwrap());
        assert!(why.contains(complaint), "{set}: {why}");
    }
    // A set without any usable key names the problem of each.
    for (key, problem) in unusable() {
        let set = json!({ "keys": [key, key] }).to_string();
        let why = format!("{:#}", KeySet::read(set.as_bytes()).err().unwrap());
        assert!(why.contains(problem) && why.contains("keys[0]") && why.contains("keys[1]"), "{set}: {why}");
    }
}

/// A key that verifies nothing, wherever it stands, takes no other key away: at the start and at a rotation.
#[tokio::test]
async fn the_other_keys_of_a_set_with_a_bad_one_work() {
    let (key, _) = SigningKey::generate().unwrap();
    let (next, _) = SigningKey::generate().unwrap();
    let public = |key: &SigningKey| serde_json::to_value(&key.public).unwrap();
    for (bad, problem) in unusable() {
        let (log, guard) = Captured::begin();
        KeySet::read(json!({ "keys": [bad, public(&key)] }).to_string().as_bytes()).unwrap();
        drop(guard);
        let [line] = &log.lines()[..] else { panic!("{:#?}", log.lines()) };
        let id = bad["kid"].as_str().unwrap_or("none");
        assert!(line.contains("WARN") && line.contains(id) && line.contains(problem), "{line}");
        for keys in [[bad.clone(), public(&key)], [public(&key), bad]] {
            let verifier = verifier(&json!({ "keys": keys }).to_string());
            assert_eq!(verifier.caller(&key.sign(&valid()).unwrap()), Ok(agent()), "{keys:?}");
        }
    }
    let twice = verifier(&json!({"keys": [public(&key), public(&key)]}).to_string());
    assert_eq!(twice.caller(&key.sign(&valid()).unwrap()), Ok(agent()));

    // Windows' editors put a mark before the text.
    let rotating = verifier(&format!("\u{feff}{}", SigningKey::public_set(&[&key])));
    let bad = unusable().into_iter().map(|(bad, _)| bad);
    let put = |keys: Vec<Value>| std::fs::write(&rotating.jwks, json!({ "keys": keys }).to_string()).unwrap();
    put(bad.clone().chain([public(&next)]).collect());
    let rotated = async {
        while rotating.caller(&next.sign(&valid()).unwrap()).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), rotated).await.unwrap();
    put(bad.collect());
    let refused = async {
        while rotating.file().is_valid() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), refused).await.unwrap();
    assert_eq!(rotating.caller(&next.sign(&valid()).unwrap()), Ok(agent()));
}
