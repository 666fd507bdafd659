//! Hands mails over to a mail server by SMTP.
//!
//! Connections are opened and given up here, and not by lettre's pool: a mail that takes too long is
//! dropped together with its connection, whereas the pool would reuse it in the middle of a
//! conversation and take the answer to one mail for the answer to the next.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use http::Uri;
use lettre::Message;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::{self, SMTP_PORT, SUBMISSION_PORT, SUBMISSIONS_PORT};

use crate::rules::notification::MailFailure;

/// How long one address of a mail server is given to answer at all, so that the next can be tried.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// A mail server and how to speak to it.
pub(crate) struct Server {
    host: String,
    port: u16,
    pub(super) security: Security,
    pub(super) login: Option<Credentials>,
}

/// When a connection is encrypted. A certificate is trusted if the system does.
pub(super) enum Security {
    FromTheStart(TlsParameters),
    /// STARTTLS; a server that does not offer it gets no mail.
    Upgraded(TlsParameters),
    /// Only where the setting says so.
    Never,
}

impl Server {
    pub(super) fn at(url: &str) -> anyhow::Result<Self> {
        const FORMS: &str = "--smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none";
        let uri: Uri = url.parse().map_err(|_| anyhow!(FORMS))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            bail!(FORMS);
        };
        if authority.as_str().contains('@') {
            bail!("--smtp must not carry credentials; use --smtp-user and --smtp-password-file");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls =
            || TlsParameters::new(host.clone()).map_err(|error| anyhow!("TLS cannot be set up: {error}"));
        let (security, usual_port) = match (scheme, uri.query()) {
            ("smtps", None) => (Security::FromTheStart(tls()?), SUBMISSIONS_PORT),
            ("smtp", None) => (Security::Upgraded(tls()?), SUBMISSION_PORT),
            ("smtp", Some("tls=none")) => (Security::Never, SMTP_PORT),
            _ => bail!(FORMS),
        };
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => usual_port,
            None => bail!(FORMS),
        };
        if host.is_empty() || uri.path().len() > 1 {
            bail!(FORMS);
        }
        Ok(Self { host, port, security, login: None })
    }

    /// Sends a mail over an open connection, if there is one and it still lives, or a new one, and
    /// returns the connection. After a failure there is none, since its state is unknown.
    pub(super) async fn send(
        &self,
        open: Option<AsyncSmtpConnection>,
        mail: &Message,
    ) -> Result<AsyncSmtpConnection, MailFailure> {
        let living = match open {
            Some(mut open) => open.test_connected().await.then_some(open),
            None => None,
        };
        let mut connection = match living {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        // The mail itself is ASCII, so what a client can find wrong with it is the address.
        let sent = connection.send(mail.envelope(), &mail.formatted()).await;
        sent.map_err(|error| failure_of(&error, MailFailure::Address))?;
        Ok(connection)
    }

    async fn connect(&self) -> Result<AsyncSmtpConnection, MailFailure> {
        let from_the_start = match &self.security {
            Security::FromTheStart(tls) => Some(tls.clone()),
            Security::Upgraded(_) | Security::Never => None,
        };
        let client = ClientId::default();
        let server = (self.host.as_str(), self.port);
        let connected =
            AsyncSmtpConnection::connect_tokio1(server, Some(CONNECT_MAX), &client, from_the_start, None)
                .await;
        let mut connection = connected.map_err(|error| failure_of(&error, MailFailure::Connection))?;
        if let Security::Upgraded(tls) = &self.security {
            let upgraded = connection.starttls(tls.clone(), &client).await;
            upgraded.map_err(|error| failure_of(&error, MailFailure::Tls))?;
        }
        if let Some(login) = &self.login {
            let logged_in = connection.auth(DEFAULT_MECHANISMS, login).await;
            logged_in.map_err(|error| failure_of(&error, MailFailure::Login))?;
        }
        Ok(connection)
    }
}

/// The category of an error; `own` is what it means when nothing was sent because of it.
fn failure_of(error: &smtp::Error, own: MailFailure) -> MailFailure {
    if let Some(code) = error.status() {
        return MailFailure::Reply(code.into());
    }
    if error.is_client() {
        return own;
    }
    // A handshake that fails, an untrusted certificate included, is invalid data on the connection.
    let mut source = error.source();
    while let Some(cause) = source {
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::InvalidData) => return MailFailure::Tls,
            Some(io::ErrorKind::TimedOut) => return MailFailure::Timeout,
            _ => source = cause.source(),
        }
    }
    MailFailure::Connection
}

pub(super) fn read_password(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let password = text.trim_end_matches(['\r', '\n']);
    ensure!(!password.is_empty(), "{}: the password is empty", file.display());
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_mail_server_url_has_three_forms_and_no_credentials() {
        let mut table = String::new();
        for url in [
            "smtps://mail.example",
            "smtps://mail.example:4650",
            "smtp://mail.example",
            "smtp://mail.example:2525/",
            "smtp://mail.example?tls=none",
            "smtp://[::1]:2525?tls=none",
            "smtp://mail.example?tls=opportunistic",
            "smtps://mail.example?tls=none",
            "smtp://mail.example:99999",
            "smtp://mail.example/relay",
            "smtp://mailer:secret@mail.example",
            "http://mail.example",
            "mail.example:25",
            "smtp://",
            "",
        ] {
            let read = match Server::at(url) {
                Ok(Server { host, port, security, .. }) => {
                    let security = match security {
                        Security::FromTheStart(_) => "TLS from the start",
                        Security::Upgraded(_) => "STARTTLS",
                        Security::Never => "in the clear",
                    };
                    format!("{host} {port} {security}")
                }
                Err(why) => format!("{why:#}"),
            };
            assert!(!read.contains("secret"));
            table += &format!("{url:<40}{read}\n");
        }
        expect![[r#"
            smtps://mail.example                    mail.example 465 TLS from the start
            smtps://mail.example:4650               mail.example 4650 TLS from the start
            smtp://mail.example                     mail.example 587 STARTTLS
            smtp://mail.example:2525/               mail.example 2525 STARTTLS
            smtp://mail.example?tls=none            mail.example 25 in the clear
            smtp://[::1]:2525?tls=none              ::1 2525 in the clear
            smtp://mail.example?tls=opportunistic   --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
            smtps://mail.example?tls=none           --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
            smtp://mail.example:99999               --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
            smtp://mail.example/relay               --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
            smtp://mailer:secret@mail.example       --smtp must not carry credentials; use --smtp-user and --smtp-password-file
            http://mail.example                     --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
            mail.example:25                         --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
            smtp://                                 --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
                                                    --smtp must be smtps://HOST:PORT, smtp://HOST:PORT or smtp://HOST:PORT?tls=none
        "#]].assert_eq(&table);
    }
}
