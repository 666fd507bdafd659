//! A running stack, named by its addresses in the environment.
//!
//! Where one is named, every [`Cluster`](crate::Cluster) is that stack: tests reach it as its users do, with
//! tokens and over TLS, and never touch its processes, clock or databases. What they cannot do without is
//! said with [`needs_own!`](crate::needs_own).

use std::env;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::BytesMut;
use chassis::auth::jwt::signing::SigningKey;
use chassis::auth::{Caller, Credentials};
use chassis::clock::{self, Clock};
use chassis::tls;
use chrono::TimeDelta;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use tonic::body::Body;
use uuid::Uuid;

use super::pki::{Issuer, bearer};

/// Tokens are made for each client, and no test takes longer.
const TOKEN_VALID: TimeDelta = TimeDelta::minutes(30);

/// Where a stack is, and what it takes to call it.
pub struct Stack {
    /// Of agreement-svc and order-svc.
    addresses: [String; 2],
    tls: tls::ClientSettings,
    issuer: Issuer,
}

static NAMED: LazyLock<Option<Stack>> = LazyLock::new(|| match Stack::from_environment() {
    Ok(stack) => stack,
    Err(why) => panic!("the stack cannot be used: {why}"),
});

impl Stack {
    /// The stack that the environment names, if it names one: `TEST_AGREEMENTS` and `TEST_ORDERS` are its
    /// addresses, `TEST_CA`, `TEST_CLIENT_CERT` and `TEST_CLIENT_KEY` what it takes to connect there, and
    /// `TEST_SIGNING_KEY` the private key of tokens that it believes, issued by `TEST_JWT_ISSUER` for
    /// `TEST_JWT_AUDIENCE`.
    ///
    /// # Panics
    /// When the rest is not as it should be: then no test means anything.
    #[must_use]
    pub fn named() -> Option<&'static Self> {
        NAMED.as_ref()
    }

    fn from_environment() -> Result<Option<Self>, String> {
        let Ok(agreements) = env::var("TEST_AGREEMENTS") else { return Ok(None) };
        let say = |name: &'static str| env::var(name).map_err(|_| format!("{name} is not set"));
        let file = |name| say(name).map(PathBuf::from);
        let tls = tls::ClientSettings {
            ca: Some(file("TEST_CA")?),
            cert: Some(file("TEST_CLIENT_CERT")?),
            key: Some(file("TEST_CLIENT_KEY")?),
        };
        let key =
            fs::read(file("TEST_SIGNING_KEY")?).map_err(|error| format!("TEST_SIGNING_KEY: {error}"))?;
        let addresses = [agreements, say("TEST_ORDERS")?];
        let signs = SigningKey::read(&key).map_err(|error| error.to_string())?;
        let (issuer, audience) = (say("TEST_JWT_ISSUER")?, say("TEST_JWT_AUDIENCE")?);
        let issuer = Issuer::new(signs, issuer, audience, Clock::system(), TOKEN_VALID);
        Ok(Some(Self { addresses, tls, issuer }))
    }

    pub(crate) fn addresses(&self) -> [String; 2] {
        self.addresses.clone()
    }

    pub(crate) fn client_tls(&self) -> tls::ClientSettings {
        self.tls.clone()
    }

    pub(crate) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// What a caller presents to the stack.
    ///
    /// # Panics
    /// When it cannot be signed: then no test means anything.
    #[must_use]
    pub fn credentials(&self, caller: &Caller) -> Credentials {
        bearer(&self.issuer.token(caller))
    }
}

/// Whether a test has to be left out because a stack is named that cannot give what it needs.
#[must_use]
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub fn lacks(what: &str) -> bool {
    let lacks = Stack::named().is_some();
    if lacks {
        let thread = std::thread::current();
        eprintln!("SKIPPED on the stack: {} needs {what}", thread.name().unwrap_or("a test"));
    }
    lacks
}

/// Leaves a test out on a database that this run lacks. Returns from the surrounding function.
#[macro_export]
macro_rules! needs {
    ($backend:expr) => {
        if !$backend.is_available() {
            return;
        }
    };
}

/// Names what a test needs of services of its own, and skips the test where tests run against a shared stack: there no
/// test may set the clock, stop a service, fill its limits, write to its database or be believed without a token.
/// Returns from the surrounding function.
#[macro_export]
macro_rules! needs_own {
    ($what:literal) => {
        if $crate::stack::lacks($what) {
            return;
        }
    };
}

/// The ids and domains of the [small world](crate::fixtures) are the same in every test, and a stack is shared
/// by all of them. So each cluster on it has that world under ids and domains of its own there, which only
/// differ in how they begin and end: they are put in what is sent, and taken out of what comes back.
#[derive(Clone, Copy)]
pub struct Alias {
    ids: [u8; 24],
    domains: [u8; 8],
}

/// How they begin and end in the tests.
const WORLD: Alias = Alias { ids: *b"00000000-0000-4000-8000-", domains: *b".example" };

/// Whether an id is one of the tests' world, as they know it.
pub(crate) fn is_of_the_world(id: &str) -> bool {
    id.as_bytes().starts_with(&WORLD.ids)
}

impl Alias {
    /// One that no other test has.
    #[must_use]
    pub fn fresh() -> Self {
        let mut alias = WORLD;
        let chance = clock::new_salt();
        let (digits, rest) = chance.as_bytes().split_at(8);
        alias.ids[..8].copy_from_slice(digits);
        for (letter, digit) in alias.domains[1..].iter_mut().zip(rest) {
            *letter = b'a' + digit % 26;
        }
        alias
    }

    /// The caller as the stack knows it.
    #[must_use]
    pub fn of(self, caller: &Caller) -> Caller {
        let mut id = caller.tenant_id.to_string().into_bytes();
        rename(WORLD, self, &mut id);
        let tenant_id = Uuid::try_parse_ascii(&id).unwrap_or(caller.tenant_id);
        Caller { tenant_id, ..caller.clone() }
    }

    /// Puts the alias into the messages of a request.
    #[must_use]
    pub fn put_into(self, request: http::Request<Body>) -> http::Request<Body> {
        request.map(|body| renamed(body, WORLD, self))
    }

    /// Takes the alias out of the messages of an answer, and out of a refusal.
    #[must_use]
    pub fn take_out_of(self, mut response: http::Response<Body>) -> http::Response<Body> {
        rename_refusal(self, WORLD, response.headers_mut());
        response.map(|body| renamed(body, self, WORLD))
    }
}

/// A body with other names. Messages are passed on whole, since a name may be cut in two.
fn renamed(body: Body, from: Alias, to: Alias) -> Body {
    let mut held = BytesMut::new();
    Body::new(body.map_frame(move |frame| match frame.into_data() {
        Ok(data) => {
            held.extend_from_slice(&data);
            let mut whole = held.split_to(whole_messages(&held));
            rename(from, to, &mut whole);
            http_body::Frame::data(whole.freeze())
        }
        Err(frame) => match frame.into_trailers() {
            Ok(mut trailers) => {
                rename_refusal(from, to, &mut trailers);
                http_body::Frame::trailers(trailers)
            }
            Err(frame) => http_body::Frame::data(frame.into_data().unwrap_or_default()),
        },
    }))
}

/// How many of the bytes belong to messages that are there as a whole. Each begins with a flag and its
/// length in four bytes.
fn whole_messages(bytes: &[u8]) -> usize {
    const PREFIX: usize = 5;
    let mut end = 0;
    while let Some([_, length @ ..]) = bytes.get(end..).and_then(|rest| rest.first_chunk::<PREFIX>()) {
        let next = end + PREFIX + u32::from_be_bytes(*length) as usize;
        if next > bytes.len() {
            break;
        }
        end = next;
    }
    end
}

/// The sentence of a refusal is in one header, and its details, encoded, in another.
fn rename_refusal(from: Alias, to: Alias, headers: &mut HeaderMap) {
    for (name, is_encoded) in [("grpc-message", false), ("grpc-status-details-bin", true)] {
        let Some(value) = headers.get(name) else { continue };
        let text = value.as_bytes();
        let text = if is_encoded { STANDARD_NO_PAD.decode(text).ok() } else { Some(text.to_vec()) };
        let Some(mut text) = text else { continue };
        rename(from, to, &mut text);
        let text = if is_encoded { STANDARD_NO_PAD.encode(text).into_bytes() } else { text };
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(name, value);
        }
    }
}

fn rename(from: Alias, to: Alias, bytes: &mut [u8]) {
    replace(&from.ids, &to.ids, bytes);
    replace(&from.domains, &to.domains, bytes);
}

fn replace(from: &[u8], to: &[u8], bytes: &mut [u8]) {
    let found: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, part)| *part == from).map(|(at, _)| at).collect();
    for at in found {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "00000000-0000-4000-8000-0000000000d1";

    fn message(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap();
        [&[0][..], &length.to_be_bytes(), text.as_bytes()].concat()
    }

    #[tokio::test]
    async fn an_id_passes_under_its_alias_however_the_bytes_are_cut() {
        let alias = Alias::fresh();
        let sent = [message(ID), message("contoso.example"), message(ID)].concat();
        for cut in 0..sent.len() {
            let parts = [sent[..cut].to_vec(), sent[cut..].to_vec()];
            let parts = futures_util::stream::iter(
                parts.map(|part| Ok::<_, tonic::Status>(http_body::Frame::data(part.into()))),
            );
            let request = http::Request::new(Body::new(http_body_util::StreamBody::new(parts)));
            let there = alias.put_into(request).into_body().collect().await.unwrap().to_bytes();
            let is_there = |name: &[u8]| there.windows(name.len()).any(|part| part == name);
            assert!(there.len() == sent.len() && !is_there(&WORLD.ids) && !is_there(&WORLD.domains));
            let back = alias.take_out_of(http::Response::new(Body::new(http_body_util::Full::new(there))));
            assert_eq!(back.into_body().collect().await.unwrap().to_bytes(), sent, "cut at {cut}");
        }
    }

    #[test]
    fn a_refusal_speaks_of_ids_as_the_test_knows_them() {
        let alias = Alias::fresh();
        let there = ID.replacen("00000000", &String::from_utf8_lossy(&alias.ids[..8]), 1);
        let mut refused = http::Response::new(Body::empty());
        let details = STANDARD_NO_PAD.encode(format!("details of {there}"));
        refused.headers_mut().insert("grpc-message", HeaderValue::try_from(&there).unwrap());
        refused.headers_mut().insert("grpc-status-details-bin", HeaderValue::try_from(details).unwrap());
        let refused = alias.take_out_of(refused);
        assert_eq!(refused.headers()["grpc-message"], ID);
        let details = STANDARD_NO_PAD.decode(&refused.headers()["grpc-status-details-bin"]);
        assert_eq!(details, Ok(format!("details of {ID}").into_bytes()));
    }
}
