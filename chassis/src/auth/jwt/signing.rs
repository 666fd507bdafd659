//! Signing of tokens: for development, for tests, and where no other issuer exists. A running service holds public
//! keys only.

use anyhow::anyhow;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::TimeDelta;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::clock::Time;

/// A private Ed25519 key that signs tokens.
pub struct SigningKey {
    pub(super) signs: EncodingKey,
    pub(super) public: Jwk,
}

impl SigningKey {
    /// A new key, and its private part in PEM (PKCS #8).
    ///
    /// # Errors
    /// The random number generator fails.
    pub fn generate() -> anyhow::Result<(Self, String)> {
        let failed = |_| anyhow!("no key can be generated");
        let der = Ed25519KeyPair::generate().and_then(|pair| pair.to_pkcs8v1()).map_err(failed)?;
        let base64 = STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
        Ok((Self::read(pem.as_bytes())?, pem))
    }

    /// Reads a private Ed25519 key in PEM (PKCS #8).
    ///
    /// # Errors
    /// Contents that are no such key; the message does not repeat them.
    pub fn read(pem: &[u8]) -> anyhow::Result<Self> {
        let wrong = |_| anyhow!("not a private Ed25519 key in PEM");
        let signs = EncodingKey::from_ed_pem(pem).map_err(wrong)?;
        let mut public = Jwk::from_encoding_key(&signs, Algorithm::EdDSA).map_err(wrong)?;
        public.common.key_id = Some(public.thumbprint(ThumbprintHash::SHA256).map_err(wrong)?);
        public.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { signs, public })
    }

    /// The JWK set of some keys, as `--jwks` reads it. It holds no private part.
    #[must_use]
    pub fn public_set(keys: &[&Self]) -> String {
        let keys: Vec<_> = keys.iter().map(|key| &key.public).collect();
        format!("{:#}\n", json!({ "keys": keys }))
    }

    /// Signs claims as they are; the token's header names this key.
    ///
    /// # Errors
    /// Claims that cannot be encoded.
    pub fn sign(&self, claims: &Value) -> anyhow::Result<String> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid.clone_from(&self.public.common.key_id);
        Ok(jsonwebtoken::encode(&header, claims, &self.signs)?)
    }
}

/// The claims of a token for a caller, valid from `now`.
#[must_use]
pub fn claims(caller: &Caller, issuer: &str, audience: &str, now: Time, valid_for: TimeDelta) -> Value {
    let expires = now.checked_add_signed(valid_for).unwrap_or(Time::MAX_UTC);
    let mut claims = json!({
        "iss": issuer,
        "aud": audience,
        "iat": now.timestamp(),
        "nbf": now.timestamp(),
        "exp": expires.timestamp(),
        "sub": caller.user_id,
        "tenant_id": caller.tenant_id,
        "tenant_kind": caller.tenant_kind,
        "roles": caller.roles,
        "channel": caller.channel.to_string(),
    });
    if let Some(client) = &caller.client {
        claims["client_id"] = json!(client);
    }
    claims
}
