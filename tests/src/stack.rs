//! A stack that somebody else has started, named by its addresses in the environment.
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
use chassis::auth::token::{self, SigningKey};
use chassis::auth::{Bearer, Caller, Credentials};
use chassis::clock::Clock;
use chassis::tls::{self, Address};
use chrono::TimeDelta;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::transport::Channel;
use uuid::Uuid;

/// Tokens are made for each client, and no test takes longer.
const TOKEN_VALID: TimeDelta = TimeDelta::minutes(30);

/// Where a stack is, and what it takes to be somebody there.
pub struct Stack {
    agreements: Address,
    orders: Address,
    tls: tls::Client,
    signing_key: SigningKey,
    issuer: String,
    audience: String,
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
        Ok(Some(Self {
            agreements: agreements.parse()?,
            orders: say("TEST_ORDERS")?.parse()?,
            tls: tls::Client::open(&tls)?,
            signing_key: SigningKey::read(&key)?,
            issuer: say("TEST_JWT_ISSUER")?,
            audience: say("TEST_JWT_AUDIENCE")?,
        }))
    }

    pub(crate) fn agreements(&self) -> Channel {
        self.tls.connect_lazy(&self.agreements, &tls::Client::endpoint(&self.agreements))
    }

    pub(crate) fn orders(&self) -> Channel {
        self.tls.connect_lazy(&self.orders, &tls::Client::endpoint(&self.orders))
    }

    /// What a caller presents to the stack.
    ///
    /// # Panics
    /// When it cannot be signed: then no test means anything.
    #[must_use]
    pub fn credentials(&self, caller: &Caller) -> Credentials {
        let now = Clock::system().now();
        let claims = token::claims(caller, &self.issuer, &self.audience, now, TOKEN_VALID);
        match self.signing_key.sign(&claims).and_then(|token| Bearer::read(token.as_bytes())) {
            Ok(token) => Credentials::Token(token),
            Err(why) => panic!("there is no token for the caller: {why}"),
        }
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

/// Says what a test needs that only services of its own can give, and leaves it out where tests run
/// against a stack. Returns from the surrounding function.
#[macro_export]
macro_rules! needs_own {
    ($what:literal) => {
        if $crate::stack::lacks($what) {
            return;
        }
    };
}

/// The ids of the [small world](crate::world) are the same in every test, and a stack is shared by all of
/// them. So each cluster on it has that world under ids of its own there, which only differ in how they
/// begin: they are put in what is sent, and taken out of what comes back.
#[derive(Clone, Copy)]
pub struct Alias([u8; Self::LENGTH]);

impl Alias {
    const LENGTH: usize = 24;
    const WORLD: [u8; Self::LENGTH] = *b"00000000-0000-4000-8000-";

    /// One that nobody else has.
    #[must_use]
    pub fn fresh() -> Self {
        let mut alias = Self::WORLD;
        let chance = Uuid::new_v4().simple().to_string();
        alias[..8].copy_from_slice(&chance.as_bytes()[..8]);
        Self(alias)
    }

    /// The caller as the stack knows it.
    #[must_use]
    pub fn of(self, caller: &Caller) -> Caller {
        let mut id = caller.tenant_id.to_string().into_bytes();
        replace(&Self::WORLD, &self.0, &mut id);
        let tenant_id = Uuid::try_parse_ascii(&id).unwrap_or(caller.tenant_id);
        Caller { tenant_id, ..caller.clone() }
    }

    /// Puts the alias into the messages of a request.
    #[must_use]
    pub fn put_into(self, request: http::Request<Body>) -> http::Request<Body> {
        request.map(|body| renamed(body, Self::WORLD, self.0))
    }

    /// Takes the alias out of the messages of an answer, and out of a refusal.
    #[must_use]
    pub fn take_out_of(self, mut response: http::Response<Body>) -> http::Response<Body> {
        rename_refusal(&self.0, &Self::WORLD, response.headers_mut());
        response.map(|body| renamed(body, self.0, Self::WORLD))
    }
}

/// A body in which ids begin otherwise. Messages are passed on whole, since an id may be cut in two.
fn renamed(body: Body, from: [u8; Alias::LENGTH], to: [u8; Alias::LENGTH]) -> Body {
    let mut held = BytesMut::new();
    Body::new(body.map_frame(move |frame| match frame.into_data() {
        Ok(data) => {
            held.extend_from_slice(&data);
            let mut whole = held.split_to(whole_messages(&held));
            replace(&from, &to, &mut whole);
            http_body::Frame::data(whole.freeze())
        }
        Err(frame) => match frame.into_trailers() {
            Ok(mut trailers) => {
                rename_refusal(&from, &to, &mut trailers);
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
fn rename_refusal(from: &[u8], to: &[u8], headers: &mut HeaderMap) {
    for (name, is_encoded) in [("grpc-message", false), ("grpc-status-details-bin", true)] {
        let Some(value) = headers.get(name) else { continue };
        let text = value.as_bytes();
        let text = if is_encoded { STANDARD_NO_PAD.decode(text).ok() } else { Some(text.to_vec()) };
        let Some(mut text) = text else { continue };
        replace(from, to, &mut text);
        let text = if is_encoded { STANDARD_NO_PAD.encode(text).into_bytes() } else { text };
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(name, value);
        }
    }
}

fn replace(from: &[u8], to: &[u8], bytes: &mut [u8]) {
    let found: Vec<usize> =
        bytes.windows(from.len()).enumerate().filter(|(_, part)| *part == from).map(|(at, _)| at).collect();
    for at in found {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
}
