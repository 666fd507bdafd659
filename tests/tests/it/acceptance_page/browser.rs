//! A client of HTTP/1.1 that sends what a browser sends, and reads the forms of a page.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tests::Cluster;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use uuid::Uuid;

/// A browser, with the identity that its requests carry.
#[derive(Clone)]
pub(crate) struct Browser {
    address: SocketAddr,
    tls: Option<TlsConnector>,
    /// Headers of every request.
    pub headers: Vec<(&'static str, String)>,
}

/// What a page answered.
pub(crate) struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

impl Browser {
    /// One without an identity.
    pub(super) fn new(cluster: &Cluster) -> Self {
        Self::at(cluster.page_address(), cluster.client_tls().ca.as_deref())
    }

    /// One without an identity that connects to this address.
    pub(crate) fn at(address: SocketAddr, ca: Option<&Path>) -> Self {
        Self { address, tls: ca.map(connector), headers: vec![] }
    }

    /// One that is signed in for development, as a user of a customer.
    pub(super) fn signed_in(cluster: &Cluster, customer: &str) -> Self {
        let cookie = format!("other=1; development-identity={customer}.{}", Uuid::from_u128(7 << 64 | 7));
        Self::new(cluster).with("cookie", cookie)
    }

    /// One whose proxy passes a token on.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// Submits a form of this site.
    pub(super) async fn post(&self, path: &str, fields: &[(String, String)]) -> Answer {
        self.post_from(path, fields, &[("sec-fetch-site", "same-origin")]).await
    }

    /// Submits a form, with these headers about where it comes from.
    pub(super) async fn post_from(
        &self,
        path: &str,
        fields: &[(String, String)],
        from: &[(&str, &str)],
    ) -> Answer {
        let body = fields.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
        let body = body.collect::<Vec<_>>().join("&");
        let headers = [&[("content-type", "application/x-www-form-urlencoded")], from].concat();
        self.send("POST", path, &headers, &body).await
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        let own = self.headers.iter().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in own.chain(headers.iter().copied()) {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{body}", body.len());
        let mut stream = self.connect().await;
        // A server that refuses the head does not read the rest.
        drop(stream.write_all(request.as_bytes()).await);
        let mut bytes = vec![];
        drop(stream.read_to_end(&mut bytes).await);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    async fn connect(&self) -> Box<dyn Stream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect("localhost".try_into().unwrap(), stream).await.unwrap()),
        }
    }
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The hidden fields of the form that has a button for an action, and the button.
    pub(super) fn form(&self, action: &str) -> Vec<(String, String)> {
        let mut fields = self.form_with(&format!("name=\"action\" value=\"{action}\""));
        fields.push(("action".into(), action.into()));
        fields
    }

    /// The hidden fields of the form that has a text in it.
    pub(super) fn form_with(&self, text: &str) -> Vec<(String, String)> {
        let forms = self.body.split("<form").skip(1).map(|form| form.split("</form>").next().unwrap());
        let form = forms.into_iter().find(|form| form.contains(text));
        let form = form.unwrap_or_else(|| panic!("no form has {text}: {}", self.body));
        let hidden = form.split("<input type=\"hidden\" name=\"").skip(1);
        let field = |input: &str| {
            let (name, rest) = input.split_once("\" value=\"").unwrap();
            (name.to_owned(), plain(rest.split('"').next().unwrap()))
        };
        hidden.map(field).collect()
    }

    /// The text where the words of a page stand, with the words.
    #[track_caller]
    pub(crate) fn assert_says(&self, status: u16, words: &[&str]) {
        assert_eq!(self.status, status, "{}", self.body);
        for word in words {
            assert!(self.body.contains(word), "{word} is missing: {}", self.body);
        }
    }
}

/// A form with fields of its own, which replace those that the page has.
pub(super) fn filled(form: Vec<(String, String)>, fields: &[(&str, &str)]) -> Vec<(String, String)> {
    let is_new = |name: &String| !fields.iter().any(|(own, _)| own == name);
    let old = form.into_iter().filter(|(name, _)| is_new(name));
    old.chain(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))).collect()
}

/// A text as an attribute has it, without its escapes.
fn plain(text: &str) -> String {
    [("&#34;", "\""), ("&#39;", "'"), ("&#60;", "<"), ("&#62;", ">"), ("&#38;", "&")]
        .iter()
        .fold(text.to_owned(), |text, (escape, sign)| text.replace(escape, sign))
}

fn encoded(text: &str) -> String {
    let sign = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(sign).collect()
}

/// Without a client certificate: many proxies have none.
fn connector(ca: &Path) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&fs::read(ca).unwrap()).unwrap()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.unwrap().with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}
