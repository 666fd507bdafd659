//! Mail: an outbox, delivered at least once each, by SMTP or into a folder.
//!
//! - `mailer`: the worker that claims due mails under a lease and sends them.
//! - `templates`: the texts of mails and invitations.
//! - `compose`: what is handed over.
//! - `smtp`, `folder`: the two transports.

mod compose;
mod folder;
pub(crate) mod mailer;
mod smtp;
pub(crate) mod templates;

use std::time::Duration;

use anyhow::ensure;
use lettre::Message;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use uuid::Uuid;

use crate::config::Mail;
use crate::rules::notification::MailFailure;
pub(crate) use folder::MailFolder;
use smtp::{Security, Server, read_password};

/// How long handing over one mail may take, connecting included.
const HAND_OVER_MAX: Duration = Duration::from_secs(10);

/// How long to say goodbye to a mail server: everything is settled by then.
const QUIT_MAX: Duration = Duration::from_secs(1);

/// Where mails go.
pub(crate) enum Transport {
    Server(Server),
    Folder(MailFolder),
}

impl Transport {
    /// Reads the settings.
    ///
    /// # Errors
    /// What is invalid, without any part of it that may be secret.
    pub(crate) fn new(settings: &Mail) -> anyhow::Result<Self> {
        let Some(url) = &settings.smtp else {
            let folder = settings.mail_folder.clone();
            tracing::warn!(folder = %folder.display(), "without --smtp mails are written to a folder and are not delivered");
            return Ok(Self::Folder(MailFolder(folder)));
        };
        let mut server = Server::at(url)?;
        if let (Some(user), Some(file)) = (&settings.smtp_user, &settings.smtp_password_file) {
            let is_encrypted = !matches!(server.security, Security::Never);
            ensure!(
                is_encrypted,
                "--smtp-user is for encrypted connections only; drop ?tls=none from --smtp"
            );
            server.login = Some(Credentials::new(user.clone(), read_password(file)?));
        }
        Ok(Self::Server(server))
    }
}

/// Hands mails over one after the other. It connects when there is the first, and anew after each
/// failure.
#[derive(Default)]
pub(super) struct Delivery {
    open: Option<AsyncSmtpConnection>,
}

impl Delivery {
    /// Hands a mail over. `Ok` means that the mail server took responsibility for it.
    pub(super) async fn hand_over(
        &mut self,
        transport: &Transport,
        id: Uuid,
        mail: &Message,
    ) -> Result<(), MailFailure> {
        match transport {
            Transport::Folder(folder) => {
                let (folder, mail) = (folder.clone(), mail.formatted());
                let written = tokio::task::spawn_blocking(move || folder.write(id, &mail)).await;
                if matches!(written, Ok(Ok(()))) { Ok(()) } else { Err(MailFailure::Folder) }
            }
            Transport::Server(server) => {
                let sent = tokio::time::timeout(HAND_OVER_MAX, server.send(self.open.take(), mail)).await;
                self.open = Some(sent.map_err(|_| MailFailure::Timeout)??);
                Ok(())
            }
        }
    }

    pub(super) async fn close(self) {
        if let Some(mut open) = self.open {
            // Whether it answers makes no difference any more.
            let _ = tokio::time::timeout(QUIT_MAX, open.quit()).await;
        }
    }
}
