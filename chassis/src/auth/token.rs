//! Signed tokens (JWT): how a caller's is verified, and how one for development is made.
//!
//! The key decides the algorithm and the token's header only names the key: `none`, or a signature
//! that takes a public key for a shared secret, has nobody here to believe it. What a token says of
//! where its key is to be found (`jwk`, `jku`, `x5u`) is never followed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chrono::TimeDelta;
use clap::ValueEnum;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey, Header};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Caller, Channel, TenantKind, role_of};
use crate::clock::{Clock, Time};
use crate::reload::Watched;

/// Tokens whose signature need not be verified again. Verifying one takes longer than all the rest of a
/// cheap call, and services present the same for hours. An entry has about 200 bytes. When there are
/// more callers than this, all are forgotten and verified anew.
const REMEMBERED_MAX: usize = 4096;

/// An RSA modulus from 2048 bits, below which signatures can be forged with some effort, to 8192, above
/// which verifying one takes too long.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
const ED25519_BYTES: usize = 32;
const P256_POINT_BYTES: usize = 65;

/// Verifies tokens against a set of keys that may change meanwhile.
pub(super) struct Tokens {
    keys: Watched<KeySet>,
    issuer: String,
    audience: String,
    /// By how much the clocks of issuer and service may differ.
    leeway: TimeDelta,
    clock: Clock,
    remembered: Mutex<Remembered>,
}

/// Why a token is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// What about it: a claim, `kid`, or the token as a whole.
    pub(super) claim: &'static str,
    /// What is the matter, and what helps. The token is not in it.
    pub(super) sentence: &'static str,
}

/// The keys whose signatures count.
pub(super) struct KeySet(Vec<Key>);

struct Key {
    id: String,
    algorithm: Algorithm,
    verifies: DecodingKey,
}

/// Tokens whose signatures and claims were found right under these keys. By digest, so that what is kept
/// is bounded and is of no use to anybody.
struct Remembered {
    under: Arc<KeySet>,
    tokens: HashMap<[u8; 32], Verified>,
}

/// What a token says, once it was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verified {
    caller: Caller,
    /// In seconds since 1970, as the token says.
    expires: i64,
    not_before: Option<i64>,
}

impl Tokens {
    pub(super) fn new(
        keys: Watched<KeySet>,
        issuer: String,
        audience: String,
        leeway: TimeDelta,
        clock: Clock,
    ) -> Self {
        let remembered = Remembered { under: keys.now(), tokens: HashMap::new() };
        Self { keys, issuer, audience, leeway, clock, remembered: Mutex::new(remembered) }
    }

    /// Whoever the token was issued to. Signature and claims of one that was seen before under the same
    /// keys are not looked at again; the time always is.
    pub(super) fn caller(&self, token: &str) -> Result<Caller, Refused> {
        let keys = self.keys.now();
        let digest: [u8; 32] = Sha256::digest(token).into();
        let seen = self.remembered().find(&keys, &digest);
        let verified = match seen {
            Some(verified) => verified,
            None => {
                let verified = keys.verify(token, &self.issuer, &self.audience)?;
                self.remembered().keep(&keys, digest, &verified);
                verified
            }
        };
        verified.at(self.clock.now(), self.leeway)
    }

    pub(super) fn keys(&self) -> &Watched<KeySet> {
        &self.keys
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn find(&mut self, keys: &Arc<KeySet>, digest: &[u8; 32]) -> Option<Verified> {
        if !Arc::ptr_eq(&self.under, keys) {
            self.under = keys.clone();
            self.tokens.clear();
        }
        self.tokens.get(digest).cloned()
    }

    /// Keeps what was verified, unless the keys have changed since.
    fn keep(&mut self, keys: &Arc<KeySet>, digest: [u8; 32], verified: &Verified) {
        if !Arc::ptr_eq(&self.under, keys) {
            return;
        }
        if self.tokens.len() >= REMEMBERED_MAX {
            self.tokens.clear();
        }
        self.tokens.insert(digest, verified.clone());
    }
}

impl Verified {
    fn at(self, now: Time, leeway: TimeDelta) -> Result<Caller, Refused> {
        let (now, leeway) = (now.timestamp(), leeway.num_seconds());
        if now >= self.expires.saturating_add(leeway) {
            return Err(Refused { claim: "exp", sentence: "the token has expired; get a new one" });
        }
        if self.not_before.is_some_and(|not_before| now.saturating_add(leeway) < not_before) {
            let sentence = "the token is not valid yet; wait, or compare the clocks of issuer and service";
            return Err(Refused { claim: "nbf", sentence });
        }
        Ok(self.caller)
    }
}

impl KeySet {
    /// Reads a JWK set. Keys of other uses, kinds and algorithms than verify tokens here are passed over,
    /// since providers publish them side by side; and so is one without an id, which no token can name. A
    /// set of none at all is whoever empties it saying that nobody is to be believed; one in which nothing is
    /// left after that was meant otherwise.
    pub(super) fn read(contents: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(contents)
            .map_err(|error| format!("not a JWK set, {{\"keys\": [...]}}: {error}"))?;
        if set.keys.is_empty() {
            tracing::warn!("the set of keys is empty: nobody's token is believed");
            return Ok(Self(vec![]));
        }
        let mut keys: Vec<Key> = vec![];
        for (n, jwk) in set.keys.into_iter().enumerate() {
            let wrong = |why: &dyn std::fmt::Display| format!("keys[{n}]: {why}");
            let Ok(jwk) = serde_json::from_value::<Jwk>(jwk) else { continue };
            let Some(key) = Key::read(&jwk).map_err(|why| wrong(&why))? else { continue };
            if keys.iter().any(|other| other.id == key.id) {
                return Err(wrong(&"has the kid of another key"));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("no key with a kid for EdDSA (Ed25519), ES256 or RS256".into());
        }
        Ok(Self(keys))
    }

    fn verify(&self, token: &str, issuer: &str, audience: &str) -> Result<Verified, Refused> {
        let malformed = Refused { claim: "authorization", sentence: "the token is no signed JWT" };
        let header = jsonwebtoken::decode_header(token).map_err(|_| malformed)?;
        if header.crit.is_some() {
            let sentence = "the token's header has extensions that are critical and not known here";
            return Err(Refused { claim: "authorization", sentence });
        }
        // Providers that publish a key set name the key in each token. Trying all would let a token choose.
        let Some(id) = header.kid else {
            return Err(Refused { claim: "kid", sentence: "the token's header does not name its key (kid)" });
        };
        let Some(key) = self.0.iter().find(|key| key.id == id) else {
            let sentence = "the token's key is not among the keys of the issuer known here; get a new token";
            return Err(Refused { claim: "kid", sentence });
        };
        let not_signed =
            Refused { claim: "authorization", sentence: "the token's signature is not its key's" };
        let (message, signature) = token.rsplit_once('.').unwrap_or_default();
        let is_signed = header.alg == key.algorithm
            && jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.verifies, key.algorithm)
                .unwrap_or(false);
        if !is_signed {
            return Err(not_signed);
        }
        let payload = message.split_once('.').and_then(|(_, claims)| URL_SAFE_NO_PAD.decode(claims).ok());
        let claims = payload.and_then(|claims| serde_json::from_slice::<Claims>(&claims).ok());
        let no_object = Refused { claim: "authorization", sentence: "the token's claims are no JSON object" };
        claims.ok_or(no_object)?.read(issuer, audience)
    }
}

impl Key {
    /// The key, if it is one that signatures of tokens are verified with here.
    fn read(jwk: &Jwk) -> Result<Option<Self>, String> {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            _ => return Ok(None),
        };
        let common = &jwk.common;
        let is_for_signatures =
            common.public_key_use.as_ref().is_none_or(|use_| *use_ == PublicKeyUse::Signature)
                && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify))
                && common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm));
        let Some(id) = common.key_id.clone().filter(|_| is_for_signatures) else { return Ok(None) };
        let verifies = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
        let is_whole = match verifies.kind() {
            DecodingKeyKind::RsaModulusExponent { n, .. } => RSA_MODULUS_BYTES.contains(&n.len()),
            DecodingKeyKind::SecretOrDer(point) => {
                point.len() == if algorithm == Algorithm::EdDSA { ED25519_BYTES } else { P256_POINT_BYTES }
            }
        };
        let complaint = "its length is none for a key of its kind; RSA has 2048 to 8192 bits";
        if is_whole { Ok(Some(Self { id, algorithm, verifies })) } else { Err(complaint.into()) }
    }
}

/// From when, if it says so, and until when a token says that it is valid.
pub(super) fn life(token: &str) -> Option<(Option<i64>, i64)> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let time = |claim| claims.get(claim).and_then(seconds);
    Some((time("iat").or_else(|| time("nbf")), time("exp")?))
}

/// The claims that count, as they stand.
#[derive(Deserialize)]
struct Claims {
    iss: Option<Value>,
    aud: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    sub: Option<Value>,
    tenant_id: Option<Value>,
    tenant_kind: Option<Value>,
    roles: Option<Value>,
    channel: Option<Value>,
}

impl Claims {
    fn read(&self, issuer: &str, audience: &str) -> Result<Verified, Refused> {
        let refused = |claim, sentence| Refused { claim, sentence };
        if text(&self.iss) != Some(issuer) {
            return Err(refused("iss", "the token is of another issuer than this service trusts"));
        }
        let is_for_us = match &self.aud {
            Some(Value::Array(all)) => all.iter().any(|one| one == audience),
            one => text(one) == Some(audience),
        };
        if !is_for_us {
            return Err(refused("aud", "the token is for another audience than this service"));
        }
        let expires = self.exp.as_ref().and_then(seconds);
        let expires = expires.ok_or(refused("exp", "the token does not say until when it is valid (exp)"))?;
        let not_before = match &self.nbf {
            None => None,
            Some(given) => Some(seconds(given).ok_or(refused("nbf", "the token's nbf is no time"))?),
        };
        let id = |given: &Option<Value>| {
            let given = text(given)?;
            let id = Uuid::try_parse(given).ok().filter(|id| !id.is_nil())?;
            (id.to_string() == given).then_some(id)
        };
        let tenant_kind = text(&self.tenant_kind).and_then(|name| TenantKind::from_str(name, false).ok());
        let channel = match &self.channel {
            None => Some(Channel::Dashboard),
            given => text(given).and_then(|name| Channel::from_str(name, false).ok()),
        };
        // Names are looked up one by one: what is no role's name grants nothing.
        let roles = match &self.roles {
            None => Some(vec![]),
            Some(Value::Array(names)) => {
                Some(names.iter().filter_map(|name| role_of(name.as_str()?)).collect())
            }
            Some(_) => None,
        };
        let missing = |claim| refused(claim, MISSING);
        Ok(Verified {
            caller: Caller {
                tenant_kind: tenant_kind.ok_or(missing("tenant_kind"))?,
                tenant_id: id(&self.tenant_id).ok_or(missing("tenant_id"))?,
                user_id: id(&self.sub).ok_or(missing("sub"))?,
                roles: roles.ok_or(missing("roles"))?,
                channel: channel.ok_or(missing("channel"))?,
            },
            expires,
            not_before,
        })
    }
}

const MISSING: &str = "the token lacks a valid claim: sub and tenant_id are lower-case UUIDs, tenant_kind is PARTNER, CUSTOMER, \
     OPERATOR or SERVICE, roles is a list, and channel, where given, DASHBOARD or API";

fn text(claim: &Option<Value>) -> Option<&str> {
    claim.as_ref()?.as_str()
}

/// A time in seconds since 1970. Issuers may give fractions, which are cut.
fn seconds(claim: &Value) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "it saturates, and beyond the limits is forever")]
    claim.as_i64().or_else(|| claim.as_f64().map(|seconds| seconds as i64))
}

/// A key that signs tokens: for development, tests, and services where nobody else issues any. Ed25519.
pub struct SigningKey {
    signs: EncodingKey,
    public: Jwk,
}

impl SigningKey {
    /// A new key, and its private part in PEM (PKCS #8).
    ///
    /// # Errors
    /// That of the source of chance.
    pub fn generate() -> Result<(Self, String), String> {
        let failed = |_| "no key can be made";
        let der = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1()).map_err(failed)?;
        let base64 = STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
        Ok((Self::read(pem.as_bytes())?, pem))
    }

    /// Reads a private Ed25519 key in PEM (PKCS #8).
    ///
    /// # Errors
    /// What it is not. The key is not in it.
    pub fn read(pem: &[u8]) -> Result<Self, String> {
        let wrong = |_| "not a private Ed25519 key in PEM";
        let signs = EncodingKey::from_ed_pem(pem).map_err(wrong)?;
        let mut public = Jwk::from_encoding_key(&signs, Algorithm::EdDSA).map_err(wrong)?;
        public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256).map_err(wrong)?);
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { signs, public })
    }

    /// The set of this key and others, as `--jwks` takes it. No private part is in it.
    #[must_use]
    pub fn public_set(keys: &[&Self]) -> String {
        let keys: Vec<_> = keys.iter().map(|key| &key.public).collect();
        format!("{:#}\n", json!({ "keys": keys }))
    }

    /// Signs whatever the claims are; the header names this key.
    ///
    /// # Errors
    /// Claims that cannot be encoded.
    pub fn sign(&self, claims: &Value) -> Result<String, String> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid.clone_from(&self.public.common.key_id);
        jsonwebtoken::encode(&header, claims, &self.signs).map_err(|error| error.to_string())
    }
}

/// The claims of a token for a caller, valid from `now`.
#[must_use]
pub fn claims(caller: &Caller, issuer: &str, audience: &str, now: Time, valid_for: TimeDelta) -> Value {
    let expires = now.checked_add_signed(valid_for).unwrap_or(Time::MAX_UTC);
    json!({
        "iss": issuer,
        "aud": audience,
        "iat": now.timestamp(),
        "nbf": now.timestamp(),
        "exp": expires.timestamp(),
        "sub": caller.user_id,
        "tenant_id": caller.tenant_id,
        "tenant_kind": caller.tenant_kind.to_string(),
        "roles": caller.roles.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "channel": caller.channel.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RsaKeyPair};
    use chrono::DateTime;
    use tempfile::TempDir;

    use super::*;
    use crate::auth::Role;

    const ISSUER: &str = "https://issuer.example";
    const NOW: i64 = 1_790_000_000;

    fn at(seconds: i64) -> Time {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn somebody() -> Caller {
        Caller {
            tenant_kind: TenantKind::Partner,
            tenant_id: Uuid::from_u128(0xd1),
            user_id: Uuid::from_u128(7),
            roles: vec![Role::SalesAgent],
            channel: Channel::Api,
        }
    }

    fn sound() -> Value {
        claims(&somebody(), ISSUER, "ours", at(NOW), TimeDelta::hours(1))
    }

    /// The sound claims with one replaced, or, by null, left out.
    fn with(claim: &str, value: Value) -> Value {
        let mut claims = sound();
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
        let leeway = TimeDelta::seconds(30);
        let tokens = Tokens::new(keys, ISSUER.into(), "ours".into(), leeway, clock.clone());
        Verifier { tokens, clock, jwks, _folder: folder }
    }

    fn part(json: &Value) -> String {
        URL_SAFE_NO_PAD.encode(json.to_string())
    }

    /// The claim that the refusal of a token is about.
    fn refused(verifier: &Verifier, token: &str) -> &'static str {
        match verifier.tokens.caller(token) {
            Err(refused) => {
                assert!(!token.is_empty() && !refused.sentence.contains(token));
                refused.claim
            }
            Ok(caller) => panic!("{caller:?} is let in by {token}"),
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
        jsonwebtoken::encode(&header, &sound(), signs).unwrap()
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
    fn a_key_is_read_as_it_was_made_and_its_public_set_holds_no_secret() {
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
    async fn tokens_of_each_algorithm_are_believed_under_the_key_they_name_and_under_no_other() {
        let (ed, pem) = SigningKey::generate().unwrap();
        let ed_signs = EncodingKey::from_ed_pem(pem.as_bytes()).unwrap();
        let (ec, rsa) = (p256(), rsa());
        let keys = [
            (&ed_signs, Algorithm::EdDSA, "ed"),
            (&ec, Algorithm::ES256, "ec"),
            (&rsa, Algorithm::RS256, "rsa"),
        ];
        let mut set: Vec<_> = keys.iter().map(|(signs, algorithm, id)| jwk(signs, *algorithm, id)).collect();
        // What a provider publishes beside them is passed over.
        let mut encrypts = jwk(&rsa, Algorithm::RS256, "encrypts");
        encrypts["use"] = json!("enc");
        let mut other_algorithm = jwk(&rsa, Algorithm::RS256, "rs512");
        other_algorithm["alg"] = json!("RS512");
        let mut nameless = jwk(&rsa, Algorithm::RS256, "");
        nameless.as_object_mut().unwrap().remove("kid");
        let secret = json!({"kty": "oct", "kid": "secret", "k": URL_SAFE_NO_PAD.encode("a secret of 32 bytes, all of it!")});
        let unheard_of = json!({"kty": "LATTICE", "kid": "new", "x": "AAAA"});
        set.extend([encrypts, other_algorithm, nameless, secret, unheard_of]);
        let verifier = verifier(&json!({ "keys": set }).to_string());
        for (signs, algorithm, id) in keys {
            assert_eq!(verifier.tokens.caller(&signed(signs, algorithm, id)), Ok(somebody()), "{id}");
            for other in ["ed", "ec", "rsa"].into_iter().filter(|other| *other != id) {
                assert_eq!(refused(&verifier, &signed(signs, algorithm, other)), "authorization");
            }
        }
        for passed_over in ["encrypts", "rs512", "secret", "new", ""] {
            assert_eq!(refused(&verifier, &signed(&rsa, Algorithm::RS256, passed_over)), "kid");
        }
        // The same key by another algorithm of its kind.
        assert_eq!(refused(&verifier, &signed(&rsa, Algorithm::RS512, "rsa")), "authorization");
        assert_eq!(refused(&verifier, &signed(&rsa, Algorithm::PS256, "rsa")), "authorization");
        let secret = EncodingKey::from_secret(b"a secret of 32 bytes, all of it!");
        assert_eq!(refused(&verifier, &signed(&secret, Algorithm::HS256, "secret")), "kid");
        assert!(ed.sign(&sound()).is_ok());
    }

    #[tokio::test]
    async fn forged_tokens_are_refused() {
        let (key, _) = SigningKey::generate().unwrap();
        let (other, _) = SigningKey::generate().unwrap();
        let verifier = verifier(&SigningKey::public_set(&[&key]));
        let good = key.sign(&sound()).unwrap();
        let id = key.public.common.key_id.clone().unwrap();
        let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!("{good}") };
        let AlgorithmParameters::OctetKeyPair(public) = &key.public.algorithm else { panic!("no Ed25519") };
        let public = URL_SAFE_NO_PAD.decode(&public.x).unwrap();

        let unsigned = part(&json!({"alg": "none", "kid": id}));
        let by_public_key = |secret: &[u8]| {
            let mut header = Header::new(Algorithm::HS256);
            header.kid = Some(id.clone());
            jsonwebtoken::encode(&header, &sound(), &EncodingKey::from_secret(secret)).unwrap()
        };
        let others = other.sign(&sound()).unwrap();
        let others_signature = others.rsplit('.').next().unwrap();
        let operator = part(&with("tenant_kind", json!("OPERATOR")));
        let headed = |header: Value| {
            let message = format!("{}.{payload}", part(&header));
            let signature =
                jsonwebtoken::crypto::sign(message.as_bytes(), &key.signs, Algorithm::EdDSA).unwrap();
            format!("{message}.{signature}")
        };
        for (forged, about) in [
            (format!("{header}.{operator}.{signature}"), "authorization"),
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
            // It brings its own key.
            (headed(json!({"alg": "EdDSA", "kid": "mine", "jwk": key.public})), "kid"),
            ("abc".into(), "authorization"),
            ("..".into(), "authorization"),
        ] {
            assert_eq!(refused(&verifier, &forged), about, "{forged}");
        }
        assert_eq!(verifier.tokens.caller(&headed(json!({"alg": "EdDSA", "kid": id}))), Ok(somebody()));
        assert_eq!(verifier.tokens.caller(&good), Ok(somebody()));
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
        let bad_kinds = [json!(null), json!(""), json!("partner"), json!("RESELLER"), json!(["PARTNER"])];
        let bad_times = [json!(null), json!("1790003600"), json!([1_790_003_600]), json!(true)];
        for (claim, values) in [
            ("iss", &[json!(null), json!("https://other.example"), json!([ISSUER]), json!("")][..]),
            ("aud", &[json!(null), json!("theirs"), json!([]), json!(["theirs"]), json!("ours,theirs")]),
            ("exp", &bad_times),
            ("nbf", &bad_times[1..]),
            ("sub", &bad_ids),
            ("tenant_id", &bad_ids),
            ("tenant_kind", &bad_kinds),
            ("roles", &[json!("SALES_AGENT"), json!({"SALES_AGENT": true})]),
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
            assert_eq!(verifier.tokens.caller(&token), Ok(somebody()), "{claim}");
        }
        let without_channel = key.sign(&with("channel", json!(null))).unwrap();
        assert_eq!(verifier.tokens.caller(&without_channel).unwrap().channel, Channel::Dashboard);
        for roles in
            [json!(["OWNER", "sales_agent", "*", 7, null, "SALES_AGENT,ADMIN_AGENT"]), json!([]), json!(null)]
        {
            let token = key.sign(&with("roles", roles)).unwrap();
            assert_eq!(verifier.tokens.caller(&token).unwrap().roles, []);
        }
        let not_an_object = key.sign(&json!(["iss"])).unwrap();
        assert_eq!(refused(&verifier, &not_an_object), "authorization");
    }

    #[tokio::test]
    async fn the_time_is_looked_at_on_every_use_with_the_leeway_and_no_more() {
        let (key, _) = SigningKey::generate().unwrap();
        let verifier = verifier(&SigningKey::public_set(&[&key]));
        let token = key.sign(&sound()).unwrap();
        let expires = NOW + 3600;
        for (seconds, about) in [
            (NOW - 31, Some("nbf")),
            (NOW - 30, None),
            (expires + 29, None),
            (expires + 30, Some("exp")),
            // Having been let in before makes no difference.
            (NOW, None),
            (expires + 86_400, Some("exp")),
            (NOW - 86_400, Some("nbf")),
        ] {
            verifier.clock.set(at(seconds));
            assert_eq!(verifier.tokens.caller(&token).err().map(|refused| refused.claim), about, "{seconds}");
        }
        verifier.clock.set(at(NOW));
        let forever = key.sign(&with("exp", json!(1e300))).unwrap();
        assert_eq!(verifier.tokens.caller(&forever), Ok(somebody()));
        assert_eq!(refused(&verifier, &key.sign(&with("exp", json!(-1e300))).unwrap()), "exp");
        assert_eq!(refused(&verifier, &key.sign(&with("nbf", json!(1e300))).unwrap()), "nbf");
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded_by_the_whole_token_and_forgotten_with_the_keys() {
        let (key, _) = SigningKey::generate().unwrap();
        let (other, _) = SigningKey::generate().unwrap();
        let verifier = verifier(&SigningKey::public_set(&[&key]));
        let token = key.sign(&sound()).unwrap();
        let remembered = || verifier.tokens.remembered().tokens.len();
        assert_eq!((verifier.tokens.caller(&token), remembered()), (Ok(somebody()), 1));
        assert_eq!((verifier.tokens.caller(&token), remembered()), (Ok(somebody()), 1));
        // One that differs in its last byte only is another, and what was refused is not remembered.
        let last = if token.ends_with('A') { 'Q' } else { 'A' };
        refused(&verifier, &format!("{}{last}", &token[..token.len() - 1]));
        refused(&verifier, &other.sign(&sound()).unwrap());
        assert_eq!(remembered(), 1);

        let (keys, verified) =
            (verifier.tokens.keys.now(), Verified { caller: somebody(), expires: 0, not_before: None });
        for n in 0..REMEMBERED_MAX + 10 {
            let digest = Sha256::digest(n.to_string()).into();
            verifier.tokens.remembered().keep(&keys, digest, &verified);
            assert!(remembered() <= REMEMBERED_MAX);
        }

        assert_eq!(verifier.tokens.caller(&token), Ok(somebody()));
        std::fs::write(&verifier.jwks, SigningKey::public_set(&[&other])).unwrap();
        let replaced = async {
            while verifier.tokens.caller(&token).is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), replaced).await.unwrap();
        assert_eq!(refused(&verifier, &token), "kid");
        // A verification that began under the old keys does not come in afterwards.
        verifier.tokens.remembered().keep(&keys, Sha256::digest(&token).into(), &verified);
        assert_eq!(refused(&verifier, &token), "kid");
        assert_eq!(verifier.tokens.caller(&other.sign(&sound()).unwrap()), Ok(somebody()));
    }

    #[tokio::test]
    async fn an_empty_set_lets_nobody_in() {
        let (key, _) = SigningKey::generate().unwrap();
        let verifier = verifier(r#"{"keys": []}"#);
        assert_eq!(refused(&verifier, &key.sign(&sound()).unwrap()), "kid");
    }

    #[test]
    fn how_long_a_token_is_valid_is_read_without_its_key() {
        let (key, _) = SigningKey::generate().unwrap();
        let life_of = |claims: &Value| life(&key.sign(claims).unwrap());
        let ends = NOW + 3600;
        assert_eq!(life_of(&sound()), Some((Some(NOW), ends)));
        assert_eq!(life_of(&with("iat", json!(null))), Some((Some(NOW), ends)));
        assert_eq!(life_of(&json!({"exp": ends, "nbf": 7})), Some((Some(7), ends)));
        assert_eq!(life_of(&json!({"exp": ends})), Some((None, ends)));
        assert_eq!(life_of(&with("exp", json!(null))), None);
        for none in ["", "a.b.c", "opaque"] {
            assert_eq!(life(none), None, "{none}");
        }
    }

    #[test]
    fn a_set_that_makes_no_sense_is_refused() {
        let (key, _) = SigningKey::generate().unwrap();
        let public = serde_json::to_value(&key.public).unwrap();
        let mut short = public.clone();
        short["x"] = json!("AAAA");
        let mut weak = jwk(&rsa(), Algorithm::RS256, "weak");
        weak["n"] = json!(URL_SAFE_NO_PAD.encode([0xff; 128]));
        for (set, complaint) in [
            (String::new(), "not a JWK set"),
            ("{}".into(), "not a JWK set"),
            (json!({"keys": [{"kty": "oct", "kid": "a", "k": "AAAA"}]}).to_string(), "no key"),
            (json!({"keys": [public, public]}).to_string(), "keys[1]"),
            (json!({"keys": [short]}).to_string(), "length"),
            (json!({"keys": [weak]}).to_string(), "length"),
        ] {
            let why = KeySet::read(set.as_bytes()).err().unwrap();
            assert!(why.contains(complaint), "{set}: {why}");
        }
    }
}
