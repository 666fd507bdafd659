//! Proposals of resellers to providers.

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error, Unkept};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::dsl::exists;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{proposal, relationship};
use super::shown::{shown_columns, shown_text};

use crate::rules::Time;
use crate::rules::attestation::Details;
use crate::rules::party::Contact;
use crate::rules::proposal::{Decided, Proposal, ProposalState, WITHDRAWN_COUNTS};

#[derive(Queryable, Insertable, Selectable)]
#[diesel(table_name = proposal, treat_none_as_default_value = false)]
struct Row {
    id: String,
    reseller_id: String,
    provider_id: String,
    customer_id: String,
    template_id: String,
    first_name: String,
    last_name: String,
    email: String,
    phone: String,
    contact_salt: String,
    title: String,
    evidence_reference: String,
    evidence_sha256: String,
    on_behalf_of: String,
    external_reference: String,
    agreed_at: NaiveDateTime,
    proposed_at: NaiveDateTime,
    proposed_by: String,
    expires_at: NaiveDateTime,
    approved_at: Option<NaiveDateTime>,
    attestation_id: Option<String>,
    rejected_at: Option<NaiveDateTime>,
    rejection_reason: Option<String>,
    revision: i64,
    shown_country: String,
    shown_language: String,
    shown_sha256: String,
    withdrawn_at: Option<NaiveDateTime>,
}

impl Row {
    fn read(self) -> Result<Proposal, Error> {
        let row = at("proposal", &self.id);
        let decided = match (self.approved_at, self.rejected_at, self.withdrawn_at) {
            (None, None, None) => None,
            (Some(approved_at), None, None) => {
                let attestation_id = self.attestation_id.as_deref().unwrap_or_default();
                let attestation_id = row.parse("attestation_id", attestation_id)?;
                Some(Decided::Approved { at: utc(approved_at), attestation_id })
            }
            (None, Some(rejected_at), None) => {
                let reason = self.rejection_reason.and_then(|reason| reason.parse().ok());
                let reason = row.named("rejection_reason", reason)?;
                Some(Decided::Rejected { at: utc(rejected_at), reason })
            }
            (None, None, Some(withdrawn_at)) => Some(Decided::Withdrawn { at: utc(withdrawn_at) }),
            (Some(_), Some(_), _) => return Err(row.corrupt("rejected_at")),
            (_, _, Some(_)) => return Err(row.corrupt("withdrawn_at")),
        };
        Ok(Proposal {
            id: row.parse("id", &self.id)?,
            reseller_id: row.parse("reseller_id", &self.reseller_id)?,
            provider_id: row.parse("provider_id", &self.provider_id)?,
            customer_id: row.parse("customer_id", &self.customer_id)?,
            template_id: row.parse("template_id", &self.template_id)?,
            proposed_by: row.parse("proposed_by", &self.proposed_by)?,
            contact: Contact {
                first_name: self.first_name,
                last_name: self.last_name,
                email: self.email,
                phone: self.phone,
            },
            contact_salt: self.contact_salt,
            agreed_at: utc(self.agreed_at),
            details: Details {
                title: self.title,
                evidence_reference: self.evidence_reference,
                on_behalf_of: self.on_behalf_of,
                evidence_sha256: self.evidence_sha256,
                external_reference: self.external_reference,
                shown_text: shown_text([self.shown_country, self.shown_language, self.shown_sha256]),
            },
            proposed_at: utc(self.proposed_at),
            expires_at: utc(self.expires_at),
            decided,
            revision: self.revision,
        })
    }
}

pub(crate) fn proposal_find(connection: &mut Connection, id: Uuid) -> Result<Option<Proposal>, Error> {
    let row: Option<Row> = query!(connection, c => {
        proposal::table.find(id.to_string()).select(Row::as_select()).first(c).optional()
    })?;
    row.map(Row::read).transpose()
}

/// How many proposals of a reseller to a provider for a customer wait for a decision, or were withdrawn within
/// [`WITHDRAWN_COUNTS`].
pub(crate) fn proposals_counting(
    connection: &mut Connection,
    [reseller, provider, customer]: [Uuid; 3],
    now: Time,
) -> Result<usize, Error> {
    let withdrawn_after = (now - WITHDRAWN_COUNTS).naive_utc();
    let count: i64 = query!(connection, c => {
        let is_pending = proposal::withdrawn_at.is_null().and(proposal::expires_at.gt(now.naive_utc()));
        proposal::table
            .filter(proposal::reseller_id.eq(reseller.to_string()))
            .filter(proposal::provider_id.eq(provider.to_string()))
            .filter(proposal::customer_id.eq(customer.to_string()))
            .filter(proposal::approved_at.is_null())
            .filter(proposal::rejected_at.is_null())
            .filter(is_pending.or(proposal::withdrawn_at.gt(withdrawn_after)))
            .count()
            .get_result(c)
    })?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

/// What a list of proposals is narrowed to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProposalFilter {
    /// Of one partner, as reseller or provider, and within relationships that are active.
    pub partner: Option<Uuid>,
    pub customer: Option<Uuid>,
    /// In a state at a time.
    pub state: Option<(ProposalState, Time)>,
}

/// Whose proposals. Each way has indexes in the order of revisions.
#[derive(Clone, Copy)]
enum Whose {
    Everyone,
    Reseller(Uuid),
    Provider(Uuid),
}

/// Proposals, oldest first.
pub(crate) fn proposal_list(
    connection: &mut Connection,
    filter: ProposalFilter,
    after: i64,
    limit: i64,
) -> Result<Vec<Proposal>, Error> {
    let Some(partner) = filter.partner else {
        return proposals_of(connection, Whose::Everyone, filter, after, limit);
    };
    // No partner is both.
    let mut rows = proposals_of(connection, Whose::Reseller(partner), filter, after, limit)?;
    rows.extend(proposals_of(connection, Whose::Provider(partner), filter, after, limit)?);
    rows.sort_unstable_by_key(|row| row.revision);
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(rows)
}

fn proposals_of(
    connection: &mut Connection,
    whose: Whose,
    filter: ProposalFilter,
    after: i64,
    limit: i64,
) -> Result<Vec<Proposal>, Error> {
    let rows: Vec<Row> = query!(connection, c => {
        let mut list = proposal::table
            .filter(proposal::revision.gt(after))
            .order(proposal::revision)
            .limit(limit)
            .select(Row::as_select())
            .into_boxed();
        let is_active = relationship::table
            .filter(relationship::customer_id.eq(proposal::customer_id))
            .filter(relationship::partner_id.eq(proposal::provider_id))
            .filter(relationship::reseller_id.eq(proposal::reseller_id))
            .filter(relationship::ended_at.is_null());
        list = match whose {
            Whose::Everyone => list,
            Whose::Reseller(id) => list.filter(proposal::reseller_id.eq(id.to_string())).filter(exists(is_active)),
            Whose::Provider(id) => list.filter(proposal::provider_id.eq(id.to_string())).filter(exists(is_active)),
        };
        if let Some(customer) = filter.customer {
            list = list.filter(proposal::customer_id.eq(customer.to_string()));
        }
        if let Some((state, now)) = filter.state {
            let now = now.naive_utc();
            let is_open = proposal::approved_at
                .is_null()
                .and(proposal::rejected_at.is_null())
                .and(proposal::withdrawn_at.is_null());
            list = match state {
                ProposalState::Pending => list.filter(is_open.and(proposal::expires_at.gt(now))),
                ProposalState::Expired => list.filter(is_open.and(proposal::expires_at.le(now))),
                ProposalState::Approved => list.filter(proposal::approved_at.is_not_null()),
                ProposalState::Rejected => list.filter(proposal::rejected_at.is_not_null()),
                ProposalState::Withdrawn => list.filter(proposal::withdrawn_at.is_not_null()),
            };
        }
        Unkept(list).load(c)
    })?;
    rows.into_iter().map(Row::read).collect()
}

/// Stores a proposal that is not decided.
pub(crate) fn proposal_insert(connection: &mut Connection, new: &Proposal) -> Result<(), Error> {
    let Proposal { contact, details, .. } = new.clone();
    let [shown_country, shown_language, shown_sha256] = shown_columns(details.shown_text.as_ref());
    let row = Row {
        id: new.id.to_string(),
        reseller_id: new.reseller_id.to_string(),
        provider_id: new.provider_id.to_string(),
        customer_id: new.customer_id.to_string(),
        template_id: new.template_id.to_string(),
        first_name: contact.first_name,
        last_name: contact.last_name,
        email: contact.email,
        phone: contact.phone,
        contact_salt: new.contact_salt.clone(),
        title: details.title,
        evidence_reference: details.evidence_reference,
        evidence_sha256: details.evidence_sha256,
        on_behalf_of: details.on_behalf_of,
        external_reference: details.external_reference,
        agreed_at: new.agreed_at.naive_utc(),
        proposed_at: new.proposed_at.naive_utc(),
        proposed_by: new.proposed_by.to_string(),
        expires_at: new.expires_at.naive_utc(),
        approved_at: None,
        attestation_id: None,
        rejected_at: None,
        rejection_reason: None,
        revision: new.revision,
        shown_country,
        shown_language,
        shown_sha256,
        withdrawn_at: None,
    };
    query!(connection, c => diesel::insert_into(proposal::table).values(&row).execute(c))?;
    Ok(())
}

/// Stores how it ended.
pub(crate) fn proposal_decide(connection: &mut Connection, id: Uuid, decided: Decided) -> Result<(), Error> {
    let (approved, rejected, withdrawn_at) = match decided {
        Decided::Approved { at, attestation_id } => {
            (Some((at.naive_utc(), attestation_id.to_string())), None, None)
        }
        Decided::Rejected { at, reason } => (None, Some((at.naive_utc(), reason.into_str())), None),
        Decided::Withdrawn { at } => (None, None, Some(at.naive_utc())),
    };
    let (approved_at, attestation_id) = approved.unzip();
    let (rejected_at, reason) = rejected.unzip();
    query!(connection, c => {
        diesel::update(proposal::table.find(id.to_string()))
            .set((
                proposal::approved_at.eq(approved_at),
                proposal::attestation_id.eq(&attestation_id),
                proposal::rejected_at.eq(rejected_at),
                proposal::rejection_reason.eq(reason),
                proposal::withdrawn_at.eq(withdrawn_at),
            ))
            .execute(c)
    })?;
    Ok(())
}
