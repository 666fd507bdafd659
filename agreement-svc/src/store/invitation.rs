//! Invitations to sign, and to enter a relationship.

use std::cmp::Reverse;
use std::collections::HashMap;

use chassis::database::row::{at, id_or_empty, utc};
use chassis::database::{Connection, Error, Unkept};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::dsl::exists;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{customer, invitation, relationship};

use crate::rules::Time;
use crate::rules::invitation::{DeclineReason, Invitation, InvitationState, Settled};
use crate::rules::language::SHIPPED;
use crate::rules::party::{Contact, Relationship};

#[derive(Queryable, Selectable)]
#[diesel(table_name = invitation)]
struct Row {
    id: String,
    kind: String,
    partner_id: String,
    reseller_id: String,
    customer_id: String,
    template_id: String,
    first_name: String,
    last_name: String,
    email: String,
    phone: String,
    contact_salt: String,
    created_at: NaiveDateTime,
    created_by: String,
    expires_at: NaiveDateTime,
    accepted_at: Option<NaiveDateTime>,
    revoked_at: Option<NaiveDateTime>,
    revision: i64,
    declined_at: Option<NaiveDateTime>,
    decline_reason: Option<String>,
    language: String,
}

impl Row {
    fn read(self) -> Result<Invitation, Error> {
        let row = at("invitation", &self.id);
        let settled = match (self.accepted_at, self.revoked_at, self.declined_at) {
            (None, None, None) => None,
            (Some(accepted_at), None, None) => Some(Settled::Accepted { at: utc(accepted_at) }),
            (None, Some(revoked_at), None) => Some(Settled::Revoked { at: utc(revoked_at) }),
            (None, None, Some(declined_at)) => {
                let reason = self.decline_reason.and_then(|reason| reason.parse().ok());
                Some(Settled::Declined { at: utc(declined_at), reason: row.named("decline_reason", reason)? })
            }
            (Some(_), Some(_), _) => return Err(row.corrupt("revoked_at")),
            (_, _, Some(_)) => return Err(row.corrupt("declined_at")),
        };
        Ok(Invitation {
            id: row.parse("id", &self.id)?,
            kind: row.named("kind", self.kind.parse().ok())?,
            relationship: Relationship {
                payer_id: row.parse("partner_id", &self.partner_id)?,
                reseller_id: row.optional_id("reseller_id", &self.reseller_id)?,
            },
            customer_id: row.optional_id("customer_id", &self.customer_id)?,
            template_id: row.parse("template_id", &self.template_id)?,
            created_by: row.parse("created_by", &self.created_by)?,
            recipient: (!self.email.is_empty()).then_some(Contact {
                first_name: self.first_name,
                last_name: self.last_name,
                email: self.email,
                phone: self.phone,
            }),
            // Older versions wrote in English.
            language: Some(self.language).filter(|of| !of.is_empty()).unwrap_or_else(|| SHIPPED[0].into()),
            contact_salt: self.contact_salt,
            created_at: utc(self.created_at),
            expires_at: utc(self.expires_at),
            settled,
            revision: self.revision,
        })
    }
}

pub(crate) fn invitation_find(connection: &mut Connection, id: Uuid) -> Result<Option<Invitation>, Error> {
    let row: Option<Row> = query!(connection, c => {
        invitation::table.find(id.to_string()).select(Row::as_select()).first(c).optional()
    })?;
    row.map(Row::read).transpose()
}

/// That a customer declined an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declined {
    pub invitation_id: Uuid,
    pub at: Time,
    pub reason: DeclineReason,
}

/// The latest invitation of a partner, as payer or reseller, that each of some customers declined. Others that they declined
/// are not loaded, however many there are.
pub(crate) fn invitations_declined(
    connection: &mut Connection,
    partner_id: Uuid,
    customer_ids: &[Uuid],
) -> Result<HashMap<Uuid, Declined>, Error> {
    let (partner, customers) = (partner_id.to_string(), customer_ids.iter().map(Uuid::to_string));
    let customers: Vec<String> = customers.collect();
    let latest: Vec<Option<String>> = query!(&mut *connection, c => {
        customer::table
            .filter(customer::id.eq_any(&customers))
            .select(
                invitation::table
                    .filter(invitation::customer_id.eq(customer::id))
                    .filter(invitation::declined_at.is_not_null())
                    .filter(invitation::partner_id.eq(&partner).or(invitation::reseller_id.eq(&partner)))
                    .order(invitation::declined_at.desc())
                    .select(invitation::id)
                    .single_value(),
            )
            .load(c)
    })?;
    let latest: Vec<String> = latest.into_iter().flatten().collect();
    if latest.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<Row> = query!(connection, c => {
        invitation::table.filter(invitation::id.eq_any(&latest)).select(Row::as_select()).load(c)
    })?;
    let mut declined = HashMap::new();
    for row in rows {
        let invitation = row.read()?;
        if let (Some(customer_id), Some(Settled::Declined { at, reason })) =
            (invitation.customer_id, invitation.settled)
        {
            declined.insert(customer_id, Declined { invitation_id: invitation.id, at, reason });
        }
    }
    Ok(declined)
}

/// What a list of invitations is narrowed to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter {
    /// Of one partner, as payer or reseller, and not of customers it has no active relationship with.
    pub partner: Option<Uuid>,
    pub customer: Option<Uuid>,
    /// In a state at a time.
    pub state: Option<(InvitationState, Time)>,
    pub newest_first: bool,
}

/// Whose invitations. Each way has an index in the order of revisions.
#[derive(Clone, Copy)]
enum Whose {
    Everyone,
    Payer(Uuid),
    Reseller(Uuid),
}

/// Invitations from a revision on, which is not included: up, or down where the newest comes first.
pub(crate) fn invitation_list(
    connection: &mut Connection,
    filter: Filter,
    from: i64,
    limit: i64,
) -> Result<Vec<Invitation>, Error> {
    let Some(partner) = filter.partner else {
        return invitations_of(connection, Whose::Everyone, filter, from, limit);
    };
    // No partner is both. In one statement, the invitations of all partners might be read.
    let mut rows = invitations_of(connection, Whose::Payer(partner), filter, from, limit)?;
    rows.extend(invitations_of(connection, Whose::Reseller(partner), filter, from, limit)?);
    match filter.newest_first {
        true => rows.sort_unstable_by_key(|row| Reverse(row.revision)),
        false => rows.sort_unstable_by_key(|row| row.revision),
    }
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(rows)
}

fn invitations_of(
    connection: &mut Connection,
    whose: Whose,
    filter: Filter,
    from: i64,
    limit: i64,
) -> Result<Vec<Invitation>, Error> {
    let rows: Vec<Row> = query!(connection, c => {
        let mut list = invitation::table.limit(limit).select(Row::as_select()).into_boxed();
        list = match filter.newest_first {
            true => list.filter(invitation::revision.lt(from)).order(invitation::revision.desc()),
            false => list.filter(invitation::revision.gt(from)).order(invitation::revision),
        };
        list = match whose {
            Whose::Everyone => list,
            Whose::Payer(id) => list.filter(invitation::partner_id.eq(id.to_string())),
            Whose::Reseller(id) => list.filter(invitation::reseller_id.eq(id.to_string())),
        };
        if let Some(partner) = filter.partner.map(|id| id.to_string()) {
            let sees = relationship::table
                .filter(relationship::customer_id.eq(invitation::customer_id))
                .filter(relationship::ended_at.is_null())
                .filter(relationship::partner_id.eq(partner.clone()).or(relationship::reseller_id.eq(partner)));
            list = list.filter(invitation::customer_id.eq("").or(exists(sees)));
        }
        if let Some(customer) = filter.customer {
            list = list.filter(invitation::customer_id.eq(customer.to_string()));
        }
        if let Some((state, now)) = filter.state {
            let now = now.naive_utc();
            let is_open = invitation::accepted_at
                .is_null()
                .and(invitation::revoked_at.is_null())
                .and(invitation::declined_at.is_null());
            list = match state {
                InvitationState::Pending => list.filter(is_open.and(invitation::expires_at.gt(now))),
                InvitationState::Expired => list.filter(is_open.and(invitation::expires_at.le(now))),
                InvitationState::Accepted => list.filter(invitation::accepted_at.is_not_null()),
                InvitationState::Revoked => list.filter(invitation::revoked_at.is_not_null()),
                InvitationState::Declined => list.filter(invitation::declined_at.is_not_null()),
            };
        }
        Unkept(list).load(c)
    })?;
    rows.into_iter().map(Row::read).collect()
}

pub(crate) fn invitation_insert(connection: &mut Connection, new: &Invitation) -> Result<(), Error> {
    let text = |of: fn(&Contact) -> &String| new.recipient.as_ref().map(of).cloned().unwrap_or_default();
    query!(connection, c => {
        diesel::insert_into(invitation::table)
            .values((
                invitation::id.eq(new.id.to_string()),
                invitation::kind.eq(new.kind.into_str()),
                invitation::partner_id.eq(new.relationship.payer_id.to_string()),
                invitation::reseller_id.eq(id_or_empty(new.relationship.reseller_id)),
                invitation::customer_id.eq(id_or_empty(new.customer_id)),
                invitation::template_id.eq(new.template_id.to_string()),
                invitation::first_name.eq(text(|contact| &contact.first_name)),
                invitation::last_name.eq(text(|contact| &contact.last_name)),
                invitation::email.eq(text(|contact| &contact.email)),
                invitation::phone.eq(text(|contact| &contact.phone)),
                invitation::contact_salt.eq(&new.contact_salt),
                invitation::language.eq(&new.language),
                invitation::created_at.eq(new.created_at.naive_utc()),
                invitation::created_by.eq(new.created_by.to_string()),
                invitation::expires_at.eq(new.expires_at.naive_utc()),
                invitation::revision.eq(new.revision),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// Stores what was done with it, and for whom.
pub(crate) fn invitation_settle(connection: &mut Connection, changed: &Invitation) -> Result<(), Error> {
    let (accepted_at, revoked_at, declined) = match changed.settled {
        None => (None, None, None),
        Some(Settled::Accepted { at }) => (Some(at.naive_utc()), None, None),
        Some(Settled::Revoked { at }) => (None, Some(at.naive_utc()), None),
        Some(Settled::Declined { at, reason }) => (None, None, Some((at.naive_utc(), reason.into_str()))),
    };
    query!(connection, c => {
        diesel::update(invitation::table.find(changed.id.to_string()))
            .set((
                invitation::customer_id.eq(id_or_empty(changed.customer_id)),
                invitation::accepted_at.eq(accepted_at),
                invitation::revoked_at.eq(revoked_at),
                invitation::declined_at.eq(declined.map(|(at, _)| at)),
                invitation::decline_reason.eq(declined.map(|(_, reason)| reason)),
            ))
            .execute(c)
    })?;
    Ok(())
}
