//! Invitations, however one is made: by itself, or together with a customer; and the link and mail they are
//! passed on with.

use std::collections::HashMap;

use chassis::database::{Connection, Error};
use chassis::form::Form;
use proto::agreement as wire;
use tonic::Status;
use uuid::Uuid;

use super::link::Links;
use super::{Api, Timed, convert, status};
use crate::mail::templates::{InvitationData, MailTemplates};
use crate::rules::invitation::{Invitation, InvitationState, check_lifetime};
use crate::rules::party::Support;
use crate::rules::{Refusal, Time};
use crate::store::change::ChangeError;
use crate::store::invitation::invitation_find;
use crate::store::partner::partner_find;
use crate::store::template::template_find;

impl Api {
    /// Adds link and mail to an invitation that was just made. They are not part of the stored answer,
    /// which would otherwise keep the token.
    pub(super) async fn add_link(&self, made: Option<&mut wire::Invitation>) -> Result<(), Status> {
        let Some(made) = made else { return Ok(()) };
        let Ok(id) = made.invitation_id.parse() else { return Ok(()) };
        let (links, texts) = (self.links.clone(), self.texts.clone());
        let read = move |connection: &mut Connection| {
            let unseen = Refusal::NotFound { resource: "invitation", id };
            let invitation = invitation_find(connection, id)?.ok_or(unseen)?;
            // As it was when it was made: a repeated request is answered as it was the first time.
            let made = Invitation { settled: None, ..invitation };
            let made_at = made.created_at;
            with_link(connection, (links.as_deref(), &texts), &mut Names::default(), made, made_at)
        };
        let shown = self.database.read(read).await.map_err(status::of)?;
        made.acceptance_url = shown.acceptance_url;
        made.mail_subject = shown.mail_subject;
        made.mail_text = shown.mail_text;
        Ok(())
    }
}

/// Reads until when an invitation may be accepted, where the partner says.
pub(super) fn read_lifetime(
    form: &mut Form,
    timed: &mut Vec<Timed>,
    field: &str,
    expires_at: Option<&prost_types::Timestamp>,
) -> Option<Time> {
    let expires_at = form.optional_time(field, expires_at);
    timed.extend(expires_at.map(|expires_at| (field.to_owned(), expires_at, check_lifetime as _)));
    expires_at
}

/// Names that links are written with, each looked up once.
#[derive(Default)]
pub(super) struct Names {
    partners: HashMap<Uuid, (String, Support)>,
    templates: HashMap<Uuid, String>,
}

impl Names {
    /// A partner's name, and where its customers ask.
    pub(super) fn partner(
        &mut self,
        connection: &mut Connection,
        id: Uuid,
    ) -> Result<(String, Support), Error> {
        looked_up(&mut self.partners, id, || {
            Ok(partner_find(connection, id)?.map(|partner| (partner.name, partner.support)))
        })
    }

    pub(super) fn template(&mut self, connection: &mut Connection, id: Uuid) -> Result<String, Error> {
        looked_up(
            &mut self.templates,
            id,
            || Ok(template_find(connection, id)?.map(|template| template.name)),
        )
    }
}

fn looked_up<T: Clone + Default>(
    known: &mut HashMap<Uuid, T>,
    id: Uuid,
    look: impl FnOnce() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    if let Some(known) = known.get(&id) {
        return Ok(known.clone());
    }
    let found = look()?.unwrap_or_default();
    known.insert(id, found.clone());
    Ok(found)
}

/// An invitation with its link and mail, as far as it can still be accepted.
pub(super) fn with_link(
    connection: &mut Connection,
    (links, texts): (Option<&Links>, &MailTemplates),
    names: &mut Names,
    invitation: Invitation,
    now: Time,
) -> Result<wire::Invitation, ChangeError> {
    let links = links.filter(|_| invitation.state(now) == InvitationState::Pending);
    let Some(links) = links else { return Ok(convert::invitation(invitation, now)) };
    let (partner, support) = names.partner(connection, invitation.relationship.inviter())?;
    let agreement = names.template(connection, invitation.template_id)?;
    let acceptance_url = links.url(invitation.id);
    let data = InvitationData {
        kind: invitation.kind,
        partner: &partner,
        support: &support,
        agreement: &agreement,
        url: &acceptance_url,
        expires_at: invitation.expires_at,
    };
    let written = texts.invitation(&invitation.language, &data);
    let (mail_subject, mail_text) = written.map_err(|error| Error::Query(format!("{error:#}")))?;
    let shown = convert::invitation(invitation, now);
    Ok(wire::Invitation { acceptance_url, mail_subject, mail_text, ..shown })
}
