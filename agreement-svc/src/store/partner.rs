//! Partners and the links between providers and resellers.

use chassis::database::row::{at, utc};
use chassis::database::{Connection, Error};
use chassis::query;
use chrono::NaiveDateTime;
use diesel::prelude::*;
use uuid::Uuid;

use super::schema::{partner, reseller_link};

use crate::rules::party::{Partner, PartnerKind, Support};

#[derive(Queryable)]
struct Row {
    id: String,
    name: String,
    kind: String,
    cloud: String,
    registered_at: NaiveDateTime,
    revision: i64,
    support_email: String,
    support_phone: String,
    support_url: String,
}

impl Row {
    fn read(self) -> Result<Partner, Error> {
        Ok(Partner {
            id: at("partner", &self.id).parse("id", &self.id)?,
            kind: at("partner", &self.id).named("kind", self.kind.parse().ok())?,
            cloud: at("partner", &self.id).named("cloud", self.cloud.parse().ok())?,
            name: self.name,
            registered_at: utc(self.registered_at),
            support: Support { email: self.support_email, phone: self.support_phone, url: self.support_url },
            revision: self.revision,
        })
    }
}

pub(crate) fn partner_find(connection: &mut Connection, id: Uuid) -> Result<Option<Partner>, Error> {
    let row: Option<Row> = query!(connection, c => partner::table.find(id.to_string()).first(c).optional())?;
    row.map(Row::read).transpose()
}

/// Partners in key order, of one kind where one is named.
pub(crate) fn partner_list(
    connection: &mut Connection,
    kind: Option<PartnerKind>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Partner>, Error> {
    let rows: Vec<Row> = query!(connection, c => {
        let mut list = partner::table
            .filter(partner::id.gt(after.unwrap_or_default()))
            .order(partner::id)
            .limit(limit)
            .into_boxed();
        if let Some(kind) = kind {
            list = list.filter(partner::kind.eq(kind.into_str()));
        }
        list.load(c)
    })?;
    rows.into_iter().map(Row::read).collect()
}

pub(crate) fn partner_insert(connection: &mut Connection, new: &Partner) -> Result<(), Error> {
    query!(connection, c => {
        diesel::insert_into(partner::table)
            .values((
                partner::id.eq(new.id.to_string()),
                partner::name.eq(&new.name),
                partner::kind.eq(new.kind.into_str()),
                partner::cloud.eq(new.cloud.into_str()),
                partner::registered_at.eq(new.registered_at.naive_utc()),
                partner::revision.eq(new.revision),
                partner::support_email.eq(&new.support.email),
                partner::support_phone.eq(&new.support.phone),
                partner::support_url.eq(&new.support.url),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// Stores the name, the support contact and the revision.
pub(crate) fn partner_update(connection: &mut Connection, changed: &Partner) -> Result<(), Error> {
    query!(connection, c => {
        diesel::update(partner::table.find(changed.id.to_string()))
            .set((
                partner::name.eq(&changed.name),
                partner::support_email.eq(&changed.support.email),
                partner::support_phone.eq(&changed.support.phone),
                partner::support_url.eq(&changed.support.url),
                partner::revision.eq(changed.revision),
            ))
            .execute(c)
    })?;
    Ok(())
}

/// The links of some partners, as (provider, reseller), in key order.
pub(crate) fn partner_links(connection: &mut Connection, ids: &[Uuid]) -> Result<Vec<(Uuid, Uuid)>, Error> {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let rows: Vec<(String, String)> = query!(connection, c => {
        reseller_link::table
            .filter(reseller_link::provider_id.eq_any(&ids).or(reseller_link::reseller_id.eq_any(&ids)))
            .order((reseller_link::provider_id, reseller_link::reseller_id))
            .load(c)
    })?;
    let read = |(provider, reseller): &(String, String)| {
        let link = at("reseller_link", provider);
        Ok((link.parse("provider_id", provider)?, link.parse("reseller_id", reseller)?))
    };
    rows.iter().map(read).collect()
}

pub(crate) fn link_exists(
    connection: &mut Connection,
    provider: Uuid,
    reseller: Uuid,
) -> Result<bool, Error> {
    let key = (provider.to_string(), reseller.to_string());
    let found: Option<String> = query!(connection, c => {
        reseller_link::table.find(key).select(reseller_link::provider_id).first(c).optional()
    })?;
    Ok(found.is_some())
}

/// Whether the link is new.
pub(crate) fn link_insert(
    connection: &mut Connection,
    provider: Uuid,
    reseller: Uuid,
) -> Result<bool, Error> {
    let inserted = query!(connection, c => {
        diesel::insert_into(reseller_link::table)
            .values((
                reseller_link::provider_id.eq(provider.to_string()),
                reseller_link::reseller_id.eq(reseller.to_string()),
            ))
            .on_conflict_do_nothing()
            .execute(c)
    })?;
    Ok(inserted > 0)
}

/// Whether there was a link.
pub(crate) fn link_delete(
    connection: &mut Connection,
    provider: Uuid,
    reseller: Uuid,
) -> Result<bool, Error> {
    let key = (provider.to_string(), reseller.to_string());
    let deleted = query!(connection, c => diesel::delete(reseller_link::table.find(key)).execute(c))?;
    Ok(deleted > 0)
}
