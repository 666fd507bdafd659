//! Acceptance links: where an invitation is accepted, and the token that proves it was received.
//!
//! The token is an HMAC of the invitation's id, so that it can be shown again without being stored.

use std::fmt;

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// A shorter key would be easier to guess than the token it makes.
const KEY_BYTES_MIN: usize = 32;

/// Makes links and recognises their tokens.
pub(crate) struct Links {
    page: String,
    mac: Hmac<Sha256>,
}

impl Links {
    /// `page` is where customers accept; invitation and token are added to it.
    ///
    /// # Errors
    /// A key that no links should be made with.
    pub(crate) fn new(page: &str, key: &[u8]) -> anyhow::Result<Self> {
        let length = key.len();
        ensure!(
            length >= KEY_BYTES_MIN,
            "the invitation key has {length} bytes; it needs at least {KEY_BYTES_MIN}"
        );
        let mac = Hmac::new_from_slice(key).context("the invitation key")?;
        Ok(Self { page: page.to_owned(), mac })
    }

    /// The link that accepts an invitation.
    pub(crate) fn url(&self, invitation: Uuid) -> String {
        let separator = if self.page.contains('?') { '&' } else { '?' };
        let token = URL_SAFE_NO_PAD.encode(self.signed(invitation).finalize().into_bytes());
        format!("{}{separator}invitation={invitation}&token={token}", self.page)
    }

    /// Whether a token is the invitation's, compared in constant time.
    pub(crate) fn is_token_of(&self, invitation: Uuid, token: &str) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else { return false };
        self.signed(invitation).verify_slice(&bytes).is_ok()
    }

    fn signed(&self, invitation: Uuid) -> Hmac<Sha256> {
        self.mac.clone().chain_update(invitation.as_bytes())
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Links to {}", self.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_invitation_and_key_only() {
        let links = Links::new("https://portal.example/accept", &[7; 32]).unwrap();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let url = links.url(one);
        let token = url.rsplit_once("token=").unwrap().1;
        assert!(
            url.starts_with("https://portal.example/accept?invitation=00000000-0000-0000-0000-000000000001&")
        );
        assert!(links.is_token_of(one, token));
        assert!(!links.is_token_of(other, token));
        assert!(!links.is_token_of(one, &token[1..]));
        assert!(!links.is_token_of(one, ""));
        let rekeyed = Links::new("https://portal.example/accept", &[8; 32]).unwrap();
        assert!(!rekeyed.is_token_of(one, token));
    }

    #[test]
    fn a_short_key_makes_no_links() {
        assert!(Links::new("https://portal.example", &[7; 31]).is_err());
        assert!(Links::new("https://portal.example", &[7; 32]).is_ok());
    }
}
