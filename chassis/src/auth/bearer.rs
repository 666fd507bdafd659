//! Bearer tokens, as callers present them and as files hold them.

use std::fmt;

use anyhow::{Context, ensure};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use tonic::metadata::MetadataMap;

use super::jwt;
use crate::expiry::Validity;

/// A token that a caller presents. Neither logs nor errors show it.
#[derive(Clone)]
pub struct Bearer(HeaderValue);

impl Bearer {
    /// Reads the contents of a file that holds a token.
    ///
    /// # Errors
    /// Contents that are no token; the message does not repeat them.
    pub fn read(contents: &[u8]) -> anyhow::Result<Self> {
        let token = std::str::from_utf8(contents).unwrap_or_default().trim();
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(is_token, "must hold one token and nothing else");
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).context("must hold one token")?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// The validity that the token claims, if it claims any. Nothing is verified: this is for the client that
    /// presents the token.
    #[must_use]
    pub fn validity(&self, name: &'static str) -> Option<Validity> {
        let (not_before, not_after) = jwt::life(self.token())?;
        Some(Validity { name, not_before, not_after })
    }

    pub(super) fn of(headers: &HeaderMap) -> Result<Self, &'static str> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let value = given.next().ok_or("send a token, as authorization: Bearer TOKEN")?;
        if given.next().is_some() {
            return Err("there is more than one authorization; send one");
        }
        let bearer = Self(value.clone());
        if bearer.token().is_empty() {
            Err("the authorization has not the form Bearer TOKEN")
        } else {
            Ok(bearer)
        }
    }

    pub(super) fn present(&self, metadata: &mut MetadataMap) {
        let mut headers = std::mem::take(metadata).into_headers();
        let mut value = self.0.clone();
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
        *metadata = MetadataMap::from_headers(headers);
    }

    /// The token, or nothing if the header has another form.
    pub(super) fn token(&self) -> &str {
        let parts = self.0.to_str().ok().and_then(|value| value.split_once(' '));
        let token = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        token.map(|(_, token)| token.trim_start_matches(' ')).unwrap_or_default()
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_bearer_token_is_accepted() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            Bearer::of(&headers).map(|bearer| bearer.token().to_owned())
        };
        for scheme in ["Bearer", "bearer", "BEARER", "bEARER", "Bearer  "] {
            assert_eq!(token(&[&format!("{scheme} a.b.c")]), Ok("a.b.c".into()), "{scheme}");
        }
        for none in [
            &[][..],
            &["a.b.c"],
            &["Basic a.b.c"],
            &["Bearer"],
            &["Bearer "],
            &["Bearer a.b.c", "Bearer a.b.c"],
        ] {
            assert!(token(none).is_err(), "{none:?}");
        }
    }

    #[test]
    fn a_file_holds_one_token() {
        assert!(Bearer::read(b" a.b.c\n").is_ok());
        for bad in [&b""[..], b" \n", b"two words", b"two\nlines", b"\xff"] {
            assert!(!format!("{:#}", Bearer::read(bad).unwrap_err()).contains("words"));
        }
    }
}
