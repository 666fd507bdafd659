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
use crate::rules::invitation::{Invitation, InvitationState, check_lifetime, mail_of};
use crate::rules::party::Relationship;
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
        let links = self.links.clone();
        let read = move |connection: &mut Connection| {
            let unseen = Refusal::NotFound { resource: "invitation", id };
            let invitation = invitation_find(connection, id)?.ok_or(unseen)?;
            // As it was when it was made: a repeated request is answered as it was the first time.
            let made = Invitation { settled: None, ..invitation };
            let made_at = made.created_at;
            with_link(connection, links.as_deref(), &mut Names::default(), made, made_at)
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
pub(super) struct Names(HashMap<Uuid, String>);

impl Names {
    pub(super) fn partner(&mut self, connection: &mut Connection, id: Uuid) -> Result<String, Error> {
        self.named(id, || Ok(partner_find(connection, id)?.map(|partner| partner.name)))
    }

    pub(super) fn template(&mut self, connection: &mut Connection, id: Uuid) -> Result<String, Error> {
        self.named(id, || Ok(template_find(connection, id)?.map(|template| template.name)))
    }

    fn named(
        &mut self,
        id: Uuid,
        look: impl FnOnce() -> Result<Option<String>, Error>,
    ) -> Result<String, Error> {
        if let Some(known) = self.0.get(&id) {
            return Ok(known.clone());
        }
        let name = look()?.unwrap_or_default();
        self.0.insert(id, name.clone());
        Ok(name)
    }
}

/// An invitation with its link and mail, as far as it can still be accepted.
pub(super) fn with_link(
    connection: &mut Connection,
    links: Option<&Links>,
    names: &mut Names,
    invitation: Invitation,
    now: Time,
) -> Result<wire::Invitation, ChangeError> {
    let links = links.filter(|_| invitation.state(now) == InvitationState::Pending);
    let Some(links) = links else { return Ok(convert::invitation(invitation, now)) };
    let Relationship { payer_id, reseller_id } = invitation.relationship;
    let partner = names.partner(connection, reseller_id.unwrap_or(payer_id))?;
    let agreement = names.template(connection, invitation.template_id)?;
    let acceptance_url = links.url(invitation.id);
    let (mail_subject, mail_text) = mail_of(&invitation, &partner, &agreement, &acceptance_url);
    let shown = convert::invitation(invitation, now);
    Ok(wire::Invitation { acceptance_url, mail_subject, mail_text, ..shown })
}
