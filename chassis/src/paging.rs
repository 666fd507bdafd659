//! Keyset pagination of lists: how many rows, after which key, and the token for the next page.
//!
//! A token is the key of the last row, with a code that authenticates it for its caller, call and filter (HMAC). So a token
//! that was altered or made up is refused, and is never taken for another position. The key of the code is random and
//! stands in the database, in the table `page_secret` of each service's own schema: all replicas have the same, and it
//! outlives them. It protects nothing from readers of the database, who see the rows themselves.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use diesel::prelude::*;
use prost::Message;

use crate::auth::Caller;
use crate::clock::new_salt;
use crate::database::{Connection, Database, Error};
use crate::form::Form;
use crate::query;

use schema::page_secret;

mod schema {
    diesel::table! {
        page_secret (id) {
            id -> Integer,
            secret -> Text,
        }
    }
}

/// Rows of a page when the caller does not say.
pub const PAGE_SIZE_DEFAULT: usize = 50;

/// Beyond this a page keeps the connection and the encoder busy for longer than a second call takes.
pub const PAGE_SIZE_MAX: usize = 500;

/// The bytes of the code in a token: as hard to guess as a key of that length.
const CODE_BYTES: usize = 16;

/// The table's only row.
const ONLY: i32 = 1;

/// Reads pages and makes their tokens. Clones share the secret.
#[derive(Clone)]
pub struct Pages(hmac::Key);

/// The page that was asked for.
#[derive(Clone)]
pub struct Page {
    /// Rows, 1 to [`PAGE_SIZE_MAX`].
    pub size: usize,
    /// The key after which the page begins; `None` for the first page.
    pub after: Option<String>,
    /// What the tokens of the list are bound to; the position follows.
    bound: hmac::Context,
}

impl Pages {
    /// Reads the secret, and makes it if no process has done so before.
    ///
    /// # Errors
    /// The database's.
    pub async fn open(database: &Database) -> Result<Self, Error> {
        let secret = match database.read(secret).await? {
            Some(secret) => secret,
            None => database.write(make_secret).await?,
        };
        Ok(Self::new(secret.as_bytes()))
    }

    fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// Reads `page_size` and `page_token`. A token is good for the same caller, call and filter only;
    /// any other is a bad field.
    pub fn read(
        &self,
        form: &mut Form,
        (size, token): (i32, &str),
        caller: &Caller,
        call: &str,
        filter: &str,
    ) -> Page {
        let size = match usize::try_from(size) {
            Ok(0) => PAGE_SIZE_DEFAULT,
            Ok(size) => size.min(PAGE_SIZE_MAX),
            Err(_) => {
                form.violation("page_size", "must not be negative");
                PAGE_SIZE_DEFAULT
            }
        };
        let mut bound = hmac::Context::with_key(&self.0);
        for part in [caller.tenant_kind, &caller.tenant_id.to_string(), call, filter] {
            // With its length, so that no other parts read the same.
            bound.update(&part.len().to_be_bytes());
            bound.update(part.as_bytes());
        }
        let mut page = Page { size, after: None, bound };
        if !token.is_empty() {
            page.after = page.key_of(token);
            if page.after.is_none() {
                form.violation(
                    "page_token",
                    "is not a token of this list for this caller and filter; start without one",
                );
            }
        }
        page
    }
}

/// What a list is filtered by: its request without size and token of the page, so that no filter is forgotten. A field that
/// a later version adds leaves it as it is while the field is not set.
#[must_use]
pub fn filter_of(request: &impl Message) -> String {
    hex::encode(request.encode_to_vec())
}

fn secret(connection: &mut Connection) -> Result<Option<String>, Error> {
    let row = query!(connection, c => {
        page_secret::table.find(ONLY).select(page_secret::secret).first(c).optional()
    });
    Ok(row?)
}

/// Stores a random secret unless another replica was first, and reads it.
fn make_secret(connection: &mut Connection) -> Result<String, Error> {
    // 256 random bits.
    let random = new_salt() + &new_salt();
    query!(&mut *connection, c => {
        diesel::insert_into(page_secret::table)
            .values((page_secret::id.eq(ONLY), page_secret::secret.eq(&random)))
            .on_conflict_do_nothing()
            .execute(c)
    })?;
    Ok(secret(connection)?.unwrap_or(random))
}

impl Page {
    /// The number after which the page begins, for lists in the order of numbers.
    #[must_use]
    pub fn after_number(&self) -> i64 {
        self.number().unwrap_or(0)
    }

    /// The number before which the page begins, for lists from the highest number down.
    #[must_use]
    pub fn before_number(&self) -> i64 {
        self.number().unwrap_or(i64::MAX)
    }

    fn number(&self) -> Option<i64> {
        self.after.as_deref().and_then(|key| key.parse().ok())
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

    /// The token for the page after a key, for lists that end their pages by themselves.
    #[must_use]
    pub fn token(&self, key: &str) -> String {
        URL_SAFE_NO_PAD.encode([&self.code(key.as_bytes()), key.as_bytes()].concat())
    }

    fn code(&self, key: &[u8]) -> [u8; CODE_BYTES] {
        let mut bound = self.bound.clone();
        bound.update(key);
        let mut code = [0; CODE_BYTES];
        code.copy_from_slice(&bound.sign().as_ref()[..CODE_BYTES]);
        code
    }

    fn key_of(&self, token: &str) -> Option<String> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (code, key) = bytes.split_at_checked(CODE_BYTES)?;
        verify_slices_are_equal(code, &self.code(key)).ok()?;
        String::from_utf8(key.to_vec()).ok()
    }
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
            client: None,
        }
    }

    #[test]
    fn a_token_serves_only_the_list_it_was_made_for() {
        let pages = Pages::new(b"secret");
        let mut form = Form::new();
        let first = pages.read(&mut form, (2, ""), &caller(1), "ListThings", "");
        let token = first.cut(&mut vec!["a", "b", "c"], ToString::to_string);
        let second = pages.read(&mut form, (2, &token), &caller(1), "ListThings", "");
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
            pages.read(&mut form, (2, token), &caller(tenant), call, filter);
            assert!(!form.is_valid(), "{token} was taken for {tenant} {call} {filter}");
        }
    }

    #[test]
    fn the_last_page_has_no_token() {
        let pages = Pages::new(b"secret");
        let mut rows = vec![1, 2];
        let page = pages.read(&mut Form::new(), (2, ""), &caller(1), "", "");
        assert_eq!(page.cut(&mut rows, ToString::to_string), "");
        assert_eq!(rows, [1, 2]);
    }

    /// No change of a token, and no token under another secret, is taken for a position.
    #[test]
    fn an_altered_token_is_no_position() {
        let pages = Pages::new(b"secret");
        let read = |pages: &Pages, token: &str, tenant, call, filter| {
            pages.read(&mut Form::new(), (2, token), &caller(tenant), call, filter).after
        };
        let page = pages.read(&mut Form::new(), (2, ""), &caller(1), "ListThings", "a");
        let token = page.token("12345");
        assert_eq!(read(&pages, &token, 1, "ListThings", "a").as_deref(), Some("12345"));
        assert_eq!(read(&Pages::new(b"other"), &token, 1, "ListThings", "a"), None);
        // Parts of the binding that read the same one after the other.
        assert_eq!(read(&pages, &token, 1, "ListThing", "sa"), None);
        for at in 0..token.len() {
            for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=".chars() {
                let mut altered = token.clone();
                altered.replace_range(at..=at, &letter.to_string());
                let more = format!("{}{letter}{}", &token[..at], &token[at..]);
                let less = format!("{}{}", &token[..at], &token[at + 1..]);
                for altered in [altered, more, less, format!("{token}{letter}")] {
                    if altered != token {
                        assert_eq!(read(&pages, &altered, 1, "ListThings", "a"), None, "{altered}");
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn all_replicas_have_one_secret() {
        use diesel::connection::SimpleConnection;

        use crate::database::Writes;

        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("things.sqlite").display()).parse().unwrap();
        let database = Database::open(&url, true, Writes::Concurrent).unwrap();
        let create = |connection: &mut Connection| -> Result<(), Error> {
            let created = query!(connection, c => {
                c.batch_execute("CREATE TABLE page_secret (id INTEGER PRIMARY KEY, secret TEXT NOT NULL)")
            });
            Ok(created?)
        };
        database.write(create).await.unwrap();
        let (first, second) = tokio::join!(Pages::open(&database), Pages::open(&database));
        let token = |pages: &Pages| pages.read(&mut Form::new(), (2, ""), &caller(1), "", "").token("a");
        let tokens = [first.unwrap(), second.unwrap(), Pages::open(&database).await.unwrap()];
        assert!(tokens.iter().all(|pages| token(pages) == token(&tokens[0])));
    }
}
