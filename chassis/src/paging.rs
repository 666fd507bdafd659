//! Keyset pagination of lists: how many rows, after which key, and the token for the next page.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::auth::Caller;
use crate::form::Form;

/// Rows of a page when the caller does not say.
pub const PAGE_SIZE_DEFAULT: usize = 50;

/// Beyond this a page keeps the connection and the encoder busy for longer than a second call takes.
pub const PAGE_SIZE_MAX: usize = 500;

/// Enough that one caller's token does not fit another's list by chance. A forged token gains
/// nothing: it selects among the rows that its bearer may see anyway.
const BINDING_BYTES: usize = 12;

/// The page that was asked for.
#[derive(Clone, Debug)]
pub struct Page {
    /// Rows, 1 to [`PAGE_SIZE_MAX`].
    pub size: usize,
    /// The key after which the page begins; `None` for the first page.
    pub after: Option<String>,
    binding: [u8; BINDING_BYTES],
}

impl Page {
    /// Reads `page_size` and `page_token`. A token is good for the same caller, call and filter only;
    /// any other is a bad field.
    pub fn read(
        form: &mut Form,
        (size, token): (i32, &str),
        caller: &Caller,
        call: &str,
        filter: &str,
    ) -> Self {
        let bound_to = format!("{}/{}/{call}/{filter}", caller.tenant_kind, caller.tenant_id);
        let size = match usize::try_from(size) {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(size) => size.min(PAGE_SIZE_MAX),
            Err(_) => {
                form.violation("page_size", "must not be negative");
                PAGE_SIZE_DEFAULT
            }
        };
        let mut binding = [0; BINDING_BYTES];
        binding.copy_from_slice(&Sha256::digest(bound_to)[..BINDING_BYTES]);
        let after = (!token.is_empty()).then(|| key_of(token, &binding)).flatten();
        if !token.is_empty() && after.is_none() {
            form.violation(
                "page_token",
                "is not a token of this list for this caller and filter; start without one",
            );
        }
        Self { size, after, binding }
    }

    /// The number after which the page begins, for lists in the order of numbers.
    #[must_use]
    pub fn after_number(&self) -> i64 {
        self.after.as_deref().and_then(|key| key.parse().ok()).unwrap_or(0)
    }

    /// How many rows to fetch: one more than shown tells whether there is a next page.
    #[must_use]
    pub fn fetch(&self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX - 1) + 1
    }

    /// Cuts the fetched rows to the page and returns the token for the next one, empty if none.
    pub fn cut<T>(&self, rows: &mut Vec<T>, key: impl Fn(&T) -> String) -> String {
        if rows.len() <= self.size {
            return String::new();
        }
        rows.truncate(self.size);
        self.token(&rows.last().map(key).unwrap_or_default())
    }

    /// The token for the page after a key of visible ASCII characters, for lists that end their pages
    /// by themselves.
    #[must_use]
    pub fn token(&self, key: &str) -> String {
        URL_SAFE_NO_PAD.encode([&self.binding[..], key.as_bytes()].concat())
    }
}

fn key_of(token: &str, binding: &[u8]) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let key = bytes.strip_prefix(binding)?;
    let key = std::str::from_utf8(key).ok()?;
    (!key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())).then(|| key.to_owned())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::auth::Channel;

    fn caller(tenant: u128) -> Caller {
        Caller {
            tenant_kind: "TENANT",
            tenant_id: Uuid::from_u128(tenant),
            user_id: Uuid::from_u128(9),
            roles: vec![],
            channel: Channel::Dashboard,
        }
    }

    #[test]
    fn a_token_serves_only_the_list_it_was_made_for() {
        let mut form = Form::new();
        let first = Page::read(&mut form, (2, ""), &caller(1), "ListThings", "");
        let token = first.cut(&mut vec!["a", "b", "c"], ToString::to_string);
        let second = Page::read(&mut form, (2, &token), &caller(1), "ListThings", "");
        assert_eq!(second.after.as_deref(), Some("b"));
        assert!(form.is_valid());

        for (token, tenant, call, filter) in [
            (token.as_str(), 2, "ListThings", ""),
            (token.as_str(), 1, "ListOthers", ""),
            (token.as_str(), 1, "ListThings", "country=FR"),
            ("garbage!", 1, "ListThings", ""),
            (&token[..8], 1, "ListThings", ""),
        ] {
            let mut form = Form::new();
            Page::read(&mut form, (2, token), &caller(tenant), call, filter);
            assert!(!form.is_valid(), "{token} was taken for {tenant} {call} {filter}");
        }
    }

    #[test]
    fn the_last_page_has_no_token() {
        let mut rows = vec![1, 2];
        let page = Page::read(&mut Form::new(), (2, ""), &caller(1), "", "");
        assert_eq!(page.cut(&mut rows, ToString::to_string), "");
        assert_eq!(rows, [1, 2]);
    }
}
