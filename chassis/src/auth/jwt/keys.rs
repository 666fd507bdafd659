//! The public keys that signatures of tokens are verified with: a JWK set.

use anyhow::{Context, bail, ensure};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use super::Refused;
use super::claims::{Claims, Issuer};

/// An RSA modulus has at least 2048 bits, below which signatures can be forged with some effort, and at most 8192,
/// above which a verification takes too long.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// Characters of a kid that a warning shows.
const ID_SHOWN: usize = 100;
const ED25519_BYTES: usize = 32;
const P256_POINT_BYTES: usize = 65;

/// A set of public keys.
pub(in crate::auth) struct KeySet(Vec<Key>);

/// Why a token's signature counts for nothing.
pub(super) enum Unverified {
    /// No key could change that.
    Token(Refused),
    /// Its key is unknown, or is another than the known one of that name: the known keys may be old.
    Key(Refused),
}

struct Key {
    id: String,
    /// The issuer that it is published for, where one set holds the keys of several.
    issuer: Option<Issuer>,
    algorithm: Algorithm,
    verifies: DecodingKey,
}

impl KeySet {
    /// Reads a JWK set. A key that cannot verify tokens is skipped with a warning (RFC 7517, section 5): one that is
    /// malformed, too short, or without an id, which no token can name; and those for other uses, of other kinds or for
    /// other algorithms, which providers publish side by side. An explicitly empty set is valid and revokes all tokens. A
    /// set in which every key is skipped is an error.
    pub(in crate::auth) fn read(contents: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        let set: Set = serde_json::from_slice(contents).context("not a JWK set, {\"keys\": [...]}")?;
        if set.keys.is_empty() {
            tracing::warn!("the set of keys is empty: all tokens are rejected");
            return Ok(Self(vec![]));
        }
        let mut keys: Vec<Key> = vec![];
        let mut skipped = vec![];
        for (n, jwk) in set.keys.into_iter().enumerate() {
            let id: String = jwk["kid"].as_str().unwrap_or("none").chars().take(ID_SHOWN).collect();
            let problem = match Key::read(jwk) {
                Ok(key) if keys.iter().all(|other| other.id != key.id) => {
                    keys.push(key);
                    continue;
                }
                Ok(_) => "another key before it has its kid".to_owned(),
                Err(problem) => format!("{problem:#}"),
            };
            tracing::warn!(key = n, kid = id, problem, "a key is skipped; tokens that it signs are rejected");
            skipped.push(format!("keys[{n}], kid {id}: {problem}"));
        }
        ensure!(!keys.is_empty(), "no key can verify tokens: {}", skipped.join("; "));
        Ok(Self(keys))
    }

    /// The claims of a token, if the key that it names signed them, and the issuer that the key is published for.
    pub(super) fn verify(&self, token: &str) -> Result<(Claims, Option<&Issuer>), Unverified> {
        let about_token = |sentence: &'static str| Unverified::Token(Refused::new("authorization", sentence));
        let header =
            jsonwebtoken::decode_header(token).map_err(|_| about_token("the token is no signed JWT"))?;
        if header.crit.is_some() {
            return Err(about_token("the token's header has critical extensions that are not supported"));
        }
        // Providers that publish a set of keys name the key in each token. Trying each key would let the token choose.
        let Some(id) = header.kid else {
            let sentence = "the token's header does not name its key (kid)";
            return Err(Unverified::Token(Refused::new("kid", sentence)));
        };
        let Some(key) = self.0.iter().find(|key| key.id == id) else {
            let sentence = "the token's key is not among the issuer's keys; get a new token";
            return Err(Unverified::Key(Refused::new("kid", sentence)));
        };
        let (message, signature) = token.rsplit_once('.').unwrap_or_default();
        let is_signed = header.alg == key.algorithm
            && jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.verifies, key.algorithm)
                .unwrap_or(false);
        if !is_signed {
            return Err(Unverified::Key(Refused::new(
                "authorization",
                "the token's signature is not its key's",
            )));
        }
        let claims = message.split_once('.').and_then(|(_, claims)| Claims::decode(claims));
        let claims = claims.ok_or(about_token("the token's claims are no JSON object"))?;
        Ok((claims, key.issuer.as_ref()))
    }
}

impl Key {
    /// Reads a key that verifies tokens.
    fn read(jwk: Value) -> anyhow::Result<Self> {
        let issuer =
            jwk.get("issuer").map(|name| name.as_str().context("its issuer is no text")).transpose()?;
        let issuer = issuer.map(|name| Issuer(name.to_owned()));
        let jwk: Jwk = serde_json::from_value(jwk).context("it is malformed or of an unknown kind")?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            _ => bail!("it is malformed, or for none of EdDSA (Ed25519), ES256 and RS256"),
        };
        let common = &jwk.common;
        ensure!(
            common.public_key_use.as_ref().is_none_or(|use_| *use_ == PublicKeyUse::Signature),
            "its use is not sig"
        );
        ensure!(
            common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify)),
            "its key_ops do not have verify"
        );
        ensure!(
            common.key_algorithm.is_none_or(|named| named == KeyAlgorithm::from(algorithm)),
            "its alg is not {algorithm:?}"
        );
        let id = common.key_id.clone().context("it has no kid, so that no token can name it")?;
        let verifies = DecodingKey::from_jwk(&jwk)?;
        let has_valid_length = match verifies.kind() {
            DecodingKeyKind::RsaModulusExponent { n, .. } => RSA_MODULUS_BYTES.contains(&n.len()),
            DecodingKeyKind::SecretOrDer(point) => {
                point.len() == if algorithm == Algorithm::EdDSA { ED25519_BYTES } else { P256_POINT_BYTES }
            }
        };
        ensure!(has_valid_length, "its length is not valid for its kind; an RSA key has 2048 to 8192 bits");
        ensure!(can_verify(&verifies, algorithm), "its numbers are no public key (RFC 7518, section 6)");
        Ok(Self { id, issuer, algorithm, verifies })
    }
}

/// Whether its numbers are a key: a point of the curve; an odd modulus and exponent without leading zeros. A verification finds
/// that out again each time, and says only that the signature is not the key's.
fn can_verify(key: &DecodingKey, algorithm: Algorithm) -> bool {
    match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => {
            let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
            let parsed = RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256);
            is_odd(n) && is_odd(e) && parsed.is_ok()
        }
        DecodingKeyKind::SecretOrDer(point) if algorithm == Algorithm::EdDSA => {
            ParsedPublicKey::new(&ED25519, point).is_ok()
        }
        DecodingKeyKind::SecretOrDer(point) => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).is_ok(),
    }
}
